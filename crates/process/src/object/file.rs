//! Files and directories that are open.
//!
//! A file that every host has by itself is opened again by its path, after it was found to be the same; one in a scratch
//! directory likewise, its content being [`super::scratch`]'s. A scratch file that was removed while open has no path,
//! so that its content travels with the description.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens, lstat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchown, lseek};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::descriptor::{At, BuildContext, StatusFlags, Surroundings};
use super::shared;
use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::sys::descriptor as sys;
use crate::sys::proc::{self, info_field};
use crate::sys::remote::Batch;
use crate::sys::shared as memory;

/// Up to this size files are compared by content, which takes 10 ms; larger ones by size and time of modification.
const MAX_HASHED: i64 = 64 << 20;
/// Up to this size the content of a removed file is carried along.
const MAX_CARRIED: i64 = 64 << 20;
/// More files than a workload has open at once (`RLIMIT_NOFILE` is mostly below).
const MAX_REMEMBERED: usize = 65_536;
/// More locks on one file than this do not fit into one batch with the rest of a process's descriptors.
pub const MAX_LOCKS: usize = 256;
/// Files and directories below `/proc/PID` that can be opened again (proc(5)).
const OF_PROCESS: [&str; 26] = [
    "",
    "autogroup",
    "cgroup",
    "cmdline",
    "comm",
    "coredump_filter",
    "cpuset",
    "fd",
    "fdinfo",
    "io",
    "limits",
    "loginuid",
    "mountinfo",
    "mounts",
    "net",
    "oom_adj",
    "oom_score",
    "oom_score_adj",
    "sched",
    "schedstat",
    "sessionid",
    "stat",
    "statm",
    "status",
    "task",
    "wchan",
];
/// What `/proc/PID/fd` appends to the path of what has been removed.
const DELETED: &str = " (deleted)";
/// How the paths of memfds begin; they are on a file system of the kernel's own.
pub const MEMFD: &str = "/memfd:";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// As the workload sees it.
    pub path: String,
    pub flags: StatusFlags,
    pub offset: u64,
    pub identity: Option<Identity>,
    pub deleted: Option<DeletedFile>,
    pub locks: Vec<FileLock>,
}

/// What a file of the host's own must be like on the other host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub size: i64,
    pub modified: (i64, i64),
    /// XXH3 of the content. If there is one, the time of modification does not matter.
    pub hash: Option<u64>,
}

/// A file, on the host where it was captured; several descriptions may be of the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileKey {
    pub device: u64,
    pub inode: u64,
}

impl FileKey {
    /// No device has this number: segments of System V shared memory are known by their ids.
    const SEGMENTS: u64 = u64::MAX;

    pub fn of_segment(id: i32) -> Self {
        Self { device: Self::SEGMENTS, inode: u64::from(id.unsigned_abs()) }
    }

