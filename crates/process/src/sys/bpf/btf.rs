//! Looks functions and structures up in the kernel's type information (BTF).
//!
//! A call of a kernel function is encoded with the function's BTF id, which differs from kernel build to kernel
//! build, so it is looked up when the program is assembled. Format: Documentation/bpf/btf.rst.

use std::fs;
use std::io;

/// Where the running kernel publishes its types (needs CONFIG_DEBUG_INFO_BTF).
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

// BTF_KIND_*, include/uapi/linux/btf.h.
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;
/// Kinds that only stand for another type: typedef, volatile, const, restrict, type tag.
const KINDS_ALIAS: [u32; 5] = [8, 9, 10, 11, 18];
/// How deep a member may lie in structures within structures; `tcp_sock` holds a `sock` three levels down.
const DEPTH: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("could not read the kernel's type information from {VMLINUX} (needs CONFIG_DEBUG_INFO_BTF)")]
    Read(#[source] io::Error),
    #[error("the kernel's type information in {VMLINUX} is malformed at byte {offset}")]
    Malformed { offset: usize },
    #[error("the kernel's type information uses kind {kind}, which is newer than this program")]
    UnknownKind { kind: u32 },
}

/// The types of the running kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: std::ops::Range<usize>,
}

/// Where members of structures lie in the running kernel. Made once; [`Btf::find`] is the cheaper way to two names.
#[derive(Debug)]
pub struct Layout<'a> {
    btf: &'a Btf,
    /// Where each type's record begins; id 0 is `void` and has none.
    records: Vec<usize>,
    structures: std::collections::HashMap<&'a str, usize>,
    functions: std::collections::HashMap<&'a str, u32>,
}

impl Layout<'_> {
    /// The id by which a function of the kernel is named to it.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.functions.get(name).copied()
    }

    /// How many bits of its first byte come before a member of a structure: not 0 for some bit fields.
    pub fn shift(&self, structure: &str, member: &str) -> Result<Option<u32>, BtfError> {
        let Some(at) = self.structures.get(structure).copied() else { return Ok(None) };
        let info = word(&self.btf.bytes, at + 4)?;
        for index in 0..(info & 0xffff) as usize {
            let record = at + 12 + 12 * index;
            if self.btf.is_named(word(&self.btf.bytes, record)? as usize, member) {
                return Ok(Some(word(&self.btf.bytes, record + 8)? & 7));
            }
        }
        Ok(None)
    }

    /// How many bytes a structure has.
    pub fn size(&self, structure: &str) -> Result<Option<u32>, BtfError> {
        // struct btf_type: name_off, info, size.
        self.structures.get(structure).map(|at| word(&self.btf.bytes, at + 8)).transpose()
    }

    /// The offset in bytes of a member, itself perhaps a member of members: `__sk_common.skc_state`. What lies in structures
    /// without a name is found by its own.
    pub fn offset(&self, structure: &str, path: &str) -> Result<Option<u32>, BtfError> {
        let Some(mut at) = self.structures.get(structure).copied() else { return Ok(None) };
        let mut offset = 0;
        for name in path.split('.') {
            let Some((member, kind)) = self.member(at, name, DEPTH)? else { return Ok(None) };
            offset += member;
            at = self.resolve(kind)?;
        }
        Ok(Some(offset))
    }

    /// Of the structure whose record is at `at`: the offset and the type of a member.
    fn member(&self, at: usize, wanted: &str, depth: usize) -> Result<Option<(u32, u32)>, BtfError> {
        let bytes = &self.btf.bytes;
        let info = word(bytes, at + 4)?;
        if ![KIND_STRUCT, KIND_UNION].contains(&((info >> 24) & 0x1f)) || depth == 0 {
            return Ok(None);
        }
        // struct btf_member: name_off, type, offset in bits (with kind_flag: in its lower 24 bits).
        for index in 0..(info & 0xffff) as usize {
            let record = at + 12 + 12 * index;
            let (name, kind) = (word(bytes, record)? as usize, word(bytes, record + 4)?);
            let bits = word(bytes, record + 8)? & 0x00ff_ffff;
            if name != 0 && self.btf.is_named(name, wanted) {
                return Ok(Some((bits / 8, kind)));
            }
            if self.btf.is_named(name, "")
                && let Some((inner, kind)) = self.member(self.resolve(kind)?, wanted, depth - 1)?
            {
                return Ok(Some((bits / 8 + inner, kind)));
            }
        }
        Ok(None)
    }

    /// The record of a type, behind the names that stand for it.
    fn resolve(&self, kind: u32) -> Result<usize, BtfError> {
        let mut id = kind;
        for _ in 0..DEPTH {
            let at = *self
                .records
                .get(id as usize)
                .filter(|_| id != 0)
                .ok_or(BtfError::Malformed { offset: 0 })?;
            if !KINDS_ALIAS.contains(&((word(&self.btf.bytes, at + 4)? >> 24) & 0x1f)) {
                return Ok(at);
            }
            id = word(&self.btf.bytes, at + 8)?;
        }
        Err(BtfError::Malformed { offset: 0 })
    }
}

/// What a program needs to know of the kernel; found in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The id by which a kernel function is called.
    pub function: Option<u32>,
    /// The size of a structure that it takes.
    pub structure_size: Option<u32>,
}

