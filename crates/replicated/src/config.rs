//! What a process is told: who it is, who the others are, and how patient it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlive_cluster::{ClusterId, NameError, NodeName, Seeds, SeedsError, WorkloadName};
use outlive_stream::tls::{Identity, IdentityError};
use serde::Deserialize;

use crate::protection::WaitFor;

/// What a program does while it has no backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenExposed {
    /// Go on: commits are acknowledged and are nowhere else, once the seed nodes have granted that.
    #[default]
    Run,
    /// Commits wait until there is a backup.
    Wait,
}

/// Another process, or a seed node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Its name, which its certificate must prove.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// How this process takes part. The same program, name, cluster and seed nodes on every node.
///
/// As a file, for [`Config::load`]:
///
/// ```toml
/// name = "bank"
/// listen = "10.0.0.1:7500"
/// cluster = "5d1f4bb3e8b0c6b57e6b0a4c1f2d3e4f"   # 32 hexadecimal digits, the same everywhere
///
/// [tls]
/// ca = "/etc/bank/ca.pem"
/// cert = "/etc/bank/node.pem"
/// key = "/etc/bank/node.key"
///
/// [[peers]]
/// name = "b"
/// address = "10.0.0.2:7500"
///
/// [[seeds]]
/// name = "s1"
/// address = "10.0.0.3:7400"
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// The program, as the seed nodes know it.
    pub name: WorkloadName,
    /// Where its backups find this process when it is the primary.
    pub listen: SocketAddr,
    /// Who this process is: certificates as `outlive cert` makes them, one name for each process.
    pub identity: Identity,
    /// Who has a vote.
    pub seeds: Seeds,
    /// Where they are.
    pub seed_nodes: Vec<Node>,
    /// The other processes that run this program. This one may be among them.
    pub peers: Vec<Node>,
    /// Without a sign of life for this long the other side is taken for dead. A process that ends is noticed at once;
    /// this is for hosts that die and networks that are cut. The default, 500 ms, is several times what a busy
    /// machine makes a thread wait.
    pub detection: Duration,
    /// What is done without a backup.
    pub when_exposed: WhenExposed,
    /// How many backups hold a commit before it is acknowledged.
    pub wait_for: WaitFor,
    /// How many bytes may be on their way to a backup: 64 MiB unless said otherwise. Beyond that commits wait for a backup
    /// that is waited for, and one that is not is let go of.
    pub unacknowledged: usize,
    /// A backup that lives and is slower than this is let go of; `None`, the default, waits for it. It joins again.
    pub patience: Option<Duration>,
    /// Starts anew, from nothing, a program that is lost: the word of its operator that whoever held it in this
    /// generation is dead for good, and its backup as well.
    pub lost_generation: Option<u64>,
    /// Says in the log, while the program runs, which transactions stay open for longer than this: see
    /// [`doctor`](crate::doctor()). Off unless said otherwise.
    pub doctor: Option<Duration>,
}

/// The default of [`Config::detection`].
const DETECTION: Duration = Duration::from_millis(500);
/// The default of [`Config::unacknowledged`].
const UNACKNOWLEDGED: usize = 64 << 20;

