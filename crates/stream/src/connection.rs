//! An authenticated connection, whose two halves may be used by two threads at once.
//!
//! The TLS state is one object for both directions, so it lies behind a lock; but no system call is ever made
//! under that lock. The writer encrypts under it into its own buffer, and writes that buffer out after
//! releasing it. The reader receives ciphertext into its own buffer, and takes the lock to decrypt. So a
//! writer that waits for a full socket never keeps the reader from emptying the other direction: two nodes
//! that both send as much as they can cannot wait for each other.
//!
//! Invariant: only the [`Writer`] writes to the socket (there is one, and it is not `Clone`), so records
//! leave in the order in which they were encrypted. What the TLS state wants to say on its own account (the
//! answer to a key update) leaves with the writer's next bytes, as RFC 8446, section 4.6.3 allows.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};

use crate::portions::{Portions, total};

/// How much plaintext is encrypted under one hold of the lock, and given to the kernel in one call: four full
/// TLS records. Larger sends are cut into such portions, so that the other end decrypts one while this end
/// encrypts the next. A round trip of 200 KiB took 255, 231, 220 and 214 µs with portions of 16, 32, 64 and
/// 128 KiB (least of 2,000, `examples/round_trip.rs`).
pub(crate) const PORTION: usize = 64 * 1024;

/// How much ciphertext one receive takes: two portions, with what TLS adds to them.
const RECEIVE_BUFFER: usize = 2 * (PORTION + 4 * 256);

/// Where bytes come from: a connection's [`Reader`], or a recording in memory.
pub trait ByteSource {
    /// Wait for at least one byte, and take what is there. Never returns 0 (but for an empty `into`).
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError>;
}

/// Where bytes go: a connection's [`Writer`], or a recording in memory.
pub trait ByteSink {
    /// Send all of these, one after the other.
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError>;
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Nothing is lost by it: receiving may be tried again.
    #[error("nothing more arrived from {peer} within the time allowed")]
    TimedOut { peer: Arc<str> },
    #[error("{peer} has closed the stream in good order")]
    Closed { peer: Arc<str> },
    #[error(
        "the stream from {peer} was cut off: its process or host has ended, or the network between has failed"
    )]
    Cut { peer: Arc<str> },
    #[error("the stream to {peer} was shut down at this end")]
    ShutDown { peer: Arc<str> },
    #[error("cannot receive from {peer}; connect again")]
    Io { peer: Arc<str>, source: io::Error },
    #[error("what arrived from {peer} is not what it sent (or not from it); connect again")]
    Tls { peer: Arc<str>, source: rustls::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("{peer} did not take what was sent within the time allowed; connect again")]
    TimedOut { peer: Arc<str> },
    #[error("the stream to {peer} was shut down at this end")]
    ShutDown { peer: Arc<str> },
    #[error("cannot send to {peer}; connect again")]
    Io { peer: Arc<str>, source: io::Error },
    #[error("cannot encrypt for {peer}; connect again")]
    Encrypt { peer: Arc<str>, source: io::Error },
    #[error("an earlier send to {peer} failed and may have left half a record on the stream; connect again")]
    AfterFailure { peer: Arc<str> },
}

/// A connection to a known node. Use it as it is, or [`split`](Connection::split) it over two threads.
#[derive(Debug)]
pub struct Connection {
    writer: Writer,
    reader: Reader,
}

/// The half that sends. Dropping both halves closes the socket, which the other end sees as a cut.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// Encrypted and not yet sent; empty between calls.
    ciphertext: Vec<u8>,
    deadline: Option<Instant>,
    failed: bool,
}

/// The half that receives.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    /// Received and not yet decrypted: `ciphertext[start..end]`.
    ciphertext: Box<[u8]>,
    start: usize,
    end: usize,
    deadline: Option<Instant>,
    spin: Duration,
}

/// Ends a connection from any thread.
#[derive(Clone, Debug)]
pub struct Closer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: TcpStream,
    tls: Mutex<rustls::Connection>,
    peer: Arc<str>,
    peer_address: SocketAddr,
    shut_down: AtomicBool,
}

