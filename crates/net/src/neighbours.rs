//! Who is where on the network: addresses and their MACs, before the workload's kernel knows any.
//!
//! At a takeover frames have to be sent while the kernel inside is not yet connected. Most peers are known
//! from the frames they sent: whoever handed us a packet from an address takes the packet back to it. The others
//! are asked for by ARP and neighbour solicitation.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation, Icmpv6Type, LaxNetSlice, PacketBuilder, TransportSlice};

use crate::announce::{ND_HOP_LIMIT, arp, solicited_node, written};
use crate::frame::{parse, source_mac};
use crate::{Mac, Moment, NetworkConfig};

/// More peers than a workload has on one network; what is beyond is not remembered but asked for when needed.
const MAX_KNOWN: usize = 65_536;
/// Neighbours asked for at a time; requests beyond are refused and may be repeated.
const MAX_ASKED: usize = 4_096;
/// An answer takes less than a millisecond on a local network. A lost question is repeated at twice the time each
/// time, up to the second that the kernel takes (`retrans_time_ms`, ip-sysctl.rst).
const FIRST_REPEAT: Duration = Duration::from_millis(5);
const LAST_REPEAT: Duration = Duration::from_secs(1);

/// ICMPv6 option "source link-layer address", RFC 4861 section 4.6.1, of one unit of 8 bytes.
const SOURCE_ADDRESS_OPTION: [u8; 2] = [1, 1];

/// What is known of the neighbours, and who is being asked for. Does no I/O.
#[derive(Debug)]
pub struct Neighbours {
    network: NetworkConfig,
    known: HashMap<IpAddr, Mac>,
    asked: HashMap<IpAddr, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    next_at: Moment,
    repeat_after: Duration,
}

impl Neighbours {
    pub fn new(network: NetworkConfig) -> Neighbours {
        Neighbours { network, known: HashMap::new(), asked: HashMap::new() }
    }

    pub fn network(&self) -> &NetworkConfig {
        &self.network
    }

    /// Learns from a frame that came in: the log of retained frames will do.
    pub fn learn(&mut self, frame: &[u8]) {
        let Some((address, mac)) = sender(frame) else { return };
        if mac == self.network.mac || !mac.is_station() || address.is_unspecified() || address.is_multicast()
        {
            return;
        }
        if self.known.len() < MAX_KNOWN || self.known.contains_key(&address) {
            self.known.insert(address, mac);
            self.asked.remove(&address);
        }
    }

    /// The MAC to which a packet for `remote` goes, if known.
    pub fn mac_towards(&self, remote: IpAddr) -> Option<Mac> {
        let next_hop = || self.network.next_hop(remote).and_then(|hop| self.known.get(&hop));
        self.known.get(&remote).or_else(next_hop).copied()
    }

    /// Asks for the way to `remote`, from `now` on and until [`Neighbours::learn`] hears the answer. `false`: there
    /// is no route, or too many are being asked for.
    pub fn ask_for(&mut self, remote: IpAddr, now: Moment) -> bool {
        let Some(hop) = self.network.next_hop(remote) else { return false };
        if self.asked.len() >= MAX_ASKED && !self.asked.contains_key(&hop) {
            return false;
        }
        self.asked.entry(hop).or_insert(Asked { next_at: now, repeat_after: FIRST_REPEAT });
        true
    }

    /// The questions to send now.
    pub fn due(&mut self, now: Moment) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (&hop, asked) in self.asked.iter_mut().filter(|(_, asked)| asked.next_at <= now) {
            asked.next_at = now + asked.repeat_after;
            asked.repeat_after = (asked.repeat_after * 2).min(LAST_REPEAT);
            frames.extend(question(&self.network, hop));
        }
        frames
    }

    /// When [`Neighbours::due`] will have something.
    pub fn next_at(&self) -> Option<Moment> {
        self.asked.values().map(|asked| asked.next_at).min()
    }
}

/// Who sent a frame, by the layer that says so: ARP and neighbour advertisements name an address, other packets
/// show theirs.
pub(crate) fn sender(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet = parse(frame)?;
    let source = source_mac(frame)?;
    match packet.net? {
        LaxNetSlice::Arp(arp) => {
            let arp = arp.to_packet().try_eth_ipv4().ok()?;
            Some((Ipv4Addr::from(arp.sender_ipv4).into(), Mac(arp.sender_mac)))
        }
        LaxNetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), source)),
        LaxNetSlice::Ipv6(ip) => {
            if let Some(TransportSlice::Icmpv6(icmp)) = packet.transport
                && let Icmpv6Type::NeighborAdvertisement(_) = icmp.icmp_type()
                && ip.header().hop_limit() == ND_HOP_LIMIT
            {
                let target: [u8; 16] = icmp.payload().get(..16)?.try_into().ok()?;
                return Some((Ipv6Addr::from(target).into(), source));
            }
            Some((ip.header().source_addr().into(), source))
        }
    }
}

/// The question who has `hop`, from the workload's address in the same network.
fn question(network: &NetworkConfig, hop: IpAddr) -> Option<Vec<u8>> {
    let ours = network.addresses.iter().filter(|net| net.addr().is_ipv4() == hop.is_ipv4());
    let from = ours.clone().find(|net| net.contains(&hop)).or(ours.clone().next())?.addr();
    Some(match (from, hop) {
        (IpAddr::V4(from), IpAddr::V4(hop)) => arp_request(network.mac, from, hop),
        (IpAddr::V6(from), IpAddr::V6(hop)) => solicitation(network.mac, from, hop),
        _ => return None,
    })
}

