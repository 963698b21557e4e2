//! The life of one supervisor: a primary from the start, or a backup that may become one.
//!
//! Two kinds of threads. The *tracer* is the only one that may touch the workload's tasks; it enters the workload's network
//! namespace and runs everything of [`crate::primary`] and the applying half of [`crate::backup`]. What needs the host's
//! network (the protector, the connections to seed nodes, control) is started before that; links and pump are started by the
//! tracer, and use sockets and devices that were made elsewhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use outlive_cluster::{Outcome, Transition};
use outlive_net::{InnerTap, Namespace, Overheard, Port, Pump, Voice};
use outlive_process::shell::Shell;
use outlive_process::sys::task;
use outlive_process::tree::{Look, Workload};
use tracing::{error, info, warn};

use crate::backup::{self, Waiting};
use crate::control::{self, State};
use crate::engine::{Engine, Event};
use crate::error::{Attempt, Error, Result};
use crate::events::Teller;
use crate::link::Copies;
use crate::output::{Log, Pipes};
use crate::primary::{End, Primary, Running};
use crate::protector::Protector;
use crate::pulse::{self, PulseWatch, TRACER};
use crate::requests::{self, Requests};
use crate::setup::{Lost, Role, Setup, Started};
use crate::takeover::{self, TRACER_PRIORITY};

/// How long whoever asks over the control socket may take to do so.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the watchdog of a supervisor that hangs asks whether another node has the workload.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often the seed nodes are asked for a new workload. An attempt is given up after two seconds (`outlive_cluster::Limits`), which
/// seed nodes with far too much to do may need for an answer; the agent waits for fifteen.
const ATTEMPTS: u32 = 3;
/// Rest after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Longest line of a control request: one to store a byte has some 40 for each function to be avoided.
const CONTROL_LINE: u64 = 1 << 20;

/// Runs a supervisor to its end. What it has to say at the start is printed on standard output as one line of JSON.
/// `look` says where stopped threads are.
pub fn run(setup: Setup, look: Look) -> ExitCode {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    // Every thread inherits it: a stopped tracee is announced by SIGCHLD, which only the tracer reads.
    let blocked = mask.thread_block();
    // Children of the launcher become ours, so that no zombie is left when the workload ends.
    let subreaper = nix::sys::prctl::set_child_subreaper(true);
    if let Err(errno) = blocked.and(subreaper) {
        return failed(&format!("cannot set up the supervisor: {errno}"));
    }
    match start(setup, look) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = with_causes(&error);
            error!(reason, "the supervisor ends");
            failed(&reason)
        }
    }
}

/// Sources say what their error does not; transparent ones say the same twice.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn failed(reason: &str) -> ExitCode {
    announce(&Started::Failed { reason: reason.to_owned() });
    ExitCode::FAILURE
}

