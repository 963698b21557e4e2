//! The boundary between sent and unsent, asked of the peer before a connection is rebuilt.
//!
//! A checkpoint does not say how much of the queued data the primary's frames brought to the peer. One byte that
//! the peer has long had, at `snd_una − 1`, makes it answer with what it expects next (RFC 9293 section 3.10.7.4;
//! Linux limits the rate of such answers only for segments without data, `tcp_oow_rate_limited`,
//! net/ipv4/tcp_input.c). Data below the answer's ACK is sent and acknowledged, all above it is unsent.
//!
//! A stray ACK that was on its way before the question could be mistaken for the answer and be too low. An answer
//! that repeats the byte as a duplicate (D-SACK, RFC 2883: any Linux peer with SACK) is certain; without, the
//! highest ACK within a short time counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{LaxNetSlice, PacketBuilder, TcpHeader, TcpOptionElement, TcpSlice, TransportSlice};

use crate::announce::written;
use crate::frame::{MAX_FRAME, checksum_vouched, parse};
use crate::{Mac, Moment, Neighbours, Port, PortError};

/// Hops a probe may go: the kernel's default (`IPDEFTTL`, linux/ip.h).
const HOP_LIMIT: u8 = 64;
/// When a question without an answer is repeated, and by how much later each time at most.
const FIRST_REPEAT: Duration = Duration::from_millis(5);
const LAST_REPEAT: Duration = Duration::from_millis(100);
/// How long an answer that is not certain may still be bettered by a higher one.
const SETTLE: Duration = Duration::from_millis(3);
/// Questions sent between two looks for answers.
const BURST: usize = 256;

/// A connection whose peer is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    /// The workload's side.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub snd_una: u32,
    pub rcv_nxt: u32,
    /// The window to advertise, as it stands in the header: scaled already.
    pub window: u16,
    /// If the connection uses them. Without, the peer would drop the question (RFC 7323 section 3.2).
    pub timestamps: Option<Timestamps>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// Not older than any the peer has seen, or it takes the question for a duplicate from the past (PAWS).
    pub value: u32,
    /// The last value received from the peer (`ts_recent`).
    pub echo: u32,
}

/// What a peer said of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has everything below `ack`, and takes `window` more (as in the header, unscaled). `certain` if the
    /// answer shows that it is one to the question.
    Has { ack: u32, window: u16, certain: bool },
    /// It knows no such connection.
    Reset,
}

/// What becomes of a frame shown to a [`Prober`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An answer. The workload's kernel never asked, so that it must not see it.
    Swallow,
    /// Something else, for the workload.
    Pass,
}

/// The question to the peer of one connection, on its way to the neighbour `next_hop`. `None`: the ends are not of
/// one address family.
pub fn build(target: &ProbeTarget, source: Mac, next_hop: Mac) -> Option<Vec<u8>> {
    let mut tcp = TcpHeader::new(
        target.local.port(),
        target.remote.port(),
        target.snd_una.wrapping_sub(1),
        target.window,
    );
    tcp.ack = true;
    tcp.acknowledgment_number = target.rcv_nxt;
    if let Some(Timestamps { value, echo }) = target.timestamps {
        let set = tcp.set_options(&[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(value, echo),
        ]);
        debug_assert!(set.is_ok(), "twelve bytes of options fit");
    }
    let link = PacketBuilder::ethernet2(source.0, next_hop.0);
    // Any byte will do: the peer has had the one at this place, and discards it.
    let old_byte = [0];
    // A socket of both families shows IPv4 addresses mapped into IPv6; on the wire they are IPv4.
    match (target.local.ip().to_canonical(), target.remote.ip().to_canonical()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let ip = link.ipv4(local.octets(), remote.octets(), HOP_LIMIT);
            Some(written(|frame| ip.tcp_header(tcp).write(frame, &old_byte)))
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let ip = link.ipv6(local.octets(), remote.octets(), HOP_LIMIT);
            Some(written(|frame| ip.tcp_header(tcp).write(frame, &old_byte)))
        }
        _ => None,
    }
}

