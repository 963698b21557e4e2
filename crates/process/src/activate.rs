//! Bringing a shell to life: what could not be done before the last epoch was known.
//!
//! Order matters. Clocks come before threads (a time namespace can be entered only by a process with one thread),
//! descriptors before epoll's interests, everything that needs a privilege before the user is changed, and registers last.

mod limits;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use outlive_fault::{Point, point};
use tracing::warn;

use crate::calls::Waiting;
use crate::checkpoint::{Attributes, Clocks, Descriptor, Object, ObjectId, Pid, ProcessState, ThreadState};
use crate::descriptors::Descriptors;
use crate::error::{Attempt, Error, Result};
use crate::job;
use crate::launch::CHANNEL;
use crate::object::epoll::{self, Epoll};
use crate::object::memory::{ADVICE_CALLS, Mapping};
use crate::object::posix_timer::{self, Expiry, Ids, PosixTimer};
use crate::object::scratch::Scratch;
use crate::object::seccomp_filter::{self, Filter, Filters};
use crate::object::signal::PendingSignal;
use crate::object::{attributes, file, inotify, mqueue, signal, signal_owner};
use crate::shell::{Shell, ShellProcess, clone_call, run_in, run_unchecked, send, wait_stop};
use crate::sys::proc;
use crate::sys::ptrace::{self, Tid};
use crate::sys::remote::{Batch, Remote};
use crate::sys::{seccomp, task, uffd};
use crate::tree::{Known, Process, Running, Thread, Workload};

/// What a new thread shares with its process (`pthread_create`'s own flags, without the ones that write to memory).
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Signals that a shell's process may have got: SIGCHLD, SIGHUP, SIGCONT, SIGWINCH, SIGTTIN and SIGTTOU.
const OWN_SIGNALS: usize = 6;

/// Kernel objects built for a shell, not yet in any descriptor table.
#[derive(Debug, Default)]
pub struct Built {
    pub descriptors: HashMap<ObjectId, OwnedFd>,
}

/// A process that was brought to life.
struct Revived {
    /// The host's ids of its threads, in the order of the state's.
    hosts: Vec<Tid>,
    /// Of its memory, if it could not be made later.
    tracker: Option<OwnedFd>,
}

impl Shell {
    /// What the workload's clocks will be ahead of this host's: they go on from the last epoch, and err forward only.
    pub(crate) fn clock_offsets(&self) -> Clocks {
        let Some((then, received)) = self.clocks else { return Clocks::default() };
        // The same however often it is asked: timers are set by it.
        Clocks { monotonic: then.monotonic - received.monotonic, boottime: then.boottime - received.boottime }
    }

    /// How long ago the last epoch was, in nanoseconds.
    fn passed(&self) -> i64 {
        self.clocks.map_or(0, |(_, received)| task::clock(libc::CLOCK_MONOTONIC) - received.monotonic)
    }

