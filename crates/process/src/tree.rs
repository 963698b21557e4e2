//! The running process tree, as its tracer knows it: every thread and process from its first instruction on.
//!
//! One thread does nothing but this. It is told of every fork, exec, exit and signal, lets each go on at once, and
//! keeps an ordered log of what a checkpoint cannot read from how the tree looks at its end.

mod adopt;
mod errand;
mod freeze;
pub(crate) mod genealogy;
mod job;
mod notices;
mod results;
pub(crate) mod waits;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::calls::Waiting;
use crate::checkpoint::{Clocks, Job, Pid, ProcessState, ThreadState, TreeEvent};
use crate::descriptors::{Descriptors, Row};
use crate::error::{Attempt, Error, Result};
use crate::launch::{Container, PRIVATE_DIRECTORIES, Program};
use crate::object::attributes::OwnAttributes;
use crate::object::descriptor::Surroundings;
use crate::object::posix_timer::{self, Cadence, PosixTimer};
use crate::object::scratch::Scratch;
use crate::object::seccomp_filter::{Filter, Filters};
use crate::object::signal::SignalStack;
use crate::object::{mqueue, sysv, tcp};
use crate::refusals::{Refusals, Standing};
use crate::routing::Routing;
use crate::shared::SharedObjects;
use crate::space::{Space, Unborn};
use crate::strayed::Namespaces;
use crate::survey::Observed;
use crate::sys::bpf::threads::Adjusted;
use crate::sys::bpf::{self, threads::Threads};
use crate::sys::proc;
use crate::sys::ptrace::{self, Event, Stop, Tid};
use crate::sys::task;
pub(crate) use adopt::{adopt_space, vdso_syscall};
pub use errand::{Change, Errand, Look, Mark, Stacks, Whereabouts};

/// How long the first exec may take: a program of hundreds of megabytes on a cold disk.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long the end of what was killed is followed. It takes milliseconds.
const DYING: Duration = Duration::from_secs(2);
const DYING_REST: Duration = Duration::from_micros(200);

/// While a connection is being closed, how soon it is looked whether it has been.
const CLOSING: Duration = Duration::from_millis(1);

/// What a thread is doing, as far as its tracer is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Running {
    Yes,
    /// Stopped by us.
    Stopped,
    /// Stopped on its way to receive a signal, which it receives when it goes on.
    Signalled(i32),
    /// Stopped by job control with this signal, until SIGCONT.
    Group(i32),
    /// As `Group`, and kept so by us: it can be asked.
    Held(i32),
    /// On its way back into the wait that it was found in; its next stop is before that call.
    Parking,
    /// In a call of which the result matters; its next stop is at the end of it.
    Calling,
    /// The first thread of a process that goes on without it: it has no code to run any more, and is not gone either.
    Ended,
    /// Asleep in a wait for another. Its next stop is at the end of that call, before any code of the program's: as long
    /// as it has none it is as it was captured, and need not be stopped for that.
    Parked,
}

impl Running {
    /// Whether it may run code of the program's, or go on by itself, so that it has to be stopped.
    fn is_free(self) -> bool {
        matches!(self, Running::Yes | Running::Parking | Running::Calling | Running::Group(_))
    }
}

/// A thread found in the same wait so many times is parked. It costs two more stops, so a thread that is woken all the
/// time is better off without.
const PARK_AFTER: u32 = 3;

/// What is asked of a thread once, and again only after a notice of change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub stack: SignalStack,
    pub clear_tid: u64,
    pub name: String,
    /// Where it may differ from its process's first thread.
    pub own: Option<Box<OwnAttributes>>,
}

