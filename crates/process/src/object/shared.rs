//! Memory that several processes may share, and files that only a descriptor or a mapping leads to: anonymous shared
//! memory, memfds, System V segments, files of scratch directories that are mapped, also removed ones.
//!
//! An object is one file, wherever and however often it is mapped or open. What was written to it is found by
//! [`crate::shared`]; on the copy the supervisor holds a file for each, writes the content into that, and the shell's
//! processes map it. Anonymous memory is again anonymous memory there, a segment is a segment with the same id.
//!
//! The content of a scratch file that has a name is the business of [`super::scratch`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use serde::{Deserialize, Serialize};

use super::descriptor::{StatusFlags, Surroundings, is_below};
use super::file::{FileKey, open_in_root};
use crate::checkpoint::Run;
use crate::delta;
use crate::error::{Attempt, Error, Result};
use crate::sys::pagemap::PAGE_SIZE;
use crate::sys::ptrace::Tid;
use crate::sys::shared as sys;

/// What the kernel calls an object that is mapped or open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Anonymous,
    Memfd(String),
    /// A System V segment, by its id.
    Segment(i32),
    /// A file of a scratch directory; its path when that was last asked for.
    Scratch(String),
}

/// What an object is, beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `MAP_SHARED | MAP_ANONYMOUS`.
    Anonymous,
    Memfd {
        name: String,
        seals: i32,
        attributes: FileAttributes,
    },
    /// A scratch file, whose content is not kept here.
    Named {
        path: String,
    },
    /// A scratch file that has no name any more.
    Removed {
        path: String,
        attributes: FileAttributes,
    },
    Segment {
        id: i32,
        key: i32,
        mode: u32,
        owner: (u32, u32),
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAttributes {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
}

/// How an object changed, or that there is a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedChange {
    pub key: FileKey,
    pub kind: Kind,
    /// In bytes.
    pub size: u64,
    /// Nothing is in it but what follows.
    pub anew: bool,
    /// By offset in the object, in the order of the page data.
    pub runs: Vec<Run>,
}

/// That pages are within an object.
fn check(runs: &[Run], size: u64) -> Result<()> {
    let pages = size.div_ceil(PAGE_SIZE);
    let fits = |run: &Run| {
        run.address.is_multiple_of(PAGE_SIZE)
            && (run.address / PAGE_SIZE).checked_add(run.pages.into()).is_some_and(|end| end <= pages)
    };
    if size > sys::MAX_SIZE || !runs.iter().all(fits) {
        return Err(Error::Mismatch(format!("pages beyond the end of shared memory of {size} bytes")));
    }
    Ok(())
}

/// An object of a shell's.
#[derive(Debug)]
pub struct Held {
    pub file: File,
    pub kind: Kind,
    pub size: u64,
    /// Of a segment that was removed and is in use: by us, until the shell comes to life.
    kept: Option<sys::Attached>,
}

/// All objects of a shell.
#[derive(Debug, Default)]
pub struct SharedFiles {
    held: HashMap<FileKey, Held>,
}

impl SharedFiles {
    /// Makes new objects and gives all their sizes; before the files of scratch directories are changed.
    pub fn begin(
        &mut self,
        changes: &[SharedChange],
        gone: &[FileKey],
        root: &Path,
        surroundings: &Surroundings,
        init: Tid,
    ) -> Result<()> {
        for key in gone {
            if let Some(Held { kind: Kind::Segment { id, .. }, .. }) = self.held.remove(key) {
                // What is still attached in the shell goes with the mappings.
                let _ = sys::in_ipc_of(init, || sys::remove_segment(id));
            }
        }
        // Those that are there first: a segment that was removed has given its key to another.
        for change in changes {
            check(&change.runs, change.size)?;
            if let Some(held) = self.held.get_mut(&change.key) {
                held.follow(change, init)
                    .attempt(|| format!("change the shared memory {:?}", change.kind))?;
            }
        }
        for change in changes.iter().filter(|change| !self.held.contains_key(&change.key)).collect::<Vec<_>>()
        {
            let attempt = || format!("make the shared memory {:?}", change.kind);
            let file = match &change.kind {
                // It is there when the files of the epoch are.
                Kind::Named { .. } => continue,
                Kind::Anonymous => sys::anonymous(change.size).attempt(attempt)?,
                Kind::Memfd { name, .. } => {
                    let file = sys::memfd(name).attempt(attempt)?;
                    resize(&file, change.size).attempt(attempt)?;
                    file
                }
                Kind::Removed { path, .. } => {
                    let file = removed(path, root, surroundings)?;
                    resize(&file, change.size).attempt(attempt)?;
                    file
                }
                Kind::Segment { id, key, mode, owner } => {
                    let (id, size) = (*id, change.size);
                    let segment = sys::Segment { id, key: *key, size, mode: *mode, owner: *owner };
                    let made = || sys::make_segment(&segment).and_then(|()| sys::open_segment(id, size));
                    sys::in_ipc_of(init, made).attempt(attempt)?
                }
            };
            let held = Held { file, kind: change.kind.clone(), size: change.size, kept: None };
            self.held.insert(change.key, held);
        }
        Ok(())
    }

