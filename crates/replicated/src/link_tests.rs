//! Pairs of stores over real connections, with real seed nodes, in one process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::Holder;

use crate::follow::Followed;
use crate::link_tests::pair::{Pair, until};
use crate::protection::Phase;
use crate::store::{Role, Sink, kind};
use crate::wire::{Mode, Writer};
use crate::{CommitError, Started, commit};

pub(crate) mod pair {
    use super::*;
    use crate::node::{join, prepare, status_of};
    use crate::object::Shared;
    use crate::ship::Core;
    use crate::testing::{Cluster, free_address};
    use crate::write::Write;
    use crate::{Config, List, Node, StartError, Store};

    pub type Items = List<u64>;

    /// One process of the pair.
    pub struct Side {
        pub store: Arc<Store>,
        pub root: Arc<Shared<Items>>,
        /// More statics than batches may be on their way.
        pub others: Vec<Arc<Shared<Items>>>,
        pub core: Arc<Core>,
    }

    impl Side {
        pub fn push(&self, value: u64) -> Result<(), CommitError> {
            let root = &self.root;
            Write::begin(root).unwrap().push(value);
            commit()
        }

        pub fn push_async(&self, value: u64) -> crate::Commit {
            self.try_push_async(value).unwrap()
        }

        pub fn try_push_async(&self, value: u64) -> Result<crate::Commit, CommitError> {
            let root = &self.root;
            Write::begin(root).unwrap().push(value);
            crate::commit_async()
        }

        pub fn values(&self) -> Vec<u64> {
            crate::reading::read_arc(&self.root).0.read().iter().copied().collect()
        }

        pub fn phase(&self) -> Option<Phase> {
            status_of(&self.core).phase
        }

        /// As a host whose network fails: it reaches neither the other side nor the seed nodes.
        pub fn isolate(&self) {
            self.core.arbiter.cut_off.store(true, Ordering::Relaxed);
            self.core.cut();
        }

        pub fn reconnect(&self) {
            self.core.arbiter.cut_off.store(false, Ordering::Relaxed);
        }
    }

    pub struct Pair {
        pub cluster: Cluster,
        pub nodes: Vec<Node>,
    }

    impl Pair {
        pub fn new() -> Self {
            let nodes = ["a", "b", "c", "d"];
            let nodes = nodes.map(|name| Node { name: name.into(), address: free_address() }).to_vec();
            Self { cluster: Cluster::new(), nodes }
        }

        pub fn config(&self, place: usize) -> Config {
            self.cluster.config("items", &self.nodes[place], &self.nodes)
        }

        pub fn prepare(&self, config: Config) -> Side {
            let store = Store::new();
            let root = Shared::new(Items::new());
            store.add_root("items", &root);
            let others: Vec<_> = (0..8).map(|_| Shared::new(Items::new())).collect();
            for (number, other) in others.iter().enumerate() {
                store.add_root(&format!("other {number}"), other);
            }
            let core = prepare(&store, config).unwrap();
            Side { store, root, others, core }
        }

        /// Starts a process; what becomes of it is heard later.
        pub fn start(&self, config: Config) -> (Arc<Side>, thread::JoinHandle<Result<Started, StartError>>) {
            let side = Arc::new(self.prepare(config));
            let core = Arc::clone(&side.core);
            (side, thread::spawn(move || join(&core)))
        }

        /// The first, and a backup that is in step.
        pub fn protected(&self) -> (Arc<Side>, Arc<Side>, thread::JoinHandle<Result<Started, StartError>>) {
            let (first, started) = self.start(self.config(0));
            assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
            let (second, started) = self.start(self.config(1));
            until("the pair is protected", || first.phase() == Some(Phase::Protected));
            (first, second, started)
        }
    }

