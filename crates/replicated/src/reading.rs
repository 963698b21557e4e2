//! What a thread reads: the objects that it holds read guards of.
//!
//! A guard keeps an object's lock, and the owner of the object has to wait for it. Who waits says what its thread reads
//! meanwhile ([`Edge`]), so that circles through guards are found like all others. What a thread reads already it may
//! ask for again: behind a writer that waits for it, it would wait for itself.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RawRwLock;
use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};

use crate::lock::{Deadlock, Edge, LOOK_AGAIN, On};
use crate::object::{AnyObject, Body, Shared};
use crate::transaction::{WriteError, read_at_rest, waiting_id};

thread_local! {
    /// The places of the objects, as often as there are guards.
    static READING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// While a guard lives.
pub(crate) struct Reading(usize);

impl Reading {
    fn new<B: Body>(object: &Shared<B>) -> Self {
        let place = object.place();
        // At a thread's end there is none left to be kept from anything.
        let _ = READING.try_with(|reading| reading.borrow_mut().push(place));
        Self(place)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = READING.try_with(|reading| {
            let mut reading = reading.borrow_mut();
            if let Some(place) = reading.iter().rposition(|place| *place == self.0) {
                reading.swap_remove(place);
            }
        });
    }
}

/// What this thread reads.
pub(crate) fn places() -> Vec<usize> {
    READING.try_with(|reading| reading.borrow().clone()).unwrap_or_default()
}

fn reads<B: Body>(object: &Shared<B>) -> bool {
    READING.try_with(|reading| reading.borrow().contains(&object.place())).unwrap_or(false)
}

/// Whether this thread holds a read guard of one of these.
pub(crate) fn reads_one_of(objects: &[Arc<dyn AnyObject>]) -> bool {
    READING
        .try_with(|reading| {
            let reading = reading.borrow();
            !reading.is_empty() && objects.iter().any(|object| reading.contains(&object.place()))
        })
        .unwrap_or(false)
}

/// Whoever reads an object would wait for itself to write to it.
pub(crate) fn may_write<B: Body>(object: &Shared<B>) -> Result<(), WriteError> {
    if reads(object) { Err(WriteError::GuardAlive) } else { Ok(()) }
}

/// A guard to read an object with, at a moment when no other transaction has changed it and not committed. Of the two ways
/// to lock it within a time, the second does not wait behind writers that wait.
///
/// Unwinds where [`give_up`](crate::transaction::give_up) does.
#[inline]
pub(crate) fn read<B: Body, G>(
    object: &Shared<B>,
    lock: impl Fn(Duration) -> Option<G>,
    lock_again: impl Fn(Duration) -> Option<G>,
) -> (G, Reading) {
    // What it saw is still so: nobody has written since.
    let again = if reads(object) { lock_again(LOOK_AGAIN) } else { None };
    let guard = again.unwrap_or_else(|| read_at_rest(object, lock));
    (guard, Reading::new(object))
}

/// The same, of what keeps the object's content.
pub(crate) fn read_arc<B: Body>(object: &Shared<B>) -> (ArcRwLockReadGuard<RawRwLock, B>, Reading) {
    let body = &object.body;
    read(
        object,
        |patience| body.try_read_arc_for(patience),
        |patience| body.try_read_arc_recursive_for(patience),
    )
}

/// The lock of an object that this transaction owns: it has to wait for those who read it, and for nobody else.
#[inline]
pub(crate) fn write<B: Body, G>(
    object: &Shared<B>,
    lock: impl Fn(Duration) -> Option<G>,
) -> Result<G, Deadlock> {
    if let Some(guard) = lock(Duration::ZERO) {
        return Ok(guard);
    }
    loop {
        // Anew each time: those who read it may have begun to wait for us.
        let _edge = Edge::new(waiting_id(), On::Readers(object.place()))?;
        if let Some(guard) = lock(LOOK_AGAIN) {
            return Ok(guard);
        }
    }
}

/// The same, of what keeps the object's content.
pub(crate) fn write_arc<B: Body>(
    object: &Shared<B>,
) -> Result<ArcRwLockWriteGuard<RawRwLock, B>, WriteError> {
    may_write(object)?;
    Ok(write(object, |patience| object.body.try_write_arc_for(patience))?)
}
