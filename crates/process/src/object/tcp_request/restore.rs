//! Rebuilds connections that have no descriptor, on the backup.
//!
//! 1. [`Restorer::attach`], when the backup is set up: it takes tens of milliseconds, which a failover does not have.
//! 2. [`Restorer::restore`], once the listeners are restored and before any frame is let in.
//! 3. [`Restoring::frames_to_inject`] into the workload's TAP, in order; then [`Restoring::settle`].
//! 4. Once the address has been taken over: [`Restoring::frames_to_send`] outward; every incoming frame shown to
//!    [`Restoring::observe_in`] first, and [`Restoring::tick`] when [`Restoring::next_tick`] says, until
//!    [`Restoring::is_done`]. Only clients that had not answered their SYN-ACK are waited for.
//! 5. [`Restoring::finish`], when there is time for it: detaching takes milliseconds too.

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
    /// From now on nothing of them reaches a listener but what the log says.
    pub fn restore(self, now: Instant, connections: &[PendingConnection]) -> Result<Restoring, RestoreError> {
        let mut restoring = Restoring {
            map: self.map,
            _link: self.link,
            inject: Vec::new(),
            send: Vec::new(),
            completed: Vec::new(),
            waiting: HashMap::new(),
        };
        for connection in connections {
            restoring.map.insert(&program::key(&connection.tuple), &program::value(connection))?;
            match connection.progress {
                Progress::Completed { .. } => {
                    let frames = frames_of_client(connection);
                    restoring.inject.extend(frames.ok_or(RestoreError::Inconsistent(connection.tuple))?);
                    restoring.completed.push(Waiting::new(connection, now));
                }
                Progress::SynReceived => restoring.wait_for(Waiting::new(connection, now)),
            }
        }
        Ok(restoring)
    }
}

/// What to do with an incoming frame, beside giving it to the workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Give this frame to the workload's TAP first.
    pub inject_before: Option<TapFrame>,
    /// Send this Ethernet frame out; its checksums are complete.
    pub send: Option<Vec<u8>>,
}

/// A restore in progress.
#[derive(Debug)]
pub struct Restoring {
    map: RequestMap,
    _link: IngressLink,
    inject: Vec<TapFrame>,
    send: Vec<Vec<u8>>,
    completed: Vec<Waiting>,
    waiting: HashMap<FourTuple, Waiting>,
}

/// A connection whose client must speak before it can exist.
#[derive(Debug)]
struct Waiting {
    connection: PendingConnection,
    repeated: u32,
    repeat_at: Instant,
    /// The client's answer has been seen since the last repetition.
    answered: bool,
}

impl Restoring {
    /// What the workload's interface must receive, in this order: of each connection whose handshake was complete its
    /// last segment, the data that followed, and one more ACK by which the program sees that all arrived.
    pub fn frames_to_inject(&self) -> &[TapFrame] {
        &self.inject
    }

    /// The SYN-ACKs to send again, to clients that had not answered: Ethernet frames with complete checksums.
    /// Settling adds to them.
    pub fn frames_to_send(&self) -> &[Vec<u8>] {
        &self.send
    }

    /// Checks what became of the injected frames; says which connections do not exist, or not with all their data.
    ///
    /// A frame written to a TAP has been received when the write returns. What is not there then did not fit the
    /// listener's accept queue, or its listener is missing or too small. Where the client would send everything again
    /// (nothing of it was acknowledged), the connection is waited for as if its handshake had not been complete; the
    /// others, returned here, are lost.
    pub fn settle(&mut self, now: Instant) -> Result<Vec<FourTuple>, BpfError> {
        let mut lost = Vec::new();
        for mut waiting in std::mem::take(&mut self.completed) {
            let key = program::key(&waiting.connection.tuple);
            if self.map.get(&key)?.is_none() {
                continue;
            }
            if waiting.connection.acknowledged > 0 {
                self.map.remove(&key)?;
                lost.push(waiting.connection.tuple);
            } else {
                waiting.repeat_at = now + FIRST_REPEAT;
                self.wait_for(waiting);
            }
        }
        Ok(lost)
    }

