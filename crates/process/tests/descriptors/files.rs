//! Files and directories.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::error::Error;
use outlive_process::object::descriptor::{Capturer, Surroundings};
use outlive_process::object::file::LockOwner;
use outlive_process::sys::descriptor as sys;

use crate::support::{
    FIRST, NAME, Workload, alone, assert_refused, assert_same, build, carry, status_flags, surroundings,
};

fn scratch_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}

/// Nothing is scratch, so that a file there is one of the host's own.
fn nothing_kept() -> Surroundings {
    Surroundings::default()
}

#[test]
fn a_scratch_file_is_open_where_and_how_it_was() {
    let _alone = alone();
    let directory = scratch_dir();
    let path = directory.path().join("log");
    let mut log = OpenOptions::new().create(true).append(true).read(true).open(&path).unwrap();
    log.write_all(b"0123456789").unwrap();
    log.seek(SeekFrom::Start(4)).unwrap();
    let path_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
    let built = carry(vec![log.into(), path_only.into()], Path::new("/"));
    assert_ne!(status_flags(&built[1]) & libc::O_PATH, 0);
    let mut log = File::from(built.into_iter().next().unwrap());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "456789");
    log.seek(SeekFrom::Start(0)).unwrap();
    log.write_all(b"!").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123456789!", "it was opened for appending");
}

#[test]
fn a_removed_file_travels_with_its_content_and_stays_one_file() {
    let _alone = alone();
    let directory = scratch_dir();
    let path = directory.path().join("gone");
    let mut writing =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    writing.write_all(b"nobody can name me").unwrap();
    let reading = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let workload = Workload::hold(vec![writing.into(), reading.into()]);
    let captured = workload.capture(&mut Capturer::new(surroundings())).unwrap();
    drop(workload);
    let mut built = build(&captured, Path::new("/"), &surroundings()).unwrap().into_iter().map(File::from);
    let (mut writing, mut reading) = (built.next().unwrap(), built.next().unwrap());
    let mut text = String::new();
    reading.read_to_string(&mut text).unwrap();
    assert_eq!(text, "nobody can name me");
    writing.write_all(b", still").unwrap();
    text.clear();
    reading.read_to_string(&mut text).unwrap();
    assert_eq!(text, ", still");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_content_of_a_removed_file_shows_in_its_fingerprint() {
    let _alone = alone();
    let directory = scratch_dir();
    let path = directory.path().join("gone");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let mut own = file.try_clone().unwrap();
    own.write_all(b"12345").unwrap();
    own.seek(SeekFrom::Start(0)).unwrap();
    let workload = Workload::hold(vec![file.into()]);
    let capturer = Capturer::new(surroundings());
    let kind = workload.kind(0, &capturer.surroundings).unwrap();
    let print = || capturer.fingerprint(kind, &workload.at(0)).unwrap().unwrap();
    let before = print();
    assert_eq!(print(), before);
    std::os::unix::fs::FileExt::write_all_at(&own, b"54321", 0).unwrap();
    assert_ne!(print(), before);
}

#[test]
fn a_file_of_the_host_must_be_the_same_on_the_other() {
    let _alone = alone();
    let (here, there) = (scratch_dir(), scratch_dir());
    let file = here.path().join("library");
    fs::write(&file, "version 1").unwrap();
    let workload = Workload::hold(vec![File::open(&file).unwrap().into()]);
    let captured = workload.capture(&mut Capturer::new(nothing_kept())).unwrap();
    let copy = there.path().join(file.strip_prefix("/").unwrap());
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    // Installed at another time is the same; another content of the same length is not.
    fs::write(&copy, "version 1").unwrap();
    build(&captured, there.path(), &nothing_kept()).unwrap();
    fs::write(&copy, "version 2").unwrap();
    let error = build(&captured, there.path(), &nothing_kept()).unwrap_err();
    assert!(matches!(&error, Error::Mismatch(what) if what.contains("library")), "{error}");
}

#[test]
fn writing_where_nothing_is_kept_is_refused() {
    let _alone = alone();
    let directory = scratch_dir();
    let file = File::create(directory.path().join("data")).unwrap();
    let workload = Workload::hold(vec![file.into()]);
    let error = workload.capture(&mut Capturer::new(nothing_kept())).unwrap_err();
    let Error::Unsupported { what, advice, .. } = error else { panic!("{error}") };
    assert!(what.contains("/data") && advice.contains("--scratch"), "{what}: {advice}");
}

#[test]
fn a_removed_name_of_a_file_that_has_others_is_refused() {
    let _alone = alone();
    let directory = scratch_dir();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let file = File::create(&one).unwrap();
    fs::hard_link(&one, &two).unwrap();
    fs::remove_file(&one).unwrap();
    assert_refused(vec![file.into()], "/one");
}

#[test]
fn a_file_that_was_renamed_is_found_by_its_new_name() {
    let _alone = alone();
    let directory = scratch_dir();
    let (one, two) = (directory.path().join("one"), directory.path().join("two (deleted)"));
    fs::write(&one, "x").unwrap();
    let file = File::open(&one).unwrap();
    fs::rename(&one, &two).unwrap();
    carry(vec![file.into()], Path::new("/"));
}

#[test]
fn locks_of_a_description_are_taken_again() {
    let _alone = alone();
    let directory = scratch_dir();
    let (whole, range) = (directory.path().join("whole"), directory.path().join("range"));
    let first = File::create(&whole).unwrap();
    sys::lock_description(first.as_fd(), true).unwrap();
    let second = File::create(&range).unwrap();
    sys::lock_range(second.as_fd(), &sys::range_lock(true, 10, Some(19))).unwrap();
    let _built = carry(vec![first.into(), second.into()], Path::new("/"));
    let other = File::open(&whole).unwrap();
    let busy = sys::lock_description(other.as_fd(), false).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EWOULDBLOCK));
    let other = OpenOptions::new().read(true).write(true).open(&range).unwrap();
    let busy = sys::lock_range(other.as_fd(), &sys::range_lock(true, 19, None)).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::EAGAIN));
    sys::lock_range(other.as_fd(), &sys::range_lock(true, 20, None)).unwrap();
}

