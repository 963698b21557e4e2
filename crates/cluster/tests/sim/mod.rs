//! A simulated cluster around the real arbitration: seeded, deterministic, and faster than time.
//!
//! Real are [`Acceptor`], [`Proposer`], [`Learner`](outlive_cluster::Learner) and the register's rules. Simulated
//! are hosts with clocks that drift and disks that fail or vanish, a network that loses, repeats, reorders and cuts
//! one way, and on every host a supervisor that follows the commit protocol: epochs, acknowledgements, output
//! that is held until then, failover, re-protection, switchover, stop, and an operator who restarts what is lost.
//! [`Checker`](checker::Checker) sees all of it, and knows nothing of how any of it decides.

mod checker;
mod host;
mod supervisor;
mod world;

use std::time::Duration;

use outlive_cluster::{Holder, Incarnation, Limits, Register, Request, Response};

pub use checker::Counts;

/// A rule to break on purpose, to show that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A seed node forgets what it promised whenever it has answered.
    SeedForgetsPromises,
    /// A seed node that lost its disk is bootstrapped again instead of taught.
    WipedSeedVotes,
    /// Two proposers may use the same ballot.
    BallotsShared,
    /// A backup acknowledges after it asked for the next generation, without keeping what it acknowledges.
    BackupKeepsAcknowledging,
    /// A primary whose backup is gone speaks on without asking.
    SpeaksWithoutGrant,
    /// A primary does not plug its output before it adds a backup.
    AddsBackupUnplugged,
    /// A primary takes an unknown outcome for a failure, and speaks on.
    UnknownIsFailure,
    /// A primary settles an unknown outcome by asking one seed node.
    SettlesByOneSeed,
    /// A backup believes a notice of a switchover that is over.
    OldNoticeTaken,
    /// A node that finds the workload lost restarts it without being told.
    RestartsSilently,
}

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Climate {
    /// All of them; which how often depends on the seed.
    Mixed,
    /// Seed nodes are wiped again and again, faster than slow messages arrive, and everybody asks them all the time.
    Wiping,
    /// Primaries change by plan all the time, faster than slow messages arrive.
    Restless,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub seed: u64,
    pub seed_nodes: usize,
    pub broken: Option<Broken>,
    pub climate: Climate,
    /// Print what happens.
    pub trace: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    pub violation: Option<String>,
    pub counts: Counts,
}

pub fn run(config: Config) -> Report {
    world::World::new(config).run()
}

/// Microseconds, of the one true clock.
type Time = u64;

const MILLISECOND: Time = 1_000;
const SECOND: Time = 1_000 * MILLISECOND;

/// How often a supervisor looks around; an epoch each.
const TICK: Duration = Duration::from_millis(5);
/// Silence of this length counts as death: eight ticks.
const DETECTION: Duration = Duration::from_millis(40);
/// For every attempt, of the size of the delays here.
const LIMITS: Limits = Limits {
    deadline: Duration::from_millis(150),
    resend: Duration::from_millis(15),
    backoff: Duration::from_millis(3),
    backoff_most: Duration::from_millis(40),
    rounds: 32,
};

/// A state of the workload: which epochs it includes. An index into the checker's history.
type State = usize;

/// What goes over the simulated network.
#[derive(Clone, Debug)]
enum Message {
    Request(Request),
    Response(Response),
    Peer(Peer),
}

/// Between supervisors.
#[derive(Clone, Debug)]
enum Peer {
    /// A primary looks for a backup, and sends its full state.
    Invite {
        from: Holder,
        generation: u64,
        state: State,
    },
    /// Whoever was invited has committed that state, as this incarnation.
    Joined {
        to: Incarnation,
        backup: Holder,
        state: State,
    },
    /// An epoch; the last one repeated is a heartbeat.
    Checkpoint {
        from: Incarnation,
        to: Incarnation,
        state: State,
    },
    Acknowledged {
        from: Incarnation,
        to: Incarnation,
        state: State,
    },
    /// After a switchover: this is the register now.
    YouLead {
        to: Incarnation,
        register: Register,
    },
}
