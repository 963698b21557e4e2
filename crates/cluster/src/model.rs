//! Every order of events in small cases, by a model checker: three seed nodes, two or three attempts whose rounds
//! may be abandoned at any point, every message delivered at any time or never. The seed nodes, the rounds, the
//! learner and the register's rules are the real ones. What the simulation in `tests/` only finds by luck, such as
//! an old vote of a wiped seed node that is counted late, is found here for certain.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use stateright::{Checker, Model, Property};

use crate::round::{Round, Step, Verdict, Wish};
use crate::*;

const SEEDS: usize = 3;
const A: Incarnation = Incarnation(0xa);
const B: Incarnation = Incarnation(0xb);
/// Another backup, where there is one.
const D: Incarnation = Incarnation(0xd);

/// A rule to break on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    SeedForgetsPromises,
    OldLivesCount,
    WipedSeedVotes,
    BackupKeepsAcknowledging,
    ReadsWithoutWriting,
}

/// One who asks: an attempt, with the ballots it may use.
#[derive(Clone, Debug)]
struct Asker {
    wish: Wish,
    counters: Vec<u64>,
    /// Begins only after this other one was abandoned without a verdict.
    settles: Option<usize>,
}

/// A small case.
#[derive(Clone, Debug)]
struct Case {
    seeds: Seeds,
    workload: WorkloadName,
    first: Register,
    askers: Vec<Asker>,
    /// Whether one seed node loses its disk.
    wipe: bool,
    flaw: Option<Flaw>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeedNode {
    lives: Option<Vec<(Life, Attempt)>>,
    slot: Option<Slot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asking {
    begun: usize,
    round: Option<Round>,
    verdict: Option<Verdict>,
}

/// Of the protocol of commit, what arbitration must go together with: the primary A runs one epoch, whose output
/// leaves once its backup B has acknowledged it, or once A holds the right to speak alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Commit {
    acknowledged: bool,
    /// B's state includes the epoch.
    included: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    seed_nodes: Vec<SeedNode>,
    requests: BTreeSet<(usize, usize, Vec<u8>)>,
    asking: Vec<Asking>,
    wiped: bool,
    /// What the wiped one was taught, by teacher.
    taught: BTreeMap<usize, Response>,
    commit: Commit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Begin(usize),
    /// A request gets to a seed node, and the answer, if it is heard, back. That an answer takes its time need not
    /// be modelled: what it brings about are requests, and those may take any time.
    Ask {
        asker: usize,
        seed: usize,
        request: Vec<u8>,
        heard: bool,
    },
    Wipe,
    TeachBy(usize),
    Acknowledge,
}

/// The one that loses its disk.
const WIPED: usize = 0;

impl Case {
    fn new(askers: Vec<Asker>, protected: bool) -> Self {
        let names = (0..SEEDS).map(|number| format!("s{number}").parse().unwrap()).collect();
        let backup = protected.then(|| holder(B));
        let holding = Holding::of(holder(A), backup);
        Self {
            seeds: Seeds::new(ClusterId(1), 1, names).unwrap(),
            workload: "w".parse().unwrap(),
            first: Register { version: 5, generation: 3, holding, seeds_version: 1 },
            askers,
            wipe: false,
            flaw: None,
        }
    }

