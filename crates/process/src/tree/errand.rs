//! Calls that a process of the workload makes for whoever patches it: its tracer is the only one who can have it make any.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::{Process, Running, Workload};
use crate::error::{Attempt, Error, Result};
use crate::sys::proc;
use crate::sys::ptrace::{self, Registers, Tid};
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

/// What a process's memory has at a place for as long as somebody waits for what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub at: u64,
    pub bytes: Vec<u8>,
}

/// A thread that is in some code, by that code's place in what was asked about, or why it cannot be told where it is.
pub type Whereabouts = (Tid, Result<usize, String>);

/// Says which threads of one process are in some code or go back to it: prepared while the process runs, asked while it stands.
pub trait Stacks {
    fn in_the_way(
        &self,
        threads: &[(Tid, Registers)],
        avoided: &[Range<u64>],
    ) -> Result<Vec<Whereabouts>, String>;
}

/// Prepares that for a process, which this host knows by this number.
pub type Look = fn(Tid) -> Result<Box<dyn Stacks>, String>;

/// The space's own, or opened: a process that was restored is not tracked until it is protected again, and has memory all the same.
fn memory_of(process: &Process) -> io::Result<File> {
    match &process.space {
        Some(space) => space.memory.try_clone(),
        None => proc::open_memory(process.host),
    }
}

fn check(memory: &File, mark: &Mark) -> io::Result<()> {
    /// More than a patcher's mark has.
    const MOST: usize = 64;
    let mut bytes = [0; MOST];
    let there = bytes.get_mut(..mark.bytes.len()).ok_or_else(|| io::Error::other("its mark is too long"))?;
    memory.read_exact_at(there, mark.at)?;
    if *there != *mark.bytes {
        return Err(io::Error::other("it waits for it no more"));
    }
    Ok(())
}

impl Workload {
    /// Stores a byte in a process's memory if none of its threads is in the code to be avoided, and says who was. Everything is
    /// stopped. It is refused if the mark is not there: who asked has given up, and may have undone what the byte was for.
    pub fn store_unless_in_the_way(
        &mut self,
        host: Tid,
        stacks: &dyn Stacks,
        avoided: &[Range<u64>],
        (at, byte): (u64, u8),
        mark: &Mark,
    ) -> Result<Vec<Whereabouts>> {
        let none = || Error::Mismatch(format!("the workload has no process {host} that could be asked"));
        let (pid, process) =
            self.processes.iter().find(|(_, process)| process.host == host).ok_or_else(none)?;
        let memory = memory_of(process).attempt(|| format!("open the memory of process {pid}"))?;
        check(&memory, mark).attempt(|| format!("store a byte in process {pid} for its patcher"))?;
        let mut threads = Vec::new();
        let mut found = Vec::new();
        for (tid, thread) in self.threads.iter().filter(|(_, thread)| thread.process == *pid) {
            match (thread.running, &thread.captured) {
                (Running::Ended, _) => {}
                // Asleep where it was when it was captured.
                (Running::Parked, Some(captured)) => {
                    threads.push((*tid, crate::capture::unpack(&captured.registers)))
                }
                (Running::Parked, None) => found.push((*tid, Err("it was not looked at yet".to_owned()))),
                _ => match ptrace::registers(*tid) {
                    Ok(registers) => threads.push((*tid, registers)),
                    // It was killed meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => {
                        return Err(error).attempt(|| format!("read the registers of thread {tid}"));
                    }
                },
            }
        }
        let looked = stacks.in_the_way(&threads, avoided).map_err(io::Error::other);
        found.extend(looked.attempt(|| format!("look where the threads of process {pid} are"))?);
        if found.is_empty() {
            let stored = memory.write_all_at(&[byte], at);
            stored.attempt(|| format!("store a byte in process {pid}"))?;
        }
        Ok(found)
    }

    /// Has a process, which this host knows as `host`, run errands. Everything is stopped. Returns what each call returned (−errno
    /// if it failed).
    pub fn run_errands(&mut self, host: Tid, errands: &[Errand]) -> Result<Vec<i64>> {
        let none = || Error::Mismatch(format!("the workload has no process {host} that could be asked"));
        let (pid, process) =
            self.processes.iter().find(|(_, process)| process.host == host).ok_or_else(none)?;
        let memory = memory_of(process).attempt(|| format!("open the memory of process {pid}"))?;
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
        if !Remote::has_workspace(&memory) {
            return Err(none());
        }
        let mut remote = Remote::begin(tid, &memory).attempt(what)?;
        let results: io::Result<Vec<i64>> = remote.run(&batch);
        remote.end().attempt(what)?;
        results.attempt(what)
    }
}
