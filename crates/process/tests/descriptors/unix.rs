//! Unix sockets.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::object::descriptor::Capturer;
use outlive_process::sys::descriptor as sys;

use crate::support::{
    Workload, alone, assert_refused, assert_same, build, carry, read_now, status_flags, surroundings,
};

fn pair(kind: i32) -> (OwnedFd, OwnedFd) {
    sys::unix_pair(kind).unwrap()
}

fn put(fd: &OwnedFd, bytes: &[u8]) {
    assert_eq!(sys::send(fd.as_fd(), bytes, None, &sys::Attached::default()).unwrap(), bytes.len());
}

/// A name that nobody else has.
fn unique(what: &str) -> String {
    format!("outlive-{what}-{}", std::process::id())
}

/// Another host: a root that has an empty copy of a directory of ours.
fn other_host(directory: &Path) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let copy = root.path().join(directory.strip_prefix("/").unwrap());
    fs::create_dir_all(&copy).unwrap();
    (root, copy)
}

#[test]
fn a_stream_pair_keeps_what_waits_in_both_directions() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_STREAM);
    let long: Vec<u8> = (0..150_000u32).map(|n| (n % 241) as u8).collect();
    put(&a, &long);
    put(&b, b"back");
    sys::set_status_flags(b.as_fd(), libc::O_NONBLOCK).unwrap();
    sys::set_socket_option(a.as_fd(), libc::SO_SNDBUF, 300_000 / 2).unwrap();
    let built = carry(vec![a, b], Path::new("/"));
    assert_ne!(status_flags(&built[1]) & libc::O_NONBLOCK, 0);
    assert_eq!(status_flags(&built[0]) & libc::O_NONBLOCK, 0);
    assert_eq!(read_now(&built[1]).unwrap(), long);
    assert_eq!(read_now(&built[0]).unwrap(), b"back");
    assert_eq!(read_now(&built[0]), Err(Errno::EAGAIN));
    put(&built[0], b"still connected");
    assert_eq!(read_now(&built[1]).unwrap(), b"still connected");
}

#[test]
fn messages_keep_their_boundaries() {
    let _alone = alone();
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let (a, b) = pair(kind);
        put(&a, b"one");
        put(&a, &[2; 50_000]);
        put(&a, b"three");
        let built = carry(vec![a, b], Path::new("/"));
        assert_eq!(read_now(&built[1]).unwrap(), b"one");
        assert_eq!(read_now(&built[1]).unwrap(), [2; 50_000]);
        assert_eq!(read_now(&built[1]).unwrap(), b"three");
        assert_eq!(read_now(&built[1]), Err(Errno::EAGAIN));
    }
}

#[test]
fn after_the_peer_is_gone_what_it_said_is_followed_by_the_end() {
    let _alone = alone();
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
        let (a, b) = pair(kind);
        put(&b, b"bye");
        drop(b);
        let built = carry(vec![a], Path::new("/"));
        assert_eq!(read_now(&built[0]).unwrap(), b"bye");
        assert_eq!(read_now(&built[0]).unwrap(), b"");
        assert_eq!(
            sys::send(built[0].as_fd(), b"x", None, &sys::Attached::default()).unwrap_err().raw_os_error(),
            Some(libc::EPIPE)
        );
    }
}

#[test]
fn a_reset_that_waits_is_not_taken_and_waits_again() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_STREAM);
    put(&a, b"never read");
    drop(b);
    let built = carry(vec![a], Path::new("/"));
    assert_eq!(read_now(&built[0]), Err(Errno::ECONNRESET));
    assert_eq!(read_now(&built[0]).unwrap(), b"");
}

#[test]
fn what_is_shut_down_stays_shut_down() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_STREAM);
    put(&a, b"the last");
    sys::shutdown(a.as_fd(), libc::SHUT_WR).unwrap();
    let built = carry(vec![a, b], Path::new("/"));
    assert_eq!(read_now(&built[1]).unwrap(), b"the last");
    assert_eq!(read_now(&built[1]).unwrap(), b"");
    put(&built[1], b"the other way is open");
    assert_eq!(read_now(&built[0]).unwrap(), b"the other way is open");
}

