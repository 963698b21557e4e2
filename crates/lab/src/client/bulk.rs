//! Large transfers against `lab_server`, every byte checked.

use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use xxhash_rust::xxh3::Xxh3Default;

use super::{ClientError, connect};
use crate::netns::NetNs;
use crate::pattern;

/// A transfer that stands still for so long has been dropped.
const STANDSTILL: Duration = Duration::from_secs(30);
const PIECE: usize = 64 << 10;

/// A transfer that was right to the last byte.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub bytes: u64,
    pub took: Duration,
    /// The longest time without progress.
    pub stall: Duration,
}

/// Transfers to and from one server.
#[derive(Clone, Copy, Debug)]
pub struct Bulk<'a> {
    pub from: Option<&'a NetNs>,
    pub to: SocketAddr,
    /// A rest after every 64 KiB: the pace, at most.
    pub rest: Duration,
    /// The size of the receive buffer, of which the kernel makes the double; its own choice if none.
    pub receive_buffer: Option<usize>,
    /// Counts the bytes that were right, or written, while the transfer goes on.
    pub seen: Option<&'a AtomicU64>,
}

impl<'a> Bulk<'a> {
    /// At full speed.
    pub fn new(from: Option<&'a NetNs>, to: SocketAddr) -> Self {
        Bulk { from, to, rest: Duration::ZERO, receive_buffer: None, seen: None }
    }

    /// Reads a pattern.
    pub fn download(&self, length: u64, seed: u64) -> Result<Transfer, ClientError> {
        self.read_pattern(&format!("download {length} {seed}"), length, seed)
    }

    /// Reads a pattern from a server that has written all of it, and closed, long before this side has read it:
    /// most of it waits in the server's kernel, in a socket that no program has any more.
    pub fn download_left(&self, length: u64, seed: u64) -> Result<Transfer, ClientError> {
        self.read_pattern(&format!("leave {length} {seed}"), length, seed)
    }

    fn read_pattern(&self, request: &str, length: u64, seed: u64) -> Result<Transfer, ClientError> {
        let mut stream = self.open()?;
        let mut progress = Progress::new(self);
        progress.check(writeln!(stream, "{request}"))?;
        let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            let read = progress.check(stream.read(&mut piece))?;
            if read == 0 {
                break;
            }
            pattern::fill(seed, progress.bytes, &mut expected[..read]);
            if piece[..read] != expected[..read] || progress.bytes + read as u64 > length {
                let what = format!("not the pattern within {read} bytes from {}", progress.bytes);
                return Err(ClientError::Wrong { to: self.to, what });
            }
            progress.advance(read);
        }
        if progress.bytes < length {
            return Err(progress.dropped(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(progress.done())
    }

    /// Writes a pattern; the server must have the same hash of it.
    pub fn upload(&self, length: u64, seed: u64) -> Result<Transfer, ClientError> {
        let mut stream = self.open()?;
        let mut progress = Progress::new(self);
        progress.check(writeln!(stream, "upload {length}"))?;
        let mut hasher = Xxh3Default::new();
        let mut piece = vec![0; PIECE];
        while progress.bytes < length {
            let take = (length - progress.bytes).min(PIECE as u64) as usize;
            pattern::fill(seed, progress.bytes, &mut piece[..take]);
            hasher.update(&piece[..take]);
            progress.check(stream.write_all(&piece[..take]))?;
            progress.advance(take);
        }
        let mut answer = String::new();
        progress.check(BufReader::new(&stream).read_line(&mut answer))?;
        let expected = format!("{:016x} {length}", hasher.finish());
        if answer.is_empty() {
            return Err(progress.dropped(io::ErrorKind::UnexpectedEof.into()));
        }
        if answer.trim_end() != expected {
            let what = format!("it received `{}` instead of `{expected}`", answer.trim_end());
            return Err(ClientError::Wrong { to: self.to, what });
        }
        Ok(progress.done())
    }

    fn open(&self) -> Result<TcpStream, ClientError> {
        let failed = |source| ClientError::Connect { to: self.to, source };
        let stream = connect(self.from, self.to)?;
        stream.set_read_timeout(Some(STANDSTILL)).map_err(failed)?;
        stream.set_write_timeout(Some(STANDSTILL)).map_err(failed)?;
        if let Some(size) = self.receive_buffer {
            setsockopt(&stream, sockopt::RcvBuf, &size).map_err(|errno| failed(errno.into()))?;
        }
        Ok(stream)
    }
}

struct Progress<'a> {
    bulk: &'a Bulk<'a>,
    begun: Instant,
    last: Instant,
    bytes: u64,
    stall: Duration,
}

impl<'a> Progress<'a> {
    fn new(bulk: &'a Bulk<'a>) -> Progress<'a> {
        let now = Instant::now();
        Progress { bulk, begun: now, last: now, bytes: 0, stall: Duration::ZERO }
    }

    fn advance(&mut self, bytes: usize) {
        let now = Instant::now();
        self.stall = self.stall.max(now - self.last);
        let before = self.bytes;
        self.bytes += bytes as u64;
        if let Some(seen) = self.bulk.seen {
            seen.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let piece = PIECE as u64;
        if !self.bulk.rest.is_zero() && before / piece != self.bytes / piece {
            std::thread::sleep(self.bulk.rest);
        }
        // A rest of ours is no stall.
        self.last = Instant::now();
    }

    fn check<T>(&self, result: io::Result<T>) -> Result<T, ClientError> {
        result.map_err(|source| self.dropped(source))
    }

    fn dropped(&self, source: io::Error) -> ClientError {
        ClientError::Dropped { to: self.bulk.to, after: self.bytes, source }
    }

    fn done(mut self) -> Transfer {
        self.stall = self.stall.max(self.last.elapsed());
        Transfer { bytes: self.bytes, took: self.begun.elapsed(), stall: self.stall }
    }
}
