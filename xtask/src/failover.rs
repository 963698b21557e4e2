//! The scenario that the demo shows and the benchmark measures: a Redis under clients that verify every reply, whose
//! machine is killed again and again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use outlive_lab::Lab;
use outlive_lab::client::redis::{Fill, Load, RedisClient};
use outlive_lab::client::stats::Summary;
use outlive_lab::cluster::{Cluster, Failover, NODES, Start, WORKERS};
use outlive_lab::pattern::Choices;
use serde::Serialize;

pub const WORKLOAD: &str = "redis";
pub const REDIS_PORT: u16 = 6379;
pub const REDIS: [&str; 9] =
    ["redis-server", "--save", "", "--appendonly", "no", "--bind", "0.0.0.0", "--protected-mode", "no"];

/// A step that takes longer has failed.
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// A kill comes at a random instant within these milliseconds after the workload is protected.
const KILL_AFTER_MS: std::ops::Range<u64> = 300..2300;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// From a reply to the next request on the same connection: also the resolution of a stall.
const PACE: Duration = Duration::from_millis(10);

pub struct Plan {
    pub program: PathBuf,
    pub kills: usize,
    pub clients: usize,
    /// Bytes of values that Redis holds besides those of the clients.
    pub resident: u64,
}

/// What came of it. The fields, and nothing else, are what `--json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    pub kills: usize,
    pub connections: usize,
    pub connections_dropped: u64,
    pub acked_writes: u64,
    pub acked_writes_lost: u64,
    pub wrong_replies: u64,
    /// Of all connections and kills, the longest time without a reply around a kill.
    pub stall_ms: Summary,
    /// Medians over the kills.
    pub failover_ms: Phases,
    /// Median over the kills: from the new agent's being ready until the workload is protected again.
    pub reprotect_ms: f64,
    #[serde(skip)]
    pub findings: Vec<String>,
    #[serde(skip)]
    pub planned: usize,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    pub detect: f64,
    pub arbitrate: f64,
    pub activate: f64,
}

impl Outcome {
    /// Every kill happened, and no client noticed more than a stall.
    pub fn is_good(&self) -> bool {
        self.kills == self.planned
            && self.acked_writes > 0
            && self.connections_dropped == 0
            && self.acked_writes_lost == 0
            && self.wrong_replies == 0
    }
}

/// Runs the scenario, and tells `say` what happens.
pub fn run(plan: &Plan, say: &dyn Fn(&str)) -> Result<Outcome> {
    let swept = Lab::sweep()?;
    if !swept.is_empty() {
        say(&format!("removed what a killed run left behind: {}", swept.join(", ")));
    }
    say("starting hosts a, b, c and a client; a and b run workloads, all three vote");
    let cluster = Cluster::start("demo", &plan.program)?;
    let outcome = Scenario { cluster: &cluster, plan, say }.play();
    if outcome.is_err() {
        eprint!("{}", cluster.tails());
    }
    outcome
}

struct Scenario<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    say: &'a dyn Fn(&str),
}

/// What one kill came to.
struct Kill {
    stalls: Vec<Duration>,
    failover: Option<Failover>,
    reprotect: Duration,
}

