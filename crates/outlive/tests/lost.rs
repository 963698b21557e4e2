//! A workload whose last node is dead and cannot be asked: an operator's word gives its name free, and nothing else does.

mod support;

use support::{Cluster, done, refused, text, until};

#[test]
fn a_lost_workload_is_cleared_on_an_operators_word_for_the_dead_node() {
    let cluster = Cluster::new("vouch", &["a", "b", "c"]);
    // c has a vote and no bridge for workloads, so that the primary finds no other backup than b.
    cluster.configure(cluster.host("c"), "bridge = \"br9\"");
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let run = ["run", "--name", "db", "--ip", &address, "--", "sleep", "1000"];
    done(cluster.cli("a", &run));
    // Not of a workload that lives, whoever is said to be dead.
    let said = refused(&cluster.cli("a", &["stop", "db", "--dead", "b"]), 5);
    assert!(said.contains("not lost"), "{said}");
    refused(&cluster.cli("c", &["stop", "db", "--dead", "b"]), 5);

    cluster.host("b").power_off().unwrap();
    until("it is exposed", || cluster.json("a", &["inspect", "db", "--json"])["state"] == "exposed");
    cluster.host("a").power_off().unwrap();
    // Without a majority nobody's word is of any use.
    refused(&cluster.cli("c", &["stop", "db", "--dead", "a,b"]), 3);
    cluster.host("b").power_on().unwrap();
    cluster.start("b");

    for command in [&["inspect", "db"][..], &["stop", "db"]] {
        let said = refused(&cluster.cli("c", command), 3);
        assert!(said.contains("node a") && said.contains("outlive stop db --dead a"), "{said}");
    }
    let said = refused(&cluster.cli("c", &["stop", "db", "--dead", "a,b"]), 5);
    assert!(said.contains("node b answers"), "{said}");
    refused(&cluster.cli("c", &["stop", "db", "--dead", "z"]), 2);
    refused(&cluster.cli("c", &["stop", "db", "--dead", "c"]), 2);
    refused(&cluster.cli("c", &["stop", "nothing", "--dead", "a"]), 4);
    let said = refused(&cluster.cli("b", &[&["run", "--detach"], &run[1..]].concat()), 5);
    assert!(said.contains("db is taken"), "{said}");

    let output = cluster.cli("c", &["stop", "db", "--dead", "a"]);
    assert!(text(&output.stderr).contains("on your word that a is dead"));
    done(output);
    refused(&cluster.cli("c", &["inspect", "db"]), 4);
    done(cluster.cli("b", &[&["run", "--detach"], &run[1..]].concat()));

    // The dead node comes back all the same, with nothing in memory, and is of use.
    cluster.host("a").power_on().unwrap();
    cluster.start("a");
    until("it is protected", || cluster.json("b", &["inspect", "db", "--json"])["backup_node"] == "a");
    done(cluster.cli("b", &["stop", "db"]));
}

/// From nothing, as it was first started, on whichever node can: only when nobody has it, or somebody vouches for who is silent.
#[test]
fn a_lost_workload_is_started_anew_on_an_operators_word() {
    let cluster = Cluster::new("anew", &["a", "b", "c"]);
    // c has a vote and no bridge for workloads.
    cluster.configure(cluster.host("c"), "bridge = \"br9\"");
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let script = "echo life $LIFE; exec sleep 1000";
    let run = ["run", "--name", "db", "--ip", &address, "--env", "LIFE=one", "--", "sh", "-c", script];
    done(cluster.cli("a", &run));
    let before = cluster.json("a", &["inspect", "db", "--json"])["generation"].as_u64().unwrap();
    for node in ["a", "b", "c"] {
        let said = refused(&cluster.cli(node, &["restart-lost", "db"]), 5);
        assert!(said.contains("not lost"), "{said}");
    }
    refused(&cluster.cli("c", &["restart-lost", "nothing"]), 4);

    // The backup first, so that it has nothing to take over; then the only copy.
    cluster.host("b").power_off().unwrap();
    until("it is exposed", || cluster.json("a", &["inspect", "db", "--json"])["state"] == "exposed");
    cluster.host("a").power_off().unwrap();
    cluster.host("b").power_on().unwrap();
    cluster.start("b");
    // a does not answer, and nobody has said that it is dead.
    let said = refused(&cluster.cli("c", &["restart-lost", "db"]), 3);
    assert!(said.contains("node a"), "{said}");
    let said = refused(&cluster.cli("c", &["restart-lost", "db", "--dead", "a,b"]), 5);
    assert!(said.contains("node b answers"), "{said}");
    // On a node that cannot: what is lost stays lost.
    refused(&cluster.cli("c", &["restart-lost", "db", "--dead", "a", "--on", "c"]), 1);
    let said = done(cluster.cli("c", &["restart-lost", "db", "--dead", "a"]));
    assert!(said.contains("db runs on b"), "{said}");
    until("it has begun", || done(cluster.cli("b", &["logs", "db"])).contains("life one"));
    let after = cluster.json("b", &["inspect", "db", "--json"]);
    assert!(after["generation"].as_u64().unwrap() > before, "{after}");
    refused(&cluster.cli("c", &["restart-lost", "db", "--dead", "a"]), 5);

    cluster.host("a").power_on().unwrap();
    cluster.start("a");
    until("it is protected", || cluster.json("b", &["inspect", "db", "--json"])["backup_node"] == "a");
    done(cluster.cli("b", &["stop", "db"]));
}
