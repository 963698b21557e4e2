//! What a real peer answers when it is asked for the boundary of what it has.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use outlive_net::probe::{Answer, ProbeTarget, Timestamps, run_probes};
use outlive_net::{Event, Moment, Namespace, Neighbours, NetworkConfig, Port, Uplink, VNET_HEADER};
use support::*;

/// What a checkpoint knows of a connection.
struct Checkpoint {
    target: ProbeTarget,
    /// `write_seq`: the end of what is queued.
    end: u32,
}

/// Reads it from a live socket, as a checkpoint does.
fn capture(socket: &TcpStream, workload: &Workload) -> Checkpoint {
    let state = repair::capture(socket).unwrap();
    let (local, remote) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
    // `ts_recent` has no option to be read by; it is the last value that the peer sent.
    let echo = last_segment(workload, remote, |tcp| {
        tcp.options_iterator().flatten().find_map(|option| match option {
            TcpOptionElement::Timestamp(value, _) => Some(value),
            _ => None,
        })
    })
    .flatten();
    let timestamps = echo.map(|echo| Timestamps { value: state.timestamp, echo });
    let target = ProbeTarget {
        local,
        remote,
        snd_una: state.snd_una,
        rcv_nxt: state.rcv_nxt,
        window: 1000,
        timestamps,
    };
    Checkpoint { target, end: state.write_seq }
}

