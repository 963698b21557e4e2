//! Joining the pair: which side this process is, and when that changes.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Holder, Holding, Incarnation, NodeName, Orphaned, Outcome, Register, Transition};
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::arbitration::{Arbiter, unsettled};
use crate::config::{Config, WhenExposed};
use crate::follow::{Followed, follow};
use crate::forget::Forgotten;
use crate::protection::{Phase, Protection, Stage};
use crate::rights::{admit_all, arbitrate, lost_by};
use crate::schema::Incompatible;
use crate::ship::{AGAIN, Core};
use crate::store::{Role, Sink, Store};
use crate::transaction::CommitError;

/// While other backups have not said yet that they have stopped, until it is asked again. An answer takes two writes to the
/// disks of seed nodes.
const SOON: Duration = Duration::from_millis(10);

/// While a process waits for something that only others can bring about, how often it says so.
const SAY: Duration = Duration::from_secs(10);

/// How this process came to be the primary.
///
/// ```
/// use outlive_replicated::Started;
///
/// fn greeting(started: &Started) -> String {
///     match started {
///         Started::Fresh => "a new state".into(),
///         Started::TakenOver { commit, how } => match &how.forgotten {
///             None => format!("all up to commit {commit}"),
///             Some(forgotten) => format!("up to commit {commit}, {forgotten}"),
///         },
///     }
/// }
/// assert_eq!(greeting(&Started::Fresh), "a new state");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is the first: the state is as the program made it.
    Fresh,
    /// It took over, and the state is what was committed.
    TakenOver {
        /// The last commit that is part of it.
        commit: u64,
        /// How it came about.
        how: How,
    },
}

/// Why and how a backup took over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct How {
    /// From which node.
    pub from: String,
    /// In which generation this process speaks.
    pub generation: u64,
    /// What was noticed of the primary.
    pub why: String,
    /// From noticing until the seed nodes had granted it.
    pub granted_in: Duration,
    /// From then until this process could go on.
    pub ready_in: Duration,
    /// Without whose word, if an operator said that they are dead for good, and what may be lost with them.
    pub forgotten: Option<Forgotten>,
}

/// Why [`start`] failed.
///
/// ```
/// use outlive_replicated::{start, Config, StartError};
///
/// fn run(config: Config) -> Result<(), StartError> {
///     match start(config) {
///         // Another version of the program: it says which type and field.
///         Err(StartError::Incompatible(why)) => panic!("{why}"),
///         other => other.map(drop),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is one state in a process, and it has one life.
    #[error("this process has started already: a process that lost its place must be started anew")]
    AlreadyStarted,
    /// Two different marked types, or statics, have one name.
    #[error(
        "different marked types have one name: give one of each another by `#[replicated(name = …)]`: {0:?}"
    )]
    Clash(Vec<String>),
    /// The name in the certificate cannot be a node's.
    #[error(transparent)]
    Name(#[from] outlive_cluster::NameError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// Who is the primary is not among the peers.
    #[error("{0} is the primary, and not among the peers of the configuration: add it there")]
    UnknownPeer(NodeName),
    /// This program cannot hold what the primary has.
    #[error("this program cannot be a backup of the one that runs: {0}")]
    Incompatible(#[from] Incompatible),
    /// The primary's library does not speak with this one.
    #[error(
        "the primary speaks version {0} of the link: build both programs with the same version of this library"
    )]
    OtherVersion(u16),
    /// The program was stopped while this process was its backup.
    #[error("the program was stopped: start it anew")]
    Stopped,
    /// [`Config::lost_generation`] names another generation than the seed nodes.
    #[error("the program is not lost as the configuration says: {0}")]
    NotLost(String),
}

/// How it stands with this process.
///
/// ```
/// use outlive_replicated::{status, Status};
///
/// fn is_in_step(status: &Status) -> bool {
///     status.last == status.acknowledged && status.failing.is_empty()
/// }
/// assert!(status().is_none_or(|status| is_in_step(&status)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is.
    pub role: Role,
    /// How it stands with its backups, once it is the primary.
    pub phase: Option<Phase>,
    /// In which generation it speaks; 0 before.
    pub generation: u64,
    /// The last commit.
    pub last: u64,
    /// The last commit that may be acknowledged.
    pub acknowledged: u64,
    /// Its backups.
    pub backups: Vec<BackupStatus>,
    /// Replicated functions that fail on the backup and are tried again there, and what they say.
    pub failing: Vec<String>,
}

