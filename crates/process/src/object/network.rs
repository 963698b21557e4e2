//! The workload's own configuration of its network: links, addresses, next hops, routes, rules and permanent neighbours, as they are. The
//! namespace is made alike on every node; what the workload has made of it is made again on the copy (`network_restore`).
//!
//! Everything is kept in the kernel's own encoding, less what the kernel itself adds. Interfaces are known by name, since
//! their numbers may differ from host to host.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::{Attempt, Error, Result};
use crate::sys::rtnetlink::{
    ADDRESS, DISCIPLINE, Entry, Kind, LINK, NEIGHBOUR, NEXT_HOP, ROUTE, RULE, Settings,
};
use crate::tree::FIRST;

pub(super) const INET: u8 = libc::AF_INET as u8;
pub(super) const INET6: u8 = libc::AF_INET6 as u8;

/// Where the number of the interface is in the fixed part.
const LINK_INDEX: usize = 4;
const ADDRESS_INDEX: usize = 4;
const NEIGHBOUR_INDEX: usize = 4;
const DISCIPLINE_INDEX: usize = 4;

/// `struct ifinfomsg`: type (2 bytes) at 2, flags at 8, which of them to change at 12.
const LINK_TYPE: usize = 2;
const LINK_FLAGS: usize = 8;
const LINK_CHANGE: usize = 12;
/// `ARPHRD_ETHER`, `ARPHRD_LOOPBACK` (`linux/if_arp.h`).
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
/// IFF_UP, DEBUG, NOARP, PROMISC, ALLMULTI, MULTICAST (`linux/if.h`): what a program may set.
const SETTABLE: u32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000;
/// IFLA_ADDRESS, IFNAME, MTU, TXQLEN, IFALIAS, GROUP, XDP (`linux/if_link.h`).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_XDP: u16 = 43;
const IFLA_KEPT: [u16; 4] = [4, 13, 20, 27];
/// `IFLA_XDP_ATTACHED`, a byte, comes first in `IFLA_XDP`.
const XDP_ATTACHED: usize = 4;

/// `struct ifaddrmsg`: prefix length at 1, flags at 2, scope at 3.
pub(super) const ADDRESS_FLAGS: usize = 2;
/// IFA_ADDRESS, LOCAL, LABEL, BROADCAST, CACHEINFO, FLAGS, RT_PRIORITY, PROTO (`linux/if_addr.h`).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
pub(super) const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const IFA_KEPT: [u16; 8] = [1, 2, 3, 4, 6, 8, 9, 11];
/// `IFAPROT_KERNEL_LL`: the kernel made it from the MAC address.
const LINK_LOCAL: u8 = 3;
/// IFA_F_SECONDARY, NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN.
const IFA_F_KEPT: u32 = 0x1 | 0x2 | 0x10 | 0x100 | 0x200 | 0x400;
/// `IFA_F_DEPRECATED`.
const DEPRECATED: u32 = 0x20;
/// `struct ifa_cacheinfo`: preferred and valid lifetimes in seconds come first; all ones is for ever.
const CACHEINFO: usize = 16;
const FOR_EVER: u32 = u32::MAX;

/// `struct rtmsg`: prefix length at 1, table at 4, protocol at 5, type at 7, flags at 8.
const ROUTE_LENGTH: usize = 1;
const ROUTE_TABLE: usize = 4;
const ROUTE_PROTOCOL: usize = 5;
const ROUTE_TYPE: usize = 7;
const ROUTE_FLAGS: usize = 8;
/// `RTM_F_CLONED`: an entry of a cache. `RTNH_F_ONLINK`: the only flag that is a setting.
const CLONED: u32 = 0x200;
const ONLINK: u32 = 4;
/// RTPROT_REDIRECT, RTPROT_KERNEL; RT_TABLE_LOCAL, RT_TABLE_MAIN; RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE.
const BY_REDIRECT: u8 = 1;
const BY_KERNEL: u8 = 2;
const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u32 = 254;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;
const UNREACHABLE: u8 = 7;
/// RTA_DST, IIF, OIF, GATEWAY, PRIORITY, MULTIPATH, CACHEINFO, TABLE, VIA, ENCAP_TYPE, ENCAP, EXPIRES, NH_ID.
const RTA_DST: u16 = 1;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;
/// In `struct rta_cacheinfo`: when it expires, or zero.
const EXPIRES: usize = 8;
/// `struct rtnexthop`: length (2 bytes), flags at 2, weight, interface at 4.
const HOP: usize = 8;

