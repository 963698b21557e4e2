//! Addresses, routes, rules and packet filters that the workload sets itself. The namespace is made alike on every node from the
//! workload's configuration; what is set beyond that no other host would have, so it is refused by name.
//!
//! The kernel announces changes (rtnetlink(7), `NFNLGRP_NFTABLES`), so that nothing is looked at while there are none. What counts
//! is the state afterwards: what has been undone is no obstacle.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

use crate::error::{Attempt, Error, Result};
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::tree::FIRST;

/// RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE and `RTNLGRP_IPV6_RULE` (`linux/rtnetlink.h`).
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const FILTER_GROUPS: u32 = 1 << 6;
/// `RTM_NEWRULE`, `RTM_DELRULE`.
const RULE: [u16; 2] = [32, 33];
/// `NFT_MSG_NEWTABLE`, `NFT_MSG_DELTABLE` of `NFNL_SUBSYS_NFTABLES`.
const TABLE: [u16; 2] = [10 << 8, 10 << 8 | 2];
/// Announcements wait here between two checkpoints: some thousands.
const WAITING: usize = 1 << 20;
/// The kernel's own messages are at most a page and a header.
const MESSAGE: usize = 16 * 1024;
/// `struct nlmsghdr`: length and type come first.
const HEADER: usize = 16;
const ADVICE: &str = "set it with `outlive run` (--ip, --route) instead of in the program";

/// What the namespace of a workload began with, and what has been announced since.
#[derive(Debug)]
pub(crate) struct Routing {
    init: Tid,
    route: OwnedFd,
    /// None where the kernel has no nftables, which the workload then lacks as well.
    filter: Option<OwnedFd>,
    before: BTreeSet<String>,
    /// To be looked at.
    changed: bool,
    /// How many more there are than at the beginning.
    rules: i64,
    tables: i64,
    /// Some announcements did not fit.
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
    /// Of the network namespace that the calling thread is in, which is init's.
    pub fn of(init: Tid) -> Result<Self> {
        let route = listen(SockProtocol::NetlinkRoute, ROUTE_GROUPS)
            .attempt(|| "listen for changes of routes".into())?;
        let filter = listen(SockProtocol::NetlinkNetFilter, FILTER_GROUPS).ok();
        let before = settings(init).attempt(|| "read the workload's addresses and routes".into())?;
        Ok(Self { init, route, filter, before, changed: false, rules: 0, tables: 0, missed: false })
    }

    /// Refuses what is there and was not at the beginning, and what has gone.
    pub fn check(&mut self) -> Result<()> {
        let what = || "read the workload's addresses and routes".to_owned();
        self.read_announcements().attempt(|| "read changes of routes".into())?;
        let refuse = |what: String| Err(Error::Unsupported { pid: FIRST, what, advice: ADVICE });
        if self.missed {
            return refuse("more changes of addresses and routes than could be followed".to_owned());
        }
        if self.rules != 0 {
            return refuse("routing rules of its own".to_owned());
        }
        if self.tables != 0 {
            let advice = "let the hosts, or the network, filter packets";
            return Err(Error::Unsupported { pid: FIRST, what: "nftables of its own".to_owned(), advice });
        }
        if !self.changed {
            return Ok(());
        }
        let now = settings(self.init).attempt(what)?;
        if let Some(new) = now.difference(&self.before).next() {
            return refuse(format!("{new} of its own"));
        }
        if let Some(gone) = self.before.difference(&now).next() {
            return refuse(format!("{gone}, which it has removed"));
        }
        self.changed = false;
        Ok(())
    }

