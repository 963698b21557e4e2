//! System calls executed by a stopped tracee on the supervisor's behalf.
//!
//! Two ways: one call by single-stepping a `syscall` instruction that is in the tracee anyway (its vdso), and a batch:
//! a table of calls which a few instructions of ours, in pages that every traced address space has at
//! [`WORKSPACE`], execute one after the other. A batch costs two switches of task however many calls it holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::pagemap::{PAGE_SIZE, Range};
use super::ptrace::{self, Event, Registers, SignalInfo, Stop, Tid};
use super::{proc, task};

/// Where every traced address space has our pages. Nothing the kernel or a known runtime chooses is near: programs
/// and heaps start at 0x55…, mappings grow down from 0x7f…, Go's arenas start at 0xc0_0000_0000, AddressSanitizer's
/// shadow ends at 0x1000_7fff_8000.
pub const WORKSPACE: Range = Range { start: 0x2a00_0000_0000, end: 0x2a00_0000_0000 + 33 * PAGE_SIZE };
const TABLE: u64 = WORKSPACE.start + PAGE_SIZE;
/// Half of what follows the code page is for the table of calls, half for what their arguments point to.
const TABLE_LEN: u64 = 16 * PAGE_SIZE;
const PAYLOAD: u64 = TABLE + TABLE_LEN;
const PAYLOAD_LEN: u64 = 16 * PAGE_SIZE;
/// A row: number, six arguments, result, and where the result is stored as well.
const ROW: u64 = 72;
/// Largest number of calls in one batch.
pub const MAX_CALLS: usize = (TABLE_LEN / ROW) as usize;

/// Executes rows from rbx up to r12; with r13 set, stops after the first that fails. At the end the thread sends itself a SIGTRAP, which
/// its tracer takes. A breakpoint would be shorter, but that signal is forced on a program: one that ignores it has its disposition
/// reset (`force_sig_info_to_task`, kernel/signal.c).
#[rustfmt::skip]
const INTERPRETER: &[u8] = &[
    0x4c, 0x39, 0xe3,                         // 00 cmp rbx, r12
    0x73, 0x3d,                               // 03 jae 42 (end)
    0x48, 0x8b, 0x03,                         // 05 mov rax, [rbx]
    0x48, 0x8b, 0x7b, 0x08,                   // 08 mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10,                   // 0c mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18,                   // 10 mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20,                   // 14 mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28,                   // 18 mov r8, [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30,                   // 1c mov r9, [rbx+48]
    0x0f, 0x05,                               // 20 syscall
    0x48, 0x89, 0x43, 0x38,                   // 22 mov [rbx+56], rax
    0x48, 0x8b, 0x4b, 0x40,                   // 26 mov rcx, [rbx+64]
    0x48, 0x89, 0x01,                         // 2a mov [rcx], rax
    0x48, 0x83, 0xc3, 0x48,                   // 2d add rbx, 72
    0x4d, 0x85, 0xed,                         // 31 test r13, r13
    0x74, 0xca,                               // 34 jz 00
    0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,       // 36 cmp rax, -4095
    0x72, 0xc2,                               // 3c jb 00
    0x90, 0x90, 0x90, 0x90,                   // 3e nop
    0xb8, 0x27, 0x00, 0x00, 0x00,             // 42 mov eax, 39 (getpid)
    0x0f, 0x05,                               // 47 syscall
    0x48, 0x89, 0xc7,                         // 49 mov rdi, rax
    0xb8, 0xba, 0x00, 0x00, 0x00,             // 4c mov eax, 186 (gettid)
    0x0f, 0x05,                               // 51 syscall
    0x48, 0x89, 0xc6,                         // 53 mov rsi, rax
    0xba, 0x05, 0x00, 0x00, 0x00,             // 56 mov edx, 5 (SIGTRAP)
    0xb8, 0xea, 0x00, 0x00, 0x00,             // 5b mov eax, 234 (tgkill)
    0x0f, 0x05,                               // 60 syscall
    0xcc,                                     // 62 int3, if all else fails
];
/// Offset of the instruction that makes a call.
const CALL: u64 = 0x20;
/// Offset of the instruction after the last call, where the tracee stands when the batch has ended.
const END: u64 = 0x62;

