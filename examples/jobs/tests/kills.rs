//! The queue is killed again and again while workers work, some of which die themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outlive_replicated::testing::{Client, Cluster, Line, Place, until};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SUBMITTERS: u64 = 4;
const WORKERS: u64 = 16;
/// A client of a number, which numbers its requests.
struct Numbered {
    client: Client,
    number: u64,
    asked: u64,
}

impl Numbered {
    fn new(serves: [SocketAddr; 2], number: u64) -> Self {
        Self { client: Client::new(serves), number, asked: 0 }
    }

    fn ask(&mut self, request: &str) -> String {
        self.asked += 1;
        self.client.ask(&format!("{} {} {request}", self.number, self.asked))
    }
}

/// The texts by job of what was submitted and acknowledged.
fn submit(over: &AtomicBool, mut client: Numbered) -> BTreeMap<u64, String> {
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
fn work(empty: &AtomicBool, mut client: Numbered) -> (Vec<(u64, String)>, u64) {
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
    let mut places = Place::pair(&cluster, "jobs", env!("CARGO_BIN_EXE_jobs"), &[]);
    let serves = [places[0].serves, places[1].serves];

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
            .map(|number| scope.spawn(move || submit(over, Numbered::new(serves, 1000 + number))))
            .collect();
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| scope.spawn(move || work(empty, Numbered::new(serves, 2000 + number))))
            .collect();
        let mut rng = SmallRng::from_os_rng();
        for _ in 0..kills {
            let primary = Place::protected(&places);
            std::thread::sleep(Duration::from_millis(rng.random_range(50..300)));
            places[primary].kill();
            places[primary].start();
        }
        drop(no_more_jobs);
        let submitted: Vec<_> = submitters.into_iter().map(|thread| thread.join().unwrap()).collect();
        let total: usize = submitted.iter().map(BTreeMap::len).sum();
        // Also those whose workers died: their leases end.
        until("everything is done", || {
            let primary = Place::protected(&places);
            let stats = Line::to(places[primary].serves)?.ask("stats")?;
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
