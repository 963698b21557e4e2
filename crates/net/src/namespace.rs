//! The workload's network namespace, whose only way out is a TAP device held by us.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};

use crate::sys::netlink::{LinkSettings, Netlink};
use crate::sys::tap::Tap;
use crate::{ConfigError, Moment, NetworkConfig, Route};

/// The name of the workload's only interface.
pub const INTERFACE: &str = "eth0";

/// Frames that the workload's kernel may have sent and we not yet read. A full TAP drops silently, and the
/// longest time nobody reads is one pause: 16,384 frames are 20 ms of 10 Gb/s in packets of 1,500 bytes, and cost
/// 8 bytes each while unused (`ptr_ring`, drivers/net/tun.c).
pub(crate) const QUEUE: u32 = 16_384;

/// Buckets of the namespace's own table of TCP connections: a walk over the sockets of a workload visits its
/// table, and the host's has hundreds of thousands of buckets. 4,096 keep chains short up to tens of thousands
/// of connections.
const TCP_TABLE_BUCKETS: &str = "4096";

/// How long the kernel may take to make a new address its own, and how often to look. It takes less than a
/// millisecond; a machine that takes seconds for it is not one to start a workload on.
const LOCAL_WITHIN: Duration = Duration::from_secs(10);
const LOCAL_INTERVAL: Duration = Duration::from_micros(200);

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no thread could be started to make the network namespace")]
    Thread(#[source] io::Error),
    #[error("a network namespace cannot be created: it takes CAP_SYS_ADMIN")]
    Create(#[source] io::Error),
    #[error("the network namespace cannot be entered")]
    Enter(#[source] io::Error),
    #[error("no TAP device can be made: it takes /dev/net/tun (`modprobe tun`) and CAP_NET_ADMIN")]
    Tap(#[source] io::Error),
    #[error("netlink cannot be opened in the network namespace")]
    Netlink(#[source] io::Error),
    #[error("device {device} cannot be set up in the network namespace")]
    Link { device: &'static str, source: io::Error },
    #[error("address {address} cannot be given to the workload")]
    Address { address: IpNet, source: io::Error },
    #[error("the route to {} via {} cannot be set for the workload", route.destination, route.via)]
    Route { route: Route, source: io::Error },
    #[error("{path} cannot be set to {value} in the network namespace")]
    Sysctl { path: String, value: &'static str, source: io::Error },
}

/// Which table holds the workload's TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpTable {
    /// Its own, small one.
    Own,
    /// The host's: `/proc/sys` is read-only here or the kernel is older than 6.1. Only walks are slower.
    Global,
}

/// A network namespace, kept alive by its descriptor alone.
#[derive(Debug)]
pub struct Namespace {
    file: fs::File,
    tcp_table: TcpTable,
}

/// The workload's end of the plug: what it sends is read here, what is written here it receives.
#[derive(Debug)]
pub struct InnerTap {
    pub(crate) tap: Tap,
}

impl InnerTap {
    /// Writes a frame to the workload, whose kernel has handled it when this returns.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.tap.write(frame)
    }

    /// Reads a frame of the workload, if there is one, into a buffer of [`crate::MAX_FRAME`] bytes.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.tap.read(buffer)
    }
}

impl AsFd for InnerTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

impl Namespace {
    /// Makes the namespace of a workload, ready for its first socket.
    pub fn create(config: &NetworkConfig) -> Result<(Namespace, InnerTap), NamespaceError> {
        config.validate()?;
        let namespace = Namespace::bare()?;
        let tap = namespace.enter(|| set_up(config))??;
        Ok((namespace, InnerTap { tap }))
    }

    /// Makes a namespace with nothing but its loopback up.
    pub fn bare() -> Result<Namespace, NamespaceError> {
        in_a_thread(|| {
            // A namespace takes the size of its TCP table from the namespace that its creator is in
            // (`tcp_set_hashinfo`, net/ipv4/tcp_ipv4.c). Setting it on the host would change what others create
            // meanwhile, so that a stepping stone is made, used and left.
            let create =
                || unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Create(errno.into()));
            create()?;
            let set = fs::write("/proc/sys/net/ipv4/tcp_child_ehash_entries", TCP_TABLE_BUCKETS);
            let tcp_table = match set {
                Ok(()) => {
                    create()?;
                    TcpTable::Own
                }
                Err(_) => TcpTable::Global,
            };
            let file = fs::File::open("/proc/thread-self/ns/net").map_err(NamespaceError::Enter)?;
            let mut netlink = Netlink::open().map_err(NamespaceError::Netlink)?;
            (|| match netlink.link("lo")? {
                Some(lo) => netlink.bring_up(lo.index),
                None => Err(io::ErrorKind::NotFound.into()),
            })()
            .map_err(|source| NamespaceError::Link { device: "lo", source })?;
            Ok(Namespace { file, tcp_table })
        })?
    }

    /// The descriptor that `setns` takes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn tcp_table(&self) -> TcpTable {
        self.tcp_table
    }

    /// Runs `work` on a thread inside the namespace, for instance to create sockets, which stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        in_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NamespaceError::Enter(errno.into()))?;
            Ok(work())
        })?
    }
}

