//! Trials: what a workload needs of the kernel, really done, each in a process of its own that it may spoil.
//!
//! `outlive probe NAME` does one and says on standard error why it failed; `outlive check` runs them all.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use outlive_epoch::link::CARRIER_PRIORITY;
use outlive_net::{Namespace, NetworkConfig};
use outlive_process::object::tcp_request;
use outlive_process::sys::bpf::asm::{Assembler, Register};
use outlive_process::sys::bpf::{Classifier, files, threads};
use outlive_process::sys::pagemap::{self, PAGE_SIZE, Query, Range};
use outlive_process::sys::ptrace::{self, Tid};
use outlive_process::sys::tcp_repair::{self, Repair};
use outlive_process::sys::uffd::Tracker;
use outlive_process::sys::{seccomp, task};

use super::{Line, sys};
use crate::error::{Failure, Result, chain};

/// A trial is a few system calls; one that hangs (a device that waits, a lock in the kernel) is a finding.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
/// How a trial asks for a process to do things to.
const SUBJECT: &str = "subject";

type Outcome<T = ()> = std::result::Result<T, Box<dyn Error>>;

struct Trial {
    name: &'static str,
    purpose: &'static str,
    advice: &'static str,
    run: fn() -> Outcome,
}

const ROOT: &str = "run it as root, outside of a container";

const TRIALS: &[Trial] = &[
    Trial {
        name: "PAGEMAP_SCAN",
        purpose: "finding written pages",
        advice: "needs Linux 6.7 or newer: update the kernel",
        run: pagemap_scan,
    },
    Trial {
        name: "userfaultfd WP_ASYNC",
        purpose: "noticing writes without stopping the program",
        advice: "needs Linux 6.7 or newer with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP: update the kernel",
        run: write_tracking,
    },
    Trial {
        name: "ptrace",
        purpose: "stopping and reading programs, system call filters suspended",
        advice: "run as root; `sysctl kernel.yama.ptrace_scope` must not be 3; kernel with CONFIG_CHECKPOINT_RESTORE",
        run: tracing,
    },
    Trial {
        name: "/proc/PID/mem",
        purpose: "writing read-only pages of a restored program",
        advice: "boot without `proc_mem.force_override=never`",
        run: forced_writes,
    },
    Trial {
        name: "seccomp",
        purpose: "noticing rare system calls, hiding what cannot be kept",
        advice: "needs a kernel with CONFIG_SECCOMP_FILTER",
        run: filter,
    },
    Trial {
        name: "pidfd_getfd",
        purpose: "a program's open files and sockets",
        advice: ROOT,
        run: descriptors,
    },
    Trial {
        name: "kcmp",
        purpose: "which descriptors share an open file",
        advice: "needs a kernel with CONFIG_KCMP",
        run: comparing,
    },
    Trial {
        name: "namespaces",
        purpose: "a workload's own process, mount, host name and IPC view",
        advice: ROOT,
        run: namespaces,
    },
    Trial {
        name: "time namespace",
        purpose: "clocks that go on after a failover",
        advice: "needs Linux 5.6 or newer with CONFIG_TIME_NS, as root",
        run: time_namespace,
    },
    Trial {
        name: "clone3 set_tid",
        purpose: "restoring processes under their own ids",
        advice: "needs CAP_CHECKPOINT_RESTORE, and a kernel with CONFIG_CHECKPOINT_RESTORE",
        run: chosen_ids,
    },
    Trial {
        name: "TUN with VNET_HDR",
        purpose: "the workload's own network interface",
        advice: "load it with `modprobe tun`; needs /dev/net/tun and CAP_NET_ADMIN",
        run: interface,
    },
    Trial {
        name: "TCP_REPAIR",
        purpose: "capturing and restoring connections",
        advice: "needs CAP_NET_ADMIN, and a kernel with CONFIG_CHECKPOINT_RESTORE",
        run: repair,
    },
    Trial {
        name: "BPF kfunc",
        purpose: "restoring connections that are not accepted yet",
        advice: "needs Linux 6.9 or newer with CONFIG_DEBUG_INFO_BTF and CONFIG_SYN_COOKIES, as root",
        run: kernel_function,
    },
    Trial {
        name: "BPF iterators",
        purpose: "checkpoints that ask about what changed only",
        advice: "needs Linux 6.1 or newer with CONFIG_DEBUG_INFO_BTF, as root with CAP_BPF and CAP_PERFMON",
        run: iterators,
    },
    Trial {
        name: "BPF TCX",
        purpose: "attaching that to the workload's interface",
        advice: "needs Linux 6.6 or newer with CONFIG_NET_XGRESS, as root",
        run: ingress,
    },
    Trial {
        name: "SCHED_FIFO",
        purpose: "short pauses while programs are busy",
        advice: "needs CAP_SYS_NICE, and a control group with real-time time (cpu.rt_runtime_us)",
        run: realtime,
    },
];

