//! Descriptors of processes (`pidfd_open(2)`, `CLONE_PIDFD`).
//!
//! They are made by init of the shell, in whose pid namespace the workload's numbers are right. What cannot be made again:
//! a pidfd of a single thread, and how a process ended that was already waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::shell::wait_stop;
use crate::sys::proc::info_field;
use crate::sys::ptrace::{self, Event, Stop, Tid};
use crate::sys::remote::{Batch, Remote};
use crate::sys::task;

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h).
const OF_A_THREAD: i32 = libc::O_EXCL;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFd {
    /// None if the process has ended and was waited for.
    pub process: Option<Pid>,
    pub flags: StatusFlags,
}

pub(super) fn capture(at: &At<'_>) -> Result<PidFd> {
    let info = at.info()?;
    let raw = info_field(&info, "flags").and_then(|text| i32::from_str_radix(text, 8).ok()).unwrap_or(0);
    if raw & OF_A_THREAD != 0 {
        return Err(at.refuse("a pidfd of a thread", "let the program refer to processes instead"));
    }
    let flags = at.status_flags(&info)?;
    let seen: i64 =
        info_field(&info, "Pid").and_then(|text| text.parse().ok()).ok_or_else(|| at.unreadable("Pid"))?;
    if seen < 0 {
        return Ok(PidFd { process: None, flags });
    }
    // By namespace, from ours to the process's own: the workload's is the one below ours.
    let inside = info_field(&info, "NSpid").and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
    match inside {
        Some(pid) if pid > 0 => Ok(PidFd { process: Some(pid), flags }),
        _ => Err(at.refuse("a pidfd of a process outside", "let the program refer to its own processes")),
    }
}

/// Makes one through init, which is stopped.
pub(crate) fn build(
    object: &PidFd,
    init: Tid,
    memory: &std::fs::File,
    pidfd: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let what = || match object.process {
        Some(pid) => format!("make a pidfd of process {pid}"),
        None => "make a pidfd of a process that has ended".to_owned(),
    };
    let fd = match object.process {
        Some(pid) => {
            let mut batch = Batch::new();
            batch.call(libc::SYS_pidfd_open, &[pid as u64, 0]);
            first(&run(init, memory, &mut batch).attempt(what)?)
        }
        None => of_an_ended_one(init, memory).attempt(what)?,
    };
    let taken = task::take_descriptor(pidfd, fd).attempt(what);
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[fd as u64]);
    run(init, memory, &mut batch).attempt(what)?;
    let taken = taken?;
    object.flags.restore(taken.as_fd())?;
    Ok(taken)
}

fn run(init: Tid, memory: &std::fs::File, batch: &mut Batch) -> std::io::Result<Vec<i64>> {
    let mut remote = Remote::begin(init, memory)?;
    let results = remote.run_all(batch);
    remote.end()?;
    results
}

fn first(results: &[i64]) -> i32 {
    results.first().copied().and_then(|fd| i32::try_from(fd).ok()).unwrap_or(-1)
}

/// Forks a process that ends and is waited for, so that its pidfd is all that is left of it.
fn of_an_ended_one(init: Tid, memory: &std::fs::File) -> std::io::Result<i32> {
    let mut batch = Batch::new();
    let place = batch.bytes(&(-1i32).to_ne_bytes());
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size.
    let args = [libc::CLONE_PIDFD as u64, place, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, 0, 0];
    let bytes: Vec<u8> = args.into_iter().flat_map(u64::to_ne_bytes).collect();
    let at = batch.bytes(&bytes);
    batch.call(libc::SYS_clone3, &[at, bytes.len() as u64]);
    let mut remote = Remote::begin(init, memory)?;
    let inside = remote.run_all(&mut batch).map(|results| first(&results));
    let fd = remote.read(place, 4).map(|raw| raw.first_chunk::<4>().copied().map_or(-1, i32::from_ne_bytes));
    let born = remote.end()?;
    let (inside, fd) = (inside?, fd?);
    let gone = || std::io::Error::other("the process to be ended was not born");
    let host = *born.first().ok_or_else(gone)?;
    wait_stop(host).map_err(std::io::Error::other)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host), nix::sys::signal::Signal::SIGKILL)?;
    loop {
        match ptrace::wait_for(host, true)? {
            Some(Event::Stopped(Stop::Signal(signal))) => ptrace::resume(host, signal)?,
            Some(Event::Stopped(_)) => ptrace::resume(host, 0)?,
            Some(_) | None => break,
        }
    }
    let mut batch = Batch::new();
    batch.call(libc::SYS_wait4, &[inside as u64, 0, 0, 0]);
    run(init, memory, &mut batch)?;
    Ok(fd)
}

/// None of those that can be built by themselves.
pub(super) fn unbuilt() -> Error {
    Error::Mismatch("a pidfd has not been built".to_owned())
}
