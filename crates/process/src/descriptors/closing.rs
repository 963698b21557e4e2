//! Connections that the workload closes while they still have something to say (docs/decisions/0007).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use super::{Descriptors, Entry, Row, Socket};
use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::object::descriptor::Kind;
use crate::sys::bpf::files::OpenFile;
use crate::sys::ptrace::Tid;
use crate::sys::{datagram, descriptor as sys, proc, task, tcp_repair};
use crate::tree::Process;

/// What a socket is asked for while the workload runs, to know whether its end needs us.
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_CLOSED: u8 = 7;
const TCP_TIME_WAIT: u8 = 6;
const TCP_FIN_WAIT2: u8 = 5;
/// How long a close may take from its notice on: some microseconds, unless its thread waits for a processor. After that the
/// descriptor is taken to stay open.
const CLOSING: Duration = Duration::from_secs(1);
/// How often connections that were closed are asked, between checkpoints, whether they are at their end.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Connections of the workload to itself that are remembered when it closes them, until the next checkpoint or until they were accepted.
const CLOSED_TO_ITSELF: usize = 1024;

/// Our duplicate of a TCP socket that the workload is about to close, or has just closed.
#[derive(Debug)]
pub(super) struct Stray {
    fd: OwnedFd,
    /// Where it is being closed: the host's process id, and the number.
    closing: (Tid, i32),
    since: Instant,
}

impl Stray {
    fn inode(&self) -> Option<u64> {
        nix::sys::stat::fstat(&self.fd).ok().map(|stat| stat.st_ino)
    }
}

impl Descriptors {
    /// Refuses connections of the workload to itself that it has not accepted: one end has no descriptor, and no frames
    /// tell of it as they do of another host's.
    pub(super) fn find_not_accepted(&mut self, processes: &BTreeMap<Pid, Process>) -> Result<()> {
        let numbers = |entry: &Entry| entry.seen.and_then(|seen| seen.tcp);
        let listening = |entry: &&Entry| numbers(entry).is_some_and(|numbers| numbers.has_not_accepted());
        let waits = self.entries.values().find(|entry| !entry.holders.is_empty() && listening(entry));
        let Some(listener) = waits.and_then(|entry| entry.holders.first()).copied() else {
            self.closed_to_itself.clear();
            return Ok(());
        };
        let mut ends = HashMap::new();
        let mut ports = HashSet::new();
        for entry in self.entries.values() {
            let Kind::Tcp { .. } = entry.kind else { continue };
            let known = entry.socket.as_ref();
            let taken = match (known, entry.holders.first()) {
                (Some(_), _) | (_, None) => None,
                (None, Some(holder)) => self
                    .pidfd_of(holder, processes)
                    .and_then(|pidfd| task::take_descriptor(pidfd, holder.fd).ok()),
            };
            let fd = known.map(|socket| socket.fd.as_fd()).or(taken.as_ref().map(AsFd::as_fd));
            let Some(fd) = fd else { continue };
            let address = |of_peer| {
                let name = datagram::name(fd, of_peer).ok()??;
                let address = datagram::address_of(&name)?;
                Some((address.ip().to_canonical(), address.port()))
            };
            let Some(local) = address(false) else { continue };
            if listening(&entry) {
                ports.insert(local.1);
            } else if let (Some(remote), Some(holder)) = (address(true), entry.holders.first()) {
                ends.insert((local, remote), *holder);
            }
        }
        let own: HashSet<IpAddr> = ends.keys().map(|((address, _), _)| *address).collect();
        let alone = ends.iter().find(|((local, remote), _)| {
            ports.contains(&remote.1) && own.contains(&remote.0) && !ends.contains_key(&(*remote, *local))
        });
        let advice = "it is kept as soon as it is accepted";
        if let Some((_, holder)) = alone {
            let what = format!(
                "a connection of the workload to itself that it has not accepted (descriptor {})",
                holder.fd
            );
            return Err(Error::Unsupported { pid: holder.process, what, advice });
        }
        // Closed without a notice.
        let nobodys = self.entries.values().filter(|entry| entry.holders.is_empty());
        let closed: Vec<_> =
            nobodys.filter_map(|entry| own_ends(entry.socket.as_ref()?.fd.as_fd())).collect();
        closed.into_iter().for_each(|ends| self.note_closed_to_itself(ends));
        self.forget_accepted()?;
        match self.closed_to_itself.first() {
            Some((server, client)) => {
                let what = format!(
                    "a connection of the workload to itself that it has not accepted, from {client} to {server}, which its client has \
                     closed"
                );
                Err(Error::Unsupported { pid: listener.process, what, advice })
            }
            None => Ok(()),
        }
    }

