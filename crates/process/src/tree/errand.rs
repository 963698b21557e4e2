//! Calls that a process of the workload makes for whoever patches it: its tracer is the only one who can have it make any.

use std::io;

use serde::{Deserialize, Serialize};

use super::{Running, Workload};
use crate::error::{Attempt, Error, Result};
use crate::sys::ptrace::Tid;
use crate::sys::remote::{Batch, Remote};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Errand {
    /// Map private memory of `length` bytes at a place where nothing is: readable, and either executable or writable.
    Map { at: u64, length: u64, executable: bool },
    /// Have every processor that runs the process execute a serialising instruction (`membarrier(2)`).
    Synchronise,
}

impl Errand {
    fn add(&self, batch: &mut Batch) {
        match *self {
            Self::Map { at, length, executable } => {
                let right = if executable { libc::PROT_EXEC } else { libc::PROT_WRITE };
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                batch.call(
                    libc::SYS_mmap,
                    &[at, length, (libc::PROT_READ | right) as u64, flags as u64, u64::MAX, 0],
                );
            }
            Self::Synchronise => {
                let register = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE;
                let now = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE;
                for command in [register, now] {
                    batch.call(libc::SYS_membarrier, &[command as u64, 0, 0, 0, 0, 0]);
                }
            }
        }
    }
}

impl Workload {
    /// Has a process, which this host knows as `host`, run errands. Everything is stopped. Returns what each call returned (−errno
    /// if it failed).
    pub fn run_errands(&mut self, host: Tid, errands: &[Errand]) -> Result<Vec<i64>> {
        let none = || Error::Mismatch(format!("the workload has no process {host} that could be asked"));
        let (pid, process) =
            self.processes.iter().find(|(_, process)| process.host == host).ok_or_else(none)?;
        let space = process.space.as_ref().ok_or_else(none)?;
        // Its first thread for preference; a call can be made only where a signal could be delivered.
        let can_call = |running| matches!(running, Running::Stopped | Running::Signalled(_));
        let mut threads = self.threads.iter().filter(|(_, thread)| thread.process == *pid);
        let is_first = self.threads.get(&host).is_some_and(|thread| can_call(thread.running));
        let tid = if is_first {
            host
        } else {
            *threads.find(|(_, thread)| can_call(thread.running)).ok_or_else(none)?.0
        };
        let what = || format!("have process {pid} make calls for a patch");
        let mut batch = Batch::new();
        for errand in errands {
            errand.add(&mut batch);
        }
        let mut remote = Remote::begin(tid, &space.memory).attempt(what)?;
        let results: io::Result<Vec<i64>> = remote.run(&batch);
        remote.end().attempt(what)?;
        results.attempt(what)
    }
}