#[derive(Debug)]
pub(crate) struct Thread {
    pub tid: Pid,
    pub process: Pid,
    pub running: Running,
    /// Alternate stack and the address told to the kernel at birth; `None` until asked, or after a notice of change.
    pub known: Option<Known>,
    pub waiting: Option<Waiting>,
    /// When it was seen to be stopped by us, by the workload's monotonic clock.
    pub stopped_at: Option<i64>,
    /// What it was doing when it was stopped has been looked at, in this stop.
    pub looked_at: bool,
    /// As it was in the last checkpoint.
    pub captured: Option<ThreadState>,
    /// How often in a row it was found unchanged in a wait for another.
    pub settled: u32,
    /// Filters of the program's own; `None` until asked, or after a notice of change.
    pub filters: Option<Vec<Filter>>,
    /// Seen at its end.
    pub exiting: bool,
}

impl Thread {
    pub(crate) fn new(tid: Pid, process: Pid) -> Self {
        Self {
            tid,
            process,
            running: Running::Yes,
            known: None,
            waiting: None,
            stopped_at: None,
            captured: None,
            settled: 0,
            filters: None,
            exiting: false,
            looked_at: false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub host: Tid,
    pub parent: Pid,
    /// `None` while nothing tracks it: before the first exec, while borrowed, and until a restored process is protected.
    pub space: Option<Space>,
    /// For the space to come, of a restored process that may not have one more descriptor.
    pub tracker: Option<OwnedFd>,
    /// The memory is the parent's until exec (vfork).
    pub borrows: bool,
    /// Trackers of children whose fork has been seen by the memory and not yet by the tracer.
    pub unborn: VecDeque<Unborn>,
    pub pidfd: OwnedFd,
    pub actions_changed: bool,
    pub attributes_changed: bool,
    /// Its threads may have attributes of their own.
    pub individual: bool,
    /// What can be changed through `/proc`, as last seen.
    pub adjusted: Adjusted,
    /// In so many more checkpoints it is asked for its interval timers ([`posix_timer::ASKED_ON`]).
    pub ask_intervals: u8,
    /// POSIX timers as last captured; `None` until one is made.
    pub posix_timers: Option<Vec<PosixTimer>>,
    /// Of periodic ones, how far they have been received.
    pub cadences: HashMap<i32, Cadence>,
    /// Threads that have since made timers of their own processor time.
    pub timer_makers: Vec<Pid>,
    /// The descriptor table as last captured.
    pub descriptors: Vec<Row>,
    /// Its first thread has ended, and others go on.
    pub headless: bool,
    /// Its mappings have been advised, or locked.
    pub advised: bool,
    /// What `mlockall` was told of mappings to come.
    pub lock_future: u32,
    /// Leads a session, as far as is known.
    pub leads: bool,
    /// Gets orphans among its descendants (PR_SET_CHILD_SUBREAPER).
    pub reaper: bool,
    /// Its controlling terminal, as the log has it.
    pub terminal: Option<u32>,
    /// Has been stopped by job control at some time, so that its parent may not have been told yet of what became of it.
    pub was_stopped: bool,
    /// Its threads as the kernel lists them; none until asked, or where it cannot.
    pub threads: Option<Threads>,
    /// Filters of its threads as last captured.
    pub filters: Filters,
}

/// What the owner of the tree should know of, beside time passing.
#[derive(Debug, Default)]
pub struct Happened {
    /// The first process has ended, with this `wait` status: the workload is over.
    pub ended: Option<i32>,
    /// Something that no frame announces must reach the backup soon.
    pub wants_epoch: bool,
}

/// A process that has ended and was not waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zombie {
    /// As `wait` gives it.
    pub status: i32,
}

/// A running workload.
#[derive(Debug)]
pub struct Workload {
    pub(crate) container: Container,
    pub(crate) threads: HashMap<Tid, Thread>,
    pub(crate) processes: BTreeMap<Pid, Process>,
    /// Stopped at birth, before the event that says whose child it is.
    newborn: HashSet<Tid>,
    /// Called exec, and have not reached the stop before their first instruction.
    awaiting_space: HashSet<Pid>,
    pub(crate) log: Vec<TreeEvent>,
    pub(crate) standing: Standing,
    /// Whether a capture goes on past what is refused.
    pub(crate) refusals: Refusals,
    /// The namespaces and mounts that the workload began in.
    pub(crate) namespaces: Namespaces,
    pub(crate) routing: Routing,
    /// What is seen of a program that is only looked at, before anything protects it.
    pub(crate) observed: Option<Box<Observed>>,
    pub(crate) freezing: bool,
    pub(crate) happened: Happened,
    signals: SignalFd,
    pub(crate) descriptors: Descriptors,
    pub(crate) ipc: sysv::Watcher,
    pub(crate) queues: mqueue::Watcher,
    pub(crate) zombies: HashMap<Pid, Zombie>,
    /// What the workload's clocks are ahead of this host's.
    pub(crate) clock_offsets: Clocks,
    pub(crate) shared: SharedObjects,
    /// Directories whose contents go to the backup.
    pub(crate) scratch: Arc<[String]>,
    /// When calls are to be ended that the kernel would let wait longer, by the workload's monotonic clock.
    pub(crate) limits: HashMap<Tid, i64>,
}

/// The first process of a workload; init is 1.
pub const FIRST: Pid = 2;

impl Process {
    pub(crate) fn restored(host: Tid, parent: Pid, pidfd: OwnedFd, state: &ProcessState) -> Self {
        let apart = task::clock(libc::CLOCK_BOOTTIME) - task::clock(libc::CLOCK_MONOTONIC);
        let cadence_of = |timer: &PosixTimer| Some((timer.id, Cadence::restored(timer, apart)?));
        let cadences = state.posix_timers.iter().filter_map(cadence_of).collect();
        let posix_timers = (!state.posix_timers.is_empty()).then(|| state.posix_timers.clone());
        Self {
            host,
            parent,
            space: None,
            tracker: None,
            borrows: false,
            unborn: VecDeque::new(),
            pidfd,
            actions_changed: true,
            attributes_changed: true,
            individual: state.threads.iter().any(|thread| thread.own.is_some()),
            adjusted: Adjusted::default(),
            ask_intervals: if state.interval_timers.is_some() { posix_timer::ASKED_ON } else { 0 },
            posix_timers,
            cadences,
            timer_makers: Vec::new(),
            descriptors: Vec::new(),
            headless: false,
            advised: false,
            lock_future: 0,
            leads: proc::status(host).is_ok_and(|status| status.namespaced_session == status.namespaced),
            reaper: state.attributes.as_ref().is_some_and(|attributes| attributes.task.subreaper != 0),
            terminal: proc::terminal(host).ok().flatten(),
            was_stopped: state.job != Job::default(),
            threads: None,
            filters: Filters::default(),
        }
    }
}

impl Workload {
    /// A workload that was brought to life from a shell; every thread is stopped.
    pub(crate) fn restored(
        container: Container,
        processes: BTreeMap<Pid, Process>,
        threads: HashMap<Tid, Thread>,
        zombies: HashMap<Pid, Zombie>,
        clock_offsets: Clocks,
        descriptors: Descriptors,
    ) -> Result<Self> {
        let mut workload = Self::with_container(container, descriptors)?;
        workload.processes = processes;
        for (tid, thread) in &threads {
            workload.limits.extend(thread.waiting.and_then(|waiting| waiting.deadline).map(|at| (*tid, at)));
        }
        workload.threads = threads;
        workload.zombies = zombies;
        workload.clock_offsets = clock_offsets;
        workload.freezing = true;
        Ok(workload)
    }

