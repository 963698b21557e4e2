//! What the user is told when something cannot be done: one line with a next step, and an exit code.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a command ended, for scripts. Documented in `outlive --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was tried and did not work.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was tried.
    Usage = 2,
    /// The agent (of this node or of another that is needed) cannot be reached.
    Unreachable = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// It may not be had as things are: the name is taken, the address is in use, a workload is alive.
    Refused = 5,
}

/// An error as it reaches the user. Travels from the agent to the command line as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Failure {
    /// On one line, whatever went into it: a verifier's log or a path may hold line breaks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, line) in self.message.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            if place > 0 {
                f.write_str(" ")?;
            }
            f.write_str(line)?;
        }
        Ok(())
    }
}

impl Error for Failure {}

/// An error and what caused it, in one line. Sources say what their error does not.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors say the same twice.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Says what was attempted when an error of a library becomes one for the user.
pub trait Context<T> {
    fn or_failed(self, attempted: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Error> Context<T> for std::result::Result<T, E> {
    fn or_failed(self, attempted: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::failed(format!("cannot {}: {}", attempted(), chain(&error))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::failed("the kernel refused it:\n  0: R7 !read_ok\n\nreboot");
        assert_eq!(failure.to_string(), "the kernel refused it: 0: R7 !read_ok reboot");
    }

    #[test]
    fn causes_are_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot load it")]
        struct Outer(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error(transparent)]
        struct Transparent(#[from] Outer);
        let error = Transparent(Outer(std::io::Error::other("the disk is gone")));
        assert_eq!(chain(&error), "cannot load it: the disk is gone");
    }
}
