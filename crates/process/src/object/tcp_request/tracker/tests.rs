use super::super::segment::{Build, Direction};
use super::*;
use etherparse::{TcpHeader, TcpOptionElement};
use proptest::prelude::*;

const CLIENT_ISN: u32 = u32::MAX - 2000; // Its data wraps around.
const SERVER_ISN: u32 = 77;
const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];

fn tuple() -> FourTuple {
    FourTuple { client: CLIENT.into(), client_port: 40_000, server: SERVER.into(), server_port: 80 }
}

const PATH: Path =
    Path { client_mac: [2; 6], server_mac: [4; 6], hop_limit: 64, traffic_class: 0, flow_label: 0 };

/// A segment of a handshake, which `Build` does not make.
fn handshake(inward: bool, change: impl FnOnce(&mut TcpHeader)) -> Vec<u8> {
    let (source, destination, from, to) =
        if inward { (CLIENT, SERVER, 40_000, 80) } else { (SERVER, CLIENT, 80, 40_000) };
    let mut tcp = TcpHeader::new(from, to, if inward { CLIENT_ISN } else { SERVER_ISN }, 64_240);
    let options = [
        TcpOptionElement::MaximumSegmentSize(1400),
        TcpOptionElement::WindowScale(if inward { 7 } else { 9 }),
        TcpOptionElement::SelectiveAcknowledgementPermitted,
        TcpOptionElement::Timestamp(if inward { 1000 } else { 5000 }, 0),
    ];
    tcp.set_options(&options).expect("options");
    change(&mut tcp);
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(source, destination, 64)
        .tcp_header(tcp)
        .write(&mut frame, &[])
        .expect("write");
    frame
}

fn syn() -> Vec<u8> {
    handshake(true, |tcp| tcp.syn = true)
}

fn syn_ack() -> Vec<u8> {
    handshake(false, |tcp| {
        (tcp.syn, tcp.ack) = (true, true);
        tcp.acknowledgment_number = CLIENT_ISN.wrapping_add(1);
    })
}

fn segment(direction: Direction, sequence: u32, acknowledgment: u32, payload: &[u8], fin: bool) -> Vec<u8> {
    let (tuple, path) = (&tuple(), &PATH);
    let timestamps = Some((6000, 1000));
    let (window, segment_size) = (100, 1400);
    Build { tuple, path, direction, sequence, acknowledgment, window, timestamps, fin, payload, segment_size }
        .frame()
        .expect("build")
        .ethernet
}

/// What the client sends `offset` bytes into its stream.
fn data(offset: u32, payload: &[u8]) -> Vec<u8> {
    let sequence = CLIENT_ISN.wrapping_add(1).wrapping_add(offset);
    segment(Direction::ToWorkload, sequence, SERVER_ISN + 1, payload, false)
}

/// The kernel's acknowledgment of so many numbers after the SYN.
fn acknowledge(numbers: u32) -> Vec<u8> {
    let acknowledgment = CLIENT_ISN.wrapping_add(1).wrapping_add(numbers);
    segment(Direction::ToClient, SERVER_ISN + 1, acknowledgment, &[], false)
}

struct Watch {
    tracker: RequestTracker,
    now: Instant,
}

impl Watch {
    fn new(bounds: Bounds) -> Self {
        Self { tracker: RequestTracker::new(bounds), now: Instant::now() }
    }

    fn open() -> Self {
        let mut watch = Self::new(Bounds::default());
        watch.shake_hands();
        watch
    }

    fn shake_hands(&mut self) {
        assert_eq!(self.incoming(&syn()), Verdict::Pass);
        self.outgoing(&syn_ack());
    }

    fn incoming(&mut self, frame: &[u8]) -> Verdict {
        self.tracker.observe_in(self.now, frame)
    }

    fn outgoing(&mut self, frame: &[u8]) {
        self.tracker.observe_out(self.now, frame);
    }

    fn only(&self) -> PendingConnection {
        let snapshot = self.tracker.snapshot();
        assert_eq!((snapshot.connections.len(), snapshot.refused.len()), (1, 0), "{snapshot:?}");
        snapshot.connections[0].clone()
    }

    fn is_forgotten(&self) -> bool {
        assert!(!self.tracker.is_empty() || self.tracker.bytes == 0, "forgotten data is still counted");
        self.tracker.is_empty()
    }
}