/// `struct nhmsg`: family, scope at 1, protocol at 2, flags at 4.
const NEXT_HOP_SCOPE: usize = 1;
pub(super) const NEXT_HOP_FLAGS: usize = 4;
/// NHA_ID, GROUP, GROUP_TYPE, BLACKHOLE, OIF, GATEWAY, ENCAP_TYPE, ENCAP, FDB, RES_GROUP (`linux/nexthop.h`).
pub(super) const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
pub(super) const NHA_OIF: u16 = 5;
const NHA_KEPT: [u16; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 11];
const NHA_RES_GROUP: u16 = 12;

/// `struct fib_rule_hdr`: flags at 8. FIB_RULE_UNRESOLVED, IIF_DETACHED, OIF_DETACHED are the kernel's findings.
const RULE_FLAGS: usize = 8;
const RULE_FOUND: u32 = 0x4 | 0x8 | 0x10;
/// `FRA_PAD` of `linux/fib_rules.h` only aligns.
const FRA_PAD: u16 = 18;

/// `struct ndmsg`: state (2 bytes) at 8, flags at 10.
const NEIGHBOUR_STATE: usize = 8;
const NEIGHBOUR_FLAGS: usize = 10;
/// NUD_NOARP, NUD_PERMANENT; NTF_PROXY; NDA_DST, LLADDR, PROTOCOL, FLAGS_EXT (`linux/neighbour.h`).
const NOARP: u16 = 0x40;
const PERMANENT: u16 = 0x80;
const PROXY: u8 = 0x08;
const NDA_LLADDR: u16 = 2;
const NDA_KEPT: [u16; 4] = [1, 2, 12, 15];

/// `struct tcmsg`: the handle at 8; the kernel gives those that it makes none.
const DISCIPLINE_HANDLE: usize = 8;

const ADVICE: &str = "undo it, or set it with `outlive run` (--ip, --route) instead of in the program";

/// An interface that a workload's namespace has from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub index: u32,
    pub name: String,
    mac: Vec<u8>,
    /// The loopback, or the one way out; what else there may be is the kernel's own, on hosts with certain modules.
    ours: bool,
}

/// All of it. Interfaces are numbered by their places in `devices`, from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub devices: Vec<String>,
    pub(super) links: Vec<Entry>,
    /// In the kernel's order, for the first of a network is the one that speaks.
    pub(super) addresses: Vec<Entry>,
    /// Those that stand for themselves before the groups of them.
    pub(super) next_hops: Vec<Entry>,
    pub(super) routes: Vec<Entry>,
    pub(super) rules: Vec<Entry>,
    pub(super) neighbours: Vec<Entry>,
}

fn question(kind: Kind, family: u8) -> Entry {
    let mut header = vec![0; kind.header];
    header[0] = family;
    Entry { header, attributes: Vec::new() }
}

fn text(value: Option<&[u8]>) -> String {
    let bytes = value.unwrap_or_default();
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn half(entry: &Entry, at: usize) -> u16 {
    u16::from_ne_bytes([entry.byte(at), entry.byte(at + 1)])
}

/// The interfaces of the calling thread's namespace.
pub(crate) fn devices(settings: &mut Settings) -> io::Result<Vec<Device>> {
    let mut found = settings.list(LINK, question(LINK, 0))?;
    found.sort_by_key(|link| link.word(LINK_INDEX));
    let device = |link: &Entry| Device {
        index: link.word(LINK_INDEX),
        name: text(link.get(IFLA_IFNAME)),
        mac: link.get(IFLA_ADDRESS).unwrap_or_default().to_vec(),
        ours: [ETHERNET, LOOPBACK].contains(&half(link, LINK_TYPE)),
    };
    Ok(found.iter().map(device).collect())
}

/// What cannot be kept, by name.
fn refused<T>(what: String) -> Result<T> {
    Err(Error::Unsupported { pid: FIRST, what, advice: ADVICE })
}

struct Reading<'a> {
    devices: &'a [Device],
}

