//! The plug: which frame of the workload may leave, and when. No I/O, no clock: the time is an argument.
//!
//! ```text
//!                       cut(e)             committed(e)        next_batch: fresh?
//!   hold(frame) ─▶ open ───────▶ cut at e ─────────────▶ free ─────────────────────▶ out
//!       └── what the kernel says alone ─▶ waits for an acknowledgement younger than itself ─▶ out
//! ```
//!
//! A frame leaves at most once, frames of the workload leave in the order in which they came, and none is dropped
//! but by [`Plug::silence`].

use std::collections::VecDeque;
use std::time::Duration;

use crate::Moment;
use crate::frame::{Class, MAX_FRAME, classify};

/// Frames released between two looks at the clock. A host that stalls in the middle of a batch and wakes can emit,
/// late, at most these, and they were committed (R2).
pub const BATCH_FRAMES: usize = 32;

/// What a held frame costs beside its bytes, for the account of memory: its place in the queue and the
/// allocator's overhead.
const FRAME_OVERHEAD: usize = 64;

/// A frame in memory, with its virtio header.
pub type Frame = Box<[u8]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlugConfig {
    /// How old the last acknowledgement may be for a frame to leave (R2).
    pub freshness: Duration,
    /// The most that may be held. At three quarters of either the workload has to be stopped ([`Pressure::High`]);
    /// beyond the whole nothing more is read from it.
    pub max_bytes: usize,
    pub max_frames: usize,
}

impl Default for PlugConfig {
    /// 50 ms: several heartbeats, and below any sensible time to detect a failure. 256 MiB: what a workload can
    /// send at 10 Gb/s while a backup is silent for 0.2 s, after which it is given up.
    fn default() -> PlugConfig {
        PlugConfig { freshness: Duration::from_millis(50), max_bytes: 256 << 20, max_frames: 262_144 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Stop the workload: the plug is three quarters full.
    High,
    /// Let it run again: less than half of that is left.
    Low,
}

/// What the engine wants to know about a frame that was just held. Edges, not levels: each is raised once until
/// its reason has been dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// The first payload since the last cut waits for a checkpoint.
    pub payload: bool,
    /// The first pure ACK since the last cut waits for a checkpoint, without hurry.
    pub ack: bool,
    /// Something that the kernel says alone waits for an acknowledgement: a heartbeat answered is enough.
    pub kernel: bool,
    pub pressure: Option<Pressure>,
}

impl Signals {
    pub fn merge(&mut self, later: Signals) {
        self.payload |= later.payload;
        self.ack |= later.ack;
        self.kernel |= later.kernel;
        self.pressure = later.pressure.or(self.pressure);
    }
}

/// What [`Plug::next_batch`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Frames to send now, and perhaps more after them.
    Ready,
    /// Nothing may leave until something else commits.
    Empty,
    /// Frames may leave, but not on an acknowledgement this old: they wait for the next one.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    #[error("epoch {epoch} cannot be cut after epoch {last}: epochs only grow")]
    EpochNotNew { epoch: u64, last: u64 },
    #[error(
        "epoch {epoch} cannot have been committed by this backup: it was not cut for it (the last was {last:?})"
    )]
    EpochUnknown { epoch: u64, last: Option<u64> },
    #[error("generation {generation} cannot be granted after {last}: generations only grow")]
    GenerationNotNew { generation: u64, last: u64 },
    #[error("the workload is exposed: it has no epochs to cut or commit until it is plugged again")]
    Exposed,
    #[error("this incarnation was silenced, for good")]
    Silenced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Holding,
    Exposed,
    Silenced,
}

struct Held {
    frame: Frame,
    at: Moment,
}

/// The state of the output side. Frames are numbered as they come; what may leave is a boundary in that number.
pub struct Plug {
    config: PlugConfig,
    mode: Mode,
    generation: u64,
    last_acknowledgement: Option<Moment>,

    /// The workload's frames in order. The number of the first is `first`, those below `free` may leave.
    frames: VecDeque<Held>,
    first: u64,
    free: u64,
    /// Epochs cut and not yet committed, with the number of the first frame that is not theirs.
    cuts: VecDeque<(u64, u64)>,
    last_cut: Option<u64>,
    last_cut_of_this_backup: Option<u64>,

    /// What the kernel says alone, in order.
    kernel: VecDeque<Held>,

    bytes: usize,
    payload_signalled: bool,
    ack_signalled: bool,
    kernel_signalled: bool,
    pressure: Pressure,
}

