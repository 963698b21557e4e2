//! R3: what cannot be kept is refused by its name.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::support::{alone, assert_refused};

fn made(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: every caller passes what a call has just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn r3_every_unknown_kind_is_refused_by_its_name() {
    let _alone = alone();
    // SAFETY: numbers only.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    assert_refused(vec![made(pidfd as i32)], "pidfd");
    let alg = socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    if let Ok(alg) = alg {
        assert_refused(vec![alg], "a socket of family 38");
    }
    let other = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    assert_refused(vec![other.join().unwrap().into()], "network namespace");
}

#[test]
fn r3_a_terminal_is_refused() {
    let _alone = alone();
    let Ok(terminal) = File::open("/dev/ptmx") else { return };
    assert_refused(vec![terminal.into()], "terminal");
}
