//! `cargo xtask bench hotpatch`: a security fix of Debian's Redis, applied and reverted under `redis-benchmark`. The measurement
//! is the test `redis_is_patched_and_reverted_a_hundred_times_under_load`, which says its figures.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bench::write_section;
use crate::root;

const TEST: &str = "redis_is_patched_and_reverted_a_hundred_times_under_load";
/// What the test puts before its figures.
const MARK: &str = "figures: ";

#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    cycles: u64,
    functions: u64,
    /// Under cycles over without.
    throughput_ratio: f64,
    p99_ms: f64,
    p99_plain_ms: f64,
    longest_hold_us: u64,
    apply_us_median: u64,
    apply_us_max: u64,
    build_ms: u64,
}

pub fn run(json: bool) -> Result<bool> {
    let output = Command::new("cargo")
        .args([
            "test",
            "--release",
            "--package",
            "outlive-hotpatch",
            "--test",
            "programs",
            "--",
            "--ignored",
            TEST,
        ])
        .current_dir(root()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprint!("{text}");
        bail!("{TEST} failed");
    }
    let line = text.lines().find_map(|line| line.split_once(MARK)).context("the test said no figures")?.1;
    let figures: Figures = serde_json::from_str(line).context("cannot read the figures")?;
    write_section("hotpatch", &section(&figures)?)?;
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(true)
}

fn section(figures: &Figures) -> Result<String> {
    let mut text = String::from(
        "## Hot patching\n\n`cargo xtask bench hotpatch`: Redis from Debian's source, recorded without its last security fix; a patch with \
         the fix is applied and reverted under `redis-benchmark` with 20 connections, beside the same load without.\n\n\
         | figure | value |\n|---|---|\n",
    );
    writeln!(text, "| cycles of apply and revert during the load | {} |", figures.cycles)?;
    writeln!(text, "| entries switched by the patch | {} |", figures.functions)?;
    writeln!(text, "| throughput, with cycles over without | {:.2} |", figures.throughput_ratio)?;
    writeln!(text, "| p99 latency, with and without | {} / {} ms |", figures.p99_ms, figures.p99_plain_ms)?;
    writeln!(text, "| longest time a thread was held | {} µs |", figures.longest_hold_us)?;
    writeln!(text, "| an apply, median / max | {} / {} µs |", figures.apply_us_median, figures.apply_us_max)?;
    writeln!(text, "| building the patch, beyond the rebuild | {} ms |", figures.build_ms)?;
    Ok(text)
}
