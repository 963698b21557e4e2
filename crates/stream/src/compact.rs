//! Frames for streams of many small messages: six bytes in front of most, in place of the twenty-four of [`frame`](crate::frame).
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind |
//! | 1 to 4 | length of the payload, as LEB128: one byte below 128 |
//! | 4 | the low half of the xxh3-64 of all the other bytes, seeded by direction and sequence |
//!
//! The sequence is counted at both ends and not sent: TLS keeps the order on the wire, and the seed notices what came out
//! of it in memory. What [`frame`](crate::frame) tells apart (replayed, missing, damaged) is one error here, and a damaged
//! length is noticed by the hash of the frame that it makes, or by the silence that follows.
//!
//! Invariant: as there, a frame is delivered in order, once and undamaged, or an error is; after an error, nothing more
//! is.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::connection::{ByteSink, ByteSource, ReceiveError};
use crate::frame::{End, Frame, FrameError, FrameSendError, Kind, KindSet, PAYLOAD_MAX};
use crate::portions::total;

/// The longest header: [`PAYLOAD_MAX`] takes four bytes of LEB128.
const HEADER_MAX: usize = 1 + LENGTH_MAX + HASH;
const LENGTH_MAX: usize = 4;
const HASH: usize = 4;

/// Up to here a frame is put together in one place, hashed at once and given away in one piece. Larger ones are not copied.
const SMALL: usize = 1024;

/// What is taken from the source at once. Larger payloads are received where they stay.
const BUFFER: usize = 16 * 1024;

/// Sends frames.
#[derive(Debug)]
pub struct CompactWriter<S> {
    sink: S,
    end: End,
    sequence: u64,
    small: Vec<u8>,
}

impl<S: ByteSink> CompactWriter<S> {
    /// What `end` says. Both ends count from here.
    pub fn new(sink: S, end: End) -> Self {
        Self { sink, end, sequence: 0, small: Vec::with_capacity(SMALL + HEADER_MAX) }
    }

    /// Send a frame whose payload is these slices one after the other.
    pub fn send(&mut self, Kind(kind): Kind, payload: &[&[u8]]) -> Result<(), FrameSendError> {
        let length = total(payload);
        if length > PAYLOAD_MAX {
            return Err(FrameSendError::TooLong { length });
        }
        let mut header = [0; HEADER_MAX];
        header[0] = kind;
        let mut filled = 1;
        let mut rest = length;
        while rest >= 0x80 {
            header[filled] = rest as u8 | 0x80;
            filled += 1;
            rest >>= 7;
        }
        header[filled] = rest as u8;
        filled += 1;
        let seed = seed(self.end, self.sequence);
        self.sequence += 1;
        if length <= SMALL {
            self.small.clear();
            self.small.extend_from_slice(&header[..filled]);
            for part in payload {
                self.small.extend_from_slice(part);
            }
            let hash = low_half(xxh3_64_with_seed(&self.small, seed));
            self.small.splice(filled..filled, hash);
            return Ok(self.sink.send(&[&self.small])?);
        }
        let hash = low_half(hash_of(&header[..filled], payload, seed));
        header[filled..filled + HASH].copy_from_slice(&hash);
        let mut parts = Vec::with_capacity(payload.len() + 1);
        parts.push(&header[..filled + HASH]);
        parts.extend_from_slice(payload);
        Ok(self.sink.send(&parts)?)
    }

    /// The sink.
    pub fn into_inner(self) -> S {
        self.sink
    }
}

/// Receives frames.
#[derive(Debug)]
pub struct CompactReader<R> {
    source: R,
    /// Whose frames these are.
    end: End,
    kinds: KindSet,
    sequence: u64,
    /// Received and not yet taken apart: `buffer[start..filled]`.
    buffer: Box<[u8]>,
    start: usize,
    filled: usize,
    large: Option<Large>,
    failed: bool,
}

/// A frame that does not fit the buffer, as far as it has come.
#[derive(Debug)]
struct Large {
    head: Head,
    payload: Vec<u8>,
    filled: usize,
}

/// What stands in front of a payload.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: Kind,
    length: usize,
    hash: [u8; HASH],
    /// Kind and length as they came, and how long these are without the hash.
    bytes: [u8; 1 + LENGTH_MAX],
    hashed: usize,
}

