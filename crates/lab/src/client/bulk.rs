//! Large transfers against `lab_server`, every byte checked.

use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

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

/// Reads a pattern at full speed.
pub fn download(
    from: Option<&NetNs>,
    to: SocketAddr,
    length: u64,
    seed: u64,
) -> Result<Transfer, ClientError> {
    read_pattern(from, to, length, seed, Duration::ZERO)
}

/// Reads a pattern slowly, with a rest after every 64 KiB: the server has long written all of it and closed, and
/// most of it waits in its kernel's socket.
pub fn slow_download(
    from: Option<&NetNs>,
    to: SocketAddr,
    length: u64,
    seed: u64,
    rest: Duration,
) -> Result<Transfer, ClientError> {
    read_pattern(from, to, length, seed, rest)
}

fn read_pattern(
    from: Option<&NetNs>,
    to: SocketAddr,
    length: u64,
    seed: u64,
    rest: Duration,
) -> Result<Transfer, ClientError> {
    let mut stream = open(from, to)?;
    let mut progress = Progress::new(to);
    progress.check(writeln!(stream, "download {length} {seed}"))?;
    let (mut piece, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let read = progress.check(stream.read(&mut piece))?;
        if read == 0 {
            break;
        }
        pattern::fill(seed, progress.bytes, &mut expected[..read]);
        if piece[..read] != expected[..read] || progress.bytes + read as u64 > length {
            let what = format!("not the pattern within {read} bytes from {}", progress.bytes);
            return Err(ClientError::Wrong { to, what });
        }
        progress.advance(read);
        std::thread::sleep(rest);
    }
    if progress.bytes < length {
        return Err(progress.dropped(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(progress.done())
}

/// Writes a pattern at full speed; the server must have the same hash of it.
pub fn upload(from: Option<&NetNs>, to: SocketAddr, length: u64, seed: u64) -> Result<Transfer, ClientError> {
    let mut stream = open(from, to)?;
    let mut progress = Progress::new(to);
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
        return Err(ClientError::Wrong { to, what });
    }
    Ok(progress.done())
}

fn open(from: Option<&NetNs>, to: SocketAddr) -> Result<TcpStream, ClientError> {
    let stream = connect(from, to)?;
    let limits =
        stream.set_read_timeout(Some(STANDSTILL)).and_then(|()| stream.set_write_timeout(Some(STANDSTILL)));
    limits.map_err(|source| ClientError::Connect { to, source })?;
    Ok(stream)
}

struct Progress {
    to: SocketAddr,
    begun: Instant,
    last: Instant,
    bytes: u64,
    stall: Duration,
}

impl Progress {
    fn new(to: SocketAddr) -> Progress {
        let now = Instant::now();
        Progress { to, begun: now, last: now, bytes: 0, stall: Duration::ZERO }
    }

    fn advance(&mut self, bytes: usize) {
        let now = Instant::now();
        self.stall = self.stall.max(now - self.last);
        self.last = now;
        self.bytes += bytes as u64;
    }

    fn check<T>(&self, result: io::Result<T>) -> Result<T, ClientError> {
        result.map_err(|source| self.dropped(source))
    }

    fn dropped(&self, source: io::Error) -> ClientError {
        ClientError::Dropped { to: self.to, after: self.bytes, source }
    }

    fn done(mut self) -> Transfer {
        self.advance(0);
        Transfer { bytes: self.bytes, took: self.last - self.begun, stall: self.stall }
    }
}
