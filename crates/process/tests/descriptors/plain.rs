//! Event counters, timers, signals, devices.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::eventfd::{EfdFlags, EventFd};
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::object::descriptor::{BuildContext, Capturer, ClockOffsets, Surroundings};
use outlive_process::object::file::FileHashes;
use outlive_process::object::timerfd::Reference;
use outlive_process::sys::descriptor as sys;
use outlive_process::sys::task::clock;

use crate::support::{
    Workload, alone, assert_same, build, carry, read_now, status_flags, surroundings, surroundings_ahead,
};

const SECOND: u64 = 1_000_000_000;

#[test]
fn an_event_counter_keeps_its_count_and_kind() {
    let _alone = alone();
    let plain = EventFd::from_value_and_flags(3, EfdFlags::EFD_NONBLOCK).unwrap();
    plain.write(1 << 40).unwrap();
    let semaphore = EventFd::from_value_and_flags(2, EfdFlags::EFD_SEMAPHORE).unwrap();
    let built = carry(vec![plain.into(), semaphore.into()], Path::new("/"));
    assert_ne!(status_flags(&built[0]) & libc::O_NONBLOCK, 0);
    assert_eq!(status_flags(&built[1]) & libc::O_NONBLOCK, 0);
    assert_eq!(read_now(&built[0]).unwrap(), (3u64 + (1 << 40)).to_ne_bytes());
    assert_eq!(read_now(&built[0]), Err(nix::errno::Errno::EAGAIN));
    // A semaphore gives one at a time.
    assert_eq!(read_now(&built[1]).unwrap(), 1u64.to_ne_bytes());
    assert_eq!(read_now(&built[1]).unwrap(), 1u64.to_ne_bytes());
    assert_eq!(read_now(&built[1]), Err(nix::errno::Errno::EAGAIN));
}

#[test]
fn what_has_not_changed_has_the_same_fingerprint() {
    let _alone = alone();
    let counter = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    let own = counter.as_fd().try_clone_to_owned().unwrap();
    let workload = Workload::hold(vec![counter.into()]);
    let capturer = Capturer::new(surroundings());
    let kind = workload.kind(0, &capturer.surroundings).unwrap();
    let print = || capturer.fingerprint(kind, &workload.at(0)).unwrap().unwrap();
    let before = print();
    assert_eq!(print(), before);
    nix::unistd::write(&own, &1u64.to_ne_bytes()).unwrap();
    assert_ne!(print(), before);
}

fn timer(clock: i32, flags: i32, value: u64, interval: u64) -> OwnedFd {
    let timer = sys::timer_create(clock).unwrap();
    sys::timer_set(timer.as_fd(), flags, value, interval).unwrap();
    timer
}

fn captured_timers(timers: Vec<OwnedFd>, ahead: ClockOffsets) -> BTreeMap<ObjectId, Object> {
    Workload::hold(timers).capture(&mut Capturer::new(surroundings_ahead(ahead))).unwrap()
}

#[test]
fn timers_keep_their_deadlines_by_their_clocks() {
    let _alone = alone();
    let wall = (clock(libc::CLOCK_REALTIME) as u64) + 500 * SECOND;
    let cancel = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    carry(
        vec![
            timer(libc::CLOCK_MONOTONIC, 0, 0, 0),
            timer(libc::CLOCK_MONOTONIC, 0, 100 * SECOND, 0),
            timer(libc::CLOCK_BOOTTIME, 0, 100 * SECOND, 7),
            timer(libc::CLOCK_REALTIME, 0, 100 * SECOND, 0),
            timer(libc::CLOCK_REALTIME, cancel, wall, 3 * SECOND),
        ],
        Path::new("/"),
    );
}

#[test]
fn an_absolute_timer_of_the_time_of_day_follows_that() {
    let _alone = alone();
    let deadline = clock(libc::CLOCK_REALTIME) + 500 * SECOND as i64;
    let set = timer(libc::CLOCK_REALTIME, libc::TFD_TIMER_ABSTIME, deadline as u64, 0);
    // However far the workload's other clocks are ahead.
    let ahead = ClockOffsets { monotonic: 1 << 50, boottime: 1 << 50 };
    let objects = captured_timers(vec![set], ahead);
    let Object::TimerFd(captured) = &objects[&ObjectId(0)] else { panic!("{objects:?}") };
    assert_eq!(captured.reference, Reference::Wall);
    assert!(captured.deadline.unwrap().abs_diff(deadline) < SECOND / 2);
}

