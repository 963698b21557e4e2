//! An equal fingerprint means an equal socket.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;

use outlive_process::object::tcp::{Capturer, Fingerprint, fingerprint};
use outlive_process::sys::tcp_repair as sys;

use super::talk::*;
use super::world::*;

fn of(fd: impl AsFd) -> Fingerprint {
    fingerprint(fd.as_fd()).unwrap()
}

/// Each kind of change, alone.
#[test]
fn every_change_shows() {
    let world = World::new();
    let mut pair = connected(&world, false);
    pair.exchange();
    let quiet = |pair: &Pair| {
        until("quiet", || {
            sys::unacknowledged(&pair.a).unwrap() == 0 && sys::unacknowledged(&pair.b).unwrap() == 0
        });
        world.drain();
    };
    let mut last = of(&pair.a);
    let mut changed = |what: &str, pair: &Pair| {
        let now = of(&pair.a);
        assert_ne!(now, last, "{what}");
        last = now;
    };

    pair.to_a.write(&pair.b, 10);
    quiet(&pair);
    changed("data received", &pair);

    // No frame, nobody woken, nothing in TCP_INFO: only a byte less to read.
    pair.a.set_nonblocking(false).unwrap();
    (&pair.a).read_exact(&mut [0]).unwrap();
    pair.to_a.read += 1;
    changed("a byte read", &pair);

    world.set(Side::A, Mode::Hold);
    pair.to_b.write(&pair.a, 10);
    changed("data sent", &pair);

    world.set(Side::B, Mode::Hold);
    world.release(Side::A);
    until("the answer", || sys::unread(&pair.b).unwrap() == 10);
    pair.to_b.read(&pair.b);
    assert_eq!(of(&pair.a), of(&pair.a));
    world.release(Side::B);
    quiet(&pair);
    changed("data acknowledged", &pair);

    sys::set(&pair.a, libc::SOL_TCP, libc::TCP_CORK, 1i32).unwrap();
    pair.to_b.write(&pair.a, 10);
    changed("data written and not sent", &pair);
    sys::set(&pair.a, libc::SOL_TCP, libc::TCP_CORK, 0i32).unwrap();
    quiet(&pair);
    changed("and now sent", &pair);

    pair.a.shutdown(Shutdown::Read).unwrap();
    changed("reading shut down", &pair);
    pair.b.shutdown(Shutdown::Write).unwrap();
    until("the FIN", || state(&pair.a) == 8);
    changed("the peer's FIN", &pair);
    pair.a.shutdown(Shutdown::Write).unwrap();
    until("the end", || state(&pair.a) == 7);
    changed("our FIN", &pair);
}

/// The peer's window opens without any data.
#[test]
fn a_window_update_shows() {
    let world = World::new();
    let mut pair = connected(&world, true);
    // The peer's buffer stays as it is, so that there is a window to open.
    until("a full window", || {
        pair.to_b.write(&pair.a, 1 << 16);
        let info = sys::info(&pair.a).unwrap();
        info.notsent_bytes > 0 && info.unacked == 0 && info.snd_wnd < 1448
    });
    let window = sys::info(&pair.a).unwrap().snd_wnd;
    let before = of(&pair.a);
    until("a larger window", || {
        pair.to_b.read(&pair.b);
        sys::info(&pair.a).unwrap().snd_wnd > window
    });
    assert_ne!(of(&pair.a), before);
}

/// Neither looking nor capturing is a change; no frame comes of it; and `SO_REUSEADDR` stays what it was.
#[test]
fn capturing_changes_nothing() {
    let world = World::new();
    for reuse in [0i32, 1] {
        let mut pair = connected(&world, false);
        pair.exchange();
        sys::set(&pair.a, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse).unwrap();
        pair.to_a.write(&pair.b, 5000);
        until("delivery", || {
            sys::unread(&pair.a).unwrap() == 5000 && sys::unacknowledged(&pair.b).unwrap() == 0
        });
        sys::set(&pair.a, libc::SOL_TCP, libc::TCP_CORK, 1i32).unwrap();
        world.set(Side::B, Mode::Hold);
        world.set(Side::A, Mode::Hold);
        assert_eq!(pair.to_b.write(&pair.a, 2500), 2500);
        let before = of(&pair.a);
        let frames = world.count(Side::A);
        world.a.namespace.enter(|| {
            let mut capturer = Capturer::new();
            let first = capturer.capture(pair.a.as_fd(), None).unwrap();
            assert!(first.unframed.is_empty());
            let again = capturer.capture(pair.a.as_fd(), Some(&first.socket.options)).unwrap();
            assert_eq!(connection(&again.socket).send, connection(&first.socket).send);
            assert_eq!(again.socket.options, first.socket.options);
        });
        // A timer may send in between (the corked rest after 200 ms, a retransmission), but then that is what changed.
        let sent = world.count(Side::A) - frames;
        if sent == 0 {
            assert_eq!(of(&pair.a), before);
        }
        assert!(sent <= 1, "capturing sent frames");
        assert_eq!(sys::get::<i32>(&pair.a, libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), reuse);
        sys::set(&pair.a, libc::SOL_TCP, libc::TCP_CORK, 0i32).unwrap();
        world.release(Side::B);
        world.release(Side::A);
        pair.to_a.read_all(&pair.a);
        pair.to_b.read_all(&pair.b);
        pair.finish();
    }
}