    /// Finds the files that have names, after those of the epoch are there. Gives those that are others than before:
    /// what maps them has to be mapped anew.
    pub fn find_named(
        &mut self,
        changes: &[SharedChange],
        files_changed: bool,
        root: &Path,
        surroundings: &Surroundings,
    ) -> Result<Vec<FileKey>> {
        let mut others = Vec::new();
        for change in changes {
            if let Kind::Named { path } = &change.kind
                && !self.held.contains_key(&change.key)
            {
                let held = Held {
                    file: open_named(path, root, surroundings)?,
                    kind: change.kind.clone(),
                    size: 0,
                    kept: None,
                };
                self.held.insert(change.key, held);
            }
        }
        if !files_changed {
            return Ok(others);
        }
        for (key, held) in &mut self.held {
            let Kind::Named { path } = &held.kind else { continue };
            let file = open_named(path, root, surroundings)?;
            let attempt = || format!("ask about {path}");
            let (now, before) = (fstat(&file).attempt(attempt)?, fstat(&held.file).attempt(attempt)?);
            if FileKey::of(&now) != FileKey::of(&before) {
                held.file = file;
                others.push(*key);
            }
        }
        Ok(others)
    }

    pub fn get(&self, key: FileKey) -> Result<&Held> {
        self.held
            .get(&key)
            .ok_or_else(|| Error::Mismatch(format!("shared memory {key:?} never was in a checkpoint")))
    }

    /// Writes the content of runs.
    pub fn write(&self, key: FileKey, runs: &[Run], pages: &mut &[u8]) -> Result<()> {
        let held = self.get(key)?;
        check(runs, held.size)?;
        let attempt = || format!("write to the shared memory {:?}", held.kind);
        for run in runs {
            let range = run.range();
            if run.zero {
                sys::punch(&held.file, range.start, range.len()).attempt(attempt)?;
                continue;
            }
            for page in (range.start..range.end).step_by(PAGE_SIZE as usize) {
                let mut result = Ok(());
                delta::decode_page(pages, |offset, bytes| {
                    let at = page + offset as u64;
                    // What lies behind the end in the last page is nobody's.
                    let inside = held.size.saturating_sub(at).min(bytes.len() as u64) as usize;
                    if result.is_ok() {
                        result = held.file.write_all_at(&bytes[..inside], at);
                    }
                })
                .ok_or_else(|| Error::Mismatch("fewer bytes of pages than the runs say".into()))?;
                result.attempt(attempt)?;
            }
        }
        Ok(())
    }

    /// The objects of which descriptors may be built.
    pub fn open_files(&self) -> impl Iterator<Item = (FileKey, &File)> {
        let files = self.held.iter();
        let files = files.filter(|(_, held)| matches!(held.kind, Kind::Memfd { .. } | Kind::Removed { .. }));
        files.map(|(key, held)| (*key, &held.file))
    }

    /// Whether there are segments of System V shared memory.
    pub fn has_segments(&self) -> bool {
        self.held.values().any(|held| matches!(held.kind, Kind::Segment { .. }))
    }

    /// What can only be done when all content is there and all is mapped: times, seals, the removal of segments that go
    /// with their last user.
    pub fn finish(&mut self, init: Tid) -> Result<()> {
        for held in self.held.values_mut() {
            let attempt = || format!("finish the shared memory {:?}", held.kind);
            match &held.kind {
                Kind::Memfd { seals, attributes, .. } => {
                    set_attributes(&held.file, attributes).attempt(attempt)?;
                    if *seals != 0 {
                        sys::add_seals(&held.file, *seals).attempt(attempt)?;
                    }
                }
                Kind::Removed { attributes, .. } => {
                    set_attributes(&held.file, attributes).attempt(attempt)?
                }
                Kind::Segment { id, mode, .. } if mode & sys::SHM_DEST != 0 && held.kept.is_none() => {
                    sys::in_ipc_of(init, || sys::remove_segment(*id)).attempt(attempt)?;
                }
                Kind::Segment { .. } | Kind::Anonymous | Kind::Named { .. } => {}
            }
            held.kept = None;
        }
        Ok(())
    }
}

