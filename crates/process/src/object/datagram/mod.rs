//! Sockets of IP that carry datagrams: UDP, ICMP echo ("ping") and raw ones.
//!
//! A queue is looked at through `SO_PEEK_OFF`, which takes nothing. Two things it hides. An empty datagram is shown only the
//! first time: the kernel's own count of the queue says that one is left, and the capture before says where
//! ([`Queues`]). And a look takes a pending error: so there is none while there is one.
//!
//! A queue is filled again ([`queue::fill`]) while the socket has a port of its own, so that nothing else can receive
//! what is meant for it: a port that the kernel has chosen is given back by `connect` to nobody, and the queue stays
//! (`__udp_disconnect`). Its own address comes after that. Raw and echo sockets are captured while their queue is empty.
//!
//! What cannot be asked of a socket is in the kernel's list of open files ([`SocketNumbers`]); where it does not list
//! them, these sockets are refused. Group memberships are found by asking about each group that an interface is in.

mod membership;
mod queue;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use super::sockopt::{self, Common, Int, int, late};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::SocketNumbers;
use crate::sys::datagram as sys;
use crate::sys::tcp_repair as options;
use membership::Membership;
pub use queue::{Message, Queues};

/// Numbers without a name in `libc` are from `include/uapi/linux/{in,in6,udp}.h`.
const INTS: &[Int] = &[
    int("IP_TOS", libc::SOL_IP, libc::IP_TOS),
    int("IP_TTL", libc::SOL_IP, libc::IP_TTL),
    int("IP_HDRINCL", libc::SOL_IP, libc::IP_HDRINCL),
    int("IP_RECVOPTS", libc::SOL_IP, 6),
    int("IP_RETOPTS", libc::SOL_IP, 7),
    int("IP_PKTINFO", libc::SOL_IP, libc::IP_PKTINFO),
    int("IP_MTU_DISCOVER", libc::SOL_IP, libc::IP_MTU_DISCOVER),
    int("IP_RECVERR", libc::SOL_IP, libc::IP_RECVERR),
    int("IP_RECVTTL", libc::SOL_IP, libc::IP_RECVTTL),
    int("IP_RECVTOS", libc::SOL_IP, libc::IP_RECVTOS),
    int("IP_FREEBIND", libc::SOL_IP, libc::IP_FREEBIND),
    int("IP_PASSSEC", libc::SOL_IP, 18),
    int("IP_TRANSPARENT", libc::SOL_IP, libc::IP_TRANSPARENT),
    int("IP_RECVORIGDSTADDR", libc::SOL_IP, 20),
    late("IP_MINTTL", libc::SOL_IP, 21),
    int("IP_NODEFRAG", libc::SOL_IP, 22),
    int("IP_CHECKSUM", libc::SOL_IP, 23),
    late("IP_BIND_ADDRESS_NO_PORT", libc::SOL_IP, 24),
    int("IP_RECVFRAGSIZE", libc::SOL_IP, 25),
    int("IP_RECVERR_RFC4884", libc::SOL_IP, 26),
    int("IP_MULTICAST_TTL", libc::SOL_IP, libc::IP_MULTICAST_TTL),
    int("IP_MULTICAST_LOOP", libc::SOL_IP, libc::IP_MULTICAST_LOOP),
    int("IP_MULTICAST_ALL", libc::SOL_IP, 49),
    int("IP_UNICAST_IF", libc::SOL_IP, 50),
    late(LOCAL_PORT_RANGE.name, LOCAL_PORT_RANGE.level, LOCAL_PORT_RANGE.number),
    late("IPV6_V6ONLY", libc::SOL_IPV6, libc::IPV6_V6ONLY),
    int("IPV6_CHECKSUM", libc::SOL_IPV6, 7),
    int("IPV6_UNICAST_HOPS", libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS),
    int("IPV6_MULTICAST_IF", libc::SOL_IPV6, libc::IPV6_MULTICAST_IF),
    int("IPV6_MULTICAST_HOPS", libc::SOL_IPV6, libc::IPV6_MULTICAST_HOPS),
    int("IPV6_MULTICAST_LOOP", libc::SOL_IPV6, libc::IPV6_MULTICAST_LOOP),
    int("IPV6_MULTICAST_ALL", libc::SOL_IPV6, 29),
    int("IPV6_MTU_DISCOVER", libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER),
    int("IPV6_RECVERR", libc::SOL_IPV6, libc::IPV6_RECVERR),
    int("IPV6_RECVERR_RFC4884", libc::SOL_IPV6, 31),
    int("IPV6_FLOWINFO", libc::SOL_IPV6, 11),
    int("IPV6_FLOWINFO_SEND", libc::SOL_IPV6, 33),
    int("IPV6_HDRINCL", libc::SOL_IPV6, 36),
    int("IPV6_RECVPKTINFO", libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
    int("IPV6_RECVHOPLIMIT", libc::SOL_IPV6, 51),
    int("IPV6_RECVHOPOPTS", libc::SOL_IPV6, 53),
    int("IPV6_RECVRTHDR", libc::SOL_IPV6, 56),
    int("IPV6_RECVDSTOPTS", libc::SOL_IPV6, 58),
    int("IPV6_RECVPATHMTU", libc::SOL_IPV6, 60),
    int("IPV6_DONTFRAG", libc::SOL_IPV6, 62),
    int("IPV6_RECVTCLASS", libc::SOL_IPV6, 66),
    int("IPV6_TCLASS", libc::SOL_IPV6, libc::IPV6_TCLASS),
    int("IPV6_AUTOFLOWLABEL", libc::SOL_IPV6, 70),
    int("IPV6_ADDR_PREFERENCES", libc::SOL_IPV6, 72),
    late("IPV6_MINHOPCOUNT", libc::SOL_IPV6, 73),
    int("IPV6_RECVORIGDSTADDR", libc::SOL_IPV6, 74),
    int("IPV6_TRANSPARENT", libc::SOL_IPV6, 75),
    int("IPV6_UNICAST_IF", libc::SOL_IPV6, 76),
    int("IPV6_RECVFRAGSIZE", libc::SOL_IPV6, 77),
    int("IPV6_FREEBIND", libc::SOL_IPV6, 78),
    int("UDP_CORK", libc::SOL_UDP, 1),
    int("UDP_NO_CHECK6_TX", libc::SOL_UDP, 101),
    int("UDP_NO_CHECK6_RX", libc::SOL_UDP, 102),
    int("UDP_SEGMENT", libc::SOL_UDP, 103),
    int("UDP_GRO", libc::SOL_UDP, 104),
];
const TABLES: &[&[Int]] = &[sockopt::SOCKET_INTS, INTS];

/// From which ports the kernel chooses (Linux 6.3): the lowest in the lower half, the highest in the upper one.
const LOCAL_PORT_RANGE: Int = int("IP_LOCAL_PORT_RANGE", libc::SOL_IP, 51);
const IP_RECVORIGDSTADDR: i32 = 20;
const IPV6_RECVORIGDSTADDR: i32 = 74;
const UDP_ENCAP: i32 = 100;
/// `ICMP_FILTER` (SOL_RAW, `linux/icmp.h`) and `ICMPV6_FILTER` (`linux/icmpv6.h`): 32 and 256 bits.
const ICMP_FILTER: (i32, i32) = (255, 1);
const ICMPV6_FILTER: (i32, i32) = (58, 1);
/// `TCP_ESTABLISHED` (`include/net/tcp_states.h`): connected.
const ESTABLISHED: u8 = 1;
/// `include/net/sock.h`.
const SOCK_BINDADDR_LOCK: u8 = 4;
const SOCK_BINDPORT_LOCK: u8 = 8;
/// `RCV_SHUTDOWN` and `SEND_SHUTDOWN`.
const SHUT_RECEIVE: u8 = 1;
const SHUT_SEND: u8 = 2;

/// A socket of IP for datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// As `socket(2)` takes them.
    family: i32,
    kind: i32,
    protocol: i32,
    settings: Settings,
    /// Of an unbound one unspecified, with port 0. Of an echo socket the port is its identifier.
    local: SocketAddr,
    remote: Option<SocketAddr>,
    /// Whether the program, and not the kernel, has chosen address and port.
    address_chosen: bool,
    port_chosen: bool,
    shutdown: u8,
    /// Its peer has refused (ECONNREFUSED), and the program has not been told.
    refused: bool,
    peek_offset: i32,
    pub queue: Vec<Message>,
    flags: StatusFlags,
}

