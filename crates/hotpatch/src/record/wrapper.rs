//! The stand-in for a compiler: this binary under the compiler's name, first in `PATH` while a build is recorded.
//!
//! It calls the compiler with what a patch needs added, keeps each object, and records each link. Outside of a recorded
//! build it is the compiler and nothing else, because build systems note where they found theirs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use object::read::archive::ArchiveFile;

use super::arguments::{self, Argument, CommandLine, Mode};
use super::{Compile, Input, Link, Record, Step, pads, rust};
use crate::error::{Error, FileContext, Result};

/// Tells a stand-in where to record.
pub const RECORD_VARIABLE: &str = "OUTLIVE_PATCH_RECORD";
/// Followed by a stand-in's name: the compiler it stands for, if that is not the next of the name in `PATH`.
pub const REAL_VARIABLE: &str = "OUTLIVE_PATCH_REAL_";

const NAMES: [&str; 8] = ["cc", "gcc", "c++", "g++", "clang", "clang++", "c99", "c89"];

/// What a patch needs of both builds, and what every supported compiler knows.
const SECTIONS: [&str; 3] = ["-ffunction-sections", "-fdata-sections", "-fno-lto"];
/// Room at the entry: see `pads.rs`.
const ENTRY: &str = "-fpatchable-function-entry=5";
/// Keeps gcc from letting a function rely on what another happens to do (which registers it leaves alone, what it returns):
/// the other may be replaced. gcc's manual, -flive-patching.
const INDEPENDENT: &str = "-flive-patching=inline-clone";

/// Whether a program of this name is a compiler's stand-in.
pub fn is_stand_in(name: &str) -> bool {
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let plain = plain.rsplit_once("-linux-gnu-").map_or(plain, |(_, name)| name);
    NAMES.contains(&plain) || name == rust::NAME
}

/// Puts the stand-ins beside a record, and returns their folder.
pub(super) fn install(record: &Path) -> Result<PathBuf> {
    let folder = record.join("bin");
    fs::create_dir_all(&folder).or_file("create", &folder)?;
    for name in NAMES {
        put(&folder, name)?;
        put(&folder, &format!("x86_64-linux-gnu-{name}"))?;
    }
    put(&folder, rust::NAME)?;
    Ok(folder)
}

/// What a fix can include that is not the program's, by the name it is included by.
const HEADERS: [(&str, &str); 1] =
    [("outlive_shadow.h", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/include/outlive_shadow.h")))];

fn headers(record: &Path) -> PathBuf {
    record.join("include")
}

/// Puts the headers beside a record.
pub(super) fn put_headers(record: &Path) -> Result<()> {
    let folder = headers(record);
    fs::create_dir_all(&folder).or_file("create", &folder)?;
    for (name, text) in HEADERS {
        let path = folder.join(name);
        fs::write(&path, text).or_file("write", &path)?;
    }
    Ok(())
}

fn put(folder: &Path, name: &str) -> Result<PathBuf> {
    let own = env::current_exe().or_file("find", Path::new("/proc/self/exe"))?;
    let path = folder.join(name);
    if fs::read_link(&path).is_ok_and(|target| target == own) {
        return Ok(path);
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).or_file("replace", &path);
        }
        _ => {}
    }
    symlink(&own, &path).or_file("create", &path)?;
    Ok(path)
}

/// A compiler that a stand-in is told to call: its name, and where it is.
pub(super) type Called = (String, PathBuf);

/// What `CC` or `CXX` becomes, and which compiler the stand-in is told to call, if one is named by a path.
pub(super) fn stand_in(folder: &Path, value: &str) -> Result<(String, Option<Called>)> {
    let Some(word) = value
        .split_whitespace()
        .find(|word| Path::new(word).file_name().and_then(|name| name.to_str()).is_some_and(is_stand_in))
    else {
        return Ok((value.to_owned(), None));
    };
    let path = Path::new(word);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ours = put(folder, &name)?;
    let real = path.is_absolute().then(|| (name, path.to_owned()));
    Ok((value.replacen(word, &ours.display().to_string(), 1), real))
}

