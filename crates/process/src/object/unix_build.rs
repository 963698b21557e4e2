//! Unix sockets made again, by a thread that sees the file system and the network as the workload does: an address is
//! kept by the kernel exactly as it was given to `bind`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use super::descriptor::{BuildContext, Object};
use super::unix::{
    Message, Name, OPTIONS, PASSES_CREDENTIALS, PASSES_PIDFD, Role, SO_PASSRIGHTS, Sender, UnixSocket,
    directory_of, has_parent_steps,
};
use super::unix_actor::{self, Carried, Stage};
use crate::checkpoint::ObjectId;
use crate::error::{Attempt, Error, Result};
use crate::sys::descriptor as sys;

/// What a message costs of a send buffer beside its bytes: `struct sk_buff` with its shared info and rounding up to a
/// power of two (`SKB_TRUESIZE` in include/linux/skbuff.h), generously.
const MESSAGE_OVERHEAD: usize = 4096;

pub(super) fn build(id: ObjectId, object: &UnixSocket, context: &mut BuildContext<'_>) -> Result<OwnedFd> {
    check_place(object, context)?;
    let carries = carried(object, context)?;
    match object.role {
        Role::Connected { peer } => build_connected(id, object, peer, context, carries)?,
        // Its listener makes all that wait, in their order.
        Role::Waiting { listener, .. } => {
            if !matches!(unix_object(context, listener)?.role, Role::Listening { .. }) {
                return Err(Error::Mismatch(format!("unix socket {} waits for no listener", id.0)));
            }
            context.build(listener)?;
            return context.take(id);
        }
        Role::Listening { backlog, ref waiting } => build_listener(object, backlog, waiting, context)?,
        Role::Sending { peer } => {
            let server_object = unix_object(context, peer)?;
            let Some(name) = server_object.name.as_ref().filter(|_| server_object.role == Role::Unconnected)
            else {
                return Err(Error::Mismatch(format!("socket {} sends to one that is no server", id.0)));
            };
            context.build(peer)?;
            let server = context.get(peer);
            let senders = built_datagrams(context);
            in_workload(context, carries, |stage| {
                let fd = sys::unix_socket(object.kind)?;
                with_name(object, &fd, || fill_by_name(stage, object, server, &senders))?;
                told_from(server_object, || sys::unix_connect(fd.as_fd(), &name.address()))?;
                finish(object, fd)
            })
        }
        Role::Unconnected => {
            let senders = built_datagrams(context);
            in_workload(context, carries, |stage| {
                let fd = sys::unix_socket(object.kind)?;
                with_name(object, &fd, || fill_by_name(stage, object, None, &senders))?;
                finish(object, fd)
            })
        }
        Role::Orphan { reset } => in_workload(context, carries, |stage| {
            let (fd, gone) = match (&object.name, object.kind) {
                (Some(name), libc::SOCK_STREAM | libc::SOCK_SEQPACKET) => {
                    let (accepted, client) = connect_by_name(stage, object, name, None, None)?;
                    (accepted, client)
                }
                _ => stage.pair(object.credentials.as_ref(), object.kind)?,
            };
            if object.kind == libc::SOCK_DGRAM {
                with_name(object, &fd, || Ok(()))?;
            }
            fill(stage, object, gone.as_fd())?;
            if reset {
                sys::send(fd.as_fd(), b"!", None, &sys::Attached::default())?;
            }
            drop(gone);
            finish(object, fd)
        }),
    }
    .attempt(|| format!("make unix socket {} again", id.0))
}

fn unix_object<'a>(context: &BuildContext<'a>, id: ObjectId) -> Result<&'a UnixSocket> {
    match context.object(id)? {
        Object::Unix(object) => Ok(object),
        _ => Err(Error::Mismatch(format!("object {} is not the unix socket it should be", id.0))),
    }
}

