//! Counts: every connection has a number that the service keeps for it and raises by one on request. That each answer is
//! one more than the last shows that no acknowledged change was lost, none was made twice, and that the connection
//! and what it belongs to are still the same.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::stats::Stats;
use super::workers::Workers;
use crate::netns::NetNs;

mod protocols;

pub use protocols::{Dns, Mariadb, Mqtt, Redis, WebSocket};

/// A reply that takes longer counts as a dropped connection.
const REPLY_LIMIT: Duration = Duration::from_secs(60);
/// Longer lines and bodies are no answers.
const ANSWER_LIMIT: u64 = 64 << 10;

/// One connection's way to ask.
pub trait Wire: Send {
    /// Raises the number, and gives what it is then.
    fn increment(&mut self) -> io::Result<u64>;
}

/// Opens the connections, and counts on each in a thread of its own. `pace` is from an answer to the next request.
pub fn start(
    connections: usize,
    pace: Duration,
    open: impl Fn(usize) -> io::Result<Box<dyn Wire>>,
) -> io::Result<Workers> {
    Workers::start("counter", connections, |id| {
        let mut wire = open(id)?;
        Ok(move |stats: &Stats, stop: &AtomicBool| count(id, wire.as_mut(), pace, stats, stop))
    })
}

fn count(id: usize, wire: &mut dyn Wire, pace: Duration, stats: &Stats, stop: &AtomicBool) {
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let value = match wire.increment() {
            Ok(value) => value,
            Err(error) => {
                let after = last.unwrap_or(0);
                return stats.dropped(format!(
                    "connection {id} was dropped after it had counted to {after}: {error}"
                ));
            }
        };
        // Where it begins is up to the service.
        let expected = last.map_or(value, |last: u64| last + 1);
        if value < expected {
            let what = format!("connection {id} counted to {value} after {}", expected - 1);
            stats.lost(expected - value, what);
        } else if value > expected {
            stats.wrong(format!("connection {id} counted to {value} after {}", expected - 1));
        }
        stats.answered(id, asked, 1);
        last = Some(value);
        thread::sleep(pace);
    }
}

fn dial(from: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = super::connect(Some(from), to).map_err(io::Error::other)?;
    stream.set_read_timeout(Some(REPLY_LIMIT))?;
    stream.set_write_timeout(Some(REPLY_LIMIT))?;
    Ok(stream)
}

/// A connection whose calls go on after an interruption: with a limit of time they end with EINTR also where no handler ran, such as
/// when the machine was suspended (`signal(7)`), and that is no word of the service's.
struct Patient(TcpStream);

