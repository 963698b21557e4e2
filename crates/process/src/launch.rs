//! Starting a workload: its namespaces, its view of the file system, its first process.
//!
//! Three processes take part. The *launcher* (this binary run again by the supervisor, single-threaded) makes the
//! namespaces and forks *init*, process 1 of the workload's pid namespace, which is ours and lives as long as the
//! workload: it prepares the mounts, starts the workload's first process when told to, and reaps orphans. On a backup
//! init is never told to; the shell's processes are forked from it by injected calls. Init itself is not captured: it
//! has no state beyond its children.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};

use crate::error::{Attempt, Error, Result};
use crate::sys::ptrace::{self, Tid};
use crate::sys::{seccomp, task};

/// Directories that every workload has for itself, in memory.
pub const PRIVATE_DIRECTORIES: [&str; 3] = ["/tmp", "/run", "/dev/shm"];
/// Where names of message queues are (mq_overview(7)).
const QUEUES: &str = "/dev/mqueue";
const SETTINGS: &str = "/proc/sys";
/// Bound on each of them, so that a workload cannot fill the host's memory through a file.
const SCRATCH_LIMIT: &str = "size=512m,mode=1777";
/// The descriptor by which init and the shell's processes receive descriptors from the supervisor. High enough that
/// no program's own numbers come near (the hard limit is 20,000 on small machines, 1,048,576 by systemd's default).
pub const CHANNEL: RawFd = 971;
/// How long the launcher may take; it does a dozen system calls.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The host name inside the workload.
    pub name: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub directory: String,
    pub scratch: Vec<String>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

// What is said on the channel. The launcher and init write to the same end of it, so init says nothing until it is told
// that the launcher's word has been read: whichever ran first would otherwise be taken for the other.
/// From the launcher: the number of init follows, in four bytes.
const FORKED: u8 = b'f';
/// To init: the supervisor traces it.
const TRACED: u8 = b't';
/// From init: the namespaces are prepared.
const READY: u8 = b'r';
/// To init: start the program.
const GO: u8 = b'g';
/// In the orders of a program that is only looked at.
const OBSERVED: &str = "observed";
/// To init: there is nothing to start, the program came from elsewhere; wait for orphans that end.
const REAP: u8 = b'w';
/// From either: the reason why it gives up follows, to the end.
const FAILED: u8 = b'E';

/// A workload's namespaces with their init, traced by the calling thread.
#[derive(Debug)]
pub struct Container {
    pub init: Tid,
    /// Our end of the channel.
    pub channel: UnixStream,
    /// Refers to init even when its number has been given to another.
    pidfd: OwnedFd,
}

