//! Connections that a program closes while what it said is still on its way.

mod common;

use std::time::Duration;

use common::*;
use outlive_process::checkpoint::{Checkpoint, Object};
use outlive_process::descriptors::as_socket;
use outlive_process::error::Error;
use outlive_process::object::tcp::State;
use outlive_process::tree::Workload;

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
    // The first is there as well as long as its end is not acknowledged.
    let orphans = checkpoint.objects.iter().filter(|(id, _)| checkpoint.orphans.contains(id));
    let unsent = |object: &Object| match as_socket(object).map(|socket| &socket.state) {
        Some(State::Connected(connection)) => !connection.send.is_empty(),
        _ => false,
    };
    assert_eq!(orphans.filter(|(_, object)| unsent(object)).count(), 1, "{:?}", checkpoint.orphans);
}

/// A checkpoint between the notice of a close and the look at what became of it took the connection for one that somebody
/// still holds, by what was known of it before, and let go of it: it was in no checkpoint from then on.
#[test]
fn a_connection_closed_just_before_a_checkpoint_is_kept() {
    const CONNECTIONS: usize = 60;
    let program = program(&compile("leaving"));
    let (mut read, ends) = output();
    let mut workload = Workload::launch(&program, network(), &launcher(), ends).expect("it starts");
    run_until(&mut workload, &mut read, "ready");
    let mut captured = once_possible(&mut workload, Workload::capture_whole);
    let mut said = String::new();
    while !said.contains("done") {
        workload.wait(Duration::from_millis(1), &[]).expect("it runs");
        said.push_str(&read_all(&mut read));
        captured = capture(&mut workload);
    }
    assert!(!said.contains("BAD"), "{said}");
    // Two more: a close may still have been under way.
    for _ in 0..2 {
        run(&mut workload, Duration::from_millis(20));
        captured = capture(&mut workload);
    }
    assert_eq!(captured.orphans.len(), CONNECTIONS);
}

fn capture(workload: &mut Workload) -> Checkpoint {
    once_possible(workload, |workload| Ok(workload.capture()?.0))
}

/// A connection of the workload to itself may wait to be accepted just now.
fn once_possible(
    workload: &mut Workload,
    mut capture: impl FnMut(&mut Workload) -> Result<Checkpoint, Error>,
) -> Checkpoint {
    loop {
        freeze(workload);
        let captured = capture(workload);
        workload.thaw().expect("it runs on");
        match captured {
            Err(Error::NotNow(_)) => workload.wait(Duration::from_millis(1), &[]).map(drop).expect("it runs"),
            captured => return captured.expect("everything is captured"),
        }
    }
}
