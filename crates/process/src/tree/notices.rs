//! What the filter of system calls announces (`sys/seccomp.rs`), each before the call is made.

use std::os::unix::fs::FileExt;

use super::{Running, Workload, ignore_gone};
use crate::checkpoint::{Pid, TreeEvent};
use crate::error::{Attempt, Result};
use crate::object::attributes::{self, Target};
use crate::object::file::FileKey;
use crate::object::posix_timer;
use crate::sys::pagemap::{PAGE_SIZE, Range, USER_END};
use crate::sys::proc;
use crate::sys::ptrace::{self, Tid};
use crate::sys::seccomp::{self, Notice};

impl Workload {
    /// Whether its result matters: then it is to be stopped again at its end ([`Workload::returned`]).
    pub(super) fn noticed(&mut self, pid: Pid, tid: Tid, data: u16) -> Result<bool> {
        if let Some(error) = seccomp::hidden_with(data) {
            self.hide(pid, tid, error)?;
            return Ok(false);
        }
        let Some(notice) = Notice::from_data(data) else { return Ok(false) };
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(false) };
        match notice {
            Notice::SignalAction => process.actions_changed = true,
            Notice::SignalStack => {
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.known = None;
                }
            }
            Notice::Attribute => {
                process.attributes_changed = true;
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                let or_self = |id: u64| if id as Pid == 0 { pid } else { id as Pid };
                match regs.orig_rax as i64 {
                    libc::SYS_setsid => {
                        process.leads = true;
                        // It has none from here on.
                        process.terminal = None;
                        self.log.push(TreeEvent::Session { pid });
                    }
                    libc::SYS_setpgid => {
                        let target = or_self(regs.rdi);
                        let group = if regs.rsi as Pid == 0 { target } else { regs.rsi as Pid };
                        self.log.push(TreeEvent::Group { pid: target, group });
                    }
                    libc::SYS_prctl if regs.rdi == libc::PR_SET_CHILD_SUBREAPER as u64 => {
                        process.reaper = regs.rsi != 0;
                        self.log.push(TreeEvent::Reaper { pid, on: process.reaper });
                    }
                    libc::SYS_prctl if regs.rdi == libc::PR_SET_SECCOMP as u64 => self.filters_change(pid)?,
                    _ => {}
                }
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.known = None;
                }
                self.attributes_change(pid, attributes::target(&regs));
            }
            Notice::Timer => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                match regs.orig_rax as i64 {
                    libc::SYS_timer_create => {
                        process.posix_timers.get_or_insert_default();
                        if regs.rdi as i32 == libc::CLOCK_THREAD_CPUTIME_ID
                            && let Some(thread) = self.threads.get(&tid)
                            && !process.timer_makers.contains(&thread.tid)
                        {
                            process.timer_makers.push(thread.tid);
                        }
                    }
                    libc::SYS_timer_settime => {
                        let mut spec = [0u8; 32];
                        let ahead = (self.clock_offsets.monotonic, self.clock_offsets.boottime);
                        if let Some(space) = &process.space
                            && space.memory.read_exact_at(&mut spec, regs.rdx).is_ok()
                            && process.cadences.len() < posix_timer::MAX_TIMERS
                        {
                            let id = regs.rdi as i32;
                            let clock = process.posix_timers.iter().flatten().find(|timer| timer.id == id);
                            let clock = clock.map_or(libc::CLOCK_MONOTONIC, |timer| timer.clock);
                            let first = posix_timer::first_expiry(clock, regs.rsi as i32, &spec, ahead);
                            process.cadences.insert(id, first);
                        }
                    }
                    _ => process.ask_intervals = posix_timer::ASKED_ON,
                }
            }
            Notice::PagesDropped => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                let (start, length) = match regs.orig_rax as i64 {
                    // From where on it is cut off; all of it, if it moves and leaves an empty mapping behind.
                    libc::SYS_mremap if regs.r10 & libc::MREMAP_DONTUNMAP as u64 == 0 => {
                        (regs.rdi.saturating_add(regs.rdx), regs.rsi.saturating_sub(regs.rdx))
                    }
                    _ => (regs.rdi, regs.rsi),
                };
                let end = start.saturating_add(length).min(USER_END).next_multiple_of(PAGE_SIZE);
                let start = start & !(PAGE_SIZE - 1);
                if let Some(space) = &mut process.space
                    && regs.orig_rax == libc::SYS_mremap as u64
                    && regs.rsi == 0
                {
                    // A second mapping of what is shared there.
                    space.suspect_at(regs.rdi);
                } else if let Some(space) = &mut process.space
                    && start < end
                {
                    space.dropped(Range::new(start, end));
                }
            }
            Notice::SharedMapping => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                let key = match regs.orig_rax as i64 {
                    libc::SYS_shmat => Some(FileKey::of_segment(regs.rdi as i32)),
                    // mmap: what the descriptor stands for now.
                    _ => proc::file_key(process.host, regs.r8 as i32),
                };
                if let (Some(key), Some(space), true) = (key, &mut process.space, self.shared.is_capturing())
                {
                    space.suspect(key);
                }
            }
            Notice::Advice => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                process.advised = true;
                let start = regs.rdi & !(PAGE_SIZE - 1);
                let end = regs.rdi.saturating_add(regs.rsi).min(USER_END).next_multiple_of(PAGE_SIZE);
                let wipes = regs.orig_rax == libc::SYS_madvise as u64
                    && regs.rdx == libc::MADV_WIPEONFORK as u64
                    && start < end;
                if let Some(space) = &mut process.space {
                    space.advise(wipes.then(|| Range::new(start, end)));
                    if regs.orig_rax == libc::SYS_mmap as u64
                        && let Some(key) = proc::file_key(process.host, regs.r8 as i32)
                    {
                        space.suspect(key);
                    }
                }
                match regs.orig_rax as i64 {
                    libc::SYS_mlockall if regs.rdi as i32 & libc::MCL_FUTURE != 0 => {
                        process.lock_future = regs.rdi as u32 & !(libc::MCL_CURRENT as u32);
                    }
                    // Nothing is said of mappings to come, so they are not locked (`apply_mlockall_flags`, mm/mlock.c).
                    libc::SYS_mlockall => process.lock_future = 0,
                    libc::SYS_munlockall => process.lock_future = 0,
                    _ => return Ok(false),
                }
                process.attributes_changed = true;
            }
            Notice::Segment => self.shared.segments = true,
            Notice::Exec => {
                if let Some(space) = &mut process.space {
                    self.shared.harvest(pid, space);
                }
            }
            Notice::SocketOption => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                self.descriptors.option_changed(process, regs.rdi as i32);
                return Ok(unreadable_option(regs.rsi as i32, regs.rdx as i32).is_some());
            }
            Notice::SignalOwner => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                self.descriptors.owner_changed(process, regs.rdi as i32);
            }
            Notice::Close => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                if self.descriptors.release(process, regs.rdi as i32) {
                    self.happened.wants_epoch = true;
                }
            }
            Notice::Filter => {
                let regs =
                    ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
                self.filters_change(pid)?;
                return Ok(regs.rsi & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0);
            }
            // What is made is found in the ipc namespace.
            Notice::SystemV => self.ipc.used = true,
            Notice::Queue => self.queues.used = true,
            Notice::Refused | Notice::Writes => return Ok(true),
        }
        Ok(false)
    }

    /// One thread may install a filter on all of a process, also on those that are parked.
    fn filters_change(&mut self, pid: Pid) -> Result<()> {
        for (tid, thread) in self.threads.iter_mut().filter(|(_, thread)| thread.process == pid) {
            thread.filters = None;
            if matches!(thread.running, Running::Parked) {
                thread.running = Running::Yes;
                thread.settled = 0;
                ignore_gone(ptrace::interrupt(*tid)).attempt(|| format!("stop thread {tid}"))?;
            }
        }
        Ok(())
    }
}

