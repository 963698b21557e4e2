//! An operator's word that processes are dead for good, so that the others go on without theirs.
//!
//! Needed where fewer than all backups hold what was acknowledged, and the primary died together with a backup that may have
//! held it: the others wait for that one, for ever. What they may lose by going on is said wherever it can be known.

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{
    Holder, Holding, Incarnation, Lacks, NodeName, Orphaned, Outcome, Refused, Register, Transition,
};
use serde::{Deserialize, Serialize};

use crate::arbitration::{Arbiter, unsettled};
use crate::config::Config;
use crate::inspect::{Heard, Inspection, ask};

/// How long it is watched who goes on. One that is left asks for its word at least every second.
const WATCH: Duration = Duration::from_secs(10);
/// From the grant until the one that goes on says so: it has its state already.
const TELLS: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);
/// Words of unknown outcome, until the operator is told so.
const ATTEMPTS: usize = 3;

/// Without whom a process went on by an operator's word, and what is lost with them.
///
/// ```
/// use outlive_replicated::Forgotten;
///
/// let forgotten = Forgotten { nodes: vec!["a".into(), "b".into()], lost_at_most: Some(3) };
/// assert_eq!(forgotten.to_string(), "without a, b: at most 3 acknowledged commits are lost");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Their nodes: that of the primary, and those of backups.
    pub nodes: Vec<String>,
    /// How many commits may have been acknowledged and are lost, at most; `None` if nobody knows, for one of those who are
    /// dead did not say how far it was.
    pub lost_at_most: Option<u64>,
}

impl Forgotten {
    /// As seen by one that holds commits up to `held`.
    pub(crate) fn of(orphaned: &Orphaned, held: u64) -> Self {
        let dead = orphaned.dead.iter().map(|dead| &dead.holder);
        let nodes = std::iter::once(&orphaned.primary).chain(dead).map(|dead| dead.node.to_string());
        let lost_at_most = match orphaned.lacks(held) {
            Lacks::AtMost(count) => Some(count),
            Lacks::Unknown => None,
        };
        Self { nodes: nodes.collect(), lost_at_most }
    }
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = self.lost_at_most.map_or(Lacks::Unknown, Lacks::AtMost);
        write!(f, "without {}: {lacks}", self.nodes.join(", "))
    }
}

/// What came of an operator's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgot {
    /// The generation in which nobody spoke, from the word until one of those that are left went on.
    pub generation: u64,
    /// Without whom, and what may be lost: as the one that goes on says, or as far as it was known when this was last asked.
    pub forgotten: Forgotten,
    /// Those that are left, each with the last commit that it holds, if it has said so.
    pub left: Vec<(String, Option<u64>)>,
    /// The node that has gone on; `None` if others of those that are left have to say first how far they are.
    pub goes_on: Option<String>,
}

/// Why nobody was forgotten.
///
/// ```
/// use outlive_replicated::ForgetError;
///
/// let error = ForgetError::PrimaryNotNamed { primary: "a".into(), all: "a b".into() };
/// assert!(error.to_string().contains("outlive replicated forget CONFIG a b"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgetError {
    /// No node was named.
    #[error("name the nodes whose processes are dead for good, that of the primary among them")]
    Nobody,
    /// A thread cannot be started.
    #[error("cannot start a thread to ask the seed nodes: {0}")]
    Thread(String),
    /// The seed nodes do not answer.
    #[error(
        "who holds the program cannot be found out, and nothing was changed: {0}; start a majority of its seed nodes"
    )]
    NoAnswer(String),
    /// It may have been done, or may be yet.
    #[error("it is not known whether this was done: {0}; give the same command again")]
    Unknown(String),
    /// The program is not running.
    #[error("nobody holds {0}, so there is nobody to forget: start it anew")]
    NotHeld(String),
    /// The register names no such process.
    #[error("{node} holds nothing of {held}: name those of its nodes that are dead")]
    NotNamed {
        /// What was asked for.
        node: String,
        /// What the register says.
        held: String,
    },
    /// The primary was not named, and nobody is waited for while it lives.
    #[error(
        "{primary} is the primary, and while it lives it leaves out by itself who is gone: if it is dead for good as well, say so: `outlive replicated forget CONFIG {all}`"
    )]
    PrimaryNotNamed {
        /// Its node.
        primary: String,
        /// What is to be said then.
        all: String,
    },
    /// One of those that were named lives.
    #[error(
        "{node} answers, and is {role}: as long as it lives it gives its own word; to go on without it, end its process first"
    )]
    Lives {
        /// Its node.
        node: String,
        /// What it is.
        role: String,
    },
    /// Something answers at the address of one that was named, and does not say whose state it holds.
    #[error(
        "{node} answers, and does not say what it is ({reason}): end its process first, or correct its address if that is another's"
    )]
    Answers {
        /// Its node.
        node: String,
        /// Why not.
        reason: String,
    },
    /// One of those that were named is not in the configuration: whether it lives cannot be asked.
    #[error(
        "{0} is not in this configuration, so that it cannot be asked whether it lives: add it to the peers"
    )]
    UnknownNode(String),
    /// The rules of the register forbid it.
    #[error("refused: {0}")]
    Refused(String),
}