    /// Of the connections that the workload has closed to itself those stay that wait to be accepted.
    fn forget_accepted(&mut self) -> Result<()> {
        let mut waiting = Vec::new();
        for (server, client) in &self.closed_to_itself {
            let waits = self.tcp.waits(*server, *client);
            if waits.attempt(|| format!("look up the connection from {client} to {server}"))? {
                waiting.push((*server, *client));
            }
        }
        self.closed_to_itself = waiting;
        Ok(())
    }

    /// Remembers a connection that is being closed: when its other end is not accepted yet, nothing else tells of it.
    fn note_closed_to_itself(&mut self, ends: (SocketAddr, SocketAddr)) {
        // What cannot be looked up now is looked up by the next checkpoint, which says so. One that waits is enough to refuse: as long as the
        // first does, no more are remembered.
        if self.closed_to_itself.len() >= CLOSED_TO_ITSELF {
            let first = self.closed_to_itself.first().copied();
            let waits = first.is_some_and(|(server, client)| self.tcp.waits(server, client).unwrap_or(true));
            if waits || self.forget_accepted().is_err() {
                return;
            }
        }
        if self.closed_to_itself.len() < CLOSED_TO_ITSELF {
            self.closed_to_itself.push(ends);
        }
    }

    /// A duplicate of a connection that the workload has already closed: kept until all is acknowledged.
    pub(crate) fn adopt_orphan(&mut self, fd: OwnedFd) {
        let inode = nix::sys::stat::fstat(&fd).map_or(0, |stat| stat.st_ino);
        self.insert_orphan(fd, inode);
    }

    /// Whether [`Descriptors::settle`] has something to wait for.
    pub(crate) fn is_closing(&self) -> bool {
        !self.strays.is_empty()
    }

    /// While the workload runs: ends the connections that it has closed since, where nobody else in the tree has them, and
    /// lets go of those that need us no more.
    pub(crate) fn settle(&mut self, processes: &BTreeMap<Pid, Process>) {
        if !self.strays.is_empty() && Instant::now() >= self.settle_at {
            self.settle_strays(processes);
        }
        if Instant::now() >= self.look_again {
            self.look_again = Instant::now() + LOOK_AGAIN;
            self.entries.retain(|_, entry| {
                let orphan = entry.socket.as_ref().filter(|socket| socket.orphan);
                orphan.is_none_or(|socket| still_ends(socket.fd.as_fd()))
            });
        }
    }

    fn settle_strays(&mut self, processes: &BTreeMap<Pid, Process>) {
        let mut open: HashMap<Tid, Vec<OpenFile>> = HashMap::new();
        // A descriptor can be on its way between two processes, in no table: only over a unix socket.
        let mut may_travel = false;
        for process in processes.values() {
            // One that cannot be listed may hold anything. It is ending, or the kernel lists nothing: the next checkpoint
            // finds what nobody holds.
            let listed = if process.headless { Ok(None) } else { self.list(process) };
            let Ok(Some(files)) = listed else { return self.give_up_strays() };
            may_travel |= files.iter().any(|file| {
                let local = file.socket.is_none_or(|numbers| i32::from(numbers.family) == libc::AF_UNIX);
                file.is_socket && file.tcp.is_none() && local
            });
            open.insert(process.host, files);
        }
        if may_travel {
            return self.give_up_strays();
        }
        let now = Instant::now();
        for stray in std::mem::take(&mut self.strays) {
            let Some(inode) = stray.inode() else { continue };
            let (host, fd) = stray.closing;
            let is_there =
                |open: &Vec<OpenFile>| open.iter().any(|file| (file.fd, file.inode) == (fd, inode));
            let under_way = open.get(&host).is_some_and(is_there);
            if under_way && now - stray.since < CLOSING {
                self.strays.push(stray);
            } else if !open.values().flatten().any(|file| file.inode == inode) {
                self.bury(stray.fd, inode);
            }
        }
    }

    /// While there are captures, the next one decides. While there are none nobody would: then the close is the workload's
    /// own, as without us.
    fn give_up_strays(&mut self) {
        if !self.capturing {
            self.strays.clear();
        }
        self.settle_at = Instant::now() + LOOK_AGAIN;
    }

    /// Does what the workload's close would have done, had our duplicate not been there, and keeps it until all that was
    /// said is acknowledged.
    fn bury(&mut self, fd: OwnedFd, inode: u64) {
        if !outlives_close(fd.as_fd()) {
            return;
        }
        // One that the peer has reset meanwhile says so, and needs no more.
        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
        self.insert_orphan(fd, inode);
    }

    fn insert_orphan(&mut self, fd: OwnedFd, inode: u64) {
        let id = self.next_object();
        let mut entry = Entry::new(Kind::Tcp { inode }, format!("socket:[{inode}]"));
        entry.socket = Some(Socket { orphan: true, ..Socket::new(fd) });
        self.entries.insert(id, entry);
    }

