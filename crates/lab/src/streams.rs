//! The scenario of streams: one service under every kind of traffic at once, whose machine is killed again and again.
//!
//! The service is a Redis and a `lab_server` in one process tree. All traffic goes on over every kill, and every byte
//! and every reply is checked. Who runs it sees what a plain benchmark does not show: large windows of unacknowledged
//! data at the instant of a kill, data that outlives its socket, connections that are just being opened.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::redis::{Load, RedisClient};
use crate::client::stats::Report;
use crate::cluster::{Cluster, ClusterError, Failover, Start, WORKERS, Workload};
use crate::pattern::Choices;

mod flow;

use flow::Traffic;
pub use flow::{Flow, Kind};

pub const WORKLOAD: &str = "streams";
const REDIS_PORT: u16 = 6379;
const SERVER_PORT: u16 = 7000;
/// Both programs, in one tree.
const SCRIPT: &str = "redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --appendonly no & \
                      exec \"$0\" 0.0.0.0:7000";

/// A step that takes longer has failed.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// All traffic must go on within that after a takeover. Far beyond any retransmission timeout that a stall of a
/// second could have grown; below the standstill after which a client gives up, so that the sockets can be looked at.
const GO_ON_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A kill comes at a random instant within these milliseconds after the workload is protected.
const KILL_AFTER_MS: std::ops::Range<u64> = 300..1700;
/// What a sender may have unacknowledged at the beginning of a connection, in segments (RFC 6928).
const INITIAL_WINDOW: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Lab(#[from] crate::LabError),
    #[error("cannot {attempt}")]
    Io { attempt: &'static str, source: io::Error },
    #[error("{0}")]
    Standstill(String),
}

type Result<T, E = StreamsError> = std::result::Result<T, E>;

pub struct Plan<'a> {
    /// The `outlive` to test.
    pub program: &'a Path,
    /// `lab_server`.
    pub server: &'a Path,
    pub kills: usize,
    /// Connections to Redis.
    pub clients: usize,
    /// Decides when kills come.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub kills: Vec<Kill>,
    pub flows: Vec<Flow>,
    /// Pipelined requests to Redis.
    pub redis: Report,
    /// Connections opened one after the other.
    pub opener: Report,
    #[serde(skip)]
    pub planned: usize,
}

/// One kill.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// The most that a connection of the service had sent and not had acknowledged, in segments, shortly before.
    pub unacked_segments: u64,
    /// Of the checkpoints until then, as the primary said shortly before.
    pub pause_mean_us: Option<f64>,
    pub pause_max_us: Option<f64>,
    pub failover: Option<Failover>,
    /// From the killed node's being back until the service is protected again.
    pub reprotect_ms: u64,
}

impl Outcome {
    pub fn is_good(&self) -> bool {
        self.faults().is_empty()
    }

    /// What is not as it should be, in words.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.kills.len() != self.planned {
            faults.push(format!("{} kills of {} happened", self.kills.len(), self.planned));
        }
        for flow in &self.flows {
            if flow.transfers == 0 {
                faults.push(format!("{}: no transfer was completed", flow.kind.word()));
            }
            faults.extend(flow.findings.iter().map(|finding| format!("{}: {finding}", flow.kind.word())));
        }
        for (name, report) in [("redis", &self.redis), ("opener", &self.opener)] {
            if !report.is_clean() {
                faults.push(format!(
                    "{name}: {} connections dropped, {} acknowledged writes lost, {} replies wrong of {} requests",
                    report.connections_dropped,
                    report.acked_writes_lost,
                    report.wrong_replies,
                    report.requests
                ));
            }
            faults.extend(report.findings.iter().take(5).map(|finding| format!("{name}: {finding}")));
        }
        let in_flight = self.kills.iter().map(|kill| kill.unacked_segments).max().unwrap_or_default();
        if self.planned > 0 && in_flight <= 2 * INITIAL_WINDOW {
            faults.push(format!("at no kill more than {in_flight} segments were unacknowledged"));
        }
        faults
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        for flow in &self.flows {
            let _ = writeln!(
                text,
                "  {:<34} {:>4} transfers, {:>6} MiB, {} dropped, {} wrong, longest stall {} ms",
                flow.kind.word(),
                flow.transfers,
                flow.bytes >> 20,
                flow.dropped,
                flow.wrong,
                flow.stall_ms
            );
        }
        for (name, report) in
            [("pipelined requests to redis", &self.redis), ("connections being opened", &self.opener)]
        {
            let _ = writeln!(
                text,
                "  {name:<34} {} requests, {} connections dropped, {} of {} acknowledged writes lost, {} wrong, \
                 latency p50 / p99 / max {} / {} / {} us",
                report.requests,
                report.connections_dropped,
                report.acked_writes_lost,
                report.acked_writes,
                report.wrong_replies,
                report.latency_us.p50,
                report.latency_us.p99,
                report.latency_us.max
            );
        }
        let _ = writeln!(text, "  {:<34} {} of {}", "kills", self.kills.len(), self.planned);
        text
    }
}

