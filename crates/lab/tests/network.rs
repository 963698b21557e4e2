//! What the lab promises of its network: who hears whom, and under which faults not.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use outlive_lab::{Direction, Host, Lab, LabError};

/// Long enough for anything that must come; only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what must not come: the longer, the surer the test; a slow machine can only make it pass.
const SILENCE: Duration = Duration::from_millis(200);

/// A socket on a host, bound to its port for these tests.
struct Talker {
    socket: UdpSocket,
    address: Ipv4Addr,
}

impl Talker {
    fn new(host: &Host) -> Talker {
        let socket = host.netns().unwrap().run(|| UdpSocket::bind("0.0.0.0:7000")).unwrap();
        Talker { socket, address: host.address() }
    }

    /// Whether the other hears it. Datagrams may be lost on the way to an address that is still being resolved, so
    /// it speaks again until it is heard, or, where silence is expected, for long enough.
    fn reaches(&self, other: &Talker, patience: Duration) -> bool {
        let word = format!("from {}", self.address);
        let attempt = Duration::from_millis(20);
        other.socket.set_read_timeout(Some(attempt)).unwrap();
        let deadline = std::time::Instant::now() + patience;
        while std::time::Instant::now() < deadline {
            // A host without carrier refuses to send: that is not being heard, too.
            let _ = self.socket.send_to(word.as_bytes(), (other.address, 7000));
            let mut heard = [0; 100];
            if other.socket.recv(&mut heard).is_ok_and(|length| heard[..length] == *word.as_bytes()) {
                return true;
            }
        }
        false
    }

    #[track_caller]
    fn must_reach(&self, other: &Talker) {
        assert!(self.reaches(other, PATIENCE), "{} does not reach {}", self.address, other.address);
    }

    /// What was on its way when a fault began does not count.
    #[track_caller]
    fn must_not_reach(&self, other: &Talker) {
        other.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        while other.socket.recv(&mut [0; 100]).is_ok() {}
        assert!(!self.reaches(other, SILENCE), "{} reaches {}", self.address, other.address);
    }
}

#[test]
fn a_cut_acts_between_two_hosts_in_its_direction_and_heals() {
    let lab = Lab::new("cut").unwrap();
    let hosts = ["a", "b", "c"].map(|name| lab.host(name).unwrap());
    let [a, b, c] = hosts.each_ref().map(Talker::new);
    let all = || {
        for (one, other) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a), (&b, &c), (&c, &b)] {
            one.must_reach(other);
        }
    };
    all();

    lab.cut(&hosts[0], &hosts[1], Direction::AToB).unwrap();
    a.must_not_reach(&b);
    b.must_reach(&a);
    a.must_reach(&c);
    c.must_reach(&b);
    lab.heal().unwrap();
    all();

    lab.cut(&hosts[0], &hosts[1], Direction::BToA).unwrap();
    b.must_not_reach(&a);
    a.must_reach(&b);
    lab.heal().unwrap();

    lab.cut(&hosts[0], &hosts[1], Direction::Both).unwrap();
    a.must_not_reach(&b);
    b.must_not_reach(&a);
    b.must_reach(&c);

    // A cut is in the network, not in the host: it is still there after a power cycle.
    hosts[0].power_off().unwrap();
    hosts[0].power_on().unwrap();
    let a = Talker::new(&hosts[0]);
    a.must_not_reach(&b);
    a.must_reach(&c);
    lab.heal().unwrap();
    a.must_reach(&b);
}

#[test]
fn a_cut_acts_on_workloads_behind_a_hosts_bridge() {
    let lab = Lab::new("behind").unwrap();
    let (a, client) = (lab.host("a").unwrap(), lab.client("client").unwrap());
    let workload = lab.free_address().unwrap();
    // A namespace of its own behind br0, as a workload has.
    let script = format!(
        "unshare --net sleep 1000 & sleep 0.2; \
         ip link add w0 type veth peer name w1 netns $! && ip link set w0 master br0 up && \
         nsenter --net --target $! ip addr add {workload}/24 dev w1 && \
         nsenter --net --target $! ip link set w1 up && echo inside $!; wait"
    );
    let setup = a.spawn(["sh", "-c", &script]).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !setup.stdout().starts_with("inside") {
        assert!(std::time::Instant::now() < deadline, "{}", setup.tail());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Nobody listens there, which the kernel behind the bridge says (ICMP port unreachable): an echo of a kind.
    let netns = client.netns().unwrap();
    let asker = netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    asker.connect((workload, 7000)).unwrap();
    asker.set_read_timeout(Some(SILENCE)).unwrap();
    let answers = || {
        (0..10).any(|_| {
            let _ = asker.send(b"x");
            asker.recv(&mut [0; 10]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        })
    };
    assert!(answers());
    lab.cut(&a, &client, Direction::AToB).unwrap();
    assert!(!answers());
    lab.heal().unwrap();
    assert!(answers());
}

#[test]
fn a_pulled_cable_is_plugged_in_again() {
    let lab = Lab::new("cable").unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let (ta, tb) = (Talker::new(&a), Talker::new(&b));
    ta.must_reach(&tb);
    a.uplink(false).unwrap();
    ta.must_not_reach(&tb);
    tb.must_not_reach(&ta);
    a.uplink(true).unwrap();
    ta.must_reach(&tb);
    tb.must_reach(&ta);
}

#[test]
fn loss_drops_some_frames_and_not_all() {
    let lab = Lab::new("loss").unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    let (ta, tb) = (Talker::new(&a), Talker::new(&b));
    ta.must_reach(&tb);
    tb.must_reach(&ta);
    assert!(matches!(lab.lose(&a, &b, Direction::AToB, 1.5), Err(LabError::BadShare { .. })));
    lab.lose(&a, &b, Direction::AToB, 0.3).unwrap();

    tb.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    const SENT: usize = 1000;
    let mut heard = 0;
    for _ in 0..SENT {
        ta.socket.send_to(b"x", (b.address(), 7000)).unwrap();
        // The way back is whole: an answer to what came says how much came, without a clock.
        tb.socket.set_nonblocking(true).unwrap();
        heard += usize::from(tb.socket.recv(&mut [0; 100]).is_ok());
    }
    std::thread::sleep(SILENCE);
    while tb.socket.recv(&mut [0; 100]).is_ok() {
        heard += 1;
    }
    // 700 expected, with a standard deviation of 15.
    assert!((550..850).contains(&heard), "{heard} of {SENT} arrived");
}
