//! What can go wrong with a TCP socket, and what is refused by name.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempt} of a TCP socket: {source}")]
    System { attempt: &'static str, source: io::Error },
    #[error("a TCP socket uses {0}, which cannot be protected: {advice}", advice = .0.advice())]
    Refused(Refused),
    #[error(
        "a TCP socket changed while it was captured: its process was not stopped, or the network's input \
         was not closed; capture it again"
    )]
    Changed,
    #[error(
        "the connection from {local} to {remote} is not in the network namespace of the capturing thread, or has just \
         ended; enter the workload's namespace first"
    )]
    Elsewhere { local: SocketAddr, remote: SocketAddr },
    #[error(
        "the peer acknowledges {ack} of a connection whose checkpoint ends at {end}: it has seen output of a later \
         state; the connection can only be reset"
    )]
    PeerAhead { ack: u32, end: u32 },
    #[error(
        "the segments to inject did not bring a TCP socket to {expected:?} (it is in state {found}); inject them first"
    )]
    NotInjected { expected: super::Stage, found: u8 },
    #[error("the checkpoint of a TCP socket is malformed: {0}")]
    Malformed(&'static str),
    #[error(
        "the send queue of a TCP socket took {taken} of {length} bytes; raise net.ipv4.tcp_mem on this host"
    )]
    QueueFull { taken: usize, length: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted when the system said no.
pub(super) trait Attempt<T> {
    fn attempt(self, attempt: &'static str) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn attempt(self, attempt: &'static str) -> Result<T> {
        self.map_err(|source| Error::System { attempt, source })
    }
}

impl<T> Attempt<T> for nix::Result<T> {
    fn attempt(self, attempt: &'static str) -> Result<T> {
        self.map_err(|errno| Error::System { attempt, source: errno.into() })
    }
}

/// What a TCP socket can have that cannot be rebuilt (R3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a protocol other than TCP")]
    NotTcp,
    #[error("Multipath TCP")]
    Multipath,
    #[error("an upper layer protocol such as kernel TLS")]
    UpperLayer,
    #[error("MD5 signatures")]
    Md5,
    #[error("TCP Fast Open")]
    FastOpen,
    #[error("a half-open connection with a descriptor (a simultaneous open)")]
    HalfOpen,
    #[error("urgent data")]
    Urgent,
    #[error("explicit congestion notification")]
    Ecn,
    #[error("zero-copy sending")]
    ZeroCopy,
    #[error("SO_TIMESTAMPING")]
    Timestamping,
    #[error("SO_TXTIME")]
    TransmitTime,
    #[error("an error queue that is not empty, or an error on a live connection (IP_RECVERR)")]
    ErrorQueue,
    #[error("TCP_SAVE_SYN")]
    SaveSyn,
    #[error("a socket filter that is not classic BPF")]
    Filter,
    #[error("IP options or extension headers")]
    IpOptions,
}

impl Refused {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotTcp => "it is an object of another kind",
            Self::Multipath => {
                "set net.mptcp.enabled=0 in the workload's namespace, so that programs fall back to TCP"
            }
            Self::UpperLayer => "turn kernel TLS off in the program, so that it encrypts by itself",
            Self::Md5 => "what is sent at a takeover is not signed; run the peering without TCP_MD5SIG",
            Self::FastOpen => "set net.ipv4.tcp_fastopen=0 in the workload's namespace before it starts",
            Self::HalfOpen => "it passes by itself within the handshake; capture again",
            Self::Urgent => "it passes once the program has read it; capture again",
            Self::Ecn => "set net.ipv4.tcp_ecn=0 in the workload's namespace before it starts",
            Self::ZeroCopy => "turn MSG_ZEROCOPY off in the program; its completions cannot be rebuilt",
            Self::Timestamping => "turn packet timestamps off in the program; their queue cannot be rebuilt",
            Self::TransmitTime => "turn SO_TXTIME off in the program",
            Self::ErrorQueue => "it passes once the program has read it; capture again",
            Self::SaveSyn => "turn TCP_SAVE_SYN off in the program",
            Self::Filter => "a filter cannot be read back; detach it",
            Self::IpOptions => "turn the options off in the program",
        }
    }
}
