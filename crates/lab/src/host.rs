//! A host: network, pid, mount and uts namespaces with one cable to the switch, a disk that survives its death,
//! and a power switch.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::cgroup::{self, Cgroup};
use crate::error::{Attempt, LabError, Result};
use crate::netns::NetNs;
use crate::process::HostProcess;
use crate::switch::{Cable, Port, Switch, UPLINK};
use crate::sys::{self, InitStep};
use crate::{PREFIX, sweep};

/// How long [`Host::exec`] lets a command run.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// What a host's network looks like from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// A bridge `br0` that has the host's address and the uplink as a port, for workloads to be attached to.
    Bridge,
    /// The address on the uplink itself: a client's machine.
    Plain,
}

/// A machine of the lab. A clone is a second handle to the same one.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    address: Ipv4Addr,
    mac: String,
    wiring: Wiring,
    folder: PathBuf,
    switch: Arc<Switch>,
    port: Port,
    cgroups: Option<Cgroups>,
    logs: AtomicU32,
    power: Mutex<Option<Power>>,
}

struct Cgroups {
    running: Cgroup,
    /// Where those are put that are frozen alone.
    singled_out: Cgroup,
}

/// What exists only while a host is on.
struct Power {
    init: OwnedFd,
    /// Process 1 ends when this is closed, and with it the host: so also when its owner dies.
    lifeline: OwnedFd,
    namespace: NetNs,
    cable: Cable,
    processes: Vec<HostProcess>,
}

