//! The primary's side: runs the workload, takes its checkpoints, lets its output go.
//!
//! One epoch reads from top to bottom in [`Primary::checkpoint`]: live round, input closed, everything stopped, capture,
//! cut, resume, send. What follows arrives as events: sent, acknowledged, released. A planned change of primary is in
//! [`moving`].

mod arbitrated;
mod ending;
mod exposed;
mod moving;

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlive_cluster::{Outcome, Register, Transition};
use outlive_fault::{Point, point};
use outlive_net::{InputClosed, Moment, Pump, VNET_HEADER};
use outlive_process::error::Error as ProcessError;
use outlive_process::object::tcp::Framed;
use outlive_process::space::PageData;
use outlive_process::tree::{Change, Errand, Workload};
use outlive_stream::epoch::{Ack, EpochId, Seal};
use tracing::{info, warn};

use crate::control::{self, Side, State};
use crate::engine::{Asked, Engine, Event};
use crate::error::{Attempt, Result};
use crate::link::{Copies, Link, LinkEvent};
use crate::message::Content;
use crate::output::{Log, Pieces, Pipes};
use crate::pace::{Next, Pace};
use crate::protector::{Candidate, Protector};
use crate::pulse::{self, PulseWatch};
use crate::requests::Requests;
use crate::setup::WhenExposed;
use moving::{Handover, Order};

/// How long stopping all threads may take. A thread in the kernel's uninterruptible sleep (a disk, a vfork) is waited
/// for that long, then everything runs on and is tried again.
const STOP_LIMIT: Duration = Duration::from_millis(50);
/// Dirty pages of the last epoch from which a live round is worth its scan: copying a page takes about 1 µs, a scan of a
/// GiB half a millisecond.
const LIVE_ROUND_FROM: usize = 1000;
/// What is there for a moment only (a file of `/proc` that is being read) is waited for this long, this often.
const NOT_NOW: Duration = Duration::from_millis(1);
/// After this many failures to stop, one after the other, the workload goes on exposed.
const STOP_TRIES: u32 = 200;
/// For how long a first capture is tried again in one go, and nothing else is attended to.
const STOP_AT_ONCE: Duration = Duration::from_secs(1);
/// A backup that lives acknowledges late while it has no room for another epoch: until it has applied one, or ends because it takes
/// too long for that. Longer than some 15 s it must not be: what the workload's kernel asks its neighbours is held as well, and without
/// an answer it gives up connections that are being opened.
const ACKNOWLEDGES: Duration = pulse::HANGS;
/// Pages of one piece of the first copy: 4 MiB, a few milliseconds of copying.
const BACKLOG_PIECE: u64 = 1024;
/// Looking for a backup again after there was none.
const RETRY_BACKUP: Duration = Duration::from_secs(1);
/// Asking the seed nodes again after they could not agree.
const RETRY_ARBITRATION: Duration = Duration::from_millis(200);
/// Most events handled before the workload is looked after again.
const EVENTS_AT_ONCE: usize = 256;

/// How a primary ended.
#[derive(Debug)]
pub enum End {
    /// The workload ended by itself, with this `wait` status.
    Exited(i32),
    Stopped,
    /// The new primary speaks, as was ordered.
    Moved(Box<Register>),
    /// Another holds the next generation.
    Deposed(Option<Box<Register>>),
}

/// Where protection stands.
enum Phase {
    /// No backup. `asked` while one is looked for.
    Exposed {
        retry: Instant,
        asked: bool,
    },
    /// The seed nodes are asked whether to speak on without a backup; nothing leaves.
    Losing,
    /// A backup is given everything.
    Syncing {
        link: Link,
        begun: Instant,
    },
    /// It has everything; output is held, the register does not say so yet.
    Joining {
        link: Link,
        begun: Instant,
        asked: bool,
    },
    Protected {
        link: Link,
    },
    /// The backup has everything, and is to be the primary. The workload stands still and nothing leaves.
    Moving {
        link: Link,
        handover: Handover,
    },
}

