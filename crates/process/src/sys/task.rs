//! Small per-task facilities: pidfds and descriptors taken over, memory copied out, files compared.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::pagemap::Range;
use super::ptrace::Tid;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that refers to a process for as long as it is open.
pub fn pidfd_open(pid: Tid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and gives a new descriptor that nobody else owns.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: just made, see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process that a pidfd refers to.
pub fn signal_process(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: numbers, and a null pointer for the optional siginfo.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    };
    check(result).map(drop)
}

/// Signals one thread.
pub fn signal_thread(tid: Tid, signal: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_tkill, tid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A duplicate of another process's descriptor (`pidfd_getfd(2)`), close-on-exec.
pub fn take_descriptor(process: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three numbers and gives a new descriptor that nobody else owns.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: just made, see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether two descriptors, of two processes or one, are the same open file description (`kcmp(2)`, KCMP_FILE).
pub fn same_description(a: (Tid, i32), b: (Tid, i32)) -> io::Result<bool> {
    const KCMP_FILE: i32 = 0;
    // SAFETY: all arguments are numbers.
    let order = check(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, a.1, b.1) })?;
    Ok(order == 0)
}

/// Most segments the kernel takes in one call (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;

/// Writes parts of another process's memory, each at its address. Returns how many parts were written: fewer than all where
/// the process itself may not write.
pub fn write_memory(pid: Tid, parts: &[(u64, &[u8])]) -> io::Result<usize> {
    let mut done = 0;
    for chunk in parts.chunks(MAX_SEGMENTS) {
        let vector = |at: *mut libc::c_void, bytes: &[u8]| libc::iovec { iov_base: at, iov_len: bytes.len() };
        let local: Vec<libc::iovec> =
            chunk.iter().map(|(_, bytes)| vector(bytes.as_ptr().cast_mut().cast(), bytes)).collect();
        let remote: Vec<libc::iovec> =
            chunk.iter().map(|(address, bytes)| vector(*address as *mut _, bytes)).collect();
        let count = chunk.len() as u64;
        // SAFETY: the kernel only reads from the local parts, which are live and as long as is said; the remote side is
        // checked by the kernel, which reports what it could not write.
        let got = unsafe { libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
        let mut left = match check(got as libc::c_long) {
            Ok(got) => got as usize,
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 0,
            Err(error) => return Err(error),
        };
        // A part that is written in part counts as not written.
        for (_, bytes) in chunk {
            if left < bytes.len() {
                return Ok(done);
            }
            left -= bytes.len();
            done += 1;
        }
    }
    Ok(done)
}

/// Copies ranges of another process's memory, appending them to `into` in order. Returns how many bytes could be
/// read: less than all only where a range is no longer mapped.
pub fn copy_memory(pid: Tid, ranges: &[Range], into: &mut Vec<u8>) -> io::Result<usize> {
    let mut copied = 0;
    for chunk in ranges.chunks(MAX_SEGMENTS) {
        let total: u64 = chunk.iter().map(Range::len).sum();
        let total = total as usize;
        into.reserve(total);
        let remote: Vec<libc::iovec> = chunk
            .iter()
            .map(|range| libc::iovec { iov_base: range.start as *mut _, iov_len: range.len() as usize })
            .collect();
        let spare = into.spare_capacity_mut();
        let local = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: total };
        // SAFETY: `local` is spare capacity of `into`, reserved above and exclusively borrowed; the remote side is
        // checked by the kernel, which reports what it could not read.
        let got = unsafe {
            libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
        };
        let got = match check(got as libc::c_long) {
            Ok(got) => got as usize,
            // Nothing of this part can be read. What came before is in `into`, and counts.
            Err(error) if copied > 0 && error.raw_os_error() == Some(libc::EFAULT) => break,
            Err(error) => {
                into.truncate(into.len() - copied);
                return Err(error);
            }
        };
        // SAFETY: the kernel has initialised exactly `got` bytes of the reserved capacity.
        unsafe { into.set_len(into.len() + got) };
        copied += got;
        if got < total {
            break;
        }
    }
    Ok(copied)
}

/// That of the calling thread, if it is a real-time one.
pub fn realtime_priority() -> Option<i32> {
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is live and exclusively borrowed for the duration of the call.
    let result = unsafe { libc::sched_getparam(0, &raw mut param) };
    // It is 0 for all others (sched(7)).
    (result == 0 && param.sched_priority > 0).then_some(param.sched_priority)
}

/// Makes the calling thread a real-time one: as a normal task the tracer is preempted by the threads it resumes.
pub fn become_realtime(priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` is live for the duration of the call.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    check(libc::c_long::from(result)).map(drop)
}

/// Nanoseconds of a clock now.
pub fn clock(clock: libc::clockid_t) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is live and exclusively borrowed; the clocks used here always exist.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of many ranges of this process, one of which it may not read itself.
    #[test]
    fn what_is_copied_ends_where_a_range_cannot_be_read() {
        let page = 4096usize;
        let pages = 3 * MAX_SEGMENTS;
        let anonymous = nix::sys::mman::MapFlags::MAP_PRIVATE | nix::sys::mman::MapFlags::MAP_ANONYMOUS;
        let all = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        let length = std::num::NonZeroUsize::new(pages * page).unwrap();
        // SAFETY: new memory at an address of the kernel's choice.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, length, all, anonymous) }.unwrap();
        let address = start.as_ptr() as u64;
        let ranges: Vec<Range> = (0..pages)
            .map(|number| address + (number * page) as u64)
            .map(|start| Range::new(start, start + page as u64))
            .collect();
        let this = std::process::id() as Tid;
        for guarded in [0, 1, MAX_SEGMENTS - 1, MAX_SEGMENTS, 2 * MAX_SEGMENTS + 5] {
            let place = ranges[guarded].start as *mut libc::c_void;
            let protect = |protection| {
                // SAFETY: one page of the mapping above, which nothing else uses.
                assert_eq!(unsafe { libc::mprotect(place, page, protection) }, 0);
            };
            protect(libc::PROT_NONE);
            let mut into = vec![7];
            let copied = copy_memory(this, &ranges, &mut into);
            assert_eq!(copied.unwrap_or(0), guarded * page, "page {guarded}");
            assert_eq!(into.len(), 1 + guarded * page, "page {guarded}");
            protect(libc::PROT_READ | libc::PROT_WRITE);
        }
        // SAFETY: nothing refers to it any more.
        unsafe { nix::sys::mman::munmap(start, length.get()) }.unwrap();
    }
}
