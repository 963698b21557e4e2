//! The register: who may speak for a workload, and the only ways in which that may change.
//!
//! | from | to | by whom, when |
//! |---|---|---|
//! | nothing, or a tombstone at g | {1 or g+1, A, none} | [`Transition::Create`]: the first primary |
//! | {g, A, B} | {g+1, A, none} | [`Transition::PrimaryAlone`]: A, whose backup is gone |
//! | {g, A, B} | {g+1, B, none} | [`Transition::BackupTakesOver`]: B, which has stopped acknowledging for good |
//! | {g, A, none} | {g, A, B'} | [`Transition::AddBackup`]: A, see there for what must hold first |
//! | {g, A, B} | {g+1, B, A or none} | [`Transition::Switchover`]: A, which has stopped |
//! | {g, A, any} | tombstone at g | [`Transition::Stop`]: whoever vouches that the workload is silent |
//! | {g, A, any} | {g+1, C, none} | [`Transition::RestartLost`]: an operator or a policy, never silently |

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Incarnation, NodeName};

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
        synced_backup: Option<Holder>,
    },
    /// The workload was stopped. What remains is its generation.
    Tombstone,
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
    /// The synced backup's primary is gone. The backup must have stopped acknowledging, irrevocably, before it asks.
    BackupTakesOver { by: Incarnation },
    /// The primary has a new synced backup. Before it asks, it must have plugged its output, and the backup must
    /// have committed everything up to the last output that left before the plug: committing a checkpoint taken
    /// earlier is not enough, or what left in between is lost to the backup. The plug stays until the outcome is known.
    AddBackup { by: Incarnation, generation: u64, backup: Holder },
    /// The primary hands over to its backup, having stopped for good what it does as primary; `stays` if it goes on
    /// as the new primary's synced backup, with the very state it handed over.
    Switchover { by: Incarnation, generation: u64, to: Incarnation, stays: bool },
    /// The end of the workload, which must be silent already.
    Stop { generation: u64 },
    /// The lost workload starts anew from nothing, because an operator or a policy said so. It names the
    /// incarnations that whoever ordered it vouches are dead: a register that says anything else refuses.
    RestartLost { by: Holder, generation: u64, lost: Incarnation, lost_backup: Option<Incarnation> },
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
    #[error("the request was made for generation {asked}, which has passed")]
    OtherGeneration { asked: u64 },
    #[error(
        "the workload is not lost as described: look again at who holds it before vouching for their death"
    )]
    NotLost,
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
            Holding::Held { primary, synced_backup: None } => {
                write!(f, "generation {generation} is held by {primary}, exposed")
            }
            Holding::Held { primary, synced_backup: Some(backup) } => {
                write!(f, "generation {generation} is held by {primary}, protected by {backup}")
            }
        }
    }
}

impl Register {
    pub fn primary(&self) -> Option<&Holder> {
        match &self.holding {
            Holding::Held { primary, .. } => Some(primary),
            Holding::Tombstone => None,
        }
    }

