//! TCP connections that have no descriptor yet: in the handshake, or established and waiting to be accepted.
//!
//! Nothing can be asked of them (a request socket has no descriptor, and an unaccepted one none either), so nothing
//! is captured from the kernel. The [`RequestTracker`] knows them from the frames that pass the TAP, and a
//! [`Restorer`] rebuilds them on the backup: a BPF program at the ingress of the workload's interface recognises the
//! last segment of a handshake by its addresses and hands the kernel what was agreed in it, as if the kernel had
//! recovered it from a SYN cookie. The listener's own code then makes the connection and queues it for `accept`.

mod program;
mod restore;
mod segment;
mod tracker;

use serde::{Deserialize, Serialize};

pub use program::{Missing, supported};
pub use restore::{Frames, RestoreError, Restorer, Restoring};
pub use segment::{FourTuple, Path, TapFrame};
pub use tracker::{Bounds, Refused, RequestTracker, Snapshot, Verdict, Why};

/// A connection that a client has opened to the workload and the workload has not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingConnection {
    pub tuple: FourTuple,
    pub path: Path,
    /// The sequence number of the client's SYN.
    pub client_isn: u32,
    /// The sequence number of the SYN-ACK.
    pub server_isn: u32,
    pub client_mss: u16,
    pub server_mss: u16,
    /// The window that the SYN-ACK offered, which is never scaled.
    pub server_window: u16,
    /// If agreed.
    pub window_scale: Option<WindowScale>,
    pub sack: bool,
    pub ecn: bool,
    /// If agreed: the latest values of both sides.
    pub timestamps: Option<Timestamps>,
    /// The window field of the client's last segment, not scaled.
    pub client_window: u16,
    pub progress: Progress,
    /// What the client has sent, in order from its first byte, as far as it passed without a gap.
    pub data: Vec<u8>,
    /// How many sequence numbers after the SYN the workload's kernel has acknowledged: the client will not send them
    /// again. Data counts one a byte, the FIN one.
    pub acknowledged: u32,
    /// The client's FIN follows `data`.
    pub finished: bool,
    /// The last SYN-ACK, an Ethernet frame with complete checksums.
    pub syn_ack: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowScale {
    pub client: u8,
    pub server: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamps {
    pub client: u32,
    pub server: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// The SYN-ACK was sent; the client has not answered.
    SynReceived,
    /// The client has answered the SYN-ACK, as the `order`th client to do so.
    Completed { order: u64 },
}

impl PendingConnection {
    /// The sequence number of the client's first byte.
    fn client_next(&self) -> u32 {
        self.client_isn.wrapping_add(1)
    }

    /// Sequence numbers that passed in order after the SYN.
    fn received(&self) -> u32 {
        self.data.len() as u32 + u32::from(self.finished)
    }

    /// Restoring in this order gives each connection the place in the accept queue that it is owed.
    ///
    /// The kernel drops the end of a handshake that meets a full queue, and the frames do not show it. What it has
    /// acknowledged data of was queued for certain, so that goes first; the rest can be completed later from the
    /// client's side, since the kernel acknowledged nothing of it.
    fn restore_order(&self) -> (bool, u64, FourTuple) {
        let order = match self.progress {
            Progress::Completed { order } => order,
            Progress::SynReceived => u64::MAX,
        };
        (self.acknowledged == 0, order, self.tuple)
    }
}