impl Held {
    fn follow(&mut self, change: &SharedChange, init: Tid) -> io::Result<()> {
        if matches!(change.kind, Kind::Named { .. }) {
            self.kind = change.kind.clone();
            return Ok(());
        }
        if change.anew && change.size > 0 {
            sys::punch(&self.file, 0, change.size.next_multiple_of(PAGE_SIZE))?;
        }
        if self.size != change.size || change.anew {
            if !matches!(self.kind, Kind::Anonymous | Kind::Segment { .. }) {
                resize(&self.file, change.size)?;
            }
            self.size = change.size;
        }
        if let Kind::Segment { id, key, mode, owner } = change.kind
            && self.kind != change.kind
        {
            let segment = sys::Segment { id, key, size: change.size, mode, owner };
            sys::in_ipc_of(init, || sys::describe_segment(&segment))?;
            if mode & sys::SHM_DEST != 0 && self.kept.is_none() {
                self.kept = Some(sys::in_ipc_of(init, || {
                    let kept = sys::Attached::new(id)?;
                    sys::remove_segment(id)?;
                    Ok(kept)
                })?);
            }
        }
        self.kind = change.kind.clone();
        Ok(())
    }
}

fn resize(file: &File, size: u64) -> io::Result<()> {
    Ok(ftruncate(file, i64::try_from(size).map_err(io::Error::other)?)?)
}

fn set_attributes(file: &File, attributes: &FileAttributes) -> io::Result<()> {
    let (owner, group) = attributes.owner;
    fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)))?;
    fchmod(file, Mode::from_bits_truncate(attributes.mode & 0o7777))?;
    let time = TimeSpec::new(attributes.modified.0, attributes.modified.1);
    Ok(futimens(file, &time, &time)?)
}

fn open_named(path: &str, root: &Path, surroundings: &Surroundings) -> Result<File> {
    if !surroundings.is_scratch(path) {
        return Err(Error::Mismatch(format!("{path} is mapped and is in no scratch directory")));
    }
    let (fd, _) = open_in_root(root, path, StatusFlags(libc::O_RDWR), libc::S_IFREG)?;
    Ok(fd.into())
}

/// A file without a name, in the scratch directory that `path` was in.
pub(super) fn removed(path: &str, root: &Path, surroundings: &Surroundings) -> Result<File> {
    let directories = &surroundings.scratch;
    let home = directories.iter().filter(|home| is_below(std::slice::from_ref(home), path));
    let home = home
        .max_by_key(|home| home.len())
        .ok_or_else(|| Error::Mismatch(format!("the removed file {path} was in no scratch directory")))?;
    let (directory, _) = open_in_root(root, home, StatusFlags(libc::O_PATH), libc::S_IFDIR)?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let made = openat(&directory, ".", flags, Mode::from_bits_truncate(0o600));
    Ok(made.attempt(|| format!("make the removed file {path}"))?.into())
}

/// A descriptor through which an object is to be mapped.
pub fn for_mapping(held: &Held, writable: bool) -> Result<OwnedFd> {
    let opened = if writable { held.file.as_fd().try_clone_to_owned() } else { sys::read_only(&held.file) };
    opened.attempt(|| format!("open the shared memory {:?}", held.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FileKey = FileKey { device: 1, inode: 2 };

    fn change(size: u64, runs: Vec<Run>) -> SharedChange {
        SharedChange { key: KEY, kind: Kind::Anonymous, size, anew: false, runs }
    }

    #[test]
    fn pages_beyond_the_end_are_refused() {
        let run = |address, pages| vec![Run { address, pages, zero: false }];
        assert!(check(&run(4096, 1), 8192).is_ok());
        assert!(check(&run(4096, 1), 8191).is_ok());
        assert!(check(&run(4096, 2), 8192).is_err());
        assert!(check(&run(1, 1), 8192).is_err());
        assert!(check(&[], u64::MAX).is_err());
        assert!(check(&run(u64::MAX - 4095, u32::MAX), 8192).is_err());
    }

    #[test]
    fn content_is_written_up_to_the_end_and_not_beyond() {
        let kind = Kind::Memfd {
            name: "x".into(),
            seals: 0,
            attributes: FileAttributes { mode: 0o600, owner: (0, 0), modified: (1, 0) },
        };
        let mut files = SharedFiles::default();
        let run = Run { address: 4096, pages: 1, zero: false };
        let made = SharedChange { kind, ..change(4196, vec![run]) };
        files.begin(std::slice::from_ref(&made), &[], Path::new("/"), &Surroundings::default(), 1).unwrap();
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend([7u8; 4096]);
        let mut rest = &bytes[..];
        files.write(KEY, &made.runs, &mut rest).unwrap();
        assert!(rest.is_empty());
        let held = files.get(KEY).unwrap();
        assert_eq!(held.file.metadata().unwrap().len(), 4196);
        let mut last = [0u8; 1];
        held.file.read_exact_at(&mut last, 4195).unwrap();
        assert_eq!(last, [7]);
        assert!(files.write(KEY, &made.runs, &mut &[][..]).is_err());
    }
}
