//! Three nodes and a client in a lab: the agents, their certificates, and the commands one gives them. Knows the
//! `outlive` program by its command line only.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::{Host, HostProcess, Lab, PREFIX};

/// The nodes; all are seed nodes.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// Nodes that run workloads; the other has only a vote.
pub const WORKERS: [&str; 2] = ["a", "b"];
const AGENT_PORT: u16 = 7400;
const DETECTION_MS: u32 = 100;
/// An agent listens within that, or it does not come up.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A command to an agent is answered within that.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at an agent: each look starts a program, which takes processor time from what is observed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("cannot {attempt}")]
    Io { attempt: String, source: io::Error },
    #[error("`outlive {command}` {how}: {stderr}")]
    Command { command: String, how: String, stderr: String },
    #[error("`outlive {command}` answered what is not as agreed ({source}): {answer}")]
    Answer { command: String, answer: String, source: serde_json::Error },
    #[error("the agent of node {node} did not come up:\n{tail}")]
    NotReady { node: String, tail: String },
    #[error("there is no node `{0}`")]
    NoNode(String),
    #[error(
        "workload `{workload}` was not {what} within {seconds} s; the last that node {node} said: {last}"
    )]
    Waited { workload: String, what: String, node: String, seconds: u64, last: String },
}

type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// What `outlive inspect --json` says of a workload, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Workload {
    pub name: String,
    pub state: String,
    pub role: String,
    pub generation: u64,
    #[serde(default)]
    pub epoch: u64,
    #[serde(default)]
    pub primary_node: Option<String>,
    #[serde(default)]
    pub backup_node: Option<String>,
    #[serde(default)]
    pub last_failover: Option<Failover>,
    /// All of the answer.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// How long the parts of the last failover took, as the node says that made it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Failover {
    pub detect_ms: f64,
    pub arbitrate_ms: f64,
    pub activate_ms: f64,
}

impl Workload {
    pub fn is_protected(&self) -> bool {
        self.state == "protected"
    }

    pub fn is_primary(&self) -> bool {
        self.role == "primary"
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub backup: Option<&'a str>,
    pub address: Ipv4Addr,
    /// Further options of `outlive run`, such as `--scratch`.
    pub options: &'a [&'a str],
    pub command: &'a [&'a str],
}

/// A lab with an agent on each of its hosts, and a client outside.
pub struct Cluster {
    lab: Lab,
    program: PathBuf,
    nodes: Vec<Node>,
    client: Host,
}

struct Node {
    host: Host,
    agent: Mutex<Option<HostProcess>>,
}

impl Cluster {
    /// Makes the hosts and certificates, starts the agents and gives the seed nodes their first history.
    pub fn start(hint: &str, program: &Path) -> Result<Cluster> {
        Self::start_detecting(hint, program, DETECTION_MS)
    }

