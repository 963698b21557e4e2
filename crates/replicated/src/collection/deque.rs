//! A queue with two ends.

use std::collections::VecDeque;
use std::ops::DerefMut;

use parking_lot::RwLockReadGuard;

use super::{Content, Owned, ReadContent, clear, op};
use crate::object::Body;
use crate::schema::{Shape, Types};
use crate::value::Value;
use crate::wire::{Reader, WireError, Writer};

/// A queue with two ends.
///
/// ```
/// use outlive_replicated::{commit, replicated, Deque};
///
/// #[replicated]
/// static WAITING: Deque<u32> = Deque::new();
///
/// WAITING.write().push_back(1);
/// WAITING.write().push_back(2);
/// assert_eq!(WAITING.write().pop_front(), Some(1));
/// commit()?;
/// assert_eq!(WAITING.read().len(), 1);
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub type Deque<T> = Owned<DequeBody<T>>;

/// What a [`Deque`] holds.
pub struct DequeBody<T>(VecDeque<T>);

impl<T> Default for DequeBody<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

const IMPOSSIBLE: WireError = WireError::Impossible("a deque");

impl<T: Value> Body for DequeBody<T> {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match from.byte()? {
            op::PUSH => self.0.push_back(T::decode(from)?),
            op::POP => drop(self.0.pop_back().ok_or(IMPOSSIBLE)?),
            op::PUSH_FRONT => self.0.push_front(T::decode(from)?),
            op::POP_FRONT => drop(self.0.pop_front().ok_or(IMPOSSIBLE)?),
            op::PATCH => {
                let place = usize::try_from(from.number()?).map_err(|_| IMPOSSIBLE)?;
                self.0.get_mut(place).ok_or(IMPOSSIBLE)?.patch(from)?;
            }
            op::CLEAR => self.0.clear(),
            op::REPLACE => self.decode_content(from)?,
            _ => return Err(IMPOSSIBLE),
        }
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.number(self.0.len() as u64);
        for value in &self.0 {
            value.encode(to);
        }
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.0 = Vec::decode(from)?.into();
        Ok(())
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        for value in &self.0 {
            Value::trace(value, visit);
        }
    }
}

impl<T: Value> Content for DequeBody<T> {
    type Plain = VecDeque<T>;

    fn plain(&self) -> &VecDeque<T> {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Sequence(Box::new(T::shape()))
    }

    fn name() -> String {
        format!("Deque<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }
}

impl<T: Value> Deque<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// An element, counted from the front, to read.
    pub fn get(&self, place: usize) -> Option<ReadContent<'_, T>> {
        RwLockReadGuard::try_map(self.shared.body.read(), |body| body.0.get(place)).ok()
    }

    /// An element, counted from the front, to change. Ships the fields that changed.
    pub fn get_mut(&mut self, place: usize) -> Option<impl DerefMut<Target = T> + '_> {
        self.slot(
            |body| body.0.get_mut(place),
            move |to| {
                to.byte(op::PATCH);
                to.number(place as u64);
            },
        )
    }

    /// Adds an element at the back.
    pub fn push_back(&mut self, value: T) {
        self.push(value, op::PUSH, op::POP, VecDeque::push_back);
    }

    /// Adds an element at the front.
    pub fn push_front(&mut self, value: T) {
        self.push(value, op::PUSH_FRONT, op::POP_FRONT, VecDeque::push_front);
    }

    /// Takes the element at the back out.
    pub fn pop_back(&mut self) -> Option<T> {
        self.pop(op::POP, op::PUSH, VecDeque::pop_back)
    }

    /// Takes the element at the front out.
    pub fn pop_front(&mut self) -> Option<T> {
        self.pop(op::POP_FRONT, op::PUSH_FRONT, VecDeque::pop_front)
    }

    fn push(&mut self, value: T, redo: u8, undo: u8, push: fn(&mut VecDeque<T>, T)) {
        self.change(|body, diff| {
            if let Some(diff) = diff {
                diff.redo.byte(redo);
                value.encode(diff.redo);
                diff.undo.byte(undo);
            }
            push(&mut body.0, value);
        });
    }

    fn pop(&mut self, redo: u8, undo: u8, pop: fn(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
        self.change(|body, diff| {
            let value = pop(&mut body.0)?;
            if let Some(diff) = diff {
                diff.redo.byte(redo);
                diff.undo.byte(undo);
                value.encode(diff.undo);
            }
            Some(value)
        })
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        let old = self.change(clear);
        drop(old);
    }
}

impl<T: Value> FromIterator<T> for Deque<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::of(DequeBody(values.into_iter().collect()))
    }
}
