//! The primary's end of the stream to one backup: a thread that sends, a thread that listens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::Holder;
use outlive_fault::{Point, point};
use outlive_net::{InputSink, Moment};
use outlive_process::checkpoint::Checkpoint;
use outlive_process::delta::Cache;
use outlive_process::space::PageData;
use outlive_stream::Compression;
use outlive_stream::connection::{ByteSink, Reader};
use outlive_stream::epoch::{Ack, EpochId, Heartbeat, Seal, send_input};
use outlive_stream::epoch_reader::{EpochReader, Received};
use outlive_stream::epoch_writer::EpochWriter;
use outlive_stream::frame::{FrameReader, FrameWriter, Kind};
use outlive_stream::hello::Stream;

use outlive_process::sys::task;
use serde::Serialize;
use tracing::debug;

use crate::message::{CONTENT, Content, MOVED, PAGES, PROTECTED, RUNNING, pack_input, packed_size};
use crate::pulse::PulseWatch;
use crate::queue::{Nothing, Receiver, Sender, queue};
use crate::takeover::TRACER_PRIORITY;

/// So much of a section is sent in one go: about a millisecond's work, and as much on the other side.
const PART: usize = 1 << 20;
/// With so much waiting to be sent the sender is awake, and needs not be told of input or of a sign of life that is wanted.
const QUEUE: usize = 64;
/// Bytes of copies of incoming frames waiting to be sent. Beyond it they are dropped: clients repeat them.
const INPUT_LIMIT: usize = 2 << 20;
/// Copies wait this long for others: a message of its own for each of fifty requests costs more than the requests, and a
/// host that dies meanwhile costs their clients a retransmission, as those do that are still on the wire.
const INPUT_DELAY: Duration = Duration::from_micros(500);
/// Bytes of pages that are remembered to send only what changed in them: many times what a busy server writes in an epoch
/// (some hundred pages), little beside what it holds.
const PAGES_REMEMBERED: usize = 64 << 20;
/// Heartbeats in one detection time: three may be lost or late before the other side worries.
const HEARTBEATS: u32 = 4;
/// A backup sends nothing large.
const ANSWERS: usize = 1 << 20;

/// What the engine is told by the threads of a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The epoch is on its way; what its acknowledgement must say.
    Sent {
        seal: Seal,
        at: Moment,
    },
    Acknowledged(Ack),
    /// The backup has answered what we sent at this moment.
    Alive {
        since: Moment,
    },
    /// The backup has become the primary, and speaks.
    Running,
    Down(String),
}

pub enum Outgoing {
    /// The backup is the synced one now: from here on both sides watch each other closely.
    Protected,
    /// The backup is the primary now, by this register.
    Moved(Vec<u8>),
    /// A heartbeat now: its answer lets go what the kernel alone says.
    Beat,
    Epoch {
        id: EpochId,
        content: Box<Content>,
        pages: PageData,
    },
    /// There are copies of incoming frames now where there were none.
    Input,
}

/// A live link. Dropped, it ends.
pub struct Link {
    pub number: u64,
    pub backup: Holder,
    queue: Sender<Outgoing>,
    input: Arc<Input>,
    closer: outlive_stream::connection::Closer,
    watch: Arc<Watch>,
}

/// How long the other side may be silent. A first copy keeps both hosts busy and nothing depends on how soon its end is
/// noticed; once protected, everything does.
#[derive(Debug)]
pub struct Watch {
    closely: AtomicBool,
    detection: Duration,
}

impl Watch {
    /// Of a side that is not protected or protecting yet.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub fn new(detection: Duration) -> Self {
        Self { closely: AtomicBool::new(false), detection }
    }

    pub fn closely(&self) {
        self.closely.store(true, Ordering::Release);
    }

    /// The limit now.
    pub fn limit(&self) -> Duration {
        if self.closely.load(Ordering::Acquire) { self.detection } else { self.detection.max(Self::PATIENCE) }
    }

    /// Whether a silence since `last` is the end.
    pub fn is_over(&self, last: Instant) -> bool {
        last.elapsed() >= self.limit()
    }
}

/// `SCHED_FIFO` priority of the threads that carry signs of life: a busy host must not look like a dead one. Above the tracers': when many
/// workloads come to one host, or are copied from it, at once, each of its processors may have a tracer with something to do for longer than
/// detection takes. (Side by side with one below, throughput and pauses of Redis are the same.)
pub const CARRIER_PRIORITY: i32 = 3;
const _: () = assert!(CARRIER_PRIORITY > TRACER_PRIORITY);