/// Blocks every signal that can be blocked, but the one that tells us of the end: where that is blocked, a single step resets what the
/// program has it do, as a breakpoint does.
const ALL_BUT_TRAPS: u64 = !(1 << (libc::SIGTRAP - 1));
/// `sizeof(sigset_t)` in the kernel, and a `struct sigaction` of its that ignores.
const SIGNAL_SET: u64 = 8;
const IGNORES: [u64; 4] = [libc::SIG_IGN as u64, 0, 0, 0];

/// Whom somebody has sent a signal to that a batch has met. Which of the process's threads takes it is not for us to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Thread,
    Process,
}

/// What became of a function that a thread was to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returned {
    Done,
    /// It waited for something, and was left where it was.
    Waits,
    /// It was about to make a system call that the supervisor would have had to see, or that makes or ends a thread, by its number.
    Calls(u64),
    /// By this signal.
    Faults(i32),
    /// The thread has too little stack; nothing was called.
    NoRoom,
}

/// What a function may use below the stack pointer (System V ABI, x86-64, 3.2.2).
const RED_ZONE: u64 = 128;
/// The direction flag, clear on entry to a function (the same, 3.2.1).
const DIRECTION: u64 = 1 << 10;
/// What a function that is called may need of the stack: as for a process that has no supervisor (`running/inject.rs` of crate `hotpatch`).
const ROOM_FOR_FUNCTIONS: u64 = 16 << 10;
/// Signals of what a function may do wrong.
const FAULTS: u64 = {
    1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1) | 1 << (libc::SIGILL - 1) | 1 << (libc::SIGFPE - 1)
};
/// Between looks at a thread that calls a function: at first it is over within microseconds.
const LOOK: Duration = Duration::from_micros(5);
const LOOK_MOST: Duration = Duration::from_millis(1);
/// Of these the filter tells nothing: the tracer follows what they make by events.
const MAKE_OR_END: [i64; 6] = [
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Looks in a row at which a thread sleeps that nobody else runs to wake.
const ASLEEP: u32 = 3;

/// One stopped thread that executes calls for us. [`Remote::end`] puts it back as it was.
pub struct Remote<'a> {
    tid: Tid,
    memory: &'a File,
    saved: Registers,
    mask: u64,
    /// What it was stopped with: the signal that it is about to receive, if it is. A stop of ours takes its place.
    stopped_with: Option<SignalInfo>,
    /// Filters of system calls are switched off meanwhile.
    suspended: bool,
    /// These have come meanwhile, which cannot be kept out: they are to come again.
    to_be_stopped: bool,
    /// Of the thread and of its process, which it was not to get from us.
    traps: [Option<SignalInfo>; 2],
    /// SIGTRAP was ignored before a single step or a breakpoint.
    ignores_traps: bool,
    /// Threads and processes that calls of ours made; they are stopped at birth.
    pub born: Vec<Tid>,
}

impl<'a> Remote<'a> {
    /// The thread must be in a stop from which a signal could be delivered ([`Stop::Interrupt`] or [`Stop::Signal`]):
    /// only from there does the kernel look at the changed registers in the way relied on here.
    pub fn begin(tid: Tid, memory: &'a File) -> io::Result<Self> {
        Self::begin_with(tid, memory, true)
    }

    /// As [`Remote::begin`], but filters of system calls stay in force: what the calls make is born without a suspension, which
    /// children would inherit.
    pub fn begin_filtered(tid: Tid, memory: &'a File) -> io::Result<Self> {
        Self::begin_with(tid, memory, false)
    }

