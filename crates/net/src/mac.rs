//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of [`Mac::derive`]. It must never change: a workload's address has to be the same on every node and
/// in every version. ("outlive!" read as a big-endian number; any fixed number would do.)
const DERIVE_SEED: u64 = 0x6f75_746c_6976_6521;

/// An Ethernet address. Written `02:1a:…` in configuration files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The address a workload gets when its configuration names none: stable for a name, locally
    /// administered (bit 1 of the first byte) and unicast (bit 0 clear), IEEE 802 section 8.4.
    ///
    /// Two workloads of the same name on one network would collide, so pass a name that is unique there
    /// (with the cluster's name in it, where several clusters share a network).
    pub fn derive(name: &str) -> Mac {
        let hash = xxh3_64_with_seed(name.as_bytes(), DERIVE_SEED).to_be_bytes();
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&hash[..6]);
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Mac(bytes)
    }

    /// Broadcast and multicast addresses have bit 0 of their first byte set.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// An address that a station may have: neither a group address nor all zeros.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// The group address that carries an IPv6 multicast destination, RFC 2464 section 7.
    pub fn of_ipv6_multicast(group: std::net::Ipv6Addr) -> Mac {
        let [.., a, b, c, d] = group.octets();
        Mac([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an Ethernet address: write six hexadecimal bytes, as in 02:00:5e:10:00:01")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Mac, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| ParseMacError(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(ParseMacError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Mac, ParseMacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_address_is_local_unicast_and_never_changes() {
        let mac = Mac::derive("redis");
        assert_eq!(mac.0[0] & 0x03, 0x02);
        assert!(mac.is_station());
        assert_ne!(mac, Mac::derive("redis2"));
        // Written down once: a change here would move every deployed workload to a new address.
        assert_eq!(mac.to_string(), "f2:8c:fe:50:33:49");
    }

    #[test]
    fn text_and_back() {
        let mac: Mac = "02:00:5e:10:00:fF".parse().unwrap();
        assert_eq!(mac, Mac([2, 0, 0x5e, 0x10, 0, 0xff]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for wrong in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "02:00:5e:10:00:zz",
            "+2:00:5e:10:00:01",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
