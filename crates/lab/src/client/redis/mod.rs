//! A client of Redis that believes nothing: many paced connections on one thread, every reply checked, every
//! acknowledged write looked for again at the end.

mod fill;
pub(crate) mod resp;
mod session;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

pub use fill::Fill;
use resp::Reply;
use session::{Session, Verdict};

use crate::client::stats::{Report, Stats};
use crate::netns::NetNs;

/// Before the next attempt to connect after one failed or a connection was dropped.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
/// How often the thread looks whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(50);
const READ_AT_ONCE: usize = 64 << 10;

/// What to do to a server.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    /// All are served by one thread that looks at each whenever it wakes: hundreds, not ten thousands.
    pub connections: usize,
    /// From the reply to one request to the next one on the same connection. This is what keeps the client from
    /// burning the processor that the server is to have.
    pub pace: Duration,
    /// Every so many turns of a connection is a batch of pipelined requests; 0 for never.
    pub batch_every: u64,
    pub batch_length: usize,
    /// Every so many turns writes and reads a large value; 0 for never.
    pub large_every: u64,
    pub large_bytes: usize,
    /// A connection that is not answered for so long counts as dropped.
    pub reply_limit: Duration,
}

impl Load {
    pub fn new(target: SocketAddr) -> Load {
        Load {
            target,
            connections: 50,
            pace: Duration::from_millis(10),
            batch_every: 16,
            batch_length: 16,
            large_every: 250,
            large_bytes: 64 << 10,
            reply_limit: Duration::from_secs(30),
        }
    }
}

/// A running client.
#[derive(Debug)]
pub struct RedisClient {
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl RedisClient {
    /// Starts all connections, from a network namespace or from where the process is.
    pub fn start(from: Option<&NetNs>, load: Load) -> io::Result<RedisClient> {
        let stats = Arc::new(Stats::new(load.connections));
        let stop = Arc::new(AtomicBool::new(false));
        let from = from.cloned();
        let (worker_stats, worker_stop) = (Arc::clone(&stats), Arc::clone(&stop));
        let worker = thread::Builder::new().name("redis-client".to_owned()).spawn(move || {
            if let Some(from) = from {
                from.enter()?;
            }
            Worker::new(load, worker_stats)?.run(&worker_stop)
        })?;
        Ok(RedisClient { stats, stop, worker: Some(worker) })
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Lets the open requests be answered, reads back everything over a fresh connection, and sums up.
    pub fn finish(mut self) -> io::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => {}
        }
        Ok(self.stats.report())
    }
}

impl Drop for RedisClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    load: Load,
    stats: Arc<Stats>,
    epoll: Epoll,
    lines: Vec<Line>,
}

/// One connection over all its lives.
struct Line {
    id: usize,
    session: Session,
    state: State,
    output: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// When what is awaited was asked.
    asked: Instant,
    /// Writes acknowledged by replies to what is awaited.
    acked: u64,
    /// Its drop has been counted, and it is not open again yet.
    missing: bool,
    watched: EpollFlags,
}

/// What is waited for while connecting.
const CONNECTED: EpollFlags = EpollFlags::EPOLLOUT;

enum State {
    /// No connection until then.
    Down {
        retry: Instant,
    },
    Connecting {
        stream: TcpStream,
        since: Instant,
    },
    /// Open; the next request is due then, if none is awaited.
    Open {
        stream: TcpStream,
        due: Instant,
    },
}

