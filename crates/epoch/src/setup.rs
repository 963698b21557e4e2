//! What a supervisor is told when it is started: the workload, the node it is on, and which side it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outlive_net::{NetworkConfig, Uplink};
use outlive_process::launch::Program;
use serde::{Deserialize, Serialize};

/// What a workload does while it has no backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenExposed {
    /// Go on, unprotected, once the seed nodes have granted it.
    #[default]
    Run,
    /// Keep its output until there is a backup again.
    Wait,
}

/// A workload as its operator described it; the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub program: Program,
    pub network: NetworkConfig,
    pub when_exposed: WhenExposed,
    /// The node that should hold the backup; any peer if none is named.
    pub backup: Option<String>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub address: SocketAddr,
}

/// The node a supervisor runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Where this node's agent listens; supervisors listen on the same address with ports of their own.
    pub listen: SocketAddr,
    /// What workloads reach the network through.
    pub uplink: Uplink,
    /// `<state>/workloads/<name>/` is the supervisor's: log of output, control socket, its own log.
    pub state: PathBuf,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub peers: Vec<Peer>,
    /// The nodes with a vote in arbitration, as they were bootstrapped; this node may be one of them.
    pub seeds: outlive_cluster::Seeds,
    pub tuning: Tuning,
}

/// The engine's adjustable figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Without a sign of life for this long, the other side is taken for dead.
    pub detection: Duration,
    /// Share of time, in thousandths, that the workload may be stopped for checkpoints.
    pub max_pause_permille: u32,
    /// Longest time between two checkpoints while anything changes.
    pub longest_epoch: Duration,
    /// Most bytes of one epoch, and of epochs received and not yet applied.
    pub epoch_limit: usize,
    /// Bytes of the workload's standard output and error kept on each node.
    pub log_limit: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            detection: Duration::from_millis(100),
            max_pause_permille: 250,
            longest_epoch: Duration::from_millis(500),
            epoch_limit: 1 << 30,
            log_limit: 64 << 20,
        }
    }
}

/// The incarnations that had a workload which is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub generation: u64,
    pub primary: outlive_cluster::Incarnation,
    pub backup: Option<outlive_cluster::Incarnation>,
}

/// Which side a supervisor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Starts the workload.
    Primary,
    /// Starts a workload anew whose copies are lost, as somebody vouches.
    Restart(Lost),
    /// Waits for the named primary node to connect, and holds its state.
    Backup { primary: String },
}

/// All of it, as JSON on the supervisor's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub workload: Workload,
    pub node: Node,
    pub role: Role,
    /// The command that becomes the workload's launcher (`outlive_process::launch::launcher_main`).
    pub launcher: Vec<String>,
}

impl Setup {
    /// Where this workload's files are on this node.
    pub fn directory(&self) -> PathBuf {
        self.node.state.join("workloads").join(&self.workload.name)
    }

    pub fn control_socket(&self) -> PathBuf {
        self.directory().join("supervisor.sock")
    }
}

/// The single line of JSON a supervisor prints on standard output when it is up, or when it cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Started {
    /// A backup says where its primary is to connect.
    Ready {
        listen: Option<SocketAddr>,
    },
    Failed {
        reason: String,
    },
}
