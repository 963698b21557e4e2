//! The control socket: answers the command line. Only root, or a group, can open it.

use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::Gid;
use outlive_epoch::control as supervisor;
use tracing::{debug, warn};

use super::{Agent, host, membership, moves, rejoin, view};
use crate::control::{Reply, Request, read_line, write_line};
use crate::error::{Context, Failure, Result};
use crate::output_log::Tail;

/// Questions answered at once. A script that asks in parallel is served; a flood waits in the socket's backlog.
const CONNECTIONS: usize = 128;
const ROOM_POLL: Duration = Duration::from_millis(20);
/// The question must follow the connection at once.
const QUESTION: Duration = Duration::from_secs(5);
/// A command line that no longer reads is gone after this.
const WRITE: Duration = Duration::from_secs(30);
/// How often the end of a log is looked at for more.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// The socket, removed with this value.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl ControlSocket {
    /// Takes the place of a socket that an agent left behind, never of one that is answered.
    pub fn bind(path: &Path, group: Option<Gid>) -> Result<Self> {
        let shown = path.display();
        let what = || format!("make the control socket {shown}");
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(Failure::failed(format!(
                    "{shown} is in the way and no socket: move it, or set control_socket"
                )));
            }
            if UnixStream::connect(path).is_ok() {
                return Err(Failure::refused(format!("an agent already answers at {shown}: stop it first")));
            }
        }
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).or_failed(what)?;
        }
        // Under another name until its mode is right: nobody else may connect in between.
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}", std::process::id()));
        let new = PathBuf::from(new);
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).or_failed(what)?;
        let placed = (|| {
            let mode = if group.is_some() { 0o660 } else { 0o600 };
            chown(&new, None, group.map(Gid::as_raw))?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            fs::rename(&new, path)
        })();
        if placed.is_err() {
            let _ = fs::remove_file(&new);
        }
        placed.or_failed(what)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

/// Accepts questions for as long as the agent runs.
pub fn listen(agent: &Arc<Agent>, listener: &UnixListener) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        while open.load(Ordering::Relaxed) >= CONNECTIONS {
            thread::sleep(ROOM_POLL);
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a question could not be accepted");
                thread::sleep(ROOM_POLL);
                continue;
            }
        };
        open.fetch_add(1, Ordering::Relaxed);
        let (agent, counted) = (Arc::clone(agent), Arc::clone(&open));
        let spawned = thread::Builder::new().name("control".to_owned()).spawn(move || {
            if let Err(error) = answer(&agent, &stream) {
                debug!(%error, "a question was not answered to its end");
            }
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            open.fetch_sub(1, Ordering::Relaxed);
            warn!(%error, "no thread for a question");
        }
    }
}

fn answer(agent: &Arc<Agent>, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(QUESTION))?;
    stream.set_write_timeout(Some(WRITE))?;
    let request = match read_line::<Request>(&mut BufReader::new(stream)) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let message =
                format!("the question is not understood ({error}): use the agent's version of outlive");
            return write_line(&mut &*stream, &Reply::Failed(Failure::usage(message)));
        }
        Err(error) => return Err(error),
    };
    if let Request::Logs { name, follow } = &request {
        return match view::output_directory(agent, name) {
            Ok((name, directory)) => {
                write_line(&mut &*stream, &Reply::Output)?;
                let lives = || *follow && matches!(agent.supervisors.is_alive(&name), Ok(true));
                send_output(stream, &directory, lives)
            }
            Err(failure) => write_line(&mut &*stream, &Reply::Failed(failure)),
        };
    }
    // Whoever asked may have left; what was asked is finished all the same.
    let mut progress = |what: String| {
        let _ = write_line(&mut &*stream, &Reply::Progress { what });
    };
    let reply = decide(agent, request, &mut progress).unwrap_or_else(Reply::Failed);
    write_line(&mut &*stream, &reply)
}

fn decide(agent: &Arc<Agent>, request: Request, progress: &mut dyn FnMut(String)) -> Result<Reply> {
    match request {
        Request::Run(wanted) => {
            host::run(agent, *wanted, progress)?;
            Ok(Reply::Started { has_peers: !agent.config.peers.is_empty() })
        }
        Request::List => Ok(Reply::Workloads(view::list(agent)?)),
        Request::Inspect { name } => Ok(Reply::Inspected(Box::new(view::inspect(agent, &name)?))),
        Request::Stop { name, dead } => view::stop(agent, &name, &dead, progress).map(|()| Reply::Done),
        Request::Kill { name, signal } => view::kill(agent, &name, signal).map(|()| Reply::Done),
        Request::Errands { name, pid, errands } => {
            view::for_patch(agent, &name, &supervisor::Request::Errands { pid, errands })
        }
        Request::Store { name, pid, avoided, change } => {
            view::for_patch(agent, &name, &supervisor::Request::Store { pid, avoided, change })
        }
        Request::Switchover { name, to } => moves::switchover(agent, &name, to, progress).map(Reply::Moved),
        Request::Failover { name } => moves::failover(agent, &name, progress).map(Reply::Moved),
        Request::RestartLost { name, on, dead } => {
            moves::restart_lost(agent, &name, on, &dead, progress).map(Reply::Moved)
        }
        Request::Bootstrap { seeds } => {
            let cluster = membership::bootstrap(agent, &seeds, progress)?;
            Ok(Reply::Bootstrapped { cluster: cluster.to_string() })
        }
        Request::Rejoin => Ok(Reply::Rejoined(rejoin::rejoin(agent, progress)?)),
        Request::Seeds => Ok(Reply::Seeds(membership::rows(agent))),
        Request::Logs { .. } => Err(Failure::failed("output is sent otherwise")),
    }
}

/// Whole records only, so that half of one at the end of a file never puts the reader out of step.
fn send_output(
    mut stream: &UnixStream,
    directory: &Path,
    more_may_come: impl Fn() -> bool,
) -> io::Result<()> {
    let mut tail = Tail::open(directory)?;
    // A pair of buffers' worth of records at a time; the reader decides the pace.
    loop {
        // Asked before reading: what a supervisor wrote before it ended is still sent.
        let more = more_may_come();
        while let Some(record) = tail.next()? {
            stream.write_all(&record.encode())?;
        }
        if !more || has_left(stream) {
            return Ok(());
        }
        thread::sleep(FOLLOW_POLL);
    }
}

/// A command line says nothing more after its question, so anything to read is its end.
fn has_left(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut wait = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut wait, PollTimeout::ZERO), Ok(events) if events > 0)
}