/// A configuration that cannot be used.
///
/// ```
/// use outlive_replicated::{Config, ConfigError};
///
/// let error = Config::load(std::path::Path::new("/nowhere/bank.toml")).unwrap_err();
/// assert!(matches!(error, ConfigError::Read { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no configuration.
    #[error("{path} is not a configuration: {reason}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// Certificates that cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A name that cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Seed nodes that cannot be a cluster's.
    #[error(transparent)]
    Seeds(#[from] SeedsError),
    /// The cluster's number is none.
    #[error("`cluster` must be 32 hexadecimal digits, the same on every node: {0:?} is not")]
    Cluster(String),
    /// Nobody would be noticed to be dead.
    #[error("`detection_ms` must be 10 to 60,000: {0} is not")]
    Detection(u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    listen: SocketAddr,
    cluster: String,
    tls: Tls,
    seeds: Vec<Node>,
    #[serde(default)]
    peers: Vec<Node>,
    detection_ms: Option<u64>,
    #[serde(default)]
    when_exposed: WhenExposed,
    #[serde(default)]
    wait_for: WaitFor,
    unacknowledged: Option<usize>,
    patience_ms: Option<u64>,
    lost_generation: Option<u64>,
    doctor_ms: Option<u64>,
}

impl Config {
    /// One with the defaults of everything else.
    ///
    /// ```
    /// use outlive_replicated::{Config, Identity, Node};
    ///
    /// fn of_two(identity: Identity) -> Result<Config, Box<dyn std::error::Error>> {
    ///     let node = |name: &str, address: &str| -> Result<Node, std::net::AddrParseError> {
    ///         Ok(Node { name: name.into(), address: address.parse()? })
    ///     };
    ///     let seeds = vec![node("s1", "10.0.0.3:7400")?];
    ///     let peers = vec![node("b", "10.0.0.2:7500")?];
    ///     let cluster = "5d1f4bb3e8b0c6b57e6b0a4c1f2d3e4f".parse()?;
    ///     Ok(Config::new("bank", "10.0.0.1:7500".parse()?, identity, cluster, seeds, peers)?)
    /// }
    /// ```
    pub fn new(
        name: &str,
        listen: SocketAddr,
        identity: Identity,
        cluster: ClusterId,
        seed_nodes: Vec<Node>,
        peers: Vec<Node>,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            name: name.parse()?,
            listen,
            identity,
            seeds: seeds_of(cluster, &seed_nodes)?,
            seed_nodes,
            peers,
            detection: DETECTION,
            when_exposed: WhenExposed::Run,
            wait_for: WaitFor::All,
            unacknowledged: UNACKNOWLEDGED,
            patience: None,
            lost_generation: None,
            doctor: None,
        })
    }

    /// From a file.
    ///
    /// ```
    /// use outlive_replicated::Config;
    ///
    /// let error = Config::load(std::path::Path::new("/nowhere/bank.toml")).unwrap_err();
    /// assert_eq!(error.to_string(), "cannot read /nowhere/bank.toml");
    /// ```
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// From the text of a file, which `path` is the name of where something is wrong with it.
    ///
    /// ```
    /// use outlive_replicated::Config;
    ///
    /// let error = Config::parse("name = 7", std::path::Path::new("bank.toml")).unwrap_err();
    /// assert!(error.to_string().contains("bank.toml"));
    /// ```
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        let identity = Identity::load(&file.tls.ca, &file.tls.cert, &file.tls.key)?;
        let cluster = file.cluster.parse().map_err(|_| ConfigError::Cluster(file.cluster.clone()))?;
        let mut config = Self::new(&file.name, file.listen, identity, cluster, file.seeds, file.peers)?;
        if let Some(detection) = file.detection_ms {
            if !(10..=60_000).contains(&detection) {
                return Err(ConfigError::Detection(detection));
            }
            config.detection = Duration::from_millis(detection);
        }
        config.when_exposed = file.when_exposed;
        config.wait_for = file.wait_for;
        config.unacknowledged = file.unacknowledged.unwrap_or(UNACKNOWLEDGED);
        config.patience = file.patience_ms.map(Duration::from_millis);
        config.lost_generation = file.lost_generation;
        config.doctor = file.doctor_ms.map(Duration::from_millis);
        Ok(config)
    }

    pub(crate) fn peer(&self, name: &NodeName) -> Option<SocketAddr> {
        self.peers.iter().find(|peer| peer.name == name.as_str()).map(|peer| peer.address)
    }

    /// How often a sign of life is given: lost ones are allowed for.
    pub(crate) fn beat(&self) -> Duration {
        self.detection / 5
    }
}

/// The seed nodes of a cluster, by the names in its configuration.
pub(crate) fn seeds_of(cluster: ClusterId, nodes: &[Node]) -> Result<Seeds, ConfigError> {
    let names: Result<Vec<NodeName>, NameError> = nodes.iter().map(|node| node.name.parse()).collect();
    Ok(Seeds::new(cluster, SEEDS_VERSION, names?)?)
}

/// The first version of a cluster's seed nodes; they cannot be changed yet (crate `cluster`).
const SEEDS_VERSION: u64 = 1;
