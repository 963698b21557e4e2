//! The receive queue of a UDP socket: looked at without taking from it, and filled anew.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::super::descriptor::At;
use super::super::sockopt::Common;
use crate::error::{Attempt, Error, Result};
use crate::sys::datagram::{self as sys, Peeked};
use crate::sys::tcp_repair as options;

/// Above what a UDP datagram can be.
const ROOM: usize = 64 << 10;
/// As much as fits into an IPv6 packet that the loopback carries in one piece.
const LONGEST: usize = 65_400;
/// More is refused; a queue is bounded by the receive buffer, 208 KiB by default.
const MAX_QUEUE: usize = 16 << 20;
/// How long a datagram may take over the loopback: some microseconds, unless the kernel's thread for it has to wait.
const ARRIVES_WITHIN: Duration = Duration::from_millis(100);
/// What a datagram costs beside its bytes, generously (`truesize` of a small one is 768).
const OVERHEAD: usize = 4096;
/// Hop limit where none was seen: the recommended default (RFC 1700).
const HOPS: u8 = 64;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_RECVTCLASS: i32 = 66;
/// `SO_MEMINFO` (`linux/socket.h`): first the bytes of memory in the receive queue.
const SO_MEMINFO: i32 = 55;
const RECEIVE_MEMORY: usize = 4;

/// A datagram in a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub source: SocketAddr,
    /// Where it was sent to, and the address of the interface that it came by.
    destination: IpAddr,
    local: Option<Ipv4Addr>,
    hops: u8,
    class: u8,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// What is to be asked for to see all of a datagram's header.
const SEE: &[(i32, i32)] = &[
    (libc::SOL_IP, libc::IP_PKTINFO),
    (libc::SOL_IP, libc::IP_RECVTTL),
    (libc::SOL_IP, libc::IP_RECVTOS),
    (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::SOL_IPV6, IPV6_RECVHOPLIMIT),
    (libc::SOL_IPV6, IPV6_RECVTCLASS),
];

/// Where empty datagrams were last seen, by the inodes of their sockets: a second look does not show them.
#[derive(Default)]
pub struct Queues {
    with_empty: HashMap<u64, Vec<Message>>,
}

/// Sockets with empty datagrams that are remembered; of older ones nothing is known, and they are refused for a while.
const REMEMBERED: usize = 1024;

impl Queues {
    /// What is in the queue of a socket without an error. `count` is the kernel's own count of it. The socket is left as it
    /// was.
    pub fn capture(
        &mut self,
        fd: BorrowedFd<'_>,
        at: &At<'_>,
        count: u32,
        peek_offset: i32,
    ) -> Result<Vec<Message>> {
        let seen = look_as_it_was(fd, peek_offset)?;
        let Some(seen) = seen else {
            return Err(at.refuse(
                "a UDP socket with very much in its queue",
                "leave its receive buffer at its default",
            ));
        };
        // Several that were received as one are one to the kernel's count.
        let hidden = (count as usize).saturating_sub(seen.len());
        let messages: Vec<Message> = seen.into_iter().flat_map(messages_of).collect();
        if messages.iter().any(|message| message.bytes.len() > LONGEST && message.source.is_ipv6()) {
            return Err(at.refuse(
                "a datagram of the greatest length waiting in an IPv6 socket",
                "it is kept as soon as that is read",
            ));
        }
        let any_empty = messages.iter().any(|message| message.bytes.is_empty());
        if hidden == 0 && !any_empty {
            return Ok(messages);
        }
        let inode = nix::sys::stat::fstat(fd).attempt(|| "stat a socket".into())?.st_ino;
        let messages = if hidden == 0 {
            messages
        } else {
            let known = self.with_empty.get(&inode).map_or(&[][..], |known| known);
            with_empty(messages, known, hidden).ok_or_else(|| {
                at.refuse("an empty datagram waiting in a UDP socket", "it is kept as soon as that is read")
            })?
        };
        if self.with_empty.len() >= REMEMBERED {
            self.with_empty.clear();
        }
        self.with_empty.insert(inode, messages.clone());
        Ok(messages)
    }
}

fn look_as_it_was(fd: BorrowedFd<'_>, peek_offset: i32) -> Result<Option<Vec<Peeked>>> {
    let mut set = Vec::new();
    for (level, number) in SEE {
        if options::get::<i32>(fd, *level, *number).is_ok_and(|value| value == 0)
            && options::set(fd, *level, *number, 1).is_ok()
        {
            set.push((*level, *number));
        }
    }
    let looked = options::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).and_then(|()| look(fd));
    // Whatever came of it, the settings are the program's.
    let what = || "leave a UDP socket as it was".to_owned();
    options::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, peek_offset).attempt(what)?;
    for (level, number) in set {
        options::set(fd, level, number, 0).attempt(what)?;
    }
    looked.attempt(|| "look at what waits in a UDP socket".to_owned())
}

