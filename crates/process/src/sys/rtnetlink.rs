//! The configuration of a network namespace as the kernel lists it (rtnetlink(7)), in its own encoding: what was listed can be
//! said again elsewhere, also where nobody here knows what an attribute means.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, Nla, NlaBuffer, NlasIterator, Parseable,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};

/// `struct nlmsghdr`: length (4 bytes), type (2), flags (2), sequence number (4), port (4).
pub const MESSAGE_HEADER: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE` of `linux/netlink.h`: both begin with an error number, or zero.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: something changed meanwhile, and the list may have parts of both.
const INTERRUPTED: u16 = 0x10;
/// How often a list is read that changes while it is. The workload stands still; only the kernel itself changes things then.
const ATTEMPTS: usize = 16;

/// A kind of setting: the types of the messages that make, remove and list it, and the length of its fixed part
/// (`linux/rtnetlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub new: u16,
    pub delete: u16,
    pub get: u16,
    pub header: usize,
}

const fn kind(new: u16, header: usize) -> Kind {
    Kind { new, delete: new + 1, get: new + 2, header }
}

/// `RTM_NEWLINK`, `struct ifinfomsg`.
pub const LINK: Kind = kind(16, 16);
/// `RTM_NEWADDR`, `struct ifaddrmsg`.
pub const ADDRESS: Kind = kind(20, 8);
/// `RTM_NEWROUTE`, `struct rtmsg`.
pub const ROUTE: Kind = kind(24, 12);
/// `RTM_NEWNEIGH`, `struct ndmsg`.
pub const NEIGHBOUR: Kind = kind(28, 12);
/// `RTM_NEWRULE`, `struct fib_rule_hdr`.
pub const RULE: Kind = kind(32, 12);
/// `RTM_NEWQDISC`, `struct tcmsg`.
pub const DISCIPLINE: Kind = kind(36, 20);
/// `RTM_NEWNEXTHOP`, `struct nhmsg` (`linux/nexthop.h`).
pub const NEXT_HOP: Kind = kind(104, 8);

/// One entry of a list: its fixed part, then its attributes, each with its type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "serde_bytes")]
    pub header: Vec<u8>,
    pub attributes: Vec<(u16, Vec<u8>)>,
}

impl Entry {
    /// A message's payload, whose fixed part is so long.
    pub fn parse(header: usize, bytes: &[u8]) -> io::Result<Self> {
        let (fixed, rest) = bytes.split_at_checked(header).ok_or_else(damaged)?;
        let attribute = |found: Result<NlaBuffer<&[u8]>, _>| {
            let found = found.map_err(|_| damaged())?;
            let parsed = DefaultNla::parse(&found).map_err(|_| damaged())?;
            let mut value = vec![0; parsed.value_len()];
            parsed.emit_value(&mut value);
            Ok((parsed.kind(), value))
        };
        let attributes = NlasIterator::new(rest).map(attribute).collect::<io::Result<_>>()?;
        Ok(Self { header: fixed.to_vec(), attributes })
    }

    fn write(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.header);
        let all: Vec<DefaultNla> =
            self.attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.clone())).collect();
        let start = message.len();
        message.resize(start + all.as_slice().buffer_len(), 0);
        all.as_slice().emit(&mut message[start..]);
    }

    /// The value of the attribute of this type; its flags are none of the type.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        let found = self.attributes.iter().find(|(have, _)| have & ATTRIBUTE_TYPE == kind)?;
        Some(&found.1)
    }

    /// A number of four bytes in the fixed part, zero where that is too short.
    pub fn word(&self, at: usize) -> u32 {
        self.header.get(at..at + 4).and_then(word_of).unwrap_or(0)
    }

    pub fn byte(&self, at: usize) -> u8 {
        self.header.get(at).copied().unwrap_or(0)
    }

    pub fn set_word(&mut self, at: usize, value: u32) {
        if let Some(place) = self.header.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }

    pub fn set_byte(&mut self, at: usize, value: u8) {
        if let Some(place) = self.header.get_mut(at) {
            *place = value;
        }
    }

    /// A number of four bytes.
    pub fn number(&self, kind: u16) -> Option<u32> {
        word_of(self.get(kind)?)
    }

    pub fn set(&mut self, kind: u16, value: &[u8]) {
        self.attributes.retain(|(have, _)| have & ATTRIBUTE_TYPE != kind);
        self.attributes.push((kind, value.to_vec()));
    }

    pub fn keep(&mut self, kinds: &[u16]) {
        self.attributes.retain(|(have, _)| kinds.contains(&(have & ATTRIBUTE_TYPE)));
    }

    pub fn forget(&mut self, kinds: &[u16]) {
        self.attributes.retain(|(have, _)| !kinds.contains(&(have & ATTRIBUTE_TYPE)));
    }
}

