//! Timers of a process that send signals: POSIX timers (`timer_create(2)`) with their ids, and interval timers
//! (`setitimer(2)`).

use std::collections::HashMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::signal::PendingSignal;
use crate::checkpoint::Pid;
use crate::sys::remote::{Batch, Remote};
use crate::sys::task;

/// `struct itimerspec`: interval, then what is left.
const SPEC_SIZE: u64 = 32;
/// `prctl(2)`, Linux 6.15: `timer_create` gives the id that is asked for.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// How many of one process are captured: it is asked about each at every stop. `RLIMIT_SIGPENDING` bounds them as well.
pub const MAX_TIMERS: usize = 512;
/// The highest id that is reached by making and deleting timers, where the kernel cannot be asked for one.
const MAX_SOUGHT_ID: i32 = 100_000;
/// So many at a time.
const SOUGHT_AT_ONCE: i32 = 400;

/// A clock as it is in the kernel (`include/linux/posix-timers.h`): of processor time, of the thread (bit 2) or process whose id is
/// in the upper bits; 0 is the caller's.
fn is_processor_time(clock: i32) -> bool {
    clock < 0
}

/// Whose time it is counts for the thread that made the timer.
fn is_of_caller(clock: i32) -> bool {
    is_processor_time(clock) && clock & 4 != 0 && !clock >> 3 == 0
}

/// When a timer expires next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    Disarmed,
    /// By the workload's monotonic clock, in nanoseconds.
    Monotonic(i64),
    /// By the workload's clock that counts while the machine is suspended.
    Boottime(i64),
    /// After so many nanoseconds of processor time.
    Left(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    /// `sigev_notify`, `sigev_signo`, `sigev_value`.
    pub notify: i32,
    pub signal: i32,
    pub value: u64,
    /// `sigev_notify_thread_id`.
    pub thread: Pid,
    /// Who made it, where the clock is the maker's.
    pub maker: Option<Pid>,
    pub expiry: Expiry,
    /// Nanoseconds; 0 is once.
    pub interval: u64,
    /// Its signal waits; `expiry` is the one that sent it, so that all since then are counted when it is received.
    pub waits: bool,
}

/// How far the expirations of a periodic timer have been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    /// The first that has not been, by the workload's monotonic clock.
    pub next: i64,
    pub interval: u64,
}

impl Cadence {
    /// A signal was received that stands for this one and `overrun` more.
    pub fn received(&mut self, overrun: i32) {
        let periods = i64::from(overrun.max(0)) + 1;
        self.next =
            self.next.saturating_add(periods.saturating_mul(self.interval.min(i64::MAX as u64) as i64));
    }

    pub fn restored(timer: &PosixTimer, clocks_apart: i64) -> Option<Self> {
        let next = match timer.expiry {
            Expiry::Monotonic(at) => at,
            Expiry::Boottime(at) => at - clocks_apart,
            Expiry::Disarmed | Expiry::Left(_) => return None,
        };
        Some(Self { next, interval: timer.interval })
    }
}