impl Host {
    pub(crate) fn new(
        lab: &str,
        name: &str,
        address: Ipv4Addr,
        wiring: Wiring,
        switch: Arc<Switch>,
    ) -> Result<Host> {
        let folder = sweep::lab_folder(lab).join(name);
        let logs = folder.join("log");
        fs::create_dir_all(&logs).attempt(|| format!("make {}", logs.display()))?;
        let cgroups = match cgroup::of_lab(lab) {
            Some(path) => Some(Cgroups {
                running: Cgroup::new(path.join(name))?,
                singled_out: Cgroup::new(path.join(format!("{name}.frozen")))?,
            }),
            None => None,
        };
        let port = switch.take_port()?;
        // Locally administered; the same for every life of the host, as on a real card.
        let mac = format!("02:6c:61:62:00:{:02x}", port.0);
        let logs = AtomicU32::new(0);
        let power = Mutex::new(None);
        let name = name.to_owned();
        let inner = Inner { name, address, mac, wiring, folder, switch, port, cgroups, logs, power };
        let host = Host { inner: Arc::new(inner) };
        host.power_on()?;
        Ok(host)
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// The host's disk, by the same path inside and outside. It survives the host's death.
    pub fn disk(&self) -> &Path {
        &self.inner.folder
    }

    pub fn is_on(&self) -> bool {
        self.power().is_some()
    }

    /// The network namespace of the host's present life, for clients that run as threads of this process.
    pub fn netns(&self) -> Result<NetNs> {
        self.while_on("enter its network", |power| Ok(power.namespace.clone()))
    }

    pub(crate) fn port(&self) -> Port {
        self.inner.port
    }

    /// Fresh namespaces with the same address and the same disk; nothing runs.
    pub fn power_on(&self) -> Result<()> {
        let inner = &*self.inner;
        let mut power = self.power();
        if power.is_some() {
            return Err(LabError::AlreadyOn { host: inner.name.clone() });
        }
        let (init, lifeline, namespace) = self.boot()?;
        let cable = inner.switch.plug_in(inner.port, &namespace, &inner.mac)?;
        namespace.ip(&self.wiring_commands())?;
        *power = Some(Power { init, lifeline, namespace, cable, processes: Vec::new() });
        Ok(())
    }

    /// Ends the host as a pulled power cord does: first nothing reaches the wire any more, so that no FIN or RST of
    /// its dying sockets gets out, then every process is killed at once, and its network namespace goes.
    /// Returns the instant from which on no frame left.
    pub fn power_off(&self) -> Result<Instant> {
        let inner = &*self.inner;
        let mut slot = self.power();
        let Some(power) = slot.take() else {
            return Err(LabError::PoweredOff { host: inner.name.clone(), attempt: "power off" });
        };
        inner.switch.set_port_up(inner.port, false)?;
        let dark = Instant::now();
        for group in inner.groups() {
            group.kill()?;
        }
        sys::pidfd_signal(power.init.as_fd(), Signal::SIGKILL)
            .attempt(|| format!("kill the init of {}", inner.name))?;
        drop(power.lifeline);
        // The end of process 1 waits until all others of its namespace have been reaped
        // (kernel/pid_namespace.c, zap_pid_ns_processes); those started by `spawn` are this process's to reap.
        for process in &power.processes {
            process.wait()?;
        }
        waitid(Id::PIDFd(power.init.as_fd()), WaitPidFlag::WEXITED)
            .attempt(|| format!("wait for the init of {}", inner.name))?;
        for group in inner.groups() {
            group.thaw()?;
        }
        inner.switch.unplug(inner.port)?;
        drop(power.cable);
        Ok(dark)
    }

    /// Pulls (false) or plugs (true) the cable. The host sees its carrier go and come.
    pub fn uplink(&self, up: bool) -> Result<()> {
        self.while_on("plug or pull its cable", |_| self.inner.switch.set_port_up(self.inner.port, up))
    }

    /// Stops every process of the host where it stands. The host's kernel goes on: its sockets still acknowledge.
    pub fn freeze(&self) -> Result<()> {
        self.while_on("freeze", |_| self.inner.cgroups()?.running.freeze(&self.inner.name))
    }

    /// Stops those processes, and what they start later, whose command line contains `pattern`. Returns their ids
    /// as seen from outside.
    pub fn freeze_only(&self, pattern: &str) -> Result<Vec<i32>> {
        self.freeze_those(pattern, |pid| command_line(pid).contains(pattern))
    }

    /// Stops these processes and what they start later. They are named by their ids on the host, as its own programs
    /// tell them; their ids as seen from outside are returned.
    pub fn freeze_pids(&self, pids: &[i32]) -> Result<Vec<i32>> {
        self.freeze_those(&format!("{pids:?}"), |pid| id_on_host(pid).is_some_and(|id| pids.contains(&id)))
    }

    fn freeze_those(&self, which: &str, chosen: impl Fn(libc::pid_t) -> bool) -> Result<Vec<i32>> {
        self.while_on("freeze some of its processes", |_| {
            let groups = self.inner.cgroups()?;
            let mut matching = groups.running.processes();
            matching.retain(|pid| chosen(*pid));
            if matching.is_empty() {
                let (pattern, host) = (which.to_owned(), self.inner.name.clone());
                return Err(LabError::NoMatch { pattern, host });
            }
            for pid in &matching {
                groups.singled_out.adopt(*pid)?;
            }
            groups.singled_out.freeze(&self.inner.name)?;
            Ok(matching)
        })
    }

    /// The folder of the control group that all of the host's processes are in, for a program on the host that is to
    /// freeze or kill it from within. The path is the same inside and outside.
    pub fn control_group(&self) -> Result<&Path> {
        Ok(self.inner.cgroups()?.running.path())
    }

    /// Ends all freezing.
    pub fn thaw(&self) -> Result<()> {
        self.while_on("thaw", |_| {
            let groups = self.inner.cgroups()?;
            groups.singled_out.thaw()?;
            for pid in groups.singled_out.processes() {
                groups.running.adopt(pid)?;
            }
            groups.running.thaw()
        })
    }

    /// Starts a program, found by the `PATH` of this process, with its output in files and in the host's disk as
    /// working directory.
    pub fn spawn<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Result<HostProcess> {
        self.while_on("start a program", |_| Ok(()))?;
        let number = self.inner.logs.fetch_add(1, Ordering::Relaxed);
        let command: Vec<OsString> = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let program = program_name(&command);
        let log = |stream| self.inner.folder.join("log").join(format!("{number:03}-{program}.{stream}"));
        let (stdout, stderr) = (log("out"), log("err"));
        let create = |path: &Path| File::create(path).attempt(|| format!("make {}", path.display()));
        let (out, err) = (create(&stdout)?, create(&stderr)?);
        self.start(&command, out.into(), err.into(), stdout, stderr).map(|(process, _)| process)
    }

    /// Runs a program to its end and returns what it said; one that runs for a minute is killed.
    pub fn exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Result<Output> {
        self.exec_within(EXEC_LIMIT, command)
    }

    /// As [`Host::exec`], with a limit of one's own.
    pub fn exec_within<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let command: Vec<OsString> = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let nowhere = || PathBuf::from("/dev/null");
        let (process, mut child) =
            self.start(&command, Stdio::piped(), Stdio::piped(), nowhere(), nowhere())?;
        let collected = std::thread::scope(|scope| {
            let stderr = child.stderr.take();
            let errors = scope.spawn(move || read_all(stderr));
            let stdout = child.stdout.take();
            let output = scope.spawn(move || read_all(stdout));
            let ended = process.wait_for(limit);
            if !matches!(ended, Ok(Some(_))) {
                let _ = process.kill();
            }
            let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| match thread.join() {
                Ok(bytes) => bytes,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (ended, join(output), join(errors))
        });
        self.forget(&process);
        let (ended, stdout, stderr) = collected;
        let program = program_name(&command);
        let read = |bytes: io::Result<Vec<u8>>| bytes.attempt(|| format!("read what {program} says"));
        match ended? {
            Some(status) => Ok(Output { status, stdout: read(stdout)?, stderr: read(stderr)? }),
            None => {
                Err(LabError::Timeout { program, host: self.inner.name.clone(), seconds: limit.as_secs() })
            }
        }
    }

    /// The last lines that every program of the present life wrote.
    pub fn tails(&self) -> String {
        let power = self.power();
        let processes = power.iter().flat_map(|power| &power.processes);
        processes.map(|process| format!("host {}:\n{}", self.inner.name, process.tail())).collect()
    }

    fn power(&self) -> MutexGuard<'_, Option<Power>> {
        self.inner.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the host's power, which must be on and stays so meanwhile.
    fn while_on<T>(&self, attempt: &'static str, work: impl FnOnce(&mut Power) -> Result<T>) -> Result<T> {
        match self.power().as_mut() {
            Some(power) => work(power),
            None => Err(LabError::PoweredOff { host: self.inner.name.clone(), attempt }),
        }
    }

    fn forget(&self, process: &HostProcess) {
        if let Some(power) = self.power().as_mut() {
            power.processes.retain(|other| other.pid() != process.pid());
        }
    }

    /// Makes the namespaces and waits until their process 1 has furnished them.
    fn boot(&self) -> Result<(OwnedFd, OwnedFd, NetNs)> {
        let name = &self.inner.name;
        let steps = furnish(name, &self.inner.folder)?;
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).attempt(|| format!("make a pipe for {name}"));
        let (lifeline_end, lifeline) = pipe()?;
        let (report, report_end) = pipe()?;
        let pid = sys::clone_init(&steps, &lifeline_end, &report_end)
            .attempt(|| format!("clone the init of {name}"))?;
        let init = sys::pidfd_open(pid).attempt(|| format!("open the init of {name}"))?;
        drop((lifeline_end, report_end));
        if let Err((step, source)) = sys::read_init_report(report) {
            let _ = waitid(Id::PIDFd(init.as_fd()), WaitPidFlag::WEXITED);
            let step = steps.get(step).map_or_else(|| "start".to_owned(), InitStep::describe);
            return Err(LabError::Init { host: name.clone(), step, source });
        }
        Ok((init, lifeline, NetNs::of_process(pid)?))
    }

