//! What an observer is shown, and what it may lose and add.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlive_net::{Admission, Aside, Observer};
use support::*;

/// Keeps what it sees of datagrams, and does with the incoming ones what they say.
#[derive(Default)]
struct Watcher(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    incoming: Vec<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

impl Watcher {
    fn incoming(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().incoming.clone()
    }
}

const LENGTH: usize = 5;

/// The payload of a frame, if it is one of the datagrams here.
fn payload(frame: &[u8]) -> Option<Vec<u8>> {
    let payload = frame.get(frame.len().checked_sub(LENGTH)?..)?;
    [b"plain", b"lose!", b"twice", b"reply"].iter().any(|known| payload == *known).then(|| payload.to_vec())
}

impl Observer for Watcher {
    fn incoming(&self, frame: &[u8], aside: &mut Aside) -> Admission {
        let Some(payload) = payload(frame) else { return Admission::Pass };
        let mut seen = self.0.lock().unwrap();
        if payload == b"twice" {
            aside.inward.push(frame.to_vec());
            aside.outward.extend(seen.outgoing.last().cloned());
        }
        let admission = if payload == b"lose!" { Admission::Drop } else { Admission::Pass };
        seen.incoming.push(payload);
        admission
    }

    fn outgoing(&self, frame: &[u8]) {
        if payload(frame).is_some() {
            self.0.lock().unwrap().outgoing.push(frame.to_vec());
        }
    }
}

struct Scene {
    workload: Workload,
    watcher: Arc<Watcher>,
    server: UdpSocket,
    client: UdpSocket,
    /// Dropped last: they hold the devices.
    _namespaces: [outlive_net::Namespace; 2],
}

fn scene() -> Scene {
    let host = host();
    let client_host = client(&host);
    let watcher = Arc::new(Watcher::default());
    let (workload, closed) =
        Workload::prepare_watched(&host, config(quiet_network(), exposed()), watcher.clone());
    workload.pump.port().attach(network().mac).unwrap();
    drop(closed);
    let bind = |address| move || UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
    let server = workload.namespace.enter(bind(workload_ip(false))).unwrap();
    let client = client_host.enter(bind(client_ip(false))).unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    server.connect(client.local_addr().unwrap()).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    Scene { workload, watcher, server, client, _namespaces: [host, client_host] }
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; LENGTH];
    let length = socket.recv(&mut buffer).expect("a datagram");
    buffer[..length].to_vec()
}

#[test]
fn what_an_observer_drops_is_lost_and_what_it_adds_is_there() {
    let Scene { workload, watcher, server, client, _namespaces } = scene();
    for datagram in [b"plain", b"lose!", b"twice"] {
        client.send(datagram).unwrap();
        // One after the other: the answer is what a later one is to say aside.
        if datagram == b"plain" {
            assert_eq!(receive(&server), b"plain");
            server.send(b"reply").unwrap();
            assert_eq!(receive(&client), b"reply");
        }
    }
    assert_eq!([receive(&server), receive(&server)], [b"twice", b"twice"]);
    assert_eq!(receive(&client), b"reply", "the observer said it again");
    assert_eq!(watcher.incoming(), [b"plain", b"lose!", b"twice"]);
    assert_eq!(workload.pump.stats().dropped_frames, 1);
    let copied = workload.sink.frames.lock().unwrap();
    let copied: Vec<_> = copied.iter().filter_map(|(_, frame)| payload(frame)).collect();
    assert_eq!(copied, [b"plain", b"twice"], "what the workload did not get is no input of its");
}

#[test]
fn what_waits_for_the_input_to_open_is_shown_when_it_is_given() {
    let Scene { workload, watcher, server, client, _namespaces } = scene();
    client.send(b"plain").unwrap();
    assert_eq!(receive(&server), b"plain");
    let closed = workload.pump.close_input();
    client.send(b"twice").unwrap();
    // It has been read from the port once the backup has its copy.
    while !workload.sink.frames.lock().unwrap().iter().any(|(_, f)| payload(f).as_deref() == Some(b"twice")) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(watcher.incoming(), [b"plain"], "the workload has not been given more");
    drop(closed);
    assert_eq!([receive(&server), receive(&server)], [b"twice", b"twice"]);
    assert_eq!(watcher.incoming(), [b"plain", b"twice"]);
}

#[test]
fn a_retained_frame_is_shown_and_one_of_our_own_is_not() {
    let Scene { workload, watcher, server, client, _namespaces } = scene();
    client.send(b"plain").unwrap();
    assert_eq!(receive(&server), b"plain");
    let frames = workload.sink.frames.lock().unwrap().clone();
    let (_, frame) = frames.iter().find(|(_, frame)| payload(frame).is_some()).unwrap();
    workload.pump.inject_own(frame);
    workload.pump.inject(frame);
    assert_eq!([receive(&server), receive(&server)], [b"plain", b"plain"]);
    assert_eq!(watcher.incoming(), [b"plain", b"plain"]);
}
