//! The pump's own thread, and what it shares with those that call the pump.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use outlive_fault::{Point, point};

use super::{Admission, Aside, Device, Event, InputSink, Observer, PumpConfig, Stats};
use crate::frame::{MAX_FRAME, destination_mac, source_mac};
use crate::gate::{Arrival, Gate};
use crate::plug::{BATCH_FRAMES, Batch, Frame, Plug, PlugError, Pressure, Signals};
use crate::sys::thread::run_first;
use crate::{Announcer, InnerTap, Moment, Port, namespace};

/// A device that fails to be read (somebody set it down, or deleted it) is tried again after this long.
const RETRY_DEVICE: Duration = Duration::from_millis(100);

/// While payload is held that the engine knows of, and more of it comes, the workload's device is read this often and not at every
/// frame: a wake-up for each of fifty replies displaces a server that is writing them, and costs more than reading them does. Short
/// against a checkpoint, and long against what a server takes from one reply to the next.
const GATHER: Duration = Duration::from_micros(50);

/// The workload's MAC seen from outside is reported at most this often.
const REPORT_OWN_MAC: Duration = Duration::from_millis(10);

pub(super) struct Shared {
    config: PumpConfig,
    inner: InnerTap,
    port: Port,
    output: Mutex<Output>,
    gate: Mutex<Gate>,
    announcer: Mutex<Announcer>,
    watchers: Watchers,
    wake: EventFd,
    stop: AtomicBool,
    counters: Counters,
    inner_health: Health,
    outer_health: Health,
}

/// Who is told of what passes.
pub(super) struct Watchers {
    pub(super) sink: Arc<dyn InputSink>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) notify: Arc<dyn Fn(Event) + Send + Sync>,
}

/// What is touched under the lock of the output.
pub(super) struct Output {
    pub(super) plug: Plug,
    /// So many frames said are to be told.
    awaited: u64,
    buffer: Box<[u8]>,
    batch: Vec<Frame>,
}

#[derive(Default)]
struct Counters {
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    said_frames: AtomicU64,
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
    foreign_frames: AtomicU64,
    own_mac_frames: AtomicU64,
    stale: AtomicU64,
    refused_frames: AtomicU64,
    dropped_frames: AtomicU64,
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

impl Shared {
    pub(super) fn new(
        inner: InnerTap,
        port: Port,
        config: PumpConfig,
        plug: Plug,
        watchers: Watchers,
    ) -> io::Result<Shared> {
        Ok(Shared {
            output: Mutex::new(Output {
                plug,
                awaited: u64::MAX,
                buffer: vec![0; MAX_FRAME].into(),
                batch: Vec::with_capacity(BATCH_FRAMES),
            }),
            gate: Mutex::new(Gate::new(config.epoch)),
            announcer: Mutex::new(Announcer::new(&config.network)),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            inner_health: Health::default(),
            outer_health: Health::default(),
            config,
            inner,
            port,
            watchers,
        })
    }

    pub(super) fn port(&self) -> &Port {
        &self.port
    }

    pub(super) fn run(&self) {
        if let Some(priority) = self.config.priority {
            // Without the right to it the pump only runs later; `outlive check` names what a node lacks.
            let _ = run_first(priority);
        }
        let mut buffer = vec![0; MAX_FRAME];
        let mut reports = OwnMacReports::default();
        let mut idle_since = None;
        while !self.stop.load(Ordering::Acquire) {
            let taken = self.carry_input(&mut buffer, &mut reports);
            let said = self.carry_output();
            let moved = taken + said;
            self.announce_due();
            self.report_failures();
            if said > 0 && said < BATCH_FRAMES && self.output().plug.holds_payload() {
                idle_since = None;
                self.sleep(Some(GATHER));
                continue;
            }
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
            self.sleep(None);
        }
    }

