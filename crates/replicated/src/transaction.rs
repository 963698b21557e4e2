//! Transactions: what a thread, or a task, changed since its last commit.
//!
//! A transaction begins with the first change and owns every object that it changes until it ends. It keeps two texts:
//! what the backup is to do, and what takes it back. Both are in the encoding of [`wire`](crate::wire), and both are
//! carried out by the same code, so that undoing is as well tested as replicating.

mod task;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::lock::{Deadlock, LOOK_AGAIN, Owner};
use crate::object::{AnyObject, Body, Shared};
use crate::reading;
use crate::store::{Role, Sink, Store, kind};
use crate::value::{Diff, Value};
use crate::wire::{Mode, Reader, Writer};

pub use task::{Task, task};

/// The most that one transaction may ship: what a backup must hold before it can apply it.
pub const TRANSACTION_LIMIT: usize = 256 * 1024 * 1024;

/// Why a commit was not acknowledged.
///
/// ```
/// use outlive_replicated::{commit, replicated, CommitError};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// let mut count = COUNT.write();
/// *count += 1;
/// assert_eq!(commit(), Err(CommitError::GuardAlive));
/// drop(count);
/// assert_eq!(commit(), Ok(()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Nothing that this process says counts any more (R2): end it, or start it anew as a backup.
    #[error("another process has taken over: this one must not answer anybody any more")]
    Deposed,
    /// [`stop`](crate::stop) was called.
    #[error("this program was stopped: nothing is acknowledged any more")]
    Stopped,
    /// The transaction goes on.
    #[error("a guard of what this transaction has changed still lives: drop it before the transaction ends")]
    GuardAlive,
    /// The transaction was undone.
    #[error(
        "a panic passed a write guard of this transaction, which may have changed half of what it meant to: it was undone"
    )]
    Panicked,
    /// The transaction was undone.
    #[error("a transaction of {0} bytes is more than {TRANSACTION_LIMIT} allow: commit more often")]
    TooLarge(usize),
    /// The transaction was undone.
    #[error(transparent)]
    Deadlock(#[from] Deadlock),
    /// The transaction was undone.
    #[error("the replicated function `{function}` failed on the backup: {reason}")]
    CallFailed {
        /// The function.
        function: String,
        /// What the backup says.
        reason: String,
    },
    /// A change could not be taken back: this process's state is not what was committed, and nothing can be
    /// committed any more.
    #[error(
        "a transaction could not be undone ({0}): this process must be ended, and its backup will take over"
    )]
    Broken(String),
}

/// A write that could not begin.
///
/// ```
/// use outlive_replicated::{replicated, WriteError};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// let reading = COUNT.read();
/// // It would wait for itself.
/// assert!(matches!(COUNT.try_write(), Err(WriteError::GuardAlive)));
/// drop(reading);
/// assert!(COUNT.try_write().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// See [`Deadlock`].
    #[error(transparent)]
    Deadlock(#[from] Deadlock),
    /// This thread has a guard of the same object, to write to it or, where it asks for another, to read it.
    #[error("this very thread has a guard of this object: drop that one first")]
    GuardAlive,
    /// What the `Ref` led to was collected.
    #[error(
        "object {0} is gone: only what is reached from a replicated static, or from what it leads to, is kept"
    )]
    Gone(u64),
    /// One thread cannot change two stores at once.
    #[error("this thread has a transaction in another store: commit it first")]
    OtherStore,
}

/// Keeps transactions out while garbage is collected.
#[derive(Default)]
pub(crate) struct World {
    live: AtomicUsize,
    collecting: AtomicBool,
}

