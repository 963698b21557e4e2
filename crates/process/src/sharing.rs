//! What the threads of a process have in common and processes do not, unless a program has it otherwise (`clone(2)` with
//! `CLONE_FS` or `CLONE_FILES` for a process, `unshare(2)` with them for a thread): the table of descriptors, and the place in the
//! file system, which is root, working directory and umask.
//!
//! Seen by where the kernel keeps them. Where threads are not listed (no BPF), none of it is noticed.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::checkpoint::{Pid, Place};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::threads::ThreadSeen;
use crate::sys::proc;
use crate::sys::ptrace::Tid;

/// The threads of each process, by their ids.
pub(crate) type Listed = HashMap<Pid, HashMap<Pid, ThreadSeen>>;

/// Threads with a place of their own. What is shared otherwise is refused by name.
pub(crate) fn own_places(listed: &Listed) -> Result<HashSet<Pid>> {
    let mut tables: BTreeMap<u64, Pid> = BTreeMap::new();
    let mut places: BTreeMap<u64, Vec<(Pid, Pid)>> = BTreeMap::new();
    for (pid, threads) in listed {
        for (tid, thread) in threads.iter().filter(|(_, thread)| thread.files != 0) {
            let own = threads.get(pid).map_or(0, |leader| leader.files);
            if own != 0 && own != thread.files {
                return Err(Error::Unsupported {
                    pid: *pid,
                    what: format!("descriptors of its own of thread {tid} (unshare with CLONE_FILES)"),
                    advice: "let the threads of a process share their descriptors, or use processes",
                });
            }
            if let Some(other) = tables.insert(thread.files, *pid).filter(|other| other != pid) {
                return Err(Error::Unsupported {
                    pid: *pid,
                    what: format!("descriptors that it shares with process {other} (clone with CLONE_FILES)"),
                    advice: "use threads, or processes with descriptors of their own",
                });
            }
        }
        for (tid, thread) in threads.iter().filter(|(_, thread)| thread.place != 0) {
            places.entry(thread.place).or_default().push((*pid, *tid));
        }
    }
    let mut apart = HashSet::new();
    for users in places.values() {
        let Some((pid, tid)) = users.first() else { continue };
        if let Some((other, _)) = users.iter().find(|(other, _)| other != pid) {
            return Err(Error::Unsupported {
                pid: *pid,
                what: format!(
                    "a working directory that it shares with process {other} (clone with CLONE_FS)"
                ),
                advice: "use threads, or processes with directories of their own",
            });
        }
        let leader = listed.get(pid).and_then(|threads| threads.get(pid)).map_or(0, |leader| leader.place);
        let is_common = leader == 0 || users.iter().any(|(_, tid)| tid == pid);
        if is_common {
            continue;
        }
        if users.len() > 1 {
            return Err(Error::Unsupported {
                pid: *pid,
                what: "a working directory that some of its threads share and others do not".to_owned(),
                advice: "let each thread that has one of its own call unshare(CLONE_FS) itself",
            });
        }
        apart.insert(*tid);
    }
    Ok(apart)
}

/// The place of a thread that has one of its own. `tid` and `leader` are the kernel's ids outside.
pub(crate) fn place_of(pid: Pid, tid: Tid, leader: Tid) -> Result<Place> {
    let what = || format!("read the working directory of thread {tid} of process {pid}");
    let root = directory(pid, tid, "root", "root directory")?;
    if root != "/" || directory(pid, leader, "root", "root directory")? != root {
        return Err(Error::Unsupported {
            pid,
            what: format!("a thread with a working directory of its own below the root {root}"),
            advice: "let the program do without chroot, or its threads without directories of their own",
        });
    }
    let cwd = directory(pid, tid, "cwd", "working directory")?;
    Ok(Place { cwd, umask: proc::status(tid).attempt(what)?.umask })
}

/// A directory that a link of a task in `/proc` names. One that is gone cannot be found again.
pub(crate) fn directory(pid: Pid, task: Tid, link: &str, which: &str) -> Result<String> {
    let what = || format!("read the {which} of process {pid}");
    let path = std::fs::read_link(proc::path(task, link)).attempt(what)?;
    let removed = nix::sys::stat::stat(&proc::path(task, link)).attempt(what)?.st_nlink == 0;
    match path.to_str() {
        Some(path) if !removed => Ok(path.to_owned()),
        _ => Err(Error::Unsupported {
            pid,
            what: format!("a process whose {which} {path:?} was removed, or is not named in UTF-8"),
            advice: "let it stay in directories that remain, named in UTF-8",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads as (process, thread, table of descriptors, place).
    fn listed(threads: &[(Pid, Pid, u64, u64)]) -> Listed {
        let mut listed = Listed::new();
        for (pid, tid, files, place) in threads {
            let seen = ThreadSeen { inside: *tid, files: *files, place: *place, ..ThreadSeen::default() };
            listed.entry(*pid).or_default().insert(*tid, seen);
        }
        listed
    }

    fn refused(threads: &[(Pid, Pid, u64, u64)]) -> String {
        own_places(&listed(threads)).unwrap_err().to_string()
    }

    #[test]
    fn a_thread_with_a_place_of_its_own_is_found() {
        let usual = [(2, 2, 10, 20), (2, 3, 10, 20), (4, 4, 11, 21)];
        assert!(own_places(&listed(&usual)).unwrap().is_empty());
        let apart = [(2, 2, 10, 20), (2, 3, 10, 22), (2, 5, 10, 23), (2, 6, 10, 20)];
        assert_eq!(own_places(&listed(&apart)).unwrap(), HashSet::from([3, 5]));
    }

    #[test]
    fn threads_that_end_have_nothing_in_common_with_others() {
        let ending = [(2, 2, 10, 20), (2, 3, 0, 0), (4, 4, 0, 0), (4, 5, 11, 21), (4, 6, 11, 21)];
        assert!(own_places(&listed(&ending)).unwrap().is_empty());
    }

    #[test]
    fn what_is_shared_in_other_ways_is_refused_by_name() {
        assert!(refused(&[(2, 2, 10, 20), (2, 3, 12, 20)]).contains("CLONE_FILES"));
        assert!(refused(&[(2, 2, 10, 20), (4, 4, 10, 21)]).contains("CLONE_FILES"));
        assert!(refused(&[(2, 2, 10, 20), (4, 4, 11, 20)]).contains("CLONE_FS"));
        assert!(refused(&[(2, 2, 10, 20), (2, 3, 10, 21), (2, 5, 10, 21)]).contains("some of its threads"));
    }
}
