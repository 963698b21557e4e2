//! Sockets without a living connection: fresh, bound, listening, at their end.

use std::io::{Error, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use outlive_process::object::tcp::{Builder, PeerAck, State, TcpSocket};
use outlive_process::sys::tcp_repair as sys;

use super::talk::*;
use super::world::*;

fn fresh(host: &Host, family: AddressFamily) -> OwnedFd {
    host.namespace.enter(|| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap())
}

/// Through the bytes of a checkpoint to a live socket. These need nothing of a peer.
fn rebuild(host: &Host, checkpoint: &TcpSocket) -> OwnedFd {
    let checkpoint: TcpSocket = postcard::from_bytes(&postcard::to_stdvec(checkpoint).unwrap()).unwrap();
    host.namespace.enter(|| {
        let restored = Builder::new().restore(&checkpoint, PeerAck::Unknown).unwrap();
        assert!(restored.inject.is_empty());
        assert!(restored.go_live(&checkpoint).unwrap().is_empty());
        restored.fd
    })
}

#[test]
fn fresh_and_bound() {
    let mut world = World::new();
    for (family, any) in [(AddressFamily::Inet, "0.0.0.0:0"), (AddressFamily::Inet6, "[::]:0")] {
        let unbound = fresh(&world.a, family);
        let bound = fresh(&world.a, family);
        let any: SocketAddr = any.parse().unwrap();
        bind(bound.as_raw_fd(), &SockaddrStorage::from(any)).unwrap();
        let checkpoints = [capture(&world.a, &unbound), capture(&world.a, &bound)];
        assert_eq!(checkpoints[0].local.port(), 0);
        assert_ne!(checkpoints[1].local.port(), 0);
        world.replace_a();
        for checkpoint in checkpoints {
            assert!(matches!(checkpoint.state, State::Idle { .. }));
            let restored = rebuild(&world.a, &checkpoint);
            assert_eq!(capture(&world.a, &restored), checkpoint);
        }
    }
}

/// Two listeners on one port, and the connections that one of them has accepted.
#[test]
fn listeners_share_a_port() {
    let mut world = World::new();
    let listen = |port: u16| {
        let fd = fresh(&world.a, AddressFamily::Inet);
        sys::set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1i32).unwrap();
        sys::set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1i32).unwrap();
        sys::set(&fd, libc::SOL_TCP, libc::TCP_DEFER_ACCEPT, 7i32).unwrap();
        sys::set(&fd, libc::SOL_TCP, libc::TCP_MAXSEG, 1000i32).unwrap();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address(false, Side::A, port))).unwrap();
        sys::listen(&fd, 4321).unwrap();
        TcpListener::from(fd)
    };
    world.a.namespace.sysctl("net.core.somaxconn", "5000");
    let one = listen(0);
    let target = one.local_addr().unwrap();
    let other = listen(target.port());
    let mut b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
    // Deferred until there is data.
    std::io::Write::write_all(&mut b, b"x").unwrap();
    let mut a = None;
    until("the connection", || {
        for listener in [&one, &other] {
            listener.set_nonblocking(true).unwrap();
            a = a.take().or_else(|| listener.accept().ok());
        }
        a.is_some()
    });
    let (mut a, _) = a.unwrap();
    a.set_nonblocking(false).unwrap();
    a.read_exact(&mut [0]).unwrap();

    let checkpoints = [capture(&world.a, &one), capture(&world.a, &other)];
    let connection = capture(&world.a, &a);
    let State::Listening { backlog, waiting, max_segment } = checkpoints[0].state else { panic!() };
    assert_eq!((backlog, waiting, max_segment), (4321, 0, Some(1000)));
    let peer = ack_of(&world.b, &b);
    world.replace_a();
    world.a.namespace.sysctl("net.core.somaxconn", "5000");
    let listeners = checkpoints.each_ref().map(|checkpoint| rebuild(&world.a, checkpoint));
    for (listener, checkpoint) in listeners.iter().zip(&checkpoints) {
        assert_eq!(capture(&world.a, listener), *checkpoint);
    }
    let a = super::states::revive(&world, &connection, peer);
    world.release(Side::A);
    world.release(Side::B);
    Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) }.finish();
    let mut b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
    std::io::Write::write_all(&mut b, b"x").unwrap();
    until("a new connection", || listeners.iter().any(|fd| sys::info(fd).unwrap().unacked == 1));
}

