//! A program that runs already, and was not started here: what it uses, as far as `/proc` tells. Nothing of it is stopped,
//! traced or changed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::checkpoint::{ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::launch::PRIVATE_DIRECTORIES;
use crate::object::descriptor::{At, Capturer, Holder, Inode, Kind, StatusFlags, Surroundings};
use crate::object::memory::{self, Backing};
use crate::refusals::Refusal;
use crate::strayed::Namespaces;
use crate::survey::{Hidden, Kept, Survey, describe};
use crate::sys::ptrace::Tid;
use crate::sys::unix_diag::{UnixDiag, UnixEntry};
use crate::sys::{descriptor as sys, proc, task};

/// What cannot be seen from outside.
pub const UNSEEN: [&str; 4] = [
    "system calls that it has made and makes: those that are refused or hidden are seen by `--program` only",
    "handlers, timers and options of sockets that only the process itself can ask for",
    "what it has open for a moment only; look again while it is busy",
    "connections by name to processes that are not below it: these are named where they exist now",
];

/// Descriptors that a program started protected cannot have, because it is told that the kernel lacks them: how their links
/// begin, the call, and its answer there (`sys/seccomp.rs`).
const HIDDEN: [(&str, &str, i32); 5] = [
    ("anon_inode:[io_uring]", "io_uring_setup", libc::ENOSYS),
    ("anon_inode:[userfaultfd]", "userfaultfd", libc::EPERM),
    ("anon_inode:bpf", "bpf", libc::EPERM),
    ("anon_inode:[perf_event]", "perf_event_open", libc::ENOENT),
    ("anon_inode:[fanotify]", "fanotify_init", libc::ENOSYS),
];
/// Likewise of mappings.
const HIDDEN_MAPPINGS: [(&str, &str, i32); 3] = [
    ("/[aio]", "io_setup", libc::ENOSYS),
    ("/anon_hugepage", "mmap with MAP_HUGETLB", libc::ENOMEM),
    ("anon_inode:[io_uring]", "io_uring_setup", libc::ENOSYS),
];
/// Multipath TCP (`linux/in.h`).
const IPPROTO_MPTCP: i32 = 262;
/// A filter (`Seccomp` of proc_pid_status(5)).
const SECCOMP_FILTER: &str = "2";
/// Standard input, output and error, which a workload is given.
const STANDARD: std::ops::RangeInclusive<i32> = 0..=2;

/// What was found.
#[derive(Debug, Default)]
pub struct Inspection {
    pub survey: Survey,
    pub hidden: Vec<Hidden>,
    /// Files outside of scratch directories that are open for writing, and who has them open.
    pub written: Vec<(PathBuf, Pid)>,
    /// The process and those below it.
    pub processes: usize,
}

/// Looks at a process and all below it. `scratch` are directories that would be declared as such.
pub fn inspect(first: Tid, scratch: &[String]) -> Result<Inspection> {
    let what = || format!("read about process {first}");
    let own = PRIVATE_DIRECTORIES.iter().map(|directory| (*directory).to_owned());
    let scratch: Vec<String> = own.chain(scratch.iter().cloned()).collect();
    let network: OwnedFd = proc::open(first, "ns/net").attempt(what)?.into();
    let sockets = UnixDiag::open(Some(network.as_fd()))
        .and_then(|diag| diag.dump())
        .attempt(|| "list the program's unix sockets".into())?;
    let surroundings = Surroundings { scratch, network: Some(network), ..Surroundings::default() };
    let tree = tree(first).attempt(|| "list processes".into())?;
    let mut own_sockets = HashSet::new();
    for host in &tree {
        for (_, link) in proc::descriptors(*host).unwrap_or_default() {
            own_sockets.extend(inode_of(&link, "socket"));
        }
    }
    let mut inspector = Inspector {
        found: Inspection { processes: tree.len(), ..Inspection::default() },
        namespaces: Namespaces::of(first)?,
        capturer: Capturer::new(surroundings),
        sockets: sockets.into_iter().map(|entry| (entry.inode, entry)).collect(),
        own_sockets,
        standard: STANDARD.filter_map(|fd| proc::descriptor_link(first, fd).ok()).collect(),
        seen: HashSet::new(),
    };
    for host in tree {
        match inspector.process(host) {
            // It has ended meanwhile.
            Err(Error::System { source, .. }) if is_gone(&source) && host != first => {}
            result => result?,
        }
    }
    Ok(inspector.found)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EBADF))
}

/// A process and its descendants, as of now.
fn tree(first: Tid) -> io::Result<Vec<Tid>> {
    let mut children: HashMap<Tid, Vec<Tid>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<Tid>().ok()) else {
            continue;
        };
        let Ok(status) = proc::status(pid) else { continue };
        children.entry(status.parent).or_default().push(pid);
    }
    let mut tree = vec![first];
    let mut at = 0;
    while let Some(pid) = tree.get(at).copied() {
        tree.extend(children.remove(&pid).unwrap_or_default());
        at += 1;
    }
    Ok(tree)
}

