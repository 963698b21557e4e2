//! Multicast groups that a socket has joined. Joining again announces them to the network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::super::descriptor::At;
use crate::error::{Attempt, Result};
use crate::sys::datagram as sys;
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::tcp_repair as options;

/// `include/uapi/linux/in.h`; the same for IPv6.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// All but the sources named (`MCAST_EXCLUDE`): with none named, everybody.
const EXCLUDE: u32 = 0;
/// `struct group_filter`: interface, group, mode, count, sources. An address takes as much as `sockaddr_storage`.
const GROUP: usize = 8;
const ADDRESS: usize = 128;
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SOURCES: usize = COUNT + 4;
/// More than `igmp_max_msf` and `mld_max_msf` allow by default (10 and 64).
const MAX_SOURCES: usize = 128;
/// Groups that are looked at, of both families.
const MAX_GROUPS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    interface: u32,
    group: IpAddr,
    /// `MCAST_INCLUDE` or `MCAST_EXCLUDE`, and the sources that are.
    mode: u32,
    sources: Vec<IpAddr>,
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::SOL_IP } else { libc::SOL_IPV6 }
}

/// Asks a socket about every group that an interface of its network namespace is in.
pub fn capture(fd: BorrowedFd<'_>, at: &At<'_>) -> Result<Vec<Membership>> {
    let groups = groups(at.holder.tid);
    if groups.len() > MAX_GROUPS {
        return Err(at.refuse("a socket among thousands of multicast groups", "let it join fewer"));
    }
    Ok(groups.into_iter().filter_map(|(interface, group)| membership(fd, interface, group)).collect())
}

fn membership(fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> Option<Membership> {
    let mut request = filter(interface, group, 0, MAX_SOURCES);
    request.resize(SOURCES + MAX_SOURCES * ADDRESS, 0);
    // EADDRNOTAVAIL where the socket has not joined.
    sys::ask(fd, level(group), MCAST_MSFILTER, &mut request).ok()?;
    let word = |at: usize| request.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let (mode, count) = (word(MODE)?, word(COUNT)? as usize);
    let sources = request[SOURCES..].chunks_exact(ADDRESS).take(count);
    let sources = sources.filter_map(|bytes| sys::address_of(bytes).map(|address| address.ip())).collect();
    Some(Membership { interface, group, mode, sources })
}

fn filter(interface: u32, group: IpAddr, mode: u32, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; SOURCES];
    bytes[..4].copy_from_slice(&interface.to_ne_bytes());
    put(&mut bytes, GROUP, group);
    bytes[MODE..MODE + 4].copy_from_slice(&mode.to_ne_bytes());
    bytes[COUNT..COUNT + 4].copy_from_slice(&(count as u32).to_ne_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, address: IpAddr) {
    let address = sys::bytes_of(SocketAddr::new(address, 0));
    bytes[at..at + address.len()].copy_from_slice(&address);
}

pub fn restore(fd: BorrowedFd<'_>, memberships: &[Membership]) -> Result<()> {
    for membership in memberships {
        let Membership { interface, group, mode, sources } = membership;
        let what = || format!("join the multicast group {group} on interface {interface}");
        // `struct group_req` is how `struct group_filter` begins.
        let mut request = filter(*interface, *group, *mode, sources.len());
        options::set_bytes(fd, level(*group), MCAST_JOIN_GROUP, &request[..GROUP + ADDRESS]).attempt(what)?;
        if *mode != EXCLUDE || !sources.is_empty() {
            for source in sources {
                let at = request.len();
                request.resize(at + ADDRESS, 0);
                put(&mut request, at, *source);
            }
            options::set_bytes(fd, level(*group), MCAST_MSFILTER, &request).attempt(what)?;
        }
    }
    Ok(())
}

/// All groups by interface (`/proc/net/igmp`, `/proc/net/igmp6`). A kernel without multicast has no such list.
fn groups(process: Tid) -> Vec<(u32, IpAddr)> {
    let read = |name: &str| std::fs::read_to_string(proc::path(process, name)).unwrap_or_default();
    let mut groups = parse_v4(&read("net/igmp"));
    groups.extend(read("net/igmp6").lines().filter_map(parse_v6));
    groups
}

/// A line for each interface, then an indented one for each group, in the byte order of the machine.
fn parse_v4(text: &str) -> Vec<(u32, IpAddr)> {
    let mut interface = 0;
    let mut groups = Vec::new();
    for line in text.lines() {
        let Some(first) = line.split_whitespace().next() else { continue };
        if !line.starts_with('\t') {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            groups.push((interface, Ipv4Addr::from(group.to_ne_bytes()).into()));
        }
    }
    groups
}

/// Index, name, group, and more.
fn parse_v6(line: &str) -> Option<(u32, IpAddr)> {
    let mut words = line.split_whitespace();
    let interface = words.next()?.parse().ok()?;
    let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
    Some((interface, Ipv6Addr::from(group).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_kernels_list() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     1      V3\n\t\t\t\t030201EF     1 0:00000000\t\t0\n";
        let groups = parse_v4(text);
        assert_eq!(groups, [(1, "224.0.0.1".parse().unwrap()), (2, "239.1.2.3".parse().unwrap())]);
        let line = "2    eth0            ff0200000000000000000000000000fb     1 0000000C 0";
        assert_eq!(parse_v6(line), Some((2, "ff02::fb".parse().unwrap())));
    }
}