    pub(crate) fn of(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A file that has no name any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedFile {
    pub key: FileKey,
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    /// None of one that is captured as shared memory, with its content ([`super::shared`]).
    pub content: Option<Vec<u8>>,
}

impl DeletedFile {
    /// One whose content and attributes are captured as shared memory.
    fn elsewhere(key: FileKey) -> Self {
        Self { key, mode: 0, owner: (0, 0), modified: (0, 0), content: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    pub owner: LockOwner,
    pub exclusive: bool,
    pub start: u64,
    /// The last byte; none is the end of the file, wherever that is.
    pub end: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockOwner {
    /// `flock(2)`: the description.
    Description,
    /// `F_OFD_SETLK`: the description.
    Range,
    /// `F_SETLK`: a process, which holds it on the file and has this descriptor of it.
    Process { pid: Pid, fd: i32 },
}

/// A directory. Where reading it stood is a cookie of the file system: exact for file systems that are the same on both
/// hosts; after a failover reading one that was half read in a scratch directory may skip or repeat entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub path: String,
    pub flags: StatusFlags,
    pub offset: u64,
}

pub(super) fn modified(stat: &FileStat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec)
}

pub(super) fn changed(stat: &FileStat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

/// Hashes of files, remembered for as long as a file's times and size stay as they are.
#[derive(Default)]
pub struct FileHashes {
    known: HashMap<FileKey, (Stamp, u64)>,
}

type Stamp = (i64, (i64, i64), (i64, i64));

impl FileHashes {
    pub fn new() -> Self {
        Self::default()
    }

    /// The identity of the file at `path`, which may be a magic link. Worth asking for before the workload is stopped.
    pub fn identity(&mut self, path: &Path, stat: &FileStat) -> io::Result<Identity> {
        let hash = if stat.st_size > MAX_HASHED { None } else { Some(self.hash(path, stat)?) };
        Ok(Identity { size: stat.st_size, modified: modified(stat), hash })
    }

    fn hash(&mut self, path: &Path, stat: &FileStat) -> io::Result<u64> {
        let key = FileKey { device: stat.st_dev, inode: stat.st_ino };
        let stamp = (stat.st_size, modified(stat), changed(stat));
        if let Some((_, hash)) = self.known.get(&key).filter(|(known, _)| *known == stamp) {
            return Ok(*hash);
        }
        let mut file = File::open(path)?;
        let mut hash = Xxh3::new();
        let mut chunk = vec![0u8; 1 << 20];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                got => hash.update(&chunk[..got]),
            }
        }
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        let hash = hash.digest();
        self.known.insert(key, (stamp, hash));
        Ok(hash)
    }
}

/// The path under which something is open, as the workload sees it.
pub(super) fn open_path(at: &At<'_>) -> Result<String> {
    let link = std::fs::read_link(at.link()).attempt(|| format!("read the link {}", at.link().display()))?;
    link.into_os_string()
        .into_string()
        .map_err(|path| at.refuse(format!("the file {path:?}, whose name is not UTF-8"), "rename the file"))
}

/// That the path leads to what is open: it may have been mounted over, or be the name a removed hard link had.
pub(super) fn check_path(at: &At<'_>, path: &str, stat: &FileStat) -> Result<()> {
    let mut full = proc::path(at.holder.root, "root").into_os_string();
    full.push(path);
    match lstat(full.as_os_str()) {
        Ok(found) if (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino) => Ok(()),
        _ => Err(at.refuse(
            format!("{path}, which is no longer what it has open under that name"),
            "restart the program after replacing, unlinking or mounting over files that it has open",
        )),
    }
}

pub(super) fn capture(at: &At<'_>, surroundings: &Surroundings, hashes: &mut FileHashes) -> Result<OpenFile> {
    let info = at.info()?;
    // Before the flags: a lease sets `O_ASYNC` as well, and is what to complain about.
    let locks = capture_locks(at, &info)?;
    let flags = at.status_flags(&info)?;
    let offset = offset(at, &info)?;
    let stat = at.stat()?;
    let mut path = open_path(at)?;
    let key = FileKey::of(&stat);
    if memory::device().is_ok_and(|own| own == stat.st_dev) && path.starts_with(MEMFD) {
        path.truncate(path.strip_suffix(DELETED).unwrap_or(&path).len());
        let deleted = Some(DeletedFile::elsewhere(key));
        return Ok(OpenFile { path, flags, offset, identity: None, deleted, locks });
    }
    if stat.st_nlink == 0 {
        path.truncate(path.strip_suffix(DELETED).unwrap_or(&path).len());
        if !surroundings.is_scratch(&path) {
            return Err(
                at.refuse(format!("the file {path}, which was removed"), "restart it to use the new file")
            );
        }
        let deleted = match surroundings.mapped.contains(&key) {
            true => DeletedFile::elsewhere(key),
            false => capture_deleted(at, &path, &stat)?,
        };
        let deleted = Some(deleted);
        return Ok(OpenFile { path, flags, offset, identity: None, deleted, locks });
    }
    // Found anew at each lookup (`pde_force_lookup`, fs/proc/internal.h), so that one that is open always looks removed.
    if is_of_network(&path) {
        path.truncate(path.strip_suffix(DELETED).unwrap_or(&path).len());
    } else {
        check_path(at, &path, &stat)?;
    }
    let mut identity = None;
    if !surroundings.is_scratch(&path) {
        if flags.writes() {
            return Err(at.refuse(
                format!("the file {path} for writing, which is in no directory whose contents are kept"),
                "declare the directory with --scratch",
            ));
        }
        let kind =
            statfs(&at.link()).attempt(|| format!("ask what file system {path} is on"))?.filesystem_type();
        if kind == PROC_SUPER_MAGIC {
            refuse_process(at, &path)?;
        } else if kind != SYSFS_MAGIC && kind != CGROUP2_SUPER_MAGIC && !flags.is_path() {
            identity =
                Some(hashes.identity(&at.link(), &stat).attempt(|| format!("read {path} to compare it"))?);
        }
    }
    Ok(OpenFile { path, flags, offset, identity, deleted: None, locks })
}

fn offset(at: &At<'_>, info: &str) -> Result<u64> {
    info_field(info, "pos").and_then(|text| text.parse().ok()).ok_or_else(|| at.unreadable("pos"))
}

/// The part of a path that is below `/proc/PID`.
fn of_process(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/proc/").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))?;
    Some(rest.split_once('/').map_or("", |(_, name)| name))
}

/// What is open in `/proc`, if it is a process's: of one that there is, and such as can be opened again.
pub(crate) fn check_of_process(at: &At<'_>) -> Result<()> {
    let path = open_path(at)?;
    match of_process(&path) {
        None => Ok(()),
        Some(_) if is_of_network(&path) => Ok(()),
        Some(_) => refuse_process(at, &path).and_then(|()| check_path(at, &path, &at.stat()?)),
    }
}

fn is_of_network(path: &str) -> bool {
    of_process(path).is_some_and(|name| name.starts_with("net/"))
}

/// Files of `/proc` that are not a process's say the same kind of thing on every host; of a process's, those that are about the
/// process and not about the memory, or the thread, that it had when they were opened.
fn refuse_process(at: &At<'_>, path: &str) -> Result<()> {
    match of_process(path) {
        None => Ok(()),
        Some(name) if is_of_network(path) || OF_PROCESS.contains(&name) => Ok(()),
        Some(_) => {
            Err(at.refuse(format!("the open file {path}"), "it is protected as soon as that is closed"))
        }
    }
}

fn capture_deleted(at: &At<'_>, path: &str, stat: &FileStat) -> Result<DeletedFile> {
    if stat.st_size > MAX_CARRIED {
        return Err(at.refuse(
            format!("the file {path}, which was removed while open and has {} MiB", stat.st_size >> 20),
            "let the program remove it after closing it, or keep it below 64 MiB",
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0));
    File::open(at.link())
        .and_then(|mut file| file.read_to_end(&mut content))
        .attempt(|| format!("read {path}, which was removed"))?;
    Ok(DeletedFile {
        key: FileKey { device: stat.st_dev, inode: stat.st_ino },
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        modified: modified(stat),
        content: Some(content),
    })
}

fn capture_locks(at: &At<'_>, info: &str) -> Result<Vec<FileLock>> {
    let mut locks = Vec::new();
    for holder in [&at.holder].into_iter().chain(at.others) {
        // Locks of the description show everywhere; those of a process only with its own descriptors.
        let own = holder.tid == at.holder.tid;
        let elsewhere = match own {
            true => String::new(),
            false => proc::descriptor_info(holder.tid, holder.fd)
                .attempt(|| format!("read about descriptor {} of process {}", holder.fd, holder.process))?,
        };
        let info = if own { info } else { &elsewhere };
        for line in info.lines().filter(|line| line.starts_with("lock:")) {
            let process = LockOwner::Process { pid: holder.process, fd: holder.fd };
            let lock = parse_lock(line, process).ok_or_else(|| {
                at.refuse(
                    format!("a file lease ({})", line.trim()),
                    "let the program use locks instead of leases",
                )
            })?;
            if !locks.contains(&lock) {
                locks.push(lock);
            }
        }
    }
    if locks.len() > MAX_LOCKS {
        let advice = "let the program lock fewer, larger ranges";
        return Err(at.refuse(format!("{} locks on one file", locks.len()), advice));
    }
    Ok(locks)
}

/// `lock: 1: FLOCK ADVISORY WRITE 123 00:2d:9 0 EOF` (`lock_get_status` in fs/locks.c); `None` for what is not a lock.
fn parse_lock(line: &str, process: LockOwner) -> Option<FileLock> {
    let mut words = line.split_whitespace().skip(2);
    let owner = match words.next()? {
        "FLOCK" => LockOwner::Description,
        "OFDLCK" => LockOwner::Range,
        "POSIX" => process,
        _ => return None,
    };
    let exclusive = match words.nth(1)? {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let start = words.nth(2)?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        end => Some(end.parse().ok()?),
    };
    Some(FileLock { owner, exclusive, start, end })
}

pub(super) fn capture_directory(at: &At<'_>, surroundings: &Surroundings) -> Result<Directory> {
    let info = at.info()?;
    let stat = at.stat()?;
    let path = open_path(at)?;
    if !surroundings.is_scratch(&path) && path.starts_with("/proc/") {
        refuse_process(at, &path)?;
    }
    check_path(at, &path, &stat)?;
    Ok(Directory { path, flags: at.status_flags(&info)?, offset: offset(at, &info)? })
}

/// Opens something of the expected type (`S_IFREG` …) without ever leaving the root or following a link: paths that
/// were captured have none, and those of a forged checkpoint must not lead anywhere else.
pub(super) fn open_in_root(
    root: &Path,
    path: &str,
    flags: StatusFlags,
    kind: u32,
) -> Result<(OwnedFd, FileStat)> {
    let attempt = || format!("open {path} for the workload");
    let top =
        open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).attempt(attempt)?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(
        ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    let found = openat2(&top, path, how).attempt(attempt)?;
    let stat = fstat(&found).attempt(attempt)?;
    // Before it is really opened: that would wait for a named pipe, and does things to devices.
    if stat.st_mode & libc::S_IFMT != kind {
        return Err(Error::Mismatch(format!("{path} is not the kind of file that it was")));
    }
    if flags.is_path() {
        return Ok((found, stat));
    }
    let opened = sys::reopen(found.as_fd(), flags.for_open()).attempt(attempt)?;
    Ok((opened, stat))
}

pub(super) fn build(object: &OpenFile, context: &mut BuildContext<'_>) -> Result<OwnedFd> {
    let path = &object.path;
    let memfd = object.deleted.as_ref().is_some_and(|deleted| deleted.content.is_none());
    if object.flags.writes() && !memfd && !context.surroundings.is_scratch(path) {
        return Err(Error::Mismatch(format!("{path} is to be written to and is in no scratch directory")));
    }
    let fd = match &object.deleted {
        Some(deleted) => build_deleted(object, deleted, context)?,
        None => {
            let (fd, stat) = open_in_root(&context.root, path, object.flags, libc::S_IFREG)?;
            if let Some(expected) = &object.identity {
                verify(path, &fd, &stat, expected, context.hashes)?;
            }
            fd
        }
    };
    if object.flags.is_path() {
        return Ok(fd);
    }
    seek(&fd, path, object.offset)?;
    if object.offset > 0 && of_process(path).is_some() {
        // Seeking has made the kernel write down what follows, of a process that is not yet what it will be. Having read elsewhere it does
        // so anew (`seq_read_iter`, fs/seq_file.c). What cannot be read has nothing written down.
        let _ = File::from(fd.try_clone().attempt(|| format!("look into {path}"))?).read_at(&mut [0], 0);
    }
    for lock in &object.locks {
        let taken = match lock.owner {
            LockOwner::Description => sys::lock_description(fd.as_fd(), lock.exclusive),
            LockOwner::Range => {
                sys::lock_range(fd.as_fd(), &sys::range_lock(lock.exclusive, lock.start, lock.end))
            }
            LockOwner::Process { .. } => Ok(()),
        };
        taken.attempt(|| format!("lock {path} again"))?;
    }
    Ok(fd)
}

fn seek(fd: &OwnedFd, path: &str, offset: u64) -> Result<()> {
    if offset == 0 {
        return Ok(());
    }
    let offset = i64::try_from(offset).map_err(|_| Error::Mismatch(format!("offset {offset} in {path}")))?;
    lseek(fd, offset, Whence::SeekSet).attempt(|| format!("seek to {offset} in {path}")).map(drop)
}

fn verify(
    path: &str,
    fd: &OwnedFd,
    stat: &FileStat,
    expected: &Identity,
    hashes: &mut FileHashes,
) -> Result<()> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let found = hashes.identity(Path::new(&link), stat).attempt(|| format!("read {path} to compare it"))?;
    let same = found.size == expected.size
        && match expected.hash {
            Some(_) => found.hash == expected.hash,
            None => found.modified == expected.modified,
        };
    if same { Ok(()) } else { Err(Error::Mismatch(format!("{path} differs between the two hosts"))) }
}

/// Verifies ahead of time that a file of this host is the one that was open on the other, so that [`BuildContext`]
/// finds it known.
pub fn prepare(object: &OpenFile, root: &Path, hashes: &mut FileHashes) -> Result<()> {
    let Some(expected) = &object.identity else { return Ok(()) };
    let (fd, stat) = open_in_root(root, &object.path, StatusFlags(libc::O_RDONLY), libc::S_IFREG)?;
    verify(&object.path, &fd, &stat, expected, hashes)
}

fn build_deleted(
    object: &OpenFile,
    deleted: &DeletedFile,
    context: &mut BuildContext<'_>,
) -> Result<OwnedFd> {
    let attempt = || format!("make the removed file {}", object.path);
    if !context.deleted.contains_key(&deleted.key) {
        let content = deleted.content.as_ref().ok_or_else(|| {
            Error::Mismatch(format!("the content of {} never was in a checkpoint", object.path))
        })?;
        let made = shared::removed(&object.path, &context.root, context.surroundings)?;
        made.write_all_at(content, 0).attempt(attempt)?;
        let (owner, group) = deleted.owner;
        fchown(&made, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group))).attempt(attempt)?;
        fchmod(&made, Mode::from_bits_truncate(deleted.mode)).attempt(attempt)?;
        let time = TimeSpec::new(deleted.modified.0, deleted.modified.1);
        futimens(&made, &time, &time).attempt(attempt)?;
        context.deleted.insert(deleted.key, OwnedFd::from(made));
    }
    let made = &context.deleted[&deleted.key];
    sys::reopen(made.as_fd(), object.flags.for_open()).attempt(attempt)
}

