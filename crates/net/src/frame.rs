//! Frames as a TAP device hands them over, and what kind of thing each says.
//!
//! Every device here has `IFF_VNET_HDR`, so a frame is a `struct virtio_net_hdr` (linux/virtio_net.h) followed
//! by the Ethernet frame. The header says what the kernel left undone (checksum, segmentation); it passes
//! through this crate unchanged, which is what makes large writes one frame instead of forty.

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

use crate::Mac;

/// `sizeof(struct virtio_net_hdr)`: the default of `IFF_VNET_HDR` (drivers/net/tun.c, `tun->vnet_hdr_sz`).
pub const VNET_HEADER: usize = 10;
/// Destination, source, type.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// The largest frame a TAP hands over: a packet of `GSO_LEGACY_MAX_SIZE` (65,536, linux/netdevice.h; larger
/// ones are segmented before a device that does not raise its `gso_max_size`), its Ethernet header, two VLAN
/// tags and the virtio header, rounded up to whole pages.
pub const MAX_FRAME: usize = 17 * 4096;

/// Flags of the virtio header that say who vouches for the checksum (linux/virtio_net.h).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// What a frame says, as far as the output rule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It tells something of the workload's state: data, an opened, closed or refused connection, a datagram;
    /// and whatever is not understood.
    Payload,
    /// A TCP segment without data or SYN, FIN, RST. It says what the workload's kernel has received, so it
    /// waits for a commit like payload, but nobody waits for an answer in it.
    PureAck,
    /// What the kernel says by itself, without any state of the workload (R1): ARP, neighbour and router
    /// solicitation, group membership (repeated on every query), echo replies.
    KernelAlone,
}

// Types of ICMP and ICMPv6 that the kernel alone sends: RFC 792, 4443, 4861, 2710, 3810.
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6_ECHO_REPLY: u8 = 129;
const ICMPV6_LISTENER_REPORTS: [u8; 3] = [131, 132, 143];
const ICMPV6_ROUTER_SOLICITATION: u8 = 133;
const ICMPV6_NEIGHBOUR: [u8; 2] = [135, 136];

/// Classifies an outgoing frame. Whatever cannot be parsed is [`Class::Payload`]: held longest, the safe side.
pub fn classify(frame: &[u8]) -> Class {
    let Some(packet) = parse(frame) else { return Class::Payload };
    if let Some(LaxNetSlice::Arp(_)) = packet.net {
        return Class::KernelAlone;
    }
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let plain_ack = tcp.ack() && !tcp.syn() && !tcp.fin() && !tcp.rst();
            if plain_ack && tcp.payload().is_empty() { Class::PureAck } else { Class::Payload }
        }
        Some(TransportSlice::Icmpv4(icmp)) if icmp.type_u8() == ICMP_ECHO_REPLY => Class::KernelAlone,
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.type_u8() {
            ICMPV6_ECHO_REPLY | ICMPV6_ROUTER_SOLICITATION => Class::KernelAlone,
            kind if ICMPV6_NEIGHBOUR.contains(&kind) => Class::KernelAlone,
            kind if ICMPV6_LISTENER_REPORTS.contains(&kind) => Class::KernelAlone,
            _ => Class::Payload,
        },
        _ => Class::Payload,
    }
}

/// The Ethernet frame behind the virtio header, if it is at least a header long.
pub(crate) fn ethernet(frame: &[u8]) -> Option<&[u8]> {
    frame.get(VNET_HEADER..).filter(|ethernet| ethernet.len() >= ETHERNET_HEADER)
}

/// The layers of a frame, as far as they can be understood. Never fails on the lengths of a frame that is to
/// be segmented.
pub(crate) fn parse(frame: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    LaxSlicedPacket::from_ethernet(ethernet(frame)?).ok()
}

pub fn destination_mac(frame: &[u8]) -> Option<Mac> {
    mac_at(frame, 0)
}

pub fn source_mac(frame: &[u8]) -> Option<Mac> {
    mac_at(frame, 6)
}

fn mac_at(frame: &[u8], offset: usize) -> Option<Mac> {
    let bytes = ethernet(frame)?.get(offset..offset + 6)?;
    Some(Mac(bytes.try_into().ok()?))
}

/// Whether the kernel or the network card already vouches for the checksums of a frame.
pub(crate) fn checksum_vouched(frame: &[u8]) -> bool {
    frame.first().is_some_and(|flags| flags & (NEEDS_CSUM | DATA_VALID) != 0)
}

