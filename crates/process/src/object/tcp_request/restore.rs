//! Rebuilds connections that have no descriptor, on the backup.
//!
//! 1. [`Restorer::attach`], when the backup is set up: it takes tens of milliseconds, which a failover does not have.
//! 2. [`Restorer::restore`], once the listeners are restored and before any frame is let in; the frames that it returns
//!    for the workload are injected at once, in order; then [`Restoring::settle`].
//! 3. Once the address has been taken over, the frames that it returned for clients are sent. Until
//!    [`Restoring::is_done`], every incoming frame is shown to [`Restoring::observe_in`] first, and [`Restoring::tick`]
//!    is called when [`Restoring::next_tick`] says: for clients that had not answered their SYN-ACK, and for
//!    connections that the workload has no room for yet.
//! 4. [`Restoring::finish`], when there is time for it: detaching takes milliseconds too.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use crate::sys::bpf::{BpfError, IngressLink};

use super::program::{self, Missing, RequestMap, SYN_COOKIES};
use super::segment::{Build, Direction, FourTuple, Segment, TapFrame, least_mss};
use super::{PendingConnection, Progress, Timestamps};

/// The kernel's own schedule for repeating a SYN-ACK: after 1 s (`TCP_TIMEOUT_INIT`, include/net/tcp.h), doubling,
/// `tcp_synack_retries` (5) times.
const FIRST_REPEAT: Duration = Duration::from_secs(1);
const REPEATS: u32 = 5;
/// When data that the workload had no room for is injected again: after this, doubling.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The doubling of either ends here.
const LONGEST_INTERVAL: Duration = Duration::from_secs(32);
/// What timestamps take of a segment: 10 bytes and two of padding (RFC 7323, appendix A).
const TIMESTAMPS_LENGTH: u16 = 12;
/// How much data is injected at a time, if the first window is at least four times that. The workload's kernel charges
/// the receive buffer for whole allocations, so that data which once came in large frames (segmentation offload)
/// would not fit again in frames of the MTU: 114,600 bytes were acknowledged, and 94,120 of them fitted.
/// Against that, a frame that exceeds the window is refused.
const LARGE_SEGMENT: usize = 16 * 1024;
/// A client that is further than this from where the log saw it is not the same (RFC 7323, 2.3: the largest window).
const MAX_WINDOW: u32 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("could not read {SYN_COOKIES}")]
    ReadSynCookies(#[source] io::Error),
    #[error(
        "net.ipv4.tcp_syncookies is 0 in the workload's network namespace, so its kernel ignores rebuilt connections; \
         set it to 1"
    )]
    SynCookiesOff,
    #[error("the connection from {0} cannot be rebuilt: its addresses are of two families")]
    Inconsistent(FourTuple),
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// The program at the workload's interface, and its empty map.
#[derive(Debug)]
pub struct Restorer {
    map: RequestMap,
    /// Keeps the program attached.
    link: IngressLink,
}

impl Restorer {
    /// Loads the program for at most `max_connections`, and attaches it to interface `ifindex` of the network namespace
    /// *of the calling thread*. Until connections are restored it lets every frame pass.
    pub fn attach(ifindex: u32, max_connections: u32) -> Result<Self, RestoreError> {
        // The file shows the namespace of the thread that opens it.
        let syn_cookies = fs::read_to_string(SYN_COOKIES).map_err(RestoreError::ReadSynCookies)?;
        if syn_cookies.trim() == "0" {
            return Err(RestoreError::SynCookiesOff);
        }
        let (map, program) = program::load(max_connections)?;
        // The kernel waits for a grace period of RCU here (tcx_entry_sync, include/net/tcx.h), and when it detaches.
        let link = program.attach_ingress(ifindex)?;
        Ok(Self { map, link })
    }