/// The whole of a stand-in's run.
pub fn main(name: &str) -> ExitCode {
    match run(name, env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("outlive ({name}): {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn run(name: &str, words: Vec<String>) -> Result<ExitCode> {
    if name == rust::NAME {
        return rust::run(&words, env::var_os(RECORD_VARIABLE).as_deref());
    }
    let real = find_real(name)?;
    let Some(folder) = env::var_os(RECORD_VARIABLE) else {
        let error = Command::new(&real).args(&words).exec();
        return Err(Error::File { attempted: "run", path: real, source: error });
    };
    let words = arguments::expand(words);
    let line = CommandLine::parse(&words);
    let step = Recording { record: Record::open(Path::new(&folder))?, real, name: name.to_owned() };
    match line.mode {
        Mode::Compile if !line.is_odd && !is_trial(&line) => step.compile(&line, &words),
        Mode::Link if !line.is_odd && !is_trial(&line) => step.link(&line),
        _ => step.pass(&words),
    }
}

/// What `configure` and cmake compile to see whether it can be compiled.
fn is_trial(line: &CommandLine) -> bool {
    let folder = env::current_dir().unwrap_or_default();
    let names = line.sources().chain(line.output());
    let mut all = names.map(|name| folder.join(name));
    all.any(|path| {
        path.iter().filter_map(|part| part.to_str()).any(|part| {
            part.starts_with("conftest")
                || part == "CMakeTmp"
                || part == "CMakeScratch"
                || part == "meson-private"
        })
    })
}

/// The compiler that a stand-in stands for: the next of its name in `PATH` that is not this binary.
fn find_real(name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(format!("{REAL_VARIABLE}{name}")) {
        return Ok(path.into());
    }
    let own = env::current_exe().and_then(fs::canonicalize).or_file("find", Path::new("/proc/self/exe"))?;
    for folder in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        let candidate = folder.join(name);
        let Ok(real) = fs::canonicalize(&candidate) else { continue };
        let runs =
            fs::metadata(&real).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if runs && real != own {
            return Ok(candidate);
        }
    }
    Err(Error::unfit(format!("there is no compiler {name} in PATH")))
}

struct Recording {
    record: Record,
    real: PathBuf,
    name: String,
}

impl Recording {
    fn pass(&self, words: &[String]) -> Result<ExitCode> {
        let error = Command::new(&self.real).args(words).exec();
        Err(Error::File { attempted: "run", path: self.real.clone(), source: error })
    }

    fn call(&self, words: &[String]) -> Result<Option<ExitCode>> {
        let status = Command::new(&self.real).args(words).status().or_file("run", &self.real)?;
        Ok(match status.code() {
            Some(0) => None,
            code => Some(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
        })
    }

    /// The options that are added to a compilation.
    fn added(&self, line: &CommandLine) -> Result<Vec<String>> {
        let mut added: Vec<String> = SECTIONS.iter().map(ToString::to_string).collect();
        if !line.options().any(|option| option.starts_with("-g") && option != "-g0") {
            added.push("-g".to_owned());
        }
        added.push("-gz=none".to_owned());
        // Behind all others: what the program has by the same name is the program's.
        added.extend(["-idirafter".to_owned(), headers(self.record.folder()).display().to_string()]);
        for option in [ENTRY, INDEPENDENT] {
            if self.knows(option)? {
                added.push(option.to_owned());
            }
        }
        Ok(added)
    }

    /// Whether the compiler knows an option; asked once a record.
    fn knows(&self, option: &str) -> Result<bool> {
        let note = self.record.folder().join("bin").join(format!(".{}{option}", self.name.replace('/', "_")));
        if let Some(text) = read_if_there(&note)? {
            return Ok(text == b"yes");
        }
        let output = Command::new(&self.real)
            .args(["-Werror", option, "-x", "c", "-c", "/dev/null", "-o", "/dev/null"])
            .output()
            .or_file("run", &self.real)?;
        let knows = output.status.success();
        if let Some(folder) = note.parent() {
            fs::create_dir_all(folder).or_file("create", folder)?;
        }
        fs::write(&note, if knows { "yes" } else { "no" }).or_file("write", &note)?;
        Ok(knows)
    }

    fn compile(&self, line: &CommandLine, words: &[String]) -> Result<ExitCode> {
        let mut words = words.to_vec();
        words.extend(self.added(line)?);
        if let Some(code) = self.call(&words)? {
            return Ok(code);
        }
        for source in line.sources() {
            let output = line.output().map_or_else(
                || Path::new(source).with_extension("o").file_name().map(PathBuf::from).unwrap_or_default(),
                PathBuf::from,
            );
            self.keep_object(&words, Path::new(source), &output)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prepares an object's pads in place, keeps it and notes how it was made.
    fn keep_object(&self, words: &[String], source: &Path, output: &Path) -> Result<()> {
        // `-o /dev/null` and the like make nothing.
        let Some(mut bytes) = read_if_there(output)?.filter(|bytes| bytes.starts_with(b"\x7fELF")) else {
            return Ok(());
        };
        if pads::prepare(&output.display().to_string(), &mut bytes)? > 0 {
            fs::write(output, &bytes).or_file("write", output)?;
        }
        let object = self.record.keep("objects", &bytes)?;
        let folder = env::current_dir().or_file("find", Path::new("."))?;
        self.record.append(&Step::Compile(Compile {
            command: self.whole(words),
            source: folder.join(source),
            output: folder.join(output),
            object,
            folder,
        }))
    }

    fn whole(&self, words: &[String]) -> Vec<String> {
        std::iter::once(self.real.display().to_string()).chain(words.iter().cloned()).collect()
    }

    fn link(&self, line: &CommandLine) -> Result<ExitCode> {
        let folder = env::current_dir().or_file("find", Path::new("."))?;
        let mut words = Vec::new();
        let mut inputs = Vec::new();
        let mut drafts = Vec::new();
        let mut is_to_be_stripped = false;
        let is_static = line.options().any(|option| option == "-static");
        for argument in &line.arguments {
            match argument {
                Argument::Source(source) => {
                    let name = format!("draft-{}-{}.o", std::process::id(), drafts.len());
                    let draft = self.record.folder().join("objects").join(name);
                    let mut compile: Vec<String> = line.compile_options().cloned().collect();
                    compile.extend([
                        "-c".to_owned(),
                        source.clone(),
                        "-o".to_owned(),
                        draft.display().to_string(),
                    ]);
                    compile.extend(self.added(line)?);
                    if let Some(code) = self.call(&compile)? {
                        remove(&drafts);
                        return Ok(code);
                    }
                    self.keep_object(&compile, Path::new(source), &draft)?;
                    words.push(draft.display().to_string());
                    let bytes = fs::read(&draft).or_file("read", &draft)?;
                    let name = format!("{}.o", self.record.shown(&folder.join(source)));
                    inputs.push(Input { name, object: self.record.keep("objects", &bytes)? });
                    drafts.push(draft);
                }
                Argument::Input(path) => {
                    words.push(path.clone());
                    if path.ends_with(RUST_OBJECT) {
                        prepare_pads(&folder.join(path))?;
                    }
                    self.take_input(&folder.join(path), &mut inputs)?;
                }
                Argument::Library(name) => {
                    words.push(format!("-l{name}"));
                    if let Some(path) = find_library(line, &folder, name, is_static) {
                        self.take_input(&path, &mut inputs)?;
                    }
                }
                // The symbols are needed in the record: they are taken out of the program afterwards.
                Argument::Option(option)
                    if ["-s", "-Wl,-s", "-Wl,--strip-all"].contains(&option[0].as_str()) =>
                {
                    is_to_be_stripped = true;
                }
                Argument::Option(option) => words.extend(option.iter().cloned()),
                Argument::Output(path) => words.extend(["-o".to_owned(), path.clone()]),
            }
        }
        words.push("-fno-lto".to_owned());
        if !line.options().any(|option| option.contains("--build-id")) {
            words.push("-Wl,--build-id=sha1".to_owned());
        }
        let outcome = self.call(&words)?;
        remove(&drafts);
        if let Some(code) = outcome {
            return Ok(code);
        }
        let output = folder.join(line.output().unwrap_or("a.out"));
        let Some(bytes) = read_if_there(&output)? else { return Ok(ExitCode::SUCCESS) };
        if bytes.starts_with(b"\x7fELF") {
            let program = self.record.keep("programs", &bytes)?;
            let command = self.whole(&words);
            self.record.append(&Step::Link(Link {
                folder,
                command,
                output: output.clone(),
                program,
                inputs,
            }))?;
        }
        if is_to_be_stripped {
            let status = Command::new("strip").arg(&output).status().or_file("run", Path::new("strip"))?;
            if !status.success() {
                return Err(Error::unfit(format!("strip {}: {status}", output.display())));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Notes an object, or every member of an archive.
    fn take_input(&self, path: &Path, inputs: &mut Vec<Input>) -> Result<()> {
        // What the linker looks for elsewhere (`-Wl,` and the like) is not of this build.
        let Some(bytes) = read_if_there(path)? else { return Ok(()) };
        let shown = self.record.shown(path);
        if bytes.starts_with(b"\x7fELF") {
            // `e_type` (ELF-64 Object File Format, 4): 1 is an object; a shared library is not taken in.
            if bytes.get(16) == Some(&1) {
                inputs.push(Input { name: shown, object: self.record.keep("objects", &bytes)? });
            }
            return Ok(());
        }
        let Ok(archive) = ArchiveFile::parse(bytes.as_slice()) else { return Ok(()) };
        for member in archive.members() {
            let member = member.map_err(|e| Error::malformed(&shown, e))?;
            let name = String::from_utf8_lossy(member.name()).into_owned();
            // A thin archive names files beside it.
            let content = if archive.is_thin() {
                let file = path.parent().unwrap_or(Path::new(".")).join(&name);
                fs::read(&file).or_file("read", &file)?
            } else {
                member.data(bytes.as_slice()).map_err(|e| Error::malformed(&shown, e))?.to_vec()
            };
            if content.starts_with(b"\x7fELF") {
                let object = self.record.keep("objects", &content)?;
                inputs.push(Input { name: format!("{shown}({name})"), object });
            }
        }
        Ok(())
    }
}

/// A file's content; `None` if there is no such file. One that cannot be read would be missing in the record.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.or_file("read", path).map(Some),
    }
}

/// An object that rustc hands to the linker: it has not been in our hands before.
const RUST_OBJECT: &str = ".rcgu.o";

fn prepare_pads(path: &Path) -> Result<()> {
    let Some(mut bytes) = read_if_there(path)? else { return Ok(()) };
    if bytes.starts_with(b"\x7fELF") && pads::prepare(&path.display().to_string(), &mut bytes)? > 0 {
        fs::write(path, &bytes).or_file("write", path)?;
    }
    Ok(())
}

fn remove(drafts: &[PathBuf]) {
    for draft in drafts {
        // A draft that stays is only in the way of nobody.
        let _ = fs::remove_file(draft);
    }
}

/// An archive that `-lNAME` means. What is in the system's folders is not of this build.
fn find_library(line: &CommandLine, folder: &Path, name: &str, is_static: bool) -> Option<PathBuf> {
    for place in line.library_folders() {
        let place = folder.join(place);
        let names: [OsString; 2] = [format!("lib{name}.so").into(), format!("lib{name}.a").into()];
        if !is_static && place.join(&names[0]).exists() {
            return None;
        }
        if place.join(&names[1]).exists() {
            return Some(place.join(&names[1]));
        }
    }
    None
}