impl Scenario<'_> {
    fn play(&self) -> Result<Outcome> {
        let Scenario { cluster, plan, say } = self;
        let [first, second] = WORKERS;
        let address = cluster.lab().free_address()?;
        let target = SocketAddr::from((address, REDIS_PORT));
        let from = cluster.client().netns()?;
        cluster.run(&Start {
            name: WORKLOAD,
            node: first,
            backup: Some(second),
            address,
            // Filled first, so that the first copy is one of everything.
            options: &["--detach"],
            command: &REDIS,
        })?;
        say(&format!("redis runs on {first} at {target}, unaware of any of this"));
        wait_for_redis(cluster, address)?;
        let fill = Fill::write(Some(&from), target, plan.resident)
            .with_context(|| format!("cannot fill redis with {} bytes", plan.resident))?;
        say(&format!("it holds {} more bytes of values", plan.resident));

        let mut workload = self.protected(first)?;
        say(&format!("protected: {first} runs it, {} could", or_none(&workload.backup_node)));
        let load = Load { connections: plan.clients, pace: PACE, ..Load::new(target) };
        let client = RedisClient::start(Some(&from), load).context("cannot start the clients")?;
        let all_answered = |since: Instant| {
            let deadline = Instant::now() + STEP_LIMIT;
            while client.stats().answered_since(since) < plan.clients && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
        };
        all_answered(Instant::now());
        say(&format!("{} connections write and read, and check every reply", plan.clients));

        let mut choices = Choices::new(seed());
        let mut kills = Vec::new();
        for number in 1..=plan.kills {
            thread::sleep(Duration::from_millis(
                KILL_AFTER_MS.start + choices.below(KILL_AFTER_MS.end - KILL_AFTER_MS.start),
            ));
            let victim = workload.primary_node.clone().context("the workload has no primary")?;
            let survivor = workload.backup_node.clone().context("the workload has no backup")?;
            let generation = workload.generation;
            say(&format!("kill {number} of {}: the power of {victim} is cut", plan.kills));
            let dark = cluster.power_off(&victim)?;
            workload = cluster.wait_until(&survivor, WORKLOAD, "taken over", STEP_LIMIT, |seen| {
                seen.is_primary() && seen.generation > generation
            })?;
            let failover = workload.last_failover;
            all_answered(Instant::now());
            let stalls = client.stats().stalls_since(dark);
            let longest = stalls.iter().max().copied().unwrap_or_default();
            say(&format!(
                "  {survivor} took over as generation {}; the longest stall of a connection was {} ms",
                workload.generation,
                longest.as_millis()
            ));
            cluster.power_on(&victim)?;
            let powered = Instant::now();
            say(&format!("  {victim} is back, with nothing in memory"));
            workload = self.protected(&survivor)?;
            let reprotect = powered.elapsed();
            say(&format!("  protected again after {} ms", reprotect.as_millis()));
            kills.push(Kill { stalls, failover, reprotect });
            self.show_trouble(&client);
        }

        say("reading back everything that was ever acknowledged");
        let report = client.finish().context("the clients failed")?;
        let fill_lost = fill.count_lost(Some(&from)).unwrap_or_else(|error| {
            say(&format!("  the values that redis was filled with cannot be read back: {error}"));
            fill.writes()
        });
        Ok(Outcome {
            kills: kills.len(),
            connections: report.connections,
            connections_dropped: report.connections_dropped,
            acked_writes: report.acked_writes + fill.writes(),
            acked_writes_lost: report.acked_writes_lost + fill_lost,
            wrong_replies: report.wrong_replies,
            stall_ms: Summary::of(
                kills.iter().flat_map(|kill| &kill.stalls).map(|stall| stall.as_millis() as u64).collect(),
            ),
            failover_ms: phases(&kills),
            reprotect_ms: median(kills.iter().map(|kill| kill.reprotect.as_secs_f64() * 1e3).collect()),
            findings: report.findings,
            planned: plan.kills,
        })
    }

    fn protected(&self, node: &str) -> Result<outlive_lab::cluster::Workload> {
        let seen = self.cluster.wait_until(node, WORKLOAD, "protected", STEP_LIMIT, |seen| {
            seen.is_protected() && seen.is_primary() && seen.backup_node.is_some()
        })?;
        let backup = seen.backup_node.as_deref().unwrap_or_default();
        if !NODES.contains(&backup) {
            bail!("`outlive inspect` names a backup that is no node: `{backup}`");
        }
        Ok(seen)
    }

    /// Says what went wrong as soon as it did, and not only at the end.
    fn show_trouble(&self, client: &RedisClient) {
        let report = client.stats().report();
        if !report.is_clean() {
            (self.say)(&format!(
                "  so far {} connections dropped, {} writes lost, {} replies wrong",
                report.connections_dropped, report.acked_writes_lost, report.wrong_replies
            ));
        }
    }
}

