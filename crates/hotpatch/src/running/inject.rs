//! Calls that one thread of the process makes for us: the only place where a thread is held, one at a time.
//!
//! A patcher may die at any instruction of this, and the thread must go on as if nothing had been. So before its registers are
//! changed it is given, below its stack, what a signal handler would return by: all its registers as they are. Its new
//! instruction pointer is at a `syscall; ret` that is in the process anyway, and `ret` leads to `rt_sigreturn`.
//!
//! That way back is also the usual one: an *errand*. The thread is let go at once, makes the calls by itself, one frame for each, and
//! returns to what it did. It is held only while its registers are read and changed, in which nobody has to be waited for: each
//! time that a held thread has to run for its tracer it waits for a processor, and on a busy machine that is a time slice. What
//! came of the calls is seen in the process: its mappings, or the words that the [`Desk`] in the patch's own memory has for it.
//!
//! Some threads cannot be left alone with it: one under a seccomp filter (which is lifted only while it is traced), one in a call
//! of which only the kernel knows how much time is left, one with a shadow stack. If no other will do, such a one is *held* for all of
//! the calls, and its registers are put back by `ptrace`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::frame::Frame;
use super::memory::{Mapping, Memory};
use super::moment::{Moment, Sight};
use super::together::{Store, Try};
use crate::error::{Error, Result, TargetContext};
use crate::sys;
use crate::sys::preferred::Preferred;
use crate::sys::ptrace::{self, Event, Registers, Tid};

/// What a thread is asked to do.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// Map memory of its own at a place where nothing is. Returns the place, or `-EEXIST` if something was there.
    Map { at: u64, length: u64, rights: libc::c_int },
    /// Have every processor that runs the process forget what it has fetched.
    Synchronise,
    /// A function of the process that waits for nothing. What it returns is not known (0, or −EAGAIN if it was seen to wait and was left
    /// there), and it is the last of the calls.
    Function(u64, [u64; 3]),
}

/// A system call: its number and arguments.
type System = (libc::c_long, [u64; 6]);

/// `membarrier(2)`: every processor that runs a thread of the process executes a serialising instruction before it goes on.
const REGISTER_SYNC_CORE: u64 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as u64;
const SYNC_CORE: u64 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u64;

impl Call {
    /// The system calls that it is, one after the other; the first that fails says how it went.
    fn system(&self) -> Vec<System> {
        match *self {
            Self::Map { at, length, rights } => {
                let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
                vec![(libc::SYS_mmap, [at, length, rights as u64, flags, u64::MAX, 0])]
            }
            Self::Synchronise => [REGISTER_SYNC_CORE, SYNC_CORE]
                .map(|command| (libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]))
                .to_vec(),
            Self::Function(..) => Vec::new(),
        }
    }
}

/// Where a thread that is sent to synchronise finds what to do, and says how it went: code and words in a patch's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Desk {
    pub code: u64,
    pub words: u64,
}

/// Bytes that a desk's words take: what each of the two calls returned, and the number of the errand that is done.
pub const DESK_WORDS: u64 = 24;
/// More than the code of [`desk_code`].
pub const DESK_CODE: u64 = 96;

/// What an errand to synchronise executes: both calls of `membarrier`, each result stored, then the number it was given.
/// `rbx` has the words' address, `r12` the number; `ret` leads to the way back.
pub fn desk_code() -> Vec<u8> {
    let mut code = Vec::new();
    for (command, at) in [(REGISTER_SYNC_CORE, 0u8), (SYNC_CORE, 8)] {
        code.push(0xb8); // mov eax, number
        code.extend((libc::SYS_membarrier as u32).to_le_bytes());
        code.push(0xbf); // mov edi, command
        code.extend((command as u32).to_le_bytes());
        code.extend([0x31, 0xf6, 0x31, 0xd2]); // xor esi, esi; xor edx, edx
        code.extend([0x0f, 0x05]); // syscall
        code.extend([0x48, 0x89, 0x43, at]); // mov [rbx + at], rax
    }
    code.extend([0x4c, 0x89, 0x63, 16]); // mov [rbx + 16], r12
    code.push(0xc3); // ret
    code
}

