//! What the frames that pass tell of connections that no descriptor can be asked about.
//!
//! A connection is known here from its SYN until the workload accepts it. The tracker has no clock and does no I/O:
//! it is shown every frame and told the time.
//!
//! Its bounds are kept by *losing* a frame on its way in, which TCP repairs: a client whose SYN or data is dropped
//! sends it again. So a bound never makes a connection disappear from a checkpoint that includes its output.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::segment::{FourTuple, Options, Path, Segment, least_mss};
use super::{PendingConnection, Progress, Timestamps, WindowScale};

/// How long a request may be silent before it is taken for dead: the kernel repeats a SYN-ACK at growing intervals
/// that never exceed `TCP_RTO_MAX`, 120 s (include/net/tcp.h), and forgets the request after the last; a little more,
/// because the frames are seen later than they are sent.
const REQUEST_SILENT: Duration = Duration::from_secs(130);
/// How long a SYN may go without its SYN-ACK. The kernel answers at once, or once it has found the client's link
/// address, which it gives up after `mcast_solicit` (3) tries of `retrans_time` (1 s), arp(7).
const SYN_UNANSWERED: Duration = Duration::from_secs(10);
/// How often dead requests are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the tracker may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at a time; a SYN beyond is dropped.
    pub connections: usize,
    /// Data of one connection; a segment that would exceed it is dropped until the workload accepts.
    pub bytes_per_connection: usize,
    /// Data of all connections; likewise.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            // 16 listeners with the kernel's largest backlog (net.core.somaxconn, 4,096).
            connections: 65_536,
            // What a connection that nobody reads takes is its first receive buffer (tcp_rmem[1], 128 KiB), twice.
            bytes_per_connection: 256 * 1024,
            bytes: 64 * 1024 * 1024,
        }
    }
}

/// What to do with an incoming frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Give it to the workload.
    Pass,
    /// Lose it: the workload's kernel must not acknowledge what could not be recorded. The client sends it again.
    Drop,
}

/// A connection without a descriptor that cannot be rebuilt, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub tuple: FourTuple,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(
        "the workload's kernel acknowledged data that did not pass as whole TCP segments (IP fragments?)"
    )]
    UnseenData,
    #[error(
        "it was opened with TCP Fast Open; leave net.ipv4.tcp_fastopen of the workload without the server's bit"
    )]
    FastOpen,
}

/// The connections that have no descriptor, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// In the order in which a restore must make them.
    pub connections: Vec<PendingConnection>,
    /// Those for which the workload is not protected.
    pub refused: Vec<Refused>,
}

