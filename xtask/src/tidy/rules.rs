//! The rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::source;

/// A longer file has more than one concern.
const LINES: usize = 900;

/// What each crate must not know: the table of ARCHITECTURE.md, by the names in Cargo.toml.
const KNOWS_NOTHING_OF: [(&str, &[&str]); 11] = [
    (
        "fault",
        &["outlive-process", "outlive-net", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"],
    ),
    (
        "hotpatch",
        &["outlive-process", "outlive-net", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"],
    ),
    ("process", &["outlive-net", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"]),
    ("net", &["outlive-process", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"]),
    ("stream", &["outlive-process", "outlive-net", "outlive-epoch", "outlive-cluster", "outlive"]),
    ("cluster", &["outlive-process", "outlive-net", "outlive-stream", "outlive-epoch", "outlive"]),
    ("epoch", &["outlive", "outlive-lockstep"]),
    (
        "lab",
        &["outlive-process", "outlive-net", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"],
    ),
    ("replicated", &["outlive-process", "outlive-net", "outlive-epoch", "outlive"]),
    ("replicated-c", &["outlive-process", "outlive-net", "outlive-epoch", "outlive"]),
    (
        "replicated-macros",
        &["outlive-process", "outlive-net", "outlive-stream", "outlive-epoch", "outlive-cluster", "outlive"],
    ),
];

/// A crate's Cargo.toml names nothing that the crate must not know, not even for its tests.
pub fn boundaries(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for (name, strangers) in KNOWS_NOTHING_OF {
        let shown = format!("crates/{name}/Cargo.toml");
        let path = root.join(&shown);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let manifest: toml::Table = text.parse().with_context(|| format!("cannot parse {shown}"))?;
        let named = dependencies(&manifest);
        for stranger in strangers.iter().filter(|stranger| named.contains(**stranger)) {
            findings.push(format!("{shown}: `{name}` must know nothing of `{stranger}`"));
        }
    }
    Ok(())
}

/// The names of all dependencies, of every kind and for every target.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                for (name, how) in table {
                    let renamed = how.get("package").and_then(|package| package.as_str());
                    named.insert(renamed.unwrap_or(name).to_owned());
                }
            }
            "target" => {
                for target in table.values().filter_map(|target| target.as_table()) {
                    named.extend(dependencies(target));
                }
            }
            _ => {}
        }
    }
    named
}

/// What holds for one source file.
pub fn source_file(shown: &str, text: &str, is_test: bool, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES {
        findings.push(format!("{shown}: {lines} lines, more than {LINES}: it has more than one concern"));
    }
    let code = source::code(text);
    for (number, _) in code.lines().enumerate().filter(|(_, line)| has_unsafe(line)) {
        if !is_explained(text, number) {
            findings.push(format!("{shown}:{}: `unsafe` without a SAFETY comment", number + 1));
        }
    }
    if is_test {
        return;
    }
    for (number, line) in source::code_outside_tests(text).lines().enumerate() {
        for panics in [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err("] {
            if line.contains(panics) {
                findings.push(format!("{shown}:{}: `{panics}` outside of tests", number + 1));
            }
        }
    }
}

/// Tests of a crate from outside, what they share, and programs that only try something out.
pub fn is_test_file(path: &Path) -> bool {
    let folders = ["tests", "benches", "examples"];
    path.iter().any(|part| folders.iter().any(|folder| part == *folder)) || path.ends_with("tests.rs")
}

/// `unsafe` blocks, functions, impls and traits; not the attribute `unsafe(...)` nor a lint's name.
fn has_unsafe(line: &str) -> bool {
    line.match_indices("unsafe").any(|(at, word)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].trim_start();
        let whole = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        whole(before)
            && whole(line[at + word.len()..].chars().next())
            && ["{", "impl", "trait", "fn", "extern"].iter().any(|word| after.starts_with(word))
            // A type `unsafe extern "C" fn(...)` promises nothing.
            && !line[..at].trim_end().ends_with([':', '<', '(', '='].as_slice()) | after.starts_with('{')
    })
}

/// A comment that says SAFETY (or `# Safety` in documentation) on the line, or just above the statement it is in:
/// nothing between but attributes, documentation, and the statement's own beginning.
fn is_explained(text: &str, number: usize) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let says = |line: &str| line.contains("SAFETY") || line.contains("# Safety");
    if says(lines[number]) {
        return true;
    }
    let mut comment_seen = false;
    for line in lines[..number].iter().rev().take(40) {
        let line = line.trim();
        if says(line) {
            return true;
        }
        let comment = line.starts_with("//");
        comment_seen |= comment;
        // A statement may begin above; where one ends, or a block does, the search does too.
        let ends = line.is_empty() || line.ends_with(';') || line.ends_with('}');
        if !comment && (comment_seen || ends) && !line.starts_with("#[") {
            return false;
        }
    }
    false
}

