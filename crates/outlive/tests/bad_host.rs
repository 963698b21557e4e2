//! Hosts that cannot run a workload, or not all of it: said in one line with a next step, and nothing is left behind.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outlive_lab::HostProcess;
use support::{Cluster, OUTLIVE, done, path, refused, text, until};

const RUN: [&str; 7] = ["run", "--name", "db", "--ip", "10.77.0.129/24", "--timeout", "5"];

fn run(cluster: &Cluster, more: &[&str]) -> Output {
    cluster.cli("a", &[&RUN[..], more, &["--", "sleep", "1000"]].concat())
}

/// Starts the agent of `a` by way of another program.
fn start_by(cluster: &Cluster, words: &[&str]) -> HostProcess {
    let host = cluster.host("a");
    let config = host.disk().join("agent.toml");
    let agent = host.spawn([words, &[OUTLIVE, "agent", "--config", path(&config)]].concat()).unwrap();
    until("the agent is ready", || {
        assert!(agent.try_wait().unwrap().is_none(), "{}", agent.stderr());
        agent.stdout().starts_with("ready")
    });
    agent
}

/// `tests/programs/without.c`, compiled: runs a program under a kernel that lacks a system call.
fn without(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/without.c");
    let target = directory.join("without");
    let status = Command::new("cc").args(["-O1", "-Wall", "-o"]).args([&target, &source]).status().unwrap();
    assert!(status.success(), "{} compiles", source.display());
    target
}

/// No process of a workload, and no mount or namespace that one would have kept.
#[track_caller]
fn assert_no_process(cluster: &Cluster) {
    let list = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
    let seen = text(&cluster.host("a").exec(["/bin/sh", "-c", list]).unwrap().stdout);
    assert!(seen.contains("outlive agent"), "{seen}");
    for word in ["outlive supervise", "workload-init", "sleep 1000"] {
        assert!(!seen.contains(word), "{seen}");
    }
    cluster.assert_nothing_left("a");
}

