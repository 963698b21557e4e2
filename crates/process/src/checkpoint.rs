//! What is needed to restore a workload as it was at the end of an epoch.
//!
//! A checkpoint is a *change* against the one before it. Small state (threads, descriptors, attributes) is whole where
//! it appears and absent where it did not change; memory is runs of pages whose bytes travel beside, in [`Pages`].

use serde::{Deserialize, Serialize};

pub use crate::object::Object;
use crate::object::attributes::{OwnAttributes, TaskAttributes};
use crate::object::file::FileKey;
use crate::object::memory::Mapping;
use crate::object::mqueue::Queue;
use crate::object::network::Network;
use crate::object::posix_timer::PosixTimer;
use crate::object::seccomp_filter::Filters;
use crate::object::shared::SharedChange;
use crate::object::signal::{PendingSignal, SignalAction, SignalStack};
use crate::object::signal_owner::SignalOwner;
use crate::object::sysv;
use crate::sys::pagemap::{PAGE_SIZE, Range};
use crate::sys::ptrace::Rseq;

/// A process or thread id inside the workload's pid namespace.
pub type Pid = i32;

/// Identifies a kernel object (an open file description) over all checkpoints of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId(pub u64);

/// What happened to the process tree, in the order in which it happened: a double fork within an epoch cannot be
/// rebuilt from how the tree looks at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeEvent {
    /// `child` was forked by `parent`; `parent` is 1 for the workload's first process.
    Fork {
        parent: Pid,
        child: Pid,
    },
    /// A new program: everything that was mapped is gone.
    Exec {
        pid: Pid,
    },
    /// Became leader of a session, or moved to a process group.
    Session {
        pid: Pid,
    },
    Group {
        pid: Pid,
        group: Pid,
    },
    /// Gets the orphans among its descendants as its children from here on, or no more.
    Reaper {
        pid: Pid,
        on: bool,
    },
    /// Has another controlling terminal, by its number, or none any more.
    Terminal {
        pid: Pid,
        terminal: Option<u32>,
    },
    /// Ended, with the status as `wait` gives it, and is a zombie until it is reaped.
    Exit {
        pid: Pid,
        status: i32,
    },
    /// `parent` has waited for `pid`.
    Reaped {
        pid: Pid,
    },
}

/// Whose pages: a process's own, or those of an object that several may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Whose {
    Process(Pid),
    Shared(FileKey),
}

/// A run of pages: written with the next `pages` × 4096 bytes of the checkpoint's page data, or all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// In the address space, or the offset in an object.
    pub address: u64,
    pub pages: u32,
    pub zero: bool,
}

impl Run {
    pub fn range(&self) -> Range {
        Range::new(self.address, self.address + u64::from(self.pages) * PAGE_SIZE)
    }
}

/// How one address space changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDelta {
    /// All mappings, if any changed.
    pub layout: Option<Vec<Mapping>>,
    /// Mapped anew since the last checkpoint, though the layout may look the same: what was there is gone.
    pub fresh: Vec<Range>,
    /// Emptied by `madvise`.
    pub dropped: Vec<Range>,
    /// In the order of the page data.
    pub runs: Vec<Run>,
}

/// A general-purpose register set that can travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers(pub [u64; 27]);

/// A thread, whole. Its memory is its process's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    pub tid: Pid,
    pub name: String,
    pub registers: Registers,
    /// XSAVE area.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    pub mask: u64,
    pub pending: Vec<PendingSignal>,
    /// The first of them was just being delivered.
    pub delivering: bool,
    pub stack: SignalStack,
    pub rseq: Option<Rseq>,
    /// Head and length of the robust futex list.
    pub robust_list: (u64, u64),
    /// Where the kernel writes 0 and wakes a futex when the thread ends.
    pub clear_tid: u64,
    /// Where it may differ from the process's first thread.
    pub own: Option<Box<OwnAttributes>>,
    /// If not that of its process (`unshare(CLONE_FS)`).
    pub place: Option<Box<Place>>,
    /// When the time limit of the call that it waits in is over, by the workload's monotonic clock in nanoseconds.
    pub deadline: Option<i64>,
}

/// Where a thread is in the file system, below the root `/`, and the umask that goes with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub cwd: String,
    pub umask: u32,
}