    /// Starts a program. The calling thread becomes its tracer: everything else here must be called from it, and
    /// SIGCHLD must be blocked in the whole process.
    pub fn launch(
        program: &Program,
        network: impl AsFd,
        launcher: &[OsString],
        output: [OwnedFd; 2],
    ) -> Result<Self> {
        Self::launch_as(program, network, launcher, output, false)
    }

    /// As [`Workload::launch`], for a program that is only looked at ([`Workload::survey`]): what is hidden from it, and what it
    /// cannot write, is noted as well.
    pub fn launch_observed(
        program: &Program,
        network: impl AsFd,
        launcher: &[OsString],
        output: [OwnedFd; 2],
    ) -> Result<Self> {
        Self::launch_as(program, network, launcher, output, true)
    }

    fn launch_as(
        program: &Program,
        network: impl AsFd,
        launcher: &[OsString],
        output: [OwnedFd; 2],
        observed: bool,
    ) -> Result<Self> {
        bpf::prepare();
        let surroundings = surroundings(program, &network, &output)?;
        enter_network(&network)?;
        let container = Container::create(program, network, launcher, output, observed)?;
        let root = proc::path(container.init, "root");
        let scratch = Scratch::new(root, surroundings.scratch.clone());
        let mut workload = Self::with_container(container, Descriptors::new(surroundings, scratch))?;
        workload.observed = observed.then(Box::default);
        ptrace::interrupt(workload.container.init).attempt(|| "stop init".into())?;
        workload.container.start()?;
        let begun = Instant::now();
        while workload.processes.get(&FIRST).is_none_or(|first| first.space.is_none()) {
            workload.wait(Duration::from_millis(100), &[])?;
            if workload.happened.ended.is_some() || begun.elapsed() > START_DEADLINE {
                let reason = workload.container.failure();
                return Err(Error::Start(reason.unwrap_or_else(|| "the program ended before it ran".into())));
            }
        }
        Ok(workload)
    }