    /// Sleeps until a device has something that there is room for, or somebody wakes the pump. With a time to gather for, what the
    /// workload says meanwhile does not end it.
    fn sleep(&self, gather: Option<Duration>) {
        let (inner_failed, outer_failed) = (self.inner_health.has_failed(), self.outer_health.has_failed());
        // A device that failed would end every sleep at once, one without room as well: the wake-up, waited for
        // twice, takes its place.
        let wake = self.wake.as_fd();
        let listens = gather.is_none() && !inner_failed;
        let inner = if listens && self.output().plug.has_room() { self.inner.as_fd() } else { wake };
        let outer = if !outer_failed && self.gate().has_room() { self.port.as_fd() } else { wake };
        let mut wanted = [wake, inner, outer].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let announcement = self.announcer().next_at().map(|next| next.since(Moment::now()));
        let retry = (inner_failed || outer_failed).then_some(RETRY_DEVICE);
        let timeout = announcement.into_iter().chain(retry).chain(gather).min().map(TimeSpec::from);
        // EINTR only means to look again. Nothing else can fail with valid descriptors but memory (poll(2)), and
        // then looking again is all there is to do, too.
        let _ = ppoll(&mut wanted, timeout, None);
        if wanted[0].any() == Some(true) {
            // It fails only when nothing was written to it.
            let _ = self.wake.read();
        }
    }

    pub(super) fn wake(&self) {
        // It fails only when its counter is full: then the pump is awake.
        let _ = self.wake.write(1);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn open_input(&self) {
        let mut gate = self.gate();
        if gate.open() {
            let was_full = !gate.has_room();
            let mut aside = Aside::default();
            while let Some(frame) = gate.unqueue() {
                // Its copy has gone to the backup; one that is lost here may reach a successor, as on a network.
                let _ = self.give(&frame, &mut aside);
            }
            drop(gate);
            self.say_aside(&aside);
            // The pump stopped reading the port for want of room.
            if was_full {
                self.wake();
            }
        }
    }

    /// A stopped workload has said at most what its device holds.
    fn take_all_output(&self, output: &mut Output, signals: &mut Signals) {
        for _ in 0..=namespace::QUEUE as usize / BATCH_FRAMES {
            if self.take_output(output, signals) < BATCH_FRAMES {
                break;
            }
        }
    }

    pub(super) fn each_said(&self, each: &mut dyn FnMut(&[u8])) {
        let mut signals = Signals::default();
        {
            let mut output = self.output();
            self.take_all_output(&mut output, &mut signals);
            output.plug.said_since_cut().for_each(each);
        }
        // The checkpoint that payload asks for is being taken.
        self.report(Signals { payload: false, ack: false, ..signals });
    }

    pub(super) fn cut(&self, epoch: u64) -> Result<(), PlugError> {
        let mut signals = Signals::default();
        let cut = {
            let mut output = self.output();
            self.take_all_output(&mut output, &mut signals);
            output.plug.cut(epoch)
        };
        // Payload that was just cut needs no further checkpoint. What the kernel says alone is not in any.
        self.report(Signals { payload: false, ack: false, ..signals });
        cut?;
        self.gate().cut(epoch);
        Ok(())
    }

    pub(super) fn inject(&self, frame: &[u8]) {
        let mut aside = Aside::default();
        {
            // The gate's lock keeps the order against frames that arrive.
            let _gate = self.gate();
            let _ = self.give(frame, &mut aside);
        }
        self.say_aside(&aside);
    }

    pub(super) fn inject_own(&self, frame: &[u8]) {
        let _gate = self.gate();
        self.deliver(frame);
    }

    pub(super) fn send_outer(&self, frame: &[u8]) {
        let signals = self.say(&mut self.output(), frame);
        self.release(signals);
    }

    pub(super) fn stats(&self) -> Stats {
        let (held_frames, held_bytes) = {
            let output = self.output();
            (output.plug.held() as u64, output.plug.held_bytes() as u64)
        };
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sent_frames: read(&counters.sent_frames),
            sent_bytes: read(&counters.sent_bytes),
            held_frames,
            held_bytes,
            said_frames: read(&counters.said_frames),
            received_frames: read(&counters.received_frames),
            received_bytes: read(&counters.received_bytes),
            foreign_frames: read(&counters.foreign_frames),
            own_mac_frames: read(&counters.own_mac_frames),
            stale: read(&counters.stale),
            refused_frames: read(&counters.refused_frames),
            dropped_frames: read(&counters.dropped_frames),
        }
    }