fn look(fd: BorrowedFd<'_>) -> io::Result<Option<Vec<Peeked>>> {
    let mut seen: Vec<Peeked> = Vec::new();
    let mut buffer = vec![0; ROOM];
    let mut total = 0;
    while let Some(message) = sys::peek(fd, &mut buffer)? {
        total += message.bytes.len().max(1);
        if total > MAX_QUEUE || message.truncated {
            return Ok(None);
        }
        seen.push(message);
    }
    Ok(Some(seen))
}

fn messages_of(peeked: Peeked) -> Vec<Message> {
    let Some(source) = peeked.source else { return Vec::new() };
    let destination = peeked.destination.unwrap_or(match source.ip().to_canonical() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    });
    let message = |bytes: &[u8]| Message {
        source,
        destination,
        local: peeked.local,
        hops: peeked.hops,
        class: peeked.class,
        bytes: bytes.to_vec(),
    };
    match peeked.segment {
        Some(size) if !peeked.bytes.is_empty() => peeked.bytes.chunks(size).map(message).collect(),
        _ => vec![message(&peeked.bytes)],
    }
}

/// Puts empty datagrams that are hidden by an earlier look back where they were: programs read from the front, so what is
/// left of `known` is an end of it, and `seen` goes on from there.
fn with_empty(seen: Vec<Message>, known: &[Message], hidden: usize) -> Option<Vec<Message>> {
    let is_empty = |message: &&Message| message.bytes.is_empty();
    (0..=known.len()).find_map(|from| {
        let left = &known[from..];
        if left.iter().filter(is_empty).count() != hidden {
            return None;
        }
        let full: Vec<&Message> = left.iter().filter(|message| !message.bytes.is_empty()).collect();
        let fits = full.len() <= seen.len() && full.iter().zip(&seen).all(|(known, seen)| *known == seen);
        fits.then(|| left.iter().chain(&seen[full.len()..]).cloned().collect())
    })
}

/// Fills the queue of a socket that is bound to nothing yet, and leaves it bound to nothing.
pub fn fill(fd: BorrowedFd<'_>, v6: bool, common: &Common, messages: &[Message]) -> Result<()> {
    let room = messages.iter().map(|message| 2 * message.bytes.len() + OVERHEAD).sum();
    common.make_room(fd, room)?;
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    sys::bind(fd, &sys::bytes_of(SocketAddr::new(any, 0))).attempt(|| "bind a socket for a moment".into())?;
    let name = sys::name(fd, false).attempt(|| "read the address of a socket".into())?;
    let port = name.and_then(|name| sys::address_of(&name)).map_or(0, |address| address.port());
    let mut injector = Injector::new()?;
    let mut lost = 0;
    for message in messages {
        let before = memory(fd)?;
        if let Err(error) = injector.inject(message, port) {
            warn!(%error, source = %message.source, "a datagram that waited in a socket is lost");
            continue;
        }
        let begun = Instant::now();
        while memory(fd)? == before {
            if begun.elapsed() > ARRIVES_WITHIN {
                lost += 1;
                break;
            }
            std::thread::yield_now();
        }
    }
    if lost > 0 {
        warn!(lost, of = messages.len(), "datagrams that waited in a socket are lost");
    }
    sys::disconnect(fd).attempt(|| "give back the port of a socket".into())
}

/// Bytes of memory that the receive queue takes.
fn memory(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut buffer = [0; 64];
    let bytes = options::get_bytes(fd, libc::SOL_SOCKET, SO_MEMINFO, &mut buffer)
        .attempt(|| "read SO_MEMINFO".into())?;
    let first = bytes.get(..RECEIVE_MEMORY).and_then(|bytes| bytes.try_into().ok());
    first.map(u32::from_ne_bytes).ok_or_else(|| Error::Mismatch("SO_MEMINFO is empty".to_owned()))
}

/// Tells a connected socket that its peer has refused: by the message that the peer's host sends (RFC 792).
pub fn refuse(fd: BorrowedFd<'_>, local: SocketAddr, remote: SocketAddr) -> Result<()> {
    let own = sys::name(fd, false).attempt(|| "read the address of a socket".into())?;
    let local = own.and_then(|name| sys::address_of(&name)).unwrap_or(local);
    let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let sent = Message { source: local, destination, local: None, hops: HOPS, class: 0, bytes: Vec::new() };
    let quoted = packet(&sent, remote.port()).ok_or_else(malformed)?;
    let mut bytes = Vec::new();
    let written = match (destination, source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
            PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)
                .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(unreachable))
                .write(&mut bytes, &quoted)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let unreachable = etherparse::icmpv6::DestUnreachableCode::Port;
            PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)
                .icmpv6(etherparse::Icmpv6Type::DestinationUnreachable(unreachable))
                .write(&mut bytes, &quoted)
        }
        _ => return Err(malformed()),
    };
    written.map_err(|_| malformed())?;
    let injector = Injector::new()?;
    injector.send(&bytes, source).attempt(|| "tell a socket that its peer has refused".into())
}

