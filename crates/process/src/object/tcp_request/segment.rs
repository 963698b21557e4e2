//! TCP segments in Ethernet frames: reading them, and building those that a restore needs.
//!
//! Frames are plain Ethernet frames as they cross the TAP, without the `virtio_net_hdr` that precedes them there, and
//! may be larger than the MTU (segmentation offload). The TCP checksum of such a frame may be complete, or only the
//! sum of the pseudo-header for a device to complete (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): both are recognised.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, LinkSlice,
    NetSlice, SlicedPacket, TcpHeader, TcpOptionElement, TcpSlice, TransportSlice,
};
use serde::{Deserialize, Serialize};

/// A connection as the workload sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FourTuple {
    pub client: IpAddr,
    pub client_port: u16,
    pub server: IpAddr,
    pub server_port: u16,
}

impl std::fmt::Display for FourTuple {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let client = std::net::SocketAddr::new(self.client, self.client_port);
        let server = std::net::SocketAddr::new(self.server, self.server_port);
        write!(formatter, "{client} to {server}")
    }
}

/// What a frame from the client to the workload carries below TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The client's, or its last router's.
    pub client_mac: [u8; 6],
    pub server_mac: [u8; 6],
    /// Kept because a listener may insist on a least one (`IP_MINTTL`).
    pub hop_limit: u8,
    pub traffic_class: u8,
    /// IPv6 only; 20 bits.
    pub flow_label: u32,
}

/// The TCP options that matter here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    /// Value and echo reply.
    pub timestamps: Option<(u32, u32)>,
}

/// A TCP segment in a frame.
pub(super) struct Segment<'a> {
    frame: &'a [u8],
    ethernet: Ethernet2Header,
    net: NetSlice<'a>,
    pub tcp: TcpSlice<'a>,
}

impl<'a> Segment<'a> {
    /// Reads a frame; `None` if it is anything but one whole TCP segment over untagged IPv4 or IPv6.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        if !packet.link_exts.is_empty() {
            return None;
        }
        // A fragment has no transport header of its own: etherparse leaves its payload unparsed.
        match (packet.link?, packet.net?, packet.transport?) {
            (LinkSlice::Ethernet2(ethernet), net, TransportSlice::Tcp(tcp)) if net.is_ip() => {
                Some(Self { frame, ethernet: ethernet.to_header(), net, tcp })
            }
            _ => None,
        }
    }

    /// The connection of a frame that goes to the workload.
    pub fn tuple_inward(&self) -> FourTuple {
        let (client, server) = self.addresses();
        FourTuple {
            client,
            client_port: self.tcp.source_port(),
            server,
            server_port: self.tcp.destination_port(),
        }
    }

    /// The connection of a frame that comes from the workload.
    pub fn tuple_outward(&self) -> FourTuple {
        let (server, client) = self.addresses();
        FourTuple {
            client,
            client_port: self.tcp.destination_port(),
            server,
            server_port: self.tcp.source_port(),
        }
    }

    /// What a frame that goes to the workload carries below TCP.
    pub fn path_inward(&self) -> Path {
        let (hop_limit, traffic_class, flow_label) = match &self.net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.ttl(), header.dcp().value() << 2 | header.ecn().value(), 0)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.hop_limit(), header.traffic_class(), header.flow_label().value())
            }
            NetSlice::Arp(_) => (0, 0, 0), // parse() lets only IP through.
        };
        Path {
            client_mac: self.ethernet.source,
            server_mac: self.ethernet.destination,
            hop_limit,
            traffic_class,
            flow_label,
        }
    }

    pub fn options(&self) -> Options {
        let mut options = Options::default();
        // A malformed option ends the list, as it does in the kernel (tcp_parse_options, net/ipv4/tcp_input.c).
        for option in self.tcp.options_iterator().map_while(Result::ok) {
            match option {
                TcpOptionElement::MaximumSegmentSize(mss) => options.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => options.window_scale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => options.sack_permitted = true,
                TcpOptionElement::Timestamp(value, echo) => options.timestamps = Some((value, echo)),
                TcpOptionElement::Noop | TcpOptionElement::SelectiveAcknowledgement(..) => {}
            }
        }
        options
    }

    /// Whether the kernel would take the segment as intact: its checksum is complete and right, or left to a device
    /// to complete.
    pub fn is_intact(&self) -> bool {
        let (source, destination) = self.addresses();
        let pseudo_header = pseudo_header(source, destination, self.tcp.slice().len());
        let partial = !pseudo_header.ones_complement().to_be();
        // The sum over a segment with its right checksum in place is all ones.
        self.tcp.checksum() == partial || pseudo_header.add_slice(self.tcp.slice()).ones_complement() == 0
    }

    /// The frame with its TCP checksum complete, so that it can be sent without a device's help.
    pub fn with_complete_checksum(&self) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let tcp = self.tcp.slice();
        // The TCP header's place: it is a part of `frame`. What follows the IP packet is Ethernet padding.
        let at = tcp.as_ptr().addr() - self.frame.as_ptr().addr();
        let mut frame = self.frame[..at + tcp.len()].to_vec();
        let checksum_at = at + TCP_CHECKSUM_AT;
        frame[checksum_at..checksum_at + 2].fill(0);
        let checksum =
            pseudo_header(source, destination, tcp.len()).add_slice(&frame[at..]).ones_complement();
        frame[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_ne_bytes());
        frame
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        match &self.net {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()),
        }
    }
}

