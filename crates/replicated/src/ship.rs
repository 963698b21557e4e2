//! The primary's side of the link: commits on their way to the backups.
//!
//! With one backup no thread stands between a commit and the network. Whoever commits sends what is waiting, if nobody
//! sends, and reads acknowledgements, if nobody reads; all others sleep until theirs has come. What is committed while two
//! batches are on their way leaves as one batch with the next acknowledgement, so that batches grow with the load and a
//! lone commit waits for nothing. One thread in the background does for those who only await a future, and gives signs of
//! life.
//!
//! With several, nobody who commits waits for any one of them. He sends what is short, which a socket takes even if nobody
//! reads at its other end; for each link one thread writes what is long and one reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use outlive_cluster::{Holder, Incarnation};
use outlive_stream::frame::{Frame, FrameError};
use outlive_stream::hello::Stream;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{info, warn};

use crate::arbitration::Arbiter;
use crate::call::Report;
use crate::config::Config;
use crate::feed::{Batch, Feed, Link};
use crate::forget::Forgotten;
use crate::message::{ACK, BEAT, CALLED, DATA, Item, PORTION, START, encoded, only_number};
use crate::node::BackupStatus;
use crate::protection::{Protection, WaitFor};
use crate::store::{Role, Sink, Store};
use crate::testing_point::{Step, point};
use crate::transaction::CommitError;
use crate::wire::Short;

/// With several backups, how many bytes may be on their way to one of them for a thread that commits to send more by itself.
/// The buffers of a connection hold several times that: 64 KiB at the receiver and 16 KiB at the sender at least, unless
/// somebody has made them smaller (`tcp_rmem`, `tcp_wmem`: tcp(7)).
const SHORT: usize = 16 * 1024;

