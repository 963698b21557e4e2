//! The primary's side of the link: commits on their way to the backup.
//!
//! No thread stands between a commit and the network. Whoever commits sends what is waiting, if nobody sends, and reads
//! acknowledgements, if nobody reads; all others sleep until theirs has come. What is committed while two batches are on
//! their way leaves as one batch with the next acknowledgement, so that batches grow with the load and a lone commit
//! waits for nothing. One thread in the background does for those who only await a future, and gives signs of life.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use outlive_cluster::Holder;
use outlive_stream::compact::{CompactReader, CompactWriter};
use outlive_stream::connection::{Closer, Reader, Writer};
use outlive_stream::frame::{Frame, FrameError};
use outlive_stream::hello::Stream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{info, warn};

use crate::arbitration::Arbiter;
use crate::call::Report;
use crate::config::Config;
use crate::message::{ACK, BEAT, CALLED, DATA, Item, PORTION, START, append, encoded, only_number};
use crate::protection::{Ask, Phase, Protection};
use crate::store::{Role, Sink, Store};
use crate::testing_point::{Step, point};
use crate::transaction::CommitError;
use crate::wire::Short;

/// Batches on their way at once: while the backup applies one the next travels. More would only make them smaller.
const BATCHES: usize = 2;

/// How many failing calls are remembered by name.
const FAILING: usize = 64;

/// A connection to one backup.
pub(crate) struct Link {
    number: u64,
    closer: Closer,
    writer: Mutex<CompactWriter<Writer>>,
    reader: Mutex<CompactReader<Reader>>,
}

/// What left together.
struct Batch {
    last: u64,
    bytes: usize,
    at: Instant,
}

enum Waiter {
    Thread(Thread),
    Task(Waker),
}

impl Waiter {
    fn wake(self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            Self::Task(waker) => waker.wake(),
        }
    }
}

/// What is on its way, for whoever inspects.
pub(crate) struct Flow {
    /// Bytes that have left.
    pub sent: u64,
    /// Bytes that are not confirmed.
    pub unacknowledged: usize,
    /// For how long the oldest batch has been on its way.
    pub oldest: Duration,
}

/// What a backup has applied, for whoever inspects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Applied {
    /// The last commit.
    pub commit: u64,
    /// Bytes that have come.
    pub bytes: u64,
}

/// Everything about being the primary.
pub(crate) struct State {
    /// None before this process is the primary.
    pub protection: Option<Protection>,
    pub me: Holder,
    pub backup: Option<Holder>,
    /// What is to be asked of the seed nodes.
    pub ask: Option<Ask>,
    /// Why nothing is acknowledged any more.
    pub over: Option<CommitError>,
    /// The place is being handed over: commits wait for how that ends.
    pub moving: bool,
    link: Option<Arc<Link>>,
    links: u64,
    /// Items that have not left yet, and how many bytes they and those on their way are.
    outgoing: Vec<u8>,
    unacknowledged: usize,
    /// The last commit of the batch before.
    batched: u64,
    on_the_way: VecDeque<Batch>,
    waiters: BTreeMap<(u64, u64), Waiter>,
    /// How the calls went that the backup was asked for.
    called: BTreeMap<u64, Report>,
    /// Calls that fail on the backup, and what they say, by their handles.
    pub failing: BTreeMap<u64, String>,
    waits: u64,
    /// Bytes of items that have left, over all links.
    shipped: u64,
    tasks: usize,
    reading: bool,
    writing: bool,
    heard: Instant,
    read: Instant,
    sent: Instant,
}

impl State {
    fn released(&self) -> u64 {
        self.protection.as_ref().map_or(0, Protection::released)
    }

    fn last(&self) -> u64 {
        self.protection.as_ref().map_or(0, Protection::last)
    }

    /// How the commit of this number ended, if it did.
    fn outcome(&self, number: u64) -> Option<Result<(), CommitError>> {
        match &self.over {
            // What was acknowledged before the end stays so.
            _ if number <= self.released() => Some(Ok(())),
            Some(over) => Some(Err(over.clone())),
            None => None,
        }
    }

