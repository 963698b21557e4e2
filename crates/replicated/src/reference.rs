//! References between replicated objects: ids, so that cycles are nothing special; and the collection of what nothing
//! leads to any more.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::object::{AnyObject, Shared};
use crate::reading::read_arc;
use crate::root::{Read, RefReadGuard, RefWriteGuard};
use crate::schema::{Shape, SharedType, Types};
use crate::store::{Store, kind};
use crate::transaction::{CommitError, WriteError, give_up, record_other};
use crate::value::Value;
use crate::wire::{Mode, Reader, WireError, Writer};
use crate::write::{Held, Write};

/// Leads to a replicated object from anywhere in replicated state, on both sides alike. It is an id and may be copied;
/// objects may lead to each other in circles. What is no longer reached from a marked static is collected by
/// [`collect_garbage`]; a `Ref` that is only in memory of its own keeps nothing.
///
/// ```
/// use outlive_replicated::{commit, replicated, Ref};
///
/// #[replicated]
/// struct Node {
///     name: String,
///     next: Option<Ref<Node>>,
/// }
///
/// #[replicated]
/// static FIRST: Option<Ref<Node>> = None;
///
/// let a = Ref::new(Node { name: "a".into(), next: None });
/// let b = Ref::new(Node { name: "b".into(), next: Some(a) });
/// a.write().next = Some(b);
/// *FIRST.write() = Some(a);
/// commit()?;
/// assert_eq!(a.read().next.map(|b| b.read().name.clone()), Some("b".into()));
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub struct Ref<T> {
    id: u64,
    to: PhantomData<fn() -> T>,
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ref<T> {}

impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<T> Eq for Ref<T> {}

impl<T> Hash for Ref<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.id)
    }
}

impl<T: Value> Ref<T> {
    /// Makes an object of a value, as part of this thread's transaction.
    ///
    /// ```
    /// use outlive_replicated::{commit, replicated, List, Ref};
    ///
    /// #[replicated]
    /// struct Job {
    ///     done: bool,
    /// }
    ///
    /// #[replicated]
    /// static JOBS: List<Ref<Job>> = List::new();
    ///
    /// let job = Ref::new(Job { done: false });
    /// JOBS.write().push(job);
    /// job.write().done = true;
    /// commit()?;
    /// assert!(JOBS.read().get(0).ok_or("none")?.read().done);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(value: T) -> Self {
        Self::new_in(Store::global(), value).unwrap_or_else(|error| give_up(error))
    }

    pub(crate) fn new_in(store: &Arc<Store>, value: T) -> Result<Self, WriteError> {
        let id = store.next_id();
        let name = T::name();
        let number = store.shared_number(&name).unwrap_or_else(|| {
            store.know::<Self>();
            store.shared_number(&name).unwrap_or_default()
        });
        let shared = Shared::new(value);
        record_other(store, id, kind::CREATE, true, |to| {
            to.number(number);
            shared.body.read().encode(to);
        })?;
        shared.attach(store, id);
        let object: Arc<dyn AnyObject> = shared;
        store.keep(id, &object, number);
        Ok(Self { id, to: PhantomData })
    }

    /// The object's id: the same on every side, and never used again.
    pub fn id(&self) -> u64 {
        self.id
    }

    fn shared(&self, store: &Store) -> Result<Arc<Shared<T>>, WriteError> {
        store.object_as(self.id).map_err(|_| WriteError::Gone(self.id))
    }

    /// Reads the object as plain data.
    ///
    /// # Panics
    /// If the object was collected; see [`try_read`](Self::try_read).
    pub fn read(&self) -> RefReadGuard<T> {
        self.try_read().unwrap_or_else(|error| give_up(error))
    }

    /// Like [`read`](Self::read), and says why not.
    ///
    /// ```
    /// use outlive_replicated::{commit, Ref};
    ///
    /// let number = Ref::new(7u64);
    /// commit()?;
    /// assert_eq!(*number.try_read()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_read(&self) -> Result<RefReadGuard<T>, WriteError> {
        self.try_read_in(Store::global())
    }

    pub(crate) fn try_read_in(&self, store: &Store) -> Result<RefReadGuard<T>, WriteError> {
        let shared = self.shared(store)?;
        Ok(Read::new(read_arc(&shared)))
    }

    /// Changes the object as plain data: see [`Root::write`](crate::Root::write).
    ///
    /// # Panics
    /// Where [`try_write`](Self::try_write) would say why not.
    pub fn write(&self) -> RefWriteGuard<T> {
        self.try_write().unwrap_or_else(|error| give_up(error))
    }

    /// Like [`write`](Self::write), and says why not.
    ///
    /// ```
    /// use outlive_replicated::{commit, Ref};
    ///
    /// let number = Ref::new(7u64);
    /// *number.try_write()? += 1;
    /// commit()?;
    /// assert_eq!(*number.read(), 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn try_write(&self) -> Result<RefWriteGuard<T>, WriteError> {
        self.try_write_in(Store::global())
    }

    pub(crate) fn try_write_in(&self, store: &Store) -> Result<RefWriteGuard<T>, WriteError> {
        Write::begin(Held(self.shared(store)?))
    }
}

