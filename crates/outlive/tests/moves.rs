//! Planned changes of primary, and those that an operator forces: nothing is lost, nobody is dropped, one speaks.

mod support;

use std::time::{Duration, Instant};

use outlive_epoch::control::Side;
use outlive_fault::Point;
use support::faults::{Act, arm, is_hit};
use support::redis::{NAME, NODES, Pair, Redis};
use support::{OUTLIVE, done, path, refused, text, until};

/// Of one test, under load all the time.
const SWITCHOVERS: usize = 20;

/// Orders it on this node, and waits until the workload is protected again.
fn switch(redis: &Redis, on: &str, more: &[&str]) -> (Pair, Duration) {
    let from = Instant::now();
    let mut command = vec!["switchover", NAME];
    command.extend(more);
    done(redis.cluster.cli(on, &command));
    redis.must_go_on();
    let stall = redis.longest_stall(from);
    (redis.protected(), stall)
}

#[test]
fn nobody_is_dropped_and_nothing_lost_by_twenty_switchovers() {
    let mut redis = Redis::start("moves");
    let mut stalls = Vec::new();
    for number in 0..SWITCHOVERS {
        let before = redis.protected();
        // From any node, also one that has nothing to do with it.
        let third = redis.third(&before.primary, &before.backup).name().to_owned();
        let on = [&before.primary, &before.backup, &third][number % 3].clone();
        let (after, stall) = switch(&redis, &on, &[]);
        println!("{number}: {before:?}, then {after:?}, ordered on {on}; the longest stall was {stall:?}");
        assert_eq!(after.primary, before.backup);
        // The old primary's node holds the backup as soon as it can.
        assert_eq!(after.backup, before.primary);
        // One for the switch, one to be alone.
        assert!(after.generation >= before.generation + 2, "{before:?}, then {after:?}");
        stalls.push(stall);
    }
    redis.must_be_clean();
    stalls.sort();
    println!("stalls: {stalls:?}");
}

/// A node that is not its backup is given a copy first; a move there and back, and one that cannot be.
#[test]
fn a_workload_is_moved_to_a_node_that_is_not_its_backup() {
    let mut redis = Redis::start("moveto");
    for _ in 0..2 {
        let before = redis.protected();
        let third = redis.third(&before.primary, &before.backup).name().to_owned();
        let (after, stall) = switch(&redis, &before.backup, &["--to", &third]);
        println!("{before:?}, then {after:?}; the longest stall was {stall:?}");
        assert_eq!(after.primary, third);
    }
    let pair = redis.protected();
    for (to, why) in [("z", "no peer"), (pair.primary.as_str(), "where it runs")] {
        let said = refused(&redis.cluster.cli(&pair.backup, &["switchover", NAME, "--to", to]), 5);
        assert!(said.contains(why), "{said}");
    }
    refused(&redis.cluster.cli("a", &["switchover", "nothing"]), 4);
    assert_eq!(redis.protected(), pair);
    redis.must_be_clean();
}

/// Hosts without bridges: moved, and their machines killed. A host that has no bridge says that it is fit.
#[test]
fn nobody_is_dropped_where_workloads_are_on_macvtap_devices() {
    let mut redis = Redis::start_on_macvtap("macvtap");
    let checked =
        redis.host("c").exec([OUTLIVE, "check", "--macvtap", outlive_lab::UPLINK, "--json"]).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let line = lines.iter().find(|line| line["name"] == "macvtap on uplink").unwrap();
    assert_eq!(line["verdict"], "ok", "{line}");
    for number in 0..2 {
        let before = redis.protected();
        let (after, stall) = switch(&redis, NODES[number % 3], &[]);
        println!("moved: {before:?}, then {after:?}; the longest stall was {stall:?}");
        assert_eq!(after.primary, before.backup);
        let from = Instant::now();
        redis.host(&after.primary).power_off().unwrap();
        redis.must_go_on();
        println!("killed {}; the longest stall was {:?}", after.primary, redis.longest_stall(from));
        redis.power_on(&after.primary);
    }
    redis.must_be_clean();
}

#[test]
fn r2_one_voice_a_forced_failover_silences_a_primary_that_lives() {
    let mut redis = Redis::start("forced");
    for number in 0..6 {
        let before = redis.protected();
        let on = NODES[number % 3];
        let from = Instant::now();
        done(redis.cluster.cli(on, &["failover", NAME]));
        redis.must_go_on();
        let stall = redis.longest_stall(from);
        until("the old primary has ended", || {
            redis.status(&before.primary).is_none_or(|status| status.role == Side::Backup)
        });
        let after = redis.protected();
        println!("{before:?}, then {after:?}, ordered on {on}; the longest stall was {stall:?}");
        assert_eq!(after.primary, before.backup);
    }
    redis.must_be_clean();
}

