//! What the kernel keeps of a task beside its identity: what is set by `prctl(2)`, scheduling, personality.
//!
//! Asked of the first thread, and given to all of a process; where threads may differ ([`target`]), of each.

use std::io;

use serde::{Deserialize, Serialize};

use crate::sys::proc;
use crate::sys::ptrace::{Registers, Tid};
use crate::sys::remote::{Batch, Remote};

/// `struct sched_attr` (`sched_setattr(2)`), first version.
const SCHED_SIZE: usize = 48;
/// Bytes of a set of processors: 8,192 of them (`NR_CPUS` of distributions).
const AFFINITY_SIZE: usize = 1024;
/// `ioprio_set(2)`.
const IOPRIO_WHO_PROCESS: u64 = 1;
/// `linux/membarrier.h`; since Linux 6.3.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// What does not fail but says something: a question.
const PERSONALITY_ASK: u64 = 0xffff_ffff;

/// As the kernel gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAttributes {
    pub securebits: u64,
    pub parent_death_signal: i32,
    pub subreaper: i32,
    pub dumpable: i64,
    /// Nanoseconds.
    pub timer_slack: i64,
    pub no_huge_pages: i64,
    /// `PR_MCE_KILL_GET`.
    pub machine_check: i64,
    pub personality: i64,
    /// `struct sched_attr`.
    #[serde(with = "serde_bytes")]
    pub scheduling: Vec<u8>,
    /// The set of processors.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    pub io_priority: i64,
    /// Commands of `membarrier(2)` that register something, as a mask.
    pub barriers: i64,
}

/// What the kernel keeps for each thread, of one that may differ from its process's first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnAttributes {
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub capabilities: Capabilities,
    pub task: TaskAttributes,
}

/// Asked of the thread itself.
pub fn capture_own(remote: &mut Remote<'_>, tid: Tid) -> io::Result<OwnAttributes> {
    let status = proc::status(tid)?;
    let task = capture(remote)?;
    let capabilities = capabilities_of(&status);
    Ok(OwnAttributes { uids: status.uids, gids: status.gids, groups: status.groups, capabilities, task })
}

/// In the order of [`Capabilities`].
pub fn capabilities_of(status: &proc::Status) -> Capabilities {
    [
        status.cap_inheritable,
        status.cap_permitted,
        status.cap_effective,
        status.cap_bounding,
        status.cap_ambient,
    ]
}

pub fn capture(remote: &mut Remote<'_>) -> io::Result<TaskAttributes> {
    let mut batch = Batch::new();
    let words = batch.bytes(&[0u8; 16]);
    let scheduling = batch.bytes(&[0u8; SCHED_SIZE]);
    let affinity = batch.bytes(&[0u8; AFFINITY_SIZE]);
    let mut ask =
        |option: i32, argument: u64| batch.call(libc::SYS_prctl, &[option as u64, argument, 0, 0, 0]);
    ask(libc::PR_GET_SECUREBITS, 0);
    ask(libc::PR_GET_PDEATHSIG, words);
    ask(libc::PR_GET_CHILD_SUBREAPER, words + 8);
    ask(libc::PR_GET_DUMPABLE, 0);
    ask(libc::PR_GET_TIMERSLACK, 0);
    ask(libc::PR_GET_THP_DISABLE, 0);
    ask(libc::PR_MCE_KILL_GET, 0);
    batch.call(libc::SYS_personality, &[PERSONALITY_ASK]);
    batch.call(libc::SYS_sched_getattr, &[0, scheduling, SCHED_SIZE as u64, 0]);
    batch.call(libc::SYS_sched_getaffinity, &[0, AFFINITY_SIZE as u64, affinity]);
    batch.call(libc::SYS_ioprio_get, &[IOPRIO_WHO_PROCESS, 0]);
    batch.call(libc::SYS_membarrier, &[MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0]);
    let results = remote.run(&batch)?;
    // What this kernel does not know is not asked for on the other.
    let result = |index: usize| results.get(index).copied().unwrap_or(-1);
    let words = remote.read(words, 16)?;
    let word = |at: usize| i32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let scheduling = if result(8) == 0 { remote.read(scheduling, SCHED_SIZE)? } else { Vec::new() };
    let affinity = remote.read(affinity, result(9).clamp(0, AFFINITY_SIZE as i64) as usize)?;
    Ok(TaskAttributes {
        securebits: result(0).max(0) as u64,
        parent_death_signal: word(0),
        subreaper: word(8),
        dumpable: result(3),
        timer_slack: result(4),
        no_huge_pages: result(5),
        machine_check: result(6),
        personality: result(7),
        scheduling,
        affinity,
        io_priority: result(10),
        barriers: result(11),
    })
}

