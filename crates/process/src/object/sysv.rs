//! System V semaphores and message queues.
//!
//! They belong to the workload and to no process of it: all of its ipc namespace's are captured, from when a program first asks for
//! one. The tracer enters that namespace for it. A message is looked at by `MSG_COPY`, which leaves it there.
//!
//! What the kernel takes back at the end of a process (`SEM_UNDO`) is read from its lists ([`crate::sys::bpf::undos`]), and made again
//! by the process doing what it did.
//!
//! Not kept: the times of the last operations, and the processes that made them.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use crate::checkpoint::Pid;
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::undos;
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::sysv::{self as sys, Access};
use crate::tree::FIRST;

/// The kernel's own bounds by default: `SEMMNI` and `MSGMNI` (`linux/{sem,msg}.h`), 32,000 of each.
const MAX_OBJECTS: usize = 32_000;
/// Of all semaphores (`SEMMNS` by default allows more) and of all messages together; more is refused.
const MAX_SEMAPHORES: usize = 1 << 20;
const MAX_BYTES: usize = 16 << 20;
/// The longest message: `kernel.msgmax` is 8 KiB by default.
const LONGEST: usize = 1 << 20;

/// All of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    semaphores: Vec<Semaphores>,
    queues: Vec<Queue>,
    /// What is taken back when processes end.
    undos: Vec<Undo>,
}

/// What is added to the semaphores of a set at the end of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    process: Pid,
    id: i32,
    adjustments: Vec<i16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Semaphores {
    id: i32,
    access: Access,
    values: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    id: i32,
    access: Access,
    /// How many bytes may wait.
    limit: u64,
    /// Type and bytes.
    messages: Vec<(i64, Vec<u8>)>,
}

/// What is known of a workload's objects.
#[derive(Debug, Default)]
pub struct Watcher {
    /// A program has asked for one, once.
    pub used: bool,
    namespace: Option<File>,
    last: Option<Objects>,
    /// As looked at in this stop; with room for more semaphores than a set has.
    pub undos: Vec<Undo>,
}

impl Watcher {
    /// A backup that is told everything anew.
    pub fn begin_whole(&mut self) {
        self.last = None;
    }

    /// A process has such a list.
    pub fn look_at_undos(&mut self, pid: Pid, host: Tid) -> Result<()> {
        let refuse = |what: &str, advice| Error::Unsupported { pid, what: what.to_owned(), advice };
        let what = || format!("read what SEM_UNDO takes back at the end of process {pid}");
        let advice = "run it on a kernel with BPF and its type information";
        let lister = undos::Lister::shared().map_err(|_| {
            refuse("SEM_UNDO of System V semaphores on a kernel that does not tell it", advice)
        })?;
        let found = lister.of_process(host).map_err(io::Error::other).attempt(what)?;
        let Some((first, others)) = found.split_first() else { return Ok(()) };
        let advice = "let the program use another kind of lock (Apache: `Mutex pthread`)";
        if first.more || others.iter().any(|other| other != first) {
            let what = "SEM_UNDO on many sets of System V semaphores, or of single threads";
            return Err(refuse(what, advice));
        }
        self.undos.extend(first.sets.iter().filter(|set| set.id >= 0).map(|set| Undo {
            process: pid,
            id: set.id,
            adjustments: set.adjustments.to_vec(),
        }));
        Ok(())
    }

    /// All objects, if they have changed. `init` is a process in the workload's ipc namespace. All are stopped.
    pub fn capture(&mut self, init: Tid) -> Result<Option<Objects>> {
        if !self.used {
            return Ok(None);
        }
        let namespace = match &self.namespace {
            Some(namespace) => namespace,
            None => self.namespace.insert(open(init)?),
        };
        enter(namespace)?;
        let mut now = read()?;
        now.undos = fit(&self.undos, &now.semaphores)?;
        if self.last.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.last = Some(now.clone());
        Ok(Some(now))
    }
}

/// Cuts what is known of undoing to what there is in each set.
fn fit(undos: &[Undo], sets: &[Semaphores]) -> Result<Vec<Undo>> {
    let mut all = Vec::new();
    for undo in undos {
        let Some(set) = sets.iter().find(|set| set.id == undo.id) else { continue };
        let Some(adjustments) = undo.adjustments.get(..set.values.len()) else {
            let what = format!("SEM_UNDO on a set of {} System V semaphores", set.values.len());
            let advice = "let the program use smaller sets, or another kind of lock";
            return Err(Error::Unsupported { pid: undo.process, what, advice });
        };
        if adjustments.iter().any(|adjustment| *adjustment != 0) {
            all.push(Undo { adjustments: adjustments.to_vec(), ..*undo });
        }
    }
    Ok(all)
}

