//! The side of whoever asks: one attempt to change or to read one register.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::round::{Round, Step, Verdict, Wish, ballot_above};
use crate::{
    Answer, Attempt, Ballot, Declined, NodeName, Refused, Register, Request, Response, Seeds, Transition,
    WorkloadName,
};

/// What the driver of a state machine is to do for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the seed node, if it can be reached; losing it is allowed for.
    Send { to: NodeName, request: Request },
}

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// When to give up. The default, two seconds, is longer than a seed node's disk stalls and shorter than people
    /// wait; whoever gave up may begin anew.
    pub deadline: Duration,
    /// When to repeat a request that was not answered. The default, 20 ms, is well above a round trip and an fsync
    /// in one site, and bounds what one lost message costs a failover.
    pub resend: Duration,
    /// The longest wait after the first ballot lost to another proposer; it doubles with every further one, up to
    /// `backoff_most`, and a random part of it is waited. The default, 5 ms, is a few rounds of one proposer.
    pub backoff: Duration,
    pub backoff_most: Duration,
    /// How many ballots to try: beyond this something other than chance is in the way.
    pub rounds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(2),
            resend: Duration::from_millis(20),
            backoff: Duration::from_millis(5),
            backoff_most: Duration::from_millis(160),
            rounds: 64,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The register is this, by the transition that was asked for: by this attempt or by an earlier one of the same
    /// incarnation.
    Granted(Register),
    /// The register is this: agreed, and nothing that was under way before the read can change it any more.
    Read(Option<Register>),
    /// The transition may not be had. As final as a read.
    Refused(Refused),
    /// No majority could be heard, and nothing was proposed: the register is as if this attempt had never been.
    NoMajority(NoMajority),
    /// No majority could be heard after the change was proposed: it may have happened, or may happen yet. Whoever
    /// asked must be silent until a [read](Proposer::read) or the same transition once more has settled it.
    Unknown(NoMajority),
}

/// What each seed node had to say when no majority agreed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no majority of seed nodes: {}", Listed(.0))]
pub struct NoMajority(pub Vec<(NodeName, Silence)>);

/// Why a seed node's vote was missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    #[error("answered")]
    Answered,
    #[error("did not answer")]
    Unheard,
    #[error("has promised another proposer")]
    Outbid,
    #[error("{0}")]
    Declined(Declined),
    /// What whoever carries messages knows of it.
    #[error("gave no vote: {0}")]
    Failed(String),
}

struct Listed<'a>(&'a [(NodeName, Silence)]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (node, silence)) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{node} {silence}")?;
        }
        Ok(())
    }
}

enum State {
    Waiting { until: Duration },
    Running { round: Box<Round>, next_send: Duration },

    Done(Outcome),
}

/// One attempt at one register: [`poll`](Self::poll) it at first, after every [`on_response`](Self::on_response) and
/// when [`wakeup`](Self::wakeup) says, send what it returns, until there is an [`outcome`](Self::outcome). Times are
/// those of any clock that does not go back, since any point.
pub struct Proposer {
    seeds: Seeds,
    workload: WorkloadName,
    wish: Wish,
    attempt: Attempt,
    rng: SmallRng,
    limits: Limits,
    deadline: Duration,
    state: State,
    rounds: u32,
    /// The highest ballot seen anywhere.
    seen: Option<Ballot>,
    /// Whether a change was ever proposed, so that it may have happened.
    proposed: bool,
    /// Whether it waits with that until it is released.
    held: bool,
    silence: Vec<Silence>,
}

impl Proposer {
    /// Asks for `transition`. `attempt` is [random](Attempt::random) and never used again, also not after a restart:
    /// ballots are unique by it. It also seeds what is left to chance.
    pub fn new(
        seeds: Seeds,
        workload: WorkloadName,
        transition: Transition,
        attempt: Attempt,
        now: Duration,
        limits: Limits,
    ) -> Self {
        Self::start(seeds, workload, Wish::Change(transition), attempt, now, limits)
    }

    /// Reads from a majority, and settles whatever was under way: see [`Outcome::Read`].
    pub fn read(
        seeds: Seeds,
        workload: WorkloadName,
        attempt: Attempt,
        now: Duration,
        limits: Limits,
    ) -> Self {
        Self::start(seeds, workload, Wish::Read, attempt, now, limits)
    }

    fn start(
        seeds: Seeds,
        workload: WorkloadName,
        wish: Wish,
        attempt: Attempt,
        now: Duration,
        limits: Limits,
    ) -> Self {
        Self {
            silence: vec![Silence::Unheard; seeds.members().len()],
            seeds,
            workload,
            wish,
            attempt,
            // Both halves count: attempts that differ only in one must not wait in step.
            rng: SmallRng::seed_from_u64((attempt.0 >> 64) as u64 ^ attempt.0 as u64),
            limits,
            deadline: now.saturating_add(limits.deadline),
            state: State::Waiting { until: now },
            rounds: 0,
            seen: None,
            proposed: false,
            held: false,
        }
    }

