//! TCP segments made and read by hand: those "of the peer" that bring a restored socket into its state, the probe that
//! asks a peer what it has received, and what the kernel should have sent.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::{
    NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpOptionElement, TransportSlice,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use super::error::{Attempt, Error, Result};
use super::{Connection, PeerAck, TcpSocket};

/// A whole IP packet. Whoever injects it puts its own link header before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSegment {
    pub packet: Vec<u8>,
}

/// Hop limit of packets made here: the recommended default (RFC 1700, as every Linux host's).
const HOPS: u8 = 64;

/// Sends segments from the network namespace that its thread is in: out by its device or, where the destination is its own,
/// to its sockets as from the network.
///
/// They go out by a raw socket. To an address of this very host that is through the loopback, and what comes off the loopback
/// brings its route along: the source may be anyone's (`loopback_xmit` keeps the route, `ip_rcv_finish` trusts it). So this
/// also works for connections over the loopback, whose addresses a device would refuse as "martian". The exception are
/// sockets bound to a device (SO_BINDTODEVICE): to them, only that device delivers.
#[derive(Default)]
pub struct Injector {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Injector {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn inject(&mut self, segment: &RawSegment) -> Result<()> {
        let (_, destination) = addresses(&segment.packet).ok_or(Error::Malformed("not an IP packet"))?;
        let (place, family) = match destination {
            IpAddr::V4(_) => (&mut self.v4, AddressFamily::Inet),
            IpAddr::V6(_) => (&mut self.v6, AddressFamily::Inet6),
        };
        let fd = match place {
            Some(fd) => fd,
            // IPPROTO_RAW: the header is ours (`raw(7)`, `inet6_create`).
            None => place.insert(
                socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                    .attempt("make a raw socket for a segment")?,
            ),
        };
        let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
        sendto(fd.as_raw_fd(), &segment.packet, &to, MsgFlags::empty()).map(drop).attempt("inject a segment")
    }
}

/// Source and destination of an IP packet.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match SlicedPacket::from_ip(packet).ok()?.net? {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Arp(_) => None,
    }
}

pub(super) struct Segment<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    /// As in the header, scaled.
    pub window: u16,
    pub fin: bool,
    /// Value and echo.
    pub timestamps: Option<(u32, u32)>,
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Addresses of one connection are of one family, or it is malformed and this is `None`.
    pub(super) fn build(&self) -> Option<RawSegment> {
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.finish(PacketBuilder::ipv4(source.octets(), destination.octets(), HOPS))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.finish(PacketBuilder::ipv6(source.octets(), destination.octets(), HOPS))
            }
            _ => None,
        }
    }

    fn finish(&self, builder: PacketBuilderStep<etherparse::IpHeaders>) -> Option<RawSegment> {
        let mut tcp =
            builder.tcp(self.source.port(), self.destination.port(), self.seq, self.window).ack(self.ack);
        if self.fin {
            tcp = tcp.fin();
        }
        if !self.payload.is_empty() {
            tcp = tcp.psh();
        }
        if let Some((value, echo)) = self.timestamps {
            let options =
                [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(value, echo)];
            tcp = tcp.options(&options).ok()?;
        }
        let mut packet = Vec::with_capacity(tcp.size(self.payload.len()));
        tcp.write(&mut packet, self.payload).ok()?;
        Some(RawSegment { packet })
    }
}

/// The question that makes a peer say what it has received: one byte that it must already have, at `snd_una − 1`.
///
/// Any TCP answers such a segment at once with its current acknowledgement and window (RFC 9293 section 3.10.7.4; Linux:
/// `tcp_send_dupack`), also at a zero window; a segment without a byte is answered at most twice a second
/// (`tcp_oow_rate_limited`). Send it while the socket does not exist yet, and give the answer to [`peer_ack`] instead of
/// the kernel, which would reset the connection.
pub fn probe(socket: &TcpSocket, connection: &Connection) -> Option<RawSegment> {
    Segment {
        source: socket.local,
        destination: connection.remote,
        seq: connection.snd_una.wrapping_sub(1),
        ack: connection.rcv_nxt,
        // No less than was promised (RFC 9293 section 3.8.6).
        window: connection.advertised_window(),
        fin: false,
        timestamps: connection.timestamp.map(|value| (value, 0)),
        payload: &[0],
    }
    .build()
}

/// What a packet from the network says about what the peer of this connection has received, if it is of it.
pub fn peer_ack(socket: &TcpSocket, connection: &Connection, packet: &[u8]) -> Option<PeerAck> {
    let (source, destination) = addresses(packet)?;
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let ours = source == connection.remote.ip().to_canonical()
        && destination == socket.local.ip().to_canonical()
        && tcp.source_port() == connection.remote.port()
        && tcp.destination_port() == socket.local.port();
    (ours && tcp.ack() && !tcp.syn() && !tcp.rst())
        .then(|| PeerAck::Known { ack: tcp.acknowledgment_number(), window: tcp.window_size() })
}
