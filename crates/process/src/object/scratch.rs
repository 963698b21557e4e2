//! Scratch directories: what programs keep in `/tmp`, `/run`, `/dev/shm` and the directories declared for it.
//!
//! A scan finds what has changed since the one before by the times that the file system keeps, and of a changed file
//! the blocks that differ by their hashes. Scanned once while the workload runs and once more when it is stopped, the
//! second one has little to read. Scanning while it runs is safe: what changes meanwhile has later times.
//!
//! Names of one file stay names of one file; of a symbolic link or a named pipe with several names each is kept for
//! itself. Times of access and of symbolic links are not kept.
//!
//! A write through a shared mapping leaves no trace in the times of a file on tmpfs (shmem has no `page_mkwrite`, so
//! nothing calls `file_update_time`): say which parts of which files were written so by [`Scratch::touch`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{Whence, lseek};
use xxhash_rust::xxh3::xxh3_64;

use super::descriptor::is_below;
use super::file::{FileKey, changed, modified};
pub use super::scratch_apply::apply;
use crate::checkpoint::{Blocks, FileChange};
use crate::error::{Attempt, Error, Result};
use crate::sys::descriptor as sys;
use crate::sys::pagemap::Range;
use crate::sys::task;

/// What is compared, and sent, of a file at once.
pub const BLOCK: usize = 64 * 1024;
/// Most content of one scan. More than this in one epoch cannot be kept in step anyway.
const MAX_CONTENT: u64 = 1 << 30;
/// Largest file, holes included: its blocks' hashes take 8 MiB then.
const MAX_FILE: i64 = 64 << 30;
/// Most entries; walking them takes some seconds then.
const MAX_ENTRIES: usize = 1_000_000;
/// Longest path: with the root before it, it has to stay below `PATH_MAX` (4,096).
const MAX_PATH: usize = 4_000;
/// Deepest nesting, which bounds the recursion.
const MAX_DEPTH: usize = 128;
/// Two changes within one tick of the kernel's coarse clock leave the same times (kernels before 6.13 have no finer
/// ones). A tick takes 10 ms at most (CONFIG_HZ is 100 or more): what changed within this many nanoseconds before it
/// was looked at is looked at again.
const TICK: i64 = 20_000_000;
/// The hash of a block that is all zero, be it written or a hole.
const ZERO: u64 = 0;

/// What is known of the scratch directories of a workload.
pub struct Scratch {
    root: PathBuf,
    directories: Vec<String>,
    known: BTreeMap<String, Entry>,
    /// Of files that are mapped, what was written through that.
    touched: HashMap<FileKey, Touched>,
    /// Where the scan found them.
    names: HashMap<FileKey, String>,
    left_out: HashSet<FileKey>,
}

/// What was written to a file through mappings of it since the last scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Any of it may have been.
    All,
    /// In bytes; in any order.
    Parts(Vec<Range>),
}

impl Touched {
    /// The blocks to look at, by their numbers; none if that is all.
    fn blocks(&self) -> Option<HashSet<u64>> {
        let Touched::Parts(parts) = self else { return None };
        let step = BLOCK as u64;
        Some(parts.iter().flat_map(|part| part.start / step..part.end.div_ceil(step)).collect())
    }
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    /// The next change will show in the stamp.
    settled: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A slot is empty only while it is looked at.
    Directory(BTreeMap<CString, Option<Entry>>),
    File(Vec<u64>),
    /// A further name of the file at this path.
    Link(String),
    /// Where to, and whose.
    Symlink(String, (u32, u32)),
    Node,
}

/// What changes when an entry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    key: FileKey,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn new(stat: &FileStat) -> Self {
        Self {
            key: FileKey { device: stat.st_dev, inode: stat.st_ino },
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            links: stat.st_nlink,
            size: stat.st_size,
            modified: modified(stat),
            changed: changed(stat),
        }
    }

    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// The same but for what nobody is told: when it was changed and how many links there are.
    fn looks_like(&self, other: &Stamp) -> bool {
        Stamp { links: other.links, changed: other.changed, ..*self } == *other
    }
}