    fn breaks(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn attempt(asker: usize) -> Attempt {
        Attempt(100 + asker as u128)
    }

    fn name(&self, seed: usize) -> &NodeName {
        &self.seeds.members()[seed]
    }

    /// The real acceptor, on what the model says is its disk.
    fn acceptor(&self, state: &State, seed: usize) -> Acceptor<MemoryStorage> {
        let node = &state.seed_nodes[seed];
        let identity =
            Identity { seeds: self.seeds.clone(), me: self.name(seed).clone(), lives: node.lives.clone() };
        let mut slots = BTreeMap::new();
        slots.extend(node.slot.clone().map(|slot| (self.workload.clone(), slot)));
        let mut storage = MemoryStorage::default();
        *storage.disk_mut() = Some(Disk { identity, slots });
        Acceptor::open(storage).unwrap()
    }

    fn keep(&self, state: &mut State, seed: usize, acceptor: Acceptor<MemoryStorage>) {
        let Disk { identity, mut slots } = acceptor.into_storage().load().unwrap().unwrap();
        let mut slot = slots.remove(&self.workload);
        if let Some(slot) = slot.as_mut().filter(|_| self.breaks(Flaw::SeedForgetsPromises)) {
            slot.promised = slot.accepted.as_ref().map(|accepted| accepted.ballot);
        }
        state.seed_nodes[seed] = SeedNode { lives: identity.lives, slot };
    }

    fn handle(&self, state: &mut State, seed: usize, from: &NodeName, request: &Request) -> Response {
        let mut acceptor = self.acceptor(state, seed);
        let mut response = acceptor.handle(from, request);
        self.keep(state, seed, acceptor);
        if let Answer::Promised { voter, .. } | Answer::Accepted { voter, .. } | Answer::Taught { voter, .. } =
            &mut response.answer
            && self.breaks(Flaw::OldLivesCount)
        {
            voter.lives.fill(Life(0));
        }
        response
    }

    fn send_round(&self, state: &mut State, asker: usize) {
        let Some(round) = &state.asking[asker].round else { return };
        if round.is_proposing() {
            // Promises that come too late make no difference either.
            state.requests.retain(|(from, _, request)| *from != asker || !is_prepare(request));
        }
        for seed in 0..SEEDS {
            if let Some(ask) = round.ask(seed, &self.workload) {
                let request = Request {
                    cluster: self.seeds.cluster(),
                    seeds_version: 1,
                    attempt: Self::attempt(asker),
                    ask,
                };
                state.requests.insert((asker, seed, request.encode().unwrap()));
            }
        }
    }

    fn answer(&self, state: &mut State, seed: usize, asker: usize, response: &Response) {
        let wish = &self.askers[asker].wish;
        let Some(round) = &mut state.asking[asker].round else { return };
        match round.on_answer(seed, &response.answer, wish, &self.seeds) {
            Step::Waiting => {}
            Step::Proposing => {
                let found = round.found();
                if *wish == Wish::Read && self.breaks(Flaw::ReadsWithoutWriting) {
                    self.conclude(state, asker, Verdict::Read(found));
                } else {
                    self.send_round(state, asker);
                }
            }
            Step::Agreed(verdict) => self.conclude(state, asker, verdict),
        }
    }

    fn conclude(&self, state: &mut State, asker: usize, verdict: Verdict) {
        state.asking[asker].round = None;
        state.asking[asker].verdict = Some(verdict);
    }

    /// Seed nodes differ only in what they hold, so that states in which they have changed places are one: brings them
    /// into an order, but for the one that may be wiped.
    fn normalise(&self, state: &mut State) {
        let mut order: Vec<usize> = (0..SEEDS).collect();
        let movable = if self.wipe { &mut order[1..] } else { &mut order[..] };
        movable.sort_by_cached_key(|seed| {
            let mut hasher = DefaultHasher::new();
            state.seed_nodes[*seed].hash(&mut hasher);
            state.taught.get(seed).hash(&mut hasher);
            state.requests.iter().filter(|(_, to, _)| to == seed).for_each(|(asker, _, request)| {
                (asker, request).hash(&mut hasher);
            });
            for round in state.asking.iter().filter_map(|asking| asking.round.as_ref()) {
                round.hash_votes(*seed, &mut hasher);
            }
            hasher.finish()
        });
        let mut place = [0; SEEDS];
        order.iter().enumerate().for_each(|(new, old)| place[*old] = new);
        state.seed_nodes = order.iter().map(|old| state.seed_nodes[*old].clone()).collect();
        state.taught = std::mem::take(&mut state.taught).into_iter().map(|(t, r)| (place[t], r)).collect();
        let requests = std::mem::take(&mut state.requests).into_iter();
        state.requests = requests.map(|(asker, to, request)| (asker, place[to], request)).collect();
        for asking in &mut state.asking {
            if let Some(round) = &mut asking.round {
                round.reorder(&order);
            }
        }
    }

    /// Whether `who` was told that it may speak, and whether without a backup.
    fn speaks(state: &State, who: Incarnation, alone: bool) -> bool {
        let allows = |register: &Register| {
            register.primary().is_some_and(|primary| primary.incarnation == who)
                && (register.synced_backup().is_none() || !alone)
        };
        state.asking.iter().any(|asking| match &asking.verdict {
            Some(Verdict::Granted(register) | Verdict::Read(Some(register))) => allows(register),
            _ => false,
        })
    }

    /// Whether it makes a difference that an answer is lost. A lost promise makes none: it only refuses lower ballots,
    /// as if those had been lost. A lost vote makes one to who may then ask again, or have another settle it.
    fn may_go_unheard(&self, state: &State, asker: usize) -> bool {
        let asking = &state.asking[asker];
        let votes = asking.round.as_ref().is_some_and(Round::is_proposing);
        let goes_on = asking.begun < self.askers[asker].counters.len()
            || self.askers.iter().any(|other| other.settles == Some(asker));
        votes && goes_on
    }

    /// B asks for the next generation, and so has stopped acknowledging.
    fn has_stopped(&self, state: &State) -> bool {
        let takeover = Wish::Change(Transition::BackupTakesOver { by: B, held: 0 });
        let askers = self.askers.iter().zip(&state.asking);
        askers.into_iter().any(|(asker, asking)| asker.wish == takeover && asking.begun > 0)
    }

    fn may_begin(&self, state: &State, asker: usize) -> bool {
        let (plan, asking) = (&self.askers[asker], &state.asking[asker]);
        let settles = plan.settles.map(|other| &state.asking[other]);
        let settled = self.askers.iter().zip(&state.asking);
        let being_settled =
            settled.into_iter().any(|(other, asking)| other.settles == Some(asker) && asking.begun > 0);
        asking.verdict.is_none()
            && asking.begun < plan.counters.len()
            && !being_settled
            && settles.is_none_or(|other| other.begun > 0 && other.verdict.is_none())
    }
}

fn holder(incarnation: Incarnation) -> Holder {
    Holder { incarnation, node: "n".parse().unwrap() }
}

impl Model for Case {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        let ballot = Ballot { counter: 1, attempt: Attempt(1) };
        let accepted = Some(Accepted { ballot, value: Some(self.first.clone()) });
        let slot = Some(Slot { promised: Some(ballot), accepted });
        let node = SeedNode { lives: Some(vec![(Life(0), Attempt(0)); SEEDS]), slot };
        let asking = Asking { begun: 0, round: None, verdict: None };
        vec![State {
            seed_nodes: vec![node; SEEDS],
            requests: BTreeSet::new(),
            asking: vec![asking; self.askers.len()],
            wiped: false,
            taught: BTreeMap::new(),
            commit: Commit::default(),
        }]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        events.extend((0..self.askers.len()).filter(|asker| self.may_begin(state, *asker)).map(Event::Begin));
        for (asker, seed, request) in &state.requests {
            let ask = |heard| Event::Ask { asker: *asker, seed: *seed, request: request.clone(), heard };
            events.push(ask(true));
            if self.may_go_unheard(state, *asker) {
                events.push(ask(false));
            }
        }
        if self.wipe && !state.wiped {
            events.push(Event::Wipe);
        }
        if state.seed_nodes[WIPED].lives.is_none() {
            let untaught = (0..SEEDS).filter(|seed| *seed != WIPED && !state.taught.contains_key(seed));
            events.extend(untaught.map(Event::TeachBy));
        }
        // The epoch is in flight to B from the start.
        if self.first.synced_backup().is_some() {
            let acknowledges = !self.has_stopped(state) || self.breaks(Flaw::BackupKeepsAcknowledging);
            if !state.commit.acknowledged && acknowledges {
                events.push(Event::Acknowledge);
            }
        }
    }

