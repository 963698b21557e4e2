//! How a seed node that lost its history gets it back from the others.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::tally::Tally;
use crate::{
    Action, Answer, Ask, Attempt, Declined, Life, NodeName, Request, Response, Seeds, Slot, Voter,
    WorkloadName,
};

/// What a wiped seed node was taught by a majority of the others: enough to stand by every vote of its that any
/// proposer may have counted. For [`Acceptor::take_lesson`](crate::Acceptor::take_lesson).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    seeds: Seeds,
    me: NodeName,
    lives: Vec<(Life, Attempt)>,
    slots: BTreeMap<WorkloadName, Slot>,
}

impl Lesson {
    pub(crate) fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    pub(crate) fn me(&self) -> &NodeName {
        &self.me
    }

    pub(crate) fn lives(&self) -> &[(Life, Attempt)] {
        &self.lives
    }

    pub(crate) fn into_slots(self) -> BTreeMap<WorkloadName, Slot> {
        self.slots
    }
}

/// The pages that one teacher has given so far.
#[derive(Clone, Debug, Default)]
struct Pages {
    life: Option<Life>,
    after: Option<WorkloadName>,
    slots: BTreeMap<WorkloadName, Slot>,
    done: bool,
}

/// Asks all other seed nodes, page by page, until a majority of the seed nodes, without this one, has taught
/// everything it knows. It never gives up: until it succeeds this node has no vote, which is safe.
pub struct Learner {
    seeds: Seeds,
    me: NodeName,
    attempt: Attempt,
    life: Life,
    pages: Vec<Pages>,
    /// Whose pages are complete. Teaching is a vote like any other: that of a teacher which was itself wiped
    /// meanwhile must not count beside one that knows.
    taught: Tally<()>,
    resend: Duration,
    next_send: Duration,
    /// No further life is left to begin.
    exhausted: bool,
}

impl Learner {
    /// `attempt` is [random](Attempt::random) and never used again; a request without an answer is repeated every
    /// `resend`.
    pub fn new(seeds: Seeds, me: NodeName, attempt: Attempt, now: Duration, resend: Duration) -> Self {
        let pages = vec![Pages::default(); seeds.members().len()];
        let taught = Tally::new(&seeds);
        let life = Life(1);
        Self { seeds, me, attempt, life, pages, taught, resend, next_send: now, exhausted: false }
    }

    /// What to send now.
    pub fn poll(&mut self, now: Duration) -> Vec<Action> {
        if now < self.next_send || self.exhausted {
            return Vec::new();
        }
        self.next_send = now.saturating_add(self.resend);
        for (place, pages) in self.pages.iter_mut().enumerate() {
            // Complete, but of a life that another teacher knows to be over: from the start, in the new one.
            if pages.done && !self.taught.counts(place) {
                *pages = Pages::default();
            }
        }
        let mut actions = Vec::new();
        for (node, pages) in self.seeds.members().iter().zip(&self.pages) {
            if *node != self.me && !pages.done {
                actions.push(Action::Send { to: node.clone(), request: self.ask(pages) });
            }
        }
        actions
    }

    fn ask(&self, pages: &Pages) -> Request {
        Request {
            cluster: self.seeds.cluster(),
            seeds_version: self.seeds.version(),
            attempt: self.attempt,
            ask: Ask::Teach { life: self.life, after: pages.after.clone() },
        }
    }

    /// Takes an answer from the node that the transport authenticated as `from`.
    pub fn on_response(&mut self, from: &NodeName, response: &Response, now: Duration) {
        if response.cluster != self.seeds.cluster() || response.attempt != self.attempt || *from == self.me {
            return;
        }
        let Some(place) = self.seeds.place(from) else { return };
        match &response.answer {
            Answer::Taught { life, after, voter, slots, more } if *life == self.life => {
                self.take_page(place, after, voter, slots, *more);
                if *more {
                    self.next_send = now;
                }
            }
            Answer::LifeTaken { life } if *life >= self.life => match life.0.checked_add(1) {
                Some(next) => {
                    self.life = Life(next);
                    self.forget();
                    self.next_send = now;
                }
                None => self.exhausted = true,
            },
            // A teacher that was wiped meanwhile has to start over, once it can teach.
            Answer::Declined(Declined::Blank | Declined::Learning) if !self.pages[place].done => {
                self.pages[place] = Pages::default();
            }
            _ => {}
        }
    }