    fn wiring_commands(&self) -> Vec<String> {
        let Inner { address, mac, .. } = &*self.inner;
        let mut commands = vec!["link set lo up".to_owned(), format!("link set {UPLINK} up")];
        let device = match self.inner.wiring {
            Wiring::Plain => UPLINK,
            Wiring::Bridge => {
                // With an address of its own a bridge keeps it when ports with lower ones come and go
                // (net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id).
                commands.push(format!("link add br0 address {mac} type bridge stp_state 0 forward_delay 0"));
                commands.push(format!("link set {UPLINK} master br0"));
                commands.push("link set br0 up".to_owned());
                "br0"
            }
        };
        commands.push(format!("addr add {address}/{PREFIX} dev {device}"));
        commands
    }

    fn start(
        &self,
        command: &[OsString],
        out: Stdio,
        err: Stdio,
        stdout: PathBuf,
        stderr: PathBuf,
    ) -> Result<(HostProcess, Child)> {
        self.while_on("start a program", |power| {
            let entrance = match &self.inner.cgroups {
                Some(groups) => Some(groups.running.entrance()?),
                None => None,
            };
            let started = self.fork_into(power.init.as_fd(), entrance, command, out, err);
            let program = program_name(command);
            let opened = started.and_then(|(pid, child)| {
                Ok((HostProcess::new(program.clone(), pid, stdout, stderr)?, child))
            });
            let (process, child) = opened.map_err(|source| LabError::Spawn {
                program,
                host: self.inner.name.clone(),
                source,
            })?;
            power.processes.push(process.clone());
            Ok((process, child))
        })
    }

    /// Starts a program in the namespaces of `init`. Of the `Child` returned only the pipes are of use: the process
    /// that it knows went between and has ended.
    fn fork_into(
        &self,
        init: BorrowedFd<'_>,
        mut entrance: Option<File>,
        command: &[OsString],
        out: Stdio,
        err: Stdio,
    ) -> io::Result<(libc::pid_t, Child)> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let init = init.try_clone_to_owned()?;
        let home = CString::new(self.inner.folder.as_os_str().as_encoded_bytes())?;
        let (pid_in, pid_out) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut starter = Command::new(program);
        starter.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
        sys::before_exec(&mut starter, move || {
            if let Some(entrance) = &mut entrance {
                entrance.write_all(b"0")?;
            }
            sys::enter_host(init.as_fd())?;
            nix::unistd::chdir(home.as_c_str())?;
            sys::become_child_of_my_parent(pid_out.as_fd())
        });
        let started = starter.spawn();
        drop(starter); // and with it this process's copy of `pid_out`
        match (started, read_pid(pid_in)) {
            (Ok(mut child), pid) => {
                child.wait()?;
                Ok((pid?, child))
            }
            (Err(source), pid) => {
                if let Ok(pid) = pid {
                    // The exec failed: its process has ended and is ours to reap.
                    let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
                }
                Err(source)
            }
        }
    }
}

