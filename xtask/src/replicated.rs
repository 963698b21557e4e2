//! `cargo xtask bench replicated`: what `#[replicated]` costs, beside bare TCP and Redis with `WAIT 1 0`.
//!
//! The measuring program is an example of the library, so that nothing of it is built for the figures alone.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::bench::write_section;
use crate::root;

/// What the example prints as its last line.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    tracked_write_ns: f64,
    first_write_ns: f64,
    commit_us_p50: f64,
    bare_tcp_us_p50: f64,
    /// With 1, 16 and 256 threads.
    commits_per_second: [f64; 3],
    redis_wait_per_second: [f64; 3],
    batched_updates_per_second: f64,
    bytes_per_u64_batched: f64,
    bytes_per_u64_alone: f64,
    takeover_objects: u64,
    takeover_granted_us: u64,
    takeover_ready_us: u64,
    takeover_from_kill_us: u64,
}

pub fn run(json: bool) -> Result<bool> {
    let package = ["run", "--release", "--package", "outlive-replicated", "--features", "testing"];
    let output = Command::new("cargo")
        .args(package)
        .args(["--example", "measure"])
        .current_dir(root()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the measurement failed: {text}");
    }
    let line = text.lines().last().context("the measurement said no figures")?;
    let figures: Figures = serde_json::from_str(line).context("cannot read the figures")?;
    write_section("replicated", &section(&figures)?)?;
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(true)
}

fn section(figures: &Figures) -> Result<String> {
    let mut text = String::from(
        "## Replicated state\n\n`cargo xtask bench replicated`: a primary and its backup, two processes over loopback with mutual TLS; \
         commits are of one changed number, each thread's acknowledged before its next. Redis: `SET` and `WAIT 1 0` in one \
         request, one connection for each client, one replica. A commit is a call within the program, an update of Redis a \
         request to another: that is how either is used.\n\n| figure | value |\n|---|---|\n",
    );
    let ratio = figures.commit_us_p50 / figures.bare_tcp_us_p50;
    writeln!(
        text,
        "| a write of one field, with its guard, of a value that its transaction has written to (median of means of 1,000) | {:.1} ns |",
        figures.tracked_write_ns
    )?;
    writeln!(
        text,
        "| the first write to a value in a transaction, found by a `Ref`, with its part of the commit (256 of them) | {:.1} ns |",
        figures.first_write_ns
    )?;
    writeln!(text, "| a lone commit, p50 | {:.1} µs |", figures.commit_us_p50)?;
    writeln!(text, "| a bare TCP request and reply of 64 bytes, p50 | {:.1} µs |", figures.bare_tcp_us_p50)?;
    writeln!(text, "| the first over the second | {ratio:.2} |")?;
    let updates = figures.batched_updates_per_second;
    writeln!(
        text,
        "| updates a second from one thread, 100 different numbers to a commit, 1,000 commits on their way | {updates:.0} |"
    )?;
    writeln!(
        text,
        "| bytes sent by TCP for one changed u64, of 1,000 in a commit | {:.1} |",
        figures.bytes_per_u64_batched
    )?;
    writeln!(
        text,
        "| bytes sent by TCP for one changed u64, alone in its commit | {:.1} |",
        figures.bytes_per_u64_alone
    )?;
    let Figures { takeover_objects, takeover_granted_us, takeover_ready_us, takeover_from_kill_us, .. } =
        figures;
    writeln!(
        text,
        "| takeover with {takeover_objects} objects: noticed to granted | {takeover_granted_us} µs |"
    )?;
    writeln!(text, "| granted to ready | {takeover_ready_us} µs |")?;
    writeln!(
        text,
        "| from the kill until the new primary's first word | {:.1} ms |",
        *takeover_from_kill_us as f64 / 1000.0
    )?;
    text += "\n| clients | commits a second | Redis `WAIT 1 0` | ratio |\n|---|---|---|---|\n";
    let rates = figures.commits_per_second.iter().zip(figures.redis_wait_per_second);
    for (clients, (ours, theirs)) in [1, 16, 256].into_iter().zip(rates) {
        writeln!(text, "| {clients} | {ours:.0} | {theirs:.0} | {:.2} |", ours / theirs)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_figures_is_read_and_shown() {
        let line = r#"{"tracked_write_ns":57.44,"first_write_ns":99.1,"commit_us_p50":12.0,"bare_tcp_us_p50":8.0,"commits_per_second":[2, 4, 6],
            "redis_wait_per_second":[1, 2, 3],"batched_updates_per_second":5,"bytes_per_u64_batched":6.2,
            "bytes_per_u64_alone":56.2,"takeover_objects":7,"takeover_granted_us":8,"takeover_ready_us":4,
            "takeover_from_kill_us":105734}"#;
        let section = section(&serde_json::from_str(line).unwrap()).unwrap();
        assert!(section.contains("| 1.50 |") && section.contains("| 256 | 6 | 3 | 2.00 |"), "{section}");
    }
}