    pub fn synced_backup(&self) -> Option<&Holder> {
        match &self.holding {
            Holding::Held { synced_backup, .. } => synced_backup.as_ref(),
            Holding::Tombstone => None,
        }
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
                    let holding = Holding::Held { primary: by.clone(), synced_backup: None };
                    Ok(Register { version: 1, generation: 1, holding, seeds_version: 0 })
                }
                _ => Err(Why::NeverCreated),
            };
        };
        let Holding::Held { primary, synced_backup } = &now.holding else {
            return match transition {
                Transition::Create { by } => now.grant(by, None),
                Transition::Stop { generation } if *generation == now.generation => Ok(now.clone()),
                Transition::Stop { generation } => Err(Why::OtherGeneration { asked: *generation }),
                _ => Err(Why::Stopped),
            };
        };
        let leads = |incarnation: &Incarnation| primary.incarnation == *incarnation;
        let leads_alone = |incarnation: &Incarnation| leads(incarnation) && synced_backup.is_none();
        let backs_up = |incarnation: &Incarnation| {
            synced_backup.as_ref().is_some_and(|backup| backup.incarnation == *incarnation)
        };
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

            Transition::BackupTakesOver { by } if leads_alone(by) => Ok(now.clone()),
            Transition::BackupTakesOver { by } => match synced_backup {
                Some(backup) if backs_up(by) => now.grant(backup, None),
                _ => Err(Why::NotSyncedBackup(*by)),
            },

            Transition::AddBackup { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::AddBackup { generation, backup, .. } => {
                this_generation(generation)?;
                if leads(&backup.incarnation) {
                    return Err(Why::OwnBackup);
                }
                match synced_backup {
                    Some(_) if backs_up(&backup.incarnation) => Ok(now.clone()),
                    Some(_) => Err(Why::HasBackup),
                    None => now.change(
                        now.generation,
                        Holding::Held { primary: primary.clone(), synced_backup: Some(backup.clone()) },
                    ),
                }
            }

            Transition::Switchover { by, generation, to, stays }
                if leads(to)
                    && follows(generation)
                    && (if *stays { backs_up(by) } else { synced_backup.is_none() }) =>
            {
                Ok(now.clone())
            }
            Transition::Switchover { by, .. } if !leads(by) => Err(Why::NotPrimary(*by)),
            Transition::Switchover { generation, to, stays, .. } => {
                this_generation(generation)?;
                match synced_backup {
                    Some(backup) if backs_up(to) => now.grant(backup, stays.then_some(primary)),
                    _ => Err(Why::NotSyncedBackup(*to)),
                }
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
            Transition::RestartLost { by, generation, lost, lost_backup } => {
                this_generation(generation)?;
                let named = leads(lost) && *lost_backup == synced_backup.as_ref().map(|b| b.incarnation);
                let is_new = by.incarnation != *lost && Some(by.incarnation) != *lost_backup;
                if named && is_new { now.grant(by, None) } else { Err(Why::NotLost) }
            }
        }
    }

    /// The next generation, to `primary`.
    fn grant(&self, primary: &Holder, synced_backup: Option<&Holder>) -> Result<Register, Why> {
        let generation = self.generation.checked_add(1).ok_or(Why::Exhausted)?;
        self.change(
            generation,
            Holding::Held { primary: primary.clone(), synced_backup: synced_backup.cloned() },
        )
    }

    fn change(&self, generation: u64, holding: Holding) -> Result<Register, Why> {
        let version = self.version.checked_add(1).ok_or(Why::Exhausted)?;
        Ok(Register { version, generation, holding, seeds_version: self.seeds_version })
    }

    /// What every register satisfies, however it came about: checked where one comes off a wire or a disk.
    pub(crate) fn is_well_formed(&self) -> bool {
        let own_backup = match (self.primary(), self.synced_backup()) {
            (Some(primary), Some(backup)) => primary.incarnation == backup.incarnation,
            _ => false,
        };
        self.version >= 1 && self.generation >= 1 && self.generation <= self.version && !own_backup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(number: u128) -> Holder {
        Holder { incarnation: Incarnation(number), node: format!("node{number}").parse().unwrap() }
    }

    fn held(version: u64, generation: u64, primary: u128, backup: Option<u128>) -> Register {
        let holding = Holding::Held { primary: holder(primary), synced_backup: backup.map(holder) };
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
        Transition::BackupTakesOver { by }
    }

    fn add(by: Incarnation, generation: u64, backup: u128) -> Transition {
        Transition::AddBackup { by, generation, backup: holder(backup) }
    }

    fn switchover(by: Incarnation, generation: u64, to: Incarnation, stays: bool) -> Transition {
        Transition::Switchover { by, generation, to, stays }
    }

    fn restart(by: u128, generation: u64, lost: Incarnation, lost_backup: Option<Incarnation>) -> Transition {
        Transition::RestartLost { by: holder(by), generation, lost, lost_backup }
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
}
