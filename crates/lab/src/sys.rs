//! The narrow seam to the kernel: everything of this crate that is `unsafe`, behind safe, typed functions
//! (the BPF calls are in [`crate::bpf`]).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::CloneFlags;

/// One thing that the init of a host does to its fresh namespaces before it says that it is ready. Prepared
/// before the clone, because the child of a process with threads may not allocate.
pub(crate) enum InitStep {
    /// mount(2)
    Mount {
        source: CString,
        target: CString,
        kind: Option<CString>,
        flags: libc::c_ulong,
        data: Option<CString>,
    },
    /// mkdir(2); an existing directory is fine.
    Mkdir { path: CString },
    /// sethostname(2)
    Hostname { name: CString },
}

impl InitStep {
    pub(crate) fn describe(&self) -> String {
        match self {
            InitStep::Mount { target, .. } => format!("mount {}", target.to_string_lossy()),
            InitStep::Mkdir { path } => format!("make {}", path.to_string_lossy()),
            InitStep::Hostname { .. } => "set its name".to_owned(),
        }
    }

    /// Async-signal-safe: system calls on memory prepared earlier.
    fn perform(&self) -> Result<(), i32> {
        let optional = |text: &Option<CString>| text.as_deref().map_or(std::ptr::null(), CStr::as_ptr);
        let done = match self {
            // SAFETY: every pointer is null or a NUL-terminated string that outlives the call.
            InitStep::Mount { source, target, kind, flags, data } => unsafe {
                libc::mount(source.as_ptr(), target.as_ptr(), optional(kind), *flags, optional(data).cast())
            },
            // SAFETY: the path is a NUL-terminated string that outlives the call.
            InitStep::Mkdir { path } => match unsafe { libc::mkdir(path.as_ptr(), 0o755) } {
                -1 if errno() == libc::EEXIST => 0,
                done => done,
            },
            // SAFETY: pointer and length describe one live string.
            InitStep::Hostname { name } => unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) },
        };
        if done == 0 { Ok(()) } else { Err(errno()) }
    }
}

fn errno() -> i32 {
    // SAFETY: glibc's errno location is valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

/// What the init reports when it is done: the index of the step that failed and its errno, or `READY`.
type InitReport = [i32; 2];
const READY: InitReport = [-1, 0];

/// Clones process 1 of a host: new network, pid, mount and uts namespaces. It performs `steps`, writes its report
/// to `report`, and then lives until `lifeline` reaches end of file, that is until its owner closes the other
/// end or dies, however it dies: with process 1 the kernel kills everything in the pid namespace
/// (pid_namespaces(7)), and with the last of them goes the network namespace.
pub(crate) fn clone_init(
    steps: &[InitStep],
    lifeline: &OwnedFd,
    report: &OwnedFd,
) -> io::Result<libc::pid_t> {
    let flags =
        libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is fork(2) with namespaces; the child runs `init_main` only, which makes
    // nothing but system calls on memory prepared here, and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => init_main(steps, lifeline.as_raw_fd(), report.as_raw_fd()),
        pid => Ok(pid as libc::pid_t),
    }
}

/// Async-signal-safe throughout: its process is a copy of one thread of a process with many.
fn init_main(steps: &[InitStep], lifeline: RawFd, report: RawFd) -> ! {
    // SAFETY: plain system calls on descriptors and constants; nothing here allocates or takes a lock.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"lab-init".as_ptr());
        libc::setsid();
        // Orphans of the host are adopted by process 1; with SIGCHLD ignored the kernel reaps them (wait(2)).
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        close_all_but(lifeline, report);
    }
    let mut outcome = READY;
    for (index, step) in steps.iter().enumerate() {
        if let Err(errno) = step.perform() {
            outcome = [index as i32, errno];
            break;
        }
    }
    let mut waiting = libc::pollfd { fd: lifeline, events: 0, revents: 0 };
    // SAFETY: `outcome` and `waiting` are live for the calls; _exit never returns.
    unsafe {
        libc::write(report, outcome.as_ptr().cast(), size_of::<InitReport>());
        libc::close(report);
        while outcome == READY && libc::poll(&mut waiting, 1, -1) <= 0 {}
        libc::_exit(if outcome == READY { 0 } else { 1 })
    }
}

