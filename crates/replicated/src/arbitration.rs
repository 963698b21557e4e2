//! Asking the seed nodes who may speak.
//!
//! The protocol is crate `cluster`'s; this carries its messages, over one connection to each seed node that is kept, so
//! that a takeover pays no handshake. Seed nodes are agents of outlive, which speak these words already, or processes
//! that run [`Seed`](crate::Seed).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{
    Action, Attempt, Limits, NodeName, Outcome, Proposer, Request, Response, Seeds, Transition, WorkloadName,
};
use outlive_stream::rpc::Client;
use outlive_stream::tls::Identity;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::debug;

/// Within a data centre a connection and its handshakes take a few milliseconds; a seed node that needs longer than
/// this is asked again by the proposer anyway.
const CONNECT: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_millis(500);
/// Messages waiting for one seed node. More is dropped: the proposer repeats what matters.
const QUEUE: usize = 8;
/// Where no seed node could be reached at all, until it is tried again.
const NOBODY: Duration = Duration::from_millis(50);

/// What a seed node is asked: the first of the questions that an agent answers (`outlive_epoch::peer::Request`), so that
/// agents can be seed nodes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// A message of the arbitration protocol.
    Arbitrate(Request),
}

/// What a seed node answers: the first of an agent's answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Its vote.
    Arbitrated(Box<Response>),
}

struct Link {
    name: NodeName,
    requests: SyncSender<Request>,
}

/// A process's way to the seed nodes. One question at a time.
pub(crate) struct Arbiter {
    seeds: Seeds,
    workload: WorkloadName,
    links: Vec<Link>,
    responses: Mutex<Receiver<(NodeName, Response)>>,
    begun: Instant,
    /// For tests: this process reaches no seed node.
    #[cfg(test)]
    pub cut_off: std::sync::atomic::AtomicBool,
}

impl Arbiter {
    pub fn new(
        seeds: Seeds,
        workload: WorkloadName,
        identity: &Identity,
        address_of: impl Fn(&NodeName) -> Option<SocketAddr>,
    ) -> std::io::Result<Self> {
        let (answer, responses) = mpsc::channel();
        let identity = Arc::new(identity.clone());
        let mut links = Vec::new();
        for name in seeds.members() {
            let Some(address) = address_of(name) else { continue };
            let (requests, queue) = mpsc::sync_channel(QUEUE);
            let (identity, answer, node) = (Arc::clone(&identity), answer.clone(), name.clone());
            thread::Builder::new()
                .name(format!("seed {name}"))
                .spawn(move || carry(&identity, &node, address, &queue, &answer))?;
            links.push(Link { name: name.clone(), requests });
        }
        Ok(Self {
            seeds,
            workload,
            links,
            responses: Mutex::new(responses),
            begun: Instant::now(),
            #[cfg(test)]
            cut_off: Default::default(),
        })
    }

    pub fn ask(&self, transition: Transition) -> Outcome {
        let (seeds, workload) = (self.seeds.clone(), self.workload.clone());
        let now = self.begun.elapsed();
        self.run(Proposer::new(seeds, workload, transition, Attempt::random(), now, Limits::default()))
    }

    pub fn read(&self) -> Outcome {
        let (seeds, workload) = (self.seeds.clone(), self.workload.clone());
        let now = self.begun.elapsed();
        self.run(Proposer::read(seeds, workload, Attempt::random(), now, Limits::default()))
    }

    fn run(&self, mut proposer: Proposer) -> Outcome {
        let responses = self.responses.lock();
        loop {
            for Action::Send { to, request } in proposer.poll(self.begun.elapsed()) {
                #[cfg(test)]
                if self.cut_off.load(std::sync::atomic::Ordering::Relaxed) {
                    continue;
                }
                if let Some(link) = self.links.iter().find(|link| link.name == to) {
                    // A full queue is a seed node that does not answer.
                    let _ = link.requests.try_send(request);
                }
            }
            if let Some(outcome) = proposer.outcome() {
                return outcome.clone();
            }
            let now = self.begun.elapsed();
            let until = proposer.wakeup().unwrap_or(now).saturating_sub(now);
            match responses.recv_timeout(until) {
                Ok((from, response)) => proposer.on_response(&from, &response, self.begun.elapsed()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(until.min(NOBODY)),
            }
        }
    }
}

fn carry(
    identity: &Identity,
    node: &NodeName,
    address: SocketAddr,
    queue: &Receiver<Request>,
    answer: &mpsc::Sender<(NodeName, Response)>,
) {
    let mut client = None;
    while let Ok(request) = queue.recv() {
        match call(identity, node, address, &mut client, request) {
            Ok(response) => {
                if answer.send((node.clone(), response)).is_err() {
                    return;
                }
            }
            Err(reason) => {
                debug!(seed = node.as_str(), reason, "no answer");
                client = None;
            }
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
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let open = match client {
        Some(open) => open,
        None => {
            let connection =
                identity.connect(address, node.as_str(), CONNECT).map_err(|error| text(&error))?;
            client.insert(Client::open(connection, CONNECT).map_err(|error| text(&error))?)
        }
    };
    let question = postcard::to_stdvec(&Question::Arbitrate(request)).map_err(|error| text(&error))?;
    let reply = open.call(&question, Instant::now() + ANSWER).map_err(|error| text(&error))?;
    match postcard::from_bytes(&reply) {
        Ok(Reply::Arbitrated(response)) => Ok(*response),
        Err(error) => Err(format!("the answer is not understood: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use outlive_cluster::{Answer, Ask, ClusterId, Declined};

    use super::*;

    /// The bytes that an agent reads and writes: the number of the variant, then the message.
    #[test]
    fn a_seed_node_is_asked_in_the_words_of_an_agent() {
        let ask = Ask::Prepare { workload: "bank".parse().unwrap(), counter: 7 };
        let request = Request { cluster: ClusterId(1), seeds_version: 1, attempt: Attempt(2), ask };
        let mut expected = vec![0];
        expected.extend(postcard::to_stdvec(&request).unwrap());
        assert_eq!(postcard::to_stdvec(&Question::Arbitrate(request)).unwrap(), expected);

        let answer = Answer::Declined(Declined::Blank);
        let response = Response { cluster: ClusterId(1), attempt: Attempt(2), answer };
        let mut bytes = vec![0];
        bytes.extend(postcard::to_stdvec(&response).unwrap());
        let Reply::Arbitrated(read) = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(*read, response);
        // An agent's refusal is another variant: not understood, and never taken for a vote.
        assert!(postcard::from_bytes::<Reply>(&[6, 0]).is_err());
    }
}
