//! Arbitration and commit, together, under every fault the design allows for.
//!
//! `OUTLIVE_SEED=n` runs one seed of every test, and prints what happens; `OUTLIVE_SEEDS=n` says how many to run.

mod sim;

use sim::{Broken, Climate, Config, Counts, run};

/// How many seeds each of the three sizes of cluster gets in mixed faults, at a millisecond or two each; the other
/// climates get a fifth.
const SEEDS: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

fn holds(seed_nodes: usize, climate: Climate, seeds: u64) -> Counts {
    let (seeds, trace) = match number("OUTLIVE_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (0..number("OUTLIVE_SEEDS").unwrap_or(seeds), false),
    };
    let mut counts = Counts::default();
    for seed in seeds {
        let report = run(Config { seed, seed_nodes, broken: None, climate, trace });
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed}, {seed_nodes} seed nodes, {climate:?}: {violation}\nrerun with OUTLIVE_SEED={seed}"
            );
        }
        counts.add(&report.counts);
    }
    println!("{seed_nodes} seed nodes, {climate:?}: {counts:?}");
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
    assert_eventful(&holds(1, Climate::Mixed, SEEDS));
}

#[test]
fn three_seed_nodes() {
    assert_eventful(&holds(3, Climate::Mixed, SEEDS));
}

#[test]
fn five_seed_nodes() {
    assert_eventful(&holds(5, Climate::Mixed, SEEDS));
}

#[test]
fn seed_nodes_wiped_again_and_again() {
    for seed_nodes in [3, 5] {
        let counts = holds(seed_nodes, Climate::Wiping, SEEDS / 5);
        if number("OUTLIVE_SEED").is_none() {
            assert!(counts.wiped > 100 && counts.taught > 100, "{counts:?}");
        }
    }
}

#[test]
fn switched_over_again_and_again() {
    let counts = holds(3, Climate::Restless, SEEDS / 5);
    if number("OUTLIVE_SEED").is_none() {
        assert!(counts.switchovers > 100, "{counts:?}");
    }
}

#[test]
fn a_run_can_be_repeated() {
    let config = Config { seed: 3, seed_nodes: 3, broken: None, climate: Climate::Mixed, trace: false };
    assert_eq!(format!("{:?}", run(config)), format!("{:?}", run(config)));
}

/// Runs seeds until the checker notices that a rule is broken, and returns what it said.
fn is_noticed(broken: Broken, climate: Climate, within: u64) {
    for seed in 0..within {
        let config = Config { seed, seed_nodes: 3, broken: None, climate, trace: false };
        let report = run(Config { broken: Some(broken), ..config });
        if let Some(violation) = report.violation {
            println!("{broken:?}: seed {seed}: {violation}");
            assert_eq!(run(config).violation, None, "seed {seed} fails even with all rules kept");
            return;
        }
    }
    panic!("{broken:?} went unnoticed in {within} seeds");
}

macro_rules! noticed {
    ($($name:ident: $broken:ident in $climate:ident within $within:literal,)*) => {
        $(
            #[test]
            fn $name() {
                is_noticed(Broken::$broken, Climate::$climate, $within);
            }
        )*
    };
}

noticed! {
    notices_a_seed_that_forgets_promises: SeedForgetsPromises in Mixed within 1_000,
    notices_a_wiped_seed_that_votes: WipedSeedVotes in Mixed within 1_000,
    notices_shared_ballots: BallotsShared in Mixed within 1_000,
    notices_a_backup_that_keeps_acknowledging: BackupKeepsAcknowledging in Mixed within 1_000,
    notices_speaking_without_a_grant: SpeaksWithoutGrant in Mixed within 1_000,
    notices_a_backup_added_unplugged: AddsBackupUnplugged in Mixed within 1_000,
    notices_an_unknown_outcome_taken_for_failure: UnknownIsFailure in Mixed within 1_000,
    notices_settling_by_one_seed: SettlesByOneSeed in Mixed within 1_000,
    notices_a_backup_that_believes_an_old_notice: OldNoticeTaken in Restless within 20_000,
    notices_a_silent_restart: RestartsSilently in Mixed within 1_000,
}
