//! What descriptors are asked and told that has no safe function elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::ptrace::Tid;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that a call has just given us.
fn adopt(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: every caller passes the result of a call that makes a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many bytes can be read (`FIONREAD`, `ioctl_pipe(2)`, `unix(7)`).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which is live and exclusively borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Who gets which signal for a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// A thread (0), a process (1) or a group (2).
    pub kind: i32,
    /// 0 is nobody.
    pub number: i32,
    /// 0 is SIGIO.
    pub signal: i32,
    /// `O_ASYNC`.
    pub on: bool,
}

/// The thread, process or group that gets SIGIO and SIGURG (`F_GETOWN_EX`), and what goes with it.
pub fn signal_owner(fd: BorrowedFd<'_>) -> io::Result<Owner> {
    // A group is a negative number, which `F_GETOWN` cannot tell from an error.
    #[repr(C)]
    struct Raw {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_GETOWN_EX: libc::c_int = 16;
    const F_GETSIG: libc::c_int = 11;
    let mut owner = Raw { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX writes one `struct f_owner_ex`, which `Raw` mirrors and which is exclusively borrowed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })?;
    // SAFETY: both take no argument.
    let (signal, flags) =
        unsafe { (libc::fcntl(fd.as_raw_fd(), F_GETSIG), libc::fcntl(fd.as_raw_fd(), libc::F_GETFL)) };
    let on = check(flags)? & libc::O_ASYNC != 0;
    Ok(Owner { kind: owner.kind, number: owner.pid, signal: check(signal)?, on })
}

/// Sets the status flags of an open file description (`F_SETFL`).
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: F_SETFL takes a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Locks the whole file for this description (`flock(2)`), without waiting.
pub fn lock_description(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: both arguments are numbers.
    check(unsafe { libc::flock(fd.as_raw_fd(), kind | libc::LOCK_NB) }).map(drop)
}

/// A range lock as `fcntl(2)` takes it, by offset from the start of the file; `end` is inclusive, none is the end.
pub fn range_lock(exclusive: bool, start: u64, end: Option<u64>) -> libc::flock {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: end.map_or(0, |end| end.saturating_sub(start).saturating_add(1)) as libc::off_t,
        l_pid: 0,
    }
}

/// Takes a range lock that belongs to this description (`F_OFD_SETLK`).
pub fn lock_range(fd: BorrowedFd<'_>, lock: &libc::flock) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct flock`, live for the duration of the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock) }).map(drop)
}

/// The names of a file's extended attributes, separated by NUL.
pub fn attribute_names(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // The kernel's own limit for a list of names (XATTR_LIST_MAX in include/uapi/linux/limits.h) is 64 KiB.
    let mut names = vec![0u8; 64 * 1024];
    // SAFETY: the buffer is live, exclusively borrowed and as long as is said.
    let got = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    if got < 0 {
        let error = io::Error::last_os_error();
        // A file system without extended attributes has none.
        return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(Vec::new()) } else { Err(error) };
    }
    names.truncate(got.unsigned_abs());
    Ok(names)
}

/// Whether a descriptor is the very file that an epoll instance watches by a number, the one after `nth` others of that
/// number (`kcmp(2)`, KCMP_EPOLL_TFD).
pub fn is_epoll_target(of: (Tid, i32), epoll: (Tid, i32), number: i32, nth: u32) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: libc::c_int = 7;
    #[repr(C)]
    struct Slot {
        epoll: u32,
        target: u32,
        which: u32,
    }
    let slot = Slot { epoll: epoll.1 as u32, target: number as u32, which: nth };
    // SAFETY: the kernel reads one `struct kcmp_epoll_slot`, which `Slot` mirrors, live for the duration of the call.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, of.0, epoll.0, KCMP_EPOLL_TFD, of.1, &raw const slot) };
    match order {
        0 => Ok(true),
        1.. => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

pub fn timer_create(clock: libc::clockid_t) -> io::Result<OwnedFd> {
    // SAFETY: both arguments are numbers.
    adopt(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) })
}

