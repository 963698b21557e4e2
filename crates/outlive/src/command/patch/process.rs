//! `outlive patch check`, `apply` and `revert`.

use std::fs;
use std::path::{Path, PathBuf};

use outlive_hotpatch::keys;
use outlive_hotpatch::patch::{self, Signed};
use outlive_hotpatch::running::Report;
use serde_json::{Value, json};

use super::ForUser;
use super::show::print;
use super::target::{self, Target};
use crate::cli::{AllOrLast, PatchAndProcess, Process};
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

/// The processes that a patch is for: the one that is named, or those of a workload that run what it changes.
fn fitting<'a>(args: &'a PatchAndProcess, signed: &Signed) -> Result<Vec<Target<'a>>> {
    let mut targets = target::open(&args.process.whom())?;
    if args.together {
        targets.iter_mut().for_each(|target| target.patcher.switch_together());
    }
    let Some(name) = &args.process.workload else { return Ok(targets) };
    let mut fits = Vec::new();
    for target in targets.drain(..) {
        if target.patcher.has_module_of(&signed.patch).for_user()? {
            fits.push(target);
        }
    }
    if fits.is_empty() {
        return Err(Failure::refused(format!("no process of {name} runs what {} is for", signed.patch.name)));
    }
    Ok(fits)
}

pub fn check(args: &PatchAndProcess) -> Result<()> {
    let signed = read(&args.file, &args.trust)?;
    let mut all = Vec::new();
    for Target { pid, patcher } in fitting(args, &signed)? {
        let notes = patcher.check(&signed).for_user()?;
        if !args.process.json {
            for note in &notes {
                say!("note: {note}");
            }
            say!("{} can be applied to process {pid}", signed.patch.name);
        }
        all.push(json!({ "pid": pid, "fits": true, "notes": notes }));
    }
    print_json(&args.process, all)
}

pub fn apply(args: &PatchAndProcess) -> Result<()> {
    let signed = read(&args.file, &args.trust)?;
    let mut all = Vec::new();
    for Target { pid, mut patcher } in fitting(args, &signed)? {
        let report =
            patcher.apply(&signed).for_user().map_err(|failure| also_done(failure, "applied to", &all))?;
        all.push(said(
            &report,
            pid,
            args.process.json,
            &format!("{} is applied to process {pid}", signed.patch.name),
        )?);
    }
    committed(&args.process, &mut all);
    print_json(&args.process, all)
}

pub fn revert(args: &AllOrLast) -> Result<()> {
    let mut all = Vec::new();
    let mut targets = target::open(&args.process.whom())?;
    if let Some(name) = &args.process.workload {
        let mut patched = Vec::new();
        for target in targets.drain(..) {
            if !target.patcher.list().for_user()?.is_empty() {
                patched.push(target);
            }
        }
        targets = patched;
        if targets.is_empty() {
            return Err(Failure::refused(format!("no process of {name} has a patch")));
        }
    }
    for Target { pid, mut patcher } in targets {
        let report =
            patcher.revert(args.all).for_user().map_err(|failure| also_done(failure, "reverted in", &all))?;
        all.push(said(&report, pid, args.process.json, &format!("process {pid} is reverted"))?);
    }
    committed(&args.process, &mut all);
    print_json(&args.process, all)
}

/// What was done to a workload is waited for until it would survive a failover; if that is not known, it is said.
fn committed(args: &Process, all: &mut [Value]) {
    // It is done, whatever becomes of the question.
    let why = match target::await_commit(&args.whom()) {
        Ok(None) => return,
        Ok(Some(why)) => why.to_owned(),
        Err(failure) => format!("it is not known whether the backup has it ({})", failure.message),
    };
    let note = format!("{why}: a failover now would undo it");
    if !args.json {
        say!("note: {note}");
    }
    for value in all {
        if let Some(warnings) = value["warnings"].as_array_mut() {
            warnings.push(note.clone().into());
        }
    }
}

/// Of several processes some have been changed before one failed.
fn also_done(failure: Failure, what: &str, done: &[Value]) -> Failure {
    if done.is_empty() {
        return failure;
    }
    let pids: Vec<String> = done.iter().map(|value| value["pid"].to_string()).collect();
    Failure { message: format!("{} (it is {what} {})", failure.message, pids.join(", ")), ..failure }
}

/// One object for one process, a list of them for those of a workload.
fn print_json(args: &Process, mut all: Vec<Value>) -> Result<()> {
    if !args.json {
        return Ok(());
    }
    match &args.workload {
        Some(name) => print(&json!({ "workload": name, "processes": all })),
        None => print(&all.pop().unwrap_or_default()),
    }
}

fn said(report: &Report, pid: i32, json: bool, done: &str) -> Result<Value> {
    let mut value = serde_json::to_value(report).or_failed(|| "write the report".to_owned())?;
    value["pid"] = pid.into();
    if json {
        return Ok(value);
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
    Ok(value)
}
