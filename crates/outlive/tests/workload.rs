//! A real workload through the command line: started, seen, signalled, its output read, stopped.

mod support;

use std::fs;

use support::{Cluster, done, refused, text, until};

/// Says something, goes on saying it, and says what it was sent.
const PROGRAM: &str = "trap 'echo hung up' HUP; echo started; echo an error >&2; while :; do sleep 0.1; done";

fn run<'a>(address: &'a str, name: &'a str) -> Vec<&'a str> {
    vec!["run", "--name", name, "--ip", address, "--", "/bin/sh", "-c", PROGRAM]
}

#[test]
fn a_workload_is_started_seen_signalled_and_stopped() {
    let cluster = Cluster::new("whole", &["a", "b", "c"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let said = done(cluster.cli("a", &run(&address, "db")));
    assert!(said.contains("db is protected by"), "{said}");

    let row = &cluster.json("a", &["ps", "--json"])[0];
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some("db"), Some("protected")), "{row}");
    assert_eq!((row["here"].as_str(), row["primary_node"].as_str()), (Some("primary"), Some("a")), "{row}");
    let backup = row["backup_node"].as_str().unwrap().to_owned();
    let row = &cluster.json(&backup, &["ps", "--json"])[0];
    assert_eq!((row["state"].as_str(), row["here"].as_str()), (Some("protected"), Some("backup")), "{row}");
    // From any node, also one that has nothing of it.
    let other = if backup == "b" { "c" } else { "b" };
    assert_eq!(cluster.json(other, &["inspect", "db", "--json"])["role"], "primary");
    assert!(done(cluster.cli("a", &["inspect", "db"])).contains("LAST 1000 CHECKPOINTS"));

    until("its output is in the log", || {
        let logs = cluster.cli("a", &["logs", "db"]);
        text(&logs.stdout) == "started\n" && text(&logs.stderr) == "an error\n"
    });
    done(cluster.cli("a", &["kill", "db", "-s", "HUP"]));
    until("it was signalled", || text(&cluster.cli("a", &["logs", "db"]).stdout).contains("hung up"));

    // Taken, on every node, while it lives.
    let free = format!("{}/24", cluster.lab.free_address().unwrap());
    for node in ["a", "b", "c"] {
        let said = refused(&cluster.cli(node, &run(&free, "db")), 5);
        assert!(said.contains("db is taken"), "{said}");
    }
    let said = refused(&cluster.cli("a", &run(&address, "other")), 5);
    assert!(said.contains("in use"), "{said}");
    let said = refused(&cluster.cli(other, &["stop", "db"]), 5);
    assert!(said.contains("on node a"), "{said}");

    done(cluster.cli("a", &["stop", "db"]));
    refused(&cluster.cli("a", &["inspect", "db"]), 4);
    until("no node has it", || {
        ["a", "b", "c"].iter().all(|node| cluster.json(node, &["ps", "--json"]) == serde_json::json!([]))
    });
    // Its name, its address and its output are still of use.
    assert!(text(&cluster.cli("a", &["logs", "db"]).stdout).contains("started"));
    done(cluster.cli("b", &run(&address, "db")));
    done(cluster.cli("b", &["stop", "db"]));
}

#[test]
fn a_workload_goes_on_while_agents_are_restarted() {
    let cluster = Cluster::new("restart", &["a", "b", "c"]);
    let agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    done(cluster.cli("a", &run(&address, "db")));
    let before = cluster.json("a", &["inspect", "db", "--json"]);
    for (agent, name) in agents.iter().zip(["a", "b", "c"]) {
        agent.kill().unwrap();
        cluster.start(name);
    }
    let after = cluster.json("a", &["inspect", "db", "--json"]);
    for key in ["generation", "incarnation", "supervisor_pid", "init_pid", "state"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    done(cluster.cli("a", &["stop", "db"]));
}

#[test]
fn a_program_that_ends_is_told_apart_from_one_that_runs() {
    let cluster = Cluster::new("short", &["a", "b", "c"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let short = ["run", "--name", "short", "--ip", &address, "--", "/bin/sh", "-c", "echo bye; exit 3"];
    let said = refused(&cluster.cli("a", &short), 1);
    assert!(said.contains("short ended before it was protected"), "{said}");
    assert_eq!(text(&cluster.cli("a", &["logs", "short"]).stdout), "bye\n");
    assert!(fs::read_dir(cluster.host("a").disk().join("state/workloads/short")).is_ok());
}

/// Both sides die with their hosts: nobody may pretend that the workload lives, and its name is given free only when
/// an operator says so.
#[test]
fn a_workload_whose_copies_both_died_is_lost() {
    let cluster = Cluster::new("lost", &["a", "b", "c"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let mut arguments = run(&address, "db");
    arguments.splice(1..1, ["--backup", "b"]);
    done(cluster.cli("a", &arguments));
    for name in ["a", "b"] {
        cluster.host(name).power_off().unwrap();
    }
    for name in ["a", "b"] {
        cluster.host(name).power_on().unwrap();
        cluster.start(name);
    }
    let status = cluster.json("c", &["inspect", "db", "--json"]);
    assert_eq!(status["state"], "lost", "{status}");
    let row = &cluster.json("a", &["ps", "--json"])[0];
    assert_eq!((row["state"].as_str(), row["here"].as_str()), (Some("lost"), Some("nothing")), "{row}");
    let said = refused(&cluster.cli("c", &run(&address, "db")), 5);
    assert!(said.contains("db is taken"), "{said}");
    done(cluster.cli("c", &["stop", "db"]));
    refused(&cluster.cli("a", &["inspect", "db"]), 4);
}
