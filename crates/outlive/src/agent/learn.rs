//! How a seed node that lost its disk gets its vote back: the others teach it, without being told to by anybody.
//!
//! Blank is a seed node that was wiped as well as one of a cluster that is only about to begin. Where others have voted for
//! longer than beginning takes, it was wiped. If it was not, after all, being taught does no harm: it says what the others
//! say.

use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Action, Attempt, Learner, Seeds};
use outlive_epoch::peer;
use tracing::{debug, info, warn};

use super::Agent;
use super::membership::{self, Vote};
use crate::error::{Failure, Result};

/// Between two looks at the others while this node is blank. Not urgent: the others are a majority without it.
const LOOK: Duration = Duration::from_secs(2);
/// `outlive seed bootstrap` asks all seed nodes at once, and has ended that long after the first of them began:
/// connecting and its handshakes, and [`membership::ANSWER`], with as much to spare.
const BEGINNING: Duration = Duration::from_secs(20);
/// A page that was asked for and did not come is asked for again.
const RESEND: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// Until this node votes, if it is to.
pub fn run(agent: &Agent) {
    let mut others_vote_since = None;
    loop {
        let standing = agent.seed.standing();
        let outcome = match (standing.vote, standing.seeds) {
            (Vote::Learning, Some(seeds)) => be_taught(agent, seeds),
            (Vote::Blank, _) => match voting_elsewhere(agent) {
                Some(seeds) => {
                    let since: Instant = *others_vote_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < BEGINNING { Ok(()) } else { agent.seed.rejoin(seeds) }
                }
                None => {
                    others_vote_since = None;
                    Ok(())
                }
            },
            _ => return,
        };
        if let Err(failure) = outcome {
            warn!(reason = failure.to_string(), "this seed node has lost its votes and cannot be taught");
            return;
        }
        thread::sleep(LOOK);
    }
}

/// The seed nodes of the cluster that the others vote in, if they are those of the configuration.
fn voting_elsewhere(agent: &Agent) -> Option<Seeds> {
    let mut voting = membership::standings(agent, &agent.config.seeds)
        .into_iter()
        .filter_map(|(_, standing)| standing.ok())
        .filter(|standing| standing.vote == Vote::Voting)
        .filter_map(|standing| standing.seeds);
    let seeds = voting.next()?;
    let named = seeds.members().iter().map(|name| name.as_str());
    // Of two clusters with the same seed nodes one is a mistake, and this node cannot tell which.
    (voting.all(|other| other == seeds) && named.eq(agent.config.seeds.iter().map(String::as_str)))
        .then_some(seeds)
}

/// Asks the others, page by page, until a majority has taught everything. Never gives up: no vote is safe.
fn be_taught(agent: &Agent, seeds: Seeds) -> Result<()> {
    info!(cluster = %seeds.cluster(), "this seed node has lost its votes and asks the others to teach it");
    let begun = Instant::now();
    let me = agent.seed.name().clone();
    let mut learner = Learner::new(seeds, me, Attempt::random(), Duration::ZERO, RESEND);
    // Anything else once the agent is ending.
    while agent.seed.standing().vote == Vote::Learning {
        for Action::Send { to, request } in learner.poll(begun.elapsed()) {
            match agent.peers.ask(to.as_str(), &peer::Request::Arbitrate(request)) {
                Ok(peer::Response::Arbitrated(response)) => {
                    learner.on_response(&to, &response, begun.elapsed());
                }
                Ok(other) => debug!(teacher = to.as_str(), ?other, "does not teach"),
                Err(failure) => debug!(teacher = to.as_str(), reason = failure.to_string(), "does not teach"),
            }
        }
        match learner.lesson() {
            Some(lesson) => {
                agent.seed.take_lesson(lesson)?;
                info!("this seed node was taught, and votes again");
                return Ok(());
            }
            None => thread::sleep(POLL),
        }
    }
    Err(Failure::refused("the agent is ending"))
}
