//! What is known of workloads: from the supervisors here, from other nodes, and from the registers.

use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Holder, Holding, Register, WorkloadName};
use outlive_epoch::control::{Request, Response, Side, Spread, State, Status};

use tracing::warn;

use super::supervisors::{waits_for_state, word};
use super::{Agent, admit, seed};
use crate::control::{Here, Inspected, Reply, Row};
use crate::error::{Failure, Result};

/// How long a supervisor may take to end its workload everywhere: it asks the other side and the seed nodes.
const STOP: Duration = Duration::from_secs(20);
/// Workloads asked about at once by `ps`.
const AT_ONCE: usize = 32;
/// After it has said that it is done, it ends.
const END: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(50);
const SIGNAL: Duration = Duration::from_secs(5);

/// `outlive ps`: the workloads with a supervisor here, and those that left something here and are lost.
pub fn list(agent: &Agent) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for names in agent.supervisors.names()?.chunks(AT_ONCE) {
        // Each may wait for another node, so they wait together.
        thread::scope(|scope| {
            let asked: Vec<_> =
                names.iter().map(|name| scope.spawn(move || row_if_any(agent, name))).collect();
            rows.extend(asked.into_iter().filter_map(|asked| asked.join().ok().flatten()));
        });
    }
    Ok(rows)
}

fn row_if_any(agent: &Agent, name: &WorkloadName) -> Option<Row> {
    match agent.supervisors.is_alive(name) {
        Ok(true) => Some(row_of(agent, name)),
        Ok(false) => row_of_lost(agent, name),
        Err(failure) => Some(unknown(name, Here::Nothing, failure.to_string())),
    }
}

fn row_of(agent: &Agent, name: &WorkloadName) -> Row {
    match agent.supervisors.status(name.as_str()) {
        Ok(Some(status)) => {
            let here = match status.role {
                Side::Primary => Here::Primary,
                Side::Backup => Here::Backup,
            };
            let primary = status.primary_node.clone().filter(|node| *node != agent.config.node);
            // The primary knows more than its backup, if it can be asked.
            match (here, primary) {
                (Here::Backup, Some(primary)) => {
                    let at_primary = ask_node(agent, &primary, name.as_str()).ok().flatten();
                    row(name, here, at_primary.as_ref().unwrap_or(&status))
                }
                _ => row(name, here, &status),
            }
        }
        Ok(None) => unknown(name, Here::Nothing, "its supervisor has just ended".to_owned()),
        Err(failure) => unknown(name, Here::Nothing, failure.to_string()),
    }
}

fn row(name: &WorkloadName, here: Here, status: &Status) -> Row {
    Row {
        name: name.to_string(),
        state: Some(status.state),
        here,
        primary_node: status.primary_node.clone(),
        backup_node: status.backup_node.clone(),
        generation: status.generation,
        epoch: status.epoch,
        lag_epochs: status.lag_epochs,
        addresses: status.addresses.clone(),
        note: status.exposed_because.clone(),
    }
}

fn unknown(name: &WorkloadName, here: Here, note: String) -> Row {
    Row {
        name: name.to_string(),
        state: None,
        here,
        primary_node: None,
        backup_node: None,
        generation: 0,
        epoch: 0,
        lag_epochs: 0,
        addresses: Vec::new(),
        note: Some(note),
    }
}

/// What ended in good order has a tombstone for a register, and is no longer anything to list.
fn row_of_lost(agent: &Agent, name: &WorkloadName) -> Option<Row> {
    let register = seed::read_register(agent, name).ok()??;
    let (primary, _) = holders(&register)?;
    match search(agent, name) {
        Search::Found(..) => None,
        Search::Nowhere => {
            let status = lost(name, &register)?;
            let note = Some(format!(
                "no node has it; `outlive restart-lost {name}` starts it anew, `outlive stop {name}` gives its name free"
            ));
            Some(Row { note, ..row(name, Here::Nothing, &status) })
        }
        Search::Silent(silent) => {
            let silent = reasons(&silent);
            let note = format!("held by {primary}, and not all nodes answer ({silent})");
            Some(unknown(name, Here::Nothing, note))
        }
    }
}