/// What a program sets by `setsockopt`: read again when it was noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    ints: Vec<Option<i32>>,
    common: Common,
    icmp_filter: Vec<u8>,
    memberships: Vec<Membership>,
    /// `IP_MULTICAST_IF`: index and address.
    multicast_interface: (u32, [u8; 4]),
}

/// What keeps a socket from being captured for a moment: what it is, and what ends it.
pub fn passing(kind: i32, protocol: i32, numbers: &SocketNumbers) -> Option<(&'static str, &'static str)> {
    let read = "it is kept as soon as the program has read it";
    if numbers.errors_queued > 0 {
        return Some(("a socket with something in its error queue", read));
    }
    if kind == libc::SOCK_DGRAM && protocol == libc::IPPROTO_UDP {
        let error = numbers.error as i32;
        if error != 0 && (error != libc::ECONNREFUSED || numbers.datagrams() > 0) {
            return Some(("a UDP socket with an error that was not read yet", read));
        }
        return numbers.corked().then_some((
            "a UDP socket with a datagram that is being put together (MSG_MORE, UDP_CORK)",
            "it is kept as soon as that is sent",
        ));
    }
    (numbers.waiting > 0 || numbers.error != 0)
        .then_some(("a raw or ICMP socket with something in its queue", read))
}

