//! Named steps of the protocol at which a test can make a process or its whole host die or stall.
//!
//! A step is declared once, in [`Point`], and marked where it is taken by [`point`]. Without the feature `faults`, which
//! only `[dev-dependencies]` switch on, that is an empty function: nothing of this is in a program that is installed.
//! [`ENABLED`] says which it is.
//!
//! What is to happen is read from the file that the environment variable [`CONTROL`] names: one line
//! `POINT NTH ACTION`, or `POINT NTH protected ACTION` if the step counts only while the process is one side of a protected
//! pair, as far as it knows ([`protected`]). When the process takes that step for the `NTH` time since it saw the line,
//! it *claims* the file by renaming it, with `.hit` appended, and acts:
//!
//! | action | what happens |
//! |---|---|
//! | `kill` | SIGKILL for this process |
//! | `stop` | SIGSTOP for this process; whoever wrote the file lets it go on |
//! | `hang` | this thread stands still for good; the others of the process go on |
//! | `freeze GROUP` | every process of the control group in that folder stands still, before another instruction of any; whoever wrote the file thaws or kills them. This is how a host dies at a step: frozen first, then cut off, then killed |
//!
//! Of several processes that share a file one claims it. A file appears whole by being renamed into place.

mod points;

pub use points::Point;

/// Whether this program was built with fault points.
pub const ENABLED: bool = cfg!(feature = "faults");

/// The environment variable with the path of the control file. Supervisors have it from their agent.
pub const CONTROL: &str = "OUTLIVE_FAULTS";

/// What is appended to the control file's name when a step claims it.
pub const HIT: &str = ".hit";

/// The step `point` is being taken.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_: Point) {}

/// This process is one side of a protected pair from here on, or is not any more.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn protected(_: bool) {}

#[cfg(feature = "faults")]
pub use armed::{point, protected};

#[cfg(feature = "faults")]
mod armed;
