//! What cannot be rebuilt is refused by name (R3), and the socket left alone.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socket};
use outlive_process::object::tcp::{Capturer, Error, Refused, fingerprint};
use outlive_process::sys::tcp_repair as sys;

use super::talk::*;
use super::world::*;

fn refused(host: &Host, fd: impl AsFd + Sync) -> Refused {
    let before = fingerprint(fd.as_fd()).unwrap();
    let result = host.namespace.enter(|| Capturer::new().capture(fd.as_fd(), None).map(drop));
    assert_eq!(fingerprint(fd.as_fd()).unwrap(), before);
    match result {
        Err(Error::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

fn accepted(host: &Host, fd: impl AsFd + Sync) {
    host.namespace.enter(|| Capturer::new().capture(fd.as_fd(), None).map(drop)).unwrap();
}

#[test]
fn r3_by_option() {
    let world = World::new();
    let refusals = [
        (libc::SOL_SOCKET, 60, 1, 0, Refused::ZeroCopy),
        (libc::SOL_SOCKET, 37, 2, 0, Refused::Timestamping), // SOF_TIMESTAMPING_TX_SOFTWARE
        (libc::SOL_SOCKET, 65, 8, 0, Refused::Timestamping), // SOF_TIMESTAMPING_RX_SOFTWARE
        (libc::SOL_TCP, 27, 1, 0, Refused::SaveSyn),
        (libc::SOL_TCP, 30, 1, 0, Refused::FastOpen),
    ];
    for (level, number, on, off, expected) in refusals {
        let fd = world
            .a
            .namespace
            .enter(|| socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
        if expected == Refused::FastOpen {
            world.a.namespace.sysctl("net.ipv4.tcp_fastopen", "1");
        }
        sys::set(&fd, level, number, on).unwrap();
        assert_eq!(refused(&world.a, &fd), expected);
        sys::set(&fd, level, number, off).unwrap();
        accepted(&world.a, &fd);
    }
}

#[test]
fn r3_other_protocols() {
    let world = World::new();
    world.a.namespace.sysctl("net.mptcp.enabled", "1");
    let multipath = world.a.namespace.enter(|| {
        // SAFETY: takes no pointer; 262 is IPPROTO_MPTCP.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 262) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: just made, and owned by no one else.
        unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }
    });
    let result = world.a.namespace.enter(|| Capturer::new().capture(multipath.as_fd(), None).map(drop));
    assert!(matches!(result, Err(Error::Refused(Refused::Multipath))), "{result:?}");
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let result = Capturer::new().capture(udp.as_fd(), None).map(drop);
    assert!(matches!(result, Err(Error::Refused(Refused::NotTcp))), "{result:?}");
}

#[test]
fn a_classic_filter_is_read() {
    let world = World::new();
    let pair = connected(&world, false);
    // One instruction: take the whole packet (`struct sock_filter`, BPF_RET | BPF_K).
    let program = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
    let filter = libc::sock_fprog { len: 1, filter: (&raw const program).cast_mut() };
    // SAFETY: the program and its instruction are alive, and the kernel only reads them.
    let set = unsafe {
        libc::setsockopt(
            pair.a.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    assert_eq!(set, 0);
    accepted(&world.a, &pair.a);
    sys::set(&pair.a, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0i32).unwrap();
    accepted(&world.a, &pair.a);
}

#[test]
fn r3_md5() {
    let world = World::new();
    let pair = connected(&world, false);
    // struct tcp_md5sig: address, flags, prefix, key length, index, key.
    let mut bytes = [0u8; 216];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&[10, 99, 0, 2]);
    bytes[130..132].copy_from_slice(&3u16.to_ne_bytes());
    bytes[136..139].copy_from_slice(b"key");
    sys::set_bytes(&pair.a, libc::SOL_TCP, 14, &bytes).unwrap();
    assert_eq!(refused(&world.a, &pair.a), Refused::Md5);
}

#[test]
fn r3_ecn() {
    let world = World::new();
    world.a.namespace.sysctl("net.ipv4.tcp_ecn", "1");
    world.b.namespace.sysctl("net.ipv4.tcp_ecn", "1");
    let pair = connected(&world, true);
    assert_eq!(refused(&world.a, &pair.a), Refused::Ecn);
}

#[test]
fn r3_urgent_data() {
    let world = World::new();
    for inline in [0i32, 1] {
        let mut pair = connected(&world, false);
        pair.exchange();
        sys::set(&pair.a, libc::SOL_SOCKET, libc::SO_OOBINLINE, inline).unwrap();
        let send = |bytes: &[u8], flags| nix::sys::socket::send(pair.b.as_raw_fd(), bytes, flags).unwrap();
        send(b"abc", MsgFlags::empty());
        send(b"!", MsgFlags::MSG_OOB);
        send(b"def", MsgFlags::empty());
        until("urgent data", || sys::conditions(&pair.a, 0).unwrap() & libc::POLLPRI != 0);
        until("all of it", || sys::unacknowledged(&pair.b).unwrap() == 0);
        assert_eq!(refused(&world.a, &pair.a), Refused::Urgent);
        if inline == 0 {
            // Read, it leaves a hole before "def".
            let mut byte = [0];
            nix::sys::socket::recv(pair.a.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB).unwrap();
            assert_eq!(&byte, b"!");
            assert_eq!(sys::conditions(&pair.a, 0).unwrap() & libc::POLLPRI, 0);
            assert_eq!(refused(&world.a, &pair.a), Refused::Urgent);
        }
        let mut text = Vec::new();
        until("past the mark", || {
            let mut buffer = [0; 16];
            let count = nix::sys::socket::recv(pair.a.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
            text.extend_from_slice(&buffer[..count.unwrap_or(0)]);
            text.ends_with(b"def")
        });
        accepted(&world.a, &pair.a);
    }
}

/// Another namespace's `sock_diag` would say nothing of MD5 keys: not silently.
#[test]
fn r3_capture_from_outside_is_an_error() {
    let world = World::new();
    let pair = connected(&world, false);
    let result = world.b.namespace.enter(|| Capturer::new().capture(pair.a.as_fd(), None).map(drop));
    assert!(matches!(result, Err(Error::Elsewhere { .. })), "{result:?}");
}

/// A connection made with data in its SYN.
#[test]
fn r3_fast_open_in_progress() {
    let world = World::new();
    let listener = world.b.namespace.enter(|| TcpListener::bind(address(false, Side::B, 0)).unwrap());
    world.a.namespace.sysctl("net.ipv4.tcp_fastopen", "5"); // client, and without a cookie
    world.set(Side::A, Mode::Hold);
    let a = world.a.namespace.enter(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let target = nix::sys::socket::SockaddrStorage::from(listener.local_addr().unwrap());
        let sent = nix::sys::socket::sendto(
            fd.as_raw_fd(),
            b"early",
            &target,
            MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
        );
        assert_eq!(sent, Ok(5));
        TcpStream::from(fd)
    });
    assert_eq!(state(&a), 2);
    assert_eq!(refused(&world.a, &a), Refused::FastOpen);
}
