//! A vector.

use std::ops::DerefMut;

use parking_lot::RwLockReadGuard;

use super::{Content, Owned, ReadContent, clear, op};
use crate::object::Body;
use crate::schema::{Shape, Types};
use crate::value::Value;
use crate::wire::{Reader, WireError, Writer};

/// A vector.
///
/// ```
/// use outlive_replicated::{commit, replicated, List};
///
/// #[replicated]
/// static LINES: List<String> = List::new();
///
/// LINES.write().push("one".into());
/// LINES.write().push("two".into());
/// LINES.write().get_mut(0).ok_or("none")?.push('!');
/// commit()?;
/// assert_eq!(*LINES.read().read(), ["one!", "two"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type List<T> = Owned<ListBody<T>>;

/// What a [`List`] holds.
pub struct ListBody<T>(Vec<T>);

impl<T> Default for ListBody<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

const IMPOSSIBLE: WireError = WireError::Impossible("a list");

fn place(from: &mut Reader<'_>) -> Result<usize, WireError> {
    usize::try_from(from.number()?).map_err(|_| IMPOSSIBLE)
}

impl<T: Value> Body for ListBody<T> {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match from.byte()? {
            op::PUSH => self.0.push(T::decode(from)?),
            op::POP => drop(self.0.pop().ok_or(IMPOSSIBLE)?),
            op::INSERT => {
                let place = place(from)?;
                let value = T::decode(from)?;
                if place > self.0.len() {
                    return Err(IMPOSSIBLE);
                }
                self.0.insert(place, value);
            }
            op::REMOVE => {
                let place = place(from)?;
                if place >= self.0.len() {
                    return Err(IMPOSSIBLE);
                }
                self.0.remove(place);
            }
            op::PATCH => {
                let place = place(from)?;
                self.0.get_mut(place).ok_or(IMPOSSIBLE)?.patch(from)?;
            }
            op::TRUNCATE => {
                let length = place(from)?;
                self.0.truncate(length);
            }
            op::EXTEND => {
                for _ in 0..from.length()? {
                    self.0.push(T::decode(from)?);
                }
            }
            op::CLEAR => self.0.clear(),
            op::REPLACE => self.decode_content(from)?,
            _ => return Err(IMPOSSIBLE),
        }
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        self.0.encode(to);
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.0 = Vec::decode(from)?;
        Ok(())
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        Value::trace(&self.0, visit);
    }
}

impl<T: Value> Content for ListBody<T> {
    type Plain = [T];

    fn plain(&self) -> &[T] {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Sequence(Box::new(T::shape()))
    }

    fn name() -> String {
        format!("List<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }
}

impl<T: Value> List<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// An element, to read.
    pub fn get(&self, place: usize) -> Option<ReadContent<'_, T>> {
        RwLockReadGuard::try_map(self.shared.body.read(), |body| body.0.get(place)).ok()
    }

    /// An element, to change. Ships the fields that changed.
    pub fn get_mut(&mut self, place: usize) -> Option<impl DerefMut<Target = T> + '_> {
        self.slot(
            |body| body.0.get_mut(place),
            move |to| {
                to.byte(op::PATCH);
                to.number(place as u64);
            },
        )
    }

    /// Adds an element at the end. Ships the element.
    pub fn push(&mut self, value: T) {
        self.change(|body, diff| {
            if let Some(diff) = diff {
                diff.redo.byte(op::PUSH);
                value.encode(diff.redo);
                diff.undo.byte(op::POP);
            }
            body.0.push(value);
        });
    }

    /// Takes the last element out.
    pub fn pop(&mut self) -> Option<T> {
        self.change(|body, diff| {
            let value = body.0.pop()?;
            if let Some(diff) = diff {
                diff.redo.byte(op::POP);
                diff.undo.byte(op::PUSH);
                value.encode(diff.undo);
            }
            Some(value)
        })
    }

    /// Puts an element at a place, those behind it move back. Returns it if there is no such place.
    pub fn insert(&mut self, place: usize, value: T) -> Result<(), T> {
        self.change(|body, diff| {
            if place > body.0.len() {
                return Err(value);
            }
            if let Some(diff) = diff {
                diff.redo.byte(op::INSERT);
                diff.redo.number(place as u64);
                value.encode(diff.redo);
                diff.undo.byte(op::REMOVE);
                diff.undo.number(place as u64);
            }
            body.0.insert(place, value);
            Ok(())
        })
    }

    /// Takes an element out, those behind it move up.
    pub fn remove(&mut self, place: usize) -> Option<T> {
        self.change(|body, diff| {
            if place >= body.0.len() {
                return None;
            }
            let value = body.0.remove(place);
            if let Some(diff) = diff {
                diff.redo.byte(op::REMOVE);
                diff.redo.number(place as u64);
                diff.undo.byte(op::INSERT);
                diff.undo.number(place as u64);
                value.encode(diff.undo);
            }
            Some(value)
        })
    }

    /// Takes all elements out from this place on.
    pub fn truncate(&mut self, length: usize) {
        let gone = self.change(|body, diff| {
            if length >= body.0.len() {
                return Vec::new();
            }
            let gone = body.0.split_off(length);
            if let Some(diff) = diff {
                diff.redo.byte(op::TRUNCATE);
                diff.redo.number(length as u64);
                diff.undo.byte(op::EXTEND);
                gone.encode(diff.undo);
            }
            gone
        });
        drop(gone);
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        let old = self.change(clear);
        drop(old);
    }
}

impl<T: Value> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        for value in values {
            self.push(value);
        }
    }
}

impl<T: Value> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::of(ListBody(values.into_iter().collect()))
    }
}