    pub fn until(what: &str, holds: impl Fn() -> bool) {
        let since = Instant::now();
        while !holds() {
            assert!(since.elapsed() < Duration::from_secs(60), "not before a minute: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_backup_takes_over_with_all_that_was_acknowledged() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    for value in 0..100 {
        first.push(value).unwrap();
    }
    assert_eq!(second.values(), (0..100).collect::<Vec<_>>());
    assert!(second.others.iter().all(|other| other.id() != 0));
    first.isolate();
    let Started::TakenOver { commit: number, how } = started.join().unwrap().unwrap() else {
        panic!("not taken over")
    };
    assert_eq!(how.from, "a");
    assert!(number >= 100, "{number}");
    second.push(100).unwrap();
    assert_eq!(second.values(), (0..101).collect::<Vec<_>>());
}

#[test]
fn r2_a_primary_that_lost_its_place_acknowledges_nothing() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    first.push(1).unwrap();
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
    // It does not know yet, and is silent.
    let answer = {
        let first = Arc::clone(&first);
        thread::spawn(move || first.push(2))
    };
    thread::sleep(Duration::from_millis(300));
    assert!(!answer.is_finished(), "something was acknowledged");
    first.reconnect();
    assert_eq!(answer.join().unwrap(), Err(CommitError::Deposed));
    assert_eq!(first.push(3), Err(CommitError::Deposed));
    assert_eq!(first.store.role(), Role::Deposed);
    // Neither by having read only.
    assert_eq!(first.core.barrier(), Err(CommitError::Deposed));
    assert_eq!(second.values(), [1]);
}

#[test]
fn a_backup_that_joins_late_gets_everything_while_the_primary_goes_on() {
    let pair = Pair::new();
    let (first, started) = pair.start(pair.config(0));
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    for value in 0..1000 {
        first.push(value).unwrap();
    }
    let (second, started) = pair.start(pair.config(1));
    let mut next = 1000;
    while first.phase() != Some(Phase::Protected) {
        first.push(next).unwrap();
        next += 1;
    }
    for value in next..next + 500 {
        first.push(value).unwrap();
    }
    assert_eq!(second.values(), (0..next + 500).collect::<Vec<_>>());
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

#[test]
fn a_primary_whose_backup_is_gone_goes_on_alone_and_takes_another() {
    let pair = Pair::new();
    let (first, second, _started) = pair.protected();
    first.push(1).unwrap();
    // The backup's process hangs: it neither acknowledges nor asks.
    second.isolate();
    first.core.cut();
    first.push(2).unwrap();
    assert_eq!(first.phase(), Some(Phase::Exposed));
    let (third, started) = pair.start(pair.config(2));
    until("protected again", || first.phase() == Some(Phase::Protected));
    first.push(3).unwrap();
    assert_eq!(third.values(), [1, 2, 3]);
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

/// Commits of many threads, some of whom only await a future, while the link comes and goes.
#[test]
fn commits_of_many_threads_share_batches_and_all_end() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    thread::scope(|scope| {
        for thread in 0..8 {
            let first = &first;
            scope.spawn(move || {
                for value in 0..200 {
                    first.push(thread * 1000 + value).unwrap();
                }
            });
        }
        let first = &first;
        scope.spawn(move || {
            let commits: Vec<_> = (0..200).map(|value| first.push_async(8000 + value)).collect();
            for commit in commits {
                block_on(commit).unwrap();
            }
        });
    });
    let mut values = second.values();
    assert_eq!(values, first.values());
    values.sort_unstable();
    let expected: Vec<u64> =
        (0..9).flat_map(|thread| (0..200).map(move |value| thread * 1000 + value)).collect();
    assert_eq!(values, expected);
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn more_than_may_be_on_its_way_waits_and_arrives() {
    let pair = Pair::new();
    let mut config = pair.config(0);
    config.unacknowledged = 10_000;
    let (first, started) = pair.start(config);
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    // Its image alone is more than that.
    for value in 0..20_000 {
        first.push(value).unwrap();
    }
    let (second, started) = pair.start(pair.config(1));
    until("protected", || first.phase() == Some(Phase::Protected));
    let commits: Vec<_> = (20_000..30_000).map(|value| first.push_async(value)).collect();
    block_on(commits.into_iter().next_back().unwrap()).unwrap();
    assert_eq!(second.values(), (0..30_000).collect::<Vec<_>>());
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

#[test]
fn r5_silence_is_not_consent_a_backup_that_reaches_no_seed_node_waits() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    first.push(1).unwrap();
    second.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    first.isolate();
    thread::sleep(Duration::from_millis(2500));
    assert!(!started.is_finished() && second.store.role() == Role::Backup);
    second.reconnect();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

#[test]
fn a_stopped_program_is_not_taken_over() {
    let pair = Pair::new();
    let (first, _second, started) = pair.protected();
    first.push(1).unwrap();
    crate::node::stop_in(&first.core).unwrap();
    assert_eq!(first.push(2), Err(CommitError::Stopped));
    assert!(matches!(started.join().unwrap(), Err(crate::StartError::Stopped)));
    // And is started anew.
    let (third, started) = pair.start(pair.config(2));
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    third.push(7).unwrap();
    assert_eq!(third.values(), [7]);
}

#[test]
fn who_waits_for_a_backup_acknowledges_nothing_before() {
    let pair = Pair::new();
    let mut config = pair.config(0);
    config.when_exposed = crate::WhenExposed::Wait;
    let (first, started) = pair.start(config);
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    let answer = {
        let first = Arc::clone(&first);
        thread::spawn(move || first.push(1))
    };
    thread::sleep(Duration::from_millis(300));
    assert!(!answer.is_finished(), "acknowledged without a backup");
    let (second, _started) = pair.start(pair.config(1));
    answer.join().unwrap().unwrap();
    assert_eq!(second.values(), [1]);
}

#[test]
fn r6_strangers_are_out() {
    let pair = Pair::new();
    let (first, started) = pair.start(pair.config(0));
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    // Of the cluster, and not among the peers.
    let stranger = crate::Node { name: "x".into(), address: crate::testing::free_address() };
    let config = pair.cluster.config("items", &stranger, &pair.nodes);
    let (_other, waits) = pair.start(config);
    // Of another cluster, under the same names.
    let foreign = Pair::new();
    let mut config = foreign.config(1);
    (config.seeds, config.seed_nodes) = (pair.config(1).seeds, pair.config(1).seed_nodes);
    config.peers = pair.nodes.clone();
    let (_foreign, waits_too) = pair.start(config);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(first.phase(), Some(Phase::Exposed));
    assert!(!waits.is_finished() && !waits_too.is_finished());
}

#[test]
fn a_program_that_cannot_hold_the_primarys_state_is_refused_by_name() {
    let pair = Pair::new();
    let (first, started) = pair.start(pair.config(0));
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    let store = crate::Store::new();
    store.add_root("items", &crate::object::Shared::new(String::new()));
    let core = crate::node::prepare(&store, pair.config(1)).unwrap();
    let refused = crate::node::join(&core).unwrap_err();
    assert!(refused.to_string().contains("`items`"), "{refused}");
    // It is as if nobody had come.
    first.push(1).unwrap();
    let (second, _started) = pair.start(pair.config(2));
    until("protected", || first.phase() == Some(Phase::Protected));
    assert_eq!(second.values(), [1]);
}

/// An unknown outcome is no word: while the register cannot be reached, nothing that needs it is acknowledged.
#[test]
fn r5_a_primary_whose_backup_is_gone_is_silent_until_the_seed_nodes_answer() {
    let pair = Pair::new();
    let (first, second, _started) = pair.protected();
    first.push(1).unwrap();
    second.isolate();
    first.isolate();
    let answer = {
        let first = Arc::clone(&first);
        thread::spawn(move || first.push(2))
    };
    thread::sleep(Duration::from_millis(2500));
    assert!(!answer.is_finished(), "acknowledged without the seed nodes");
    first.reconnect();
    answer.join().unwrap().unwrap();
    assert_eq!(first.phase(), Some(Phase::Exposed));
}

#[test]
fn a_place_is_handed_over_while_others_commit() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    let writer = {
        let first = Arc::clone(&first);
        thread::spawn(move || {
            let mut acknowledged = 0;
            while first.push(acknowledged).is_ok() {
                acknowledged += 1;
            }
            (acknowledged, first.push(0))
        })
    };
    until("something is committed", || first.values().len() > 100);
    crate::node::hand_over_in(&first.core).unwrap();
    let (acknowledged, after) = writer.join().unwrap();
    assert_eq!(after, Err(CommitError::Deposed));
    let Started::TakenOver { how, .. } = started.join().unwrap().unwrap() else { panic!("not taken over") };
    assert_eq!(how.generation, 2);
    // Nothing was on its way.
    assert_eq!(second.values(), (0..acknowledged).collect::<Vec<_>>());
    second.push(acknowledged).unwrap();
    assert!(crate::node::hand_over_in(&first.core).is_err());
}

#[test]
fn a_place_that_cannot_be_handed_over_is_kept() {
    let pair = Pair::new();
    let (first, _second, _started) = pair.protected();
    first.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    assert!(crate::node::hand_over_in(&first.core).is_err());
    first.reconnect();
    first.push(1).unwrap();
    assert_eq!(first.phase(), Some(Phase::Protected));
}

/// The seed nodes were asked to accept it, and are not heard any more. That the next attempt reaches none of them says nothing
/// of the one before.
#[test]
fn r5_a_hand_over_whose_outcome_is_unknown_is_not_taken_for_one_that_did_not_happen() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    first.push(1).unwrap();
    first.core.arbiter.cut_off_in_the_middle.store(true, Ordering::Relaxed);
    let handed_over = {
        let first = Arc::clone(&first);
        thread::spawn(move || crate::node::hand_over_in(&first.core))
    };
    until("it is cut off", || first.core.arbiter.cut_off.load(Ordering::Relaxed));
    let answer = {
        let first = Arc::clone(&first);
        thread::spawn(move || first.push(2))
    };
    // The attempt of unknown outcome takes two seconds, as does the next one, which proposes nothing.
    thread::sleep(Duration::from_secs(5));
    assert!(!handed_over.is_finished() && !answer.is_finished(), "it goes on as the primary");
    first.reconnect();
    handed_over.join().unwrap().unwrap();
    assert_eq!(answer.join().unwrap(), Err(CommitError::Deposed));
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
    assert_eq!(second.values(), [1]);
}

/// The same of a first primary: it would wait for ever for itself.
#[test]
fn a_first_primary_asks_until_it_knows_whether_it_is_the_first() {
    let pair = Pair::new();
    let first = Arc::new(pair.prepare(pair.config(0)));
    first.core.arbiter.cut_off_in_the_middle.store(true, Ordering::Relaxed);
    let started = {
        let core = Arc::clone(&first.core);
        thread::spawn(move || crate::node::join(&core))
    };
    until("it is cut off", || first.core.arbiter.cut_off.load(Ordering::Relaxed));
    thread::sleep(Duration::from_secs(5));
    first.reconnect();
    until("it has begun", || started.is_finished());
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
}

/// What it holds may be half of a transaction: it gets another copy of everything, and never the primary's place.
#[test]
fn a_backup_that_could_not_apply_a_commit_does_not_take_over() {
    let pair = Pair::new();
    let (first, second, started) = pair.protected();
    first.push(1).unwrap();
    // So that it is the backup that asks first.
    first.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    let mut records = Writer::new(Mode::Content, None);
    let mut record = Writer::new(Mode::Content, None);
    record.number(1_000_000 * kind::COUNT + kind::CHANGE);
    records.sized(&record.bytes);
    first.core.submit(&records.bytes).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert!(!started.is_finished(), "it has taken over with what it could not apply");
    first.reconnect();
    first.push(2).unwrap();
    until("it is in step again", || first.phase() == Some(Phase::Protected) && second.values() == [1, 2]);
    first.isolate();
    assert!(matches!(started.join().unwrap().unwrap(), Started::TakenOver { .. }));
}

/// Of one's own cluster, and wrong all the same.
#[test]
fn a_backup_that_says_it_is_another_is_refused_and_the_primary_stays() {
    let pair = Pair::new();
    let (first, second, _started) = pair.protected();
    let third = pair.prepare(pair.config(2));
    let (me, backup) = {
        let state = first.core.state();
        (state.me.clone(), state.feeds[0].backup.clone())
    };
    for taken in [&me, &backup] {
        let who = Holder { incarnation: taken.incarnation, node: "c".parse().unwrap() };
        let core = Arc::clone(&third.core);
        let (me, address) = (me.clone(), pair.nodes[0].address);
        let ended = thread::spawn(move || crate::follow::follow(&core, &who, &me, address));
        let since = std::time::Instant::now();
        while !ended.is_finished() && since.elapsed() < Duration::from_secs(2) {
            first.push(since.elapsed().as_millis() as u64).unwrap();
        }
        let ended = ended.join().unwrap();
        let Followed::NotNow(why) = ended else { panic!("it follows") };
        assert!(why.contains("already"), "{why}");
    }
    first.push(1).unwrap();
    assert_eq!((first.phase(), second.values()), (Some(Phase::Protected), first.values()));
}

/// What waits behind a full link, and behind seed nodes that do not answer, hears that the program ends.
#[test]
fn a_commit_that_waits_for_room_ends_with_the_program_also_without_a_majority() {
    let pair = Pair::new();
    let mut config = pair.config(0);
    (config.unacknowledged, config.detection) = (1000, Duration::from_secs(60));
    let (first, started) = pair.start(config);
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    let mut config = pair.config(1);
    config.detection = Duration::from_secs(60);
    let (second, _started) = pair.start(config);
    until("the pair is protected", || first.phase() == Some(Phase::Protected));
    // Nothing is applied there while somebody reads.
    let root = second.root.body.read();
    let reads = root.read();
    let commits = {
        let first = Arc::clone(&first);
        thread::spawn(move || (0..1000).try_for_each(|value| first.try_push_async(value).map(drop)))
    };
    until("the link is full", || {
        first.core.state().feeds.iter().any(|feed| feed.is_full(10, first.core.config.unacknowledged))
    });
    thread::sleep(Duration::from_millis(200));
    assert!(!commits.is_finished());
    first.core.arbiter.cut_off.store(true, Ordering::Relaxed);
    let stops = {
        let first = Arc::clone(&first);
        thread::spawn(move || crate::node::stop_in(&first.core))
    };
    until("the commits have ended", || commits.is_finished());
    assert_eq!(commits.join().unwrap(), Err(CommitError::Stopped));
    assert!(!stops.is_finished());
    drop(reads);
    first.reconnect();
    stops.join().unwrap().unwrap();
}

/// Whoever waits for room says so once, however often he looks.
#[test]
fn who_waits_for_room_is_remembered_once() {
    let pair = Pair::new();
    let mut config = pair.config(0);
    config.unacknowledged = 1000;
    let (first, started) = pair.start(config);
    assert_eq!(started.join().unwrap().unwrap(), Started::Fresh);
    let (second, _started) = pair.start(pair.config(1));
    until("the pair is protected", || first.phase() == Some(Phase::Protected));
    let root = second.root.body.read();
    let reads = root.read();
    let commits: Vec<_> = (0..2)
        .map(|_| {
            let first = Arc::clone(&first);
            thread::spawn(move || {
                (0..1000).for_each(|value| drop(first.push_async(value)));
                first.push(1000)
            })
        })
        .collect();
    // Many times the time after which he looks again.
    thread::sleep(first.core.config.beat() * 20);
    let waiting = first.core.state().room.len();
    assert!(waiting <= 2, "{waiting} wait for room");
    drop(reads);
    for commits in commits {
        commits.join().unwrap().unwrap();
    }
}

/// Whoever has a certificate of the cluster sees both sides; nobody else does (R6).
#[test]
fn a_live_pair_is_inspected() {
    let pair = Pair::new();
    let (first, second, _started) = pair.protected();
    for value in 0..10 {
        first.push(value).unwrap();
    }
    let all = crate::inspect(&pair.config(2));
    let of = |node: &str| {
        let found = all.iter().find(|(asked, _)| asked.name == node);
        found.unwrap().1.clone()
    };
    let (a, b) = (of("a").unwrap(), of("b").unwrap());
    assert_eq!((a.role.as_str(), a.phase.as_deref()), ("primary", Some("Protected")));
    let [backup] = &a.backups[..] else { panic!("{a:?}") };
    assert_eq!((backup.node.as_str(), backup.counts, b.role.as_str()), ("b", true, "backup"));
    assert_eq!((backup.stage.as_str(), backup.lag_commits, b.backups.len()), ("complete", Some(0), 0));
    assert_eq!((a.commit, a.acknowledged, b.commit), (first.core.last(), first.core.last(), a.commit));
    // Nine statics and the list in each.
    assert_eq!((a.objects, b.objects), (18, 18));
    assert!(a.bytes > 10 * 5 && b.bytes >= a.bytes, "{a:?}, {b:?}");
    assert_eq!((backup.unacknowledged_bytes, backup.lag_us, a.failing.len()), (0, 0, 0));
    // The third does not run, and its answer says that.
    let gone = of("c").unwrap_err().to_string();
    assert!(gone.contains("refused"), "{gone}");

    let strangers = Pair::new();
    let mut foreign = strangers.config(2);
    foreign.peers = pair.nodes.clone();
    for (node, asked) in crate::inspect(&foreign) {
        assert!(asked.is_err(), "{} answers a stranger", node.name);
    }
    drop(second);
}
