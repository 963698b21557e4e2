//! Everything that must hold before a change lands, in the order in which it fails fastest.

use std::env;

use anyhow::{Context, Result};

use crate::setup::{self, cargo, succeed};
use crate::{root, supported, tidy};

pub fn run() -> Result<()> {
    let root = root()?;
    let this = env::current_exe().context("cannot find this program")?;
    // Of the only architecture that there is (docs/supported.md).
    let guard = format!("target.x86_64-unknown-linux-gnu.runner=[{this:?}, \"guard\"]");
    let run = |words: &[&str]| {
        eprintln!("test: cargo {}", words.join(" "));
        succeed(cargo().args(["--config", &guard]).args(words).current_dir(&root))
    };
    setup::prepare()?;
    run(&["fmt", "--all", "--check"]).context("the sources are not formatted; run `cargo fmt --all`")?;
    tidy::run()?;
    run(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    run(&["test", "--workspace"])?;
    // Each section in a process of its own: hundreds of workloads one after the other in one become slow.
    for section in supported::sections(&root)? {
        let filter = format!("{section}/");
        run(&[
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
