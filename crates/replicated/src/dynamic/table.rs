//! A static that leads from keys to elements.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RawRwLock;
use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};

use super::{Element, NotDeclared, Of, Record, Writing, begin, declare, op};
use crate::object::{Body, Shared};
use crate::reading::{Reading, read_arc, write_arc};
use crate::schema::Shape;
use crate::store::Store;
use crate::transaction::{WriteError, record};
use crate::wire::{Reader, WireError, Writer};

/// What a [`Table`] holds.
pub(crate) struct TableBody {
    of: Of,
    entries: BTreeMap<Box<[u8]>, Element>,
}

const WHAT: WireError = WireError::Impossible("a map");

impl Body for TableBody {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match from.byte()? {
            op::PUT => {
                let key = from.sized()?;
                let element = self.of.decode(from)?;
                self.entries.insert(key.into(), element);
            }
            op::REMOVE => drop(self.entries.remove(from.sized()?).ok_or(WHAT)?),
            op::PATCH => {
                let key = from.sized()?;
                self.entries.get_mut(key).ok_or(WHAT)?.patch(from)?;
            }
            op::CLEAR => self.entries.clear(),
            op::REPLACE => self.decode_content(from)?,
            _ => return Err(WHAT),
        }
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.number(self.entries.len() as u64);
        for (key, element) in &self.entries {
            to.sized(key);
            element.encode(to);
        }
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let mut entries = BTreeMap::new();
        for _ in 0..from.length()? {
            let key = from.sized()?;
            entries.insert(key.into(), self.of.decode(from)?);
        }
        self.entries = entries;
        Ok(())
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

/// A replicated static that leads from keys, which are bytes, to elements of one kind; in the order of the keys.
#[derive(Clone)]
pub struct Table {
    shared: Arc<Shared<TableBody>>,
    of: Of,
}

impl Table {
    /// Declares it, before the program starts to take part.
    pub fn declare(name: &str, of: Of) -> Result<Self, NotDeclared> {
        Self::declare_in(Store::global(), name, of)
    }

    pub(crate) fn declare_in(store: &Arc<Store>, name: &str, of: Of) -> Result<Self, NotDeclared> {
        let shared = Shared::new(TableBody { of: of.clone(), entries: BTreeMap::new() });
        let shape = Shape::Sequence(Box::new(Shape::Tuple(vec![Shape::Sized, of.shape()])));
        let named = format!("table of {}", of.name());
        let types: Vec<_> = match &of {
            Of::Bytes => Vec::new(),
            Of::Record(of) => vec![of],
        };
        declare(store, name, &shared, named, shape, &types)?;
        Ok(Self { shared, of })
    }

    /// What its elements are.
    pub fn of(&self) -> &Of {
        &self.of
    }

    /// Waits while another transaction has changed it and not committed.
    pub fn read(&self) -> TableRead {
        let (guard, reading) = read_arc(&self.shared);
        TableRead { guard, _reading: reading }
    }

    /// Puts an element under a key. Ships key and element, or the fields that changed if there was one.
    pub fn put(&self, key: &[u8], element: Element) -> Result<(), WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        record(&self.shared, |diff| {
            let Some(diff) = diff else { return drop(body.entries.insert(key.into(), element)) };
            if let (Some(Element::Record(old)), Element::Record(new)) = (body.entries.get_mut(key), &element)
            {
                let shadow = old.shadow();
                old.set(new.bytes());
                if old.differs(&shadow) {
                    for to in [&mut *diff.redo, &mut *diff.undo] {
                        to.byte(op::PATCH);
                        to.sized(key);
                    }
                    old.diff(&shadow, diff);
                }
                return;
            }
            diff.redo.byte(op::PUT);
            diff.redo.sized(key);
            element.encode(diff.redo);
            let old = body.entries.insert(key.into(), element);
            diff.undo.byte(if old.is_some() { op::PUT } else { op::REMOVE });
            diff.undo.sized(key);
            if let Some(old) = old {
                old.encode(diff.undo);
            }
        });
        Ok(())
    }

    /// Takes the element of a key out. Ships the key.
    pub fn remove(&self, key: &[u8]) -> Result<Option<Element>, WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        Ok(record(&self.shared, |diff| {
            let old = body.entries.remove(key)?;
            if let Some(diff) = diff {
                diff.redo.byte(op::REMOVE);
                diff.redo.sized(key);
                diff.undo.byte(op::PUT);
                diff.undo.sized(key);
                old.encode(diff.undo);
            }
            Some(old)
        }))
    }

    /// Takes everything out.
    pub fn clear(&self) -> Result<(), WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        record(&self.shared, |diff| {
            if let Some(diff) = diff.filter(|_| !body.entries.is_empty()) {
                diff.redo.byte(op::CLEAR);
                diff.undo.byte(op::REPLACE);
                body.encode_content(diff.undo);
            }
            body.entries.clear();
        });
        Ok(())
    }

    /// Plain access to the struct of a key; what differs when the guard is dropped is part of the transaction. `None` if
    /// there is none, or if the elements are bytes.
    pub fn write(&self, key: &[u8]) -> Result<Option<TableWrite>, WriteError> {
        let tracked = begin(&self.shared)?;
        let mut guard = write_arc(&self.shared)?;
        let Some(Element::Record(value)) = guard.entries.get_mut(key) else { return Ok(None) };
        let shadow = value.shadow();
        let writing = Writing::new(&self.shared, tracked);
        Ok(Some(TableWrite { guard, writing, key: key.into(), shadow }))
    }
}

/// What readers of a [`Table`] hold.
pub struct TableRead {
    guard: ArcRwLockReadGuard<RawRwLock, TableBody>,
    _reading: Reading,
}

impl TableRead {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.guard.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.guard.entries.is_empty()
    }

    /// The element of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Element> {
        self.guard.entries.get(key)
    }

    /// All elements in the order of their keys, from a key on.
    pub fn from<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a Element)> {
        let range = (Bound::Included(key), Bound::Unbounded);
        self.guard.entries.range::<[u8], _>(range).map(|(key, element)| (&**key, element))
    }
}

/// What a writer of one struct in a [`Table`] holds.
pub struct TableWrite {
    guard: ArcRwLockWriteGuard<RawRwLock, TableBody>,
    writing: Writing<TableBody>,
    key: Box<[u8]>,
    shadow: Box<[u8]>,
}

impl TableWrite {
    /// The struct; always there while this lives.
    pub fn record(&mut self) -> Option<&mut Record> {
        match self.guard.entries.get_mut(&self.key) {
            Some(Element::Record(record)) => Some(record),
            _ => None,
        }
    }
}

impl Drop for TableWrite {
    fn drop(&mut self) {
        let Some(Element::Record(value)) = self.guard.entries.get(&self.key) else { return };
        if value.differs(&self.shadow) {
            record(&self.writing.object, |diff| {
                if let Some(diff) = diff {
                    for to in [&mut *diff.redo, &mut *diff.undo] {
                        to.byte(op::PATCH);
                        to.sized(&self.key);
                    }
                    value.diff(&self.shadow, diff);
                }
            });
        }
    }
}
