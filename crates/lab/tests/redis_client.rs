//! The Redis client catches every lie that it is told: by a deliberately faulty server, and by a real one that died.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use outlive_lab::Lab;
use outlive_lab::client::redis::{Fill, Load, RedisClient};
use outlive_lab::client::stats::Report;

const PATIENCE: Duration = Duration::from_secs(60);
/// Requests before a server shows its fault, and after which a run is over.
const FAULT_AFTER: u64 = 300;
const ENOUGH: u64 = 1500;

/// What a server does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Acknowledges a write and does not make it.
    LoseWrite,
    /// Acknowledges an increment twice as far.
    RepeatIncrement,
    /// Goes back to what it held some time ago, as a failover to a stale checkpoint would.
    Rollback,
    /// Changes one byte of a value that it gives out.
    WrongValue,
    /// Gives out the value of another key.
    OtherValue,
    ErrorReply,
    Garbage,
    Reset,
    Close,
    /// Never answers one connection again.
    Hang,
}

type Words = HashMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct Server {
    words: Mutex<Words>,
    snapshot: Mutex<Words>,
    commands: AtomicU64,
    writes: AtomicU64,
    shown: AtomicBool,
}

impl Server {
    fn start(fault: Fault) -> (SocketAddr, Arc<Server>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, server) = (listener.local_addr().unwrap(), Arc::new(Server::default()));
        let shared = Arc::clone(&server);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || drop(shared.converse(stream, fault)));
            }
        });
        (address, server)
    }

    fn converse(&self, stream: TcpStream, fault: Fault) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        while let Some(command) = read_command(&mut input)? {
            let number = self.commands.fetch_add(1, Ordering::Relaxed);
            if number == FAULT_AFTER / 2 {
                *self.snapshot.lock().unwrap() = self.words.lock().unwrap().clone();
            }
            // Shown once, at the first command that it applies to.
            let lie = |these: &[u8]| {
                number > FAULT_AFTER && command[0] == these && !self.shown.swap(true, Ordering::Relaxed)
            };
            let reply = match fault {
                Fault::LoseWrite if lie(b"SET") => b"+OK\r\n".to_vec(),
                Fault::RepeatIncrement if lie(b"INCR") => {
                    self.apply(&command);
                    self.apply(&command)
                }
                Fault::Rollback if lie(b"SET") => {
                    let then = self.snapshot.lock().unwrap().clone();
                    *self.words.lock().unwrap() = then;
                    self.apply(&command)
                }
                Fault::WrongValue if self.has(&command) && lie(b"GET") => {
                    let mut reply = self.apply(&command);
                    let last = reply.len() - 3;
                    reply[last] ^= 1;
                    reply
                }
                Fault::OtherValue if self.has(&command) && lie(b"GET") => {
                    let words = self.words.lock().unwrap();
                    let other = words.iter().find(|(key, _)| **key != command[1]).unwrap().1;
                    bulk(other)
                }
                Fault::ErrorReply if lie(b"SET") => b"-LOADING Redis is loading\r\n".to_vec(),
                Fault::Garbage if lie(b"GET") => b"HTTP/1.1 200 OK\r\n".to_vec(),
                Fault::Close if lie(b"GET") => return Ok(()),
                Fault::Reset if lie(b"GET") => {
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &libc::linger { l_onoff: 1, l_linger: 0 },
                    )?;
                    return Ok(());
                }
                Fault::Hang if lie(b"GET") => {
                    thread::sleep(PATIENCE);
                    return Ok(());
                }
                _ => self.apply(&command),
            };
            (&stream).write_all(&reply)?;
        }
        Ok(())
    }

    fn has(&self, command: &[Vec<u8>]) -> bool {
        self.words.lock().unwrap().contains_key(&command[1])
    }

    fn apply(&self, command: &[Vec<u8>]) -> Vec<u8> {
        let mut words = self.words.lock().unwrap();
        match command[0].as_slice() {
            b"SET" => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                words.insert(command[1].clone(), command[2].clone());
                b"+OK\r\n".to_vec()
            }
            b"INCR" => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                let value = words.entry(command[1].clone()).or_insert_with(|| b"0".to_vec());
                let next: u64 = String::from_utf8_lossy(value).parse::<u64>().unwrap() + 1;
                *value = next.to_string().into_bytes();
                format!(":{next}\r\n").into_bytes()
            }
            b"GET" => words.get(&command[1]).map_or_else(|| b"$-1\r\n".to_vec(), |value| bulk(value)),
            other => panic!("the client sent {}", other.escape_ascii()),
        }
    }
}

fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

fn read_command(input: &mut impl BufRead) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let count: usize = line[1..].trim().parse().unwrap();
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        input.read_line(&mut line)?;
        let mut word = vec![0; line[1..].trim().parse::<usize>().unwrap() + 2];
        input.read_exact(&mut word)?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Ok(Some(words))
}

fn load(target: SocketAddr) -> Load {
    Load {
        connections: 5,
        pace: Duration::from_millis(1),
        large_every: 20,
        batch_every: 7,
        ..Load::new(target)
    }
}

