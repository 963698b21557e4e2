//! `userfaultfd(2)` in asynchronous write-protect mode: the kernel notes the first write to each page by itself.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::pagemap::Range;

/// `include/uapi/linux/userfaultfd.h`.
const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_FORK: u64 = 1 << 1;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`, `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xAA, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const REGISTER_MODE_WP: u64 = 1 << 1;
const EVENT_FORK: u8 = 0x13;
/// Size of `struct uffd_msg`.
const MESSAGE_SIZE: usize = 32;
/// Flag of the system call (`linux/userfaultfd.h`): only faults from user mode would be handed to user space; with
/// asynchronous write-protection none is, and writes by the kernel are tracked all the same.
const USER_MODE_ONLY: u64 = 1;
/// Of the call that makes one.
pub const OPEN_FLAGS: u64 = USER_MODE_ONLY | libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// Tracks writes to one address space.
#[derive(Debug)]
pub struct Tracker {
    file: File,
}

impl Tracker {
    /// Takes over a descriptor that the tracked process made, and shakes hands with the kernel.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut api = Api {
            api: UFFD_API,
            features: FEATURE_PAGEFAULT_FLAG_WP
                | FEATURE_EVENT_FORK
                | FEATURE_WP_HUGETLBFS_SHMEM
                | FEATURE_WP_UNPOPULATED
                | FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: `api` is live, exclusively borrowed and of the layout the request states.
        if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file: File::from(fd) })
    }

    /// Starts tracking a range. Fails with EINVAL or EPERM on mappings that can never be written.
    pub fn register(&self, range: Range) -> io::Result<()> {
        let mut register =
            Register { start: range.start, len: range.len(), mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `register` is live, exclusively borrowed and of the layout the request states.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether the address space is no more: its last user has ended, or the fork that copied it failed afterwards (no
    /// id was free, or a control group allows no further process). `page` may be any; it is not protected.
    pub fn is_gone(&self, page: Range) -> bool {
        let mut protect = WriteProtect { start: page.start, len: page.len(), mode: 0 };
        // SAFETY: `protect` is live, exclusively borrowed and of the layout the request states.
        let failed = unsafe { libc::ioctl(self.file.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut protect) } < 0;
        // A page that is not tracked gives ENOENT (`userfaultfd_writeprotect`, fs/userfaultfd.c).
        failed && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }

    /// The tracker of a child whose fork waits for this to be read, if there is one. The forking thread sleeps,
    /// unstoppable, until then.
    pub fn forked(&mut self) -> io::Result<Option<Tracker>> {
        let mut message = [0u8; MESSAGE_SIZE];
        match self.file.read(&mut message) {
            Ok(MESSAGE_SIZE) if message[0] == EVENT_FORK => {
                let fd = i32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
                // SAFETY: the kernel installed this descriptor in our table for this message, and nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                Ok(Some(Tracker { file: File::from(fd) }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Tracker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
