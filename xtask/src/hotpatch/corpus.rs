//! Real fixes: every patch of a source package that touches C, in the order in which the package has them. The program is recorded
//! as it was before each, runs under load, gets the fix as a patch, and loses it again.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::load::{self, Kind, Load, Sql};
use super::packages::{Package, Place, Variant};
use super::probe::{self, Peer, Probe};

/// Connections of the load, and requests that have to be answered in each phase.
const CONNECTIONS: usize = 8;
const REQUESTS: u64 = 1000;
const PHASE_LIMIT: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_secs(30);
/// What C and C++ sources are called.
const SOURCES: [&str; 7] = ["c", "h", "cc", "cpp", "hpp", "y", "l"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "why")]
pub enum Outcome {
    /// Applied, in effect, reverted; the load saw no error.
    Patched,
    /// The builder or the patcher said no.
    Refused(String),
    /// Applied, and something was wrong.
    Wrong(String),
    /// The change is of nothing that this build compiles: no fix of this program.
    NotCompiled(String),
}

/// What became of one fix.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fix {
    pub package: String,
    pub version: String,
    pub patch: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    #[serde(default)]
    pub functions: u64,
    #[serde(default)]
    pub bytes: u64,
    /// Seconds of making the patch, beyond the rebuild.
    #[serde(default)]
    pub build_ms: u64,
    #[serde(default)]
    pub apply_us: u64,
    #[serde(default)]
    pub longest_hold_us: u64,
    /// A probe has seen its effect.
    #[serde(default)]
    pub seen: bool,
}

/// A package that is unpacked and worked on.
pub struct Tree<'a> {
    package: &'a Package,
    /// `target/corpus/NAME`.
    folder: PathBuf,
    tree: PathBuf,
    version: String,
    outlive: PathBuf,
    /// Where the keys are.
    keys: PathBuf,
}

/// How `outlive` ends when it refuses (`outlive help`): any other end is a failure of its own.
const REFUSED: i32 = 5;

/// What a run of `outlive patch` that failed means for the fix.
fn refused_or_wrong(output: &Output, why: &str) -> Outcome {
    let why = why.trim_start_matches("error: ");
    match output.status.code() {
        Some(REFUSED) => Outcome::Refused(why.to_owned()),
        _ => Outcome::Wrong(format!("outlive patch: {}: {why}", output.status)),
    }
}

/// What `outlive patch build` says it has made: what the build itself prints comes first.
pub fn said(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).context("the builder's JSON")
}

fn checked(mut command: Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        bail!("{command:?}: {}: {}", output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(output)
}

/// A configuration of apt of our own, with the source packages of whatever the machine's own has.
pub fn prepare_apt(corpus: &Path) -> Result<PathBuf> {
    let folder = corpus.join("apt");
    let config = folder.join("apt.conf");
    if config.exists() {
        return Ok(config);
    }
    for part in ["lists/partial", "cache/archives/partial", "sources"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir(parts).into_iter().flatten().flatten().map(|entry| entry.path()));
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let is_debian = text.contains("debian");
        let name = file.file_name().unwrap_or_default();
        let source: String = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => text.replace("Types: deb\n", "Types: deb-src\n"),
            Some("list") => text
                .lines()
                .filter_map(|line| Some(format!("deb-src {}\n", line.strip_prefix("deb ")?)))
                .collect(),
            _ => continue,
        };
        if is_debian {
            fs::write(folder.join("sources").join(name), source)?;
        }
    }
    let place = folder.display();
    let text = format!(
        "Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{place}/sources\";\nDir::State::Lists \"{place}/lists\";\n\
         Dir::Cache \"{place}/cache\";\nAPT::Sandbox::User \"root\";\n"
    );
    let draft = folder.join("draft.conf");
    fs::write(&draft, text)?;
    let mut update = Command::new("apt-get");
    update.arg("update").env("APT_CONFIG", &draft);
    checked(update)?;
    fs::rename(&draft, &config)?;
    Ok(config)
}

impl<'a> Tree<'a> {
    /// Fetches and unpacks a package into a folder of this name, without its patches.
    pub fn unpack(
        package: &'a Package,
        name: &str,
        corpus: &Path,
        apt: &Path,
        outlive: &Path,
        keys: &Path,
    ) -> Result<Self> {
        let folder = corpus.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let kept = corpus.join("packages").join(package.name);
        let find = |folder: &Path| -> Option<PathBuf> {
            let mut files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
            files.find(|path| path.extension().is_some_and(|extension| extension == "dsc"))
        };
        if find(&kept).is_none() {
            fs::create_dir_all(&kept)?;
            fetch(package.name, &kept, apt)?;
        }
        let description = find(&kept).context("apt-get fetched no description of the package")?;
        let name = description.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.split_once('_').map_or(name.as_str(), |(_, version)| version).to_owned();
        let tree = folder.join("tree");
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--skip-patches", "--no-check", "-x"]).arg(&description).arg(&tree);
        checked(unpack)?;
        Ok(Self { package, folder, tree, version, outlive: outlive.to_owned(), keys: keys.to_owned() })
    }