fn run_against(fault: Fault) -> (Report, Arc<Server>) {
    let (address, server) = Server::start(fault);
    // Short only where waiting for it is the test.
    let reply_limit = if fault == Fault::Hang { Duration::from_secs(2) } else { PATIENCE };
    let client = RedisClient::start(None, Load { reply_limit, ..load(address) }).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let done = || {
        client.stats().report().requests >= ENOUGH
            && (fault == Fault::None || server.shown.load(Ordering::Relaxed))
    };
    while !done() {
        assert!(Instant::now() < deadline, "{:?}", client.stats().report());
        thread::sleep(Duration::from_millis(5));
    }
    let report = client.finish().unwrap();
    (report, server)
}

#[test]
fn an_honest_server_is_believed() {
    let (report, server) = run_against(Fault::None);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.acked_writes, server.writes.load(Ordering::Relaxed));
    assert!(report.latency_us.max > 0);
}

#[test]
fn lost_writes_are_caught() {
    for fault in [Fault::LoseWrite, Fault::Rollback] {
        let (report, _) = run_against(fault);
        assert!(report.acked_writes_lost > 0, "{fault:?}: {report:?}");
        assert_eq!(report.connections_dropped, 0, "{fault:?}: {report:?}");
        assert!(!report.is_clean());
    }
}

#[test]
fn wrong_replies_are_caught() {
    let faults =
        [Fault::RepeatIncrement, Fault::WrongValue, Fault::OtherValue, Fault::ErrorReply, Fault::Garbage];
    for fault in faults {
        let (report, _) = run_against(fault);
        assert!(report.wrong_replies > 0, "{fault:?}: {report:?}");
        assert!(!report.findings.is_empty() && !report.is_clean());
    }
}

#[test]
fn dropped_connections_are_caught_and_nothing_else_is_blamed() {
    for fault in [Fault::Reset, Fault::Close, Fault::Hang] {
        let (report, _) = run_against(fault);
        assert_eq!(report.connections_dropped, 1, "{fault:?}: {report:?}");
        assert_eq!((report.acked_writes_lost, report.wrong_replies), (0, 0), "{fault:?}: {report:?}");
        assert!(!report.is_clean());
    }
}

#[test]
fn a_server_that_is_not_there_is_no_clean_run() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = RedisClient::start(None, load(nobody)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while client.stats().report().connections_dropped < 5 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    let report = client.finish().unwrap();
    // Every attempt to have it back is not one more drop.
    assert_eq!(report.connections_dropped, 5);
    assert!(!report.is_clean());
}

#[test]
fn a_fill_is_counted_and_its_loss_is_caught() {
    let (address, server) = Server::start(Fault::None);
    let fill = Fill::write(None, address, 1_000_000).unwrap();
    assert_eq!(fill.writes(), 245);
    assert_eq!(fill.count_lost(None).unwrap(), 0);
    let mut words = server.words.lock().unwrap();
    let first = words.keys().next().unwrap().clone();
    words.remove(&first);
    words.values_mut().next().unwrap()[100] ^= 1;
    drop(words);
    assert_eq!(fill.count_lost(None).unwrap(), 2);
}

#[test]
fn a_real_redis_is_verified_through_a_stall_and_its_death_is_noticed() {
    let lab = Lab::new("redis").unwrap();
    let (host, client) = (lab.host("a").unwrap(), lab.client("client").unwrap());
    let namespace = client.netns().unwrap();
    let target = SocketAddr::from((host.address(), 6379));
    let serve = || {
        let command = "redis-server --appendonly no --bind 0.0.0.0 --protected-mode no --save";
        let redis = host.spawn(command.split(' ').chain([""])).unwrap();
        wait("redis is ready", || redis.stdout().contains("Ready to accept connections"));
    };
    serve();
    let fill = Fill::write(Some(&namespace), target, 1 << 20).unwrap();
    let client = RedisClient::start(Some(&namespace), load(target)).unwrap();
    wait("all connections are answered", || client.stats().report().requests >= 100);

    let frozen_for = Duration::from_millis(300);
    let from = Instant::now();
    host.freeze().unwrap();
    thread::sleep(frozen_for);
    host.thaw().unwrap();
    wait("all go on", || client.stats().answered_since(from + frozen_for) == 5);
    let stalls = client.stats().stalls_since(from);
    assert!(stalls.len() == 5 && stalls.iter().all(|stall| *stall >= frozen_for), "{stalls:?}");
    let report = client.stats().report();
    assert!(report.is_clean() && report.acked_writes > 0, "{report:?}");
    assert_eq!(fill.count_lost(Some(&namespace)).unwrap(), 0);

    // Unprotected, it forgets everything with its host.
    host.power_off().unwrap();
    host.power_on().unwrap();
    serve();
    wait("all were dropped", || client.stats().report().connections_dropped == 5);
    let again = Instant::now();
    wait("all go on", || client.stats().answered_since(again) == 5);
    assert_eq!(fill.count_lost(Some(&namespace)).unwrap(), fill.writes());
    let report = client.finish().unwrap();
    assert!(report.acked_writes_lost > 0, "{report:?}");
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
