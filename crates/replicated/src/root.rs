//! Marked statics, and the guards through which marked values are read and changed.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};
use parking_lot::{RawRwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::object::Shared;
use crate::store::Store;
use crate::transaction::{WriteError, give_up, guard_begins, guard_ends, own, read_at_rest, record};
use crate::value::Value;

/// A marked static: what `#[replicated] static NAME: T = …` becomes.
pub struct Root<T: Value> {
    name: &'static str,
    make: fn() -> T,
    shared: OnceLock<Arc<Shared<T>>>,
}

/// Plain reading of a marked static.
pub type ReadGuard<'a, T> = RwLockReadGuard<'a, T>;
/// Plain reading of what a `Ref` leads to.
pub type RefReadGuard<T> = ArcRwLockReadGuard<RawRwLock, T>;
/// Plain changing of a marked static.
pub type WriteGuard<'a, T> = Write<T, RwLockWriteGuard<'a, T>, &'a Arc<Shared<T>>>;
/// Plain changing of what a `Ref` leads to.
pub type RefWriteGuard<T> = Write<T, ArcRwLockWriteGuard<RawRwLock, T>, Held<T>>;

impl<T: Value> Root<T> {
    /// What the macro writes.
    #[doc(hidden)]
    pub const fn new(name: &'static str, make: fn() -> T) -> Self {
        Self { name, make, shared: OnceLock::new() }
    }

    /// The object; made and made known at its first use.
    pub(crate) fn shared(&self) -> &Arc<Shared<T>> {
        self.shared.get_or_init(|| {
            let shared = Shared::new((self.make)());
            Store::global().add_root(self.name, &shared);
            shared
        })
    }

    /// Makes it known before its first use.
    #[doc(hidden)]
    pub fn register(&self) {
        self.shared();
    }

    /// Reads it as plain data. Waits while another transaction has changed it and not committed.
    pub fn read(&self) -> ReadGuard<'_, T> {
        let shared = self.shared();
        read_at_rest(shared, || shared.body.read())
    }

    /// Changes it as plain data: what differs when the guard is dropped is part of this thread's transaction. The
    /// object is the transaction's own until its end.
    ///
    /// # Panics
    /// Where [`try_write`](Self::try_write) would say why not.
    pub fn write(&self) -> WriteGuard<'_, T> {
        self.try_write().unwrap_or_else(|error| give_up(error))
    }

    /// Like [`write`](Self::write), and says why not.
    pub fn try_write(&self) -> Result<WriteGuard<'_, T>, WriteError> {
        Write::begin(self.shared(), |shared| shared.body.write())
    }
}

impl<T: Value> std::fmt::Debug for Root<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "replicated {}", self.name)
    }
}

/// A marked static, as a program lists all of its own.
#[doc(hidden)]
pub struct RootEntry {
    /// Makes it known.
    pub register: fn(),
}

inventory::collect!(RootEntry);

/// Makes all marked statics of the program known.
pub(crate) fn register_all() {
    for entry in inventory::iter::<RootEntry> {
        (entry.register)();
    }
}

/// A write guard: plain access to a marked value.
pub struct Write<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> {
    guard: G,
    shadow: T::Shadow,
    object: O,
}

/// An `Arc`, as something that leads to one.
pub struct Held<T: Value>(pub(crate) Arc<Shared<T>>);

impl<T: Value> Deref for Held<T> {
    type Target = Arc<Shared<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> Write<T, G, O> {
    pub(crate) fn begin(object: O, lock: impl FnOnce(&O) -> G) -> Result<Self, WriteError> {
        let shared: &Arc<Shared<T>> = &object;
        // Only its owner looks at it, which is this thread from here on.
        if own(shared)? {
            if shared.writing.load(Ordering::Relaxed) {
                return Err(WriteError::GuardAlive);
            }
            shared.writing.store(true, Ordering::Relaxed);
        }
        let guard = lock(&object);
        let shared: &Arc<Shared<T>> = &object;
        if shared.id() != 0 {
            guard_begins();
        }
        let shadow = guard.shadow();
        Ok(Self { guard, shadow, object })
    }
}

impl<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> Deref for Write<T, G, O> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> DerefMut for Write<T, G, O> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> Drop for Write<T, G, O> {
    fn drop(&mut self) {
        let shared: &Arc<Shared<T>> = &self.object;
        if self.guard.differs(&self.shadow) {
            record(shared, |diff| {
                if let Some(diff) = diff {
                    self.guard.diff(&self.shadow, diff);
                }
            });
        }
        if shared.id() != 0 {
            shared.writing.store(false, Ordering::Relaxed);
            guard_ends();
        }
    }
}