/// How many failing calls are remembered by name.
const FAILING: usize = 64;

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
    /// Whose state this process has: of the primary that it is, or of the backup that it was when its last copy began to come.
    pub holds: Option<Incarnation>,
    /// Without whom it went on, if an operator said so.
    pub forgotten: Option<Forgotten>,
    /// Why nothing is acknowledged any more.
    pub over: Option<CommitError>,
    /// The place is being handed over: commits wait for how that ends.
    pub moving: bool,
    /// One for each backup, in the order of their links' numbers.
    pub feeds: Vec<Feed>,
    links: u64,
    waiters: BTreeMap<(u64, u64), Waiter>,
    /// Who wait until less is on its way.
    pub room: Vec<Thread>,
    /// The calls that a committing thread waits for, by their handles, and how each went on the backups, by their links,
    /// once they have said so.
    called: BTreeMap<u64, BTreeMap<u64, Report>>,
    /// Calls that fail on a backup, and what they say, by its link and their handles.
    pub failing: BTreeMap<(u64, u64), String>,
    waits: u64,
    /// Bytes of items that have left, over all links.
    pub shipped: u64,
    tasks: usize,
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

    fn feed(&mut self, link: u64) -> Option<&mut Feed> {
        self.feeds.iter_mut().find(|feed| feed.link.number == link)
    }

    /// Whether a backup may be who it says: the register would refuse two of one incarnation.
    pub fn may_be(&self, backup: &Holder) -> Result<(), String> {
        let mut others = std::iter::once(&self.me).chain(self.feeds.iter().map(|feed| &feed.backup));
        match others.find(|other| other.incarnation == backup.incarnation) {
            Some(other) => {
                Err(format!("{backup} joins, and {other} is already here: each is to have its own"))
            }
            None => Ok(()),
        }
    }

    fn may_send(&mut self, link: u64) -> bool {
        self.feed(link).is_some_and(|feed| feed.may_send())
    }

    /// Nobody who commits waits for any one of them.
    fn several(&self) -> bool {
        self.feeds.len() > 1
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

    /// Every backup, for whoever looks at them.
    pub fn backups(&self) -> Vec<BackupStatus> {
        let now = Instant::now();
        let Some(protection) = &self.protection else { return Vec::new() };
        let status = |feed: &Feed| {
            let link = feed.link.number;
            let member = protection.members().iter().find(|member| member.link == link)?;
            Some(BackupStatus {
                node: feed.backup.node.to_string(),
                counts: protection.counts(link),
                stage: member.stage,
                held: member.held,
                unacknowledged: feed.unacknowledged,
                lag: feed.lag(now),
            })
        };
        self.feeds.iter().filter_map(status).collect()
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

    /// A backup says how a call went.
    fn reported(&mut self, store: &Store, link: u64, report: Report) {
        if report.asked
            && let Some(waiting) = self.called.get_mut(&report.id)
        {
            waiting.insert(link, report);
            self.wake_all();
            return;
        }
        // What nobody waits for is kept for nobody, unless it failed.
        self.forget_gone(store);
        match report.error {
            None => drop(self.failing.remove(&(link, report.id))),
            Some(reason) => {
                warn!(function = report.function, reason, "a call fails on a backup, and is tried again");
                // As many as calls that lie in the state: a backup is no stranger, and its word no measure of memory.
                if self.failing.len() < FAILING && store.has(report.id) {
                    self.failing.insert((link, report.id), format!("{}: {reason}", report.function));
                }
            }
        }
    }

    /// Calls that are no part of the state any more, or never were because their transaction was undone, fail nowhere:
    /// nobody says another word about them.
    pub fn forget_gone(&mut self, store: &Store) {
        self.failing.retain(|(_, id), _| store.has(*id));
    }

    /// Wakes all, to look for themselves: there is another link, or none.
    fn wake_all(&mut self) {
        for waiter in std::mem::take(&mut self.waiters).into_values() {
            waiter.wake();
        }
        self.tasks = 0;
        self.make_room();
    }

    /// Wakes those who wait for room.
    fn make_room(&mut self) {
        self.room.drain(..).for_each(|thread| thread.unpark());
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
}

impl Core {
    pub fn new(store: Arc<Store>, config: Config, arbiter: Arbiter, me: Holder) -> Arc<Self> {
        let state = State {
            protection: None,
            me,
            holds: None,
            forgotten: None,
            over: None,
            moving: false,
            feeds: Vec::new(),
            links: 0,
            waiters: BTreeMap::new(),
            room: Vec::new(),
            called: BTreeMap::new(),
            failing: BTreeMap::new(),
            shipped: 0,
            waits: 0,
            tasks: 0,
        };
        let asked = Condvar::new();
        let (applied_commit, applied_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let state = Mutex::new(state);
        Arc::new(Self { store, config, arbiter, state, applied_commit, applied_bytes, asked })
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
        for feed in &self.state.lock().feeds {
            feed.link.closer.shutdown();
        }
    }

    /// Likewise, the one to this node.
    #[cfg(test)]
    pub fn cut_from(&self, node: &str) {
        for feed in self.state.lock().feeds.iter().filter(|feed| feed.backup.node.as_str() == node) {
            feed.link.closer.shutdown();
        }
    }

    /// Nothing is acknowledged any more, for this reason. The link stays: who hears that it ends asks for our place.
    pub fn silence(&self, state: &mut State, why: CommitError) {
        if let Some(protection) = &mut state.protection {
            protection.depose();
        }
        state.over.get_or_insert(why);
        self.store.set_role(Role::Deposed);
        state.wake_all();
        self.asked.notify_all();
        for feed in &state.feeds {
            feed.link.tend.notify_all();
            feed.link.write.notify_all();
        }
    }

    /// Likewise, and for good.
    pub fn end(&self, state: &mut State, why: CommitError) {
        self.silence(state, why);
        for feed in std::mem::take(&mut state.feeds) {
            feed.link.closer.shutdown();
        }
        state.failing.clear();
    }

    /// Begins to send everything to a backup. The number of its link, or why not.
    pub fn join(self: &Arc<Self>, stream: Stream, backup: Holder) -> Result<u64, String> {
        let Stream { mut writer, mut reader, closer, .. } = stream;
        let mut state = self.state.lock();
        if state.over.is_some() {
            return Err("this process has lost its place".into());
        }
        state.may_be(&backup)?;
        // A process of that node is there already: it has ended, or has given up its link.
        if let Some(before) = state.feeds.iter().find(|feed| feed.backup.node == backup.node) {
            let number = before.link.number;
            self.lose(&mut state, number, "it joins anew");
        }
        let last = state.last();
        // One small frame on a new connection, which is not waited for.
        writer.send(START, &[&encoded(last)]).map_err(|error| error.to_string())?;
        reader.get_mut().set_timeout(Some(self.config.beat())).map_err(|error| error.to_string())?;
        state.links += 1;
        let number = state.links;
        match state.protection.as_mut().map(|protection| protection.join(number)) {
            Some(true) => {}
            Some(false) => return Err("it has as many backups as there may be".into()),
            None => return Err("this process is not the primary".into()),
        }
        let (writer, reader) = (Mutex::new(writer.compact()), Mutex::new(reader.compact()));
        let (tend, write) = (Condvar::new(), Condvar::new());
        let link = Arc::new(Link { number, closer, writer, reader, tend, write });
        state.feeds.push(Feed::new(Arc::clone(&link), backup, last));
        for work in [Self::tend, Self::write] {
            let (ours, link) = (Arc::clone(self), Arc::clone(&link));
            let started = thread::Builder::new()
                .name(format!("replicated link {number}"))
                .spawn(move || work(&ours, &link));
            if let Err(error) = started {
                self.lose(&mut state, number, "no thread can be started for it");
                return Err(error.to_string());
            }
        }
        // Where there was one there are several: whoever reads for the others does so no longer.
        for feed in &state.feeds {
            feed.link.tend.notify_all();
        }
        Ok(number)
    }

    /// One object's image, behind all that was committed. Waits while too much is on its way: half of what may be, so that
    /// what is committed meanwhile has room.
    pub fn image(&self, link: u64, records: &[u8]) {
        let mut state = self.state.lock();
        let limit = self.config.unacknowledged / 2;
        while state.over.is_none() && state.feed(link).is_some_and(|feed| feed.is_full(records.len(), limit))
        {
            self.wait_for_room(&mut state);
        }
        if let Some(feed) = state.feed(link) {
            feed.put(Item::Image, records);
            let link = Arc::clone(&feed.link);
            self.send_if_free(&mut state, &link);
        }
    }

    /// All images were given. Who has the commit made here has all of them.
    pub fn plug(&self, link: u64) {
        let mut state = self.state.lock();
        let Some(feed) = state.feed(link) else { return };
        feed.put(Item::Image, &[]);
        if let Some(protection) = &mut state.protection {
            protection.submit();
            protection.plug(link);
        }
        self.put_everywhere(&mut state, Item::Commit, &[]);
        if let Some(feed) = state.feed(link) {
            feed.link.tend.notify_one();
        }
    }

    /// Puts an item behind what is sent to every backup, and sends what may be sent.
    fn put_everywhere(&self, state: &mut MutexGuard<'_, State>, item: Item, records: &[u8]) {
        for feed in &mut state.feeds {
            feed.put(item, records);
        }
        // Others may come and go while this sends.
        let mut after = 0;
        while let Some(feed) = state.feeds.iter().find(|feed| feed.link.number > after) {
            let link = Arc::clone(&feed.link);
            after = link.number;
            self.send_if_free(state, &link);
        }
    }

    /// Returns when some more may have room.
    fn wait_for_room(&self, state: &mut MutexGuard<'_, State>) {
        if !self.step(state) {
            let this = thread::current();
            state.room.push(this.clone());
            MutexGuard::unlocked(state, || thread::park_timeout(self.config.beat()));
            // Nobody may have woken it.
            state.room.retain(|waiting| waiting.id() != this.id());
        }
    }

    /// Waits until every backup has room for a transaction, or nothing is acknowledged any more. One that has none, and is not waited for, is let go of.
    fn wait_for_all(&self, state: &mut MutexGuard<'_, State>, length: usize) {
        let limit = self.config.unacknowledged;
        while state.over.is_none()
            && let Some(full) = state.feeds.iter().find(|feed| feed.is_full(length, limit))
        {
            let number = full.link.number;
            let unacknowledged = full.unacknowledged;
            let goes_on = |link| {
                state.feeds.iter().any(|feed| feed.link.number == link && !feed.is_full(length, limit))
            };
            if state.protection.as_ref().is_some_and(|protection| protection.may_do_without(number, goes_on))
            {
                let why = format!("{unacknowledged} bytes are on their way to it, and others do not wait");
                self.lose(state, number, &why);
            } else {
                self.wait_for_room(state);
            }
        }
    }

    fn send_if_free(&self, state: &mut MutexGuard<'_, State>, link: &Arc<Link>) {
        while let Some(feed) = state.feed(link.number)
            && feed.may_send()
        {
            if feed.unacknowledged > SHORT && state.several() {
                link.write.notify_one();
                break;
            }
            self.send(state, link);
        }
        let tasks = state.tasks > 0;
        if state.feed(link.number).is_some_and(|feed| !feed.reading && (tasks || !feed.outgoing.is_empty())) {
            link.tend.notify_one();
        }
    }

    /// Does what is to be done on the only link; `false` if somebody else is doing all of it.
    fn step(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let [feed] = &state.feeds[..] else { return false };
        let link = Arc::clone(&feed.link);
        if feed.may_send() {
            self.send(state, &link);
        } else if !feed.reading {
            self.read(state, &link);
        } else {
            return false;
        }
        true
    }

    fn send(&self, state: &mut MutexGuard<'_, State>, link: &Link) {
        let (last, now) = (state.last(), Instant::now());
        let Some(feed) = state.feed(link.number) else { return };
        feed.writing = true;
        let bytes = std::mem::take(&mut feed.outgoing);
        let count = last - feed.batched;
        feed.batched = last;
        feed.on_the_way.push_back(Batch { last, bytes: bytes.len(), at: now });
        feed.sent = now;
        state.shipped += bytes.len() as u64;
        let outcome = MutexGuard::unlocked(state, || {
            let mut writer = link.writer.lock();
            let mut portions = bytes.chunks(PORTION).peekable();
            while let Some(portion) = portions.next() {
                let ended = if portions.peek().is_none() { count + 1 } else { 0 };
                writer.send(DATA, &[Short::of(ended).bytes(), portion])?;
            }
            Ok::<(), outlive_stream::frame::FrameSendError>(())
        });
        let Some(feed) = state.feed(link.number) else { return };
        feed.writing = false;
        if let Err(error) = outcome {
            self.lose(state, link.number, &error.to_string());
        } else if feed.outgoing.capacity() == 0 && bytes.capacity() <= PORTION {
            // The next batch takes this one's memory.
            feed.outgoing = bytes;
            feed.outgoing.clear();
        }
    }

    /// Waits for one frame of the backup, at most for the time between two signs of life.
    fn read(&self, state: &mut MutexGuard<'_, State>, link: &Arc<Link>) {
        let number = link.number;
        let Some(feed) = state.feed(number) else { return };
        feed.reading = true;
        let outcome = MutexGuard::unlocked(state, || link.reader.lock().next());
        let now = Instant::now();
        let Some(feed) = state.feed(number) else { return };
        (feed.reading, feed.read) = (false, now);
        let silence = now - feed.heard;
        if outcome.is_ok() {
            feed.heard = now;
        }
        match outcome {
            Ok(Frame { kind: ACK, payload }) => match only_number(&payload) {
                Some(held) => self.acknowledged(state, link, held),
                None => self.lose(state, number, "it acknowledged what is no number"),
            },
            Ok(Frame { kind: BEAT, .. }) => {}
            Ok(Frame { kind: CALLED, payload }) => match postcard::from_bytes::<Report>(&payload) {
                Ok(report) => state.reported(&self.store, number, report),
                Err(_) => self.lose(state, number, "it said what is no report of a call"),
            },
            Ok(_) => self.lose(state, number, "it sent what a backup does not send"),
            Err(FrameError::TimedOut(_)) if silence <= self.config.detection => {}
            Err(FrameError::TimedOut(_)) => {
                let silence = format!("no sign of life for {} ms", silence.as_millis());
                self.lose(state, number, &silence);
            }
            Err(error) => self.lose(state, number, &error.to_string()),
        }
    }

    fn acknowledged(&self, state: &mut MutexGuard<'_, State>, link: &Arc<Link>, number: u64) {
        let Some(feed) = state.feed(link.number) else { return };
        match feed.on_the_way.pop_front() {
            Some(batch) if batch.last == number => feed.unacknowledged -= batch.bytes,
            _ => {
                let other = format!("it acknowledged commit {number}, where no batch ended");
                return self.lose(state, link.number, &other);
            }
        }
        let Some(protection) = &mut state.protection else { return };
        if let Err(number) = protection.holds(link.number, number) {
            let more = format!("it acknowledged commit {number}, which does not exist");
            return self.lose(state, link.number, &more);
        }
        if protection.has_to_ask() {
            self.asked.notify_all();
        }
        // What has waited leaves before anybody is woken.
        if state.may_send(link.number) {
            self.send_if_free(state, link);
        }
        state.make_room();
        state.wake();
    }

    /// Ends the link of this number, if it is there.
    pub fn lose(&self, state: &mut State, link: u64, why: &str) {
        let Some(place) = state.feeds.iter().position(|feed| feed.link.number == link) else { return };
        let Feed { link: gone, backup, .. } = state.feeds.remove(place);
        warn!(why, %backup, "a backup is lost");
        gone.closer.shutdown();
        gone.tend.notify_all();
        gone.write.notify_all();
        state.failing.retain(|(of, _), _| *of != link);
        if let Some(protection) = &mut state.protection {
            protection.lose(link);
            if protection.has_to_ask() {
                self.asked.notify_all();
            }
        }
        // Some wait for room only, and some have others read for them.
        state.wake_all();
    }

    /// Sleeps until woken for this commit. Not for ever: whoever reads for the others may have ended without a word.
    fn sleep(&self, state: &mut MutexGuard<'_, State>, number: u64) {
        if state.several() {
            self.hand_over(state);
        }
        let key = state.wait(number, Waiter::Thread(thread::current()));
        MutexGuard::unlocked(state, || thread::park_timeout(self.config.beat()));
        state.take_waiter(key);
    }

    /// Whoever leaves and has read for others makes another do so.
    fn hand_over(&self, state: &mut State) {
        let several = state.several();
        for feed in state.feeds.iter().filter(|feed| !feed.reading) {
            match state.waiters.values().next() {
                Some(Waiter::Thread(thread)) if !several => thread.unpark(),
                None if !several && feed.outgoing.is_empty() => {}
                _ => drop(feed.link.tend.notify_one()),
            }
        }
    }

    /// Takes no commits any more, and returns when all that were taken are acknowledged: who they are to be handed over to,
    /// and in which generation. A commit of its own is the last one: whoever holds it was alive when the others ended.
    pub fn drain(&self) -> Result<(Holder, u64), String> {
        let mut state = self.state.lock();
        if let Some(over) = &state.over {
            return Err(over.to_string());
        }
        let moving = state.moving;
        let (last, generation) = match &mut state.protection {
            Some(protection) if !protection.is_alone() && !moving => {
                (protection.submit(), protection.generation())
            }
            _ => return Err("there is no backup that could take over".into()),
        };
        state.moving = true;
        self.put_everywhere(&mut state, Item::Commit, &[]);
        drop(state);
        let outcome = self.wait(last);
        let mut state = self.state.lock();
        // One that holds all of them, and maybe the commit of another that has joined since.
        let holds_all = |feed: &&Feed| {
            let link = feed.link.number;
            state.protection.as_ref().is_some_and(|protection| {
                let members = protection.members();
                let held = members.iter().find(|member| member.link == link).map(|member| member.held);
                protection.counts(link) && held >= Some(last)
            })
        };
        let backup = state.feeds.iter().find(holds_all).map(|feed| feed.backup.clone());
        match (outcome, backup) {
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

    /// As long as there is this link: reads for those who do not, and lets go of a backup that is too slow.
    fn tend(&self, link: &Arc<Link>) {
        let beat = self.config.beat();
        let has_work = |state: &mut State| {
            let (tasks, several) = (state.tasks > 0, state.several());
            // Also while nobody commits, what the backup says is taken from the socket.
            state.feed(link.number).is_some_and(|feed| {
                let needed = several || tasks || !feed.outgoing.is_empty();
                !feed.reading && (needed || feed.read.elapsed() >= beat)
            })
        };
        let mut state = self.state.lock();
        while state.over.is_none() && state.feed(link.number).is_some() {
            let several = state.several();
            if state.feed(link.number).is_some_and(|feed| feed.reading || !several) {
                link.tend.wait_for(&mut state, beat);
            }
            self.check_patience(&mut state, link);
            while has_work(&mut state) {
                if !state.several() && state.may_send(link.number) {
                    self.send(&mut state, link);
                } else {
                    self.read(&mut state, link);
                }
                self.check_patience(&mut state, link);
            }
            self.hand_over(&mut state);
        }
    }

    /// As long as there is this link: gives signs of life, and writes what is long where there are several. It may have to
    /// wait for a backup that takes nothing; whoever reads notices that.
    fn write(&self, link: &Arc<Link>) {
        let mut state = self.state.lock();
        while state.over.is_none() && state.feed(link.number).is_some() {
            // Also what is left to the only link: where one of two has just been lost, whoever has put it there found this thread writing.
            if state.may_send(link.number) {
                self.send(&mut state, link);
            } else {
                self.beat_if_due(&mut state, link);
                // While that was on its way there was nobody to be told that there is more.
                if !state.may_send(link.number) {
                    link.write.wait_for(&mut state, self.config.beat() / 2);
                }
            }
        }
    }

    fn beat_if_due(&self, state: &mut MutexGuard<'_, State>, link: &Arc<Link>) {
        let Some(feed) = state.feed(link.number) else { return };
        if feed.writing || feed.sent.elapsed() < self.config.beat() {
            return;
        }
        (feed.writing, feed.sent) = (true, Instant::now());
        let outcome = MutexGuard::unlocked(state, || link.writer.lock().send(BEAT, &[]));
        let Some(feed) = state.feed(link.number) else { return };
        feed.writing = false;
        if let Err(error) = outcome {
            self.lose(state, link.number, &error.to_string());
        }
        self.send_if_free(state, link);
    }

    fn check_patience(&self, state: &mut State, link: &Link) {
        let Some(patience) = self.config.patience else { return };
        let waited = state.feed(link.number).map_or(Duration::ZERO, |feed| feed.lag(Instant::now()));
        if waited > patience {
            let why = format!("it has not acknowledged for {} ms", waited.as_millis());
            self.lose(state, link.number, &why);
        }
    }

    /// From now on this process is the primary.
    pub fn lead(&self, me: Holder, protection: Protection) {
        let mut state = self.state.lock();
        info!(generation = protection.generation(), after = protection.last(), "this process is the primary");
        state.holds = Some(me.incarnation);
        (state.me, state.protection) = (me, Some(protection));
    }

    fn submit_records(&self, records: &[u8]) -> Result<u64, CommitError> {
        let mut state = self.state.lock();
        self.wait_for_all(&mut state, records.len());
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
        self.put_everywhere(&mut state, Item::Commit, records);
        point(Step::Sent, number);
        Ok(number)
    }
}

impl Core {
    /// How calls went that these backups were asked for, once enough of them have said so.
    fn called(
        &self,
        state: &mut State,
        calls: &[(u64, Vec<u8>)],
        asked: &[u64],
    ) -> Option<Result<(), CommitError>> {
        let State { called, feeds, protection, .. } = state;
        let reports = || calls.iter().filter_map(|(id, _)| called.get(id));
        for report in reports().flat_map(BTreeMap::values) {
            if let Some(reason) = report.error.clone() {
                return Some(Err(CommitError::CallFailed { function: report.function.clone(), reason }));
            }
        }
        let has_said = |link: u64| reports().all(|reports| reports.contains_key(&link));
        // Who has gone is asked no more, and who joins next makes the calls of its own accord.
        let mut silent =
            feeds.iter().map(|feed| feed.link.number).filter(|link| asked.contains(link) && !has_said(*link));
        let enough = silent.all(|link| {
            self.config.wait_for != WaitFor::All
                && protection.as_ref().is_some_and(|protection| protection.may_do_without(link, has_said))
        });
        enough.then_some(Ok(()))
    }
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

    fn is_settled(&self, number: u64) -> bool {
        self.state.lock().outcome(number).is_some()
    }

    fn barrier(&self) -> Result<u64, CommitError> {
        let state = self.state.lock();
        // Without a backup in the register nobody can have taken over.
        let alone = state.protection.as_ref().is_none_or(Protection::is_alone);
        let last = state.last();
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        drop(state);
        if alone { Ok(last) } else { self.submit_records(&[]) }
    }

    fn call(&self, calls: &[(u64, Vec<u8>)]) -> Result<(), CommitError> {
        let mut state = self.state.lock();
        let asked: Vec<u64> = state.feeds.iter().map(|feed| feed.link.number).collect();
        if asked.is_empty() {
            return Ok(());
        }
        for (id, call) in calls {
            state.called.insert(*id, BTreeMap::new());
            self.put_everywhere(&mut state, Item::Call, call);
        }
        let outcome = loop {
            if let Some(over) = &state.over {
                break Err(over.clone());
            }
            match self.called(&mut state, calls, &asked) {
                Some(outcome) => break outcome,
                None if self.step(&mut state) => {}
                None => self.sleep(&mut state, u64::MAX),
            }
        };
        for (id, _) in calls {
            state.called.remove(id);
        }
        if matches!(outcome, Err(CommitError::CallFailed { .. })) {
            for (id, _) in calls {
                self.put_everywhere(&mut state, Item::Discard, &encoded(*id));
            }
        }
        self.hand_over(&mut state);
        outcome
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
        for feed in state.feeds.iter().filter(|feed| !feed.reading) {
            feed.link.tend.notify_one();
        }
        Poll::Pending
    }
}

/// Until something that was refused for now is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);