#[test]
fn the_program_s_own_peek_offset_is_left_alone() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_STREAM);
    put(&b, b"0123456789");
    sys::set_socket_option(a.as_fd(), libc::SO_PEEK_OFF, 4).unwrap();
    let built = carry(vec![a, b], Path::new("/"));
    assert_eq!(sys::peek(built[0].as_fd(), 2).unwrap().unwrap().bytes, b"45");
}

#[test]
fn a_listener_and_its_connections_keep_their_path() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    put(&server.as_fd().try_clone_to_owned().unwrap(), b"hello");
    let (root, copy) = other_host(directory.path());
    // In every order, for each is built when its turn comes.
    let orders: [[usize; 3]; 3] = [[0, 1, 2], [1, 2, 0], [2, 0, 1]];
    for order in orders {
        let held = [listener.as_fd(), client.as_fd(), server.as_fd()];
        let held = order.iter().map(|index| held[*index].try_clone_to_owned().unwrap()).collect();
        let built = carry(held, root.path());
        let find = |which: usize| {
            built[order.iter().position(|index| *index == which).unwrap()].try_clone().unwrap()
        };
        let (listener, client, server) =
            (UnixListener::from(find(0)), UnixStream::from(find(1)), UnixStream::from(find(2)));
        assert_eq!(read_now(&client.as_fd().try_clone_to_owned().unwrap()).unwrap(), b"hello");
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert_eq!(server.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert!(server.peer_addr().unwrap().is_unnamed());
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        let node = fs::metadata(copy.join("server")).unwrap();
        assert!(node.file_type().is_socket());
        assert_eq!(node.permissions().mode() & 0o777, 0o640);
        // New connections find it.
        let _new = UnixStream::connect(copy.join("server")).unwrap();
        listener.accept().unwrap();
        assert_eq!(fs::read_dir(&copy).unwrap().count(), 1, "nothing is left over");
        drop(built);
    }
}

#[test]
fn a_connection_outlives_its_listener_and_the_listener_s_path() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(listener);
    fs::remove_file(&path).unwrap();
    // The path is something else by now.
    fs::write(&path, "a file").unwrap();
    let built = carry(vec![OwnedFd::from(client), server.into()], Path::new("/"));
    assert_eq!(fs::read(&path).unwrap(), b"a file");
    let client = UnixStream::from(built.into_iter().next().unwrap());
    assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
}

#[test]
fn abstract_names_are_kept() {
    let _alone = alone();
    let name = SocketAddr::from_abstract_name(unique("abstract")).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    let client = UnixStream::connect_addr(&name).unwrap();
    let (server, _) = listener.accept().unwrap();
    let built = carry(vec![listener.into(), client.into(), server.into()], Path::new("/"));
    let new = UnixStream::connect_addr(&name).unwrap();
    let mut built = built.into_iter();
    let listener = UnixListener::from(built.next().unwrap());
    listener.accept().unwrap();
    drop(new);
    let client = UnixStream::from(built.next().unwrap());
    assert_eq!(client.peer_addr().unwrap().as_abstract_name(), name.as_abstract_name());
}

#[test]
fn a_connection_by_an_abstract_name_is_built_before_and_after_its_listener() {
    let _alone = alone();
    let name = SocketAddr::from_abstract_name(unique("order")).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    let client = UnixStream::connect_addr(&name).unwrap();
    let (server, _) = listener.accept().unwrap();
    let built = carry(vec![client.into(), server.into(), listener.into()], Path::new("/"));
    put(&built[0], b"x");
    assert_eq!(read_now(&built[1]).unwrap(), b"x");
}

