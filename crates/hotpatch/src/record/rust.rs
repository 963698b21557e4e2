//! The stand-in for rustc, by which cargo calls it (`RUSTC_WRAPPER`): what a stable compiler has no option for is asked of LLVM.
//!
//! rustc gives each function a section of its own anyway. Room at the entry is an attribute of LLVM's functions
//! (`patchable-function-entry`), for which rustc has an unstable option only; but LLVM takes attributes for functions by name, from
//! a table (`-forceattrs-csv-path`), and rustc hands options on to LLVM (`-C llvm-args`). So each crate is compiled twice: once
//! to learn the names of its functions, once to give them room. What is linked is recorded by the stand-in for `cc`, which rustc
//! links with.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use object::read::archive::ArchiveFile;
use object::{Object, ObjectSymbol, SymbolKind};

use super::{Record, pads};
use crate::error::{Error, FileContext, Result};

/// What the stand-in is called.
pub const NAME: &str = "outlive-rustc";

/// What LLVM says of each name in the table that a module does not have: rustc makes small modules of its own.
const NOT_THERE: &[u8] = b"Function in CSV file at line";

/// A crate that is compiled to code that may run in the program.
struct Crate<'a> {
    name: &'a str,
    /// `-C extra-filename`.
    suffix: &'a str,
    folder: &'a str,
}

/// The value of an option: `--name VALUE`, `--name=VALUE`.
fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let joined = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    joined.or_else(|| words.iter().skip_while(|word| *word != name).nth(1).map(String::as_str))
}

/// The value of a code generation option: `-C name=VALUE`, `-Cname=VALUE`; the last one counts.
fn codegen<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let apart = words.windows(2).filter(|pair| pair[0] == "-C").map(|pair| pair[1].as_str());
    let joined = words.iter().filter_map(|word| word.strip_prefix("-C"));
    apart.chain(joined).filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back()
}

impl<'a> Crate<'a> {
    /// `None` for questions, for what only the build runs (build scripts, macros), and for what makes no code.
    fn of(words: &'a [String]) -> Option<Self> {
        let name = option(words, "--crate-name")?;
        let kind = option(words, "--crate-type").unwrap_or("bin");
        let makes_code =
            option(words, "--emit").is_some_and(|emit| emit.split(',').any(|what| what == "link"));
        let is_for_build = name.starts_with("build_script_") || kind == "proc-macro";
        let is_question =
            name == "___" || words.iter().any(|word| word == "-" || word.starts_with("--print"));
        if !makes_code || is_for_build || is_question {
            return None;
        }
        let suffix = codegen(words, "extra-filename").unwrap_or_default();
        Some(Self { name, suffix, folder: option(words, "--out-dir")? })
    }
}

/// The whole of a stand-in's run: `COMPILER ARGUMENT…`.
pub fn run(words: &[String], record: Option<&OsStr>) -> Result<ExitCode> {
    let (real, words) =
        words.split_first().ok_or_else(|| Error::unfit("cargo named no compiler to stand in for"))?;
    let real = Path::new(real);
    let (Some(folder), Some(it)) = (record, Crate::of(words)) else {
        let source = Command::new(real).args(words).exec();
        return Err(Error::File { attempted: "run", path: real.to_owned(), source });
    };
    let folder = Record::open(Path::new(folder))?.folder().join("rust");
    fs::create_dir_all(&folder).or_file("create", &folder)?;
    let mut words = words.to_vec();
    words.push("-Ccodegen-units=1".to_owned());
    // The older names have a hash of much more than what a function is called.
    words.push("-Csymbol-mangling-version=v0".to_owned());
    if codegen(&words, "debuginfo").is_none_or(|level| level == "0") && !words.iter().any(|word| word == "-g")
    {
        words.push("-Cdebuginfo=2".to_owned());
    }
    // Optimisation across crates at link time leaves no objects to compare.
    if codegen(&words, "lto").is_some() {
        words.push("-Clto=off".to_owned());
    }
    if words.iter().any(|word| word.contains("linker-plugin-lto")) {
        words.push("-Clinker-plugin-lto=no".to_owned());
    }
    let draft = folder.join(format!("{}{}.o", it.name, it.suffix));
    if let Some(names) = names(real, &words, &draft)? {
        let table = folder.join(format!("{}{}.csv", it.name, it.suffix));
        let lines: String = names.iter().map(|name| format!("{name},patchable-function-entry=5\n")).collect();
        fs::write(&table, lines).or_file("write", &table)?;
        words.push(format!("-Cllvm-args=-forceattrs-csv-path={}", table.display()));
    }
    let code = compile(real, &words)?;
    if code == 0 {
        for ending in ["rlib", "a"] {
            prepare_archive(&Path::new(it.folder).join(format!("lib{}{}.{ending}", it.name, it.suffix)))?;
        }
    }
    Ok(ExitCode::from(code))
}