impl Worker {
    fn new(load: Load, stats: Arc<Stats>) -> io::Result<Worker> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let now = Instant::now();
        let line = |id| Line {
            id,
            session: Session::new(id, &load),
            state: State::Down { retry: now },
            output: Vec::new(),
            sent: 0,
            input: Vec::new(),
            asked: now,
            acked: 0,
            missing: false,
            watched: CONNECTED,
        };
        let lines = (0..load.connections).map(line).collect();
        Ok(Worker { load, stats, epoll, lines })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        let mut drain_until = None;
        loop {
            let now = Instant::now();
            if drain_until.is_none() && stop.load(Ordering::Relaxed) {
                drain_until = Some(now + self.load.reply_limit);
            }
            let draining = drain_until.is_some();
            if drain_until.is_some_and(|limit| now >= limit)
                || draining && !self.lines.iter().any(Line::awaits_reply)
            {
                break;
            }
            let mut next = now + LOOK_UP;
            for line in &mut self.lines {
                let wake = line.act(now, draining, &self.load, &self.epoll, &self.stats);
                next = next.min(wake);
            }
            // Rounded up to whole milliseconds, so that requests due closely together share a wake-up.
            let wait = next.saturating_duration_since(Instant::now()).as_millis() as u16 + 1;
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                self.lines[event.data() as usize].ready(&self.epoll, &self.load, &self.stats);
            }
        }
        for line in &mut self.lines {
            if line.awaits_reply() {
                line.drop_connection("was not answered any more", &self.stats);
            }
            line.state = State::Down { retry: Instant::now() };
        }
        self.read_back();
        Ok(())
    }

    /// Reads everything that was ever written, over one fresh connection. What cannot be read back counts as lost.
    fn read_back(&mut self) {
        let mut failed = None;
        let mut reader = Reader::connect(self.load.target, self.load.reply_limit)
            .map_err(|error| format!("no connection for reading back: {error}"));
        for line in &mut self.lines {
            let outcome = match &mut reader {
                Ok(reader) => reader.read_back(&mut line.session, &self.stats),
                Err(error) => Err(error.clone()),
            };
            if let Err(error) = outcome {
                self.stats.lost(line.session.unverified(), format!("connection {}: {error}", line.id));
                failed = Some(error);
            }
            if let Some(error) = &failed {
                reader = Err(error.clone());
            }
        }
    }
}

impl Line {
    fn awaits_reply(&self) -> bool {
        matches!(self.state, State::Open { .. }) && self.session.awaits()
    }

    /// Does what is due; the instant at which something will be next.
    fn act(&mut self, now: Instant, draining: bool, load: &Load, epoll: &Epoll, stats: &Stats) -> Instant {
        match &self.state {
            State::Down { .. } if draining => now + LOOK_UP,
            State::Down { retry } if now < *retry => *retry,
            State::Down { .. } => {
                self.state = match begin_connect(load.target, self.id, epoll) {
                    Ok(stream) => {
                        self.watched = CONNECTED;
                        State::Connecting { stream, since: now }
                    }
                    Err(error) => return self.drop_connection(&format!("cannot be opened: {error}"), stats),
                };
                now + load.reply_limit
            }
            State::Connecting { since, .. } if now < *since + load.reply_limit => *since + load.reply_limit,
            State::Connecting { .. } => self.drop_connection("was not accepted", stats),
            State::Open { .. } if self.session.awaits() => {
                if now < self.asked + load.reply_limit {
                    return self.asked + load.reply_limit;
                }
                self.drop_connection(&format!("was not answered for {:?}", load.reply_limit), stats)
            }
            State::Open { .. } if draining => now + LOOK_UP,
            State::Open { due, .. } if now < *due => *due,
            State::Open { .. } => {
                self.asked = Instant::now();
                self.acked = 0;
                self.session.ask(&mut self.output);
                self.send(epoll, stats);
                now + load.reply_limit
            }
        }
    }

    /// Something can be read, written or has ended.
    fn ready(&mut self, epoll: &Epoll, load: &Load, stats: &Stats) {
        match std::mem::replace(&mut self.state, State::Down { retry: Instant::now() }) {
            down @ State::Down { .. } => self.state = down,
            State::Connecting { stream, .. } => match stream.take_error() {
                Ok(None) => {
                    // Spread over one pace, so that they do not march in step.
                    self.missing = false;
                    let share = self.id as f64 / load.connections.max(1) as f64;
                    self.state = State::Open { stream, due: Instant::now() + load.pace.mul_f64(share) };
                    self.send(epoll, stats);
                }
                Ok(Some(error)) | Err(error) => {
                    self.drop_connection(&format!("was refused: {error}"), stats);
                }
            },
            State::Open { stream, due } => {
                self.state = State::Open { stream, due };
                self.send(epoll, stats);
                self.receive(load, stats);
            }
        }
    }

