//! The traffic: transfers one after the other, of several kinds side by side, until they are told to end.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::ClientError;
use crate::client::bulk::{Bulk, Transfer};
use crate::client::opener;
use crate::client::redis::RedisClient;
use crate::client::stats::Report;
use crate::client::workers::Workers;
use crate::netns::NetNs;

const MIB: u64 = 1 << 20;
/// Threads of the opener, each with a connection at a time, and its rest between two.
const OPENERS: usize = 4;
const OPENER_PACE: Duration = Duration::from_millis(3);
/// After a transfer that failed: what fails at once would fill the findings otherwise.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// The first findings of a flow are kept in words; all are counted.
const FINDINGS_KEPT: usize = 10;

/// A kind of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// As fast as the plug lets it, so that whole epochs of data are on their way at any instant.
    Download,
    /// One connection that lives over several kills.
    LongDownload,
    Upload,
    /// The server has written all and closed; the client reads slowly.
    LeftBehind,
}

/// All, each as often as it runs side by side.
const FLOWS: [Kind; 7] = [
    Kind::Download,
    Kind::LongDownload,
    Kind::Upload,
    Kind::LeftBehind,
    Kind::LeftBehind,
    Kind::LeftBehind,
    Kind::LeftBehind,
];

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Download => "download",
            Kind::LongDownload => "long download",
            Kind::Upload => "upload",
            Kind::LeftBehind => "closed with 1 MiB for a slow reader",
        }
    }

    fn length(self) -> u64 {
        match self {
            Kind::Download => 64 * MIB,
            Kind::LongDownload => 48 * MIB,
            Kind::Upload => 32 * MIB,
            Kind::LeftBehind => MIB,
        }
    }

    fn rest(self) -> Duration {
        let ms = match self {
            // A client that only takes what comes leaves no processor to the service on a small machine.
            Kind::Download => 1,
            // 3 MiB a second: 16 seconds.
            Kind::LongDownload => 20,
            Kind::Upload => 4,
            // 16 pieces: more than a second.
            Kind::LeftBehind => 80,
        };
        Duration::from_millis(ms)
    }

    fn receive_buffer(self) -> Option<usize> {
        (self == Kind::LeftBehind).then_some(16 << 10)
    }

    fn transfer(self, bulk: &Bulk<'_>, seed: u64) -> Result<Transfer, ClientError> {
        match self {
            Kind::Download | Kind::LongDownload => bulk.download(self.length(), seed),
            Kind::Upload => bulk.upload(self.length(), seed),
            Kind::LeftBehind => bulk.download_left(self.length(), seed),
        }
    }
}

/// What a flow came to.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    pub kind: Kind,
    /// Those that were right to the last byte and to their end.
    pub transfers: u64,
    pub bytes: u64,
    pub dropped: u64,
    pub wrong: u64,
    pub stall_ms: u64,
    pub findings: Vec<String>,
}

struct Running {
    flow: Arc<Mutex<Flow>>,
    meter: Arc<Meter>,
    worker: JoinHandle<()>,
}

/// A flow seen from outside.
#[derive(Default)]
struct Meter {
    bytes: AtomicU64,
    /// A transfer is under way.
    busy: AtomicBool,
}

/// What the flows are told.
#[derive(Default)]
struct Orders {
    stop: AtomicBool,
}

pub(super) struct Traffic {
    orders: Arc<Orders>,
    flows: Vec<Running>,
    redis: RedisClient,
    clients: usize,
    opener: Workers,
}

/// Where all traffic stood.
pub(super) struct Mark {
    at: Instant,
    seen: Vec<u64>,
}

impl Traffic {
    pub(super) fn start(
        from: &NetNs,
        to: SocketAddr,
        redis: RedisClient,
        clients: usize,
    ) -> io::Result<Traffic> {
        let opener = opener::start(Some(from), to, OPENERS, OPENER_PACE)?;
        let mut traffic = Traffic { orders: Arc::default(), flows: Vec::new(), redis, clients, opener };
        for (number, kind) in FLOWS.into_iter().enumerate() {
            let running = traffic.start_flow(from, to, number as u64, kind)?;
            traffic.flows.push(running);
        }
        Ok(traffic)
    }

