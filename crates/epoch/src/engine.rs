//! What the primary's and the backup's side share: identity, arbitration, status, and the queue of events.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};

use outlive_cluster::{Holder, Incarnation, NodeName, Outcome, WorkloadName};
use outlive_process::tree::Look;
use outlive_stream::tls::Identity;

use crate::arbiter::Arbiter;
use crate::control::{self, Side, Spread, State, Status};
use crate::error::{Error, Result};
use crate::events::{Events, Teller};
use crate::link::LinkEvent;
use crate::protector::Candidate;
use crate::pulse::Pulse;
use crate::setup::Setup;

/// Why the seed nodes were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Alone,
    AddBackup {
        link: u64,
    },
    Stop,
    /// To hand over to the backup.
    Switchover,
    /// What became of that.
    Settle,
    /// To go on after all: who was to be the new primary is gone.
    Back,
}

pub enum Event {
    Pump(outlive_net::Event),
    Link(u64, LinkEvent),
    Candidate(Result<Box<Candidate>, String>),
    Arbitrated(Asked, Outcome),
    /// Frames for the workload that reached its old primary, as an input message.
    Forwarded(Vec<u8>),
    Control(control::Request, Sender<control::Response>),
}

pub struct Engine {
    pub setup: Setup,
    pub identity: Arc<Identity>,
    pub me: Holder,
    pub arbiter: Arc<Arbiter>,
    pub events: Events<Event>,
    pub status: Board,
    pub launcher: Vec<std::ffi::OsString>,
    /// An operator wants this backup to take over.
    pub forced: Arc<AtomicBool>,
    pub pulse: Arc<Pulse>,
    /// How it is told where threads are, for who patches the workload.
    pub look: Look,
}

impl Engine {
    pub fn new(setup: Setup, look: Look) -> Result<Self> {
        let node = &setup.node;
        let identity = Arc::new(Identity::load(&node.authority, &node.certificate, &node.key)?);
        let bad_name = |error: outlive_cluster::NameError| Error::Arbitration(error.to_string());
        let me = Holder {
            incarnation: Incarnation::random(),
            node: node.name.parse::<NodeName>().map_err(bad_name)?,
        };
        let workload = setup.workload.name.parse::<WorkloadName>().map_err(bad_name)?;
        let address_of = |name: &str| -> Option<SocketAddr> {
            if name == node.name {
                return Some(node.listen);
            }
            node.peers.iter().find(|peer| peer.name == name).map(|peer| peer.address)
        };
        let arbiter = Arc::new(Arbiter::new(node.seeds.clone(), workload, &identity, address_of));
        let status = Board::new(&setup, &me);
        let launcher = setup.launcher.iter().map(Into::into).collect();
        Ok(Self {
            identity,
            me,
            arbiter,
            events: Events::new()?,
            status,
            launcher,
            forced: Arc::default(),
            pulse: Arc::default(),
            look,
            setup,
        })
    }

    pub fn teller(&self) -> Teller<Event> {
        self.events.teller()
    }

    pub fn directory(&self) -> PathBuf {
        self.setup.directory()
    }
}

/// The status, written by the engine and read by whoever asks.
#[derive(Clone)]
pub struct Board {
    status: Arc<Mutex<Status>>,
    figures: Arc<Mutex<Figures>>,
}

/// Of the last epochs: how long the workload stood still (µs), pages written, from its going on to the commit (µs).
#[derive(Debug, Default)]
pub struct Figures {
    pub pause: History,
    pub pages: History,
    pub commit: History,
}

impl Board {
    fn new(setup: &Setup, me: &Holder) -> Self {
        let status = Status {
            name: setup.workload.name.clone(),
            state: State::Waiting,
            role: Side::Backup,
            generation: 0,
            epoch: 0,
            primary_node: None,
            backup_node: None,
            incarnation: me.incarnation.to_string(),
            addresses: setup.workload.network.addresses.iter().map(ToString::to_string).collect(),
            lag_epochs: 0,
            pause_us: Spread::default(),
            dirty_pages: Spread::default(),
            commit_us: Spread::default(),
            held_frames: 0,
            held_bytes: 0,
            exposed_because: None,
            moving: None,
            move_failed: None,
            last_failover: None,
            reprotect_ms: None,
            supervisor_pid: std::process::id(),
            init_pid: 0,
        };
        Self { status: Arc::new(Mutex::new(status)), figures: Arc::default() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Status> {
        // Plain figures: whatever was written is as good as before.
        self.status.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The status as it is told, with what is worth computing only for somebody who asks.
    pub fn get(&self) -> Status {
        let mut status = self.lock().clone();
        let figures = self.figures();
        status.pause_us = figures.pause.spread();
        status.dirty_pages = figures.pages.spread();
        status.commit_us = figures.commit.spread();
        status
    }
}

/// The last thousand values of a figure.
#[derive(Debug, Default)]
pub struct History(VecDeque<f64>);

impl History {
    const LENGTH: usize = 1000;

    pub fn push(&mut self, value: f64) {
        if self.0.len() == Self::LENGTH {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    pub fn spread(&self) -> Spread {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Spread::default() };
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        let p99 = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)];
        Spread { min: *min, mean, p99, max: *max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_keeps_the_last_thousand() {
        let mut history = History::default();
        (0..1500).for_each(|value| history.push(f64::from(value)));
        let spread = history.spread();
        assert_eq!((spread.min, spread.max, spread.p99), (500.0, 1499.0, 1490.0));
        assert_eq!(History::default().spread(), Spread::default());
    }
}
