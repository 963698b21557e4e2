//! Marked statics, and the guards through which marked values are read and changed.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use parking_lot::lock_api::ArcRwLockReadGuard;
use parking_lot::{RawRwLock, RwLockReadGuard};

use crate::object::Shared;
use crate::reading::{Reading, read};
use crate::store::Store;
use crate::transaction::{WriteError, give_up};
use crate::value::Value;
use crate::write::{Held, Write};

/// A marked static: what `#[replicated] static NAME: T = …` becomes.
///
/// ```
/// use outlive_replicated::{commit, replicated};
///
/// #[replicated]
/// static LIMITS: (u64, u64) = (1, 10);
///
/// LIMITS.write().1 = 20;
/// commit()?;
/// assert_eq!(*LIMITS.read(), (1, 20));
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub struct Root<T: Value> {
    name: &'static str,
    make: fn() -> T,
    shared: OnceLock<Arc<Shared<T>>>,
}

/// Plain reading of a marked static.
pub type ReadGuard<'a, T> = Read<RwLockReadGuard<'a, T>>;
/// Plain reading of what a `Ref` leads to.
pub type RefReadGuard<T> = Read<ArcRwLockReadGuard<RawRwLock, T>>;
/// Plain changing of a marked static.
pub type WriteGuard<'a, T> = Write<T, &'a Arc<Shared<T>>>;
/// Plain changing of what a `Ref` leads to.
pub type RefWriteGuard<T> = Write<T, Held<T>>;

/// A read guard: plain reading of a marked value, which nobody changes meanwhile.
pub struct Read<G> {
    guard: G,
    _reading: Reading,
}

impl<G> Read<G> {
    pub(crate) fn new((guard, reading): (G, Reading)) -> Self {
        Self { guard, _reading: reading }
    }
}

impl<G: Deref> Deref for Read<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.guard
    }
}

impl<G: fmt::Debug> fmt::Debug for Read<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

impl<G: fmt::Display> fmt::Display for Read<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

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
        let body = &self.shared().body;
        Read::new(read(
            self.shared(),
            |patience| body.try_read_for(patience),
            |patience| body.try_read_recursive_for(patience),
        ))
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
        Write::begin(self.shared())
    }
}

impl<T: Value> fmt::Debug for Root<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
