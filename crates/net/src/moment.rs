//! The clock that decides about frames.

use std::ops::Add;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A point in time of this host: nanoseconds of `CLOCK_BOOTTIME`.
///
/// Not [`std::time::Instant`], because its `CLOCK_MONOTONIC` stands still while the machine is suspended
/// (clock_gettime(2)): a primary that wakes after a long sleep must find its last acknowledgement old, or it
/// would speak beside its successor (R2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub fn now() -> Moment {
        // CLOCK_BOOTTIME exists since Linux 2.6.39 and reading it has no other way to fail. Time zero makes
        // every acknowledgement look old, which keeps frames in: the safe side.
        let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return Moment(0) };
        Moment(Duration::from(time).as_nanos() as u64)
    }

    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; nothing if it lies ahead (two threads may read the clock in any order).
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_forward_and_never_underflows() {
        let first = Moment::now();
        let second = Moment::now();
        assert!(second >= first && first.as_nanos() > 0);
        assert_eq!(Moment::from_nanos(5).since(Moment::from_nanos(9)), Duration::ZERO);
        assert_eq!((Moment::from_nanos(5) + Duration::MAX).as_nanos(), u64::MAX);
    }
}
