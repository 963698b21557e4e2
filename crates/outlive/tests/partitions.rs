//! Partitions, hosts that stand still and wake, nodes that forget: nobody's word is lost, and one speaks at a time.

mod support;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use outlive_epoch::control::{Side, State};
use outlive_fault::Point;
use outlive_lab::pattern::Choices;
use outlive_lab::{Direction, Host};
use support::faults::{Act, arm, hit_of};
use support::redis::{NODES, Redis};
use support::watch::{Said, Watch, late_segments};
use support::{done, until};

/// How long a partition lasts: several times what a backup waits for a sign of life, so that it is noticed.
const APART: Duration = Duration::from_millis(1200);
/// How long a host stands still before it wakes: longer than any timer of the protocol.
const ASLEEP: Duration = Duration::from_secs(10);
const TAKEN: Duration = Duration::from_secs(30);
const BOTH_WAYS: [Direction; 3] = [Direction::Both, Direction::AToB, Direction::BToA];

/// Frames that may be in one batch between two looks at the clock (`outlive_net::plug`).
const BATCH: usize = 32;

#[test]
fn r5_silence_is_not_consent_any_two_hosts_may_be_cut_apart() {
    let mut redis = Redis::start("apart");
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        for direction in BOTH_WAYS {
            let before = redis.protected();
            let third = redis.third(&before.primary, &before.backup);
            let hosts = [redis.host(&before.primary), redis.host(&before.backup), third];
            let (a, b) = (hosts[one], hosts[other]);
            redis.cluster.lab.cut(a, b, direction).unwrap();
            sleep(APART);
            // Each still reaches the third, and so a majority.
            redis.must_go_on();
            redis.cluster.lab.heal().unwrap();
            redis.must_go_on();
            let (a, b, after) = (a.name(), b.name(), redis.protected());
            println!("{a} and {b} apart ({direction:?}): {before:?}, then {after:?}");
        }
    }
    redis.must_be_clean();
}

/// The client still reaches it: what it says there would be believed.
#[test]
fn r2_one_voice_a_host_may_be_cut_off_from_the_others_and_not_from_clients() {
    let mut redis = Redis::start("cutoff");
    let watch = Watch::start(&redis.cluster.lab, redis.target.ip());
    let mut silenced = Vec::new();
    for victim in 0..3 {
        for direction in BOTH_WAYS {
            let pair = redis.protected();
            let third = redis.third(&pair.primary, &pair.backup).name().to_owned();
            let alone = [&pair.primary, &pair.backup, &third][victim].clone();
            for other in redis.hosts().iter().filter(|other| other.name() != alone) {
                redis.cluster.lab.cut(redis.host(&alone), other, direction).unwrap();
            }
            sleep(APART);
            redis.must_go_on();
            let taken = Instant::now();
            redis.cluster.lab.heal().unwrap();
            redis.must_go_on();
            let now = redis.protected();
            println!("{alone} alone ({direction:?}): {pair:?}, then {now:?}");
            if alone == pair.primary && now.primary != alone {
                // From when every client had been answered by another, until now.
                silenced.push((port(&alone), taken..Instant::now()));
            }
        }
    }
    redis.must_be_clean();
    let said = watch.finish();
    assert!(!silenced.is_empty(), "no primary lost its place");
    for (port, time) in silenced {
        let spoke = said.iter().find(|one| one.port == port && time.contains(&one.at));
        assert!(spoke.is_none(), "the host at {port} spoke while another did: {spoke:?}");
    }
}

/// What the checks of frames rest on.
#[test]
fn a_second_voice_is_noticed() {
    let begun = Instant::now();
    let later = begun + APART;
    let one = |at, port: &str, sequence, acknowledgement, payload: &[u8]| Said {
        at,
        port: port.to_owned(),
        client_port: 1,
        sequence,
        acknowledgement,
        payload: payload.to_vec(),
    };
    let said = vec![one(begun, "port0", 10, 5, b"abcd"), one(later, "port1", 12, 7, b"cdef")];
    let late = |sequence, acknowledgement, payload: &[u8]| {
        let mut said = said.clone();
        said.push(one(later, "port0", sequence, acknowledgement, payload));
        std::panic::catch_unwind(|| late_segments(&said, "port0", later)).ok()
    };
    assert_eq!(late_segments(&said, "port0", later), 0);
    assert_eq!(late(10, 6, b"abcdef"), Some(1), "all of it is known to the successor");
    assert_eq!(late(12, 5, b"cdxx"), None, "it says something else");
    assert_eq!(late(12, 5, b"cdefgh"), None, "it says more");
    assert_eq!(late(16, 8, b""), None, "it has received more");
}

