//! Calls that a process of the workload makes for whoever patches it: its tracer is the only one who can have it make any.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Process, Running, Workload};
use crate::error::{Attempt, Error, Result};
use crate::sys::proc;
use crate::sys::ptrace::{self, Registers, Tid};
use crate::sys::remote::{Batch, Remote, Returned};
use crate::sys::syscalls;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Errand {
    /// Map private memory of `length` bytes at a place where nothing is: readable, and either executable or writable.
    Map { at: u64, length: u64, executable: bool },
    /// Have every processor that runs the process execute a serialising instruction (`membarrier(2)`).
    Synchronise,
    /// Call a function of the program that waits for nothing.
    Function { at: u64, arguments: [u64; 3] },
}

/// How long a function may take, with all of the workload standing: well within what a tracer may take for one piece of work (`HANGS` in
/// crates/epoch/src/pulse.rs), after which it counts as dead.
const FUNCTION_LIMIT: Duration = Duration::from_secs(2);

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
            Self::Function { .. } => {}
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

/// Prepares that for a process, which this host knows by this number, without keeping the tracer: `None` while it is under way.
pub type Look = fn(Tid) -> Result<Option<Box<dyn Stacks>>, String>;

/// A byte for whoever patches a process, with what says that it is still waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub at: u64,
    pub byte: u8,
    pub mark: Mark,
}

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
    /// Stores a byte in a process's memory, if one is given, when none of its threads is in the code to be avoided, and says who was.
    /// Everything is stopped. It is refused if the mark is not there: who asked has given up, and may have undone what the byte was for.
    pub fn store_unless_in_the_way(
        &mut self,
        host: Tid,
        stacks: &dyn Stacks,
        avoided: &[Range<u64>],
        change: Option<&Change>,
    ) -> Result<Vec<Whereabouts>> {
        let none = || Error::Mismatch(format!("the workload has no process {host} that could be asked"));
        let (pid, process) =
            self.processes.iter().find(|(_, process)| process.host == host).ok_or_else(none)?;
        let memory = memory_of(process).attempt(|| format!("open the memory of process {pid}"))?;
        if let Some(change) = change {
            check(&memory, &change.mark)
                .attempt(|| format!("store a byte in process {pid} for its patcher"))?;
        }
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
        if let Some(change) = change
            && found.is_empty()
        {
            let stored = memory.write_all_at(&[change.byte], change.at);
            stored.attempt(|| format!("store a byte in process {pid}"))?;
        }
        Ok(found)
    }

    /// Has a process, which this host knows as `host`, run errands. Everything is stopped. Returns what each call returned (−errno
    /// if it failed); of a function 0, or −EAGAIN if it waited for something and was left there.
    pub fn run_errands(&mut self, host: Tid, errands: &[Errand]) -> Result<Vec<i64>> {
        let none = || Error::Mismatch(format!("the workload has no process {host} that could be asked"));
        let (pid, process) =
            self.processes.iter().find(|(_, process)| process.host == host).ok_or_else(none)?;
        let memory = memory_of(process).attempt(|| format!("open the memory of process {pid}"))?;
        // Its first thread for preference; a call can be made only where a signal could be delivered.
        let mut able: Vec<Tid> = self
            .threads
            .iter()
            .filter(|(_, thread)| thread.process == *pid)
            .filter(|(_, thread)| matches!(thread.running, Running::Stopped | Running::Signalled(_)))
            .map(|(tid, _)| *tid)
            .collect();
        able.sort_unstable_by_key(|tid| (*tid != host, *tid));
        let first = *able.first().ok_or_else(none)?;
        let what = || format!("have process {pid} make calls for a patch");
        if !Remote::has_workspace(&memory) {
            return Err(none());
        }
        let mut results = Vec::new();
        // Calls that follow one another are made at once.
        let is_function = |errand: &Errand| matches!(errand, Errand::Function { .. });
        for some in errands.chunk_by(|one, other| !is_function(one) && !is_function(other)) {
            if let [Errand::Function { at, arguments }] = some {
                let returned = call_function(&able, &memory, *at, *arguments).attempt(what)?;
                results.push(returned.map_err(|why| {
                    Error::Mismatch(format!("the function at {at:#x} of process {pid} {why}"))
                })?);
                continue;
            }
            let mut batch = Batch::new();
            for errand in some {
                errand.add(&mut batch);
            }
            let mut remote = Remote::begin(first, &memory).attempt(what)?;
            let made: io::Result<Vec<i64>> = remote.run(&batch);
            remote.end().attempt(what)?;
            results.extend(made.attempt(what)?);
        }
        Ok(results)
    }
}

/// By the first of these threads that has the room. The inner error is what the function did that it must not.
fn call_function(
    threads: &[Tid],
    memory: &File,
    at: u64,
    arguments: [u64; 3],
) -> io::Result<Result<i64, String>> {
    for tid in threads {
        let mut remote = Remote::begin_filtered(*tid, memory)?;
        let returned = remote.call_function(at, arguments, FUNCTION_LIMIT);
        remote.end()?;
        match returned? {
            Returned::Done => return Ok(Ok(0)),
            Returned::Waits => return Ok(Ok(-i64::from(libc::EAGAIN))),
            Returned::Calls(number) => {
                let name = syscalls::name(number);
                return Ok(Err(format!(
                    "was about to make a system call that a workload's supervisor would have to see, {name}, and was left there"
                )));
            }
            Returned::Faults(signal) => {
                return Ok(Err(format!("would have been ended by signal {signal}, and was left there")));
            }
            Returned::NoRoom => {}
        }
    }
    Ok(Err("was not called: no thread has 16 KiB of room on its stack".to_owned()))
}
