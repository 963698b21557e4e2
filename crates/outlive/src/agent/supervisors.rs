//! The supervisors of this node: each a process of its own, which outlives the agent and is found again by its
//! directory, `<state>/workloads/<name>/`.
//!
//! A supervisor that lives holds the lock there, so nothing here relies on process ids kept in a file. The agent never
//! ends one that may hold a workload's state.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use outlive_cluster::WorkloadName;
use outlive_epoch::control::{Request, Response, Side, State, Status};
use outlive_epoch::setup::{Role, Setup, Started};
use outlive_process::sys::task;
use tracing::{info, warn};

use crate::control::{read_line, write_line};
use crate::error::{Context, Failure, Result};
use crate::supervise::is_alive;

const SOCKET: &str = "supervisor.sock";
const LOG: &str = "supervisor.log";
const OLDER_LOG: &str = "supervisor.log.1";
/// A supervisor's log of this size is begun anew, and what it held kept as the older one.
const LOG_MAX: u64 = 4 << 20;
/// What a run writes and the next one of the same name begins anew.
const OUTPUT: [&str; 2] = ["output.log", "output.log.1"];

/// A supervisor makes namespaces, starts the program and asks the seed nodes (two seconds at most); the rest is room
/// for a loaded host. Below what a primary waits for an answer to `HostBackup`.
const START: Duration = Duration::from_secs(15);
/// A supervisor answers from memory, between checkpoints.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a supervisor whose task is over may take to end by itself.
const END: Duration = Duration::from_secs(3);
const END_POLL: Duration = Duration::from_millis(20);
/// Directories kept of workloads that ended, so that their output can still be read. The oldest goes first.
const ENDED_KEPT: usize = 16;
/// How much of the end of a supervisor's log an error shows.
const LOG_SHOWN: usize = 300;
/// `sun_path`, unix(7), without its final zero.
const SOCKET_PATH_MAX: usize = 107;

pub struct Supervisors {
    root: PathBuf,
    /// The command of a supervisor.
    command: Vec<OsString>,
    /// How long one may take until it is up.
    patience: Duration,
    /// Names being started: one at a time each.
    busy: Mutex<BTreeSet<String>>,
}