    fn start_flow(&self, from: &NetNs, to: SocketAddr, number: u64, kind: Kind) -> io::Result<Running> {
        let (transfers, bytes, dropped, wrong, stall_ms) = Default::default();
        let flow = Flow { kind, transfers, bytes, dropped, wrong, stall_ms, findings: Vec::new() };
        let flow = Arc::new(Mutex::new(flow));
        let meter = Arc::<Meter>::default();
        let (from, orders) = (from.clone(), Arc::clone(&self.orders));
        let (tally, seen) = (Arc::clone(&flow), Arc::clone(&meter));
        let worker = thread::Builder::new().name(format!("flow-{number}")).spawn(move || {
            let bulk = Bulk {
                rest: kind.rest(),
                receive_buffer: kind.receive_buffer(),
                seen: Some(&seen.bytes),
                ..Bulk::new(Some(&from), to)
            };
            // No two transfers have a byte in common at the same place.
            for seed in (number << 32).. {
                if orders.stop.load(Ordering::Relaxed) {
                    break;
                }
                seen.busy.store(true, Ordering::Relaxed);
                let outcome = kind.transfer(&bulk, seed);
                seen.busy.store(false, Ordering::Relaxed);
                let failed = outcome.is_err();
                tally.lock().unwrap_or_else(PoisonError::into_inner).count(outcome);
                if failed {
                    thread::sleep(AFTER_FAILURE);
                }
            }
        })?;
        Ok(Running { flow, meter, worker })
    }

    pub(super) fn streams(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn mark(&self) -> Mark {
        let seen = self.flows.iter().map(|running| running.meter.bytes.load(Ordering::Relaxed)).collect();
        Mark { at: Instant::now(), seen }
    }

    /// What has made no progress since then, in words.
    pub(super) fn standing_since(&self, mark: &Mark) -> Vec<String> {
        let mut standing = Vec::new();
        for (running, before) in self.flows.iter().zip(&mark.seen) {
            let meter = &running.meter;
            if meter.busy.load(Ordering::Relaxed) && meter.bytes.load(Ordering::Relaxed) == *before {
                let flow = running.flow.lock().unwrap_or_else(PoisonError::into_inner);
                standing.push(format!("{} at {before} bytes", flow.kind.word()));
            }
        }
        let answered = self.redis.stats().answered_since(mark.at);
        if answered < self.clients {
            standing.push(format!("{} of {} connections to redis", self.clients - answered, self.clients));
        }
        if self.opener.stats().answered_since(mark.at) < OPENERS {
            standing.push("connections being opened".to_owned());
        }
        standing
    }

    /// Lets every transfer come to its end.
    pub(super) fn finish(self) -> io::Result<(Vec<Flow>, Report, Report)> {
        self.orders.stop.store(true, Ordering::Relaxed);
        let mut flows = Vec::new();
        for running in self.flows {
            if let Err(panic) = running.worker.join() {
                std::panic::resume_unwind(panic);
            }
            flows.push(running.flow.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
        let opener = self.opener.finish();
        Ok((flows, self.redis.finish()?, opener))
    }
}

impl Flow {
    fn count(&mut self, outcome: Result<Transfer, ClientError>) {
        let error = match outcome {
            Ok(transfer) => {
                self.transfers += 1;
                self.bytes += transfer.bytes;
                self.stall_ms = self.stall_ms.max(transfer.stall.as_millis() as u64);
                return;
            }
            Err(error) => error,
        };
        match error {
            ClientError::Wrong { .. } => self.wrong += 1,
            ClientError::Connect { .. } | ClientError::Dropped { .. } => self.dropped += 1,
        }
        if self.findings.len() < FINDINGS_KEPT {
            let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
            self.findings.push(format!("{error}{cause}"));
        }
    }
}
