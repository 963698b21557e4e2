//! `outlive completions` and `outlive man`: from the same definitions as the command line itself.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Context, Result};

pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outlive", &mut script);
    // A reader that has left is no error.
    let _ = io::stdout().write_all(&script);
    Ok(())
}

pub fn pages(out: &Path) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), out)
        .or_failed(|| format!("write manual pages to {}", out.display()))
}