impl Connection {
    /// Take over a socket on which `tls` has completed its handshake with the node `peer`.
    pub(crate) fn new(
        socket: TcpStream,
        tls: rustls::Connection,
        peer: &str,
        peer_address: SocketAddr,
    ) -> io::Result<Self> {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        let shared = Arc::new(Shared {
            socket,
            tls: Mutex::new(tls),
            peer: Arc::from(peer),
            peer_address,
            shut_down: AtomicBool::new(false),
        });
        Ok(Self {
            writer: Writer {
                shared: Arc::clone(&shared),
                ciphertext: Vec::new(),
                deadline: None,
                failed: false,
            },
            reader: Reader {
                shared,
                ciphertext: vec![0; RECEIVE_BUFFER].into_boxed_slice(),
                start: 0,
                end: 0,
                deadline: None,
                spin: Duration::ZERO,
            },
        })
    }

    /// The name of the node at the other end, proved by its certificate.
    pub fn peer_node(&self) -> &str {
        &self.writer.shared.peer
    }

    pub fn peer_address(&self) -> SocketAddr {
        self.writer.shared.peer_address
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.writer.shared.socket.local_addr()
    }

    #[cfg(test)]
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.writer.shared.socket
    }

    /// A handle to end the connection with, from any thread.
    pub fn closer(&self) -> Closer {
        Closer { shared: Arc::clone(&self.writer.shared) }
    }

    pub fn split(self) -> (Writer, Reader) {
        (self.writer, self.reader)
    }

    /// Both halves, in place.
    pub fn halves(&mut self) -> (&mut Writer, &mut Reader) {
        (&mut self.writer, &mut self.reader)
    }
}

impl Closer {
    /// End the connection at once, both ways. A thread that waits in either half wakes with `ShutDown`.
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }
}

impl Shared {
    fn shutdown(&self) {
        self.shut_down.store(true, Ordering::Release);
        // Wakes blocked senders and receivers alike: inet_shutdown() ends with sk_state_change()
        // (net/ipv4/af_inet.c). It fails only when the socket is no longer connected, which is what was asked
        // for.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Acquire)
    }

    /// `None` if the thread that held it panicked: the TLS state may be half-way through a record.
    fn lock(&self) -> Option<MutexGuard<'_, rustls::Connection>> {
        self.tls.lock().ok()
    }
}

fn half_panicked() -> io::Error {
    io::Error::other("the thread using the other half of the connection has panicked")
}

/// How a socket reports that `SO_RCVTIMEO` or `SO_SNDTIMEO` ran out: EAGAIN (socket(7)), unlike ETIMEDOUT,
/// by which the kernel gives the connection up.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// What is left until `deadline`, never zero: a zero timeout would mean for ever (socket(7)).
pub(crate) fn remaining(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // The kernel counts in jiffies and rounds up; anything under a microsecond would be rounded to zero on
    // the way.
    (left >= Duration::from_micros(1)).then_some(left)
}

impl Writer {
    pub fn peer_node(&self) -> &str {
        &self.shared.peer
    }

