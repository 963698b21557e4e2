//! Threads that wait in calls: a stop must not end the wait, and a limit that the kernel does not keep is kept here.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::{Workload, ignore_gone};
use crate::calls::{self, Caller};
use crate::checkpoint::Pid;
use crate::error::{Attempt, Result};
use crate::object::posix_timer;
use crate::object::signal::PendingSignal;
use crate::sys::bpf::BpfError;
use crate::sys::bpf::threads::Lister;
use crate::sys::ptrace::{self, Registers, Tid};
use crate::sys::{proc, task};
use crate::tree::{Process, Running, Thread};

impl Workload {
    /// The workload's monotonic clock.
    pub(crate) fn now(&self) -> i64 {
        task::clock(libc::CLOCK_MONOTONIC) + self.clock_offsets.monotonic
    }

    /// How long until a call is to be ended.
    pub(super) fn until_a_limit(&self) -> Option<Duration> {
        let first = self.limits.values().min().filter(|_| !self.freezing)?;
        Some(Duration::from_nanos((first - self.now()).max(0) as u64))
    }

    /// Stops threads whose calls have waited long enough; at that stop their call is ended.
    pub(super) fn end_calls(&mut self) -> Result<()> {
        if self.limits.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let due: Vec<Tid> = self.limits.iter().filter(|(_, at)| **at <= now).map(|(tid, _)| *tid).collect();
        for tid in due {
            self.limits.remove(&tid);
            if self.threads.get(&tid).is_some_and(|thread| thread.running == Running::Yes) {
                ignore_gone(ptrace::interrupt(tid)).attempt(|| format!("stop thread {tid}"))?;
            }
        }
        Ok(())
    }

    /// A thread is about to receive a signal, which may be a timer's.
    pub(super) fn note_timer_signal(&mut self, pid: Pid, tid: Tid) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| !process.cadences.is_empty())
        else {
            return;
        };
        if let Ok(info) = ptrace::signal_info(tid)
            && let Some((timer, overrun)) = posix_timer::received_from(&PendingSignal::new(&info))
            && let Some(cadence) = process.cadences.get_mut(&timer)
        {
            cadence.received(overrun);
        }
    }

    /// Of a thread that is about to go on: makes ready again the call that its stop has interrupted.
    pub(super) fn look_at_call(&mut self, tid: Tid, signal: Option<i32>) -> Result<()> {
        let (now, ahead) = (self.now(), self.clock_offsets.monotonic);
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        let Some(process) = self.processes.get_mut(&thread.process) else { return Ok(()) };
        let looked = ptrace::registers(tid).and_then(|regs| {
            let news = calls::is_news(&regs, thread.waiting);
            let kept = if news { kept_by_kernel(process, thread.tid)? } else { None };
            look(tid, &regs, thread, process, signal.is_some(), Clock { now, ahead }, kept)
        });
        match looked {
            // Killed.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            looked => looked.attempt(|| format!("look at the call of thread {tid}"))?,
        };
        note(&mut self.limits, tid, thread);
        Ok(())
    }
}

/// The workload's monotonic clock, and what it is ahead of this host's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub now: i64,
    pub ahead: i64,
}

/// What the kernel keeps of a thread's call, if it lists threads.
fn kept_by_kernel(process: &mut Process, inside: Pid) -> io::Result<Option<calls::RestartBlock>> {
    let Ok(lister) = Lister::shared() else { return Ok(None) };
    let threads = match &process.threads {
        Some(threads) => threads,
        None => process.threads.insert(lister.threads(process.host).map_err(|error| match error {
            BpfError::Iterate { source, .. } => source,
            other => io::Error::other(other),
        })?),
    };
    let mut seen = threads.read()?.into_iter();
    Ok(seen.find(|seen| seen.inside == inside).map(|seen| seen.restart))
}

/// Keeps the list of limits as the threads are.
pub(crate) fn note(limits: &mut std::collections::HashMap<Tid, i64>, tid: Tid, thread: &Thread) {
    match thread.waiting.filter(|waiting| waiting.ours).and_then(|waiting| waiting.deadline) {
        Some(deadline) => limits.insert(tid, deadline),
        None => limits.remove(&tid),
    };
}

/// Gives the registers for the backup.
pub(crate) fn look(
    tid: Tid,
    regs: &Registers,
    thread: &mut Thread,
    process: &Process,
    signalled: bool,
    clock: Clock,
    kept: Option<calls::RestartBlock>,
) -> io::Result<Registers> {
    let signal = if signalled { Some(ptrace::signal_info(tid)?) } else { None };
    // Until it is protected again nothing of a restored process's memory is open.
    let opened = match &process.space {
        Some(_) => None,
        None => proc::open_memory(tid).ok(),
    };
    let filtered = match &thread.filters {
        Some(filters) => !filters.is_empty(),
        // The first is ours.
        None => ptrace::seccomp_filter(tid, 1)?.is_some(),
    };
    let caller = Caller {
        tid,
        memory: process.space.as_ref().map(|space| &*space.memory).or(opened.as_ref()),
        process: process.pidfd.as_fd(),
        now: clock.now,
        interrupted: thread.stopped_at.unwrap_or(clock.now),
        ahead: clock.ahead,
        kept,
        filtered,
    };
    let seen = calls::look(regs, thread.waiting, signal.as_ref(), &caller)?;
    if seen.changed {
        ptrace::set_registers(tid, &seen.registers)?;
    }
    thread.waiting = seen.waiting;
    thread.looked_at = true;
    Ok(seen.registers)
}
