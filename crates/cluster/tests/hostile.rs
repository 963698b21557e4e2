//! Whatever comes off a wire is taken as hostile: nothing that can be sent makes a seed node or a proposer panic.

use std::time::Duration;

use outlive_cluster::*;
use proptest::collection::vec;
use proptest::prelude::*;

const CLUSTER: ClusterId = ClusterId(1);
const ATTEMPT: Attempt = Attempt(2);

fn name(number: u8) -> NodeName {
    format!("s{number}").parse().unwrap()
}

fn seeds() -> Seeds {
    Seeds::new(CLUSTER, 1, (0..3).map(name).collect()).unwrap()
}

/// Numbers as an enemy would choose them.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 48), any::<u64>()]
}

fn workload() -> impl Strategy<Value = WorkloadName> {
    (0..4_u8).prop_map(|number| format!("w{number}").parse().unwrap())
}

fn holder() -> impl Strategy<Value = Holder> {
    (0..3_u128).prop_map(|number| Holder { incarnation: Incarnation(number), node: name(0) })
}

fn backups() -> impl Strategy<Value = Vec<Backup>> {
    let backup = (holder(), proptest::option::of(number()))
        .prop_map(|(holder, stopped_at)| Backup { holder, stopped_at });
    vec(backup, 0..3)
}

fn register() -> impl Strategy<Value = Register> {
    let held = (holder(), backups(), 0..3_u8).prop_map(|(primary, backups, needed)| Holding::Held {
        primary,
        backups,
        needed,
    });
    let orphaned = (holder(), backups(), backups(), 0..3_u8).prop_map(|(primary, left, dead, needed)| {
        Holding::Orphaned(Orphaned { primary, left, dead, needed })
    });
    let holding = prop_oneof![held, orphaned, Just(Holding::Tombstone)];
    (number(), number(), holding, number()).prop_map(|(version, generation, holding, seeds_version)| {
        Register { version, generation, holding, seeds_version }
    })
}

fn value() -> impl Strategy<Value = Option<Register>> {
    proptest::option::of(register())
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (number(), 0..4_u128).prop_map(|(counter, attempt)| Ballot { counter, attempt: Attempt(attempt) })
}

fn accepted() -> impl Strategy<Value = Option<Accepted>> {
    proptest::option::of((ballot(), value()).prop_map(|(ballot, value)| Accepted { ballot, value }))
}

fn voter() -> impl Strategy<Value = Voter> {
    (number(), vec(number().prop_map(Life), 0..5)).prop_map(|(life, lives)| Voter { life: Life(life), lives })
}

fn request() -> impl Strategy<Value = Request> {
    let ask = prop_oneof![
        (workload(), number()).prop_map(|(workload, counter)| Ask::Prepare { workload, counter }),
        (workload(), number(), value()).prop_map(|(workload, counter, value)| Ask::Accept {
            workload,
            counter,
            value
        }),
        (number(), proptest::option::of(workload()))
            .prop_map(|(life, after)| Ask::Teach { life: Life(life), after }),
    ];
    (0..4_u128, ask).prop_map(|(attempt, ask)| Request {
        cluster: CLUSTER,
        seeds_version: 1,
        attempt: Attempt(attempt),
        ask,
    })
}

fn response() -> impl Strategy<Value = Response> {
    let slot = (proptest::option::of(ballot()), accepted())
        .prop_map(|(promised, accepted)| Slot { promised, accepted });
    let page =
        (number(), proptest::option::of(workload()), voter(), vec((workload(), slot), 0..4), any::<bool>());
    let answer = prop_oneof![
        (number(), voter(), accepted()).prop_map(|(counter, voter, accepted)| Answer::Promised {
            counter,
            voter,
            accepted
        }),
        (number(), voter()).prop_map(|(counter, voter)| Answer::Accepted { counter, voter }),
        (number(), ballot()).prop_map(|(counter, promised)| Answer::Outbid { counter, promised }),
        page.prop_map(|(life, after, voter, slots, more)| Answer::Taught {
            life: Life(life),
            after,
            voter,
            slots,
            more
        }),
        number().prop_map(|life| Answer::LifeTaken { life: Life(life) }),
        Just(Answer::Declined(Declined::Blank)),
    ];
    answer.prop_map(|answer| Response { cluster: CLUSTER, attempt: ATTEMPT, answer })
}

fn acceptor() -> Acceptor<MemoryStorage> {
    let mut acceptor = Acceptor::open(MemoryStorage::default()).unwrap();
    acceptor.bootstrap(seeds(), name(0)).unwrap();
    acceptor
}

fn hear(responses: &[(u8, Response)]) {
    let transition = Transition::BackupTakesOver { by: Incarnation(1), held: 0 };
    let workload: WorkloadName = "w0".parse().unwrap();
    let (start, limits) = (Duration::ZERO, Limits::default());
    let mut proposers = [
        Proposer::new(seeds(), workload.clone(), transition, ATTEMPT, start, limits),
        Proposer::read(seeds(), workload, ATTEMPT, start, limits),
    ];
    let mut learner = Learner::new(seeds(), name(0), ATTEMPT, start, Duration::from_millis(1));
    for (number, (from, response)) in responses.iter().enumerate() {
        let now = Duration::from_millis(number as u64);
        for proposer in &mut proposers {
            proposer.poll(now);
            proposer.on_response(&name(*from), response, now);
        }
        learner.poll(now);
        learner.on_response(&name(*from), response, now);
        if let Some(lesson) = learner.lesson() {
            let mut wiped = Acceptor::open(MemoryStorage::default()).unwrap();
            wiped.rejoin(seeds(), name(0)).unwrap();
            let _ = wiped.take_lesson(lesson);
        }
    }
}

proptest! {
    // A failure prints its input; files beside the tests would be nobody's.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_handled(bytes in vec(any::<u8>(), 0..300)) {
        let versioned = [&[1, 0], bytes.as_slice()].concat();
        for bytes in [&bytes, &versioned] {
            if let Ok(request) = Request::decode(bytes) {
                acceptor().handle(&name(1), &request);
            }
            if let Ok(response) = Response::decode(bytes) {
                hear(&[(1, response)]);
            }
        }
    }

    #[test]
    fn damaged_messages_are_refused_or_handled(
        request in request(), response in response(), place in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = request.encode().unwrap();
        let damaged = place.index(bytes.len());
        bytes[damaged] = byte;
        if let Ok(request) = Request::decode(&bytes) {
            acceptor().handle(&name(1), &request);
        }
        let mut bytes = response.encode().unwrap();
        let damaged = place.index(bytes.len());
        bytes[damaged] = byte;
        if let Ok(response) = Response::decode(&bytes) {
            hear(&[(1, response)]);
        }
    }

    #[test]
    fn any_requests_in_any_order_are_handled(requests in vec((0..4_u8, request()), 0..40)) {
        let mut acceptor = acceptor();
        for (from, request) in &requests {
            prop_assert_eq!(&Request::decode(&request.encode().unwrap()).unwrap(), request);
            let response = acceptor.handle(&name(*from), request);
            prop_assert!(response.encode().is_ok());
        }
    }

    #[test]
    fn any_responses_in_any_order_are_handled(responses in vec((0..4_u8, response()), 0..40)) {
        for (_, response) in &responses {
            prop_assert_eq!(&Response::decode(&response.encode().unwrap()).unwrap(), response);
        }
        hear(&responses);
    }
}
