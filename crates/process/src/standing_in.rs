//! What connections need while they are built, and the workload has no more: their own address, which it may have removed, and
//! a way to their peer. In the kernel a connection outlives both; it only says nothing until they are back. A new one
//! cannot be made without, so that others stand in for as long as that takes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Attempt, Result};
use crate::object::network::Network;
use crate::sys::datagram::{bind, bytes_of, connect};
use crate::sys::rtnetlink::{ADDRESS, Entry, Kind, ROUTE, Settings};

/// An IPv6 address is usable once a work queue has seen to it.
const LOOKS: usize = 1000;
const INTERVAL: Duration = Duration::from_micros(500);
/// Any port will do: nothing is sent.
const DISCARD: u16 = 9;

/// Made in a namespace for a while.
#[derive(Debug, Default)]
pub(crate) struct StandIns(Vec<(Kind, Entry)>);

impl StandIns {
    /// For these connections, by their two ends. The calling thread is in their namespace.
    pub fn make(network: &Network, ends: impl Iterator<Item = (IpAddr, IpAddr)>) -> Result<Self> {
        let what = |ip: IpAddr| {
            move || format!("build connections of or to {ip}, for which the workload has no more way")
        };
        let (locals, remotes): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = ends.unzip();
        let mut made = Self::default();
        let mut settings = None;
        for ip in locals {
            if is_own(ip)? {
                continue;
            }
            made.add(&mut settings, ADDRESS, address(ip).attempt(what(ip))?).attempt(what(ip))?;
            let mut looks = 0;
            while !is_own(ip)? && looks < LOOKS {
                thread::sleep(INTERVAL);
                looks += 1;
            }
        }
        let device = network.devices.iter().find(|name| *name != "lo").map_or("lo", String::as_str);
        for ip in remotes {
            let probe = probe(ip)?;
            if connect(probe.as_fd(), &bytes_of(SocketAddr::new(ip, DISCARD))).is_err() {
                made.add(&mut settings, ROUTE, route(ip, device).attempt(what(ip))?).attempt(what(ip))?;
            }
        }
        Ok(made)
    }

    fn add(&mut self, settings: &mut Option<Settings>, kind: Kind, entry: Entry) -> io::Result<()> {
        let settings = match settings {
            Some(settings) => settings,
            none => none.insert(Settings::open()?),
        };
        settings.say(kind.new, NLM_F_CREATE | NLM_F_REPLACE, &entry)?;
        self.0.push((kind, entry));
        Ok(())
    }

    /// Takes them away again. The calling thread is in their namespace.
    pub fn remove(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let what = || "remove what stood in for addresses and routes".to_owned();
        let mut settings = Settings::open().attempt(what)?;
        // A route may have gone with its source.
        for (kind, entry) in self.0.iter().rev() {
            match settings.say(kind.delete, 0, entry) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) && *kind == ROUTE => {}
                result => result.attempt(what)?,
            }
        }
        Ok(())
    }
}

fn probe(ip: IpAddr) -> Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).attempt(|| "make a socket".into())
}

/// Whether a connection can have this address.
fn is_own(ip: IpAddr) -> Result<bool> {
    Ok(ip.is_unspecified() || bind(probe(ip)?.as_fd(), &bytes_of(SocketAddr::new(ip, 0))).is_ok())
}

fn octets(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (libc::AF_INET as u8, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6 as u8, ip.octets().to_vec()),
    }
}

/// On the loopback, for this host alone.
fn address(ip: IpAddr) -> io::Result<Entry> {
    /// IFA_ADDRESS and IFA_LOCAL; `IFA_F_NODAD`; `RT_SCOPE_HOST`.
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const NODAD: u8 = 2;
    const HOST: u8 = 254;
    let (family, octets) = octets(ip);
    let mut header = vec![family, (octets.len() * 8) as u8, NODAD, HOST];
    header.extend(if_nametoindex("lo")?.to_ne_bytes());
    Ok(Entry { header, attributes: vec![(IFA_LOCAL, octets.clone()), (IFA_ADDRESS, octets)] })
}

/// To this address alone, which overrules whatever it is that leads nowhere.
fn route(ip: IpAddr, device: &str) -> io::Result<Entry> {
    /// RTA_DST, RTA_OIF; RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST.
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const LINK: u8 = 253;
    const UNICAST: u8 = 1;
    let (family, octets) = octets(ip);
    let header = vec![family, (octets.len() * 8) as u8, 0, 0, MAIN, STATIC, LINK, UNICAST, 0, 0, 0, 0];
    let index = if_nametoindex(device)?.to_ne_bytes().to_vec();
    Ok(Entry { header, attributes: vec![(RTA_DST, octets), (RTA_OIF, index)] })
}