/// Runs `work` on a thread of its own, because a namespace is entered by one thread and for good.
fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        match thread.map_err(NamespaceError::Thread)?.join() {
            Ok(result) => Ok(result),
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// Runs inside the namespace.
fn set_up(config: &NetworkConfig) -> Result<Tap, NamespaceError> {
    // A connection by MPTCP cannot be captured; without it programs fall back to TCP (R3: hidden).
    sysctl("net/mptcp/enabled", "0")?;
    // Half-open connections are rebuilt through the cookie path of the kernel, which this enables.
    sysctl("net/ipv4/tcp_syncookies", "1")?;

    let tap = Tap::create(INTERFACE).map_err(NamespaceError::Tap)?;
    if config.has_ipv6() {
        // The address is the workload's alone and moves with it: asking around before use would only delay it,
        // and the primary's own answer would forbid it to the backup. Routes are configured, not heard.
        for (name, value) in [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("router_solicitations", "0"),
        ] {
            sysctl(&format!("net/ipv6/conf/{INTERFACE}/{name}"), value)?;
        }
    } else {
        sysctl(&format!("net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1")?;
    }

    let mut netlink = Netlink::open().map_err(NamespaceError::Netlink)?;
    let index = (|| {
        let Some(link) = netlink.link(INTERFACE)? else { return Err(io::ErrorKind::NotFound.into()) };
        let settings = LinkSettings { mac: config.mac, mtu: config.mtu.into(), queue: QUEUE };
        netlink.configure_link(link.index, &settings)?;
        netlink.bring_up(link.index)?;
        Ok(link.index)
    })()
    .map_err(|source| NamespaceError::Link { device: INTERFACE, source })?;
    for &address in &config.addresses {
        netlink.add_address(index, address).map_err(|source| NamespaceError::Address { address, source })?;
    }
    for &address in &config.addresses {
        wait_until_local(&mut netlink, address)?;
    }
    for &route in &config.routes {
        netlink.add_route(index, &route).map_err(|source| NamespaceError::Route { route, source })?;
    }
    Ok(tap)
}

/// Waits until the kernel takes the address as its own. An IPv6 address becomes so on a work queue, even where no
/// duplicate is looked for (`addrconf_dad_start`, net/ipv6/addrconf.c); until then it looks like a neighbour's.
fn wait_until_local(netlink: &mut Netlink, address: IpNet) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Address { address, source };
    let deadline = Moment::now() + LOCAL_WITHIN;
    while !netlink.is_local(address.addr()).map_err(failed)? {
        if Moment::now() >= deadline {
            return Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                "the kernel does not take it as its own",
            )));
        }
        thread::sleep(LOCAL_INTERVAL);
    }
    Ok(())
}

/// Sets a value under `/proc/sys`, which shows the calling thread its own namespace's `net`. What the kernel was
/// built without needs no setting.
fn sysctl(name: &str, value: &'static str) -> Result<(), NamespaceError> {
    let path = Path::new("/proc/sys").join(name);
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => {
            done.map_err(|source| NamespaceError::Sysctl { path: path.display().to_string(), value, source })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn config() -> NetworkConfig {
        let mut config = NetworkConfig::new(
            "namespace-test",
            vec!["192.0.2.10/24".parse().unwrap(), "2001:db8::10/64".parse().unwrap()],
        );
        config.mtu = 1400;
        config.routes = vec![
            Route { destination: "0.0.0.0/0".parse().unwrap(), via: "192.0.2.1".parse().unwrap() },
            Route { destination: "::/0".parse().unwrap(), via: "2001:db8::1".parse().unwrap() },
        ];
        config
    }

    #[test]
    fn a_namespace_has_what_its_configuration_says() {
        let host_table = read("/proc/sys/net/ipv4/tcp_child_ehash_entries");
        let (namespace, _tap) = Namespace::create(&config()).unwrap();
        assert_eq!(read("/proc/sys/net/ipv4/tcp_child_ehash_entries"), host_table, "the host is not touched");
        namespace
            .enter(|| {
                assert_eq!(read("/proc/sys/net/mptcp/enabled"), "0");
                assert_eq!(read("/proc/sys/net/ipv6/conf/eth0/accept_dad"), "0");
                assert_eq!(read("/proc/sys/net/ipv4/tcp_ehash_entries"), "4096");
                let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let devices: Vec<_> =
                    devices.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
                assert_eq!(devices.len(), 2, "{devices:?}");
                // Both addresses can be used at once: no duplicate address detection is waited for.
                for address in ["192.0.2.10:0", "[2001:db8::10]:0", "127.0.0.1:0", "[::1]:0"] {
                    let listener = TcpListener::bind(address).unwrap();
                    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                }
                // And there is a way to everywhere.
                UdpSocket::bind("0.0.0.0:0").unwrap().connect("198.51.100.1:9").unwrap();
                UdpSocket::bind("[::]:0").unwrap().connect("[2001:db9::1]:9").unwrap();
            })
            .unwrap();
        assert_eq!(namespace.tcp_table(), TcpTable::Own);
    }

    #[test]
    fn what_the_workload_sends_comes_out_with_its_address() {
        let config = config();
        let (namespace, tap) = Namespace::create(&config).unwrap();
        namespace
            .enter(|| UdpSocket::bind("192.0.2.10:0").unwrap().send_to(b"hello", "192.0.2.255:9").err())
            .unwrap();
        namespace
            .enter(|| UdpSocket::bind("192.0.2.10:0").unwrap().send_to(b"hello", "192.0.2.7:9").unwrap())
            .unwrap();
        let mut buffer = vec![0; crate::MAX_FRAME];
        let mut saw_arp = false;
        while let Some(length) = tap.try_receive(&mut buffer).unwrap() {
            let frame = &buffer[..length];
            assert_eq!(crate::source_mac(frame), Some(config.mac));
            saw_arp |= frame.ends_with(&[192, 0, 2, 7]);
        }
        assert!(saw_arp, "the workload's kernel asks who has 192.0.2.7");
    }

    #[test]
    fn a_panic_inside_comes_out_and_the_caller_stays_where_it_is() {
        let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let namespace = Namespace::bare().unwrap();
        let there = namespace.enter(|| fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(here, there);
        assert!(std::panic::catch_unwind(|| namespace.enter(|| panic!("as asked"))).is_err());
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
    }
}