    fn next_state(&self, before: &State, event: Event) -> Option<State> {
        let mut state = before.clone();
        match event {
            Event::Begin(asker) => {
                let counter = self.askers[asker].counters[state.asking[asker].begun];
                let ballot = Ballot { counter, attempt: Self::attempt(asker) };
                if let Some(other) = self.askers[asker].settles {
                    state.asking[other].round = None;
                    state.requests.retain(|(from, _, request)| *from != other || !is_prepare(request));
                }
                state.requests.retain(|(from, _, request)| *from != asker || !is_prepare(request));
                state.asking[asker].begun += 1;
                state.asking[asker].round = Some(Round::new(ballot, &self.seeds));
                self.send_round(&mut state, asker);
            }
            Event::Ask { asker, seed, request: bytes, heard } => {
                let request = Request::decode(&bytes).unwrap();
                state.requests.remove(&(asker, seed, bytes));
                let response = self.handle(&mut state, seed, &"n".parse().unwrap(), &request);
                if heard {
                    self.answer(&mut state, seed, asker, &response);
                }
            }
            Event::Wipe => {
                state.wiped = true;
                let bootstrapped = vec![(Life(0), Attempt(0)); SEEDS];
                let lives = self.breaks(Flaw::WipedSeedVotes).then_some(bootstrapped);
                state.seed_nodes[WIPED] = SeedNode { lives, slot: None };
            }
            Event::TeachBy(teacher) => {
                let me = self.name(WIPED).clone();
                let attempt = Attempt(2);
                let mut learner =
                    Learner::new(self.seeds.clone(), me.clone(), attempt, Duration::ZERO, Duration::ZERO);
                let ask = Ask::Teach { life: Life(1), after: None };
                let request = Request { cluster: self.seeds.cluster(), seeds_version: 1, attempt, ask };
                let response = self.handle(&mut state, teacher, &me, &request);
                state.taught.insert(teacher, response);
                for (teacher, response) in &state.taught {
                    learner.on_response(self.name(*teacher), response, Duration::ZERO);
                }
                if let Some(lesson) = learner.lesson() {
                    let mut acceptor = self.acceptor(&state, WIPED);
                    acceptor.take_lesson(lesson).unwrap();
                    self.keep(&mut state, WIPED, acceptor);
                    state.taught.clear();
                }
            }
            Event::Acknowledge => {
                state.commit.acknowledged = true;
                state.commit.included = !self.has_stopped(&state);
            }
        }
        self.normalise(&mut state);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one value to a version, one holder to a generation", |_, state: &State| {
                let registers: Vec<_> = state.asking.iter().filter_map(agreed).collect();
                registers.iter().all(|one| {
                    registers.iter().all(|other| {
                        let same = one.primary() == other.primary() || one.generation != other.generation;
                        (one == other || one.version != other.version) && same
                    })
                })
            }),
            Property::always("no output is released that the successor lacks", |_, state: &State| {
                let released = state.commit.acknowledged || Case::speaks(state, A, true);
                !(released && Case::speaks(state, B, false) && !state.commit.included)
            }),
            Property::always("only the synced backup takes over", |case: &Case, state: &State| {
                let may = case.first.synced_backup().is_some() || case.askers.iter().any(adds_backup);
                may || !Case::speaks(state, B, false)
            }),
            Property::always("who never was a backup gets nothing", |_, state: &State| {
                !Case::speaks(state, Incarnation(0xc), false)
            }),
            Property::always("who was declared dead has no right any more", |_, state: &State| {
                let registers = || state.asking.iter().filter_map(agreed);
                let declared = registers().filter(|one| matches!(one.holding, Holding::Orphaned(_)));
                let is_dead = |holder: &Holder| [A, B].contains(&holder.incarnation);
                let has_right = |register: &Register| {
                    register.primary().is_some_and(is_dead)
                        || register.backups().iter().any(|backup| is_dead(&backup.holder))
                };
                let first = declared.map(|register| register.version).min();
                first.is_none_or(|first| registers().all(|one| one.version < first || !has_right(one)))
            }),
            Property::sometimes("everybody gets a verdict", |_, state: &State| {
                state.asking.iter().filter(|asking| asking.verdict.is_some()).count() >= 2
            }),
        ]
    }
}

