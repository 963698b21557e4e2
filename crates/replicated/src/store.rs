//! All objects of a process by their ids, and how what a primary sends becomes their state.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::call::Calls;
use crate::doctor::Watch;
use crate::dynamic::NotDeclared;
use crate::object::{AnyObject, Body, Shared};
use crate::schema::{Plans, RootDefinition, Schema, Shape, SharedType, Types};
use crate::transaction::{World, keeping};
use crate::value::Value;
use crate::wire::{Mode, Reader, WireError, Writer};

/// Makes an object behind a `Ref` out of its content.
pub(crate) type Create = fn(&Arc<Store>, &mut Reader<'_>, u64) -> Result<Arc<dyn AnyObject>, WireError>;

/// Parts of the table of objects, so that threads seldom meet.
const PARTS: usize = 64;

/// What a record of the log is about: the low bits of its first number.
pub(crate) mod kind {
    /// An operation on an object.
    pub const CHANGE: u64 = 0;
    /// A new object behind a `Ref`: type, content.
    pub const CREATE: u64 = 1;
    /// An object that nothing leads to any more.
    pub const FREE: u64 = 2;
    /// The whole content of a static, for a backup that joins.
    pub const IMAGE: u64 = 4;
    /// How many there may be.
    pub const COUNT: u64 = 8;
}

/// What this process is to the store's state.
///
/// ```
/// use outlive_replicated::{status, Role};
///
/// let speaks = status().is_some_and(|status| status.role == Role::Primary);
/// assert!(!speaks);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `start` was not called: everything works and goes nowhere.
    Alone,
    /// Follows a primary; whoever writes waits.
    Backup,
    /// Its commits count.
    Primary,
    /// Another took its place: nothing is acknowledged any more.
    Deposed,
}

/// Where committed transactions go: the seam to whatever carries them to a backup.
pub trait Sink: Send + Sync {
    /// Takes a transaction; the number it got. Transactions that touch one object come in order.
    fn submit(&self, records: &[u8]) -> Result<u64, crate::CommitError>;
    /// The number of the last one taken.
    fn last(&self) -> u64;
    /// The number of a commit that says, once it may be acknowledged, that nobody had taken over by now: what was read
    /// before may be answered with.
    fn barrier(&self) -> Result<u64, crate::CommitError> {
        Ok(self.last())
    }
    /// Whether it may be.
    fn is_acknowledged(&self, _number: u64) -> bool {
        true
    }
    /// Has the backup carry out calls, each an id and a record, before the commit that they are part of comes; the function
    /// that failed there, and what it says. Without a backup there is nothing to do.
    fn call(&self, _calls: &[(u64, Vec<u8>)]) -> Result<(), crate::CommitError> {
        Ok(())
    }
    /// Whether [`wait`](Self::wait) would return at once.
    fn is_settled(&self, number: u64) -> bool {
        self.is_acknowledged(number)
    }
    /// Waits until it may be acknowledged.
    fn wait(&self, number: u64) -> Result<(), crate::CommitError>;
    /// Asks to be woken when it may be, or says how it ended.
    fn poll(&self, number: u64, waker: &std::task::Waker) -> std::task::Poll<Result<(), crate::CommitError>>;
}

struct Entry {
    object: Weak<dyn AnyObject>,
    /// Objects behind a `Ref` belong to the store.
    kept: Option<Arc<dyn AnyObject>>,
    /// Number of its type on the wire, for those.
    shared: u64,
}

/// The replicated state of a process. There is one, [`Store::global`]; tests make others.
pub struct Store {
    parts: Vec<Mutex<HashMap<u64, Entry>>>,
    roots: Mutex<BTreeMap<String, Arc<dyn AnyObject>>>,
    next: AtomicU64,
    role: AtomicU8,
    role_lock: Mutex<()>,
    role_changed: Condvar,
    types: RwLock<Types>,
    /// What a `Ref` may lead to, in the order of their numbers.
    shared: RwLock<Vec<(String, SharedType)>>,
    sink: OnceLock<Arc<dyn Sink>>,
    /// What the primary has and this program no longer does.
    ignored: Mutex<HashSet<u64>>,
    root_types: Mutex<BTreeMap<String, (String, Shape)>>,
    /// Functions that the program says it has, besides the marked ones.
    announced: Mutex<Vec<String>>,
    /// Statics of the primary whose content has not come yet.
    unsent: Mutex<HashSet<u64>>,
    pub(crate) world: World,
    pub(crate) calls: Calls,
    pub(crate) watch: Watch,
}

