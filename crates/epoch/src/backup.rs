//! The backup's side: holds whole epochs, keeps the shell in step, and takes over.
//!
//! One thread listens, acknowledges and decides; the tracer's thread applies. An epoch is acknowledged when it is held in
//! memory, whole and verified; applying it may lag, within a bound. When the primary is gone the listening thread stops
//! acknowledging, for good, by leaving its loop; only then does it ask for the next generation (R2).

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Outcome, Register, Transition};
use outlive_fault::{Point, point};
use outlive_net::{InnerTap, InputLog, InputLogLimits, Namespace, Port};
use outlive_process::object::tcp_request::{PendingConnection, Restorer};
use outlive_process::shell::Shell;
use outlive_stream::connection::{Reader, Writer};
use outlive_stream::epoch_reader::{Epoch, EpochReader, Received};
use outlive_stream::frame::{FrameReader, FrameWriter};
use outlive_stream::hello::{Stream, VERSIONS};
use tracing::{info, warn};

use crate::control::{Failover, Side, State};
use crate::engine::{Board, Engine};
use crate::error::{Attempt, Error, Result};
use crate::link::{Watch, carry_life};
use crate::message::{
    CONTENT, Content, FROM_PRIMARY, Fitness, PAGES, PAIRING, PROTECTED, Pairing, VERSION, unpack_input,
};
use crate::output::{Log, Pipes};
use crate::protector;

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
    pub retained: InputLog,
    /// Connections without a descriptor, of the last epoch.
    pub requests: Vec<PendingConnection>,
    pub register: Register,
    pub failover: Failover,
    pub granted: Instant,
    pub epoch: u64,
}

