//! A process tree as a history that leads to it. Its parents, sessions, groups and terminals can each be had in one way
//! only: a session is inherited, or begun by a process that then leads it; so is a controlling terminal; a group has to
//! exist in the session. Where those have ended who made it so, others are made in their place, which end again.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::{Pid, TreeEvent};

/// Init, which is not captured.
const INIT: Pid = 1;

/// A process as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub parent: Pid,
    pub session: Pid,
    pub group: Pid,
    pub terminal: Option<u32>,
    /// Orphans among its descendants become its children.
    pub reaper: bool,
    /// Of a zombie: how it ended.
    pub ended: Option<i32>,
}

type Members = BTreeMap<Pid, Member>;

/// How `members` could have come to be; an error says why they could not.
pub(crate) fn history(members: &Members) -> Result<Vec<TreeEvent>, String> {
    let mut writer = Writer::new(members)?;
    writer.live(INIT)?;
    writer.join_groups()?;
    writer.end();
    Ok(writer.log)
}

struct Writer<'a> {
    members: &'a Members,
    log: Vec<TreeEvent>,
    /// The session that each leader has to be born in, for the sake of children that it had before it led its own.
    born_in: BTreeMap<Pid, Pid>,
    /// Those that their parents cannot have forked, by their sessions.
    adopted: BTreeMap<Pid, Vec<Pid>>,
    /// Sessions whose leaders are gone, by who made these.
    lost: BTreeMap<Pid, Vec<Pid>>,
    /// As of the end of the log.
    now: BTreeMap<Pid, (Pid, Option<u32>)>,
    used: BTreeSet<Pid>,
    made_up: Vec<Pid>,
}

impl<'a> Writer<'a> {
    fn new(members: &'a Members) -> Result<Self, String> {
        let mut born_in = BTreeMap::new();
        for (pid, member) in members {
            if let Some(parent) = members.get(&member.parent)
                && leads(member.parent, parent)
                && !leads(*pid, member)
                && member.session != member.parent
                && let Some(other) = born_in.insert(member.parent, member.session)
                && other != member.session
            {
                return Err(format!("process {} has children in sessions of others", member.parent));
            }
        }
        let used = members.iter().flat_map(|(pid, one)| [*pid, one.session, one.group]).collect();
        let mut writer = Self {
            members,
            log: Vec::new(),
            born_in,
            adopted: BTreeMap::new(),
            lost: BTreeMap::new(),
            now: BTreeMap::new(),
            used,
            made_up: Vec::new(),
        };
        for (pid, member) in members {
            if let Some(session) = writer.needs(*pid, member)
                && !writer.is_natural(*pid, member)
            {
                writer.adopted.entry(session).or_default().push(*pid);
            }
        }
        for (session, adopted) in &writer.adopted {
            if members.contains_key(session) {
                continue;
            }
            let parents: BTreeSet<Pid> =
                adopted.iter().filter_map(|pid| Some(members.get(pid)?.parent)).collect();
            match (parents.first(), parents.len()) {
                (Some(parent), 1) => writer.lost.entry(*parent).or_default().push(*session),
                _ => return Err(format!("session {session} has orphans of several processes")),
            }
        }
        Ok(writer)
    }

    /// The session that a process has to be born in, if it matters.
    fn needs(&self, pid: Pid, member: &Member) -> Option<Pid> {
        if leads(pid, member) { self.born_in.get(&pid).copied() } else { Some(member.session) }
    }

    /// Its parent can have forked it.
    fn is_natural(&self, pid: Pid, member: &Member) -> bool {
        let Some(needed) = self.needs(pid, member) else { return true };
        self.members.get(&member.parent).is_some_and(|parent| {
            parent.session == needed || self.born_in.get(&member.parent) == Some(&needed)
        })
    }

    /// Who gets the children of a process that ends.
    fn reaper_of(&self, pid: Pid) -> Pid {
        let mut above = self.members.get(&pid).map_or(INIT, |member| member.parent);
        for _ in 0..=self.members.len() {
            match self.members.get(&above) {
                Some(member) if !member.reaper => above = member.parent,
                _ => break,
            }
        }
        above
    }

