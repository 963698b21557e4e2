//! Starting supervisors: the primary's side for a user of this node, the backup's side for another node.

use std::net::SocketAddr;
use std::sync::Arc;

use outlive_cluster::{Holding, WorkloadName};
use outlive_epoch::control::Status;
use outlive_epoch::setup::{Lost, Node, Role, Setup, Workload};
use outlive_fault::{Point, point};
use tracing::info;

use super::supervisors::waits_for_state;
use super::{Agent, admit, membership, seed};
use crate::control::Wanted;
use crate::error::{Failure, Result};

/// The command that becomes a workload's launcher: the very program the supervisor runs, even if the file at its path
/// was replaced meanwhile (proc(5), /proc/pid/exe).
pub const LAUNCHER: [&str; 2] = ["/proc/self/exe", "workload-init"];

/// `outlive run`: returns when the supervisor is up.
pub fn run(agent: &Arc<Agent>, wanted: Wanted, progress: &mut dyn FnMut(String)) -> Result<()> {
    let workload = admit::resolve(&agent.config, wanted)?;
    let name = admit::name(&workload.name)?;
    let reserved = agent.supervisors.reserve_soon(&name)?;
    admit::check(&agent.config, &workload)?;
    progress(format!("asking the other nodes and the seed nodes whether {name} is free"));
    check_name_is_free(agent, &name)?;
    progress(format!("asking the network whether {name}'s addresses are free"));
    admit::check_addresses(&agent.config, &workload.network)?;
    progress(format!("starting {name}"));
    let setup = setup(agent, workload, Role::Primary)?;
    agent.supervisors.start(&reserved, &setup)?;
    info!(workload = name.as_str(), "started");
    Ok(())
}

fn check_name_is_free(agent: &Agent, name: &WorkloadName) -> Result<()> {
    // A backup that never got anything waits a while for its primary; whether one counts, the register says.
    if agent.supervisors.is_alive(name)? {
        let status = agent.supervisors.status(name.as_str())?;
        if !status.as_ref().is_some_and(waits_for_state) {
            return Err(Failure::refused(format!(
                "the name {name} is taken: a workload of that name is on this node; `outlive stop {name}`, or choose \
                 another"
            )));
        }
        agent.supervisors.make_room(name, &agent.config.node, |status| is_registered(agent, name, status))?;
    }
    // Nodes that do not answer are spoken for by the register.
    for (node, status) in agent.peers.statuses(name.as_str()) {
        if let Ok(Some(status)) = status
            && !waits_for_state(&status)
        {
            let at = status.primary_node.unwrap_or(node);
            return Err(Failure::refused(format!(
                "the name {name} is taken: a workload of that name is on node {at}; `outlive stop {name}` there, or \
                 choose another"
            )));
        }
    }
    match seed::read_register(agent, name)? {
        Some(register) if matches!(register.holding, Holding::Held { .. }) => Err(Failure::refused(format!(
            "the name {name} is taken: {register}; `outlive stop {name}` if it is lost, or choose another"
        ))),
        _ => Ok(()),
    }
}

/// For another node's primary: starts a backup's supervisor and says where it waits.
pub fn host_backup(agent: &Arc<Agent>, primary: &str, workload: Workload) -> Result<SocketAddr> {
    point(Point::HostingAsked);
    if agent.config.peer(primary).is_none() {
        return Err(Failure::refused(format!("{primary} is not among the peers of {}", agent.config.node)));
    }
    let name = admit::name(&workload.name)?;
    let reserved = agent.supervisors.reserve(&name)?;
    agent.supervisors.make_room(&name, primary, |status| is_registered(agent, &name, status))?;
    admit::check(&agent.config, &workload)?;
    let setup = setup(agent, workload, Role::Backup { primary: primary.to_owned() })?;
    let listen = agent.supervisors.start(&reserved, &setup)?;
    point(Point::HostingStarted);
    let listen = listen.ok_or_else(|| {
        Failure::failed(format!("the backup's supervisor of {name} does not say where it waits"))
    })?;
    info!(workload = name.as_str(), primary, %listen, "a backup waits for its primary");
    Ok(listen)
}

/// Starts a lost workload anew. Whoever orders it vouches that no node has it.
pub fn restart(agent: &Arc<Agent>, workload: Workload, lost: Lost) -> Result<()> {
    let name = admit::name(&workload.name)?;
    let reserved = agent.supervisors.reserve(&name)?;
    admit::check(&agent.config, &workload)?;
    // One that is not dead after all would be heard.
    admit::check_addresses(&agent.config, &workload.network)?;
    let setup = setup(agent, workload, Role::Restart(lost))?;
    agent.supervisors.start(&reserved, &setup)?;
    info!(workload = name.as_str(), "started anew");
    Ok(())
}

/// Whether the seed nodes count on this incarnation.
fn is_registered(agent: &Agent, name: &WorkloadName, status: &Status) -> Result<bool> {
    let register = seed::read_register(agent, name)?;
    let holders = register.as_ref().map(|register| [register.primary(), register.synced_backup()]);
    let mut holders = holders.into_iter().flatten().flatten();
    Ok(holders.any(|holder| holder.incarnation.to_string() == status.incarnation))
}

fn setup(agent: &Agent, workload: Workload, role: Role) -> Result<Setup> {
    let config = &agent.config;
    // As the cluster was bootstrapped, not as a file says: a supervisor that asks others would ask strangers.
    let seeds = membership::current_seeds(agent)?;
    let node = Node {
        name: config.node.clone(),
        listen: config.listen,
        uplink: config.uplink.clone(),
        state: config.state_dir.clone(),
        authority: config.tls.ca.clone(),
        certificate: config.tls.cert.clone(),
        key: config.tls.key.clone(),
        peers: config.peers.clone(),
        seeds,
        tuning: config.tuning.clone(),
    };
    Ok(Setup { workload, node, role, launcher: LAUNCHER.map(str::to_owned).to_vec() })
}