impl World {
    fn enter(&self) {
        loop {
            self.live.fetch_add(1, Ordering::SeqCst);
            if !self.collecting.load(Ordering::SeqCst) {
                return;
            }
            self.leave();
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn leave(&self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }

    /// Runs `then` while no transaction lives; `None` if some did for all of `patience`.
    pub fn alone<R>(&self, patience: Duration, then: impl FnOnce() -> R) -> Option<R> {
        struct End<'a>(&'a World);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.collecting.store(false, Ordering::SeqCst);
            }
        }
        if self.collecting.swap(true, Ordering::SeqCst) {
            return None;
        }
        let _end = End(self);
        let since = Instant::now();
        while self.live.load(Ordering::SeqCst) != 0 {
            if since.elapsed() > patience {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Some(then())
    }
}

/// One transaction.
pub(crate) struct Tx {
    id: u64,
    store: Arc<Store>,
    redo: Writer,
    undo: Writer,
    /// Where each change begins in `undo`.
    marks: Vec<usize>,
    owned: Vec<Arc<dyn AnyObject>>,
    /// Objects behind a `Ref` that it made.
    created: Vec<u64>,
    /// What the transaction let go of, and may need again to be undone.
    kept: Vec<Arc<dyn AnyObject>>,
    /// What values were before it wrote to them.
    remembered: Vec<Box<dyn Remembered>>,
    panicked: bool,
    over: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// How much memory a thread keeps for its next transaction.
const SPARED: usize = 64 * 1024;

thread_local! {
    /// What the last transaction of this thread has left: a small one takes no memory.
    static SPARE: Cell<Option<Box<Tx>>> = const { Cell::new(None) };
    static CURRENT: RefCell<Option<Box<Tx>>> = const { RefCell::new(None) };
    static CURRENT_ID: Cell<u64> = const { Cell::new(0) };
    /// The number of this thread's last commit.
    static LAST: Cell<u64> = const { Cell::new(0) };
    static KEPT: RefCell<Vec<Arc<dyn AnyObject>>> = const { RefCell::new(Vec::new()) };
}

/// A value that may have changed since the transaction began to write to it.
pub(crate) trait Remembered: Send {
    /// Whether it has. While a guard of it lives nobody can say, and it counts as changed.
    fn differs(&self) -> bool;
    /// Logs what has; `false` if a guard of it still lives.
    fn log(&self, tx: &mut Tx) -> bool;
}

struct Before<T: Value> {
    object: Arc<Shared<T>>,
    shadow: T::Shadow,
}

impl<T: Value> Remembered for Before<T> {
    fn differs(&self) -> bool {
        // SAFETY: the transaction that remembers it owns it, and is with this thread.
        unsafe { self.object.let_go() };
        // Nobody else may write: only a guard of this very transaction is in the way.
        self.object.body.try_read_recursive().is_none_or(|value| value.differs(&self.shadow))
    }

    fn log(&self, tx: &mut Tx) -> bool {
        // SAFETY: the transaction that remembers it owns it, and is with this thread.
        unsafe { self.object.let_go() };
        let Some(value) = self.object.body.try_read_recursive() else { return false };
        self.object.remembered.store(false, Ordering::Relaxed);
        if value.differs(&self.shadow) {
            tx.change(self.object.id(), |diff| value.diff(&self.shadow, diff));
        }
        true
    }
}

impl Tx {
    fn new(store: &Arc<Store>) -> Box<Self> {
        store.world.enter();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        store.watch.begins(id);
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        if let Some(mut spare) = spare.filter(|spare| Arc::ptr_eq(&spare.store, store)) {
            (spare.id, spare.over) = (id, false);
            return spare;
        }
        Box::new(Self {
            id,
            store: Arc::clone(store),
            redo: Writer::new(Mode::Content, Some(Arc::clone(store))),
            undo: Writer::new(Mode::Ids, None),
            marks: Vec::new(),
            owned: Vec::new(),
            created: Vec::new(),
            kept: Vec::new(),
            remembered: Vec::new(),
            panicked: false,
            over: false,
        })
    }

