//! The announcement of a takeover: who sees it sends the workload's frames to this port from now on.
//!
//! Per IPv4 address a gratuitous ARP in both forms, request and reply, since some hosts heed only one (RFC 5227
//! section 3, `arp_accept` in ip-sysctl.rst); per IPv6 address an unsolicited neighbour advertisement with the
//! override flag (RFC 4861 section 7.2.6), and a report for its solicited-node group (RFC 3810), without which
//! a snooping bridge would keep neighbour solicitations from the new port. All carry the workload's MAC as source,
//! from which every switch on the way learns the new place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Icmpv6Type, IpHeaders, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, ip_number,
};

use crate::frame::empty;
use crate::{Mac, Moment, NetworkConfig};

/// When an announcement is made, after the first: soon again, in case the first was lost or a switch was still
/// moving the port, then ever more slowly. A lost announcement costs a client until its neighbour entry expires.
const SCHEDULE: [Duration; 6] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The workload's own MAC seen as a source from outside starts the schedule afresh, at most this often: two
/// that answer each other's announcements must not fill the network.
const LEAST_RESTART: Duration = Duration::from_millis(10);

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers that understand MLDv2, RFC 3810 section 5.2.14.
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// Neighbour discovery counts only with this hop limit: it proves a neighbour, RFC 4861 section 7.1.
pub(crate) const ND_HOP_LIMIT: u8 = 255;
/// ICMPv6 option "target link-layer address", RFC 4861 section 4.6.1, of one unit of 8 bytes.
const TARGET_ADDRESS_OPTION: [u8; 2] = [2, 1];

/// Announces a workload's addresses, on a schedule. Does no I/O: it says what to send and when to ask again.
#[derive(Debug)]
pub struct Announcer {
    frames: Vec<Vec<u8>>,
    started: Option<Moment>,
    /// How many of the schedule have been made, the one at the start included.
    made: usize,
}

impl Announcer {
    pub fn new(network: &NetworkConfig) -> Announcer {
        let mut frames = Vec::new();
        for net in &network.addresses {
            match net.addr() {
                IpAddr::V4(address) => {
                    frames.push(gratuitous_arp(network.mac, address, ArpOperation::REQUEST));
                    frames.push(gratuitous_arp(network.mac, address, ArpOperation::REPLY));
                }
                IpAddr::V6(address) => {
                    frames.push(unsolicited_advertisement(network.mac, address));
                    frames.push(listener_report(network.mac, address));
                }
            }
        }
        Announcer { frames, started: None, made: 0 }
    }

    /// Announces from `now` on: [`Announcer::due`] has the first announcement at once.
    pub fn start(&mut self, now: Moment) {
        self.started = Some(now);
        self.made = 0;
    }

    /// The workload's own MAC came in as a source: another speaks, or a switch still thinks so. Says it again.
    pub fn own_mac_seen(&mut self, now: Moment) {
        if self.started.is_some_and(|started| now.since(started) >= LEAST_RESTART) {
            self.start(now);
        }
    }

    pub fn stop(&mut self) {
        self.started = None;
    }

    /// What to send now. One announcement, however many are overdue.
    pub fn due(&mut self, now: Moment) -> &[Vec<u8>] {
        if self.next_at().is_none_or(|next| now < next) {
            return &[];
        }
        while self.next_at().is_some_and(|next| next <= now) {
            self.made += 1;
        }
        &self.frames
    }

    /// When [`Announcer::due`] will have something.
    pub fn next_at(&self) -> Option<Moment> {
        let started = self.started?;
        match self.made {
            0 => Some(started),
            made => SCHEDULE.get(made - 1).map(|&after| started + after),
        }
    }
}

/// The solicited-node group of an address, RFC 4291 section 2.7.1.
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

pub(crate) fn arp(source: Mac, destination: Mac, packet: ArpEthIpv4Packet) -> Vec<u8> {
    let mut frame = empty(64);
    frame.extend_from_slice(&destination.0);
    frame.extend_from_slice(&source.0);
    frame.extend_from_slice(&EtherType::ARP.0.to_be_bytes());
    frame.extend_from_slice(&packet.to_bytes());
    frame
}

fn gratuitous_arp(mac: Mac, address: Ipv4Addr, operation: ArpOperation) -> Vec<u8> {
    let target_mac = if operation == ArpOperation::REPLY { Mac::BROADCAST.0 } else { [0; 6] };
    arp(
        mac,
        Mac::BROADCAST,
        ArpEthIpv4Packet {
            operation,
            sender_mac: mac.0,
            sender_ipv4: address.octets(),
            target_mac,
            target_ipv4: address.octets(),
        },
    )
}

fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut body = address.octets().to_vec();
    body.extend_from_slice(&TARGET_ADDRESS_OPTION);
    body.extend_from_slice(&mac.0);
    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let builder = PacketBuilder::ethernet2(mac.0, Mac::of_ipv6_multicast(ALL_NODES).0)
        .ipv6(address.octets(), ALL_NODES.octets(), ND_HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(flags));
    written(|frame| builder.write(frame, &body))
}

