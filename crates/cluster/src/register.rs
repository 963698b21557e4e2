//! The register: who may speak for a workload, and the only ways in which that may change.
//!
//! | from | to | by whom, when |
//! |---|---|---|
//! | nothing, or a tombstone at g | {1 or g+1, A, none} | [`Transition::Create`]: the first primary |
//! | {g, A, B} | {g+1, A, none} | [`Transition::PrimaryAlone`]: A, whose backup is gone |
//! | {g, A, B} | {g+1, B, none} | [`Transition::BackupTakesOver`]: B, which has stopped acknowledging for good |
//! | {g, A, S} | {g, A, S, B stopped at n} | the same, where too few of several backups have stopped |
//! | {g, A, none} | {g, A, B'} | [`Transition::AddBackup`]: A, see there for what must hold first |
//! | {g, A, S} | {g or g+1, A, S'} | [`Transition::Backups`]: A, likewise; g+1 if one is left out |
//! | {g, A, B} | {g+1, B, A or none} | [`Transition::Switchover`]: A, which has stopped |
//! | {g, A, any} | tombstone at g | [`Transition::Stop`]: whoever vouches that the workload is silent |
//! | {g, A, any} | {g+1, C, none} | [`Transition::RestartLost`]: an operator or a policy, never silently |
//! | {g, A, S} | {g+1, nobody, S without some} | [`Transition::Forget`]: an operator, never silently |
//! | {g, nobody, S} | {g+1, B, none} | [`Transition::GoOn`]: B, the furthest of those that are left |
//!
//! With several backups the register says how many of them an acknowledgement counts on, `k` of `n`: whatever was
//! acknowledged is held by `k`. Of any `n - k + 1` backups one has it all, so that one may take over which has as much as
//! `n - k` others that have stopped; and of a primary whose `n - k + 1` backups have stopped nothing is acknowledged any
//! more. Why so: `docs/decisions/0012-several-backups.md`.

mod orphaned;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Incarnation, NodeName};

pub use orphaned::{Lacks, Orphaned};

/// The most backups that a register names: a page of registers must fit a message (`message.rs`).
pub const MAX_BACKUPS: usize = 7;

/// An incarnation, and the node it lives on, so that whoever reads a register knows where the primary is. Rights
/// go with the incarnation alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    pub incarnation: Incarnation,
    pub node: NodeName,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.incarnation, self.node)
    }
}

/// What the seed nodes agree on for one workload. Changed only as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Register {
    /// Grows by one with every change: two values with one version are the same value.
    pub version: u64,
    /// Grows by one with every grant of the right to speak. Survives `stop`, so that a reused name goes on from it.
    pub generation: u64,
    pub holding: Holding,
    /// The [`Seeds::version`](crate::Seeds::version) under which this value was made.
    pub seeds_version: u64,
}

/// Who holds the right to speak.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Holding {
    Held {
        primary: Holder,
        /// At most [`MAX_BACKUPS`].
        backups: Vec<Backup>,
        /// How many of the backups hold whatever was acknowledged: 0 if there are none.
        needed: u8,
    },
    /// The workload was stopped. What remains is its generation.
    Tombstone,
    /// An operator said that its primary is dead for good, and some of its backups: nobody speaks until one of the others
    /// goes on.
    Orphaned(Orphaned),
}

/// One that may take over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backup {
    pub holder: Holder,
    /// It has stopped acknowledging for good, and this is the last commit that it holds.
    pub stopped_at: Option<u64>,
}

impl Holding {
    /// Held by `primary`, with one backup or none.
    pub fn of(primary: Holder, synced_backup: Option<Holder>) -> Self {
        let backups: Vec<_> =
            synced_backup.into_iter().map(|holder| Backup { holder, stopped_at: None }).collect();
        let needed = u8::from(!backups.is_empty());
        Self::Held { primary, backups, needed }
    }
}

