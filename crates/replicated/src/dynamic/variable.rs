//! A static that is one struct.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RawRwLock;
use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};

use super::{NotDeclared, Record, RecordType, Writing, begin, declare};
use crate::object::Shared;
use crate::reading::{Reading, read_arc, write_arc};
use crate::schema::Shape;
use crate::store::Store;
use crate::transaction::{Remembered, Tx, WriteError, remember_as};

/// A replicated static that is one struct; all zero until it is written to.
#[derive(Clone)]
pub struct Variable {
    shared: Arc<Shared<Record>>,
}

impl Variable {
    /// Declares it, before the program starts to take part.
    pub fn declare(name: &str, of: &Arc<RecordType>) -> Result<Self, NotDeclared> {
        Self::declare_in(Store::global(), name, of)
    }

    pub(crate) fn declare_in(
        store: &Arc<Store>,
        name: &str,
        of: &Arc<RecordType>,
    ) -> Result<Self, NotDeclared> {
        let shared = Shared::new(Record::new(of));
        let named = of.name().to_owned();
        declare(store, name, &shared, named.clone(), Shape::Named(named), &[of])?;
        Ok(Self { shared })
    }

    /// Waits while another transaction has changed it and not committed.
    pub fn read(&self) -> VariableRead {
        let (guard, reading) = read_arc(&self.shared);
        VariableRead { guard, _reading: reading }
    }

    /// Plain access; what differs when this thread's transaction ends is part of it.
    pub fn write(&self) -> Result<VariableWrite, WriteError> {
        let tracked = begin(&self.shared)?;
        let guard = write_arc(&self.shared)?;
        if tracked && !self.shared.remembered.load(Ordering::Relaxed) {
            let before = Before { object: Arc::clone(&self.shared), shadow: guard.shadow() };
            remember_as(&self.shared, Box::new(before))?;
        }
        Ok(VariableWrite { guard, _writing: Writing::new(&self.shared, tracked) })
    }
}

/// What the struct was when the transaction began to write to it.
struct Before {
    object: Arc<Shared<Record>>,
    shadow: Box<[u8]>,
}

impl Remembered for Before {
    fn differs(&self) -> bool {
        // Nobody else may write: only a guard of this very transaction is in the way.
        self.object.body.try_read_recursive().is_none_or(|value| value.differs(&self.shadow))
    }

    fn log(&self, tx: &mut Tx) -> bool {
        let Some(value) = self.object.body.try_read_recursive() else { return false };
        self.object.remembered.store(false, Ordering::Relaxed);
        if value.differs(&self.shadow) {
            tx.change(self.object.id(), |diff| value.diff(&self.shadow, diff));
        }
        true
    }
}

/// What readers of a [`Variable`] hold.
pub struct VariableRead {
    guard: ArcRwLockReadGuard<RawRwLock, Record>,
    _reading: Reading,
}

impl Deref for VariableRead {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.guard
    }
}

/// What a writer of a [`Variable`] holds.
pub struct VariableWrite {
    guard: ArcRwLockWriteGuard<RawRwLock, Record>,
    _writing: Writing<Record>,
}

impl VariableWrite {
    /// The struct.
    pub fn record(&mut self) -> &mut Record {
        &mut self.guard
    }
}