/// Looks at the last segment from `remote` that arrived.
fn last_segment<T>(workload: &Workload, remote: SocketAddr, look: impl Fn(&TcpSlice<'_>) -> T) -> Option<T> {
    let frames = workload.sink.frames.lock().unwrap();
    frames.iter().rev().find_map(|(_, frame)| {
        let packet = LaxSlicedPacket::from_ethernet(&frame[VNET_HEADER..]).ok()?;
        let from = match packet.net? {
            LaxNetSlice::Ipv4(ip) => ip.header().source_addr().into(),
            LaxNetSlice::Ipv6(ip) => ip.header().source_addr().into(),
            LaxNetSlice::Arp(_) => return None,
        };
        match packet.transport {
            Some(TransportSlice::Tcp(tcp)) if SocketAddr::new(from, tcp.source_port()) == remote => {
                Some(look(&tcp))
            }
            _ => None,
        }
    })
}

/// The primary dies, and the backup asks from another port.
fn fail_over(host: &Namespace, workload: Workload) -> Port {
    workload.pump.silence();
    drop(workload);
    let port = host.enter(|| Port::create(&Uplink::bridge(BRIDGE), 1500).unwrap()).unwrap();
    port.attach(network().mac).unwrap();
    port
}

fn ask(port: &Port, network: NetworkConfig, targets: &[ProbeTarget]) -> (Vec<Option<Answer>>, Vec<Vec<u8>>) {
    let mut others = Vec::new();
    let deadline = Moment::now() + PATIENCE;
    let answers = run_probes(
        port,
        targets.iter().copied(),
        &mut Neighbours::new(network),
        deadline,
        &mut |frame: &[u8]| others.push(frame.to_vec()),
    );
    (answers.unwrap(), others)
}

fn connection(client: &Namespace, workload: &Workload, v6: bool) -> (TcpStream, TcpStream) {
    let (listener, address) = listen(&workload.namespace, workload_ip(v6));
    let client_end = connect(client, address).recv_timeout(PATIENCE).unwrap();
    let (server_end, _) = listener.accept().unwrap();
    (client_end, server_end)
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Moment::now() + PATIENCE;
    while !condition() {
        assert!(Moment::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn data_that_never_left_is_unsent() {
    for v6 in [false, true] {
        let host = host();
        let client = client(&host);
        let workload = Workload::start(&host, exposed());
        let (_client_end, mut server_end) = connection(&client, &workload, v6);
        // A little is sent and acknowledged, more is held by the plug.
        server_end.write_all(b"seen").unwrap();
        eventually("the data is acknowledged", || repair::unacknowledged(&server_end) == 0);
        workload.pump.plug().unwrap();
        server_end.write_all(&[1; 5000]).unwrap();
        workload.wait_for(Event::PayloadWaiting);
        let checkpoint = capture(&server_end, &workload);
        assert!(checkpoint.target.timestamps.is_some());
        assert_eq!(checkpoint.end.wrapping_sub(checkpoint.target.snd_una), 5000);

        let port = fail_over(&host, workload);
        let (answers, _) = ask(&port, network(), &[checkpoint.target]);
        assert!(
            matches!(answers[..], [Some(Answer::Has { ack, certain: true, .. })] if ack == checkpoint.target.snd_una),
            "{answers:?}"
        );
    }
}

#[test]
fn data_that_arrived_without_its_ack_being_seen_is_sent() {
    for v6 in [false, true] {
        let host = host();
        let client = client(&host);
        let workload = Workload::start(&host, exposed());
        let (mut client_end, mut server_end) = connection(&client, &workload, v6);
        let closed = workload.pump.close_input();
        server_end.write_all(&[1; 1000]).unwrap();
        client_end.read_exact(&mut [0; 1000]).unwrap();
        let checkpoint = capture(&server_end, &workload);
        assert_eq!(checkpoint.end.wrapping_sub(checkpoint.target.snd_una), 1000);

        let port = fail_over(&host, workload);
        drop(closed);
        let (answers, _) = ask(&port, network(), &[checkpoint.target]);
        assert!(
            matches!(answers[..], [Some(Answer::Has { ack, certain: true, .. })] if ack == checkpoint.end),
            "{answers:?}"
        );
    }
}

#[test]
fn a_peer_with_a_closed_window_answers_too() {
    for v6 in [false, true] {
        let host = host();
        let client = client(&host);
        let workload = Workload::start(&host, exposed());
        let (_client_end, mut server_end) = connection(&client, &workload, v6);
        server_end.set_nonblocking(true).unwrap();
        let remote = server_end.peer_addr().unwrap();
        let closed = || last_segment(&workload, remote, |tcp| tcp.window_size() == 0) == Some(true);
        eventually("the client's window closes", || {
            match (&server_end).write(&[1; 65_536]) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                Ok(_) => return false,
            }
            closed()
        });
        server_end.flush().unwrap();
        let has = last_segment(&workload, remote, |tcp| tcp.acknowledgment_number()).unwrap();
        let checkpoint = capture(&server_end, &workload);

        let port = fail_over(&host, workload);
        let (answers, _) = ask(&port, network(), &[checkpoint.target]);
        assert!(
            matches!(answers[..], [Some(Answer::Has { ack, window: 0, certain: true })] if ack == has),
            "{answers:?}, expected {has}"
        );
    }
}

#[test]
fn a_peer_without_timestamps_and_sack_is_believed_after_a_while() {
    let host = host();
    let client = client(&host);
    client
        .enter(|| {
            for name in ["tcp_timestamps", "tcp_sack"] {
                std::fs::write(format!("/proc/sys/net/ipv4/{name}"), "0").unwrap();
            }
        })
        .unwrap();
    let workload = Workload::start(&host, exposed());
    let (_client_end, mut server_end) = connection(&client, &workload, false);
    server_end.write_all(b"seen").unwrap();
    eventually("the data is acknowledged", || repair::unacknowledged(&server_end) == 0);
    let checkpoint = capture(&server_end, &workload);
    assert_eq!(checkpoint.target.timestamps, None);

    let port = fail_over(&host, workload);
    let (answers, _) = ask(&port, network(), &[checkpoint.target]);
    assert!(
        matches!(answers[..], [Some(Answer::Has { ack, certain: false, .. })] if ack == checkpoint.end),
        "{answers:?}"
    );
}

#[test]
fn many_are_asked_at_once_and_what_is_no_answer_is_kept() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start(&host, exposed());
    let connections: Vec<_> = (0..300).map(|at| connection(&client, &workload, at % 2 == 0)).collect();
    let mut targets = Vec::new();
    for (client_end, server_end) in &connections {
        let (mut client_end, mut server_end) = (client_end, server_end);
        client_end.write_all(b"x").unwrap();
        server_end.read_exact(&mut [0]).unwrap();
        server_end.write_all(b"y").unwrap();
        client_end.read_exact(&mut [0]).unwrap();
        eventually("the data is acknowledged", || repair::unacknowledged(server_end) == 0);
        targets.push(capture(server_end, &workload).target);
    }
    // A connection that the peer does not know, and one to a host that is not there.
    let mut unknown = targets[1];
    unknown.remote.set_port(1);
    let mut nobody = targets[1];
    nobody.remote.set_ip("10.7.0.77".parse().unwrap());
    targets.push(unknown);

    let port = fail_over(&host, workload);
    // While it asks, a client says more: that is the workload's, in order.
    (&connections[0].0).write_all(b"more").unwrap();
    (&connections[0].0).write_all(b"and more").unwrap();
    let (answers, others) = ask(&port, network(), &targets);
    for (target, answer) in targets.iter().zip(&answers).take(connections.len()) {
        assert!(matches!(answer, Some(Answer::Has { ack, .. }) if *ack == target.snd_una), "{answer:?}");
    }
    assert_eq!(answers.last(), Some(&Some(Answer::Reset)));
    let said: Vec<_> = others.iter().filter(|frame| frame.ends_with(b"more")).collect();
    assert!(!said.is_empty(), "what the client said is kept");

    let mut neighbours = Neighbours::new(network());
    let deadline = Moment::now() + Duration::from_millis(30);
    let answers =
        run_probes(&port, [nobody, targets[0]], &mut neighbours, deadline, &mut |_: &[u8]| ()).unwrap();
    assert_eq!(answers[0], None, "nobody is there to answer");
    assert!(answers[1].is_some(), "and that keeps no other from being asked");
}

/// `TCP_REPAIR`, tcp_repair in net/ipv4/tcp.c: just enough to read where a connection stands.
mod repair {
    use std::io;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    use nix::errno::Errno;

    pub struct State {
        pub snd_una: u32,
        pub write_seq: u32,
        pub rcv_nxt: u32,
        pub timestamp: u32,
    }

    const ON: i32 = 1;
    /// Leaves repair without sending a window probe, which plain 0 does.
    const OFF_NO_WINDOW_PROBE: i32 = -1;
    const RECEIVE_QUEUE: i32 = 1;
    const SEND_QUEUE: i32 = 2;

    fn set(socket: &TcpStream, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the option is an int; the pointer is to one, with its size, and valid for the call.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as u32,
            )
        };
        Ok(Errno::result(done).map(drop)?)
    }

    fn get(socket: &TcpStream, option: i32) -> io::Result<u32> {
        let (mut value, mut length) = (0u32, size_of::<u32>() as u32);
        // SAFETY: at most `length` bytes are written to `value`, which is as long and valid for the call.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        Ok(Errno::result(done).map(|_| value)?)
    }

    /// SIOCOUTQ: bytes queued and not acknowledged, tcp(7).
    pub fn unacknowledged(socket: &TcpStream) -> u32 {
        let mut count = 0i32;
        // SAFETY: SIOCOUTQ writes one int through the pointer, which is valid for the call.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) }).unwrap();
        count as u32
    }

    pub fn capture(socket: &TcpStream) -> io::Result<State> {
        set(socket, libc::TCP_REPAIR, ON)?;
        set(socket, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
        let write_seq = get(socket, libc::TCP_QUEUE_SEQ)?;
        set(socket, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
        let rcv_nxt = get(socket, libc::TCP_QUEUE_SEQ)?;
        let timestamp = get(socket, libc::TCP_TIMESTAMP)?;
        let snd_una = write_seq.wrapping_sub(unacknowledged(socket));
        set(socket, libc::TCP_REPAIR, OFF_NO_WINDOW_PROBE)?;
        Ok(State { snd_una, write_seq, rcv_nxt, timestamp })
    }
}
