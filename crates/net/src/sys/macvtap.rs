//! Macvtap devices: an address of its own on an interface of the host, and a character device by which frames of that
//! address are read and written as those of a TAP device are (drivers/net/macvtap.c, drivers/net/tap.c).
//!
//! Unlike a TAP device it does not end with its descriptor. So that it ends with its owner all the same (R4), it is made in a
//! network namespace that nothing but a descriptor of the owner's keeps: its devices are removed with a namespace.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Its name in the namespace, in which there is no other.
pub const NAME: &str = "port0";

/// Opens the character device of the macvtap device [`NAME`] of the calling thread's network namespace. The thread's view of
/// the file system is another afterwards: it must be one that ends.
pub fn open_character_device(index: u32) -> io::Result<OwnedFd> {
    // What number the device has is in sysfs, which shows the namespace of whoever mounted it.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), quiet, none)?;
    let number = fs::read_to_string(format!("/sys/class/net/{NAME}/tap{index}/dev"))?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("the device's number is {number:?}"));
    let (major, minor) = number.trim().split_once(':').ok_or_else(damaged)?;
    let device = makedev(major.parse().map_err(|_| damaged())?, minor.parse().map_err(|_| damaged())?);
    // The name that the kernel gives it in /dev is of its number in the namespace, of which there may be several.
    let path = PathBuf::from(format!("/dev/.outlive-tap-{}-{major}-{minor}", std::process::id()));
    mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
    let opened = open(&path, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
    fs::remove_file(&path)?;
    Ok(opened?)
}
