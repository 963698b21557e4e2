//! `outlive replicated`: a live pair as the command line shows it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outlive_replicated::protection::Phase;
use outlive_replicated::testing::{Cluster, free_address};
use outlive_replicated::{Config, List, Node, commit, replicated, start, status};

const CONFIG: &str = "OUTLIVE_TEST_FOLLOWER";
const SERVES: &str = "OUTLIVE_TEST_SERVES";

#[replicated]
static DONE: List<u64> = List::new();

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test but a process of those below.
#[test]
fn follower() {
    if let Some(config) = std::env::var_os(CONFIG) {
        start(Config::load(Path::new(&config)).unwrap()).unwrap();
        // Until it is killed, as one that serves.
        while std::env::var_os(SERVES).is_some() {
            std::thread::park();
        }
    }
}

fn outlive(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outlive")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_live_pair_is_shown_with_its_rates() {
    if std::env::var_os(CONFIG).is_some() {
        return;
    }
    let cluster = Cluster::new();
    let nodes = ["a", "b", "c"].map(|name| Node { name: name.into(), address: free_address() });
    let configs = [0, 1, 2].map(|place: usize| cluster.config_file("shown", &nodes[place], &nodes));
    let path = configs[0].to_str().unwrap();
    let (code, _, error) = outlive(&["replicated", "inspect", path, "--over", "1"]);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("no process of shown answers"), "{error}");

    start(Config::load(&configs[0]).unwrap()).unwrap();
    let followers = [1, 2].map(|place: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["follower", "--exact"])
            .env(CONFIG, &configs[place])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let follower = Follower(command.spawn().unwrap());
        let since = Instant::now();
        let counting = || status().map_or(0, |status| status.backups.iter().filter(|one| one.counts).count());
        while counting() != place || status().and_then(|status| status.phase) != Some(Phase::Protected) {
            assert!(since.elapsed() < Duration::from_secs(60), "{:?}", status());
            std::thread::sleep(Duration::from_millis(5));
        }
        follower
    });
    let over = AtomicBool::new(false);
    let (json, table) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                DONE.write().push(7);
                commit().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let json = outlive(&["replicated", "inspect", path, "--over", "500", "--json"]);
        let table = outlive(&["replicated", "inspect", path, "--over", "100"]);
        over.store(true, Ordering::Relaxed);
        (json, table)
    });
    assert_eq!((json.0, table.0), (0, 0), "{}, {}", json.2, table.2);
    let rows: serde_json::Value = serde_json::from_str(&json.1).unwrap();
    let (a, b, c) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((&a["node"], &a["role"], &a["phase"]), (&"a".into(), &"primary".into(), &"Protected".into()));
    assert_eq!((&b["node"], &b["role"]), (&"b".into(), &"backup".into()));
    assert_eq!(
        (&c["node"], &c["role"], a["backups"].as_array().unwrap().len()),
        (&"c".into(), &"backup".into(), 2)
    );
    for row in [a, b, c] {
        assert!(row["commits_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["bytes_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["objects"], 4, "two statics, one of the library, and what is in them: {row}");
    }
    assert!(b["lag_commits"].is_u64());
    for (backup, node) in a["backups"].as_array().unwrap().iter().zip(["b", "c"]) {
        assert_eq!((&backup["node"], &backup["counts"]), (&node.into(), &true.into()), "{a}");
        assert!(backup["lag_us"].is_u64() && backup["lag_commits"].is_u64(), "{a}");
    }
    assert!(table.1.contains("COMMITS/S") && table.1.contains("protected"), "{}", table.1);
    println!("{}", table.1);
    assert!(table.1.contains("b: ") && table.1.contains("; c: "), "{}", table.1);

    drop(followers);
    let gone = outlive(&["replicated", "inspect", path, "--over", "1"]);
    assert!(gone.0 == 0 && gone.1.contains("silent"), "{gone:?}");
}