#[test]
fn an_agent_without_a_capability_is_told_which() {
    for (capability, name) in [
        ("sys_admin", "CAP_SYS_ADMIN"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("net_admin", "CAP_NET_ADMIN"),
        // Needed at a failover only; without this it would be found out then.
        ("net_raw", "CAP_NET_RAW"),
    ] {
        let cluster = Cluster::new("caps", &["a", "b"]);
        let bounding = format!("-{capability}");
        start_by(&cluster, &["setpriv", "--bounding-set", &bounding]);
        cluster.start("b");
        cluster.bootstrap();
        let said = refused(&run(&cluster, &[]), 1);
        assert!(said.contains(name) && said.contains("as root") && said.contains("outlive check"), "{said}");
        assert_no_process(&cluster);

        // Nor is it a node that a failover could be made to.
        let from_b = [&RUN[..], &["--", "sleep", "1000"]].concat();
        let said = refused(&cluster.cli("b", &from_b), 1);
        assert!(said.contains("exposed") && said.contains(name), "{said}");
        assert_no_process(&cluster);
        done(cluster.cli("b", &["stop", "db"]));
    }
}

#[test]
fn a_kernel_without_a_needed_call_is_told_with_what_to_look_at() {
    let directory = tempfile::tempdir().unwrap();
    let without = without(directory.path());
    // By number, asm/unistd_64.h.
    for (call, number) in [("setns", "308"), ("pidfd_open", "434"), ("pidfd_getfd", "438")] {
        let cluster = Cluster::new("kernel", &["a"]);
        start_by(&cluster, &[path(&without), number]);
        cluster.bootstrap();
        let said = refused(&run(&cluster, &[]), 1);
        assert!(said.contains("outlive check") && said.contains("os error"), "{call}: {said}");
        assert_no_process(&cluster);
    }
}

#[test]
fn check_names_the_kernel_feature_that_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let without = without(directory.path());
    for (number, line) in [("323", "userfaultfd WP_ASYNC"), ("438", "pidfd_getfd"), ("312", "kcmp")] {
        let output = Command::new(&without).args([number, OUTLIVE, "check", "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let lines = report["lines"].as_array().unwrap();
        let found = lines.iter().find(|found| found["name"] == line).unwrap();
        assert_eq!(found["verdict"], "missing", "{found}");
        assert!(!found["advice"].as_str().unwrap().is_empty(), "{found}");
    }
}

#[test]
fn a_host_without_the_tun_driver_is_told_what_to_load() {
    let cluster = Cluster::new("tun", &["a"]);
    cluster.start("a");
    cluster.bootstrap();
    done(cluster.host("a").exec(["mount", "--bind", "/dev/null", "/dev/net/tun"]).unwrap());
    // The agent is in the host's mount namespace, so this is what it finds.
    let said = refused(&run(&cluster, &[]), 1);
    assert!(said.contains("/dev/net/tun") && said.contains("modprobe tun"), "{said}");
    assert_no_process(&cluster);
}

#[test]
fn an_agent_on_a_full_disk_does_not_start_and_says_so() {
    let cluster = Cluster::new("nodisk", &["a"]);
    let host = cluster.host("a");
    let state = host.disk().join("state");
    fs::create_dir_all(&state).unwrap();
    done(host.exec(["mount", "-t", "tmpfs", "-o", "size=4k", "none", path(&state)]).unwrap());
    let fill = format!("of={}/big", path(&state));
    drop(host.exec(["dd", "if=/dev/zero", &fill, "bs=1k", "count=8"]).unwrap());
    let config = host.disk().join("agent.toml");
    let said = refused(&host.exec([OUTLIVE, "agent", "--config", path(&config)]).unwrap(), 1);
    assert!(said.contains("No space left") && said.contains("has room"), "{said}");
    assert!(!host.disk().join("agent.sock").exists());
}

#[test]
fn a_configuration_that_cannot_be_leaves_nothing() {
    let cluster = Cluster::new("config", &["a"]);
    let host = cluster.host("a");
    let good = fs::read_to_string(host.disk().join("agent.toml")).unwrap();
    let file = host.disk().join("bad.toml");
    let cases: [(&str, &str); 7] = [
        ("node = \"a\n", "bad.toml:1:"),
        ("no toml at all", "bad.toml:1:"),
        ("\u{0}\u{1}", "bad.toml"),
        (&good.replace("listen = \"10.77.0.1:7400\"", "listen = \"here\""), "`listen`"),
        (&good.replace("listen = ", "detection_ms = 0\nlisten = "), "`detection_ms`"),
        (&format!("{good}\n[[peers]]\nname = \"b\"\naddress = \"10.77.0.2:99999\"\n"), "address"),
        (&format!("{good}\n[[peers]]\nname = \"b\"\n"), "address"),
    ];
    for (config, hint) in cases {
        fs::write(&file, config).unwrap();
        let said = refused(&host.exec([OUTLIVE, "agent", "--config", path(&file)]).unwrap(), 2);
        assert!(said.contains(hint) && said.contains("bad.toml"), "{hint}: {said}");
    }
    for odd in [host.disk(), Path::new("/dev/null/x"), Path::new("/nonexistent.toml")] {
        let said = refused(&host.exec([OUTLIVE, "agent", "--config", path(odd)]).unwrap(), 2);
        assert!(said.contains(path(odd)), "{said}");
    }
    assert!(!host.disk().join("state").exists() && !host.disk().join("agent.sock").exists());
}

/// It runs, and goes on running: what cannot be had is its protection.
#[test]
fn a_backup_that_cannot_be_reached_is_named_and_the_workload_can_be_stopped() {
    let cluster = Cluster::new("alone", &["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        cluster.start(name);
    }
    cluster.bootstrap();
    cluster.configure(cluster.host("c"), "bridge = \"br9\"");
    cluster.host("c").power_off().unwrap();
    cluster.host("c").power_on().unwrap();
    cluster.start("c");
    cluster.host("b").power_off().unwrap();
    let said = refused(&run(&cluster, &["--backup", "b"]), 1);
    assert!(said.contains("exposed") && said.contains("outlive stop db"), "{said}");
    assert!(said.contains("no bridge `br9`") || said.contains("node b") || said.contains("b: "), "{said}");
    let status = cluster.json("a", &["inspect", "db", "--json"]);
    assert_eq!(status["state"], "exposed", "{status}");
    done(cluster.cli("a", &["stop", "db"]));
    let links = text(&cluster.host("a").exec(["ip", "-brief", "link"]).unwrap().stdout);
    assert!(!links.contains("outlive"), "{links}");
}
