//! The port: the outer TAP device, through which the workload is on a bridge of this node.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::sys::netlink::{Link, LinkSettings, Netlink};
use crate::sys::tap::Tap;
use crate::{Mac, Moment};

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
    #[error("bridge `{bridge}` has an MTU of {bridge_mtu}, below the workload's {mtu}: lower the workload's")]
    MtuTooLarge { bridge: String, bridge_mtu: u32, mtu: u16 },
    #[error(
        "no TAP device can be made for the port: it takes /dev/net/tun (`modprobe tun`) and CAP_NET_ADMIN"
    )]
    Tap(#[source] io::Error),
    #[error("netlink cannot be used")]
    Netlink(#[source] io::Error),
    #[error("port {port} cannot be set up")]
    SetUp { port: String, source: io::Error },
    #[error("port {port} cannot be attached to bridge `{bridge}`")]
    Attach { port: String, bridge: String, source: io::Error },
    #[error("port {port} cannot be detached from bridge `{bridge}`")]
    Detach { port: String, bridge: String, source: io::Error },
    #[error("port {port} cannot be read or written")]
    Io { port: String, source: io::Error },
}

/// A TAP device for a bridge. Made early, attached at the moment of takeover, gone with this value.
#[derive(Debug)]
pub struct Port {
    tap: Tap,
    index: u32,
    mac: Mac,
    bridge: String,
    mtu: u16,
    netlink: Mutex<Netlink>,
}

impl Port {
    /// Makes the port for `bridge`, in the calling thread's network namespace: up, but not attached, so that
    /// nothing is heard through it in either direction yet.
    pub fn create(bridge: &str, mtu: u16) -> Result<Port, PortError> {
        let mut netlink = Netlink::open().map_err(PortError::Netlink)?;
        let link = find_bridge(&mut netlink, bridge, mtu)?;
        let tap = Tap::create(NAME_PATTERN).map_err(PortError::Tap)?;
        let (index, mac) = (|| {
            let device = netlink.link(tap.name())?.ok_or(Errno::ENODEV)?;
            // The kernel gave it a random one (`eth_hw_addr_random`, drivers/net/tun.c).
            let mut mac = device.mac.ok_or(Errno::EADDRNOTAVAIL)?;
            mac.0[0] = DEVICE_MAC_FIRST_BYTE;
            // A bridge takes on the least MTU of its ports (`br_mtu_auto_adjust`, net/bridge/br_if.c): a port with
            // the bridge's own changes nothing for the others.
            netlink.configure_link(device.index, &LinkSettings { mac, mtu: link.mtu, queue: QUEUE })?;
            netlink.bring_up_mute(device.index)?;
            Ok((device.index, mac))
        })()
        .map_err(|source| PortError::SetUp { port: tap.name().to_owned(), source })?;
        Ok(Port { tap, index, mac, bridge: bridge.to_owned(), mtu, netlink: Mutex::new(netlink) })
    }

    /// Attaches the port to its bridge: from now on its frames reach the network. May be called from any thread.
    pub fn attach(&self) -> Result<(), PortError> {
        let mut netlink = self.netlink();
        let bridge = find_bridge(&mut netlink, &self.bridge, self.mtu)?;
        netlink
            .set_mtu(self.index, bridge.mtu)
            .and_then(|()| netlink.set_controller(self.index, Some(bridge.index)))
            .map_err(|source| PortError::Attach {
                port: self.name().to_owned(),
                bridge: self.bridge.clone(),
                source,
            })
    }

    /// Takes the port off its bridge.
    pub fn detach(&self) -> Result<(), PortError> {
        self.netlink().set_controller(self.index, None).map_err(|source| PortError::Detach {
            port: self.name().to_owned(),
            bridge: self.bridge.clone(),
            source,
        })
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
        return Err(PortError::MtuTooLarge { bridge: name(), bridge_mtu: link.mtu, mtu });
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
                let error = Port::create("no-such-br", 1500).unwrap_err();
                assert!(matches!(error, PortError::BridgeMissing { .. }));
                assert!(error.to_string().contains("ip link add no-such-br type bridge"));
                assert!(matches!(Port::create("lo", 1500).unwrap_err(), PortError::NotABridge { .. }));
            })
            .unwrap();
    }
}
