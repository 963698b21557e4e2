//! A real workload through the command line: started, seen, signalled, its output read, stopped.

mod support;

use std::net::SocketAddr;

use outlive_cluster::{Ask, Attempt, ClusterId};
use outlive_epoch::peer;
use outlive_epoch::setup::{WhenExposed, Workload};
use outlive_net::NetworkConfig;
use outlive_process::launch::Program;
use outlive_stream::rpc::Client;
use outlive_stream::tls::Identity;
use support::{Cluster, PATIENCE, done, refused, text, until};

/// Says something, goes on, and says what it was sent. (In the background and waited for: dash starts a program in the
/// foreground by vfork, and loses a signal that arrives before the child's exec; see `docs/flakes.md`.)
const PROGRAM: &str =
    "trap 'echo hung up' HUP; echo started; echo an error >&2; while :; do sleep 0.1 & wait $!; done";

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
    refused(&cluster.cli("c", &["inspect", "short"]), 4);
    // Another of that name can be started at once, whatever waits for the first one somewhere.
    done(cluster.cli("b", &run(&address, "short")));
    done(cluster.cli("b", &["stop", "short"]));
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

/// What the agent of `to` answers to `from`.
fn ask(cluster: &Cluster, from: &str, to: &str, request: &peer::Request) -> peer::Response {
    let tls = cluster.host(from).disk().join("tls");
    let identity = Identity::load(&tls.join("ca.pem"), &tls.join("node.pem"), &tls.join("node.key")).unwrap();
    let agent = SocketAddr::new(cluster.host(to).address().into(), 7400);
    let asked = cluster.host(from).netns().unwrap().run(|| {
        let mut client = Client::open(identity.connect(agent, to, PATIENCE).unwrap(), PATIENCE).unwrap();
        Ok(peer::call(&mut client, request, PATIENCE).unwrap())
    });
    asked.unwrap()
}

