//! Two hosts in network namespaces of their own, joined by a wire that the test holds in its hands: it copies frames
//! between two TAPs, shows them to the tracker, loses those that a test wants lost, and survives the death of one end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket,
    sockopt,
};
use outlive_process::object::tcp_request::{
    Bounds, FourTuple, Frames, RequestTracker, Restorer, Restoring, Snapshot, TapFrame, Verdict,
};

/// When a test that waits for something gives up: far beyond any retransmission timer involved.
pub const HANG: Duration = Duration::from_secs(60);
pub const PORT: u16 = 80;
const VNET_HEADER: usize = 10;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, alive as long as its thread (and what it opened).
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            for job in inbox {
                job();
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs something inside.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (reply, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(reply.send(work())));
        self.jobs.as_ref().expect("open").send(job).expect("namespace thread");
        result.recv().expect("work in the namespace panicked")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One end of the wire.
pub struct Host {
    pub namespace: Namespace,
    pub tap: Arc<File>,
}

impl Host {
    fn new(number: u8, settings: &[(&'static str, &'static str)]) -> Self {
        let namespace = Namespace::new();
        let settings = settings.to_vec();
        let tap = namespace.run(move || {
            let tap = open_tap();
            for (name, value) in settings {
                std::fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
            }
            ip(&format!(
                "link set lo up\nlink set eth0 address 02:00:00:00:00:{number:02x}\n\
                 addr add 10.77.0.{number}/24 dev eth0\naddr add fd77::{number}/64 dev eth0 nodad\nlink set eth0 up\n"
            ));
            wait_for_local_route(&format!("fd7700000000000000000000000000{number:02x}"));
            tap
        });
        Self { namespace, tap: Arc::new(tap) }
    }
}

/// An IPv6 address is usable some time after it was set (a work queue finishes it, addrconf_dad_work): until it has its
/// local route, frames for it are discarded.
fn wait_for_local_route(address: &str) {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let since = Instant::now();
    loop {
        let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("routes");
        let is_local = |route: &str| {
            let fields: Vec<_> = route.split_whitespace().collect();
            let flags = u32::from_str_radix(fields[8], 16).expect("flags");
            fields[0] == address && flags & RTF_LOCAL != 0
        };
        if routes.lines().any(is_local) {
            return;
        }
        assert!(since.elapsed() < HANG, "no local route to {address} in {routes}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn ip(batch: &str) {
    let mut command = Command::new("ip");
    let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    child.stdin.take().expect("stdin").write_all(batch.as_bytes()).expect("write");
    assert!(child.wait().expect("ip").success());
}

fn open_tap() -> File {
    const TUN_F_CSUM_TSO4_TSO6: libc::c_ulong = 0x01 | 0x02 | 0x04;
    let tap = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF takes an ifreq, which lives through the call.
    let named = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &request) };
    assert_eq!(named, 0, "TUNSETIFF");
    // SAFETY: TUNSETOFFLOAD takes flags by value.
    let offloaded = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, TUN_F_CSUM_TSO4_TSO6) };
    assert_eq!(offloaded, 0, "TUNSETOFFLOAD");
    nix::fcntl::fcntl(tap.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .expect("fcntl");
    tap
}

