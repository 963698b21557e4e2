//! Making a namespace's settings those of the workload: what is there and should not be is removed, what lacks is added, and
//! this is repeated until both are equal. One setting brings others with it (an address its route, a link that comes up
//! its addresses) and takes them away, so that no order alone would do.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use crate::error::{Attempt, Error, Result};
use crate::object::network::{
    ADDRESS_FLAGS, Device, HOPS, IFA_FLAGS, INET, INET6, INTERFACE, NHA_ID, NHA_OIF, Network,
    ROUTE_INTERFACES, devices, each_hop, local_addresses, of_inet, own_address,
};
use crate::sys::rtnetlink::{ADDRESS, Entry, Kind, LINK, NEIGHBOUR, NEXT_HOP, ROUTE, RULE, Settings};

/// What one setting brings with it is there within a few; one more tells that nothing changes any more.
const ROUNDS: usize = 8;
/// The kernel makes an IPv6 address its own on a work queue, within milliseconds.
const LOCAL_WITHIN: Duration = Duration::from_secs(5);
const LOCAL_INTERVAL: Duration = Duration::from_micros(500);
/// `IFA_F_SECONDARY`, the kernel's finding. Whether duplicates are looked for is up to the interface, where they are not
/// (`accept_dad`).
const SECONDARY: u32 = 0x1;

impl Network {
    /// Makes the settings of a namespace these.
    pub(crate) fn restore(&self, settings: &mut Settings) -> Result<()> {
        let devices = devices(settings).attempt(|| "list the network devices of the copy".into())?;
        let mut last = None;
        for _ in 0..ROUNDS {
            let now = Network::read(settings, &devices)?;
            if now == *self {
                return self.wait_until_local(settings);
            }
            last =
                Making { settings: &mut *settings, devices: &devices, network: self }.round(&now)?.or(last);
        }
        let now = Network::read(settings, &devices)?;
        let which = [
            ("devices", now.devices != self.devices),
            ("links", now.links != self.links),
            ("addresses", now.addresses != self.addresses),
            ("next hops", now.next_hops != self.next_hops),
            ("routes", now.routes != self.routes),
            ("rules", now.rules != self.rules),
            ("neighbours", now.neighbours != self.neighbours),
        ];
        let which: Vec<&str> =
            which.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name).collect();
        if which.is_empty() {
            return self.wait_until_local(settings);
        }
        let why = last.map_or_else(String::new, |error: io::Error| format!(": {error}"));
        Err(Error::Mismatch(format!("the workload's {} cannot be made alike here{why}", which.join(" and "))))
    }

    /// Until then an IPv6 address looks like a neighbour's, and no socket could have it.
    fn wait_until_local(&self, settings: &mut Settings) -> Result<()> {
        let mine = |entry: &&Entry| entry.byte(0) == INET6 && self.is_up(Network::place_of(entry));
        let wanted: Vec<&[u8]> = self.addresses.iter().filter(mine).filter_map(own_address).collect();
        let begun = Instant::now();
        while !wanted.is_empty() {
            let local = local_addresses(settings).attempt(|| "read the addresses of the copy".into())?;
            if wanted.iter().all(|address| local.iter().any(|own| own == address)) {
                break;
            }
            if begun.elapsed() > LOCAL_WITHIN {
                return Err(Error::Mismatch("the kernel does not take an address as its own".to_owned()));
            }
            thread::sleep(LOCAL_INTERVAL);
        }
        Ok(())
    }

    fn is_up(&self, place: u32) -> bool {
        self.links.iter().any(|link| Network::place_of(link) == place && link.word(8) & 1 != 0)
    }
}

struct Making<'a> {
    settings: &'a mut Settings,
    devices: &'a [Device],
    network: &'a Network,
}

