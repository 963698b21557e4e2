//! Launch in namespaces, freeze, capture and restore a process tree.
//!
//! This crate knows nothing of the network between nodes: it turns a running tree into [`checkpoint::Checkpoint`]s
//! and checkpoints into a [`shell::Shell`] that can be brought to life.

pub mod object;
pub mod sys;