impl<T: Value> Value for Ref<T> {
    type Shadow = u64;

    fn shape() -> Shape {
        Shape::Number
    }

    fn name() -> String {
        format!("Ref<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        let of = SharedType { shape: T::shape(), create: create::<T> };
        if types.share(T::name(), of) {
            T::describe(types);
        }
    }

    fn encode(&self, to: &mut Writer) {
        to.number(self.id);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { id: from.number()?, to: PhantomData })
    }

    fn shadow(&self) -> u64 {
        self.id
    }

    fn encode_shadow(shadow: &u64, to: &mut Writer) {
        to.number(*shadow);
    }

    fn differs(&self, shadow: &u64) -> bool {
        self.id != *shadow
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        visit(self.id);
    }
}

/// An object of bytes; its id is given to it by who asked.
fn create<T: Value>(
    store: &Arc<Store>,
    from: &mut Reader<'_>,
    id: u64,
) -> Result<Arc<dyn AnyObject>, WireError> {
    let shared = Shared::new(T::decode(from)?);
    shared.attach(store, id);
    Ok(shared)
}

/// Frees all objects that are no longer reached from a marked static, on both sides, as a transaction of its own;
/// returns how many. Waits up to `patience` for a moment without any transaction, in which nothing else begins one;
/// `None` if there was none. Commit first: a transaction of this very thread would be waited for.
///
// A process of its own: examples that share one have objects that nothing marked leads to.
/// ```standalone_crate
/// use std::time::Duration;
/// use outlive_replicated::{collect_garbage, commit, Ref};
///
/// // No marked static leads to it.
/// let forgotten = Ref::new(7u64);
/// commit()?;
/// assert_eq!(collect_garbage(Duration::from_secs(1))?, Some(1));
/// assert!(forgotten.try_read().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn collect_garbage(patience: Duration) -> Result<Option<usize>, CommitError> {
    collect_garbage_in(Store::global(), patience)
}

pub(crate) fn collect_garbage_in(
    store: &Arc<Store>,
    patience: Duration,
) -> Result<Option<usize>, CommitError> {
    let freed = store.world.alone(patience, || {
        let tops = store.tops();
        let mut reached = HashSet::new();
        let mut waiting: Vec<u64> = tops.iter().filter(|top| top.2.is_none()).map(|top| top.0).collect();
        while let Some(id) = waiting.pop() {
            if reached.insert(id)
                && let Some(object) = store.object(id)
            {
                object.trace(&mut |id| waiting.push(id));
            }
        }
        let unreached = tops.iter().filter(|top| top.2.is_some() && !reached.contains(&top.0));
        let unreached: Vec<u64> = unreached.map(|top| top.0).collect();
        drop(tops);
        let mut records = Writer::new(Mode::Ids, None);
        for id in &unreached {
            let mut record = Writer::new(Mode::Ids, None);
            record.number(id * kind::COUNT + kind::FREE);
            records.sized(&record.bytes);
        }
        let submitted = match store.sink() {
            Some(sink) if !unreached.is_empty() => sink.submit(&records.bytes).map(Some),
            _ => Ok(None),
        };
        submitted.map(|number| {
            for id in &unreached {
                store.free(*id);
            }
            (unreached.len(), number)
        })
    });
    match freed {
        None => Ok(None),
        Some(freed) => {
            let (count, number) = freed?;
            if let (Some(number), Some(sink)) = (number, store.sink()) {
                sink.wait(number)?;
            }
            Ok(Some(count))
        }
    }
}