pub(crate) fn arp_request(mac: Mac, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(
        mac,
        Mac::BROADCAST,
        ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: mac.0,
            sender_ipv4: from.octets(),
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        },
    )
}

/// A neighbour solicitation. From the unspecified address it is the one of duplicate address detection, which
/// carries no link-layer address and is answered to all nodes (RFC 4861 section 4.3, RFC 4862 section 5.4).
pub(crate) fn solicitation(mac: Mac, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(target);
    let mut body = target.octets().to_vec();
    if !from.is_unspecified() {
        body.extend_from_slice(&SOURCE_ADDRESS_OPTION);
        body.extend_from_slice(&mac.0);
    }
    let builder = PacketBuilder::ethernet2(mac.0, Mac::of_ipv6_multicast(group).0)
        .ipv6(from.octets(), group.octets(), ND_HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborSolicitation);
    written(|frame| builder.write(frame, &body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Route;
    use crate::frame::empty;

    const PEER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn neighbours() -> Neighbours {
        let mut network = NetworkConfig::new(
            "neighbours",
            vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
        );
        network.routes =
            vec![Route { destination: "0.0.0.0/0".parse().unwrap(), via: "192.0.2.1".parse().unwrap() }];
        Neighbours::new(network)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn datagram_from(mac: Mac, address: [u8; 4]) -> Vec<u8> {
        let mut frame = empty(64);
        let builder = PacketBuilder::ethernet2(mac.0, [2; 6]).ipv4(address, [192, 0, 2, 10], 64).udp(1, 2);
        builder.write(&mut frame, b"x").unwrap();
        frame
    }

    #[test]
    fn a_frame_that_came_in_shows_the_way_back() {
        let mut neighbours = neighbours();
        neighbours.learn(&datagram_from(PEER, [198, 51, 100, 1]));
        assert_eq!(neighbours.mac_towards(ip("198.51.100.1")), Some(PEER));
        assert_eq!(neighbours.mac_towards(ip("198.51.100.2")), None, "another gateway may lead there");
        let own = neighbours.network().mac;
        neighbours.learn(&datagram_from(own, [192, 0, 2, 7]));
        neighbours.learn(&datagram_from(Mac::BROADCAST, [192, 0, 2, 7]));
        assert_eq!(neighbours.mac_towards(ip("192.0.2.7")), None);
    }

    #[test]
    fn the_gateway_is_asked_for_until_it_answers() {
        let mut neighbours = neighbours();
        let now = Moment::from_nanos(1_000_000_000);
        assert!(neighbours.ask_for(ip("198.51.100.1"), now));
        assert!(neighbours.ask_for(ip("198.51.100.2"), now));
        let questions = neighbours.due(now);
        assert_eq!(questions.len(), 1, "one gateway, one question");
        assert!(questions[0].ends_with(&[192, 0, 2, 1]));
        assert!(neighbours.due(now).is_empty());
        let next = neighbours.next_at().unwrap();
        assert_eq!(next.since(now), FIRST_REPEAT);
        assert_eq!(neighbours.due(next).len(), 1);
        assert_eq!(neighbours.next_at().unwrap().since(next), FIRST_REPEAT * 2);

        neighbours.learn(&arp(
            PEER,
            neighbours.network().mac,
            ArpEthIpv4Packet {
                operation: ArpOperation::REPLY,
                sender_mac: PEER.0,
                sender_ipv4: [192, 0, 2, 1],
                target_mac: neighbours.network().mac.0,
                target_ipv4: [192, 0, 2, 10],
            },
        ));
        assert_eq!(neighbours.next_at(), None);
        assert_eq!(neighbours.mac_towards(ip("198.51.100.1")), Some(PEER));
        assert!(!neighbours.ask_for(ip("2001:db9::1"), now), "no route");
    }

    #[test]
    fn a_neighbour_is_solicited_and_its_advertisement_heard() {
        let mut neighbours = neighbours();
        let now = Moment::from_nanos(0);
        assert!(neighbours.ask_for(ip("2001:db8::5"), now));
        let question = &neighbours.due(now)[0];
        let Some(TransportSlice::Icmpv6(icmp)) = parse(question).unwrap().transport else { panic!() };
        let [from, group] =
            ["2001:db8::10", "ff02::1:ff00:5"].map(|a| a.parse::<Ipv6Addr>().unwrap().octets());
        assert!(icmp.is_checksum_valid(from, group));
        assert_eq!(sender(question), Some((ip("2001:db8::10"), neighbours.network().mac)));

        let mut answer = empty(128);
        let mut body = "2001:db8::5".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        body.extend_from_slice(&[2, 1, 2, 0, 0, 0, 0, 9]);
        PacketBuilder::ethernet2(PEER.0, neighbours.network().mac.0)
            // Answered from another of its addresses, as a router may.
            .ipv6("fe80::9".parse::<Ipv6Addr>().unwrap().octets(), from, 255)
            .icmpv6_raw(136, 0, [0x60, 0, 0, 0])
            .write(&mut answer, &body)
            .unwrap();
        neighbours.learn(&answer);
        assert_eq!(neighbours.mac_towards(ip("2001:db8::5")), Some(PEER));
    }
}
