//! Unix sockets (`unix(7)`) that talk to each other inside the workload.
//!
//! A connected socket is captured with what waits to be read from it; its peer is a socket of its own. The two are built
//! together: by `socketpair`, or, where addresses are visible, by connecting to a listener that exists for just that.
//!
//! Who did that, and whose messages wait, is said again where a socket tells it ([`super::unix_actor`]).

use std::collections::{HashMap, HashSet};
use std::fs::read_link;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fstatat, major, minor};
use serde::{Deserialize, Serialize};

use super::descriptor::{At, Inode, StatusFlags, Surroundings};
use super::unix_actor::Credentials;
pub(super) use super::unix_build::build;
use crate::checkpoint::{ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::unix::{Reader, Said};
use crate::sys::descriptor as sys;
use crate::sys::proc::{self, info_field};
use crate::sys::unix_diag::{STATE_ESTABLISHED, STATE_LISTEN, UnixDiag, UnixEntry};

/// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_SEQPACKET`.
const KINDS: [i32; 3] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];
/// Options that are numbers and are kept. The order is that of restoring.
pub(super) const OPTIONS: [i32; 8] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_RCVLOWAT,
    libc::SO_PASSCRED,
    libc::SO_OOBINLINE,
    libc::SO_PEEK_OFF,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
];
/// `include/uapi/asm-generic/socket.h`, since Linux 6.5.
pub(super) const SO_PASSPIDFD: i32 = 76;
/// Likewise, since Linux 6.16; without it every socket takes descriptors.
pub(super) const SO_PASSRIGHTS: i32 = 83;
/// Of [`OPTIONS`].
pub(super) const PASSES_CREDENTIALS: usize = 3;
pub(super) const PASSES_PIDFD: usize = 6;
/// Room for one look into a queue: more than a message can have with the largest send buffer that kernels allow by
/// default (`net.core.wmem_max`, 4 MiB since Linux 6.17, is asked for by almost nobody; what is longer is refused).
const ROOM: usize = 1 << 20;
/// Most that is carried of one queue. A send buffer bounds it; raised ones do not fit a pause.
const MAX_QUEUE: usize = 16 << 20;
/// Both directions shut down (`SHUTDOWN_MASK`).
const SHUT_BOTH: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixSocket {
    /// `SOCK_STREAM` …
    pub kind: i32,
    pub flags: StatusFlags,
    pub name: Option<Name>,
    /// Where its path is told from: the root, or for a relative path the working directory, of whoever bound it, as the
    /// workload's own root has it. `/` without a path.
    pub from: String,
    /// The node in the file system, if the name is a path and the node is still there.
    pub node: Option<Node>,
    pub role: Role,
    /// Whom it tells as its other end (`SO_PEERCRED`): who listened, connected, or made the pair.
    pub credentials: Option<Credentials>,
    /// What waits to be read; of a stream in one piece.
    pub queue: Vec<Message>,
    /// RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2).
    pub shutdown: u8,
    /// By the order of [`OPTIONS`].
    pub options: [i32; OPTIONS.len()],
    /// Of receiving and sending, in microseconds; 0 is none.
    pub timeouts: [u64; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// As the workload sees it.
    Path(String),
    /// Without the leading NUL.
    Abstract(Vec<u8>),
}

impl Name {
    /// What follows the family in an address.
    pub(super) fn address(&self) -> Vec<u8> {
        match self {
            Name::Path(path) => path.as_bytes().to_vec(),
            Name::Abstract(name) => [&[0], name.as_slice()].concat(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub mode: u32,
    pub owner: (u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Unconnected,
    Listening {
        backlog: u32,
        /// Those who have connected and were not accepted, in their order.
        waiting: Vec<ObjectId>,
    },
    /// Connected to a listener that has not accepted it, by this process.
    Waiting {
        listener: ObjectId,
        caller: Credentials,
        /// What it has said already.
        said: Vec<Message>,
    },
    /// Each is the other's peer.
    Connected {
        peer: ObjectId,
    },
    /// A datagram socket connected to one that is not connected to it.
    Sending {
        peer: ObjectId,
    },
    /// Its peer is gone; with `reset`, leaving something unread, which is an error that waits here.
    Orphan {
        reset: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub sender: Sender,
    /// Of whoever sent it, of a socket that asks for them (`SO_PASSCRED`).
    pub credentials: Option<Credentials>,
    /// In flight with it (`SCM_RIGHTS`); of a stream with its first byte.
    pub descriptors: Vec<ObjectId>,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Which socket a message is from, as its receiver is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// One without a name.
    Unnamed,
    /// The peer, under its name.
    Peer,
    /// Another, by a name that its receiver may answer to.
    Other(Name),
}

/// The unix sockets of the workload's network namespace, looked at together once per stop.
pub(super) struct Survey {
    diag: Option<UnixDiag>,
    entries: Option<HashMap<u64, UnixEntry>>,
    /// Sockets in whose queue an empty message has been seen: the kernel shows such a message to one look only
    /// (`skb->peeked` in net/core/datagram.c), so that a later one cannot tell whether it is still there.
    unseen: HashSet<u64>,
    /// By socket, and by process and user as the supervisor sees them: whom it tells. A process may end and is told all the same.
    told: HashMap<u64, (u64, Option<Credentials>)>,
    /// By socket: what is in flight in its queue, for each message that carries something.
    carried: HashMap<u64, Vec<Vec<ObjectId>>>,
}

impl Survey {
    pub(super) fn new() -> Self {
        Self {
            diag: None,
            entries: None,
            unseen: HashSet::new(),
            told: HashMap::new(),
            carried: HashMap::new(),
        }
    }

    pub(super) fn forget(&mut self) {
        self.entries = None;
        self.carried.clear();
    }

    /// What [`in_flight`] has found, as objects.
    pub(super) fn set_carried(&mut self, carried: HashMap<u64, Vec<Vec<ObjectId>>>) {
        self.carried = carried;
    }

    fn entries(&mut self, surroundings: &Surroundings) -> io::Result<&HashMap<u64, UnixEntry>> {
        if self.entries.is_none() {
            let diag = match self.diag.take() {
                Some(diag) => diag,
                None => UnixDiag::open(surroundings.network.as_ref().map(AsFd::as_fd))?,
            };
            let dump = self.diag.insert(diag).dump()?;
            let there: HashSet<u64> = dump.iter().map(|entry| entry.inode).collect();
            self.unseen.retain(|inode| there.contains(inode));
            self.told.retain(|inode, _| there.contains(inode));
            self.entries = Some(dump.into_iter().map(|entry| (entry.inode, entry)).collect());
        }
        self.entries.as_ref().ok_or_else(|| io::Error::other("the list of unix sockets is gone"))
    }
}

pub(super) fn capture(
    inode: u64,
    at: &At<'_>,
    surroundings: &Surroundings,
    survey: &mut Survey,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<UnixSocket> {
    let entries = survey.entries(surroundings).attempt(|| "list the workload's unix sockets".to_owned())?;
    let Some(entry) = entries.get(&inode).cloned() else {
        return Err(
            at.refuse("a unix socket of another network namespace", "let the program stay in its namespaces")
        );
    };
    let peer = entry.peer.and_then(|peer| entries.get(&peer)).cloned();
    let socket = at.duplicate()?;
    let kind = i32::from(entry.kind);
    if !KINDS.contains(&kind) {
        return Err(at.refuse(format!("a unix socket of type {kind}"), "let the program use a stream"));
    }
    let flags = at.status_flags(&at.info()?)?;
    let name = capture_name(&entry, at)?;
    let (from, node) = capture_place(&entry, name.as_ref(), at, surroundings)?;
    let ready = readiness(&socket).attempt(|| "ask what a unix socket is ready for".to_owned())?;
    let listener = entries.values().find(|other| other.waiting.contains(&inode)).cloned();
    let role = match &listener {
        Some(listener) => capture_waiting(&entry, listener, at, objects)?,
        None => capture_role(&entry, peer.as_ref(), ready, at, objects)?,
    };
    check_reachable(&entry, peer.as_ref(), &role, name.as_ref(), at, surroundings)?;
    let mut options = [0; OPTIONS.len()];
    for (value, name) in options.iter_mut().zip(OPTIONS) {
        let asked = match sys::socket_option(socket.as_fd(), name) {
            Err(error) if name == SO_PASSRIGHTS && error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(1),
            asked => asked,
        };
        *value = asked.attempt(|| format!("ask for socket option {name}"))?;
    }
    let mut timeouts = [0; 2];
    for (value, name) in timeouts.iter_mut().zip([libc::SO_RCVTIMEO, libc::SO_SNDTIMEO]) {
        *value =
            sys::socket_timeout(socket.as_fd(), name).attempt(|| format!("ask for socket option {name}"))?;
    }
    let connected = entry.state == STATE_ESTABLISHED;
    let mut queue = Vec::new();
    if kind == libc::SOCK_DGRAM || connected {
        let peer_name = peer.as_ref().map_or(&[][..], |peer| peer.name.as_slice());
        // Where others can send to, and no connection stands in between.
        let open = name.is_some() && matches!(role, Role::Unconnected | Role::Sending { .. });
        let asks = options[PASSES_CREDENTIALS] != 0;
        queue = capture_queue(&socket, &entry, (peer_name, open, asks), ready, at, surroundings, survey)?;
    }
    if options[PASSES_PIDFD] != 0 && options[PASSES_CREDENTIALS] == 0 && !queue.is_empty() {
        let what =
            "messages waiting in a unix socket that asks for pidfds (SO_PASSPIDFD) and not for credentials";
        return Err(at.refuse(what, "it is kept as soon as they are read"));
    }
    let shutdown = entry.shutdown;
    let credentials = capture_credentials(inode, &socket, at, survey)?;
    Ok(UnixSocket { kind, flags, name, from, node, role, credentials, queue, shutdown, options, timeouts })
}

fn capture_credentials(
    inode: u64,
    socket: &OwnedFd,
    at: &At<'_>,
    survey: &mut Survey,
) -> Result<Option<Credentials>> {
    let what = || "ask for the credentials of a unix socket's peer".to_owned();
    let Some((who, groups)) = sys::peer_credentials(socket.as_fd()).attempt(what)? else { return Ok(None) };
    let stamp = u64::from(who.uid) << 32 | who.pid as u64;
    if let Some((then, told)) = survey.told.get(&inode)
        && *then == stamp
    {
        return Ok(told.clone());
    }
    let pid = inner_pid(who.pid, at)?;
    let told = Some(Credentials { pid, uid: who.uid, gid: who.gid, groups });
    survey.told.insert(inode, (stamp, told.clone()));
    Ok(told)
}

/// A process as the workload sees it; 0 if it has ended, or is none of the workload's.
fn inner_pid(pid: i32, at: &At<'_>) -> Result<Pid> {
    // A process of the workload's has as many numbers as any other.
    let depth = proc::status(at.holder.root)
        .attempt(|| format!("read the numbers of process {}", at.holder.root))?
        .namespaced
        .len();
    let numbers = proc::status(pid).ok().filter(|_| pid > 0).map(|status| status.namespaced);
    let pid = numbers.filter(|numbers| numbers.len() == depth).and_then(|numbers| numbers.last().copied());
    Ok(pid.unwrap_or(0))
}

fn readiness(socket: &OwnedFd) -> io::Result<PollFlags> {
    let mut ask = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut ask, PollTimeout::ZERO)?;
    Ok(ask[0].revents().unwrap_or(PollFlags::empty()))
}

fn capture_name(entry: &UnixEntry, at: &At<'_>) -> Result<Option<Name>> {
    match entry.name.as_slice() {
        [] => Ok(None),
        [0, name @ ..] => Ok(Some(Name::Abstract(name.to_vec()))),
        path => {
            let path = path.strip_suffix(&[0]).unwrap_or(path);
            let shown = String::from_utf8_lossy(path).into_owned();
            if shown.as_bytes() != path || has_parent_steps(&shown) {
                let what = format!("the unix socket {shown}, whose path has .. in it or is not UTF-8");
                return Err(at.refuse(what, "give it a plain path"));
            }
            Ok(Some(Name::Path(shown)))
        }
    }
}

pub(super) fn has_parent_steps(path: &str) -> bool {
    path.split('/').any(|step| step == "..")
}

/// From where a path is told, and its node, if what is at the path is the one this socket was bound to. The path was said by
/// whoever bound it: before or after a `chroot`, or a change of its working directory.
fn capture_place(
    entry: &UnixEntry,
    name: Option<&Name>,
    at: &At<'_>,
    surroundings: &Surroundings,
) -> Result<(String, Option<Node>)> {
    let Some(Name::Path(path)) = name else { return Ok(("/".to_owned(), None)) };
    let root = proc::path(at.holder.root, "root");
    let mut places = Vec::new();
    if path.starts_with('/') {
        places.push("/".to_owned());
    }
    for holder in std::iter::once(&at.holder).chain(at.others) {
        let link = if path.starts_with('/') { "root" } else { "cwd" };
        let place =
            read_link(proc::path(holder.tid, link)).attempt(|| format!("read {link} of {}", holder.tid));
        let place = place?.to_string_lossy().into_owned();
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let mut kept = None;
    for from in places {
        let Ok((directory, shown)) = directory_of(&root, &from, path) else { continue };
        if !surroundings.is_scratch(&shown) {
            continue;
        }
        let file = path.rsplit('/').next().unwrap_or_default();
        let stat = fstatat(&directory, file, AtFlags::AT_SYMLINK_NOFOLLOW);
        // The kernel lists the low 32 bits of the inode, and the device as MKDEV in include/linux/kdev_t.h makes it.
        let node = stat.ok().filter(|stat| {
            entry.node.is_some_and(|(inode, device)| {
                stat.st_ino as u32 == inode
                    && major(stat.st_dev) == u64::from(device >> 20)
                    && minor(stat.st_dev) == u64::from(device & 0xf_ffff)
            })
        });
        if let Some(stat) = node {
            let node = Node { mode: stat.st_mode & 0o7777, owner: (stat.st_uid, stat.st_gid) };
            return Ok((from, Some(node)));
        }
        kept.get_or_insert(from);
    }
    let refusal = || {
        let what = format!("the unix socket {path}, which is not in a directory that is kept (any more)");
        at.refuse(
            what,
            "let it be in /tmp, /run or a directory declared with --scratch, and leave that in place",
        )
    };
    Ok((kept.ok_or_else(refusal)?, None))
}

/// The directory of a path that is told `from` there, opened, and its own path from `root`.
pub(super) fn directory_of(root: &Path, from: &str, path: &str) -> io::Result<(OwnedFd, String)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let top = open(root, flags, Mode::empty())?;
    let directory = match path.rsplit_once('/') {
        Some(("", _)) => openat2(&top, from, how)?,
        Some((parent, _)) if path.starts_with('/') => openat2(&openat2(&top, from, how)?, parent, how)?,
        Some((parent, _)) => openat2(&top, format!("{from}/{parent}").as_str(), how)?,
        None => openat2(&top, from, how)?,
    };
    let shown = read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    Ok((directory, shown.to_string_lossy().into_owned()))
}

fn capture_role(
    entry: &UnixEntry,
    peer: Option<&UnixEntry>,
    ready: PollFlags,
    at: &At<'_>,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<Role> {
    if entry.state == STATE_LISTEN {
        let (waiting, backlog) = entry.queues;
        let known: Option<Vec<ObjectId>> =
            entry.waiting.iter().map(|inode| objects(Inode::Socket(*inode))).collect();
        let known = known.filter(|known| known.len() == waiting as usize);
        // Such a listener is built last (`Shell::build`), which one in flight is not.
        let can_be_built = waiting == 0 || !at.holder.in_flight;
        return match known.filter(|_| can_be_built) {
            Some(waiting) => Ok(Role::Listening { backlog, waiting }),
            None => {
                let what = format!("a listening unix socket with {waiting} connections not accepted");
                Err(at.refuse(what, "it is kept as soon as they are accepted"))
            }
        };
    }
    let datagrams = i32::from(entry.kind) == libc::SOCK_DGRAM;
    let Some(inode) = entry.peer else {
        return match entry.state {
            STATE_ESTABLISHED if !datagrams => Ok(Role::Orphan { reset: ready.contains(PollFlags::POLLERR) }),
            _ => Ok(Role::Unconnected),
        };
    };
    if inode == 0 {
        // A peer that was closed has shut down both directions of a connection; one that was not accepted has not.
        if datagrams || entry.shutdown == SHUT_BOTH {
            return Ok(Role::Orphan { reset: !datagrams && ready.contains(PollFlags::POLLERR) });
        }
        return Err(at.refuse("a unix socket not accepted yet", "it is kept as soon as it is accepted"));
    }
    let (Some(peer), Some(id)) = (peer, objects(Inode::Socket(inode))) else {
        return Err(at.refuse(
            "a unix socket whose other end is held by nobody in the workload",
            "start the other program inside the workload, or let them talk over TCP",
        ));
    };
    match peer.peer {
        Some(back) if back == entry.inode => Ok(Role::Connected { peer: id }),
        None if datagrams => Ok(Role::Sending { peer: id }),
        _ => {
            Err(at.refuse("datagram sockets connected in a chain", "connect them in pairs, or to one server"))
        }
    }
}

/// One that a listener has not accepted.
fn capture_waiting(
    entry: &UnixEntry,
    listener: &UnixEntry,
    at: &At<'_>,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<Role> {
    let advice = "it is kept as soon as it is accepted";
    let Some(id) = objects(Inode::Socket(listener.inode)) else {
        return Err(at.refuse("a unix socket not accepted yet, by a listener outside", advice));
    };
    if at.holder.in_flight {
        return Err(at.refuse("a unix socket not accepted yet", advice));
    }
    // Who has connected is told to whoever accepts, and to nobody before. It is taken for who has the socket.
    let status =
        proc::status(at.holder.tid).attempt(|| format!("read whose process {} is", at.holder.process))?;
    let (pid, uid, gid) = (at.holder.process, status.uids[1], status.gids[1]);
    let caller = Credentials { pid, uid, gid, groups: status.groups };
    let said = if entry.queues.1 > 0 { capture_said(at)? } else { Vec::new() };
    Ok(Role::Waiting { listener: id, caller, said })
}

/// What waits in the socket that is not accepted yet, which has no descriptor.
fn capture_said(at: &At<'_>) -> Result<Vec<Message>> {
    let refuse = |what: &str| {
        let what = format!("a unix socket not accepted yet that has said {what}");
        at.refuse(what, "it is kept as soon as it is accepted")
    };
    let reader = Reader::shared().ok().zip(at.file);
    let (reader, file) =
        reader.ok_or_else(|| refuse("something, on a kernel without BPF and its type information"))?;
    let said = reader.said(file).attempt(|| "read what a unix socket has said".to_owned())?;
    let said = said.ok_or_else(|| refuse("something urgent"))?;
    let mut messages = Vec::new();
    for message in said {
        if message.carries {
            return Err(refuse("something with descriptors"));
        }
        let bytes = message.bytes.ok_or_else(|| refuse("much at once"))?;
        let credentials = match message.sender {
            Some((pid, uid, gid)) => {
                Some(Credentials { pid: inner_pid(pid, at)?, uid, gid, groups: Vec::new() })
            }
            None => None,
        };
        messages.push(Message { sender: Sender::Unnamed, credentials, descriptors: Vec::new(), bytes });
    }
    Ok(messages)
}

/// That addresses can be brought about again.
fn check_reachable(
    entry: &UnixEntry,
    peer: Option<&UnixEntry>,
    role: &Role,
    name: Option<&Name>,
    at: &At<'_>,
    surroundings: &Surroundings,
) -> Result<()> {
    let datagrams = i32::from(entry.kind) == libc::SOCK_DGRAM;
    let peer_named = peer.is_some_and(|peer| !peer.name.is_empty());
    match role {
        Role::Connected { .. } if datagrams && peer_named != name.is_some() => {
            Err(at.refuse("a pair of datagram sockets of which one has a name", "name both or none"))
        }
        Role::Sending { .. } | Role::Connected { .. } if datagrams && peer_named => {
            let there = peer.is_some_and(|peer| {
                let path = peer.name.strip_suffix(&[0]).unwrap_or(&peer.name);
                let name = std::str::from_utf8(path).map(|path| Name::Path(path.to_owned())).ok();
                peer.name.first() == Some(&0)
                    || capture_place(peer, name.as_ref(), at, surroundings)
                        .is_ok_and(|(_, node)| node.is_some())
            });
            if there {
                return Ok(());
            }
            Err(at.refuse(
                "a datagram socket whose server's path was removed",
                "leave the socket's path in place",
            ))
        }
        Role::Sending { .. } => {
            Err(at.refuse("a datagram socket connected to one without a name", "give the server a name"))
        }
        _ => Ok(()),
    }
}

fn capture_queue(
    socket: &OwnedFd,
    entry: &UnixEntry,
    (peer_name, open, asks): (&[u8], bool, bool),
    ready: PollFlags,
    at: &At<'_>,
    surroundings: &Surroundings,
    survey: &mut Survey,
) -> Result<Vec<Message>> {
    let stream = i32::from(entry.kind) == libc::SOCK_STREAM;
    let waiting =
        sys::readable_bytes(socket.as_fd()).attempt(|| "ask how much waits in a unix socket".to_owned())?;
    // Looking at an empty stream, or at messages, takes an error that waits, and the program would never see it.
    if stream && waiting == 0 {
        return Ok(Vec::new());
    }
    if !stream && ready.contains(PollFlags::POLLERR) {
        return Err(
            at.refuse("a unix socket with an error not read yet", "it is kept as soon as the error is read")
        );
    }
    if stream && sys::has_urgent_byte(socket.as_fd()) {
        return Err(at.refuse("a unix socket with an urgent byte", "it is kept as soon as the byte is read"));
    }
    let seen = look_from_start(socket, stream, waiting, entry)?;
    // One without bytes is shown to one look only, be it the program's or ours.
    let reader = at.file.zip(Reader::shared().ok()).filter(|_| !stream);
    let what = || "count what waits in a unix socket".to_owned();
    if let Some((file, reader)) = reader
        && reader.count(file).attempt(what)? != seen.len()
    {
        let listed = reader.waiting(file).attempt(what)?;
        return queue_as_listed(listed, (!peer_name.is_empty(), asks), at);
    }
    let hidden = seen.is_empty() && ready.contains(PollFlags::POLLIN) && entry.shutdown & 1 == 0;
    if seen.iter().any(|message| message.bytes.is_empty()) || hidden {
        survey.unseen.insert(entry.inode);
    } else if !ready.contains(PollFlags::POLLIN) {
        survey.unseen.remove(&entry.inode);
    }
    if reader.is_none() && survey.unseen.contains(&entry.inode) {
        return Err(
            at.refuse("an empty message waiting in a unix socket", "it is kept as soon as that is read")
        );
    }
    let carried = survey.carried.remove(&entry.inode).unwrap_or_default();
    let flights = seen.iter().map(|message| message.descriptors.len()).filter(|count| *count > 0);
    let lost = seen.iter().any(|message| message.more_descriptors);
    if lost || !flights.eq(carried.iter().map(Vec::len)) {
        return Err(
            at.refuse("descriptors in flight in a unix socket", "it is kept as soon as they are received")
        );
    }
    let mut carried = carried.into_iter();
    if seen.iter().any(|message| message.truncated)
        || seen.iter().map(|m| m.bytes.len()).sum::<usize>() > MAX_QUEUE
    {
        return Err(
            at.refuse("a unix socket with very much in its queue", "leave its send buffer at its default")
        );
    }
    let total: usize = seen.iter().map(|message| message.bytes.len()).sum();
    if stream && total != waiting {
        let source = io::Error::other(format!("{waiting} bytes wait and {total} were seen"));
        return Err(Error::System { attempt: "look at what waits in a unix socket".to_owned(), source });
    }
    let mut queue: Vec<Message> = Vec::new();
    for message in seen {
        // A stream's reader is not told a sender.
        let sender = match message.sender.as_slice() {
            [] => Sender::Unnamed,
            _ if stream => Sender::Unnamed,
            name if name == peer_name => Sender::Peer,
            name => Sender::Other(name_of_other(name, open, at, surroundings)?),
        };
        let credentials = match message.credentials.filter(|who| asks && who.pid > 0) {
            Some(who) => Some(Credentials {
                pid: inner_pid(who.pid, at)?,
                uid: who.uid,
                gid: who.gid,
                groups: Vec::new(),
            }),
            None => None,
        };
        let descriptors = match message.descriptors.as_slice() {
            [] => Vec::new(),
            _ => carried.next().unwrap_or_default(),
        };
        match queue.last_mut() {
            // Of a stream only who has sent what, and what is in flight with it, keeps pieces apart.
            Some(last)
                if stream
                    && last.credentials == credentials
                    && last.descriptors.is_empty()
                    && descriptors.is_empty() =>
            {
                last.bytes.extend(message.bytes);
            }
            _ => queue.push(Message { sender, credentials, descriptors, bytes: message.bytes }),
        }
    }
    Ok(queue)
}

/// Messages, some of them without bytes, as the kernel has them.
fn queue_as_listed(listed: Vec<Said>, (peer_named, asks): (bool, bool), at: &At<'_>) -> Result<Vec<Message>> {
    let refuse = |beside: &str| {
        let what = format!("an empty message waiting in a unix socket, with {beside}");
        at.refuse(what, "it is kept as soon as that is read")
    };
    let mut queue = Vec::new();
    for message in listed {
        if message.carries {
            return Err(refuse("descriptors in flight"));
        }
        let bytes = message.bytes.ok_or_else(|| refuse("one of more than some 3,700 bytes"))?;
        let sender = match (message.from_peer, message.from_named) {
            (true, _) if peer_named => Sender::Peer,
            (_, false) => Sender::Unnamed,
            _ => return Err(refuse("one from a named socket that is not the peer")),
        };
        let credentials = match message.sender.filter(|(pid, ..)| asks && *pid > 0) {
            Some((pid, uid, gid)) => {
                Some(Credentials { pid: inner_pid(pid, at)?, uid, gid, groups: Vec::new() })
            }
            None => None,
        };
        queue.push(Message { sender, credentials, descriptors: Vec::new(), bytes });
    }
    Ok(queue)
}

/// The name of a sender that is not the peer: one that can be had for a moment.
fn name_of_other(name: &[u8], open: bool, at: &At<'_>, surroundings: &Surroundings) -> Result<Name> {
    if let [0, name @ ..] = name
        && open
    {
        return Ok(Name::Abstract(name.to_vec()));
    }
    let path = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok();
    if let Some(path) = path.filter(|path| open && path.starts_with('/') && !has_parent_steps(path)) {
        let place = directory_of(&proc::path(at.holder.root, "root"), "/", path);
        if place.is_ok_and(|(_, shown)| surroundings.is_scratch(&shown)) {
            return Ok(Name::Path(path.to_owned()));
        }
    }
    let advice = "it is kept as soon as that is read; or connect the two, or leave the sender without a name";
    Err(at.refuse("a datagram waiting from a socket that has a name and is not the peer", advice))
}

/// Everything in the queue, from the offset that is set. Reads no further than what is there: the end of a stream would
/// take the error with it.
fn look(socket: BorrowedFd<'_>, stream: bool, waiting: usize, shutdown: u8) -> io::Result<Vec<sys::Peeked>> {
    let mut seen = Vec::new();
    let mut total = 0;
    while !(stream && total >= waiting) && total <= MAX_QUEUE {
        let Some(message) = sys::peek(socket, ROOM)? else { break };
        // The end of a connection of messages looks like an empty one.
        if message.bytes.is_empty() && (stream || shutdown & 1 != 0) {
            break;
        }
        let (begun, empty) = (total, message.bytes.is_empty());
        total += message.bytes.len();
        if stream && !message.descriptors.is_empty() {
            seen.extend(take_apart(socket, message, begun)?);
        } else {
            seen.push(message);
        }
        if empty {
            break;
        }
    }
    Ok(seen)
}

/// A look into a stream goes up to the end of a piece with descriptors, and shows them. A reader gets them with the first byte of
/// that piece.
fn take_apart(socket: BorrowedFd<'_>, mut whole: sys::Peeked, begun: usize) -> io::Result<Vec<sys::Peeked>> {
    let seek = |at: usize| {
        let at = i32::try_from(at).map_err(io::Error::other)?;
        sys::set_socket_option(socket, libc::SO_PEEK_OFF, at)
    };
    seek(begun)?;
    let without = sys::before_last_piece(socket, whole.bytes.len())?;
    seek(begun + whole.bytes.len())?;
    let rest = whole.bytes.split_off(without);
    let mut pieces = Vec::new();
    if without > 0 {
        pieces.push(sys::Peeked {
            bytes: std::mem::take(&mut whole.bytes),
            sender: whole.sender.clone(),
            descriptors: Vec::new(),
            more_descriptors: false,
            credentials: whole.credentials,
            truncated: false,
        });
    }
    pieces.push(sys::Peeked { bytes: rest, ..whole });
    Ok(pieces)
}

/// Duplicates of what is in flight in a socket's queue, for each message that carries something. Whatever else is to be said of
/// the queue is for [`capture`] to say.
pub(super) fn in_flight(
    inode: u64,
    at: &At<'_>,
    surroundings: &Surroundings,
    survey: &mut Survey,
) -> Result<Vec<Vec<OwnedFd>>> {
    let info = at.info()?;
    // Linux says so since 5.6.
    let count = info_field(&info, "scm_fds").ok_or_else(|| at.unreadable("scm_fds"))?;
    if count == "0" {
        return Ok(Vec::new());
    }
    let entries = survey.entries(surroundings).attempt(|| "list the workload's unix sockets".to_owned())?;
    let Some(entry) = entries.get(&inode).filter(|entry| entry.state != STATE_LISTEN).cloned() else {
        return Ok(Vec::new());
    };
    let what = || "look at what is in flight in a unix socket".to_owned();
    let socket = at.duplicate()?;
    let stream = i32::from(entry.kind) == libc::SOCK_STREAM;
    let waiting = sys::readable_bytes(socket.as_fd()).attempt(what)?;
    let failed = !stream && readiness(&socket).attempt(what)?.contains(PollFlags::POLLERR);
    if failed || stream && waiting == 0 {
        return Ok(Vec::new());
    }
    let seen = look_from_start(&socket, stream, waiting, &entry)?;
    if seen.iter().any(|message| message.bytes.is_empty()) {
        survey.unseen.insert(inode);
    }
    Ok(seen.into_iter().map(|message| message.descriptors).filter(|carried| !carried.is_empty()).collect())
}

/// [`look`] at everything.
fn look_from_start(
    socket: &OwnedFd,
    stream: bool,
    waiting: usize,
    entry: &UnixEntry,
) -> Result<Vec<sys::Peeked>> {
    let offset = sys::socket_option(socket.as_fd(), libc::SO_PEEK_OFF);
    let offset = offset.attempt(|| "ask how far a unix socket was looked at".to_owned())?;
    let looked = sys::set_socket_option(socket.as_fd(), libc::SO_PEEK_OFF, 0)
        .and_then(|()| look(socket.as_fd(), stream, waiting, entry.shutdown));
    // Whatever came of it, the offset is the program's.
    sys::set_socket_option(socket.as_fd(), libc::SO_PEEK_OFF, offset)
        .attempt(|| "leave a unix socket as it was".to_owned())?;
    looked.attempt(|| "look at what waits in a unix socket".to_owned())
}
