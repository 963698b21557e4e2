//! Changes of scratch directories carried out on the copy. They come off a wire: no path leads out of the scratch
//! directories, whatever is in them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, OpenHow, ResolveFlag, fallocate, open, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, futimens, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, ftruncate, linkat, symlinkat, unlinkat};

use super::descriptor::is_below;
use super::scratch::BLOCK;
use crate::checkpoint::FileChange;
use crate::error::{Attempt, Error, Result};

/// As deep as [`super::scratch`] looks.
const MAX_DEPTH: usize = 130;

/// Carries out changes below `root`, in the scratch directories and nowhere else.
pub fn apply(root: &Path, directories: &[String], changes: &[FileChange]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(root, flags, Mode::empty()).attempt(|| format!("open the root {}", root.display()))?;
    let mut apply = Apply { root, directories, parent: None, times: BTreeMap::new() };
    for change in changes {
        let path = path_of(change);
        apply.check(path)?;
        apply.change(path, change).attempt(|| format!("change {path} as it was changed"))?;
    }
    for (path, modified) in std::mem::take(&mut apply.times) {
        let set = apply.directory(&path).and_then(|directory| set_time(directory.as_fd(), modified));
        match set {
            // Removed again by a later change.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            set => set.attempt(|| format!("set the time of {path}"))?,
        }
    }
    Ok(())
}

fn path_of(change: &FileChange) -> &str {
    match change {
        FileChange::Emptied { path }
        | FileChange::Directory { path, .. }
        | FileChange::File { path, .. }
        | FileChange::Blocks { path, .. }
        | FileChange::Symlink { path, .. }
        | FileChange::Link { path, .. }
        | FileChange::Node { path, .. }
        | FileChange::Removed { path } => path,
    }
}

struct Apply<'a> {
    root: OwnedFd,
    directories: &'a [String],
    /// The directory that the last change was in, and its path.
    parent: Option<(String, OwnedFd)>,
    /// What the times of directories that were worked in have to be in the end.
    times: BTreeMap<String, (i64, i64)>,
}