    pub(crate) fn with_container(container: Container, mut descriptors: Descriptors) -> Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().attempt(|| "block SIGCHLD".into())?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .attempt(|| "make a signal descriptor".into())?;
        let scratch = descriptors.scratch_directories().into();
        descriptors.root = container.init;
        let (namespaces, routing) = (Namespaces::of(container.init)?, Routing::of_this_thread()?);
        Ok(Self {
            container,
            threads: HashMap::new(),
            processes: BTreeMap::new(),
            newborn: HashSet::new(),
            awaiting_space: HashSet::new(),
            log: Vec::new(),
            standing: Standing::default(),
            refusals: Refusals::default(),
            namespaces,
            routing,
            observed: None,
            freezing: false,
            happened: Happened::default(),
            signals,
            descriptors,
            ipc: sysv::Watcher::default(),
            queues: mqueue::Watcher::default(),
            zombies: HashMap::new(),
            clock_offsets: Clocks::default(),
            shared: SharedObjects::default(),
            scratch,
            limits: HashMap::new(),
        })
    }

    /// The host's view of the file system root of the workload.
    pub fn root(&self) -> std::path::PathBuf {
        proc::path(self.container.init, "root")
    }

    /// The host's process id of init, which is alive as long as the workload.
    pub fn init(&self) -> Tid {
        self.container.init
    }

    pub fn host_pid(&self, pid: Pid) -> Option<Tid> {
        self.processes.get(&pid).map(|process| process.host)
    }

