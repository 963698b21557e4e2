//! What `cargo xtask bench replicated` runs: measures this library between two processes, over loopback or over two hosts of a
//! lab, a bare TCP request and reply on the same link, and Redis with `WAIT 1 0` for the same updates; the outcome as one line
//! of JSON.

mod redis;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use outlive_replicated::protection::Phase;
use outlive_replicated::testing::{Cluster, free_address_at};
use outlive_replicated::{Config, List, Node, Ref, Started, commit, commit_async, replicated, start, status};

type Failure = Box<dyn std::error::Error>;

/// What is changed: one field of one object per thread, so that threads do not wait for each other.
#[replicated]
#[derive(Default)]
struct Item {
    value: u64,
    other: u64,
}

#[replicated]
static CELLS: List<Ref<Item>> = List::new();

/// Updates of which each ships a change of its own.
#[replicated]
static NUMBERS: List<u64> = List::new();

#[replicated]
static ONE: Item = Item { value: 0, other: 0 };

const CLIENTS: [usize; 3] = [1, 16, 256];
const OBJECTS: usize = 1_000_000;
const FOR: Duration = Duration::from_secs(1);
/// Of which the median counts.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match &words[..] {
        [] => measure(&Hosts::loopback()),
        ["over", here, there, namespace] => match (here.parse(), there.parse()) {
            (Ok(here), Ok(there)) => {
                let namespace = Some((*namespace).to_owned());
                measure(&Hosts { here, there, namespace, next: AtomicU16::new(7500) })
            }
            _ => Err("usage: measure over ADDRESS ADDRESS NAMESPACE".into()),
        },
        ["follow", config, echo] => follow(Path::new(config), echo),
        ["objects", config] => objects(Path::new(config)),
        _ => Err("usage: measure [over HERE THERE NAMESPACE]".into()),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// Where both sides are.
struct Hosts {
    here: IpAddr,
    there: IpAddr,
    /// The network namespace of the other, as a file.
    namespace: Option<String>,
    /// A port of the other that nobody has.
    next: AtomicU16,
}

impl Hosts {
    fn loopback() -> Self {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { here, there: here, namespace: None, next: AtomicU16::new(0) }
    }

    /// An address for whoever runs on the first.
    fn free_here(&self) -> SocketAddr {
        free_address_at(self.here)
    }

    /// An address for whoever runs on the other, of which nothing else runs there.
    fn free_there(&self) -> SocketAddr {
        match self.namespace {
            Some(_) => SocketAddr::new(self.there, self.next.fetch_add(1, Ordering::Relaxed)),
            None => free_address_at(self.there),
        }
    }

    /// A program on the other.
    fn command_there(&self, program: &Path) -> Command {
        match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={namespace}")).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    fn nodes(&self) -> [Node; 2] {
        let node = |name: &str, address| Node { name: name.into(), address };
        [node("a", self.free_here()), node("b", self.free_there())]
    }
}

/// The backup, which also answers bare TCP requests.
fn follow(config: &Path, echo: &str) -> Result<(), Failure> {
    let listener = TcpListener::bind(echo)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
    let heard = Instant::now();
    if let Started::TakenOver { how, .. } = start(Config::load(config)?)? {
        let taken = heard.elapsed();
        let objects = CELLS.read().len();
        println!("taken {} {} {objects}", how.granted_in.as_micros(), how.ready_in.as_micros());
        eprintln!("taken over after {} ms of following", taken.as_millis());
    }
    loop {
        std::thread::park();
    }
}

/// A request and its reply are as long as a small commit and its acknowledgement.
const BARE: usize = 64;

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; BARE];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
}

