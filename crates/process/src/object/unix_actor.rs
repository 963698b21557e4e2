//! Who does what the kernel remembers its doer for: a unix socket tells its other end's credentials (`SO_PEERCRED`), which are
//! those of the process that called `listen`, `connect` or `socketpair`. So these are called by that process of the shell, as that
//! user.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{ObjectId, Pid};
use crate::sys::descriptor as sys;
use crate::sys::ptrace::Tid;

/// Of a process at some moment: effective ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// As the workload sees it; 0 if it is none of the workload's.
    pub pid: Pid,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// What is to be done, to sockets of the supervisor's.
pub(crate) enum Task<'a> {
    Listen {
        socket: BorrowedFd<'a>,
        backlog: i32,
    },
    /// To the socket at a node of the file system.
    ConnectToNode {
        socket: BorrowedFd<'a>,
        node: BorrowedFd<'a>,
    },
    /// To an abstract name, with its leading NUL.
    ConnectToName {
        socket: BorrowedFd<'a>,
        name: &'a [u8],
    },
    /// A pair of this type.
    Pair {
        kind: i32,
    },
}

/// The path by which a descriptor's own process reaches what it stands for.
pub(crate) fn by_number(number: i32) -> String {
    format!("/proc/self/fd/{number}")
}

/// The processes of a shell, as far as they do something for its sockets.
pub(crate) trait Actors {
    /// Each by its number in the workload, with the one that it has here.
    fn numbers(&self) -> HashMap<Pid, Tid>;

    /// A pair, if that was asked for.
    fn act(&self, who: &Credentials, task: &Task<'_>) -> io::Result<Option<(OwnedFd, OwnedFd)>>;
}

/// A task with the duplicates that it is about, from the thread that is in the workload's root to the one that traces the shell.
struct Order {
    who: Credentials,
    task: Owned,
    reply: Sender<io::Result<Option<(OwnedFd, OwnedFd)>>>,
}

enum Owned {
    Listen(OwnedFd, i32),
    ConnectToNode(OwnedFd, OwnedFd),
    ConnectToName(OwnedFd, Vec<u8>),
    Pair(i32),
}

impl Owned {
    fn task(&self) -> Task<'_> {
        match self {
            Owned::Listen(socket, backlog) => Task::Listen { socket: socket.as_fd(), backlog: *backlog },
            Owned::ConnectToNode(socket, node) => {
                Task::ConnectToNode { socket: socket.as_fd(), node: node.as_fd() }
            }
            Owned::ConnectToName(socket, name) => Task::ConnectToName { socket: socket.as_fd(), name },
            Owned::Pair(kind) => Task::Pair { kind: *kind },
        }
    }
}

/// For the thread that builds: asks for what others have to do. Where it is not known on whose behalf, or nobody acts, it does so
/// itself.
pub(crate) struct Stage {
    orders: Sender<Order>,
    empty: bool,
    /// The numbers that the workload's processes have here.
    numbers: HashMap<Pid, Tid>,
    carried: Carried,
}

/// What is in flight in the queues of sockets that are to be built.
pub(crate) type Carried = HashMap<ObjectId, OwnedFd>;

/// For the thread that traces: has it done, until the other has gone.
pub(crate) struct Prompter<'a> {
    inbox: Receiver<Order>,
    actors: Option<&'a dyn Actors>,
}

pub(crate) fn stage(actors: Option<&dyn Actors>, carried: Carried) -> (Stage, Prompter<'_>) {
    let (orders, inbox) = channel();
    let numbers = actors.map(Actors::numbers).unwrap_or_default();
    (Stage { orders, empty: actors.is_none(), numbers, carried }, Prompter { inbox, actors })
}

impl Stage {
    pub fn carried(&self, ids: &[ObjectId]) -> io::Result<Vec<BorrowedFd<'_>>> {
        let built = |id| self.carried.get(id).map(AsFd::as_fd);
        let missing = || io::Error::other("what is in flight in a unix socket was not built");
        ids.iter().map(|id| built(id).ok_or_else(missing)).collect()
    }

    /// For a message of this process's. One that has ended leaves its user to another.
    pub fn as_seen_here(&self, who: &Credentials) -> libc::ucred {
        let number = self.numbers.get(&who.pid).or_else(|| self.numbers.values().next()).copied();
        let pid = number.unwrap_or(std::process::id() as Tid);
        libc::ucred { pid, uid: who.uid, gid: who.gid }
    }

    /// `None`: it is for the caller to do.
    fn actor<'a>(&self, who: Option<&'a Credentials>) -> Option<&'a Credentials> {
        who.filter(|_| !self.empty)
    }

    fn ask(&self, who: &Credentials, task: Owned) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let (reply, answer) = channel();
        let gone = || io::Error::other("the thread that traces the shell has gone");
        self.orders.send(Order { who: who.clone(), task, reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    pub fn listen(&self, who: Option<&Credentials>, socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
        match self.actor(who) {
            Some(who) => self.ask(who, Owned::Listen(socket.try_clone_to_owned()?, backlog)).map(drop),
            None => sys::listen(socket, backlog),
        }
    }

    /// To an abstract name, or to a path as it leads from here.
    pub fn connect(
        &self,
        who: Option<&Credentials>,
        socket: BorrowedFd<'_>,
        address: &[u8],
    ) -> io::Result<()> {
        let Some(who) = self.actor(who) else { return sys::unix_connect(socket, address) };
        let duplicate = socket.try_clone_to_owned()?;
        let task = match address {
            [0, ..] => Owned::ConnectToName(duplicate, address.to_vec()),
            path => {
                let path = std::ffi::OsStr::from_bytes(path);
                Owned::ConnectToNode(duplicate, open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
            }
        };
        self.ask(who, task).map(drop)
    }

    pub fn pair(&self, who: Option<&Credentials>, kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
        let Some(who) = self.actor(who) else { return sys::unix_pair(kind) };
        self.ask(who, Owned::Pair(kind))?.ok_or_else(|| io::Error::other("no pair of sockets was made"))
    }
}

impl Prompter<'_> {
    pub fn serve(self) {
        for order in self.inbox {
            let nobody = || Err(io::Error::other("nobody acts for sockets"));
            let result = self.actors.map_or_else(nobody, |actors| actors.act(&order.who, &order.task.task()));
            // Who does not wait for the answer has failed already, and says so.
            let _ = order.reply.send(result);
        }
    }
}
