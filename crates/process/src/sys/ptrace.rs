//! `ptrace(2)` as typed functions: seize, interrupt, wait, registers.
//!
//! Every call must come from the one thread that seized the task; the kernel ties a tracee to a thread, not to a process.

use std::io;
use std::os::raw::c_void;

/// A thread id as the tracer's own pid namespace sees it.
pub type Tid = libc::pid_t;

/// General-purpose registers, as `PTRACE_GETREGSET(NT_PRSTATUS)` gives them.
pub type Registers = libc::user_regs_struct;

/// `elf.h`: general registers, and the extended state (x87, SSE, AVX, …) as XSAVE lays it out.
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
/// `linux/ptrace.h`; not in `libc` for every target.
const PTRACE_SUSPEND_SECCOMP_OPTION: usize = 1 << 21;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
/// The kernel's `_NSIG / 8` on x86-64: the size of a signal set it accepts.
const SIGSET_SIZE: usize = 8;
/// Largest XSAVE area we accept: AMX tile data brings it to about 11 KiB (Intel SDM vol. 1, 13.5); doubled for what follows.
const XSTATE_MAX: usize = 32 * 1024;

/// Why a traced thread stopped, as `waitpid(2)` encodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// About to receive this signal; it is delivered only when passed on with [`resume`].
    Signal(i32),
    /// Job control stopped the thread group with this signal.
    Group(i32),
    /// `PTRACE_INTERRUPT`, or the first stop of a task that was attached at birth.
    Interrupt,
    Fork(Tid),
    Vfork(Tid),
    Clone(Tid),
    Exec {
        /// Thread id that called `execve`, which becomes the leader's.
        former: Tid,
    },
    /// About to exit; the status as `wait` would give it.
    Exiting(i32),
    /// A system call that the filter asked to be told of, with the filter's data.
    Seccomp(u16),
    /// Stop at the entry or exit of a system call.
    Syscall,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Stopped(Stop),
    Exited(i32),
    Killed(i32),
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: every caller passes, for `data` or `addr`, either a plain number or a pointer to memory it
    // borrows mutably for the duration of the call and of the size that the request writes.
    check(unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) })
}

/// Follows every new thread and process, exec and exit, and kills the tracee if the tracer dies (R4).
const OPTIONS: usize = (libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACEEXIT
    | libc::PTRACE_O_TRACESECCOMP
    | libc::PTRACE_O_EXITKILL) as usize;

pub fn seize(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, OPTIONS).map(drop)
}

pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go on, delivering `signal` if it is not 0.
pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a thread run up to the beginning of its next system call or, if it is in one, the end ([`Stop::Syscall`]).
pub fn resume_to_call(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Leaves a thread in its job-control stop but lets it be woken by SIGCONT.
pub fn listen(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Executes one instruction.
pub fn step(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// Switches the tracee's seccomp filters off for as long as `suspended` (needs CAP_SYS_ADMIN).
pub fn suspend_seccomp(tid: Tid, suspended: bool) -> io::Result<()> {
    let options = if suspended { OPTIONS | PTRACE_SUSPEND_SECCOMP_OPTION } else { OPTIONS };
    request(libc::PTRACE_SETOPTIONS, tid, 0, options).map(drop)
}

/// A filter as the kernel gives it.
#[derive(Debug)]
pub struct SeccompFilter {
    /// None if it is not classic BPF.
    pub program: Option<Vec<u8>>,
    pub log: bool,
}

/// A filter of a stopped thread, the one installed first being 0; none behind the last. Needs CAP_SYS_ADMIN, and that the
/// caller has no filter itself (`seccomp_get_filter`, kernel/seccomp.c).
pub fn seccomp_filter(tid: Tid, index: u64) -> io::Result<Option<SeccompFilter>> {
    let Some(count) = absent(request(PTRACE_SECCOMP_GET_FILTER, tid, index as usize, 0))? else {
        return Ok(None);
    };
    // struct seccomp_metadata of linux/ptrace.h: which filter, and its flags.
    let mut metadata = [index, 0];
    let size = size_of_val(&metadata);
    request(PTRACE_SECCOMP_GET_METADATA, tid, size, metadata.as_mut_ptr() as usize)?;
    let log = metadata[1] & libc::SECCOMP_FILTER_FLAG_LOG != 0;
    if count < 0 {
        return Ok(Some(SeccompFilter { program: None, log }));
    }
    let mut program = vec![0u8; count as usize * size_of::<libc::sock_filter>()];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index as usize, program.as_mut_ptr() as usize)?;
    Ok(Some(SeccompFilter { program: Some(program), log }))
}

/// No such filter (ENOENT), or none at all (EINVAL), is no error, and one that is not classic BPF (EMEDIUMTYPE) has a negative length here.
fn absent(asked: io::Result<libc::c_long>) -> io::Result<Option<libc::c_long>> {
    match asked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EMEDIUMTYPE) => Ok(Some(-1)),
        other => other.map(Some),
    }
}

