//! Noticing that the workload has changed the configuration of its network: the kernel announces it (rtnetlink(7),
//! `NFNLGRP_NFTABLES`), so that nothing is looked at while there are no changes. What counts is the state afterwards.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

use crate::error::{Attempt, Error, Result};
use crate::object::network::{self, Device, Network};
use crate::sys::rtnetlink::{NEIGHBOUR, Settings, messages};
use crate::tree::FIRST;

/// RTMGRP_LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, `RTNLGRP_IPV6_RULE` and
/// `RTNLGRP_NEXTHOP` (`linux/rtnetlink.h`).
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 31;
/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const FILTER_GROUPS: u32 = 1 << 6;
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_DELTABLE` of `NFNL_SUBSYS_NFTABLES`.
const TABLE: [u16; 2] = [10 << 8, 10 << 8 | 2];
/// Announcements wait here between two checkpoints: some thousands.
const WAITING: usize = 1 << 20;
/// The kernel's own messages are at most a page and a header.
const MESSAGE: usize = 16 * 1024;

/// What the namespace of a workload began with, and what has been announced since.
#[derive(Debug)]
pub(crate) struct Routing {
    route: OwnedFd,
    /// None where the kernel has no nftables, which the workload then lacks as well.
    filter: Option<OwnedFd>,
    settings: Settings,
    before: Vec<Device>,
    /// As last captured.
    known: Network,
    /// To be looked at.
    changed: bool,
    /// How many tables of nftables more there are than at the beginning.
    tables: i64,
    /// Some announcements of nftables did not fit.
    missed: bool,
}

fn listen(protocol: SockProtocol, groups: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // Less room only means that more may be missed.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &WAITING);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

impl Routing {
    /// Of the network namespace that the calling thread is in.
    pub fn of_this_thread() -> Result<Self> {
        let what = || "read the workload's network settings".to_owned();
        let route = listen(SockProtocol::NetlinkRoute, ROUTE_GROUPS)
            .attempt(|| "listen for changes of routes".into())?;
        let filter = listen(SockProtocol::NetlinkNetFilter, FILTER_GROUPS).ok();
        let mut settings = Settings::open().attempt(what)?;
        let before = network::devices(&mut settings).attempt(what)?;
        let known = Network::default();
        Ok(Self { route, filter, settings, before, known, changed: true, tables: 0, missed: false })
    }

    /// The settings, if they are not those of last time or if `whole`.
    pub fn capture(&mut self, whole: bool) -> Result<Option<Network>> {
        self.read_announcements().attempt(|| "read changes of routes".into())?;
        if self.tables != 0 || self.missed {
            let what = "nftables of its own".to_owned();
            let advice = "let the hosts, or the network, filter packets";
            return Err(Error::Unsupported { pid: FIRST, what, advice });
        }
        if self.changed {
            let now = Network::read(&mut self.settings, &self.before)?;
            self.changed = false;
            if now != self.known {
                self.known = now;
                return Ok(Some(self.known.clone()));
            }
        }
        Ok(whole.then(|| self.known.clone()))
    }

    fn read_announcements(&mut self) -> io::Result<()> {
        let mut buffer = vec![0u8; MESSAGE];
        loop {
            match receive(&self.route, &mut buffer)? {
                Received::Nothing => break,
                Received::Missed => self.changed = true,
                Received::Bytes(got) => {
                    self.changed |= messages(&buffer[..got]).any(|message| {
                        let neighbour = [NEIGHBOUR.new, NEIGHBOUR.delete].contains(&message.kind);
                        // The kernel finds neighbours and loses them all the time.
                        !neighbour || self.known.has_neighbours() || network::is_by_hand(message.payload)
                    });
                }
            }
        }
        let Some(filter) = &self.filter else { return Ok(()) };
        loop {
            match receive(filter, &mut buffer)? {
                Received::Nothing => return Ok(()),
                Received::Missed => self.missed = true,
                Received::Bytes(got) => {
                    for message in messages(&buffer[..got]) {
                        self.tables +=
                            i64::from(message.kind == TABLE[0]) - i64::from(message.kind == TABLE[1]);
                    }
                }
            }
        }
    }
}

enum Received {
    Bytes(usize),
    Nothing,
    Missed,
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    loop {
        return match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(got) => Ok(Received::Bytes(got)),
            Err(nix::errno::Errno::EAGAIN) => Ok(Received::Nothing),
            Err(nix::errno::Errno::ENOBUFS) => Ok(Received::Missed),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}