/// Makes the calling thread one of those. Without the right to it, it runs as any other; `outlive check` says so.
pub fn carry_life() {
    if let Err(error) = task::become_realtime(CARRIER_PRIORITY) {
        debug!(%error, "a thread that carries signs of life is not a real-time thread");
    }
}

impl Link {
    /// `tell` is called on the link's threads with the link's number.
    pub fn start(
        number: u64,
        backup: Holder,
        stream: Stream,
        detection: Duration,
        tracer: PulseWatch,
        tell: Arc<dyn Fn(u64, LinkEvent) + Send + Sync>,
    ) -> std::io::Result<Self> {
        let (queue, outgoing) = queue();
        let Stream { writer, reader, closer, .. } = stream;
        let input = Arc::new(Input { queue: queue.clone(), packed: Mutex::default() });
        let told = Arc::clone(&tell);
        let inputs = Arc::clone(&input);
        let watch = Arc::new(Watch::new(detection));
        let watching = Arc::clone(&watch);
        thread::Builder::new().name("link sender".into()).spawn(move || {
            carry_life();
            let sent =
                send(writer, &outgoing, &inputs, detection / HEARTBEATS, tracer, |event| told(number, event));
            if let Err(reason) = sent {
                told(number, LinkEvent::Down(reason));
            }
        })?;
        thread::Builder::new().name("link listener".into()).spawn(move || {
            carry_life();
            let reason = listen(reader, detection, &watching, |event| tell(number, event));
            tell(number, LinkEvent::Down(reason));
        })?;
        Ok(Self { number, backup, queue, input, closer, watch })
    }

    /// Hands an epoch to the sender. The next is handed over when this one is acknowledged, which bounds the queue.
    pub fn send(&self, id: EpochId, content: Content, pages: PageData) {
        // A sender that is gone has said so by an event.
        let _ = self.queue.send(Outgoing::Epoch { id, content: Box::new(content), pages });
    }

    /// The register names this backup.
    pub fn protected(&self) {
        self.watch.closely();
        let _ = self.queue.send(Outgoing::Protected);
    }

    /// The register names it the primary.
    pub fn moved(&self, register: Vec<u8>) {
        let _ = self.queue.send(Outgoing::Moved(register));
    }

    pub fn beat(&self) {
        // With a full queue signs of life are on their way anyway.
        let _ = self.queue.send_if_below(QUEUE, Outgoing::Beat);
    }

    pub fn input(&self) -> Arc<Input> {
        Arc::clone(&self.input)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closer.shutdown();
    }
}

/// Copies of incoming frames on their way to one backup.
#[derive(Debug)]
pub struct Input {
    queue: Sender<Outgoing>,
    packed: Mutex<Vec<u8>>,
}

impl Input {
    fn push(&self, epoch: u64, frame: &[u8]) {
        let mut packed = self.packed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Only spares the client a retransmission; see `InputLog`.
        if packed.len() + packed_size(frame) > INPUT_LIMIT {
            return;
        }
        let first = packed.is_empty();
        pack_input(&mut packed, epoch, frame);
        drop(packed);
        if first {
            // With a full queue the sender is awake, and takes them with the next epoch.
            let _ = self.queue.send_if_below(QUEUE, Outgoing::Input);
        }
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.packed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// Where copies of incoming frames go: to whichever link there is now.
#[derive(Default)]
pub struct Copies(Mutex<Option<Arc<Input>>>);

impl Copies {
    pub fn set(&self, input: Option<Arc<Input>>) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = input;
    }
}

impl InputSink for Copies {
    fn input(&self, epoch: u64, frame: &[u8]) {
        let input = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(input) = input.as_ref() {
            input.push(epoch, frame);
        }
    }
}

/// Signs of life, of one side.
struct Beats {
    last: Moment,
    every: Duration,
}

impl Beats {
    fn send_if_due<S: ByteSink>(&mut self, frames: &mut FrameWriter<S>) -> Result<(), String> {
        let now = Moment::now();
        if now.since(self.last) >= self.every {
            Heartbeat { time: now.as_nanos() }.send(frames).map_err(|error| error.to_string())?;
            self.last = now;
            point(Point::LinkBeaten);
        }
        Ok(())
    }
}

/// Sections of an epoch that has begun, in parts, with signs of life between them: making and sending them may take longer than a silence
/// may last, and what they tell the other side is only heard at their end.
struct Sections<'a, S> {
    epochs: &'a mut EpochWriter,
    frames: &'a mut FrameWriter<S>,
    beats: &'a mut Beats,
}

