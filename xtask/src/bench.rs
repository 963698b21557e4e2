//! `cargo xtask bench`: the figures, by the same lab and clients as the demo and the tests, written to BENCHMARKS.md.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use outlive_lab::Host;
use outlive_lab::client::latency::{self, Service};
use outlive_lab::client::redis::Fill;
use outlive_lab::client::stats::Summary;
use outlive_lab::cluster::{Cluster, Start, WORKERS};
use outlive_lab::scenario::{Moves, Outcome, median};
use serde::Serialize;

use crate::failover::{self, Plan, REDIS, REDIS_PORT, WORKLOAD, wait_for_redis};
use crate::{demo, hotpatch, replicated, root, setup};

#[derive(Subcommand)]
pub enum What {
    /// What clients notice of failovers, and how long their parts take
    Failover {
        #[arg(long, default_value_t = 10)]
        kills: usize,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clients: u32,
        #[arg(long, default_value = "1G", value_parser = demo::parse_size)]
        resident: u64,
        /// Print the outcome as JSON, as the last line of standard output
        #[arg(long)]
        json: bool,
    },
    /// What clients notice of planned moves
    Switchover {
        #[arg(long, default_value_t = 20)]
        moves: usize,
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clients: u32,
        #[arg(long, default_value = "64M", value_parser = demo::parse_size)]
        resident: u64,
        /// Print the outcome as JSON, as the last line of standard output
        #[arg(long)]
        json: bool,
    },
    /// What protection costs while nothing fails: throughput, latency and pauses of Redis
    Epoch {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Requests of each round, natively and protected
        #[arg(long, default_value_t = 100_000)]
        requests: u64,
        /// Connections, each with one request at a time
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        clients: u32,
        /// Values that the protected Redis holds besides
        #[arg(long, default_value = "1G", value_parser = demo::parse_size)]
        resident: u64,
        /// Print the outcome as JSON, as the last line of standard output
        #[arg(long)]
        json: bool,
    },
    /// What `#[replicated]` costs, beside bare TCP and Redis with `WAIT 1 0`
    Replicated {
        /// Print the outcome as JSON, as the last line of standard output
        #[arg(long)]
        json: bool,
    },
    /// Real fixes of Debian's packages applied to running programs under load, and what their clients notice
    Hotpatch {
        /// Only the fixes of this package; may be given again [default: all, a thousand cycles under load, and an allocator]
        #[arg(long, value_name = "NAME")]
        package: Vec<String>,
        /// Of these packages only this patch; may be given again: what is known of the others is kept
        #[arg(long, value_name = "PATCH", requires = "package")]
        fix: Vec<String>,
        /// Only the cycles, with what the fixes of redis have left, and the allocator
        #[arg(long, conflicts_with = "package")]
        cycles_only: bool,
        /// Only the allocator that redis brings along
        #[arg(long, conflicts_with_all = ["package", "cycles_only"])]
        allocator_only: bool,
        /// Run nothing: write the table of what earlier runs have found out
        #[arg(long, conflicts_with_all = ["package", "cycles_only", "allocator_only", "json"])]
        table_only: bool,
        /// Print the outcome as JSON, as the last line of standard output
        #[arg(long)]
        json: bool,
    },
}

/// Requests of a latency measurement, and the rest between two of them: the server is to be idle at each.
const LONE_REQUESTS: u64 = 500;
const LONE_PACE: Duration = Duration::from_millis(2);
const PROTECT_LIMIT: Duration = Duration::from_secs(120);
const BENCHMARK_LIMIT: Duration = Duration::from_secs(600);

