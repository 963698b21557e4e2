//! Watching of files (`inotify(7)`).
//!
//! A watch is known by its number, its mask and the path of what it watches, which is found by the handle in fdinfo. Events
//! that have not been read are neither taken nor made again: a checkpoint waits until the program has read them.
//!
//! What the capture itself opens shows to the program that watches it; [`discard`] takes these events out again before
//! the program runs. On the new host the watches are made last, by [`restore`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat, lstat, major, minor};
use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::memory::KernelMemory;
use crate::sys::{descriptor as sys, inotify, proc};

/// Most watches of one instance: what a pause has room for. (`fs.inotify.max_user_watches` allows for far more.)
const MAX_WATCHES: usize = 65_536;
/// Events that looking at files brings about.
const OF_LOOKING: u32 = libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE_NOWRITE;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inotify {
    pub flags: StatusFlags,
    /// The number of the next watch.
    pub next: i32,
    pub watches: Vec<Watch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub number: i32,
    pub mask: u32,
    /// As the workload sees it.
    pub path: String,
}

/// A line of fdinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    number: i32,
    inode: u64,
    /// As `MKDEV` in include/linux/kdev_t.h makes it.
    device: u64,
    mask: u32,
    pub(crate) handle_kind: i32,
    pub(crate) handle: Vec<u8>,
}

/// `inotify wd:1 ino:2a sdev:8 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:2a00…` (fs/notify/fdinfo.c).
pub(crate) fn parse_line(line: &str) -> Option<Watched> {
    let field =
        |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    let hex = |key: &str| u64::from_str_radix(field(key)?, 16).ok();
    let text = field("f_handle")?;
    let handle = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    Some(Watched {
        number: i32::from_str_radix(field("wd")?, 16).ok()?,
        inode: hex("ino")?,
        device: hex("sdev")?,
        mask: u32::try_from(hex("mask")?).ok()?,
        handle_kind: i32::from_str_radix(field("fhandle-type")?, 16).ok()?,
        handle,
    })
}

/// Where the kernel keeps an instance, by its open file.
fn group(at: &At<'_>) -> Option<(&'static KernelMemory, u64)> {
    let memory = KernelMemory::shared().ok()?;
    let group = memory.double(at.file? + memory.members.file_private).ok()?;
    Some((memory, group))
}

/// Whether events wait to be read.
pub(crate) fn is_waiting(at: &At<'_>) -> Result<bool> {
    if let Some((memory, group)) = group(at)
        && let Ok(count) = memory.word(group + memory.members.group_count)
    {
        return Ok(count > 0);
    }
    let bytes = sys::readable_bytes(at.duplicate()?.as_fd());
    Ok(bytes.attempt(|| "ask for events of inotify".to_owned())? > 0)
}

/// Refuses an instance for as long as events wait in it.
pub(crate) fn check(at: &At<'_>) -> Result<()> {
    if is_waiting(at)? {
        let advice = "it is kept as soon as the program has read them";
        return Err(at.refuse("events of inotify that have not been read", advice));
    }
    Ok(())
}

/// The number of the next watch, if the kernel can be asked.
pub(super) fn next(at: &At<'_>) -> Option<i32> {
    let (memory, group) = group(at)?;
    i32::try_from(memory.word(group + memory.members.group_next).ok()?).ok()
}

pub(super) fn capture(at: &At<'_>, mounts: &mut Mounts) -> Result<Inotify> {
    let info = at.info()?;
    let lines: Vec<&str> = info.lines().filter(|line| line.starts_with("inotify ")).collect();
    if lines.len() > MAX_WATCHES {
        let what = format!("inotify with {} watches", lines.len());
        return Err(at.refuse(what, "let the program watch fewer files"));
    }
    let mut watches = Vec::with_capacity(lines.len());
    for line in lines {
        let watched = parse_line(line).ok_or_else(|| at.unreadable("inotify"))?;
        let path = mounts.path_of(at, &watched).ok_or_else(|| {
            at.refuse(
                "inotify watching a file whose path cannot be found",
                "let the program stop watching files that were removed or are on special file systems",
            )
        })?;
        watches.push(Watch { number: watched.number, mask: watched.mask, path });
    }
    watches.sort_unstable_by_key(|watch| watch.number);
    let highest = watches.last().map_or(0, |watch| watch.number);
    let next = next(at).unwrap_or(0).max(highest + 1);
    Ok(Inotify { flags: at.status_flags(&info)?, next, watches })
}

/// Mounted file systems through which handles are looked up.
#[derive(Default)]
pub(super) struct Mounts {
    open: Vec<(u64, OwnedFd)>,
}

