//! `outlive check --program` and `--pid`: what a program uses, before anything protects it. It is launched, stopped and captured by
//! the functions that protect workloads; only that no checkpoint goes anywhere.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use outlive_net::{InnerTap, MAX_FRAME, Namespace, NetworkConfig};
use outlive_process::error::Error;
use outlive_process::inspect;
use outlive_process::refusals::Refusal;
use outlive_process::survey::Survey;
use outlive_process::tree::Workload;

use super::uses::{Uses, Verdict};
use crate::agent::admit::{self, Asked};
use crate::agent::host::LAUNCHER;
use crate::cli::Check;
use crate::command::{print, print_json};
use crate::error::{Context, Failure, Kind, Result};

/// An address that is nobody's (RFC 5737): there is no way to it nor from it.
const ADDRESS: &str = "192.0.2.2/24";
/// The workload's name, which nobody sees but itself: its host name.
const NAME: &str = "check";
/// How soon it is looked at again at first, and how seldom later: what a program does while it starts is over soon.
const FIRST_LOOKS: Duration = Duration::from_millis(50);
const LATER_LOOKS: Duration = Duration::from_secs(1);
/// As the engine does: how long stopping may take, and how long it waits for what is there for a moment only.
const STOP_LIMIT: Duration = Duration::from_millis(50);
const STOP_TRIES: usize = 20;
const MOMENT: Duration = Duration::from_millis(20);
const MOMENTS: usize = 10;
const OUTPUT_PIECE: usize = 64 * 1024;
/// `/proc/sys/kernel/pid_max` is never above it (`PID_MAX_LIMIT`, include/linux/threads.h).
const PID_MAX: i32 = 1 << 22;

pub fn inspect(pid: i32, args: &Check) -> Result<ExitCode> {
    if !(1..=PID_MAX).contains(&pid) {
        return Err(Failure::usage(format!("--pid {pid}: no process has this number")));
    }
    if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
        return Err(Failure::not_found(format!("there is no process {pid}: see `ps`")));
    }
    let scratch: Vec<String> = args.scratch.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let found = inspect::inspect(pid, &scratch).or_failed(|| format!("look at process {pid}"))?;
    let mut uses = Uses::default();
    uses.keep(&found.survey.kept);
    uses.hide(&found.hidden);
    // A file that is written is named once, with the directory to declare.
    let written = |refusal: &&Refusal| {
        found
            .written
            .iter()
            .all(|(path, _)| !refusal.what.contains(&format!("the file {} for writing", path.display())))
    };
    found.survey.refused.iter().filter(written).for_each(|refusal| uses.refuse(refusal, Verdict::Refused));
    uses.unwritten(found.written.iter().map(|(path, pid)| (path, *pid)));
    uses.unseen = inspect::UNSEEN.map(str::to_owned).to_vec();
    let others = found.processes.saturating_sub(1);
    uses.course = format!("looked at process {pid} and {others} below it");
    show(uses, args.json)
}

pub fn run(args: Check) -> Result<ExitCode> {
    let json = args.json;
    let limit = Duration::from_secs(args.seconds.into());
    let mut addresses = args.addresses;
    if addresses.is_empty() {
        addresses.push(ADDRESS.parse().or_failed(|| format!("use {ADDRESS}"))?);
    }
    let asked = Asked {
        command: args.command,
        environment: args.environment,
        directory: args.cwd,
        scratch: args.scratch,
        user: args.user,
    };
    let program = admit::program(NAME, asked)?;
    admit::check_places("here", &program)?;
    let signals = block_signals()?;
    nix::sys::prctl::set_child_subreaper(true).or_failed(|| "inherit the program's processes".to_owned())?;
    let (namespace, inner) = Namespace::create(&NetworkConfig::new(NAME, addresses))
        .or_failed(|| "make a network for the program".to_owned())?;
    let (output, ends) = output()?;
    let launcher = LAUNCHER.map(Into::into);
    let workload = Workload::launch_observed(&program, namespace.fd(), &launcher, ends)
        .or_failed(|| "start the program".to_owned())?;
    let mut look = Look { workload, inner, output, signals, uses: Uses::default(), looks: 0, ended: None };
    let course = look.for_a_while(limit);
    look.workload.kill();
    look.forward_output();
    let Look { workload, mut uses, looks, .. } = look;
    uses.course = course?;
    if let Some(observed) = workload.observed() {
        observed.all_refused().iter().for_each(|refusal| uses.refuse(refusal, Verdict::Refused));
        uses.hide(observed.all_hidden());
        uses.unwritten(observed.unwritten());
    }
    if looks == 0 {
        uses.unseen.push("what it had open: it ended before it could be looked at".to_owned());
    }
    show(uses, json)
}

fn show(mut uses: Uses, json: bool) -> Result<ExitCode> {
    uses.settle();
    if json {
        print_json(&uses)?;
    } else {
        print(&uses.render());
    }
    Ok(if uses.can_be_protected { ExitCode::SUCCESS } else { ExitCode::from(Kind::Refused as u8) })
}

