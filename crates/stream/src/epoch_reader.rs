//! Receiving an epoch: whole and verified, or not at all.

use outlive_fault::{Point, point};

use crate::compression::decompress;
use crate::connection::ByteSource;
use crate::epoch::{Ack, Encoding, EpochId, Heartbeat, Seal, Sealer, Trailer};
use crate::frame::{Frame, FrameError, FrameReader, Kind, PAYLOAD_MAX};

/// An epoch as the primary committed it.
#[derive(Debug, PartialEq, Eq)]
pub struct Epoch {
    pub generation: u64,
    pub epoch: u64,
    /// Each section once, in the order in which they first came.
    pub sections: Vec<(u8, Vec<u8>)>,
    /// Of what was received, and compared with what was sent.
    pub hash: u128,
}

impl Epoch {
    pub fn id(&self) -> EpochId {
        EpochId { generation: self.generation, epoch: self.epoch }
    }

    /// To be sent once the epoch is kept.
    pub fn ack(&self) -> Ack {
        Ack { id: self.id(), hash: self.hash }
    }
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Epoch(Epoch),
    /// The primary took an epoch back that it had begun.
    Aborted(EpochId),
    Ack(Ack),
    Heartbeat(Heartbeat),
    Input(Vec<u8>),
    /// A kind that this crate does not know, and the stream's user has declared.
    Other(Frame),
}

#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame of {kind:?} is malformed; both ends may not run the same version")]
    Malformed { kind: Kind },
    #[error("a frame of {kind:?} came while no epoch had begun")]
    NotBegun { kind: Kind },
    #[error("{begun} began before {open} was committed")]
    AlreadyBegun { open: EpochId, begun: EpochId },
    #[error("{found} came after {previous}: epochs are missing, repeated or of an older generation")]
    NotNext { previous: EpochId, found: EpochId },
    #[error("the end of {found} came within {open}")]
    WrongEnd { open: EpochId, found: EpochId },
    #[error(
        "{id} is larger than the {bound} bytes that may be held; raise the bound or end the epoch sooner"
    )]
    TooLarge { id: EpochId, bound: usize },
    #[error("a chunk of {id} does not decompress to what was announced")]
    Decompress { id: EpochId },
    #[error(
        "{received:?} was received, but {sent:?} was sent: a fault in memory or in outlive at either end"
    )]
    Differs { sent: Box<Seal>, received: Box<Seal> },
    #[error("an earlier epoch could not be received; connect again")]
    AfterFailure,
}

impl EpochError {
    /// Whether nothing is lost, and another try may follow.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Frame(FrameError::TimedOut(_)))
    }
}

/// Puts epochs together from their frames.
///
/// Holds at most `bound` bytes of an epoch, and beside them one frame. (A section grows as a `Vec` does:
/// its spare capacity is address space that was never touched.)
#[derive(Debug)]
pub struct EpochReader {
    bound: usize,
    previous: Option<EpochId>,
    open: Option<Open>,
    failed: bool,
}

#[derive(Debug)]
struct Open {
    sealer: Sealer,
    sections: Vec<(u8, Vec<u8>)>,
}

impl EpochReader {
    /// For a stream whose first epoch may have any number.
    pub fn new(bound: usize) -> Self {
        Self { bound, previous: None, open: None, failed: false }
    }

    /// For a stream that goes on after an epoch which this end holds already.
    pub fn after(previous: EpochId, bound: usize) -> Self {
        Self { previous: Some(previous), ..Self::new(bound) }
    }

    /// Wait for the next thing to arrive whole. Only a timeout may be followed by another try.
    pub fn next<R: ByteSource>(&mut self, frames: &mut FrameReader<R>) -> Result<Received, EpochError> {
        loop {
            if let Some(received) = self.accept(frames.next()?)? {
                return Ok(received);
            }
        }
    }

    /// Take in one frame; what it completes, if anything.
    pub fn accept(&mut self, frame: Frame) -> Result<Option<Received>, EpochError> {
        if self.failed {
            return Err(EpochError::AfterFailure);
        }
        let outcome = self.take_in(frame);
        if outcome.is_err() {
            (self.failed, self.open) = (true, None);
        }
        outcome
    }

