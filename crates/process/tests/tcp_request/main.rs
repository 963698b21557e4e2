//! Connections that have no descriptor, through the death of the workload's host: real kernels on both ends, and a
//! wire in between that loses what a test wants lost.
//!
//! Each test needs root, and makes and removes its own network namespaces.

mod lab;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Scene, Way, variations};
use outlive_process::object::tcp_request::{Bounds, Progress, RestoreError, Restorer, Snapshot};

/// `length` bytes that differ from every other offset's within any window of 251.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8 ^ seed).collect()
}

fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("read");
    bytes
}

/// Data passes both ways, in more than one segment.
fn assert_alive(client: &mut TcpStream, server: &mut TcpStream) {
    let pass = |seed: u8, from: &mut TcpStream, to: &mut TcpStream| {
        let sent = pattern(seed, 20_000);
        from.write_all(&sent).expect("write");
        assert!(read_exactly(to, sent.len()) == sent, "data changed on the way");
    };
    pass(1, client, server);
    pass(2, server, client);
}

fn acknowledged(snapshot: &Snapshot, bytes: u32) -> bool {
    snapshot.connections.iter().all(|connection| connection.acknowledged == bytes)
        && !snapshot.connections.is_empty()
}

fn in_handshake(snapshot: &Snapshot) -> bool {
    snapshot.connections.len() == 1 && snapshot.connections[0].progress == Progress::SynReceived
}

fn completed(snapshot: &Snapshot, count: usize) -> bool {
    let completed = |progress| matches!(progress, Progress::Completed { .. });
    snapshot.connections.iter().filter(|connection| completed(connection.progress)).count() == count
}

#[test]
fn syn_ack_lost() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        scene.wire.filter(|way, tcp| !(way == Way::Out && tcp.syn()));
        let mut client = scene.connect();
        scene.wire.wait_for("the SYN-ACK", in_handshake);
        let snapshot = scene.kill();
        // Without the client's SYN, what opens the connection can only be the log's SYN-ACK.
        scene.wire.filter(|way, tcp| !(way == Way::In && tcp.syn()));
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        client.wait_open();
        let mut server = scene.accept();
        assert_alive(&mut client.stream, &mut server);
    }
}

#[test]
fn syn_repeated_while_the_syn_ack_is_lost_again() {
    let mut scene = Scene::new(&variations()[0]);
    scene.wire.filter(|way, tcp| !(way == Way::Out && tcp.syn()));
    let mut client = scene.connect();
    scene.wire.wait_for("the SYN-ACK", in_handshake);
    let snapshot = scene.kill();
    // The repeated SYN-ACK is lost too; the client's SYN comes again and must be answered with the same numbers,
    // not by the kernel with others.
    let isn = snapshot.connections[0].server_isn;
    let (report, others) = std::sync::mpsc::channel();
    let mut lose = 1;
    scene.wire.filter(move |way, tcp| {
        if way == Way::Out && tcp.syn() {
            report.send(tcp.sequence_number()).expect("report");
            lose -= 1;
            return lose < 0;
        }
        true
    });
    assert_eq!(scene.revive(&snapshot), []);
    client.wait_open();
    let mut server = scene.accept();
    assert_alive(&mut client.stream, &mut server);
    let seen: Vec<u32> = others.try_iter().collect();
    assert!(seen.len() >= 2 && seen.iter().all(|&sequence| sequence == isn), "{seen:?} should all be {isn}");
}

#[test]
fn syn_ack_delivered() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        scene.wire.filter(|way, tcp| way == Way::Out || tcp.syn());
        let mut client = scene.connect();
        client.wait_open();
        let snapshot = scene.kill();
        assert!(in_handshake(&snapshot), "{snapshot:?}");
        scene.wire.filter(|_, _| true);
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        // The server speaks first: the client itself would send nothing that could open the connection.
        let mut server = scene.accept();
        server.write_all(b"220 ready").expect("write");
        assert_eq!(read_exactly(&mut client.stream, 9), b"220 ready");
        assert_alive(&mut client.stream, &mut server);
    }
}