impl Making<'_> {
    /// Gives the last error that the kernel answered with, which may be cured by another round.
    fn round(&mut self, now: &Network) -> Result<Option<io::Error>> {
        let wanted = self.network;
        let mut failed = None;
        let mut note = |result: io::Result<()>| failed = result.err().or(failed.take());
        for link in wanted.links.iter().filter(|link| !now.links.contains(link)) {
            note(self.say(LINK.new, 0, link)?);
        }
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let (now4, now6) = now.addresses.split_at(of_inet(&now.addresses));
        let (wanted4, wanted6) = wanted.addresses.split_at(of_inet(&wanted.addresses));
        // Their order counts.
        let alike = now4.iter().zip(wanted4).take_while(|(now, wanted)| now == wanted).count();
        for address in now4[alike..].iter().chain(without(now6, wanted6)) {
            note(self.say(ADDRESS.delete, 0, address)?);
        }
        for address in wanted4[alike..].iter().chain(without(wanted6, now6)) {
            let mut entry = address.clone();
            let flags = entry.number(IFA_FLAGS).unwrap_or(0) & !SECONDARY;
            entry.set(IFA_FLAGS, &flags.to_ne_bytes());
            entry.set_byte(ADDRESS_FLAGS, flags.to_le_bytes()[0]);
            note(self.say(ADDRESS.new, add, &entry)?);
        }
        for gone in without(&now.next_hops, &wanted.next_hops) {
            // By its number alone.
            let mut entry = Entry { header: vec![0; NEXT_HOP.header], attributes: gone.attributes.clone() };
            entry.keep(&[NHA_ID]);
            note(self.say(NEXT_HOP.delete, 0, &entry)?);
        }
        for new in without(&wanted.next_hops, &now.next_hops) {
            note(self.say(NEXT_HOP.new, add, new)?);
        }
        let kinds: [(Kind, &[Entry], &[Entry]); 3] = [
            (ROUTE, &now.routes, &wanted.routes),
            (NEIGHBOUR, &now.neighbours, &wanted.neighbours),
            (RULE, &now.rules, &wanted.rules),
        ];
        for (kind, now, wanted) in kinds {
            for gone in without(now, wanted) {
                note(self.say(kind.delete, 0, gone)?);
            }
            for new in without(wanted, now) {
                // Of several IPv4 routes to one place that differ in their hops only, the first counts.
                let appended = kind == ROUTE && new.byte(0) == INET;
                note(self.say(kind.new, if appended { NLM_F_CREATE | NLM_F_APPEND } else { add }, new)?);
            }
        }
        Ok(failed)
    }

    /// Says an entry with this host's numbers of interfaces. The outer error is about what was captured, the inner the kernel's.
    fn say(&mut self, message: u16, flags: u16, entry: &Entry) -> Result<io::Result<()>> {
        let mut entry = entry.clone();
        let kind = message & !0b11;
        if [LINK.new, ADDRESS.new, NEIGHBOUR.new].contains(&kind) {
            entry.set_word(INTERFACE, self.index(entry.word(INTERFACE))?);
        }
        let interfaces: &[u16] = match kind {
            _ if kind == ROUTE.new => &ROUTE_INTERFACES,
            _ if kind == NEXT_HOP.new => &[NHA_OIF],
            _ => &[],
        };
        for attribute in interfaces {
            if let Some(place) = entry.number(*attribute) {
                entry.set(*attribute, &self.index(place)?.to_ne_bytes());
            }
        }
        if kind == ROUTE.new {
            for (_, hops) in entry.attributes.iter_mut().filter(|(kind, _)| *kind == HOPS) {
                each_hop(hops, |hop| {
                    let place = u32::from_ne_bytes([hop[4], hop[5], hop[6], hop[7]]);
                    hop[4..8].copy_from_slice(&self.index(place)?.to_ne_bytes());
                    Ok(())
                })?;
            }
        }
        Ok(self.settings.say(message, flags, &entry))
    }

    fn index(&self, place: u32) -> Result<u32> {
        let Some(at) = (place as usize).checked_sub(1) else { return Ok(0) };
        let name = self.network.devices.get(at);
        let device = name.and_then(|name| self.devices.iter().find(|device| device.name == *name));
        device.map(|device| device.index).ok_or_else(|| {
            let name = name.map_or("that is not named", String::as_str);
            Error::Mismatch(format!("the copy has no network device {name}"))
        })
    }
}

fn without<'a>(these: &'a [Entry], those: &[Entry]) -> Vec<&'a Entry> {
    these.iter().filter(|entry| !those.contains(entry)).collect()
}