fn open(init: Tid) -> Result<File> {
    proc::open(init, "ns/ipc").attempt(|| "open the workload's ipc namespace".into())
}

fn enter(namespace: &File) -> Result<()> {
    sys::enter(namespace).attempt(|| "enter the workload's ipc namespace".into())
}

fn read() -> Result<Objects> {
    let what = || "read System V semaphores".to_owned();
    let (mut objects, mut semaphores, mut bytes) = (Objects::default(), 0, 0);
    for index in 0..sys::semaphore_indices().attempt(what)? {
        let Some((id, access, count)) = sys::semaphores_at(index).attempt(what)? else { continue };
        semaphores += count;
        check(&access, semaphores <= MAX_SEMAPHORES && objects.semaphores.len() < MAX_OBJECTS)?;
        let values = sys::semaphore_values(id, count).attempt(what)?;
        objects.semaphores.push(Semaphores { id, access, values });
    }
    let what = || "read System V message queues".to_owned();
    for index in 0..sys::queue_indices().attempt(what)? {
        let Some((id, access, count, limit)) = sys::queue_at(index).attempt(what)? else { continue };
        let mut messages = Vec::new();
        for place in 0..count {
            let Some(message) = sys::message(id, place, LONGEST).attempt(what)? else { break };
            bytes += message.1.len() + size_of::<i64>();
            check(&access, bytes <= MAX_BYTES)?;
            messages.push(message);
        }
        check(&access, objects.queues.len() < MAX_OBJECTS)?;
        objects.queues.push(Queue { id, access, limit, messages });
    }
    Ok(objects)
}

/// Refuses what cannot be made again.
fn check(access: &Access, fits: bool) -> Result<()> {
    // They are nobody's in particular: named with the first process.
    let refuse = |what: &str, advice| Err(Error::Unsupported { pid: FIRST, what: what.to_owned(), advice });
    if !fits {
        return refuse("very much in System V semaphores or message queues", "let the program use less");
    }
    // The creator is whoever makes it; he has the owner's rights, so that no right is lost where he is the owner.
    if access.creator != access.owner {
        let what = "a System V object that was given to another owner";
        return refuse(what, "let the program's own user create it");
    }
    Ok(())
}

/// Lets a process of the shell operate on a set: by operations (`struct sembuf`) that are as many as is said.
pub type Operate<'a> = dyn Fn(Pid, i32, &[u8], usize) -> Result<()> + 'a;

/// Makes all of them in the ipc namespace of `init`, which has none yet.
pub fn restore(init: Tid, objects: &Objects, operate: &Operate<'_>) -> Result<()> {
    enter(&open(init)?)?;
    for set in &objects.semaphores {
        let what = || format!("make the System V semaphores {}", set.id);
        let undos: Vec<&Undo> = objects.undos.iter().filter(|undo| undo.id == set.id).collect();
        if undos.is_empty() {
            sys::make_semaphores(set.id, &set.access, &set.values).attempt(what)?;
            continue;
        }
        // Setting a value forgets what is to be undone: from zero they are only added to, and taken from.
        sys::make_semaphores(set.id, &set.access, &vec![0; set.values.len()]).attempt(what)?;
        for undo in undos {
            let each = || (0u16..).zip(&undo.adjustments);
            // What will be given back has been taken, and there has to be something to take.
            let given: Vec<(u16, i16)> = each().filter(|(_, a)| **a > 0).map(|(n, a)| (n, *a)).collect();
            sys::adjust(set.id, &given).attempt(what)?;
            let done: Vec<(u16, i16)> =
                each().filter(|(_, a)| **a != 0).map(|(n, a)| (n, a.saturating_neg())).collect();
            operate(undo.process, set.id, &sys::undone_operations(&done), done.len())?;
            let taken: Vec<(u16, i16)> = each().filter(|(_, a)| **a < 0).map(|(n, a)| (n, *a)).collect();
            sys::adjust(set.id, &taken).attempt(what)?;
        }
        let values = (0u16..).zip(&set.values).filter(|(_, value)| **value > 0);
        // At most 32,767 (`SEMVMX`, linux/sem.h).
        let values: Vec<(u16, i16)> =
            values.map(|(n, value)| (n, i16::try_from(*value).unwrap_or(i16::MAX))).collect();
        sys::adjust(set.id, &values).attempt(what)?;
    }
    for queue in &objects.queues {
        sys::make_queue(queue.id, &queue.access, queue.limit, &queue.messages)
            .attempt(|| format!("make the System V message queue {}", queue.id))?;
    }
    Ok(())
}
