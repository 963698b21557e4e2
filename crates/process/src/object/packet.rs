//! Packet sockets: what they listen to, and their options. Captured while their queue is empty.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use super::sockopt::{self, Common, Int, int};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::SocketNumbers;
use crate::sys::datagram as sys;
use crate::sys::tcp_repair as options;

/// `include/linux/socket.h` and `include/uapi/linux/if_packet.h`.
const SOL_PACKET: i32 = 263;
const INTS: &[Int] = &[
    int("PACKET_VERSION", SOL_PACKET, 10),
    int("PACKET_AUXDATA", SOL_PACKET, 8),
    int("PACKET_ORIGDEV", SOL_PACKET, 9),
    int("PACKET_RESERVE", SOL_PACKET, 12),
    int("PACKET_LOSS", SOL_PACKET, 14),
    int("PACKET_VNET_HDR", SOL_PACKET, 15),
    int("PACKET_TIMESTAMP", SOL_PACKET, 17),
    int("PACKET_QDISC_BYPASS", SOL_PACKET, 20),
    int("PACKET_IGNORE_OUTGOING", SOL_PACKET, 23),
    int("PACKET_VNET_HDR_SZ", SOL_PACKET, 24),
];
const TABLES: &[&[Int]] = &[sockopt::SOCKET_INTS, INTS];

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    kind: i32,
    settings: Settings,
    /// As in the header (big endian); 0 listens to nothing.
    protocol: u16,
    /// The index of an interface, or 0 for all. The workload has the same ones on every node.
    interface: i32,
    flags: StatusFlags,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    ints: Vec<Option<i32>>,
    common: Common,
}

/// As [`super::datagram::passing`].
pub fn passing(numbers: &SocketNumbers) -> Option<(&'static str, &'static str)> {
    if numbers.has_ring_or_fanout() {
        return Some((
            "a packet socket with a ring in shared memory or in a fanout group",
            "let the program read packets one by one",
        ));
    }
    if numbers.has_memberships() {
        return Some((
            "a packet socket that joins groups or makes an interface promiscuous",
            "switch promiscuous mode off in the program",
        ));
    }
    (numbers.waiting > 0 || numbers.error != 0 || numbers.errors_queued > 0).then_some((
        "a packet socket with something in its queue",
        "it is kept as soon as the program has read it",
    ))
}

pub fn capture(at: &At<'_>, flags: StatusFlags, known: Option<&Packet>) -> Result<Packet> {
    let socket = at.duplicate()?;
    let fd = socket.as_fd();
    let kind = options::get::<i32>(fd, libc::SOL_SOCKET, libc::SO_TYPE)
        .attempt(|| "ask what kind a socket is".to_owned())?;
    let (protocol, interface) = address(fd)?;
    let settings = match known {
        Some(known) => known.settings.clone(),
        None => Settings { ints: sockopt::read_ints(fd, TABLES)?, common: Common::read(fd, at)? },
    };
    Ok(Packet { kind, settings, protocol, interface, flags })
}

/// `struct sockaddr_ll`: family, protocol, index, and more.
fn address(fd: BorrowedFd<'_>) -> Result<(u16, i32)> {
    let name = sys::name(fd, false).attempt(|| "read the address of a packet socket".into())?;
    let parts = name.and_then(|name| Some((*name.get(2..)?.first_chunk()?, *name.get(4..)?.first_chunk()?)));
    let (protocol, index) =
        parts.ok_or_else(|| Error::Mismatch("the address of a packet socket is cut off".to_owned()))?;
    Ok((u16::from_ne_bytes(protocol), i32::from_ne_bytes(index)))
}

/// The calling thread is in the workload's network namespace.
pub fn build(socket: &Packet) -> Result<OwnedFd> {
    let Packet { kind, settings, protocol, interface, flags } = socket;
    // With protocol 0 it listens to nothing until it is bound, and has its filter by then.
    let make = || sys::socket(libc::AF_PACKET, *kind, 0).attempt(|| "make a packet socket".into());
    let fresh = sockopt::read_ints(make()?.as_fd(), TABLES)?;
    let made = make()?;
    let fd = made.as_fd();
    for late in [false, true] {
        sockopt::apply_ints(fd, TABLES, &settings.ints, &fresh, late)?;
    }
    settings.common.apply(fd)?;
    if *protocol != 0 {
        let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
        address.extend(protocol.to_ne_bytes());
        address.extend(interface.to_ne_bytes());
        // Kind of device, kind of packet, and a hardware address: not looked at by `bind`.
        address.extend([0; 12]);
        sys::bind(fd, &address).attempt(|| format!("bind a packet socket to interface {interface}"))?;
    }
    flags.restore(fd)?;
    Ok(made)
}
