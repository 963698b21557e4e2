//! A seed node that lost its history: it has no vote until the others have taught it, and then it has one.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use support::{Cluster, done, refused, until};

const ABC: [&str; 3] = ["a", "b", "c"];
/// How long a backup is watched that must not be granted anything: many of its attempts.
const IN_VAIN: Duration = Duration::from_secs(3);

fn standing(cluster: &Cluster, asked: &str, of: &str) -> String {
    let standings = cluster.standings(asked);
    standings.into_iter().find(|(node, _)| node == of).map(|(_, standing)| standing).unwrap_or_default()
}

/// Ends a node's agent, empties its state directory and starts it again.
fn wipe(cluster: &Cluster, node: &str, agent: &outlive_lab::HostProcess) -> outlive_lab::HostProcess {
    agent.kill().unwrap();
    fs::remove_dir_all(cluster.host(node).disk().join("state")).unwrap();
    cluster.start(node)
}

/// R5, with a seed node that is there and has no history: what it would say counts for nothing.
#[test]
fn r5_a_wiped_seed_node_votes_only_after_it_was_taught() {
    let cluster = Cluster::new("rejoin", &ABC);
    let agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let run = ["run", "--name", "db", "--ip", &address, "--backup", "b", "--", "sleep", "1000"];
    done(cluster.cli("a", &run));
    let agent_of_c = wipe(&cluster, "c", &agents[2]);
    assert_eq!(standing(&cluster, "a", "c"), "blank");
    let row = &cluster.json("b", &["seed", "status", "--json"])[2];
    assert!(row["note"].as_str().unwrap().contains("outlive seed rejoin"), "{row}");

    // The primary's host dies: of three votes there is one.
    cluster.host("a").power_off().unwrap();
    let generation = |node: &str| cluster.json(node, &["inspect", "db", "--json"])["generation"].clone();
    let before = generation("b");
    thread::sleep(IN_VAIN);
    let status = cluster.json("b", &["inspect", "db", "--json"]);
    assert_eq!((&status["role"], &status["generation"]), (&"backup".into(), &before), "{status}");
    let said = refused(&cluster.cli("c", &["seed", "rejoin"]), 3);
    assert!(said.contains("node a") && said.contains("nothing was changed"), "{said}");
    assert_eq!(standing(&cluster, "b", "c"), "blank");

    // Its vote is back with its agent, and the backup has asked again all the time.
    cluster.host("a").power_on().unwrap();
    cluster.start("a");
    until("b has taken over", || cluster.json("b", &["inspect", "db", "--json"])["role"] == "primary");
    assert_ne!(generation("b"), before);

    let said = cluster.json("c", &["seed", "rejoin", "--json"]);
    assert_eq!(said["node"], "c");
    let cluster_of = |row: usize| cluster.json("a", &["seed", "status", "--json"])[row]["cluster"].clone();
    assert_eq!((&said["cluster"], cluster_of(2)), (&cluster_of(0), cluster_of(0)), "{said}");
    assert_eq!(standing(&cluster, "b", "c"), "voting");
    let said = refused(&cluster.cli("c", &["seed", "rejoin"]), 5);
    assert!(said.contains("nothing to rejoin"), "{said}");

    // What it was taught is on its disk; and its vote is needed now, for b dies.
    agent_of_c.kill().unwrap();
    cluster.start("c");
    until("it is protected", || cluster.json("b", &["inspect", "db", "--json"])["state"] == "protected");
    let status = cluster.json("b", &["inspect", "db", "--json"]);
    let successor = status["backup_node"].as_str().unwrap().to_owned();
    let before = status["generation"].as_u64().unwrap();
    cluster.host("b").power_off().unwrap();
    let now = || cluster.json(&successor, &["inspect", "db", "--json"]);
    until("it was taken over", || now()["role"] == "primary");
    assert!(now()["generation"].as_u64().unwrap() > before);
    done(cluster.cli(&successor, &["stop", "db"]));
}

#[test]
fn who_cannot_be_taught_is_told_why() {
    let cluster = Cluster::new("untaught", &ABC);
    let agents = cluster.start_all();
    let said = refused(&cluster.cli("a", &["seed", "rejoin"]), 5);
    assert!(said.contains("outlive seed bootstrap --seeds a,b,c"), "{said}");
    cluster.bootstrap();
    // Two of three: what the cluster agreed on may be on the lost ones only.
    let agents = [wipe(&cluster, "b", &agents[1]), wipe(&cluster, "c", &agents[2])];
    let said = refused(&cluster.cli("c", &["seed", "rejoin"]), 3);
    assert!(said.contains("1 lost their history as well"), "{said}");
    assert_eq!(standing(&cluster, "a", "c"), "blank");

    let named = |seeds: &str| cluster.configure(cluster.host("c"), &format!("seeds = {seeds}"));
    agents[1].kill().unwrap();
    named("[\"a\", \"b\"]");
    cluster.start("c");
    let said = refused(&cluster.cli("c", &["seed", "rejoin"]), 5);
    assert!(said.contains("c is no seed node"), "{said}");
}

#[test]
fn a_single_seed_node_has_nobody_to_teach_it() {
    let cluster = Cluster::new("single", &["a"]);
    let agent = cluster.start("a");
    cluster.bootstrap();
    wipe(&cluster, "a", &agent);
    let said = refused(&cluster.cli("a", &["seed", "rejoin"]), 5);
    assert!(said.contains("nobody can teach it"), "{said}");
}