/// To be done with all privileges, before the user is changed. Nothing of it is worth failing for: a host with fewer processors, or
/// without a right of the other's, gives what it can.
pub fn restore(batch: &mut Batch, task: &TaskAttributes) {
    let mut set = |option: i32, value: i64| {
        if value >= 0 {
            batch.call(libc::SYS_prctl, &[option as u64, value as u64, 0, 0, 0]);
        }
    };
    set(libc::PR_SET_TIMERSLACK, task.timer_slack);
    set(libc::PR_SET_THP_DISABLE, task.no_huge_pages);
    set(libc::PR_SET_CHILD_SUBREAPER, i64::from(task.subreaper));
    if task.machine_check >= 0 && task.machine_check != i64::from(libc::PR_MCE_KILL_DEFAULT) {
        let (how, what) = (libc::PR_MCE_KILL_SET as u64, task.machine_check as u64);
        batch.call(libc::SYS_prctl, &[libc::PR_MCE_KILL as u64, how, what, 0, 0]);
    }
    if task.personality >= 0 {
        batch.call(libc::SYS_personality, &[task.personality as u64]);
    }
    if task.scheduling.len() == SCHED_SIZE {
        let at = batch.bytes(&task.scheduling);
        batch.call(libc::SYS_sched_setattr, &[0, at, 0]);
    }
    if !task.affinity.is_empty() {
        let at = batch.bytes(&task.affinity);
        batch.call(libc::SYS_sched_setaffinity, &[0, task.affinity.len() as u64, at]);
    }
    for bit in
        (0..i64::BITS - 1).map(|bit| 1i64 << bit).filter(|bit| task.barriers > 0 && task.barriers & bit != 0)
    {
        batch.call(libc::SYS_membarrier, &[bit as u64, 0, 0]);
    }
    if task.io_priority > 0 {
        batch.call(libc::SYS_ioprio_set, &[IOPRIO_WHO_PROCESS, 0, task.io_priority as u64]);
    }
}

/// Whose attributes a noticed call changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Those that the whole process has in common, or its memory's.
    Process,
    /// Those of the calling thread.
    Thread,
    /// Those of the thread or process with this id.
    Other(i32),
    /// Those of a group's or a user's.
    Many,
}

/// Judged by the call's number and arguments.
pub fn target(regs: &Registers) -> Target {
    let of = |id: u64| if id as i32 == 0 { Target::Thread } else { Target::Other(id as i32) };
    match regs.orig_rax as i64 {
        libc::SYS_sched_setscheduler
        | libc::SYS_sched_setparam
        | libc::SYS_sched_setattr
        | libc::SYS_sched_setaffinity => of(regs.rdi),
        libc::SYS_prlimit64 if regs.rdi as i32 == 0 => Target::Process,
        libc::SYS_prlimit64 => Target::Other(regs.rdi as i32),
        libc::SYS_setpriority if regs.rdi as u32 == libc::PRIO_PROCESS => of(regs.rsi),
        libc::SYS_ioprio_set if regs.rdi == IOPRIO_WHO_PROCESS => of(regs.rsi),
        libc::SYS_setpriority | libc::SYS_ioprio_set => Target::Many,
        libc::SYS_prctl => match regs.rdi as i32 {
            libc::PR_SET_NAME | libc::PR_SET_VMA => Target::Process,
            _ => Target::Thread,
        },
        libc::SYS_setuid
        | libc::SYS_setgid
        | libc::SYS_setreuid
        | libc::SYS_setregid
        | libc::SYS_setresuid
        | libc::SYS_setresgid
        | libc::SYS_setfsuid
        | libc::SYS_setfsgid
        | libc::SYS_setgroups
        | libc::SYS_capset
        | libc::SYS_personality => Target::Thread,
        _ => Target::Process,
    }
}

