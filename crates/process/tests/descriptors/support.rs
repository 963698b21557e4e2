//! A workload that holds descriptors and does nothing, and the way through a checkpoint.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::error::{Error, Result};
use outlive_process::object::descriptor::{
    At, BuildContext, Capturer, ClockOffsets, Holder, Inode, Kind, Surroundings,
};
use outlive_process::object::file::FileHashes;
use outlive_process::sys::{proc, task};

/// The first of a workload's descriptors; they follow one another.
pub const FIRST: i32 = 100;
/// What the workload believes its process id to be.
pub const NAME: i32 = 7;
/// Objects that have no descriptor are numbered from here.
pub const CONTENTS: u64 = 1000;

/// A fork takes along what other tests have open, until it has closed that: an end of file would be missed.
static ALONE: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Workload {
    pub pid: Pid,
    pidfd: OwnedFd,
    count: usize,
}

impl Workload {
    /// A process that has these descriptors, and no others, from [`FIRST`] on. Ours are closed.
    pub fn hold(descriptors: Vec<OwnedFd>) -> Self {
        Self::start(descriptors, || {})
    }

    /// As [`Workload::hold`], and has done something first; that must be safe after a fork.
    pub fn start(descriptors: Vec<OwnedFd>, first: fn()) -> Self {
        let (ready, done) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        // SAFETY: the child makes system calls only, until it is killed.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // SAFETY: plain system calls with numbers; on any failure the parent sees an end of file.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    for (index, fd) in descriptors.iter().enumerate() {
                        if libc::dup2(fd.as_raw_fd(), FIRST + index as i32) < 0 {
                            libc::_exit(1);
                        }
                    }
                    let done_at = FIRST + descriptors.len() as i32;
                    libc::dup2(done.as_raw_fd(), done_at);
                    libc::close_range(3, FIRST as u32 - 1, 0);
                    libc::close_range(done_at as u32 + 1, u32::MAX, 0);
                    first();
                    libc::write(done_at, b"!".as_ptr().cast(), 1);
                    libc::close(done_at);
                    loop {
                        libc::pause();
                    }
                }
            }
            ForkResult::Parent { child } => {
                let count = descriptors.len();
                drop((done, descriptors));
                let workload = Self { pid: child, pidfd: task::pidfd_open(child.as_raw()).unwrap(), count };
                assert_eq!(nix::unistd::read(&ready, &mut [0]).unwrap(), 1, "the workload did not start");
                workload
            }
        }
    }

    pub fn holder(&self, index: usize) -> Holder {
        Holder {
            tid: self.pid.as_raw(),
            process: NAME,
            fd: FIRST + index as i32,
            root: self.pid.as_raw(),
            in_flight: false,
        }
    }

    pub fn at(&self, index: usize) -> At<'_> {
        At { holder: self.holder(index), others: &[], pidfd: self.pidfd.as_fd(), file: None }
    }

    pub fn kind(&self, index: usize, surroundings: &Surroundings) -> Result<Kind> {
        let at = self.at(index);
        let link = std::fs::read_link(at.link()).unwrap();
        Kind::identify(link.to_str().unwrap(), &at, surroundings)
    }

    /// All of its descriptors; object n is descriptor [`FIRST`] + n. What is in its pipes follows from [`CONTENTS`] on.
    pub fn capture(&self, capturer: &mut Capturer) -> Result<BTreeMap<ObjectId, Object>> {
        capturer.begin();
        let kinds: Vec<Kind> =
            (0..self.count).map(|index| self.kind(index, &capturer.surroundings)).collect::<Result<_>>()?;
        let mut pipes: Vec<u64> = Vec::new();
        for kind in &kinds {
            if let Kind::Pipe { inode } = kind
                && !pipes.contains(inode)
            {
                pipes.push(*inode);
            }
        }
        let objects = |inode: Inode| match inode {
            Inode::Pipe(inode) => {
                pipes.iter().position(|pipe| *pipe == inode).map(|index| ObjectId(CONTENTS + index as u64))
            }
            Inode::Watched(target) => (0..self.count)
                .find(|index| target.is((self.pid.as_raw(), FIRST + *index as i32)))
                .map(|index| ObjectId(index as u64)),
            Inode::Socket(inode) => kinds
                .iter()
                .position(|kind| matches!(kind, Kind::Unix { inode: own } if *own == inode))
                .map(|index| ObjectId(index as u64)),
        };
        let mut captured = BTreeMap::new();
        for (index, kind) in kinds.iter().enumerate() {
            captured.insert(ObjectId(index as u64), capturer.capture(*kind, &self.at(index), &objects)?);
        }
        for (index, pipe) in pipes.iter().enumerate() {
            let ends = (0..self.count).filter(|end| kinds[*end] == Kind::Pipe { inode: *pipe });
            let reads = |end: &usize| matches!(&captured[&ObjectId(*end as u64)], Object::PipeEnd(object) if object.flags.reads());
            let best = ends.clone().find(reads).or_else(|| ends.clone().next()).unwrap();
            let content = Object::Pipe(capturer.capture_pipe(&self.at(best))?);
            captured.insert(ObjectId(CONTENTS + index as u64), content);
        }
        // As it travels.
        let bytes = postcard::to_stdvec(&captured).unwrap();
        Ok(postcard::from_bytes(&bytes).unwrap())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

pub fn surroundings() -> Surroundings {
    surroundings_ahead(ClockOffsets::default())
}

pub fn surroundings_ahead(clocks: ClockOffsets) -> Surroundings {
    Surroundings {
        scratch: vec!["/tmp".to_owned(), "/dev/shm".to_owned()],
        clocks,
        ..Surroundings::default()
    }
}

/// Builds all that have a descriptor, in order, and lets go of everything else.
pub fn build(
    objects: &BTreeMap<ObjectId, Object>,
    root: &Path,
    surroundings: &Surroundings,
) -> Result<Vec<OwnedFd>> {
    let mut hashes = FileHashes::new();
    let find = |id: ObjectId| objects.get(&id);
    let mut context = BuildContext::new(root.to_owned(), surroundings, [None, None], &find, &mut hashes);
    let ids = objects.iter().filter(|(_, object)| !matches!(object, Object::Pipe(_))).map(|(id, _)| *id);
    ids.map(|id| context.build(id).map(|fd| fd.try_clone_to_owned().unwrap())).collect()
}

/// Captures what a process holds, builds it on a host whose root is `root`, and checks that a process which holds that
/// is captured as the same. Gives the built descriptors.
pub fn carry(descriptors: Vec<OwnedFd>, root: &Path) -> Vec<OwnedFd> {
    let first = Workload::hold(descriptors);
    let mut capturer = Capturer::new(surroundings());
    let captured = first.capture(&mut capturer).unwrap();
    // Looking has changed nothing.
    assert_same(&first.capture(&mut capturer).unwrap(), &captured);
    drop(first);
    let second = Workload::hold(build(&captured, root, &surroundings()).unwrap());
    // A root of its own is visible through a process in it only.
    if root == Path::new("/") {
        assert_same(&second.capture(&mut Capturer::new(surroundings())).unwrap(), &captured);
    }
    (0..second.count).map(|index| second.at(index).duplicate().unwrap()).collect()
}

pub fn assert_same(now: &BTreeMap<ObjectId, Object>, then: &BTreeMap<ObjectId, Object>) {
    assert_eq!(now.keys().collect::<Vec<_>>(), then.keys().collect::<Vec<_>>());
    for (id, object) in now {
        assert!(object.same_as(&then[id]), "object {}: {object:?} is not {:?}", id.0, then[id]);
    }
}

/// What a capture refuses is refused by a name that contains `word`.
pub fn assert_refused(descriptors: Vec<OwnedFd>, word: &str) {
    let workload = Workload::hold(descriptors);
    match workload.capture(&mut Capturer::new(surroundings())) {
        Err(Error::Unsupported { pid, what, advice }) => {
            assert_eq!(pid, NAME);
            assert!(what.contains(word), "{what:?} does not name {word:?}");
            assert!(!advice.is_empty());
        }
        other => panic!("{word} was not refused: {other:?}"),
    }
}

/// What is there to be read now, or the error.
pub fn read_now(fd: &OwnedFd) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; 1 << 20];
    outlive_process::sys::descriptor::set_status_flags(fd.as_fd(), libc::O_NONBLOCK).unwrap();
    let got = nix::unistd::read(fd, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

pub fn status_flags(fd: &OwnedFd) -> i32 {
    let info = proc::descriptor_info(std::process::id() as i32, fd.as_raw_fd()).unwrap();
    i32::from_str_radix(proc::info_field(&info, "flags").unwrap(), 8).unwrap() & !libc::O_CLOEXEC
}
