//! `cargo xtask demo`: what protection is worth, for someone to watch.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use outlive_lab::scenario::{self, Outcome};
use outlive_lab::services;
use outlive_lab::streams;

use crate::failover::{self, Plan};
use crate::setup;

const GOOD: &str = "the service outlived its machine";
const BAD: &str = "NOT as it should be";

#[derive(clap::Args)]
pub struct Arguments {
    /// How many times the machine under the service is killed
    #[arg(long, default_value_t = 3)]
    kills: usize,
    /// How many connections write and read meanwhile
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// The service
    #[arg(long, value_enum, default_value_t = Workload::Redis)]
    workload: Workload,
    /// How much data Redis holds, such as 64M or 1G (with --workload redis)
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    resident: u64,
    /// The `outlive` to run, where it is built already
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print the outcome as JSON, as the last line of standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy)]
enum Workload {
    /// A Redis under connections that write and read one thing at a time.
    Redis,
    /// A Redis and a server of large transfers under streams, pipelined requests and connections being opened.
    Streams,
    Service(services::Kind),
}

impl ValueEnum for Workload {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<Workload>> = LazyLock::new(|| {
            let services = services::Kind::ALL.into_iter().map(Workload::Service);
            [Workload::Redis, Workload::Streams].into_iter().chain(services).collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Workload::Redis => "redis",
            Workload::Streams => "streams",
            Workload::Service(kind) => kind.name(),
        }))
    }
}

/// True if every kill happened and no client noticed more than a stall.
pub fn run(arguments: &Arguments) -> Result<bool> {
    setup::prepare()?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => setup::build_release()?,
    };
    match arguments.workload {
        Workload::Redis => run_redis(arguments, program),
        Workload::Streams => run_streams(arguments, &program),
        Workload::Service(kind) => run_service(arguments, &program, kind),
    }
}

fn run_streams(arguments: &Arguments, program: &Path) -> Result<bool> {
    let server = setup::build_lab_server()?;
    let begun = Instant::now();
    let say = |line: &str| eprintln!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    let clients = arguments.clients as usize;
    let plan =
        streams::Plan { program, server: &server, kills: arguments.kills, clients, seed: scenario::seed() };
    let outcome = streams::run(&plan, &say)?;
    let faults = outcome.faults();
    let verdict = if faults.is_empty() { GOOD } else { BAD };
    let text = format!("\n{}\n  {verdict}\n", outcome.table());
    if arguments.json {
        eprint!("{text}");
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print!("{text}");
    }
    faults.iter().for_each(|fault| eprintln!("  {fault}"));
    Ok(faults.is_empty())
}

fn run_redis(arguments: &Arguments, program: PathBuf) -> Result<bool> {
    let begun = Instant::now();
    let say = |line: &str| eprintln!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    let plan = Plan {
        program,
        kills: arguments.kills,
        clients: arguments.clients as usize,
        resident: arguments.resident,
    };
    let outcome = failover::run(&plan, &say)?;
    tell(arguments, &outcome)
}

fn run_service(arguments: &Arguments, program: &Path, kind: services::Kind) -> Result<bool> {
    setup::install(kind.needs())?;
    let begun = Instant::now();
    let say = |line: &str| eprintln!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    let mut service = kind.service(arguments.clients as usize);
    let outcome = scenario::run(program, &mut service, arguments.kills, scenario::seed(), &say)?;
    tell(arguments, &outcome)
}

fn tell(arguments: &Arguments, outcome: &Outcome) -> Result<bool> {
    // With `--json` standard output is for the JSON alone.
    if arguments.json {
        eprint!("{}", table(outcome));
        println!("{}", serde_json::to_string(outcome)?);
    } else {
        print!("{}", table(outcome));
    }
    for finding in outcome.findings.iter().take(10) {
        eprintln!("  {finding}");
    }
    Ok(outcome.is_good())
}

fn table(outcome: &Outcome) -> String {
    let (stall, phases) = (&outcome.stall_ms, &outcome.failover_ms);
    let rows = [
        ("kills", outcome.kills.to_string()),
        ("connections", outcome.connections.to_string()),
        ("connections dropped", outcome.connections_dropped.to_string()),
        ("acknowledged writes", outcome.acked_writes.to_string()),
        ("acknowledged writes lost", outcome.acked_writes_lost.to_string()),
        ("wrong replies", outcome.wrong_replies.to_string()),
        ("stall (p50 / p99 / max)", format!("{} / {} / {} ms", stall.p50, stall.p99, stall.max)),
        (
            "failover (detect + arbitrate + activate)",
            format!("{} + {} + {} ms", phases.detect, phases.arbitrate, phases.activate),
        ),
        ("protected again after", format!("{} ms", outcome.reprotect_ms)),
    ];
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines = rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}\n"));
    let verdict = if outcome.is_good() { GOOD } else { BAD };
    format!("\n{}\n  {verdict}\n", lines.collect::<String>())
}

/// A number of bytes, with K, M or G for powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let trimmed = text.trim_end_matches("iB").trim_end_matches('B');
    let (digits, shift) = match trimmed.char_indices().last() {
        Some((at, 'k' | 'K')) => (&trimmed[..at], 10),
        Some((at, 'm' | 'M')) => (&trimmed[..at], 20),
        Some((at, 'g' | 'G')) => (&trimmed[..at], 30),
        _ => (trimmed, 0),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)) {
        Some(bytes) => Ok(bytes),
        None => bail!("`{text}` is not a size; write 4096, 64K, 512M or 1G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let sizes = [("4096", 4096), ("64K", 64 << 10), ("512MiB", 512 << 20), ("1G", 1 << 30), ("0", 0)];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for text in ["", "G", "1T", "-1", "1.5G", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_json_has_the_agreed_fields() {
        let outcome = Outcome { kills: 1, planned: 1, acked_writes: 3, ..Outcome::default() };
        assert!(outcome.is_good());
        assert!(!Outcome { planned: 2, kills: 1, acked_writes: 3, ..Outcome::default() }.is_good());
        assert!(!Outcome { wrong_replies: 1, ..outcome }.is_good());
        let outcome = Outcome { findings: vec!["x".to_owned()], ..Outcome::default() };
        let json = serde_json::to_value(&outcome).unwrap();
        let fields: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(
            fields,
            [
                "acked_writes",
                "acked_writes_lost",
                "connections",
                "connections_dropped",
                "failover_ms",
                "kills",
                "reprotect_ms",
                "stall_ms",
                "wrong_replies"
            ]
        );
        assert_eq!(json["stall_ms"].to_string(), r#"{"max":0,"p50":0,"p99":0}"#);
        assert_eq!(json["failover_ms"].to_string(), r#"{"activate":0.0,"arbitrate":0.0,"detect":0.0}"#);
    }
}
