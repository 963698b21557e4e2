//! Memory where something else was mapped before.

mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use common::*;
use outlive_process::tree::Workload;

/// Only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(60);

fn run_until(workload: &mut Workload, output: &mut File, word: &str) -> String {
    let begun = Instant::now();
    let mut said = String::new();
    while !said.contains(word) {
        assert!(begun.elapsed() < PATIENCE && !said.contains("BAD"), "waited for {word}: {said}");
        run(workload, Duration::from_millis(5));
        said.push_str(&read_all(output));
    }
    said
}

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
