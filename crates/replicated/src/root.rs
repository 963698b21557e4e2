//! Marked statics, and the guards through which marked values are read and changed.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};
use parking_lot::{RawRwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::object::Shared;
use crate::store::Store;
use crate::transaction::{WriteError, give_up, own, panic_passed, read_at_rest, remember};
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

    /// Changes it as plain data: what differs when this thread's transaction ends is part of it. The object is the
    /// transaction's own until then.
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

/// A write guard: plain access to a marked value. What the value was is remembered by the transaction, with the first
/// guard of it; what differs is found when it ends. So any number of writes cost one comparison, and ship one change.
pub struct Write<T: Value, G: DerefMut<Target = T>, O: Deref<Target = Arc<Shared<T>>>> {
    guard: G,
    /// Whether it is part of a store.
    tracked: bool,
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
    #[inline]
    pub(crate) fn begin(object: O, lock: impl FnOnce(&O) -> G) -> Result<Self, WriteError> {
        let shared: &Arc<Shared<T>> = &object;
        let tracked = own(shared)?;
        // Only its owner looks at these two, which is this thread from here on.
        if tracked && shared.writing.load(Ordering::Relaxed) {
            return Err(WriteError::GuardAlive);
        }
        let guard = lock(&object);
        let shared: &Arc<Shared<T>> = &object;
        if tracked {
            if !shared.remembered.load(Ordering::Relaxed) {
                remember(shared, guard.shadow())?;
            }
            shared.writing.store(true, Ordering::Relaxed);
        }
        Ok(Self { guard, tracked, object })
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
    #[inline]
    fn drop(&mut self) {
        if self.tracked {
            self.object.writing.store(false, Ordering::Relaxed);
            if std::thread::panicking() {
                panic_passed();
            }
        }
    }
}