/// Room for a frame that this crate writes itself: nothing is left to the kernel, so the virtio header is zero
/// (`VIRTIO_NET_HDR_GSO_NONE`, no flags).
pub(crate) fn empty(capacity: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(VNET_HEADER + capacity);
    frame.resize(VNET_HEADER, 0);
    frame
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::{IpFragOffset, IpHeaders, Ipv4Header, PacketBuilder, TcpHeader, ip_number};
    use proptest::prelude::*;

    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn tcp(set: impl FnOnce(&mut TcpHeader), payload: &[u8], v6: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(80, 4000, 1000, 65_000);
        header.ack = true;
        set(&mut header);
        let link = PacketBuilder::ethernet2(A, B);
        let ip =
            if v6 { link.ipv6([1; 16], [2; 16], 64) } else { link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
        let mut frame = empty(64 + payload.len());
        ip.tcp_header(header).write(&mut frame, payload).unwrap();
        frame
    }

    /// A data segment, for tests of other modules.
    pub(crate) fn payload_frame(tag: u32) -> Vec<u8> {
        tcp(|header| header.psh = true, &tag.to_be_bytes(), false)
    }

    pub(crate) fn ack_frame(tag: u32) -> Vec<u8> {
        tcp(|header| header.acknowledgment_number = tag, &[], false)
    }

    pub(crate) fn echo_reply_frame(tag: u16) -> Vec<u8> {
        let mut frame = empty(64);
        PacketBuilder::ethernet2(A, B)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .icmpv4_echo_reply(1, tag)
            .write(&mut frame, &[])
            .unwrap();
        frame
    }

    #[test]
    fn tcp_that_moves_the_stream_is_payload_and_the_rest_a_pure_ack() {
        for v6 in [false, true] {
            assert_eq!(classify(&tcp(|_| (), &[], v6)), Class::PureAck);
            assert_eq!(classify(&tcp(|_| (), b"x", v6)), Class::Payload);
            assert_eq!(classify(&tcp(|h| h.syn = true, &[], v6)), Class::Payload);
            assert_eq!(classify(&tcp(|h| h.fin = true, &[], v6)), Class::Payload);
            assert_eq!(classify(&tcp(|h| h.rst = true, &[], v6)), Class::Payload);
            assert_eq!(classify(&tcp(|h| h.ack = false, &[], v6)), Class::Payload);
        }
    }

    #[test]
    fn ethernet_padding_is_not_data() {
        let mut ack = tcp(|_| (), &[], false);
        ack.resize(VNET_HEADER + 60, 0);
        assert_eq!(classify(&ack), Class::PureAck);
    }

    #[test]
    fn a_frame_to_be_segmented_is_payload() {
        let data = vec![7; 60_000];
        for v6 in [false, true] {
            let mut frame = tcp(|_| (), &data, v6);
            frame[0] = NEEDS_CSUM;
            frame[1] = 1;
            assert_eq!(classify(&frame), Class::Payload);
        }
    }

    #[test]
    fn what_the_kernel_says_alone() {
        assert_eq!(classify(&echo_reply_frame(1)), Class::KernelAlone);
        for kind in [129, 131, 132, 133, 135, 136, 143] {
            let mut frame = empty(64);
            PacketBuilder::ethernet2(A, B)
                .ipv6([1; 16], [2; 16], 255)
                .icmpv6_raw(kind, 0, [0; 4])
                .write(&mut frame, &[0; 16])
                .unwrap();
            assert_eq!(classify(&frame), Class::KernelAlone, "ICMPv6 type {kind}");
        }
        let mut arp = empty(64);
        arp.extend_from_slice(&[0xff; 6]);
        arp.extend_from_slice(&A);
        arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend_from_slice(&[0; 20]);
        assert_eq!(classify(&arp), Class::KernelAlone);
    }

    #[test]
    fn everything_else_is_payload() {
        let datagram = |kind: u8| {
            let mut frame = empty(64);
            let ip = PacketBuilder::ethernet2(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            match kind {
                0 => ip.udp(53, 5353).write(&mut frame, b"x"),
                1 => ip.icmpv4_echo_request(1, 1).write(&mut frame, b"x"),
                _ => ip.icmpv4_raw(3, 3, [0; 4]).write(&mut frame, b"x"),
            }
            .unwrap();
            frame
        };
        for kind in 0..3 {
            assert_eq!(classify(&datagram(kind)), Class::Payload);
        }
        // A later fragment of an echo reply or of a TCP segment has no header to judge by.
        let mut ip = Ipv4Header::new(8, 64, ip_number::ICMP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        ip.fragment_offset = IpFragOffset::try_new(100).unwrap();
        let mut frame = empty(64);
        PacketBuilder::ethernet2(A, B)
            .ip(IpHeaders::Ipv4(ip, Default::default()))
            .icmpv4_echo_reply(1, 1)
            .write(&mut frame, &[])
            .unwrap();
        assert_eq!(classify(&frame), Class::Payload);
        assert_eq!(classify(&[]), Class::Payload);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            classify(&bytes);
            source_mac(&bytes);
            destination_mac(&bytes);
        }

        #[test]
        fn truncation_never_turns_payload_into_something_freer(cut in 0usize..70) {
            let frame = payload_frame(7);
            let cut = cut.min(frame.len() - 1);
            // Cut after the TCP header the segment looks empty; a TAP never cuts, so only the shorter ones count.
            if cut < VNET_HEADER + ETHERNET_HEADER + 20 + 20 {
                prop_assert_eq!(classify(&frame[..cut]), Class::Payload);
            }
        }
    }
}
