//! The pump: moves frames between the workload's TAP and the port, through the [`Plug`] and the gate.
//!
//! One thread reads both devices: a frame written into the workload is handled by its kernel before the write
//! returns, so that what the kernel answers by itself (ACKs, echo replies) is there to be read without another wake-up.
//! Frames that a commit frees are written by the thread that brings the commit, for the same reason.
//!
//! A frame is read from the workload only under the lock of the plug. So [`Pump::cut`] and [`Pump::silence`] find no
//! frame on its way between the two, and when they return, what they promise holds.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use crate::frame::{MAX_FRAME, destination_mac, source_mac};
use crate::gate::{Arrival, Gate};
use crate::plug::{BATCH_FRAMES, Batch, Frame, Plug, PlugConfig, PlugError, Pressure, Signals};
use crate::sys::thread::run_first;
use crate::{Announcer, InnerTap, Moment, NetworkConfig, Port, namespace};

/// A device that fails to be read (somebody set it down, or deleted it) is tried again after this long.
const RETRY_DEVICE: Duration = Duration::from_millis(100);

/// The workload's MAC seen from outside is reported at most this often.
const REPORT_OWN_MAC: Duration = Duration::from_millis(10);

/// What the engine is told. Called on the pump's thread, with no lock held: it may call the pump, and must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Payload is held, the first since the last cut: a checkpoint is wanted.
    PayloadWaiting,
    /// A pure ACK is held, the first since the last cut: a checkpoint is wanted, without hurry.
    AckWaiting,
    /// Something the kernel says alone is held: an answered heartbeat is wanted.
    KernelWaiting,
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

