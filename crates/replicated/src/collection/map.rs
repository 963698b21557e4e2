//! Maps: by hash, and in order.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::ops::DerefMut;

use parking_lot::RwLockReadGuard;

use super::{Content, Owned, ReadContent, clear, op};
use crate::object::Body;
use crate::schema::{Shape, Types};
use crate::value::Value;
use crate::wire::{Reader, WireError, Writer};

macro_rules! map {
    ($(#[$doc:meta])* $map:ident, $(#[$body_doc:meta])* $body:ident, $plain:ident, $name:literal,
     [$($bound:ident)*], $with_capacity:expr) => {
        $(#[$doc])*
        pub type $map<K, V> = Owned<$body<K, V>>;

        $(#[$body_doc])*
        pub struct $body<K, V>($plain<K, V>);

        impl<K, V> Default for $body<K, V> {
            fn default() -> Self {
                Self($plain::default())
            }
        }

        impl<K: Value + Clone $(+ $bound)*, V: Value> Body for $body<K, V> {
            fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
                match from.byte()? {
                    op::INSERT => {
                        let key = K::decode(from)?;
                        self.0.insert(key, V::decode(from)?);
                    }
                    op::REMOVE => {
                        let key = K::decode(from)?;
                        self.0.remove(&key).ok_or(WireError::Impossible("a map"))?;
                    }
                    op::PATCH => {
                        let key = K::decode(from)?;
                        self.0.get_mut(&key).ok_or(WireError::Impossible("a map"))?.patch(from)?;
                    }
                    op::CLEAR => self.0.clear(),
                    op::REPLACE => self.decode_content(from)?,
                    _ => return Err(WireError::Impossible("a map")),
                }
                Ok(())
            }

            fn encode_content(&self, to: &mut Writer) {
                to.number(self.0.len() as u64);
                for (key, value) in &self.0 {
                    key.encode(to);
                    value.encode(to);
                }
            }

            fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
                let length = from.length()?;
                let mut entries: $plain<K, V> = $with_capacity(length.min(1 << 16));
                for _ in 0..length {
                    let key = K::decode(from)?;
                    entries.insert(key, V::decode(from)?);
                }
                self.0 = entries;
                Ok(())
            }

            fn trace(&self, visit: &mut dyn FnMut(u64)) {
                for (key, value) in &self.0 {
                    Value::trace(key, visit);
                    Value::trace(value, visit);
                }
            }
        }

        impl<K: Value + Clone $(+ $bound)*, V: Value> Content for $body<K, V> {
            type Plain = $plain<K, V>;

            fn plain(&self) -> &$plain<K, V> {
                &self.0
            }

            fn shape() -> Shape {
                Shape::Sequence(Box::new(Shape::Tuple(vec![K::shape(), V::shape()])))
            }

            fn name() -> String {
                format!(concat!($name, "<{}, {}>"), K::name(), V::name())
            }

            fn describe(types: &mut Types) {
                K::describe(types);
                V::describe(types);
            }
        }

        impl<K: Value + Clone $(+ $bound)*, V: Value> $map<K, V> {
            /// How many entries there are.
            pub fn len(&self) -> usize {
                self.read().len()
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.read().is_empty()
            }

            /// The value of a key, to read.
            pub fn get<Q>(&self, key: &Q) -> Option<ReadContent<'_, V>>
            where
                K: Borrow<Q>,
                Q: ?Sized $(+ $bound)*,
            {
                RwLockReadGuard::try_map(self.shared.body.read(), |body| body.0.get(key)).ok()
            }

            /// Whether there is an entry of this key.
            pub fn contains_key<Q>(&self, key: &Q) -> bool
            where
                K: Borrow<Q>,
                Q: ?Sized $(+ $bound)*,
            {
                self.read().contains_key(key)
            }

            /// The value of a key, to change. Ships the fields that changed.
            pub fn get_mut(&mut self, key: &K) -> Option<impl DerefMut<Target = V> + '_> {
                let own = key.clone();
                self.slot(
                    |body| body.0.get_mut(key),
                    move |to| {
                        to.byte(op::PATCH);
                        own.encode(to);
                    },
                )
            }

            /// Puts a value under a key; returns the one that was there. Ships key and value.
            pub fn insert(&mut self, key: K, value: V) -> Option<V> {
                self.change(|body, diff| {
                    let Some(diff) = diff else { return body.0.insert(key, value) };
                    diff.redo.byte(op::INSERT);
                    key.encode(diff.redo);
                    value.encode(diff.redo);
                    let undo = key.clone();
                    let old = body.0.insert(key, value);
                    diff.undo.byte(if old.is_some() { op::INSERT } else { op::REMOVE });
                    undo.encode(diff.undo);
                    if let Some(old) = &old {
                        old.encode(diff.undo);
                    }
                    old
                })
            }

            /// Takes the value of a key out. Ships the key.
            pub fn remove(&mut self, key: &K) -> Option<V> {
                self.change(|body, diff| {
                    let old = body.0.remove(key)?;
                    if let Some(diff) = diff {
                        diff.redo.byte(op::REMOVE);
                        key.encode(diff.redo);
                        diff.undo.byte(op::INSERT);
                        key.encode(diff.undo);
                        old.encode(diff.undo);
                    }
                    Some(old)
                })
            }

            /// Takes everything out.
            pub fn clear(&mut self) {
                let old = self.change(clear);
                drop(old);
            }
        }

        impl<K: Value + Clone $(+ $bound)*, V: Value> FromIterator<(K, V)> for $map<K, V> {
            fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
                Self::of($body(entries.into_iter().collect()))
            }
        }
    };
}

map!(
    /// A map by hash.
    ///
    /// ```
    /// use outlive_replicated::{commit, replicated, Map};
    ///
    /// #[replicated]
    /// static AGES: Map<String, u32> = Map::new();
    ///
    /// AGES.write().insert("Ada".into(), 36);
    /// if let Some(mut age) = AGES.write().get_mut(&"Ada".into()) {
    ///     *age += 1;
    /// }
    /// commit()?;
    /// assert_eq!(AGES.read().get("Ada").map(|age| *age), Some(37));
    /// # Ok::<(), outlive_replicated::CommitError>(())
    /// ```
    Map,
    /// What a [`Map`] holds.
    MapBody, HashMap, "Map", [Hash Eq], HashMap::with_capacity
);

map!(
    /// A map in the order of its keys.
    ///
    /// ```
    /// use outlive_replicated::{commit, replicated, OrderedMap};
    ///
    /// #[replicated]
    /// static DUE: OrderedMap<u64, String> = OrderedMap::new();
    ///
    /// DUE.write().insert(20, "later".into());
    /// DUE.write().insert(10, "sooner".into());
    /// commit()?;
    /// assert_eq!(DUE.read().read().first_key_value(), Some((&10, &"sooner".to_string())));
    /// # Ok::<(), outlive_replicated::CommitError>(())
    /// ```
    OrderedMap,
    /// What an [`OrderedMap`] holds.
    OrderedMapBody, BTreeMap, "OrderedMap", [Ord], |_| BTreeMap::new()
);