impl Reading<'_> {
    /// The place of an interface; 0 stands for none.
    fn place(&self, index: u32) -> Result<u32> {
        if index == 0 {
            return Ok(0);
        }
        let ours = self.devices.iter().filter(|device| device.ours);
        match ours.zip(1..).find(|(device, _)| device.index == index) {
            Some((_, place)) => Ok(place),
            None => refused(format!("settings of its own for network device {index}")),
        }
    }

    fn place_in(&self, entry: &mut Entry, kind: u16) -> Result<()> {
        if let Some(index) = entry.number(kind) {
            entry.set(kind, &self.place(index)?.to_ne_bytes());
        }
        Ok(())
    }

    fn link(&self, mut link: Entry) -> Result<Option<Entry>> {
        let (index, name) = (link.word(LINK_INDEX), text(link.get(IFLA_IFNAME)));
        let Some(before) = self.devices.iter().find(|device| device.index == index && device.name == name)
        else {
            return refused(format!("the network device {name} of its own"));
        };
        if link.get(IFLA_ADDRESS).unwrap_or_default() != before.mac {
            return refused(format!("another MAC address of {name}"));
        }
        if link.get(IFLA_XDP).and_then(|xdp| xdp.get(XDP_ATTACHED)).is_some_and(|attached| *attached != 0) {
            return refused(format!("a BPF program on {name}"));
        }
        if !before.ours {
            return Ok(None);
        }
        link.keep(&IFLA_KEPT);
        let flags = link.word(LINK_FLAGS) & SETTABLE;
        link.header = vec![0; LINK.header];
        link.set_word(LINK_INDEX, self.place(index)?);
        link.set_word(LINK_FLAGS, flags);
        link.set_word(LINK_CHANGE, SETTABLE);
        Ok(Some(link))
    }

    fn address(&self, mut entry: Entry) -> Result<Option<Entry>> {
        if entry.get(IFA_PROTO) == Some(&[LINK_LOCAL]) {
            return Ok(None);
        }
        entry.keep(&IFA_KEPT);
        let flags = entry.number(IFA_FLAGS).unwrap_or(entry.byte(ADDRESS_FLAGS).into());
        if let Some(info) = entry.get(IFA_CACHEINFO) {
            let word = |at: usize| {
                info.get(at..at + 4).and_then(|word| word.try_into().ok().map(u32::from_ne_bytes))
            };
            let forever = word(4) == Some(FOR_EVER) && [Some(0), Some(FOR_EVER)].contains(&word(0));
            if !forever {
                return refused("an address that expires".to_owned());
            }
            entry.forget(&[IFA_CACHEINFO]);
        }
        // Of an IPv4 address the flag alone says so, and only a lifetime of none makes it.
        if flags & DEPRECATED != 0 {
            let mut info = [0; CACHEINFO];
            info[4..8].copy_from_slice(&FOR_EVER.to_ne_bytes());
            entry.set(IFA_CACHEINFO, &info);
        }
        let flags = flags & IFA_F_KEPT;
        entry.set(IFA_FLAGS, &flags.to_ne_bytes());
        entry.set_byte(ADDRESS_FLAGS, flags.to_le_bytes()[0]);
        entry.set_word(ADDRESS_INDEX, self.place(entry.word(ADDRESS_INDEX))?);
        Ok(Some(entry))
    }

    fn route(&self, mut route: Entry) -> Result<Option<Entry>> {
        let (protocol, table) = (route.byte(ROUTE_PROTOCOL), table_of(&route));
        let by_kernel = protocol == BY_KERNEL && (table == TABLE_LOCAL || is_link_local(&route));
        // What is there where IPv6 has no other way.
        let nowhere = route.byte(ROUTE_TYPE) == UNREACHABLE && route.number(RTA_PRIORITY) == Some(u32::MAX);
        if by_kernel || nowhere || protocol == BY_REDIRECT || route.word(ROUTE_FLAGS) & CLONED != 0 {
            return Ok(None);
        }
        let expires = route.get(RTA_CACHEINFO).and_then(|info| info.get(EXPIRES..EXPIRES + 4));
        if expires.is_some_and(|when| when != [0; 4]) {
            return refused("a route that expires".to_owned());
        }
        route.forget(&[RTA_CACHEINFO, RTA_EXPIRES]);
        route.set_word(ROUTE_FLAGS, route.word(ROUTE_FLAGS) & ONLINK);
        if route.get(RTA_NH_ID).is_some() {
            // The kernel lists with it what the next hop says, and takes one of both.
            route.forget(&[RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP_TYPE, RTA_ENCAP]);
            route.set_word(ROUTE_FLAGS, 0);
        }
        self.place_in(&mut route, RTA_OIF)?;
        self.place_in(&mut route, RTA_IIF)?;
        for (_, hops) in route.attributes.iter_mut().filter(|(kind, _)| *kind == RTA_MULTIPATH) {
            each_hop(hops, |hop| {
                hop[2] &= ONLINK as u8;
                let index = [hop[4], hop[5], hop[6], hop[7]];
                let place = self.place(u32::from_ne_bytes(index))?;
                hop[4..8].copy_from_slice(&place.to_ne_bytes());
                Ok(())
            })?;
        }
        Ok(Some(route))
    }

    fn next_hop(&self, mut hop: Entry) -> Result<Entry> {
        if hop.get(NHA_RES_GROUP).is_some() {
            return refused("a resilient group of next hops".to_owned());
        }
        hop.keep(&NHA_KEPT);
        hop.set_byte(NEXT_HOP_SCOPE, 0);
        hop.set_word(NEXT_HOP_FLAGS, hop.word(NEXT_HOP_FLAGS) & ONLINK);
        self.place_in(&mut hop, NHA_OIF)?;
        Ok(hop)
    }

    fn neighbour(&self, mut entry: Entry) -> Result<Option<Entry>> {
        let state = half(&entry, NEIGHBOUR_STATE);
        // The kernel makes entries without resolution by itself, for groups and for the loopback.
        let is_loopback = self
            .devices
            .iter()
            .any(|device| device.index == entry.word(NEIGHBOUR_INDEX) && device.name == "lo");
        let by_hand = state & PERMANENT != 0 || state & NOARP != 0 && is_station(&entry) && !is_loopback;
        let proxy = entry.byte(NEIGHBOUR_FLAGS) & PROXY != 0;
        if !by_hand && !proxy {
            return Ok(None);
        }
        entry.keep(&NDA_KEPT);
        entry.set_word(NEIGHBOUR_INDEX, self.place(entry.word(NEIGHBOUR_INDEX))?);
        Ok(Some(entry))
    }
}

