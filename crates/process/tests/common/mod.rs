//! What the tests of whole process trees share: a compiled program, namespaces for it, its output.
#![allow(dead_code, reason = "each test program uses its part")]

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use outlive_process::checkpoint::Checkpoint;
use outlive_process::delta::Cache;
use outlive_process::error::Error;
use outlive_process::launch::Program;
use outlive_process::shell::Shell;
use outlive_process::space::PageData;
use outlive_process::tree::Workload;

pub fn launcher() -> Vec<OsString> {
    vec![env!("CARGO_BIN_EXE_outlive-workload-init").into()]
}

/// Compiles `tests/programs/NAME.c`.
pub fn compile(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.c"));
    // Not below /tmp, which a workload has for itself.
    let directory = Path::new("/var/tmp/outlive-test-programs");
    std::fs::create_dir_all(directory).expect("a directory for programs");
    let target = directory.join(format!("{name}-{}", std::process::id()));
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-D_GNU_SOURCE", "-pthread", "-o"])
        .arg(&target)
        .arg(&source)
        .status()
        .expect("gcc is installed");
    assert!(status.success(), "{} compiles", source.display());
    target
}

pub fn program(path: &Path) -> Program {
    Program {
        name: "test".into(),
        arguments: vec![path.to_string_lossy().into_owned()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        directory: "/".into(),
        ..Program::default()
    }
}

/// A network namespace of its own, with loopback up.
pub fn network() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip is installed");
        assert!(status.success());
        OwnedFd::from(File::open("/proc/thread-self/ns/net").expect("own namespace"))
    })
    .join()
    .expect("the thread ends")
}

/// A pipe for the output of a workload: reading end, and the two ends for it.
pub fn output() -> (File, [OwnedFd; 2]) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("a flag");
    let second = write.try_clone().expect("a duplicate");
    (read.into(), [write, second])
}

pub fn read_all(pipe: &mut File) -> String {
    let mut text = Vec::new();
    let mut buffer = [0u8; 65536];
    while let Ok(got @ 1..) = pipe.read(&mut buffer) {
        text.extend_from_slice(&buffer[..got]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

thread_local! {
    /// What the shell of this test has been sent.
    static SENT: RefCell<Cache> = RefCell::new(Cache::new(1 << 20));
}

/// Through the form in which a checkpoint travels.
pub fn transfer(checkpoint: &Checkpoint, pages: &PageData) -> (Checkpoint, Vec<u8>) {
    let bytes = postcard::to_stdvec(checkpoint).expect("a checkpoint can be written");
    let again = postcard::from_bytes(&bytes).expect("and read");
    (again, SENT.with_borrow_mut(|sent| sent.encode(checkpoint, pages, || {}).slices().concat()))
}

/// The whole first copy into a shell.
pub fn sync(workload: &mut Workload, shell: &mut Shell) {
    SENT.set(Cache::new(1 << 20));
    let whole = loop {
        freeze(workload);
        let captured = workload.capture_whole();
        workload.thaw().expect("it runs on");
        match captured {
            Err(Error::NotNow(_)) => run(workload, Duration::from_millis(1)),
            captured => break captured.expect("everything is captured"),
        }
    };
    let (whole, _) = transfer(&whole, &PageData::default());
    shell.apply(whole, &[]).expect("it is applied");
    while let Some((whose, runs, pages)) = workload.copy_backlog(1024) {
        let bytes = SENT.with_borrow_mut(|sent| sent.encode_backlog(whose, &runs, &pages).slices().concat());
        shell.apply_backlog(whose, &runs, &bytes).expect("pages are applied");
        workload.drain().expect("it runs on");
    }
    epoch(workload, shell);
}

pub fn freeze(workload: &mut Workload) {
    for _ in 0..1000 {
        if workload.freeze(Duration::from_millis(100)).is_ok() {
            return;
        }
        workload.wait(Duration::from_millis(1), &[]).expect("it runs on");
    }
    panic!("the workload could not be stopped");
}

/// One epoch, with a live round, from a workload to a shell.
pub fn epoch(workload: &mut Workload, shell: &mut Shell) {
    workload.live_round().expect("a live round");
    let (checkpoint, pages) = loop {
        freeze(workload);
        let captured = workload.capture();
        workload.thaw().expect("it runs on");
        match captured {
            Err(Error::NotNow(_)) => run(workload, Duration::from_millis(1)),
            captured => break captured.expect("everything is captured"),
        }
    };
    let (checkpoint, pages) = transfer(&checkpoint, &pages);
    shell.apply(checkpoint, &pages).expect("it is applied");
}

/// Lets a workload run for about this long.
pub fn run(workload: &mut Workload, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        workload.wait(Duration::from_millis(1), &[]).expect("it runs");
    }
}

/// Only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets a workload run until it has said a word; gives all that it said.
pub fn run_until(workload: &mut Workload, output: &mut File, word: &str) -> String {
    let begun = Instant::now();
    let mut said = String::new();
    while !said.contains(word) {
        assert!(begun.elapsed() < PATIENCE && !said.contains("BAD"), "waited for {word}: {said}");
        run(workload, Duration::from_millis(5));
        said.push_str(&read_all(output));
    }
    said
}

/// The workload dies, the shell comes to life.
pub fn fail_over(workload: Workload, shell: Shell) -> Workload {
    drop(workload);
    let (built, silent) = shell.build(&Default::default()).expect("objects are built");
    let mut workload = shell.activate(&built).expect("the shell comes to life");
    drop(built);
    silent.go_live().expect("sockets speak");
    workload.thaw().expect("it runs");
    workload
}