fn agreed(asking: &Asking) -> Option<&Register> {
    match asking.verdict.as_ref()? {
        Verdict::Granted(register) | Verdict::Read(Some(register)) => Some(register),
        Verdict::Refused(refused) => refused.current.as_deref(),
        Verdict::Read(None) => None,
    }
}

fn is_prepare(request: &[u8]) -> bool {
    matches!(Request::decode(request).unwrap().ask, Ask::Prepare { .. })
}

fn adds_backup(asker: &Asker) -> bool {
    matches!(asker.wish, Wish::Change(Transition::AddBackup { .. }))
}

fn change(transition: Transition, counters: &[u64]) -> Asker {
    Asker { wish: Wish::Change(transition), counters: counters.to_vec(), settles: None }
}

/// {3, A, B}: both think that the other is gone.
fn both_ask(of_a: &[u64], of_b: &[u64]) -> Case {
    let alone = Transition::PrimaryAlone { by: A, generation: 3 };
    Case::new(vec![change(alone, of_a), change(Transition::BackupTakesOver { by: B, held: 0 }, of_b)], true)
}

/// {3, A, none}: A gives up adding B, reads, and speaks on if it is alone; B tries to take over.
fn settled_by_reading(add: u64, read: u64, takeover: u64) -> Case {
    let add = change(Transition::AddBackup { by: A, generation: 3, backup: holder(B) }, &[add]);
    let read = Asker { wish: Wish::Read, counters: vec![read], settles: Some(0) };
    Case::new(vec![add, read, change(Transition::BackupTakesOver { by: B, held: 0 }, &[takeover])], false)
}