/// What is heard of a process that is said to be dead.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Life {
    Silent,
    /// As what it is, and whose state it holds.
    Holds {
        role: String,
        incarnation: Option<Incarnation>,
    },
    /// It answers, and that is all.
    Unclear(String),
}

impl Life {
    fn of(heard: Heard) -> Self {
        match heard {
            Heard::Nothing(_) => Self::Silent,
            Heard::Unclear(reason) => Self::Unclear(reason),
            Heard::Said(Inspection { role, holds, .. }) => match holds.map(|holds| holds.parse()) {
                None => Self::Holds { role, incarnation: None },
                Some(Ok(incarnation)) => Self::Holds { role, incarnation: Some(incarnation) },
                Some(Err(error)) => Self::Unclear(error.to_string()),
            },
        }
    }
}

/// Says on an operator's word that the processes on these nodes are dead for good: the primary, and backups whose word the
/// others wait for. Those that are left go on from the furthest of them; what they lose is in [`Forgot::forgotten`], in
/// [`How::forgotten`](crate::How) of the one that goes on, and in its [`Inspection`].
///
/// Whoever lives after all has lost its place: the seed nodes refuse all that it asks, and it joins anew by a copy. What
/// they cannot undo is what it says to its clients before it asks them. A primary that is cut off from all others together
/// with as many backups as it waits for may go on so: make sure that it is off.
///
/// Refused while the primary answers, or is not named; while one that is named answers with the state that it is to be forgotten
/// with; and while none of those that are left has lost its primary. It is watched for up to 10 s who goes on.
///
/// ```no_run
/// use outlive_replicated::{Config, forget};
///
/// // The primary was on a, and b died with it: c waits.
/// let config = Config::load(std::path::Path::new("bank.toml"))?;
/// let forgot = forget(&config, &["a".to_owned(), "b".to_owned()])?;
/// println!("{} goes on {}", forgot.goes_on.unwrap_or_default(), forgot.forgotten);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn forget(config: &Config, nodes: &[String]) -> Result<Forgot, ForgetError> {
    if nodes.is_empty() {
        return Err(ForgetError::Nobody);
    }
    let arbiter = Arbiter::of(config).map_err(|error| ForgetError::Thread(error.to_string()))?;
    let register = match arbiter.read() {
        Outcome::Read(register) => register,
        outcome => return Err(ForgetError::NoAnswer(unsettled(&outcome))),
    };
    let register = register.ok_or_else(|| ForgetError::NotHeld(config.name.to_string()))?;
    let named = named(config, &register, nodes)?;
    for dead in &named {
        let Some(address) = address_of(config, &dead.node) else {
            return Err(ForgetError::UnknownNode(dead.node.to_string()));
        };
        let life = Life::of(ask(config, dead.node.as_str(), address));
        is_dead(dead, life)?;
    }
    let transition = word(&register, &named);
    let mut unsure = None;
    for _ in 0..ATTEMPTS {
        match arbiter.ask(transition.clone()) {
            Outcome::Granted(register) => {
                let mut forgot = watch(&arbiter, register);
                if let Some(forgotten) = forgot.goes_on.as_ref().and_then(|node| told_by(config, node)) {
                    forgot.forgotten = forgotten;
                }
                return Ok(forgot);
            }
            Outcome::Refused(refused) if unsure.is_some() => {
                return refused_again(&register, &named, &refused, |node| told_by(config, node));
            }
            Outcome::Refused(refused) => return Err(ForgetError::Refused(refused.to_string())),
            Outcome::NoMajority(why) if unsure.is_none() => {
                return Err(ForgetError::NoAnswer(why.to_string()));
            }
            outcome => unsure = Some(unsettled(&outcome)),
        }
    }
    Err(ForgetError::Unknown(unsure.unwrap_or_default()))
}