    /// What has changed of an object that it owns.
    pub(crate) fn change(&mut self, id: u64, change: impl FnOnce(&mut Diff<'_>)) {
        self.record(id, kind::CHANGE, change);
    }

    /// One change. If it writes nothing, there was none.
    #[inline]
    fn record<R>(&mut self, id: u64, kind: u64, change: impl FnOnce(&mut Diff<'_>) -> R) -> R {
        let (redo_start, undo_start) = (self.redo.bytes.len(), self.undo.bytes.len());
        self.redo.bytes.push(0);
        self.redo.number(id * kind::COUNT + kind);
        self.undo.number(id);
        let (redo_head, undo_head) = (self.redo.bytes.len(), self.undo.bytes.len());
        let outcome = change(&mut Diff { redo: &mut self.redo, undo: &mut self.undo });
        if self.redo.bytes.len() == redo_head {
            self.redo.bytes.truncate(redo_start);
        } else {
            let length = self.redo.bytes.len() - redo_start - 1;
            if length < 0x80 {
                self.redo.bytes[redo_start] = length as u8;
            } else {
                // The length takes more than the byte that was left for it.
                let mut front = Writer::new(Mode::Ids, None);
                front.number(length as u64);
                self.redo.bytes.splice(redo_start..=redo_start, front.bytes);
            }
        }
        if self.undo.bytes.len() == undo_head {
            self.undo.bytes.truncate(undo_start);
        } else {
            self.marks.push(undo_start);
        }
        outcome
    }

    /// Logs what has changed of the values that were written to; `false` if a guard of one still lives.
    fn find_changes(&mut self) -> bool {
        let mut remembered = std::mem::take(&mut self.remembered);
        let mut found = true;
        for before in &remembered {
            found &= before.log(self);
        }
        remembered.clear();
        // Its memory, for the next time.
        self.remembered = remembered;
        found
    }

    fn has_changed(&self) -> bool {
        !self.redo.bytes.is_empty() || self.remembered.iter().any(|before| before.differs())
    }

    fn is_written(&self) -> bool {
        self.owned.iter().any(|object| object.is_written())
    }

    /// Whether undoing it would wait for a guard of this thread.
    fn cannot_be_undone(&self) -> bool {
        self.is_written() || reading::reads_one_of(&self.owned)
    }

    /// Its memory is the thread's next transaction's, unless it is much.
    fn recycle(mut self: Box<Self>) {
        self.redo.bytes.clear();
        self.redo.created.clear();
        self.undo.bytes.clear();
        self.marks.clear();
        self.created.clear();
        let kept = std::mem::take(&mut self.kept);
        if self.redo.bytes.capacity() + self.undo.bytes.capacity() + self.marks.capacity() <= SPARED {
            let _ = SPARE.try_with(|spare| spare.set(Some(self)));
        }
        drop(kept);
    }

    fn end(&mut self) {
        self.over = true;
        self.store.watch.ends(self.id);
        for object in self.owned.drain(..) {
            // SAFETY: this transaction owns it until here, and is with this thread.
            unsafe { object.release() };
        }
        self.store.world.leave();
    }

    /// Takes everything back.
    fn roll_back(&mut self) -> Result<(), CommitError> {
        // Whatever it let go of is found by its id while it is kept.
        self.kept.extend(take_kept());
        // A guard that was leaked, or lives on at a thread's end: what it writes cannot be taken back.
        let leaked = || CommitError::Broken("a write guard outlives its transaction".into());
        if self.is_written() || !self.find_changes() {
            self.end();
            self.store.set_role(Role::Deposed);
            return Err(leaked());
        }
        // What is let go of on the way back may be needed further back.
        let outer = CURRENT_ID.try_with(|id| id.replace(self.id)).unwrap_or(0);
        let undo = std::mem::take(&mut self.undo.bytes);
        let mut end = undo.len();
        let mut outcome = Ok(());
        while let Some(start) = self.marks.pop() {
            let mut from = Reader::new(&undo[start..end], &self.store, None);
            let undone = from.number().and_then(|id| {
                let object = self.store.object(id).ok_or(crate::WireError::UnknownObject(id))?;
                object.apply(&mut from)?;
                from.finish()
            });
            if let Err(error) = undone {
                outcome = Err(CommitError::Broken(error.to_string()));
            }
            end = start;
        }
        let _ = CURRENT_ID.try_with(|id| id.set(outer));
        for object in self.redo.created.drain(..) {
            self.store.unregister(object.id());
            object.set_id(0);
        }
        for id in self.created.drain(..) {
            self.store.free(id);
        }
        self.end();
        self.kept.clear();
        drop(take_kept());
        if outcome.is_err() {
            self.store.set_role(Role::Deposed);
        }
        outcome
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.roll_back()
        {
            tracing::error!(%error, "a transaction that was dropped could not be undone");
        }
    }
}

fn take_kept() -> Vec<Arc<dyn AnyObject>> {
    KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default())
        .unwrap_or_default()
}

/// A collection that is part of a store is let go of: it lives on until the transaction ends.
pub(crate) fn keep(object: Arc<dyn AnyObject>) {
    if CURRENT_ID.try_with(Cell::get).unwrap_or(0) != 0 {
        let _ = KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| kept.push(object)));
    }
}

/// Runs `apply`, and only then drops what it let go of: within one transaction, a collection that is taken out of one
/// place may change before it is put into another.
pub(crate) fn keeping<R>(apply: impl FnOnce() -> R) -> R {
    /// No transaction has this number.
    const APPLYING: u64 = u64::MAX >> 1;
    struct End {
        outer: u64,
        outer_kept: Vec<Arc<dyn AnyObject>>,
    }
    impl Drop for End {
        fn drop(&mut self) {
            let _ = CURRENT_ID.try_with(|id| id.set(self.outer));
            let ours = take_kept();
            let outer = std::mem::take(&mut self.outer_kept);
            let _ = KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| *kept = outer));
            drop(ours);
        }
    }
    let _end = End { outer_kept: take_kept(), outer: CURRENT_ID.replace(APPLYING) };
    apply()
}

