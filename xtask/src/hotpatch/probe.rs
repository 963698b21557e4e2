//! Seeing what a fix does: requests that a program answers in one way without it and in another with it, or that it does not survive
//! without it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::corpus::Running;
use super::load::Sql;
use super::packages::Place;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Who has not answered for so long does not answer.
const STALLED: Duration = Duration::from_secs(2);
/// Who has said nothing for so long says nothing.
const QUIET: Duration = Duration::from_millis(400);
/// How long a program may take to die.
const DEATH: Duration = Duration::from_secs(15);

/// A fix whose effect can be seen.
pub struct Probe {
    pub patch: &'static str,
    pub without: Without,
    pub steps: &'static [Step],
}

/// What a program without the fix makes of the steps. With it, it goes through all of them, under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// It answers otherwise: the same process that is patched then, and again after the revert.
    Differs,
    /// It answers otherwise and is damaged: a process of its own is asked.
    Damaged,
    /// It, or one of its processes, dies: a process of its own.
    Dies,
    /// It does not answer for seconds: a process of its own.
    Stalls,
    /// Each time it keeps so many bytes more, and with the fix not half of them: a process of its own.
    Keeps(u64),
}

/// A step of a conversation. What is sent and answered goes over the connection that was made or chosen last.
pub enum Step {
    /// A connection to the program: to its own port (sqlite3: its pipe) or to another that it listens on.
    Connect(Port),
    /// A connection that the program makes to its peer.
    Accept,
    /// The connections are numbered from 0 as they are made.
    Over(usize),
    /// A program that speaks to it: what it writes is what comes back.
    Run(fn(&Place) -> Command),
    /// The connection is closed.
    Close,
    Send(&'static [u8]),
    Make(fn(&Place) -> Vec<u8>),
    /// A question with these bytes in it, which the program sends to its peer by datagram; others are passed over.
    Asked(&'static [u8]),
    /// The peer's reply to it: the id of the question (two bytes) comes before it.
    Reply(&'static [u8]),
    /// A file of the program's folder.
    Write(&'static str, fn(&Place) -> Vec<u8>),
    Wait(Duration),
    /// The answer with and without the fix.
    Answer(Answer),
    Differs {
        without: Answer,
        with: Answer,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Own,
    /// The same number, by datagrams.
    Datagrams,
    Other,
    Third,
    Fourth,
}

/// What comes back.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Begins(&'static [u8]),
    Contains(&'static [u8]),
    /// All that comes in a while has no such bytes in it, and is something.
    Lacks(&'static [u8]),
    /// The connection is closed, whatever came before.
    Closed,
    Nothing,
}

enum Wire<'a> {
    Stream(TcpStream),
    Datagrams(UdpSocket),
    /// The load waits for the end of the conversation.
    Pipe(MutexGuard<'a, Sql>),
    Closed,
}

impl Wire<'_> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(bytes),
            Self::Datagrams(socket) => socket.send(bytes).map(drop),
            Self::Pipe(sql) => sql.write(bytes),
            Self::Closed => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// What has come by then: none is the end of the connection.
    fn receive(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 16];
        let limit = Some(limit.max(Duration::from_millis(1)));
        let length = match self {
            Self::Stream(stream) => {
                stream.set_read_timeout(limit)?;
                stream.read(&mut bytes)?
            }
            Self::Datagrams(socket) => {
                socket.set_read_timeout(limit)?;
                socket.recv(&mut bytes)?
            }
            Self::Pipe(sql) => return sql.line(),
            Self::Closed => 0,
        };
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// Why an answer is not as it must be.
enum Miss {
    /// It did not come in time.
    Late(String),
    Wrong(String),
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The other end of what a program connects to: it listens from before the program starts.
pub struct Peer {
    stream: TcpListener,
    datagrams: UdpSocket,
}

impl Peer {
    /// On one port for both.
    pub fn listen() -> io::Result<Self> {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let stream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            if let Ok(datagrams) = UdpSocket::bind(stream.local_addr()?) {
                stream.set_nonblocking(true)?;
                return Ok(Self { stream, datagrams });
            }
        }
        Err(ErrorKind::AddrInUse.into())
    }

    pub fn port(&self) -> io::Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    fn accept(&self, limit: Duration) -> io::Result<TcpStream> {
        let begun = Instant::now();
        loop {
            match self.stream.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < limit => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A conversation with one program.
struct Talk<'a> {
    place: &'a Place,
    peer: &'a Peer,
    pipe: Option<&'a Mutex<Sql>>,
    limit: Duration,
    wires: Vec<(Wire<'a>, Vec<u8>)>,
    current: usize,
    asked: Option<([u8; 2], SocketAddr)>,
}

impl<'a> Talk<'a> {
    fn add(&mut self, wire: Wire<'a>) {
        self.current = self.wires.len();
        self.wires.push((wire, Vec::new()));
    }

    fn connect(&mut self, port: Port) -> Result<Wire<'a>> {
        let number = match port {
            Port::Own | Port::Datagrams => self.place.port,
            Port::Other => self.place.others[0],
            Port::Third => self.place.others[1],
            Port::Fourth => self.place.others[2],
        };
        if port == Port::Datagrams {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect((Ipv4Addr::LOCALHOST, number))?;
            return Ok(Wire::Datagrams(socket));
        }
        if let Some(pipe) = self.pipe {
            // A client that came to an unexpected end has said so already.
            return Ok(Wire::Pipe(pipe.lock().unwrap_or_else(PoisonError::into_inner)));
        }
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, number)).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Wire::Stream(stream))
    }

    fn wire(&mut self) -> Result<&mut (Wire<'a>, Vec<u8>)> {
        self.wires.get_mut(self.current).context("no connection to speak over")
    }

    fn step(&mut self, step: &Step, is_fixed: bool) -> Result<(), Miss> {
        let other = |error: anyhow::Error| Miss::Wrong(format!("{error:#}"));
        match step {
            Step::Answer(answer) => return self.answer(*answer),
            Step::Differs { without, with } => return self.answer(if is_fixed { *with } else { *without }),
            Step::Asked(part) => return self.asked(part),
            _ => {}
        }
        let mut quiet = || -> Result<()> {
            match step {
                Step::Connect(port) => {
                    let wire = self.connect(*port)?;
                    self.add(wire);
                }
                Step::Accept => {
                    let stream =
                        self.peer.accept(LIMIT).context("the program does not connect to its peer")?;
                    self.add(Wire::Stream(stream));
                }
                Step::Run(make) => {
                    let output = make(self.place).stdin(Stdio::null()).output()?;
                    self.add(Wire::Closed);
                    self.wire()?.1 = [output.stdout, output.stderr].concat();
                }
                Step::Over(number) => self.current = *number,
                Step::Close => self.wire()?.0 = Wire::Closed,
                // Who closes while it is spoken to says so by its answer.
                Step::Send(bytes) => drop(self.wire()?.0.send(bytes)),
                Step::Make(make) => {
                    let bytes = make(self.place);
                    drop(self.wire()?.0.send(&bytes));
                }
                Step::Reply(bytes) => {
                    let (id, from) = self.asked.context("nothing was asked")?;
                    self.peer.datagrams.send_to(&[&id[..], bytes].concat(), from)?;
                }
                Step::Write(name, make) => std::fs::write(self.place.folder.join(name), make(self.place))?,
                Step::Wait(time) => thread::sleep(*time),
                Step::Answer(_) | Step::Differs { .. } | Step::Asked(_) => {}
            }
            Ok(())
        };
        quiet().map_err(other)
    }

    fn asked(&mut self, part: &[u8]) -> Result<(), Miss> {
        let deadline = Instant::now() + self.limit;
        let datagrams = &self.peer.datagrams;
        let mut question = [0; 4096];
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(Miss::Late("the peer is not asked".to_owned()));
            }
            let came =
                datagrams.set_read_timeout(Some(rest)).and_then(|()| datagrams.recv_from(&mut question));
            match came {
                Ok((length, from)) if length > 2 && contains(&question[..length], part) => {
                    self.asked = Some(([question[0], question[1]], from));
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if timed_out(&error) => {}
                Err(error) => return Err(Miss::Wrong(error.to_string())),
            }
        }
    }

    fn answer(&mut self, expected: Answer) -> Result<(), Miss> {
        let limit = match expected {
            Answer::Nothing | Answer::Lacks(_) => QUIET,
            _ => self.limit,
        };
        let deadline = Instant::now() + limit;
        let (wire, got) = self.wire().map_err(|error| Miss::Wrong(format!("{error:#}")))?;
        loop {
            match decide(expected, got) {
                Some(Ok(used)) => {
                    got.drain(..used);
                    return Ok(());
                }
                Some(Err(why)) => return Err(Miss::Wrong(why)),
                None => {}
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            let shown = String::from_utf8_lossy(&got[..got.len().min(200)]).into_owned();
            let came = if rest.is_zero() { Err(ErrorKind::TimedOut.into()) } else { wire.receive(rest) };
            match (expected, came) {
                (_, Ok(bytes)) if !bytes.is_empty() => got.extend(bytes),
                (Answer::Nothing, Err(error)) if timed_out(&error) && got.is_empty() => return Ok(()),
                (Answer::Lacks(_), Err(error)) if timed_out(&error) && !got.is_empty() => return Ok(()),
                (Answer::Lacks(_), Ok(_)) if !got.is_empty() => return Ok(()),
                (_, Err(error)) if timed_out(&error) => {
                    return Err(Miss::Late(format!("after {shown:?} nothing more comes")));
                }
                (Answer::Closed, _) => return Ok(()),
                (_, came) => {
                    let end = came.err().map_or("closed".to_owned(), |error| error.to_string());
                    return Err(Miss::Wrong(format!("after {shown:?} the connection is at its end: {end}")));
                }
            }
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

/// Whether what has come so far is what was expected, and how much of it that takes; nothing if that is open yet.
fn decide(expected: Answer, got: &[u8]) -> Option<Result<usize, String>> {
    let find = |part: &[u8]| got.windows(part.len()).position(|window| window == part);
    let shown = || format!("it answers {:?}", String::from_utf8_lossy(&got[..got.len().min(200)]));
    match expected {
        Answer::Begins(begin) => {
            let length = begin.len().min(got.len());
            if got[..length] != begin[..length] {
                return Some(Err(format!("{}, not {:?}", shown(), String::from_utf8_lossy(begin))));
            }
            (length == begin.len()).then_some(Ok(length))
        }
        Answer::Contains(part) => find(part).map(|at| Ok(at + part.len())),
        Answer::Lacks(part) => find(part).map(|_| Err(shown())),
        Answer::Nothing => (!got.is_empty()).then(|| Err(shown())),
        Answer::Closed => None,
    }
}

/// Goes through a conversation; which step was not as it must be, if one was not.
fn talk(steps: &[Step], running: &Running, is_fixed: bool, limit: Duration) -> Result<(), (usize, Miss)> {
    let mut talk = Talk {
        place: &running.place,
        peer: &running.peer,
        pipe: running.pipe.as_deref(),
        limit,
        wires: Vec::new(),
        current: 0,
        asked: None,
    };
    for (number, step) in steps.iter().enumerate() {
        talk.step(step, is_fixed).map_err(|miss| (number, miss))?;
    }
    Ok(())
}

/// Tells a program what it has to know before it is of use.
pub fn prepare(steps: &[Step], running: &Running) -> Result<()> {
    told(talk(steps, running, false, LIMIT))
}

fn told(result: Result<(), (usize, Miss)>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err((step, Miss::Late(why) | Miss::Wrong(why))) => bail!("step {step}: {why}"),
    }
}

impl Probe {
    /// Whether the program without the fix is one of its own.
    pub fn is_apart(&self) -> bool {
        self.without != Without::Differs
    }

    /// A program without the fix must be as is said of it.
    pub fn without(&self, running: &mut Running) -> Result<()> {
        match self.without {
            Without::Differs | Without::Damaged => told(talk(self.steps, running, false, LIMIT)),
            Without::Dies => {
                let pids = running.pids()?;
                // How far it gets is of no interest.
                let _ = talk(self.steps, running, false, STALLED);
                let begun = Instant::now();
                while !running.has_ended()? && running.pids()? == pids {
                    ensure!(begun.elapsed() < DEATH, "it does not die");
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }
            Without::Stalls => match talk(self.steps, running, false, STALLED) {
                Err((_, Miss::Late(_))) => {
                    ensure!(!running.has_ended()?, "it does not stall, it dies");
                    Ok(())
                }
                Ok(()) => bail!("it does not stall"),
                result => told(result),
            },
            Without::Keeps(bytes) => {
                let kept = self.keeps(running, false)?;
                ensure!(kept >= bytes, "it keeps {kept} bytes only");
                Ok(())
            }
        }
    }

    /// A program with the fix must go through all of it.
    pub fn with(&self, running: &Running) -> Result<()> {
        if let Without::Keeps(bytes) = self.without {
            let kept = self.keeps(running, true)?;
            ensure!(kept < bytes / 2, "it keeps {kept} bytes");
            return Ok(());
        }
        // What may take longer with the fix than what counts as a stall without would show nothing.
        let limit = if self.without == Without::Stalls { STALLED } else { LIMIT };
        told(talk(self.steps, running, true, limit))
    }

    /// How much more memory a program has after each of some conversations, at the least: what an allocator does not give back it uses
    /// for the next.
    fn keeps(&self, running: &Running, is_fixed: bool) -> Result<u64> {
        const ROUNDS: usize = 3;
        let mut least = u64::MAX;
        let mut before = None;
        for _ in 0..=ROUNDS {
            told(talk(self.steps, running, is_fixed, LIMIT))?;
            thread::sleep(QUIET);
            let now = running.memory()?;
            if let Some(before) = before.replace(now) {
                least = least.min(now.saturating_sub(before));
            }
        }
        Ok(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_decided_as_soon_as_it_can_be() {
        let is = |expected, got: &[u8]| decide(expected, got).map(|result| result.ok());
        assert_eq!(is(Answer::Begins(b"ab"), b"a"), None);
        assert_eq!(is(Answer::Begins(b"ab"), b"abc"), Some(Some(2)));
        assert_eq!(is(Answer::Begins(b"ab"), b"x"), Some(None));
        assert_eq!(is(Answer::Contains(b"bc"), b"abcd"), Some(Some(3)));
        assert_eq!(is(Answer::Contains(b"bc"), b"ab"), None);
        assert_eq!(is(Answer::Lacks(b"bc"), b"abc"), Some(None));
        assert_eq!(is(Answer::Nothing, b""), None);
        assert_eq!(is(Answer::Nothing, b"a"), Some(None));
        assert_eq!(is(Answer::Closed, b"a"), None);
    }
}