/// Printed once; later ones go nowhere, since whoever started us has stopped reading.
fn announce(started: &Started) {
    if let Ok(line) = serde_json::to_string(started) {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn start(setup: Setup, look: Look) -> Result<()> {
    let directory = setup.directory();
    std::fs::create_dir_all(&directory).attempt(|| format!("make {}", directory.display()))?;
    let role = setup.role.clone();
    let mut engine = Engine::new(setup, look)?;
    serve_control(&engine)?;
    let protector = {
        let teller = engine.teller();
        Protector::start(&engine.setup, &engine.identity, engine.me.clone(), move |found| {
            teller.tell(Event::Candidate(found.map(Box::new)));
        })
        .attempt(|| "start the protector".into())?
    };
    let listener = match &role {
        Role::Primary | Role::Restart(_) => None,
        Role::Backup { .. } => {
            let address = SocketAddr::new(engine.setup.node.listen.ip(), 0);
            Some(TcpListener::bind(address).attempt(|| format!("listen on {address}"))?)
        }
    };
    let socket = engine.setup.control_socket();
    let tracer = std::thread::Builder::new().name(TRACER.into()).spawn(move || {
        if let Err(error) = task::become_realtime(TRACER_PRIORITY) {
            warn!(%error, "the tracer is not a real-time thread: pauses will be longer");
        }
        let result = match role {
            Role::Primary => {
                let by = engine.me.clone();
                be_primary(&mut engine, protector, Transition::Create { by })
            }
            Role::Restart(Lost { generation, primary: lost, backup: lost_backup }) => {
                let by = engine.me.clone();
                let lost_backups = lost_backup.into_iter().collect();
                let again = Transition::RestartLost { by, generation, lost, lost_backups };
                be_primary(&mut engine, protector, again)
            }
            Role::Backup { primary } => be_backup(&mut engine, protector, listener, &primary),
        };
        engine.status.lock().state = State::Stopped;
        result
    });
    let result = tracer
        .attempt(|| "start the tracer".into())?
        .join()
        .unwrap_or_else(|panic| Err(Error::Stream(format!("the tracer panicked: {}", said_by(&*panic)))));
    // Whoever finds the socket gone knows that there is no supervisor.
    let _ = std::fs::remove_file(socket);
    result
}

/// What a panic said. The log has where; whoever is told of the supervisor's death is told its last line only.
fn said_by(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

fn make_network(engine: &Engine) -> Result<(Namespace, InnerTap, Port)> {
    let network = &engine.setup.workload.network;
    let (namespace, inner) = Namespace::create(network)?;
    let port = Port::create(&engine.setup.node.uplink, network.mtu)?;
    Ok((namespace, inner, port))
}

fn be_primary(engine: &mut Engine, protector: Protector, begins: Transition) -> Result<()> {
    let (namespace, inner, port) = make_network(engine)?;
    let mut outcome = engine.arbiter.ask(begins.clone());
    for _ in 1..ATTEMPTS {
        // Nothing was changed, or it is the same change that is asked for once more.
        if !matches!(outcome, Outcome::NoMajority(_) | Outcome::Unknown(_)) {
            break;
        }
        outcome = engine.arbiter.ask(begins.clone());
    }
    let register = match outcome {
        Outcome::Granted(register) => register,
        Outcome::Refused(refused) => return Err(Error::Arbitration(refused.to_string())),
        Outcome::NoMajority(why) | Outcome::Unknown(why) => return Err(Error::Arbitration(why.to_string())),
        Outcome::Read(_) => {
            return Err(Error::Arbitration("the seed nodes answered another question".into()));
        }
    };
    let generation = register.generation;
    let started = begin(engine, &namespace, inner, port, generation);
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            // Nothing is left behind: the name can be used again.
            engine.arbiter.ask(Transition::Stop { generation });
            return Err(error);
        }
    };
    info!(generation, "the workload runs");
    announce(&Started::Ready { listen: None });
    serve(engine, running, protector)
}

fn begin(
    engine: &Engine,
    namespace: &Namespace,
    inner: InnerTap,
    port: Port,
    generation: u64,
) -> Result<Running> {
    let setup = &engine.setup;
    let log = Log::open(&engine.directory(), setup.node.tuning.log_limit)?;
    let (pipes, ends) = Pipes::new()?;
    let workload = Workload::launch(&setup.workload.program, namespace.fd(), &engine.launcher, ends)?;
    port.attach(engine.setup.workload.network.mac)?;
    let copies = Arc::new(Copies::default());
    let requests = Arc::new(Requests::default());
    let teller = engine.teller();
    let notify = Arc::new(move |event| teller.tell(Event::Pump(event)));
    let config = takeover::pump_config(engine, setup.workload.network.clone(), Voice::Exposed { generation });
    let (pump, closed) = Pump::start(inner, port, config, copies.clone(), requests.clone(), notify)?;
    pump.announce();
    drop(closed);
    Ok(Running { workload, pump, copies, requests, pipes, log, generation, epoch: 0 })
}

fn be_backup(
    engine: &mut Engine,
    protector: Protector,
    listener: Option<TcpListener>,
    primary: &str,
) -> Result<()> {
    let listener = listener.ok_or_else(|| Error::Stream("a backup needs an address to listen on".into()))?;
    let listen = listener.local_addr().attempt(|| "read the listening address".into())?;
    let (namespace, inner, port) = make_network(engine)?;
    let (mac, keep) = (engine.setup.workload.network.mac, engine.setup.node.tuning.detection);
    let overheard = Arc::new(
        Overheard::start(mac, &engine.setup.node.uplink, keep)
            .attempt(|| "listen for the workload's frames".into())?,
    );
    let log = Log::open(&engine.directory(), engine.setup.node.tuning.log_limit)?;
    let (pipes, ends) = Pipes::new()?;
    let shell = Shell::create(&engine.setup.workload.program, namespace.fd(), &engine.launcher, ends)?;
    engine.status.lock().init_pid = shell.init() as u32;
    let restorer = requests::prepare();
    // Connections to the seed nodes are made now, so that a failover pays no handshake.
    let outcome = engine.arbiter.read();
    may_follow(&outcome)?;
    info!(?outcome, "waiting for the primary");
    announce(&Started::Ready { listen: Some(listen) });
    let waiting = Waiting { shell, namespace, inner, port, overheard, pipes, log, restorer };
    match backup::run(engine, waiting, listener, primary)? {
        Ok(prepared) => {
            if let Some(old) = prepared.old_primary() {
                protector.prefer(old);
            }
            let running = takeover::run(engine, prepared)?;
            serve(engine, running, protector)
        }
        Err(reason) => {
            info!(reason, "this backup is not needed");
            Ok(())
        }
    }
}

/// A backup that hears no majority of seed nodes would count as one and could not take over. The primary goes on looking.
fn may_follow(read: &Outcome) -> Result<()> {
    match read {
        Outcome::Read(_) => Ok(()),
        Outcome::NoMajority(why) | Outcome::Unknown(why) => {
            Err(Error::Arbitration(format!("a backup here could not take over: {why}")))
        }
        Outcome::Granted(_) | Outcome::Refused(_) => {
            Err(Error::Arbitration("the seed nodes answered another question".into()))
        }
    }
}

fn serve(engine: &mut Engine, running: Running, protector: Protector) -> Result<()> {
    watch_over(engine)?;
    match Primary::new(engine, running, protector).run()? {
        End::Exited(status) => info!(status, "the workload has ended"),
        End::Stopped => info!("stopped"),
        End::Moved(register) => info!(%register, "moved"),
        End::Deposed(register) => warn!(?register, "another node holds this workload now"),
    }
    Ok(())
}

/// Should the tracer hang, its backup takes over. Then this process holds nothing that counts, and is in the way.
fn watch_over(engine: &Engine) -> Result<()> {
    let (arbiter, me) = (Arc::clone(&engine.arbiter), engine.me.incarnation);
    let mut tracer = PulseWatch::new(Arc::clone(&engine.pulse));
    let watching = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        loop {
            std::thread::sleep(PulseWatch::OFTEN);
            if !tracer.hangs(Instant::now()) {
                continue;
            }
            warn!(
                waits = pulse::waits().as_deref(),
                "the tracer hangs, and gives no signs of life to a backup"
            );
            while tracer.hangs(Instant::now()) {
                if let Outcome::Read(register) = arbiter.read()
                    && register
                        .and_then(|register| register.primary().cloned())
                        .is_none_or(|holder| holder.incarnation != me)
                {
                    pulse::end("the tracer hangs, and another node holds this workload now");
                }
                std::thread::sleep(ASK_AGAIN);
            }
            info!("the tracer goes on");
        }
    });
    watching.attempt(|| "start the thread that watches the tracer".into()).map(drop)
}

