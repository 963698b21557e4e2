//! POSIX message queues (`mq_overview(7)`).
//!
//! They belong to the workload and to no process of it: all of its ipc namespace's are captured that have a name or are open, from when a
//! program first asks for one. A description refers to its queue by the number of its inode. What waits in a queue is read from the
//! kernel's memory ([`queues`]), which leaves it there.
//!
//! Not kept: the times of the last operations, and whose limit a queue counts to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::Lister;
use crate::sys::bpf::queues::{self, Notified, Reader};
use crate::sys::ptrace::Tid;
use crate::sys::remote::Batch;
use crate::sys::{descriptor as fds, mqueue as sys, proc, sysv};
use crate::tree::FIRST;

/// `queues_max` of mq_overview(7) is 256 by default.
const MAX_QUEUES: usize = 4096;
/// Of all messages together; more is refused.
const MAX_BYTES: usize = 16 << 20;
/// What the kernel reckons for a message beside its bytes, and for a queue (`mqueue_get_inode`, ipc/mqueue.c): a
/// `struct msg_msg` and a `struct posix_msg_tree_node`, which are 48 bytes each, and something to spare.
const OVERHEAD: u64 = 128;
const ADVICE: &str = "run it on a kernel with BPF and its type information";
/// Nothing is sent when a message comes, but a thread of the program's library is woken through a socket of its own
/// (`include/uapi/asm-generic/siginfo.h`).
const SIGEV_THREAD: i32 = 2;

/// A description of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEnd {
    /// Number of its inode, on the host where it was captured.
    pub queue: u64,
    pub flags: StatusFlags,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub number: u64,
    /// Without a slash; none once it was unlinked.
    name: Option<String>,
    mode: u32,
    owner: (u32, u32),
    /// How many messages it may have, and how long.
    limit: u64,
    length: u64,
    /// Priority and bytes, the oldest of each priority first.
    messages: Vec<(u32, Vec<u8>)>,
    notification: Option<Notification>,
}

/// What a process has asked for by mq_notify(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Notification {
    process: Pid,
    how: i32,
    signal: i32,
    value: u64,
}

/// Whether a regular file is a queue.
pub(super) fn is_one(at: &At<'_>) -> Result<bool> {
    sys::is_queue(&at.link()).attempt(|| format!("ask of what kind descriptor {} is", at.holder.fd))
}

/// Queues that are open in this stop: what the kernel says of each, with mode and owner.
pub type Open = BTreeMap<u64, (queues::Seen, u32, (u32, u32))>;

pub(super) fn capture(at: &At<'_>, open: &mut Open) -> Result<QueueEnd> {
    let what = || format!("look at the message queue of descriptor {}", at.holder.fd);
    let (Ok(reader), Some(file)) = (Reader::shared(), at.file) else {
        return Err(at.refuse("a POSIX message queue on a kernel that does not tell what is in it", ADVICE));
    };
    let seen = reader.queue(file).attempt(what)?;
    let (number, mode, owner) = sys::describe(&at.link()).attempt(what)?;
    if number != seen.number {
        return Err(at.unreadable("message queue"));
    }
    open.insert(number, (seen, mode, owner));
    Ok(QueueEnd { queue: number, flags: at.status_flags(&at.info()?)? })
}

/// What is known of a workload's queues.
#[derive(Debug, Default)]
pub struct Watcher {
    /// A program has asked for one, once.
    pub used: bool,
    names: Option<sys::Names>,
    last: Option<Vec<Queue>>,
}

impl Watcher {
    /// A backup that is told everything anew.
    pub fn begin_whole(&mut self) {
        self.last = None;
    }

    /// All queues, if they have changed: those that are open, and those that have a name. `init` is a process in the workload's ipc
    /// namespace. All are stopped.
    pub fn capture(&mut self, init: Tid, open: Open) -> Result<Option<Vec<Queue>>> {
        if !self.used && open.is_empty() {
            return Ok(None);
        }
        let what = || "look at POSIX message queues".to_owned();
        let names = match &self.names {
            Some(names) => names,
            None => {
                let namespace = proc::open(init, "ns/ipc").attempt(what)?;
                sysv::enter(&namespace).attempt(what)?;
                self.names.insert(sys::names().attempt(what)?)
            }
        };
        let now = read(names, open)?;
        if self.last.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.last = Some(now.clone());
        Ok(Some(now))
    }
}

