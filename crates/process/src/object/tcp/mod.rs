//! TCP sockets: listening, connecting, connected in every state, dead but not yet closed.
//!
//! A socket is captured from a descriptor in this process (a duplicate of the workload's) by a thread in the workload's
//! network namespace, while the workload is stopped and the network's input is closed, and rebuilt by `TCP_REPAIR` in
//! another namespace that has the same addresses. Restoring has two phases:
//!
//! 1. [`Builder::restore`] builds a socket *silently*: in repair, no frame leaves. [`Restored::inject`] are segments
//!    "from the peer" (its FIN, its last acknowledgement) that only the network can deliver. Inject them when all
//!    sockets exist, by an [`Injector`] or through the workload's device.
//! 2. [`Restored::go_live`] leaves repair; what the peer lacks goes out. It may return further segments to inject.
//!
//! Listeners come first: their ports may not be shared with connections that exist already.
//!
//! Not kept, because the protocol replaces it: segments received out of order (the peer sends them again, also those
//! it knows to be selectively acknowledged: RFC 2018 section 8 lets a receiver renege), round-trip time, congestion
//! window, and the peer's last timestamp (the first segment brings it).
//!
//! What cannot be seen from outside, and must be noticed when it is called: `send` with `MSG_OOB` (an urgent byte in the send
//! queue looks like any other; captured like that it would reach the peer as ordinary data), and what
//! [`options`] names.

mod capture;
mod diag;
mod error;
mod framed;
mod options;
mod restore;
mod segment;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

pub use capture::{Captured, Capturer, Clock};
pub use error::{Error, Refused, Result};
pub use framed::Framed;
pub use options::{Family, Options};
pub use restore::{Builder, PeerAck, Restored};
pub use segment::{Injector, RawSegment, peer_ack, probe};

use crate::sys::tcp_repair::{self as sys, RepairWindow};
use error::Attempt;

/// Numbers of the states (`include/net/tcp_states.h`).
pub(crate) mod state_number {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// What `net.*` has to be in a workload's namespace before it starts, so that programs fall back from what cannot be
/// rebuilt instead of being refused (R3). The congestion control should be one that does not pace by timer (not BBR; a
/// namespace may choose among the host's `tcp_allowed_congestion_control`): see [`Captured::unframed`].
pub const NAMESPACE_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.tcp_ecn", "0"),
    ("net.ipv4.tcp_fastopen", "0"),
    ("net.mptcp.enabled", "0"),
    // Always built in, and always allowed.
    ("net.ipv4.tcp_congestion_control", "reno"),
];

/// A TCP socket in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSocket {
    pub options: Options,
    pub buffers: Buffers,
    /// As `getsockname` says; unspecified with port 0 if the socket was never bound.
    pub local: SocketAddr,
    pub state: State,
}

/// Buffer sizes, which the kernel adapts unless the program has set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// As `getsockopt` says: twice what a program sets.
    pub send: u32,
    pub receive: u32,
    /// `TCP_WINDOW_CLAMP`.
    pub window_clamp: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Not connected: fresh, or bound.
    Idle {
        max_segment: Option<u32>,
    },
    Listening {
        max_segment: Option<u32>,
        backlog: u32,
        /// Connections waiting for `accept`, which have no descriptor and are not part of this.
        waiting: u32,
    },
    Connecting(Connecting),
    Connected(Box<Connection>),
    /// Was connected, and is at its end in both directions. What was received can still be read.
    Dead {
        receive: Vec<u8>,
        /// The program has not yet been told of an error. Which error cannot be read without taking it from the program;
        /// the restored socket reports ECONNRESET.
        error_pending: bool,
    },
}

/// SYN_SENT: the handshake is done again, with the same initial sequence number, so that a SYN-ACK on its way still
/// fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connecting {
    pub remote: SocketAddr,
    pub initial_seq: u32,
    /// Timestamp of our first SYN, within some milliseconds. Whoever has seen the frame knows it exactly and may put it
    /// here: a SYN-ACK that echoes a timestamp before this one is answered by a reset, and connecting then takes a second
    /// longer.
    pub syn_timestamp: Option<u32>,
}

/// Where a connection is, by who has sent a FIN and who has acknowledged it (RFC 9293 section 3.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
}

impl Stage {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            state_number::ESTABLISHED => Self::Established,
            state_number::FIN_WAIT1 => Self::FinWait1,
            state_number::FIN_WAIT2 => Self::FinWait2,
            state_number::CLOSE_WAIT => Self::CloseWait,
            state_number::CLOSING => Self::Closing,
            state_number::LAST_ACK => Self::LastAck,
            _ => return None,
        })
    }

    /// We have sent a FIN, or it is queued.
    pub fn own_fin(self) -> bool {
        !matches!(self, Self::Established | Self::CloseWait)
    }

    /// The peer has sent a FIN, and all before it is received.
    pub fn peer_fin(self) -> bool {
        matches!(self, Self::CloseWait | Self::Closing | Self::LastAck)
    }
}

