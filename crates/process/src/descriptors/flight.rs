//! What is in flight in the queues of unix sockets (`SCM_RIGHTS`, `unix(7)`): open file descriptions that may be in no table.
//!
//! A look into a queue gives duplicates of what is in flight there. For as long as the workload is stopped the supervisor keeps
//! them, and is the holder of those that nobody else has: they are captured like all others, through it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Descriptors, Entry, check_passing};
use crate::checkpoint::{Object, ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::object::descriptor::{At, Holder, Kind, MAX_DEPTH};
use crate::object::unix::{Role, UnixSocket};
use crate::refusals::Refusals;
use crate::sys::bpf::files::{Lister, OpenFile};
use crate::sys::{proc, task};
use crate::tree::Process;

const ADVICE: &str = "it is kept as soon as it is received";

/// How to reach the process that holds something.
pub(super) fn pidfd_of<'a>(
    own: Option<&'a OwnedFd>,
    holder: &Holder,
    processes: &'a BTreeMap<Pid, Process>,
) -> Option<BorrowedFd<'a>> {
    match holder.in_flight {
        true => own.map(AsFd::as_fd),
        false => processes.get(&holder.process).map(|process| process.pidfd.as_fd()),
    }
}

pub(super) fn refuse(holder: &Holder, what: &str) -> Error {
    let what = format!("{what} (in flight in a unix socket)");
    Error::Unsupported { pid: holder.process, what, advice: ADVICE }
}