    /// Proposes nothing until it is [released](Self::release): it only asks for promises, by which the register stays as it is.
    /// What was promised may be outbid meanwhile; then the change is decided anew, by the register as it is then.
    pub fn hold(mut self) -> Self {
        self.held = true;
        self
    }

    /// Whether it waits for nothing but its release.
    pub fn is_ready(&self) -> bool {
        self.held && matches!(&self.state, State::Running { round, .. } if round.is_proposing())
    }

    /// The change may be proposed from now on; the time to give up counts from here.
    pub fn release(&mut self, now: Duration) {
        self.held = false;
        self.deadline = now.saturating_add(self.limits.deadline);
        if let State::Running { next_send, .. } = &mut self.state {
            *next_send = now;
        }
    }

    /// Whose answers are for this one: a driver of several finds it by [`Response::attempt`].
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Done(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// When to poll again even if nothing is heard; `None` once done.
    pub fn wakeup(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { until } => Some(self.deadline.min(*until)),
            State::Running { next_send, .. } => Some(self.deadline.min(*next_send)),
            State::Done(_) => None,
        }
    }

    /// What to send now.
    pub fn poll(&mut self, now: Duration) -> Vec<Action> {
        if self.outcome().is_some() {
            return Vec::new();
        }
        if now >= self.deadline {
            self.give_up();
            return Vec::new();
        }
        if let State::Running { round, next_send } = &self.state
            && now >= *next_send
            && round.outbid().is_some()
        {
            // Who has not answered by now will not make up for who promised another.
            self.back_off(now);
        }
        if let State::Waiting { until } = self.state
            && now >= until
        {
            self.begin_round(now);
        }
        self.send(now)
    }

    fn begin_round(&mut self, now: Duration) {
        self.rounds += 1;
        match ballot_above(self.seen, self.attempt) {
            Some(ballot) if self.rounds <= self.limits.rounds => {
                self.seen = Some(ballot);
                self.state =
                    State::Running { round: Box::new(Round::new(ballot, &self.seeds)), next_send: now };
            }
            _ => self.give_up(),
        }
    }

    fn send(&mut self, now: Duration) -> Vec<Action> {
        let State::Running { round, next_send } = &mut self.state else { return Vec::new() };
        if now < *next_send {
            return Vec::new();
        }
        *next_send = now.saturating_add(self.limits.resend);
        if self.held && round.is_proposing() {
            return Vec::new();
        }
        self.proposed |= round.has_proposed_change();
        let mut actions = Vec::new();
        for (place, node) in self.seeds.members().iter().enumerate() {
            if let Some(ask) = round.ask(place, &self.workload) {
                let (cluster, seeds_version) = (self.seeds.cluster(), self.seeds.version());
                let request = Request { cluster, seeds_version, attempt: self.attempt, ask };
                actions.push(Action::Send { to: node.clone(), request });
            }
        }
        actions
    }

    /// Takes an answer from the node that the transport authenticated as `from`.
    pub fn on_response(&mut self, from: &NodeName, response: &Response, now: Duration) {
        if response.cluster != self.seeds.cluster() || response.attempt != self.attempt {
            return;
        }
        let Some(place) = self.seeds.place(from) else { return };
        let State::Running { round, next_send } = &mut self.state else { return };
        self.silence[place] = match &response.answer {
            Answer::Declined(why) => Silence::Declined(why.clone()),
            Answer::Outbid { .. } => Silence::Outbid,
            _ => Silence::Answered,
        };
        match round.on_answer(place, &response.answer, &self.wish, &self.seeds) {
            Step::Agreed(verdict) => {
                self.state = State::Done(match verdict {
                    Verdict::Granted(register) => Outcome::Granted(register),
                    Verdict::Refused(refused) => Outcome::Refused(refused),
                    Verdict::Read(register) => Outcome::Read(register),
                });
            }
            Step::Proposing => *next_send = now,
            Step::Waiting => {
                self.seen = self.seen.max(round.outbid());
                if round.is_hopeless(&self.seeds) {
                    self.back_off(now);
                }
            }
        }
    }

    /// Notes why there is no answer from a node that was asked, for whoever reads how it ended. It is no vote, and that node is
    /// asked again.
    pub fn on_failure(&mut self, from: &NodeName, reason: String) {
        if let Some(place) = self.seeds.place(from) {
            self.silence[place] = Silence::Failed(reason);
        }
    }

