//! Planned changes of primary, and those that an operator forces: nothing is lost, nobody is dropped, one speaks.

mod support;

use std::time::{Duration, Instant};

use outlive_epoch::control::{Side, State};
use support::redis::{NAME, Pair, Redis};
use support::{done, until};

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