    /// Makes the workload's kernel ready to take these connections in, which are in the order of a [`super::Snapshot`].
    /// From now on nothing of them reaches a listener but what the log says. Fails if there are more than
    /// `max_connections`.
    pub fn restore(
        self,
        now: Instant,
        connections: Vec<PendingConnection>,
    ) -> Result<(Restoring, Frames), RestoreError> {
        let Self { map, link } = self;
        let mut frames = Frames::default();
        let mut waiting = HashMap::with_capacity(connections.len());
        for connection in connections {
            let tuple = connection.tuple;
            map.insert(&program::key(&tuple), &program::value(&connection))?;
            match connection.progress {
                Progress::Completed { .. } => {
                    let of_client = frames_of_client(&connection).ok_or(RestoreError::Inconsistent(tuple))?;
                    frames.inject.extend(of_client);
                }
                Progress::SynReceived => frames.send.push(connection.syn_ack.clone()),
            }
            waiting.insert(tuple, Waiting::new(connection, now));
        }
        Ok((Restoring { map, _link: link, waiting }, frames))
    }
}

/// Frames to pass on now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frames {
    /// To the workload's TAP, in this order.
    pub inject: Vec<TapFrame>,
    /// To clients: Ethernet frames with complete checksums.
    pub send: Vec<Vec<u8>>,
}

/// A restore in progress: connections whose entries are still in the program's map.
#[derive(Debug)]
pub struct Restoring {
    map: RequestMap,
    _link: IngressLink,
    waiting: HashMap<FourTuple, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    connection: PendingConnection,
    repeated: u32,
    repeat_at: Instant,
    /// The client's answer has been seen since the last repetition.
    answered: bool,
}

impl Restoring {
    /// Checks what became of the injected frames; returns the connections that do not exist yet, or not with all their
    /// data, though their clients had completed them.
    ///
    /// A frame written to a TAP has been received when the write returns. What is not there then met a full accept
    /// queue or receive buffer, or has no listener. It is not given up: its frames are injected again, or, if nothing
    /// of it was acknowledged, its SYN-ACK is sent again, by [`Self::tick`].
    pub fn settle(&mut self) -> Result<Vec<FourTuple>, BpfError> {
        self.reap()?;
        let completed =
            |waiting: &&Waiting| matches!(waiting.connection.progress, Progress::Completed { .. });
        Ok(self.waiting.values().filter(completed).map(|waiting| waiting.connection.tuple).collect())
    }

    /// Must see every incoming frame before the workload does, until [`Self::is_done`]. What it returns for the
    /// workload goes before the frame.
    pub fn observe_in(&mut self, frame: &[u8]) -> Result<Frames, BpfError> {
        let mut frames = Frames::default();
        if self.waiting.is_empty() {
            return Ok(frames);
        }
        let Some(segment) = Segment::parse(frame) else { return Ok(frames) };
        let tuple = segment.tuple_inward();
        let Some(waiting) = self.waiting.get_mut(&tuple) else { return Ok(frames) };
        let connection = &waiting.connection;
        let tcp = &segment.tcp;
        let ahead = tcp.sequence_number().wrapping_sub(connection.client_next());
        let acknowledges = tcp.ack() && tcp.acknowledgment_number() == connection.server_isn.wrapping_add(1);
        if !segment.is_intact() {
            // The kernel discards it.
        } else if tcp.rst() {
            // Only the exact number resets (RFC 5961, 3.2).
            if ahead == connection.acknowledged {
                self.waiting.remove(&tuple);
                self.map.remove(&program::key(&tuple))?;
            }
        } else if tcp.syn() && !tcp.ack() {
            if tcp.sequence_number() == connection.client_isn {
                frames.send.push(connection.syn_ack.clone());
            } else {
                // The client has begun anew. As the kernel does with a request that a SYN does not fit: a client that
                // means it answers this with a reset, which frees the way (RFC 5961, 4.2).
                let challenge = frame_of(connection, Direction::ToClient, 0, &[], false);
                frames.send.extend(challenge.map(|frame| frame.ethernet));
            }
        } else if acknowledges && !waiting.answered && ahead <= MAX_WINDOW {
            waiting.answered = true;
            if ahead > 0 {
                // The segment that ended the handshake was lost with the old host, and perhaps data; the kernel must
                // take its numbers from the former. The latter will be sent again.
                waiting.connection.client_window = tcp.window_size();
                frames.inject.extend(frame_of(&waiting.connection, Direction::ToWorkload, 0, &[], false));
            }
        }
        Ok(frames)
    }