impl Plug {
    /// A plug that holds: for a workload that starts protected.
    pub fn holding(config: PlugConfig, generation: u64) -> Plug {
        Plug {
            config,
            mode: Mode::Holding,
            generation,
            last_acknowledgement: None,
            frames: VecDeque::new(),
            first: 0,
            free: 0,
            cuts: VecDeque::new(),
            last_cut: None,
            last_cut_of_this_backup: None,
            kernel: VecDeque::new(),
            bytes: 0,
            payload_signalled: false,
            ack_signalled: false,
            kernel_signalled: false,
            pressure: Pressure::Low,
        }
    }

    /// A plug that lets everything pass, by the grant of `generation`: for a workload without a backup.
    pub fn exposed(config: PlugConfig, generation: u64) -> Plug {
        Plug { mode: Mode::Exposed, ..Plug::holding(config, generation) }
    }

    /// Takes a frame of the workload.
    pub fn hold(&mut self, frame: &[u8], now: Moment) -> Signals {
        debug_assert!(frame.len() <= MAX_FRAME);
        let mut signals = Signals::default();
        let class = match self.mode {
            Mode::Silenced => return signals,
            // Order is all that counts, and nobody is waited for.
            Mode::Exposed => None,
            Mode::Holding => Some(classify(frame)),
        };
        self.bytes += frame.len() + FRAME_OVERHEAD;
        let held = Held { frame: frame.into(), at: now };
        if class == Some(Class::KernelAlone) {
            self.kernel.push_back(held);
        } else {
            self.frames.push_back(held);
        }
        match class {
            None => self.free = self.next_number(),
            Some(Class::Payload) => signals.payload = !std::mem::replace(&mut self.payload_signalled, true),
            Some(Class::PureAck) => signals.ack = !std::mem::replace(&mut self.ack_signalled, true),
            Some(Class::KernelAlone) => signals.kernel = !std::mem::replace(&mut self.kernel_signalled, true),
        }
        signals.pressure = self.pressure_change();
        signals
    }

    /// Everything held so far belongs to `epoch`. To be called while the workload and its input are stopped.
    pub fn cut(&mut self, epoch: u64) -> Result<(), PlugError> {
        self.must_hold()?;
        if let Some(last) = self.last_cut.filter(|&last| epoch <= last) {
            return Err(PlugError::EpochNotNew { epoch, last });
        }
        self.cuts.push_back((epoch, self.next_number()));
        self.last_cut = Some(epoch);
        self.last_cut_of_this_backup = Some(epoch);
        self.payload_signalled = false;
        self.ack_signalled = false;
        Ok(())
    }

    /// The frames held since the last cut, in order.
    pub fn said_since_cut(&self) -> impl Iterator<Item = &[u8]> {
        let cut = self.cuts.back().map_or(self.free, |&(_, end)| end);
        // A plug that was silenced has dropped frames without having let them go.
        let before = cut.saturating_sub(self.first).min(self.frames.len() as u64);
        self.frames.range(before as usize..).map(|held| &*held.frame)
    }

    /// Whether payload of the epoch that runs is held, as was signalled.
    pub fn holds_payload(&self) -> bool {
        self.mode == Mode::Holding && self.payload_signalled
    }

    /// The backup holds everything up to the end of `epoch`, and said so to a message sent at `at`.
    pub fn committed(&mut self, epoch: u64, at: Moment) -> Result<Signals, PlugError> {
        self.must_hold()?;
        if self.last_cut_of_this_backup.is_none_or(|last| epoch > last) {
            return Err(PlugError::EpochUnknown { epoch, last: self.last_cut_of_this_backup });
        }
        while let Some(&(cut, end)) = self.cuts.front()
            && cut <= epoch
        {
            self.cuts.pop_front();
            assert!(
                self.free <= end && end <= self.next_number(),
                "cuts are in order and within what is held"
            );
            self.free = end;
        }
        self.acknowledged(at)
    }

    /// The backup answered a message sent at `at`. The time of sending, not of reading the answer: an answer
    /// that lay in a socket while this host stalled proves nothing about now.
    pub fn acknowledged(&mut self, at: Moment) -> Result<Signals, PlugError> {
        self.must_hold()?;
        self.last_acknowledgement = self.last_acknowledgement.max(Some(at));
        // What is younger than this acknowledgement needs another: say so again.
        let kernel = self.kernel.back().is_some_and(|held| held.at > at);
        self.kernel_signalled = kernel;
        Ok(Signals { kernel, ..Signals::default() })
    }

