//! The switch: a network namespace with a bridge and nothing else, to which every host has one cable.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use crate::bpf::{DropTable, PORTS};
use crate::error::{Attempt, LabError, Result};
use crate::netns::{DeviceControl, NetNs};

/// What an Ethernet carries unless told otherwise; the design's figures hold for it.
const MTU: u32 = 1500;

/// A host's end of its cable.
pub const UPLINK: &str = "uplink";

pub(crate) struct Switch {
    namespace: NetNs,
    devices: DeviceControl,
    drops: DropTable,
    ports_taken: Mutex<usize>,
}

/// A place for a cable; a host keeps its own over a power cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) usize);

impl Port {
    fn device(self) -> String {
        format!("port{}", self.0)
    }
}

/// A cable between a port and a host. The programs that cut and drop are on it while this lives.
pub(crate) struct Cable {
    _filters: [OwnedFd; 2],
}

impl Switch {
    pub(crate) fn new() -> Result<Switch> {
        let namespace = NetNs::new()?;
        // A switch says nothing of its own: no IPv6 address on its devices, no multicast snooping.
        namespace.sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        namespace.ip(&[
            format!("link add sw0 mtu {MTU} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            "link set sw0 up".to_owned(),
            "link set lo up".to_owned(),
        ])?;
        let devices = DeviceControl::new(&namespace)?;
        let drops = DropTable::new().attempt(|| "make a BPF map for the switch".to_owned())?;
        Ok(Switch { namespace, devices, drops, ports_taken: Mutex::new(0) })
    }

    pub(crate) fn take_port(&self) -> Result<Port> {
        let mut taken = self.ports_taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken == PORTS {
            return Err(LabError::NoPort { max: PORTS });
        }
        *taken += 1;
        Ok(Port(*taken - 1))
    }

    /// Lays a cable from a port to a host's namespace, where its end is called [`UPLINK`].
    pub(crate) fn plug_in(&self, port: Port, host: &NetNs, mac: &str) -> Result<Cable> {
        let device = port.device();
        let peer = host.path();
        self.namespace.ip(&[
            format!(
                "link add {device} mtu {MTU} type veth peer name {UPLINK} address {mac} mtu {MTU} netns {peer}"
            ),
            format!("link set {device} master sw0"),
        ])?;
        let filters = self.namespace.run(|| {
            let ifindex = nix::net::if_::if_nametoindex(device.as_str())?;
            self.drops.attach(ifindex, port.0)
        });
        let cable = Cable { _filters: filters.attempt(|| format!("put BPF programs on {device}"))? };
        self.set_port_up(port, true)?;
        Ok(cable)
    }

    /// Up or down; down is a cable pulled: the host sees its carrier go, and no frame passes any more.
    pub(crate) fn set_port_up(&self, port: Port, up: bool) -> Result<()> {
        self.devices.set_up(&port.device(), up)
    }

    /// Takes the cable away, both ends of it.
    pub(crate) fn unplug(&self, port: Port) -> Result<()> {
        self.namespace.ip(&[format!("link del {}", port.device())])
    }

    /// The share of frames from one port to another that is dropped: a threshold of [`DropTable`].
    pub(crate) fn set_drop(&self, from: Port, to: Port, threshold: u32) -> Result<()> {
        self.drops
            .set(from.0, to.0, threshold)
            .attempt(|| format!("set what is dropped between ports {} and {}", from.0, to.0))
    }

    pub(crate) fn namespace(&self) -> &NetNs {
        &self.namespace
    }
}
