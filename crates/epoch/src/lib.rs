//! The engine that joins processes, network and stream: the primary's side and the backup's side of level `epoch`.
//!
//! [`supervisor::run`] is one workload's supervisor on one node. The way of an epoch: [`primary`] takes it, [`link`] sends
//! it, [`backup`] holds, acknowledges and applies it; [`takeover`] is what happens when the primary is gone.

pub mod arbiter;
pub mod backup;
pub mod control;
pub mod engine;
pub mod error;
pub mod events;
pub mod link;
pub mod message;
pub mod output;
pub mod pace;
pub mod peer;
pub mod primary;
pub mod protector;
pub mod pulse;
pub mod requests;
pub mod setup;
pub mod supervisor;
pub mod takeover;
mod waiting;