    pub(super) fn tell_when_said(&self, frames: u64) {
        self.output().awaited = frames;
    }

    /// Takes up to a batch of frames from the workload, and lets pass what may.
    fn carry_output(&self) -> usize {
        let mut signals = Signals::default();
        let (taken, release, said_enough) = {
            let mut output = self.output();
            let taken = self.take_output(&mut output, &mut signals);
            let said_enough =
                taken > 0 && self.counters.said_frames.load(Ordering::Relaxed) >= output.awaited;
            if said_enough {
                output.awaited = u64::MAX;
            }
            (taken, taken > 0 && output.plug.is_exposed() && output.plug.held() > 0, said_enough)
        };
        if release {
            self.release(signals);
        } else {
            self.report(signals);
        }
        if said_enough {
            (self.watchers.notify)(Event::SaidEnough);
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
            add(&self.counters.said_frames, 1);
            self.watchers.observer.outgoing(frame);
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
    pub(super) fn release(&self, mut signals: Signals) {
        let mut made_room = false;
        loop {
            let mut output = self.output();
            let Output { plug, batch, .. } = &mut *output;
            let was_full = !plug.has_room();
            let found = plug.next_batch(Moment::now(), batch);
            if found == Batch::Ready && !plug.is_exposed() {
                point(Point::PlugFresh);
            }
            let all = batch.len();
            for (number, frame) in batch.drain(..).enumerate() {
                self.send(&frame);
                if number == 0 && all > 1 && !plug.is_exposed() {
                    point(Point::PlugFirstFrame);
                }
            }
            made_room |= was_full && plug.has_room();
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
        // The pump stopped reading the workload for want of room.
        if made_room {
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
            (self.watchers.notify)(event);
        }
    }

    /// Says the announcement that is due, if any.
    pub(super) fn announce_due(&self) {
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
                (self.watchers.notify)(Event::OwnMacSeen);
            }
            return;
        }
        // A bridge floods what it does not know the place of.
        if destination_mac(frame).is_none_or(|to| to != mac && !to.is_multicast()) {
            add(&self.counters.foreign_frames, 1);
            return;
        }
        let mut aside = Aside::default();
        let mut gate = self.gate();
        match gate.arrive() {
            Arrival::Deliver { epoch } => {
                if self.give(frame, &mut aside) == Admission::Pass {
                    self.watchers.sink.input(epoch, frame);
                }
            }
            Arrival::Queue { epoch } => {
                gate.queue(frame);
                self.watchers.sink.input(epoch, frame);
            }
        }
        drop(gate);
        self.say_aside(&aside);
    }

    /// Shows a frame to the observer and gives it to the workload, unless it is to be lost. With the gate locked.
    fn give(&self, frame: &[u8], aside: &mut Aside) -> Admission {
        let admission = self.watchers.observer.incoming(frame, aside);
        aside.inward.drain(..).for_each(|before| self.deliver(&before));
        match admission {
            Admission::Pass => self.deliver(frame),
            Admission::Drop => add(&self.counters.dropped_frames, 1),
        }
        admission
    }

    /// What an observer wants said, with no lock held.
    fn say_aside(&self, aside: &Aside) {
        aside.outward.iter().for_each(|frame| self.send_outer(frame));
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
                (self.watchers.notify)(Event::DeviceFailed { device, errno });
            }
        }
    }

    pub(super) fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(|poisoned| {
            // Whoever panicked may have left the plug between two states: better silent than wrong (R1).
            let mut output = poisoned.into_inner();
            output.plug.silence();
            output
        })
    }

    pub(super) fn gate(&self) -> MutexGuard<'_, Gate> {
        // The worst a half-done change can do is lose a frame, which its sender repeats.
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn announcer(&self) -> MutexGuard<'_, Announcer> {
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
