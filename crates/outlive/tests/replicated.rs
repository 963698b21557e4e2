//! `outlive replicated`: a live pair as the command line shows it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outlive_replicated::protection::Phase;
use outlive_replicated::testing::{Cluster, free_address};
use outlive_replicated::{Config, List, Node, commit, replicated, start, status};

const CONFIG: &str = "OUTLIVE_TEST_FOLLOWER";

#[replicated]
static DONE: List<u64> = List::new();

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test but the backup of the one below, in a process of its own.
#[test]
fn follower() {
    if let Some(config) = std::env::var_os(CONFIG) {
        start(Config::load(Path::new(&config)).unwrap()).unwrap();
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
