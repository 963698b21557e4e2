//! Agents on hosts of their own: how they start, how they begin a cluster, whom they let in, what they refuse.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use nix::sys::signal::Signal;
use outlive_epoch::peer;
use outlive_stream::certificate::{Validity, create_authority, issue};
use outlive_stream::rpc::Client;
use outlive_stream::tls::Identity;
use support::{Cluster, OUTLIVE, PATIENCE, done, path, refused, text, until};

const ABC: [&str; 3] = ["a", "b", "c"];

fn all(standing: &str) -> Vec<(String, String)> {
    ABC.iter().map(|name| ((*name).to_owned(), standing.to_owned())).collect()
}

#[test]
fn a_cluster_begins_once_and_its_votes_survive_the_death_of_an_agent() {
    let cluster = Cluster::new("begin", &ABC);
    let agents = cluster.start_all();
    assert_eq!(cluster.standings("b"), all("blank"));

    let said = refused(&cluster.cli("a", &["seed", "bootstrap", "--seeds", "a,b"]), 2);
    assert!(said.contains("a,b,c"), "{said}");
    cluster.bootstrap();
    assert_eq!(cluster.standings("c"), all("voting"));
    let rows = cluster.json("b", &["seed", "status", "--json"]);
    let clusters: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["cluster"].clone()).collect();
    assert!(clusters[0].is_string() && clusters.iter().all(|cluster| *cluster == clusters[0]), "{rows}");

    let said = refused(&cluster.cli("c", &["seed", "bootstrap", "--seeds", "a,b,c"]), 5);
    assert!(said.contains("already a seed node"), "{said}");

    // Killed: its socket and its lock file stay behind, and are no obstacle.
    agents[1].kill().unwrap();
    assert!(cluster.host("b").disk().join("agent.sock").exists());
    let unreachable: Vec<_> = cluster.standings("a");
    assert_eq!(unreachable[1], ("b".to_owned(), "unreachable".to_owned()));
    cluster.start("b");
    assert_eq!(cluster.standings("a"), all("voting"));
}

#[test]
fn a_cluster_does_not_begin_without_all_its_seed_nodes() {
    let cluster = Cluster::new("missing", &ABC);
    cluster.start("a");
    cluster.start("b");
    let said = refused(&cluster.cli("a", &["seed", "bootstrap", "--seeds", "a,b,c"]), 3);
    assert!(said.contains("node c") && said.contains("all seed nodes must run"), "{said}");
    let standings = cluster.standings("b");
    assert_eq!([&standings[0].1, &standings[1].1], ["blank", "blank"], "nothing was begun");
    let said =
        refused(&cluster.cli("a", &["run", "--name", "db", "--ip", "10.77.0.129/24", "--", "sleep", "1"]), 3);
    assert!(said.contains("node c"), "{said}");
}

#[test]
fn configurations_that_differ_are_found_before_a_cluster_begins() {
    let cluster = Cluster::new("differ", &ABC);
    cluster.configure(cluster.host("c"), "seeds = [\"a\", \"c\"]");
    let _agents = cluster.start_all();
    let said = refused(&cluster.cli("a", &["seed", "bootstrap", "--seeds", "a,b,c"]), 5);
    assert!(said.contains("configuration of c") && said.contains("a,c"), "{said}");
    assert_eq!(cluster.standings("a")[0].1, "blank");
}

