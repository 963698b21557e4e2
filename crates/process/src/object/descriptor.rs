//! Open file descriptions: what they are, how they are captured and built again.
//!
//! Capturing goes: [`Kind::identify`] once for a description, then at every stop [`Capturer::fingerprint`], and
//! [`Capturer::capture`] only where that is new or absent. Nothing that is captured is kept open, consumed or changed:
//! a pipe end held a moment longer than the workload holds it would hide an end of file from it.
//!
//! Building is done in the supervisor's own process by a [`BuildContext`]; the descriptors are then passed to the
//! processes that own them. Three things only the owner itself can do, in a batch of calls: the interests of an epoll
//! instance ([`super::epoll::restore_interests`]), record locks ([`super::file::restore_process_locks`]) and
//! close-on-exec.
//!
//! Not kept, and not visible to the programs that were looked at: the credentials with which a file was opened, and
//! read-ahead advice.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::stat::{FileStat, major, minor};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::datagram::{self, Datagram};
use super::device::{self, Device};
use super::epoll::{self, Epoll};
use super::eventfd::{self, EventFd};
use super::file::{self, Directory, FileHashes, FileKey, OpenFile};
use super::inotify::{self, Inotify};
use super::mqueue::{self, QueueEnd};
use super::namespace::Namespace;
use super::netlink::{self, Netlink};
use super::packet::{self, Packet};
use super::pidfd::{self, PidFd};
use super::pipe::{self, Pipe, PipeEnd};
use super::signalfd::{self, SignalFd};
use super::tcp::{Buffers, Connection, State, TcpSocket};
use super::terminal::{self, Side, Terminal, TerminalEnd};
use super::timerfd::{self, TimerFd};
use super::unix::{self, UnixSocket};
use super::unix_actor::Actors;
use crate::checkpoint::{ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::SocketNumbers;
use crate::sys::descriptor as sys;
use crate::sys::proc::{self, info_field};
use crate::sys::ptrace::Tid;
use crate::sys::task;

/// An open file description, as a checkpoint has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Object {
    Tcp(Box<Tcp>),
    /// A connection of which an earlier checkpoint has the rest: see [`Object::follow`].
    TcpProgress(Box<TcpProgress>),
    /// What is in a pipe. It has no descriptor of its own: the [`PipeEnd`]s refer to it.
    Pipe(Pipe),
    PipeEnd(PipeEnd),
    EventFd(EventFd),
    Epoll(Epoll),
    TimerFd(TimerFd),
    SignalFd(SignalFd),
    File(Box<OpenFile>),
    Directory(Directory),
    Device(Device),
    Unix(Box<UnixSocket>),
    Output(Output),
    Datagram(Box<Datagram>),
    Netlink(Box<Netlink>),
    Packet(Box<Packet>),
    Inotify(Inotify),
    PidFd(PidFd),
    Namespace(Namespace),
    /// Of a POSIX message queue.
    Queue(QueueEnd),
    /// Both sides of a pseudo-terminal. It has no descriptor of its own: the [`TerminalEnd`]s refer to it.
    Terminal(Box<Terminal>),
    TerminalEnd(TerminalEnd),
}

/// A TCP socket, and what belongs to its description and not to TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    pub socket: TcpSocket,
    pub flags: StatusFlags,
}

/// What changes of a connection that is used: a tenth of a [`Tcp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProgress {
    pub buffers: Buffers,
    pub connection: Connection,
}

impl Object {
    /// What this object is, given what it was before: itself, but for one that only says what has changed.
    pub fn follow(self, earlier: Option<Object>) -> Result<Object> {
        match (self, earlier) {
            (Object::TcpProgress(progress), Some(Object::Tcp(mut tcp))) => {
                tcp.socket.buffers = progress.buffers;
                tcp.socket.state = State::Connected(Box::new(progress.connection));
                Ok(Object::Tcp(tcp))
            }
            (Object::TcpProgress(_), _) => {
                Err(Error::Mismatch("a connection goes on that never was in a checkpoint".to_owned()))
            }
            (whole, _) => Ok(whole),
        }
    }

