//! What the command line asks the agent of its node: lines of JSON over a Unix socket, one question a connection.
//!
//! The agent may answer with several [`Reply::Progress`] lines before the one that ends it. After [`Reply::Output`]
//! the connection carries records of output until the agent closes it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outlive_epoch::control::{State, Status};
use outlive_epoch::setup::WhenExposed;
use outlive_net::{Mac, Route};
use outlive_process::tree::{Change, Errand, Whereabouts};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Failure, Result};

/// The longest line either side takes. A command line of a workload is at most 128 KiB an argument
/// (`MAX_ARG_STRLEN`, execve(2)); with all of JSON's escapes a large one still fits.
pub const LINE_MAX: u64 = 4 << 20;
/// The longest silence of a living agent: each of its steps has a shorter deadline of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// People wait for a second without a word.
const QUIET_MS: u16 = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    Run(Box<Wanted>),
    List,
    Inspect {
        name: String,
    },
    Logs {
        name: String,
        follow: bool,
    },
    /// `dead`: nodes that whoever asks vouches for, as being dead for good.
    Stop {
        name: String,
        dead: Vec<String>,
    },
    Kill {
        name: String,
        signal: i32,
    },
    /// Calls that a process of a workload makes for whoever patches it; the process as its node numbers it.
    Errands {
        name: String,
        pid: i32,
        errands: Vec<Errand>,
    },
    /// As `outlive_epoch::control::Request::Store`.
    Store {
        name: String,
        pid: i32,
        avoided: Vec<Range<u64>>,
        change: Option<Change>,
    },
    /// To the backup's node, or to the one named.
    Switchover {
        name: String,
        to: Option<String>,
    },
    Failover {
        name: String,
    },
    RestartLost {
        name: String,
        on: Option<String>,
        dead: Vec<String>,
    },
    Bootstrap {
        seeds: Vec<String>,
    },
    Rejoin,
    Seeds,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What is being done now; another reply follows.
    Progress {
        what: String,
    },
    Started {
        /// Whether there is any other node that could hold a backup.
        has_peers: bool,
    },
    Done,
    /// What each call of the errands returned, and how long the workload was stopped, in microseconds.
    Returned {
        results: Vec<i64>,
        held_us: u64,
    },
    /// As `outlive_epoch::control::Response::Stored`.
    Stored {
        in_the_way: Vec<Whereabouts>,
        held_us: u64,
    },
    Workloads(Vec<Row>),
    Inspected(Box<Inspected>),
    /// Records follow.
    Output,
    Bootstrapped {
        cluster: String,
    },
    Rejoined(Rejoined),
    Seeds(Vec<SeedRow>),
    Moved(Moved),
    Failed(Failure),
}

/// A workload as the user asked for it, not yet checked against this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub name: String,
    pub addresses: Vec<IpNet>,
    pub mac: Option<Mac>,
    pub mtu: u16,
    pub routes: Vec<Route>,
    pub backup: Option<String>,
    pub when_exposed: WhenExposed,
    pub scratch: Vec<PathBuf>,
    pub environment: Vec<(String, String)>,
    pub directory: PathBuf,
    pub user: String,
    pub command: Vec<String>,
}

/// What a node has of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Here {
    Primary,
    Backup,
    /// Nothing but files it left.
    Nothing,
}

/// A line of `outlive ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// None: its supervisor lives and does not answer.
    pub state: Option<State>,
    pub here: Here,
    pub primary_node: Option<String>,
    pub backup_node: Option<String>,
    pub generation: u64,
    pub epoch: u64,
    pub lag_epochs: u64,
    pub addresses: Vec<String>,
    /// Why it is not protected, or what is not known.
    pub note: Option<String>,
}

/// The answer to `outlive inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspected {
    /// Whose supervisor said so; none if the workload is lost and only its register speaks.
    pub node: Option<String>,
    pub status: Status,
}

/// The answer to `outlive switchover`, `outlive failover` and `outlive restart-lost`: where it runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    pub node: String,
    pub generation: u64,
    /// From when the new primary knew that it is one until the workload ran.
    pub activate_ms: f64,
}

