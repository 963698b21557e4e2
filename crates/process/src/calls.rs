//! Calls that a thread was waiting in when it was stopped, and what is left of their time.
//!
//! The program must not feel a stop, nor a failover. A call goes on in one of these ways:
//!
//! - The kernel makes it again (`ERESTARTSYS` and its like), here and, with the same registers, on the backup. Of `select` and
//!   its like it writes what is left to the program's memory, and does not count how long the stop was: the tracer ends them.
//! - The kernel goes on with the exact rest (`restart_syscall`). It keeps that to itself, so on the backup the call is made again
//!   with its whole limit, and the tracer ends it when the limit is over.
//! - It returns EINTR however it was interrupted (`signal(7)`). It is made again on both sides, and the tracer ends it.
//!
//! Arguments are never changed: a program may rely on its registers after a call. That a thread is still in the call which was
//! made again, and not in the next one like it, is told by two flags that no instruction leaves behind together ([`MARK`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use crate::sys::descriptor;
use crate::sys::ptrace::{Registers, SignalInfo, Tid};
use crate::sys::{proc, task};

/// Errors with which the kernel asks for a call to be made again (`include/linux/errno.h`); they never reach a program.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// Zero and negative at once (ZF and SF in `eflags`; Intel SDM vol. 1, 3.4.3.1): no result is both, so the first arithmetic
/// instruction after the call, such as the look whether it failed, ends it.
const MARK: u64 = 1 << 6 | 1 << 7;

/// Bound on the entries of `poll` and the descriptors of `select` that are cleared when their limit is over (`RLIMIT_NOFILE` is
/// below that on any machine).
const MAX_POLLED: u64 = 1 << 20;

/// A call that a thread was found waiting in, remembered over several stops so that its time limit is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    number: u64,
    stack: u64,
    instruction: u64,
    /// When its limit is over, by the workload's monotonic clock in nanoseconds. `None` without a limit.
    pub deadline: Option<i64>,
    /// The kernel would wait longer: the tracer ends the call.
    pub ours: bool,
}

/// What the kernel keeps of a call that goes on (`struct restart_block`, include/linux/restart_block.h): the four words
/// behind its function.
pub(crate) type RestartBlock = [u64; 4];

/// Who waits, as far as a call's limit must be asked for.
pub(crate) struct Caller<'a> {
    pub tid: Tid,
    pub memory: Option<&'a File>,
    pub process: BorrowedFd<'a>,
    /// The workload's monotonic clock.
    pub now: i64,
    /// When its call was interrupted, at the latest.
    pub interrupted: i64,
    /// What that clock is ahead of this host's.
    pub ahead: i64,
    pub kept: Option<RestartBlock>,
    /// It has filters of its own, which may not know the call by which the kernel goes on (`restart_syscall`).
    pub filtered: bool,
}

/// What becomes of a thread that was stopped in a call.
#[derive(Debug)]
pub(crate) struct Seen {
    /// For the backup.
    pub registers: Registers,
    pub waiting: Option<Waiting>,
    /// The running thread needs other registers as well.
    pub changed: bool,
}