/// Waits until Redis answers at its address.
pub fn wait_for_redis(cluster: &Cluster, address: std::net::Ipv4Addr) -> Result<()> {
    let host = address.to_string();
    let port = REDIS_PORT.to_string();
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        let limit = Duration::from_secs(5);
        let ping = ["redis-cli", "-h", &host, "-p", &port, "ping"];
        match cluster.client().exec_within(limit, ping) {
            Ok(output) if output.stdout.starts_with(b"PONG") => return Ok(()),
            _ if Instant::now() > deadline => bail!("redis does not answer at {host}:{port}"),
            _ => thread::sleep(LOOK_EVERY),
        }
    }
}

fn phases(kills: &[Kill]) -> Phases {
    let of = |part: fn(&Failover) -> f64| {
        median(kills.iter().filter_map(|kill| kill.failover.as_ref()).map(part).collect())
    };
    Phases {
        detect: of(|failover| failover.detect_ms),
        arbitrate: of(|failover| failover.arbitrate_ms),
        activate: of(|failover| failover.activate_ms),
    }
}

/// The middle one, to a tenth; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied().unwrap_or_default();
    (middle * 10.0).round() / 10.0
}

fn or_none(node: &Option<String>) -> &str {
    node.as_deref().unwrap_or("nobody")
}

/// Another one at every run.
pub fn seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An `outlive` that keeps nothing in step: when the primary is gone, it starts a new Redis at the same address
    /// and claims that all is well.
    const LIAR: &str = r#"#!/bin/sh
state=$(dirname "$0")/state
me=$(hostname)
serve() {
    ip addr add "$1/24" dev br0 && echo 1 > /proc/sys/net/ipv4/conf/br0/arp_notify
    ip link set br0 down && ip link set br0 up # announces the address
    redis-server --save "" --appendonly no --bind 0.0.0.0 --protected-mode no > /dev/null 2>&1 &
}
case "$1" in
    cert | seed) ;;
    agent) echo ready; exec sleep 1000 ;;
    run)
        while [ "$1" != --ip ]; do shift; done
        serve "${2%/*}"
        echo "$me b 1 ${2%/*}" > "$state" ;;
    inspect)
        read -r primary backup generation ip < "$state"
        role=primary
        if [ "$primary" != "$me" ]; then
            role=backup
            if ! timeout 1 redis-cli -h "$ip" ping > /dev/null 2>&1; then
                role=primary backup=$primary primary=$me generation=$((generation + 1))
                serve "$ip"
                echo "$primary $backup $generation $ip" > "$state"
            fi
        fi
        cat << END
{"name":"redis","state":"protected","role":"$role","generation":$generation,"epoch":1,
 "primary_node":"$primary","backup_node":"$backup",
 "last_failover":{"detect_ms":1.0,"arbitrate_ms":2.0,"activate_ms":3.0}}
END
        ;;
    *) echo "unknown command $1" >&2; exit 2 ;;
esac
"#;

    #[test]
    fn a_product_that_only_claims_to_protect_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("outlive");
        fs::write(&program, LIAR).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let plan = Plan { program, kills: 1, clients: 4, resident: 1 << 20 };
        let outcome = run(&plan, &|line| println!("{line}")).unwrap();
        assert_eq!((outcome.kills, outcome.connections, outcome.connections_dropped), (1, 4, 4));
        // All of the fill, and what the clients wrote before.
        assert!(outcome.acked_writes_lost > 256, "{outcome:?}");
        assert!(outcome.stall_ms.max > 0 && outcome.failover_ms.arbitrate == 2.0);
        assert!(!outcome.is_good());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.04, 2.0]), 2.0);
        assert_eq!(median(vec![1.04]), 1.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
