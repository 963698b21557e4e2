//! Links, addresses and routes by rtnetlink(7): one request at a time, each waiting for the kernel's answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, MacVtapMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::{Mac, Route};

/// A netlink socket. It stays in the network namespace of the thread that opened it, wherever it is used.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A network device, as far as anyone here asks.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub index: u32,
    pub is_bridge: bool,
    pub is_up: bool,
    pub mtu: u32,
    pub mac: Option<Mac>,
}

/// What to change about a device before it is brought up.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    pub mac: Mac,
    pub mtu: u32,
    /// Frames that may wait in the device until they are read.
    pub queue: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// The device of that name, or `None`.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answer = match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            answer => answer?,
        };
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "netlink answered RTM_GETLINK with no link",
            ));
        };
        let mut found = Link {
            index: link.header.index,
            is_bridge: false,
            is_up: link.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            mac: None,
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                LinkAttribute::Address(mac) => found.mac = mac[..].try_into().ok().map(Mac),
                LinkAttribute::LinkInfo(info) => {
                    found.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }

    /// Makes a macvtap device on a device of this namespace, in another namespace. Devices on one reach each other.
    pub fn create_macvtap(&mut self, name: &str, on: u32, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        let data = InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Bridge)]);
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(on),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVtap), LinkInfo::Data(data)]),
        ];
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        self.change_link(index, |link| link.attributes.push(LinkAttribute::Address(mac.0.to_vec())))
    }

    pub fn bring_down(&mut self, index: u32) -> io::Result<()> {
        self.change_link(index, |link| link.header.change_mask |= LinkFlags::Up)
    }

    pub fn configure_link(&mut self, index: u32, settings: &LinkSettings) -> io::Result<()> {
        self.change_link(index, |link| {
            link.attributes = vec![
                LinkAttribute::Address(settings.mac.0.to_vec()),
                LinkAttribute::Mtu(settings.mtu),
                LinkAttribute::TxQueueLen(settings.queue),
            ];
        })
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.change_link(index, |link| link.attributes.push(LinkAttribute::Mtu(mtu)))
    }

    pub fn bring_up(&mut self, index: u32) -> io::Result<()> {
        self.change_link(index, |link| set_flags(link, LinkFlags::Up))
    }

    /// Brings a device up on which this host itself shall not be heard: it answers no ARP (`arp_rcv`,
    /// net/ipv4/arp.c, drops on IFF_NOARP) and forms no IPv6 address, thus solicits and reports nothing.
    pub fn bring_up_mute(&mut self, index: u32) -> io::Result<()> {
        self.change_link(index, |link| {
            let mode = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
            link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(mode)]));
            link.header.flags |= LinkFlags::Noarp;
            link.header.change_mask |= LinkFlags::Noarp;
        })?;
        self.bring_up(index)
    }

    /// Makes a device a port of a bridge, or with `None` of none.
    pub fn set_controller(&mut self, index: u32, controller: Option<u32>) -> io::Result<()> {
        self.change_link(index, |link| {
            link.attributes.push(LinkAttribute::Controller(controller.unwrap_or(0)))
        })
    }

    /// Gives a device an address, usable at once (IPv6: without duplicate address detection).
    pub fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        match address {
            IpNet::V4(net) => {
                message.attributes.push(AddressAttribute::Address(address.addr()));
                // RFC 3021: networks of one or two addresses have no broadcast address.
                if net.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.via);
        message.header.destination_prefix_length = route.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(route.destination.network())),
            RouteAttribute::Gateway(RouteAddress::from(route.via)),
            RouteAttribute::Oif(index),
        ];
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Whether the kernel takes packets for `address` as its own.
    pub fn is_local(&mut self, address: IpAddr) -> io::Result<bool> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = IpNet::from(address).prefix_len();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
        match self.ask(RouteNetlinkMessage::GetRoute(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(route.header.kind == RouteType::Local),
            Ok(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answered RTM_GETROUTE with no route"))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn change_link(&mut self, index: u32, change: impl FnOnce(&mut LinkMessage)) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        change(&mut message);
        self.ask(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    /// Sends one request and waits for its answer: the message asked for, or `None` for a plain acknowledgement.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        // A GET answers with the message itself and, asked to, with an acknowledgement that would be left over.
        let asks = matches!(message, RouteNetlinkMessage::GetLink(_) | RouteNetlinkMessage::GetRoute(_));
        let acknowledge = if asks { 0 } else { NLM_F_ACK };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | acknowledge | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let (answer, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if answer.header.sequence_number != self.sequence {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answered another request"));
        }
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(None),
                Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
            },
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            _ => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "netlink sent neither an answer nor an error"))
            }
        }
    }
}

fn set_flags(link: &mut LinkMessage, flags: LinkFlags) {
    link.header.flags |= flags;
    link.header.change_mask |= flags;
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(Ipv4Addr { .. }) => AddressFamily::Inet,
        IpAddr::V6(Ipv6Addr { .. }) => AddressFamily::Inet6,
    }
}
