//! Patches over patches, patches that do not fit, processes that are not like others, and patchers that die.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ed25519_dalek::SigningKey;
use libtest_mimic::Trial;
use outlive_hotpatch::build::Options;
use outlive_hotpatch::patch;
use outlive_hotpatch::running::{Patcher, State};

use super::lab::{Recorded, Running, in_time, key, sign};
use super::together::together;
use super::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("patches_lie_over_each_other_and_are_reverted_from_the_last", layers),
        trial("a_cumulative_patch_replaces_what_was_there_until_it_is_reverted", cumulative),
        trial("all_patches_are_reverted_at_once", revert_all),
        trial("a_field_beside_an_object_is_there_for_the_next_patch", shadows),
        trial("a_patch_that_is_there_is_not_applied_twice", twice),
        trial("a_patch_for_another_build_leaves_the_process_untouched", another_build),
        trial("a_patch_of_a_stranger_or_an_altered_one_is_refused", strangers),
        trial("a_child_inherits_the_patch_and_lists_it", forked),
        trial("a_process_in_other_namespaces_is_patched", namespaces),
        trial("a_process_under_a_seccomp_filter_is_patched", filtered),
        trial("a_process_that_waits_does_not_notice", || sleeper("sleeper")),
        trial("a_process_that_waits_for_a_time_does_not_notice", || sleeper("poller")),
        trial("a_process_that_is_stopped_or_traced_is_refused", stopped),
        trial("a_thread_that_nothing_interrupts_is_not_taken_for_one_that_is_traced", uninterrupted),
        trial("a_library_that_is_closed_and_opened_elsewhere_is_another", opened_again),
        trial("a_patcher_may_die_at_any_step", || die_at_every_step("threads", "0 1", "0 2", 15)),
        trial("a_patch_of_which_one_part_cannot_be_switched_leaves_none", switched_by_half),
        trial("a_patch_of_two_parts_is_one_wherever_its_patcher_dies", || {
            die_at_every_step("parts", "11 1", "12 3", 25)
        }),
        // It has an unwinder, which is told of the patch.
        trial("a_patcher_may_die_while_the_unwinder_is_told", || {
            die_at_every_step("cpp_exception", "5 ", "-1 ", 20)
        }),
        // Its thread is not left alone with its calls.
        trial("a_patcher_that_holds_a_thread_may_die_at_any_step", || {
            die_at_every_step("poller", "1", "2", 20)
        }),
        trial("two_patchers_do_not_meet", two_patchers),
    ]
}

fn version(recorded: &Recorded, number: u32, is_cumulative: bool) -> patch::Signed {
    let options = Options { name: format!("version {number}"), is_cumulative, ..Options::default() };
    sign(&recorded.build(&format!("-DVERSION={number}"), options).unwrap())
}

fn layers() {
    let recorded = Recorded::simple("layers");
    let mut running = recorded.start();
    let (second, third) = (version(&recorded, 2, false), version(&recorded, 3, false));
    for _ in 0..3 {
        assert_eq!(running.ask("?"), "1 1");
        running.apply(&second);
        assert_eq!(running.ask("?"), "2 2");
        running.apply(&third);
        assert_eq!(running.ask("?"), "3 2");
        running.revert();
        assert_eq!(running.ask("?"), "2 2");
        running.apply(&third);
        assert_eq!(running.ask("?"), "3 2");
        running.revert();
        running.revert();
        // In the other order.
        running.apply(&third);
        assert_eq!(running.ask("?"), "3 1");
        running.apply(&second);
        assert_eq!(running.ask("?"), "2 2");
        running.revert();
        assert_eq!(running.ask("?"), "3 1");
        running.revert();
    }
    assert_eq!(running.regions().len(), 2, "a patch that is applied again takes no more memory");
    assert!(running.patcher().revert(false).unwrap_err().to_string().contains("no patch"));
}

fn cumulative() {
    let recorded = Recorded::simple("layers");
    let mut running = recorded.start();
    let (second, third) = (version(&recorded, 2, false), version(&recorded, 3, true));
    for _ in 0..3 {
        running.apply(&second);
        assert_eq!(running.ask("?"), "2 2");
        running.apply(&third);
        assert_eq!(
            running.ask("?"),
            "3 1",
            "the second function is as the cumulative patch has it: as it was"
        );
        running.revert();
        assert_eq!(running.ask("?"), "2 2");
        running.revert();
        assert_eq!(running.ask("?"), "1 1");
    }
}

