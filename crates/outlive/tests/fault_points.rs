//! A crash at every step of the protocol, and a stall: what clients were told stays true.
//!
//! The steps are those of [`outlive_fault::Point`]; [`scenario`] says for each who dies there and what must become of
//! the workload. A step that is never taken fails its test.

mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use outlive_fault::Point;
use outlive_lab::pattern::Choices;
use outlive_lab::{Direction, Host, HostProcess};
use support::faults::{Act, arm, die, disarm, hit_of};
use support::redis::{NAME, Pair, Redis};
use support::{done, until};

/// A step that is not taken within that will not be: each is taken many times a second, or follows from what the test
/// does.
const TAKEN: Duration = Duration::from_secs(30);
/// How long a host stands still: several times what a backup waits for a sign of life, and less than it waits for one
/// during a first copy.
const STALL: Duration = Duration::from_millis(700);

/// Who takes a step, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// The primary of a protected workload, all the time.
    Primary,
    /// Its backup, all the time.
    Backup,
    /// A primary whose backup has died: the only one that has the workload.
    Losing,
    /// A backup that hears nothing, and has not been granted anything.
    Asking,
    /// A backup that has been granted the next generation: the only one that has the workload.
    Takeover,
    /// A primary without a backup that the register knows of, while it copies to a new one.
    Copying,
    /// The same, when the register knows of it.
    Joined,
    /// The agent of a node that is asked to host a backup.
    HostingAgent,
    /// The supervisor there, before the primary needs it or after.
    Hosting,
    /// The primary that hands over, until it has nothing left to do.
    MoveOld,
    /// The backup that is handed everything, until it may speak alone: the old primary can still go on.
    MoveNew,
    /// The same, when it may: the only one that has the workload.
    MoveAlone,
    /// The primary that goes on after all, when the new one has died: the only one that has the workload.
    MoveBack,
    /// The agent of a seed node whose vote is needed.
    Seed,
}

/// The scenario of a step, and how often, on average, it is taken until something happens.
fn scenario(point: Point) -> (Scenario, u64) {
    use Point::*;
    use Scenario::*;
    match point {
        PrimaryLiveRound => (Primary, 1),
        PrimaryInputClosed | PrimaryFrozen | PrimaryCaptured | PrimaryCut => (Primary, 7),
        PrimaryInputOpen | PrimaryThawed | PrimaryQueued => (Primary, 5),
        LinkBegun | LinkHalfSent | LinkSealed | LinkAcknowledged | LinkBeaten => (Primary, 3),
        PrimaryAcknowledged | PlugFresh | PrimaryReleased | PrimaryLogged => (Primary, 9),
        PlugFirstFrame => (Primary, 5),
        LinkInputCopied => (Primary, 3),
        BackupHalfReceived | BackupReceived | BackupHeld | BackupAcknowledged => (Backup, 11),
        BackupInputKept => (Backup, 50),
        BackupBeaten | BackupApplying | BackupHalfApplied | BackupApplied => (Backup, 2),
        PrimaryBackupLost | PrimaryAloneGranted | PrimaryExposed => (Losing, 1),
        TakeoverSilence | ArbiterAsked => (Asking, 1),
        TakeoverGranted | TakeoverAttached | TakeoverAnnounced | TakeoverProbed => (Takeover, 1),
        TakeoverHalfBuilt => (Takeover, 2),
        TakeoverBuilt | TakeoverHalfActivated | TakeoverActivated | TakeoverLive => (Takeover, 1),
        TakeoverPumping | TakeoverRebuilt | TakeoverInjected | TakeoverThawed => (Takeover, 1),
        TakeoverHalfInjected | TakeoverDone => (Takeover, 1),
        CopyAsking | CopyHosted | CopyPaired | CopyCaptured | CopyPiece => (Copying, 1),
        CopyPlugged | CopyCommitted => (Copying, 1),
        CopyGranted | CopyJoined => (Joined, 1),
        HostingAsked | HostingStarted => (HostingAgent, 1),
        HostingAccepted | HostingPaired | HostingPiece | HostingProtected => (Hosting, 1),
        MoveStopped | MoveCommitted | MoveGranted | MoveSaid | MoveEnding => (MoveOld, 1),
        MoveHeard | MoveReady => (MoveNew, 1),
        Point::MoveAlone | MoveRunning => (Scenario::MoveAlone, 1),
        Point::MoveBack => (Scenario::MoveBack, 1),
        SeedAsked => (Seed, 1),
        SeedPersisted => (Seed, 2),
    }
}

