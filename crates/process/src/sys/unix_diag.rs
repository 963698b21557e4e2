//! Unix sockets as the kernel lists them (`sock_diag(7)`, `include/uapi/linux/unix_diag.h`): the only way to learn
//! which socket is whose peer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
const NLMSG_HEADER: usize = 16;
/// `struct unix_diag_req`.
const REQUEST: usize = 24;
/// `struct unix_diag_msg`.
const MESSAGE: usize = 16;
/// UDIAG_SHOW_NAME, VFS, PEER, ICONS, RQLEN. (What is shut down is always told.)
const SHOW: u32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x10;
const ATTRIBUTE_NAME: u16 = 0;
const ATTRIBUTE_VFS: u16 = 1;
const ATTRIBUTE_PEER: u16 = 2;
const ATTRIBUTE_WAITING: u16 = 3;
const ATTRIBUTE_QUEUES: u16 = 4;
const ATTRIBUTE_SHUTDOWN: u16 = 6;
/// A dump answers with at most 32 KiB a message (`netlink_dump` in net/netlink/af_netlink.c).
const ANSWER: usize = 64 * 1024;

pub const STATE_ESTABLISHED: u8 = 1;
pub const STATE_LISTEN: u8 = 10;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixEntry {
    pub inode: u64,
    pub kind: u8,
    pub state: u8,
    /// What follows the family in its address: a path, or an abstract name with its leading NUL; empty for none.
    pub name: Vec<u8>,
    /// Inode and device (in the kernel's own encoding, major << 20 | minor) of the node it is bound to.
    pub node: Option<(u32, u32)>,
    /// Inode of the other end; 0 if that has none (any more, or not yet accepted).
    pub peer: Option<u64>,
    /// For a listener: connections that wait and how many may; else bytes to read (of a datagram socket: the first
    /// datagram's) and bytes sent that were not read.
    pub queues: (u32, u32),
    /// Of a listener: the inodes of those who have connected and were not accepted, in their order; 0 of one that was closed.
    pub waiting: Vec<u64>,
    /// RCV_SHUTDOWN (1) and SEND_SHUTDOWN (2).
    pub shutdown: u8,
}

/// A `NETLINK_SOCK_DIAG` socket in the workload's network namespace.
pub struct UnixDiag(OwnedFd);

impl UnixDiag {
    /// The socket stays in the namespace in which it was made, so that only its making needs a thread there.
    pub fn open(network: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let open = || {
            let kind = SockProtocol::NetlinkSockDiag;
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)
                .map_err(io::Error::from)
        };
        let Some(network) = network else { return open().map(Self) };
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(network, CloneFlags::CLONE_NEWNET)?;
                    open().map(Self)
                })
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace died")))
        })
    }

    /// All unix sockets of the namespace.
    pub fn dump(&self) -> io::Result<Vec<UnixEntry>> {
        let mut request = Vec::with_capacity(NLMSG_HEADER + REQUEST);
        request.extend_from_slice(&((NLMSG_HEADER + REQUEST) as u32).to_ne_bytes());
        request.extend_from_slice(&BY_FAMILY.to_ne_bytes());
        request.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
        request.extend_from_slice(&u32::MAX.to_ne_bytes());
        request.extend_from_slice(&0u32.to_ne_bytes());
        request.extend_from_slice(&SHOW.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        let fd = self.0.as_fd().as_raw_fd();
        send(fd, &request, MsgFlags::empty())?;
        let mut found = Vec::new();
        let mut answer = vec![0u8; ANSWER];
        loop {
            let got = recv(fd, &mut answer, MsgFlags::empty())?;
            if parse(&answer[..got], &mut found)? {
                return Ok(found);
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of unix sockets is malformed")
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    bytes.get(at..at + 2).and_then(|raw| raw.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(malformed)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map(u32::from_ne_bytes).ok_or_else(malformed)
}

/// Parses one answer; `true` when it is the last.
fn parse(mut answer: &[u8], found: &mut Vec<UnixEntry>) -> io::Result<bool> {
    while !answer.is_empty() {
        let len = u32_at(answer, 0)? as usize;
        if len < NLMSG_HEADER || len > answer.len() {
            return Err(malformed());
        }
        let body = &answer[NLMSG_HEADER..len];
        match i32::from(u16_at(answer, 4)?) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error(-(u32_at(body, 0)? as i32))),
            _ => found.push(parse_entry(body)?),
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn parse_entry(body: &[u8]) -> io::Result<UnixEntry> {
    let mut attributes = body.get(MESSAGE..).ok_or_else(malformed)?;
    let inode = u64::from(u32_at(body, 4)?);
    let mut entry = UnixEntry { inode, kind: body[1], state: body[2], ..UnixEntry::default() };
    while attributes.len() >= 4 {
        let len = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..len).ok_or_else(malformed)?;
        match u16_at(attributes, 2)? {
            ATTRIBUTE_NAME => entry.name = value.to_vec(),
            ATTRIBUTE_VFS => entry.node = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
            ATTRIBUTE_PEER => entry.peer = Some(u64::from(u32_at(value, 0)?)),
            ATTRIBUTE_QUEUES => entry.queues = (u32_at(value, 0)?, u32_at(value, 4)?),
            ATTRIBUTE_WAITING => {
                let inode = |at: usize| u32_at(value, at).map(u64::from);
                entry.waiting = (0..value.len() / 4 * 4).step_by(4).map(inode).collect::<io::Result<_>>()?;
            }
            ATTRIBUTE_SHUTDOWN => entry.shutdown = *value.first().ok_or_else(malformed)?,
            _ => {}
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::descriptor::unix_pair;

    #[test]
    fn a_pair_is_listed_as_each_others_peer() {
        let (a, b) = unix_pair(libc::SOCK_STREAM).unwrap();
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let all = UnixDiag::open(None).unwrap().dump().unwrap();
        let find = |inode: u64| all.iter().find(|entry| entry.inode == inode).unwrap();
        assert_eq!(find(inode(&a)).peer, Some(inode(&b)));
        assert_eq!(find(inode(&b)).peer, Some(inode(&a)));
        assert_eq!(find(inode(&a)).state, STATE_ESTABLISHED);
    }

    #[test]
    fn a_cut_answer_is_refused() {
        assert!(parse(&[20, 0, 0, 0, 20, 0], &mut Vec::new()).is_err());
        assert!(parse(&[8, 0, 0, 0, 20, 0, 0, 0], &mut Vec::new()).is_err());
    }
}