/// How it stands with one backup of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStatus {
    /// Its node.
    pub node: String,
    /// Whether the seed nodes know that it may take over.
    pub counts: bool,
    /// How far it is.
    pub stage: Stage,
    /// The last commit that it holds, once it has [all that there was](Stage::Complete).
    pub held: u64,
    /// Bytes of records that it has not confirmed.
    pub unacknowledged: usize,
    /// For how long the oldest of them has been on its way.
    pub lag: Duration,
}

static CORE: Mutex<Option<Arc<Core>>> = Mutex::new(None);

/// Joins the pair. On the primary it returns at once. On a backup it returns when this process has taken over; until then
/// the process follows, and whatever else wants to change marked state waits.
///
/// Call it before marked state is changed by other threads. It blocks: an async program calls it before it starts its
/// executor, or on a thread for blocking work.
///
/// ```no_run
/// use outlive_replicated::{start, Config, Started};
///
/// match start(Config::load(std::path::Path::new("bank.toml"))?)? {
///     Started::Fresh => println!("the first"),
///     Started::TakenOver { commit, how } => println!("from {} after commit {commit}", how.from),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn start(config: Config) -> Result<Started, StartError> {
    let store = Store::global();
    Store::register_statics();
    let doctor = config.doctor;
    let core = prepare(store, config)?;
    if let Some(longer_than) = doctor {
        store.watch.begin();
        spawn("replicated doctor", Arc::clone(&core), move |core| {
            crate::doctor::attend(&core.store, longer_than)
        })?;
    }
    *CORE.lock() = Some(Arc::clone(&core));
    join(&core)
}

/// How it stands with this process; `None` before [`start`].
///
/// ```
/// // Nothing has started here.
/// assert_eq!(outlive_replicated::status(), None);
/// ```
pub fn status() -> Option<Status> {
    let core = CORE.lock().clone()?;
    Some(status_of(&core))
}

/// Ends the program as a whole: nothing is acknowledged any more, and its backup does not take over. Returns when the
/// seed nodes know it. To give the place to the backup instead: [`hand_over`].
///
/// ```
/// // Before `start` there is nothing to stop.
/// outlive_replicated::stop()?;
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn stop() -> Result<(), CommitError> {
    let core = CORE.lock().clone();
    core.map_or(Ok(()), |core| stop_in(&core))
}

/// Why a place was not handed over: this process goes on as it was, unless it says that it lost its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not handed over: {0}")]
pub struct NotHandedOver(String);

/// Hands this primary's place over to its backup, for maintenance or for a newer version of the program: commits wait,
/// the backup has all of them, the seed nodes are told. From then on every commit here fails with
/// [`CommitError::Deposed`], and the process is to end. Clients that are cut off find the other, which begins at once.
///
/// Returns once it is known whether it came about: while the seed nodes do not answer, it waits, and so do commits.
///
/// ```no_run
/// // When the operator says so, on the primary:
/// match outlive_replicated::hand_over() {
///     Ok(()) => std::process::exit(0),
///     Err(error) => eprintln!("{error}"),
/// }
/// ```
pub fn hand_over() -> Result<(), NotHandedOver> {
    let core = CORE.lock().clone();
    let core = core.ok_or_else(|| NotHandedOver("this process has not started".into()))?;
    hand_over_in(&core)
}

pub(crate) fn hand_over_in(core: &Core) -> Result<(), NotHandedOver> {
    let (to, generation) = core.drain().map_err(NotHandedOver)?;
    let by = core.state().me.incarnation;
    let order = Transition::Switchover { by, generation, to: to.incarnation, stays: false };
    match ask_until_known(core, order, "whether the place is handed over") {
        Outcome::Granted(_) => {
            info!(%to, "handed over");
            // Its end is what tells the backup.
            core.end(&mut core.state(), CommitError::Deposed);
            Ok(())
        }
        Outcome::Refused(refused) => {
            let mut state = core.state();
            match lost_by(&refused.why) {
                // An earlier attempt was granted after all, or another has taken over.
                Some(why) => core.end(&mut state, why),
                None => core.stay(&mut state),
            }
            Err(NotHandedOver(refused.to_string()))
        }
        outcome => {
            core.stay(&mut core.state());
            Err(NotHandedOver(unsettled(&outcome)))
        }
    }
}