impl PumpConfig {
    pub fn new(network: NetworkConfig, voice: Voice) -> PumpConfig {
        PumpConfig {
            network,
            plug: PlugConfig::default(),
            voice,
            epoch: 1,
            spin: Duration::ZERO,
            priority: None,
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
    /// Frames that a device refused: lost, as on a network.
    pub refused_frames: u64,
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

struct Shared {
    config: PumpConfig,
    inner: InnerTap,
    port: Port,
    output: Mutex<Output>,
    gate: Mutex<Gate>,
    announcer: Mutex<Announcer>,
    sink: Arc<dyn InputSink>,
    notify: Arc<dyn Fn(Event) + Send + Sync>,
    wake: EventFd,
    stop: AtomicBool,
    counters: Counters,
    inner_health: Health,
    outer_health: Health,
}

/// What is touched under the lock of the output.
struct Output {
    plug: Plug,
    buffer: Box<[u8]>,
    batch: Vec<Frame>,
}

#[derive(Default)]
struct Counters {
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
    foreign_frames: AtomicU64,
    own_mac_frames: AtomicU64,
    stale: AtomicU64,
    refused_frames: AtomicU64,
}

/// Whether a device works: the errno of its failure or 0, and whether that was reported.
#[derive(Default)]
struct Health {
    errno: AtomicI32,
    reported: AtomicBool,
}

impl Health {
    fn works(&self) {
        if self.has_failed() {
            self.errno.store(0, Ordering::Relaxed);
            self.reported.store(false, Ordering::Relaxed);
        }
    }

    fn failed(&self, error: &io::Error) {
        self.errno.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
    }

    fn has_failed(&self) -> bool {
        self.errno.load(Ordering::Relaxed) != 0
    }

    /// The errno of a failure that was not reported yet.
    fn news(&self) -> Option<i32> {
        (self.has_failed() && !self.reported.swap(true, Ordering::Relaxed))
            .then(|| self.errno.load(Ordering::Relaxed))
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Pump {
    /// Starts to move frames. The input is closed until the guard is dropped, so that retained frames can be
    /// injected first.
    pub fn start(
        inner: InnerTap,
        port: Port,
        config: PumpConfig,
        sink: Arc<dyn InputSink>,
        notify: Arc<dyn Fn(Event) + Send + Sync>,
    ) -> Result<(Pump, InputClosed), PumpError> {
        let plug = match config.voice {
            Voice::Plugged { generation } => Plug::holding(config.plug, generation),
            Voice::Exposed { generation } => Plug::exposed(config.plug, generation),
        };
        let output =
            Output { plug, buffer: vec![0; MAX_FRAME].into(), batch: Vec::with_capacity(BATCH_FRAMES) };
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| PumpError::Start(errno.into()))?;
        let shared = Arc::new(Shared {
            announcer: Mutex::new(Announcer::new(&config.network)),
            gate: Mutex::new(Gate::new(config.epoch)),
            config,
            inner,
            port,
            output: Mutex::new(output),
            sink,
            notify,
            wake,
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            inner_health: Health::default(),
            outer_health: Health::default(),
        });
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

    /// Ends `epoch`, with everything that the workload has said so far in it: reads what its device still holds.
    /// To be called while the workload is stopped and its input closed.
    pub fn cut(&self, epoch: u64) -> Result<(), PlugError> {
        let mut signals = Signals::default();
        let cut = {
            let mut output = self.shared.output();
            // A stopped workload has said at most what its device holds.
            for _ in 0..=namespace::QUEUE as usize / BATCH_FRAMES {
                if self.shared.take_output(&mut output, &mut signals) < BATCH_FRAMES {
                    break;
                }
            }
            output.plug.cut(epoch)
        };
        // Payload that was just cut needs no further checkpoint, only pressure is news.
        self.shared.report(Signals { pressure: signals.pressure, ..Signals::default() });
        cut?;
        self.shared.gate().cut(epoch);
        Ok(())
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

    /// Gives the workload a retained frame, also while the input is closed.
    pub fn inject(&self, frame: &[u8]) {
        // The gate's lock keeps the order against frames that arrive.
        let _gate = self.shared.gate();
        self.shared.deliver(frame);
    }

    /// Says something for the workload, under the same rules as what it says itself.
    pub fn send_outer(&self, frame: &[u8]) {
        let signals = self.shared.say(&mut self.shared.output(), frame);
        self.shared.release(signals);
    }

    /// Announces the workload's addresses at this port, now and on the schedule of [`Announcer`], and again
    /// whenever another is heard speaking for them.
    pub fn announce(&self) {
        self.shared.announcer().start(Moment::now());
        self.shared.announce_due();
        self.shared.wake();
    }

    pub fn port(&self) -> &Port {
        &self.shared.port
    }

    pub fn stats(&self) -> Stats {
        let (held_frames, held_bytes) = {
            let output = self.shared.output();
            (output.plug.held() as u64, output.plug.held_bytes() as u64)
        };
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sent_frames: read(&counters.sent_frames),
            sent_bytes: read(&counters.sent_bytes),
            held_frames,
            held_bytes,
            received_frames: read(&counters.received_frames),
            received_bytes: read(&counters.received_bytes),
            foreign_frames: read(&counters.foreign_frames),
            own_mac_frames: read(&counters.own_mac_frames),
            stale: read(&counters.stale),
            refused_frames: read(&counters.refused_frames),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.output().plug.silence();
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by its hook; there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

impl Drop for InputClosed {
    fn drop(&mut self) {
        let mut gate = self.shared.gate();
        if gate.open() {
            while let Some(frame) = gate.unqueue() {
                self.shared.deliver(&frame);
            }
            drop(gate);
            // The pump may have stopped reading the port for want of room.
            self.shared.wake();
        }
    }
}

impl Shared {
    fn run(&self) {
        if let Some(priority) = self.config.priority {
            // Without the right to it the pump only runs later; `outlive check` names what a node lacks.
            let _ = run_first(priority);
        }
        let mut buffer = vec![0; MAX_FRAME];
        let mut reports = OwnMacReports::default();
        let mut idle_since = None;
        while !self.stop.load(Ordering::Acquire) {
            let moved = self.carry_input(&mut buffer, &mut reports) + self.carry_output();
            self.announce_due();
            self.report_failures();
            if moved > 0 {
                idle_since = None;
                continue;
            }
            if !self.config.spin.is_zero() {
                let now = Moment::now();
                if now.since(*idle_since.get_or_insert(now)) < self.config.spin {
                    thread::yield_now();
                    continue;
                }
                idle_since = None;
            }
            self.sleep();
        }
    }

    /// Sleeps until a device has something that there is room for, or somebody wakes the pump.
    fn sleep(&self) {
        let (inner_failed, outer_failed) = (self.inner_health.has_failed(), self.outer_health.has_failed());
        // A device that failed would end every sleep at once, one without room as well: the wake-up, waited for
        // twice, takes its place.
        let wake = self.wake.as_fd();
        let inner = if !inner_failed && self.output().plug.has_room() { self.inner.as_fd() } else { wake };
        let outer = if !outer_failed && self.gate().has_room() { self.port.as_fd() } else { wake };
        let mut wanted = [wake, inner, outer].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let announcement = self.announcer().next_at().map(|next| next.since(Moment::now()));
        let retry = (inner_failed || outer_failed).then_some(RETRY_DEVICE);
        let timeout = announcement.into_iter().chain(retry).min().map(TimeSpec::from);
        // EINTR only means to look again. Nothing else can fail with valid descriptors but memory (poll(2)), and
        // then looking again is all there is to do, too.
        let _ = ppoll(&mut wanted, timeout, None);
        if wanted[0].any() == Some(true) {
            // It fails only when nothing was written to it.
            let _ = self.wake.read();
        }
    }

    fn wake(&self) {
        // It fails only when its counter is full: then the pump is awake.
        let _ = self.wake.write(1);
    }

    /// Takes up to a batch of frames from the workload, and lets pass what may.
    fn carry_output(&self) -> usize {
        let mut signals = Signals::default();
        let (taken, release) = {
            let mut output = self.output();
            let taken = self.take_output(&mut output, &mut signals);
            (taken, taken > 0 && output.plug.is_exposed() && output.plug.held() > 0)
        };
        if release {
            self.release(signals);
        } else {
            self.report(signals);
        }
        taken
    }

    /// Reads up to a batch of frames from the workload into the plug, or past it where nothing is held.
    fn take_output(&self, output: &mut Output, signals: &mut Signals) -> usize {
        for taken in 0..BATCH_FRAMES {
            if !output.plug.has_room() {
                return taken;
            }
            let length = match self.inner.try_receive(&mut output.buffer) {
                Ok(Some(length)) => {
                    self.inner_health.works();
                    length
                }
                Ok(None) => return taken,
                Err(error) => {
                    self.inner_health.failed(&error);
                    return taken;
                }
            };
            let Output { plug, buffer, .. } = output;
            let frame = &buffer[..length];
            if plug.passes() {
                self.send(frame);
            } else {
                signals.merge(plug.hold(frame, Moment::now()));
            }
        }
        BATCH_FRAMES
    }

    fn say(&self, output: &mut Output, frame: &[u8]) -> Signals {
        if output.plug.passes() {
            self.send(frame);
            return Signals::default();
        }
        output.plug.hold(frame, Moment::now())
    }

    /// Sends what may leave, batch by batch, each after a look at the clock (R2); then reports.
    fn release(&self, mut signals: Signals) {
        loop {
            let mut output = self.output();
            let Output { plug, batch, .. } = &mut *output;
            let found = plug.next_batch(Moment::now(), batch);
            for frame in batch.drain(..) {
                self.send(&frame);
            }
            signals.pressure = plug.pressure_change().or(signals.pressure);
            drop(output);
            match found {
                Batch::Ready => {}
                Batch::Stale => {
                    add(&self.counters.stale, 1);
                    break;
                }
                Batch::Empty => break,
            }
        }
        self.report(signals);
        // The pump may have stopped reading the workload for want of room.
        if signals.pressure == Some(Pressure::Low) {
            self.wake();
        }
    }

    fn report(&self, signals: Signals) {
        let events = [
            signals.payload.then_some(Event::PayloadWaiting),
            signals.ack.then_some(Event::AckWaiting),
            signals.kernel.then_some(Event::KernelWaiting),
            signals.pressure.map(|pressure| match pressure {
                Pressure::High => Event::PressureHigh,
                Pressure::Low => Event::PressureLow,
            }),
        ];
        for event in events.into_iter().flatten() {
            (self.notify)(event);
        }
    }

    fn announce_due(&self) {
        let now = Moment::now();
        let mut announcer = self.announcer();
        if announcer.next_at().is_none_or(|next| now < next) {
            return;
        }
        let mut signals = Signals::default();
        for frame in announcer.due(now) {
            signals.merge(self.say(&mut self.output(), frame));
        }
        drop(announcer);
        self.release(signals);
    }

    /// Takes up to a batch of frames from the port, and gives them to the workload and the backup.
    fn carry_input(&self, buffer: &mut [u8], reports: &mut OwnMacReports) -> usize {
        for taken in 0..BATCH_FRAMES {
            // Only this thread adds to the queue, so that the room stays until the frame is in.
            if !self.gate().has_room() {
                return taken;
            }
            match self.port.try_receive(buffer) {
                Ok(Some(length)) => {
                    self.outer_health.works();
                    self.arrived(&buffer[..length], reports);
                }
                Ok(None) => return taken,
                Err(error) => {
                    self.outer_health.failed(&error);
                    return taken;
                }
            }
        }
        BATCH_FRAMES
    }

    fn arrived(&self, frame: &[u8], reports: &mut OwnMacReports) {
        let mac = self.config.network.mac;
        if source_mac(frame) == Some(mac) {
            add(&self.counters.own_mac_frames, 1);
            let now = Moment::now();
            self.announcer().own_mac_seen(now);
            if reports.due(now) {
                (self.notify)(Event::OwnMacSeen);
            }
            return;
        }
        // A bridge floods what it does not know the place of.
        if destination_mac(frame).is_none_or(|to| to != mac && !to.is_multicast()) {
            add(&self.counters.foreign_frames, 1);
            return;
        }
        let mut gate = self.gate();
        match gate.arrive() {
            Arrival::Deliver { epoch } => {
                self.deliver(frame);
                self.sink.input(epoch, frame);
            }
            Arrival::Queue { epoch } => {
                gate.queue(frame);
                self.sink.input(epoch, frame);
            }
        }
    }

    /// Writes a frame into the workload. With the gate locked, so that closing it waits for this.
    fn deliver(&self, frame: &[u8]) {
        match self.inner.send(frame) {
            Ok(()) => {
                self.inner_health.works();
                add(&self.counters.received_frames, 1);
                add(&self.counters.received_bytes, frame.len() as u64);
            }
            Err(error) => self.refused(&self.inner_health, &error),
        }
    }

    /// Writes a frame to the network. With the output locked, so that order and silence hold.
    fn send(&self, frame: &[u8]) {
        match self.port.send(frame) {
            Ok(()) => {
                self.outer_health.works();
                add(&self.counters.sent_frames, 1);
                add(&self.counters.sent_bytes, frame.len() as u64);
            }
            Err(error) => self.refused(&self.outer_health, &error),
        }
    }

    fn refused(&self, health: &Health, error: &io::Error) {
        add(&self.counters.refused_frames, 1);
        // A device that is down refuses with EIO, one that is gone with EBADFD (drivers/net/tun.c). Anything else is
        // about this one frame.
        if matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD)) {
            health.failed(error);
        }
    }

    fn report_failures(&self) {
        for (device, health) in [(Device::Inner, &self.inner_health), (Device::Outer, &self.outer_health)] {
            if let Some(errno) = health.news() {
                (self.notify)(Event::DeviceFailed { device, errno });
            }
        }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(|poisoned| {
            // Whoever panicked may have left the plug between two states: better silent than wrong (R1).
            let mut output = poisoned.into_inner();
            output.plug.silence();
            output
        })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // The worst a half-done change can do is lose a frame, which its sender repeats.
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn announcer(&self) -> MutexGuard<'_, Announcer> {
        // As above.
        self.announcer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Keeps the reports of the own MAC from flooding the engine.
#[derive(Default)]
struct OwnMacReports {
    last: Option<Moment>,
}

impl OwnMacReports {
    fn due(&mut self, now: Moment) -> bool {
        let due = self.last.is_none_or(|last| now.since(last) >= REPORT_OWN_MAC);
        if due {
            self.last = Some(now);
        }
        due
    }
}