#[test]
fn knows_what_was_agreed() {
    let watch = Watch::open();
    let connection = watch.only();
    assert_eq!(connection.tuple, tuple());
    assert_eq!((connection.client_isn, connection.server_isn), (CLIENT_ISN, SERVER_ISN));
    assert_eq!(connection.window_scale, Some(WindowScale { client: 7, server: 9 }));
    assert_eq!(connection.timestamps, Some(Timestamps { client: 1000, server: 5000 }));
    assert!(connection.sack && !connection.ecn);
    assert_eq!((connection.client_mss, connection.progress), (1400, Progress::SynReceived));
    assert_eq!(connection.syn_ack, syn_ack());
}

#[test]
fn an_unanswered_syn_is_no_connection() {
    let mut watch = Watch::new(Bounds::default());
    assert_eq!(watch.incoming(&syn()), Verdict::Pass);
    assert_eq!(watch.tracker.snapshot(), Snapshot::default());
    watch.now += SYN_UNANSWERED;
    let _ = watch.incoming(&[]);
    assert!(watch.is_forgotten());
}

#[test]
fn options_that_the_server_did_not_confirm_are_not_agreed() {
    let mut watch = Watch::new(Bounds::default());
    let _ = watch.incoming(&syn());
    watch.outgoing(&handshake(false, |tcp| {
        (tcp.syn, tcp.ack, tcp.ece) = (true, true, true);
        tcp.acknowledgment_number = CLIENT_ISN.wrapping_add(1);
        tcp.set_options(&[]).expect("options");
    }));
    let connection = watch.only();
    assert_eq!((connection.window_scale, connection.timestamps, connection.sack), (None, None, false));
    assert_eq!((connection.server_mss, connection.ecn), (536, true));
}

#[test]
fn counts_data_that_was_acknowledged() {
    let mut watch = Watch::open();
    assert_eq!(watch.incoming(&data(0, b"hello")), Verdict::Pass);
    assert!(matches!(watch.only().progress, Progress::Completed { order: 0 }));
    assert_eq!(watch.only().acknowledged, 0);
    watch.outgoing(&acknowledge(5));
    let connection = watch.only();
    assert_eq!((&connection.data[..], connection.acknowledged), (&b"hello"[..], 5));
    assert_eq!(connection.timestamps, Some(Timestamps { client: 6000, server: 6000 }));
    watch.outgoing(&acknowledge(3)); // Overtaken on its way.
    assert_eq!(watch.only().acknowledged, 5);
}

#[test]
fn a_fin_counts_once_everything_before_it_is_there() {
    let mut watch = Watch::open();
    let fin = segment(Direction::ToWorkload, CLIENT_ISN.wrapping_add(6), SERVER_ISN + 1, b"!", true);
    let _ = watch.incoming(&fin);
    assert!(!watch.only().finished);
    let _ = watch.incoming(&data(0, b"hello"));
    watch.outgoing(&acknowledge(7));
    let connection = watch.only();
    assert_eq!(
        (&connection.data[..], connection.finished, connection.acknowledged),
        (&b"hello!"[..], true, 7)
    );
}

#[test]
fn a_damaged_segment_does_not_shadow_the_intact_one() {
    let mut watch = Watch::open();
    let mut damaged = data(0, b"hello");
    *damaged.last_mut().expect("not empty") ^= 1;
    assert_eq!(watch.incoming(&damaged), Verdict::Pass);
    let _ = watch.incoming(&data(0, b"hello"));
    assert_eq!(watch.only().data, b"hello");
}

#[test]
fn data_acknowledged_unseen_is_refused_by_name() {
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    watch.outgoing(&acknowledge(6));
    let refused = vec![Refused { tuple: tuple(), why: Why::UnseenData }];
    assert_eq!(watch.tracker.snapshot(), Snapshot { connections: vec![], refused });
}

#[test]
fn fast_open_is_refused_by_name() {
    let mut watch = Watch::new(Bounds::default());
    let _ = watch.incoming(&syn());
    watch.outgoing(&handshake(false, |tcp| {
        (tcp.syn, tcp.ack) = (true, true);
        tcp.acknowledgment_number = CLIENT_ISN.wrapping_add(6);
    }));
    assert_eq!(watch.tracker.snapshot().refused, [Refused { tuple: tuple(), why: Why::FastOpen }]);
}

