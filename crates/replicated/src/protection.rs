//! When a commit may be acknowledged: the rules of one primary, without any I/O.
//!
//! The register (crate `cluster`) says which backups count, and how many of them hold whatever was acknowledged. A commit is
//! acknowledged once so many hold it; exposed, at once, or by policy not at all. Who joins counts from when the register
//! says so, and who is gone counts until then (R2): a backup that asks for its primary's place has stopped acknowledging
//! before.
//!
//! A change of the register is prepared before it is asked for. From then on only what satisfies the register as it is, as
//! it may have become by what was asked before, and as it is to be, is acknowledged; and it is asked for once that holds of
//! everything acknowledged so far. So whatever the register turns out to say, the rule by which somebody takes over holds.

use serde::Deserialize;

pub use outlive_cluster::MAX_BACKUPS;

/// How many of the backups hold a commit before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitFor {
    /// One. The primary may die, and no backup with it: all of them must be heard before one takes over.
    One,
    /// As many as make, with the primary, more than half of all: of two backups one, of three or four two. So many less one may
    /// die together with the primary.
    Majority,
    /// Every one. Any that lives takes over.
    #[default]
    All,
}

impl WaitFor {
    /// Of so many backups.
    ///
    /// ```
    /// use outlive_replicated::WaitFor;
    ///
    /// assert_eq!(WaitFor::One.needed(4), 1);
    /// assert_eq!(WaitFor::Majority.needed(4), 2);
    /// assert_eq!(WaitFor::All.needed(4), 4);
    /// ```
    pub fn needed(self, backups: usize) -> usize {
        match self {
            Self::One => backups.min(1),
            Self::Majority => backups.div_ceil(2),
            Self::All => backups,
        }
    }
}

/// What the seed nodes are asked for: the links of the backups that are to count, and how many of them hold what is
/// acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The numbers of their links.
    pub backups: Vec<u64>,
    /// How many.
    pub needed: usize,
}

/// How it stands with a primary's backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Exposed,
    /// One is being sent everything; it does not count yet.
    Joining,
    /// It has been sent everything up to this commit, and does not count yet.
    Plugged(u64),
    /// It holds everything, and the seed nodes are asked.
    Asking,
    /// All that count are there.
    Protected,
    /// One that counted is gone, and the seed nodes are asked.
    Losing,
    /// Another is the primary.
    Deposed,
}

/// How far a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is being sent everything.
    Joining,
    /// It has been sent everything up to this commit.
    Sent(u64),
    /// It holds everything that there was when it joined.
    Complete,
    /// It is gone, and the register does not know yet.
    Lost,
}

/// One backup, by the number of its link.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The number.
    pub link: u64,
    /// How far it is.
    pub stage: Stage,
    /// The last commit that it holds.
    pub held: u64,
}

/// The numbers of commits, and which of them may be acknowledged.
#[derive(Debug)]
pub struct Protection {
    generation: u64,
    last: u64,
    released: u64,
    wait_for: WaitFor,
    /// Without a backup nothing is acknowledged.
    waits: bool,
    deposed: bool,
    members: Vec<Member>,
    /// What the register says.
    settled: Group,
    /// What it may say besides: asked for, and not known to be settled.
    asked: Vec<Group>,
    /// What it is to say.
    wanted: Option<Group>,
}

impl Protection {
    /// A primary that speaks alone in `generation`, after `last` commits.
    pub fn new(generation: u64, last: u64, wait_for: WaitFor) -> Self {
        Self {
            generation,
            last,
            released: last,
            wait_for,
            waits: false,
            deposed: false,
            members: Vec::new(),
            settled: Group::default(),
            asked: Vec::new(),
            wanted: None,
        }
    }

    /// One that acknowledges nothing while it has no backup.
    pub fn waiting(generation: u64, last: u64, wait_for: WaitFor) -> Self {
        Self { waits: true, ..Self::new(generation, last, wait_for) }
    }