    /// Moves what may leave now to `out`, at most `BATCH_FRAMES`. To be called again, with the time read
    /// again, after those were sent.
    pub fn next_batch(&mut self, now: Moment, out: &mut Vec<Frame>) -> Batch {
        let mut room = BATCH_FRAMES;
        let kernel_up_to = match self.mode {
            Mode::Silenced => return Batch::Empty,
            Mode::Exposed => None,
            Mode::Holding => {
                let waiting = self.first < self.free || !self.kernel.is_empty();
                match self.last_acknowledgement {
                    _ if !waiting => return Batch::Empty,
                    None => return if self.first < self.free { Batch::Stale } else { Batch::Empty },
                    Some(last) if now.since(last) > self.config.freshness => return Batch::Stale,
                    Some(last) => Some(last),
                }
            }
        };
        let sent_before = out.len();
        while room > 0
            && self.kernel.front().is_some_and(|held| kernel_up_to.is_none_or(|last| held.at <= last))
            && let Some(held) = self.kernel.pop_front()
        {
            room -= 1;
            self.let_go(held, out);
        }
        while room > 0
            && self.first < self.free
            && let Some(held) = self.frames.pop_front()
        {
            room -= 1;
            self.first += 1;
            self.let_go(held, out);
        }
        if out.len() > sent_before { Batch::Ready } else { Batch::Empty }
    }

    /// Whether a frame may pass without being held at all: exposed, with nothing before it.
    pub fn passes(&self) -> bool {
        self.mode == Mode::Exposed && self.frames.is_empty() && self.kernel.is_empty()
    }

    /// The workload goes on without a backup, as `generation` was granted for: all that is held may leave.
    pub fn go_exposed(&mut self, generation: u64) -> Result<(), PlugError> {
        if self.mode == Mode::Silenced {
            return Err(PlugError::Silenced);
        }
        // The same again is what a primary is told whose new backup was not granted: it stays what it was.
        if generation < self.generation {
            return Err(PlugError::GenerationNotNew { generation, last: self.generation });
        }
        self.generation = generation;
        self.mode = Mode::Exposed;
        self.cuts.clear();
        self.free = self.next_number();
        Ok(())
    }

    /// Holds again, for a new backup: nothing of a former one counts any more, neither its acknowledgements nor
    /// the epochs cut for it. What was let go before and not yet sent leaves on the first acknowledgement.
    pub fn plug(&mut self) -> Result<(), PlugError> {
        if self.mode == Mode::Silenced {
            return Err(PlugError::Silenced);
        }
        self.mode = Mode::Holding;
        self.last_acknowledgement = None;
        self.last_cut_of_this_backup = None;
        self.cuts.clear();
        self.payload_signalled = false;
        self.ack_signalled = false;
        self.kernel_signalled = false;
        Ok(())
    }

    /// Nothing more leaves, ever. What is held is dropped: the successor includes it or nobody saw it.
    pub fn silence(&mut self) {
        self.mode = Mode::Silenced;
        self.frames.clear();
        self.kernel.clear();
        self.cuts.clear();
        self.bytes = 0;
    }

    /// Takes the news that pressure changed by frames leaving.
    pub fn pressure_change(&mut self) -> Option<Pressure> {
        let part = |whole: usize, eighths: usize| whole / 8 * eighths;
        let above = |eighths| {
            self.bytes >= part(self.config.max_bytes, eighths)
                || self.held() >= part(self.config.max_frames, eighths)
        };
        let now = match self.pressure {
            Pressure::Low if above(6) => Pressure::High,
            Pressure::High if !above(3) => Pressure::Low,
            _ => return None,
        };
        self.pressure = now;
        Some(now)
    }

    /// Whether another frame may be read from the workload. Where not, it waits in the TAP.
    pub fn has_room(&self) -> bool {
        self.held() < self.config.max_frames
            && self.bytes + MAX_FRAME + FRAME_OVERHEAD <= self.config.max_bytes
    }

    pub fn is_exposed(&self) -> bool {
        self.mode == Mode::Exposed
    }

    pub fn is_silenced(&self) -> bool {
        self.mode == Mode::Silenced
    }

    /// Frames held.
    pub fn held(&self) -> usize {
        self.frames.len() + self.kernel.len()
    }

    /// Memory that holding takes.
    pub fn held_bytes(&self) -> usize {
        self.bytes
    }

    fn next_number(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    fn let_go(&mut self, held: Held, out: &mut Vec<Frame>) {
        self.bytes -= held.frame.len() + FRAME_OVERHEAD;
        out.push(held.frame);
    }

    fn must_hold(&self) -> Result<(), PlugError> {
        match self.mode {
            Mode::Holding => Ok(()),
            Mode::Exposed => Err(PlugError::Exposed),
            Mode::Silenced => Err(PlugError::Silenced),
        }
    }
}

#[cfg(test)]
mod tests;
