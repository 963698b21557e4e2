//! What a person or a machine does with this repository: set up, demonstrate, test, measure, keep tidy.

mod bench;
mod demo;
mod failover;
mod guard;
mod hotpatch;
mod replicated;
mod setup;
mod supported;
mod test;
mod tidy;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, demonstrate, test and measure outlive")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing and build the release binary
    Setup,
    /// Kill the machine under a running service, again and again, and count what its clients notice
    Demo(demo::Arguments),
    /// Everything that must hold before a change lands
    Test,
    /// Run a program of tests, and end it if it hangs
    #[command(hide = true)]
    Guard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Measure, and write the figures to BENCHMARKS.md
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
    /// Write what the object programs say of themselves to docs/supported.md
    Supported,
    /// Check what the compiler does not: boundaries of crates, panics, unsafe, sizes, decisions
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup => setup::run().map(|()| true),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test => test::run().map(|()| true),
        Task::Guard { command } => guard::run(&command),
        Task::Bench { what } => bench::run(&what),
        Task::Supported => supported::run().map(|()| true),
        Task::Tidy => tidy::run().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent folder")?.to_owned())
}
