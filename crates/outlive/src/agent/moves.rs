//! Changes of primary that an operator orders. From any node: the order is passed on to the node that can carry it out.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::WorkloadName;
use outlive_epoch::control::{Request, Response, Side, State, Status};
use outlive_epoch::peer;
use outlive_epoch::setup::{Lost, Workload};
use tracing::{info, warn};

use super::view::Search;
use super::{Agent, admit, definition as file, host, seed, view};
use crate::control::Moved;
use crate::error::{Failure, Result};

/// A supervisor answers an order from memory.
const ORDER: Duration = Duration::from_secs(5);
/// Another node's agent has to be waited for a little longer than it waits for its supervisor: what it then says is known.
const MARGIN: Duration = Duration::from_secs(1);
/// How often it is looked at how far a move is.
const LOOK: Duration = Duration::from_millis(10);
/// Something is said at least this often, so that whoever waits knows that it goes on.
const SAY: Duration = Duration::from_secs(10);
/// Asking whether addresses are free, and starting a supervisor.
const START: Duration = Duration::from_secs(20);
/// What has no primary for so long, on the nodes that matter, will not get one by itself: several times what the seed nodes take
/// to agree.
const NOBODY: Duration = Duration::from_secs(15);

/// A supervisor, and the node it is on.
struct Place {
    node: String,
    status: Status,
}

/// `outlive switchover`.
pub fn switchover(
    agent: &Agent,
    name: &str,
    to: Option<String>,
    progress: &mut dyn FnMut(String),
) -> Result<Moved> {
    let name = admit::name(name)?;
    let from = find(agent, &name, Side::Primary)?;
    let to = match (to, &from.status.backup_node) {
        (Some(to), _) => to,
        (None, Some(backup)) if from.status.state == State::Protected => backup.clone(),
        (None, _) => {
            return Err(Failure::refused(format!(
                "{name} has no backup to switch to: it is {}{}",
                super::word(from.status.state),
                from.status.exposed_because.as_ref().map_or(String::new(), |why| format!(" ({why})"))
            )));
        }
    };
    order(agent, &from.node, &name, Request::Switchover { to: Some(to.clone()) })?;
    progress(format!("moving {name} from {} to {to}", from.node));
    follow(agent, &name, &from, &to, progress)
}

/// `outlive failover`: the backup takes over although its primary may live.
pub fn failover(agent: &Agent, name: &str, progress: &mut dyn FnMut(String)) -> Result<Moved> {
    let name = admit::name(name)?;
    let backup = find(agent, &name, Side::Backup)?;
    let node = backup.node.clone();
    order(agent, &node, &name, Request::Failover)?;
    progress(format!("{node} takes over {name}"));
    follow(agent, &name, &backup, &node, progress)
}

/// Waits until the primary of a newer generation runs where it should, or it is known why not.
fn follow(
    agent: &Agent,
    name: &WorkloadName,
    from: &Place,
    to: &str,
    progress: &mut dyn FnMut(String),
) -> Result<Moved> {
    let begun = Instant::now();
    let mut said = begun;
    let mut seen = begun;
    let mut moving = begun;
    loop {
        let there = status_on(agent, to, name);
        if let Ok(Some(status)) = &there
            && status.role == Side::Primary
            && status.generation > from.status.generation
            && matches!(status.state, State::Exposed | State::Syncing | State::Protected)
            && status.last_failover.is_some()
        {
            let activate_ms = status.last_failover.map_or(0.0, |failover| failover.activate_ms);
            info!(workload = name.as_str(), to, generation = status.generation, "moved");
            return Ok(Moved { node: to.to_owned(), generation: status.generation, activate_ms });
        }
        let here = if from.node == to { None } else { status_on(agent, &from.node, name).ok().flatten() };
        if let Some(Status { role: Side::Primary, moving: None, move_failed: Some(reason), .. }) = &here {
            return Err(Failure::failed(format!("{name} stays on {}: {reason}", from.node)));
        }
        if let Some(status) = here
            && status.role == Side::Primary
            && status.state != State::Stopped
        {
            seen = Instant::now();
            if status.moving.is_some() {
                moving = seen;
            } else if moving.elapsed() > NOBODY {
                return Err(Failure::failed(format!(
                    "{name} stays on {}, and the move is over: order it again, or see `outlive inspect {name}`",
                    from.node
                )));
            }
        }
        if seen.elapsed() > NOBODY {
            return Err(Failure::failed(format!(
                "{name} does not come to life on {to} (yet): see `outlive inspect {name}`"
            )));
        }
        if said.elapsed() > SAY {
            said = Instant::now();
            progress(format!("still moving {name} to {to}, for {} s", begun.elapsed().as_secs()));
        }
        thread::sleep(LOOK);
    }
}

