use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const A: Kind = Kind(Kind::FIRST_APPLICATION);
const B: Kind = Kind(255);
const KINDS: KindSet = KindSet::of(&[A, B]);

fn record(frames: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let mut writer = CompactWriter::new(Vec::new(), End::Opening);
    for (kind, payload) in frames {
        let (front, back) = payload.split_at(payload.len() / 3);
        writer.send(*kind, &[front, &[], back]).unwrap();
    }
    writer.into_inner()
}

/// Gives a recording in pieces, and between them says that nothing comes.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
    silent: bool,
}

impl ByteSource for Pieces<'_> {
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        self.silent = !self.silent;
        if self.silent && !self.bytes.is_empty() {
            return Err(ReceiveError::TimedOut { peer: Arc::from("a recording") });
        }
        let most = into.len().min(self.piece);
        self.bytes.receive(&mut into[..most])
    }
}

/// All frames up to the error that ends every recording.
fn replay(bytes: &[u8], piece: usize, end: End) -> (Vec<(Kind, Vec<u8>)>, FrameError) {
    let mut reader = CompactReader::new(Pieces { bytes, piece, silent: false }, end, KINDS);
    let mut frames = Vec::new();
    loop {
        match reader.next() {
            Ok(Frame { kind, payload }) => frames.push((kind, payload)),
            Err(FrameError::TimedOut(_)) => {}
            Err(error) => {
                assert!(matches!(reader.next(), Err(FrameError::AfterFailure)), "after {error}");
                return (frames, error);
            }
        }
    }
}

fn is_clean_end(error: &FrameError) -> bool {
    matches!(error, FrameError::Receive(ReceiveError::Cut { .. }))
}

#[test]
fn a_small_message_has_six_bytes_in_front() {
    assert_eq!(record(&[(A, vec![7; 127])]).len(), 133);
    assert_eq!(record(&[(A, vec![])]).len(), 6);
}

#[test]
fn frames_of_every_size_arrive_however_they_are_cut() {
    let lengths = [
        0,
        1,
        127,
        128,
        SMALL - 1,
        SMALL,
        SMALL + 1,
        BUFFER - 7,
        BUFFER - 6,
        BUFFER,
        3 * BUFFER,
        PAYLOAD_MAX,
    ];
    let sent: Vec<_> = lengths.iter().map(|length| (B, vec![*length as u8; *length])).collect();
    let recording = record(&sent);
    for piece in [1000, 4096, usize::MAX] {
        let (frames, error) = replay(&recording, piece, End::Opening);
        assert!(frames == sent, "other frames, in pieces of {piece}");
        assert!(is_clean_end(&error), "{error}");
    }
}

#[test]
fn what_is_too_long_is_not_sent_and_not_waited_for() {
    let mut writer = CompactWriter::new(Vec::new(), End::Opening);
    let long = vec![0; PAYLOAD_MAX + 1];
    assert!(matches!(writer.send(A, &[&long]), Err(FrameSendError::TooLong { .. })));
    let announced = [128, 0xff, 0xff, 0xff, 0x7f];
    assert!(matches!(replay(&announced, 9, End::Opening).1, FrameError::TooLong { .. }));
    assert!(matches!(replay(&[128, 0xff, 0xff, 0xff, 0xff], 9, End::Opening).1, FrameError::TooLong { .. }));
}

#[test]
fn reflected_reordered_and_undeclared_frames_are_refused() {
    let sent = [(A, b"one".to_vec()), (A, b"two".to_vec())];
    let recording = record(&sent);
    assert!(matches!(replay(&recording, 99, End::Answering).1, FrameError::Corrupt { sequence: 0, .. }));
    let (first, second) = recording.split_at(recording.len() / 2);
    let (frames, error) = replay(&[first, first].concat(), 99, End::Opening);
    assert_eq!(frames, sent[..1]);
    assert!(matches!(error, FrameError::Corrupt { sequence: 1, .. }));
    assert!(matches!(replay(second, 99, End::Opening).1, FrameError::Corrupt { sequence: 0, .. }));
    let undeclared = record(&[(Kind(Kind::FIRST_APPLICATION + 1), vec![])]);
    assert!(matches!(replay(&undeclared, 99, End::Opening).1, FrameError::UnknownKind { .. }));
}

fn any_frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
    vec((prop_oneof![Just(A), Just(B)], vec(any::<u8>(), 0..300)), 0..6)
}

proptest! {
    #[test]
    fn any_frames_arrive_cut_anyhow(sent in any_frames(), piece in 1usize..40) {
        let (frames, error) = replay(&record(&sent), piece, End::Opening);
        prop_assert_eq!(frames, sent);
        prop_assert!(is_clean_end(&error), "{}", error);
    }

    #[test]
    fn a_damaged_stream_gives_only_what_came_before(
        sent in any_frames(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut recording = record(&sent);
        prop_assume!(!recording.is_empty());
        let at = at.index(recording.len());
        recording[at] ^= 1 << bit;
        let (frames, error) = replay(&recording, 64, End::Opening);
        prop_assert!(frames.len() < sent.len());
        prop_assert_eq!(&frames[..], &sent[..frames.len()]);
        prop_assert!(!is_clean_end(&error), "{}", error);
    }

    #[test]
    fn a_stream_that_ends_early_is_truncated(sent in any_frames(), at in any::<prop::sample::Index>()) {
        let recording = record(&sent);
        prop_assume!(!recording.is_empty());
        let (frames, error) = replay(&recording[..at.index(recording.len())], 64, End::Opening);
        prop_assert_eq!(&frames[..], &sent[..frames.len()]);
        prop_assert!(is_clean_end(&error) || matches!(error, FrameError::Truncated { .. }), "{}", error);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in vec(any::<u8>(), 0..2000), piece in 1usize..300) {
        replay(&bytes, piece, End::Opening);
    }
}