impl Workload {
    /// Who is to be asked about its attributes again. The call is made before any stop for a checkpoint.
    fn attributes_change(&mut self, pid: Pid, target: Target) {
        let of_own = |id: Pid| self.threads.values().any(|thread| thread.tid == id && thread.process == pid);
        let everybody = match target {
            Target::Process => return,
            Target::Thread => false,
            Target::Other(id) => !of_own(id),
            Target::Many => true,
        };
        for (other, process) in self.processes.iter_mut().filter(|(other, _)| everybody || **other == pid) {
            process.attributes_changed = true;
            let threads = || self.threads.values().filter(|thread| thread.process == *other);
            process.individual |= threads().nth(1).is_some();
        }
        let asked = |process: Pid| {
            (everybody || process == pid)
                && self.processes.get(&process).is_some_and(|process| process.individual)
        };
        for thread in self.threads.values_mut().filter(|thread| asked(thread.process)) {
            thread.known = None;
        }
    }
}

/// Socket options that the kernel does not tell again (numbers: `include/uapi/asm-generic/socket.h`, `linux/tcp.h`).
pub(super) fn unreadable_option(level: i32, name: i32) -> Option<(&'static str, &'static str)> {
    const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
    const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
    const TCP_MD5SIG: i32 = 14;
    const TCP_MD5SIG_EXT: i32 = 32;
    const TCP_FASTOPEN_KEY: i32 = 33;
    const TCP_AO_ADD_KEY: i32 = 38;
    /// `IPT_BASE_CTL` and its like of `linux/netfilter_*`: iptables, arptables, ebtables.
    const FILTERS: [i32; 3] = [64, 96, 128];
    match (level, name) {
        (libc::SOL_IP | libc::SOL_IPV6, name) if FILTERS.contains(&name) => {
            Some(("packet filters of its own (iptables)", "let the hosts, or the network, filter packets"))
        }
        (libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF | SO_ATTACH_REUSEPORT_EBPF) => Some((
            "a program that chooses among sockets (SO_ATTACH_REUSEPORT_CBPF)",
            "switch it off in the program: the kernel then chooses by the sender's address",
        )),
        (libc::SOL_TCP, TCP_MD5SIG | TCP_MD5SIG_EXT | TCP_AO_ADD_KEY) => Some((
            "signatures of TCP segments (TCP MD5 or TCP-AO keys)",
            "let the network sign instead (IPsec): what is sent at a takeover is not signed",
        )),
        (libc::SOL_TCP, TCP_FASTOPEN_KEY) => {
            Some(("keys of TCP Fast Open", "switch Fast Open off in the program"))
        }
        _ => None,
    }
}
