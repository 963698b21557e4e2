//! Steps of a commit at which a test may end the process.

/// A step of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has a number and has gone nowhere.
    Numbered,
    /// It has been given to the network, or will be with the next batch.
    Sent,
    /// It is acknowledged, and whoever committed does not know yet.
    Acknowledged,
}

#[cfg(not(feature = "testing"))]
#[inline]
pub(crate) fn point(_step: Step, _commit: u64) {}

#[cfg(feature = "testing")]
pub(crate) use crate::testing::point;
