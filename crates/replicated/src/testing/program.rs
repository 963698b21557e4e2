//! Whole programs as tests run them: processes that are killed and started again, and clients that ask one line at a time.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Cluster, free_address, must};
use crate::Node;

/// Far beyond what anything in such a test takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// For a connection and for each of its answers.
const ANSWER: Duration = Duration::from_secs(5);

/// Asks again and again until there is something; a test that waits for ever fails.
///
/// # Panics
/// If there is nothing after two minutes.
#[track_caller]
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program on one node, which serves clients. It ends with this.
pub struct Place {
    binary: PathBuf,
    config: PathBuf,
    arguments: Vec<String>,
    /// Where it serves.
    pub serves: SocketAddr,
    child: Option<Child>,
}

impl Place {
    /// Two of them, started: `binary CONFIG LISTEN ARGUMENTS…`.
    pub fn pair(cluster: &Cluster, program: &str, binary: &str, arguments: &[String]) -> Vec<Self> {
        let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
        let place = |node: &Node| Self {
            binary: binary.into(),
            config: cluster.config_file(program, node, &nodes),
            arguments: arguments.to_vec(),
            serves: free_address(),
            child: None,
        };
        let mut places: Vec<Self> = nodes.iter().map(place).collect();
        places.iter_mut().for_each(Self::start);
        places
    }

    /// Starts it, again if it was killed. Its log is of use only where a test is debugged: `OUTLIVE_LOUD=1`.
    pub fn start(&mut self) {
        let mut command = Command::new(&self.binary);
        command.arg(&self.config).arg(self.serves.to_string()).args(&self.arguments);
        if std::env::var_os("OUTLIVE_LOUD").is_none() {
            command.stderr(Stdio::null());
        }
        self.child = Some(must(command.spawn(), "start a program"));
    }

    /// Kills it as a loss of power would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            must(child.kill(), "kill a program");
            must(child.wait(), "wait for a program");
        }
    }

    /// Its number, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.take().map(|mut child| must(child.wait(), "wait for a program"))
    }

    /// Whether it is the primary of a pair that is in step: its answer to `status` ends with `Some(Protected)`.
    pub fn is_protected(&self) -> bool {
        let status = Line::to(self.serves).and_then(|mut line| line.ask("status"));
        status.is_some_and(|status| status.ends_with("Some(Protected)"))
    }

    /// Which of both speaks, with a backup in step.
    pub fn protected(places: &[Self]) -> usize {
        until("the pair is protected", || places.iter().position(Self::is_protected))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection on which one line is answered by one line.
pub struct Line(BufReader<TcpStream>);

impl Line {
    /// `None` if nobody is there.
    pub fn to(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// Sends a request, and does not wait for its answer.
    pub fn say(&mut self, request: &str) -> Option<()> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).ok()
    }

    /// `None`: nobody can know whether it was done.
    pub fn ask(&mut self, request: &str) -> Option<String> {
        self.say(request)?;
        let mut reply = String::new();
        self.0.read_line(&mut reply).ok()?;
        reply.ends_with('\n').then(|| reply.trim_end().to_owned())
    }

    /// Whether it is cut off without a further word.
    pub fn is_cut_off(&mut self) -> bool {
        if self.0.get_ref().set_read_timeout(Some(PATIENCE)).is_err() {
            return true;
        }
        let mut reply = String::new();
        let outcome = self.0.read_line(&mut reply);
        let silent = matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        reply.is_empty() && !silent
    }
}

/// A client that asks whoever answers, again and again.
pub struct Client {
    serves: [SocketAddr; 2],
    line: Option<Line>,
    next: usize,
    /// The longest time for which it went without an answer.
    pub longest: Duration,
}

impl Client {
    /// Of a program that is served at one of these.
    pub fn new(serves: [SocketAddr; 2]) -> Self {
        Self { serves, line: None, next: 0, longest: Duration::ZERO }
    }

    /// Of a pair.
    pub fn of(places: &[Place]) -> Self {
        Self::new([places[0].serves, places[1].serves])
    }

    /// Sends the same request until it is answered.
    ///
    /// # Panics
    /// If nobody answers for two minutes.
    pub fn ask(&mut self, request: &str) -> String {
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < PATIENCE, "nobody answers {request:?}");
            if self.line.is_none() {
                self.next += 1;
                self.line = Line::to(self.serves[self.next % 2]);
            }
            let Some(reply) = self.line.as_mut().and_then(|line| line.ask(request)) else {
                self.line = None;
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            self.longest = self.longest.max(since.elapsed());
            return reply;
        }
    }
}