    fn may_send(&self) -> bool {
        !self.writing && !self.outgoing.is_empty() && self.on_the_way.len() < BATCHES
    }

    fn wait(&mut self, number: u64, waiter: Waiter) -> (u64, u64) {
        self.waits += 1;
        self.tasks += usize::from(matches!(waiter, Waiter::Task(_)));
        self.waiters.insert((number, self.waits), waiter);
        (number, self.waits)
    }

    fn take_waiter(&mut self, key: (u64, u64)) -> Option<Waiter> {
        let waiter = self.waiters.remove(&key)?;
        self.tasks -= usize::from(matches!(waiter, Waiter::Task(_)));
        Some(waiter)
    }

    /// What has been sent, and what of it is not confirmed.
    pub fn flow(&self, now: Instant) -> Flow {
        let oldest = self.on_the_way.front().map(|batch| now.saturating_duration_since(batch.at));
        let unacknowledged = self.unacknowledged;
        Flow { sent: self.shipped, unacknowledged, oldest: oldest.unwrap_or_default() }
    }

    /// Wakes all whose commit has ended.
    pub fn wake(&mut self) {
        let released = if self.over.is_some() { u64::MAX } else { self.released() };
        while let Some(key) = self.waiters.keys().next().copied().filter(|key| key.0 <= released) {
            if let Some(waiter) = self.take_waiter(key) {
                waiter.wake();
            }
        }
    }

    /// The backup says how a call went.
    fn reported(&mut self, report: Report) {
        if report.asked {
            self.called.insert(report.id, report);
            return self.wake_all();
        }
        match report.error {
            None => drop(self.failing.remove(&report.id)),
            Some(reason) => {
                warn!(function = report.function, reason, "a call fails on the backup, and is tried again");
                // As many as calls that lie in the state: a backup is no stranger, and its word no measure of memory.
                if self.failing.len() < FAILING {
                    self.failing.insert(report.id, format!("{}: {reason}", report.function));
                }
            }
        }
    }

    /// Wakes all, to look for themselves: there is another link, or none.
    fn wake_all(&mut self) {
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            waiter.wake();
        }
        self.tasks = 0;
    }
}

/// A process that may be, or is, the primary.
pub(crate) struct Core {
    pub store: Arc<Store>,
    pub config: Config,
    pub arbiter: Arbiter,
    state: Mutex<State>,
    /// As a backup.
    applied_commit: AtomicU64,
    applied_bytes: AtomicU64,
    /// There is something to ask of the seed nodes, or nothing will be any more.
    pub asked: Condvar,
    /// There is something that no committing thread does.
    tend: Condvar,
}