impl Store {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            roots: Mutex::default(),
            next: AtomicU64::new(1),
            role: AtomicU8::new(Role::Alone as u8),
            role_lock: Mutex::default(),
            role_changed: Condvar::new(),
            types: RwLock::default(),
            shared: RwLock::default(),
            sink: OnceLock::new(),
            ignored: Mutex::default(),
            root_types: Mutex::default(),
            announced: Mutex::default(),
            unsent: Mutex::default(),
            world: World::default(),
            calls: Calls::default(),
            watch: Watch::default(),
        })
    }

    /// The store of all marked statics of this process.
    pub fn global() -> &'static Arc<Self> {
        static GLOBAL: OnceLock<Arc<Store>> = OnceLock::new();
        GLOBAL.get_or_init(Self::new)
    }

    /// What this process is.
    #[inline]
    pub fn role(&self) -> Role {
        match self.role.load(Ordering::Acquire) {
            0 => Role::Alone,
            1 => Role::Backup,
            2 => Role::Primary,
            _ => Role::Deposed,
        }
    }

    /// Makes this process something else; as a primary it needs a [sink](Self::set_sink) first.
    pub fn set_role(&self, role: Role) {
        let _lock = self.role_lock.lock();
        self.role.store(role as u8, Ordering::Release);
        self.role_changed.notify_all();
    }

    /// Returns when this process may write.
    #[inline]
    pub(crate) fn wait_to_write(&self) {
        if self.role() == Role::Backup {
            let mut lock = self.role_lock.lock();
            while self.role() == Role::Backup {
                self.role_changed.wait(&mut lock);
            }
        }
    }

    /// Says where committed transactions go, once; `false` if that was said before.
    pub fn set_sink(&self, sink: Arc<dyn Sink>) -> bool {
        self.sink.set(sink).is_ok()
    }

    #[inline]
    pub(crate) fn sink(&self) -> Option<&Arc<dyn Sink>> {
        self.sink.get()
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn part(&self, id: u64) -> &Mutex<HashMap<u64, Entry>> {
        &self.parts[(id % PARTS as u64) as usize]
    }

    pub(crate) fn register(&self, id: u64, object: &Arc<dyn AnyObject>) {
        self.next.fetch_max(id.saturating_add(1), Ordering::Relaxed);
        let entry = Entry { object: Arc::downgrade(object), kept: None, shared: 0 };
        let replaced = self.part(id).lock().insert(id, entry);
        // Outside of the lock: what ends with it may lock this part itself.
        drop(replaced);
    }

    /// The object's last owner let go of it.
    pub(crate) fn forget(&self, id: u64) {
        let mut part = self.part(id).lock();
        let gone = part.get(&id).is_some_and(|entry| entry.object.strong_count() == 0);
        let removed = if gone { part.remove(&id) } else { None };
        drop(part);
        drop(removed);
    }

    #[inline]
    pub(crate) fn object(&self, id: u64) -> Option<Arc<dyn AnyObject>> {
        self.part(id).lock().get(&id)?.object.upgrade()
    }

    /// Whether there is an object of this id. Nothing ends by asking.
    pub(crate) fn has(&self, id: u64) -> bool {
        self.part(id).lock().get(&id).is_some_and(|entry| entry.object.strong_count() > 0)
    }

    pub(crate) fn object_as<B: Body>(&self, id: u64) -> Result<Arc<Shared<B>>, WireError> {
        let object = self.object(id).ok_or(WireError::UnknownObject(id))?;
        object.into_any().downcast().map_err(|_| WireError::OtherType(id))
    }

    pub(crate) fn ignore(&self, id: u64) {
        self.ignored.lock().insert(id);
    }

    /// Makes a static's object known, with an id, and all types in it.
    pub(crate) fn add_root<T: Value>(self: &Arc<Self>, name: &str, object: &Arc<Shared<T>>) {
        let id = self.next_id();
        self.know::<T>();
        object.attach(self, id);
        let mut content = Writer::new(Mode::Content, Some(Arc::clone(self)));
        object.body.read().encode(&mut content);
        self.roots.lock().insert(name.to_owned(), Arc::clone(object) as _);
        self.root_types.lock().insert(name.to_owned(), (T::name(), T::shape()));
    }

    /// Makes a static known whose type is described at run time.
    pub(crate) fn add_described<B: Body>(
        self: &Arc<Self>,
        name: &str,
        object: &Arc<Shared<B>>,
        of: String,
        shape: Shape,
        types: Vec<(String, crate::schema::Definition)>,
    ) -> Result<(), NotDeclared> {
        if self.roots.lock().contains_key(name) {
            return Err(NotDeclared::Taken(name.to_owned()));
        }
        self.types.write().describe(types).map_err(NotDeclared::OtherType)?;
        object.attach(self, self.next_id());
        self.roots.lock().insert(name.to_owned(), Arc::clone(object) as _);
        self.root_types.lock().insert(name.to_owned(), (of, shape));
        Ok(())
    }

    /// See [`announce_function`](crate::dynamic::announce_function); `false` if it was announced before.
    pub(crate) fn announce(&self, name: &str) -> bool {
        let mut announced = self.announced.lock();
        let new = !announced.iter().any(|known| known == name);
        if new {
            announced.push(name.to_owned());
        }
        new
    }

    /// Makes a type and all that it is made of known.
    pub(crate) fn know<T: Value>(&self) {
        let mut types = self.types.write();
        T::describe(&mut types);
        let mut shared = self.shared.write();
        for (name, of) in &types.shared {
            if !shared.iter().any(|(known, _)| known == name) {
                shared.push((name.clone(), of.clone()));
            }
        }
    }

    /// What a backup must be able to hold.
    pub fn schema(&self) -> Schema {
        let types = self.root_types.lock().clone();
        let roots = self.roots.lock();
        let roots = roots.iter().filter_map(|(name, object)| {
            let (of, shape) = types.get(name)?.clone();
            Some((name.clone(), RootDefinition { id: object.id(), of, shape }))
        });
        Schema {
            types: self.types.read().definitions.clone(),
            roots: roots.collect(),
            shared: self.shared.read().iter().map(|(name, of)| (name.clone(), of.shape.clone())).collect(),
            // Behind the marked ones, whose places are their numbers on the wire.
            functions: crate::call::names()
                .into_iter()
                .chain(self.announced.lock().iter().cloned())
                .collect(),
        }
    }

    /// Names that two different marked types have: they must be told apart before anything is shipped.
    pub fn clashes(&self) -> Vec<String> {
        self.types.read().clashes.iter().cloned().collect()
    }

    /// Makes all marked statics of the program known: before [`schema`](Self::schema) is asked for.
    pub fn register_statics() {
        crate::root::register_all();
    }

    /// Gives everything that there is to `each`, as records for [`apply`](Self::apply) with `joining`, one object after
    /// the other, while transactions go on. `each` is called at a moment when nothing of that object is changed and not
    /// committed, and must put the records behind all transactions committed so far: later ones belong after them.
    pub fn images(&self, mut each: impl FnMut(&[u8])) {
        for (id, object, shared) in self.tops() {
            object.at_rest(&mut |encode| {
                let mut record = Writer::new(Mode::Content, None);
                match shared {
                    None => record.number(id * kind::COUNT + kind::IMAGE),
                    Some(number) => {
                        record.number(id * kind::COUNT + kind::CREATE);
                        record.number(number);
                    }
                }
                encode(&mut record);
                let mut records = Writer::new(Mode::Content, None);
                records.sized(&record.bytes);
                each(&records.bytes);
            });
        }
    }

    /// Puts an object behind a `Ref` into the store.
    pub(crate) fn keep(&self, id: u64, object: &Arc<dyn AnyObject>, shared: u64) {
        let mut part = self.part(id).lock();
        if let Some(entry) = part.get_mut(&id) {
            (entry.kept, entry.shared) = (Some(Arc::clone(object)), shared);
        }
    }

    pub(crate) fn free(&self, id: u64) {
        let kept = self.part(id).lock().get_mut(&id).and_then(|entry| entry.kept.take());
        drop(kept);
    }

    pub(crate) fn shared_number(&self, name: &str) -> Option<u64> {
        self.shared.read().iter().position(|(known, _)| known == name).map(|place| place as u64)
    }

    /// The ids of all objects that are no collections within others: statics, and what a `Ref` leads to.
    pub(crate) fn tops(&self) -> Vec<(u64, Arc<dyn AnyObject>, Option<u64>)> {
        let mut found: Vec<_> =
            self.roots.lock().values().map(|root| (root.id(), Arc::clone(root), None)).collect();
        for part in &self.parts {
            let part = part.lock();
            let kept = part
                .iter()
                .filter_map(|(id, entry)| Some((*id, Arc::clone(entry.kept.as_ref()?), Some(entry.shared))));
            found.extend(kept);
        }
        found
    }

    /// Whether all statics of the primary have come.
    pub fn has_arrived(&self) -> bool {
        let ignored = self.ignored.lock();
        self.unsent.lock().iter().all(|id| ignored.contains(id))
    }

    pub(crate) fn unregister(&self, id: u64) {
        let entry = self.part(id).lock().remove(&id);
        drop(entry);
    }

    /// What an object is called: the static's name, or its number.
    pub(crate) fn name_of(&self, id: u64) -> String {
        let roots = self.roots.lock();
        let root = roots.iter().find(|(_, root)| root.id() == id);
        root.map_or_else(|| format!("object {id}"), |(name, _)| name.clone())
    }

    /// How many objects there are, collections within others included.
    pub fn objects(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    /// Before following a primary: forgets what this process made by itself, and gives statics the primary's ids.
    pub fn follow(self: &Arc<Self>, schema: &Schema) {
        self.set_role(Role::Backup);
        for part in &self.parts {
            let entries = std::mem::take(&mut *part.lock());
            drop(entries);
        }
        self.ignored.lock().clear();
        *self.unsent.lock() = schema.roots.values().map(|root| root.id).collect();
        let highest = schema.roots.values().map(|root| root.id).max().unwrap_or(0);
        self.next.store(highest.saturating_add(1), Ordering::Relaxed);
        let own: Vec<_> = self.roots.lock().iter().map(|(n, o)| (n.clone(), Arc::clone(o))).collect();
        for (name, object) in &own {
            // One that the primary does not have gets its id at a takeover.
            object.set_id(schema.roots.get(name).map_or(0, |root| root.id));
        }
        for (name, root) in &schema.roots {
            match own.iter().find(|(own, _)| own == name) {
                Some((_, object)) => self.register(root.id, object),
                None => self.ignore(root.id),
            }
        }
    }

    /// Takes apart what leads in a circle: a process has one store and keeps it, tests make many.
    #[cfg(test)]
    pub(crate) fn dismantle(&self) {
        let roots = std::mem::take(&mut *self.roots.lock());
        drop(roots);
        for part in &self.parts {
            let entries = std::mem::take(&mut *part.lock());
            drop(entries);
        }
    }

    /// The first thing as the primary after following another.
    pub fn take_over(self: &Arc<Self>) {
        let own: Vec<_> = self.roots.lock().values().map(Arc::clone).collect();
        for object in own.iter().filter(|object| object.id() == 0) {
            let id = self.next_id();
            object.set_id(id);
            self.register(id, object);
            // Collections in it had ids that may be others' now.
            let mut content = Writer::new(Mode::Renew, Some(Arc::clone(self)));
            object.encode(&mut content);
        }
        self.set_role(Role::Primary);
        self.open_all();
    }

    /// Carries out the records of one transaction, whole or, where it returns an error, not to be used any more. `joining`: what is about objects that were not sent yet is passed
    /// over, for they are yet to come as they are after it.
    pub fn apply(
        self: &Arc<Self>,
        records: &[u8],
        plans: Option<&Plans>,
        joining: bool,
    ) -> Result<(), WireError> {
        keeping(|| {
            let mut all = Reader::new(records, self, plans);
            while !all.is_empty() {
                let record = all.sized()?;
                self.apply_record(record, plans, joining)?;
            }
            Ok(())
        })
    }

    fn apply_record(
        self: &Arc<Self>,
        record: &[u8],
        plans: Option<&Plans>,
        joining: bool,
    ) -> Result<(), WireError> {
        let mut from = Reader::new(record, self, plans);
        let head = from.number()?;
        let (id, kind) = (head / kind::COUNT, head % kind::COUNT);
        match kind {
            kind::CHANGE | kind::IMAGE => {
                let Some(object) = self.object(id) else {
                    if joining || self.ignored.lock().contains(&id) {
                        return Ok(());
                    }
                    return Err(WireError::UnknownObject(id));
                };
                if kind == kind::IMAGE {
                    object.decode(&mut from)?;
                    self.unsent.lock().remove(&id);
                } else if joining && self.unsent.lock().contains(&id) {
                    return Ok(());
                } else {
                    object.apply(&mut from)?;
                }
            }
            kind::CREATE => {
                let number = from.number()?;
                let name = match plans.map(|plans| plans.shared(number)) {
                    Some(Some((name, _))) => Some(name.clone()),
                    Some(None) => return Err(WireError::NotAnnounced { what: "type", number }),
                    None => usize::try_from(number)
                        .ok()
                        .and_then(|number| self.shared.read().get(number).map(|(name, _)| name.clone())),
                };
                let name = name.ok_or(WireError::NotAnnounced { what: "type", number })?;
                let own = self.shared_number(&name);
                let Some(own) = own else {
                    // A type that this program no longer has.
                    self.ignore(id);
                    return Ok(());
                };
                let create = self.shared.read().get(own as usize).map(|(_, of)| of.create);
                let create = create.ok_or(WireError::NotAnnounced { what: "type", number })?;
                if id == 0 {
                    return Err(WireError::UnknownObject(0));
                }
                let object = create(self, &mut from, id)?;
                self.keep(id, &object, own);
            }
            kind::FREE => self.free(id),
            _ => return Err(WireError::NotA("record")),
        }
        from.finish()
    }
}
