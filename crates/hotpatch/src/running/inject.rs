//! Calls that one thread of the process makes for us: the only place where a thread is held, one at a time.
//!
//! A patcher may die at any instruction of this, and the thread must go on as if nothing had been. So before its registers are
//! changed it is given, below its stack, what a signal handler would return by: all its registers as they are. Its new
//! instruction pointer is at a `syscall; ret` that is in the process anyway, and `ret` leads to `rt_sigreturn`. With
//! the patcher alive that way is never taken: the registers are put back by `ptrace`.

use std::thread;
use std::time::{Duration, Instant};

use super::memory::{Mapping, Memory};
use crate::error::{Error, Result, TargetContext};
use crate::sys;
use crate::sys::ptrace::{self, Event, Registers, Tid};

/// What a thread is asked to do.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    System(libc::c_long, [u64; 6]),
    /// A function of the process that returns a pointer or nothing and blocks on nothing.
    Function(u64, [u64; 3]),
}

/// Whoever can have calls made in the process: ptrace of a stranger here; a workload's supervisor is its tracer already and has
/// its own.
pub trait Caller {
    /// Makes the calls one after the other while one thread is held, and says what each returned.
    fn call(&mut self, calls: &[Call]) -> Result<Vec<u64>>;

    /// The longest time that a thread was held.
    fn longest_hold(&self) -> Duration;
}

/// What a step is called when it has been taken: for tests, which die there.
pub type Steps<'a> = &'a (dyn Fn(&'static str) + Sync);

/// Calls by `ptrace`.
pub struct Ptrace<'a> {
    memory: &'a Memory,
    steps: Steps<'a>,
    gadgets: Option<Gadgets>,
    longest: Duration,
}

/// Instructions of the process that are used as they are.
#[derive(Debug, Clone, Copy)]
struct Gadgets {
    /// `syscall; ret`.
    call: u64,
    /// `mov $15, %rax; syscall`: what a signal handler returns to.
    sigreturn: u64,
}

/// Below the stack pointer a function may keep 128 bytes (System V ABI, x86-64, 3.2.2).
const RED_ZONE: u64 = 128;
/// What a function that we call may need of the stack: more than any resolver or registration does.
const ROOM_FOR_FUNCTIONS: u64 = 16 << 10;
/// How long a thread may take to stop before another is tried: one that runs stops within its time slice, one that sleeps at
/// once; only a sleep that nothing interrupts takes longer.
const STOP_LIMIT: Duration = Duration::from_millis(200);
/// The kernel's own codes for calls that are to be started again (linux/errno.h).
const RESTART: std::ops::RangeInclusive<i64> = -516..=-512;
/// The selector of 64-bit code (arch/x86/include/asm/segment.h, `__USER_CS`).
const CODE_SELECTOR: u64 = 0x33;

/// Calls that return EINTR when they are interrupted and have done nothing by then, so that they can be made again.
const AGAIN: [libc::c_long; 12] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
];
/// Calls that the kernel starts again by itself, so that a thread in them is the best to be asked.
const UNDISTURBED: [libc::c_long; 10] = [
    libc::SYS_futex,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_read,
    libc::SYS_wait4,
    libc::SYS_accept,
];

impl<'a> Ptrace<'a> {
    pub fn new(memory: &'a Memory, steps: Steps<'a>) -> Self {
        Self { memory, steps, gadgets: None, longest: Duration::ZERO }
    }
}

impl Caller for Ptrace<'_> {
    fn call(&mut self, calls: &[Call]) -> Result<Vec<u64>> {
        let mappings = self.memory.mappings()?;
        let gadgets = match self.gadgets {
            Some(gadgets) => gadgets,
            None => *self.gadgets.insert(Gadgets::find(self.memory, &mappings)?),
        };
        let candidates = candidates(self.memory)?;
        let (memory, steps) = (self.memory, self.steps);
        // A thread of its own: when it ends, whatever it traced is let go, also what would not stop.
        let (results, held) = thread::scope(|scope| {
            scope
                .spawn(|| Session { memory, mappings: &mappings, gadgets, steps }.run(&candidates, calls))
                .join()
        })
        .unwrap_or_else(|_| Err(Error::unfit("the thread that traces came to an end")))?;
        self.longest = self.longest.max(held);
        Ok(results)
    }

    fn longest_hold(&self) -> Duration {
        self.longest
    }
}

