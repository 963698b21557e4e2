//! The scenario that the demo shows and the benchmark measures: a service under clients that verify every reply, whose
//! machine is killed again and again at random instants.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::client::stats::{Report, Stats, Summary};
use crate::cluster::{Cluster, ClusterError, Failover, NODES, Start, WORKERS, Workload};
use crate::netns::NetNs;
use crate::pattern::Choices;
use crate::{Lab, LabError};

/// A step that takes longer has failed.
pub const STEP_LIMIT: Duration = Duration::from_secs(120);
/// A kill comes at a random instant within these milliseconds after the workload is protected.
const KILL_AFTER_MS: std::ops::Range<u64> = 300..2300;
/// From one planned move to the next, once the workload is protected again.
const BETWEEN_MOVES: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error("cannot {attempt}")]
    Io { attempt: String, source: io::Error },
    #[error("{0}")]
    Service(String),
}

type Result<T, E = ScenarioError> = std::result::Result<T, E>;

/// Where a service is reached, and from where.
pub struct Place<'a> {
    pub cluster: &'a Cluster,
    pub address: Ipv4Addr,
    /// The network of the machine outside.
    pub from: NetNs,
}

/// How a service is started.
#[derive(Debug, Default)]
pub struct Command {
    /// Further options of `outlive run`.
    pub options: Vec<String>,
    pub words: Vec<String>,
}

