//! Streams in both directions over captures and deaths, and what both cost.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use outlive_process::object::tcp::{Builder, Capturer, Connection, PeerAck, State, TcpSocket, fingerprint};
use outlive_process::sys::tcp_repair as sys;

use super::states::{ask, revive};
use super::talk::*;
use super::world::*;

/// A program that writes and reads whenever it is let: holding the lock is stopping it.
struct Program {
    socket: Mutex<(TcpStream, Flow, Flow)>,
    done: AtomicBool,
}

impl Program {
    fn new(stream: TcpStream, out: Flow, into: Flow) -> Self {
        Self { socket: Mutex::new((stream, out, into)), done: AtomicBool::new(false) }
    }

    /// Writes until there are `total` bytes, and reads until it is done.
    fn run(&self, total: &AtomicUsize) {
        while !self.done.load(Ordering::Relaxed) {
            {
                let mut socket = self.socket.lock().unwrap();
                let (stream, out, into) = &mut *socket;
                let left = total.load(Ordering::Relaxed).saturating_sub(out.written).min(20_000);
                out.write(stream, left);
                into.read(stream);
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn progress(&self) -> (usize, usize) {
        let socket = self.socket.lock().unwrap();
        (socket.1.written, socket.2.read)
    }
}

/// The primary is none the worse for thousands of captures: every byte arrives, in both directions.
#[test]
fn thousands_of_captures() {
    const CAPTURES: usize = 2000;
    let world = World::new();
    let pair = connected(&world, false);
    let a = Program::new(pair.a, Flow::new(1), Flow::new(2));
    let b = Program::new(pair.b, Flow::new(2), Flow::new(1));
    let total = AtomicUsize::new(usize::MAX);
    let (mut with_data, mut unframed) = (0, 0);
    let result = thread::scope(|scope| {
        scope.spawn(|| a.run(&total));
        scope.spawn(|| b.run(&total));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // A `Capturer` belongs to a namespace, not to a thread.
            let mut capturer = Capturer::new();
            let mut options = None;
            for _ in 0..CAPTURES {
                {
                    let socket = a.socket.lock().unwrap();
                    world.set(Side::B, Mode::Hold);
                    let captured = world
                        .a
                        .namespace
                        .enter(|| capturer.capture(socket.0.as_fd(), options.as_ref()).unwrap());
                    let connection = connection(&captured.socket);
                    // What was written and not acknowledged is the end of what was written; what is unread, the
                    // beginning of what is to be read.
                    let queued = connection.send.len();
                    assert_eq!(connection.send, pattern(1, socket.1.written - queued, queued));
                    assert_eq!(connection.receive, pattern(2, socket.2.read, connection.receive.len()));
                    with_data += usize::from(queued != 0);
                    unframed += captured.unframed.len();
                    for segment in &captured.unframed {
                        world.inject(Side::A, &segment.packet);
                    }
                    options = Some(captured.socket.options);
                    world.release(Side::B);
                }
                thread::sleep(Duration::from_micros(300));
            }
            total.store(0, Ordering::Relaxed);
            until("the end of both streams", || {
                let (a, b) = (a.progress(), b.progress());
                a.0 == b.1 && a.1 == b.0
            });
        }));
        a.done.store(true, Ordering::Relaxed);
        b.done.store(true, Ordering::Relaxed);
        result
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    println!(
        "{CAPTURES} captures over {:?} bytes, {with_data} with a send queue, {unframed} segments sent in the kernel's stead",
        a.progress()
    );
    assert!(with_data > CAPTURES / 10);
}

/// The same connection moves from host to host to host; the client never notices, and no byte is lost or doubled.
#[test]
fn three_deaths_of_one_stream() {
    let mut world = World::new();
    let pair = connected(&world, false);
    let total = 6 << 20;
    let limit = AtomicUsize::new(total);
    let b = Program::new(pair.b, Flow::new(2), Flow::new(1));
    let mut a = (pair.a, Flow::new(1), Flow::new(2));
    let done = thread::scope(|scope| {
        scope.spawn(|| b.run(&limit));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for death in 1..=4 {
                let goal = total / 4 * death;
                until("some of the stream", || {
                    let left = (goal - a.1.written).min(20_000);
                    a.1.write(&a.0, left);
                    a.2.read(&a.0);
                    thread::sleep(Duration::from_micros(100));
                    a.1.written == goal
                });
                if death == 4 {
                    break;
                }
                world.set(Side::B, Mode::Hold);
                world.set(Side::A, if death == 2 { Mode::Pass } else { Mode::Hold });
                let checkpoint = capture(&world.a, &a.0);
                world.replace_a();
                let peer = ask(&world, &checkpoint);
                a.0 = revive(&world, &checkpoint, peer);
                world.release(Side::A);
                world.release(Side::B);
            }
            until("the rest", || {
                a.2.read(&a.0);
                a.2.read == total && b.progress() == (total, total)
            });
        }));
        b.done.store(true, Ordering::Relaxed);
        result
    });
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

