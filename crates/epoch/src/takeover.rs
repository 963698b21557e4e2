//! From a granted generation to a running workload.
//!
//! The address moves first, so that answers can come; then every peer is asked what it has; then sockets are built, the
//! shell comes to life with everything stopped, what came in meanwhile is delivered, and it runs.
//!
//! After a planned change the old primary can still go on, as the register says: then nothing of the workload's leaves until
//! the seed nodes have agreed, when it is whole here, that this one speaks alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Outcome, Transition};
use outlive_fault::{Point, point};
use outlive_net::probe::{Answer, ProbeTarget, Timestamps, run_probes};
use outlive_net::{Announcer, Moment, Neighbours, NetworkConfig, Overheard, Pump, PumpConfig, Voice};
use outlive_process::checkpoint::ObjectId;
use outlive_process::object::tcp::PeerAck;
use outlive_process::shell::Shell;
use outlive_process::sockets::Asked;
use tracing::{debug, info, warn};

use crate::backup::Prepared;
use crate::control::State;
use crate::engine::{Engine, Event};
use crate::error::{Attempt, Error, Result};
use crate::link::Copies;
use crate::primary::Running;
use crate::requests::Requests;

/// Between two questions to seed nodes that could not agree.
const RETRY: Duration = Duration::from_millis(100);
/// How long peers may take to answer. On one network they do so in a fraction of a millisecond; those that are silent
/// are taken to have received anything between what is known and what was sent, and cost a retransmission at worst.
const ANSWERS: Duration = Duration::from_millis(20);

/// Brings the workload to life. The calling thread is the shell's tracer.
pub fn run(engine: &Engine, prepared: Prepared) -> Result<Running> {
    let Prepared {
        shell,
        namespace: _namespace,
        inner,
        port,
        pipes,
        log,
        restorer,
        retained,
        overheard: ear,
        requests,
        register,
        failover,
        granted,
        epoch,
        old,
    } = prepared;
    if register.synced_backup().is_some() {
        prepare_to_speak_alone(engine, register.generation);
    }
    let network = as_it_is(engine, &shell);
    port.attach(network.mac)?;
    point(Point::TakeoverAttached);
    let mut announcer = Announcer::new(&network);
    announcer.start(Moment::now());
    for frame in announcer.due(Moment::now()) {
        port.send(frame).attempt(|| "announce the workload's address".into())?;
    }
    point(Point::TakeoverAnnounced);
    // Until now clients have spoken into the dark. Taken before the first question: what a peer said earlier is no answer to it.
    let overheard = ear.take();
    let mut neighbours = Neighbours::new(network.clone());
    retained.show(|frame| neighbours.learn(frame));
    overheard.iter().for_each(|frame| neighbours.learn(frame));
    let asked = shell.to_be_asked();
    let mut arrived: Vec<Vec<u8>> = Vec::new();
    let targets: Vec<ProbeTarget> = asked.iter().map(target).collect();
    let answers = run_probes(&port, targets, &mut neighbours, Moment::now() + ANSWERS, &mut |frame| {
        arrived.push(frame.to_vec());
    })?;
    debug!(asked = asked.len(), answered = answers.iter().flatten().count(), "peers were asked");
    let answers = by_object(&asked, &answers);
    let probed = Instant::now();
    point(Point::TakeoverProbed);

    let (built, silent) = shell.build(&answers)?;
    point(Point::TakeoverBuilt);
    let mut workload = shell.activate(&built)?;
    drop(built);
    let revived = Instant::now();
    point(Point::TakeoverActivated);
    silent.go_live()?;
    point(Point::TakeoverLive);
    let (requests, rebuilding) = Requests::resume(restorer, requests);
    let requests = Arc::new(requests);

    let mut generation = register.generation;
    let is_shared = register.synced_backup().is_some();
    let voice = if is_shared { Voice::Plugged { generation } } else { Voice::Exposed { generation } };
    let copies = Arc::new(Copies::default());
    let teller = engine.teller();
    let notify = Arc::new(move |event| teller.tell(Event::Pump(event)));
    let config = pump_config(engine, network, voice);
    let (pump, closed) = Pump::start(inner, port, config, copies.clone(), requests.clone(), notify)?;
    pump.announce();
    point(Point::TakeoverPumping);
    requests.rebuild(&pump, rebuilding);
    point(Point::TakeoverRebuilt);
    let frames = retained.take(engine.teller());
    // A frame that the primary received as well may have been flooded too, and one is heard in two ways while the address moves; a
    // datagram must not come twice by that.
    let mut seen: HashSet<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
    let dark = overheard.iter().map(|frame| &frame[..]).chain(arrived.iter().map(Vec::as_slice));
    let dark: Vec<&[u8]> = dark.filter(|frame| seen.insert(frame)).collect();
    for frame in frames.iter().map(|frame| &frame[..]).chain(dark) {
        pump.inject(frame);
        point(Point::TakeoverHalfInjected);
    }
    point(Point::TakeoverInjected);
    if is_shared {
        point(Point::MoveReady);
        generation = speak_alone(engine, generation)?;
        point(Point::MoveAlone);
        pump.expose(generation)?;
        pump.announce();
    }
    workload.thaw()?;
    point(Point::TakeoverThawed);
    close_aside(ear);
    drop(closed);
    point(Point::TakeoverDone);
    if let Some(old) = old {
        point(Point::MoveRunning);
        old.let_go();
    }
    let mut done = failover;
    done.activate_ms = granted.elapsed().as_secs_f64() * 1000.0;
    info!(
        probes_ms = (probed - granted).as_secs_f64() * 1000.0,
        revive_ms = (revived - probed).as_secs_f64() * 1000.0,
        activate_ms = done.activate_ms,
        "running"
    );
    engine.status.lock().last_failover = Some(done);
    Ok(Running { workload, pump, copies, requests, pipes, log, generation, epoch })
}