/// Connections waiting for `accept` are counted: they are not part of the listener.
#[test]
fn waiting_connections_are_counted() {
    let world = World::new();
    let listener = world.a.namespace.enter(|| TcpListener::bind(address(true, Side::A, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let _b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
    until("the connection", || sys::info(&listener).unwrap().unacked == 1);
    let State::Listening { waiting, .. } = capture(&world.a, &listener).state else { panic!() };
    assert_eq!(waiting, 1);
}

/// What a program sees of a connection's end, call by call.
fn last_words(fd: OwnedFd) -> Vec<Result<Vec<u8>, Option<i32>>> {
    let mut stream = TcpStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    let mut words = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..4 {
        words.push(match stream.read(&mut buffer) {
            Ok(count) => Ok(buffer[..count].to_vec()),
            Err(error) => Err(error.raw_os_error()),
        });
    }
    // SAFETY: an empty send to a valid descriptor; no SIGPIPE.
    let sent = unsafe { libc::send(stream.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
    words.push(if sent < 0 { Err(Error::last_os_error().raw_os_error()) } else { Ok(Vec::new()) });
    words
}

/// `end` has the peer's side, to do with as it likes.
fn ends_alike(data: usize, v6: bool, end: impl FnOnce(&TcpStream, TcpStream)) {
    let mut world = World::new();
    let mut pair = connected(&world, v6);
    pair.exchange();
    assert_eq!(pair.to_a.write(&pair.b, data), data);
    until("delivery", || sys::unread(&pair.a).unwrap() as usize == data);
    let Pair { a, b, .. } = pair;
    end(&a, b);
    until("the end", || state(&a) == 7);
    let before = sys::conditions(&a, 0).unwrap();
    let checkpoint = capture(&world.a, &a);
    assert_eq!(sys::conditions(&a, 0).unwrap(), before, "capturing took the error");
    assert!(matches!(&checkpoint.state, State::Dead { receive, .. } if receive.len() == data));
    let name = local(&a);
    world.replace_a();
    let restored = rebuild(&world.a, &checkpoint);
    assert_eq!(world.count(Side::A), 0);
    assert_eq!(sys::conditions(&restored, 0).unwrap(), before);
    let restored = TcpStream::from(restored);
    assert_eq!(local(&restored), name);
    assert!(restored.peer_addr().is_err());
    assert_eq!(capture(&world.a, &restored).state, checkpoint.state);
    assert_eq!(last_words(restored.into()), last_words(a.into()));
}

fn reset(b: TcpStream) {
    sys::set(&b, libc::SOL_SOCKET, libc::SO_LINGER, sys::Linger { on: 1, seconds: 0 }).unwrap();
    drop(b);
}

#[test]
fn reset_by_the_peer_with_unread_data() {
    for (data, v6) in [(0, false), (5000, true), (40_000, false)] {
        ends_alike(data, v6, |_, b| reset(b));
    }
}

#[test]
fn ended_in_both_directions_with_unread_data() {
    for (data, v6) in [(0, true), (5000, false), (40_000, true)] {
        ends_alike(data, v6, |a, b| {
            b.shutdown(Shutdown::Write).unwrap();
            until("the FIN", || state(a) == 8);
            a.shutdown(Shutdown::Write).unwrap();
            until("the end", || state(a) == 7);
        });
    }
}

/// The program was told of the reset, and has not yet closed.
#[test]
fn reset_with_the_error_taken() {
    ends_alike(0, false, |a, b| {
        reset(b);
        until("the end", || state(a) == 7);
        let error: i32 = sys::get(a, libc::SOL_SOCKET, libc::SO_ERROR).unwrap();
        assert_eq!(error, libc::ECONNRESET);
    });
}