    /// Forgets connections that have been made or that have no client any more, and repeats what is due for the others.
    pub fn tick(&mut self, now: Instant) -> Result<Frames, BpfError> {
        self.reap()?;
        let mut frames = Frames::default();
        let mut silent = Vec::new();
        for (tuple, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| now >= waiting.repeat_at) {
            if waiting.connection.acknowledged > 0 {
                // The client will not send again what the old host has acknowledged, so the log does until there is
                // room for it. What the workload has already is discarded by its kernel.
                frames.inject.extend(frames_of_client(&waiting.connection).unwrap_or_default());
            } else if waiting.repeated < REPEATS {
                frames.send.push(waiting.connection.syn_ack.clone());
            } else {
                silent.push(*tuple);
            }
            waiting.repeat(now);
        }
        for tuple in silent {
            self.map.remove(&program::key(&tuple))?;
            self.waiting.remove(&tuple);
        }
        Ok(frames)
    }

    /// When [`Self::tick`] is due. Connections that come to exist in between are noticed no sooner.
    pub fn next_tick(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.repeat_at).min()
    }

    /// Whether nothing is waited for: frames need not be shown any more, and it can be finished at leisure.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Detaches the program, as dropping does. A client that is still waited for will be answered with a reset.
    pub fn finish(self) {}

    /// The program removes the entry of a connection that exists with all its data.
    fn reap(&mut self) -> Result<(), BpfError> {
        let mut made = Vec::new();
        for tuple in self.waiting.keys() {
            if self.map.get(&program::key(tuple))?.is_none() {
                made.push(*tuple);
            }
        }
        for tuple in made {
            self.waiting.remove(&tuple);
        }
        Ok(())
    }
}

impl Waiting {
    fn new(connection: PendingConnection, now: Instant) -> Self {
        let mut waiting = Self { connection, repeated: 0, repeat_at: now, answered: false };
        waiting.repeat_at = now + waiting.interval();
        waiting
    }

    fn repeat(&mut self, now: Instant) {
        self.repeated += 1;
        self.repeat_at = now + self.interval();
        self.answered = false;
    }

    fn interval(&self) -> Duration {
        let first = if self.connection.acknowledged > 0 { FIRST_RETRY } else { FIRST_REPEAT };
        (first * 2_u32.saturating_pow(self.repeated.min(16))).min(LONGEST_INTERVAL)
    }
}

/// Everything that a client whose handshake was complete has sent since, then an ACK.
fn frames_of_client(connection: &PendingConnection) -> Option<Vec<TapFrame>> {
    let to = Direction::ToWorkload;
    let mut frames = vec![frame_of(connection, to, 0, &[], false)?];
    let size =
        usize::from(connection.server_window / 4).min(LARGE_SEGMENT).max(segment_size(connection).into());
    let mut offset = 0;
    for data in connection.data.chunks(size) {
        frames.push(frame_of(connection, to, offset, data, false)?);
        offset += data.len() as u32;
    }
    if connection.finished {
        frames.push(frame_of(connection, to, offset, &[], true)?);
        offset += 1;
    }
    frames.push(frame_of(connection, to, offset, &[], false)?);
    Some(frames)
}

/// A segment `offset` numbers into the client's stream (or, to the client, an acknowledgment of its SYN).
fn frame_of(
    connection: &PendingConnection,
    direction: Direction,
    offset: u32,
    payload: &[u8],
    fin: bool,
) -> Option<TapFrame> {
    let (client, server) = (connection.client_next(), connection.server_isn.wrapping_add(1));
    let (sequence, acknowledgment, window, timestamps) = match direction {
        Direction::ToWorkload => {
            (client.wrapping_add(offset), server, connection.client_window, connection.timestamps)
        }
        Direction::ToClient => (server, client, 0, connection.timestamps),
    };
    let timestamps = timestamps.map(|Timestamps { client, server }| match direction {
        Direction::ToWorkload => (client, server),
        Direction::ToClient => (server, client),
    });
    let (tuple, path) = (&connection.tuple, &connection.path);
    let segment_size = segment_size(connection);
    Build { tuple, path, direction, sequence, acknowledgment, window, timestamps, fin, payload, segment_size }
        .frame()
}

/// What a segment of the client holds.
fn segment_size(connection: &PendingConnection) -> u16 {
    let mss = connection.server_mss.max(least_mss(connection.tuple.server));
    mss - if connection.timestamps.is_some() { TIMESTAMPS_LENGTH } else { 0 }
}
