//! The port: the outer TAP or macvtap device, through which the workload is on the network of this node.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::sys::macvtap;
use crate::sys::netlink::{Link, LinkSettings, Netlink};
use crate::sys::tap::Tap;
use crate::{Mac, Moment, Namespace, NamespaceError, Uplink};

/// The kernel puts the first unused number for `%d`; at most 15 bytes (`IFNAMSIZ` less the zero).
const NAME_PATTERN: &str = "outlive%d";

/// Frames from the network that may wait for us: see the like of the workload's side. After a takeover these are
/// what arrived while sockets were being built.
const QUEUE: u32 = 16_384;

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error(
        "this node has no bridge `{bridge}`: create it with `ip link add {bridge} type bridge`, \
         `ip link set {bridge} up`, and give it the uplink with `ip link set <interface> master {bridge}`"
    )]
    BridgeMissing { bridge: String },
    #[error(
        "`{bridge}` is a network interface of another kind: name a bridge, or make this interface a port of one"
    )]
    NotABridge { bridge: String },
    #[error("bridge `{bridge}` is down: bring it up with `ip link set {bridge} up`")]
    BridgeDown { bridge: String },
    #[error("{uplink} has an MTU of {uplink_mtu}, below the workload's {mtu}: lower the workload's")]
    MtuTooLarge { uplink: Uplink, uplink_mtu: u32, mtu: u16 },
    #[error(
        "this node has no interface `{interface}` for macvtap devices: name the one that is on the network"
    )]
    InterfaceMissing { interface: String },
    #[error("interface `{interface}` is down: bring it up with `ip link set {interface} up`")]
    InterfaceDown { interface: String },
    #[error(
        "no macvtap device can be made on `{interface}`: it takes the kernel's driver (`modprobe macvtap`), and an interface that \
         is no port of a bridge; if it is one, name that bridge (`bridge`) instead"
    )]
    Macvtap { interface: String, source: io::Error },
    #[error(
        "the device of a port cannot be opened: it takes CAP_SYS_ADMIN, CAP_MKNOD and a /dev in which devices can be used"
    )]
    Device(#[source] io::Error),
    #[error("no network namespace can be made for the port")]
    Namespace(#[from] NamespaceError),
    #[error(
        "no TAP device can be made for the port: it takes /dev/net/tun (`modprobe tun`) and CAP_NET_ADMIN"
    )]
    Tap(#[source] io::Error),
    #[error("netlink cannot be used")]
    Netlink(#[source] io::Error),
    #[error("port {port} cannot be set up")]
    SetUp { port: String, source: io::Error },
    #[error("port {port} cannot be attached to {uplink}")]
    Attach { port: String, uplink: Uplink, source: io::Error },
    #[error("port {port} cannot be detached from {uplink}")]
    Detach { port: String, uplink: Uplink, source: io::Error },
    #[error("port {port} cannot be read or written")]
    Io { port: String, source: io::Error },
}

/// A TAP device for a bridge, or a macvtap device. Made early, attached at the moment of takeover, gone with this value.
#[derive(Debug)]
pub struct Port {
    tap: Tap,
    index: u32,
    mac: Mac,
    uplink: Uplink,
    mtu: u16,
    /// In the namespace of the device.
    netlink: Mutex<Netlink>,
    /// A macvtap device has one to itself, which ends with this value and ends it (R4).
    _namespace: Option<Namespace>,
}

impl Port {
    /// Makes the port, in the calling thread's network namespace, but not attached, so that nothing is heard through it in
    /// either direction yet.
    pub fn create(uplink: &Uplink, mtu: u16) -> Result<Port, PortError> {
        match uplink {
            Uplink::Bridge(bridge) => Port::of_bridge(uplink, bridge, mtu),
            Uplink::Macvtap(interface) => Port::of_macvtap(uplink, interface, mtu),
        }
    }

    fn of_bridge(uplink: &Uplink, bridge: &str, mtu: u16) -> Result<Port, PortError> {
        let mut netlink = Netlink::open().map_err(PortError::Netlink)?;
        let link = find_bridge(&mut netlink, bridge, mtu)?;
        let tap = Tap::create(NAME_PATTERN).map_err(PortError::Tap)?;
        let (index, mac) = set_up(&mut netlink, tap.name(), link.mtu)?;
        netlink
            .bring_up_mute(index)
            .map_err(|source| PortError::SetUp { port: tap.name().to_owned(), source })?;
        let netlink = Mutex::new(netlink);
        Ok(Port { tap, index, mac, uplink: uplink.clone(), mtu, netlink, _namespace: None })
    }

    fn of_macvtap(uplink: &Uplink, interface: &str, mtu: u16) -> Result<Port, PortError> {
        let mut outside = Netlink::open().map_err(PortError::Netlink)?;
        let link = find_interface(&mut outside, interface, mtu)?;
        let namespace = Namespace::bare()?;
        outside
            .create_macvtap(macvtap::NAME, link.index, namespace.fd())
            .map_err(|source| PortError::Macvtap { interface: interface.to_owned(), source })?;
        let inside = || -> Result<_, PortError> {
            let mut netlink = Netlink::open().map_err(PortError::Netlink)?;
            let (index, mac) = set_up(&mut netlink, macvtap::NAME, link.mtu)?;
            let opened = macvtap::open_character_device(index).map_err(PortError::Device)?;
            let tap = Tap::of_macvtap(opened, macvtap::NAME).map_err(PortError::Device)?;
            Ok((netlink, index, mac, tap))
        };
        let (netlink, index, mac, tap) = namespace.enter(inside)??;
        let netlink = Mutex::new(netlink);
        Ok(Port { tap, index, mac, uplink: uplink.clone(), mtu, netlink, _namespace: Some(namespace) })
    }

    /// Attaches the port: from now on its frames reach the network, and those for `mac` are read here. May be called from any
    /// thread.
    pub fn attach(&self, mac: Mac) -> Result<(), PortError> {
        let mut netlink = self.netlink();
        let attached = match &self.uplink {
            // It learns by itself who is behind a port.
            Uplink::Bridge(bridge) => {
                let bridge = find_bridge(&mut netlink, bridge, self.mtu)?;
                netlink
                    .set_mtu(self.index, bridge.mtu)
                    .and_then(|()| netlink.set_controller(self.index, Some(bridge.index)))
            }
            // What it is given is what has its address.
            Uplink::Macvtap(_) => netlink
                .bring_down(self.index)
                .and_then(|()| netlink.set_mac(self.index, mac))
                .and_then(|()| netlink.bring_up_mute(self.index)),
        };
        attached.map_err(|source| PortError::Attach {
            port: self.name().to_owned(),
            uplink: self.uplink.clone(),
            source,
        })
    }

    /// Takes the port off the network.
    pub fn detach(&self) -> Result<(), PortError> {
        let mut netlink = self.netlink();
        let detached = match &self.uplink {
            Uplink::Bridge(_) => netlink.set_controller(self.index, None),
            Uplink::Macvtap(_) => netlink.bring_down(self.index),
        };
        detached.map_err(|source| PortError::Detach {
            port: self.name().to_owned(),
            uplink: self.uplink.clone(),
            source,
        })
    }

    /// Attaches the port only to ask who is there: [`crate::probe_in_use`].
    pub fn attach_to_ask(&self) -> Result<(), PortError> {
        self.attach(self.asking_mac())
    }

    pub fn name(&self) -> &str {
        self.tap.name()
    }

    /// An address to ask the network from that is nobody's: not the device's own, whose frames a bridge keeps to
    /// the host, and not the workload's, which may be alive elsewhere.
    pub(crate) fn asking_mac(&self) -> Mac {
        let mut mac = self.mac;
        mac.0[0] = ASKING_MAC_FIRST_BYTE;
        mac
    }

    /// Writes a frame to the network.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.tap.write(frame)
    }

    /// Reads a frame of the network, if there is one, into a buffer of [`crate::MAX_FRAME`] bytes.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.tap.read(buffer)
    }

    /// Waits for a frame and reads it; `None` when the time is over.
    pub(crate) fn receive_until(&self, until: Moment, buffer: &mut [u8]) -> Result<Option<usize>, PortError> {
        loop {
            if let Some(length) = self.try_receive(buffer).map_err(|source| self.io_error(source))? {
                return Ok(Some(length));
            }
            let left = until.since(Moment::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut wanted = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut wanted, Some(TimeSpec::from(left)), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.io_error(errno.into())),
            }
        }
    }

    pub(crate) fn io_error(&self, source: io::Error) -> PortError {
        PortError::Io { port: self.name().to_owned(), source }
    }

    fn netlink(&self) -> MutexGuard<'_, Netlink> {
        // Every request is complete in itself, so that a panic elsewhere leaves nothing half done.
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// Gives a device that was just made its own address, the MTU of what it is on, and its queue; tells its index and address.
fn set_up(netlink: &mut Netlink, name: &str, mtu: u32) -> Result<(u32, Mac), PortError> {
    let done = (|| {
        let device = netlink.link(name)?.ok_or(Errno::ENODEV)?;
        // The kernel gave it a random one (`eth_hw_addr_random`, drivers/net/tun.c, drivers/net/macvlan.c).
        let mut mac = device.mac.ok_or(Errno::EADDRNOTAVAIL)?;
        mac.0[0] = DEVICE_MAC_FIRST_BYTE;
        // A bridge takes on the least MTU of its ports (`br_mtu_auto_adjust`, net/bridge/br_if.c): a port with
        // the bridge's own changes nothing for the others.
        netlink.configure_link(device.index, &LinkSettings { mac, mtu, queue: QUEUE })?;
        Ok((device.index, mac))
    })();
    done.map_err(|source| PortError::SetUp { port: name.to_owned(), source })
}

