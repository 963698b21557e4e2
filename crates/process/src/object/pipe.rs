//! Pipes (`pipe(7)`), also named ones (`fifo(7)`): what is in them, once, and their ends.
//!
//! An end of file, and its counterpart the broken pipe, are not recorded: they follow from which ends exist, since all
//! that are made here are closed again but those that were passed to the workload.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::sys::stat::FileStat;
use nix::unistd::{pipe2, read, write};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::descriptor::{At, BuildContext, Inode, Object, StatusFlags, Surroundings};
use super::file::{check_path, open_in_root, open_path};
use crate::checkpoint::ObjectId;
use crate::error::{Attempt, Error, Result};
use crate::sys::descriptor as sys;

/// What fits into a pipe at most: the default of `fs.pipe-max-size`. A larger one needs CAP_SYS_RESOURCE to make.
const MAX_CAPACITY: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Bytes (`F_GETPIPE_SZ`).
    pub capacity: u32,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    Stream(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Written with `O_DIRECT`: each is read by itself.
    Packets(Vec<Vec<u8>>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeEnd {
    /// The [`Pipe`].
    pub pipe: ObjectId,
    /// Which end says the access mode.
    pub flags: StatusFlags,
    /// Where the node of a named pipe is, as the workload sees it.
    pub path: Option<String>,
}

/// A named pipe by its file system and inode, so that it is not taken for one without a name: those have numbers of
/// 32 bits (`get_next_ino` in fs/inode.c).
pub(super) fn key_of_named(stat: &FileStat) -> u64 {
    let bytes = [stat.st_dev.to_ne_bytes(), stat.st_ino.to_ne_bytes()].concat();
    xxh3_64(&bytes) | 1 << 63
}

/// As [`capture_end`]. Of a node that was removed only the pipe is left.
pub(super) fn capture_named_end(
    inode: u64,
    at: &At<'_>,
    surroundings: &Surroundings,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<PipeEnd> {
    let mut end = capture_end(inode, at, objects)?;
    let (stat, path) = (at.stat()?, open_path(at)?);
    if stat.st_nlink > 0 {
        check_path(at, &path, &stat)?;
        if !surroundings.is_scratch(&path) {
            let advice = "declare the directory with --scratch";
            return Err(at.refuse(format!("the named pipe {path}, which is in no scratch directory"), advice));
        }
        end.path = Some(path);
    }
    Ok(end)
}

pub(super) fn capture_end(
    inode: u64,
    at: &At<'_>,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<PipeEnd> {
    let pipe = objects(Inode::Pipe(inode))
        .ok_or_else(|| Error::Mismatch(format!("pipe {inode} has an end and is not known itself")))?;
    let flags = at.status_flags(&at.info()?)?;
    Ok(PipeEnd { pipe, flags, path: None })
}

/// A pipe of our own into which the contents of others are duplicated by `tee(2)`, which shares the pages and consumes
/// nothing.
pub(super) struct Copier {
    ends: Option<(OwnedFd, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Copier {
    pub(super) fn new() -> Self {
        Self { ends: None, buffer: Vec::new() }
    }

    /// Duplicates what is in a pipe of this capacity. Gives the end from which the duplicate can be read.
    fn duplicate(
        &mut self,
        from: BorrowedFd<'_>,
        capacity: i32,
    ) -> io::Result<(BorrowedFd<'_>, &mut Vec<u8>)> {
        // What an error left in the last one must not be taken for this one's: that one is dropped.
        let (reader, writer) = match self.ends.take() {
            Some(ends) if sys::readable_bytes(ends.0.as_fd())? == 0 => ends,
            _ => pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?,
        };
        // As many buffers as the other has, or not all of it fits.
        if fcntl(&writer, FcntlArg::F_GETPIPE_SZ)? < capacity {
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(capacity))?;
        }
        tee(from, &writer, MAX_CAPACITY, SpliceFFlags::SPLICE_F_NONBLOCK)?;
        let ends = self.ends.insert((reader, writer));
        self.buffer.resize(MAX_CAPACITY, 0);
        Ok((ends.0.as_fd(), &mut self.buffer))
    }

    fn content(&mut self, from: BorrowedFd<'_>, waiting: usize, capacity: i32) -> io::Result<Content> {
        let (copy, buffer) = self.duplicate(from, capacity)?;
        // Reading a part of a packet drops the rest of it; that tells a packet from a stream.
        let mut content = vec![0u8; 1];
        read(copy, &mut content)?;
        let rest = sys::readable_bytes(copy)?;
        let stream = rest == waiting - 1;
        let mut packets = Vec::new();
        while sys::readable_bytes(copy)? > 0 {
            let got = read(copy, buffer)?;
            content.extend_from_slice(&buffer[..got]);
            packets.push(got);
        }
        if stream && packets.len() <= 1 {
            return Ok(Content::Stream(content));
        }
        let (copy, buffer) = self.duplicate(from, capacity)?;
        let mut packets = Vec::new();
        while sys::readable_bytes(copy)? > 0 {
            let got = read(copy, buffer)?;
            packets.push(buffer[..got].to_vec());
        }
        Ok(Content::Packets(packets))
    }
}

pub(super) fn capture(at: &At<'_>, copier: &mut Copier) -> Result<Pipe> {
    let end = at.duplicate()?;
    let size = fcntl(&end, FcntlArg::F_GETPIPE_SZ).attempt(|| "ask for a pipe's capacity".to_owned())?;
    let capacity = u32::try_from(size).unwrap_or(0);
    let waiting = sys::readable_bytes(end.as_fd()).attempt(|| "ask how much is in a pipe".to_owned())?;
    // A writing end cannot be duplicated from; that there is no other means that nobody can read it any more.
    if waiting == 0 || !at.status_flags(&at.info()?)?.reads() {
        return Ok(Pipe { capacity, content: Content::Stream(Vec::new()) });
    }
    if waiting > MAX_CAPACITY {
        return Err(
            at.refuse(format!("a pipe with {waiting} bytes in it"), "leave its capacity at 1 MiB or less")
        );
    }
    let content =
        copier.content(end.as_fd(), waiting, size).attempt(|| "copy what is in a pipe".to_owned())?;
    let copied = match &content {
        Content::Stream(bytes) => bytes.len(),
        Content::Packets(packets) => packets.iter().map(Vec::len).sum(),
    };
    if copied != waiting {
        let source = io::Error::other(format!("{waiting} bytes are in it and {copied} were copied"));
        return Err(Error::System { attempt: "copy what is in a pipe".to_owned(), source });
    }
    Ok(Pipe { capacity, content })
}

/// Both ends of a pipe being built.
pub(super) struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

pub(super) fn build_end(object: &PipeEnd, context: &mut BuildContext<'_>) -> Result<OwnedFd> {
    if !context.pipes.contains_key(&object.pipe) {
        let Object::Pipe(pipe) = context.object(object.pipe)? else {
            return Err(Error::Mismatch(format!("object {} is not the pipe it should be", object.pipe.0)));
        };
        let ends = match &object.path {
            None => pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).attempt(|| "make a pipe".to_owned())?,
            Some(path) => open_named(path, context)?,
        };
        let ends = fill(pipe, ends).attempt(|| format!("fill a pipe of {} bytes again", pipe.capacity))?;
        context.pipes.insert(object.pipe, ends);
    }
    let ends = &context.pipes[&object.pipe];
    // Each end is opened anew, for several descriptions of one end may have flags of their own; `O_NONBLOCK` because
    // opening by name waits for the other side where that is missing.
    let end = if object.flags.access() == libc::O_RDONLY { &ends.reader } else { &ends.writer };
    let fd = sys::reopen(end.as_fd(), object.flags.access() | libc::O_NONBLOCK)
        .attempt(|| "open an end of a pipe".to_owned())?;
    object.flags.restore(fd.as_fd())?;
    Ok(fd)
}

/// Both ends of a named pipe, opened so that nobody is waited for.
fn open_named(path: &str, context: &BuildContext<'_>) -> Result<(OwnedFd, OwnedFd)> {
    if !context.surroundings.is_scratch(path) {
        return Err(Error::Mismatch(format!("the named pipe {path} is in no scratch directory")));
    }
    let flags = StatusFlags(libc::O_RDWR | libc::O_NONBLOCK);
    let (both, _) = open_in_root(&context.root, path, flags, libc::S_IFIFO)?;
    let reader = sys::reopen(both.as_fd(), libc::O_RDONLY | libc::O_NONBLOCK);
    let writer = sys::reopen(both.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK);
    let ends = reader.and_then(|reader| Ok((reader, writer?)));
    ends.attempt(|| format!("open both ends of the named pipe {path}"))
}

fn fill(pipe: &Pipe, (reader, writer): (OwnedFd, OwnedFd)) -> io::Result<Ends> {
    let capacity = i32::try_from(pipe.capacity).map_err(io::Error::other)?;
    if fcntl(&writer, FcntlArg::F_GETPIPE_SZ)? != capacity {
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(capacity))?;
    }
    let put = |bytes: &[u8]| match write(&writer, bytes)? {
        all if all == bytes.len() => Ok(()),
        part => Err(io::Error::other(format!("only {part} of {} bytes fit", bytes.len()))),
    };
    match &pipe.content {
        Content::Stream(bytes) if bytes.is_empty() => {}
        Content::Stream(bytes) => put(bytes)?,
        Content::Packets(packets) => {
            sys::set_status_flags(writer.as_fd(), libc::O_DIRECT | libc::O_NONBLOCK)?;
            packets.iter().try_for_each(|packet| put(packet))?;
        }
    }
    Ok(Ends { reader, writer })
}
