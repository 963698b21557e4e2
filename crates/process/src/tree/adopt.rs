//! Taking over an address space: room for calls of ours, and a tracker of what is written.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Attempt, Result};
use crate::space::Space;
use crate::sys::ptrace::Tid;
use crate::sys::remote::{self, Remote};
use crate::sys::uffd::{self, Tracker};
use crate::sys::{proc, task};

/// Makes the workspace and the tracker of the address space that `tid`, stopped before its first instruction or
/// anywhere a signal could be delivered, lives in. `tracker`: one that was made before.
pub(crate) fn adopt_space(
    tid: Tid,
    pidfd: BorrowedFd<'_>,
    tracker: Option<OwnedFd>,
    scratch: Arc<[String]>,
) -> Result<Space> {
    let what = || format!("track the memory of thread {tid}");
    let memory = proc::open_memory(tid).attempt(what)?;
    let syscall = vdso_syscall(tid, &memory).attempt(what)?;
    let mut remote = Remote::begin(tid, &memory).attempt(what)?;
    let made = (|| -> io::Result<OwnedFd> {
        if !Remote::has_workspace(&memory) {
            remote.install_workspace(syscall)?;
        }
        if let Some(tracker) = tracker {
            return Ok(tracker);
        }
        let fd = remote.call_at(syscall, libc::SYS_userfaultfd, [uffd::OPEN_FLAGS, 0, 0, 0, 0, 0])?;
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd as i32));
        }
        let ours = task::take_descriptor(pidfd, fd as i32)?;
        remote.call_at(syscall, libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])?;
        Ok(ours)
    })();
    remote.end().attempt(what)?;
    let tracker = Tracker::new(made.attempt(what)?).attempt(what)?;
    Space::new(tid, tracker, memory, scratch).attempt(what)
}

/// Address of a `syscall` instruction in the vdso of a process.
pub(crate) fn vdso_syscall(tid: Tid, memory: &File) -> io::Result<u64> {
    let text = std::fs::read_to_string(proc::path(tid, "maps"))?;
    let lines = proc::parse_maps(&text).ok_or_else(|| io::Error::other("unreadable mappings"))?;
    let vdso = lines
        .iter()
        .find(|line| line.path == "[vdso]")
        .ok_or_else(|| io::Error::other("no vdso; boot without vdso=0"))?;
    let mut code = vec![0u8; (vdso.end - vdso.start) as usize];
    memory.read_exact_at(&mut code, vdso.start)?;
    remote::find_syscall_instruction(&code)
        .map(|offset| vdso.start + offset as u64)
        .ok_or_else(|| io::Error::other("no system call in the vdso"))
}