/// Closes every descriptor but two and opens /dev/null as 0, 1 and 2: what the owner has open (the pipe of a test
/// runner, the lifelines of other hosts) must not be held open by a host.
///
/// # Safety
/// Only for a process that is about to own nothing else: any other descriptor is gone afterwards.
unsafe fn close_all_but(one: RawFd, other: RawFd) {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    // SAFETY: close_range and open on plain numbers; the caller owns all descriptors.
    unsafe {
        for (first, last) in [(0, low as u32), (low as u32 + 1, high as u32), (high as u32 + 1, u32::MAX)] {
            if first < last {
                let end = if last == u32::MAX { last } else { last - 1 };
                libc::syscall(libc::SYS_close_range, first, end, 0);
            }
        }
        // The lowest free numbers: 0, 1 and 2, unless the two kept ones are among them.
        for _ in 0..3 {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            if null > 2 {
                libc::close(null);
            }
        }
    }
}

/// Reads the report of an init: `Ok` when it is ready, else the failed step and why.
pub(crate) fn read_init_report(report: OwnedFd) -> Result<(), (usize, io::Error)> {
    let mut bytes = [0_u8; size_of::<InitReport>()];
    let mut file = std::fs::File::from(report);
    io::Read::read_exact(&mut file, &mut bytes).map_err(|error| (0, error))?;
    let field = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    match [field(0), field(4)] {
        READY => Ok(()),
        [step, errno] => Err((step.max(0) as usize, io::Error::from_raw_os_error(errno))),
    }
}

/// pidfd_open(2)
pub(crate) fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in; a new descriptor, owned by nobody else, out.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}

/// pidfd_send_signal(2): cannot hit a later process that was given the same number.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> io::Result<()> {
    let nothing: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: plain numbers and a null siginfo, which the call takes as "like kill(2)".
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, nothing, 0) }
    {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves the calling thread into the network, mount, uts and (for its children) pid namespace of a process.
/// Async-signal-safe.
pub(crate) fn enter_host(init: BorrowedFd<'_>) -> io::Result<()> {
    let all = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    nix::sched::setns(init, all).map_err(io::Error::from)
}

/// For use between fork and exec, after [`enter_host`]: a pid namespace is entered by a child only, so the caller
/// makes one that has the caller's parent as its own (CLONE_PARENT, clone(2)), tells its number to whoever
/// reads `pid_out`, and ends. Returns in the child. Async-signal-safe.
pub(crate) fn become_child_of_my_parent(pid_out: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a fork without new memory; the caller is the only thread of its process (it is between fork and
    // exec), and the parent's side makes only a write and an _exit.
    unsafe {
        match libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::setsid();
                Ok(())
            }
            pid => {
                let pid = pid as libc::pid_t;
                libc::write(pid_out.as_raw_fd(), (&raw const pid).cast(), size_of::<libc::pid_t>());
                libc::_exit(0)
            }
        }
    }
}

/// Sets a network device of the socket's namespace up or down (netdevice(7)). When it returns after `false`, no
/// frame passes any more: dev_close waits for senders in flight (net/core/dev.c, synchronize_net).
pub(crate) fn set_device_up(socket: BorrowedFd<'_>, device: &str, up: bool) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid ifreq (integers, characters and null pointers).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is live and of the type that both calls take; the flags field was filled by the
    // first call when the second is made.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = request.ifr_ifru.ifru_flags;
        let bit = libc::IFF_UP as libc::c_short;
        request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
        match libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Adds to a command what runs in its child between fork and exec.
///
/// `hook` must be async-signal-safe: only system calls on what it has already.
pub(crate) fn before_exec(
    command: &mut std::process::Command,
    hook: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the hooks passed here (`process.rs`) make only system calls on descriptors and strings that
    // were prepared before the fork.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, hook);
    }
}
