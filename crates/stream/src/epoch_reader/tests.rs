use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::Compression;
use crate::epoch::{PRIMARY_KINDS, send_input};
use crate::epoch_writer::{EpochSendError, EpochWriter};
use crate::frame::{End, FrameWriter};

const BOUND: usize = 1 << 20;

type Frames = FrameWriter<Vec<u8>>;

fn id(generation: u64, epoch: u64) -> EpochId {
    EpochId { generation, epoch }
}

fn recorder() -> Frames {
    FrameWriter::new(Vec::new(), End::Opening)
}

fn reader(recording: &[u8]) -> FrameReader<&[u8]> {
    FrameReader::new(recording, End::Opening, PRIMARY_KINDS)
}

fn send(frames: &mut Frames, epochs: &mut EpochWriter, id: EpochId, sections: &[(u8, &[u8])]) -> Seal {
    epochs.begin(frames, id).unwrap();
    for (section, bytes) in sections {
        epochs.chunk(frames, *section, &[bytes]).unwrap();
    }
    epochs.commit(frames).unwrap()
}

/// All that comes out, up to the error that ends every recording.
fn replay(recording: &[u8], epochs: &mut EpochReader) -> (Vec<Received>, EpochError) {
    let mut frames = reader(recording);
    let mut received = Vec::new();
    loop {
        match epochs.next(&mut frames) {
            Ok(one) => received.push(one),
            Err(error) => {
                assert!(epochs.next(&mut frames).is_err(), "after {error}");
                return (received, error);
            }
        }
    }
}

fn is_clean_end(error: &EpochError) -> bool {
    matches!(error, EpochError::Frame(FrameError::Receive(_)))
}

/// The frames of one epoch, to be put together wrongly.
fn frames_of(id: EpochId, sections: &[(u8, &[u8])]) -> Vec<Frame> {
    let mut frames = recorder();
    send(&mut frames, &mut EpochWriter::new(Compression::None), id, sections);
    let recording = frames.into_inner();
    let mut frames = reader(&recording);
    std::iter::from_fn(|| frames.next().ok()).collect()
}

fn first_error(epochs: &mut EpochReader, frames: impl IntoIterator<Item = Frame>) -> EpochError {
    let error = frames.into_iter().find_map(|frame| match epochs.accept(frame) {
        Ok(Some(Received::Epoch(epoch))) => panic!("{epoch:?} was delivered"),
        Ok(_) => None,
        Err(error) => Some(error),
    });
    let after = epochs.accept(Frame { kind: Kind::HEARTBEAT, payload: vec![0; 8] });
    assert!(matches!(after, Err(EpochError::AfterFailure)), "{after:?}");
    error.expect("an error")
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat) => {{
        let error = $error;
        assert!(matches!(error, $pattern), "{error} ({error:?})");
    }};
}

#[test]
fn epochs_arrive_whole_with_other_frames_between_their_chunks() {
    let (mut frames, mut epochs) = (recorder(), EpochWriter::new(Compression::None));
    epochs.begin(&mut frames, id(1, 5)).unwrap();
    epochs.chunk(&mut frames, 9, &[b"ab", b"", b"c"]).unwrap();
    Heartbeat { time: 77 }.send(&mut frames).unwrap();
    epochs.chunk(&mut frames, 2, &[]).unwrap();
    send_input(&mut frames, &[b"in", b"put"]).unwrap();
    epochs.chunk(&mut frames, 9, &[b"def"]).unwrap();
    let seal = epochs.commit(&mut frames).unwrap();
    send(&mut frames, &mut epochs, id(2, 6), &[]);
    let (received, error) = replay(frames.get_ref(), &mut EpochReader::new(BOUND));
    assert!(is_clean_end(&error), "{error}");
    let [heartbeat, input, Received::Epoch(first), Received::Epoch(second)] = &received[..] else {
        panic!("{received:?}")
    };
    assert_eq!(heartbeat, &Received::Heartbeat(Heartbeat { time: 77 }));
    assert_eq!(input, &Received::Input(b"input".to_vec()));
    assert_eq!(first.sections, [(9, b"abcdef".to_vec()), (2, Vec::new())]);
    assert_eq!((first.id(), second.id()), (id(1, 5), id(2, 6)));
    assert_eq!((seal.chunks, seal.bytes), (3, 6));
    seal.check(&first.ack()).unwrap();
    seal.check(&second.ack()).unwrap_err();
}