    /// Sleeps until something happens to the tree or one of `others` becomes readable, at most `limit`; handles what
    /// happened to the tree.
    pub fn wait(&mut self, limit: Duration, others: &[BorrowedFd<'_>]) -> Result<()> {
        {
            let mut fds: Vec<PollFd<'_>> =
                others.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
            // A second fork is read when the first is claimed (`read_forks`); until then it would end each wait at once.
            for process in self.processes.values().filter(|process| process.unborn.is_empty()) {
                if let Some(space) = &process.space {
                    fds.push(PollFd::new(space.tracker.as_fd(), PollFlags::POLLIN));
                }
            }
            let limit = if self.descriptors.is_closing() { limit.min(CLOSING) } else { limit };
            let limit = self.until_a_limit().map_or(limit, |left| limit.min(left));
            // ppoll takes nanoseconds; a wait in whole milliseconds would round a short one to nothing.
            let limit = nix::sys::time::TimeSpec::from_duration(limit);
            match nix::poll::ppoll(&mut fds, Some(limit), None) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).attempt(|| "wait for the workload".into()),
            }
        }
        self.drain()?;
        if !self.freezing {
            self.end_calls()?;
            self.descriptors.settle(&self.processes);
        }
        Ok(())
    }

    /// Handles everything that has happened so far.
    pub fn drain(&mut self) -> Result<()> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            self.read_forks()?;
            match ptrace::wait_any(-1, false).attempt(|| "wait for the workload's threads".into())? {
                None => return Ok(()),
                Some((tid, event)) => self.handle(tid, event)?,
            }
        }
    }

    pub fn take_happened(&mut self) -> Happened {
        std::mem::take(&mut self.happened)
    }

    /// Local and remote address of connections that were first captured with a descriptor since the last call.
    pub fn take_arrived(&mut self) -> Vec<(SocketAddr, SocketAddr)> {
        self.descriptors.take_arrived()
    }

    /// The forking thread of an address space sleeps until this has been read. One at a time, so that trackers and
    /// children can be told apart: a second fork of the same space waits for the first to be claimed.
    fn read_forks(&mut self) -> Result<()> {
        for process in self.processes.values_mut() {
            let Some(space) = &mut process.space else { continue };
            // Nobody claims it, and the next fork would wait forever.
            process.unborn.retain(|child| !child.is_gone());
            if process.unborn.is_empty()
                && let Some(tracker) = space.tracker.forked().attempt(|| "read of a fork".into())?
            {
                let child = space.fork(tracker);
                process.unborn.push_back(child);
            }
        }
        Ok(())
    }

    fn handle(&mut self, tid: Tid, event: Event) -> Result<()> {
        match event {
            Event::Exited(status) => self.gone(tid, status << 8),
            Event::Killed(signal) => self.gone(tid, signal),
            Event::Stopped(stop) if tid == self.container.init => self.init_stopped(stop),
            Event::Stopped(stop) => self.stopped(tid, stop),
        }
    }

    /// Init runs free; only what it forks is of interest.
    fn init_stopped(&mut self, stop: Stop) -> Result<()> {
        let signal = match stop {
            Stop::Fork(child) | Stop::Vfork(child) | Stop::Clone(child) => {
                self.born(1, child, false)?;
                0
            }
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        ignore_gone(ptrace::resume(self.container.init, signal)).attempt(|| "resume init".into())
    }

    fn stopped(&mut self, tid: Tid, stop: Stop) -> Result<()> {
        let now = self.now();
        let Some(thread) = self.threads.get_mut(&tid) else {
            self.newborn.insert(tid);
            return Ok(());
        };
        let pid = thread.process;
        let freezing = self.freezing;
        let running = thread.running;
        match stop {
            Stop::Syscall if running == Running::Calling => {
                self.returned(pid, tid)?;
                if freezing {
                    if let Some(thread) = self.threads.get_mut(&tid) {
                        thread.running = Running::Stopped;
                    }
                    return Ok(());
                }
            }
            Stop::Syscall if running == Running::Parking => {
                thread.running = Running::Parked;
                return ignore_gone(ptrace::resume_to_call(tid)).attempt(|| format!("let thread {tid} wait"));
            }
            // Woken.
            Stop::Syscall if running == Running::Parked => {
                thread.settled = 0;
                if freezing {
                    thread.running = Running::Stopped;
                    return Ok(());
                }
            }
            Stop::Signal(signal) if freezing => {
                thread.running = Running::Signalled(signal);
                self.note_timer_signal(pid, tid);
                return Ok(());
            }
            Stop::Signal(signal) => {
                self.note_timer_signal(pid, tid);
                self.look_at_call(tid, Some(signal))?;
                return self.go(tid, signal);
            }
            Stop::Group(signal) => {
                thread.running = if freezing { Running::Held(signal) } else { Running::Group(signal) };
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.was_stopped = true;
                }
                if freezing {
                    return Ok(());
                }
                return ignore_gone(ptrace::listen(tid)).attempt(|| format!("leave thread {tid} stopped"));
            }
            Stop::Interrupt => {
                if self.awaiting_space.contains(&pid) {
                    self.adopt(pid, tid)?;
                }
                if freezing {
                    if let Some(thread) = self.threads.get_mut(&tid) {
                        thread.running = Running::Stopped;
                        thread.stopped_at = Some(now);
                    }
                    return Ok(());
                }
                self.look_at_call(tid, None)?;
            }
            Stop::Fork(child) => self.born(pid, child, false)?,
            Stop::Vfork(child) => self.born(pid, child, true)?,
            Stop::Clone(child) => self.born(pid, child, false)?,
            Stop::Exec { former } => self.executed(pid, tid, former)?,
            Stop::Exiting(_) if self.ends_alone(pid, tid)? => {
                self.go(tid, 0)?;
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.running = Running::Ended;
                }
                return Ok(());
            }
            Stop::Exiting(_) => self.exiting(pid, tid),
            Stop::Seccomp(data) if self.noticed(pid, tid, data)? => {
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.running = Running::Calling;
                }
                return ignore_gone(ptrace::resume_to_call(tid))
                    .attempt(|| format!("let thread {tid} go on"));
            }
            Stop::Seccomp(_) => {}
            Stop::Syscall => {}
        }
        self.go(tid, 0)
    }

    fn go(&mut self, tid: Tid, signal: i32) -> Result<()> {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.running = Running::Yes;
            thread.looked_at = false;
            thread.stopped_at = None;
        }
        ignore_gone(ptrace::resume(tid, signal)).attempt(|| format!("resume thread {tid}"))
    }

    /// A task was born to `parent`: a thread, or a process with memory of its own or (vfork) its parent's.
    fn born(&mut self, parent: Pid, tid: Tid, shares_memory: bool) -> Result<()> {
        let status = match proc::status(tid) {
            Ok(status) => status,
            // Killed before it ran.
            Err(_) => return Ok(()),
        };
        let inner = |ids: &[Tid]| ids.last().copied().unwrap_or(0);
        let process = inner(&status.namespaced_group);
        let inside = inner(&status.namespaced);
        // An id is given again only after its last bearer was waited for: after a failover soon, for the kernel counts anew.
        if self.zombies.remove(&inside).is_some() {
            self.log.push(TreeEvent::Reaped { pid: inside });
        }
        if status.thread_group == tid {
            let space = if shares_memory {
                None
            } else {
                self.processes.get_mut(&parent).and_then(|parent| parent.unborn.pop_front())
            };
            let space = match space {
                Some(space) => Some(space.open(tid).attempt(|| format!("open the memory of process {tid}"))?),
                None => None,
            };
            // The tracker of a tracked parent announces every fork that copies its memory.
            let space_of = |pid: Pid| self.processes.get(&pid).and_then(|process| process.space.as_ref());
            let tracked = space_of(parent).is_some_and(Space::announces_forks);
            if tracked && !shares_memory && space.is_none() {
                self.refuse(
                    parent,
                    "memory shared between processes (clone with CLONE_VM)",
                    "use threads or fork",
                );
            }
            let pidfd = task::pidfd_open(tid).attempt(|| format!("open process {tid}"))?;
            let advised = self.processes.get(&parent).is_some_and(|parent| parent.advised);
            let terminal = self.note_inherited(parent, tid);
            let descriptors =
                self.processes.get(&parent).map(|parent| parent.descriptors.clone()).unwrap_or_default();
            self.processes.insert(
                process,
                Process {
                    host: tid,
                    parent,
                    space,
                    tracker: None,
                    borrows: shares_memory || parent == 1,
                    unborn: VecDeque::new(),
                    pidfd,
                    actions_changed: true,
                    attributes_changed: true,
                    individual: false,
                    adjusted: Adjusted::default(),
                    ask_intervals: 0,
                    posix_timers: None,
                    cadences: HashMap::new(),
                    timer_makers: Vec::new(),
                    descriptors,
                    headless: false,
                    advised,
                    lock_future: 0,
                    // The first process is made as one.
                    leads: parent == 1,
                    reaper: false,
                    terminal,
                    was_stopped: false,
                    threads: None,
                    filters: Filters::default(),
                },
            );
            self.log.push(TreeEvent::Fork { parent, child: process });
        }
        self.threads.insert(tid, Thread::new(inside, process));
        if self.newborn.remove(&tid) {
            self.stopped(tid, Stop::Interrupt)?;
        }
        Ok(())
    }

    /// A new program: the address space is new, the other threads are gone. The space is taken over at the stop
    /// before its first instruction, from where calls can be injected.
    fn executed(&mut self, pid: Pid, tid: Tid, former: Tid) -> Result<()> {
        let count = self.threads.len();
        self.threads.retain(|other, thread| thread.process != pid || *other == tid);
        let alone = count == self.threads.len() && former == tid;
        if former != tid {
            self.threads.insert(tid, Thread::new(pid, pid));
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.known = None;
            thread.waiting = None;
            thread.captured = None;
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            // What a single thread wrote was seen when it made the call.
            match &mut process.space {
                Some(space) if !alone => self.shared.lost(space),
                Some(_) | None => {}
            }
            process.space = None;
            process.tracker = None;
            process.unborn.clear();
            process.actions_changed = true;
            process.attributes_changed = true;
            process.individual = false;
            // Interval timers go on in the new program (execve(2)), those of timer_create(2) do not.
            process.posix_timers = None;
            process.timer_makers.clear();
            process.cadences.clear();
            process.headless = false;
            process.advised = false;
            process.lock_future = 0;
        }
        self.standing.forget(pid);
        self.log.push(TreeEvent::Exec { pid });
        self.awaiting_space.insert(pid);
        ignore_gone(ptrace::interrupt(tid)).attempt(|| format!("stop thread {tid}"))
    }

    /// Gives a new address space our workspace and a tracker.
    fn adopt(&mut self, pid: Pid, tid: Tid) -> Result<()> {
        let Some(process) = self.processes.get_mut(&pid) else { return Ok(()) };
        let space = adopt_space(tid, process.pidfd.as_fd(), None, self.scratch.clone())?;
        process.space = Some(space);
        process.borrows = false;
        self.awaiting_space.remove(&pid);
        Ok(())
    }

    /// Whether this is a process's first thread that ends while others go on. Nothing can be asked through it then: not the
    /// descriptors, which the others still use, nor signals.
    fn ends_alone(&mut self, pid: Pid, tid: Tid) -> Result<bool> {
        let others = self.threads.values().filter(|thread| thread.process == pid).count() > 1;
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.host == tid && others)
        else {
            return Ok(false);
        };
        let regs = ptrace::registers(tid).attempt(|| format!("read the registers of thread {tid}"))?;
        // `exit_group` and signals end all.
        if regs.orig_rax != libc::SYS_exit as u64 {
            return Ok(false);
        }
        process.headless = true;
        let advice = "let its main function wait for the threads it has started";
        self.refuse(pid, "a process whose first thread has ended", advice);
        Ok(true)
    }

    /// About to exit. With the last thread go the descriptors, which are still there.
    fn exiting(&mut self, pid: Pid, tid: Tid) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.exiting = true;
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if let Some(space) = &mut process.space {
            self.shared.harvest(pid, space);
        }
        let last =
            process.host == tid || self.threads.values().filter(|thread| thread.process == pid).count() == 1;
        if last && self.descriptors.release_all(process) {
            self.happened.wants_epoch = true;
        }
    }

    fn gone(&mut self, tid: Tid, status: i32) -> Result<()> {
        self.newborn.remove(&tid);
        if tid == self.container.init {
            self.happened.ended = Some(status);
            return Ok(());
        }
        self.limits.remove(&tid);
        let Some(thread) = self.threads.remove(&tid) else { return Ok(()) };
        // Killed before it could stop once more.
        if !thread.exiting
            && let Some(space) = self.processes.get_mut(&thread.process).and_then(|p| p.space.as_mut())
        {
            self.shared.lost(space);
        }
        if thread.tid == thread.process && self.processes.remove(&thread.process).is_some() {
            self.standing.forget(thread.process);
            self.log.push(TreeEvent::Exit { pid: thread.process, status });
            self.zombies.insert(thread.process, Zombie { status });
            if thread.process == FIRST {
                self.happened.ended = Some(status);
            }
        }
        Ok(())
    }

    pub(crate) fn refuse(&mut self, pid: Pid, what: &str, advice: &'static str) {
        self.standing.add(pid, what, advice);
        if let Some(observed) = &mut self.observed {
            observed.refused(pid, what, advice);
        }
    }

    /// Ends the workload: everything in its pid namespace dies with init.
    pub fn kill(&mut self) {
        self.container.kill();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            match ptrace::wait_any(-1, false) {
                Ok(Some((tid, Event::Exited(_) | Event::Killed(_)))) if tid == self.container.init => return,
                Ok(Some((tid, Event::Stopped(_)))) => drop(ptrace::resume(tid, 0)),
                Ok(Some(_)) => {}
                Ok(None) if !proc::path(self.container.init, "stat").exists() => return,
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return,
            }
        }
    }

    /// No backup needs anything any more: what was held for captures is let go, but for connections that are closed and at
    /// work, which the next backup will want.
    pub fn stop_capturing(&mut self) {
        self.shared.stop();
        self.descriptors.stop();
    }

    /// Sends a signal to the workload's first process.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let Some(first) = self.processes.get(&FIRST) else { return Ok(()) };
        let signal = Signal::try_from(signal)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.host), signal).map_err(Into::into)
    }
}

