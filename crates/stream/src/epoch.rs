//! What primary and backup say to each other, as frames.
//!
//! An epoch goes out as a begin, any number of chunks, and a commit. Between those, other frames may go.
//!
//! | kind | payload |
//! |---|---|
//! | begin | generation, epoch |
//! | chunk | bytes, then a trailer: their length before compression (4), section, encoding, 2 × 0 |
//! | commit | generation, epoch, count of chunks, count of bytes, hash (16) |
//! | abort | generation, epoch |
//! | ack | generation, epoch, hash (16) |
//! | heartbeat | time |
//! | input | bytes |
//!
//! The hash is an xxh3-128 over generation, epoch, and for each chunk its length, section and bytes, all
//! before compression: both ends compute it from the data as they hold it, the backup compares, and returns
//! its own in the ack, so that the primary compares as well.
//!
//! The trailer follows the bytes, so that the receiver can keep a chunk in the memory it arrived in.

use xxhash_rust::xxh3::Xxh3;

use crate::connection::ByteSink;
use crate::frame::{Frame, FrameSendError, FrameWriter, Kind, KindSet};
use crate::wire::Fields;

/// Kinds that a primary sends.
pub const PRIMARY_KINDS: KindSet = KindSet::of(&[
    Kind::EPOCH_BEGIN,
    Kind::EPOCH_CHUNK,
    Kind::EPOCH_COMMIT,
    Kind::EPOCH_ABORT,
    Kind::HEARTBEAT,
    Kind::INPUT,
]);

/// Kinds that a backup sends.
pub const BACKUP_KINDS: KindSet = KindSet::of(&[Kind::ACK, Kind::HEARTBEAT]);

/// The most bytes of an epoch in one frame. Large enough that the work per frame is small beside the work per
/// byte; small enough that the receiver verifies one while the next is on its way.
pub(crate) const CHUNK_MAX: usize = 256 * 1024;

/// Which epoch of which generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpochId {
    pub generation: u64,
    pub epoch: u64,
}

impl std::fmt::Display for EpochId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} of generation {}", self.epoch, self.generation)
    }
}

impl EpochId {
    /// Whether an epoch `next` may come after this one: the number grows by one, the generation does not
    /// fall.
    pub fn may_precede(&self, next: EpochId) -> bool {
        next.generation >= self.generation && self.epoch.checked_add(1) == Some(next.epoch)
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..].copy_from_slice(&self.epoch.to_le_bytes());
        bytes
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { generation: fields.u64()?, epoch: fields.u64()? })
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let id = Self::take(&mut fields)?;
        fields.end(id)
    }
}

/// A whole epoch, by its numbers, its extent and its contents' hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub id: EpochId,
    pub chunks: u64,
    /// Before compression.
    pub bytes: u64,
    pub hash: u128,
}

/// The backup's answer to a commit: it holds all of it, and this is what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub id: EpochId,
    pub hash: u128,
}

/// A sign of life. The time is the sender's, and means what both ends agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub time: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    #[error(
        "the backup acknowledged {found} where {expected} was due; its state is not what this end thinks: re-protect"
    )]
    WrongEpoch { expected: EpochId, found: EpochId },
    #[error(
        "the backup holds {id} with other contents than were sent (hash {found:032x} instead of {expected:032x}): \
         re-protect, and suspect the memory of either host"
    )]
    Differs { id: EpochId, expected: u128, found: u128 },
}

impl Seal {
    /// Whether an acknowledgement says that the backup holds exactly this.
    pub fn check(&self, ack: &Ack) -> Result<(), AckError> {
        if ack.id != self.id {
            return Err(AckError::WrongEpoch { expected: self.id, found: ack.id });
        }
        if ack.hash != self.hash {
            return Err(AckError::Differs { id: self.id, expected: self.hash, found: ack.hash });
        }
        Ok(())
    }

