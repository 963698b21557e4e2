use proptest::prelude::*;

use super::*;
use crate::frame::tests::{ack_frame, echo_reply_frame, payload_frame};

const FRESH: Duration = Duration::from_millis(10);

fn config() -> PlugConfig {
    PlugConfig { freshness: FRESH, ..PlugConfig::default() }
}

fn at(micros: u64) -> Moment {
    Moment::from_nanos(micros * 1000)
}

/// Everything that may leave at `now`.
fn drain(plug: &mut Plug, now: Moment) -> Vec<Frame> {
    let mut out = Vec::new();
    while plug.next_batch(now, &mut out) == Batch::Ready {}
    out
}

fn batch(plug: &mut Plug, now: Moment) -> (Batch, usize) {
    let mut out = Vec::new();
    (plug.next_batch(now, &mut out), out.len())
}

#[test]
fn r1_output_rule_a_frame_leaves_only_after_its_epoch_is_committed() {
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    assert_eq!(batch(&mut plug, at(1)), (Batch::Empty, 0));
    plug.cut(1).unwrap();
    plug.hold(&payload_frame(2), at(2));
    plug.acknowledged(at(3)).unwrap();
    assert_eq!(batch(&mut plug, at(3)), (Batch::Empty, 0), "a heartbeat is not a commit");
    plug.committed(1, at(4)).unwrap();
    assert_eq!(drain(&mut plug, at(4)), [payload_frame(1).into()]);
    plug.cut(2).unwrap();
    assert_eq!(batch(&mut plug, at(5)), (Batch::Empty, 0), "a cut is not a commit");
    plug.committed(2, at(6)).unwrap();
    assert_eq!(drain(&mut plug, at(6)), [payload_frame(2).into()]);
}

