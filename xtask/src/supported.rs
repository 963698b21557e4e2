//! `docs/supported.md`: what the object programs say of themselves, in the tables between its marks
//! `<!-- objects: SECTION -->` and `<!-- end of objects -->`. All else in it is written by hand.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use outlive_lab::objects::{self, ObjectProgram, Status};

use crate::root;

const PAGE: &str = "docs/supported.md";
const PROGRAMS: &str = "crates/process/tests/objects";
const BEGIN: &str = "<!-- objects: ";
const END: &str = "<!-- end of objects -->";

/// Writes the tables anew.
pub fn run() -> Result<()> {
    let root = root()?;
    let (_, text) = page(&root)?;
    fs::write(root.join(PAGE), text).with_context(|| format!("cannot write {PAGE}"))?;
    eprintln!("supported: {PAGE} is what the programs in {PROGRAMS} say");
    Ok(())
}

/// The kinds of objects that there are programs of.
pub fn sections(root: &Path) -> Result<BTreeSet<String>> {
    let programs = objects::all(&root.join(PROGRAMS))?;
    Ok(programs.into_iter().map(|program| program.section).collect())
}

/// What is wrong with the page.
pub fn check(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let (is, should_be) = page(root)?;
    if is != should_be {
        findings
            .push(format!("{PAGE}: not what the programs in {PROGRAMS} say; run `cargo xtask supported`"));
    }
    Ok(())
}

/// As it is, and as it should be.
fn page(root: &Path) -> Result<(String, String)> {
    let is = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let programs = objects::all(&root.join(PROGRAMS))?;
    let should_be = fill(&is, &programs)?;
    Ok((is, should_be))
}

fn fill(page: &str, programs: &[ObjectProgram]) -> Result<String> {
    let mut filled = String::new();
    let mut sections = Vec::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (section, after) = after.split_once(" -->").context("a mark without its end")?;
        let (_, after) = after.split_once(END).with_context(|| format!("`{section}` lacks `{END}`"))?;
        filled.push_str(before);
        // Writing to a String does not fail.
        let _ = write!(filled, "{BEGIN}{section} -->\n{}{END}", table(programs, section));
        sections.push(section);
        rest = after;
    }
    filled.push_str(rest);
    if let Some(program) = programs.iter().find(|program| !sections.contains(&program.section.as_str())) {
        bail!(
            "{PAGE} has no place for the programs of `{}`: add {BEGIN}{} --> and {END}",
            program.name,
            program.section
        );
    }
    Ok(filled)
}

fn table(programs: &[ObjectProgram], section: &str) -> String {
    let mut table = "\n| object | | how, or why not | program |\n|---|---|---|---|\n".to_owned();
    for program in programs.iter().filter(|program| program.section == section) {
        let status = match program.status {
            Status::Captured => "captured",
            Status::Hidden => "hidden",
            Status::Refused(_) => "refused",
        };
        let cell = |text: &str| text.replace('|', "\\|");
        let name = program.name.rsplit('/').next().unwrap_or_default();
        // Writing to a String does not fail.
        let _ =
            writeln!(table, "| {} | {status} | {} | `{name}` |", cell(&program.object), cell(&program.note));
    }
    table.push('\n');
    table
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn program(name: &str, status: Status) -> ObjectProgram {
        let section = name.split('/').next().unwrap().to_owned();
        let (object, note) = ("a | b".to_owned(), "so".to_owned());
        ObjectProgram {
            name: name.to_owned(),
            section,
            source: PathBuf::new(),
            object,
            status,
            note,
            user: None,
        }
    }

    #[test]
    fn tables_are_written_between_the_marks_and_nothing_else_is_touched() {
        let programs =
            [program("memory/heap", Status::Captured), program("unix/x", Status::Refused("x".into()))];
        let page = "# A\n<!-- objects: memory -->\nold\n<!-- end of objects -->\nkept\n\
                    <!-- objects: unix --><!-- end of objects -->\n";
        let filled = fill(page, &programs).unwrap();
        assert!(filled.contains("| a \\| b | captured | so | `heap` |\n"), "{filled}");
        assert!(
            filled.contains("| refused | so | `x` |") && filled.contains("kept") && !filled.contains("old")
        );
        assert_eq!(fill(&filled, &programs).unwrap(), filled);
        assert!(fill("# A\n", &programs).unwrap_err().to_string().contains("memory/heap"));
    }
}