    pub(crate) fn to_bytes(self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[..16].copy_from_slice(&self.id.to_bytes());
        bytes[16..24].copy_from_slice(&self.chunks.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[32..].copy_from_slice(&self.hash.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let id = EpochId::take(&mut fields)?;
        let seal = Self { id, chunks: fields.u64()?, bytes: fields.u64()?, hash: fields.u128()? };
        fields.end(seal)
    }
}

impl Ack {
    pub fn send(&self, frames: &mut FrameWriter<impl ByteSink>) -> Result<(), FrameSendError> {
        frames.send(Kind::ACK, &[&self.id.to_bytes(), &self.hash.to_le_bytes()])
    }

    /// `None` if the frame is no (well-formed) acknowledgement.
    pub fn parse(frame: &Frame) -> Option<Self> {
        if frame.kind != Kind::ACK {
            return None;
        }
        let mut fields = Fields(&frame.payload);
        let ack = Self { id: EpochId::take(&mut fields)?, hash: fields.u128()? };
        fields.end(ack)
    }
}

impl Heartbeat {
    pub fn send(&self, frames: &mut FrameWriter<impl ByteSink>) -> Result<(), FrameSendError> {
        frames.send(Kind::HEARTBEAT, &[&self.time.to_le_bytes()])
    }

    /// `None` if the frame is no (well-formed) heartbeat.
    pub fn parse(frame: &Frame) -> Option<Self> {
        if frame.kind != Kind::HEARTBEAT {
            return None;
        }
        let mut fields = Fields(&frame.payload);
        let heartbeat = Self { time: fields.u64()? };
        fields.end(heartbeat)
    }
}

/// Send a copy of what came in to the workload.
pub fn send_input(frames: &mut FrameWriter<impl ByteSink>, input: &[&[u8]]) -> Result<(), FrameSendError> {
    frames.send(Kind::INPUT, input)
}

/// What follows the bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Before compression.
    pub length: u32,
    pub section: u8,
    pub encoding: Encoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Lz4,
}

impl Trailer {
    pub const LENGTH: usize = 8;

    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let [a, b, c, d] = self.length.to_le_bytes();
        let encoding = match self.encoding {
            Encoding::Plain => 0,
            Encoding::Lz4 => 1,
        };
        [a, b, c, d, self.section, encoding, 0, 0]
    }

    pub fn parse(bytes: [u8; Self::LENGTH]) -> Option<Self> {
        let [a, b, c, d, section, encoding, 0, 0] = bytes else { return None };
        let encoding = match encoding {
            0 => Encoding::Plain,
            1 => Encoding::Lz4,
            _ => return None,
        };
        Some(Self { length: u32::from_le_bytes([a, b, c, d]), section, encoding })
    }
}

/// The running seal of an epoch, computed alike at both ends.
pub(crate) struct Sealer {
    id: EpochId,
    chunks: u64,
    bytes: u64,
    hasher: Box<Xxh3>,
}

impl Sealer {
    pub fn new(id: EpochId) -> Self {
        let mut hasher = Box::new(Xxh3::new());
        hasher.update(&id.to_bytes());
        Self { id, chunks: 0, bytes: 0, hasher }
    }