/// Whether the transaction of this thread is the owner.
#[inline]
pub(crate) fn is_current(owner: &Owner) -> bool {
    let current = CURRENT_ID.get();
    current != 0 && owner.is(current)
}

fn take_current() -> Option<Box<Tx>> {
    CURRENT_ID.try_with(|id| id.set(0)).ok()?;
    CURRENT.try_with(|current| current.borrow_mut().take()).ok()?
}

fn put_current(tx: Option<Box<Tx>>) {
    let _ = CURRENT_ID.try_with(|id| id.set(tx.as_ref().map_or(0, |tx| tx.id)));
    let _ = CURRENT.try_with(|current| *current.borrow_mut() = tx);
}

/// Runs with this thread's transaction in `store`, which begins if there is none.
fn with<R>(store: &Arc<Store>, then: impl FnOnce(&mut Tx) -> R) -> Result<R, WriteError> {
    CURRENT.with(|current| {
        let mut current = current.borrow_mut();
        let tx = match &mut *current {
            Some(tx) => tx,
            none => {
                let tx = Tx::new(store);
                CURRENT_ID.set(tx.id);
                none.insert(tx)
            }
        };
        if !Arc::ptr_eq(&tx.store, store) {
            return Err(WriteError::OtherStore);
        }
        Ok(then(tx))
    })
}

/// Makes the object this transaction's own, waiting for another's to end. `false`: it is in no store.
#[inline]
pub(crate) fn own<B: Body>(object: &Arc<Shared<B>>) -> Result<bool, WriteError> {
    // Only what is in a store has an owner.
    if is_current(&object.owner) {
        return Ok(true);
    }
    own_slowly(object)
}

#[cold]
#[inline(never)]
fn own_slowly<B: Body>(object: &Arc<Shared<B>>) -> Result<bool, WriteError> {
    let Some(store) = object.store() else { return Ok(false) };
    store.wait_to_write();
    let id = with(store, |tx| tx.id)?;
    object.owner.acquire(id)?;
    with(store, |tx| tx.owned.push(Arc::clone(object) as _))?;
    store.watch.owns(id, object.id());
    Ok(true)
}