/// The supervisor of that side, wherever it is.
fn find(agent: &Agent, name: &WorkloadName, side: Side) -> Result<Place> {
    let mut silent = Vec::new();
    // One that has just ended does not answer, and the one that counts may be elsewhere.
    let own = agent.supervisors.status(name.as_str()).unwrap_or_else(|failure| {
        silent.push(failure.to_string());
        None
    });
    let own = own.map(|status| Place { node: agent.config.node.clone(), status });
    let is_it = |place: &Place| place.status.role == side && place.status.state != State::Stopped;
    if let Some(own) = own.filter(is_it) {
        return Ok(own);
    }
    for (node, status) in agent.peers.statuses(name.as_str()) {
        match status {
            Ok(Some(status)) => {
                let place = Place { node, status: *status };
                if is_it(&place) {
                    return Ok(place);
                }
            }
            Ok(None) => {}
            Err(failure) => silent.push(failure.to_string()),
        }
    }
    let side = match side {
        Side::Primary => "primary",
        Side::Backup => "backup",
    };
    if silent.is_empty() {
        // Says why, if there is no such workload at all.
        view::inspect(agent, name.as_str())?;
        return Err(Failure::refused(format!("{name} has no {side}: see `outlive inspect {name}`")));
    }
    let silent = silent.join("; ");
    Err(Failure::unreachable(format!("no node that answers has a {side} of {name} ({silent})")))
}

fn status_on(agent: &Agent, node: &str, name: &WorkloadName) -> Result<Option<Status>> {
    if node == agent.config.node {
        return agent.supervisors.status(name.as_str());
    }
    view::ask_node(agent, node, name.as_str())
}

/// Gives a supervisor an order, here or through the agent of its node.
fn order(agent: &Agent, node: &str, name: &WorkloadName, order: Request) -> Result<()> {
    let response = if node == agent.config.node {
        agent.supervisors.ask(name, &order, ORDER)?
    } else {
        let request = peer::Request::Order { version: peer::VERSION, name: name.to_string(), order };
        match agent.peers.ask_within(node, &request, ORDER + MARGIN)? {
            peer::Response::Ordered(response) => response,
            peer::Response::Refused { reason } => {
                return Err(Failure::refused(format!("node {node}: {reason}")));
            }
            other => return Err(Failure::failed(format!("node {node} answered {other:?}"))),
        }
    };
    match response {
        Response::Done => Ok(()),
        Response::Failed { reason } => Err(Failure::refused(reason)),
        Response::Status(_) | Response::Returned { .. } | Response::Stored { .. } => {
            Err(Failure::failed("the supervisor answered another question"))
        }
    }
}

/// `outlive restart-lost`: on the node asked, or this one, or another that can.
pub fn restart_lost(
    agent: &Arc<Agent>,
    name: &str,
    on: Option<String>,
    dead: &[String],
    progress: &mut dyn FnMut(String),
) -> Result<Moved> {
    let name = admit::name(name)?;
    dead.iter().try_for_each(|node| view::check_may_be_dead(agent, node))?;
    let lost = check_is_lost(agent, &name, dead)?;
    let generation = lost.generation + 1;
    let workload = find_definition(agent, &name, dead)?;
    warn!(workload = name.as_str(), dead = dead.join(","), "started anew on an operator's word");
    let mut reasons = Vec::new();
    let places = match on {
        Some(on) => vec![on],
        None => {
            let others = agent.peers.names().filter(|node| !dead.iter().any(|dead| dead == node));
            std::iter::once(agent.config.node.as_str()).chain(others).map(str::to_owned).collect()
        }
    };
    for node in places {
        progress(format!("starting {name} anew on {node}"));
        match restart_on(agent, &node, workload.clone(), lost.clone()) {
            Ok(()) => return Ok(Moved { node, generation, activate_ms: 0.0 }),
            Err(failure) => reasons.push(format!("{node}: {failure}")),
        }
    }
    Err(Failure::failed(format!("{name} is not started anew: {}", reasons.join("; "))))
}