    fn fork(&mut self, parent: Pid, child: Pid) {
        self.log.push(TreeEvent::Fork { parent, child });
        // Init's children lead sessions of their own.
        let inherited = self.now.get(&parent).copied().unwrap_or((child, None));
        self.now.insert(child, inherited);
    }

    fn make_up(&mut self, parent: Pid) -> Result<Pid, String> {
        let free = (2..Pid::MAX).find(|pid| !self.used.contains(pid));
        let pid = free.ok_or_else(|| "no process id is free".to_owned())?;
        self.used.insert(pid);
        self.fork(parent, pid);
        Ok(pid)
    }

    fn born(&mut self, parent: Pid, child: Pid) -> Result<(), String> {
        self.fork(parent, child);
        self.log.push(TreeEvent::Exec { pid: child });
        self.live(child)
    }

    /// Everything that a process does after it was forked.
    fn live(&mut self, pid: Pid) -> Result<(), String> {
        let members = self.members;
        let own = members.get(&pid);
        let is_leader = own.is_some_and(|own| leads(pid, own));
        let natural = |writer: &Self, child: Pid, member: &Member| {
            member.parent == pid && child != pid && writer.is_natural(child, member)
        };
        let mut children: Vec<(Pid, &Member)> = members
            .iter()
            .filter(|(child, member)| natural(self, **child, member))
            .map(|(child, member)| (*child, member))
            .collect();
        if let Some(own) = own.filter(|_| is_leader) {
            if let Some(before) = self.born_in.get(&pid).copied() {
                let early: Vec<Pid> = children
                    .iter()
                    .filter(|(child, member)| self.needs(*child, member) == Some(before))
                    .map(|(child, _)| *child)
                    .collect();
                children.retain(|(child, _)| !early.contains(child));
                for child in early {
                    self.born(pid, child)?;
                }
            }
            // Forked by init it does so already.
            if own.parent != INIT || self.born_in.contains_key(&pid) {
                self.log.push(TreeEvent::Session { pid });
            }
            self.now.insert(pid, (pid, None));
        }
        if own.is_some_and(|own| own.reaper) {
            self.log.push(TreeEvent::Reaper { pid, on: true });
        }
        let mut adopted = self.adopted.remove(&pid).unwrap_or_default();
        let terminal = own.and_then(|own| own.terminal).filter(|_| is_leader);
        if let Some(terminal) = terminal {
            for (child, _) in children.extract_if(.., |(_, member)| member.terminal != Some(terminal)) {
                self.born(pid, child)?;
            }
            let without = |orphan: &mut Pid| members[orphan].terminal != Some(terminal);
            for orphan in adopted.extract_if(.., without).collect::<Vec<_>>() {
                self.adopt(pid, orphan)?;
            }
            self.log.push(TreeEvent::Terminal { pid, terminal: Some(terminal) });
            self.now.insert(pid, (pid, Some(terminal)));
        }
        for (child, _) in children {
            self.born(pid, child)?;
        }
        for orphan in adopted {
            self.adopt(pid, orphan)?;
        }
        for session in self.lost.remove(&pid).unwrap_or_default() {
            if own.is_some_and(|own| !own.reaper) {
                return Err(format!("process {pid} has children of others"));
            }
            self.fork(pid, session);
            if pid != INIT {
                self.log.push(TreeEvent::Session { pid: session });
            }
            self.now.insert(session, (session, None));
            self.made_up.push(session);
            for orphan in self.adopted.remove(&session).unwrap_or_default() {
                self.born(session, orphan)?;
            }
        }
        Ok(())
    }

    /// Forks an orphan by way of another, which ends.
    fn adopt(&mut self, leader: Pid, orphan: Pid) -> Result<(), String> {
        let parent = self.members.get(&orphan).map(|member| member.parent);
        let leader_reaps = self.members.get(&leader).is_some_and(|member| member.reaper);
        let reaper = if leader_reaps { leader } else { self.reaper_of(leader) };
        if parent != Some(reaper) {
            return Err(format!("process {orphan} is another's child"));
        }
        let between = self.make_up(leader)?;
        self.born(between, orphan)?;
        self.log.push(TreeEvent::Exit { pid: between, status: 0 });
        self.log.push(TreeEvent::Reaped { pid: between });
        Ok(())
    }

