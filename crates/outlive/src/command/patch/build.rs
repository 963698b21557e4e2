//! `outlive patch key`, `record` and `build`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use outlive_hotpatch::record::Record;
use outlive_hotpatch::{build as builder, keys, patch};

use super::ForUser;
use super::show;
use crate::cli::{BuildPatch, RecordBuild};
use crate::error::{Context, Result};

pub fn key(folder: &Path) -> Result<()> {
    let (secret, public) = keys::create(folder).for_user()?;
    say!("{} signs patches; keep it off the machines that are patched", secret.display());
    say!("{} makes a machine trust them: put it into {}", public.display(), keys::TRUSTED_FOLDER);
    Ok(())
}

pub fn record(args: &RecordBuild) -> Result<()> {
    let record = Record::create(&args.out, &args.command, None).for_user()?;
    record.run(&record, &args.command).for_user()?;
    let links = record.links().for_user()?;
    let compiles = record.compiles().for_user()?.len();
    for (name, link) in &links {
        say!("{name}: {} objects", link.inputs.len());
    }
    say!("{compiles} objects compiled, {} programs linked", links.len());
    Ok(())
}

pub fn build(args: &BuildPatch) -> Result<()> {
    let key = keys::read_secret(&args.key).for_user()?;
    let diff = match &args.diff {
        Some(path) => Some(fs::read_to_string(path).or_failed(|| format!("read {}", path.display()))?),
        None => None,
    };
    let base = Record::open(&args.base).for_user()?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.out.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let begun = Instant::now();
    let mut times = Times::default();
    let folder = base.folder().join(format!("build-{}", std::process::id()));
    let outcome = Record::create(&folder, &args.command, Some(base.epoch())).for_user().and_then(|new| {
        new.run(&base, &args.command).for_user()?;
        times.rebuild_ms = millis(begun);
        let options = builder::Options {
            name,
            allow: args.allow.iter().copied().collect(),
            is_cumulative: args.cumulative,
            is_together: args.together,
            diff,
        };
        builder::build(&base, &new, options).for_user()
    });
    // The objects of the new build have served their purpose.
    fs::remove_dir_all(&folder).or_failed(|| format!("remove {}", folder.display()))?;
    let made = outcome?;
    let file = patch::write(&made, &key).for_user()?;
    fs::write(&args.out, &file).or_failed(|| format!("write {}", args.out.display()))?;
    times.patch_ms = millis(begun) - times.rebuild_ms;
    show::patch(&made, args.json, Some(times))
}

/// How long the build took, and how long making the patch beyond it.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct Times {
    pub rebuild_ms: u64,
    pub patch_ms: u64,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
