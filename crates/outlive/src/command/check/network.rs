//! The network around the bridge: whether it carries what a workload says, which has a MAC address of its own.
//!
//! What can be tried is: another node is asked for its address by a MAC that is nobody's. If it is reached from the host's
//! own MAC and not from that one, something between filters MACs. The rest is read, or recognised by its maker.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use ipnet::IpNet;
use outlive_epoch::setup::Peer;
use outlive_net::{DEFAULT_MTU, Port, Uplink, probe_in_use};

use super::{Line, Verdict};
use crate::error::chain;

/// For another host on the same network: many round trips.
const PATIENCE: Duration = Duration::from_millis(600);
const CONNECT: Duration = Duration::from_secs(1);
/// Spanning tree holds a new port back for so long before it listens, and as long again before it forwards
/// (`br_stp_enable_port`, net/bridge/br_stp_if.c), in hundredths of a second.
const HZ: u64 = 100;

const FILTER_ADVICE: &str = "MAC addresses are filtered between the two: allow forged transmits and MAC changes (vSphere), MAC \
                             address spoofing (Hyper-V), allowed-address-pairs (OpenStack), promiscuous mode (VirtualBox), more than \
                             one MAC for each port (switches with port security)";

/// Places in which an address cannot be moved by announcing it, by what their firmware says
/// (`/sys/class/dmi/id/{sys_vendor,chassis_asset_tag}`).
const WITHOUT_LAYER_2: [(&str, &str, &str); 4] = [
    ("sys_vendor", "Amazon EC2", "AWS"),
    ("sys_vendor", "Google", "Google Cloud"),
    // Of every machine of Azure; of Hyper-V elsewhere it is another.
    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Azure"),
    ("sys_vendor", "Alibaba Cloud", "Alibaba Cloud"),
];