    /// Whether a copy that holds `earlier` need not be told. Equal but for what passes by itself: two observations of
    /// one running timer differ by the time that observing takes.
    pub fn same_as(&self, earlier: &Object) -> bool {
        match (self, earlier) {
            (Object::TimerFd(now), Object::TimerFd(then)) => now.same_as(then),
            _ => self == earlier,
        }
    }
}

/// A write end of a pipe that the supervisor made to collect the workload's standard output (1) or error (2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    pub stream: u8,
    pub flags: StatusFlags,
}

/// Access mode and status flags of a description, as `open(2)` takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFlags(pub i32);

impl StatusFlags {
    /// What can be said again when opening: neither what matters only then (`O_CREAT`, `O_NOFOLLOW` …), nor
    /// close-on-exec, which is the descriptor's, nor `O_LARGEFILE`, which the kernel adds by itself.
    const KEPT: i32 = libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_NONBLOCK
        | libc::O_SYNC
        | libc::O_DIRECT
        | libc::O_NOATIME
        | libc::O_PATH;
    /// What `F_SETFL` can change (`SETFL_MASK` in fs/fcntl.c, without `O_ASYNC`).
    const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

    pub fn access(self) -> i32 {
        self.0 & libc::O_ACCMODE
    }

    pub fn reads(self) -> bool {
        !self.is_path() && self.access() != libc::O_WRONLY
    }

    pub fn writes(self) -> bool {
        !self.is_path() && self.access() != libc::O_RDONLY
    }

    pub fn is_path(self) -> bool {
        self.0 & libc::O_PATH != 0
    }

    /// For `open`; a checkpoint may be damaged or forged, so nothing that creates or truncates gets through.
    pub fn for_open(self) -> i32 {
        self.0 & Self::KEPT
    }

    /// Sets what can be set on a description that was made without `open`.
    pub fn restore(self, fd: BorrowedFd<'_>) -> Result<()> {
        sys::set_status_flags(fd, self.0 & Self::SETTABLE)
            .attempt(|| format!("set the status flags {:#o} of a descriptor", self.0))
    }
}

/// One row of a descriptor table that refers to a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// As the supervisor sees it.
    pub tid: Tid,
    /// As the workload sees it.
    pub process: Pid,
    pub fd: i32,
    /// A process whose root is the workload's: the holder may have another (`chroot`), and links are told from this one.
    pub root: Tid,
    /// In no table of the workload's: in flight in the queue of a socket that `process` holds. What is told of is a duplicate of
    /// the supervisor's, with the thread `tid` and the number `fd`.
    pub in_flight: bool,
}

/// Where a description can be looked at. All processes that hold it are stopped.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub holder: Holder,
    /// Further rows, of this or other processes, that refer to the same description.
    pub others: &'a [Holder],
    /// A pidfd of the holder.
    pub pidfd: BorrowedFd<'a>,
    /// Where the kernel keeps the description, if it lists open files.
    pub file: Option<u64>,
}

impl At<'_> {
    pub fn info(&self) -> Result<String> {
        let Holder { tid, process, fd, .. } = self.holder;
        proc::descriptor_info(tid, fd).attempt(|| format!("read about descriptor {fd} of process {process}"))
    }

    /// A descriptor of our own for the same description. To be dropped before the workload runs again.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        let Holder { process, fd, .. } = self.holder;
        task::take_descriptor(self.pidfd, fd)
            .attempt(|| format!("take a duplicate of descriptor {fd} of process {process}"))
    }

    /// The magic link through which what is open can be asked about, and opened once more.
    pub fn link(&self) -> PathBuf {
        proc::path(self.holder.tid, &format!("fd/{}", self.holder.fd))
    }

    pub fn stat(&self) -> Result<FileStat> {
        let Holder { process, fd, .. } = self.holder;
        nix::sys::stat::stat(&self.link()).attempt(|| format!("stat descriptor {fd} of process {process}"))
    }

    pub fn status_flags(&self, info: &str) -> Result<StatusFlags> {
        let flags = info_field(info, "flags").and_then(|text| i32::from_str_radix(text, 8).ok());
        let flags = flags.ok_or_else(|| self.unreadable("flags"))?;
        Ok(StatusFlags(flags & StatusFlags::KEPT))
    }

    pub fn refuse(&self, what: impl Into<String>, advice: &'static str) -> Error {
        let what = match self.holder.in_flight {
            true => format!("{} (in flight in a unix socket)", what.into()),
            false => format!("{} (descriptor {})", what.into(), self.holder.fd),
        };
        Error::Unsupported { pid: self.holder.process, what, advice }
    }

    /// fdinfo does not say what this kernel is known to say.
    pub(super) fn unreadable(&self, field: &str) -> Error {
        let Holder { process, fd, .. } = self.holder;
        Error::System {
            attempt: format!("read about descriptor {fd} of process {process}"),
            source: io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the kernel's `{field}` is not understood"),
            ),
        }
    }
}

