//! Building the kernel objects of a shell before it comes to life: sockets first, silently, then everything else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use outlive_fault::{Point, point};

use crate::acting::Troupe;
use crate::activate::Built;
use crate::checkpoint::{Object, ObjectId, Pid};
use crate::descriptors::as_socket;
use crate::error::{Attempt, Error, Result};
use crate::object::descriptor::BuildContext;
use crate::object::file::FileHashes;
use crate::object::mqueue;
use crate::object::pidfd::{self, PidFd};
use crate::object::sysv;
use crate::object::tcp::{self, Connection, Injector, PeerAck, RawSegment, Restored, State, TcpSocket};
use crate::object::unix::Role;
use crate::shell::{Shell, run_in};
use crate::standing_in::StandIns;
use crate::sys::datagram::canonical;
use crate::sys::remote::Batch;
use crate::sys::task;

/// A connection whose peer can be asked what it has received.
#[derive(Debug, Clone)]
pub struct Asked {
    pub object: ObjectId,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub snd_una: u32,
    pub rcv_nxt: u32,
    /// As in the header: scaled.
    pub window: u16,
    pub timestamp: Option<u32>,
}

/// Sockets that are built and still silent.
#[derive(Default)]
pub struct Silent {
    sockets: Vec<(ObjectId, Restored, TcpSocket)>,
    /// Segments to be delivered to the workload's kernel, as from its peers, before anything goes live.
    inject: Vec<RawSegment>,
    stand_ins: StandIns,
}

impl Silent {
    /// Brings the sockets into their states and lets them speak. The calling thread is in the workload's network
    /// namespace.
    pub fn go_live(&self) -> Result<()> {
        let mut injector = Injector::new();
        let mut deliver = |segment: &RawSegment| {
            let refused =
                |error: tcp::Error| Error::Mismatch(format!("a segment could not be delivered: {error}"));
            injector.inject(segment).map_err(refused)
        };
        self.inject.iter().try_for_each(&mut deliver)?;
        for (id, restored, socket) in &self.sockets {
            let after = restored.go_live(socket).map_err(|error| unbuilt(*id, &error))?;
            after.iter().try_for_each(&mut deliver)?;
            restored.finish(socket).map_err(|error| unbuilt(*id, &error))?;
        }
        self.stand_ins.remove()
    }
}

fn unbuilt(id: ObjectId, error: &tcp::Error) -> Error {
    Error::Mismatch(format!("TCP socket {} could not be rebuilt: {error}", id.0))
}

impl Shell {
    fn sockets(&self) -> impl Iterator<Item = (ObjectId, &TcpSocket)> {
        self.objects.iter().filter_map(|(id, object)| Some((*id, as_socket(object)?)))
    }

    fn connections(&self) -> impl Iterator<Item = (ObjectId, &TcpSocket, &Connection)> {
        self.sockets().filter_map(|(id, socket)| match &socket.state {
            State::Connected(connection) => Some((id, socket, &**connection)),
            _ => None,
        })
    }

    /// Connections to other hosts. (The two ends of one within the workload know of each other.)
    pub fn to_be_asked(&self) -> Vec<Asked> {
        let ends: HashMap<(SocketAddr, SocketAddr), ()> = self
            .connections()
            .map(|(_, socket, connection)| ((canonical(socket.local), canonical(connection.remote)), ()))
            .collect();
        self.connections()
            .filter(|(_, socket, connection)| {
                !ends.contains_key(&(canonical(connection.remote), canonical(socket.local)))
            })
            .map(|(object, socket, connection)| {
                let window = &connection.window;
                let room = window.rcv_wup.wrapping_add(window.rcv_wnd).wrapping_sub(connection.rcv_nxt);
                let scale = connection.window_scales.map_or(0, |(_, own)| own.min(14));
                Asked {
                    object,
                    local: canonical(socket.local),
                    remote: canonical(connection.remote),
                    snd_una: connection.snd_una,
                    rcv_nxt: connection.rcv_nxt,
                    window: u16::try_from(room >> scale).unwrap_or(u16::MAX),
                    timestamp: connection.timestamp,
                }
            })
            .collect()
    }

    /// For what the workload has taken from its connections.
    fn stand_in(&self) -> Result<StandIns> {
        if self.network == self.plain {
            return Ok(StandIns::default());
        }
        let connections = self.connections().map(|(_, socket, connection)| (socket.local, connection.remote));
        let connected = self.objects.values().filter_map(|object| match object {
            Object::Datagram(datagram) => datagram.ends(),
            _ => None,
        });
        let ends = connections.chain(connected);
        StandIns::make(
            &self.network,
            ends.map(|(local, remote)| (canonical(local).ip(), canonical(remote).ip())),
        )
    }

