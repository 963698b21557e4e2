//! Sending an epoch.

use crate::Compression;
use crate::compression::Compressor;
use crate::connection::ByteSink;
use crate::epoch::{CHUNK_MAX, Encoding, EpochId, Seal, Sealer, Trailer};
use crate::frame::{FrameSendError, FrameWriter, Kind};
use crate::portions::{Portions, total};

/// Chunks below this are left to be sent with the next frame, at the latest with the commit, so that a small
/// epoch leaves in one system call: copying 16 KiB takes about a microsecond, a call on a socket and the
/// record it makes several.
const QUEUED_MAX: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum EpochSendError {
    #[error("{begun} cannot begin before {open} is committed or aborted")]
    AlreadyBegun { open: EpochId, begun: EpochId },
    #[error("no epoch has begun that could be continued")]
    NotBegun,
    #[error("{found} cannot follow {previous}: the epoch must be the next, and the generation not lower")]
    NotNext { previous: EpochId, found: EpochId },
    #[error("the epoch could not be sent")]
    Send(#[from] FrameSendError),
}

/// Sends epochs, one after the other. Does not hold the stream's [`FrameWriter`] between calls: other frames
/// may go out within an epoch. One is for one stream: after a failure, connect again and make another.
#[derive(Debug)]
pub struct EpochWriter {
    compression: Compression,
    compressor: Compressor,
    previous: Option<EpochId>,
    open: Option<Sealer>,
}

impl EpochWriter {
    /// For a stream whose first epoch may have any number.
    pub fn new(compression: Compression) -> Self {
        Self { compression, compressor: Compressor::new(), previous: None, open: None }
    }

    /// For a stream that goes on after an epoch which the other end holds already.
    pub fn after(previous: EpochId, compression: Compression) -> Self {
        Self { previous: Some(previous), ..Self::new(compression) }
    }

    pub fn begin<S: ByteSink>(
        &mut self,
        frames: &mut FrameWriter<S>,
        id: EpochId,
    ) -> Result<(), EpochSendError> {
        if let Some(open) = &self.open {
            return Err(EpochSendError::AlreadyBegun { open: open.id(), begun: id });
        }
        if let Some(previous) = self.previous
            && !previous.may_precede(id)
        {
            return Err(EpochSendError::NotNext { previous, found: id });
        }
        frames.queue(Kind::EPOCH_BEGIN, &[&id.to_bytes()])?;
        self.open = Some(Sealer::new(id));
        Ok(())
    }

    /// Add these bytes, one after the other, to a section. Any number of times, sections in any order; what
    /// goes to one section is joined at the other end.
    pub fn chunk<S: ByteSink>(
        &mut self,
        frames: &mut FrameWriter<S>,
        section: u8,
        bytes: &[&[u8]],
    ) -> Result<(), EpochSendError> {
        let open = self.open.as_mut().ok_or(EpochSendError::NotBegun)?;
        if total(bytes) == 0 {
            // A section that is there and empty differs from one that is not there.
            return Ok(send_chunk(frames, open, None, section, &[])?);
        }
        let mut portions = Portions::new(bytes);
        while let Some(portion) = portions.next(CHUNK_MAX) {
            let compressor = match self.compression {
                Compression::None => None,
                Compression::Lz4 => Some(&mut self.compressor),
            };
            send_chunk(frames, open, compressor, section, &portion)?;
        }
        Ok(())
    }

    /// Complete the epoch. What the backup acknowledges is to be checked against the seal ([`Seal::check`]).
    pub fn commit<S: ByteSink>(&mut self, frames: &mut FrameWriter<S>) -> Result<Seal, EpochSendError> {
        let seal = self.open.take().ok_or(EpochSendError::NotBegun)?.seal();
        self.previous = Some(seal.id);
        frames.send(Kind::EPOCH_COMMIT, &[&seal.to_bytes()])?;
        Ok(seal)
    }

    /// Take the epoch back: the other end forgets what came of it, and the same number may be begun anew.
    pub fn abort<S: ByteSink>(&mut self, frames: &mut FrameWriter<S>) -> Result<(), EpochSendError> {
        let id = self.open.take().ok_or(EpochSendError::NotBegun)?.id();
        Ok(frames.send(Kind::EPOCH_ABORT, &[&id.to_bytes()])?)
    }
}

fn send_chunk<S: ByteSink>(
    frames: &mut FrameWriter<S>,
    open: &mut Sealer,
    compressor: Option<&mut Compressor>,
    section: u8,
    portion: &[&[u8]],
) -> Result<(), FrameSendError> {
    let whole = total(portion);
    // Bounded by CHUNK_MAX.
    let length = u32::try_from(whole).map_err(|_| FrameSendError::TooLong { length: whole })?;
    open.add(section, length, portion);
    if let Some(compressed) = compressor.and_then(|compressor| compressor.compress(portion)) {
        let trailer = Trailer { length, section, encoding: Encoding::Lz4 }.to_bytes();
        return frames.send(Kind::EPOCH_CHUNK, &[compressed, &trailer]);
    }
    let trailer = Trailer { length, section, encoding: Encoding::Plain }.to_bytes();
    let mut parts = Vec::with_capacity(portion.len() + 1);
    parts.extend_from_slice(portion);
    parts.push(&trailer);
    match whole < QUEUED_MAX {
        true => frames.queue(Kind::EPOCH_CHUNK, &parts),
        false => frames.send(Kind::EPOCH_CHUNK, &parts),
    }
}
