//! The descriptor tables of the tree: which kernel objects there are, who holds them, and which have changed.
//!
//! The supervisor holds a duplicate of every TCP socket, because a connection that the workload closes with data still
//! queued lives on in the kernel without a descriptor, where nothing could capture it. A `close` is announced before it
//! happens (see [`crate::sys::seccomp::Notice::Close`]): a duplicate that is not needed for that is dropped first, so that
//! the workload's close is the last one and ends the connection as it should.

mod ahead;
mod closing;
mod flight;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::checkpoint::{Checkpoint, Descriptor, Object, ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::object::descriptor::{
    At, Capturer, Holder, Inode, Kind, StatusFlags, Surroundings, Tcp, TcpProgress,
};
use crate::object::file::{FileKey, MEMFD};
use crate::object::scratch::{Scratch, Touched};
use crate::object::signal_owner::{self, SignalOwner};
use crate::object::tcp::{self, Framed, Injector, RawSegment, State, TcpSocket};
use crate::object::terminal;
use crate::object::{inotify, mqueue};
use crate::refusals::Refusals;
use crate::sys::bpf::files::{Lister, OpenFile, SocketNumbers, Table, TcpNumbers};
use crate::sys::ptrace::Tid;
use crate::sys::{proc, task};
use crate::tree::Process;
use closing::Stray;

/// `O_CLOEXEC` as fdinfo shows it (`fcntl.h`, octal).
const CLOSE_ON_EXEC: i32 = libc::O_CLOEXEC;
/// `net.ipv4.tcp_pingpong_thresh`, and its default (`tcp_sk_init`, net/ipv4/tcp_ipv4.c).
const PINGPONG_SYSCTL: &str = "/proc/sys/net/ipv4/tcp_pingpong_thresh";
const PINGPONG_THRESHOLD: u8 = 1;

/// More calls than this in one epoch, and all descriptors are asked.
const MAX_OWNERS_CHANGED: usize = 1024;

/// A softirq takes microseconds; together this is as long as a pause of a small workload.
const STILL_ATTEMPTS: usize = 20;
const STILL_REST: Duration = Duration::from_micros(50);

/// A row of a table as it was last captured, with the link by which it is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub link: String,
    pub descriptor: Descriptor,
}

/// Our duplicate of a TCP socket.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// Signs of how it was at its last capture, by the kernel's list of open files or, without, by asking the socket.
    numbers: Option<TcpNumbers>,
    fingerprint: Option<tcp::Fingerprint>,
    /// As last captured; none when an option has been set since.
    last: Option<TcpSocket>,
    flags: StatusFlags,
    /// Closed by the workload; we have shut it down in its place.
    orphan: bool,
}

impl Socket {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            numbers: None,
            fingerprint: None,
            last: None,
            flags: StatusFlags::default(),
            orphan: false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    link: String,
    /// As the kernel's list of open files has it, where there is such a list.
    seen: Option<OpenFile>,
    /// Status flags at the last capture.
    flags: Option<i32>,
    fingerprint: Option<u64>,
    /// Of a socket that is told by them: at the last capture; none if an option has been set since.
    numbers: Option<SocketNumbers>,
    last: Option<Object>,
    /// Of a socket: it has been in a checkpoint.
    announced: bool,
    socket: Option<Socket>,
    holders: Vec<Holder>,
}

impl Entry {
    fn new(kind: Kind, link: String) -> Self {
        Self {
            kind,
            link,
            seen: None,
            flags: None,
            fingerprint: None,
            numbers: None,
            last: None,
            announced: false,
            socket: None,
            holders: Vec::new(),
        }
    }

    /// Whether a listed descriptor is this description.
    fn is(&self, file: &OpenFile) -> bool {
        let same = self.seen.is_some_and(|seen| seen.identity() == file.identity());
        match self.kind {
            // All masters are of one file; which terminal it is has to be asked of the description.
            Kind::Terminal { slave, .. } => same && terminal::is_of(file.file, slave),
            _ => same,
        }
    }
}

