//! `inotify(7)`, with what is needed to make an instance as another one was.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn create() -> io::Result<OwnedFd> {
    // SAFETY: the argument is a number.
    let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?;
    // SAFETY: just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches what a descriptor of ours refers to, be it open by name only. Gives the watch's number.
pub fn watch(instance: BorrowedFd<'_>, target: BorrowedFd<'_>, mask: u32) -> io::Result<i32> {
    let path = CString::new(format!("/proc/self/fd/{}", target.as_raw_fd())).map_err(io::Error::other)?;
    // SAFETY: the path is live for the duration of the call.
    check(unsafe { libc::inotify_add_watch(instance.as_raw_fd(), path.as_ptr(), mask) })
}

/// What number the next watch gets, if it is free (`INOTIFY_IOC_SETNEXTWD`, fs/notify/inotify/inotify_user.c; for
/// checkpoints, since Linux 4.16).
pub fn set_next(instance: BorrowedFd<'_>, next: i32) -> io::Result<()> {
    /// `_IOW('I', 0, __s32)`.
    const SET_NEXT: libc::c_ulong = 0x4004_4900;
    // SAFETY: this request takes a number in place of a pointer.
    check(unsafe { libc::ioctl(instance.as_raw_fd(), SET_NEXT, next) }).map(drop)
}

/// A file of this mount by the handle that the kernel gives (`open_by_handle_at(2)`), open by name only.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    /// `MAX_HANDLE_SZ`, include/linux/exportfs.h.
    const MAX: usize = 128;
    if handle.len() > MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // `struct file_handle`: bytes, type, and the handle; as words, so that it is aligned.
    let mut raw = [0u32; 2 + MAX / 4];
    raw[0] = handle.len() as u32;
    raw[1] = kind as u32;
    for (index, byte) in handle.iter().enumerate() {
        raw[2 + index / 4] |= u32::from(*byte) << (8 * (index % 4));
    }
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    let at = raw.as_mut_ptr();
    // SAFETY: the handle is live, and as long as its first word says.
    let fd =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), at, flags) } as libc::c_int;
    let fd = check(fd)?;
    // SAFETY: just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_watch_gets_the_number_that_is_asked_for() {
        let instance = create().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let target = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        set_next(instance.as_fd(), 7).unwrap();
        assert_eq!(watch(instance.as_fd(), target.as_fd(), libc::IN_CREATE).unwrap(), 7);
    }

    #[test]
    fn a_handle_leads_to_its_file() {
        let instance = create().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let target = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        watch(instance.as_fd(), target.as_fd(), libc::IN_CREATE).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", instance.as_raw_fd())).unwrap();
        let line = info.lines().find(|line| line.starts_with("inotify")).unwrap();
        let watched = crate::object::inotify::parse_line(line).unwrap();
        let found = open_by_handle(target.as_fd(), watched.handle_kind, &watched.handle).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
        assert_eq!(link, directory.path());
    }
}