/// Asking what is left also makes the kernel account for the periods that have passed (`timerfd_gettime(2)`,
/// `do_timerfd_gettime` in fs/timerfd.c), so that `ticks` and `it_value` in fdinfo fit together afterwards.
pub fn timer_settle(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut left = timer_value(0, 0);
    // SAFETY: the kernel writes one `struct itimerspec`, live and exclusively borrowed.
    check(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut left) }).map(drop)
}

pub fn timer_set(fd: BorrowedFd<'_>, flags: i32, value: u64, interval: u64) -> io::Result<()> {
    let new = timer_value(value, interval);
    // SAFETY: the kernel reads one `struct itimerspec`, live for the duration of the call; no old value is asked for.
    check(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut()) })
        .map(drop)
}

/// Makes a timer that has expired `ticks` times without having been read (`TFD_IOC_SET_TICKS`, `timerfd_create(2)`).
pub fn timer_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    /// `_IOW('T', 0, __u64)`.
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: the kernel reads one u64, live for the duration of the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

fn timer_value(value: u64, interval: u64) -> libc::itimerspec {
    let spec = |nanoseconds: u64| libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanoseconds % 1_000_000_000) as libc::c_long,
    };
    libc::itimerspec { it_value: spec(value), it_interval: spec(interval) }
}

pub fn signal_descriptor(mask: u64) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a signal set of the 8 bytes that are said, live for the duration of the call.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) };
    adopt(fd as libc::c_int)
}

pub fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: the argument is a number.
    adopt(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// Adds entries by number, file, events and data, where the number need not be the file's here: by a thread with a
/// descriptor table of its own, which ends with it.
pub fn epoll_add_as(epoll: BorrowedFd<'_>, entries: &[(i32, BorrowedFd<'_>, u32, u64)]) -> io::Result<()> {
    let work = || -> io::Result<()> {
        // Out of the way of every number that is used below.
        let above =
            entries.iter().map(|(number, file, ..)| (*number).max(file.as_raw_fd())).max().unwrap_or(0);
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
        let duplicate = |fd: libc::c_int| {
            // SAFETY: both arguments are numbers; the descriptor ends with this thread's table.
            check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above + 1) })
        };
        let epoll = duplicate(epoll.as_raw_fd())?;
        let files = entries.iter().map(|(_, file, ..)| duplicate(file.as_raw_fd()));
        let files = files.collect::<io::Result<Vec<_>>>()?;
        for ((number, _, events, data), file) in entries.iter().zip(files) {
            // SAFETY: all are numbers, of this thread's own table.
            check(unsafe { libc::dup2(file, *number) })?;
            let mut event = libc::epoll_event { events: *events, u64: *data };
            // SAFETY: the event is live for the call.
            check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, *number, &raw mut event) })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that works for epoll died")))
    })
}

/// Takes up to `room` events that are ready now; gives their `data`.
pub fn epoll_take(fd: BorrowedFd<'_>, room: usize) -> io::Result<Vec<u64>> {
    let room = room.clamp(1, 4096);
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; room];
    // SAFETY: the array is live, exclusively borrowed and as long as is said.
    let got =
        check(unsafe { libc::epoll_wait(fd.as_raw_fd(), events.as_mut_ptr(), room as libc::c_int, 0) })?;
    Ok(events[..got.unsigned_abs() as usize].iter().map(|event| event.u64).collect())
}

/// A socket option that is an int.
pub fn socket_option(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: `value` is live, exclusively borrowed and as long as `len` says.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut len) })?;
    Ok(value)
}

pub fn set_socket_option(fd: BorrowedFd<'_>, name: libc::c_int, value: i32) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let at = (&raw const value).cast();
    // SAFETY: `value` is live for the duration of the call and as long as `len` says.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, len) }).map(drop)
}

/// A timeout option, in microseconds; 0 is none.
pub fn socket_timeout(fd: BorrowedFd<'_>, name: libc::c_int) -> io::Result<u64> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut len = size_of::<libc::timeval>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: `value` is live, exclusively borrowed and as long as `len` says.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut len) })?;
    Ok(value.tv_sec.unsigned_abs() * 1_000_000 + value.tv_usec.unsigned_abs())
}

