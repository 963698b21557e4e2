//! The first words on a connection: what both ends speak, and what the connection is for.
//!
//! The end that connected says which protocol versions it speaks and its purpose; the other picks the highest
//! version both speak and admits the purpose, or says why not. Only then do frames flow.

use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::connection::{ByteSink, ByteSource, Closer, Connection, Reader, ReceiveError, SendError, Writer};
use crate::frame::{End, FrameReader, FrameWriter, KindSet};
use crate::wire::Fields;

/// What this crate speaks. Raise the upper end with every change of what is on the wire; raise the lower one
/// when the older form is no longer understood.
pub const VERSIONS: RangeInclusive<u16> = 1..=1;

/// Says that outlive's protocol follows. Eight bytes, so that no other protocol starts with it by chance.
const MAGIC: &[u8; 8] = b"outlive\n";

/// Longest purpose: a word, a colon and a name, with room to spare.
pub const PURPOSE_MAX: usize = 255;

/// Longest reason for a refusal: a sentence or two for a log line.
const REASON_MAX: usize = 512;

/// Tells the hash of a hello from that of a frame: any number that no [`End`] uses.
const HASH_SEED: u64 = 0x6865_6c6c_6f00;

const HASH_LENGTH: usize = size_of::<u64>();

#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error(
        "a purpose must be 1 to {PURPOSE_MAX} printable ASCII characters without a space, not {purpose:?}"
    )]
    Purpose { purpose: String },
    #[error("the protocol version range {versions:?} is empty")]
    Versions { versions: RangeInclusive<u16> },
    #[error("the other end does not speak outlive's protocol; check address and port")]
    NotOutlive,
    #[error("the other end's first words are damaged ({what}); connect again, and report it if it persists")]
    Corrupt { what: &'static str },
    #[error("this end speaks protocol versions {ours:?} and the other {theirs:?}; upgrade the older node")]
    NoCommonVersion { ours: RangeInclusive<u16>, theirs: RangeInclusive<u16> },
    #[error("the other end refuses a connection for {purpose:?}: {reason}")]
    RefusedByPeer { purpose: String, reason: String },
    #[error("a connection for {purpose:?} was refused: {reason}")]
    Refused { purpose: String, reason: String },
    #[error("the time limit cannot be set on the connection")]
    Limit(#[source] io::Error),
    #[error("the first words could not be received")]
    Receive(#[from] ReceiveError),
    #[error("the first words could not be sent")]
    Send(#[from] SendError),
}

/// A connection on which frames flow.
#[derive(Debug)]
pub struct Stream {
    pub peer_node: String,
    pub version: u16,
    pub purpose: String,
    pub writer: FrameWriter<Writer>,
    pub reader: FrameReader<Reader>,
    pub closer: Closer,
}

impl Stream {
    /// On the end that connected: say what for. `kinds` are those that the other end may send. All of it
    /// takes at most `timeout`.
    pub fn open(
        mut connection: Connection,
        versions: RangeInclusive<u16>,
        purpose: &str,
        kinds: KindSet,
        timeout: Duration,
    ) -> Result<Self, HelloError> {
        let deadline = Instant::now() + timeout;
        let (writer, reader) = connection.halves();
        let version =
            within(deadline, writer, reader, |writer, reader| open(writer, reader, versions, purpose))?;
        Ok(Self::over(connection, version, purpose.to_owned(), End::Opening, kinds))
    }

    /// On the end that accepted: hear what for. `admit` is asked with the other node's name and its purpose,
    /// and answers with the kinds of frames that it may send, or with a reason to refuse, which the other end
    /// is told.
    pub fn answer(
        mut connection: Connection,
        versions: RangeInclusive<u16>,
        timeout: Duration,
        admit: impl FnOnce(&str, &str) -> Result<KindSet, String>,
    ) -> Result<Self, HelloError> {
        let deadline = Instant::now() + timeout;
        let peer_node = connection.peer_node().to_owned();
        let (writer, reader) = connection.halves();
        let answered = within(deadline, writer, reader, |writer, reader| {
            answer(writer, reader, versions, |purpose| admit(&peer_node, purpose))
        })?;
        let Answered { version, purpose, admitted } = answered;
        Ok(Self::over(connection, version, purpose, End::Answering, admitted))
    }

    fn over(connection: Connection, version: u16, purpose: String, end: End, kinds: KindSet) -> Self {
        let (peer_node, closer) = (connection.peer_node().to_owned(), connection.closer());
        let (writer, reader) = connection.split();
        let writer = FrameWriter::new(writer, end);
        let reader = FrameReader::new(reader, end.other(), kinds);
        Self { peer_node, version, purpose, writer, reader, closer }
    }
}

fn within<T>(
    deadline: Instant,
    writer: &mut Writer,
    reader: &mut Reader,
    exchange: impl FnOnce(&mut Writer, &mut Reader) -> Result<T, HelloError>,
) -> Result<T, HelloError> {
    writer.set_deadline(Some(deadline)).map_err(HelloError::Limit)?;
    reader.set_deadline(Some(deadline)).map_err(HelloError::Limit)?;
    let outcome = exchange(writer, reader)?;
    writer.set_deadline(None).map_err(HelloError::Limit)?;
    reader.set_deadline(None).map_err(HelloError::Limit)?;
    Ok(outcome)
}

/// What the accepting end learned and decided.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered<A> {
    pub version: u16,
    pub purpose: String,
    pub admitted: A,
}

/// The connecting end's part: the version agreed on.
pub fn open(
    sink: &mut impl ByteSink,
    source: &mut impl ByteSource,
    versions: RangeInclusive<u16>,
    purpose: &str,
) -> Result<u16, HelloError> {
    check_versions(&versions)?;
    if !is_purpose(purpose.as_bytes()) {
        return Err(HelloError::Purpose { purpose: purpose.to_owned() });
    }
    let numbers = [*versions.start(), *versions.end()];
    send_message(sink, &numbers, purpose.as_bytes())?;

    let ([outcome, version, lowest, highest], reason) = receive_message(source, REASON_MAX)?;
    match outcome {
        ACCEPTED if versions.contains(&version) => Ok(version),
        NO_COMMON_VERSION => Err(HelloError::NoCommonVersion { ours: versions, theirs: lowest..=highest }),
        REFUSED => Err(HelloError::RefusedByPeer { purpose: purpose.to_owned(), reason: printable(&reason) }),
        _ => Err(HelloError::Corrupt { what: "its answer is none of those that exist" }),
    }
}

/// The accepting end's part.
pub fn answer<A>(
    sink: &mut impl ByteSink,
    source: &mut impl ByteSource,
    versions: RangeInclusive<u16>,
    admit: impl FnOnce(&str) -> Result<A, String>,
) -> Result<Answered<A>, HelloError> {
    check_versions(&versions)?;
    let ([lowest, highest], purpose) = receive_message(source, PURPOSE_MAX)?;
    let purpose = match String::from_utf8(purpose) {
        Ok(purpose) if is_purpose(purpose.as_bytes()) => purpose,
        _ => return Err(HelloError::Corrupt { what: "its purpose is not printable" }),
    };
    let (ours_lowest, ours_highest) = (*versions.start(), *versions.end());
    let mut reply = |outcome, version, reason: &str| {
        let reason = &reason.as_bytes()[..reason.len().min(REASON_MAX)];
        send_message(sink, &[outcome, version, ours_lowest, ours_highest], reason)
    };
    let version = highest.min(ours_highest);
    if version < lowest.max(ours_lowest) {
        reply(NO_COMMON_VERSION, 0, "")?;
        return Err(HelloError::NoCommonVersion { ours: versions, theirs: lowest..=highest });
    }
    match admit(&purpose) {
        Ok(admitted) => {
            reply(ACCEPTED, version, "")?;
            Ok(Answered { version, purpose, admitted })
        }
        Err(reason) => {
            reply(REFUSED, 0, &reason)?;
            Err(HelloError::Refused { purpose, reason })
        }
    }
}

const ACCEPTED: u16 = 1;
const NO_COMMON_VERSION: u16 = 2;
const REFUSED: u16 = 3;

fn check_versions(versions: &RangeInclusive<u16>) -> Result<(), HelloError> {
    match versions.is_empty() {
        true => Err(HelloError::Versions { versions: versions.clone() }),
        false => Ok(()),
    }
}

fn is_purpose(bytes: &[u8]) -> bool {
    (1..=PURPOSE_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// Somebody else's words, made fit for one line of a log.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// magic, numbers, length of the text, text, hash of all of it.
fn send_message(sink: &mut impl ByteSink, numbers: &[u16], text: &[u8]) -> Result<(), HelloError> {
    let mut message = MAGIC.to_vec();
    // Callers have bounded the text.
    let length = u16::try_from(text.len()).map_err(|_| HelloError::Corrupt { what: "a text is too long" })?;
    for number in numbers.iter().chain([&length]) {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message.extend_from_slice(text);
    let hash = xxh3_64_with_seed(&message, HASH_SEED);
    message.extend_from_slice(&hash.to_le_bytes());
    Ok(sink.send(&[&message])?)
}

fn receive_message<const N: usize>(
    source: &mut impl ByteSource,
    text_max: usize,
) -> Result<([u16; N], Vec<u8>), HelloError> {
    let truncated = || HelloError::Corrupt { what: "they end early" };
    let mut message = vec![0; MAGIC.len()];
    receive_exact(source, &mut message)?;
    // First of all, so that a stranger is told apart before anything is waited for that it never sends.
    if message != MAGIC {
        return Err(HelloError::NotOutlive);
    }
    let fixed = message.len() + (N + 1) * size_of::<u16>();
    message.resize(fixed, 0);
    receive_exact(source, &mut message[MAGIC.len()..])?;
    let mut fields = Fields(&message[MAGIC.len()..]);
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = fields.u16().ok_or_else(truncated)?;
    }
    let length = usize::from(fields.u16().ok_or_else(truncated)?);
    if length > text_max {
        return Err(HelloError::Corrupt { what: "a text in them is too long" });
    }
    message.resize(fixed + length + HASH_LENGTH, 0);
    receive_exact(source, &mut message[fixed..])?;
    let (hashed, hash) = message.split_last_chunk::<HASH_LENGTH>().ok_or_else(truncated)?;
    if xxh3_64_with_seed(hashed, HASH_SEED) != u64::from_le_bytes(*hash) {
        return Err(HelloError::Corrupt { what: "their hash does not match" });
    }
    Ok((numbers, hashed[fixed..].to_vec()))
}

fn receive_exact(source: &mut impl ByteSource, mut into: &mut [u8]) -> Result<(), ReceiveError> {
    while !into.is_empty() {
        let count = source.receive(into)?;
        into = &mut into[count..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{PATIENCE, connected_pair};

    /// What one end says, as a recording: sent to a peer that never answers.
    fn opening(versions: RangeInclusive<u16>, purpose: &str) -> Vec<u8> {
        let mut sent = Vec::new();
        let silent = open(&mut sent, &mut &[][..], versions, purpose).unwrap_err();
        assert!(matches!(silent, HelloError::Receive(ReceiveError::Cut { .. })), "{silent}");
        sent
    }

    type Outcome = Result<Answered<()>, HelloError>;

    fn answering(
        said: &[u8],
        versions: RangeInclusive<u16>,
        admit: Result<(), String>,
    ) -> (Outcome, Vec<u8>) {
        let mut sent = Vec::new();
        let outcome = answer(&mut sent, &mut &*said, versions, |_purpose| admit);
        (outcome, sent)
    }

    fn reopen(versions: RangeInclusive<u16>, purpose: &str, answer: &[u8]) -> Result<u16, HelloError> {
        open(&mut Vec::new(), &mut &*answer, versions, purpose)
    }

    #[test]
    fn the_highest_common_version_is_agreed_on() {
        for (ours, theirs, agreed) in
            [(1..=3, 2..=5, 3), (2..=5, 1..=3, 3), (1..=1, 1..=1, 1), (4..=9, 1..=9, 9)]
        {
            let (answered, reply) = answering(&opening(ours.clone(), "rpc"), theirs, Ok(()));
            assert_eq!(answered.unwrap(), Answered { version: agreed, purpose: "rpc".into(), admitted: () });
            assert_eq!(reopen(ours, "rpc", &reply).unwrap(), agreed);
        }
    }

    #[test]
    fn without_a_common_version_both_ends_know_both_ranges() {
        let (answered, reply) = answering(&opening(1..=2, "rpc"), 3..=4, Ok(()));
        let HelloError::NoCommonVersion { ours, theirs } = answered.unwrap_err() else { panic!() };
        assert_eq!((ours, theirs), (3..=4, 1..=2));
        let HelloError::NoCommonVersion { ours, theirs } = reopen(1..=2, "rpc", &reply).unwrap_err() else {
            panic!()
        };
        assert_eq!((ours, theirs), (1..=2, 3..=4));
    }

    #[test]
    fn a_refused_purpose_is_refused_with_its_reason() {
        let reason = "no workload\nof that name";
        let (answered, reply) = answering(&opening(1..=1, "replicate:db"), 1..=1, Err(reason.into()));
        assert!(matches!(answered, Err(HelloError::Refused { .. })));
        let HelloError::RefusedByPeer { purpose, reason } =
            reopen(1..=1, "replicate:db", &reply).unwrap_err()
        else {
            panic!()
        };
        assert_eq!((purpose.as_str(), reason.as_str()), ("replicate:db", "no workload of that name"));
    }

    #[test]
    fn reasons_are_cut_to_their_bound() {
        let (_, reply) = answering(&opening(1..=1, "rpc"), 1..=1, Err("é".repeat(REASON_MAX)));
        let refused = reopen(1..=1, "rpc", &reply).unwrap_err();
        assert!(matches!(refused, HelloError::RefusedByPeer { .. }), "{refused}");
    }

    #[test]
    fn impossible_purposes_and_ranges_are_not_sent() {
        for purpose in ["", "a b", "a\n", "ä", &"x".repeat(PURPOSE_MAX + 1)] {
            let refused = reopen(1..=1, purpose, &[]).unwrap_err();
            assert!(matches!(refused, HelloError::Purpose { .. }), "{purpose:?}: {refused}");
        }
        #[expect(clippy::reversed_empty_ranges)]
        let refused = reopen(2..=1, "rpc", &[]).unwrap_err();
        assert!(matches!(refused, HelloError::Versions { .. }), "{refused}");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let said = opening(1..=1, "rpc");
        let (_, reply) = answering(&said, 1..=1, Ok(()));
        for bit in 0..said.len() * 8 {
            let mut flipped = said.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            answering(&flipped, 1..=1, Ok(())).0.unwrap_err();
        }
        for bit in 0..reply.len() * 8 {
            let mut flipped = reply.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            reopen(1..=1, "rpc", &flipped).unwrap_err();
        }
        for length in 0..said.len() {
            answering(&said[..length], 1..=1, Ok(())).0.unwrap_err();
        }
        for length in 0..reply.len() {
            reopen(1..=1, "rpc", &reply[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_stranger_is_told_apart_by_its_first_bytes() {
        let (answered, reply) = answering(b"GET / HTTP/1.1\r\n", 1..=1, Ok(()));
        assert!(matches!(answered, Err(HelloError::NotOutlive)));
        assert!(reply.is_empty());
    }

    #[test]
    fn two_nodes_agree_over_a_connection() {
        let (a, b) = connected_pair();
        let kinds = KindSet::none();
        std::thread::scope(|scope| {
            let answered = scope.spawn(move || {
                Stream::answer(b, VERSIONS, PATIENCE, |node, purpose| {
                    assert_eq!((node, purpose), ("a", "rpc"));
                    Ok(kinds)
                })
            });
            let opened = Stream::open(a, VERSIONS, "rpc", kinds, PATIENCE).unwrap();
            let answered = answered.join().unwrap().unwrap();
            assert_eq!((opened.peer_node.as_str(), answered.peer_node.as_str()), ("b", "a"));
            assert_eq!((opened.version, answered.version), (*VERSIONS.end(), *VERSIONS.end()));
        });
    }

    #[test]
    fn an_end_that_says_nothing_is_given_up() {
        let (a, b) = connected_pair();
        let refused =
            Stream::answer(b, VERSIONS, Duration::from_millis(20), |_, _| Ok(KindSet::none())).unwrap_err();
        assert!(matches!(refused, HelloError::Receive(ReceiveError::TimedOut { .. })), "{refused}");
        drop(a);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(
            bytes in vec(any::<u8>(), 0..700), magic: bool,
        ) {
            let mut said = if magic { MAGIC.to_vec() } else { Vec::new() };
            said.extend(bytes);
            prop_assert!(answering(&said, 1..=u16::MAX, Ok(())).0.is_err());
            prop_assert!(reopen(1..=u16::MAX, "rpc", &said).is_err());
        }
    }
}