/// `known` is what was captured before, if no `setsockopt` was noticed since: its settings are as they were.
pub fn capture(
    at: &At<'_>,
    numbers: &SocketNumbers,
    flags: StatusFlags,
    known: Option<&Datagram>,
    queues: &mut Queues,
) -> Result<Datagram> {
    let socket = at.duplicate()?;
    let fd = socket.as_fd();
    let option = |name| {
        options::get::<i32>(fd, libc::SOL_SOCKET, name).attempt(|| "ask what kind a socket is".to_owned())
    };
    let (family, kind) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?);
    let protocol = option(libc::SO_PROTOCOL)?;
    let settings = match known {
        Some(known) => known.settings.clone(),
        None => Settings::read(fd, at, family, numbers)?,
    };
    let local = address(fd, false)?.ok_or_else(|| at.unreadable("local address"))?;
    // The kernel does not name a peer without a port.
    let remote = match address(fd, true)? {
        None if numbers.state == ESTABLISHED => Some(peer_without_port(family, numbers)),
        remote => remote,
    };
    let is_udp = kind == libc::SOCK_DGRAM && protocol == libc::IPPROTO_UDP;
    // Others cannot be looked at from a place.
    let peek_offset = if is_udp { option(libc::SO_PEEK_OFF)? } else { -1 };
    let queue = if is_udp && numbers.datagrams() > 0 {
        let asks_original = [(libc::SOL_IP, IP_RECVORIGDSTADDR), (libc::SOL_IPV6, IPV6_RECVORIGDSTADDR)];
        if asks_original.iter().any(|(level, number)| settings.int(*level, *number).is_some_and(|v| v != 0)) {
            return Err(at.refuse(
                "a datagram waiting where IP_RECVORIGDSTADDR is set",
                "it is kept as soon as that is read",
            ));
        }
        queues.capture(fd, at, numbers.datagrams(), peek_offset)?
    } else {
        Vec::new()
    };
    Ok(Datagram {
        family,
        kind,
        protocol,
        settings,
        local,
        remote,
        // Of a raw socket it is not marked (`raw_bind`).
        address_chosen: numbers.user_locks & SOCK_BINDADDR_LOCK != 0
            || (kind == libc::SOCK_RAW && !local.ip().is_unspecified()),
        port_chosen: numbers.user_locks & SOCK_BINDPORT_LOCK != 0,
        shutdown: numbers.shutdown & (SHUT_RECEIVE | SHUT_SEND),
        refused: numbers.error as i32 == libc::ECONNREFUSED,
        peek_offset,
        queue,
        flags,
    })
}