fn read(names: &sys::Names, mut open: Open) -> Result<Vec<Queue>> {
    let what = || "read POSIX message queues".to_owned();
    let mut named = BTreeMap::new();
    let listed = names.list().attempt(what)?;
    if listed.len() > MAX_QUEUES {
        return Err(too_much());
    }
    let mut others = Vec::new();
    for name in listed {
        let Some(queue) = names.open(&name).attempt(what)? else { continue };
        let link = Path::new("/proc/self/fd").join(queue.as_raw_fd().to_string());
        let (number, mode, owner) = sys::describe(&link).attempt(what)?;
        named.insert(number, name);
        if !open.contains_key(&number) {
            others.push((queue, number, mode, owner));
        }
    }
    if !others.is_empty() {
        look_at(&others, &mut open)?;
    }
    let (mut bytes, mut allowed) = (0, sys::allowance());
    let mut queues = Vec::new();
    for (number, (seen, mode, owner)) in open {
        let queue =
            seen.messages.saturating_mul(seen.length.saturating_add(OVERHEAD)).saturating_add(OVERHEAD);
        bytes += seen.waiting.iter().map(|(_, bytes)| bytes.len() + size_of::<u64>()).sum::<usize>();
        if bytes > MAX_BYTES || queues.len() >= MAX_QUEUES || queue > allowed {
            return Err(too_much());
        }
        allowed -= queue;
        queues.push(Queue {
            number,
            name: named.remove(&number),
            mode,
            owner,
            limit: seen.messages,
            length: seen.length,
            messages: seen.waiting,
            notification: seen.notified.map(notification).transpose()?.flatten(),
        });
    }
    Ok(queues)
}

/// Queues that nobody has open, through descriptors of our own.
fn look_at(queues: &[(OwnedFd, u64, u32, (u32, u32))], open: &mut Open) -> Result<()> {
    let what = || "read POSIX message queues".to_owned();
    let (Ok(reader), Ok(lister)) = (Reader::shared(), Lister::shared()) else {
        let what = "a POSIX message queue on a kernel that does not tell what is in it".to_owned();
        return Err(Error::Unsupported { pid: FIRST, what, advice: ADVICE });
    };
    let own = lister.table(std::process::id() as Tid).map_err(io::Error::other).attempt(what)?;
    let files = own.read().attempt(what)?;
    for (fd, number, mode, owner) in queues {
        let Some(file) = files.iter().find(|file| file.fd == fd.as_raw_fd()) else {
            return Err(Error::Mismatch("a message queue is open and not listed".to_owned()));
        };
        open.insert(*number, (reader.queue(file.file).attempt(what)?, *mode, *owner));
    }
    Ok(())
}

fn too_much() -> Error {
    let what = "very much in POSIX message queues".to_owned();
    let advice = "let the program use less, or raise the limit of the node's agent (LimitMSGQUEUE=infinity)";
    Error::Unsupported { pid: FIRST, what, advice }
}

fn notification(seen: Notified) -> Result<Option<Notification>> {
    let Notified { process, how, signal, value } = seen;
    match how {
        // Nobody is told any more.
        _ if process == 0 => Ok(None),
        SIGEV_THREAD => Err(Error::Unsupported {
            pid: process,
            what: "mq_notify by a thread (SIGEV_THREAD)".to_owned(),
            advice: "let the program be told by a signal, or wait in a thread of its own",
        }),
        _ => Ok(Some(Notification { process, how, signal, value })),
    }
}

/// Queues that were made again, by the numbers that they had.
pub type Made = BTreeMap<u64, OwnedFd>;

/// Makes all of them in the ipc namespace of `init`, which has none yet.
pub fn restore(init: Tid, queues: &[Queue]) -> Result<Made> {
    let mut made = Made::new();
    if queues.is_empty() {
        return Ok(made);
    }
    let what = || "enter the workload's ipc namespace".to_owned();
    sysv::enter(&proc::open(init, "ns/ipc").attempt(what)?).attempt(what)?;
    sys::allowance();
    // Those without a name have one for a moment, which is nobody else's yet.
    let (unnamed, named): (Vec<&Queue>, Vec<&Queue>) = queues.iter().partition(|queue| queue.name.is_none());
    for queue in unnamed.into_iter().chain(named) {
        let moment = format!("outlive-{}", queue.number);
        let name = queue.name.as_deref().unwrap_or(&moment);
        let what = || format!("make the POSIX message queue {name}");
        let fd = sys::make(name, queue.mode, queue.owner, queue.limit, queue.length).attempt(what)?;
        for (priority, bytes) in &queue.messages {
            sys::send(fd.as_fd(), *priority, bytes).attempt(what)?;
        }
        if queue.name.is_none() {
            sys::unlink(name).attempt(what)?;
        }
        made.insert(queue.number, fd);
    }
    Ok(made)
}

pub fn build(object: &QueueEnd, made: &Made) -> Result<OwnedFd> {
    let missing = || Error::Mismatch(format!("message queue {} was not made", object.queue));
    let queue = made.get(&object.queue).ok_or_else(missing)?;
    fds::reopen(queue.as_fd(), object.flags.for_open())
        .attempt(|| format!("open message queue {}", object.queue))
}

/// Lets a process ask again for what it had asked for, by its descriptors: number and queue of each.
pub fn restore_notifications(
    batch: &mut Batch,
    pid: Pid,
    queues: &[Queue],
    descriptors: &[(i32, u64)],
) -> Result<()> {
    for queue in queues {
        let Some(asked) = queue.notification.filter(|asked| asked.process == pid) else { continue };
        let Some((fd, _)) = descriptors.iter().find(|(_, number)| *number == queue.number) else {
            return Err(Error::Mismatch(format!("process {pid} is told of a message queue it has not open")));
        };
        let event = batch.bytes(&sys::sigevent(asked.how, asked.signal, asked.value));
        batch.call(libc::SYS_mq_notify, &[*fd as u64, event]);
    }
    Ok(())
}
