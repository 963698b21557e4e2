//! Asking the seed nodes: carries a proposer's messages over one connection to each.
//!
//! Connections are kept, so that a failover pays no handshake. A seed node that does not answer blocks its own thread
//! only.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{
    Attempt, Limits, NodeName, Outcome, Proposer, Request, Response, Seeds, Transition, WorkloadName,
};
use outlive_fault::{Point, point};
use outlive_stream::rpc::Client;
use outlive_stream::tls::Identity;
use tracing::debug;

use crate::link::carry_life;
use crate::peer;
use crate::queue::{Nothing, Receiver, Sender, queue};

/// Within a data centre a connection and its handshakes take a few milliseconds, on a machine with far too much to do seconds.
/// One that is given up is begun anew from nothing: too short a limit would never be met.
const CONNECT: Duration = Duration::from_secs(2);
/// A seed node that needs longer than this is asked again by the proposer anyway.
const ANSWER: Duration = Duration::from_millis(500);
/// Messages waiting for one seed node. More is dropped: the proposer repeats what matters.
const QUEUE: usize = 8;

/// What became of a question to a seed node: its answer, or why there is none.
type Answered = (NodeName, Result<Response, String>);

struct Seed {
    name: NodeName,
    requests: Sender<Request>,
}

/// A supervisor's way to the seed nodes. One question at a time.
pub struct Arbiter {
    seeds: Seeds,
    workload: WorkloadName,
    links: Vec<Seed>,
    responses: Mutex<Receiver<Answered>>,
    /// What has been promised, and not yet asked for.
    prepared: Mutex<Option<(Transition, Proposer)>>,
    begun: Instant,
}

impl Arbiter {
    pub fn new(
        seeds: Seeds,
        workload: WorkloadName,
        identity: &Arc<Identity>,
        address_of: impl Fn(&str) -> Option<SocketAddr>,
    ) -> Self {
        let (answer, responses) = queue();
        let links = seeds
            .members()
            .iter()
            .filter_map(|name| {
                let address = address_of(name.as_str())?;
                let (requests, waiting) = queue();
                let (identity, answer, node) = (Arc::clone(identity), answer.clone(), name.clone());
                thread::Builder::new()
                    .name(format!("seed {}", name.as_str()))
                    .spawn(move || carry(&identity, &node, address, &waiting, &answer))
                    .ok()?;
                Some(Seed { name: name.clone(), requests })
            })
            .collect();
        Self {
            seeds,
            workload,
            links,
            responses: Mutex::new(responses),
            prepared: Mutex::new(None),
            begun: Instant::now(),
        }
    }

    pub fn ask(&self, transition: Transition) -> Outcome {
        let responses = self.responses();
        let now = self.begun.elapsed();
        let prepared = self.prepared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let proposer = match prepared {
            Some((known, mut proposer)) if known == transition && proposer.outcome().is_none() => {
                proposer.release(now);
                proposer
            }
            // Promises for what nobody wants any more are outbid.
            _ => self.proposer(transition, now),
        };
        self.run(proposer, &responses)
    }

    /// Asks the seed nodes for the promises that a change takes, and proposes nothing: of the two rounds that a change takes, the
    /// first is over when it is asked for. Without effect if no majority promises.
    pub fn prepare(&self, transition: Transition) {
        let responses = self.responses();
        let mut proposer = self.proposer(transition.clone(), self.begun.elapsed()).hold();
        while !proposer.is_ready() && proposer.outcome().is_none() {
            self.step(&mut proposer, &responses);
        }
        *self.prepared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some((transition, proposer));
    }

    fn proposer(&self, transition: Transition, now: Duration) -> Proposer {
        let (seeds, workload) = (self.seeds.clone(), self.workload.clone());
        Proposer::new(seeds, workload, transition, Attempt::random(), now, Limits::default())
    }

    fn responses(&self) -> MutexGuard<'_, Receiver<Answered>> {
        self.responses.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn read(&self) -> Outcome {
        let now = self.begun.elapsed();
        let (seeds, workload) = (self.seeds.clone(), self.workload.clone());
        let responses = self.responses();
        self.run(Proposer::read(seeds, workload, Attempt::random(), now, Limits::default()), &responses)
    }

    fn run(&self, mut proposer: Proposer, responses: &Receiver<Answered>) -> Outcome {
        loop {
            if let Some(outcome) = proposer.outcome() {
                return outcome.clone();
            }
            self.step(&mut proposer, responses);
        }
    }

    /// Sends what is to be sent, and takes one answer, or waits until it is time to do something else.
    fn step(&self, proposer: &mut Proposer, responses: &Receiver<Answered>) {
        for outlive_cluster::Action::Send { to, request } in proposer.poll(self.begun.elapsed()) {
            if let Some(seed) = self.links.iter().find(|seed| seed.name == to) {
                // A full queue is a seed node that does not answer.
                let _ = seed.requests.send_if_below(QUEUE, request);
            }
        }
        if proposer.outcome().is_some() {
            return;
        }
        point(Point::ArbiterAsked);
        let now = self.begun.elapsed();
        let until = proposer.wakeup().unwrap_or(now).saturating_sub(now);
        match responses.receive_within(until) {
            Ok((from, Ok(response))) => proposer.on_response(&from, &response, self.begun.elapsed()),
            Ok((from, Err(reason))) => proposer.on_failure(&from, reason),
            Err(Nothing::Yet) => {}
            // No link could be made at all: nobody will ever answer.
            Err(Nothing::Ever) => thread::sleep(until.min(Duration::from_millis(50))),
        }
    }
}

fn carry(
    identity: &Identity,
    node: &NodeName,
    address: SocketAddr,
    requests: &Receiver<Request>,
    answer: &Sender<Answered>,
) {
    // A takeover waits for it, on a machine that may be busy.
    carry_life();
    let mut client: Option<Client> = None;
    while let Some(request) = requests.receive() {
        let answered = call(identity, node, address, &mut client, request);
        if let Err(reason) = &answered {
            debug!(seed = node.as_str(), reason, "no answer");
            client = None;
        }
        if answer.send((node.clone(), answered)).is_err() {
            return;
        }
    }
}

fn call(
    identity: &Identity,
    node: &NodeName,
    address: SocketAddr,
    client: &mut Option<Client>,
    request: Request,
) -> Result<Response, String> {
    let open = match client {
        Some(open) => open,
        None => {
            let connection =
                identity.connect(address, node.as_str(), CONNECT).map_err(|error| error.to_string())?;
            client.insert(Client::open(connection, CONNECT).map_err(|error| error.to_string())?)
        }
    };
    let question = peer::Request::arbitrate(&request).map_err(|error| error.to_string())?;
    match peer::call(open, &question, ANSWER)? {
        peer::Response::Arbitrated(answer) => Response::decode(&answer).map_err(|error| error.to_string()),
        peer::Response::Refused { reason } => Err(reason),
        other => Err(format!("unexpected answer {other:?}")),
    }
}