/// All open file descriptions of a workload.
pub struct Descriptors {
    capturer: Capturer,
    tcp: tcp::Capturer,
    scratch: Scratch,
    entries: BTreeMap<ObjectId, Entry>,
    /// What stands for the content of a pipe, by its inode.
    pipes: HashMap<u64, (ObjectId, Option<Object>)>,
    /// What stands for a pair of pseudo-terminals, by where the kernel keeps its slave.
    terminals: HashMap<u64, (ObjectId, Option<Object>)>,
    /// As they are in this stop.
    terminals_ahead: Vec<(u64, Object)>,
    /// There are captures.
    capturing: bool,
    /// Being closed, and not done yet.
    strays: Vec<Stray>,
    /// Connections of the workload to itself that it has closed, the end first that may not be accepted yet.
    closed_to_itself: Vec<(SocketAddr, SocketAddr)>,
    settle_at: Instant,
    /// When those that were closed are next asked whether they still need us.
    look_again: Instant,
    /// By host process id, where the kernel lists open files; empty where it does not.
    tables: HashMap<Tid, Table>,
    /// What was captured before anything else: see [`Descriptors::look_ahead`].
    ahead: HashMap<ObjectId, Object>,
    /// Duplicates of what is in flight in unix sockets and in no table, in this stop.
    flights: Vec<OwnedFd>,
    /// This process, through which they are reached.
    own: Option<Arc<OwnedFd>>,
    /// Those that signal somebody.
    owners: BTreeMap<ObjectId, SignalOwner>,
    /// Descriptors of which it has been set since, by the host's process id and number; none means that all are asked.
    owners_changed: Option<Vec<(Tid, i32)>>,
    next: u64,
    /// A process whose root is the workload's.
    pub(crate) root: Tid,
    pingpong_threshold: u8,
    /// Segments that the kernel believes it has sent, because of a capture.
    unframed: Vec<RawSegment>,
    injector: Injector,
    /// Connections that have come to have a descriptor since this was last asked.
    arrived: Vec<(SocketAddr, SocketAddr)>,
}