/// What `/proc/PID/timers` says of one.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(": ")?;
        let value = value.trim();
        if key == "ID" {
            timers.push(PosixTimer {
                id: value.parse().ok()?,
                clock: 0,
                notify: libc::SIGEV_NONE,
                signal: 0,
                value: 0,
                thread: 0,
                maker: None,
                expiry: Expiry::Disarmed,
                interval: 0,
                waits: false,
            });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(pointer.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (kind, id) = whom.split_once('.')?;
                timer.notify = match (how, kind) {
                    ("signal", "tid") => libc::SIGEV_THREAD_ID,
                    ("signal", _) => libc::SIGEV_SIGNAL,
                    ("none", _) => libc::SIGEV_NONE,
                    ("thread", _) => libc::SIGEV_THREAD,
                    _ => return None,
                };
                timer.thread = id.parse().ok()?;
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

/// What is known beside what the kernel says.
pub struct Shadow<'a> {
    /// As they were last.
    pub before: &'a [PosixTimer],
    /// Signals that wait, for the process or one of its threads.
    pub waiting: &'a [PendingSignal],
    pub cadences: &'a HashMap<i32, Cadence>,
    /// Who has made timers that count the maker's own time since they were last looked at.
    pub makers: &'a [Pid],
}

/// `text` is `/proc/PID/timers` as the workload sees it. An error that is no failure of the system says what cannot be captured.
pub fn capture(remote: &mut Remote<'_>, text: &str, shadow: &Shadow<'_>) -> io::Result<Vec<PosixTimer>> {
    let mut timers = parse(text).ok_or_else(|| io::Error::other("timers in a form that is not known"))?;
    if timers.len() > MAX_TIMERS {
        return Err(io::Error::other(format!("more than {MAX_TIMERS} timers")));
    }
    timers.sort_unstable_by_key(|timer| timer.id);
    let mut batch = Batch::new();
    let room = batch.bytes(&vec![0u8; SPEC_SIZE as usize * timers.len()]);
    for (index, timer) in timers.iter().enumerate() {
        batch.call(libc::SYS_timer_gettime, &[timer.id as u64, room + SPEC_SIZE * index as u64]);
    }
    // By the workload's own clocks, at once: what is left is counted from here.
    let clocks = batch.bytes(&[0u8; 32]);
    batch.call(libc::SYS_clock_gettime, &[libc::CLOCK_MONOTONIC as u64, clocks]);
    batch.call(libc::SYS_clock_gettime, &[libc::CLOCK_BOOTTIME as u64, clocks + 16]);
    remote.run_all(&mut batch)?;
    let (monotonic, boottime) = (time_at(remote, clocks)?, time_at(remote, clocks + 16)?);
    let bytes = remote.read(room, SPEC_SIZE as usize * timers.len())?;
    for (timer, spec) in timers.iter_mut().zip(bytes.chunks_exact(SPEC_SIZE as usize)) {
        let word =
            |at: usize| spec[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let (interval, left) = (word(0) * 1_000_000_000 + word(8), word(16) * 1_000_000_000 + word(24));
        timer.interval = interval;
        timer.expiry = match timer.clock {
            _ if left == 0 => Expiry::Disarmed,
            clock if is_processor_time(clock) => Expiry::Left(left),
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => {
                Expiry::Boottime(boottime.saturating_add_unsigned(left))
            }
            _ => Expiry::Monotonic(monotonic.saturating_add_unsigned(left)),
        };
        let before = shadow.before.iter().find(|before| before.id == timer.id && before.clock == timer.clock);
        let waits = interval > 0 && shadow.waiting.iter().any(|signal| timer_of(signal) == Some(timer.id));
        let behind = boottime - monotonic;
        if waits && let Some(cadence) = shadow.cadences.get(&timer.id) {
            let first = match timer.expiry {
                Expiry::Monotonic(next) => unreceived(cadence.next, next, interval).map(Expiry::Monotonic),
                Expiry::Boottime(next) => {
                    unreceived(cadence.next.saturating_add(behind), next, interval).map(Expiry::Boottime)
                }
                // Of processor time the next is the first that counts.
                Expiry::Disarmed | Expiry::Left(_) => None,
            };
            timer.waits = first.is_some();
            timer.expiry = first.unwrap_or(timer.expiry);
        }
        if is_of_caller(timer.clock) {
            timer.maker = match (before, shadow.makers) {
                (Some(before), _) => before.maker,
                (None, [maker]) => Some(*maker),
                (None, _) => None,
            };
            if timer.maker.is_none() {
                return Err(io::Error::other(
                    "a timer of a thread's own processor time, made by one of several threads",
                ));
            }
        }
    }
    Ok(timers)
}

/// When a timer that is just being set expires first, by the workload's monotonic clock; `ahead`: what its monotonic clock and the
/// one that counts while suspended are ahead of this host's.
pub fn first_expiry(clock: i32, flags: i32, spec: &[u8; 32], ahead: (i64, i64)) -> Cadence {
    let word = |at: usize| {
        spec[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)) as i64
    };
    let value = word(16).saturating_mul(1_000_000_000).saturating_add(word(24));
    let now = task::clock(libc::CLOCK_MONOTONIC) + ahead.0;
    let passed = match clock {
        _ if flags & libc::TIMER_ABSTIME == 0 => 0,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => task::clock(libc::CLOCK_BOOTTIME) + ahead.1,
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => task::clock(libc::CLOCK_REALTIME),
        _ => now,
    };
    let interval = word(0).saturating_mul(1_000_000_000).saturating_add(word(8));
    Cadence { next: now.saturating_add(value.saturating_sub(passed)), interval: interval.max(0) as u64 }
}

/// Which of the expirations before `next` is the one that was expected at about `first`. `None` if that is none.
fn unreceived(first: i64, next: i64, interval: u64) -> Option<i64> {
    let interval = i64::try_from(interval).ok().filter(|interval| *interval > 0)?;
    let periods = (next.saturating_sub(first).saturating_add(interval / 2)) / interval;
    (periods > 0).then(|| next - periods * interval)
}

/// The timer that has sent a signal (`siginfo_t` in `sigaction(2)`: code at 8, id at 16).
pub fn timer_of(signal: &PendingSignal) -> Option<i32> {
    received_from(signal).map(|(id, _)| id)
}

/// And how many more expirations it stands for, once it is received (at 20).
pub fn received_from(signal: &PendingSignal) -> Option<(i32, i32)> {
    let info = signal.info();
    let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    (word(8) == libc::SI_TIMER).then(|| (word(16), word(20)))
}

/// How a kernel gives a timer the id that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    Asked,
    /// Before Linux 6.15.
    Sought,
}

