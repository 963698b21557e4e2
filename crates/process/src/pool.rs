//! Threads that help the tracer while the workload stands still, so that what it waits for is done by several processors.
//!
//! Work is cut into pieces, which whoever is free takes, the tracer first of all. So nothing waits for a worker that is not awake
//! yet, and with one processor the tracer does everything.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::task;

/// Workers besides the tracer. A scan of page tables is as fast as memory is, which a few processors use up.
const MOST_WORKERS: usize = 3;
/// How long a worker looks for more work before it sleeps again: more than from what was scanned to what is copied. Not longer:
/// meanwhile it keeps a processor from the workload, which may be asked something, or is to run again.
const LOOKS: Duration = Duration::from_micros(50);
/// A piece takes a fraction of this. Whoever has one and is kept from running is waited for without keeping a processor.
const SPINS: Duration = Duration::from_millis(1);

pub struct Pool {
    board: Arc<Board>,
    workers: usize,
}

/// What workers look at.
#[derive(Default)]
struct Board {
    posted: Mutex<Posted>,
    changed: Condvar,
    /// As [`Posted::rounds`], to be looked at again and again.
    rounds: AtomicU64,
}

#[derive(Default)]
struct Posted {
    rounds: u64,
    round: Option<Arc<dyn Round>>,
}

trait Round: Send + Sync {
    /// Takes pieces until there are none.
    fn help(&self);
}

struct Pieces<T, R, F> {
    pieces: Vec<T>,
    results: Vec<Mutex<Option<R>>>,
    work: F,
    next: AtomicUsize,
    done: AtomicUsize,
}

/// Counts a piece as done also when its work panics: it has no result then.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl<T: Send + Sync, R: Send, F: Fn(&T) -> R + Send + Sync> Round for Pieces<T, R, F> {
    fn help(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let (Some(piece), Some(slot)) = (self.pieces.get(at), self.results.get(at)) else { return };
            let _done = Done(&self.done);
            let result = (self.work)(piece);
            *lock(slot) = Some(result);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is locked here is left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// That of this process. Made by the tracer: workers have the priority of whoever asks first.
    pub fn shared() -> &'static Pool {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let others = thread::available_parallelism().map_or(0, |all| all.get() - 1);
            Pool::new(others.min(MOST_WORKERS))
        })
    }

    fn new(wanted: usize) -> Pool {
        let board = Arc::new(Board::default());
        let priority = task::realtime_priority();
        let start = |_: &usize| {
            let board = Arc::clone(&board);
            let help = move || {
                if let Some(priority) = priority {
                    // Without it, it is there later.
                    let _ = task::become_realtime(priority);
                }
                board.help();
            };
            // One that cannot be started is one less: the tracer has more to do.
            thread::Builder::new().name("worker".into()).spawn(help).is_ok()
        };
        let workers = (0..wanted).filter(start).count();
        Pool { board, workers }
    }

    /// The results of all pieces, in their order.
    pub fn run<T, R, F>(&self, pieces: Vec<T>, work: F) -> Vec<R>
    where
        T: Send + Sync + 'static,
        R: Send + 'static,
        F: Fn(&T) -> R + Send + Sync + 'static,
    {
        let results = pieces.iter().map(|_| Mutex::new(None)).collect();
        let round = Arc::new(Pieces { pieces, results, work, next: 0.into(), done: 0.into() });
        if self.workers > 0 && round.pieces.len() > 1 {
            let mut posted = lock(&self.board.posted);
            posted.rounds += 1;
            posted.round = Some(Arc::clone(&round) as Arc<dyn Round>);
            self.board.rounds.store(posted.rounds, Ordering::Release);
            drop(posted);
            self.board.changed.notify_all();
        }
        round.help();
        let begun = Instant::now();
        while round.done.load(Ordering::Acquire) < round.pieces.len() {
            if begun.elapsed() < SPINS {
                std::hint::spin_loop();
            } else {
                thread::sleep(SPINS);
            }
        }
        lock(&self.board.posted).round = None;
        let again = |(piece, slot): (&T, &Mutex<Option<R>>)| {
            // A worker that has panicked is one less, and its piece is to be done.
            lock(slot).take().unwrap_or_else(|| (round.work)(piece))
        };
        round.pieces.iter().zip(&round.results).map(again).collect()
    }
}

impl Board {
    fn help(&self) {
        let mut rounds = 0;
        loop {
            let since = Instant::now();
            while self.rounds.load(Ordering::Acquire) == rounds && since.elapsed() < LOOKS {
                std::hint::spin_loop();
            }
            let mut posted = lock(&self.posted);
            while posted.rounds == rounds {
                posted = self.changed.wait(posted).unwrap_or_else(PoisonError::into_inner);
            }
            rounds = posted.rounds;
            let round = posted.round.clone();
            drop(posted);
            if let Some(round) = round {
                round.help();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn results_come_in_order_whoever_has_done_them() {
        for workers in 0..3 {
            let pool = Pool::new(workers);
            for count in [0, 1, 2, 50] {
                let squares = pool.run((0..count).collect(), |piece: &u64| piece * piece);
                assert_eq!(squares, (0..count).map(|piece| piece * piece).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn workers_take_pieces() {
        let pool = Pool::new(1);
        let who = || {
            let pieces = pool.run(vec![Duration::from_millis(20); 4], |piece| {
                thread::sleep(*piece);
                thread::current().id()
            });
            pieces.into_iter().collect::<HashSet<_>>()
        };
        // On a busy machine it may come late.
        assert!((0..50).any(|_| who().len() == 2));
    }

    #[test]
    fn what_a_worker_fails_at_is_done_all_the_same() {
        let pool = Pool::new(1);
        let here = thread::current().id();
        let results = pool.run((0..20).collect(), move |piece: &u64| {
            thread::sleep(Duration::from_millis(1));
            assert_eq!(thread::current().id(), here, "this panic is meant");
            *piece
        });
        assert_eq!(results, (0..20).collect::<Vec<_>>());
    }
}
