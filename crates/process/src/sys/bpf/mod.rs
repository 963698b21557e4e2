//! The few parts of bpf(2) that are needed here: hash maps, two kinds of programs (classifiers of frames, iterators over
//! the kernel's objects), and their links.
//!
//! Programs are written with the small [`asm::Assembler`]: target machines have no compiler for BPF, and a
//! prebuilt object would need a loader with relocation, for fewer than two hundred instructions.
//! `docs/decisions/0003-half-open-connections-by-bpf.md` weighs the choice.

pub mod asm;
pub mod btf;
pub mod files;
pub mod iterator;
mod members;
pub mod memory;
pub mod queues;
pub mod terminal;
pub mod threads;
pub mod undos;
pub mod unix;

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use asm::Instruction;

// enum bpf_cmd, include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_MAP_TYPE_HASH`, enum bpf_map_type.
const MAP_TYPE_HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`: elements take memory when they are stored, so that a generous bound costs nothing.
const MAP_NO_PREALLOC: u32 = 1;
/// `BPF_PROG_TYPE_SCHED_CLS`, enum bpf_prog_type.
const PROG_TYPE_SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`, enum bpf_attach_type (since Linux 6.6).
const ATTACH_TCX_INGRESS: u32 = 46;

/// What the verifier may say before the rest is cut. A program of this size fills a few KiB at level 1.
const VERIFIER_LOG_SIZE: usize = 256 * 1024;
/// How much of the end of that log an error shows; the reason is in its last lines.
const VERIFIER_LOG_SHOWN: usize = 2048;

/// Why the kernel refused something of BPF.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("could not create the BPF map {name} (needs root with CAP_BPF and CAP_NET_ADMIN)")]
    CreateMap { name: &'static str, source: io::Error },
    #[error("could not {operation} an element of a BPF map")]
    Element { operation: &'static str, source: io::Error },
    #[error("the kernel's verifier refused the BPF program {name}; the end of its log:\n{log}")]
    Load { name: &'static str, log: String, source: io::Error },
    #[error(
        "could not attach a BPF program to the ingress of interface {ifindex} (needs Linux 6.6 or newer)"
    )]
    Attach { ifindex: u32, source: io::Error },
    #[error("could not point a BPF iterator at process {tid} (needs Linux 6.1 or newer)")]
    Iterate { tid: i32, source: io::Error },
}

/// Loads the programs that checkpoints use. That takes some tens of milliseconds, which neither a failover nor a pause has to
/// spare. What cannot be had is done without; `outlive check` says so.
pub fn prepare() {
    let _ = (files::Lister::shared(), threads::Lister::shared(), memory::KernelMemory::shared());
}

/// A hash map from `KEY` bytes to `VALUE` bytes, shared with the programs that were assembled with it.
#[derive(Debug)]
pub struct HashMap<const KEY: usize, const VALUE: usize> {
    fd: OwnedFd,
}

impl<const KEY: usize, const VALUE: usize> HashMap<KEY, VALUE> {
    /// Creates a map of at most `max_entries`; memory is taken only for entries that exist.
    pub fn create(name: &'static str, max_entries: u32) -> Result<Self, BpfError> {
        let attributes = MapCreate {
            map_type: MAP_TYPE_HASH,
            key_size: KEY as u32,
            value_size: VALUE as u32,
            max_entries,
            map_flags: MAP_NO_PREALLOC,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: object_name(name),
        };
        // SAFETY: MAP_CREATE reads its attributes and no memory that they point to.
        let fd = unsafe { bpf_fd(MAP_CREATE, &attributes) };
        Ok(Self { fd: fd.map_err(|source| BpfError::CreateMap { name, source })? })
    }

