//! Stops processes as job control had stopped them: what the kernel keeps of that can only be had by stopping once more.

use std::io;

use crate::error::{Attempt, Result};
use crate::sys::ptrace::{self, Event, Stop, Tid};
use crate::sys::task;

/// Stops a process, all of whose threads are in a stop of ours, and leaves each in the stop that this gives. None of them
/// runs any code meanwhile: each has an interrupt before it that it cannot pass.
pub(crate) fn stop(leader: Tid, threads: &[Tid], signal: i32) -> Result<()> {
    let stopped = without_signals(threads, &[signal], || {
        // The one that cannot be kept out stands for the other.
        task::signal_thread(leader, libc::SIGSTOP)?;
        ptrace::resume(leader, 0)?;
        let mut given = None;
        loop {
            match (ptrace::wait_for(leader, true)?, given) {
                (Some(Event::Stopped(Stop::Signal(libc::SIGSTOP))), None) => {
                    ptrace::interrupt(leader)?;
                    ptrace::resume(leader, signal)?;
                    given = Some(signal);
                }
                (Some(Event::Stopped(Stop::Group(_))), _) => break,
                // A group without anybody to let it go on is not stopped by the signals of a terminal.
                (Some(Event::Stopped(Stop::Interrupt)), Some(_)) if signal != libc::SIGSTOP => {
                    task::signal_thread(leader, libc::SIGSTOP)?;
                    ptrace::resume(leader, 0)?;
                    given = None;
                }
                (other, _) => return Err(io::Error::other(format!("instead of stopping: {other:?}"))),
            }
        }
        for tid in threads.iter().filter(|tid| **tid != leader) {
            ptrace::interrupt(*tid)?;
            ptrace::resume(*tid, 0)?;
            match ptrace::wait_for(*tid, true)? {
                Some(Event::Stopped(Stop::Group(_))) => {}
                other => {
                    return Err(io::Error::other(format!("thread {tid} instead of stopping: {other:?}")));
                }
            }
        }
        Ok(())
    });
    stopped.attempt(|| format!("stop process {leader} as it was"))
}

/// Lets a process that was just stopped go on, as far as its parent is concerned: its only thread stays in a stop of ours.
pub(crate) fn go_on(leader: Tid) -> Result<()> {
    let went = without_signals(&[leader], &[libc::SIGCONT], || {
        task::signal_thread(leader, libc::SIGCONT)?;
        ptrace::resume(leader, 0)?;
        loop {
            match ptrace::wait_for(leader, true)? {
                Some(Event::Stopped(Stop::Signal(libc::SIGCONT))) => {
                    ptrace::interrupt(leader)?;
                    ptrace::resume(leader, 0)?;
                    break;
                }
                // It is told that it goes on, which comes first.
                Some(Event::Stopped(Stop::Interrupt)) => ptrace::resume(leader, 0)?,
                other => return Err(io::Error::other(format!("instead of going on: {other:?}"))),
            }
        }
        match ptrace::wait_for(leader, true)? {
            Some(Event::Stopped(Stop::Interrupt)) => Ok(()),
            other => Err(io::Error::other(format!("after going on: {other:?}"))),
        }
    });
    went.attempt(|| format!("let process {leader} go on"))
}

/// Keeps out all signals but these (and the ones that cannot be) from threads for the time of some work.
fn without_signals(threads: &[Tid], but: &[i32], work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let let_in = but.iter().fold(0u64, |set, signal| set | 1 << (signal - 1));
    let mut masks = Vec::with_capacity(threads.len());
    for tid in threads {
        masks.push((*tid, ptrace::signal_mask(*tid)?));
        ptrace::set_signal_mask(*tid, !let_in)?;
    }
    let result = work();
    for (tid, mask) in masks {
        ptrace::set_signal_mask(tid, mask)?;
    }
    result
}