fn many(world: &World, count: usize, data: usize) -> Vec<Pair> {
    let listener =
        world.a.namespace.enter(|| std::net::TcpListener::bind(address(false, Side::A, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    (0..count)
        .map(|_| {
            let b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
            let (a, _) = listener.accept().unwrap();
            let mut pair = Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) };
            pair.to_a.write(&pair.b, data);
            until("delivery", || sys::unread(&pair.a).unwrap() as usize == data);
            pair
        })
        .collect()
}

/// What is measured here is what the documentation says: `cargo test --release --test tcp cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn cost() {
    const SOCKETS: usize = 1000;
    for data in [0, 1000] {
        let mut world = World::new();
        let pairs = many(&world, SOCKETS, data);
        world.set(Side::B, Mode::Hold);
        world.set(Side::A, Mode::Hold);
        for pair in &pairs {
            (&pair.a).write_all_pattern(data);
        }
        let per = |name: &str, started: Instant| {
            println!(
                "{data} bytes in each queue: {name} {:.2} µs",
                started.elapsed().as_secs_f64() * 1e6 / SOCKETS as f64
            );
        };
        let checkpoints: Vec<TcpSocket> = world.a.namespace.enter(|| {
            let mut capturer = Capturer::new();
            let started = Instant::now();
            for pair in &pairs {
                fingerprint(pair.a.as_fd()).unwrap();
            }
            per("fingerprint", started);
            let started = Instant::now();
            let first: Vec<_> =
                pairs.iter().map(|pair| capturer.capture(pair.a.as_fd(), None).unwrap().socket).collect();
            per("first capture", started);
            let started = Instant::now();
            for (pair, known) in pairs.iter().zip(&first) {
                capturer.capture(pair.a.as_fd(), Some(&known.options)).unwrap();
            }
            per("capture with known options", started);
            first
        });
        let size = postcard::to_stdvec(&checkpoints[0]).unwrap().len();
        println!("{data} bytes in each queue: serialised {size} bytes");
        let acks: Vec<_> = world.b.namespace.enter(|| {
            let mut capturer = Capturer::new();
            pairs
                .iter()
                .map(|pair| {
                    let socket = capturer.capture(pair.b.as_fd(), None).unwrap().socket;
                    PeerAck::of_other_end(connection(&socket))
                })
                .collect()
        });
        world.replace_a();
        world.a.namespace.enter(|| {
            let mut builder = Builder::new();
            let started = Instant::now();
            let restored: Vec<_> = checkpoints
                .iter()
                .zip(&acks)
                .map(|(checkpoint, ack)| builder.restore(checkpoint, *ack).unwrap())
                .collect();
            per("restore, silently", started);
            let started = Instant::now();
            for (restored, checkpoint) in restored.iter().zip(&checkpoints) {
                restored.go_live(checkpoint).unwrap();
            }
            per("go live", started);
        });
    }
}

trait WriteAllPattern {
    fn write_all_pattern(&mut self, length: usize);
}

impl WriteAllPattern for &TcpStream {
    fn write_all_pattern(&mut self, length: usize) {
        std::io::Write::write_all(self, &pattern(1, 0, length)).unwrap();
    }
}

/// A checkpoint whose numbers make no sense is refused, not believed.
#[test]
fn malformed_checkpoints_do_not_panic() {
    let world = World::new();
    let mut pair = connected(&world, false);
    pair.exchange();
    let checkpoint = capture(&world.a, &pair.a);
    let vandals: [fn(&mut Connection); 6] = [
        |connection| connection.snd_una = connection.snd_una.wrapping_add(1 << 31),
        |connection| connection.window.rcv_wup = connection.rcv_nxt.wrapping_add(5),
        |connection| connection.window_scales = Some((200, 200)),
        |connection| connection.remote = "[::1]:1".parse().unwrap(),
        |connection| connection.max_segment = 0,
        |connection| connection.snd_nxt = connection.snd_una.wrapping_sub(1),
    ];
    for vandal in vandals {
        let mut checkpoint = checkpoint.clone();
        let State::Connected(connection) = &mut checkpoint.state else { panic!() };
        vandal(connection);
        world.a.namespace.enter(|| {
            for peer in [PeerAck::Unknown, PeerAck::Known { ack: 5, window: 9 }] {
                let _ = Builder::new().restore(&checkpoint, peer);
            }
        });
    }
}