impl Gadgets {
    fn find(memory: &Memory, mappings: &[Mapping]) -> Result<Self> {
        let (mut call, mut sigreturn) = (None, None);
        for mapping in mappings.iter().filter(|m| m.is_executable && m.is_readable && m.inode != 0) {
            // A mapping that went away meanwhile has nothing.
            let Ok(code) = memory.read(mapping.start, (mapping.end - mapping.start) as usize) else {
                continue;
            };
            let find = |bytes: &[u8]| {
                code.windows(bytes.len())
                    .position(|window| window == bytes)
                    .map(|at| mapping.start + at as u64)
            };
            call = call.or_else(|| find(&[0x0f, 0x05, 0xc3]));
            sigreturn = sigreturn
                .or_else(|| find(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]))
                .or_else(|| find(&[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]));
            if let (Some(call), Some(sigreturn)) = (call, sigreturn) {
                return Ok(Self { call, sigreturn });
            }
        }
        Err(Error::unfit(format!(
            "process {} has no instructions to make a system call by (`syscall; ret`, and the return from a signal)",
            memory.pid
        )))
    }
}

/// The threads, in the order in which they are asked: those that sleep where nobody notices, those that sleep, those that run.
fn candidates(memory: &Memory) -> Result<Vec<Tid>> {
    let mut rated: Vec<(u8, Tid)> = Vec::new();
    for tid in memory.threads()? {
        let state = memory.status(tid, "State").unwrap_or_default();
        let rate = match (state.chars().next(), memory.sleeping_call(tid)) {
            (Some('S'), Some(call)) if UNDISTURBED.contains(&call) => 0,
            (Some('S'), Some(call)) if AGAIN.contains(&call) => 1,
            (Some('R'), _) => 2,
            (Some('S'), _) => 3,
            (Some('T' | 't'), _) => {
                return Err(Error::unfit(format!(
                    "process {} is stopped (by job control or a debugger): let it go on first",
                    memory.pid
                )));
            }
            (Some('Z' | 'X'), _) => continue,
            _ => 4,
        };
        rated.push((rate, tid));
    }
    rated.sort_unstable();
    if rated.is_empty() {
        return Err(Error::unfit(format!("process {} has no thread that lives", memory.pid)));
    }
    Ok(rated.into_iter().map(|(_, tid)| tid).collect())
}

struct Session<'a> {
    memory: &'a Memory,
    mappings: &'a [Mapping],
    gadgets: Gadgets,
    steps: Steps<'a>,
}

/// Why a thread is not the one.
enum No {
    /// Another may be.
    This(String),
    All(Error),
}

impl From<Error> for No {
    fn from(error: Error) -> Self {
        Self::All(error)
    }
}

