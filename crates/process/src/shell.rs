//! The backup's side: a process tree laid out like the workload, stopped, into which whole epochs are applied.
//!
//! Memory is held once: pages go straight into the shell's own address spaces, and a fork in an epoch is a fork of the
//! shell, so that memory shared by copy-on-write stays shared. Small state is kept aside until [`Shell::activate`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use outlive_fault::{Point, point};

use crate::checkpoint::{
    Checkpoint, Clocks, MemoryDelta, Object, ObjectId, Pid, ProcessState, Run, TreeEvent, Whose,
};
use crate::delta;
use crate::error::{Attempt, Error, Result};
use crate::launch::{self, CHANNEL, Container, Program};
use crate::object::descriptor::{ClockOffsets, Surroundings};
use crate::object::file::FileKey;
use crate::object::memory::{Backing, Mapping, Step, plan};
use crate::object::mqueue::Queue;
use crate::object::network::Network;
use crate::object::shared::{Kind, SharedFiles, for_mapping};
use crate::object::signal_owner::SignalOwner;
use crate::object::{scratch, signal, sysv};
use crate::sys::bpf;
use crate::sys::pagemap::{PAGE_SIZE, Range};
use crate::sys::proc;
use crate::sys::ptrace::{self, Event, Stop, Tid};
use crate::sys::remote::{Batch, Remote, WORKSPACE};
use crate::sys::rtnetlink::Settings;
use crate::sys::task;
use crate::terminals::Terminals;
use crate::tree::{self, Zombie};

/// Zero runs up to this many pages are written, longer ones given back to the kernel.
const WRITE_ZEROS: u32 = 16;

#[derive(Debug)]
pub(crate) struct ShellProcess {
    pub host: Tid,
    pub memory: File,
    pub layout: Vec<Mapping>,
    /// Whether the kernel's own mappings are where the workload has them.
    placed: bool,
    pub state: Option<ProcessState>,
}

/// A stopped copy of a workload.
pub struct Shell {
    pub(crate) container: Container,
    pub(crate) init_memory: File,
    pub(crate) processes: BTreeMap<Pid, ShellProcess>,
    pub(crate) zombies: HashMap<Pid, Zombie>,
    pub(crate) objects: BTreeMap<ObjectId, Object>,
    pub(crate) orphans: Vec<ObjectId>,
    pub(crate) ipc: Option<sysv::Objects>,
    pub(crate) queues: Option<Vec<Queue>>,
    pub(crate) network: Network,
    /// As the namespace was made, the same on every node.
    pub(crate) plain: Network,
    /// Of its network namespace, wherever the calling thread is.
    settings: Settings,
    pub(crate) signal_owners: Vec<(ObjectId, SignalOwner)>,
    /// Of the last epoch, and of this host when it was applied.
    pub(crate) clocks: Option<(Clocks, Clocks)>,
    pub(crate) surroundings: Surroundings,
    pub(crate) outputs: [Option<OwnedFd>; 2],
    pub(crate) shared: SharedFiles,
    pub(crate) terminals: Terminals,
}

impl Shell {
    /// Makes the namespaces and an init that waits. The calling thread becomes the tracer for good.
    pub fn create(
        program: &Program,
        network: impl AsFd,
        launcher: &[OsString],
        output: [OwnedFd; 2],
    ) -> Result<Self> {
        bpf::prepare();
        let surroundings = tree::surroundings(program, &network, &output)?;
        tree::enter_network(&network)?;
        let mut settings = Settings::open().attempt(|| "open the shell's network settings".into())?;
        let plain = Network::plain(&mut settings)?;
        let outputs = [&output[0], &output[1]].map(|end| end.try_clone().ok());
        let container = Container::create(program, &network, launcher, output, false)?;
        let init = container.init;
        let what = || "prepare the shell's init".to_owned();
        ptrace::interrupt(init).attempt(what)?;
        wait_stop(init)?;
        let init_memory = proc::open_memory(init).attempt(what)?;
        let syscall = tree::vdso_syscall(init, &init_memory).attempt(what)?;
        let mut remote = Remote::begin(init, &init_memory).attempt(what)?;
        remote.install_workspace(syscall).attempt(what)?;
        remote.end().attempt(what)?;
        Ok(Self {
            container,
            init_memory,
            processes: BTreeMap::new(),
            zombies: HashMap::new(),
            objects: BTreeMap::new(),
            orphans: Vec::new(),
            ipc: None,
            queues: None,
            network: Network::default(),
            plain,
            settings,
            signal_owners: Vec::new(),
            clocks: None,
            surroundings,
            outputs,
            shared: SharedFiles::default(),
            terminals: Terminals::new(),
        })
    }

