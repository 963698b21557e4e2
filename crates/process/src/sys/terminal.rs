//! Calls on pseudo-terminals (`ioctl_tty(2)`, `pts(4)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::bpf::terminal::TERMIOS;

// `include/uapi/asm-generic/ioctls.h`, for x86-64; not all of them are in `libc`.
const TCSETS2: libc::c_ulong = 0x402c_542b;
const TCXONC: libc::c_ulong = 0x540a;
const TCFLSH: libc::c_ulong = 0x540b;
const TIOCEXCL: libc::c_ulong = 0x540c;
const TIOCSWINSZ: libc::c_ulong = 0x5414;
const TIOCGWINSZ: libc::c_ulong = 0x5413;
const TIOCPKT: libc::c_ulong = 0x5420;
pub const TIOCNOTTY: u64 = 0x5422;
pub const TIOCSPGRP: u64 = 0x5410;
const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCVHANGUP: libc::c_ulong = 0x5437;
const TIOCGPTPEER: libc::c_ulong = 0x5441;

/// What `TCFLSH` and `TCXONC` take (`asm-generic/termbits-common.h`).
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub enum Queue {
    Input = 0,
    Output = 1,
}

fn number(fd: BorrowedFd<'_>, request: libc::c_ulong, value: u64) -> io::Result<i32> {
    // SAFETY: every caller names a request that takes a plain number, or none.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn with<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, value: &mut T) -> io::Result<()> {
    // SAFETY: every caller passes the type that its request reads or writes, exclusively borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of the pair of which this is the master.
pub fn index(master: BorrowedFd<'_>) -> io::Result<u32> {
    let mut index: libc::c_uint = 0;
    with(master, TIOCGPTN, &mut index).map(|()| index)
}

pub fn is_locked(master: BorrowedFd<'_>) -> io::Result<bool> {
    let mut locked: libc::c_int = 0;
    with(master, TIOCGPTLCK, &mut locked).map(|()| locked != 0)
}

pub fn is_exclusive(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut exclusive: libc::c_int = 0;
    with(fd, TIOCGEXCL, &mut exclusive).map(|()| exclusive != 0)
}

pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> io::Result<()> {
    with(master, TIOCSPTLCK, &mut libc::c_int::from(locked))
}

/// Opens the slave; never as anybody's controlling terminal.
pub fn open_slave(master: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    let fd = number(master, TIOCGPTPEER, (flags | libc::O_NOCTTY | libc::O_CLOEXEC) as u64)?;
    // SAFETY: the request has just made this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a descriptor's terminal was hung up after it was opened: it answers nothing any more.
pub fn is_hung(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut window = [0u16; 4];
    match with(fd, TIOCGWINSZ, &mut window) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(true),
        result => result.map(|()| false),
    }
}

/// Hangs it up, for all that have it open.
pub fn hang_up(slave: BorrowedFd<'_>) -> io::Result<()> {
    number(slave, TIOCVHANGUP, 0).map(drop)
}

/// The slave's settings, through either side.
pub fn set_termios(fd: BorrowedFd<'_>, termios: &[u8; TERMIOS]) -> io::Result<()> {
    with(fd, TCSETS2, &mut termios.to_owned())
}

pub fn set_window(fd: BorrowedFd<'_>, window: [u16; 4]) -> io::Result<()> {
    with(fd, TIOCSWINSZ, &mut { window })
}

pub fn set_exclusive(fd: BorrowedFd<'_>) -> io::Result<()> {
    number(fd, TIOCEXCL, 0).map(drop)
}

pub fn set_packet_mode(master: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    with(master, TIOCPKT, &mut libc::c_int::from(on))
}

/// Stops output to a slave, or lets it go on (`tcflow(3)`).
pub fn set_stopped(slave: BorrowedFd<'_>, stopped: bool) -> io::Result<()> {
    // TCOOFF and TCOON.
    number(slave, TCXONC, u64::from(!stopped)).map(drop)
}

pub fn flush(fd: BorrowedFd<'_>, queue: Queue) -> io::Result<()> {
    number(fd, TCFLSH, queue as u64).map(drop)
}