pub fn holders(register: &Register) -> Option<(&Holder, Option<&Holder>)> {
    register.primary().map(|primary| (primary, register.synced_backup()))
}

fn is_held(register: &Option<Register>) -> bool {
    register.as_ref().and_then(holders).is_some()
}

/// Where a workload's supervisor is.
pub enum Search {
    Found(String, Box<Status>),
    /// All nodes answered, and none has it.
    Nowhere,
    /// Not all answered: which, and why.
    Silent(Vec<(String, Failure)>),
}

fn reasons(silent: &[(String, Failure)]) -> String {
    silent.iter().map(|(_, failure)| failure.to_string()).collect::<Vec<_>>().join("; ")
}

/// A workload is held by nodes of which some cannot be asked.
pub fn out_of_reach(name: &WorkloadName, register: &Register, silent: &[(String, Failure)]) -> Failure {
    let nodes: Vec<&str> = silent.iter().map(|(node, _)| node.as_str()).collect();
    Failure::unreachable(format!(
        "{name}: {register}, and not all nodes answer ({}): start them, or, if they are dead for good, `outlive stop {name} \
         --dead {}` gives its name free, and `outlive restart-lost {name} --dead ...` starts it anew",
        reasons(silent),
        nodes.join(",")
    ))
}

/// Asks all nodes but this one; a primary is preferred over its backup.
pub fn search(agent: &Agent, name: &WorkloadName) -> Search {
    let mut found: Option<(String, Box<Status>)> = None;
    let mut silent = Vec::new();
    for (node, status) in agent.peers.statuses(name.as_str()) {
        match status {
            Ok(Some(status)) => {
                if found.is_none() || status.role == Side::Primary {
                    found = Some((node, status));
                }
            }
            Ok(None) => {}
            Err(failure) => silent.push((node, failure)),
        }
    }
    match found {
        Some((node, status)) => Search::Found(node, status),
        None if silent.is_empty() => Search::Nowhere,
        None => Search::Silent(silent),
    }
}

pub fn ask_node(agent: &Agent, node: &str, name: &str) -> Result<Option<Status>> {
    use outlive_epoch::peer;
    match agent.peers.ask(node, &peer::Request::Status { name: name.to_owned() })? {
        peer::Response::Status(status) => Ok(status.map(|status| *status)),
        other => Err(Failure::failed(format!("node {node} answered {other:?}"))),
    }
}

/// A workload whose register is held and which no node has.
fn lost(name: &WorkloadName, register: &Register) -> Option<Status> {
    let (primary, backup) = holders(register)?;
    Some(Status {
        name: name.to_string(),
        state: State::Lost,
        role: Side::Primary,
        generation: register.generation,
        epoch: 0,
        primary_node: Some(primary.node.to_string()),
        backup_node: backup.map(|backup| backup.node.to_string()),
        incarnation: primary.incarnation.to_string(),
        addresses: Vec::new(),
        lag_epochs: 0,
        pause_us: Spread::default(),
        dirty_pages: Spread::default(),
        commit_us: Spread::default(),
        held_frames: 0,
        held_bytes: 0,
        exposed_because: None,
        moving: None,
        move_failed: None,
        last_failover: None,
        reprotect_ms: None,
        supervisor_pid: 0,
        init_pid: 0,
    })
}