    /// How it stands with the backups.
    pub fn phase(&self) -> Phase {
        let lost = self.members.iter().any(|member| member.stage == Stage::Lost);
        let sent = self.members.iter().find_map(|member| match member.stage {
            Stage::Sent(number) => Some(number),
            _ => None,
        });
        match (self.settled.needed, self.wanted.is_some() || !self.asked.is_empty(), sent) {
            _ if self.deposed => Phase::Deposed,
            _ if lost => Phase::Losing,
            (0, true, _) => Phase::Asking,
            (0, false, Some(number)) => Phase::Plugged(number),
            (0, false, None) if self.members.is_empty() => Phase::Exposed,
            (0, false, None) => Phase::Joining,
            _ => Phase::Protected,
        }
    }

    /// In which generation it speaks.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of the last commit.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to where commits may be acknowledged.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// All backups that there are, and those that are gone and still count.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether the register says that a backup may take over.
    pub fn counts(&self, link: u64) -> bool {
        self.settled.backups.contains(&link)
    }

    /// Whether nobody can have taken over: the register names no backup.
    pub fn is_alone(&self) -> bool {
        self.settled.needed == 0 && self.asked.iter().all(|group| group.needed == 0)
    }

    /// Whether commits are acknowledged without this backup, if those for which `goes_on` holds go on.
    pub fn may_do_without(&self, link: u64, goes_on: impl Fn(u64) -> bool) -> bool {
        let others = |member: &&Member| {
            member.link != link
                && self.counts(member.link)
                && member.stage == Stage::Complete
                && goes_on(member.link)
        };
        self.settled.needed > 0
            && self.wait_for != WaitFor::All
            && self.members.iter().filter(others).count() >= self.settled.needed
    }

    /// A commit comes; its number.
    pub fn submit(&mut self) -> u64 {
        self.last += 1;
        self.release();
        self.last
    }

    /// A backup is sent everything; `false` if there are as many as there may be.
    pub fn join(&mut self, link: u64) -> bool {
        let may = self.members.len() < MAX_BACKUPS && !self.deposed;
        if may {
            self.members.push(Member { link, stage: Stage::Joining, held: 0 });
        }
        may
    }

    /// Everything was sent to it.
    pub fn plug(&mut self, link: u64) {
        let last = self.last;
        if let Some(member) = self.member(link)
            && member.stage == Stage::Joining
        {
            member.stage = Stage::Sent(last);
        }
    }

    /// A backup holds everything up to a commit. More than was sent to it cannot be.
    pub fn holds(&mut self, link: u64, number: u64) -> Result<(), u64> {
        if number > self.last {
            return Err(number);
        }
        let Some(member) = self.member(link) else { return Ok(()) };
        member.held = member.held.max(number);
        if let Stage::Sent(sent) = member.stage
            && member.held >= sent
        {
            member.stage = Stage::Complete;
            self.prepare();
        }
        self.release();
        Ok(())
    }

    /// A backup is gone, or no longer to be waited for.
    pub fn lose(&mut self, link: u64) {
        if let Some(member) = self.member(link) {
            member.stage = Stage::Lost;
        }
        self.prepare();
        self.release();
    }

    /// What is to be asked of the seed nodes now. Whoever calls this asks for it, and for nothing else until that has an
    /// outcome; if it is unknown, calls again.
    pub fn ask(&mut self) -> Option<Group> {
        if !self.has_to_ask() {
            return None;
        }
        let wanted = self.wanted.clone()?;
        if !self.asked.contains(&wanted) {
            self.asked.push(wanted.clone());
        }
        Some(wanted)
    }

    /// Whether there is something.
    pub fn has_to_ask(&self) -> bool {
        !self.deposed && self.wanted.as_ref().is_some_and(|wanted| self.reach(wanted) >= self.released)
    }

    /// What was asked last was granted, in `generation`: it settles whatever was asked before.
    pub fn granted(&mut self, group: Group, generation: u64) {
        (self.settled, self.generation) = (group, generation);
        self.asked.clear();
        self.prepare();
        self.release();
    }

    /// What was asked was refused for good: another is the primary.
    pub fn depose(&mut self) {
        self.deposed = true;
    }

