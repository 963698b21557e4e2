//! One seed node's side: it votes, and keeps its word over a loss of power.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::message::{LESSON_PAGE, MAX_COUNTER};
use crate::store::{Identity, Record, Storage, StoreError};
use crate::{
    Accepted, Answer, Ask, Attempt, Ballot, Declined, Lesson, Life, NodeName, Register, Request, Response,
    Seeds, Slot, Voter, WorkloadName,
};

/// How many registers a seed node holds. A register stays after its workload was stopped, so this bounds all names
/// ever used: 65,536 of at most 640 bytes are 40 MiB in memory.
const MAX_REGISTERS: usize = 65_536;

/// Whether a seed node votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is on its disk: new, or wiped. Only who installs it can know which.
    Blank,
    /// It was wiped, and waits to be taught.
    Learning,
    Voting,
}

/// A change of a seed node's standing that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("node {me} is not among the seed nodes it was given: correct the list or the node's name")]
    NotASeed { me: NodeName },
    #[error("this seed node already belongs to cluster {}: remove its arbitration state first", .0.cluster())]
    NotBlank(Seeds),
    #[error("this seed node is not waiting to be taught")]
    NotLearning,
    #[error("what was taught belongs to other seed nodes than this one's")]
    OtherLesson,
    #[error("with {0} seed nodes a majority without the lost one does not exist: teach it by hand")]
    ByHandOnly(usize),
    #[error("a register that was given by hand is malformed: {0}")]
    Malformed(WorkloadName),
    #[error("cannot keep this seed node's standing")]
    Store(#[from] StoreError),
}

/// A seed node's votes. Memory mirrors the disk: it changes only after the disk did.
pub struct Acceptor<S> {
    storage: S,
    identity: Option<Identity>,
    slots: BTreeMap<WorkloadName, Slot>,
    /// After a failed write nobody can say what is on the disk (a second fsync may succeed without having written:
    /// fsync(2), "EIO"), so this node is mute until it is opened again.
    failure: Option<StoreError>,
}

impl<S: Storage> Acceptor<S> {
    /// Takes up what is on disk.
    pub fn open(storage: S) -> Result<Self, StoreError> {
        let (identity, slots) = match storage.load()? {
            None => (None, BTreeMap::new()),
            Some(disk) => {
                let seeds = disk.identity.seeds.members();
                let lives = disk.identity.lives.as_ref().map_or(seeds.len(), Vec::len);
                if lives != seeds.len() || !seeds.contains(&disk.identity.me) {
                    return Err(StoreError::Damaged { what: "this seed node's identity".to_owned() });
                }
                (Some(disk.identity), disk.slots)
            }
        };
        Ok(Self { storage, identity, slots, failure: None })
    }

    pub fn standing(&self) -> Standing {
        match &self.identity {
            None => Standing::Blank,
            Some(Identity { lives: None, .. }) => Standing::Learning,
            Some(Identity { lives: Some(_), .. }) => Standing::Voting,
        }
    }

    /// The disk, to give it to another: for the model checker.
    #[cfg(test)]
    pub(crate) fn into_storage(self) -> S {
        self.storage
    }

    /// Why this node stopped voting, if its disk failed.
    pub fn failure(&self) -> Option<&StoreError> {
        self.failure.as_ref()
    }

    /// Of which cluster this is a seed node.
    pub fn seeds(&self) -> Option<&Seeds> {
        self.identity.as_ref().map(|identity| &identity.seeds)
    }

    /// Makes this a seed node of a *new* cluster: once in the life of the cluster, at each of its seed nodes. A seed
    /// node that lost its disk is not bootstrapped again but [rejoins](Self::rejoin): bootstrapping it would forget
    /// votes that others have counted.
    pub fn bootstrap(&mut self, seeds: Seeds, me: NodeName) -> Result<(), MembershipError> {
        let lives = vec![(Life(0), Attempt(0)); seeds.members().len()];
        self.become_seed(Identity { seeds, me, lives: Some(lives) })
    }