/// An epoch that is not committed.
struct Outstanding {
    id: EpochId,
    seal: Option<(Seal, Moment)>,
    /// Acknowledged before we knew how it was sealed: threads.
    early: Option<Ack>,
    output: Pieces,
    resumed: Instant,
    /// It holds a checkpoint: when it commits, output may leave.
    checkpoint: bool,
}

pub struct Primary<'a> {
    engine: &'a mut Engine,
    workload: Workload,
    pump: Pump,
    copies: Arc<Copies>,
    requests: Arc<Requests>,
    pipes: Pipes,
    log: Log,
    generation: u64,
    /// Counts epochs of the stream; the plug's cuts are numbered by it.
    epoch: u64,
    phase: Phase,
    outstanding: Option<Outstanding>,
    pace: Pace,
    protector: Protector,
    next_link: u64,
    last_pages: usize,
    /// When the last acknowledged epoch was sent.
    committed_at: Option<Moment>,
    failed_stops: u32,
    not_before: Instant,
    unwritten: Pieces,
    /// Read from the pipes, and in no checkpoint yet.
    drained: Pieces,
    pressed: bool,
    stopping: Option<std::sync::mpsc::Sender<control::Response>>,
    order: Option<Order>,
    /// A move was given up, and the workload goes on when this is dropped.
    resuming: Option<InputClosed>,
    lost_reason: Option<String>,
    /// How it was protected until now. The link stays open until the register says that there is no backup: one that finds it
    /// closed asks for the workload, and may be heard first.
    leaving: Option<Phase>,
    refused: exposed::Refused,
}

/// What a supervisor brings when it becomes a primary.
pub struct Running {
    pub workload: Workload,
    pub pump: Pump,
    pub copies: Arc<Copies>,
    pub requests: Arc<Requests>,
    pub pipes: Pipes,
    pub log: Log,
    pub generation: u64,
    pub epoch: u64,
}

impl<'a> Primary<'a> {
    pub fn new(engine: &'a mut Engine, running: Running, protector: Protector) -> Self {
        let tuning = &engine.setup.node.tuning;
        let now = Instant::now();
        let pace = Pace::new(tuning.max_pause_permille, tuning.longest_epoch, now);
        let Running { workload, pump, copies, requests, pipes, log, generation, epoch } = running;
        Self {
            engine,
            workload,
            pump,
            copies,
            requests,
            pipes,
            log,
            generation,
            epoch,
            phase: Phase::Exposed { retry: now, asked: false },
            outstanding: None,
            pace,
            protector,
            next_link: 1,
            last_pages: 0,
            committed_at: None,
            failed_stops: 0,
            not_before: now,
            unwritten: Vec::new(),
            drained: Vec::new(),
            pressed: false,
            stopping: None,
            order: None,
            resuming: None,
            lost_reason: None,
            leaving: None,
            refused: exposed::Refused::default(),
        }
    }