impl Container {
    /// `launcher` is a command that ends up in [`launcher_main`]. The calling thread becomes the tracer for good. If
    /// `observed`, the program runs under the filter that announces what it hides (`seccomp::observing`).
    pub fn create(
        program: &Program,
        network: impl AsFd,
        launcher: &[OsString],
        output: [OwnedFd; 2],
        observed: bool,
    ) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().attempt(|| "make a socket pair".into())?;
        let network =
            network.as_fd().try_clone_to_owned().attempt(|| "duplicate the network namespace".into())?;
        let [stdout, stderr] = output;
        let (first, rest) = launcher.split_first().ok_or_else(|| Error::Start("no launcher".into()))?;
        let mut command = Command::new(first);
        let (their_fd, network_fd) = (theirs.as_raw_fd(), network.as_raw_fd());
        command
            .args(rest)
            .env_clear()
            // Init forks the shell's processes; a registration of restartable sequences would be inherited by them.
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        // SAFETY: between fork and exec only dup2 is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // dup2 clears close-on-exec on the copies, which is why they survive the exec.
                if libc::dup2(their_fd, CHANNEL) < 0 || libc::dup2(network_fd, CHANNEL + 1) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().attempt(|| format!("start {}", first.to_string_lossy()))?;
        drop((theirs, network));
        let mut channel = ours;
        channel.set_read_timeout(Some(START_DEADLINE)).attempt(|| "set a time limit".into())?;
        let spec = serde_to_bytes(program, observed);
        let started = (|| -> io::Result<Tid> {
            channel.write_all(&(spec.len() as u32).to_ne_bytes())?;
            channel.write_all(&spec)?;
            expect(&mut channel, FORKED)?;
            let mut init = [0u8; 4];
            channel.read_exact(&mut init)?;
            Ok(Tid::from_ne_bytes(init))
        })();
        let status = child.wait().attempt(|| "wait for the launcher".into())?;
        let init = match started {
            Ok(init) if status.success() => init,
            _ => return Err(Error::Start(read_reason(&mut channel, "the launcher died"))),
        };
        let pidfd = task::pidfd_open(init).attempt(|| format!("refer to init, {init}"))?;
        ptrace::seize(init).attempt(|| format!("trace init, {init}"))?;
        let ready = channel.write_all(&[TRACED]).and_then(|()| expect(&mut channel, READY));
        match ready {
            Ok(()) => Ok(Self { init, channel, pidfd }),
            Err(error) => {
                Err(Error::Start(read_reason(&mut channel, &format!("init did not come up: {error}"))))
            }
        }
    }

    /// Ends the workload: everything in its pid namespace dies with init.
    pub fn kill(&self) {
        // Already dead is what we want.
        let _ = task::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Tells init to start the program.
    pub fn start(&mut self) -> Result<()> {
        self.channel.write_all(&[GO]).attempt(|| "tell init to start the program".into())
    }

    /// Tells an init that has started nothing to wait for the orphans that it inherits.
    pub fn reap(&mut self) -> Result<()> {
        self.channel.write_all(&[REAP]).attempt(|| "tell init to wait for orphans".into())
    }

    /// Why the program could not be started, if that is what happened. Does not block.
    pub fn failure(&mut self) -> Option<String> {
        self.channel.set_nonblocking(true).ok()?;
        let mut reason = [0u8; 512];
        let got = self.channel.read(&mut reason);
        self.channel.set_nonblocking(false).ok()?;
        got.ok().filter(|n| *n > 0).map(|n| String::from_utf8_lossy(&reason[..n]).into_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads one message and fails if it is another; after [`FAILED`] the reason is next on the channel.
fn expect(channel: &mut UnixStream, message: u8) -> io::Result<()> {
    let mut said = [0u8; 1];
    channel.read_exact(&mut said)?;
    if said[0] == message { Ok(()) } else { Err(io::Error::other("it gave up")) }
}

fn read_reason(channel: &mut UnixStream, otherwise: &str) -> String {
    let mut reason = Vec::new();
    // The other end is gone or going; what it said before is all there is.
    let _ = channel.take(4096).read_to_end(&mut reason);
    if reason.is_empty() { otherwise.to_owned() } else { String::from_utf8_lossy(&reason).into_owned() }
}

fn serde_to_bytes(program: &Program, observed: bool) -> Vec<u8> {
    // Lines would do, but names may hold anything; lengths may not.
    let mut bytes = Vec::new();
    let mut put = |text: &str| {
        bytes.extend_from_slice(&(text.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    put(&program.name);
    put(&program.directory);
    for list in [&program.arguments, &program.scratch] {
        put(&list.len().to_string());
        list.iter().for_each(|text| put(text));
    }
    put(&program.environment.len().to_string());
    for (key, value) in &program.environment {
        put(&format!("{key}={value}"));
    }
    let ids: Vec<String> =
        [program.uid, program.gid].iter().chain(&program.groups).map(u32::to_string).collect();
    put(&ids.join(" "));
    put(if observed { OBSERVED } else { "" });
    bytes
}

/// What init was told, as it arrives from the supervisor.
struct Orders {
    name: String,
    directory: String,
    arguments: Vec<String>,
    scratch: Vec<String>,
    environment: Vec<String>,
    ids: Vec<u32>,
    observed: bool,
}

impl Orders {
    fn read(channel: &mut impl Read) -> io::Result<Self> {
        let mut len = [0u8; 4];
        channel.read_exact(&mut len)?;
        let mut bytes = vec![0u8; u32::from_ne_bytes(len) as usize];
        channel.read_exact(&mut bytes)?;
        let mut rest = bytes.as_slice();
        let mut text = || -> io::Result<String> {
            let mut len = [0u8; 4];
            rest.read_exact(&mut len)?;
            let mut text = vec![0u8; u32::from_ne_bytes(len) as usize];
            rest.read_exact(&mut text)?;
            String::from_utf8(text).map_err(io::Error::other)
        };
        let (name, directory) = (text()?, text()?);
        let mut list = || -> io::Result<Vec<String>> {
            let count: usize = text()?.parse().map_err(io::Error::other)?;
            (0..count).map(|_| text()).collect()
        };
        let (arguments, scratch, environment) = (list()?, list()?, list()?);
        let ids = text()?.split(' ').filter_map(|id| id.parse().ok()).collect();
        let observed = text()? == OBSERVED;
        Ok(Self { name, directory, arguments, scratch, environment, ids, observed })
    }
}

/// What whoever started the agent ignores (SIGHUP, by nohup(1)) is inherited by everything that it starts, through exec as well; a shell
/// that finds a signal ignored cannot even be told to listen to it. SIGPIPE is ignored by this program itself, as by all in Rust.
fn listen_to_all_signals() {
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: the default takes no code of ours. SIGKILL, SIGSTOP and the C library's own are refused, and are never ignored.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The launcher: to be called by the binary when it is run as one. Does not return in init.
pub fn launcher_main() -> ! {
    listen_to_all_signals();
    // SAFETY: the supervisor opened both before it started us, and nothing else in this process refers to them.
    let (channel, network) = unsafe { (OwnedFd::from_raw_fd(CHANNEL), OwnedFd::from_raw_fd(CHANNEL + 1)) };
    let mut channel = UnixStream::from(channel);
    // The shell's processes keep the channel; a program that is started must see neither it nor what else may have
    // been open where the supervisor was started.
    // SAFETY: the call takes three numbers, and only marks descriptors to be closed by an exec.
    unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    match launch(&mut channel, network) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            // Nobody else to tell; if the supervisor is gone we are as well.
            let _ = fail(&mut channel, &error);
            std::process::exit(1);
        }
    }
}

fn launch(channel: &mut UnixStream, network: OwnedFd) -> Result<()> {
    let orders = Orders::read(channel).attempt(|| "read what to start".into())?;
    nix::sched::setns(&network, CloneFlags::CLONE_NEWNET).attempt(|| "enter the network namespace".into())?;
    drop(network);
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    nix::sched::unshare(namespaces).attempt(|| "make namespaces".into())?;
    // SAFETY: this process is single-threaded.
    match unsafe { nix::unistd::fork() }.attempt(|| "fork init".into())? {
        ForkResult::Parent { child } => {
            let mut message = vec![FORKED];
            message.extend(child.as_raw().to_ne_bytes());
            channel.write_all(&message).attempt(|| "report init".into())
        }
        ForkResult::Child => match init(channel, &orders) {
            Ok(never) => match never {},
            Err(error) => {
                let _ = fail(channel, &error);
                std::process::exit(1);
            }
        },
    }
}

fn fail(channel: &mut UnixStream, error: &Error) -> io::Result<()> {
    let mut message = vec![FAILED];
    message.extend(error.to_string().into_bytes());
    channel.write_all(&message)
}

enum Never {}

fn init(channel: &mut UnixStream, orders: &Orders) -> Result<Never> {
    // The supervisor must trace us before the first process exists.
    expect(channel, TRACED).attempt(|| "wait for the supervisor".into())?;
    nix::unistd::setsid().attempt(|| "start a session".into())?;
    nix::unistd::sethostname(&orders.name).attempt(|| "set the host name".into())?;
    prepare_mounts(&orders.scratch)?;
    channel.write_all(&[READY]).attempt(|| "report to the supervisor".into())?;
    // Nothing of ours may be waited for while the supervisor uses this process as a place to fork from, so the order
    // is awaited in a child-free loop that an injected call may interrupt at any time.
    let mut order = [0u8; 1];
    match channel.read_exact(&mut order) {
        Ok(()) if order[0] == GO => {
            // SAFETY: this process is single-threaded.
            if let ForkResult::Child = unsafe { nix::unistd::fork() }.attempt(|| "fork the program".into())? {
                let error = run(orders);
                let _ = write!(channel, "{error}");
                // SAFETY: ends the process without running anything of the parent's.
                unsafe { libc::_exit(127) }
            }
        }
        // `REAP`.
        Ok(()) => {}
        // The supervisor died before it was our tracer, which would have taken us with it (R4).
        Err(_) => std::process::exit(1),
    }
    loop {
        match nix::sys::wait::wait() {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => nix::unistd::pause(),
        }
    }
}

/// The root becomes read-only; /tmp, /run, /dev/shm and the scratch directories are memory of the workload's own.
fn prepare_mounts(scratch: &[String]) -> Result<()> {
    let none: Option<&str> = None;
    let remount = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, remount, none).attempt(|| "make mounts private".into())?;
    make_read_only("/").attempt(|| "make the root read-only".into())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for directory in PRIVATE_DIRECTORIES {
        nix::mount::mount(Some("tmpfs"), directory, Some("tmpfs"), flags, Some(SCRATCH_LIMIT))
            .attempt(|| format!("give the workload its own {directory}"))?;
    }
    for directory in scratch {
        let path = Path::new(directory);
        if PRIVATE_DIRECTORIES.iter().any(|private| path.starts_with(private)) {
            fs::create_dir_all(path).attempt(|| format!("make the scratch directory {directory}"))?;
            continue;
        }
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(SCRATCH_LIMIT))
            .attempt(|| format!("use {directory} as a scratch directory (it must exist on every node)"))?;
    }
    // Its own pseudo-terminals: their numbers are captured, and those of the host are nothing to it. The owner and the mode
    // are those of `grantpt(3)`; every mount is an instance of its own (Documentation/filesystems/devpts.rst).
    let group = terminal_group();
    let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
    let noexec = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("devpts"), "/dev/pts", Some("devpts"), noexec, Some(options.as_str()))
        .attempt(|| "give the workload its own /dev/pts".into())?;
    // Names of its own message queues, where there is a place for them: to look at. Nothing would tell of a queue that is made or opened
    // there; `mq_open` does not go by it.
    if Path::new(QUEUES).is_dir() {
        let what = || format!("give the workload its own {QUEUES}");
        nix::mount::mount(Some("mqueue"), QUEUES, Some("mqueue"), noexec, none).attempt(what)?;
        make_read_only(QUEUES).attempt(what)?;
    }
    // A new pid namespace needs its own /proc; the old one is under it and shows nothing.
    let flags = flags | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("proc"), "/proc", Some("proc"), flags, none).attempt(|| "mount /proc".into())?;
    // What is below it is the host's, or its namespace's, which is made alike on every node.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(SETTINGS), SETTINGS, none, bind, none)
        .and_then(|()| {
            make_read_only(SETTINGS).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })
        .attempt(|| format!("make {SETTINGS} read-only"))
}

/// The group `tty` as a mount option, where there is one.
fn terminal_group() -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let line = groups.lines().find_map(|line| line.strip_prefix("tty:"));
    let number = line.and_then(|line| line.split(':').nth(1)?.parse::<u32>().ok());
    number.map_or_else(String::new, |number| format!(",gid={number}"))
}

