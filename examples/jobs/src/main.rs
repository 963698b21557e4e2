//! A queue of jobs with leases, one request a line, over TCP.
//!
//!     jobs CONFIG LISTEN
//!
//! A worker leases a job for a time. If it says in that time that the job is done, it is; else the job goes to another.
//! Timers do not travel: a deadline is a time of one machine's clock. What is replicated is that a job is leased, to whom
//! and for how long; whoever takes over begins all leases anew, which is late and never early.
//!
//! | request | reply |
//! |---|---|
//! | `CLIENT NUMBER submit TEXT` | `id JOB` |
//! | `CLIENT NUMBER lease MILLISECONDS` | `job JOB TEXT`, or `none` |
//! | `CLIENT NUMBER done JOB` | `ok`, or `no` and why |
//! | `stats` | how many wait, are leased, are done |
//! | `status` | the generation, and whether a backup is in step |

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outlive_replicated::{
    Config, Deque, OrderedMap, RequestError, RequestId, Started, TransactionError, commit, once, replicated,
    start, status, transaction,
};

type Failure = Box<dyn std::error::Error>;

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(10);

#[replicated]
struct Job {
    text: String,
    lease: Option<Lease>,
}

#[replicated]
#[derive(Clone, PartialEq)]
struct Lease {
    worker: u128,
    milliseconds: u64,
    /// Told apart from an earlier lease of the same job.
    number: u64,
}

/// All that are not done.
#[replicated]
static JOBS: OrderedMap<u64, Job> = OrderedMap::new();

/// Those that nobody has leased, the next one first.
#[replicated]
static WAITING: Deque<u64> = Deque::new();

#[replicated]
static TOTALS: Totals = Totals { submitted: 0, leased: 0, done: 0 };

#[replicated]
struct Totals {
    submitted: u64,
    leased: u64,
    done: u64,
}

/// When the lease of a number ends, by this machine's clock.
static DEADLINES: Mutex<Option<HashMap<u64, (u64, Instant)>>> = Mutex::new(None);

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, listen] = &arguments[..] else { return Err("usage: jobs CONFIG LISTEN".into()) };
    if let Started::TakenOver { .. } = start(Config::load(Path::new(config))?)? {
        for (job, content) in JOBS.read().read().iter() {
            if let Some(lease) = &content.lease {
                set_deadline(*job, lease.number, lease.milliseconds);
            }
        }
    }
    std::thread::spawn(expire);
    let listener = TcpListener::bind(listen)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A client that leaves in the middle is its own business.
            let _ = serve(&stream);
        });
    }
    Ok(())
}

fn with_deadlines<R>(then: impl FnOnce(&mut HashMap<u64, (u64, Instant)>) -> R) -> R {
    let mut deadlines = DEADLINES.lock().unwrap_or_else(PoisonError::into_inner);
    then(deadlines.get_or_insert_default())
}

fn set_deadline(job: u64, lease: u64, milliseconds: u64) {
    // A lease for longer than the clock goes has no end.
    if let Some(end) = Instant::now().checked_add(Duration::from_millis(milliseconds)) {
        with_deadlines(|deadlines| deadlines.insert(lease, (job, end)));
    }
}

/// For ever: gives back what was not done in time.
fn expire() {
    loop {
        std::thread::sleep(TICK);
        let now = Instant::now();
        let over: Vec<(u64, u64)> = with_deadlines(|deadlines| {
            let over =
                deadlines.iter().filter(|(_, (_, end))| *end <= now).map(|(lease, (job, _))| (*lease, *job));
            let over: Vec<_> = over.collect();
            for (lease, _) in &over {
                deadlines.remove(lease);
            }
            over
        });
        for (lease, job) in over {
            match transaction(|| {
                give_back(job, lease);
                Ok::<(), ()>(())
            }) {
                Ok(()) | Err(TransactionError::Work(())) => {}
                Err(TransactionError::Commit(error)) => step_down(&error),
            }
        }
    }
}

fn give_back(job: u64, lease: u64) {
    let mut jobs = JOBS.write();
    let Some(mut content) = jobs.get_mut(&job) else { return };
    if content.lease.as_ref().is_some_and(|current| current.number == lease) {
        content.lease = None;
        WAITING.write().push_front(job);
    }
}

/// What has to be ended when nothing is acknowledged any more: another process has taken over, and clients find it.
fn step_down(error: &dyn std::error::Error) -> ! {
    eprintln!("error: {error}");
    std::process::exit(1)
}

fn serve(mut stream: &TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    for line in BufReader::new(stream).lines() {
        let reply = answer(&line?).unwrap_or_else(|error| error);
        stream.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    match &words[..] {
        ["stats"] => {
            // One after the other: a guard of one held while another is asked for may meet a transaction the other way.
            let waiting = WAITING.read().len();
            let all = JOBS.read().len();
            let done = TOTALS.read().done;
            commit().unwrap_or_else(|error| step_down(&error));
            Ok(format!("{waiting} {} {done}", all.saturating_sub(waiting)))
        }
        ["status"] => {
            let status = status().ok_or("no status")?;
            Ok(format!("{} {:?}", status.generation, status.phase))
        }
        [client, number, request, argument] => {
            let client: u128 = client.parse().map_err(|_| format!("no {client:?} is no client"))?;
            let number = number.parse().map_err(|_| format!("no {number:?} is no number"))?;
            let outcome = once(RequestId { client, number }, || {
                match *request {
                    "submit" => Ok(submit(argument)),
                    "lease" => lease(client, argument),
                    "done" => done(client, argument),
                    _ => Err("no such request"),
                }
                .map(String::into_bytes)
            });
            match outcome {
                Ok(reply) => Ok(String::from_utf8_lossy(&reply).into_owned()),
                Err(RequestError::Work(why)) => Err(format!("no {why}")),
                Err(RequestError::Passed(number)) => Err(format!("no answer to {number} any more")),
                Err(RequestError::Commit(error)) => step_down(&error),
            }
        }
        _ => Err("no such request".into()),
    }
}

fn submit(text: &str) -> String {
    let mut jobs = JOBS.write();
    let mut totals = TOTALS.write();
    totals.submitted += 1;
    let job = totals.submitted;
    jobs.insert(job, Job { text: text.to_owned(), lease: None });
    WAITING.write().push_back(job);
    format!("id {job}")
}

fn lease(worker: u128, milliseconds: &str) -> Result<String, &'static str> {
    let milliseconds = milliseconds.parse().map_err(|_| "that is no time")?;
    let mut jobs = JOBS.write();
    let Some(job) = WAITING.write().pop_front() else { return Ok("none".into()) };
    let mut totals = TOTALS.write();
    totals.leased += 1;
    let number = totals.leased;
    let Some(mut content) = jobs.get_mut(&job) else { return Err("the queue names a job that is not there") };
    content.lease = Some(Lease { worker, milliseconds, number });
    // If this transaction is undone, there is no lease of this number when it ends.
    set_deadline(job, number, milliseconds);
    Ok(format!("job {job} {}", content.text))
}

fn done(worker: u128, job: &str) -> Result<String, &'static str> {
    let job = job.parse().map_err(|_| "that is no job")?;
    let mut jobs = JOBS.write();
    let holder = jobs.get(&job).ok_or("it is done")?.lease.as_ref().map(|lease| lease.worker);
    if holder != Some(worker) {
        return Err("it is not leased to you any more");
    }
    jobs.remove(&job);
    TOTALS.write().done += 1;
    Ok("ok".into())
}
