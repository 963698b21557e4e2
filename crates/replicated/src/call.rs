//! Marked functions: what a primary has opened by calling one, its backup opens by calling it too.
//!
//! A value that belongs to one process (a connection, a file, a subscription) cannot travel. The call that made it can: a
//! [`Handle`] is part of replicated state like a collection, and what is shipped of it is its function and arguments. It
//! has the same id on both sides, and a value of its own on each. A thread of its own carries out a backup's calls and
//! undoings, in the order in which they come, so that no connection that hangs keeps commits from being applied.
//!
//! An eager call whose failure is to fail the commit is asked of the backup before the commit is submitted: a transaction
//! can only be undone as long as nobody has built upon it.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, MappedMutexGuard, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::object::{AnyObject, Body, Shared};
use crate::schema::Shape;
use crate::store::{Role, Store};
use crate::transaction::{created, keep};
use crate::value::Value;
use crate::wire::{Mode, Reader, WireError, Writer};

/// A call that failed on a backup and may be tried again is, after this.
const AGAIN: Duration = Duration::from_millis(500);

/// Why there is no value behind a [`Handle`].
///
/// ```
/// use outlive_replicated::{replicated, CallError};
///
/// #[replicated]
/// fn open(name: String) -> Result<u64, String> {
///     Err(format!("{name} is not there"))
/// }
///
/// let error = open("a".into()).unwrap_err();
/// assert!(matches!(&error, CallError::Failed { reason, .. } if reason == "a is not there"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// What the function itself says.
    #[error("the replicated function `{function}` failed: {reason}")]
    Failed {
        /// Its name.
        function: String,
        /// What it says.
        reason: String,
    },
    /// The handle was dropped, and what its function did is undone.
    #[error("what `{0}` opened is closed: its handle is no longer part of the state")]
    Undone(String),
    /// The function returns something else than the handle says.
    #[error("what `{0}` opened is of another type than its handle says")]
    OtherType(String),
    /// The handle that was given as an argument could not become part of this thread's transaction.
    #[error(transparent)]
    Write(#[from] crate::WriteError),
}

/// When a backup carries out a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum When {
    Eager,
    Lazy,
}

/// What a failure on the backup does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum OnError {
    Fail,
    Retry,
}

type Run = fn(&mut Reader<'_>) -> Result<Box<dyn Any + Send>, String>;
/// Reads arguments, writes them as this version of the program has them, and gives what must be kept for them.
type Normalise = fn(&mut Reader<'_>, &mut Writer) -> Result<Box<dyn Any + Send + Sync>, WireError>;

/// A marked function, as the macro describes it.
#[doc(hidden)]
pub struct Function {
    pub name: &'static str,
    /// With the types of its arguments: another signature is another function.
    pub signature: fn() -> String,
    pub when: When,
    pub on_error: OnError,
    pub run: Run,
    pub normalise: Normalise,
    pub undo: fn(Box<dyn Any + Send>),
}

/// How the program lists its marked functions.
#[doc(hidden)]
pub struct FunctionEntry(pub &'static Function);

inventory::collect!(FunctionEntry);

/// All marked functions of the program, in the order of their numbers.
fn functions() -> &'static [(String, &'static Function)] {
    static ALL: OnceLock<Vec<(String, &'static Function)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let entries = inventory::iter::<FunctionEntry>;
        let mut all: Vec<_> = entries.into_iter().map(|entry| ((entry.0.signature)(), entry.0)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    })
}

/// Their names, as the schema has them.
pub(crate) fn names() -> Vec<String> {
    functions().iter().map(|(name, _)| name.clone()).collect()
}

fn number_of(function: &'static Function) -> u64 {
    functions().iter().position(|(_, known)| std::ptr::eq(*known, function)).unwrap_or(usize::MAX) as u64
}

enum State {
    /// Not called here yet, or in vain.
    Closed,
    Open(Box<dyn Any + Send>),
    Undone,
}

/// A call, and what it made here.
struct Call {
    function: &'static Function,
    arguments: Vec<u8>,
    store: Weak<Store>,
    state: Mutex<State>,
    /// Its id among those that wait to be opened; 0 elsewhere.
    waits: u64,
    /// Handles among the arguments: undone later than this.
    _kept: Box<dyn Any + Send + Sync>,
}

impl Call {
    fn name(&self) -> String {
        self.function.name.to_owned()
    }

    /// The value, made now if it is not there.
    fn open(&self) -> Result<MutexGuard<'_, State>, CallError> {
        let mut state = self.state.lock();
        match &*state {
            State::Open(_) => return Ok(state),
            State::Undone => return Err(CallError::Undone(self.name())),
            State::Closed => {}
        }
        let outcome = match self.store.upgrade() {
            Some(store) => (self.function.run)(&mut Reader::new(&self.arguments, &store, None)),
            None => Err("there is no state any more".into()),
        };
        match outcome {
            Ok(value) => *state = State::Open(value),
            Err(reason) => return Err(CallError::Failed { function: self.name(), reason }),
        }
        Ok(state)
    }

    fn lock<T: 'static>(&self) -> Result<MappedMutexGuard<'_, T>, CallError> {
        let other = || CallError::OtherType(self.name());
        let value = MutexGuard::try_map(self.open()?, |state| match state {
            State::Open(value) => value.downcast_mut(),
            _ => None,
        });
        value.map_err(|_| other())
    }

    /// Ends what it made; `undo`: by the function for that, else only by dropping it.
    fn end(&self, undo: bool) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Undone);
        if let State::Open(value) = state
            && undo
        {
            (self.function.undo)(value);
        }
    }
}

