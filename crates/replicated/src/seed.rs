//! A seed node for programs that run without agents: one vote in arbitration, kept on disk.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use outlive_cluster::{Acceptor, MembershipError, NodeName, RedbStorage, Seeds, Standing, StoreError};
use outlive_stream::rpc;
use outlive_stream::tls::{HandshakeError, Identity};
use parking_lot::Mutex;
use tracing::debug;

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

    /// What is not understood is answered with nothing, which the asker does not understand either.
    fn answer(&self, from: &str, question: &[u8]) -> Vec<u8> {
        let (Ok(from), Ok(Question::Arbitrate(request))) =
            (from.parse::<NodeName>(), postcard::from_bytes(question))
        else {
            return Vec::new();
        };
        // What it promises is on disk before it leaves.
        let response = self.acceptor.lock().handle(&from, &request);
        postcard::to_stdvec(&Reply::Arbitrated(Box::new(response))).unwrap_or_default()
    }
}
