//! A set by hash.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;

use super::{Content, Owned, clear, op};
use crate::object::Body;
use crate::schema::{Shape, Types};
use crate::value::Value;
use crate::wire::{Reader, WireError, Writer};

/// A set by hash.
///
/// ```
/// use outlive_replicated::{commit, replicated, Set};
///
/// #[replicated]
/// static SEEN: Set<String> = Set::new();
///
/// assert!(SEEN.write().insert("x".into()));
/// assert!(!SEEN.write().insert("x".into()));
/// commit()?;
/// assert!(SEEN.read().contains("x"));
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub type Set<T> = Owned<SetBody<T>>;

/// What a [`Set`] holds.
pub struct SetBody<T>(HashSet<T>);

impl<T> Default for SetBody<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

const IMPOSSIBLE: WireError = WireError::Impossible("a set");

impl<T: Value + Hash + Eq> Body for SetBody<T> {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match from.byte()? {
            op::INSERT => {
                if !self.0.insert(T::decode(from)?) {
                    return Err(IMPOSSIBLE);
                }
            }
            op::REMOVE => {
                if !self.0.remove(&T::decode(from)?) {
                    return Err(IMPOSSIBLE);
                }
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
        self.0 = Vec::decode(from)?.into_iter().collect();
        Ok(())
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        for value in &self.0 {
            Value::trace(value, visit);
        }
    }
}

impl<T: Value + Hash + Eq> Content for SetBody<T> {
    type Plain = HashSet<T>;

    fn plain(&self) -> &HashSet<T> {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Sequence(Box::new(T::shape()))
    }

    fn name() -> String {
        format!("Set<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }
}

impl<T: Value + Hash + Eq> Set<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Whether it has this element.
    pub fn contains<Q: Hash + Eq + ?Sized>(&self, value: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.read().contains(value)
    }

    /// Adds an element; `false` if it was there.
    pub fn insert(&mut self, value: T) -> bool {
        self.change(|body, diff| {
            if body.0.contains(&value) {
                return false;
            }
            if let Some(diff) = diff {
                diff.redo.byte(op::INSERT);
                value.encode(diff.redo);
                diff.undo.byte(op::REMOVE);
                value.encode(diff.undo);
            }
            body.0.insert(value)
        })
    }

    /// Takes an element out; `false` if it was not there.
    pub fn remove(&mut self, value: &T) -> bool {
        let removed = self.change(|body, diff| {
            let removed = body.0.take(value)?;
            if let Some(diff) = diff {
                diff.redo.byte(op::REMOVE);
                removed.encode(diff.redo);
                diff.undo.byte(op::INSERT);
                removed.encode(diff.undo);
            }
            Some(removed)
        });
        removed.is_some()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        let old = self.change(clear);
        drop(old);
    }
}

impl<T: Value + Hash + Eq> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self::of(SetBody(values.into_iter().collect()))
    }
}
