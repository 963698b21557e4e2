//! Who changes an object: one transaction at a time, from its first change to its commit.
//!
//! Locks held to the end of a transaction are what orders transactions that touch the same object. Two that wait for
//! each other are found when the second begins to wait, and that one is told; also where one waits for who only reads.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::reading;

/// Two transactions would wait for each other for ever: the one that is told gives up and is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this transaction and another wait for each other's objects: change objects in one order, or use `transaction`, which tries again"
)]
pub struct Deadlock;

/// How often a waiting transaction looks again: the owner of what it waits for may have changed and begun to wait for
/// us. Rare, so that its cost is none.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

const WAITERS: u64 = 1;
const PLACES: usize = 64;

/// Where transactions wait; objects share them by address.
struct Place {
    lock: Mutex<()>,
    freed: Condvar,
}

static WAITING: [Place; PLACES] = [const { Place { lock: Mutex::new(()), freed: Condvar::new() } }; PLACES];

/// Who waits, by the number of its transaction, or by one that it has been given.
static WAITS: Mutex<Option<HashMap<u64, Wait>>> = Mutex::new(None);

struct Wait {
    on: On,
    /// What its thread holds read guards of meanwhile, by place.
    reads: Vec<usize>,
}

/// What is waited for.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// That a transaction ends.
    End(u64),
    /// That nobody reads an object any more.
    Readers(usize),
}

/// The owner of one object: a transaction's number, or none.
#[derive(Default)]
pub(crate) struct Owner(AtomicU64);

impl Owner {
    #[inline]
    pub fn is(&self, transaction: u64) -> bool {
        self.0.load(Ordering::Acquire) >> 1 == transaction
    }

    #[inline]
    pub fn is_free(&self) -> bool {
        self.0.load(Ordering::Acquire) >> 1 == 0
    }

    #[inline]
    pub fn try_acquire(&self, transaction: u64) -> bool {
        self.0.compare_exchange(0, transaction << 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub fn acquire(&self, transaction: u64) -> Result<(), Deadlock> {
        while !self.try_acquire(transaction) {
            self.wait(transaction)?;
        }
        Ok(())
    }

    #[inline]
    pub fn release(&self) {
        if self.0.swap(0, Ordering::AcqRel) & WAITERS != 0 {
            let place = self.place();
            // The lock is what a waiter holds between its look and its sleep.
            drop(place.lock.lock());
            place.freed.notify_all();
        }
    }

    /// Waits until the present owner has gone, or for a while.
    pub fn wait(&self, transaction: u64) -> Result<(), Deadlock> {
        let place = self.place();
        let mut held = place.lock.lock();
        let current = self.0.load(Ordering::Acquire);
        let owner = current >> 1;
        if owner == 0 || owner == transaction {
            return Ok(());
        }
        if self.0.compare_exchange(current, current | WAITERS, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Ok(());
        }
        let _edge = Edge::new(transaction, On::End(owner))?;
        place.freed.wait_for(&mut held, LOOK_AGAIN);
        Ok(())
    }

    fn place(&self) -> &'static Place {
        // Objects lie at least 64 bytes apart.
        &WAITING[(std::ptr::from_ref(self).addr() >> 6) % PLACES]
    }
}

/// "This one waits for that", for as long as it lives.
pub(crate) struct Edge(u64);

impl Edge {
    pub fn new(from: u64, on: On) -> Result<Self, Deadlock> {
        let mut waits = WAITS.lock();
        let waits = waits.get_or_insert_default();
        waits.insert(from, Wait { on, reads: reading::places() });
        let (mut seen, mut next) = (HashSet::new(), vec![on]);
        while let Some(on) = next.pop() {
            match on {
                On::End(of) if of == from => {
                    waits.remove(&from);
                    return Err(Deadlock);
                }
                On::End(of) if seen.insert(of) => next.extend(waits.get(&of).map(|wait| wait.on)),
                On::End(_) => {}
                // Who reads it and waits for nothing will be done.
                On::Readers(of) => {
                    let readers = waits.iter().filter(|(_, wait)| wait.reads.contains(&of));
                    next.extend(readers.map(|(reader, _)| On::End(*reader)));
                }
            }
        }
        Ok(Self(from))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(waits) = WAITS.lock().as_mut() {
            waits.remove(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time() {
        let owner = Owner::default();
        assert!(owner.try_acquire(1) && owner.is(1) && !owner.try_acquire(2));
        owner.release();
        assert!(owner.is_free() && owner.try_acquire(2));
    }

    #[test]
    fn two_that_wait_for_each_other_are_found() {
        let (a, b) = (Owner::default(), Owner::default());
        assert!(a.try_acquire(101) && b.try_acquire(102));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let outcome = b.acquire(101);
                a.release();
                outcome
            });
            let second = scope.spawn(|| {
                let outcome = a.acquire(102);
                b.release();
                outcome
            });
            let outcomes = [first.join().unwrap(), second.join().unwrap()];
            assert!(outcomes.contains(&Err(Deadlock)), "{outcomes:?}");
        });
    }
}
