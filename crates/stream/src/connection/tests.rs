use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::testing::{PATIENCE, authority, connected_pair, good_identity, listener};

/// More than any two socket buffers hold (tcp_wmem and tcp_rmem end at 4 and 6 MiB, or 32 on some systems).
const MORE_THAN_BUFFERS: usize = 96 * 1024 * 1024;

/// Position-dependent, so that a swapped or repeated piece shows.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed) as u8).collect()
}

fn receive_exact(reader: &mut Reader, length: usize) -> Result<Vec<u8>, ReceiveError> {
    let mut received = vec![0; length];
    let mut filled = 0;
    while filled < length {
        filled += reader.receive(&mut received[filled..])?;
    }
    Ok(received)
}

fn patient_pair() -> [(Writer, Reader); 2] {
    let (a, b) = connected_pair();
    [a, b].map(|connection| {
        let (writer, mut reader) = connection.split();
        reader.set_timeout(Some(PATIENCE)).unwrap();
        (writer, reader)
    })
}

#[test]
fn bytes_arrive_in_order_however_they_are_cut() {
    let [(mut writer, _a), (_b, mut reader)] = patient_pair();
    let data = pattern(3 * PORTION + 17, 1);
    let (head, tail) = data.split_at(PORTION + 1);
    let (tail, last) = tail.split_at(5);
    thread::scope(|scope| {
        scope.spawn(|| {
            writer.send(&[b"", head, b"", tail, last]).unwrap();
            writer.send(&[]).unwrap();
            writer.send(&[b""]).unwrap();
            writer.send(&[b"end"]).unwrap();
        });
        assert_eq!(receive_exact(&mut reader, data.len()).unwrap(), data);
        assert_eq!(receive_exact(&mut reader, 3).unwrap(), b"end");
    });
}

#[test]
fn both_directions_saturated_do_not_wait_for_each_other() {
    const ROUNDS: usize = 300;
    let [a, b] = patient_pair();
    thread::scope(|scope| {
        for (seed, (mut writer, mut reader)) in [(1, a), (2, b)] {
            let sent = pattern(200 * 1024 + seed, seed);
            let expected = pattern(200 * 1024 + 3 - seed, 3 - seed);
            scope.spawn(move || (0..ROUNDS).for_each(|_| writer.send(&[&sent]).unwrap()));
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    assert!(receive_exact(&mut reader, expected.len()).unwrap() == expected);
                }
            });
        }
    });
}

#[test]
fn a_writer_that_waits_for_its_peer_does_not_keep_the_reader_from_receiving() {
    let [(mut writer, mut reader), (mut peer_writer, mut peer_reader)] = patient_pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            let piece = vec![7; 1024 * 1024];
            (0..MORE_THAN_BUFFERS / piece.len()).for_each(|_| writer.send(&[&piece]).unwrap());
        });
        // The peer reads nothing before its own words have been received: the writer cannot have finished.
        for i in 0..1000u16 {
            peer_writer.send(&[&i.to_le_bytes()]).unwrap();
            assert_eq!(receive_exact(&mut reader, 2).unwrap(), i.to_le_bytes());
        }
        receive_exact(&mut peer_reader, MORE_THAN_BUFFERS).unwrap();
    });
}

#[test]
fn new_keys_are_agreed_on_while_both_directions_are_in_use() {
    let [a, b] = patient_pair();
    let sent = pattern(100_000, 5);
    thread::scope(|scope| {
        for (mut writer, mut reader) in [a, b] {
            let sent = &sent;
            scope.spawn(move || {
                for _ in 0..50 {
                    writer.shared.lock().unwrap().refresh_traffic_keys().unwrap();
                    writer.send(&[sent]).unwrap();
                }
            });
            scope.spawn(move || {
                (0..50).for_each(|_| assert!(receive_exact(&mut reader, sent.len()).unwrap() == *sent));
            });
        }
    });
}

#[test]
fn shutting_down_wakes_both_halves() {
    let (a, b) = connected_pair();
    let (closer, peer_closer) = (a.closer(), b.closer());
    let (mut writer, mut reader) = a.split();
    let (announce, announced) = mpsc::channel();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let announce = announce;
            loop {
                match writer.send(&[&[7; PORTION]]) {
                    Ok(()) => announce.send(()).unwrap(),
                    Err(error) => break (error, writer.send(&[b"more"]).unwrap_err()),
                }
            }
        });
        let receiver = scope.spawn(|| (reader.receive(&mut [0; 9]), reader.receive(&mut [0; 9])));
        // The writer is well under way; nobody reads, so it waits now or soon.
        announced.recv().unwrap();
        closer.shutdown();
        let (first, later) = sender.join().unwrap();
        assert!(matches!(first, SendError::ShutDown { .. }), "{first}");
        assert!(matches!(later, SendError::ShutDown { .. }), "{later}");
        let (first, later) = receiver.join().unwrap();
        assert!(matches!(first, Err(ReceiveError::ShutDown { .. })), "{first:?}");
        assert!(matches!(later, Err(ReceiveError::ShutDown { .. })), "{later:?}");
    });
    drop(peer_closer);
}