/// A primary and a backup die at once, and the other waits for what the backup may have held alone.
#[test]
fn the_one_that_is_left_goes_on_by_a_word_on_the_command_line() {
    if std::env::var_os(CONFIG).is_some() {
        return;
    }
    let cluster = Cluster::new();
    let nodes = ["a", "b", "c"].map(|name| Node { name: name.into(), address: free_address() });
    let configs = [0, 1, 2].map(|place: usize| {
        let path = cluster.config_file("left", &nodes[place], &nodes);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("wait_for = \"one\"\n{text}")).unwrap();
        path
    });
    let path = configs[2].to_str().unwrap();
    let forget = |nodes: &[&str]| outlive(&[&["replicated", "forget", path], nodes].concat());
    let nobody = forget(&["a", "b"]);
    assert!(nobody.0 == 4 && nobody.2.contains("nobody holds left"), "{nobody:?}");
    assert_eq!(forget(&[]).0, 2);

    let mut all: Vec<Option<Follower>> = configs
        .iter()
        .map(|config| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["follower", "--exact"]).env(CONFIG, config).env(SERVES, "1");
            Some(Follower(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()))
        })
        .collect();
    let since = Instant::now();
    let rows = || -> serde_json::Value {
        let shown = outlive(&["replicated", "inspect", path, "--over", "1", "--json"]);
        serde_json::from_str(&shown.1).unwrap_or_default()
    };
    let (primary, names) = loop {
        assert!(since.elapsed() < Duration::from_secs(60), "{}", rows());
        let rows = rows();
        let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
        let protected = |row: &&serde_json::Value| {
            let backups = row["backups"].as_array().map_or(&[][..], Vec::as_slice);
            row["phase"] == "Protected" && backups.iter().filter(|one| one["counts"] == true).count() == 2
        };
        if let Some(row) = rows.iter().find(protected) {
            let name = row["node"].as_str().unwrap().to_owned();
            let others = ["a", "b", "c"].into_iter().filter(|other| *other != name);
            break (name.clone(), others.map(str::to_owned).collect::<Vec<_>>());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // Of the two backups, the one whose configuration the command is given stays, if it is one.
    let (dead, left) = if names[1] == "c" { (&names[0], &names[1]) } else { (&names[1], &names[0]) };
    let alive = forget(&[&primary, dead]);
    assert!(alive.0 == 5 && alive.2.contains(&format!("{primary} answers, and is primary")), "{alive:?}");
    let place = |name: &str| ["a", "b", "c"].iter().position(|other| *other == name).unwrap();
    // Both are stopped first, so that neither notices the end of the other.
    for name in [&primary, dead] {
        let process = all[place(name)].as_ref().unwrap().0.id();
        kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGSTOP).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    all[place(dead)] = None;
    all[place(&primary)] = None;

    let unknown = forget(&["d"]);
    assert!(unknown.0 == 4 && unknown.2.contains("d holds nothing of left"), "{unknown:?}");
    let half = forget(&[dead]);
    let next = format!("`outlive replicated forget CONFIG {primary} {dead}`");
    assert!(half.0 == 5 && half.2.contains(&next) && half.2.lines().count() == 1, "{half:?}");
    let forgot = loop {
        let forgot = forget(&[&primary, dead, "--json"]);
        // It has not noticed yet that its primary is gone.
        if forgot.0 != 5 {
            break forgot;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{forgot:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(forgot.0, 0, "{forgot:?}");
    let said: serde_json::Value = serde_json::from_str(&forgot.1).unwrap();
    assert_eq!(said["goes_on"], left.as_str(), "{said}");
    assert_eq!(said["forgotten"]["nodes"], serde_json::json!([primary, dead]), "{said}");
    let table = outlive(&["replicated", "inspect", path, "--over", "1"]);
    let note = format!("went on without {primary}, {dead}: acknowledged commits may be lost");
    assert!(table.1.contains(&note), "{}", table.1);
    let again = forget(&[&primary, dead]);
    assert!(again.0 == 4 && again.2.contains("holds nothing"), "{again:?}");
}
