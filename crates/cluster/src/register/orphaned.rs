//! What is left of a workload when an operator has said who is dead for good.
//!
//! With several backups of which fewer than all hold what was acknowledged, a primary that dies together with enough of them
//! leaves others that may lack something: they wait for the dead ones' word, for ever (R5). [`Transition::Forget`] is an
//! operator's word instead. It ends the dead primary's right and leaves the dead backups out, in a generation of nobody; those
//! that are left then go on from the furthest of them ([`Transition::GoOn`]), which says what it may lack.
//!
//! Of `n` backups of which `k` held whatever was acknowledged, `d` are dead. With `d < k` at least `k - d` of those that are
//! left hold it, and nothing is lost. Else all that are left are heard, and what the furthest lacks is at most as much as
//! the `k`-th furthest of all `n` held more; one that did not say how far it was may have held anything.
//! `docs/decisions/0014-an-operators-word-for-the-dead.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Backup, Holder, Holding, MAX_BACKUPS, Register, Transition, Why, may_be_backups};
use crate::Incarnation;

/// A workload that nobody speaks for, until one of those that are left goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Orphaned {
    /// Who spoke for it.
    pub primary: Holder,
    /// Its backups that are not said to be dead: at least one.
    pub left: Vec<Backup>,
    /// Its backups that are: at least one. Together with those that are left at most [`MAX_BACKUPS`].
    pub dead: Vec<Backup>,
    /// How many of all these backups hold whatever was acknowledged.
    pub needed: u8,
}

/// How many commits that whoever goes on does not have may have been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lacks {
    /// So many, and maybe fewer; with 0 it has all.
    AtMost(u64),
    /// One that is dead did not say how far it was.
    Unknown,
}

impl Orphaned {
    /// Of a primary and its backups, some of which are dead for good.
    pub(super) fn new(
        primary: &Holder,
        backups: &[Backup],
        needed: u8,
        lost: &[Incarnation],
    ) -> Result<Self, Why> {
        let is_named = |lost: &Incarnation| backups.iter().any(|backup| backup.holder.incarnation == *lost);
        if lost.is_empty() || !lost.iter().all(is_named) {
            return Err(Why::NotLost);
        }
        let is_dead = |backup: &&Backup| lost.contains(&backup.holder.incarnation);
        let left: Vec<_> = backups.iter().filter(|backup| !is_dead(backup)).cloned().collect();
        let dead = backups.iter().filter(is_dead).cloned().collect();
        if left.is_empty() {
            return Err(Why::NobodyLeft);
        }
        if left.iter().all(|backup| backup.stopped_at.is_none()) {
            return Err(Why::NotMissed);
        }
        Ok(Self { primary: primary.clone(), left, dead, needed })
    }

    /// The same with more of the backups dead.
    pub(super) fn without(&self, lost: &[Incarnation]) -> Result<Self, Why> {
        let all: Vec<_> = self.left.iter().chain(&self.dead).cloned().collect();
        let lost: Vec<_> =
            self.dead.iter().map(|backup| backup.holder.incarnation).chain(lost.iter().copied()).collect();
        Self::new(&self.primary, &all, self.needed, &lost)
    }

    /// Whether all of these are dead already.
    pub(super) fn is_without(&self, lost: &[Incarnation]) -> bool {
        lost.iter().all(|lost| self.dead.iter().any(|dead| dead.holder.incarnation == *lost))
    }

    /// One of those that are left holds commits up to `held`, and has stopped acknowledging.
    pub(super) fn stopped(&self, by: Incarnation, held: u64) -> Result<Self, Why> {
        let mut after = self.clone();
        let backup = after.left.iter_mut().find(|backup| backup.holder.incarnation == by);
        // What it said first stands: it has held no more since.
        backup.ok_or(Why::NotSyncedBackup(by))?.stopped_at.get_or_insert(held);
        Ok(after)
    }

    /// The one that is left.
    pub(super) fn backup(&self, by: Incarnation) -> Option<&Backup> {
        self.left.iter().find(|backup| backup.holder.incarnation == by)
    }

    /// Whether one of those that are left is to go on: it has stopped, and enough of the others have that hold no more.
    pub fn may_go_on(&self, by: Incarnation) -> bool {
        let Some(held) = self.backup(by).and_then(|backup| backup.stopped_at) else { return false };
        let no_more =
            self.left.iter().filter(|backup| backup.stopped_at.is_some_and(|at| at <= held)).count();
        // So many of those that are left hold whatever was acknowledged. Where none needs to, all of them are heard.
        let hold = usize::from(self.needed).saturating_sub(self.dead.len()).max(1);
        no_more + hold > self.left.len()
    }