impl Descriptors {
    pub(super) fn pidfd_of<'a>(
        &'a self,
        holder: &Holder,
        processes: &'a BTreeMap<Pid, Process>,
    ) -> Option<BorrowedFd<'a>> {
        pidfd_of(self.own.as_deref(), holder, processes)
    }

    /// Where an open file description can be looked at.
    pub(super) fn at<'a>(
        &'a self,
        entry: &'a Entry,
        processes: &'a BTreeMap<Pid, Process>,
    ) -> Option<At<'a>> {
        let (holder, others) = entry.holders.split_first()?;
        let pidfd = self.pidfd_of(holder, processes)?;
        Some(At { holder: *holder, others, pidfd, file: entry.seen.map(|seen| seen.file) })
    }

    /// To be called before the workload runs again: a duplicate would keep open what it closes.
    pub(crate) fn let_go_of_flights(&mut self) {
        self.flights.clear();
    }

    /// Finds what is in flight, also in what is in flight itself.
    pub(super) fn find_in_flight(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let is_unix = |entry: &Entry| matches!(entry.kind, Kind::Unix { .. }) && !entry.holders.is_empty();
        let mut next: Vec<ObjectId> =
            self.entries.iter().filter(|(_, entry)| is_unix(entry)).map(|(id, _)| *id).collect();
        let mut carried = HashMap::new();
        while let Some(id) = next.pop() {
            let Some(entry) = self.entries.get(&id) else { continue };
            let Kind::Unix { inode } = entry.kind else { continue };
            let Some((holder, others)) = entry.holders.split_first() else { continue };
            let Some(pidfd) = pidfd_of(self.own.as_deref(), holder, processes) else { continue };
            let at = At { holder: *holder, others, pidfd, file: entry.seen.map(|seen| seen.file) };
            let process = holder.process;
            let found = refusals.pass(self.capturer.in_flight(inode, &at))?.unwrap_or_default();
            if found.is_empty() {
                continue;
            }
            let listed = own_files()?;
            let mut messages = Vec::new();
            for duplicates in found {
                let mut ids = Vec::new();
                for duplicate in duplicates {
                    let taken = self.take_up(duplicate, process, &listed);
                    if let Some((id, is_new)) = refusals.pass(taken)? {
                        ids.push(id);
                        next.extend(is_new.then_some(id));
                    }
                }
                messages.push(ids);
            }
            carried.insert(inode, messages);
        }
        self.capturer.set_carried(carried);
        Ok(())
    }

    /// Which object a duplicate is, and whether nobody else has it and it was not met before in this stop.
    fn take_up(
        &mut self,
        duplicate: OwnedFd,
        process: Pid,
        listed: &HashMap<i32, OpenFile>,
    ) -> Result<(ObjectId, bool)> {
        let own = match &self.own {
            Some(own) => Arc::clone(own),
            None => {
                let pid = std::process::id() as i32;
                let new = Arc::new(task::pidfd_open(pid).attempt(|| "refer to this process".to_owned())?);
                self.own = Some(Arc::clone(&new));
                new
            }
        };
        // The thread that is in the workload's network namespace.
        let (tid, fd) = (nix::unistd::gettid().as_raw(), duplicate.as_raw_fd());
        let holder = Holder { tid, process, fd, root: self.root, in_flight: true };
        let file = listed.get(&fd);
        let at = At { holder, others: &[], pidfd: own.as_fd(), file: file.map(|file| file.file) };
        let link = proc::descriptor_link(tid, fd).attempt(|| "read what is in flight".to_owned())?;
        let row = self.identify(&at, &[], link, file)?;
        let id = row.descriptor.object;
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.holders.is_empty()) else {
            return Ok((id, false));
        };
        if entry.kind == Kind::Epoll {
            return Err(at.refuse("an epoll instance", ADVICE));
        }
        if let Some(file) = file {
            check_passing(entry.kind, file, &at)?;
        }
        entry.holders.push(holder);
        entry.seen = file.copied();
        self.flights.push(duplicate);
        Ok((id, true))
    }

    /// That sockets in flight in each other's queues can be built one before the other. To be called when they were captured.
    pub(super) fn check_nesting(&self) -> Result<()> {
        let sockets: HashMap<ObjectId, &UnixSocket> = self
            .ahead
            .iter()
            .filter_map(|(id, object)| match object {
                Object::Unix(socket) => Some((*id, &**socket)),
                _ => None,
            })
            .collect();
        let mut needs: HashMap<ObjectId, HashSet<ObjectId>> = HashMap::new();
        for (id, socket) in &sockets {
            let own = built_with(*id, socket);
            let carried = socket.queue.iter().flat_map(|message| &message.descriptors);
            let others = carried.filter_map(|id| Some(built_with(*id, sockets.get(id)?)));
            let peer = match socket.role {
                Role::Sending { peer } => sockets.get(&peer).map(|other| built_with(peer, other)),
                _ => None,
            };
            needs.entry(own).or_default().extend(others.chain(peer));
        }
        // In each round those go that need nobody who is left.
        for _ in 0..MAX_DEPTH {
            let free: HashSet<ObjectId> =
                needs.iter().filter(|(_, others)| others.is_empty()).map(|(id, _)| *id).collect();
            needs.retain(|id, _| !free.contains(id));
            needs.values_mut().for_each(|others| others.retain(|id| !free.contains(id)));
            if needs.is_empty() {
                return Ok(());
            }
        }
        let what = "unix sockets in flight in each other's queues";
        let holders = needs.keys().filter_map(|id| self.entries.get(id)?.holders.first());
        Err(holders
            .map(|holder| refuse(holder, what))
            .next()
            .unwrap_or_else(|| Error::Mismatch(what.to_owned())))
    }
}

/// Sockets that are built at once, by one of them.
fn built_with(id: ObjectId, socket: &UnixSocket) -> ObjectId {
    match socket.role {
        Role::Connected { peer } => id.min(peer),
        Role::Waiting { listener, .. } => listener,
        _ => id,
    }
}

/// The open files of this process by their numbers; empty where the kernel does not list them.
fn own_files() -> Result<HashMap<i32, OpenFile>> {
    let what = || "list the supervisor's own open files".to_owned();
    let Ok(lister) = Lister::shared() else { return Ok(HashMap::new()) };
    let table = lister.table(std::process::id() as i32).map_err(std::io::Error::other).attempt(what)?;
    Ok(table.read().attempt(what)?.into_iter().map(|file| (file.fd, file)).collect())
}