/// No node that answers has it, and of the others somebody says that they are dead.
fn check_is_lost(agent: &Agent, name: &WorkloadName, dead: &[String]) -> Result<Lost> {
    let is_not = |node: &str| {
        Failure::refused(format!("{name} is not lost: node {node} has it, see `outlive inspect {name}`"))
    };
    if agent.supervisors.is_alive(name)? {
        return Err(is_not(&agent.config.node));
    }
    let silent = match view::search(agent, name) {
        Search::Found(node, _) => return Err(is_not(&node)),
        Search::Nowhere => Vec::new(),
        Search::Silent(silent) => silent,
    };
    if let Some(node) = dead.iter().find(|node| !silent.iter().any(|(silent, _)| silent == *node)) {
        return Err(view::not_dead(node));
    }
    let register = seed::read_register(agent, name)?;
    let Some(register) = register else { return Err(view::no_such(agent, name)) };
    let Some((primary, backup)) = view::holders(&register) else { return Err(view::no_such(agent, name)) };
    if silent.iter().any(|(node, _)| !dead.contains(node)) {
        return Err(view::out_of_reach(name, &register, &silent));
    }
    Ok(Lost {
        generation: register.generation,
        primary: primary.incarnation,
        backup: backup.map(|backup| backup.incarnation),
    })
}

fn find_definition(agent: &Agent, name: &WorkloadName, dead: &[String]) -> Result<Workload> {
    if let Some(workload) = file::load(&agent.supervisors.directory(name))? {
        return Ok(workload);
    }
    let request = peer::Request::Definition { name: name.to_string() };
    for node in agent.peers.names().filter(|node| !dead.iter().any(|dead| dead == node)) {
        match agent.peers.ask(node, &request) {
            Ok(peer::Response::Definition(Some(workload))) => return Ok(*workload),
            Ok(peer::Response::Definition(None)) => {}
            Ok(other) => warn!(node, ?other, "it was asked how a workload was started"),
            Err(failure) => warn!(node, %failure, "it could not be asked how a workload was started"),
        }
    }
    Err(Failure::not_found(format!(
        "no node that answers has ever had {name}: `outlive stop {name}`, then start it with `outlive run`"
    )))
}

fn restart_on(agent: &Arc<Agent>, node: &str, workload: Workload, lost: Lost) -> Result<()> {
    if node == agent.config.node {
        return host::restart(agent, workload, lost);
    }
    let request = peer::Request::Restart { version: peer::VERSION, workload: Box::new(workload), lost };
    match agent.peers.ask_within(node, &request, START)? {
        peer::Response::Restarted => Ok(()),
        peer::Response::Refused { reason } => Err(Failure::refused(reason)),
        other => Err(Failure::failed(format!("it answered {other:?}"))),
    }
}

/// How a workload of that name was started, if this node has had it.
pub fn definition(agent: &Agent, name: &str) -> Result<Option<Workload>> {
    file::load(&agent.supervisors.directory(&admit::name(name)?))
}

/// For another node: what may be ordered from there.
pub fn ordered(agent: &Agent, name: &str, order: &Request) -> Result<Response> {
    let name = admit::name(name)?;
    match order {
        Request::Switchover { .. } | Request::Failover => agent.supervisors.ask(&name, order, ORDER),
        Request::Status
        | Request::Stop
        | Request::Kill { .. }
        | Request::Errands { .. }
        | Request::Store { .. } => Err(Failure::refused("that is ordered on the workload's own node only")),
    }
}
