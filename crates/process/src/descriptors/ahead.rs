//! What is captured before anything else: it may be there for a moment only, and is then waited for.

use std::collections::{BTreeMap, HashMap};

use super::{Descriptors, flight};
use crate::checkpoint::{Object, ObjectId, Pid};
use crate::error::Result;
use crate::object::descriptor::{At, Inode, Kind, StatusFlags};
use crate::object::terminal::{self, TerminalEnd};
use crate::object::{file, inotify};
use crate::refusals::Refusals;
use crate::tree::Process;

impl Descriptors {
    /// What may be there for a moment only.
    pub(super) fn look_ahead(
        &mut self,
        processes: &BTreeMap<Pid, Process>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.each_inotify(processes, |at, _| refusals.pass(inotify::check(at)).map(drop))?;
        self.look_into_proc(processes, refusals)?;
        // A descriptor on its way, a connection not accepted yet: unix sockets are captured now.
        let held = self.entries.iter().filter(|(_, entry)| !entry.holders.is_empty());
        let sockets: HashMap<u64, ObjectId> = held
            .filter_map(|(id, entry)| match entry.kind {
                Kind::Unix { inode } => Some((inode, *id)),
                _ => None,
            })
            .collect();
        let objects = |inode: Inode| match inode {
            Inode::Socket(inode) => sockets.get(&inode).copied(),
            Inode::Pipe(_) | Inode::Watched(_) => None,
        };
        self.ahead.clear();
        for (inode, id) in &sockets {
            let Some(entry) = self.entries.get(id) else { continue };
            let Some((holder, others)) = entry.holders.split_first() else { continue };
            let pidfd = flight::pidfd_of(self.own.as_deref(), holder, processes);
            let Some(pidfd) = pidfd else { continue };
            let at = At { holder: *holder, others, pidfd, file: entry.seen.map(|seen| seen.file) };
            let object = self.capturer.capture(Kind::Unix { inode: *inode }, &at, &objects);
            if let Some(object) = refusals.pass(object)? {
                self.ahead.insert(*id, object);
            }
        }
        refusals.pass(self.check_nesting())?;
        self.look_into_terminals(processes)
    }

    /// Programs look into files of processes for a moment, also of such as end meanwhile.
    fn look_into_proc(&self, processes: &BTreeMap<Pid, Process>, refusals: &mut Refusals) -> Result<()> {
        for entry in self.entries.values().filter(|entry| entry.link.starts_with("/proc/")) {
            if let Some(at) = self.at(entry, processes) {
                refusals.pass(file::check_of_process(&at))?;
            }
        }
        Ok(())
    }

    /// Pseudo-terminals and their descriptors.
    fn look_into_terminals(&mut self, processes: &BTreeMap<Pid, Process>) -> Result<()> {
        self.terminals_ahead.clear();
        let mut found = HashMap::new();
        for (id, entry) in &self.entries {
            let Kind::Terminal { slave, side } = entry.kind else { continue };
            let Some((holder, others)) = entry.holders.split_first() else { continue };
            let pidfd = flight::pidfd_of(self.own.as_deref(), holder, processes);
            let Some(pidfd) = pidfd else { continue };
            let at = At { holder: *holder, others, pidfd, file: entry.seen.map(|seen| seen.file) };
            let content = match found.entry(slave) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => new.insert(terminal::capture(&at, slave)?),
            };
            let next = &mut self.next;
            let (terminal, _) = *self.terminals.entry(slave).or_insert_with(|| {
                *next += 1;
                (ObjectId(*next - 1), None)
            });
            let end = TerminalEnd { terminal, side, flags: StatusFlags::default() };
            let end = terminal::capture_end(&at, end, content)?;
            self.ahead.insert(*id, Object::TerminalEnd(end));
        }
        self.terminals.retain(|slave, _| found.contains_key(slave));
        let found = found.into_iter().map(|(slave, content)| (slave, Object::Terminal(Box::new(content))));
        self.terminals_ahead.extend(found);
        Ok(())
    }

    /// There are pseudo-terminals, as of this stop.
    pub(crate) fn has_terminals(&self) -> bool {
        !self.terminals.is_empty()
    }
}
