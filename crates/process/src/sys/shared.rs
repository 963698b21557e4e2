//! Memory that has no name and can be shared: anonymous, memfd, System V (`memfd_create(2)`, `shmget(2)`).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use super::pagemap::Range;

/// Largest object: as much as can be mapped at all (`USER_END`, rounded).
pub const MAX_SIZE: u64 = 1 << 47;

/// `/proc/PID/map_files/START-END`, where the kernel shows the file behind a mapping.
pub fn map_file(start: u64, end: u64) -> String {
    format!("map_files/{start:x}-{end:x}")
}

/// The file behind a mapping of another process, for reading. The mapping may have been joined with its neighbours since its
/// range was read: registering them for tracking takes away what kept them apart.
pub fn open_mapped(pid: super::ptrace::Tid, range: Range) -> io::Result<File> {
    match File::open(super::proc::path(pid, &map_file(range.start, range.end))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    for entry in std::fs::read_dir(super::proc::path(pid, "map_files"))? {
        let entry = entry?;
        let name = entry.file_name();
        let bounds = name.to_str().and_then(|name| name.split_once('-'));
        let number = |text| u64::from_str_radix(text, 16).ok();
        if let Some((start, end)) = bounds.and_then(|(start, end)| Some((number(start)?, number(end)?)))
            && start <= range.start
            && range.start < end
        {
            return File::open(entry.path());
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENOENT))
}

/// Shared memory without a file, as `mmap(MAP_SHARED | MAP_ANONYMOUS)` makes it, as a file of ours.
pub fn anonymous(size: u64) -> io::Result<File> {
    if size == 0 || size > MAX_SIZE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice; nothing refers to it but this function.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size as usize, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let opened = open_mapping(at as u64, size);
    // SAFETY: the mapping made above, which nobody has been told of.
    unsafe { libc::munmap(at, size as usize) };
    opened
}

/// The file behind a mapping of our own, for reading and writing.
fn open_mapping(start: u64, size: u64) -> io::Result<File> {
    // The kernel maps whole pages.
    let end = start + size.next_multiple_of(super::pagemap::PAGE_SIZE);
    let path = Path::new("/proc/self").join(map_file(start, end));
    OpenOptions::new().read(true).write(true).open(path)
}

/// A memfd that can be sealed.
pub fn memfd(name: &str) -> io::Result<File> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the name is live for the duration of the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

pub fn seals(file: impl AsFd) -> io::Result<i32> {
    // SAFETY: F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals) }
}

pub fn add_seals(file: impl AsFd, seals: i32) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes a number.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The device number of the kernel's own tmpfs, on which all memory without a name is.
pub fn device() -> io::Result<u64> {
    static DEVICE: OnceLock<u64> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(*device);
    }
    let device = nix::sys::stat::fstat(memfd("outlive")?)?.st_dev;
    Ok(*DEVICE.get_or_init(|| device))
}

/// A segment of System V shared memory (`struct shmid_ds`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub id: i32,
    pub key: i32,
    pub size: u64,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// As `mode` says of a segment that goes with its last user (`SHM_DEST`, linux/shm.h).
pub const SHM_DEST: u32 = 0o1000;
/// As `mode` says of a segment that is locked in memory (`SHM_LOCKED`).
pub const SHM_LOCKED: u32 = 0o2000;

/// Does something in the System V namespace of another process. The calling thread must not be in a call of that kind.
pub fn in_ipc_of<T>(pid: super::ptrace::Tid, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/ipc")?;
    let other = File::open(super::proc::path(pid, "ns/ipc"))?;
    nix::sched::setns(&other, nix::sched::CloneFlags::CLONE_NEWIPC)?;
    let result = work();
    nix::sched::setns(&own, nix::sched::CloneFlags::CLONE_NEWIPC)?;
    result
}

/// All segments of the namespace that the calling thread is in.
pub fn segments() -> io::Result<Vec<Segment>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm")?;
    let unknown = || io::Error::other("the list of shared memory is in a form that is not known");
    text.lines().skip(1).map(|line| parse_segment(line).ok_or_else(unknown)).collect()
}