    /// Ends this round; the next begins after a random wait, or at once after the first: which ballots there were
    /// could not be known before.
    fn back_off(&mut self, now: Duration) {
        let wait = match self.rounds {
            0 | 1 => Duration::ZERO,
            rounds => {
                let doubled = self.limits.backoff.saturating_mul(1 << (rounds - 2).min(16));
                let most = doubled.min(self.limits.backoff_most).as_micros();
                Duration::from_micros(self.rng.random_range(0..=u64::try_from(most).unwrap_or(u64::MAX)))
            }
        };
        self.state = State::Waiting { until: now.saturating_add(wait) };
    }

    fn give_up(&mut self) {
        let silence = self.seeds.members().iter().cloned().zip(self.silence.iter().cloned()).collect();
        let silence = NoMajority(silence);
        self.state =
            State::Done(if self.proposed { Outcome::Unknown(silence) } else { Outcome::NoMajority(silence) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Acceptor, ClusterId, Holder, Incarnation, MemoryStorage, Why};

    struct Cluster {
        seeds: Seeds,
        acceptors: Vec<Acceptor<MemoryStorage>>,
    }

    impl Cluster {
        fn new() -> Self {
            let names: Vec<NodeName> = ["s0", "s1", "s2"].map(|name| name.parse().unwrap()).to_vec();
            let seeds = Seeds::new(ClusterId(1), 1, names.clone()).unwrap();
            let acceptors = names.into_iter().map(|name| {
                let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
                acceptor.bootstrap(seeds.clone(), name).unwrap();
                acceptor
            });
            Self { acceptors: acceptors.collect(), seeds }
        }

        fn change(&self, attempt: u128, transition: Transition) -> Proposer {
            let (seeds, limits) = (self.seeds.clone(), Limits::default());
            Proposer::new(seeds, "web".parse().unwrap(), transition, Attempt(attempt), Duration::ZERO, limits)
        }

        /// Delivers what the proposer sends to the seed nodes that can be `reached`; true if it sent anything.
        fn step(&mut self, proposer: &mut Proposer, now: Duration, reached: &[usize]) -> bool {
            let actions = proposer.poll(now);
            for Action::Send { to, request } in &actions {
                let place = self.seeds.place(to).unwrap();
                if reached.contains(&place) {
                    let response = self.acceptors[place].handle(&"a".parse().unwrap(), request);
                    proposer.on_response(to, &response, now);
                }
            }
            !actions.is_empty()
        }

        fn run(&mut self, proposer: &mut Proposer, reached: &[usize]) -> Outcome {
            let mut now = Duration::ZERO;
            for _ in 0..1_000 {
                self.step(proposer, now, reached);
                match proposer.wakeup() {
                    Some(at) => now = now.max(at),
                    None => return proposer.outcome().cloned().unwrap(),
                }
            }
            panic!("it goes on for ever");
        }

        fn read(&mut self, attempt: u128) -> Outcome {
            let (seeds, limits) = (self.seeds.clone(), Limits::default());
            let workload = "web".parse().unwrap();
            let mut read = Proposer::read(seeds, workload, Attempt(attempt), Duration::ZERO, limits);
            self.run(&mut read, &[0, 1, 2])
        }
    }

    fn create(incarnation: u128) -> Transition {
        Transition::Create {
            by: Holder { incarnation: Incarnation(incarnation), node: "a".parse().unwrap() },
        }
    }

    #[test]
    fn the_first_is_granted_and_the_second_is_told_who_holds_it() {
        let mut cluster = Cluster::new();
        let mut first = cluster.change(1, create(10));
        let Outcome::Granted(granted) = cluster.run(&mut first, &[0, 1]) else { panic!("not granted") };
        assert_eq!((granted.generation, granted.seeds_version), (1, 1));
        let mut second = cluster.change(2, create(20));
        let Outcome::Refused(refused) = cluster.run(&mut second, &[1, 2]) else { panic!("not refused") };
        assert_eq!(refused.why, Why::Exists);
        assert_eq!(refused.current.as_deref(), Some(&granted));
        assert_eq!(cluster.read(3), Outcome::Read(Some(granted)));
    }

    #[test]
    fn what_is_held_changes_nothing_until_it_is_released() {
        let mut cluster = Cluster::new();
        let mut held = cluster.change(1, create(10)).hold();
        assert!(cluster.step(&mut held, Duration::ZERO, &[0, 1]));
        assert!(held.is_ready());
        for after in [1, 500] {
            assert!(!cluster.step(&mut held, Duration::from_millis(after), &[0, 1, 2]));
        }
        // Long after it would have given up.
        let late = Limits::default().deadline * 3;
        held.release(late);
        assert!(cluster.step(&mut held, late, &[0, 1]));
        assert!(matches!(held.outcome(), Some(Outcome::Granted(register)) if register.generation == 1));
    }

    #[test]
    fn what_is_held_is_decided_anew_if_another_was_faster() {
        let mut cluster = Cluster::new();
        let mut held = cluster.change(1, create(10)).hold();
        assert!(cluster.step(&mut held, Duration::ZERO, &[0, 1]));
        let Outcome::Granted(other) = cluster.run(&mut cluster.change(2, create(20)), &[1, 2]) else {
            panic!("not granted")
        };
        held.release(Duration::ZERO);
        let Outcome::Refused(refused) = cluster.run(&mut held, &[0, 1, 2]) else { panic!("not refused") };
        assert_eq!(refused.current.as_deref(), Some(&other));
    }

    #[test]
    fn a_minority_decides_nothing() {
        let mut cluster = Cluster::new();
        let mut proposer = cluster.change(1, create(10));
        let Outcome::NoMajority(NoMajority(silence)) = cluster.run(&mut proposer, &[2]) else {
            panic!("a minority decided")
        };
        let silence: Vec<_> = silence.into_iter().map(|(_, silence)| silence).collect();
        assert_eq!(silence, [Silence::Unheard, Silence::Unheard, Silence::Answered]);
        assert_eq!(cluster.read(2), Outcome::Read(None));
    }

    /// The change gets to one seed node only, and the answer to nobody.
    fn half_proposed(cluster: &mut Cluster) -> Proposer {
        let mut proposer = cluster.change(1, create(10));
        assert!(cluster.step(&mut proposer, Duration::ZERO, &[0, 1]));
        assert!(cluster.step(&mut proposer, Duration::ZERO, &[0]));
        let deadline = Limits::default().deadline;
        assert!(!cluster.step(&mut proposer, deadline, &[]));
        proposer
    }

    #[test]
    fn an_outcome_is_unknown_once_the_change_is_out() {
        let mut cluster = Cluster::new();
        assert!(matches!(half_proposed(&mut cluster).outcome(), Some(Outcome::Unknown(_))));
        // Either answer would do; from then on it stands.
        let settled = cluster.read(2);
        assert_eq!(cluster.read(3), settled);
    }

    #[test]
    fn a_read_that_missed_a_half_proposed_change_ends_it() {
        let mut cluster = Cluster::new();
        half_proposed(&mut cluster);
        let (seeds, limits) = (cluster.seeds.clone(), Limits::default());
        let mut read = Proposer::read(seeds, "web".parse().unwrap(), Attempt(2), Duration::ZERO, limits);
        assert_eq!(cluster.run(&mut read, &[1, 2]), Outcome::Read(None));
        assert_eq!(cluster.read(3), Outcome::Read(None), "the change came back");
    }

    #[test]
    fn the_same_transition_again_settles_an_unknown_outcome() {
        let mut cluster = Cluster::new();
        half_proposed(&mut cluster);
        let mut again = cluster.change(2, create(10));
        let Outcome::Granted(register) = cluster.run(&mut again, &[0, 1]) else { panic!("not granted") };
        assert_eq!(register.version, 1, "created twice");
    }

    #[test]
    fn two_in_each_others_way_both_end() {
        let mut cluster = Cluster::new();
        let mut proposers = [cluster.change(1, create(10)), cluster.change(2, create(20))];
        let mut now = Duration::ZERO;
        while proposers.iter().any(|proposer| proposer.outcome().is_none()) {
            for proposer in &mut proposers {
                cluster.step(proposer, now, &[0, 1, 2]);
            }
            now += Duration::from_micros(500);
        }
        let granted = |proposer: &Proposer| matches!(proposer.outcome(), Some(Outcome::Granted(_)));
        let refused = |proposer: &Proposer| matches!(proposer.outcome(), Some(Outcome::Refused(_)));
        assert_eq!(proposers.iter().filter(|proposer| granted(proposer)).count(), 1);
        assert_eq!(proposers.iter().filter(|proposer| refused(proposer)).count(), 1);
    }

    #[test]
    fn a_ballot_beyond_all_bounds_ends_it() {
        let cluster = Cluster::new();
        let mut proposer = cluster.change(1, create(10));
        proposer.poll(Duration::ZERO);
        for seed in cluster.seeds.members() {
            let promised = Ballot { counter: u64::MAX, attempt: Attempt(9) };
            let answer = Answer::Outbid { counter: 1, promised };
            let response = Response { cluster: ClusterId(1), attempt: Attempt(1), answer };
            proposer.on_response(seed, &response, Duration::ZERO);
            proposer.poll(Duration::ZERO);
        }
        assert!(matches!(proposer.outcome(), Some(Outcome::NoMajority(_))));
    }
}
