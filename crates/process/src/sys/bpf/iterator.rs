//! BPF iterators: programs that the kernel runs on each of its objects of a kind, and that say what a reader reads
//! (Documentation/bpf/bpf_iterators.rst).

use std::fs::File;
use std::io::{self, Read};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, OwnedFd};

use super::asm::{Assembler, BadJump, If, Instruction, Label, Register, Register::*, Width};
use super::btf::{Btf, BtfError, Layout};
use super::{BpfError, LINK_CREATE, PROG_LOAD, ProgramLoad, bpf_fd, load_explained};
use crate::sys::ptrace::Tid;

/// `BPF_ITER_CREATE`, enum bpf_cmd.
const ITER_CREATE: libc::c_long = 33;
/// `BPF_PROG_TYPE_TRACING`, enum bpf_prog_type.
const PROG_TYPE_TRACING: u32 = 26;
/// `BPF_TRACE_ITER`, enum bpf_attach_type.
const ATTACH_TRACE_ITER: u32 = 28;

/// Why this machine cannot list objects of the kernel this way.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(transparent)]
    TypeInformation(#[from] BtfError),
    #[error("the kernel has no {0}: it is older or newer than this program knows")]
    Missing(String),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Program(#[from] BadJump),
}

/// A kind of iterator, and what its program says of each object: a record of fixed size.
pub(super) struct Plan {
    pub name: &'static str,
    /// The function that stands for the kind (kernel/bpf/task_iter.c).
    pub target: &'static str,
    /// Where the object stands in the program's context.
    pub object: i16,
    /// Bytes of a record, a multiple of 8.
    pub record: usize,
}

/// See the licence of the half-open connections' program: the same holds for these.
const LICENSE: &std::ffi::CStr = c"GPL";

// `meta` is the first member of every context, and `seq` of `struct bpf_iter_meta`; both are pointers.
const CONTEXT_META: i16 = 0;
const META_SEQ: i16 = 0;

// Helpers, enum bpf_func_id.
const PROBE_READ_KERNEL: i32 = 113;
const SEQ_WRITE: i32 = 127;

/// A program being written. The context is in R6, the object in R7; the record lies at the top of the stack, zeroed, with a
/// word below it for what is only looked at.
pub(super) struct Draft<'a> {
    pub program: Assembler,
    layout: &'a Layout<'a>,
    record: i16,
    /// Writes the record as it is.
    pub write: Label,
    /// Says nothing of this object.
    pub skip: Label,
}

impl Draft<'_> {
    /// The offset of a member in a structure of the running kernel.
    pub fn member(&self, structure: &str, path: &str) -> Result<i32, Unavailable> {
        let offset = self.layout.offset(structure, path)?;
        offset.map(|offset| offset as i32).ok_or_else(|| Unavailable::Missing(format!("{structure}.{path}")))
    }

    /// How many bits of its byte come before a bit field.
    pub fn shift(&self, structure: &str, member: &str) -> Result<u32, Unavailable> {
        let shift = self.layout.shift(structure, member)?;
        shift.ok_or_else(|| Unavailable::Missing(format!("{structure}.{member}")))
    }

    /// Where a place of the record is on the stack.
    pub fn at(&self, place: usize) -> i16 {
        self.record + place as i16
    }

    pub fn scratch(&self) -> i16 {
        self.record - 8
    }

    /// Copies kernel memory at `base + offset` to the stack. What cannot be read is zero. Loses R0 to R5.
    pub fn copy(&mut self, to: i16, size: i32, base: Register, offset: i32) {
        let program = &mut self.program;
        program.move_register(R3, base);
        program.add(R3, offset);
        program.move_register(R1, R10);
        program.add(R1, i32::from(to));
        program.move_immediate(R2, size);
        program.call_helper(PROBE_READ_KERNEL);
    }

    /// Reads a pointer, or a smaller number into a word that was zero before.
    pub fn fetch(&mut self, to: Register, size: i32, base: Register, offset: i32) {
        let scratch = self.scratch();
        self.program.store_immediate(Width::Double, R10, scratch, 0);
        self.copy(scratch, size, base, offset);
        self.program.load(Width::Double, to, R10, scratch);
    }
}

/// An iterator's program, verified and compiled by the kernel.
#[derive(Debug)]
pub struct Iterator {
    fd: OwnedFd,
}