fn points(wanted: &[Scenario]) -> Vec<(Point, Scenario, u64)> {
    let all = Point::ALL.iter().map(|point| {
        let (scenario, nth) = scenario(*point);
        (*point, scenario, nth)
    });
    all.filter(|(_, scenario, _)| wanted.contains(scenario)).collect()
}

/// The steps of a takeover as they are taken in a move, while the old primary can still go on.
fn takeover_in_a_move() -> Vec<(Point, Scenario, u64)> {
    use Point::*;
    let once = [TakeoverAttached, TakeoverAnnounced, TakeoverProbed, TakeoverBuilt, TakeoverHalfActivated];
    let later = [TakeoverActivated, TakeoverLive, TakeoverPumping, TakeoverRebuilt, TakeoverInjected];
    let all = once.into_iter().chain(later).map(|point| (point, Scenario::MoveNew, 1));
    all.chain([(TakeoverHalfBuilt, Scenario::MoveNew, 2)]).collect()
}

/// Makes a step be taken that would not be by itself. What has to run until it is, if anything.
fn provoke(redis: &Redis, pair: &Pair, point: Point, scenario: Scenario) -> Option<HostProcess> {
    match scenario {
        Scenario::Primary if point == Point::PrimaryLiveRound => {
            // Writes 8 MiB again and again: more pages in an epoch than are copied without a live round.
            let script = "redis.call('SET', 'burst', string.rep('x', 8388608)) return 'done'";
            let host = redis.target.ip().to_string();
            let burst = ["redis-cli", "-h", &host, "-r", "100", "-i", "0.05", "EVAL", script, "0"];
            return Some(redis.client.spawn(burst).unwrap());
        }
        Scenario::Primary | Scenario::Backup => {}
        Scenario::MoveOld | Scenario::MoveNew | Scenario::MoveAlone | Scenario::MoveBack => {
            if scenario == Scenario::MoveBack {
                arm(redis.host(&pair.backup), Point::MoveReady, 1, "", Act::Kill);
            }
            let third = redis.third(&pair.primary, &pair.backup).name();
            return Some(redis.cluster.begin(third, &["switchover", NAME]));
        }
        Scenario::Losing | Scenario::Copying | Scenario::Joined => redis.kill_supervisor(&pair.backup),
        Scenario::HostingAgent | Scenario::Hosting => redis.kill_supervisor(&pair.backup),
        Scenario::Takeover => redis.kill_supervisor(&pair.primary),
        Scenario::Asking => {
            let (a, b) = (redis.host(&pair.primary), redis.host(&pair.backup));
            redis.cluster.lab.cut(a, b, Direction::Both).unwrap();
        }
        Scenario::Seed => drop(redis.host(&pair.primary).power_off().unwrap()),
    }
    None
}

/// Decides which time it is of a step that is taken all the time. `OUTLIVE_SEED=n` repeats a run's.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var("OUTLIVE_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or(now.as_nanos() as u64);
        println!("OUTLIVE_SEED={seed}");
        seed
    })
}

/// The hosts of which one will take the step.
fn takers<'a>(redis: &'a Redis, pair: &Pair, scenario: Scenario) -> Vec<&'a Host> {
    let third = redis.third(&pair.primary, &pair.backup);
    match scenario {
        Scenario::Primary
        | Scenario::Losing
        | Scenario::Copying
        | Scenario::Joined
        | Scenario::MoveOld
        | Scenario::MoveBack => {
            vec![redis.host(&pair.primary)]
        }
        Scenario::Backup
        | Scenario::Asking
        | Scenario::Takeover
        | Scenario::MoveNew
        | Scenario::MoveAlone => vec![redis.host(&pair.backup)],
        Scenario::HostingAgent | Scenario::Hosting => vec![redis.host(&pair.backup), third],
        Scenario::Seed => vec![third],
    }
}

