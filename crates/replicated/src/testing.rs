//! Scenarios that are run by real processes, killed at every commit and at random, and taken over.
//!
//! A scenario is a function that works with marked state as a program does. It is run in a process of its own, with
//! another as its backup. That first process is killed; the backup takes over and runs the same function, which finds
//! the state as it was taken over, checks what must hold, and goes on. Everything is real: two processes, TLS, seed
//! nodes (three of them, in the process of the test).
//!
//! ```no_run
//! use outlive_replicated::testing::Run;
//! use outlive_replicated::{List, commit, failover_test, replicated};
//!
//! #[replicated]
//! static DONE: List<u64> = List::new();
//!
//! #[failover_test]
//! fn nothing_acknowledged_is_lost(run: &Run) {
//!     let done = DONE.read().len() as u64;
//!     assert!(done >= run.acknowledged(), "{done}, and {} were acknowledged", run.acknowledged());
//!     for number in done..5 {
//!         DONE.write().push(number);
//!         commit().unwrap();
//!         run.acknowledge(number + 1);
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! Written as above it is an ordinary test. It is killed at each of its commits: before the commit has gone anywhere,
//! after it was sent, and after it was acknowledged; then `random` times (10 unless said otherwise) at random moments.

mod program;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outlive_cluster::ClusterId;
use outlive_stream::certificate::{Authority, Validity, create_authority, issue};
use outlive_stream::tls::Identity;
use rand::Rng;

pub(crate) use self::points::point;
pub use self::program::{Client, Line, Place, until};
use crate::protection::Phase;
use crate::testing_point::Step;
use crate::{Config, Node, Seed, Started};

/// Far beyond what anything here takes: only a scenario that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The configuration of a process that runs a scenario.
const CONFIG: &str = "OUTLIVE_REPLICATED_TEST_CONFIG";
/// The scenario.
const SCENARIO: &str = "OUTLIVE_REPLICATED_TEST_SCENARIO";
/// Where it is to kill itself: the number of a step and of a commit.
const KILL: &str = "OUTLIVE_REPLICATED_TEST_KILL";
/// In front of what such a process says to the test.
const PREFIX: &str = "outlive-replicated-test: ";

mod points {
    use super::{AtomicU64, AtomicUsize, Ordering, Pid, Signal, Step, kill};

    /// 0: nowhere.
    pub(super) static COMMIT: AtomicU64 = AtomicU64::new(0);
    pub(super) static STEP: AtomicUsize = AtomicUsize::new(0);

    /// Ends the process as a loss of power would, if it is to end here.
    #[inline]
    pub(crate) fn point(step: Step, commit: u64) {
        if COMMIT.load(Ordering::Relaxed) == commit
            && commit != 0
            && STEP.load(Ordering::Relaxed) == step as usize
        {
            die();
        }
    }

    #[cold]
    pub(super) fn die() -> ! {
        let killed = kill(Pid::this(), Signal::SIGKILL);
        unreachable!("killed by its own signal: {killed:?}");
    }
}

/// Certificates, addresses and seed nodes for programs that run on this machine, for as long as it lives.
///
/// ```
/// use outlive_replicated::testing::{free_address, Cluster};
/// use outlive_replicated::Node;
///
/// let cluster = Cluster::new();
/// let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
/// // For a program that is started with the path of its configuration:
/// let path = cluster.config_file("bank", &nodes[0], &nodes);
/// assert!(path.exists());
/// ```
pub struct Cluster {
    directory: tempfile::TempDir,
    authority: Authority,
    cluster: ClusterId,
    seeds: Vec<Node>,
}