impl<'a, S: ByteSink> Sections<'a, S> {
    fn part(&mut self, section: u8, slices: &[&[u8]]) -> Result<(), String> {
        self.epochs.chunk(self.frames, section, slices).map_err(|error| error.to_string())?;
        self.beats.send_if_due(self.frames)
    }

    fn slices(&mut self, section: u8, slices: &[&[u8]]) -> Result<(), String> {
        let mut rest = slices;
        while !rest.is_empty() {
            let mut size = 0;
            let fit = rest.iter().take_while(|slice| {
                let begins_within = size < PART;
                size += slice.len();
                begins_within
            });
            let (part, others) = rest.split_at(fit.count());
            self.part(section, part)?;
            rest = others;
        }
        Ok(())
    }

    /// What is encoded is sent as it comes: files that a workload has written are in it.
    fn encoded(&mut self, section: u8, content: &impl Serialize) -> Result<(), String> {
        let mut failed = None;
        let parts = Parts { sections: self, section, encoded: Vec::new(), failed: &mut failed };
        let encoded = postcard::serialize_with_flavor(content, parts);
        failed.map_or(encoded.map_err(|error| error.to_string()), Err)
    }
}

/// Where a section is encoded to.
struct Parts<'p, 'a, S> {
    sections: &'p mut Sections<'a, S>,
    section: u8,
    encoded: Vec<u8>,
    /// What the encoder has no word for.
    failed: &'p mut Option<String>,
}

impl<S: ByteSink> Parts<'_, '_, S> {
    fn send(&mut self) -> postcard::Result<()> {
        let sent = self.sections.part(self.section, &[&self.encoded]);
        self.encoded.clear();
        sent.map_err(|error| {
            *self.failed = Some(error);
            postcard::Error::SerializeBufferFull
        })
    }
}

impl<S: ByteSink> postcard::ser_flavors::Flavor for Parts<'_, '_, S> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.encoded.push(byte);
        if self.encoded.len() < PART { Ok(()) } else { self.send() }
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        bytes.chunks(PART).try_for_each(|piece| {
            self.encoded.extend_from_slice(piece);
            if self.encoded.len() < PART { Ok(()) } else { self.send() }
        })
    }

    fn finalize(mut self) -> postcard::Result<()> {
        if self.encoded.is_empty() { Ok(()) } else { self.send() }
    }
}

fn send<S: ByteSink>(
    mut frames: FrameWriter<S>,
    queue: &Receiver<Outgoing>,
    input: &Input,
    beat: Duration,
    mut tracer: PulseWatch,
    mut tell: impl FnMut(LinkEvent),
) -> Result<(), String> {
    let mut epochs = EpochWriter::new(Compression::None);
    let mut sent = Cache::new(PAGES_REMEMBERED);
    let mut input_due: Option<Instant> = None;
    let mut input_delay = INPUT_DELAY;
    let beat = beat.min(PulseWatch::OFTEN);
    let mut beats = Beats { last: Moment::now(), every: beat };
    loop {
        if tracer.hangs(Instant::now()) {
            // Silent from here on: the backup can go on with what it has, and this one cannot.
            return Err("the tracer hangs".into());
        }
        beats.send_if_due(&mut frames)?;
        let now = Instant::now();
        if input_due.is_some_and(|due| due <= now) {
            input_due = None;
            let copies = input.take();
            // They may have gone with an epoch.
            if !copies.is_empty() {
                send_input(&mut frames, &[&copies]).map_err(|error| error.to_string())?;
                point(Point::LinkInputCopied);
            }
        }
        let wait = input_due.map_or(beat, |due| due.saturating_duration_since(now).min(beat));
        match queue.receive_within(wait) {
            Ok(Outgoing::Epoch { id, content, pages }) => {
                let at = Moment::now();
                // In one system call with the epoch, if it is small.
                let copies = input.take();
                input_due = None;
                if !copies.is_empty() {
                    frames.queue(Kind::INPUT, &[&copies]).map_err(|error| error.to_string())?;
                }
                let mut beaten = Ok(());
                let between = || {
                    if beaten.is_ok() {
                        beaten = beats.send_if_due(&mut frames);
                    }
                };
                let encoded = match &*content {
                    Content::Checkpoint { checkpoint, .. } => sent.encode(checkpoint, &pages, between),
                    Content::Backlog { whose, runs } => sent.encode_backlog(*whose, runs, &pages),
                    // It has no pages.
                    Content::Ended { .. } => sent.encode(&Checkpoint::default(), &pages, || {}),
                };
                beaten?;
                epochs.begin(&mut frames, id).map_err(|error| error.to_string())?;
                point(Point::LinkBegun);
                let mut sections = Sections { epochs: &mut epochs, frames: &mut frames, beats: &mut beats };
                sections.encoded(CONTENT, &content)?;
                point(Point::LinkHalfSent);
                sections.slices(PAGES, &encoded.slices())?;
                let seal = epochs.commit(&mut frames).map_err(|error| error.to_string())?;
                point(Point::LinkSealed);
                tell(LinkEvent::Sent { seal, at });
            }
            Ok(Outgoing::Input) => {
                input_due.get_or_insert(Instant::now() + input_delay);
            }
            Ok(Outgoing::Beat) => {
                Heartbeat { time: Moment::now().as_nanos() }
                    .send(&mut frames)
                    .map_err(|error| error.to_string())?;
            }
            Ok(Outgoing::Protected) => frames.send(PROTECTED, &[]).map_err(|error| error.to_string())?,
            Ok(Outgoing::Moved(register)) => {
                let copies = input.take();
                if !copies.is_empty() {
                    frames.queue(Kind::INPUT, &[&copies]).map_err(|error| error.to_string())?;
                }
                frames.send(MOVED, &[&register]).map_err(|error| error.to_string())?;
                // What still comes here is waited for by clients, and there is nothing else to carry.
                (input_due, input_delay) = (None, Duration::ZERO);
                point(Point::MoveSaid);
            }
            Err(Nothing::Yet) => {}
            Err(Nothing::Ever) => return Ok(()),
        }
    }
}