    /// Makes this, wiped, a seed node of its cluster again, without a vote until a [`Learner`](crate::Learner) has
    /// had it [taught](Self::take_lesson).
    pub fn rejoin(&mut self, seeds: Seeds, me: NodeName) -> Result<(), MembershipError> {
        if seeds.members().len() <= seeds.majority() {
            return Err(MembershipError::ByHandOnly(seeds.members().len()));
        }
        self.become_seed(Identity { seeds, me, lives: None })
    }

    fn become_seed(&mut self, identity: Identity) -> Result<(), MembershipError> {
        if let Some(identity) = &self.identity {
            return Err(MembershipError::NotBlank(identity.seeds.clone()));
        }
        if identity.seeds.place(&identity.me).is_none() {
            return Err(MembershipError::NotASeed { me: identity.me });
        }
        self.storage.persist(&[Record::Identity(&identity)])?;
        self.identity = Some(identity);
        Ok(())
    }

    /// Ends [`Standing::Learning`]: from here on this node votes, and stands by what it was taught.
    pub fn take_lesson(&mut self, lesson: Lesson) -> Result<(), MembershipError> {
        let identity = match &self.identity {
            Some(identity) if identity.lives.is_none() => identity,
            _ => return Err(MembershipError::NotLearning),
        };
        if *lesson.seeds() != identity.seeds || *lesson.me() != identity.me {
            return Err(MembershipError::OtherLesson);
        }
        let identity = Identity { lives: Some(lesson.lives().to_vec()), ..identity.clone() };
        self.take_up(identity, lesson.into_slots())
    }

    /// Teaches a wiped seed node by hand, where no majority is left without it (a single seed node, or several wiped
    /// at once): whoever calls this vouches that `registers` are the last agreed ones. `now` is the time in seconds
    /// since 1970: a ballot number above any that counting up by one has reached, so that what was under way before
    /// the wipe is refused.
    pub fn teach_by_hand(
        &mut self,
        seeds: Seeds,
        me: NodeName,
        registers: BTreeMap<WorkloadName, Register>,
        now: u64,
    ) -> Result<(), MembershipError> {
        if let Some(identity) = &self.identity {
            return Err(MembershipError::NotBlank(identity.seeds.clone()));
        }
        let Some(place) = seeds.place(&me) else { return Err(MembershipError::NotASeed { me }) };
        if let Some((workload, _)) = registers.iter().find(|(_, register)| !register.is_well_formed()) {
            return Err(MembershipError::Malformed(workload.clone()));
        }
        let ballot = Ballot { counter: now.min(MAX_COUNTER - 1), attempt: Attempt::random() };
        let mut lives = vec![(Life(0), Attempt(0)); seeds.members().len()];
        lives[place] = (Life(now), ballot.attempt);
        let slot = |register| Slot {
            promised: Some(ballot),
            accepted: Some(Accepted { ballot, value: Some(register) }),
        };
        let slots = registers.into_iter().map(|(workload, register)| (workload, slot(register))).collect();
        self.take_up(Identity { seeds, me, lives: Some(lives) }, slots)
    }

    fn take_up(
        &mut self,
        identity: Identity,
        slots: BTreeMap<WorkloadName, Slot>,
    ) -> Result<(), MembershipError> {
        let of_slots = slots.iter().map(|(workload, slot)| Record::Slot(workload, slot));
        let records: Vec<_> = std::iter::once(Record::Identity(&identity)).chain(of_slots).collect();
        self.storage.persist(&records)?;
        (self.identity, self.slots) = (Some(identity), slots);
        Ok(())
    }

    /// Answers `request` from the node that the transport authenticated as `from`. What the answer promises is on
    /// disk before this returns.
    pub fn handle(&mut self, from: &NodeName, request: &Request) -> Response {
        let answer = self.answer(from, request).unwrap_or_else(Answer::Declined);
        Response { cluster: request.cluster, attempt: request.attempt, answer }
    }

