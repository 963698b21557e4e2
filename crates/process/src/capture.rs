//! From a stopped tree to a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::calls;
use crate::checkpoint::{
    Attributes, Checkpoint, Clocks, Job, MemoryDelta, MemoryLayout, Pid, ProcessState, Registers, Run,
    ThreadState, TreeEvent, Whose,
};
use crate::error::{Attempt, Error, Result};
use crate::object::attributes;
use crate::object::file::MEMFD;
use crate::object::memory::Mapping;
use crate::object::posix_timer::{self, PosixTimer};
use crate::object::seccomp_filter::{self, Filters};
use crate::object::signal::{self, PendingSignal};
use crate::object::tcp::Framed;
use crate::sharing;
use crate::space::PageData;
use crate::sys::bpf::threads::{Lister, ThreadSeen};
use crate::sys::ptrace::{self, Registers as RawRegisters, Tid};
use crate::sys::remote::{Remote, leave_sequence};
use crate::sys::{proc, task};
use crate::tree::genealogy::{self, Member};
use crate::tree::waits::{self, Clock};
use crate::tree::{FIRST, Known, Process, Running, Thread, Workload, adopt_space};

impl Workload {
    /// While the workload runs: protects and copies what it has written so far, so that little is left to copy when it
    /// stands still.
    pub fn live_round(&mut self) -> Result<()> {
        for (pid, process) in &mut self.processes {
            let Some(space) = &mut process.space else { continue };
            match space.live_round(*pid) {
                // It ends just now; the next thing heard of it is that it has.
                Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// What changed since the last checkpoint. The tree must be frozen. After an error the changes are lost, and only
    /// [`Workload::capture_whole`] can begin anew.
    pub fn capture(&mut self) -> Result<(Checkpoint, PageData)> {
        self.capture_said(&Framed::default())
    }

    /// As [`Workload::capture`], with what connections have said since the last checkpoint: which spares asking them.
    pub fn capture_said(&mut self, framed: &Framed) -> Result<(Checkpoint, PageData)> {
        let mut pages = PageData::default();
        let checkpoint =
            self.capture_with(false, framed, &mut pages, |process, pid, mappings, pages| match &mut process
                .space
            {
                Some(space) => space.capture(pid, mappings, pages),
                None => Err(Error::Mismatch(format!("the memory of process {pid} is not tracked"))),
            })?;
        Ok((checkpoint, pages))
    }

    /// Everything but the content of memory, for a backup that has nothing. The content that exists now follows in
    /// pieces by [`Workload::copy_backlog`], while the workload runs.
    pub fn capture_whole(&mut self) -> Result<Checkpoint> {
        for process in self.processes.values_mut() {
            if process.space.is_none() {
                let (pidfd, tracker) = (process.pidfd.as_fd(), process.tracker.take());
                process.space = Some(adopt_space(process.host, pidfd, tracker, self.scratch.clone())?);
            }
            if let Some(space) = &mut process.space {
                space.advised |= process.advised;
            }
            process.actions_changed = true;
            process.attributes_changed = true;
        }
        self.descriptors.begin_whole();
        self.shared.begin_whole();
        self.ipc.begin_whole();
        self.queues.begin_whole();
        self.log = self.tree_as_log()?;
        let mut unused = PageData::default();
        self.capture_with(true, &Framed::default(), &mut unused, |process, pid, _, _| {
            match &mut process.space {
                Some(space) => space.begin_whole(pid),
                None => Err(Error::Mismatch(format!("the memory of process {pid} is not tracked"))),
            }
        })
    }

    /// A piece of what a new backup still lacks: whose, which runs, and their pages. `None` when it has everything.
    pub fn copy_backlog(&mut self, pages: u64) -> Option<(Whose, Vec<Run>, PageData)> {
        let own = self.processes.iter_mut().find_map(|(pid, process)| {
            let (runs, data) = process.space.as_mut()?.copy_backlog(pages)?;
            Some((Whose::Process(*pid), runs, data))
        });
        own.or_else(|| self.shared.copy_backlog(pages))
    }

    pub fn backlog_pages(&self) -> u64 {
        self.processes
            .values()
            .filter_map(|process| process.space.as_ref())
            .map(|space| space.backlog_pages())
            .sum::<u64>()
            + self.shared.backlog_pages()
    }

    /// The tree as it is, as if it had been forked just now.
    fn tree_as_log(&mut self) -> Result<Vec<TreeEvent>> {
        self.note_reaped();
        let root = proc::path(self.container.init, "root/proc");
        let mut members = BTreeMap::new();
        for pid in self.processes.keys().chain(self.zombies.keys()) {
            let what = || format!("read the place of process {pid} in the tree");
            // As the workload sees it: its numbers, and 1 for init. proc_pid_stat(5), fields counted from 1.
            let fields = proc::stat_fields_of(&root.join(pid.to_string())).attempt(what)?;
            let field = |number: usize| fields.get(number - 1).copied().unwrap_or(0);
            let process = self.processes.get(pid);
            let member = Member {
                parent: field(4) as Pid,
                group: field(5) as Pid,
                session: field(6) as Pid,
                terminal: proc::terminal_of(field(7)),
                reaper: process.is_some_and(|process| process.reaper),
                ended: self.zombies.get(pid).map(|zombie| zombie.status),
            };
            members.insert(*pid, member);
        }
        for (pid, process) in &mut self.processes {
            process.terminal = members.get(pid).and_then(|member| member.terminal);
        }
        genealogy::history(&members).map_err(|what| {
            let advice = "start it protected, so that its processes are known from the first";
            Error::Unsupported { pid: FIRST, what: format!("sessions of its own kind ({what})"), advice }
        })
    }

    /// `whole` also where nothing has changed. `memory` is given the kernel's count of changes of mappings, if known.
    fn capture_with(
        &mut self,
        whole: bool,
        framed: &Framed,
        pages: &mut PageData,
        mut memory: impl FnMut(&mut Process, Pid, Option<u32>, &mut PageData) -> Result<MemoryDelta>,
    ) -> Result<Checkpoint> {
        for refused in self.standing.errors() {
            self.refusals.pass::<()>(Err(refused))?;
        }
        let strayed = self.namespaces.check_all(&self.processes, &self.threads);
        self.refusals.pass(strayed)?;
        // These two first: what they find to be there for a moment only is waited for, and nothing has been taken yet.
        let looked = self.look_at_threads();
        let listed = self.refusals.pass(looked)?.unwrap_or_default();
        let apart = self.refusals.pass(sharing::own_places(&listed))?.unwrap_or_default();
        let tables = self.descriptors.read_tables(&self.processes, &mut self.refusals)?;
        if self.descriptors.has_terminals() || self.processes.values().any(|one| one.terminal.is_some()) {
            self.note_terminals()?;
        }
        let jobs: Vec<(Pid, Job)> =
            self.processes.keys().map(|pid| Ok((*pid, self.look_at_job(*pid)?))).collect::<Result<_>>()?;
        let mut jobs: HashMap<Pid, Job> =
            jobs.into_iter().filter(|(_, job)| *job != Job::default()).collect();
        let clocks = Clocks {
            monotonic: task::clock(libc::CLOCK_MONOTONIC) + self.clock_offsets.monotonic,
            boottime: task::clock(libc::CLOCK_BOOTTIME) + self.clock_offsets.boottime,
        };
        let clock = Clock { now: clocks.monotonic, ahead: self.clock_offsets.monotonic };
        let network = self.routing.capture(whole);
        let network = self.refusals.pass(network)?.flatten();
        let mut checkpoint = Checkpoint { clocks, network, ..Checkpoint::default() };
        self.note_reaped();
        let proc = proc::path(self.container.init, "root/proc");
        // Of one without its first thread nothing can be asked. That is refused already, and only a survey comes here.
        for (pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.headless) {
            // Calls that are injected change no memory of the program's; the pages are looked at afterwards all the same.
            let (mut threads, mut same_threads) = (Vec::new(), Vec::new());
            let mut pending = Vec::new();
            let mut members: Vec<(&Tid, &mut Thread)> =
                self.threads.iter_mut().filter(|(_, thread)| thread.process == *pid).collect();
            members.sort_unstable_by_key(|(_, thread)| (thread.tid != *pid, thread.tid));
            if let Some((tid, _)) = members.first() {
                pending = pending_signals(**tid, true)?;
            }
            let actions = if process.actions_changed { Some(capture_actions(process)?) } else { None };
            let listed = listed.get(pid);
            let leader = listed.and_then(|threads| threads.get(pid));
            let mappings = leader.map(|leader| leader.mappings);
            process.attributes_changed |= leader.is_some_and(|leader| process.adjusted != leader.adjusted);
            process.adjusted = leader.map_or(process.adjusted, |leader| leader.adjusted);
            for (tid, thread) in members {
                let is_apart = apart.contains(&thread.tid);
                let mut state = match (&thread.captured, thread.running) {
                    (Some(captured), Running::Parked) => captured.clone(),
                    _ => {
                        let seen = listed.and_then(|threads| threads.get(&thread.tid));
                        let state = capture_thread(*pid, *tid, thread, process, clock, seen);
                        let Some(state) = self.refusals.pass(state)? else { continue };
                        waits::note(&mut self.limits, *tid, thread);
                        state
                    }
                };
                // A parked one may have been left behind by its leader, which moved to a place of its own.
                if is_apart && (thread.running != Running::Parked || state.place.is_none()) {
                    let place = sharing::place_of(*pid, *tid, process.host);
                    state.place = self.refusals.pass(place)?.map(Box::new);
                }
                let same = thread.captured.as_ref() == Some(&state);
                // Signals that wait for it can be seen without stopping it only where threads are listed.
                let waits = same && waits_for_another(&state) && mappings.is_some();
                thread.settled = if waits { thread.settled.saturating_add(1) } else { 0 };
                if same && !whole {
                    same_threads.push(thread.tid);
                } else {
                    thread.captured = Some(state.clone());
                    threads.push(state);
                }
            }
            let own = self.threads.values().filter(|thread| thread.process == *pid);
            let filters = Filters::collect(
                own.map(|thread| (thread.tid, thread.filters.as_deref().unwrap_or_default())),
            );
            let filters = (whole || filters != process.filters).then_some(filters);
            if let Some(filters) = &filters {
                process.filters.clone_from(filters);
            }
            let mut interval_timers = None;
            if process.ask_intervals > 0 {
                let timers = with_leader(process, posix_timer::capture_intervals)?;
                let none = timers.iter().all(|(left, interval)| (*left, *interval) == (0, 0));
                process.ask_intervals = if none { process.ask_intervals - 1 } else { posix_timer::ASKED_ON };
                interval_timers = Some(timers);
            }
            if process.posix_timers.is_some() {
                let mut waiting = pending.clone();
                for thread in &threads {
                    waiting.extend(thread.pending.iter().skip(usize::from(thread.delivering)).cloned());
                }
                let timers = capture_posix_timers(process, *pid, &proc, &waiting)?;
                process.timer_makers.clear();
                let apart = clocks.boottime - clocks.monotonic;
                let cadence_of =
                    |timer: &PosixTimer| Some((timer.id, posix_timer::Cadence::restored(timer, apart)?));
                process.cadences = timers.iter().filter_map(cadence_of).collect();
                process.posix_timers = Some(timers);
            }
            let delta = memory(process, *pid, mappings, pages);
            let memory = self.refusals.pass(delta)?.unwrap_or_default();
            let attributes = if process.attributes_changed {
                let stayed = self.namespaces.check(*pid, &process.host.to_string());
                self.refusals.pass(stayed)?;
                self.refusals.pass(capture_attributes(*pid, process))?
            } else {
                None
            };
            process.actions_changed = false;
            process.attributes_changed = false;
            checkpoint.processes.push(ProcessState {
                pid: *pid,
                memory,
                threads,
                same_threads,
                pending,
                actions,
                attributes,
                descriptors: None,
                interval_timers,
                posix_timers: process.posix_timers.clone().unwrap_or_default(),
                filters,
                job: jobs.remove(pid).unwrap_or_default(),
            });
        }
        let seen = self.shared.look(&mut self.processes);
        self.descriptors.set_mapped(seen.keys(), seen.scratch());
        self.descriptors.capture(tables, &mut self.processes, &mut checkpoint, framed, &mut self.refusals)?;
        let (descriptors, refusals) = (&self.descriptors, &mut self.refusals);
        self.shared.capture(seen, whole, descriptors, &mut checkpoint, pages, refusals)?;
        let ipc = self.ipc.capture(self.container.init);
        checkpoint.ipc = self.refusals.pass(ipc)?.flatten();
        let queues = self.queues.capture(self.container.init, self.descriptors.take_queues());
        checkpoint.queues = self.refusals.pass(queues)?.flatten();
        checkpoint.tree = std::mem::take(&mut self.log);
        Ok(checkpoint)
    }

    /// Asks the kernel for the threads of every process; gives what it says of those that it lists.
    /// A parked thread for which a signal has come meanwhile, one that it does not let in, is to be stopped after all.
    fn look_at_threads(&mut self) -> Result<HashMap<Pid, HashMap<Pid, ThreadSeen>>> {
        let Ok(lister) = Lister::shared() else {
            if self.ipc.used {
                let what = "System V semaphores on a kernel that does not list threads".to_owned();
                let advice = "run it on a kernel with BPF and its type information";
                return Err(Error::Unsupported { pid: FIRST, what, advice });
            }
            return Ok(HashMap::new());
        };
        let mut listed = HashMap::new();
        let mut signalled = None;
        self.ipc.undos.clear();
        for (pid, process) in &mut self.processes {
            let what = || format!("list the threads of process {pid}");
            if process.threads.is_none() {
                let threads = lister.threads(process.host).map_err(io::Error::other);
                process.threads = Some(threads.attempt(what)?);
            }
            let Some(threads) = &process.threads else { continue };
            let seen: HashMap<Pid, ThreadSeen> =
                threads.read().attempt(what)?.into_iter().map(|thread| (thread.inside, thread)).collect();
            if seen.values().any(|thread| thread.undoes) {
                self.ipc.look_at_undos(*pid, process.host)?;
            }
            for (tid, thread) in self.threads.iter_mut().filter(|(_, thread)| thread.process == *pid) {
                let quiet = || seen.get(&thread.tid).is_some_and(|seen| seen.pending == 0);
                // Something that is not seen from outside may have changed.
                if thread.running == Running::Parked && (!quiet() || thread.known.is_none()) {
                    thread.running = Running::Yes;
                    thread.settled = 0;
                    ptrace::interrupt(*tid).attempt(|| format!("stop thread {}", thread.tid))?;
                    signalled = Some(thread.tid);
                }
            }
            listed.insert(*pid, seen);
        }
        match signalled {
            Some(tid) => Err(Error::NotNow(Box::new(Error::Mismatch(format!("thread {tid} has a signal"))))),
            None => Ok(listed),
        }
    }

    /// Zombies that are gone have been waited for.
    fn note_reaped(&mut self) {
        let root = proc::path(self.container.init, "root/proc");
        let gone: Vec<Pid> =
            self.zombies.keys().copied().filter(|pid| !root.join(pid.to_string()).exists()).collect();
        for pid in gone {
            self.zombies.remove(&pid);
            self.log.push(TreeEvent::Reaped { pid });
        }
    }
}

/// Whether a thread is in a wait that another thread of the workload ends, or time: `futex(2)`. No other wait is as
/// innocent: its end may take something (a connection, bytes, a tick) while a checkpoint is taken.
fn waits_for_another(state: &ThreadState) -> bool {
    const WAITS: [i32; 2] = [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET];
    let regs = unpack(&state.registers);
    let operation = regs.rsi as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let calls = calls::repeats(&regs) == Some(libc::SYS_futex as u64);
    calls && WAITS.contains(&operation) && state.pending.is_empty()
}

fn capture_thread(
    pid: Pid,
    tid: Tid,
    thread: &mut Thread,
    process: &Process,
    clock: Clock,
    seen: Option<&ThreadSeen>,
) -> Result<ThreadState> {
    let inside = thread.tid;
    let what = || format!("capture thread {inside} of process {pid}");
    let asks_own = process.individual && inside != pid;
    capture_filters(pid, tid, thread)?;
    if thread.known.is_none()
        && let Some(space) = &process.space
    {
        let mut remote = Remote::begin(tid, &space.memory).attempt(what)?;
        let asked = signal::capture_thread(&mut remote);
        let own = asks_own.then(|| attributes::capture_own(&mut remote, tid)).transpose();
        remote.end().attempt(what)?;
        let (stack, clear_tid) = asked.attempt(what)?;
        let own = own.attempt(what)?.map(Box::new);
        let name = std::fs::read_to_string(proc::path(tid, "comm")).attempt(what)?.trim_end().to_owned();
        thread.known = Some(Known { stack, clear_tid, name, own });
    }
    let Known { stack, clear_tid, mut name, own } = thread.known.clone().unwrap_or_default();
    // Another thread may have given it a name through /proc.
    if let Some(now) = seen.and_then(|seen| std::ffi::CStr::from_bytes_until_nul(&seen.name).ok()) {
        name = now.to_string_lossy().into_owned();
    }
    let signalled = matches!(thread.running, Running::Signalled(_));
    let kept = seen.map(|seen| seen.restart);
    let stopped_at = ptrace::registers(tid).attempt(what)?;
    let mut registers =
        waits::look(tid, &stopped_at, thread, process, signalled, clock, kept).attempt(what)?;
    // Later calls of this checkpoint may make the kernel forget a sequence, and the host that takes over knows of none.
    if let Some(space) = &process.space {
        leave_sequence(tid, &space.memory, &mut registers).attempt(what)?;
    }
    let deadline = thread.waiting.and_then(|waiting| waiting.deadline);
    let mut pending = pending_signals(tid, false)?;
    if signalled {
        // The one being delivered comes first.
        pending.insert(0, PendingSignal::new(&ptrace::signal_info(tid).attempt(what)?));
    }
    Ok(ThreadState {
        tid: thread.tid,
        name,
        registers: pack(&registers),
        xstate: ptrace::xstate(tid).attempt(what)?,
        mask: ptrace::signal_mask(tid).attempt(what)?,
        pending,
        delivering: signalled,
        stack,
        rseq: ptrace::rseq(tid).attempt(what)?,
        robust_list: ptrace::robust_list(tid).attempt(what)?,
        clear_tid,
        own,
        place: None,
        deadline,
    })
}

fn capture_filters(pid: Pid, tid: Tid, thread: &mut Thread) -> Result<()> {
    if thread.filters.is_none() {
        let found = seccomp_filter::capture(tid)
            .attempt(|| format!("read the filters of system calls of thread {}", thread.tid))?;
        let advice = "let the program do without it, or switch its sandbox off";
        let refused = |what: &'static str| Error::Unsupported { pid, what: what.to_owned(), advice };
        thread.filters = Some(found.map_err(refused)?);
    }
    Ok(())
}

fn pending_signals(tid: Tid, shared: bool) -> Result<Vec<PendingSignal>> {
    let list =
        ptrace::pending_signals(tid, shared).attempt(|| format!("read the signals waiting for {tid}"))?;
    Ok(list.iter().map(PendingSignal::new).collect())
}

fn with_leader<T>(process: &Process, work: impl FnOnce(&mut Remote<'_>) -> io::Result<T>) -> Result<T> {
    let what = || format!("ask process {} about itself", process.host);
    let Some(space) = &process.space else {
        return Err(Error::Mismatch(format!("process {} is not tracked", process.host)));
    };
    let mut remote = Remote::begin(process.host, &space.memory).attempt(what)?;
    let result = work(&mut remote);
    remote.end().attempt(what)?;
    result.attempt(what)
}

fn capture_actions(process: &Process) -> Result<Vec<signal::SignalAction>> {
    with_leader(process, signal::capture_actions)
}

/// `proc` is the workload's own `/proc`.
fn capture_posix_timers(
    process: &Process,
    pid: Pid,
    proc: &Path,
    waiting: &[PendingSignal],
) -> Result<Vec<PosixTimer>> {
    let Some(before) = &process.posix_timers else { return Ok(Vec::new()) };
    let what = || format!("read the timers of process {pid}");
    let text = std::fs::read_to_string(proc.join(pid.to_string()).join("timers")).attempt(what)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let shadow =
        posix_timer::Shadow { before, cadences: &process.cadences, waiting, makers: &process.timer_makers };
    with_leader(process, |remote| posix_timer::capture(remote, &text, &shadow))
}

fn capture_attributes(pid: Pid, process: &Process) -> Result<Attributes> {
    let what = || format!("read the attributes of process {}", process.host);
    let host = process.host;
    let status = proc::status(host).attempt(what)?;
    let link = |name: &str| -> Result<String> {
        Ok(std::fs::read_link(proc::path(host, name)).attempt(what)?.to_string_lossy().into_owned())
    };
    let executable = link("exe")?;
    if executable.starts_with(MEMFD) {
        return Err(Error::Unsupported {
            pid,
            what: format!("a program that is run from a memfd ({executable})"),
            advice: "run it from a file that every node has",
        });
    }
    let directory = |name: &str, which: &str| sharing::directory(pid, host, name, which);
    let stat = proc::stat_fields(host).attempt(what)?;
    let field = |number: usize| stat.get(number - 1).copied().unwrap_or(0);
    let layout = process.space.as_ref().map(|space| space.layout.as_slice()).unwrap_or_default();
    // proc_pid_stat(5), fields counted from 1.
    if field(38) != libc::SIGCHLD as u64 {
        return Err(Error::Unsupported {
            pid,
            what: format!("a child that tells its end by signal {} in place of SIGCHLD (clone)", field(38)),
            advice: "let it be made by fork, or run another program (exec)",
        });
    }
    let start_brk = field(47);
    let brk = layout.iter().filter(|mapping: &&Mapping| mapping.heap).map(|mapping| mapping.range.end).max();
    let limits = proc::limits(host).attempt(what)?;
    Ok(Attributes {
        executable,
        root: directory("root", "root directory")?,
        cwd: directory("cwd", "working directory")?,
        umask: status.umask,
        uids: status.uids,
        gids: status.gids,
        capabilities: attributes::capabilities_of(&status),
        groups: status.groups,
        no_new_privs: status.no_new_privs,
        lock_future: process.lock_future,
        layout: MemoryLayout {
            code: (field(26), field(27)),
            data: (field(45), field(46)),
            brk: (start_brk, brk.unwrap_or(start_brk)),
            stack: field(28),
            arguments: (field(48), field(49)),
            environment: (field(50), field(51)),
            auxv: std::fs::read(proc::path(host, "auxv")).attempt(what)?,
        },
        limits,
        oom_score_adj: proc::oom_score_adj(host).attempt(what)?,
        coredump_filter: proc::coredump_filter(host).attempt(what)?,
        task: with_leader(process, attributes::capture)?,
    })
}

/// `user_regs_struct` is 27 words in a fixed order (`arch/x86/include/asm/user_64.h`).
pub(crate) fn pack(regs: &RawRegisters) -> Registers {
    Registers([
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        regs.cs,
        regs.eflags,
        regs.rsp,
        regs.ss,
        regs.fs_base,
        regs.gs_base,
        regs.ds,
        regs.es,
        regs.fs,
        regs.gs,
    ])
}

pub(crate) fn unpack(registers: &Registers) -> RawRegisters {
    let r = &registers.0;
    RawRegisters {
        r15: r[0],
        r14: r[1],
        r13: r[2],
        r12: r[3],
        rbp: r[4],
        rbx: r[5],
        r11: r[6],
        r10: r[7],
        r9: r[8],
        r8: r[9],
        rax: r[10],
        rcx: r[11],
        rdx: r[12],
        rsi: r[13],
        rdi: r[14],
        orig_rax: r[15],
        rip: r[16],
        cs: r[17],
        eflags: r[18],
        rsp: r[19],
        ss: r[20],
        fs_base: r[21],
        gs_base: r[22],
        ds: r[23],
        es: r[24],
        fs: r[25],
        gs: r[26],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_packing() {
        let words = std::array::from_fn(|index| index as u64 * 7 + 1);
        assert_eq!(pack(&unpack(&Registers(words))), Registers(words));
    }
}