/// Which way a frame goes, from the workload's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// Decides whether the wire carries a TCP segment; frames inward are lost before the tracker sees them.
pub type Filter = Box<dyn FnMut(Way, &etherparse::TcpSlice<'_>) -> bool + Send>;

pub struct WireState {
    client: Arc<File>,
    workload: Option<Arc<File>>,
    pub tracker: RequestTracker,
    pub restoring: Option<Restoring>,
    pub filter: Filter,
    /// Frames inward that the tracker wanted lost.
    pub refused: usize,
    stop: bool,
}

pub struct Wire {
    state: Arc<Mutex<WireState>>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    fn new(client: Arc<File>, bounds: Bounds) -> Self {
        let state = Arc::new(Mutex::new(WireState {
            client,
            workload: None,
            tracker: RequestTracker::new(bounds),
            restoring: None,
            filter: Box::new(|_, _| true),
            refused: 0,
            stop: false,
        }));
        let pumped = Arc::clone(&state);
        let thread = thread::spawn(move || {
            loop {
                let (client, workload) = {
                    let mut state = pumped.lock().expect("pump");
                    if state.stop {
                        return;
                    }
                    state.pump();
                    (Arc::clone(&state.client), state.workload.clone())
                };
                let mut fds = vec![PollFd::new(client.as_fd(), PollFlags::POLLIN)];
                fds.extend(workload.iter().map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN)));
                // A timeout notices a change of the workload, and the restore's own timers.
                poll(&mut fds, 5_u8).expect("poll");
            }
        });
        Self { state, thread: Some(thread) }
    }

    pub fn lock(&self) -> MutexGuard<'_, WireState> {
        self.state.lock().expect("pump thread")
    }

    pub fn filter(&self, filter: impl FnMut(Way, &etherparse::TcpSlice<'_>) -> bool + Send + 'static) {
        self.lock().filter = Box::new(filter);
    }

    /// Waits until what the tracker knows is as expected.
    pub fn wait_for(&self, what: &str, mut reached: impl FnMut(&Snapshot) -> bool) {
        let since = Instant::now();
        loop {
            let snapshot = self.lock().tracker.snapshot();
            if reached(&snapshot) {
                return;
            }
            assert!(since.elapsed() < HANG, "waited in vain for {what}: {snapshot:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl WireState {
    fn pump(&mut self) {
        let mut buffer = vec![0; VNET_HEADER + 70_000];
        let Some(workload) = self.workload.clone() else { return };
        let now = Instant::now();
        while let Ok(length) = (&*self.client).read(&mut buffer) {
            let frame = &buffer[VNET_HEADER..length];
            if !self.carries(Way::In, frame) {
                continue;
            }
            if self.tracker.observe_in(now, frame) == Verdict::Drop {
                self.refused += 1;
                continue;
            }
            if let Some(restoring) = &mut self.restoring {
                let frames = restoring.observe_in(frame).expect("observe_in");
                self.pass_on(&workload, &frames);
            }
            let _ = (&*workload).write(&buffer[..length]);
        }
        while let Ok(length) = (&*workload).read(&mut buffer) {
            let frame = &buffer[VNET_HEADER..length];
            self.tracker.observe_out(now, frame);
            if self.carries(Way::Out, frame) {
                let _ = (&*self.client).write(&buffer[..length]);
            }
        }
        if let Some(restoring) = &mut self.restoring {
            let frames = restoring.tick(now).expect("tick");
            self.pass_on(&workload, &frames);
        }
    }

    fn pass_on(&mut self, workload: &File, frames: &Frames) {
        frames.inject.iter().for_each(|frame| inject(workload, frame));
        frames.send.iter().for_each(|frame| self.send(frame));
    }

    /// A frame to the client that no kernel has sent.
    pub fn send(&mut self, frame: &[u8]) {
        if self.carries(Way::Out, frame) {
            write_plain(&self.client, frame);
        }
    }

    fn carries(&mut self, way: Way, frame: &[u8]) -> bool {
        let packet = etherparse::SlicedPacket::from_ethernet(frame);
        match packet.ok().and_then(|packet| packet.transport) {
            Some(etherparse::TransportSlice::Tcp(tcp)) => (self.filter)(way, &tcp),
            _ => true,
        }
    }
}

fn inject(mut tap: &File, frame: &TapFrame) {
    tap.write_all(&frame.to_bytes()).expect("write to TAP");
}

fn write_plain(mut tap: &File, frame: &[u8]) {
    let with_header = [&[0; VNET_HEADER], frame].concat();
    tap.write_all(&with_header).expect("write to TAP");
}

/// What a connection is opened over and what the client's kernel is set to.
#[derive(Debug, Clone)]
pub struct Variation {
    pub name: &'static str,
    pub server: IpAddr,
    /// Listen on the wildcard IPv6 address for both families, as many servers do.
    pub dual_stack: bool,
    pub client_settings: &'static [(&'static str, &'static str)],
}

pub fn variations() -> Vec<Variation> {
    let v4: IpAddr = "10.77.0.2".parse().expect("address");
    let v6: IpAddr = "fd77::2".parse().expect("address");
    let plain = Variation { name: "IPv4", server: v4, dual_stack: false, client_settings: &[] };
    vec![
        plain.clone(),
        Variation { name: "IPv6", server: v6, ..plain },
        Variation { name: "IPv4 at a dual-stack listener", dual_stack: true, ..plain },
        Variation { name: "no timestamps", client_settings: &[("ipv4/tcp_timestamps", "0")], ..plain },
        Variation { name: "no window scale", client_settings: &[("ipv4/tcp_window_scaling", "0")], ..plain },
        Variation { name: "no SACK", client_settings: &[("ipv4/tcp_sack", "0")], ..plain },
        Variation {
            name: "IPv6, no options, ECN",
            server: v6,
            client_settings: &[
                ("ipv4/tcp_timestamps", "0"),
                ("ipv4/tcp_window_scaling", "0"),
                ("ipv4/tcp_sack", "0"),
                ("ipv4/tcp_ecn", "1"),
            ],
            ..plain
        },
    ]
}

/// How long the steps of a restore took.
#[derive(Debug, Default)]
pub struct Costs {
    pub attach: Duration,
    pub restore: Duration,
    pub inject: Duration,
    pub settle: Duration,
    pub frames: usize,
}

/// A client, a workload that can die, and a listener in the workload.
pub struct Scene {
    pub variation: Variation,
    pub backlog: i32,
    bounds: Bounds,
    client: Host,
    workload: Option<Host>,
    pub listener: Option<TcpListener>,
    pub wire: Wire,
    pub costs: Costs,
}

impl Scene {
    pub fn new(variation: &Variation) -> Self {
        Self::with(variation, 128, Bounds::default())
    }

    pub fn with(variation: &Variation, backlog: i32, bounds: Bounds) -> Self {
        let client = Host::new(1, variation.client_settings);
        let wire = Wire::new(Arc::clone(&client.tap), bounds);
        let mut scene = Self {
            variation: variation.clone(),
            backlog,
            bounds,
            client,
            workload: None,
            listener: None,
            wire,
            costs: Costs::default(),
        };
        scene.boot(&[]);
        scene.wire.lock().workload = scene.workload.as_ref().map(|host| Arc::clone(&host.tap));
        scene
    }

    /// A workload's host with its listener, not connected to the wire.
    pub fn boot(&mut self, settings: &[(&'static str, &'static str)]) {
        let host = Host::new(2, settings);
        let (backlog, dual_stack, server) = (self.backlog, self.variation.dual_stack, self.variation.server);
        self.listener = Some(host.namespace.run(move || open_listener(server, dual_stack, backlog)));
        self.workload = Some(host);
    }

    /// The workload's host dies with all that its kernel knows. What the tracker knew is what a checkpoint held.
    pub fn kill(&mut self) -> Snapshot {
        let mut state = self.wire.lock();
        let mut snapshot = state.tracker.snapshot();
        state.workload = None;
        state.restoring = None;
        drop(state);
        self.listener = None;
        self.workload = None;
        let wire = postcard::to_stdvec(&snapshot.connections).expect("encode");
        snapshot.connections = postcard::from_bytes(&wire).expect("decode");
        snapshot
    }

    /// Another host takes over; says which complete connections it did not take in at once.
    pub fn revive(&mut self, snapshot: &Snapshot) -> Vec<FourTuple> {
        self.boot(&[]);
        self.take_over(snapshot)
    }

    /// The second half of [`Self::revive`].
    pub fn take_over(&mut self, snapshot: &Snapshot) -> Vec<FourTuple> {
        assert_eq!(snapshot.refused, []);
        let host = self.workload.as_ref().expect("booted");
        let start = Instant::now();
        let restorer = host.namespace.run(|| Restorer::attach(ifindex(), 1024)).expect("attach");
        self.costs.attach = start.elapsed();

        let connections = snapshot.connections.clone();
        let start = Instant::now();
        let (mut restoring, frames) = restorer.restore(start, connections).expect("restore");
        self.costs.restore = start.elapsed();

        let start = Instant::now();
        self.costs.frames = frames.inject.len();
        frames.inject.iter().for_each(|frame| inject(&host.tap, frame));
        self.costs.inject = start.elapsed();

        let start = Instant::now();
        let missing = restoring.settle().expect("settle");
        self.costs.settle = start.elapsed();

        let mut state = self.wire.lock();
        frames.send.iter().for_each(|frame| state.send(frame));
        state.tracker = RequestTracker::resume(self.bounds, start, &snapshot.connections);
        state.restoring = Some(restoring);
        state.workload = Some(Arc::clone(&host.tap));
        missing
    }

    /// Runs something in the workload's network namespace.
    pub fn in_workload<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.workload.as_ref().expect("booted").namespace.run(work)
    }

    /// Begins to connect.
    pub fn connect(&self) -> Client {
        self.connect_from(0)
    }

    /// Begins to connect from this port.
    pub fn connect_from(&self, port: u16) -> Client {
        let server = SocketAddr::new(self.variation.server, PORT);
        let socket = self.client.namespace.run(move || {
            let socket = open_socket(server.ip(), SockFlag::SOCK_NONBLOCK);
            let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port))).expect("bind");
            let begun = connect(socket.as_raw_fd(), &SockaddrStorage::from(server));
            assert_eq!(begun, Err(nix::errno::Errno::EINPROGRESS));
            socket
        });
        Client { stream: TcpStream::from(socket) }
    }

    /// The next connection, told to the tracker as the supervisor would.
    pub fn accept(&self) -> TcpStream {
        let listener = self.listener.as_ref().expect("booted");
        wait_ready(listener.as_fd(), PollFlags::POLLIN, "a connection to accept");
        let (stream, client) = listener.accept().expect("accept");
        let known = self.wire.lock().tracker.snapshot();
        let tuple = known.connections.iter().map(|connection| connection.tuple);
        for tuple in tuple.filter(|tuple| tuple.client_port == client.port()) {
            self.wire.lock().tracker.forget(&tuple);
        }
        stream.set_read_timeout(Some(HANG)).expect("timeout");
        stream
    }
}

