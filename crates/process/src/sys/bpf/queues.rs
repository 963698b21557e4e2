//! What waits in a POSIX message queue, which no call shows without taking it, and who is to be told of the next message. Read from the
//! kernel's memory ([`KernelMemory`]).
//!
//! A queue (`struct mqueue_inode_info`, ipc/mqueue.c) has a tree of priorities, each with a list of its messages (`struct msg_msg`,
//! include/linux/msg.h), the oldest first. A message is behind its head as far as that page goes; the rest is in further pages
//! (`struct msg_msgseg`, ipc/msgutil.c).

use std::io;
use std::sync::OnceLock;

use super::btf::Layout;
use super::iterator::Unavailable;
use super::members::members;
use super::memory::KernelMemory;
use crate::sys::pagemap::PAGE_SIZE;

/// Messages of one queue: `HARD_MSGMAX` (include/linux/ipc_namespace.h). As many priorities at most.
const MOST: usize = 65_536;
/// Of the tree of priorities, which is balanced: twice the logarithm of their number.
const DEEPEST: usize = 64;

members! {
    inode: "file", "f_inode";
    number: "inode", "i_ino";
    own: "mqueue_inode_info", "vfs_inode";
    tree: "mqueue_inode_info", "msg_tree";
    messages: "mqueue_inode_info", "attr.mq_maxmsg";
    length: "mqueue_inode_info", "attr.mq_msgsize";
    notified: "mqueue_inode_info", "notify_owner";
    event: "mqueue_inode_info", "notify";
    left: "rb_node", "rb_left";
    right: "rb_node", "rb_right";
    node: "posix_msg_tree_node", "rb_node";
    list: "posix_msg_tree_node", "msg_list";
    priority: "posix_msg_tree_node", "priority";
    next: "list_head", "next";
    in_list: "msg_msg", "m_list";
    size: "msg_msg", "m_ts";
    more: "msg_msg", "next";
    level: "pid", "level";
    numbers: "pid", "numbers";
    upid: "upid", "nr";
}

/// A queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of its inode.
    pub number: u64,
    /// How many messages it may have, and how long.
    pub messages: u64,
    pub length: u64,
    /// What waits: priority and bytes, the oldest of each priority first.
    pub waiting: Vec<(u32, Vec<u8>)>,
    pub notified: Option<Notified>,
}

/// Who is told of a message that comes to an empty queue, as a `struct sigevent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notified {
    /// In its innermost namespace; 0 if it has ended.
    pub process: i32,
    pub how: i32,
    pub signal: i32,
    pub value: u64,
}

/// Reads them.
#[derive(Debug)]
pub struct Reader {
    memory: &'static KernelMemory,
    at: Members,
    /// Of one level in a `struct pid`, of a message's head and of that of a further page.
    upid_size: u64,
    head: u64,
    piece: u64,
}

