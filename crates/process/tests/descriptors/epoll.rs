//! Epoll instances, whose entries are added by the process that owns them.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::unistd::{pipe2, write};
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::object::descriptor::Capturer;
use outlive_process::object::epoll::{Epoll, Interest, disarm, quieten, restore_disarmed, restore_interests};
use outlive_process::sys::descriptor as sys;
use outlive_process::sys::proc;
use outlive_process::sys::ptrace;
use outlive_process::sys::remote::{Batch, Remote, find_syscall_instruction};

use crate::support::{FIRST, NAME, Workload, alone, build, surroundings};

const IN: u32 = libc::EPOLLIN as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;

fn add(epoll: &OwnedFd, fd: i32, events: u32, data: u64) {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one event, live for the duration of the call.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn entries(workload: &Workload) -> Epoll {
    let captured = workload.capture(&mut Capturer::new(surroundings())).unwrap();
    match &captured[&ObjectId(0)] {
        Object::Epoll(epoll) => epoll.clone(),
        other => panic!("{other:?}"),
    }
}

/// Numbers under which a program's descriptors will be, at the place of ours.
fn move_to(fd: OwnedFd, number: i32) -> OwnedFd {
    // SAFETY: two numbers; the tests of this program use these one at a time.
    let moved = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    assert_eq!(moved, number);
    // SAFETY: just made, by us.
    unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(moved) }
}

/// An instance at `FIRST` that watches a pipe, a unix pair and a counter, all under the numbers they will have in a
/// workload; one entry is one-shot and has fired, and so has another whose descriptor is not ready any more.
fn watching() -> Vec<OwnedFd> {
    let epoll = sys::epoll_create().unwrap();
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let (a, b) = sys::unix_pair(libc::SOCK_STREAM).unwrap();
    let (empty, filler) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut held = Vec::new();
    for (index, fd) in [epoll, reader, writer, a, b, empty, filler].into_iter().enumerate() {
        held.push(move_to(fd, FIRST + index as i32));
    }
    let epoll = &held[0];
    add(epoll, FIRST + 4, IN | ONE_SHOT, 44);
    add(epoll, FIRST + 5, IN | ONE_SHOT, 55);
    sys::send(held[3].as_fd(), b"x", None, &sys::Attached::default()).unwrap();
    write(&held[6], b"x").unwrap();
    assert_eq!(sys::epoll_take(epoll.as_fd(), 10).unwrap().len(), 2);
    nix::unistd::read(&held[5], &mut [0]).unwrap();
    add(epoll, FIRST + 1, IN | libc::EPOLLET as u32, 0xdead_beef_0000_0001);
    add(epoll, FIRST + 3, IN | libc::EPOLLOUT as u32 | libc::EPOLLRDHUP as u32, u64::MAX);
    held
}

#[test]
fn entries_are_captured_with_events_and_data() {
    let _alone = alone();
    let workload = Workload::hold(watching());
    let epoll = entries(&workload);
    assert_eq!(epoll.process, NAME);
    let find = |fd| *epoll.interests.iter().find(|interest| interest.fd == fd).unwrap();
    assert_eq!(epoll.interests.len(), 4);
    assert!(find(FIRST + 4).is_disarmed() && find(FIRST + 5).is_disarmed());
    assert_eq!(find(FIRST + 1).data, 0xdead_beef_0000_0001);
    assert_ne!(find(FIRST + 1).events & libc::EPOLLET as u32, 0);
    assert_eq!(find(FIRST + 3).data, u64::MAX);
}