impl Drop for Workload {
    /// Its threads stop once more at their end, and wait for their tracer: without an answer they, and all that they have, stay for
    /// as long as that lives.
    fn drop(&mut self) {
        self.container.kill();
        let begun = Instant::now();
        let mut left: Vec<Tid> = self.threads.keys().copied().chain([self.container.init]).collect();
        while !left.is_empty() && begun.elapsed() < DYING {
            left.retain(|tid| match ptrace::wait_for(*tid, false) {
                Ok(Some(Event::Stopped(_))) => {
                    // Gone meanwhile is as good.
                    let _ = ptrace::resume(*tid, 0);
                    true
                }
                Ok(Some(Event::Exited(_) | Event::Killed(_))) | Err(_) => false,
                Ok(None) => proc::path(*tid, "stat").exists(),
            });
            if !left.is_empty() {
                std::thread::sleep(DYING_REST);
            }
        }
    }
}

/// What is around the processes of a workload, for capturing and building what they hold.
pub(crate) fn surroundings(
    program: &Program,
    network: impl AsFd,
    output: &[OwnedFd; 2],
) -> Result<Surroundings> {
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino);
    let directories = PRIVATE_DIRECTORIES.iter().map(|directory| (*directory).to_owned());
    Ok(Surroundings {
        scratch: directories.chain(program.scratch.iter().cloned()).collect(),
        outputs: [inode(&output[0]), inode(&output[1])],
        clocks: Default::default(),
        network: Some(
            network.as_fd().try_clone_to_owned().attempt(|| "duplicate the network namespace".into())?,
        ),
        mapped: HashSet::new(),
    })
}

/// The tracer works in the workload's network namespace: sockets are asked about, and built, there.
pub(crate) fn enter_network(network: impl AsFd) -> Result<()> {
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)
        .attempt(|| "enter the workload's network namespace".into())?;
    // `/proc/sys/net` is that of the namespace of whoever opens it.
    for (name, value) in tcp::NAMESPACE_SYSCTLS {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        match std::fs::write(&path, value) {
            // A kernel without the feature has nothing to switch off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.attempt(|| format!("set {name} to {value} for the workload"))?,
        }
    }
    Ok(())
}

/// A thread that was killed between its stop and our answer reports its death by itself.
fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}