    /// A descriptor is about to be closed. True if its connection lives on and must soon be in a checkpoint.
    pub(crate) fn release(&mut self, process: &Process, fd: i32) -> bool {
        // The number may be another connection's than at the last checkpoint: servers give it away again at once.
        let link = proc::descriptor_link(process.host, fd).ok();
        let is_still = |row: &&Row| row.descriptor.fd == fd && Some(&row.link) == link.as_ref();
        let known = process.descriptors.iter().find(is_still).map(|row| row.descriptor.object);
        if let Some(id) = known
            && let Some(entry) = self.entries.get_mut(&id)
        {
            // Without it, the workload's close is the last one and does what it always does.
            let Some(socket) = entry.socket.take() else { return false };
            return self.hold(socket.fd, process, fd);
        }
        // Never in a checkpoint: opened and closed within this epoch.
        let Ok(duplicate) = task::take_descriptor(process.pidfd.as_fd(), fd) else { return false };
        let is_tcp =
            sys::socket_option(duplicate.as_fd(), libc::SO_PROTOCOL).is_ok_and(|p| p == libc::IPPROTO_TCP);
        is_tcp && self.hold(duplicate, process, fd)
    }

    fn hold(&mut self, duplicate: OwnedFd, process: &Process, fd: i32) -> bool {
        if let Some(ends) = own_ends(duplicate.as_fd()) {
            self.note_closed_to_itself(ends);
        }
        let needed = outlives_close(duplicate.as_fd());
        if needed {
            let closing = (process.host, fd);
            self.strays.push(Stray { fd: duplicate, closing, since: Instant::now() });
        }
        needed
    }

    /// All descriptors of a process are about to be closed.
    pub(crate) fn release_all(&mut self, process: &Process) -> bool {
        let Ok(open) = proc::descriptors(process.host) else { return false };
        let sockets = open.into_iter().filter(|(_, link)| link.starts_with("socket:"));
        sockets.fold(false, |any, (fd, _)| self.release(process, fd) || any)
    }

    /// Objects that nobody holds any more are gone, but for connections with something left to say.
    pub(super) fn find_orphans(&mut self) {
        for stray in std::mem::take(&mut self.strays) {
            let Some(inode) = stray.inode() else { continue };
            // Not closed yet, or a duplicate elsewhere in the tree keeps the connection open: not an orphan. An entry that nobody
            // holds is what was known of it before it was closed.
            let is_held = |entry: &Entry| {
                !entry.holders.is_empty() && matches!(entry.kind, Kind::Tcp { inode: i } if i == inode)
            };
            if !self.entries.values().any(is_held) {
                self.bury(stray.fd, inode);
            }
        }
        self.entries.retain(|_, entry| {
            if !entry.holders.is_empty() {
                return true;
            }
            let Some(socket) = &mut entry.socket else { return false };
            if socket.orphan {
                return still_ends(socket.fd.as_fd());
            }
            // Closed without a notice.
            if !outlives_close(socket.fd.as_fd()) {
                return false;
            }
            let _ = shutdown(socket.fd.as_raw_fd(), Shutdown::Both);
            socket.orphan = true;
            true
        });
    }
}

/// Both ends, the far one first, of a connection whose other end may be the workload's as well.
fn own_ends(socket: BorrowedFd<'_>) -> Option<(SocketAddr, SocketAddr)> {
    let address =
        |of_peer| Some(datagram::canonical(datagram::address_of(&datagram::name(socket, of_peer).ok()??)?));
    let (near, far) = (address(false)?, address(true)?);
    let is_own = near.ip() == far.ip() || near.ip().is_loopback() || far.ip().is_loopback();
    is_own.then_some((far, near))
}

/// Whether a connection goes on after its last descriptor is closed: it does until the peer has acknowledged all data and
/// the FIN, which the kernel would repeat and a backup that does not know of the connection could not. Not if there is
/// data that the program has not read, or if it wants no goodbye (`SO_LINGER` of no time): then the close is a reset.
fn outlives_close(socket: BorrowedFd<'_>) -> bool {
    let unread = tcp_repair::unread(socket).is_ok_and(|bytes| bytes > 0);
    let aborts = tcp_repair::get::<tcp_repair::Linger>(socket, libc::SOL_SOCKET, libc::SO_LINGER)
        .is_ok_and(|linger| linger.on != 0 && linger.seconds == 0);
    if unread || aborts {
        return false;
    }
    let has_fin_to_send =
        || tcp_repair::info(socket).is_ok_and(|info| matches!(info.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT));
    tcp_repair::unacknowledged(socket).is_ok_and(|bytes| bytes > 0) || has_fin_to_send()
}

/// Whether a connection that was closed still has to be held. In FIN_WAIT2 all that we said has been acknowledged; the
/// kernel needs no help with the rest.
fn still_ends(socket: BorrowedFd<'_>) -> bool {
    tcp_repair::info(socket)
        .is_ok_and(|info| !matches!(info.state, TCP_CLOSED | TCP_TIME_WAIT | TCP_FIN_WAIT2))
}
