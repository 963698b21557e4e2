//! Connections without a descriptor through the death of their host, with two real pumps and kernels.
//!
//! These need root, and network namespaces of their own, which are gone with the descriptors that hold them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use outlive_epoch::requests::{self, Requests};
use outlive_net::{InputClosed, Moment, Namespace, NetworkConfig, Port, Pump, PumpConfig, Uplink, Voice};
use outlive_process::object::tcp_request::{PendingConnection, Progress, supported};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const BRIDGE: &str = "br0";
const WORKLOAD: &str = "10.7.1.10:700";

fn network() -> NetworkConfig {
    NetworkConfig::new("requests-test", vec!["10.7.1.10/24".parse().unwrap()])
}

/// A network whose only other station is the bridge itself: the client.
fn lan() -> Namespace {
    let lan = Namespace::bare().expect("these tests need root");
    // With an address of its own, or a bridge takes that of a port, which changes with the host.
    let commands = [
        "link add br0 address 02:00:00:00:07:02 type bridge",
        "address add 10.7.1.2/24 dev br0",
        // A port that stays: without one the bridge has no carrier between two hosts of the workload, and when the second has come
        // drops what it is given until the kernel gets to it (`linkwatch_event`, net/core/link_watch.c: up to a second).
        "link add stays type veth peer name other",
        "link set stays master br0 up",
        "link set other up",
        "link set br0 up",
    ];
    for arguments in commands {
        let run = || Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
        assert!(lan.enter(run).unwrap().success(), "ip {arguments}");
    }
    lan
}

/// A host of the workload, whose program is this test.
struct Host {
    pump: Pump,
    requests: Arc<Requests>,
    listener: TcpListener,
    _namespace: Namespace,
}

impl Host {
    /// `pending` is rebuilt when the listener is there. The input stays closed until the guard is dropped.
    fn start(lan: &Namespace, voice: Voice, pending: Vec<PendingConnection>) -> (Host, InputClosed) {
        let network = network();
        let (namespace, inner) = Namespace::create(&network).unwrap();
        let port = lan.enter(|| Port::create(&Uplink::bridge(BRIDGE), network.mtu)).unwrap().unwrap();
        let address: SocketAddr = WORKLOAD.parse().unwrap();
        let listener = namespace.enter(|| TcpListener::bind(address)).unwrap().unwrap();
        let restorer = namespace.enter(requests::prepare).unwrap();
        let (requests, rebuilding) = Requests::resume(restorer, pending);
        let requests = Arc::new(requests);
        let mut config = PumpConfig::new(network.clone(), voice);
        config.plug.freshness = PATIENCE;
        port.attach(network.mac).unwrap();
        let (pump, closed) =
            Pump::start(inner, port, config, Arc::new(()), requests.clone(), Arc::new(|_| ())).unwrap();
        pump.announce();
        requests.rebuild(&pump, rebuilding);
        (Host { pump, requests, listener, _namespace: namespace }, closed)
    }

    /// What a client has connected to, while that is driven which is still being rebuilt.
    fn accept(&self) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    return stream;
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(begun.elapsed() < PATIENCE, "nobody connects");
            self.requests.tick(&self.pump);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for what is pending to be so, and takes it as a checkpoint does.
    fn pending(&self, reached: impl Fn(&PendingConnection) -> bool) -> Vec<PendingConnection> {
        let begun = Instant::now();
        loop {
            // Lets go what the kernel says alone, the client's question for the address. Exposed, nothing is held.
            let _ = self.pump.heartbeat_ack(Moment::now());
            let closed = self.pump.close_input();
            let snapshot = self.requests.snapshot();
            drop(closed);
            assert_eq!(snapshot.refused, []);
            if !snapshot.connections.is_empty() && snapshot.connections.iter().all(&reached) {
                return snapshot.connections;
            }
            assert!(begun.elapsed() < PATIENCE, "{snapshot:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Connects from another thread: it may take until after the failover.
fn connect(lan: &Namespace) -> Receiver<TcpStream> {
    let (connected, receiver) = channel();
    let socket = lan.enter(|| {
        let flags = nix::sys::socket::SockFlag::SOCK_CLOEXEC;
        let (family, kind) = (nix::sys::socket::AddressFamily::Inet, nix::sys::socket::SockType::Stream);
        nix::sys::socket::socket(family, kind, flags, None).unwrap()
    });
    let socket = socket.unwrap();
    std::thread::spawn(move || {
        let address: std::net::SocketAddrV4 = WORKLOAD.parse().unwrap();
        let address = nix::sys::socket::SockaddrIn::from(address);
        nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).expect("connect");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        connected.send(stream)
    });
    receiver
}

fn assert_alive(client: &mut TcpStream, server: &mut TcpStream) {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 5];
    server.write_all(b"reply").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"reply");
    client.write_all(b"again").unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"again");
}

#[test]
fn what_a_client_sent_before_it_was_accepted_is_there_after_a_failover() {
    if let Err(missing) = supported() {
        return eprintln!("not on this kernel: {missing}");
    }
    let lan = lan();
    let (old, closed) = Host::start(&lan, Voice::Exposed { generation: 1 }, Vec::new());
    drop(closed);
    let mut client = connect(&lan).recv_timeout(PATIENCE).unwrap();
    client.write_all(b"early").unwrap();
    let pending = old.pending(|connection| connection.acknowledged == 5);
    drop(old);

    let (new, closed) = Host::start(&lan, Voice::Exposed { generation: 2 }, pending);
    assert_eq!(new.requests.next_tick(), None, "everything is back at once");
    drop(closed);
    let mut server = new.accept();
    let mut early = [0; 5];
    server.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    assert_alive(&mut client, &mut server);
    // What the workload has said something on is no longer pending.
    assert_eq!(new.requests.snapshot().connections, []);
}

#[test]
fn a_client_whose_handshake_was_held_is_answered_after_a_failover() {
    if let Err(missing) = supported() {
        return eprintln!("not on this kernel: {missing}");
    }
    let lan = lan();
    let (old, closed) = Host::start(&lan, Voice::Plugged { generation: 1 }, Vec::new());
    drop(closed);
    let connecting = connect(&lan);
    let pending = old.pending(|connection| connection.progress == Progress::SynReceived);
    drop(old);

    let (new, closed) = Host::start(&lan, Voice::Exposed { generation: 2 }, pending);
    assert!(new.requests.next_tick().is_some(), "the client has not answered");
    drop(closed);
    let mut client = connecting.recv_timeout(PATIENCE).unwrap();
    let mut server = new.accept();
    assert_alive(&mut client, &mut server);
    let begun = Instant::now();
    while new.requests.next_tick().is_some() {
        assert!(begun.elapsed() < PATIENCE, "the rebuilt connection is never noticed");
        new.requests.tick(&new.pump);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_second_failover_finds_what_the_first_brought_along() {
    if let Err(missing) = supported() {
        return eprintln!("not on this kernel: {missing}");
    }
    let lan = lan();
    let (mut host, closed) = Host::start(&lan, Voice::Exposed { generation: 1 }, Vec::new());
    drop(closed);
    let mut client = connect(&lan).recv_timeout(PATIENCE).unwrap();
    let mut sent = 0;
    for generation in 2..4 {
        client.write_all(b"early").unwrap();
        sent += 5;
        let pending = host.pending(|connection| connection.acknowledged == sent);
        drop(host);
        let (next, closed) = Host::start(&lan, Voice::Exposed { generation }, pending);
        drop(closed);
        host = next;
    }
    let mut server = host.accept();
    let mut early = [0; 10];
    server.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"earlyearly");
    assert_alive(&mut client, &mut server);
}
