//! What the command line promises without any agent: one line for an error, exit codes, files it makes.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::{done, outlive, path, refused};

#[test]
fn wrong_command_lines_are_one_line_and_code_2() {
    let cases: [&[&str]; 9] = [
        &[],
        &["frobnicate"],
        &["run"],
        &["run", "--name", "db", "--ip", "10.0.0.1/24"],
        &["run", "--name", "db", "--ip", "10.0.0.300/24", "--", "true"],
        &["run", "--name", "db", "--ip", "10.0.0.1/24", "--level", "hope", "--", "true"],
        &["run", "--name", "db", "--ip", "10.0.0.1/24", "--env", "NOVALUE", "--", "true"],
        &["ps", "--socket"],
        &["kill", "db", "-s", "NOPE", "--socket", "/nonexistent"],
    ];
    for case in cases {
        let said = refused(&outlive(case), 2);
        assert!(said.len() > "outlive: ".len() + 10, "{case:?}: {said}");
    }
}

#[test]
fn help_says_the_exit_codes() {
    for command in [&["--help"][..], &["run", "--help"]] {
        assert!(done(outlive(command)).contains("5 refused"), "{command:?}");
    }
}

#[test]
fn without_an_agent_code_3_says_what_to_start() {
    let cases: [&[&str]; 11] = [
        &["switchover", "db", "--to", "b"],
        &["failover", "db"],
        &["restart-lost", "db", "--dead", "b"],
        &["ps", "--watch", "--json"],
        &["ps"],
        &["inspect", "db"],
        &["logs", "db"],
        &["stop", "db"],
        &["kill", "db"],
        &["seed", "status"],
        &["seed", "rejoin"],
    ];
    for case in cases {
        let socket = ["--socket", "/nonexistent/agent.sock"];
        let said = refused(&outlive(&[case, &socket].concat()), 3);
        assert!(said.contains("/nonexistent/agent.sock") && said.contains("outlive agent"), "{said}");
    }
}

#[test]
fn a_bad_configuration_names_key_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agent.toml");
    fs::write(&config, "node = \"a\"\nlisten = \"127.0.0.1\"\n\nmax_pause_shar = 0.5\n").unwrap();
    for command in [&["agent"][..], &["check"], &["ps"]] {
        let said = refused(&outlive(&[command, &["--config", path(&config)]].concat()), 2);
        assert!(said.contains("agent.toml:4:") && said.contains("`max_pause_shar`"), "{said}");
    }
}

#[test]
fn certificates_are_made_renewed_and_never_mixed_up() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (ca, other, node) = (at("ca"), at("other"), at("node"));
    done(outlive(&["cert", "authority", "--out", path(&ca), "--cluster", "prod"]));
    let said = refused(&outlive(&["cert", "authority", "--out", path(&ca)]), 5);
    assert!(said.contains("ca.key") || said.contains("ca.pem"), "{said}");

    let issue =
        |ca: &str, name: &str| outlive(&["cert", "node", "--ca", ca, "--name", name, "--out", path(&node)]);
    done(issue(path(&ca), "a"));
    assert_eq!(fs::metadata(node.join("node.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read(node.join("node.pem")).unwrap();
    done(issue(path(&ca), "a"));
    assert_ne!(fs::read(node.join("node.pem")).unwrap(), first, "a renewal is a new certificate");

    done(outlive(&["cert", "authority", "--out", path(&other)]));
    refused(&issue(path(&other), "a"), 5);
    refused(&issue(path(&ca), "Not A Name"), 2);
    let said = refused(&issue("/nonexistent", "a"), 1);
    assert!(said.contains("--ca"), "{said}");
}

/// Made of the very definitions that the command line is parsed by, so what counts is that they are whole.
#[test]
fn completions_and_manual_pages_know_every_command() {
    let directory = tempfile::tempdir().unwrap();
    done(outlive(&["man", "--out", path(directory.path())]));
    let commands = ["run", "ps", "switchover", "failover", "restart-lost", "seed", "cert"];
    for command in commands {
        let page = fs::read_to_string(directory.path().join(format!("outlive-{command}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains("outlive"), "{command}: {page}");
    }
    assert!(!directory.path().join("outlive-supervise.1").exists(), "for the agent only");
    for shell in ["bash", "zsh", "fish"] {
        let script = done(outlive(&["completions", shell]));
        assert!(commands.iter().all(|command| script.contains(command)), "{shell}");
    }
    refused(&outlive(&["completions", "sh"]), 2);
    refused(&outlive(&["man", "--out", "/nonexistent/man1"]), 1);
}

#[test]
fn check_says_of_each_line_what_it_is_for() {
    let output = outlive(&["check", "--json", "--bridge", "no-such-bridge"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    assert!(lines.len() > 30, "{report}");
    for line in lines {
        let text = |key: &str| line[key].as_str().unwrap();
        assert!(!text("purpose").is_empty() && !text("found").is_empty(), "{line}");
        match text("verdict") {
            "ok" => assert!(text("advice").is_empty(), "{line}"),
            // What is wrong with a bridge comes with what to do.
            _ => assert!(!text("advice").is_empty() || text("found").contains("create it"), "{line}"),
        }
    }
    let bridge = lines.iter().find(|line| line["name"] == "bridge no-such-bridge").unwrap();
    assert_eq!(bridge["verdict"], "missing");
    assert_eq!((report["fit"].as_bool(), output.status.code()), (Some(false), Some(1)));
}

/// The trials are the product's own functions, so a host on which its other tests run passes them.
#[test]
fn check_finds_what_this_host_has() {
    let output = outlive(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let missing: Vec<_> =
        report["lines"].as_array().unwrap().iter().filter(|line| line["verdict"] == "missing").collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(output.status.success());
}
