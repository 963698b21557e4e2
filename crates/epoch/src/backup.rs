//! The backup's side: holds whole epochs, keeps the shell in step, and takes over.
//!
//! One thread listens, acknowledges and decides; the tracer's thread applies. An epoch is acknowledged when it is held in
//! memory, whole and verified; applying it may lag, within a bound. When the primary is gone the listening thread stops
//! acknowledging, for good, by leaving its loop; only then does it ask for the next generation (R2). If the primary hands
//! over instead, it says so with the register that names this one.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Outcome, Refused, Register, Transition};
use outlive_fault::{Point, point};
use outlive_net::{Frame, InnerTap, InputLog, InputLogLimits, Moment, Namespace, Overheard, Port};
use outlive_process::object::tcp_request::{PendingConnection, Restorer};
use outlive_process::shell::Shell;
use outlive_stream::connection::{Reader, Writer};
use outlive_stream::epoch_reader::{Epoch, EpochReader, Received};
use outlive_stream::frame::{FrameReader, FrameWriter};
use outlive_stream::hello::{Stream, VERSIONS};
use tracing::{debug, info, warn};

use crate::control::{Failover, Side, State};
use crate::engine::{Board, Engine, Event};
use crate::error::{Attempt, Error, Result};
use crate::events::Teller;
use crate::link::{Watch, carry_life};
use crate::message::{
    CONTENT, Content, FROM_PRIMARY, Fitness, MOVED, PAGES, PAIRING, PROTECTED, Pairing, RUNNING, VERSION,
    unpack_input,
};
use crate::output::{Log, Pipes};
use crate::protector;
use crate::pulse::{self, Pulse, PulseWatch};
use crate::queue::{self, Receiver, Sender};

/// How long a backup waits for the primary that asked for it.
const PRIMARY_COMES: Duration = Duration::from_secs(20);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What an epoch counts for beside its bytes, so that many small ones are bounded as well.
const EPOCH_OVERHEAD: usize = 64 * 1024;
/// Between two questions to seed nodes that could not agree.
const RETRY: Duration = Duration::from_millis(100);

/// What the listening thread hands to the tracer's thread.
enum Work {
    Epoch(Box<Epoch>),
    /// It is ours: this generation, and how it came about.
    TakeOver {
        register: Box<Register>,
        failover: Failover,
        granted: Instant,
        /// The way back to an old primary that has handed over.
        old: Option<OldPrimary>,
    },
    /// It is not ours, or there is nothing to take.
    Leave(String),
}

/// Bytes of epochs received and not yet applied, bounded.
struct Backpressure {
    bytes: Mutex<usize>,
    less: Condvar,
    limit: usize,
}

impl Backpressure {
    /// Waits, at most this long, until there is room. False if there is none yet.
    fn has_room(&self, wait: Duration) -> bool {
        let bytes = self.bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *bytes < self.limit {
            return true;
        }
        let waited = self.less.wait_timeout(bytes, wait);
        let (bytes, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        *bytes < self.limit
    }

    fn add(&self, more: usize) {
        *self.bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += more;
    }

    fn done(&self, less: usize) {
        *self.bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) -= less;
        self.less.notify_one();
    }
}

/// Everything a takeover needs.
pub struct Prepared {
    pub shell: Shell,
    pub namespace: Namespace,
    pub inner: InnerTap,
    pub port: Port,
    pub pipes: Pipes,
    pub log: Log,
    pub restorer: Option<Restorer>,
    pub retained: Arc<Retained>,
    pub overheard: Arc<Overheard>,
    /// Connections without a descriptor, of the last epoch.
    pub requests: Vec<PendingConnection>,
    pub register: Register,
    pub failover: Failover,
    pub granted: Instant,
    pub epoch: u64,
    pub old: Option<OldPrimary>,
}

impl Prepared {
    /// The node of a primary that has handed over, and can be a backup soon.
    pub fn old_primary(&self) -> Option<String> {
        let holder = self.old.as_ref().and(self.register.synced_backup())?;
        Some(holder.node.as_str().to_owned())
    }
}

/// An old primary that stands still until it hears that it is not needed any more.
pub struct OldPrimary(Arc<Mutex<FrameWriter<Writer>>>);

impl OldPrimary {
    /// The workload runs here. An old primary that is gone needs no news.
    pub fn let_go(&self) {
        let mut writer = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(error) = writer.send(RUNNING, &[]) {
            debug!(%error, "the old primary was not told");
        }
    }
}

/// Copies of frames for the workload: kept until it runs here, then handed on.
pub struct Retained(Mutex<Kept>);

