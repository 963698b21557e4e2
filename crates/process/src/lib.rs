//! Launch in namespaces, freeze, capture and restore a process tree.
//!
//! This crate knows nothing of the network between nodes: it turns a running tree into [`checkpoint::Checkpoint`]s
//! and checkpoints into a [`shell::Shell`] that can be brought to life.

mod acting;
pub mod activate;
mod calls;
pub mod capture;
pub mod checkpoint;
pub mod delta;
pub mod descriptors;
pub mod error;
pub mod inspect;
mod job;
pub mod launch;
pub mod object;
mod pool;
pub mod refusals;
mod routing;
pub mod shared;
mod sharing;
pub mod shell;
pub mod sockets;
pub mod space;
mod standing_in;
mod strayed;
pub mod survey;
pub mod sys;
mod terminals;
pub mod tree;

pub use error::{Error, Result};
