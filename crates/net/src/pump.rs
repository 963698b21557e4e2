//! The pump: moves frames between the workload's TAP and the port, through the [`Plug`] and the gate.
//!
//! One thread reads both devices: a frame written into the workload is handled by its kernel before the write
//! returns, so that what the kernel answers by itself (ACKs, echo replies) is there to be read without another wake-up.
//! Frames that a commit frees are written by the thread that brings the commit, for the same reason.
//!
//! A frame is read from the workload only under the lock of the plug. So [`Pump::cut`] and [`Pump::silence`] find no
//! frame on its way between the two, and when they return, what they promise holds.

mod carry;
mod observer;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::plug::{Plug, PlugConfig, PlugError, Signals};
use crate::{InnerTap, Moment, NetworkConfig, Port};
use carry::{Shared, Watchers};
pub use observer::{Admission, Aside, Observer};

/// What the engine is told, on the thread that notices: the pump's own or one that calls the pump. No lock of the
/// pump is held meanwhile. Whoever is told should only note it, as in a channel: frames wait until it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Payload is held, the first since the last cut: a checkpoint is wanted.
    PayloadWaiting,
    /// A pure ACK is held, the first since the last cut: a checkpoint is wanted, without hurry.
    AckWaiting,
    /// Something the kernel says alone is held: an answered heartbeat is wanted.
    KernelWaiting,
    /// As many frames have been said as [`Pump::tell_when_said`] asked for.
    SaidEnough,
    /// Stop the workload; let it run again.
    PressureHigh,
    PressureLow,
    /// A frame came in with the workload's own MAC as its source: another speaks for it.
    OwnMacSeen,
    /// A device cannot be read or written (this errno); reported once until it works again.
    DeviceFailed {
        device: Device,
        errno: i32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The workload's.
    Inner,
    /// The port on the bridge.
    Outer,
}

/// Where a copy of everything that the workload is told goes: the way to the backup.
pub trait InputSink: Send + Sync {
    /// A frame that the workload receives in `epoch`: a checkpoint of that epoch includes it. Called with the input
    /// locked, so that the order is the workload's; it must not block.
    fn input(&self, epoch: u64, frame: &[u8]);
}

/// For a workload without a backup.
impl InputSink for () {
    fn input(&self, _: u64, _: &[u8]) {}
}

/// How the workload speaks when the pump starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// Held for a backup.
    Plugged { generation: u64 },
    /// At once, by the grant of this generation.
    Exposed { generation: u64 },
}

#[derive(Clone, Debug)]
pub struct PumpConfig {
    pub network: NetworkConfig,
    pub plug: PlugConfig,
    pub voice: Voice,
    /// The epoch that runs first.
    pub epoch: u64,
    /// How long to look again before sleeping: a wake-up costs 20 to 40 µs, looking costs a processor.
    pub spin: Duration,
    /// `SCHED_FIFO` priority of the pump's thread, if it is to run before all normal ones.
    pub priority: Option<u8>,
}

/// Low among the real-time ones, so that whatever a node runs first goes first. On a busy machine it takes the 99th
/// percentile of a round trip from milliseconds to tens of microseconds (`examples/latency.rs`).
const DEFAULT_PRIORITY: u8 = 10;