    pub fn id(&self) -> EpochId {
        self.id
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Add a chunk, as it is before compression.
    pub fn add(&mut self, section: u8, length: u32, parts: &[&[u8]]) {
        self.chunks += 1;
        self.bytes += u64::from(length);
        self.hasher.update(&length.to_le_bytes());
        self.hasher.update(&[section]);
        for part in parts {
            self.hasher.update(part);
        }
    }

    pub fn seal(&self) -> Seal {
        Seal { id: self.id, chunks: self.chunks, bytes: self.bytes, hash: self.hasher.digest128() }
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("id", &self.id).field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EpochId = EpochId { generation: 3, epoch: 7 };

    #[test]
    fn an_epoch_follows_its_predecessor_alone() {
        let follows = |generation, epoch| ID.may_precede(EpochId { generation, epoch });
        assert!(follows(3, 8) && follows(4, 8) && follows(u64::MAX, 8));
        assert!(!follows(2, 8), "a lower generation");
        assert!(!follows(3, 7) && !follows(3, 9) && !follows(4, 1));
        assert!(!EpochId { generation: 3, epoch: u64::MAX }.may_precede(EpochId { generation: 3, epoch: 0 }));
    }

    #[test]
    fn an_acknowledgement_of_anything_else_is_noticed() {
        let seal = Seal { id: ID, chunks: 1, bytes: 2, hash: 3 };
        assert_eq!(seal.check(&Ack { id: ID, hash: 3 }), Ok(()));
        assert!(matches!(seal.check(&Ack { id: ID, hash: 4 }), Err(AckError::Differs { .. })));
        for (generation, epoch) in [(3, 6), (3, 8), (2, 7), (4, 7)] {
            let ack = Ack { id: EpochId { generation, epoch }, hash: 3 };
            assert!(matches!(seal.check(&ack), Err(AckError::WrongEpoch { .. })));
        }
    }

    #[test]
    fn the_seal_covers_numbers_sections_bytes_and_their_division() {
        let seal = |id, chunks: &[(u8, &[&[u8]])]| {
            let mut sealer = Sealer::new(id);
            for (section, parts) in chunks {
                let length = parts.iter().map(|part| part.len() as u32).sum();
                sealer.add(*section, length, parts);
            }
            sealer.seal()
        };
        let reference = seal(ID, &[(1, &[b"abc"])]);
        assert_eq!(
            seal(ID, &[(1, &[b"a", b"", b"bc"])]),
            reference,
            "how the bytes lie in memory is of no concern"
        );
        let others = [
            seal(EpochId { epoch: 8, ..ID }, &[(1, &[b"abc"])]),
            seal(EpochId { generation: 4, ..ID }, &[(1, &[b"abc"])]),
            seal(ID, &[(2, &[b"abc"])]),
            seal(ID, &[(1, &[b"abd"])]),
            seal(ID, &[(1, &[b"ab"]), (1, &[b"c"])]),
            seal(ID, &[(1, &[b"abc"]), (1, &[])]),
            seal(ID, &[]),
        ];
        assert!(others.iter().all(|other| other.hash != reference.hash));
    }

    #[test]
    fn small_messages_come_back_and_other_lengths_do_not() {
        let (ack, heartbeat) = (Ack { id: ID, hash: u128::MAX - 5 }, Heartbeat { time: 1 << 60 });
        let mut frames = FrameWriter::new(Vec::new(), crate::frame::End::Answering);
        ack.send(&mut frames).unwrap();
        heartbeat.send(&mut frames).unwrap();
        let recording = frames.into_inner();
        let mut frames =
            crate::frame::FrameReader::new(&recording[..], crate::frame::End::Answering, BACKUP_KINDS);
        let (mut first, mut second) = (frames.next().unwrap(), frames.next().unwrap());
        assert_eq!(Ack::parse(&first), Some(ack));
        assert_eq!(Heartbeat::parse(&first), None);
        assert_eq!(Heartbeat::parse(&second), Some(heartbeat));
        assert_eq!(Ack::parse(&second), None);
        first.payload.push(0);
        second.payload.pop();
        assert_eq!(Ack::parse(&first), None);
        assert_eq!(Heartbeat::parse(&second), None);
        let seal = Seal { id: ID, chunks: 9, bytes: 8, hash: 7 };
        assert_eq!(Seal::parse(&seal.to_bytes()), Some(seal));
        assert_eq!(Seal::parse(&seal.to_bytes()[1..]), None);
    }

    #[test]
    fn trailers_come_back_and_unknown_ones_do_not() {
        for encoding in [Encoding::Plain, Encoding::Lz4] {
            let trailer = Trailer { length: 0x0102_0304, section: 9, encoding };
            assert_eq!(Trailer::parse(trailer.to_bytes()), Some(trailer));
        }
        assert_eq!(Trailer::parse([0, 0, 0, 0, 0, 2, 0, 0]), None);
        assert_eq!(Trailer::parse([0, 0, 0, 0, 0, 0, 1, 0]), None);
        assert_eq!(Trailer::parse([0, 0, 0, 0, 0, 0, 0, 1]), None);
    }
}