/// The functions that a crate is compiled to; `None` if it cannot be compiled, which is for the real run to say.
fn names(real: &Path, words: &[String], draft: &Path) -> Result<Option<Vec<String>>> {
    let mut plain = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--emit" | "--out-dir" | "-o" => {
                rest.next();
            }
            word if word.starts_with("--emit=") || word.starts_with("--out-dir=") => {}
            _ => plain.push(word),
        }
    }
    let status = Command::new(real)
        .args(plain)
        .arg(format!("--emit=obj={}", draft.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .or_file("run", real)?;
    if !status.success() || !draft.exists() {
        return Ok(None);
    }
    let bytes = fs::read(draft).or_file("read", draft)?;
    fs::remove_file(draft).or_file("remove", draft)?;
    let file = object::File::parse(bytes.as_slice())
        .map_err(|why| Error::malformed(draft.display().to_string(), why))?;
    let functions =
        file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    let names = functions.filter_map(|symbol| symbol.name().ok().map(str::to_owned));
    Ok(Some(names.filter(|name| !name.is_empty() && !name.contains([',', '\n'])).collect()))
}

/// Compiles, and leaves out what LLVM says of names that a module does not have.
fn compile(real: &Path, words: &[String]) -> Result<u8> {
    let mut child = Command::new(real).args(words).stderr(Stdio::piped()).spawn().or_file("run", real)?;
    if let Some(said) = child.stderr.take() {
        let mut said = BufReader::new(said);
        let mut line = Vec::new();
        while said.read_until(b'\n', &mut line).or_file("listen to", real)? > 0 {
            if !line.starts_with(NOT_THERE) {
                std::io::stderr().write_all(&line).or_file("write what was said by", real)?;
            }
            line.clear();
        }
    }
    let status = child.wait().or_file("wait for", real)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Prepares the pads of an archive's objects in place.
fn prepare_archive(path: &Path) -> Result<()> {
    let Some(mut bytes) = super::wrapper::read_if_there(path)? else { return Ok(()) };
    let mut count = 0;
    for (range, name) in objects_of(&bytes, path)? {
        count += pads::prepare(&name, &mut bytes[range])?;
    }
    if count > 0 {
        // As a new file: somebody may have the old one mapped.
        let draft = PathBuf::from(format!("{}.draft", path.display()));
        fs::write(&draft, &bytes).or_file("write", &draft)?;
        fs::rename(&draft, path).or_file("replace", path)?;
    }
    Ok(())
}

/// Where an archive has its objects, with their names.
fn objects_of(bytes: &[u8], path: &Path) -> Result<Vec<(std::ops::Range<usize>, String)>> {
    let malformed = |why| Error::malformed(path.display().to_string(), why);
    let archive = ArchiveFile::parse(bytes).map_err(malformed)?;
    let mut found = Vec::new();
    for member in archive.members() {
        let member = member.map_err(malformed)?;
        let (start, size) = member.file_range();
        let range = start as usize..start.saturating_add(size) as usize;
        let name = format!("{}({})", path.display(), String::from_utf8_lossy(member.name()));
        if bytes.get(range.clone()).is_some_and(|content| content.starts_with(b"\x7fELF")) {
            found.push((range, name));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_asks_for_is_understood() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = words(
            "--crate-name it src/main.rs --crate-type bin --emit=dep-info,link -C opt-level=3 -C extra-filename=-12 --out-dir deps -Clto=fat",
        );
        let it = Crate::of(&line).unwrap();
        assert_eq!((it.name, it.suffix, it.folder), ("it", "-12", "deps"));
        assert_eq!((codegen(&line, "lto"), codegen(&line, "opt-level")), (Some("fat"), Some("3")));
        for other in [
            "- --crate-name ___ --print=file-names",
            "--crate-name build_script_build --crate-type bin --emit=dep-info,link --out-dir d",
            "--crate-name m --crate-type proc-macro --emit=link --out-dir d",
            "--crate-name m --crate-type lib --emit=dep-info,metadata --out-dir d",
        ] {
            assert!(Crate::of(&words(other)).is_none(), "{other}");
        }
    }
}
