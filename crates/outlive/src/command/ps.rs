//! `outlive ps`.

use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use super::{print, print_json, progress, table};
use crate::agent::word;
use crate::cli::Ps;
use crate::control::{Here, Reply, Request, Row, unexpected};
use crate::error::{Context, Result};

/// How often the workloads are looked at. A failover takes about as long as this at most, so that none is missed.
const LOOK: Duration = Duration::from_millis(200);
/// Clears a terminal and begins at its top (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

pub fn run(args: &Ps) -> Result<()> {
    if args.watch {
        return watch(args);
    }
    let rows = ask(args)?;
    if args.json {
        return print_json(&rows);
    }
    print(&shown(&rows));
    Ok(())
}

/// Until it is interrupted, or whoever reads it has left.
fn watch(args: &Ps) -> Result<()> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut last: Option<Vec<Row>> = None;
    loop {
        let rows = ask(args)?;
        // Epochs pass all the time; what they stand for has not changed.
        let now: Vec<Row> = rows.iter().map(|row| Row { epoch: 0, lag_epochs: 0, ..row.clone() }).collect();
        if is_terminal || last.as_ref() != Some(&now) {
            let text = match (args.json, is_terminal) {
                (true, _) if last.as_ref() == Some(&now) => None,
                (true, _) => Some(serde_json::to_string(&rows).or_failed(|| "write JSON".to_owned())? + "\n"),
                (false, true) => Some(format!("{CLEAR}{}\n", shown(&rows))),
                (false, false) => Some(format!("{}\n\n", shown(&rows))),
            };
            let mut out = std::io::stdout().lock();
            if text.is_some_and(|text| out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err()) {
                return Ok(());
            }
            last = Some(now);
        }
        thread::sleep(LOOK);
    }
}

fn ask(args: &Ps) -> Result<Vec<Row>> {
    match args.reach.connect()?.call(&Request::List, &mut progress)? {
        Reply::Workloads(rows) => Ok(rows),
        other => Err(unexpected(&other)),
    }
}

fn shown(rows: &[Row]) -> String {
    let header =
        ["NAME", "STATE", "HERE", "PRIMARY", "BACKUP", "GENERATION", "EPOCH", "LAG", "ADDRESSES", "NOTE"];
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn cells(row: &Row) -> Vec<String> {
    let here = match row.here {
        Here::Primary => "primary",
        Here::Backup => "backup",
        Here::Nothing => "",
    };
    vec![
        row.name.clone(),
        row.state.map_or("unknown", word).to_owned(),
        here.to_owned(),
        row.primary_node.clone().unwrap_or_default(),
        row.backup_node.clone().unwrap_or_default(),
        row.generation.to_string(),
        row.epoch.to_string(),
        row.lag_epochs.to_string(),
        row.addresses.join(","),
        row.note.clone().unwrap_or_default(),
    ]
}