#[test]
fn an_agent_ends_in_good_order_and_leaves_no_socket() {
    let cluster = Cluster::new("ends", &["a"]);
    let agent = cluster.start("a");
    let socket = cluster.host("a").disk().join("agent.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600, "root's alone");
    agent.signal(Signal::SIGTERM).unwrap();
    assert!(agent.wait_for(PATIENCE).unwrap().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn a_group_may_use_the_socket_if_it_is_named() {
    let cluster = Cluster::new("group", &["a"]);
    cluster.configure(cluster.host("a"), "control_group = \"daemon\"");
    cluster.start("a");
    let metadata = fs::metadata(cluster.host("a").disk().join("agent.sock")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), group.gid.as_raw());
}

#[test]
fn what_is_wrong_at_the_start_is_said_in_one_line() {
    let cluster = Cluster::new("start", &["a", "b"]);
    let host = cluster.host("a");
    let config = host.disk().join("agent.toml");
    let attempt = || host.exec([OUTLIVE, "agent", "--config", path(&config)]).unwrap();

    let key = host.disk().join("tls/node.key");
    fs::rename(&key, host.disk().join("away")).unwrap();
    assert!(refused(&attempt(), 1).contains("outlive cert node"));
    fs::rename(host.disk().join("away"), &key).unwrap();

    cluster.certify("b", &host.disk().join("tls"));
    assert!(refused(&attempt(), 1).contains("is for node b, and this node is a"));
    cluster.certify("a", &host.disk().join("tls"));

    cluster.configure(host, "state_dir2 = \"/x\"");
    assert!(refused(&attempt(), 2).contains("`state_dir2`"));
    cluster.configure(host, "");

    fs::write(host.disk().join("agent.sock"), "a file of somebody's").unwrap();
    assert!(refused(&attempt(), 1).contains("no socket"));
    fs::remove_file(host.disk().join("agent.sock")).unwrap();

    let elsewhere =
        fs::read_to_string(&config).unwrap().replace("listen = \"10.77.0.1", "listen = \"10.77.0.99");
    fs::write(&config, elsewhere).unwrap();
    assert!(refused(&attempt(), 1).contains("cannot listen on 10.77.0.99"));
    cluster.configure(host, "");

    // A second agent must not take the first one's place.
    let first = cluster.start("a");
    assert!(refused(&attempt(), 5).contains("another agent"));
    done(cluster.cli("a", &["ps"]));
    first.kill().unwrap();
    // Nobody answers at a socket of a dead agent, whatever it was.
    let _ = fs::remove_file(host.disk().join("agent.sock"));
    drop(UnixListener::bind(host.disk().join("agent.sock")).unwrap());
    cluster.start("a");
}

/// R6.
#[test]
fn strangers_are_out() {
    let cluster = Cluster::new("strangers", &["a", "b"]);
    let agents = cluster.start_all();
    cluster.bootstrap();
    let address = SocketAddr::new(cluster.host("a").address().into(), 7400);
    let from = cluster.host("b").netns().unwrap();
    let files = cluster.host("b").disk().join("strange");
    fs::create_dir_all(&files).unwrap();
    let in_files = |name: &str| files.join(name);

    // Somebody who speaks no TLS hears nothing.
    let heard = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut heard = Vec::new();
        let _ = stream.take(4096).read_to_end(&mut heard);
        Ok(heard)
    });
    assert!(!text(&heard.unwrap()).contains("HTTP"));

    // Another cluster's node of the same name.
    let other = create_authority("strangers").unwrap();
    other.write_files(&in_files("ca.pem"), &in_files("ca.key")).unwrap();
    let posing = issue(&other, "b", Validity::days(1)).unwrap();
    posing.write_files(&in_files("node.pem"), &in_files("node.key")).unwrap();
    // It trusts the right authority as well, so that the refusal is the agent's.
    let ca = cluster.authority.join("ca.pem");
    let both = [fs::read(in_files("ca.pem")).unwrap(), fs::read(&ca).unwrap()].concat();
    fs::write(in_files("both.pem"), both).unwrap();
    let stranger =
        Identity::load(&in_files("both.pem"), &in_files("node.pem"), &in_files("node.key")).unwrap();
    let refusal = from.run(|| Ok(stranger.connect(address, "a", PATIENCE).map(drop))).unwrap();
    let said = refusal.unwrap_err().to_string();
    assert!(said.contains("refused this node") && said.contains("another authority"), "{said}");

    // A node of this cluster that the agent's configuration does not name.
    cluster.certify("x", &in_files("x"));
    let unknown = Identity::load(&ca, &in_files("x/node.pem"), &in_files("x/node.key")).unwrap();
    let refusal = from.run(|| {
        let connection = unknown.connect(address, "a", PATIENCE).expect("it is of this cluster");
        Ok(Client::open(connection, PATIENCE).map(drop))
    });
    assert!(refusal.unwrap().unwrap_err().to_string().contains("[[peers]]"));

    // A node that it does name may ask, and gets no further than the words it knows.
    let tls = cluster.host("b").disk().join("tls");
    let known = Identity::load(&ca, &tls.join("node.pem"), &tls.join("node.key")).unwrap();
    let asked = from.run(|| {
        let connection = known.connect(address, "a", PATIENCE).expect("b is known");
        let mut client = Client::open(connection, PATIENCE).expect("b may ask");
        let garbage = client.call(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Instant::now() + PATIENCE);
        let status = peer::Request::Status { name: "../../etc".to_owned() };
        Ok((garbage.expect("an answer"), peer::call(&mut client, &status, PATIENCE)))
    });
    let (garbage, status) = asked.unwrap();
    assert!(text(&garbage).contains("not understood"), "{garbage:?}");
    assert_eq!(status.unwrap(), peer::Response::Status(None));

    // It lives, and serves those who may.
    assert!(agents[0].try_wait().unwrap().is_none());
    assert_eq!(cluster.standings("b")[0], ("a".to_owned(), "voting".to_owned()));
}

#[test]
fn an_unknown_workload_is_code_4() {
    let cluster = Cluster::new("unknown", &["a"]);
    cluster.start("a");
    cluster.bootstrap();
    for command in ["inspect", "logs", "stop", "kill"] {
        let said = refused(&cluster.cli("a", &[command, "nothing"]), 4);
        assert!(said.contains("no workload nothing"), "{said}");
        refused(&cluster.cli("a", &[command, "../etc"]), 2);
    }
    assert_eq!(cluster.json("a", &["ps", "--json"]), serde_json::json!([]));
}