#[test]
fn a_lock_of_a_process_is_captured_with_its_owner() {
    let _alone = alone();
    let directory = scratch_dir();
    let file = File::create(directory.path().join("locked")).unwrap();
    let workload = Workload::start(vec![file.into()], || {
        let lock = sys::range_lock(true, 5, Some(6));
        // SAFETY: the kernel reads one `struct flock`, live for the duration of the call.
        unsafe { libc::fcntl(FIRST, libc::F_SETLK, &raw const lock) };
    });
    let captured = workload.capture(&mut Capturer::new(surroundings())).unwrap();
    let Object::File(file) = &captured[&ObjectId(0)] else { panic!("{captured:?}") };
    assert_eq!(file.locks.len(), 1);
    assert_eq!(file.locks[0].owner, LockOwner::Process { pid: NAME, fd: FIRST });
    assert_eq!((file.locks[0].start, file.locks[0].end), (5, Some(6)));
}

#[test]
fn a_lease_is_refused() {
    let _alone = alone();
    let directory = scratch_dir();
    let path = directory.path().join("leased");
    fs::write(&path, "x").unwrap();
    let file = File::open(&path).unwrap();
    // SAFETY: F_SETLEASE takes a number.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }, 0);
    assert_refused(vec![file.into()], "lease");
}

#[test]
fn directories_are_opened_again() {
    let _alone = alone();
    let directory = scratch_dir();
    fs::write(directory.path().join("inside"), "x").unwrap();
    let built = carry(vec![File::open(directory.path()).unwrap().into()], Path::new("/"));
    let inside =
        nix::fcntl::openat(&built[0], "inside", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty());
    assert!(inside.is_ok());
}

#[test]
fn a_file_of_proc_is_opened_again_unless_it_is_of_a_memory() {
    let _alone = alone();
    let mut uptime = File::open("/proc/uptime").unwrap();
    uptime.read_exact(&mut [0; 3]).unwrap();
    let built = carry(vec![uptime.into()], Path::new("/"));
    assert_eq!(nix::unistd::lseek(&built[0], 0, nix::unistd::Whence::SeekCur), Ok(3));
    carry(vec![File::open("/proc/self/status").unwrap().into()], Path::new("/"));
    assert_refused(vec![File::open("/proc/self/smaps").unwrap().into()], "smaps");
}

#[test]
fn a_file_that_is_not_there_is_an_error_and_not_made() {
    let _alone = alone();
    let directory = scratch_dir();
    let path = directory.path().join("file");
    let workload = Workload::hold(vec![OwnedFd::from(File::create(&path).unwrap())]);
    let captured = workload.capture(&mut Capturer::new(surroundings())).unwrap();
    assert_same(&captured, &captured);
    fs::remove_file(&path).unwrap();
    let error = build(&captured, Path::new("/"), &surroundings()).unwrap_err();
    assert!(
        matches!(&error, Error::System { source, .. } if source.raw_os_error() == Some(Errno::ENOENT as i32))
    );
    assert!(!path.exists());
}