/// Finds out how ids are given.
pub fn prepare(remote: &mut Remote<'_>) -> io::Result<Ids> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0]);
    let results = remote.run(&batch)?;
    Ok(if results.first() == Some(&0) { Ids::Asked } else { Ids::Sought })
}

pub fn finish(remote: &mut Remote<'_>) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_prctl, &[PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0]);
    remote.run(&batch).map(drop)
}

/// Makes one timer in the thread that is asked; in the order of their ids.
pub fn restore(remote: &mut Remote<'_>, timer: &PosixTimer, ids: Ids) -> io::Result<()> {
    // struct sigevent: value, signal, how, thread.
    let mut event = [0u8; 64];
    event[..8].copy_from_slice(&timer.value.to_ne_bytes());
    for (at, word) in [(8, timer.signal), (12, timer.notify), (16, timer.thread)] {
        event[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    match ids {
        Ids::Asked => {
            let mut batch = Batch::new();
            let event = batch.bytes(&event);
            let id = batch.bytes(&timer.id.to_ne_bytes());
            batch.call(libc::SYS_timer_create, &[timer.clock as u64, event, id]);
            remote.run_all(&mut batch)?;
        }
        Ids::Sought => seek(remote, timer, &event)?,
    }
    let (flags, first) = match timer.expiry {
        Expiry::Disarmed => return Ok(()),
        // The kernel counts what has been missed.
        Expiry::Monotonic(at) if timer.clock == libc::CLOCK_MONOTONIC => (libc::TIMER_ABSTIME, at),
        Expiry::Boottime(at) if timer.clock == libc::CLOCK_BOOTTIME => (libc::TIMER_ABSTIME, at),
        // The time of day may be another here; what was left is not.
        Expiry::Monotonic(at) => (
            libc::TIMER_ABSTIME,
            at - workload_clock(remote, libc::CLOCK_MONOTONIC)? + workload_clock(remote, timer.clock)?,
        ),
        Expiry::Boottime(at) => (
            libc::TIMER_ABSTIME,
            at - workload_clock(remote, libc::CLOCK_BOOTTIME)? + workload_clock(remote, timer.clock)?,
        ),
        Expiry::Left(left) => (0, left as i64),
    };
    // 0 would disarm it.
    let first = first.max(1);
    let parts = |nanos: i64| [nanos / 1_000_000_000, nanos % 1_000_000_000];
    let spec: Vec<u8> = [parts(timer.interval as i64), parts(first)]
        .concat()
        .into_iter()
        .flat_map(i64::to_ne_bytes)
        .collect();
    let mut batch = Batch::new();
    let spec = batch.bytes(&spec);
    batch.call(libc::SYS_timer_settime, &[timer.id as u64, flags as u64, spec, 0]);
    remote.run_all(&mut batch).map(drop)
}

fn workload_clock(remote: &mut Remote<'_>, clock: i32) -> io::Result<i64> {
    let mut batch = Batch::new();
    let at = batch.bytes(&[0u8; 16]);
    batch.call(libc::SYS_clock_gettime, &[clock as u64, at]);
    remote.run_all(&mut batch)?;
    time_at(remote, at)
}

/// A `timespec` that a call has written.
fn time_at(remote: &Remote<'_>, at: u64) -> io::Result<i64> {
    let raw = remote.read(at, 16)?;
    let word =
        |at: usize| raw[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)) as i64;
    Ok(word(0).saturating_mul(1_000_000_000).saturating_add(word(8)))
}

/// Ids are given in ascending order: makes and deletes timers until the right one has come.
fn seek(remote: &mut Remote<'_>, timer: &PosixTimer, event: &[u8]) -> io::Result<()> {
    if !(0..=MAX_SOUGHT_ID).contains(&timer.id) {
        return Err(io::Error::other(format!("timer id {} is out of reach on this kernel", timer.id)));
    }
    for _ in 0..=MAX_SOUGHT_ID {
        let mut batch = Batch::new();
        let at = batch.bytes(event);
        let id = batch.bytes(&[0u8; 4]);
        batch.call(libc::SYS_timer_create, &[timer.clock as u64, at, id]);
        remote.run_all(&mut batch)?;
        let raw = remote.read(id, 4)?;
        let got = i32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]);
        if got == timer.id {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.call(libc::SYS_timer_delete, &[got as u64]);
        // All but the last step at once.
        for next in got + 1..timer.id.min(got + SOUGHT_AT_ONCE) {
            let at = batch.bytes(event);
            let id = batch.bytes(&[0u8; 4]);
            batch.call(libc::SYS_timer_create, &[timer.clock as u64, at, id]);
            batch.call(libc::SYS_timer_delete, &[next as u64]);
        }
        remote.run_all(&mut batch)?;
        if got > timer.id {
            break;
        }
    }
    Err(io::Error::other(format!("timer id {} is taken", timer.id)))
}