/// Runs the scenario, and tells `say` what happens.
pub fn run(plan: &Plan<'_>, say: &dyn Fn(&str)) -> Result<Outcome> {
    say("starting hosts a, b, c and a client");
    let cluster = Cluster::start("streams", plan.program)?;
    let outcome = Scenario { cluster: &cluster, plan, say }.play();
    if outcome.is_err() {
        eprint!("{}", cluster.tails());
    }
    outcome
}

struct Scenario<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan<'a>,
    say: &'a dyn Fn(&str),
}

impl Scenario<'_> {
    fn play(&self) -> Result<Outcome> {
        let Scenario { cluster, plan, say } = self;
        let [first, second] = WORKERS;
        let address = cluster.lab().free_address()?;
        let server = cluster.lab().install(plan.server)?;
        cluster.run(&Start {
            name: WORKLOAD,
            node: first,
            backup: Some(second),
            address,
            options: &[],
            command: &["/bin/sh", "-c", SCRIPT, &server.to_string_lossy()],
        })?;
        let mut workload = self.protected(first)?;
        say(&format!("redis and lab_server run on {first} at {address}, protected by {second}"));
        self.wait_for_service(address)?;

        let traffic = self.start_traffic(address)?;
        self.all_go_on(&traffic, first, "began")?;
        say(&format!(
            "{} streams, {} connections to redis and an opener go",
            traffic.streams(),
            plan.clients
        ));
        let mut choices = Choices::new(plan.seed);
        let mut kills = Vec::new();
        for number in 1..=plan.kills {
            let spread = KILL_AFTER_MS.end - KILL_AFTER_MS.start;
            thread::sleep(Duration::from_millis(choices.below(spread)));
            traffic.set_protected(false);
            thread::sleep(Duration::from_millis(KILL_AFTER_MS.start));
            let (kill, now) = self.kill(number, &workload, &traffic)?;
            traffic.set_protected(true);
            kills.push(kill);
            workload = now;
        }
        say("letting every transfer come to its end, and reading back everything that was acknowledged");
        let (flows, redis, opener) =
            traffic.finish().map_err(|source| StreamsError::Io { attempt: "run the clients", source })?;
        Ok(Outcome { kills, flows, redis, opener, planned: plan.kills })
    }

    fn start_traffic(&self, address: Ipv4Addr) -> Result<Traffic> {
        let from = self.cluster.client().netns()?;
        let load = Load {
            connections: self.plan.clients,
            // Every turn is a batch, so that there always are requests behind one another in the socket.
            batch_every: 1,
            batch_length: 32,
            large_every: 40,
            ..Load::new(SocketAddr::from((address, REDIS_PORT)))
        };
        let started = RedisClient::start(Some(&from), load).and_then(|redis| {
            Traffic::start(&from, SocketAddr::from((address, SERVER_PORT)), redis, self.plan.clients)
        });
        started.map_err(|source| StreamsError::Io { attempt: "start the clients", source })
    }

    fn kill(&self, number: usize, workload: &Workload, traffic: &Traffic) -> Result<(Kill, Workload)> {
        let Scenario { cluster, plan, say } = self;
        let (Some(victim), Some(survivor)) = (&workload.primary_node, &workload.backup_node) else {
            let what = format!("the workload has no primary or no backup: {workload:?}");
            return Err(StreamsError::Standstill(what));
        };
        let unacked_segments = most_unacked(&self.sockets(victim));
        let before = cluster.inspect(victim, WORKLOAD)?;
        let pause = |what: &str| before.more.get("pause_us")?.get(what)?.as_f64();
        let (pause_mean_us, pause_max_us) = (pause("mean"), pause("max"));
        say(&format!(
            "kill {number} of {}: the power of {victim} is cut; up to {unacked_segments} segments are \
             unacknowledged on a connection; checkpoints took {:.1} ms in the mean, {:.1} at most",
            plan.kills,
            pause_mean_us.unwrap_or_default() / 1e3,
            pause_max_us.unwrap_or_default() / 1e3
        ));
        cluster.power_off(victim)?;
        let now = cluster.wait_until(survivor, WORKLOAD, "taken over", STEP_LIMIT, |seen| {
            seen.is_primary() && seen.generation > workload.generation
        })?;
        let (took, last) = self.all_go_on(traffic, survivor, "went on")?;
        let failover = now.last_failover;
        let parts = failover.map(|parts| (parts.detect_ms, parts.arbitrate_ms, parts.activate_ms));
        say(&format!(
            "  {survivor} took over as generation {} (detection, arbitration, activation {:.1?} ms); all traffic went \
             on {} ms after that (last: {last})",
            now.generation,
            parts.unwrap_or_default(),
            took.as_millis()
        ));
        cluster.power_on(victim)?;
        let powered = Instant::now();
        let now = self.protected(survivor)?;
        let reprotect_ms = powered.elapsed().as_millis() as u64;
        say(&format!(
            "  {victim} is back; protected again after {reprotect_ms} ms, by {}",
            now.backup_node.as_deref().unwrap_or("nobody")
        ));
        Ok((Kill { unacked_segments, pause_mean_us, pause_max_us, failover, reprotect_ms }, now))
    }

    fn protected(&self, node: &str) -> Result<Workload> {
        let seen = self.cluster.wait_until(node, WORKLOAD, "protected", STEP_LIMIT, |seen| {
            seen.is_protected() && seen.is_primary() && seen.backup_node.is_some()
        })?;
        Ok(seen)
    }

    fn wait_for_service(&self, address: Ipv4Addr) -> Result<()> {
        let from = self.cluster.client().netns()?;
        let deadline = Instant::now() + STEP_LIMIT;
        for port in [REDIS_PORT, SERVER_PORT] {
            while let Err(error) = crate::client::connect(Some(&from), SocketAddr::from((address, port))) {
                if Instant::now() > deadline {
                    return Err(StreamsError::Standstill(format!("the service does not answer: {error}")));
                }
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// Waits until every kind of traffic has made progress since now. How long that took, and what was the last.
    fn all_go_on(&self, traffic: &Traffic, node: &str, how: &str) -> Result<(Duration, String)> {
        let since = traffic.mark();
        let begun = Instant::now();
        let mut last = "none".to_owned();
        loop {
            let standing = traffic.standing_since(&since);
            if standing.is_empty() {
                return Ok((begun.elapsed(), last));
            }
            last = standing.join(", ");
            if begun.elapsed() > GO_ON_LIMIT {
                let seconds = GO_ON_LIMIT.as_secs();
                let sockets = self.sockets(node);
                return Err(StreamsError::Standstill(format!(
                    "not all traffic {how} within {seconds} s: {last}; the sockets on {node}:\n{sockets}"
                )));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The service's sockets, as the kernel of its node has them; why not, if they cannot be had.
    fn sockets(&self, node: &str) -> String {
        let look = || -> Result<String> {
            let workload = self.cluster.inspect(node, WORKLOAD)?;
            let init = workload.more.get("init_pid").and_then(serde_json::Value::as_i64).unwrap_or_default();
            let init = init.to_string();
            let words = ["nsenter", "--target", &init, "--net", "ss", "-H", "-O", "-tinoem"];
            let output = self.cluster.host(node)?.exec(words)?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        look().unwrap_or_else(|error| error.to_string())
    }
}

/// From what `ss -i` says: `unacked:N` is tcpi_unacked.
fn most_unacked(sockets: &str) -> u64 {
    let words = sockets.split_whitespace().filter_map(|word| word.strip_prefix("unacked:"));
    words.filter_map(|number| number.parse().ok()).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_window_is_found_in_what_ss_says() {
        let said =
            "ESTAB 0 1 1.2.3.4:7000 1.2.3.5:9 reno wscale:7,7 unacked:12 rcv_space:1\nESTAB unacked:345 x\n";
        assert_eq!(most_unacked(said), 345);
        assert_eq!(most_unacked("cannot look"), 0);
    }
}