#[test]
fn syn_ack_delivered_and_data_lost() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        scene.wire.filter(|way, tcp| way == Way::Out || tcp.syn());
        let mut client = scene.connect();
        client.wait_open();
        let sent = pattern(7, 5000);
        client.stream.write_all(&sent).expect("write");
        let snapshot = scene.kill();
        assert!(in_handshake(&snapshot), "{snapshot:?}");
        scene.wire.filter(|_, _| true);
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        let mut server = scene.accept();
        assert!(read_exactly(&mut server, sent.len()) == sent, "{}", variation.name);
        assert_alive(&mut client.stream, &mut server);
    }
}

#[test]
fn unaccepted_without_data() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        let mut client = scene.connect();
        client.wait_open();
        scene.wire.wait_for("the handshake", |snapshot| completed(snapshot, 1));
        let snapshot = scene.kill();
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        assert!(scene.wire.lock().restoring.as_ref().expect("restoring").is_done(), "nothing to wait for");
        let mut server = scene.accept();
        assert_alive(&mut client.stream, &mut server);
    }
}

#[test]
fn unaccepted_with_data() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        let mut client = scene.connect();
        client.wait_open();
        let sent = pattern(3, 40_000);
        client.stream.write_all(&sent).expect("write");
        scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 40_000));
        let snapshot = scene.kill();
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        let mut server = scene.accept();
        assert!(read_exactly(&mut server, sent.len()) == sent, "{}", variation.name);
        assert_alive(&mut client.stream, &mut server);
    }
}

#[test]
fn unaccepted_with_a_full_receive_window() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        let client = scene.connect();
        client.wait_open();
        // More than the window takes: what is left waits in the client's kernel, and must follow. It comes in frames of
        // up to 64 KiB, which fill the receive buffer better than any others.
        let sent = pattern(5, 400_000);
        let (mut writer, copy) = (client.stream.try_clone().expect("clone"), sent.clone());
        let writing = std::thread::spawn(move || writer.write_all(&copy).expect("write"));
        let window = Arc::new(AtomicBool::new(true));
        let open = Arc::clone(&window);
        scene.wire.filter(move |way, tcp| {
            if way == Way::Out && !tcp.syn() {
                open.store(tcp.window_size() > 0, Ordering::Relaxed);
            }
            true
        });
        scene.wire.wait_for("a closed window", |_| !window.load(Ordering::Relaxed));
        let snapshot = scene.kill();
        assert!(snapshot.connections[0].acknowledged > 60_000, "{}", variation.name);
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        let mut server = scene.accept();
        assert!(read_exactly(&mut server, sent.len()) == sent, "{}", variation.name);
        writing.join().expect("writer");
    }
}

#[test]
fn unaccepted_with_many_small_segments() {
    let mut scene = Scene::new(&variations()[0]);
    let mut client = scene.connect();
    client.wait_open();
    client.stream.set_nodelay(true).expect("TCP_NODELAY");
    let sent = pattern(9, 20_000);
    for part in sent.chunks(40) {
        client.stream.write_all(part).expect("write");
    }
    scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 20_000));
    let snapshot = scene.kill();
    assert_eq!(scene.revive(&snapshot), []);
    let mut server = scene.accept();
    assert!(read_exactly(&mut server, sent.len()) == sent);
    assert_alive(&mut client.stream, &mut server);
}

#[test]
fn unaccepted_and_half_closed() {
    for variation in variations() {
        let mut scene = Scene::new(&variation);
        let mut client = scene.connect();
        client.wait_open();
        let sent = pattern(4, 5000);
        client.stream.write_all(&sent).expect("write");
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        scene.wire.wait_for("data and FIN", |snapshot| acknowledged(snapshot, 5001));
        let snapshot = scene.kill();
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        let mut server = scene.accept();
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("read to the end");
        assert!(received == sent, "{}", variation.name);
        server.write_all(b"goodbye").expect("write");
        drop(server);
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).expect("read to the end");
        assert_eq!(answer, b"goodbye");
    }
}

#[test]
fn killed_twice_before_it_is_accepted() {
    let mut scene = Scene::new(&variations()[0]);
    let mut client = scene.connect();
    client.wait_open();
    client.stream.write_all(&pattern(6, 10_000)).expect("write");
    scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 10_000));
    let snapshot = scene.kill();
    assert_eq!(scene.revive(&snapshot), []);
    // The second host takes more of it before it dies too.
    client.stream.write_all(&pattern(8, 10_000)).expect("write");
    scene.wire.wait_for("more data", |snapshot| acknowledged(snapshot, 20_000));
    let snapshot = scene.kill();
    assert_eq!(scene.revive(&snapshot), []);
    let mut server = scene.accept();
    let sent = [pattern(6, 10_000), pattern(8, 10_000)].concat();
    assert!(read_exactly(&mut server, sent.len()) == sent);
    assert_alive(&mut client.stream, &mut server);
}

