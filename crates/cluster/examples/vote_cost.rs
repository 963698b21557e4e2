//! What a vote costs on a disk: both phases of one change at one seed node, each persisted before it is answered.
//!
//!     cargo run --release -p outlive-cluster --example vote_cost -- DIRECTORY

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use outlive_cluster::{Acceptor, Ask, Attempt, ClusterId, NodeName, RedbStorage, Request, Seeds};

const CHANGES: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let directory: PathBuf =
        std::env::args_os().nth(1).ok_or("name a directory on the disk to measure")?.into();
    let path = directory.join(format!("vote-cost-{}", std::process::id()));
    let me: NodeName = "seed".parse()?;
    let cluster = ClusterId::random();
    let mut acceptor = Acceptor::open(RedbStorage::open(&path)?)?;
    acceptor.bootstrap(Seeds::new(cluster, 1, vec![me.clone()])?, me.clone())?;

    let mut times = Vec::with_capacity(CHANGES);
    for counter in 1..=CHANGES as u64 {
        let (workload, attempt) = ("measured".parse()?, Attempt(1));
        let prepare = Ask::Prepare { workload, counter };
        let accept = Ask::Accept { workload: "measured".parse()?, counter, value: None };
        let start = Instant::now();
        for ask in [prepare, accept] {
            acceptor.handle(&me, &Request { cluster, seeds_version: 1, attempt, ask });
        }
        times.push(start.elapsed());
    }
    std::fs::remove_file(&path)?;
    times.sort();
    let at = |share: usize| times[CHANGES * share / 100];
    println!("both phases, {CHANGES} times: median {:?}, 99 of 100 within {:?}", at(50), at(99));
    Ok(())
}