impl Head {
    /// `None`: more of it is to come.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut length = 0;
        let mut hashed = 1;
        loop {
            let Some(byte) = bytes.get(hashed) else { return Ok(None) };
            length |= usize::from(byte & 0x7f) << (7 * (hashed - 1));
            hashed += 1;
            if *byte < 0x80 {
                break;
            }
            if hashed > LENGTH_MAX {
                return Err(FrameError::TooLong { length });
            }
        }
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLong { length });
        }
        let Some(hash) = bytes[hashed..].first_chunk::<HASH>() else { return Ok(None) };
        let mut own = [0; 1 + LENGTH_MAX];
        own[..hashed].copy_from_slice(&bytes[..hashed]);
        Ok(Some(Self { kind: Kind(bytes[0]), length, hash: *hash, bytes: own, hashed }))
    }
}

impl<R: ByteSource> CompactReader<R> {
    /// Frames written by `end`, of these `kinds` alone.
    pub fn new(source: R, end: End, kinds: KindSet) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { source, end, kinds, sequence: 0, buffer, start: 0, filled: 0, large: None, failed: false }
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

    /// The source.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    fn receive(&mut self) -> Result<Frame, FrameError> {
        while self.large.is_none() {
            let there = &self.buffer[self.start..self.filled];
            let missing = match Head::parse(there)? {
                // At least that: its length is not known yet.
                None if there.is_empty() => 0,
                None => (2 + HASH).saturating_sub(there.len()).max(1),
                Some(head) => {
                    let front = head.hashed + HASH;
                    let whole = front + head.length;
                    if let Some(payload) = there.get(front..whole) {
                        let payload = payload.to_vec();
                        self.start += whole;
                        return self.deliver(&head, payload);
                    }
                    if whole > BUFFER {
                        let mut payload = vec![0; head.length];
                        let come = &there[front..];
                        payload[..come.len()].copy_from_slice(come);
                        let filled = come.len();
                        self.start = self.filled;
                        self.large = Some(Large { head, payload, filled });
                        break;
                    }
                    whole - there.len()
                }
            };
            self.buffer.copy_within(self.start..self.filled, 0);
            (self.start, self.filled) = (0, self.filled - self.start);
            match self.source.receive(&mut self.buffer[self.filled..]) {
                Ok(count) => self.filled += count,
                Err(error) => return Err(self.receive_failed(error, missing)),
            }
        }
        let Some(mut large) = self.large.take() else { return self.receive() };
        while large.filled < large.payload.len() {
            match self.source.receive(&mut large.payload[large.filled..]) {
                Ok(count) => large.filled += count,
                Err(error) => {
                    let missing = large.payload.len() - large.filled;
                    self.large = Some(large);
                    return Err(self.receive_failed(error, missing));
                }
            }
        }
        self.deliver(&large.head, large.payload)
    }

    fn deliver(&mut self, head: &Head, payload: Vec<u8>) -> Result<Frame, FrameError> {
        let seed = seed(self.end, self.sequence);
        if low_half(hash_of(&head.bytes[..head.hashed], &[&payload], seed)) != head.hash {
            return Err(FrameError::Corrupt { sequence: self.sequence, what: "its hash does not match" });
        }
        if !self.kinds.contains(head.kind) {
            return Err(FrameError::UnknownKind { kind: head.kind });
        }
        self.sequence += 1;
        Ok(Frame { kind: head.kind, payload })
    }

    fn receive_failed(&self, error: ReceiveError, missing: usize) -> FrameError {
        match error {
            source @ ReceiveError::TimedOut { .. } => FrameError::TimedOut(source),
            source @ (ReceiveError::Closed { .. } | ReceiveError::Cut { .. }) if missing > 0 => {
                FrameError::Truncated { missing, source }
            }
            ReceiveError::Closed { .. } => FrameError::Closed { frames: self.sequence },
            source => FrameError::Receive(source),
        }
    }
}

fn seed(end: End, sequence: u64) -> u64 {
    // The lowest two bits are the direction's.
    sequence << 2 | end.seed()
}

fn low_half(hash: u64) -> [u8; HASH] {
    let [a, b, c, d, ..] = hash.to_le_bytes();
    [a, b, c, d]
}

fn hash_of(header: &[u8], payload: &[&[u8]], seed: u64) -> u64 {
    let length = header.len() + total(payload);
    let mut small = [0; SMALL + HEADER_MAX];
    if let Some(small) = small.get_mut(..length) {
        let mut filled = 0;
        for part in std::iter::once(&header).chain(payload) {
            small[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        return xxh3_64_with_seed(small, seed);
    }
    let mut hasher = Xxh3::with_seed(seed);
    hasher.update(header);
    for part in payload {
        hasher.update(part);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests;
