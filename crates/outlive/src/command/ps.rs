//! `outlive ps`.

use super::{print, print_json, progress, table};
use crate::agent::word;
use crate::cli::Ps;
use crate::control::{Here, Reply, Request, Row, unexpected};
use crate::error::Result;

pub fn run(args: &Ps) -> Result<()> {
    let rows = match args.reach.connect()?.call(&Request::List, &mut progress)? {
        Reply::Workloads(rows) => rows,
        other => return Err(unexpected(&other)),
    };
    if args.json {
        return print_json(&rows);
    }
    let header =
        ["NAME", "STATE", "HERE", "PRIMARY", "BACKUP", "GENERATION", "EPOCH", "LAG", "ADDRESSES", "NOTE"];
    print(&table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>()));
    Ok(())
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