#[test]
fn small_epochs_leave_in_one_piece_and_large_ones_as_they_come() {
    let (mut frames, mut epochs) = (recorder(), EpochWriter::new(Compression::None));
    epochs.begin(&mut frames, id(1, 1)).unwrap();
    epochs.chunk(&mut frames, 1, &[&[1; 4096]]).unwrap();
    assert!(frames.get_ref().is_empty());
    epochs.chunk(&mut frames, 1, &[&[1; 100_000]]).unwrap();
    assert!(frames.get_ref().len() > 104_096);
    epochs.commit(&mut frames).unwrap();
    let (received, _) = replay(frames.get_ref(), &mut EpochReader::new(BOUND));
    let [Received::Epoch(epoch)] = &received[..] else { panic!("{received:?}") };
    assert_eq!(epoch.sections, [(1, vec![1; 104_096])]);
}

#[test]
fn an_aborted_epoch_is_forgotten_and_its_number_used_again() {
    let (mut frames, mut epochs) = (recorder(), EpochWriter::new(Compression::None));
    epochs.begin(&mut frames, id(1, 5)).unwrap();
    epochs.chunk(&mut frames, 1, &[b"stale"]).unwrap();
    epochs.abort(&mut frames).unwrap();
    send(&mut frames, &mut epochs, id(1, 5), &[(1, b"good")]);
    let (received, _) = replay(frames.get_ref(), &mut EpochReader::after(id(1, 4), BOUND));
    let [Received::Aborted(aborted), Received::Epoch(epoch)] = &received[..] else { panic!("{received:?}") };
    assert_eq!((*aborted, &epoch.sections[0].1[..]), (id(1, 5), &b"good"[..]));
}

#[test]
fn the_sender_refuses_what_the_receiver_would() {
    let (mut frames, mut epochs) = (recorder(), EpochWriter::new(Compression::None));
    assert!(matches!(epochs.chunk(&mut frames, 1, &[]), Err(EpochSendError::NotBegun)));
    assert!(matches!(epochs.commit(&mut frames), Err(EpochSendError::NotBegun)));
    assert!(matches!(epochs.abort(&mut frames), Err(EpochSendError::NotBegun)));
    send(&mut frames, &mut epochs, id(2, 5), &[]);
    for next in [id(2, 5), id(2, 7), id(1, 6), id(2, 4)] {
        assert!(matches!(epochs.begin(&mut frames, next), Err(EpochSendError::NotNext { .. })), "{next}");
    }
    epochs.begin(&mut frames, id(2, 6)).unwrap();
    assert!(matches!(epochs.begin(&mut frames, id(2, 6)), Err(EpochSendError::AlreadyBegun { .. })));
    epochs.commit(&mut frames).unwrap();
    let (received, error) = replay(frames.get_ref(), &mut EpochReader::new(BOUND));
    assert_eq!(received.len(), 2);
    assert!(is_clean_end(&error), "what was refused was not sent: {error}");
    let mut later = EpochWriter::after(id(2, 6), Compression::None);
    assert!(matches!(later.begin(&mut frames, id(2, 6)), Err(EpochSendError::NotNext { .. })));
    later.begin(&mut frames, id(2, 7)).unwrap();
}

#[test]
fn epochs_that_do_not_follow_are_refused() {
    for next in [id(2, 5), id(2, 7), id(1, 6), id(2, 4), id(3, 1)] {
        let mut epochs = EpochReader::after(id(2, 5), BOUND);
        assert_error!(first_error(&mut epochs, frames_of(next, &[])), EpochError::NotNext { .. });
    }
}

#[test]
fn frames_out_of_place_are_refused() {
    let one = || frames_of(id(1, 1), &[(1, b"x")]);
    let wrong = |frames: Vec<Frame>| first_error(&mut EpochReader::new(BOUND), frames);
    let skip = |count| one().into_iter().skip(count).collect();
    assert_error!(wrong(skip(1)), EpochError::NotBegun { kind: Kind::EPOCH_CHUNK });
    assert_error!(wrong(skip(2)), EpochError::NotBegun { kind: Kind::EPOCH_COMMIT });
    let begun_twice = one().into_iter().take(2).chain(frames_of(id(1, 2), &[]));
    assert_error!(wrong(begun_twice.collect()), EpochError::AlreadyBegun { .. });
    let other_end = one().into_iter().take(2).chain(frames_of(id(1, 2), &[]).into_iter().skip(1));
    assert_error!(wrong(other_end.collect()), EpochError::WrongEnd { .. });
}

