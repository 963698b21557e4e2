//! Arming fault points of the programs on a host, and what follows when one is hit.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outlive_fault::{HIT, Point};
use outlive_lab::Host;

use super::until;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The process dies; its host lives.
    Kill,
    /// The process is stopped.
    Stop,
    /// The whole host stands still.
    Freeze,
    /// The thread hangs; its process lives.
    Hang,
}

/// Where the programs of a host look for what is to happen.
pub fn control_file(host: &Host) -> PathBuf {
    host.disk().join("faults")
}

fn claimed_file(host: &Host) -> PathBuf {
    host.disk().join(format!("faults{HIT}"))
}

/// The next time but `nth - 1` that a program on the host takes this step, this happens, once. `when` is empty, or
/// `protected` if it is to happen to one side of a protected pair only.
pub fn arm(host: &Host, point: Point, nth: u64, when: &str, act: Act) {
    let _ = fs::remove_file(claimed_file(host));
    let action = match act {
        Act::Kill => "kill".to_owned(),
        Act::Stop => "stop".to_owned(),
        Act::Hang => "hang".to_owned(),
        Act::Freeze => format!("freeze {}", host.control_group().unwrap().display()),
    };
    let new = host.disk().join("faults.new");
    fs::write(&new, format!("{} {nth} {when} {action}\n", point.name())).unwrap();
    fs::rename(new, control_file(host)).unwrap();
}

/// Nothing happens any more, if it has not yet; whether it has.
pub fn disarm(host: &Host) -> bool {
    let _ = fs::remove_file(control_file(host));
    is_hit(host)
}

pub fn is_hit(host: &Host) -> bool {
    claimed_file(host).exists()
}

/// Waits until one of these hosts has hit its point, and disarms the others. `None` if none does in time.
pub fn hit_of<'a>(hosts: &[&'a Host], limit: Duration) -> Option<&'a Host> {
    let deadline = Instant::now() + limit;
    let hit = loop {
        if let Some(hit) = hosts.iter().find(|host| is_hit(host)) {
            break Some(*hit);
        }
        if Instant::now() >= deadline {
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    for host in hosts.iter().filter(|host| hit.is_none_or(|hit| hit.name() != host.name())) {
        disarm(host);
    }
    hit
}

/// What a hit left standing still is now a dead host: nothing of it reaches the wire, and then it is gone.
pub fn die(host: &Host) {
    until("the host stands still", || host.freeze().is_ok());
    host.power_off().unwrap();
}