pub(super) fn build_directory(object: &Directory, root: &Path) -> Result<OwnedFd> {
    let (fd, _) = open_in_root(root, &object.path, object.flags, libc::S_IFDIR)?;
    if !object.flags.is_path() {
        seek(&fd, &object.path, object.offset)?;
    }
    Ok(fd)
}

/// Takes the record locks that belong to process `pid`, by that process and after its descriptors have their numbers:
/// closing any descriptor of a file drops all of a process's locks on it. Needs room in the batch for [`MAX_LOCKS`].
pub fn restore_process_locks(batch: &mut Batch, pid: Pid, file: &OpenFile) {
    for lock in file.locks.iter().take(MAX_LOCKS) {
        let LockOwner::Process { pid: owner, fd } = lock.owner else { continue };
        if owner != pid {
            continue;
        }
        let range = sys::range_lock(lock.exclusive, lock.start, lock.end);
        // `struct flock`: type, whence, padding, start, length, pid, padding.
        let mut raw = Vec::with_capacity(size_of::<libc::flock>());
        raw.extend_from_slice(&range.l_type.to_ne_bytes());
        raw.extend_from_slice(&range.l_whence.to_ne_bytes());
        raw.extend_from_slice(&[0; 4]);
        raw.extend_from_slice(&range.l_start.to_ne_bytes());
        raw.extend_from_slice(&range.l_len.to_ne_bytes());
        raw.extend_from_slice(&[0; 8]);
        let at = batch.bytes(&raw);
        batch.call(libc::SYS_fcntl, &[fd as u64, libc::F_SETLK as u64, at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_parsed_and_leases_are_not_taken_for_locks() {
        let process = LockOwner::Process { pid: 7, fd: 3 };
        let parse = |line| parse_lock(line, process);
        let flock = parse("lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF").unwrap();
        assert_eq!(flock, FileLock { owner: LockOwner::Description, exclusive: true, start: 0, end: None });
        let record = parse("lock:\t1: POSIX  ADVISORY  READ  359 00:13:11691 10 19").unwrap();
        assert_eq!(record, FileLock { owner: process, exclusive: false, start: 10, end: Some(19) });
        assert_eq!(parse("lock:\t1: LEASE  ACTIVE    READ 359 00:13:11691 0 EOF"), None);
        assert_eq!(parse("lock:\t1: FLOCK"), None);
    }
}
