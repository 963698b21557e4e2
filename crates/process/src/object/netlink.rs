//! Netlink sockets: address, groups, options.
//!
//! They are captured while their queue is empty and no dump is under way; programs ask, read the answer at once, and close.
//! What the kernel would have announced to a group between the last checkpoint and the takeover is not announced: the
//! workload's interfaces are the same on both nodes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use super::sockopt::{self, Common, Int, int};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::SocketNumbers;
use crate::sys::datagram as sys;
use crate::sys::tcp_repair as options;

/// `include/uapi/linux/netlink.h`.
const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
const INTS: &[Int] = &[
    int("NETLINK_PKTINFO", SOL_NETLINK, 3),
    int("NETLINK_BROADCAST_ERROR", SOL_NETLINK, 4),
    int("NETLINK_NO_ENOBUFS", SOL_NETLINK, 5),
    int("NETLINK_LISTEN_ALL_NSID", SOL_NETLINK, 8),
    int("NETLINK_CAP_ACK", SOL_NETLINK, 10),
    int("NETLINK_EXT_ACK", SOL_NETLINK, 11),
    int("NETLINK_GET_STRICT_CHK", SOL_NETLINK, 12),
];
const TABLES: &[&[Int]] = &[sockopt::SOCKET_INTS, INTS];
/// Protocols whose sockets hold nothing in the kernel but what is read here: routes, sockets, audit, and events of devices.
const PROTOCOLS: &[i32] =
    &[libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG, libc::NETLINK_AUDIT, libc::NETLINK_KOBJECT_UEVENT];
/// Groups that are looked at; the kernel's families have some tens.
const MAX_GROUPS: usize = 1024;

/// A netlink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netlink {
    kind: i32,
    protocol: i32,
    settings: Settings,
    /// Its port id; 0 if it has none yet.
    port: u32,
    /// What it is connected to: port id and groups.
    peer: (u32, u32),
    flags: StatusFlags,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    ints: Vec<Option<i32>>,
    common: Common,
    /// Numbers of the groups that it listens to, from 1.
    groups: Vec<u32>,
}

/// As [`super::datagram::passing`].
pub fn passing(numbers: &SocketNumbers) -> Option<(&'static str, &'static str)> {
    (numbers.waiting > 0 || numbers.dumping() || numbers.error != 0).then_some((
        "a netlink socket with an answer that was not read to its end",
        "it is kept as soon as the program has read it",
    ))
}

pub fn capture(at: &At<'_>, flags: StatusFlags, known: Option<&Netlink>) -> Result<Netlink> {
    let socket = at.duplicate()?;
    let fd = socket.as_fd();
    let option = |name| {
        options::get::<i32>(fd, libc::SOL_SOCKET, name).attempt(|| "ask what kind a socket is".to_owned())
    };
    let (kind, protocol) = (option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    if !PROTOCOLS.contains(&protocol) {
        return Err(at.refuse(
            format!("a netlink socket of protocol {protocol}"),
            "let the program do without; netfilter and IPsec are to be set up outside of the workload",
        ));
    }
    // `struct sockaddr_nl`: family, padding, port id, groups.
    let name = |of_peer| -> Result<(u32, u32)> {
        let bytes = sys::name(fd, of_peer)
            .attempt(|| "read the address of a netlink socket".into())?
            .unwrap_or_default();
        let word = |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let word = |at| word(at).map(u32::from_ne_bytes).ok_or_else(|| unreadable(at));
        Ok((word(4)?, word(8)?))
    };
    // Groups are also named by `bind`, which is not noticed.
    let groups = groups(fd)?;
    let settings = match known {
        Some(known) => Settings { groups, ..known.settings.clone() },
        None => Settings { ints: sockopt::read_ints(fd, TABLES)?, common: Common::read(fd, at)?, groups },
    };
    Ok(Netlink { kind, protocol, settings, port: name(false)?.0, peer: name(true)?, flags })
}

fn unreadable(at: usize) -> Error {
    Error::Mismatch(format!("the address of a netlink socket ends before byte {at}"))
}

fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut bits = [0; MAX_GROUPS / 8];
    // The length that it says is what there is, which may be more than fits.
    options::get_bytes(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut bits)
        .attempt(|| "read the groups of a netlink socket".into())?;
    let is_set = |group: &u32| bits[*group as usize / 8] & 1 << (group % 8) != 0;
    Ok((0..MAX_GROUPS as u32).filter(is_set).map(|group| group + 1).collect())
}

/// The calling thread is in the workload's network namespace.
pub fn build(socket: &Netlink) -> Result<OwnedFd> {
    let Netlink { kind, protocol, settings, port, peer, flags } = socket;
    let make = || {
        sys::socket(libc::AF_NETLINK, *kind, *protocol)
            .attempt(|| format!("make a netlink socket of protocol {protocol}"))
    };
    let fresh = sockopt::read_ints(make()?.as_fd(), TABLES)?;
    let made = make()?;
    let fd = made.as_fd();
    for late in [false, true] {
        sockopt::apply_ints(fd, TABLES, &settings.ints, &fresh, late)?;
    }
    let address = |port: u32, groups: u32| {
        let mut bytes = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
        bytes.extend([0; 2]);
        bytes.extend(port.to_ne_bytes());
        bytes.extend(groups.to_ne_bytes());
        bytes
    };
    if *port != 0 {
        sys::bind(fd, &address(*port, 0)).attempt(|| format!("bind a netlink socket to port {port}"))?;
    }
    for group in &settings.groups {
        options::set(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, *group)
            .attempt(|| format!("add a netlink socket to group {group}"))?;
    }
    if *peer != (0, 0) {
        sys::connect(fd, &address(peer.0, peer.1)).attempt(|| "connect a netlink socket".into())?;
    }
    settings.common.apply(fd)?;
    flags.restore(fd)?;
    Ok(made)
}