/// One change of a register: a row of the table above.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transition {
    /// A first primary starts the workload.
    Create { by: Holder },
    /// The primary's backup is gone; granted, it speaks on, exposed.
    ///
    /// Also settles an [`AddBackup`](Self::AddBackup) of unknown outcome, one way or the other: a primary that is
    /// already alone stays what it is, at its generation.
    PrimaryAlone { by: Incarnation, generation: u64 },
    /// The synced backup's primary is gone. The backup must have stopped acknowledging, irrevocably, before it asks;
    /// `held` is the last commit that it holds, and does not matter to who is the only backup.
    ///
    /// Granted with another as the primary still: it is noted that this one has stopped, and too few others have that
    /// hold no more. It asks again, until it is granted or refused.
    BackupTakesOver { by: Incarnation, held: u64 },
    /// The primary has a new synced backup. Before it asks, it must have plugged its output, and the backup must
    /// have committed everything up to the last output that left before the plug: committing a checkpoint taken
    /// earlier is not enough, or what left in between is lost to the backup. The plug stays until the outcome is known.
    AddBackup { by: Incarnation, generation: u64, backup: Holder },
    /// The primary's backups are these from now on, of which `needed` hold whatever it acknowledges. When it asks, so many
    /// of them must hold whatever it has acknowledged so far; and until the outcome is known it acknowledges only what
    /// satisfies the register as it was, as it may be, and as it is to be.
    ///
    /// It settles whatever `by` asked before: an incarnation asks for one change at a time.
    Backups { by: Incarnation, backups: Vec<Holder>, needed: u8 },
    /// The primary hands over to a backup that holds whatever it acknowledged, having stopped for good what it does as primary; `stays` if it goes on
    /// as the new primary's synced backup, with the very state it handed over.
    Switchover { by: Incarnation, generation: u64, to: Incarnation, stays: bool },
    /// The end of the workload, which must be silent already.
    Stop { generation: u64 },
    /// The lost workload starts anew from nothing, because an operator or a policy said so. It names the
    /// incarnations that whoever ordered it vouches are dead: a register that says anything else refuses.
    RestartLost { by: Holder, generation: u64, lost: Incarnation, lost_backups: Vec<Incarnation> },
    /// The primary is dead for good, and so are these of its backups, because an operator said so: those that are left
    /// go on without their word. Refused while none of these has lost its primary. Whoever lives after all has no right
    /// from then on, and joins anew by a copy.
    Forget { generation: u64, primary: Incarnation, dead: Vec<Incarnation> },
    /// One of those that are left goes on, having seen the register in this version: then it knows what it may lack.
    ///
    /// Granted with nobody as the primary still: the register has changed since, or others are to be heard first.
    GoOn { by: Incarnation, seen: u64 },
}

impl Transition {
    /// What a backup asks that has lost its primary and has stopped acknowledging for good: it holds commits up to `held`,
    /// and has `seen` the register, if at all, when it asked before.
    pub fn by_backup(by: Incarnation, held: u64, seen: Option<&Register>) -> Self {
        match seen {
            Some(Register { version, holding: Holding::Orphaned(orphaned), .. })
                if orphaned.may_go_on(by) =>
            {
                Self::GoOn { by, seen: *version }
            }
            _ => Self::BackupTakesOver { by, held },
        }
    }
}

/// A transition that may not be had, and what the register says instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{why}; {}", Said(.current.as_deref()))]
pub struct Refused {
    pub why: Why,
    /// The value that refused it: agreed, as a granted one would be.
    pub current: Option<Box<Register>>,
}

/// Why a transition may not be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Why {
    #[error("no workload of this name was ever started: start it first")]
    NeverCreated,
    #[error("the workload was stopped: start it anew")]
    Stopped,
    #[error("the workload exists already: stop it first, or use another name")]
    Exists,
    #[error("{0} is not the primary and must stay silent")]
    NotPrimary(Incarnation),
    #[error("{0} is not the synced backup and may not take over")]
    NotSyncedBackup(Incarnation),
    #[error("the primary already has a synced backup")]
    HasBackup,
    #[error("an incarnation cannot be its own backup")]
    OwnBackup,
    #[error(
        "these cannot be its backups: at most {MAX_BACKUPS}, each once, and at least one of them counted on"
    )]
    NoSuchBackups,
    #[error("the request was made for generation {asked}, which has passed")]
    OtherGeneration { asked: u64 },
    #[error(
        "the workload is not lost as described: look again at who holds it before vouching for their death"
    )]
    NotLost,
    #[error(
        "nobody would be left to go on: what they held is lost, and the workload can only be started anew"
    )]
    NobodyLeft,
    #[error("none of those that would be left has lost its primary, which may well be alive: look again")]
    NotMissed,
    #[error("its numbers are used up: stop it and use another name")]
    Exhausted,
}

/// Shows a register's content in the words of the documentation.
struct Said<'a>(Option<&'a Register>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nobody holds it"),
            Some(register) => register.fmt(f),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = self.generation;
        match &self.holding {
            Holding::Tombstone => write!(f, "stopped at generation {generation}"),
            Holding::Orphaned(orphaned) => write!(f, "generation {generation} is {orphaned}"),
            Holding::Held { primary, backups, needed } => {
                write!(f, "generation {generation} is held by {primary}, ")?;
                match &backups[..] {
                    [] => f.write_str("exposed"),
                    [backup] => write!(f, "protected by {backup}"),
                    [first, others @ ..] => {
                        write!(f, "protected by {needed} of {first}")?;
                        others.iter().try_for_each(|backup| write!(f, ", {backup}"))
                    }
                }
            }
        }
    }
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.holder.fmt(f)?;
        match self.stopped_at {
            Some(commit) => write!(f, " (stopped after {commit})"),
            None => Ok(()),
        }
    }
}

impl Register {
    pub fn primary(&self) -> Option<&Holder> {
        match &self.holding {
            Holding::Held { primary, .. } => Some(primary),
            Holding::Tombstone | Holding::Orphaned(_) => None,
        }
    }