    /// Turns the shell into the workload, every thread of it stopped ([`Workload::thaw`] lets them run).
    pub fn activate(mut self, built: &Built) -> Result<Workload> {
        let offsets = self.clock_offsets();
        let orphans = self.orphans_of(built);
        let scratch = Scratch::new(self.root(), self.surroundings.scratch.clone());
        let clocks = self.make_clocks(offsets)?;
        let mut threads = HashMap::new();
        let mut signalled = HashSet::new();
        self.set_foregrounds()?;
        let parents = self.parents();
        let pids = children_first(&parents);
        let mut processes = BTreeMap::new();
        for pid in pids {
            let Some(process) = self.processes.remove(&pid) else { continue };
            let state = process
                .state
                .as_ref()
                .ok_or_else(|| Error::Mismatch(format!("process {pid} was never in a checkpoint")))?;
            let parent = parents.get(&pid).copied().unwrap_or(1);
            // Before its signals: this makes some of its own.
            if state.job.untold && state.job.stopped.is_none() {
                self.stop_again(&process, state, &[process.host], parent)?;
            }
            let Revived { hosts, tracker } = self.revive(&process, state, &clocks, built, &mut signalled)?;
            if state.job.stopped.is_some() {
                self.stop_again(&process, state, &hosts, parent)?;
            }
            for (thread, host) in state.threads.iter().zip(&hosts) {
                let known = Some(Known {
                    stack: thread.stack,
                    clear_tid: thread.clear_tid,
                    name: thread.name.clone(),
                    own: thread.own.clone(),
                });
                let registers = crate::capture::unpack(&thread.registers);
                let waiting = Waiting::restored(&registers, thread.deadline);
                let revived = Thread {
                    running: state.job.stopped.map_or(Running::Stopped, Running::Held),
                    known,
                    waiting,
                    looked_at: true,
                    ..Thread::new(thread.tid, pid)
                };
                threads.insert(*host, revived);
            }
            let pidfd = task::pidfd_open(process.host).attempt(|| format!("open process {pid}"))?;
            let mut restored = Process::restored(process.host, parent, pidfd, state);
            restored.tracker = tracker;
            restored.lock_future = state.attributes.as_ref().map_or(0, |attributes| attributes.lock_future);
            // The stack grows down without having been told so.
            let stack = state.attributes.as_ref().map_or(0, |attributes| attributes.layout.stack);
            let told = |mapping: &Mapping| {
                let grows = mapping.grows_down && !(mapping.range.start..mapping.range.end).contains(&stack);
                grows || !mapping.advice.is_empty()
            };
            restored.advised = restored.lock_future != 0 || process.layout.iter().any(told);
            processes.insert(pid, restored);
        }
        // Nothing is mapped or opened for the workload any more.
        self.shared.finish(self.container.init)?;
        let segments = self.shared.has_segments();
        self.restore_watches(built)?;
        // Init was stopped since it was made, before it was told what to do: to reap what it inherits.
        self.container.reap()?;
        ptrace::resume(self.container.init, 0).attempt(|| "resume init".into())?;
        let mut descriptors = Descriptors::new(self.surroundings, scratch);
        orphans.into_iter().for_each(|fd| descriptors.adopt_orphan(fd));
        let mut workload =
            Workload::restored(self.container, processes, threads, self.zombies, offsets, descriptors)?;
        workload.shared.segments = segments;
        workload.ipc.used = self.ipc.is_some();
        workload.queues.used = self.queues.is_some();
        Ok(workload)
    }

    /// By the first process, of all, that has the description.
    fn restore_signal_owners(
        &self,
        process: &ShellProcess,
        table: &[Descriptor],
        done: &mut HashSet<ObjectId>,
    ) -> Result<()> {
        let mut batch = Batch::new();
        for (id, owner) in &self.signal_owners {
            if let Some(row) = table.iter().find(|row| row.object == *id).filter(|_| done.insert(*id)) {
                if batch.is_full(3) {
                    run_in(process, &mut std::mem::take(&mut batch))?;
                }
                signal_owner::restore(&mut batch, row.fd, owner);
            }
        }
        run_in(process, &mut batch).map(drop)
    }

    /// Last of all: what was done until here is not for the workload to see.
    fn restore_watches(&self, built: &Built) -> Result<()> {
        for (id, object) in &self.objects {
            if let (Object::Inotify(object), Some(instance)) = (object, built.descriptors.get(id)) {
                inotify::restore(instance.as_fd(), object, &self.root())?;
            }
        }
        Ok(())
    }

    /// Whether its parent was told is asked of that, which is still to be revived.
    fn stop_again(
        &self,
        process: &ShellProcess,
        state: &ProcessState,
        hosts: &[Tid],
        parent: Pid,
    ) -> Result<()> {
        if let Some(signal) = state.job.stopped {
            job::stop(process.host, hosts, signal)?;
        } else if state.job.untold {
            job::stop(process.host, hosts, libc::SIGSTOP)?;
            job::go_on(process.host)?;
        } else {
            return Ok(());
        }
        if !state.job.untold
            && let Ok(parent) = self.get(parent)
        {
            let mut batch = Batch::new();
            let options = (libc::WUNTRACED | libc::WNOHANG) as u64;
            batch.call(libc::SYS_wait4, &[state.pid as u64, 0, options, 0]);
            run_in(parent, &mut batch)?;
        }
        Ok(())
    }