#[test]
fn only_exact_resets_end_a_connection() {
    let reset_by_client = |offset: u32| {
        handshake(true, |tcp| {
            tcp.rst = true;
            tcp.sequence_number = CLIENT_ISN.wrapping_add(1).wrapping_add(offset);
        })
    };
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    watch.outgoing(&acknowledge(5));
    let _ = watch.incoming(&reset_by_client(4));
    assert!(!watch.is_forgotten());
    let _ = watch.incoming(&reset_by_client(5));
    assert!(watch.is_forgotten());

    let reset_by_server = |sequence: u32| {
        handshake(false, |tcp| {
            (tcp.rst, tcp.sequence_number) = (true, sequence);
        })
    };
    watch.shake_hands();
    watch.outgoing(&reset_by_server(123)); // An answer to a segment with this acknowledgment.
    assert!(!watch.is_forgotten());
    watch.outgoing(&reset_by_server(SERVER_ISN + 1));
    assert!(watch.is_forgotten());

    let _ = watch.incoming(&syn());
    watch.outgoing(&reset_by_server(0)); // Nobody listens.
    assert!(watch.is_forgotten());
}

#[test]
fn data_from_the_workload_shows_that_it_has_a_descriptor() {
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    watch.outgoing(&segment(Direction::ToClient, SERVER_ISN + 1, CLIENT_ISN.wrapping_add(6), b"hi", false));
    assert!(watch.is_forgotten());
}

#[test]
fn an_accepted_connection_is_not_followed() {
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    watch.tracker.forget(&tuple());
    assert!(watch.is_forgotten());
    assert_eq!(watch.incoming(&data(5, &[0; 1000])), Verdict::Pass);
    watch.outgoing(&acknowledge(1005));
    assert!(watch.is_forgotten());
}

#[test]
fn a_request_is_forgotten_when_its_kernel_has_given_up_and_a_completed_one_never() {
    let mut watch = Watch::open();
    watch.now += REQUEST_SILENT / 2;
    watch.outgoing(&syn_ack());
    watch.now += REQUEST_SILENT / 2;
    let _ = watch.incoming(&[]);
    assert!(!watch.is_forgotten());
    watch.now += REQUEST_SILENT / 2;
    let _ = watch.incoming(&[]);
    assert!(watch.is_forgotten());

    watch.shake_hands();
    let _ = watch.incoming(&data(0, b""));
    watch.now += REQUEST_SILENT * 100;
    let _ = watch.incoming(&[]);
    assert!(!watch.is_forgotten());
    watch.tracker.retain(|_| false);
    assert!(watch.is_forgotten());
}

#[test]
fn the_kernel_decides_which_syn_counts() {
    let newer = handshake(true, |tcp| (tcp.syn, tcp.sequence_number) = (true, 5));
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    let _ = watch.incoming(&newer);
    assert_eq!(watch.only().client_isn, CLIENT_ISN);
    watch.outgoing(&handshake(false, |tcp| {
        (tcp.syn, tcp.ack, tcp.acknowledgment_number, tcp.sequence_number) = (true, true, 6, 999);
    }));
    let connection = watch.only();
    assert_eq!((connection.client_isn, connection.server_isn), (5, 999));
    assert_eq!((connection.data.len(), connection.progress), (0, Progress::SynReceived));
    assert_eq!(watch.tracker.bytes, 0);
}

#[test]
fn a_syn_beyond_the_bound_is_dropped_and_no_other() {
    let mut watch = Watch::new(Bounds { connections: 1, ..Bounds::default() });
    watch.shake_hands();
    let other = handshake(true, |tcp| (tcp.syn, tcp.source_port) = (true, 40_001));
    assert_eq!(watch.incoming(&other), Verdict::Drop);
    assert_eq!(watch.incoming(&syn()), Verdict::Pass);
    watch.tracker.forget(&tuple());
    assert_eq!(watch.incoming(&other), Verdict::Pass);
}

#[test]
fn data_beyond_a_bound_is_dropped_until_accepted() {
    for bounds in
        [Bounds { bytes_per_connection: 10, ..Bounds::default() }, Bounds { bytes: 10, ..Bounds::default() }]
    {
        let mut watch = Watch::new(bounds);
        watch.shake_hands();
        assert_eq!(watch.incoming(&data(0, b"12345678")), Verdict::Pass);
        assert_eq!(watch.incoming(&data(8, b"9ab")), Verdict::Drop);
        assert_eq!(watch.incoming(&data(0, b"12345678")), Verdict::Pass, "what is known takes no room");
        assert_eq!(watch.only().data, b"12345678");
        watch.tracker.forget(&tuple());
        assert_eq!(watch.incoming(&data(8, b"9ab")), Verdict::Pass);
    }
}