/// All trials, in order.
pub fn trials() -> Vec<Line> {
    // Without root most fail, and for that reason.
    let is_root = nix::unistd::geteuid().is_root();
    TRIALS
        .iter()
        .map(|trial| {
            let advice = if is_root { trial.advice } else { ROOT };
            Line::needed(trial.name, trial.purpose, outside(trial.name), advice)
        })
        .collect()
}

/// In another process; what it says is why it failed.
fn outside(name: &str) -> std::result::Result<String, String> {
    let mut child = probe(name).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|error| format!("cannot be tried: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not come to an end within {} seconds", PATIENCE.as_secs()));
            }
            Err(error) => return Err(format!("cannot be tried: {error}")),
        }
    };
    if status.success() {
        return Ok("works".to_owned());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.take(16 * 1024).read_to_string(&mut said);
    }
    let said = said.trim();
    Err(said
        .strip_prefix("outlive: ")
        .filter(|said| !said.is_empty())
        .map_or(status.to_string(), str::to_owned))
}

fn probe(what: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["probe", what]);
    command
}

/// `outlive probe NAME`.
pub fn run(name: &str) -> Result<()> {
    if name == SUBJECT {
        // Lives until whoever wants it closes its standard input.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        return Ok(());
    }
    let trial = TRIALS.iter().find(|trial| trial.name == name);
    let trial =
        trial.ok_or_else(|| Failure::usage(format!("there is no trial {name:?}: run `outlive check`")))?;
    (trial.run)().map_err(|error| Failure::failed(chain(error.as_ref())))
}

/// A process to do things to; ends with this value.
struct Subject(Child);