    fn parents(&self) -> HashMap<Pid, Pid> {
        self.processes
            .iter()
            .filter_map(|(pid, process)| {
                let parent = proc::status(process.host).ok()?.parent;
                let parent = proc::status(parent).ok()?.namespaced.last().copied()?;
                Some((*pid, parent))
            })
            .collect()
    }

    /// A time namespace with these offsets, which nobody has entered: made by init, for its children.
    fn make_clocks(&self, offsets: Clocks) -> Result<OwnedFd> {
        let what = || "make the workload's clocks".to_owned();
        let init = self.container.init;
        let mut batch = Batch::new();
        batch.call(libc::SYS_unshare, &[libc::CLONE_NEWTIME as u64]);
        let mut remote = Remote::begin(init, &self.init_memory).attempt(what)?;
        let result = remote.run_all(&mut batch);
        remote.end().attempt(what)?;
        result.attempt(what)?;
        let parts = |nanos: i64| (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        let ((ms, mn), (bs, bn)) = (parts(offsets.monotonic), parts(offsets.boottime));
        std::fs::write(
            proc::path(init, "timens_offsets"),
            format!("monotonic {ms} {mn}\nboottime {bs} {bn}\n"),
        )
        .attempt(what)?;
        let file = proc::open(init, "ns/time_for_children").attempt(what)?;
        Ok(file.into())
    }

    /// Everything of one process.
    fn revive(
        &self,
        process: &ShellProcess,
        state: &ProcessState,
        clocks: &OwnedFd,
        built: &Built,
        signalled: &mut HashSet<ObjectId>,
    ) -> Result<Revived> {
        // What the making of terminals, and stops, have told it. Before there are timers, whose signals are the program's.
        let mut batch = Batch::new();
        let set = batch.bytes(&(!0u64).to_ne_bytes());
        let now = batch.bytes(&[0u8; 16]);
        for _ in 0..OWN_SIGNALS {
            batch.call(libc::SYS_rt_sigtimedwait, &[set, 0, now, 8]);
        }
        run_unchecked(process, &batch)?;
        let received = send(process, &self.container.channel, CHANNEL as u64, &[clocks.as_raw_fd()])?;
        let mut batch = Batch::new();
        for fd in &received {
            batch.call(libc::SYS_setns, &[*fd as u64, libc::CLONE_NEWTIME as u64]);
            batch.call(libc::SYS_close, &[*fd as u64]);
        }
        if let Some(attributes) = &state.attributes {
            limits::raise(process, attributes)?;
            restore_attributes(&mut batch, attributes, &process.layout);
        }
        run_in(process, &mut batch)?;
        restore_advice(process, state)?;

        let table = state.descriptors.as_deref().unwrap_or_default();
        let channel = clear_of(process, table)?;
        self.install(process, channel, table, built)?;
        let allowed = state.attributes.as_ref().map(limits::descriptors);
        let free =
            (0..).zip(table).find(|(fd, row)| row.fd != *fd).map_or(table.len(), |(fd, _)| fd as usize);
        let full = allowed.is_some_and(|allowed| free as u64 >= allowed);
        let tracker = if full { Some(make_tracker(process)?) } else { None };
        let mut batch = Batch::new();
        if let Some(actions) = &state.actions {
            signal::restore_actions(&mut batch, actions);
        }
        run_in(process, &mut batch)?;
        let mut batch = Batch::new();
        if let Some(timers) = &state.interval_timers {
            posix_timer::restore_intervals(&mut batch, timers, self.passed());
        }
        batch.call(libc::SYS_close, &[channel]);
        install_filter(&mut batch);
        run_in(process, &mut batch)?;
        self.restore_interests(process, state.pid, table, built)?;
        self.restore_queues(process, state.pid, table)?;
        self.restore_locks(process, state.pid, table)?;

        let hosts = clone_threads(process, state)?;
        point(Point::TakeoverHalfActivated);
        restore_posix_timers(process, state, &hosts)?;
        self.restore_signal_owners(process, table, signalled)?;
        // Before its own filters, which may not know the call.
        if let Some(attributes) = &state.attributes {
            limits::lower(process, attributes)?;
            limits::adjust(process, attributes)?;
        }
        restore_threads(process, state, &hosts)?;
        Ok(Revived { hosts, tracker })
    }

    /// Fills the descriptor table. The table is empty, so what arrives gets the lowest numbers; moved from the highest
    /// down, no descriptor lands on one that has still to move.
    fn install(
        &self,
        process: &ShellProcess,
        channel: u64,
        table: &[Descriptor],
        built: &Built,
    ) -> Result<()> {
        let mut rows = table.to_vec();
        rows.sort_unstable_by_key(|row| row.fd);
        let fds = rows
            .iter()
            .map(|row| {
                built.descriptors.get(&row.object).map(|fd| fd.as_raw_fd()).ok_or_else(|| {
                    Error::Mismatch(format!("descriptor {} refers to an object that was not built", row.fd))
                })
            })
            .collect::<Result<Vec<RawFd>>>()?;
        let received = send(process, &self.container.channel, channel, &fds)?;
        let mut batch = Batch::new();
        for (row, got) in rows.iter().zip(&received).rev() {
            if batch.is_full(3) {
                run_in(process, &mut std::mem::take(&mut batch))?;
            }
            let flags = if row.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
            if row.fd == *got {
                let flag = if row.close_on_exec { libc::FD_CLOEXEC as u64 } else { 0 };
                batch.call(libc::SYS_fcntl, &[*got as u64, libc::F_SETFD as u64, flag]);
            } else {
                batch.call(libc::SYS_dup3, &[*got as u64, row.fd as u64, flags]);
                batch.call(libc::SYS_close, &[*got as u64]);
            }
        }
        run_in(process, &mut batch).map(drop)
    }

    /// Record locks are the process's own, and are lost when any descriptor of the file is closed: taken last.
    fn restore_locks(&self, process: &ShellProcess, pid: Pid, table: &[Descriptor]) -> Result<()> {
        for row in table {
            if let Some(Object::File(file)) = self.objects.get(&row.object) {
                let mut batch = Batch::new();
                file::restore_process_locks(&mut batch, pid, file);
                run_in(process, &mut batch)?;
            }
        }
        Ok(())
    }

    /// Whom message queues tell of messages.
    fn restore_queues(&self, process: &ShellProcess, pid: Pid, table: &[Descriptor]) -> Result<()> {
        let Some(queues) = &self.queues else { return Ok(()) };
        let queue = |row: &Descriptor| match self.objects.get(&row.object) {
            Some(Object::Queue(end)) => Some((row.fd, end.queue)),
            _ => None,
        };
        let descriptors: Vec<(i32, u64)> = table.iter().filter_map(queue).collect();
        let mut batch = Batch::new();
        mqueue::restore_notifications(&mut batch, pid, queues, &descriptors)?;
        run_in(process, &mut batch).map(drop)
    }

    /// An epoll set knows its entries by file *and* number, so they are added by the process that did so, once however
    /// many processes hold the set. One that watches another comes after it.
    fn restore_interests(
        &self,
        process: &ShellProcess,
        pid: Pid,
        table: &[Descriptor],
        built: &Built,
    ) -> Result<()> {
        let mut sets: Vec<(i32, ObjectId, &Epoll)> = table
            .iter()
            .filter_map(|row| match self.objects.get(&row.object) {
                Some(Object::Epoll(set)) if set.process == pid => Some((row.fd, row.object, set)),
                _ => None,
            })
            .collect();
        sets.sort_unstable_by_key(|(fd, object, _)| (*object, *fd));
        sets.dedup_by_key(|(_, object, _)| *object);
        let watches = |set: &Epoll, fd: i32| set.interests.iter().any(|interest| interest.fd == fd);
        // At most as many rounds as sets: the kernel allows no circles.
        let mut left = sets;
        while !left.is_empty() {
            let ready = left
                .iter()
                .position(|(_, _, set)| left.iter().all(|(other, ..)| !watches(set, *other)))
                .unwrap_or(0);
            let (fd, object, set) = left.remove(ready);
            let own = built
                .descriptors
                .get(&object)
                .ok_or_else(|| Error::Mismatch(format!("epoll set {} was not built", object.0)))?;
            restore_set(process, fd, own, set)?;
            epoll::restore_elsewhere(own.as_fd(), set, |id| built.descriptors.get(&id).map(AsFd::as_fd))?;
        }
        Ok(())
    }
}

/// All processes, each before its parent.
fn children_first(parents: &HashMap<Pid, Pid>) -> Vec<Pid> {
    let depth = |pid: Pid| {
        let mut above = parents.get(&pid);
        let mut depth = 0;
        // No longer than there are processes, whatever is said of them.
        while let Some(parent) = above.filter(|_| depth < parents.len()) {
            (above, depth) = (parents.get(parent), depth + 1);
        }
        depth
    };
    let mut pids: Vec<(std::cmp::Reverse<usize>, Pid)> =
        parents.keys().map(|pid| (std::cmp::Reverse(depth(*pid)), *pid)).collect();
    pids.sort_unstable();
    pids.into_iter().map(|(_, pid)| pid).collect()
}

/// Moves the channel above every number that the table, and what arrives for it, will use.
fn clear_of(process: &ShellProcess, table: &[Descriptor]) -> Result<u64> {
    let highest = table.iter().map(|row| row.fd).max().unwrap_or(0).max(0) as u64 + table.len() as u64 + 1;
    if highest < CHANNEL as u64 {
        return Ok(CHANNEL as u64);
    }
    let mut batch = Batch::new();
    batch.call(libc::SYS_fcntl, &[CHANNEL as u64, libc::F_DUPFD_CLOEXEC as u64, highest]);
    batch.call(libc::SYS_close, &[CHANNEL as u64]);
    let moved = run_in(process, &mut batch)?;
    Ok(moved.first().copied().unwrap_or(0) as u64)
}

/// Adds the entries of one set. Disarmed ones (`EPOLLONESHOT` that fired) are armed, made to fire into our own hands,
/// and quietened where they did not.
fn restore_set(process: &ShellProcess, fd: i32, own: &OwnedFd, set: &Epoll) -> Result<()> {
    let batches = |fill: &dyn Fn(&mut Batch, usize) -> usize, count: usize| -> Result<()> {
        let mut done = 0;
        while done < count {
            let mut batch = Batch::new();
            done += fill(&mut batch, done);
            run_in(process, &mut batch)?;
        }
        Ok(())
    };
    let all = &set.interests;
    batches(&|batch, done| epoll::restore_disarmed(batch, fd, &all[done..], done), all.len())?;
    let loud = epoll::disarm(own.as_fd(), all)?;
    batches(&|batch, done| epoll::quieten(batch, fd, &loud[done..]), loud.len())?;
    batches(&|batch, done| epoll::restore_interests(batch, fd, &all[done..]), all.len())
}

/// What mappings have been told, and what those to come are. A program works without; it is said if that could not be.
fn restore_advice(process: &ShellProcess, state: &ProcessState) -> Result<()> {
    let advise = |batch: &mut Batch| -> Result<()> {
        let failed = run_unchecked(process, &std::mem::take(batch))?.into_iter().find(|result| *result < 0);
        if let Some(errno) = failed {
            let error = std::io::Error::from_raw_os_error(-errno as i32);
            warn!(process = state.pid, %error, "memory is not locked or advised as it was");
        }
        Ok(())
    };
    let mut batch = Batch::new();
    for mapping in process.layout.iter().filter(|mapping| !mapping.advice.is_empty()) {
        if batch.is_full(ADVICE_CALLS + 1) {
            advise(&mut batch)?;
        }
        mapping.advice.restore(&mut batch, mapping.range);
    }
    if let Some(attributes) = &state.attributes
        && attributes.lock_future != 0
    {
        batch.call(libc::SYS_mlockall, &[u64::from(attributes.lock_future)]);
    }
    advise(&mut batch)
}

fn restore_attributes(batch: &mut Batch, attributes: &Attributes, mappings: &[Mapping]) {
    let layout = &attributes.layout;
    // As of the last epoch: the heap grows and shrinks without a notice.
    let heap = mappings.iter().filter(|mapping| mapping.heap).map(|mapping| mapping.range.end).max();
    let brk = heap.unwrap_or(layout.brk.0);
    let exe = batch.path(&attributes.executable);
    // The table is empty, so this is descriptor 0.
    batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, exe, (libc::O_RDONLY | libc::O_CLOEXEC) as u64]);
    let auxv = batch.bytes(&layout.auxv);
    // struct prctl_mm_map of linux/prctl.h.
    let words = [
        layout.code.0,
        layout.code.1,
        layout.data.0,
        layout.data.1,
        layout.brk.0,
        brk,
        layout.stack,
        layout.arguments.0,
        layout.arguments.1,
        layout.environment.0,
        layout.environment.1,
        auxv,
        // auxv_size and exe_fd (0), 32 bits each.
        layout.auxv.len() as u64,
    ];
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    let map = batch.bytes(&bytes);
    let size = bytes.len() as u64;
    batch.call(libc::SYS_prctl, &[libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, map, size, 0]);
    batch.call(libc::SYS_close, &[0]);
    let cwd = batch.path(&attributes.cwd);
    batch.call(libc::SYS_chdir, &[cwd]);
    // It leaves the working directory as it is, inside or not.
    if attributes.root != "/" {
        let root = batch.path(&attributes.root);
        batch.call(libc::SYS_chroot, &[root]);
    }
    batch.call(libc::SYS_umask, &[u64::from(attributes.umask)]);
    if attributes.no_new_privs {
        batch.call(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    }
}

