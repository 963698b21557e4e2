//! A seed node for programs that run without agents: one vote in arbitration, kept on disk.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use outlive_cluster::{
    Acceptor, MembershipError, NameError, NodeName, RedbStorage, Request, Seeds, Standing, StoreError,
};
use outlive_stream::rpc;
use outlive_stream::tls::{HandshakeError, Identity};
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::arbitration::{Question, Reply};

const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at once: each process of each program has one.
const CONNECTIONS: usize = 4096;
/// The file under the directory of a seed node that holds its votes.
const FILE: &str = "arbitration";

/// Why a seed node cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Its votes cannot be read or kept.
    #[error("the votes of this seed node cannot be kept")]
    Store(#[from] StoreError),
    /// It was bootstrapped before, or is none of the seed nodes that were named.
    #[error("this node cannot begin a cluster")]
    Membership(#[from] MembershipError),
    /// It has no history, and nobody said that it is new.
    #[error(
        "this seed node has no votes on its disk: if it was never a seed node of this cluster, bootstrap it; if its \
         disk was lost it must not vote: an agent can be taught by the others (`outlive seed rejoin`)"
    )]
    Blank,
    /// It belongs to other seed nodes.
    #[error(
        "this seed node's votes are of another cluster, or of other seed nodes, than its configuration says"
    )]
    OtherCluster,
    /// Its name, of the certificate, cannot be one.
    #[error(transparent)]
    Name(#[from] outlive_cluster::NameError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// One vote in arbitration, answered over mutual TLS. Of three, one may die.
///
/// ```no_run
/// use std::path::Path;
/// use outlive_replicated::{Config, Seed};
///
/// // The seed nodes are those that a program's configuration names; this process is the one of the certificate.
/// let config = Config::load(Path::new("/etc/bank/bank.toml"))?;
/// let seed = Seed::open(Path::new("/var/lib/bank-seed"), config.identity, config.seeds, false)?;
/// seed.listen("10.0.0.3:7400".parse()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Seed {
    acceptor: Mutex<Acceptor<RedbStorage>>,
    identity: Identity,
    connections: AtomicUsize,
}

impl Seed {
    /// Takes up the votes in `directory`. `bootstrap` says that this seed node is new, never that its disk was lost:
    /// whoever votes again without knowing its votes may grant one right twice.
    pub fn open(
        directory: &Path,
        identity: Identity,
        seeds: Seeds,
        bootstrap: bool,
    ) -> Result<Arc<Self>, SeedError> {
        let me: NodeName = identity.node_name().parse()?;
        let mut acceptor = Acceptor::open(RedbStorage::open(&directory.join(FILE))?)?;
        if acceptor.standing() == Standing::Blank && bootstrap {
            acceptor.bootstrap(seeds.clone(), me)?;
        }
        match acceptor.seeds() {
            None => return Err(SeedError::Blank),
            Some(known) if *known != seeds => return Err(SeedError::OtherCluster),
            Some(_) => {}
        }
        Ok(Arc::new(Self { acceptor: Mutex::new(acceptor), identity, connections: AtomicUsize::new(0) }))
    }

    /// Answers whoever connects, on threads of its own, for ever; where it listens.
    pub fn listen(self: &Arc<Self>, address: SocketAddr) -> Result<SocketAddr, SeedError> {
        let failed = |source| SeedError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let listening = listener.local_addr().map_err(failed)?;
        let seed = Arc::clone(self);
        thread::Builder::new()
            .name("seed".into())
            .spawn(move || {
                for socket in listener.incoming().flatten() {
                    if seed.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                        seed.connections.fetch_sub(1, Ordering::Relaxed);
                        continue;
                    }
                    let ours = Arc::clone(&seed);
                    let started = thread::Builder::new().name("seed vote".into()).spawn(move || {
                        if let Err(error) = ours.serve(socket) {
                            debug!(%error, "nobody of this cluster");
                        }
                        ours.connections.fetch_sub(1, Ordering::Relaxed);
                    });
                    if started.is_err() {
                        seed.connections.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            })
            .map_err(failed)?;
        Ok(listening)
    }

    fn serve(&self, socket: TcpStream) -> Result<(), HandshakeError> {
        let connection = self.identity.accept(socket, HANDSHAKE)?;
        if let Err(error) = rpc::serve(connection, |from, question| self.answer(from, &question)) {
            debug!(%error, "a connection of a seed node ended");
        }
        Ok(())
    }

    fn answer(&self, from: &str, question: &[u8]) -> Vec<u8> {
        let reply = self.vote(from, question).map_or_else(Reply::Refused, Reply::Arbitrated);
        // An answer that cannot be encoded is none: the asker says that it does not understand it.
        reply.encode().unwrap_or_default()
    }

    /// Its vote, or why it has none.
    fn vote(&self, from: &str, question: &[u8]) -> Result<Vec<u8>, String> {
        let from: NodeName = from.parse().map_err(|error: NameError| error.to_string())?;
        let Question::Arbitrate(request) = postcard::from_bytes(question).map_err(|_| {
            "the question is not understood: both programs may not be of the same version".to_owned()
        })?;
        let request = Request::decode(&request).map_err(|error| {
            // Who is of another version asks again and again.
            static SAID: Once = Once::new();
            SAID.call_once(|| warn!(%from, %error, "questions to this seed node are not answered"));
            error.to_string()
        })?;
        // What it promises is on disk before it leaves.
        let response = self.acceptor.lock().handle(&from, &request);
        response.encode().map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use outlive_cluster::{ClusterId, Outcome, Transition};

    use super::*;
    use crate::arbitration::Arbiter;
    use crate::testing::Cluster;

    /// What is asked arrives as a question of another version.
    #[test]
    fn a_seed_node_of_another_version_says_so_to_whoever_asks() {
        let cluster = Cluster::new();
        let names: Vec<NodeName> = ["t1", "t2", "t3"].map(|name| name.parse().unwrap()).to_vec();
        let seeds = Seeds::new(ClusterId(7), 1, names.clone()).unwrap();
        let mut addresses = Vec::new();
        let directory = tempfile::tempdir().unwrap();
        for name in &names {
            let home = directory.path().join(name.as_str());
            std::fs::create_dir(&home).unwrap();
            let seed = Seed::open(&home, cluster.identity(name.as_str()), seeds.clone(), true).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            addresses.push(listener.local_addr().unwrap());
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let connection = seed.identity.accept(socket, HANDSHAKE).unwrap();
                    let served = rpc::serve(connection, |from, question| {
                        let mut question = question.to_vec();
                        // Behind the number of the question and the message's length.
                        question[2] += 1;
                        seed.answer(from, &question)
                    });
                    // Until the asker is gone.
                    drop(served);
                }
            });
        }
        let address_of =
            |name: &NodeName| names.iter().position(|known| known == name).map(|place| addresses[place]);
        let identity = cluster.identity("a");
        let arbiter = Arbiter::new(seeds, "bank".parse().unwrap(), &identity, address_of).unwrap();
        for outcome in [arbiter.read(), arbiter.ask(Transition::Stop { generation: 1 })] {
            let Outcome::NoMajority(why) = outcome else { panic!("{outcome:?}") };
            let why = why.to_string();
            assert!(why.contains("t1 gave no vote: the peer speaks version 3 of arbitration"), "{why}");
        }
    }
}
