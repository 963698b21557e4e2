//! Arbitration and commit, together, under every fault the design allows for.
//!
//! `OUTLIVE_SEED=n` runs one seed of every test, and prints what happens; `OUTLIVE_SEEDS=n` says how many to run.

mod sim;

use sim::{Broken, Config, Counts, run};

/// How many seeds each of the three sizes of cluster gets: a few seconds in all on one core of the test profile.
const SEEDS: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

fn holds_with(seed_nodes: usize) -> Counts {
    let (seeds, trace) = match number("OUTLIVE_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (0..number("OUTLIVE_SEEDS").unwrap_or(SEEDS), false),
    };
    let mut counts = Counts::default();
    for seed in seeds {
        let report = run(Config { seed, seed_nodes, broken: None, trace });
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed} with {seed_nodes} seed nodes: {violation}\nrerun it with OUTLIVE_SEED={seed}"
            );
        }
        counts.add(&report.counts);
    }
    println!("{seed_nodes} seed nodes: {counts:?}");
    counts
}

/// A run in which nothing happens proves nothing.
fn assert_eventful(counts: &Counts) {
    if number("OUTLIVE_SEED").is_some() || number("OUTLIVE_SEEDS").is_some() {
        return;
    }
    let Counts { failovers, alone, protections, switchovers, restarts, stops, unknown, .. } = *counts;
    for (what, count) in [
        ("failovers", failovers),
        ("primaries alone", alone),
        ("re-protections", protections),
        ("switchovers", switchovers),
        ("restarts", restarts),
        ("stops", stops),
        ("unknown outcomes", unknown),
    ] {
        assert!(u64::from(count) > SEEDS / 20, "only {count} {what} in {SEEDS} seeds");
    }
}

#[test]
fn one_seed_node() {
    assert_eventful(&holds_with(1));
}

#[test]
fn three_seed_nodes() {
    let counts = holds_with(3);
    assert_eventful(&counts);
    if number("OUTLIVE_SEED").is_none() {
        assert!(counts.wiped > 0 && counts.taught > 0, "no seed node was wiped and taught");
    }
}

#[test]
fn five_seed_nodes() {
    assert_eventful(&holds_with(5));
}

#[test]
fn a_run_can_be_repeated() {
    let config = Config { seed: 3, seed_nodes: 3, broken: None, trace: false };
    assert_eq!(format!("{:?}", run(config)), format!("{:?}", run(config)));
}

/// Runs seeds until the checker notices that a rule is broken, and returns what it said.
fn is_noticed(broken: Broken, within: u64) -> String {
    for seed in 0..within {
        let config = Config { seed, seed_nodes: 3, broken: None, trace: false };
        let report = run(Config { broken: Some(broken), ..config });
        if let Some(violation) = report.violation {
            assert_eq!(run(config).violation, None, "seed {seed} fails even with all rules kept");
            println!("{broken:?}: seed {seed}: {violation}");
            return violation;
        }
    }
    panic!("{broken:?} went unnoticed in {within} seeds");
}

macro_rules! noticed {
    ($($name:ident: $broken:ident within $within:literal,)*) => {
        $(
            #[test]
            fn $name() {
                is_noticed(Broken::$broken, $within);
            }
        )*
    };
}

noticed! {
    notices_a_seed_that_forgets_promises: SeedForgetsPromises within 1_000,
    notices_a_wiped_seed_that_votes: WipedSeedVotes within 1_000,
    notices_votes_of_old_lives: OldLivesCount within 1_000,
    notices_shared_ballots: BallotsShared within 1_000,
    notices_a_backup_that_keeps_acknowledging: BackupKeepsAcknowledging within 1_000,
    notices_speaking_without_a_grant: SpeaksWithoutGrant within 1_000,
    notices_a_backup_added_unplugged: AddsBackupUnplugged within 1_000,
    notices_an_unknown_outcome_taken_for_failure: UnknownIsFailure within 1_000,
    notices_settling_by_one_seed: SettlesByOneSeed within 1_000,
    notices_a_backup_that_believes_an_old_notice: OldNoticeTaken within 1_000,
    notices_a_silent_restart: RestartsSilently within 1_000,
}