/// `outlive inspect`: from the supervisor here, or from another node, or from the register.
pub fn inspect(agent: &Agent, name: &str) -> Result<Inspected> {
    let name = admit::name(name)?;
    if let Some(status) = agent.supervisors.status(name.as_str())? {
        return Ok(Inspected { node: Some(agent.config.node.clone()), status });
    }
    let silent = match search(agent, &name) {
        Search::Found(node, status) => {
            // A backup that waits in vain for a workload which has ended is not that workload, nor is a supervisor that is about
            // to end itself.
            let is_new = status.role == Side::Backup && status.primary_node.is_none();
            let is_over = is_new || waits_for_state(&status) || status.state == State::Stopped;
            if is_over && !is_held(&seed::read_register(agent, &name)?) {
                return Err(no_such(agent, &name));
            }
            return Ok(Inspected { node: Some(node), status: *status });
        }
        Search::Nowhere => None,
        Search::Silent(silent) => Some(silent),
    };
    let register = seed::read_register(agent, &name)?;
    match (register.as_ref().and_then(|register| Some((lost(&name, register)?, register))), silent) {
        (Some((status, _)), None) => Ok(Inspected { node: None, status }),
        (Some((_, register)), Some(silent)) => Err(out_of_reach(&name, register, &silent)),
        (None, _) => Err(no_such(agent, &name)),
    }
}

pub fn no_such(agent: &Agent, name: &WorkloadName) -> Failure {
    let log = agent.supervisors.log_end(name).map_or(String::new(), |end| {
        format!("; the last one of that name ended: {end} (see `outlive logs {name}`)")
    });
    Failure::not_found(format!("there is no workload {name}: `outlive ps` lists those of this node{log}"))
}

/// The workload's primary must be here, for what only it can do.
fn require_primary(agent: &Agent, name: &WorkloadName, verb: &str) -> Result<()> {
    let elsewhere = |node: &str| {
        Failure::refused(format!(
            "the primary of {name} is on node {node}: run `outlive {verb} {name}` there"
        ))
    };
    match agent.supervisors.status(name.as_str())? {
        Some(status) if status.role == Side::Primary => Ok(()),
        Some(status) => Err(match status.primary_node {
            Some(node) => elsewhere(&node),
            None => {
                Failure::refused(format!("here is only a backup of {name}, and it does not know its primary"))
            }
        }),
        None => match search(agent, name) {
            Search::Found(node, status) => Err(elsewhere(&status.primary_node.unwrap_or(node))),
            Search::Nowhere => Err(no_such(agent, name)),
            Search::Silent(silent) => Err(Failure::not_found(format!(
                "there is no workload {name} on this node, and not all others answer ({})",
                reasons(&silent)
            ))),
        },
    }
}

/// `outlive stop`: ends the workload everywhere; of a lost one, its name. Nodes that do not answer may be vouched for as
/// `dead`; nobody else is taken at their word.
pub fn stop(agent: &Agent, name: &str, dead: &[String], progress: &mut dyn FnMut(String)) -> Result<()> {
    let name = admit::name(name)?;
    dead.iter().try_for_each(|node| check_may_be_dead(agent, node))?;
    if !agent.supervisors.is_alive(&name)? {
        match search(agent, &name) {
            Search::Nowhere => {
                dead.first().map_or(Ok(()), |node| Err(not_dead(node)))?;
                return stop_lost(agent, &name);
            }
            Search::Silent(silent) => return stop_out_of_reach(agent, &name, &silent, dead, progress),
            Search::Found(..) => {}
        }
    }
    if !dead.is_empty() {
        return Err(Failure::refused(format!(
            "{name} is not lost, see `outlive inspect {name}`: stop it without --dead"
        )));
    }
    require_primary(agent, &name, "stop")?;
    progress(format!("stopping {name}"));
    match agent.supervisors.ask(&name, &Request::Stop, STOP)? {
        Response::Done => {}
        Response::Failed { reason } => return Err(Failure::failed(reason)),
        other => {
            return Err(Failure::failed(format!("the supervisor answered another question ({other:?})")));
        }
    }
    progress(format!("waiting until {name}'s supervisor has ended"));
    if !agent.supervisors.wait_for_end(&name, END)? {
        return Err(Failure::failed(format!(
            "{name} is stopped, and its supervisor does not end: look at its supervisor.log"
        )));
    }
    // The backup was told, or learns it from the register: its name is of use again when it has ended as well.
    let deadline = Instant::now() + END;
    while let Search::Found(node, _) = search(agent, &name) {
        if Instant::now() >= deadline {
            warn!(workload = name.as_str(), node, "stopped, and its backup there has not ended yet");
            break;
        }
        thread::sleep(END_POLL);
    }
    Ok(())
}