/// Makes what the process's memory will be tracked by, while it may have one more descriptor.
fn make_tracker(process: &ShellProcess) -> Result<OwnedFd> {
    let what = || format!("track the memory of process {}", process.host);
    let mut batch = Batch::new();
    batch.call(libc::SYS_userfaultfd, &[uffd::OPEN_FLAGS]);
    let fd = run_in(process, &mut batch)?.first().copied().unwrap_or(-1);
    let pidfd = task::pidfd_open(process.host).attempt(what)?;
    let ours = task::take_descriptor(pidfd.as_fd(), fd as i32).attempt(what)?;
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[fd as u64]);
    run_in(process, &mut batch)?;
    Ok(ours)
}

/// Timers that name threads, or count their time, come after these.
fn restore_posix_timers(process: &ShellProcess, state: &ProcessState, hosts: &[Tid]) -> Result<()> {
    if state.posix_timers.is_empty() {
        return Ok(());
    }
    let what = || format!("make the timers of process {}", state.pid);
    let host_of = |tid: Pid| {
        let mut all = state.threads.iter().zip(hosts);
        all.find(|(thread, _)| thread.tid == tid).map(|(_, host)| *host)
    };
    let with = |host: Tid, work: &mut dyn FnMut(&mut Remote<'_>) -> std::io::Result<()>| -> Result<()> {
        let mut remote = Remote::begin(host, &process.memory).attempt(what)?;
        let result = work(&mut remote);
        remote.end().attempt(what)?;
        result.attempt(what)
    };
    let mut ids = Ids::Sought;
    with(process.host, &mut |remote| posix_timer::prepare(remote).map(|found| ids = found))?;
    for timer in &state.posix_timers {
        // One whose maker is gone never expires; the leader's own would.
        let maker = timer.maker.map(host_of);
        let silent = PosixTimer { expiry: Expiry::Disarmed, ..timer.clone() };
        let (host, timer) = match maker {
            None => (process.host, timer),
            Some(Some(host)) => (host, timer),
            Some(None) => (process.host, &silent),
        };
        with(host, &mut |remote| posix_timer::restore(remote, timer, ids))?;
    }
    with(process.host, &mut |remote| posix_timer::finish(remote))
}

