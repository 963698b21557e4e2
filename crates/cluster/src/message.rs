//! What proposers and seed nodes say to each other, and its form on the wire.

use serde::{Deserialize, Serialize};

use crate::{Attempt, ClusterId, Register, WorkloadName};

/// The largest message on the wire. A page of a lesson is the largest one: [`LESSON_PAGE`] slots of at most
/// 1,000 bytes (a name, two ballots, a register with its primary and as many backups as there may be), with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// How many slots a teacher puts into one answer.
pub(crate) const LESSON_PAGE: usize = 64;

/// The version of these messages; the first two bytes of each.
const WIRE_VERSION: u16 = 2;

/// The highest number a ballot may have. A proposer steps past what it has seen by one, so no cluster gets there; a
/// damaged or hostile number would end all arbitration of its register, so it is refused instead.
pub(crate) const MAX_COUNTER: u64 = 1 << 48;

/// Which of two proposals goes before the other. Unique: the attempt is never used twice, and counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    pub counter: u64,
    pub attempt: Attempt,
}

/// How often a seed node has lost its history and been taught it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life(pub u64);

/// A value that a seed node voted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accepted {
    pub ballot: Ballot,
    /// `None` is agreed like any value: that the workload was never created.
    pub value: Option<Register>,
}

/// What a seed node holds of one register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Proposals below this ballot are refused. Never below that of `accepted`.
    pub promised: Option<Ballot>,
    pub accepted: Option<Accepted>,
}

/// What goes with every vote: who voted, in which of its lives, and which lives it knows of the others. A vote of a
/// life that another voter knows to be over does not count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Voter {
    pub life: Life,
    /// One per seed node, in the order of [`Seeds::members`](crate::Seeds::members).
    pub lives: Vec<Life>,
}

/// To a seed node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    pub cluster: ClusterId,
    pub seeds_version: u64,
    /// Who asks; the answer is for it, and ballots are made of it.
    pub attempt: Attempt,
    pub ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ask {
    /// First phase: promise to refuse what is below this ballot, and say what you voted for.
    Prepare { workload: WorkloadName, counter: u64 },
    /// Second phase: vote for this value.
    Accept { workload: WorkloadName, counter: u64, value: Option<Register> },
    /// A seed node that lost its history begins this life and asks for yours, from after this workload on.
    Teach { life: Life, after: Option<WorkloadName> },
}

/// From a seed node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Response {
    pub cluster: ClusterId,
    pub attempt: Attempt,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    Promised {
        counter: u64,
        voter: Voter,
        accepted: Option<Accepted>,
    },
    Accepted {
        counter: u64,
        voter: Voter,
    },
    /// Either phase: a higher ballot was promised.
    Outbid {
        counter: u64,
        promised: Ballot,
    },
    /// A page of a lesson, in the order of names; `more` if another follows.
    Taught {
        life: Life,
        after: Option<WorkloadName>,
        voter: Voter,
        slots: Vec<(WorkloadName, Slot)>,
        more: bool,
    },
    /// The life that was to begin is known to have begun before: begin one above this.
    LifeTaken {
        life: Life,
    },
    Declined(Declined),
}

/// Why a seed node does not vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Declined {
    #[error("holds no history of any cluster: bootstrap a new cluster, or have it rejoin the one it lost")]
    Blank,
    #[error("lost its history and may not vote before a majority of the others has taught it")]
    Learning,
    #[error("is a seed node of another cluster ({0})")]
    OtherCluster(ClusterId),
    #[error("knows version {0} of the seed nodes: reload the list of seed nodes")]
    OtherSeeds(u64),
    #[error("cannot keep its votes on disk: look at its log, then restart it")]
    CannotPersist,
    #[error("holds as many registers as it may: use fewer workload names")]
    Full,
    #[error("found the request malformed: update the older of the two nodes")]
    Malformed,
    #[error("teaches only other seed nodes")]
    NotASeed,
}

/// Bytes that are not a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("an arbitration message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    #[error("an arbitration message ends before its version")]
    TooShort,
    #[error(
        "the peer speaks version {0} of arbitration, this node version {WIRE_VERSION}: update the older one"
    )]
    Version(u16),
    #[error("an arbitration message has bytes after its end")]
    Trailing,
    #[error("an arbitration message cannot be understood")]
    Content(#[from] postcard::Error),
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_extend(message, WIRE_VERSION.to_le_bytes().to_vec())?;
    if bytes.len() > MAX_MESSAGE_BYTES { Err(WireError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

fn decode<'a, M: Deserialize<'a>>(bytes: &'a [u8]) -> Result<M, WireError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let (version, content) = bytes.split_first_chunk().ok_or(WireError::TooShort)?;
    match u16::from_le_bytes(*version) {
        WIRE_VERSION => {}
        other => return Err(WireError::Version(other)),
    }
    let (message, rest) = postcard::take_from_bytes(content)?;
    if rest.is_empty() { Ok(message) } else { Err(WireError::Trailing) }
}

impl Request {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes)
    }
}

impl Response {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backup, Holder, Holding, Incarnation, MAX_BACKUPS, MAX_NAME_BYTES, Orphaned};

    fn request() -> Request {
        let workload = "web".parse().unwrap();
        let ask = Ask::Prepare { workload, counter: 7 };
        Request { cluster: ClusterId(1), seeds_version: 1, attempt: Attempt(2), ask }
    }

    #[test]
    fn a_message_comes_back() {
        assert_eq!(Request::decode(&request().encode().unwrap()).unwrap(), request());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = request().encode().unwrap();
        bytes[0] = 9;
        assert!(matches!(Request::decode(&bytes), Err(WireError::Version(9))));
        assert!(matches!(Request::decode(&bytes[..1]), Err(WireError::TooShort)));
    }

    #[test]
    fn nothing_may_follow() {
        let mut bytes = request().encode().unwrap();
        bytes.push(0);
        assert!(matches!(Request::decode(&bytes), Err(WireError::Trailing)));
        assert!(matches!(Request::decode(&vec![1; MAX_MESSAGE_BYTES + 1]), Err(WireError::TooLarge(_))));
    }

    #[test]
    fn the_largest_page_of_a_lesson_fits() {
        let name = "n".repeat(MAX_NAME_BYTES);
        let holder = Holder { incarnation: Incarnation(u128::MAX), node: name.parse().unwrap() };
        let backup = Backup { holder: holder.clone(), stopped_at: Some(u64::MAX) };
        // The largest value of all: as many backups as one of a primary, in two lists.
        let (left, dead) = (vec![backup.clone()], vec![backup; MAX_BACKUPS - 1]);
        let holding = Holding::Orphaned(Orphaned { primary: holder, left, dead, needed: u8::MAX });
        let register = Register { version: u64::MAX, generation: u64::MAX, holding, seeds_version: u64::MAX };
        let ballot = Ballot { counter: u64::MAX, attempt: Attempt(u128::MAX) };
        let slot =
            Slot { promised: Some(ballot), accepted: Some(Accepted { ballot, value: Some(register) }) };
        let answer = Answer::Taught {
            life: Life(u64::MAX),
            after: Some(name.parse().unwrap()),
            voter: Voter { life: Life(u64::MAX), lives: vec![Life(u64::MAX); crate::MAX_SEEDS] },
            slots: vec![(name.parse().unwrap(), slot); LESSON_PAGE],
            more: true,
        };
        let response = Response { cluster: ClusterId(u128::MAX), attempt: Attempt(u128::MAX), answer };
        assert_eq!(Response::decode(&response.encode().unwrap()).unwrap(), response);
    }
}
