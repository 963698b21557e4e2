//! A Redis in a cluster, with clients that verify every reply and others that connect again and again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outlive_epoch::control::{Side, State, Status};
use outlive_lab::client::redis::{Load, RedisClient};
use outlive_lab::{Host, HostProcess, NetNs, UPLINK};

use super::{Cluster, PATIENCE, done, until};

pub const NAME: &str = "redis";
pub const NODES: [&str; 3] = ["a", "b", "c"];
const PORT: u16 = 6379;
const SERVER: [&str; 9] =
    ["redis-server", "--save", "", "--appendonly", "no", "--bind", "0.0.0.0", "--protected-mode", "no"];
const CONNECTIONS: usize = 8;
const OPENERS: usize = 2;
/// From a reply to the next request.
const PACE: Duration = Duration::from_millis(10);
/// Longer than what any test here lets the workload be silent for.
const REPLY: Duration = Duration::from_secs(60);
/// Three times the default: a machine that runs many tests at once takes fewer hosts for dead that are not. (Where it
/// does, clients must not see it either; only the roles in a test are others than it thought.)
const DETECTION_MS: u32 = 300;
const UNDER_WAY: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(20);

/// Who has a protected workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub primary: String,
    pub backup: String,
    pub generation: u64,
}

pub struct Redis {
    pub cluster: Cluster,
    pub client: Host,
    /// As they were first started, in the order of the nodes.
    pub agents: Vec<HostProcess>,
    pub target: SocketAddr,
    address: Ipv4Addr,
    clients: Option<RedisClient>,
    openers: Option<Openers>,
}

impl Redis {
    /// Three nodes and a client's host; the workload is not started.
    pub fn prepare(hint: &str) -> Redis {
        Redis::prepare_in(Cluster::new(hint, &NODES), "")
    }

    fn prepare_in(cluster: Cluster, more: &str) -> Redis {
        cluster
            .hosts
            .iter()
            .for_each(|host| cluster.configure(host, &format!("detection_ms = {DETECTION_MS}\n{more}")));
        let client = cluster.lab.client("client").unwrap();
        let agents = cluster.start_all();
        cluster.bootstrap();
        let address = cluster.lab.free_address().unwrap();
        let target = SocketAddr::from((address, PORT));
        Redis { cluster, client, agents, target, address, clients: None, openers: None }
    }

    /// Started on the first node, protected, and under load.
    pub fn start(hint: &str) -> Redis {
        let mut redis = Redis::prepare(hint);
        redis.run("a");
        redis.load();
        redis
    }

    /// The same on hosts without bridges.
    pub fn start_on_macvtap(hint: &str) -> Redis {
        let more = format!("macvtap = \"{UPLINK}\"");
        let mut redis = Redis::prepare_in(Cluster::without_bridges(hint, &NODES), &more);
        redis.run("a");
        redis.load();
        redis
    }

    /// Starts the server and waits until it is protected.
    pub fn run(&self, node: &str) {
        let ip = format!("{}/{}", self.address, outlive_lab::PREFIX);
        let mut command = vec!["run", "--name", NAME, "--ip", &ip, "--"];
        command.extend(SERVER);
        done(self.cluster.cli(node, &command));
        let from = self.client.netns().unwrap();
        until("the server answers", || ping(&from, self.target, Duration::from_secs(5)).is_ok());
    }

    /// Starts the clients.
    pub fn load(&mut self) {
        let from = self.client.netns().unwrap();
        let load =
            Load { connections: CONNECTIONS, pace: PACE, reply_limit: REPLY, ..Load::new(self.target) };
        self.clients = Some(RedisClient::start(Some(&from), load).unwrap());
        self.openers = Some(Openers::start(&from, self.target));
        self.must_go_on();
    }

    /// Lets the clients go, with whatever they have seen.
    pub fn unload(&mut self) {
        (self.clients, self.openers) = (None, None);
    }

    pub fn host(&self, name: &str) -> &Host {
        self.cluster.host(name)
    }

    /// The node that is neither.
    pub fn third(&self, one: &str, other: &str) -> &Host {
        let name = NODES.iter().find(|name| **name != one && **name != other).unwrap();
        self.host(name)
    }

    pub fn hosts(&self) -> [&Host; 3] {
        NODES.map(|name| self.host(name))
    }

    /// What the supervisor on a node says, if one lives there. Without the agent, which may be what has died.
    pub fn status(&self, node: &str) -> Option<Status> {
        super::status(self.host(node), NAME)
    }

    /// What the primary of the newest generation says, if there is one.
    pub fn seen(&self) -> Option<Status> {
        let all = NODES.iter().filter_map(|node| self.status(node));
        all.filter(|status| status.role == Side::Primary).max_by_key(|status| status.generation)
    }

