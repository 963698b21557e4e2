//! The engine that joins processes, network and stream: the primary's side and the backup's side of level `epoch`.

pub mod arbiter;
pub mod control;
pub mod error;
pub mod message;
pub mod output;
pub mod pace;
pub mod peer;
pub mod setup;