/// An inode that several descriptions share, or by which a peer is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inode {
    Pipe(u64),
    Socket(u64),
    /// What an epoll instance watches, under a number that is another's now.
    Watched(epoll::EpollTarget),
}

/// What a description is, which never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Captured and built by [`super::tcp`].
    Tcp {
        inode: u64,
    },
    Unix {
        inode: u64,
    },
    /// Of IP, by type and protocol.
    Datagram {
        kind: i32,
        protocol: i32,
    },
    Netlink,
    Packet,
    /// An end. What is in the pipe is captured by [`Capturer::capture_pipe`], once for all ends.
    Pipe {
        inode: u64,
    },
    /// An end of a named pipe; the number stands for its file system and inode.
    Fifo {
        inode: u64,
    },
    EventFd,
    Epoll,
    TimerFd,
    SignalFd,
    File,
    Directory,
    Device,
    Output(u8),
    Inotify,
    PidFd,
    /// One that the workload is in.
    Namespace(Namespace),
    Queue,
    /// What is in it is captured once for all its descriptors, ahead of everything else. The number is the kernel's.
    Terminal {
        slave: u64,
        side: Side,
    },
}

impl Kind {
    /// A socket: its link is its own, and nobody else's.
    pub fn is_socket(self) -> bool {
        matches!(self, Kind::Tcp { .. } | Kind::Unix { .. }) || self.is_told_by_numbers()
    }

    /// A socket of which the kernel's list of open files says whether it has changed.
    pub fn is_told_by_numbers(self) -> bool {
        matches!(self, Kind::Datagram { .. } | Kind::Netlink | Kind::Packet)
    }

    /// What keeps it from being captured for a moment: what it is, and what ends it.
    pub fn passing(self, numbers: &SocketNumbers) -> Option<(&'static str, &'static str)> {
        match self {
            Kind::Datagram { kind, protocol } => datagram::passing(kind, protocol, numbers),
            Kind::Netlink => netlink::passing(numbers),
            Kind::Packet => packet::passing(numbers),
            _ => None,
        }
    }

