//! Every kind of stream over real failovers: large windows in flight, uploads, data that outlives its socket, pipelined
//! requests, connections being opened. The scenario is the lab's own; `cargo xtask demo --workload streams` shows it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use outlive_lab::streams::{self, Plan};

const KILLS: usize = 4;
const CLIENTS: usize = 16;
/// Kills come at instants drawn from this. Which work is cut by them differs from run to run all the same.
const SEED: u64 = 20;

#[test]
fn every_kind_of_stream_goes_on_over_kills() {
    let server = lab_server();
    let begun = Instant::now();
    let say = |line: &str| println!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    let program = Path::new(env!("CARGO_BIN_EXE_outlive"));
    let plan = Plan { program, server: &server, kills: KILLS, clients: CLIENTS, seed: SEED };
    let outcome = streams::run(&plan, &say).unwrap_or_else(|error| panic!("{error}"));
    println!("{}", outcome.table());
    assert!(outcome.is_good(), "{}", outcome.faults().join("\n"));
}

/// The lab's server as it is now: a binary of another package, which cargo does not build for this one's tests.
fn lab_server() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "outlive-lab", "--bin", "lab_server"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "the build of lab_server failed");
    let built = String::from_utf8(output.stdout).unwrap();
    let messages = built.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executables.find(|path| path.ends_with("lab_server")).expect("cargo names what it built")
}
