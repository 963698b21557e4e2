//! This node's vote in arbitration, and reading what the seed nodes agreed on.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outlive_cluster::{
    Acceptor, Lesson, MembershipError, NodeName, Outcome, RedbStorage, Register, Request, Response, Seeds,
    Transition, WorkloadName,
};
use outlive_epoch::arbiter::Arbiter;
use outlive_fault::{Point, point};

use super::Agent;
use super::membership::{self, Standing, Vote};
use crate::config::Config;
use crate::error::{Context, Failure, Result, chain};

/// The file under the state directory that holds this node's votes.
const FILE: &str = "arbitration";

/// The acceptor, if this node has a vote. Every answer waits for its turn: what it promises is on disk before it leaves.
pub struct Seed {
    me: NodeName,
    configured: Vec<String>,
    acceptor: Option<Mutex<Option<Acceptor<RedbStorage>>>>,
}

impl Seed {
    pub fn open(config: &Config) -> Result<Self> {
        let me = config.node.parse().or_failed(|| "use this node's name".to_owned())?;
        let acceptor =
            if config.is_seed() { Some(Mutex::new(Some(open_acceptor(&config.state_dir)?))) } else { None };
        Ok(Self { me, configured: config.seeds.clone(), acceptor })
    }

    /// Answers a message of the arbitration protocol.
    pub fn arbitrate(&self, from: &str, request: &Request) -> Result<Response> {
        let from: NodeName = from.parse().or_failed(|| format!("answer {from:?}"))?;
        point(Point::SeedAsked);
        match self.acceptor()?.as_mut() {
            Some(acceptor) => {
                let response = acceptor.handle(&from, request);
                point(Point::SeedPersisted);
                Ok(response)
            }
            None => Err(Failure::refused(format!("the agent of {} is ending", self.me))),
        }
    }

    pub fn standing(&self) -> Standing {
        let configured = self.configured.clone();
        let Ok(acceptor) = self.acceptor() else {
            return Standing { vote: Vote::NoSeed, seeds: None, configured, failure: None };
        };
        let Some(acceptor) = acceptor.as_ref() else {
            let failure = Some("its agent is ending".to_owned());
            return Standing { vote: Vote::Failed, seeds: None, configured, failure };
        };
        let vote = match (acceptor.failure(), acceptor.standing()) {
            (Some(_), _) => Vote::Failed,
            (None, outlive_cluster::Standing::Blank) => Vote::Blank,
            (None, outlive_cluster::Standing::Learning) => Vote::Learning,
            (None, outlive_cluster::Standing::Voting) => Vote::Voting,
        };
        let failure = acceptor.failure().map(|error| chain(error));
        Standing { vote, seeds: acceptor.seeds().cloned(), configured, failure }
    }

    /// As the protocol names this node.
    pub fn me(&self) -> &NodeName {
        &self.me
    }

    /// Is a seed node of this cluster again, without a vote until it was taught.
    pub fn rejoin(&self, seeds: Seeds) -> Result<()> {
        self.change(|acceptor, me| acceptor.rejoin(seeds, me))
    }

    /// Votes from now on, and stands by what it was taught.
    pub fn take_lesson(&self, lesson: Lesson) -> Result<()> {
        self.change(|acceptor, _| acceptor.take_lesson(lesson))
    }

    /// Votes in a new cluster from now on.
    pub fn begin(&self, seeds: Seeds) -> Result<()> {
        let named: Vec<&str> = seeds.members().iter().map(NodeName::as_str).collect();
        if named != self.configured {
            let (configured, named) = (self.configured.join(","), named.join(","));
            return Err(Failure::refused(format!(
                "the configuration of {} has the seed nodes {configured}, not {named}: make `seeds` the same everywhere",
                self.me
            )));
        }
        self.change(|acceptor, me| acceptor.bootstrap(seeds, me))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Acceptor<RedbStorage>, NodeName) -> std::result::Result<(), MembershipError>,
    ) -> Result<()> {
        match self.acceptor()?.as_mut() {
            Some(acceptor) => change(acceptor, self.me.clone())
                .map_err(|error| Failure::refused(format!("{}: {}", self.me, chain(&error)))),
            None => Err(Failure::refused(format!("the agent of {} is ending", self.me))),
        }
    }

    /// Waits for the vote under way, and gives none any more.
    pub fn close(&self) {
        if let Ok(mut acceptor) = self.acceptor() {
            *acceptor = None;
        }
    }

    fn acceptor(&self) -> Result<MutexGuard<'_, Option<Acceptor<RedbStorage>>>> {
        match &self.acceptor {
            // Memory follows the disk, so a panic between leaves the acceptor behind what it said, at worst.
            Some(acceptor) => Ok(acceptor.lock().unwrap_or_else(PoisonError::into_inner)),
            None => {
                let (me, seeds) = (&self.me, self.configured.join(","));
                Err(Failure::refused(format!(
                    "{me} is no seed node ({seeds} are): correct `seeds` where it says so"
                )))
            }
        }
    }
}

fn open_acceptor(state: &Path) -> Result<Acceptor<RedbStorage>> {
    let path = state.join(FILE);
    let failed = |error: &dyn std::error::Error| {
        let (path, why) = (path.display(), chain(error));
        Failure::failed(format!(
            "cannot take up this node's votes in {path}: {why}; see that its file system is writable and has room"
        ))
    };
    let storage = RedbStorage::open(&path).map_err(|error| failed(&error))?;
    Acceptor::open(storage).map_err(|error| failed(&error))
}

/// What the seed nodes agreed on for a workload.
pub fn read_register(agent: &Agent, name: &WorkloadName) -> Result<Option<Register>> {
    match arbiter(agent, name)?.read() {
        Outcome::Read(register) => Ok(register),
        outcome => Err(unsettled(name, &outcome)),
    }
}

/// Ends a workload's register: whoever calls this vouches that the workload is silent.
pub fn bury(agent: &Agent, name: &WorkloadName, generation: u64) -> Result<()> {
    match arbiter(agent, name)?.ask(Transition::Stop { generation }) {
        Outcome::Granted(_) => Ok(()),
        Outcome::Refused(refused) => Err(Failure::refused(format!("{name} cannot be ended: {refused}"))),
        outcome => Err(unsettled(name, &outcome)),
    }
}

fn arbiter(agent: &Agent, name: &WorkloadName) -> Result<Arbiter> {
    let seeds = membership::current_seeds(agent)?;
    Ok(Arbiter::new(seeds, name.clone(), agent.peers.identity(), |node| agent.config.address_of(node)))
}

fn unsettled(name: &WorkloadName, outcome: &Outcome) -> Failure {
    let why = match outcome {
        Outcome::NoMajority(silence) | Outcome::Unknown(silence) => silence.to_string(),
        other => format!("unexpected outcome {other:?}"),
    };
    Failure::unreachable(format!(
        "the seed nodes cannot be asked about {name} ({why}): see `outlive seed status`"
    ))
}
