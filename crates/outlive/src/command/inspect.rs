//! `outlive inspect`.

use outlive_epoch::control::{Failover, Side, Spread, Status};

use super::{print, print_json, progress, table};
use crate::agent::word;
use crate::cli::Inspect;
use crate::control::{Inspected, Reply, Request, unexpected};
use crate::error::Result;

pub fn run(args: &Inspect) -> Result<()> {
    let request = Request::Inspect { name: args.name.clone() };
    let inspected = match args.reach.connect()?.call(&request, &mut progress)? {
        Reply::Inspected(inspected) => inspected,
        other => return Err(unexpected(&other)),
    };
    if args.json {
        return print_json(&inspected.status);
    }
    print(&render(&inspected));
    Ok(())
}

fn render(inspected: &Inspected) -> String {
    let Inspected { node, status } = inspected;
    let Status { name, generation, epoch, lag_epochs, held_frames, held_bytes, .. } = status;
    let side = match (status.role, node) {
        (_, None) => "no node has it".to_owned(),
        (Side::Primary, Some(node)) => format!("primary, on {node}"),
        (Side::Backup, Some(node)) => format!("backup, on {node}"),
    };
    let mut lines = vec![
        ("name", name.clone()),
        ("state", word(status.state).to_owned()),
        ("seen from", side),
        ("primary", status.primary_node.clone().unwrap_or_default()),
        ("backup", status.backup_node.clone().unwrap_or_default()),
        ("generation", generation.to_string()),
        ("epoch", format!("{epoch} committed, {lag_epochs} on the way")),
        ("incarnation", status.incarnation.clone()),
        ("addresses", status.addresses.join(", ")),
        ("held output", format!("{held_frames} frames, {held_bytes} bytes")),
        ("processes", format!("supervisor {}, init {}", status.supervisor_pid, status.init_pid)),
    ];
    if let Some(why) = &status.exposed_because {
        lines.push(("exposed because", why.clone()));
    }
    if let Some(to) = &status.moving {
        lines.push(("being moved to", to.clone()));
    }
    if let Some(why) = &status.move_failed {
        lines.push(("last move failed", why.clone()));
    }
    if let Some(Failover { detect_ms, arbitrate_ms, activate_ms }) = status.last_failover {
        let phases = format!(
            "{detect_ms:.1} ms to detect, {arbitrate_ms:.1} to arbitrate, {activate_ms:.1} to activate"
        );
        lines.push(("last failover", phases));
    }
    if let Some(took) = status.reprotect_ms {
        lines.push(("first copy took", format!("{took:.1} ms")));
    }
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut text: Vec<String> = lines
        .iter()
        .map(|(key, value)| format!("{key:width$}  {}", if value.is_empty() { "-" } else { value }))
        .collect();
    let spread = |what: &str, spread: Spread| {
        let Spread { min, mean, p99, max } = spread;
        let mut row = vec![what.to_owned()];
        row.extend([min, mean, p99, max].map(|value| format!("{value:.0}")));
        row
    };
    let rows = [
        spread("pause (us)", status.pause_us),
        spread("dirty pages", status.dirty_pages),
        spread("to commit (us)", status.commit_us),
    ];
    text.push(String::new());
    text.push(table::render(&["LAST 1000 CHECKPOINTS", "MIN", "MEAN", "P99", "MAX"], &rows));
    text.join("\n")
}
