//! Hosts made of network namespaces, each with a bridge, for tests over real devices. Everything is held by
//! descriptors and is gone with them, also when a test fails.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use outlive_net::{
    Event, InputClosed, InputSink, Moment, Namespace, NetworkConfig, Observer, Port, Pump, PumpConfig,
    Uplink, Voice,
};

/// How long anything may take before a test gives up. Far beyond what it takes, so that a slow machine only
/// makes a failure slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const BRIDGE: &str = "br0";

/// The addresses of the workload and of the client.
pub fn workload_ip(v6: bool) -> IpAddr {
    if v6 { "fd00:7::10".parse().unwrap() } else { "10.7.0.10".parse().unwrap() }
}

pub fn client_ip(v6: bool) -> IpAddr {
    if v6 { "fd00:7::2".parse().unwrap() } else { "10.7.0.2".parse().unwrap() }
}

pub fn network() -> NetworkConfig {
    NetworkConfig::new("net-test", vec!["10.7.0.10/24".parse().unwrap(), "fd00:7::10/64".parse().unwrap()])
}

pub fn quiet_network() -> NetworkConfig {
    NetworkConfig::new("net-test", vec!["10.7.0.10/24".parse().unwrap()])
}

/// A pump whose acknowledgements never grow stale: on a slow machine they would.
pub fn config(network: NetworkConfig, voice: Voice) -> PumpConfig {
    let mut config = PumpConfig::new(network, voice);
    config.plug.freshness = PATIENCE;
    config
}

