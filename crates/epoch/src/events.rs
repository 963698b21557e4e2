//! What the engine's one thread is told by all others: a queue with a descriptor to wait on.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Attempt, Result};
use crate::queue::{Receiver, Sender, queue};

pub struct Events<T> {
    queue: Receiver<T>,
    sender: Sender<T>,
    wake: Arc<EventFd>,
}

/// A way to tell. Cloned freely.
pub struct Teller<T> {
    sender: Sender<T>,
    wake: Arc<EventFd>,
}

impl<T> Clone for Teller<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }
}

impl<T> Teller<T> {
    pub fn tell(&self, event: T) {
        // An engine that is gone needs no news; a counter that is full has woken it already.
        let _ = self.sender.send(event);
        let _ = self.wake.write(1);
    }
}

impl<T> Events<T> {
    pub fn new() -> Result<Self> {
        let (sender, queue) = queue();
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .attempt(|| "make an event counter".into())?;
        Ok(Self { queue, sender, wake: Arc::new(wake) })
    }

    pub fn teller(&self) -> Teller<T> {
        Teller { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }

    /// The next event, if there is one.
    pub fn next(&self) -> Option<T> {
        self.queue.try_receive().or_else(|| {
            let _ = self.wake.read();
            // What was told between the two is still found.
            self.queue.try_receive()
        })
    }
}

impl<T> AsFd for Events<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
