//! What connections have said since the last checkpoint, as the frames they said it in.
//!
//! A frame that waits for its epoch to commit holds the bytes that the connection's send queue holds. Taking them from
//! there spares the socket five system calls (into repair, its queue, a peek, and out again), which are most of what a
//! checkpoint of a busy server would cost.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// More than this and copying a second time costs what asking the sockets does: they are asked.
const BYTES_MAX: usize = 1 << 20;

/// Both ends of a connection: the workload's, then the peer's.
type Ends = ((IpAddr, u16), (IpAddr, u16));

/// The data in outgoing frames of one epoch.
#[derive(Debug, Default)]
pub struct Framed {
    bytes: Vec<u8>,
    segments: HashMap<Ends, Vec<(u32, Range<usize>)>>,
    overflown: bool,
}

impl Framed {
    /// Takes note of an Ethernet frame that the workload has sent. What is not TCP data is passed over.
    pub fn note(&mut self, frame: &[u8]) {
        if self.overflown {
            return;
        }
        // Lax: what is left to be segmented by a device has lengths that no single packet has.
        let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return };
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            _ => return,
        };
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return };
        let payload = tcp.payload();
        if payload.is_empty() || tcp.syn() {
            return;
        }
        if self.bytes.len() + payload.len() > BYTES_MAX {
            *self = Self { overflown: true, ..Self::default() };
            return;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let ends = ((from, tcp.source_port()), (to, tcp.destination_port()));
        self.segments.entry(ends).or_default().push((tcp.sequence_number(), at..at + payload.len()));
    }

    /// Appends to `send` what `local` has sent to `remote` from `from` on, `length` bytes; false, and nothing appended,
    /// unless every one of them is in a frame.
    pub(super) fn append(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        from: u32,
        length: usize,
        send: &mut Vec<u8>,
    ) -> bool {
        let end = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        let Some(segments) = self.segments.get(&(end(local), end(remote))) else { return length == 0 };
        let before = send.len();
        // In the order of sending each goes on where the one before it ended, but for what was sent again.
        let mut have = 0;
        for (seq, range) in segments {
            let begins = seq.wrapping_sub(from) as i32 as i64;
            let ends = begins + range.len() as i64;
            let (wanted, limit) = (have as i64, length as i64);
            if begins > wanted || ends <= wanted {
                continue;
            }
            let skip = (wanted - begins) as usize;
            let take = (ends.min(limit) - wanted).max(0) as usize;
            let at = range.start + skip;
            send.extend_from_slice(&self.bytes[at..at + take]);
            have += take;
        }
        if have != length {
            send.truncate(before);
        }
        have == length
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const LOCAL: ([u8; 4], u16) = ([10, 0, 0, 1], 6379);
    const REMOTE: ([u8; 4], u16) = ([10, 0, 0, 2], 4000);

    fn frame(seq: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(LOCAL.0, REMOTE.0, 64)
            .tcp(LOCAL.1, REMOTE.1, seq, 1000)
            .ack(1)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn found(framed: &Framed, from: u32, length: usize) -> Option<Vec<u8>> {
        let mut send = b"before".to_vec();
        let all = framed.append(LOCAL.into(), REMOTE.into(), from, length, &mut send);
        assert!(all || send == b"before", "half of an answer");
        all.then(|| send[6..].to_vec())
    }

    #[test]
    fn what_was_sent_is_put_together_from_its_frames() {
        let mut framed = Framed::default();
        // Over the end of the sequence space.
        let begin = u32::MAX - 2;
        framed.note(&frame(begin, b"hello "));
        framed.note(&frame(begin.wrapping_add(6), b""));
        framed.note(&frame(begin.wrapping_add(6), b"world"));
        assert_eq!(found(&framed, begin, 11).unwrap(), b"hello world");
        // Acknowledged in part.
        assert_eq!(found(&framed, begin.wrapping_add(3), 8).unwrap(), b"lo world");
        assert_eq!(found(&framed, begin, 0).unwrap(), b"");
    }

    #[test]
    fn what_was_sent_again_is_taken_once() {
        let mut framed = Framed::default();
        framed.note(&frame(100, b"abc"));
        framed.note(&frame(90, b"0123456789abc"));
        framed.note(&frame(103, b"def"));
        framed.note(&frame(100, b"abcdef"));
        assert_eq!(found(&framed, 100, 6).unwrap(), b"abcdef");
    }

    #[test]
    fn a_frame_that_is_missing_is_not_made_up() {
        let mut framed = Framed::default();
        framed.note(&frame(100, b"abc"));
        framed.note(&frame(106, b"ghi"));
        assert_eq!(found(&framed, 100, 9), None);
        assert_eq!(found(&framed, 100, 4), None);
        assert_eq!(found(&framed, 97, 6), None);
        assert_eq!(found(&Framed::default(), 100, 1), None);
    }

    #[test]
    fn another_connection_has_nothing_to_do_with_it() {
        let mut framed = Framed::default();
        framed.note(&frame(100, b"abc"));
        let mut send = Vec::new();
        assert!(!framed.append(LOCAL.into(), (REMOTE.0, 4001).into(), 100, 3, &mut send));
        // A socket for both families has its addresses mapped.
        let mapped = |end: ([u8; 4], u16)| {
            SocketAddr::new(std::net::Ipv4Addr::from(end.0).to_ipv6_mapped().into(), end.1)
        };
        assert!(framed.append(mapped(LOCAL), mapped(REMOTE), 100, 3, &mut send));
    }

    #[test]
    fn too_much_is_left_to_the_sockets() {
        let mut framed = Framed::default();
        let piece = vec![7; 60_000];
        (0..20).for_each(|number: u32| framed.note(&frame(number * 60_000, &piece)));
        assert_eq!(found(&framed, 0, 60_000), None);
        framed.note(b"\0");
    }
}