/// Answers over the control socket: the status from the board, all else from the engine.
fn serve_control(engine: &Engine) -> Result<()> {
    let path = engine.setup.control_socket();
    // A supervisor that was killed leaves its socket behind; a live one is found by the agent before it starts another.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).attempt(|| format!("listen on {}", path.display()))?;
    let (teller, status, forced) = (engine.teller(), engine.status.clone(), Arc::clone(&engine.forced));
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of descriptors: nothing but time helps.
                    std::thread::sleep(ACCEPT_RETRY);
                    continue;
                };
                let (teller, status, forced) = (teller.clone(), status.clone(), Arc::clone(&forced));
                // One that cannot be started costs this request only.
                let _ = std::thread::Builder::new().name("control request".into()).spawn(move || {
                    if let Err(error) = answer(stream, &teller, &status, &forced) {
                        warn!(%error, "a control request failed");
                    }
                });
            }
        })
        .attempt(|| "start the control thread".into())
        .map(drop)
}

fn answer(
    stream: UnixStream,
    teller: &Teller<Event>,
    status: &crate::engine::Board,
    forced: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(CONTROL_LINE)).read_line(&mut line)?;
    let response = match serde_json::from_str::<control::Request>(&line) {
        Err(error) => control::Response::Failed { reason: format!("not understood: {error}") },
        Ok(control::Request::Status) => control::Response::Status(Box::new(status.get())),
        Ok(control::Request::Failover) if status.get().role == control::Side::Backup => {
            force(&status.get(), forced)
        }
        Ok(
            control::Request::Stop
            | control::Request::Switchover { .. }
            | control::Request::Kill { .. }
            | control::Request::Errands { .. }
            | control::Request::Store { .. },
        ) if status.get().role == control::Side::Backup => {
            control::Response::Failed { reason: "this is the backup; ask on its primary's node".into() }
        }
        Ok(request) => {
            let (reply, answer) = mpsc::channel();
            teller.tell(Event::Control(request, reply));
            answer.recv_timeout(CONTROL_TIMEOUT).unwrap_or(control::Response::Failed {
                reason: "the supervisor did not answer in time".into(),
            })
        }
    };
    let mut stream = stream;
    writeln!(stream, "{}", serde_json::to_string(&response)?)
}

/// The listening thread of the backup looks at it whenever it hears something, and a heartbeat comes soon.
fn force(status: &control::Status, forced: &AtomicBool) -> control::Response {
    if status.state != State::Protected {
        let reason = "this backup does not have everything yet, so the seed nodes would not grant it".into();
        return control::Response::Failed { reason };
    }
    forced.store(true, Ordering::Release);
    control::Response::Done
}

#[cfg(test)]
mod tests {
    use outlive_cluster::{NoMajority, Silence};

    use super::*;

    #[test]
    fn r5_a_backup_that_hears_no_majority_is_none() {
        let silence = vec![("a".parse().unwrap(), Silence::Unheard)];
        for deaf in [Outcome::NoMajority(NoMajority(silence.clone())), Outcome::Unknown(NoMajority(silence))]
        {
            let why = may_follow(&deaf).unwrap_err().to_string();
            assert!(why.contains("a did not answer"), "{why}");
        }
        may_follow(&Outcome::Read(None)).unwrap();
    }
}