    /// Until the workload ends, is stopped, or has a successor.
    pub fn run(mut self) -> Result<End> {
        self.publish();
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => {
                    self.pump.silence();
                    self.workload.kill();
                    return Err(error);
                }
            }
        };
        let end = match end {
            End::Exited(status) => self.say_last(status)?,
            other => other,
        };
        // Silence first: nothing may leave that a successor does not include (R2).
        self.pump.silence();
        self.engine.pulse.works();
        self.workload.kill();
        self.engine.pulse.works();
        if matches!(end, End::Exited(_) | End::Stopped) {
            self.entomb();
        }
        self.publish_end(&end);
        if let Some(reply) = self.stopping.take() {
            let _ = reply.send(control::Response::Done);
        }
        Ok(end)
    }

    /// Sleeps until something happens, handles it, and takes a checkpoint if it is time.
    fn turn(&mut self) -> Result<Option<End>> {
        self.engine.pulse.works();
        let limit = self.until_next().min(self.requests.next_tick().unwrap_or(Duration::MAX));
        // What is written is read at the checkpoint. Until then it would end each wait at once.
        let listens = self.reads_output() || !self.pace.knows_of_output();
        {
            let [out, err] = self.pipes.fds();
            let others = [self.engine.events.as_fd(), out, err];
            // A borrow of the queue beside one of the workload: two fields.
            self.workload.wait(limit, if listens { &others } else { &others[..1] })?;
        }
        let happened = self.workload.take_happened();
        if let Some(status) = happened.ended {
            if let Phase::Moving { .. } = self.phase {
                return Ok(Some(self.ended_while_moving(status)));
            }
            return Ok(Some(End::Exited(status)));
        }
        if happened.wants_epoch {
            self.pace.wanted();
        }
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = self.engine.events.next() else { break };
            if let Some(end) = self.handle(event)? {
                return Ok(Some(end));
            }
        }
        self.requests.tick(&self.pump);
        self.requests.reconcile(&self.pump);
        if self.outstanding.as_ref().is_some_and(|outstanding| outstanding.resumed.elapsed() > ACKNOWLEDGES) {
            let seconds = ACKNOWLEDGES.as_secs();
            self.lose_backup(&format!(
                "it has not acknowledged an epoch for {seconds} s, though it gives signs of life"
            ));
        }
        self.collect_output()?;
        self.advance()?;
        Ok(None)
    }

    fn until_next(&mut self) -> Duration {
        const IDLE: Duration = Duration::from_millis(100);
        let now = Instant::now();
        match &self.phase {
            Phase::Exposed { retry, asked: false } if self.order.is_none() => {
                retry.saturating_duration_since(now).min(IDLE)
            }
            Phase::Syncing { .. } if self.outstanding.is_none() => Duration::ZERO,
            Phase::Protected { .. } if self.outstanding.is_none() && self.hands_over() => {
                self.not_before.saturating_duration_since(now)
            }
            Phase::Joining { .. } | Phase::Protected { .. }
                if self.outstanding.is_none() && !self.pressed =>
            {
                if let Some(awaited) = self.pace.awaited(self.said()) {
                    self.pump.tell_when_said(awaited);
                }
                // Asked again: what was awaited may have come between the two.
                let at = match self.pace.next(now, self.said()) {
                    Next::Now => now,
                    Next::At(at) => at,
                };
                at.max(self.not_before).saturating_duration_since(now).min(IDLE)
            }
            _ => IDLE,
        }
    }

    /// A number that grows with what the workload says.
    fn said(&self) -> u64 {
        self.pump.stats().said_frames
    }

    fn handle(&mut self, event: Event) -> Result<Option<End>> {
        match event {
            Event::Pump(event) => self.pump_said(event),
            Event::Link(number, LinkEvent::Running) => return Ok(self.successor_runs(number)),
            Event::Link(number, event) => self.link_said(number, event)?,
            Event::Candidate(found) if self.seeks_another() => self.other_backup(found),
            Event::Candidate(Ok(candidate)) => self.begin_sync(*candidate)?,
            Event::Candidate(Err(reason)) => {
                self.note_exposed(reason);
                if let Phase::Exposed { retry, asked } = &mut self.phase {
                    (*retry, *asked) = (Instant::now() + RETRY_BACKUP, false);
                }
            }
            Event::Arbitrated(asked, outcome) => return self.arbitrated(asked, outcome),
            Event::Forwarded(message) => self.forwarded(&message),
            Event::Control(request, reply) => return Ok(self.control(request, reply)),
        }
        Ok(None)
    }

    fn pump_said(&mut self, event: outlive_net::Event) {
        use outlive_net::Event as Said;
        match event {
            Said::PayloadWaiting => self.pace.payload_waiting(),
            Said::AckWaiting => self.pace.ack_waiting(Instant::now()),
            Said::KernelWaiting => {
                if let Some(link) = self.link() {
                    link.beat();
                }
            }
            // It is awake, and looks again.
            Said::SaidEnough => {}
            // The workload's own sends block when its queue is full; an epoch frees it.
            Said::PressureHigh => self.pace.wanted(),
            Said::PressureLow => {}
            Said::OwnMacSeen => warn!("another host speaks with this workload's MAC address"),
            Said::DeviceFailed { device, errno } => warn!(?device, errno, "a network device fails"),
        }
    }

    fn link(&self) -> Option<&Link> {
        match &self.phase {
            Phase::Syncing { link, .. }
            | Phase::Joining { link, .. }
            | Phase::Protected { link }
            | Phase::Moving { link, .. } => Some(link),
            _ => None,
        }
    }

    fn link_said(&mut self, number: u64, event: LinkEvent) -> Result<()> {
        if self.link().is_none_or(|link| link.number != number) {
            return Ok(());
        }
        match event {
            LinkEvent::Sent { seal, at } => {
                if let Some(outstanding) = &mut self.outstanding
                    && outstanding.id == seal.id
                {
                    outstanding.seal = Some((seal, at));
                    if let Some(ack) = outstanding.early.take() {
                        self.acknowledged(ack)?;
                    }
                }
            }
            LinkEvent::Acknowledged(ack) => self.acknowledged(ack)?,
            LinkEvent::Alive { since } => {
                if matches!(self.phase, Phase::Protected { .. }) {
                    self.pump.heartbeat_ack(since)?;
                }
            }
            LinkEvent::Down(reason) => self.lose_backup(&reason),
            LinkEvent::Running => {}
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<()> {
        let Some(outstanding) = &mut self.outstanding else {
            self.lose_backup("it acknowledged what was not sent");
            return Ok(());
        };
        let Some((seal, at)) = &outstanding.seal else {
            outstanding.early = Some(ack);
            return Ok(());
        };
        if let Err(error) = seal.check(&ack) {
            self.lose_backup(&error.to_string());
            return Ok(());
        }
        let at = *at;
        self.committed_at = Some(at);
        point(Point::PrimaryAcknowledged);
        let Some(done) = self.outstanding.take() else { return Ok(()) };
        if !done.checkpoint {
            return Ok(());
        }
        self.engine.status.figures().commit.push(done.resumed.elapsed().as_micros() as f64);
        match &self.phase {
            Phase::Protected { .. } => {
                let before = self.pump.stats().sent_frames;
                self.pump.acknowledged(done.id.epoch, at)?;
                let stats = self.pump.stats();
                self.pace.committed(stats.said_frames, stats.sent_frames - before);
                point(Point::PrimaryReleased);
                self.log.append(&done.output).attempt(|| "write the workload's output".into())?;
                point(Point::PrimaryLogged);
                self.engine.status.lock().epoch = done.id.epoch;
                if self.is_stopped() {
                    self.ask_to_hand_over()?;
                }
            }
            Phase::Joining { asked: false, link, .. } => {
                let (number, backup) = (link.number, link.backup.clone());
                point(Point::CopyCommitted);
                self.unwritten.extend(done.output);
                let by = self.engine.me.incarnation;
                self.ask(
                    Asked::AddBackup { link: number },
                    Transition::AddBackup { by, generation: self.generation, backup },
                );
                if let Phase::Joining { asked, .. } = &mut self.phase {
                    *asked = true;
                }
            }
            // Committed by a backup that is not yet the synced one: held until the register says that it is.
            _ => self.unwritten.extend(done.output),
        }
        self.publish();
        Ok(())
    }

    /// The backup is gone, or of no use. What is held stays held until the seed nodes have spoken.
    fn lose_backup(&mut self, reason: &str) {
        if matches!(self.phase, Phase::Losing | Phase::Exposed { .. }) {
            return;
        }
        if let Phase::Moving { .. } = self.phase {
            return self.successor_lost(reason);
        }
        self.give_up_move(reason);
        warn!(reason, "the backup is lost");
        let former = self.leave_backup(reason);
        self.leaving = matches!(self.phase, Phase::Losing).then_some(former);
    }

    /// Does without the backup from here on. Returns the phase that ends, with the link in it.
    fn leave_backup(&mut self, reason: &str) -> Phase {
        outlive_fault::protected(false);
        self.lost_reason = Some(reason.to_owned());
        self.copies.set(None);
        self.workload.stop_capturing();
        // Not written: they are part of what happened all the same, if we speak on.
        if let Some(outstanding) = self.outstanding.take() {
            self.unwritten.extend(outstanding.output);
        }
        let was_held = !matches!(self.phase, Phase::Syncing { .. });
        let former = std::mem::replace(&mut self.phase, Phase::Losing);
        if was_held {
            point(Point::PrimaryBackupLost);
            self.ask_alone();
        } else {
            // Never in the register, and nothing was held for it.
            self.become_exposed();
        }
        self.publish();
        former
    }

    fn become_exposed(&mut self) {
        let now = Instant::now();
        let refused = matches!(&self.lost_reason, Some(reason) if reason.contains("cannot be protected"));
        let retry = if refused { now + self.refused.again() } else { now };
        if let Some(reason) = self.lost_reason.take() {
            self.note_exposed(reason);
        }
        if self.engine.setup.workload.when_exposed == WhenExposed::Wait
            && let Err(error) = self.pump.plug()
        {
            warn!(%error, "the output could not be held");
        }
        self.requests.hold(false);
        self.phase = Phase::Exposed { retry, asked: false };
    }

    fn note_exposed(&self, reason: String) {
        self.engine.status.lock().exposed_because = Some(reason);
    }

    /// Whatever the phase asks for now.
    fn advance(&mut self) -> Result<()> {
        let now = Instant::now();
        let free = self.outstanding.is_none();
        let (ordered, last) = (self.order.is_some(), self.hands_over());
        let due = free && now >= self.not_before && self.pace.next(now, self.said()) == Next::Now;
        if self.is_refused(now)? {
            return Ok(());
        }
        match &mut self.phase {
            Phase::Exposed { retry, asked } if !*asked && !ordered && now >= *retry => {
                *asked = true;
                self.protector.find();
            }
            Phase::Syncing { .. } if free => self.sync_piece()?,
            Phase::Protected { .. } if free && last && now >= self.not_before => self.checkpoint()?,
            Phase::Joining { .. } | Phase::Protected { .. } if due => self.checkpoint()?,
            _ => {}
        }
        self.advance_move()
    }

    /// Whether the workload's output is read as it comes: when nobody needs to hold it first.
    fn reads_output(&self) -> bool {
        matches!(self.phase, Phase::Exposed { .. } | Phase::Syncing { .. })
    }

    /// Output of the workload goes to the file at once, or in a checkpoint.
    fn collect_output(&mut self) -> Result<()> {
        let before = self.unwritten.len();
        if !self.reads_output() {
            if !self.pace.knows_of_output()
                && self.pipes.waits().attempt(|| "look for the workload's output".into())?
            {
                self.pace.output_waiting(Instant::now());
            }
        } else {
            self.unwritten.append(&mut self.drained);
            self.pipes.drain(&mut self.unwritten).attempt(|| "read the workload's output".into())?;
            if self.unwritten.len() > before {
                let output = std::mem::take(&mut self.unwritten);
                self.log.append(&output).attempt(|| "write the workload's output".into())?;
            }
        }
        Ok(())
    }

    /// A backup is there: it is told what there is, then given the content of memory, piece by piece.
    fn begin_sync(&mut self, candidate: Candidate) -> Result<()> {
        if !matches!(self.phase, Phase::Exposed { .. }) {
            return Ok(());
        }
        let number = self.next_link;
        self.next_link += 1;
        let teller = self.engine.teller();
        let tell = Arc::new(move |number, event| teller.tell(Event::Link(number, event)));
        let detection = self.engine.setup.node.tuning.detection;
        let backup = candidate.backup.clone();
        let tracer = PulseWatch::new(Arc::clone(&self.engine.pulse));
        let link = Link::start(number, backup, candidate.stream, detection, tracer, tell)
            .attempt(|| "start the threads of a link".into())?;
        info!(backup = link.backup.node.as_str(), "copying to a backup");
        self.phase = Phase::Syncing { link, begun: Instant::now() };
        let mut captured = self.stopped(|workload| workload.capture_whole());
        let begun = Instant::now();
        while begun.elapsed() < STOP_AT_ONCE {
            let again = matches!(captured, Err(ProcessError::NotNow(_)) | Ok(None));
            if !again {
                break;
            }
            self.workload.wait(NOT_NOW, &[])?;
            self.engine.pulse.works();
            captured = self.stopped(|workload| workload.capture_whole());
        }
        match captured {
            Ok(Some(checkpoint)) => {
                // Connections without a descriptor follow in the first checkpoint that output is held for.
                self.requests.accepted(&self.workload.take_arrived());
                point(Point::CopyCaptured);
                let content = Content::Checkpoint { checkpoint: Box::new(checkpoint), requests: Vec::new() };
                self.send(content, PageData::default(), Vec::new(), false);
            }
            Ok(None) => self.lose_backup("the workload could not be stopped"),
            Err(error) => self.cannot_capture(error)?,
        }
        self.publish();
        Ok(())
    }

    fn sync_piece(&mut self) -> Result<()> {
        if let Some((whose, runs, pages)) = self.workload.copy_backlog(BACKLOG_PIECE) {
            self.send(Content::Backlog { whose, runs }, pages, Vec::new(), false);
            point(Point::CopyPiece);
            return Ok(());
        }
        // Everything has been sent once: from the next checkpoint on output is held for this backup.
        let phase = std::mem::replace(&mut self.phase, Phase::Losing);
        if let Phase::Syncing { link, begun } = phase {
            self.copies.set(Some(link.input()));
            self.phase = Phase::Joining { link, begun, asked: false };
            self.requests.hold(true);
            self.pump.plug()?;
            point(Point::CopyPlugged);
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Runs `work` while everything stands still and no input arrives. `None` if it could not be stopped.
    fn stopped<T>(
        &mut self,
        work: impl FnOnce(&mut Workload) -> Result<T, ProcessError>,
    ) -> Result<Option<T>, ProcessError> {
        let closed = self.pump.close_input();
        match self.workload.freeze(STOP_LIMIT) {
            Ok(()) => self.failed_stops = 0,
            Err(ProcessError::NotStopped(_)) => {
                self.failed_stops += 1;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let result = work(&mut self.workload);
        drop(closed);
        self.workload.thaw()?;
        result.map(Some)
    }

    /// One epoch ends and the next begins.
    fn checkpoint(&mut self) -> Result<()> {
        // A round beforehand pays when much is to be copied: it costs a scan of its own.
        if self.last_pages >= LIVE_ROUND_FROM {
            if let Err(error) = self.workload.live_round() {
                return self.cannot_capture(error);
            }
            point(Point::PrimaryLiveRound);
        }
        let begun = Instant::now();
        let epoch = self.epoch + 1;
        let mut output = std::mem::take(&mut self.drained);
        let closed = self.pump.close_input();
        point(Point::PrimaryInputClosed);
        match self.workload.freeze(STOP_LIMIT) {
            Ok(()) => point(Point::PrimaryFrozen),
            Err(ProcessError::NotStopped(_)) => {
                drop(closed);
                self.drained = output;
                self.not_now("the workload could not be stopped for a checkpoint");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.pipes.drain(&mut output).attempt(|| "read the workload's output".into())?;
        let mut framed = Framed::default();
        self.pump.each_said(&mut |frame| framed.note(frame.get(VNET_HEADER..).unwrap_or_default()));
        let captured = self.workload.capture_said(&framed);
        if let Err(ProcessError::NotNow(reason)) = captured {
            drop(closed);
            self.workload.thaw()?;
            self.drained = output;
            self.not_now(&reason.to_string());
            return Ok(());
        }
        point(Point::PrimaryCaptured);
        let cut = self.pump.cut(epoch);
        point(Point::PrimaryCut);
        self.requests.accepted(&self.workload.take_arrived());
        let pending = self.requests.snapshot();
        if let Some(closed) = self.stay_stopped(closed) {
            drop(closed);
            point(Point::PrimaryInputOpen);
            self.workload.thaw()?;
            point(Point::PrimaryThawed);
        }
        let paused = begun.elapsed();
        cut?;
        let (mut checkpoint, pages) = match captured {
            Ok(captured) => captured,
            Err(error) => {
                self.unwritten.extend(output);
                return self.cannot_capture(error);
            }
        };
        if let Some(refused) = pending.refused.first() {
            self.unwritten.extend(output);
            let (tuple, why) = (refused.tuple, refused.why);
            self.lose_backup(&format!("the connection from {tuple} cannot be protected: {why}"));
            return Ok(());
        }
        self.failed_stops = 0;
        self.pace.taken(Instant::now(), paused);
        self.last_pages = pages.len() / 4096;
        {
            let mut figures = self.engine.status.figures();
            figures.pause.push(paused.as_micros() as f64);
            figures.pages.push(self.last_pages as f64);
        }
        checkpoint.output = output.clone();
        let content = Content::Checkpoint { checkpoint: Box::new(checkpoint), requests: pending.connections };
        self.send(content, pages, output, true);
        point(Point::PrimaryQueued);
        Ok(())
    }

    /// No checkpoint now; soon again, but not for ever.
    fn not_now(&mut self, reason: &str) {
        self.failed_stops += 1;
        self.not_before = Instant::now() + NOT_NOW;
        if self.failed_stops >= STOP_TRIES {
            self.failed_stops = 0;
            self.lose_backup(reason);
        }
    }

    fn send(&mut self, content: Content, pages: PageData, output: Pieces, checkpoint: bool) {
        let limit = self.engine.setup.node.tuning.epoch_limit;
        if pages.len() > limit / 2 {
            self.unwritten.extend(output);
            self.lose_backup("an epoch is larger than epoch_limit allows; raise it on both nodes");
            return;
        }
        self.epoch += 1;
        let id = EpochId { generation: self.generation, epoch: self.epoch };
        self.outstanding =
            Some(Outstanding { id, seal: None, early: None, output, resumed: Instant::now(), checkpoint });
        if let Some(link) = self.link() {
            link.send(id, content, pages);
        }
    }

    /// The workload has what cannot be captured: it goes on without a backup, and says why (R3).
    fn cannot_capture(&mut self, error: ProcessError) -> Result<()> {
        match error {
            ProcessError::Ended(_) => Ok(()),
            error => {
                self.lose_backup(&error.to_string());
                Ok(())
            }
        }
    }

    fn control(
        &mut self,
        request: control::Request,
        reply: std::sync::mpsc::Sender<control::Response>,
    ) -> Option<End> {
        let response = match request {
            control::Request::Stop
            | control::Request::Kill { .. }
            | control::Request::Errands { .. }
            | control::Request::Store { .. }
                if self.is_stopped() =>
            {
                control::Response::Failed { reason: "it is being moved at this moment: ask again".into() }
            }
            control::Request::Status => {
                self.publish();
                control::Response::Status(Box::new(self.engine.status.get()))
            }
            control::Request::Kill { signal } => match self.workload.signal(signal) {
                Ok(()) => control::Response::Done,
                Err(error) => control::Response::Failed { reason: error.to_string() },
            },
            control::Request::Errands { pid, errands } => self.run_errands(pid, &errands),
            control::Request::Store { pid, avoided, change } => self.store(pid, &avoided, change.as_ref()),
            control::Request::Switchover { to } => match self.order_move(to) {
                Ok(()) => control::Response::Done,
                Err(reason) => control::Response::Failed { reason },
            },
            control::Request::Failover => {
                control::Response::Failed { reason: "this is the primary: a failover is its backup's".into() }
            }
            control::Request::Stop => {
                self.stopping = Some(reply);
                return Some(End::Stopped);
            }
        };
        // Whoever asked may have left.
        let _ = reply.send(response);
        None
    }

    /// Everything is stopped for it, as for a checkpoint.
    fn run_errands(&mut self, pid: i32, errands: &[Errand]) -> control::Response {
        let begun = Instant::now();
        match self.stopped(|workload| workload.run_errands(pid, errands)) {
            Ok(Some(results)) => {
                let held_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                control::Response::Returned { results, held_us }
            }
            Ok(None) => control::Response::Failed {
                reason: "the workload could not be stopped at this moment: ask again".into(),
            },
            Err(error) => control::Response::Failed { reason: error.to_string() },
        }
    }

    /// A byte for who patches the workload, if no thread is in the way and it is still waited for.
    fn store(&mut self, pid: i32, avoided: &[Range<u64>], change: Option<&Change>) -> control::Response {
        // The tables of the process's modules are read before anything is stopped, and not by this thread.
        let stacks = match (self.engine.look)(pid) {
            Ok(Some(stacks)) => stacks,
            Ok(None) => {
                let in_the_way = vec![(pid, Err("a program whose tables are still being read".to_owned()))];
                return control::Response::Stored { in_the_way, held_us: 0 };
            }
            Err(reason) => return control::Response::Failed { reason },
        };
        let begun = Instant::now();
        let stored =
            self.stopped(|workload| workload.store_unless_in_the_way(pid, stacks.as_ref(), avoided, change));
        let in_the_way = match stored {
            Ok(Some(in_the_way)) => in_the_way,
            Ok(None) => vec![(pid, Err("what does not stop just now".to_owned()))],
            Err(error) => return control::Response::Failed { reason: error.to_string() },
        };
        let held_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        control::Response::Stored { in_the_way, held_us }
    }

    /// The register says that the workload is over; its name can be used again.
    fn entomb(&self) {
        let outcome = self.engine.arbiter.ask(Transition::Stop { generation: self.generation });
        if !matches!(outcome, Outcome::Granted(_)) {
            warn!(?outcome, "the seed nodes could not be told that the workload is over");
        }
    }

    fn publish(&mut self) {
        let stats = self.pump.stats();
        let backup = self.link().map(|link| link.backup.node.as_str().to_owned());
        let state = match &self.phase {
            Phase::Exposed { .. } if self.engine.setup.workload.when_exposed == WhenExposed::Wait => {
                State::Waiting
            }
            Phase::Exposed { .. } => State::Exposed,
            Phase::Losing => State::Waiting,
            Phase::Syncing { .. } | Phase::Joining { .. } => State::Syncing,
            Phase::Protected { .. } => State::Protected,
            Phase::Moving { .. } => self.state_of_handover(),
        };
        let is_committed = matches!(self.phase, Phase::Protected { .. });
        let mut status = self.engine.status.lock();
        // Also what was committed before it was protected, or while it moved: who waits for the next epoch counts from here.
        if is_committed {
            status.epoch = self.epoch - u64::from(self.outstanding.is_some());
        }
        status.role = Side::Primary;
        status.state = state;
        status.generation = self.generation;
        status.primary_node = Some(self.engine.me.node.as_str().to_owned());
        status.backup_node = backup;
        status.lag_epochs = u64::from(self.outstanding.is_some());
        status.moving = self.order.as_ref().map(|order| order.to.clone());
        status.held_frames = stats.held_frames;
        status.held_bytes = stats.held_bytes;
        status.init_pid = self.workload.init() as u32;
    }

    fn publish_end(&self, end: &End) {
        let mut status = self.engine.status.lock();
        status.state = State::Stopped;
        if let End::Deposed(Some(register)) | End::Moved(register) = end {
            status.generation = register.generation;
            status.primary_node = register.primary().map(|holder| holder.node.as_str().to_owned());
        }
    }
}