/// Visits each hop of a route with several, in place; what is cut short ends it.
pub(super) fn each_hop(hops: &mut [u8], mut visit: impl FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut rest = hops;
    while rest.len() >= HOP {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if length < HOP || length > rest.len() {
            return Err(Error::Mismatch("a route with several hops is damaged".to_owned()));
        }
        visit(&mut rest[..length])?;
        let next = length.next_multiple_of(4).min(rest.len());
        rest = &mut rest[next..];
    }
    Ok(())
}

fn table_of(route: &Entry) -> u32 {
    route.number(RTA_TABLE).unwrap_or(route.byte(ROUTE_TABLE).into())
}

/// The kernel makes routes for link-local addresses and groups by itself, in its own time.
fn is_link_local(route: &Entry) -> bool {
    let to = route.get(RTA_DST).unwrap_or_default();
    route.byte(0) == INET6 && matches!(to, [0xfe, second, ..] if second & 0xc0 == 0x80)
        || route.byte(0) == INET6 && to.first() == Some(&0xff)
}

impl Network {
    /// Of a namespace that nothing runs in yet.
    pub(crate) fn plain(settings: &mut Settings) -> Result<Self> {
        let devices = devices(settings).attempt(|| "list the network devices of the copy".into())?;
        Self::read(settings, &devices)
    }

