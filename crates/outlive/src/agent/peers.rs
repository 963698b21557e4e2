//! The other nodes: asking them, and answering them. Mutual TLS, and only nodes that the configuration names (R6).

use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use outlive_epoch::control::Status;
use outlive_epoch::{link, peer};
use outlive_stream::connection::Connection;
use outlive_stream::hello::{Stream, VERSIONS};
use outlive_stream::rpc::{self, Client};
use outlive_stream::tls::Identity;
use tracing::{debug, info, warn};

use super::{Agent, membership};
use crate::config::Config;
use crate::error::{Context, Failure, Result, chain};

/// Reaching another node and agreeing on TLS: many round trips of any network in use, and what a user waits for a node
/// that is gone.
const CONNECT: Duration = Duration::from_secs(1);
/// For questions that are answered from memory or from one local socket.
pub const ANSWER: Duration = Duration::from_secs(3);
/// An accepted connection must have proved who it is within this, and said what it is for.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections served at once. A supervisor keeps one to each seed node: hundreds of workloads fit, a flood does not.
/// Whoever comes beyond is dropped, and asks again.
const CONNECTIONS: usize = 1024;
/// Rest after a failed accept: out of descriptors, nothing but time helps.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How this node asks others.
#[derive(Clone)]
pub struct Peers {
    config: Arc<Config>,
    identity: Arc<Identity>,
}

impl Peers {
    pub fn new(config: Arc<Config>, identity: Arc<Identity>) -> Self {
        Self { config, identity }
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The names of all other nodes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.config.peers.iter().map(|peer| peer.name.as_str())
    }

    /// Asks a node's agent one question.
    pub fn ask(&self, node: &str, request: &peer::Request) -> Result<peer::Response> {
        self.ask_within(node, request, ANSWER)
    }

    /// One that takes time to answer.
    pub fn ask_within(&self, node: &str, request: &peer::Request, limit: Duration) -> Result<peer::Response> {
        let mut client = Client::open(self.connect(node)?, HANDSHAKE)
            .map_err(|error| Failure::unreachable(format!("node {node}: {}", chain(&error))))?;
        peer::call(&mut client, request, limit)
            .map_err(|error| Failure::unreachable(format!("node {node}: {error}")))
    }

    /// Asks a node's agent about the membership of seed nodes.
    pub fn ask_membership(&self, node: &str, request: &membership::Request) -> Result<membership::Response> {
        let unreachable =
            |error: &dyn std::error::Error| Failure::unreachable(format!("node {node}: {}", chain(error)));
        let connection = self.connect(node)?;
        let stream = Stream::open(connection, VERSIONS, membership::PURPOSE, rpc::CLIENT_KINDS, HANDSHAKE)
            .map_err(|error| unreachable(&error))?;
        let question = serde_json::to_vec(request).or_failed(|| "put a question into words".to_owned())?;
        let answer = Client::over(stream)
            .call(&question, std::time::Instant::now() + membership::ANSWER)
            .map_err(|error| unreachable(&error))?;
        serde_json::from_slice(&answer)
            .or_failed(|| format!("understand node {node}, which may run another version"))
    }

    /// What each node's supervisor says of a workload; `Err` for those that could not be asked.
    pub fn statuses(&self, name: &str) -> Vec<(String, Result<Option<Box<Status>>>)> {
        let ask = |node: &str| match self.ask(node, &peer::Request::Status { name: name.to_owned() })? {
            peer::Response::Status(status) => Ok(status),
            peer::Response::Refused { reason } => Err(Failure::refused(format!("node {node}: {reason}"))),
            _ => Err(Failure::failed(format!(
                "node {node} answered another question: it may run another version"
            ))),
        };
        self.ask_all(self.names(), ask)
    }

    /// Asks several nodes at once, each on a thread of its own, so that one that is gone costs its own time only.
    pub fn ask_all<'a, T: Send>(
        &self,
        nodes: impl Iterator<Item = &'a str>,
        ask: impl Fn(&str) -> Result<T> + Sync,
    ) -> Vec<(String, Result<T>)> {
        let ask = &ask;
        thread::scope(|scope| {
            let asked: Vec<_> = nodes.map(|node| (node, scope.spawn(move || ask(node)))).collect();
            let answer = |asked: thread::ScopedJoinHandle<'_, Result<T>>| {
                asked.join().unwrap_or_else(|_| Err(Failure::failed("asking it failed: see the agent's log")))
            };
            asked.into_iter().map(|(node, asked)| (node.to_owned(), answer(asked))).collect()
        })
    }

    fn connect(&self, node: &str) -> Result<Connection> {
        let address = self.config.address_of(node).ok_or_else(|| {
            Failure::refused(format!("{node} is no node of this configuration: add it to [[peers]]"))
        })?;
        self.identity
            .connect(address, node, CONNECT)
            .map_err(|error| Failure::unreachable(format!("node {node}: {}", chain(&error))))
    }
}