pub fn set_socket_timeout(fd: BorrowedFd<'_>, name: libc::c_int, microseconds: u64) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: (microseconds / 1_000_000) as libc::time_t,
        tv_usec: (microseconds % 1_000_000) as libc::suseconds_t,
    };
    let len = size_of::<libc::timeval>() as libc::socklen_t;
    let at = (&raw const value).cast();
    // SAFETY: `value` is live for the duration of the call and as long as `len` says.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, at, len) }).map(drop)
}

/// `SO_PEERCRED` and `SO_PEERGROUPS`: process (as the calling one's pid namespace has it, 0 for none), user, group and groups of
/// the other end; none if nobody has made this socket a connected or a listening one.
pub fn peer_credentials(fd: BorrowedFd<'_>) -> io::Result<Option<(libc::ucred, Vec<u32>)>> {
    /// `include/uapi/asm-generic/socket.h`.
    const SO_PEERGROUPS: libc::c_int = 59;
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let at = (&raw mut who).cast();
    // SAFETY: the kernel writes at most `len` bytes to `who`, live and exclusively borrowed.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len)
    })?;
    if who.uid == u32::MAX {
        return Ok(None);
    }
    let mut groups = vec![0u32; 32];
    loop {
        let mut len = size_of_val(groups.as_slice()) as libc::socklen_t;
        let at = groups.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `len` bytes to `groups`, live and exclusively borrowed.
        let asked = check(unsafe {
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, at, &raw mut len)
        });
        let count = len as usize / size_of::<u32>();
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => return Ok(Some((who, Vec::new()))),
            Err(error) => return Err(error),
            Ok(_) => {
                groups.truncate(count);
                return Ok(Some((who, groups)));
            }
        }
    }
}

/// What one `recvmsg` with `MSG_PEEK` shows.
#[derive(Debug)]
pub struct Peeked {
    pub bytes: Vec<u8>,
    /// The sender's address, without the family; empty for a sender without a name.
    pub sender: Vec<u8>,
    /// Duplicates of the descriptors that travel with it.
    pub descriptors: Vec<OwnedFd>,
    /// There are more of them than could be duplicated.
    pub more_descriptors: bool,
    /// Told if the socket asks for them (`SO_PASSCRED`).
    pub credentials: Option<libc::ucred>,
    /// There was more than room.
    pub truncated: bool,
}

/// Looks at what waits in a unix socket, from the offset set by `SO_PEEK_OFF`; `None` if there is no more.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> io::Result<Option<Peeked>> {
    let mut bytes = vec![0u8; room];
    // Room for the most descriptors that one message carries (SCM_MAX_FD, 253) and for credentials; aligned as
    // `struct cmsghdr` has to be.
    let mut control = [0u64; 160];
    // SAFETY: all-zero bytes are a valid `sockaddr_un`.
    let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: name, buffer and control buffer are live, exclusively borrowed and as long as is said.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(None),
            _ => Err(error),
        };
    }
    bytes.truncate(got.unsigned_abs());
    let mut descriptors = Vec::new();
    let mut credentials = None;
    // SAFETY: `message` was filled in by the kernel; the macros walk the control buffer within `msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a complete header inside the control buffer or null.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: a pure computation.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..(len.saturating_sub(head)) / size_of::<libc::c_int>() {
                // SAFETY: `index` is within the data that the header says it has, written by the kernel.
                let fd = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().add(index).read_unaligned() };
                // Peeking made it ours.
                descriptors.push(adopt(fd)?);
            }
        }
        if level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS {
            // SAFETY: a header of this kind carries one `ucred` (`scm_recv_unix`, net/core/scm.c).
            credentials = Some(unsafe { libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned() });
        }
        // Of whoever sent it, if the socket asks for that (`SO_PASSPIDFD`; include/linux/socket.h). It is not kept.
        const SCM_PIDFD: libc::c_int = 4;
        if level == libc::SOL_SOCKET && kind == SCM_PIDFD {
            // SAFETY: a header of this kind carries one descriptor, or an error (`scm_pidfd_recv`, include/net/scm.h).
            let fd = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() };
            drop((fd >= 0).then(|| adopt(fd)));
        }
        // SAFETY: `header` is one of this message's headers.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    let family = size_of::<libc::sa_family_t>();
    let len = (message.msg_namelen as usize).saturating_sub(family).min(name.sun_path.len());
    Ok(Some(Peeked {
        bytes,
        sender: name.sun_path[..len].iter().map(|byte| *byte as u8).collect(),
        descriptors,
        more_descriptors: message.msg_flags & libc::MSG_CTRUNC != 0,
        credentials,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
    }))
}

