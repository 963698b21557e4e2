//! The primary's right to speak, and who may join it.
//!
//! What [`Protection`](crate::protection::Protection) wants to have asked is asked here, again and again until it is
//! settled: an unknown outcome means that nothing is acknowledged (R5).

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use outlive_cluster::{Holder, Outcome, Transition, Why};
use outlive_stream::hello::{Stream, VERSIONS};
use tracing::{info, warn};

use crate::inspect;
use crate::message::{FROM_BACKUP, HELLO, Hello, INSPECTED, READY, VERSION, WELCOME, Welcome};
use crate::protection::{MAX_BACKUPS, Protection};
use crate::ship::{AGAIN, Core};
use crate::transaction::CommitError;

/// A connection and its first words, within a data centre, with room for a loaded host.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// Backups that are saying who they are, at once.
const JOINING: usize = 16;

/// What a connection to a primary is for.
pub(crate) fn purpose(core: &Core) -> String {
    format!("replicated:{}", core.config.name)
}

/// For ever: asks the seed nodes what is to be asked.
pub(crate) fn arbitrate(core: &Core) {
    let mut state = core.state();
    loop {
        let Some(group) = state.protection.as_mut().and_then(Protection::ask) else {
            if state.over.is_some() {
                return;
            }
            core.asked.wait(&mut state);
            continue;
        };
        let named = state.feeds.iter().filter(|feed| group.backups.contains(&feed.link.number));
        let backups: Vec<Holder> = named.map(|feed| feed.backup.clone()).collect();
        let needed = u8::try_from(group.needed).unwrap_or(u8::MAX);
        let transition = Transition::Backups { by: state.me.incarnation, backups, needed };
        drop(state);
        let outcome = core.arbiter.ask(transition);
        state = core.state();
        match outcome {
            Outcome::Granted(register) => {
                info!(%register, "granted");
                if let Some(protection) = &mut state.protection {
                    protection.granted(group, register.generation);
                }
                state.wake();
            }
            Outcome::Refused(_) if state.over.is_some() => return,
            Outcome::Refused(refused) => match lost_by(&refused.why) {
                Some(why) => {
                    warn!(%refused, "this process has lost its place");
                    core.end(&mut state, why);
                    return;
                }
                // Still the primary, with the backups that it had: what needs others is not acknowledged.
                None => {
                    warn!(%refused, "the seed nodes refuse these backups");
                    parking_lot::MutexGuard::unlocked(&mut state, || thread::sleep(AGAIN));
                }
            },
            Outcome::NoMajority(why) | Outcome::Unknown(why) => {
                warn!(backups = group.backups.len(), %why, "the seed nodes do not answer: what needs their word is not acknowledged");
                parking_lot::MutexGuard::unlocked(&mut state, || thread::sleep(AGAIN));
            }
            Outcome::Read(_) => {}
        }
    }
}

/// How a primary's commits end that was refused something, if it is no longer the primary.
pub(crate) fn lost_by(refused: &Why) -> Option<CommitError> {
    match refused {
        Why::Stopped => Some(CommitError::Stopped),
        Why::NotPrimary(_) | Why::NeverCreated => Some(CommitError::Deposed),
        _ => None,
    }
}

/// For ever: takes in backups.
pub(crate) fn admit_all(core: &Arc<Core>, listener: &TcpListener) {
    let joining = Arc::new(AtomicUsize::new(0));
    for socket in listener.incoming().flatten() {
        if joining.fetch_add(1, Ordering::Relaxed) >= JOINING {
            joining.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (ours, theirs) = (Arc::clone(core), Arc::clone(&joining));
        let started = thread::Builder::new().name("replicated join".into()).spawn(move || {
            if let Err(reason) = admit(&ours, socket) {
                info!(reason, "nobody joins");
            }
            theirs.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            joining.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn admit(core: &Arc<Core>, socket: TcpStream) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let connection = core.config.identity.accept(socket, HANDSHAKE).map_err(|error| text(&error))?;
    let expected = purpose(core);
    let asked = inspect::purpose(core.config.name.as_str());
    let mut stream = Stream::answer(connection, VERSIONS, HANDSHAKE, |node, purpose| {
        if purpose == asked {
            return Ok(inspect::FROM_INSPECTOR);
        }
        if purpose != expected {
            return Err(format!("this is {expected:?}, not {purpose:?}"));
        }
        match core.config.peers.iter().any(|peer| peer.name == node) {
            true => Ok(FROM_BACKUP),
            false => Err(format!("{node} is not among the peers of {}", core.config.identity.node_name())),
        }
    })
    .map_err(|error| text(&error))?;
    if stream.purpose == asked {
        let bytes = postcard::to_stdvec(&inspect::inspection(core)).map_err(|error| text(&error))?;
        return stream.writer.send(INSPECTED, &[&bytes]).map_err(|error| text(&error));
    }
    stream.reader.get_mut().set_timeout(Some(HANDSHAKE)).map_err(|error| text(&error))?;
    let hello = stream.reader.next().map_err(|error| text(&error))?;
    if hello.kind != HELLO {
        return Err("a backup did not say who it is".into());
    }
    let hello: Hello = postcard::from_bytes(&hello.payload).map_err(|error| text(&error))?;
    if hello.backup.node.as_str() != stream.peer_node {
        return Err(format!("{} says that it is {}", stream.peer_node, hello.backup.node));
    }
    let welcome = welcome(core, &hello);
    let bytes = postcard::to_stdvec(&welcome).map_err(|error| text(&error))?;
    stream.writer.send(WELCOME, &[&bytes]).map_err(|error| text(&error))?;
    match welcome {
        Welcome::NotNow(reason) => return Err(reason),
        Welcome::OtherVersion(_) => return Err(format!("it speaks version {} of this link", hello.version)),
        Welcome::Joins { .. } => {}
    }
    let ready = stream.reader.next().map_err(|error| format!("it does not join: {error}"))?;
    if ready.kind != READY {
        return Err("a backup did not say that it is ready".into());
    }
    let backup = hello.backup;
    info!(%backup, "a backup joins");
    let link = core.join(stream, backup)?;
    core.store.images(|records| core.image(link, records));
    core.plug(link);
    Ok(())
}

fn welcome(core: &Core, hello: &Hello) -> Welcome {
    if hello.version != VERSION {
        return Welcome::OtherVersion(VERSION);
    }
    let state = core.state();
    let primary = state.me.clone();
    let may = match (&state.protection, &state.over) {
        (Some(protection), None) => may_join(protection).and_then(|()| state.may_be(&hello.backup)),
        _ => Err("this process is not the primary".into()),
    };
    drop(state);
    match may {
        Err(reason) => Welcome::NotNow(reason),
        Ok(()) => Welcome::Joins { version: VERSION, primary, schema: Box::new(core.store.schema()) },
    }
}

fn may_join(protection: &Protection) -> Result<(), String> {
    match protection.members().len() {
        MAX_BACKUPS.. => Err(format!("it has {MAX_BACKUPS} backups, as many as there may be")),
        _ => Ok(()),
    }
}
