//! A primary with several backups over real connections, with real seed nodes, in one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use outlive_cluster::{Holder, Outcome, Transition};

use crate::link_tests::pair::{Pair, Side, until};
use crate::node::status_of;
use crate::protection::{Phase, Stage, WaitFor};
use crate::store::{Role, Sink};
use crate::{CommitError, StartError, Started};

type Joined = thread::JoinHandle<Result<Started, StartError>>;

/// How many backups count.
fn counting(side: &Side) -> usize {
    status_of(&side.core).backups.iter().filter(|backup| backup.counts).count()
}

/// The first, and so many backups that are in step.
fn protected(pair: &Pair, by: usize, wait_for: WaitFor) -> (Arc<Side>, Vec<(Arc<Side>, Joined)>) {
    let start = |place: usize| {
        let mut config = pair.config(place);
        config.wait_for = wait_for;
        pair.start(config)
    };
    let (first, started) = start(0);
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    let backups = (1..=by).map(start).collect();
    until("all are in step", || counting(&first) == by && first.phase() == Some(Phase::Protected));
    (first, backups)
}

const EACH: [WaitFor; 3] = [WaitFor::One, WaitFor::Majority, WaitFor::All];

#[test]
fn whoever_is_left_takes_over_until_nobody_is() {
    for wait_for in EACH {
        let pair = Pair::new();
        let (mut primary, mut backups) = protected(&pair, 3, wait_for);
        let mut expected = Vec::new();
        for round in 0..3 {
            for value in round * 100..round * 100 + 50 {
                primary.push(value).unwrap();
                expected.push(value);
            }
            primary.isolate();
            until("somebody has taken over", || {
                backups.iter().any(|(side, _)| side.store.role() == Role::Primary)
            });
            let new = backups.iter().position(|(side, _)| side.store.role() == Role::Primary).unwrap();
            let (side, started) = backups.remove(new);
            let Started::TakenOver { how, .. } = started.join().unwrap().unwrap() else {
                panic!("not taken over")
            };
            println!("{wait_for:?}, round {round}: {how:?}");
            primary = side;
            assert_eq!(primary.values(), expected, "{wait_for:?}");
            // Those that are left follow it, by a new copy.
            until("the others follow", || {
                let last = primary.core.last();
                backups.iter().all(|(side, _)| side.core.applied().commit == last)
                    && counting(&primary) == backups.len()
            });
            for (side, started) in &backups {
                assert!(!started.is_finished());
                assert_eq!(side.values(), expected);
            }
        }
        assert!(backups.is_empty());
        primary.push(1).unwrap();
        assert_eq!(primary.phase(), Some(Phase::Exposed));
    }
}

#[test]
fn with_all_waited_for_every_backup_holds_what_is_acknowledged() {
    let pair = Pair::new();
    let (first, backups) = protected(&pair, 3, WaitFor::All);
    for value in 0..200 {
        first.push(value).unwrap();
        let expected = value + 1;
        assert!(backups.iter().all(|(side, _)| side.values().len() as u64 == expected));
    }
}

/// Also those that only await a future, and those that joined while others committed.
#[test]
fn commits_of_many_threads_reach_all_while_backups_come_and_go() {
    for wait_for in EACH {
        let pair = Pair::new();
        let (first, backups) = protected(&pair, 2, wait_for);
        let over = AtomicBool::new(false);
        let committed: usize = thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|thread| {
                    let (first, over) = (&first, &over);
                    scope.spawn(move || {
                        let mut count = 0;
                        while !over.load(Ordering::Relaxed) {
                            if thread == 0 {
                                let commits: Vec<_> = (0..20).map(|value| first.push_async(value)).collect();
                                count += commits.len();
                                commits.into_iter().for_each(|commit| commit.wait().unwrap());
                            } else {
                                first.push(thread).unwrap();
                                count += 1;
                            }
                        }
                        count
                    })
                })
                .collect();
            // One goes, and another comes.
            backups[0].0.isolate();
            first.core.cut_from("b");
            let (_third, _started) = pair.start(pair.config(3));
            until("others are in step", || counting(&first) == 2 && first.phase() == Some(Phase::Protected));
            over.store(true, Ordering::Relaxed);
            writers.into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        assert_eq!(first.values().len(), committed);
        let left = &backups[1].0;
        until("it has caught up", || left.core.applied().commit == first.core.last());
        assert_eq!(left.values(), first.values(), "{wait_for:?}");
    }
}

