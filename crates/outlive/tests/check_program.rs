//! `outlive check --program` and `--pid`, on real programs.

mod support;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::{OUTLIVE, outlive, refused, text, until};

/// Runs a program under `check` for this many seconds; its exit code and what was found.
fn check(seconds: &str, options: &[&str], program: &[&str]) -> (i32, Value) {
    let before = ["check", "--program", "--json", "--for", seconds];
    found(&outlive(&[&before, options, &["--"], program].concat()))
}

fn found(output: &Output) -> (i32, Value) {
    let found = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr)));
    (output.status.code().unwrap(), found)
}

/// The row of an object whose name has these words.
#[track_caller]
fn row<'a>(found: &'a Value, verdict: &str, words: &str) -> &'a Value {
    let rows = found["objects"].as_array().unwrap();
    let is = |row: &&Value| row["verdict"] == verdict && row["object"].as_str().unwrap().contains(words);
    rows.iter().find(is).unwrap_or_else(|| panic!("no {verdict} row for {words}: {found:#}"))
}

#[test]
fn redis_can_be_protected_and_its_objects_are_named() {
    let redis = ["redis-server", "--save", "", "--appendonly", "no"];
    let (code, found) = check("2", &[], &redis);
    assert_eq!((code, &found["can_be_protected"]), (0, &Value::Bool(true)), "{found:#}");
    assert!(row(&found, "captured", "TCP listener")["example"].as_str().unwrap().contains("6379"));
    assert!(row(&found, "captured", "thread")["count"].as_u64().unwrap() > 1);
    row(&found, "captured", "epoll instance");
}

#[test]
fn r3_every_refusal_of_a_program_is_listed_with_what_to_do() {
    let program = "\
import ctypes, socket, time
libc = ctypes.CDLL(None, use_errno=True)
first = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
assert libc.unshare(0x04000000) == 0            # CLONE_NEWUTS
assert libc.syscall(425, 8, 0) == -1            # io_uring_setup
assert ctypes.get_errno() == 38                 # ENOSYS, as the filter says
assert libc.ptrace(0, 0, 0, 0) == -1
print('in use', flush=True)
time.sleep(60)";
    let (code, found) = check("2", &[], &["python3", "-c", program]);
    assert_eq!((code, &found["can_be_protected"]), (5, &Value::Bool(false)), "{found:#}");
    row(&found, "refused", "a socket of family 40");
    let namespace = row(&found, "refused", "host name namespace");
    assert!(namespace["advice"].as_str().unwrap().contains("without namespaces"));
    assert!(row(&found, "hidden", "io_uring_setup")["advice"].as_str().unwrap().contains("ENOSYS"));
    row(&found, "hidden", "ptrace");
}

#[test]
fn where_a_program_writes_is_said_with_the_directory_to_declare() {
    let writes = ["sh", "-c", "echo x >/srv/kept; echo y >/tmp/own; sleep 60"];
    let (code, found) = check("1", &[], &writes);
    assert_eq!((code, found["scratch"][0].as_str()), (5, Some("/srv")), "{found:#}");
    let row = row(&found, "refused", "/srv/kept");
    assert!(row["advice"].as_str().unwrap().starts_with("--scratch /srv"), "{row}");
    // Declared, and then it can be.
    let (code, found) = check("1", &["--scratch", "/srv"], &writes);
    assert_eq!((code, &found["scratch"]), (0, &serde_json::json!([])), "{found:#}");
}

#[test]
fn r3_what_was_refused_and_has_gone_is_no_obstacle() {
    let undone = "mount -t tmpfs none /mnt && umount /mnt; mount -t tmpfs none /nonexistent; sleep 60";
    let (code, found) = check("2", &[], &["sh", "-c", undone]);
    assert_eq!(code, 0, "{found:#}");
    let (code, found) = check("2", &[], &["sh", "-c", "mount -t tmpfs none /mnt; sleep 60"]);
    assert_eq!(code, 5, "{found:#}");
    row(&found, "refused", "a mount of its own at /mnt");
}

#[test]
fn a_program_that_ends_says_how_and_one_that_is_not_there_is_named() {
    let (code, found) = check("10", &[], &["sh", "-c", "sleep 0.3; exit 3"]);
    assert_eq!(code, 0, "{found:#}");
    assert!(found["course"].as_str().unwrap().contains("exit code 3"), "{found:#}");
    let said = refused(&outlive(&["check", "--program", "--", "no-such-program"]), 2);
    assert!(said.contains("no such program"), "{said}");
    refused(&outlive(&["check", "--program"]), 2);
    refused(&outlive(&["check", "--", "true"]), 2);
}

#[test]
fn a_program_that_runs_already_is_looked_at_from_outside() {
    let program = "import socket, sys, time; a = open('/var/tmp/outlive-check', 'w'); \
                   s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); l = socket.create_server(('127.0.0.1', 0)); \
                   print('in use', flush=True); time.sleep(60)";
    let mut child =
        Command::new("python3").args(["-c", program]).stdout(Stdio::piped()).spawn().expect("python3");
    let pid = child.id();
    until("it has its files open", || {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| fds.count() >= 6)
    });
    let output = outlive(&["check", "--pid", &pid.to_string(), "--json"]);
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file("/var/tmp/outlive-check").unwrap();
    assert!(alive, "it runs on");
    let (code, found) = found(&output);
    assert_eq!((code, found["scratch"][0].as_str()), (5, Some("/var/tmp")), "{found:#}");
    row(&found, "refused", "a socket of family 40");
    row(&found, "captured", "TCP socket");
    assert!(!found["unseen"].as_array().unwrap().is_empty());
    let gone = Command::new(OUTLIVE).args(["check", "--pid", "4000000"]).output().unwrap();
    refused(&gone, 4);
}
