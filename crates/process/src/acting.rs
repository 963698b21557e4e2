//! The shell's processes doing, before they come to life, what the kernel remembers its doer for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::launch::CHANNEL;
use crate::object::unix_actor::{Actors, Credentials, Task, by_number};
use crate::shell::{ShellProcess, run_in, run_unchecked, send};
use crate::sys::remote::Batch;
use crate::sys::task;

/// `linux/securebits.h`: a change of user leaves the capabilities as they are.
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// An id that is not to be changed (`setresuid(2)`).
const SAME: u64 = u64::MAX;

pub(crate) struct Troupe<'a> {
    pub processes: &'a BTreeMap<Pid, ShellProcess>,
    pub channel: &'a UnixStream,
}

impl Actors for Troupe<'_> {
    fn act(&self, who: &Credentials, task: &Task<'_>) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        // One that has ended leaves its user to another.
        let process = self.processes.get(&who.pid).or_else(|| self.processes.values().next());
        let process = process.ok_or_else(|| io::Error::other("the shell has no process"))?;
        self.act_in(process, who, task).map_err(|error| match error {
            Error::System { attempt, source } => {
                io::Error::new(source.kind(), format!("{attempt}: {source}"))
            }
            other => io::Error::other(other),
        })
    }
}

impl Troupe<'_> {
    fn act_in(
        &self,
        process: &ShellProcess,
        who: &Credentials,
        task: &Task<'_>,
    ) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let mut fds: Vec<RawFd> = Vec::new();
        match task {
            Task::Listen { socket, .. } | Task::ConnectToName { socket, .. } => fds.push(socket.as_raw_fd()),
            Task::ConnectToNode { socket, node } => fds.extend([socket.as_raw_fd(), node.as_raw_fd()]),
            Task::Pair { .. } => {}
        }
        let there = send(process, self.channel, CHANNEL as u64, &fds)?;
        let number = |index: usize| there.get(index).copied().unwrap_or(-1);
        let mut batch = Batch::new();
        let groups: Vec<u8> = who.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let groups = batch.bytes(&groups);
        let securebits = |batch: &mut Batch, bits: u64| {
            batch.call(libc::SYS_prctl, &[libc::PR_SET_SECUREBITS as u64, bits, 0, 0, 0]);
        };
        securebits(&mut batch, NO_SETUID_FIXUP);
        batch.call(libc::SYS_setgroups, &[who.groups.len() as u64, groups]);
        batch.call(libc::SYS_setresgid, &[SAME, u64::from(who.gid), SAME]);
        batch.call(libc::SYS_setresuid, &[SAME, u64::from(who.uid), SAME]);
        let pair = batch.bytes(&[0u8; 8]);
        let connect = |batch: &mut Batch, name: &[u8]| {
            // struct sockaddr_un: the family, then the name.
            let address = [&(libc::AF_UNIX as u16).to_ne_bytes(), name].concat();
            let at = batch.bytes(&address);
            batch.call(libc::SYS_connect, &[number(0) as u64, at, address.len() as u64]);
        };
        match task {
            Task::Listen { backlog, .. } => {
                batch.call(libc::SYS_listen, &[number(0) as u64, *backlog as u64]);
            }
            Task::ConnectToNode { .. } => connect(&mut batch, by_number(number(1)).as_bytes()),
            Task::ConnectToName { name, .. } => connect(&mut batch, name),
            Task::Pair { kind } => {
                let kind = (kind | libc::SOCK_CLOEXEC) as u64;
                batch.call(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind, 0, pair]);
            }
        }
        batch.call(libc::SYS_setresuid, &[SAME, 0, SAME]);
        batch.call(libc::SYS_setresgid, &[SAME, 0, SAME]);
        batch.call(libc::SYS_setgroups, &[0, 0]);
        securebits(&mut batch, 0);
        // All of them, also after a failure: it has to be root again.
        let results = run_unchecked(process, &batch)?;
        let failed = |result: &i64| Error::System {
            attempt: format!("do as user {} what a unix socket tells its other end", who.uid),
            source: io::Error::from_raw_os_error(-*result as i32),
        };
        let made = match (results.iter().find(|result| **result < 0), task) {
            (Some(result), _) => Err(failed(result)),
            (None, Task::Pair { .. }) => take_pair(process, pair).map(Some),
            (None, _) => Ok(None),
        };
        let mut batch = Batch::new();
        for fd in &there {
            batch.call(libc::SYS_close, &[*fd as u64]);
        }
        run_in(process, &mut batch)?;
        made
    }
}

/// Two descriptors whose numbers a call has left at `at`; they become ours alone.
fn take_pair(process: &ShellProcess, at: u64) -> Result<(OwnedFd, OwnedFd)> {
    let what = || format!("take a pair of sockets from process {}", process.host);
    let mut raw = [0u8; 8];
    process.memory.read_exact_at(&mut raw, at).attempt(what)?;
    let word = u64::from_ne_bytes(raw);
    let numbers = [word as u32 as i32, (word >> 32) as i32];
    let pidfd = task::pidfd_open(process.host).attempt(what)?;
    let take = |number: i32| task::take_descriptor(pidfd.as_fd(), number).attempt(what);
    let pair = (take(numbers[0])?, take(numbers[1])?);
    let mut batch = Batch::new();
    for number in numbers {
        batch.call(libc::SYS_close, &[number as u64]);
    }
    run_in(process, &mut batch)?;
    Ok(pair)
}
