//! Job control: controlling terminals as they come and go, and processes that are stopped.

use super::{Running, Workload};
use crate::checkpoint::{Job, Pid, TreeEvent};
use crate::error::{Attempt, Error, Result};
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::remote::{Batch, Remote};

/// Of `siginfo_t`: its code (CLD_…), which is at 8.
const CODE_AT: u64 = 8;

impl Workload {
    /// A child's controlling terminal is its parent's at that moment; the log is to say where the parent had it from.
    /// Only a leader of a session can have got one, and others only lose theirs.
    pub(super) fn note_inherited(&mut self, parent: Pid, child: Tid) -> Option<u32> {
        let process = self.processes.get_mut(&parent)?;
        if !process.leads && process.terminal.is_none() {
            return None;
        }
        let terminal = proc::terminal(child).ok()?;
        if process.terminal != terminal {
            process.terminal = terminal;
            self.log.push(TreeEvent::Terminal { pid: parent, terminal });
        }
        terminal
    }

    /// Controlling terminals as they are at the end of an epoch. Leaders first: with theirs everybody loses it.
    pub(crate) fn note_terminals(&mut self) -> Result<()> {
        let mut changed = Vec::new();
        for (pid, process) in &mut self.processes {
            if !process.leads && process.terminal.is_none() {
                continue;
            }
            let what = || format!("ask for the terminal of process {pid}");
            let terminal = proc::terminal(process.host).attempt(what)?;
            if process.terminal != terminal {
                process.terminal = terminal;
                changed.push((!process.leads, *pid, terminal));
            }
        }
        changed.sort_unstable();
        self.log.extend(changed.into_iter().map(|(_, pid, terminal)| TreeEvent::Terminal { pid, terminal }));
        Ok(())
    }

    /// What job control did to a process. While it is being stopped some of its threads are and others are not: that passes.
    pub(crate) fn look_at_job(&self, pid: Pid) -> Result<Job> {
        let Some(process) = self.processes.get(&pid).filter(|process| process.was_stopped) else {
            return Ok(Job::default());
        };
        let mut stopped = None;
        let mut going = false;
        for thread in self.threads.values().filter(|thread| thread.process == pid) {
            match thread.running {
                Running::Held(signal) => stopped = Some(signal),
                Running::Ended => {}
                _ => going = true,
            }
        }
        if stopped.is_some() && going {
            let what = format!("process {pid} is being stopped, or goes on just now");
            return Err(Error::NotNow(Box::new(Error::Mismatch(what))));
        }
        Ok(Job { stopped, untold: self.is_untold(process.parent, pid, stopped.is_some())? })
    }

    /// Asks its parent, which is thereby not told.
    fn is_untold(&self, parent: Pid, pid: Pid, stopped: bool) -> Result<bool> {
        let Some(parent) = self.processes.get(&parent) else { return Ok(false) };
        let Some(space) = &parent.space else { return Ok(false) };
        let what = || format!("ask what is known of process {pid}");
        let mut batch = Batch::new();
        let info = batch.bytes(&[0u8; 128]);
        let which = if stopped { libc::WSTOPPED } else { libc::WCONTINUED };
        let options = (which | libc::WNOHANG | libc::WNOWAIT) as u64;
        batch.call(libc::SYS_waitid, &[libc::P_PID as u64, pid as u64, info, options, 0]);
        let mut remote = Remote::begin(parent.host, &space.memory).attempt(what)?;
        let result = remote.run(&batch).and_then(|results| Ok((results, remote.read(info + CODE_AT, 4)?)));
        remote.end().attempt(what)?;
        let (results, code) = result.attempt(what)?;
        // Without a child in that state nothing is written.
        Ok(results.first() == Some(&0) && code.iter().any(|byte| *byte != 0))
    }
}