    /// As [`Cluster::start`], with another time after which a silent node is given up: where so much runs side by side that
    /// all of a machine may stand still for longer than the default.
    pub fn start_detecting(hint: &str, program: &Path, detection_ms: u32) -> Result<Cluster> {
        let lab = Lab::new(hint)?;
        let nodes = NODES
            .iter()
            .map(|name| Ok(Node { host: lab.host(name)?, agent: Mutex::new(None) }))
            .collect::<Result<Vec<Node>>>()?;
        let client = lab.client("client")?;
        let cluster = Cluster { lab, program: program.to_owned(), nodes, client };
        cluster.certify()?;
        for node in &cluster.nodes {
            let config = cluster.config(&node.host, detection_ms);
            let path = config_path(&node.host);
            fs::write(&path, config).map_err(|source| ClusterError::Io {
                attempt: format!("write {}", path.display()),
                source,
            })?;
        }
        for name in NODES {
            cluster.start_agent(name)?;
        }
        cluster.command(NODES[0], &["seed", "bootstrap", "--seeds", &NODES.join(",")])?;
        Ok(cluster)
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The machine outside, for clients.
    pub fn client(&self) -> &Host {
        &self.client
    }

    pub fn host(&self, node: &str) -> Result<&Host> {
        self.node(node).map(|node| &node.host)
    }

    /// The agent of a node, if its host is on.
    pub fn agent(&self, node: &str) -> Result<Option<HostProcess>> {
        Ok(self.node(node)?.agent.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Starts a node's agent and waits until it listens.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        let Node { host, agent: slot } = self.node(node)?;
        let config = config_path(host);
        let words: [OsString; 4] =
            [self.program.clone().into(), "agent".into(), "--config".into(), config.into()];
        let agent = host.spawn(words)?;
        let deadline = Instant::now() + READY_LIMIT;
        while !agent.stdout().lines().any(|line| line.starts_with("ready")) {
            if Instant::now() > deadline || agent.try_wait()?.is_some() {
                return Err(ClusterError::NotReady { node: node.to_owned(), tail: agent.tail() });
            }
            thread::sleep(Duration::from_millis(5));
        }
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(agent);
        Ok(())
    }

    /// Cuts a node's power; the instant from which on it was silent.
    pub fn power_off(&self, node: &str) -> Result<Instant> {
        let Node { host, agent } = self.node(node)?;
        let dark = host.power_off()?;
        *agent.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(dark)
    }

    /// Gives a node its power back and starts its agent.
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.host(node)?.power_on()?;
        self.start_agent(node)
    }

    /// Runs `outlive WORD ...` on a node against its agent; what it wrote to standard output.
    pub fn command(&self, node: &str, words: &[&str]) -> Result<String> {
        let host = self.host(node)?;
        // The socket goes before any `--` that ends the options.
        let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        let socket = text(&socket_path(host));
        let program = text(&self.program);
        let mut line = vec![program.as_str()];
        line.extend(&words[..end]);
        line.extend(["--socket", socket.as_str()]);
        line.extend(&words[end..]);
        let output = host.exec_within(COMMAND_LIMIT, line)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(ClusterError::Command {
            command: words.join(" "),
            how: format!("on node {node} ended with {}", output.status),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Starts a workload, protected by epochs.
    pub fn run(&self, start: &Start<'_>) -> Result<()> {
        let ip = format!("{}/{PREFIX}", start.address);
        let mut words = vec!["run", "--name", start.name, "--level", "epoch", "--ip", &ip];
        if let Some(backup) = start.backup {
            words.extend(["--backup", backup]);
        }
        words.extend(start.options);
        words.push("--");
        words.extend(start.command);
        self.command(start.node, &words).map(drop)
    }

    /// What a node says of a workload.
    pub fn inspect(&self, node: &str, workload: &str) -> Result<Workload> {
        let answer = self.command(node, &["inspect", workload, "--json"])?;
        serde_json::from_str(&answer).map_err(|source| ClusterError::Answer {
            command: format!("inspect {workload} --json"),
            answer,
            source,
        })
    }

    /// Asks a node again and again until what it says of a workload is so. Refusals on the way are no failure: a
    /// node that has just come up does not know the workload yet.
    pub fn wait_until(
        &self,
        node: &str,
        workload: &str,
        what: &str,
        limit: Duration,
        so: impl Fn(&Workload) -> bool,
    ) -> Result<Workload> {
        let deadline = Instant::now() + limit;
        loop {
            let last = self.inspect(node, workload);
            match last {
                Ok(seen) if so(&seen) => return Ok(seen),
                last if Instant::now() > deadline => {
                    let last = match last {
                        Ok(seen) => format!("{seen:?}"),
                        Err(error) => error.to_string(),
                    };
                    return Err(ClusterError::Waited {
                        workload: workload.to_owned(),
                        what: what.to_owned(),
                        node: node.to_owned(),
                        seconds: limit.as_secs(),
                        last,
                    });
                }
                _ => thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// The last lines that every agent wrote, for a report of what went wrong.
    pub fn tails(&self) -> String {
        self.nodes.iter().map(|node| node.host.tails()).collect()
    }

    fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.host.name() == name);
        found.ok_or_else(|| ClusterError::NoNode(name.to_owned()))
    }

    /// The cluster's own authority, and a certificate for each node on its disk.
    fn certify(&self) -> Result<()> {
        let authority = text(&self.lab.folder().join(".authority"));
        self.offline(&["cert", "authority", "--out", &authority])?;
        for node in &self.nodes {
            let out = text(&tls_path(&node.host));
            self.offline(&["cert", "node", "--ca", &authority, "--name", node.host.name(), "--out", &out])?;
        }
        Ok(())
    }

    /// Runs a command that needs no agent and no network.
    fn offline(&self, words: &[&str]) -> Result<()> {
        let output = Command::new(&self.program).args(words).output().map_err(|source| ClusterError::Io {
            attempt: format!("run {}", self.program.display()),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        Err(ClusterError::Command {
            command: words.join(" "),
            how: format!("ended with {}", output.status),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn config(&self, host: &Host, detection_ms: u32) -> String {
        let (disk, tls) = (text(host.disk()), text(&tls_path(host)));
        let (name, address) = (host.name(), host.address());
        let socket = text(&socket_path(host));
        let mut config = format!(
            "node = \"{name}\"\n\
             listen = \"{address}:{AGENT_PORT}\"\n\
             bridge = \"br0\"\n\
             state_dir = \"{disk}/state\"\n\
             control_socket = \"{socket}\"\n\
             detection_ms = {detection_ms}\n\
             seeds = {NODES:?}\n\
             \n\
             [tls]\n\
             ca = \"{tls}/ca.pem\"\n\
             cert = \"{tls}/node.pem\"\n\
             key = \"{tls}/node.key\"\n"
        );
        for peer in self.nodes.iter().map(|node| &node.host).filter(|peer| peer.name() != name) {
            let (name, address) = (peer.name(), peer.address());
            // Writing to a String does not fail.
            let _ = write!(config, "\n[[peers]]\nname = \"{name}\"\naddress = \"{address}:{AGENT_PORT}\"\n");
        }
        config
    }
}

fn config_path(host: &Host) -> PathBuf {
    host.disk().join("outlive.toml")
}

fn socket_path(host: &Host) -> PathBuf {
    host.disk().join("outlive.sock")
}

fn tls_path(host: &Host) -> PathBuf {
    host.disk().join("tls")
}

/// The lab makes all these paths itself, of ASCII; the program's own is taken as it prints.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