fn shadows() {
    let recorded = Recorded::simple("shadow_layers");
    let mut running = recorded.start();
    let (second, third) = (version(&recorded, 2, false), version(&recorded, 3, false));
    assert_eq!(running.ask("?"), "0");
    running.apply(&second);
    assert_eq!([running.ask("?"), running.ask("?")], ["201", "202"]);
    running.apply(&third);
    assert_eq!(running.ask("?"), "303");
    running.revert();
    assert_eq!(running.ask("?"), "204");
    running.revert();
    assert_eq!(running.ask("?"), "0");
    running.apply(&third);
    assert_eq!(running.ask("?"), "305");
}

fn revert_all() {
    let recorded = Recorded::simple("layers");
    let mut running = recorded.start();
    running.apply(&version(&recorded, 2, false));
    running.apply(&version(&recorded, 3, true));
    assert_eq!(running.ask("?"), "3 1");
    running.patcher().revert(true).unwrap();
    assert_eq!(running.ask("?"), "1 1");
    assert_eq!(running.states(), [State::Reverted, State::Reverted]);
}

fn twice() {
    let recorded = Recorded::simple("exported");
    let running = recorded.start();
    let signed = recorded.patch();
    running.apply(&signed);
    for error in
        [running.patcher().apply(&signed).unwrap_err(), running.patcher().check(&signed).unwrap_err()]
    {
        assert!(error.to_string().contains("already"), "{error}");
    }
}

fn another_build() {
    let recorded = Recorded::simple("exported");
    let signed = recorded.patch();
    let mut other = Recorded::simple("static_function").start();
    for error in [other.patcher().apply(&signed).unwrap_err(), other.patcher().check(&signed).unwrap_err()] {
        assert!(error.to_string().contains("another build"), "{error}");
    }
    assert!(other.regions().is_empty());
    assert_eq!(other.ask("?"), "11");
}

fn strangers() {
    let recorded = Recorded::simple("exported");
    let made = recorded.build("-DFIXED", Options::default()).unwrap();
    let stranger = SigningKey::from_bytes(&[3; 32]);
    let file = patch::write(&made, &stranger).unwrap();
    assert!(patch::read(&file, &[key().verifying_key()]).unwrap_err().to_string().contains("not trusted"));
    let mut altered = patch::write(&made, &key()).unwrap();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    assert!(patch::read(&altered, &[key().verifying_key()]).unwrap_err().to_string().contains("altered"));
}

fn forked() {
    let recorded = Recorded::simple("forks");
    let mut running = recorded.start();
    running.apply(&recorded.patch());
    let child: i32 = running.ask("f").parse().unwrap();
    let mut patcher = Patcher::open(child).unwrap();
    let listed = patcher.list().unwrap();
    assert_eq!((listed.len(), listed[0].state), (1, State::Applied));
    // The child's is its own: reverted there, it stays in the parent.
    patcher.revert(false).unwrap();
    assert_eq!(running.ask("g"), "1");
    assert_eq!(running.ask("?"), "2");
    assert_eq!(running.states(), [State::Applied]);
}

fn namespaces() {
    let recorded = Recorded::simple("exported");
    let program = recorded.folder().join("running");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--mount", "--net", "--ipc", "--uts", "--fork", "--kill-child"]);
    command.arg("sh").arg("-c").arg(format!("mount -t tmpfs none /mnt; exec {}", program.display()));
    let mut outer = Running::start(&mut command);
    assert_eq!(outer.ask("?"), "1");
    let children = format!("/proc/{0}/task/{0}/children", outer.pid());
    let inner: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let signed = recorded.patch();
    Patcher::open(inner).unwrap().apply(&signed).unwrap();
    assert_eq!(outer.ask("?"), "2");
    Patcher::open(inner).unwrap().revert(false).unwrap();
    assert_eq!(outer.ask("?"), "1");
}

fn filtered() {
    let recorded = Recorded::simple("filtered");
    let mut running = recorded.start();
    assert_eq!(running.ask("?"), "1");
    running.apply(&recorded.patch());
    assert_eq!(running.ask("?"), "2");
    running.revert();
    assert_eq!(running.ask("?"), "1");
}