    /// From what the link in `/proc/PID/fd` says. What cannot be kept is refused by its name (R3).
    pub fn identify(link: &str, at: &At<'_>, surroundings: &Surroundings) -> Result<Self> {
        let numbered = |prefix: &str| {
            let number = link.strip_prefix(prefix)?.strip_prefix(":[")?.strip_suffix(']')?;
            number.parse::<u64>().ok()
        };
        if let Some(inode) = numbered("pipe") {
            return Ok(match surroundings.outputs.iter().position(|output| *output == Some(inode)) {
                Some(index) => Kind::Output(index as u8 + 1),
                None => Kind::Pipe { inode },
            });
        }
        if let Some(inode) = numbered("socket") {
            return Self::identify_socket(inode, at);
        }
        match link {
            "anon_inode:[eventfd]" => return Ok(Kind::EventFd),
            "anon_inode:[eventpoll]" => return Ok(Kind::Epoll),
            "anon_inode:[timerfd]" => return Ok(Kind::TimerFd),
            "anon_inode:[signalfd]" => return Ok(Kind::SignalFd),
            "anon_inode:inotify" => return Ok(Kind::Inotify),
            "anon_inode:[pidfd]" => return Ok(Kind::PidFd),
            link if link.starts_with("pidfd:") => return Ok(Kind::PidFd),
            _ => {}
        }
        if let Some(namespace) = Namespace::of_link(link)
            && namespace.is_own(link, at)
        {
            return Ok(Kind::Namespace(namespace));
        }
        if let Some((what, advice)) =
            REFUSED.iter().find(|(start, ..)| link.starts_with(start)).map(|r| (r.1, r.2))
        {
            return Err(at.refuse(what, advice));
        }
        if !link.starts_with('/') {
            return Err(
                at.refuse(format!("a descriptor of the kind {link}"), "let the program do without it")
            );
        }
        let stat = at.stat()?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG if mqueue::is_one(at)? => Ok(Kind::Queue),
            libc::S_IFREG => Ok(Kind::File),
            libc::S_IFDIR => Ok(Kind::Directory),
            libc::S_IFCHR => Self::identify_device(link, at, &stat),
            libc::S_IFIFO => Ok(Kind::Fifo { inode: pipe::key_of_named(&stat) }),
            _ => Err(at.refuse(format!("the special file {link}"), "let the program do without it")),
        }
    }

    /// Pseudo-terminals of the workload's own file system of them; a host's terminal is none.
    fn identify_device(link: &str, at: &At<'_>, stat: &FileStat) -> Result<Self> {
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        let own = || {
            let node = nix::sys::stat::stat(&proc::path(at.holder.root, "root/dev/pts"));
            node.is_ok_and(|node| node.st_dev == stat.st_dev)
        };
        let side = match device {
            (terminal::ANY, terminal::CONTROLLING) => Side::Controlling,
            (terminal::ANY, terminal::MULTIPLEXER) => Side::Master,
            (terminal::SLAVES, _) if own() => Side::Slave,
            _ => return Ok(Kind::Device),
        };
        if at.status_flags(&at.info()?)?.is_path() {
            return Ok(Kind::Device);
        }
        let reader = terminal::reader(at)?;
        let file = at.file.ok_or_else(|| at.refuse(format!("the terminal {link}"), terminal::ADVICE))?;
        match reader.identify(file) {
            Ok((slave, is_master)) if is_master == (side == Side::Master) => {
                Ok(Kind::Terminal { slave, side })
            }
            // What /dev/tty stood for may be of another kind.
            _ => Ok(Kind::Device),
        }
    }

    fn identify_socket(inode: u64, at: &At<'_>) -> Result<Self> {
        let socket = at.duplicate()?;
        let option = |name| {
            sys::socket_option(socket.as_fd(), name).attempt(|| "ask what kind a socket is".to_owned())
        };
        let (domain, kind) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?);
        let protocol = option(libc::SO_PROTOCOL)?;
        match (domain, kind, protocol) {
            (libc::AF_UNIX, ..) => Ok(Kind::Unix { inode }),
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Ok(Kind::Tcp { inode }),
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_RAW, _)
                if protocol != IPPROTO_UDPLITE && protocol != libc::IPPROTO_SCTP =>
            {
                Ok(Kind::Datagram { kind, protocol })
            }
            (libc::AF_NETLINK, ..) => Ok(Kind::Netlink),
            (libc::AF_PACKET, ..) => Ok(Kind::Packet),
            _ => Err(at.refuse(
                format!("a socket of family {domain}, type {kind}, protocol {protocol}"),
                "let the program use TCP or unix sockets",
            )),
        }
    }
}

/// `include/uapi/linux/in.h`; gone since Linux 6.18.
const IPPROTO_UDPLITE: i32 = 136;