#[test]
fn a_datagram_server_keeps_what_it_was_sent_and_its_clients() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path().join("log");
    let server = UnixDatagram::bind(&path).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.connect(&path).unwrap();
    client.send(b"one").unwrap();
    client.send(b"two").unwrap();
    // The client first: its server is built for it.
    let built = carry(vec![client.into(), server.into()], Path::new("/"));
    let client = UnixDatagram::from(built[0].try_clone().unwrap());
    client.send(b"three").unwrap();
    for expected in [&b"one"[..], b"two", b"three"] {
        assert_eq!(read_now(&built[1]).unwrap(), expected);
    }
}

#[test]
fn named_datagram_sockets_connected_to_each_other_are_kept() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let (a, b) = (UnixDatagram::bind(&one).unwrap(), UnixDatagram::bind(&two).unwrap());
    a.connect(&two).unwrap();
    b.connect(&one).unwrap();
    a.send(b"hello").unwrap();
    let built = carry(vec![a.into(), b.into()], Path::new("/"));
    let b = UnixDatagram::from(built[1].try_clone().unwrap());
    let mut buffer = [0; 10];
    let (len, from) = b.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from.as_pathname()), (&b"hello"[..], Some(one.as_path())));
}

#[test]
fn r3_descriptors_in_flight_are_refused() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_STREAM);
    let rights = [a.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None).unwrap();
    assert_refused(vec![a, b], "in flight");
}

#[test]
fn connections_not_accepted_wait_in_their_order() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path().join("server");
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let clients: Vec<OwnedFd> = (0..3).map(|_| UnixStream::connect(&path).unwrap().into()).collect();
    let [first, second, third] = clients.try_into().unwrap();
    // Whichever is met first.
    let built = carry(vec![second, listener, first, third], Path::new("/"));
    let listener = UnixListener::from(built[1].try_clone().unwrap());
    for (client, word) in [(2, b"1"), (0, b"2"), (3, b"3")] {
        let accepted = OwnedFd::from(listener.accept().unwrap().0);
        put(&built[client], word);
        assert_eq!(read_now(&accepted).unwrap(), word);
    }
}

#[test]
fn r3_connections_not_accepted_are_refused() {
    let _alone = alone();
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let client = OwnedFd::from(client);
    assert_refused(vec![listener.as_fd().try_clone_to_owned().unwrap()], "not accepted");
    assert_refused(vec![client], "not accepted");
}

#[test]
fn r3_a_peer_outside_is_refused() {
    let _alone = alone();
    let (a, _outside) = pair(libc::SOCK_STREAM);
    assert_refused(vec![a], "other end");
}

#[test]
fn r3_an_empty_message_is_refused_until_it_is_read_though_it_is_seen_once() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_DGRAM);
    put(&b, b"");
    let own = a.try_clone().unwrap();
    let workload = Workload::hold(vec![a, b]);
    let mut capturer = Capturer::new(surroundings());
    for _ in 0..2 {
        assert!(workload.capture(&mut capturer).unwrap_err().to_string().contains("empty message"));
    }
    assert_eq!(read_now(&own).unwrap(), b"");
    workload.capture(&mut capturer).unwrap();
}

#[test]
fn r3_an_error_that_waits_for_messages_is_refused_and_not_taken() {
    let _alone = alone();
    let (a, b) = pair(libc::SOCK_SEQPACKET);
    put(&a, b"never read");
    drop(b);
    let own = a.try_clone().unwrap();
    assert_refused(vec![a], "error");
    assert_eq!(read_now(&own), Err(Errno::ECONNRESET));
}

#[test]
fn a_socket_of_its_own_is_kept() {
    let _alone = alone();
    let objects = {
        let workload = Workload::hold(vec![sys::unix_socket(libc::SOCK_STREAM).unwrap()]);
        workload.capture(&mut Capturer::new(surroundings())).unwrap()
    };
    assert!(matches!(objects[&ObjectId(0)], Object::Unix(_)));
    let built = Workload::hold(build(&objects, Path::new("/"), &surroundings()).unwrap());
    assert_same(&built.capture(&mut Capturer::new(surroundings())).unwrap(), &objects);
}