    /// What one that holds commits up to `held` may lack if it goes on now.
    pub fn lacks(&self, held: u64) -> Lacks {
        let of_all = self.left.iter().chain(&self.dead);
        let mut furthest: Vec<u64> = of_all.map(|backup| backup.stopped_at.unwrap_or(u64::MAX)).collect();
        furthest.sort_unstable_by(|one, other| other.cmp(one));
        match furthest.get(usize::from(self.needed).saturating_sub(1)) {
            None | Some(&u64::MAX) => Lacks::Unknown,
            Some(reached) => Lacks::AtMost(reached.saturating_sub(held)),
        }
    }

    /// Where the furthest of those that have said so is.
    pub fn furthest(&self) -> Option<&Backup> {
        self.left.iter().filter(|backup| backup.stopped_at.is_some()).max_by_key(|backup| backup.stopped_at)
    }

    pub(super) fn is_well_formed(&self) -> bool {
        let all: Vec<_> = self.left.iter().chain(&self.dead).cloned().collect();
        let primary = self.primary.incarnation;
        !self.left.is_empty()
            && !self.dead.is_empty()
            && all.len() <= MAX_BACKUPS
            && may_be_backups(&all, self.needed)
            && all.iter().all(|backup| backup.holder.incarnation != primary)
    }
}

impl Register {
    /// Nobody speaks: who did is dead, by an operator's word, and has no right any more should it live.
    pub(super) fn decide_orphaned(
        &self,
        orphaned: &Orphaned,
        transition: &Transition,
    ) -> Result<Register, Why> {
        let this_generation = |asked: &u64| {
            if *asked == self.generation { Ok(()) } else { Err(Why::OtherGeneration { asked: *asked }) }
        };
        match transition {
            Transition::Create { .. } => Err(Why::Exists),
            Transition::PrimaryAlone { by, .. }
            | Transition::AddBackup { by, .. }
            | Transition::Backups { by, .. }
            | Transition::Switchover { by, .. } => Err(Why::NotPrimary(*by)),
            Transition::BackupTakesOver { by, held } => {
                let after = orphaned.stopped(*by, *held)?;
                if after == *orphaned {
                    Ok(self.clone())
                } else {
                    self.change(self.generation, Holding::Orphaned(after))
                }
            }
            Transition::GoOn { by, seen } => {
                let backup = orphaned.backup(*by).ok_or(Why::NotSyncedBackup(*by))?;
                if *seen == self.version && orphaned.may_go_on(*by) {
                    self.grant(&backup.holder, None)
                } else {
                    Ok(self.clone())
                }
            }
            Transition::Forget { generation, primary, dead } => {
                let of_it = orphaned.primary.incarnation == *primary;
                let asked_again = generation.checked_add(1) == Some(self.generation);
                if of_it && (asked_again || *generation == self.generation) && orphaned.is_without(dead) {
                    return Ok(self.clone());
                }
                this_generation(generation)?;
                if of_it { self.orphan(orphaned.without(dead)?) } else { Err(Why::NotLost) }
            }
            Transition::Stop { generation } => {
                this_generation(generation)?;
                self.change(self.generation, Holding::Tombstone)
            }
            Transition::RestartLost { by, generation, lost, lost_backups } => {
                this_generation(generation)?;
                let named = orphaned.primary.incarnation == *lost
                    && lost_backups.len() == orphaned.left.len()
                    && orphaned.left.iter().all(|left| lost_backups.contains(&left.holder.incarnation));
                let dead = orphaned.dead.iter().map(|dead| &dead.holder.incarnation);
                let is_new = by.incarnation != *lost
                    && !lost_backups.iter().chain(dead).any(|lost| *lost == by.incarnation);
                if named && is_new { self.grant(by, None) } else { Err(Why::NotLost) }
            }
        }
    }

    /// The next generation, to nobody.
    pub(super) fn orphan(&self, orphaned: Orphaned) -> Result<Register, Why> {
        let generation = self.generation.checked_add(1).ok_or(Why::Exhausted)?;
        self.change(generation, Holding::Orphaned(orphaned))
    }
}

impl fmt::Display for Orphaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held by nobody: {}", self.primary)?;
        self.dead.iter().try_for_each(|dead| write!(f, ", {dead}"))?;
        f.write_str(" are said to be dead, and the furthest goes on of ")?;
        for (place, left) in self.left.iter().enumerate() {
            write!(f, "{}{left}", if place > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(0) => f.write_str("nothing that was acknowledged is lost"),
            Self::AtMost(1) => f.write_str("at most 1 acknowledged commit is lost"),
            Self::AtMost(count) => write!(f, "at most {count} acknowledged commits are lost"),
            Self::Unknown => f.write_str("acknowledged commits may be lost, nobody knows how many"),
        }
    }
}
