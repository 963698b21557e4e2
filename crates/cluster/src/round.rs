//! One ballot of one proposer: both phases of CASPaxos, without time. [`Proposer`](crate::Proposer) adds that; the
//! model checker runs this as it is.

use crate::tally::Tally;
use crate::{Accepted, Answer, Ask, Attempt, Ballot, Refused, Register, Seeds, Transition, WorkloadName};

/// What a round is to bring about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    Change(Transition),
    Read,
}

/// What holds once the value of the second phase is agreed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Granted(Register),
    Refused(Refused),
    Read(Option<Register>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per round, and every round that matters ends in the large one"
)]
enum Phase {
    Prepare(Tally<Option<Accepted>>),
    Accept { value: Option<Register>, before: Option<Register>, votes: Tally<()> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Round {
    ballot: Ballot,
    phase: Phase,
    /// The highest ballot that outbid this one, by seed node.
    outbid: Vec<Option<Ballot>>,
}

/// What an answer brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Waiting,
    /// The second phase has begun: everybody is to be asked anew.
    Proposing,
    Agreed(Verdict),
}

impl Round {
    pub fn new(ballot: Ballot, seeds: &Seeds) -> Self {
        let outbid = vec![None; seeds.members().len()];
        Self { ballot, phase: Phase::Prepare(Tally::new(seeds)), outbid }
    }

    /// What to ask the seed node at `place` now, if its vote is still wanted.
    pub fn ask(&self, place: usize, workload: &WorkloadName) -> Option<Ask> {
        let (workload, counter) = (workload.clone(), self.ballot.counter);
        match &self.phase {
            Phase::Prepare(votes) => (!votes.counts(place)).then_some(Ask::Prepare { workload, counter }),
            Phase::Accept { value, votes, .. } => {
                (!votes.counts(place)).then(|| Ask::Accept { workload, counter, value: value.clone() })
            }
        }
    }

    /// Takes the answer of the seed node at `place`.
    pub fn on_answer(&mut self, place: usize, answer: &Answer, wish: &Wish, seeds: &Seeds) -> Step {
        let mine = self.ballot.counter;
        match (answer, &mut self.phase) {
            (Answer::Promised { counter, voter, accepted }, Phase::Prepare(votes)) if *counter == mine => {
                votes.cast(place, voter.clone(), accepted.clone());
                if votes.counted().count() < seeds.majority() {
                    return Step::Waiting;
                }
                let latest = votes.counted().filter_map(|(.., accepted)| accepted.as_ref());
                let current = latest.max_by_key(|accepted| accepted.ballot).and_then(|a| a.value.clone());
                self.propose(current, wish, seeds);
                Step::Proposing
            }
            (Answer::Accepted { counter, voter }, Phase::Accept { votes, before, .. })
                if *counter == mine =>
            {
                votes.cast(place, voter.clone(), ());
                if votes.counted().count() < seeds.majority() {
                    return Step::Waiting;
                }
                Step::Agreed(verdict(before.as_ref(), wish, seeds))
            }
            (Answer::Outbid { counter, promised }, _) if *counter == mine => {
                if let Some(outbid) = self.outbid.get_mut(place) {
                    *outbid = (*outbid).max(Some(*promised));
                }
                Step::Waiting
            }
            _ => Step::Waiting,
        }
    }

    /// Begins the second phase. It is gone through even where nothing changes, for a read or a refusal: what was
    /// found may have been voted for by a minority, or an older proposal by another minority, and either could still
    /// be agreed or undone. Once this value is agreed at this ballot, everything older is settled.
    fn propose(&mut self, current: Option<Register>, wish: &Wish, seeds: &Seeds) {
        let value = match verdict(current.as_ref(), wish, seeds) {
            Verdict::Granted(register) => Some(register),
            Verdict::Refused(_) | Verdict::Read(_) => current.clone(),
        };
        self.phase = Phase::Accept { value, before: current, votes: Tally::new(seeds) };
    }

    /// What the first phase found.
    #[cfg(test)]
    pub fn found(&self) -> Option<Register> {
        match &self.phase {
            Phase::Prepare(_) => None,
            Phase::Accept { before, .. } => before.clone(),
        }
    }

    /// What this round knows of the seed node at `place`.
    #[cfg(test)]
    pub fn hash_votes(&self, place: usize, hasher: &mut impl std::hash::Hasher) {
        match &self.phase {
            Phase::Prepare(votes) => votes.hash_vote(place, hasher),
            Phase::Accept { votes, .. } => votes.hash_vote(place, hasher),
        }
    }

    /// Gives the seed nodes other places: the new first is the one that `order` names first.
    #[cfg(test)]
    pub fn reorder(&mut self, order: &[usize]) {
        match &mut self.phase {
            Phase::Prepare(votes) => votes.reorder(order),
            Phase::Accept { votes, .. } => votes.reorder(order),
        }
        self.outbid = order.iter().map(|old| self.outbid[*old]).collect();
    }

    /// Whether it is in its second phase.
    pub fn is_proposing(&self) -> bool {
        matches!(self.phase, Phase::Accept { .. })
    }

    /// Whether a change of the register may have gone out.
    pub fn has_proposed_change(&self) -> bool {
        match &self.phase {
            Phase::Prepare(_) => false,
            Phase::Accept { value, before, .. } => value != before,
        }
    }

    /// The highest ballot seen to be above this one.
    pub fn outbid(&self) -> Option<Ballot> {
        self.outbid.iter().copied().max().flatten()
    }

    /// Whether so many seed nodes have promised a higher ballot that this one cannot win.
    pub fn is_hopeless(&self, seeds: &Seeds) -> bool {
        let lost = self.outbid.iter().flatten().count();
        self.outbid.len() - lost < seeds.majority()
    }
}

fn verdict(current: Option<&Register>, wish: &Wish, seeds: &Seeds) -> Verdict {
    match wish {
        Wish::Read => Verdict::Read(current.cloned()),
        Wish::Change(transition) => match Register::apply(current, transition) {
            Err(refused) => Verdict::Refused(refused),
            Ok(register) if Some(&register) == current => Verdict::Granted(register),
            Ok(register) => Verdict::Granted(Register { seeds_version: seeds.version(), ..register }),
        },
    }
}

/// A ballot above `seen`, or none if numbers run out (see [`MAX_COUNTER`](crate::message::MAX_COUNTER)).
pub(crate) fn ballot_above(seen: Option<Ballot>, attempt: Attempt) -> Option<Ballot> {
    let counter = seen.map_or(0, |ballot| ballot.counter).checked_add(1)?;
    (counter <= crate::message::MAX_COUNTER).then_some(Ballot { counter, attempt })
}
