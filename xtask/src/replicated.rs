//! `cargo xtask bench replicated`: what `#[replicated]` costs, beside bare TCP, Redis with `WAIT 1 0`, etcd and openraft.
//!
//! The measuring program is an example of the library, so that nothing of it is built for the figures alone. What is agreed
//! on by Raft is measured by a program outside of the workspace (`benches/raft`), whose dependencies nobody else needs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use outlive_lab::Lab;
use serde::{Deserialize, Serialize};

use crate::bench::write_section;
use crate::{root, setup};

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

/// Updates a second with 1, 16 and 256 clients, by what `benches/raft` measures.
#[derive(Debug, Serialize)]
struct Raft {
    etcd_per_second: [f64; 3],
    openraft_per_second: [f64; 3],
}

/// All that `--json` prints.
#[derive(Serialize)]
struct All {
    /// Over loopback.
    #[serde(flatten)]
    figures: Figures,
    lab: Figures,
    #[serde(flatten)]
    raft: Raft,
}

/// Builds the comparators: where its program is.
fn build_raft() -> Result<PathBuf> {
    setup::install(&[("etcd", "etcd-server")])?;
    let root = root()?;
    let target = root.join("target/bench-raft");
    let built = Command::new("cargo")
        .args(["build", "--release", "--manifest-path"])
        .arg(root.join("benches/raft/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .context("cannot run cargo")?;
    if !built.success() {
        bail!("benches/raft cannot be built");
    }
    Ok(target.join("release/outlive-bench-raft"))
}

/// Measures the comparators, one after the other.
fn measure_raft(program: &Path) -> Result<Raft> {
    let rates = |what: &str| {
        let output = Command::new(program)
            .arg(what)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot measure {what}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("the measurement of {what} failed: {text}");
        }
        let line = text.lines().last().with_context(|| format!("{what} has no figures"))?;
        serde_json::from_str(line).with_context(|| format!("cannot read the figures of {what}"))
    };
    Ok(Raft { etcd_per_second: rates("etcd")?, openraft_per_second: rates("openraft")? })
}

/// Builds the measuring program: where it is.
fn build_measure() -> Result<PathBuf> {
    let package = ["build", "--release", "--package", "outlive-replicated", "--features", "testing"];
    let built = Command::new("cargo")
        .args(package)
        .args(["--example", "measure"])
        .current_dir(root()?)
        .status()
        .context("cannot run cargo")?;
    if !built.success() {
        bail!("the measuring program cannot be built");
    }
    Ok(root()?.join("target/release/examples/measure"))
}

fn figures_of(output: &Output) -> Result<Figures> {
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("the measurement failed: {text}");
    }
    let line = text.lines().last().context("the measurement said no figures")?;
    serde_json::from_str(line).context("cannot read the figures")
}

/// Over loopback.
fn measure(program: &Path) -> Result<Figures> {
    let output = Command::new(program).stderr(Stdio::inherit()).output();
    figures_of(&output.context("cannot run the measuring program")?)
}

/// Between two hosts of a lab, with a switch between them. A process of the second holds its network namespace open.
fn measure_in_lab(program: &Path) -> Result<Figures> {
    let lab = Lab::new("bench")?;
    let (here, there) = (lab.host("a")?, lab.host("b")?);
    let holds = there.spawn(["sleep", "infinity"])?;
    let namespace = format!("/proc/{}/ns/net", holds.pid());
    let output = here.netns()?.run(|| {
        Command::new(program)
            .args(["over", &here.address().to_string(), &there.address().to_string(), &namespace])
            .stderr(Stdio::inherit())
            .output()
    });
    figures_of(&output.context("cannot run the measuring program in the lab")?)
}

pub fn run(json: bool) -> Result<bool> {
    // First: what cannot be built or installed is said before anything is measured, not after.
    let raft = build_raft()?;
    let program = build_measure()?;
    let figures = measure(&program)?;
    let lab = measure_in_lab(&program)?;
    let raft = measure_raft(&raft)?;
    write_section("replicated", &section(&figures, &lab, &raft)?)?;
    if json {
        println!("{}", serde_json::to_string(&All { figures, lab, raft })?);
    }
    Ok(true)
}

/// One row of the table, over loopback and over the lab.
fn row(text: &mut String, what: &str, of: [&Figures; 2], show: impl Fn(&Figures) -> String) -> Result<()> {
    writeln!(text, "| {what} | {} | {} |", show(of[0]), show(of[1]))?;
    Ok(())
}