/// The arguments of a call, as they travel.
#[doc(hidden)]
pub struct Arguments(Writer);

impl Arguments {
    #[expect(
        clippy::new_without_default,
        reason = "for the macro alone, and it waits until this process may write"
    )]
    pub fn new() -> Self {
        let store = Store::global();
        store.wait_to_write();
        // A handle among the arguments gets its id with this.
        Self(Writer::new(Mode::Content, Some(Arc::clone(store))))
    }

    pub fn add<V: Value>(&mut self, value: &V) {
        value.encode(&mut self.0);
    }
}

/// What the store knows of a handle.
pub(crate) struct Called(Arc<Call>);

impl Drop for Called {
    fn drop(&mut self) {
        if let Some(store) = self.0.store.upgrade() {
            let after = store.sink().map_or(0, |sink| sink.last());
            store.calls.queue(&store, Job::Undo { call: Arc::clone(&self.0), after });
        }
    }
}

impl Body for Called {
    fn apply(&mut self, _from: &mut Reader<'_>) -> Result<(), WireError> {
        Err(WireError::Impossible("a handle"))
    }

    fn encode_content(&self, to: &mut Writer) {
        to.number(number_of(self.0.function));
        to.sized(&self.0.arguments);
    }

    fn decode_content(&mut self, _from: &mut Reader<'_>) -> Result<(), WireError> {
        Err(WireError::Impossible("a handle"))
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

/// What a marked function has opened: one thing with one id, and on each side a value of its own, made there by the same
/// call. It is a field of replicated state, or an element of a collection. When it is no longer part of the state, what
/// the function did is undone on both sides: on the primary once that commit is acknowledged. A `Ref` among the arguments
/// keeps nothing.
///
/// ```
/// use outlive_replicated::{commit, replicated, Handle, Map};
///
/// struct Log(Vec<String>);
///
/// #[replicated(eager)]
/// fn open_log(name: String) -> Result<Log, std::io::Error> {
///     Ok(Log(vec![format!("{name} is open")]))
/// }
///
/// #[replicated]
/// static LOGS: Map<String, Handle<Log>> = Map::new();
///
/// LOGS.write().insert("a".into(), open_log("a".into())?);
/// commit()?;
/// LOGS.read().get("a").ok_or("none")?.lock()?.0.push("more".into());
/// assert_eq!(LOGS.read().get("a").ok_or("none")?.lock()?.0.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Handle<T> {
    shared: Arc<Shared<Called>>,
    call: Arc<Call>,
    of: PhantomData<fn() -> T>,
}

/// This process's value of a [`Handle`], to use while the handle's owner is free for others. It keeps nothing open.
pub struct Local<T> {
    call: Arc<Call>,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Local<T> {
    fn clone(&self) -> Self {
        Self { call: Arc::clone(&self.call), of: PhantomData }
    }
}

impl<T: Send + 'static> Local<T> {
    /// The value, for one at a time. See [`Handle::lock`].
    pub fn lock(&self) -> Result<MappedMutexGuard<'_, T>, CallError> {
        self.call.lock()
    }
}

