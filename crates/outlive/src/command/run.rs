//! `outlive run`: asks the agent to start a workload, and waits until it is protected.

use std::thread;
use std::time::{Duration, Instant};

use outlive_epoch::control::{State, Status};
use outlive_epoch::setup;

use super::{print, progress};
use crate::agent::word;
use crate::cli::{Level, Run, WhenExposed};
use crate::control::{Client, Reply, Request, Wanted, unexpected};
use crate::error::{Failure, Kind, Result};

/// How often the workload is looked at. A first copy takes tenths of a second at least.
const POLL: Duration = Duration::from_millis(100);

pub fn run(args: Run) -> Result<()> {
    let socket = args.reach.resolve()?;
    let (name, detach, timeout) = (args.name.clone(), args.detach, Duration::from_secs(args.timeout.into()));
    let request = Request::Run(Box::new(resolve(args)));
    let has_peers = match Client::connect(&socket)?.call(&request, &mut progress)? {
        Reply::Started { has_peers } => has_peers,
        other => return Err(unexpected(&other)),
    };
    if detach {
        print(&format!("{name} is started"));
        return Ok(());
    }
    if !has_peers {
        return Err(Failure::failed(format!(
            "{name} runs and nothing protects it: this node has no peers; add [[peers]] to its configuration"
        )));
    }
    let ask =
        || match Client::connect(&socket)?.call(&Request::Inspect { name: name.clone() }, &mut progress)? {
            Reply::Inspected(inspected) => Ok(inspected.status),
            other => Err(unexpected(&other)),
        };
    let status = wait_until_protected(&name, timeout, ask)?;
    let backup = status.backup_node.unwrap_or_default();
    let addresses = status.addresses.join(", ");
    print(&format!("{name} is protected by {backup}, at {addresses}"));
    Ok(())
}

fn resolve(args: Run) -> Wanted {
    // So far the only level; the others will want other things.
    let Level::Epoch = args.level;
    Wanted {
        name: args.name,
        addresses: args.addresses,
        mac: args.mac,
        mtu: args.mtu,
        routes: args.routes,
        backup: args.backup,
        when_exposed: match args.when_exposed {
            WhenExposed::Run => setup::WhenExposed::Run,
            WhenExposed::Wait => setup::WhenExposed::Wait,
        },
        scratch: args.scratch,
        environment: args.environment,
        directory: args.cwd,
        user: args.user,
        command: args.command,
    }
}

fn wait_until_protected(name: &str, timeout: Duration, ask: impl Fn() -> Result<Status>) -> Result<Status> {
    let deadline = Instant::now() + timeout;
    let mut shown = None;
    loop {
        let status = ask().map_err(|failure| match failure.kind {
            Kind::NotFound => Failure::failed(format!("{name} ended before it was protected: {failure}")),
            _ => failure,
        })?;
        match status.state {
            State::Protected => return Ok(status),
            State::Stopped | State::Lost => {
                // The same answer as from a node on which its supervisor is gone already.
                let how = if status.state == State::Lost { "was lost" } else { "ended" };
                return Err(Failure::failed(format!(
                    "{name} {how} before it was protected: see `outlive logs {name}`"
                )));
            }
            State::Syncing | State::Exposed | State::Waiting => {}
        }
        let now = match &status.exposed_because {
            Some(why) => format!("{name} is {} ({why})", word(status.state)),
            None => format!("{name} is {}", word(status.state)),
        };
        if Instant::now() >= deadline {
            let seconds = timeout.as_secs();
            return Err(Failure::failed(format!(
                "{now} after {seconds} seconds: it goes on running; see `outlive inspect {name}`, or end it with \
                 `outlive stop {name}`"
            )));
        }
        if shown.as_ref() != Some(&now) {
            progress(&now);
            shown = Some(now);
        }
        thread::sleep(POLL);
    }
}