    fn answer(&mut self, from: &NodeName, request: &Request) -> Result<Answer, Declined> {
        let identity = self.identity.as_ref().ok_or(Declined::Blank)?;
        let seeds = &identity.seeds;
        if request.cluster != seeds.cluster() {
            return Err(Declined::OtherCluster(seeds.cluster()));
        }
        if request.seeds_version != seeds.version() {
            return Err(Declined::OtherSeeds(seeds.version()));
        }
        if self.failure.is_some() {
            return Err(Declined::CannotPersist);
        }
        let voter = voter(identity).ok_or(Declined::Learning)?;
        match &request.ask {
            Ask::Prepare { workload, counter } => {
                self.prepare(workload, ballot(*counter, request.attempt)?, voter)
            }
            Ask::Accept { workload, counter, value } => {
                self.accept(workload, ballot(*counter, request.attempt)?, value, voter)
            }
            Ask::Teach { life, after } => self.teach(from, *life, after.as_ref(), request.attempt),
        }
    }

    fn prepare(&mut self, workload: &WorkloadName, ballot: Ballot, voter: Voter) -> Result<Answer, Declined> {
        let counter = ballot.counter;
        let slot = self.slot(workload)?;
        match slot.promised {
            Some(promised) if promised > ballot => return Ok(Answer::Outbid { counter, promised }),
            // The same request again: its answer may have been lost.
            Some(promised) if promised == ballot => {}
            _ => self.keep(workload, Slot { promised: Some(ballot), ..slot.clone() })?,
        }
        Ok(Answer::Promised { counter, voter, accepted: slot.accepted })
    }

    fn accept(
        &mut self,
        workload: &WorkloadName,
        ballot: Ballot,
        value: &Option<Register>,
        voter: Voter,
    ) -> Result<Answer, Declined> {
        let counter = ballot.counter;
        let slot = self.slot(workload)?;
        if value.as_ref().is_some_and(|register| !register.is_well_formed()) {
            return Err(Declined::Malformed);
        }
        if let Some(promised) = slot.promised.filter(|promised| *promised > ballot) {
            return Ok(Answer::Outbid { counter, promised });
        }
        match &slot.accepted {
            Some(accepted) if accepted.ballot == ballot => {
                // One ballot, one value: a proposer that breaks this would break the agreement.
                if accepted.value != *value {
                    return Err(Declined::Malformed);
                }
            }
            _ => {
                let accepted = Some(Accepted { ballot, value: value.clone() });
                self.keep(workload, Slot { promised: Some(ballot), accepted })?;
            }
        }
        Ok(Answer::Accepted { counter, voter })
    }

    /// Notes that the life of `from` begins, before it says what it knows: whatever it votes from now on goes with
    /// that note (see [`Tally`](crate::tally::Tally)).
    fn teach(
        &mut self,
        from: &NodeName,
        life: Life,
        after: Option<&WorkloadName>,
        attempt: Attempt,
    ) -> Result<Answer, Declined> {
        let mut identity = self.identity.clone().ok_or(Declined::Blank)?;
        let place = identity.seeds.place(from).filter(|_| *from != identity.me).ok_or(Declined::NotASeed)?;
        let lives = identity.lives.as_mut().ok_or(Declined::Learning)?;
        let known = lives.get_mut(place).ok_or(Declined::NotASeed)?;
        if *known != (life, attempt) {
            if known.0 >= life {
                return Ok(Answer::LifeTaken { life: known.0 });
            }
            *known = (life, attempt);
            self.persist(Record::Identity(&identity))?;
        }
        let voter = voter(&identity).ok_or(Declined::Learning)?;
        self.identity = Some(identity);

        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.slots.range((start, Bound::Unbounded));
        let slots: Vec<_> =
            rest.by_ref().take(LESSON_PAGE).map(|(w, slot)| (w.clone(), slot.clone())).collect();
        let more = rest.next().is_some();
        Ok(Answer::Taught { life, after: after.cloned(), voter, slots, more })
    }

    fn slot(&self, workload: &WorkloadName) -> Result<Slot, Declined> {
        match self.slots.get(workload) {
            Some(slot) => Ok(slot.clone()),
            None if self.slots.len() >= MAX_REGISTERS => Err(Declined::Full),
            None => Ok(Slot::default()),
        }
    }

