//! The queue is killed again and again while workers work, some of which die themselves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outlive_replicated::Node;
use outlive_replicated::testing::{Cluster, free_address};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SUBMITTERS: u64 = 4;
const WORKERS: u64 = 16;
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

struct Place {
    config: PathBuf,
    serves: SocketAddr,
    child: Option<Child>,
}

impl Place {
    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jobs"));
        command.arg(&self.config).arg(self.serves.to_string());
        if std::env::var_os("OUTLIVE_LOUD").is_none() {
            command.stderr(Stdio::null());
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks whoever answers, again and again, the same request under the same number.
struct Client {
    serves: [SocketAddr; 2],
    number: u64,
    asked: u64,
    connection: Option<BufReader<TcpStream>>,
    next: usize,
}

impl Client {
    fn new(serves: [SocketAddr; 2], number: u64) -> Self {
        Self { serves, number, asked: 0, connection: None, next: 0 }
    }

    fn ask(&mut self, request: &str) -> String {
        self.asked += 1;
        let request = format!("{} {} {request}\n", self.number, self.asked);
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < PATIENCE, "nobody answers {request:?}");
            match self.try_ask(&request) {
                Some(reply) => return reply,
                None => {
                    self.connection = None;
                    self.next += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn try_ask(&mut self, request: &str) -> Option<String> {
        if self.connection.is_none() {
            self.connection = Some(connect(self.serves[self.next % 2])?);
        }
        exchange(self.connection.as_mut()?, request)
    }
}

fn connect(address: SocketAddr) -> Option<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    Some(BufReader::new(stream))
}

fn exchange(connection: &mut BufReader<TcpStream>, request: &str) -> Option<String> {
    connection.get_mut().write_all(request.as_bytes()).ok()?;
    let mut reply = String::new();
    connection.read_line(&mut reply).ok()?;
    reply.ends_with('\n').then(|| reply.trim_end().to_owned())
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn protected(places: &[Place]) -> usize {
    let is = |place: &Place| {
        let status = exchange(&mut connect(place.serves)?, "status\n")?;
        status.ends_with("Some(Protected)").then_some(())
    };
    until("the pair is protected", || places.iter().position(|place| is(place).is_some()))
}

/// The texts by job of what was submitted and acknowledged.
fn submit(over: &AtomicBool, mut client: Client) -> BTreeMap<u64, String> {
    let mut submitted = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        let text = format!("text {} of {}", client.asked, client.number);
        let reply = client.ask(&format!("submit {text}"));
        let job = reply.strip_prefix("id ").unwrap().parse().unwrap();
        assert_eq!(submitted.insert(job, text), None, "two jobs of one number");
        std::thread::sleep(Duration::from_millis(5));
    }
    submitted
}

/// What was done and acknowledged, and how often this worker died over a job.
fn work(empty: &AtomicBool, mut client: Client) -> (Vec<(u64, String)>, u64) {
    let mut rng = SmallRng::seed_from_u64(client.number);
    let (mut done, mut died) = (Vec::new(), 0);
    loop {
        let reply = client.ask("lease 1000");
        let Some(job) = reply.strip_prefix("job ") else {
            assert_eq!(reply, "none");
            if empty.load(Ordering::Relaxed) {
                return (done, died);
            }
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let (job, text) = job.split_once(' ').unwrap();
        if rng.random_bool(0.02) {
            died += 1;
            continue;
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..5)));
        match client.ask(&format!("done {job}")).as_str() {
            "ok" => done.push((job.parse().unwrap(), text.to_owned())),
            // A lease that ran out while the queue was taken over.
            "no it is not leased to you any more" | "no it is done" => {}
            other => panic!("{other}"),
        }
    }
}

#[test]
fn every_job_is_done_once_and_none_is_lost() {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let cluster = Cluster::new();
    let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
    let mut places: Vec<Place> = nodes
        .iter()
        .map(|node| Place {
            config: cluster.config_file("jobs", node, &nodes),
            serves: free_address(),
            child: None,
        })
        .collect();
    let serves = [places[0].serves, places[1].serves];
    places.iter_mut().for_each(Place::start);

    // Told also when this fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (over, empty) = (AtomicBool::new(false), AtomicBool::new(false));
    let (submitted, done) = std::thread::scope(|scope| {
        let (no_more_jobs, no_more_work) = (Over(&over), Over(&empty));
        let (over, empty) = (&over, &empty);
        let submitters: Vec<_> = (0..SUBMITTERS)
            .map(|number| scope.spawn(move || submit(over, Client::new(serves, 1000 + number))))
            .collect();
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| scope.spawn(move || work(empty, Client::new(serves, 2000 + number))))
            .collect();
        let mut rng = SmallRng::from_os_rng();
        for _ in 0..kills {
            let primary = protected(&places);
            std::thread::sleep(Duration::from_millis(rng.random_range(50..300)));
            places[primary].kill();
            places[primary].start();
        }
        drop(no_more_jobs);
        let submitted: Vec<_> = submitters.into_iter().map(|thread| thread.join().unwrap()).collect();
        let total: usize = submitted.iter().map(BTreeMap::len).sum();
        // Also those whose workers died: their leases end.
        until("everything is done", || {
            let primary = protected(&places);
            let stats = exchange(&mut connect(places[primary].serves)?, "stats\n")?;
            stats.ends_with(&format!("0 0 {total}")).then_some(())
        });
        drop(no_more_work);
        let done: Vec<_> = workers.into_iter().map(|thread| thread.join().unwrap()).collect();
        (submitted, done)
    });

    let submitted: BTreeMap<u64, String> = submitted.into_iter().flatten().collect();
    let died: u64 = done.iter().map(|(_, died)| died).sum();
    let mut finished = BTreeMap::new();
    for (job, text) in done.into_iter().flat_map(|(done, _)| done) {
        assert_eq!(finished.insert(job, text), None, "job {job} was done twice");
    }
    assert_eq!(finished, submitted);
    eprintln!("{kills} kills, {} jobs, workers died over {died} of them", submitted.len());
}