/// The switch's port of a node's cable: hosts are made in this order.
fn port(node: &str) -> String {
    format!("port{}", NODES.iter().position(|name| *name == node).unwrap())
}

/// The moment from which on the host at another port speaks, of the last takeover.
fn takeover(said: &[Said], port: &str) -> Instant {
    let other = said.iter().find(|one| one.port != port).expect("another speaks");
    other.at
}

/// Puts a primary to sleep at a point, if any, and wakes it up long after its successor speaks.
fn sleep_and_wake(hint: &str, point: Option<Point>, act: Act) {
    let mut redis = Redis::start(hint);
    let pair = redis.protected();
    let host = redis.host(&pair.primary);
    let pid = redis.status(&pair.primary).unwrap().supervisor_pid.to_string();
    let signal = |name: &str| assert!(host.exec(["kill", name, &pid]).unwrap().status.success());
    let watch = Watch::start(&redis.cluster.lab, redis.target.ip());
    match (point, act) {
        (Some(point), act) => {
            arm(host, point, 5, "protected", act);
            assert!(hit_of(&[host], TAKEN).is_some(), "{} is never reached", point.name());
        }
        (None, Act::Freeze) => host.freeze().unwrap(),
        (None, _) => {
            // Its agent as well, so that nobody on this host may act for it.
            host.freeze_only("agent").unwrap();
            signal("-STOP");
        }
    }
    redis.must_go_on();
    sleep(ASLEEP);
    let woken = Instant::now();
    match act {
        Act::Freeze => until("the host goes on", || host.thaw().is_ok()),
        _ => {
            host.thaw().unwrap();
            signal("-CONT");
        }
    }
    until("the old primary ends", || {
        redis.status(&pair.primary).is_none_or(|status| status.role != Side::Primary)
    });
    redis.must_go_on();
    let said = watch.finish();
    let port = port(&pair.primary);
    let taken = takeover(&said, &port);
    assert!(taken < woken, "nobody took over");
    let late = late_segments(&said, &port, taken);
    println!("{hint}: {late} segments left late, of {}", said.len());
    assert!(late <= BATCH, "{late} segments left late");
    redis.protected();
    redis.must_be_clean();
}

#[test]
fn r2_one_voice_a_primary_that_slept_between_the_check_and_the_write_says_only_what_was_committed() {
    sleep_and_wake("fresh", Some(Point::PlugFresh), Act::Freeze);
}

#[test]
fn r2_one_voice_a_supervisor_that_was_stopped_within_a_batch_says_only_what_was_committed() {
    sleep_and_wake("batch", Some(Point::PlugFirstFrame), Act::Stop);
}

#[test]
fn r2_one_voice_a_supervisor_that_was_stopped_with_its_agent_says_only_what_was_committed() {
    sleep_and_wake("stopped", None, Act::Stop);
}

#[test]
fn r2_one_voice_a_host_that_stood_still_says_only_what_was_committed() {
    sleep_and_wake("frozen", None, Act::Freeze);
}

/// The primary is cut off from all other nodes while it joins a new backup, so that it does not learn what the seed nodes
/// decided, or cannot ask them; for shorter and for longer than a new backup waits for its primary.
#[test]
fn r5_silence_is_not_consent_a_primary_may_be_cut_off_during_a_first_copy() {
    const SHORT: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(7);
    let mut redis = Redis::start("joining");
    let steps = [
        (Point::CopyCaptured, SHORT),
        (Point::CopyPiece, SHORT),
        (Point::CopyPlugged, SHORT),
        (Point::CopyCommitted, SHORT),
        (Point::CopyCommitted, LONG),
        (Point::CopyGranted, SHORT),
        (Point::CopyGranted, LONG),
    ];
    for (point, apart) in steps {
        let pair = redis.protected();
        let host = redis.host(&pair.primary);
        arm(host, point, 1, "", Act::Freeze);
        redis.kill_supervisor(&pair.backup);
        assert!(hit_of(&[host], TAKEN).is_some(), "{} is never reached", point.name());
        for other in redis.hosts().iter().filter(|other| other.name() != host.name()) {
            redis.cluster.lab.cut(host, other, Direction::Both).unwrap();
        }
        until("the host goes on", || host.thaw().is_ok());
        sleep(apart);
        redis.cluster.lab.heal().unwrap();
        redis.must_go_on();
        let after = redis.protected();
        println!("{} and {apart:?} apart: {pair:?}, then {after:?}", point.name());
    }
    redis.must_be_clean();
}