/// A primary with many objects, which waits to be killed.
fn objects(config: &Path) -> Result<(), Failure> {
    start(Config::load(config)?)?;
    for batch in 0..OBJECTS / 1000 {
        let mut cells = CELLS.write();
        for number in 0..1000 {
            cells.push(Ref::new(Item { value: (batch * 1000 + number) as u64, other: 0 }));
        }
        drop(cells);
        commit()?;
    }
    wait_until_protected()?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn wait_until_protected() -> Result<(), Failure> {
    let since = Instant::now();
    while status().and_then(|status| status.phase) != Some(Phase::Protected) {
        if since.elapsed() > Duration::from_secs(120) {
            return Err("no backup has joined".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A child that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(arguments: &[&str]) -> Result<Self, Failure> {
        Self::run(Command::new(std::env::current_exe()?), arguments)
    }

    fn start_there(hosts: &Hosts, arguments: &[&str]) -> Result<Self, Failure> {
        Self::run(hosts.command_there(&std::env::current_exe()?), arguments)
    }

    fn run(mut command: Command, arguments: &[&str]) -> Result<Self, Failure> {
        Ok(Self(command.args(arguments).stdout(Stdio::piped()).spawn()?))
    }

    fn line(&mut self) -> Result<String, Failure> {
        let out = self.0.stdout.take().ok_or("the process has been heard already")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| "a path is not UTF-8".into())
}

fn measure(hosts: &Hosts) -> Result<(), Failure> {
    let cluster = Cluster::at(hosts.here);
    let takeover = measure_takeover(&cluster, hosts)?;
    eprintln!("{takeover}");

    let nodes = hosts.nodes();
    let config = |node: &Node| -> PathBuf { cluster.config_file("measure", node, &nodes) };
    let echo = hosts.free_there();
    start(Config::load(&config(&nodes[0]))?)?;
    for _ in 0..256 {
        CELLS.write().push(Ref::new(Item::default()));
    }
    NUMBERS.write().extend((0..1000).map(|_| 0));
    commit()?;
    let (path, answers) = (config(&nodes[1]), echo.to_string());
    let backup = ["follow", text(&path)?, &answers];
    let _backup = Process::start_there(hosts, &backup)?;
    wait_until_protected()?;

    let write_ns = tracked_write()?;
    let first_ns = first_write()?;
    eprintln!("tracked write {write_ns:.1} ns, the first of a value {first_ns:.1} ns");
    let (commit_us, bare_us) = latencies(echo)?;
    eprintln!("commit {commit_us:.1} us, bare {bare_us:.1} us");
    let mut commits = Vec::new();
    let mut redis_rates = Vec::new();
    let redis = redis::Pair::start(hosts)?;
    for clients in CLIENTS {
        // In turn, so that both meet the same machine.
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(committed_by(clients)?);
            theirs.push(redis.updates_by(clients, FOR)?);
        }
        let (rate, other) = (median(ours), median(theirs));
        eprintln!("{clients} clients: {rate:.0} commits/s, Redis WAIT 1 0 {other:.0}/s");
        commits.push(rate);
        redis_rates.push(other);
    }
    let updates = median((0..ROUNDS).map(|_| batched()).collect::<Result<_, _>>()?);
    eprintln!("batched {updates:.0} updates/s");
    let port = nodes[0].address.port();
    let (batched_bytes, lone_bytes) = (bytes_of(port, 1000)?, bytes_of(port, 1)?);
    println!(
        "{{\"tracked_write_ns\":{write_ns:.2},\"first_write_ns\":{first_ns:.2},\"commit_us_p50\":{commit_us:.1},\"bare_tcp_us_p50\":{bare_us:.1},\
         \"commits_per_second\":{commits:.0?},\"redis_wait_per_second\":{redis_rates:.0?},\
         \"batched_updates_per_second\":{updates:.0},\"bytes_per_u64_batched\":{batched_bytes:.1},\
         \"bytes_per_u64_alone\":{lone_bytes:.1},{takeover}}}"
    );
    Ok(())
}

/// One field changed through a guard of its own, within transactions of 1,000; shipped, and not waited for but at the end.
fn tracked_write() -> Result<f64, Failure> {
    let mut times = Vec::new();
    for round in 0..300u64 {
        let since = Instant::now();
        for number in 0..1000 {
            ONE.write().value = round * 1000 + number + 1;
        }
        times.push(since.elapsed().as_nanos() as f64 / 1000.0);
        commit()?;
    }
    Ok(median(times))
}

/// Of 256 objects, each changed once in a transaction: remembering what it was, finding what changed, and the commit's own
/// work but for waiting.
fn first_write() -> Result<f64, Failure> {
    let cells: Vec<Ref<Item>> = CELLS.read().read().iter().copied().collect();
    let mut times = Vec::new();
    for round in 0..300u64 {
        let since = Instant::now();
        for cell in &cells {
            cell.write().value = round + 1;
        }
        let commit = commit_async()?;
        times.push(since.elapsed().as_nanos() as f64 / cells.len() as f64);
        commit.wait()?;
    }
    Ok(median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Of a lone commit and of a bare request, in turn, so that both meet the same machine.
fn latencies(echo: SocketAddr) -> Result<(f64, f64), Failure> {
    let mut stream = TcpStream::connect(echo)?;
    stream.set_nodelay(true)?;
    let (mut commits, mut bare) = (Vec::new(), Vec::new());
    let mut bytes = [7; BARE];
    for round in 0..40u64 {
        for number in 0..100 {
            ONE.write().other = round * 100 + number + 1;
            let since = Instant::now();
            commit()?;
            commits.push(since.elapsed().as_nanos() as f64 / 1000.0);
        }
        for _ in 0..100 {
            let since = Instant::now();
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            bare.push(since.elapsed().as_nanos() as f64 / 1000.0);
        }
    }
    Ok((median(commits), median(bare)))
}

/// Commits a second, each acknowledged before the thread's next.
fn committed_by(threads: usize) -> Result<f64, Failure> {
    let cells: Vec<Ref<Item>> = CELLS.read().read().iter().take(threads).cloned().collect();
    commit()?;
    let since = Instant::now();
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = cells
            .iter()
            .map(|cell| {
                scope.spawn(move || -> Result<u64, String> {
                    let mut count = 0;
                    while since.elapsed() < FOR {
                        count += 1;
                        cell.write().value += 1;
                        commit().map_err(|error| error.to_string())?;
                    }
                    Ok(count)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err("a thread panicked".into())))
            .collect::<Vec<_>>()
    });
    let took = since.elapsed();
    let total: u64 = counts.into_iter().sum::<Result<u64, String>>()?;
    Ok(total as f64 / took.as_secs_f64())
}

/// One update, with a guard of its own.
fn set(place: usize, value: u64) {
    if let Some(mut number) = NUMBERS.write().get_mut(place) {
        *number = value;
    }
}

/// Updates a second from one thread, 100 different numbers to a commit, of which 1,000 may be unacknowledged.
fn batched() -> Result<f64, Failure> {
    let mut waiting = std::collections::VecDeque::new();
    let (since, mut count) = (Instant::now(), 0u64);
    while since.elapsed() < FOR {
        for place in 0..100 {
            count += 1;
            set(place, count);
        }
        waiting.push_back(commit_async()?);
        if waiting.len() > 1000
            && let Some(first) = waiting.pop_front()
        {
            first.wait()?;
        }
    }
    if let Some(last) = waiting.pop_back() {
        last.wait()?;
    }
    Ok(count as f64 / since.elapsed().as_secs_f64())
}

/// Bytes that TCP sent on the link for one changed u64 of a commit of so many, TLS and framing included.
fn bytes_of(port: u16, changes: u64) -> Result<f64, Failure> {
    let rounds = 20_000 / changes;
    let before = bytes_sent(port)?;
    for round in 0..rounds {
        for number in 0..changes {
            match changes {
                1 => ONE.write().value = round + 1,
                _ => set(number as usize, round * changes + number + 1),
            }
        }
        commit()?;
    }
    let sent = bytes_sent(port)? - before;
    Ok(sent as f64 / (rounds * changes) as f64)
}

fn bytes_sent(port: u16) -> Result<u64, Failure> {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tinH", "state", "established", &filter]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix("bytes_sent:"));
    let counts: Vec<u64> = counts.map(str::parse).collect::<Result<_, _>>()?;
    if counts.is_empty() { Err("ss shows no connection of the link".into()) } else { Ok(counts.iter().sum()) }
}

/// From the kill of a primary with a million objects.
fn measure_takeover(cluster: &Cluster, hosts: &Hosts) -> Result<String, Failure> {
    let nodes = hosts.nodes();
    let config = |node: &Node| cluster.config_file("objects", node, &nodes);
    let mut primary = Process::start(&["objects", text(&config(&nodes[0]))?])?;
    // Its first word comes when it is protected, so the backup is started before.
    std::thread::sleep(Duration::from_millis(500));
    let (path, answers) = (config(&nodes[1]), hosts.free_there().to_string());
    let follow = ["follow", text(&path)?, &answers];
    let mut backup = Process::start_there(hosts, &follow)?;
    let line = primary.line()?;
    if line != "ready" {
        return Err(format!("the primary says {line:?}").into());
    }
    let since = Instant::now();
    primary.0.kill()?;
    let line = backup.line()?;
    let total = since.elapsed();
    let words: Vec<&str> = line.split(' ').collect();
    let ["taken", granted, ready, objects] = words[..] else {
        return Err(format!("not taken over: {line}").into());
    };
    if objects != OBJECTS.to_string() {
        return Err(format!("{objects} objects were taken over").into());
    }
    Ok(format!(
        "\"takeover_objects\":{objects},\"takeover_granted_us\":{granted},\"takeover_ready_us\":{ready},\
         \"takeover_from_kill_us\":{}",
        total.as_micros()
    ))
}