/// Asks for a transition until it is known whether it came about. That no majority was heard settles it only if no attempt
/// before may have left a proposal: what one seed node has accepted, anybody's next attempt may complete.
fn ask_until_known(core: &Core, transition: Transition, what: &str) -> Outcome {
    let mut patience = Patience(None);
    let mut unsure = false;
    loop {
        match core.arbiter.ask(transition.clone()) {
            Outcome::NoMajority(why) if !unsure => return Outcome::NoMajority(why),
            Outcome::NoMajority(why) | Outcome::Unknown(why) => {
                unsure = true;
                patience.say(&format!("it is not known {what}, and this process waits: {why}"));
                thread::sleep(AGAIN);
            }
            outcome => return outcome,
        }
    }
}

pub(crate) fn status_of(core: &Core) -> Status {
    let mut state = core.state();
    state.forget_gone(&core.store);
    let protection = state.protection.as_ref();
    Status {
        role: core.store.role(),
        phase: protection.map(Protection::phase),
        generation: protection.map_or(0, Protection::generation),
        last: protection.map_or(0, Protection::last),
        acknowledged: protection.map_or(0, Protection::released),
        backups: state.backups(),
        failing: state.failing.values().cloned().collect(),
    }
}

pub(crate) fn stop_in(core: &Core) -> Result<(), CommitError> {
    let generation = {
        let mut state = core.state();
        if let Some(over) = &state.over {
            return Err(over.clone());
        }
        let Some(generation) = state.protection.as_ref().map(Protection::generation) else {
            return Err(CommitError::Deposed);
        };
        core.silence(&mut state, CommitError::Stopped);
        generation
    };
    let outcome = bury(core, generation);
    core.end(&mut core.state(), CommitError::Stopped);
    outcome
}

fn bury(core: &Core, mut generation: u64) -> Result<(), CommitError> {
    loop {
        match core.arbiter.ask(Transition::Stop { generation }) {
            Outcome::Granted(_) => return Ok(()),
            Outcome::Refused(refused) => {
                // What was asked before the stop may have been granted after it.
                let me = core.state().me.incarnation;
                match refused.current {
                    Some(now) if now.primary().is_some_and(|holder| holder.incarnation == me) => {
                        generation = now.generation;
                    }
                    _ => return Err(CommitError::Deposed),
                }
            }
            _ => thread::sleep(AGAIN),
        }
    }
}

fn fresh_holder(config: &Config) -> Result<Holder, StartError> {
    Ok(Holder { incarnation: Incarnation::random(), node: config.identity.node_name().parse()? })
}

/// All but the decision which side it is.
pub(crate) fn prepare(store: &Arc<Store>, config: Config) -> Result<Arc<Core>, StartError> {
    let clashes = store.clashes();
    if !clashes.is_empty() {
        return Err(StartError::Clash(clashes));
    }
    let me = fresh_holder(&config)?;
    let address = config.listen;
    let listener = TcpListener::bind(address).map_err(|source| StartError::Listen { address, source })?;
    let arbiter = Arbiter::of(&config).map_err(StartError::Thread)?;
    let core = Core::new(Arc::clone(store), config, arbiter, me);
    if !store.set_sink(Arc::clone(&core) as Arc<dyn Sink>) {
        return Err(StartError::AlreadyStarted);
    }
    spawn("replicated rights", Arc::clone(&core), |core| arbitrate(core))?;
    spawn("replicated listen", Arc::clone(&core), move |core| admit_all(core, &listener))?;
    Ok(core)
}

