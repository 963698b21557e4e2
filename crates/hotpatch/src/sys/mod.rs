//! What this crate asks of the operating system, as typed functions: nothing above has `unsafe`.

pub mod preferred;
pub mod ptrace;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes the lock of an open file (`flock(2)`), for as long as it is open. Without waiting, `WouldBlock` if another has it.
pub fn lock(file: BorrowedFd<'_>, wait: bool) -> io::Result<()> {
    let how = if wait { libc::LOCK_EX } else { libc::LOCK_EX | libc::LOCK_NB };
    // SAFETY: `flock` takes two numbers; the descriptor is borrowed and so open.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives the lock back, also for copies of the descriptor that a fork has made and that are not closed yet.
pub fn unlock(file: BorrowedFd<'_>) {
    // SAFETY: `flock` takes two numbers; the descriptor is borrowed and so open. Unlocking what is not locked does nothing.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

/// The size of an XSAVE area with these components and no others (Intel SDM vol. 1, 13.5: leaf 0xd has each one's place).
pub fn xsave_size(components: u64) -> usize {
    /// The legacy region and the header (13.4).
    const SMALLEST: usize = 576;
    let mut size = SMALLEST;
    for component in 2..63u32 {
        if components & (1 << component) != 0 {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, component);
            size = size.max(leaf.eax as usize + leaf.ebx as usize);
        }
    }
    size
}

/// Lets the calling thread run before ordinary ones and before those that it prefers itself, if the system permits: what it holds
/// is held the shorter. Whether it does.
pub fn prefer_this_thread() -> bool {
    let parameter = libc::sched_param { sched_priority: preferred::PRIORITY + 1 };
    // SAFETY: the structure is a local that outlives the call. Without the privilege nothing changes, and nothing depends
    // on it.
    let set = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    set == 0
}
