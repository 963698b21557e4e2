//! Whether somebody on the network already has an address, before a workload is given it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::frame::MAX_FRAME;
use crate::neighbours::{arp_request, sender, solicitation};
use crate::port::{Port, PortError};
use crate::{Mac, Moment};

/// Questions asked, as many as RFC 5227 section 1.1 asks for (`PROBE_NUM`), spread over the time given.
const QUESTIONS: u32 = 3;

/// Asks the network behind an attached port whether anyone has `address`, for the whole of `patience`. Answers the
/// MAC of who does; `None` if nobody spoke up.
///
/// The question is one of duplicate detection (RFC 5227, RFC 4862): it claims nothing, from a MAC that is
/// nobody's, so that it disturbs neither caches nor switches where the address is in use.
pub fn probe_in_use(port: &Port, address: IpAddr, patience: Duration) -> Result<Option<Mac>, PortError> {
    let ours = port.asking_mac();
    let question = match address {
        IpAddr::V4(address) => arp_request(ours, Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => solicitation(ours, Ipv6Addr::UNSPECIFIED, address),
    };
    let started = Moment::now();
    let mut buffer = vec![0; MAX_FRAME];
    for round in 1..=QUESTIONS {
        port.send(&question).map_err(|source| port.io_error(source))?;
        let until = started + patience * round / QUESTIONS;
        while let Some(length) = port.receive_until(until, &mut buffer)? {
            if let Some((speaks_for, mac)) = sender(&buffer[..length])
                && speaks_for == address
                && mac != ours
            {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
}