struct Kept {
    log: InputLog,
    onward: Option<Teller<Event>>,
}

impl Retained {
    fn new() -> Self {
        Self(Mutex::new(Kept { log: InputLog::new(InputLogLimits::default()), onward: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn push(&self, message: Vec<u8>) -> Result<(), String> {
        let mut kept = self.lock();
        let Kept { log, onward } = &mut *kept;
        match onward {
            Some(onward) => onward.tell(Event::Forwarded(message)),
            None => {
                unpack_input(&message)
                    .try_for_each(|input| input.map(|(epoch, frame)| log.push(epoch, frame)))?;
            }
        }
        Ok(())
    }

    /// Shows what is kept, without taking it.
    pub fn show(&self, mut look: impl FnMut(&[u8])) {
        self.lock().log.frames().for_each(&mut look);
    }

    /// Takes what is kept, in order. What comes later is told as [`Event::Forwarded`].
    pub fn take(&self, onward: Teller<Event>) -> Vec<Frame> {
        let mut kept = self.lock();
        kept.onward = Some(onward);
        kept.log.drain().collect()
    }
}

/// What a backup makes before its primary connects.
pub struct Waiting {
    pub shell: Shell,
    pub namespace: Namespace,
    pub inner: InnerTap,
    pub port: Port,
    pub overheard: Arc<Overheard>,
    pub pipes: Pipes,
    pub log: Log,
    /// For connections without a descriptor; `None` where the kernel cannot rebuild them.
    pub restorer: Option<Restorer>,
}

/// Holds the state until it is needed. `None` when it never is: with the reason.
pub fn run(
    engine: &mut Engine,
    waiting: Waiting,
    listener: TcpListener,
    primary: &str,
) -> Result<Result<Prepared, String>> {
    let (work, queue) = queue::queue();
    let retained = Arc::new(Retained::new());
    let pressure = Arc::new(Backpressure {
        bytes: Mutex::new(0),
        less: Condvar::new(),
        limit: engine.setup.node.tuning.epoch_limit,
    });
    {
        let mut status = engine.status.lock();
        status.role = Side::Backup;
        status.state = State::Syncing;
        status.primary_node = Some(primary.to_owned());
        status.backup_node = Some(engine.me.node.as_str().to_owned());
    }
    let listening = Listening {
        identity: Arc::clone(&engine.identity),
        arbiter: Arc::clone(&engine.arbiter),
        me: engine.me.clone(),
        name: engine.setup.workload.name.clone(),
        forced: Arc::clone(&engine.forced),
        primary: primary.to_owned(),
        detection: engine.setup.node.tuning.detection,
        epoch_limit: engine.setup.node.tuning.epoch_limit,
        retained: Arc::clone(&retained),
        overheard: Arc::clone(&waiting.overheard),
        pressure: Arc::clone(&pressure),
        pulse: Arc::clone(&engine.pulse),
        status: engine.status.clone(),
        work: work.clone(),
    };
    thread::Builder::new()
        .name("backup listener".into())
        .spawn(move || listening.run(&listener))
        .attempt(|| "start the listening thread".into())?;
    drop(work);
    apply(engine, waiting, &queue, &retained, &pressure)
}

/// The tracer's thread: applies epochs in order until the end.
fn apply(
    engine: &Engine,
    waiting: Waiting,
    queue: &Receiver<Work>,
    retained: &Arc<Retained>,
    pressure: &Backpressure,
) -> Result<Result<Prepared, String>> {
    let Waiting { mut shell, namespace, inner, port, overheard, pipes, mut log, restorer } = waiting;
    let mut last = 0;
    let mut requests = Vec::new();
    let mut ended = None;
    loop {
        // A control request is answered from the board; only a stop needs this thread, and ends the process.
        engine.pulse.rests();
        let Some(work) = queue.receive() else { return Ok(Err("the listening thread ended".into())) };
        match work {
            Work::Epoch(epoch) => {
                engine.pulse.works();
                let size = size_of_epoch(&epoch);
                last = epoch.epoch;
                point(Point::BackupApplying);
                match apply_epoch(&mut shell, &mut log, *epoch)? {
                    Applied::Checkpoint(pending) => {
                        requests = pending;
                        point(Point::BackupApplied);
                    }
                    Applied::Backlog => {}
                    Applied::Ended(status) => ended = Some(status),
                }
                pressure.done(size);
                engine.status.lock().epoch = last;
            }
            Work::TakeOver { register, .. } if ended.is_some() => {
                // The primary died before it could say so.
                let outcome = engine.arbiter.ask(Transition::Stop { generation: register.generation });
                return Ok(Err(format!(
                    "the workload had ended by itself with status {ended:?}: {outcome:?}"
                )));
            }
            Work::TakeOver { register, failover, granted, old } => {
                return Ok(Ok(Prepared {
                    shell,
                    namespace,
                    inner,
                    port,
                    pipes,
                    log,
                    restorer,
                    retained: Arc::clone(retained),
                    overheard,
                    requests,
                    register: *register,
                    failover,
                    granted,
                    epoch: last,
                    old,
                }));
            }
            Work::Leave(reason) => return Ok(Err(reason)),
        }
    }
}

fn size_of_epoch(epoch: &Epoch) -> usize {
    EPOCH_OVERHEAD + epoch.sections.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
}

fn section(epoch: &Epoch, wanted: u8) -> &[u8] {
    epoch.sections.iter().find(|(section, _)| *section == wanted).map_or(&[], |(_, bytes)| bytes)
}

/// What an epoch held.
enum Applied {
    /// With the connections that have no descriptor.
    Checkpoint(Vec<PendingConnection>),
    Backlog,
    Ended(i32),
}

fn apply_epoch(shell: &mut Shell, log: &mut Log, epoch: Epoch) -> Result<Applied> {
    let content: Content = postcard::from_bytes(section(&epoch, CONTENT))
        .map_err(|error| Error::Stream(format!("epoch {} is not understood: {error}", epoch.epoch)))?;
    let pages = section(&epoch, PAGES);
    match content {
        Content::Checkpoint { checkpoint, requests } => {
            log.append(&checkpoint.output).attempt(|| "write the workload's output".into())?;
            shell.apply(*checkpoint, pages)?;
            Ok(Applied::Checkpoint(requests))
        }
        Content::Backlog { whose, runs } => {
            shell.apply_backlog(whose, &runs, pages)?;
            point(Point::HostingPiece);
            Ok(Applied::Backlog)
        }
        Content::Ended { status, output } => {
            log.append(&output).attempt(|| "write the workload's last output".into())?;
            Ok(Applied::Ended(status))
        }
    }
}

struct Listening {
    identity: Arc<outlive_stream::tls::Identity>,
    arbiter: Arc<crate::arbiter::Arbiter>,
    me: outlive_cluster::Holder,
    name: String,
    /// An operator wants it to take over.
    forced: Arc<AtomicBool>,
    primary: String,
    detection: Duration,
    epoch_limit: usize,
    retained: Arc<Retained>,
    overheard: Arc<Overheard>,
    pressure: Arc<Backpressure>,
    pulse: Arc<Pulse>,
    status: Board,
    work: Sender<Work>,
}

impl Listening {
    fn run(self, listener: &TcpListener) {
        let stream = match self.accept(listener) {
            Ok(stream) => stream,
            Err(reason) => return self.leave(reason),
        };
        let Stream { writer, reader, .. } = stream;
        let heard = match self.follow(writer, reader) {
            Ok(moved) => return self.lead(moved),
            Err(heard) => heard,
        };
        // From here on nothing is acknowledged: the halves of the stream are gone.
        outlive_fault::protected(false);
        let decided = Instant::now();
        warn!(reason = heard.reason, "the primary is gone");
        if heard.epochs == 0 {
            return self.leave(format!("the primary left before its first epoch: {}", heard.reason));
        }
        point(Point::TakeoverSilence);
        self.ask(heard.last.elapsed(), decided);
        if let Some(kept) = heard.kept {
            let (_silent, reader) = *kept;
            self.listen_on(reader);
        }
    }

    /// What still reaches a primary that lives, and does not know yet: clients wait for it. Nothing is answered.
    fn listen_on(&self, mut reader: FrameReader<Reader>) {
        let mut frames = EpochReader::new(self.epoch_limit);
        loop {
            match frames.next(&mut reader) {
                Ok(Received::Input(payload)) => {
                    if let Err(reason) = self.retained.push(payload) {
                        return debug!(reason, "nothing more is taken from the old primary");
                    }
                }
                Ok(_) => {}
                Err(error) => return debug!(%error, "nothing more comes from the old primary"),
            }
        }
    }

    fn leave(&self, reason: String) {
        // A tracer that is gone has left already.
        let _ = self.work.send(Work::Leave(reason));
    }

    fn accept(&self, listener: &TcpListener) -> Result<Stream, String> {
        let socket = accept_within(listener, PRIMARY_COMES)?;
        let connection = self.identity.accept(socket, HANDSHAKE).map_err(|error| error.to_string())?;
        let purpose = format!("replicate:{}", self.name);
        let mut stream = Stream::answer(connection, VERSIONS, HANDSHAKE, |peer, wanted| {
            if peer != self.primary {
                return Err(format!("this backup is for {}, not for {peer}", self.primary));
            }
            if wanted != purpose { Err(format!("only {purpose} is served here")) } else { Ok(FROM_PRIMARY) }
        })
        .map_err(|error| error.to_string())?;
        let mine = Pairing { version: VERSION, holder: self.me.clone(), fitness: Fitness::of_this_host() };
        point(Point::HostingAccepted);
        protector::exchange(&mut stream, &mine)?;
        point(Point::HostingPaired);
        Ok(stream)
    }

    /// Receives and acknowledges until the primary falls silent.
    fn follow(
        &self,
        mut writer: FrameWriter<Writer>,
        mut reader: FrameReader<Reader>,
    ) -> Result<Moved, Heard> {
        carry_life();
        let watch = Watch::new(self.detection);
        let mut tracer = PulseWatch::new(Arc::clone(&self.pulse));
        let mut epochs = EpochReader::new(self.epoch_limit);
        let mut heard = Heard { epochs: 0, last: Instant::now(), reason: String::new(), kept: None };
        if let Err(error) = reader.get_mut().set_timeout(Some(self.detection)) {
            heard.reason = error.to_string();
            return Err(heard);
        }
        loop {
            let received = match epochs.next(&mut reader) {
                Ok(received) => received,
                Err(error) if error.is_timeout() && !watch.is_over(heard.last) => continue,
                Err(error) if error.is_timeout() => {
                    heard.reason = format!("no sign of life for {} ms", heard.last.elapsed().as_millis());
                    return Err(heard);
                }
                Err(error) => {
                    heard.reason = error.to_string();
                    return Err(heard);
                }
            };
            heard.last = Instant::now();
            end_if_it_hangs(&mut tracer);
            self.overheard.alive(Moment::now());
            if self.forced.load(Ordering::Acquire) {
                heard.reason = "an operator has ordered a failover".into();
                // A primary that saw its backup leave would ask as well, and might be first.
                heard.kept = Some(Box::new((writer, reader)));
                return Err(heard);
            }
            let answered = match received {
                Received::Epoch(epoch) => self.hold(epoch, &mut heard, &mut writer, &mut tracer),
                Received::Input(payload) => {
                    let kept = self.retained.push(payload);
                    point(Point::BackupInputKept);
                    kept
                }
                Received::Heartbeat(beat) => {
                    point(Point::BackupBeaten);
                    beat.send(&mut writer).map_err(|error| error.to_string())
                }
                Received::Other(frame) if frame.kind == PROTECTED => {
                    watch.closely();
                    outlive_fault::protected(true);
                    self.status.lock().state = State::Protected;
                    point(Point::HostingProtected);
                    Ok(())
                }
                Received::Other(frame) if frame.kind == MOVED => match self.named_by(&frame.payload) {
                    Ok(register) => return Ok(Moved { register, writer, reader, begun: Instant::now() }),
                    Err(reason) => Err(reason),
                },
                Received::Other(frame) if frame.kind == PAIRING => Err("a second introduction".into()),
                _ => Err("the primary sent what a primary does not send".into()),
            };
            if let Err(reason) = answered {
                heard.reason = reason;
                return Err(heard);
            }
        }
    }

    /// Holds a whole epoch and says so.
    fn hold(
        &self,
        epoch: Epoch,
        heard: &mut Heard,
        writer: &mut FrameWriter<Writer>,
        tracer: &mut PulseWatch,
    ) -> Result<(), String> {
        point(Point::BackupReceived);
        let (ack, number, size) = (epoch.ack(), epoch.epoch, size_of_epoch(&epoch));
        // A backup that cannot keep up slows the primary down by acknowledging late; it stays alive meanwhile.
        while !self.pressure.has_room((self.detection / 4).min(PulseWatch::OFTEN)) {
            end_if_it_hangs(tracer);
            let alive = outlive_stream::epoch::Heartbeat { time: 0 };
            alive.send(writer).map_err(|error| error.to_string())?;
        }
        self.pressure.add(size);
        self.retained.lock().log.committed(number);
        self.work.send(Work::Epoch(Box::new(epoch))).map_err(|_| "the shell is gone".to_owned())?;
        heard.epochs += 1;
        point(Point::BackupHeld);
        ack.send(writer).map_err(|error| error.to_string())?;
        point(Point::BackupAcknowledged);
        Ok(())
    }

    fn is_named_by(&self, register: &Register) -> bool {
        register.primary().is_some_and(|holder| holder.incarnation == self.me.incarnation)
    }

    /// The register by which the primary hands over.
    fn named_by(&self, payload: &[u8]) -> Result<Register, String> {
        let register: Register =
            postcard::from_bytes(payload).map_err(|error| format!("not a register: {error}"))?;
        if self.is_named_by(&register) {
            Ok(register)
        } else {
            Err(format!("a register that names another was handed over: {register}"))
        }
    }

    /// The primary has handed over: what still reaches it comes here, and it lives until it hears that we speak.
    fn lead(&self, moved: Moved) {
        let Moved { register, writer, mut reader, begun } = moved;
        info!(generation = register.generation, "taking over, as was ordered");
        outlive_fault::protected(false);
        point(Point::MoveHeard);
        let writer = Arc::new(Mutex::new(writer));
        let old = OldPrimary(Arc::clone(&writer));
        self.take_over(register, Failover::default(), begun, Some(old));
        let mut frames = EpochReader::new(self.epoch_limit);
        loop {
            let carried = match frames.next(&mut reader) {
                Ok(Received::Input(payload)) => self.retained.push(payload),
                Ok(Received::Heartbeat(beat)) => {
                    let mut writer = writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    beat.send(&mut *writer).map_err(|error| error.to_string())
                }
                Ok(_) => Err("it sent what an old primary does not send".into()),
                Err(error) if error.is_timeout() => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = carried {
                return debug!(reason, "nothing more comes from the old primary");
            }
        }
    }

    fn take_over(&self, register: Register, failover: Failover, granted: Instant, old: Option<OldPrimary>) {
        // A tracer that is gone has nothing to take over with.
        let _ = self.work.send(Work::TakeOver { register: Box::new(register), failover, granted, old });
    }

    /// Asks for the next generation until the seed nodes say yes or no.
    fn ask(&self, silent: Duration, decided: Instant) {
        loop {
            match self.arbiter.ask(Transition::BackupTakesOver { by: self.me.incarnation, held: 0 }) {
                Outcome::Granted(register) => {
                    info!(generation = register.generation, "taking over");
                    point(Point::TakeoverGranted);
                    let granted = Instant::now();
                    let failover = Failover {
                        detect_ms: silent.as_secs_f64() * 1000.0,
                        arbitrate_ms: (granted - decided).as_secs_f64() * 1000.0,
                        activate_ms: 0.0,
                    };
                    return self.take_over(register, failover, granted, None);
                }
                // It handed over, and was gone before it could say so.
                Outcome::Refused(Refused { current: Some(register), .. }) if self.is_named_by(&register) => {
                    info!(generation = register.generation, "taking over, as was ordered");
                    let granted = Instant::now();
                    let detect_ms = silent.as_secs_f64() * 1000.0;
                    let arbitrate_ms = (granted - decided).as_secs_f64() * 1000.0;
                    let failover = Failover { detect_ms, arbitrate_ms, activate_ms: 0.0 };
                    return self.take_over(*register, failover, granted, None);
                }
                Outcome::Refused(refused) => return self.leave(format!("not granted: {refused}")),
                outcome => {
                    self.status.lock().state = State::Waiting;
                    warn!(?outcome, "no majority of seed nodes; the state is kept");
                    thread::sleep(RETRY);
                }
            }
        }
    }
}

/// A backup that cannot apply what it holds could not take over. Its primary lives, and finds another when this one is gone.
fn end_if_it_hangs(tracer: &mut PulseWatch) {
    if tracer.hangs(Instant::now()) {
        pulse::end("the tracer hangs, so this backup could not take over: the primary has to find another");
    }
}

/// The primary has handed over.
struct Moved {
    register: Register,
    writer: FrameWriter<Writer>,
    reader: FrameReader<Reader>,
    begun: Instant,
}

struct Heard {
    epochs: u64,
    last: Instant,
    reason: String,
    /// Both halves of the stream, which nobody uses any more: open, so that the primary does not know yet.
    kept: Option<Box<(FrameWriter<Writer>, FrameReader<Reader>)>>,
}

fn accept_within(listener: &TcpListener, limit: Duration) -> Result<std::net::TcpStream, String> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(format!("no primary came within {} s", limit.as_secs())),
        Ok(_) => listener.accept().map(|(socket, _)| socket).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