    fn begin_with(tid: Tid, memory: &'a File, suspended: bool) -> io::Result<Self> {
        let mut saved = ptrace::registers(tid)?;
        // The kernel takes a thread that it sees elsewhere for one that has left its sequence, and forgets that.
        leave_sequence(tid, memory, &mut saved)?;
        let mask = ptrace::signal_mask(tid)?;
        ptrace::set_signal_mask(tid, ALL_BUT_TRAPS)?;
        let stopped_with = ptrace::signal_info(tid).ok();
        // Calls of ours are not for the program's filters, which may kill for them.
        if suspended {
            ptrace::suspend_seccomp(tid, true)?;
        }
        Ok(Self {
            tid,
            memory,
            saved,
            mask,
            stopped_with,
            suspended,
            to_be_stopped: false,
            traps: [None; 2],
            ignores_traps: false,
            born: Vec::new(),
        })
    }

    pub fn end(mut self) -> io::Result<Vec<Tid>> {
        // Whatever becomes of that, the rest is put back.
        let ignored = self.ignore_traps_again();
        let trapped = self.give_back_traps();
        if self.suspended {
            ptrace::suspend_seccomp(self.tid, false)?;
        }
        ptrace::set_registers(self.tid, &self.saved)?;
        ptrace::set_signal_mask(self.tid, self.mask)?;
        if let Some(info) = &self.stopped_with {
            ptrace::set_signal_info(self.tid, info)?;
        }
        if self.to_be_stopped {
            task::signal_thread(self.tid, libc::SIGSTOP)?;
        }
        ignored.and(trapped).map(|()| self.born)
    }

    /// For the thread to get when it goes on, which is about to receive nothing else.
    pub fn give_trap(&mut self, info: SignalInfo) {
        self.stopped_with = None;
        self.traps[Whom::Thread as usize].get_or_insert(info);
    }

