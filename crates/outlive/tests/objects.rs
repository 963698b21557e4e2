//! Every object program of crate `process`, through the death of its host, then of the host that took over, then asked for
//! its verdict. Many run side by side, each a workload of its own on the same hosts.
//!
//! `OUTLIVE_OBJECTS=memory/` runs only those with that in their names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use outlive_lab::cluster::{Cluster, NODES, Start};
use outlive_lab::objects::{self, ObjectProgram, Status, Verdict};
use serde_json::Value;

const OUTLIVE: &str = env!("CARGO_BIN_EXE_outlive");
/// Workloads at once on a host: two supervisors each, on machines with as little as two processors.
const SIDE_BY_SIDE: usize = 16;
/// Only a failing program waits it out.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// All of a machine may stand still for longer than the default when so much runs side by side.
const DETECTION_MS: u32 = 300;
/// For how long an object is used between a first copy and the next death.
const BUSY: Duration = Duration::from_millis(300);

/// Of a log, for a fault.
const LOG_LINES: usize = 12;
/// What is refused is looked at again after 1 s (`FIRST` in crates/epoch/src/primary/exposed.rs): by then it was.
const LOOKED_AT_AGAIN: Duration = Duration::from_millis(1500);
/// Those that run with all other tests: of each section what hosts have of their own, or differ in.
const SOME: [&str; 16] = [
    "calls/clock_nanosleep_until",
    "descriptors/inotify_files",
    "descriptors/pidfd_living",
    "files/lease",
    "files/names",
    "ipc/semaphore_undo",
    "memory/scratch_mapped",
    "memory/shared_orphaned",
    "network/tcp_half_closed",
    "network/udp_multicast",
    "processes/daemons",
    "signals/queued",
    "terminals/session",
    "threads/own_attributes",
    "timers/posix_realtime",
    "unix/in_flight_nested",
];

struct Running<'a> {
    object: &'a ObjectProgram,
    name: String,
}

/// What went wrong, by the name of the object.
type Faults = BTreeMap<String, String>;

#[test]
#[ignore = "minutes: cargo test -p outlive --test objects -- --ignored"]
fn every_object_goes_on_over_two_deaths_of_its_host() {
    let wanted = std::env::var("OUTLIVE_OBJECTS").unwrap_or_default();
    let mut programs = all();
    programs.retain(|program| program.name.contains(&wanted));
    assert!(!programs.is_empty(), "no object program has `{wanted}` in its name");
    put_through(&programs);
}

#[test]
fn some_objects_of_each_section_go_on_over_two_deaths_of_their_host() {
    let mut programs = all();
    programs.retain(|program| SOME.contains(&program.name.as_str()));
    assert_eq!(programs.len(), SOME.len(), "some of {SOME:?} is no object program");
    let sections = |programs: &[ObjectProgram]| -> BTreeSet<String> {
        programs.iter().map(|program| program.section.clone()).collect()
    };
    assert_eq!(sections(&programs), sections(&all()), "a section is not there");
    put_through(&programs);
}

fn all() -> Vec<ObjectProgram> {
    objects::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../process/tests/objects")).unwrap()
}

fn put_through(programs: &[ObjectProgram]) {
    let binaries = tempfile::Builder::new().prefix("outlive-objects-").tempdir_in("/var/tmp").unwrap();
    let mut faults = Faults::new();
    for batch in programs.chunks(SIDE_BY_SIDE) {
        let begun = Instant::now();
        let found = Batch::run(batch, binaries.path());
        println!(
            "{} programs in {:.1} s, {} faults",
            batch.len(),
            begun.elapsed().as_secs_f64(),
            found.len()
        );
        faults.extend(found);
    }
    let told: String = faults.iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
    assert!(faults.is_empty(), "{} of {} objects:{told}", faults.len(), programs.len());
}

struct Batch<'a> {
    cluster: Cluster,
    running: Vec<Running<'a>>,
    faults: Faults,
}

impl<'a> Batch<'a> {
    fn run(programs: &'a [ObjectProgram], binaries: &Path) -> Faults {
        let cluster = Cluster::start_detecting("objects", Path::new(OUTLIVE), DETECTION_MS).unwrap();
        let mut batch = Batch { cluster, running: Vec::new(), faults: Faults::new() };
        for (number, object) in programs.iter().enumerate() {
            match object.compile(binaries) {
                Ok(path) => batch.start(object, &format!("o{number}"), path),
                Err(error) => batch.fault(object, error.to_string()),
            }
        }
        batch.wait("say that it is ready", &["a"], |batch, running, _| {
            batch.output("a", running).contains(objects::READY)
        });
        batch.wait("be protected, or refused by name", &NODES, |_, running, row| {
            match &running.object.status {
                Status::Refused(word) => {
                    row["note"].as_str().is_some_and(|note| note.contains(word.as_str()))
                }
                _ => row["state"] == "protected",
            }
        });
        batch.ask_refused();
        for dead in ["a", "b"] {
            thread::sleep(BUSY);
            if batch.running.is_empty() {
                break;
            }
            batch.gather(dead);
            batch.fail_over(dead);
        }
        // The last ones are on a or c.
        batch.verdicts();
        batch.faults
    }