    /// See [`Closer::shutdown`].
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }

    /// Fail sends that are not done by then. A send that timed out may have left half a record on the stream,
    /// so it is the last. Without a deadline, `TCP_USER_TIMEOUT` bounds the wait for a peer that takes
    /// nothing.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        if deadline.is_none() && self.deadline.is_some() {
            self.shared.socket.set_write_timeout(None)?;
        }
        self.deadline = deadline;
        Ok(())
    }

    /// Tell the other end that nothing more will come, as a `Closed` and not as a cut.
    pub fn close(mut self) -> Result<(), SendError> {
        self.check_usable()?;
        let shared = Arc::clone(&self.shared);
        {
            let Some(mut tls) = shared.lock() else { return Err(self.encrypt_error(half_panicked())) };
            tls.send_close_notify();
            self.take_ciphertext(&mut tls)?;
        }
        self.flush()?;
        shared.socket.shutdown(Shutdown::Write).map_err(|source| self.io_error(source))
    }

    fn check_usable(&self) -> Result<(), SendError> {
        if self.shared.is_shut_down() {
            return Err(SendError::ShutDown { peer: Arc::clone(&self.shared.peer) });
        }
        if self.failed {
            return Err(SendError::AfterFailure { peer: Arc::clone(&self.shared.peer) });
        }
        Ok(())
    }

    fn encrypt(&mut self, portion: &[&[u8]]) -> Result<(), SendError> {
        let shared = Arc::clone(&self.shared);
        let Some(mut tls) = shared.lock() else { return Err(self.encrypt_error(half_panicked())) };
        let taken = match portion {
            [one] => tls.writer().write(one),
            many => {
                let slices: Vec<_> = many.iter().map(|part| IoSlice::new(part)).collect();
                tls.writer().write_vectored(&slices)
            }
        };
        let taken = taken.map_err(|source| self.encrypt_error(source))?;
        let left = total(portion) - taken;
        if left != 0 {
            // Unbounded buffering is set at the handshake, so the TLS state has run out of sequence numbers.
            let source =
                io::Error::other(format!("{left} bytes could not be encrypted under the session's keys"));
            return Err(self.encrypt_error(source));
        }
        self.take_ciphertext(&mut tls)
    }

    fn take_ciphertext(&mut self, tls: &mut rustls::Connection) -> Result<(), SendError> {
        while tls.wants_write() {
            // Into memory: only as much as this portion made.
            tls.write_tls(&mut self.ciphertext).map_err(|source| self.encrypt_error(source))?;
        }
        Ok(())
    }

    /// Give the kernel all that is encrypted.
    fn flush(&mut self) -> Result<(), SendError> {
        let mut sent = 0;
        while sent < self.ciphertext.len() {
            if let Some(deadline) = self.deadline {
                let left = remaining(deadline).ok_or_else(|| self.timed_out())?;
                self.shared.socket.set_write_timeout(Some(left)).map_err(|source| self.io_error(source))?;
            }
            match (&self.shared.socket).write(&self.ciphertext[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(self.timed_out()),
                Err(error) => return Err(self.io_error(error)),
            }
        }
        self.ciphertext.clear();
        Ok(())
    }

    fn timed_out(&self) -> SendError {
        SendError::TimedOut { peer: Arc::clone(&self.shared.peer) }
    }

    fn encrypt_error(&self, source: io::Error) -> SendError {
        SendError::Encrypt { peer: Arc::clone(&self.shared.peer), source }
    }

    fn io_error(&self, source: io::Error) -> SendError {
        let peer = Arc::clone(&self.shared.peer);
        if self.shared.is_shut_down() { SendError::ShutDown { peer } } else { SendError::Io { peer, source } }
    }
}