    /// Puts the program's own traps back where they were, with all that is said of them: nobody but the thread itself may send one as from
    /// the kernel. Nor is it to get them yet, so these calls end without our trap.
    ///
    /// Where the thread is about to receive a signal it has to stay in that very stop. None that the kernel makes is behind such a one
    /// (`dequeue_synchronous_signal`, kernel/signal.c): those are sent again without what was said of them.
    fn give_back_traps(&mut self) -> io::Result<()> {
        let traps = std::mem::take(&mut self.traps);
        if traps.iter().all(Option::is_none) {
            return Ok(());
        }
        if self.stopped_with.as_ref().is_some_and(|info| code(info) >> 8 != libc::PTRACE_EVENT_STOP) {
            if traps[Whom::Thread as usize].is_some() {
                task::signal_thread(self.tid, libc::SIGTRAP)?;
            }
            if traps[Whom::Process as usize].is_some() {
                self.trap_process()?;
            }
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.call(libc::SYS_getpid, &[]);
        batch.call(libc::SYS_gettid, &[]);
        let own = self.run_all(&mut batch)?;
        let [pid, tid] = own[..] else { return Err(io::Error::other("a call is missing")) };
        // What has come meanwhile may be the same signal once more.
        let traps = traps.iter().zip(std::mem::take(&mut self.traps)).map(|(one, other)| one.or(other));
        let (pid, tid, trap) = (pid as u64, tid as u64, libc::SIGTRAP as u64);
        ptrace::set_signal_mask(self.tid, !0)?;
        for (info, whom) in traps.zip([Whom::Thread, Whom::Process]) {
            let Some(info) = info else { continue };
            if whom == Whom::Process && tid != pid {
                // Only a first thread may say to its process who has sent one (`do_rt_sigqueueinfo`, kernel/signal.c).
                self.trap_process()?;
                continue;
            }
            self.memory.write_all_at(&info, PAYLOAD)?;
            let mut regs = self.saved;
            (regs.rip, regs.orig_rax) = (WORKSPACE.start + CALL, u64::MAX);
            (regs.rax, [regs.rdi, regs.rsi, regs.rdx, regs.r10]) = match whom {
                Whom::Thread => (libc::SYS_rt_tgsigqueueinfo as u64, [pid, tid, trap, PAYLOAD]),
                Whom::Process => (libc::SYS_rt_sigqueueinfo as u64, [pid, trap, PAYLOAD, 0]),
            };
            ptrace::set_registers(self.tid, &regs)?;
            // Its beginning and its end.
            for _ in 0..2 {
                self.go_to_stop(Stop::Syscall)?;
            }
            let result = ptrace::registers(self.tid)?.rax as i64;
            if result != 0 {
                return Err(io::Error::from_raw_os_error(-result as i32));
            }
        }
        // Only from a stop like the first does the kernel look at a call that is to be started again.
        ptrace::interrupt(self.tid)?;
        self.go_to_stop(Stop::Interrupt)
    }

    /// By the number of any thread of it (`kill_pid_info`, kernel/signal.c).
    fn trap_process(&self) -> io::Result<()> {
        kill(Pid::from_raw(self.tid), Signal::SIGTRAP).map_err(io::Error::from)
    }

    fn go_to_stop(&mut self, wanted: Stop) -> io::Result<()> {
        loop {
            if wanted == Stop::Syscall {
                ptrace::resume_to_call(self.tid)?
            } else {
                ptrace::resume(self.tid, 0)?
            }
            match ptrace::wait_for(self.tid, true)? {
                Some(Event::Stopped(stop)) if stop == wanted => return Ok(()),
                Some(Event::Stopped(Stop::Signal(libc::SIGSTOP))) => self.to_be_stopped = true,
                Some(Event::Stopped(_)) => {}
                Some(Event::Exited(_) | Event::Killed(_)) | None => return Err(self.died()),
            }
        }
    }

    fn died(&self) -> io::Error {
        io::Error::other(format!("thread {} died while it worked for us", self.tid))
    }

    /// Whether a trap is ours. It is not if somebody has sent it, or if it was on its way before the thread has left `start`.
    fn is_our_trap(&mut self, start: u64) -> io::Result<bool> {
        let info = ptrace::signal_info(self.tid)?;
        let whom = match code(&info) {
            1.. if ptrace::registers(self.tid)?.rip != start => return Ok(true),
            1.. | libc::SI_TKILL => Whom::Thread,
            _ => Whom::Process,
        };
        self.traps[whom as usize].get_or_insert(info);
        Ok(false)
    }

    fn ignore_traps_again(&mut self) -> io::Result<()> {
        if self.ignores_traps && Self::has_workspace(self.memory) {
            let mut batch = Batch::new();
            let action = batch.bytes(&IGNORES.map(u64::to_ne_bytes).concat());
            batch.call(libc::SYS_rt_sigaction, &[libc::SIGTRAP as u64, action, 0, SIGNAL_SET]);
            self.run_all(&mut batch)?;
        }
        Ok(())
    }

    /// One call through the `syscall` instruction at `instruction`. Returns the raw result (−errno on failure).
    pub fn call_at(&mut self, instruction: u64, number: i64, args: [u64; 6]) -> io::Result<i64> {
        let ignored = proc::status(self.tid)?.ignored;
        self.ignores_traps |= ignored & !ALL_BUT_TRAPS != 0;
        let mut regs = self.saved;
        regs.rip = instruction;
        regs.rax = number as u64;
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        ptrace::set_registers(self.tid, &regs)?;
        self.run_until_trap(instruction, true)?;
        Ok(ptrace::registers(self.tid)?.rax as i64)
    }

    /// Makes our pages in an address space that has none yet.
    pub fn install_workspace(&mut self, instruction: u64) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let args = [WORKSPACE.start, WORKSPACE.len(), prot as u64, flags as u64, u64::MAX, 0];
        let at = self.call_at(instruction, libc::SYS_mmap, args)?;
        if at != WORKSPACE.start as i64 {
            return Err(io::Error::from_raw_os_error(-at as i32));
        }
        self.memory.write_all_at(INTERPRETER, WORKSPACE.start)
    }