impl Subject {
    fn start() -> Outcome<Self> {
        Ok(Self(probe(SUBJECT).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }

    fn id(&self) -> Tid {
        // Linux process ids are positive and fit (PID_MAX_LIMIT, 2^22).
        self.0.id() as Tid
    }

    /// Traced by this thread, and stopped.
    fn stop(&self) -> Outcome {
        ptrace::seize(self.id())?;
        ptrace::interrupt(self.id())?;
        match ptrace::wait_for(self.id(), true)? {
            Some(ptrace::Event::Stopped(_)) => Ok(()),
            other => Err(format!("a traced process did not stop ({other:?})").into()),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pagemap_scan() -> Outcome {
    let page = vec![1u8; 2 * PAGE_SIZE as usize];
    let start = (page.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
    let file = File::open("/proc/self/pagemap")?;
    let query = Query { all_of: pagemap::IS_PRESENT, returned: pagemap::IS_PRESENT, ..Query::default() };
    let found = pagemap::scan(&file, Range::new(start, start + PAGE_SIZE), query)?;
    if found.len() == 1 { Ok(()) } else { Err("it does not report a page that is there".into()) }
}

fn write_tracking() -> Outcome {
    Tracker::new(sys::userfaultfd()?)?;
    Ok(())
}

fn tracing() -> Outcome {
    let subject = Subject::start()?;
    subject.stop()?;
    ptrace::suspend_seccomp(subject.id(), true)?;
    ptrace::registers(subject.id())?;
    Ok(())
}

fn forced_writes() -> Outcome {
    let subject = Subject::start()?;
    subject.stop()?;
    let maps = BufReader::new(File::open(format!("/proc/{}/maps", subject.id()))?);
    let mut read_only = None;
    for line in maps.lines() {
        let line = line?;
        if let Some((start, _)) = line.split_once('-').filter(|(_, rest)| rest.contains(" r--p ")) {
            read_only = Some(u64::from_str_radix(start, 16)?);
            break;
        }
    }
    let address = read_only.ok_or("no read-only mapping to write to")?;
    let mut memory =
        fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", subject.id()))?;
    let mut byte = [0];
    memory.seek(SeekFrom::Start(address))?;
    memory.read_exact(&mut byte)?;
    memory.seek(SeekFrom::Start(address))?;
    memory.write_all(&byte)?;
    Ok(())
}

fn filter() -> Outcome {
    seccomp::install(seccomp::program())?;
    Ok(())
}

fn descriptors() -> Outcome {
    let subject = Subject::start()?;
    let process = task::pidfd_open(subject.id())?;
    task::take_descriptor(process.as_fd(), 0)?;
    Ok(())
}

fn comparing() -> Outcome {
    let me = std::process::id() as Tid;
    let file = File::open("/dev/null")?;
    let (same, other) = (file.try_clone()?, File::open("/dev/null")?);
    let number = |file: &File| std::os::fd::AsRawFd::as_raw_fd(file);
    let tells_same = task::same_description((me, number(&file)), (me, number(&same)))?;
    let tells_other = task::same_description((me, number(&file)), (me, number(&other)))?;
    if tells_same && !tells_other {
        Ok(())
    } else {
        Err("it does not tell one open file from another".into())
    }
}

fn namespaces() -> Outcome {
    let kinds = [
        ("process", CloneFlags::CLONE_NEWPID),
        ("network", CloneFlags::CLONE_NEWNET),
        ("mount", CloneFlags::CLONE_NEWNS),
        ("host name", CloneFlags::CLONE_NEWUTS),
        ("IPC", CloneFlags::CLONE_NEWIPC),
    ];
    for (kind, flag) in kinds {
        unshare(flag).map_err(|error| format!("no {kind} namespace can be made: {error}"))?;
    }
    Ok(())
}

fn time_namespace() -> Outcome {
    /// `CLONE_NEWTIME`, linux/sched.h; not in the library's flags.
    const NEWTIME: i32 = 0x80;
    unshare(CloneFlags::from_bits_retain(NEWTIME))?;
    // For children; nobody has entered it yet, so offsets may be set (time_namespaces(7)).
    fs::write("/proc/self/timens_offsets", "monotonic 1 0\nboottime 1 0\n")?;
    Ok(())
}

fn chosen_ids() -> Outcome {
    // The first of a new namespace is 1 and free for certain.
    unshare(CloneFlags::CLONE_NEWPID)?;
    sys::fork_with_id(1)?;
    Ok(())
}

fn interface() -> Outcome {
    // TEST-NET-1, RFC 5737; in a namespace that nothing else is in.
    let address = "192.0.2.1/24".parse()?;
    Namespace::create(&NetworkConfig::new("check", vec![address]))?;
    Ok(())
}

fn repair() -> Outcome {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    tcp_repair::set_repair(&socket, Repair::On)?;
    Ok(())
}

fn kernel_function() -> Outcome {
    tcp_request::supported()?;
    Ok(())
}

fn iterators() -> Outcome {
    files::Lister::shared()?;
    threads::Lister::shared()?;
    Ok(())
}

fn ingress() -> Outcome {
    /// The loopback interface is the first in every network namespace (`LOOPBACK_IFINDEX`, net/flow.h).
    const LOOPBACK: u32 = 1;
    /// `TCX_NEXT`, enum tcx_action_base, linux/bpf.h: as if the program were not there.
    const NEXT: i32 = -1;
    let mut program = Assembler::new();
    program.move_immediate(Register::R0, NEXT);
    program.exit();
    let program = Classifier::load("check", c"GPL", &program.finish()?)?;
    Namespace::bare()?.enter(|| program.attach_ingress(LOOPBACK))??;
    Ok(())
}

fn realtime() -> Outcome {
    task::become_realtime(CARRIER_PRIORITY)?;
    Ok(())
}
