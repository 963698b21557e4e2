//! Two hosts (network namespaces) and a wire between them that tests can hold, cut and listen to.
//!
//! Each namespace has one TUN device, whose packets a thread carries to the other: the part that the plug plays in
//! production. All disappears with the last descriptor.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::eventfd::EventFd;

pub const A4: &str = "10.99.0.1";
pub const B4: &str = "10.99.0.2";
pub const A6: &str = "fd99::1";
pub const B6: &str = "fd99::2";

/// Longest a test waits for what must come; only a broken test gets there.
pub const PATIENCE_MS: i32 = 30_000;

pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(file.join().unwrap())
    }

    /// Runs `f` on a thread inside.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    fn ip(&self, batch: &str) {
        self.enter(|| {
            let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
            assert!(ip.wait().unwrap().success(), "ip {batch}");
        });
    }
}

/// A namespace with its device up and addresses set.
pub struct Host {
    pub namespace: Namespace,
    tun: Arc<File>,
}

impl Host {
    fn new(v4: &str, v6: &str) -> Self {
        let namespace = Namespace::new();
        let tun = namespace.enter(|| {
            let mut options = OpenOptions::new();
            // Two read it in turns (`carry`, `drain`), and neither may wait for what the other has taken.
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            let tun = options.open("/dev/net/tun").unwrap();
            // struct ifreq: name, then flags.
            let mut request = [0u8; 40];
            request[..2].copy_from_slice(b"t0");
            let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
            request[16..18].copy_from_slice(&flags.to_ne_bytes());
            // SAFETY: TUNSETIFF reads and writes one struct ifreq, which is 40 bytes.
            let set = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
            tun
        });
        for (name, value) in outlive_process::object::tcp::NAMESPACE_SYSCTLS {
            namespace.sysctl(name, value);
        }
        namespace.ip(&format!(
            "link set lo up\nlink set t0 up mtu 1500 txqueuelen 10000\naddr add {v4}/24 dev t0\n\
             addr add {v6}/64 dev t0 nodad\n"
        ));
        // The kernel makes an IPv6 address local some time after it said yes (`addrconf_dad_start` queues work, which
        // inserts the route), even without duplicate address detection.
        let local: String =
            v6.parse::<Ipv6Addr>().unwrap().octets().iter().map(|byte| format!("{byte:02x}")).collect();
        until("the route of the IPv6 address", || {
            const RTF_LOCAL: u32 = 0x8000_0000;
            let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap());
            table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
                fields[0] == local && u32::from_str_radix(fields[8], 16).unwrap() & RTF_LOCAL != 0
            })
        });
        Self { namespace, tun: Arc::new(tun) }
    }

    pub fn loopback(&self, up: bool) {
        self.namespace.ip(if up { "link set lo up\n" } else { "link set lo down\n" });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    Hold,
}

/// One direction.
struct Way {
    mode: Mode,
    held: VecDeque<Vec<u8>>,
    /// Packets that set out, whatever became of them.
    count: usize,
}

struct Wire {
    a: Option<Arc<File>>,
    b: Arc<File>,
    from_a: Way,
    from_b: Way,
}

impl Wire {
    fn way(&mut self, from: Side) -> &mut Way {
        match from {
            Side::A => &mut self.from_a,
            Side::B => &mut self.from_b,
        }
    }

    fn deliver(&self, from: Side, packet: &[u8]) {
        let to = match from {
            Side::A => Some(&self.b),
            Side::B => self.a.as_ref(),
        };
        if let Some(to) = to {
            // A device that is down refuses; so does a cable.
            let _ = (&**to).write(packet);
        }
    }
}

