//! Whole, verified, ordered messages on a stream of bytes.
//!
//! A frame is a header of 24 bytes and a payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the payload |
//! | 4..12 | sequence: 0 for the first frame in a direction, then one more each |
//! | 12 | kind |
//! | 13..16 | check: the low 24 bits of the xxh3-64 of bytes 0..13 |
//! | 16..24 | xxh3-64 of bytes 0..16 and the payload |
//!
//! TLS protects the bytes on the wire. The hash protects from what TLS cannot see: faults of memory, and our
//! own; it is taken from the data as they lie in the sender's memory and checked as they lie in the
//! receiver's. The check is there so that a damaged length is noticed at once, not after waiting for bytes
//! that never come. Both are seeded by the direction: a frame that comes back to its sender is not taken for
//! the other's.
//!
//! Invariant: a frame is delivered in order, once and undamaged, or an error is; after an error, nothing more
//! is.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::compact::{CompactReader, CompactWriter};
use crate::connection::{ByteSink, ByteSource, PORTION, ReceiveError, SendError};
use crate::portions::total;
use crate::wire::Fields;

/// The longest payload. Larger data are sent as several frames; a receiver never allocates more than this for
/// one.
pub const PAYLOAD_MAX: usize = 4 * 1024 * 1024;

pub(crate) const HEADER_LENGTH: usize = 24;
/// What the check covers.
const CHECKED: usize = 13;
/// What the hash covers, before the payload.
const HASHED: usize = 16;

/// What a frame is. The meaning is its users': this module only passes those on that were declared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    pub const EPOCH_BEGIN: Self = Self(1);
    pub const EPOCH_CHUNK: Self = Self(2);
    pub const EPOCH_COMMIT: Self = Self(3);
    pub const EPOCH_ABORT: Self = Self(4);
    pub const ACK: Self = Self(5);
    pub const HEARTBEAT: Self = Self(6);
    pub const INPUT: Self = Self(7);
    pub const REQUEST: Self = Self(8);
    pub const RESPONSE: Self = Self(9);

    /// Kinds from this on are for the users of this crate; those below belong to it.
    pub const FIRST_APPLICATION: u8 = 128;
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kind {}", self.0)
    }
}

/// The kinds that a stream may carry in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSet([u64; 4]);

impl KindSet {
    pub const fn none() -> Self {
        Self([0; 4])
    }

    pub const fn of(kinds: &[Kind]) -> Self {
        let mut set = Self::none();
        let mut i = 0;
        while i < kinds.len() {
            set = set.with(kinds[i]);
            i += 1;
        }
        set
    }

    pub const fn with(mut self, Kind(kind): Kind) -> Self {
        self.0[kind as usize / 64] |= 1 << (kind % 64);
        self
    }

    pub const fn contains(&self, Kind(kind): Kind) -> bool {
        self.0[kind as usize / 64] & (1 << (kind % 64)) != 0
    }
}

