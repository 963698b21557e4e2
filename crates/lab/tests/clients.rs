//! The generic clients against `lab_server` in a lab, and against servers that do wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use outlive_lab::client::ClientError;
use outlive_lab::client::bulk::Bulk;
use outlive_lab::client::latency::{self, Service};
use outlive_lab::client::opener;
use outlive_lab::{Lab, pattern};

const SERVER: &str = env!("CARGO_BIN_EXE_lab_server");
const PATIENCE: Duration = Duration::from_secs(60);

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server that treats each connection with `how`, once its first line has come.
fn faulty(how: impl Fn(&str, TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            how(&line, stream);
        }
    });
    address
}

#[test]
fn an_honest_server_satisfies_every_client() {
    let lab = Lab::new("clients").unwrap();
    let (host, client) = (lab.host("a").unwrap(), lab.client("client").unwrap());
    let server = host.spawn([SERVER, "0.0.0.0:7000"]).unwrap();
    wait("the server is ready", || server.stdout().starts_with("ready"));
    let (namespace, to) = (client.netns().unwrap(), SocketAddr::from((host.address(), 7000)));
    let from = Some(&namespace);

    let opener = opener::start(from, to, 2, Duration::from_millis(1)).unwrap();
    let seen = AtomicU64::new(0);
    let bulk = Bulk { seen: Some(&seen), ..Bulk::new(from, to) };
    assert_eq!(bulk.download(5_000_001, 9).unwrap().bytes, 5_000_001);
    assert_eq!(bulk.upload(5_000_001, 9).unwrap().bytes, 5_000_001);
    assert_eq!(seen.load(Ordering::Relaxed), 10_000_002);
    let rest = Duration::from_millis(5);
    let slow = Bulk { rest, receive_buffer: Some(16 << 10), ..bulk };
    let left = slow.download_left(1 << 20, 9).unwrap();
    assert!(left.bytes == 1 << 20 && left.took >= rest * 15, "{left:?}");
    let round_trips = latency::measure(from, to, Service::Count, 200, Duration::ZERO).unwrap();
    assert!(round_trips.p50 > 0 && round_trips.p50 <= round_trips.max);
    wait("the opener has opened", || opener.stats().report().requests > 50);
    let report = opener.finish();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_transfer_that_is_cut_short_was_dropped() {
    let to = faulty(|_, mut stream| {
        let mut half = vec![0; 500];
        pattern::fill(1, 0, &mut half);
        stream.write_all(&half).unwrap();
    });
    assert!(matches!(Bulk::new(None, to).download(1000, 1), Err(ClientError::Dropped { after: 500, .. })));
    let to = faulty(|_, stream| drop(stream));
    assert!(matches!(Bulk::new(None, to).upload(100, 1), Err(ClientError::Dropped { .. })));
    let requests = latency::measure(None, to, Service::Count, 1, Duration::ZERO);
    assert!(matches!(requests, Err(ClientError::Dropped { .. })));
}

#[test]
fn a_transfer_with_one_wrong_byte_or_one_too_many_is_wrong() {
    for (length, flipped) in [(1000, true), (1001, false)] {
        let to = faulty(move |_, mut stream| {
            let mut bytes = vec![0; length];
            pattern::fill(1, 0, &mut bytes);
            bytes[700] ^= u8::from(flipped);
            stream.write_all(&bytes).unwrap();
        });
        assert!(matches!(Bulk::new(None, to).download(1000, 1), Err(ClientError::Wrong { .. })), "{length}");
    }
    let to = faulty(|_, mut stream| {
        writeln!(stream, "{:016x} 100", pattern::hash(2, 100)).unwrap();
        // Read what was uploaded, or the close would reset the connection under the answer.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    assert!(matches!(Bulk::new(None, to).upload(100, 1), Err(ClientError::Wrong { .. })));
    let to = faulty(|_, mut stream| stream.write_all(b"2\n").unwrap());
    let requests = latency::measure(None, to, Service::Count, 1, Duration::ZERO);
    assert!(matches!(requests, Err(ClientError::Wrong { .. })));
}

#[test]
fn the_opener_counts_drops_and_wrong_replies() {
    let to = faulty(|line, mut stream| {
        let number: u64 = line.trim().rsplit('-').next().unwrap().parse().unwrap();
        match number % 3 {
            0 => drop(stream),
            1 => stream.write_all(b"else 1\n").unwrap(),
            _ => writeln!(stream, "{} 1", line.split_whitespace().nth(1).unwrap()).unwrap(),
        }
    });
    let opener = opener::start(None, to, 1, Duration::from_millis(1)).unwrap();
    wait("several of each", || opener.stats().report().requests >= 5);
    let report = opener.finish();
    assert!(report.connections_dropped >= 4 && report.wrong_replies >= 5, "{report:?}");
}