/// A real program, or several in one tree, and how it is used.
pub trait Service {
    /// The name of its workload.
    fn name(&self) -> &str;
    /// Makes the files that it needs, and says how it is started.
    fn install(&mut self, lab: &Lab) -> Result<Command>;
    /// Waits until it answers, and fills it with what it is to hold.
    fn prepare(&mut self, place: &Place<'_>, say: &dyn Fn(&str)) -> Result<()>;
    /// Starts its clients.
    fn connect(&mut self, place: &Place<'_>) -> Result<Box<dyn Traffic>>;
}

/// Running clients.
pub trait Traffic {
    fn stats(&self) -> &Stats;
    /// Something to do once the service is protected again after a kill.
    fn between_kills(&mut self, _place: &Place<'_>) -> Result<()> {
        Ok(())
    }
    /// Lets them come to their end, and reads back what was acknowledged.
    fn finish(self: Box<Self>) -> io::Result<Report>;
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

/// Runs the scenario with the `outlive` to test, and tells `say` what happens.
pub fn run(
    program: &Path,
    service: &mut dyn Service,
    kills: usize,
    seed: u64,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    let swept = Lab::sweep()?;
    if !swept.is_empty() {
        say(&format!("removed what a killed run left behind: {}", swept.join(", ")));
    }
    say("starting hosts a, b, c and a client; a and b run workloads, all three vote");
    let cluster = Cluster::start("demo", program)?;
    let outcome = play(&cluster, service, kills, seed, say);
    if outcome.is_err() {
        eprint!("{}", cluster.tails());
        for node in NODES {
            let logs = cluster.command(node, &["logs", service.name()]).unwrap_or_default();
            eprint!("the service on {node} said:\n{logs}");
        }
    }
    outcome
}

/// What came of planned moves. The fields, and nothing else, are what `--json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Moves {
    pub moves: usize,
    pub connections: usize,
    pub connections_dropped: u64,
    pub acked_writes: u64,
    pub acked_writes_lost: u64,
    pub wrong_replies: u64,
    /// Of all connections and moves, the longest time without a reply around a move, in microseconds.
    pub stall_us: Summary,
    /// From when the new primary knew that it is one until the workload ran: median over the moves.
    pub activate_ms: f64,
    /// Median over the moves: from the end of the command until the workload is protected again.
    pub reprotect_ms: f64,
    #[serde(skip)]
    pub findings: Vec<String>,
    #[serde(skip)]
    pub planned: usize,
}

impl Moves {
    /// Every move happened, and no client noticed more than a stall.
    pub fn is_good(&self) -> bool {
        self.moves == self.planned
            && self.acked_writes > 0
            && self.connections_dropped == 0
            && self.acked_writes_lost == 0
            && self.wrong_replies == 0
    }
}

/// Moves a protected service between two nodes under load, by `outlive switchover`.
pub fn switch(
    program: &Path,
    service: &mut dyn Service,
    planned: usize,
    say: &dyn Fn(&str),
) -> Result<Moves> {
    let cluster = Cluster::start("switch", program)?;
    let outcome = play_moves(&cluster, service, planned, say);
    if outcome.is_err() {
        eprint!("{}", cluster.tails());
    }
    outcome
}

fn play_moves(
    cluster: &Cluster,
    service: &mut dyn Service,
    planned: usize,
    say: &dyn Fn(&str),
) -> Result<Moves> {
    let address = cluster.lab().free_address()?;
    let place = Place { cluster, address, from: cluster.client().netns()? };
    let name = service.name().to_owned();
    let mut workload = start(cluster, service, &place, say)?;
    let mut traffic = service.connect(&place)?;
    all_answered(traffic.stats(), Instant::now());
    let (mut stalls, mut activations, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=planned {
        thread::sleep(BETWEEN_MOVES);
        let nodes = workload.primary_node.clone().zip(workload.backup_node.clone());
        let Some((from, to)) = nodes else {
            return Err(ScenarioError::Service(format!("{name} has no primary or no backup: {workload:?}")));
        };
        let begun = Instant::now();
        cluster.command(&from, &["switchover", &name])?;
        let moved = Instant::now();
        all_answered(traffic.stats(), moved);
        let seen = traffic.stats().stalls_since(begun);
        let longest = seen.iter().max().copied().unwrap_or_default();
        stalls.extend(seen.iter().map(|stall| stall.as_micros() as u64));
        workload = protected(cluster, &to, &name)?;
        copies.push(moved.elapsed().as_secs_f64() * 1e3);
        activations.extend(workload.last_failover.map(|failover| failover.activate_ms));
        say(&format!(
            "move {number} of {planned}, from {from} to {to}: the longest stall of a connection was {:.1} ms",
            longest.as_secs_f64() * 1e3
        ));
        show_trouble(traffic.stats(), say);
        traffic.between_kills(&place)?;
    }
    say("reading back everything that was ever acknowledged");
    let report =
        traffic.finish().map_err(|source| ScenarioError::Io { attempt: "run the clients".into(), source })?;
    Ok(Moves {
        moves: copies.len(),
        connections: report.connections,
        connections_dropped: report.connections_dropped,
        acked_writes: report.acked_writes,
        acked_writes_lost: report.acked_writes_lost,
        wrong_replies: report.wrong_replies,
        stall_us: Summary::of(stalls),
        activate_ms: median(activations),
        reprotect_ms: median(copies),
        findings: report.findings,
        planned,
    })
}

/// Starts a service on the first node, fills it, and waits until it is protected.
fn start(
    cluster: &Cluster,
    service: &mut dyn Service,
    place: &Place<'_>,
    say: &dyn Fn(&str),
) -> Result<Workload> {
    let [first, second] = WORKERS;
    let name = service.name().to_owned();
    // Filled first, so that the first copy is one of everything.
    let mut options = vec!["--detach".to_owned()];
    let command = service.install(cluster.lab())?;
    options.extend(command.options);
    cluster.run(&Start {
        name: &name,
        node: first,
        backup: Some(second),
        address: place.address,
        options: &options.iter().map(String::as_str).collect::<Vec<_>>(),
        command: &command.words.iter().map(String::as_str).collect::<Vec<_>>(),
    })?;
    say(&format!("{name} runs on {first} at {}, unaware of any of this", place.address));
    service.prepare(place, say)?;
    let workload = protected(cluster, first, &name)?;
    say(&format!("protected: {first} runs it, {} could", or_none(&workload.backup_node)));
    Ok(workload)
}

/// What one kill came to.
struct Kill {
    stalls: Vec<Duration>,
    failover: Option<Failover>,
    reprotect: Duration,
}

fn play(
    cluster: &Cluster,
    service: &mut dyn Service,
    planned: usize,
    seed: u64,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    let address = cluster.lab().free_address()?;
    let place = Place { cluster, address, from: cluster.client().netns()? };
    let name = service.name().to_owned();
    let mut workload = start(cluster, service, &place, say)?;
    let mut traffic = service.connect(&place)?;
    let clients = traffic.stats().connections();
    all_answered(traffic.stats(), Instant::now());
    say(&format!("{clients} connections write and read, and check every reply"));

    let mut choices = Choices::new(seed);
    let mut kills = Vec::new();
    for number in 1..=planned {
        let spread = KILL_AFTER_MS.end - KILL_AFTER_MS.start;
        thread::sleep(Duration::from_millis(KILL_AFTER_MS.start + choices.below(spread)));
        workload = still_protected(cluster, workload, say)?;
        let nodes = workload.primary_node.clone().zip(workload.backup_node.clone());
        let Some((victim, survivor)) = nodes else {
            return Err(ScenarioError::Service(format!("{name} has no primary or no backup: {workload:?}")));
        };
        let generation = workload.generation;
        say(&format!("kill {number} of {planned}: the power of {victim} is cut"));
        let dark = cluster.power_off(&victim)?;
        workload = cluster.wait_until(&survivor, &name, "taken over", STEP_LIMIT, |seen| {
            seen.is_primary() && seen.generation > generation
        })?;
        let failover = workload.last_failover;
        all_answered(traffic.stats(), Instant::now());
        let stalls = traffic.stats().stalls_since(dark);
        let longest = stalls.iter().max().copied().unwrap_or_default();
        say(&format!(
            "  {survivor} took over as generation {}; the longest stall of a connection was {} ms",
            workload.generation,
            longest.as_millis()
        ));
        cluster.power_on(&victim)?;
        let powered = Instant::now();
        say(&format!("  {victim} is back, with nothing in memory"));
        workload = protected(cluster, &survivor, &name)?;
        let reprotect = powered.elapsed();
        say(&format!("  protected again after {} ms", reprotect.as_millis()));
        kills.push(Kill { stalls, failover, reprotect });
        show_trouble(traffic.stats(), say);
        traffic.between_kills(&place)?;
    }

    say("reading back everything that was ever acknowledged");
    let report =
        traffic.finish().map_err(|source| ScenarioError::Io { attempt: "run the clients".into(), source })?;
    Ok(Outcome {
        kills: kills.len(),
        connections: report.connections,
        connections_dropped: report.connections_dropped,
        acked_writes: report.acked_writes,
        acked_writes_lost: report.acked_writes_lost,
        wrong_replies: report.wrong_replies,
        stall_ms: Summary::of(
            kills.iter().flat_map(|kill| &kill.stalls).map(|stall| stall.as_millis() as u64).collect(),
        ),
        failover_ms: phases(&kills),
        reprotect_ms: median(kills.iter().map(|kill| kill.reprotect.as_secs_f64() * 1e3).collect()),
        findings: report.findings,
        planned,
    })
}

fn protected(cluster: &Cluster, node: &str, name: &str) -> Result<Workload> {
    let seen = cluster.wait_until(node, name, "protected", STEP_LIMIT, |seen| {
        seen.is_protected() && seen.is_primary() && seen.backup_node.is_some()
    })?;
    let backup = seen.backup_node.as_deref().unwrap_or_default();
    if !NODES.contains(&backup) {
        let what = format!("`outlive inspect` names a backup that is no node: `{backup}`");
        return Err(ScenarioError::Service(what));
    }
    Ok(seen)
}

/// A pair may have come apart by itself: on a machine that is busy with other things, signs of life come late. The
/// workload goes on, exposed, and has to be protected again by itself; a kill before that would be of its only copy.
fn still_protected(cluster: &Cluster, known: Workload, say: &dyn Fn(&str)) -> Result<Workload> {
    let name = known.name.as_str();
    let deadline = Instant::now() + STEP_LIMIT;
    while Instant::now() < deadline {
        for node in NODES {
            let Ok(seen) = cluster.inspect(node, name) else { continue };
            if seen.primary_node.as_deref() != Some(node) {
                continue;
            }
            if seen.is_primary() && seen.is_protected() && seen.backup_node.is_some() {
                return Ok(seen);
            }
            if seen.is_primary() {
                say(&format!("  came apart by itself: exposed on {node} as generation {}", seen.generation));
                return protected(cluster, node, name);
            }
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(ScenarioError::Service(format!("nobody runs {name} any more: {known:?}")))
}

/// Waits until all that are not dropped have had an answer since.
fn all_answered(stats: &Stats, since: Instant) {
    let deadline = Instant::now() + STEP_LIMIT;
    let alive = || stats.connections().saturating_sub(stats.report().connections_dropped as usize);
    while stats.answered_since(since) < alive() && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
    }
}

/// Says what went wrong as soon as it did, and not only at the end.
fn show_trouble(stats: &Stats, say: &dyn Fn(&str)) {
    let report = stats.report();
    if !report.is_clean() {
        say(&format!(
            "  so far {} connections dropped, {} writes lost, {} replies wrong",
            report.connections_dropped, report.acked_writes_lost, report.wrong_replies
        ));
    }
}

/// Tries again and again until something answers.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T> {
    let deadline = Instant::now() + STEP_LIMIT;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(why) if Instant::now() > deadline => {
                return Err(ScenarioError::Service(format!("{what} does not answer: {why}")));
            }
            Err(_) => thread::sleep(LOOK_EVERY),
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
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.04, 2.0]), 2.0);
        assert_eq!(median(vec![1.04]), 1.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
