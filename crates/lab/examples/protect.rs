//! Tries a program that nobody has tried: protects a command line in a lab, runs a check against it again and again while
//! machines are killed, and says what came of it, or what keeps it from being protected.
//!
//! ```text
//! protect OUTLIVE KILLS CHECK [OPTION ...] -- COMMAND ...
//! protect target/release/outlive 3 'redis-cli -h $IP ping' --env A=b -- redis-server --bind 0.0.0.0
//! ```
//!
//! `CHECK` is for a shell, in the network of a machine outside, with the service's address in `$IP`; it has to end with 0
//! each time. A check that keeps a connection open for long tells more than one that connects anew.

use std::env;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use outlive_lab::Lab;
use outlive_lab::NetNs;
use outlive_lab::client::counter::{self, Wire};
use outlive_lab::client::stats::{Report, Stats};
use outlive_lab::client::workers::Workers;
use outlive_lab::cluster::WORKERS;
use outlive_lab::scenario::{self, Place, ScenarioError, Service, Traffic};

/// Programs begin to answer within that, and are protected.
const PATIENCE: Duration = Duration::from_secs(40);
const BETWEEN_CHECKS: Duration = Duration::from_millis(50);
const CHECKS_AT_ONCE: usize = 2;

struct Tried {
    check: String,
    options: Vec<String>,
    words: Vec<String>,
}

impl Service for Tried {
    fn name(&self) -> &str {
        "tried"
    }

    fn install(&mut self, _: &Lab) -> Result<scenario::Command, ScenarioError> {
        Ok(scenario::Command { options: self.options.clone(), words: self.words.clone() })
    }

    fn prepare(&mut self, place: &Place<'_>, say: &dyn Fn(&str)) -> Result<(), ScenarioError> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = run(place, &self.check) {
            if Instant::now() > deadline {
                return Err(ScenarioError::Service(format!("the check never passes: {error}")));
            }
            thread::sleep(BETWEEN_CHECKS);
        }
        say("answers");
        loop {
            let seen = place.cluster.inspect(WORKERS[0], self.name())?;
            if seen.is_protected() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = serde_json::Value::from(seen.more);
                return Err(ScenarioError::Service(format!("is not protected but {}: {why}", seen.state)));
            }
            thread::sleep(BETWEEN_CHECKS);
        }
    }

    fn connect(&mut self, place: &Place<'_>) -> Result<Box<dyn Traffic>, ScenarioError> {
        let (from, address) = (place.from.clone(), place.address.to_string());
        let workers = counter::start(CHECKS_AT_ONCE, BETWEEN_CHECKS, |_| {
            let (check, from, address) = (self.check.clone(), from.clone(), address.clone());
            Ok(Box::new(Check { check, from, address, passed: 0 }))
        });
        let workers =
            workers.map_err(|source| ScenarioError::Io { attempt: "start the checks".into(), source })?;
        Ok(Box::new(Checks(workers)))
    }
}

struct Check {
    check: String,
    from: NetNs,
    address: String,
    passed: u64,
}

impl Wire for Check {
    fn increment(&mut self) -> io::Result<u64> {
        self.from.run(|| shell(&self.check, &self.address))?;
        self.passed += 1;
        Ok(self.passed)
    }
}

struct Checks(Workers);

impl Traffic for Checks {
    fn stats(&self) -> &Stats {
        self.0.stats()
    }

    fn finish(self: Box<Self>) -> io::Result<Report> {
        Ok(self.0.finish())
    }
}

fn run(place: &Place<'_>, check: &str) -> io::Result<()> {
    place.from.run(|| shell(check, &place.address.to_string()))
}

fn shell(check: &str, address: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", check]).env("IP", address).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim())))
}

fn main() -> ExitCode {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let command = words.split_off(end);
    let kills = words.get(1).and_then(|kills| kills.parse().ok());
    let (Some(kills), true, true) = (kills, words.len() >= 3, command.len() >= 2) else {
        eprintln!("protect OUTLIVE KILLS CHECK [OPTION ...] -- COMMAND ...");
        return ExitCode::from(2);
    };
    let options = words.split_off(3);
    let mut tried = Tried { check: words[2].clone(), options, words: command[1..].to_vec() };
    let begun = Instant::now();
    let say = |line: &str| eprintln!("[{:7.3}] {line}", begun.elapsed().as_secs_f64());
    match scenario::run(Path::new(&words[0]), &mut tried, kills, scenario::seed(), &say) {
        Ok(outcome) => {
            println!(
                "{} kills, {} checks passed, {} did not, stall {:?} ms",
                outcome.kills, outcome.acked_writes, outcome.connections_dropped, outcome.stall_ms
            );
            outcome.findings.iter().for_each(|finding| println!("{finding}"));
            if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