fn spawn(
    name: &str,
    core: Arc<Core>,
    run: impl FnOnce(&Arc<Core>) + Send + 'static,
) -> Result<(), StartError> {
    thread::Builder::new().name(name.into()).spawn(move || run(&core)).map(drop).map_err(StartError::Thread)
}

/// Says what is waited for, now and then.
struct Patience(Option<Instant>);

impl Patience {
    fn say(&mut self, what: &str) {
        if self.0.is_none_or(|said| said.elapsed() >= SAY) {
            self.0 = Some(Instant::now());
            warn!("{what}");
        }
    }
}

pub(crate) fn join(core: &Arc<Core>) -> Result<Started, StartError> {
    let mut patience = Patience(None);
    let followed = AtomicBool::new(false);
    let mut stopped = None;
    loop {
        // One incarnation follows once: what it says after it has lost its primary is never taken for another's.
        let me = fresh_holder(&core.config)?;
        match core.arbiter.read() {
            Outcome::Read(register) => match register.as_ref().map(|register| &register.holding) {
                None | Some(Holding::Tombstone) => {
                    if followed.load(Ordering::Relaxed) {
                        return Err(StartError::Stopped);
                    }
                    if let Some(started) = create(core, &me) {
                        return Ok(started);
                    }
                }
                Some(
                    holding @ (Holding::Held { primary, .. } | Holding::Orphaned(Orphaned { primary, .. })),
                ) => {
                    let current = register.as_ref();
                    if let Some(started) = restart_lost(core, &me, current)? {
                        return Ok(started);
                    }
                    let backups = current.map_or(&[][..], Register::backups);
                    let named = |before: &Stopped| backups.iter().any(|backup| backup.holder == before.me);
                    let next = match stopped.take() {
                        Some(before) if named(&before) => take_over(core, primary, before),
                        // Whom the operator left out has nothing to say, and there is nobody to follow yet.
                        before if matches!(holding, Holding::Orphaned(_)) => {
                            Next::Again("one of those that are left goes on first".into(), before)
                        }
                        before => follow_one(core, &me, primary, &followed, before)?,
                    };
                    match next {
                        Next::TakenOver(started) => return Ok(started),
                        Next::Again(reason, before) => {
                            stopped = before;
                            let held = current.map(Register::to_string).unwrap_or_default();
                            patience.say(&format!("{held}; this process waits: {reason}"));
                        }
                    }
                }
            },
            outcome => patience.say(&format!("the seed nodes do not answer: {}", unsettled(&outcome))),
        }
        thread::sleep(AGAIN);
    }
}

/// The first primary, unless another was first. A right whose granting is unknown is asked for until it is known.
fn create(core: &Core, me: &Holder) -> Option<Started> {
    match ask_until_known(core, Transition::Create { by: me.clone() }, "whether this process is the first") {
        Outcome::Granted(register) => {
            core.lead(me.clone(), protection(core, register.generation, 0));
            core.store.set_role(Role::Primary);
            Some(Started::Fresh)
        }
        outcome => {
            info!(?outcome, "this process is not the first");
            None
        }
    }
}

fn protection(core: &Core, generation: u64, last: u64) -> Protection {
    match core.config.when_exposed {
        WhenExposed::Run => Protection::new(generation, last, core.config.wait_for),
        WhenExposed::Wait => Protection::waiting(generation, last, core.config.wait_for),
    }
}

/// On the word of an operator.
fn restart_lost(
    core: &Core,
    me: &Holder,
    register: Option<&Register>,
) -> Result<Option<Started>, StartError> {
    let (Some(generation), Some(register)) = (core.config.lost_generation, register) else { return Ok(None) };
    if register.generation != generation {
        // It was started anew already, by this word or another: then this process is its backup.
        return Ok(None);
    }
    let Some(primary) = register.last_primary() else { return Ok(None) };
    let again = Transition::RestartLost {
        by: me.clone(),
        generation,
        lost: primary.incarnation,
        lost_backups: register.backups().iter().map(|backup| backup.holder.incarnation).collect(),
    };
    loop {
        match core.arbiter.ask(again.clone()) {
            Outcome::Granted(register) => {
                core.lead(me.clone(), protection(core, register.generation, 0));
                core.store.set_role(Role::Primary);
                return Ok(Some(Started::Fresh));
            }
            Outcome::Refused(refused) => return Err(StartError::NotLost(refused.to_string())),
            _ => thread::sleep(AGAIN),
        }
    }
}