/// Makes a step be taken on a protected workload, and something happen there. Returns who had it, and whose host it is.
fn take(redis: &Redis, (point, scenario, nth): (Point, Scenario, u64), act: Act) -> (Pair, &Host) {
    // A seed node persists twice for a grant, a promise and the change; a third time is for something after it.
    let most = if scenario == Scenario::Seed { nth } else { 2 * nth };
    let nth = if nth == 1 { 1 } else { 1 + Choices::new(seed() ^ point as u64).below(most) };
    // On a busy machine a pair comes apart now and then by itself: then the roles are others, once.
    for _ in 0..3 {
        let pair = redis.protected();
        let takers = takers(redis, &pair, scenario);
        let by_itself = matches!(scenario, Scenario::Primary | Scenario::Backup);
        // Such a step is also taken by a primary that has the only copy, and by a backup that has been granted it.
        let when = if by_itself { "protected" } else { "" };
        takers.iter().for_each(|host| arm(host, point, nth, when, act));
        if !by_itself && redis.protected() != pair {
            takers.iter().for_each(|host| {
                disarm(host);
            });
            continue;
        }
        let provoking = provoke(redis, &pair, point, scenario);
        let begun = Instant::now();
        let hit = hit_of(&takers, TAKEN);
        // One that has come to its end by itself needs no killing.
        provoking.inspect(|process| drop(process.kill()));
        match hit {
            Some(host) => {
                let took = begun.elapsed().as_millis();
                println!("{:<24} {act:?} on {} after {took} ms, time {nth}", point.name(), host.name());
                return (pair, host);
            }
            None if redis.seen().is_some_and(|seen| seen.generation == pair.generation) => break,
            None => {}
        }
    }
    panic!("{} is never reached:\n{}", point.name(), redis.account());
}

/// Dies there, loses its power or only the process, and all is as before.
fn crash(redis: &Redis, step: (Point, Scenario, u64), act: Act) {
    let begun = Instant::now();
    let (pair, host) = take(redis, step, act);
    match act {
        Act::Freeze => die(host),
        Act::Kill => {}
        Act::Stop | Act::Hang => unreachable!("nothing dies of it"),
    }
    if step.1 == Scenario::Seed {
        // The backup alone is no majority: it must wait, and keep what it has (R5).
        redis.must_wait(STALL);
        let waiting = redis.status(&pair.backup).expect("the backup keeps the state");
        assert_eq!(waiting.role, outlive_epoch::control::Side::Backup, "{waiting:?}");
        redis.power_on(&pair.primary);
    }
    if step.1 == Scenario::HostingAgent {
        redis.cluster.start(host.name());
    }
    if act == Act::Freeze {
        redis.power_on(host.name());
    }
    redis.cluster.lab.heal().unwrap();
    redis.must_go_on();
    redis.protected();
    println!("{:<24} {act:?} and back within {} ms", "", begun.elapsed().as_millis());
}

/// Stands still there for longer than the others wait, and goes on.
fn stall(redis: &Redis, step: (Point, Scenario, u64)) {
    let (_, host) = take(redis, step, Act::Freeze);
    std::thread::sleep(STALL);
    until("the host goes on", || host.thaw().is_ok());
    redis.cluster.lab.heal().unwrap();
    redis.must_go_on();
    redis.protected();
}

#[test]
fn r1_output_rule_a_primary_may_die_at_any_step_of_an_epoch() {
    let mut redis = Redis::start("primary");
    for step in points(&[Scenario::Primary]) {
        crash(&redis, step, Act::Freeze);
        crash(&redis, step, Act::Kill);
    }
    redis.must_be_clean();
}

#[test]
fn r1_output_rule_a_backup_may_die_at_any_step_of_an_epoch_and_of_a_first_copy() {
    let mut redis = Redis::start("backup");
    for step in points(&[Scenario::Backup, Scenario::Hosting]) {
        crash(&redis, step, Act::Freeze);
        crash(&redis, step, Act::Kill);
    }
    // An agent that dies while it is asked for something costs what it was asked for (R4).
    for step in points(&[Scenario::HostingAgent]) {
        crash(&redis, step, Act::Kill);
    }
    redis.must_be_clean();
}