impl Apply<'_> {
    fn check(&self, path: &str) -> Result<()> {
        let plain = path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|step| !matches!(step, "" | "." | "..")) && !rest.contains('\0')
        });
        if plain && is_below(self.directories, path) {
            return Ok(());
        }
        Err(Error::Mismatch(format!("a change of {path:?}, which is in no scratch directory")))
    }

    fn is_top(&self, path: &str) -> bool {
        self.directories.iter().any(|directory| directory == path)
    }

    /// Never follows a link and never leaves the root.
    fn open(&self, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve);
        Ok(openat2(&self.root, path.trim_start_matches('/'), how)?)
    }

    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// The directory that `path` is in, and its name there.
    fn locate(&mut self, path: &str) -> io::Result<(BorrowedFd<'_>, CString)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = CString::new(name).map_err(io::Error::other)?;
        if self.parent.as_ref().is_none_or(|(known, _)| known != parent) {
            let directory = self.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            // What is done in it changes its time, also where the original's was left alone (a file that is made anew
            // here because its first link was removed there).
            let stat = fstat(&directory)?;
            self.times.entry(parent.to_owned()).or_insert((stat.st_mtime, stat.st_mtime_nsec));
            self.parent = Some((parent.to_owned(), directory));
        }
        let (_, directory) = self.parent.as_ref().ok_or(Errno::ENOENT)?;
        Ok((directory.as_fd(), name))
    }

    fn change(&mut self, path: &str, change: &FileChange) -> io::Result<()> {
        // A scratch directory itself is a mount of the shell's: neither made nor removed, and no file.
        if self.is_top(path) && !matches!(change, FileChange::Emptied { .. } | FileChange::Directory { .. }) {
            return Err(io::Error::other("it is a scratch directory itself"));
        }
        match change {
            FileChange::Emptied { .. } => {
                self.parent = None;
                empty(self.directory(path)?, 0)
            }
            FileChange::Removed { .. } => {
                // It may be the very directory that is remembered.
                self.parent = None;
                let (parent, name) = self.locate(path)?;
                remove(parent, &name, 0)?;
                self.parent = None;
                Ok(())
            }
            FileChange::Directory { mode, owner, modified, .. } => {
                if !self.is_top(path) {
                    let (parent, name) = self.locate(path)?;
                    match mkdirat(parent, name.as_c_str(), Mode::S_IRWXU) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                let directory = self.directory(path)?;
                set_attributes(directory.as_fd(), *mode, *owner)?;
                self.times.insert(path.to_owned(), *modified);
                Ok(())
            }
            FileChange::File { mode, owner, modified, content, .. } => {
                let (parent, name) = self.locate(path)?;
                make_way(parent, &name)?;
                let flags =
                    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = File::from(openat(parent, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                file.write_all_at(content, 0)?;
                set_attributes(file.as_fd(), *mode, *owner)?;
                set_time(file.as_fd(), *modified)
            }
            FileChange::Blocks { mode, owner, modified, size, blocks, .. } => {
                // Not `O_WRONLY` before it is known to be a file: opening a named pipe waits.
                let (parent, name) = self.locate(path)?;
                let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = File::from(openat(parent, name.as_c_str(), flags, Mode::empty())?);
                if fstat(&file)?.st_mode & libc::S_IFMT != libc::S_IFREG {
                    return Err(io::Error::other("it is no file"));
                }
                write_blocks(&file, *size, blocks)?;
                set_attributes(file.as_fd(), *mode, *owner)?;
                set_time(file.as_fd(), *modified)
            }
            FileChange::Symlink { target, owner, .. } => {
                let (parent, name) = self.locate(path)?;
                make_way(parent, &name)?;
                symlinkat(target.as_str(), parent, name.as_c_str())?;
                let (user, group) = ids(*owner);
                Ok(fchownat(parent, name.as_c_str(), user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?)
            }
            FileChange::Link { to, .. } => {
                self.check(to).map_err(io::Error::other)?;
                let found = self.open(to, OFlag::O_PATH)?;
                if fstat(&found)?.st_mode & libc::S_IFMT != libc::S_IFREG {
                    return Err(io::Error::other(format!("{to} is no file")));
                }
                let (from, old) = to.rsplit_once('/').unwrap_or(("", to));
                let from = self.open(from, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                let (parent, name) = self.locate(path)?;
                make_way(parent, &name)?;
                // Without AT_SYMLINK_FOLLOW a link is not followed.
                Ok(linkat(&from, old, parent, name.as_c_str(), AtFlags::empty())?)
            }
            FileChange::Node { socket, mode, owner, .. } => {
                let (parent, name) = self.locate(path)?;
                make_way(parent, &name)?;
                let kind = if *socket { SFlag::S_IFSOCK } else { SFlag::S_IFIFO };
                mknodat(parent, name.as_c_str(), kind, Mode::S_IRUSR | Mode::S_IWUSR, 0)?;
                let (user, group) = ids(*owner);
                fchownat(parent, name.as_c_str(), user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                // It was made here just now, and is no link that could be followed.
                let mode = Mode::from_bits_truncate(*mode);
                Ok(fchmodat(parent, name.as_c_str(), mode, FchmodatFlags::FollowSymlink)?)
            }
        }
    }
}

fn write_blocks(file: &File, size: u64, blocks: &[(u64, Vec<u8>)]) -> io::Result<()> {
    let len = i64::try_from(size).map_err(io::Error::other)?;
    ftruncate(file, len)?;
    for (at, block) in blocks {
        let length = if block.is_empty() { BLOCK as u64 } else { block.len() as u64 };
        if !at.is_multiple_of(BLOCK as u64) || *at >= size || length > BLOCK as u64 {
            return Err(io::Error::other(format!("a block of {length} bytes at {at} of {size}")));
        }
        if block.is_empty() {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, flags, *at as i64, length.min(size - at) as i64)?;
        } else if *at + length > size {
            return Err(io::Error::other(format!("a block beyond the end of {size} bytes")));
        } else {
            file.write_all_at(block, *at)?;
        }
    }
    Ok(())
}

fn ids(owner: (u32, u32)) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
}

/// The owner first: changing it clears set-user-id bits.
fn set_attributes(fd: BorrowedFd<'_>, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let (user, group) = ids(owner);
    fchown(fd, user, group)?;
    fchmod(fd, Mode::from_bits_truncate(mode & 0o7777))?;
    Ok(())
}

fn set_time(fd: BorrowedFd<'_>, modified: (i64, i64)) -> io::Result<()> {
    let time = TimeSpec::new(modified.0, modified.1);
    Ok(futimens(fd, &time, &time)?)
}

/// Removes what has a name that is given to something else; never a directory, whose removal is a change of its own.
fn make_way(parent: BorrowedFd<'_>, name: &CString) -> io::Result<()> {
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn remove(parent: BorrowedFd<'_>, name: &CString, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        // Gone already: the shell's own work with unix sockets removes nodes.
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    empty(openat(parent, name.as_c_str(), flags, Mode::empty())?, depth + 1)?;
    Ok(unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?)
}

/// Removes everything in a directory.
fn empty(directory: OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let mut listing = nix::dir::Dir::from_fd(directory.try_clone()?)?;
    // Read before anything is removed, which would disturb the reading.
    let names: Vec<CString> = listing
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.as_bytes(), b"." | b"..")) {
        remove(directory.as_fd(), name, depth)?;
    }
    Ok(())
}