fn find_interface(netlink: &mut Netlink, interface: &str, mtu: u16) -> Result<Link, PortError> {
    let name = || interface.to_owned();
    let link = netlink.link(interface).map_err(PortError::Netlink)?;
    let link = link.ok_or_else(|| PortError::InterfaceMissing { interface: name() })?;
    if !link.is_up {
        return Err(PortError::InterfaceDown { interface: name() });
    }
    if u32::from(mtu) > link.mtu {
        return Err(PortError::MtuTooLarge { uplink: Uplink::Macvtap(name()), uplink_mtu: link.mtu, mtu });
    }
    Ok(link)
}

fn find_bridge(netlink: &mut Netlink, bridge: &str, mtu: u16) -> Result<Link, PortError> {
    let name = || bridge.to_owned();
    let link = netlink.link(bridge).map_err(PortError::Netlink)?;
    let link = link.ok_or_else(|| PortError::BridgeMissing { bridge: name() })?;
    if !link.is_bridge {
        return Err(PortError::NotABridge { bridge: name() });
    }
    if !link.is_up {
        return Err(PortError::BridgeDown { bridge: name() });
    }
    if u32::from(mtu) > link.mtu {
        return Err(PortError::MtuTooLarge { uplink: Uplink::Bridge(name()), uplink_mtu: link.mtu, mtu });
    }
    Ok(link)
}