/// Where a TCP header has its checksum (RFC 9293, 3.1).
const TCP_CHECKSUM_AT: usize = 16;

/// A frame as a TAP with `IFF_VNET_HDR` takes it in one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapFrame {
    /// `struct virtio_net_hdr`, include/uapi/linux/virtio_net.h; all zeros for a frame that needs nothing done.
    pub virtio_net_hdr: [u8; 10],
    pub ethernet: Vec<u8>,
}

impl TapFrame {
    /// The frame with its header in front.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.virtio_net_hdr[..], &self.ethernet].concat()
    }
}

// VIRTIO_NET_HDR_*, include/uapi/linux/virtio_net.h.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Which way a built frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToWorkload,
    ToClient,
}

/// A segment to build.
#[derive(Debug, Clone, Copy)]
pub(super) struct Build<'a> {
    pub tuple: &'a FourTuple,
    pub path: &'a Path,
    pub direction: Direction,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
    pub timestamps: Option<(u32, u32)>,
    pub fin: bool,
    pub payload: &'a [u8],
    /// A longer payload than this makes one frame that stands for several segments of this size.
    pub segment_size: u16,
}

impl Build<'_> {
    /// `None` if the two addresses are not of one family, or the payload does not fit an IP packet.
    pub fn frame(&self) -> Option<TapFrame> {
        let FourTuple { client, client_port, server, server_port } = *self.tuple;
        let (source, destination, source_port, destination_port, source_mac, destination_mac) =
            match self.direction {
                Direction::ToWorkload => {
                    (client, server, client_port, server_port, self.path.client_mac, self.path.server_mac)
                }
                Direction::ToClient => {
                    (server, client, server_port, client_port, self.path.server_mac, self.path.client_mac)
                }
            };
        let mut tcp = TcpHeader::new(source_port, destination_port, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgment;
        tcp.ack = true;
        tcp.psh = !self.payload.is_empty();
        tcp.fin = self.fin;
        if let Some((value, echo)) = self.timestamps {
            let noop = TcpOptionElement::Noop;
            tcp.set_options(&[noop.clone(), noop, TcpOptionElement::Timestamp(value, echo)]).ok()?;
        }
        let tcp_header = tcp.to_bytes();
        let length = tcp_header.len() + self.payload.len();
        let pseudo_header = pseudo_header(source, destination, length);

        let (ether_type, ip_header) = self.ip_header(source, destination, length)?;
        let ethernet = Ethernet2Header { source: source_mac, destination: destination_mac, ether_type };
        let mut frame = Vec::with_capacity(Ethernet2Header::LEN + ip_header.len() + length);
        frame.extend_from_slice(&ethernet.to_bytes());
        frame.extend_from_slice(&ip_header);
        let tcp_at = frame.len();
        frame.extend_from_slice(&tcp_header);
        let payload_at = frame.len();
        frame.extend_from_slice(self.payload);

        let mut virtio_net_hdr = [0; 10];
        let checksum = if self.payload.len() > usize::from(self.segment_size) {
            // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; in this machine's byte order, as a TAP has
            // it unless told otherwise (TUNSETVNETLE).
            virtio_net_hdr[0] = NEEDS_CSUM;
            virtio_net_hdr[1] = if source.is_ipv4() { GSO_TCPV4 } else { GSO_TCPV6 };
            let fields = [payload_at as u16, self.segment_size, tcp_at as u16, TCP_CHECKSUM_AT as u16];
            for (bytes, field) in virtio_net_hdr[2..].chunks_exact_mut(2).zip(fields) {
                bytes.copy_from_slice(&field.to_ne_bytes());
            }
            !pseudo_header.ones_complement()
        } else {
            pseudo_header.add_slice(&frame[tcp_at..]).ones_complement()
        };
        let checksum_at = tcp_at + TCP_CHECKSUM_AT;
        frame[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_ne_bytes());
        Some(TapFrame { virtio_net_hdr, ethernet: frame })
    }

    fn ip_header(&self, source: IpAddr, destination: IpAddr, length: usize) -> Option<(EtherType, Vec<u8>)> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = Ipv4Header {
                    total_len: u16::try_from(Ipv4Header::MIN_LEN + length).ok()?,
                    dont_fragment: true,
                    fragment_offset: IpFragOffset::ZERO,
                    time_to_live: self.path.hop_limit,
                    protocol: IpNumber::TCP,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv4Header::default()
                };
                ip.dscp = etherparse::IpDscp::try_new(self.path.traffic_class >> 2).ok()?;
                ip.header_checksum = ip.calc_header_checksum();
                Some((EtherType::IPV4, ip.to_bytes().to_vec()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    // Without the ECN bits: a mark belongs to the one packet that met the congestion.
                    traffic_class: self.path.traffic_class & !0b11,
                    flow_label: Ipv6FlowLabel::try_new(self.path.flow_label).ok()?,
                    payload_length: u16::try_from(length).ok()?,
                    next_header: IpNumber::TCP,
                    hop_limit: self.path.hop_limit,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                Some((EtherType::IPV6, ip.to_bytes().to_vec()))
            }
            _ => None,
        }
    }
}

/// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1: the two add up the same).
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> Sum16BitWords {
    let add = |sum: Sum16BitWords, address: IpAddr| match address {
        IpAddr::V4(address) => sum.add_slice(&address.octets()),
        IpAddr::V6(address) => sum.add_slice(&address.octets()),
    };
    add(add(Sum16BitWords::new(), source), destination)
        .add_2bytes([0, IpNumber::TCP.0])
        .add_slice(&(length as u32).to_be_bytes())
}

/// The MSS of a peer that names none (RFC 9293, 3.7.1), which is also the least that the kernel takes for a rebuilt
/// connection (`bpf_sk_assign_tcp_reqsk`, net/core/filter.c).
pub(super) fn least_mss(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => 536,
        IpAddr::V6(Ipv6Addr { .. }) => 1220,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tuple(v6: bool) -> FourTuple {
        let (client, server) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        FourTuple {
            client: client.parse().expect("address"),
            client_port: 40_000,
            server: server.parse().expect("address"),
            server_port: 80,
        }
    }

    const PATH: Path = Path {
        client_mac: [2, 0, 0, 0, 0, 1],
        server_mac: [2, 0, 0, 0, 0, 2],
        hop_limit: 63,
        traffic_class: 0x48,
        flow_label: 0,
    };

    proptest! {
        #[test]
        fn what_is_built_is_read_back(
            v6: bool, sequence: u32, acknowledgment: u32, window: u16, fin: bool, inward: bool,
            timestamps: Option<(u32, u32)>, payload in proptest::collection::vec(any::<u8>(), 0..1460), segment_size in 500..1500_u16,
        ) {
            let tuple = tuple(v6);
            let direction = if inward { Direction::ToWorkload } else { Direction::ToClient };
            let build = Build {
                tuple: &tuple, path: &PATH, direction, sequence, acknowledgment, window, timestamps, fin, payload: &payload,
                segment_size,
            };
            let frame = build.frame().expect("build").ethernet;
            let segment = Segment::parse(&frame).expect("parse");
            prop_assert!(segment.is_intact());
            prop_assert_eq!(if inward { segment.tuple_inward() } else { segment.tuple_outward() }, tuple);
            prop_assert_eq!(segment.tcp.sequence_number(), sequence);
            prop_assert_eq!(segment.tcp.acknowledgment_number(), acknowledgment);
            prop_assert_eq!(segment.tcp.window_size(), window);
            prop_assert_eq!(segment.options().timestamps, timestamps);
            prop_assert_eq!(segment.tcp.fin(), fin);
            prop_assert_eq!(segment.tcp.payload(), &payload[..]);
            if inward {
                prop_assert_eq!(segment.path_inward(), PATH);
            }
        }

        #[test]
        fn a_changed_bit_is_not_intact(bit in 0..32usize * 8) {
            let tuple = tuple(false);
            let build = Build {
                tuple: &tuple, path: &PATH, direction: Direction::ToWorkload, sequence: 1, acknowledgment: 2, window: 3,
                timestamps: None, fin: false, payload: &[0x5a; 32], segment_size: 1460,
            };
            let mut frame = build.frame().expect("build").ethernet;
            let payload_at = frame.len() - 32;
            frame[payload_at + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Segment::parse(&frame).expect("parse").is_intact());
        }

        #[test]
        fn a_partial_checksum_is_intact_and_can_be_completed(v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..99)) {
            let tuple = tuple(v6);
            let build = Build {
                tuple: &tuple, path: &PATH, direction: Direction::ToClient, sequence: 1, acknowledgment: 2, window: 3,
                timestamps: None, fin: false, payload: &payload, segment_size: 1460,
            };
            let complete = build.frame().expect("build").ethernet;
            let mut partial = complete.clone();
            let tcp_at = complete.len() - payload.len() - 20;
            // Computed here the long way round, as the kernel does it: the folded sum, not complemented.
            let mut words = vec![6, (20 + payload.len()) as u32];
            for address in [tuple.server, tuple.client] {
                let octets = match address { IpAddr::V4(a) => a.octets().to_vec(), IpAddr::V6(a) => a.octets().to_vec() };
                words.extend(octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])));
            }
            let mut sum: u32 = words.iter().sum();
            while sum > 0xffff { sum = (sum & 0xffff) + (sum >> 16); }
            partial[tcp_at + 16..tcp_at + 18].copy_from_slice(&(sum as u16).to_be_bytes());
            prop_assert!(Segment::parse(&partial).expect("parse").is_intact());
            prop_assert_eq!(Segment::parse(&partial).expect("parse").with_complete_checksum(), complete);
        }

        #[test]
        fn garbage_never_panics(mut frame in proptest::collection::vec(any::<u8>(), 0..200), sound in 0..3) {
            if frame.len() > 54 && sound > 0 {
                let (kind, version): (&[u8], u8) = if sound == 1 { (&[8, 0], 0x45) } else { (&[0x86, 0xdd], 0x60) };
                frame[12..14].copy_from_slice(kind);
                frame[14] = version;
                frame[if sound == 1 { 23 } else { 20 }] = 6;
            }
            if let Some(segment) = Segment::parse(&frame) {
                let _ = (segment.options(), segment.is_intact(), segment.path_inward(), segment.with_complete_checksum());
            }
        }
    }
}