/// Asks the peers of many connections and keeps their answers. Does no I/O.
pub struct Prober {
    targets: Vec<Target>,
    /// By local and remote address and port.
    index: HashMap<Ends, usize>,
    /// Where to go on looking for targets that are due: all before it were asked just now.
    next: usize,
}

struct Target {
    target: ProbeTarget,
    answer: Option<Answer>,
    first_asked: Option<Moment>,
    next_at: Moment,
    repeat_after: Duration,
}

impl Prober {
    pub fn new(targets: impl IntoIterator<Item = ProbeTarget>) -> Prober {
        let targets: Vec<Target> = targets
            .into_iter()
            .map(|target| Target {
                target,
                answer: None,
                first_asked: None,
                next_at: Moment::from_nanos(0),
                repeat_after: FIRST_REPEAT,
            })
            .collect();
        let key = |target: &ProbeTarget| {
            [target.local, target.remote].map(|end| (end.ip().to_canonical(), end.port()))
        };
        let index = targets.iter().enumerate().map(|(at, target)| (key(&target.target), at)).collect();
        Prober { targets, index, next: 0 }
    }

    /// At most `limit` questions to send now, and asks `neighbours` for the way to those it does not know.
    pub fn due(&mut self, now: Moment, neighbours: &mut Neighbours, limit: usize) -> Vec<Vec<u8>> {
        let source = neighbours.network().mac;
        let mut frames = Vec::new();
        let (first, count) = (self.next, self.targets.len());
        for at in (0..count).map(|step| (first + step) % count) {
            if frames.len() == limit {
                break;
            }
            let target = &mut self.targets[at];
            if target.answer.is_some() || target.next_at > now {
                continue;
            }
            let remote = target.target.remote.ip().to_canonical();
            let Some(next_hop) = neighbours.mac_towards(remote) else {
                neighbours.ask_for(remote, now);
                continue;
            };
            frames.extend(build(&target.target, source, next_hop));
            target.first_asked.get_or_insert(now);
            target.next_at = now + target.repeat_after;
            target.repeat_after = (target.repeat_after * 2).min(LAST_REPEAT);
            self.next = at + 1;
        }
        frames
    }

    /// When to look again at [`Prober::due`] and [`Prober::is_done`], if no frame comes before.
    pub fn next_at(&self) -> Option<Moment> {
        self.targets.iter().filter_map(Target::next_look).min()
    }

    /// Takes a frame from the network.
    pub fn on_frame(&mut self, frame: &[u8]) -> Verdict {
        let Some((ends, tcp)) = tcp_segment(frame) else { return Verdict::Pass };
        let Some(&at) = self.index.get(&ends) else { return Verdict::Pass };
        let target = &mut self.targets[at];
        let snd_una = target.target.snd_una;
        if target.first_asked.is_none() || !checksum_right(frame, &ends, &tcp) {
            return Verdict::Pass;
        }
        if tcp.rst() {
            // A reset of ours to nothing it knows carries the sequence number that we asked it to acknowledge
            // (RFC 9293 section 3.10.7.1); any other is not to our question.
            if tcp.sequence_number() != target.target.rcv_nxt {
                return Verdict::Pass;
            }
            target.answer.get_or_insert(Answer::Reset);
            return Verdict::Swallow;
        }
        let pure = tcp.ack() && !tcp.syn() && !tcp.fin() && tcp.payload().is_empty();
        let ack = tcp.acknowledgment_number();
        if !pure || before(ack, snd_una) {
            return Verdict::Pass;
        }
        let duplicate = (snd_una.wrapping_sub(1), snd_una);
        let certain = tcp.options_iterator().flatten().any(|option| {
            matches!(option, TcpOptionElement::SelectiveAcknowledgement(first, _) if first == duplicate)
        });
        let window = tcp.window_size();
        target.answer = Some(match target.answer {
            Some(Answer::Reset) => Answer::Reset,
            // What a peer acknowledges only grows: an older ACK that comes late says nothing new.
            Some(Answer::Has { ack: known, window, certain: known_certain }) if before(ack, known) => {
                Answer::Has { ack: known, window, certain: known_certain || certain }
            }
            Some(Answer::Has { certain: known_certain, .. }) => {
                Answer::Has { ack, window, certain: known_certain || certain }
            }
            None => Answer::Has { ack, window, certain },
        });
        Verdict::Swallow
    }