/// All seed nodes but the primary's own are gone: nothing is proposed, and nothing happens.
#[test]
fn r5_silence_is_not_consent_a_move_without_a_majority_is_given_up() {
    let mut redis = Redis::start("nomajority");
    let before = redis.protected();
    assert_eq!((before.primary.as_str(), before.backup.as_str()), ("a", "b"));
    redis.agents[1..].iter().for_each(|agent| agent.kill().unwrap());
    let said = refused(&redis.cluster.cli("a", &["switchover", NAME]), 1);
    assert!(said.contains("stays on a") && said.contains("no majority"), "{said}");
    redis.must_go_on();
    assert_eq!(redis.protected(), before);
    ["b", "c"].iter().for_each(|node| drop(redis.cluster.start(node)));
    let (after, _) = switch(&redis, "b", &[]);
    assert_eq!(after.primary, "b");
    redis.must_be_clean();
}

/// The change is accepted by a majority which dies before it can say so: nobody speaks until that is known.
#[test]
fn r5_silence_is_not_consent_a_move_of_unknown_outcome_waits() {
    let mut redis = Redis::start("unknown");
    let before = redis.protected();
    assert_eq!((before.primary.as_str(), before.backup.as_str()), ("a", "b"));
    // A promise, then the change.
    let others = [redis.host("b"), redis.host("c")];
    others.iter().for_each(|host| arm(host, Point::SeedPersisted, 2, "", Act::Kill));
    let order = redis.cluster.begin("a", &["switchover", NAME]);
    until("both seed nodes have died", || others.iter().all(|host| is_hit(host)));
    redis.must_wait(Duration::from_millis(1500));
    ["b", "c"].iter().for_each(|node| drop(redis.cluster.start(node)));
    redis.must_go_on();
    let after = redis.protected();
    println!("{before:?}, then {after:?}");
    assert_eq!(after.primary, "b");
    assert!(order.wait().unwrap().success(), "{}", order.tail());
    redis.must_be_clean();
}

/// What an operator has on a screen, or a program reads line by line.
#[test]
fn a_move_is_seen_by_whoever_watches() {
    let redis = Redis::start("watched");
    let before = redis.protected();
    let watch = redis.cluster.begin(&before.primary, &["ps", "--watch", "--json"]);
    let rows = || -> Vec<serde_json::Value> {
        let text = watch.stdout();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    until("the first line is there", || !rows().is_empty());
    let (after, _) = switch(&redis, &before.primary, &[]);
    until("the new primary is seen", || {
        let last = rows().pop().unwrap();
        last[0]["primary_node"] == after.primary.as_str() && last[0]["state"] == "protected"
    });
    let lines = rows();
    assert!(lines.windows(2).all(|two| two[0] != two[1]), "{lines:?}");
    watch.kill().unwrap();
}

/// docs/operating.md, "Upgrade outlive itself": agents are replaced under running workloads, then two moves renew the supervisors.
#[test]
fn outlive_itself_is_replaced_by_two_moves() {
    let mut redis = Redis::start("upgrade");
    let before = redis.protected();
    let program = |pair: &Pair| {
        [&pair.primary, &pair.backup].map(|node| {
            let pid = redis.status(node).unwrap().supervisor_pid;
            let link = format!("/proc/{pid}/exe");
            text(&redis.host(node).exec(["readlink", &link]).unwrap().stdout).trim().to_owned()
        })
    };
    let old = program(&before);
    redis.agents.iter().for_each(|agent| agent.kill().unwrap());
    for node in NODES {
        let host = redis.host(node);
        let (new, config) = (host.disk().join("outlive-new"), host.disk().join("agent.toml"));
        // By a program of its own: a fork of another test here would hold the new file open for writing, and it could not be run.
        assert!(std::process::Command::new("cp").arg(OUTLIVE).arg(&new).status().unwrap().success());
        let agent = host.spawn([path(&new), "agent", "--config", path(&config)]).unwrap();
        until("the new agent is ready", || agent.stdout().starts_with("ready"));
    }
    assert_eq!(program(&redis.protected()), old, "workloads go on under their supervisors");
    let (there, _) = switch(&redis, &before.primary, &[]);
    let (back, _) = switch(&redis, &there.primary, &[]);
    assert_eq!(back.primary, before.primary);
    for program in program(&back) {
        assert!(program.ends_with("outlive-new"), "{program}");
    }
    redis.must_be_clean();
}
