//! Updates a second of what a user would otherwise agree on by Raft, each committed by a majority before its client's next:
//!
//!     outlive-bench-raft openraft     three members of openraft with an in-memory store
//!     outlive-bench-raft etcd         three members of Debian's etcd-server
//!
//! Each prints the rates with 1, 16 and 256 clients. Members are processes of their own, connections plain TCP over
//! loopback. The clients of openraft are tasks of the leader's process, as those of `#[replicated]` are of the primary's; those of
//! etcd, which is a server, have a connection each.

mod etcd;
mod link;
mod store;

use std::collections::BTreeSet;
use std::io::Cursor;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::{Config, Raft};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One changed number.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Update {
    pub place: u32,
    pub value: u64,
}

openraft::declare_raft_types!(
    pub Types:
        D = Update,
        R = (),
        Node = openraft::BasicNode,
);

/// For how long each number of clients is measured, and how often; the median counts.
pub const FOR: Duration = Duration::from_secs(2);
pub const ROUNDS: usize = 3;
pub const CLIENTS: [usize; 3] = [1, 16, 256];

fn config() -> Result<Arc<Config>, Failure> {
    let config = Config {
        heartbeat_interval: 250,
        election_timeout_min: 1500,
        election_timeout_max: 3000,
        max_payload_entries: 1024,
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

async fn member(number: u64, addresses: &[SocketAddr]) -> Result<Raft<Types>, Failure> {
    let (log, state) = (store::Log::default(), store::State::default());
    let raft = Raft::new(number, config()?, link::Peers(addresses.to_vec()), log, state).await?;
    let listener = tokio::net::TcpListener::bind(addresses[number as usize]).await?;
    tokio::spawn(link::serve(raft.clone(), listener));
    Ok(raft)
}

struct Members(Vec<Child>);

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn measure() -> Result<(), Failure> {
    let listeners: Vec<_> = (0..3).map(|_| StdListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners.iter().map(StdListener::local_addr).collect::<Result<_, _>>()?;
    drop(listeners);
    let mut others = Members(Vec::new());
    for number in 1..3 {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", &number.to_string()]).args(addresses.iter().map(ToString::to_string));
        // The figures are this process's alone to print; and a member ends when what it was given to read ends, which is when
        // this process has gone, however it goes.
        others.0.push(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
    }
    let raft = member(0, &addresses).await?;
    let since = Instant::now();
    for address in &addresses {
        while let Err(error) = tokio::net::TcpStream::connect(address).await {
            for child in &mut others.0 {
                if let Some(status) = child.try_wait()? {
                    return Err(format!("a member has ended: {status}").into());
                }
            }
            if since.elapsed() > Duration::from_secs(30) {
                return Err(format!("no member can be reached at {address}: {error}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    raft.initialize(BTreeSet::from([0, 1, 2])).await?;
    raft.wait(Some(Duration::from_secs(30))).current_leader(0, "this member leads").await?;
    let mut rates = Vec::new();
    for clients in CLIENTS {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(updates_by(&raft, clients).await?);
        }
        rounds.sort_by(f64::total_cmp);
        rates.push(rounds[ROUNDS / 2]);
    }
    // A majority holds what was applied. That it is not always the same member that helps is seen by both others, which have
    // nearly all of it: else the figures are of two members.
    let metrics = raft.metrics().borrow().clone();
    let last = metrics.last_applied.map_or(0, |id| id.index);
    let held = |number: u64| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&number).copied().flatten());
        matched.map_or(0, |id| id.index)
    };
    if last < 100 || (1..3).any(|number| held(number) < last / 2) {
        return Err(format!("{last} updates were applied, {} and {} replicated", held(1), held(2)).into());
    }
    println!("{rates:.0?}");
    Ok(())
}

async fn updates_by(raft: &Raft<Types>, clients: usize) -> Result<f64, Failure> {
    let since = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|place| {
            let raft = raft.clone();
            tokio::spawn(async move {
                let mut count = 0u64;
                while since.elapsed() < FOR {
                    count += 1;
                    raft.client_write(Update { place: place as u32, value: count }).await?;
                }
                Ok::<u64, Failure>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / since.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["openraft"] => measure().await,
        ["etcd"] => etcd::measure().await,
        ["member", number, addresses @ ..] if addresses.len() == 3 => {
            let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse()).collect::<Result<_, _>>()?;
            let _raft = member(number.parse()?, &addresses).await?;
            // For as long as the process that measures lives.
            tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
                .await??;
            Ok(())
        }
        _ => Err("usage: outlive-bench-raft openraft|etcd".into()),
    }
}
