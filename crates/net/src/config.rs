//! What a workload's network looks like, resolved: nothing here is optional or a guess any more.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Mac;

/// Ethernet's own MTU, IEEE 802.3.
pub const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU an IPv4 interface may have (`ETH_MIN_MTU`, linux/if_ether.h).
const MIN_MTU: u16 = 68;
/// The smallest MTU on which IPv6 runs, RFC 8200 section 5.
const MIN_MTU_IPV6: u16 = 1280;

/// The network of one workload. It is the same on every node that may run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The workload's name.
    pub name: String,
    /// Its addresses, each with the prefix of the network it is in.
    pub addresses: Vec<IpNet>,
    pub mac: Mac,
    pub mtu: u16,
    pub routes: Vec<Route>,
}

/// Where packets for `destination` go: to the neighbour `via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub destination: IpNet,
    pub via: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("workload `{name}` has no address: give it at least one, as in 192.0.2.10/24")]
    NoAddress { name: String },
    #[error("{mac} cannot be the address of workload `{name}`: it is a group address or all zeros")]
    MacNotAStation { name: String, mac: Mac },
    #[error("MTU {mtu} of workload `{name}` is below {least}, the least for its addresses")]
    MtuTooSmall { name: String, mtu: u16, least: u16 },
    #[error("{address} cannot be an address of workload `{name}`: it is {why}")]
    NotAHostAddress { name: String, address: IpNet, why: &'static str },
    #[error("the route of workload `{name}` to {destination} mixes IPv4 and IPv6: its gateway is {via}")]
    MixedRoute { name: String, destination: IpNet, via: IpAddr },
    #[error("the gateway {via} of workload `{name}` is in none of its networks")]
    GatewayNotOnLink { name: String, via: IpAddr },
}

impl NetworkConfig {
    /// A network with the defaults: the address derived from the name, Ethernet's MTU, no routes.
    pub fn new(name: impl Into<String>, addresses: Vec<IpNet>) -> NetworkConfig {
        let name = name.into();
        let mac = Mac::derive(&name);
        NetworkConfig { name, addresses, mac, mtu: DEFAULT_MTU, routes: Vec::new() }
    }

    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|net| net.addr().is_ipv6())
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let name = || self.name.clone();
        if self.addresses.is_empty() {
            return Err(ConfigError::NoAddress { name: name() });
        }
        if !self.mac.is_station() {
            return Err(ConfigError::MacNotAStation { name: name(), mac: self.mac });
        }
        let least = if self.has_ipv6() { MIN_MTU_IPV6 } else { MIN_MTU };
        if self.mtu < least {
            return Err(ConfigError::MtuTooSmall { name: name(), mtu: self.mtu, least });
        }
        for &address in &self.addresses {
            let ip = address.addr();
            let why = if ip.is_multicast() {
                "a group address"
            } else if ip.is_unspecified() {
                "the unspecified address"
            } else if ip.is_loopback() {
                "a loopback address, which every namespace has for itself"
            } else {
                continue;
            };
            return Err(ConfigError::NotAHostAddress { name: name(), address, why });
        }
        for &Route { destination, via } in &self.routes {
            if destination.addr().is_ipv4() != via.is_ipv4() {
                return Err(ConfigError::MixedRoute { name: name(), destination, via });
            }
            let link_local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
            if !link_local && !self.addresses.iter().any(|net| net.contains(&via)) {
                return Err(ConfigError::GatewayNotOnLink { name: name(), via });
            }
        }
        Ok(())
    }

    /// The same with the addresses (each with the length of its prefix) and gateways that the workload has given itself: what
    /// is announced, and by whom peers are reached.
    pub fn as_it_is(
        &self,
        addresses: impl IntoIterator<Item = (IpAddr, u8)>,
        gateways: impl IntoIterator<Item = (IpAddr, u8, IpAddr)>,
    ) -> NetworkConfig {
        let net = |(address, length): (IpAddr, u8)| IpNet::new(address, length).ok();
        let route = |(to, length, via): (IpAddr, u8, IpAddr)| {
            Some(Route { destination: IpNet::new(to, length).ok()?, via })
        };
        NetworkConfig {
            addresses: addresses.into_iter().filter_map(net).collect(),
            routes: gateways.into_iter().filter_map(route).collect(),
            ..self.clone()
        }
    }

    /// The neighbour to which a packet for `remote` is handed: itself on the same network, or the gateway of
    /// the narrowest route that covers it. `None`: there is no way there.
    pub fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        let link_local = matches!(remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
        if link_local || self.addresses.iter().any(|net| net.contains(&remote)) {
            return Some(remote);
        }
        self.routes
            .iter()
            .filter(|route| route.destination.contains(&remote))
            .max_by_key(|route| route.destination.prefix_len())
            .map(|route| route.via)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_workload_has_made_of_it_counts() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = network().as_it_is(
            [(ip("198.51.100.9"), 24), (ip("198.51.100.9"), 99)],
            [(ip("0.0.0.0"), 0, ip("198.51.100.1"))],
        );
        assert_eq!(own.addresses, ["198.51.100.9/24".parse::<IpNet>().unwrap()]);
        assert_eq!(own.next_hop(ip("198.51.100.7")), Some(ip("198.51.100.7")));
        assert_eq!(own.next_hop(ip("192.0.2.1")), Some(ip("198.51.100.1")));
        assert_eq!((own.mac, own.mtu), (network().mac, network().mtu));
    }

    fn network() -> NetworkConfig {
        let mut config = NetworkConfig::new(
            "redis",
            vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
        );
        config.routes = vec![
            Route { destination: "0.0.0.0/0".parse().unwrap(), via: "192.0.2.1".parse().unwrap() },
            Route { destination: "10.0.0.0/8".parse().unwrap(), via: "192.0.2.2".parse().unwrap() },
        ];
        config
    }

    #[test]
    fn the_next_hop_is_the_neighbour_or_the_narrowest_route() {
        let config = network();
        let hop = |to: &str| config.next_hop(to.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(hop("192.0.2.77").as_deref(), Some("192.0.2.77"));
        assert_eq!(hop("10.1.2.3").as_deref(), Some("192.0.2.2"));
        assert_eq!(hop("198.51.100.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(hop("2001:db8::5").as_deref(), Some("2001:db8::5"));
        assert_eq!(hop("2001:db9::5"), None);
        assert_eq!(hop("fe80::5").as_deref(), Some("fe80::5"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert_eq!(network().validate(), Ok(()));
        let refused = |change: fn(&mut NetworkConfig)| {
            let mut config = network();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(|c| c.addresses.clear()).contains("no address"));
        assert!(refused(|c| c.mac = Mac::BROADCAST).contains("ff:ff"));
        assert!(refused(|c| c.mtu = 1000).contains("1280"));
        assert!(refused(|c| c.addresses.push("127.0.0.2/8".parse().unwrap())).contains("loopback"));
        assert!(refused(|c| c.addresses.push("224.0.0.1/8".parse().unwrap())).contains("group"));
        assert!(refused(|c| c.routes[0].via = "2001:db8::1".parse().unwrap()).contains("mixes"));
        assert!(
            refused(|c| c.routes[0].via = "198.51.100.1".parse().unwrap()).contains("none of its networks")
        );
    }

    #[test]
    fn a_config_file_says_it_in_plain_words() {
        let text = toml::to_string(&network()).unwrap();
        assert!(text.contains("192.0.2.10/24") && text.contains(&network().mac.to_string()), "{text}");
        assert_eq!(toml::from_str::<NetworkConfig>(&text).unwrap(), network());
    }
}