/// A backup that has lost its primary, and acknowledges nothing more. Its state is whole and stays as it is until another
/// copy begins to come: should the register name it, or name it again, its word counts, and others may wait for it.
struct Stopped {
    me: Holder,
    commit: u64,
    why: String,
    noticed: Instant,
}

enum Next {
    TakenOver(Started),
    /// Why this process waits, and what it still holds.
    Again(String, Option<Stopped>),
}

fn follow_one(
    core: &Arc<Core>,
    me: &Holder,
    primary: &Holder,
    followed: &AtomicBool,
    before: Option<Stopped>,
) -> Result<Next, StartError> {
    if primary.node == me.node {
        // An earlier process of this very node. Its backup takes over, or nobody does.
        return Ok(Next::Again(format!("an earlier process of {} held it", me.node), before));
    }
    let Some(address) = core.config.peer(&primary.node) else {
        return Err(StartError::UnknownPeer(primary.node.clone()));
    };
    match follow(core, me, primary, address) {
        Followed::NotNow(reason) => Ok(Next::Again(reason, before)),
        Followed::Incompatible(why) => Err(why.into()),
        Followed::OtherVersion(version) => Err(StartError::OtherVersion(version)),
        Followed::Ended { complete: None, why, .. } => {
            followed.store(true, Ordering::Relaxed);
            Ok(Next::Again(why, None))
        }
        Followed::Ended { complete: Some(commit), why, noticed } => {
            followed.store(true, Ordering::Relaxed);
            Ok(take_over(core, primary, Stopped { me: me.clone(), commit, why, noticed }))
        }
    }
}

fn take_over(core: &Core, primary: &Holder, stopped: Stopped) -> Next {
    let Stopped { me, commit, why, noticed } = &stopped;
    let mut patience = Patience(None);
    let mut soon = SOON;
    let mut seen: Option<Register> = None;
    let register = loop {
        let next = Transition::by_backup(me.incarnation, *commit, seen.as_ref());
        match core.arbiter.ask(next) {
            Outcome::Granted(register) if register.primary().is_some_and(|primary| primary == me) => {
                break register;
            }
            Outcome::Granted(register) => {
                let goes_on = matches!(&register.holding, Holding::Orphaned(orphaned) if orphaned.may_go_on(me.incarnation));
                let news = seen.as_ref() != Some(&register);
                seen = Some(register.clone());
                // It knows now what it may lack.
                if goes_on && news {
                    continue;
                }
                patience.say(&format!(
                    "the primary is lost ({why}), and more of its backups must say so: {register}; one that is dead for \
                     good is left out by `outlive replicated forget`"
                ));
                thread::sleep(soon);
                soon = AGAIN.min(soon * 2);
            }
            Outcome::Refused(refused) => return Next::Again(refused.to_string(), Some(stopped)),
            outcome => {
                patience.say(&format!("the primary is lost ({why}), and {}", unsettled(&outcome)));
                thread::sleep(AGAIN);
            }
        }
    };
    let granted = Instant::now();
    // It went on by an operator's word if it was granted from there: what it saw last before.
    let forgotten = match seen.map(|seen| seen.holding) {
        Some(Holding::Orphaned(orphaned)) => Some(Forgotten::of(&orphaned, *commit)),
        _ => None,
    };
    core.lead(me.clone(), protection(core, register.generation, *commit));
    core.state().forgotten.clone_from(&forgotten);
    core.store.take_over();
    let how = How {
        from: primary.node.to_string(),
        generation: register.generation,
        why: why.clone(),
        granted_in: granted - *noticed,
        ready_in: granted.elapsed(),
        forgotten,
    };
    match &how.forgotten {
        Some(forgotten) => {
            warn!(?how, commit, "this process has taken over by an operator's word, {forgotten}");
        }
        None => info!(?how, commit, "this process has taken over"),
    }
    Next::TakenOver(Started::TakenOver { commit: *commit, how })
}
