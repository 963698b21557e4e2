//! `outlive seed`.

use super::{print, print_json, progress, table};
use crate::cli::{Reach, Seed};
use crate::control::{Reply, Request, unexpected};
use crate::error::Result;

pub fn run(command: &Seed) -> Result<()> {
    match command {
        Seed::Bootstrap { seeds, reach } => bootstrap(seeds, reach),
        Seed::Rejoin { json, reach } => rejoin(*json, reach),
        Seed::Status { json, reach } => status(*json, reach),
    }
}

fn bootstrap(seeds: &[String], reach: &Reach) -> Result<()> {
    match reach.connect()?.call(&Request::Bootstrap { seeds: seeds.to_vec() }, &mut progress)? {
        Reply::Bootstrapped { cluster } => {
            print(&format!("cluster {cluster} has begun, with the seed nodes {}", seeds.join(", ")));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn rejoin(json: bool, reach: &Reach) -> Result<()> {
    let rejoined = match reach.connect()?.call(&Request::Rejoin, &mut progress)? {
        Reply::Rejoined(rejoined) => rejoined,
        other => return Err(unexpected(&other)),
    };
    if json {
        return print_json(&rejoined);
    }
    print(&format!("{} votes again, in cluster {}", rejoined.node, rejoined.cluster));
    Ok(())
}

fn status(json: bool, reach: &Reach) -> Result<()> {
    let rows = match reach.connect()?.call(&Request::Seeds, &mut progress)? {
        Reply::Seeds(rows) => rows,
        other => return Err(unexpected(&other)),
    };
    if json {
        return print_json(&rows);
    }
    let cells = rows.into_iter().map(|row| {
        let address = row.address.map_or(String::new(), |address| address.to_string());
        vec![row.node, address, row.standing, row.cluster.unwrap_or_default(), row.note.unwrap_or_default()]
    });
    print(&table::render(&["SEED", "ADDRESS", "STANDING", "CLUSTER", "NOTE"], &cells.collect::<Vec<_>>()));
    Ok(())
}
