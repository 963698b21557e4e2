//! The shell's pseudo-terminals: which session each controls is part of the process tree, since a process gets its
//! controlling terminal by opening it, as leader of a session, or from the one that forks it, and in no other way.
//!
//! What is in them is written when they are built ([`crate::object::terminal_build`]).

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use crate::checkpoint::{Object, ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::object::descriptor::StatusFlags;
use crate::object::terminal::{Side, Terminal, TerminalEnd};
use crate::object::terminal_build::Pair;
use crate::shell::{Shell, ShellProcess, run_in, run_unchecked};
use crate::sys::remote::Batch;
use crate::sys::{proc, task, terminal};

/// A terminal that controls a session.
#[derive(Debug)]
pub(crate) struct Controlling {
    pair: Pair,
    /// Its leader.
    session: Pid,
}

/// By their numbers.
pub(crate) type Terminals = HashMap<u32, Controlling>;

impl Shell {
    /// A process has another controlling terminal from here on.
    pub(crate) fn control(&mut self, pid: Pid, index: Option<u32>) -> Result<()> {
        let Some(index) = index else { return self.lose_terminal(pid) };
        let what = || format!("give process {pid} the terminal {index}");
        // Another terminal of the same number, which is gone.
        if self.terminals.get(&index).is_some_and(|held| held.session != pid) {
            self.terminals.remove(&index);
        }
        if !self.terminals.contains_key(&index) {
            let mut pair = Pair::make(&self.root(), index)?;
            pair.slave()?;
            self.terminals.insert(index, Controlling { pair, session: pid });
        }
        let process = self.get(pid)?;
        let mut batch = Batch::new();
        let path = batch.path(&format!("/dev/pts/{index}"));
        // The table is empty, so this is descriptor 0.
        batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, libc::O_RDWR as u64]);
        batch.call(libc::SYS_close, &[0]);
        run_in(process, &mut batch)?;
        match proc::terminal(process.host).attempt(what)? {
            Some(now) if now == index => Ok(()),
            _ => Err(Error::Mismatch(format!("process {pid} could not get the terminal {index}"))),
        }
    }

    fn lose_terminal(&mut self, pid: Pid) -> Result<()> {
        if self.end_sessions_terminal(pid) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let path = batch.path("/dev/tty");
        let flags = (libc::O_RDWR | libc::O_NOCTTY) as u64;
        batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags]);
        batch.call(libc::SYS_ioctl, &[0, terminal::TIOCNOTTY]);
        batch.call(libc::SYS_close, &[0]);
        // It has gone from the whole session already, if that has lost it.
        run_unchecked(self.get(pid)?, &batch).map(drop)
    }

    /// A leader is without its terminal, as is everybody in its session.
    pub(crate) fn end_sessions_terminal(&mut self, leader: Pid) -> bool {
        let before = self.terminals.len();
        self.terminals.retain(|_, held| held.session != leader);
        before != self.terminals.len()
    }

    /// Lets go those that are gone, or control nobody any more.
    pub(crate) fn forget_unused_terminals(&mut self) {
        let wanted: HashMap<u32, Option<Pid>> =
            self.terminal_objects().map(|(_, terminal)| (terminal.index, terminal.session)).collect();
        self.terminals.retain(|index, held| wanted.get(index) == Some(&Some(held.session)));
    }

    fn terminal_objects(&self) -> impl Iterator<Item = (ObjectId, &Terminal)> {
        self.objects.iter().filter_map(|(id, object)| match object {
            Object::Terminal(terminal) => Some((*id, &**terminal)),
            _ => None,
        })
    }

    /// All descriptors of terminals, with what is in those.
    pub(crate) fn build_terminals(&self) -> Result<Vec<(ObjectId, OwnedFd)>> {
        let mut built = Vec::new();
        for (id, terminal) in self.terminal_objects() {
            let ends = self.objects.iter().filter_map(|(end, object)| match object {
                Object::TerminalEnd(object) if object.terminal == id => Some((*end, object)),
                _ => None,
            });
            let ends: Vec<(ObjectId, &TerminalEnd)> = ends.collect();
            self.build_terminal(terminal, &ends, &mut built)?;
        }
        Ok(built)
    }

    fn build_terminal(
        &self,
        terminal: &Terminal,
        ends: &[(ObjectId, &TerminalEnd)],
        built: &mut Vec<(ObjectId, OwnedFd)>,
    ) -> Result<()> {
        let attempt = || format!("open the terminal {} for the workload", terminal.index);
        let mut pair = match self.terminals.get(&terminal.index) {
            Some(held) => held.pair.try_clone().attempt(attempt)?,
            None => Pair::make(&self.root(), terminal.index)?,
        };
        let open = |pair: &Pair, flags: StatusFlags| {
            let fd = terminal::open_slave(pair.master.as_fd(), flags.access() | libc::O_NONBLOCK);
            let fd = fd.attempt(attempt)?;
            flags.restore(fd.as_fd())?;
            Ok::<_, Error>(fd)
        };
        let hung: Vec<_> = ends.iter().filter(|(_, end)| end.side == Side::Hung).collect();
        for (id, end) in &hung {
            built.push((*id, open(&pair, end.flags)?));
        }
        if !terminal.master_open {
            // The last descriptor of the master, with which all of the slave's are hung up.
            return Ok(());
        }
        if let Some((_, first)) = built.last().filter(|_| !hung.is_empty()) {
            terminal::hang_up(first.as_fd()).attempt(attempt)?;
        }
        pair.fill(terminal, &self.root())?;
        for (id, end) in ends {
            let fd = match end.side {
                Side::Hung => continue,
                Side::Master => {
                    let master = pair.master.try_clone().attempt(attempt)?;
                    end.flags.restore(master.as_fd())?;
                    master
                }
                Side::Slave => open(&pair, end.flags)?,
                Side::Controlling => match self.terminals.get(&terminal.index) {
                    Some(held) => self.open_controlling(self.get(held.session)?, end.flags)?,
                    None => open(&pair, end.flags)?,
                },
            };
            built.push((*id, fd));
        }
        if terminal.locked {
            terminal::set_locked(pair.master.as_fd(), true).attempt(attempt)?;
        }
        Ok(())
    }

    /// Through a process that has it, so that it is known by that name.
    fn open_controlling(&self, process: &ShellProcess, flags: StatusFlags) -> Result<OwnedFd> {
        let mut batch = Batch::new();
        let path = batch.path("/dev/tty");
        let how = (flags.access() | libc::O_NOCTTY | libc::O_NONBLOCK) as u64;
        batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, how]);
        run_in(process, &mut batch)?;
        let attempt = || "take a descriptor of /dev/tty".to_owned();
        let pidfd = task::pidfd_open(process.host).attempt(attempt)?;
        let fd = task::take_descriptor(pidfd.as_fd(), 0).attempt(attempt)?;
        flags.restore(fd.as_fd())?;
        let mut batch = Batch::new();
        batch.call(libc::SYS_close, &[0]);
        run_in(process, &mut batch)?;
        Ok(fd)
    }

    /// Which groups are in the foreground. One that has ended is still known by the terminal, so it is made for that.
    pub(crate) fn set_foregrounds(&mut self) -> Result<()> {
        let wanted: Vec<(Pid, Pid)> = self
            .terminal_objects()
            .filter_map(|(_, terminal)| Some((terminal.session?, terminal.group?)))
            .filter(|(session, _)| self.terminals.values().any(|held| held.session == *session))
            .collect();
        for (session, group) in wanted {
            let exists = self.processes.values().any(|process| {
                let status = proc::status(process.host);
                status.is_ok_and(|status| status.namespaced_process_group.last() == Some(&group))
            });
            let gone = !exists && !self.zombies.contains_key(&group) && !self.processes.contains_key(&group);
            if gone {
                self.fork(session, group)?;
                self.call(group, libc::SYS_setpgid, &[0, 0])?;
            }
            let mut batch = Batch::new();
            let path = batch.path("/dev/tty");
            let flags = (libc::O_RDWR | libc::O_NOCTTY) as u64;
            batch.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags]);
            let number = batch.bytes(&group.to_ne_bytes());
            batch.call(libc::SYS_ioctl, &[0, terminal::TIOCSPGRP, number]);
            batch.call(libc::SYS_close, &[0]);
            run_in(self.get(session)?, &mut batch)?;
            if gone {
                self.exit(group, 0)?;
                self.reap(group)?;
            }
        }
        Ok(())
    }
}
