//! `outlive patch …`: parses, resolves and calls the crate `hotpatch`.

/// A line on standard output. A reader that has left is no error.
macro_rules! say {
    ($($text:tt)*) => {
        crate::command::print(&format!($($text)*))
    };
}

mod build;
mod process;
mod show;
mod target;

use outlive_hotpatch::Error;

use crate::cli::Patch;
use crate::error::{Failure, Kind, Result, chain};

pub fn run(args: &Patch) -> Result<()> {
    match args {
        Patch::Key { out } => build::key(out),
        Patch::Record(args) => build::record(args),
        Patch::Build(args) => build::build(args),
        Patch::Check(args) => process::check(args),
        Patch::Apply(args) => process::apply(args),
        Patch::Revert(args) => process::revert(args),
        Patch::Ls(args) => show::list(args),
        Patch::Inspect(args) => show::inspect(args),
    }
}

/// What the crate says, with the exit code that the help promises.
fn failure(error: &Error) -> Failure {
    let kind = match error {
        Error::Refused(_) | Error::NotTrusted(_) | Error::Unfit(_) => Kind::Refused,
        Error::File { .. } | Error::Malformed { .. } | Error::Target { .. } => Kind::Failed,
    };
    Failure::new(kind, chain(error))
}

/// Turns an error of the crate into one for the user.
trait ForUser<T> {
    fn for_user(self) -> Result<T>;
}

impl<T> ForUser<T> for outlive_hotpatch::Result<T> {
    fn for_user(self) -> Result<T> {
        self.map_err(|error| failure(&error))
    }
}
