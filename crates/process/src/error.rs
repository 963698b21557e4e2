//! What can go wrong with a process tree, said with what was attempted and what to do.

use std::io;

use crate::checkpoint::Pid;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempt}: {source}")]
    System { attempt: String, source: io::Error },
    #[error("cannot start the workload: {0}")]
    Start(String),
    #[error("process {pid} uses {what}, which cannot be protected: {advice}")]
    Unsupported { pid: Pid, what: String, advice: &'static str },
    /// Nothing is lost by it: the same may be tried again when the workload has run on a little.
    #[error("{0}")]
    NotNow(Box<Error>),
    #[error("the workload could not be stopped within {0} ms; it runs on and is tried again")]
    NotStopped(u64),
    #[error("the checkpoint does not fit the copy it is for: {0}")]
    Mismatch(String),
    #[error("the workload's last process has ended with status {0}")]
    Ended(i32),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted when the system said no.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System { attempt: what(), source })
    }
}

impl<T> Attempt<T> for nix::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::System { attempt: what(), source: errno.into() })
    }
}
