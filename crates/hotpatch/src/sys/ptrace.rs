//! `ptrace(2)`, as far as one thread is held for some calls. Every call must come from the thread that seized.
//!
//! Nothing here single-steps: a tracer that dies while its tracee stands at a step leaves the trap flag set, and the
//! next instruction kills the process (`exit_ptrace` in kernel/ptrace.c does not do what `PTRACE_DETACH` does). Stops at
//! system calls are undone by the kernel when the tracer dies.

use std::io;
use std::os::raw::c_void;

/// A thread id as our own pid namespace sees it.
pub type Tid = libc::pid_t;
pub type Registers = libc::user_regs_struct;

/// `elf.h`: general registers, and the extended state as XSAVE lays it out.
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
/// `linux/ptrace.h`; not in `libc` for every target.
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// The kernel's `_NSIG / 8` on x86-64.
const SIGSET_SIZE: usize = 8;
/// Largest XSAVE area: AMX tile data brings it to about 11 KiB (Intel SDM vol. 1, 13.5); doubled for what follows.
const XSTATE_MAX: usize = 32 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A stop that we asked for.
    Interrupt,
    /// At the entry or the exit of a system call.
    Call,
    /// About to receive this signal.
    Signal(i32),
    /// Stopped by job control.
    Group(i32),
    /// Ended, by exit or by a signal.
    Ended,
    Other,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: every caller passes, for `data` or `addr`, either a plain number or a pointer to memory it
    // borrows mutably for the duration of the call and of the size that the request writes.
    check(unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) })
}

/// Becomes the tracer of a thread without stopping it. `PTRACE_O_EXITKILL` must not be set: our death must not be its.
pub fn seize(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).map(drop)
}

/// Lets system calls of ours pass its seccomp filters while it is held (needs CAP_SYS_ADMIN).
pub fn suspend_seccomp(tid: Tid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets it go on to its next system call, or to that call's end, with a signal if it is not 0.
pub fn resume_to_call(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// Waits for the thread's next stop; `None` if there was none yet and `wait` is not set.
pub fn wait(tid: Tid, wait: bool) -> io::Result<Option<Event>> {
    let mut status = 0;
    let how = if wait { libc::__WALL } else { libc::__WALL | libc::WNOHANG };
    loop {
        // SAFETY: `status` is a local that outlives the call.
        match unsafe { libc::waitpid(tid, &raw mut status, how) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            0 => return Ok(None),
            _ => break,
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Some(Event::Ended));
    }
    let signal = libc::WSTOPSIG(status);
    Ok(Some(match status >> 16 {
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Interrupt,
        libc::PTRACE_EVENT_STOP => Event::Group(signal),
        0 if signal == libc::SIGTRAP | 0x80 => Event::Call,
        0 => Event::Signal(signal),
        _ => Event::Other,
    }))
}

fn regset(tid: Tid, get: bool, kind: usize, base: *mut c_void, len: usize) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: base, iov_len: len };
    let what = if get { libc::PTRACE_GETREGSET } else { libc::PTRACE_SETREGSET };
    request(what, tid, kind, &raw mut iov as usize)?;
    Ok(iov.iov_len)
}

pub fn registers(tid: Tid) -> io::Result<Registers> {
    // SAFETY: `user_regs_struct` is plain integers, for which all-zero is a value.
    let mut regs: Registers = unsafe { std::mem::zeroed() };
    regset(tid, true, NT_PRSTATUS, (&raw mut regs).cast(), size_of::<Registers>())?;
    Ok(regs)
}

pub fn set_registers(tid: Tid, regs: &Registers) -> io::Result<()> {
    let mut copy = *regs;
    regset(tid, false, NT_PRSTATUS, (&raw mut copy).cast(), size_of::<Registers>()).map(drop)
}

/// The extended state in XSAVE's layout; its length depends on the processor.
pub fn xstate(tid: Tid) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; XSTATE_MAX];
    let len = regset(tid, true, NT_X86_XSTATE, area.as_mut_ptr().cast(), XSTATE_MAX)?;
    area.truncate(len);
    Ok(area)
}

pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, SIGSET_SIZE, &raw mut mask as usize)?;
    Ok(mask)
}

pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    let mut copy = mask;
    request(PTRACE_SETSIGMASK, tid, SIGSET_SIZE, &raw mut copy as usize).map(drop)
}

/// Where a thread's `struct rseq` is, or 0 (`struct ptrace_rseq_configuration`, linux/ptrace.h).
pub fn rseq_address(tid: Tid) -> io::Result<u64> {
    let mut words = [0u64; 3];
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of_val(&words), words.as_mut_ptr() as usize)?;
    Ok(words[0])
}
