//! How two nodes talk: an authenticated connection, frames over it, and on the frames either epochs or calls.
//!
//! Read from the bottom up:
//!
//! | module | concern |
//! |---|---|
//! | [`certificate`] | the cluster's authority, and the certificates it gives to nodes |
//! | [`tls`] | who is at the other end: mutual TLS 1.3, nothing else |
//! | [`connection`] | bytes, both directions at once, from two threads, without a third |
//! | [`hello`] | what both ends speak and what for |
//! | [`frame`] | whole, verified, ordered messages |
//! | [`compact`] | the same with fewer bytes, for many small ones |
//! | [`epoch`], [`epoch_writer`], [`epoch_reader`] | one epoch arrives whole and verified, or not at all |
//! | [`rpc`] | a question and its answer |
//!
//! Invariant: nothing here knows what the bytes mean (no process, no page, no cluster state).
//! Invariant: what came off the wire reaches the caller complete and verified, or as a typed error.
//! Everything is blocking, on the caller's threads: a replication stream's latency is the time for which
//! clients' output is held back, and every hand-over to another thread would add to it.

pub mod certificate;
pub mod compact;
mod compression;
pub mod connection;
pub mod epoch;
pub mod epoch_reader;
pub mod epoch_writer;
pub mod frame;
pub mod hello;
mod portions;
pub mod rpc;
pub mod tls;
mod tls_refusal;
mod wire;

#[cfg(test)]
mod testing;

pub use compression::Compression;