/// A client's socket.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    /// Waits until the client's kernel thinks that the connection is open.
    pub fn wait_open(&self) {
        wait_ready(self.stream.as_fd(), PollFlags::POLLOUT, "the connection to open");
        assert!(self.stream.take_error().expect("SO_ERROR").is_none(), "{}", "refused");
        self.stream.set_nonblocking(false).expect("blocking");
        self.stream.set_read_timeout(Some(HANG)).expect("timeout");
        self.stream.set_write_timeout(Some(HANG)).expect("timeout");
    }
}

fn wait_ready(fd: std::os::fd::BorrowedFd<'_>, events: PollFlags, what: &str) {
    let timeout = PollTimeout::try_from(HANG).expect("timeout");
    assert_eq!(poll(&mut [PollFd::new(fd, events)], timeout), Ok(1), "waited in vain for {what}");
}

pub fn ifindex() -> u32 {
    nix::net::if_::if_nametoindex("eth0").expect("eth0")
}

fn open_socket(address: IpAddr, flags: SockFlag) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).expect("socket")
}

fn open_listener(server: IpAddr, dual_stack: bool, backlog: i32) -> TcpListener {
    let address = if dual_stack { "::".parse().expect("address") } else { server };
    let socket = open_socket(address, SockFlag::empty());
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, PORT))).expect("bind");
    listen(&socket, Backlog::new(backlog).expect("backlog")).expect("listen");
    TcpListener::from(socket)
}