pub fn event_message(tid: Tid) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
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
    let size = size_of::<Registers>();
    regset(tid, true, NT_PRSTATUS, (&raw mut regs).cast(), size)?;
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

pub fn set_xstate(tid: Tid, area: &[u8]) -> io::Result<()> {
    let mut copy = area.to_vec();
    let len = copy.len();
    regset(tid, false, NT_X86_XSTATE, copy.as_mut_ptr().cast(), len).map(drop)
}

pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, SIGSET_SIZE, &raw mut mask as usize)?;
    Ok(mask)
}

pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    request(PTRACE_SETSIGMASK, tid, SIGSET_SIZE, &raw mut mask as usize).map(drop)
}

/// Raw `siginfo_t`, 128 bytes on every architecture (`asm-generic/siginfo.h`, SI_MAX_SIZE).
pub type SignalInfo = [u8; 128];

/// The signal whose delivery stopped the thread.
pub fn signal_info(tid: Tid) -> io::Result<SignalInfo> {
    let mut info = [0u8; 128];
    request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as usize)?;
    Ok(info)
}

pub fn set_signal_info(tid: Tid, info: &SignalInfo) -> io::Result<()> {
    let mut info = *info;
    request(libc::PTRACE_SETSIGINFO, tid, 0, info.as_mut_ptr() as usize).map(drop)
}

/// Signals queued and not yet delivered: to the thread, or (`shared`) to its whole process.
pub fn pending_signals(tid: Tid, shared: bool) -> io::Result<Vec<SignalInfo>> {
    #[repr(C)]
    struct PeekArgs {
        off: u64,
        flags: u32,
        nr: i32,
    }
    /// How many are asked for at a time.
    const BATCH: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut batch = [[0u8; 128]; BATCH];
        let args = PeekArgs {
            off: all.len() as u64,
            flags: if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: BATCH as i32,
        };
        let got =
            request(libc::PTRACE_PEEKSIGINFO, tid, &raw const args as usize, batch.as_mut_ptr() as usize)?
                as usize;
        all.extend_from_slice(&batch[..got]);
        if got < BATCH {
            return Ok(all);
        }
    }
}

/// What a thread told the kernel about its restartable sequences: address, length, signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rseq {
    pub address: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

pub fn rseq(tid: Tid) -> io::Result<Option<Rseq>> {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut conf = Configuration::default();
    let size = size_of::<Configuration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, &raw mut conf as usize)?;
    Ok((conf.pointer != 0).then_some(Rseq {
        address: conf.pointer,
        size: conf.size,
        signature: conf.signature,
        flags: conf.flags,
    }))
}

/// The head of the thread's robust futex list (`get_robust_list(2)`): address and length.
pub fn robust_list(tid: Tid) -> io::Result<(u64, u64)> {
    let mut head = 0u64;
    let mut len = 0u64;
    // SAFETY: both pointers are to live, exclusively borrowed u64, which is what the call writes.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

fn decode(tid: Tid, status: i32) -> io::Result<Event> {
    if libc::WIFEXITED(status) {
        return Ok(Event::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Event::Killed(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    let stop = match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_FORK => Stop::Fork(event_message(tid)? as Tid),
        libc::PTRACE_EVENT_VFORK => Stop::Vfork(event_message(tid)? as Tid),
        libc::PTRACE_EVENT_CLONE => Stop::Clone(event_message(tid)? as Tid),
        libc::PTRACE_EVENT_EXEC => Stop::Exec { former: event_message(tid)? as Tid },
        libc::PTRACE_EVENT_EXIT => Stop::Exiting(event_message(tid)? as i32),
        libc::PTRACE_EVENT_SECCOMP => Stop::Seccomp(event_message(tid)? as u16),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupt,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        _ => Stop::Interrupt,
    };
    Ok(Event::Stopped(stop))
}

/// Waits for one thread. `None` when `block` is false and nothing has happened.
pub fn wait_for(tid: Tid, block: bool) -> io::Result<Option<Event>> {
    Ok(wait_any(tid, block)?.map(|(_, event)| event))
}

/// The next event of any tracee of this thread (`tid` −1), or of one.
pub fn wait_any(tid: Tid, block: bool) -> io::Result<Option<(Tid, Event)>> {
    loop {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
        // SAFETY: `status` is a live i32 that the call writes.
        let got = unsafe { libc::waitpid(tid, &raw mut status, flags) };
        match got {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ECHILD) => return Ok(None),
                    _ => return Err(error),
                }
            }
            tid => match decode(tid, status) {
                Ok(event) => return Ok(Some((tid, event))),
                // The task was killed between its stop and our question: its death is the next event.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) => return Err(error),
            },
        }
    }
}