/// Follows connections from their SYN until they are accepted.
#[derive(Debug)]
pub struct RequestTracker {
    bounds: Bounds,
    entries: HashMap<FourTuple, Entry>,
    /// Payload held in all entries.
    bytes: usize,
    /// Handshakes completed so far.
    completed: u64,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// The SYN that the kernel answered, or the last one while it answered none.
    syn: Syn,
    /// A SYN of another connection with the same addresses, which the kernel may answer instead.
    newer_syn: Option<Syn>,
    answered: Option<Answered>,
    seen: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Syn {
    isn: u32,
    options: Options,
    path: Path,
}

/// What exists once the kernel has sent a SYN-ACK.
#[derive(Debug)]
struct Answered {
    connection: PendingConnection,
    /// Segments that arrived before their predecessors, by their distance from the first byte.
    ahead: BTreeMap<u32, Vec<u8>>,
    /// Where the client's stream ends, once its FIN has been seen.
    end: Option<u32>,
    refused: Option<Why>,
}

impl RequestTracker {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, entries: HashMap::new(), bytes: 0, completed: 0, swept: None }
    }

    /// A tracker for a workload that was just restored with these connections.
    pub fn resume(bounds: Bounds, now: Instant, connections: &[PendingConnection]) -> Self {
        let mut tracker = Self::new(bounds);
        for connection in connections {
            if let Progress::Completed { order } = connection.progress {
                tracker.completed = tracker.completed.max(order.saturating_add(1));
            }
            tracker.bytes += connection.data.len();
            tracker.entries.insert(connection.tuple, Entry::resumed(connection, now));
        }
        tracker
    }

    /// A frame that is about to be given to the workload.
    pub fn observe_in(&mut self, now: Instant, frame: &[u8]) -> Verdict {
        self.sweep(now);
        let Some(segment) = Segment::parse(frame) else { return Verdict::Pass };
        let opens = segment.tcp.syn() && !segment.tcp.ack() && !segment.tcp.rst();
        let tuple = segment.tuple_inward();
        if !opens && !self.entries.contains_key(&tuple) {
            return Verdict::Pass;
        }
        // What the kernel will discard must not be recorded: a damaged copy could shadow the intact one.
        if !segment.is_intact() {
            return Verdict::Pass;
        }
        if opens { self.syn(now, tuple, &segment) } else { self.segment_of_client(now, tuple, &segment) }
    }

    /// A frame that the workload's kernel has sent. It must be shown here before it is released.
    pub fn observe_out(&mut self, now: Instant, frame: &[u8]) {
        self.sweep(now);
        let Some(segment) = Segment::parse(frame) else { return };
        let tuple = segment.tuple_outward();
        let Some(entry) = self.entries.get_mut(&tuple) else { return };
        let tcp = &segment.tcp;
        let held = entry.held();
        let keep = if tcp.rst() {
            !entry.is_reset_by_kernel(tcp.sequence_number())
        } else if tcp.syn() {
            entry.syn_ack(now, tuple, &segment);
            true
        } else if !tcp.payload().is_empty() || tcp.fin() {
            // Only a program can send data or close, so this one has a descriptor: it is no longer ours to keep.
            false
        } else {
            entry.acknowledgment(&segment);
            true
        };
        self.bytes = self.bytes - held + if keep { entry.held() } else { 0 };
        if !keep {
            self.entries.remove(&tuple);
        }
    }

    /// The workload has accepted the connection: it has a descriptor now.
    pub fn forget(&mut self, tuple: &FourTuple) {
        if let Some(entry) = self.entries.remove(tuple) {
            self.bytes -= entry.held();
        }
    }

    /// Forgets the connections that the kernel no longer knows (found by asking it for a list of its sockets, for
    /// instance): one whose handshake met a full accept queue and that then went silent leaves no trace in the frames.
    pub fn retain(&mut self, mut known: impl FnMut(&FourTuple) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain(|tuple, entry| {
            let keep = known(tuple);
            if !keep {
                *bytes -= entry.held();
            }
            keep
        });
    }

    /// How many connections are followed, those that are not answered yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All connections that have no descriptor, with what a restore needs. A SYN that the kernel has not answered has
    /// left no state in it and is not included.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for answered in self.entries.values().filter_map(|entry| entry.answered.as_ref()) {
            match answered.refused {
                Some(why) => snapshot.refused.push(Refused { tuple: answered.connection.tuple, why }),
                None => snapshot.connections.push(answered.connection.clone()),
            }
        }
        snapshot.connections.sort_unstable_by_key(PendingConnection::restore_order);
        snapshot.refused.sort_unstable_by_key(|refused| refused.tuple);
        snapshot
    }

    fn syn(&mut self, now: Instant, tuple: FourTuple, segment: &Segment<'_>) -> Verdict {
        let syn = Syn {
            isn: segment.tcp.sequence_number(),
            options: segment.options(),
            path: segment.path_inward(),
        };
        let room = self.entries.len() < self.bounds.connections;
        match self.entries.entry(tuple) {
            MapEntry::Vacant(_) if !room => return Verdict::Drop,
            MapEntry::Vacant(vacant) => {
                vacant.insert(Entry { syn, newer_syn: None, answered: None, seen: now });
            }
            MapEntry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                entry.seen = now;
                match &mut entry.answered {
                    // The kernel's request keeps the options of the SYN that made it, and takes the timestamp of
                    // each repetition (tcp_check_req, net/ipv4/tcp_minisocks.c).
                    Some(answered) if syn.isn == entry.syn.isn => answered.client_timestamp(&syn.options),
                    Some(_) => entry.newer_syn = Some(syn),
                    None => entry.syn = syn,
                }
            }
        }
        Verdict::Pass
    }

    fn segment_of_client(&mut self, now: Instant, tuple: FourTuple, segment: &Segment<'_>) -> Verdict {
        let Some(entry) = self.entries.get_mut(&tuple) else { return Verdict::Pass };
        let Some(answered) = &mut entry.answered else { return Verdict::Pass };
        let tcp = &segment.tcp;
        let connection = &answered.connection;
        let offset = tcp.sequence_number().wrapping_sub(connection.client_next()).cast_signed();
        if tcp.rst() {
            // RFC 5961, 3.2: only the exact number resets. A reset that the kernel takes and this does not leaves a
            // connection whose client answers with another; the other way round, one would be lost.
            if offset == connection.received() as i32 || offset == connection.acknowledged as i32 {
                self.forget(&tuple);
            }
            return Verdict::Pass;
        }
        // The workload has sent nothing but its SYN, so nothing else can be acknowledged.
        if !tcp.ack() || tcp.syn() || tcp.acknowledgment_number() != connection.server_isn.wrapping_add(1) {
            return Verdict::Pass;
        }
        let payload = tcp.payload();
        let end = i64::from(offset) + payload.len() as i64;
        let held = answered.held();
        if end > self.bounds.bytes_per_connection as i64
            || (answered.is_news(offset, payload.len())
                && (held + payload.len() > self.bounds.bytes_per_connection
                    || self.bytes + payload.len() > self.bounds.bytes))
        {
            return Verdict::Drop;
        }
        entry.seen = now;
        if answered.connection.progress == Progress::SynReceived {
            answered.connection.progress = Progress::Completed { order: self.completed };
            self.completed = self.completed.saturating_add(1);
        }
        answered.connection.client_window = tcp.window_size();
        answered.connection.path = segment.path_inward();
        answered.client_timestamp(&segment.options());
        if tcp.fin() {
            answered.end = u32::try_from(end).ok();
        }
        answered.receive(offset, payload);
        self.bytes = self.bytes - held + answered.held();
        Verdict::Pass
    }

    fn sweep(&mut self, now: Instant) {
        let swept = *self.swept.get_or_insert(now);
        if now.saturating_duration_since(swept) < SWEEP_EVERY {
            return;
        }
        self.swept = Some(now);
        let bytes = &mut self.bytes;
        self.entries.retain(|_, entry| {
            let silent = now.saturating_duration_since(entry.seen);
            let alive = match &entry.answered {
                None => silent < SYN_UNANSWERED,
                Some(answered) => match answered.connection.progress {
                    Progress::SynReceived => silent < REQUEST_SILENT,
                    // It may wait for a slow program for as long as it likes.
                    Progress::Completed { .. } => true,
                },
            };
            if !alive {
                *bytes -= entry.held();
            }
            alive
        });
    }
}

