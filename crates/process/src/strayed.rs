//! Namespaces and mounts that the workload has made for itself: kernel state that no other host can be given.
//!
//! Judged by what is there, not by the call that made it: a child has its parent's, and what has been undone is no obstacle.

use std::collections::{BTreeMap, HashMap};

use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::tree::{Process, Thread};

/// Links in `/proc/PID/ns` and what they are of. Those for children are what `unshare` makes.
const KINDS: [(&str, &str); 9] = [
    ("mnt", "mount"),
    ("net", "network"),
    ("uts", "host name"),
    ("ipc", "System V IPC"),
    ("user", "user"),
    ("cgroup", "control group"),
    ("pid", "process id"),
    ("pid_for_children", "process id"),
    ("time_for_children", "time"),
];
const ADVICE: &str = "let the program do without namespaces of its own";

#[derive(Debug)]
pub(crate) struct Namespaces {
    init: Tid,
    mounts: String,
    /// A thread may have entered another namespace than its process's.
    pub entered: bool,
    /// Something has been mounted or unmounted.
    pub mounted: bool,
}

fn links(task: &str) -> std::io::Result<[String; KINDS.len()]> {
    let mut links: [String; KINDS.len()] = Default::default();
    for (link, (name, _)) in links.iter_mut().zip(KINDS) {
        *link = std::fs::read_link(format!("/proc/{task}/ns/{name}"))?.to_string_lossy().into_owned();
    }
    Ok(links)
}

impl Namespaces {
    /// Those of init, which never leaves them: of a workload that has not run yet.
    pub fn of(init: Tid) -> Result<Self> {
        let mounts = proc::path(init, "mountinfo");
        let mounts = std::fs::read_to_string(mounts).attempt(|| "list the workload's mounts".into())?;
        Ok(Self { init, mounts, entered: false, mounted: false })
    }

    /// A task, named as below `/proc`.
    pub fn check(&self, pid: Pid, task: &str) -> Result<()> {
        let what = || format!("read the namespaces of process {pid}");
        let own = links(&self.init.to_string()).attempt(what)?;
        let theirs = links(task).attempt(what)?;
        let mut pairs = own.iter().zip(&theirs).zip(KINDS);
        match pairs.find(|((own, theirs), _)| own != theirs) {
            Some((_, (_, kind))) => {
                let what = format!("a {kind} namespace of its own");
                Err(Error::Unsupported { pid, what, advice: ADVICE })
            }
            None => Ok(()),
        }
    }

    /// After a noticed call: every thread, and the mounts.
    pub fn check_all(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
        threads: &HashMap<Tid, Thread>,
    ) -> Result<()> {
        if self.entered {
            for (tid, thread) in threads {
                if let Some(process) = processes.get(&thread.process) {
                    self.check(thread.process, &format!("{}/task/{tid}", process.host))?;
                }
            }
            self.entered = false;
        }
        if self.mounted {
            let text = std::fs::read_to_string(proc::path(self.init, "mountinfo"))
                .attempt(|| "list the workload's mounts".into())?;
            if let Some(what) = difference(&self.mounts, &text) {
                let advice = "let the program do without mounts of its own, or mount it on the hosts";
                return Err(Error::Unsupported { pid: crate::tree::FIRST, what, advice });
            }
            self.mounted = false;
        }
        Ok(())
    }
}

/// The first mount that one list has and the other has not, by name (proc_pid_mountinfo(5): the fifth field).
fn difference(before: &str, now: &str) -> Option<String> {
    let missing = |from: &str, of: &str| {
        let line = of.lines().find(|line| from.lines().all(|known| known != *line))?;
        line.split(' ').nth(4).map(str::to_owned)
    };
    let new = missing(before, now).map(|path| format!("a mount of its own at {path}"));
    new.or_else(|| missing(now, before).map(|path| format!("{path}, which it has unmounted")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_came_or_went_is_named() {
        let before = "20 1 0:1 / / ro - ext4 /dev/a ro\n21 20 0:2 / /tmp rw - tmpfs tmpfs rw\n";
        let more = format!("{before}22 20 0:3 / /mnt rw - tmpfs tmpfs rw\n");
        assert_eq!(difference(before, before), None);
        assert_eq!(difference(before, &more).unwrap(), "a mount of its own at /mnt");
        assert_eq!(difference(&more, before).unwrap(), "/mnt, which it has unmounted");
        let again = before.replace("/tmp rw", "/tmp ro");
        assert_eq!(difference(before, &again).unwrap(), "a mount of its own at /tmp");
    }
}