pub fn lines(uplink: &Uplink, peers: &[Peer]) -> Vec<Line> {
    let mut lines = vec![platform(|name| read(&format!("/sys/class/dmi/id/{name}")))];
    lines.push(both_families());
    let bridge = match uplink {
        Uplink::Bridge(bridge) => bridge,
        Uplink::Macvtap(interface) => {
            lines.push(mtu(interface, &[]));
            lines.push(foreign_mac(uplink, peers));
            return lines;
        }
    };
    let folder = format!("/sys/class/net/{bridge}");
    if fs::metadata(format!("{folder}/bridge")).is_err() {
        // It has a line of its own.
        return lines;
    }
    lines.push(mtu(bridge, &ports_of(bridge)));
    lines.push(spanning_tree(bridge, &|name| read(&format!("{folder}/bridge/{name}"))));
    lines.push(vlans(bridge, &|name| read(&format!("{folder}/bridge/{name}"))));
    lines.push(foreign_mac(uplink, peers));
    lines
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn ports_of(bridge: &str) -> Vec<String> {
    let ports = fs::read_dir(format!("/sys/class/net/{bridge}/brif"));
    ports
        .map(|ports| ports.flatten().filter_map(|port| port.file_name().into_string().ok()).collect())
        .unwrap_or_default()
}

fn platform(dmi: impl Fn(&str) -> Option<String>) -> Line {
    let (name, purpose) = ("layer 2", "a workload's address moves by being announced");
    let known =
        WITHOUT_LAYER_2.iter().find(|(file, says, _)| dmi(file).is_some_and(|found| found.contains(says)));
    match known {
        Some((_, _, cloud)) => Line::new(
            name,
            purpose,
            Verdict::Note,
            format!("this is a machine of {cloud}, whose networks move no address by announcement"),
            "use hosts on a network of layer 2, or a tunnel of your own between them (VXLAN) as the bridge's port, for clients \
             in it",
        ),
        None => Line::new(name, purpose, Verdict::Ok, "no cloud that is known to lack it", ""),
    }
}

fn both_families() -> Line {
    let (name, purpose) = ("IPv6", "workloads with addresses of both families");
    let advice = "load the module ipv6, and take ipv6.disable=1 off the kernel's command line";
    match fs::metadata("/proc/net/if_inet6") {
        Ok(_) => Line::new(name, purpose, Verdict::Ok, "there", ""),
        Err(_) => Line::new(name, purpose, Verdict::Note, "not in this kernel: IPv4 only", advice),
    }
}

fn mtu(bridge: &str, ports: &[String]) -> Line {
    let of = |interface: &str| read(&format!("/sys/class/net/{interface}/mtu"))?.parse::<u32>().ok();
    let ports: Vec<(String, u32)> = ports.iter().filter_map(|port| Some((port.clone(), of(port)?))).collect();
    judge_mtu(of(bridge).unwrap_or_default(), &ports)
}

fn judge_mtu(bridge: u32, ports: &[(String, u32)]) -> Line {
    let (name, purpose) = ("MTU", "every frame of a workload fits through every port");
    let note = |found: String, advice: String| Line::new(name, purpose, Verdict::Note, found, &advice);
    if let Some((port, least)) = ports.iter().min_by_key(|(_, mtu)| *mtu).filter(|(_, mtu)| *mtu < bridge) {
        return note(
            format!(
                "the bridge's is {bridge}, that of its port {port} {least}: larger frames are dropped there"
            ),
            format!("set the bridge's to {least}, and start workloads with --mtu {least} at most"),
        );
    }
    if bridge < u32::from(DEFAULT_MTU) {
        return note(
            format!("it is {bridge}, below the usual {DEFAULT_MTU}"),
            format!("start workloads with --mtu {bridge}, on every node alike"),
        );
    }
    Line::new(name, purpose, Verdict::Ok, format!("{bridge}"), "")
}

fn spanning_tree(bridge: &str, setting: &dyn Fn(&str) -> Option<String>) -> Line {
    let (name, purpose) = ("spanning tree", "a new port speaks at once after a takeover");
    let number = |name: &str| setting(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let delay = number("forward_delay");
    if number("stp_state") == 0 || delay == 0 {
        return Line::new(name, purpose, Verdict::Ok, "off on this bridge", "");
    }
    Line::new(
        name,
        purpose,
        Verdict::Note,
        format!("on: a workload's new port is silent for {} s after a takeover", 2 * delay / HZ),
        &format!(
            "run `ip link set {bridge} type bridge stp_state 0`, if the bridge is in no loop; on switches make the hosts' ports \
             edge ports"
        ),
    )
}

fn vlans(bridge: &str, setting: &dyn Fn(&str) -> Option<String>) -> Line {
    let (name, purpose) = ("VLAN filter", "a workload's port is in the network that is meant");
    if setting("vlan_filtering").is_none_or(|filter| filter == "0") {
        return Line::new(name, purpose, Verdict::Ok, "off on this bridge", "");
    }
    match setting("default_pvid").as_deref() {
        None | Some("0") => Line::new(
            name,
            purpose,
            Verdict::Note,
            "on, and new ports are in no VLAN: workloads reach nobody",
            &format!(
                "run `ip link set {bridge} type bridge vlan_default_pvid VLAN`, or use a bridge for each VLAN"
            ),
        ),
        Some(vlan) => {
            let found = format!("on: workloads' ports are in VLAN {vlan}, untagged");
            Line::new(name, purpose, Verdict::Ok, found, "")
        }
    }
}

/// Asks another node on the bridge's own network for its address, as a workload would be heard.
fn foreign_mac(uplink: &Uplink, peers: &[Peer]) -> Line {
    let (name, purpose) = ("MAC addresses", "the network carries frames of a workload's own MAC");
    let networks = networks_of(uplink.interface());
    let near: Vec<&Peer> =
        peers.iter().filter(|peer| networks.iter().any(|net| net.contains(&peer.address.ip()))).collect();
    if near.is_empty() {
        let advice = "give it an address in the network of the nodes, name the nodes with --config, or see yourself that \
                      switches and hypervisors let foreign MAC addresses through";
        return Line::new(
            name,
            purpose,
            Verdict::Note,
            "not tried: no other node is known on its network",
            advice,
        );
    }
    let port = Port::create(uplink, 0).and_then(|port| port.attach_to_ask().map(|()| port));
    let port = match port {
        Ok(port) => port,
        Err(error) => {
            return Line::new(
                name,
                purpose,
                Verdict::Note,
                chain(&error),
                "see the line of the bridge or interface",
            );
        }
    };
    let tried: Vec<Tried> = near
        .iter()
        .map(|peer| Tried {
            node: peer.name.clone(),
            by_own: answers(peer.address),
            by_foreign: asked(&port, peer.address.ip()),
        })
        .collect();
    judge_macs(&tried)
}

struct Tried {
    node: String,
    by_own: bool,
    by_foreign: bool,
}

fn judge_macs(tried: &[Tried]) -> Line {
    let (name, purpose) = ("MAC addresses", "the network carries frames of a workload's own MAC");
    let names = |wanted: &dyn Fn(&Tried) -> bool| -> String {
        let names: Vec<&str> =
            tried.iter().filter(|tried| wanted(tried)).map(|tried| tried.node.as_str()).collect();
        names.join(", ")
    };
    let filtered = names(&|tried| tried.by_own && !tried.by_foreign);
    if !filtered.is_empty() {
        let found = format!("{filtered} answers this host's own MAC and no other");
        return Line::new(name, purpose, Verdict::Missing, found, FILTER_ADVICE);
    }
    let heard = names(&|tried| tried.by_foreign);
    if heard.is_empty() {
        let found = format!("not tried: {} does not answer at all", names(&|_| true));
        return Line::new(name, purpose, Verdict::Note, found, "ask again when another node is up");
    }
    Line::new(name, purpose, Verdict::Ok, format!("{heard} answers one that is nobody's"), "")
}

/// Whether it is there: also one that refuses is.
fn answers(address: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&address, CONNECT) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

fn asked(port: &Port, address: IpAddr) -> bool {
    matches!(probe_in_use(port, address, PATIENCE), Ok(Some(_)))
}

fn networks_of(bridge: &str) -> Vec<IpNet> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let ip = |address: Option<nix::sys::socket::SockaddrStorage>| -> Option<IpAddr> {
        let address = address?;
        address
            .as_sockaddr_in()
            .map(|v4| IpAddr::V4(v4.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    interfaces
        .filter(|interface| interface.interface_name == bridge)
        .filter_map(|interface| IpNet::with_netmask(ip(interface.address)?, ip(interface.netmask)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(node: &str, by_own: bool, by_foreign: bool) -> Tried {
        Tried { node: node.to_owned(), by_own, by_foreign }
    }

    #[test]
    fn a_filter_of_mac_addresses_is_told_from_a_node_that_is_down() {
        let line = judge_macs(&[tried("b", true, false), tried("c", true, true)]);
        assert_eq!(line.verdict, Verdict::Missing);
        assert!(line.found.starts_with("b answers") && line.advice.contains("Hyper-V"), "{line:?}");
        assert_eq!(judge_macs(&[tried("b", false, false)]).verdict, Verdict::Note);
        assert_eq!(judge_macs(&[tried("b", false, false), tried("c", true, true)]).verdict, Verdict::Ok);
    }

    #[test]
    fn clouds_that_move_no_address_are_named() {
        let at = |file: &'static str, says: &'static str| {
            platform(move |asked| (asked == file).then(|| says.to_owned()))
        };
        assert!(at("sys_vendor", "Amazon EC2").found.contains("AWS"));
        assert!(at("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77").found.contains("Azure"));
        // Hyper-V at home.
        assert_eq!(at("sys_vendor", "Microsoft Corporation").verdict, Verdict::Ok);
        assert_eq!(at("sys_vendor", "QEMU").verdict, Verdict::Ok);
    }

    #[test]
    fn what_a_bridge_does_to_a_new_port_is_said() {
        let setting = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let on = spanning_tree("br0", &setting(&[("stp_state", "1"), ("forward_delay", "1500")]));
        assert!(on.verdict == Verdict::Note && on.found.contains("30 s"), "{on:?}");
        let off = spanning_tree("br0", &setting(&[("stp_state", "0"), ("forward_delay", "1500")]));
        assert_eq!(off.verdict, Verdict::Ok);
        let none = vlans("br0", &setting(&[("vlan_filtering", "1"), ("default_pvid", "0")]));
        assert!(none.verdict == Verdict::Note && none.advice.contains("br0"), "{none:?}");
        let some = vlans("br0", &setting(&[("vlan_filtering", "1"), ("default_pvid", "12")]));
        assert!(some.found.contains("VLAN 12"), "{some:?}");

        let ports = [("eth0".to_owned(), 1450), ("eth1".to_owned(), 1500)];
        let narrow = judge_mtu(1500, &ports);
        assert!(narrow.found.contains("eth0") && narrow.advice.contains("--mtu 1450"), "{narrow:?}");
        assert!(judge_mtu(1450, &ports).advice.contains("--mtu 1450"));
        assert_eq!(judge_mtu(1500, &ports[1..]).verdict, Verdict::Ok);
    }
}