fn section(figures: &Figures, lab: &Figures, raft: &Raft) -> Result<String> {
    let mut text = String::from(
        "## Replicated state\n\n`cargo xtask bench replicated`: a primary and its backup, two processes with mutual TLS, over loopback and over two \
         hosts of a lab, network namespaces with a bridge each and a switch between them; \
         commits are of one changed number, each thread's acknowledged before its next. Redis: `SET` and `WAIT 1 0` in one \
         request, one connection for each client, one replica. etcd: three members of Debian's `etcd-server` with their files in \
         memory, `Put` over gRPC to the fastest member, one connection for each client. openraft: three members with an in-memory store, \
         three processes, plain TCP, clients within the leader's. A commit is a call within the program, so is a write of openraft; an \
         update of Redis or etcd is a request to another: that is how either is used. Both agree by a majority of three; of a primary and its \
         backup either holds all, and seed nodes decide who goes on. etcd and openraft over loopback.\n\n\
         | figure | loopback | two lab hosts |\n|---|---|---|\n",
    );
    let of = [figures, lab];
    let objects = figures.takeover_objects;
    row(
        &mut text,
        "a write of one field, with its guard, of a value that its transaction has written to (median of means of 1,000)",
        of,
        |of| format!("{:.1} ns", of.tracked_write_ns),
    )?;
    row(
        &mut text,
        "the first write to a value in a transaction, found by a `Ref`, with its part of the commit (256 of them)",
        of,
        |of| format!("{:.1} ns", of.first_write_ns),
    )?;
    row(&mut text, "a lone commit, p50", of, |of| format!("{:.1} µs", of.commit_us_p50))?;
    row(&mut text, "a bare TCP request and reply of 64 bytes, p50", of, |of| {
        format!("{:.1} µs", of.bare_tcp_us_p50)
    })?;
    row(&mut text, "the first over the second", of, |of| {
        format!("{:.2}", of.commit_us_p50 / of.bare_tcp_us_p50)
    })?;
    row(
        &mut text,
        "updates a second from one thread, 100 different numbers to a commit, 1,000 commits on their way",
        of,
        |of| format!("{:.0}", of.batched_updates_per_second),
    )?;
    row(&mut text, "bytes sent by TCP for one changed u64, of 1,000 in a commit", of, |of| {
        format!("{:.1}", of.bytes_per_u64_batched)
    })?;
    row(&mut text, "bytes sent by TCP for one changed u64, alone in its commit", of, |of| {
        format!("{:.1}", of.bytes_per_u64_alone)
    })?;
    row(&mut text, &format!("takeover with {objects} objects: noticed to granted"), of, |of| {
        format!("{} µs", of.takeover_granted_us)
    })?;
    row(&mut text, "granted to ready", of, |of| format!("{} µs", of.takeover_ready_us))?;
    row(&mut text, "from the kill until the new primary's first word", of, |of| {
        format!("{:.1} ms", of.takeover_from_kill_us as f64 / 1000.0)
    })?;
    text += "\n| clients | commits a second | Redis `WAIT 1 0` | etcd | openraft | ratio to Redis | to etcd | to openraft |\n\
             |---|---|---|---|---|---|---|---|\n";
    for (place, clients) in [1, 16, 256].into_iter().enumerate() {
        let ours = figures.commits_per_second[place];
        let (redis, etcd) = (figures.redis_wait_per_second[place], raft.etcd_per_second[place]);
        let openraft = raft.openraft_per_second[place];
        writeln!(
            text,
            "| {clients} | {ours:.0} | {redis:.0} | {etcd:.0} | {openraft:.0} | {:.2} | {:.2} | {:.2} |",
            ours / redis,
            ours / etcd,
            ours / openraft
        )?;
    }
    text += "\n| clients, over two lab hosts | commits a second | Redis `WAIT 1 0` | ratio |\n|---|---|---|---|\n";
    for (place, clients) in [1, 16, 256].into_iter().enumerate() {
        let (ours, redis) = (lab.commits_per_second[place], lab.redis_wait_per_second[place]);
        writeln!(text, "| {clients} | {ours:.0} | {redis:.0} | {:.2} |", ours / redis)?;
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
        let figures: Figures = serde_json::from_str(line).unwrap();
        let raft = Raft { etcd_per_second: [1.0; 3], openraft_per_second: [12.0; 3] };
        let lab: Figures = serde_json::from_str(&line.replace("[2, 4, 6]", "[2, 4, 9]")).unwrap();
        let section = section(&figures, &lab, &raft).unwrap();
        let last = "| 256 | 6 | 3 | 1 | 12 | 2.00 | 6.00 | 0.50 |";
        assert!(section.contains("| 1.50 | 1.50 |") && section.contains(last), "{section}");
        assert!(section.contains("| 256 | 9 | 3 | 3.00 |"), "{section}");
        let all: serde_json::Value = serde_json::to_value(All { figures, lab, raft }).unwrap();
        assert_eq!((&all["openraft_per_second"][2], &all["takeover_objects"]), (&12.0.into(), &7.into()));
        assert_eq!(all["lab"]["commits_per_second"][2], 9.0);
    }
}
