use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const A: Kind = Kind(Kind::FIRST_APPLICATION);
const B: Kind = Kind(255);
const KINDS: KindSet = KindSet::of(&[A, B]);

/// Frames as they leave the opening end.
fn record(frames: &[(Kind, &[&[u8]])]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), End::Opening);
    for (kind, payload) in frames {
        writer.send(*kind, payload).unwrap();
    }
    writer.into_inner()
}

fn reader(recording: &[u8]) -> FrameReader<&[u8]> {
    FrameReader::new(recording, End::Opening, KINDS)
}

/// All frames up to the error that ends every recording.
fn replay(recording: &[u8]) -> (Vec<Frame>, FrameError) {
    let mut reader = reader(recording);
    let mut frames = Vec::new();
    loop {
        match reader.next() {
            Ok(frame) => frames.push(frame),
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

fn three_frames() -> Vec<u8> {
    record(&[(A, &[b"one"]), (B, &[b"t", b"", b"wo"]), (A, &[])])
}

fn expected_three() -> Vec<Frame> {
    vec![
        Frame { kind: A, payload: b"one".to_vec() },
        Frame { kind: B, payload: b"two".to_vec() },
        Frame { kind: A, payload: Vec::new() },
    ]
}

#[test]
fn frames_arrive_as_they_were_sent() {
    let (frames, error) = replay(&three_frames());
    assert_eq!(frames, expected_three());
    assert!(is_clean_end(&error), "{error}");
}

#[test]
fn queued_frames_are_the_same_frames_and_leave_in_order() {
    let mut writer = FrameWriter::new(Vec::new(), End::Opening);
    writer.queue(A, &[b"one"]).unwrap();
    writer.queue(B, &[b"t", b"", b"wo"]).unwrap();
    assert!(writer.get_ref().is_empty());
    writer.send(A, &[]).unwrap();
    assert_eq!(writer.get_ref(), &three_frames());
    writer.flush().unwrap();
    assert_eq!(writer.get_ref(), &three_frames());
}

#[test]
fn the_queue_is_bounded() {
    let mut writer = FrameWriter::new(Vec::new(), End::Opening);
    let payload = vec![7; 1000];
    for _ in 0..1000 {
        writer.queue(A, &[&payload]).unwrap();
        assert!(writer.queued.len() <= PORTION);
    }
    writer.queue(A, &[&vec![7; PAYLOAD_MAX]]).unwrap();
    assert!(writer.queued.is_empty());
    assert_eq!(replay(writer.get_ref()).0.len(), 1001);
}

#[test]
fn the_longest_payload_passes_and_a_longer_one_is_not_sent() {
    let mut writer = FrameWriter::new(Vec::new(), End::Opening);
    let longest = vec![7; PAYLOAD_MAX];
    let refused = writer.send(A, &[&longest, b"x"]).unwrap_err();
    assert!(matches!(refused, FrameSendError::TooLong { length } if length == PAYLOAD_MAX + 1), "{refused}");
    writer.send(A, &[&longest]).unwrap();
    let (frames, error) = replay(writer.get_ref());
    assert_eq!(frames.len(), 1);
    assert!(is_clean_end(&error), "the refused frame left no gap: {error}");
}

#[test]
fn every_flipped_bit_is_noticed_and_nothing_behind_it_is_delivered() {
    let recording = record(&[(A, &[b"one"]), (B, &[&[0; 300]]), (A, &[b"three"])]);
    let (good, _) = replay(&recording);
    let ends = [HEADER_LENGTH + 3, 2 * HEADER_LENGTH + 303, recording.len()];
    for bit in 0..recording.len() * 8 {
        let mut flipped = recording.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (frames, error) = replay(&flipped);
        let before = ends.iter().filter(|end| **end <= bit / 8).count();
        assert_eq!(frames, good[..before], "bit {bit}");
        assert!(matches!(error, FrameError::Corrupt { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let recording = three_frames();
    let ends = [0, HEADER_LENGTH + 3, 2 * HEADER_LENGTH + 6];
    for length in 0..recording.len() {
        let (frames, error) = replay(&recording[..length]);
        assert_eq!(frames, expected_three()[..frames.len()]);
        match ends.contains(&length) {
            // Between two frames: the stream's end itself says that it was not closed.
            true => assert!(is_clean_end(&error), "{length}: {error}"),
            false => assert!(matches!(error, FrameError::Truncated { .. }), "{length}: {error}"),
        }
    }
}

fn cut_into_frames(recording: &[u8]) -> [&[u8]; 3] {
    let (one, rest) = recording.split_at(HEADER_LENGTH + 3);
    let (two, three) = rest.split_at(HEADER_LENGTH + 3);
    [one, two, three]
}

#[test]
fn a_replayed_frame_is_noticed() {
    let recording = three_frames();
    let [one, two, _] = cut_into_frames(&recording);
    for repeated in [one, two] {
        let (frames, error) = replay(&[one, two, repeated].concat());
        assert_eq!(frames.len(), 2);
        assert!(matches!(error, FrameError::Replayed { expected: 2, .. }), "{error}");
    }
}

#[test]
fn reordered_and_missing_frames_are_noticed() {
    let recording = three_frames();
    let [one, two, three] = cut_into_frames(&recording);
    for changed in [[one, three, two].concat(), [one, three].concat()] {
        let (frames, error) = replay(&changed);
        assert_eq!(frames.len(), 1);
        assert!(matches!(error, FrameError::Missing { expected: 1, found: 2 }), "{error}");
    }
}

#[test]
fn a_frame_that_comes_back_to_its_sender_is_noticed() {
    let recording = three_frames();
    let error = FrameReader::new(&recording[..], End::Answering, KINDS).next().unwrap_err();
    assert!(matches!(error, FrameError::Corrupt { sequence: 0, .. }), "{error}");
}

#[test]
fn undeclared_kinds_are_refused() {
    let (frames, error) = replay(&record(&[(A, &[]), (Kind(200), &[])]));
    assert_eq!(frames.len(), 1);
    assert!(matches!(error, FrameError::UnknownKind { kind: Kind(200) }), "{error}");
}

#[test]
fn an_oversized_frame_is_refused_before_memory_is_taken_for_it() {
    let mut header = [0; HEADER_LENGTH];
    header[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
    header[12] = A.0;
    let check = check_of(&header, End::Opening);
    header[CHECKED..HASHED].copy_from_slice(&check);
    let mut reader = reader(&header);
    let error = reader.next().unwrap_err();
    assert!(matches!(error, FrameError::TooLong { length: 0xffff_ffff }), "{error}");
    assert_eq!(reader.payload, None);
}

#[test]
fn each_kind_is_in_a_set_or_not() {
    for kind in 0..=u8::MAX {
        let alone = KindSet::of(&[Kind(kind)]);
        for other in 0..=u8::MAX {
            assert_eq!(alone.contains(Kind(other)), other == kind);
        }
    }
}

/// Gives one byte at a time, and times out before each.
struct Hesitant<'a>(&'a [u8], bool);

impl ByteSource for Hesitant<'_> {
    fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        self.1 = !self.1;
        match self.1 {
            true => Err(ReceiveError::TimedOut { peer: Arc::from("hesitant") }),
            false => self.0.receive(&mut into[..1]),
        }
    }
}

#[test]
fn a_timeout_anywhere_in_a_frame_loses_nothing() {
    let recording = three_frames();
    let mut reader = FrameReader::new(Hesitant(&recording, false), End::Opening, KINDS);
    let (mut frames, mut timeouts) = (Vec::new(), 0);
    loop {
        match reader.next() {
            Ok(frame) => frames.push(frame),
            Err(FrameError::TimedOut(_)) => timeouts += 1,
            Err(error) => {
                assert!(is_clean_end(&error), "{error}");
                break;
            }
        }
    }
    assert_eq!(frames, expected_three());
    assert_eq!(timeouts, recording.len() + 1);
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..4096)) {
        let (frames, _) = replay(&bytes);
        prop_assert!(frames.is_empty());
    }

    #[test]
    fn any_damage_is_noticed(
        payloads in vec(vec(any::<u8>(), 0..100), 1..5),
        damage in vec((any::<proptest::sample::Index>(), 1u8..), 1..5),
    ) {
        let mut writer = FrameWriter::new(Vec::new(), End::Opening);
        for payload in &payloads {
            writer.send(A, &[payload]).unwrap();
        }
        let good = writer.into_inner();
        let mut damaged = good.clone();
        for (at, change) in damage {
            let at = at.index(damaged.len());
            damaged[at] ^= change;
        }
        prop_assume!(damaged != good);
        let (frames, error) = replay(&damaged);
        prop_assert!(frames.len() < payloads.len());
        prop_assert!(!is_clean_end(&error), "{}", error);
        for (frame, payload) in frames.iter().zip(&payloads) {
            prop_assert_eq!(&frame.payload, payload);
        }
    }
}