    fn read_announcements(&mut self) -> io::Result<()> {
        let mut buffer = vec![0u8; MESSAGE];
        for socket in [Some(&self.route), self.filter.as_ref()].into_iter().flatten() {
            loop {
                let got = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(got) => got,
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(nix::errno::Errno::ENOBUFS) => {
                        self.missed = true;
                        continue;
                    }
                    Err(nix::errno::Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                self.changed = true;
                for kind in kinds(&buffer[..got]) {
                    let balance = |pair: [u16; 2]| i64::from(kind == pair[0]) - i64::from(kind == pair[1]);
                    self.rules += balance(RULE);
                    self.tables += balance(TABLE);
                }
            }
        }
        Ok(())
    }
}

/// The types of the messages in a buffer of the kernel's.
fn kinds(mut bytes: &[u8]) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        kinds.push(u16::from_ne_bytes([header[4], header[5]]));
        if length < HEADER {
            break;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    kinds
}

/// Devices, addresses and routes, each as it is called in a refusal.
fn settings(init: Tid) -> io::Result<BTreeSet<String>> {
    let read = |name: &str| match std::fs::read_to_string(proc::path(init, &format!("net/{name}"))) {
        // Without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    };
    let mut all = BTreeSet::new();
    all.extend(devices(&read("dev")?).map(|name| format!("the network device {name}")));
    all.extend(local_addresses(&read("fib_trie")?));
    let routes = read("route")?;
    for words in routes.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        if let [device, destination, gateway, _, _, _, metric, mask, ..] = words[..] {
            let (to, by) = (ipv4(destination), ipv4(gateway));
            all.insert(format!(
                "the route to {to} mask {} by {by} on {device} (metric {metric})",
                ipv4(mask)
            ));
        }
    }
    for words in read("if_inet6")?.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        if let [address, _, length, _, _, device] = words[..]
            && !is_the_kernels(address)
        {
            all.insert(format!("the address {address}/{} on {device}", decimal(length)));
        }
    }
    for words in read("ipv6_route")?.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        if let [to, length, _, _, by, metric, _, _, _, device] = words[..]
            && device != "lo"
            && !is_the_kernels(to)
        {
            all.insert(format!(
                "the route to {to}/{} by {by} on {device} (metric {metric})",
                decimal(length)
            ));
        }
    }
    Ok(all)
}

/// Link-local and multicast: the kernel makes these by itself, in its own time.
fn is_the_kernels(address: &str) -> bool {
    address.starts_with("fe80") || address.starts_with("ff")
}

fn devices(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(2).filter_map(|line| line.split(':').next().map(str::trim))
}

/// Of the listing of all tables: own addresses, and tables beside the usual ones.
fn local_addresses(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut address = "";
    for line in text.lines() {
        let line = line.trim();
        if let Some(table) = line.strip_prefix("Id ") {
            all.insert(format!("the routing table {}", table.trim_end_matches(':')));
        } else if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf;
        } else if line == "/32 host LOCAL" {
            all.insert(format!("the address {address}"));
        }
    }
    all
}

/// As `/proc/net/route` has it: hexadecimal, in the order of bytes in memory.
fn ipv4(hex: &str) -> std::net::Ipv4Addr {
    u32::from_str_radix(hex, 16).unwrap_or(0).to_ne_bytes().into()
}

fn decimal(hex: &str) -> u32 {
    u32::from_str_radix(hex, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_tables_are_read_from_the_listing() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\nLocal:\n     |-- 10.0.0.7\n        \
                    /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\nId 100:\n     |-- 0.0.0.0\n";
        let all: Vec<String> = local_addresses(text).into_iter().collect();
        assert_eq!(all, ["the address 10.0.0.7", "the routing table 100"]);
        assert_eq!(ipv4("0100000A").to_string(), "10.0.0.1");
    }

    #[test]
    fn damaged_announcements_end() {
        assert_eq!(kinds(&[0; 64]), [0]);
        let mut message = vec![0u8; 36];
        (message[0], message[4]) = (20, 32);
        (message[20], message[24]) = (16, 33);
        assert_eq!(kinds(&message), RULE);
        assert!(kinds(&message[..10]).is_empty());
    }
}