impl Mounts {
    fn path_of(&mut self, at: &At<'_>, watched: &Watched) -> Option<String> {
        let (root, of) = (proc::path(at.holder.root, "root"), watched.device);
        if !self.open.iter().any(|(device, _)| *device == of) {
            self.find(at, &root, of);
        }
        self.open.iter().filter(|(device, _)| *device == of).find_map(|(_, mount)| {
            let found = inotify::open_by_handle(mount.as_fd(), watched.handle_kind, &watched.handle).ok()?;
            let path = proc::descriptor_link(std::process::id() as i32, raw(&found)).ok()?;
            let mut full = root.clone().into_os_string();
            full.push(&path);
            let stat = lstat(Path::new(&full)).ok()?;
            let there = (stat.st_ino, number(stat.st_dev)) == (watched.inode, of);
            there.then_some(path)
        })
    }

    /// Opens the mount points of a device, as the workload sees them (`proc_pid_mountinfo(5)`).
    fn find(&mut self, at: &At<'_>, root: &Path, device: u64) {
        let Ok(text) = std::fs::read_to_string(proc::path(at.holder.root, "mountinfo")) else { return };
        for line in text.lines() {
            let mut words = line.split(' ').skip(2);
            let Some((major, minor)) = words.next().and_then(|word| word.split_once(':')) else { continue };
            let (Ok(major), Ok(minor)) = (major.parse::<u64>(), minor.parse::<u64>()) else { continue };
            let Some(point) = words.nth(1).filter(|_| (major << 20 | minor) == device) else { continue };
            let mut full = root.as_os_str().to_owned();
            full.push(point);
            // Reading, for a handle is not looked up through what is open by name only.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            if let Ok(mount) = open(Path::new(&full), flags, Mode::empty())
                && fstat(&mount).is_ok_and(|stat| number(stat.st_dev) == device)
            {
                self.open.push((device, mount));
            }
        }
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

/// A device as the kernel writes it into fdinfo.
fn number(device: u64) -> u64 {
    major(device) << 20 | minor(device)
}

/// Takes out what our own looking has put into an instance. (That nothing else was in it, [`check`] has seen, and the
/// workload has not run since.)
pub(crate) fn discard(at: &At<'_>, object: &Inotify) -> Result<()> {
    if object.watches.iter().all(|watch| watch.mask & OF_LOOKING == 0) || !is_waiting(at)? {
        return Ok(());
    }
    let mut instance = File::from(at.duplicate()?);
    let mut buffer = vec![0u8; 64 * 1024];
    while sys::readable_bytes(instance.as_fd()).attempt(|| "ask for events of inotify".to_owned())? > 0 {
        instance.read(&mut buffer).attempt(|| "take events of inotify".to_owned())?;
    }
    Ok(())
}

/// Without its watches: see [`restore`].
pub(super) fn build(object: &Inotify) -> Result<OwnedFd> {
    let fd = inotify::create().attempt(|| "make an inotify instance".to_owned())?;
    object.flags.restore(fd.as_fd())?;
    Ok(fd)
}

/// Adds the watches, when nothing will open, make or remove files any more but the workload.
pub(crate) fn restore(instance: BorrowedFd<'_>, object: &Inotify, root: &PathBuf) -> Result<()> {
    let top = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .attempt(|| format!("open the root {}", root.display()))?;
    for watch in &object.watches {
        let attempt = || format!("watch {} again", watch.path);
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(
            ResolveFlag::RESOLVE_IN_ROOT
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        let target = openat2(&top, watch.path.as_str(), how).attempt(attempt)?;
        if watch.number < 1 {
            return Err(Error::Mismatch(format!("a watch has the number {}", watch.number)));
        }
        inotify::set_next(instance, watch.number).attempt(attempt)?;
        let got = inotify::watch(instance, target.as_fd(), watch.mask).attempt(attempt)?;
        if got != watch.number {
            let source = io::Error::other(format!("it got the number {got} instead of {}", watch.number));
            return Err(Error::System { attempt: attempt(), source });
        }
    }
    if object.next > 0 {
        inotify::set_next(instance, object.next).attempt(|| "number watches as before".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_and_a_cut_one_is_not() {
        let line = "inotify wd:1f ino:2a sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let watched = parse_line(line).unwrap();
        assert_eq!((watched.number, watched.inode, watched.device), (31, 42, 0x80_0013));
        assert_eq!((watched.mask, watched.handle_kind, watched.handle.len()), (0x0800_afce, 1, 8));
        assert_eq!(parse_line(&line[..line.len() - 1]), None);
        assert_eq!(parse_line("inotify wd:1"), None);
    }
}