/// Named datagram sockets that have been built.
fn built_datagrams<'a>(context: &'a BuildContext<'_>) -> Vec<(&'a Name, BorrowedFd<'a>)> {
    let named = |id: ObjectId| {
        let object = unix_object(context, id).ok().filter(|object| object.kind == libc::SOCK_DGRAM)?;
        Some((object.name.as_ref()?, context.get(id)?))
    };
    context.built_ids().filter_map(named).collect()
}

/// Makes a listener, and those who wait to be accepted, who are given to the context.
fn build_listener(
    object: &UnixSocket,
    backlog: u32,
    waiting: &[ObjectId],
    context: &mut BuildContext<'_>,
) -> Result<io::Result<OwnedFd>> {
    let mut clients = Vec::new();
    for id in waiting {
        let client = unix_object(context, *id)?;
        check_place(client, context)?;
        let Role::Waiting { caller, said, .. } = &client.role else {
            return Err(Error::Mismatch(format!("unix socket {} waits for nobody to accept it", id.0)));
        };
        if client.kind != object.kind || context.is_built(*id) || object.name.is_none() {
            return Err(Error::Mismatch(format!("unix socket {} cannot wait to be accepted", id.0)));
        }
        clients.push((*id, client, caller, said));
    }
    let made = in_workload(context, Carried::new(), |stage| {
        let fd = sys::unix_socket(object.kind)?;
        let address = object.name.as_ref().map(Name::address).unwrap_or_default();
        let mut connected = Vec::new();
        with_name(object, &fd, || {
            let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
            stage.listen(object.credentials.as_ref(), fd.as_fd(), backlog)
        })?;
        // Those who connect have it from their listener (`unix_stream_connect`, net/unix/af_unix.c).
        for passes in [PASSES_CREDENTIALS, PASSES_PIDFD] {
            if object.options[passes] != 0 {
                sys::set_socket_option(fd.as_fd(), OPTIONS[passes], 1)?;
            }
        }
        for (id, client, caller, said) in &clients {
            let connecting = named_client(object.kind, Some(client))?;
            told_from(object, || stage.connect(Some(caller), connecting.as_fd(), &address))?;
            widen(said, connecting.as_fd())?;
            said.iter().try_for_each(|message| put(stage, connecting.as_fd(), message, None, object.kind))?;
            connected.push((*id, finish(client, connecting)?));
        }
        Ok((finish(object, fd)?, connected))
    });
    Ok(made.map(|(fd, connected)| {
        connected.into_iter().for_each(|(id, fd)| context.insert(id, fd));
        fd
    }))
}

/// A socket that is about to connect, bound to its name; not waiting for a listener whose queue is full.
fn named_client(kind: i32, client: Option<&UnixSocket>) -> io::Result<OwnedFd> {
    let connecting = sys::unix_socket(kind | libc::SOCK_NONBLOCK)?;
    if let Some(client) = client {
        told_from(client, || match &client.name {
            Some(Name::Path(path)) => {
                while_free(path, || sys::unix_bind(connecting.as_fd(), path.as_bytes()))
            }
            Some(name) => sys::unix_bind(connecting.as_fd(), &name.address()),
            None => Ok(()),
        })?;
    }
    Ok(connecting)
}