    /// Executes a batch. `Ok` means that the calls were made; each one's result is in the answer.
    pub fn run(&mut self, batch: &Batch) -> io::Result<Vec<i64>> {
        if batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        let table: Vec<u8> =
            batch.rows.iter().flat_map(|row| row.iter().flat_map(|word| word.to_ne_bytes())).collect();
        self.memory.write_all_at(&table, TABLE)?;
        if !batch.payload.is_empty() {
            self.memory.write_all_at(&batch.payload, PAYLOAD)?;
        }
        let mut regs = self.saved;
        regs.rip = WORKSPACE.start;
        regs.rbx = TABLE;
        regs.r12 = TABLE + table.len() as u64;
        regs.r13 = u64::from(batch.stop_on_failure);
        regs.orig_rax = u64::MAX;
        ptrace::set_registers(self.tid, &regs)?;
        self.run_until_trap(WORKSPACE.start, false)?;
        let regs = ptrace::registers(self.tid)?;
        if regs.rip != WORKSPACE.start + END {
            return Err(io::Error::other(format!("batch stopped at {:#x}, not at its end", regs.rip)));
        }
        let done = (regs.rbx.saturating_sub(TABLE) / ROW) as usize;
        let mut back = vec![0u8; done.min(batch.rows.len()) * ROW as usize];
        self.memory.read_exact_at(&mut back, TABLE)?;
        Ok(back.chunks_exact(ROW as usize).map(|row| word_at(row, 56) as i64).collect())
    }

    /// Has the thread call a function of the program that waits for nothing, with filters in force ([`Remote::begin_filtered`]): a call
    /// that the supervisor has to know of is not made. Its extended state is put back here, the rest by [`Remote::end`].
    pub fn call_function(
        &mut self,
        address: u64,
        arguments: [u64; 3],
        limit: Duration,
    ) -> io::Result<Returned> {
        // Below what a leaf function may have there; a function finds the stack as a call leaves it (System V ABI, x86-64, 3.2.2).
        let stack = (self.saved.rsp.wrapping_sub(RED_ZONE) & !15).wrapping_sub(8);
        // A page that guards a stack can be read through `/proc`, and what is below it is another's.
        let maps = std::fs::read_to_string(proc::path(self.tid, "maps"))?;
        let maps = proc::parse_maps(&maps).ok_or_else(|| io::Error::other("unreadable mappings"))?;
        let own = maps.iter().find(|line| line.write && (line.start..line.end).contains(&self.saved.rsp));
        if own.is_none_or(|own| stack.saturating_sub(ROOM_FOR_FUNCTIONS) < own.start) {
            return Ok(Returned::NoRoom);
        }
        let ignored = proc::status(self.tid)?.ignored;
        self.ignores_traps |= ignored & !ALL_BUT_TRAPS != 0;
        let extended = ptrace::xstate(self.tid)?;
        self.memory.write_all_at(&(WORKSPACE.start + END).to_ne_bytes(), stack)?;
        let mut regs = self.saved;
        (regs.rip, regs.rsp, regs.rax, regs.orig_rax) = (address, stack, 0, u64::MAX);
        [regs.rdi, regs.rsi, regs.rdx] = arguments;
        regs.eflags &= !DIRECTION;
        // A fault's signal that is blocked is forced on a program, and what it does on it is reset.
        ptrace::set_signal_mask(self.tid, ALL_BUT_TRAPS & !FAULTS)?;
        ptrace::set_registers(self.tid, &regs)?;
        let outcome = self.await_return(address, limit);
        ptrace::set_signal_mask(self.tid, ALL_BUT_TRAPS)?;
        let outcome = outcome?;
        ptrace::set_xstate(self.tid, &extended)?;
        Ok(outcome)
    }