    /// Must see every incoming frame before the workload does, until [`Self::is_done`].
    pub fn observe_in(&mut self, frame: &[u8]) -> Result<Answer, BpfError> {
        let mut answer = Answer::default();
        if self.waiting.is_empty() {
            return Ok(answer);
        }
        let Some(segment) = Segment::parse(frame) else { return Ok(answer) };
        let tuple = segment.tuple_inward();
        let Some(waiting) = self.waiting.get_mut(&tuple) else { return Ok(answer) };
        let connection = &waiting.connection;
        let tcp = &segment.tcp;
        let ahead = tcp.sequence_number().wrapping_sub(connection.client_next());
        let acknowledges = tcp.ack() && tcp.acknowledgment_number() == connection.server_isn.wrapping_add(1);
        if !segment.is_intact() {
            // The kernel discards it.
        } else if tcp.rst() {
            if ahead == 0 {
                self.waiting.remove(&tuple);
                self.map.remove(&program::key(&tuple))?;
            }
        } else if tcp.syn() && !tcp.ack() {
            answer.send = if tcp.sequence_number() == connection.client_isn {
                Some(connection.syn_ack.clone())
            } else {
                // The client has begun anew. As the kernel does with a request that a SYN does not fit: a client that
                // means it answers this with a reset, which frees the way (RFC 5961, 4.2).
                frame_of(connection, Direction::ToClient, 0, &[], false).map(|frame| frame.ethernet)
            };
        } else if acknowledges && !waiting.answered && ahead <= MAX_WINDOW {
            waiting.answered = true;
            if ahead > 0 {
                // The segment that ended the handshake was lost with the old host, and perhaps data; the kernel must
                // take its numbers from the former. The latter will be sent again.
                let mut connection = waiting.connection.clone();
                connection.client_window = tcp.window_size();
                answer.inject_before = frame_of(&connection, Direction::ToWorkload, 0, &[], false);
            }
        }
        Ok(answer)
    }

    /// Forgets connections that have been made or that have no client any more, and returns the SYN-ACKs that are due.
    pub fn tick(&mut self, now: Instant) -> Result<Vec<Vec<u8>>, BpfError> {
        let mut due = Vec::new();
        let mut ended = Vec::new();
        for (tuple, waiting) in &mut self.waiting {
            let key = program::key(tuple);
            if self.map.get(&key)?.is_none() {
                ended.push(*tuple);
            } else if now >= waiting.repeat_at {
                if waiting.repeated == REPEATS {
                    self.map.remove(&key)?;
                    ended.push(*tuple);
                    continue;
                }
                waiting.repeated += 1;
                waiting.repeat_at = now + FIRST_REPEAT * 2_u32.pow(waiting.repeated);
                waiting.answered = false;
                due.push(waiting.connection.syn_ack.clone());
            }
        }
        for tuple in ended {
            self.waiting.remove(&tuple);
        }
        Ok(due)
    }

    /// When [`Self::tick`] is due.
    pub fn next_tick(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.repeat_at).min()
    }

    /// Whether nothing is waited for: frames need not be shown any more, and it can be finished at leisure.
    pub fn is_done(&self) -> bool {
        self.completed.is_empty() && self.waiting.is_empty()
    }

    /// Detaches the program, as dropping does. A client that has not answered by now will be answered with a reset.
    pub fn finish(self) {}

    fn wait_for(&mut self, waiting: Waiting) {
        self.send.push(waiting.connection.syn_ack.clone());
        self.waiting.insert(waiting.connection.tuple, waiting);
    }
}

impl Waiting {
    fn new(connection: &PendingConnection, now: Instant) -> Self {
        Self { connection: connection.clone(), repeated: 0, repeat_at: now + FIRST_REPEAT, answered: false }
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