/// Accepts connections for as long as the agent runs.
pub fn listen(agent: &Arc<Agent>, listener: &TcpListener) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                thread::sleep(ACCEPT_RETRY);
                continue;
            }
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            warn!("{CONNECTIONS} connections are open already: one was dropped");
            continue;
        }
        let (agent, counted) = (Arc::clone(agent), Arc::clone(&connections));
        let spawned = thread::Builder::new().name("peer".to_owned()).spawn(move || {
            answer(&agent, socket);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            connections.fetch_sub(1, Ordering::Relaxed);
            warn!(%error, "no thread for a connection");
        }
    }
}

fn answer(agent: &Arc<Agent>, socket: TcpStream) {
    let connection = match agent.peers.identity.accept(socket, HANDSHAKE) {
        Ok(connection) => connection,
        Err(error) => {
            info!(reason = chain(&error), "a stranger was refused");
            return;
        }
    };
    let stream =
        match Stream::answer(connection, VERSIONS, HANDSHAKE, |node, purpose| admit(agent, node, purpose)) {
            Ok(stream) => stream,
            Err(error) => {
                info!(reason = chain(&error), "a connection was refused");
                return;
            }
        };
    let served = if stream.purpose == membership::PURPOSE {
        rpc::serve_stream(stream, |node, request| membership::answer(agent, node, &request))
    } else {
        rpc::serve_stream(stream, |node, request| answer_question(agent, node, &request))
    };
    if let Err(error) = served {
        debug!(reason = chain(&error), "a connection ended");
    }
}

/// A certificate of the cluster is not enough: a node that this one does not know may not even ask.
fn admit(agent: &Agent, node: &str, purpose: &str) -> Result<outlive_stream::frame::KindSet, String> {
    if agent.config.address_of(node).is_none() {
        return Err(format!(
            "{node} is not in this node's configuration: add it to [[peers]] of {}",
            agent.config.node
        ));
    }
    match purpose {
        rpc::PURPOSE | membership::PURPOSE => Ok(rpc::SERVER_KINDS),
        other => Err(format!("an agent does not serve {other:?}: both nodes may not run the same version")),
    }
}

fn answer_question(agent: &Arc<Agent>, node: &str, request: &[u8]) -> Vec<u8> {
    let response = match postcard::from_bytes::<peer::Request>(request) {
        Ok(request) => decide(agent, node, request),
        Err(_) => {
            let reason = "the question is not understood: both nodes may not run the same version".to_owned();
            peer::Response::Refused { reason }
        }
    };
    // An answer that cannot be encoded is none: the asker says that it does not understand it.
    postcard::to_stdvec(&response).unwrap_or_default()
}

fn decide(agent: &Arc<Agent>, node: &str, request: peer::Request) -> peer::Response {
    let refused = |failure: Failure| peer::Response::Refused { reason: failure.to_string() };
    match request {
        peer::Request::Arbitrate(request) => {
            run_first();
            let vote = || -> Result<peer::Response> {
                let request = outlive_cluster::Request::decode(&request)
                    .or_failed(|| format!("read what node {node} asks"))?;
                let response = agent.seed.arbitrate(node, &request)?;
                peer::Response::arbitrated(&response).or_failed(|| format!("answer node {node}"))
            };
            vote().unwrap_or_else(refused)
        }
        peer::Request::HostBackup { version: peer::VERSION, workload } => {
            let name = workload.name.clone();
            match super::host::host_backup(agent, node, *workload) {
                Ok(listen) => peer::Response::Hosting { listen },
                Err(failure) => {
                    warn!(
                        workload = name,
                        primary = node,
                        reason = failure.to_string(),
                        "no backup is hosted"
                    );
                    refused(failure)
                }
            }
        }
        peer::Request::HostBackup { version, .. } => other_version(node, version),
        peer::Request::Order { version: peer::VERSION, name, order } => {
            match super::moves::ordered(agent, &name, &order) {
                Ok(response) => peer::Response::Ordered(response),
                Err(failure) => refused(failure),
            }
        }
        peer::Request::Order { version, .. } => other_version(node, version),
        peer::Request::Definition { name } => match super::moves::definition(agent, &name) {
            Ok(workload) => peer::Response::Definition(workload.map(Box::new)),
            Err(failure) => refused(failure),
        },
        peer::Request::Restart { version: peer::VERSION, workload, lost } => {
            match super::host::restart(agent, *workload, lost) {
                Ok(()) => peer::Response::Restarted,
                Err(failure) => refused(failure),
            }
        }
        peer::Request::Restart { version, .. } => other_version(node, version),
        peer::Request::Status { name } => match agent.supervisors.status(&name) {
            Ok(status) => peer::Response::Status(status.map(Box::new)),
            Err(failure) => refused(failure),
        },
    }
}

/// Clients wait for what seed nodes answer: the thread of a connection that asks them runs before normal ones from then on, as the
/// threads of supervisors do that depend on it. A supervisor uses a connection for nothing else.
fn run_first() {
    thread_local!(static RUNS_FIRST: Cell<bool> = const { Cell::new(false) });
    if !RUNS_FIRST.replace(true) {
        link::carry_life();
    }
}

fn other_version(node: &str, version: u16) -> peer::Response {
    let reason = format!(
        "this agent speaks version {} of these messages and {node} version {version}: update the older node",
        peer::VERSION
    );
    peer::Response::Refused { reason }
}