/// True if the figures are those of a run in which nothing went wrong.
pub fn run(what: &What) -> Result<bool> {
    if let What::Hotpatch { table_only: true, .. } = what {
        return hotpatch::write_table();
    }
    if let What::Hotpatch { package, fix, cycles_only, allocator_only, json, .. } = what {
        let part = match (cycles_only, allocator_only) {
            (_, true) => hotpatch::Part::Allocator,
            (true, _) => hotpatch::Part::Cycles,
            _ => hotpatch::Part::All,
        };
        return hotpatch::run(package, fix, part, *json);
    }
    setup::prepare()?;
    if let What::Replicated { json } = *what {
        return replicated::run(json);
    }
    let program = setup::build_release()?;
    let begun = Instant::now();
    let say = |line: &str| eprintln!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    match *what {
        What::Hotpatch { .. } | What::Replicated { .. } => Ok(true),
        What::Failover { kills, clients, resident, json } => {
            let plan = Plan { program, kills, clients: clients as usize, resident };
            let outcome = failover::run(&plan, &say)?;
            outcome.findings.iter().take(10).for_each(|finding| say(finding));
            let command = format!(
                "cargo xtask bench failover --kills {kills} --clients {clients} --resident {}M",
                resident >> 20
            );
            write_section("failover", &failover_section(&command, &outcome, resident))?;
            if json {
                println!("{}", serde_json::to_string(&outcome)?);
            }
            Ok(outcome.is_good())
        }
        What::Switchover { moves, clients, resident, json } => {
            let plan = Plan { program, kills: moves, clients: clients as usize, resident };
            let outcome = failover::switch(&plan, &say)?;
            outcome.findings.iter().take(10).for_each(|finding| say(finding));
            let command = format!(
                "cargo xtask bench switchover --moves {moves} --clients {clients} --resident {}M",
                resident >> 20
            );
            write_section("switchover", &switchover_section(&command, &outcome, resident))?;
            if json {
                println!("{}", serde_json::to_string(&outcome)?);
            }
            Ok(outcome.is_good())
        }
        What::Epoch { rounds, requests, clients, resident, json } => {
            if rounds == 0 || requests == 0 {
                bail!("a measurement takes at least one round of one request");
            }
            let cluster = Cluster::start("bench", &program)?;
            let costs = measure_epoch(&cluster, rounds, (requests, clients), resident, &say);
            if costs.is_err() {
                eprint!("{}", cluster.tails());
            }
            let costs = costs?;
            let command = format!(
                "cargo xtask bench epoch --rounds {rounds} --requests {requests} --clients {clients} --resident {}M",
                resident >> 20
            );
            write_section("epoch", &epoch_section(&command, &costs))?;
            if json {
                println!("{}", serde_json::to_string(&costs)?);
            }
            Ok(true)
        }
    }
}

/// What protection by epochs costs.
#[derive(Debug, Serialize)]
struct Costs {
    rounds: Vec<Round>,
    /// Protected over native: medians over the rounds.
    throughput_ratio: f64,
    native_rps: f64,
    protected_rps: f64,
    /// One request at a time.
    native_latency_us: Summary,
    protected_latency_us: Summary,
    /// As the agent says: over its last thousand checkpoints.
    pause_us_mean: Option<f64>,
    pause_us_p99: Option<f64>,
    commit_us_mean: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    native_rps: f64,
    protected_rps: f64,
}

fn measure_epoch(
    cluster: &Cluster,
    rounds: usize,
    load: (u64, u32),
    resident: u64,
    say: &dyn Fn(&str),
) -> Result<Costs> {
    let [node, backup] = WORKERS;
    let native = cluster.host(node)?.address();
    cluster.host(node)?.spawn(REDIS)?;
    wait_for_redis(cluster, native)?;
    let protected = cluster.lab().free_address()?;
    cluster.run(&Start {
        name: WORKLOAD,
        node,
        backup: Some(backup),
        address: protected,
        // Filled first, so that the first copy is one of everything.
        options: &["--detach"],
        command: &REDIS,
    })?;
    wait_for_redis(cluster, protected)?;
    let from = cluster.client().netns()?;
    Fill::write(Some(&from), SocketAddr::from((protected, REDIS_PORT)), resident)
        .with_context(|| format!("cannot fill redis with {resident} bytes"))?;
    let is_protected =
        || cluster.wait_until(node, WORKLOAD, "protected", PROTECT_LIMIT, |seen| seen.is_protected());
    let before = is_protected()?;
    say("both run on the same machine, one protected");

    let mut measured = Vec::new();
    for number in 1..=rounds {
        // Side by side in time: what else the machine does hits both.
        let round = Round {
            native_rps: throughput(cluster.client(), native, load)?,
            protected_rps: throughput(cluster.client(), protected, load)?,
        };
        say(&format!(
            "round {number} of {rounds}: {:.0} requests a second natively, {:.0} protected",
            round.native_rps, round.protected_rps
        ));
        measured.push(round);
    }
    let loaded = is_protected()?;
    if loaded.generation != before.generation {
        bail!("the workload failed over during the measurement, so that it says nothing");
    }
    let lone = |address: Ipv4Addr| {
        thread::sleep(Duration::from_millis(200));
        let from = cluster.client().netns()?;
        let to = SocketAddr::from((address, REDIS_PORT));
        let measured = latency::measure(Some(&from), to, Service::RedisSet, LONE_REQUESTS, LONE_PACE);
        measured.context("the latency measurement failed")
    };
    let (native_latency_us, protected_latency_us) = (lone(native)?, lone(protected)?);
    let spread = |series: &str, what: &str| loaded.more.get(series)?.get(what)?.as_f64();
    let native_rps = median(measured.iter().map(|round| round.native_rps).collect());
    let protected_rps = median(measured.iter().map(|round| round.protected_rps).collect());
    let ratios = measured.iter().map(|round| 1000.0 * round.protected_rps / round.native_rps);
    Ok(Costs {
        throughput_ratio: median(ratios.collect()).round() / 1000.0,
        native_rps,
        protected_rps,
        native_latency_us,
        protected_latency_us,
        pause_us_mean: spread("pause_us", "mean"),
        pause_us_p99: spread("pause_us", "p99"),
        commit_us_mean: spread("commit_us", "mean"),
        rounds: measured,
    })
}

