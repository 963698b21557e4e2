//! `outlive replicated`: programs that replicate themselves are asked directly, with no agent between.

use std::path::Path;
use std::time::{Duration, Instant};

use outlive_replicated::{Config, ForgetError, Forgot, InspectedBackup, Inspection};
use serde::Serialize;

use super::{print, print_json, table};
use crate::cli::Replicated;
use crate::error::{Failure, Kind, Result, chain};

pub fn run(command: &Replicated) -> Result<()> {
    match command {
        Replicated::Inspect { config, over, json } => inspect(config, Duration::from_millis(*over), *json),
        Replicated::Forget { config, nodes, json } => forget(config, nodes, *json),
    }
}

fn forget(path: &Path, nodes: &[String], json: bool) -> Result<()> {
    let config = Config::load(path).map_err(|error| Failure::usage(chain(&error)))?;
    let forgot = outlive_replicated::forget(&config, nodes).map_err(|error| refusal(&error))?;
    if json {
        return print_json(&forgot);
    }
    print(&shown_forgot(&forgot));
    Ok(())
}

fn refusal(error: &ForgetError) -> Failure {
    let kind = match error {
        ForgetError::Nobody | ForgetError::UnknownNode(_) => Kind::Usage,
        ForgetError::NoAnswer(_) => Kind::Unreachable,
        ForgetError::NotHeld(_) | ForgetError::NotNamed { .. } => Kind::NotFound,
        ForgetError::PrimaryNotNamed { .. }
        | ForgetError::Lives { .. }
        | ForgetError::Answers { .. }
        | ForgetError::Refused(_) => Kind::Refused,
        ForgetError::Thread(_) | ForgetError::Unknown(_) => Kind::Failed,
    };
    Failure::new(kind, chain(error))
}

fn shown_forgot(forgot: &Forgot) -> String {
    let Forgot { generation, forgotten, left, goes_on } = forgot;
    if let Some(node) = goes_on {
        return format!("{node} goes on {forgotten}\n");
    }
    let silent: Vec<&str> =
        left.iter().filter(|(_, held)| held.is_none()).map(|(node, _)| node.as_str()).collect();
    let next = if silent.is_empty() {
        "see that those that are left run".to_owned()
    } else {
        format!(
            "those that are left wait for the word of {}: start what has stopped, or forget who is dead as well",
            silent.join(", ")
        )
    };
    let nodes = forgotten.nodes.join(", ");
    format!("{nodes} forgotten in generation {generation}, and nobody goes on yet; {next}\n")
}

/// One process of the program; what it does not say is not there.
#[derive(Serialize)]
struct Row {
    node: String,
    address: String,
    #[serde(flatten)]
    inspection: Option<Inspection>,
    commits_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
    /// How many commits a backup is behind its primary.
    lag_commits: Option<u64>,
    error: Option<String>,
}

fn inspect(path: &Path, over: Duration, json: bool) -> Result<()> {
    let config = Config::load(path).map_err(|error| Failure::usage(chain(&error)))?;
    let since = Instant::now();
    let before = outlive_replicated::inspect(&config);
    std::thread::sleep(over);
    let seconds = since.elapsed().as_secs_f64();
    let after = outlive_replicated::inspect(&config);
    let primary = after.iter().find_map(|(_, now)| now.as_ref().ok().filter(|now| now.role == "primary"));
    let last = primary.map(|primary| primary.commit);
    let rows: Vec<Row> = before
        .into_iter()
        .zip(&after)
        .map(|((node, before), (_, now))| {
            let rate = |count: fn(&Inspection) -> u64| {
                let (before, now) = (before.as_ref().ok()?, now.as_ref().ok()?);
                Some(count(now).saturating_sub(count(before)) as f64 / seconds)
            };
            let (commits_per_second, bytes_per_second) = (rate(|of| of.commit), rate(|of| of.bytes));
            let inspection = now.as_ref().ok().cloned();
            let backup = inspection.as_ref().filter(|now| now.role == "backup");
            Row {
                node: node.name,
                address: node.address.to_string(),
                commits_per_second,
                bytes_per_second,
                lag_commits: backup.zip(last).map(|(backup, last)| last.saturating_sub(backup.commit)),
                error: now.as_ref().err().map(ToString::to_string),
                inspection,
            }
        })
        .collect();
    if rows.iter().all(|row| row.inspection.is_none()) {
        let errors: Vec<_> =
            rows.iter().filter_map(|row| Some(format!("{}: {}", row.node, row.error.as_ref()?))).collect();
        return Err(Failure::unreachable(format!(
            "no process of {} answers: {}",
            config.name,
            errors.join("; ")
        )));
    }
    if json {
        return print_json(&rows);
    }
    print(&shown(&rows));
    Ok(())
}

fn shown(rows: &[Row]) -> String {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.0}"));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let Some(now) = &row.inspection else {
                let note = row.error.clone().unwrap_or_default();
                let mut cells = vec![row.node.clone(), "silent".into()];
                cells.resize(10, String::new());
                cells.push(note);
                return cells;
            };
            let lag = row.lag_commits.map_or_else(String::new, |lag| format!("{lag} commits"));
            let backups: Vec<String> = now.backups.iter().map(shown_backup).collect();
            let forgotten = now.forgotten.iter().map(|forgotten| format!("went on {forgotten}"));
            let notes: Vec<String> = forgotten.chain(now.failing.iter().cloned()).collect();
            vec![
                row.node.clone(),
                now.role.clone(),
                now.phase.clone().unwrap_or_default().to_lowercase(),
                now.generation.to_string(),
                now.objects.to_string(),
                now.commit.to_string(),
                number(row.commits_per_second),
                number(row.bytes_per_second),
                lag,
                backups.join("; "),
                notes.join("; "),
            ]
        })
        .collect();
    let header = [
        "NODE",
        "ROLE",
        "PHASE",
        "GENERATION",
        "OBJECTS",
        "COMMIT",
        "COMMITS/S",
        "BYTES/S",
        "LAG",
        "BACKUPS",
        "NOTE",
    ];
    table::render(&header, &cells)
}

/// A backup as its primary sees it: what is on its way to it, and for how long.
fn shown_backup(backup: &InspectedBackup) -> String {
    let InspectedBackup { node, stage, unacknowledged_bytes, lag_us, .. } = backup;
    let lag = match backup.lag_commits {
        Some(lag) => format!("{lag} commits, "),
        None => String::new(),
    };
    // Who counts may take over; of who does not, how far it is.
    let stage = if backup.counts { String::new() } else { format!(" {stage}") };
    format!("{node}{stage}: {lag}{unacknowledged_bytes} B, {lag_us} us")
}
