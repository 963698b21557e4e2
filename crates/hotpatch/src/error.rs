//! What can go wrong, by what was attempted.

use std::io;
use std::path::{Path, PathBuf};

use crate::refusal::Refusal;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempted} {}", path.display())]
    File {
        attempted: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{what} makes no sense: {why}")]
    Malformed { what: String, why: String },
    /// The patch would not be safe. Every reason is in the list.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// The patch file is not one of ours, not whole, or not signed by a trusted key.
    #[error("the patch file {0}")]
    NotTrusted(String),
    /// The process or what is in it does not allow it; nothing was changed.
    #[error("{0}")]
    Unfit(String),
    /// A call on the target failed.
    #[error("cannot {attempted}")]
    Target {
        attempted: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }

    pub fn unfit(why: impl Into<String>) -> Self {
        Self::Unfit(why.into())
    }

    /// Says as well what became of what had begun.
    pub(crate) fn with(self, outcome: &str) -> Self {
        match self {
            error if outcome.is_empty() => error,
            Self::Target { attempted, source } => {
                Self::Target { attempted: format!("{attempted} ({outcome})"), source }
            }
            error => Self::Unfit(format!("{error}; {outcome}")),
        }
    }
}

fn list(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    format!("the change cannot be patched: {}", lines.join("; "))
}

/// Says which file an operation was about.
pub(crate) trait FileContext<T> {
    fn or_file(self, attempted: &'static str, path: &Path) -> Result<T>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn or_file(self, attempted: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { attempted, path: path.to_owned(), source })
    }
}

/// Says what was attempted on the target.
pub(crate) trait TargetContext<T> {
    fn or_target(self, attempted: impl FnOnce() -> String) -> Result<T>;
}

impl<T> TargetContext<T> for io::Result<T> {
    fn or_target(self, attempted: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Target { attempted: attempted(), source })
    }
}
