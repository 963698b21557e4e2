//! POSIX message queues (`mq_overview(7)`) of the ipc namespace that the calling thread is in.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

/// `MQUEUE_MAGIC` (ipc/mqueue.c).
const MAGIC: i64 = 0x1980_0202;
/// `FSCONFIG_CMD_CREATE` (include/uapi/linux/mount.h).
const CREATE: libc::c_long = 6;
/// Mode bits that a program can set (`S_IRWXUGO`).
const MODE: u32 = 0o777;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// The result is of a call that gives a new descriptor, which nobody else owns.
unsafe fn adopt(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the caller says so.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether what is open under a link is a queue.
pub fn is_queue(link: &Path) -> io::Result<bool> {
    let found = statfs(link)?;
    Ok(found.filesystem_type().0 as i64 == MAGIC)
}

/// The namespace's file system of queues, mounted nowhere.
pub fn names() -> io::Result<Names> {
    // SAFETY: the name is live for the call (the flag is FSOPEN_CLOEXEC), which gives a descriptor.
    let context = unsafe { adopt(libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), 1)) }?;
    let nothing: *const libc::c_char = std::ptr::null();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, nothing, nothing, 0) })?;
    // SAFETY: all arguments are numbers (FSMOUNT_CLOEXEC and no attributes), and the call gives a descriptor.
    let root = unsafe { adopt(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0)) }?;
    Ok(Names { root })
}

/// Names of queues.
#[derive(Debug)]
pub struct Names {
    root: OwnedFd,
}

impl Names {
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.root.as_raw_fd().to_string())
    }

    /// All that there are now.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| {
            entry?.file_name().into_string().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
        };
        std::fs::read_dir(self.path())?.map(name).collect()
    }

    /// `None` if it has gone.
    pub fn open(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match std::fs::File::open(self.path().join(name)) {
            Ok(file) => Ok(Some(file.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Number of its inode, mode, and owner (user and group).
pub fn describe(queue: &Path) -> io::Result<(u64, u32, (u32, u32))> {
    let about = std::fs::metadata(queue)?;
    Ok((about.ino(), about.mode() & MODE, (about.uid(), about.gid())))
}

/// What queues made by this process may take together (`RLIMIT_MSGQUEUE`, getrlimit(2)), raised as far as that is allowed.
pub fn allowance() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is live for the calls, which read or write one `rlimit`.
    let known = unsafe {
        // Without the right to it what is allowed stays.
        libc::setrlimit(libc::RLIMIT_MSGQUEUE, &raw const limit);
        libc::getrlimit(libc::RLIMIT_MSGQUEUE, &raw mut limit)
    };
    if known == 0 { limit.rlim_cur } else { 0 }
}

fn c_name(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(io::Error::other)
}

/// `struct mq_attr` of mq_getattr(3): eight words, of which two matter when a queue is made.
fn attributes(messages: u64, length: u64) -> [libc::c_long; 8] {
    [0, messages as libc::c_long, length as libc::c_long, 0, 0, 0, 0, 0]
}

/// A new queue of this name (without a slash), with its mode and owner.
pub fn make(name: &str, mode: u32, owner: (u32, u32), messages: u64, length: u64) -> io::Result<OwnedFd> {
    let (name, attributes) = (c_name(name)?, attributes(messages, length));
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mode = mode & MODE;
    // SAFETY: name and attributes are live for the call, which reads them and gives a descriptor.
    let queue =
        unsafe { adopt(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, attributes.as_ptr())) }?;
    nix::sys::stat::fchmod(&queue, nix::sys::stat::Mode::from_bits_truncate(mode))?;
    std::os::unix::fs::fchown(&queue, Some(owner.0), Some(owner.1))?;
    Ok(queue)
}

pub fn unlink(name: &str) -> io::Result<()> {
    let name = c_name(name)?;
    // SAFETY: the name is live for the call.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// Without waiting: a full queue is an error.
pub fn send(queue: BorrowedFd<'_>, priority: u32, bytes: &[u8]) -> io::Result<()> {
    let never: *const libc::timespec = std::ptr::null();
    let (fd, start) = (queue.as_raw_fd(), bytes.as_ptr());
    // SAFETY: the bytes are live for the call, which reads as many as is said; a missing time is allowed.
    check(unsafe { libc::syscall(libc::SYS_mq_timedsend, fd, start, bytes.len(), priority, never) }).map(drop)
}

/// What is asked for by mq_notify(3), as bytes of a `struct sigevent`: for the process itself to ask it.
pub fn sigevent(how: i32, signal: i32, value: u64) -> [u8; 64] {
    let mut event = [0; 64];
    event[..8].copy_from_slice(&value.to_ne_bytes());
    event[8..12].copy_from_slice(&signal.to_ne_bytes());
    event[12..16].copy_from_slice(&how.to_ne_bytes());
    event
}
const _: () = assert!(size_of::<libc::sigevent>() == 64);

/// A process other than this asks through its own descriptors; for tests.
#[cfg(test)]
pub fn notify(queue: BorrowedFd<'_>, event: &[u8; 64]) -> io::Result<()> {
    // SAFETY: the event is live for the call and as long as the kernel reads.
    check(unsafe { libc::syscall(libc::SYS_mq_notify, queue.as_raw_fd(), event.as_ptr()) }).map(drop)
}