    fn start(&mut self, object: &'a ObjectProgram, name: &str, path: PathBuf) {
        let path = path.to_string_lossy();
        let mut options = vec!["--detach"];
        options.extend(object.user.iter().flat_map(|user| ["--user", user.as_str()]));
        let address = self.cluster.lab().free_address().unwrap();
        let start =
            Start { name, node: "a", backup: Some("b"), address, options: &options, command: &[&path] };
        match self.cluster.run(&start) {
            Ok(()) => self.running.push(Running { object, name: name.to_owned() }),
            Err(error) => self.fault(object, error.to_string()),
        }
    }

    fn fault(&mut self, object: &ObjectProgram, why: String) {
        self.faults.entry(object.name.clone()).or_insert(why);
    }

    fn output(&self, node: &str, running: &Running<'_>) -> String {
        self.cluster.command(node, &["logs", &running.name]).unwrap_or_default()
    }

    /// The end of what its supervisors have said.
    fn logs(&self, name: &str) -> String {
        let mut text = String::new();
        for node in NODES {
            let disk = self.cluster.host(node).unwrap().disk();
            let log = disk.join("state/workloads").join(name).join("supervisor.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                text.push_str(&format!("\n    {node}: {line}"));
            }
        }
        text
    }

    /// What nodes say of all workloads that they have a side of, by their names. The primary knows most.
    fn rows(&self, nodes: &[&str]) -> BTreeMap<String, Value> {
        let mut rows: BTreeMap<String, Value> = BTreeMap::new();
        for node in nodes {
            let listed = self.cluster.command(node, &["ps", "--json"]).unwrap_or_default();
            for row in serde_json::from_str::<Vec<Value>>(&listed).unwrap_or_default() {
                let Some(name) = row["name"].as_str().map(str::to_owned) else { continue };
                if row["here"] == "primary" || !rows.contains_key(&name) {
                    rows.insert(name, row);
                }
            }
        }
        rows
    }

    /// Waits until all are so, as these nodes see it. Those that are not in the end are at fault, and out.
    fn wait(&mut self, what: &str, nodes: &[&str], so: impl Fn(&Self, &Running<'_>, &Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut left: Vec<usize> = (0..self.running.len()).collect();
        let mut rows = BTreeMap::new();
        while !left.is_empty() && Instant::now() < deadline {
            rows = self.rows(nodes);
            let nothing = Value::Null;
            left.retain(|index| {
                let running = &self.running[*index];
                !so(self, running, rows.get(&running.name).unwrap_or(&nothing))
            });
            thread::sleep(POLL);
        }
        for index in left.into_iter().rev() {
            let running = self.running.remove(index);
            let output = ["a", "b", "c"].map(|node| self.output(node, &running)).concat();
            let why = match objects::verdict(&output) {
                Some(Verdict::Fail(why)) => why,
                _ => format!(
                    "it did not {what}; of it is said {:?}; it said {output:?}; its supervisors:{}",
                    rows.get(&running.name),
                    self.logs(&running.name)
                ),
            };
            self.fault(running.object, why);
        }
    }

    /// What is refused goes on, and dies with its host: it is asked before.
    fn ask_refused(&mut self) {
        let (refused, kept) =
            self.running.drain(..).partition(|running| matches!(running.object.status, Status::Refused(_)));
        self.running = refused;
        if !self.running.is_empty() {
            thread::sleep(LOOKED_AT_AGAIN);
        }
        self.verdicts();
        self.running = kept;
    }

    /// All speak from the node that is about to die: on a busy machine some have changed hosts by themselves.
    fn gather(&mut self, node: &str) {
        self.wait("be protected on the node that dies next", &NODES, |batch, running, row| {
            let Some(at) = row["primary_node"].as_str() else { return false };
            if row["state"] == "protected" && at != node {
                // One that is refused is asked for again.
                let _ = batch.cluster.command(at, &["switchover", &running.name, "--to", node]);
            }
            row["state"] == "protected" && at == node
        });
    }

    fn fail_over(&mut self, dead: &str) {
        self.cluster.power_off(dead).unwrap();
        let alive: Vec<&str> = NODES.into_iter().filter(|node| *node != dead).collect();
        self.wait("be taken over", &alive, |_, _, row| {
            row["primary_node"].as_str().is_some_and(|node| node != dead) && row["state"] != "lost"
        });
        self.cluster.power_on(dead).unwrap();
        self.wait("be protected again", &alive, |_, _, row| {
            row["state"] == "protected" && row["primary_node"].as_str() != Some(dead)
        });
    }

    /// Asks all for their verdicts, wherever they are: on a busy machine one may change hosts by itself.
    fn verdicts(&mut self) {
        self.wait("give a verdict", &NODES, |batch, running, row| {
            let Some(node) = row["primary_node"].as_str() else { return false };
            // What it does not hear is seen by its verdict.
            let _ = batch.cluster.command(node, &["kill", &running.name, "-s", "USR1"]);
            objects::verdict(&batch.output(node, running)) == Some(Verdict::Pass)
        });
        let rows = self.rows(&NODES);
        for running in std::mem::take(&mut self.running) {
            let node = rows.get(&running.name).and_then(|row| row["primary_node"].as_str()).unwrap_or("a");
            if let Err(error) = self.cluster.command(node, &["stop", &running.name]) {
                self.fault(running.object, error.to_string());
            }
        }
    }
}
