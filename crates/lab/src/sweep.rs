//! What labs leave behind when their owner is killed, and its removal.
//!
//! Namespaces and processes go by themselves: every host's process 1 ends with its owner. What stays is a folder, one
//! more for installed programs, and control groups. The folders' name ends in the owner's pid, and a file in the first
//! says when that owner was started, so that a later process with the same number is not taken for it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::{self, Cgroup};
use crate::error::{Attempt, Result};

/// Where all labs have their folders.
const LABS: &str = "/run/outlive-lab";
/// Where labs put programs that their hosts have in common: on no file system that a host, or a workload, has for itself.
const INSTALLED: &str = "/var/lib/outlive-lab";
const OWNER_FILE: &str = "owner";
/// Locked by whoever removes what dead processes have left. No lab has such a name.
const SWEEPING: &str = ".sweeping";
/// Killed processes are given this long to be gone from their control group.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);
const EMPTY_POLL: Duration = Duration::from_millis(10);

pub(crate) fn lab_folder(lab: &str) -> PathBuf {
    Path::new(LABS).join(lab)
}

pub(crate) fn installed_folder(lab: &str) -> PathBuf {
    Path::new(INSTALLED).join(lab)
}

/// Makes a lab's folder and notes its owner, which is this process.
pub(crate) fn claim(lab: &str) -> Result<()> {
    let folder = lab_folder(lab);
    fs::create_dir_all(&folder).attempt(|| format!("make {}", folder.display()))?;
    let file = folder.join(OWNER_FILE);
    let started = start_time(std::process::id()).unwrap_or_default();
    fs::write(&file, started).attempt(|| format!("write {}", file.display()))
}

/// Removes a lab's folders and control groups. Its hosts must be off.
pub(crate) fn remove(lab: &str) -> Result<()> {
    if let Some(path) = cgroup::of_lab(lab) {
        remove_groups(path)?;
    }
    remove_installed(lab)?;
    let folder = lab_folder(lab);
    fs::remove_dir_all(&folder).attempt(|| format!("remove {}", folder.display()))
}

/// Removes the programs that a lab has installed, if any.
pub(crate) fn remove_installed(lab: &str) -> Result<()> {
    let folder = installed_folder(lab);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => done.attempt(|| format!("remove {}", folder.display()))?,
    }
    // The last lab to go; of no account if another one is there.
    let _ = fs::remove_dir(INSTALLED);
    Ok(())
}

/// Removes what the labs of dead processes have left; returns their names.
pub(crate) fn sweep() -> Result<Vec<String>> {
    // Tests that run side by side sweep at the same time. The lock ends with the open file (flock(2)).
    let path = Path::new(LABS).join(SWEEPING);
    let Ok(sweeping) = File::create(&path) else { return Ok(Vec::new()) };
    sweeping.lock().attempt(|| format!("lock {}", path.display()))?;
    let entries = fs::read_dir(LABS).attempt(|| format!("list {LABS}"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let abandoned: Vec<String> = names.filter(|lab| !owner_lives(lab)).collect();
    for lab in &abandoned {
        remove(lab)?;
    }
    Ok(abandoned)
}

fn owner_lives(lab: &str) -> bool {
    // The name is hint-pid-number, see `Lab::new`; a folder of any other name is none of ours.
    let Some(pid) = lab.rsplit('-').nth(1).and_then(|pid| pid.parse().ok()) else { return true };
    let Some(started) = start_time(pid) else { return false };
    match fs::read_to_string(lab_folder(lab).join(OWNER_FILE)) {
        Ok(recorded) => recorded == started,
        // Its owner is about to write it.
        Err(_) => true,
    }
}

/// When a process was started, in ticks since boot; none if there is no such process or it is a zombie.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name, in parentheses, may contain anything; `state` follows as field 3,
    // `starttime` is field 22.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18).map(str::to_owned))?
}

/// Kills what is in a lab's groups (frozen or not) and removes them.
fn remove_groups(path: PathBuf) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let group = Cgroup::new(path)?;
    group.kill()?;
    let deadline = Instant::now() + EMPTY_LIMIT;
    loop {
        match group.remove() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(EMPTY_POLL);
            }
            done => return done.attempt(|| "remove the control groups of a lab".to_owned()),
        }
    }
}