    /// Every process into its group, leaders of groups first.
    fn join_groups(&mut self) -> Result<(), String> {
        let members = self.members;
        let join = |writer: &mut Self, pid: Pid, group: Pid| {
            let now = writer.now.entry(pid).or_insert((pid, None));
            if now.0 != group {
                now.0 = group;
                writer.log.push(TreeEvent::Group { pid, group });
            }
        };
        let others: Vec<(Pid, &Member)> =
            members.iter().filter(|(pid, member)| !leads(**pid, member)).map(|(p, m)| (*p, m)).collect();
        // Also those that have left the groups that they made.
        let groups: BTreeSet<Pid> = others.iter().map(|(_, member)| member.group).collect();
        for group in groups {
            if members.get(&group).is_some_and(|leader| !leads(group, leader)) {
                join(self, group, group);
            }
        }
        let mut made_up = Vec::new();
        for (pid, member) in &others {
            let group = member.group;
            if !members.contains_key(&group) && !self.made_up.contains(&group) && !made_up.contains(&group) {
                self.fork(*pid, group);
                join(self, group, group);
                made_up.push(group);
            }
        }
        // A group lasts as long as somebody is in it: who made it, and belongs elsewhere, leaves when another has come.
        let mut left: Vec<(Pid, Pid)> = others.iter().map(|(pid, member)| (*pid, member.group)).collect();
        while !left.is_empty() {
            let free = left.iter().position(|(pid, group)| {
                let stays = group == pid || left.iter().all(|(other, wanted)| other == pid || wanted != pid);
                stays || self.now.iter().any(|(other, (now, _))| other != pid && now == pid)
            });
            let Some(free) = free else {
                return Err("processes are in each other's groups".to_owned());
            };
            let (pid, group) = left.remove(free);
            join(self, pid, group);
        }
        for (pid, member) in members {
            let now = self.now.get(pid).and_then(|now| now.1);
            match (now, member.terminal) {
                (now, wanted) if now == wanted => {}
                // A zombie has none, and has let go of it at its end.
                (Some(_), None) if member.ended.is_some() => {}
                (Some(_), None) => self.log.push(TreeEvent::Terminal { pid: *pid, terminal: None }),
                _ => return Err(format!("process {pid} has a terminal that its session has not")),
            }
        }
        for pid in made_up {
            self.log.push(TreeEvent::Exit { pid, status: 0 });
            self.log.push(TreeEvent::Reaped { pid });
        }
        Ok(())
    }

    fn end(&mut self) {
        for (pid, member) in self.members {
            self.log.extend(member.ended.map(|status| TreeEvent::Exit { pid: *pid, status }));
        }
        for pid in std::mem::take(&mut self.made_up) {
            self.log.push(TreeEvent::Exit { pid, status: 0 });
            self.log.push(TreeEvent::Reaped { pid });
        }
    }
}

