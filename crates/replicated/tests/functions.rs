//! Replicated functions between real processes: what is opened is a file of each process, in a directory of the test.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use outlive_replicated::testing::Run;
use outlive_replicated::{CommitError, Handle, Map, Role, commit, failover_test, replicated, status};

/// A file that is there for as long as it is open, with the process's number in its name.
struct Opened {
    path: PathBuf,
    process: u32,
}

/// One for each pair of processes: the test is their parent, and the primary of each pair has its own commits.
fn directory() -> PathBuf {
    let path = std::env::var_os("OUTLIVE_REPLICATED_TEST_CONFIG").map(PathBuf::from).unwrap();
    // Beside the configuration, which ends with the node's name.
    let stem = path.file_stem().unwrap().to_str().unwrap().rsplit_once('-').unwrap().0.to_owned();
    let directory = path.with_file_name(format!("{stem}-files"));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn create(name: &str) -> Result<Opened, String> {
    let process = std::process::id();
    let path = directory().join(format!("{name}.{process}"));
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|error| error.to_string())?;
    Ok(Opened { path, process })
}

/// How many processes have this open.
fn open_in(name: &str) -> usize {
    let prefix = format!("{name}.");
    let names = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with(&prefix)).count()
}

fn close(opened: Opened) {
    std::fs::remove_file(opened.path).unwrap();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(30), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_backup() -> bool {
    status().is_some_and(|status| status.role == Role::Backup)
}

#[replicated(eager, undo = close)]
fn open(name: String) -> Result<Opened, String> {
    create(&name)
}

/// Needs another, which is open before it and closed after it.
#[replicated(undo = close)]
fn open_within(outer: &Handle<Opened>, name: String) -> Result<Opened, Box<dyn std::error::Error>> {
    let outer = outer.lock()?;
    if !outer.path.exists() {
        return Err("what it depends on is not open".into());
    }
    Ok(create(&name)?)
}

#[replicated(lazy, undo = close)]
fn open_late(name: String) -> Opened {
    create(&name).unwrap()
}

#[replicated(eager, on_error = fail, undo = close)]
fn open_picky(name: String) -> Result<Opened, &'static str> {
    if is_backup() { Err("not here") } else { create(&name).map_err(|_| "not at all") }
}

#[replicated(eager, on_error = retry, undo = close)]
fn open_patiently(name: String) -> Result<Opened, String> {
    if is_backup() && !directory().join("permitted").exists() {
        return Err("not permitted yet".into());
    }
    create(&name)
}

#[replicated]
static FILES: Map<String, Handle<Opened>> = Map::new();

fn process_of(name: &str) -> u32 {
    let local = FILES.read().get(name).unwrap().local();
    let opened = local.lock().unwrap();
    assert!(opened.path.exists(), "{name} is not open");
    opened.process
}

/// Killed at every step: whoever serves has everything open itself that was acknowledged, and nothing that was closed.
#[failover_test(random = 3)]
fn what_was_opened_is_open_here_after_any_takeover(run: &Run) {
    let here = std::process::id();
    let mut done = run.acknowledged();
    for name in ["outer", "inner"].into_iter().take(done.min(2) as usize) {
        assert_eq!(process_of(name), here, "{name} is the other process's");
    }
    if done < 3 && FILES.read().get("other").is_some() {
        assert_eq!(process_of("other"), here);
    }
    if FILES.read().get("outer").is_none() {
        let outer = open("outer".into()).unwrap();
        FILES.write().insert("outer".into(), outer);
        commit().unwrap();
        if run.is_fresh() {
            // The commit was acknowledged, so the backup has it open: no takeover waits for it.
            assert_eq!(open_in("outer"), 2);
        }
    }
    if done < 1 {
        done = 1;
        run.acknowledge(done);
    }
    if FILES.read().get("inner").is_none() {
        let inner = {
            let files = FILES.read();
            let outer = files.get("outer").unwrap();
            open_within(&outer, "inner".into()).unwrap()
        };
        FILES.write().insert("inner".into(), inner);
        commit().unwrap();
    }
    if done < 2 {
        done = 2;
        run.acknowledge(done);
    }
    if done < 3 && FILES.read().get("other").is_none() {
        let other = open("other".into()).unwrap();
        FILES.write().insert("other".into(), other);
        commit().unwrap();
        run.acknowledge(3);
    }
    if FILES.read().get("other").is_some() {
        FILES.write().remove(&"other".into());
        commit().unwrap();
        run.acknowledge(4);
    }
    // Undone here once that is acknowledged, and on the backup.
    let open_here = directory().join(format!("other.{here}"));
    until("other is closed here", || !open_here.exists());
    if run.is_fresh() {
        until("other is closed on the backup", || open_in("other") == 0);
    }
    assert_eq!((process_of("outer"), process_of("inner")), (here, here));
}

#[failover_test(random = 0)]
fn a_call_that_fails_on_the_backup_fails_the_commit(run: &Run) {
    if !run.is_fresh() {
        // Of what failed nothing has come; what was committed after it may have.
        assert!(FILES.read().get("picky").is_none() && FILES.read().len() <= 1);
        return;
    }
    let (fine, picky) = (open("fine".into()).unwrap(), open_picky("picky".into()).unwrap());
    let mut files = FILES.write();
    files.insert("fine".into(), fine);
    files.insert("picky".into(), picky);
    drop(files);
    let outcome = commit();
    let Err(CommitError::CallFailed { function, reason }) = outcome else { panic!("{outcome:?}") };
    assert!(function.ends_with("open_picky") && reason == "not here", "{function}: {reason}");
    // The transaction is undone, and so is what its calls have done, on both sides.
    assert!(FILES.read().is_empty());
    until("all is closed", || open_in("fine") + open_in("picky") == 0);
    // What is built anew is not disturbed by that.
    FILES.write().insert("fine".into(), open("fine".into()).unwrap());
    commit().unwrap();
    assert_eq!(open_in("fine"), 2);
    FILES.write().clear();
    commit().unwrap();
}

#[failover_test(random = 0)]
fn a_call_that_may_be_retried_is_reported_and_done_later(run: &Run) {
    let here = std::process::id();
    if run.is_fresh() {
        FILES.write().insert("patient".into(), open_patiently("patient".into()).unwrap());
        FILES.write().insert("late".into(), open_late("late".into()).unwrap());
        commit().unwrap();
        run.acknowledge(1);
        // Where this process is killed at its commit there is nobody to hear it.
        let failing = || status().unwrap().failing;
        until("the backup says that it fails", || {
            failing().iter().any(|what| what.contains("not permitted"))
        });
        assert_eq!((open_in("patient"), open_in("late")), (1, 1));
        std::fs::write(directory().join("permitted"), "").unwrap();
        until("the backup has it open", || open_in("patient") == 2);
        until("nothing fails any more", || failing().is_empty());
    } else if run.acknowledged() > 0 || FILES.read().get("late").is_some() {
        assert_eq!((process_of("patient"), process_of("late")), (here, here));
    }
}

#[replicated(lazy, name = "functions::named")]
fn named(from: u64, to: u64, value: u64, arguments: u64, store: u64) -> u64 {
    from + to + value + arguments + store
}

#[test]
fn arguments_may_have_any_names() {
    let handle = named(1, 2, 3, 4, 5).unwrap();
    assert_eq!(*handle.lock().unwrap(), 15);
}
