//! Counting votes.

use crate::{Life, Seeds, Voter};

/// The votes on one question, at most one per seed node.
///
/// A seed node that was wiped and taught again begins a new life, and those who taught it know. What it voted in an
/// earlier life it no longer stands by, unless a teacher of its had cast the same vote before teaching. Hence the
/// rule: a vote does not count beside one that knows its life to be over. A majority that passes this rule shares a
/// teacher who voted first and taught after, so the new life inherited the vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tally<T> {
    votes: Vec<Option<(Voter, T)>>,
}

impl<T> Tally<T> {
    pub fn new(seeds: &Seeds) -> Self {
        Self { votes: seeds.members().iter().map(|_| None).collect() }
    }

    /// Notes the vote of the seed node at `place`; of two, that of the later life. Votes about other sets of seed
    /// nodes are dropped.
    pub fn cast(&mut self, place: usize, voter: Voter, vote: T) {
        let seeds = self.votes.len();
        let Some(cast) = self.votes.get_mut(place) else { return };
        if voter.lives.len() == seeds && cast.as_ref().is_none_or(|(before, _)| before.life < voter.life) {
            *cast = Some((voter, vote));
        }
    }

    /// Which life of the seed node at `place` is the latest that any voter knows of.
    fn latest_life(&self, place: usize) -> Life {
        let known = |(voter, _): &(Voter, T)| voter.lives.get(place).copied().unwrap_or_default();
        self.votes.iter().flatten().map(known).max().unwrap_or_default()
    }

    /// The votes that count, with the place of who cast them.
    pub fn counted(&self) -> impl Iterator<Item = (usize, &Voter, &T)> {
        self.votes.iter().enumerate().filter_map(|(place, cast)| {
            let (voter, vote) = cast.as_ref()?;
            (voter.life >= self.latest_life(place)).then_some((place, voter, vote))
        })
    }

    pub fn counts(&self, place: usize) -> bool {
        self.counted().any(|(counted, ..)| counted == place)
    }

    /// All that the counted voters know, together.
    pub fn lives(&self) -> Vec<Life> {
        (0..self.votes.len()).map(|place| self.latest_life(place)).collect()
    }
}

#[cfg(test)]
impl<T: Clone + std::hash::Hash> Tally<T> {
    pub fn hash_vote(&self, place: usize, hasher: &mut impl std::hash::Hasher) {
        std::hash::Hash::hash(&self.votes[place], hasher);
    }

    pub fn reorder(&mut self, order: &[usize]) {
        self.votes = order.iter().map(|old| self.votes[*old].clone()).collect();
        for (voter, _) in self.votes.iter_mut().flatten() {
            voter.lives = order.iter().map(|old| voter.lives[*old]).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;

    fn voter(life: u64, lives: [u64; 3]) -> Voter {
        Voter { life: Life(life), lives: lives.map(Life).to_vec() }
    }

    fn tally() -> Tally<char> {
        let names = ["s0", "s1", "s2"].map(|name| name.parse().unwrap()).to_vec();
        Tally::new(&Seeds::new(ClusterId(1), 1, names).unwrap())
    }

    fn counted(tally: &Tally<char>) -> String {
        tally.counted().map(|(.., vote)| *vote).collect()
    }

    #[test]
    fn a_vote_counts_once() {
        let mut tally = tally();
        tally.cast(0, voter(0, [0, 0, 0]), 'a');
        tally.cast(0, voter(0, [0, 0, 0]), 'b');
        assert_eq!(counted(&tally), "a");
    }

    #[test]
    fn a_vote_of_a_life_known_to_be_over_does_not_count() {
        let mut tally = tally();
        tally.cast(0, voter(0, [0, 0, 0]), 'a');
        tally.cast(1, voter(0, [1, 0, 0]), 'b');
        assert_eq!(counted(&tally), "b");
        assert!(!tally.counts(0));
        tally.cast(0, voter(1, [1, 0, 0]), 'c');
        assert_eq!(counted(&tally), "cb");
        assert_eq!(tally.lives(), [1, 0, 0].map(Life));
    }

    #[test]
    fn a_vote_about_other_seeds_is_dropped() {
        let mut tally = tally();
        tally.cast(0, Voter { life: Life(0), lives: vec![Life(0)] }, 'a');
        tally.cast(9, voter(0, [0, 0, 0]), 'a');
        assert_eq!(counted(&tally), "");
    }
}