#[test]
fn what_an_epoch_has_said_so_far_is_what_is_held_since_the_last_cut() {
    let said = |plug: &Plug| plug.said_since_cut().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut plug = Plug::exposed(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    assert!(said(&plug).is_empty(), "what may leave at once is not asked for");
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    plug.hold(&echo_reply_frame(1), at(0));
    plug.hold(&ack_frame(2), at(0));
    assert_eq!(said(&plug), [payload_frame(1), ack_frame(2)]);
    plug.cut(1).unwrap();
    assert!(said(&plug).is_empty());
    plug.hold(&payload_frame(3), at(1));
    assert_eq!(said(&plug), [payload_frame(3)]);
    // Committed and gone, in part or as a whole.
    plug.committed(1, at(2)).unwrap();
    assert_eq!(said(&plug), [payload_frame(3)]);
    drain(&mut plug, at(2));
    assert_eq!(said(&plug), [payload_frame(3)]);
    plug.cut(2).unwrap();
    plug.committed(2, at(3)).unwrap();
    plug.silence();
    assert!(said(&plug).is_empty());
}

#[test]
fn r1_output_rule_an_ack_says_what_was_received_and_is_held_too() {
    let mut plug = Plug::holding(config(), 1);
    assert!(plug.hold(&ack_frame(7), at(0)).ack);
    plug.acknowledged(at(1)).unwrap();
    assert_eq!(batch(&mut plug, at(1)), (Batch::Empty, 0));
    plug.cut(1).unwrap();
    plug.committed(1, at(2)).unwrap();
    assert_eq!(drain(&mut plug, at(2)), [ack_frame(7).into()]);
}

#[test]
fn r1_output_rule_an_epoch_never_cut_cannot_be_committed() {
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    assert_eq!(plug.committed(1, at(1)), Err(PlugError::EpochUnknown { epoch: 1, last: None }));
    plug.cut(1).unwrap();
    assert_eq!(plug.committed(2, at(1)), Err(PlugError::EpochUnknown { epoch: 2, last: Some(1) }));
    assert_eq!(batch(&mut plug, at(1)), (Batch::Empty, 0));
    assert_eq!(plug.cut(1), Err(PlugError::EpochNotNew { epoch: 1, last: 1 }));
}

#[test]
fn r1_output_rule_a_commit_of_a_former_backup_frees_nothing() {
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    plug.cut(1).unwrap();
    plug.plug().unwrap();
    assert!(plug.committed(1, at(1)).is_err());
    assert_eq!(batch(&mut plug, at(1)), (Batch::Empty, 0));
    plug.cut(2).unwrap();
    plug.committed(2, at(2)).unwrap();
    assert_eq!(drain(&mut plug, at(2)).len(), 1);
}

#[test]
fn r1_output_rule_what_the_kernel_says_alone_needs_an_acknowledgement_younger_than_itself() {
    let mut plug = Plug::holding(config(), 1);
    plug.acknowledged(at(5)).unwrap();
    assert!(plug.hold(&echo_reply_frame(1), at(10)).kernel);
    assert!(!plug.hold(&echo_reply_frame(2), at(20)).kernel, "signalled once");
    assert_eq!(batch(&mut plug, at(20)), (Batch::Empty, 0));
    assert!(plug.acknowledged(at(15)).unwrap().kernel, "the second still waits: signalled again");
    assert_eq!(drain(&mut plug, at(20)), [echo_reply_frame(1).into()]);
    assert!(!plug.acknowledged(at(20)).unwrap().kernel);
    assert_eq!(drain(&mut plug, at(20)), [echo_reply_frame(2).into()]);
}

#[test]
fn r2_one_voice_nothing_leaves_on_an_old_acknowledgement() {
    let mut plug = Plug::holding(config(), 1);
    for tag in 0..100 {
        plug.hold(&payload_frame(tag), at(0));
    }
    plug.cut(1).unwrap();
    plug.committed(1, at(0)).unwrap();
    // The host stalls in the middle: the first batch was on its way, no other follows.
    assert_eq!(batch(&mut plug, at(10_000)), (Batch::Ready, BATCH_FRAMES));
    assert_eq!(batch(&mut plug, at(10_001)), (Batch::Stale, 0));
    assert_eq!(batch(&mut plug, at(u64::MAX / 1000)), (Batch::Stale, 0));
    // An acknowledgement of something sent before the stall does not help, one of something sent after does.
    plug.acknowledged(at(0)).unwrap();
    assert_eq!(batch(&mut plug, at(10_001)), (Batch::Stale, 0));
    plug.acknowledged(at(10_001)).unwrap();
    assert_eq!(drain(&mut plug, at(10_001)).len(), 100 - BATCH_FRAMES);
}

#[test]
fn r2_one_voice_the_kernel_alone_is_held_to_freshness_too() {
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&echo_reply_frame(1), at(0));
    plug.acknowledged(at(1)).unwrap();
    assert_eq!(batch(&mut plug, at(20_000)), (Batch::Stale, 0));
}

#[test]
fn r2_one_voice_a_silenced_plug_stays_silent() {
    let mut plug = Plug::holding(config(), 1);
    plug.hold(&payload_frame(1), at(0));
    plug.cut(1).unwrap();
    plug.committed(1, at(0)).unwrap();
    plug.silence();
    assert_eq!(batch(&mut plug, at(0)), (Batch::Empty, 0));
    plug.hold(&payload_frame(2), at(0));
    assert_eq!(plug.go_exposed(9), Err(PlugError::Silenced));
    assert_eq!(plug.plug(), Err(PlugError::Silenced));
    assert_eq!(plug.committed(1, at(0)), Err(PlugError::Silenced));
    assert_eq!((batch(&mut plug, at(0)), plug.held(), plug.held_bytes()), ((Batch::Empty, 0), 0, 0));
}