    /// Stores an element, replacing what the key held. Fails with E2BIG when the map is full.
    pub fn insert(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> Result<(), BpfError> {
        let attributes = self.element(key, value.as_ptr() as u64);
        // SAFETY: `key` and `value` are valid for reads of the sizes that the map was created with, and outlive the
        // call; UPDATE_ELEM writes to neither.
        let done = unsafe { bpf(MAP_UPDATE_ELEM, &attributes) };
        done.map(drop).map_err(|source| BpfError::Element { operation: "store", source })
    }

    /// The value stored under `key`, if any.
    pub fn get(&self, key: &[u8; KEY]) -> Result<Option<[u8; VALUE]>, BpfError> {
        let mut value = [0; VALUE];
        let attributes = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: `key` is valid for reads and `value` for writes of the sizes that the map was created with.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &attributes) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(BpfError::Element { operation: "look up", source }),
        }
    }

    /// Removes an element; says whether there was one.
    pub fn remove(&self, key: &[u8; KEY]) -> Result<bool, BpfError> {
        let attributes = self.element(key, 0);
        // SAFETY: `key` is valid for reads of the size that the map was created with; DELETE_ELEM reads no value.
        match unsafe { bpf(MAP_DELETE_ELEM, &attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(BpfError::Element { operation: "delete", source }),
        }
    }

    fn element(&self, key: &[u8; KEY], value: u64) -> MapElement {
        MapElement {
            map_fd: self.fd.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value,
            flags: 0, // BPF_ANY
        }
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for HashMap<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program of the traffic control classifier type, verified and compiled by the kernel.
#[derive(Debug)]
pub struct Classifier {
    fd: OwnedFd,
}

impl Classifier {
    /// Loads a program. `license` must be compatible with the GPL if the program calls kernel functions
    /// (`add_kfunc_call`, kernel/bpf/verifier.c).
    pub fn load(
        name: &'static str,
        license: &'static std::ffi::CStr,
        program: &[Instruction],
    ) -> Result<Self, BpfError> {
        let load = |log: &mut [u8]| Self::load_with_log(name, license, program, log);
        load_explained(name, load).map(|fd| Self { fd })
    }

    fn load_with_log(
        name: &'static str,
        license: &'static std::ffi::CStr,
        program: &[Instruction],
        log: &mut [u8],
    ) -> io::Result<OwnedFd> {
        let attributes = ProgramLoad::new(PROG_TYPE_SCHED_CLS, name, license, program, log);
        // SAFETY: `program` is `insn_cnt` contiguous 8-byte instructions (Instruction is repr(transparent) over u64),
        // `license` ends in a NUL, and `log` is valid for writes of `log_size` bytes; all outlive the call.
        unsafe { bpf_fd(PROG_LOAD, &attributes) }
    }

    /// Runs the program on every frame that interface `ifindex` *of the calling thread's network namespace*
    /// receives, before the network stack sees it, until the link is dropped.
    ///
    /// The kernel looks the interface up in the caller's namespace (`tcx_link_attach`, kernel/bpf/tcx.c). The link
    /// lives in its descriptor: if this process dies, the program is gone with it.
    pub fn attach_ingress(&self, ifindex: u32) -> Result<IngressLink, BpfError> {
        let attributes = LinkCreate {
            prog_fd: self.fd.as_raw_fd() as u32,
            target_ifindex: ifindex,
            attach_type: ATTACH_TCX_INGRESS,
            flags: 0,
        };
        // SAFETY: LINK_CREATE for tcx reads its attributes and no memory that they point to.
        let fd = unsafe { bpf_fd(LINK_CREATE, &attributes) };
        Ok(IngressLink { _fd: fd.map_err(|source| BpfError::Attach { ifindex, source })? })
    }
}

/// Loads a program, and once more for an explanation if that fails: asking for a log makes the verifier several times
/// slower.
fn load_explained(
    name: &'static str,
    load: impl Fn(&mut [u8]) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, BpfError> {
    load(&mut []).or_else(|_| {
        let mut log = vec![0; VERIFIER_LOG_SIZE];
        load(&mut log).map_err(|source| BpfError::Load { name, log: end_of_log(&log), source })
    })
}

/// Keeps a program attached; dropping it detaches.
#[derive(Debug)]
pub struct IngressLink {
    _fd: OwnedFd,
}

// The members of `union bpf_attr` that each command reads. The kernel takes a shorter structure than its own and
// reads the rest as zero (bpf_check_uarg_tail_zero, kernel/bpf/syscall.c).

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; OBJECT_NAME_LEN],
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; OBJECT_NAME_LEN],
}

