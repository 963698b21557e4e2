//! What sockets of all families but TCP and unix have in common: options, buffers, limits of time, a filter.
//!
//! Options are read by a table and set where they differ from those of a fresh socket of the same kind.

use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::At;
use crate::error::{Attempt, Error, Result};
use crate::sys::datagram::{self as sys, FILTER_INSTRUCTION};
use crate::sys::tcp_repair::{self as options, Timeout};

/// An option that is one int.
pub struct Int {
    pub name: &'static str,
    pub level: i32,
    pub number: i32,
    /// Set after the queue has been filled, because it would keep datagrams out of it or ports away.
    pub late: bool,
}

pub const fn int(name: &'static str, level: i32, number: i32) -> Int {
    Int { name, level, number, late: false }
}

pub const fn late(name: &'static str, level: i32, number: i32) -> Int {
    Int { name, level, number, late: true }
}

/// Numbers without a name in `libc` are from `include/uapi/asm-generic/socket.h`.
pub const SOCKET_INTS: &[Int] = &[
    // First: see [`apply_ints`].
    int("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY),
    int("SO_DEBUG", libc::SOL_SOCKET, libc::SO_DEBUG),
    int("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE),
    int("SO_BROADCAST", libc::SOL_SOCKET, libc::SO_BROADCAST),
    int("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    int("SO_OOBINLINE", libc::SOL_SOCKET, libc::SO_OOBINLINE),
    int("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR),
    int("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT),
    int("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    int("SO_NO_CHECK", libc::SOL_SOCKET, 11),
    int("SO_PASSCRED", libc::SOL_SOCKET, libc::SO_PASSCRED),
    int("SO_TIMESTAMP", libc::SOL_SOCKET, 29),
    int("SO_TIMESTAMPNS", libc::SOL_SOCKET, 35),
    int("SO_TIMESTAMPING", libc::SOL_SOCKET, 37),
    int("SO_TIMESTAMP_NEW", libc::SOL_SOCKET, 63),
    int("SO_TIMESTAMPNS_NEW", libc::SOL_SOCKET, 64),
    int("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK),
    int("SO_RXQ_OVFL", libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    int("SO_SELECT_ERR_QUEUE", libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    int("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    int("SO_PREFER_BUSY_POLL", libc::SOL_SOCKET, 69),
    int("SO_RCVMARK", libc::SOL_SOCKET, 75),
    int("SO_RCVPRIORITY", libc::SOL_SOCKET, 82),
];

/// Options that cannot be rebuilt, refused where they are not 0.
const REFUSED: &[(&str, i32, i32)] =
    &[("SO_ZEROCOPY (zero-copy sending)", libc::SOL_SOCKET, 60), ("SO_TXTIME", libc::SOL_SOCKET, 61)];

const SO_RCVTIMEO_NEW: i32 = 66;
const SO_SNDTIMEO_NEW: i32 = 67;
const SO_LOCK_FILTER: i32 = 44;
/// The longest name of a device (IFNAMSIZ).
const NAME_MAX: usize = 16;

/// Reads the options of a table; `None` where this kernel or this kind of socket lacks one.
pub fn read_ints(fd: BorrowedFd<'_>, tables: &[&[Int]]) -> Result<Vec<Option<i32>>> {
    tables
        .iter()
        .flat_map(|table| table.iter())
        .map(|option| match options::get::<i32>(fd, option.level, option.number) {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(Error::System { attempt: format!("read {}", option.name), source }),
        })
        .collect()
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        // The last two: of an option that another family or type of socket has.
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTCONN)
    )
}

/// Sets those that differ from a fresh socket's; either the late ones or the others.
pub fn apply_ints(
    fd: BorrowedFd<'_>,
    tables: &[&[Int]],
    values: &[Option<i32>],
    fresh: &[Option<i32>],
    late: bool,
) -> Result<()> {
    if values.len() != fresh.len() || values.len() != tables.iter().map(|table| table.len()).sum::<usize>() {
        return Err(Error::Mismatch("a socket's options are those of another version".to_owned()));
    }
    let all = tables.iter().flat_map(|table| table.iter());
    for ((option, value), fresh) in all.zip(values).zip(fresh) {
        if let Some(value) = *value
            && Some(value) != *fresh
            && option.late == late
        {
            options::set(fd, option.level, option.number, value)
                .attempt(|| format!("set {} to {value}", option.name))?;
        }
    }
    // The first of all options; IP_TOS has set it as well (`do_ip_setsockopt`).
    match values.first() {
        Some(Some(priority)) if !late => options::set(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, *priority)
            .attempt(|| "set SO_PRIORITY".into()),
        _ => Ok(()),
    }
}

/// What every socket has beside options that are ints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// `SO_SNDBUF` and `SO_RCVBUF` as read: twice what a program sets; and which of them it has set.
    pub send_buffer: u32,
    pub receive_buffer: u32,
    pub buffer_locks: i32,
    receive_timeout: Timeout,
    send_timeout: Timeout,
    /// The device that it is bound to.
    device: Vec<u8>,
    /// A classic BPF program, [`FILTER_INSTRUCTION`] bytes each.
    #[serde(with = "serde_bytes")]
    filter: Vec<u8>,
    filter_locked: bool,
}

impl Common {
    pub fn read(fd: BorrowedFd<'_>, at: &At<'_>) -> Result<Self> {
        let socket = libc::SOL_SOCKET;
        for (name, level, number) in REFUSED {
            if options::get::<i32>(fd, *level, *number).is_ok_and(|value| value != 0) {
                return Err(at.refuse(*name, "switch it off in the program"));
            }
        }
        let filter = match sys::filter(fd) {
            Ok(filter) => filter,
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                return Err(at.refuse("a socket filter that is not classic BPF", "let the program detach it"));
            }
            Err(source) => return Err(Error::System { attempt: "read a socket's filter".into(), source }),
        };
        let what = || "read the options of a socket".to_owned();
        let mut name = [0; NAME_MAX];
        Ok(Self {
            send_buffer: options::get(fd, socket, libc::SO_SNDBUF).attempt(what)?,
            receive_buffer: options::get(fd, socket, libc::SO_RCVBUF).attempt(what)?,
            buffer_locks: options::get(fd, socket, libc::SO_BUF_LOCK).attempt(what)?,
            receive_timeout: options::get(fd, socket, SO_RCVTIMEO_NEW).attempt(what)?,
            send_timeout: options::get(fd, socket, SO_SNDTIMEO_NEW).attempt(what)?,
            device: options::get_bytes(fd, socket, libc::SO_BINDTODEVICE, &mut name).attempt(what)?.to_vec(),
            filter,
            filter_locked: options::get::<i32>(fd, socket, SO_LOCK_FILTER).attempt(what)? != 0,
        })
    }

    /// Room for what is to be put into the queue of a socket that is being built.
    pub fn make_room(&self, fd: BorrowedFd<'_>, bytes: usize) -> Result<()> {
        let value = (self.receive_buffer as usize).max(bytes).min(i32::MAX as usize / 2);
        options::set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value as i32)
            .attempt(|| "set SO_RCVBUF".into())
    }

    /// Limits of time, device, buffers: when the queue has been filled.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let socket = libc::SOL_SOCKET;
        let what = || "set the options of a socket".to_owned();
        for (name, size) in
            [(libc::SO_SNDBUFFORCE, self.send_buffer), (libc::SO_RCVBUFFORCE, self.receive_buffer)]
        {
            options::set(fd, socket, name, (size / 2) as i32).attempt(what)?;
        }
        options::set(fd, socket, libc::SO_BUF_LOCK, self.buffer_locks).attempt(what)?;
        options::set(fd, socket, SO_RCVTIMEO_NEW, self.receive_timeout).attempt(what)?;
        options::set(fd, socket, SO_SNDTIMEO_NEW, self.send_timeout).attempt(what)?;
        if !self.device.is_empty() {
            options::set_bytes(fd, socket, libc::SO_BINDTODEVICE, &self.device).attempt(what)?;
        }
        if !self.filter.is_empty() {
            attach_filter(fd, &self.filter)?;
        }
        if self.filter_locked {
            options::set(fd, socket, SO_LOCK_FILTER, 1).attempt(what)?;
        }
        Ok(())
    }
}

pub fn attach_filter(fd: BorrowedFd<'_>, filter: &[u8]) -> Result<()> {
    if !filter.len().is_multiple_of(FILTER_INSTRUCTION) {
        return Err(Error::Mismatch("a socket's filter is cut off".to_owned()));
    }
    sys::attach_filter(fd.as_fd(), libc::SO_ATTACH_FILTER, filter)
        .attempt(|| "attach a socket's filter".into())
}
