//! System calls that `check` tries and nothing else here makes: narrow, typed functions.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;
use outlive_process::sys::uffd;

/// A `userfaultfd(2)` of this process.
pub fn userfaultfd() -> io::Result<OwnedFd> {
    // As workloads make it: without a privilege beyond the one to trace.
    let flags = uffd::OPEN_FLAGS;
    // SAFETY: the call takes a number and gives a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Forks a child with this process id in the innermost process namespace (`clone3(2)`, `set_tid`), which ends at once;
/// waits for it. The calling process must have one thread.
pub fn fork_with_id(id: i32) -> io::Result<()> {
    let id = [id];
    let arguments = libc::clone_args {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: id.as_ptr() as u64,
        set_tid_size: id.len() as u64,
        // SAFETY: the structure is of numbers only, for which zero means "not used".
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: `arguments` and the array it points to are live for the call; without CLONE_VM the child has its own copy
    // of the memory, and it calls nothing but `_exit`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        // SAFETY: ends the child without running anything of the parent's.
        0 => unsafe { libc::_exit(0) },
        1.. => {
            let child = nix::unistd::Pid::from_raw(pid as i32);
            nix::sys::wait::waitpid(child, None).map(drop).map_err(io::Error::from)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the kernel says that the clock is kept in step by something (`adjtimex(2)`, `STA_UNSYNC`).
pub fn is_clock_synchronised() -> io::Result<bool> {
    // SAFETY: the structure is of numbers only; `modes` zero asks and changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is live and exclusively borrowed.
    if unsafe { libc::adjtimex(&raw mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(state.status & libc::STA_UNSYNC == 0)
}