/// Logs a change of an object that this transaction [owns](own).
#[inline]
pub(crate) fn record<B: Body, R>(object: &Shared<B>, change: impl FnOnce(Option<&mut Diff<'_>>) -> R) -> R {
    let Some(store) = object.store() else { return change(None) };
    // At a thread's end a guard may outlive its transaction, which has said so: this change is no part of it.
    if CURRENT.try_with(|_| ()).is_err() {
        return change(None);
    }
    CURRENT.with(|current| match &mut *current.borrow_mut() {
        Some(tx) if Arc::ptr_eq(&tx.store, store) => {
            tx.record(object.id(), kind::CHANGE, |diff| change(Some(diff)))
        }
        // Not owned: `own` says so before.
        _ => change(None),
    })
}

/// Logs a record that is not about an object's content, with the ids of new objects in it.
pub(crate) fn record_other(
    store: &Arc<Store>,
    id: u64,
    kind: u64,
    created: bool,
    write: impl FnOnce(&mut Writer),
) -> Result<(), WriteError> {
    store.wait_to_write();
    with(store, |tx| {
        if created {
            tx.created.push(id);
        }
        tx.record(id, kind, |diff| write(diff.redo));
    })
}

/// Objects that this thread's transaction has made, before they are in a value of it.
pub(crate) fn created(store: &Arc<Store>, objects: Vec<Arc<dyn AnyObject>>) -> Result<(), WriteError> {
    store.wait_to_write();
    with(store, |tx| tx.redo.created.extend(objects))
}

/// What a value is when this transaction, which owns it, begins to write to it.
#[cold]
#[inline(never)]
pub(crate) fn remember<T: Value>(object: &Arc<Shared<T>>, shadow: T::Shadow) -> Result<(), WriteError> {
    remember_as(object, Box::new(Before { object: Arc::clone(object), shadow }))
}

/// The same, by something else that finds what has changed of it.
pub(crate) fn remember_as<B: Body>(
    object: &Arc<Shared<B>>,
    before: Box<dyn Remembered>,
) -> Result<(), WriteError> {
    let Some(store) = object.store() else { return Ok(()) };
    object.remembered.store(true, Ordering::Relaxed);
    with(store, |tx| tx.remembered.push(before))
}

/// A panic passed a write guard of this thread's transaction.
#[cold]
pub(crate) fn panic_passed() {
    let _ = CURRENT.try_with(|current| {
        if let Some(tx) = &mut *current.borrow_mut() {
            tx.panicked = true;
        }
    });
}

/// What this thread has to do before it may tell anybody anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    Nothing,
    Uncommitted,
    Unacknowledged(u64),
}

pub(crate) fn open() -> Open {
    let changed = CURRENT.try_with(|current| {
        current.try_borrow().is_ok_and(|tx| tx.as_ref().is_some_and(|tx| tx.has_changed() || tx.is_written()))
    });
    if changed.unwrap_or(false) {
        return Open::Uncommitted;
    }
    let last = LAST.try_with(Cell::get).unwrap_or(0);
    match Store::global().sink() {
        Some(sink) if !sink.is_acknowledged(last) => Open::Unacknowledged(last),
        _ => Open::Nothing,
    }
}

/// Takes `lock`, which waits for it no longer than it is told, at a moment when no other transaction has changed the object
/// and not committed.
#[inline]
pub(crate) fn read_at_rest<B: Body, G>(object: &Shared<B>, lock: impl Fn(Duration) -> Option<G>) -> G {
    let is_ours = is_current(&object.owner);
    if is_ours {
        if object.hold.is_written() {
            give_up(WriteError::GuardAlive);
        }
        // SAFETY: it is owned by the transaction that is with this thread.
        unsafe { object.let_go() };
    }
    loop {
        // Before the lock as well: its owner keeps that until it commits.
        if is_ours || object.owner.is_free() {
            // Not for ever: whoever is to own it meanwhile may wait for what this thread owns or reads.
            if let Some(guard) = lock(LOOK_AGAIN)
                && (is_ours || object.owner.is_free())
            {
                return guard;
            }
        } else if let Err(deadlock) = object.owner.wait(waiting_id()) {
            give_up(deadlock.into());
        }
    }
}

/// The number by which this thread waits. If it has no transaction it owns nothing, and is given one.
pub(crate) fn waiting_id() -> u64 {
    match CURRENT_ID.get() {
        0 => NEXT.fetch_add(1, Ordering::Relaxed),
        current => current,
    }
}

/// Ends what the thread does with the transaction: [`transaction`] catches it, and tries again where that helps.
pub(crate) fn give_up(error: WriteError) -> ! {
    match error {
        WriteError::Deadlock(_) => resume_unwind(Box::new(error)),
        other => panic!("{other}"),
    }
}