/// Which end of a stream wrote a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end that connected.
    Opening,
    /// The end that accepted.
    Answering,
}

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Opening => Self::Answering,
            Self::Answering => Self::Opening,
        }
    }

    pub(crate) fn seed(self) -> u64 {
        match self {
            Self::Opening => 1,
            Self::Answering => 2,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub payload: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Nothing is lost by it: ask again for the next frame. What had arrived of it is kept.
    #[error("no whole frame arrived within the time allowed")]
    TimedOut(#[source] ReceiveError),
    #[error("the other end has closed the stream in good order, after {frames} frames")]
    Closed { frames: u64 },
    #[error("no frame can be received")]
    Receive(#[source] ReceiveError),
    #[error("the stream ended within a frame, {missing} bytes short")]
    Truncated { missing: usize, source: ReceiveError },
    #[error(
        "frame {sequence} is damaged ({what}): a fault in memory or in outlive at either end; connect again, and \
         suspect the hardware if it happens again"
    )]
    Corrupt { sequence: u64, what: &'static str },
    #[error("a frame of {length} bytes was announced; the most is {PAYLOAD_MAX}")]
    TooLong { length: usize },
    #[error("frame {found} came instead of {expected}: it was sent before")]
    Replayed { expected: u64, found: u64 },
    #[error("frame {found} came instead of {expected}: frames are missing between")]
    Missing { expected: u64, found: u64 },
    #[error(
        "a frame of {kind:?} came, which has no place on this stream; both ends may not run the same version"
    )]
    UnknownKind { kind: Kind },
    #[error("an earlier frame could not be received; connect again")]
    AfterFailure,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameSendError {
    #[error("{length} bytes do not fit a frame; the most is {PAYLOAD_MAX}, send them as several")]
    TooLong { length: usize },
    #[error("the frame could not be sent")]
    Send(#[from] SendError),
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameWriter<S> {
    sink: S,
    end: End,
    sequence: u64,
    /// Queued frames, not longer than [`PORTION`].
    queued: Vec<u8>,
}

impl<S: ByteSink> FrameWriter<S> {
    pub fn new(sink: S, end: End) -> Self {
        Self { sink, end, sequence: 0, queued: Vec::new() }
    }

    /// Send a frame whose payload is these slices one after the other, after what is queued. Nothing is
    /// copied on the way to encryption; up to 64 KiB leave in one system call.
    pub fn send(&mut self, kind: Kind, payload: &[&[u8]]) -> Result<(), FrameSendError> {
        let header = self.header(kind, payload)?;
        let mut parts = Vec::with_capacity(payload.len() + 2);
        parts.push(&self.queued[..]);
        parts.push(&header);
        parts.extend_from_slice(payload);
        let outcome = self.sink.send(&parts);
        self.queued.clear();
        Ok(outcome?)
    }

    /// Leave a frame to be sent with the next one, in one system call. If it does not fit what may be queued
    /// (64 KiB), all is sent now. [`flush`](Self::flush) sends what is queued.
    pub fn queue(&mut self, kind: Kind, payload: &[&[u8]]) -> Result<(), FrameSendError> {
        if self.queued.len() + HEADER_LENGTH + total(payload) > PORTION {
            return self.send(kind, payload);
        }
        let header = self.header(kind, payload)?;
        self.queued.extend_from_slice(&header);
        for part in payload {
            self.queued.extend_from_slice(part);
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), FrameSendError> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let outcome = self.sink.send(&[&self.queued]);
        self.queued.clear();
        Ok(outcome?)
    }

    pub fn get_ref(&self) -> &S {
        &self.sink
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// The sink, without what is queued: flush first.
    pub fn into_inner(self) -> S {
        self.sink
    }

    /// From here on in the form for small messages. The other end changes at the same frame; flush first.
    pub fn compact(self) -> CompactWriter<S> {
        CompactWriter::new(self.sink, self.end)
    }

    fn header(&mut self, Kind(kind): Kind, payload: &[&[u8]]) -> Result<[u8; HEADER_LENGTH], FrameSendError> {
        let too_long = |length| FrameSendError::TooLong { length };
        let length = total(payload);
        let length_field =
            u32::try_from(length).ok().filter(|_| length <= PAYLOAD_MAX).ok_or_else(|| too_long(length))?;
        let mut header = [0; HEADER_LENGTH];
        header[0..4].copy_from_slice(&length_field.to_le_bytes());
        header[4..12].copy_from_slice(&self.sequence.to_le_bytes());
        header[12] = kind;
        let check = check_of(&header, self.end);
        header[CHECKED..HASHED].copy_from_slice(&check);
        let hash = hash_of(&header, payload, self.end);
        header[HASHED..].copy_from_slice(&hash.to_le_bytes());
        // It would take centuries to get near the end of 64 bits.
        self.sequence += 1;
        Ok(header)
    }
}

/// Receives frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    /// Whose frames these are.
    end: End,
    kinds: KindSet,
    sequence: u64,
    header: [u8; HEADER_LENGTH],
    header_filled: usize,
    /// As long as the header says, as soon as that is known.
    payload: Option<Vec<u8>>,
    payload_filled: usize,
    failed: bool,
}

impl<R: ByteSource> FrameReader<R> {
    /// Frames written by `end`, of these `kinds` alone.
    pub fn new(source: R, end: End, kinds: KindSet) -> Self {
        Self {
            source,
            end,
            kinds,
            sequence: 0,
            header: [0; HEADER_LENGTH],
            header_filled: 0,
            payload: None,
            payload_filled: 0,
            failed: false,
        }
    }

    /// Wait for the next frame. Only [`FrameError::TimedOut`] may be followed by another try.
    #[expect(clippy::should_implement_trait, reason = "an iterator's end and an error's are not the same")]
    pub fn next(&mut self) -> Result<Frame, FrameError> {
        if self.failed {
            return Err(FrameError::AfterFailure);
        }
        let outcome = self.receive();
        self.failed = !matches!(outcome, Ok(_) | Err(FrameError::TimedOut(_)));
        outcome
    }

    pub fn get_ref(&self) -> &R {
        &self.source
    }

    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// From here on in the form for small messages, which the other end sends from this frame on.
    pub fn compact(self) -> CompactReader<R> {
        CompactReader::new(self.source, self.end, self.kinds)
    }

    fn receive(&mut self) -> Result<Frame, FrameError> {
        while self.header_filled < HEADER_LENGTH {
            match self.source.receive(&mut self.header[self.header_filled..]) {
                Ok(count) => self.header_filled += count,
                Err(error) => return Err(self.receive_failed(error)),
            }
        }
        let mut payload = match self.payload.take() {
            Some(begun) => begun,
            None => {
                let (_, length) = self.parse_header()?;
                vec![0; length]
            }
        };
        while self.payload_filled < payload.len() {
            match self.source.receive(&mut payload[self.payload_filled..]) {
                Ok(count) => self.payload_filled += count,
                Err(error) => {
                    self.payload = Some(payload);
                    return Err(self.receive_failed(error));
                }
            }
        }
        let (kind, _) = self.parse_header()?;
        let hash = self.header.last_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if hash != Some(hash_of(&self.header, &[&payload], self.end)) {
            return Err(self.corrupt("its hash does not match"));
        }
        self.sequence += 1;
        (self.header_filled, self.payload_filled) = (0, 0);
        Ok(Frame { kind, payload })
    }

    /// What the header says, once it is known to be what was sent and to belong here.
    fn parse_header(&self) -> Result<(Kind, usize), FrameError> {
        let mut fields = Fields(&self.header);
        let (Some(length), Some(found), Some(kind), Some(check)) =
            (fields.u32(), fields.u64(), fields.u8(), fields.array::<3>())
        else {
            return Err(self.corrupt("its header is too short"));
        };
        if check != check_of(&self.header, self.end) {
            return Err(self.corrupt("its header's check does not match"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLong { length });
        }
        let expected = self.sequence;
        if found < expected {
            return Err(FrameError::Replayed { expected, found });
        }
        if found > expected {
            return Err(FrameError::Missing { expected, found });
        }
        let kind = Kind(kind);
        if !self.kinds.contains(kind) {
            return Err(FrameError::UnknownKind { kind });
        }
        Ok((kind, length))
    }

    fn receive_failed(&self, error: ReceiveError) -> FrameError {
        let missing = match &self.payload {
            None if self.header_filled == 0 => 0,
            // At least that: how long the payload is, is not known yet.
            None => HEADER_LENGTH - self.header_filled,
            Some(payload) => payload.len() - self.payload_filled,
        };
        match error {
            source @ ReceiveError::TimedOut { .. } => FrameError::TimedOut(source),
            source @ (ReceiveError::Closed { .. } | ReceiveError::Cut { .. }) if missing > 0 => {
                FrameError::Truncated { missing, source }
            }
            ReceiveError::Closed { .. } => FrameError::Closed { frames: self.sequence },
            source => FrameError::Receive(source),
        }
    }

    fn corrupt(&self, what: &'static str) -> FrameError {
        FrameError::Corrupt { sequence: self.sequence, what }
    }
}

fn check_of(header: &[u8; HEADER_LENGTH], end: End) -> [u8; HASHED - CHECKED] {
    let [a, b, c, ..] = xxh3_64_with_seed(&header[..CHECKED], end.seed()).to_le_bytes();
    [a, b, c]
}

fn hash_of(header: &[u8; HEADER_LENGTH], payload: &[&[u8]], end: End) -> u64 {
    let mut hasher = Xxh3::with_seed(end.seed());
    hasher.update(&header[..HASHED]);
    for part in payload {
        hasher.update(part);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests;