impl Entry {
    fn resumed(connection: &PendingConnection, now: Instant) -> Self {
        let syn = Syn { isn: connection.client_isn, options: Options::default(), path: connection.path };
        let answered = Answered {
            end: connection.finished.then_some(connection.data.len() as u32),
            connection: connection.clone(),
            ahead: BTreeMap::new(),
            refused: None,
        };
        Self { syn, newer_syn: None, answered: Some(answered), seen: now }
    }

    fn held(&self) -> usize {
        self.answered.as_ref().map_or(0, Answered::held)
    }

    /// Whether a reset that the kernel sends with this number ends the connection. The kernel also answers a segment
    /// with an acknowledgment that it does not know by a reset, which carries that number and ends nothing.
    fn is_reset_by_kernel(&self, sequence: u32) -> bool {
        match &self.answered {
            Some(answered) => sequence == answered.connection.server_isn.wrapping_add(1),
            // To a SYN for which nobody listens (RFC 9293, 3.10.7.1).
            None => sequence == 0,
        }
    }

    fn syn_ack(&mut self, now: Instant, tuple: FourTuple, segment: &Segment<'_>) {
        let tcp = &segment.tcp;
        let acknowledged = tcp.acknowledgment_number();
        if let Some(newer) = self.newer_syn
            && acknowledged == newer.isn.wrapping_add(1)
        {
            (self.syn, self.newer_syn, self.answered) = (newer, None, None);
        }
        let server_isn = tcp.sequence_number();
        let options = segment.options();
        self.seen = now;
        if let Some(answered) = &mut self.answered
            && answered.connection.server_isn == server_isn
        {
            // Sent again by the kernel's timer or for a repeated SYN.
            answered.server_timestamp(&options);
            answered.connection.syn_ack = segment.with_complete_checksum();
            return;
        }
        let refused = (acknowledged != self.syn.isn.wrapping_add(1)).then_some(Why::FastOpen);
        // What was agreed is what the SYN-ACK says; of the SYN alone come only the client's own figures.
        let connection = PendingConnection {
            tuple,
            path: self.syn.path,
            client_isn: self.syn.isn,
            server_isn,
            client_mss: self.syn.options.mss.unwrap_or(least_mss(tuple.client)),
            server_mss: options.mss.unwrap_or(least_mss(tuple.server)),
            server_window: tcp.window_size(),
            window_scale: options
                .window_scale
                .map(|server| WindowScale { client: self.syn.options.window_scale.unwrap_or(0), server }),
            sack: options.sack_permitted,
            // RFC 3168, 6.1.1: ECE without CWR accepts. (With AE or CWR it would be Accurate ECN, which a rebuilt
            // connection cannot have: the kernel gives it only where net.ipv4.tcp_ecn is set to 3 or more.)
            ecn: tcp.ece() && !tcp.cwr() && !tcp.ns(),
            timestamps: options.timestamps.map(|(server, _)| Timestamps {
                client: self.syn.options.timestamps.map_or(0, |(client, _)| client),
                server,
            }),
            client_window: 0,
            progress: Progress::SynReceived,
            data: Vec::new(),
            acknowledged: 0,
            finished: false,
            syn_ack: segment.with_complete_checksum(),
        };
        self.answered = Some(Answered { connection, ahead: BTreeMap::new(), end: None, refused });
    }

