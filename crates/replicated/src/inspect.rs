//! How a live program is: asked of its processes over the link's own port, by whoever has a certificate of the cluster.

use std::net::SocketAddr;

use outlive_stream::connection::Connection;
use outlive_stream::frame::KindSet;
use outlive_stream::hello::{Stream, VERSIONS};
use outlive_stream::tls::HandshakeError;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Node};
use crate::forget::Forgotten;
use crate::message::INSPECTED;
use crate::node::{BackupStatus, status_of};
use crate::protection::Stage;
use crate::rights::HANDSHAKE;
use crate::ship::Core;
use crate::store::Role;

/// One process of a program, as it says itself.
///
/// ```
/// use outlive_replicated::Inspection;
///
/// fn is_safe(primary: &Inspection) -> bool {
///     primary.role == "primary" && primary.backups.iter().any(|backup| backup.counts)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Its node.
    pub node: String,
    /// `primary`, `backup`, `deposed`, or `alone` before it is any of these.
    pub role: String,
    /// How it stands with its backups, as `Phase` names it; of the primary.
    pub phase: Option<String>,
    /// In which generation it speaks; 0 unless it is the primary.
    pub generation: u64,
    /// Its backups; of the primary.
    pub backups: Vec<InspectedBackup>,
    /// Objects: statics, what a `Ref` leads to, collections, handles.
    pub objects: u64,
    /// The last commit that is part of its state: made by the primary, applied by a backup.
    pub commit: u64,
    /// The last commit that may be acknowledged; of the primary.
    pub acknowledged: u64,
    /// Bytes of records that it has sent to backups, or got from its primary, since it began.
    pub bytes: u64,
    /// Replicated functions that fail on a backup, and what they say; of the primary.
    pub failing: Vec<String>,
    /// Whose state this process has, as the seed nodes name it: its own, of the life in which it is the primary or began to
    /// get its last copy; `None` before it is either.
    pub holds: Option<String>,
    /// Without whom it became the primary, if an operator said that they are dead, and what is lost with them.
    pub forgotten: Option<Forgotten>,
}

/// One backup, as its primary says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedBackup {
    /// Its node.
    pub node: String,
    /// `joining`, `sent` everything and has not confirmed it yet, or `complete`.
    pub stage: String,
    /// Whether the seed nodes know that it may take over.
    pub counts: bool,
    /// How many commits of the primary it has not confirmed; of a complete one.
    pub lag_commits: Option<u64>,
    /// Bytes of records that it has not confirmed.
    pub unacknowledged_bytes: u64,
    /// For how long the oldest of them has been on its way, in µs; 0 if there are none.
    pub lag_us: u64,
}

/// Why a process did not say how it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotInspected(String);

/// What the connection is for.
pub(crate) fn purpose(program: &str) -> String {
    format!("inspect:{program}")
}

/// Whoever asks says nothing more.
pub(crate) const FROM_INSPECTOR: KindSet = KindSet::none();
const FROM_INSPECTED: KindSet = KindSet::of(&[INSPECTED]);

pub(crate) fn inspection(core: &Core) -> Inspection {
    let status = status_of(core);
    let state = core.state();
    let shipped = state.shipped;
    let (holds, forgotten) = (state.holds.map(|holds| holds.to_string()), state.forgotten.clone());
    drop(state);
    let role = match status.role {
        Role::Alone => "alone",
        Role::Backup => "backup",
        Role::Primary => "primary",
        Role::Deposed => "deposed",
    };
    let applied = core.applied();
    let is_backup = status.role == Role::Backup;
    Inspection {
        node: core.config.identity.node_name().to_owned(),
        role: role.into(),
        phase: status.phase.map(|phase| format!("{phase:?}")),
        generation: status.generation,
        backups: status.backups.iter().map(|backup| inspected(backup, status.last)).collect(),
        objects: core.store.objects() as u64,
        commit: if is_backup { applied.commit } else { status.last },
        acknowledged: status.acknowledged,
        bytes: if is_backup { applied.bytes } else { shipped },
        failing: status.failing,
        holds,
        forgotten,
    }
}

fn inspected(backup: &BackupStatus, last: u64) -> InspectedBackup {
    let stage = match backup.stage {
        Stage::Joining => "joining",
        Stage::Sent(_) => "sent",
        Stage::Complete => "complete",
        Stage::Lost => "lost",
    };
    let complete = backup.stage == Stage::Complete;
    InspectedBackup {
        node: backup.node.clone(),
        stage: stage.into(),
        counts: backup.counts,
        lag_commits: complete.then(|| last.saturating_sub(backup.held)),
        unacknowledged_bytes: backup.unacknowledged as u64,
        lag_us: u64::try_from(backup.lag.as_micros()).unwrap_or(u64::MAX),
    }
}

/// Asks every process in a configuration, its own among them, how it is.
///
/// ```no_run
/// use outlive_replicated::{Config, inspect};
///
/// for (node, inspection) in inspect(&Config::load(std::path::Path::new("bank.toml"))?) {
///     println!("{}: {inspection:?}", node.name);
/// }
/// # Ok::<(), outlive_replicated::ConfigError>(())
/// ```
pub fn inspect(config: &Config) -> Vec<(Node, Result<Inspection, NotInspected>)> {
    let own = Node { name: config.identity.node_name().to_owned(), address: config.listen };
    let others = config.peers.iter().filter(|peer| peer.name != own.name).cloned();
    let all = std::iter::once(own.clone()).chain(others);
    all.map(|node| {
        let asked = match ask(config, &node.name, node.address) {
            Heard::Said(inspection) => Ok(inspection),
            Heard::Nothing(reason) | Heard::Unclear(reason) => Err(NotInspected(reason)),
        };
        (node, asked)
    })
    .collect()
}

/// What is heard of a process that is asked.
pub(crate) enum Heard {
    /// It does not answer: it is dead, or hangs, or cannot be reached from here.
    Nothing(String),
    /// Something answers there, and does not say how it is: it may be a process that lives.
    Unclear(String),
    Said(Inspection),
}

pub(crate) fn ask(config: &Config, node: &str, address: SocketAddr) -> Heard {
    let connection = match config.identity.connect(address, node, HANDSHAKE) {
        Ok(connection) => connection,
        Err(error @ (HandshakeError::Unreachable { .. } | HandshakeError::TimedOut { .. })) => {
            return Heard::Nothing(text(&error));
        }
        // Whoever closes a connection or shows a certificate that will not do is there.
        Err(error) => return Heard::Unclear(text(&error)),
    };
    match answer(config, connection) {
        Err(reason) => Heard::Unclear(reason),
        Ok(bytes) => match postcard::from_bytes(&bytes) {
            Ok(inspection) => Heard::Said(inspection),
            Err(_) => Heard::Unclear("it runs another version of this library".to_owned()),
        },
    }
}

fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn answer(config: &Config, connection: Connection) -> Result<Vec<u8>, String> {
    let purpose = purpose(config.name.as_str());
    let mut stream = Stream::open(connection, VERSIONS, &purpose, FROM_INSPECTED, HANDSHAKE)
        .map_err(|error| text(&error))?;
    stream.reader.get_mut().set_timeout(Some(HANDSHAKE)).map_err(|error| text(&error))?;
    let frame = stream.reader.next().map_err(|error| text(&error))?;
    Ok(frame.payload.to_vec())
}