impl Iterator {
    /// Writes and loads a program: `body` says what is to be read of an object. Reading the kernel's type information takes some
    /// tens of milliseconds.
    pub(super) fn build(
        plan: &Plan,
        body: impl FnOnce(&mut Draft<'_>) -> Result<(), Unavailable>,
    ) -> Result<Self, Unavailable> {
        let btf = Btf::of_running_kernel()?;
        let layout = btf.layout()?;
        let target =
            layout.function(plan.target).ok_or_else(|| Unavailable::Missing(plan.target.to_owned()))?;
        let mut program = Assembler::new();
        let (write, skip) = (program.label(), program.label());
        let record = -(plan.record as i16);
        let mut draft = Draft { program, layout: &layout, record, write, skip };
        draft.program.move_register(R6, R1);
        draft.program.load(Width::Double, R7, R6, plan.object);
        // After the last one the program is called once more, with none.
        draft.program.jump_if(R7, If::Equal, 0, skip);
        for offset in (draft.scratch()..0).step_by(8) {
            draft.program.store_immediate(Width::Double, R10, offset, 0);
        }
        body(&mut draft)?;
        let mut program = draft.program;
        program.place(write);
        program.load(Width::Double, R1, R6, CONTEXT_META);
        program.load(Width::Double, R1, R1, META_SEQ);
        program.move_register(R2, R10);
        program.add(R2, i32::from(record));
        program.move_immediate(R3, plan.record as i32);
        program.call_helper(SEQ_WRITE);
        program.place(skip);
        program.move_immediate(R0, 0);
        program.exit();
        Ok(Self::load(plan.name, LICENSE, target, &program.finish()?)?)
    }

    /// `target` is the BTF id of the function `bpf_iter_...` that stands for the kind of object.
    fn load(
        name: &'static str,
        license: &'static std::ffi::CStr,
        target: u32,
        program: &[Instruction],
    ) -> Result<Self, BpfError> {
        let load = |log: &mut [u8]| {
            let attributes = IteratorLoad {
                common: ProgramLoad::new(PROG_TYPE_TRACING, name, license, program, log),
                prog_ifindex: 0,
                expected_attach_type: ATTACH_TRACE_ITER,
                prog_btf_fd: 0,
                func_info_rec_size: 0,
                func_info: 0,
                func_info_cnt: 0,
                line_info_rec_size: 0,
                line_info: 0,
                line_info_cnt: 0,
                attach_btf_id: target,
            };
            // SAFETY: `program` is `insn_cnt` contiguous 8-byte instructions, `license` ends in a NUL, and `log` is valid
            // for writes of `log_size` bytes; all outlive the call.
            unsafe { bpf_fd(PROG_LOAD, &attributes) }
        };
        load_explained(name, load).map(|fd| Self { fd })
    }

    /// Points the program at the objects of one thread, whose id is that of the calling process's pid namespace.
    pub fn of_thread(&self, tid: Tid) -> Result<Link, BpfError> {
        self.of(tid, ThreadInfo { tid: tid as u32, pid: 0, pid_fd: 0 })
    }

    /// As [`Iterator::of_thread`], of all threads of a process.
    pub fn of_process(&self, pid: Tid) -> Result<Link, BpfError> {
        self.of(pid, ThreadInfo { tid: 0, pid: pid as u32, pid_fd: 0 })
    }

    fn of(&self, tid: Tid, target: ThreadInfo) -> Result<Link, BpfError> {
        let attributes = LinkIterator {
            prog_fd: self.fd.as_raw_fd() as u32,
            target_fd: 0,
            attach_type: ATTACH_TRACE_ITER,
            flags: 0,
            iter_info: &raw const target as u64,
            iter_info_len: size_of::<ThreadInfo>() as u32,
            padding: 0,
        };
        // SAFETY: `target` is live and as long as is said.
        let fd = unsafe { bpf_fd(LINK_CREATE, &attributes) };
        fd.map(|fd| Link { fd }).map_err(|source| BpfError::Iterate { tid, source })
    }
}

/// An iterator with its target.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// What the program says of the objects as they are now, in records of `size` bytes.
    pub fn read(&self, size: usize, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        // What the kernel hands out at once (`bpf_seq_read` has a buffer of 8 pages).
        let mut buffer = [0u8; 32 * 1024];
        let mut pass = self.begin()?;
        let mut kept = 0;
        loop {
            let got = match pass.read(&mut buffer[kept..]) {
                Ok(got) => got,
                // Many objects: the kernel pauses after so many.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let have = kept + got;
            let records = buffer[..have].chunks_exact(size);
            kept = records.remainder().len();
            records.for_each(&mut each);
            buffer.copy_within(have - kept..have, 0);
            if got == 0 {
                return Ok(());
            }
        }
    }

    fn begin(&self) -> io::Result<File> {
        let attributes = IteratorCreate { link_fd: self.fd.as_raw_fd() as u32, flags: 0 };
        // SAFETY: ITER_CREATE reads its attributes and no memory that they point to.
        unsafe { bpf_fd(ITER_CREATE, &attributes) }.map(File::from)
    }
}

// Members of `union bpf_attr`, as in the parent module; of `union bpf_iter_link_info`, its `task`.

#[repr(C)]
struct IteratorLoad {
    common: ProgramLoad,
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
struct LinkIterator {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

#[repr(C)]
struct ThreadInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

#[repr(C)]
struct IteratorCreate {
    link_fd: u32,
    flags: u32,
}

// Uninitialised padding would be read by the kernel; there is none.
const _: () = assert!(size_of::<IteratorLoad>() == size_of::<ProgramLoad>() + 4 * 4 + 8 + 2 * 4 + 8 + 2 * 4);
const _: () = assert!(offset_of!(IteratorLoad, attach_btf_id) == 108);
const _: () = assert!(size_of::<LinkIterator>() == 4 * 4 + 8 + 2 * 4);
