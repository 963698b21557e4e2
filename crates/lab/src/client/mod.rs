//! Clients that verify what they are told, run in a host's network and share their statistics.
//!
//! A client's sockets belong to the network namespace in which they were made, so one [`NetNs`] is all that it takes
//! to put a client on a host; without one it runs where the process is.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::NetNs;

pub mod bulk;
pub mod counter;
pub mod fetch;
pub mod latency;
pub mod opener;
pub mod redis;
pub mod stats;
pub mod workers;

/// A connection attempt that takes longer has failed: three tries of the kernel, at 0, 1 and 3 s, fit in.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How a client's work failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {to}")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("the connection to {to} was dropped after {after} bytes")]
    Dropped { to: SocketAddr, after: u64, source: io::Error },
    #[error("{to} told something wrong: {what}")]
    Wrong { to: SocketAddr, what: String },
}

/// Connects from a network namespace, or from where the process is.
pub fn connect(from: Option<&NetNs>, to: SocketAddr) -> Result<TcpStream, ClientError> {
    let attempt = || {
        let stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match from {
        Some(namespace) => namespace.run(attempt),
        None => attempt(),
    }
    .map_err(|source| ClientError::Connect { to, source })
}
