//! The agent: one per node. It starts supervisors and finds them again, answers the command line over its control
//! socket, other nodes over mutual TLS, and holds this node's vote if it is a seed node.
//!
//! Invariant: a workload does not depend on it. Supervisors are processes of their own; an agent may end and be
//! started again at any time.

pub mod admit;
mod definition;
pub mod host;
mod membership;
mod moves;
mod peers;
mod rejoin;
mod seed;
mod serve;
mod supervisors;
mod view;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use outlive_stream::tls::Identity;
use sd_notify::NotifyState;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::error::{Context, Failure, Result, chain};
use peers::Peers;
use seed::Seed;
use serve::ControlSocket;
use supervisors::Supervisors;

pub use supervisors::word;

/// What the log shows: a filter as of `tracing_subscriber::EnvFilter`, `info` unless it is set.
const LOG_VARIABLE: &str = "OUTLIVE_LOG";
/// Held while an agent uses a state directory.
const LOCK: &str = "agent.lock";

/// How often logs of supervisors are looked at for their length.
const TRIM_LOGS: Duration = Duration::from_secs(60);

/// All parts of a running agent.
pub struct Agent {
    config: Arc<Config>,
    peers: Peers,
    supervisors: Arc<Supervisors>,
    seed: Seed,
}

/// An agent that listens. Its threads end with the process.
pub struct Running {
    agent: Arc<Agent>,
    _control: ControlSocket,
    _lock: Flock<File>,
}

/// `outlive agent`: until it is told to end.
pub fn run(config: &Path) -> Result<()> {
    let config = Config::load(config)?;
    log_to_stderr();
    // Before there are other threads, which inherit it: these signals come to `wait` only.
    let mut ends = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| ends.add(signal));
    ends.thread_block().or_failed(|| "block signals".to_owned())?;

    let supervisor = ["/proc/self/exe", "supervise"].map(OsString::from).to_vec();
    let running = start(config, supervisor)?;
    let (node, listen) = (&running.agent.config.node, running.agent.config.listen);
    // Whoever started the agent may have closed its standard output.
    let _ = writeln!(std::io::stdout(), "ready: node {node} listens on {listen}");
    tell_manager(&[NotifyState::Ready, NotifyState::Status("workloads are looked after")]);
    let signal = ends.wait().or_failed(|| "wait for signals".to_owned())?;
    info!(%signal, "ending; workloads go on without this agent");
    tell_manager(&[NotifyState::Stopping]);
    running.agent.seed.close();
    Ok(())
}

/// systemd's, if that started us (`Type=notify`).
fn tell_manager(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        warn!(%error, "the service manager could not be told");
    }
}

/// For the agent and for supervisors, whose standard error is a file.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Everything that can be wrong is found here, before `ready` is said; what was made is removed again.
fn start(config: Config, supervisor: Vec<OsString>) -> Result<Running> {
    let identity = load_identity(&config)?;
    let state = config.state_dir.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .or_failed(|| format!("make the state directory {state} (set state_dir to a writable place)"))?;
    let lock = lock_state(&config.state_dir)?;
    let seed = Seed::open(&config)?;
    let supervisors = Arc::new(Supervisors::new(&config.state_dir, supervisor));
    supervisors.find()?;
    let listener = TcpListener::bind(config.listen).map_err(|error| {
        let (listen, advice) =
            (config.listen, "set `listen` to an address and a port of this host that are free");
        Failure::failed(format!("cannot listen on {listen}: {error}; {advice}"))
    })?;
    let control = ControlSocket::bind(&config.control_socket, config.control_group)?;
    let questions = control.listener().or_failed(|| "use the control socket".to_owned())?;

    let config = Arc::new(config);
    let peers = Peers::new(Arc::clone(&config), Arc::new(identity));
    let agent = Arc::new(Agent { config, peers, supervisors, seed });
    let (for_nodes, for_users) = (Arc::clone(&agent), Arc::clone(&agent));
    spawn("peers", move || peers::listen(&for_nodes, &listener))?;
    spawn("questions", move || serve::listen(&for_users, &questions))?;
    let supervisors = Arc::clone(&agent.supervisors);
    spawn("trim logs", move || {
        loop {
            thread::sleep(TRIM_LOGS);
            supervisors.trim_logs();
        }
    })?;
    info!(node = agent.config.node, listen = %agent.config.listen, "listening");
    if outlive_fault::ENABLED {
        warn!("this program was built for tests, which can make it die: do not use it");
    }
    Ok(Running { agent, _control: control, _lock: lock })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .or_failed(|| "start a thread".to_owned())
}

fn load_identity(config: &Config) -> Result<Identity> {
    let tls = &config.tls;
    let identity = Identity::load(&tls.ca, &tls.cert, &tls.key).map_err(|error| {
        let missing = [&tls.ca, &tls.cert, &tls.key].into_iter().find(|path| !path.exists());
        let advice =
            missing.map_or("", |_| "; make one with `outlive cert node`, and set [tls] to where it is");
        Failure::failed(format!("{}{advice}", chain(&error)))
    })?;
    if identity.node_name() != config.node {
        let (cert, named, node) = (tls.cert.display(), identity.node_name(), &config.node);
        return Err(Failure::failed(format!(
            "the certificate {cert} is for node {named}, and this node is {node}: make one with `outlive cert node \
             --name {node}`, or correct `node`"
        )));
    }
    Ok(identity)
}

/// Two agents on one state directory would each think the other's supervisors their own.
fn lock_state(state: &Path) -> Result<Flock<File>> {
    let path = state.join(LOCK);
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.or_failed(|| format!("write {} (is the disk full, or read-only?)", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        let state = state.display();
        Failure::refused(format!(
            "another agent uses the state directory {state} ({error}): stop it, or set state_dir"
        ))
    })
}