impl Reader {
    /// The one of this process, made at the first call.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<Reader, String>> = OnceLock::new();
        KernelMemory::reader(&SHARED, Self::find)
    }

    fn find(memory: &'static KernelMemory, layout: &Layout<'_>) -> Result<Self, Unavailable> {
        let at = Members::find(layout)?;
        let size = |structure: &str| Self::size(layout, structure);
        Ok(Self { memory, at, upid_size: size("upid")?, head: size("msg_msg")?, piece: size("msg_msgseg")? })
    }

    fn size(layout: &Layout<'_>, structure: &str) -> Result<u64, Unavailable> {
        let missing = || Unavailable::Missing(structure.to_owned());
        layout.size(structure)?.map(u64::from).ok_or_else(missing)
    }

    /// The queue that an open file is of, by where the kernel keeps that. Nobody may use it meanwhile.
    pub fn queue(&self, file: u64) -> io::Result<Seen> {
        let (at, memory) = (&self.at, self.memory);
        let inode = memory.double(file + at.inode)?;
        let queue = inode.wrapping_sub(at.own);
        let mut seen = Seen {
            number: memory.double(inode + at.number)?,
            messages: memory.double(queue + at.messages)?,
            length: memory.double(queue + at.length)?,
            ..Seen::default()
        };
        self.walk(memory.double(queue + at.tree)?, seen.length, 0, &mut seen.waiting)?;
        let owner = memory.double(queue + at.notified)?;
        if owner != 0 {
            let event = memory.read(queue + at.event, 16)?;
            let word =
                |from: usize| event[from..].first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
            let level = u64::from(memory.word(owner + at.level)?);
            let number = owner + at.numbers + level * self.upid_size + at.upid;
            seen.notified = Some(Notified {
                process: memory.word(number)? as i32,
                value: event.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)),
                signal: word(8),
                how: word(12),
            });
        }
        Ok(seen)
    }

    /// All below a node of the tree.
    fn walk(&self, node: u64, longest: u64, depth: usize, found: &mut Vec<(u32, Vec<u8>)>) -> io::Result<()> {
        if node == 0 {
            return Ok(());
        }
        if depth > DEEPEST {
            return Err(io::Error::other("the priorities of a message queue have no end"));
        }
        let (at, memory) = (&self.at, self.memory);
        self.walk(memory.double(node + at.left)?, longest, depth + 1, found)?;
        let of = node.wrapping_sub(at.node);
        let priority = memory.word(of + at.priority)?;
        let head = of + at.list;
        let mut next = memory.double(head + at.next)?;
        while next != head {
            if found.len() >= MOST {
                return Err(io::Error::other("a message queue has no end"));
            }
            found.push((priority, self.message(next.wrapping_sub(at.in_list), longest)?));
            next = memory.double(next + at.next)?;
        }
        self.walk(memory.double(node + at.right)?, longest, depth + 1, found)
    }

    fn message(&self, message: u64, longest: u64) -> io::Result<Vec<u8>> {
        let (at, memory) = (&self.at, self.memory);
        let size = memory.double(message + at.size)?;
        if size > longest {
            return Err(io::Error::other("a message is longer than its queue allows"));
        }
        let mut left = size as usize;
        let mut bytes = Vec::with_capacity(left);
        let (mut from, mut head) = (message, self.head);
        let mut more = memory.double(message + at.more)?;
        loop {
            let here = left.min((PAGE_SIZE - head) as usize);
            bytes.extend(memory.read(from + head, here)?);
            left -= here;
            if left == 0 {
                return Ok(bytes);
            }
            if more == 0 {
                return Err(io::Error::other("a part of a message is missing"));
            }
            // `next` is the first member of a further page.
            (from, head) = (more, self.piece);
            more = memory.double(more)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    use super::*;
    use crate::sys::bpf::files::Lister;
    use crate::sys::mqueue;
    use crate::sys::ptrace::Tid;

    fn seen(queue: &OwnedFd) -> Seen {
        let table = Lister::shared().expect("load").table(std::process::id() as Tid).expect("own table");
        let files = table.read().expect("read");
        let file = files.iter().find(|file| file.fd == queue.as_raw_fd()).expect("it is open").file;
        Reader::shared().expect("the reader").queue(file).expect("a queue")
    }

    #[test]
    fn what_waits_in_a_message_queue_is_seen_and_stays() {
        let name = format!("outlive-seen-{}", std::process::id());
        let queue = mqueue::make(&name, 0o620, (0, 0), 8, 8000).expect("a queue");
        let empty = seen(&queue);
        assert_eq!((empty.messages, empty.length), (8, 8000));
        assert!(empty.waiting.is_empty() && empty.notified.is_none());
        let event = mqueue::sigevent(libc::SIGEV_SIGNAL, libc::SIGWINCH, 7);
        mqueue::notify(queue.as_fd(), &event).expect("to be told");
        let notified = seen(&queue).notified.expect("somebody is told");
        assert_eq!((notified.how, notified.signal, notified.value), (libc::SIGEV_SIGNAL, libc::SIGWINCH, 7));
        assert_eq!(notified.process, std::process::id() as i32);
        // Longer than a page, empty, and several of one priority.
        let long: Vec<u8> = (0..7000u32).map(|number| number as u8).collect();
        let sent: [(u32, &[u8]); 5] = [(5, b"first"), (0, &long), (5, b""), (31, b"urgent"), (5, b"last")];
        for (priority, bytes) in sent {
            mqueue::send(queue.as_fd(), priority, bytes).expect("sent");
        }
        mqueue::unlink(&name).expect("unlink");
        let mut sorted: Vec<(u32, Vec<u8>)> =
            sent.iter().map(|(priority, bytes)| (*priority, bytes.to_vec())).collect();
        sorted.sort_by_key(|(priority, _)| *priority);
        for _ in 0..2 {
            let full = seen(&queue);
            assert_eq!(full.waiting, sorted);
            assert!(full.notified.is_none());
        }
    }
}