/// Ctrl-C ends the looking and not this program. The tracer hears of its children by a descriptor as well.
fn block_signals() -> Result<SignalFd> {
    let mut mask: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .or_failed(|| "make a signal descriptor".to_owned())?;
    mask.add(Signal::SIGCHLD);
    mask.thread_block().or_failed(|| "block signals".to_owned())?;
    Ok(signals)
}

/// A pipe for what the program says: our end, and two for it.
fn output() -> Result<(File, [OwnedFd; 2])> {
    let attempted = || "make a pipe for the program's output".to_owned();
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).or_failed(attempted)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).or_failed(attempted)?;
    let second = write.try_clone().or_failed(attempted)?;
    Ok((read.into(), [write, second]))
}

struct Look {
    workload: Workload,
    inner: InnerTap,
    output: File,
    signals: SignalFd,
    uses: Uses,
    looks: usize,
    /// The first process's `wait` status.
    ended: Option<i32>,
}

impl Look {
    /// Until the time is over, the program has ended, or whoever looks has had enough; says how it went.
    fn for_a_while(&mut self, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        let mut pause = FIRST_LOOKS;
        let mut next = begun;
        let how = loop {
            let rest = (begun + limit).saturating_duration_since(Instant::now());
            self.rest(next.saturating_duration_since(Instant::now()).min(rest))?;
            let interrupted = matches!(self.signals.read_signal(), Ok(Some(_)));
            let over = begun.elapsed() >= limit;
            if self.ended.is_none() && (interrupted || over || Instant::now() >= next) {
                self.look()?;
                next = Instant::now() + pause;
                pause = (pause * 2).min(LATER_LOOKS);
            }
            match self.ended {
                Some(status) => break format!("it ended by itself, {},", ending(status)),
                None if interrupted || over => break "it was ended".to_owned(),
                None => {}
            }
        };
        Ok(format!("{how} after {:.1} s and {} looks", begun.elapsed().as_secs_f64(), self.looks))
    }

    /// Lets it run.
    fn rest(&mut self, time: Duration) -> Result<()> {
        let others = [self.signals.as_fd(), self.output.as_fd(), self.inner.as_fd()];
        self.workload.wait(time, &others).or_failed(|| "follow the program".to_owned())?;
        self.forward_output();
        self.discard_frames()?;
        self.ended = self.ended.or(self.workload.take_happened().ended);
        Ok(())
    }

    /// What is refused is looked at again, as protection would: what has gone by then is no obstacle.
    fn look(&mut self) -> Result<()> {
        let Some(first) = self.survey()? else { return Ok(()) };
        self.looks += 1;
        self.uses.keep(&first.kept);
        let mut refused = first.refused;
        let all = refused.clone();
        for _ in 0..MOMENTS {
            if refused.is_empty() {
                break;
            }
            let until = Instant::now() + MOMENT;
            while Instant::now() < until && self.ended.is_none() {
                self.rest(until.saturating_duration_since(Instant::now()))?;
            }
            let Some(again) = self.survey()? else { break };
            refused.retain(|refusal| again.refused.contains(refusal));
        }
        for refusal in &all {
            let stays = refused.contains(refusal);
            self.uses.refuse(refusal, if stays { Verdict::Refused } else { Verdict::Passing });
        }
        Ok(())
    }

    fn survey(&mut self) -> Result<Option<Survey>> {
        let attempted = || "look at the program".to_owned();
        for _ in 0..STOP_TRIES {
            match self.workload.freeze(STOP_LIMIT) {
                Ok(()) => {
                    let survey = self.workload.survey();
                    self.workload.thaw().or_failed(attempted)?;
                    match survey {
                        // A thread of it is on its way.
                        Err(Error::NotNow(_)) => {}
                        survey => return survey.map(Some).or_failed(attempted),
                    }
                }
                Err(Error::NotStopped(_)) => {}
                Err(error) => return Err(error).or_failed(attempted),
            }
            self.rest(Duration::from_millis(1))?;
            if self.ended.is_some() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// What the program says goes to standard error: standard output is for what was found.
    fn forward_output(&mut self) {
        let mut buffer = vec![0u8; OUTPUT_PIECE];
        while let Ok(length @ 1..) = self.output.read(&mut buffer) {
            // Whoever closed it does not want to know.
            let _ = io::stderr().write_all(&buffer[..length]);
        }
    }

    /// Nobody is there.
    fn discard_frames(&mut self) -> Result<()> {
        let mut frame = vec![0u8; MAX_FRAME];
        let attempted = || "read what the program sends".to_owned();
        while self.inner.try_receive(&mut frame).or_failed(attempted)?.is_some() {}
        Ok(())
    }
}

/// A `wait` status in words.
fn ending(status: i32) -> String {
    match (libc::WIFEXITED(status), libc::WIFSIGNALED(status)) {
        (true, _) => format!("with exit code {}", libc::WEXITSTATUS(status)),
        (_, true) => format!("by signal {}", libc::WTERMSIG(status)),
        _ => format!("with status {status}"),
    }
}