impl Btf {
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(VMLINUX).map_err(BtfError::Read)?)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
        let magic = bytes.get(..2).ok_or(BtfError::Malformed { offset: 0 })?;
        if u16::from_ne_bytes([magic[0], magic[1]]) != MAGIC {
            return Err(BtfError::Malformed { offset: 0 });
        }
        let header = u64::from(word(&bytes, 4)?);
        let section = |offset_at: usize| -> Result<std::ops::Range<usize>, BtfError> {
            let start = header + u64::from(word(&bytes, offset_at)?);
            let end = start + u64::from(word(&bytes, offset_at + 4)?);
            if end > bytes.len() as u64 {
                return Err(BtfError::Malformed { offset: offset_at });
            }
            Ok(start as usize..end as usize)
        };
        let (types, strings) = (section(8)?, section(16)?);
        Ok(Self { bytes, types, strings })
    }

    /// Looks up the function and the structure with these names.
    pub fn find(&self, function: &str, structure: &str) -> Result<Found, BtfError> {
        let mut found = Found { function: None, structure_size: None };
        let mut at = self.types.start;
        let mut id = 0;
        while at < self.types.end {
            id += 1; // Id 0 is `void` and has no record.
            // struct btf_type: name_off, info (vlen in bits 0-15, kind in bits 24-28), size or type.
            let name = word(&self.bytes, at)? as usize;
            let info = word(&self.bytes, at + 4)?;
            let size = word(&self.bytes, at + 8)?;
            let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_FUNC && self.is_named(name, function) {
                found.function = Some(id);
            } else if kind == KIND_STRUCT && self.is_named(name, structure) {
                found.structure_size = Some(size);
            }
            at += 12 + trailing_bytes(kind, members)?;
        }
        Ok(found)
    }

    /// Reads through all types once.
    pub fn layout(&self) -> Result<Layout<'_>, BtfError> {
        let mut layout = Layout {
            btf: self,
            records: vec![self.types.start],
            structures: std::collections::HashMap::new(),
            functions: std::collections::HashMap::new(),
        };
        let mut at = self.types.start;
        while at < self.types.end {
            let name = word(&self.bytes, at)? as usize;
            let info = word(&self.bytes, at + 4)?;
            let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            match (kind, self.name(name)) {
                (KIND_STRUCT, Some(name)) if !name.is_empty() => {
                    layout.structures.insert(name, at);
                }
                (KIND_FUNC, Some(name)) => {
                    layout.functions.insert(name, layout.records.len() as u32);
                }
                _ => {}
            }
            layout.records.push(at);
            at += 12 + trailing_bytes(kind, members)?;
        }
        Ok(layout)
    }

    fn name(&self, offset: usize) -> Option<&str> {
        let rest = self.bytes[self.strings.clone()].get(offset..)?;
        std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()
    }

    fn is_named(&self, offset: usize, name: &str) -> bool {
        let strings = &self.bytes[self.strings.clone()];
        strings
            .get(offset..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], offset: usize) -> Result<u32, BtfError> {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>());
    word.map(|word| u32::from_ne_bytes(*word)).ok_or(BtfError::Malformed { offset })
}

/// How many bytes follow the common part of a type record (Documentation/bpf/btf.rst, "Type Encoding").
fn trailing_bytes(kind: u32, members: usize) -> Result<usize, BtfError> {
    Ok(match kind {
        1 => 4,                    // INT
        2 | 7..=12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        3 => 12,                   // ARRAY
        4 | 5 => 12 * members,     // STRUCT, UNION
        6 | 13 => 8 * members,     // ENUM, FUNC_PROTO
        14 | 17 => 4,              // VAR, DECL_TAG
        15 | 19 => 12 * members,   // DATASEC, ENUM64
        kind => return Err(BtfError::UnknownKind { kind }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_what_every_kernel_with_btf_has() {
        let btf = Btf::of_running_kernel().expect("read");
        let found = btf.find("tcp_v4_rcv", "list_head").expect("find");
        assert!(found.function.is_some());
        assert_eq!(found.structure_size, Some(16));
    }

    #[test]
    fn finds_no_prefix_of_a_name() {
        let btf = Btf::of_running_kernel().expect("read");
        let found = btf.find("tcp_v4_rc", "list_hea").expect("find");
        assert_eq!(found, Found { function: None, structure_size: None });
    }

    /// Against what other interfaces say: `struct list_head` is two pointers, and a `tcp_sock` begins with the socket
    /// that it is.
    #[test]
    fn members_are_found_through_structures_without_a_name() {
        let btf = Btf::of_running_kernel().expect("read");
        let layout = btf.layout().expect("types");
        assert_eq!(layout.offset("list_head", "prev").expect("sound"), Some(8));
        let state = layout.offset("sock", "__sk_common.skc_state").expect("sound").expect("found");
        let path = "inet_conn.icsk_inet.sk.__sk_common.skc_state";
        assert_eq!(layout.offset("tcp_sock", path).expect("sound"), Some(state));
        // In a union without a name.
        assert!(layout.offset("sock_common", "skc_daddr").expect("sound").is_some());
        assert_eq!(layout.offset("list_head", "nonsense").expect("sound"), None);
        assert_eq!(layout.offset("no_such_structure", "a").expect("sound"), None);
        assert!(layout.function("tcp_v4_rcv").is_some());
    }

    proptest! {
        #[test]
        fn never_panics_on_garbage(mut bytes in proptest::collection::vec(any::<u8>(), 0..256), sound_header: bool) {
            if sound_header && bytes.len() >= 24 {
                let body = (bytes.len() - 24) as u32;
                bytes[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                for (index, value) in [24, 0, body / 2, body / 2, body - body / 2].into_iter().enumerate() {
                    bytes[4 + 4 * index..8 + 4 * index].copy_from_slice(&value.to_ne_bytes());
                }
            }
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = btf.find("a", "b");
                if let Ok(layout) = btf.layout() {
                    let _ = layout.offset("", "a.b");
                }
            }
        }
    }
}
