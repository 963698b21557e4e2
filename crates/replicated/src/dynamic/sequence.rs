//! A static that is a row of elements, which grows and shrinks at both ends.

use std::collections::VecDeque;
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

/// What a [`Sequence`] holds.
pub(crate) struct SequenceBody {
    of: Of,
    elements: VecDeque<Element>,
}

const WHAT: WireError = WireError::Impossible("a list");

impl SequenceBody {
    fn at(&mut self, place: u64) -> Result<&mut Element, WireError> {
        usize::try_from(place).ok().and_then(|place| self.elements.get_mut(place)).ok_or(WHAT)
    }
}

impl Body for SequenceBody {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match from.byte()? {
            op::PUT => {
                let place = from.number()?;
                let element = self.of.decode(from)?;
                *self.at(place)? = element;
            }
            op::PATCH => {
                let place = from.number()?;
                self.at(place)?.patch(from)?;
            }
            op::PUSH => self.elements.push_back(self.of.decode(from)?),
            op::PUSH_FRONT => self.elements.push_front(self.of.decode(from)?),
            op::POP => drop(self.elements.pop_back().ok_or(WHAT)?),
            op::POP_FRONT => drop(self.elements.pop_front().ok_or(WHAT)?),
            op::CLEAR => self.elements.clear(),
            op::REPLACE => self.decode_content(from)?,
            _ => return Err(WHAT),
        }
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.number(self.elements.len() as u64);
        for element in &self.elements {
            element.encode(to);
        }
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let length = from.length()?;
        self.elements = (0..length).map(|_| self.of.decode(from)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

/// A replicated static that is a row of elements of one kind.
#[derive(Clone)]
pub struct Sequence {
    shared: Arc<Shared<SequenceBody>>,
    of: Of,
}

impl Sequence {
    /// Declares it, before the program starts to take part.
    pub fn declare(name: &str, of: Of) -> Result<Self, NotDeclared> {
        Self::declare_in(Store::global(), name, of)
    }

    pub(crate) fn declare_in(store: &Arc<Store>, name: &str, of: Of) -> Result<Self, NotDeclared> {
        let shared = Shared::new(SequenceBody { of: of.clone(), elements: VecDeque::new() });
        let shape = Shape::Sequence(Box::new(of.shape()));
        let named = format!("sequence of {}", of.name());
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
    pub fn read(&self) -> SequenceRead {
        let (guard, reading) = read_arc(&self.shared);
        SequenceRead { guard, _reading: reading }
    }

    /// Adds an element at the end, or in front. Ships the element.
    pub fn push(&self, element: Element, in_front: bool) -> Result<(), WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        record(&self.shared, |diff| {
            if let Some(diff) = diff {
                diff.redo.byte(if in_front { op::PUSH_FRONT } else { op::PUSH });
                element.encode(diff.redo);
                diff.undo.byte(if in_front { op::POP_FRONT } else { op::POP });
            }
            match in_front {
                true => body.elements.push_front(element),
                false => body.elements.push_back(element),
            }
        });
        Ok(())
    }

    /// Takes the last element out, or the first.
    pub fn pop(&self, in_front: bool) -> Result<Option<Element>, WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        Ok(record(&self.shared, |diff| {
            let element = if in_front { body.elements.pop_front() } else { body.elements.pop_back() }?;
            if let Some(diff) = diff {
                diff.redo.byte(if in_front { op::POP_FRONT } else { op::POP });
                diff.undo.byte(if in_front { op::PUSH_FRONT } else { op::PUSH });
                element.encode(diff.undo);
            }
            Some(element)
        }))
    }

    /// Puts an element in the place of another; `false` if there is no such place.
    pub fn put(&self, place: usize, element: Element) -> Result<bool, WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        Ok(record(&self.shared, |diff| {
            let Some(old) = body.elements.get_mut(place) else { return false };
            if let Some(diff) = diff {
                for (to, element) in [(&mut *diff.redo, &element), (&mut *diff.undo, &*old)] {
                    to.byte(op::PUT);
                    to.number(place as u64);
                    element.encode(to);
                }
            }
            *old = element;
            true
        }))
    }

    /// Takes everything out.
    pub fn clear(&self) -> Result<(), WriteError> {
        begin(&self.shared)?;
        let mut body = write_arc(&self.shared)?;
        record(&self.shared, |diff| {
            if let Some(diff) = diff.filter(|_| !body.elements.is_empty()) {
                diff.redo.byte(op::CLEAR);
                diff.undo.byte(op::REPLACE);
                body.encode_content(diff.undo);
            }
            body.elements.clear();
        });
        Ok(())
    }

    /// Plain access to the struct at a place; what differs when the guard is dropped is part of the transaction. `None` if
    /// there is none, or if the elements are bytes.
    pub fn write(&self, place: usize) -> Result<Option<SequenceWrite>, WriteError> {
        let tracked = begin(&self.shared)?;
        let mut guard = write_arc(&self.shared)?;
        let Some(Element::Record(value)) = guard.elements.get_mut(place) else { return Ok(None) };
        let shadow = value.shadow();
        let writing = Writing::new(&self.shared, tracked);
        Ok(Some(SequenceWrite { guard, writing, place, shadow }))
    }
}

/// What readers of a [`Sequence`] hold.
pub struct SequenceRead {
    guard: ArcRwLockReadGuard<RawRwLock, SequenceBody>,
    _reading: Reading,
}

impl SequenceRead {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.guard.elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.guard.elements.is_empty()
    }

    /// The element at a place.
    pub fn get(&self, place: usize) -> Option<&Element> {
        self.guard.elements.get(place)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Element> {
        self.guard.elements.iter()
    }
}

/// What a writer of one struct in a [`Sequence`] holds.
pub struct SequenceWrite {
    guard: ArcRwLockWriteGuard<RawRwLock, SequenceBody>,
    writing: Writing<SequenceBody>,
    place: usize,
    shadow: Box<[u8]>,
}

impl SequenceWrite {
    /// The struct; always there while this lives.
    pub fn record(&mut self) -> Option<&mut Record> {
        match self.guard.elements.get_mut(self.place) {
            Some(Element::Record(record)) => Some(record),
            _ => None,
        }
    }
}

impl Drop for SequenceWrite {
    fn drop(&mut self) {
        let Some(Element::Record(value)) = self.guard.elements.get(self.place) else { return };
        if value.differs(&self.shadow) {
            record(&self.writing.object, |diff| {
                if let Some(diff) = diff {
                    for to in [&mut *diff.redo, &mut *diff.undo] {
                        to.byte(op::PATCH);
                        to.number(self.place as u64);
                    }
                    value.diff(&self.shadow, diff);
                }
            });
        }
    }
}