/// Looks at the registers of a thread that has just been stopped, by us or (`signal`) on its way to a signal.
pub(crate) fn look(
    regs: &Registers,
    before: Option<Waiting>,
    signal: Option<&SignalInfo>,
    caller: &Caller<'_>,
) -> io::Result<Seen> {
    let number = regs.orig_rax;
    let result = regs.rax as i64;
    let unchanged = Seen { registers: *regs, waiting: None, changed: false };
    if let Some(before) = before.filter(|before| before.is_about_to(regs)) {
        // Stopped again, when all was ready for making the call.
        let mut again = *regs;
        (again.rax, again.orig_rax, again.rip) = (ERESTARTNOHAND as u64, before.number, before.instruction);
        again.eflags |= MARK;
        // A handler that comes first ends the call, also one that would only now be made again.
        let ends = signal.is_some_and(|signal| is_caught(caller.tid, signal));
        if ends {
            correct_rest(&again, &before, caller);
        }
        return Ok(Seen { registers: again, waiting: Some(before), changed: ends });
    }
    if (number as i64) < 0 {
        return Ok(unchanged);
    }
    let waiting = match result {
        // The kernel does the same with these registers on the backup, whether a handler comes first or not.
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => match before {
            // Stopped again before it has made the call.
            Some(before) if before.is(regs) => before,
            _ if result == ERESTARTNOHAND && keeps_rest_in_memory(number) && signal.is_none() => {
                Waiting::begin(regs, caller, true)?
            }
            _ => return Ok(unchanged),
        },
        ERESTART_RESTARTBLOCK => match before.filter(|before| before.goes_on(regs)) {
            Some(before) => before,
            None => Waiting::begin(regs, caller, caller.filtered)?,
        },
        EINTR if never_restarted(number) => {
            if signal.is_some_and(|signal| !is_ignored(caller.tid, signal)) {
                // It ends with EINTR, on the backup once the handler can run: a mask of the call's own is not in force before.
                let registers = Registers { rax: ERESTARTNOHAND as u64, ..*regs };
                return Ok(Seen { registers, ..unchanged });
            }
            match before.filter(|before| before.is(regs)) {
                Some(before) => before,
                None => Waiting::begin(regs, caller, true)?,
            }
        }
        _ => return Ok(unchanged),
    };
    // A handler is told EINTR instead of a call made again, which is right for all of these.
    let mut again = *regs;
    (again.rax, again.orig_rax) = (ERESTARTNOHAND as u64, waiting.number);
    again.eflags |= MARK;
    let interrupts = result == EINTR;
    let goes_on = caller.filtered && result == ERESTART_RESTARTBLOCK;
    let rewound = waiting.ours && regs.eflags & MARK != MARK && result == ERESTARTNOHAND;
    let changed = interrupts || goes_on || rewound;
    if waiting.ours && signal.is_none() && waiting.deadline.is_some_and(|deadline| deadline <= caller.now) {
        clear_results(&again, caller, !interrupts)?;
        (again.rax, again.orig_rax) = (answer(waiting.number) as u64, u64::MAX);
        return Ok(Seen { registers: again, waiting: None, changed: true });
    }
    let handled = signal.is_some_and(|signal| is_caught(caller.tid, signal));
    if waiting.ours && result == ERESTART_RESTARTBLOCK || handled {
        correct_rest(&again, &waiting, caller);
    }
    Ok(Seen { registers: again, waiting: Some(waiting), changed })
}

/// Whether the kernel is to be asked what it keeps of a thread's call, which is not known from an earlier stop.
pub(crate) fn is_news(regs: &Registers, before: Option<Waiting>) -> bool {
    (regs.orig_rax as i64) >= 0
        && regs.rax as i64 == ERESTART_RESTARTBLOCK
        && before.is_none_or(|before| !before.goes_on(regs) && !before.is_about_to(regs))
}

/// Whether a thread with these registers will make a call again, and which.
pub(crate) fn repeats(regs: &Registers) -> Option<u64> {
    let again = [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND].contains(&(regs.rax as i64));
    ((regs.orig_rax as i64) >= 0 && again).then_some(regs.orig_rax)
}

/// Calls that return EINTR even where no signal was delivered (`signal(7)`, "Interruption of system calls").
fn never_restarted(number: u64) -> bool {
    [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_io_getevents,
        // Where the limit is in memory that the kernel may not write to (`poll_select_finish`).
        libc::SYS_select,
        libc::SYS_pselect6,
        libc::SYS_ppoll,
        // On sockets with a time limit of their own (`sock_intr_errno`).
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_connect,
    ]
    .into_iter()
    .any(|call| call as u64 == number)
}

/// What a call returns whose limit is over.
fn answer(number: u64) -> i64 {
    let error = match number as i64 {
        libc::SYS_futex => libc::ETIMEDOUT,
        libc::SYS_connect => libc::EINPROGRESS,
        libc::SYS_semtimedop
        | libc::SYS_rt_sigtimedwait
        | libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendto
        | libc::SYS_sendmsg => libc::EAGAIN,
        _ => 0,
    };
    -i64::from(error)
}

/// How a call says how long it waits at most.
enum Limit {
    /// In a register, in milliseconds; negative is for ever.
    Milliseconds(u64),
    /// At this address, a `timespec`; none is for ever.
    Timespec(u64),
    Timeval(u64),
    /// An option of the socket.
    Socket {
        fd: i32,
        option: i32,
    },
    /// Of no concern: for ever, or up to a time by a clock.
    None,
}