/// Requests a second of `redis-benchmark`: so many, over so many connections with one request at a time on each.
fn throughput(client: &Host, address: Ipv4Addr, (requests, connections): (u64, u32)) -> Result<f64> {
    let line = format!(
        "redis-benchmark -h {address} -p {REDIS_PORT} -t set -c {connections} -P 1 -n {requests} -r 100000 --csv"
    );
    let output = client.exec_within(BENCHMARK_LIMIT, line.split(' '))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_throughput(&text).with_context(|| format!("`{line}` said: {text}"))
}

/// From `"SET","123456.78",...`.
fn parse_throughput(csv: &str) -> Option<f64> {
    let row = csv.lines().find(|line| line.starts_with("\"SET\""))?;
    row.split(',').nth(1)?.trim_matches('"').parse().ok().filter(|rps| *rps > 0.0)
}

fn failover_section(command: &str, outcome: &Outcome, resident: u64) -> String {
    let (stall, phases) = (&outcome.stall_ms, &outcome.failover_ms);
    format!(
        "## Failover\n\n\
         `{command}`: Redis with {} MiB besides what the clients write, its machine killed {} times under {} \
         connections.\n\n\
         | figure | value |\n|---|---|\n\
         | connections dropped | {} |\n\
         | acknowledged writes | {} |\n\
         | acknowledged writes lost | {} |\n\
         | wrong replies | {} |\n\
         | longest stall of a connection around a kill, p50 / p99 / max | {} / {} / {} ms |\n\
         | detection, arbitration, activation (medians) | {} + {} + {} ms |\n\
         | from the new agent's start to protected again (median) | {} ms |\n",
        resident >> 20,
        outcome.kills,
        outcome.connections,
        outcome.connections_dropped,
        outcome.acked_writes,
        outcome.acked_writes_lost,
        outcome.wrong_replies,
        stall.p50,
        stall.p99,
        stall.max,
        phases.detect,
        phases.arbitrate,
        phases.activate,
        outcome.reprotect_ms,
    )
}

fn switchover_section(command: &str, outcome: &Moves, resident: u64) -> String {
    let ms = |us: u64| us as f64 / 1000.0;
    let stall = &outcome.stall_us;
    format!(
        "## Switchover\n\n\
         `{command}`: Redis with {} MiB besides what the clients write, moved {} times between two hosts under {} \
         connections.\n\n\
         | figure | value |\n|---|---|\n\
         | connections dropped | {} |\n\
         | acknowledged writes | {} |\n\
         | acknowledged writes lost | {} |\n\
         | wrong replies | {} |\n\
         | longest stall of a connection around a move (with the 2 ms between its requests), p50 / p99 / max | {:.1} / \
         {:.1} / {:.1} ms |\n\
         | of which the new primary's, from hearing that it is one until the workload runs (median) | {} ms |\n\
         | from the end of the command to protected again (median) | {} ms |\n",
        resident >> 20,
        outcome.moves,
        outcome.connections,
        outcome.connections_dropped,
        outcome.acked_writes,
        outcome.acked_writes_lost,
        outcome.wrong_replies,
        ms(stall.p50),
        ms(stall.p99),
        ms(stall.max),
        outcome.activate_ms,
        outcome.reprotect_ms,
    )
}