    /// Whether nothing better is to be expected: every peer answered, with certainty or a while ago.
    pub fn is_done(&self, now: Moment) -> bool {
        self.targets.iter().all(|target| match (target.answer, target.first_asked) {
            (Some(Answer::Has { certain: false, .. }), Some(asked)) => now.since(asked) >= SETTLE,
            (answer, _) => answer.is_some(),
        })
    }

    /// By the index of each target, what its peer said.
    pub fn results(&self) -> Vec<Option<Answer>> {
        self.targets.iter().map(|target| target.answer).collect()
    }
}

impl Target {
    fn next_look(&self) -> Option<Moment> {
        match self.answer {
            None => self.first_asked.map(|_| self.next_at),
            Some(Answer::Has { certain: false, .. }) => self.first_asked.map(|asked| asked + SETTLE),
            Some(_) => None,
        }
    }
}

/// Asks all peers over an attached port, until every one has answered or the `deadline` passes. Every frame that is
/// not an answer goes to `other`, to be injected later, in the order in which it came.
pub fn run_probes(
    port: &Port,
    targets: impl IntoIterator<Item = ProbeTarget>,
    neighbours: &mut Neighbours,
    deadline: Moment,
    other: &mut dyn FnMut(&[u8]),
) -> Result<Vec<Option<Answer>>, PortError> {
    let mut prober = Prober::new(targets);
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let now = Moment::now();
        if now >= deadline || prober.is_done(now) {
            return Ok(prober.results());
        }
        let questions = prober.due(now, neighbours, BURST);
        let more = questions.len() == BURST;
        for frame in questions.iter().chain(&neighbours.due(now)) {
            port.send(frame).map_err(|source| port.io_error(source))?;
        }
        let look = [prober.next_at(), neighbours.next_at()].into_iter().flatten().min().unwrap_or(deadline);
        let mut until = if more { now } else { look.min(deadline) };
        // One wait, then whatever else is there already, up to what one burst may bring.
        for _ in 0..BURST {
            let Some(length) = port.receive_until(until, &mut buffer)? else { break };
            let frame = &buffer[..length];
            neighbours.learn(frame);
            if prober.on_frame(frame) == Verdict::Pass {
                other(frame);
            }
            until = now;
        }
    }
}

type Ends = [(IpAddr, u16); 2];

/// A TCP segment that is whole, and its ends as seen from the workload: local, remote.
fn tcp_segment(frame: &[u8]) -> Option<(Ends, TcpSlice<'_>)> {
    let packet = parse(frame)?;
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    Some(([(destination, tcp.destination_port()), (source, tcp.source_port())], tcp))
}

fn checksum_right(frame: &[u8], ends: &Ends, tcp: &TcpSlice<'_>) -> bool {
    let [(local, _), (remote, _)] = ends;
    let computed = match (remote, local) {
        _ if checksum_vouched(frame) => return true,
        (IpAddr::V4(from), IpAddr::V4(to)) => tcp.calc_checksum_ipv4(from.octets(), to.octets()).ok(),
        (IpAddr::V6(from), IpAddr::V6(to)) => tcp.calc_checksum_ipv6(from.octets(), to.octets()).ok(),
        _ => None,
    };
    computed == Some(tcp.checksum())
}

/// Whether `a` comes before `b` in sequence space, RFC 9293 section 3.4.
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests;
