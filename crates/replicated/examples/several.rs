//! Measures a commit with two backups on this machine, three processes over loopback, for each `wait_for`, and beside it with
//! one backup: `cargo run --release --package outlive-replicated --features testing --example several`.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use outlive_replicated::testing::{Cluster, free_address};
use outlive_replicated::{Config, List, Node, Ref, commit, replicated, start, status};

type Failure = Box<dyn std::error::Error>;

/// One field of one object per thread, so that threads do not wait for each other.
#[replicated]
#[derive(Default)]
struct Item {
    value: u64,
}

#[replicated]
static CELLS: List<Ref<Item>> = List::new();

const CLIENTS: [usize; 2] = [1, 16];
const FOR: Duration = Duration::from_secs(3);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match &words[..] {
        [] => all(),
        ["follow", config] => follow(Path::new(config)),
        ["lead", config, backups] => lead(Path::new(config), backups),
        _ => Err("usage: several".into()),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// A child that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(words: &[&str]) -> Result<Process, Failure> {
    Ok(Process(Command::new(std::env::current_exe()?).args(words).spawn()?))
}

fn all() -> Result<(), Failure> {
    let cluster = Cluster::new();
    for (number, (backups, wait_for)) in [(1, "all"), (2, "all"), (2, "one")].into_iter().enumerate() {
        let names = ["a", "b", "c"].into_iter().take(backups + 1);
        let nodes: Vec<_> = names.map(|name| Node { name: name.into(), address: free_address() }).collect();
        let mut configs = Vec::new();
        for node in &nodes {
            let config = cluster.config_file(&format!("several-{number}"), node, &nodes);
            let text = std::fs::read_to_string(&config)?;
            std::fs::write(&config, format!("wait_for = {wait_for:?}\n{text}"))?;
            configs.push(config.to_str().ok_or("a path is not UTF-8")?.to_owned());
        }
        println!("{backups} backups, wait_for = {wait_for}:");
        let mut primary = run(&["lead", &configs[0], &backups.to_string()])?;
        // The first is the primary.
        std::thread::sleep(Duration::from_secs(1));
        let followers: Result<Vec<_>, _> =
            configs[1..].iter().map(|config| run(&["follow", config])).collect();
        let followers = followers?;
        if !primary.0.wait()?.success() {
            return Err("the primary failed".into());
        }
        drop(followers);
    }
    Ok(())
}

fn follow(config: &Path) -> Result<(), Failure> {
    start(Config::load(config)?)?;
    // Taken over: all is measured.
    Ok(())
}

fn lead(config: &Path, backups: &str) -> Result<(), Failure> {
    start(Config::load(config)?)?;
    let backups: usize = backups.parse()?;
    CELLS.write().extend((0..16).map(|_| Ref::new(Item::default())));
    commit()?;
    let counting =
        || status().map_or(0, |status| status.backups.iter().filter(|backup| backup.counts).count());
    let since = Instant::now();
    while counting() < backups {
        if since.elapsed() > Duration::from_secs(60) {
            return Err("not all backups have joined".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    for clients in CLIENTS {
        let mut times = committed_by(clients)?;
        times.sort_unstable();
        let of = |share: usize| times[(times.len() - 1) * share / 100].as_nanos() as f64 / 1000.0;
        let rate = times.len() as f64 / FOR.as_secs_f64();
        println!("  {clients} threads: {rate:.0} commits/s, p50 {:.1} us, p99 {:.1} us", of(50), of(99));
    }
    Ok(())
}

/// How long each commit took, of threads that make one after the other.
fn committed_by(threads: usize) -> Result<Vec<Duration>, Failure> {
    let cells: Vec<Ref<Item>> = CELLS.read().read().iter().take(threads).copied().collect();
    commit()?;
    let since = Instant::now();
    let times = std::thread::scope(|scope| {
        let work = |cell: Ref<Item>| {
            move || -> Result<Vec<Duration>, String> {
                let mut times = Vec::new();
                while since.elapsed() < FOR {
                    cell.write().value += 1;
                    let begun = Instant::now();
                    commit().map_err(|error| error.to_string())?;
                    times.push(begun.elapsed());
                }
                Ok(times)
            }
        };
        let threads: Vec<_> = cells.iter().map(|cell| scope.spawn(work(*cell))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or(Err("a thread panicked".into())));
        joined.collect::<Result<Vec<_>, String>>()
    })?;
    Ok(times.into_iter().flatten().collect())
}