impl Scratch {
    /// `root` is the workload's own view of the file system (`/proc/PID/root`), `directories` are paths in it.
    pub fn new(root: PathBuf, directories: Vec<String>) -> Self {
        // One inside another is walked with that.
        let inner = |directory: &String| {
            directories
                .iter()
                .any(|outer| outer != directory && is_below(std::slice::from_ref(outer), directory))
        };
        let mut directories: Vec<String> = directories.iter().filter(|path| !inner(path)).cloned().collect();
        directories.sort_unstable();
        directories.dedup();
        let (touched, names, left_out) = (HashMap::new(), HashMap::new(), HashSet::new());
        Self { root, directories, known: BTreeMap::new(), touched, names, left_out }
    }

    /// The next scan reports everything: for a new backup, or because what a scan reported was not used.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The files that are mapped, with what was written to them through that since the last scan.
    pub fn touch(&mut self, files: HashMap<FileKey, Touched>) {
        self.touched = files;
    }

    /// Files that the next scan does not open: to open one under a lease breaks the lease, also without waiting for that
    /// (`O_NONBLOCK`), and its holder is sent a SIGIO that ends most programs (`__break_lease` in fs/locks.c).
    pub fn leave_out(&mut self, files: HashSet<FileKey>) {
        self.left_out = files;
    }

    /// A name of a file that is mapped, if the last scan found one.
    pub fn name_of(&self, key: FileKey) -> Option<&str> {
        self.names.get(&key).map(String::as_str)
    }

    /// What has changed since the last scan. After an error everything is reported again.
    pub fn scan(&mut self) -> Result<Vec<FileChange>> {
        let mut known = std::mem::take(&mut self.known);
        let mut walk = Walk {
            now: task::clock(libc::CLOCK_REALTIME),
            touched: std::mem::take(&mut self.touched),
            left_out: std::mem::take(&mut self.left_out),
            names: HashMap::new(),
            linked: HashMap::new(),
            changes: Vec::new(),
            content: 0,
            entries: 0,
            block: vec![0; BLOCK],
        };
        for directory in &self.directories {
            walk.top(&self.root, directory, &mut known)?;
        }
        self.known = known;
        self.names = walk.names;
        Ok(walk.changes)
    }
}

struct Walk {
    now: i64,
    touched: HashMap<FileKey, Touched>,
    left_out: HashSet<FileKey>,
    names: HashMap<FileKey, String>,
    /// Of files with several names, the one met first.
    linked: HashMap<FileKey, String>,
    changes: Vec<FileChange>,
    content: u64,
    entries: usize,
    block: Vec<u8>,
}

