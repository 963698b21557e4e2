//! `cargo xtask bench hotpatch`: a corpus of real fixes, each applied to the running program under load (docs/hotpatch-corpus.md), and a
//! thousand cycles of apply and revert under load, beside the same load without, and the allocator that all threads are always in
//! (BENCHMARKS.md).

mod allocator;
mod corpus;
mod cycles;
mod load;
mod packages;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::bench::write_section;
use crate::root;
use corpus::{Fix, Outcome, Tree};
use packages::PACKAGES;

/// What came of a run: SPECIFICATION.md says what each figure must be.
#[derive(Debug, Serialize)]
struct Figures {
    fixes: usize,
    patched: usize,
    /// Of those, whose effect was seen.
    seen: usize,
    refused: usize,
    wrong: usize,
    share: f64,
    longest_hold_us: u64,
    slowest_build_ms: u64,
    cycles: Option<cycles::Figures>,
    allocator: Option<allocator::Figures>,
}

/// What is left out of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    /// No fix is put through: the cycles, with what the fixes of redis have left, and the allocator.
    Cycles,
    Allocator,
}

/// The fixes of some packages (of all, if no name is given), of these perhaps some only, and the rest unless packages are named.
pub fn run(names: &[String], patches: &[String], part: Part, json: bool) -> Result<bool> {
    let root = root()?;
    let corpus = root.join("target/corpus");
    for name in names {
        ensure!(PACKAGES.iter().any(|package| package.name == name), "there is no {name} in the corpus");
    }
    fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let outlive = build_outlive(&root)?;
    let keys = corpus.join("keys");
    if !keys.join("patch.key").exists() {
        let status = Command::new(&outlive).args(["patch", "key", "--out"]).arg(&keys).status()?;
        ensure!(status.success(), "outlive patch key: {status}");
    }
    install(&["dpkg-dev", "gcc", "g++", "make", "patch"])?;
    let apt = corpus::prepare_apt(&corpus)?;
    let mut met: BTreeSet<String> = BTreeSet::new();
    for package in &PACKAGES {
        if part != Part::All || !names.is_empty() && !names.iter().any(|name| name == package.name) {
            continue;
        }
        install(package.needs)?;
        let tree = Tree::unpack(package, package.name, &corpus, &apt, &outlive, &keys)?;
        let mut fixes = if patches.is_empty() { Vec::new() } else { kept_of(&corpus, package.name)? };
        // What is known is kept after each fix: a build that fails later does not take it away.
        tree.run(patches, |fix: Fix| {
            met.insert(fix.patch.clone());
            match fixes.iter_mut().find(|known| known.patch == fix.patch) {
                Some(known) => *known = fix,
                None => fixes.push(fix),
            }
            keep(&corpus, package.name, &fixes)
        })
        .with_context(|| package.name.to_owned())?;
    }
    let unmet: Vec<&str> = patches.iter().filter(|patch| !met.contains(*patch)).map(String::as_str).collect();
    ensure!(unmet.is_empty(), "no such patch that changes C in {}: {}", names.join(", "), unmet.join(", "));
    let all = kept(&corpus)?;
    let fixes: Vec<&Fix> = all.values().flatten().collect();
    put_table(&root, &all)?;
    let is_whole = names.is_empty();
    let cycles = match part {
        Part::All | Part::Cycles if is_whole => Some(cycles::run(&corpus, &outlive, &keys, &fixes)?),
        _ => None,
    };
    let allocator = if is_whole { Some(allocator::run(&corpus, &apt, &outlive, &keys)?) } else { None };
    if let Some(figures) = &allocator {
        println!("{}", figures.said());
    }
    if let (Some(cycles), Some(allocator)) = (&cycles, &allocator) {
        write_section("hotpatch", &format!("{}\n{}\n", cycles::section(cycles)?, allocator.said()))?;
    }
    let figures = figures(&fixes, cycles, allocator);
    println!(
        "{} fixes, {} patched, {} refused, {} wrong; longest hold {} us",
        figures.fixes, figures.patched, figures.refused, figures.wrong, figures.longest_hold_us
    );
    if json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    // What the load saw during the cycles is as wrong as what a fix did.
    let errors = figures.cycles.as_ref().map_or(0, cycles::Figures::errors)
        + figures.allocator.as_ref().map_or(0, allocator::Figures::errors);
    if errors > 0 {
        println!("{errors} errors of the load during the cycles");
    }
    Ok(figures.wrong == 0 && errors == 0)
}

/// Writes the table of what earlier runs have found out. Whether nothing in it is wrong.
pub fn write_table() -> Result<bool> {
    let root = root()?;
    let all = kept(&root.join("target/corpus"))?;
    put_table(&root, &all)?;
    Ok(!all.values().flatten().any(|fix| matches!(fix.outcome, Outcome::Wrong(_))))
}

fn put_table(root: &Path, all: &BTreeMap<String, Vec<Fix>>) -> Result<()> {
    // A table of some packages would say less than the one that is there.
    let unknown: Vec<&str> =
        PACKAGES.iter().map(|package| package.name).filter(|name| !all.contains_key(*name)).collect();
    if unknown.is_empty() {
        fs::write(root.join("docs/hotpatch-corpus.md"), table(all)?).context("cannot write the table")?;
    } else {
        println!("the table stays as it is: nothing is known here of {}", unknown.join(", "));
    }
    Ok(())
}

/// The release build: holds are measured by it.
fn build_outlive(root: &Path) -> Result<std::path::PathBuf> {
    let status = Command::new("cargo")
        .args(["build", "--release", "--package", "outlive"])
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the build of outlive failed");
    // A copy: builds that go on meanwhile replace the original.
    let copy = root.join("target/corpus/outlive");
    let draft = root.join("target/corpus/outlive.draft");
    fs::copy(root.join("target/release/outlive"), &draft).context("cannot copy outlive")?;
    fs::rename(&draft, &copy).context("cannot copy outlive")?;
    Ok(copy)
}