/// Executes batches in a process that is stopped.
fn run(workload: &Workload, batches: &mut dyn FnMut(&mut Remote<'_>)) {
    let tid = workload.pid.as_raw();
    ptrace::seize(tid).unwrap();
    ptrace::interrupt(tid).unwrap();
    ptrace::wait_for(tid, true).unwrap();
    let memory = proc::open_memory(tid).unwrap();
    let mut maps = String::new();
    proc::open(tid, "maps").unwrap().read_to_string(&mut maps).unwrap();
    let maps = proc::parse_maps(&maps).unwrap();
    let vdso = maps.iter().find(|line| line.path == "[vdso]").unwrap();
    let code = read_at(&memory, vdso.start, (vdso.end - vdso.start) as usize);
    let instruction = vdso.start + find_syscall_instruction(&code).unwrap() as u64;
    let mut remote = Remote::begin(tid, &memory).unwrap();
    remote.install_workspace(instruction).unwrap();
    batches(&mut remote);
    remote.end().unwrap();
    ptrace::resume(tid, 0).unwrap();
}

fn read_at(memory: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::os::unix::fs::FileExt::read_exact_at(memory, &mut bytes, at).unwrap();
    bytes
}

#[test]
fn entries_are_restored_by_their_owner_and_disarmed_ones_stay_silent() {
    let _alone = alone();
    let first = Workload::hold(watching());
    let captured = first.capture(&mut Capturer::new(surroundings())).unwrap();
    let before = entries(&first);
    drop(first);
    let built = build(&captured, std::path::Path::new("/"), &surroundings()).unwrap();
    let own = built[0].try_clone().unwrap();
    let second = Workload::hold(built);
    run(&second, &mut |remote| {
        let mut batch = Batch::new();
        assert_eq!(restore_disarmed(&mut batch, FIRST, &before.interests, 0), 4);
        remote.run_all(&mut batch).unwrap();
        let rest = disarm(own.as_fd(), &before.interests).unwrap();
        assert_eq!(rest.iter().map(|interest| interest.fd).collect::<Vec<_>>(), [FIRST + 5]);
        let mut batch = Batch::new();
        assert_eq!(quieten(&mut batch, FIRST, &rest), 1);
        assert_eq!(restore_interests(&mut batch, FIRST, &before.interests), 4);
        remote.run_all(&mut batch).unwrap();
    });
    let sorted = |epoll: Epoll| {
        let mut interests = epoll.interests;
        interests.sort_by_key(|interest| interest.fd);
        interests
    };
    let after = sorted(entries(&second));
    for (now, then) in after.iter().zip(sorted(before)) {
        if then.fd == FIRST + 4 {
            // While it is disarmed nobody sees its data.
            assert!(now.is_disarmed());
        } else if then.fd == FIRST + 5 {
            assert_eq!(now.events & !((libc::EPOLLERR | libc::EPOLLHUP) as u32), then.events);
        } else {
            assert_eq!(*now, then);
        }
    }
    // What is ready is the socket that can be written to, and not the one that has something to read.
    assert_eq!(sys::epoll_take(own.as_fd(), 10).unwrap(), [u64::MAX]);
    let writer = second.at(2).duplicate().unwrap();
    write(&writer, b"x").unwrap();
    assert!(sys::epoll_take(own.as_fd(), 10).unwrap().contains(&0xdead_beef_0000_0001));
}

#[test]
fn what_was_closed_under_its_number_is_found_where_it_lives_on() {
    let _alone = alone();
    // A pipe's two ends have one inode; that another end is under the number must not pass.
    let mut held = watching();
    let kept = held[1].try_clone().unwrap();
    let writer = held[2].try_clone().unwrap();
    held[1] = move_to(writer, FIRST + 50);
    held.push(kept);
    let last = ObjectId(held.len() as u64 - 1);
    let epoll = entries(&Workload::hold(held));
    let found: Vec<(i32, ObjectId)> = epoll.elsewhere.iter().map(|(entry, id)| (entry.fd, *id)).collect();
    assert_eq!(found, [(FIRST + 1, last)]);
    assert_eq!(epoll.interests.len(), 3);
}

#[test]
fn a_batch_takes_as_many_entries_as_fit() {
    let interests: Vec<Interest> = (0..3000).map(|fd| Interest { fd, events: IN, data: 0 }).collect();
    let (mut done, mut rounds) = (0, 0);
    while done < interests.len() {
        let more = restore_interests(&mut Batch::new(), 1, &interests[done..]);
        assert!(more > 0);
        (done, rounds) = (done + more, rounds + 1);
    }
    assert!(rounds > 1 && rounds < 10);
}