    fn await_return(&mut self, start: u64, limit: Duration) -> io::Result<Returned> {
        let deadline = Instant::now() + limit;
        let (mut rest, mut asleep) = (LOOK, 0);
        // Why it does not come to its end, once that is known.
        let mut ended = None;
        ptrace::resume_to_call(self.tid)?;
        loop {
            let Some(event) = ptrace::wait_for(self.tid, false)? else {
                thread::sleep(rest);
                rest = (rest * 2).min(LOOK_MOST);
                if ended.is_none() && rest == LOOK_MOST {
                    asleep = if proc::status(self.tid)?.state == 'S' { asleep + 1 } else { 0 };
                    if asleep > ASLEEP || Instant::now() > deadline {
                        ended = Some(Returned::Waits);
                        ptrace::interrupt(self.tid)?;
                    }
                }
                continue;
            };
            match event {
                Event::Stopped(Stop::Signal(libc::SIGTRAP)) => {
                    if self.is_our_trap(start)? {
                        if ptrace::registers(self.tid)?.rip == WORKSPACE.start + END + 1 {
                            return Ok(ended.unwrap_or(Returned::Done));
                        }
                        ended.get_or_insert(Returned::Faults(libc::SIGTRAP));
                        self.go_to_end()?;
                    }
                }
                Event::Stopped(Stop::Signal(libc::SIGSTOP)) => self.to_be_stopped = true,
                Event::Stopped(Stop::Signal(signal)) => {
                    ended.get_or_insert(Returned::Faults(signal));
                    self.go_to_end()?;
                }
                Event::Stopped(stop @ (Stop::Seccomp(_) | Stop::Syscall)) => {
                    let number = ptrace::registers(self.tid)?.orig_rax;
                    if ended.is_none() && (stop != Stop::Syscall || MAKE_OR_END.contains(&(number as i64))) {
                        ended = Some(Returned::Calls(number));
                    }
                    if ended.is_some() {
                        // A filter of the program's own would see a call of no number, and may kill for it.
                        ptrace::suspend_seccomp(self.tid, true)?;
                        self.suspended = true;
                        self.go_to_end()?;
                    }
                }
                Event::Stopped(_) => {
                    if ended.is_some() {
                        self.go_to_end()?;
                    }
                }
                Event::Exited(_) | Event::Killed(_) => {
                    return Err(self.died());
                }
            }
            ptrace::resume_to_call(self.tid)?;
        }
    }

    /// Leaves what it is in, also a system call that it has only entered: a negative number is none.
    fn go_to_end(&self) -> io::Result<()> {
        let mut regs = ptrace::registers(self.tid)?;
        (regs.rip, regs.rax, regs.orig_rax) = (WORKSPACE.start + END, 0, u64::MAX);
        ptrace::set_registers(self.tid, &regs)
    }

    /// As [`Remote::run`], but the first failing call is an error that names it.
    pub fn run_all(&mut self, batch: &mut Batch) -> io::Result<Vec<i64>> {
        batch.stop_on_failure = true;
        let results = self.run(batch)?;
        if let Some((at, result)) =
            results.iter().enumerate().find(|(_, result)| (-4095..0).contains(*result))
        {
            let error = io::Error::from_raw_os_error(-*result as i32);
            let row = batch.rows[at];
            return Err(io::Error::new(
                error.kind(),
                format!("system call {} ({:x?}) in the workload: {error}", row[0] as i64, &row[1..7]),
            ));
        }
        Ok(results)
    }

    /// Reads back what calls wrote to a place of the payload.
    pub fn read(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0u8; len];
        self.memory.read_exact_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// Whether our pages are there.
    pub fn has_workspace(memory: &File) -> bool {
        let mut code = [0u8; INTERPRETER.len()];
        memory.read_exact_at(&mut code, WORKSPACE.start).is_ok() && code == INTERPRETER
    }

    fn run_until_trap(&mut self, start: u64, stepping: bool) -> io::Result<()> {
        let go_on = |tid| if stepping { ptrace::step(tid) } else { ptrace::resume(tid, 0) };
        go_on(self.tid)?;
        loop {
            match ptrace::wait_for(self.tid, true)? {
                Some(Event::Stopped(Stop::Signal(libc::SIGTRAP))) => {
                    if !stepping && ptrace::registers(self.tid)?.rip == WORKSPACE.start + END {
                        return Ok(());
                    }
                    if self.is_our_trap(start)? {
                        return Ok(());
                    }
                    go_on(self.tid)?;
                }
                Some(Event::Stopped(Stop::Clone(child) | Stop::Fork(child) | Stop::Vfork(child))) => {
                    self.born.push(child);
                    go_on(self.tid)?;
                }
                Some(Event::Stopped(Stop::Signal(libc::SIGSTOP))) => {
                    self.to_be_stopped = true;
                    go_on(self.tid)?;
                }
                // A pending interrupt, or the filter's notice of a call that is ours: neither says anything.
                Some(Event::Stopped(_)) => go_on(self.tid)?,
                Some(Event::Exited(_) | Event::Killed(_)) | None => {
                    return Err(self.died());
                }
            }
        }
    }
}

