//! System V semaphores and message queues.
//!
//! They belong to the workload and to no process of it: all of its ipc namespace's are captured, from when a program first asks for
//! one. The tracer enters that namespace for it. A message is looked at by `MSG_COPY`, which leaves it there.
//!
//! Not kept: the times of the last operations, and the processes that made them. `SEM_UNDO` is refused: see
//! [`crate::sys::bpf::threads::ThreadSeen::undoes`].

use std::fs::File;

use serde::{Deserialize, Serialize};

use crate::error::{Attempt, Error, Result};
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
}

impl Watcher {
    /// A backup that is told everything anew.
    pub fn begin_whole(&mut self) {
        self.last = None;
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
        let now = read()?;
        if self.last.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.last = Some(now.clone());
        Ok(Some(now))
    }
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

/// Makes all of them in the ipc namespace of `init`, which has none yet.
pub fn restore(init: Tid, objects: &Objects) -> Result<()> {
    enter(&open(init)?)?;
    for set in &objects.semaphores {
        sys::make_semaphores(set.id, &set.access, &set.values)
            .attempt(|| format!("make the System V semaphores {}", set.id))?;
    }
    for queue in &objects.queues {
        sys::make_queue(queue.id, &queue.access, queue.limit, &queue.messages)
            .attempt(|| format!("make the System V message queue {}", queue.id))?;
    }
    Ok(())
}
