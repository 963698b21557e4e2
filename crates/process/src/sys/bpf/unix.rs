//! What waits in a unix socket, where no call shows it: what was said over a connection that nobody has accepted yet, whose other
//! end has no descriptor, and messages without bytes. It is read from the kernel's memory ([`KernelMemory`]).
//!
//! A `struct unix_sock` (include/net/af_unix.h) has its other end as its peer, and a queue in which messages wait as
//! `struct sk_buff` (include/linux/skbuff.h), with who has sent them in `struct unix_skb_parms`.

use std::io;
use std::sync::OnceLock;

use super::btf::Layout;
use super::iterator::Unavailable;
use super::members::members;
use super::memory::KernelMemory;

/// Messages in one queue: a send buffer holds fewer (`SKB_TRUESIZE(1)` is above 700 bytes, `net.core.wmem_max` 4 MiB).
const MOST: usize = 8192;

members! {
    file_private: "file", "private_data";
    socket: "socket", "sk";
    peer: "unix_sock", "peer";
    queue: "sock", "sk_receive_queue";
    count: "sk_buff_head", "qlen";
    from: "sk_buff", "sk";
    name: "unix_sock", "addr";
    next: "sk_buff", "next";
    length: "sk_buff", "len";
    elsewhere: "sk_buff", "data_len";
    data: "sk_buff", "data";
    control: "sk_buff", "cb";
    sender: "unix_skb_parms", "pid";
    user: "unix_skb_parms", "uid";
    group: "unix_skb_parms", "gid";
    descriptors: "unix_skb_parms", "fp";
    pid_numbers: "pid", "numbers";
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// None if a part of it is not where it can be read.
    pub bytes: Option<Vec<u8>>,
    /// Of whoever sent it, as the host sees it, if that is kept: process (0 if it has ended), user and group.
    pub sender: Option<(i32, u32, u32)>,
    /// Descriptors are in flight with it.
    pub carries: bool,
    /// It was sent by the peer of the socket that it waits in.
    pub from_peer: bool,
    /// Whoever sent it has a name.
    pub from_named: bool,
}

/// Reads them.
#[derive(Debug)]
pub struct Reader {
    memory: &'static KernelMemory,
    at: Members,
    /// Where the urgent byte is told, on a kernel that has such a thing.
    urgent: Option<u64>,
}

impl Reader {
    /// The one of this process, made at the first call.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<Reader, String>> = OnceLock::new();
        KernelMemory::reader(&SHARED, Self::find)
    }

    fn find(memory: &'static KernelMemory, layout: &Layout<'_>) -> Result<Self, Unavailable> {
        let urgent = layout.offset("unix_sock", "oob_skb")?.map(u64::from);
        Ok(Self { memory, at: Members::find(layout)?, urgent })
    }

    /// What the peer of a connected socket has been sent and nobody has read. `file` is where the kernel keeps the description of
    /// the sender's end. Nobody may send meanwhile. None of it if there is an urgent byte.
    pub fn said(&self, file: u64) -> io::Result<Option<Vec<Said>>> {
        let peer = self.memory.double(self.socket(file)? + self.at.peer)?;
        if let Some(urgent) = self.urgent
            && self.memory.double(peer + urgent)? != 0
        {
            return Ok(None);
        }
        self.queue(peer).map(Some)
    }

    /// How many messages wait in a socket.
    pub fn count(&self, file: u64) -> io::Result<usize> {
        let at = self.socket(file)? + self.at.queue + self.at.count;
        Ok(self.memory.word(at)? as usize)
    }

    /// The messages that wait in a socket.
    pub fn waiting(&self, file: u64) -> io::Result<Vec<Said>> {
        self.queue(self.socket(file)?)
    }

    fn socket(&self, file: u64) -> io::Result<u64> {
        let socket = self.memory.double(file + self.at.file_private)?;
        self.memory.double(socket + self.at.socket)
    }

    fn queue(&self, socket: u64) -> io::Result<Vec<Said>> {
        let peer = self.memory.double(socket + self.at.peer)?;
        // A ring of which the head is one.
        let head = socket + self.at.queue;
        let mut found = Vec::new();
        let mut message = self.memory.double(head + self.at.next)?;
        while message != head {
            if found.len() >= MOST {
                return Err(io::Error::other("the queue of a unix socket has no end"));
            }
            found.push(self.describe(message, peer)?);
            message = self.memory.double(message + self.at.next)?;
        }
        Ok(found)
    }

    fn describe(&self, message: u64, peer: u64) -> io::Result<Said> {
        let (at, memory) = (&self.at, self.memory);
        let control = message + at.control;
        let length = memory.word(message + at.length)? as usize;
        // The rest is in pages, which have no address here.
        let bytes = match memory.word(message + at.elsewhere)? {
            0 => Some(memory.read(memory.double(message + at.data)?, length)?),
            _ => None,
        };
        let sender = match memory.double(control + at.sender)? {
            0 => None,
            pid => {
                let number = memory.word(pid + at.pid_numbers)? as i32;
                Some((number, memory.word(control + at.user)?, memory.word(control + at.group)?))
            }
        };
        let carries = memory.double(control + at.descriptors)? != 0;
        // Whoever has sent it is there as long as it is, with or without a descriptor.
        let from = memory.double(message + at.from)?;
        let from_named = memory.double(from + at.name)? != 0;
        Ok(Said { bytes, sender, carries, from_peer: from == peer, from_named })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;
    use crate::sys::bpf::files::Lister;
    use crate::sys::descriptor as sys;

    #[test]
    fn what_was_said_before_a_connection_was_accepted_is_seen() {
        let name = format!("\0outlive-unix-{}", std::process::id());
        for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
            let (listener, client) =
                (sys::unix_socket(kind).expect("one"), sys::unix_socket(kind).expect("one"));
            sys::unix_bind(listener.as_fd(), name.as_bytes()).expect("a name");
            sys::listen(listener.as_fd(), 4).expect("a listener");
            sys::unix_connect(client.as_fd(), name.as_bytes()).expect("a connection");
            let put = |bytes: &[u8], descriptors| {
                let attached = sys::Attached { credentials: None, descriptors };
                assert_eq!(sys::send(client.as_fd(), bytes, None, &attached).expect("sent"), bytes.len());
            };
            put(b"first", Vec::new());
            put(b"with a descriptor", vec![client.as_fd()]);
            put(&[7; 3000], Vec::new());
            put(&[8; 30_000], Vec::new());
            let table = Lister::shared().expect("load").table(std::process::id() as i32).expect("own table");
            let files = table.read().expect("read");
            let file = files.iter().find(|file| file.fd == client.as_raw_fd()).expect("it is open").file;
            let said =
                Reader::shared().expect("the reader").said(file).expect("read").expect("no urgent byte");
            let bytes: Vec<Option<&[u8]>> = said.iter().map(|said| said.bytes.as_deref()).collect();
            assert_eq!(bytes, [Some(&b"first"[..]), Some(b"with a descriptor"), Some(&[7; 3000]), None]);
            assert_eq!(said.iter().map(|said| said.carries).collect::<Vec<_>>(), [false, true, false, false]);
        }
    }
}
