//! Character devices that are the same on every host.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use super::file::{open_in_root, open_path};
use crate::error::{Error, Result};

/// `MEM_MAJOR` (include/uapi/linux/major.h).
const MEMORY: u64 = 1;
/// Minor numbers and names under it (drivers/char/mem.c).
const STATELESS: &[(u64, &str)] = &[(3, "null"), (5, "zero"), (7, "full"), (8, "random"), (9, "urandom")];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// As the workload sees it.
    pub path: String,
    pub minor: u64,
    pub flags: StatusFlags,
}

pub(super) fn capture(at: &At<'_>) -> Result<Device> {
    let path = open_path(at)?;
    let device = at.stat()?.st_rdev;
    let known = major(device) == MEMORY && STATELESS.iter().any(|(number, _)| *number == minor(device));
    if known {
        return Ok(Device { path, minor: minor(device), flags: at.status_flags(&at.info()?)? });
    }
    Err(match path.as_str() {
        tty if tty.starts_with("/dev/pts/")
            || tty.starts_with("/dev/tty")
            || tty.starts_with("/dev/ptmx") =>
        {
            at.refuse(format!("the terminal {tty}"), "start it with its standard streams redirected")
        }
        _ => at.refuse(format!("the device {path}"), "let the program do without it"),
    })
}

pub(super) fn build(object: &Device, root: &Path) -> Result<OwnedFd> {
    let (fd, stat) = open_in_root(root, &object.path, object.flags, libc::S_IFCHR)?;
    if major(stat.st_rdev) != MEMORY || minor(stat.st_rdev) != object.minor {
        return Err(Error::Mismatch(format!("{} is another device here", object.path)));
    }
    Ok(fd)
}
