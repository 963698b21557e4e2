//! Connections that a program closes while what it said is still on its way.

mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use common::*;
use outlive_process::tree::Workload;

/// Only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(60);

fn run_until(workload: &mut Workload, output: &mut File, word: &str) {
    let begun = Instant::now();
    let mut said = String::new();
    while !said.contains(word) {
        assert!(begun.elapsed() < PATIENCE && !said.contains("BAD"), "waited for {word}: {said}");
        run(workload, Duration::from_millis(5));
        said.push_str(&read_all(output));
    }
}

/// A close was taken for that of the connection that had the number at the last checkpoint, so nothing was kept of the
/// other, and its peer waited for ever.
#[test]
fn a_connection_closed_under_a_number_that_was_given_twice_in_an_epoch_is_kept() {
    let program = program(&compile("closing"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    freeze(&mut workload);
    let whole = workload.capture_whole().expect("everything is captured");
    workload.thaw().expect("it runs on");
    assert!(whole.orphans.is_empty());

    workload.signal(libc::SIGUSR1).expect("it is told");
    run_until(&mut workload, &mut read, "done");
    freeze(&mut workload);
    let (checkpoint, _) = workload.capture().expect("it is captured");
    workload.thaw().expect("it runs on");
    // The first has been ended, and that is acknowledged; the second has its data still to bring.
    assert_eq!(checkpoint.orphans.len(), 1, "{:?}", checkpoint.orphans);
}