/// Inheritable, permitted, effective, bounding and ambient, as `/proc/PID/status` shows them.
pub type Capabilities = [u64; 5];

/// The user with its capabilities, for the thread that is asked. `own` are those that it has: no others can be given.
pub fn become_user(
    remote: &mut Remote<'_>,
    (uids, gids, groups): (&[u32; 4], &[u32; 4], &[u32]),
    wanted: &Capabilities,
    own: &Capabilities,
    task: &TaskAttributes,
) -> io::Result<()> {
    // `linux/securebits.h`: a change of user leaves the capabilities as they are.
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    // `linux/capability.h`; the header names the version, and the caller.
    const VERSION: u32 = 0x2008_0522;
    let [inheritable, permitted, effective, bounding, ambient] =
        std::array::from_fn(|index| wanted[index] & if index == 3 { own[3] } else { own[1] });
    let mut batch = Batch::new();
    let header = batch.bytes(&[VERSION.to_ne_bytes(), [0; 4]].concat());
    let capset = |batch: &mut Batch, sets: [u64; 3]| {
        let halves = [0, 32].into_iter().flat_map(|shift| sets.map(|set| (set >> shift) as u32));
        let data = batch.bytes(&halves.flat_map(u32::to_ne_bytes).collect::<Vec<u8>>());
        batch.call(libc::SYS_capset, &[header, data]);
    };
    let groups: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
    let at = batch.bytes(&groups);
    let prctl = |batch: &mut Batch, option: i32, value: u64, more: u64| {
        batch.call(libc::SYS_prctl, &[option as u64, value, more, 0, 0]);
    };
    capset(&mut batch, [own[1], own[1], inheritable]);
    prctl(&mut batch, libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0);
    for capability in (0..64).filter(|bit| own[3] & !bounding & 1 << bit != 0) {
        prctl(&mut batch, libc::PR_CAPBSET_DROP, capability, 0);
    }
    batch.call(libc::SYS_setgroups, &[groups.len() as u64 / 4, at]);
    let three = |ids: &[u32; 4]| [u64::from(ids[0]), u64::from(ids[1]), u64::from(ids[2])];
    batch.call(libc::SYS_setresgid, &three(gids));
    batch.call(libc::SYS_setresuid, &three(uids));
    batch.call(libc::SYS_setfsgid, &[u64::from(gids[3])]);
    batch.call(libc::SYS_setfsuid, &[u64::from(uids[3])]);
    for capability in (0..64).filter(|bit| ambient & 1 << bit != 0) {
        prctl(&mut batch, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability);
    }
    prctl(&mut batch, libc::PR_SET_SECUREBITS, task.securebits, 0);
    capset(&mut batch, [effective, permitted, inheritable]);
    // A change of user forgets these.
    if task.parent_death_signal > 0 {
        prctl(&mut batch, libc::PR_SET_PDEATHSIG, task.parent_death_signal as u64, 0);
    }
    if (0..=1).contains(&task.dumpable) {
        prctl(&mut batch, libc::PR_SET_DUMPABLE, task.dumpable as u64, 0);
    }
    remote.run_all(&mut batch).map(drop)
}
