//! A program running on a host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::error::{Attempt, Result};
use crate::sys;

/// What is left of a program's output when a failing test shows it.
const TAIL_LINES: usize = 15;

/// A program started on a host. Dropping the handle leaves it running, as on a machine one has logged out of; the
/// end of its host's power is its end.
#[derive(Clone, Debug)]
pub struct HostProcess {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: String,
    pid: libc::pid_t,
    pidfd: OwnedFd,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Mutex<Option<ExitStatus>>,
}

impl HostProcess {
    pub(crate) fn new(
        program: String,
        pid: libc::pid_t,
        stdout: PathBuf,
        stderr: PathBuf,
    ) -> io::Result<Self> {
        let pidfd = sys::pidfd_open(pid)?;
        let shared = Shared { program, pid, pidfd, stdout, stderr, ended: Mutex::new(None) };
        Ok(HostProcess { shared: Arc::new(shared) })
    }

    pub fn program(&self) -> &str {
        &self.shared.program
    }

    /// Its id as seen from outside of the host.
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// The file that its standard output goes to.
    pub fn stdout_path(&self) -> &Path {
        &self.shared.stdout
    }

    /// The file that its standard error goes to.
    pub fn stderr_path(&self) -> &Path {
        &self.shared.stderr
    }

    /// What it has written to standard output so far; empty when that cannot be read.
    pub fn stdout(&self) -> String {
        read_lossy(&self.shared.stdout)
    }

    /// What it has written to standard error so far; empty when that cannot be read.
    pub fn stderr(&self) -> String {
        read_lossy(&self.shared.stderr)
    }

    /// How it ended, if it has.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            let process = Id::PIDFd(self.shared.pidfd.as_fd());
            *ended = match waitid(process, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
                .attempt(|| format!("wait for {}", self.shared.program))?
            {
                // The status words of wait(2): the code in the second byte, the signal in the first.
                WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw((code & 0xff) << 8)),
                WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
                _ => None,
            };
        }
        Ok(*ended)
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_for(Duration::from_secs(60))? {
                return Ok(status);
            }
        }
    }

    /// Waits for its end, but no longer than this; `None` if it runs on.
    pub fn wait_for(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // A pidfd polls readable once its process is a zombie (pidfd_open(2)).
            let mut fds = [PollFd::new(self.shared.pidfd.as_fd(), PollFlags::POLLIN)];
            let milliseconds = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            match poll(&mut fds, PollTimeout::from(milliseconds)) {
                Err(nix::errno::Errno::EINTR) => {}
                other => drop(other.attempt(|| format!("wait for {}", self.shared.program))?),
            }
        }
    }

    /// Sends a signal; one that has ended already is fine.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        match sys::pidfd_signal(self.shared.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done.attempt(|| format!("send {signal} to {}", self.shared.program)),
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// The last lines of both outputs, for the report of a failing test.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for (stream, content) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<&str> = content.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                text.push_str(&format!("  {} {stream}: {line}\n", self.shared.program));
            }
        }
        text
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