/// The shell's processes were forked from init, which has no filter.
fn install_filter(batch: &mut Batch) {
    let op = |op: &libc::sock_filter| {
        let mut bytes = op.code.to_ne_bytes().to_vec();
        bytes.extend([op.jt, op.jf]);
        bytes.extend(op.k.to_ne_bytes());
        bytes
    };
    let program = seccomp::program().iter().flat_map(op).collect();
    seccomp_filter::install(batch, &Filter { program, log: false }, false);
}

/// Makes the other threads, each with its own id. They are stopped at birth.
fn clone_threads(process: &ShellProcess, state: &ProcessState) -> Result<Vec<Tid>> {
    let what = || format!("make the threads of process {}", state.pid);
    let mut hosts = vec![process.host];
    let others: Vec<Pid> =
        state.threads.iter().map(|thread| thread.tid).filter(|tid| *tid != state.pid).collect();
    if others.len() + 1 != state.threads.len() || state.threads[0].tid != state.pid {
        return Err(Error::Mismatch(format!("process {} has no leader", state.pid)));
    }
    for chunk in others.chunks(64) {
        let mut batch = Batch::new();
        for tid in chunk {
            clone_call(&mut batch, *tid, THREAD_FLAGS as u64, 0);
        }
        let mut remote = Remote::begin_filtered(process.host, &process.memory).attempt(what)?;
        let result = remote.run_all(&mut batch);
        let born = remote.end().attempt(what)?;
        result.attempt(what)?;
        for host in born {
            wait_stop(host)?;
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// Each thread, with its filters of system calls: those that all have are installed on all at once, as far as the kernel knows,
/// so that the program can go on to do so.
fn restore_threads(process: &ShellProcess, state: &ProcessState, hosts: &[Tid]) -> Result<()> {
    let what = || format!("install the filters of process {}", state.pid);
    let none = Filters::default();
    let filters = state.filters.as_ref().unwrap_or(&none);
    let common = filters.in_common(state.threads.iter().map(|thread| thread.tid));
    if common > 0 {
        let mut remote = Remote::begin(process.host, &process.memory).attempt(what)?;
        let result = install_filters(&mut remote, filters, state.pid, 0..common, true);
        remote.end().attempt(what)?;
        result.attempt(what)?;
    }
    for (thread, host) in state.threads.iter().zip(hosts) {
        restore_thread(process, state, thread, *host, common)?;
    }
    Ok(())
}

/// Installs some of a thread's filters, which needs a privilege that the thread may lose later.
fn install_filters(
    remote: &mut Remote<'_>,
    filters: &Filters,
    tid: Pid,
    range: std::ops::Range<usize>,
    for_all: bool,
) -> std::io::Result<()> {
    for mut batch in filters.restore(tid, range, for_all).map_err(std::io::Error::other)? {
        // For all: the thread that could not be given it, if there is one.
        if let Some(stray) = remote.run_all(&mut batch)?.first().filter(|result| **result != 0) {
            return Err(std::io::Error::other(format!("thread {stray} has other filters")));
        }
    }
    Ok(())
}

fn restore_thread(
    process: &ShellProcess,
    state: &ProcessState,
    thread: &ThreadState,
    host: Tid,
    has_filters: usize,
) -> Result<()> {
    let what = || format!("restore thread {} of process {}", thread.tid, state.pid);
    let mut batch = Batch::new();
    let name = batch.path(&thread.name);
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name, 0, 0, 0]);
    // Also if it has none: forked from init, the shell's process has inherited one that Rust's runtime made there.
    signal::restore_stack(&mut batch, &thread.stack);
    if let Some(place) = &thread.place {
        batch.call(libc::SYS_unshare, &[libc::CLONE_FS as u64]);
        let cwd = batch.path(&place.cwd);
        batch.call(libc::SYS_chdir, &[cwd]);
        batch.call(libc::SYS_umask, &[u64::from(place.umask)]);
    }
    batch.call(libc::SYS_set_robust_list, &[thread.robust_list.0, thread.robust_list.1]);
    batch.call(libc::SYS_set_tid_address, &[thread.clear_tid]);
    let registers = crate::capture::unpack(&thread.registers);
    // No sequence is under way (`capture_thread`): the kernel looks at the area when it is registered.
    if let Some(rseq) = &thread.rseq {
        batch.call(
            libc::SYS_rseq,
            &[rseq.address, u64::from(rseq.size), u64::from(rseq.flags), u64::from(rseq.signature)],
        );
    }
    // By its timer, which counts what has been missed meanwhile.
    let is_sent_again = |signal: &PendingSignal| {
        let timer = posix_timer::timer_of(signal);
        state.posix_timers.iter().any(|known| known.waits && Some(known.id) == timer)
    };
    let mut remote = Remote::begin(host, &process.memory).attempt(what)?;
    let result = (|| {
        remote.run_all(&mut batch)?;
        let mut batch = Batch::new();
        if thread.tid == state.pid {
            // Children of the shell ended as the workload's did, but what the workload knows of it is in its own queue.
            let set = batch.bytes(&(1u64 << (libc::SIGCHLD - 1)).to_ne_bytes());
            let now = batch.bytes(&[0u8; 16]);
            batch.call(libc::SYS_rt_sigtimedwait, &[set, 0, now, 8]);
            for signal in state.pending.iter().filter(|signal| !is_sent_again(signal)) {
                let info = batch.bytes(&signal.info());
                batch.call(libc::SYS_rt_sigqueueinfo, &[state.pid as u64, signal.number() as u64, info]);
            }
        }
        for (index, signal) in thread.pending.iter().enumerate() {
            if is_sent_again(signal) && (index > 0 || !thread.delivering) {
                continue;
            }
            if signal.number() == libc::SIGTRAP {
                // Calls of ours would meet it.
                remote.give_trap(signal.info());
                continue;
            }
            let info = batch.bytes(&signal.info());
            let ids = [state.pid as u64, thread.tid as u64];
            batch.call(libc::SYS_rt_tgsigqueueinfo, &[ids[0], ids[1], signal.number() as u64, info]);
        }
        remote.run(&batch)?;
        if let Some(filters) = &state.filters {
            let own = has_filters..filters.count(thread.tid);
            install_filters(&mut remote, filters, thread.tid, own, false)?;
        }
        let Some(attributes) = &state.attributes else { return Ok(()) };
        let mut batch = Batch::new();
        let task = thread.own.as_ref().map_or(&attributes.task, |own| &own.task);
        attributes::restore(&mut batch, task);
        remote.run(&batch)?;
        // Identity is per thread for the kernel.
        let own = proc::status(host)?;
        let held = attributes::capabilities_of(&own);
        match &thread.own {
            Some(own) => {
                let user = (&own.uids, &own.gids, own.groups.as_slice());
                attributes::become_user(&mut remote, user, &own.capabilities, &held, task)
            }
            None => {
                let user = (&attributes.uids, &attributes.gids, attributes.groups.as_slice());
                attributes::become_user(&mut remote, user, &attributes.capabilities, &held, task)
            }
        }
    })();
    remote.end().attempt(what)?;
    result.attempt(what)?;
    ptrace::set_xstate(host, &thread.xstate).attempt(what)?;
    ptrace::set_registers(host, &registers).attempt(what)?;
    ptrace::set_signal_mask(host, thread.mask).attempt(what)
}
