//! Signal-driven input and output: whom a description signals, by which signal, and whether it does (`F_SETOWN`,
//! `F_SETSIG` and `O_ASYNC` in `fcntl(2)`). Any kind of description may have this, and few have, so that it is kept beside
//! them and asked about only after a noticed call.
//!
//! The rights by which it signals are root's afterwards.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Pid;
use crate::error::{Attempt, Result};
use crate::sys::descriptor as sys;
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::remote::Batch;

/// `F_SETOWN_EX`, `F_SETSIG` and what they take (include/uapi/asm-generic/fcntl.h).
const SET_OWNER: u64 = 15;
const SET_SIGNAL: u64 = 10;
const OWNER_GROUP: i32 = 2;
/// `FIOASYNC` (include/uapi/asm-generic/ioctls.h).
const ASYNC: u64 = 0x5452;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalOwner {
    /// A thread (0), a process (1) or a group (2), as `struct f_owner_ex` has it.
    kind: i32,
    /// Its number inside; 0 is nobody.
    number: Pid,
    /// Another signal than SIGIO; 0 is that.
    signal: i32,
    on: bool,
}

impl SignalOwner {
    /// As every description is made.
    pub(crate) fn is_nobody(&self) -> bool {
        *self == Self::default() || (self.number == 0 && self.signal == 0 && !self.on)
    }

    /// Whether it may change without a notice: `F_SETFL` without `O_ASYNC` ends it.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }
}

/// What a duplicate of ours says. `hosts` are the processes of the workload, as the host numbers them.
pub(crate) fn capture(fd: BorrowedFd<'_>, hosts: impl Iterator<Item = Tid>) -> Result<SignalOwner> {
    let asked = sys::signal_owner(fd).attempt(|| "ask whom a descriptor signals".to_owned())?;
    let inner = |ids: Vec<Tid>| ids.last().copied();
    let number = match asked {
        sys::Owner { number: 0, .. } => None,
        // Its leader may be gone: any member knows the group.
        sys::Owner { kind: OWNER_GROUP, number, .. } => hosts
            .filter_map(|host| proc::status(host).ok())
            .find(|status| status.namespaced_process_group.first() == Some(&number))
            .and_then(|status| inner(status.namespaced_process_group)),
        sys::Owner { number, .. } => proc::status(number).ok().and_then(|status| inner(status.namespaced)),
    };
    Ok(SignalOwner { kind: asked.kind, number: number.unwrap_or(0), signal: asked.signal, on: asked.on })
}

/// By a process that has the description as `fd`, so that signals name that number.
pub(crate) fn restore(batch: &mut Batch, fd: i32, owner: &SignalOwner) {
    let bytes = [owner.kind.to_ne_bytes(), owner.number.to_ne_bytes()].concat();
    let at = batch.bytes(&bytes);
    if owner.number > 0 {
        batch.call(libc::SYS_fcntl, &[fd as u64, SET_OWNER, at]);
    }
    if owner.signal > 0 {
        batch.call(libc::SYS_fcntl, &[fd as u64, SET_SIGNAL, owner.signal as u64]);
    }
    if owner.on {
        let one = batch.bytes(&1i32.to_ne_bytes());
        batch.call(libc::SYS_ioctl, &[fd as u64, ASYNC, one]);
    }
}
