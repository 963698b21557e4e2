//! The threads of a process in one read, without stopping them: signals that wait for each, and whether the mappings of
//! their memory may have changed.

use std::io;
use std::sync::OnceLock;

use super::BpfError;
use super::asm::{If, Register::*, Width};
use super::iterator::{Draft, Iterator, Link, Plan, Unavailable};
use crate::sys::ptrace::Tid;

/// One thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadSeen {
    /// Its id in the innermost pid namespace.
    pub inside: Tid,
    /// Set of the signals that wait for it alone.
    pub pending: u64,
    /// Grows whenever somebody takes the right to change the mappings, and again when he is done (`mm_lock_seq`,
    /// include/linux/mmap_lock.h): equal and even means that they are the same.
    pub mappings: u32,
    /// What the kernel keeps of a call that it will go on with: the four words behind the function (`struct restart_block`,
    /// include/linux/restart_block.h). Old, if there is none.
    pub restart: [u64; 4],
    /// Its name, padded with zeros.
    pub name: [u8; 16],
    /// Has used a System V semaphore with `SEM_UNDO`: at its end the kernel takes operations back (see [`super::undos`]).
    pub undoes: bool,
    /// Where the kernel keeps its table of descriptors, and its root, working directory and umask. 0 of one that is ending.
    pub files: u64,
    pub place: u64,
    /// Of its process, and set through `/proc` alone.
    pub adjusted: Adjusted,
}

/// What of a process can be set by writing to its files in `/proc`, unseen, and is compared for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Adjusted {
    /// `oom_score_adj`.
    oom: u16,
    /// The flags of its memory, of which some are `coredump_filter` (include/linux/mm_types.h).
    memory: u64,
}

/// What the program says of a thread: these places, in the machine's byte order.
mod place {
    pub const INSIDE: usize = 0;
    pub const MAPPINGS: usize = 4;
    pub const PENDING: usize = 8;
    pub const RESTART: usize = 16;
    pub const NAME: usize = 48;
    pub const UNDOES: usize = 64;
    pub const OOM: usize = 68;
    pub const FILES: usize = 72;
    pub const FS: usize = 80;
    pub const MEMORY: usize = 88;
    pub const SIZE: usize = 96;
}

const PLAN: Plan =
    Plan { name: "outlive_threads", target: "bpf_iter_task", object: CONTEXT_TASK, record: place::SIZE };

/// Of `struct bpf_iter__task`.
const CONTEXT_TASK: i16 = 8;
/// `sizeof(struct upid)` is 16: a number and a pointer.
const UPID_SHIFT: i32 = 4;
/// Where the words about the call begin in `struct restart_block`: behind a word for the architecture and the function.
const RESTART_WORDS: i32 = 16;

/// `MMF_DUMP_FILTER_MASK` (include/linux/mm_types.h, include/linux/sched/coredump.h): nine bits behind two.
const DUMP_FILTER: u64 = 0x1ff << 2;

/// The program, loaded.
#[derive(Debug)]
pub struct Lister {
    iterator: Iterator,
}

impl Lister {
    /// The one of this process, loaded at the first call.
    pub fn shared() -> Result<&'static Self, &'static Unavailable> {
        static SHARED: OnceLock<Result<Lister, Unavailable>> = OnceLock::new();
        SHARED.get_or_init(Self::load).as_ref()
    }

    fn load() -> Result<Self, Unavailable> {
        Ok(Self { iterator: Iterator::build(&PLAN, describe)? })
    }

    /// The threads of a process, by its id in the calling process's pid namespace.
    pub fn threads(&self, pid: Tid) -> Result<Threads, BpfError> {
        self.iterator.of_process(pid).map(|link| Threads { link })
    }
}

/// One process's threads.
#[derive(Debug)]
pub struct Threads {
    link: Link,
}

impl Threads {
    pub fn read(&self) -> io::Result<Vec<ThreadSeen>> {
        let mut found = Vec::new();
        self.link.read(place::SIZE, |record| {
            // A record is of `place::SIZE`, and all places are within.
            let word =
                |at: usize| u32::from_ne_bytes(record[at..].first_chunk::<4>().copied().unwrap_or_default());
            let long =
                |at: usize| u64::from_ne_bytes(record[at..].first_chunk::<8>().copied().unwrap_or_default());
            found.push(ThreadSeen {
                inside: word(place::INSIDE) as Tid,
                pending: long(place::PENDING),
                mappings: word(place::MAPPINGS),
                restart: [0, 8, 16, 24].map(|offset| long(place::RESTART + offset)),
                name: record[place::NAME..].first_chunk::<16>().copied().unwrap_or_default(),
                undoes: word(place::UNDOES) != 0,
                files: long(place::FILES),
                place: long(place::FS),
                adjusted: Adjusted {
                    oom: word(place::OOM) as u16,
                    memory: long(place::MEMORY) & DUMP_FILTER,
                },
            });
        })?;
        Ok(found)
    }
}