    fn take_in(&mut self, frame: Frame) -> Result<Option<Received>, EpochError> {
        let kind = frame.kind;
        let malformed = EpochError::Malformed { kind };
        match kind {
            Kind::EPOCH_BEGIN => {
                let id = EpochId::parse(&frame.payload).ok_or(malformed)?;
                self.begin(id).map(|()| None)
            }
            Kind::EPOCH_CHUNK => {
                let open = self.open.as_mut().ok_or(EpochError::NotBegun { kind })?;
                open.take_in(frame, self.bound)?;
                point(Point::BackupHalfReceived);
                Ok(None)
            }
            Kind::EPOCH_COMMIT => {
                let sent = Seal::parse(&frame.payload).ok_or(malformed)?;
                let open = self.end(kind, sent.id)?;
                let epoch = open.verify(sent)?;
                self.previous = Some(sent.id);
                Ok(Some(Received::Epoch(epoch)))
            }
            Kind::EPOCH_ABORT => {
                let id = EpochId::parse(&frame.payload).ok_or(malformed)?;
                self.end(kind, id)?;
                Ok(Some(Received::Aborted(id)))
            }
            Kind::ACK => Ok(Some(Received::Ack(Ack::parse(&frame).ok_or(malformed)?))),
            Kind::HEARTBEAT => Ok(Some(Received::Heartbeat(Heartbeat::parse(&frame).ok_or(malformed)?))),
            Kind::INPUT => Ok(Some(Received::Input(frame.payload))),
            _ => Ok(Some(Received::Other(frame))),
        }
    }

    fn begin(&mut self, id: EpochId) -> Result<(), EpochError> {
        if let Some(open) = &self.open {
            return Err(EpochError::AlreadyBegun { open: open.sealer.id(), begun: id });
        }
        if let Some(previous) = self.previous
            && !previous.may_precede(id)
        {
            return Err(EpochError::NotNext { previous, found: id });
        }
        self.open = Some(Open { sealer: Sealer::new(id), sections: Vec::new() });
        Ok(())
    }

    fn end(&mut self, kind: Kind, found: EpochId) -> Result<Open, EpochError> {
        let open = self.open.take().ok_or(EpochError::NotBegun { kind })?;
        match open.sealer.id() {
            id if id == found => Ok(open),
            id => Err(EpochError::WrongEnd { open: id, found }),
        }
    }
}

impl Open {
    fn take_in(&mut self, frame: Frame, bound: usize) -> Result<(), EpochError> {
        let id = self.sealer.id();
        let malformed = EpochError::Malformed { kind: frame.kind };
        let mut payload = frame.payload;
        let trailer = payload.last_chunk().and_then(|bytes| Trailer::parse(*bytes));
        let Some(Trailer { length, section, encoding }) = trailer else { return Err(malformed) };
        payload.truncate(payload.len() - Trailer::LENGTH);
        // Before any memory is taken for it.
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if whole > PAYLOAD_MAX || (encoding == Encoding::Plain && whole != payload.len()) {
            return Err(malformed);
        }
        if self.sealer.bytes().saturating_add(u64::from(length)) > bound as u64 {
            return Err(EpochError::TooLarge { id, bound });
        }

        let held = match self.sections.iter().position(|(held, _)| *held == section) {
            Some(at) => &mut self.sections[at].1,
            None => {
                self.sections.push((section, Vec::new()));
                &mut self.sections.last_mut().ok_or(malformed)?.1
            }
        };
        let start = held.len();
        match encoding {
            // Most epochs are small, with one chunk to a section: it stays where it arrived.
            Encoding::Plain if start == 0 => *held = payload,
            Encoding::Plain => held.extend_from_slice(&payload),
            Encoding::Lz4 => {
                held.resize(start + whole, 0);
                if !decompress(&payload, &mut held[start..]) {
                    return Err(EpochError::Decompress { id });
                }
            }
        }
        self.sealer.add(section, length, &[&held[start..]]);
        Ok(())
    }

    fn verify(self, sent: Seal) -> Result<Epoch, EpochError> {
        let received = self.sealer.seal();
        if received != sent {
            return Err(EpochError::Differs { sent: Box::new(sent), received: Box::new(received) });
        }
        let EpochId { generation, epoch } = received.id;
        Ok(Epoch { generation, epoch, sections: self.sections, hash: received.hash })
    }
}

#[cfg(test)]
mod tests;