fn sleeper(program: &str) {
    let recorded = Recorded::simple(program);
    let mut running = recorded.start();
    let signed = recorded.patch();
    assert_eq!(running.ask("?"), "1 0");
    for _ in 0..20 {
        running.apply(&signed);
        assert_eq!(running.ask("?"), "2 0");
        running.revert();
        assert_eq!(running.ask("?"), "1 0");
    }
}

fn stopped() {
    let recorded = Recorded::simple("exported");
    let mut running = recorded.start();
    let signed = recorded.patch();
    assert_eq!(running.ask("?"), "1");
    let send = |name: &str| {
        assert!(Command::new("kill").args([name, &running.pid().to_string()]).status().unwrap().success());
    };
    send("-STOP");
    running.await_state('T');
    let error = running.patcher().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("is stopped"), "{error}");
    send("-CONT");
    assert!(running.regions().is_empty());
    // The tracer is a thread of this test: what it traces is let go when it ends.
    let (pid, traced) = (running.pid(), signed.clone());
    std::thread::spawn(move || {
        // SAFETY: seizing changes nothing in this process, and takes numbers only.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) }, 0);
        let patcher = || Patcher::open(pid).unwrap();
        for error in [patcher().apply(&traced).unwrap_err(), patcher().check(&traced).unwrap_err()] {
            assert!(error.to_string().contains("is traced by process"), "{error}");
        }
    })
    .join()
    .unwrap();
    assert!(running.regions().is_empty());
    running.apply(&signed);
    assert_eq!(running.ask("?"), "2");
}

fn uninterrupted() {
    let recorded = Recorded::simple("vforks");
    let mut running = recorded.start();
    let signed = recorded.patch();
    assert_eq!(running.ask("?"), "1");
    running.tell("v");
    running.await_state('D');
    let error = running.patcher().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("sleeps where nothing interrupts it") && !error.contains("traced"), "{error}");
    assert_eq!(running.answer(), "1");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "2");
}

fn opened_again() {
    let recorded = Recorded::of_header("opened");
    let mut running = recorded.start();
    let signed = recorded.patch();
    assert_eq!(running.ask("?"), "1 1");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "3 3");
    assert_eq!(running.ask("1"), "3 1", "what is opened anew is as its file has it");
    let error = running.patcher().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("already") && error.contains("has mapped"), "{error}");
    // That was looked at first: what was closed is nobody's any more.
    let count = |running: &Running, wanted| running.states().iter().filter(|state| **state == wanted).count();
    assert_eq!((count(&running, State::Applied), count(&running, State::Reverted)), (1, 1));
    running.revert();
    assert_eq!(running.ask("?"), "1 1");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "3 3");
    running.ask("0");
    assert_eq!(running.ask("1"), "1 1");
    let report = running.apply(&signed);
    assert_eq!(report.settled.len(), 2, "{:?}", report.settled);
    assert_eq!(running.ask("?"), "3 3");
    running.revert();
    assert_eq!(running.ask("?"), "1 1");
}

fn switched_by_half() {
    let recorded = Recorded::of_header("parts");
    let mut running = recorded.start();
    let signed = recorded.patch();
    assert_eq!(running.ask("?"), "11 1");
    let pid = running.pid();
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    // As a debugger would, just before the second part is switched.
    let was = Mutex::new(None);
    let steps = |step: &'static str| {
        let mut was = was.lock().unwrap();
        if step == "switched" && was.is_none() {
            let pad = Patcher::open(pid).unwrap().list().unwrap()[1].notes.switched[0].pad;
            let mut byte = [0];
            memory.read_exact_at(&mut byte, pad).unwrap();
            memory.write_all_at(&[0xcc], pad).unwrap();
            *was = Some((pad, byte));
        }
    };
    let error = Patcher::open_with_steps(pid, &steps).unwrap().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("changed by something else"), "{error}");
    let (pad, byte) = was.into_inner().unwrap().unwrap();
    memory.write_all_at(&byte, pad).unwrap();
    assert_eq!(running.states(), [State::Reverted, State::Reverted]);
    assert_eq!(running.ask("?"), "11 1");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "12 3");
}

fn two_patchers() {
    let recorded = Recorded::simple("exported");
    let running = recorded.start();
    let signed = recorded.patch();
    let refused = Mutex::new(None);
    let pid = running.pid();
    let steps = |step: &'static str| {
        if step == "prepared" {
            let error = Patcher::open(pid).unwrap().revert(true).unwrap_err();
            *refused.lock().unwrap() = Some(error.to_string());
        }
    };
    Patcher::open_with_steps(pid, &steps).unwrap().apply(&signed).unwrap();
    let refused = refused.into_inner().unwrap().unwrap();
    assert!(refused.contains("by another"), "{refused}");
}