#[test]
fn five_hundred_at_once() {
    for variation in &variations()[..2] {
        let mut scene = Scene::with(variation, 1024, Bounds::default());
        let mut clients: Vec<_> = (0..500).map(|_| scene.connect()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.wait_open();
            client.stream.write_all(&pattern(number as u8, 1000 + number)).expect("write");
        }
        scene.wire.wait_for("all data", |snapshot| {
            let whole = |length: u32| (1000..1500).contains(&length);
            completed(snapshot, 500)
                && snapshot.connections.iter().all(|connection| whole(connection.acknowledged))
        });
        let snapshot = scene.kill();
        assert_eq!(scene.revive(&snapshot), [], "{}", variation.name);
        println!("{}: 500 connections, {:?}", variation.name, scene.costs);
        let mut servers: Vec<_> = (0..500).map(|_| scene.accept()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            let port = client.stream.local_addr().expect("address").port();
            let of_client = |server: &TcpStream| server.peer_addr().expect("address").port() == port;
            let at = servers.iter().position(of_client).expect("accepted");
            let mut server = servers.swap_remove(at);
            assert!(read_exactly(&mut server, 1000 + number) == pattern(number as u8, 1000 + number));
            assert_alive(&mut client.stream, &mut server);
        }
    }
}

#[test]
fn accepted_in_the_order_of_their_arrival() {
    let mut scene = Scene::new(&variations()[0]);
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let client = scene.connect();
            client.wait_open();
            scene.wire.wait_for("the handshake", |snapshot| completed(snapshot, number + 1));
            client
        })
        .collect();
    let snapshot = scene.kill();
    assert_eq!(scene.revive(&snapshot), []);
    for client in &clients {
        let server = scene.accept();
        assert_eq!(
            server.peer_addr().expect("peer").port(),
            client.stream.local_addr().expect("address").port()
        );
    }
}

#[test]
fn more_than_the_accept_queue_takes() {
    // The kernel answers four clients (two of them by SYN cookies, its backlog being 1), who then all believe that they
    // are connected. It has room for two and drops what the others say, without a trace in the frames.
    let mut scene = Scene::with(&variations()[0], 1, Bounds::default());
    scene.wire.filter(|way, tcp| way == Way::Out || tcp.syn());
    let mut clients: Vec<_> = (0..4)
        .map(|number| {
            let mut client = scene.connect();
            client.wait_open();
            client.stream.write_all(&[number; 100]).expect("write");
            client
        })
        .collect();
    scene.wire.filter(|_, _| true);
    scene.wire.wait_for("data of all, acknowledged of two", |snapshot| {
        let taken = snapshot.connections.iter().filter(|connection| connection.acknowledged == 100);
        completed(snapshot, 4) && taken.count() == 2
    });
    let snapshot = scene.kill();
    assert_eq!(scene.revive(&snapshot).len(), 2, "the two that the old host had no room for either");
    for _ in 0..4 {
        let mut server = scene.accept();
        let number = read_exactly(&mut server, 100)[0];
        assert_alive(&mut clients[usize::from(number)].stream, &mut server);
    }
}

#[test]
fn what_the_accept_queue_has_no_room_for_comes_later() {
    let mut scene = Scene::new(&variations()[0]);
    let mut clients: Vec<_> = (0..5)
        .map(|number| {
            let mut client = scene.connect();
            client.wait_open();
            client.stream.write_all(&[number; 3000]).expect("write");
            client
        })
        .collect();
    scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 3000) && completed(snapshot, 5));
    let snapshot = scene.kill();
    // The new listener queues two.
    scene.backlog = 1;
    assert_eq!(scene.revive(&snapshot).len(), 3);
    for _ in 0..5 {
        let mut server = scene.accept();
        let number = read_exactly(&mut server, 3000)[0];
        assert_alive(&mut clients[usize::from(number)].stream, &mut server);
    }
}