    fn member(&mut self, link: u64) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.link == link && member.stage != Stage::Lost)
    }

    /// What the register is to say, as things stand.
    fn prepare(&mut self) {
        let complete = self.members.iter().filter(|member| member.stage == Stage::Complete);
        let backups: Vec<u64> = complete.map(|member| member.link).collect();
        let wanted = Group { needed: self.wait_for.needed(backups.len()), backups };
        let is_settled = wanted == self.settled && self.asked.is_empty();
        self.wanted = (!is_settled).then_some(wanted);
        let (settled, asked) = (&self.settled, &self.asked);
        self.members.retain(|member| {
            let named = |group: &Group| group.backups.contains(&member.link);
            member.stage != Stage::Lost || named(settled) || asked.iter().any(named)
        });
    }

    /// The last commit that as many backups of a group hold as are needed.
    fn reach(&self, group: &Group) -> u64 {
        if group.needed == 0 {
            return self.last;
        }
        let mut held = [0; MAX_BACKUPS];
        for (held, link) in held.iter_mut().zip(&group.backups) {
            let member = self.members.iter().find(|member| member.link == *link);
            *held = member.map_or(0, |member| member.held);
        }
        held.sort_unstable_by(|a, b| b.cmp(a));
        held.get(group.needed - 1).copied().unwrap_or(0)
    }

    fn release(&mut self) {
        if self.deposed {
            return;
        }
        let mut reach = self.last;
        for group in std::iter::once(&self.settled).chain(&self.asked).chain(&self.wanted) {
            if group.needed == 0 && self.waits {
                return;
            }
            reach = reach.min(self.reach(group));
        }
        self.released = self.released.max(reach);
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn group(backups: &[u64], needed: usize) -> Group {
        Group { backups: backups.to_vec(), needed }
    }

    /// One that has joined and holds everything.
    fn joins(primary: &mut Protection, link: u64) {
        assert!(primary.join(link));
        primary.plug(link);
        primary.holds(link, primary.last()).unwrap();
    }

    fn protected(wait_for: WaitFor, links: &[u64]) -> Protection {
        let mut primary = Protection::new(1, 10, wait_for);
        for link in links {
            joins(&mut primary, *link);
            let group = primary.ask().unwrap();
            primary.granted(group, 1);
        }
        assert_eq!(primary.phase(), Phase::Protected);
        primary
    }

    #[test]
    fn what_a_backup_lacks_is_not_acknowledged_while_it_is_asked_in_or_lost() {
        let mut primary = Protection::new(1, 0, WaitFor::All);
        assert_eq!((primary.submit(), primary.released()), (1, 1));
        assert!(primary.join(7));
        assert_eq!((primary.submit(), primary.released(), primary.phase()), (2, 2, Phase::Joining));
        primary.plug(7);
        assert_eq!((primary.submit(), primary.released(), primary.phase()), (3, 3, Phase::Plugged(2)));
        primary.holds(7, 1).unwrap();
        assert_eq!(primary.ask(), None);
        // It has everything from when it joined, and not yet what was acknowledged since.
        primary.holds(7, 2).unwrap();
        assert_eq!((primary.submit(), primary.released(), primary.ask()), (4, 3, None));
        assert!(primary.is_alone());
        primary.holds(7, 3).unwrap();
        assert_eq!((primary.ask(), primary.phase()), (Some(group(&[7], 1)), Phase::Asking));
        assert!(!primary.is_alone());
        primary.holds(7, 4).unwrap();
        assert_eq!((primary.submit(), primary.released()), (5, 4));
        primary.granted(group(&[7], 1), 1);
        assert_eq!((primary.released(), primary.phase()), (4, Phase::Protected));
        primary.lose(7);
        assert_eq!((primary.submit(), primary.released(), primary.phase()), (6, 4, Phase::Losing));
        assert_eq!(primary.ask(), Some(group(&[], 0)));
        primary.granted(group(&[], 0), 2);
        assert_eq!((primary.released(), primary.generation()), (6, 2));
        assert_eq!((primary.holds(7, 9), primary.phase()), (Err(9), Phase::Exposed));
    }

    #[test]
    fn who_waits_for_a_backup_acknowledges_nothing_without() {
        let mut primary = Protection::waiting(1, 0, WaitFor::All);
        assert_eq!((primary.submit(), primary.released()), (1, 0));
        joins(&mut primary, 1);
        assert_eq!((primary.submit(), primary.released()), (2, 0));
        let asked = primary.ask().unwrap();
        assert_eq!(primary.released(), 0);
        primary.granted(asked, 1);
        primary.holds(1, 2).unwrap();
        assert_eq!(primary.released(), 2);
        primary.lose(1);
        let alone = primary.ask().unwrap();
        primary.granted(alone, 2);
        assert_eq!((primary.submit(), primary.released()), (3, 2));
    }

    #[test]
    fn as_many_as_are_waited_for_hold_what_is_acknowledged() {
        for (wait_for, released) in [(WaitFor::One, 13), (WaitFor::Majority, 12), (WaitFor::All, 11)] {
            let mut primary = protected(wait_for, &[1, 2, 3]);
            for _ in 0..3 {
                primary.submit();
            }
            for (link, held) in [(1, 12), (2, 11), (3, 13)] {
                primary.holds(link, held).unwrap();
            }
            assert_eq!(primary.released(), released, "{wait_for:?}");
        }
        let needed = |wait_for: WaitFor| [0, 1, 2, 3, 4, 5].map(|backups| wait_for.needed(backups));
        assert_eq!(needed(WaitFor::One), [0, 1, 1, 1, 1, 1]);
        assert_eq!(needed(WaitFor::Majority), [0, 1, 1, 2, 2, 3]);
        assert_eq!(needed(WaitFor::All), [0, 1, 2, 3, 4, 5]);
    }

    /// One of two held it and is gone: the register must not name the other alone before that holds it as well.
    #[test]
    fn what_only_a_lost_backup_holds_keeps_the_others_from_being_asked_for() {
        let mut primary = protected(WaitFor::One, &[1, 2]);
        primary.submit();
        primary.holds(1, 11).unwrap();
        assert_eq!(primary.released(), 11);
        primary.lose(1);
        assert_eq!((primary.ask(), primary.phase()), (None, Phase::Losing));
        primary.holds(2, 11).unwrap();
        assert_eq!(primary.ask(), Some(group(&[2], 1)));
        // And goes on meanwhile, with what the other holds.
        primary.submit();
        primary.holds(2, 12).unwrap();
        assert_eq!(primary.released(), 12);
    }

    /// Two changes are asked for, and nobody knows which of them came about.
    #[test]
    fn what_may_have_been_granted_counts() {
        let mut primary = protected(WaitFor::All, &[1, 2]);
        joins(&mut primary, 3);
        assert_eq!(primary.ask(), Some(group(&[1, 2, 3], 3)));
        primary.lose(3);
        assert_eq!(primary.ask(), Some(group(&[1, 2], 2)));
        primary.submit();
        for link in [1, 2] {
            primary.holds(link, 11).unwrap();
        }
        assert_eq!(primary.released(), 10, "the register may say that 3 takes over");
        primary.granted(group(&[1, 2], 2), 2);
        assert_eq!((primary.released(), primary.phase(), primary.ask()), (11, Phase::Protected, None));
    }

    #[test]
    fn there_are_not_more_than_a_register_names() {
        let mut primary = Protection::new(1, 0, WaitFor::All);
        for link in 0..MAX_BACKUPS as u64 {
            assert!(primary.join(link));
        }
        assert!(!primary.join(9));
        primary.lose(0);
        assert!(primary.join(9));
    }

    #[test]
    fn who_is_slow_is_done_without_where_others_are_enough() {
        for (wait_for, links, may) in [
            (WaitFor::One, &[1, 2][..], true),
            (WaitFor::Majority, &[1, 2], true),
            (WaitFor::Majority, &[1, 2, 3], true),
            (WaitFor::All, &[1, 2], false),
            (WaitFor::One, &[1], false),
        ] {
            assert_eq!(protected(wait_for, links).may_do_without(1, |_| true), may, "{wait_for:?} {links:?}");
        }
        assert!(!protected(WaitFor::One, &[1, 2]).may_do_without(1, |other| other != 2));
    }
}