/// Runs iproute2 inside a namespace.
pub fn ip(namespace: &Namespace, arguments: &str) -> String {
    let output = namespace
        .enter(|| {
            Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed")
        })
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A host with a bridge that is up.
pub fn host() -> Namespace {
    let host = Namespace::bare().expect("these tests need root");
    ip(&host, &format!("link add {BRIDGE} type bridge"));
    ip(&host, &format!("link set {BRIDGE} up"));
    host
}

/// Joins two namespaces by a cable; an end whose name starts with `port` becomes a port of its bridge.
pub fn cable(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) {
    let b_path = format!("/proc/{}/fd/{}", std::process::id(), b.fd().as_raw_fd());
    ip(a, &format!("link add {a_name} type veth peer name {b_name} netns {b_path}"));
    for (namespace, name) in [(a, a_name), (b, b_name)] {
        if name.starts_with("port") {
            ip(namespace, &format!("link set {name} master {BRIDGE}"));
        }
        ip(namespace, &format!("link set {name} up"));
    }
    // A veth is up for the kernel only when its link watch has run, which it does once a second
    // (`linkwatch_schedule_work`, net/core/link_watch.c); until then a bridge forwards nothing through it.
    for (namespace, name) in [(a, a_name), (b, b_name)] {
        let ready = if name.starts_with("port") { "state forwarding" } else { "state UP" };
        let deadline = Moment::now() + PATIENCE;
        while !ip(namespace, &format!("-d -o link show {name}")).contains(ready) {
            assert!(Moment::now() < deadline, "the cable never comes up");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A client on the bridge of `host`.
pub fn client(host: &Namespace) -> Namespace {
    let client = Namespace::bare().unwrap();
    cable(host, "port-client", &client, "eth0");
    for address in ["10.7.0.2/24", "fd00:7::2/64 nodad"] {
        ip(&client, &format!("address add {address} dev eth0"));
    }
    client
}

/// Hears every frame that comes to a client's interface.
pub struct Ear {
    socket: OwnedFd,
    heard: usize,
}

impl Ear {
    pub fn open(client: &Namespace) -> Ear {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let open = || socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        Ear { socket: client.enter(open).unwrap(), heard: 0 }
    }

    /// How many frames of the workload were heard so far.
    pub fn heard(&mut self) -> usize {
        let mut frame = [0; 2048];
        while let Ok(length) = nix::unistd::read(&self.socket, &mut frame) {
            self.heard += usize::from(length >= 14 && frame[6..12] == network().mac.0);
        }
        self.heard
    }
}

/// What the backup was sent.
#[derive(Default)]
pub struct Sink {
    pub frames: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl InputSink for Sink {
    fn input(&self, epoch: u64, frame: &[u8]) {
        self.frames.lock().unwrap().push((epoch, frame.to_vec()));
    }
}

/// A workload on a host: its namespace, its pump, and what they report.
pub struct Workload {
    pub namespace: Namespace,
    pub pump: Arc<Pump>,
    pub events: Receiver<Event>,
    pub sink: Arc<Sink>,
}

pub fn exposed() -> Voice {
    Voice::Exposed { generation: 1 }
}

pub fn plugged() -> Voice {
    Voice::Plugged { generation: 1 }
}

impl Workload {
    /// On the bridge, with its input open.
    pub fn start(host: &Namespace, voice: Voice) -> Workload {
        Workload::start_with(host, config(network(), voice))
    }

    /// Without IPv6, whose kernel reports its groups by itself.
    pub fn start_quiet(host: &Namespace, voice: Voice) -> Workload {
        Workload::start_with(host, config(quiet_network(), voice))
    }

    pub fn start_with(host: &Namespace, config: PumpConfig) -> Workload {
        let (workload, closed) = Workload::prepare(host, config);
        workload.pump.port().attach(network().mac).unwrap();
        drop(closed);
        workload
    }

    /// Not yet on the bridge, with its input closed.
    pub fn prepare(host: &Namespace, config: PumpConfig) -> (Workload, InputClosed) {
        Workload::prepare_watched(host, config, Arc::new(()))
    }

    pub fn prepare_watched(
        host: &Namespace,
        config: PumpConfig,
        observer: Arc<dyn Observer>,
    ) -> (Workload, InputClosed) {
        let (namespace, inner) = Namespace::create(&config.network).unwrap();
        let port = host.enter(|| Port::create(&Uplink::bridge(BRIDGE), config.network.mtu)).unwrap().unwrap();
        let (sender, events) = channel::<Event>();
        let sender = Mutex::new(sender);
        let notify = Arc::new(move |event| {
            let _ = sender.lock().unwrap().send(event);
        });
        let sink = Arc::new(Sink::default());
        let (pump, closed) = Pump::start(inner, port, config, sink.clone(), observer, notify).unwrap();
        (Workload { namespace, pump: Arc::new(pump), events, sink }, closed)
    }

    /// Waits for an event, past others.
    pub fn wait_for(&self, wanted: Event) {
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {wanted:?}"));
            if event == wanted {
                return;
            }
        }
    }

    /// Ends an epoch, as the engine does, without any checkpoint.
    pub fn cut(&self, epoch: u64) {
        let closed = self.pump.close_input();
        self.pump.cut(epoch).unwrap();
        drop(closed);
    }
}

/// Plays the engine and the backup: every call for a checkpoint gets one that commits at once.
pub struct Engine {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Engine {
    pub fn start(pump: Arc<Pump>, events: Receiver<Event>, first_epoch: u64) -> Engine {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut epoch = first_epoch;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(event) = events.recv_timeout(Duration::from_millis(20)) else {
                    pump.heartbeat_ack(Moment::now()).unwrap();
                    continue;
                };
                match event {
                    Event::PayloadWaiting | Event::AckWaiting => {
                        let closed = pump.close_input();
                        pump.cut(epoch).unwrap();
                        drop(closed);
                        pump.acknowledged(epoch, Moment::now()).unwrap();
                        epoch += 1;
                    }
                    Event::KernelWaiting => pump.heartbeat_ack(Moment::now()).unwrap(),
                    _ => {}
                }
            }
            epoch
        });
        Engine { stop, thread: Some(thread) }
    }

    /// The number of the next epoch.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A listener inside a namespace, on a free port.
pub fn listen(namespace: &Namespace, address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = namespace.enter(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects from inside a namespace, in the background.
pub fn connect(namespace: &Namespace, to: SocketAddr) -> Receiver<TcpStream> {
    let (sender, receiver) = channel();
    let (entered, wait) = channel();
    let file = namespace.fd().try_clone_to_owned().unwrap();
    thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        entered.send(()).unwrap();
        send_stream(&sender, to);
    });
    wait.recv().unwrap();
    receiver
}

fn send_stream(sender: &Sender<TcpStream>, to: SocketAddr) {
    if let Ok(stream) = TcpStream::connect(to) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let _ = sender.send(stream);
    }
}

/// Bytes that tell their place, so that a gap or a repetition shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Sends `data` through `from` and reads it from `to`.
pub fn transfer(from: &TcpStream, to: &TcpStream, data: &[u8]) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || from.write_all(data).unwrap());
        let mut received = vec![0; data.len()];
        to.read_exact(&mut received).unwrap();
        assert!(received == data, "the stream was changed on its way");
    });
}
