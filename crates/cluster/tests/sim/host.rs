//! One simulated host: a clock, perhaps a seed node on a disk, perhaps a supervisor.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use outlive_cluster::{
    Acceptor, Action, Disk, Holder, Incarnation, Learner, MemoryStorage, NodeName, Record, Register,
    Response, Standing, Storage, StoreError,
};
use rand::Rng;

use super::supervisor::{Context, Supervisor};
use super::{Broken, Message, Peer, TICK, Time};

/// A disk that outlives its host's crashes, and may fail.
#[derive(Clone, Default)]
struct SharedDisk {
    memory: Rc<RefCell<MemoryStorage>>,
    failing: Rc<RefCell<Option<Failing>>>,
}

/// The next write fails; whether it reached the disk is anyone's guess.
#[derive(Clone, Copy)]
struct Failing {
    written: bool,
}

impl Storage for SharedDisk {
    fn load(&self) -> Result<Option<Disk>, StoreError> {
        self.memory.borrow().load()
    }

    fn persist(&mut self, records: &[Record<'_>]) -> Result<(), StoreError> {
        match self.failing.take() {
            None => self.memory.borrow_mut().persist(records),
            Some(Failing { written }) => {
                if written {
                    self.memory.borrow_mut().persist(records)?;
                }
                Err(StoreError::Damaged { what: "the simulated disk".to_owned() })
            }
        }
    }
}

/// What runs on a seed node.
struct SeedNode {
    acceptor: Acceptor<SharedDisk>,
    learner: Option<Learner>,
}

pub struct Host {
    pub name: NodeName,
    pub is_seed: bool,
    pub is_up: bool,
    pub stalled_until: Time,
    disk: SharedDisk,
    seed_node: Option<SeedNode>,
    supervisor: Option<Supervisor>,
    /// How far its clock is off, and how many millionths it runs too fast or too slow.
    clock: (Duration, i64),
}

impl Host {
    pub fn new(name: NodeName, is_seed: bool, clock: (Duration, i64)) -> Self {
        let disk = SharedDisk::default();
        Self { name, is_seed, is_up: true, stalled_until: 0, disk, seed_node: None, supervisor: None, clock }
    }

    pub fn clock(&self, now: Time) -> Duration {
        let (offset, drift) = self.clock;
        let drifted = i128::from(now) * i128::from(1_000_000 + drift) / 1_000_000;
        offset + Duration::from_micros(u64::try_from(drifted).expect("clocks run forward"))
    }

    /// Makes it a seed node of the new cluster.
    pub fn bootstrap(&mut self, context: &mut Context) {
        let mut acceptor = Acceptor::open(self.disk.clone()).unwrap();
        acceptor.bootstrap(context.seeds.clone(), self.name.clone()).unwrap();
        self.seed_node = Some(SeedNode { acceptor, learner: None });
    }

    /// Comes up after a crash, with whatever is on its disk.
    pub fn start(&mut self, context: &mut Context) {
        self.is_up = true;
        self.disk.failing.take();
        if !self.is_seed {
            return;
        }
        let mut acceptor = Acceptor::open(self.disk.clone()).unwrap();
        if acceptor.standing() == Standing::Blank {
            let (seeds, me) = (context.seeds.clone(), self.name.clone());
            if context.broken == Some(Broken::WipedSeedVotes) {
                acceptor.bootstrap(seeds, me).unwrap();
            } else {
                acceptor.rejoin(seeds, me).unwrap();
            }
        }
        let learner = (acceptor.standing() == Standing::Learning).then(|| {
            let (seeds, attempt) = (context.seeds.clone(), context.attempt());
            Learner::new(seeds, self.name.clone(), attempt, context.now, 4 * TICK)
        });
        self.seed_node = Some(SeedNode { acceptor, learner });
    }

    pub fn crash(&mut self, context: &mut Context) {
        self.is_up = false;
        self.seed_node = None;
        if let Some(supervisor) = self.supervisor.take() {
            context.checker.died(supervisor.incarnation());
        }
    }

