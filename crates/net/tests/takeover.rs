//! An address moves from one host to another, and everybody follows.

mod support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use outlive_net::{
    Event, Moment, Namespace, Overheard, Port, PortError, Uplink, VNET_HEADER, Voice, destination_mac,
    probe_in_use,
};
use support::*;

/// Answers every datagram with what it says and its own name, from inside a workload.
struct Responder {
    stop: Arc<AtomicBool>,
}

impl Responder {
    fn start(workload: &Namespace, v6: bool, name: &'static str) -> Responder {
        let socket = workload.enter(|| UdpSocket::bind((workload_ip(v6), 7)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut question = [0; 16];
                if let Ok((length, from)) = socket.recv_from(&mut question) {
                    let _ = socket.send_to(&[&question[..length], name.as_bytes()].concat(), from);
                }
            }
        });
        Responder { stop }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks once, and waits for `patience` for the answer to this question; late ones to others are passed over.
fn ask(socket: &UdpSocket, v6: bool, patience: Duration) -> Option<String> {
    static QUESTIONS: AtomicU64 = AtomicU64::new(0);
    let question = QUESTIONS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    socket.set_read_timeout(Some(patience)).unwrap();
    // A neighbour that is not there is an error of the next call; it counts as no answer.
    let _ = socket.send_to(&question, (workload_ip(v6), 7));
    let mut answer = [0; 32];
    while let Ok(length) = socket.recv(&mut answer) {
        if let Some(name) = answer[..length].strip_prefix(&question[..]) {
            return Some(String::from_utf8_lossy(name).into_owned());
        }
    }
    None
}

/// Asks until somebody answers, and says who.
fn who_answers(socket: &UdpSocket, v6: bool) -> String {
    let deadline = Moment::now() + PATIENCE;
    while Moment::now() < deadline {
        if let Some(name) = ask(socket, v6, Duration::from_millis(10)) {
            return name;
        }
    }
    panic!("nobody answers");
}

/// Asks until `wanted` answers.
fn wait_for_answer_of(socket: &UdpSocket, v6: bool, wanted: &str) {
    let deadline = Moment::now() + PATIENCE;
    while who_answers(socket, v6) != wanted {
        assert!(Moment::now() < deadline, "{wanted} is never heard");
    }
}

/// A client's host, and two hosts that can run a workload, all on one network.
fn three_hosts() -> [Namespace; 3] {
    let hosts = [host(), host(), host()];
    cable(&hosts[0], "port-1", &hosts[1], "port-up");
    cable(&hosts[0], "port-2", &hosts[2], "port-up");
    hosts
}

fn address_moves(v6: bool) {
    let [middle, first_host, second_host] = three_hosts();
    let client = client(&middle);
    let first = Workload::start(&first_host, exposed());
    let _first_answers = Responder::start(&first.namespace, v6, "first");
    let socket = client.enter(|| UdpSocket::bind((client_ip(v6), 0)).unwrap()).unwrap();
    assert_eq!(who_answers(&socket, v6), "first");

    // The backup is ready: same address, same MAC, not on the bridge.
    let generation = Voice::Exposed { generation: 2 };
    let (second, closed) = Workload::prepare(&second_host, config(network(), generation));
    let _second_answers = Responder::start(&second.namespace, v6, "second");
    assert_eq!(who_answers(&socket, v6), "first");

    // The primary dies without a word. What a client says into the dark is not heard by anyone.
    drop(first);
    assert_eq!(ask(&socket, v6, Duration::from_millis(1)), None);
    second.pump.port().attach(network().mac).unwrap();
    drop(closed);
    second.pump.announce();
    assert_eq!(who_answers(&socket, v6), "second");
}

#[test]
fn what_is_said_while_nobody_answers_is_overheard_by_the_backup() {
    let [middle, first_host, second_host] = three_hosts();
    let client = client(&middle);
    let first = Workload::start(&first_host, exposed());
    let _answers = Responder::start(&first.namespace, false, "first");
    let overheard = second_host
        .enter(|| Overheard::start(network().mac, &Uplink::bridge(BRIDGE), PATIENCE).unwrap())
        .unwrap();
    let socket = client.enter(|| UdpSocket::bind((client_ip(false), 0)).unwrap()).unwrap();
    assert_eq!(who_answers(&socket, false), "first");
    overheard.alive(Moment::now());

    // The primary's machine loses its power, and with it the link at the switch.
    drop(first);
    ip(&middle, "link set port-1 down");
    let has = |frame: &[u8], text: &[u8]| frame.windows(text.len()).any(|part| part == text);
    let say = |text: &[u8]| socket.send_to(text, (workload_ip(false), 7)).map(drop);
    say(b"into the dark").unwrap();
    // Not for the workload: nothing of the kind is to be sorted out by us.
    ip(&client, "neigh add 10.7.0.77 lladdr 02:00:00:00:00:77 dev eth0");
    socket.send_to(b"to another", ("10.7.0.77", 7)).unwrap();
    let taken = || {
        let deadline = Moment::now() + PATIENCE;
        while overheard.is_empty() {
            assert!(Moment::now() < deadline, "nothing is heard");
            thread::yield_now();
        }
        overheard.take()
    };
    let frames = taken();
    assert!(frames.iter().any(|frame| has(frame, b"into the dark")));
    assert!(frames.iter().all(|frame| destination_mac(frame) == Some(network().mac)));
    // Each once.
    say(b"later").unwrap();
    let frames = taken();
    assert!(frames.iter().all(|frame| has(frame, b"later")));
}

#[test]
fn an_ipv4_address_moves() {
    address_moves(false);
}

#[test]
fn an_ipv6_address_moves() {
    address_moves(true);
}

#[test]
fn r2_one_voice_the_new_primary_announces_again_when_it_hears_the_old_one() {
    let [middle, first_host, second_host] = three_hosts();
    let client = client(&middle);
    let socket = client.enter(|| UdpSocket::bind((client_ip(false), 0)).unwrap()).unwrap();
    let second = Workload::start(&second_host, exposed());
    second.pump.announce();
    let _answers = Responder::start(&second.namespace, false, "second");
    assert_eq!(who_answers(&socket, false), "second");

    // The old host wakes and lets out a frame that was committed before: the switch moves the MAC back to it.
    let old = first_host.enter(|| Port::create(&Uplink::bridge(BRIDGE), 1500).unwrap()).unwrap();
    old.attach(network().mac).unwrap();
    let mut late = vec![0; VNET_HEADER];
    late.extend_from_slice(&[0xff; 6]);
    late.extend_from_slice(&network().mac.0);
    late.extend_from_slice(&[0x88, 0xb5]);
    late.resize(VNET_HEADER + 60, 0);
    // Let the announcements of the start pass, so that only the answer to this one can move the MAC again.
    let sent = |workload: &Workload| workload.pump.stats().sent_frames;
    while second.pump.stats().own_mac_frames == 0 {
        old.send(&late).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let before = sent(&second);
    old.send(&late).unwrap();
    second.wait_for(Event::OwnMacSeen);
    let deadline = Moment::now() + PATIENCE;
    while sent(&second) == before {
        assert!(Moment::now() < deadline, "it does not announce again");
        thread::yield_now();
    }
    wait_for_answer_of(&socket, false, "second");
}

#[test]
fn an_address_in_use_is_found_with_the_mac_that_has_it() {
    let [middle, first_host, second_host] = three_hosts();
    let client = client(&middle);
    let _running = Workload::start(&first_host, exposed());
    let port = second_host.enter(|| Port::create(&Uplink::bridge(BRIDGE), 1500).unwrap()).unwrap();
    port.attach(network().mac).unwrap();
    for v6 in [false, true] {
        assert_eq!(probe_in_use(&port, workload_ip(v6), PATIENCE).unwrap(), Some(network().mac));
        assert!(probe_in_use(&port, client_ip(v6), PATIENCE).unwrap().is_some());
    }
    let patience = Duration::from_millis(60);
    assert_eq!(probe_in_use(&port, "10.7.0.99".parse().unwrap(), patience).unwrap(), None);
    assert_eq!(probe_in_use(&port, "fd00:7::99".parse().unwrap(), patience).unwrap(), None);
    drop(client);
}

#[test]
fn a_port_is_heard_only_while_it_is_attached_and_leaves_the_bridge_as_it_was() {
    let host = host();
    let client = client(&host);
    let read = |path: &str| {
        let output = host
            .enter(|| std::process::Command::new("ip").args(["-o", "link", "show", path]).output().unwrap())
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    ip(&host, "link set port-client mtu 9000");
    let bridge =
        |text: String| text.split("link/ether").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let before = (bridge(read(BRIDGE)), read(BRIDGE).contains("mtu 9000"));

    let (workload, closed) = Workload::prepare(&host, config(quiet_network(), exposed()));
    drop(closed);
    let name = workload.pump.port().name().to_owned();
    assert!(name.len() <= 15 && !read(&name).is_empty());
    let socket = client.enter(|| UdpSocket::bind((client_ip(false), 0)).unwrap()).unwrap();
    let _answers = Responder::start(&workload.namespace, false, "me");
    assert_eq!(ask(&socket, false, Duration::from_millis(50)), None);
    assert_eq!(workload.pump.stats().received_frames, 0);

    workload.pump.port().attach(network().mac).unwrap();
    assert_eq!(who_answers(&socket, false), "me");
    assert_eq!((bridge(read(BRIDGE)), read(BRIDGE).contains("mtu 9000")), before);
    workload.pump.port().detach().unwrap();
    assert_eq!(ask(&socket, false, Duration::from_millis(50)), None);

    drop(workload);
    // Another test that starts a program at this moment holds a copy of every descriptor until its exec.
    let deadline = Moment::now() + PATIENCE;
    while !read(&name).is_empty() {
        assert!(Moment::now() < deadline, "the port goes with its holder");
    }
}

#[test]
fn a_bridge_that_cannot_carry_the_workload_is_refused() {
    let host = host();
    let refused = |mtu| host.enter(|| Port::create(&Uplink::bridge(BRIDGE), mtu).unwrap_err()).unwrap();
    assert!(matches!(refused(9000), PortError::MtuTooLarge { uplink_mtu: 1500, mtu: 9000, .. }));
    ip(&host, &format!("link set {BRIDGE} down"));
    assert!(matches!(refused(1500), PortError::BridgeDown { .. }));
}

#[test]
fn a_port_taken_down_by_hand_is_reported_and_works_again_when_it_is_up() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start(&host, exposed());
    let _answers = Responder::start(&workload.namespace, false, "me");
    let socket = client.enter(|| UdpSocket::bind((client_ip(false), 0)).unwrap()).unwrap();
    assert_eq!(who_answers(&socket, false), "me");
    let name = workload.pump.port().name().to_owned();
    ip(&host, &format!("link set {name} down"));
    workload.pump.announce();
    let failed = |event: &Event| matches!(event, Event::DeviceFailed { .. });
    while !failed(&workload.events.recv_timeout(PATIENCE).unwrap()) {}
    ip(&host, &format!("link set {name} up"));
    assert_eq!(who_answers(&socket, false), "me");
}
