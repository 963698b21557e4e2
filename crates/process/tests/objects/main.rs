//! Every object program, captured while it is busy and brought to life from a shell, twice; then asked for its verdict.
//!
//! The same programs go through failovers of whole hosts in `crates/outlive/tests/objects.rs`. This is the quick way:
//! `cargo test -p outlive-process --test objects -- memory/`.

#[path = "../common/mod.rs"]
mod common;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::*;
use libtest_mimic::{Arguments, Failed, Trial};
use outlive_lab::objects::{self, ObjectProgram, Status, Verdict};
use outlive_process::error::Error;
use outlive_process::shell::Shell;
use outlive_process::tree::Workload;

/// Epochs before each failover.
const EPOCHS: usize = 10;
/// Only a failing program waits it out.
const PATIENCE: Duration = Duration::from_secs(30);
/// A refusal that is about the moment passes within that, also where a busy machine leaves few tries. Only a failing program waits it out.
const MOMENT: Duration = Duration::from_secs(10);

fn main() {
    // In all threads: where one lets it through it is lost, and a stop is waited for in vain.
    let mut children = nix::sys::signal::SigSet::empty();
    children.add(nix::sys::signal::Signal::SIGCHLD);
    children.thread_block().expect("SIGCHLD can be blocked");
    let mut arguments = Arguments::from_args();
    // They mostly wait.
    arguments.test_threads.get_or_insert(4);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let programs = objects::all(&folder).expect("the programs can be read");
    // Not below /tmp, which a workload has for itself.
    let target =
        tempfile::Builder::new().prefix("outlive-objects-").tempdir_in("/var/tmp").expect("a folder");
    let trials = programs
        .into_iter()
        .map(|program| {
            let target = target.path().to_owned();
            Trial::test(program.name.clone(), move || try_out(&program, &target))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(target);
    conclusion.exit();
}

fn try_out(object: &ObjectProgram, folder: &Path) -> Result<(), Failed> {
    let path: PathBuf = object.compile(folder)?;
    let mut program = program(&path);
    if let Some(name) = &object.user {
        let user = nix::unistd::User::from_name(name)?.ok_or("no such user")?;
        (program.uid, program.gid) = (user.uid.as_raw(), user.gid.as_raw());
    }
    let (mut read, ends) = output();
    let mut here = network_of(object)?;
    let mut workload = Workload::launch(&program, &here, &launcher(), ends)?;
    let mut said = run_until(&mut workload, &mut read, objects::READY);
    if let Status::Refused(word) = &object.status {
        let refusal = refusal(&mut workload).ok_or("it was captured")?;
        if !refusal.contains(word) {
            return Err(format!("refused, but by another name: {refusal}").into());
        }
        let refused = survey(&mut workload)?;
        if !refused.iter().any(|refusal| refusal.contains(word)) {
            return Err(format!("a survey finds {refused:?}").into());
        }
    } else {
        let begun = Instant::now();
        loop {
            let refused = survey(&mut workload)?;
            if refused.is_empty() {
                break;
            }
            if begun.elapsed() > MOMENT {
                return Err(format!("a survey refuses {refused:?}").into());
            }
        }
        for _ in 0..2 {
            let (next_read, ends) = output();
            let there = network_of(object)?;
            let mut shell = Shell::create(&program, &there, &launcher(), ends)?;
            // The one thread is the tracer of both.
            enter(&here)?;
            first_copy(&mut workload, &mut shell)?;
            for _ in 0..EPOCHS {
                run(&mut workload, Duration::from_millis(5));
                epoch(&mut workload, &mut shell);
            }
            said.push_str(&read_all(&mut read));
            enter(&there)?;
            here = there;
            workload = fail_over(workload, shell);
            read = next_read;
            run(&mut workload, Duration::from_millis(30));
        }
    }
    workload.signal(libc::SIGUSR1)?;
    let begun = Instant::now();
    loop {
        said.push_str(&read_all(&mut read));
        match objects::verdict(&said) {
            Some(Verdict::Pass) => return Ok(()),
            Some(Verdict::Fail(why)) => return Err(why.into()),
            None if begun.elapsed() > PATIENCE => return Err(format!("no verdict; it said: {said}").into()),
            None => run(&mut workload, Duration::from_millis(5)),
        }
    }
}

/// Programs that are about the network have an interface beside the loopback, with nobody at its other end.
fn network_of(object: &ObjectProgram) -> Result<OwnedFd, Failed> {
    const SET_UP: [&str; 4] = [
        "link add eth0 address 02:00:00:00:00:01 type veth peer name far address 02:00:00:00:00:02",
        "link set far up",
        "link set eth0 up",
        "addr add 192.168.77.2/24 dev eth0",
    ];
    let network = network();
    if object.section == "network" {
        let inside = network.try_clone()?;
        let set_up = move || -> Result<(), Failed> {
            enter(&inside)?;
            for step in SET_UP {
                let status = std::process::Command::new("ip").args(step.split(' ')).status()?;
                status.success().then_some(()).ok_or_else(|| format!("ip {step}: {status}"))?;
            }
            Ok(())
        };
        std::thread::spawn(set_up).join().map_err(|_| "the network could not be set up")??;
    }
    Ok(network)
}

fn enter(network: &OwnedFd) -> Result<(), Failed> {
    Ok(nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?)
}

/// As [`sync`], but patient with what is refused for the moment.
fn first_copy(workload: &mut Workload, shell: &mut Shell) -> Result<(), Failed> {
    let begun = Instant::now();
    loop {
        freeze(workload);
        let captured = workload.capture_whole();
        workload.thaw()?;
        match captured {
            Ok(_) => break,
            Err(error) if begun.elapsed() > MOMENT => return Err(error.into()),
            Err(_) => run(workload, Duration::from_millis(5)),
        }
    }
    sync(workload, shell);
    Ok(())
}

/// As an exposed primary looks again and again at what its workload uses, and as `outlive check --program` does: the program
/// must not notice. What is refused.
fn survey(workload: &mut Workload) -> Result<Vec<String>, Failed> {
    freeze(workload);
    let survey = workload.survey();
    workload.thaw()?;
    run(workload, Duration::from_millis(20));
    let survey = match survey {
        // Not by name for each, as where a terminal holds for a moment more than can be written again.
        Err(Error::NotNow(why)) => return Ok(vec![why.to_string()]),
        other => other?,
    };
    let refused = survey.refused.into_iter();
    Ok(refused.map(|refusal| format!("{}: {}", refusal.what, refusal.advice)).collect())
}

/// How a program is refused, for longer than a moment.
fn refusal(workload: &mut Workload) -> Option<String> {
    let begun = Instant::now();
    loop {
        freeze(workload);
        let captured = workload.capture_whole();
        workload.thaw().expect("it runs on");
        run(workload, Duration::from_millis(20));
        match captured {
            Err(Error::NotNow(_)) | Ok(_) if begun.elapsed() < MOMENT => {}
            Err(error) => return Some(error.to_string()),
            Ok(_) => return None,
        }
    }
}