impl<T: Send + 'static> Handle<T> {
    /// What the macro writes: the arguments, and the value made of them on this side.
    #[doc(hidden)]
    pub fn made(
        function: &'static Function,
        arguments: Arguments,
        run: impl FnOnce() -> Result<T, String>,
    ) -> Result<Self, CallError> {
        let store = Store::global();
        let Writer { bytes, created: new, .. } = arguments.0;
        if !new.is_empty() {
            created(store, new)?;
        }
        let broken = |error: WireError| CallError::Failed {
            function: function.name.to_owned(),
            reason: error.to_string(),
        };
        let mut own = Writer::new(Mode::Content, None);
        let kept = (function.normalise)(&mut Reader::new(&bytes, store, None), &mut own).map_err(broken)?;
        let value =
            run().map_err(|reason| CallError::Failed { function: function.name.to_owned(), reason })?;
        Ok(Self::of(Call {
            function,
            arguments: own.bytes,
            store: Arc::downgrade(store),
            state: Mutex::new(State::Open(Box::new(value))),
            waits: 0,
            _kept: kept,
        }))
    }

    /// This side's value, for one at a time; made now if this process has taken over and it is not there yet.
    pub fn lock(&self) -> Result<MappedMutexGuard<'_, T>, CallError> {
        self.call.lock()
    }

    /// This side's value, to be used without a guard of what the handle lies in.
    ///
    /// ```
    /// use outlive_replicated::{commit, replicated, Handle};
    ///
    /// #[replicated]
    /// fn open(name: String) -> Vec<String> {
    ///     vec![name]
    /// }
    ///
    /// #[replicated]
    /// static LOG: Option<Handle<Vec<String>>> = None;
    ///
    /// *LOG.write() = Some(open("a".into())?);
    /// commit()?;
    /// let log = LOG.read().as_ref().map(Handle::local).ok_or("none")?;
    /// // Nobody waits for `LOG` meanwhile.
    /// log.lock()?.push("b".into());
    /// assert_eq!(log.lock()?.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn local(&self) -> Local<T> {
        Local { call: Arc::clone(&self.call), of: PhantomData }
    }
}

impl<T> Handle<T> {
    fn of(call: Call) -> Self {
        let call = Arc::new(call);
        Self { shared: Shared::new(Called(Arc::clone(&call))), call, of: PhantomData }
    }

    fn known(shared: Arc<Shared<Called>>) -> Self {
        let call = Arc::clone(&shared.body.read().0);
        Self { shared, call, of: PhantomData }
    }

    /// Its id: the same on every side; 0 before it is part of the state.
    pub fn id(&self) -> u64 {
        self.shared.id()
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {} of {}", self.shared.id(), self.call.function.name)
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if self.shared.id() != 0 {
            keep(Arc::clone(&self.shared) as _);
        }
    }
}