const OPEN_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Walk {
    fn top(&mut self, root: &std::path::Path, path: &str, known: &mut BTreeMap<String, Entry>) -> Result<()> {
        let attempt = || format!("scan the scratch directory {path}");
        let full = root.join(path.trim_start_matches('/'));
        let directory = open(&full, OPEN_DIRECTORY, Mode::empty()).attempt(attempt)?;
        let stamp = Stamp::new(&fstat(&directory).attempt(attempt)?);
        let mut before = known.remove(path).filter(|entry| entry.stamp.key == stamp.key);
        if before.is_none() {
            self.changes.push(FileChange::Emptied { path: path.to_owned() });
        }
        let entry = self.directory(stamp, &mut path.to_owned(), directory, before.take(), 0)?;
        known.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Times this old show the next change.
    fn is_settled(&self, stamp: &Stamp) -> bool {
        let changed = stamp.changed.0.saturating_mul(1_000_000_000).saturating_add(stamp.changed.1);
        self.now.saturating_sub(changed) > TICK
    }

    fn directory(
        &mut self,
        stamp: Stamp,
        path: &mut String,
        directory: OwnedFd,
        before: Option<Entry>,
        depth: usize,
    ) -> Result<Entry> {
        if depth > MAX_DEPTH || path.len() > MAX_PATH {
            return Err(refuse(
                format!("the deeply nested scratch directory {path}"),
                "nest directories less",
            ));
        }
        let unchanged = before.as_ref().is_some_and(|before| before.settled && before.stamp == stamp);
        if !before.as_ref().is_some_and(|before| before.stamp.looks_like(&stamp)) {
            let (mode, owner, modified) = (stamp.permissions(), stamp.owner, stamp.modified);
            self.changes.push(FileChange::Directory { path: path.clone(), mode, owner, modified });
        }
        let mut children = match before.map(|before| before.what) {
            Some(What::Directory(children)) => children,
            _ => BTreeMap::new(),
        };
        if !unchanged {
            check_attributes(directory.as_fd(), path)?;
            let names = list(directory.as_fd()).attempt(|| format!("list the scratch directory {path}"))?;
            let len = path.len();
            for gone in children.keys().filter(|name| !names.contains(*name)) {
                push(path, gone)?;
                self.changes.push(FileChange::Removed { path: path.clone() });
                path.truncate(len);
            }
            children.retain(|name, _| names.contains(name));
            for name in names {
                children.entry(name).or_insert(None);
            }
        }
        // In the order of names, whether old or new: which name of a file is met first must not depend on history.
        let len = path.len();
        let mut lost = false;
        for (name, slot) in &mut children {
            push(path, name)?;
            *slot = self.entry(directory.as_fd(), name, path, slot.take(), depth)?;
            lost |= slot.is_none();
            path.truncate(len);
        }
        if lost {
            children.retain(|_, slot| slot.is_some());
        }
        Ok(Entry { settled: self.is_settled(&stamp) && !lost, stamp, what: What::Directory(children) })
    }

    /// `None` if it is not there any more.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &mut String,
        before: Option<Entry>,
        depth: usize,
    ) -> Result<Option<Entry>> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(refuse("more than a million files in scratch directories", "keep them in a volume"));
        }
        let stat = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed: the workload runs.
            Err(Errno::ENOENT) => {
                if before.is_some() {
                    self.changes.push(FileChange::Removed { path: path.clone() });
                }
                return Ok(None);
            }
            Err(errno) => return Err(errno).attempt(|| format!("stat {path}")),
        };
        let stamp = Stamp::new(&stat);
        if self.left_out.contains(&stamp.key) {
            return Ok(None);
        }
        let same_kind = before.as_ref().is_some_and(|before| before.stamp.kind() == stamp.kind());
        if before.is_some() && !same_kind {
            self.changes.push(FileChange::Removed { path: path.clone() });
        }
        let before = before.filter(|_| same_kind);
        if stamp.kind() == libc::S_IFDIR {
            return self.subdirectory(parent, name, stamp, path, before, depth);
        }
        let first = self.first_name(&stamp, path);
        let unchanged = before.as_ref().is_some_and(|before| {
            let in_place = match (&before.what, &first) {
                (What::Link(to), Some(first)) => to == first,
                (What::Link(_), None) => false,
                (_, first) => first.is_none(),
            };
            in_place && before.settled && before.stamp == stamp && !self.is_touched(&stamp.key)
        });
        if !self.touched.is_empty() && self.touched.contains_key(&stamp.key) {
            self.names.entry(stamp.key).or_insert_with(|| path.clone());
        }
        if unchanged {
            return Ok(before);
        }
        let what = match (stamp.kind(), first) {
            (libc::S_IFREG, Some(to)) => {
                if !before.is_some_and(|before| matches!(before.what, What::Link(known) if known == to)) {
                    self.changes.push(FileChange::Link { path: path.clone(), to: to.clone() });
                }
                What::Link(to)
            }
            (libc::S_IFREG, None) => match self.file(parent, name, path, &stamp, before)? {
                Some(blocks) => What::File(blocks),
                None => return Ok(None),
            },
            (libc::S_IFLNK, _) => self.symlink(parent, name, path, &stamp, before)?,
            (libc::S_IFIFO | libc::S_IFSOCK, _) => {
                if !before.is_some_and(|before| before.stamp.looks_like(&stamp)) {
                    let socket = stamp.kind() == libc::S_IFSOCK;
                    let (mode, owner) = (stamp.permissions(), stamp.owner);
                    self.changes.push(FileChange::Node { path: path.clone(), socket, mode, owner });
                }
                What::Node
            }
            _ => {
                return Err(refuse(
                    format!("the device node {path}"),
                    "make it outside of scratch directories",
                ));
            }
        };
        Ok(Some(Entry { settled: self.is_settled(&stamp), stamp, what }))
    }

    fn is_touched(&self, key: &FileKey) -> bool {
        match self.touched.get(key) {
            None => false,
            Some(Touched::All) => true,
            Some(Touched::Parts(parts)) => !parts.is_empty(),
        }
    }

    /// The name under which a file with several was met before in this scan.
    fn first_name(&mut self, stamp: &Stamp, path: &str) -> Option<String> {
        if stamp.kind() != libc::S_IFREG || stamp.links < 2 {
            return None;
        }
        if let Some(first) = self.linked.get(&stamp.key) {
            return Some(first.clone());
        }
        self.linked.insert(stamp.key, path.to_owned());
        None
    }

    fn subdirectory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        stamp: Stamp,
        path: &mut String,
        before: Option<Entry>,
        depth: usize,
    ) -> Result<Option<Entry>> {
        let directory = match openat(parent, name, OPEN_DIRECTORY, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                return Ok(self.gone(path, before.is_some()));
            }
            Err(errno) => return Err(errno).attempt(|| format!("open the scratch directory {path}")),
        };
        // Another directory of the same name has other children; that they are all new need not be found one by one.
        let before = match before {
            Some(before) if before.stamp.key != stamp.key => {
                self.changes.push(FileChange::Removed { path: path.clone() });
                None
            }
            before => before,
        };
        self.directory(stamp, path, directory, before, depth + 1).map(Some)
    }

    fn symlink(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &str,
        stamp: &Stamp,
        before: Option<Entry>,
    ) -> Result<What> {
        let target = readlinkat(parent, name).attempt(|| format!("read the symbolic link {path}"))?;
        let target = target.into_string().map_err(|target| {
            refuse(format!("the symbolic link {path} to {target:?}, which is not UTF-8"), "rename it")
        })?;
        let owner = stamp.owner;
        if !before.is_some_and(|old| matches!(old.what, What::Symlink(to, by) if to == target && by == owner))
        {
            let (path, target) = (path.to_owned(), target.clone());
            self.changes.push(FileChange::Symlink { path, target, owner });
        }
        Ok(What::Symlink(target, owner))
    }

    /// The hashes of a file's blocks, after saying which have changed. `None` if it is not there any more.
    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &str,
        stamp: &Stamp,
        before: Option<Entry>,
    ) -> Result<Option<Vec<u64>>> {
        let attempt = || format!("read the scratch file {path}");
        if stamp.size > MAX_FILE {
            return Err(refuse(
                format!("the scratch file {path} of {} GiB", stamp.size >> 30),
                "keep it in a volume",
            ));
        }
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
        let file = match openat(parent, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(self.gone(path, before.is_some())),
            Err(errno) => return Err(errno).attempt(attempt),
        };
        if Stamp::new(&fstat(&file).attempt(attempt)?).key != stamp.key {
            return Ok(self.gone(path, before.is_some()));
        }
        check_attributes(file.as_fd(), path)?;
        let (mode, owner, modified) = (stamp.permissions(), stamp.owner, stamp.modified);
        let mut only = None;
        let (known, old) = match before {
            Some(Entry { stamp: old, settled, what: What::File(hashes) }) if old.key == stamp.key => {
                // Nothing was written to it but through mappings.
                if settled && old == *stamp {
                    only = self.touched.remove(&stamp.key);
                }
                (Some(old), hashes)
            }
            _ => (None, Vec::new()),
        };
        let file = File::from(file);
        let size = stamp.size.unsigned_abs();
        let (hashes, blocks) = self.compare(&file, size, &old, only.as_ref()).attempt(attempt)?;
        if self.content > MAX_CONTENT {
            let what = "more than 1 GiB of scratch files written in one epoch";
            return Err(refuse(what, "keep what is written so fast in a volume"));
        }
        let path = path.to_owned();
        if known.is_none() {
            self.changes.push(FileChange::File {
                path: path.clone(),
                mode,
                owner,
                modified,
                content: Vec::new(),
            });
        }
        match self.changes.last_mut() {
            // A small new file is one change.
            Some(FileChange::File { content, .. }) if known.is_none() && size <= BLOCK as u64 => {
                if let Some((_, block)) = blocks.into_iter().next() {
                    *content = block;
                } else {
                    content.resize(usize::try_from(size).unwrap_or(0), 0);
                }
            }
            _ if !blocks.is_empty() || !known.is_some_and(|known| known.looks_like(stamp)) => {
                self.changes.push(FileChange::Blocks { path, mode, owner, modified, size, blocks });
            }
            _ => {}
        }
        Ok(Some(hashes))
    }

    /// Gone or replaced between two looks, while the workload runs: what is there now is for the next scan.
    fn gone<T>(&mut self, path: &str, known: bool) -> Option<T> {
        if known {
            self.changes.push(FileChange::Removed { path: path.to_owned() });
        }
        None
    }

    /// Hashes of all blocks, and the blocks that differ from the old ones. Looks only where it was touched, if that is known.
    fn compare(
        &mut self,
        file: &File,
        size: u64,
        old: &[u64],
        only: Option<&Touched>,
    ) -> io::Result<(Vec<u64>, Blocks)> {
        let step = BLOCK as u64;
        let mut hashes = Vec::with_capacity(size.div_ceil(step) as usize);
        let mut blocks = Vec::new();
        let mut data = 0..0u64;
        let only = only.and_then(Touched::blocks);
        for at in (0..size).step_by(BLOCK) {
            if let (Some(only), Some(was)) = (&only, old.get(hashes.len()))
                && !only.contains(&(at / step))
            {
                hashes.push(*was);
                continue;
            }
            if at >= data.end {
                data = next_data(file, at)?;
            }
            let len = step.min(size - at) as usize;
            // A block that ends before the next data does is all hole.
            let hash = if at + len as u64 <= data.start {
                ZERO
            } else {
                let block = &mut self.block[..len];
                let got = read_up_to(file, block, at)?;
                // Shorter than it was a moment ago: it is being truncated, and the next scan sees it.
                block[got..].fill(0);
                if block.iter().all(|byte| *byte == 0) { ZERO } else { xxh3_64(block).max(1) }
            };
            let was = old.get(hashes.len()).copied();
            // What a file grows by is zero until it is written.
            if was.unwrap_or(ZERO) != hash {
                let block = if hash == ZERO { Vec::new() } else { self.block[..len].to_vec() };
                self.content += block.len() as u64;
                blocks.push((at, block));
            }
            hashes.push(hash);
            if self.content > MAX_CONTENT {
                break;
            }
        }
        Ok((hashes, blocks))
    }
}

