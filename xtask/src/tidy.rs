//! Style as a test: what a reader may rely on and the compiler does not check.

mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{root, supported};

/// Checks everything and names all that is wrong, not only the first.
pub fn run() -> Result<()> {
    let root = root()?;
    let mut findings = Vec::new();
    rules::boundaries(&root, &mut findings)?;
    rules::decisions(&root, &mut findings)?;
    supported::check(&root, &mut findings)?;
    let mut files = Vec::new();
    for path in rust_files(&root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((path.strip_prefix(&root).unwrap_or(&path).to_owned(), text));
    }
    let test_only: Vec<PathBuf> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    for (path, text) in &files {
        let is_test = rules::is_test_file(path) || test_only.iter().any(|module| is_of(path, module));
        rules::source_file(&path.display().to_string(), text, is_test, &mut findings);
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

/// The modules that a file declares for tests only, by their path without the ending.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let is_root = path.file_stem().is_some_and(|stem| stem == "lib" || stem == "main" || stem == "mod");
    let folder = if is_root { path.with_file_name("") } else { path.with_extension("") };
    source::test_modules(text).into_iter().map(|name| folder.join(name)).collect()
}

/// Whether a file is a module's or below it.
fn is_of(path: &Path, module: &Path) -> bool {
    path.with_extension("") == module || path.starts_with(module)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_for_tests_is_found_beside_or_below_the_file_that_declares_it() {
        let text = "#[cfg(test)]\nmod model;\n";
        let declared = |path: &str| test_modules(Path::new(path), text).remove(0);
        assert_eq!(declared("crates/x/src/lib.rs"), Path::new("crates/x/src/model"));
        assert_eq!(declared("crates/x/src/y.rs"), Path::new("crates/x/src/y/model"));
        let module = Path::new("crates/x/src/model");
        assert!(is_of(Path::new("crates/x/src/model.rs"), module));
        assert!(is_of(Path::new("crates/x/src/model/deep.rs"), module));
        assert!(!is_of(Path::new("crates/x/src/modelled.rs"), module));
    }
}
