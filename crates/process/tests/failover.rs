//! Whole process trees, captured while they run and brought to life from a shell.

mod common;

use std::time::Duration;

use common::*;
use outlive_process::error::Error;
use outlive_process::shell::Shell;
use outlive_process::tree::Workload;

/// Totals printed by `threads.c`, checked to grow.
fn totals(text: &str) -> Vec<u64> {
    assert!(!text.contains("BAD"), "{text}");
    text.lines().filter_map(|line| line.strip_prefix("total ")?.split(' ').next()?.parse().ok()).collect()
}

/// Runs a program that prints growing totals through two failovers, with epochs every few milliseconds.
fn goes_on(name: &str) {
    // The tracer is a thread, and stays one.
    let program = program(&compile(name));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run(&mut workload, Duration::from_millis(50));
    let mut last = 0;
    for round in 0..2 {
        let (next_read, ends) = output();
        let mut shell = Shell::create(&program, network(), &launcher(), ends).expect("a shell");
        sync(&mut workload, &mut shell);
        for _ in 0..20 {
            run(&mut workload, Duration::from_millis(5));
            epoch(&mut workload, &mut shell);
        }
        let before = totals(&read_all(&mut read));
        assert!(before.len() > 3, "round {round}: it printed {before:?}");
        last = last.max(before[0]);
        workload = fail_over(workload, shell);
        read = next_read;
        run(&mut workload, Duration::from_millis(200));
        let after = totals(&read_all(&mut read));
        assert!(after.len() > 3, "round {round}: it goes on: {after:?}");
        assert!(after[0] > last, "round {round}: {} after {last}", after[0]);
        assert!(after.windows(2).all(|pair| pair[0] <= pair[1]));
        last = *after.last().expect("not empty");
    }
}

#[test]
fn threads_go_on_through_epochs_and_two_failovers() {
    goes_on("threads");
}

#[test]
fn forks_and_their_memory_go_on_through_epochs_and_two_failovers() {
    goes_on("forks");
}

/// They are parked: not stopped for a checkpoint as long as nothing wakes them.
#[test]
fn threads_that_only_wait_go_on_through_epochs_and_two_failovers() {
    goes_on("waiting");
}

/// What is as it was is not sent again.
#[test]
fn a_thread_that_waits_for_another_is_in_few_checkpoints() {
    let program = program(&compile("waiting"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run(&mut workload, Duration::from_millis(50));
    freeze(&mut workload);
    let whole = workload.capture_whole().expect("everything is captured");
    workload.thaw().expect("it runs on");
    assert_eq!(whole.processes[0].threads.len(), 4);
    let (mut changed, mut same) = (0, 0);
    for _ in 0..400 {
        run(&mut workload, Duration::from_millis(3));
        freeze(&mut workload);
        let captured = workload.capture();
        workload.thaw().expect("it runs on");
        let checkpoint = match captured {
            Ok((checkpoint, _)) => checkpoint,
            Err(Error::NotNow(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        let process = &checkpoint.processes[0];
        assert_eq!(process.threads.len() + process.same_threads.len(), 4);
        changed += process.threads.len();
        same += process.same_threads.len();
    }
    assert!(same > changed, "{same} unchanged, {changed} changed");
    assert!(!read_all(&mut read).contains("BAD"));
}

/// Nothing of it is lost by that: its connections are still its other threads'.
#[test]
fn r3_a_process_whose_first_thread_has_ended_is_refused_by_name_and_goes_on() {
    let program = program(&compile("headless"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    let mut last = 0;
    for _ in 0..3 {
        run(&mut workload, Duration::from_millis(100));
        freeze(&mut workload);
        let captured = workload.capture_whole();
        workload.thaw().expect("it runs on");
        let refusal = captured.expect_err("it cannot be captured").to_string();
        assert!(refusal.contains("a process whose first thread has ended"), "{refusal}");
        let total = *totals(&read_all(&mut read)).last().expect("it goes on");
        assert!(total > last, "{total} after {last}");
        last = total;
    }
}

/// A parked thread does not wake for a signal that it does not let in; the signal is in a checkpoint all the same.
#[test]
fn r3_a_signal_for_a_thread_that_sleeps_on_is_captured() {
    let program = program(&compile("signalled"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    let whole = workload.capture_whole().expect("everything is captured");
    workload.thaw().expect("it runs on");
    let sleeper = whole.processes[0].threads[1].tid;
    let capture = |workload: &mut Workload| {
        freeze(workload);
        let captured = workload.capture();
        workload.thaw().expect("it runs on");
        run(workload, Duration::from_millis(1));
        captured.map(|(checkpoint, _)| checkpoint)
    };
    // By then it is parked.
    for _ in 0..10 {
        capture(&mut workload).expect("everything is captured");
    }
    workload.signal(libc::SIGUSR1).expect("it is told");
    run_until(&mut workload, &mut read, "sent");
    // At first it may be refused for the moment: the thread is parked, and has to be stopped to be asked.
    let checkpoint = (0..100).find_map(|_| match capture(&mut workload) {
        Err(Error::NotNow(_)) => None,
        captured => Some(captured.expect("everything is captured")),
    });
    let checkpoint = checkpoint.expect("it can be stopped");
    let thread = checkpoint.processes[0].threads.iter().find(|thread| thread.tid == sleeper);
    assert_eq!(thread.map(|thread| thread.pending.len()), Some(1));
}

/// Launcher and init say what they have to over one socket; whichever ran first was once taken for the other.
#[test]
fn many_are_launched_at_once_and_every_init_is_found() {
    let program = program(std::path::Path::new("/bin/true"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let (_read, ends) = output();
                    let shell = Shell::create(&program, network(), &launcher(), ends).expect("a shell");
                    assert!(shell.init() > 1);
                }
            });
        }
    });
}

/// A thread that waits for another runs no code of the program's, so that it is not woken to be stopped.
#[test]
fn a_thread_that_waits_for_another_is_left_alone() {
    let program = program(&compile("signalled"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    drop(workload.capture_whole().expect("everything is captured"));
    workload.thaw().expect("it runs on");
    let mut capture = || {
        for _ in 0..10 {
            freeze(&mut workload);
            drop(workload.capture().expect("everything is captured"));
            workload.thaw().expect("it runs on");
            run(&mut workload, Duration::from_millis(2));
        }
        switches(workload.host_pid(2).expect("its first process"))
    };
    // Until it is parked it is stopped like the others.
    let mut before = capture();
    for _ in 0..100 {
        let after = capture();
        assert_ne!(before[0], after[0], "the first thread is stopped every time");
        if before[1] == after[1] {
            return;
        }
        before = after;
    }
    panic!("the sleeper is woken every time: {before:?}");
}

/// How often each thread of a process has gone to sleep, the first one first (`voluntary_ctxt_switches`, proc(5)).
fn switches(pid: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let mut tids: Vec<i32> = tasks
        .map(|task| task.expect("a task").file_name().to_string_lossy().parse().expect("a number"))
        .collect();
    tids.sort_unstable();
    let status = |tid| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).expect("it lives");
    let of = |status: String| {
        status.lines().find(|line| line.starts_with("voluntary")).expect("it is counted").to_owned()
    };
    tids.into_iter().map(|tid| of(status(tid))).collect()
}