impl std::fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Descriptors").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Descriptors {
    pub fn new(surroundings: Surroundings, scratch: Scratch) -> Self {
        Self {
            capturer: Capturer::new(surroundings),
            tcp: tcp::Capturer::new(),
            scratch,
            entries: BTreeMap::new(),
            pipes: HashMap::new(),
            terminals: HashMap::new(),
            terminals_ahead: Vec::new(),
            capturing: false,
            strays: Vec::new(),
            closed_to_itself: Vec::new(),
            settle_at: Instant::now(),
            look_again: Instant::now(),
            tables: HashMap::new(),
            ahead: HashMap::new(),
            flights: Vec::new(),
            own: None,
            owners: BTreeMap::new(),
            owners_changed: None,
            next: 1,
            root: 0,
            pingpong_threshold: PINGPONG_THRESHOLD,
            unframed: Vec::new(),
            injector: Injector::new(),
            arrived: Vec::new(),
        }
    }

    fn next_object(&mut self) -> ObjectId {
        let id = ObjectId(self.next);
        self.next += 1;
        id
    }

    /// Sends what the kernel believes it has sent. Its sockets send it again by themselves, but only after a timeout.
    fn send_unframed(&mut self) {
        for segment in std::mem::take(&mut self.unframed) {
            if let Err(error) = self.injector.inject(&segment) {
                warn!(%error, "a connection stalls until its data is sent again");
            }
        }
    }

    /// Local and remote address of connections that were accepted or made since the last call.
    pub fn take_arrived(&mut self) -> Vec<(SocketAddr, SocketAddr)> {
        std::mem::take(&mut self.arrived)
    }

    /// There will be no captures until there is a new backup. What lives on without a descriptor is held for it.
    pub(crate) fn stop(&mut self) {
        self.capturing = false;
        self.entries.retain(|_, entry| entry.socket.as_ref().is_some_and(|socket| socket.orphan));
        self.pipes.clear();
        self.terminals.clear();
    }

    /// Message queues that are open, as of the last capture.
    pub(crate) fn take_queues(&mut self) -> mqueue::Open {
        self.capturer.take_queues()
    }

    /// Everything is new to the next backup.
    pub(crate) fn begin_whole(&mut self) {
        self.capturing = true;
        // Of the namespace that the calling thread is in. A kernel without the setting has the default.
        let threshold = std::fs::read_to_string(PINGPONG_SYSCTL).ok();
        self.pingpong_threshold =
            threshold.and_then(|text| text.trim().parse().ok()).unwrap_or(PINGPONG_THRESHOLD);
        let old = std::mem::take(&mut self.entries);
        let orphans = old.into_values().filter_map(|entry| entry.socket).filter(|socket| socket.orphan);
        orphans.for_each(|socket| self.adopt_orphan(socket.fd));
        self.pipes.clear();
        self.terminals.clear();
        self.owners.clear();
        self.owners_changed = None;
        self.scratch.forget();
    }

    pub(crate) fn scratch_directories(&self) -> Vec<String> {
        self.capturer.surroundings.scratch.clone()
    }

    /// The files that are mapped now, and what was written to those of scratch directories through that.
    pub(crate) fn set_mapped(&mut self, files: HashSet<FileKey>, touched: HashMap<FileKey, Touched>) {
        self.capturer.surroundings.mapped = files;
        self.scratch.touch(touched);
    }

    /// A name of a mapped file of a scratch directory, as of the last capture; none if it has none any more.
    pub(crate) fn name_of(&self, key: FileKey) -> Option<&str> {
        self.scratch.name_of(key)
    }

    /// The memfds that are open, as of the last capture: where to open each, its name, and whose it is.
    pub(crate) fn shared_files(&self) -> impl Iterator<Item = (FileKey, PathBuf, String, Pid)> {
        self.entries.values().filter_map(|entry| {
            let Some(Object::File(file)) = &entry.last else { return None };
            let holder = entry.holders.first()?;
            let name = file.path.strip_prefix(MEMFD)?.to_owned();
            let key = file.deleted.as_ref()?.key;
            Some((key, proc::path(holder.tid, &format!("fd/{}", holder.fd)), name, holder.process))
        })
    }

    /// Whom a description signals is about to change.
    pub(crate) fn owner_changed(&mut self, process: &Process, fd: i32) {
        match &mut self.owners_changed {
            Some(list) if list.len() < MAX_OWNERS_CHANGED => list.push((process.host, fd)),
            all => *all = None,
        }
    }

    /// Asks those again of which it may have changed; all, if something was closed meanwhile that had changed.
    fn capture_owners(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
    ) -> Result<Option<Vec<(ObjectId, SignalOwner)>>> {
        if self.owners_changed.as_ref().is_some_and(Vec::is_empty) && self.owners.is_empty() {
            return Ok(None);
        }
        let of = |(host, fd): &(Tid, i32)| {
            let is = |holder: &Holder| (holder.tid, holder.fd) == (*host, *fd);
            self.entries.iter().find(|(_, entry)| entry.holders.iter().any(is)).map(|(id, _)| *id)
        };
        let changed =
            self.owners_changed.as_ref().and_then(|list| list.iter().map(of).collect::<Option<HashSet<_>>>());
        let mut owners = BTreeMap::new();
        for (id, entry) in &self.entries {
            let known = self.owners.get(id);
            let ask =
                changed.as_ref().is_none_or(|ids| ids.contains(id)) || known.is_some_and(SignalOwner::is_on);
            let Some(holder) = entry.holders.first() else { continue };
            let Some(pidfd) = self.pidfd_of(holder, processes) else { continue };
            let owner = match known {
                known if !ask => known.copied(),
                _ => {
                    let duplicate = task::take_descriptor(pidfd, holder.fd)
                        .attempt(|| format!("take a duplicate of descriptor {}", holder.fd))?;
                    // What is open by name only has no owner, and cannot be asked.
                    let path_only = entry.seen.is_some_and(|seen| seen.flags & libc::O_PATH != 0);
                    let hosts = processes.values().map(|process| process.host);
                    if path_only { None } else { Some(signal_owner::capture(duplicate.as_fd(), hosts)?) }
                }
            };
            if let Some(owner) = owner.filter(|owner| !owner.is_nobody()) {
                if holder.in_flight {
                    return Err(flight::refuse(holder, "a descriptor that signals somebody (F_SETOWN)"));
                }
                owners.insert(*id, owner);
            }
        }
        self.owners_changed = Some(Vec::new());
        let new = owners != self.owners;
        self.owners = owners;
        Ok(new.then(|| self.owners.iter().map(|(id, owner)| (*id, *owner)).collect()))
    }

    /// A socket option is about to change.
    pub(crate) fn option_changed(&mut self, process: &Process, fd: i32) {
        // By what the number stands for now: it may be younger than the last checkpoint.
        let Ok(link) = proc::descriptor_link(process.host, fd) else { return };
        for entry in self.entries.values_mut().filter(|entry| entry.link == link) {
            entry.numbers = None;
            if let Some(socket) = &mut entry.socket {
                socket.last = None;
                socket.numbers = None;
                socket.fingerprint = None;
            }
        }
    }

    /// Reads all tables. All processes are stopped. What cannot be protected is found here, before anything that could not
    /// be asked for again has been taken: programs open a file of `/proc` for a moment and close it again.
    pub(crate) fn read_tables(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
        refusals: &mut Refusals,
    ) -> Result<Vec<(Pid, Vec<Row>)>> {
        self.capturer.begin();
        self.let_go_of_flights();
        for entry in self.entries.values_mut() {
            entry.holders.clear();
        }
        if self.tables.len() > processes.len() {
            let alive: HashSet<Tid> = processes.values().map(|process| process.host).collect();
            self.tables.retain(|host, _| alive.contains(host));
        }
        let tables =
            processes.iter().map(|(pid, process)| Ok((*pid, self.read_table(*pid, process, refusals)?)));
        let tables = tables.collect::<Result<_>>().and_then(|tables| {
            self.find_in_flight(processes, refusals)?;
            refusals.pass(self.find_not_accepted(processes))?;
            self.look_ahead(processes, refusals)?;
            Ok(tables)
        });
        tables.map_err(|error| match error {
            refused @ Error::Unsupported { .. } => Error::NotNow(Box::new(refused)),
            other => other,
        })
    }

    /// Only a survey goes on then. To look into directories that are watched would add events of its own, which could not be
    /// told from those that the program has not read.
    fn has_unread_events(&self, processes: &BTreeMap<Pid, Process>) -> Result<bool> {
        let mut unread = false;
        self.each_inotify(processes, |at, _| {
            unread |= inotify::is_waiting(at)?;
            Ok(())
        })?;
        Ok(unread)
    }

    fn discard_own_events(&self, processes: &BTreeMap<Pid, Process>) -> Result<()> {
        self.each_inotify(processes, |at, entry| match &entry.last {
            Some(Object::Inotify(object)) => inotify::discard(at, object),
            _ => Ok(()),
        })
    }

    fn each_inotify(
        &self,
        processes: &BTreeMap<Pid, Process>,
        mut each: impl FnMut(&At<'_>, &Entry) -> Result<()>,
    ) -> Result<()> {
        for entry in self.entries.values().filter(|entry| entry.kind == Kind::Inotify) {
            let Some(at) = self.at(entry, processes) else { continue };
            each(&at, entry)?;
        }
        Ok(())
    }

    /// Fills in descriptors, objects, orphans and files of a checkpoint.
    pub(crate) fn capture(
        &mut self,
        tables: Vec<(Pid, Vec<Row>)>,
        processes: &mut BTreeMap<Pid, Process>,
        checkpoint: &mut Checkpoint,
        framed: &Framed,
        refusals: &mut Refusals,
    ) -> Result<()> {
        for (pid, rows) in tables {
            let Some(process) = processes.get_mut(&pid) else { continue };
            let state = checkpoint.processes.iter_mut().find(|state| state.pid == pid);
            if rows == process.descriptors && state.as_ref().is_none_or(|state| state.attributes.is_none()) {
                continue;
            }
            // Whether an epoll set's entries still are under their numbers is asked of the set.
            for entry in self.entries.values_mut().filter(|entry| entry.kind == Kind::Epoll) {
                entry.fingerprint = None;
            }
            if let Some(state) = state {
                state.descriptors = Some(rows.iter().map(|row| row.descriptor).collect());
            }
            process.descriptors = rows;
        }
        self.find_orphans();
        self.capturer.orphans = self
            .entries
            .values()
            .filter(|entry| entry.socket.as_ref().is_some_and(|socket| socket.orphan))
            .filter_map(|entry| match entry.kind {
                Kind::Tcp { inode } => Some(inode),
                _ => None,
            })
            .collect();
        let ids: Vec<ObjectId> = self.entries.keys().copied().collect();
        let mut refused = HashSet::new();
        for id in ids {
            let captured = self.capture_entry(id, processes, &mut checkpoint.objects, framed);
            if refusals.pass(captured)?.is_none() {
                refused.extend(self.file_of(id, processes));
            }
        }
        refusals.pass(self.capture_pipes(processes, &mut checkpoint.objects))?;
        for (slave, content) in self.terminals_ahead.drain(..) {
            if let Some((id, last)) = self.terminals.get_mut(&slave)
                && last.as_ref() != Some(&content)
            {
                checkpoint.objects.push((*id, content.clone()));
                *last = Some(content);
            }
        }
        checkpoint.orphans = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.socket.as_ref().is_some_and(|socket| socket.orphan))
            .map(|(id, _)| *id)
            .collect();
        checkpoint.signal_owners = self.capture_owners(processes)?;
        if !refusals.are_listed() || !self.has_unread_events(processes)? {
            self.scratch.leave_out(refused);
            checkpoint.files = refusals.pass(self.scratch.scan())?.unwrap_or_default();
            self.discard_own_events(processes)?;
        }
        // The frames are held like all others, and belong to this epoch.
        self.send_unframed();
        Ok(())
    }

    /// Which file an object is, if it is one.
    fn file_of(&self, id: ObjectId, processes: &BTreeMap<Pid, Process>) -> Option<FileKey> {
        let entry = self.entries.get(&id).filter(|entry| entry.kind == Kind::File)?;
        let stat = self.at(entry, processes)?.stat().ok()?;
        Some(FileKey::of(&stat))
    }

    /// The table of one process, each row with the object it refers to.
    fn read_table(&mut self, pid: Pid, process: &Process, refusals: &mut Refusals) -> Result<Vec<Row>> {
        let what = || format!("read the descriptors of process {pid}");
        let Some(files) = self.list(process).attempt(what)? else {
            return self.read_links(pid, process, refusals);
        };
        let mut rows = Vec::with_capacity(files.len());
        let mut old = process.descriptors.iter().peekable();
        for file in files {
            while old.peek().is_some_and(|row| row.descriptor.fd < file.fd) {
                old.next();
            }
            let (tid, fd) = (process.host, file.fd);
            let holder = Holder { tid, process: pid, fd, root: self.root, in_flight: false };
            let before = old.peek().filter(|row| row.descriptor.fd == file.fd && !process.attributes_changed);
            let row = match before {
                Some(row)
                    if self.entries.get(&row.descriptor.object).is_some_and(|entry| entry.is(&file)) =>
                {
                    (*row).clone()
                }
                _ => {
                    let link = proc::descriptor_link(process.host, file.fd).attempt(what)?;
                    let at = At { holder, others: &[], pidfd: process.pidfd.as_fd(), file: Some(file.file) };
                    let row = self.identify(&at, &process.descriptors, link, Some(&file));
                    let Some(row) = refusals.pass(row)? else { continue };
                    row
                }
            };
            if let Some(entry) = self.entries.get_mut(&row.descriptor.object) {
                entry.holders.push(holder);
                entry.seen = Some(file);
                let at = At { holder, others: &[], pidfd: process.pidfd.as_fd(), file: Some(file.file) };
                refusals.pass(check_passing(entry.kind, &file, &at))?;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// All open files of a process from the kernel, if it can list them.
    fn list(&mut self, process: &Process) -> std::io::Result<Option<Vec<OpenFile>>> {
        let Ok(lister) = Lister::shared() else { return Ok(None) };
        let table = match self.tables.entry(process.host) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(lister.table(process.host).map_err(std::io::Error::other)?)
            }
        };
        table.read().map(Some)
    }

    /// As [`Descriptors::read_table`], where the kernel does not list open files: from what their links say.
    fn read_links(&mut self, pid: Pid, process: &Process, refusals: &mut Refusals) -> Result<Vec<Row>> {
        let what = || format!("read the descriptors of process {pid}");
        let open = proc::descriptors(process.host).attempt(what)?;
        let mut rows = Vec::with_capacity(open.len());
        let mut old = process.descriptors.iter().peekable();
        for (fd, link) in open {
            while old.peek().is_some_and(|row| row.descriptor.fd < fd) {
                old.next();
            }
            let (tid, root) = (process.host, self.root);
            let holder = Holder { tid, process: pid, fd, root, in_flight: false };
            let before = old.peek().filter(|row| row.descriptor.fd == fd && row.link == link);
            let row = match before {
                Some(row)
                    if !process.attributes_changed
                        && self.entries.contains_key(&row.descriptor.object)
                        && self.is_still(row, holder)? =>
                {
                    (*row).clone()
                }
                _ => {
                    let at = At { holder, others: &[], pidfd: process.pidfd.as_fd(), file: None };
                    let row = self.identify(&at, &process.descriptors, link, None);
                    let Some(row) = refusals.pass(row)? else { continue };
                    row
                }
            };
            if let Some(entry) = self.entries.get_mut(&row.descriptor.object) {
                entry.holders.push(holder);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Whether a row with the same link still is the same description. Sockets and pipes have links of their own;
    /// of the others only those that are shared can be mistaken.
    fn is_still(&self, row: &Row, holder: Holder) -> Result<bool> {
        let Some(entry) = self.entries.get(&row.descriptor.object) else { return Ok(false) };
        match entry.holders.first() {
            Some(first) if !entry.kind.is_socket() => {
                task::same_description((first.tid, first.fd), (holder.tid, holder.fd))
                    .attempt(|| "compare two descriptors".into())
            }
            _ => Ok(true),
        }
    }

    /// A row that is new, or whose description may have changed. `before` are those of the same table.
    fn identify(
        &mut self,
        at: &At<'_>,
        before: &[Row],
        link: String,
        file: Option<&OpenFile>,
    ) -> Result<Row> {
        let holder = at.holder;
        let what = || format!("read about descriptor {} of process {}", holder.fd, holder.process);
        let info = proc::descriptor_info(holder.tid, holder.fd).attempt(what)?;
        let flags =
            proc::info_field(&info, "flags").and_then(|text| i32::from_str_radix(text, 8).ok()).unwrap_or(0);
        let close_on_exec = flags & CLOSE_ON_EXEC != 0;
        let mut found = None;
        for (id, entry) in self.entries.iter().filter(|(_, entry)| entry.link == link) {
            let same = match (entry.kind, entry.holders.first(), file) {
                (kind, ..) if kind.is_socket() => true,
                (.., Some(file)) => entry.is(file),
                (_, Some(first), _) => task::same_description((first.tid, first.fd), (holder.tid, holder.fd))
                    .attempt(|| "compare two descriptors".into())?,
                // Not met yet in this pass: the row that was this one before may still be it.
                (_, None, _) => {
                    before.iter().any(|row| row.descriptor.fd == holder.fd && row.descriptor.object == *id)
                }
            };
            if same {
                found = Some(*id);
                break;
            }
        }
        let object = match found {
            Some(id) => id,
            None => {
                let kind = Kind::identify(&link, at, &self.capturer.surroundings)?;
                let id = self.next_object();
                self.entries.insert(id, Entry::new(kind, link.clone()));
                id
            }
        };
        Ok(Row { link, descriptor: Descriptor { fd: holder.fd, object, close_on_exec } })
    }

    fn capture_entry(
        &mut self,
        id: ObjectId,
        processes: &BTreeMap<Pid, Process>,
        changed: &mut Vec<(ObjectId, Object)>,
        framed: &Framed,
    ) -> Result<()> {
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        let kind = entry.kind;
        if matches!(kind, Kind::Tcp { .. }) {
            return self.capture_socket(id, processes, changed, framed);
        }
        let (holders, file) = (entry.holders.clone(), entry.seen.map(|seen| seen.file));
        let Some((holder, others)) = holders.split_first() else { return Ok(()) };
        let own = self.own.clone();
        let Some(pidfd) = flight::pidfd_of(own.as_deref(), holder, processes) else { return Ok(()) };
        let at = At { holder: *holder, others, pidfd, file };
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        let flags = entry.seen.map(|seen| seen.flags);
        let only_flags =
            matches!(kind, Kind::Device | Kind::Output(_) | Kind::Pipe { .. } | Kind::Namespace(_));
        if only_flags && flags.is_some() && flags == entry.flags && entry.last.is_some() {
            return Ok(());
        }
        if kind.is_told_by_numbers() {
            let numbers = entry.seen.and_then(|seen| seen.socket);
            let numbers = numbers.ok_or_else(|| {
                at.refuse(
                    "a socket that this kernel does not list",
                    "run it on a kernel with BPF and its type information",
                )
            })?;
            // Equal length of a queue is not equal content.
            let quiet = numbers.waiting == 0 && numbers.more[0] == 0;
            if quiet && entry.numbers == Some(numbers) && flags == entry.flags && entry.last.is_some() {
                return Ok(());
            }
            let known = entry.numbers.and(entry.last.as_ref());
            let object = self.capturer.capture_numbered(kind, &at, &numbers, known)?;
            let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
            (entry.numbers, entry.flags) = (Some(numbers), flags);
            if entry.last.as_ref() != Some(&object) {
                changed.push((id, object.clone()));
                entry.last = Some(object);
            }
            return Ok(());
        }
        let fingerprint = self.capturer.fingerprint(kind, &at)?;
        if fingerprint.is_some() && fingerprint == entry.fingerprint && entry.last.is_some() {
            return Ok(());
        }
        if let Kind::Pipe { inode } | Kind::Fifo { inode } = kind
            && !self.pipes.contains_key(&inode)
        {
            let content = ObjectId(self.next);
            self.next += 1;
            self.pipes.insert(inode, (content, None));
        }
        let everything: Vec<(ObjectId, Holder)> = match kind {
            Kind::Epoll => {
                let held = self.entries.iter().filter_map(|(id, entry)| Some((*id, *entry.holders.first()?)));
                held.collect()
            }
            _ => Vec::new(),
        };
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        let pipes = &self.pipes;
        let objects = |inode: Inode| match inode {
            Inode::Pipe(inode) => pipes.get(&inode).map(|(id, _)| *id),
            // Only unix sockets refer to others.
            Inode::Socket(_) => None,
            Inode::Watched(target) => {
                everything.iter().find(|(_, holder)| target.is((holder.tid, holder.fd))).map(|(id, _)| *id)
            }
        };
        let object = match self.ahead.remove(&id) {
            Some(object) => object,
            None => self.capturer.capture(kind, &at, &objects)?,
        };
        if entry.last.as_ref().is_none_or(|last| !object.same_as(last)) {
            changed.push((id, object.clone()));
            entry.last = Some(object);
        }
        entry.fingerprint = fingerprint;
        entry.flags = flags;
        Ok(())
    }

    fn capture_socket(
        &mut self,
        id: ObjectId,
        processes: &BTreeMap<Pid, Process>,
        changed: &mut Vec<(ObjectId, Object)>,
        framed: &Framed,
    ) -> Result<()> {
        let clock = tcp::Clock {
            monotonic: task::clock(libc::CLOCK_MONOTONIC),
            pingpong_threshold: self.pingpong_threshold,
        };
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        let socket = match &mut entry.socket {
            Some(socket) => socket,
            none => {
                let Some(holder) = entry.holders.first() else { return Ok(()) };
                let pidfd = flight::pidfd_of(self.own.as_deref(), holder, processes);
                let Some(pidfd) = pidfd else { return Ok(()) };
                let fd = task::take_descriptor(pidfd, holder.fd)
                    .attempt(|| format!("take a duplicate of descriptor {}", holder.fd))?;
                none.insert(Socket::new(fd))
            }
        };
        let refuse = |error: tcp::Error| Error::Unsupported {
            pid: entry.holders.first().map_or(0, |holder| holder.process),
            what: error.to_string(),
            advice: "see docs/supported.md",
        };
        // Of a connection that the workload has closed the kernel lists nothing.
        let seen = if entry.holders.is_empty() { None } else { entry.seen };
        let numbers = seen.and_then(|seen| seen.tcp);
        let (flags, fingerprint) = match seen {
            Some(seen) if numbers.is_some() => (StatusFlags(seen.flags), None),
            _ => {
                let fingerprint = tcp::fingerprint(socket.fd.as_fd()).map_err(refuse)?;
                (status_flags(socket.fd.as_fd())?, Some(fingerprint))
            }
        };
        if socket.last.is_some()
            && (socket.numbers, socket.fingerprint) == (numbers, fingerprint)
            && socket.flags == flags
        {
            return Ok(());
        }
        if let Some(numbers) = &numbers
            && let Some(last) = &mut socket.last
            && socket.flags == flags
            && let Some((buffers, connection)) =
                when_still(|| self.tcp.follow(socket.fd.as_fd(), last, numbers, clock, framed))
                    .map_err(refuse)?
        {
            last.buffers = buffers;
            last.state = State::Connected(Box::new(connection.clone()));
            socket.numbers = Some(*numbers);
            changed.push((id, Object::TcpProgress(Box::new(TcpProgress { buffers, connection }))));
            return Ok(());
        }
        let known = socket.last.as_ref().map(|last| &last.options);
        let captured = when_still(|| self.tcp.capture(socket.fd.as_fd(), known)).map_err(refuse)?;
        socket.numbers = numbers;
        // Taken again: the capture itself counts segments.
        socket.fingerprint = match fingerprint {
            Some(_) => Some(tcp::fingerprint(socket.fd.as_fd()).map_err(refuse)?),
            None => None,
        };
        socket.last = Some(captured.socket.clone());
        socket.flags = flags;
        self.unframed.extend(captured.unframed);
        if !entry.announced
            && let State::Connected(connection) = &captured.socket.state
        {
            self.arrived.push((captured.socket.local, connection.remote));
        }
        entry.announced = true;
        changed.push((id, Object::Tcp(Box::new(Tcp { socket: captured.socket, flags }))));
        Ok(())
    }

    /// The content of every pipe that has an end in the tree. Equal length is not equal content: always read.
    fn capture_pipes(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
        changed: &mut Vec<(ObjectId, Object)>,
    ) -> Result<()> {
        let mut ends: HashMap<u64, Vec<Holder>> = HashMap::new();
        for entry in self.entries.values() {
            if let Kind::Pipe { inode } | Kind::Fifo { inode } = entry.kind {
                // A reading end first: what nobody can read any more does not matter.
                let reads = matches!(&entry.last, Some(Object::PipeEnd(end)) if end.flags.reads());
                let list = ends.entry(inode).or_default();
                let at = if reads { 0 } else { list.len() };
                list.splice(at..at, entry.holders.iter().copied());
            }
        }
        self.pipes.retain(|inode, _| ends.contains_key(inode));
        for (inode, holders) in ends {
            let Some((holder, others)) = holders.split_first() else { continue };
            let own = self.own.clone();
            let Some(pidfd) = flight::pidfd_of(own.as_deref(), holder, processes) else { continue };
            let at = At { holder: *holder, others, pidfd, file: None };
            let content = Object::Pipe(self.capturer.capture_pipe(&at)?);
            if let Some((id, last)) = self.pipes.get_mut(&inode)
                && last.as_ref() != Some(&content)
            {
                changed.push((*id, content.clone()));
                *last = Some(content);
            }
        }
        Ok(())
    }
}

/// What keeps an open file from being captured for a moment.
fn check_passing(kind: Kind, file: &OpenFile, at: &At<'_>) -> Result<()> {
    let passing = match (&file.tcp, &file.socket) {
        (Some(numbers), _) if numbers.is_sending_urgent() => {
            Some(("urgent data that was sent and not received yet", "it is kept as soon as that has arrived"))
        }
        (_, Some(numbers)) => kind.passing(numbers),
        _ => None,
    };
    passing.map_or(Ok(()), |(what, advice)| Err(at.refuse(what, advice)))
}

/// Captures a socket once nothing moves in it. All its users stand still, but over the loopback what they have said may be on
/// its way between two of its reads, as may a timer of the kernel's.
fn when_still<T>(mut capture: impl FnMut() -> tcp::Result<T>) -> tcp::Result<T> {
    for _ in 0..STILL_ATTEMPTS {
        match capture() {
            Err(tcp::Error::Changed) => std::thread::sleep(STILL_REST),
            captured => return captured,
        }
    }
    capture()
}

fn status_flags(socket: BorrowedFd<'_>) -> Result<StatusFlags> {
    let flags = nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_GETFL);
    Ok(StatusFlags(flags.attempt(|| "read the status flags of a socket".into())?))
}

/// A socket as it is in a checkpoint.
pub fn as_socket(object: &Object) -> Option<&TcpSocket> {
    match object {
        Object::Tcp(tcp) => Some(&tcp.socket),
        _ => None,
    }
}