fn peer_without_port(family: i32, numbers: &SocketNumbers) -> SocketAddr {
    let (four, six) = numbers.remote_addresses();
    let address: IpAddr =
        if family == libc::AF_INET6 { Ipv6Addr::from(six).into() } else { Ipv4Addr::from(four).into() };
    SocketAddr::new(address, 0)
}

fn address(fd: BorrowedFd<'_>, of_peer: bool) -> Result<Option<SocketAddr>> {
    let name = sys::name(fd, of_peer).attempt(|| "read the address of a socket".into())?;
    Ok(name.and_then(|bytes| sys::address_of(&bytes)))
}

impl Settings {
    fn read(fd: BorrowedFd<'_>, at: &At<'_>, family: i32, numbers: &SocketNumbers) -> Result<Self> {
        if options::get::<i32>(fd, libc::SOL_UDP, UDP_ENCAP).is_ok_and(|kind| kind != 0) {
            return Err(at.refuse("UDP encapsulation (UDP_ENCAP)", "let the program do without it"));
        }
        let mut buffer = [0; 64];
        if options::get_bytes(fd, libc::SOL_IP, libc::IP_OPTIONS, &mut buffer).is_ok_and(|o| !o.is_empty()) {
            return Err(at.refuse("a socket with IP options", "switch them off in the program"));
        }
        // IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS.
        for header in [54, 55, 57, 59] {
            if family == libc::AF_INET6
                && options::get_bytes(fd, libc::SOL_IPV6, header, &mut buffer).is_ok_and(|o| !o.is_empty())
            {
                return Err(
                    at.refuse("a socket with IPv6 extension headers", "switch them off in the program")
                );
            }
        }
        let address = options::get::<u32>(fd, libc::SOL_IP, libc::IP_MULTICAST_IF).unwrap_or(0);
        Ok(Self {
            ints: sockopt::read_ints(fd, TABLES)?,
            common: Common::read(fd, at)?,
            icmp_filter: icmp_filter(family)
                .and_then(|(level, number)| {
                    options::get_bytes(fd, level, number, &mut buffer[..32]).ok().map(<[u8]>::to_vec)
                })
                .unwrap_or_default(),
            memberships: membership::capture(fd, at)?,
            multicast_interface: (numbers.multicast_interface(), address.to_ne_bytes()),
        })
    }

    fn int(&self, level: i32, number: i32) -> Option<i32> {
        let mut all = TABLES.iter().flat_map(|table| table.iter());
        let index = all.position(|option| option.level == level && option.number == number)?;
        *self.ints.get(index)?
    }

    fn apply_icmp_filter(&self, fd: BorrowedFd<'_>, family: i32) -> Result<()> {
        match icmp_filter(family) {
            Some((level, number)) if !self.icmp_filter.is_empty() => {
                options::set_bytes(fd, level, number, &self.icmp_filter)
                    .attempt(|| "set a filter of ICMP messages".into())
            }
            _ => Ok(()),
        }
    }

    /// `struct ip_mreqn`: group, address, index.
    fn apply_multicast_interface(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let (index, address) = self.multicast_interface;
        if (index, address) == (0, [0; 4]) {
            return Ok(());
        }
        let mut request = vec![0; 4];
        request.extend(address);
        request.extend(index.to_ne_bytes());
        options::set_bytes(fd, libc::SOL_IP, libc::IP_MULTICAST_IF, &request)
            .attempt(|| "set IP_MULTICAST_IF".into())
    }
}

fn icmp_filter(family: i32) -> Option<(i32, i32)> {
    match family {
        libc::AF_INET => Some(ICMP_FILTER),
        libc::AF_INET6 => Some(ICMPV6_FILTER),
        _ => None,
    }
}