fn limit_of(regs: &Registers) -> Limit {
    let socket = |option| Limit::Socket { fd: regs.rdi as i32, option };
    match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Limit::Milliseconds(regs.r10),
        libc::SYS_poll => Limit::Milliseconds(regs.rdx),
        libc::SYS_nanosleep => Limit::Timespec(regs.rdi),
        libc::SYS_clock_nanosleep if is_relative_sleep(regs) => Limit::Timespec(regs.rdx),
        libc::SYS_futex if futex_command(regs) == libc::FUTEX_WAIT => Limit::Timespec(regs.r10),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Limit::Timespec(regs.r10),
        libc::SYS_rt_sigtimedwait | libc::SYS_ppoll => Limit::Timespec(regs.rdx),
        libc::SYS_io_getevents | libc::SYS_pselect6 => Limit::Timespec(regs.r8),
        libc::SYS_select => Limit::Timeval(regs.r8),
        libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_accept
        | libc::SYS_accept4 => socket(libc::SO_RCVTIMEO),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_connect => {
            socket(libc::SO_SNDTIMEO)
        }
        _ => Limit::None,
    }
}

fn futex_command(regs: &Registers) -> i32 {
    regs.rsi as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME)
}

/// By a clock that goes on everywhere: time on a processor starts anew on another host.
fn is_relative_sleep(regs: &Registers) -> bool {
    let clocks = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];
    regs.rsi as i32 & libc::TIMER_ABSTIME == 0 && clocks.contains(&(regs.rdi as i32))
}

impl Waiting {
    /// `ours`: the kernel would begin anew, so the tracer has to end it. The wait began at the latest when it was interrupted: a limit
    /// never ends early, and late by what was waited before the first stop, where the kernel does not say more.
    fn begin(regs: &Registers, caller: &Caller<'_>, ours: bool) -> io::Result<Self> {
        let limit = match limit_of(regs) {
            Limit::Milliseconds(limit) if (limit as i32) < 0 => None,
            Limit::Milliseconds(limit) => Some(i64::from(limit as i32) * 1_000_000),
            Limit::Timespec(0) | Limit::Timeval(0) | Limit::None => None,
            Limit::Timespec(at) => caller.time(at, 1),
            Limit::Timeval(at) => caller.time(at, 1000),
            Limit::Socket { fd, option } => caller.socket_limit(fd, option),
        };
        let deadline = limit.map(|limit| {
            let latest = caller.interrupted.saturating_add(limit);
            caller.kept_deadline(regs).unwrap_or(latest).min(latest)
        });
        let (number, stack, instruction) = (regs.orig_rax, regs.rsp, regs.rip);
        Ok(Self { number, stack, instruction, deadline, ours: ours && deadline.is_some() })
    }

    /// A call that goes on after a failover.
    pub fn restored(regs: &Registers, deadline: Option<i64>) -> Option<Self> {
        let number = repeats(regs).filter(|_| deadline.is_some())?;
        Some(Self { number, stack: regs.rsp, instruction: regs.rip, deadline, ours: true })
    }

    /// Stands before the call, which is to be made again or (`restart_syscall`) to go on.
    fn is_about_to(&self, regs: &Registers) -> bool {
        let here = (regs.rsp, regs.rip.wrapping_add(2)) == (self.stack, self.instruction);
        let goes_on = regs.rax == libc::SYS_restart_syscall as u64;
        here && (goes_on || regs.rax == self.number && regs.eflags & MARK == MARK)
    }

    /// In a call of which the kernel keeps the rest: from the second stop on it is restart_syscall, and what it was is known
    /// from the first.
    fn goes_on(&self, regs: &Registers) -> bool {
        regs.orig_rax == libc::SYS_restart_syscall as u64 || self.is(regs)
    }

    fn is(&self, regs: &Registers) -> bool {
        let here = (regs.orig_rax, regs.rsp, regs.rip);
        here == (self.number, self.stack, self.instruction) && regs.eflags & MARK == MARK
    }
}