/// Of a process that has called `setitimer` or `alarm` and has no such timer, so many checkpoints ask again: the call is noticed
/// before it is made, and a thread that is stopped there makes it before it can be stopped once more. Asking takes a call by the
/// process itself, a tenth of a small checkpoint.
pub const ASKED_ON: u8 = 3;

/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: (left, interval) in microseconds.
pub fn capture_intervals(remote: &mut Remote<'_>) -> io::Result<[(u64, u64); 3]> {
    let mut batch = Batch::new();
    let room = batch.bytes(&[0u8; 96]);
    for which in 0..3u64 {
        batch.call(libc::SYS_getitimer, &[which, room + 32 * which]);
    }
    remote.run_all(&mut batch)?;
    let bytes = remote.read(room, 96)?;
    let word =
        |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let micros = |at: usize| word(at) * 1_000_000 + word(at + 8);
    Ok([0, 32, 64].map(|at| (micros(at + 16), micros(at))))
}

/// `passed`: nanoseconds since they were captured, which are taken off the one that counts real time.
pub fn restore_intervals(batch: &mut Batch, timers: &[(u64, u64); 3], passed: i64) {
    for (which, (left, interval)) in timers.iter().enumerate() {
        // One that has expired while its signal waits is started again when that is received.
        let left = if *left == 0 { interval } else { left };
        if *left == 0 {
            continue;
        }
        let passed = if which == libc::ITIMER_REAL as usize { passed.max(0) as u64 / 1000 } else { 0 };
        let left = left.saturating_sub(passed).max(1);
        let parts = |micros: u64| [micros / 1_000_000, micros % 1_000_000];
        let bytes: Vec<u8> =
            [parts(*interval), parts(left)].concat().into_iter().flat_map(u64::to_ne_bytes).collect();
        let at = batch.bytes(&bytes);
        batch.call(libc::SYS_setitimer, &[which as u64, at, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_parsed() {
        let text = "ID: 3\nsignal: 34/00007ffc0000abcd\nnotify: signal/tid.17\nClockID: -2\nID: 9\nsignal: 0/0000000000000000\nnotify: none/pid.2\nClockID: 1\n";
        let timers = parse(text).unwrap();
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value), (3, 34, 0x7ffc_0000_abcd));
        assert_eq!((timers[0].notify, timers[0].thread, timers[0].clock), (libc::SIGEV_THREAD_ID, 17, -2));
        assert!(is_of_caller(timers[0].clock));
        assert_eq!((timers[1].notify, timers[1].thread, timers[1].clock), (libc::SIGEV_NONE, 2, 1));
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse("signal: 1/0\n"), None);
    }

    #[test]
    fn the_expiration_that_sent_a_waiting_signal_is_found() {
        assert_eq!(unreceived(10, 100, 30), Some(10));
        assert_eq!(unreceived(12, 100, 30), Some(10));
        assert_eq!(unreceived(100, 100, 30), None);
        assert_eq!(unreceived(130, 100, 30), None);
        assert_eq!(unreceived(0, 100, 0), None);
        let mut cadence = Cadence { next: 10, interval: 30 };
        cadence.received(1);
        assert_eq!(cadence.next, 70);
    }

    #[test]
    fn clocks_of_processor_time_are_told_apart() {
        // CLOCK_PROCESS_CPUTIME_ID as the kernel keeps it, that of process 2, and of thread 5.
        let of = |pid: i32, thread: i32| (!pid << 3) | thread | 2;
        assert!(is_processor_time(of(0, 0)) && !is_of_caller(of(0, 0)));
        assert!(is_processor_time(of(2, 0)) && !is_of_caller(of(2, 0)));
        assert!(is_of_caller(of(0, 4)) && !is_of_caller(of(5, 4)));
    }
}
