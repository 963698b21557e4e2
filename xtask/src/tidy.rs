//! Style as a test: what a reader may rely on and the compiler does not check.

mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::root;

/// Checks everything and names all that is wrong, not only the first.
pub fn run() -> Result<()> {
    let root = root()?;
    let mut findings = Vec::new();
    rules::boundaries(&root, &mut findings)?;
    rules::decisions(&root, &mut findings)?;
    for path in rust_files(&root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let shown = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        rules::source_file(&shown, &text, &mut findings);
    }
    if findings.is_empty() {
        eprintln!("tidy: everything is in its place");
        return Ok(());
    }
    findings.sort();
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} things are not tidy", findings.len());
}

/// All Rust sources of the workspace's crates.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}