    /// The host's process id of init, which is alive as long as the shell.
    pub fn init(&self) -> Tid {
        self.container.init
    }

    /// The workload's own view of the file system.
    pub fn root(&self) -> std::path::PathBuf {
        proc::path(self.container.init, "root")
    }

    /// What the workload has made of its network, as of the last epoch; made alike here already.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Applies a whole, verified epoch, its pages as [`delta::Cache`] encodes them. After an error the shell is of no use.
    pub fn apply(&mut self, checkpoint: Checkpoint, pages: &[u8]) -> Result<()> {
        for event in &checkpoint.tree {
            self.replay(event)?;
        }
        // Before the mappings: what is mapped has to be there.
        let root = self.root();
        let init = self.container.init;
        let (changes, gone) = (&checkpoint.shared, &checkpoint.shared_gone);
        self.shared.begin(changes, gone, &root, &self.surroundings, init)?;
        scratch::apply(&root, &self.surroundings.scratch, &checkpoint.files)?;
        let changed = !checkpoint.files.is_empty();
        let others = self.shared.find_named(changes, changed, &root, &self.surroundings)?;
        others.into_iter().try_for_each(|key| self.map_again(key))?;
        let mut rest = pages;
        for state in checkpoint.processes {
            self.apply_process(state, &mut rest)?;
        }
        for change in &checkpoint.shared {
            if !matches!(change.kind, Kind::Named { .. }) {
                self.shared.write(change.key, &change.runs, &mut rest)?;
            }
        }
        if !rest.is_empty() {
            return Err(Error::Mismatch(format!("{} bytes of pages belong to no run", rest.len())));
        }
        point(Point::BackupHalfApplied);
        for (id, object) in checkpoint.objects {
            let earlier = self.objects.remove(&id);
            self.objects.insert(id, object.follow(earlier)?);
        }
        self.orphans = checkpoint.orphans;
        self.ipc = checkpoint.ipc.or(self.ipc.take());
        self.queues = checkpoint.queues.or(self.queues.take());
        if let Some(network) = checkpoint.network {
            network.restore(&mut self.settings)?;
            self.network = network;
        }
        if let Some(owners) = checkpoint.signal_owners {
            self.signal_owners = owners;
        }
        self.clocks = Some((checkpoint.clocks, launch::host_clocks()));
        // Objects are built by them.
        let ahead = self.clock_offsets();
        self.surroundings.clocks = ClockOffsets { monotonic: ahead.monotonic, boottime: ahead.boottime };
        self.forget_unused_objects();
        self.forget_unused_terminals();
        Ok(())
    }

    /// Pages of a workload that is being copied for the first time.
    pub fn apply_backlog(&mut self, whose: Whose, runs: &[Run], pages: &[u8]) -> Result<()> {
        let mut rest = pages;
        let pid = match whose {
            Whose::Process(pid) => pid,
            Whose::Shared(key) => return self.shared.write(key, runs, &mut rest),
        };
        // A process that has ended meanwhile is no longer here once an epoch said so.
        let Some(process) = self.processes.get(&pid) else { return Ok(()) };
        write_runs(process, runs, &[], &mut rest)
    }

    fn forget_unused_objects(&mut self) {
        let mut used: std::collections::HashSet<ObjectId> = self.orphans.iter().copied().collect();
        for state in self.processes.values().filter_map(|process| process.state.as_ref()) {
            used.extend(state.descriptors.iter().flatten().map(|descriptor| descriptor.object));
        }
        // What is in flight in the queue of a unix socket may be in no table.
        let mut next: Vec<ObjectId> = used.iter().copied().collect();
        while let Some(id) = next.pop() {
            let Some(Object::Unix(socket)) = self.objects.get(&id) else { continue };
            let carried = socket.queue.iter().flat_map(|message| &message.descriptors);
            next.extend(carried.filter(|id| used.insert(**id)));
        }
        // A terminal has none of its own either.
        let ends = used.iter().filter_map(|id| match self.objects.get(id) {
            Some(Object::TerminalEnd(end)) => Some(end.terminal),
            _ => None,
        });
        let terminals: Vec<ObjectId> = ends.collect();
        used.extend(terminals);
        // The content of a pipe has no descriptor of its own: its ends refer to it.
        self.objects.retain(|id, object| used.contains(id) || matches!(object, Object::Pipe(_)));
    }