/// Makes both ends; the peer is given to the context.
fn build_connected(
    id: ObjectId,
    object: &UnixSocket,
    peer_id: ObjectId,
    context: &mut BuildContext<'_>,
    mut carries: Carried,
) -> Result<io::Result<OwnedFd>> {
    let peer = unix_object(context, peer_id)?;
    check_place(peer, context)?;
    carries.extend(carried(peer, context)?);
    let mutual = peer.role == Role::Connected { peer: id } && peer.kind == object.kind && id != peer_id;
    if !mutual || context.is_built(peer_id) {
        return Err(Error::Mismatch(format!("unix sockets {} and {} are no pair", id.0, peer_id.0)));
    }
    // An abstract name may be taken by a listener that has been built; then that one accepts the connection.
    let listener = |name: &Option<Name>| {
        let is_listener = |id: &ObjectId| {
            unix_object(context, *id).is_ok_and(|other| {
                other.name == *name
                    && other.kind == object.kind
                    && matches!(other.role, Role::Listening { .. })
            })
        };
        context.built_ids().find(is_listener).and_then(|id| context.get(id))
    };
    let (own_listener, other_listener) = (listener(&object.name), listener(&peer.name));
    let made = in_workload(context, carries, |stage| {
        let (own, other) = match (&object.name, &peer.name) {
            (None, None) => stage.pair(object.credentials.as_ref(), object.kind)?,
            (Some(_), Some(name)) if object.kind == libc::SOCK_DGRAM => {
                let (own, other) = (sys::unix_socket(object.kind)?, sys::unix_socket(object.kind)?);
                with_name(object, &own, || Ok(()))?;
                with_name(peer, &other, || Ok(()))?;
                told_from(peer, || sys::unix_connect(own.as_fd(), &name.address()))?;
                let back = object.name.as_ref().map(Name::address).unwrap_or_default();
                told_from(object, || sys::unix_connect(other.as_fd(), &back))?;
                (own, other)
            }
            (Some(name), _) => connect_by_name(stage, object, name, Some(peer), own_listener)?,
            (None, Some(name)) => {
                let (accepted, client) = connect_by_name(stage, peer, name, Some(object), other_listener)?;
                (client, accepted)
            }
        };
        fill(stage, object, other.as_fd())?;
        fill(stage, peer, own.as_fd())?;
        Ok((finish(object, own)?, finish(peer, other)?))
    });
    Ok(made.map(|(own, other)| {
        context.insert(peer_id, other);
        own
    }))
}

/// A path is one of a directory whose contents are the workload's.
fn check_place(object: &UnixSocket, context: &BuildContext<'_>) -> Result<()> {
    let Some(Name::Path(path)) = &object.name else { return Ok(()) };
    let place = directory_of(&context.root, &object.from, path);
    let kept = place.is_ok_and(|(_, shown)| context.surroundings.is_scratch(&shown));
    if !kept || has_parent_steps(path) || has_parent_steps(&object.from) || !object.from.starts_with('/') {
        return Err(Error::Mismatch(format!("the unix socket {path} is in no scratch directory")));
    }
    Ok(())
}

/// Does something where the path of a socket leads to it. Not within another of this: places are told from the workload's root.
fn told_from<T>(object: &UnixSocket, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match &object.name {
        Some(Name::Path(path)) if !path.starts_with('/') => {
            nix::unistd::chdir(object.from.as_str())?;
            let result = work();
            nix::unistd::chdir("/")?;
            result
        }
        Some(Name::Path(_)) if object.from != "/" => {
            let top = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            nix::unistd::chroot(object.from.as_str())?;
            nix::unistd::chdir("/")?;
            let result = work();
            nix::unistd::fchdir(&top)?;
            nix::unistd::chroot(".")?;
            result
        }
        _ => work(),
    }
}

/// What is in flight in the queue of a socket, built.
fn carried(object: &UnixSocket, context: &mut BuildContext<'_>) -> Result<Carried> {
    let mut built = HashMap::new();
    for id in object.queue.iter().flat_map(|message| &message.descriptors) {
        let fd = context.build(*id)?.try_clone_to_owned();
        built.insert(*id, fd.attempt(|| "duplicate a descriptor".to_owned())?);
    }
    Ok(built)
}

/// Runs something in a thread whose root and network are the workload's.
fn in_workload<T: Send>(
    context: &BuildContext<'_>,
    carried: Carried,
    work: impl FnOnce(&Stage) -> io::Result<T> + Send,
) -> io::Result<T> {
    let (stage, prompter) = unix_actor::stage(context.actors, carried);
    let root: &Path = &context.root;
    let network = context.surroundings.network.as_ref().map(AsFd::as_fd);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // Threads share their root with the process; this one stops to.
            unshare(CloneFlags::CLONE_FS)?;
            if let Some(network) = network {
                setns(network, CloneFlags::CLONE_NEWNET)?;
            }
            nix::unistd::chroot(root)?;
            nix::unistd::chdir("/")?;
            work(&stage)
        });
        // Until the thread has gone, and with it the stage.
        prompter.serve();
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes unix sockets died")))
    })
}