/// A report of MLDv2: "I listen to this address' solicited-node group, whoever the source".
fn listener_report(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const REPORT: u8 = 143;
    const ONE_RECORD: [u8; 4] = [0, 0, 0, 1];
    const CHANGE_TO_EXCLUDE: [u8; 4] = [4, 0, 0, 0];
    // Router alert with value 0, "look at this" (RFC 2711), and two bytes of padding.
    const ROUTER_ALERT: [u8; 6] = [5, 2, 0, 0, 1, 0];

    let mut body = CHANGE_TO_EXCLUDE.to_vec();
    body.extend_from_slice(&solicited_node(address).octets());
    // Bridges and switches that snoop take a report from the unspecified address (RFC 3590); routers would want
    // the link-local one, and hear it from the workload's kernel on their next query.
    let header = Ipv6Header {
        next_header: ip_number::IPV6_HEADER_HOP_BY_HOP,
        hop_limit: 1,
        source: Ipv6Addr::UNSPECIFIED.octets(),
        destination: ALL_MLDV2_ROUTERS.octets(),
        ..Default::default()
    };
    let options = Ipv6RawExtHeader::new_raw(ip_number::IPV6_ICMP, &ROUTER_ALERT).ok();
    let extensions = Ipv6Extensions { hop_by_hop_options: options, ..Default::default() };
    let builder = PacketBuilder::ethernet2(mac.0, Mac::of_ipv6_multicast(ALL_MLDV2_ROUTERS).0)
        .ip(IpHeaders::Ipv6(header, extensions))
        .icmpv6_raw(REPORT, 0, ONE_RECORD);
    written(|frame| builder.write(frame, &body))
}

/// The frame that a packet builder writes. It fails only on lengths beyond 64 KiB, which nothing here nears; a
/// frame without its packet would be dropped by any receiver.
pub(crate) fn written<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = empty(128);
    let done = write(&mut frame);
    debug_assert!(done.is_ok());
    frame
}

#[cfg(test)]
mod tests {
    use etherparse::{LaxNetSlice, TransportSlice};

    use super::*;
    use crate::frame::{parse, source_mac};
    use crate::{Class, classify, destination_mac};

    fn network() -> NetworkConfig {
        NetworkConfig::new(
            "announced",
            vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
        )
    }

    fn frames() -> Vec<Vec<u8>> {
        let mut announcer = Announcer::new(&network());
        announcer.start(Moment::from_nanos(0));
        announcer.due(Moment::from_nanos(0)).to_vec()
    }

    #[test]
    fn every_frame_is_from_the_workload_and_to_all() {
        let frames = frames();
        assert_eq!(frames.len(), 4);
        for frame in &frames {
            assert_eq!(source_mac(frame), Some(network().mac));
            assert!(destination_mac(frame).unwrap().is_multicast());
            assert_eq!(classify(frame), Class::KernelAlone, "{frame:02x?}");
        }
    }

    #[test]
    fn arp_in_both_forms_names_the_address_twice() {
        for (frame, operation) in frames().iter().zip([ArpOperation::REQUEST, ArpOperation::REPLY]) {
            let Some(LaxNetSlice::Arp(arp)) = parse(frame).unwrap().net else { panic!("not ARP") };
            let arp = arp.to_packet().try_eth_ipv4().unwrap();
            assert_eq!(arp.operation, operation);
            assert_eq!((arp.sender_mac, arp.sender_ipv4), (network().mac.0, [192, 0, 2, 10]));
            assert_eq!(arp.target_ipv4, [192, 0, 2, 10]);
        }
    }

    #[test]
    fn ipv6_checksums_are_right() {
        for frame in &frames()[2..] {
            let packet = parse(frame).unwrap();
            let Some(LaxNetSlice::Ipv6(ip)) = packet.net else { panic!("not IPv6") };
            let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("not ICMPv6") };
            let (source, destination) = (ip.header().source(), ip.header().destination());
            assert!(icmp.is_checksum_valid(source, destination), "{frame:02x?}");
            match icmp.type_u8() {
                136 => {
                    assert_eq!(ip.header().hop_limit(), 255);
                    assert_eq!(icmp.bytes5to8(), [0x20, 0, 0, 0], "override alone");
                    assert_eq!(icmp.payload()[..16], "2001:db8::10".parse::<Ipv6Addr>().unwrap().octets());
                    assert_eq!(icmp.payload()[18..], network().mac.0);
                }
                143 => {
                    assert_eq!(icmp.payload()[4..], "ff02::1:ff00:10".parse::<Ipv6Addr>().unwrap().octets(),)
                }
                other => panic!("ICMPv6 type {other}"),
            }
        }
    }

    #[test]
    fn the_schedule_slows_down_and_starts_again_when_another_speaks() {
        let millis = |ms: u64| Moment::from_nanos(ms * 1_000_000);
        let mut announcer = Announcer::new(&network());
        assert!(
            announcer.due(millis(0)).is_empty() && announcer.next_at().is_none(),
            "not before it is started"
        );
        announcer.own_mac_seen(millis(0));
        assert!(announcer.next_at().is_none());

        announcer.start(millis(0));
        let mut made = Vec::new();
        while let Some(next) = announcer.next_at() {
            assert_eq!(announcer.due(next).len(), 4);
            assert!(announcer.due(next).is_empty(), "once");
            made.push(next.as_nanos() / 1_000_000);
        }
        assert_eq!(made, [0, 10, 50, 200, 1000, 2000, 4000]);

        announcer.own_mac_seen(millis(5000));
        assert_eq!(announcer.due(millis(5000)).len(), 4);
        announcer.own_mac_seen(millis(5001));
        assert!(announcer.due(millis(5001)).is_empty(), "not at any rate another may choose");
        assert_eq!(announcer.due(millis(8000)).len(), 4, "one, however many were missed");
        assert_eq!(announcer.next_at(), Some(millis(9000)));
        announcer.stop();
        assert!(announcer.due(millis(99_000)).is_empty());
    }
}
