//! Making connections and streams with known content.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use outlive_process::object::tcp::{Capturer, Connection, PeerAck, State, TcpSocket};
use outlive_process::sys::tcp_repair as sys;

use super::world::{Host, Side, World, address, until};

/// A stream whose every byte is known by its place. Its period is prime, so that a shift shows.
pub fn pattern(seed: u64, from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|place| ((place as u64 % 65_521).wrapping_mul(2_654_435_761 + seed) >> 13) as u8)
        .collect()
}

/// One direction of a conversation: what was written, what was read.
pub struct Flow {
    seed: u64,
    pub written: usize,
    pub read: usize,
}

impl Flow {
    pub fn new(seed: u64) -> Self {
        Self { seed, written: 0, read: 0 }
    }

    /// Writes up to `length` bytes, as many as are taken without waiting.
    pub fn write(&mut self, mut stream: &TcpStream, length: usize) -> usize {
        stream.set_nonblocking(true).unwrap();
        let bytes = pattern(self.seed, self.written, length);
        let mut done = 0;
        while done < length {
            match stream.write(&bytes[done..]) {
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("write: {error}"),
            }
        }
        self.written += done;
        done
    }

    /// Reads what is there; false at the end of the stream.
    pub fn read(&mut self, mut stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    assert_eq!(buffer[..count], pattern(self.seed, self.read, count), "at {}", self.read);
                    self.read += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => panic!("read at {}: {error}", self.read),
            }
        }
    }

    /// Reads until all that was written has come.
    pub fn read_all(&mut self, stream: &TcpStream) {
        until("the whole stream", || {
            self.read(stream);
            self.read == self.written
        });
    }

    pub fn read_to_end(&mut self, stream: &TcpStream) {
        until("the end of the stream", || !self.read(stream));
        assert_eq!(self.read, self.written);
    }
}

/// A connection between the hosts, and both its directions.
pub struct Pair {
    pub a: TcpStream,
    pub b: TcpStream,
    pub to_b: Flow,
    pub to_a: Flow,
}

/// B connects to A.
pub fn connected(world: &World, v6: bool) -> Pair {
    let listener = world.a.namespace.enter(|| TcpListener::bind(address(v6, Side::A, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
    let (a, _) = listener.accept().unwrap();
    Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) }
}

impl Pair {
    /// Some bytes there and back, read.
    pub fn exchange(&mut self) {
        self.to_b.write(&self.a, 3000);
        self.to_b.read_all(&self.b);
        self.to_a.write(&self.b, 2000);
        self.to_a.read_all(&self.a);
    }

    /// Both directions work, then end.
    pub fn finish(mut self) {
        self.exchange();
        self.a.shutdown(Shutdown::Write).unwrap();
        self.to_b.read_to_end(&self.b);
        self.b.shutdown(Shutdown::Write).unwrap();
        self.to_a.read_to_end(&self.a);
    }
}

pub fn state(fd: impl AsFd) -> u8 {
    sys::info(fd).unwrap().state
}

pub fn retransmissions(fd: impl AsFd) -> u32 {
    sys::info(fd).unwrap().total_retrans
}

pub fn capture(host: &Host, fd: impl AsFd + Sync) -> TcpSocket {
    host.namespace.enter(|| Capturer::new().capture(fd.as_fd(), None).unwrap().socket)
}

pub fn connection(socket: &TcpSocket) -> &Connection {
    match &socket.state {
        State::Connected(connection) => connection,
        other => panic!("not connected: {other:?}"),
    }
}

/// What the socket `fd` would acknowledge now.
pub fn ack_of(host: &Host, fd: impl AsFd + Sync) -> PeerAck {
    PeerAck::of_other_end(connection(&capture(host, fd)))
}

pub fn local(stream: &TcpStream) -> SocketAddr {
    stream.local_addr().unwrap()
}
