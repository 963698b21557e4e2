//! `outlive seed rejoin`: gives this node, whose history was lost, its vote back. It is taught by a majority of the seed
//! nodes without itself; whatever else it says or is told, until then it does not vote.

use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Action, Attempt, Learner, Lesson, NodeName, Response, Seeds};
use outlive_epoch::peer;
use tracing::info;

use super::Agent;
use super::membership::{self, Standing, Vote};
use crate::control::Rejoined;
use crate::error::{Context, Failure, Result};

/// Lessons are pages of votes, each answered from memory; beyond this something is in the way.
const LIMIT: Duration = Duration::from_secs(20);
/// After a question that was not answered. A seed node that has just come up is asked often enough.
const RESEND: Duration = Duration::from_millis(200);

/// Two lessons at once would each begin a life of this node, and end the other's.
static UNDER_WAY: Mutex<()> = Mutex::new(());

pub fn rejoin(agent: &Agent, progress: &mut dyn FnMut(String)) -> Result<Rejoined> {
    let _alone = match UNDER_WAY.try_lock() {
        Ok(alone) => alone,
        // It guards no data.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::refused("this node is being taught already: see `outlive seed status`"));
        }
    };
    let me = &agent.config.node;
    let own = agent.seed.standing();
    let seeds = match (own.vote, own.seeds) {
        (Vote::Blank, _) => {
            progress(format!("asking the other seed nodes which cluster {me} belongs to"));
            let seeds = seeds_of_others(agent)?;
            agent.seed.rejoin(seeds.clone())?;
            seeds
        }
        // Begun before, and not come to its end.
        (Vote::Learning, Some(seeds)) => seeds,
        (Vote::Voting, _) => {
            return Err(Failure::refused(format!(
                "{me} has its history and votes: there is nothing to rejoin; see `outlive seed status`"
            )));
        }
        (Vote::NoSeed, _) => {
            let configured = agent.config.seeds.join(",");
            return Err(Failure::refused(format!(
                "{me} is no seed node ({configured} are): run this on the seed node that lost its history"
            )));
        }
        (Vote::Failed | Vote::Learning, _) => {
            let reason = own.failure.unwrap_or_else(|| "see its log".to_owned());
            return Err(Failure::failed(format!(
                "the votes of {me} cannot be kept ({reason}): restart its agent, then try again"
            )));
        }
    };
    let cluster = seeds.cluster().to_string();
    progress(format!("learning from the other seed nodes of cluster {cluster}"));
    agent.seed.take_lesson(learn(agent, seeds)?)?;
    info!(cluster, "this seed node was taught, and votes again");
    Ok(Rejoined { node: me.clone(), cluster })
}

/// The seed nodes of the cluster, as a majority of them without this one says. Fewer could not teach it anyway, and what
/// only one says may be another cluster's.
fn seeds_of_others(agent: &Agent) -> Result<Seeds> {
    let config = &agent.config;
    let others: Vec<String> = config.seeds.iter().filter(|name| **name != config.node).cloned().collect();
    let majority = config.seeds.len() / 2 + 1;
    if others.len() < majority {
        return Err(Failure::refused(format!(
            "{} seed nodes have no majority without {}, so nobody can teach it: put its state directory back from \
             where it was lost, or, if no workload of this cluster lives, begin anew on every seed node",
            config.seeds.len(),
            config.node
        )));
    }
    let (mut found, mut teachers, mut blank, mut silent) = (None, 0, 0, Vec::new());
    for (node, standing) in membership::standings(agent, &others) {
        match standing {
            Ok(Standing { vote: Vote::Voting, seeds: Some(seeds), .. }) => {
                teachers += 1;
                match &found {
                    None => found = Some(seeds),
                    Some(known) if *known == seeds => {}
                    Some(known) => {
                        return Err(Failure::refused(format!(
                            "the other seed nodes are of different clusters ({} and, at {node}, {}): correct `seeds` \
                             and [[peers]] where they name the wrong nodes",
                            known.cluster(),
                            seeds.cluster()
                        )));
                    }
                }
            }
            Ok(Standing { vote: Vote::Blank, .. }) => blank += 1,
            Ok(standing) => silent.push(format!("{node} is not voting ({})", standing.vote.word())),
            Err(failure) => silent.push(failure.to_string()),
        }
    }
    if blank == others.len() {
        let seeds = config.seeds.join(",");
        return Err(Failure::refused(format!(
            "no other seed node has a history either: begin the cluster with `outlive seed bootstrap --seeds {seeds}`"
        )));
    }
    if blank > 0 {
        silent.push(format!("{blank} lost their history as well, or are new"));
    }
    let Some(seeds) = found.filter(|_| teachers >= majority) else {
        return Err(Failure::unreachable(format!(
            "{majority} of {} must teach {}, and {teachers} could ({}): start their agents, then try again; nothing \
             was changed",
            others.join(", "),
            config.node,
            silent.join("; ")
        )));
    };
    let members: Vec<&str> = seeds.members().iter().map(NodeName::as_str).collect();
    if members != config.seeds {
        return Err(Failure::refused(format!(
            "the cluster's seed nodes are {}, and this node's configuration says {}: correct `seeds`",
            members.join(","),
            config.seeds.join(",")
        )));
    }
    Ok(seeds)
}

fn learn(agent: &Agent, seeds: Seeds) -> Result<Lesson> {
    let begun = Instant::now();
    let mut learner = Learner::new(seeds, agent.seed.me().clone(), Attempt::random(), Duration::ZERO, RESEND);
    let mut silent = Vec::new();
    loop {
        if let Some(lesson) = learner.lesson() {
            return Ok(lesson);
        }
        if begun.elapsed() >= LIMIT {
            return Err(Failure::unreachable(format!(
                "{} was not taught by a majority of the seed nodes within {} s ({}) and does not vote: see `outlive seed \
                 status`, then run this again",
                agent.config.node,
                LIMIT.as_secs(),
                silent.join("; ")
            )));
        }
        let questions = learner.poll(begun.elapsed());
        if questions.is_empty() {
            thread::sleep(RESEND / 10);
            continue;
        }
        silent.clear();
        for (node, answer) in ask(agent, &questions) {
            match (node.parse::<NodeName>(), answer) {
                (Ok(node), Ok(response)) => learner.on_response(&node, &response, begun.elapsed()),
                (Ok(_), Err(failure)) => silent.push(failure.to_string()),
                // The names come from the learner.
                (Err(_), _) => {}
            }
        }
    }
}

fn ask(agent: &Agent, questions: &[Action]) -> Vec<(String, Result<Response>)> {
    let request = |node: &str| {
        let of_node = |action: &&Action| matches!(action, Action::Send { to, .. } if to.as_str() == node);
        let Some(Action::Send { request, .. }) = questions.iter().find(of_node) else {
            return Err(Failure::failed(format!("there is no question for node {node}")));
        };
        let question = peer::Request::arbitrate(request).or_failed(|| format!("ask node {node}"))?;
        match agent.peers.ask(node, &question)? {
            peer::Response::Arbitrated(answer) => {
                Response::decode(&answer).or_failed(|| format!("read what node {node} answers"))
            }
            peer::Response::Refused { reason } => Err(Failure::refused(format!("node {node}: {reason}"))),
            _ => Err(Failure::failed(format!(
                "node {node} answered another question: it may run another version"
            ))),
        }
    };
    agent.peers.ask_all(questions.iter().map(|Action::Send { to, .. }| to.as_str()), request)
}