fn address_of(config: &Config, node: &NodeName) -> Option<SocketAddr> {
    if node.as_str() == config.identity.node_name() { Some(config.listen) } else { config.peer(node) }
}

/// What the one that went on says of it: it knows best, once it has begun.
fn told_by(config: &Config, node: &str) -> Option<Forgotten> {
    let address = address_of(config, &node.parse().ok()?)?;
    let since = Instant::now();
    while since.elapsed() < TELLS {
        if let Heard::Said(Inspection { forgotten: Some(forgotten), .. }) = ask(config, node, address) {
            return Some(forgotten);
        }
        thread::sleep(AGAIN);
    }
    None
}

/// Whom the register means by these nodes; the primary must be among them.
fn named(config: &Config, register: &Register, nodes: &[String]) -> Result<Vec<Holder>, ForgetError> {
    let Some(primary) = register.last_primary() else {
        return Err(ForgetError::NotHeld(config.name.to_string()));
    };
    // Who was forgotten before may be named again, with one more.
    let forgotten = match &register.holding {
        Holding::Orphaned(orphaned) => &orphaned.dead[..],
        _ => &[],
    };
    let all: Vec<&Holder> = std::iter::once(primary)
        .chain(register.backups().iter().chain(forgotten).map(|backup| &backup.holder))
        .collect();
    let mut named = Vec::new();
    for node in nodes {
        let before = named.len();
        named
            .extend(all.iter().filter(|holder| holder.node.as_str() == node).map(|holder| (*holder).clone()));
        if named.len() == before {
            return Err(ForgetError::NotNamed {
                node: node.clone(),
                held: format!("{} ({register})", config.name),
            });
        }
    }
    if !named.contains(primary) && register.primary().is_some() {
        let mut all = vec![primary.node.to_string()];
        all.extend(nodes.iter().cloned());
        return Err(ForgetError::PrimaryNotNamed { primary: primary.node.to_string(), all: all.join(" ") });
    }
    Ok(named)
}

/// Another life at its address is no sign of this one, but of its end: two processes of a node share its address.
fn is_dead(named: &Holder, life: Life) -> Result<(), ForgetError> {
    let node = named.node.to_string();
    match life {
        Life::Silent => Ok(()),
        Life::Unclear(reason) => Err(ForgetError::Answers { node, reason }),
        Life::Holds { role, incarnation: Some(incarnation) } if incarnation == named.incarnation => {
            Err(ForgetError::Lives { node, role })
        }
        Life::Holds { .. } => Ok(()),
    }
}

fn word(register: &Register, named: &[Holder]) -> Transition {
    let primary = register.last_primary().map_or(Incarnation(0), |primary| primary.incarnation);
    let dead = named.iter().map(|dead| dead.incarnation).filter(|dead| *dead != primary).collect();
    Transition::Forget { generation: register.generation, primary, dead }
}

/// What came of a word that is refused after an attempt of unknown outcome: that one may have been granted, and one of those
/// that were left by it may have gone on, which is why it is refused now. `told` is what a process says without whom it went on.
fn refused_again(
    first: &Register,
    named: &[Holder],
    refused: &Refused,
    told: impl FnOnce(&str) -> Option<Forgotten>,
) -> Result<Forgot, ForgetError> {
    let left: Vec<_> =
        first.backups().iter().filter(|backup| !named.contains(&backup.holder)).cloned().collect();
    let primary = refused.current.as_deref().and_then(Register::primary);
    let goes_on = primary.filter(|primary| left.iter().any(|left| left.holder == **primary));
    // One that took over with the word of all that it waited for says nothing: nobody was forgotten then.
    match goes_on.and_then(|primary| Some((primary, told(primary.node.as_str())?))) {
        Some((primary, forgotten)) => Ok(Forgot {
            generation: first.generation.saturating_add(1),
            forgotten,
            left: left.iter().map(|left| (left.holder.node.to_string(), left.stopped_at)).collect(),
            goes_on: Some(primary.node.to_string()),
        }),
        None => Err(ForgetError::Unknown(refused.to_string())),
    }
}