    /// Of the namespace that these are of, which began with these interfaces.
    pub(crate) fn read(settings: &mut Settings, before: &[Device]) -> Result<Self> {
        let what = || "read the workload's network settings".to_owned();
        let reading = Reading { devices: before };
        let ours = before.iter().filter(|device| device.ours);
        let mut network =
            Self { devices: ours.map(|device| device.name.clone()).collect(), ..Self::default() };
        let mut links = settings.list(LINK, question(LINK, 0)).attempt(what)?;
        links.sort_by_key(|link| link.word(LINK_INDEX));
        for device in before {
            if !links.iter().any(|link| text(link.get(IFLA_IFNAME)) == device.name) {
                return refused(format!("the network device {}, which it has removed", device.name));
            }
        }
        for link in links {
            network.links.extend(reading.link(link)?);
        }
        for discipline in settings.list(DISCIPLINE, question(DISCIPLINE, 0)).attempt(what)? {
            if discipline.word(DISCIPLINE_HANDLE) != 0 {
                let index = discipline.word(DISCIPLINE_INDEX);
                let device = before.iter().find(|device| device.index == index);
                let name = device.map_or("a network device", |device| device.name.as_str());
                return refused(format!("traffic control of its own on {name}"));
            }
        }
        for hop in settings.list(NEXT_HOP, question(NEXT_HOP, 0)).attempt(what)? {
            network.next_hops.push(reading.next_hop(hop)?);
        }
        network.next_hops.sort_by_key(|hop| (hop.get(NHA_GROUP).is_some(), hop.number(NHA_ID)));
        for family in [INET, INET6] {
            // A kernel without IPv6 answers for all families.
            let mut list = |kind: Kind| -> Result<Vec<Entry>> {
                let mut all = settings.list(kind, question(kind, family)).attempt(what)?;
                all.retain(|entry| entry.byte(0) == family);
                Ok(all)
            };
            for address in list(ADDRESS)? {
                network.addresses.extend(reading.address(address)?);
            }
            for route in list(ROUTE)? {
                network.routes.extend(reading.route(route)?);
            }
            for mut rule in list(RULE)? {
                rule.set_word(RULE_FLAGS, rule.word(RULE_FLAGS) & !RULE_FOUND);
                rule.forget(&[FRA_PAD]);
                network.rules.push(rule);
            }
            for entry in list(NEIGHBOUR)? {
                network.neighbours.extend(reading.neighbour(entry)?);
            }
            let mut proxies = question(NEIGHBOUR, family);
            proxies.set_byte(NEIGHBOUR_FLAGS, PROXY);
            for entry in settings.list(NEIGHBOUR, proxies).attempt(what)? {
                if entry.byte(0) == family && entry.byte(NEIGHBOUR_FLAGS) & PROXY != 0 {
                    network.neighbours.extend(reading.neighbour(entry)?);
                }
            }
        }
        // The kernel lists these in no order that means anything. IPv4 has one: which address speaks for a network, which of
        // two alike routes counts.
        network.neighbours.sort_unstable();
        let first = of_inet(&network.addresses);
        network.addresses[first..].sort_unstable();
        network.routes.sort_by_key(|route| (route.byte(0), table_of(route)));
        let first = of_inet(&network.routes);
        network.routes[first..].sort_unstable();
        Ok(network)
    }

    /// Its addresses beside those of the loopback, each with the length of its network's prefix.
    pub fn addresses(&self) -> Vec<(std::net::IpAddr, u8)> {
        let outside = self.addresses.iter().filter(|entry| !self.is_loopback(entry.word(ADDRESS_INDEX)));
        let address = |entry: &Entry| Some((ip(own_address(entry)?)?, entry.byte(ROUTE_LENGTH)));
        outside.filter_map(address).collect()
    }

    /// Plain routes by a gateway: to where, the length of the prefix, by whom.
    pub fn gateways(&self) -> Vec<(std::net::IpAddr, u8, std::net::IpAddr)> {
        let plain = self
            .routes
            .iter()
            .filter(|route| route.byte(ROUTE_TYPE) == UNICAST && table_of(route) == TABLE_MAIN);
        let gateway = |route: &Entry| {
            let via = ip(route.get(RTA_GATEWAY)?)?;
            let unspecified = if via.is_ipv4() { ip(&[0; 4])? } else { ip(&[0; 16])? };
            let to = route.get(RTA_DST).map_or(Some(unspecified), ip)?;
            Some((to, route.byte(ROUTE_LENGTH), via))
        };
        plain.filter_map(gateway).collect()
    }

