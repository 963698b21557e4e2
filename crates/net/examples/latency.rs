//! What the plug costs: round trips and throughput between a client and a workload on one bridge, through a veth pair
//! and through the pump. `cargo run --release -p outlive-net --example latency`, as root.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use outlive_net::{Namespace, PumpConfig};
use support::*;

const ROUNDS: usize = 5_000;
const STREAM: usize = 1 << 30;

fn main() {
    let host = host();
    let client = client(&host);
    takeover(&host);
    println!("{:<44} {:>23} {:>23} {:>9}", "", "ping  p50      p99 µs", "UDP   p50      p99 µs", "TCP Gb/s");
    {
        let workload = Namespace::bare().expect("this needs root");
        cable(&host, "port-workload", &workload, "eth0");
        ip(&workload, "address add 10.7.0.10/24 dev eth0");
        measure("veth", &client, &workload);
    }
    for (name, spin, priority) in [
        ("pump, exposed", 0, None),
        ("pump, exposed, SCHED_FIFO", 0, Some(10)),
        ("pump, exposed, looking again for 20 µs", 20, None),
        ("pump, exposed, looking again for 50 µs", 50, None),
    ] {
        let mut config = PumpConfig::new(quiet_network(), exposed());
        config.spin = Duration::from_micros(spin);
        config.priority = priority;
        let workload = Workload::start_with(&host, config);
        workload.pump.announce();
        measure(name, &client, &workload.namespace);
    }
    let mut config = PumpConfig::new(quiet_network(), plugged());
    config.priority = Some(10);
    let workload = Workload::start_with(&host, config);
    workload.pump.announce();
    let engine = Engine::start(workload.pump.clone(), workload.events, 1);
    measure("pump, plugged, every epoch committed at once", &client, &workload.namespace);
    engine.stop();
}

/// What a backup makes beforehand, and what it does at the moment of takeover.
fn takeover(host: &Namespace) {
    let started = Instant::now();
    let (workload, closed) = Workload::prepare(host, PumpConfig::new(network(), exposed()));
    let prepared = started.elapsed();
    let started = Instant::now();
    workload.pump.port().attach(network().mac).unwrap();
    let attached = started.elapsed();
    let started = Instant::now();
    workload.pump.announce();
    let announced = started.elapsed();
    drop(closed);
    println!(
        "namespace, port and pump {prepared:.1?}; at takeover: attach {attached:.1?}, announce {announced:.1?}"
    );
}

fn measure(name: &str, client: &Namespace, workload: &Namespace) {
    let mut ping = ping(client);
    let mut udp = udp(client, workload);
    let gigabits = tcp(client, workload);
    let show = |times: &mut Vec<Duration>| {
        times.sort();
        let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e6;
        format!("{:>10.1} {:>12.1}", at(0.5), at(0.99))
    };
    println!("{name:<44} {} {} {gigabits:>9.2}", show(&mut ping), show(&mut udp));
}

/// Echoes that the workload's kernel answers.
fn ping(client: &Namespace) -> Vec<Duration> {
    let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp);
    let socket = client.enter(open).unwrap().unwrap();
    let to = SockaddrIn::new(10, 7, 0, 10, 0);
    let mut answer = [0; 256];
    (0..ROUNDS)
        .map(|number| {
            let echo = IcmpEchoHeader { id: 7, seq: number as u16 };
            let message = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &[]).to_bytes();
            let started = Instant::now();
            sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
            // A raw socket shows the IP header of 20 bytes as well, and everybody's messages.
            while recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap() < 28
                || answer[26..28] != (number as u16).to_be_bytes()
            {}
            started.elapsed()
        })
        .collect()
}

/// Datagrams that a process in the workload answers.
fn udp(client: &Namespace, workload: &Namespace) -> Vec<Duration> {
    let server = workload.enter(|| UdpSocket::bind((workload_ip(false), 0)).unwrap()).unwrap();
    let to = server.local_addr().unwrap();
    let socket = client.enter(|| UdpSocket::bind((client_ip(false), 0)).unwrap()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut message = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut message) {
                server.send_to(&message[..length], from).unwrap();
                if length == 1 {
                    return;
                }
            }
        });
        let round = |message: &[u8]| {
            let started = Instant::now();
            socket.send_to(message, to).unwrap();
            socket.recv(&mut [0; 64]).unwrap();
            started.elapsed()
        };
        let times = (0..ROUNDS).map(|_| round(&[0; 32])).collect();
        round(&[0]);
        times
    })
}

/// A stream from the workload to the client.
fn tcp(client: &Namespace, workload: &Namespace) -> f64 {
    let (listener, address) = listen(workload, workload_ip(false));
    let connecting = connect(client, address);
    let (mut server_end, _) = listener.accept().unwrap();
    let mut client_end: TcpStream = connecting.recv_timeout(PATIENCE).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![0; 1 << 20];
            for _ in 0..STREAM / block.len() {
                server_end.write_all(&block).unwrap();
            }
        });
        let mut block = vec![0; 1 << 20];
        let mut left = STREAM;
        while left > 0 {
            left -= client_end.read(&mut block).unwrap();
        }
    });
    STREAM as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9
}