#[test]
fn restored_connections_are_followed_on() {
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b"hello"));
    watch.outgoing(&acknowledge(5));
    let before = watch.tracker.snapshot();
    let mut watch = Watch {
        tracker: RequestTracker::resume(Bounds::default(), watch.now, &before.connections),
        now: watch.now,
    };
    assert_eq!(watch.tracker.snapshot(), before);
    let _ = watch.incoming(&data(5, b" world"));
    watch.outgoing(&acknowledge(11));
    assert_eq!((&watch.only().data[..], watch.only().acknowledged), (&b"hello world"[..], 11));
}

#[test]
fn what_has_its_place_for_certain_is_restored_first() {
    let mut watch = Watch::open();
    let _ = watch.incoming(&data(0, b""));
    let from = |port: u16, frame: Vec<u8>, inward: bool| {
        // The same frame of another client: its port, and a checksum to match.
        let mut frame = frame;
        let at = 34 + if inward { 0 } else { 2 };
        frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
        Segment::parse(&frame).expect("parse").with_complete_checksum()
    };
    let _ = watch.incoming(&from(40_001, syn(), true));
    watch.outgoing(&from(40_001, syn_ack(), false));
    let _ = watch.incoming(&from(40_001, data(0, b"x"), true));
    watch.outgoing(&from(40_001, acknowledge(1), false));
    let ports: Vec<_> =
        watch.tracker.snapshot().connections.iter().map(|connection| connection.tuple.client_port).collect();
    assert_eq!(ports, [40_001, 40_000]);
}

proptest! {
    /// Whatever the order, the overlaps and the repetitions, what is there in order is the client's stream.
    #[test]
    fn reassembles_segments_in_any_order(
        segments in proptest::collection::vec((0..3000_u32, 1..600_usize), 1..60),
    ) {
        let stream: Vec<u8> = (0..4000_u32).map(|index| (index % 251) as u8).collect();
        let mut watch = Watch::open();
        let mut seen = vec![false; stream.len()];
        for (offset, length) in segments {
            let range = offset as usize..offset as usize + length;
            prop_assert_eq!(watch.incoming(&data(offset, &stream[range.clone()])), Verdict::Pass);
            seen[range].fill(true);
            let in_order = seen.iter().take_while(|&&seen| seen).count();
            let connection = watch.only();
            prop_assert_eq!(&connection.data[..], &stream[..in_order]);
            let held = watch.tracker.entries.values().map(Entry::held).sum::<usize>();
            prop_assert_eq!(watch.tracker.bytes, held);
        }
        watch.tracker.forget(&tuple());
        prop_assert!(watch.is_forgotten());
    }

    /// No frame makes it panic, forget to count or grow beyond its bounds.
    #[test]
    fn stays_within_its_bounds(
        steps in proptest::collection::vec((any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>(), 0..200_usize), 0..80),
    ) {
        let bounds = Bounds { connections: 3, bytes_per_connection: 300, bytes: 500 };
        let mut watch = Watch::new(bounds);
        watch.shake_hands();
        for (inward, flags, sequence, acknowledgment, length) in steps {
            let near = |value: u32, to: u32| if value.is_multiple_of(4) { value } else { to.wrapping_add(value % 64) };
            let frame = handshake(inward, |tcp| {
                tcp.sequence_number = near(sequence, if inward { CLIENT_ISN } else { SERVER_ISN });
                tcp.acknowledgment_number = near(acknowledgment, if inward { SERVER_ISN } else { CLIENT_ISN });
                (tcp.syn, tcp.ack, tcp.rst) = (flags & 3 == 0, flags & 12 != 0, flags & 0x70 == 0);
                tcp.fin = flags & 0x80 != 0;
            });
            if inward {
                let _ = watch.incoming(&frame);
                let _ = watch.incoming(&data(sequence % 500, &vec![0; length]));
            } else {
                watch.outgoing(&frame);
            }
            let held: Vec<_> = watch.tracker.entries.values().map(Entry::held).collect();
            prop_assert_eq!(watch.tracker.bytes, held.iter().sum::<usize>());
            prop_assert!(watch.tracker.bytes <= bounds.bytes && watch.tracker.len() <= bounds.connections);
            prop_assert!(held.iter().all(|&held| held <= bounds.bytes_per_connection));
            let _ = watch.tracker.snapshot();
        }
    }
}
