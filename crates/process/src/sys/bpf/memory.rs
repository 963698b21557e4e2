//! Reading what no other interface of the kernel tells: memory of its own, by address, through a program that is run for
//! each piece (`BPF_PROG_TYPE_SYSCALL`, `bpf_prog_test_run_syscall` in net/bpf/test_run.c). Nothing is changed by it,
//! and an address that is wrong gives an error.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use super::asm::{Assembler, Register::*, Width};
use super::btf::{Btf, Layout};
use super::iterator::Unavailable;
use super::members::members;
use super::{PROG_LOAD, ProgramLoad, bpf, bpf_fd, load_explained};

/// `BPF_PROG_TEST_RUN`, enum bpf_cmd.
const PROG_RUN: libc::c_long = 10;
/// `BPF_PROG_TYPE_SYSCALL`, enum bpf_prog_type.
const PROG_TYPE_SYSCALL: u32 = 31;
/// `BPF_F_SLEEPABLE`: such programs have to say that they may sleep.
const SLEEPABLE: u32 = 1 << 4;
/// `bpf_probe_read_kernel`, enum bpf_func_id.
const PROBE_READ_KERNEL: i32 = 113;
/// See the licence of the half-open connections' program: the same holds for this.
const LICENSE: &std::ffi::CStr = c"GPL";

/// The program's context: where to read, how much, the result, and what was read.
const ADDRESS: usize = 0;
const LENGTH: usize = 8;
const RESULT: usize = 16;
const DATA: usize = 24;
/// Most of one call: what the program masks the length with. It goes by way of the program's stack, which has 512 bytes.
const PIECE: usize = 255;
/// The part of the stack for it.
const STACK: i16 = 256;

members! {
    file_private: "file", "private_data";
    group_events: "fsnotify_group", "notification_list";
    group_count: "fsnotify_group", "q_len";
    group_next: "fsnotify_group", "inotify_data.idr.idr_next";
    event_mask: "inotify_event_info", "mask";
    event_watch: "inotify_event_info", "wd";
    event_cookie: "inotify_event_info", "sync_cookie";
    event_length: "inotify_event_info", "name_len";
    event_name: "inotify_event_info", "name";
}

/// The reader.
#[derive(Debug)]
pub struct KernelMemory {
    program: OwnedFd,
    pub members: Members,
}

#[repr(C)]
struct Run {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}
// No padding that the kernel would read uninitialised.
const _: () = assert!(offset_of!(Run, ctx_out) + 8 == size_of::<Run>() && size_of::<Run>() == 64);

impl KernelMemory {
    /// The one of this process, made at the first call.
    pub fn shared() -> Result<&'static Self, &'static Unavailable> {
        static SHARED: OnceLock<Result<KernelMemory, Unavailable>> = OnceLock::new();
        SHARED.get_or_init(Self::load).as_ref()
    }

    /// Something of this process that reads by it, made at the first call and kept in `cell`.
    pub fn reader<R>(
        cell: &'static OnceLock<Result<R, String>>,
        find: fn(&'static Self, &Layout<'_>) -> Result<R, Unavailable>,
    ) -> Result<&'static R, String> {
        let make = || {
            let memory = Self::shared().map_err(ToString::to_string)?;
            let made = Btf::of_running_kernel().map_err(Unavailable::from);
            made.and_then(|btf| find(memory, &btf.layout()?)).map_err(|error| error.to_string())
        };
        cell.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, Unavailable> {
        let btf = Btf::of_running_kernel()?;
        let members = Members::find(&btf.layout()?)?;
        let mut program = Assembler::new();
        program.move_register(R6, R1);
        for at in (-STACK..0).step_by(8) {
            program.store_immediate(Width::Double, R10, at, 0);
        }
        program.load(Width::Double, R3, R6, ADDRESS as i16);
        program.load(Width::Double, R2, R6, LENGTH as i16);
        program.and(R2, PIECE as i32);
        program.move_register(R1, R10);
        program.add(R1, i32::from(-STACK));
        program.call_helper(PROBE_READ_KERNEL);
        program.store(Width::Double, R6, RESULT as i16, R0);
        for at in (0..STACK).step_by(8) {
            program.load(Width::Double, R1, R10, at - STACK);
            program.store(Width::Double, R6, DATA as i16 + at, R1);
        }
        program.move_immediate(R0, 0);
        program.exit();
        let code = program.finish()?;
        let name = "outlive_memory";
        let load = |log: &mut [u8]| {
            let mut attributes = ProgramLoad::new(PROG_TYPE_SYSCALL, name, LICENSE, &code, log);
            attributes.prog_flags = SLEEPABLE;
            // SAFETY: `code` is `insn_cnt` contiguous 8-byte instructions, the licence ends in a NUL, and `log` is valid
            // for writes of `log_size` bytes; all outlive the call.
            unsafe { bpf_fd(PROG_LOAD, &attributes) }
        };
        Ok(Self { program: load_explained(name, load)?, members })
    }