/// The calling thread is in the workload's network namespace.
pub fn build(socket: &Datagram) -> Result<OwnedFd> {
    let Datagram { family, kind, protocol, settings, .. } = socket;
    if !matches!(*family, libc::AF_INET | libc::AF_INET6)
        || !matches!(*kind, libc::SOCK_DGRAM | libc::SOCK_RAW)
    {
        return Err(Error::Mismatch(format!("a socket of family {family} and type {kind}")));
    }
    let make = || {
        sys::socket(*family, *kind, *protocol)
            .attempt(|| format!("make a socket of family {family}, type {kind}, protocol {protocol}"))
    };
    let fresh = sockopt::read_ints(make()?.as_fd(), TABLES)?;
    let made = make()?;
    let fd = made.as_fd();
    sockopt::apply_ints(fd, TABLES, &settings.ints, &fresh, false)?;
    settings.apply_multicast_interface(fd)?;
    if *kind == libc::SOCK_RAW {
        settings.apply_icmp_filter(fd, *family)?;
    }
    if !socket.queue.is_empty() {
        queue::fill(fd, *family == libc::AF_INET6, &settings.common, &socket.queue)?;
    }
    sockopt::apply_ints(fd, TABLES, &settings.ints, &fresh, true)?;
    settings.common.apply(fd)?;
    membership::restore(fd, &settings.memberships)?;
    socket.bind(fd)?;
    if let Some(remote) = socket.remote {
        sys::connect(fd, &sys::bytes_of(remote)).attempt(|| format!("connect a socket to {remote}"))?;
        if socket.refused {
            queue::refuse(fd, socket.local, remote)?;
        }
    }
    let how = match socket.shutdown & (SHUT_RECEIVE | SHUT_SEND) {
        0 => None,
        SHUT_RECEIVE => Some(Shutdown::Read),
        SHUT_SEND => Some(Shutdown::Write),
        _ => Some(Shutdown::Both),
    };
    if let Some(how) = how {
        // Of a socket that is not connected it is done, and said that it is not (`inet_shutdown`).
        let _ = shutdown(fd.as_raw_fd(), how);
    }
    if socket.peek_offset >= 0 {
        options::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, socket.peek_offset)
            .attempt(|| "set SO_PEEK_OFF".into())?;
    }
    socket.flags.restore(fd)?;
    Ok(made)
}

impl Datagram {
    /// Its two ends, if it is connected.
    pub(crate) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.local, self.remote?))
    }

    /// Gives it its address. What the kernel chose it is to choose again, so that the program may connect it elsewhere.
    fn bind(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let any: IpAddr = if self.family == libc::AF_INET6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let mut local = self.local;
        if !self.address_chosen {
            local = SocketAddr::new(any, local.port());
        }
        let port = local.port();
        let bind = |local: SocketAddr| {
            sys::bind_again(fd, &sys::bytes_of(local)).attempt(|| format!("bind a socket to {local}"))
        };
        if self.kind == libc::SOCK_RAW {
            return if self.address_chosen { bind(local) } else { Ok(()) };
        }
        if port == 0 && !self.address_chosen {
            return Ok(());
        }
        if port == 0 || self.port_chosen || self.protocol != libc::IPPROTO_UDP {
            return bind(local);
        }
        let range = |value: i32| options::set(fd, LOCAL_PORT_RANGE.level, LOCAL_PORT_RANGE.number, value);
        let only = i32::from_ne_bytes((u32::from(port) << 16 | u32::from(port)).to_ne_bytes());
        let kept = self.settings.int(LOCAL_PORT_RANGE.level, LOCAL_PORT_RANGE.number).unwrap_or(0);
        let chosen = range(only).is_ok() && bind(SocketAddr::new(local.ip(), 0)).is_ok();
        let _ = range(kept);
        // A port outside of what the kernel chooses from here.
        if chosen { Ok(()) } else { bind(local) }
    }
}