    /// For a test that waited in vain.
    pub fn account(&self) -> String {
        NODES.map(|node| super::account(self.host(node), NAME)).concat()
    }

    /// Waits until it is protected.
    #[track_caller]
    pub fn protected(&self) -> Pair {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen();
            if let Some(seen) = &seen
                && seen.state == State::Protected
                && let (Some(primary), Some(backup)) = (&seen.primary_node, &seen.backup_node)
            {
                let (primary, backup) = (primary.clone(), backup.clone());
                return Pair { primary, backup, generation: seen.generation };
            }
            assert!(Instant::now() < deadline, "not protected in time:\n{}", self.account());
            std::thread::sleep(LOOK);
        }
    }

    /// Every connection is answered from now on, and none has seen anything wrong.
    #[track_caller]
    pub fn must_go_on(&self) {
        let (clients, openers) = (self.clients.as_ref().unwrap(), self.openers.as_ref().unwrap());
        let (now, opened) = (Instant::now(), openers.answered());
        let deadline = now + PATIENCE;
        while clients.stats().answered_since(now) < CONNECTIONS || openers.answered() < opened + 2 {
            assert!(Instant::now() < deadline, "the workload does not go on:\n{}", self.account());
            std::thread::sleep(Duration::from_millis(5));
        }
        let report = clients.stats().report();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(openers.failures(), Vec::<String>::new());
    }

    /// Of all connections since then.
    pub fn longest_stall(&self, since: Instant) -> Duration {
        let stalls = self.clients.as_ref().unwrap().stats().stalls_since(since);
        stalls.into_iter().max().unwrap_or_default()
    }

    /// No connection is answered for so long: whoever has the workload waits.
    #[track_caller]
    pub fn must_wait(&self, how_long: Duration) {
        // What was on its way when the last one died has arrived by then.
        std::thread::sleep(UNDER_WAY);
        let from = Instant::now();
        std::thread::sleep(how_long);
        assert_eq!(self.clients.as_ref().unwrap().stats().answered_since(from), 0, "somebody speaks");
    }

    /// Everything that was ever acknowledged is there.
    pub fn must_be_clean(&mut self) {
        let report = self.clients.take().unwrap().finish().unwrap();
        println!(
            "{} connections, {} requests, {} writes: {} dropped, {} lost, {} wrong",
            report.connections,
            report.requests,
            report.acked_writes,
            report.connections_dropped,
            report.acked_writes_lost,
            report.wrong_replies
        );
        assert!(report.is_clean(), "{report:?}");
        let openers = self.openers.take().unwrap();
        println!("{} short connections, {} failed", openers.answered(), openers.failures().len());
        assert_eq!(openers.failures(), Vec::<String>::new());
    }

    /// The supervisor on this node dies; its host and its agent live.
    pub fn kill_supervisor(&self, node: &str) {
        let status = self.status(node).unwrap_or_else(|| panic!("no supervisor on {node}"));
        let pid = status.supervisor_pid;
        let killed = self.host(node).exec(["kill", "-9", &pid.to_string()]).unwrap();
        assert!(killed.status.success(), "{killed:?}");
    }

    /// Power, and an agent.
    pub fn power_on(&self, node: &str) {
        self.host(node).power_on().unwrap();
        self.cluster.start(node);
    }
}

/// Clients that connect, ask once, and leave.
struct Openers {
    shared: Arc<Opened>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Opened {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Openers {
    fn start(from: &NetNs, to: SocketAddr) -> Openers {
        let shared = Arc::new(Opened::default());
        let workers = (0..OPENERS).map(|_| {
            let (shared, from) = (Arc::clone(&shared), from.clone());
            std::thread::spawn(move || {
                from.enter().unwrap();
                while !shared.stop.load(Ordering::Relaxed) {
                    match ping_here(to, REPLY) {
                        Ok(()) => drop(shared.answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => shared.failures.lock().unwrap().push(error.to_string()),
                    }
                    std::thread::sleep(PACE);
                }
            })
        });
        let workers = workers.collect();
        Openers { shared, workers }
    }

    fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }
}

impl Drop for Openers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Not waited for: a server that is gone for good does not answer them, and they end with the process.
        self.workers.clear();
    }
}

fn ping(from: &NetNs, to: SocketAddr, limit: Duration) -> std::io::Result<()> {
    from.run(|| ping_here(to, limit))
}

fn ping_here(to: SocketAddr, limit: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    if &answer == b"+PONG\r\n" {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{:?} in answer to a ping", String::from_utf8_lossy(&answer))))
}