#[test]
fn what_the_receive_buffer_has_no_room_for_comes_later() {
    let mut scene = Scene::new(&variations()[0]);
    let mut client = scene.connect();
    client.wait_open();
    let sent = pattern(11, 60_000);
    client.stream.write_all(&sent).expect("write");
    scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 60_000));
    let snapshot = scene.kill();
    scene.boot(&[("ipv4/tcp_rmem", "4096 16384 16384")]);
    assert_eq!(scene.take_over(&snapshot).len(), 1, "the small buffer took everything");
    let mut server = scene.accept();
    assert!(read_exactly(&mut server, sent.len()) == sent);
    assert_alive(&mut client.stream, &mut server);
}

#[test]
fn the_client_speaks_on_before_its_lost_data_comes_again() {
    let mut scene = Scene::new(&variations()[0]);
    scene.wire.filter(|way, tcp| way == Way::Out || tcp.syn());
    let mut client = scene.connect();
    client.wait_open();
    let sent = pattern(7, 5000);
    client.stream.write_all(&sent).expect("write");
    let snapshot = scene.kill();
    // What the client says to the repeated SYN-ACK is numbered past its data: the connection must come to be with the
    // numbers of the handshake all the same, and wait for the data.
    scene.wire.filter(|way, tcp| way == Way::Out || tcp.payload().is_empty());
    assert_eq!(scene.revive(&snapshot), []);
    let mut server = scene.accept();
    scene.wire.filter(|_, _| true);
    assert!(read_exactly(&mut server, sent.len()) == sent);
    assert_alive(&mut client.stream, &mut server);
}

#[test]
fn a_client_begins_anew_from_the_same_port() {
    let mut scene = Scene::new(&variations()[0]);
    scene.wire.filter(|way, tcp| !(way == Way::Out && tcp.syn()));
    let first = scene.connect_from(40_000);
    scene.wire.wait_for("the SYN-ACK", in_handshake);
    let snapshot = scene.kill();
    drop(first);
    // The first one's SYN-ACK is lost again: the client's second connection meets the first one's entry.
    let mut lose = 1;
    scene.wire.filter(move |way, tcp| {
        lose -= i32::from(way == Way::Out && tcp.syn());
        !(way == Way::Out && tcp.syn() && lose >= 0)
    });
    assert_eq!(scene.revive(&snapshot), []);
    let mut second = scene.connect_from(40_000);
    second.wait_open();
    let mut server = scene.accept();
    assert_alive(&mut second.stream, &mut server);
}

#[test]
fn a_bound_delays_data_and_loses_none() {
    let bounds = Bounds { bytes_per_connection: 8_000, ..Bounds::default() };
    let mut scene = Scene::with(&variations()[0], 128, bounds);
    let mut client = scene.connect();
    client.wait_open();
    let sent = pattern(2, 30_000);
    for part in sent.chunks(1000) {
        client.stream.write_all(part).expect("write");
    }
    let since = std::time::Instant::now();
    while scene.wire.lock().refused == 0 {
        assert!(since.elapsed() < lab::HANG, "the bound was never reached");
        std::thread::yield_now();
    }
    let snapshot = scene.kill();
    assert!(snapshot.connections[0].data.len() <= 8_000);
    assert_eq!(scene.revive(&snapshot), []);
    let mut server = scene.accept();
    assert!(read_exactly(&mut server, sent.len()) == sent);
    assert_alive(&mut client.stream, &mut server);
}

#[test]
fn without_a_restore_the_client_is_reset() {
    let mut scene = Scene::new(&variations()[0]);
    let mut client = scene.connect();
    client.wait_open();
    client.stream.write_all(b"hello").expect("write");
    scene.wire.wait_for("the data", |snapshot| acknowledged(snapshot, 5));
    scene.kill();
    scene.revive(&Snapshot::default());
    client.stream.write_all(b"world").expect("write");
    let error = client.stream.read(&mut [0]).expect_err("the connection should be gone");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn refuses_without_syn_cookies() {
    let mut scene = Scene::new(&variations()[0]);
    scene.boot(&[("ipv4/tcp_syncookies", "0")]);
    let refused = scene.in_workload(|| Restorer::attach(lab::ifindex(), 1).map(drop));
    assert!(matches!(refused, Err(RestoreError::SynCookiesOff)), "{refused:?}");
}
