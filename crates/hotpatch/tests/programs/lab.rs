//! Building, recording and running the programs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use outlive_hotpatch::build::{self, Options};
use outlive_hotpatch::patch::{self, Patch, Signed};
use outlive_hotpatch::record::Record;
use outlive_hotpatch::refusal::Kind;
use outlive_hotpatch::running::{Patcher, Region, Report, State};
use tempfile::TempDir;

/// How long a process may take to come to a state: a machine may be busy.
const STATE_LIMIT: Duration = Duration::from_secs(30);
/// How long a moment may be waited for in which no thread is in some functions.
const MOMENT_LIMIT: Duration = Duration::from_secs(120);

/// A recorded program in a folder of its own.
pub struct Recorded {
    folder: TempDir,
    command: String,
    pub base: Record,
}

/// Where the sources are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

/// The command as the shell gets it: in the folder, with flags that stand for `$FLAGS`.
fn shell(folder: &Path, command: &str, flags: &str) -> Vec<String> {
    let text = format!("cd {} && FLAGS='{flags}' && {command}", folder.display());
    ["sh", "-c", &text].map(str::to_owned).to_vec()
}

impl Recorded {
    /// Records the build of a program by a shell command in which `$FLAGS` says which version it is.
    pub fn new(command: &str) -> Self {
        Self::with(command, |_| {})
    }

    /// With more in its folder than the sources.
    pub fn with(command: &str, add: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        add(folder.path());
        for entry in fs::read_dir(sources()).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| ["c", "cpp", "h"].iter().any(|known| extension == *known))
            {
                fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        let command = command.to_owned();
        let shell = shell(folder.path(), &command, "");
        let base = Record::create(&folder.path().join("base"), &shell, None).unwrap();
        base.run(&base, &shell).unwrap();
        // What runs is not what the build of the patch writes.
        fs::rename(folder.path().join("program"), folder.path().join("running")).unwrap();
        Self { folder, command, base }
    }

    /// A program that says itself how it is built (`constructs.rs`).
    pub fn of_header(name: &str) -> Self {
        let text = fs::read_to_string(sources().join(format!("{name}.c"))).unwrap();
        Self::new(text.lines().find_map(|line| line.strip_prefix("// build: ")).unwrap())
    }

    pub fn simple(name: &str) -> Self {
        Self::new(&format!("gcc -O2 -pthread $FLAGS -o program {name}.c"))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn build(&self, flags: &str, options: Options) -> outlive_hotpatch::Result<Patch> {
        let shell = shell(self.folder.path(), &self.command, flags);
        let place = tempfile::tempdir_in(self.folder.path()).unwrap();
        let kept: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        let new = Record::create(&place.path().join("new"), &shell, Some(self.base.epoch())).unwrap();
        new.run(&self.base, &shell).unwrap();
        for (path, bytes) in kept {
            // By another file: the old may be mapped.
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        build::build(&self.base, &new, options)
    }

    pub fn patch(&self) -> Signed {
        sign(&self.build("-DFIXED", Options { name: "fix".to_owned(), ..Options::default() }).unwrap())
    }

    pub fn start(&self) -> Running {
        Running::start(Command::new(self.folder.path().join("running")).current_dir(self.folder.path()))
    }
}

pub fn allowing(kinds: &[Kind]) -> Options {
    Options {
        name: "fix".to_owned(),
        allow: kinds.iter().copied().collect::<BTreeSet<_>>(),
        ..Options::default()
    }
}

/// Through the file, as it comes to who applies it.
pub fn sign(made: &Patch) -> Signed {
    patch::read(&patch::write(made, &key()).unwrap(), &[key().verifying_key()]).unwrap()
}

/// Where functions are to switch together and a machine is so busy that their threads hardly run, the patcher says so; then it is asked
/// again.
pub fn in_time<T>(mut attempt: impl FnMut() -> outlive_hotpatch::Result<T>) -> outlive_hotpatch::Result<T> {
    let deadline = Instant::now() + MOMENT_LIMIT;
    loop {
        match attempt() {
            Err(error) if error.to_string().contains("had no moment") && Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

/// How many threads of a process run before those of other programs.
pub fn preferred_threads(pid: i32) -> usize {
    // proc_pid_stat(5): behind the name, which may have any character, policy is field 41; 0 is `SCHED_OTHER`.
    let is_ordinary = |task: &fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap();
        text.rsplit_once(')').unwrap().1.split_whitespace().nth(41 - 3) == Some("0")
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(Result::unwrap).filter(|task| !is_ordinary(task)).count()
}

/// A program that answers lines.
pub struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    pub fn tell(&mut self, line: &str) {
        // A program that has ended does not read.
        let _ = self.input.write_all(format!("{line}\n").as_bytes());
    }

    /// Waits until its first thread is in a state that `/proc/PID/status` names so.
    pub fn await_state(&self, state: char) {
        let path = format!("/proc/{}/status", self.pid());
        let deadline = Instant::now() + STATE_LIMIT;
        while !fs::read_to_string(&path).unwrap().contains(&format!("State:\t{state}")) {
            assert!(Instant::now() < deadline, "process {} does not come to state {state}", self.pid());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a thread of this name is in a state.
    pub fn await_thread(&self, name: &str, state: char) {
        let path = format!("/proc/{}/task", self.pid());
        let deadline = Instant::now() + STATE_LIMIT;
        let is_it = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("status")).unwrap();
            text.contains(&format!("Name:\t{name}\n")) && text.contains(&format!("State:\t{state}"))
        };
        while !fs::read_dir(&path).unwrap().any(|task| is_it(task.unwrap())) {
            assert!(Instant::now() < deadline, "thread {name} does not come to state {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no thread runs before those of other programs any more, as it may while it is stopped.
    pub fn await_ordinary(&self) {
        let deadline = Instant::now() + STATE_LIMIT;
        while preferred_threads(self.pid()) > 0 {
            assert!(Instant::now() < deadline, "a thread of process {} stays preferred", self.pid());
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the program ended: {:?}", self.child.wait());
        answer.trim_end().to_owned()
    }

    pub fn patcher(&self) -> Patcher<'static> {
        Patcher::open(self.pid()).unwrap()
    }

    pub fn apply(&self, signed: &Signed) -> Report {
        in_time(|| self.patcher().apply(signed)).unwrap()
    }

    pub fn revert(&self) -> Report {
        in_time(|| self.patcher().revert(false)).unwrap()
    }

    pub fn states(&self) -> Vec<State> {
        self.regions().iter().map(|region| region.state).collect()
    }

    pub fn regions(&self) -> Vec<Region> {
        self.patcher().list().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
