//! Write guards: plain access to marked values.
//!
//! The transaction that owns an object keeps the object's lock from one write guard to the next, for nobody else may have
//! it before the transaction ends: another guard of it costs no atomic operation. It is let go of when the transaction
//! reads the value or ends. Only a primary's transactions do so: before `start`, and on a backup, values are
//! replaced whatever transactions are open. See decision 0013, `docs/decisions/0013-locks-kept-by-transactions.md`.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::lock_api::GuardNoSend;

use crate::object::{Body, Shared};
use crate::reading;
use crate::store::Role;
use crate::transaction::{WriteError, is_current, own, panic_passed, remember};
use crate::value::Value;

const FREE: u8 = 0;
const WRITTEN: u8 = 1;
const KEPT: u8 = 2;

/// How the owner of an object has its lock. Only the owner changes it, and only of its own does it believe what it says.
#[derive(Default)]
pub(crate) struct Hold(AtomicU8);

impl Hold {
    /// A guard lives through which the owner changes the object.
    #[inline]
    pub fn is_written(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WRITTEN
    }

    /// Such a guard begins or ends, of which the lock is not kept.
    #[inline]
    pub fn set_written(&self, written: bool) {
        self.0.store(if written { WRITTEN } else { FREE }, Ordering::Relaxed);
    }

    #[inline]
    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed) == KEPT
    }
}

impl<B: Body> Shared<B> {
    /// Unlocks it, if its owner has kept the lock.
    ///
    /// # Safety
    /// For the transaction that owns it alone, on the thread that the transaction is with.
    #[inline]
    pub(crate) unsafe fn let_go(&self) {
        if self.hold.is_kept() {
            self.hold.set_written(false);
            // SAFETY: the lock is held, exclusively: a guard that was dropped left it so, and nobody has done this since,
            // for only the owner may. No reference into the object has outlived the guard.
            unsafe { self.body.force_unlock_write() };
        }
    }
}

/// What leads to an object of a `T`.
pub trait Leads<T: Value>: Deref<Target = Arc<Shared<T>>> {}

impl<T: Value, O: Deref<Target = Arc<Shared<T>>>> Leads<T> for O {}

/// An `Arc`, as something that leads to one.
pub struct Held<T: Value>(pub(crate) Arc<Shared<T>>);

impl<T: Value> Deref for Held<T> {
    type Target = Arc<Shared<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A write guard: plain access to a marked value. What the value was is remembered by the transaction, with the first
/// guard of it; what differs is found when it ends. So any number of writes cost one comparison, and ship one change.
pub struct Write<T: Value, O: Leads<T>> {
    /// While this lives the object is locked exclusively, and that by this.
    object: O,
    /// Whether it is part of a store.
    tracked: bool,
    /// Whether the transaction keeps the lock.
    keeps: bool,
    /// As the guard of a lock is: whose transaction it is part of is known by the thread.
    of: PhantomData<(fn() -> T, GuardNoSend)>,
}

impl<T: Value, O: Leads<T>> Write<T, O> {
    #[inline]
    pub(crate) fn begin(object: O) -> Result<Self, WriteError> {
        let shared: &Arc<Shared<T>> = &object;
        // In this order: what the second says is of this transaction if the first holds.
        if is_current(&shared.owner) && shared.hold.is_kept() {
            shared.hold.set_written(true);
            return Ok(Self { object, tracked: true, keeps: true, of: PhantomData });
        }
        Self::begin_to_lock(object)
    }

    fn begin_to_lock(object: O) -> Result<Self, WriteError> {
        let shared: &Arc<Shared<T>> = &object;
        reading::may_write(shared)?;
        let tracked = own(shared)?;
        // Only its owner looks at this, which is this thread from here on.
        if tracked && shared.hold.is_written() {
            return Err(WriteError::GuardAlive);
        }
        let guard = reading::write(shared, |patience| shared.body.try_write_for(patience))?;
        if tracked {
            if !shared.is_remembered() {
                remember(shared, guard.shadow())?;
            }
            shared.hold.set_written(true);
        }
        // It is locked until this one is dropped.
        std::mem::forget(guard);
        let keeps = tracked && shared.store().is_some_and(|store| store.role() == Role::Primary);
        Ok(Self { object, tracked, keeps, of: PhantomData })
    }
}

impl<T: Value, O: Leads<T>> Deref for Write<T, O> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the object is locked exclusively by this, which is borrowed for as long as the reference lives.
        unsafe { &*self.object.body.data_ptr() }
    }
}

impl<T: Value, O: Leads<T>> DerefMut for Write<T, O> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the object is locked exclusively by this, which is borrowed exclusively for as long.
        unsafe { &mut *self.object.body.data_ptr() }
    }
}