/// Returns why it ended.
fn listen(
    mut frames: FrameReader<Reader>,
    detection: Duration,
    watch: &Watch,
    mut tell: impl FnMut(LinkEvent),
) -> String {
    if let Err(error) = frames.get_mut().set_timeout(Some(detection)) {
        return error.to_string();
    }
    let mut epochs = EpochReader::new(ANSWERS);
    let mut last = Instant::now();
    loop {
        let received = epochs.next(&mut frames);
        if received.is_ok() {
            last = Instant::now();
        }
        match received {
            Ok(Received::Ack(ack)) => {
                point(Point::LinkAcknowledged);
                tell(LinkEvent::Acknowledged(ack));
            }
            Ok(Received::Heartbeat(beat)) => tell(LinkEvent::Alive { since: Moment::from_nanos(beat.time) }),
            Ok(Received::Other(frame)) if frame.kind == RUNNING => tell(LinkEvent::Running),
            Ok(_) => return "the backup sent what a backup does not send".into(),
            Err(error) if error.is_timeout() && !watch.is_over(last) => {}
            Err(error) if error.is_timeout() => {
                return format!("no sign of life for {} ms", last.elapsed().as_millis());
            }
            Err(error) => return error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use outlive_stream::frame::End;

    use super::*;

    #[test]
    fn a_large_epoch_is_no_silence() {
        const PAGES_SENT: usize = 4096;
        let page = [7u8; 4096];
        let mut epochs = EpochWriter::new(Compression::None);
        let mut frames = FrameWriter::new(Vec::new(), End::Opening);
        // Every moment is the time for one.
        let mut beats = Beats { last: Moment::now(), every: Duration::ZERO };
        epochs.begin(&mut frames, EpochId { generation: 1, epoch: 1 }).unwrap();
        let content = Content::Ended { status: 7, output: vec![(1, vec![3; PART]); 5] };
        let mut sections = Sections { epochs: &mut epochs, frames: &mut frames, beats: &mut beats };
        sections.encoded(CONTENT, &content).unwrap();
        sections.slices(PAGES, &[&page[..]; PAGES_SENT]).unwrap();
        epochs.commit(&mut frames).unwrap();
        let bytes = frames.get_mut().split_off(0);
        let mut received = FrameReader::new(&bytes[..], End::Opening, crate::message::FROM_PRIMARY);
        let mut reader = EpochReader::new(64 << 20);
        let mut signs = 0;
        let epoch = loop {
            match reader.next(&mut received).unwrap() {
                Received::Heartbeat(_) => signs += 1,
                Received::Epoch(epoch) => break epoch,
                other => panic!("{other:?}"),
            }
        };
        let encoded = postcard::to_stdvec(&content).unwrap();
        assert_eq!(signs, encoded.len().div_ceil(PART) + PAGES_SENT * page.len() / PART);
        assert_eq!(epoch.sections, [(CONTENT, encoded), (PAGES, page.repeat(PAGES_SENT))]);
    }
}