#[test]
fn r5_silence_is_not_consent_a_backup_or_a_seed_node_may_die_while_asking() {
    let mut redis = Redis::start("asking");
    for step in points(&[Scenario::Asking, Scenario::Seed]) {
        crash(&redis, step, Act::Freeze);
    }
    for step in points(&[Scenario::Joined]) {
        crash(&redis, step, Act::Freeze);
        crash(&redis, step, Act::Kill);
    }
    redis.must_be_clean();
}

#[test]
fn r2_one_voice_a_host_may_stall_at_any_step_of_a_takeover_and_of_a_first_copy() {
    let mut redis = Redis::start("stall");
    let steps = [
        Scenario::Losing,
        Scenario::Asking,
        Scenario::Takeover,
        Scenario::Copying,
        Scenario::Joined,
        Scenario::Hosting,
    ];
    for step in points(&steps) {
        stall(&redis, step);
    }
    redis.must_be_clean();
}

/// Whichever side dies, the other has everything, and goes on with it.
#[test]
fn r1_output_rule_either_side_may_die_at_any_step_of_a_move() {
    let mut redis = Redis::start("moving");
    for step in points(&[Scenario::MoveOld, Scenario::MoveNew]).into_iter().chain(takeover_in_a_move()) {
        crash(&redis, step, Act::Freeze);
        crash(&redis, step, Act::Kill);
    }
    redis.must_be_clean();
}

#[test]
fn r2_one_voice_either_host_may_stall_at_any_step_of_a_move() {
    let mut redis = Redis::start("movestall");
    let steps = [Scenario::MoveOld, Scenario::MoveNew, Scenario::MoveAlone, Scenario::MoveBack];
    for step in points(&steps).into_iter().chain(takeover_in_a_move()) {
        stall(&redis, step);
    }
    redis.must_be_clean();
}

/// Threads of their own give signs of life: they stop when nothing else in their process goes on.
fn hang(hint: &str, step: (Point, Scenario, u64)) {
    let mut redis = Redis::start(hint);
    let (pair, host) = take(&redis, step, Act::Hang);
    let hanging = redis.status(host.name()).expect("the board answers without the tracer").incarnation;
    until("the supervisor that hangs ends", || {
        redis.status(host.name()).is_none_or(|status| status.incarnation != hanging)
    });
    redis.must_go_on();
    assert!(redis.protected().generation > pair.generation);
    redis.must_be_clean();
}

#[test]
fn a_primary_whose_tracer_hangs_is_taken_over_and_ends() {
    hang("hangs", (Point::PrimaryCaptured, Scenario::Primary, 3));
}

#[test]
fn a_backup_whose_tracer_hangs_is_replaced() {
    hang("hangsbackup", (Point::BackupApplying, Scenario::Backup, 3));
}

/// The thread that hears acknowledgements hangs: the backup is sent signs of life, and gives them, and nothing is committed any more.
#[test]
fn a_primary_that_hears_no_acknowledgement_does_without_its_backup() {
    let mut redis = Redis::start("unheard");
    let (pair, _) = take(&redis, (Point::LinkAcknowledged, Scenario::Primary, 3), Act::Hang);
    until("there is another generation", || {
        redis.seen().is_some_and(|seen| seen.generation > pair.generation)
    });
    redis.must_go_on();
    redis.protected();
    redis.must_be_clean();
}

/// Where the only copy dies nobody may pretend that the workload lives.
#[test]
fn r1_output_rule_a_workload_whose_only_copy_dies_is_lost() {
    let mut redis = Redis::prepare("onlycopy");
    let steps =
        [Scenario::Losing, Scenario::Takeover, Scenario::Copying, Scenario::MoveAlone, Scenario::MoveBack];
    for step in points(&steps) {
        redis.run("a");
        redis.load();
        let node = take(&redis, step, Act::Kill).1.name().to_owned();
        until("it is lost", || {
            let said = redis.cluster.cli(&node, &["inspect", NAME, "--json"]);
            let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            said["state"] == "lost"
        });
        redis.unload();
        done(redis.cluster.cli(&node, &["stop", NAME]));
        until("its name is free", || redis.hosts().iter().all(|host| redis.status(host.name()).is_none()));
    }
}