/// Who goes on after the word was granted.
fn watch(arbiter: &Arbiter, granted: Register) -> Forgot {
    let (since, generation) = (Instant::now(), granted.generation);
    let mut last = granted;
    loop {
        let goes_on = last.primary().map(|primary| primary.node.to_string());
        let Holding::Orphaned(orphaned) = &last.holding else {
            return Forgot {
                generation,
                forgotten: Forgotten { nodes: Vec::new(), lost_at_most: None },
                left: Vec::new(),
                goes_on,
            };
        };
        let furthest = orphaned.furthest().and_then(|backup| backup.stopped_at).unwrap_or(0);
        let left = orphaned.left.iter();
        let mut forgot = Forgot {
            generation,
            forgotten: Forgotten::of(orphaned, furthest),
            left: left.map(|left| (left.holder.node.to_string(), left.stopped_at)).collect(),
            goes_on: None,
        };
        while since.elapsed() < WATCH {
            thread::sleep(AGAIN);
            let Outcome::Read(Some(now)) = arbiter.read() else { continue };
            match &now.holding {
                Holding::Orphaned(_) if now.version == last.version => {}
                Holding::Orphaned(_) => {
                    last = now;
                    break;
                }
                _ => {
                    forgot.goes_on = now.primary().map(|primary| primary.node.to_string());
                    return forgot;
                }
            }
        }
        if since.elapsed() >= WATCH {
            return forgot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use outlive_cluster::Backup;

    use super::*;

    fn holder(number: u128, node: &str) -> Holder {
        Holder { incarnation: Incarnation(number), node: node.parse().unwrap() }
    }

    fn register() -> Register {
        let backup = |number, node, stopped_at| Backup { holder: holder(number, node), stopped_at };
        let backups = vec![backup(2, "b", None), backup(3, "c", Some(9))];
        let holding = Holding::Held { primary: holder(1, "a"), backups, needed: 1 };
        Register { version: 5, generation: 3, holding, seeds_version: 1 }
    }

    fn config() -> Config {
        let cluster = crate::testing::Cluster::new();
        let nodes = ["a", "b", "c"]
            .map(|name| crate::Node { name: name.into(), address: crate::testing::free_address() });
        cluster.config("items", &nodes[2], &nodes)
    }

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_primary_is_named_too_and_only_who_is_in_the_register() {
        let (config, register) = (config(), register());
        let both = named(&config, &register, &nodes(&["a", "b"])).unwrap();
        assert_eq!(both, [holder(1, "a"), holder(2, "b")]);
        let dead = vec![Incarnation(2)];
        let expected = Transition::Forget { generation: 3, primary: Incarnation(1), dead };
        assert_eq!(word(&register, &both), expected);
        let said = named(&config, &register, &nodes(&["b"])).unwrap_err().to_string();
        assert!(said.contains("`outlive replicated forget CONFIG a b`"), "{said}");
        let said = named(&config, &register, &nodes(&["a", "d"])).unwrap_err().to_string();
        assert!(said.starts_with("d holds nothing of items (generation 3"), "{said}");
        // Once it is forgotten it need not be named again.
        let orphaned = Register::apply(Some(&register), &expected).unwrap();
        assert!(named(&config, &orphaned, &nodes(&["b"])).is_ok());
        let stopped = Register { holding: Holding::Tombstone, ..register };
        let not_held = ForgetError::NotHeld("items".into());
        assert_eq!(named(&config, &stopped, &nodes(&["a"])), Err(not_held));
    }

    #[test]
    fn who_answers_with_its_state_lives_and_another_life_does_not_count() {
        let named = holder(2, "b");
        let holds = |incarnation: Option<u128>| Life::Holds {
            role: "backup".into(),
            incarnation: incarnation.map(Incarnation),
        };
        assert_eq!(is_dead(&named, Life::Silent), Ok(()));
        assert_eq!(is_dead(&named, holds(None)), Ok(()));
        assert_eq!(is_dead(&named, holds(Some(7))), Ok(()));
        let lives = ForgetError::Lives { node: "b".into(), role: "backup".into() };
        assert_eq!(is_dead(&named, holds(Some(2))), Err(lives));
        assert!(matches!(is_dead(&named, Life::Unclear("?".into())), Err(ForgetError::Answers { .. })));
    }

    #[test]
    fn whoever_closes_the_connection_is_not_taken_for_dead() {
        let config = config();
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // As a process does that has taken in as many as it can.
        thread::spawn(move || listener.incoming().for_each(drop));
        let life = Life::of(ask(&config, "b", address));
        assert!(matches!(life, Life::Unclear(_)), "{life:?}");
        // Neither does one that says something, but not in TLS.
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let _ = socket.write_all(b"220 ready\r\n");
                let _ = socket.read_to_end(&mut Vec::new());
            }
        });
        let life = Life::of(ask(&config, "b", address));
        assert!(matches!(life, Life::Unclear(_)), "{life:?}");
    }

    #[test]
    fn nobody_at_an_address_and_a_process_that_stands_still_are_silent() {
        let config = config();
        let nobody = crate::testing::free_address();
        assert_eq!(Life::of(ask(&config, "b", nobody)), Life::Silent);
        // The kernel takes connections in for a process that is stopped.
        let stopped = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(Life::of(ask(&config, "b", stopped.local_addr().unwrap())), Life::Silent);
    }

    #[test]
    fn a_word_that_is_refused_after_it_may_have_been_granted_is_not_said_to_be_refused() {
        let (first, named) = (register(), [holder(1, "a"), holder(2, "b")]);
        let asked = word(&first, &named);
        let orphaned = Register::apply(Some(&first), &asked).unwrap();
        let goes_on = Transition::GoOn { by: Incarnation(3), seen: orphaned.version };
        let after = Register::apply(Some(&orphaned), &goes_on).unwrap();
        let refused = Register::apply(Some(&after), &asked).unwrap_err();
        let forgotten = Forgotten { nodes: nodes(&["a", "b"]), lost_at_most: None };
        let told = |node: &str| {
            assert_eq!(node, "c");
            Some(forgotten.clone())
        };
        let forgot = Forgot {
            generation: orphaned.generation,
            forgotten: forgotten.clone(),
            left: vec![("c".into(), Some(9))],
            goes_on: Some("c".into()),
        };
        assert_eq!(refused_again(&first, &named, &refused, told), Ok(forgot));
        // It took over by itself, or says nothing.
        let unknown = Err(ForgetError::Unknown(refused.to_string()));
        assert_eq!(refused_again(&first, &named, &refused, |_| None), unknown);

        let nobody =
            |_: &str| -> Option<Forgotten> { panic!("nobody is asked who did not go on by this word") };
        let another = Register { holding: Holding::of(holder(7, "c"), None), ..after.clone() };
        let dead = Register { holding: Holding::of(holder(2, "b"), None), ..after.clone() };
        let stopped = Register { holding: Holding::Tombstone, ..after };
        for current in [another, dead, stopped] {
            let refused = Register::apply(Some(&current), &asked).unwrap_err();
            let unknown = Err(ForgetError::Unknown(refused.to_string()));
            assert_eq!(refused_again(&first, &named, &refused, nobody), unknown, "{current}");
        }
    }

    #[test]
    fn what_is_lost_is_said() {
        let said = |lost_at_most| Forgotten { nodes: nodes(&["a", "b"]), lost_at_most }.to_string();
        assert_eq!(said(Some(5)), "without a, b: at most 5 acknowledged commits are lost");
        assert_eq!(said(Some(0)), "without a, b: nothing that was acknowledged is lost");
        assert!(said(None).ends_with("nobody knows how many"));
    }
}
