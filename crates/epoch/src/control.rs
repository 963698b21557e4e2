//! What an agent asks the supervisors of its node, over a socket in the workload's directory: a line of JSON each way.

use std::ops::Range;

use outlive_process::tree::{Change, Errand, Whereabouts};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    Status,
    /// Ends the workload everywhere, and its register with it.
    Stop,
    Kill {
        signal: i32,
    },
    /// Begins to hand over to the backup, or to this node. How it goes is in the status.
    Switchover {
        to: Option<String>,
    },
    /// Calls that a process (as this host numbers them) makes for whoever patches it.
    Errands {
        pid: i32,
        errands: Vec<Errand>,
    },
    /// A byte to be stored in a process's memory in a moment in which none of its threads is in the code to be avoided, for whoever
    /// patches it; tried once, if its mark is there by then. Without a byte it is only looked whether this is such a moment.
    Store {
        pid: i32,
        avoided: Vec<Range<u64>>,
        change: Option<Change>,
    },
    /// To a synced backup: takes over now, whether its primary lives or not.
    Failover,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Status(Box<Status>),
    Done,
    /// What each call of the errands returned, and how long the workload was stopped, in microseconds.
    Returned {
        results: Vec<i64>,
        held_us: u64,
    },
    /// It was stored, or these threads were in the way. The workload was stopped for so long, in microseconds.
    Stored {
        in_the_way: Vec<Whereabouts>,
        held_us: u64,
    },
    Failed {
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// With a synced backup.
    Protected,
    /// Copying to a backup for the first time.
    Syncing,
    /// Running without a backup.
    Exposed,
    /// Waiting: for a majority of seed nodes, or (policy) for a backup.
    Waiting,
    /// Its only copy died.
    Lost,
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Primary,
    Backup,
}

/// How the last change of primary went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Failover {
    /// From the last sign of life to the decision.
    pub detect_ms: f64,
    /// Until the next generation was granted.
    pub arbitrate_ms: f64,
    /// Until the workload ran.
    pub activate_ms: f64,
}

/// Smallest, mean, 99th percentile and largest of a series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub min: f64,
    pub mean: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub state: State,
    pub role: Side,
    pub generation: u64,
    /// Last committed.
    pub epoch: u64,
    pub primary_node: Option<String>,
    pub backup_node: Option<String>,
    pub incarnation: String,
    pub addresses: Vec<String>,
    /// Epochs captured and not yet committed.
    pub lag_epochs: u64,
    /// Over the last thousand checkpoints.
    pub pause_us: Spread,
    pub dirty_pages: Spread,
    /// From the end of a checkpoint's pause to its commit.
    pub commit_us: Spread,
    pub held_frames: u64,
    pub held_bytes: u64,
    /// Why the workload has no backup, if it has none.
    pub exposed_because: Option<String>,
    /// The node that an operator moves the workload to now.
    pub moving: Option<String>,
    /// Why the last move that was ordered did not come about.
    pub move_failed: Option<String>,
    pub last_failover: Option<Failover>,
    /// How long the last first copy took, from the start of the copy to protected.
    pub reprotect_ms: Option<f64>,
    /// Host process ids: of the supervisor and of the workload's init.
    pub supervisor_pid: u32,
    pub init_pid: u32,
}
