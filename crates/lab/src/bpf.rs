//! Two small BPF programs at each port of the switch, loaded by bpf(2) itself: the kernel offers no netem and no
//! nftables everywhere that a lab runs, but programs at tcx (since Linux 6.6) it does.
//!
//! At ingress a frame is marked with the port by which it came; at egress the pair (came by, leaves by) is
//! looked up in a table of thresholds, and the frame is dropped when a random number is not above the pair's.
//! Whose frame it is does not matter: workloads' frames are cut with those of their host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Ports of one switch; the table has the square of it in entries of 4 bytes.
pub(crate) const PORTS: usize = 64;
const PORT_BITS: i32 = PORTS.trailing_zeros() as i32;

/// Drop nothing / drop everything.
pub(crate) const PASS_ALL: u32 = 0;
pub(crate) const DROP_ALL: u32 = u32::MAX;

// Commands and types of bpf(2), include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// One instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: to | from << 4, offset, immediate }
}

/// Offset of `mark` in `struct __sk_buff`.
const SKB_MARK: i16 = 8;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

// Opcodes: class | size or operation | source (include/uapi/linux/bpf.h, bpf_common.h).
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const LSH_IMM: u8 = 0x67;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const LOAD_IMM64: u8 = 0x18;
const JUMP_EQ_IMM: u8 = 0x15;
const JUMP_GT_REG: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Source register of LOAD_IMM64 that says: the immediate is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP_ELEM: i32 = 1;
const GET_PRANDOM_U32: i32 = 7;

fn ingress_program(port: usize) -> Vec<Insn> {
    vec![
        insn(MOV_IMM, 2, 0, 0, port as i32 + 1),
        insn(STORE_WORD, 1, 2, SKB_MARK, 0),
        insn(MOV_IMM, 0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

fn egress_program(port: usize, table: RawFd) -> Vec<Insn> {
    vec![
        insn(LOAD_WORD, 2, 1, SKB_MARK, 0),
        insn(JUMP_EQ_IMM, 2, 0, 16, 0), // unmarked, the switch's own: to `next`
        insn(ADD_IMM, 2, 0, 0, -1),
        insn(LSH_IMM, 2, 0, 0, PORT_BITS),
        insn(ADD_IMM, 2, 0, 0, port as i32),
        insn(STORE_WORD, 10, 2, -4, 0),
        insn(LOAD_IMM64, 1, PSEUDO_MAP_FD, 0, table),
        insn(0, 0, 0, 0, 0), // upper half of the 64-bit immediate
        insn(MOV_REG, 2, 10, 0, 0),
        insn(ADD_IMM, 2, 0, 0, -4),
        insn(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        insn(JUMP_EQ_IMM, 0, 0, 6, 0), // not in the table: to `next`
        insn(LOAD_WORD, 6, 0, 0, 0),
        insn(JUMP_EQ_IMM, 6, 0, 4, PASS_ALL as i32), // to `next`
        insn(CALL, 0, 0, 0, GET_PRANDOM_U32),
        insn(JUMP_GT_REG, 0, 6, 2, 0), // to `next`; nothing is above DROP_ALL
        insn(MOV_IMM, 0, 0, 0, TCX_DROP),
        insn(EXIT, 0, 0, 0, 0),
        // next:
        insn(MOV_IMM, 0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

/// `union bpf_attr` as BPF_MAP_CREATE reads it.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `union bpf_attr` as BPF_MAP_UPDATE_ELEM reads it.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` as BPF_PROG_LOAD reads it, as far as it is used here; what follows counts as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// `union bpf_attr` as BPF_LINK_CREATE reads it for tcx.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// Calls bpf(2) with an attribute block of one of the types above.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the block is live, its length is told, and the kernel only reads it and what its addresses point
    // to, which the callers below keep alive across the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn bpf_fd<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands this is called with return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// For every pair of ports the share of frames that is dropped between them.
pub(crate) struct DropTable {
    map: OwnedFd,
}

impl DropTable {
    pub(crate) fn new() -> io::Result<DropTable> {
        let attributes = MapCreate {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: (PORTS * PORTS) as u32,
        };
        Ok(DropTable { map: bpf_fd(BPF_MAP_CREATE, &attributes)? })
    }

    /// In force for the next frame.
    pub(crate) fn set(&self, from: usize, to: usize, threshold: u32) -> io::Result<()> {
        let key = ((from << PORT_BITS) + to) as u32;
        let attributes = MapUpdate {
            map_fd: self.map.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const key) as u64,
            value: (&raw const threshold) as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
    }

    /// Puts both programs on a device of the calling thread's network namespace. They stay until the links are
    /// closed or the device goes.
    pub(crate) fn attach(&self, ifindex: u32, port: usize) -> io::Result<[OwnedFd; 2]> {
        let ingress = attach(&ingress_program(port), ifindex, BPF_TCX_INGRESS)?;
        let egress = attach(&egress_program(port, self.map.as_raw_fd()), ifindex, BPF_TCX_EGRESS)?;
        Ok([ingress, egress])
    }
}

fn attach(program: &[Insn], ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    let program = bpf_fd(BPF_PROG_LOAD, &load)?;
    let link = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type,
        flags: 0,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    bpf_fd(BPF_LINK_CREATE, &link)
}