#[test]
fn r2_one_voice_only_a_new_generation_exposes() {
    let mut plug = Plug::holding(config(), 5);
    plug.hold(&payload_frame(1), at(0));
    assert_eq!(plug.go_exposed(4), Err(PlugError::GenerationNotNew { generation: 4, last: 5 }));
    assert_eq!(batch(&mut plug, at(0)), (Batch::Empty, 0));
    plug.go_exposed(6).unwrap();
    assert!(!plug.passes(), "what was held leaves first");
    assert_eq!(drain(&mut plug, at(0)).len(), 1);
    assert!(plug.passes());
    plug.hold(&payload_frame(2), at(0));
    assert_eq!(drain(&mut plug, at(u64::MAX / 1000)).len(), 1, "exposed, nobody's acknowledgement is needed");
    plug.plug().unwrap();
    assert!(!plug.passes());
    plug.hold(&payload_frame(3), at(0));
    assert_eq!(batch(&mut plug, at(0)), (Batch::Empty, 0));
}

#[test]
fn signals_are_edges_until_the_cut() {
    let mut plug = Plug::holding(config(), 1);
    let signals = |payload, ack| Signals { payload, ack, ..Signals::default() };
    assert_eq!(plug.hold(&ack_frame(1), at(0)), signals(false, true));
    assert_eq!(plug.hold(&payload_frame(1), at(0)), signals(true, false));
    assert_eq!(plug.hold(&payload_frame(2), at(0)), signals(false, false));
    assert_eq!(plug.hold(&ack_frame(2), at(0)), signals(false, false));
    plug.cut(1).unwrap();
    assert_eq!(plug.hold(&payload_frame(3), at(0)), signals(true, false));
    assert_eq!(plug.hold(&ack_frame(3), at(0)), signals(false, true));
}

#[test]
fn pressure_rises_before_the_bound_and_nothing_is_dropped() {
    let mut plug = Plug::holding(PlugConfig { max_frames: 16, ..config() }, 1);
    for tag in 0..11 {
        assert_eq!(plug.hold(&payload_frame(tag), at(0)).pressure, None);
    }
    assert_eq!(plug.hold(&payload_frame(11), at(0)).pressure, Some(Pressure::High));
    for tag in 12..16 {
        assert!(plug.has_room());
        assert_eq!(plug.hold(&payload_frame(tag), at(0)).pressure, None);
    }
    assert!(!plug.has_room());
    plug.cut(1).unwrap();
    plug.committed(1, at(0)).unwrap();
    assert_eq!(drain(&mut plug, at(0)).len(), 16);
    assert_eq!(plug.pressure_change(), Some(Pressure::Low));
    assert_eq!(plug.pressure_change(), None);
    assert!(plug.has_room());

    let mut small = Plug::holding(PlugConfig { max_bytes: 4 * MAX_FRAME, ..config() }, 1);
    let large = vec![0; MAX_FRAME];
    assert!(small.hold(&large, at(0)).pressure.is_none());
    small.hold(&large, at(0));
    assert!(small.has_room());
    assert_eq!(small.hold(&large, at(0)).pressure, Some(Pressure::High));
    assert!(!small.has_room(), "the overhead of three frames is more than what a fourth leaves");
}

/// What the world can do to a plug.
#[derive(Clone, Debug)]
enum Step {
    Payload,
    Kernel,
    Cut,
    /// Commit an epoch, counted back from the last cut, acknowledged this many µs ago.
    Commit(u64, u64),
    Heartbeat(u64),
    /// One batch.
    Release,
    Wait(u64),
    Expose,
    Plug,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Payload),
        2 => Just(Step::Kernel),
        3 => Just(Step::Cut),
        4 => (0u64..3, 0u64..20_000).prop_map(|(back, age)| Step::Commit(back, age)),
        2 => (0u64..20_000).prop_map(Step::Heartbeat),
        6 => Just(Step::Release),
        3 => (0u64..8_000).prop_map(Step::Wait),
        1 => Just(Step::Expose),
        1 => Just(Step::Plug),
    ]
}