/// Binds a socket to its name, if it has one, and does something while the name can be reached.
fn with_name(object: &UnixSocket, fd: &OwnedFd, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    told_from(object, || match (&object.name, &object.node) {
        (None, _) => work(),
        (Some(name @ Name::Abstract(_)), _) => {
            sys::unix_bind(fd.as_fd(), &name.address())?;
            work()
        }
        (Some(Name::Path(path)), Some(node)) => {
            // A node without a socket, as the scratch directories have it.
            if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                fs::remove_file(path)?;
            }
            sys::unix_bind(fd.as_fd(), path.as_bytes())?;
            chown(path, Some(node.owner.0), Some(node.owner.1))?;
            fs::set_permissions(path, fs::Permissions::from_mode(node.mode & 0o7777))?;
            work()
        }
        // Its node was removed, or replaced by something else.
        (Some(Name::Path(path)), None) => while_free(path, || {
            sys::unix_bind(fd.as_fd(), path.as_bytes())?;
            work()
        }),
    })
}

/// Does something that makes a node at `path`, which is afterwards as it was.
fn while_free<T>(path: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let aside = format!("{path}.outlive");
    let taken = fs::symlink_metadata(path).is_ok();
    if taken {
        if fs::symlink_metadata(&aside).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{aside} is in the way")));
        }
        fs::rename(path, &aside)?;
    }
    let result = work();
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    if taken {
        fs::rename(&aside, path)?;
    }
    result
}

/// A connection between a socket `accepted` under `name` and one that is bound to `client`'s, in this order.
fn connect_by_name(
    stage: &Stage,
    accepted: &UnixSocket,
    name: &Name,
    client: Option<&UnixSocket>,
    listener: Option<BorrowedFd<'_>>,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let connecting = named_client(accepted.kind, client)?;
    // The accepted end tells of who has connected, the other of who has listened.
    let (caller, server) =
        (accepted.credentials.as_ref(), client.and_then(|client| client.credentials.as_ref()));
    let connect = |listener: BorrowedFd<'_>| {
        stage.connect(caller, connecting.as_fd(), &name.address())?;
        sys::accept(listener)
    };
    let fd = match (name, listener) {
        (Name::Abstract(_), Some(listener)) => connect(listener)?,
        _ => {
            let temporary = sys::unix_socket(accepted.kind)?;
            let bound = || {
                sys::unix_bind(temporary.as_fd(), &name.address())?;
                stage.listen(server, temporary.as_fd(), 1)?;
                connect(temporary.as_fd())
            };
            told_from(accepted, || match name {
                Name::Path(path) => while_free(path, bound),
                Name::Abstract(_) => bound(),
            })?
        }
    };
    Ok((fd, connecting))
}

/// Puts back what waited in a connected socket, through its peer.
fn fill(stage: &Stage, object: &UnixSocket, through: BorrowedFd<'_>) -> io::Result<()> {
    widen(&object.queue, through)?;
    object.queue.iter().try_for_each(|message| put(stage, through, message, None, object.kind))
}