struct Carrier {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    fn new(tun: Arc<File>, from: Side, wire: Arc<Mutex<Wire>>) -> Self {
        let stop = EventFd::new().unwrap();
        let stopped = stop.as_fd().try_clone_to_owned().unwrap();
        let thread = thread::spawn(move || {
            let mut packet = vec![0; 1 << 16];
            loop {
                let mut fds = [
                    PollFd::new(tun.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                ];
                poll(&mut fds, PollTimeout::NONE).unwrap();
                if fds[1].any() == Some(true) {
                    return;
                }
                let mut wire = wire.lock().unwrap();
                // Read under the lock, so that whoever holds the lock and reads on has them all in order.
                match (&*tun).read(&mut packet) {
                    Ok(length) => carry(&mut wire, from, &packet[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

fn carry(wire: &mut Wire, from: Side, packet: &[u8]) {
    // Router solicitations and the like are no one's concern here.
    let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
    if i32::from(protocol) != libc::IPPROTO_TCP {
        if wire.way(from).mode == Mode::Pass {
            wire.deliver(from, packet);
        }
        return;
    }
    let way = wire.way(from);
    way.count += 1;
    match way.mode {
        Mode::Pass => wire.deliver(from, packet),
        Mode::Hold => way.held.push_back(packet.to_vec()),
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub struct World {
    pub a: Host,
    pub b: Host,
    wire: Arc<Mutex<Wire>>,
    carrier_a: Option<Carrier>,
    _carrier_b: Carrier,
}

impl World {
    pub fn new() -> Self {
        let (a, b) = (Host::new(A4, A6), Host::new(B4, B6));
        let way = || Way { mode: Mode::Pass, held: VecDeque::new(), count: 0 };
        let wire = Wire { a: Some(a.tun.clone()), b: b.tun.clone(), from_a: way(), from_b: way() };
        let wire = Arc::new(Mutex::new(wire));
        let carrier_a = Some(Carrier::new(a.tun.clone(), Side::A, wire.clone()));
        let carrier_b = Carrier::new(b.tun.clone(), Side::B, wire.clone());
        Self { a, b, wire, carrier_a, _carrier_b: carrier_b }
    }

    pub fn set(&self, from: Side, mode: Mode) {
        self.drain();
        self.wire.lock().unwrap().way(from).mode = mode;
    }

    /// All that the kernels have sent so far is held or delivered.
    pub fn drain(&self) {
        let mut wire = self.wire.lock().unwrap();
        let mut packet = vec![0; 1 << 16];
        for (from, tun) in [(Side::A, &self.a.tun), (Side::B, &self.b.tun)] {
            while let Ok(length) = (&**tun).read(&mut packet) {
                carry(&mut wire, from, &packet[..length]);
            }
        }
    }

    /// Packets of TCP that have set out from a side.
    pub fn count(&self, from: Side) -> usize {
        self.drain();
        self.wire.lock().unwrap().way(from).count
    }

    /// Takes what is held.
    pub fn take(&self, from: Side) -> Vec<Vec<u8>> {
        self.drain();
        self.wire.lock().unwrap().way(from).held.drain(..).collect()
    }

    /// Holds a packet behind those held already.
    pub fn hold(&self, from: Side, packet: Vec<u8>) {
        self.wire.lock().unwrap().way(from).held.push_back(packet);
    }

    /// Delivers a packet as if it had set out from a side.
    pub fn inject(&self, from: Side, packet: &[u8]) {
        self.wire.lock().unwrap().deliver(from, packet);
    }

    /// Delivers what is held, and passes all that follows.
    pub fn release(&self, from: Side) {
        for packet in self.take(from) {
            self.inject(from, &packet);
        }
        self.set(from, Mode::Pass);
    }

    /// Host A dies: not one packet more. A host with the same addresses takes its place, connected to nothing yet: what it
    /// sends is held, and so is (still) what is sent to it.
    pub fn replace_a(&mut self) {
        self.set(Side::B, Mode::Hold);
        self.carrier_a = None;
        {
            let mut wire = self.wire.lock().unwrap();
            wire.a = None;
            wire.from_a.held.clear();
            wire.from_a.mode = Mode::Hold;
            wire.from_a.count = 0;
        }
        self.a = Host::new(A4, A6);
        self.wire.lock().unwrap().a = Some(self.a.tun.clone());
        self.carrier_a = Some(Carrier::new(self.a.tun.clone(), Side::A, self.wire.clone()));
    }
}

pub fn address(v6: bool, side: Side, port: u16) -> SocketAddr {
    let address = match (v6, side) {
        (false, Side::A) => A4,
        (false, Side::B) => B4,
        (true, Side::A) => A6,
        (true, Side::B) => B6,
    };
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// Waits until `condition` holds, by the state of the kernel and not by time.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed().as_millis() < PATIENCE_MS as u128, "never came: {what}");
        thread::sleep(std::time::Duration::from_micros(200));
    }
}
