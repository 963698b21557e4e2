//! `outlive supervise`: one supervisor. The agent starts it, and may end and be started again while it lives.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use outlive_epoch::setup::{Setup, Started};
use outlive_hotpatch::running;
use outlive_process::tree;

use crate::error::{Context, Failure, Result};

/// Locked by a supervisor for as long as it lives, in its workload's directory.
pub const LOCK: &str = "lock";

/// Whoever only looks whether a supervisor lives holds the lock for microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

pub fn main() -> ExitCode {
    crate::agent::log_to_stderr();
    match prepare() {
        Ok((setup, _lock)) => supervise(setup),
        Err(failure) => refuse(&failure),
    }
}

/// The engine. The lock is held by the caller until this returns, or the process ends.
fn supervise(setup: Setup) -> ExitCode {
    outlive_epoch::supervisor::run(setup, look)
}

/// Where the threads of a process are whom its supervisor has stopped, by hot patching's tables.
struct Stacks(Arc<running::Stacks>);

/// The tables of the process that was asked about last: a change of it is tried again and again. Reading them takes 20 to
/// 120 ms where there are hundreds of libraries, in which a tracer would seem to hang: so another thread does it.
enum Tables {
    UnderWay(i32, JoinHandle<outlive_hotpatch::error::Result<running::Stacks>>),
    Read(Arc<running::Stacks>),
}

thread_local! {
    /// Of the tracer.
    static TABLES: RefCell<Option<Tables>> = const { RefCell::new(None) };
}

fn look(pid: i32) -> Result<Option<Box<dyn tree::Stacks>>, String> {
    let (tables, found) = next(pid, TABLES.take())?;
    TABLES.set(tables);
    Ok(found.map(|stacks| Box::new(Stacks(stacks)) as Box<dyn tree::Stacks>))
}

/// What is kept from now on, and the tables if they are there. One thread reads at a time, also if it is for a process that is asked about no more.
type Next = (Option<Tables>, Option<Arc<running::Stacks>>);

fn next(pid: i32, tables: Option<Tables>) -> Result<Next, String> {
    let tables = match tables {
        Some(Tables::UnderWay(of, reader)) if reader.is_finished() => {
            match reader.join().map_err(|_| "the thread that reads the tables ended".to_owned())? {
                Ok(stacks) => Some(Tables::Read(Arc::new(stacks))),
                Err(error) if of == pid => return Err(error.to_string()),
                // Nobody asks about that one any more.
                Err(_) => None,
            }
        }
        other => other,
    };
    match tables {
        Some(Tables::UnderWay(of, reader)) => Ok((Some(Tables::UnderWay(of, reader)), None)),
        Some(Tables::Read(stacks)) if stacks.is_current(pid).unwrap_or(false) => {
            Ok((Some(Tables::Read(Arc::clone(&stacks))), Some(stacks)))
        }
        _ => {
            // An ordinary thread: what a tracer starts does not inherit its priority (`task::become_realtime`).
            let spawned =
                thread::Builder::new().name("tables".to_owned()).spawn(move || running::Stacks::read(pid));
            let reader = spawned.map_err(|error| format!("start a thread to read tables: {error}"))?;
            Ok((Some(Tables::UnderWay(pid, reader)), None))
        }
    }
}

impl tree::Stacks for Stacks {
    fn in_the_way(
        &self,
        threads: &[(i32, libc::user_regs_struct)],
        avoided: &[Range<u64>],
    ) -> Result<Vec<tree::Whereabouts>, String> {
        self.0.in_the_way(threads, avoided).map_err(|error| error.to_string())
    }
}

fn refuse(failure: &Failure) -> ExitCode {
    let started = Started::Failed { reason: failure.to_string() };
    let mut line = serde_json::to_vec(&started).unwrap_or_default();
    line.push(b'\n');
    // If the agent is gone, the log is all there is.
    let _ = io::stdout().write_all(&line);
    eprintln!("outlive supervise: {failure}");
    ExitCode::from(failure.exit_code())
}

fn prepare() -> Result<(Setup, Flock<File>)> {
    // A session of its own: signals for the agent's terminal are not for the workload.
    nix::unistd::setsid().or_failed(|| "start a session".to_owned())?;
    // The agent waits for its signals with them blocked, and a program inherits what is blocked (execve(2)).
    SigSet::empty().thread_set_mask().or_failed(|| "unblock signals".to_owned())?;
    // A supervisor holds a duplicate of each of its workload's sockets. A lower limit is its own finding (`check`).
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut text = String::new();
    let limit = crate::control::LINE_MAX;
    io::stdin().take(limit).read_to_string(&mut text).or_failed(|| "read what to supervise".to_owned())?;
    let setup: Setup = serde_json::from_str(&text).or_failed(|| "understand what to supervise".to_owned())?;
    let lock = take_lock(&setup.directory())?;
    Ok((setup, lock))
}

/// Two supervisors of one workload on one node would write each other's logs and answer each other's socket.
fn take_lock(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join(LOCK);
    let mut file = open_lock(&path).or_failed(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                thread::sleep(LOCK_RETRY);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Failure::refused("a supervisor of this workload is alive on this node"));
            }
            Err((_, error)) => return Err(error).or_failed(|| format!("lock {}", path.display())),
        }
    }
}

/// Whether a supervisor lives in this directory. No process ids are involved: they are used again, locks are not.
pub fn is_alive(directory: &Path) -> io::Result<bool> {
    let file = match File::open(directory.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_shows_life_and_ends_with_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_alive(directory.path()).unwrap());
        let lock = take_lock(directory.path()).unwrap();
        assert!(is_alive(directory.path()).unwrap());
        drop(lock);
        assert!(!is_alive(directory.path()).unwrap());
    }
}