/// The tracer is needed by a workload that runs, and would wait for this.
fn close_aside(ear: Arc<Overheard>) {
    if let Err(error) = thread::Builder::new().name("ear".into()).spawn(move || drop(ear)) {
        warn!(%error, "the socket of what was overheard is closed by the tracer");
    }
}

/// The workload's network with what the workload has made of it.
fn as_it_is(engine: &Engine, shell: &Shell) -> NetworkConfig {
    let own = shell.network();
    engine.setup.workload.network.as_it_is(own.addresses(), own.gateways())
}

/// While the workload is being brought to life: the promises that this takes. The old primary can still go on.
fn prepare_to_speak_alone(engine: &Engine, generation: u64) {
    let (arbiter, by) = (Arc::clone(&engine.arbiter), engine.me.incarnation);
    let prepare = move || arbiter.prepare(Transition::PrimaryAlone { by, generation });
    if let Err(error) = thread::Builder::new().name("arbitration".into()).spawn(prepare) {
        // It is asked for all the same, and takes one round more.
        warn!(%error, "speaking alone is not prepared");
    }
}

/// Asks until it is known whether this one may speak without the old primary, which could otherwise go on instead.
fn speak_alone(engine: &Engine, generation: u64) -> Result<u64> {
    let by = engine.me.incarnation;
    loop {
        match engine.arbiter.ask(Transition::PrimaryAlone { by, generation }) {
            Outcome::Granted(register) => return Ok(register.generation),
            Outcome::Refused(refused) => return Err(Error::Arbitration(refused.to_string())),
            outcome => {
                engine.status.lock().state = State::Waiting;
                warn!(?outcome, "no majority of seed nodes; nothing is said");
                thread::sleep(RETRY);
            }
        }
    }
}

/// How every supervisor's pump is set up.
pub fn pump_config(engine: &Engine, network: NetworkConfig, voice: Voice) -> PumpConfig {
    let mut config = PumpConfig::new(network, voice);
    // Frames that were committed may leave late, but not after the other side may have decided that we are gone.
    config.plug.freshness = engine.setup.node.tuning.detection;
    config.priority = Some(PUMP_PRIORITY);
    config
}

/// Below the tracer's: a thread that is being stopped must not wait for frames.
const PUMP_PRIORITY: u8 = 1;
pub const TRACER_PRIORITY: i32 = 2;

fn target(asked: &Asked) -> ProbeTarget {
    ProbeTarget {
        local: asked.local,
        remote: asked.remote,
        snd_una: asked.snd_una,
        rcv_nxt: asked.rcv_nxt,
        window: asked.window,
        // The echo matters to nobody but the peer's measurement of the round trip.
        timestamps: asked.timestamp.map(|value| Timestamps { value, echo: 0 }),
    }
}

fn by_object(asked: &[Asked], answers: &[Option<Answer>]) -> HashMap<ObjectId, PeerAck> {
    asked
        .iter()
        .zip(answers)
        .filter_map(|(asked, answer)| match answer {
            Some(Answer::Has { ack, window, .. }) => {
                Some((asked.object, PeerAck::Known { ack: *ack, window: *window }))
            }
            // A connection that its peer does not know is ended by the peer's own reset once it speaks.
            Some(Answer::Reset) | None => None,
        })
        .collect()
}
