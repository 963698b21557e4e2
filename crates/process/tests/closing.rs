//! Connections that a program closes while what it said is still on its way.

mod common;

use common::*;
use outlive_process::checkpoint::Object;
use outlive_process::descriptors::as_socket;
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
