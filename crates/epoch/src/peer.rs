//! What one node asks another's agent, over a mutually authenticated connection.

use serde::{Deserialize, Serialize};

use crate::setup::{Lost, Workload};

/// Version of these messages; an agent of another one says so instead of guessing.
pub const VERSION: u16 = 3;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// To a seed node: a message of the arbitration protocol, which has a version of its own (`outlive_cluster::Request::encode`).
    Arbitrate(Vec<u8>),
    /// Start a backup's supervisor for a workload of the asking node.
    HostBackup { version: u16, workload: Box<Workload> },
    /// The status of a workload's supervisor on that node, if it has one.
    Status { name: String },
    /// For the supervisor of a workload on that node: an operator's order, given on another.
    Order { version: u16, name: String, order: crate::control::Request },
    /// How a workload was started, if that node has had it.
    Definition { name: String },
    /// Start a lost workload anew, on the word of an operator that no node has it.
    Restart { version: u16, workload: Box<Workload>, lost: Lost },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Likewise.
    Arbitrated(Vec<u8>),
    /// Where the backup's supervisor waits for its primary.
    Hosting {
        listen: std::net::SocketAddr,
    },
    Status(Option<Box<crate::control::Status>>),
    Definition(Option<Box<Workload>>),
    Restarted,
    /// What that supervisor says.
    Ordered(crate::control::Response),
    Refused {
        reason: String,
    },
}

impl Request {
    pub fn arbitrate(message: &outlive_cluster::Request) -> Result<Self, outlive_cluster::WireError> {
        message.encode().map(Self::Arbitrate)
    }
}

impl Response {
    pub fn arbitrated(message: &outlive_cluster::Response) -> Result<Self, outlive_cluster::WireError> {
        message.encode().map(Self::Arbitrated)
    }
}

/// Asks another node's agent, and waits for its answer at most this long.
pub fn call(
    client: &mut outlive_stream::rpc::Client,
    request: &Request,
    limit: std::time::Duration,
) -> Result<Response, String> {
    let bytes = postcard::to_stdvec(request).map_err(|error| error.to_string())?;
    let answer = client.call(&bytes, std::time::Instant::now() + limit).map_err(|error| error.to_string())?;
    postcard::from_bytes(&answer).map_err(|error| format!("the answer is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use outlive_cluster::{Answer, Ask, Attempt, ClusterId, Declined};

    use super::*;

    /// Programs with replicated state (`replicated/src/arbitration.rs`) know these by their numbers and nothing else of this.
    #[test]
    fn arbitration_is_the_first_of_what_is_asked_and_answered() {
        let ask = Ask::Prepare { workload: "bank".parse().unwrap(), counter: 7 };
        let asked =
            outlive_cluster::Request { cluster: ClusterId(1), seeds_version: 1, attempt: Attempt(2), ask };
        let mut expected = vec![0];
        expected.extend(postcard::to_stdvec(&asked.encode().unwrap()).unwrap());
        assert_eq!(postcard::to_stdvec(&Request::arbitrate(&asked).unwrap()).unwrap(), expected);

        let answer = Answer::Declined(Declined::Blank);
        let answered = outlive_cluster::Response { cluster: ClusterId(1), attempt: Attempt(2), answer };
        let mut expected = vec![0];
        expected.extend(postcard::to_stdvec(&answered.encode().unwrap()).unwrap());
        assert_eq!(postcard::to_stdvec(&Response::arbitrated(&answered).unwrap()).unwrap(), expected);
        let refused = Response::Refused { reason: "no".into() };
        assert_eq!(postcard::to_stdvec(&refused).unwrap(), [6, 2, b'n', b'o']);
    }
}
