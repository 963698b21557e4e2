//! Small programs that each use one kind of kernel object and check it themselves: what they say of it, and how they are
//! built and asked.
//!
//! A program is one C file, `SECTION/NAME.c`, that includes `object.h`. Its first lines say what it is about:
//!
//! ```c
//! // object: eventfd, as a counter and as a semaphore
//! // status: captured
//! // note: an eventfd that overflowed is refused
//! ```
//!
//! `status` is `captured`, `hidden`, or `refused: WORD`, where WORD is in the refusal. An optional `user: nobody` says as whom it
//! runs. It prints `ready` once its object exists, keeps it busy until it gets SIGUSR1, and then says `PASS` or `FAIL` and why.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program says when its object is in use.
pub const READY: &str = "ready";

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("cannot {attempt}")]
    Io { attempt: String, source: io::Error },
    #[error("{source_file} says nothing of its {field}; begin it with a line `// {field}: ...`")]
    Unsaid { source_file: String, field: &'static str },
    #[error("{source_file} has a status `{status}`; it is `captured`, `hidden` or `refused: WORD`")]
    Status { source_file: String, status: String },
    #[error("{source_file} does not compile:\n{stderr}")]
    Compile { source_file: String, stderr: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Captured,
    Hidden,
    /// The word that is in the refusal.
    Refused(String),
}

#[derive(Clone, Debug)]
pub struct ObjectProgram {
    /// `SECTION/NAME`.
    pub name: String,
    pub section: String,
    pub source: PathBuf,
    /// What it uses.
    pub object: String,
    pub status: Status,
    /// How, or why not; limits.
    pub note: String,
    /// As whom it runs, if not as root.
    pub user: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The line in which it says why.
    Fail(String),
}

/// All programs below a folder, in the order of their names.
pub fn all(folder: &Path) -> Result<Vec<ObjectProgram>, ObjectError> {
    let mut programs = Vec::new();
    for section in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        for source in entries(&section)?.into_iter().filter(|path| path.extension() == Some(OsStr::new("c")))
        {
            programs.push(ObjectProgram::read(source, stem(&section))?);
        }
    }
    Ok(programs)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ObjectError> {
    let listed = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths =
        listed.map_err(|source| ObjectError::Io { attempt: format!("list {}", folder.display()), source })?;
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl ObjectProgram {
    fn read(source: PathBuf, section: String) -> Result<Self, ObjectError> {
        let text = fs::read_to_string(&source).map_err(|error| ObjectError::Io {
            attempt: format!("read {}", source.display()),
            source: error,
        })?;
        let source_file = source.display().to_string();
        let field = |name: &str| {
            let mut said = text.lines().map_while(|line| line.strip_prefix("// ")).filter_map(|line| {
                let (field, rest) = line.split_once(": ")?;
                (field == name).then(|| rest.trim().to_owned())
            });
            said.next()
        };
        let unsaid = |field| ObjectError::Unsaid { source_file: source_file.clone(), field };
        let status = field("status").ok_or_else(|| unsaid("status"))?;
        let status = match status.split_once(": ").unwrap_or((&status, "")) {
            ("captured", "") => Status::Captured,
            ("hidden", "") => Status::Hidden,
            ("refused", word) if !word.is_empty() => Status::Refused(word.to_owned()),
            _ => return Err(ObjectError::Status { source_file, status }),
        };
        Ok(Self {
            name: format!("{section}/{}", stem(&source)),
            object: field("object").ok_or_else(|| unsaid("object"))?,
            note: field("note").unwrap_or_default(),
            user: field("user"),
            section,
            source,
            status,
        })
    }

    /// Compiles it to a file in a folder, named for it, which is its path from then on.
    pub fn compile(&self, folder: &Path) -> Result<PathBuf, ObjectError> {
        let target = folder.join(self.name.replace('/', "-"));
        let headers = self.source.ancestors().nth(2).unwrap_or(Path::new("."));
        let output = Command::new("gcc")
            .args(["-O1", "-Wall", "-Werror", "-D_GNU_SOURCE", "-pthread", "-I"])
            .arg(headers)
            .arg("-o")
            .args([&target, &self.source])
            .output()
            .map_err(|source| ObjectError::Io { attempt: "run gcc".to_owned(), source })?;
        if output.status.success() {
            return Ok(target);
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ObjectError::Compile { source_file: self.source.display().to_string(), stderr })
    }
}

/// What a program has said of itself, if it has.
pub fn verdict(output: &str) -> Option<Verdict> {
    output.lines().find_map(|line| match line {
        "PASS" => Some(Verdict::Pass),
        line => line.strip_prefix("FAIL ").map(|why| Verdict::Fail(why.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ObjectProgram, ObjectError> {
        let folder = tempfile::tempdir().unwrap();
        let section = folder.path().join("memory");
        fs::create_dir(&section).unwrap();
        fs::write(section.join("heap.c"), text).unwrap();
        all(folder.path()).map(|mut programs| programs.remove(0))
    }

    #[test]
    fn a_program_says_what_it_is_about() {
        let program =
            read("// object: the heap\n// status: refused: brk\n// note: why: so\nint x;\n").unwrap();
        assert_eq!((program.name.as_str(), program.section.as_str()), ("memory/heap", "memory"));
        assert_eq!((program.object.as_str(), program.note.as_str()), ("the heap", "why: so"));
        assert_eq!(program.status, Status::Refused("brk".to_owned()));
        assert_eq!(read("// object: a\n// status: captured\n").unwrap().status, Status::Captured);
        assert!(
            read("// object: a\n// status: refused\n").unwrap_err().to_string().contains("refused: WORD")
        );
        assert!(read("// status: captured\n").unwrap_err().to_string().contains("object"));
    }

    #[test]
    fn a_verdict_is_a_line_of_its_own() {
        assert_eq!(verdict("ready\nPASSED\n"), None);
        assert_eq!(verdict("ready\nPASS\n"), Some(Verdict::Pass));
        assert_eq!(verdict("FAIL a.c:3: no\nPASS\n"), Some(Verdict::Fail("a.c:3: no".to_owned())));
    }
}