fn inode_of(link: &str, kind: &str) -> Option<u64> {
    link.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

struct Inspector {
    found: Inspection,
    namespaces: Namespaces,
    capturer: Capturer,
    sockets: HashMap<u64, UnixEntry>,
    own_sockets: HashSet<u64>,
    /// What the first process has for standard input, output and error.
    standard: Vec<String>,
    /// Sockets and pipes that have been looked at by another descriptor.
    seen: HashSet<String>,
}

impl Inspector {
    fn process(&mut self, host: Tid) -> Result<()> {
        let what = || format!("read about process {host}");
        let executable = fs::read_link(proc::path(host, "exe")).attempt(what)?.to_string_lossy().into_owned();
        let status = proc::status(host).attempt(what)?;
        let pidfd = task::pidfd_open(host).attempt(what)?;
        self.kept("process", 1, host, &executable);
        let threads = fs::read_dir(proc::path(host, "task")).attempt(what)?.count();
        self.kept("thread", threads, host, &status.name);
        let handlers = (status.caught | status.ignored).count_ones() as usize;
        self.kept("signal handler", handlers, host, "");
        if executable.ends_with(" (deleted)") || executable.starts_with(crate::object::file::MEMFD) {
            let advice = "run it from a file that every node has; restart it if it was upgraded under itself";
            self.refuse(host, format!("a program without a name ({executable})"), advice);
        }
        if status.state == 'T' {
            self.refuse(host, "a process stopped by job control", "let it go on (SIGCONT)");
        }
        if status.state == 'Z' && threads > 1 {
            let advice = "let its main function wait for the threads it has started";
            self.refuse(host, "a process whose first thread has ended", advice);
        }
        let text = fs::read_to_string(proc::path(host, "status")).attempt(what)?;
        if proc::info_field(&text, "Seccomp") == Some(SECCOMP_FILTER) {
            self.refuse(host, "seccomp (a filter of the program's own)", "switch its sandbox off");
        }
        let strayed = self.namespaces.check(host, &host.to_string());
        self.note(host, strayed)?;
        let timers = fs::read_to_string(proc::path(host, "timers")).unwrap_or_default();
        self.kept("POSIX timer", timers.lines().filter(|line| line.starts_with("ID:")).count(), host, "");
        self.mappings(host)?;
        for (fd, link) in proc::descriptors(host).attempt(what)? {
            let holder = Holder { tid: host, process: host, root: host, fd, in_flight: false };
            let at = At { holder, others: &[], pidfd: pidfd.as_fd(), file: None };
            match self.descriptor(&at, &link) {
                Err(Error::System { source, .. }) if is_gone(&source) => {}
                result => self.note(host, result)?,
            }
        }
        Ok(())
    }

    fn mappings(&mut self, host: Tid) -> Result<()> {
        let text = fs::read_to_string(proc::path(host, "maps"))
            .attempt(|| format!("read the mappings of process {host}"))?;
        let scratch = self.capturer.surroundings.scratch.clone();
        for refusal in memory::refused(host, &text, &scratch) {
            match HIDDEN_MAPPINGS.iter().find(|(part, ..)| refusal.what.contains(part)) {
                Some((_, call, error)) => self.hide(host, call, *error),
                None => self.refuse(host, refusal.what, refusal.advice),
            }
        }
        for line in proc::parse_maps(&text).unwrap_or_default() {
            let Ok(layout) = memory::interpret(host, &[line], &scratch) else { continue };
            for mapping in layout.mappings {
                let what = match &mapping.backing {
                    Backing::Anonymous => "private memory",
                    Backing::File { .. } if mapping.shared => "shared mapping of a file",
                    Backing::File { .. } => "private mapping of a file",
                    Backing::Object { .. } => "mapping of shared memory or a scratch file",
                    Backing::Vdso | Backing::Vvar => continue,
                };
                self.kept(what, 1, host, "");
            }
        }
        Ok(())
    }

    fn descriptor(&mut self, at: &At<'_>, link: &str) -> Result<()> {
        let host = at.holder.tid;
        if STANDARD.contains(&at.holder.fd) && self.standard.iter().any(|standard| standard == link) {
            self.kept("standard input, output or error (a workload is given its own)", 1, host, link);
            return Ok(());
        }
        if let Some((_, call, error)) = HIDDEN.iter().find(|(start, ..)| link.starts_with(start)) {
            self.hide(host, call, *error);
            return Ok(());
        }
        if link.starts_with("socket:") {
            if !self.seen.insert(link.to_owned()) {
                return Ok(());
            }
            let socket = at.duplicate()?;
            let protocol = sys::socket_option(socket.as_fd(), libc::SO_PROTOCOL).unwrap_or(0);
            if protocol == IPPROTO_MPTCP {
                self.hide(host, "socket with IPPROTO_MPTCP", libc::EPROTONOSUPPORT);
                return Ok(());
            }
        }
        let kind = Kind::identify(link, at, &self.capturer.surroundings)?;
        let (what, example) = match kind {
            Kind::Tcp { .. } => ("TCP socket", String::new()),
            Kind::Unix { inode } => {
                self.unix(at, inode)?;
                ("unix socket", String::new())
            }
            Kind::Datagram { .. } => ("datagram or raw socket", String::new()),
            Kind::Netlink => ("netlink socket", String::new()),
            Kind::Packet => ("packet socket", String::new()),
            // Looking into these would cost the program something, or asks who else has what they watch.
            Kind::Epoll => ("epoll instance", String::new()),
            Kind::Inotify => ("inotify instance", String::new()),
            Kind::PidFd => ("pidfd", String::new()),
            Kind::Namespace(namespace) => ("namespace of the workload's", namespace.name().to_owned()),
            Kind::Queue => ("POSIX message queue", String::new()),
            _ => {
                self.note_written(at, kind)?;
                describe(&self.capturer.capture(kind, at, &|_: Inode| Some(ObjectId(0)))?)
            }
        };
        self.kept(what, 1, host, &example);
        Ok(())
    }

    fn note_written(&mut self, at: &At<'_>, kind: Kind) -> Result<()> {
        let StatusFlags(flags) = at.status_flags(&at.info()?)?;
        if kind == Kind::File && StatusFlags(flags).writes() {
            let path = fs::read_link(at.link()).attempt(|| "read a link of a descriptor".into())?;
            let shown = path.to_string_lossy();
            let nameless = shown.starts_with(crate::object::file::MEMFD) || shown.ends_with(" (deleted)");
            if !nameless && !self.capturer.surroundings.is_scratch(&shown) {
                self.found.written.push((path, at.holder.process));
            }
        }
        Ok(())
    }

    /// Whom it talks to.
    fn unix(&self, at: &At<'_>, inode: u64) -> Result<()> {
        let Some(entry) = self.sockets.get(&inode) else {
            let advice = "let the program stay in its namespaces";
            return Err(at.refuse("a unix socket of another network namespace", advice));
        };
        let shown = |entry: &UnixEntry| String::from_utf8_lossy(&entry.name).trim_matches('\0').to_owned();
        if entry.name.first().is_some_and(|first| *first != 0)
            && !self.capturer.surroundings.is_scratch(&shown(entry))
        {
            return Err(at.refuse(
                format!(
                    "the unix socket {}, whose path is not one in a directory that is kept",
                    shown(entry)
                ),
                "give it an absolute path in /tmp, /run or a directory declared with --scratch",
            ));
        }
        if let Some(peer) = entry.peer.filter(|peer| *peer != 0)
            && !self.own_sockets.contains(&peer)
        {
            let name = self.sockets.get(&peer).map(shown).filter(|name| !name.is_empty());
            let name = name.map_or_else(String::new, |name| format!(" ({name})"));
            return Err(at.refuse(
                format!("a unix socket connected to a process outside{name}"),
                "it is not there when the program is started protected: run both in one workload, or use TCP",
            ));
        }
        Ok(())
    }

    fn kept(&mut self, what: &'static str, count: usize, pid: Pid, example: &str) {
        if count == 0 {
            return;
        }
        let kept = &mut self.found.survey.kept;
        match kept.iter_mut().find(|known| known.what == what) {
            Some(known) => known.count += count,
            None => kept.push(Kept { what, count, pid, example: example.to_owned() }),
        }
    }

    fn hide(&mut self, pid: Pid, call: &str, error: i32) {
        match self.found.hidden.iter_mut().find(|known| known.call == call) {
            Some(known) => known.count += 1,
            None => self.found.hidden.push(Hidden { call: call.to_owned(), error, count: 1, pid }),
        }
    }

    fn refuse(&mut self, pid: Pid, what: impl Into<String>, advice: &'static str) {
        let refusal = Refusal { pid, what: what.into(), advice, passing: false };
        if !self.found.survey.refused.contains(&refusal) {
            self.found.survey.refused.push(refusal);
        }
    }

    /// Keeps a refusal and goes on.
    fn note(&mut self, pid: Pid, result: Result<()>) -> Result<()> {
        match result {
            Err(error) => match Refusal::of(&error) {
                Some(refusal) => {
                    self.refuse(pid, refusal.what, refusal.advice);
                    Ok(())
                }
                None => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }
}