impl<T: Send + 'static> Value for Handle<T> {
    type Shadow = u64;

    fn shape() -> Shape {
        Shape::Owned(Box::new(Shape::Tuple(vec![Shape::Number, Shape::Sized])))
    }

    fn name() -> String {
        "Handle".into()
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
            Mode::Content | Mode::Renew => write_content(&self.shared, to),
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let head = from.number()?;
        let id = head >> 1;
        let known = from.store().object_as::<Called>(id);
        if head & 1 == 0 {
            return Ok(Self::known(known?));
        }
        let number = from.number()?;
        let arguments = from.sized()?;
        match known {
            Ok(shared) => {
                // What was asked for before its commit is part of the state from here on.
                let asked = from.store().calls.prepared.lock().remove(&id);
                let handle = Self::known(shared);
                drop(asked);
                return Ok(handle);
            }
            Err(WireError::UnknownObject(_)) if id != 0 => {}
            Err(error) => return Err(error),
        }
        let unknown = WireError::NotAnnounced { what: "function", number };
        let function = match from.function(number)? {
            Some(name) => functions().iter().find(|(own, _)| own == name),
            None => usize::try_from(number).ok().and_then(|number| functions().get(number)),
        };
        let (_, function) = function.ok_or(unknown)?;
        let mut own = Writer::new(Mode::Content, None);
        let mut all = from.of(arguments);
        let kept = (function.normalise)(&mut all, &mut own)?;
        all.finish()?;
        let store = from.store();
        let handle = Self::of(Call {
            function,
            arguments: own.bytes,
            store: Arc::downgrade(store),
            state: Mutex::new(State::Closed),
            waits: id,
            _kept: kept,
        });
        handle.shared.attach(store, id);
        store.calls.waiting.lock().insert(id, Arc::downgrade(&handle.call));
        if function.when == When::Eager {
            store.calls.queue(store, Job::open(id, &handle.call, false));
        }
        Ok(handle)
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
}

fn write_content(shared: &Shared<Called>, to: &mut Writer) {
    to.number(shared.id() << 1 | 1);
    shared.body.read().encode_content(to);
}

/// What is to be asked of the backup before a transaction that has made this object is committed: its id, and the call.
pub(crate) fn to_ask(object: &Arc<dyn AnyObject>) -> Option<(u64, Vec<u8>)> {
    let shared = Arc::clone(object).into_any().downcast::<Shared<Called>>().ok()?;
    let function = shared.body.read().0.function;
    if (function.when, function.on_error) != (When::Eager, OnError::Fail) {
        return None;
    }
    let mut call = Writer::new(Mode::Content, None);
    write_content(&shared, &mut call);
    Some((shared.id(), call.bytes))
}

/// How a call went on the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub id: u64,
    /// The primary waits for it.
    pub asked: bool,
    pub function: String,
    pub error: Option<String>,
}

type Reporter = Arc<dyn Fn(&Report) + Send + Sync>;

enum Job {
    Open { id: u64, call: Weak<Call>, asked: bool, not_before: Instant },
    Undo { call: Arc<Call>, after: u64 },
}

impl Job {
    fn open(id: u64, call: &Arc<Call>, asked: bool) -> Self {
        Self::Open { id, call: Arc::downgrade(call), asked, not_before: Instant::now() }
    }
}

/// The calls of a store, and the thread that carries them out.
#[derive(Default)]
pub(crate) struct Calls {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
    started: AtomicBool,
    /// Called before their commit, by their ids.
    prepared: Mutex<HashMap<u64, Arc<Shared<Called>>>>,
    /// Calls that came from a primary, until they are opened.
    waiting: Mutex<BTreeMap<u64, Weak<Call>>>,
    reporter: Mutex<Option<Reporter>>,
}

impl Calls {
    fn queue(&self, store: &Arc<Store>, job: Job) {
        self.jobs.lock().push_back(job);
        self.more.notify_one();
        if !self.started.swap(true, Ordering::Relaxed) {
            let weak = Arc::downgrade(store);
            let started = thread::Builder::new().name("replicated calls".into()).spawn(move || attend(&weak));
            if let Err(error) = started {
                // The next one tries again; whoever needs the value opens it itself.
                self.started.store(false, Ordering::Relaxed);
                warn!(%error, "no thread can be started for replicated functions");
            }
        }
    }

