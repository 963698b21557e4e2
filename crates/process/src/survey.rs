//! What a workload uses, and what would become of each of it under protection: a capture that goes on past what it refuses,
//! and of which nothing is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, FileChange, Pid};
use crate::error::Result;
use crate::object::Object;
use crate::object::memory::Backing;
use crate::object::shared::Kind as SharedKind;
use crate::object::tcp::State;
use crate::refusals::{Refusal, Refusals};
use crate::sys::proc;
use crate::tree::Workload;

/// Most examples that are remembered of what a program could not write, or was not given: more do not help anybody.
const MAX_REMEMBERED: usize = 1000;

/// A kind of object that is kept, and one of those there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub what: &'static str,
    pub count: usize,
    pub pid: Pid,
    pub example: String,
}

/// A call that was answered as if the kernel lacked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    pub call: String,
    /// An errno.
    pub error: i32,
    pub count: usize,
    pub pid: Pid,
}

/// What was found at one moment, or of a moment before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub kept: Vec<Kept>,
    pub refused: Vec<Refusal>,
}

/// What is seen of a program while it runs, and is not there any more at a survey.
#[derive(Debug, Default)]
pub struct Observed {
    hidden: BTreeMap<String, Hidden>,
    refused: Vec<Refusal>,
    unwritten: BTreeMap<PathBuf, Pid>,
}

impl Observed {
    pub(crate) fn hidden(&mut self, pid: Pid, call: &str, error: i32) {
        if self.hidden.len() < MAX_REMEMBERED || self.hidden.contains_key(call) {
            let new = || Hidden { call: call.to_owned(), error, count: 0, pid };
            self.hidden.entry(call.to_owned()).or_insert_with(new).count += 1;
        }
    }

    pub(crate) fn refused(&mut self, pid: Pid, what: &str, advice: &'static str) {
        let refusal = Refusal { pid, what: what.to_owned(), advice, passing: false };
        if self.refused.len() < MAX_REMEMBERED && !self.refused.contains(&refusal) {
            self.refused.push(refusal);
        }
    }

    pub(crate) fn could_not_write(&mut self, pid: Pid, path: PathBuf) {
        if self.unwritten.len() < MAX_REMEMBERED {
            self.unwritten.entry(path).or_insert(pid);
        }
    }

    pub fn all_hidden(&self) -> impl Iterator<Item = &Hidden> {
        self.hidden.values()
    }

    /// What it has done that cannot be protected, also where that is over.
    pub fn all_refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// Files and directories that it wanted to write, and who did, where nothing can be written.
    pub fn unwritten(&self) -> impl Iterator<Item = (&PathBuf, Pid)> {
        self.unwritten.iter().map(|(path, pid)| (path, *pid))
    }
}

impl Workload {
    /// What it uses now. The tree must be frozen; nothing may be protecting it.
    pub fn survey(&mut self) -> Result<Survey> {
        self.refusals = Refusals::Listed(Vec::new());
        let captured = self.capture_whole();
        let mut refused = self.refusals.take();
        for (pid, process) in &self.processes {
            // Of these the capture says the first.
            let Ok(text) = std::fs::read_to_string(proc::path(process.host, "maps")) else { continue };
            for refusal in crate::object::memory::refused(*pid, &text, &self.scratch) {
                if !refused.contains(&refusal) {
                    refused.push(refusal);
                }
            }
        }
        self.stop_capturing();
        let checkpoint = captured?;
        Ok(Survey { kept: inventory(&checkpoint), refused })
    }

    /// What has been seen of it, if it was [launched to be looked at](Workload::launch_observed).
    pub fn observed(&self) -> Option<&Observed> {
        self.observed.as_deref()
    }
}