/// `NLA_TYPE_MASK` of `linux/netlink.h`.
pub const ATTRIBUTE_TYPE: u16 = 0x3fff;

fn word_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "netlink sent a message that is cut short")
}

/// A socket for settings. It stays in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Settings {
    socket: Socket,
    sequence: u32,
}

impl Settings {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All entries of a kind and an address family (the first byte of every fixed part; 0 for all), in the kernel's order.
    /// `header` is the rest of the question.
    pub fn list(&mut self, kind: Kind, header: Entry) -> io::Result<Vec<Entry>> {
        for _ in 0..ATTEMPTS {
            self.send(kind.get, NLM_F_DUMP, &header)?;
            if let Some(entries) = self.read_list(kind)? {
                return Ok(entries);
            }
        }
        Err(io::Error::other("the list changes all the time"))
    }

    /// None if it changed while it was read.
    fn read_list(&mut self, kind: Kind) -> io::Result<Option<Vec<Entry>>> {
        let mut entries = Vec::new();
        let mut whole = true;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    DONE | ERROR => {
                        return match word_of(message.payload).ok_or_else(damaged)?.cast_signed() {
                            0 => Ok(whole.then_some(entries)),
                            error => Err(io::Error::from_raw_os_error(-error)),
                        };
                    }
                    found if found == kind.new => entries.push(Entry::parse(kind.header, message.payload)?),
                    _ => {}
                }
            }
        }
    }

    /// Says an entry, as to be made or removed, and waits for the answer.
    pub fn say(&mut self, message: u16, flags: u16, entry: &Entry) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags, entry)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                if message.sequence == self.sequence && message.kind == ERROR {
                    return match word_of(message.payload).ok_or_else(damaged)?.cast_signed() {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, entry: &Entry) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = vec![0; MESSAGE_HEADER];
        entry.write(&mut message);
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&message, 0).map(drop)
    }
}

/// A message of the kernel's.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages in a buffer; what is cut short ends them.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<MESSAGE_HEADER>()?;
        let length = word_of(header)? as usize;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: word_of(&header[8..])?,
            payload: bytes.get(MESSAGE_HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_said_as_it_was_listed() {
        let entry =
            Entry { header: vec![2; 12], attributes: vec![(1, vec![10, 0, 0, 1]), (0x8009, vec![7; 5])] };
        let mut bytes = Vec::new();
        entry.write(&mut bytes);
        assert_eq!(bytes.len(), 12 + 8 + 12);
        let mut read = Entry::parse(12, &bytes).unwrap();
        assert_eq!(read, entry);
        assert_eq!(read.get(9), Some(&[7u8; 5][..]));
        read.set(1, &[0; 4]);
        assert_eq!(read.number(1), Some(0));
        read.keep(&[9]);
        read.forget(&[9]);
        assert!(read.attributes.is_empty());
    }

    #[test]
    fn damaged_messages_end() {
        assert_eq!(messages(&[0; 64]).count(), 0);
        let mut two = vec![0u8; 36];
        (two[0], two[4]) = (20, 32);
        (two[20], two[24]) = (16, 33);
        let kinds: Vec<u16> = messages(&two).map(|message| message.kind).collect();
        assert_eq!(kinds, [32, 33]);
        assert_eq!(messages(&two[..10]).count(), 0);
        assert!(Entry::parse(12, &[0; 4]).is_err());
        assert!(Entry::parse(0, &[200, 0, 1, 0]).is_err());
    }
}