fn leads(pid: Pid, member: &Member) -> bool {
    member.session == pid
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes as the kernel keeps them.
    #[derive(Default)]
    struct Model {
        members: Members,
    }

    impl Model {
        fn reaper_of(&self, pid: Pid) -> Pid {
            let mut above = self.members[&pid].parent;
            while let Some(member) = self.members.get(&above) {
                if member.reaper && member.ended.is_none() {
                    break;
                }
                above = member.parent;
            }
            above
        }

        fn apply(&mut self, event: &TreeEvent) {
            match *event {
                TreeEvent::Fork { parent, child } => {
                    assert!(!self.members.contains_key(&child), "{child} exists");
                    let member = match self.members.get(&parent) {
                        Some(parent_member) => {
                            assert_eq!(parent_member.ended, None);
                            Member { parent, reaper: false, ..parent_member.clone() }
                        }
                        None => {
                            assert_eq!(parent, INIT);
                            Member {
                                parent,
                                session: child,
                                group: child,
                                terminal: None,
                                reaper: false,
                                ended: None,
                            }
                        }
                    };
                    self.members.insert(child, member);
                }
                TreeEvent::Session { pid } => {
                    assert!(self.members.values().all(|member| member.group != pid), "{pid} leads a group");
                    let member = self.members.get_mut(&pid).unwrap();
                    (member.session, member.group, member.terminal) = (pid, pid, None);
                }
                TreeEvent::Group { pid, group } => {
                    let session = self.members[&pid].session;
                    assert_ne!(session, pid);
                    let exists = group == pid
                        || self.members.values().any(|one| one.group == group && one.session == session);
                    assert!(exists, "group {group} is not there");
                    self.members.get_mut(&pid).unwrap().group = group;
                }
                TreeEvent::Terminal { pid, terminal } => {
                    let member = self.members.get_mut(&pid).unwrap();
                    assert!(terminal.is_none() || (member.session == pid && member.terminal.is_none()));
                    member.terminal = terminal;
                }
                TreeEvent::Reaper { pid, on } => self.members.get_mut(&pid).unwrap().reaper = on,
                TreeEvent::Exit { pid, status } => {
                    let reaper = self.reaper_of(pid);
                    for member in self.members.values_mut().filter(|member| member.parent == pid) {
                        member.parent = reaper;
                    }
                    let member = self.members.get_mut(&pid).unwrap();
                    (member.ended, member.terminal, member.reaper) = (Some(status), None, false);
                }
                TreeEvent::Reaped { pid } => {
                    assert!(self.members.remove(&pid).unwrap().ended.is_some());
                }
                TreeEvent::Exec { .. } => {}
            }
        }

        fn again(&self) -> Result<Model, String> {
            let mut again = Model::default();
            for event in history(&self.members)? {
                again.apply(&event);
            }
            Ok(again)
        }
    }

    /// A small generator of numbers (xorshift64).
    fn next(state: &mut u64, below: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state % below as u64) as usize
    }

    #[test]
    fn whatever_a_tree_has_been_through_its_history_leads_to_it() {
        let mut refused = 0;
        for seed in 1..3000u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut model = Model::default();
            model.apply(&TreeEvent::Fork { parent: INIT, child: 2 });
            let mut fresh = 10;
            for _ in 0..30 {
                let alive: Vec<Pid> = model
                    .members
                    .iter()
                    .filter(|(_, one)| one.ended.is_none())
                    .map(|(pid, _)| *pid)
                    .collect();
                let pid = alive[next(&mut state, alive.len())];
                let member = model.members[&pid].clone();
                match next(&mut state, 9) {
                    0..=3 => {
                        model.apply(&TreeEvent::Fork { parent: pid, child: fresh });
                        fresh += 1;
                    }
                    4 if model.members.values().all(|one| one.group != pid) => {
                        model.apply(&TreeEvent::Session { pid });
                    }
                    5 if member.session != pid => {
                        let groups: Vec<Pid> = model
                            .members
                            .values()
                            .filter(|one| one.session == member.session)
                            .map(|one| one.group)
                            .chain([pid])
                            .collect();
                        let group = groups[next(&mut state, groups.len())];
                        model.apply(&TreeEvent::Group { pid, group });
                    }
                    6 if pid != 2 => model.apply(&TreeEvent::Exit { pid, status: 0 }),
                    7 => {
                        let zombie = model.members.iter().find(|(_, one)| one.ended.is_some());
                        if let Some((pid, _)) = zombie {
                            model.apply(&TreeEvent::Reaped { pid: *pid });
                        }
                    }
                    8 if member.session == pid && member.terminal.is_none() => {
                        let terminal = Some(pid as u32);
                        model.apply(&TreeEvent::Terminal { pid, terminal });
                    }
                    _ => {}
                }
                // As the kernel does when a leader ends.
                let lost: Vec<u32> = model
                    .members
                    .iter()
                    .filter(|(_, one)| one.ended.is_none())
                    .filter_map(|(_, one)| one.terminal)
                    .collect();
                for terminal in lost {
                    let leader = model.members.get(&(terminal as Pid));
                    if leader.is_none_or(|leader| leader.ended.is_some()) {
                        for one in model.members.values_mut().filter(|one| one.terminal == Some(terminal)) {
                            one.terminal = None;
                        }
                    }
                }
            }
            match model.again() {
                Ok(again) => assert_eq!(again.members, model.members, "seed {seed}"),
                Err(_) => refused += 1,
            }
        }
        // Those that had children in several sessions, one after the other, and the like.
        assert!(refused < 300, "{refused} of 3000 histories cannot be made up");
    }
}