/// {3, A, one of B and D}: D has lost A, and an operator says that A and B are dead, who may both live. D goes on once it has
/// seen that.
fn declared_dead(forget: u64, other: Transition, of_other: u64, goes_on: u64) -> Case {
    let stopped = |incarnation, stopped_at| Backup { holder: holder(incarnation), stopped_at };
    let backups = vec![stopped(B, None), stopped(D, Some(5))];
    let word = Transition::Forget { generation: 3, primary: A, dead: vec![B] };
    let askers = vec![
        change(word, &[forget]),
        change(other, &[of_other]),
        change(Transition::GoOn { by: D, seen: 6 }, &[goes_on]),
    ];
    let mut case = Case::new(askers, true);
    case.first.holding = Holding::Held { primary: holder(A), backups, needed: 1 };
    case
}

fn holds(case: Case) {
    let checker = case.checker().threads(2).spawn_dfs().join();
    println!("{} states, {} distinct", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

fn is_noticed(case: Case, flaw: Flaw) {
    let flawed = Case { flaw: Some(flaw), ..case };
    let checker = flawed.checker().spawn_bfs().join();
    println!("{flaw:?}: {} distinct states", checker.unique_state_count());
    let found = checker.discoveries().into_iter().any(|(name, _)| name != "everybody gets a verdict");
    assert!(found, "{flaw:?} went unnoticed");
}

#[test]
fn two_who_ask_agree() {
    holds(both_ask(&[2], &[3]));
    holds(both_ask(&[3], &[2]));
}

#[test]
fn who_asks_again_agrees() {
    holds(both_ask(&[2, 4], &[3]));
    holds(both_ask(&[3], &[2, 4]));
}

#[test]
fn a_stranger_gets_nothing() {
    let mut case = both_ask(&[2], &[3]);
    case.askers.push(change(Transition::BackupTakesOver { by: Incarnation(0xc), held: 0 }, &[4]));
    holds(case);
}

#[test]
fn a_read_settles_an_unknown_outcome() {
    holds(settled_by_reading(2, 3, 4));
    holds(settled_by_reading(2, 4, 3));
    holds(settled_by_reading(3, 4, 2));
}

#[test]
fn r2_who_was_declared_dead_and_lives_gets_nothing() {
    // The primary leaves D out, with B alone; B asks for its place, with more than D has.
    let primary = || Transition::Backups { by: A, backups: vec![holder(B)], needed: 1 };
    let backup = || Transition::BackupTakesOver { by: B, held: 7 };
    for (forget, of_other, goes_on) in [(2, 3, 4), (3, 2, 4), (2, 4, 3)] {
        holds(declared_dead(forget, primary(), of_other, goes_on));
        holds(declared_dead(forget, backup(), of_other, goes_on));
    }
}

#[test]
fn a_wiped_seed_stands_by_its_votes() {
    holds(Case { wipe: true, ..both_ask(&[2], &[3]) });
    holds(Case { wipe: true, ..both_ask(&[3], &[2]) });
}

#[test]
fn flaws_are_noticed() {
    is_noticed(both_ask(&[2], &[3]), Flaw::SeedForgetsPromises);
    is_noticed(both_ask(&[2], &[3]), Flaw::BackupKeepsAcknowledging);
    is_noticed(settled_by_reading(2, 3, 4), Flaw::ReadsWithoutWriting);
    is_noticed(Case { wipe: true, ..both_ask(&[2], &[3]) }, Flaw::WipedSeedVotes);
    is_noticed(Case { wipe: true, ..both_ask(&[2], &[3]) }, Flaw::OldLivesCount);
}
