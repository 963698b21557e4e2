//! Options set by a program are there after a restore.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use outlive_process::object::tcp::{Options, Stage};
use outlive_process::sys::tcp_repair as sys;

use super::talk::*;
use super::world::*;

#[test]
fn every_option_survives() {
    for v6 in [false, true] {
        let mut world = World::new();
        let mut pair = connected(&world, v6);
        pair.exchange();
        let default = Options::read(pair.a.as_fd()).unwrap();
        let ints = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_OOBINLINE, 1),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR, 1),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 3),
            (libc::SOL_SOCKET, libc::SO_MARK, 7),
            (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0),
            (libc::SOL_IP, libc::IP_TOS, 0x10),
            // After IP_TOS, which sets it too.
            (libc::SOL_SOCKET, libc::SO_PRIORITY, 0),
            (libc::SOL_IP, libc::IP_TTL, 33),
            (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (libc::SOL_TCP, libc::TCP_NODELAY, 1),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE, 11),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL, 12),
            (libc::SOL_TCP, libc::TCP_KEEPCNT, 13),
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 123_456),
            (libc::SOL_TCP, libc::TCP_LINGER2, 20),
            (libc::SOL_TCP, 25, 1 << 17), // TCP_NOTSENT_LOWAT
            (libc::SOL_TCP, 36, 1),       // TCP_INQ
        ];
        for (level, number, value) in ints {
            sys::set(&pair.a, level, number, value).unwrap();
        }
        if v6 {
            sys::set(&pair.a, libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS, 44i32).unwrap();
            sys::set(&pair.a, libc::SOL_IPV6, libc::IPV6_TCLASS, 0x20i32).unwrap();
        }
        sys::set(&pair.a, libc::SOL_SOCKET, libc::SO_LINGER, sys::Linger { on: 1, seconds: 9 }).unwrap();
        sys::set_bytes(&pair.a, libc::SOL_TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        sys::set_bytes(&pair.a, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"t0").unwrap();
        sys::set(&pair.a, libc::SOL_SOCKET, libc::SO_SNDBUF, 100_000i32).unwrap();
        pair.a.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
        pair.a.set_write_timeout(Some(Duration::from_millis(3500))).unwrap();

        // With data in both queues, which need room of their own while they are filled.
        pair.to_a.write(&pair.b, 20_000);
        until("delivery", || {
            sys::unread(&pair.a).unwrap() == 20_000 && sys::unacknowledged(&pair.b).unwrap() == 0
        });
        world.set(Side::A, Mode::Hold);
        pair.to_b.write(&pair.a, 20_000);
        world.set(Side::B, Mode::Hold);
        let checkpoint = capture(&world.a, &pair.a);
        assert_ne!(checkpoint.options, default);
        assert_eq!(checkpoint.buffers.send, 200_000);
        assert_eq!(connection(&checkpoint).receive, pattern(2, 2000, 20_000));
        // SO_PEEK_OFF is where it was, though it was peeked at.
        assert_eq!(sys::get::<i32>(&pair.a, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap(), 0);

        let peer = ack_of(&world.b, &pair.b);
        world.replace_a();
        pair.a = super::states::revive(&world, &checkpoint, peer);
        let now = capture(&world.a, &pair.a);
        assert_eq!(now.options, checkpoint.options);
        assert_eq!(now.buffers, checkpoint.buffers);
        for (level, number, value) in ints {
            assert_eq!(sys::get::<i32>(&pair.a, level, number).unwrap(), value, "{level} {number}");
        }
        assert_eq!(pair.a.read_timeout().unwrap(), Some(Duration::from_millis(2500)));
        world.release(Side::A);
        world.release(Side::B);
        pair.to_a.read_all(&pair.a);
        pair.to_b.read_all(&pair.b);
        pair.finish();
    }
}

