//! Arbitration: who may speak for a workload.
//!
//! One register per workload holds the generation, the primary and its synced backups. It changes only by
//! compare-and-swap of the whole value, agreed by a majority of seed nodes with CASPaxos, which has no leader:
//! losing the primary's host never means waiting for an election first. Why this and not a log of a consensus
//! group is in `docs/decisions/0002-arbitration-by-caspaxos.md`.
//!
//! Everything here is *sans-I/O*: state machines that take messages with a time and return what to send. The same
//! code runs under an agent, under the simulator in `tests/` and under the model checker in `model.rs`.
//!
//! The way of one change: [`Transition`] says what is asked, [`Register::apply`] whether it may be had, a
//! [`Proposer`] carries it to every seed node, an [`Acceptor`] at each persists its vote before it answers, and
//! [`Outcome`] says how it ended. A seed node that lost its disk asks the others back into the vote with a
//! [`Learner`].
//!
//! Not here yet: changing the set of seed nodes. [`Seeds::version`] and [`Register::seeds_version`] are carried and
//! checked, so that a cluster made today can change its seeds later.

mod acceptor;
mod id;
mod learner;
mod message;
#[cfg(test)]
mod model;
mod name;
mod proposer;
mod register;
mod round;
mod seeds;
mod store;
mod tally;

pub use acceptor::{Acceptor, MembershipError, Standing};
pub use id::{Attempt, ClusterId, IdError, Incarnation};
pub use learner::{Learner, Lesson};
pub use message::{
    Accepted, Answer, Ask, Ballot, Declined, Life, MAX_MESSAGE_BYTES, Request, Response, Slot, Voter,
    WireError,
};
pub use name::{MAX_NAME_BYTES, NameError, NodeName, WorkloadName};
pub use proposer::{Action, Limits, NoMajority, Outcome, Proposer, Silence};
pub use register::{
    Backup, Holder, Holding, Lacks, MAX_BACKUPS, Orphaned, Refused, Register, Transition, Why,
};
pub use seeds::{MAX_SEEDS, Seeds, SeedsError};
pub use store::{Disk, Identity, MemoryStorage, Record, RedbStorage, Storage, StoreError};