impl ByteSink for Writer {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        self.check_usable()?;
        if let [one] = parts
            && (1..=PORTION).contains(&one.len())
        {
            let outcome = self.encrypt(&[*one]).and_then(|()| self.flush());
            self.failed = outcome.is_err();
            return outcome;
        }
        let mut portions = Portions::new(parts);
        while let Some(portion) = portions.next(PORTION) {
            if let Err(error) = self.encrypt(&portion).and_then(|()| self.flush()) {
                self.failed = true;
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Reader {
    pub fn peer_node(&self) -> &str {
        &self.shared.peer
    }

    /// See [`Closer::shutdown`].
    pub fn shutdown(&self) {
        self.shared.shutdown();
    }

    /// How long each receive waits for the first byte; `None` (as at the start) is for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.deadline = None;
        self.shared.socket.set_read_timeout(timeout)
    }

    /// Until when receives wait, all together; `None` is for ever. Replaces the timeout.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.set_timeout(None)?;
        self.deadline = deadline;
        Ok(())
    }

    /// Before sleeping, look for bytes again and again for this long. Waking a thread on another core costs
    /// 20 to 40 µs, of the same order as a small epoch's whole round trip. But spinning takes a core from
    /// everyone else: where all are busy it takes it from the very thread that is waited for, and median
    /// round trips of 4 ms instead of 0.3 were seen. Only for threads that have a core to themselves; zero,
    /// as at the start, is right elsewhere.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Decrypt what has been received into `into`, as far as both go; 0 if there is nothing left to decrypt.
    fn decrypt(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        let shared = Arc::clone(&self.shared);
        let Some(mut tls) = shared.lock() else { return Err(self.io_error(half_panicked())) };
        let mut filled = 0;
        loop {
            // What is decrypted first, always: the TLS state takes no more until it is emptied.
            match tls.reader().read(&mut into[filled..]) {
                Ok(0) if filled == 0 => return Err(ReceiveError::Closed { peer: Arc::clone(&shared.peer) }),
                Ok(0) => return Ok(filled),
                Ok(count) => {
                    filled += count;
                    if filled == into.len() {
                        return Ok(filled);
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(self.io_error(source)),
            }
            if self.start == self.end {
                return Ok(filled);
            }
            let mut ciphertext = &self.ciphertext[self.start..self.end];
            let count = tls.read_tls(&mut ciphertext).map_err(|source| self.io_error(source))?;
            self.start += count;
            if let Err(source) = tls.process_new_packets() {
                // Nothing that follows can be trusted, in either direction; the writer shall not go on
                // either.
                drop(tls);
                shared.shutdown();
                return Err(ReceiveError::Tls { peer: Arc::clone(&shared.peer), source });
            }
        }
    }

    /// Wait for ciphertext. Only called when all there was has been decrypted.
    fn fill(&mut self) -> Result<(), ReceiveError> {
        (self.start, self.end) = (0, 0);
        let count = match self.spin_for_bytes() {
            Some(received) => received,
            None => self.wait_for_bytes(),
        }?;
        if count == 0 {
            let peer = Arc::clone(&self.shared.peer);
            return Err(match self.shared.is_shut_down() {
                true => ReceiveError::ShutDown { peer },
                false => ReceiveError::Cut { peer },
            });
        }
        self.end = count;
        Ok(())
    }

    fn spin_for_bytes(&mut self) -> Option<Result<usize, ReceiveError>> {
        if self.spin.is_zero() {
            return None;
        }
        let end = Instant::now() + self.spin;
        let socket = self.shared.socket.as_raw_fd();
        while Instant::now() < end {
            match recv(socket, &mut self.ciphertext, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Some(Ok(count)),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => std::hint::spin_loop(),
                Err(errno) => return Some(Err(self.receive_failed(errno.into()))),
            }
        }
        None
    }

    fn wait_for_bytes(&mut self) -> Result<usize, ReceiveError> {
        loop {
            if let Some(deadline) = self.deadline {
                let left = remaining(deadline).ok_or_else(|| self.timed_out())?;
                self.shared.socket.set_read_timeout(Some(left)).map_err(|source| self.io_error(source))?;
            }
            match (&self.shared.socket).read(&mut self.ciphertext) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(self.timed_out()),
                Err(error) => return Err(self.receive_failed(error)),
            }
        }
    }

    fn receive_failed(&self, source: io::Error) -> ReceiveError {
        let peer = Arc::clone(&self.shared.peer);
        if self.shared.is_shut_down() {
            return ReceiveError::ShutDown { peer };
        }
        match source.kind() {
            // ETIMEDOUT is the kernel giving up on a silent peer (keep-alive, TCP_USER_TIMEOUT): see tcp(7).
            io::ErrorKind::ConnectionReset | io::ErrorKind::TimedOut => ReceiveError::Cut { peer },
            _ => ReceiveError::Io { peer, source },
        }
    }

    fn timed_out(&self) -> ReceiveError {
        ReceiveError::TimedOut { peer: Arc::clone(&self.shared.peer) }
    }

    fn io_error(&self, source: io::Error) -> ReceiveError {
        ReceiveError::Io { peer: Arc::clone(&self.shared.peer), source }
    }
}

impl ByteSource for Reader {
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let count = self.decrypt(into)?;
            if count > 0 {
                return Ok(count);
            }
            self.fill()?;
        }
    }
}

/// A recording: what was sent before, in memory.
impl ByteSource for &[u8] {
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.is_empty() {
            return Err(ReceiveError::Cut { peer: Arc::from("a recording") });
        }
        let count = self.len().min(into.len());
        let (taken, rest) = self.split_at(count);
        into[..count].copy_from_slice(taken);
        *self = rest;
        Ok(count)
    }
}

/// A recording being made.
impl ByteSink for Vec<u8> {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        for part in parts {
            self.extend_from_slice(part);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
