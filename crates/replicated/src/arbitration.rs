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
use tracing::{debug, warn};

use crate::config::Config;

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
    /// A message of the arbitration protocol (`Request::encode`).
    Arbitrate(Vec<u8>),
}

/// What a seed node answers: two of an agent's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Its vote (`Response::encode`).
    Arbitrated(Vec<u8>),
    /// Why it does not vote: it may be of another version.
    Refused(String),
}

/// Their numbers among the answers of an agent (`outlive_epoch::peer::Response`).
const ARBITRATED: u32 = 0;
const REFUSED: u32 = 6;

impl Reply {
    pub fn encode(&self) -> postcard::Result<Vec<u8>> {
        match self {
            Self::Arbitrated(vote) => postcard::to_stdvec(&(ARBITRATED, vote)),
            Self::Refused(reason) => postcard::to_stdvec(&(REFUSED, reason)),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let not_understood = |error: postcard::Error| format!("its answer is not understood: {error}");
        let (number, rest): (u32, _) = postcard::take_from_bytes(bytes).map_err(not_understood)?;
        match number {
            ARBITRATED => postcard::from_bytes(rest).map(Self::Arbitrated).map_err(not_understood),
            REFUSED => postcard::from_bytes(rest).map(Self::Refused).map_err(not_understood),
            _ => Err(format!("its answer is of a kind that is not understood ({number})")),
        }
    }
}

/// Why a question to all of them was neither granted nor refused.
pub(crate) fn unsettled(outcome: &Outcome) -> String {
    match outcome {
        Outcome::NoMajority(why) | Outcome::Unknown(why) => why.to_string(),
        other => format!("unexpected outcome {other:?}"),
    }
}

/// What comes of a question to a seed node: a vote, or why there is none.
type Answered = (NodeName, Result<Response, String>);

struct Link {
    name: NodeName,
    requests: SyncSender<Request>,
}

/// A process's way to the seed nodes. One question at a time.
pub(crate) struct Arbiter {
    seeds: Seeds,
    workload: WorkloadName,
    links: Vec<Link>,
    responses: Mutex<Receiver<Answered>>,
    begun: Instant,
    /// For tests: this process reaches no seed node.
    #[cfg(test)]
    pub cut_off: std::sync::atomic::AtomicBool,
    /// For tests: it hears of none any more from when they are asked to accept a change.
    #[cfg(test)]
    pub cut_off_in_the_middle: std::sync::atomic::AtomicBool,
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
            #[cfg(test)]
            cut_off_in_the_middle: Default::default(),
        })
    }

    /// To the seed nodes of a configuration.
    pub fn of(config: &Config) -> std::io::Result<Self> {
        let address_of = |name: &NodeName| {
            let node = config.seed_nodes.iter().find(|node| node.name == name.as_str());
            node.map(|node| node.address)
        };
        Self::new(config.seeds.clone(), config.name.clone(), &config.identity, address_of)
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
            #[cfg(test)]
            let mut proposes = false;
            for Action::Send { to, request } in proposer.poll(self.begun.elapsed()) {
                #[cfg(test)]
                if self.cut_off.load(std::sync::atomic::Ordering::Relaxed) {
                    continue;
                }
                #[cfg(test)]
                {
                    proposes |= matches!(request.ask, outlive_cluster::Ask::Accept { value: Some(_), .. });
                }
                if let Some(link) = self.links.iter().find(|link| link.name == to) {
                    // A full queue is a seed node that does not answer.
                    let _ = link.requests.try_send(request);
                }
            }
            #[cfg(test)]
            if proposes && self.cut_off_in_the_middle.swap(false, std::sync::atomic::Ordering::Relaxed) {
                self.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            if let Some(outcome) = proposer.outcome() {
                return outcome.clone();
            }
            let now = self.begun.elapsed();
            let until = proposer.wakeup().unwrap_or(now).saturating_sub(now);
            match responses.recv_timeout(until) {
                #[cfg(test)]
                Ok(_) if self.cut_off.load(std::sync::atomic::Ordering::Relaxed) => {}
                Ok((from, Ok(response))) => proposer.on_response(&from, &response, self.begun.elapsed()),
                Ok((from, Err(reason))) => proposer.on_failure(&from, reason),
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
    answer: &mpsc::Sender<Answered>,
) {
    let mut client = None;
    let mut refusal = String::new();
    while let Ok(request) = queue.recv() {
        let outcome = call(identity, node, address, &mut client, request).and_then(|reply| match reply {
            Reply::Arbitrated(vote) => Response::decode(&vote).map_err(|error| error.to_string()),
            Reply::Refused(reason) => {
                // Whoever refuses does so again and again.
                if refusal != reason {
                    warn!(seed = node.as_str(), reason, "a seed node refuses to vote");
                    refusal.clone_from(&reason);
                }
                Err(reason)
            }
        });
        if let Err(reason) = &outcome {
            debug!(seed = node.as_str(), reason, "no vote");
        }
        if answer.send((node.clone(), outcome)).is_err() {
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
) -> Result<Reply, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let open = match client {
        Some(open) => open,
        None => {
            let connection =
                identity.connect(address, node.as_str(), CONNECT).map_err(|error| text(&error))?;
            client.insert(Client::open(connection, CONNECT).map_err(|error| text(&error))?)
        }
    };
    let question = Question::Arbitrate(request.encode().map_err(|error| text(&error))?);
    let question = postcard::to_stdvec(&question).map_err(|error| text(&error))?;
    let reply = open.call(&question, Instant::now() + ANSWER);
    if reply.is_err() {
        *client = None;
    }
    Reply::decode(&reply.map_err(|error| text(&error))?)
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
        expected.extend(postcard::to_stdvec(&request.encode().unwrap()).unwrap());
        let question = Question::Arbitrate(request.encode().unwrap());
        assert_eq!(postcard::to_stdvec(&question).unwrap(), expected);

        let answer = Answer::Declined(Declined::Blank);
        let response = Response { cluster: ClusterId(1), attempt: Attempt(2), answer };
        let mut bytes = vec![0];
        bytes.extend(postcard::to_stdvec(&response.encode().unwrap()).unwrap());
        let read = Reply::decode(&bytes).unwrap();
        assert_eq!((read.encode().unwrap(), &read), (bytes, &Reply::Arbitrated(response.encode().unwrap())));
        // An agent's refusal, one of its other answers, and nothing.
        let refused = Reply::Refused("no".into());
        assert_eq!(Reply::decode(&[6, 2, b'n', b'o']), Ok(refused.clone()));
        assert_eq!(refused.encode().unwrap(), [6, 2, b'n', b'o']);
        assert!(Reply::decode(&[4]).is_err() && Reply::decode(&[]).is_err());
    }
}