impl ProgramLoad {
    fn new(
        prog_type: u32,
        name: &'static str,
        license: &'static std::ffi::CStr,
        program: &[Instruction],
        log: &mut [u8],
    ) -> Self {
        Self {
            prog_type,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            // With log_level 0 the kernel insists on a null buffer (bpf_verifier_log_attr_valid).
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kern_version: 0,
            prog_flags: 0,
            prog_name: object_name(name),
        }
    }
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

// Uninitialised padding would be read by the kernel; there is none between members or at the end.
const _: () = assert!(size_of::<MapCreate>() == offset_of!(MapCreate, map_name) + OBJECT_NAME_LEN);
const _: () = assert!(size_of::<MapElement>() == 2 * 4 + 3 * 8);
const _: () = assert!(size_of::<ProgramLoad>() == 2 * 4 + 2 * 8 + 2 * 4 + 8 + 2 * 4 + OBJECT_NAME_LEN);
const _: () = assert!(size_of::<LinkCreate>() == 4 * 4);

/// `BPF_OBJ_NAME_LEN`, include/uapi/linux/bpf.h.
const OBJECT_NAME_LEN: usize = 16;

/// A name as bpf(2) takes it: what fits, and a NUL.
fn object_name(name: &str) -> [u8; OBJECT_NAME_LEN] {
    let mut bytes = [0; OBJECT_NAME_LEN];
    for (to, from) in bytes[..OBJECT_NAME_LEN - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn end_of_log(log: &[u8]) -> String {
    let length = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let shown = &log[length.saturating_sub(VERIFIER_LOG_SHOWN)..length];
    String::from_utf8_lossy(shown).trim_end().to_owned()
}

/// One bpf(2) call.
///
/// # Safety
///
/// Every pointer that `command` takes from `attributes` must be valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    let attributes: *const T = attributes;
    // SAFETY: `attributes` is a live reference to `size_of::<T>()` initialised bytes; the caller vouches for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A bpf(2) call that answers with a new descriptor (the kernel makes them close-on-exec).
///
/// # Safety
///
/// As for [`bpf`], and `command` must be one that returns a descriptor.
unsafe fn bpf_fd<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise is passed on.
    let fd = unsafe { bpf(command, attributes)? };
    // SAFETY: the command returned a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::asm::{Assembler, Register};
    use super::*;

    #[test]
    fn map_keeps_replaces_and_removes() {
        let map = HashMap::<4, 8>::create("test", 2).expect("create");
        assert_eq!(map.get(b"abcd").expect("get"), None);
        map.insert(b"abcd", b"12345678").expect("insert");
        map.insert(b"abcd", b"87654321").expect("replace");
        assert_eq!(map.get(b"abcd").expect("get"), Some(*b"87654321"));
        assert!(map.remove(b"abcd").expect("remove"));
        assert!(!map.remove(b"abcd").expect("remove again"));
    }

    #[test]
    fn full_map_refuses() {
        let map = HashMap::<1, 1>::create("test", 1).expect("create");
        map.insert(b"a", b"1").expect("insert");
        let Err(BpfError::Element { source, .. }) = map.insert(b"b", b"1") else {
            panic!("took a second element")
        };
        assert_eq!(source.raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn verifier_says_why() {
        let mut program = Assembler::new();
        program.move_register(Register::R0, Register::R7); // never written
        program.exit();
        let program = program.finish().expect("assemble");
        let Err(BpfError::Load { log, .. }) = Classifier::load("test", c"GPL", &program) else {
            panic!("the verifier took a read of an uninitialised register")
        };
        assert!(log.contains("R7 !read_ok"), "{log}");
    }

    #[test]
    fn object_names_are_cut_to_fit() {
        assert_eq!(&object_name("a_name_that_is_too_long"), b"a_name_that_is_\0");
    }
}