/// Of the first `length` bytes in a unix stream, how many come before the piece that the last of them is of.
///
/// The kernel copies piece by piece, and one that it cannot copy whole ends what it gives (`unix_stream_read_generic`,
/// net/unix/af_unix.c): there is no room here for the last byte. (A look with less room is no answer: it shows the descriptors of
/// a later piece all the same.)
pub fn before_last_piece(fd: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    let mut bytes = vec![0u8; length.saturating_sub(1)];
    // In the first page, where nothing can be mapped (`vm.mmap_min_addr`).
    let nowhere = std::ptr::without_provenance_mut(1);
    let mut parts = [
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
        libc::iovec { iov_base: nowhere, iov_len: 1 },
    ];
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: the buffer is live, exclusively borrowed and as long as is said; what is behind it the kernel cannot write to, and
    // says so.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    if got >= 0 {
        return Ok(got.unsigned_abs());
    }
    let error = io::Error::last_os_error();
    // The first piece is the last.
    if error.raw_os_error() == Some(libc::EFAULT) { Ok(0) } else { Err(error) }
}

/// Whether an urgent byte waits in a unix stream (`MSG_OOB`).
pub fn has_urgent_byte(fd: BorrowedFd<'_>) -> bool {
    let mut byte = 0u8;
    let flags = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is one byte, live and exclusively borrowed.
    unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, flags) == 1 }
}

/// What travels with a message beside its bytes (`SCM_CREDENTIALS`, `SCM_RIGHTS`, unix(7)).
#[derive(Debug, Default)]
pub struct Attached<'a> {
    /// Others than one's own need privileges.
    pub credentials: Option<libc::ucred>,
    pub descriptors: Vec<BorrowedFd<'a>>,
}

/// Most descriptors that one message carries (`SCM_MAX_FD`, include/net/scm.h).
pub const MAX_DESCRIPTORS: usize = 253;

/// Sends without waiting, to a name or to the peer.
pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    to: Option<&[u8]>,
    attached: &Attached<'_>,
) -> io::Result<usize> {
    if attached.descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let (mut name, len) = unix_address(to.unwrap_or_default())?;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // Aligned as `struct cmsghdr` has to be, with room for a header with credentials and one with the most descriptors.
    let mut control = [0u64; 160];
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if to.is_some() {
        message.msg_name = (&raw mut name).cast();
        message.msg_namelen = len;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let credentials = attached.credentials.map(|who| {
        [who.pid as u32, who.uid, who.gid].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>()
    });
    let numbers: Vec<u8> = attached.descriptors.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
    let parts = [
        credentials.map(|bytes| (libc::SCM_CREDENTIALS, bytes)),
        Some((libc::SCM_RIGHTS, numbers)).filter(|(_, numbers)| !numbers.is_empty()),
    ];
    let mut used = 0;
    for (kind, carried) in parts.iter().flatten() {
        let size = carried.len() as libc::c_uint;
        // SAFETY: pure computations.
        let (len, space) = unsafe { (libc::CMSG_LEN(size) as usize, libc::CMSG_SPACE(size) as usize) };
        // SAFETY: `used` and `space` are multiples of the alignment of a header, and 12 bytes of credentials and those of
        // `MAX_DESCRIPTORS` with their headers are less than the buffer: all that is written is within.
        unsafe {
            let header = control.as_mut_ptr().cast::<u8>().add(used).cast::<libc::cmsghdr>();
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = *kind;
            (*header).cmsg_len = len;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(carried.as_ptr(), carried.len());
        }
        used += space;
    }
    if used > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = used;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: name, bytes, which are only read, and control buffer are live for the duration of the call and as long as is said.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent.unsigned_abs()) }
}