fn install(packages: &[&str]) -> Result<()> {
    let is_there = |package: &&str| {
        let query = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        query.is_ok_and(|output| output.stdout.ends_with(b"install ok installed"))
    };
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_there(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let status = Command::new("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get could not install {}", missing.join(", "));
    }
    Ok(())
}

fn keep(corpus: &Path, package: &str, fixes: &[Fix]) -> Result<()> {
    let folder = corpus.join("results");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{package}.json")), serde_json::to_vec_pretty(fixes)?)?;
    Ok(())
}

/// What was found out in this and earlier runs, by package.
fn kept(corpus: &Path) -> Result<BTreeMap<String, Vec<Fix>>> {
    let mut all = BTreeMap::new();
    for package in &PACKAGES {
        let fixes = kept_of(corpus, package.name)?;
        if !fixes.is_empty() {
            all.insert(package.name.to_owned(), fixes);
        }
    }
    Ok(all)
}

fn kept_of(corpus: &Path, package: &str) -> Result<Vec<Fix>> {
    let path = corpus.join("results").join(format!("{package}.json"));
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn figures(
    fixes: &[&Fix],
    cycles: Option<cycles::Figures>,
    allocator: Option<allocator::Figures>,
) -> Figures {
    let count = |is: fn(&Outcome) -> bool| fixes.iter().filter(|fix| is(&fix.outcome)).count();
    let patched = count(|outcome| *outcome == Outcome::Patched);
    let refused = count(|outcome| matches!(outcome, Outcome::Refused(_)));
    let wrong = count(|outcome| matches!(outcome, Outcome::Wrong(_)));
    let of = patched + refused + wrong;
    Figures {
        fixes: of,
        patched,
        seen: fixes.iter().filter(|fix| fix.seen).count(),
        refused,
        wrong,
        share: if of == 0 { 0.0 } else { patched as f64 / of as f64 },
        longest_hold_us: fixes.iter().map(|fix| fix.longest_hold_us).max().unwrap_or(0),
        slowest_build_ms: fixes.iter().map(|fix| fix.build_ms).max().unwrap_or(0),
        cycles,
        allocator,
    }
}

fn table(all: &BTreeMap<String, Vec<Fix>>) -> Result<String> {
    let fixes: Vec<&Fix> = all.values().flatten().collect();
    let figures = figures(&fixes, None, None);
    let mut text = String::from(
        "# The corpus of fixes\n\nWritten by `cargo xtask bench hotpatch`: every patch of these Debian source packages that changes C, one after the other as \
         the package has them. The program is recorded as it is before the fix and runs under load, eight clients (of sqlite3 one, on a pipe) whose every answer \
         is checked. The fix is built, applied, listed and reverted by `outlive patch`, with no option and no hand-written code. \
         *Seen*: requests were answered otherwise with the patch, and as before after the revert; or a process of its own without \
         the fix did not survive them, was damaged by them or kept memory for good, and the patched one went through them under \
         load. Held is the longest time that a thread was, build what making the patch took beyond the rebuild.\n\n",
    );
    writeln!(
        text,
        "**{} fixes: {} patched ({:.0} %), {} of them seen, {} refused, {} wrong.** Longest hold {} µs, slowest build {} ms.\n",
        figures.fixes,
        figures.patched,
        figures.share * 100.0,
        figures.seen,
        figures.refused,
        figures.wrong,
        figures.longest_hold_us,
        figures.slowest_build_ms
    )?;
    for (name, fixes) in all {
        let version = fixes.first().map_or("", |fix| &fix.version);
        writeln!(
            text,
            "## {name} {version}\n\n| fix | functions | bytes | build, ms | apply, ms | held, µs | outcome |"
        )?;
        text.push_str("|---|---|---|---|---|---|---|\n");
        for fix in fixes {
            let outcome = match &fix.outcome {
                Outcome::Patched if fix.seen => "patched, seen".to_owned(),
                Outcome::Patched => format!("patched, not seen{}", why_unseen(fix)),
                Outcome::Refused(why) => format!("refused: {}", short(why)),
                Outcome::Wrong(why) => format!("**wrong**: {}", short(why)),
                Outcome::NotCompiled(why) => format!("not counted: {why}"),
            };
            let is_patched = fix.outcome == Outcome::Patched;
            let cell = |value: String| if is_patched { value } else { "–".to_owned() };
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {outcome} |",
                fix.patch,
                cell(fix.functions.to_string()),
                cell(fix.bytes.to_string()),
                cell(fix.build_ms.to_string()),
                cell(format!("{:.1}", fix.apply_us as f64 / 1000.0)),
                cell(fix.longest_hold_us.to_string()),
            )?;
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// Why no request shows a fix, where that is known.
fn why_unseen(fix: &Fix) -> String {
    let package = PACKAGES.iter().find(|package| package.name == fix.package);
    let unseen = package.and_then(|package| package.unseen.iter().find(|(patch, _)| *patch == fix.patch));
    unseen.map_or(String::new(), |(_, why)| format!(": {why}"))
}

/// A reason, as long as a table can take it.
fn short(why: &str) -> String {
    const MOST: usize = 400;
    let why = why.trim_start_matches("outlive: ").trim_start_matches("the change cannot be patched: ");
    let why = why.replace('|', "\\|").replace('\n', " ");
    if why.chars().count() <= MOST {
        return why;
    }
    why.chars().take(MOST).chain("…".chars()).collect()
}