impl Caller<'_> {
    /// Two words of the workload's memory, in nanoseconds.
    fn time(&self, at: u64, unit: i64) -> Option<i64> {
        let mut raw = [0u8; 16];
        self.memory?.read_exact_at(&mut raw, at).ok()?;
        let (seconds, parts) = raw.split_first_chunk::<8>()?;
        let (seconds, parts) = (i64::from_ne_bytes(*seconds), i64::from_ne_bytes(parts.try_into().ok()?));
        seconds.checked_mul(1_000_000_000)?.checked_add(parts.checked_mul(unit)?)
    }

    /// `None` where it is no socket, or has no limit.
    fn socket_limit(&self, fd: i32, option: i32) -> Option<i64> {
        let socket = task::take_descriptor(self.process, fd).ok()?;
        let micros = descriptor::socket_timeout(socket.as_fd(), option).ok().filter(|limit| *limit > 0)?;
        i64::try_from(micros).ok()?.checked_mul(1000)
    }

    fn kept_deadline(&self, regs: &Registers) -> Option<i64> {
        let kept = self.kept?;
        let ends = match regs.orig_rax as i64 {
            // clockid and type; where the rest goes; when it ends.
            libc::SYS_nanosleep | libc::SYS_clock_nanosleep => match kept[0] as u32 as i32 {
                libc::CLOCK_MONOTONIC => kept[2] as i64,
                libc::CLOCK_BOOTTIME => {
                    let asleep = task::clock(libc::CLOCK_BOOTTIME) - task::clock(libc::CLOCK_MONOTONIC);
                    kept[2] as i64 - asleep
                }
                _ => return None,
            },
            // The address; value and flags; the mask; when it ends.
            libc::SYS_futex if kept[0] == regs.rdi => kept[3] as i64,
            // The entries; how many, and whether there is a limit; seconds and nanoseconds.
            libc::SYS_poll if kept[0] == regs.rdi => {
                (kept[2] as i64).checked_mul(1_000_000_000)?.checked_add(kept[3] as i64)?
            }
            _ => return None,
        };
        Some(ends.saturating_add(self.ahead))
    }
}

/// Calls of which the kernel writes what is left to the program's memory, if it may.
fn keeps_rest_in_memory(number: u64) -> bool {
    [libc::SYS_select, libc::SYS_pselect6, libc::SYS_ppoll].into_iter().any(|call| call as u64 == number)
}

