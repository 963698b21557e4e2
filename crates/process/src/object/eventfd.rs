//! Event counters (`eventfd(2)`).

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd as Counter};
use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::error::{Attempt, Result};
use crate::sys::proc::info_field;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFd {
    pub count: u64,
    pub semaphore: bool,
    pub flags: StatusFlags,
}

pub(super) fn capture(at: &At<'_>) -> Result<EventFd> {
    let info = at.info()?;
    let count = info_field(&info, "eventfd-count").and_then(|text| u64::from_str_radix(text, 16).ok());
    let count = count.ok_or_else(|| at.unreadable("eventfd-count"))?;
    let semaphore =
        info_field(&info, "eventfd-semaphore").ok_or_else(|| at.unreadable("eventfd-semaphore"))?;
    if count == u64::MAX {
        // Only the kernel's own users (asynchronous I/O, virtual machines) get it there, and `write` cannot.
        return Err(at.refuse("an event counter that overflowed", "read the counter before it overflows"));
    }
    Ok(EventFd { count, semaphore: semaphore == "1", flags: at.status_flags(&info)? })
}

pub(super) fn build(object: &EventFd) -> Result<OwnedFd> {
    let mut flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    flags.set(EfdFlags::EFD_SEMAPHORE, object.semaphore);
    // The initial value of the call has 32 bits only; what is written has 64.
    let counter = Counter::from_flags(flags).attempt(|| "make an event counter".to_owned())?;
    counter.write(object.count).attempt(|| format!("set an event counter to {}", object.count))?;
    let fd = OwnedFd::from(counter);
    object.flags.restore(fd.as_fd())?;
    Ok(fd)
}