/// The first byte of the device's own address, the highest of a local unicast one. A bridge without an address of
/// its own takes the lowest of its ports' (`br_stp_recalculate_bridge_id`, net/bridge/br_stp_if.c), and must not
/// change it because of us.
const DEVICE_MAC_FIRST_BYTE: u8 = 0xfe;
/// And of the address that asks for others: likewise local and unicast.
const ASKING_MAC_FIRST_BYTE: u8 = 0xfa;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;

    #[test]
    fn a_missing_bridge_is_named_with_the_way_to_make_it() {
        Namespace::bare()
            .unwrap()
            .enter(|| {
                let error = Port::create(&Uplink::bridge("no-such-br"), 1500).unwrap_err();
                assert!(matches!(error, PortError::BridgeMissing { .. }));
                assert!(error.to_string().contains("ip link add no-such-br type bridge"));
                assert!(matches!(
                    Port::create(&Uplink::bridge("lo"), 1500).unwrap_err(),
                    PortError::NotABridge { .. }
                ));
            })
            .unwrap();
    }

    #[test]
    fn a_macvtap_port_is_on_the_network_of_its_interface_and_ends_with_its_owner() {
        use std::process::Command;
        let ip = |arguments: &str| {
            let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        };
        let (one, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let work = || {
            ip("link add up0 type veth peer name wire0");
            assert!(matches!(
                Port::create(&Uplink::macvtap("up0"), 1500).unwrap_err(),
                PortError::InterfaceDown { .. }
            ));
            ip("link set up0 up");
            ip("link set wire0 up");
            let uplink = Uplink::macvtap("up0");
            assert!(matches!(Port::create(&uplink, 9000).unwrap_err(), PortError::MtuTooLarge { .. }));
            let (first, second) =
                (Port::create(&uplink, 1500).unwrap(), Port::create(&uplink, 1500).unwrap());
            let mut frame = vec![0; crate::VNET_HEADER];
            frame.extend(other.0);
            frame.extend(one.0);
            frame.extend([0x88, 0xb5]);
            frame.extend([7; 50]);
            let mut buffer = vec![0; crate::MAX_FRAME];
            let soon = || Moment::now() + std::time::Duration::from_millis(200);
            first.attach(one).unwrap();
            first.send(&frame).unwrap();
            assert_eq!(second.receive_until(soon(), &mut buffer).unwrap(), None, "it is not attached");
            second.attach(other).unwrap();
            first.send(&frame).unwrap();
            let length = loop {
                let length = second.receive_until(soon(), &mut buffer).unwrap().expect("the frame");
                if buffer[..length].ends_with(&[7; 50]) {
                    break length;
                }
            };
            assert_eq!(crate::source_mac(&buffer[..length]), Some(one));
            // Whoever has it keeps it from others on the same interface, for as long as it lives.
            let third = Port::create(&uplink, 1500).unwrap();
            assert!(matches!(third.attach(other).unwrap_err(), PortError::Attach { .. }));
            drop(second);
            let begun = std::time::Instant::now();
            while let Err(error) = third.attach(other) {
                assert!(begun.elapsed().as_secs() < 10, "{error}");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            third.detach().unwrap();
        };
        Namespace::bare().unwrap().enter(work).unwrap();
    }
}
