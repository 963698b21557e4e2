//! The bridge is killed again and again while sessions use their connections to a real PostgreSQL.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::unistd::{Uid, User, chown};
use outlive_replicated::testing::{Client, Cluster, Place, free_address, until};
use postgres::NoTls;

const SESSIONS: usize = 8;

/// A cluster of PostgreSQL below a folder of its own, for as long as it lives.
struct Server {
    child: Child,
    url: String,
    _directory: tempfile::TempDir,
}

/// Where Debian puts the newest version's programs; installed if there is none.
fn programs() -> PathBuf {
    let newest = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
        let newest = versions.map(|entry| entry.path()).filter(|path| path.join("bin/initdb").exists());
        newest.max_by_key(number).map(|path| path.join("bin"))
    };
    newest().unwrap_or_else(|| {
        let apt = |words: &[&str]| {
            let status =
                Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(words).status();
            assert!(status.unwrap().success(), "apt-get {words:?} failed");
        };
        apt(&["update"]);
        apt(&["install", "--yes", "--no-install-recommends", "postgresql"]);
        newest().expect("the package has its programs")
    })
}

impl Server {
    fn start() -> Self {
        let programs = programs();
        let directory = tempfile::tempdir().unwrap();
        // PostgreSQL refuses to run as root.
        let user = Uid::effective().is_root().then(|| User::from_name("postgres").unwrap().unwrap());
        if let Some(user) = &user {
            chown(directory.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let command = |name: &str| {
            let mut command = Command::new(programs.join(name));
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command.env("LC_ALL", "C").current_dir(directory.path());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let data = directory.path().join("data");
        let made = command("initdb").args(["-A", "trust", "-U", "bridge", "-D"]).arg(&data).status().unwrap();
        assert!(made.success(), "initdb: {made}");
        let port = free_address().port().to_string();
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-p", &port, "-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]);
        let child = server.spawn().unwrap();
        let url = format!("host=127.0.0.1 port={port} user=bridge dbname=postgres");
        let this = Self { child, url, _directory: directory };
        until("PostgreSQL answers", || postgres::Client::connect(&this.url, NoTls).ok());
        this
    }

    /// The processes of PostgreSQL that serve connections of sessions, by session.
    fn connections(&self) -> BTreeMap<String, Vec<i32>> {
        let mut client = postgres::Client::connect(&self.url, NoTls).unwrap();
        let sql = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name LIKE 's%'";
        let mut found = BTreeMap::<String, Vec<i32>>::new();
        for row in client.query(sql, &[]).unwrap() {
            found.entry(row.get(0)).or_default().push(row.get(1));
        }
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGQUIT: at once, with all of its processes (pg_ctl stop -m immediate).
        let process = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

fn name(number: usize) -> String {
    format!("s{number}")
}

/// Adds 1, 2, 3, … and knows every sum.
fn use_session(over: &AtomicBool, mut client: Client, number: usize) -> (i64, Duration) {
    let (mut count, mut sum) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        count += 1;
        sum += count;
        let reply = client.ask(&format!("add {} {count} {count}", name(number)));
        assert_eq!(reply, sum.to_string(), "value {count} of session {number} was lost or added twice");
        std::thread::sleep(Duration::from_millis(3));
    }
    (count, client.longest)
}

#[test]
fn the_backups_own_connections_serve_the_sessions_after_a_failover() {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let server = Server::start();
    let cluster = Cluster::new();
    let mut places =
        Place::pair(&cluster, "pgbridge", env!("CARGO_BIN_EXE_pgbridge"), std::slice::from_ref(&server.url));
    Place::protected(&places);
    let mut client = Client::of(&places);
    for number in 0..SESSIONS {
        assert_eq!(client.ask(&format!("open {}", name(number))), "ok");
        // The backup had its connection before that was said.
        assert_eq!(server.connections()[&name(number)].len(), 2);
    }

    let over = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        // Told also when this fails.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Over(&over);
        let users: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let (over, client) = (&over, Client::of(&places));
                scope.spawn(move || use_session(over, client, number))
            })
            .collect();
        for kill in 0..kills {
            let primary = Place::protected(&places);
            // A backup that has just joined opens what was opened before it came.
            let all = |connections: &BTreeMap<String, Vec<i32>>| {
                connections.len() == SESSIONS && connections.values().all(|both| both.len() == 2)
            };
            let before = until("both have every connection", || Some(server.connections()).filter(all));
            let serving: Vec<i32> = (0..SESSIONS)
                .map(|number| client.ask(&format!("pid {}", name(number))).parse().unwrap())
                .collect();
            places[primary].kill();
            for (number, old) in serving.iter().enumerate() {
                let now: i32 = client.ask(&format!("pid {}", name(number))).parse().unwrap();
                assert_ne!(now, *old, "the dead process's connection");
                assert!(
                    before[&name(number)].contains(&now),
                    "kill {kill}: session {number} was connected anew, by process {now}, not {:?}",
                    before[&name(number)]
                );
            }
            places[primary].start();
        }
        drop(guard);
        users.into_iter().map(|user| user.join().unwrap()).collect::<Vec<_>>()
    });

    // What is closed is closed on both sides.
    Place::protected(&places);
    assert_eq!(client.ask("close s0"), "ok");
    until("the connections of a closed session end", || {
        (!server.connections().contains_key("s0")).then_some(())
    });
    assert_eq!(client.ask("add s0 1 1"), "no such session");
    let requests: i64 = served.iter().map(|(count, _)| count).sum();
    let longest = served.iter().map(|(_, longest)| *longest).max().unwrap();
    eprintln!("{kills} kills, {requests} requests, longest wait {} ms", longest.as_millis());
}

/// Only the backup cannot connect: then the session is not opened, on neither side.
#[test]
fn a_connection_that_the_backup_cannot_open_is_not_opened() {
    let server = Server::start();
    let cluster = Cluster::new();
    let places =
        Place::pair(&cluster, "pgbridge", env!("CARGO_BIN_EXE_pgbridge"), std::slice::from_ref(&server.url));
    Place::protected(&places);
    let mut client = Client::of(&places);
    // As many connections as the role may have: one more is one too few for two.
    let mut owner = postgres::Client::connect(&server.url, NoTls).unwrap();
    owner
        .batch_execute(
            "CREATE ROLE narrow LOGIN CONNECTION LIMIT 1; GRANT ALL ON ALL TABLES IN SCHEMA public TO narrow",
        )
        .unwrap();
    drop(owner);
    let narrow = server.url.replace("user=bridge", "user=narrow").replace(' ', ";");
    let reply = client.ask(&format!("open-as sn {narrow}"));
    assert!(reply.starts_with("no ") && reply.contains("too many connections"), "{reply}");
    until("what the primary had opened is closed", || {
        (!server.connections().contains_key("sn")).then_some(())
    });
    assert_eq!(client.ask("add sn 1 1"), "no such session");
    // And others are.
    assert_eq!(client.ask("open s1"), "ok");
    assert_eq!(server.connections()["s1"].len(), 2);
}