    /// Builds every kernel object that a descriptor refers to. The calling thread is in the workload's network namespace.
    pub fn build(&self, answers: &HashMap<ObjectId, PeerAck>) -> Result<(Built, Silent)> {
        let ends: HashMap<(SocketAddr, SocketAddr), &Connection> = self
            .connections()
            .map(|(_, socket, connection)| {
                ((canonical(socket.local), canonical(connection.remote)), connection)
            })
            .collect();
        let mut builder = tcp::Builder::new();
        let mut silent = Silent { stand_ins: self.stand_in()?, ..Silent::default() };
        let mut built = Built::default();
        let mut list: Vec<(ObjectId, &TcpSocket)> = self.sockets().collect();
        // Listeners hold the ports that their connections share with them.
        list.sort_by_key(|(id, socket)| (!matches!(socket.state, State::Listening { .. }), *id));
        for (id, socket) in list {
            let peer = match &socket.state {
                State::Connected(connection) => {
                    let other = ends.get(&(canonical(connection.remote), canonical(socket.local)));
                    match (other, answers.get(&id)) {
                        (Some(other), _) => PeerAck::of_other_end(other),
                        (None, Some(answer)) => *answer,
                        (None, None) => PeerAck::Unknown,
                    }
                }
                _ => PeerAck::Unknown,
            };
            let mut restored = builder.restore(socket, peer).map_err(|error| unbuilt(id, &error))?;
            silent.inject.append(&mut restored.inject);
            if let Some(Object::Tcp(tcp)) = self.objects.get(&id) {
                tcp.flags.restore(restored.fd.as_fd())?;
            }
            let fd = restored.fd.try_clone().attempt(|| "duplicate a socket".into())?;
            built.descriptors.insert(id, fd);
            silent.sockets.push((id, restored, socket.clone()));
            point(Point::TakeoverHalfBuilt);
        }
        if let Some(objects) = &self.ipc {
            let operate = |pid: Pid, id: i32, operations: &[u8], count: usize| {
                let process = self.processes.get(&pid);
                let process =
                    process.ok_or_else(|| Error::Mismatch(format!("process {pid} is not in the shell")))?;
                let mut batch = Batch::new();
                let at = batch.bytes(operations);
                batch.call(libc::SYS_semop, &[id as u64, at, count as u64]);
                run_in(process, &mut batch).map(drop)
            };
            sysv::restore(self.container.init, objects, &operate)?;
        }
        let queues = mqueue::restore(self.container.init, self.queues.as_deref().unwrap_or_default())?;
        for (id, object) in &self.objects {
            if let Object::Queue(end) = object {
                built.descriptors.insert(*id, mqueue::build(end, &queues)?);
            }
        }
        self.build_others(&mut built)?;
        Ok((built, silent))
    }

    fn build_others(&self, built: &mut Built) -> Result<()> {
        let lookup = |id: ObjectId| self.objects.get(&id);
        let mut hashes = FileHashes::new();
        let troupe = Troupe { processes: &self.processes, channel: &self.container.channel };
        let outputs = self.outputs.each_ref().map(|end| end.as_ref().and_then(|end| end.try_clone().ok()));
        let mut context = BuildContext::new(self.root(), &self.surroundings, outputs, &lookup, &mut hashes);
        context.actors = Some(&troupe);
        for (key, file) in self.shared.open_files() {
            let fd = file.as_fd().try_clone_to_owned().attempt(|| "duplicate a memfd".into())?;
            context.insert_file(key, fd);
        }
        for (id, fd) in &built.descriptors {
            context.insert(*id, fd.try_clone().attempt(|| "duplicate a socket".into())?);
        }
        for (id, fd) in self.build_terminals()? {
            context.insert(id, fd);
        }
        let pidfds = self.objects.iter().filter_map(|(id, object)| match object {
            Object::PidFd(object) => Some((*id, object)),
            _ => None,
        });
        for (id, object) in pidfds {
            context.insert(id, self.build_pidfd(object)?);
        }
        let mut wanted: Vec<ObjectId> = self
            .objects
            .iter()
            .filter(|(_, object)| {
                !matches!(object, Object::Tcp(_) | Object::Pipe(_) | Object::Terminal(_) | Object::Queue(_))
            })
            .map(|(id, _)| *id)
            .collect();
        // A connection is built by way of its listener's name: before those are there who have connected to that and wait.
        wanted.sort_by_key(|id| self.objects.get(id).is_some_and(is_not_accepted));
        for id in wanted {
            let fd = context.build(id)?.try_clone_to_owned().attempt(|| "duplicate a descriptor".into())?;
            built.descriptors.insert(id, fd);
        }
        Ok(())
    }

    fn build_pidfd(&self, object: &PidFd) -> Result<OwnedFd> {
        let init = self.container.init;
        let ours = task::pidfd_open(init).attempt(|| format!("refer to init, {init}"))?;
        pidfd::build(object, init, &self.init_memory, ours.as_fd())
    }

    /// Duplicates of connections that the workload had closed: the new primary goes on holding them.
    pub(crate) fn orphans_of(&self, built: &Built) -> Vec<OwnedFd> {
        self.orphans.iter().filter_map(|id| built.descriptors.get(id)?.try_clone().ok()).collect()
    }
}

/// A listener that has not accepted everybody, or one of these.
fn is_not_accepted(object: &Object) -> bool {
    let Object::Unix(socket) = object else { return false };
    match &socket.role {
        Role::Waiting { .. } => true,
        Role::Listening { waiting, .. } => !waiting.is_empty(),
        _ => false,
    }
}
