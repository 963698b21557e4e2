//! TCP segments made and read by hand: those "of the peer" that bring a restored socket into its state, the probe that
//! asks a peer what it has received, and what the kernel should have sent.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpOptionElement, TransportSlice,
};

use super::{Connection, PeerAck, TcpSocket};

/// A whole IP packet. Whoever injects it puts its own link header before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSegment {
    pub packet: Vec<u8>,
}

/// Hop limit of packets made here: the recommended default (RFC 1700, as every Linux host's).
const HOPS: u8 = 64;

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
    // As little as there was: it must not take back room that was promised (RFC 9293 section 3.8.6).
    let room =
        connection.window.rcv_wup.wrapping_add(connection.window.rcv_wnd).wrapping_sub(connection.rcv_nxt);
    let own_scale = connection.window_scales.map_or(0, |(_, own)| own);
    Segment {
        source: socket.local,
        destination: connection.remote,
        seq: connection.snd_una.wrapping_sub(1),
        ack: connection.rcv_nxt,
        window: u16::try_from(room >> own_scale).unwrap_or(u16::MAX),
        fin: false,
        timestamps: connection.timestamp.map(|value| (value, 0)),
        payload: &[0],
    }
    .build()
}

/// What a packet from the network says about what the peer of this connection has received, if it is of it.
pub fn peer_ack(socket: &TcpSocket, connection: &Connection, packet: &[u8]) -> Option<PeerAck> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (source, destination) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr()))
        }
        NetSlice::Ipv6(ip) => {
            (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()))
        }
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let ours = source == connection.remote.ip().to_canonical()
        && destination == socket.local.ip().to_canonical()
        && tcp.source_port() == connection.remote.port()
        && tcp.destination_port() == socket.local.port();
    (ours && tcp.ack() && !tcp.syn() && !tcp.rst())
        .then(|| PeerAck::Known { ack: tcp.acknowledgment_number(), window: tcp.window_size() })
}