impl<T: Value, O: Leads<T>> Drop for Write<T, O> {
    #[inline]
    fn drop(&mut self) {
        let shared: &Arc<Shared<T>> = &self.object;
        if self.tracked {
            if std::thread::panicking() {
                panic_passed();
            }
            // The transaction may have ended before: at a thread's end, which it says.
            if self.keeps && is_current(&shared.owner) {
                shared.hold.0.store(KEPT, Ordering::Relaxed);
                return;
            }
            shared.hold.set_written(false);
        }
        // SAFETY: `begin` has locked it, or found that the transaction had kept the lock, which nobody has since.
        unsafe { shared.body.force_unlock_write() };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::reading::read_arc;
    use crate::store::Store;
    use crate::{Deadlock, commit_async, rollback, transaction};

    fn two() -> [Arc<Shared<u64>>; 2] {
        let store = Store::new();
        let two = ["one", "other"].map(|name| {
            let object = Shared::new(0);
            store.add_root(name, &object);
            object
        });
        store.set_role(Role::Primary);
        two
    }

    fn seen(object: &Arc<Shared<u64>>) -> u64 {
        *read_arc(object).0
    }

    #[test]
    fn a_kept_lock_is_let_go_of_by_reading_and_at_the_end() {
        let [one, other] = two();
        for round in 0..3 {
            for _ in 0..3 {
                *Write::begin(&one).unwrap() += 1;
                *Write::begin(&other).unwrap() += 1;
            }
            assert!(one.hold.is_kept() && other.body.is_locked_exclusive());
            assert_eq!(seen(&one), round * 3 + 3);
            assert!(!one.body.is_locked() && other.hold.is_kept());
            *Write::begin(&one).unwrap() += 10;
            assert!(one.hold.is_kept());
            // What was changed since the last commit is taken back, and locks are let go of by this as well.
            if round == 2 {
                rollback().unwrap();
            } else {
                *Write::begin(&one).unwrap() -= 10;
                drop(commit_async().unwrap());
            }
            assert!(!one.body.is_locked() && !other.body.is_locked() && one.owner.is_free());
        }
        assert_eq!((seen(&one), seen(&other)), (6, 6));
    }

    #[test]
    fn before_the_start_no_lock_is_kept() {
        let store = Store::new();
        let object = Shared::new(0u64);
        store.add_root("one", &object);
        *Write::begin(&object).unwrap() += 1;
        assert!(!object.body.is_locked());
        rollback().unwrap();
    }

    #[test]
    fn others_wait_for_a_kept_lock_until_the_commit() {
        let [one, _] = two();
        *Write::begin(&one).unwrap() += 1;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                *Write::begin(&one).unwrap() += 1;
                drop(commit_async().unwrap());
            });
            let reader = scope.spawn(|| seen(&one));
            *Write::begin(&one).unwrap() += 1;
            drop(commit_async().unwrap());
            writer.join().unwrap();
            assert!(reader.join().unwrap() >= 2, "never what is not committed");
        });
        assert_eq!(seen(&one), 3);
    }

    #[test]
    fn who_reads_an_object_is_told_so_and_does_not_wait_for_itself() {
        let [one, _] = two();
        let reading = read_arc(&one);
        assert_eq!(Write::begin(&one).err(), Some(WriteError::GuardAlive));
        assert_eq!(*read_arc(&one).0, 0, "it may read what it reads");
        drop(reading);
        let writing = Write::begin(&one).unwrap();
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seen(&one)));
        assert!(read.is_err(), "nor for its own write guard");
        drop(writing);
        rollback().unwrap();
    }

    /// Each reads what the other is to write: nobody owns anything that the other waits for.
    #[test]
    fn two_that_write_what_the_other_reads_are_found() {
        let [one, other] = two();
        let both = Barrier::new(2);
        let cross = |reads, writes| {
            let reading = read_arc(reads);
            both.wait();
            let outcome = Write::begin(writes).map(|mut writing| *writing += 1);
            drop(reading);
            rollback().unwrap();
            outcome
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| cross(&one, &other));
            let second = scope.spawn(|| cross(&other, &one));
            let outcomes = [first.join().unwrap(), second.join().unwrap()];
            assert!(outcomes.contains(&Err(Deadlock.into())), "{outcomes:?}");
        });
    }

    /// One has changed what the other wants to read, and wants to write what that one reads: `transaction` brings it to an end.
    #[test]
    fn a_circle_through_a_read_guard_ends_in_a_transaction() {
        let [one, other] = two();
        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *Write::begin(&other).unwrap() += 1;
                both.wait();
                let outcome = Write::begin(&one).map(|mut writing| *writing += 1);
                match outcome {
                    Ok(()) => drop(commit_async().unwrap()),
                    Err(error) => {
                        assert_eq!(error, Deadlock.into());
                        rollback().unwrap();
                    }
                }
            });
            let mut met = false;
            let work = || {
                let reading = read_arc(&one);
                if !std::mem::replace(&mut met, true) {
                    both.wait();
                }
                Ok::<_, ()>(*reading.0 + seen(&other))
            };
            let sum = transaction(work).unwrap();
            assert!(sum == 0 || sum == 2, "{sum}");
        });
    }
}