/// `mount_setattr(2)` with AT_RECURSIVE: a bind remount would reach only the topmost mount.
fn make_read_only(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let attr =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` and `attr` are live for the call, and the size given is that of `attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// In the workload's first process: everything up to its own code. Returns only if that fails.
fn run(orders: &Orders) -> String {
    let attempt = || -> Result<io::Error> {
        nix::unistd::setsid().attempt(|| "start a session".into())?;
        nix::unistd::chdir(orders.directory.as_str())
            .attempt(|| format!("change to the directory {}", orders.directory))?;
        let (uid, gid) = (orders.ids.first().copied().unwrap_or(0), orders.ids.get(1).copied().unwrap_or(0));
        let groups: Vec<nix::unistd::Gid> = orders.ids.iter().skip(2).map(|id| (*id).into()).collect();
        nix::unistd::setgroups(&groups).attempt(|| "set the groups".into())?;
        // The filter before the user: installing it takes a privilege that the user may not have.
        let filter = if orders.observed { seccomp::observing() } else { seccomp::program() };
        seccomp::install(filter).attempt(|| "install the system call filter".into())?;
        nix::unistd::setgid(gid.into()).attempt(|| format!("become group {gid}"))?;
        nix::unistd::setuid(uid.into()).attempt(|| format!("become user {uid}"))?;
        let program = orders.arguments.first().ok_or_else(|| Error::Start("no program was named".into()))?;
        // The supervisor blocks SIGCHLD, and what is blocked is inherited by everything that it starts.
        nix::sys::signal::SigSet::empty().thread_set_mask().attempt(|| "unblock signals".into())?;
        let mut command = Command::new(program);
        command.args(&orders.arguments[1..]).env_clear();
        for variable in &orders.environment {
            if let Some((key, value)) = variable.split_once('=') {
                command.env(key, value);
            }
        }
        Ok(command.exec())
    };
    let program = orders.arguments.first().map_or("", String::as_str);
    match attempt() {
        Ok(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("{program}: no such program; give its full path, and install it on every node")
        }
        Ok(error) => format!("{program}: {error}"),
        Err(error) => error.to_string(),
    }
}

/// The clocks now, as this host tells them.
pub fn host_clocks() -> crate::checkpoint::Clocks {
    crate::checkpoint::Clocks {
        monotonic: task::clock(libc::CLOCK_MONOTONIC),
        boottime: task::clock(libc::CLOCK_BOOTTIME),
    }
}