/// All that is in a first checkpoint, by kind.
fn inventory(checkpoint: &Checkpoint) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    let mut add = |what: &'static str, count: usize, pid: Pid, example: String| {
        if count == 0 {
            return;
        }
        match kept.iter_mut().find(|known| known.what == what) {
            Some(known) => known.count += count,
            None => kept.push(Kept { what, count, pid, example }),
        }
    };
    for process in &checkpoint.processes {
        let pid = process.pid;
        let program = process.attributes.as_ref().map(|attributes| attributes.executable.clone());
        add("process", 1, pid, program.unwrap_or_default());
        let name = process.threads.first().map(|thread| thread.name.clone()).unwrap_or_default();
        add("thread", process.threads.len() + process.same_threads.len(), pid, name);
        let handlers = process.actions.as_deref().unwrap_or_default().len();
        add("signal handler", handlers, pid, String::new());
        add("signal that waits", process.pending.len(), pid, String::new());
        let timers = process.interval_timers.iter().flatten().filter(|timer| **timer != (0, 0)).count();
        add("interval timer", timers, pid, String::new());
        add("POSIX timer", process.posix_timers.len(), pid, String::new());
        for mapping in process.memory.layout.iter().flatten() {
            let (what, example) = match &mapping.backing {
                Backing::Anonymous if mapping.heap => ("heap", String::new()),
                Backing::Anonymous => ("private memory", String::new()),
                Backing::File { path, .. } if mapping.shared => ("shared mapping of a file", path.clone()),
                Backing::File { path, .. } => ("private mapping of a file", path.clone()),
                Backing::Object { .. } if mapping.shared => ("mapping of shared memory", String::new()),
                Backing::Object { .. } => ("private mapping of a scratch file", String::new()),
                Backing::Vdso | Backing::Vvar => continue,
            };
            add(what, 1, pid, example);
        }
    }
    for change in &checkpoint.shared {
        let (what, example) = match &change.kind {
            SharedKind::Anonymous => ("shared memory without a name", String::new()),
            SharedKind::Memfd { name, .. } => ("memfd", name.clone()),
            SharedKind::Named { path } => ("mapped scratch file", path.clone()),
            SharedKind::Removed { path, .. } => ("mapped scratch file that was removed", path.clone()),
            SharedKind::Segment { .. } => ("System V shared memory", String::new()),
        };
        add(what, 1, crate::tree::FIRST, example);
    }
    for (id, object) in &checkpoint.objects {
        let row = |table: &[crate::checkpoint::Descriptor]| {
            table.iter().find(|row| row.object == *id).map(|row| row.fd)
        };
        let holder = checkpoint
            .processes
            .iter()
            .find_map(|process| Some((process.pid, row(process.descriptors.as_deref()?)?)));
        let (pid, fd) = holder.unwrap_or((crate::tree::FIRST, -1));
        let (what, example) = describe(object);
        let example = if fd < 0 || !example.is_empty() { example } else { format!("descriptor {fd}") };
        add(what, 1, pid, example);
    }
    let is_file = |change: &&FileChange| {
        matches!(change, FileChange::File { .. } | FileChange::Blocks { .. } | FileChange::Node { .. })
    };
    let files = checkpoint.files.iter().filter(is_file).count();
    add("file of a scratch directory", files, crate::tree::FIRST, String::new());
    kept
}

/// What an object is called, and which one it is.
pub fn describe(object: &Object) -> (&'static str, String) {
    match object {
        Object::Tcp(tcp) => {
            let local = tcp.socket.local;
            match &tcp.socket.state {
                State::Listening { .. } => ("TCP listener", local.to_string()),
                State::Connected(connection) => {
                    ("TCP connection", format!("{local} to {}", connection.remote))
                }
                _ => ("TCP socket", local.to_string()),
            }
        }
        Object::TcpProgress(_) => ("TCP connection", String::new()),
        Object::Pipe(_) => ("pipe", String::new()),
        Object::PipeEnd(end) => match &end.path {
            Some(path) => ("end of a named pipe", path.clone()),
            None => ("end of a pipe", String::new()),
        },
        Object::Terminal(_) => ("pseudo-terminal", String::new()),
        Object::TerminalEnd(_) => ("end of a pseudo-terminal", String::new()),
        Object::EventFd(_) => ("eventfd", String::new()),
        Object::Epoll(_) => ("epoll instance", String::new()),
        Object::TimerFd(_) => ("timerfd", String::new()),
        Object::SignalFd(_) => ("signalfd", String::new()),
        Object::File(file) if file.deleted.is_some() => ("open file without a name", file.path.clone()),
        Object::File(file) => ("open file", file.path.clone()),
        Object::Directory(directory) => ("open directory", directory.path.clone()),
        Object::Device(device) => ("device", device.path.clone()),
        Object::Unix(_) => ("unix socket", String::new()),
        Object::Output(output) if output.stream == 1 => ("standard output", String::new()),
        Object::Output(_) => ("standard error", String::new()),
        Object::Datagram(_) => ("datagram or raw socket", String::new()),
        Object::Netlink(_) => ("netlink socket", String::new()),
        Object::Packet(_) => ("packet socket", String::new()),
        Object::Inotify(_) => ("inotify instance", String::new()),
        Object::PidFd(_) => ("pidfd", String::new()),
        Object::Namespace(namespace) => ("namespace of the workload's", namespace.name().to_owned()),
        Object::Queue(_) => ("POSIX message queue", String::new()),
    }
}