    fn keep(&mut self, workload: &WorkloadName, slot: Slot) -> Result<(), Declined> {
        self.persist(Record::Slot(workload, &slot))?;
        self.slots.insert(workload.clone(), slot);
        Ok(())
    }

    fn persist(&mut self, record: Record<'_>) -> Result<(), Declined> {
        self.storage.persist(&[record]).map_err(|error| {
            self.failure = Some(error);
            Declined::CannotPersist
        })
    }
}

fn voter(identity: &Identity) -> Option<Voter> {
    let lives = identity.lives.as_ref()?;
    let life = lives.get(identity.seeds.place(&identity.me)?)?.0;
    Some(Voter { life, lives: lives.iter().map(|(life, _)| *life).collect() })
}

fn ballot(counter: u64, attempt: Attempt) -> Result<Ballot, Declined> {
    if (1..=MAX_COUNTER).contains(&counter) {
        Ok(Ballot { counter, attempt })
    } else {
        Err(Declined::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterId, Holder, Holding, Incarnation, MemoryStorage, RedbStorage};

    fn seeds(count: usize) -> Seeds {
        let names = (0..count).map(|number| format!("s{number}").parse().unwrap()).collect();
        Seeds::new(ClusterId(1), 1, names).unwrap()
    }

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn register(version: u64) -> Register {
        let primary = Holder { incarnation: Incarnation(5), node: name("a") };
        Register { version, generation: 1, holding: Holding::of(primary, None), seeds_version: 1 }
    }

    fn request(attempt: u128, ask: Ask) -> Request {
        Request { cluster: ClusterId(1), seeds_version: 1, attempt: Attempt(attempt), ask }
    }

    fn prepare(counter: u64, attempt: u128) -> Request {
        request(attempt, Ask::Prepare { workload: "web".parse().unwrap(), counter })
    }

    fn accept(counter: u64, attempt: u128, version: u64) -> Request {
        let (workload, value) = ("web".parse().unwrap(), Some(register(version)));
        request(attempt, Ask::Accept { workload, counter, value })
    }

    fn ask<S: Storage>(acceptor: &mut Acceptor<S>, request: &Request) -> Answer {
        acceptor.handle(&name("a"), request).answer
    }

    fn voting() -> Acceptor<MemoryStorage> {
        let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
        acceptor.bootstrap(seeds(3), name("s0")).unwrap();
        acceptor
    }

    #[test]
    fn a_promise_is_kept_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbitration");
        let mut acceptor = Acceptor::open(RedbStorage::open(&path).unwrap()).unwrap();
        assert_eq!(acceptor.standing(), Standing::Blank);
        acceptor.bootstrap(seeds(3), name("s0")).unwrap();
        assert!(matches!(ask(&mut acceptor, &prepare(2, 1)), Answer::Promised { accepted: None, .. }));
        assert!(matches!(ask(&mut acceptor, &accept(2, 1, 1)), Answer::Accepted { .. }));
        assert!(matches!(ask(&mut acceptor, &prepare(5, 2)), Answer::Promised { .. }));
        drop(acceptor);

        let mut acceptor = Acceptor::open(RedbStorage::open(&path).unwrap()).unwrap();
        assert_eq!(acceptor.standing(), Standing::Voting);
        let promised = Ballot { counter: 5, attempt: Attempt(2) };
        assert_eq!(ask(&mut acceptor, &accept(2, 1, 1)), Answer::Outbid { counter: 2, promised });
        let Answer::Promised { accepted: Some(accepted), .. } = ask(&mut acceptor, &prepare(6, 3)) else {
            panic!("the vote is gone");
        };
        assert_eq!(accepted.value, Some(register(1)));
    }

    #[test]
    fn the_same_request_again_gets_the_same_answer() {
        let mut acceptor = voting();
        for request in [prepare(2, 1), accept(2, 1, 1)] {
            let answer = ask(&mut acceptor, &request);
            assert_eq!(ask(&mut acceptor, &request), answer);
        }
    }

    #[test]
    fn one_ballot_has_one_value() {
        let mut acceptor = voting();
        assert!(matches!(ask(&mut acceptor, &accept(2, 1, 1)), Answer::Accepted { .. }));
        assert_eq!(ask(&mut acceptor, &accept(2, 1, 2)), Answer::Declined(Declined::Malformed));
    }

    #[test]
    fn who_has_no_history_does_not_vote() {
        let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
        assert_eq!(ask(&mut acceptor, &prepare(2, 1)), Answer::Declined(Declined::Blank));
        acceptor.rejoin(seeds(3), name("s0")).unwrap();
        assert_eq!(ask(&mut acceptor, &prepare(2, 1)), Answer::Declined(Declined::Learning));
        let teach = request(1, Ask::Teach { life: Life(1), after: None });
        assert_eq!(
            acceptor.handle(&name("s1"), &teach).answer,
            Answer::Declined(Declined::Learning),
            "who knows nothing teaches nothing"
        );
        assert!(matches!(acceptor.bootstrap(seeds(3), name("s0")), Err(MembershipError::NotBlank(_))));
    }

    #[test]
    fn strangers_are_declined() {
        let mut acceptor = voting();
        let other = Request { cluster: ClusterId(9), ..prepare(2, 1) };
        assert_eq!(ask(&mut acceptor, &other), Answer::Declined(Declined::OtherCluster(ClusterId(1))));
        let other = Request { seeds_version: 2, ..prepare(2, 1) };
        assert_eq!(ask(&mut acceptor, &other), Answer::Declined(Declined::OtherSeeds(1)));
        let teach = request(1, Ask::Teach { life: Life(1), after: None });
        assert_eq!(ask(&mut acceptor, &teach), Answer::Declined(Declined::NotASeed));
        assert_eq!(ask(&mut acceptor, &prepare(u64::MAX, 1)), Answer::Declined(Declined::Malformed));
        assert_eq!(ask(&mut acceptor, &prepare(0, 1)), Answer::Declined(Declined::Malformed));
        assert!(matches!(
            Acceptor::open(MemoryStorage::default()).unwrap().bootstrap(seeds(3), name("s7")),
            Err(MembershipError::NotASeed { .. })
        ));
    }

    #[test]
    fn a_single_seed_is_taught_by_hand() {
        let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
        assert!(matches!(acceptor.rejoin(seeds(1), name("s0")), Err(MembershipError::ByHandOnly(1))));
        let registers = BTreeMap::from([("web".parse().unwrap(), register(4))]);
        acceptor.teach_by_hand(seeds(1), name("s0"), registers, 1_800_000_000).unwrap();
        assert_eq!(acceptor.standing(), Standing::Voting);
        assert!(
            matches!(ask(&mut acceptor, &accept(7, 1, 1)), Answer::Outbid { .. }),
            "what was under way before the wipe counts no more"
        );
        let Answer::Promised { accepted, .. } = ask(&mut acceptor, &prepare(1_800_000_001, 1)) else {
            panic!("a new proposer does not get through");
        };
        assert_eq!(accepted.unwrap().value, Some(register(4)));
    }

    /// A disk that fails once.
    struct Failing(MemoryStorage, bool);

    impl Storage for Failing {
        fn load(&self) -> Result<Option<crate::Disk>, StoreError> {
            self.0.load()
        }

        fn persist(&mut self, records: &[Record<'_>]) -> Result<(), StoreError> {
            if std::mem::take(&mut self.1) {
                return Err(StoreError::Damaged { what: "the test's disk".to_owned() });
            }
            self.0.persist(records)
        }
    }

    #[test]
    fn a_failed_disk_silences_until_it_is_opened_again() {
        let Acceptor { storage, .. } = voting();
        let mut acceptor = Acceptor::open(Failing(storage, true)).unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&mut acceptor, &prepare(2, 1)), Answer::Declined(Declined::CannotPersist));
        }
        assert!(acceptor.failure().is_some());
        let mut acceptor = Acceptor::open(acceptor.into_storage()).unwrap();
        assert!(matches!(ask(&mut acceptor, &prepare(2, 1)), Answer::Promised { .. }));
    }
}
