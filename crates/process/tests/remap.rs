//! Memory where something else was mapped before.

mod common;

use std::process::Command;
use std::time::Duration;

use common::*;
use outlive_process::checkpoint::Run;
use outlive_process::tree::Workload;

/// The place of a mapping that cannot be tracked, and need not be, is that of memory later. Whoever remembers such places
/// has to notice.
#[test]
fn memory_is_tracked_where_a_file_was_mapped_that_cannot_be_written() {
    let program = program(&compile("remap"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    drop(workload.capture_whole().expect("everything is captured"));
    workload.thaw().expect("it runs on");
    while workload.copy_backlog(1024).is_some() {}

    let mut address = 0;
    for word in ["mapped", "written"] {
        workload.signal(libc::SIGUSR1).expect("it is told");
        let said = run_until(&mut workload, &mut read, word);
        if let Some(at) = said.lines().find_map(|line| line.strip_prefix("at ")) {
            address = at.parse().expect("an address");
        }
        freeze(&mut workload);
        let (checkpoint, _) = workload.capture().expect("it is captured");
        workload.thaw().expect("it runs on");
        let runs = checkpoint.processes.iter().flat_map(|process| &process.memory.runs);
        let held = runs.clone().any(|run| {
            !run.zero && (run.address..run.address + u64::from(run.pages) * 4096).contains(&address)
        });
        assert!(held, "{word}: {address:x} is not in {:x?}", runs.collect::<Vec<_>>());
    }
}

/// Reserved addresses are not tracked as long as nothing is in them. That they are closed again does not mean that nothing is.
#[test]
fn r3_what_is_written_to_reserved_addresses_for_a_moment_is_captured() {
    let program = program(&compile("reserved"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    drop(workload.capture_whole().expect("everything is captured"));
    workload.thaw().expect("it runs on");
    while workload.copy_backlog(1024).is_some() {}
    for _ in 0..3 {
        freeze(&mut workload);
        let (checkpoint, _) = workload.capture().expect("it is captured");
        workload.thaw().expect("it runs on");
        let fresh = checkpoint.processes.iter().flat_map(|process| &process.memory.fresh);
        assert!(fresh.map(|range| range.pages()).sum::<u64>() < 1000, "the reserved addresses are tracked");
    }

    workload.signal(libc::SIGUSR1).expect("it is told");
    let said = run_until(&mut workload, &mut read, "written");
    let address: u64 =
        said.lines().find_map(|line| line.strip_prefix("at ")?.parse().ok()).expect("an address");
    freeze(&mut workload);
    let (checkpoint, _) = workload.capture().expect("it is captured");
    workload.thaw().expect("it runs on");
    let mut runs = checkpoint.processes.iter().flat_map(|process| &process.memory.runs);
    assert!(runs.any(|run| !run.zero && run.range().start <= address && address < run.range().end));
}

/// A call that empties pages is made after its notice. On a busy machine they may be copied in between, as here, where the
/// program runs only while its tracer waits.
#[test]
fn pages_emptied_right_after_they_were_copied_are_empty_in_the_copy() {
    let program = program(&compile("emptied"));
    let (mut read, ends) = output();
    let network = network();
    let mut workload = Workload::launch(&program, &network, &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    drop(workload.capture_whole().expect("everything is captured"));
    workload.thaw().expect("it runs on");
    while workload.copy_backlog(1024).is_some() {}
    let tracer = nix::unistd::gettid().to_string();
    let first = workload.host_pid(2).expect("it runs").to_string();
    for who in [&tracer, &first] {
        let bound = Command::new("taskset").args(["-p", "-c", "0", who]).output().expect("it is installed");
        assert!(bound.status.success(), "{who} cannot be bound to a processor");
    }
    let status = Command::new("chrt").args(["-f", "-p", "1", &tracer]).status().expect("it is installed");
    assert!(status.success(), "the tracer cannot go before its workload");
    let (mut stale, mut emptied) = (Vec::new(), 0);
    for _ in 0..100 {
        workload.wait(Duration::from_millis(2), &[]).expect("it runs");
        workload.live_round().expect("a live round");
        freeze(&mut workload);
        let (checkpoint, _) = workload.capture().expect("it is captured");
        workload.thaw().expect("it runs on");
        let memory = &checkpoint.processes.first().expect("there is one").memory;
        emptied += memory.dropped.len();
        let is_emptied = |run: &&Run| {
            let run = run.range();
            memory.dropped.iter().any(|range| range.start < run.end && run.start < range.end)
        };
        stale.extend(memory.runs.iter().filter(|run| !run.zero).filter(is_emptied).map(|run| run.address));
    }
    assert!(emptied > 0, "nothing was emptied");
    assert!(stale.is_empty(), "pages that are emptied have content in a checkpoint: {stale:x?}");
}