    /// `length` bytes of the kernel's memory.
    pub fn read(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut found = Vec::with_capacity(length);
        while found.len() < length {
            let piece = (length - found.len()).min(PIECE);
            let mut context = vec![0u8; DATA + PIECE + 1];
            context[ADDRESS..ADDRESS + 8].copy_from_slice(&(address + found.len() as u64).to_ne_bytes());
            context[LENGTH..LENGTH + 8].copy_from_slice(&(piece as u64).to_ne_bytes());
            let run = Run {
                prog_fd: self.program.as_raw_fd() as u32,
                retval: 0,
                data_size_in: 0,
                data_size_out: 0,
                data_in: 0,
                data_out: 0,
                repeat: 0,
                duration: 0,
                ctx_size_in: context.len() as u32,
                ctx_size_out: 0,
                ctx_in: context.as_mut_ptr() as u64,
                ctx_out: 0,
            };
            // SAFETY: the context is live, exclusively borrowed and as long as is said; the kernel reads and writes it.
            unsafe { bpf(PROG_RUN, &run) }?;
            let result = context[RESULT..].first_chunk::<8>().copied().map_or(0, i64::from_ne_bytes);
            if result != 0 {
                return Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EFAULT)));
            }
            found.extend_from_slice(&context[DATA..DATA + piece]);
        }
        Ok(found)
    }

    pub fn double(&self, address: u64) -> io::Result<u64> {
        let bytes = self.read(address, 8)?;
        Ok(bytes.first_chunk::<8>().copied().map_or(0, u64::from_ne_bytes))
    }

    pub fn word(&self, address: u64) -> io::Result<u32> {
        let bytes = self.read(address, 4)?;
        Ok(bytes.first_chunk::<4>().copied().map_or(0, u32::from_ne_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::files::Lister;
    use crate::sys::ptrace::Tid;

    #[test]
    fn what_waits_in_an_inotify_instance_can_be_counted() {
        use std::os::fd::AsFd;
        let directory = tempfile::tempdir().expect("a directory");
        let target = OwnedFd::from(std::fs::File::open(directory.path()).expect("open"));
        let instance = crate::sys::inotify::create().expect("inotify");
        crate::sys::inotify::watch(instance.as_fd(), target.as_fd(), libc::IN_CREATE).expect("a watch");
        let memory = KernelMemory::shared().expect("the reader");
        let table = Lister::shared().expect("load").table(std::process::id() as Tid).expect("own table");
        let files = table.read().expect("read");
        let file = files.iter().find(|file| file.fd == instance.as_raw_fd()).expect("it is open").file;
        let group = memory.double(file + memory.members.file_private).expect("the group");
        let number = |member: u64| memory.word(group + member).expect("a number");
        assert_eq!(number(memory.members.group_count), 0);
        std::fs::write(directory.path().join("one"), "").expect("a file");
        std::fs::write(directory.path().join("two"), "").expect("a file");
        assert_eq!(number(memory.members.group_count), 2);
        assert_eq!(number(memory.members.group_next), 2);
        assert!(memory.double(0x10).is_err());
    }
}
