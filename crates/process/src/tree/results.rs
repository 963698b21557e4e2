//! What became of calls whose result matters: only one that succeeded has changed anything.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Workload, notices};
use crate::checkpoint::Pid;
use crate::error::{Attempt, Result};
use crate::sys::ptrace::{self, Registers, Tid};
use crate::sys::{proc, seccomp, syscalls};

/// `PATH_MAX` of `linux/limits.h`.
const PATH_MAX: usize = 4096;
/// Results from here on are errors (`MAX_ERRNO` of `linux/err.h`).
const ERRORS: i64 = -4095;

impl Workload {
    /// At the end of a call of which [`Workload::noticed`] said that its result matters.
    pub(super) fn returned(&mut self, pid: Pid, tid: Tid) -> Result<()> {
        let regs = ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
        let result = regs.rax as i64;
        if result == -i64::from(libc::EROFS) {
            return self.could_not_write(pid, tid, &regs);
        }
        if (ERRORS..0).contains(&result) {
            return Ok(());
        }
        let advice = "run the program without the feature that needs it";
        match regs.orig_rax as i64 {
            // What they leave behind is looked at: it lasts as long as it is there, and whoever is born into it has it too.
            libc::SYS_setns | libc::SYS_unshare => self.namespaces.entered = true,
            libc::SYS_mount | libc::SYS_umount2 | libc::SYS_pivot_root => self.namespaces.mounted = true,
            libc::SYS_setsockopt => {
                if let Some((what, advice)) = notices::unreadable_option(regs.rsi as i32, regs.rdx as i32) {
                    self.refuse(pid, what, advice);
                }
            }
            libc::SYS_seccomp => {
                let what = "a listener for system calls (SECCOMP_FILTER_FLAG_NEW_LISTENER)";
                self.refuse(pid, what, "run the program without a supervisor for its system calls");
            }
            // Of a program that is only looked at, and it could write.
            _ if self.observed.is_some() && !seccomp::is_refused(regs.orig_rax) => {}
            number => self.refuse(pid, &syscalls::name(number as u64), advice),
        }
        Ok(())
    }

    /// In place of the call its caller gets the error, as it would from the filter alone.
    pub(super) fn hide(&mut self, pid: Pid, tid: Tid, error: i32) -> Result<()> {
        let what = || format!("answer a call of thread {tid}");
        let mut regs = ptrace::registers(tid).attempt(what)?;
        if let Some(observed) = &mut self.observed {
            observed.hidden(pid, &hidden_name(&regs), error);
        }
        regs.orig_rax = u64::MAX;
        regs.rax = -i64::from(error) as u64;
        super::ignore_gone(ptrace::set_registers(tid, &regs)).attempt(what)
    }

    /// The file system is read-only there.
    fn could_not_write(&mut self, pid: Pid, tid: Tid, regs: &Registers) -> Result<()> {
        let Some(space) = self.processes.get(&pid).and_then(|process| process.space.as_ref()) else {
            return Ok(());
        };
        let (directory, path) = match regs.orig_rax as i64 {
            libc::SYS_openat
            | libc::SYS_openat2
            | libc::SYS_mkdirat
            | libc::SYS_mknodat
            | libc::SYS_unlinkat
            | libc::SYS_fchmodat
            | libc::SYS_fchownat => (regs.rdi as i32, regs.rsi),
            // The new name.
            libc::SYS_rename | libc::SYS_link => (libc::AT_FDCWD, regs.rsi),
            libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => (regs.rdx as i32, regs.r10),
            libc::SYS_symlink => (libc::AT_FDCWD, regs.rsi),
            libc::SYS_symlinkat => (regs.rsi as i32, regs.rdx),
            _ => (libc::AT_FDCWD, regs.rdi),
        };
        let mut bytes = vec![0u8; PATH_MAX];
        // Up to the end of what is mapped.
        let read = space.memory.read_at(&mut bytes, path).unwrap_or(0);
        let end = bytes[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
        let name = PathBuf::from(String::from_utf8_lossy(&bytes[..end]).into_owned());
        let base = match directory {
            libc::AT_FDCWD => proc::path(tid, "cwd"),
            fd => proc::path(tid, &format!("fd/{fd}")),
        };
        // A relative name is below the directory; an absolute one stays as it is.
        let path = std::fs::read_link(base).unwrap_or_default().join(name);
        if let Some(observed) = &mut self.observed {
            observed.could_not_write(pid, path);
        }
        Ok(())
    }
}

/// With the argument that it is hidden for, where one decides.
fn hidden_name(regs: &Registers) -> String {
    let name = syscalls::name(regs.orig_rax);
    match regs.orig_rax as i64 {
        libc::SYS_mmap => format!("{name} with MAP_HUGETLB"),
        libc::SYS_memfd_create => format!("{name} with MFD_HUGETLB"),
        libc::SYS_shmget => format!("{name} with SHM_HUGETLB"),
        libc::SYS_setsockopt => format!("{name} with TCP_ULP (kernel TLS)"),
        libc::SYS_madvise => format!("{name} with advice {}", regs.rdx),
        libc::SYS_prctl | libc::SYS_arch_prctl => format!("{name} with option {}", regs.rdi),
        _ => name,
    }
}