#[test]
fn r2_a_primary_that_lost_its_place_acknowledges_nothing_whoever_still_follows_it() {
    let pair = Pair::new();
    let (first, mut backups) = protected(&pair, 2, WaitFor::All);
    first.push(1).unwrap();
    // One takes over; the other still hears the old primary.
    first.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    first.core.cut_from("b");
    until("somebody has taken over", || backups.iter().any(|(side, _)| side.store.role() == Role::Primary));
    let answer = {
        let first = Arc::clone(&first);
        thread::spawn(move || first.push(2))
    };
    thread::sleep(Duration::from_millis(300));
    assert!(!answer.is_finished(), "something was acknowledged");
    first.reconnect();
    assert_eq!(answer.join().unwrap(), Err(CommitError::Deposed));
    let new = backups.iter().position(|(side, _)| side.store.role() == Role::Primary).unwrap();
    let (new, _started) = backups.remove(new);
    until("the other follows", || counting(&new) == 1);
    assert_eq!(backups[0].0.values(), [1]);
}

#[test]
fn a_place_is_handed_over_to_one_of_several() {
    for wait_for in EACH {
        let pair = Pair::new();
        let (first, mut backups) = protected(&pair, 2, wait_for);
        for value in 0..100 {
            first.push(value).unwrap();
        }
        crate::node::hand_over_in(&first.core).unwrap();
        until("one begins", || backups.iter().any(|(side, _)| side.store.role() == Role::Primary));
        let new = backups.iter().position(|(side, _)| side.store.role() == Role::Primary).unwrap();
        let (new, started) = backups.remove(new);
        assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
        assert_eq!(new.values(), (0..100).collect::<Vec<_>>());
        until("the other follows", || counting(&new) == 1);
        assert_eq!(backups[0].0.values(), new.values());
    }
}

/// What joins makes a commit of its own, of which the one that is handed over to may say at once that it holds it as well.
#[test]
fn a_place_is_handed_over_while_another_backup_joins() {
    let pair = Pair::new();
    let (first, mut backups) = protected(&pair, 1, WaitFor::All);
    let (second, started) = backups.remove(0);
    // Nothing is applied there while somebody reads: what is committed now waits behind two batches.
    let root = second.root.body.read();
    let reads = root.read();
    let commits: Vec<_> = (0..10).map(|value| first.push_async(value)).collect();
    let handed_over = {
        let first = Arc::clone(&first);
        thread::spawn(move || crate::node::hand_over_in(&first.core))
    };
    until("it is being handed over", || first.core.state().moving);
    let last = first.core.last();
    let _third = pair.start(pair.config(2));
    until("another joins", || first.core.last() > last);
    drop(reads);
    commits.into_iter().for_each(|commit| commit.wait().unwrap());
    handed_over.join().unwrap().unwrap();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
    assert_eq!(second.values(), (0..10).collect::<Vec<_>>());
}

/// Only the backup has noticed that its link was cut, and is refused: it is none yet. Then it becomes one, and the primary dies
/// without having noticed anything. The other waits for its word.
#[test]
fn a_backup_that_was_refused_gives_its_word_when_it_is_named_after_all() {
    let pair = Pair::new();
    let (first, mut backups) = protected(&pair, 1, WaitFor::One);
    let (second, _second_started) = backups.remove(0);
    first.push(1).unwrap();
    first.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    let (third, _third_started) = pair.start(pair.config(2));
    let complete = || {
        let status = status_of(&first.core);
        status.backups.iter().all(|backup| backup.stage == Stage::Complete) && status.backups.len() == 2
    };
    until("another has everything", complete);
    let (by, named): (_, Vec<Holder>) = {
        let state = first.core.state();
        (state.me.incarnation, state.feeds.iter().map(|feed| feed.backup.clone()).collect())
    };
    second.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    // It is gone.
    first.core.end(&mut first.core.state(), CommitError::Deposed);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(third.store.role(), Role::Backup);
    // What it asked for last is granted late.
    let late = Transition::Backups { by, backups: named, needed: 1 };
    assert!(matches!(third.core.arbiter.ask(late), Outcome::Granted(_)));
    second.reconnect();
    until("somebody has taken over", || {
        [&second, &third].iter().any(|side| side.store.role() == Role::Primary)
    });
    let new = if second.store.role() == Role::Primary { &second } else { &third };
    assert_eq!(new.values(), [1]);
    until("the other follows", || counting(new) == 1);
}

#[test]
fn every_backup_is_inspected() {
    let pair = Pair::new();
    let (first, _backups) = protected(&pair, 2, WaitFor::All);
    first.push(1).unwrap();
    let all = crate::inspect(&pair.config(3));
    let of = |node: &str| all.iter().find(|(asked, _)| asked.name == node).unwrap().1.clone().unwrap();
    let mut nodes: Vec<_> =
        of("a").backups.iter().map(|backup| (backup.node.clone(), backup.counts)).collect();
    nodes.sort();
    assert_eq!(nodes, [("b".to_owned(), true), ("c".to_owned(), true)]);
    assert!(of("a").backups.iter().all(|backup| backup.lag_commits == Some(0)));
    assert_eq!((of("b").commit, of("c").commit), (of("a").commit, of("a").commit));
}