/// The answer to `outlive seed rejoin`: this node votes in this cluster again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoined {
    pub node: String,
    pub cluster: String,
}

/// A line of `outlive seed status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedRow {
    pub node: String,
    pub address: Option<SocketAddr>,
    /// `voting`, `blank`, `learning`, `failed` or `unreachable`.
    pub standing: String,
    pub cluster: Option<String>,
    pub note: Option<String>,
}

/// One question to the agent.
pub struct Client {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self> {
        let shown = socket.display();
        let stream = UnixStream::connect(socket).map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "run it as root, or join the agent's control_group",
                _ => "start it with `outlive agent --config FILE`, or name its socket with --socket",
            };
            Failure::unreachable(format!("no agent answers at {shown} ({error}): {advice}"))
        })?;
        stream.set_read_timeout(Some(PATIENCE)).or_failed(|| format!("set a time limit on {shown}"))?;
        Ok(Self { stream: BufReader::new(stream), socket: socket.to_owned() })
    }

    /// Asks, passes on progress, and returns the reply that ends it; a failure as an error.
    pub fn call(&mut self, request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Reply> {
        let broken = |error: io::Error| {
            let shown = self.socket.display();
            Failure::unreachable(format!("the agent at {shown} went away ({error}): look at its log"))
        };
        write_line(self.stream.get_mut(), request).map_err(broken)?;
        if !self.is_readable(QUIET_MS.into()) {
            progress("waiting for the agent's answer");
        }
        loop {
            match read_line::<Reply>(&mut self.stream).map_err(broken)? {
                Some(Reply::Progress { what }) => progress(&what),
                Some(Reply::Failed(failure)) => return Err(failure),
                Some(reply) => return Ok(reply),
                None => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    fn is_readable(&self, within: PollTimeout) -> bool {
        let mut wait = [PollFd::new(self.stream.get_ref().as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut wait, within), Ok(0))
    }

    /// What follows [`Reply::Output`]. A quiet workload is silent for as long as it likes.
    pub fn into_output(self) -> io::Result<BufReader<UnixStream>> {
        self.stream.get_ref().set_read_timeout(None)?;
        Ok(self.stream)
    }
}

/// A reply that the question cannot have: both ends are not of one version.
pub fn unexpected(reply: &Reply) -> Failure {
    let text = format!("{reply:?}");
    let start: String = text.chars().take(40).collect();
    Failure::failed(format!(
        "the agent gave an answer to another question ({start}): restart it with this version"
    ))
}

pub fn write_line(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// None at the end of the stream. What is no line of JSON, or too long a one, is an error of kind `InvalidData`.
pub fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let bad = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    if line.last() != Some(&b'\n') {
        return Err(bad(format!("a message ended after {} bytes without its end of line", line.len())));
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| bad(format!("a message is malformed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_until_the_end() {
        let mut bytes = Vec::new();
        let requests = [Request::List, Request::Logs { name: "db\n".to_owned(), follow: true }];
        requests.iter().for_each(|request| write_line(&mut bytes, request).unwrap());
        let mut from = bytes.as_slice();
        for request in requests {
            assert_eq!(read_line::<Request>(&mut from).unwrap(), Some(request));
        }
        assert_eq!(read_line::<Request>(&mut from).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&b"\"list\""[..], b"{}\n", b"\n", b"\xff\n"] {
            let error = read_line::<Request>(&mut &bytes[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}: {error}");
        }
        let endless = vec![b' '; LINE_MAX as usize + 1];
        assert!(read_line::<Request>(&mut endless.as_slice()).is_err());
    }

    #[test]
    fn without_an_agent_the_next_step_is_said() {
        let failure = Client::connect(Path::new("/nonexistent/agent.sock")).err().unwrap();
        assert_eq!(failure.kind, crate::error::Kind::Unreachable);
        assert!(failure.message.contains("outlive agent"), "{failure}");
    }
}