/// `sockaddr_un` for the bytes that follow the family: a path, or an abstract name with its leading NUL.
fn unix_address(name: &[u8]) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: all-zero bytes are a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if name.len() > address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    Ok((address, (size_of::<libc::sa_family_t>() + name.len()) as libc::socklen_t))
}

pub fn unix_socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: all arguments are numbers.
    adopt(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) })
}

pub fn unix_pair(kind: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    // SAFETY: the kernel writes two ints, live and exclusively borrowed.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) })?;
    Ok((adopt(pair[0])?, adopt(pair[1])?))
}

pub fn unix_bind(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (address, len) = unix_address(name)?;
    // SAFETY: the address is live for the duration of the call and as long as is said.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

pub fn unix_connect(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (address, len) = unix_address(name)?;
    // SAFETY: the address is live for the duration of the call and as long as is said.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: no address is asked for; the other arguments are numbers.
    adopt(unsafe {
        libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    })
}

pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// Opens what a descriptor of ours refers to once more, as a description of its own.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(io::Error::other)?;
    // SAFETY: the path is live for the duration of the call; no mode is needed without O_CREAT.
    adopt(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOCTTY) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_in_flight_are_seen_and_not_kept() {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let (a, b) = unix_pair(libc::SOCK_STREAM).unwrap();
        let extra = std::fs::File::open("/dev/null").unwrap();
        let rights = [extra.as_raw_fd()];
        let parts = [io::IoSlice::new(b"x")];
        sendmsg::<()>(a.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&rights)], MsgFlags::empty(), None)
            .unwrap();
        let inode = |fd: &str| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let before = inode(&a.as_raw_fd().to_string());
        let peeked = peek(b.as_fd(), 10).unwrap().unwrap();
        assert_eq!(peeked.descriptors.len(), 1);
        drop(peeked.descriptors);
        assert_eq!(peeked.bytes, b"x");
        assert_eq!(inode(&a.as_raw_fd().to_string()), before);
    }

    #[test]
    fn where_a_piece_of_a_stream_begins_is_seen() {
        let (a, b) = unix_pair(libc::SOCK_STREAM).unwrap();
        let put = |bytes: &[u8], descriptors: Vec<BorrowedFd<'_>>| {
            let attached = Attached { credentials: None, descriptors };
            assert_eq!(send(a.as_fd(), bytes, None, &attached).unwrap(), bytes.len());
        };
        put(b"before", Vec::new());
        put(b"more", Vec::new());
        put(b"with", vec![a.as_fd()]);
        put(b"after", Vec::new());
        set_socket_option(b.as_fd(), libc::SO_PEEK_OFF, 0).unwrap();
        let peeked = peek(b.as_fd(), 100).unwrap().unwrap();
        assert_eq!((peeked.bytes.as_slice(), peeked.descriptors.len()), (&b"beforemorewith"[..], 1));
        set_socket_option(b.as_fd(), libc::SO_PEEK_OFF, 0).unwrap();
        assert_eq!(before_last_piece(b.as_fd(), 14).unwrap(), 10);
        set_socket_option(b.as_fd(), libc::SO_PEEK_OFF, 0).unwrap();
        assert_eq!(before_last_piece(b.as_fd(), 6).unwrap(), 0);
    }

    #[test]
    fn a_group_that_owns_a_descriptor_is_seen() {
        let (a, _b) = unix_pair(libc::SOCK_STREAM).unwrap();
        assert_eq!(signal_owner(a.as_fd()).unwrap().number, 0);
        // SAFETY: F_SETOWN takes a number.
        check(unsafe { libc::fcntl(a.as_raw_fd(), libc::F_SETOWN, std::process::id() as i32) }).unwrap();
        assert_eq!(signal_owner(a.as_fd()).unwrap().number, std::process::id() as i32);
    }
}