impl Patient {
    fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::again(|| self.0.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Self::again(|| self.0.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn nonsense(what: &str, answer: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: `{}`", answer.trim_end()))
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut answer = String::new();
    if stream.take(ANSWER_LIMIT).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// HTTP/1.1 over one kept connection: `POST /count/NAME` answers with the number.
pub struct Http {
    stream: BufReader<TcpStream>,
    name: String,
}

impl Http {
    pub fn open(from: &NetNs, to: SocketAddr, name: &str) -> io::Result<Http> {
        Ok(Http { stream: BufReader::new(dial(from, to)?), name: name.to_owned() })
    }
}

impl Wire for Http {
    fn increment(&mut self) -> io::Result<u64> {
        let request =
            format!("POST /count/{} HTTP/1.1\r\nHost: service\r\nContent-Length: 0\r\n\r\n", self.name);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = line(&mut self.stream)?;
        if status.split(' ').nth(1) != Some("200") {
            return Err(nonsense("not an answer with status 200", &status));
        }
        let mut length = None;
        loop {
            let header = line(&mut self.stream)?;
            let Some((name, value)) = header.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let length = length.filter(|length| *length <= ANSWER_LIMIT);
        let length = length.ok_or_else(|| nonsense("an answer without a length that can be", &status))?;
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body);
        body.trim().parse().map_err(|_| nonsense("not a number", &body))
    }
}

/// What memcached speaks.
pub struct Memcached {
    stream: BufReader<TcpStream>,
    name: String,
}

impl Memcached {
    pub fn open(from: &NetNs, to: SocketAddr, name: &str) -> io::Result<Memcached> {
        let mut wire = Memcached { stream: BufReader::new(dial(from, to)?), name: name.to_owned() };
        wire.stream.get_mut().write_all(format!("set {name} 0 0 1\r\n0\r\n").as_bytes())?;
        let answer = line(&mut wire.stream)?;
        if answer.trim_end() != "STORED" { Err(nonsense("not stored", &answer)) } else { Ok(wire) }
    }
}

impl Wire for Memcached {
    fn increment(&mut self) -> io::Result<u64> {
        let request = format!("incr {} 1\r\n", self.name);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let answer = line(&mut self.stream)?;
        answer.trim().parse().map_err(|_| nonsense("not a number", &answer))
    }
}

/// A shell that is typed at: its number is a variable of its own. What comes back is searched for the answer, since a
/// terminal repeats what is typed, and prompts come between.
pub struct Shell<R, W> {
    output: BufReader<R>,
    input: W,
}

impl Shell<TcpStream, TcpStream> {
    pub fn open(from: &NetNs, to: SocketAddr) -> io::Result<Self> {
        let stream = dial(from, to)?;
        Shell::begin(stream.try_clone()?, stream)
    }
}

impl<R: Read, W: Write> Shell<R, W> {
    fn begin(output: R, mut input: W) -> io::Result<Self> {
        // A job in the background, which is asked for at every count.
        input.write_all(b"n=0; sleep 100000 &\n")?;
        Ok(Shell { output: BufReader::new(output), input })
    }
}

impl<R: Read + Send, W: Write + Send> Wire for Shell<R, W> {
    fn increment(&mut self) -> io::Result<u64> {
        // What is typed has no digit after `is-`, so that its echo is no answer.
        self.input.write_all(b"n=$((n+1)); echo is-$n-$(jobs -r | wc -l)-\n")?;
        self.input.flush()?;
        loop {
            let answer = line(&mut self.output)?;
            let Some((_, after)) = answer.rsplit_once("is-") else { continue };
            let mut parts = after.split('-');
            let Some(Ok(number)) = parts.next().map(str::parse) else { continue };
            match parts.next() {
                Some("1") => return Ok(number),
                _ => return Err(nonsense("its job in the background is gone", &answer)),
            }
        }
    }
}

/// A shell at the other end of a program such as `ssh`, which ends with this.
pub struct Remote {
    shell: Shell<ChildStdout, ChildStdin>,
    program: Child,
}

impl Remote {
    /// Takes a program whose standard input and output are pipes.
    pub fn new(mut program: Child) -> io::Result<Remote> {
        let (output, input) = (program.stdout.take(), program.stdin.take());
        let (Some(output), Some(input)) = (output, input) else {
            return Err(io::Error::other("the program has no pipes"));
        };
        Ok(Remote { shell: Shell::begin(output, input)?, program })
    }
}

impl Wire for Remote {
    fn increment(&mut self) -> io::Result<u64> {
        self.shell.increment()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// `psql`, which is given one statement after the other over one connection.
pub struct Sql {
    output: BufReader<ChildStdout>,
    input: ChildStdin,
    program: Child,
    name: String,
}

impl Sql {
    /// Takes a `psql -A -t` whose standard input and output are pipes.
    pub fn new(mut program: Child, name: &str) -> io::Result<Sql> {
        let (output, input) = (program.stdout.take(), program.stdin.take());
        let (Some(output), Some(mut input)) = (output, input) else {
            return Err(io::Error::other("psql has no pipes"));
        };
        input.write_all(format!("INSERT INTO counts VALUES ('{name}', 0);\n").as_bytes())?;
        Ok(Sql { output: BufReader::new(output), input, program, name: name.to_owned() })
    }
}

impl Wire for Sql {
    fn increment(&mut self) -> io::Result<u64> {
        let statement = format!("UPDATE counts SET n = n + 1 WHERE name = '{}' RETURNING n;\n", self.name);
        self.input.write_all(statement.as_bytes())?;
        let answer = line(&mut self.output)?;
        answer.trim().parse().map_err(|_| nonsense("not a number", &answer))
    }
}

impl Drop for Sql {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::stats::Report;

    /// Answers from a list.
    struct Told(Vec<u64>);

    impl Wire for Told {
        fn increment(&mut self) -> io::Result<u64> {
            if self.0.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(self.0.remove(0)) }
        }
    }

    fn report(answers: &[u64]) -> Report {
        let (stats, stop) = (Stats::new(1), AtomicBool::new(false));
        count(0, &mut Told(answers.to_vec()), Duration::ZERO, &stats, &stop);
        stats.report()
    }

    #[test]
    fn what_is_lost_doubled_or_dropped_is_found() {
        let good = report(&[5, 6, 7]);
        assert_eq!((good.acked_writes, good.acked_writes_lost, good.wrong_replies), (3, 0, 0));
        assert_eq!(good.connections_dropped, 1);
        assert_eq!(report(&[5, 6, 5, 6]).acked_writes_lost, 2);
        assert_eq!(report(&[5, 6, 8, 9]).wrong_replies, 1);
    }
}
