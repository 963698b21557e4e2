//! `outlive switchover`, `outlive failover` and `outlive restart-lost`.

use super::{print, print_json, progress};
use crate::cli::{Failover, Reach, RestartLost, Switchover};
use crate::control::{Reply, Request, unexpected};
use crate::error::Result;

pub fn switchover(args: &Switchover) -> Result<()> {
    let request = Request::Switchover { name: args.name.clone(), to: args.to.clone() };
    ask(&args.name, &request, args.json, &args.reach)
}

pub fn failover(args: &Failover) -> Result<()> {
    ask(&args.name, &Request::Failover { name: args.name.clone() }, args.json, &args.reach)
}

pub fn restart_lost(args: &RestartLost) -> Result<()> {
    let (name, on, dead) = (args.name.clone(), args.on.clone(), args.dead.clone());
    ask(&args.name, &Request::RestartLost { name, on, dead }, args.json, &args.reach)
}

fn ask(name: &str, request: &Request, json: bool, reach: &Reach) -> Result<()> {
    let moved = match reach.connect()?.call(request, &mut progress)? {
        Reply::Moved(moved) => moved,
        other => return Err(unexpected(&other)),
    };
    if json {
        return print_json(&moved);
    }
    print(&format!("{name} runs on {}, generation {}", moved.node, moved.generation));
    Ok(())
}
