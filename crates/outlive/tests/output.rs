//! What a workload writes to its standard output is an effect like any other (R1); what it uses decides whether it is
//! protected (R3).

mod support;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{SysconfVar, sysconf};
use outlive_lab::Direction;
use support::{Cluster, done, text, until};

/// Says what it is told to on a signal, and ends on another.
const PROGRAM: &str = "trap 'echo a line' HUP; trap 'echo the last line; exit 7' USR1; echo started; \
                       while :; do sleep 0.1 & wait $!; done";

/// A busy machine is not to look like a dead host: what is tested is what is said, not how soon.
fn patient(cluster: &Cluster) {
    cluster.hosts.iter().for_each(|host| cluster.configure(host, "detection_ms = 1000"));
}

fn run(cluster: &Cluster, program: &[&str]) {
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let before = ["run", "--name", "db", "--ip", &address, "--backup", "b", "--"];
    done(cluster.cli("a", &[&before, program].concat()));
    // Before it has said what it does on a signal, a signal ends it.
    until("it has begun", || lines(cluster, "a", "started") == 1);
}

fn lines(cluster: &Cluster, node: &str, line: &str) -> usize {
    let logs = text(&cluster.cli(node, &["logs", "db"]).stdout);
    logs.lines().filter(|said| *said == line).count()
}

/// The node's own file: what its supervisor has written, whoever answers.
fn written(cluster: &Cluster, node: &str, line: &str) -> bool {
    let file = cluster.host(node).disk().join("state/workloads/db/output.log");
    let bytes = std::fs::read(file).unwrap_or_default();
    bytes.windows(line.len()).any(|window| window == line.as_bytes())
}

#[test]
fn r1_output_rule_a_line_is_written_only_when_it_is_committed() {
    let cluster = Cluster::new("lines", &["a", "b", "c"]);
    patient(&cluster);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    run(&cluster, &["/bin/sh", "-c", PROGRAM]);
    done(cluster.cli("a", &["kill", "db", "-s", "HUP"]));
    until("the first line is on both nodes", || {
        ["a", "b"].iter().all(|node| written(&cluster, node, "a line"))
    });
    // Nobody can commit any more, nor say that the primary may go on alone.
    for other in ["b", "c"] {
        cluster.lab.cut(cluster.host("a"), cluster.host(other), Direction::Both).unwrap();
    }
    until("the backup has taken over", || {
        cluster.json("b", &["inspect", "db", "--json"])["role"] == "primary"
    });
    let before = std::fs::read(cluster.host("a").disk().join("state/workloads/db/output.log")).unwrap();
    // It may have ended already: then nobody can be told.
    cluster.cli("a", &["kill", "db", "-s", "HUP"]);
    std::thread::sleep(Duration::from_secs(1));
    let after = std::fs::read(cluster.host("a").disk().join("state/workloads/db/output.log")).unwrap();
    assert!(before == after, "the primary that is cut off has written output that nobody has committed");
    done(cluster.cli("b", &["kill", "db", "-s", "HUP"]));
    until("the new primary goes on", || lines(&cluster, "b", "a line") == 2);
    done(cluster.cli("b", &["stop", "db"]));
}

#[test]
fn r1_output_rule_the_last_words_of_a_workload_are_on_both_nodes_once() {
    let cluster = Cluster::new("last", &["a", "b", "c"]);
    patient(&cluster);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    run(&cluster, &["/bin/sh", "-c", PROGRAM]);
    done(cluster.cli("a", &["kill", "db", "-s", "USR1"]));
    until("no node has it", || {
        ["a", "b"].iter().all(|node| cluster.json(node, &["ps", "--json"]) == serde_json::json!([]))
    });
    for node in ["a", "b"] {
        assert!(written(&cluster, node, "the last line"), "node {node}");
        assert_eq!(lines(&cluster, node, "the last line"), 1, "node {node}");
    }
}

#[test]
fn r3_a_refusal_ends_protection_for_as_long_as_its_reason_lasts() {
    let cluster = Cluster::new("refusal", &["a", "b", "c"]);
    patient(&cluster);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    // AF_VSOCK: nothing captures it.
    let program = "\
import signal, socket, time
held = []
signal.signal(signal.SIGHUP, lambda *_: held.append(socket.socket(40, socket.SOCK_STREAM)))
signal.signal(signal.SIGUSR1, lambda *_: held.pop().close())
print('started', flush=True)
while True: time.sleep(0.05)";
    run(&cluster, &["/usr/bin/python3", "-c", program]);
    let status = || cluster.json("a", &["inspect", "db", "--json"]);
    done(cluster.cli("a", &["kill", "db", "-s", "HUP"]));
    until("it is exposed, and says why", || {
        let status = status();
        let why = status["exposed_because"].as_str().unwrap_or_default().to_owned();
        status["state"] == "exposed" && why.contains("family 40")
    });
    // Looked at again and again: never protected, and no backup is bothered.
    for _ in 0..30 {
        let status = status();
        assert_eq!((&status["state"], &status["backup_node"]), (&"exposed".into(), &serde_json::Value::Null));
        std::thread::sleep(Duration::from_millis(100));
    }
    done(cluster.cli("a", &["kill", "db", "-s", "USR1"]));
    until("it is protected again", || status()["state"] == "protected");
    done(cluster.cli("a", &["stop", "db"]));
}

/// The thread of the workload's supervisor on this node that traces, in /proc.
fn tracer(cluster: &Cluster, node: &str) -> PathBuf {
    let socket = cluster.host(node).disk().join("state/workloads/db/supervisor.sock");
    let supervisor = UnixStream::connect(socket).unwrap();
    let pid = getsockopt(&supervisor, sockopt::PeerCredentials).unwrap().pid();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let is_it =
        |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "tracer\n");
    tasks.map(|task| task.unwrap().path()).find(is_it).expect("a supervisor has a tracer")
}

/// Seconds of processor time that a thread has had (proc_pid_stat(5): user and system time, in ticks).
fn worked(thread: &Path) -> f64 {
    let stat = std::fs::read_to_string(thread.join("stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64
}

/// It is a real-time thread: two of them that look again and again whether there is something to do leave a machine with two
/// processors to nobody, not even to the threads that bring what they wait for.
#[test]
fn a_tracer_sleeps_while_output_waits_for_a_checkpoint() {
    let cluster = Cluster::new("idle", &["a", "b", "c"]);
    patient(&cluster);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    run(&cluster, &["/bin/sh", "-c", "echo started; while :; do echo a line; sleep 0.02; done"]);
    until("lines are committed", || lines(&cluster, "b", "a line") > 0);
    let tracer = tracer(&cluster, "a");
    let (begun, before) = (Instant::now(), worked(&tracer));
    std::thread::sleep(Duration::from_secs(2));
    let share = (worked(&tracer) - before) / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "the tracer has worked for {:.0} % of the time", 100.0 * share);
    done(cluster.cli("a", &["stop", "db"]));
}
