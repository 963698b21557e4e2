//! `outlive patch ls` and `inspect`: what is in a patch, and what is in a process.

use outlive_hotpatch::patch::{Patch, PieceKind, hex};
use outlive_hotpatch::running::{Region, State};
use serde_json::{Value, json};

use super::ForUser;
use super::build::Times;
use super::process::read;
use super::target::{self, Target};
use crate::cli::{InspectPatch, Process, Whom};
use crate::error::{Context, Result};

/// What was built, or is in a file.
pub fn patch(patch: &Patch, as_json: bool, times: Option<Times>) -> Result<()> {
    if as_json {
        let mut value = patch_value(patch);
        if let Some(times) = times {
            value["times"] = json!(times);
        }
        return print(&value);
    }
    let kind = match (patch.is_cumulative, patch.is_together) {
        (false, false) => "",
        (true, false) => " (cumulative)",
        (false, true) => " (its functions switch together)",
        (true, true) => " (cumulative, its functions switch together)",
    };
    say!("patch {}{kind}", patch.name);
    for part in &patch.parts {
        say!("{} (Build-ID {})", part.program, part.build_id_text());
        let bytes: u64 = part.pieces.iter().map(outlive_hotpatch::patch::Piece::len).sum();
        say!("  {} entries are switched, {bytes} bytes", part.switches.len());
        for piece in part.pieces.iter().filter(|piece| piece.kind == PieceKind::Code) {
            say!("  {} ({}): {}", piece.name, piece.unit, piece.reason);
        }
    }
    for refusal in &patch.allowed {
        say!("allowed: {refusal}");
    }
    for warning in &patch.warnings {
        say!("warning: {warning}");
    }
    if let Some(times) = times {
        say!("rebuilt in {} ms, and the patch made in {} ms more", times.rebuild_ms, times.patch_ms);
    }
    Ok(())
}

fn patch_value(patch: &Patch) -> Value {
    let parts = patch.parts.iter().map(|part| {
        let functions = part.pieces.iter().filter(|piece| piece.kind == PieceKind::Code);
        let functions =
            functions.map(|piece| json!({ "name": piece.name, "unit": piece.unit, "reason": piece.reason }));
        json!({
            "program": part.program,
            "build_id": part.build_id_text(),
            "functions": functions.collect::<Vec<_>>(),
            "switched": part.switches.iter().map(|switch| switch.name.as_str()).collect::<Vec<_>>(),
            "bytes": part.pieces.iter().map(outlive_hotpatch::patch::Piece::len).sum::<u64>(),
        })
    });
    json!({
        "name": patch.name,
        "built": patch.built,
        "cumulative": patch.is_cumulative,
        "together": patch.is_together,
        "parts": parts.collect::<Vec<_>>(),
        "allowed": patch.allowed,
        "warnings": patch.warnings,
        "diff": patch.diff,
    })
}

pub fn list(args: &Process) -> Result<()> {
    show(&args.whom(), args.json, |pid, regions| {
        let of = if args.workload.is_some() { format!("{pid}: ") } else { String::new() };
        for region in regions {
            let notes = &region.notes;
            let replaced = is_replaced(region, regions);
            let state = if replaced { "replaced" } else { region.state.word() };
            say!("{of}{} {} {} ({} functions)", region.order, notes.name, state, notes.switched.len());
        }
        if regions.is_empty() {
            say!("process {pid} has no patch");
        }
    })
}

/// What each process has: said, or as JSON: of one process its patches, of a workload those of all its processes.
fn show(whom: &Whom<'_>, as_json: bool, mut say: impl FnMut(i32, &[Region])) -> Result<()> {
    let mut all = Vec::new();
    for Target { pid, patcher } in target::open(whom)? {
        let regions = patcher.list().for_user()?;
        if !as_json {
            say(pid, &regions);
            continue;
        }
        let values: Vec<Value> = regions.iter().map(region_value).collect();
        all.push(json!({ "pid": pid, "patches": values }));
    }
    match (whom.workload, as_json) {
        (_, false) => Ok(()),
        (Some(name), true) => print(&json!({ "workload": name, "processes": all })),
        (None, true) => print(&all.pop().map(|one| one["patches"].clone()).unwrap_or_default()),
    }
}

/// Whether a later patch has switched off all that this one does.
fn is_replaced(region: &Region, regions: &[Region]) -> bool {
    region.state == State::Applied
        && regions.iter().any(|other| {
            other.order > region.order
                && other.state == State::Applied
                && other.notes.is_cumulative
                && other.notes.build_id == region.notes.build_id
        })
}

fn region_value(region: &Region) -> Value {
    let notes = &region.notes;
    json!({
        "order": region.order,
        "name": notes.name,
        "state": region.state,
        "patch": hex(&notes.patch),
        "program": notes.program,
        "build_id": hex(&notes.build_id),
        "built": notes.built,
        "applied": notes.applied,
        "cumulative": notes.is_cumulative,
        "together": notes.gates.is_some(),
        "functions": notes.switched.iter().map(|switched| switched.name.as_str()).collect::<Vec<_>>(),
        "reasons": notes.reasons,
        "address": region.address,
        "length": region.length,
        "unwindable": notes.is_unwindable,
    })
}

pub fn inspect(args: &InspectPatch) -> Result<()> {
    if let Some(path) = &args.file {
        let signed = read(path, &args.trust)?;
        patch(&signed.patch, args.json, None)?;
        if !args.json {
            say!("SHA-256 {}, signed by {}", hex(&signed.id), hex(signed.key.as_bytes()));
            if let Some(diff) = &signed.patch.diff {
                say!("{}", diff.trim_end());
            }
        }
        return Ok(());
    }
    show(&args.whom(), args.json, |pid, regions| {
        // Of a workload most processes may be other programs.
        if args.workload.is_some() && !regions.is_empty() {
            say!("process {pid}");
        }
        regions.iter().for_each(full);
    })
}

/// All that a process has of a patch.
fn full(region: &Region) {
    let notes = &region.notes;
    say!("{} {} {}", region.order, notes.name, region.state.word());
    say!("  patch {}, of {} (Build-ID {})", hex(&notes.patch), notes.program, hex(&notes.build_id));
    say!("  {} bytes at {:#x}; unwindable: {}", region.length, region.address, notes.is_unwindable);
    if let Some(gates) = notes.gates {
        say!("  its functions switch together, by the byte at {:#x}", gates.flag);
    }
    for (name, reason) in &notes.reasons {
        say!("  {name}: {reason}");
    }
    for switched in &notes.switched {
        say!("  {} {:#x} -> {:#x}", switched.name, switched.pad, switched.target);
    }
    for off in &notes.off {
        say!("  {:#x} -> {:#x} is switched off", off.pad, off.target);
    }
}

pub fn print(value: &Value) -> Result<()> {
    let text = serde_json::to_string(value).or_failed(|| "write JSON".to_owned())?;
    say!("{text}");
    Ok(())
}
