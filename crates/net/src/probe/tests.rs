use proptest::prelude::*;

use super::*;
use crate::NetworkConfig;
use crate::frame::empty;

const PEER: Mac = Mac([2, 0, 0, 0, 0, 9]);
const OURS: ([u8; 4], u16) = ([192, 0, 2, 10], 6379);
const THEIRS: ([u8; 4], u16) = ([192, 0, 2, 7], 40_000);

fn target() -> ProbeTarget {
    ProbeTarget {
        local: OURS.into(),
        remote: THEIRS.into(),
        // The first byte that is not acknowledged is the first after the wrap.
        snd_una: 0,
        rcv_nxt: 5000,
        window: 501,
        timestamps: Some(Timestamps { value: 77, echo: 88 }),
    }
}

fn at(micros: u64) -> Moment {
    Moment::from_nanos(1_000_000_000 + micros * 1000)
}

/// What the peer sends.
fn from_peer(set: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Vec<u8> {
    let mut tcp = TcpHeader::new(THEIRS.1, OURS.1, 5000, 300);
    tcp.ack = true;
    set(&mut tcp);
    let mut frame = empty(128);
    PacketBuilder::ethernet2(PEER.0, [2; 6])
        .ipv4(THEIRS.0, OURS.0, 64)
        .tcp_header(tcp)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn ack(number: u32) -> Vec<u8> {
    from_peer(|tcp| tcp.acknowledgment_number = number, &[])
}

/// An answer that repeats the byte asked with.
fn sure_ack(number: u32) -> Vec<u8> {
    let duplicate = TcpOptionElement::SelectiveAcknowledgement((u32::MAX, 0), [None; 3]);
    from_peer(
        |tcp| {
            tcp.acknowledgment_number = number;
            tcp.set_options(&[duplicate]).unwrap();
        },
        &[],
    )
}

fn neighbours() -> Neighbours {
    let network = NetworkConfig::new("probe", vec!["192.0.2.10/24".parse().unwrap()]);
    let mut neighbours = Neighbours::new(network);
    neighbours.learn(&ack(0));
    neighbours
}

/// A prober that has asked.
fn asked() -> Prober {
    let mut prober = Prober::new([target()]);
    assert_eq!(prober.due(at(0), &mut neighbours(), 10).len(), 1);
    prober
}

#[test]
fn the_question_is_one_old_byte_with_everything_the_peer_checks() {
    let frame = build(&target(), Mac([2; 6]), PEER).unwrap();
    let packet = parse(&frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!() };
    assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (u32::MAX, 5000));
    assert_eq!((tcp.payload().len(), tcp.window_size()), (1, 501));
    assert!(tcp.ack() && !tcp.syn() && !tcp.fin() && !tcp.rst());
    assert!(tcp.options_iterator().flatten().any(|option| option == TcpOptionElement::Timestamp(77, 88)));
    assert_eq!(tcp.calc_checksum_ipv4(OURS.0, THEIRS.0).unwrap(), tcp.checksum());

    // A socket of both families shows IPv4 as IPv6; the frame is the same.
    let mapped = |end: SocketAddr| match end {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    };
    let both = ProbeTarget { local: mapped(target().local), remote: mapped(target().remote), ..target() };
    assert_eq!(build(&both, Mac([2; 6]), PEER).as_ref(), Some(&frame));
    let mixed = ProbeTarget { remote: "[2001:db8::1]:1".parse().unwrap(), ..target() };
    assert_eq!(build(&mixed, Mac([2; 6]), PEER), None);
}

#[test]
fn a_stray_ack_is_bettered_by_the_answer() {
    let mut prober = asked();
    assert_eq!(prober.on_frame(&ack(100)), Verdict::Swallow);
    assert!(!prober.is_done(at(0)), "it may have been on its way before the question");
    assert_eq!(prober.on_frame(&sure_ack(300)), Verdict::Swallow);
    assert!(prober.is_done(at(0)));
    assert_eq!(prober.on_frame(&ack(200)), Verdict::Swallow);
    assert_eq!(prober.results(), [Some(Answer::Has { ack: 300, window: 300, certain: true })]);
}

#[test]
fn an_answer_that_is_not_certain_settles() {
    let mut prober = asked();
    prober.on_frame(&ack(100));
    let settled = prober.next_at().unwrap();
    assert_eq!(settled.since(at(0)), SETTLE);
    assert!(prober.is_done(settled));
    assert!(prober.due(at(1_000_000), &mut neighbours(), 10).is_empty(), "it is not asked again");
}

#[test]
fn what_is_no_answer_passes() {
    let mut prober = asked();
    let mut wrong_checksum = ack(100);
    *wrong_checksum.last_mut().unwrap() ^= 1;
    for frame in [
        from_peer(|tcp| tcp.acknowledgment_number = 100, b"data"),
        from_peer(|tcp| tcp.fin = true, &[]),
        from_peer(|tcp| tcp.syn = true, &[]),
        from_peer(|tcp| tcp.source_port = 1, &[]),
        // Older than what the checkpoint knows to be acknowledged.
        ack(u32::MAX - 10),
        from_peer(|tcp| (tcp.rst, tcp.sequence_number) = (true, 4999), &[]),
        wrong_checksum,
        vec![],
    ] {
        assert_eq!(prober.on_frame(&frame), Verdict::Pass);
    }
    assert_eq!(prober.results(), [None]);
    assert_eq!(Prober::new([target()]).on_frame(&ack(100)), Verdict::Pass, "nobody asked yet");
}

#[test]
fn a_peer_that_knows_no_such_connection_says_so() {
    let mut prober = asked();
    assert_eq!(prober.on_frame(&from_peer(|tcp| (tcp.ack, tcp.rst) = (false, true), &[])), Verdict::Swallow);
    assert!(prober.is_done(at(0)));
    assert_eq!(prober.results(), [Some(Answer::Reset)]);
}

#[test]
fn questions_are_repeated_ever_more_slowly_and_each_in_its_turn() {
    let targets = (0..5).map(|port| ProbeTarget { remote: (THEIRS.0, 40_000 + port).into(), ..target() });
    let (mut prober, mut neighbours) = (Prober::new(targets), neighbours());
    assert_eq!(prober.due(at(0), &mut neighbours, 3).len(), 3);
    assert_eq!(prober.due(at(0), &mut neighbours, 3).len(), 2);
    assert!(prober.due(at(0), &mut neighbours, 3).is_empty());
    assert_eq!(prober.next_at(), Some(at(0) + FIRST_REPEAT));
    assert_eq!(prober.due(at(5_000), &mut neighbours, 9).len(), 5);
    assert!(prober.due(at(10_000), &mut neighbours, 9).is_empty());
    assert_eq!(prober.due(at(15_000), &mut neighbours, 9).len(), 5);
    assert!(!prober.is_done(at(15_000)));
    assert!(Prober::new([]).is_done(at(0)));
}

proptest! {
    #[test]
    fn no_frame_makes_it_fail_or_go_back(
        acks in prop::collection::vec((any::<u32>(), any::<bool>(), any::<bool>()), 0..40),
        noise in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut prober = asked();
        let mut highest = None::<u32>;
        for (number, sure, broken) in acks {
            let mut frame = if sure { sure_ack(number) } else { ack(number) };
            if broken {
                let length = noise.len() % frame.len();
                frame.truncate(length);
            }
            if prober.on_frame(&frame) == Verdict::Swallow {
                prop_assert!(!broken && number < 1 << 31);
                highest = highest.max(Some(number));
            }
            let known = prober.results()[0].map(|answer| match answer {
                Answer::Has { ack, .. } => ack,
                Answer::Reset => unreachable!("no reset was sent"),
            });
            prop_assert_eq!(known, highest);
        }
        prop_assert_eq!(prober.on_frame(&noise), Verdict::Pass);
        neighbours().learn(&noise);
    }
}