/// What a commit left behind: that it may be waited for.
///
/// ```
/// use outlive_replicated::{commit_async, replicated, Commit};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// *COUNT.write() += 1;
/// let commit: Commit = commit_async()?;
/// // Without a backup there is nothing to wait for.
/// assert_eq!(commit.try_wait(), Some(Ok(())));
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
#[must_use = "nothing may be answered before the commit is acknowledged: await it, or `wait` for it"]
#[derive(Clone)]
pub struct Commit {
    sink: Option<Arc<dyn Sink>>,
    number: u64,
}

impl Commit {
    /// Its place in the order of all commits; 0 before `start`.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Of a number that [`number`](Self::number) gave, in a place that could not keep the commit itself.
    pub fn of_number(number: u64) -> Self {
        Self { sink: Store::global().sink().map(Arc::clone), number }
    }

    /// Whether the backup holds it, without waiting; `None` if that is not known yet.
    pub fn try_wait(&self) -> Option<Result<(), CommitError>> {
        let Some(sink) = &self.sink else { return Some(Ok(())) };
        sink.is_settled(self.number).then(|| sink.wait(self.number))
    }

    /// Waits until the backup holds it.
    pub fn wait(&self) -> Result<(), CommitError> {
        self.sink.as_ref().map_or(Ok(()), |sink| sink.wait(self.number))
    }
}

impl Future for Commit {
    type Output = Result<(), CommitError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.sink {
            None => Poll::Ready(Ok(())),
            Some(sink) => sink.poll(self.number, context.waker()),
        }
    }
}

/// Ends this thread's transaction, and returns when the backup holds it. With nothing changed it waits for all that
/// was committed so far, by whomever, and for the backup's word that it has not taken over: what was read may be
/// answered with after it.
///
/// ```
/// use outlive_replicated::{commit, replicated};
///
/// #[replicated]
/// static STOCK: u64 = 3;
///
/// *STOCK.write() -= 1;
/// commit()?;
/// // Here it may be answered.
/// assert_eq!(*STOCK.read(), 2);
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn commit() -> Result<(), CommitError> {
    commit_async()?.wait()
}

/// Ends this thread's transaction; what it returns says when the backup holds it. Objects are free for others at once:
/// their commits come after this one.
///
/// ```
/// use outlive_replicated::{commit_async, replicated, List};
///
/// #[replicated]
/// static LOG: List<u64> = List::new();
///
/// let mut on_their_way = Vec::new();
/// for number in 0..3 {
///     LOG.write().push(number);
///     on_their_way.push(commit_async()?);
/// }
/// // Async code awaits it.
/// for commit in on_their_way {
///     commit.wait()?;
/// }
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn commit_async() -> Result<Commit, CommitError> {
    let Some(mut tx) = take_current() else {
        let store = Store::global();
        // What a backup holds is not to be answered with.
        store.wait_to_write();
        return commit_of(store, None);
    };
    if tx.is_written() {
        put_current(Some(tx));
        return Err(CommitError::GuardAlive);
    }
    match submit(&mut tx) {
        Ok(number) => {
            tx.end();
            let store = Arc::clone(&tx.store);
            tx.recycle();
            drop(take_kept());
            commit_of(&store, number)
        }
        // It says so again when it is committed again.
        Err(_) if tx.cannot_be_undone() => {
            put_current(Some(tx));
            Err(CommitError::GuardAlive)
        }
        Err(error) => {
            tx.roll_back()?;
            Err(error)
        }
    }
}

fn submit(tx: &mut Tx) -> Result<Option<u64>, CommitError> {
    if tx.panicked {
        return Err(CommitError::Panicked);
    }
    if !tx.find_changes() {
        return Err(CommitError::Broken("a write guard lives that is not known".into()));
    }
    if tx.redo.bytes.len() > TRANSACTION_LIMIT {
        return Err(CommitError::TooLarge(tx.redo.bytes.len()));
    }
    if tx.store.role() == Role::Primary
        && let Some(sink) = tx.store.sink()
    {
        let calls: Vec<_> = tx.redo.created.iter().filter_map(crate::call::to_ask).collect();
        if !calls.is_empty() {
            sink.call(&calls)?;
        }
    }
    match (tx.store.role(), tx.store.sink()) {
        (Role::Deposed, None) => Err(CommitError::Deposed),
        // The sink says why not, if it does not take anything any more.
        (Role::Deposed, Some(sink)) => sink.submit(&tx.redo.bytes).and(Err(CommitError::Deposed)),
        (Role::Primary, Some(sink)) if !tx.redo.bytes.is_empty() => sink.submit(&tx.redo.bytes).map(Some),
        _ => Ok(None),
    }
}