    fn send(&mut self, epoll: &Epoll, stats: &Stats) {
        let State::Open { stream, .. } = &mut self.state else { return };
        while self.sent < self.output.len() {
            match stream.write(&self.output[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.drop_connection(&format!("broke: {error}"), stats);
                    return;
                }
            }
        }
        let mut interest = EpollFlags::EPOLLIN;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        } else {
            interest |= EpollFlags::EPOLLOUT;
        }
        if interest != self.watched {
            self.watched = interest;
            let set = epoll.modify(stream.as_fd(), &mut EpollEvent::new(interest, self.id as u64));
            if let Err(error) = set {
                self.drop_connection(&format!("cannot be watched: {error}"), stats);
            }
        }
    }

    fn receive(&mut self, load: &Load, stats: &Stats) {
        let State::Open { stream, due } = &mut self.state else { return };
        let begin = self.input.len();
        self.input.resize(begin + READ_AT_ONCE, 0);
        let read = stream.read(&mut self.input[begin..]);
        self.input.truncate(begin + *read.as_ref().unwrap_or(&0));
        let ended = match read {
            Ok(0) => Some("was closed by the server".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => Some(format!("broke: {error}")),
            Ok(_) => None,
        };
        if let Some(ended) = ended {
            self.drop_connection(&ended, stats);
            return;
        }
        let awaited = self.session.awaits();
        match judge_all(&mut self.session, &mut self.input, stats) {
            Ok(acked) => self.acked += acked,
            Err(malformed) => {
                self.drop_connection(&malformed, stats);
                return;
            }
        }
        if awaited && !self.session.awaits() {
            stats.answered(self.id, self.asked, std::mem::take(&mut self.acked));
            *due = Instant::now() + load.pace;
        }
    }

    /// Counts the end of a connection that should not have ended; attempts to have it back that fail count no more.
    /// The instant of the next one.
    fn drop_connection(&mut self, how: &str, stats: &Stats) -> Instant {
        if !std::mem::replace(&mut self.missing, true) {
            stats.dropped(format!("connection {} {how}", self.id));
        }
        stats.acked(std::mem::take(&mut self.acked));
        self.session.dropped();
        self.output.clear();
        self.input.clear();
        self.sent = 0;
        let retry = Instant::now() + RECONNECT_AFTER;
        // Closing the stream takes it out of the epoll set.
        self.state = State::Down { retry };
        retry
    }
}

/// Judges every whole reply in `input`; returns the number of writes acknowledged.
fn judge_all(session: &mut Session, input: &mut Vec<u8>, stats: &Stats) -> Result<u64, String> {
    let (mut at, mut acked_writes) = (0, 0);
    loop {
        match resp::parse(&input[at..]) {
            Ok(None) => break,
            Ok(Some((reply, used))) => {
                at += used;
                match session.reply(reply) {
                    Verdict::Right { acked } => acked_writes += acked,
                    Verdict::Lost { writes, finding } => stats.lost(writes, finding),
                    Verdict::Wrong { finding } => stats.wrong(finding),
                }
            }
            Err(malformed) => {
                stats.wrong(format!("not Redis' protocol: {malformed}"));
                return Err(format!("spoke another protocol: {malformed}"));
            }
        }
    }
    input.drain(..at);
    Ok(acked_writes)
}

fn begin_connect(to: SocketAddr, id: usize, epoll: &Epoll) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket::socket(family, SockType::Stream, flags, None)?);
    match socket::connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) | Ok(()) => {}
        Err(errno) => return Err(errno.into()),
    }
    stream.set_nodelay(true)?;
    epoll.add(stream.as_fd(), EpollEvent::new(CONNECTED, id as u64))?;
    Ok(stream)
}

/// A blocking connection that asks in batches and takes the replies in turn.
struct Reader {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Reader {
    /// From where the calling thread is.
    fn connect(to: SocketAddr, limit: Duration) -> io::Result<Reader> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Reader { stream, input: Vec::new() })
    }

    fn read_back(&mut self, session: &mut Session, stats: &Stats) -> Result<(), String> {
        let mut output = Vec::new();
        session.read_back(&mut output);
        self.stream.write_all(&output).map_err(|error| format!("cannot ask: {error}"))?;
        while session.awaits() {
            let acked = judge_all(session, &mut self.input, stats)?;
            debug_assert_eq!(acked, 0, "reading acknowledges no write");
            if session.awaits() {
                self.more().map_err(|error| format!("cannot be read back: {error}"))?;
            }
        }
        Ok(())
    }

    /// The next reply.
    fn reply(&mut self) -> io::Result<Reply> {
        loop {
            match resp::parse(&self.input) {
                Ok(Some((reply, used))) => {
                    self.input.drain(..used);
                    return Ok(reply);
                }
                Ok(None) => self.more()?,
                Err(malformed) => return Err(io::Error::new(io::ErrorKind::InvalidData, malformed)),
            }
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let begin = self.input.len();
        self.input.resize(begin + READ_AT_ONCE, 0);
        let read = self.stream.read(&mut self.input[begin..]);
        self.input.truncate(begin + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