impl Core {
    pub fn new(store: Arc<Store>, config: Config, arbiter: Arbiter, me: Holder) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            protection: None,
            me,
            backup: None,
            ask: None,
            over: None,
            moving: false,
            link: None,
            links: 0,
            outgoing: Vec::new(),
            unacknowledged: 0,
            batched: 0,
            on_the_way: VecDeque::new(),
            waiters: BTreeMap::new(),
            called: BTreeMap::new(),
            failing: BTreeMap::new(),
            shipped: 0,
            waits: 0,
            tasks: 0,
            reading: false,
            writing: false,
            heard: now,
            read: now,
            sent: now,
        };
        let (asked, tend) = (Condvar::new(), Condvar::new());
        let (applied_commit, applied_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let state = Mutex::new(state);
        Arc::new(Self { store, config, arbiter, state, applied_commit, applied_bytes, asked, tend })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// What this process has applied as a backup.
    pub fn applied(&self) -> Applied {
        let commit = self.applied_commit.load(Ordering::Relaxed);
        Applied { commit, bytes: self.applied_bytes.load(Ordering::Relaxed) }
    }

    /// Notes what this process has applied as a backup.
    pub fn note_applied(&self, commit: u64, bytes: usize) {
        self.applied_commit.store(commit, Ordering::Relaxed);
        self.applied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// For tests: the network between both sides fails.
    #[cfg(test)]
    pub fn cut(&self) {
        if let Some(link) = &self.state.lock().link {
            link.closer.shutdown();
        }
    }

    /// Nothing is acknowledged any more, for this reason. The link stays: who hears that it ends asks for our place.
    pub fn silence(&self, state: &mut State, why: CommitError) {
        if let Some(protection) = &mut state.protection {
            protection.depose();
        }
        state.over.get_or_insert(why);
        state.ask = None;
        self.store.set_role(Role::Deposed);
        state.wake_all();
        self.asked.notify_all();
        self.tend.notify_all();
    }

    /// Likewise, and for good.
    pub fn end(&self, state: &mut State, why: CommitError) {
        self.silence(state, why);
        drop_link(state);
    }

    /// Begins to send everything to a backup. The number of its link, or why not.
    pub fn join(&self, stream: Stream, backup: Holder) -> Result<u64, String> {
        let Stream { mut writer, mut reader, closer, .. } = stream;
        let mut state = self.state.lock();
        if state.over.is_some() {
            return Err("this process has lost its place".into());
        }
        let last = state.last();
        match &mut state.protection {
            Some(protection) if protection.phase() == Phase::Exposed => {}
            Some(_) => return Err("it has a backup already".into()),
            None => return Err("this process is not the primary".into()),
        }
        // One small frame on a new connection, which is not waited for.
        writer.send(START, &[&encoded(last)]).map_err(|error| error.to_string())?;
        reader.get_mut().set_timeout(Some(self.config.beat())).map_err(|error| error.to_string())?;
        if let Some(protection) = &mut state.protection {
            protection.join();
        }
        state.links += 1;
        let number = state.links;
        let (writer, reader) = (Mutex::new(writer.compact()), Mutex::new(reader.compact()));
        let link = Link { number, closer, writer, reader };
        state.batched = last;
        let now = Instant::now();
        (state.heard, state.read, state.sent) = (now, now, now);
        state.link = Some(Arc::new(link));
        state.backup = Some(backup);
        Ok(number)
    }

    /// One object's image, behind all that was committed. Waits while too much is on its way.
    pub fn image(&self, link: u64, records: &[u8]) {
        let mut state = self.state.lock();
        self.wait_for_room(&mut state, records.len());
        if state.link.as_ref().is_some_and(|current| current.number == link) {
            self.put(&mut state, Item::Image, records);
            self.send_if_free(&mut state);
        }
    }

    /// All images were given. The commit made here is acknowledged only by a backup that has all of them.
    pub fn plug(&self, link: u64) {
        let mut state = self.state.lock();
        if state.link.as_ref().is_some_and(|current| current.number == link) {
            self.put(&mut state, Item::Image, &[]);
            if let Some(protection) = &mut state.protection {
                protection.submit();
                protection.plug();
            }
            self.put(&mut state, Item::Commit, &[]);
            self.send_if_free(&mut state);
            self.tend.notify_one();
        }
    }

    fn put(&self, state: &mut State, item: Item, records: &[u8]) {
        let before = state.outgoing.len();
        append(&mut state.outgoing, item, records);
        state.unacknowledged += state.outgoing.len() - before;
    }

    fn wait_for_room(&self, state: &mut MutexGuard<'_, State>, length: usize) {
        while state.link.is_some()
            && state.unacknowledged > 0
            && state.unacknowledged + length > self.config.unacknowledged
        {
            if !self.step(state) {
                let number = state.on_the_way.front().map_or(0, |batch| batch.last);
                self.sleep(state, number);
            }
        }
    }

    fn send_if_free(&self, state: &mut MutexGuard<'_, State>) {
        while state.may_send()
            && let Some(link) = state.link.clone()
        {
            self.send(state, &link);
        }
        if !state.reading && (state.tasks > 0 || !state.outgoing.is_empty()) {
            self.tend.notify_one();
        }
    }

    /// Does what is to be done on the link; `false` if somebody else is doing all of it.
    fn step(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let Some(link) = state.link.clone() else { return false };
        if state.may_send() {
            self.send(state, &link);
        } else if !state.reading {
            self.read(state, &link);
        } else {
            return false;
        }
        true
    }

    fn send(&self, state: &mut MutexGuard<'_, State>, link: &Link) {
        state.writing = true;
        let bytes = std::mem::take(&mut state.outgoing);
        let (last, now) = (state.last(), Instant::now());
        let count = last - state.batched;
        state.batched = last;
        state.shipped += bytes.len() as u64;
        state.on_the_way.push_back(Batch { last, bytes: bytes.len(), at: now });
        state.sent = now;
        let outcome = MutexGuard::unlocked(state, || {
            let mut writer = link.writer.lock();
            let mut portions = bytes.chunks(PORTION).peekable();
            while let Some(portion) = portions.next() {
                let ended = if portions.peek().is_none() { count + 1 } else { 0 };
                writer.send(DATA, &[Short::of(ended).bytes(), portion])?;
            }
            Ok::<(), outlive_stream::frame::FrameSendError>(())
        });
        state.writing = false;
        if let Err(error) = outcome {
            self.lose(state, link.number, &error.to_string());
        } else if state.outgoing.capacity() == 0 && bytes.capacity() <= PORTION {
            // The next batch takes this one's memory.
            state.outgoing = bytes;
            state.outgoing.clear();
        }
    }

    /// Waits for one frame of the backup, at most for the time between two signs of life.
    fn read(&self, state: &mut MutexGuard<'_, State>, link: &Link) {
        state.reading = true;
        let outcome = MutexGuard::unlocked(state, || link.reader.lock().next());
        state.reading = false;
        if state.link.as_ref().is_none_or(|current| current.number != link.number) {
            return;
        }
        let now = Instant::now();
        state.read = now;
        match outcome {
            Ok(Frame { kind: ACK, payload }) => {
                state.heard = now;
                match only_number(&payload) {
                    Some(number) => self.acknowledged(state, link, number),
                    None => self.lose(state, link.number, "it acknowledged what is no number"),
                }
            }
            Ok(Frame { kind: BEAT, .. }) => state.heard = now,
            Ok(Frame { kind: CALLED, payload }) => match postcard::from_bytes::<Report>(&payload) {
                Ok(report) => {
                    state.heard = now;
                    state.reported(report);
                }
                Err(_) => self.lose(state, link.number, "it said what is no report of a call"),
            },
            Ok(_) => self.lose(state, link.number, "it sent what a backup does not send"),
            Err(FrameError::TimedOut(_)) if now - state.heard <= self.config.detection => {}
            Err(FrameError::TimedOut(_)) => {
                let silence = format!("no sign of life for {} ms", (now - state.heard).as_millis());
                self.lose(state, link.number, &silence);
            }
            Err(error) => self.lose(state, link.number, &error.to_string()),
        }
    }

    fn acknowledged(&self, state: &mut MutexGuard<'_, State>, link: &Link, number: u64) {
        match state.on_the_way.pop_front() {
            Some(batch) if batch.last == number => state.unacknowledged -= batch.bytes,
            _ => {
                let other = format!("it acknowledged commit {number}, where no batch ended");
                return self.lose(state, link.number, &other);
            }
        }
        let Some(protection) = &mut state.protection else { return };
        match protection.holds(number) {
            Err(number) => {
                let more = format!("it acknowledged commit {number}, which does not exist");
                return self.lose(state, link.number, &more);
            }
            Ok(None) => {}
            Ok(Some(ask)) => {
                state.ask = Some(ask);
                self.asked.notify_all();
            }
        }
        // What has waited leaves before anybody is woken.
        if state.may_send() {
            self.send(state, link);
        }
        state.wake();
    }

    /// Ends the link of this number, if it is the present one.
    pub fn lose(&self, state: &mut State, link: u64, why: &str) {
        if state.link.as_ref().is_none_or(|current| current.number != link) {
            return;
        }
        warn!(why, backup = state.backup.as_ref().map(tracing::field::display), "the backup is lost");
        drop_link(state);
        state.backup = None;
        if let Some(ask) = state.protection.as_mut().and_then(Protection::lose) {
            state.ask = Some(ask);
            self.asked.notify_all();
        }
        // Some wait for room only.
        state.wake_all();
    }

    /// Sleeps until woken for this commit. Not for ever: whoever reads for the others may have ended without a word.
    fn sleep(&self, state: &mut MutexGuard<'_, State>, number: u64) {
        let key = state.wait(number, Waiter::Thread(thread::current()));
        MutexGuard::unlocked(state, || thread::park_timeout(self.config.beat()));
        state.take_waiter(key);
    }

    /// Whoever leaves and has read for others makes another do so.
    fn hand_over(&self, state: &mut State) {
        if state.reading || state.link.is_none() {
            return;
        }
        match state.waiters.values().next() {
            Some(Waiter::Thread(thread)) => thread.unpark(),
            Some(Waiter::Task(_)) => {
                self.tend.notify_one();
            }
            None if !state.outgoing.is_empty() => {
                self.tend.notify_one();
            }
            None => {}
        }
    }

    /// Takes no commits any more, and returns when all that were taken are acknowledged: who they are to be handed over to,
    /// and in which generation.
    pub fn drain(&self) -> Result<(Holder, u64), String> {
        let mut state = self.state.lock();
        let (generation, last) = match (&state.protection, &state.over) {
            (_, Some(over)) => return Err(over.to_string()),
            (Some(protection), None) if protection.phase() == Phase::Protected && !state.moving => {
                (protection.generation(), protection.last())
            }
            _ => return Err("there is no backup that could take over".into()),
        };
        state.moving = true;
        drop(state);
        let outcome = self.wait(last);
        let mut state = self.state.lock();
        match (outcome, state.backup.clone()) {
            (Ok(()), Some(backup)) => Ok((backup, generation)),
            (outcome, _) => {
                self.stay(&mut state);
                let lost = || "the backup was lost".to_owned();
                Err(outcome.err().map_or_else(lost, |error| error.to_string()))
            }
        }
    }

    /// Takes commits again.
    pub fn stay(&self, state: &mut State) {
        state.moving = false;
        state.wake_all();
    }

    /// For ever: gives signs of life, reads for those who do not, and lets go of a backup that is too slow.
    pub fn tend(&self) {
        let beat = self.config.beat();
        let mut state = self.state.lock();
        while state.over.is_none() {
            self.tend.wait_for(&mut state, beat);
            let Some(link) = state.link.clone() else { continue };
            let now = Instant::now();
            if now.saturating_duration_since(state.sent) >= beat && !state.writing {
                self.beat(&mut state, &link);
            }
            self.check_patience(&mut state, now);
            let needed = |state: &State| state.tasks > 0 || !state.outgoing.is_empty();
            while state.link.is_some() && !state.reading && needed(&state) {
                self.step(&mut state);
                if state.sent.elapsed() >= beat && !state.writing {
                    self.beat(&mut state, &link);
                }
            }
            // Also while nobody commits, what the backup says is taken from the socket.
            if !state.reading && state.read.elapsed() >= beat {
                self.read(&mut state, &link);
                self.hand_over(&mut state);
            }
        }
    }

    fn beat(&self, state: &mut MutexGuard<'_, State>, link: &Link) {
        (state.writing, state.sent) = (true, Instant::now());
        let outcome = MutexGuard::unlocked(state, || link.writer.lock().send(BEAT, &[]));
        state.writing = false;
        if let Err(error) = outcome {
            self.lose(state, link.number, &error.to_string());
        }
        self.send_if_free(state);
    }

    fn check_patience(&self, state: &mut State, now: Instant) {
        let Some(patience) = self.config.patience else { return };
        let (Some(batch), Some(link)) = (state.on_the_way.front(), &state.link) else { return };
        let waited = now.saturating_duration_since(batch.at);
        if waited > patience {
            let (number, why) =
                (link.number, format!("it has not acknowledged for {} ms", waited.as_millis()));
            self.lose(state, number, &why);
        }
    }

    /// From now on this process is the primary.
    pub fn lead(&self, me: Holder, protection: Protection) {
        let mut state = self.state.lock();
        info!(generation = protection.generation(), after = protection.last(), "this process is the primary");
        (state.me, state.protection) = (me, Some(protection));
    }

    fn submit_records(&self, records: &[u8]) -> Result<u64, CommitError> {
        let mut state = self.state.lock();
        self.wait_for_room(&mut state, records.len());
        while state.moving && state.over.is_none() {
            let next = state.last() + 1;
            self.sleep(&mut state, next);
        }
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        // Nobody commits before this process is the primary.
        let Some(number) = state.protection.as_mut().map(Protection::submit) else { return Ok(0) };
        point(Step::Numbered, number);
        if state.link.is_some() {
            self.put(&mut state, Item::Commit, records);
            self.send_if_free(&mut state);
        }
        point(Step::Sent, number);
        Ok(number)
    }
}

fn drop_link(state: &mut State) {
    if let Some(link) = state.link.take() {
        link.closer.shutdown();
    }
    state.outgoing = Vec::new();
    state.on_the_way.clear();
    state.called.clear();
    state.failing.clear();
    state.unacknowledged = 0;
}

impl Sink for Core {
    fn submit(&self, records: &[u8]) -> Result<u64, CommitError> {
        self.submit_records(records)
    }

    fn last(&self) -> u64 {
        self.state.lock().last()
    }

    fn is_acknowledged(&self, number: u64) -> bool {
        number <= self.state.lock().released()
    }

    fn barrier(&self) -> Result<u64, CommitError> {
        let state = self.state.lock();
        // Without a backup in the register nobody can have taken over.
        let alone = state.protection.as_ref().is_none_or(|protection| {
            matches!(protection.phase(), Phase::Exposed | Phase::Joining | Phase::Plugged(_))
        });
        let last = state.last();
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        drop(state);
        if alone { Ok(last) } else { self.submit_records(&[]) }
    }

    fn call(&self, calls: &[(u64, Vec<u8>)]) -> Result<(), CommitError> {
        let mut state = self.state.lock();
        let Some(link) = state.link.as_ref().map(|link| link.number) else { return Ok(()) };
        for (id, call) in calls {
            state.called.remove(id);
            self.put(&mut state, Item::Call, call);
        }
        self.send_if_free(&mut state);
        let mut failed = None;
        for (id, _) in calls {
            let report = loop {
                if let Some(over) = &state.over {
                    return Err(over.clone());
                }
                if state.link.as_ref().is_none_or(|current| current.number != link) {
                    // Who joins next makes the calls of its own accord.
                    return Ok(());
                }
                if let Some(report) = state.called.remove(id) {
                    break report;
                }
                if !self.step(&mut state) {
                    self.sleep(&mut state, u64::MAX);
                }
            };
            if let Some(reason) = report.error {
                failed.get_or_insert(CommitError::CallFailed { function: report.function, reason });
            }
        }
        if failed.is_some() {
            for (id, _) in calls {
                self.put(&mut state, Item::Discard, &encoded(*id));
            }
            self.send_if_free(&mut state);
        }
        self.hand_over(&mut state);
        failed.map_or(Ok(()), Err)
    }

    fn wait(&self, number: u64) -> Result<(), CommitError> {
        let mut state = self.state.lock();
        let outcome = loop {
            if let Some(outcome) = state.outcome(number) {
                break outcome;
            }
            if !self.step(&mut state) {
                self.sleep(&mut state, number);
            }
        };
        self.hand_over(&mut state);
        drop(state);
        point(Step::Acknowledged, number);
        outcome
    }

    fn poll(&self, number: u64, waker: &Waker) -> Poll<Result<(), CommitError>> {
        let mut state = self.state.lock();
        if let Some(outcome) = state.outcome(number) {
            return Poll::Ready(outcome);
        }
        state.wait(number, Waiter::Task(waker.clone()));
        if !state.reading {
            self.tend.notify_one();
        }
        Poll::Pending
    }
}

/// Until something that was refused for now is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);
