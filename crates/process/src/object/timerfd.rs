//! Timers read from a descriptor (`timerfd_create(2)`).

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, ClockOffsets, StatusFlags};
use crate::error::{Attempt, Result};
use crate::sys::descriptor as sys;
use crate::sys::proc::info_field;
use crate::sys::task;

/// How far two observations of one deadline may lie apart: between reading the clock and reading what is left the
/// observer may be interrupted. A timer that was really moved by less is restored off by less, of which a program that
/// has just been through a failover cannot tell.
const OBSERVATION: u64 = 250_000;
/// How often a timer whose period is shorter than looking at it takes is looked at.
const ATTEMPTS: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerFd {
    pub clock: i32,
    /// When it expires next, by the clock of `reference` as the workload reads it; none is disarmed.
    pub deadline: Option<i64>,
    pub reference: Reference,
    /// `TFD_TIMER_CANCEL_ON_SET`.
    pub cancel_on_set: bool,
    /// Nanoseconds; 0 is once.
    pub interval: u64,
    /// Expirations that nobody has read.
    pub ticks: u64,
    pub flags: StatusFlags,
}

/// What decides when a timer expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reference {
    Monotonic,
    Boottime,
    /// The time of day, which moves on between two hosts: only for an absolute timer of that clock. A relative one runs
    /// by the monotonic clock (`__hrtimer_setup` in kernel/time/hrtimer.c).
    Wall,
}

impl Reference {
    fn of(clock: i32, absolute: bool) -> Self {
        match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM if absolute => Reference::Wall,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Reference::Boottime,
            _ => Reference::Monotonic,
        }
    }

    /// The clock as the supervisor reads it, and how far ahead the workload's is.
    fn clock(self, offsets: ClockOffsets) -> (libc::clockid_t, i64) {
        match self {
            Reference::Monotonic => (libc::CLOCK_MONOTONIC, offsets.monotonic),
            Reference::Boottime => (libc::CLOCK_BOOTTIME, offsets.boottime),
            Reference::Wall => (libc::CLOCK_REALTIME, 0),
        }
    }
}

impl TimerFd {
    pub(super) fn same_as(&self, earlier: &TimerFd) -> bool {
        let near = match (self.deadline, earlier.deadline) {
            (Some(now), Some(then)) => now.abs_diff(then) <= OBSERVATION,
            (now, then) => now == then,
        };
        near && *self == TimerFd { deadline: self.deadline, ..earlier.clone() }
    }
}

pub(super) fn capture(at: &At<'_>, offsets: ClockOffsets) -> Result<TimerFd> {
    let timer = at.duplicate()?;
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        sys::timer_settle(timer.as_fd()).attempt(|| "ask a timer what is left".to_owned())?;
        let info = at.info()?;
        let number = |key| info_field(&info, key).and_then(|text| text.parse::<u64>().ok());
        let clock = number("clockid").ok_or_else(|| at.unreadable("clockid"))? as i32;
        let ticks = number("ticks").ok_or_else(|| at.unreadable("ticks"))?;
        let set = info_field(&info, "settime flags").and_then(|text| i32::from_str_radix(text, 8).ok());
        let set = set.ok_or_else(|| at.unreadable("settime flags"))?;
        let time = |key| info_field(&info, key).and_then(parse_time).ok_or_else(|| at.unreadable(key));
        let (left, interval) = (time("it_value")?, time("it_interval")?);
        let reference = Reference::of(clock, set & libc::TFD_TIMER_ABSTIME != 0);
        let mut captured = TimerFd {
            clock,
            deadline: None,
            reference,
            cancel_on_set: set & libc::TFD_TIMER_CANCEL_ON_SET != 0,
            interval,
            ticks,
            flags: at.status_flags(&info)?,
        };
        let (clock, ahead) = reference.clock(offsets);
        let now = task::clock(clock) + ahead;
        // A periodic timer that has expired again since it was settled shows nothing left, and its period not yet
        // counted; a disarmed one shows no ticks, since disarming forgets them.
        let expired_again = left == 0 && interval > 0 && ticks > 0;
        if expired_again && attempts > 0 {
            continue;
        }
        if expired_again {
            (captured.ticks, captured.deadline) = (ticks - 1, Some(now));
        } else if left > 0 {
            captured.deadline = Some(now.saturating_add_unsigned(left));
        }
        return Ok(captured);
    }
}

/// `(seconds, nanoseconds)`.
fn parse_time(text: &str) -> Option<u64> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let seconds = seconds.trim().parse::<u64>().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds.trim().parse::<u64>().ok()?)
}

pub(super) fn build(object: &TimerFd, offsets: ClockOffsets) -> Result<OwnedFd> {
    let fd = sys::timer_create(object.clock).attempt(|| format!("make a timer of clock {}", object.clock))?;
    let set = |flags, value, interval| {
        sys::timer_set(fd.as_fd(), flags, value, interval).attempt(|| "set a timer".to_owned())
    };
    let add_ticks = |ticks| match ticks {
        // Zero cannot be set, and is what setting a timer leaves.
        0 => Ok(()),
        _ => sys::timer_set_ticks(fd.as_fd(), ticks)
            .attempt(|| format!("make a timer have expired {ticks} times")),
    };
    let Some(deadline) = object.deadline else {
        set(0, 0, object.interval)?;
        add_ticks(object.ticks)?;
        object.flags.restore(fd.as_fd())?;
        return Ok(fd);
    };
    let (clock, ahead) = object.reference.clock(offsets);
    let deadline = deadline.saturating_sub(ahead);
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        let now = task::clock(clock);
        // Expirations of a periodic timer since it was captured are counted here: the kernel forgets them when the
        // number of ticks is set.
        let late = u64::try_from(now.saturating_sub(deadline)).ok();
        let missed = late.and_then(|late| late.checked_div(object.interval)).map_or(0, |periods| periods + 1);
        let ticks = object.ticks.saturating_add(missed);
        let next = deadline.saturating_add_unsigned(missed.saturating_mul(object.interval));
        let relative = object.reference == Reference::Monotonic && object.clock != libc::CLOCK_MONOTONIC;
        if relative {
            // A deadline of zero would disarm it.
            set(0, next.saturating_sub(now).max(1).unsigned_abs(), object.interval)?;
        } else {
            let cancel = if object.cancel_on_set { libc::TFD_TIMER_CANCEL_ON_SET } else { 0 };
            set(libc::TFD_TIMER_ABSTIME | cancel, next.max(1).unsigned_abs(), object.interval)?;
        }
        add_ticks(ticks)?;
        // Had it expired between the two calls, the second would have forgotten it.
        if ticks == 0 || task::clock(clock) < next || attempts == 0 {
            object.flags.restore(fd.as_fd())?;
            return Ok(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_and_overflow_is_refused() {
        assert_eq!(parse_time("(1, 500000000)"), Some(1_500_000_000));
        assert_eq!(parse_time("(18446744073709551615, 0)"), None);
        assert_eq!(parse_time("1, 2"), None);
    }

    #[test]
    fn a_relative_timer_of_the_time_of_day_does_not_follow_it() {
        assert_eq!(Reference::of(libc::CLOCK_REALTIME, false), Reference::Monotonic);
        assert_eq!(Reference::of(libc::CLOCK_REALTIME, true), Reference::Wall);
        assert_eq!(Reference::of(libc::CLOCK_MONOTONIC, true), Reference::Monotonic);
    }
}