/// Puts back what waited in a datagram socket that is reached by its name.
fn fill_by_name(
    stage: &Stage,
    object: &UnixSocket,
    peer: Option<BorrowedFd<'_>>,
    senders: &[(&Name, BorrowedFd<'_>)],
) -> io::Result<()> {
    if object.queue.is_empty() {
        return Ok(());
    }
    let name = object.name.as_ref().map(Name::address);
    let name = name.ok_or_else(|| io::Error::other("there are datagrams for a socket without a name"))?;
    let nobody = sys::unix_socket(object.kind)?;
    widen(&object.queue, nobody.as_fd())?;
    let send = |from: BorrowedFd<'_>, message: &Message| put(stage, from, message, Some(&name), object.kind);
    for message in &object.queue {
        match (&message.sender, peer) {
            (Sender::Unnamed, _) => send(nobody.as_fd(), message)?,
            (Sender::Peer, Some(peer)) => send(peer, message)?,
            (Sender::Peer, None) => return Err(io::Error::other("the sender of a datagram is not there")),
            // One that has its name while it sends: the message keeps that. An abstract one may be taken by its owner already.
            (Sender::Other(name), _) => {
                let owner = senders.iter().find(|(of, _)| *of == name && matches!(of, Name::Abstract(_)));
                if let Some((_, owner)) = owner {
                    send(*owner, message)?;
                    continue;
                }
                let other = sys::unix_socket(object.kind)?;
                widen(std::slice::from_ref(message), other.as_fd())?;
                let bind = || {
                    sys::unix_bind(other.as_fd(), &name.address())?;
                    send(other.as_fd(), message)
                };
                match name {
                    Name::Path(path) => while_free(path, bind)?,
                    Name::Abstract(_) => bind()?,
                }
            }
        }
    }
    Ok(())
}

/// Makes the send buffer large enough. [`finish`] makes it as it was.
fn widen(queue: &[Message], through: BorrowedFd<'_>) -> io::Result<()> {
    let needed: usize = queue.iter().map(|message| 2 * message.bytes.len() + MESSAGE_OVERHEAD).sum();
    let needed = i32::try_from(needed).map_err(io::Error::other)?;
    if needed > sys::socket_option(through, libc::SO_SNDBUF)? {
        sys::set_socket_option(through, libc::SO_SNDBUFFORCE, needed)?;
    }
    Ok(())
}

fn put(
    stage: &Stage,
    through: BorrowedFd<'_>,
    message: &Message,
    to: Option<&[u8]>,
    kind: i32,
) -> io::Result<()> {
    let credentials = message.credentials.as_ref().map(|who| stage.as_seen_here(who));
    let mut attached = sys::Attached { credentials, descriptors: stage.carried(&message.descriptors)? };
    let mut rest = message.bytes.as_slice();
    loop {
        let sent = sys::send(through, rest, to, &attached)?;
        attached.descriptors.clear();
        rest = &rest[sent.min(rest.len())..];
        if rest.is_empty() {
            return Ok(());
        }
        if kind != libc::SOCK_STREAM || sent == 0 {
            return Err(io::Error::other(format!("{} bytes of a message did not fit", rest.len())));
        }
    }
}

/// Everything but the connection and the queue.
fn finish(object: &UnixSocket, fd: OwnedFd) -> io::Result<OwnedFd> {
    for (name, value) in OPTIONS.into_iter().zip(object.options) {
        match name {
            // The kernel keeps, and tells, twice of what it is given; beyond the limits only by force.
            libc::SO_SNDBUF => sys::set_socket_option(fd.as_fd(), libc::SO_SNDBUFFORCE, value / 2)?,
            libc::SO_RCVBUF => sys::set_socket_option(fd.as_fd(), libc::SO_RCVBUFFORCE, value / 2)?,
            SO_PASSRIGHTS if value != 0 => {}
            name if sys::socket_option(fd.as_fd(), name)? != value => {
                sys::set_socket_option(fd.as_fd(), name, value)?
            }
            _ => {}
        }
    }
    for (name, value) in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO].into_iter().zip(object.timeouts) {
        if value != 0 {
            sys::set_socket_timeout(fd.as_fd(), name, value)?;
        }
    }
    // The peer of an orphaned connection has seen to it by closing.
    let done = matches!(object.role, Role::Orphan { .. }) && object.kind != libc::SOCK_DGRAM;
    if object.shutdown != 0 && !done {
        // SHUT_RD is 0, SHUT_WR 1, SHUT_RDWR 2; the kernel's mask is one more.
        sys::shutdown(fd.as_fd(), i32::from(object.shutdown.min(3)) - 1)?;
    }
    sys::set_status_flags(fd.as_fd(), object.flags.0 & libc::O_NONBLOCK)?;
    Ok(fd)
}