/// What a backup makes before its primary connects.
pub struct Waiting {
    pub shell: Shell,
    pub namespace: Namespace,
    pub inner: InnerTap,
    pub port: Port,
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
    let (work, queue) = mpsc::channel();
    let retained = Arc::new(Mutex::new(InputLog::new(InputLogLimits::default())));
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
        primary: primary.to_owned(),
        detection: engine.setup.node.tuning.detection,
        epoch_limit: engine.setup.node.tuning.epoch_limit,
        retained: Arc::clone(&retained),
        pressure: Arc::clone(&pressure),
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
    retained: &Mutex<InputLog>,
    pressure: &Backpressure,
) -> Result<Result<Prepared, String>> {
    let Waiting { mut shell, namespace, inner, port, pipes, mut log, restorer } = waiting;
    let mut last = 0;
    let mut requests = Vec::new();
    loop {
        // A control request is answered from the board; only a stop needs this thread, and ends the process.
        let Ok(work) = queue.recv() else { return Ok(Err("the listening thread ended".into())) };
        match work {
            Work::Epoch(epoch) => {
                let size = size_of_epoch(&epoch);
                last = epoch.epoch;
                point(Point::BackupApplying);
                if let Some(pending) = apply_epoch(&mut shell, &mut log, *epoch)? {
                    requests = pending;
                    point(Point::BackupApplied);
                }
                pressure.done(size);
                engine.status.lock().epoch = last;
            }
            Work::TakeOver { register, failover, granted } => {
                let retained =
                    std::mem::take(&mut *retained.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
                return Ok(Ok(Prepared {
                    shell,
                    namespace,
                    inner,
                    port,
                    pipes,
                    log,
                    restorer,
                    retained,
                    requests,
                    register: *register,
                    failover,
                    granted,
                    epoch: last,
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

/// Returns the connections without a descriptor, if the epoch says.
fn apply_epoch(shell: &mut Shell, log: &mut Log, epoch: Epoch) -> Result<Option<Vec<PendingConnection>>> {
    let content: Content = postcard::from_bytes(section(&epoch, CONTENT))
        .map_err(|error| Error::Stream(format!("epoch {} is not understood: {error}", epoch.epoch)))?;
    let pages = section(&epoch, PAGES);
    match content {
        Content::Checkpoint { checkpoint, requests } => {
            log.append(&checkpoint.output).attempt(|| "write the workload's output".into())?;
            shell.apply(*checkpoint, pages)?;
            Ok(Some(requests))
        }
        Content::Backlog { whose, runs } => {
            shell.apply_backlog(whose, &runs, pages)?;
            point(Point::HostingPiece);
            Ok(None)
        }
    }
}

struct Listening {
    identity: Arc<outlive_stream::tls::Identity>,
    arbiter: Arc<crate::arbiter::Arbiter>,
    me: outlive_cluster::Holder,
    name: String,
    primary: String,
    detection: Duration,
    epoch_limit: usize,
    retained: Arc<Mutex<InputLog>>,
    pressure: Arc<Backpressure>,
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
        let heard = self.follow(writer, reader);
        // From here on nothing is acknowledged: the halves of the stream are gone.
        outlive_fault::protected(false);
        let decided = Instant::now();
        warn!(reason = heard.reason, "the primary is gone");
        if heard.epochs == 0 {
            return self.leave(format!("the primary left before its first epoch: {}", heard.reason));
        }
        point(Point::TakeoverSilence);
        self.ask(heard.last.elapsed(), decided);
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
    fn follow(&self, mut writer: FrameWriter<Writer>, mut reader: FrameReader<Reader>) -> Heard {
        carry_life();
        let watch = Watch::new(self.detection);
        let mut epochs = EpochReader::new(self.epoch_limit);
        let mut heard = Heard { epochs: 0, last: Instant::now(), reason: String::new() };
        if let Err(error) = reader.get_mut().set_timeout(Some(self.detection)) {
            heard.reason = error.to_string();
            return heard;
        }
        loop {
            let received = match epochs.next(&mut reader) {
                Ok(received) => received,
                Err(error) if error.is_timeout() && !watch.is_over(heard.last) => continue,
                Err(error) if error.is_timeout() => {
                    heard.reason = format!("no sign of life for {} ms", heard.last.elapsed().as_millis());
                    return heard;
                }
                Err(error) => {
                    heard.reason = error.to_string();
                    return heard;
                }
            };
            heard.last = Instant::now();
            let answered = match received {
                Received::Epoch(epoch) => self.hold(epoch, &mut heard, &mut writer),
                Received::Input(payload) => {
                    let mut retained = self.retained.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    let kept = unpack_input(&payload)
                        .try_for_each(|input| input.map(|(epoch, frame)| retained.push(epoch, frame)));
                    drop(retained);
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
                Received::Other(frame) if frame.kind == PAIRING => Err("a second introduction".into()),
                _ => Err("the primary sent what a primary does not send".into()),
            };
            if let Err(reason) = answered {
                heard.reason = reason;
                return heard;
            }
        }
    }

    /// Holds a whole epoch and says so.
    fn hold(&self, epoch: Epoch, heard: &mut Heard, writer: &mut FrameWriter<Writer>) -> Result<(), String> {
        point(Point::BackupReceived);
        let (ack, number, size) = (epoch.ack(), epoch.epoch, size_of_epoch(&epoch));
        // A backup that cannot keep up slows the primary down by acknowledging late; it stays alive meanwhile.
        while !self.pressure.has_room(self.detection / 4) {
            let alive = outlive_stream::epoch::Heartbeat { time: 0 };
            alive.send(writer).map_err(|error| error.to_string())?;
        }
        self.pressure.add(size);
        self.retained.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).committed(number);
        self.work.send(Work::Epoch(Box::new(epoch))).map_err(|_| "the shell is gone".to_owned())?;
        heard.epochs += 1;
        point(Point::BackupHeld);
        ack.send(writer).map_err(|error| error.to_string())?;
        point(Point::BackupAcknowledged);
        Ok(())
    }

    /// Asks for the next generation until the seed nodes say yes or no.
    fn ask(&self, silent: Duration, decided: Instant) {
        loop {
            match self.arbiter.ask(Transition::BackupTakesOver { by: self.me.incarnation }) {
                Outcome::Granted(register) => {
                    info!(generation = register.generation, "taking over");
                    point(Point::TakeoverGranted);
                    let granted = Instant::now();
                    let failover = Failover {
                        detect_ms: silent.as_secs_f64() * 1000.0,
                        arbitrate_ms: (granted - decided).as_secs_f64() * 1000.0,
                        activate_ms: 0.0,
                    };
                    let _ =
                        self.work.send(Work::TakeOver { register: Box::new(register), failover, granted });
                    return;
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

struct Heard {
    epochs: u64,
    last: Instant,
    reason: String,
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