/// A call that is over writes that nothing has happened and, `rest`, that no time is left.
fn clear_results(regs: &Registers, caller: &Caller<'_>, rest: bool) -> io::Result<()> {
    let Some(memory) = caller.memory else { return Ok(()) };
    if rest
        && keeps_rest_in_memory(regs.orig_rax)
        && let Limit::Timespec(at) | Limit::Timeval(at) = limit_of(regs)
    {
        memory.write_all_at(&[0; 16], at)?;
    }
    match regs.orig_rax as i64 {
        libc::SYS_poll | libc::SYS_ppoll => {
            // struct pollfd: descriptor, events, what happened.
            for entry in 0..regs.rsi.min(MAX_POLLED) {
                memory.write_all_at(&[0; 2], regs.rdi + 8 * entry + 6)?;
            }
        }
        libc::SYS_select | libc::SYS_pselect6 => {
            let zeros = vec![0u8; 8 * regs.rdi.min(MAX_POLLED).div_ceil(64) as usize];
            for set in [regs.rsi, regs.rdx, regs.r10].into_iter().filter(|set| *set != 0) {
                memory.write_all_at(&zeros, set)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A call that a handler interrupts says what is left of its limit. The kernel says too much where something had interrupted it
/// before (it counts up to there, and the handler may have had to wait for a checkpoint), and after a failover, where it began
/// anew.
fn correct_rest(regs: &Registers, waiting: &Waiting, caller: &Caller<'_>) {
    let (at, unit) = match regs.orig_rax as i64 {
        libc::SYS_nanosleep => (regs.rsi, 1),
        libc::SYS_clock_nanosleep => (regs.r10, 1),
        _ => match limit_of(regs) {
            Limit::Timespec(at) if keeps_rest_in_memory(regs.orig_rax) => (at, 1),
            Limit::Timeval(at) => (at, 1000),
            _ => return,
        },
    };
    let Some(deadline) = waiting.deadline.filter(|_| at != 0) else { return };
    let left = (deadline - caller.now).max(0);
    let said = caller.time(at, unit).filter(|said| *said >= 0).unwrap_or(i64::MAX);
    if left < said {
        // By the process's own rights: where it may not write the kernel says nothing either (`poll_select_finish`).
        let _ = task::write_memory(caller.tid, &[(at, &two_words(left, unit))]);
    }
}

/// `struct timespec`, or `struct timeval` with its unit of 1,000 nanoseconds.
fn two_words(nanos: i64, unit: i64) -> [u8; 16] {
    let mut raw = [0u8; 16];
    raw[..8].copy_from_slice(&(nanos / 1_000_000_000).to_ne_bytes());
    raw[8..].copy_from_slice(&(nanos % 1_000_000_000 / unit).to_ne_bytes());
    raw
}

/// Whether a signal has a handler. Stopped by one, or going on after a stop, a call of which the kernel keeps the rest goes on.
fn is_caught(tid: Tid, signal: &SignalInfo) -> bool {
    let number = i32::from_ne_bytes([signal[0], signal[1], signal[2], signal[3]]);
    let caught = proc::status(tid).map_or(!0, |status| status.caught);
    (1..=64).contains(&number) && caught & 1u64 << (number - 1) != 0
}

/// Whether a signal does nothing to its receiver. A traced thread is interrupted by it all the same.
fn is_ignored(tid: Tid, signal: &SignalInfo) -> bool {
    let number = i32::from_ne_bytes([signal[0], signal[1], signal[2], signal[3]]);
    if !(1..=64).contains(&number) {
        return false;
    }
    let Ok(status) = proc::status(tid) else { return false };
    let bit = 1u64 << (number - 1);
    let by_default = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH].contains(&number);
    status.ignored & bit != 0 || by_default && status.caught & bit == 0
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const MS: i64 = 1_000_000;

    fn stopped_in(number: i64, result: i64) -> Registers {
        let mut regs = crate::capture::unpack(&crate::checkpoint::Registers([0; 27]));
        (regs.orig_rax, regs.rax, regs.rip) = (number as u64, result as u64, 0x1002);
        regs
    }

    fn seen_at(now: i64, regs: &Registers, before: Option<Waiting>, kept: Option<RestartBlock>) -> Seen {
        seen_of(false, now, regs, before, kept)
    }

    fn seen_of(
        filtered: bool,
        now: i64,
        regs: &Registers,
        before: Option<Waiting>,
        kept: Option<RestartBlock>,
    ) -> Seen {
        let own = File::open("/proc/self/mem").unwrap();
        let process = task::pidfd_open(std::process::id() as Tid).unwrap();
        let (tid, memory, process) = (std::process::id() as Tid, Some(&own), process.as_fd());
        look(
            regs,
            before,
            None,
            &Caller { tid, memory, process, now, interrupted: now, ahead: 0, kept, filtered },
        )
        .unwrap()
    }

    #[test]
    fn epoll_wait_stopped_without_a_signal_is_made_again_and_ends_when_its_time_is_over() {
        let mut regs = stopped_in(libc::SYS_epoll_wait, EINTR);
        regs.r10 = 100;
        let first = seen_at(0, &regs, None, None);
        assert!(first.changed);
        assert_eq!(repeats(&first.registers), Some(libc::SYS_epoll_wait as u64));
        assert_eq!(first.registers.r10, 100);
        assert_eq!(first.waiting.unwrap().deadline, Some(100 * MS));
        let mut again = Registers { rax: EINTR as u64, ..first.registers };
        let second = seen_at(30 * MS, &again, first.waiting, None);
        assert_eq!(second.waiting, first.waiting);
        again.rax = ERESTARTNOHAND as u64;
        assert_eq!(seen_at(40 * MS, &again, second.waiting, None).waiting, first.waiting);
        again.rax = EINTR as u64;
        let last = seen_at(100 * MS, &again, second.waiting, None);
        assert!(last.changed && last.waiting.is_none());
        assert_eq!((last.registers.rax, last.registers.orig_rax), (0, u64::MAX));
    }

    #[test]
    fn the_next_call_from_the_same_place_has_its_own_limit() {
        let mut regs = stopped_in(libc::SYS_epoll_wait, EINTR);
        regs.r10 = 100;
        let first = seen_at(0, &regs, None, None);
        // A comparison after the first call has left other flags.
        let second = seen_at(90 * MS, &regs, first.waiting, None);
        assert_eq!(second.waiting.unwrap().deadline, Some(190 * MS));
    }

    #[test]
    fn an_endless_wait_stays_endless() {
        let mut regs = stopped_in(libc::SYS_epoll_wait, EINTR);
        regs.r10 = u64::from(u32::MAX);
        let seen = seen_at(0, &regs, None, None);
        assert_eq!(seen.waiting.unwrap().deadline, None);
        assert!(!seen.waiting.unwrap().ours);
    }

    #[test]
    fn a_poll_found_twice_keeps_its_number_and_the_deadline_that_the_kernel_knows() {
        let mut regs = stopped_in(libc::SYS_poll, ERESTART_RESTARTBLOCK);
        (regs.rdi, regs.rdx) = (0x77, 5000);
        let kept = Some([0x77, 1 | 1 << 32, 4, 500_000_000]);
        let first = seen_at(1000 * MS, &regs, None, kept);
        assert!(!first.changed);
        assert_eq!(first.waiting.unwrap().deadline, Some(4500 * MS));
        let again = Registers { orig_rax: libc::SYS_restart_syscall as u64, ..regs };
        let second = seen_at(2000 * MS, &again, first.waiting, None);
        assert_eq!(repeats(&second.registers), Some(libc::SYS_poll as u64));
        assert_eq!(second.waiting.unwrap().deadline, Some(4500 * MS));
    }

    #[test]
    fn a_thread_with_a_filter_is_never_sent_through_restart_syscall() {
        let mut regs = stopped_in(libc::SYS_poll, ERESTART_RESTARTBLOCK);
        (regs.rdi, regs.rdx) = (0x77, 5000);
        let kept = Some([0x77, 1 | 1 << 32, 4, 500_000_000]);
        let first = seen_of(true, 1000 * MS, &regs, None, kept);
        assert!(first.changed && first.waiting.unwrap().ours);
        assert_eq!(repeats(&first.registers), Some(libc::SYS_poll as u64));
        assert_eq!(first.waiting.unwrap().deadline, Some(4500 * MS));
        let again = Registers { rax: ERESTART_RESTARTBLOCK as u64, ..first.registers };
        let second = seen_of(true, 2000 * MS, &again, first.waiting, None);
        assert!(second.changed);
        assert_eq!(second.waiting, first.waiting);
        let last = seen_of(true, 4500 * MS, &again, second.waiting, None);
        assert_eq!((last.registers.rax, last.registers.orig_rax), (0, u64::MAX));
    }

    #[test]
    fn a_call_that_is_about_to_go_on_is_still_the_same() {
        let mut regs = stopped_in(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK);
        let first = seen_at(0, &regs, None, None);
        (regs.rax, regs.rip) = (libc::SYS_restart_syscall as u64, 0x1000);
        let second = seen_at(MS, &regs, first.waiting, None);
        assert_eq!(second.waiting, first.waiting);
        assert!(!second.changed);
        assert_eq!(repeats(&second.registers), Some(libc::SYS_nanosleep as u64));
        assert_eq!(second.registers.rip, 0x1002);
    }

    #[test]
    fn a_sleep_that_a_handler_ends_just_after_a_stop_says_what_is_left_now() {
        let (wish, mut left) = ([5i64, 0], [4i64, 900_000_000]);
        let mut regs = stopped_in(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK);
        (regs.rdi, regs.rsi) = (wish.as_ptr() as u64, left.as_mut_ptr() as u64);
        // It ends at 5 s, and was interrupted at 0.1 s, when the kernel wrote what is left.
        let kept = Some([libc::CLOCK_MONOTONIC as u64, 0, 5_000_000_000, 0]);
        let first = seen_at(100 * MS, &regs, None, kept);
        (regs.rax, regs.rip) = (libc::SYS_restart_syscall as u64, 0x1000);
        let own = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        let process = task::pidfd_open(std::process::id() as Tid).unwrap();
        let (tid, memory, process) = (std::process::id() as Tid, Some(&own), process.as_fd());
        let caller = Caller {
            tid,
            memory,
            process,
            filtered: false,
            now: 150 * MS,
            interrupted: 150 * MS,
            ahead: 0,
            kept: None,
        };
        let mut signal = [0u8; 128];
        // A signal that this process catches: the runtime does, to tell an overflow of the stack.
        signal[0] = libc::SIGSEGV as u8;
        let seen = look(&regs, first.waiting, Some(&signal), &caller).unwrap();
        assert!(seen.changed && seen.registers.rax as i64 == ERESTARTNOHAND);
        assert_eq!(std::hint::black_box(left), [4, 850_000_000]);
    }

    #[test]
    fn words_the_kernel_kept_for_another_call_are_not_taken() {
        let mut regs = stopped_in(libc::SYS_poll, ERESTART_RESTARTBLOCK);
        (regs.rdi, regs.rdx) = (0x78, 5000);
        let seen = seen_at(0, &regs, None, Some([0x77, 1, 4, 0]));
        assert_eq!(seen.waiting.unwrap().deadline, Some(5000 * MS));
    }
}