    fn take_page(
        &mut self,
        place: usize,
        after: &Option<WorkloadName>,
        voter: &Voter,
        slots: &[(WorkloadName, Slot)],
        more: bool,
    ) {
        let pages = &mut self.pages[place];
        if pages.done {
            return;
        }
        if pages.life.is_some_and(|life| life != voter.life) {
            *pages = Pages::default();
        }
        if pages.after != *after {
            return;
        }
        pages.life = Some(voter.life);
        pages.slots.extend(slots.iter().cloned());
        match slots.last() {
            Some((last, _)) if more && pages.after.as_ref() < Some(last) => pages.after = Some(last.clone()),
            // A teacher that says more follows but does not get on would be asked for ever.
            _ if more => *pages = Pages::default(),
            _ => {
                pages.done = true;
                self.taught.cast(place, voter.clone(), ());
            }
        }
    }

    fn forget(&mut self) {
        self.pages.fill(Pages::default());
        self.taught = Tally::new(&self.seeds);
    }

    /// Everything, once a majority without this node has taught it.
    pub fn lesson(&self) -> Option<Lesson> {
        let counted = self.taught.counted().map(|(place, ..)| place);
        let teachers: Vec<usize> = counted.filter(|place| self.pages[*place].done).collect();
        if teachers.len() < self.seeds.majority() {
            return None;
        }
        let mut slots = BTreeMap::<WorkloadName, Slot>::new();
        for (workload, slot) in teachers.iter().flat_map(|place| &self.pages[*place].slots) {
            let known = slots.entry(workload.clone()).or_default();
            known.promised = known.promised.max(slot.promised);
            let ballot = |slot: &Slot| slot.accepted.as_ref().map(|accepted| accepted.ballot);
            if ballot(known) < ballot(slot) {
                known.accepted = slot.accepted.clone();
            }
        }
        // Who began the others' lives matters only to those who taught them.
        let mut lives: Vec<_> = self.taught.lives().into_iter().map(|life| (life, Attempt(0))).collect();
        lives[self.seeds.place(&self.me)?] = (self.life, self.attempt);
        Some(Lesson { seeds: self.seeds.clone(), me: self.me.clone(), lives, slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Acceptor, ClusterId, MemoryStorage, Standing};

    const TEACHERS: [usize; 2] = [1, 2];

    struct Cluster {
        seeds: Seeds,
        teachers: BTreeMap<usize, Acceptor<MemoryStorage>>,
    }

    impl Cluster {
        /// Both teachers have promised something for `count` workloads, but the second something later.
        fn new(count: usize) -> Self {
            let names: Vec<NodeName> = ["s0", "s1", "s2"].map(|name| name.parse().unwrap()).to_vec();
            let seeds = Seeds::new(ClusterId(1), 1, names).unwrap();
            let teachers = TEACHERS.map(|place| {
                let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
                acceptor.bootstrap(seeds.clone(), seeds.members()[place].clone()).unwrap();
                for number in 0..count {
                    let workload = format!("w{number}").parse().unwrap();
                    let ask = Ask::Prepare { workload, counter: place as u64 };
                    let request =
                        Request { cluster: ClusterId(1), seeds_version: 1, attempt: Attempt(7), ask };
                    acceptor.handle(&seeds.members()[0], &request);
                }
                (place, acceptor)
            });
            Self { seeds, teachers: teachers.into() }
        }

        fn learner(&self, attempt: u128) -> Learner {
            let me = self.seeds.members()[0].clone();
            Learner::new(self.seeds.clone(), me, Attempt(attempt), Duration::ZERO, Duration::from_millis(20))
        }

        fn teach(&mut self, learner: &mut Learner, heard: &[usize]) {
            for _ in 0..100 {
                let now = learner.next_send;
                for Action::Send { to, request } in learner.poll(now) {
                    let place = self.seeds.place(&to).unwrap();
                    if heard.contains(&place) {
                        let teacher = self.teachers.get_mut(&place).unwrap();
                        let response = teacher.handle(&self.seeds.members()[0], &request);
                        learner.on_response(&to, &response, now);
                    }
                }
            }
        }
    }

    #[test]
    fn all_pages_of_a_majority_make_a_lesson() {
        let count = 3 * crate::message::LESSON_PAGE + 1;
        let mut cluster = Cluster::new(count);
        let mut learner = cluster.learner(1);
        cluster.teach(&mut learner, &TEACHERS);
        let lesson = learner.lesson().unwrap();
        assert_eq!(lesson.slots.len(), count);
        assert!(
            lesson.slots.values().all(|slot| slot.promised.unwrap().counter == 2),
            "not the latest promise"
        );

        let mut wiped = Acceptor::open(MemoryStorage::default()).unwrap();
        wiped.rejoin(cluster.seeds.clone(), cluster.seeds.members()[0].clone()).unwrap();
        wiped.take_lesson(lesson).unwrap();
        assert_eq!(wiped.standing(), Standing::Voting);
    }

    #[test]
    fn one_teacher_of_three_is_not_enough() {
        let mut cluster = Cluster::new(1);
        let mut learner = cluster.learner(1);
        cluster.teach(&mut learner, &[1]);
        assert_eq!(learner.lesson(), None);
    }

    #[test]
    fn who_was_wiped_twice_begins_a_later_life() {
        let mut cluster = Cluster::new(1);
        let mut first = cluster.learner(1);
        cluster.teach(&mut first, &[1]);
        let mut second = cluster.learner(2);
        cluster.teach(&mut second, &TEACHERS);
        assert_eq!(second.lesson().unwrap().lives[0], (Life(2), Attempt(2)));
    }

    fn response(attempt: u128, answer: Answer) -> Response {
        Response { cluster: ClusterId(1), attempt: Attempt(attempt), answer }
    }

    #[test]
    fn a_late_answer_does_not_undo_complete_pages() {
        let mut cluster = Cluster::new(3);
        let mut learner = cluster.learner(1);
        cluster.teach(&mut learner, &TEACHERS);
        let lesson = learner.lesson();
        let voter = Voter { life: Life(1), lives: vec![Life(0); 3] };
        let empty = Answer::Taught { life: Life(1), after: None, voter, slots: vec![], more: true };
        for late in [Answer::Declined(Declined::Learning), empty] {
            learner.on_response(&cluster.seeds.members()[1].clone(), &response(1, late), Duration::ZERO);
            assert_eq!(learner.lesson(), lesson);
        }
    }

    /// The first teacher was wiped after it taught; the second had taught that one, and says so.
    #[test]
    fn a_teacher_of_a_life_that_is_over_is_asked_again() {
        let mut cluster = Cluster::new(1);
        let mut learner = cluster.learner(1);
        cluster.teach(&mut learner, &[1]);
        let again = Request {
            cluster: ClusterId(1),
            seeds_version: 1,
            attempt: Attempt(9),
            ask: Ask::Teach { life: Life(1), after: None },
        };
        let first = cluster.seeds.members()[1].clone();
        cluster.teachers.get_mut(&2).unwrap().handle(&first, &again);
        cluster.teach(&mut learner, &[2]);
        assert_eq!(learner.lesson(), None, "what the first taught before it was wiped was counted");
        let asked = learner.poll(learner.next_send);
        assert!(asked.iter().any(|Action::Send { to, .. }| *to == first));
    }
}
