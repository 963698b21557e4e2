//! Finding a backup: asks a peer's agent to host one, connects to it, and pairs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use outlive_cluster::Holder;
use outlive_fault::{Point, point};
use outlive_stream::hello::{Stream, VERSIONS};
use outlive_stream::rpc::Client;
use outlive_stream::tls::Identity;

use crate::message::{FROM_BACKUP, Fitness, PAIRING, Pairing, VERSION};
use crate::peer;
use crate::setup::{Peer, Setup, Workload};

/// Connecting and its handshakes, within a data centre, with room for a loaded peer.
const CONNECT: Duration = Duration::from_secs(2);
/// The peer starts a supervisor, its namespaces and an init.
const HOST: Duration = Duration::from_secs(20);

/// A backup that waits for its first copy.
pub struct Candidate {
    pub backup: Holder,
    pub stream: Stream,
}

/// Answers each request for a backup with a candidate, or with why there is none.
pub struct Protector {
    requests: Sender<Wish>,
    /// Peers that may be asked.
    peers: Vec<String>,
}

enum Wish {
    Any,
    /// This node and no other.
    On(String),
    /// From now on this one first, if it may be asked at all.
    Prefer(String),
}

impl Protector {
    pub fn start(
        setup: &Setup,
        identity: &Arc<Identity>,
        me: Holder,
        tell: impl Fn(Result<Candidate, String>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::channel();
        let all: Vec<Peer> = others(setup).cloned().collect();
        let peers = all.iter().map(|peer| peer.name.clone()).collect();
        let finder = Finder {
            peers: candidates(setup),
            all,
            workload: setup.workload.clone(),
            identity: Arc::clone(identity),
            me,
            next: 0,
        };
        thread::Builder::new().name("protector".into()).spawn(move || serve(finder, &queue, tell))?;
        Ok(Self { requests, peers })
    }

    pub fn find(&self) {
        // The thread lives as long as this does.
        let _ = self.requests.send(Wish::Any);
    }

    /// As [`Self::find`], on one node only, which has to be a peer.
    pub fn find_on(&self, node: &str) -> Result<(), String> {
        if !self.peers.iter().any(|peer| peer == node) {
            let peers = self.peers.join(", ");
            return Err(format!("{node} is no peer of the node that it runs on ({peers})"));
        }
        let _ = self.requests.send(Wish::On(node.to_owned()));
        Ok(())
    }

    /// The next search begins with this node.
    pub fn prefer(&self, node: String) {
        let _ = self.requests.send(Wish::Prefer(node));
    }
}

fn candidates(setup: &Setup) -> Vec<Peer> {
    let wanted = setup.workload.backup.as_deref();
    let others = others(setup);
    // A named backup that is this node itself: after a failover the former primary's node takes its place.
    let named: Vec<Peer> =
        others.clone().filter(|peer| wanted == Some(peer.name.as_str())).cloned().collect();
    if named.is_empty() { others.cloned().collect() } else { named }
}

fn others(setup: &Setup) -> impl Iterator<Item = &Peer> + Clone {
    setup.node.peers.iter().filter(|peer| peer.name != setup.node.name)
}

fn serve(mut finder: Finder, queue: &Receiver<Wish>, tell: impl Fn(Result<Candidate, String>)) {
    while let Ok(wish) = queue.recv() {
        match wish {
            Wish::Any => tell(finder.find()),
            Wish::On(node) => tell(finder.find_on(&node)),
            Wish::Prefer(node) => finder.prefer(&node),
        }
    }
}

struct Finder {
    peers: Vec<Peer>,
    all: Vec<Peer>,
    workload: Workload,
    identity: Arc<Identity>,
    me: Holder,
    next: usize,
}

impl Finder {
    /// Tries each peer once, beginning behind the one that was tried last.
    fn find(&mut self) -> Result<Candidate, String> {
        let mut reasons = Vec::new();
        for _ in 0..self.peers.len() {
            let peer = self.peers[self.next % self.peers.len()].clone();
            self.next += 1;
            match self.try_peer(&peer) {
                Ok(candidate) => return Ok(candidate),
                Err(reason) => reasons.push(format!("{}: {reason}", peer.name)),
            }
        }
        if reasons.is_empty() {
            return Err("no peer is configured; add a [[peers]] entry".into());
        }
        Err(reasons.join("; "))
    }

    fn find_on(&self, node: &str) -> Result<Candidate, String> {
        let peer = self.all.iter().find(|peer| peer.name == node);
        self.try_peer(peer.ok_or_else(|| format!("{node} is no peer"))?)
    }

    fn prefer(&mut self, node: &str) {
        if let Some(place) = self.peers.iter().position(|peer| peer.name == node) {
            self.next = place;
        }
    }

    fn try_peer(&self, peer: &Peer) -> Result<Candidate, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let connection =
            self.identity.connect(peer.address, &peer.name, CONNECT).map_err(|error| text(&error))?;
        let mut client = Client::open(connection, CONNECT).map_err(|error| text(&error))?;
        let request =
            peer::Request::HostBackup { version: peer::VERSION, workload: Box::new(self.workload.clone()) };
        point(Point::CopyAsking);
        let listen: SocketAddr = match peer::call(&mut client, &request, HOST)? {
            peer::Response::Hosting { listen } => listen,
            peer::Response::Refused { reason } => return Err(reason),
            other => return Err(format!("unexpected answer {other:?}")),
        };
        point(Point::CopyHosted);
        let connection = self.identity.connect(listen, &peer.name, CONNECT).map_err(|error| text(&error))?;
        let purpose = format!("replicate:{}", self.workload.name);
        let mut stream = Stream::open(connection, VERSIONS, &purpose, FROM_BACKUP, CONNECT)
            .map_err(|error| text(&error))?;
        let mine = Pairing { version: VERSION, holder: self.me.clone(), fitness: Fitness::of_this_host() };
        let theirs = exchange(&mut stream, &mine)?;
        if let Some(reason) = mine.fitness.differs_from(&theirs.fitness) {
            return Err(reason);
        }
        point(Point::CopyPaired);
        Ok(Candidate { backup: theirs.holder, stream })
    }
}

/// Both sides say who they are.
pub fn exchange(stream: &mut Stream, mine: &Pairing) -> Result<Pairing, String> {
    let bytes = postcard::to_stdvec(mine).map_err(|error| error.to_string())?;
    stream.writer.send(PAIRING, &[&bytes]).map_err(|error| error.to_string())?;
    stream.reader.get_mut().set_timeout(Some(CONNECT)).map_err(|error| error.to_string())?;
    let frame = stream.reader.next().map_err(|error| error.to_string())?;
    if frame.kind != PAIRING {
        return Err("the other side did not say who it is".into());
    }
    Pairing::read(&frame.payload)
}