/// Tells this binary to be a patcher that dies: `PID FILE REVERT NTH`.
pub const DIE_AT: &str = "OUTLIVE_TEST_DIE_AT";

/// The patcher that dies at its NTH step.
pub fn apply_and_die(what: &str) -> ExitCode {
    let mut words = what.split(' ');
    let pid: i32 = words.next().unwrap().parse().unwrap();
    let file = words.next().unwrap();
    let is_revert = words.next() == Some("revert");
    let nth: usize = words.next().unwrap().parse().unwrap();
    let taken = AtomicUsize::new(0);
    let steps = |_: &'static str| {
        if taken.fetch_add(1, Ordering::SeqCst) == nth {
            let own = std::process::id().to_string();
            Command::new("kill").args(["-KILL", &own]).status().unwrap();
            loop {
                std::thread::park();
            }
        }
    };
    let signed = patch::read(&std::fs::read(Path::new(file)).unwrap(), &[key().verifying_key()]).unwrap();
    let mut patcher = Patcher::open_with_steps(pid, &steps).unwrap();
    let outcome = in_time(|| if is_revert { patcher.revert(false) } else { patcher.apply(&signed) });
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => panic!("{error}"),
    }
}

/// A program, what it answers without the patch and with it, and how many steps an apply has at least.
pub fn die_at_every_step(program: &str, old: &str, new: &str, least: usize) {
    let recorded = match program {
        "parts" => Recorded::of_header(program),
        program if program.starts_with("cpp_") => {
            Recorded::new(&format!("g++ -O2 $FLAGS -o program {program}.cpp"))
        }
        program => Recorded::simple(program),
    };
    let is_together = program == "pair";
    // Functions are switched one after the other, and so are the words that say which.
    let is_either = |answer: &str| {
        if is_together {
            // At no step are they between the two.
            return answer.starts_with(old) || answer.starts_with(new);
        }
        let mut words = answer.split_whitespace();
        old.split_whitespace()
            .zip(new.split_whitespace())
            .all(|(old, new)| words.next().is_some_and(|word| word == old || word == new))
    };
    let signed = if is_together { together(&recorded) } else { recorded.patch() };
    let file = recorded.folder().join("fix.opatch");
    std::fs::write(&file, patch::write(&signed.patch, &key()).unwrap()).unwrap();
    let mut deaths = Vec::new();
    // A first apply maps memory; a second finds its region there; a revert holds nobody.
    for (what, is_first) in [("apply", true), ("apply", false), ("revert", false)] {
        for nth in 0.. {
            let mut running = recorded.start();
            assert!(running.ask("?").starts_with(old));
            if !is_first {
                running.apply(&signed);
                if what == "apply" {
                    running.revert();
                }
            }
            let status = Command::new(std::env::current_exe().unwrap())
                .env(DIE_AT, format!("{} {} {what} {nth}", running.pid(), file.display()))
                .arg0("patcher")
                .status()
                .unwrap();
            running.await_ordinary();
            // The process runs, each call is the old or the new function, whole.
            let answer = running.ask("?");
            assert!(is_either(&answer), "{answer} after step {nth} of {what}");
            if status.success() {
                deaths.push(nth);
                break;
            }
            assert!(status.code().is_none(), "the patcher was to die, and ended with {status}");
            // The next patcher finds out what there is.
            let states = running.states();
            let has_switched = is_together && answer.starts_with(new);
            if has_switched || !states.is_empty() && states.iter().all(|state| *state == State::Applied) {
                assert!(running.ask("?").starts_with(new), "after step {nth} of {what}");
                running.revert();
            } else if nth % 2 == 1 && states.iter().any(|state| *state != State::Reverted) {
                // Nothing is left to revert once what was begun is undone.
                let report = running.revert();
                assert!(!report.settled.is_empty(), "after step {nth} of {what}");
            } else {
                running.apply(&signed);
                assert!(running.ask("?").starts_with(new), "after step {nth} of {what}");
                running.revert();
            }
            assert!(running.ask("?").starts_with(old), "after step {nth} of {what}");
        }
    }
    eprintln!("died at {deaths:?} steps");
    assert!(deaths[0] > least && deaths[1] > 2 && deaths[2] > 2, "steps that were died at: {deaths:?}");
}