/// Every decision is referred to from somewhere, and every reference leads to one.
pub fn decisions(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let folder = root.join("docs/decisions");
    let mut kept = BTreeSet::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder).context("cannot list docs/decisions")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") && name != "README.md" {
                kept.insert(name);
            }
        }
    }
    let mut referred = BTreeSet::new();
    for (path, text) in texts(root)? {
        for name in references(&text) {
            let own = path == format!("docs/decisions/{name}");
            if !kept.contains(&name) {
                findings.push(format!("{path}: refers to docs/decisions/{name}, which does not exist"));
            } else if !own {
                referred.insert(name);
            }
        }
    }
    for name in kept.difference(&referred) {
        findings.push(format!("docs/decisions/{name}: nothing refers to it"));
    }
    Ok(())
}

/// The names after `decisions/` in a text: `NNNN-title.md`.
fn references(text: &str) -> Vec<String> {
    text.match_indices("decisions/")
        .filter_map(|(at, word)| {
            let rest = &text[at + word.len()..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.')?;
            let name = rest[..end].trim_end_matches('.');
            let numbered = name.len() > 8 && name.as_bytes()[..4].iter().all(u8::is_ascii_digit);
            (numbered && name.ends_with(".md")).then(|| name.to_owned())
        })
        .collect()
}

/// Documents and sources in which a decision may be referred to, by their paths from the root.
fn texts(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if [".md", ".rs", ".toml"].iter().any(|end| name.ends_with(end))
                // Names in tests of this rule are no references.
                && shown != "xtask/src/tidy/rules.rs"
            {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
                found.push((shown, text));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        source_file("crates/x/src/lib.rs", text, false, &mut findings);
        findings
    }

    #[test]
    fn panics_count_outside_of_tests_only() {
        assert_eq!(found("fn f() { x.unwrap(); }\n").len(), 1);
        assert_eq!(
            found("fn f() { x\n.expect(\"y\"); }\n"),
            ["crates/x/src/lib.rs:2: `.expect(` outside of tests"]
        );
        assert!(found("#[cfg(test)]\nmod tests { fn f() { x.unwrap(); } }\n").is_empty());
        assert!(found("// x.unwrap()\nfn f() { x.unwrap_or(1); }\n").is_empty());
        let mut findings = Vec::new();
        source_file("crates/x/src/y.rs", "fn f() { x.unwrap(); }\n", true, &mut findings);
        assert!(findings.is_empty());
        assert!(
            is_test_file(Path::new("crates/x/tests/y.rs")) && !is_test_file(Path::new("crates/x/src/y.rs"))
        );
    }

    #[test]
    fn every_unsafe_is_explained() {
        assert_eq!(found("fn f() {\n    unsafe { g() }\n}\n").len(), 1);
        assert!(found("fn f() {\n    // SAFETY: g does nothing.\n    unsafe { g() }\n}\n").is_empty());
        assert!(
            found("fn f() {\n    // SAFETY: fine.\n    let x =\n        unsafe { g() };\n}\n").is_empty()
        );
        assert_eq!(found("// SAFETY: of another.\nlet a = 1;\nlet b = unsafe { g() };\n").len(), 1);
        assert!(found("/// # Safety\n/// Never call it.\n#[inline]\npub unsafe fn f() {}\n").is_empty());
        assert_eq!(found("unsafe impl Send for X {}\n").len(), 1);
        assert!(found("#[unsafe(no_mangle)]\nfn f() {}\nunsafe_op_in_unsafe_fn!();\n").is_empty());
        assert!(found("struct S { f: unsafe extern \"C\" fn() }\n").is_empty());
    }

    #[test]
    fn a_file_has_one_concern() {
        assert!(found(&"// x\n".repeat(LINES)).is_empty());
        assert_eq!(found(&"// x\n".repeat(LINES + 1)).len(), 1);
    }

    #[test]
    fn dependencies_are_found_wherever_they_are_named() {
        let manifest = "[dependencies]\na.workspace = true\n[dev-dependencies]\nb = \"1\"\n\
                        [target.'cfg(unix)'.dependencies]\nx = { package = \"c\", version = \"1\" }\n";
        let named = dependencies(&manifest.parse().unwrap());
        assert_eq!(named.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn boundaries_and_decisions_are_checked_in_a_tree() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, _) in KNOWS_NOTHING_OF {
            write(&format!("crates/{name}/Cargo.toml"), "[dependencies]\n");
        }
        write("docs/decisions/0001-kept.md", "# Kept\n");
        write("docs/decisions/0002-forgotten.md", "# Forgotten\nSee docs/decisions/0002-forgotten.md.\n");
        write("ARCHITECTURE.md", "See [one](docs/decisions/0001-kept.md) and docs/decisions/0003-gone.md.\n");
        let check = || {
            let mut findings = Vec::new();
            boundaries(root.path(), &mut findings).unwrap();
            decisions(root.path(), &mut findings).unwrap();
            findings
        };
        assert_eq!(
            check(),
            [
                "ARCHITECTURE.md: refers to docs/decisions/0003-gone.md, which does not exist",
                "docs/decisions/0002-forgotten.md: nothing refers to it"
            ]
        );
        write("crates/net/Cargo.toml", "[dev-dependencies]\noutlive-process.workspace = true\n");
        assert_eq!(check()[0], "crates/net/Cargo.toml: `net` must know nothing of `outlive-process`");
    }
}