impl PumpConfig {
    pub fn new(network: NetworkConfig, voice: Voice) -> PumpConfig {
        PumpConfig {
            network,
            plug: PlugConfig::default(),
            voice,
            epoch: 1,
            spin: Duration::ZERO,
            priority: Some(DEFAULT_PRIORITY),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    #[error("the pump cannot be started")]
    Start(#[source] io::Error),
}

/// What went through, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames and bytes that left.
    pub sent_frames: u64,
    pub sent_bytes: u64,
    /// Frames and bytes that are held now.
    pub held_frames: u64,
    pub held_bytes: u64,
    /// Frames and bytes that the workload was told.
    pub received_frames: u64,
    pub received_bytes: u64,
    /// Frames that came in for others, or from the workload's own MAC, and were not passed on.
    pub foreign_frames: u64,
    pub own_mac_frames: u64,
    /// Releases put off because the last acknowledgement was too old.
    pub stale: u64,
    /// Frames that the workload has said, whether they are held, have left or were refused.
    pub said_frames: u64,
    /// Frames that a device refused: lost, as on a network.
    pub refused_frames: u64,
    /// Incoming frames that the observer wanted lost.
    pub dropped_frames: u64,
}

/// The pump of one workload. Dropped, it stops and nothing moves any more.
pub struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Keeps the input closed: no frame is being or will be written into the workload until this is dropped, but by
/// [`Pump::inject`]. What arrived meanwhile is then delivered by the dropping thread.
pub struct InputClosed {
    shared: Arc<Shared>,
}

impl Pump {
    /// Starts to move frames. The input is closed until the guard is dropped, so that retained frames can be
    /// injected first.
    pub fn start(
        inner: InnerTap,
        port: Port,
        config: PumpConfig,
        sink: Arc<dyn InputSink>,
        observer: Arc<dyn Observer>,
        notify: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Result<(Pump, InputClosed), PumpError> {
        let plug = match config.voice {
            Voice::Plugged { generation } => Plug::holding(config.plug, generation),
            Voice::Exposed { generation } => Plug::exposed(config.plug, generation),
        };
        let shared = Shared::new(inner, port, config, plug, Watchers { sink, observer, notify })
            .map_err(PumpError::Start)?;
        let shared = Arc::new(shared);
        shared.gate().close();
        let closed = InputClosed { shared: shared.clone() };
        let thread = thread::Builder::new()
            .name("pump".into())
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })
            .map_err(PumpError::Start)?;
        Ok((Pump { shared, thread: Some(thread) }, closed))
    }

    /// Closes the input: when this returns, no frame is being written into the workload.
    pub fn close_input(&self) -> InputClosed {
        self.shared.gate().close();
        InputClosed { shared: self.shared.clone() }
    }

    /// Asks for [`Event::SaidEnough`], once, when the workload has said `frames` since the start. It may have been said already:
    /// [`Pump::stats`] tells. Another number takes the place of this one.
    pub fn tell_when_said(&self, frames: u64) {
        self.shared.tell_when_said(frames);
    }

    /// Shows every frame that the running epoch has said and that is held, with its virtio header, in order; what the
    /// workload's device still holds as well. To be called while the workload is stopped and its input closed.
    pub fn each_said(&self, each: &mut dyn FnMut(&[u8])) {
        self.shared.each_said(each);
    }

    /// Ends `epoch`, with everything that the workload has said so far in it: reads what its device still holds.
    /// To be called while the workload is stopped and its input closed.
    pub fn cut(&self, epoch: u64) -> Result<(), PlugError> {
        self.shared.cut(epoch)
    }

    /// The backup holds everything up to the end of `epoch`, as it answered to a message sent at `at`. What that
    /// frees has left when this returns, unless the acknowledgement is too old.
    pub fn acknowledged(&self, epoch: u64, at: Moment) -> Result<(), PlugError> {
        let signals = self.shared.output().plug.committed(epoch, at)?;
        self.shared.release(signals);
        Ok(())
    }

    /// The backup answered a message sent at `at`. The time of sending, not of reading the answer: an answer that
    /// lay in a socket while this host stalled proves nothing about now.
    pub fn heartbeat_ack(&self, at: Moment) -> Result<(), PlugError> {
        let signals = self.shared.output().plug.acknowledged(at)?;
        self.shared.release(signals);
        Ok(())
    }

    /// Goes on without a backup, as `generation` was granted for. What was held has left when this returns.
    pub fn expose(&self, generation: u64) -> Result<(), PlugError> {
        self.shared.output().plug.go_exposed(generation)?;
        self.shared.release(Signals::default());
        Ok(())
    }

    /// Holds again, for a new backup.
    pub fn plug(&self) -> Result<(), PlugError> {
        self.shared.output().plug.plug()
    }

    /// From when this returns nothing more leaves, ever.
    pub fn silence(&self) {
        self.shared.output().plug.silence();
        self.shared.announcer().stop();
    }

    /// Gives the workload a retained frame, also while the input is closed. The observer sees it as any other.
    pub fn inject(&self, frame: &[u8]) {
        self.shared.inject(frame);
    }

    /// Gives the workload a frame that this host has made itself, which the observer is not shown.
    pub fn inject_own(&self, frame: &[u8]) {
        self.shared.inject_own(frame);
    }

    /// Says something for the workload, under the same rules as what it says itself.
    pub fn send_outer(&self, frame: &[u8]) {
        self.shared.send_outer(frame);
    }

    /// Announces the workload's addresses at this port, now and on the schedule of [`crate::Announcer`], and again
    /// whenever another is heard speaking for them.
    pub fn announce(&self) {
        self.shared.announcer().start(Moment::now());
        self.shared.announce_due();
        self.shared.wake();
    }

    pub fn port(&self) -> &Port {
        self.shared.port()
    }

    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.output().plug.silence();
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by its hook; there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

impl Drop for InputClosed {
    fn drop(&mut self) {
        self.shared.open_input();
    }
}