/// A connection that both sides know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub stage: Stage,
    pub remote: SocketAddr,
    /// First sequence number the peer has not acknowledged; `send` begins there.
    pub snd_una: u32,
    /// First sequence number not yet sent.
    pub snd_nxt: u32,
    /// Unacknowledged and unsent bytes. A FIN in the queue follows them.
    #[serde(with = "serde_bytes")]
    pub send: Vec<u8>,
    /// Next sequence number expected of the peer; its FIN is counted.
    pub rcv_nxt: u32,
    /// Bytes received and not yet read.
    #[serde(with = "serde_bytes")]
    pub receive: Vec<u8>,
    pub window: RepairWindow,
    /// What the receive window may grow to at once.
    pub rcv_ssthresh: u32,
    pub max_segment: u32,
    /// Of the peer and of ourselves.
    pub window_scales: Option<(u8, u8)>,
    pub sack: bool,
    /// Our timestamp clock at the time of the capture, if timestamps were agreed on.
    pub timestamp: Option<u32>,
    /// The program has shut down reading (a peer's FIN not needed for it).
    pub read_shut: bool,
    /// The program prefers quick acknowledgements, or the kernel has found it does.
    pub quick_ack: bool,
}

impl Connection {
    /// One past the last sequence number written, our FIN included.
    pub fn write_seq(&self) -> u32 {
        let fin = u32::from(self.own_fin_unacknowledged());
        self.snd_una.wrapping_add(self.send.len() as u32).wrapping_add(fin)
    }

    /// The window that we have promised the peer, as in a header: scaled.
    pub fn advertised_window(&self) -> u16 {
        let edge = self.window.rcv_wup.wrapping_add(self.window.rcv_wnd);
        let room = if before(edge, self.rcv_nxt) { 0 } else { edge.wrapping_sub(self.rcv_nxt) };
        let scale = self.window_scales.map_or(0, |(_, own)| own.min(14));
        u16::try_from(room >> scale).unwrap_or(u16::MAX)
    }

    fn own_fin_unacknowledged(&self) -> bool {
        self.stage.own_fin() && self.stage != Stage::FinWait2
    }
}

/// What tells that a socket may have changed; see [`fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    state: u8,
    conditions: i16,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    unread: u32,
    unsent: u32,
    snd_wnd: u32,
    backlog: u32,
    waiting: u32,
}

/// The cheap test for change: three system calls, no repair, no effect.
///
/// Equal fingerprints of one socket mean equal queues and sequence numbers, because each of them is a function of the
/// fingerprint and of constants of the connection:
///
/// - `snd_una` moves only in `tcp_snd_una_update`, which adds the same to `bytes_acked` (64 bits: no wrap);
/// - `rcv_nxt` moves only in `tcp_rcv_nxt_update`, which adds the same to `bytes_received`, FIN included;
/// - `snd_nxt` moves only when a segment is sent, which is counted in `segs_out` (or when a captured socket's is marked
///   as sent, which is subtracted from `tcpi_notsent_bytes`); `write_seq` is `snd_nxt` + `tcpi_notsent_bytes`;
/// - `copied_seq`, what the program has read, is `rcv_nxt` − SIOCINQ: a plain `read`, which sends no frame and changes
///   nothing in TCP_INFO, is seen there. (Reading the end of the stream moves it over the FIN unseen; a restored socket
///   then just says "end" again, as this one does.)
///
/// Bytes at a sequence number never change once queued (except pages given by `sendfile`, whose first captured content is
/// as good as any), so queues are equal when their bounds are. The windows change only by a segment in or out, both of
/// which are counted (`segs_in`, `segs_out`: 2^32 segments between two looks do not happen). What has no segment and
/// no number (an error taken by the program, `shutdown(SHUT_RD)`, urgent data read) shows in the conditions of `poll`.
/// Options are not covered: `setsockopt` has to be noticed. Nor are buffer sizes, which the kernel adapts.
///
/// The reverse does not hold: a duplicate acknowledgement changes the fingerprint and nothing else.
pub fn fingerprint(fd: BorrowedFd<'_>) -> Result<Fingerprint> {
    let info = sys::info(fd).attempt("read TCP_INFO")?;
    let listening = info.state == state_number::LISTEN;
    Ok(Fingerprint {
        state: info.state,
        conditions: sys::conditions(fd, 0).attempt("poll")?,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        segs_out: info.segs_out,
        segs_in: info.segs_in,
        // A listener has no queues (`tcp_ioctl`: EINVAL).
        unread: if listening { 0 } else { sys::unread(fd).attempt("read SIOCINQ")? },
        unsent: info.notsent_bytes,
        snd_wnd: info.snd_wnd,
        backlog: if listening { info.sacked } else { 0 },
        waiting: if listening { info.unacked } else { 0 },
    })
}

/// Comparison of sequence numbers modulo 2^32 (`before` in `include/net/tcp.h`).
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
