//! Collections that log operations: pushing to a list of a million elements ships one element.
//!
//! A collection is an object with an id of its own, owned by the value that it is a field of. Reading it gives a guard
//! of the standard collection under it; changing it needs `&mut`, which only a write guard of its owner gives.

mod counter;
mod deque;
mod list;
mod map;
mod set;
mod text;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{MappedRwLockReadGuard, MappedRwLockWriteGuard, RwLockReadGuard, RwLockWriteGuard};

pub use counter::{Counter, CounterBody};
pub use deque::{Deque, DequeBody};
pub use list::{List, ListBody};
pub use map::{Map, MapBody, OrderedMap, OrderedMapBody};
pub use set::{Set, SetBody};
pub use text::{Bytes, BytesBody, Text, TextBody};

use crate::object::{AnyObject, Body, Shared};
use crate::schema::{Shape, Types};
use crate::transaction::{give_up, keep, own, record};
use crate::value::{Diff, Value};
use crate::wire::{Mode, Reader, WireError, Writer};

/// What a collection holds.
pub trait Content: Body + Default {
    /// The standard collection that readers see.
    type Plain: ?Sized;

    /// For readers.
    fn plain(&self) -> &Self::Plain;
    /// See [`Value::shape`].
    fn shape() -> Shape;
    /// See [`Value::name`].
    fn name() -> String;
    /// See [`Value::describe`].
    fn describe(_types: &mut Types) {}
}

/// A collection, as a field of its owner: [`Map`], [`OrderedMap`], [`List`], [`Deque`], [`Set`], [`Counter`],
/// [`Text`] and [`Bytes`] are names of it.
pub struct Owned<B: Content> {
    shared: Arc<Shared<B>>,
}

/// What readers of a collection hold; nobody changes it meanwhile.
pub type ReadContent<'a, T> = MappedRwLockReadGuard<'a, T>;

impl<B: Content> Owned<B> {
    /// An empty one.
    pub fn new() -> Self {
        Self::of(B::default())
    }

    fn of(body: B) -> Self {
        Self { shared: Shared::new(body) }
    }

    /// The standard collection under it.
    pub fn read(&self) -> ReadContent<'_, B::Plain> {
        RwLockReadGuard::map(self.shared.body.read(), B::plain)
    }

    /// One operation: `change` does it, and writes it and what undoes it.
    fn change<R>(&mut self, change: impl FnOnce(&mut B, Option<&mut Diff<'_>>) -> R) -> R {
        if let Err(error) = own(&self.shared) {
            give_up(error);
        }
        let mut body = self.shared.body.write();
        record(&self.shared, |diff| change(&mut body, diff))
    }

    /// A guard of one element, which logs what changes of it; `key` writes the operation that it is part of.
    fn slot<V: Value, K: Fn(&mut Writer)>(
        &mut self,
        find: impl FnOnce(&mut B) -> Option<&mut V>,
        key: K,
    ) -> Option<Slot<'_, B, V, K>> {
        if let Err(error) = own(&self.shared) {
            give_up(error);
        }
        let value = RwLockWriteGuard::try_map(self.shared.body.write(), find).ok()?;
        let shadow = value.shadow();
        Some(Slot { value, shadow, shared: &self.shared, key })
    }
}

impl<B: Content> Default for Owned<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Content> fmt::Debug for Owned<B>
where
    B::Plain: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

impl<B: Content> Drop for Owned<B> {
    fn drop(&mut self) {
        if self.shared.id() != 0 {
            keep(Arc::clone(&self.shared) as _);
        }
    }
}

impl<B: Content> Value for Owned<B> {
    type Shadow = u64;

    fn shape() -> Shape {
        Shape::Owned(Box::new(B::shape()))
    }

    fn name() -> String {
        B::name()
    }

    fn describe(types: &mut Types) {
        B::describe(types);
    }

    fn encode(&self, to: &mut Writer) {
        if let Some(store) = to.store()
            && (self.shared.id() == 0 || to.mode() == Mode::Renew)
        {
            let (store, id) = (Arc::clone(store), store.next_id());
            self.shared.attach(&store, id);
            to.created.push(Arc::clone(&self.shared) as Arc<dyn AnyObject>);
        }
        match to.mode() {
            Mode::Ids => to.number(self.shared.id() << 1),
            Mode::Content | Mode::Renew => {
                to.number(self.shared.id() << 1 | 1);
                self.shared.body.read().encode_content(to);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let head = from.number()?;
        let id = head >> 1;
        if id == 0 {
            return Err(WireError::UnknownObject(id));
        }
        let known = from.store().object_as::<B>(id);
        if head & 1 == 0 {
            return Ok(Self { shared: known? });
        }
        let shared = match known {
            Ok(shared) => shared,
            Err(WireError::UnknownObject(_)) => {
                let shared = Shared::new(B::default());
                shared.attach(from.store(), id);
                shared
            }
            Err(error) => return Err(error),
        };
        let owned = Self { shared };
        owned.shared.body.write().decode_content(from)?;
        Ok(owned)
    }

    fn shadow(&self) -> u64 {
        self.shared.id()
    }

    fn encode_shadow(shadow: &u64, to: &mut Writer) {
        to.number(shadow << 1);
    }

    fn differs(&self, shadow: &u64) -> bool {
        *shadow == 0 || self.shared.id() != *shadow
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        self.shared.body.read().trace(visit);
    }
}

/// Plain access to one element of a collection; when it is dropped, what changed is logged.
pub struct Slot<'a, B: Content, V: Value, K: Fn(&mut Writer)> {
    value: MappedRwLockWriteGuard<'a, V>,
    shadow: V::Shadow,
    shared: &'a Arc<Shared<B>>,
    key: K,
}

impl<B: Content, V: Value, K: Fn(&mut Writer)> Deref for Slot<'_, B, V, K> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<B: Content, V: Value, K: Fn(&mut Writer)> DerefMut for Slot<'_, B, V, K> {
    fn deref_mut(&mut self) -> &mut V {
        &mut self.value
    }
}

impl<B: Content, V: Value, K: Fn(&mut Writer)> Drop for Slot<'_, B, V, K> {
    fn drop(&mut self) {
        if self.value.differs(&self.shadow) {
            record(self.shared, |diff| {
                if let Some(diff) = diff {
                    (self.key)(diff.redo);
                    (self.key)(diff.undo);
                    self.value.diff(&self.shadow, diff);
                }
            });
        }
    }
}

/// The number in front of an operation.
mod op {
    pub const INSERT: u8 = 0;
    pub const REMOVE: u8 = 1;
    pub const PATCH: u8 = 2;
    pub const REPLACE: u8 = 3;
    pub const CLEAR: u8 = 4;
    pub const PUSH: u8 = 5;
    pub const POP: u8 = 6;
    pub const PUSH_FRONT: u8 = 7;
    pub const POP_FRONT: u8 = 8;
    pub const TRUNCATE: u8 = 9;
    pub const EXTEND: u8 = 10;
}

/// Empties a collection, and remembers all of it for being undone.
fn clear<B: Content>(body: &mut B, diff: Option<&mut Diff<'_>>) -> B {
    if let Some(diff) = diff {
        diff.redo.byte(op::CLEAR);
        diff.undo.byte(op::REPLACE);
        body.encode_content(diff.undo);
    }
    std::mem::take(body)
}
