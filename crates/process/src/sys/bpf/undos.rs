//! What the kernel would take back of System V semaphores at the end of a process (`SEM_UNDO`): no system call tells it.

use std::io;
use std::sync::OnceLock;

use super::BpfError;
use super::asm::{If, Register::*, Width};
use super::iterator::{Draft, Iterator, Plan, Unavailable};
use crate::sys::ptrace::Tid;

/// How many sets a process may have such operations on, and semaphores in each, to be told of all.
pub const MAX_SETS: usize = 4;
pub const MAX_SEMAPHORES: usize = 32;

/// Adjustments of one set's semaphores. Behind the last of the set there is anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAdjusted {
    /// Of a set that was removed: −1.
    pub id: i32,
    pub adjustments: [i16; MAX_SEMAPHORES],
}

/// Of one thread: those of a process share their list, unless they were made in an unusual way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjusted {
    pub sets: Vec<SetAdjusted>,
    /// There are more sets than are told.
    pub more: bool,
}

/// What the program says: these places, in the machine's byte order.
mod place {
    use super::{MAX_SEMAPHORES, MAX_SETS};
    pub const FOUND: usize = 0;
    pub const MORE: usize = 4;
    pub const SETS: usize = 8;
    pub const SET: usize = 8 + 2 * MAX_SEMAPHORES;
    /// Within a set: its id, then the adjustments.
    pub const ADJUSTMENTS: usize = 8;
    pub const SIZE: usize = SETS + MAX_SETS * SET;
}

const PLAN: Plan =
    Plan { name: "outlive_undos", target: "bpf_iter_task", object: CONTEXT_TASK, record: place::SIZE };
/// Of `struct bpf_iter__task`.
const CONTEXT_TASK: i16 = 8;

/// The program, loaded.
#[derive(Debug)]
pub struct Lister {
    iterator: Iterator,
}

impl Lister {
    /// The one of this process, loaded at the first call.
    pub fn shared() -> Result<&'static Self, &'static Unavailable> {
        static SHARED: OnceLock<Result<Lister, Unavailable>> = OnceLock::new();
        SHARED.get_or_init(|| Ok(Self { iterator: Iterator::build(&PLAN, describe)? })).as_ref()
    }

    /// Of each thread of a process that has any, by the process's id in the calling one's pid namespace.
    pub fn of_process(&self, pid: Tid) -> Result<Vec<Adjusted>, BpfError> {
        let link = self.iterator.of_process(pid)?;
        let mut found = Vec::new();
        let read = link.read(place::SIZE, |record| {
            let word =
                |at: usize| u32::from_ne_bytes(record[at..].first_chunk::<4>().copied().unwrap_or_default());
            let half =
                |at: usize| i16::from_ne_bytes(record[at..].first_chunk::<2>().copied().unwrap_or_default());
            let count = (word(place::FOUND) as usize).min(MAX_SETS);
            let sets = (0..count).map(|index| place::SETS + index * place::SET).map(|at| SetAdjusted {
                id: word(at) as i32,
                adjustments: std::array::from_fn(|semaphore| half(at + place::ADJUSTMENTS + 2 * semaphore)),
            });
            let sets: Vec<SetAdjusted> = sets.collect();
            if !sets.is_empty() {
                found.push(Adjusted { sets, more: word(place::MORE) != 0 });
            }
        });
        read.map_err(|source: io::Error| BpfError::Iterate { tid: pid, source })?;
        Ok(found)
    }
}

/// Walks the list of the task in R7 (`struct sem_undo_list`, ipc/sem.c), whose members are `struct sem_undo`.
fn describe(draft: &mut Draft<'_>) -> Result<(), Unavailable> {
    let (write, skip) = (draft.write, draft.skip);
    let head = draft.member("sem_undo_list", "list_proc")?;
    let next = draft.member("sem_undo", "list_proc")?;
    let (id, adjustments) = (draft.member("sem_undo", "semid")?, draft.member("sem_undo", "semadj")?);
    // Behind the id: an array. Older kernels have a pointer there, which is aligned otherwise.
    if adjustments != id + 4 || next != 0 {
        return Err(Unavailable::Missing("sem_undo.semadj as an array".to_owned()));
    }
    draft.fetch(R8, 8, R7, draft.member("task_struct", "sysvsem.undo_list")?);
    draft.program.jump_if(R8, If::Equal, 0, skip);
    draft.program.add(R8, head);
    draft.fetch(R9, 8, R8, 0);
    for index in 0..MAX_SETS {
        // A list ends where it began.
        draft.program.jump_if_register(R8, If::Equal, R9, write);
        let at = place::SETS + index * place::SET;
        draft.program.store_immediate(Width::Word, R10, draft.at(place::FOUND), index as i32 + 1);
        draft.copy(draft.at(at), 4, R9, id);
        // One by one: what lies behind the last may not be readable, and would take the others with it.
        for semaphore in 0..MAX_SEMAPHORES {
            let to = draft.at(at + place::ADJUSTMENTS + 2 * semaphore);
            draft.copy(to, 2, R9, adjustments + 2 * semaphore as i32);
        }
        draft.fetch(R9, 8, R9, next);
    }
    draft.program.jump_if_register(R8, If::Equal, R9, write);
    draft.program.store_immediate(Width::Word, R10, draft.at(place::MORE), 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_taken_back_is_told() {
        // SAFETY: all arguments are numbers.
        let id = unsafe { libc::semget(libc::IPC_PRIVATE, 3, 0o600) };
        assert!(id >= 0);
        let mut operations = [
            libc::sembuf { sem_num: 0, sem_op: 5, sem_flg: 0 },
            libc::sembuf { sem_num: 0, sem_op: -2, sem_flg: libc::SEM_UNDO as i16 },
            libc::sembuf { sem_num: 2, sem_op: 7, sem_flg: libc::SEM_UNDO as i16 },
        ];
        // SAFETY: three operations, live for the call.
        assert_eq!(unsafe { libc::semop(id, operations.as_mut_ptr(), 3) }, 0);
        let all = Lister::shared().expect("load").of_process(std::process::id() as Tid).expect("read");
        let set = all.iter().flat_map(|thread| &thread.sets).find(|set| set.id == id).expect("it is there");
        assert_eq!(set.adjustments[..3], [2, 0, -7]);
        // SAFETY: all arguments are numbers.
        assert_eq!(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }, 0);
    }
}