/// A name that is being started. Given back when dropped.
pub struct Reserved<'a> {
    supervisors: &'a Supervisors,
    name: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.supervisors.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Supervisors {
    pub fn new(state: &Path, command: Vec<OsString>) -> Self {
        Self { root: state.join("workloads"), command, patience: START, busy: Mutex::default() }
    }

    /// Takes stock after a restart: says what lives, and removes the sockets of what does not.
    pub fn find(&self) -> Result<()> {
        make_directory(&self.root)?;
        for name in self.names()? {
            let directory = self.directory(&name);
            if is_alive(&directory).or_failed(|| format!("look at {}", directory.display()))? {
                info!(workload = name.as_str(), "a supervisor lives");
            } else {
                remove_socket(&directory);
            }
        }
        self.prune();
        Ok(())
    }

    pub fn directory(&self, name: &WorkloadName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Of all workloads that left something here, alive or not.
    pub fn names(&self) -> Result<Vec<WorkloadName>> {
        let shown = self.root.display();
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).or_failed(|| format!("list {shown}"))? {
            let entry = entry.or_failed(|| format!("list {shown}"))?;
            // What is no workload's is not ours.
            if let Some(name) = entry.file_name().to_str().and_then(|name| super::admit::name(name).ok()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    pub fn is_alive(&self, name: &WorkloadName) -> Result<bool> {
        let directory = self.directory(name);
        is_alive(&directory).or_failed(|| format!("look at {}", directory.display()))
    }

    /// Refuses a second start of a name while one is under way.
    pub fn reserve(&self, name: &WorkloadName) -> Result<Reserved<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(name.to_string()) {
            return Err(Failure::refused(format!(
                "{name} is being started on this node already: wait for that"
            )));
        }
        Ok(Reserved { supervisors: self, name: name.to_string() })
    }

    /// What the supervisor here says; none if none lives. Takes any text, for other nodes ask.
    pub fn status(&self, name: &str) -> Result<Option<Status>> {
        let Ok(name) = super::admit::name(name) else { return Ok(None) };
        if !self.is_alive(&name)? {
            return Ok(None);
        }
        match self.ask(&name, &Request::Status, ANSWER)? {
            Response::Status(status) => Ok(Some(*status)),
            other => Err(Failure::failed(format!(
                "the supervisor of {name} answered another question ({other:?})"
            ))),
        }
    }

    /// Asks the supervisor here, which must live.
    pub fn ask(&self, name: &WorkloadName, request: &Request, within: Duration) -> Result<Response> {
        let (stream, _) = self.connect(name, within)?;
        let silent = |error: io::Error| silent(name, &error);
        write_line(&mut &stream, request).map_err(silent)?;
        let answer = read_line(&mut BufReader::new(&stream)).map_err(silent)?;
        answer.ok_or_else(|| silent(io::ErrorKind::UnexpectedEof.into()))
    }

    /// A connection, and the supervisor's process id as the kernel knows it.
    fn connect(&self, name: &WorkloadName, within: Duration) -> Result<(UnixStream, i32)> {
        let connect = || -> io::Result<(UnixStream, i32)> {
            let stream = UnixStream::connect(self.directory(name).join(SOCKET))?;
            stream.set_read_timeout(Some(within))?;
            stream.set_write_timeout(Some(within))?;
            let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?;
            Ok((stream, peer.pid()))
        };
        connect().map_err(|error| silent(name, &error))
    }

    /// Starts a supervisor and waits until it says that it is up. The name must be [reserved](Self::reserve).
    pub fn start(self: &Arc<Self>, reserved: &Reserved<'_>, setup: &Setup) -> Result<Option<SocketAddr>> {
        let name: WorkloadName = super::admit::name(&reserved.name)?;
        let directory = self.directory(&name);
        check_socket_path(&directory)?;
        if self.is_alive(&name)? {
            return Err(Failure::refused(format!("a supervisor of {name} is alive on this node")));
        }
        let is_new = !directory.exists();
        let started = self.spawn(&name, &directory, setup);
        if started.is_err() && (is_new || setup.role == Role::Primary) {
            // Its log is in the error; the output of a run that never began is empty.
            let _ = fs::remove_dir_all(&directory);
        }
        started
    }

    fn spawn(
        self: &Arc<Self>,
        name: &WorkloadName,
        directory: &Path,
        setup: &Setup,
    ) -> Result<Option<SocketAddr>> {
        make_directory(directory)?;
        remove_socket(directory);
        if !matches!(setup.role, Role::Backup { .. }) {
            // A new workload: what an earlier one of this name wrote is not its.
            for file in OUTPUT.iter().chain([&LOG, &OLDER_LOG]) {
                let _ = fs::remove_file(directory.join(file));
            }
        }
        super::definition::save(directory, &setup.workload)?;
        let log_path = directory.join(LOG);
        let mut options = File::options();
        let log = options.create(true).append(true).mode(0o600).open(&log_path);
        let log = log.or_failed(|| format!("write {}", log_path.display()))?;
        let orders = serde_json::to_vec(setup).or_failed(|| "put the workload into words".to_owned())?;

        let (program, arguments) =
            self.command.split_first().ok_or_else(|| Failure::failed("no supervisor"))?;
        let mut command = Command::new(program);
        // Its name is for whoever lists processes.
        command.arg0("outlive").args(arguments).arg(name.as_str()).current_dir("/").stderr(log);
        // What the service manager is told is the agent's to say.
        command.env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().or_failed(|| "start a supervisor".to_owned())?;

        let (reported, report) = mpsc::sync_channel(1);
        let (adopt, adopted) = mpsc::sync_channel::<Child>(1);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (this, watched) = (Arc::clone(self), name.clone());
        let watcher = thread::Builder::new().name(format!("watch {name}"));
        let watching = watcher.spawn(move || {
            let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { return };
            // One that does not read its orders says why, or ends, or is ended when patience does.
            let _ = stdin.write_all(&orders);
            drop(stdin);
            let mut stdout = BufReader::new(stdout);
            let _ = reported.send(first_words(&mut stdout));
            if let Ok(child) = adopted.recv() {
                this.watch(&watched, child, stdout);
            }
        });
        let outcome = match watching {
            Ok(_) => match report.recv_timeout(self.patience) {
                Ok(Ok(Started::Ready { listen })) => Ok(listen),
                // What is wrong with a request was found before; this is a host that cannot do it.
                Ok(Ok(Started::Failed { reason })) => Err(Failure::failed(format!(
                    "{reason}; `outlive check` on node {} says what its host lacks",
                    setup.node.name
                ))),
                Ok(Err(why)) => Err(self.ended_early(name, &mut child, &why)),
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.patience.as_secs();
                    Err(Failure::failed(format!(
                        "the supervisor of {name} was not up within {seconds} seconds"
                    )))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    Err(Failure::failed("the supervisor could not be watched"))
                }
            },
            Err(error) => {
                Err(Failure::failed(format!("no thread to watch the supervisor of {name}: {error}")))
            }
        };
        if outcome.is_ok() {
            // Its watcher waits for it from now on.
            let _ = adopt.send(child);
        } else {
            // It never held any state: it has not said that it is up.
            let _ = child.kill();
            let _ = child.wait();
        }
        outcome
    }

    fn ended_early(&self, name: &WorkloadName, child: &mut Child, why: &str) -> Failure {
        let status = child.try_wait().ok().flatten().map_or(String::new(), |status| format!(" ({status})"));
        let log = self.log_end(name).map_or(String::new(), |end| format!(": {end}"));
        Failure::failed(format!("the supervisor of {name} {why}{status}{log}"))
    }

    fn watch(&self, name: &WorkloadName, mut child: Child, mut stdout: BufReader<ChildStdout>) {
        // Nothing more is expected; read, so that it never blocks.
        let _ = io::copy(&mut stdout, &mut io::sink());
        match child.wait() {
            Ok(status) if status.success() => info!(workload = name.as_str(), "its supervisor has ended"),
            Ok(status) => {
                let log = self.log_end(name).unwrap_or_default();
                warn!(workload = name.as_str(), %status, log, "its supervisor has died");
            }
            Err(error) => warn!(workload = name.as_str(), %error, "its supervisor cannot be waited for"),
        }
        // A new one may live here already.
        if let Ok(_reserved) = self.reserve(name)
            && matches!(self.is_alive(name), Ok(false))
        {
            remove_socket(&self.directory(name));
            self.prune();
        }
    }

    /// The end of a supervisor's log, on one line.
    pub fn log_end(&self, name: &WorkloadName) -> Option<String> {
        let text = fs::read(self.directory(name).join(LOG)).ok()?;
        let end = &text[text.len().saturating_sub(LOG_SHOWN)..];
        let end = String::from_utf8_lossy(end);
        let last: Vec<&str> =
            end.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(1).collect();
        last.first().map(|line| (*line).to_owned())
    }

    /// Makes room for a backup of `primary` where an earlier supervisor of that name still is. One that may hold state
    /// is left alone; one that has none, or has lost, is given time to end and then ended. `is_registered` says
    /// whether the seed nodes know its incarnation, which then counts as holding state whatever it says.
    pub fn make_room(
        &self,
        name: &WorkloadName,
        primary: &str,
        is_registered: impl FnOnce(&Status) -> Result<bool>,
    ) -> Result<()> {
        if !self.is_alive(name)? {
            return Ok(());
        }
        let (stream, pid) = self.connect(name, ANSWER)?;
        // Refers to that process for as long as it is open, so that no other can be meant.
        let process = task::pidfd_open(pid).or_failed(|| format!("refer to the supervisor of {name}"))?;
        drop(stream);
        let Some(status) = self.status(name.as_str())? else { return Ok(()) };
        let is_over = matches!(status.state, State::Lost | State::Stopped);
        if !is_over && (!waits_for_state(&status) || is_registered(&status)?) {
            let side = match status.role {
                Side::Primary => "primary",
                Side::Backup => "backup",
            };
            let state = word(status.state);
            return Err(Failure::refused(format!(
                "a {side} of {name} is alive here ({state}, generation {}, epoch {}) and may hold its state; {primary} \
                 cannot have another one here: look with `outlive inspect {name}`",
                status.generation, status.epoch
            )));
        }
        if self.wait_for_end(name, END)? {
            return Ok(());
        }
        info!(workload = name.as_str(), pid, "a supervisor without state is ended, to make room");
        use std::os::fd::AsFd;
        let _ = task::signal_process(process.as_fd(), nix::libc::SIGKILL);
        if self.wait_for_end(name, END)? {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "the supervisor of {name} (process {pid}) does not end: look what it waits for"
        )))
    }

    /// Whether no supervisor of that name lives within this time.
    pub fn wait_for_end(&self, name: &WorkloadName, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        while self.is_alive(name)? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(END_POLL);
        }
        Ok(true)
    }

    /// Bounds the logs of supervisors. They write at the end of the file wherever that is (`O_APPEND`), and keep it open
    /// for life, so it is emptied and not replaced; a line written in between is lost.
    pub fn trim_logs(&self) {
        for name in self.names().unwrap_or_default() {
            let (log, older) = (self.directory(&name).join(LOG), self.directory(&name).join(OLDER_LOG));
            let is_long = fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_MAX);
            let emptied = || File::options().write(true).open(&log)?.set_len(0);
            if is_long && let Err(error) = fs::copy(&log, older).and_then(|_| emptied()) {
                warn!(workload = name.as_str(), %error, "its supervisor's log cannot be begun anew");
            }
        }
    }

    /// Removes the oldest directories of ended workloads, beyond what is kept.
    fn prune(&self) {
        let Ok(names) = self.names() else { return };
        let ended = |name: &WorkloadName| matches!(self.is_alive(name), Ok(false));
        let changed = |directory: &Path| {
            let modified =
                |file: &str| fs::metadata(directory.join(file)).and_then(|data| data.modified()).ok();
            modified(LOG).or_else(|| modified(".")).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut directories: Vec<_> =
            names.iter().filter(|name| ended(name)).map(|name| self.directory(name)).collect();
        directories.sort_by_key(|directory| std::cmp::Reverse(changed(directory)));
        for directory in directories.iter().skip(ENDED_KEPT) {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A backup that has nothing yet, by its own word: its primary may have ended, or may not want it any more. Only the
/// register says whether that word still holds.
pub fn waits_for_state(status: &Status) -> bool {
    status.role == Side::Backup && status.state == State::Syncing && status.epoch == 0
}

/// A state in the words of the documentation.
pub fn word(state: State) -> &'static str {
    match state {
        State::Protected => "protected",
        State::Syncing => "syncing",
        State::Exposed => "exposed",
        State::Waiting => "waiting",
        State::Lost => "lost",
        State::Stopped => "stopped",
    }
}

fn silent(name: &WorkloadName, error: &io::Error) -> Failure {
    Failure::failed(format!(
        "the supervisor of {name} lives and does not answer ({error}): look at its {LOG}"
    ))
}

/// The line a supervisor prints when it is up, or cannot be.
fn first_words(stdout: &mut impl BufRead) -> Result<Started, String> {
    match read_line(&mut stdout.take(crate::control::LINE_MAX)) {
        Ok(Some(started)) => Ok(started),
        Ok(None) => Err("ended before it was up".to_owned()),
        Err(error) => Err(format!("said something else than that it is up: {error}")),
    }
}

/// Checked before anything is made, for a supervisor could only say it afterwards.
fn check_socket_path(directory: &Path) -> Result<()> {
    let length = directory.join(SOCKET).as_os_str().len();
    if length <= SOCKET_PATH_MAX {
        return Ok(());
    }
    let shown = directory.display();
    Err(Failure::usage(format!(
        "the path of a socket in {shown} has {length} bytes, and at most {SOCKET_PATH_MAX} are possible: use a shorter \
         name, or a shorter state_dir"
    )))
}

fn remove_socket(directory: &Path) {
    // Not there, usually.
    let _ = fs::remove_file(directory.join(SOCKET));
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).or_failed(|| {
        let shown = path.display();
        format!("make {shown} (is its file system writable, and is there room?)")
    })
}

#[cfg(test)]
mod tests;
