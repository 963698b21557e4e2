//! Pipes: content, capacity, and what is at their end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read, write};
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::object::descriptor::Capturer;
use outlive_process::object::pipe::Content;

use crate::support::{CONTENTS, Workload, alone, carry, read_now, status_flags, surroundings};

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe2(OFlag::O_CLOEXEC).unwrap()
}

#[test]
fn what_is_in_a_pipe_is_copied_and_not_taken() {
    let _alone = alone();
    let (reader, writer) = pipe();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(32 * 4096)).unwrap();
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(write(&writer, &data).unwrap(), data.len());
    // Half-read buffers.
    read(&reader, &mut [0; 1234]).unwrap();
    let built = carry(vec![reader, writer], Path::new("/"));
    assert_eq!(fcntl(&built[0], FcntlArg::F_GETPIPE_SZ).unwrap(), 32 * 4096);
    assert_eq!(read_now(&built[0]).unwrap(), data[1234..]);
    // A writer is there, so that this is no end of file.
    assert_eq!(read_now(&built[0]), Err(Errno::EAGAIN));
    write(&built[1], b"on").unwrap();
    assert_eq!(read_now(&built[0]).unwrap(), b"on");
}

#[test]
fn a_full_pipe_is_full_again() {
    let _alone = alone();
    let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    while write(&writer, &[7; 4096]).is_ok() {}
    let built = carry(vec![reader, writer], Path::new("/"));
    assert_eq!(write(&built[1], b"x"), Err(Errno::EAGAIN));
    assert_eq!(read_now(&built[0]).unwrap(), vec![7; 16 * 4096]);
}

#[test]
fn without_a_writer_the_content_is_followed_by_the_end() {
    let _alone = alone();
    let (reader, writer) = pipe();
    write(&writer, b"last words").unwrap();
    drop(writer);
    let built = carry(vec![reader], Path::new("/"));
    assert_eq!(read_now(&built[0]).unwrap(), b"last words");
    assert_eq!(read_now(&built[0]).unwrap(), b"");
}

#[test]
fn without_a_reader_the_pipe_is_broken() {
    let _alone = alone();
    let (reader, writer) = pipe();
    write(&writer, b"nobody reads this").unwrap();
    drop(reader);
    let built = carry(vec![writer], Path::new("/"));
    assert_eq!(write(&built[0], b"x"), Err(Errno::EPIPE));
}

#[test]
fn packets_stay_packets() {
    let _alone = alone();
    for packets in [&[&b"one"[..], b"two!", b"3"][..], &[b"alone"]] {
        let (reader, writer) = pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
        for packet in packets {
            write(&writer, packet).unwrap();
        }
        let built = carry(vec![reader, writer], Path::new("/"));
        assert_ne!(status_flags(&built[1]) & libc::O_DIRECT, 0);
        // Reading a part drops the rest of a packet.
        let mut part = [0; 2];
        assert_eq!(read(&built[0], &mut part).unwrap(), 2);
        assert_eq!(part, packets[0][..2]);
        for packet in &packets[1..] {
            assert_eq!(read_now(&built[0]).unwrap(), *packet);
        }
        assert_eq!(read_now(&built[0]), Err(Errno::EAGAIN));
    }
}

#[test]
fn one_packet_is_told_from_a_stream() {
    let _alone = alone();
    let (reader, writer) = pipe();
    write(&writer, b"stream").unwrap();
    let workload = Workload::hold(vec![reader, writer]);
    let captured = workload.capture(&mut Capturer::new(surroundings())).unwrap();
    let Object::Pipe(pipe) = &captured[&ObjectId(CONTENTS)] else { panic!("{captured:?}") };
    assert_eq!(pipe.content, Content::Stream(b"stream".to_vec()));
}

#[test]
fn descriptions_of_one_end_have_flags_of_their_own() {
    let _alone = alone();
    let (reader, writer) = pipe();
    let other =
        outlive_process::sys::descriptor::reopen(writer.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK).unwrap();
    let built = carry(vec![reader, writer, other], Path::new("/"));
    assert_eq!(status_flags(&built[1]) & libc::O_NONBLOCK, 0);
    assert_ne!(status_flags(&built[2]) & libc::O_NONBLOCK, 0);
}
