//! What can go wrong in a lab, each with what was attempted.

use std::io;
use std::path::PathBuf;

/// The result of every operation on a lab.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("a lab makes network namespaces and so needs root (effective uid is {0}): run it with sudo")]
    NotRoot(u32),

    #[error("cannot {attempt}")]
    Io { attempt: String, source: io::Error },

    #[error("cannot run `ip` ({source}): install iproute2, or run `cargo xtask setup`")]
    NoIp { source: io::Error },

    #[error("`ip` refused to {attempt}: {stderr}")]
    Ip { attempt: String, stderr: String },

    #[error("host `{host}` is powered off; power it on before asking it to {attempt}")]
    PoweredOff { host: String, attempt: &'static str },

    #[error("host `{host}` is already powered on")]
    AlreadyOn { host: String },

    #[error("a lab's switch has {max} ports and all are taken; use a second lab")]
    NoPort { max: usize },

    #[error("the lab has given out all addresses of {subnet}; use a second lab")]
    NoAddress { subnet: &'static str },

    #[error("`{0}` cannot name a host: use 1 to 12 of a-z, 0-9 and `-`")]
    BadName(String),

    #[error("host `{0}` exists already in this lab")]
    Duplicate(String),

    #[error("init of host `{host}` failed to {step} ({source})")]
    Init { host: String, step: String, source: io::Error },

    #[error("cannot start `{program}` on host `{host}` ({source})")]
    Spawn { program: String, host: String, source: io::Error },

    #[error("`{program}` on host `{host}` did not end within {seconds} s and was killed")]
    Timeout { program: String, host: String, seconds: u64 },

    #[error("freezing needs a cgroup2 mount, and /proc/self/mountinfo lists none")]
    NoCgroup,

    #[error("the processes of host `{host}` were not all frozen after {seconds} s; `{path}` shows which")]
    NotFrozen { host: String, seconds: u64, path: PathBuf },

    #[error("`{pattern}` matches no process on host `{host}`")]
    NoMatch { pattern: String, host: String },

    #[error("{share} is not a share of frames between 0 and 1")]
    BadShare { share: f64 },
}

/// Adds to an `io::Error` what was attempted.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Io { attempt: what(), source })
    }
}

impl<T> Attempt<T> for nix::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| LabError::Io { attempt: what(), source: errno.into() })
    }
}
