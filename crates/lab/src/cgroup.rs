//! Freezing by the version 2 freezer of control groups: invisible to tracers (a SIGSTOP is not), and the frozen
//! can still be killed (with the version 1 freezer they cannot).
//! See Documentation/admin-guide/cgroup-v2.rst of the kernel, `cgroup.freeze` and `cgroup.kill`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Attempt, LabError, Result};

/// The folder of all labs' groups.
const ALL_LABS: &str = "outlive-lab";
/// Freezing takes as long as the longest system call that cannot be interrupted; this much is a fault.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const FREEZE_POLL: Duration = Duration::from_millis(1);

/// Where the version 2 hierarchy is mounted; it may sit beside version 1's.
pub(crate) fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // proc_pid_mountinfo(5): the mount point is the fifth field, the type follows a lone hyphen.
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The folder of one lab's groups.
pub(crate) fn of_lab(lab: &str) -> Option<PathBuf> {
    Some(mount_point()?.join(ALL_LABS).join(lab))
}

/// A group of processes.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(path: PathBuf) -> Result<Cgroup> {
        fs::create_dir_all(&path).attempt(|| format!("make the control group {}", path.display()))?;
        Ok(Cgroup { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writing `0` to it moves the writer into the group.
    pub(crate) fn entrance(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).attempt(|| format!("open {}", path.display()))
    }

    /// The processes in it and in the groups below it, by their ids in the owner's pid namespace.
    pub(crate) fn processes(&self) -> Vec<libc::pid_t> {
        let mut found = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<libc::pid_t>().ok()));
            folders.extend(subfolders(&folder));
        }
        found
    }

    /// Moves a process in; one that has just ended is fine.
    pub(crate) fn adopt(&self, pid: libc::pid_t) -> Result<()> {
        match fs::write(self.path.join("cgroup.procs"), pid.to_string()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done.attempt(|| format!("move process {pid} to {}", self.path.display())),
        }
    }

    pub(crate) fn freeze(&self, host: &str) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        let deadline = Instant::now() + FREEZE_LIMIT;
        let events = self.path.join("cgroup.events");
        loop {
            let state = fs::read_to_string(&events).attempt(|| format!("read {}", events.display()))?;
            if state.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (host, seconds) = (host.to_owned(), FREEZE_LIMIT.as_secs());
                return Err(LabError::NotFrozen { host, seconds, path: self.path.clone() });
            }
            thread::sleep(FREEZE_POLL);
        }
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// SIGKILL for every process in it and below, in one sweep of the kernel.
    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).attempt(|| format!("write {text} to {}", path.display()))
    }

    /// Removes the group and those below it. Fails with EBUSY while a process is in one.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)
    }
}

/// Removes a folder of groups from the leaves up.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    for folder in subfolders(path) {
        remove_tree(&folder)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn subfolders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