/// `key shmid perms size cpid lpid nattch uid gid cuid cgid …` (`sysvipc_shm_proc_show`, ipc/shm.c).
fn parse_segment(line: &str) -> Option<Segment> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u32>().ok();
    Some(Segment {
        // Signed, as `%10d` says it.
        key: words.first()?.parse().ok()?,
        id: words.get(1)?.parse().ok()?,
        mode: u32::from_str_radix(words.get(2)?, 8).ok()?,
        size: words.get(3)?.parse().ok()?,
        owner: (number(7)?, number(8)?),
    })
}

/// The file behind a segment of the namespace that the calling thread is in.
pub fn open_segment(id: i32, size: u64) -> io::Result<File> {
    // SAFETY: attaches at a place of the kernel's choice; nothing refers to it but this function.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    let opened = open_mapping(at as u64, size);
    // SAFETY: attached above, and nobody has been told of it.
    unsafe { libc::shmdt(at) };
    opened
}

/// A segment that is attached here until this is dropped, so that it outlives its removal.
#[derive(Debug)]
pub struct Attached {
    address: usize,
}

impl Attached {
    /// Of the namespace that the calling thread is in.
    pub fn new(id: i32) -> io::Result<Self> {
        // SAFETY: attaches at a place of the kernel's choice; nothing refers to it but the value made here.
        let at = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
        if at as isize == -1 { Err(io::Error::last_os_error()) } else { Ok(Self { address: at as usize }) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by `new`, and nobody else was told of it.
        unsafe { libc::shmdt(self.address as *const libc::c_void) };
    }
}

/// Makes a segment with its id, in the namespace that the calling thread is in.
pub fn make_segment(segment: &Segment) -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/shm_next_id", segment.id.to_string())?;
    let size = usize::try_from(segment.size).map_err(io::Error::other)?;
    let mode = (segment.mode & 0o777) as i32;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | libc::SHM_NORESERVE | mode;
    // SAFETY: all arguments are numbers.
    let id = unsafe { libc::shmget(segment.key, size, flags) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    if id != segment.id {
        remove_segment(id)?;
        return Err(io::Error::other(format!("segment {} came to be {id}", segment.id)));
    }
    describe_segment(segment)
}

/// Gives a segment its owner and mode.
pub fn describe_segment(segment: &Segment) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `shmid_ds`.
    let mut known: libc::shmid_ds = unsafe { std::mem::zeroed() };
    known.shm_perm.uid = segment.owner.0;
    known.shm_perm.gid = segment.owner.1;
    known.shm_perm.mode = (segment.mode & 0o777) as _;
    // SAFETY: `known` is live, and the kernel reads one `shmid_ds`.
    let result = unsafe { libc::shmctl(segment.id, libc::IPC_SET, &raw mut known) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn remove_segment(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no argument.
    let result = unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where data begins at or after a place in a file, and where it ends; none behind the last.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(io::Error::other)?;
        match nix::unistd::lseek(file, at, whence) {
            Ok(found) => Ok(Some(found.unsigned_abs())),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        }
    };
    let Some(start) = seek(at, nix::unistd::Whence::SeekData)? else { return Ok(None) };
    Ok(seek(start, nix::unistd::Whence::SeekHole)?.map(|end| start..end))
}

/// Gives pages of a file back.
pub fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    Ok(fallocate(file, flags, number(at)?, number(len)?)?)
}

/// Opens a file of ours once more, for reading only.
pub fn read_only(file: &File) -> io::Result<OwnedFd> {
    super::descriptor::reopen(file.as_fd(), libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn anonymous_shared_memory_can_be_had_as_a_file() {
        let file = anonymous(3 << 20).unwrap();
        file.write_all_at(b"here", 1 << 20).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("/dev/zero (deleted)"));
        assert_eq!(next_data(&file, 0).unwrap(), Some(1 << 20..(1 << 20) + 4096));
        punch(&file, 1 << 20, 4096).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
    }

    #[test]
    fn lists_of_segments_are_parsed() {
        let line =
            " 4660          1  1600                  5000  4146  4146      1     7     8     0     0 1 0 1";
        let segment = parse_segment(line).unwrap();
        let expected = Segment { id: 1, key: 0x1234, size: 5000, mode: 0o1600, owner: (7, 8) };
        assert_eq!(segment, expected);
        assert_eq!(parse_segment("nonsense"), None);
    }
}