/// Sends a stopped thread that is in the middle of a restartable sequence to where an interrupted one goes on, as the kernel may do at
/// any time. It would not do so once somebody else has changed the thread's registers, or elsewhere.
pub fn leave_sequence(tid: Tid, memory: &File, registers: &mut Registers) -> io::Result<()> {
    // No such sequence makes system calls; one that cannot be read is none.
    if (registers.orig_rax as i64) < 0
        && let Some(rseq) = ptrace::rseq(tid)?
        && let Ok(Some(abort)) = abort_of(memory, rseq.address, registers.rip)
    {
        registers.rip = abort;
    }
    Ok(())
}

/// Where a sequence is continued that this instruction is in the middle of (`rseq(2)`: `struct rseq` has the descriptor's address at 8;
/// `struct rseq_cs` has start, length and abort at 8, 16, 24).
fn abort_of(memory: &File, area: u64, ip: u64) -> io::Result<Option<u64>> {
    let word = |at: u64| -> io::Result<u64> {
        let mut bytes = [0u8; 8];
        memory.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let descriptor = word(area.wrapping_add(8))?;
    if descriptor < PAGE_SIZE {
        return Ok(None);
    }
    // The program may have written anything there.
    let [start, length, abort] = [8, 16, 24].map(|offset| word(descriptor.wrapping_add(offset)));
    let (start, length, abort) = (start?, length?, abort?);
    Ok((ip.wrapping_sub(start) < length).then_some(abort))
}

/// `si_code` of sigaction(2), the third word.
fn code(info: &SignalInfo) -> i32 {
    info[8..].first_chunk().map_or(libc::SI_USER, |code| i32::from_ne_bytes(*code))
}

fn word_at(row: &[u8], offset: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&row[offset..offset + 8]);
    u64::from_ne_bytes(word)
}

/// An argument of a call in a batch.
#[derive(Debug, Clone, Copy)]
pub struct CallIndex(usize);

/// Calls to be made, and the memory they point to.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<[u64; 9]>,
    payload: Vec<u8>,
    stop_on_failure: bool,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// No room for `more` further calls.
    pub fn is_full(&self, more: usize) -> bool {
        self.rows.len() + more > MAX_CALLS || self.payload.len() as u64 > PAYLOAD_LEN - 2 * PAGE_SIZE
    }

    pub fn call(&mut self, number: i64, args: &[u64]) -> CallIndex {
        let index = self.rows.len();
        let mut row = [0u64; 9];
        row[0] = number as u64;
        row[1..=args.len()].copy_from_slice(args);
        row[8] = TABLE + index as u64 * ROW + 56;
        self.rows.push(row);
        CallIndex(index)
    }

    /// The result of `from` becomes argument `argument` (from 0) of the call after next ones: of call `to`.
    pub fn feed(&mut self, from: CallIndex, to: CallIndex, argument: usize) {
        self.rows[from.0][8] = TABLE + to.0 as u64 * ROW + 8 + 8 * argument as u64;
    }

    /// Puts bytes where the calls can point to them; gives their address in the tracee.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        while !self.payload.len().is_multiple_of(16) {
            self.payload.push(0);
        }
        let at = PAYLOAD + self.payload.len() as u64;
        self.payload.extend_from_slice(bytes);
        at
    }

    pub fn path(&mut self, path: &str) -> u64 {
        let mut bytes = path.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }
}

/// Finds a `syscall` instruction in a piece of code (the vdso has several).
pub fn find_syscall_instruction(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|pair| pair == [0x0f, 0x05])
}