pub fn check_may_be_dead(agent: &Agent, node: &str) -> Result<()> {
    if node == agent.config.node {
        return Err(Failure::usage(format!("--dead {node}: this node's own agent answers you")));
    }
    let peers: Vec<&str> = agent.peers.names().collect();
    if peers.contains(&node) {
        return Ok(());
    }
    Err(Failure::usage(format!("--dead {node} is no peer of this node ({})", peers.join(", "))))
}

pub fn not_dead(node: &str) -> Failure {
    Failure::refused(format!("node {node} answers, so it is not dead: leave it out of --dead"))
}

/// No node that answers has it. Of the others somebody must know that it is silent there as well.
fn stop_out_of_reach(
    agent: &Agent,
    name: &WorkloadName,
    silent: &[(String, Failure)],
    dead: &[String],
    progress: &mut dyn FnMut(String),
) -> Result<()> {
    let is_silent = |node: &String| silent.iter().any(|(silent, _)| silent == node);
    if let Some(node) = dead.iter().find(|node| !is_silent(node)) {
        return Err(not_dead(node));
    }
    let register = seed::read_register(agent, name)?;
    let Some(register) = register.filter(|register| holders(register).is_some()) else {
        return Err(no_such(agent, name));
    };
    if silent.iter().any(|(node, _)| !dead.contains(node)) {
        return Err(out_of_reach(name, &register, silent));
    }
    progress(format!("giving {name} free, on your word that {} is dead", dead.join(", ")));
    warn!(workload = name.as_str(), dead = dead.join(","), "given free on an operator's word");
    seed::bury(agent, name, register.generation)
}

/// No node has it, and all have answered: so it is silent, and its register may end.
fn stop_lost(agent: &Agent, name: &WorkloadName) -> Result<()> {
    match seed::read_register(agent, name)? {
        Some(register) if matches!(register.holding, Holding::Held { .. }) => {
            seed::bury(agent, name, register.generation)
        }
        _ => Err(no_such(agent, name)),
    }
}

/// `outlive kill`.
pub fn kill(agent: &Agent, name: &str, signal: i32) -> Result<()> {
    let name = admit::name(name)?;
    require_primary(agent, &name, "kill")?;
    match agent.supervisors.ask(&name, &Request::Kill { signal }, SIGNAL)? {
        Response::Done => Ok(()),
        Response::Failed { reason } => Err(Failure::failed(reason)),
        other => Err(Failure::failed(format!("{} answered another question", word_of(&other)))),
    }
}

/// For `outlive patch --workload`: only the workload's tracer can have a process of it make calls, or stop all of its threads.
pub fn for_patch(agent: &Agent, name: &str, request: &Request) -> Result<Reply> {
    let name = admit::name(name)?;
    require_primary(agent, &name, "patch")?;
    match agent.supervisors.ask(&name, request, SIGNAL)? {
        Response::Returned { results, held_us } => Ok(Reply::Returned { results, held_us }),
        Response::Stored { in_the_way, held_us } => Ok(Reply::Stored { in_the_way, held_us }),
        Response::Failed { reason } => Err(Failure::failed(reason)),
        other => Err(Failure::failed(format!("{} answered another question", word_of(&other)))),
    }
}

fn word_of(response: &Response) -> String {
    match response {
        Response::Status(status) => format!("a supervisor ({})", word(status.state)),
        other => format!("a supervisor ({other:?})"),
    }
}

/// Where the output of a workload is, if it is on this node.
pub fn output_directory(agent: &Agent, name: &str) -> Result<(WorkloadName, std::path::PathBuf)> {
    let name = admit::name(name)?;
    let directory = agent.supervisors.directory(&name);
    if directory.is_dir() {
        return Ok((name, directory));
    }
    match search(agent, &name) {
        Search::Found(node, _) => Err(Failure::not_found(format!(
            "the output of {name} is on node {node}: run `outlive logs {name}` there"
        ))),
        _ => Err(no_such(agent, &name)),
    }
}
