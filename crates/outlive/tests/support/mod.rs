//! A cluster of agents on lab hosts, driven through the command line only.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod faults;
pub mod redis;
pub mod watch;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use outlive_epoch::control::{self, Status};
use outlive_lab::{Host, HostProcess, Lab};

pub const OUTLIVE: &str = env!("CARGO_BIN_EXE_outlive");
/// Long enough for anything that must come; only a failing test waits it out.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 7400;
/// A supervisor that is neither dead nor stopped answers from memory.
const ANSWER: Duration = Duration::from_secs(1);
/// Lines of a log that tell how it ended.
const LAST_LINES: usize = 12;

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
        self.spawn_by(name, &["env"])
    }

    /// By a program that starts another (`env`, with options).
    pub fn spawn_by(&self, name: &str, by: &[&str]) -> HostProcess {
        let host = self.host(name);
        let config = host.disk().join("agent.toml");
        let faults = format!("{}={}", outlive_fault::CONTROL, path(&faults::control_file(host)));
        let agent = [&faults, OUTLIVE, "agent", "--config", path(&config)];
        host.spawn(by.iter().chain(&agent)).unwrap()
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

    /// Of every workload.
    fn account(&self) -> String {
        let all = self.hosts.iter().map(|host| {
            let workloads = fs::read_dir(host.disk().join("state/workloads")).into_iter().flatten().flatten();
            workloads.map(|entry| account(host, &entry.file_name().to_string_lossy())).collect::<String>()
        });
        all.collect()
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

impl Drop for Cluster {
    /// The hosts of a test that fails are gone with it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.account());
        }
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the supervisor of a workload on a host says, if one lives there.
pub fn status(host: &Host, workload: &str) -> Option<Status> {
    let socket = host.disk().join("state/workloads").join(workload).join("supervisor.sock");
    let ask = || -> std::io::Result<Status> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        writeln!(stream, "{}", serde_json::to_string(&control::Request::Status)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            control::Response::Status(status) => Ok(*status),
            other => Err(std::io::Error::other(format!("{other:?}"))),
        }
    };
    // A socket without a supervisor, or one that is dying or stands still.
    ask().ok()
}

/// For a test that waited in vain: what the supervisor says, what its threads wait in, and the ends of its log and of the workload's.
pub fn account(host: &Host, workload: &str) -> String {
    let mut text = String::new();
    let tasks = match status(host, workload) {
        Some(status) => {
            writeln!(text, "{}: {status:?}", host.name()).unwrap();
            format!("/proc/{}/task", status.supervisor_pid)
        }
        None => {
            writeln!(text, "{}: no supervisor answers", host.name()).unwrap();
            String::new()
        }
    };
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, call, stack) = (read("comm"), read("syscall"), read("stack"));
        let stack: Vec<&str> =
            stack.lines().filter_map(|line| line.split_whitespace().last()).take(8).collect();
        writeln!(text, "  {:<16} {} {}", name.trim(), call.trim(), stack.join(" ")).unwrap();
    }
    for file in ["supervisor.log", "output.log"] {
        let log = fs::read(host.disk().join("state/workloads").join(workload).join(file)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        last.iter().for_each(|line| writeln!(text, "  {file}: {line}").unwrap());
    }
    text
}
