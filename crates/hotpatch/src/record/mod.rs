//! The record of a build: every object file, how it was made, and which objects are in which program.
//!
//! A folder: `record.json` says where and by which command, `steps.jsonl` has a line for each compilation and each link in
//! their order, `objects/` and `programs/` hold the files by the SHA-256 of their content, `bin/` the compilers' stand-ins.

mod arguments;
pub mod pads;
mod rust;
pub mod wrapper;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, FileContext, Result};
use crate::sys;

/// Raised when a record of before can no longer be read.
const VERSION: u32 = 1;
const ABOUT: &str = "record.json";
const STEPS: &str = "steps.jsonl";

/// What `record.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    version: u32,
    /// Where the command ran; paths below it are told apart by what follows it.
    root: PathBuf,
    command: Vec<String>,
    /// `SOURCE_DATE_EPOCH` of both builds, so that `__DATE__` is no change.
    epoch: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Step {
    Compile(Compile),
    Link(Link),
}

/// One object, and how it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Compile {
    pub folder: PathBuf,
    pub command: Vec<String>,
    pub source: PathBuf,
    pub output: PathBuf,
    /// SHA-256 of the object, in hexadecimal.
    pub object: String,
}

/// One program or shared library, and what the linker could take into it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Link {
    pub folder: PathBuf,
    pub command: Vec<String>,
    pub output: PathBuf,
    pub program: String,
    /// In the order in which the linker was given them.
    pub inputs: Vec<Input>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The object's path or `ARCHIVE(MEMBER)`, below the root if it is there.
    pub name: String,
    pub object: String,
}

/// A record that is being written or read.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    about: About,
}

pub fn hash(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Record {
    /// Begins a record in a folder that is empty or not there.
    pub fn create(folder: &Path, command: &[String], epoch: Option<u64>) -> Result<Self> {
        fs::create_dir_all(folder).or_file("create", folder)?;
        let folder = fs::canonicalize(folder).or_file("find", folder)?;
        if folder.join(ABOUT).exists() {
            return Err(Error::unfit(format!(
                "{} holds a record already: remove it, or name another folder",
                folder.display()
            )));
        }
        for part in ["objects", "programs"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).or_file("create", &part)?;
        }
        let root = std::env::current_dir().or_file("find", Path::new("."))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let about = About { version: VERSION, root, command: command.to_vec(), epoch: epoch.unwrap_or(now) };
        let text = serde_json::to_vec_pretty(&about).map_err(|e| Error::malformed("the record", e))?;
        let path = folder.join(ABOUT);
        fs::write(&path, text).or_file("write", &path)?;
        Ok(Self { folder, about })
    }

    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(ABOUT);
        let text = fs::read(&path).or_file("read", &path)?;
        let about: About =
            serde_json::from_slice(&text).map_err(|e| Error::malformed(path.display().to_string(), e))?;
        if about.version != VERSION {
            let why = format!("it is of version {}, and this is version {VERSION}", about.version);
            return Err(Error::malformed(path.display().to_string(), why));
        }
        Ok(Self { folder: fs::canonicalize(folder).or_file("find", folder)?, about })
    }

    pub fn epoch(&self) -> u64 {
        self.about.epoch
    }

    /// Runs a build under this record, with the stand-ins of `base` (its own, or those of the record it is compared with:
    /// a build system that has noted where its compiler is finds the same ones).
    pub fn run(&self, base: &Self, command: &[String]) -> Result<()> {
        let (program, rest) =
            command.split_first().ok_or_else(|| Error::unfit("no command was given to build with"))?;
        wrapper::put_headers(&self.folder)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = wrapper::install(&base.folder)?;
        let mut build = Command::new(program);
        build.args(rest);
        build.env("PATH", format!("{}:{path}", bin.display()));
        build.env(wrapper::RECORD_VARIABLE, &self.folder);
        build.env("SOURCE_DATE_EPOCH", self.about.epoch.to_string());
        build.env("RUSTC_WRAPPER", bin.join(rust::NAME));
        // Part of a crate that was compiled before is not compared.
        build.env("CARGO_INCREMENTAL", "0");
        for variable in ["CC", "CXX"] {
            if let Ok(value) = std::env::var(variable) {
                let (value, real) = wrapper::stand_in(&bin, &value)?;
                build.env(variable, value);
                if let Some((name, path)) = real {
                    build.env(format!("{}{name}", wrapper::REAL_VARIABLE), path);
                }
            }
        }
        // What is said on standard output is about the record or the patch.
        let status = build.stdout(std::io::stderr()).status().or_file("run", Path::new(program))?;
        if !status.success() {
            return Err(Error::unfit(format!("the build failed: {program}: {status}")));
        }
        Ok(())
    }

    /// Keeps a file by its content; returns its name.
    fn keep(&self, part: &str, bytes: &[u8]) -> Result<String> {
        let name = hash(bytes);
        let path = self.folder.join(part).join(&name);
        if !path.exists() {
            // Several compilers may keep the same at once: whole, or not there.
            let draft = self.folder.join(part).join(format!("{name}.{}", std::process::id()));
            fs::write(&draft, bytes).or_file("write", &draft)?;
            fs::rename(&draft, &path).or_file("write", &path)?;
        }
        Ok(name)
    }

    fn append(&self, step: &Step) -> Result<()> {
        let path = self.folder.join(STEPS);
        let mut line = serde_json::to_vec(step).map_err(|e| Error::malformed("a step", e))?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).open(&path).or_file("open", &path)?;
        // Compilers run side by side: one line at a time.
        sys::lock(file.as_fd(), true).or_file("lock", &path)?;
        file.write_all(&line).or_file("write", &path)
    }

    fn steps(&self) -> Result<Vec<Step>> {
        let path = self.folder.join(STEPS);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.or_file("read", &path)?,
        };
        let mut steps = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.or_file("read", &path)?;
            steps.push(
                serde_json::from_str(&line).map_err(|e| Error::malformed(path.display().to_string(), e))?,
            );
        }
        Ok(steps)
    }

    /// What was compiled, in order.
    pub fn compiles(&self) -> Result<Vec<Compile>> {
        let steps = self.steps()?.into_iter();
        Ok(steps
            .filter_map(|step| if let Step::Compile(compile) = step { Some(compile) } else { None })
            .collect())
    }

    /// What was linked, by its path below the root; of several with one path the last.
    pub fn links(&self) -> Result<BTreeMap<String, Link>> {
        let mut links = BTreeMap::new();
        for step in self.steps()? {
            if let Step::Link(link) = step {
                links.insert(self.shown(&link.output), link);
            }
        }
        Ok(links)
    }

    pub fn object(&self, name: &str) -> Result<Vec<u8>> {
        self.kept("objects", name)
    }

    pub fn program(&self, name: &str) -> Result<Vec<u8>> {
        self.kept("programs", name)
    }

    fn kept(&self, part: &str, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(part).join(name);
        let bytes = fs::read(&path).or_file("read", &path)?;
        if hash(&bytes) != name {
            return Err(Error::malformed(path.display().to_string(), "its content is not what was recorded"));
        }
        Ok(bytes)
    }

    /// A path as it is named in the record: below the root if it is there.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.about.root).unwrap_or(path).display().to_string()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