fn commit_of(store: &Arc<Store>, number: Option<u64>) -> Result<Commit, CommitError> {
    let sink = store.sink().map(Arc::clone);
    let number = match (number, &sink) {
        (Some(number), _) => number,
        (None, Some(sink)) => sink.barrier()?,
        (None, None) if store.role() == Role::Deposed => return Err(CommitError::Deposed),
        (None, None) => 0,
    };
    LAST.set(number);
    Ok(Commit { sink, number })
}

/// Whether this thread has changed something and not committed.
fn is_begun() -> bool {
    CURRENT.with_borrow(|tx| {
        tx.as_ref().is_some_and(|tx| tx.has_changed() || tx.is_written() || !tx.redo.created.is_empty())
    })
}

/// Has this thread's transaction end after whatever the thread keeps in variables of its own that it uses for the first time
/// after this: guards, which are part of it.
pub(crate) fn ready_thread() {
    let _ = CURRENT.try_with(|_| ());
}

/// Undoes what this thread changed since its last commit.
///
/// ```
/// use outlive_replicated::{replicated, rollback};
///
/// #[replicated]
/// static STOCK: u64 = 3;
///
/// *STOCK.write() = 0;
/// rollback()?;
/// assert_eq!(*STOCK.read(), 3);
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn rollback() -> Result<(), CommitError> {
    let Some(mut tx) = take_current() else { return Ok(()) };
    if tx.cannot_be_undone() {
        put_current(Some(tx));
        return Err(CommitError::GuardAlive);
    }
    tx.roll_back()
}

/// Runs `work` as one transaction: committed if it returns `Ok`, undone if it returns `Err` or panics, and run again
/// if it and another wait for each other. What was changed and not committed before is part of it: as that cannot be done
/// again, [`CommitError::Deadlock`] says that all of it was undone.
///
/// ```
/// use outlive_replicated::{replicated, transaction, TransactionError};
///
/// #[replicated]
/// static BALANCE: u64 = 10;
///
/// let spend = |amount: u64| {
///     transaction(|| {
///         let mut balance = BALANCE.write();
///         *balance = balance.checked_sub(amount).ok_or("not enough")?;
///         Ok(*balance)
///     })
/// };
/// assert_eq!(spend(4), Ok(6));
/// assert_eq!(spend(7), Err(TransactionError::Work("not enough")));
/// assert_eq!(*BALANCE.read(), 6);
/// ```
pub fn transaction<T, E>(mut work: impl FnMut() -> Result<T, E>) -> Result<T, TransactionError<E>> {
    let mut pause = Duration::from_micros(50);
    let was_begun = is_begun();
    loop {
        match catch_unwind(AssertUnwindSafe(&mut work)) {
            Ok(Ok(value)) => {
                commit()?;
                return Ok(value);
            }
            Ok(Err(error)) => {
                rollback()?;
                return Err(TransactionError::Work(error));
            }
            Err(panic) => {
                rollback()?;
                if !matches!(panic.downcast_ref(), Some(WriteError::Deadlock(_))) {
                    resume_unwind(panic);
                }
                if was_begun {
                    return Err(CommitError::Deadlock(Deadlock).into());
                }
            }
        }
        // The other one has what we wanted; it is given the time to end.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Why a [`transaction`] did not take place.
///
/// ```
/// use outlive_replicated::{transaction, TransactionError};
///
/// let refused: Result<(), _> = transaction(|| Err("not enough"));
/// assert_eq!(refused, Err(TransactionError::Work("not enough")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError<E> {
    /// What the work itself returned; its changes were undone.
    #[error("the work of a transaction failed")]
    Work(E),
    /// It was not acknowledged.
    #[error(transparent)]
    Commit(#[from] CommitError),
}
