//! The workload's standard output and error: an output under R1, kept on both nodes.
//!
//! Collected from two pipes. What was written in an epoch is in its checkpoint, and reaches the file when the epoch is
//! committed, on the primary as on the backup: so that over a failover no line is lost, doubled or out of order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::error::{Attempt, Result};

/// Capacity asked for each pipe: the most an ordinary system allows (`/proc/sys/fs/pipe-max-size`).
const PIPE_SIZE: i32 = 1 << 20;
const CHUNK: usize = 64 * 1024;

/// Pieces of output: stream (1 or 2) and bytes.
pub type Pieces = Vec<(u8, Vec<u8>)>;

/// The reading ends.
#[derive(Debug)]
pub struct Pipes {
    ends: [File; 2],
}

impl Pipes {
    /// The pipes, and the ends for the workload.
    pub fn new() -> Result<(Self, [OwnedFd; 2])> {
        let pipe = || -> Result<(OwnedFd, OwnedFd)> {
            let (read, write) =
                nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).attempt(|| "make a pipe".into())?;
            nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
                .attempt(|| "set up a pipe".into())?;
            // A smaller pipe only makes the workload wait sooner.
            let _ = nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
            Ok((read, write))
        };
        let ((read_out, write_out), (read_err, write_err)) = (pipe()?, pipe()?);
        Ok((Self { ends: [read_out.into(), read_err.into()] }, [write_out, write_err]))
    }

    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.ends[0].as_fd(), self.ends[1].as_fd()]
    }

    /// Whether something was written that has not been drained.
    pub fn waits(&self) -> io::Result<bool> {
        let mut ends = self.fds().map(|end| PollFd::new(end, PollFlags::POLLIN));
        match nix::poll::poll(&mut ends, PollTimeout::ZERO) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let readable =
            |end: &PollFd<'_>| end.revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        Ok(ends.iter().any(readable))
    }

    /// Everything written so far.
    pub fn drain(&mut self, into: &mut Pieces) -> io::Result<()> {
        for (index, end) in self.ends.iter_mut().enumerate() {
            let mut buffer = vec![0u8; CHUNK];
            loop {
                match end.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => into.push((index as u8 + 1, buffer[..read].to_vec())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// The file on this node: records of stream (1 byte), length (4), Unix time in milliseconds (8), bytes; little-endian.
/// At half of the limit it is renamed to `output.log.1`, which replaces the one before.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    pub fn open(directory: &Path, limit: u64) -> Result<Self> {
        let path = directory.join("output.log");
        let what = || format!("open {}", path.display());
        fs::create_dir_all(directory).attempt(what)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).attempt(what)?;
        let size = file.metadata().attempt(what)?.len();
        Ok(Self { path, file, size, limit: limit / 2 })
    }

    pub fn append(&mut self, pieces: &Pieces) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        for (stream, bytes) in pieces {
            let mut record = vec![*stream];
            record.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            record.extend_from_slice(&now.to_le_bytes());
            record.extend_from_slice(bytes);
            if self.size + record.len() as u64 > self.limit && self.size > 0 {
                fs::rename(&self.path, self.path.with_extension("log.1"))?;
                self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                self.size = 0;
            }
            self.file.write_all(&record)?;
            self.size += record.len() as u64;
        }
        Ok(())
    }
}