    /// Who speaks, or spoke last if an operator said that it is dead.
    pub fn last_primary(&self) -> Option<&Holder> {
        match &self.holding {
            Holding::Held { primary, .. } => Some(primary),
            Holding::Orphaned(orphaned) => Some(&orphaned.primary),
            Holding::Tombstone => None,
        }
    }

    /// All that may take over, by the rule above.
    pub fn backups(&self) -> &[Backup] {
        match &self.holding {
            Holding::Held { backups, .. } => backups,
            Holding::Orphaned(orphaned) => &orphaned.left,
            Holding::Tombstone => &[],
        }
    }

    /// The backup of who has one; the first of several.
    pub fn synced_backup(&self) -> Option<&Holder> {
        self.backups().first().map(|backup| &backup.holder)
    }

    /// What the register becomes, or why not. A transition whose result the register already is, is granted without
    /// a change: a retry after an unknown outcome learns that it had succeeded.
    ///
    /// [`seeds_version`](Self::seeds_version) is carried over; whoever proposes the result stamps it.
    pub fn apply(current: Option<&Register>, transition: &Transition) -> Result<Register, Refused> {
        Self::decide(current, transition)
            .map_err(|why| Refused { why, current: current.cloned().map(Box::new) })
    }

    fn decide(current: Option<&Register>, transition: &Transition) -> Result<Register, Why> {
        let Some(now) = current else {
            return match transition {
                Transition::Create { by } => {
                    let holding = Holding::of(by.clone(), None);
                    Ok(Register { version: 1, generation: 1, holding, seeds_version: 0 })
                }
                _ => Err(Why::NeverCreated),
            };
        };
        let (primary, backups, needed) = match &now.holding {
            Holding::Held { primary, backups, needed } => (primary, backups, needed),
            Holding::Orphaned(orphaned) => return now.decide_orphaned(orphaned, transition),
            Holding::Tombstone => {
                return match transition {
                    Transition::Create { by } => now.grant(by, None),
                    Transition::Stop { generation } if *generation == now.generation => Ok(now.clone()),
                    Transition::Stop { generation } => Err(Why::OtherGeneration { asked: *generation }),
                    _ => Err(Why::Stopped),
                };
            }
        };
        let leads = |incarnation: &Incarnation| primary.incarnation == *incarnation;
        let leads_alone = |incarnation: &Incarnation| leads(incarnation) && backups.is_empty();
        let place = |incarnation: &Incarnation| {
            backups.iter().position(|backup| backup.holder.incarnation == *incarnation)
        };
        let only = |incarnation: &Incarnation| backups.len() == 1 && place(incarnation) == Some(0);
        // What the transition made of `asked` is what the register says now.
        let follows = |asked: &u64| asked.checked_add(1) == Some(now.generation);
        let this_generation = |asked: &u64| {
            if *asked == now.generation { Ok(()) } else { Err(Why::OtherGeneration { asked: *asked }) }
        };

        match transition {
            Transition::Create { by } if leads_alone(&by.incarnation) => Ok(now.clone()),
            Transition::Create { .. } => Err(Why::Exists),

            Transition::PrimaryAlone { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::PrimaryAlone { by, generation } if leads_alone(by) && follows(generation) => {
                Ok(now.clone())
            }
            Transition::PrimaryAlone { by, generation } => {
                this_generation(generation)?;
                if leads_alone(by) { Ok(now.clone()) } else { now.grant(primary, None) }
            }

            Transition::BackupTakesOver { by, .. } if leads_alone(by) => Ok(now.clone()),
            Transition::BackupTakesOver { by, held } => {
                let place = place(by).ok_or(Why::NotSyncedBackup(*by))?;
                // What it said first stands: it has held no more since.
                let held = backups[place].stopped_at.unwrap_or(*held);
                let mut backups = backups.clone();
                backups[place].stopped_at = Some(held);
                let no_more =
                    backups.iter().filter(|backup| backup.stopped_at.is_some_and(|at| at <= held)).count();
                if no_more + usize::from(*needed) > backups.len() {
                    return now.grant(&backups[place].holder, None);
                }
                let holding = Holding::Held { primary: primary.clone(), backups, needed: *needed };
                if holding == now.holding { Ok(now.clone()) } else { now.change(now.generation, holding) }
            }

            Transition::AddBackup { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::AddBackup { generation, backup, .. } => {
                this_generation(generation)?;
                if leads(&backup.incarnation) {
                    return Err(Why::OwnBackup);
                }
                match backups.is_empty() {
                    false if only(&backup.incarnation) => Ok(now.clone()),
                    false => Err(Why::HasBackup),
                    true => now.change(now.generation, Holding::of(primary.clone(), Some(backup.clone()))),
                }
            }

            Transition::Backups { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::Backups { backups: wanted, needed, .. } => {
                if wanted.iter().any(|backup| leads(&backup.incarnation)) {
                    return Err(Why::OwnBackup);
                }
                // Whoever has stopped has stopped, though the primary does not know.
                let stopped_at =
                    |holder: &Holder| place(&holder.incarnation).and_then(|place| backups[place].stopped_at);
                let wanted: Vec<_> = wanted
                    .iter()
                    .map(|holder| Backup { holder: holder.clone(), stopped_at: stopped_at(holder) })
                    .collect();
                if !may_be_backups(&wanted, *needed) {
                    return Err(Why::NoSuchBackups);
                }
                let holding = Holding::Held { primary: primary.clone(), backups: wanted, needed: *needed };
                if holding == now.holding {
                    return Ok(now.clone());
                }
                let left_out = |backup: &Backup| match &holding {
                    Holding::Held { backups, .. } => {
                        !backups.iter().any(|stays| stays.holder == backup.holder)
                    }
                    Holding::Tombstone | Holding::Orphaned(_) => true,
                };
                let generation = if backups.iter().any(left_out) {
                    now.generation.checked_add(1).ok_or(Why::Exhausted)?
                } else {
                    now.generation
                };
                now.change(generation, holding)
            }

            Transition::Switchover { by, generation, to, stays }
                if leads(to)
                    && follows(generation)
                    && (if *stays { only(by) } else { backups.is_empty() }) =>
            {
                Ok(now.clone())
            }
            Transition::Switchover { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::Switchover { generation, to, stays, .. } => {
                this_generation(generation)?;
                let place = place(to).ok_or(Why::NotSyncedBackup(*to))?;
                now.grant(&backups[place].holder, stays.then_some(primary))
            }

            Transition::Stop { generation } => {
                this_generation(generation)?;
                now.change(now.generation, Holding::Tombstone)
            }

            Transition::RestartLost { by, generation, .. }
                if leads_alone(&by.incarnation) && follows(generation) =>
            {
                Ok(now.clone())
            }
            Transition::RestartLost { by, generation, lost, lost_backups } => {
                this_generation(generation)?;
                let named = leads(lost)
                    && lost_backups.len() == backups.len()
                    && backups.iter().all(|backup| lost_backups.contains(&backup.holder.incarnation));
                let is_new = by.incarnation != *lost && !lost_backups.contains(&by.incarnation);
                if named && is_new { now.grant(by, None) } else { Err(Why::NotLost) }
            }

            Transition::Forget { generation, primary: lost, dead } => {
                this_generation(generation)?;
                if !leads(lost) {
                    return Err(Why::NotLost);
                }
                now.orphan(Orphaned::new(primary, backups, *needed, dead)?)
            }

            Transition::GoOn { by, .. } if leads_alone(by) => Ok(now.clone()),
            Transition::GoOn { by, .. } => Err(Why::NotSyncedBackup(*by)),
        }
    }

    /// The next generation, to `primary`.
    fn grant(&self, primary: &Holder, synced_backup: Option<&Holder>) -> Result<Register, Why> {
        let generation = self.generation.checked_add(1).ok_or(Why::Exhausted)?;
        self.change(generation, Holding::of(primary.clone(), synced_backup.cloned()))
    }

    fn change(&self, generation: u64, holding: Holding) -> Result<Register, Why> {
        let version = self.version.checked_add(1).ok_or(Why::Exhausted)?;
        Ok(Register { version, generation, holding, seeds_version: self.seeds_version })
    }

    /// What every register satisfies, however it came about: checked where one comes off a wire or a disk.
    pub(crate) fn is_well_formed(&self) -> bool {
        let may_be = match &self.holding {
            Holding::Held { primary, backups, needed } => {
                may_be_backups(backups, *needed)
                    && backups.iter().all(|backup| backup.holder.incarnation != primary.incarnation)
            }
            Holding::Tombstone => true,
            Holding::Orphaned(orphaned) => orphaned.is_well_formed(),
        };
        self.version >= 1 && self.generation >= 1 && self.generation <= self.version && may_be
    }
}

/// Not too many, each of them once, and none without counting on some.
fn may_be_backups(backups: &[Backup], needed: u8) -> bool {
    let twice = |(place, backup): (usize, &Backup)| {
        backups[..place].iter().any(|other| other.holder.incarnation == backup.holder.incarnation)
    };
    backups.len() <= MAX_BACKUPS
        && usize::from(needed) <= backups.len()
        && (needed > 0 || backups.is_empty())
        && !backups.iter().enumerate().any(twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(number: u128) -> Holder {
        Holder { incarnation: Incarnation(number), node: format!("node{number}").parse().unwrap() }
    }

    fn held(version: u64, generation: u64, primary: u128, backup: Option<u128>) -> Register {
        let holding = Holding::of(holder(primary), backup.map(holder));
        Register { version, generation, holding, seeds_version: 7 }
    }

    fn tombstone(version: u64, generation: u64) -> Register {
        Register { version, generation, holding: Holding::Tombstone, seeds_version: 7 }
    }

    const A: Incarnation = Incarnation(1);
    const B: Incarnation = Incarnation(2);
    const C: Incarnation = Incarnation(3);

    fn alone(by: Incarnation, generation: u64) -> Transition {
        Transition::PrimaryAlone { by, generation }
    }

    fn takeover(by: Incarnation) -> Transition {
        Transition::BackupTakesOver { by, held: 0 }
    }

    fn add(by: Incarnation, generation: u64, backup: u128) -> Transition {
        Transition::AddBackup { by, generation, backup: holder(backup) }
    }

    fn switchover(by: Incarnation, generation: u64, to: Incarnation, stays: bool) -> Transition {
        Transition::Switchover { by, generation, to, stays }
    }

    fn restart(by: u128, generation: u64, lost: Incarnation, lost_backup: Option<Incarnation>) -> Transition {
        let lost_backups = lost_backup.into_iter().collect();
        Transition::RestartLost { by: holder(by), generation, lost, lost_backups }
    }

    /// With several backups: each with the commit after which it has stopped.
    fn several(version: u64, generation: u64, backups: &[(u128, Option<u64>)], needed: u8) -> Register {
        let backup = |(number, stopped_at): &(u128, Option<u64>)| Backup {
            holder: holder(*number),
            stopped_at: *stopped_at,
        };
        let backups = backups.iter().map(backup).collect();
        let holding = Holding::Held { primary: holder(1), backups, needed };
        Register { version, generation, holding, seeds_version: 7 }
    }

    fn backups(of: &[u128], needed: u8) -> Transition {
        let backups = of.iter().map(|number| holder(*number)).collect();
        Transition::Backups { by: A, backups, needed }
    }

    fn stops(by: u128, held: u64) -> Transition {
        Transition::BackupTakesOver { by: Incarnation(by), held }
    }

    /// Every row of the table, and that asking again for what was granted is granted without a change.
    #[test]
    fn rows_are_granted_and_may_be_asked_again() {
        let create = Transition::Create { by: holder(1) };
        let first = Register::apply(None, &create).unwrap();
        assert_eq!(first, Register { seeds_version: 0, ..held(1, 1, 1, None) });

        let protected = held(5, 3, 1, Some(2));
        let exposed = held(5, 3, 1, None);
        let rows = [
            (tombstone(5, 3), create, held(6, 4, 1, None)),
            (protected.clone(), alone(A, 3), held(6, 4, 1, None)),
            (exposed.clone(), alone(A, 3), exposed.clone()),
            (protected.clone(), takeover(B), held(6, 4, 2, None)),
            (exposed.clone(), add(A, 3, 2), held(6, 3, 1, Some(2))),
            (protected.clone(), switchover(A, 3, B, true), held(6, 4, 2, Some(1))),
            (protected.clone(), switchover(A, 3, B, false), held(6, 4, 2, None)),
            (protected.clone(), Transition::Stop { generation: 3 }, tombstone(6, 3)),
            (exposed.clone(), Transition::Stop { generation: 3 }, tombstone(6, 3)),
            (exposed, restart(3, 3, A, None), held(6, 4, 3, None)),
            (protected, restart(3, 3, A, Some(B)), held(6, 4, 3, None)),
        ];
        for (from, transition, to) in rows {
            assert_eq!(
                Register::apply(Some(&from), &transition),
                Ok(to.clone()),
                "{transition:?} from {from}"
            );
            assert_eq!(Register::apply(Some(&to), &transition), Ok(to.clone()), "{transition:?} again");
        }
    }

    #[test]
    fn refusals_say_why_and_who_holds_it() {
        let protected = held(5, 3, 1, Some(2));
        let exposed = held(5, 3, 1, None);
        let rows = [
            (None, takeover(B), Why::NeverCreated),
            (Some(tombstone(5, 3)), takeover(B), Why::Stopped),
            (Some(tombstone(5, 3)), restart(3, 3, A, None), Why::Stopped),
            (Some(tombstone(5, 3)), Transition::Stop { generation: 2 }, Why::OtherGeneration { asked: 2 }),
            (Some(exposed.clone()), Transition::Create { by: holder(2) }, Why::Exists),
            (Some(protected.clone()), Transition::Create { by: holder(1) }, Why::Exists),
            (Some(protected.clone()), alone(B, 3), Why::NotPrimary(B)),
            (Some(protected.clone()), alone(A, 2), Why::OtherGeneration { asked: 2 }),
            (Some(exposed.clone()), takeover(B), Why::NotSyncedBackup(B)),
            (Some(protected.clone()), takeover(C), Why::NotSyncedBackup(C)),
            (Some(protected.clone()), takeover(A), Why::NotSyncedBackup(A)),
            (Some(exposed.clone()), add(C, 3, 2), Why::NotPrimary(C)),
            (Some(exposed.clone()), add(A, 2, 2), Why::OtherGeneration { asked: 2 }),
            (Some(exposed.clone()), add(A, 3, 1), Why::OwnBackup),
            (Some(protected.clone()), add(A, 3, 3), Why::HasBackup),
            (Some(protected.clone()), switchover(B, 3, A, true), Why::NotPrimary(B)),
            (Some(protected.clone()), switchover(A, 3, C, true), Why::NotSyncedBackup(C)),
            (Some(exposed.clone()), switchover(A, 3, B, false), Why::NotSyncedBackup(B)),
            (Some(protected.clone()), Transition::Stop { generation: 4 }, Why::OtherGeneration { asked: 4 }),
            (Some(protected.clone()), restart(3, 3, A, None), Why::NotLost),
            (Some(exposed.clone()), restart(3, 3, B, None), Why::NotLost),
            (Some(exposed.clone()), restart(1, 3, A, None), Why::NotLost),
            (Some(exposed), restart(3, 2, A, None), Why::OtherGeneration { asked: 2 }),
            (Some(held(u64::MAX, 3, 1, Some(2))), takeover(B), Why::Exhausted),
        ];
        for (current, transition, why) in rows {
            let refused = Register::apply(current.as_ref(), &transition).unwrap_err();
            assert_eq!(refused, Refused { why, current: current.map(Box::new) }, "{transition:?}");
        }
        let refused = Register::apply(Some(&protected), &takeover(C)).unwrap_err().to_string();
        assert!(
            refused.contains(&holder(1).to_string()) && refused.contains(&holder(2).to_string()),
            "{refused}"
        );
    }

    #[test]
    fn what_cannot_have_come_about_is_not_well_formed() {
        assert!(held(5, 3, 1, Some(2)).is_well_formed());
        assert!(!held(5, 3, 1, Some(1)).is_well_formed());
        assert!(!held(5, 6, 1, None).is_well_formed());
        assert!(!held(0, 0, 1, None).is_well_formed());
    }

    /// Rows of the table with several backups, each of which may be asked for again.
    #[test]
    fn rows_with_several_backups_are_granted_and_may_be_asked_again() {
        let (two, three) = ([(2, None), (3, None)], [(2, None), (3, None), (4, None)]);
        let rows = [
            (held(5, 3, 1, None), backups(&[2, 3], 2), several(6, 3, &two, 2)),
            (held(5, 3, 1, Some(2)), backups(&[2, 3], 1), several(6, 3, &two, 1)),
            (several(5, 3, &two, 2), backups(&[2], 1), held(6, 4, 1, Some(2))),
            (several(5, 3, &two, 2), backups(&[], 0), held(6, 4, 1, None)),
            (several(5, 3, &two, 2), backups(&[2, 4], 2), several(6, 4, &[(2, None), (4, None)], 2)),
            // Who has stopped stays stopped.
            (several(5, 3, &[(2, Some(9)), (3, None)], 1), backups(&[2, 3, 4], 2), {
                several(6, 3, &[(2, Some(9)), (3, None), (4, None)], 2)
            }),
            // All hold what was acknowledged: any of them.
            (several(5, 3, &two, 2), stops(3, 9), held(6, 4, 3, None)),
            // One of two does: both must have stopped.
            (several(5, 3, &two, 1), stops(2, 9), several(6, 3, &[(2, Some(9)), (3, None)], 1)),
            (several(5, 3, &[(2, Some(9)), (3, None)], 1), stops(3, 10), held(6, 4, 3, None)),
            (several(5, 3, &[(2, Some(9)), (3, None)], 1), stops(3, 9), held(6, 4, 3, None)),
            (several(5, 3, &[(2, Some(9)), (3, None)], 1), stops(3, 8), {
                several(6, 3, &[(2, Some(9)), (3, Some(8))], 1)
            }),
            (several(5, 3, &[(2, Some(9)), (3, Some(8))], 1), stops(2, 9), held(6, 4, 2, None)),
            // Two of three: two must have stopped, and one that died since keeps nobody from it.
            (several(5, 3, &[(2, Some(9)), (3, Some(7)), (4, None)], 2), stops(4, 8), held(6, 4, 4, None)),
            (several(5, 3, &three, 2), switchover(A, 3, C, false), held(6, 4, 3, None)),
            (several(5, 3, &two, 1), alone(A, 3), held(6, 4, 1, None)),
        ];
        for (from, transition, to) in rows {
            assert!(from.is_well_formed() && to.is_well_formed());
            assert_eq!(
                Register::apply(Some(&from), &transition),
                Ok(to.clone()),
                "{transition:?} from {from}"
            );
            assert_eq!(Register::apply(Some(&to), &transition), Ok(to.clone()), "{transition:?} again");
        }
        // What was said first stands, whatever is said later.
        let stopped = several(5, 3, &[(2, Some(9)), (3, Some(8))], 1);
        assert_eq!(Register::apply(Some(&stopped), &stops(3, 10)), Ok(stopped.clone()));
    }

    #[test]
    fn several_backups_that_cannot_be_are_refused() {
        let several = several(5, 3, &[(2, None), (3, None)], 2);
        let lost = |lost_backups: Vec<Incarnation>| Transition::RestartLost {
            by: holder(9),
            generation: 3,
            lost: A,
            lost_backups,
        };
        let rows = [
            (Transition::Backups { by: B, backups: vec![], needed: 0 }, Why::NotPrimary(B)),
            (backups(&[2, 1], 1), Why::OwnBackup),
            (backups(&[2, 2], 1), Why::NoSuchBackups),
            (backups(&[2], 0), Why::NoSuchBackups),
            (backups(&[2], 2), Why::NoSuchBackups),
            (backups(&[], 1), Why::NoSuchBackups),
            (backups(&[2, 3, 4, 5, 6, 7, 8, 9], 1), Why::NoSuchBackups),
            (add(A, 3, 2), Why::HasBackup),
            (stops(4, 100), Why::NotSyncedBackup(Incarnation(4))),
            (lost(vec![B]), Why::NotLost),
            (lost(vec![B, Incarnation(4)]), Why::NotLost),
            // One of them was not vouched for.
            (lost(vec![B, B]), Why::NotLost),
        ];
        for (transition, why) in rows {
            let refused = Register::apply(Some(&several), &transition).unwrap_err();
            assert_eq!(refused.why, why, "{transition:?}");
        }
        assert_eq!(Register::apply(Some(&several), &lost(vec![C, B])), Ok(held(6, 4, 9, None)));
        let said = several.to_string();
        assert!(said.contains("protected by 2 of") && said.contains(&holder(3).to_string()), "{said}");
    }

    fn forget(generation: u64, dead: &[u128]) -> Transition {
        let dead = dead.iter().map(|number| Incarnation(*number)).collect();
        Transition::Forget { generation, primary: A, dead }
    }

    fn orphaned(
        (version, generation): (u64, u64),
        left: &[(u128, Option<u64>)],
        dead: &[(u128, Option<u64>)],
        needed: u8,
    ) -> Register {
        let backups = |of: &[(u128, Option<u64>)]| {
            let backup = |(number, stopped_at): &(u128, Option<u64>)| Backup {
                holder: holder(*number),
                stopped_at: *stopped_at,
            };
            of.iter().map(backup).collect()
        };
        let orphaned = Orphaned { primary: holder(1), left: backups(left), dead: backups(dead), needed };
        Register { version, generation, holding: Holding::Orphaned(orphaned), seeds_version: 7 }
    }

    fn goes_on(by: u128, seen: u64) -> Transition {
        Transition::GoOn { by: Incarnation(by), seen }
    }

    /// An operator's word, and what comes of it.
    #[test]
    fn those_that_are_left_go_on_from_the_furthest() {
        let (stopped, silent) = ((3, Some(9)), (2, None));
        let one_of_two = several(5, 3, &[silent, stopped], 1);
        let two_of_three = several(5, 3, &[silent, stopped, (4, None)], 2);
        let rows = [
            (one_of_two.clone(), forget(3, &[2]), orphaned((6, 4), &[stopped], &[silent], 1)),
            (orphaned((6, 4), &[stopped], &[silent], 1), goes_on(3, 6), held(7, 5, 3, None)),
            // Another of the two that are left may hold more.
            (orphaned((6, 4), &[stopped, (4, None)], &[silent], 2), stops(4, 11), {
                orphaned((7, 4), &[stopped, (4, Some(11))], &[silent], 2)
            }),
            (orphaned((7, 4), &[stopped, (4, Some(11))], &[silent], 2), goes_on(4, 7), {
                held(8, 5, 4, None)
            }),
            // One after the other.
            (two_of_three, forget(3, &[2]), orphaned((6, 4), &[stopped, (4, None)], &[silent], 2)),
            (orphaned((6, 4), &[stopped, (4, None)], &[silent], 2), forget(4, &[4]), {
                orphaned((7, 5), &[stopped], &[(4, None), silent], 2)
            }),
            (orphaned((6, 4), &[stopped], &[silent], 1), Transition::Stop { generation: 4 }, {
                tombstone(7, 4)
            }),
        ];
        for (from, transition, to) in rows {
            assert!(from.is_well_formed() && to.is_well_formed());
            assert_eq!(
                Register::apply(Some(&from), &transition),
                Ok(to.clone()),
                "{transition:?} from {from}"
            );
            assert_eq!(Register::apply(Some(&to), &transition), Ok(to.clone()), "{transition:?} again");
        }
        // Who holds less, has not stopped, or has not seen what the register says, goes on asking.
        let waiting = orphaned((7, 4), &[stopped, (4, Some(11)), (5, None)], &[silent], 2);
        for transition in [goes_on(3, 7), goes_on(4, 6), goes_on(4, 7), goes_on(5, 7), stops(3, 20)] {
            assert_eq!(Register::apply(Some(&waiting), &transition), Ok(waiting.clone()), "{transition:?}");
        }
        let restart =
            Transition::RestartLost { by: holder(9), generation: 4, lost: A, lost_backups: vec![C] };
        let lost = orphaned((6, 4), &[stopped], &[silent], 1);
        assert_eq!(Register::apply(Some(&lost), &restart), Ok(held(7, 5, 9, None)));
    }

    /// R2: the word of an operator is final, and one who is said to be dead has no right any more.
    #[test]
    fn r2_who_was_declared_dead_gets_nothing() {
        let orphaned = orphaned((6, 4), &[(3, Some(9))], &[(2, None)], 1);
        let rows = [
            (alone(A, 3), Why::NotPrimary(A)),
            (alone(A, 4), Why::NotPrimary(A)),
            (backups(&[2], 1), Why::NotPrimary(A)),
            (switchover(A, 4, C, false), Why::NotPrimary(A)),
            (stops(2, 100), Why::NotSyncedBackup(B)),
            (goes_on(2, 6), Why::NotSyncedBackup(B)),
            (stops(1, 100), Why::NotSyncedBackup(A)),
            (Transition::Create { by: holder(2) }, Why::Exists),
            (forget(4, &[9]), Why::NotLost),
            (forget(2, &[2]), Why::OtherGeneration { asked: 2 }),
            (forget(4, &[3]), Why::NobodyLeft),
            (Transition::Stop { generation: 3 }, Why::OtherGeneration { asked: 3 }),
            (restart(2, 4, A, Some(C)), Why::NotLost),
        ];
        for (transition, why) in rows {
            let refused = Register::apply(Some(&orphaned), &transition).unwrap_err();
            assert_eq!(refused.why, why, "{transition:?}");
        }
        let after = Register::apply(Some(&orphaned), &goes_on(3, 6)).unwrap();
        for transition in [backups(&[2], 1), alone(A, 5), stops(2, 100), goes_on(2, 7), forget(4, &[2])] {
            assert!(Register::apply(Some(&after), &transition).is_err(), "{transition:?}");
        }
    }

    #[test]
    fn nobody_is_forgotten_who_may_be_missed_by_nobody() {
        let silent = several(5, 3, &[(2, None), (3, None)], 1);
        let stopped = several(5, 3, &[(2, None), (3, Some(9))], 1);
        let rows = [
            (silent, forget(3, &[2]), Why::NotMissed),
            (stopped.clone(), forget(3, &[]), Why::NotLost),
            (stopped.clone(), forget(3, &[4]), Why::NotLost),
            (stopped.clone(), forget(2, &[2]), Why::OtherGeneration { asked: 2 }),
            (stopped.clone(), forget(3, &[2, 3]), Why::NobodyLeft),
            // The one that would be left has not lost its primary.
            (stopped.clone(), forget(3, &[3]), Why::NotMissed),
            (stopped.clone(), goes_on(3, 5), Why::NotSyncedBackup(C)),
            (stopped, Transition::Forget { generation: 3, primary: B, dead: vec![B] }, Why::NotLost),
            (held(5, 3, 1, Some(2)), forget(3, &[2]), Why::NobodyLeft),
            (held(5, 3, 1, None), forget(3, &[2]), Why::NotLost),
            (tombstone(5, 3), forget(3, &[2]), Why::Stopped),
        ];
        for (from, transition, why) in rows {
            let refused = Register::apply(Some(&from), &transition).unwrap_err();
            assert_eq!(refused.why, why, "{transition:?} from {from}");
        }
    }

    #[test]
    fn what_may_be_lost_is_said_as_far_as_it_is_known() {
        type Case = (&'static [(u128, Option<u64>)], &'static [(u128, Option<u64>)], u8, Lacks);
        let cases: [Case; 6] = [
            (&[(3, Some(9))], &[(2, None)], 1, Lacks::Unknown),
            (&[(3, Some(9))], &[(2, Some(14))], 1, Lacks::AtMost(5)),
            (&[(3, Some(9))], &[(2, Some(4))], 1, Lacks::AtMost(0)),
            // Two of three held it: one of these is left.
            (&[(3, Some(9)), (4, Some(7))], &[(2, None)], 2, Lacks::AtMost(0)),
            // What one of the dead held alone was not acknowledged.
            (&[(3, Some(9))], &[(2, Some(14)), (4, Some(11))], 2, Lacks::AtMost(2)),
            (&[(3, Some(9))], &[(2, None), (4, None)], 2, Lacks::Unknown),
        ];
        for (left, dead, needed, lacks) in cases {
            let register = orphaned((6, 4), left, dead, needed);
            let Holding::Orphaned(orphaned) = &register.holding else { panic!() };
            assert!(orphaned.may_go_on(C));
            assert_eq!(orphaned.furthest().unwrap().holder, holder(3));
            assert_eq!(orphaned.lacks(9), lacks, "{register}");
            assert_eq!(Transition::by_backup(C, 9, Some(&register)), Transition::GoOn { by: C, seen: 6 });
        }
        assert_eq!(Transition::by_backup(C, 9, None), stops(3, 9));
        let said = orphaned((6, 4), &[(3, Some(9))], &[(2, None)], 1).to_string();
        assert!(said.contains("held by nobody") && said.contains("stopped after 9"), "{said}");
        for (left, dead, needed) in [
            (&[][..], &[(2, None)][..], 1),
            (&[(3, None)], &[], 1),
            (&[(3, None)], &[(3, None)], 1),
            (&[(3, None)], &[(1, None)], 1),
            (&[(3, None)], &[(2, None)], 0),
            (&[(3, None)], &[(2, None)], 3),
        ] {
            assert!(!orphaned((6, 4), left, dead, needed).is_well_formed());
        }
    }
}
