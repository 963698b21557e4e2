//! Threads of a process that run before ordinary ones until they are put back: by whoever made them so or, if that one dies, by a
//! child that waits for nothing else.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ptrace::Tid;

/// Threads that can be preferred at once; more are left as they are.
const MOST: usize = 1024;
/// The lowest that is before all ordinary ones (sched(7)).
pub const PRIORITY: libc::c_int = 1;
const LENGTH: usize = MOST * size_of::<AtomicU64>();

/// What both processes see: for each thread its number and, below, its policy as it was, with a bit that says that there is one.
struct Table(NonNull<AtomicU64>);

// SAFETY: a pointer to memory that is of no thread: it is mapped until the table is dropped, and used as atomic words only.
unsafe impl Send for Table {}

const USED: u64 = 1 << 31;

impl Table {
    fn new() -> Option<Self> {
        // SAFETY: an anonymous mapping at an address that the kernel chooses.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()).map(Self) }
    }

    fn slots(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped so many words, zeroed and aligned to a page; both processes use them as atomic words only. They
        // stay mapped as long as the table lives.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), MOST) }
    }

    /// Takes the policies back, of all whose can be, and says what kept the first that could not. Nothing here allocates or locks: a child
    /// of a fork does it.
    fn put_all_back(&self) -> io::Result<()> {
        self.slots().iter().map(put_back).fold(Ok(()), Result::and)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a reference any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

fn put_back(slot: &AtomicU64) -> io::Result<()> {
    let word = slot.load(Ordering::SeqCst);
    if word & USED == 0 {
        return Ok(());
    }
    // The nice value is kept by the kernel while a thread has another policy (`_sched_setscheduler` in kernel/sched/syscalls.c).
    match set_policy((word >> 32) as Tid, (word & (USED - 1)) as libc::c_int, 0) {
        // One that has ended needs nothing; another is still to be put back.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => {
            slot.store(0, Ordering::SeqCst);
            Ok(())
        }
    }
}

/// Whether this process may put back what it preferred, tried on itself; then it runs before what it puts back. A user who may only raise
/// priorities (RLIMIT_RTPRIO) may not take `SCHED_RESET_ON_FORK` away again (`user_check_sched_setscheduler` in the same file): that
/// is the privilege of CAP_SYS_NICE in the first user namespace, which no set of our own capabilities tells.
fn may_put_back() -> bool {
    let tried = set_policy(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, PRIORITY)
        .and_then(|()| set_policy(0, libc::SCHED_OTHER, 0))
        .and_then(|()| set_policy(0, libc::SCHED_FIFO, PRIORITY + 1));
    tried.is_ok()
}

fn set_policy(tid: Tid, policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the structure is a local that outlives the call.
    match unsafe { libc::sched_setscheduler(tid, policy, &raw const parameter) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `None` where it cannot be done safely.
pub struct Preferred {
    table: Table,
    child: libc::pid_t,
    /// The child waits for its end.
    alive: Option<OwnedFd>,
}

impl Preferred {
    pub fn new() -> Option<Self> {
        let table = Table::new()?;
        let (reader, alive) = io::pipe().ok()?;
        let (mut is_ready, ready) = io::pipe().ok()?;
        // What ends this process is not to end the child: it is born with all signals blocked.
        // SAFETY: sets of signals, which are plain integers for which all-zero is a value, filled and used by the calls alone.
        let child = unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let child = libc::fork();
            if child == 0 {
                wait_for_end(&table, reader.as_raw_fd(), ready.as_raw_fd(), alive.as_raw_fd());
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            child
        };
        drop(ready);
        if child < 0 {
            return None;
        }
        let made = Self { table, child, alive: Some(alive.into()) };
        // It says so when it has none of our descriptors any more and may do what it is for; if it has ended, that is the end of the pipe.
        is_ready.read_exact(&mut [0]).ok().map(|()| made)
    }

    /// Has a thread run before ordinary ones, if it is an ordinary one and there is room.
    pub fn add(&mut self, tid: Tid) {
        if self.of(tid).next().is_some() {
            return;
        }
        // SAFETY: takes a number.
        let policy = unsafe { libc::sched_getscheduler(tid) };
        let is_ordinary = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE]
            .contains(&(policy & !libc::SCHED_RESET_ON_FORK));
        let free = self.table.slots().iter().find(|slot| slot.load(Ordering::SeqCst) == 0);
        let (true, Some(slot), Ok(number)) = (is_ordinary, free, u32::try_from(tid)) else { return };
        slot.store(u64::from(number) << 32 | USED | policy as u64, Ordering::SeqCst);
        // What it makes meanwhile is ordinary: with `SCHED_OTHER` and a nice value of 0, whatever its own are (`sched_fork` in
        // kernel/sched/core.c).
        if set_policy(tid, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, PRIORITY).is_err() {
            slot.store(0, Ordering::SeqCst);
        }
    }

    pub fn put_back(&mut self, tid: Tid) -> io::Result<()> {
        self.of(tid).map(put_back).fold(Ok(()), Result::and)
    }

    pub fn put_all_back(&mut self) -> io::Result<()> {
        self.table.put_all_back()
    }

    fn of(&self, tid: Tid) -> impl Iterator<Item = &AtomicU64> {
        let is_its = move |word: u64| word & USED != 0 && word >> 32 == tid as u64;
        self.table.slots().iter().filter(move |slot| is_its(slot.load(Ordering::SeqCst)))
    }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        // What could not be is tried once more by the child; who had it put back before this knows that it failed.
        let _ = self.table.put_all_back();
        self.alive = None;
        // SAFETY: waits for a child of ours; no status is wanted.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// What the child does: it waits until nobody has the other end of the pipe, puts back what is left, and ends.
fn wait_for_end(table: &Table, reader: RawFd, ready: RawFd, alive: RawFd) -> ! {
    /// Neither is where the other goes.
    const ABOVE: RawFd = 2;
    // SAFETY: system calls on numbers and a local byte, all of which may be made in a child of a fork. It keeps none of its parent's
    // descriptors: the parent's locks and pipes are the parent's.
    unsafe {
        libc::setsid();
        // With its own copy of it, it would wait for itself.
        libc::close(alive);
        let mut byte = 0u8;
        let (reader, ready) =
            (libc::fcntl(reader, libc::F_DUPFD, ABOVE), libc::fcntl(ready, libc::F_DUPFD, ABOVE));
        let has_only_these = libc::dup2(reader, 0) == 0
            && libc::dup2(ready, 1) == 1
            && libc::close_range(2, libc::c_uint::MAX, 0) == 0;
        if !has_only_these || !may_put_back() {
            libc::_exit(1);
        }
        libc::write(1, (&raw const byte).cast(), 1);
        while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
    }
    let is_done = table.put_all_back().is_ok();
    // SAFETY: takes a number, and runs nothing of the parent's.
    unsafe { libc::_exit(i32::from(!is_done)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: takes a number; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    fn own() -> Tid {
        // SAFETY: takes nothing.
        unsafe { libc::gettid() }
    }

    #[test]
    fn a_thread_is_put_back_by_who_preferred_it_and_by_its_child() {
        let before = policy();
        assert_eq!(before, libc::SCHED_OTHER);
        let Some(mut preferred) = Preferred::new() else {
            eprintln!("not permitted here");
            return;
        };
        preferred.add(own());
        assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
        preferred.put_back(own()).unwrap();
        assert_eq!(policy(), before);
        // Dropped with a thread that was not put back.
        preferred.add(own());
        drop(preferred);
        assert_eq!(policy(), before);
        // Gone without a word, as by a kill: the pipe's end is all that the child sees.
        let mut preferred = Preferred::new().unwrap();
        preferred.add(own());
        assert_ne!(policy(), before);
        preferred.alive = None;
        // SAFETY: waits for a child of ours; no status is wanted.
        unsafe { libc::waitpid(preferred.child, std::ptr::null_mut(), 0) };
        assert_eq!(policy(), before);
    }

    /// Takes CAP_SYS_NICE (capability(7): 23) from the calling thread, which no other thread notices.
    fn lose_capability() {
        const VERSION_3: u32 = 0x2008_0522;
        let mut header = [VERSION_3, 0];
        let mut sets = [0u32; 6];
        // SAFETY: both calls take a header of two words, and read or write two times three words (capget(2), version 3).
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
            for set in &mut sets[..3] {
                *set &= !(1 << 23);
            }
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
        }
    }

    #[test]
    fn who_may_only_raise_priorities_prefers_nobody_for_it_could_not_put_them_back() {
        let limit = libc::rlimit { rlim_cur: 10, rlim_max: 10 };
        // SAFETY: the structure is a local that outlives the call. A higher limit changes nothing for other tests.
        if unsafe { libc::setrlimit(libc::RLIMIT_RTPRIO, &raw const limit) } != 0 {
            eprintln!("not permitted here");
            return;
        }
        lose_capability();
        assert!(crate::sys::prefer_this_thread(), "its limit allows it");
        assert!(Preferred::new().is_none());
        // What this relies on: once preferred, it would stay so.
        set_policy(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, PRIORITY).unwrap();
        let error = set_policy(0, libc::SCHED_OTHER, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