impl Cluster {
    /// With three seed nodes in this process.
    ///
    /// # Panics
    /// If this machine cannot run it: that is a test's failure.
    pub fn new() -> Self {
        Self::at(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The same, where seed nodes are reached from other hosts: at an address of this one.
    ///
    /// # Panics
    /// If this machine cannot run it: that is a test's failure.
    pub fn at(address: IpAddr) -> Self {
        let directory = must(tempfile::tempdir(), "make a directory");
        let authority = must(create_authority("test"), "make an authority");
        let cluster = ClusterId::random();
        let names = ["s1", "s2", "s3"];
        let seeds: Vec<Node> = names
            .iter()
            .map(|name| Node { name: (*name).into(), address: free_address_at(address) })
            .collect();
        let this = Self { directory, authority, cluster, seeds };
        for seed in &this.seeds {
            let identity = this.identity(&seed.name);
            let home = this.directory.path().join(&seed.name);
            must(std::fs::create_dir_all(&home), "make a directory");
            let all = must(crate::config::seeds_of(cluster, &this.seeds), "name the seed nodes");
            let seed_node = must(Seed::open(&home, identity, all, true), "open a seed node");
            must(seed_node.listen(seed.address), "listen");
        }
        this
    }

    /// The certificates of one node.
    pub fn identity(&self, node: &str) -> Identity {
        let [ca, cert, key] = self.files(node);
        must(Identity::load(&ca, &cert, &key), "read a certificate")
    }

    fn files(&self, node: &str) -> [PathBuf; 3] {
        let path = |end: &str| self.directory.path().join(format!("{node}.{end}"));
        let (ca, cert, key) = (self.directory.path().join("ca.pem"), path("pem"), path("key"));
        if !cert.exists() {
            must(std::fs::write(&ca, &self.authority.cert_pem), "write a certificate");
            let issued = must(issue(&self.authority, node, Validity::days(1)), "issue a certificate");
            must(issued.write_files(&cert, &key), "write a certificate");
        }
        [ca, cert, key]
    }

    /// The configuration of one process of a program, with `peers` as all of its processes.
    pub fn config(&self, program: &str, node: &Node, peers: &[Node]) -> Config {
        let config = Config::new(
            program,
            node.address,
            self.identity(&node.name),
            self.cluster,
            self.seeds.clone(),
            peers.to_vec(),
        );
        must(config, "make a configuration")
    }

    /// The same as a file.
    pub fn config_file(&self, program: &str, node: &Node, peers: &[Node]) -> PathBuf {
        let [ca, cert, key] = self.files(&node.name);
        let mut text = format!(
            "name = {program:?}\nlisten = \"{}\"\ncluster = \"{}\"\ndetection_ms = 2000\n\n[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n",
            node.address, self.cluster
        );
        for (kind, nodes) in [("peers", peers), ("seeds", &self.seeds)] {
            for node in nodes {
                text += &format!("\n[[{kind}]]\nname = {:?}\naddress = \"{}\"\n", node.name, node.address);
            }
        }
        let path = self.directory.path().join(format!("{program}-{}.toml", node.name));
        must(std::fs::write(&path, text), "write a configuration");
        path
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

/// An address on which nobody listens, for a process that is to listen there soon. Never the same twice.
///
/// ```
/// use outlive_replicated::testing::free_address;
///
/// assert_ne!(free_address(), free_address());
/// ```
pub fn free_address() -> SocketAddr {
    free_address_at(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The same at an address of this host.
pub fn free_address_at(ip: IpAddr) -> SocketAddr {
    static GIVEN: parking_lot::Mutex<Vec<SocketAddr>> = parking_lot::Mutex::new(Vec::new());
    let mut given = GIVEN.lock();
    loop {
        let listener = must(TcpListener::bind((ip, 0)), "listen");
        let address = must(listener.local_addr(), "read an address");
        if !given.contains(&address) {
            given.push(address);
            return address;
        }
    }
}

/// For what a test cannot go on without.
#[track_caller]
fn must<T, E: std::error::Error>(outcome: Result<T, E>, what: &str) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            panic!("cannot {what}: {error}{source}")
        }
    }
}

/// What a scenario knows of its run.
pub struct Run {
    fresh: bool,
    acknowledged: u64,
}

impl Run {
    /// Whether this is the first process; else it has taken over.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The highest number that an earlier process has [acknowledged](Self::acknowledge): what the world knows.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Tells the world, as a server does by its answer, that everything up to `number` has happened.
    pub fn acknowledge(&self, number: u64) {
        say(&format!("acknowledged {number}"));
    }
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // The harness of Rust's tests writes to the same line.
    must(writeln!(out, "\n{PREFIX}{what}").and_then(|()| out.flush()), "speak to the test");
}

/// What `#[failover_test]` runs. `name` is the test's full name, by which this very program finds it again.
pub fn failover(name: &str, random: usize, scenario: fn(&Run)) {
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    match std::env::var(SCENARIO) {
        Ok(ours) if ours == name => inside(scenario),
        Ok(_) => {}
        Err(_) => outside(name, random),
    }
}

/// The process that runs the scenario.
fn inside(scenario: fn(&Run)) {
    let path = must(std::env::var(CONFIG), "find the configuration");
    let config = must(Config::load(Path::new(&path)), "read the configuration");
    let started = must(crate::start(config), "start");
    let run = match started {
        Started::Fresh => {
            say("fresh");
            wait_until_protected();
            let last = crate::status().map_or(0, |status| status.last);
            if let Ok(at) = std::env::var(KILL)
                && let Some((step, commit)) = at.split_once(' ')
            {
                points::STEP.store(must(step.parse(), "read the step"), Ordering::Relaxed);
                points::COMMIT
                    .store(last + must(commit.parse::<u64>(), "read the commit"), Ordering::Relaxed);
            }
            say("begins");
            Run { fresh: true, acknowledged: 0 }
        }
        Started::TakenOver { commit, .. } => {
            say(&format!("taken {commit}"));
            let mut line = String::new();
            must(std::io::stdin().read_line(&mut line), "hear what was acknowledged");
            Run { fresh: false, acknowledged: must(line.trim().parse(), "read what was acknowledged") }
        }
    };
    let before = crate::status().map_or(0, |status| status.last);
    scenario(&run);
    let after = crate::status().map_or(0, |status| status.last);
    say(&format!("done {}", after - before));
    // As hard as any other end.
    points::die();
}

fn wait_until_protected() {
    let since = Instant::now();
    while crate::status().and_then(|status| status.phase) != Some(Phase::Protected) {
        assert!(since.elapsed() < PATIENCE, "no backup has joined: {:?}", crate::status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// By itself, within its commit of this number, at this step.
    At(Step, u64),
    /// By the test, this long after it began.
    After(Duration),
    /// When it has done everything.
    Done,
}

/// What one run came to.
struct Outcome {
    commits: u64,
    took: Duration,
}

fn outside(name: &str, random: usize) {
    let cluster = Cluster::new();
    let mut number = 0;
    let mut next = || {
        number += 1;
        number
    };
    let whole = round(&cluster, name, next(), Kill::Done);
    let mut kills = 1;
    for commit in 1..=whole.commits {
        for step in [Step::Numbered, Step::Sent, Step::Acknowledged] {
            round(&cluster, name, next(), Kill::At(step, commit));
            kills += 1;
        }
    }
    let seed = std::env::var("OUTLIVE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    eprintln!("OUTLIVE_SEED={seed}");
    let mut rng = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(seed);
    for _ in 0..random {
        let after = whole.took.mul_f64(rng.random_range(0.0..1.1));
        round(&cluster, name, next(), Kill::After(after));
        kills += 1;
    }
    eprintln!("{kills} kills at {} commits and {random} random moments", whole.commits);
}

fn round(cluster: &Cluster, name: &str, number: usize, kill: Kill) -> Outcome {
    let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
    let program = format!("round-{number}");
    let start = |node: &Node, kill: Option<Kill>| {
        let config = cluster.config_file(&program, node, &nodes);
        Process::start(name, &node.name, &config, kill)
    };
    let mut first = start(&nodes[0], Some(kill));
    first.wait_for("fresh", kill);
    let mut second = start(&nodes[1], None);
    first.wait_for("begins", kill);
    let began = Instant::now();
    if let Kill::After(after) = kill {
        std::thread::sleep(after);
        // Ended by itself already: then it was late, which is another moment.
        let _ = first.child.kill();
    }
    let (mut acknowledged, mut commits) = (0, 0);
    let mut said = Vec::new();
    while let Some(line) = first.hear(kill) {
        match line.split_once(' ') {
            Some(("acknowledged", number)) => acknowledged = must(number.parse(), "read a number"),
            Some(("done", number)) => commits = must(number.parse(), "read a number"),
            _ => said.push(line),
        }
    }
    let took = began.elapsed();
    let status = must(first.child.wait(), "wait for a process");
    assert!(was_killed(status), "{kill:?}: the first process failed by itself ({status}): {said:?}");
    second.wait_for("taken", kill);
    second.tell(acknowledged);
    let mut done = false;
    while let Some(line) = second.hear(kill) {
        done |= line.starts_with("done");
    }
    let status = must(second.child.wait(), "wait for a process");
    assert!(
        done && was_killed(status),
        "{kill:?}: the process that took over failed ({status}), with {acknowledged} acknowledged; see above"
    );
    Outcome { commits, took }
}

fn was_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(Signal::SIGKILL as i32)
}

/// A process that runs a scenario. It ends with this.
struct Process {
    child: Child,
    node: String,
    lines: Receiver<String>,
}

impl Process {
    fn start(name: &str, node: &str, config: &Path, kill: Option<Kill>) -> Self {
        let program = must(std::env::current_exe(), "find this program");
        let mut command = Command::new(program);
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(SCENARIO, name).env(CONFIG, config).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(Kill::At(step, commit)) = kill {
            command.env(KILL, format!("{} {commit}", step as usize));
        }
        let mut child = must(command.spawn(), "start a process");
        let (tell, lines) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if let Some(said) = line.strip_prefix(PREFIX)
                        && tell.send(said.to_owned()).is_err()
                    {
                        return;
                    }
                }
            });
        }
        Self { child, node: node.to_owned(), lines }
    }

    /// What it says next; `None` when it has ended.
    fn hear(&self, kill: Kill) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("{kill:?}: {} says nothing any more", self.node),
        }
    }

    fn wait_for(&mut self, word: &str, kill: Kill) {
        loop {
            match self.hear(kill) {
                Some(line) if line.split(' ').next() == Some(word) => return,
                Some(_) => {}
                None => panic!("{kill:?}: {} ended before it said {word:?}; see above", self.node),
            }
        }
    }

    fn tell(&mut self, acknowledged: u64) {
        if let Some(input) = &mut self.child.stdin {
            // One that has ended is found to have ended soon.
            let _ = writeln!(input, "{acknowledged}").and_then(|()| input.flush());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