    /// The first job that may be done now, or how long there is none.
    fn next(&self) -> Result<Job, Duration> {
        let now = Instant::now();
        let mut jobs = self.jobs.lock();
        let mut soonest = Duration::from_secs(1);
        for place in 0..jobs.len() {
            let wait = match &jobs[place] {
                Job::Open { not_before, .. } => not_before.saturating_duration_since(now),
                Job::Undo { .. } => Duration::ZERO,
            };
            if wait.is_zero() {
                return jobs.remove(place).ok_or(soonest);
            }
            soonest = soonest.min(wait);
        }
        self.more.wait_for(&mut jobs, soonest);
        Err(soonest)
    }

    fn report(&self, report: &Report) {
        let reporter = self.reporter.lock().clone();
        if let Some(reporter) = reporter {
            reporter(report);
        }
    }
}

/// Until the store is gone.
fn attend(store: &Weak<Store>) {
    while let Some(store) = store.upgrade() {
        let Ok(job) = store.calls.next() else { continue };
        match job {
            Job::Open { id, call, asked, .. } => {
                let Some(call) = call.upgrade() else { continue };
                let error = match call.open() {
                    Ok(_) | Err(CallError::Undone(_)) => None,
                    Err(CallError::Failed { reason, .. }) => Some(reason),
                    Err(other) => Some(other.to_string()),
                };
                match &error {
                    None => drop(store.calls.waiting.lock().remove(&id)),
                    Some(reason) if !asked => {
                        warn!(function = call.function.name, reason, "a call fails, and is tried again");
                        let (call, not_before) = (Arc::downgrade(&call), Instant::now() + AGAIN);
                        store.calls.jobs.lock().push_back(Job::Open { id, call, asked, not_before });
                    }
                    Some(reason) => info!(function = call.function.name, reason, "a call fails"),
                }
                store.calls.report(&Report { id, asked, function: call.name(), error });
            }
            Job::Undo { call, after } => {
                // An effect outside: not before the commit that asks for it is safe, and never by one who lost its place.
                let safe = store.sink().is_none_or(|sink| sink.wait(after).is_ok());
                call.end(safe);
                store.calls.waiting.lock().remove(&call.waits);
            }
        }
    }
}

impl Store {
    /// Calls a function before the commit that its handle is part of comes.
    pub(crate) fn prepare_call(
        self: &Arc<Self>,
        record: &[u8],
        plans: Option<&crate::schema::Plans>,
    ) -> Result<(), WireError> {
        let mut from = Reader::new(record, self, plans);
        // Of any type: only who uses it needs to know.
        let handle = Handle::<()>::decode(&mut from)?;
        from.finish()?;
        let id = handle.id();
        self.calls.prepared.lock().insert(id, Arc::clone(&handle.shared));
        // Its own job was queued when it was read, unless it was known already.
        let mut jobs = self.calls.jobs.lock();
        jobs.retain(|job| !matches!(job, Job::Open { id: queued, .. } if *queued == id));
        drop(jobs);
        self.calls.queue(self, Job::open(id, &handle.call, true));
        Ok(())
    }

    /// The transaction that a call was for was undone.
    pub(crate) fn discard_call(&self, id: u64) {
        let discarded = self.calls.prepared.lock().remove(&id);
        drop(discarded);
    }

    /// Who is told how calls go here. Without one, what was called for commits that never came is undone.
    pub(crate) fn report_calls_to(&self, reporter: Option<Reporter>) {
        let over = reporter.is_none();
        *self.calls.reporter.lock() = reporter;
        if over {
            let prepared = std::mem::take(&mut *self.calls.prepared.lock());
            drop(prepared);
        }
    }

    /// What was not called yet is called now, in order; whoever needs one before opens it itself.
    pub(crate) fn open_all(self: &Arc<Self>) {
        let waiting = std::mem::take(&mut *self.calls.waiting.lock());
        for (id, call) in waiting {
            if let Some(call) = call.upgrade()
                && self.role() == Role::Primary
            {
                self.calls.queue(self, Job::open(id, &call, false));
            }
        }
    }
}