    fn replay(&mut self, event: &TreeEvent) -> Result<()> {
        match event {
            TreeEvent::Fork { parent, child } => self.fork(*parent, *child),
            TreeEvent::Exec { pid } => self.clear(*pid),
            TreeEvent::Session { pid } => self.call(*pid, libc::SYS_setsid, &[]),
            TreeEvent::Group { pid, group } => self.join_group(*pid, *group),
            TreeEvent::Reaper { pid, on } => {
                let option = libc::PR_SET_CHILD_SUBREAPER as u64;
                self.call(*pid, libc::SYS_prctl, &[option, u64::from(*on), 0, 0, 0])
            }
            TreeEvent::Terminal { pid, terminal } => self.control(*pid, *terminal),
            TreeEvent::Exit { pid, status } => {
                self.end_sessions_terminal(*pid);
                self.exit(*pid, *status)
            }
            TreeEvent::Reaped { pid } => self.reap(*pid),
        }
    }

    pub(crate) fn get(&self, pid: Pid) -> Result<&ShellProcess> {
        self.processes.get(&pid).ok_or_else(|| Error::Mismatch(format!("process {pid} is not in the shell")))
    }

    pub(crate) fn call(&self, pid: Pid, number: i64, args: &[u64]) -> Result<()> {
        let process = self.get(pid)?;
        let mut batch = Batch::new();
        batch.call(number, args);
        // What the workload was refused is refused here.
        run_unchecked(process, &batch).map(drop)
    }