    fn acknowledgment(&mut self, segment: &Segment<'_>) {
        let Some(answered) = &mut self.answered else { return };
        answered.server_timestamp(&segment.options());
        let connection = &mut answered.connection;
        if !segment.tcp.ack() {
            return;
        }
        let acknowledged =
            segment.tcp.acknowledgment_number().wrapping_sub(connection.client_next()).cast_signed();
        if acknowledged > connection.received() as i32 {
            answered.refused = Some(Why::UnseenData);
        } else if acknowledged > connection.acknowledged as i32 {
            connection.acknowledged = acknowledged.cast_unsigned();
        }
    }
}

impl Answered {
    fn held(&self) -> usize {
        self.connection.data.len() + self.ahead.values().map(Vec::len).sum::<usize>()
    }

    fn client_timestamp(&mut self, options: &Options) {
        if let (Some(timestamps), Some((value, _))) = (&mut self.connection.timestamps, options.timestamps)
            && value.wrapping_sub(timestamps.client).cast_signed() > 0
        {
            timestamps.client = value;
        }
    }

    fn server_timestamp(&mut self, options: &Options) {
        if let (Some(timestamps), Some((value, _))) = (&mut self.connection.timestamps, options.timestamps)
            && value.wrapping_sub(timestamps.server).cast_signed() > 0
        {
            timestamps.server = value;
        }
    }

    /// Whether a segment has bytes beyond those received in order.
    fn is_news(&self, offset: i32, length: usize) -> bool {
        i64::from(offset) + length as i64 > self.connection.data.len() as i64
    }

    /// Takes a segment that lies `offset` bytes from the start of the client's stream. The first copy of a byte wins,
    /// as in the kernel; honest clients send the same bytes again.
    fn receive(&mut self, offset: i32, payload: &[u8]) {
        if self.is_news(offset, payload.len()) && !payload.is_empty() {
            match u32::try_from(offset) {
                Ok(offset) if offset as usize > self.connection.data.len() => {
                    let waiting = self.ahead.entry(offset).or_default();
                    if waiting.len() < payload.len() {
                        *waiting = payload.to_vec();
                    }
                }
                _ => self.append(i64::from(offset), payload),
            }
        }
        // Each append may close the gap to what waits next.
        while let Some(first) = self.ahead.first_entry() {
            if *first.key() as usize > self.connection.data.len() {
                break;
            }
            let (offset, payload) = first.remove_entry();
            self.append(i64::from(offset), &payload);
        }
        if self.end == Some(self.connection.data.len() as u32) {
            self.connection.finished = true;
        }
    }

    /// Appends the part of a segment that lies beyond what is there; it does not begin later.
    fn append(&mut self, offset: i64, payload: &[u8]) {
        let known = self.connection.data.len() as i64 - offset;
        if let Some(news) = usize::try_from(known).ok().and_then(|known| payload.get(known..)) {
            self.connection.data.extend_from_slice(news);
        }
    }
}

#[cfg(test)]
mod tests;
