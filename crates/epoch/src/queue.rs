//! A queue between threads of different priorities.
//!
//! The receiver of a channel of the standard library spins, yielding, while a sender is in the middle of its sending. Where the receiver
//! is a real-time thread and the sender is not, and both are on one processor, it spins for as long as the kernel lets real-time threads
//! run, a second, and a tracer that does so stops its workload. Here whoever has to wait sleeps, on a futex.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    received: bool,
    waiting: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Whatever was done under the lock is whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub struct Sender<T>(Arc<Shared<T>>);

pub struct Receiver<T>(Arc<Shared<T>>);

/// Why nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    Yet,
    /// All senders are gone.
    Ever,
}

/// Without a bound: whoever sends bounds what is on its way.
pub fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, received: true, waiting: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Gives it back if nobody will receive it.
    pub fn send(&self, what: T) -> Result<(), T> {
        self.send_if_below(usize::MAX, what)
    }

    /// The same, also if so many wait already.
    pub fn send_if_below(&self, most: usize, what: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if !state.received || state.queue.len() >= most {
            return Err(what);
        }
        state.queue.push_back(what);
        let wake = state.waiting;
        drop(state);
        if wake {
            self.0.changed.notify_one();
        }
        Ok(())
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.changed.notify_one();
    }
}

impl<T> Receiver<T> {
    /// What is there, without waiting.
    pub fn try_receive(&self) -> Option<T> {
        self.0.lock().queue.pop_front()
    }

    /// Waits; `None` once all senders are gone.
    pub fn receive(&self) -> Option<T> {
        self.receive_until(None).ok()
    }

    /// Waits for so long at most.
    pub fn receive_within(&self, limit: Duration) -> Result<T, Nothing> {
        self.receive_until(Instant::now().checked_add(limit))
    }

    /// Without an end, if that is none.
    fn receive_until(&self, end: Option<Instant>) -> Result<T, Nothing> {
        let mut state = self.0.lock();
        loop {
            if let Some(what) = state.queue.pop_front() {
                return Ok(what);
            }
            if state.senders == 0 {
                return Err(Nothing::Ever);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Nothing::Yet);
            }
            state.waiting = true;
            state = match left {
                Some(left) => {
                    let waited = self.0.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
                None => self.0.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()),
            };
            state.waiting = false;
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.received = false;
        state.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_was_sent_is_received_in_order_by_whoever_waits() {
        let (sender, receiver) = queue();
        let others = (0..4).map(|which: u64| {
            let sender = sender.clone();
            thread::spawn(move || (0..1000).for_each(|number| sender.send((which, number)).unwrap()))
        });
        let others: Vec<_> = others.collect();
        drop(sender);
        let mut last = [None; 4];
        while let Some((which, number)) = receiver.receive() {
            let before = last[which as usize].replace(number);
            assert_eq!(before.map_or(0, |before| before + 1), number);
        }
        assert_eq!(last, [Some(999); 4]);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(receiver.receive_within(Duration::from_secs(60)), Err(Nothing::Ever));
    }

    #[test]
    fn what_nobody_receives_or_has_no_room_is_given_back() {
        let (sender, receiver) = queue();
        assert_eq!(receiver.receive_within(Duration::from_millis(1)), Err(Nothing::Yet));
        assert_eq!(sender.send_if_below(1, 1), Ok(()));
        assert_eq!(sender.send_if_below(1, 2), Err(2));
        assert_eq!(receiver.try_receive(), Some(1));
        assert_eq!(receiver.try_receive(), None);
        drop(receiver);
        assert_eq!(sender.send(3), Err(3));
    }
}