#[test]
fn a_workload_that_cannot_run_is_refused_and_leaves_nothing() {
    let cluster = Cluster::new("refuse", &["a", "b"]);
    let _agents = cluster.start_all();
    let run = |more: &[&str], command: &[&str]| {
        let mut arguments = vec!["run", "--name", "db"];
        if !more.contains(&"--ip") {
            arguments.extend(["--ip", "10.77.0.129/24"]);
        }
        arguments.extend(more);
        arguments.push("--");
        arguments.extend(command);
        cluster.cli("a", &arguments)
    };
    let sleep = ["sleep", "1000"];
    let said = refused(&run(&[], &sleep), 5);
    assert!(said.contains("outlive seed bootstrap --seeds a,b"), "{said}");
    cluster.bootstrap();

    // The host's disk is under /run, of which a workload has its own.
    let hidden = cluster.host("a").disk().join("program");
    fs::copy("/bin/true", &hidden).unwrap();
    let cases: [(&[&str], &[&str], i32, &str); 16] = [
        (&[], &["no-such-program"], 2, "install it"),
        (&[], &["/no/such/program"], 2, "install it"),
        (&[], &["/etc/passwd"], 2, "chmod"),
        (&[], &[path(&hidden)], 2, "own, empty /run"),
        (&["--user", "no-such-user"], &sleep, 2, "no such user"),
        (&["--scratch", "/no/such/directory"], &sleep, 2, "make it on every node"),
        (&["--scratch", "/proc/x"], &sleep, 2, "kernel's"),
        (&["--scratch", "/srv/../etc"], &sleep, 2, ".."),
        (&["--cwd", "/no/such/directory"], &sleep, 2, "--cwd"),
        (&["--cwd", "relative"], &sleep, 2, "absolute"),
        (&["--backup", "z"], &sleep, 2, "no peer"),
        (&["--mtu", "9000"], &sleep, 1, "MTU"),
        (&["--ip", "127.0.0.1/8"], &sleep, 2, "loopback"),
        (&["--route", "default=192.0.2.1"], &sleep, 2, "none of its networks"),
        (&["--ip", "10.77.0.2/24"], &sleep, 5, "in use"),
        (&["--ip", "10.77.0.1/24"], &sleep, 5, "in use"),
    ];
    for (more, command, code, hint) in cases {
        let said = refused(&run(more, command), code);
        assert!(said.contains(hint), "{more:?} {command:?}: {said}");
        cluster.assert_nothing_left("a");
    }
    let said =
        refused(&cluster.cli("a", &["run", "--name", ".hidden", "--ip", "10.77.0.129/24", "--", "sleep"]), 2);
    assert!(said.contains("begin it with"), "{said}");
}

#[test]
fn a_missing_bridge_is_named() {
    let cluster = Cluster::new("bridge", &["a"]);
    cluster.configure(cluster.host("a"), "bridge = \"br9\"");
    cluster.start("a");
    cluster.bootstrap();
    let run = ["run", "--name", "db", "--ip", "10.77.0.129/24", "--", "sleep", "1000"];
    let said = refused(&cluster.cli("a", &run), 1);
    assert!(said.contains("no bridge `br9`") && said.contains("ip link add"), "{said}");
    cluster.assert_nothing_left("a");
}

#[test]
fn a_full_state_directory_is_said() {
    let cluster = Cluster::new("full", &["a"]);
    let host = cluster.host("a");
    let state = host.disk().join("state");
    fs::create_dir_all(&state).unwrap();
    done(host.exec(["mount", "-t", "tmpfs", "-o", "size=24m", "none", path(&state)]).unwrap());
    cluster.start("a");
    cluster.bootstrap();
    done(
        host.exec(["dd", "if=/dev/zero", &format!("of={}/big", path(&state)), "bs=1M", "count=15"]).unwrap(),
    );
    let run = ["run", "--name", "db", "--ip", "10.77.0.129/24", "--", "sleep", "1000"];
    let said = refused(&cluster.cli("a", &run), 1);
    assert!(said.contains("is full"), "{said}");
}

/// A flood of connections that say nothing must not keep others from being served.
#[test]
fn silent_connections_do_not_block_others() {
    let cluster = Cluster::new("silent", &["a", "b"]);
    let _agents = cluster.start_all();
    let address = SocketAddr::new(cluster.host("a").address().into(), 7400);
    let from = cluster.host("b").netns().unwrap();
    let silent: Vec<_> =
        (0..50).map(|_| from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap()).collect();
    until("b is answered", || cluster.standings("b")[0] == ("a".to_owned(), "blank".to_owned()));
    drop(silent);
}

/// What a workload's frames meet: another node is asked by a MAC that is nobody's.
#[test]
fn check_asks_the_network_whether_it_carries_foreign_mac_addresses() {
    let cluster = Cluster::new("macs", &["a", "b"]);
    let config = cluster.host("a").disk().join("agent.toml");
    let line = || {
        let said = cluster.host("a").exec([OUTLIVE, "check", "--json", "--config", path(&config)]).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        let lines = report["lines"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == "MAC addresses").unwrap().clone()
    };
    let said = line();
    assert!(said["verdict"] == "ok" && said["found"].as_str().unwrap().starts_with("b answers"), "{said}");
    cluster.host("b").power_off().unwrap();
    let said = line();
    assert!(said["verdict"] == "note" && said["found"].as_str().unwrap().contains("b does not"), "{said}");
}