/// What a listener's connections begin with is known without asking them.
#[test]
fn accepted_connections_inherit() {
    for v6 in [false, true] {
        let world = World::new();
        let listener = world.a.namespace.enter(|| TcpListener::bind(address(v6, Side::A, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let ints = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_OOBINLINE, 1),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 3),
            (libc::SOL_SOCKET, libc::SO_MARK, 7),
            (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 5),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, 90_000),
            (libc::SOL_IP, libc::IP_TOS, 0x10),
            (libc::SOL_SOCKET, libc::SO_PRIORITY, 3),
            (libc::SOL_IP, libc::IP_TTL, 33),
            (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (libc::SOL_IP, libc::IP_RECVERR, 1),
            (libc::SOL_IP, libc::IP_RECVTTL, 1),
            (libc::SOL_IP, libc::IP_FREEBIND, 1),
            (libc::SOL_IP, libc::IP_TRANSPARENT, 1),
            (libc::SOL_IP, libc::IP_PKTINFO, 1),
            (libc::SOL_TCP, libc::TCP_NODELAY, 1),
            (libc::SOL_TCP, libc::TCP_CORK, 1),
            (libc::SOL_TCP, libc::TCP_KEEPIDLE, 11),
            (libc::SOL_TCP, libc::TCP_KEEPINTVL, 12),
            (libc::SOL_TCP, libc::TCP_KEEPCNT, 13),
            (libc::SOL_TCP, libc::TCP_SYNCNT, 4),
            (libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 123_456),
            (libc::SOL_TCP, libc::TCP_LINGER2, 20),
            (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 1),
            (libc::SOL_TCP, 23, 16),      // TCP_FASTOPEN
            (libc::SOL_TCP, 25, 1 << 17), // TCP_NOTSENT_LOWAT
            (libc::SOL_TCP, 36, 1),       // TCP_INQ
            (libc::SOL_TCP, 44, 60_000),  // TCP_RTO_MAX_MS
        ];
        for (level, number, value) in ints {
            sys::set(&listener, level, number, value).unwrap();
        }
        if v6 {
            for (number, value) in [
                (libc::IPV6_UNICAST_HOPS, 44i32),
                (libc::IPV6_TCLASS, 0x20),
                (libc::IPV6_RECVERR, 1),
                (libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
                (62, 1), // IPV6_DONTFRAG
                (70, 0), // IPV6_AUTOFLOWLABEL
                (73, 9), // IPV6_MINHOPCOUNT
            ] {
                sys::set(&listener, libc::SOL_IPV6, number, value).unwrap();
            }
        }
        sys::set(&listener, libc::SOL_SOCKET, libc::SO_LINGER, sys::Linger { on: 1, seconds: 9 }).unwrap();
        sys::set(&listener, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 1u64 << 33).unwrap();
        sys::set_bytes(&listener, libc::SOL_TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        sys::set_bytes(&listener, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"t0").unwrap();
        let expected = Options::read(listener.as_fd()).unwrap().of_accepted();
        let mut b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
        std::io::Write::write_all(&mut b, b"deferred until now").unwrap();
        let (a, _) = listener.accept().unwrap();
        assert_eq!(Options::read(a.as_fd()).unwrap(), expected);
    }
}

/// `shutdown(SHUT_RD)` sends nothing and is in no option.
#[test]
fn reading_shut_down_survives() {
    let mut world = World::new();
    let mut pair = connected(&world, false);
    pair.exchange();
    pair.a.shutdown(std::net::Shutdown::Read).unwrap();
    let checkpoint = capture(&world.a, &pair.a);
    assert!(connection(&checkpoint).read_shut);
    assert_eq!(connection(&checkpoint).stage, Stage::Established);
    let peer = ack_of(&world.b, &pair.b);
    world.replace_a();
    pair.a = super::states::revive(&world, &checkpoint, peer);
    assert!(!pair.to_a.read(&pair.a), "end of the stream");
    world.release(Side::A);
    world.release(Side::B);
    pair.to_b.write(&pair.a, 1000);
    pair.to_b.read_all(&pair.b);
}