#[test]
fn r4_agents_may_die_seed_nodes_restart_while_protection_goes_on() {
    let mut redis = Redis::start("restarted");
    for (node, agent) in NODES.iter().zip(&redis.agents) {
        let pair = redis.protected();
        agent.kill().unwrap();
        redis.must_go_on();
        redis.cluster.start(node);
        redis.must_go_on();
        assert_eq!(redis.protected(), pair, "an agent's death is nobody's concern");
    }
    // One is away at the failover, which the two others' votes are enough for.
    let pair = redis.protected();
    redis.host(&pair.primary).power_off().unwrap();
    redis.must_go_on();
    redis.power_on(&pair.primary);
    assert!(redis.protected().generation > pair.generation);
    redis.must_be_clean();
}

/// A seed node that has forgotten its votes has none, until the others have taught it.
#[test]
fn r5_silence_is_not_consent_a_seed_node_that_forgot_does_not_vote() {
    let mut redis = Redis::start("forgot");
    let pair = redis.protected();
    let third = redis.third(&pair.primary, &pair.backup).name().to_owned();
    let forgets = NODES.iter().position(|node| *node == third).unwrap();
    redis.agents[forgets].kill().unwrap();
    redis.host(&pair.primary).power_off().unwrap();
    wipe(redis.host(&third));
    redis.cluster.start(&third);
    // The backup and a vote that does not count are no majority.
    redis.must_wait(APART);
    let waiting = redis.status(&pair.backup).expect("the backup keeps the state");
    assert_eq!((waiting.role, waiting.generation), (Side::Backup, 0), "{waiting:?}");
    // The primary's node has lost the workload, not its votes.
    redis.power_on(&pair.primary);
    redis.must_go_on();
    let now = redis.protected();
    assert_eq!(now.primary, pair.backup);

    // Taught, it votes: the next failover needs its vote.
    done(redis.cluster.cli(&third, &["seed", "rejoin"]));
    let now = redis.protected();
    redis.host(&now.primary).power_off().unwrap();
    redis.must_go_on();
    redis.power_on(&now.primary);
    redis.protected();
    redis.must_be_clean();
}

/// The backup's node forgets everything, its supervisor's files included, and then the primary's host dies.
#[test]
fn r4_agents_may_die_an_agent_that_forgot_everything_leaves_its_backup_alone() {
    let mut redis = Redis::start("empty");
    let pair = redis.protected();
    let forgets = NODES.iter().position(|node| *node == pair.backup).unwrap();
    redis.agents[forgets].kill().unwrap();
    wipe(redis.host(&pair.backup));
    redis.host(&pair.primary).power_off().unwrap();
    redis.cluster.start(&pair.backup);
    // Of three votes one is dead and one forgotten: the backup waits, and keeps the state (R5).
    redis.must_wait(APART);
    redis.power_on(&pair.primary);
    redis.must_go_on();
    // Nobody can ask the primary now; its new backup can be.
    let others = redis.hosts().map(Host::name).into_iter().filter(|node| *node != pair.backup);
    let others: Vec<&str> = others.collect();
    until("it is protected by another node", || {
        let said = others.iter().filter_map(|node| redis.status(node));
        said.into_iter().any(|status| status.role == Side::Backup && status.state == State::Protected)
    });
    redis.must_go_on();
    redis.host(&pair.backup).power_off().unwrap();
    redis.must_go_on();
    redis.power_on(&pair.backup);
    redis.protected();
    redis.must_be_clean();
}

fn wipe(host: &Host) {
    fs::remove_dir_all(host.disk().join("state")).unwrap();
}

/// Cut and back again and again, for shorter and for longer than a sign of life is waited for.
#[test]
fn r2_one_voice_a_link_may_come_and_go() {
    const CUTS: usize = 100;
    let mut redis = Redis::start("flapping");
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut choices = Choices::new(seed);
    let begun = redis.protected();
    for number in 0..CUTS {
        // Between the two that have it now; if there is one only, between it and any other.
        let seen = redis.seen().and_then(|seen| Some((seen.primary_node?, seen.backup_node)));
        let (primary, backup) = seen.unwrap_or((begun.primary.clone(), None));
        let other = NODES.iter().find(|node| **node != primary).unwrap();
        let (a, b) = (redis.host(&primary), redis.host(backup.as_deref().unwrap_or(other)));
        let direction = BOTH_WAYS[choices.below(3) as usize];
        redis.cluster.lab.cut(a, b, direction).unwrap();
        // A third of them is noticed.
        let longest = if number % 3 == 0 { 700 } else { 150 };
        sleep(Duration::from_millis(10 + choices.below(longest)));
        redis.cluster.lab.heal().unwrap();
        sleep(Duration::from_millis(10 + choices.below(300)));
        if number % 10 == 9 {
            redis.must_go_on();
        }
    }
    redis.must_go_on();
    let ended = redis.protected();
    println!("{CUTS} cuts led to {} generations", ended.generation - begun.generation);
    redis.must_be_clean();
}
