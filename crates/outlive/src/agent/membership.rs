//! How agents agree on who the seed nodes are, beside the arbitration protocol: JSON, so that versions may differ.

use std::time::Duration;

use outlive_cluster::{ClusterId, NodeName, Seeds};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Agent;
use crate::control::SeedRow;
use crate::error::{Failure, Kind, Result};

/// What a connection for these messages is opened for.
pub const PURPOSE: &str = "membership";
/// A synchronous write, on a disk that may be busy.
pub const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Whether this node votes, and in which cluster.
    Standing,
    /// Vote in this new cluster from now on.
    Begin { seeds: Seeds },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Standing(Standing),
    Begun,
    Refused { reason: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub vote: Vote,
    /// Of which cluster it is a seed node, if of any.
    pub seeds: Option<Seeds>,
    /// The seed nodes in its configuration.
    pub configured: Vec<String>,
    /// Why it does not vote, if its disk failed.
    pub failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    Voting,
    /// Holds no history: new, or wiped.
    Blank,
    /// Was wiped, and waits to be taught.
    Learning,
    /// Its disk failed.
    Failed,
    /// Its configuration gives it no vote.
    NoSeed,
}

impl Vote {
    pub fn word(self) -> &'static str {
        match self {
            Vote::Voting => "voting",
            Vote::Blank => "blank",
            Vote::Learning => "learning",
            Vote::Failed => "failed",
            Vote::NoSeed => "no seed",
        }
    }
}

/// Answers another agent.
pub fn answer(agent: &Agent, node: &str, request: &[u8]) -> Vec<u8> {
    let response = match serde_json::from_slice(request) {
        Ok(Request::Standing) => Response::Standing(agent.seed.standing()),
        Ok(Request::Begin { seeds }) => match agent.seed.begin(seeds) {
            Ok(()) => {
                info!(by = node, "this node is a seed node of a new cluster");
                Response::Begun
            }
            Err(failure) => Response::Refused { reason: failure.to_string() },
        },
        Err(_) => {
            Response::Refused { reason: "the question is not understood: update the older node".to_owned() }
        }
    };
    serde_json::to_vec(&response).unwrap_or_default()
}

fn standing_of(agent: &Agent, node: &str) -> Result<Standing> {
    if node == agent.config.node {
        return Ok(agent.seed.standing());
    }
    match agent.peers.ask_membership(node, &Request::Standing)? {
        Response::Standing(standing) => Ok(standing),
        Response::Refused { reason } => Err(Failure::refused(format!("node {node}: {reason}"))),
        Response::Begun => Err(Failure::failed(format!("node {node} answered another question"))),
    }
}

pub fn standings(agent: &Agent, nodes: &[String]) -> Vec<(String, Result<Standing>)> {
    agent.peers.ask_all(nodes.iter().map(String::as_str), |node| standing_of(agent, node))
}

/// The seed nodes as the cluster was bootstrapped: from this node if it votes, or else from the first that does.
pub fn current_seeds(agent: &Agent) -> Result<Seeds> {
    let own = agent.seed.standing();
    if let (Vote::Voting, Some(seeds)) = (own.vote, own.seeds) {
        return Ok(seeds);
    }
    let standings = standings(agent, &agent.config.seeds);
    let mut blank = 0;
    let mut silent = Vec::new();
    for (node, standing) in standings {
        match standing {
            Ok(Standing { vote: Vote::Voting, seeds: Some(seeds), .. }) => return Ok(seeds),
            Ok(Standing { vote: Vote::Blank, .. }) => blank += 1,
            Ok(standing) => silent.push(format!("{node} is not voting ({})", standing.vote.word())),
            Err(failure) => silent.push(failure.to_string()),
        }
    }
    if blank == agent.config.seeds.len() {
        let seeds = agent.config.seeds.join(",");
        return Err(Failure::refused(format!(
            "this cluster was never begun: run `outlive seed bootstrap --seeds {seeds}` once, on one node"
        )));
    }
    let silent = silent.join("; ");
    Err(Failure::unreachable(format!(
        "no seed node votes ({silent}): start their agents, see `outlive seed status`"
    )))
}