impl Inner {
    fn cgroups(&self) -> Result<&Cgroups> {
        self.cgroups.as_ref().ok_or(LabError::NoCgroup)
    }

    fn groups(&self) -> impl Iterator<Item = &Cgroup> {
        self.cgroups.iter().flat_map(|groups| [&groups.running, &groups.singled_out])
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for group in self.groups() {
            // A group that is still in use is left to the next sweep.
            let _ = group.remove();
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("name", &self.inner.name).field("address", &self.inner.address).finish()
    }
}

/// What makes a fresh mount namespace a host's: what the kernel shows of its namespaces, memory file systems of
/// its own, and of /run only its own disk. The rest, the installed system, it shares with the other hosts, like
/// machines set up from one image.
fn furnish(name: &str, disk: &Path) -> Result<Vec<InitStep>> {
    let text = |text: &[u8]| CString::new(text).map_err(|_| LabError::BadName(name.to_owned()));
    let mount = |source: &str, target: &str, kind: Option<&str>, flags: libc::c_ulong| {
        let kind = kind.map(|kind| text(kind.as_bytes())).transpose()?;
        let (source, target) = (text(source.as_bytes())?, text(target.as_bytes())?);
        Ok::<_, LabError>(InitStep::Mount { source, target, kind, flags, data: None })
    };
    let mkdir = |path: &Path| Ok(InitStep::Mkdir { path: text(path.as_os_str().as_encoded_bytes())? });

    const QUIET: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    const STAGE: &str = "/dev/shm/.lab";
    let disk_path = disk.to_string_lossy();
    let mut steps = vec![
        InitStep::Hostname { name: text(name.as_bytes())? },
        mount("none", "/", None, libc::MS_REC | libc::MS_PRIVATE)?,
        mount("proc", "/proc", Some("proc"), QUIET)?,
        mount("tmpfs", "/dev/shm", Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?,
        mkdir(Path::new(STAGE))?,
    ];

    // A new sysfs shows this namespace's devices; what is mounted below the old one moves over.
    let below_sys = mounts_below_sys();
    for (index, path) in below_sys.iter().enumerate() {
        let stage = format!("{STAGE}/{index}");
        steps.push(mkdir(Path::new(&stage))?);
        steps.push(mount(path, &stage, None, libc::MS_BIND | libc::MS_REC)?);
    }
    steps.push(mount("sysfs", "/sys", Some("sysfs"), QUIET)?);
    for (index, path) in below_sys.iter().enumerate() {
        steps.push(mount(&format!("{STAGE}/{index}"), path, None, libc::MS_MOVE)?);
    }

    // Its own /run with its own disk, at the path that the disk has outside.
    let stage = format!("{STAGE}/disk");
    steps.push(mkdir(Path::new(&stage))?);
    steps.push(mount(&disk_path, &stage, None, libc::MS_BIND)?);
    steps.push(mount("tmpfs", "/run", Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?);
    let mut folders: Vec<&Path> = disk.ancestors().take_while(|path| *path != Path::new("/run")).collect();
    folders.reverse();
    for folder in folders {
        steps.push(mkdir(folder)?);
    }
    steps.push(mkdir(Path::new("/run/lock"))?);
    steps.push(mount(&stage, &disk_path, None, libc::MS_MOVE)?);
    Ok(steps)
}

/// The mounts directly below /sys, of those that programs look for.
fn mounts_below_sys() -> Vec<&'static str> {
    const KNOWN: [&str; 4] = ["/sys/fs/cgroup", "/sys/fs/bpf", "/sys/kernel/debug", "/sys/kernel/tracing"];
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = |path: &str| mounts.lines().any(|line| line.split(' ').nth(4) == Some(path));
    KNOWN.into_iter().filter(|path| mounted(path)).collect()
}

fn program_name(command: &[OsString]) -> String {
    let first = command.first().map(PathBuf::from).unwrap_or_default();
    first.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn command_line(pid: libc::pid_t) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}

/// The id that a process has in the pid namespace of its host: the one next to the owner's in the list of ids from
/// the outside in (proc_pid_status(5), NSpid).
fn id_on_host(pid: libc::pid_t) -> Option<libc::pid_t> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

fn read_pid(pipe: OwnedFd) -> io::Result<libc::pid_t> {
    let mut bytes = [0_u8; size_of::<libc::pid_t>()];
    File::from(pipe).read_exact(&mut bytes)?;
    Ok(libc::pid_t::from_ne_bytes(bytes))
}

fn read_all(stream: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