    /// Empties the disk of a host that is down.
    pub fn wipe(&mut self) {
        *self.disk.memory.borrow_mut() = MemoryStorage::default();
    }

    pub fn fail_next_write(&mut self, written: bool) {
        *self.disk.failing.borrow_mut() = Some(Failing { written });
    }

    pub fn votes(&self) -> bool {
        let is_voting = |node: &SeedNode| node.acceptor.standing() == Standing::Voting;
        self.seed_node.as_ref().is_some_and(|node| is_voting(node) && node.acceptor.failure().is_none())
    }

    pub fn has_failed_disk(&self) -> bool {
        self.seed_node.as_ref().is_some_and(|node| node.acceptor.failure().is_some())
    }

    /// What this seed node last voted for.
    pub fn last_vote(&self) -> Option<Register> {
        let disk = self.disk.load().unwrap()?;
        disk.slots.into_values().next()?.accepted?.value
    }

    /// An operator, or a policy, tells this node to see that the workload runs.
    pub fn see_to_it(&mut self, context: &mut Context) {
        if self.supervisor.is_none() {
            let me = self.new_holder(context);
            self.supervisor = Some(Supervisor::start(me, context));
        }
    }

    fn new_holder(&self, context: &mut Context) -> Holder {
        let incarnation = Incarnation(context.rng.random());
        context.checker.born(incarnation);
        Holder { incarnation, node: self.name.clone() }
    }

    pub fn tick(&mut self, context: &mut Context) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.tick(context);
        }
        if let Some(learner) = self.seed_node.as_mut().and_then(|node| node.learner.as_mut()) {
            for Action::Send { to, request } in learner.poll(context.now) {
                context.out.push((to, Message::Request(request)));
            }
        }
        self.bury(context);
    }

    pub fn on_message(&mut self, from: &NodeName, message: Message, context: &mut Context) {
        match message {
            Message::Request(request) => {
                let Some(node) = &mut self.seed_node else { return };
                let response = node.acceptor.handle(from, &request);
                if context.broken == Some(Broken::SeedForgetsPromises) {
                    self.forget_promises();
                }
                context.out.push((from.clone(), Message::Response(response)));
            }
            Message::Response(response) => {
                self.learn(from, &response, context);
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.on_response(from, &response, context);
                }
            }
            Message::Peer(Peer::Invite { from: primary, generation, state }) => {
                if self.supervisor.is_none() {
                    let me = self.new_holder(context);
                    self.supervisor = Some(Supervisor::join(me, primary, generation, state, context));
                }
            }
            Message::Peer(peer) => {
                if let Some(supervisor) = &mut self.supervisor {
                    supervisor.on_peer(&peer, context);
                }
            }
        }
        self.bury(context);
    }

    fn learn(&mut self, from: &NodeName, response: &Response, context: &mut Context) {
        let Some(node) = &mut self.seed_node else { return };
        let Some(learner) = &mut node.learner else { return };
        learner.on_response(from, response, context.now);
        if let Some(lesson) = learner.lesson() {
            // A disk that fails here leaves the node learning: it asks again after its restart.
            if node.acceptor.take_lesson(lesson).is_ok() {
                context.checker.counts.taught += 1;
                node.learner = None;
            }
        }
    }

    fn bury(&mut self, context: &mut Context) {
        if let Some(dead) = self.supervisor.take_if(|supervisor| supervisor.is_dead()) {
            context.checker.died(dead.incarnation());
        }
    }

    fn forget_promises(&mut self) {
        if let Some(disk) = self.disk.memory.borrow_mut().disk_mut() {
            for slot in disk.slots.values_mut() {
                slot.promised = slot.accepted.as_ref().map(|accepted| accepted.ballot);
            }
        }
        let acceptor = Acceptor::open(self.disk.clone()).unwrap();
        self.seed_node = Some(SeedNode { acceptor, learner: None });
    }
}