#[test]
fn a_closed_stream_is_told_from_a_cut_one() {
    let [(mut writer, _a), (_b, mut reader)] = patient_pair();
    writer.send(&[b"last words"]).unwrap();
    writer.close().unwrap();
    assert_eq!(receive_exact(&mut reader, 10).unwrap(), b"last words");
    for _ in 0..2 {
        let end = reader.receive(&mut [0; 9]).unwrap_err();
        assert!(matches!(&end, ReceiveError::Closed { peer } if &**peer == "a"), "{end}");
    }

    let [(mut writer, a), (_b, mut reader)] = patient_pair();
    writer.send(&[b"last words"]).unwrap();
    drop((writer, a));
    assert_eq!(receive_exact(&mut reader, 10).unwrap(), b"last words");
    for _ in 0..2 {
        let end = reader.receive(&mut [0; 9]).unwrap_err();
        assert!(matches!(&end, ReceiveError::Cut { peer } if &**peer == "a"), "{end}");
    }
}

#[test]
fn the_other_direction_stays_open_after_a_close() {
    let [(writer, mut reader), (mut peer_writer, mut peer_reader)] = patient_pair();
    writer.close().unwrap();
    assert!(matches!(peer_reader.receive(&mut [0; 9]), Err(ReceiveError::Closed { .. })));
    peer_writer.send(&[b"yet"]).unwrap();
    assert_eq!(receive_exact(&mut reader, 3).unwrap(), b"yet");
}

#[test]
fn receiving_goes_on_after_a_timeout() {
    let [(mut writer, _a), (_b, mut reader)] = patient_pair();
    reader.set_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(matches!(reader.receive(&mut [0; 9]), Err(ReceiveError::TimedOut { .. })));
    reader.set_deadline(Some(Instant::now() + Duration::from_millis(1))).unwrap();
    assert!(matches!(reader.receive(&mut [0; 9]), Err(ReceiveError::TimedOut { .. })));
    // A deadline that has passed is not "for ever".
    assert!(matches!(reader.receive(&mut [0; 9]), Err(ReceiveError::TimedOut { .. })));
    writer.send(&[b"yet"]).unwrap();
    reader.set_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(receive_exact(&mut reader, 3).unwrap(), b"yet");
}

#[test]
fn a_send_that_timed_out_is_the_last() {
    let [(mut writer, _a), (_b, _reader)] = patient_pair();
    writer.set_deadline(Some(Instant::now() + Duration::from_millis(50))).unwrap();
    let piece = vec![7; 1024 * 1024];
    let sends = MORE_THAN_BUFFERS / piece.len();
    let failed = (0..sends).find_map(|_| writer.send(&[&piece]).err()).unwrap();
    assert!(matches!(failed, SendError::TimedOut { .. }), "{failed}");
    writer.set_deadline(None).unwrap();
    let later = writer.send(&[b"more"]).unwrap_err();
    assert!(matches!(later, SendError::AfterFailure { .. }), "{later}");
}

#[test]
fn a_spinning_reader_receives_and_gives_up_alike() {
    let [(mut writer, a), (_b, mut reader)] = patient_pair();
    reader.set_spin(Duration::from_millis(2));
    writer.send(&[b"one"]).unwrap();
    assert_eq!(receive_exact(&mut reader, 3).unwrap(), b"one");
    reader.set_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(matches!(reader.receive(&mut [0; 9]), Err(ReceiveError::TimedOut { .. })));
    drop((writer, a));
    assert!(matches!(reader.receive(&mut [0; 9]), Err(ReceiveError::Cut { .. })));
}

/// Passes bytes on from `from` to `to`, through `change`, which may also end it.
fn relay(from: &TcpStream, to: &TcpStream, mut change: impl FnMut(&mut [u8])) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = (&*from).read(&mut buffer) {
        change(&mut buffer[..count]);
        if (&*to).write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

#[test]
fn bytes_changed_on_the_way_end_the_connection() {
    let authority = authority();
    let (a, b) = (good_identity(&authority, "a"), good_identity(&authority, "b"));
    let ((outer, outer_address), (inner, inner_address)) = (listener(), listener());
    let tamper = AtomicBool::new(false);
    thread::scope(|scope| {
        let accepted = scope.spawn(|| b.accept(inner.accept().unwrap().0, PATIENCE).unwrap());
        scope.spawn(|| {
            let (client, _) = outer.accept().unwrap();
            let server = TcpStream::connect(inner_address).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| relay(&server, &client, |_| ()));
                relay(&client, &server, |bytes| {
                    if tamper.load(Ordering::Acquire)
                        && let Some(last) = bytes.last_mut()
                    {
                        *last ^= 1;
                    }
                });
            });
        });
        let (mut writer, _reader) = a.connect(outer_address, "b", PATIENCE).unwrap().split();
        let (mut peer_writer, mut peer_reader) = accepted.join().unwrap().split();
        writer.send(&[b"one"]).unwrap();
        assert_eq!(receive_exact(&mut peer_reader, 3).unwrap(), b"one");
        tamper.store(true, Ordering::Release);
        writer.send(&[b"two"]).unwrap();
        let refused = peer_reader.receive(&mut [0; 9]).unwrap_err();
        assert!(matches!(refused, ReceiveError::Tls { .. }), "{refused}");
        assert!(matches!(peer_writer.send(&[b"x"]), Err(SendError::ShutDown { .. })));
    });
}