/// How the links of descriptors that cannot be kept begin, what to call them and what to do about it.
const REFUSED: &[(&str, &str, &str)] = &[
    ("anon_inode:[fanotify]", "fanotify", "switch off the program's watching of files"),
    (
        "anon_inode:[io_uring]",
        "io_uring",
        "switch it off in the program; it is hidden from programs started protected",
    ),
    ("anon_inode:[perf_event]", "a performance counter", "profile the program unprotected"),
    ("anon_inode:bpf", "BPF", "let the program do without BPF"),
    ("anon_inode:[userfaultfd]", "userfaultfd", "switch it off in the program (it tracks the memory here)"),
    ("net:[", "another network namespace", "let the program do without namespaces of its own"),
    ("mnt:[", "another mount namespace", "let the program do without namespaces of its own"),
    ("user:[", "another user namespace", "let the program do without namespaces of its own"),
];

/// Nanoseconds by which the workload's clocks are ahead of those of the process that captures or builds (its time
/// namespace's offsets, where that process is in the initial one).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockOffsets {
    pub monotonic: i64,
    pub boottime: i64,
}

/// What belongs to the workload beside its processes.
#[derive(Default)]
pub struct Surroundings {
    /// Directories whose contents go to the backup; no others may be written to. Without a trailing slash.
    pub scratch: Vec<String>,
    /// Inodes of the pipes to which standard output and error go.
    pub outputs: [Option<u64>; 2],
    pub clocks: ClockOffsets,
    /// The workload's network namespace; none is our own.
    pub network: Option<OwnedFd>,
    /// Files that are mapped now, so that their content is captured as shared memory.
    pub mapped: HashSet<FileKey>,
}

impl Surroundings {
    pub fn is_scratch(&self, path: &str) -> bool {
        is_below(&self.scratch, path)
    }
}