/// Of another version a register would be read for what it is not.
#[test]
fn r2_votes_of_another_version_are_refused_by_name() {
    let cluster = Cluster::new("versions", &["a", "b"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let question = outlive_cluster::Request {
        cluster: ClusterId(1),
        seeds_version: 1,
        attempt: Attempt(2),
        ask: Ask::Prepare { workload: "db".parse().unwrap(), counter: 7 },
    };
    let mut bytes = question.encode().unwrap();
    let answered = ask(&cluster, "a", "b", &peer::Request::Arbitrate(bytes.clone()));
    assert!(matches!(answered, peer::Response::Arbitrated(_)), "{answered:?}");
    // The version comes first.
    bytes[0] += 1;
    let other = bytes[0];
    let answered = ask(&cluster, "a", "b", &peer::Request::Arbitrate(bytes));
    let peer::Response::Refused { reason } = answered else { panic!("{answered:?}") };
    assert!(reason.contains(&format!("speaks version {other} of arbitration")), "{reason}");
}

/// What a primary on `from` would ask of the agent of `to`.
fn host_backup(cluster: &Cluster, from: &str, to: &str, name: &str, address: &str) -> peer::Response {
    let program = Program {
        name: name.to_owned(),
        arguments: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
        directory: "/".to_owned(),
        ..Program::default()
    };
    let workload = Workload {
        name: name.to_owned(),
        program,
        network: NetworkConfig::new(name, vec![address.parse().unwrap()]),
        when_exposed: WhenExposed::Run,
        backup: None,
    };
    ask(
        cluster,
        from,
        to,
        &peer::Request::HostBackup { version: peer::VERSION, workload: Box::new(workload) },
    )
}

#[test]
fn a_backup_without_state_makes_room_and_a_primary_does_not() {
    let cluster = Cluster::new("room", &["a", "b"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());

    let hosting = |response| match response {
        peer::Response::Hosting { listen } => listen,
        other => panic!("{other:?}"),
    };
    let first = hosting(host_backup(&cluster, "b", "a", "db", &address));
    assert_eq!(first.ip(), cluster.host("a").address());
    let before = cluster.json("a", &["inspect", "db", "--json"]);
    assert_eq!((before["role"].as_str(), before["epoch"].as_u64()), (Some("backup"), Some(0)), "{before}");
    let second = hosting(host_backup(&cluster, "b", "a", "db", &address));
    assert_ne!(first, second);
    let after = cluster.json("a", &["inspect", "db", "--json"]);
    assert_ne!(before["supervisor_pid"], after["supervisor_pid"]);

    let free = format!("{}/24", cluster.lab.free_address().unwrap());
    done(cluster.cli("a", &run(&free, "mail")));
    let refusal = host_backup(&cluster, "b", "a", "mail", &free);
    let peer::Response::Refused { reason } = refusal else { panic!("{refusal:?}") };
    assert!(reason.contains("primary of mail is alive here"), "{reason}");
    assert_eq!(cluster.json("a", &["inspect", "mail", "--json"])["state"], "protected");

    for name in ["..", ".hidden", "a/b", ""] {
        let refusal = host_backup(&cluster, "b", "a", name, &free);
        assert!(matches!(refusal, peer::Response::Refused { .. }), "{name:?}: {refusal:?}");
    }
    done(cluster.cli("a", &["stop", "mail"]));
}

#[test]
fn a_failover_is_seen_by_the_command_line() {
    let cluster = Cluster::new("failover", &["a", "b", "c"]);
    let _agents = cluster.start_all();
    cluster.bootstrap();
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    let mut arguments = run(&address, "db");
    arguments.splice(1..1, ["--backup", "b"]);
    done(cluster.cli("a", &arguments));
    // What it said before it was protected is on its first node only.
    let hung_up =
        |times: usize| text(&cluster.cli("b", &["logs", "db"]).stdout).matches("hung up\n").count() == times;
    until("it has begun", || text(&cluster.cli("a", &["logs", "db"]).stdout) == "started\n");
    done(cluster.cli("a", &["kill", "db", "-s", "HUP"]));
    until("its output is on the backup", || hung_up(1));
    let before = cluster.json("a", &["inspect", "db", "--json"])["generation"].as_u64().unwrap();
    cluster.host("a").power_off().unwrap();
    let now = || cluster.json("b", &["inspect", "db", "--json"]);
    until("b has taken over", || now()["role"] == "primary");
    assert!(now()["generation"].as_u64().unwrap() > before);
    until("c protects it", || {
        let row = &cluster.json("b", &["ps", "--json"])[0];
        row["state"] == "protected" && row["backup_node"] == "c"
    });
    done(cluster.cli("b", &["kill", "db", "-s", "HUP"]));
    until("it was signalled", || hung_up(2));
    done(cluster.cli("b", &["stop", "db"]));
}

/// As where it was started with nohup(1): a shell could not even trap such a signal.
#[test]
fn what_an_agent_ignores_its_workloads_do_not() {
    let cluster = Cluster::new("ignored", &["a", "b", "c"]);
    let by = ["env", "--ignore-signal=HUP"];
    let _agents: Vec<_> = ["a", "b", "c"].map(|name| cluster.spawn_by(name, &by)).into();
    for name in ["a", "b", "c"] {
        until("the agent answers", || cluster.cli(name, &["ps"]).status.success());
    }
    cluster.bootstrap();
    let program = "sleep 1000 & child=$!; trap 'echo hung up' HUP; \
                   trap 'kill -HUP $child; wait $child; echo the child: $?' USR1; \
                   echo started; while :; do sleep 0.1 & wait $!; done";
    let address = format!("{}/24", cluster.lab.free_address().unwrap());
    done(cluster.cli(
        "a",
        &["run", "--name", "db", "--ip", &address, "--backup", "b", "--", "/bin/sh", "-c", program],
    ));
    let said = |node: &str, what: &str| text(&cluster.cli(node, &["logs", "db"]).stdout).contains(what);
    until("it has begun", || said("a", "started\n"));
    done(cluster.cli("a", &["kill", "db", "-s", "HUP"]));
    until("it hears what its agent ignores", || said("b", "hung up\n"));
    cluster.host("a").power_off().unwrap();
    until("b has taken over", || cluster.json("b", &["inspect", "db", "--json"])["role"] == "primary");
    done(cluster.cli("b", &["kill", "db", "-s", "USR1"]));
    // 128 and the number of SIGHUP (sh(1)).
    until("so does a program that does by default", || said("b", "the child: 129\n"));
    done(cluster.cli("b", &["stop", "db"]));
}