#[test]
fn a_chunk_lost_repeated_swapped_or_changed_is_noticed_at_the_commit() {
    let sections: [(u8, &[u8]); 3] = [(1, b"one"), (2, b"two"), (1, b"six")];
    let spoilt = |spoil: &dyn Fn(&mut Vec<Frame>)| {
        let mut frames = frames_of(id(1, 1), &sections);
        spoil(&mut frames);
        first_error(&mut EpochReader::new(BOUND), frames)
    };
    assert_error!(spoilt(&|frames| drop(frames.remove(1))), EpochError::Differs { .. });
    assert_error!(
        spoilt(&|frames| {
            let again = Frame { kind: frames[1].kind, payload: frames[1].payload.clone() };
            frames.insert(1, again);
        }),
        EpochError::Differs { .. }
    );
    for other in [2, 3] {
        assert_error!(spoilt(&|frames| frames.swap(1, other)), EpochError::Differs { .. });
    }
    assert_error!(spoilt(&|frames| frames[1].payload[0] ^= 1), EpochError::Differs { .. });
    // The section's number, in the trailer.
    assert_error!(spoilt(&|frames| frames[1].payload[3 + 4] ^= 2), EpochError::Differs { .. });
    // Counts and hash in the commit, behind its numbers.
    for at in 16..48 {
        assert_error!(spoilt(&|frames| frames[4].payload[at] ^= 1), EpochError::Differs { .. });
    }
}

#[test]
fn malformed_frames_are_refused() {
    for kind in [Kind::EPOCH_BEGIN, Kind::EPOCH_COMMIT, Kind::EPOCH_ABORT, Kind::ACK, Kind::HEARTBEAT] {
        for length in [0, 7, 9, 15, 17, 31, 33, 47, 49] {
            let frame = Frame { kind, payload: vec![0; length] };
            assert_error!(first_error(&mut EpochReader::new(BOUND), [frame]), EpochError::Malformed { .. });
        }
    }
    for payload in [vec![], vec![0; 7], vec![1, 0, 0, 0, 0, 0, 0, 0], vec![0, 0, 0, 0, 0, 9, 0, 0]] {
        let mut frames = frames_of(id(1, 1), &[(1, b"x")]);
        frames[1].payload = payload;
        assert_error!(first_error(&mut EpochReader::new(BOUND), frames), EpochError::Malformed { .. });
    }
}

fn held(epochs: &EpochReader) -> usize {
    epochs.open.iter().flat_map(|open| &open.sections).map(|(_, bytes)| bytes.len()).sum()
}

#[test]
fn the_memory_bound_holds() {
    let fits = vec![1; BOUND];
    for compression in [Compression::None, Compression::Lz4] {
        let (mut frames, mut writer) = (recorder(), EpochWriter::new(compression));
        send(&mut frames, &mut writer, id(1, 1), &[(1, &fits)]);
        send(&mut frames, &mut writer, id(1, 2), &[(1, &fits), (2, b"x")]);
        let recording = frames.into_inner();
        let mut frames = reader(&recording);
        let mut epochs = EpochReader::new(BOUND);
        let mut delivered = Vec::new();
        let error = loop {
            match epochs.accept(frames.next().unwrap()) {
                Ok(received) => delivered.extend(received),
                Err(error) => break error,
            }
            assert!(held(&epochs) <= BOUND);
        };
        assert_error!(error, EpochError::TooLarge { bound: BOUND, .. });
        assert_eq!(delivered.len(), 1);
        assert_eq!(held(&epochs), 0, "what was held is let go");
    }
}