/// Puts what is to be known of the task in R7 into the record.
fn describe(draft: &mut Draft<'_>) -> Result<(), Unavailable> {
    let (write, skip) = (draft.write, draft.skip);
    // The innermost number of its `struct pid`.
    draft.fetch(R8, 8, R7, draft.member("task_struct", "thread_pid")?);
    draft.program.jump_if(R8, If::Equal, 0, skip);
    draft.fetch(R9, 4, R8, draft.member("pid", "level")?);
    draft.program.shift_left(R9, UPID_SHIFT);
    draft.program.add_register(R8, R9);
    let number = draft.member("pid", "numbers")? + draft.member("upid", "nr")?;
    draft.copy(draft.at(place::INSIDE), 4, R8, number);
    draft.copy(draft.at(place::PENDING), 8, R7, draft.member("task_struct", "pending.signal.sig")?);
    let restart = draft.member("task_struct", "restart_block")? + RESTART_WORDS;
    draft.copy(draft.at(place::RESTART), 32, R7, restart);
    draft.copy(draft.at(place::NAME), 16, R7, draft.member("task_struct", "comm")?);
    draft.copy(draft.at(place::FILES), 8, R7, draft.member("task_struct", "files")?);
    draft.copy(draft.at(place::FS), 8, R7, draft.member("task_struct", "fs")?);
    draft.fetch(R8, 8, R7, draft.member("task_struct", "signal")?);
    draft.copy(draft.at(place::OOM), 2, R8, draft.member("signal_struct", "oom_score_adj")?);
    // A list that is empty points to itself (`struct list_head`).
    let entries = draft.member("sem_undo_list", "list_proc")?;
    let nothing = draft.program.label();
    draft.fetch(R8, 8, R7, draft.member("task_struct", "sysvsem.undo_list")?);
    draft.program.jump_if(R8, If::Equal, 0, nothing);
    draft.program.add(R8, entries);
    draft.fetch(R9, 8, R8, 0);
    draft.program.jump_if_register(R8, If::Equal, R9, nothing);
    draft.program.store_immediate(Width::Word, R10, draft.at(place::UNDOES), 1);
    draft.program.place(nothing);
    draft.fetch(R8, 8, R7, draft.member("task_struct", "mm")?);
    draft.program.jump_if(R8, If::Equal, 0, write);
    draft.copy(draft.at(place::MAPPINGS), 4, R8, draft.member("mm_struct", "mm_lock_seq.sequence")?);
    draft.copy(draft.at(place::MEMORY), 8, R8, draft.member("mm_struct", "flags")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Runs in a process of its own, so that no other test's thread changes mappings or signals.
    fn alone(test: impl FnOnce()) {
        // SAFETY: the child runs the test and exits; it was forked from a test's thread and holds no lock of another's
        // but those of the allocator, which glibc makes usable after a fork.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).is_ok();
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from(!passed)) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("wait");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }

    fn own() -> Threads {
        Lister::shared().expect("load").threads(std::process::id() as Tid).expect("own threads")
    }

    #[test]
    fn threads_and_signals_that_wait_for_one_are_seen() {
        let (send, receive) = mpsc::channel();
        let (done, until) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let mut mask = nix::sys::signal::SigSet::empty();
            mask.add(nix::sys::signal::Signal::SIGUSR2);
            mask.thread_block().expect("block");
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).expect("to this thread");
            send.send(nix::unistd::gettid().as_raw()).expect("send");
            let _ = until.recv();
        });
        let tid = receive.recv().expect("tid");
        let seen = own().read().expect("read");
        let of = |tid| *seen.iter().find(|thread| thread.inside == tid).expect("it is there");
        assert_eq!(of(tid).pending, 1 << (libc::SIGUSR2 - 1));
        assert_eq!(of(nix::unistd::gettid().as_raw()).pending, 0);
        drop(done);
        other.join().expect("join");
    }

    #[test]
    fn a_change_of_mappings_is_seen_and_writing_memory_is_none() {
        // The program is loaded before the fork: its type information is large.
        Lister::shared().expect("load");
        alone(|| {
            let threads = own();
            let now = || threads.read().expect("read")[0].mappings;
            let mut page = vec![0u8; 4096];
            now();
            let before = now();
            page[7] = 1;
            assert_eq!(now(), before);
            assert_eq!(before % 2, 0);
            // SAFETY: a new anonymous mapping, which nothing refers to.
            let mapped = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0)
            };
            assert_ne!(mapped, libc::MAP_FAILED);
            assert_ne!(now(), before);
        });
    }
}