#[test]
fn an_expired_timer_that_nobody_read_can_still_be_read_once() {
    let _alone = alone();
    let expired = timer(libc::CLOCK_MONOTONIC, 0, 1, 0);
    nix::poll::poll(&mut [nix::poll::PollFd::new(expired.as_fd(), nix::poll::PollFlags::POLLIN)], 1000u16)
        .unwrap();
    let built = carry(vec![expired], Path::new("/"));
    assert_eq!(read_now(&built[0]).unwrap(), 1u64.to_ne_bytes());
    assert_eq!(read_now(&built[0]), Err(nix::errno::Errno::EAGAIN));
}

#[test]
fn periods_missed_between_capture_and_building_are_counted() {
    let _alone = alone();
    let hour = 3600 * SECOND;
    let objects = captured_timers(vec![timer(libc::CLOCK_MONOTONIC, 0, hour, hour)], ClockOffsets::default());
    // The workload's clock is ten and a half hours further where it is built.
    let ahead = ClockOffsets { monotonic: (10 * hour + hour / 2) as i64, boottime: 0 };
    let surroundings = surroundings_ahead(ahead);
    let built = build(&objects, Path::new("/"), &surroundings).unwrap();
    assert_eq!(read_now(&built[0]).unwrap(), 10u64.to_ne_bytes());
    let again = captured_timers(built, ahead);
    let deadline = |objects: &BTreeMap<ObjectId, Object>| match &objects[&ObjectId(0)] {
        Object::TimerFd(timer) => timer.deadline.unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(deadline(&again).abs_diff(deadline(&objects) + 10 * hour as i64) < SECOND / 2);
}

#[test]
fn a_timer_overdue_when_built_expires_at_once() {
    let _alone = alone();
    let objects =
        captured_timers(vec![timer(libc::CLOCK_MONOTONIC, 0, 100 * SECOND, 0)], ClockOffsets::default());
    let surroundings = surroundings_ahead(ClockOffsets { monotonic: 1000 * SECOND as i64, boottime: 0 });
    let built = build(&objects, Path::new("/"), &surroundings).unwrap();
    let mut wait = [nix::poll::PollFd::new(built[0].as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut wait, 10_000u16).unwrap(), 1);
}

#[test]
fn a_running_timer_looked_at_twice_is_the_same() {
    let _alone = alone();
    let workload = Workload::hold(vec![timer(libc::CLOCK_MONOTONIC, 0, 100 * SECOND, SECOND)]);
    let mut capturer = Capturer::new(surroundings());
    let first = workload.capture(&mut capturer).unwrap();
    assert_same(&workload.capture(&mut capturer).unwrap(), &first);
    // And moved is not the same.
    let own = workload.at(0).duplicate().unwrap();
    sys::timer_set(own.as_fd(), 0, 101 * SECOND, SECOND).unwrap();
    let moved = workload.capture(&mut capturer).unwrap();
    assert!(!moved[&ObjectId(0)].same_as(&first[&ObjectId(0)]));
}

#[test]
fn signals_to_be_read_are_kept() {
    let _alone = alone();
    let mask = 1u64 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGCHLD - 1);
    carry(vec![sys::signal_descriptor(mask).unwrap()], Path::new("/"));
}

#[test]
fn devices_are_opened_again() {
    let _alone = alone();
    let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let built = carry(vec![null.into(), open("/dev/zero"), open("/dev/urandom")], Path::new("/"));
    assert_eq!(read_now(&built[0]).unwrap(), []);
    assert!(read_now(&built[1]).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(status_flags(&built[0]) & libc::O_ACCMODE, libc::O_RDWR);
}

#[test]
fn standard_streams_go_to_the_pipes_of_the_supervisor_that_builds() {
    let _alone = alone();
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let ((_old_reader, old), (new_reader, new)) = (pipe(), pipe());
    let surroundings =
        Surroundings { outputs: [None, Some(nix::sys::stat::fstat(&old).unwrap().st_ino)], ..surroundings() };
    sys::set_status_flags(old.as_fd(), libc::O_APPEND).unwrap();
    let mut capturer = Capturer::new(surroundings);
    let objects = Workload::hold(vec![old]).capture(&mut capturer).unwrap();
    assert!(matches!(&objects[&ObjectId(0)], Object::Output(output) if output.stream == 2));
    let find = |id: ObjectId| objects.get(&id);
    let mut hashes = FileHashes::new();
    let root = Path::new("/").to_owned();
    let mut context = BuildContext::new(root, &capturer.surroundings, [None, Some(new)], &find, &mut hashes);
    let built = context.build(ObjectId(0)).unwrap().try_clone_to_owned().unwrap();
    drop(context);
    assert_eq!(status_flags(&built) & !0o100000, libc::O_WRONLY | libc::O_APPEND);
    nix::unistd::write(&built, b"line").unwrap();
    assert_eq!(read_now(&new_reader).unwrap(), b"line");
}