/// Whoever can have calls made in the process: ptrace of a stranger here; a workload's supervisor is its tracer already and has
/// its own.
pub trait Caller {
    /// Makes the calls one after the other while one thread is held, and says what each returned.
    fn call(&mut self, calls: &[Call]) -> Result<Vec<u64>>;

    /// A desk that can be used from now on.
    fn use_desk(&mut self, desk: Desk);

    /// Stores a byte in a moment in which no thread of the process is in some code, if this is one. Says as well how long the threads
    /// were stopped for it.
    fn store(&mut self, store: &Store<'_>) -> Result<(Try, Duration)>;

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
    desk: Option<Desk>,
    sight: Option<Sight>,
    preferred: Option<Preferred>,
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

/// What a function that we call may need of the stack: more than any resolver or registration does.
const ROOM_FOR_FUNCTIONS: u64 = 16 << 10;
/// How long a thread may take to stop before another is tried: one that runs stops within its time slice, one that sleeps at
/// once; only a sleep that nothing interrupts takes longer.
const STOP_LIMIT: Duration = Duration::from_millis(200);
/// The kernel's own codes for calls that are to be started again (linux/errno.h).
const RESTART: std::ops::RangeInclusive<i64> = -516..=-512;
/// The selector of 64-bit code (arch/x86/include/asm/segment.h, `__USER_CS`).
const CODE_SELECTOR: u64 = 0x33;

/// How long a thread may take for an errand: it may have to wait for a processor, many times over.
const ERRAND_LIMIT: Duration = Duration::from_secs(2);
const ERRAND_LOOK: Duration = Duration::from_micros(50);
/// How long a function may take that a held thread calls, with its own system calls.
const FUNCTION_LIMIT: Duration = ERRAND_LIMIT;
/// Between looks at a thread that is to stop. A stop takes microseconds: a longer sleep would be a longer hold, and none at all
/// could keep the processor from the thread.
const STOP_LOOK: Duration = Duration::from_micros(5);
/// After some looks: a sleep so short that its timer has gone off before the kernel looks for another thread is none (`do_nanosleep`), and
/// so keeps the processor.
const STOP_LOOK_MOST: Duration = Duration::from_micros(80);

/// How long a thread of ours may take from being joined to being gone: microseconds, unless it has to wait for a processor.
const GONE_LIMIT: Duration = Duration::from_secs(1);

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
/// Calls that can be made again as they are, so that a thread in them is the best to be asked.
const UNDISTURBED: [libc::c_long; 7] = [
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_wait4,
    libc::SYS_accept,
];
/// Calls whose remaining time only the kernel knows (`restart_syscall(2)`): such a thread is not sent on errands.
const TIMED: [libc::c_long; 3] = [libc::SYS_poll, libc::SYS_nanosleep, libc::SYS_clock_nanosleep];
/// What such a call returns when it is interrupted (linux/errno.h).
const RESTART_BLOCK: i64 = -516;

impl<'a> Ptrace<'a> {
    pub fn new(memory: &'a Memory, steps: Steps<'a>) -> Self {
        Self {
            memory,
            steps,
            gadgets: None,
            desk: None,
            sight: None,
            preferred: None,
            longest: Duration::ZERO,
        }
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
        let desk = self.desk;
        let (results, held) = by_own_thread(|| {
            Session { memory, mappings: &mappings, gadgets, desk, steps }.run(&candidates, calls)
        })?;
        self.longest = self.longest.max(held);
        Ok(results)
    }

    fn use_desk(&mut self, desk: Desk) {
        self.desk = Some(desk);
    }

    fn store(&mut self, store: &Store<'_>) -> Result<(Try, Duration)> {
        let sight = match self.sight.take() {
            Some(sight) if sight.is_current(self.memory)? => sight,
            _ => Sight::read(self.memory)?,
        };
        let sight = self.sight.insert(sight);
        Moment { memory: self.memory, sight, steps: self.steps }.attempt(store, &mut self.preferred)
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
            (Some('S'), Some(call)) if TIMED.contains(&call) => 3,
            (Some('S'), _) => 4,
            (Some('T' | 't'), _) => {
                return Err(Error::unfit(format!(
                    "process {} is stopped (by job control or a debugger): let it go on first",
                    memory.pid
                )));
            }
            (Some('Z' | 'X'), _) => continue,
            _ => 5,
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
    desk: Option<Desk>,
    steps: Steps<'a>,
}

/// A thread that is sent away, and what it was asked.
enum Outcome {
    /// It made the calls while it was held.
    Results(Vec<u64>),
    /// It makes them by itself.
    Errand,
}

/// Why a thread that has ended is none to be asked.
pub(super) const ENDED: &str = "ended";

/// Why a thread is not the one.
pub(super) enum No {
    /// Another may be.
    This(String),
    /// Nor will it be later: it has ended, or would not stop. Such a one stays seized as long as the thread that traces lives.
    Ever(String),
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
        // The number by which an errand is known from one that an earlier patcher gave.
        let number = errand_number();
        // First whoever can be sent on an errand; then also who has to be held. One that was in the middle of something is
        // asked again.
        let is_errand = self.can_be_errand(calls);
        let mut out = BTreeSet::new();
        for round in u32::from(!is_errand)..4 {
            for tid in candidates {
                if out.contains(tid) {
                    continue;
                }
                match self.try_thread(*tid, calls, is_errand.then_some(number), round > 0) {
                    Ok((Outcome::Results(results), held)) => return Ok((results, held)),
                    Ok((Outcome::Errand, held)) => {
                        return Ok((self.await_errand(*tid, calls, number)?, held));
                    }
                    Err(No::All(error)) => return Err(error),
                    Err(No::This(reason)) => why.push(format!("thread {tid} {reason}")),
                    Err(No::Ever(reason)) => {
                        out.insert(*tid);
                        why.push(format!("thread {tid} {reason}"));
                    }
                }
            }
        }
        why.dedup();
        Err(Error::unfit(format!(
            "no thread of process {} could make a call: {}",
            self.memory.pid,
            why.join("; ")
        )))
    }

    /// Whether it can be seen in the process what came of these calls.
    fn can_be_errand(&self, calls: &[Call]) -> bool {
        match calls {
            [Call::Synchronise] => self.desk.is_some(),
            calls => calls.iter().all(|call| matches!(call, Call::Map { .. })),
        }
    }

    /// Waits until it can be seen what came of an errand.
    fn await_errand(&self, tid: Tid, calls: &[Call], number: u64) -> Result<Vec<u64>> {
        let deadline = Instant::now() + ERRAND_LIMIT;
        loop {
            let seen = match (calls, self.desk) {
                ([Call::Synchronise], Some(desk)) => self.said_at(desk, number)?,
                _ => self.mapped(calls)?,
            };
            if let Some(results) = seen {
                (self.steps)("errand done");
                return Ok(results);
            }
            if Instant::now() > deadline {
                // A mapping that was refused and one that is still to come look the same from outside.
                let refused = if calls.iter().any(|call| matches!(call, Call::Map { .. })) {
                    ", or may the process map no more (RLIMIT_AS, vm.max_map_count)"
                } else {
                    ""
                };
                return Err(Error::unfit(format!(
                    "nothing was seen within {} s of the errand that thread {tid} of process {} was sent on: is it stopped, the machine \
                     overloaded{refused}?",
                    ERRAND_LIMIT.as_secs(),
                    self.memory.pid
                )));
            }
            thread::sleep(ERRAND_LOOK);
        }
    }

    /// How both calls went, once the errand of this number is done.
    fn said_at(&self, desk: Desk, number: u64) -> Result<Option<Vec<u64>>> {
        if self.memory.word(desk.words.wrapping_add(16))? != number {
            return Ok(None);
        }
        let results = [self.memory.word(desk.words)?, self.memory.word(desk.words.wrapping_add(8))?];
        Ok(Some(vec![first_failure(&results)]))
    }

    /// For each place whether it is mapped as was asked or taken by something else; `None` while one is free.
    fn mapped(&self, calls: &[Call]) -> Result<Option<Vec<u64>>> {
        let mappings = self.memory.mappings()?;
        let results = calls.iter().map(|call| {
            let Call::Map { at, length, rights } = *call else { return None };
            let end = at + length;
            let is_ours = |m: &Mapping| {
                m.inode == 0
                    && m.is_private
                    && m.is_readable
                    && m.is_writable == (rights & libc::PROT_WRITE != 0)
                    && m.is_executable == (rights & libc::PROT_EXEC != 0)
            };
            if mappings.iter().any(|m| m.start <= at && end <= m.end && is_ours(m)) {
                return Some(at);
            }
            let is_taken = mappings.iter().any(|m| m.start < end && at < m.end);
            is_taken.then_some(-i64::from(libc::EEXIST) as u64)
        });
        Ok(results.collect())
    }

    fn try_thread(
        &self,
        tid: Tid,
        calls: &[Call],
        errand: Option<u64>,
        may_be_held: bool,
    ) -> Result<(Outcome, Duration), No> {
        let needs_no_filter = self.memory.status(tid, "Seccomp").is_some_and(|mode| mode != "0");
        // User shadow stacks (Linux, Documentation/arch/x86/shstk.rst): a way back that no call had made would end the process.
        let has_shadow =
            self.memory.status(tid, "x86_Thread_features").is_some_and(|text| text.contains("shstk"));
        let errand = errand.filter(|_| !needs_no_filter && !has_shadow);
        if errand.is_none() && !may_be_held {
            return Err(No::This("cannot be left alone with it".to_owned()));
        }
        seize(self.memory, tid)?;
        interrupt(tid)?;
        (self.steps)("seized");
        let begun = await_stop(self.memory, tid, STOP_LIMIT)?;
        (self.steps)("stopped");
        let outcome = self.with_stopped(tid, needs_no_filter, calls, errand, may_be_held);
        match outcome {
            Ok(outcome) => Ok((outcome, begun.elapsed())),
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

    fn with_stopped(
        &self,
        tid: Tid,
        needs_no_filter: bool,
        calls: &[Call],
        errand: Option<u64>,
        may_be_held: bool,
    ) -> Result<Outcome, No> {
        let asked = |what: &str| format!("{what} of thread {tid}");
        let original = ptrace::registers(tid).or_target(|| asked("read the registers"))?;
        if original.cs != CODE_SELECTOR {
            return Err(No::This("executes 32-bit code".to_owned()));
        }
        let is_in_call = original.orig_rax as i64 >= 0;
        if !is_in_call && self.is_in_sequence(tid)? {
            return Err(No::This("is in a restartable sequence".to_owned()));
        }
        let is_timed = is_in_call && original.rax as i64 == RESTART_BLOCK;
        let errand = errand.filter(|_| !is_timed);
        if errand.is_none() && !may_be_held {
            return Err(No::This("waits for a time".to_owned()));
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
        let after = after(self.memory, tid, &original);
        let no_room = || No::This("has no room on its stack".to_owned());
        let frame =
            Frame::new(original.rsp, &after, mask, xstate, self.gadgets.sigreturn).ok_or_else(no_room)?;
        let errands = match errand {
            Some(number) => self.errands(&frame, &original, calls, number).ok_or_else(no_room)?,
            None => Vec::new(),
        };
        let stack = self.mappings.iter().find(|m| m.is_writable && (m.start..m.end).contains(&original.rsp));
        let calls_function = calls.iter().any(|call| matches!(call, Call::Function(..)));
        let room = if calls_function { ROOM_FOR_FUNCTIONS } else { 64 };
        let lowest = errands
            .last()
            .map_or(frame.address, |(_, below)| below.as_ref().map_or(frame.address, |f| f.address));
        if stack.is_none_or(|stack| lowest < stack.start + room) {
            return Err(no_room());
        }
        self.memory.write(frame.address, &frame.bytes)?;
        (self.steps)("frame written");
        if let Some((regs, _)) = errands.last() {
            for below in errands.iter().filter_map(|(_, below)| below.as_ref()) {
                self.memory.write(below.address, &below.bytes)?;
            }
            ptrace::set_registers(tid, regs).or_target(|| asked("set the registers"))?;
            (self.steps)("registers set");
            ptrace::set_signal_mask(tid, !0).or_target(|| asked("set the signal mask"))?;
            (self.steps)("sent");
            ptrace::detach(tid, 0).or_target(|| format!("let go of thread {tid}"))?;
            return Ok(Outcome::Errand);
        }
        let mut results = Vec::with_capacity(calls.len());
        let mut is_first = true;
        for call in calls {
            let mut returned = Vec::new();
            let steps: Vec<Option<System>> = match call {
                Call::Function(..) => vec![None],
                _ => call.system().into_iter().map(Some).collect(),
            };
            for system in steps {
                let regs = self.registers_for(&original, frame.address, call, system)?;
                ptrace::set_registers(tid, &regs).or_target(|| asked("set the registers"))?;
                if std::mem::take(&mut is_first) {
                    (self.steps)("registers set");
                    ptrace::set_signal_mask(tid, !0).or_target(|| asked("set the signal mask"))?;
                }
                (self.steps)("call set up");
                returned.push(match system {
                    Some(_) => self.make(tid)?,
                    None => self.await_return(tid, frame.address)?,
                });
                (self.steps)("call made");
            }
            results.push(if let Call::Function(..) = call { returned[0] } else { first_failure(&returned) });
        }
        // Only from a stop like the first does the kernel look at a call that is to be started again.
        ptrace::interrupt(tid).or_target(|| asked("interrupt"))?;
        ptrace::resume(tid, 0).or_target(|| asked("resume"))?;
        await_stop(self.memory, tid, STOP_LIMIT).map_err(|no| match no {
            // It has made the calls, and goes back by itself.
            No::This(why) | No::Ever(why) => {
                Error::unfit(format!("thread {tid} of process {} {why}, after its calls", self.memory.pid))
            }
            No::All(error) => error,
        })?;
        ptrace::set_signal_mask(tid, mask).or_target(|| asked("set the signal mask"))?;
        (self.steps)("mask put back");
        let restored = if is_rewound(&original, &after) { after } else { original };
        ptrace::set_registers(tid, &restored).or_target(|| asked("set the registers"))?;
        (self.steps)("registers put back");
        ptrace::detach(tid, 0).or_target(|| format!("let go of thread {tid}"))?;
        (self.steps)("let go");
        Ok(Outcome::Results(results))
    }

    /// For each call of an errand, the last first: the registers to make it with, and the frame that brings them (none for
    /// the call that is made first: its registers are set by us). `None` if the stack pointer leaves no room.
    fn errands(
        &self,
        back: &Frame,
        original: &Registers,
        calls: &[Call],
        number: u64,
    ) -> Option<Vec<(Registers, Option<Frame>)>> {
        if let ([Call::Synchronise], Some(desk)) = (calls, self.desk) {
            let mut regs = *original;
            (regs.rip, regs.rsp, regs.rbx, regs.r12) = (desk.code, back.address, desk.words, number);
            regs.orig_rax = u64::MAX;
            return Some(vec![(regs, None)]);
        }
        let mut errands: Vec<(Registers, Option<Frame>)> = Vec::new();
        let mut returns_to = back.address;
        let all: Vec<System> = calls.iter().flat_map(Call::system).collect();
        for (index, system) in all.iter().enumerate().rev() {
            let regs = self.registers_of(original, returns_to, *system);
            // In between the thread has no extended state; the last frame brings it back.
            let below = match index {
                0 => None,
                _ => Some(Frame::new(returns_to, &regs, !0, Vec::new(), self.gadgets.sigreturn)?),
            };
            returns_to = below.as_ref().map_or(returns_to, |frame| frame.address);
            errands.push((regs, below));
        }
        Some(errands)
    }

    fn registers_of(&self, original: &Registers, stack: u64, (number, arguments): System) -> Registers {
        let mut regs = *original;
        regs.orig_rax = u64::MAX;
        regs.rip = self.gadgets.call;
        regs.rsp = stack;
        regs.rax = number as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = arguments;
        regs
    }

    /// Whether the thread is in a restartable sequence, which the kernel would forget about when it sees the thread elsewhere
    /// (`rseq(2)`; `rseq_cs` is at offset 8 of the structure).
    fn is_in_sequence(&self, tid: Tid) -> Result<bool> {
        match ptrace::rseq_address(tid) {
            Ok(0) | Err(_) => Ok(false),
            Ok(address) => Ok(self.memory.word(address.wrapping_add(8))? != 0),
        }
    }

    fn registers_for(
        &self,
        original: &Registers,
        frame: u64,
        call: &Call,
        system: Option<System>,
    ) -> Result<Registers> {
        if let Some(system) = system {
            return Ok(self.registers_of(original, frame, system));
        }
        let mut regs = *original;
        regs.orig_rax = u64::MAX;
        if let Call::Function(address, arguments) = call {
            // It returns to the way back, with us or without; we see it there.
            regs.rip = *address;
            regs.rsp = frame;
            regs.rax = 0;
            [regs.rdi, regs.rsi, regs.rdx] = *arguments;
            // The direction flag is clear on entry to a function (System V ABI, x86-64, 3.2.1).
            regs.eflags &= !(1 << 10);
        }
        Ok(regs)
    }

    fn make(&self, tid: Tid) -> Result<u64> {
        self.to_call(tid, None)?;
        (self.steps)("call entered");
        self.to_call(tid, None)?;
        Ok(ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?.rax)
    }

    /// Lets a function run to its end. It returns to `rt_sigreturn`, which is let happen: left out, the thread would stand behind
    /// it, where there is no way back without us. Every other call is the function's own, and made as it wants it. What the
    /// function returned is not known.
    fn await_return(&self, tid: Tid, frame: u64) -> Result<u64> {
        let deadline = Instant::now() + FUNCTION_LIMIT;
        loop {
            self.to_call(tid, Some(deadline))?;
            (self.steps)("call entered");
            let entered =
                ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?;
            self.to_call(tid, Some(deadline))?;
            // A handler that the function has let come returns by the same call, but with another frame: `ret` has taken the
            // first eight bytes of ours.
            if entered.orig_rax == libc::SYS_rt_sigreturn as u64 && entered.rsp == frame.wrapping_add(8) {
                return Ok(0);
            }
        }
    }

    /// To the entry of the next system call, or to the end of the one that was entered. After the deadline the thread is left to
    /// itself, with its way back.
    fn to_call(&self, tid: Tid, deadline: Option<Instant>) -> Result<()> {
        ptrace::resume_to_call(tid, 0).or_target(|| format!("resume thread {tid}"))?;
        loop {
            match ptrace::wait(tid, deadline.is_none()).or_target(|| format!("wait for thread {tid}"))? {
                Some(Event::Call) => return Ok(()),
                Some(Event::Ended) => {
                    return Err(Error::unfit(format!("process {} ended", self.memory.pid)));
                }
                Some(other) => {
                    return Err(Error::unfit(format!("thread {tid} came to an unexpected stop: {other:?}")));
                }
                None if deadline.is_some_and(|deadline| Instant::now() > deadline) => {
                    return Err(Error::unfit(format!(
                        "thread {tid} of process {} did not return within {} s from a function that it was to call: hooks must not wait",
                        self.memory.pid,
                        FUNCTION_LIMIT.as_secs()
                    )));
                }
                None => thread::sleep(STOP_LOOK),
            }
        }
    }
}

/// Has a thread of its own do what traces: when it ends, whatever it traced is let go, also what would not stop. Returns when that is so.
pub(super) fn by_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let traced = || (fs::read_link("/proc/thread-self"), work());
    let (own, outcome) = thread::scope(|scope| scope.spawn(traced).join())
        .map_err(|_| Error::unfit("the thread that traces came to an end"))?;
    // It can be joined before it lets go (`exit_mm` comes before `exit_notify` in kernel/exit.c), and is in no list any more after that.
    if let Ok(own) = own {
        let (path, deadline) = (Path::new("/proc").join(own), Instant::now() + GONE_LIMIT);
        while path.exists() && Instant::now() < deadline {
            thread::sleep(STOP_LOOK);
        }
    }
    outcome
}

/// Becomes the tracer of a thread, which goes on.
pub(super) fn seize(memory: &Memory, tid: Tid) -> Result<(), No> {
    match ptrace::seize(tid) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(No::Ever(ENDED.to_owned())),
        Err(error) => {
            let tracer = memory.status(tid, "TracerPid").filter(|tracer| tracer != "0");
            let why = match tracer {
                Some(tracer) => {
                    format!("process {} is traced by process {tracer} (a debugger?)", memory.pid)
                }
                None => format!("process {} may not be traced: {error}", memory.pid),
            };
            Err(No::All(Error::unfit(why)))
        }
    }
}

/// Asks a thread that is seized to stop.
pub(super) fn interrupt(tid: Tid) -> Result<(), No> {
    match ptrace::interrupt(tid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(No::Ever(ENDED.to_owned())),
        outcome => Ok(outcome.or_target(|| format!("interrupt thread {tid}"))?),
    }
}

/// Waits for the stop that was asked for; signals that come first are passed on. Returns when it was last seen not to have
/// stopped: until then it was not held, whatever it waited for.
pub(super) fn await_stop(memory: &Memory, tid: Tid, limit: Duration) -> Result<Instant, No> {
    let deadline = Instant::now() + limit;
    let mut seen = Instant::now();
    let mut rest = STOP_LOOK;
    loop {
        let look = Instant::now();
        match ptrace::wait(tid, false).or_target(|| format!("wait for thread {tid}"))? {
            Some(Event::Interrupt) => return Ok(seen),
            Some(Event::Signal(signal)) => {
                ptrace::resume(tid, signal).or_target(|| format!("resume thread {tid}"))?;
            }
            Some(Event::Group(_)) => {
                let _ = ptrace::detach(tid, 0);
                return Err(No::All(Error::unfit(format!(
                    "process {} is stopped by job control: let it go on first",
                    memory.pid
                ))));
            }
            Some(Event::Ended) => return Err(No::Ever(ENDED.to_owned())),
            Some(_) => ptrace::resume(tid, 0).or_target(|| format!("resume thread {tid}"))?,
            None if Instant::now() > deadline => {
                return Err(No::Ever("sleeps where nothing interrupts it".to_owned()));
            }
            None => {
                seen = look;
                thread::sleep(rest);
                rest = (rest * 2).min(STOP_LOOK_MOST);
            }
        }
    }
}

/// The registers with which it goes on if nobody puts them back: a call that was interrupted is made again, as the kernel
/// would.
pub(super) fn after(memory: &Memory, tid: Tid, original: &Registers) -> Registers {
    let mut after = *original;
    let code = original.rax as i64;
    let is_again = original.orig_rax as i64 >= 0
        && (RESTART.contains(&code)
            || code == -i64::from(libc::EINTR)
                && AGAIN.contains(&(original.orig_rax as i64))
                && !has_signal(memory, tid));
    if is_again {
        after.rip = after.rip.wrapping_sub(2);
        after.rax = original.orig_rax;
    }
    after.orig_rax = u64::MAX;
    after
}

/// Whether a signal waits that the thread will take: then its call was rightly interrupted.
fn has_signal(memory: &Memory, tid: Tid) -> bool {
    // Read once: the thread is held meanwhile.
    let text = memory.status_text(tid).unwrap_or_default();
    let set =
        |field| Memory::field(&text, field).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    (set("SigPnd") | set("ShdPnd")) & !set("SigBlk") != 0
}

/// Whether a thread that stands was in a call that its stop interrupted: it slept there.
pub(super) fn was_asleep(regs: &Registers) -> bool {
    let code = regs.rax as i64;
    regs.orig_rax as i64 >= 0 && (RESTART.contains(&code) || code == -i64::from(libc::EINTR))
}

/// Whether the kernel would not make a call again that must be (EINTR without a signal).
pub(super) fn is_rewound(original: &Registers, after: &Registers) -> bool {
    original.rax as i64 == -i64::from(libc::EINTR) && after.rip != original.rip
}

/// What the first call that failed returned; if none did, the first.
pub fn first_failure(results: &[u64]) -> u64 {
    let failed = results.iter().find(|result| matches!(**result as i64, -4095..=-1));
    failed.or(results.first()).copied().unwrap_or_default()
}

/// A number that no earlier errand had: never 0, which is what a desk's words are at first.
fn errand_number() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() as u64) << 8 | 1
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, FlowControl};

    use super::*;
    use crate::unit::decode;

    #[test]
    fn a_desk_makes_two_calls_and_returns() {
        let code = desk_code();
        assert!((code.len() as u64) < DESK_CODE);
        let kinds: Vec<FlowControl> = decode(&code).map(|i| i.flow_control()).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == FlowControl::Call).count(), 2, "{kinds:?}");
        assert_eq!(kinds.last(), Some(&FlowControl::Return));
        assert!(decode(&code).all(|instruction| instruction.code() != Code::INVALID));
    }
}
