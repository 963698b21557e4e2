//! The server in C is killed again and again while clients write.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{compiled, home};
use outlive_replicated::testing::{Client, Cluster, Place};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CLIENTS: u64 = 32;
const SHARED: u64 = 8;

/// What a client knows to have happened.
#[derive(Default)]
struct Knows {
    /// What it added to keys that all clients use.
    added: BTreeMap<u64, i64>,
    /// How often its own key was set, and to what.
    version: u64,
    value: Option<String>,
    changes: u64,
    deletions: u64,
    longest: Duration,
}

fn write_until(over: &AtomicBool, number: u64, mut client: Client) -> Knows {
    let mut rng = SmallRng::seed_from_u64(number);
    let (mut knows, mut count) = (Knows::default(), 0);
    while !over.load(Ordering::Relaxed) {
        count += 1;
        match rng.random_range(0..22) {
            0 => {
                let reply = client.ask(&format!("{number} {count} delete own-{number}"));
                let expected = if knows.value.is_some() { "ok" } else { "none" };
                assert_eq!(reply, expected);
                knows.deletions += u64::from(knows.value.take().is_some());
                knows.version = 0;
            }
            1..=9 => {
                let value = format!("value-{count}");
                let reply = client.ask(&format!("{number} {count} set own-{number} {value}"));
                knows.version += 1;
                assert_eq!(
                    reply,
                    format!("ok {}", knows.version),
                    "done once, after all that was acknowledged"
                );
                knows.value = Some(value);
                knows.changes += 1;
            }
            // While others write both of what it reads.
            20.. => {
                let reply = client.ask("totals");
                let totals: Vec<u64> = reply.split(' ').map(|total| total.parse().unwrap()).collect();
                assert_eq!(totals.len(), 3, "{reply}");
                assert!(totals[1] >= knows.changes && totals[2] >= knows.deletions, "{reply}");
            }
            10..=12 => {
                let reply = client.ask(&format!("get own-{number}"));
                let expected = match &knows.value {
                    Some(value) => format!("{} 0 {value}", knows.version),
                    None => "none".into(),
                };
                assert_eq!(reply, expected, "what was acknowledged is read");
            }
            _ => {
                let (key, amount) = (rng.random_range(0..SHARED), rng.random_range(-5..20));
                client.ask(&format!("{number} {count} add shared-{key} {amount}"));
                *knows.added.entry(key).or_insert(0) += amount;
                knows.changes += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    knows.longest = client.longest;
    knows
}

#[test]
fn nothing_that_the_server_in_c_acknowledged_is_lost_or_done_twice() {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(8, |kills| kills.parse().unwrap());
    let cluster = Cluster::new();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kvd");
    compiled("gcc", &home().join("../../examples/kvd/kvd.c"), &program, &["-O2"]);
    let mut places = Place::pair(&cluster, "kvd", program.to_str().unwrap(), &[]);
    let over = AtomicBool::new(false);
    let known = std::thread::scope(|scope| {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Over(&over);
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let (over, client) = (&over, Client::of(&places));
                scope.spawn(move || write_until(over, number, client))
            })
            .collect();
        let mut rng = SmallRng::from_os_rng();
        for _ in 0..kills {
            let primary = Place::protected(&places);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..200)));
            places[primary].kill();
            places[primary].start();
        }
        Place::protected(&places);
        drop(guard);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });

    let mut client = Client::of(&places);
    for key in 0..SHARED {
        let expected: i64 = known.iter().filter_map(|knows| knows.added.get(&key)).sum();
        let reply = client.ask(&format!("get shared-{key}"));
        assert_eq!(reply.split(' ').nth(1), Some(&*expected.to_string()), "shared-{key}: {reply}");
    }
    let own = known.iter().filter(|knows| knows.value.is_some()).count();
    let total = |of: fn(&Knows) -> u64| known.iter().map(of).sum::<u64>();
    let (changes, deletions) = (total(|knows| knows.changes), total(|knows| knows.deletions));
    assert_eq!(client.ask("totals"), format!("{} {changes} {deletions}", own as u64 + SHARED));
    let keys = client.ask("scan shared-");
    assert_eq!(keys.split(' ').count() as u64, SHARED, "{keys}");
    let longest = known.iter().map(|knows| knows.longest).max().unwrap();
    eprintln!(
        "{kills} kills, {changes} changes, {deletions} deletions, longest wait {} ms",
        longest.as_millis()
    );
}

#[test]
fn a_request_that_is_cut_is_not_done() {
    let cluster = Cluster::new();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("kvd");
    compiled("gcc", &home().join("../../examples/kvd/kvd.c"), &program, &["-O2"]);
    let places = Place::pair(&cluster, "kvd", program.to_str().unwrap(), &[]);
    let serves = places[Place::protected(&places)].serves;
    let mut client = Client::of(&places);
    assert_eq!(client.ask("1 1 add cut 5"), "5");
    // By the end of its connection: 1000 was meant. By its length: there is more to it than the server reads at once.
    let long = format!("1 3 add cut 1{}\n", " ".repeat(2000));
    for request in ["1 2 add cut 10", &long] {
        let mut stream = TcpStream::connect(serves).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut reply = String::new();
        // What was not read is answered by a reset.
        let _ = stream.read_to_string(&mut reply);
        assert_eq!(reply, "", "{request:?}");
    }
    assert_eq!(client.ask("get cut"), "1 5");
    // Beyond the ends of its numbers.
    assert_eq!(client.ask("1 4 add cut 9223372036854775807"), "-9223372036854775804");
}

#[test]
fn the_makefile_builds_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let source = home().join("../../examples/kvd").canonicalize().unwrap();
    for file in ["Makefile", "kvd.c"] {
        std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    let root = format!("ROOT={}", home().join("../..").canonicalize().unwrap().display());
    let library = format!("LIBRARY={}", common::library().display());
    let make = Command::new("make").args([&root, &library]).current_dir(folder.path()).output().unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    assert!(folder.path().join("kvd").exists());
}