impl Session<'_> {
    fn run(&self, candidates: &[Tid], calls: &[Call]) -> Result<(Vec<u64>, Duration)> {
        sys::prefer_this_thread();
        let mut why = Vec::new();
        // A thread that was in the middle of something is asked again.
        for tid in candidates.iter().chain(candidates).chain(candidates) {
            match self.try_thread(*tid, calls) {
                Ok(outcome) => return Ok(outcome),
                Err(No::All(error)) => return Err(error),
                Err(No::This(reason)) => why.push(format!("thread {tid} {reason}")),
            }
        }
        why.dedup();
        Err(Error::unfit(format!(
            "no thread of process {} could make a call: {}",
            self.memory.pid,
            why.join("; ")
        )))
    }

    fn try_thread(&self, tid: Tid, calls: &[Call]) -> Result<(Vec<u64>, Duration), No> {
        let needs_no_filter = self.memory.status(tid, "Seccomp").is_some_and(|mode| mode != "0");
        match ptrace::seize(tid) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(No::This("ended".to_owned()));
            }
            Err(error) => {
                let tracer = self.memory.status(tid, "TracerPid").filter(|tracer| tracer != "0");
                let why = match tracer {
                    Some(tracer) => {
                        format!("process {} is traced by process {tracer} (a debugger?)", self.memory.pid)
                    }
                    None => format!("process {} may not be traced: {error}", self.memory.pid),
                };
                return Err(No::All(Error::unfit(why)));
            }
        }
        (self.steps)("seized");
        let begun = Instant::now();
        ptrace::interrupt(tid).or_target(|| format!("interrupt thread {tid}"))?;
        self.await_stop(tid)?;
        (self.steps)("stopped");
        let outcome = self.with_stopped(tid, needs_no_filter, calls);
        match outcome {
            Ok(results) => Ok((results, begun.elapsed())),
            Err(No::This(why)) => {
                // Nothing of it was changed.
                ptrace::detach(tid, 0).or_target(|| format!("let go of thread {tid}"))?;
                Err(No::This(why))
            }
            Err(all) => {
                // It may have ended; if not, it is let go at the latest when this thread ends.
                let _ = ptrace::detach(tid, 0);
                Err(all)
            }
        }
    }

    /// Waits for the stop that was asked for; signals that come first are passed on.
    fn await_stop(&self, tid: Tid) -> Result<(), No> {
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            match ptrace::wait(tid, false).or_target(|| format!("wait for thread {tid}"))? {
                Some(Event::Interrupt) => return Ok(()),
                Some(Event::Signal(signal)) => {
                    ptrace::resume(tid, signal).or_target(|| format!("resume thread {tid}"))?;
                }
                Some(Event::Group(_)) => {
                    let _ = ptrace::detach(tid, 0);
                    return Err(No::All(Error::unfit(format!(
                        "process {} is stopped by job control: let it go on first",
                        self.memory.pid
                    ))));
                }
                Some(Event::Ended) => return Err(No::This("ended".to_owned())),
                Some(_) => ptrace::resume(tid, 0).or_target(|| format!("resume thread {tid}"))?,
                None if Instant::now() > deadline => {
                    return Err(No::This("sleeps where nothing interrupts it".to_owned()));
                }
                // A stop takes microseconds: a longer sleep would be a longer hold, and none at all could keep the processor
                // from the thread that is to stop.
                None => thread::sleep(Duration::from_micros(5)),
            }
        }
    }

    fn with_stopped(&self, tid: Tid, needs_no_filter: bool, calls: &[Call]) -> Result<Vec<u64>, No> {
        let asked = |what: &str| format!("{what} of thread {tid}");
        let original = ptrace::registers(tid).or_target(|| asked("read the registers"))?;
        if original.cs != CODE_SELECTOR {
            return Err(No::This("executes 32-bit code".to_owned()));
        }
        let is_in_call = original.orig_rax as i64 >= 0;
        if !is_in_call && self.is_in_sequence(tid)? {
            return Err(No::This("is in a restartable sequence".to_owned()));
        }
        if needs_no_filter && let Err(error) = ptrace::suspend_seccomp(tid) {
            return Err(No::All(Error::unfit(format!(
                "process {} is under a seccomp filter, which only a patcher with CAP_SYS_ADMIN that is under none can lift for its \
                 calls: {error}",
                self.memory.pid
            ))));
        }
        let mask = ptrace::signal_mask(tid).or_target(|| asked("read the signal mask"))?;
        let xstate = ptrace::xstate(tid).or_target(|| asked("read the extended state"))?;
        let after = self.after(tid, &original);
        let frame = Frame::new(original.rsp, &after, mask, xstate, self.gadgets.sigreturn);
        let stack = self.mappings.iter().find(|m| m.is_writable && (m.start..m.end).contains(&original.rsp));
        let calls_function = calls.iter().any(|call| matches!(call, Call::Function(..)));
        let room = if calls_function { ROOM_FOR_FUNCTIONS } else { 64 };
        if stack.is_none_or(|stack| frame.address < stack.start + room) {
            return Err(No::This("has no room on its stack".to_owned()));
        }
        self.memory.write(frame.address, &frame.bytes)?;
        (self.steps)("frame written");
        let mut results = Vec::with_capacity(calls.len());
        for (number, call) in calls.iter().enumerate() {
            let regs = self.registers_for(&original, frame.address, call)?;
            ptrace::set_registers(tid, &regs).or_target(|| asked("set the registers"))?;
            if number == 0 {
                (self.steps)("registers set");
                ptrace::set_signal_mask(tid, !0).or_target(|| asked("set the signal mask"))?;
            }
            (self.steps)("call set up");
            results.push(self.make(tid, call)?);
            (self.steps)("call made");
        }
        // Only from a stop like the first does the kernel look at a call that is to be started again.
        ptrace::interrupt(tid).or_target(|| asked("interrupt"))?;
        ptrace::resume(tid, 0).or_target(|| asked("resume"))?;
        self.await_stop(tid)?;
        ptrace::set_signal_mask(tid, mask).or_target(|| asked("set the signal mask"))?;
        (self.steps)("mask put back");
        let restored = if is_rewound(&original, &after) { after } else { original };
        ptrace::set_registers(tid, &restored).or_target(|| asked("set the registers"))?;
        (self.steps)("registers put back");
        ptrace::detach(tid, 0).or_target(|| format!("let go of thread {tid}"))?;
        (self.steps)("let go");
        Ok(results)
    }

    /// Whether the thread is in a restartable sequence, which the kernel would forget about when it sees the thread elsewhere
    /// (`rseq(2)`; `rseq_cs` is at offset 8 of the structure).
    fn is_in_sequence(&self, tid: Tid) -> Result<bool> {
        match ptrace::rseq_address(tid) {
            Ok(0) | Err(_) => Ok(false),
            Ok(address) => Ok(self.memory.word(address + 8)? != 0),
        }
    }

    /// The registers with which it goes on if nobody puts them back: a call that was interrupted is made again, as the kernel
    /// would.
    fn after(&self, tid: Tid, original: &Registers) -> Registers {
        let mut after = *original;
        let code = original.rax as i64;
        let is_again = original.orig_rax as i64 >= 0
            && (RESTART.contains(&code)
                || code == -i64::from(libc::EINTR)
                    && AGAIN.contains(&(original.orig_rax as i64))
                    && !self.has_signal(tid));
        if is_again {
            after.rip -= 2;
            after.rax = original.orig_rax;
        }
        after.orig_rax = u64::MAX;
        after
    }

    /// Whether a signal waits that the thread will take: then its call was rightly interrupted.
    fn has_signal(&self, tid: Tid) -> bool {
        let set = |field| {
            self.memory.status(tid, field).and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(0)
        };
        (set("SigPnd") | set("ShdPnd")) & !set("SigBlk") != 0
    }

    fn registers_for(&self, original: &Registers, frame: u64, call: &Call) -> Result<Registers> {
        let mut regs = *original;
        regs.orig_rax = u64::MAX;
        match call {
            Call::System(number, arguments) => {
                regs.rip = self.gadgets.call;
                regs.rsp = frame;
                regs.rax = *number as u64;
                [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = *arguments;
            }
            Call::Function(address, arguments) => {
                // It returns to `syscall; ret`, where we see what it returned as the number of a call that we do not let happen.
                self.memory.write(frame - 8, &self.gadgets.call.to_le_bytes())?;
                regs.rip = *address;
                regs.rsp = frame - 8;
                regs.rax = 0;
                [regs.rdi, regs.rsi, regs.rdx] = *arguments;
                // The direction flag is clear on entry to a function (System V ABI, x86-64, 3.2.1).
                regs.eflags &= !(1 << 10);
            }
        }
        Ok(regs)
    }

    fn make(&self, tid: Tid, call: &Call) -> Result<u64> {
        self.to_call(tid)?;
        let regs = ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?;
        let result = match call {
            Call::Function(..) => {
                let mut none = regs;
                none.orig_rax = u64::MAX;
                ptrace::set_registers(tid, &none)
                    .or_target(|| format!("set the registers of thread {tid}"))?;
                Some(regs.orig_rax)
            }
            Call::System(..) => None,
        };
        (self.steps)("call entered");
        self.to_call(tid)?;
        match result {
            Some(result) => Ok(result),
            None => {
                Ok(ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?.rax)
            }
        }
    }

    fn to_call(&self, tid: Tid) -> Result<()> {
        ptrace::resume_to_call(tid, 0).or_target(|| format!("resume thread {tid}"))?;
        match ptrace::wait(tid, true).or_target(|| format!("wait for thread {tid}"))? {
            Some(Event::Call) => Ok(()),
            Some(Event::Ended) => Err(Error::unfit(format!("process {} ended", self.memory.pid))),
            other => Err(Error::unfit(format!("thread {tid} came to an unexpected stop: {other:?}"))),
        }
    }
}

