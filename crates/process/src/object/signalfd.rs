//! Signals read from a descriptor (`signalfd(2)`). The signals themselves belong to threads and processes.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::error::{Attempt, Result};
use crate::sys::descriptor as sys;
use crate::sys::proc::info_field;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalFd {
    pub mask: u64,
    pub flags: StatusFlags,
}

pub(super) fn capture(at: &At<'_>) -> Result<SignalFd> {
    let info = at.info()?;
    let mask = info_field(&info, "sigmask").and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(SignalFd { mask: mask.ok_or_else(|| at.unreadable("sigmask"))?, flags: at.status_flags(&info)? })
}

/// Reading takes the signals of whoever reads, so that it can be made by anybody.
pub(super) fn build(object: &SignalFd) -> Result<OwnedFd> {
    let fd =
        sys::signal_descriptor(object.mask).attempt(|| format!("make a signalfd for {:#x}", object.mask))?;
    object.flags.restore(fd.as_fd())?;
    Ok(fd)
}