    /// The call was noticed before it was made, and may be about a process that has ended, or that never was.
    fn join_group(&self, pid: Pid, group: Pid) -> Result<()> {
        if self.processes.contains_key(&pid) {
            return self.call(pid, libc::SYS_setpgid, &[0, group as u64]);
        }
        if !self.zombies.contains_key(&pid) {
            return Ok(());
        }
        // Others may join the group of one that was not waited for yet. Only its parent can put it there.
        let mut batch = Batch::new();
        batch.call(libc::SYS_setpgid, &[pid as u64, group as u64]);
        for process in self.processes.values() {
            if run_unchecked(process, &batch)?.first() == Some(&0) {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn fork(&mut self, parent: Pid, child: Pid) -> Result<()> {
        let what = || format!("fork process {child} from {parent}");
        let (host, memory, layout, placed) = if parent == 1 {
            (self.container.init, &self.init_memory, Vec::new(), false)
        } else {
            let process = self.get(parent)?;
            (process.host, &process.memory, process.layout.clone(), process.placed)
        };
        let mut remote = Remote::begin_filtered(host, memory).attempt(what)?;
        let mut batch = Batch::new();
        clone_call(&mut batch, child, 0, libc::SIGCHLD);
        remote.run_all(&mut batch).attempt(what)?;
        let born = remote.end().attempt(what)?;
        let host = *born.first().ok_or_else(|| Error::Mismatch(format!("process {child} was not born")))?;
        wait_stop(host)?;
        let memory = proc::open_memory(host).attempt(what)?;
        self.processes.insert(child, ShellProcess { host, memory, layout, placed, state: None });
        if parent == 1 {
            // Init's descriptors; the table is empty but for the channel from here on.
            let mut batch = Batch::new();
            let channel = CHANNEL as u64;
            batch.call(libc::SYS_close_range, &[0, channel - 1, 0]);
            batch.call(libc::SYS_close_range, &[channel + 1, u64::from(u32::MAX), 0]);
            batch.call(libc::SYS_setsid, &[]);
            run_in(self.get(child)?, &mut batch)?;
            self.clear(child)?;
        }
        Ok(())
    }

    /// A new program replaces the old one: nothing of what was mapped is left but our workspace and the vdso.
    fn clear(&mut self, pid: Pid) -> Result<()> {
        let process = self.get(pid)?;
        let lines = read_maps(process.host)?;
        let mut batch = Batch::new();
        for line in &lines {
            let range = Range::new(line.start, line.end);
            let kept = line.path.starts_with("[v") || range.intersect(&WORKSPACE).is_some();
            if !kept {
                batch.call(libc::SYS_munmap, &[range.start, range.len()]);
            }
        }
        run_in(process, &mut batch)?;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.layout.clear();
            process.placed = false;
        }
        Ok(())
    }

    pub(crate) fn exit(&mut self, pid: Pid, status: i32) -> Result<()> {
        let process = self
            .processes
            .remove(&pid)
            .ok_or_else(|| Error::Mismatch(format!("process {pid} ends but is not in the shell")))?;
        let what = || format!("end process {pid} in the shell");
        let signal = status & 0x7f;
        if signal != 0 && signal != libc::SIGKILL {
            let mut batch = Batch::new();
            signal::restore_default(&mut batch, signal);
            run_in(&process, &mut batch)?;
        }
        // Whatever else it would do: it was born in a batch, with what comes after that still to be done.
        let mut regs = ptrace::registers(process.host).attempt(what)?;
        regs.rip = WORKSPACE.start + SYSCALL_OFFSET;
        regs.rax = libc::SYS_exit_group as u64;
        regs.rdi = (status >> 8) as u64;
        regs.orig_rax = u64::MAX;
        ptrace::set_registers(process.host, &regs).attempt(what)?;
        if signal != 0 {
            // So it does what it did to the workload's process. One born in a batch has it blocked.
            ptrace::set_signal_mask(process.host, 0).attempt(what)?;
            task::signal_thread(process.host, signal).attempt(what)?;
        }
        let resume = |signal| match ptrace::resume(process.host, signal) {
            // SIGKILL does not wait for that.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.attempt(what),
        };
        resume(0)?;
        while let Some(Event::Stopped(stop)) = ptrace::wait_for(process.host, true).attempt(what)? {
            resume(if stop == Stop::Signal(signal) { signal } else { 0 })?;
        }
        self.zombies.insert(pid, Zombie { status });
        Ok(())
    }

    pub(crate) fn reap(&mut self, pid: Pid) -> Result<()> {
        self.zombies.remove(&pid);
        let mut batch = Batch::new();
        batch.call(libc::SYS_wait4, &[pid as u64, 0, libc::WNOHANG as u64, 0]);
        let reaped = |results: Vec<i64>| results.first() == Some(&i64::from(pid));
        // Whoever is the parent now: only one of them can succeed.
        for process in self.processes.values() {
            if reaped(run_unchecked(process, &batch)?) {
                return Ok(());
            }
        }
        // Init reaps by itself, but not before it runs, and the id may be needed again before that.
        let what = || format!("reap process {pid}");
        let mut init = Remote::begin(self.container.init, &self.init_memory).attempt(what)?;
        let results = init.run(&batch);
        init.end().attempt(what)?;
        results.map(drop).attempt(what)
    }

    /// Maps an object anew wherever it is mapped shared: its name leads to another file.
    fn map_again(&self, key: FileKey) -> Result<()> {
        for process in self.processes.values() {
            let mappings = process.layout.iter();
            let mappings = mappings.filter(|mapping| mapping.shared_object().is_some_and(|(k, _)| k == key));
            let mappings: Vec<Mapping> = mappings.cloned().collect();
            let mut batch = Batch::new();
            for mapping in &mappings {
                if batch.is_full(1) {
                    run_in(process, &mut std::mem::take(&mut batch))?;
                }
                batch.call(libc::SYS_munmap, &[mapping.range.start, mapping.range.len()]);
            }
            run_in(process, &mut batch)?;
            map_objects(process, &mappings, &self.shared, &self.container.channel)?;
        }
        Ok(())
    }

    fn apply_process(&mut self, state: ProcessState, pages: &mut &[u8]) -> Result<()> {
        let pid = state.pid;
        let process = self
            .processes
            .get_mut(&pid)
            .ok_or_else(|| Error::Mismatch(format!("process {pid} is not in the shell")))?;
        if let Some(attributes) = &state.attributes {
            for directory in [&attributes.root, &attributes.cwd] {
                is_directory(self.container.init, directory)?;
            }
        }
        for place in state.threads.iter().filter_map(|thread| thread.place.as_ref()) {
            is_directory(self.container.init, &place.cwd)?;
        }
        lay_out(process, &state.memory, &self.shared, &self.container.channel)?;
        write_runs(process, &state.memory.runs, &state.memory.fresh, pages)?;
        match &mut process.state {
            None if !state.same_threads.is_empty() => {
                return Err(Error::Mismatch(format!("threads of process {pid} never were in a checkpoint")));
            }
            None => process.state = Some(ProcessState { memory: MemoryDelta::default(), ..state }),
            Some(known) => {
                let mut threads = state.threads;
                let same: HashSet<Pid> = state.same_threads.iter().copied().collect();
                known.threads.retain(|thread| same.contains(&thread.tid));
                if known.threads.len() != state.same_threads.len() {
                    return Err(Error::Mismatch(format!(
                        "a thread of process {pid} never was in a checkpoint"
                    )));
                }
                threads.append(&mut known.threads);
                threads.sort_unstable_by_key(|thread| (thread.tid != pid, thread.tid));
                known.threads = threads;
                known.pending = state.pending;
                known.actions = state.actions.or(known.actions.take());
                known.attributes = state.attributes.or(known.attributes.take());
                known.descriptors = state.descriptors.or(known.descriptors.take());
                known.interval_timers = state.interval_timers;
                known.posix_timers = state.posix_timers;
                known.filters = state.filters.or(known.filters.take());
                known.job = state.job;
            }
        }
        Ok(())
    }
}

/// Offset of the `syscall` instruction in our workspace's code.
pub(crate) const SYSCALL_OFFSET: u64 = 0x20;

/// `clone3(2)` with a chosen id; `flags` 0 is a fork.
pub(crate) fn clone_call(batch: &mut Batch, tid: Pid, flags: u64, exit_signal: i32) {
    let wanted = batch.bytes(&tid.to_ne_bytes());
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size.
    let args = [flags, 0, 0, 0, exit_signal as u64, 0, 0, 0, wanted, 1];
    let bytes: Vec<u8> = args.into_iter().flat_map(u64::to_ne_bytes).collect();
    let at = batch.bytes(&bytes);
    batch.call(libc::SYS_clone3, &[at, bytes.len() as u64]);
}

/// The kernel's limit on descriptors in one message is 253 (`SCM_MAX_FD`).
const DESCRIPTORS_PER_MESSAGE: usize = 250;

/// Gives a shell's process descriptors over the channel, which is number `number` there; returns the numbers they have
/// there, lowest free first.
pub(crate) fn send(
    process: &ShellProcess,
    channel: &UnixStream,
    number: u64,
    fds: &[RawFd],
) -> Result<Vec<i32>> {
    let what = || format!("pass descriptors to process {}", process.host);
    let mut numbers = Vec::new();
    for chunk in fds.chunks(DESCRIPTORS_PER_MESSAGE) {
        let byte = [0u8];
        let control = [ControlMessage::ScmRights(chunk)];
        sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&byte)], &control, MsgFlags::empty(), None)
            .attempt(what)?;
        let mut batch = Batch::new();
        let data = batch.bytes(&[0u8; 16]);
        // struct iovec, then struct msghdr (`recvmsg(2)`) with room for the numbers behind a 16-byte cmsghdr.
        let iov: Vec<u8> = [data, 1].into_iter().flat_map(u64::to_ne_bytes).collect();
        let iov = batch.bytes(&iov);
        let control_len = 16 + 4 * DESCRIPTORS_PER_MESSAGE;
        let control = batch.bytes(&vec![0u8; control_len]);
        let header: Vec<u8> =
            [0, 0, iov, 1, control, control_len as u64, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
        let header = batch.bytes(&header);
        batch.call(libc::SYS_recvmsg, &[number, header, libc::MSG_CMSG_CLOEXEC as u64]);
        run_in(process, &mut batch)?;
        let mut raw = vec![0u8; 4 * chunk.len()];
        process.memory.read_exact_at(&mut raw, control + 16).attempt(what)?;
        numbers
            .extend(raw.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
    }
    Ok(numbers)
}

/// Waits until a task that is about to stop has stopped.
pub(crate) fn wait_stop(tid: Tid) -> Result<()> {
    match ptrace::wait_for(tid, true).attempt(|| format!("wait for task {tid}"))? {
        Some(Event::Stopped(_)) => Ok(()),
        other => Err(Error::Mismatch(format!("task {tid} did not stop: {other:?}"))),
    }
}

pub(crate) fn run_in(process: &ShellProcess, batch: &mut Batch) -> Result<Vec<i64>> {
    let what = || format!("work in process {} of the shell", process.host);
    let mut remote = Remote::begin(process.host, &process.memory).attempt(what)?;
    let results = remote.run_all(batch);
    remote.end().attempt(what)?;
    results.attempt(what)
}

pub(crate) fn run_unchecked(process: &ShellProcess, batch: &Batch) -> Result<Vec<i64>> {
    let what = || format!("work in process {} of the shell", process.host);
    let mut remote = Remote::begin(process.host, &process.memory).attempt(what)?;
    let results = remote.run(batch);
    remote.end().attempt(what)?;
    results.attempt(what)
}

fn read_maps(host: Tid) -> Result<Vec<proc::MapsLine>> {
    let text = std::fs::read_to_string(proc::path(host, "maps"))
        .attempt(|| format!("read the mappings of {host}"))?;
    proc::parse_maps(&text).ok_or_else(|| Error::Mismatch("mappings in a form that is not known".into()))
}

/// That a directory that a process is in, or has as its root, is there: said now, and not when the workload is needed.
fn is_directory(init: Tid, path: &str) -> Result<()> {
    let attempt = || format!("find the directory {path}, which a process is in; it has to be on both nodes");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = open(&proc::path(init, "root"), flags, Mode::empty()).attempt(attempt)?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(&top, path, how).attempt(attempt).map(drop)
}

/// Brings the layout of a shell's process to what the checkpoint says.
fn lay_out(
    process: &mut ShellProcess,
    delta: &MemoryDelta,
    shared: &SharedFiles,
    channel: &UnixStream,
) -> Result<()> {
    let new = delta.layout.as_ref().unwrap_or(&process.layout);
    if !process.placed && new.iter().any(Mapping::is_kernel) {
        place_vdso(process, new)?;
    }
    let mut batch = Batch::new();
    let (mut objects, mut protect) = (Vec::new(), Vec::new());
    for step in plan(&process.layout, new, &delta.fresh) {
        if batch.is_full(4) {
            run_in(process, &mut std::mem::take(&mut batch))?;
        }
        match step {
            Step::Unmap(range) => {
                batch.call(libc::SYS_munmap, &[range.start, range.len()]);
            }
            // All unmapping comes before all mapping.
            Step::Map(mapping) if matches!(mapping.backing, Backing::Object { .. }) => objects.push(mapping),
            Step::Map(mapping) => map(&mut batch, &mapping),
            Step::Protect(range, protection) => protect.push((range, protection)),
        }
    }
    if !objects.is_empty() {
        run_in(process, &mut std::mem::take(&mut batch))?;
        map_objects(process, &objects, shared, channel)?;
    }
    for (range, protection) in protect {
        if batch.is_full(1) {
            run_in(process, &mut std::mem::take(&mut batch))?;
        }
        batch.call(libc::SYS_mprotect, &[range.start, range.len(), u64::from(protection)]);
    }
    for range in &delta.dropped {
        if batch.is_full(1) {
            run_in(process, &mut std::mem::take(&mut batch))?;
        }
        batch.call(libc::SYS_madvise, &[range.start, range.len(), libc::MADV_DONTNEED as u64]);
    }
    // Ranges that were emptied and unmapped later in the epoch are refused by madvise, rightly.
    if delta.dropped.is_empty() {
        run_in(process, &mut batch)?;
    } else {
        run_unchecked(process, &batch)?;
    }
    process.placed = true;
    if let Some(layout) = &delta.layout {
        process.layout.clone_from(layout);
    }
    Ok(())
}

/// Objects passed to a process at once; its descriptors have to stay below the channel.
const OBJECTS_AT_ONCE: usize = 200;

/// Maps objects, by descriptors that are passed to the process for it.
fn map_objects(
    process: &ShellProcess,
    mappings: &[Mapping],
    shared: &SharedFiles,
    channel: &UnixStream,
) -> Result<()> {
    for chunk in mappings.chunks(OBJECTS_AT_ONCE) {
        let mut opened: HashMap<(FileKey, bool), usize> = HashMap::new();
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut batch = Batch::new();
        for mapping in chunk {
            let Backing::Object { key, writable, .. } = &mapping.backing else { continue };
            let held = shared.get(*key)?;
            if matches!(held.kind, Kind::Segment { .. }) {
                continue;
            }
            let writable = *writable && mapping.shared;
            if let Entry::Vacant(new) = opened.entry((*key, writable)) {
                new.insert(fds.len());
                fds.push(for_mapping(held, writable)?);
            }
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let numbers = send(process, channel, CHANNEL as u64, &raw)?;
        for mapping in chunk {
            let Backing::Object { key, offset, writable } = &mapping.backing else { continue };
            if batch.is_full(8) {
                run_in(process, &mut std::mem::take(&mut batch))?;
            }
            let held = shared.get(*key)?;
            if let Kind::Segment { id, .. } = held.kind {
                run_in(process, &mut std::mem::take(&mut batch))?;
                attach(process, mapping, id, held.size, *offset, *writable)?;
                continue;
            }
            let writable = *writable && mapping.shared;
            let number = opened.get(&(*key, writable)).and_then(|at| numbers.get(*at));
            let number = *number.ok_or_else(|| Error::Mismatch("a descriptor did not arrive".into()))?;
            let range = mapping.range;
            let kind = if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let flags = (libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE | kind) as u64;
            let protection = u64::from(mapping.protection);
            batch
                .call(libc::SYS_mmap, &[range.start, range.len(), protection, flags, number as u64, *offset]);
        }
        for number in numbers {
            if batch.is_full(1) {
                run_in(process, &mut std::mem::take(&mut batch))?;
            }
            batch.call(libc::SYS_close, &[number as u64]);
        }
        run_in(process, &mut batch)?;
    }
    Ok(())
}

/// Attaches a part of a System V segment: the whole of it at a free place, of which the part is moved to where it belongs.
/// Mapped by a descriptor it would not be counted among the attached (`shm_nattch`).
fn attach(
    process: &ShellProcess,
    mapping: &Mapping,
    id: i32,
    size: u64,
    offset: u64,
    writable: bool,
) -> Result<()> {
    let size = size.next_multiple_of(PAGE_SIZE);
    let range = mapping.range;
    if offset.checked_add(range.len()).is_none_or(|end| end > size) {
        return Err(Error::Mismatch(format!("a mapping beyond the end of System V segment {id}")));
    }
    let mut batch = Batch::new();
    let flags = if writable { 0 } else { libc::SHM_RDONLY };
    let executable = if mapping.protection & libc::PROT_EXEC as u32 != 0 { libc::SHM_EXEC } else { 0 };
    let at = if offset == 0 && range.len() == size { range.start } else { 0 };
    batch.call(libc::SYS_shmat, &[id as u64, at, (flags | executable) as u64]);
    let attached = run_in(process, &mut batch)?.first().copied().unwrap_or(0) as u64;
    let mut batch = Batch::new();
    if at == 0 {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        batch.call(libc::SYS_mremap, &[attached + offset, range.len(), range.len(), flags, range.start]);
        if offset > 0 {
            batch.call(libc::SYS_munmap, &[attached, offset]);
        }
        let behind = offset + range.len();
        if behind < size {
            batch.call(libc::SYS_munmap, &[attached + behind, size - behind]);
        }
    }
    batch.call(libc::SYS_mprotect, &[range.start, range.len(), u64::from(mapping.protection)]);
    run_in(process, &mut batch).map(drop)
}

fn map(batch: &mut Batch, mapping: &Mapping) {
    let range = mapping.range;
    let protection = u64::from(mapping.protection);
    let mut flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    if mapping.grows_down {
        flags |= libc::MAP_GROWSDOWN | libc::MAP_STACK;
    }
    match &mapping.backing {
        Backing::Anonymous => {
            let flags = (flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            batch.call(libc::SYS_mmap, &[range.start, range.len(), protection, flags, u64::MAX, 0]);
        }
        Backing::File { path, offset } => {
            flags |= if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            let path = batch.path(path);
            // The shell's descriptor table is empty below the channel, so what is opened is number 0.
            batch.call(
                libc::SYS_openat,
                &[libc::AT_FDCWD as u64, path, libc::O_RDONLY as u64 | libc::O_CLOEXEC as u64],
            );
            batch.call(libc::SYS_mmap, &[range.start, range.len(), protection, flags as u64, 0, *offset]);
            batch.call(libc::SYS_close, &[0]);
        }
        // By a descriptor of ours: see `map_objects`.
        Backing::Object { .. } | Backing::Vdso | Backing::Vvar => {}
    }
}

/// Moves the kernel's own mappings to where the workload has them. Their order and distances are the kernel's, the same
/// on both hosts; they go by way of a free place, since the old and the new place may overlap.
fn place_vdso(process: &ShellProcess, new: &[Mapping]) -> Result<()> {
    /// Far from the workspace and from everything the kernel chooses.
    const ASIDE: u64 = WORKSPACE.end + 0x1000_0000;
    let mut wanted: Vec<(bool, Range)> = new
        .iter()
        .filter(|mapping| mapping.is_kernel())
        .map(|mapping| (mapping.backing == Backing::Vdso, mapping.range))
        .collect();
    wanted.sort_unstable_by_key(|(_, range)| range.start);
    let here: Vec<(bool, Range)> = read_maps(process.host)?
        .iter()
        .filter(|line| line.path == "[vdso]" || line.path.starts_with("[vvar"))
        .map(|line| (line.path == "[vdso]", Range::new(line.start, line.end)))
        .collect();
    let shape =
        |list: &[(bool, Range)]| -> Vec<(bool, u64)> { list.iter().map(|(v, r)| (*v, r.len())).collect() };
    if shape(&wanted) != shape(&here) {
        return Err(Error::Mismatch(
            "the kernels of the two nodes have different vdso; run the same kernel".into(),
        ));
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut batch = Batch::new();
    let mut aside = ASIDE;
    for ((_, from), (_, to)) in here.iter().zip(&wanted) {
        if from != to {
            batch.call(libc::SYS_mremap, &[from.start, from.len(), from.len(), flags, aside]);
        }
        aside += from.len();
    }
    let mut aside = ASIDE;
    for ((_, from), (_, to)) in here.iter().zip(&wanted) {
        if from != to {
            batch.call(libc::SYS_mremap, &[aside, from.len(), from.len(), flags, to.start]);
        }
        aside += from.len();
    }
    run_in(process, &mut batch).map(drop)
}

/// Writes the content of runs. In `fresh` ranges, just mapped, zero pages are there already.
fn write_runs(process: &ShellProcess, runs: &[Run], fresh: &[Range], pages: &mut &[u8]) -> Result<()> {
    static ZEROS: [u8; (WRITE_ZEROS as u64 * PAGE_SIZE) as usize] =
        [0; (WRITE_ZEROS as u64 * PAGE_SIZE) as usize];
    let mut empty = Batch::new();
    let mut parts: Vec<(u64, &[u8])> = Vec::new();
    for run in runs {
        let range = run.range();
        if !run.zero {
            for address in (range.start..range.end).step_by(PAGE_SIZE as usize) {
                delta::decode_page(pages, |at, bytes| parts.push((address + at as u64, bytes)))
                    .ok_or_else(|| Error::Mismatch("fewer bytes of pages than the runs say".into()))?;
            }
        } else if fresh.iter().any(|f| f.start <= range.start && range.end <= f.end) {
            continue;
        } else if run.pages <= WRITE_ZEROS {
            parts.push((run.address, &ZEROS[..range.len() as usize]));
        } else {
            if empty.is_full(1) {
                run_in(process, &mut std::mem::take(&mut empty))?;
            }
            empty.call(libc::SYS_madvise, &[range.start, range.len(), libc::MADV_DONTNEED as u64]);
        }
    }
    write_parts(process, &parts)?;
    run_in(process, &mut empty).map(drop)
}

/// Writes to a process's memory, also where it may not write itself.
fn write_parts(process: &ShellProcess, parts: &[(u64, &[u8])]) -> Result<()> {
    let mut rest = parts;
    while !rest.is_empty() {
        let written = task::write_memory(process.host, rest)
            .attempt(|| format!("write to the shell's process {}", process.host))?;
        let Some(((address, bytes), after)) = rest[written..].split_first() else { return Ok(()) };
        process.memory.write_all_at(bytes, *address).attempt(|| {
            format!("write {} bytes at {address:#x} of the shell's process {}", bytes.len(), process.host)
        })?;
        rest = after;
    }
    Ok(())
}
