//! Stopping all threads of the tree for a checkpoint, and letting them go on.

use std::time::{Duration, Instant};

use super::{PARK_AFTER, Running, Workload, ignore_gone};
use crate::error::{Attempt, Error, Result};
use crate::sys::ptrace::{self, Tid};

impl Workload {
    /// Stops every thread. On failure everything runs again.
    pub fn freeze(&mut self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        self.drain()?;
        if self.processes.values().any(|process| process.borrows) {
            return Err(Error::NotStopped(0));
        }
        self.freezing = true;
        for (tid, thread) in &self.threads {
            if thread.running.is_free() {
                ignore_gone(ptrace::interrupt(*tid)).attempt(|| format!("stop thread {tid}"))?;
            }
        }
        loop {
            self.drain()?;
            let all = self.threads.values().all(|thread| !thread.running.is_free());
            if all && self.processes.values().all(|process| !process.borrows && process.unborn.is_empty()) {
                return Ok(());
            }
            let elapsed = begun.elapsed();
            if elapsed >= limit || self.happened.ended.is_some() {
                self.thaw()?;
                return Err(Error::NotStopped(elapsed.as_millis() as u64));
            }
            self.wait(limit - elapsed, &[])?;
        }
    }

    /// Lets every thread go on, with the signals it was about to receive.
    pub fn thaw(&mut self) -> Result<()> {
        self.descriptors.let_go_of_flights();
        self.freezing = false;
        let unseen: Vec<(Tid, Option<i32>)> = self
            .threads
            .iter()
            .filter_map(|(tid, thread)| match thread.running {
                Running::Stopped | Running::Held(_) if !thread.looked_at => Some((*tid, None)),
                // Only now does the signal interrupt its call, which may say what is left of it.
                Running::Signalled(signal) => Some((*tid, Some(signal))),
                _ => None,
            })
            .collect();
        for (tid, signal) in unseen {
            self.look_at_call(tid, signal)?;
        }
        for (tid, thread) in &mut self.threads {
            thread.looked_at = false;
            thread.stopped_at = None;
            let resumed = match thread.running {
                // Never a leader: the process is asked about itself through it.
                Running::Stopped
                    if thread.settled >= PARK_AFTER
                        && thread.tid != thread.process
                        && thread.waiting.is_none_or(|waiting| !waiting.ours) =>
                {
                    thread.running = Running::Parking;
                    ptrace::resume_to_call(*tid)
                }
                Running::Stopped => {
                    thread.running = Running::Yes;
                    ptrace::resume(*tid, 0)
                }
                Running::Signalled(signal) => {
                    thread.running = Running::Yes;
                    ptrace::resume(*tid, signal)
                }
                Running::Held(signal) => {
                    thread.running = Running::Group(signal);
                    ptrace::listen(*tid)
                }
                Running::Yes
                | Running::Group(_)
                | Running::Parking
                | Running::Calling
                | Running::Parked
                | Running::Ended => Ok(()),
            };
            ignore_gone(resumed).attempt(|| format!("resume thread {tid}"))?;
        }
        Ok(())
    }
}