fn malformed() -> Error {
    Error::Mismatch("the addresses of a datagram are of two families".to_owned())
}

/// Sends packets with any source to this host's own sockets: over the loopback, on which a packet keeps the route that it was
/// sent with, so that the source is not asked whether it may come that way (`loopback_xmit`, `ip_rcv_finish`).
struct Injector {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
    /// This host's addresses: to others a packet would leave it.
    own: Vec<IpAddr>,
}

impl Injector {
    fn new() -> Result<Self> {
        let raw = |family| sys::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW);
        let addresses = nix::ifaddrs::getifaddrs().attempt(|| "list the workload's addresses".into())?;
        let own = addresses.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        });
        Ok(Self {
            v4: raw(libc::AF_INET).attempt(|| "make a raw socket for datagrams".into())?,
            // A kernel without IPv6 has none of its datagrams either.
            v6: raw(libc::AF_INET6).ok(),
            own: own.collect(),
        })
    }

    fn inject(&mut self, message: &Message, port: u16) -> io::Result<()> {
        let bytes = packet(message, port).ok_or(io::ErrorKind::InvalidData)?;
        // The route says by which interface it came.
        let via = message.local.map_or(message.destination, IpAddr::V4);
        self.send(&bytes, via)
    }

    fn send(&self, packet: &[u8], via: IpAddr) -> io::Result<()> {
        let loopback: IpAddr = match via {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let is_loopback = matches!(via, IpAddr::V4(address) if address.is_loopback());
        let via = if is_loopback || self.own.contains(&via) { via } else { loopback };
        let raw = match via {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        sys::send_to(raw.as_fd(), packet, SocketAddr::new(via, 0))
    }
}

/// A whole IP packet with the datagram in it, for a port.
fn packet(message: &Message, port: u16) -> Option<Vec<u8>> {
    let length = u16::try_from(message.bytes.len() + 8).ok()?;
    let hops = if message.hops == 0 { HOPS } else { message.hops };
    let headers = match (message.source.ip().to_canonical(), message.destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header =
                Ipv4Header::new(length, hops, IpNumber::UDP, source.octets(), destination.octets()).ok()?;
            let header = Ipv4Header {
                dscp: etherparse::IpDscp::try_new(message.class >> 2).ok()?,
                ecn: etherparse::IpEcn::try_new(message.class & 3).ok()?,
                ..header
            };
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: message.class,
                flow_label: Default::default(),
                payload_length: length,
                next_header: IpNumber::UDP,
                hop_limit: hops,
                source: source.octets(),
                destination: destination.octets(),
            },
            Default::default(),
        ),
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(message.bytes.len() + 64);
    PacketBuilder::ip(headers).udp(message.source.port(), port).write(&mut bytes, &message.bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> Message {
        let source = "10.0.0.1:5".parse().unwrap();
        let destination = Ipv4Addr::LOCALHOST.into();
        Message { source, destination, local: None, hops: 1, class: 0, bytes: bytes.to_vec() }
    }

    #[test]
    fn hidden_datagrams_are_put_where_they_were() {
        let known: Vec<Message> = [&b"a"[..], b"", b"b", b"", b"c"].map(message).to_vec();
        let seen: Vec<Message> = [&b"b"[..], b"c", b"d"].map(message).to_vec();
        // "a" and the first were read.
        let left: Vec<Message> = [&b"b"[..], b"", b"c", b"d"].map(message).to_vec();
        assert_eq!(with_empty(seen.clone(), &known, 1), Some(left));
        let both: Vec<Message> = [&b""[..], b"b", b"", b"c", b"d"].map(message).to_vec();
        assert_eq!(with_empty(seen.clone(), &known, 2), Some(both));
        assert_eq!(with_empty(seen.clone(), &known, 3), None);
        assert_eq!(with_empty(seen, &[], 1), None);
    }

    #[test]
    fn a_packet_says_what_the_datagram_said() {
        let bytes = packet(&Message { hops: 7, class: 0xb8, ..message(b"hello") }, 99).unwrap();
        let packet = etherparse::SlicedPacket::from_ip(&bytes).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("not IPv4") };
        assert_eq!((ip.header().ttl(), ip.header().dcp().value()), (7, 46));
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("not UDP") };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (5, 99, &b"hello"[..]));
    }
}