    pub(super) fn is_loopback(&self, place: u32) -> bool {
        let name = (place as usize).checked_sub(1).and_then(|at| self.devices.get(at));
        name.is_some_and(|name| name == "lo")
    }

    /// Whether there are neighbours whose change the kernel announces like any other's.
    pub(crate) fn has_neighbours(&self) -> bool {
        !self.neighbours.is_empty()
    }

    pub(super) fn place_of(entry: &Entry) -> u32 {
        entry.word(ADDRESS_INDEX)
    }
}

/// How many are of IPv4, which come first.
pub(super) fn of_inet(entries: &[Entry]) -> usize {
    entries.iter().take_while(|entry| entry.byte(0) == INET).count()
}

/// Whether an announcement of a neighbour is about one that was made by hand.
pub(crate) fn is_by_hand(message: &[u8]) -> bool {
    let state = message.get(NEIGHBOUR_STATE..NEIGHBOUR_STATE + 2);
    let state = state.map_or(0, |state| u16::from_ne_bytes([state[0], state[1]]));
    let flags = message.get(NEIGHBOUR_FLAGS).copied().unwrap_or(0);
    // Without resolution the kernel has entries for groups, which come and go by themselves.
    let for_one = || Entry::parse(NEIGHBOUR.header, message).map_or(true, |entry| is_station(&entry));
    state & PERMANENT != 0 || flags & PROXY != 0 || state & NOARP != 0 && for_one()
}

/// Whether a neighbour's address is that of one station, not of a group.
fn is_station(neighbour: &Entry) -> bool {
    neighbour.get(NDA_LLADDR).is_some_and(|mac| mac.first().is_some_and(|first| first & 1 == 0))
}

/// Addresses that the kernel takes as its own by now: those in its table of local ones.
pub(super) fn local_addresses(settings: &mut Settings) -> io::Result<Vec<Vec<u8>>> {
    let all = settings.list(ROUTE, question(ROUTE, INET6))?;
    let local = all.into_iter().filter(|route| route.byte(0) == INET6 && route.byte(ROUTE_TYPE) == LOCAL);
    Ok(local.filter_map(|route| Some(route.get(RTA_DST)?.to_vec())).collect())
}

/// Not the other end's, where there is one.
pub(super) fn own_address(entry: &Entry) -> Option<&[u8]> {
    entry.get(IFA_LOCAL).or_else(|| entry.get(IFA_ADDRESS))
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

/// The attributes of a route that name an interface.
pub(super) const ROUTE_INTERFACES: [u16; 2] = [RTA_OIF, RTA_IIF];
pub(super) const HOPS: u16 = RTA_MULTIPATH;
pub(super) const INTERFACE: usize = LINK_INDEX;

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct ndmsg` (include/uapi/linux/neighbour.h), and an attribute with the link's address.
    fn neighbour(state: u16, flags: u8, mac: [u8; 6]) -> Vec<u8> {
        let mut message = vec![0; NEIGHBOUR.header];
        message[NEIGHBOUR_STATE..NEIGHBOUR_STATE + 2].copy_from_slice(&state.to_ne_bytes());
        message[NEIGHBOUR_FLAGS] = flags;
        message.extend(10u16.to_ne_bytes());
        message.extend(NDA_LLADDR.to_ne_bytes());
        message.extend(mac);
        message.extend([0; 2]);
        message
    }

    #[test]
    fn neighbours_that_the_kernel_makes_for_groups_are_not_made_by_hand() {
        /// `NUD_REACHABLE`.
        const REACHABLE: u16 = 2;
        let (station, group) = ([2, 0, 0, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]);
        assert!(!is_by_hand(&neighbour(NOARP, 0, group)));
        assert!(!is_by_hand(&neighbour(REACHABLE, 0, station)));
        assert!(is_by_hand(&neighbour(NOARP, 0, station)));
        assert!(is_by_hand(&neighbour(PERMANENT, 0, station)));
        assert!(is_by_hand(&neighbour(REACHABLE, PROXY, station)));
        // What is cut short may be anything.
        assert!(is_by_hand(&neighbour(NOARP, 0, station)[..NEIGHBOUR.header + 3]));
    }
}