/// What a process is beside its memory, threads and descriptors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub executable: String,
    /// As the workload's own root has it; `/` unless `chroot(2)` was called.
    pub root: String,
    /// From that same root, whatever the process's is.
    pub cwd: String,
    pub umask: u32,
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    pub no_new_privs: bool,
    /// What `mlockall` was told of mappings to come: `MCL_FUTURE`, `MCL_ONFAULT`.
    pub lock_future: u32,
    /// code, data, stack, argument and environment boundaries, in the order of `struct prctl_mm_map`.
    pub layout: MemoryLayout,
    /// Soft and hard, indexed by resource.
    pub limits: Vec<(u64, u64)>,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`, of kernels that have it.
    pub coredump_filter: Option<u32>,
    pub task: TaskAttributes,
}

/// The boundaries of `prctl(PR_SET_MM_MAP)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    pub code: (u64, u64),
    pub data: (u64, u64),
    pub brk: (u64, u64),
    pub stack: u64,
    pub arguments: (u64, u64),
    pub environment: (u64, u64),
    pub auxv: Vec<u8>,
}

/// One row of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub fd: i32,
    pub object: ObjectId,
    pub close_on_exec: bool,
}

/// A process of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    pub pid: Pid,
    pub memory: MemoryDelta,
    /// Those that changed; the leader first.
    pub threads: Vec<ThreadState>,
    /// Those that are as in the checkpoint before.
    pub same_threads: Vec<Pid>,
    pub pending: Vec<PendingSignal>,
    pub actions: Option<Vec<SignalAction>>,
    pub attributes: Option<Attributes>,
    pub descriptors: Option<Vec<Descriptor>>,
    /// ITIMER_REAL, VIRTUAL, PROF: time left and interval in microseconds.
    pub interval_timers: Option<[(u64, u64); 3]>,
    pub posix_timers: Vec<PosixTimer>,
    /// Filters of system calls of its threads, if any changed.
    pub filters: Option<Filters>,
    pub job: Job,
}

/// What job control did to a process, and what its parent can still be told of it (`wait(2)`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Stopped by this signal.
    pub stopped: Option<i32>,
    /// Its parent has not waited yet for its stop, or for that it goes on.
    pub untold: bool,
}

/// The clocks that must never go backwards, in nanoseconds as the workload sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic: i64,
    pub boottime: i64,
}

/// Blocks of a file by their offsets, in bytes.
pub type Blocks = Vec<(u64, Vec<u8>)>;

/// A change in a scratch directory. Paths are absolute, as the workload sees them. The order matters: a directory comes
/// before what is in it, and a file before other links to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileChange {
    /// Nothing is in this scratch directory but what follows.
    Emptied {
        path: String,
    },
    /// A new directory, or new attributes of one.
    Directory {
        path: String,
        mode: u32,
        owner: (u32, u32),
        modified: (i64, i64),
    },
    /// A new file, in place of what had the name.
    File {
        path: String,
        mode: u32,
        owner: (u32, u32),
        modified: (i64, i64),
        #[serde(with = "serde_bytes")]
        content: Vec<u8>,
    },
    /// Parts of a file that is there, and its attributes. A block is written at its offset; an empty one stands for
    /// [`crate::object::scratch::BLOCK`] zero bytes. `size` is set first.
    Blocks {
        path: String,
        mode: u32,
        owner: (u32, u32),
        modified: (i64, i64),
        size: u64,
        blocks: Blocks,
    },
    Symlink {
        path: String,
        target: String,
        owner: (u32, u32),
    },
    /// A further name of the file at `to`.
    Link {
        path: String,
        to: String,
    },
    /// A named pipe, or the node of a unix socket.
    Node {
        path: String,
        socket: bool,
        mode: u32,
        owner: (u32, u32),
    },
    /// Gone, with all that is in it.
    Removed {
        path: String,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub tree: Vec<TreeEvent>,
    pub processes: Vec<ProcessState>,
    /// New or changed kernel objects.
    pub objects: Vec<(ObjectId, Object)>,
    /// All objects that exist without a descriptor: connections that were closed with data still queued.
    pub orphans: Vec<ObjectId>,
    /// All objects that signal somebody, if that has changed.
    pub signal_owners: Option<Vec<(ObjectId, SignalOwner)>>,
    pub files: Vec<FileChange>,
    /// Objects that processes share, new or changed; their page data follows that of the processes.
    pub shared: Vec<SharedChange>,
    /// Those that nobody has any more.
    pub shared_gone: Vec<FileKey>,
    /// System V semaphores and message queues, all of them, if any changed.
    pub ipc: Option<sysv::Objects>,
    /// POSIX message queues, all of them, if any changed.
    pub queues: Option<Vec<Queue>>,
    /// What the workload has made of its network, if that has changed.
    pub network: Option<Network>,
    pub clocks: Clocks,
    /// What the workload wrote to its standard output (1) and error (2) in this epoch.
    pub output: Vec<(u8, Vec<u8>)>,
}

/// The bytes of the runs of a checkpoint, process by process, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages(pub Vec<u8>);