/// `outlive seed status`.
pub fn rows(agent: &Agent) -> Vec<SeedRow> {
    let standings = standings(agent, &agent.config.seeds);
    let votes = |standing: &Result<Standing>| matches!(standing, Ok(Standing { vote: Vote::Voting, .. }));
    let begun = standings.iter().any(|(_, standing)| votes(standing));
    let row = |(node, standing): (String, Result<Standing>)| {
        let address = agent.config.address_of(&node);
        match standing {
            Ok(standing) => SeedRow {
                address,
                standing: standing.vote.word().to_owned(),
                cluster: standing.seeds.map(|seeds| seeds.cluster().to_string()),
                note: standing.failure.or_else(|| {
                    let differs = standing.configured != agent.config.seeds;
                    let lost = match standing.vote {
                        Vote::Blank if begun => "it lost its history: run `outlive seed rejoin` on it",
                        Vote::Learning => "it waits to be taught: run `outlive seed rejoin` on it again",
                        _ => "",
                    };
                    if differs {
                        let seeds = standing.configured.join(",");
                        Some(format!("its configuration has other seeds: {seeds}"))
                    } else {
                        (!lost.is_empty()).then(|| lost.to_owned())
                    }
                }),
                node,
            },
            Err(failure) => SeedRow {
                address,
                standing: "unreachable".to_owned(),
                cluster: None,
                note: Some(failure.to_string()),
                node,
            },
        }
    };
    standings.into_iter().map(row).collect()
}

/// `outlive seed bootstrap`: all seed nodes must be there, agree who they are, and be blank. A seed node that was wiped
/// is blank too, which only people can tell from a new one: that is why this is a command, and refused where any
/// seed node has a history.
pub fn bootstrap(agent: &Agent, wanted: &[String], progress: &mut dyn FnMut(String)) -> Result<ClusterId> {
    let mut members = wanted.to_vec();
    members.sort();
    if members != agent.config.seeds {
        let configured = agent.config.seeds.join(",");
        return Err(Failure::usage(format!(
            "the seed nodes in this node's configuration are {configured}: give the same, or correct `seeds` there"
        )));
    }
    progress(format!("asking {} whether they are new", members.join(", ")));
    for (node, standing) in standings(agent, &members) {
        let standing = standing.map_err(|failure| {
            Failure::new(failure.kind, format!("{failure}; all seed nodes must run to begin a cluster"))
        })?;
        ready_to_begin(&node, &standing, &members)?;
    }
    let names = members.iter().map(|name| name.parse::<NodeName>());
    let names = names
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| Failure::usage(error.to_string()))?;
    // Seeds change later, one at a time; this is their first version.
    let seeds =
        Seeds::new(ClusterId::random(), 1, names).map_err(|error| Failure::usage(error.to_string()))?;
    progress(format!("beginning cluster {}", seeds.cluster()));
    let begun = agent.peers.ask_all(members.iter().map(String::as_str), |node| begin_at(agent, node, &seeds));
    let failed: Vec<_> =
        begun.iter().filter_map(|(node, result)| Some((node, result.as_ref().err()?))).collect();
    if failed.is_empty() {
        return Ok(seeds.cluster());
    }
    let reasons: Vec<_> = failed.iter().map(|(_, failure)| failure.to_string()).collect();
    let done: Vec<_> =
        begun.iter().filter(|(_, result)| result.is_ok()).map(|(node, _)| node.as_str()).collect();
    let undo = match done.as_slice() {
        [] => "mend that and run it again".to_owned(),
        done => format!(
            "{} did begin: before running it again, stop their agents and remove `arbitration` from their state \
             directories (nothing was started in this cluster yet)",
            done.join(", ")
        ),
    };
    Err(Failure::failed(format!("not every seed node began the cluster ({}); {undo}", reasons.join("; "))))
}

fn ready_to_begin(node: &str, standing: &Standing, members: &[String]) -> Result<()> {
    if standing.configured != members {
        let configured = standing.configured.join(",");
        return Err(Failure::refused(format!(
            "the configuration of {node} has other seed nodes ({configured}): make `seeds` the same on every node"
        )));
    }
    match (standing.vote, &standing.seeds) {
        (Vote::Blank, _) => Ok(()),
        (_, Some(seeds)) => Err(Failure::refused(format!(
            "{node} is already a seed node, of cluster {}: a cluster begins once (a seed node that lost its history comes \
             back with `outlive seed rejoin`); if this is to be another one, stop the agent there and remove \
             `arbitration` from its state directory",
            seeds.cluster()
        ))),
        (vote, None) => {
            let reason = standing.failure.as_deref().unwrap_or(vote.word());
            Err(Failure::refused(format!("{node} cannot be a seed node ({reason}): look at its agent's log")))
        }
    }
}

fn begin_at(agent: &Agent, node: &str, seeds: &Seeds) -> Result<()> {
    if node == agent.config.node {
        return agent.seed.begin(seeds.clone());
    }
    match agent.peers.ask_membership(node, &Request::Begin { seeds: seeds.clone() })? {
        Response::Begun => Ok(()),
        Response::Refused { reason } => Err(Failure::refused(format!("node {node}: {reason}"))),
        Response::Standing(_) => {
            Err(Failure::new(Kind::Failed, format!("node {node} answered another question")))
        }
    }
}