/// Whether a path is in, or is, one of the directories.
pub(super) fn is_below(directories: &[String], path: &str) -> bool {
    directories.iter().any(|directory| {
        path.strip_prefix(directory.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Unix sockets in flight in each other's queues, that many. (The kernel allowed 4 before Linux 6.10, `MAX_RECURSION_LEVEL` in
/// net/unix.)
pub const MAX_DEPTH: usize = 16;

/// Captures descriptions. Holds what makes looking again cheap.
pub struct Capturer {
    pub surroundings: Surroundings,
    hashes: FileHashes,
    copier: pipe::Copier,
    sockets: unix::Survey,
    queues: datagram::Queues,
    /// Inodes of connections that the workload has closed and that are held for it.
    pub orphans: HashSet<u64>,
    mounts: inotify::Mounts,
    queues_open: mqueue::Open,
}

impl Capturer {
    pub fn new(surroundings: Surroundings) -> Self {
        Self {
            surroundings,
            hashes: FileHashes::new(),
            copier: pipe::Copier::new(),
            sockets: unix::Survey::new(),
            queues: datagram::Queues::default(),
            orphans: HashSet::new(),
            mounts: inotify::Mounts::default(),
            queues_open: mqueue::Open::default(),
        }
    }

    /// The workload has run since: what was learnt about sockets is old.
    pub fn begin(&mut self) {
        self.sockets.forget();
        self.queues_open.clear();
    }

    /// Message queues of which descriptors were captured since.
    pub fn take_queues(&mut self) -> mqueue::Open {
        std::mem::take(&mut self.queues_open)
    }

    /// A cheap sign of whether a description has changed: it has not if the sign is the same as before. `None` where
    /// only capturing it and [`Object::same_as`] can tell.
    ///
    /// The sign of an epoll instance says nothing of the tables: when rows have gone from the table of a process that
    /// holds one, it is to be captured again whatever its sign, since a watched file may live on under no number.
    pub fn fingerprint(&self, kind: Kind, at: &At<'_>) -> Result<Option<u64>> {
        let mut seen = match kind {
            Kind::Tcp { .. }
            | Kind::Unix { .. }
            | Kind::TimerFd
            | Kind::Terminal { .. }
            // Captured each time, for what is in the queue.
            | Kind::Queue => return Ok(None),
            kind if kind.is_told_by_numbers() => return Ok(None),
            _ => at.info()?,
        };
        if matches!(kind, Kind::File | Kind::Directory | Kind::Fifo { .. }) {
            // A rename shows in the link only; a change of what is in a deleted file only in its times.
            let link =
                std::fs::read_link(at.link()).attempt(|| format!("read the link {}", at.link().display()))?;
            let stat = at.stat()?;
            seen.push_str(&link.to_string_lossy());
            if kind == Kind::File && self.surroundings.mapped.contains(&FileKey::of(&stat)) {
                seen.push_str("mapped");
            } else if kind == Kind::File && stat.st_nlink == 0 && !seen_memfd(&link) {
                seen.push_str(&format!("{:?}", (stat.st_size, file::modified(&stat), file::changed(&stat))));
            }
        }
        if kind == Kind::Inotify {
            seen.push_str(&inotify::next(at).unwrap_or_default().to_string());
        }
        // Other rows of the tables matter to an interest, and to the locks that their processes hold.
        if matches!(kind, Kind::File | Kind::Epoll) {
            for other in at.others {
                seen.push_str(&format!("{} {}\n", other.process, other.fd));
                if kind == Kind::File && other.tid != at.holder.tid {
                    seen.push_str(&At { holder: *other, ..*at }.info()?);
                }
            }
        }
        Ok(Some(xxh3_64(seen.as_bytes())))
    }

    /// Duplicates of what is in flight in the queue of a unix socket, for each message that carries something. To be dropped
    /// before the workload runs again.
    pub fn in_flight(&mut self, inode: u64, at: &At<'_>) -> Result<Vec<Vec<OwnedFd>>> {
        unix::in_flight(inode, at, &self.surroundings, &mut self.sockets)
    }

    /// What objects these duplicates are, by the socket's inode. Before the sockets are captured.
    pub fn set_carried(&mut self, carried: HashMap<u64, Vec<Vec<ObjectId>>>) {
        self.sockets.set_carried(carried);
    }

    /// `objects` names the object that stands for a pipe's or a socket's inode.
    pub fn capture(
        &mut self,
        kind: Kind,
        at: &At<'_>,
        objects: &dyn Fn(Inode) -> Option<ObjectId>,
    ) -> Result<Object> {
        Ok(match kind {
            Kind::Tcp { .. } => {
                return Err(Error::Mismatch("a TCP socket is not captured with the others".to_owned()));
            }
            Kind::Terminal { .. } => {
                return Err(Error::Mismatch("a terminal is captured ahead of the others".to_owned()));
            }
            Kind::Datagram { .. } | Kind::Netlink | Kind::Packet => {
                return Err(Error::Mismatch("a socket is not captured without its numbers".to_owned()));
            }
            Kind::Unix { inode } => Object::Unix(Box::new(unix::capture(
                inode,
                at,
                &self.surroundings,
                &mut self.sockets,
                objects,
            )?)),
            Kind::Pipe { inode } => Object::PipeEnd(pipe::capture_end(inode, at, objects)?),
            Kind::Fifo { inode } => {
                Object::PipeEnd(pipe::capture_named_end(inode, at, &self.surroundings, objects)?)
            }
            Kind::Inotify => Object::Inotify(inotify::capture(at, &mut self.mounts)?),
            Kind::PidFd => Object::PidFd(pidfd::capture(at)?),
            Kind::Namespace(namespace) => Object::Namespace(namespace),
            Kind::Queue => Object::Queue(mqueue::capture(at, &mut self.queues_open)?),
            Kind::EventFd => Object::EventFd(eventfd::capture(at)?),
            Kind::Epoll => Object::Epoll(epoll::capture(at, &self.orphans, objects)?),
            Kind::TimerFd => Object::TimerFd(timerfd::capture(at, self.surroundings.clocks)?),
            Kind::SignalFd => Object::SignalFd(signalfd::capture(at)?),
            Kind::File => Object::File(Box::new(file::capture(at, &self.surroundings, &mut self.hashes)?)),
            Kind::Directory => Object::Directory(file::capture_directory(at, &self.surroundings)?),
            Kind::Device => Object::Device(device::capture(at)?),
            Kind::Output(stream) => {
                let flags = at.status_flags(&at.info()?)?;
                if flags.access() != libc::O_WRONLY {
                    return Err(at.refuse("its own standard output for reading", "open it for writing only"));
                }
                Object::Output(Output { stream, flags })
            }
        })
    }

    /// A socket that is [told by numbers](Kind::is_told_by_numbers). `known` is what it was at its last capture, if
    /// no `setsockopt` was noticed since: its settings are as they were.
    pub fn capture_numbered(
        &mut self,
        kind: Kind,
        at: &At<'_>,
        numbers: &SocketNumbers,
        known: Option<&Object>,
    ) -> Result<Object> {
        let flags = at.status_flags(&at.info()?)?;
        Ok(match kind {
            Kind::Datagram { .. } => {
                let known = known.and_then(|object| match object {
                    Object::Datagram(known) => Some(&**known),
                    _ => None,
                });
                Object::Datagram(Box::new(datagram::capture(at, numbers, flags, known, &mut self.queues)?))
            }
            Kind::Netlink => {
                let known = known.and_then(|object| match object {
                    Object::Netlink(known) => Some(&**known),
                    _ => None,
                });
                Object::Netlink(Box::new(netlink::capture(at, flags, known)?))
            }
            Kind::Packet => {
                let known = known.and_then(|object| match object {
                    Object::Packet(known) => Some(&**known),
                    _ => None,
                });
                Object::Packet(Box::new(packet::capture(at, flags, known)?))
            }
            _ => return Err(Error::Mismatch("a descriptor is no socket".to_owned())),
        })
    }

    /// What is in a pipe, asked through any of its ends; through a reading one if there is any, for what nobody can
    /// read any more does not matter.
    pub fn capture_pipe(&mut self, at: &At<'_>) -> Result<Pipe> {
        pipe::capture(at, &mut self.copier)
    }
}

/// What is in a memfd is captured as shared memory.
fn seen_memfd(link: &std::path::Path) -> bool {
    link.as_os_str().as_encoded_bytes().starts_with(file::MEMFD.as_bytes())
}

/// Builds descriptions. All descriptors are held until it is dropped, which must be before the workload runs.
pub struct BuildContext<'a> {
    /// The workload's own view of the file system: `/proc/PID/root` of one of its processes.
    pub(super) root: PathBuf,
    pub(super) surroundings: &'a Surroundings,
    /// The write ends for standard output and error.
    outputs: [Option<OwnedFd>; 2],
    objects: &'a dyn Fn(ObjectId) -> Option<&'a Object>,
    pub(super) hashes: &'a mut FileHashes,
    built: HashMap<ObjectId, OwnedFd>,
    pub(super) pipes: HashMap<ObjectId, pipe::Ends>,
    pub(super) deleted: HashMap<file::FileKey, OwnedFd>,
    /// Processes that do what the kernel remembers its doer for; without them the supervisor does it.
    pub(crate) actors: Option<&'a dyn Actors>,
    /// Objects that are being built for one another.
    depth: usize,
}

impl<'a> BuildContext<'a> {
    pub fn new(
        root: PathBuf,
        surroundings: &'a Surroundings,
        outputs: [Option<OwnedFd>; 2],
        objects: &'a dyn Fn(ObjectId) -> Option<&'a Object>,
        hashes: &'a mut FileHashes,
    ) -> Self {
        let (built, pipes, deleted) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { root, surroundings, outputs, objects, hashes, built, pipes, deleted, actors: None, depth: 0 }
    }

    /// A file without a name that was built elsewhere, with its content.
    pub fn insert_file(&mut self, key: FileKey, fd: OwnedFd) {
        self.deleted.insert(key, fd);
    }

    /// A description that was built elsewhere (a TCP socket).
    pub fn insert(&mut self, id: ObjectId, fd: OwnedFd) {
        self.built.insert(id, fd);
    }

    pub fn object(&self, id: ObjectId) -> Result<&'a Object> {
        (self.objects)(id)
            .ok_or_else(|| Error::Mismatch(format!("object {} is referred to and absent", id.0)))
    }

    /// One that was built along with another.
    pub(super) fn take(&mut self, id: ObjectId) -> Result<OwnedFd> {
        self.built.remove(&id).ok_or_else(|| Error::Mismatch(format!("object {} was not built", id.0)))
    }

    pub(super) fn is_built(&self, id: ObjectId) -> bool {
        self.built.contains_key(&id)
    }

    pub(super) fn built_ids(&self) -> impl Iterator<Item = ObjectId> {
        self.built.keys().copied()
    }

    pub(super) fn get(&self, id: ObjectId) -> Option<BorrowedFd<'_>> {
        self.built.get(&id).map(AsFd::as_fd)
    }

    /// The description `id`, built now unless it has been, with whatever it needs.
    pub fn build(&mut self, id: ObjectId) -> Result<BorrowedFd<'_>> {
        if !self.built.contains_key(&id) {
            let fd = match self.object(id)? {
                Object::Tcp(_) | Object::TcpProgress(_) => {
                    return Err(Error::Mismatch(format!("TCP socket {} has not been built", id.0)));
                }
                Object::Pipe(_) => {
                    return Err(Error::Mismatch(format!("object {} is a pipe, not an end", id.0)));
                }
                Object::PipeEnd(end) => pipe::build_end(end, self)?,
                Object::EventFd(object) => eventfd::build(object)?,
                Object::Epoll(object) => epoll::build(object)?,
                Object::TimerFd(object) => timerfd::build(object, self.surroundings.clocks)?,
                Object::SignalFd(object) => signalfd::build(object)?,
                Object::File(object) => file::build(object, self)?,
                Object::Directory(object) => file::build_directory(object, &self.root)?,
                Object::Device(object) => device::build(object, &self.root)?,
                // Builds its peer along with it where the two can only be made together, and before them what is in their queues.
                Object::Unix(object) => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Error::Mismatch(format!("unix socket {} is in flight in itself", id.0)));
                    }
                    let built = unix::build(id, object, self);
                    self.depth -= 1;
                    built?
                }
                Object::Output(object) => self.build_output(object)?,
                Object::Datagram(object) => datagram::build(object)?,
                Object::Netlink(object) => netlink::build(object)?,
                Object::Packet(object) => packet::build(object)?,
                Object::Inotify(object) => inotify::build(object)?,
                Object::Namespace(namespace) => namespace.build(&self.root)?,
                Object::PidFd(_) => return Err(pidfd::unbuilt()),
                Object::Queue(_) => {
                    return Err(Error::Mismatch(format!("message queue {} has not been built", id.0)));
                }
                Object::Terminal(_) | Object::TerminalEnd(_) => {
                    return Err(Error::Mismatch(format!("terminal {} has not been built", id.0)));
                }
            };
            self.built.insert(id, fd);
        }
        self.get(id).ok_or_else(|| Error::Mismatch(format!("object {} could not be built", id.0)))
    }

    fn build_output(&self, output: &Output) -> Result<OwnedFd> {
        let end =
            usize::from(output.stream).checked_sub(1).and_then(|index| self.outputs.get(index)?.as_ref());
        let end =
            end.ok_or_else(|| Error::Mismatch(format!("there is no standard stream {}", output.stream)))?;
        // A description of its own, as each of the workload's was.
        let fd = sys::reopen(end.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK)
            .attempt(|| format!("open standard stream {} for the workload", output.stream))?;
        output.flags.restore(fd.as_fd())?;
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_longer_name_is_not_below() {
        let scratch = ["/tmp".to_owned(), "/run".to_owned()];
        assert!(is_below(&scratch, "/tmp") && is_below(&scratch, "/run/a"));
        assert!(!is_below(&scratch, "/tmpfile") && !is_below(&scratch, "/var/tmp"));
    }

    #[test]
    fn flags_that_create_or_truncate_never_reach_open() {
        let flags =
            StatusFlags(libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_TMPFILE);
        assert_eq!(flags.for_open(), libc::O_RDWR | libc::O_APPEND);
    }
}