fn epoch_section(command: &str, costs: &Costs) -> String {
    let latency = |summary: &Summary| format!("{} / {} / {} µs", summary.p50, summary.p99, summary.max);
    let maybe = |value: Option<f64>| value.map_or("not told".to_owned(), |value| format!("{value:.0} µs"));
    let mut rounds = String::new();
    for round in &costs.rounds {
        // Writing to a String does not fail.
        let _ = writeln!(
            rounds,
            "| {:.0} | {:.0} | {:.2} |",
            round.native_rps,
            round.protected_rps,
            round.protected_rps / round.native_rps
        );
    }
    format!(
        "## Epochs\n\n\
         `{command}`: the same Redis on the same machine, natively and protected in turn; `redis-benchmark`, each \
         of whose connections (50 unless the command says otherwise) sets one value at a time, then {LONE_REQUESTS} lone requests on one connection.\n\n\
         | figure | value |\n|---|---|\n\
         | throughput, protected over native (median) | {} |\n\
         | one request at a time, native, p50 / p99 / max | {} |\n\
         | one request at a time, protected, p50 / p99 / max | {} |\n\
         | pause of a checkpoint, mean | {} |\n\
         | pause of a checkpoint, p99 | {} |\n\
         | from the end of a pause to its commit, mean | {} |\n\n\
         | native requests a second | protected | ratio |\n|---|---|---|\n{rounds}",
        costs.throughput_ratio,
        latency(&costs.native_latency_us),
        latency(&costs.protected_latency_us),
        maybe(costs.pause_us_mean),
        maybe(costs.pause_us_p99),
        maybe(costs.commit_us_mean),
    )
}

/// Puts a section into BENCHMARKS.md in place of the one of the same name.
pub fn write_section(name: &str, section: &str) -> Result<()> {
    let path = root()?.join("BENCHMARKS.md");
    let old = fs::read_to_string(&path).unwrap_or_default();
    let section = format!("{section}\nMeasured on {}.\n", machine());
    fs::write(&path, replace_section(&old, name, &section))
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("bench: the figures are in {}", path.display());
    Ok(())
}

fn replace_section(old: &str, name: &str, section: &str) -> String {
    const HEAD: &str =
        "# Benchmarks\n\nWritten by `cargo xtask bench`; every figure names the command that measures it.\n";
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->\n"));
    let block = format!("{begin}{section}{end}");
    let head = if old.is_empty() { HEAD } else { old };
    let found = head.find(&begin).zip(head.find(&end)).filter(|(from, to)| from < to);
    match found {
        Some((from, to)) => format!("{}{block}{}", &head[..from], &head[to + end.len()..]),
        None => format!("{}\n\n{block}", head.trim_end()),
    }
}

/// Kernel and processors, as far as the machine tells.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: String = kernel.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let processors = thread::available_parallelism().map_or(1, |count| count.get());
    format!(
        "Linux {kernel} with {processors} virtual processors ({}); hosts, client and switch share them",
        model.unwrap_or("of unknown model")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_throughput_of_a_redis_in_a_lab_is_measured() {
        let lab = outlive_lab::Lab::new("bench").unwrap();
        let (host, client) = (lab.host("a").unwrap(), lab.client("client").unwrap());
        let redis = host.spawn(REDIS).unwrap();
        let deadline = Instant::now() + PROTECT_LIMIT;
        while !redis.stdout().contains("Ready to accept connections") {
            assert!(Instant::now() < deadline, "{}", redis.tail());
            thread::sleep(Duration::from_millis(10));
        }
        assert!(throughput(&client, host.address(), (1000, 50)).unwrap() > 0.0);
    }

    #[test]
    fn the_throughput_is_found_in_what_redis_benchmark_says() {
        let said = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"98814.23\",\"0.263\"\n";
        assert_eq!(parse_throughput(said), Some(98814.23));
        assert_eq!(parse_throughput("\"test\",\"rps\"\n\"SET\",\"0.00\"\n"), None);
        assert_eq!(parse_throughput("Could not connect"), None);
    }

    #[test]
    fn a_section_replaces_its_own_kind_only() {
        let one = replace_section("", "epoch", "first\n");
        let both = replace_section(&one, "failover", "other\n");
        let again = replace_section(&both, "epoch", "second\n");
        assert!(again.starts_with("# Benchmarks\n"));
        assert!(!again.contains("first") && again.contains("second") && again.contains("other"));
        assert_eq!(replace_section(&again, "epoch", "second\n"), again);
    }
}