    /// The patches, in their order.
    fn series(&self) -> Result<Vec<String>> {
        let path = self.tree.join("debian/patches/series");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.filter(|name| !name.starts_with('#')).map(str::to_owned).collect())
    }

    fn touches_c(&self, patch: &str) -> Result<bool> {
        let text = fs::read(self.tree.join("debian/patches").join(patch))?;
        let text = String::from_utf8_lossy(&text);
        let mut files = text.lines().filter_map(|line| line.strip_prefix("+++ ")?.split_whitespace().next());
        Ok(files.any(|file| {
            Path::new(file)
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| SOURCES.contains(&extension))
        }))
    }

    fn change(&self, patch: &str) -> Result<()> {
        let file = self.tree.join("debian/patches").join(patch);
        let mut command = Command::new("patch");
        command.args(["-p1", "--no-backup-if-mismatch", "--force", "--input"]).arg(file);
        command.current_dir(&self.tree);
        checked(command).map(drop)
    }

    fn patch_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.outlive);
        command.arg("patch").args(words).current_dir(&self.tree).stdin(Stdio::null());
        command
    }

    /// Builds give way to whatever else the machine has to do.
    fn shell(&self, command: &mut Command, text: &str) {
        command.args(["--", "nice", "-n", "19", "sh", "-e", "-c", text]);
    }

    /// Builds under the recorder; the programs are linked anew, so that they are in the record.
    fn record(&self, name: &str, text: &str) -> Result<PathBuf> {
        for link in self.package.links {
            match fs::remove_file(self.tree.join(link)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let base = self.folder.join(name);
        if base.exists() {
            fs::remove_dir_all(&base)?;
        }
        let mut command = self.patch_command(&["record", "--out"]);
        command.arg(&base);
        self.shell(&mut command, text);
        checked(command)?;
        Ok(base)
    }

    /// Goes through all fixes, and stops at those that are `wanted` (at all, if none is named); `done` gets each as it is known.
    pub fn run(&self, wanted: &[String], mut done: impl FnMut(Fix) -> Result<()>) -> Result<()> {
        let series = self.series()?;
        let mut is_configured = false;
        for patch in &series {
            if self.touches_c(patch)? && (wanted.is_empty() || wanted.contains(patch)) {
                if !is_configured {
                    self.configure()?;
                    is_configured = true;
                }
                let begun = Instant::now();
                let (base, place) = self.record_programs().with_context(|| format!("before {patch}"))?;
                self.change(patch)?;
                let mut fix = Fix {
                    package: self.package.name.to_owned(),
                    version: self.version.clone(),
                    patch: patch.clone(),
                    outcome: Outcome::Patched,
                    functions: 0,
                    bytes: 0,
                    build_ms: 0,
                    apply_us: 0,
                    longest_hold_us: 0,
                    seen: false,
                };
                fix.outcome = self.one(&base, &place, &mut fix)?;
                eprintln!(
                    "{} {patch}: {:?} ({} functions, hold {} us, {:.0} s)",
                    self.package.name,
                    fix.outcome,
                    fix.functions,
                    fix.longest_hold_us,
                    begun.elapsed().as_secs_f64()
                );
                done(fix)?;
            } else {
                self.change(patch)?;
            }
        }
        Ok(())
    }

    /// The first build of all.
    pub fn configure(&self) -> Result<()> {
        let whole = format!("{}\n{}", self.package.configure, self.package.build);
        self.record("first", &whole).context("the first build").map(drop)
    }

    /// A record of the tree as it is, and where the programs are that were linked.
    pub fn record_programs(&self) -> Result<(PathBuf, PathBuf)> {
        let base = self.record("base", self.package.build)?;
        Ok((base, self.keep_programs()?))
    }

    /// Makes a patch of what has changed since.
    pub fn build_patch(&self, base: &Path, file: &Path, name: &str) -> Result<Output> {
        let mut command = self.patch_command(&["build", "--json", "--base"]);
        command.arg(base).arg("--out").arg(file).arg("--key").arg(self.keys.join("patch.key"));
        command.arg("--name").arg(name);
        self.shell(&mut command, self.package.build);
        command.output().context("cannot run outlive patch build")
    }

    /// A file of the unpacked sources.
    pub fn file(&self, name: &str) -> PathBuf {
        self.tree.join(name)
    }

    /// Copies of what was linked: what runs is not what the next build writes.
    fn keep_programs(&self) -> Result<PathBuf> {
        let place = self.folder.join("run");
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::create_dir_all(&place)?;
        for link in self.package.links {
            let from = self.tree.join(link);
            if from.exists() {
                let name = from.file_name().context("a link has no name")?;
                fs::copy(&from, place.join(name))?;
            }
        }
        // A library is looked for by its shorter name.
        let library = place.join("libevent-2.1.so.7.0.1");
        if library.exists() {
            std::os::unix::fs::symlink(&library, place.join("libevent-2.1.so.7"))?;
        }
        fs::create_dir_all(place.join("logs"))?;
        Ok(place)
    }

    fn one(&self, base: &Path, place: &Path, fix: &mut Fix) -> Result<Outcome> {
        let file = self.folder.join("fixes").join(format!("{}.opatch", fix.patch.replace('/', "-")));
        fs::create_dir_all(self.folder.join("fixes"))?;
        let output = self.build_patch(base, &file, &fix.patch)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let why = text.lines().rev().find(|line| line.contains("error") || line.starts_with("outlive"));
            let why = why.or(text.lines().last()).unwrap_or_default();
            if why.contains("nothing to patch") || why.contains("linked nothing") {
                return Ok(Outcome::NotCompiled("nothing that is built here changes".to_owned()));
            }
            if text.contains("the build failed") {
                let tail: Vec<&str> = text.lines().rev().take(12).collect();
                bail!("{}: {}", fix.patch, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            return Ok(refused_or_wrong(&output, why));
        }
        let made = said(&output)?;
        let parts = made["parts"].as_array().context("the builder named no parts")?;
        for part in parts {
            fix.functions += part["functions"].as_array().map_or(0, |all| all.len() as u64);
            fix.bytes += part["bytes"].as_u64().unwrap_or(0);
        }
        fix.build_ms = made["times"]["patch_ms"].as_u64().unwrap_or(0);
        let probes: Vec<&Probe> =
            self.package.probes.iter().filter(|probe| probe.patch == fix.patch).collect();
        match self.live(place, &file, fix, &probes) {
            Ok(outcome) => Ok(outcome),
            Err(error) => Ok(Outcome::Wrong(format!("{error:#}"))),
        }
    }

    /// Applies a patch to the running program under load, and reverts it.
    fn live(&self, place: &Path, file: &Path, fix: &mut Fix, probes: &[&Probe]) -> Result<Outcome> {
        // First what a program without the fix is not asked twice: it ends before the one that is patched starts.
        let variant = self.package.variants.iter().find(|variant| variant.patch == fix.patch);
        for probe in probes.iter().filter(|probe| probe.is_apart()) {
            let mut running = launch(self.package, variant, place)?;
            probe.without(&mut running).context("a program without the patch")?;
        }
        let (mut running, load) = start(self.package, variant, place, CONNECTIONS)?;
        let go_on = |load: &Load, phase: &str| -> Result<()> {
            ensure!(load.wait_for(REQUESTS, PHASE_LIMIT), "the load does not go on {phase}");
            Ok(())
        };
        go_on(&load, "before the patch")?;
        // What answers has all of its processes by now.
        let pids = running.pids()?;
        let ask_unpatched = |running: &mut Running, phase: &str| -> Result<()> {
            for probe in probes.iter().filter(|probe| !probe.is_apart()) {
                probe.without(running).with_context(|| phase.to_owned())?;
            }
            Ok(())
        };
        ask_unpatched(&mut running, "without the patch")?;
        let trust = self.keys.join("patch.pub");
        for pid in &pids {
            let mut command = self.patch_command(&["apply", "--json", "--pid", &pid.to_string(), "--trust"]);
            command.arg(&trust).arg(file);
            let output = command.output()?;
            if !output.status.success() {
                return Ok(refused_or_wrong(&output, String::from_utf8_lossy(&output.stderr).trim()));
            }
            let report: Value = serde_json::from_slice(&output.stdout).context("the patcher's JSON")?;
            fix.apply_us = fix.apply_us.max(report["took_us"].as_u64().unwrap_or(0));
            fix.longest_hold_us = fix.longest_hold_us.max(report["longest_hold_us"].as_u64().unwrap_or(0));
        }
        go_on(&load, "with the patch")?;
        for probe in probes {
            probe.with(&running).context("with the patch")?;
        }
        go_on(&load, "with the patch, after its effect was seen")?;
        for pid in &pids {
            let listed = checked(self.patch_command(&["ls", "--json", "--pid", &pid.to_string()]))?;
            let listed: Value = serde_json::from_slice(&listed.stdout)?;
            ensure!(listed[0]["state"] == "applied", "ls says {listed}");
            checked(self.patch_command(&["revert", "--pid", &pid.to_string()]))?;
        }
        go_on(&load, "after the revert")?;
        ask_unpatched(&mut running, "after the revert")?;
        let seen = load.stop();
        ensure!(seen.errors.is_empty(), "the load saw {}", seen.errors.join("; "));
        ensure!(running.pids()? == pids, "processes came or went");
        fix.seen = !probes.is_empty();
        Ok(Outcome::Patched)
    }
}

/// Starts the program of a package, and clients that ask it.
pub fn start(
    package: &Package,
    variant: Option<&Variant>,
    folder: &Path,
    connections: usize,
) -> Result<(Running, Load)> {
    let running = launch(package, variant, folder)?;
    let load = match &running.pipe {
        Some(pipe) => Load::start_sql(pipe)?,
        None => Load::start(package.load, running.place.port, connections)?,
    };
    Ok((running, load))
}

/// Starts the program of a package, and waits until it can be asked.
fn launch(package: &Package, variant: Option<&Variant>, folder: &Path) -> Result<Running> {
    let backend = load::backend().context("cannot listen")?;
    let peer = Peer::listen().context("cannot listen")?;
    // All are held until each is known: no two are the same.
    let mut held = Vec::new();
    let mut port = || -> Result<u16> {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        Ok(held[held.len() - 1].local_addr()?.port())
    };
    let (port, others) = (port()?, [port()?, port()?, port()?, port()?]);
    drop(held);
    let place = Place { folder: folder.to_owned(), port, others, backend, peer: peer.port()? };
    let mut command = (package.start)(&place)?;
    command.args(variant.map_or(&[][..], |variant| variant.arguments));
    let child = command.current_dir(folder).spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut running = Running { child, place, peer, pipe: None };
    if package.load == Kind::Sql {
        let (input, output) = (running.child.stdin.take(), running.child.stdout.take());
        let pipe = Sql::new(input.context("no input")?, output.context("no output")?);
        running.pipe = Some(Arc::new(Mutex::new(pipe)));
        return Ok(running);
    }
    let deadline = Instant::now() + START_LIMIT;
    while !answers(package.load, port) {
        ensure!(Instant::now() < deadline, "{} does not answer", package.name);
        if let Some(status) = running.child.try_wait()? {
            bail!("{} ended at once: {status}", package.name);
        }
        thread::sleep(Duration::from_millis(20));
    }
    if let Some(variant) = variant {
        probe::prepare(variant.prepare, &running).context("before the load")?;
    }
    Ok(running)
}

fn answers(kind: Kind, port: u16) -> bool {
    if kind != Kind::Dns {
        return TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    }
    // Who has taken the port has bound it.
    UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

fn fetch(name: &str, folder: &Path, apt: &Path) -> Result<()> {
    let mut command = Command::new("apt-cache");
    command.args(["showsrc", "--only-source", name]).env("APT_CONFIG", apt);
    let output = checked(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let versions: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("Version: ")).collect();
    // A mirror may lack the newest: then the one before.
    for version in versions {
        let mut command = Command::new("apt-get");
        command.args(["source", "--only-source", "--download-only", &format!("{name}={version}")]);
        command.env("APT_CONFIG", apt).current_dir(folder);
        if command.output()?.status.success() {
            return Ok(());
        }
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "dsc") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    bail!("no version of {name} can be fetched")
}

/// A program that runs, and is ended with this.
pub struct Running {
    child: Child,
    pub place: Place,
    /// What it may connect to.
    pub peer: Peer,
    /// Its input and output, if it is asked by them.
    pub pipe: Option<Arc<Mutex<Sql>>>,
}

impl Running {
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Bytes of memory that belong to no file, of all of its processes.
    pub fn memory(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.pids()? {
            let path = format!("/proc/{pid}/status");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            sum += kib.with_context(|| format!("no RssAnon in {path}"))? << 10;
        }
        Ok(sum)
    }

    /// It and its children, oldest first.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            pids.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
            next += 1;
        }
        Ok(pids)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A parent first: it would start another child.
        for pid in self.pids().unwrap_or_default() {
            // It may have ended by now.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.child.wait();
    }
}
