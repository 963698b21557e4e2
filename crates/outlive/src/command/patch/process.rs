//! `outlive patch check`, `apply` and `revert`.

use std::fs;
use std::path::{Path, PathBuf};

use outlive_hotpatch::keys;
use outlive_hotpatch::patch::{self, Signed};
use outlive_hotpatch::running::{Patcher, Report};

use super::ForUser;
use crate::cli::{AllOrLast, PatchAndProcess};
use crate::error::{Context, Failure, Result};

/// Reads a patch that one of the trusted keys has signed.
pub fn read(path: &Path, trust: &[PathBuf]) -> Result<Signed> {
    let trusted = keys::trusted(trust).for_user()?;
    if trusted.is_empty() {
        return Err(Failure::refused(format!(
            "no key is trusted: name one with --trust, or put it into {}",
            keys::TRUSTED_FOLDER
        )));
    }
    let length = fs::metadata(path).or_failed(|| format!("read {}", path.display()))?.len();
    if length > patch::MAX_FILE as u64 {
        return Err(Failure::refused(format!("{} is too large for a patch", path.display())));
    }
    let file = fs::read(path).or_failed(|| format!("read {}", path.display()))?;
    patch::read(&file, &trusted).for_user()
}

pub fn check(args: &PatchAndProcess) -> Result<()> {
    let signed = read(&args.file, &args.trust)?;
    let pid = args.process.pid;
    let notes = Patcher::open(pid).for_user()?.check(&signed).for_user()?;
    if args.process.json {
        say!("{}", serde_json::json!({ "pid": pid, "fits": true, "notes": notes }));
        return Ok(());
    }
    for note in &notes {
        say!("note: {note}");
    }
    say!("{} can be applied to process {pid}", signed.patch.name);
    Ok(())
}

pub fn apply(args: &PatchAndProcess) -> Result<()> {
    let signed = read(&args.file, &args.trust)?;
    let pid = args.process.pid;
    let report = Patcher::open(pid).for_user()?.apply(&signed).for_user()?;
    say(&report, args.process.json, &format!("{} is applied to process {pid}", signed.patch.name))
}

pub fn revert(args: &AllOrLast) -> Result<()> {
    let pid = args.process.pid;
    let report = Patcher::open(pid).for_user()?.revert(args.all).for_user()?;
    say(&report, args.process.json, &format!("process {pid} is reverted"))
}

fn say(report: &Report, json: bool, done: &str) -> Result<()> {
    if json {
        let text = serde_json::to_string(report).or_failed(|| "write the report".to_owned())?;
        say!("{text}");
        return Ok(());
    }
    for line in &report.settled {
        say!("note: {line}");
    }
    for line in &report.warnings {
        say!("note: {line}");
    }
    say!(
        "{done}: {} functions, {} bytes, {} µs, longest hold of a thread {} µs",
        report.functions,
        report.bytes,
        report.took_us,
        report.longest_hold_us
    );
    Ok(())
}
