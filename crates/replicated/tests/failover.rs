//! Scenarios with real processes.

use outlive_replicated::testing::Run;
use outlive_replicated::{List, Map, commit, commit_async, failover_test, replicated};

#[replicated]
static DONE: List<u64> = List::new();

#[replicated]
static ACCOUNTS: Map<u64, u64> = Map::new();

#[failover_test(random = 5)]
fn nothing_acknowledged_is_lost_and_nothing_done_twice(run: &Run) {
    let done: Vec<u64> = DONE.read().read().iter().copied().collect();
    let count = done.len() as u64;
    assert_eq!(done, (0..count).collect::<Vec<_>>());
    // One more may have happened than anybody was told of.
    assert!(
        (run.acknowledged()..=run.acknowledged() + 1).contains(&count),
        "{count}, {}",
        run.acknowledged()
    );
    for number in count..6 {
        DONE.write().push(number);
        commit().unwrap();
        run.acknowledge(number + 1);
    }
}

/// Both halves of a transaction, or none; and several commits on their way at once.
#[failover_test(random = 5)]
fn transactions_are_whole(run: &Run) {
    if ACCOUNTS.read().is_empty() {
        assert_eq!(run.acknowledged(), 0);
        let mut accounts = ACCOUNTS.write();
        accounts.insert(0, 100);
        accounts.insert(1, 0);
        drop(accounts);
        commit().unwrap();
    }
    let (from, to) = (balance(0), balance(1));
    assert_eq!(from + to, 100, "{from} and {to}");
    assert!(to >= run.acknowledged());
    for moved in (to + 1..=6).step_by(2) {
        let first = shift(moved);
        let second = shift(moved + 1);
        second.wait().unwrap();
        assert_eq!(first.wait(), Ok(()), "later ones are acknowledged after it");
        run.acknowledge(moved + 1);
    }
}

fn balance(of: u64) -> u64 {
    *ACCOUNTS.read().get(&of).unwrap()
}

fn shift(moved: u64) -> outlive_replicated::Commit {
    let mut accounts = ACCOUNTS.write();
    accounts.insert(0, 100 - moved);
    accounts.insert(1, moved);
    drop(accounts);
    commit_async().unwrap()
}
