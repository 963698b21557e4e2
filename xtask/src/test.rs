//! Everything that must hold before a change lands, in the order in which it fails fastest.

use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, cargo, succeed};
use crate::{root, supported, tidy};

pub fn run() -> Result<()> {
    let root = root()?;
    let cargo = |words: &[&str]| {
        eprintln!("test: cargo {}", words.join(" "));
        succeed(Command::new(cargo()).args(words).current_dir(&root))
    };
    setup::prepare()?;
    cargo(&["fmt", "--all", "--check"]).context("the sources are not formatted; run `cargo fmt --all`")?;
    tidy::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    cargo(&["test", "--workspace"])?;
    // Each section in a process of its own: hundreds of workloads one after the other in one become slow.
    for section in supported::sections(&root)? {
        let filter = format!("{section}/");
        cargo(&[
            "test",
            "--quiet",
            "--package",
            "outlive-process",
            "--test",
            "objects",
            "--",
            "--quiet",
            &filter,
        ])?;
    }
    println!("test: formatting, tidy, clippy and all tests of the workspace passed");
    Ok(())
}