#[test]
fn a_compressed_chunk_takes_no_memory_before_its_length_is_known_to_fit() {
    for (length, expected_malformed) in
        [(u32::MAX, true), (PAYLOAD_MAX as u32 + 1, true), (BOUND as u32 + 1, false)]
    {
        let mut frames = frames_of(id(1, 1), &[(1, b"x")]);
        frames[1].payload = Trailer { length, section: 1, encoding: Encoding::Lz4 }.to_bytes().to_vec();
        let error = first_error(&mut EpochReader::new(BOUND), frames);
        match error {
            EpochError::Malformed { .. } => assert!(expected_malformed, "{length}"),
            EpochError::TooLarge { .. } => assert!(!expected_malformed, "{length}"),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn a_compressed_chunk_must_decompress_to_its_length() {
    let mut frames = frames_of(id(1, 1), &[(1, b"x")]);
    let trailer = Trailer { length: 100, section: 1, encoding: Encoding::Lz4 }.to_bytes();
    frames[1].payload = [&b"not lz4"[..], &trailer].concat();
    assert_error!(first_error(&mut EpochReader::new(BOUND), frames), EpochError::Decompress { .. });
}

#[test]
fn compression_shortens_the_stream_and_nothing_else() {
    let sections: [(u8, &[u8]); 2] = [(1, &[7; 500_000]), (2, b"short")];
    let [plain, compressed] = [Compression::None, Compression::Lz4].map(|compression| {
        let mut frames = recorder();
        let seal = send(&mut frames, &mut EpochWriter::new(compression), id(1, 1), &sections);
        let recording = frames.into_inner();
        let (mut received, _) = replay(&recording, &mut EpochReader::new(BOUND));
        (seal, recording.len(), received.remove(0))
    });
    assert_eq!((plain.0, plain.2), (compressed.0, compressed.2));
    assert!(compressed.1 * 10 < plain.1);
}

#[test]
fn every_flipped_bit_of_a_recorded_stream_is_noticed() {
    let (mut frames, mut epochs) = (recorder(), EpochWriter::new(Compression::None));
    send(&mut frames, &mut epochs, id(1, 1), &[(1, b"first"), (2, &[0; 100])]);
    Heartbeat { time: 1 }.send(&mut frames).unwrap();
    send(&mut frames, &mut epochs, id(1, 2), &[(1, b"second")]);
    let recording = frames.into_inner();
    let (good, _) = replay(&recording, &mut EpochReader::new(BOUND));
    for bit in 0..recording.len() * 8 {
        let mut flipped = recording.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (received, error) = replay(&flipped, &mut EpochReader::new(BOUND));
        assert!(received.len() < good.len() && received == good[..received.len()], "bit {bit}");
        assert!(!is_clean_end(&error), "bit {bit}: {error}");
    }
    for length in 0..recording.len() {
        let (received, _) = replay(&recording[..length], &mut EpochReader::new(BOUND));
        assert!(received.len() < good.len() && received == good[..received.len()], "{length}");
    }
}

proptest! {
    #[test]
    fn any_frames_are_taken_or_refused_without_a_panic(
        frames in vec((0u8..12, vec(any::<u8>(), 0..60)), 0..20),
    ) {
        let mut epochs = EpochReader::new(1000);
        for (kind, payload) in frames {
            let accepted = epochs.accept(Frame { kind: Kind(kind), payload });
            prop_assert!(!matches!(accepted, Ok(Some(Received::Epoch(_)))), "a commit by chance");
            prop_assert!(held(&epochs) <= 1000);
        }
    }

    #[test]
    fn any_epoch_comes_back(
        chunks in vec((0u8..4, vec(any::<u8>(), 0..300), 1usize..2000), 0..12),
        lz4: bool,
    ) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let (mut frames, mut epochs) = (recorder(), EpochWriter::new(compression));
        let mut expected: Vec<(u8, Vec<u8>)> = Vec::new();
        epochs.begin(&mut frames, id(1, 1)).unwrap();
        for (section, word, times) in &chunks {
            let bytes = word.repeat(*times);
            let parts: Vec<&[u8]> = bytes.chunks(4096).collect();
            epochs.chunk(&mut frames, *section, &parts).unwrap();
            match expected.iter_mut().find(|(held, _)| held == section) {
                Some((_, held)) => held.extend(bytes),
                None => expected.push((*section, bytes)),
            }
        }
        let seal = epochs.commit(&mut frames).unwrap();
        let (received, _) = replay(frames.get_ref(), &mut EpochReader::new(1 << 24));
        let [Received::Epoch(epoch)] = &received[..] else { panic!("{received:?}") };
        prop_assert!(epoch.sections == expected);
        prop_assert_eq!(seal.check(&epoch.ack()), Ok(()));
    }
}
