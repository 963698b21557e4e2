//! `outlive patch key`, `record` and `build`.

use std::fs;
use std::path::Path;

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
    let folder = base.folder().join(format!("build-{}", std::process::id()));
    let outcome = Record::create(&folder, &args.command, Some(base.epoch())).for_user().and_then(|new| {
        new.run(&base, &args.command).for_user()?;
        let options = builder::Options {
            name,
            allow: args.allow.iter().copied().collect(),
            is_cumulative: args.cumulative,
            diff,
        };
        builder::build(&base, &new, options).for_user()
    });
    // The objects of the new build have served their purpose.
    fs::remove_dir_all(&folder).or_failed(|| format!("remove {}", folder.display()))?;
    let made = outcome?;
    let file = patch::write(&made, &key).for_user()?;
    fs::write(&args.out, &file).or_failed(|| format!("write {}", args.out.display()))?;
    show::patch(&made, args.json)
}