/// The next piece of a file that is not a hole; empty at the end of the file if there is none.
fn next_data(file: &File, at: u64) -> io::Result<std::ops::Range<u64>> {
    let seek = |whence| match lseek(file, at as i64, whence) {
        Ok(found) => Ok(found.unsigned_abs()),
        Err(Errno::ENXIO) => Ok(u64::MAX),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let start = seek(Whence::SeekData)?;
    if start == u64::MAX {
        return Ok(u64::MAX..u64::MAX);
    }
    match lseek(file, start as i64, Whence::SeekHole) {
        Ok(end) => Ok(start..end.unsigned_abs()),
        // Truncated meanwhile.
        Err(Errno::ENXIO) => Ok(u64::MAX..u64::MAX),
        Err(errno) => Err(io::Error::from(errno)),
    }
}

fn read_up_to(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match file.read_at(&mut into[got..], at + got as u64)? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

fn list(directory: BorrowedFd<'_>) -> io::Result<HashSet<CString>> {
    // Reading moves the offset of the description: one of our own.
    let mut directory = nix::dir::Dir::from_fd(sys::reopen(directory, libc::O_RDONLY | libc::O_DIRECTORY)?)?;
    let mut names = HashSet::new();
    for entry in directory.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Appends a name to a path.
fn push(path: &mut String, name: &CStr) -> Result<()> {
    let Ok(text) = name.to_str() else {
        return Err(refuse(
            format!("the scratch file {path}/{}", name.to_string_lossy()),
            "give it a name in UTF-8",
        ));
    };
    path.push('/');
    path.push_str(text);
    if path.len() > MAX_PATH {
        return Err(refuse(format!("the long path {path}"), "nest directories less"));
    }
    Ok(())
}

/// Extended attributes are not kept. (A label that the system itself puts on every file is none of the program's.)
fn check_attributes(fd: BorrowedFd<'_>, path: &str) -> Result<()> {
    let names = sys::attribute_names(fd).attempt(|| format!("ask for the extended attributes of {path}"))?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let label = name.starts_with(b"security.") && name != b"security.capability";
        if !label {
            let name = String::from_utf8_lossy(name);
            let what = format!("the extended attribute {name} of {path}");
            return Err(refuse(what, "keep files with extended attributes or access lists in a volume"));
        }
    }
    Ok(())
}

fn refuse(what: impl Into<String>, advice: &'static str) -> Error {
    // Whose it is cannot be told; the first process stands for the workload.
    Error::Unsupported { pid: 1, what: what.into(), advice }
}