/// Whether the kernel would not make a call again that must be (EINTR without a signal).
fn is_rewound(original: &Registers, after: &Registers) -> bool {
    original.rax as i64 == -i64::from(libc::EINTR) && after.rip != original.rip
}

/// What `rt_sigreturn` takes all registers from (`struct rt_sigframe`, arch/x86/include/asm/sigframe.h).
struct Frame {
    address: u64,
    bytes: Vec<u8>,
}

/// `uc_flags`: extended state is there, `ss` is, and is to be taken (arch/x86/include/uapi/asm/ucontext.h).
const CONTEXT_FLAGS: u64 = 1 | 2 | 4;
/// No value of `ss_flags`: the alternate stack stays what it is (`do_sigaltstack` refuses, `restore_altstack` goes on).
const KEEP_ALTERNATE_STACK: u32 = 0x40;
/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2` and the place of `struct _fpx_sw_bytes` (uapi/asm/sigcontext.h).
const XSTATE_MAGIC: u32 = 0x4650_5853;
const XSTATE_END: u32 = 0x4650_5845;
const SOFTWARE_AT: usize = 464;
/// In the XSAVE header: which components are not in their initial state.
const PRESENT_AT: usize = 512;
/// Tile configuration and data (Intel SDM vol. 1, 13.1): a thread has room for them only once it has asked.
const TILES: u64 = 0b11 << 17;

impl Frame {
    fn new(stack: u64, regs: &Registers, mask: u64, mut xstate: Vec<u8>, sigreturn: u64) -> Self {
        let quad = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(std::array::from_fn(|index| b[index])))
        };
        // `ptrace` notes there which components the kernel has switched on.
        let mut components = quad(&xstate, SOFTWARE_AT);
        if quad(&xstate, PRESENT_AT) & TILES == 0 {
            components &= !TILES;
        }
        let size = sys::xsave_size(components).min(xstate.len());
        xstate.truncate(size);
        if size >= PRESENT_AT {
            let mut software = Vec::with_capacity(48);
            software.extend(XSTATE_MAGIC.to_le_bytes());
            software.extend((size as u32 + 4).to_le_bytes());
            software.extend(components.to_le_bytes());
            software.extend((size as u32).to_le_bytes());
            software.resize(48, 0);
            xstate[SOFTWARE_AT..SOFTWARE_AT + 48].copy_from_slice(&software);
        }
        xstate.extend(XSTATE_END.to_le_bytes());
        let area = (stack - RED_ZONE - xstate.len() as u64) & !63;
        let mut bytes = Vec::with_capacity(xstate.len() + 512);
        let mut put = |value: u64| bytes.extend(value.to_le_bytes());
        put(sigreturn);
        put(CONTEXT_FLAGS);
        put(0);
        put(0);
        put(u64::from(KEEP_ALTERNATE_STACK));
        put(0);
        for value in [
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rdi,
            regs.rsi,
            regs.rbp,
            regs.rbx,
            regs.rdx,
            regs.rax,
            regs.rcx,
            regs.rsp,
            regs.rip,
            regs.eflags,
        ] {
            put(value);
        }
        // cs, gs, fs, ss, 16 bits each.
        put(regs.cs & 0xffff | (regs.ss & 0xffff) << 48);
        for value in [0, 0, mask, 0, area] {
            put(value);
        }
        for _ in 0..8 {
            put(0);
        }
        put(mask);
        // Room for a siginfo that nobody reads.
        for _ in 0..16 {
            put(0);
        }
        // After the first eight bytes are popped the kernel looks at what follows; functions that are called here find their stack
        // aligned: at their entry, 8 below a multiple of 16.
        let address = (area - bytes.len() as u64) & !15;
        bytes.resize((area - address) as usize, 0);
        bytes.extend(xstate);
        Self { address, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_what_the_kernel_looks_for() {
        // SAFETY: plain integers, for which all-zero is a value.
        let mut regs: Registers = unsafe { std::mem::zeroed() };
        regs.rip = 0x1111;
        regs.rsp = 0x7000_0000_1008;
        let mut xstate = vec![0u8; 2696];
        xstate[SOFTWARE_AT] = 7;
        let frame = Frame::new(regs.rsp, &regs, 0xabc, xstate, 0x9999);
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| frame.bytes[at + index]));
        assert_eq!(frame.address % 16, 0);
        assert_eq!(quad(0), 0x9999);
        // After the pretcode: flags, link and stack are 40 bytes; then 15 registers and the stack pointer.
        assert_eq!(quad(8 + 40 + 15 * 8), regs.rsp);
        assert_eq!(quad(8 + 40 + 16 * 8), regs.rip);
        assert_eq!(quad(8 + 40 + 256), 0xabc);
        let area = quad(8 + 40 + 23 * 8);
        assert_eq!(area % 64, 0);
        assert!(area + 512 < regs.rsp - RED_ZONE);
        let at = (area - frame.address) as usize;
        assert_eq!(frame.bytes[at + SOFTWARE_AT..at + SOFTWARE_AT + 4], XSTATE_MAGIC.to_le_bytes());
        assert_eq!(frame.bytes[frame.bytes.len() - 4..], XSTATE_END.to_le_bytes());
    }
}