/// What is known of one frame, kept in the plainest way there is.
struct Fate {
    kernel: bool,
    held_at: Moment,
    epoch: Option<u64>,
    may_leave: bool,
    left: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Against a model that keeps a record per frame: nothing leaves early, twice, out of order or not at all.
    #[test]
    fn r1_r2_hold_for_any_order_of_events(steps in prop::collection::vec(step(), 1..200)) {
        let mut plug = Plug::holding(config(), 1);
        let mut fates: Vec<Fate> = Vec::new();
        let (mut now, mut generation, mut epoch) = (at(1_000_000), 1, 0);
        let (mut exposed, mut last_ack, mut backup_since) = (false, None::<Moment>, 0);
        for step in steps {
            let ago = |age: u64| Moment::from_nanos(now.as_nanos() - age * 1000);
            match step {
                Step::Payload | Step::Kernel => {
                    let kernel = matches!(step, Step::Kernel);
                    let tag = fates.len() as u32;
                    let frame = if kernel { echo_reply_frame(tag as u16) } else { payload_frame(tag) };
                    plug.hold(&frame, now);
                    let fate = Fate { kernel, held_at: now, epoch: None, may_leave: exposed, left: false };
                    fates.push(fate);
                }
                Step::Cut => {
                    epoch += 1;
                    prop_assert_eq!(plug.cut(epoch).is_ok(), !exposed);
                    if !exposed {
                        fates.iter_mut().filter(|f| f.epoch.is_none()).for_each(|f| f.epoch = Some(epoch));
                    }
                }
                Step::Commit(back, age) => {
                    let commit = epoch.saturating_sub(back);
                    if plug.committed(commit, ago(age)).is_ok() {
                        prop_assert!(!exposed && commit <= epoch);
                        last_ack = last_ack.max(Some(ago(age)));
                        for fate in fates.iter_mut().filter(|f| !f.kernel) {
                            fate.may_leave |= fate.epoch.is_some_and(|e| e > backup_since && e <= commit);
                        }
                    }
                }
                Step::Heartbeat(age) => {
                    if plug.acknowledged(ago(age)).is_ok() {
                        last_ack = last_ack.max(Some(ago(age)));
                    }
                }
                Step::Release => {
                    let mut out = Vec::new();
                    let found = plug.next_batch(now, &mut out);
                    prop_assert!(out.len() <= BATCH_FRAMES);
                    prop_assert_eq!(found == Batch::Ready, !out.is_empty());
                    let fresh = last_ack.is_some_and(|last| now.since(last) <= FRESH);
                    for frame in &out {
                        let index = fates.iter().enumerate().position(|(tag, fate)| {
                            let sent = if fate.kernel { echo_reply_frame(tag as u16) } else { payload_frame(tag as u32) };
                            sent[..] == frame[..]
                        });
                        let Some(index) = index else { return Err(TestCaseError::fail("a frame nobody sent")) };
                        let fate = &fates[index];
                        prop_assert!(!fate.left, "twice");
                        prop_assert!(exposed || fresh, "stale");
                        if fate.kernel {
                            prop_assert!(exposed || fate.may_leave || last_ack >= Some(fate.held_at));
                        } else {
                            prop_assert!(fate.may_leave, "before its commit");
                            prop_assert!(fates[..index].iter().all(|f| f.kernel || f.left), "out of order");
                        }
                        fates[index].left = true;
                    }
                }
                Step::Wait(micros) => now = now + Duration::from_micros(micros),
                Step::Expose => {
                    generation += 1;
                    plug.go_exposed(generation).unwrap();
                    exposed = true;
                    fates.iter_mut().for_each(|fate| fate.may_leave = true);
                }
                Step::Plug => {
                    plug.plug().unwrap();
                    (exposed, last_ack, backup_since) = (false, None, epoch);
                    // What a former backup was sent belongs to the first epoch of the new one.
                    fates.iter_mut().filter(|f| !f.may_leave).for_each(|f| f.epoch = None);
                }
            }
            prop_assert_eq!(plug.held(), fates.iter().filter(|fate| !fate.left).count(), "nothing is lost");
        }
        // And in the end everything leaves.
        plug.plug().unwrap();
        plug.cut(epoch + 1).unwrap();
        plug.committed(epoch + 1, now).unwrap();
        drain(&mut plug, now);
        prop_assert_eq!((plug.held(), plug.held_bytes()), (0, 0));
    }
}
