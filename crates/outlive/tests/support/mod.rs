//! A cluster of agents on lab hosts, driven through the command line only.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod faults;
pub mod redis;
pub mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use outlive_lab::{Host, HostProcess, Lab};

pub const OUTLIVE: &str = env!("CARGO_BIN_EXE_outlive");
/// Long enough for anything that must come; only a failing test waits it out.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 7400;

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the command line on this machine, outside of any lab.
pub fn outlive(arguments: &[&str]) -> Output {
    std::process::Command::new(OUTLIVE).args(arguments).env_remove("OUTLIVE_SOCKET").output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one line of an error, and that it ended with this code.
#[track_caller]
pub fn refused(output: &Output, code: i32) -> String {
    let (said, stdout) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(code), "stdout: {stdout}\nstderr: {said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("outlive: ")).collect();
    assert_eq!(errors.len(), 1, "not one line: {said}");
    // What is left may be progress only.
    let others = said.lines().filter(|line| !line.starts_with("outlive: "));
    others.for_each(|line| assert!(line.ends_with(" ..."), "not progress: {line}"));
    errors[0].to_owned()
}

#[track_caller]
pub fn done(output: Output) -> String {
    let (said, stdout) = (text(&output.stderr), text(&output.stdout));
    assert!(output.status.success(), "{}: stdout: {stdout}\nstderr: {said}", output.status);
    stdout
}

/// Hosts of one cluster, each with its certificate and configuration; their agents not yet started.
pub struct Cluster {
    pub lab: Lab,
    pub hosts: Vec<Host>,
    pub authority: PathBuf,
}

impl Cluster {
    pub fn new(hint: &str, names: &[&str]) -> Cluster {
        Cluster::wired(hint, names, Lab::host)
    }

    /// Of hosts that have no bridge.
    pub fn without_bridges(hint: &str, names: &[&str]) -> Cluster {
        Cluster::wired(hint, names, Lab::client)
    }

    fn wired(hint: &str, names: &[&str], host: impl Fn(&Lab, &str) -> outlive_lab::Result<Host>) -> Cluster {
        let lab = Lab::new(hint).unwrap();
        let hosts: Vec<Host> = names.iter().map(|name| host(&lab, name).unwrap()).collect();
        // On the disk of the first host: gone with the lab.
        let authority = hosts[0].disk().join("authority");
        done(outlive(&["cert", "authority", "--out", path(&authority), "--cluster", hint]));
        let cluster = Cluster { lab, hosts, authority };
        for host in &cluster.hosts {
            cluster.certify(host.name(), &host.disk().join("tls"));
            cluster.configure(host, "");
        }
        cluster
    }

    pub fn certify(&self, name: &str, out: &Path) {
        done(outlive(&["cert", "node", "--ca", path(&self.authority), "--name", name, "--out", path(out)]));
    }

    /// Writes a host's configuration, with these further lines at its beginning.
    pub fn configure(&self, host: &Host, more: &str) {
        let disk = host.disk().display();
        let mut config = format!(
            "node = \"{}\"\nlisten = \"{}:{PORT}\"\nstate_dir = \"{disk}/state\"\n\
             control_socket = \"{disk}/agent.sock\"\n{more}\n\
             [tls]\nca = \"{disk}/tls/ca.pem\"\ncert = \"{disk}/tls/node.pem\"\nkey = \"{disk}/tls/node.key\"\n",
            host.name(),
            host.address()
        );
        for peer in self.hosts.iter().filter(|peer| peer.name() != host.name()) {
            let entry =
                format!("\n[[peers]]\nname = \"{}\"\naddress = \"{}\"\n", peer.name(), peer.address());
            config.push_str(&entry);
        }
        fs::write(host.disk().join("agent.toml"), config).unwrap();
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name() == name).unwrap()
    }

    /// Starts a host's agent and waits until it is ready.
    pub fn start(&self, name: &str) -> HostProcess {
        let agent = self.spawn(name);
        until("the agent is ready", || {
            if let Some(status) = agent.try_wait().unwrap() {
                panic!("the agent of {name} ended ({status}): {}", agent.stderr());
            }
            agent.stdout().starts_with("ready")
        });
        agent
    }

    pub fn spawn(&self, name: &str) -> HostProcess {
        let host = self.host(name);
        let config = host.disk().join("agent.toml");
        let faults = format!("{}={}", outlive_fault::CONTROL, path(&faults::control_file(host)));
        host.spawn(["env", &faults, OUTLIVE, "agent", "--config", path(&config)]).unwrap()
    }

    pub fn start_all(&self) -> Vec<HostProcess> {
        self.hosts.iter().map(|host| self.start(host.name())).collect()
    }

    /// Runs a command on a host, with the socket of its agent; what follows `--` stays last.
    pub fn cli(&self, name: &str, arguments: &[&str]) -> Output {
        let host = self.host(name);
        let socket = host.disk().join("agent.sock");
        let (before, after) =
            arguments.split_at(arguments.iter().position(|a| *a == "--").unwrap_or(arguments.len()));
        let mut command = vec![OUTLIVE];
        command.extend(before);
        command.extend(["--socket", path(&socket)]);
        command.extend(after);
        host.exec_within(PATIENCE * 2, command).unwrap()
    }

    /// Begins a command on a host, and does not wait for it.
    pub fn begin(&self, name: &str, arguments: &[&str]) -> HostProcess {
        let host = self.host(name);
        let socket = host.disk().join("agent.sock");
        let mut command = vec![OUTLIVE];
        command.extend(arguments);
        command.extend(["--socket", path(&socket)]);
        host.spawn(command).unwrap()
    }

    pub fn bootstrap(&self) {
        let seeds: Vec<&str> = self.hosts.iter().map(Host::name).collect();
        done(self.cli(seeds[0], &["seed", "bootstrap", "--seeds", &seeds.join(",")]));
    }

    pub fn json(&self, name: &str, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&done(self.cli(name, arguments))).unwrap()
    }

    /// Each seed node's standing, as `name` sees it.
    pub fn standings(&self, name: &str) -> Vec<(String, String)> {
        let rows = self.json(name, &["seed", "status", "--json"]);
        let word = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(|row| (word(row, "node"), word(row, "standing"))).collect()
    }

    /// Nothing of any workload is on this host: no directory, no interface.
    #[track_caller]
    pub fn assert_nothing_left(&self, name: &str) {
        let host = self.host(name);
        let left: Vec<_> = fs::read_dir(host.disk().join("state/workloads")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        let links = text(&host.exec(["ip", "-brief", "link"]).unwrap().stdout);
        assert!(!links.contains("outlive"), "{links}");
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
