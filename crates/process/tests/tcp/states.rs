//! Every state of a connection, with data in both queues, through a death of its host.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use outlive_process::object::tcp::{
    Builder, Capturer, Connecting, Family, Injector, PeerAck, Stage, State, TcpSocket, peer_ack, probe,
};
use outlive_process::sys::tcp_repair as sys;

use super::talk::*;
use super::world::*;

/// What became of the frames that were out when the host died.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Frames {
    /// The peer has them; their acknowledgements were never seen.
    Received,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Probed,
    Unknown,
}

const ESTABLISHED: u8 = 1;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;

/// Builds the socket on the new host, which must stay silent until it goes live.
pub fn revive(world: &World, checkpoint: &TcpSocket, peer: PeerAck) -> TcpStream {
    let bytes = postcard::to_stdvec(checkpoint).unwrap();
    let checkpoint: TcpSocket = postcard::from_bytes(&bytes).unwrap();
    let fd = world.a.namespace.enter(|| {
        let restored = Builder::new().restore(&checkpoint, peer).unwrap();
        assert_eq!(world.count(Side::A), 0, "a frame left before going live");
        let mut injector = Injector::new();
        for segment in &restored.inject {
            injector.inject(segment).unwrap();
        }
        // Answers to these are acknowledgements of what was acknowledged before.
        world.take(Side::A);
        for segment in restored.go_live(&checkpoint).unwrap() {
            injector.inject(&segment).unwrap();
        }
        restored.fd
    });
    TcpStream::from(fd)
}

/// Asks B, in the name of the dead.
pub fn ask(world: &World, checkpoint: &TcpSocket) -> PeerAck {
    let connection = connection(checkpoint);
    let before = world.take(Side::B);
    world.inject(Side::A, &probe(checkpoint, connection).unwrap().packet);
    let mut answer = None;
    until("the answer to the probe", || {
        answer = world
            .take(Side::B)
            .iter()
            .filter_map(|packet| peer_ack(checkpoint, connection, packet))
            .next_back();
        answer.is_some()
    });
    // What came before still has to come.
    for packet in before {
        world.hold(Side::B, packet);
    }
    answer.unwrap()
}

/// Payload in these packets; what is there twice counts once.
fn bytes_of(packets: &[Vec<u8>]) -> usize {
    let mut seen = std::collections::BTreeMap::new();
    for packet in packets {
        let packet = etherparse::SlicedPacket::from_ip(packet).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { continue };
        seen.insert(tcp.sequence_number(), tcp.payload().len());
    }
    seen.values().sum()
}

fn reach(world: &World, pair: &mut Pair, stage: Stage) {
    pair.exchange();
    pair.to_a.write(&pair.b, 5000);
    until("data in the receive queue", || sys::unread(&pair.a).unwrap() == 5000);
    if stage == Stage::FinWait2 {
        pair.to_b.write(&pair.a, 4000);
    } else {
        world.set(Side::A, Mode::Hold);
        assert_eq!(pair.to_b.write(&pair.a, 4000), 4000);
    }
    if matches!(stage, Stage::CloseWait | Stage::LastAck) {
        pair.b.shutdown(Shutdown::Write).unwrap();
        until("the peer's FIN", || state(&pair.a) == 8);
    }
    if stage.own_fin() {
        pair.a.shutdown(Shutdown::Write).unwrap();
    }
    if stage == Stage::Closing {
        pair.b.shutdown(Shutdown::Write).unwrap();
    }
    let number = match stage {
        Stage::Established => ESTABLISHED,
        Stage::FinWait1 => 4,
        Stage::FinWait2 => FIN_WAIT2,
        Stage::CloseWait => 8,
        Stage::Closing => 11,
        Stage::LastAck => 9,
    };
    until("the state", || state(&pair.a) == number);
}

fn survives(stage: Stage, v6: bool, frames: Frames, asked: Asked) {
    let mut world = World::new();
    let mut pair = connected(&world, v6);
    reach(&world, &mut pair, stage);

    // The end of the epoch: stopped, input closed.
    world.set(Side::B, Mode::Hold);
    let checkpoint = capture(&world.a, &pair.a);
    let captured = connection(&checkpoint).clone();
    assert_eq!(captured.stage, stage);
    assert_eq!(captured.receive, pattern(2, 2000, 5000));
    if stage != Stage::FinWait2 {
        assert_eq!(captured.send, pattern(1, 3000, 4000));
    }
    let released = world.take(Side::A);
    if frames == Frames::Received {
        for packet in released {
            world.inject(Side::A, &packet);
        }
        let fin = usize::from(stage.own_fin() && stage != Stage::FinWait2);
        until("what was released", || {
            sys::unread(&pair.b).unwrap() as usize
                == if stage == Stage::FinWait2 { 4000 } else { captured.send.len() }
                && (fin == 0 || sys::conditions(&pair.b, 0).unwrap() & libc::POLLRDHUP != 0)
        });
    }

    world.replace_a();
    let peer = if asked == Asked::Probed { ask(&world, &checkpoint) } else { PeerAck::Unknown };
    let received = frames == Frames::Received || stage == Stage::FinWait2;
    let a = revive(&world, &checkpoint, peer);

    let fin_known = asked == Asked::Probed && received;
    let expected = match stage {
        Stage::FinWait1 if fin_known => FIN_WAIT2,
        Stage::Closing | Stage::LastAck if fin_known => CLOSE,
        Stage::Established => 1,
        Stage::FinWait1 => 4,
        Stage::FinWait2 => 5,
        Stage::CloseWait => 8,
        Stage::Closing => 11,
        Stage::LastAck => 9,
    };
    assert_eq!(state(&a), expected);
    // All the peer lacks is out at once, and nothing else: no timer had to run out for it. (Unless this test was not run for
    // so long, a second, that one did.)
    let packets = world.take(Side::A);
    let out =
        if asked == Asked::Probed && frames == Frames::Lost && stage != Stage::FinWait2 { 4000 } else { 0 };
    if retransmissions(&a) == 0 {
        assert_eq!(bytes_of(&packets), out);
    }
    for packet in packets {
        world.inject(Side::A, &packet);
    }

    let restored = capture_if_connected(&world, &a);
    if let Some(restored) = restored {
        assert_eq!(restored.options, checkpoint.options);
        assert_eq!(restored.buffers, checkpoint.buffers);
        let now = connection(&restored);
        assert_eq!(now.receive, captured.receive);
        assert_eq!(now.rcv_nxt, captured.rcv_nxt);
        assert_eq!(now.max_segment, captured.max_segment);
        assert_eq!(now.window_scales, captured.window_scales);
        assert_eq!((now.sack, now.read_shut), (captured.sack, captured.read_shut));
        assert_eq!(now.timestamp.is_some(), captured.timestamp.is_some());
    }

    world.release(Side::A);
    world.release(Side::B);
    pair.a = a;
    if !stage.own_fin() {
        pair.to_b.write(&pair.a, 3000);
        pair.a.shutdown(Shutdown::Write).unwrap();
    }
    if !stage.peer_fin() {
        pair.to_a.write(&pair.b, 3000);
        pair.b.shutdown(Shutdown::Write).unwrap();
    }
    pair.to_a.read_to_end(&pair.a);
    pair.to_b.read_to_end(&pair.b);
    until("the end of both", || state(&pair.a) == CLOSE && state(&pair.b) == CLOSE);
}

fn capture_if_connected(world: &World, a: &TcpStream) -> Option<TcpSocket> {
    let socket = capture(&world.a, a);
    matches!(socket.state, State::Connected(_)).then_some(socket)
}

macro_rules! survives {
    ($($name:ident: $stage:ident;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn v4_frames_received() {
                survives(Stage::$stage, false, Frames::Received, Asked::Probed);
            }

            #[test]
            fn v4_frames_lost() {
                survives(Stage::$stage, false, Frames::Lost, Asked::Probed);
            }

            #[test]
            fn v6_frames_received() {
                survives(Stage::$stage, true, Frames::Received, Asked::Probed);
            }

            #[test]
            fn v6_frames_lost() {
                survives(Stage::$stage, true, Frames::Lost, Asked::Probed);
            }

            #[test]
            fn nobody_asked_frames_received() {
                survives(Stage::$stage, false, Frames::Received, Asked::Unknown);
            }

            #[test]
            fn nobody_asked_frames_lost() {
                survives(Stage::$stage, true, Frames::Lost, Asked::Unknown);
            }
        })*
    };
}

survives! {
    established: Established;
    fin_wait1: FinWait1;
    fin_wait2: FinWait2;
    close_wait: CloseWait;
    closing: Closing;
    last_ack: LastAck;
}

/// A listener of both families holds IPv4 connections in IPv6 sockets.
#[test]
fn mapped_addresses() {
    let mut world = World::new();
    let listener = world.a.namespace.enter(|| TcpListener::bind("[::]:0").unwrap());
    let target = address(false, Side::A, listener.local_addr().unwrap().port());
    let b = world.b.namespace.enter(|| TcpStream::connect(target).unwrap());
    let (a, _) = listener.accept().unwrap();
    let mut pair = Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) };
    reach(&world, &mut pair, Stage::CloseWait);
    let checkpoint = capture(&world.a, &pair.a);
    assert_eq!(checkpoint.options.family(), Family::V6);
    assert!(checkpoint.local.is_ipv6());
    world.replace_a();
    let peer = ask(&world, &checkpoint);
    pair.a = revive(&world, &checkpoint, peer);
    world.release(Side::A);
    world.release(Side::B);
    pair.a.shutdown(Shutdown::Write).unwrap();
    pair.to_a.read_to_end(&pair.a);
    pair.to_b.read_to_end(&pair.b);
}

/// Window scaling, timestamps and selective acknowledgement: each agreed on or not.
#[test]
fn without_tcp_options() {
    for (scaling, timestamps, sack) in [("0", "1", "1"), ("1", "0", "1"), ("1", "1", "0"), ("0", "0", "0")] {
        let mut world = World::new();
        world.b.namespace.sysctl("net.ipv4.tcp_window_scaling", scaling);
        world.b.namespace.sysctl("net.ipv4.tcp_timestamps", timestamps);
        world.b.namespace.sysctl("net.ipv4.tcp_sack", sack);
        let mut pair = connected(&world, false);
        reach(&world, &mut pair, Stage::Established);
        let checkpoint = capture(&world.a, &pair.a);
        let captured = connection(&checkpoint).clone();
        assert_eq!(captured.window_scales.is_some(), scaling == "1");
        assert_eq!(captured.timestamp.is_some(), timestamps == "1");
        assert_eq!(captured.sack, sack == "1");
        world.replace_a();
        let peer = ask(&world, &checkpoint);
        pair.a = revive(&world, &checkpoint, peer);
        let now = capture(&world.a, &pair.a);
        assert_eq!(connection(&now).window_scales, captured.window_scales);
        assert_eq!(connection(&now).sack, captured.sack);
        assert_eq!(connection(&now).timestamp.is_some(), captured.timestamp.is_some());
        world.release(Side::A);
        world.release(Side::B);
        pair.finish();
    }
}

/// The peer takes nothing more: the rest waits in our queue, and flows when it reads.
#[test]
fn peer_with_a_full_window() {
    let mut world = World::new();
    let mut pair = connected(&world, false);
    until("a full window", || {
        pair.to_b.write(&pair.a, 1 << 16);
        let info = sys::info(&pair.a).unwrap();
        info.notsent_bytes > 0 && info.unacked == 0 && info.snd_wnd < 1448
    });
    world.set(Side::B, Mode::Hold);
    let checkpoint = capture(&world.a, &pair.a);
    assert!(connection(&checkpoint).send.len() > 1 << 16);
    world.replace_a();
    let peer = ask(&world, &checkpoint);
    pair.a = revive(&world, &checkpoint, peer);
    world.release(Side::A);
    world.release(Side::B);
    pair.to_b.read_all(&pair.b);
    pair.finish();
}

/// Our own window is full: the peer goes on when the program, restored, reads.
#[test]
fn own_window_full() {
    let mut world = World::new();
    let mut pair = connected(&world, true);
    until("a full window", || {
        pair.to_a.write(&pair.b, 1 << 16);
        let info = sys::info(&pair.b).unwrap();
        info.notsent_bytes > 0 && info.unacked == 0 && info.snd_wnd < 1448
    });
    world.set(Side::B, Mode::Hold);
    let checkpoint = capture(&world.a, &pair.a);
    assert!(connection(&checkpoint).receive.len() > 1 << 14);
    world.replace_a();
    let peer = ask(&world, &checkpoint);
    pair.a = revive(&world, &checkpoint, peer);
    assert_eq!(connection(&capture(&world.a, &pair.a)).receive, connection(&checkpoint).receive);
    world.release(Side::A);
    world.release(Side::B);
    pair.to_a.read_all(&pair.a);
    pair.finish();
}

/// A connection with both ends on the host that dies. What was on the loopback is lost.
#[test]
fn both_ends_on_the_host() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let mut world = World::new();
        let (a, b) = world.a.namespace.enter(|| {
            let listener = TcpListener::bind(host).unwrap();
            let b = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, b)
        });
        let mut pair = Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) };
        pair.exchange();
        pair.to_b.write(&pair.a, 100);
        until("delivery", || {
            sys::unread(&pair.b).unwrap() == 100 && sys::unacknowledged(&pair.a).unwrap() == 0
        });
        world.a.loopback(false);
        pair.to_b.write(&pair.a, 5000);
        pair.to_a.write(&pair.b, 7000);
        pair.b.shutdown(Shutdown::Write).unwrap();
        let (a, b) = (capture(&world.a, &pair.a), capture(&world.a, &pair.b));
        assert_eq!(connection(&a).send.len(), 5000);
        assert_eq!(connection(&b).stage, Stage::FinWait1);
        world.replace_a();
        let (a, b) = world.a.namespace.enter(|| {
            let mut builder = Builder::new();
            let one = builder.restore(&a, PeerAck::of_other_end(connection(&b))).unwrap();
            let other = builder.restore(&b, PeerAck::of_other_end(connection(&a))).unwrap();
            assert!(one.inject.is_empty() && other.inject.is_empty());
            assert!(one.go_live(&a).unwrap().is_empty());
            assert!(other.go_live(&b).unwrap().is_empty());
            (TcpStream::from(one.fd), TcpStream::from(other.fd))
        });
        assert_eq!(retransmissions(&a) + retransmissions(&b), 0);
        (pair.a, pair.b) = (a, b);
        pair.to_a.read_to_end(&pair.a);
        pair.to_b.write(&pair.a, 3000);
        pair.to_b.read_all(&pair.b);
    }
}

/// Half-closed over the loopback: no device would take the peer's FIN from "outside".
#[test]
fn both_ends_on_the_host_half_closed() {
    for host in ["127.0.0.1", "::1", A4, A6] {
        let mut world = World::new();
        let (a, b) = world.a.namespace.enter(|| {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let b = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, b)
        });
        let mut pair = Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) };
        pair.exchange();
        pair.to_b.write(&pair.a, 100);
        pair.a.shutdown(Shutdown::Write).unwrap();
        until("half closed", || state(&pair.a) == 5 && state(&pair.b) == 8);
        let (a, b) = (capture(&world.a, &pair.a), capture(&world.a, &pair.b));
        world.replace_a();
        let (a, b) = world.a.namespace.enter(|| {
            let mut builder = Builder::new();
            let one = builder.restore(&a, PeerAck::of_other_end(connection(&b))).unwrap();
            let other = builder.restore(&b, PeerAck::of_other_end(connection(&a))).unwrap();
            let mut injector = Injector::new();
            for segment in one.inject.iter().chain(&other.inject) {
                injector.inject(segment).unwrap();
            }
            assert!(one.go_live(&a).unwrap().is_empty());
            assert!(other.go_live(&b).unwrap().is_empty());
            (TcpStream::from(one.fd), TcpStream::from(other.fd))
        });
        assert_eq!(world.count(Side::A), 0);
        assert_eq!((state(&a), state(&b)), (5, 8));
        (pair.a, pair.b) = (a, b);
        pair.to_b.read_to_end(&pair.b);
        pair.to_a.write(&pair.b, 3000);
        pair.b.shutdown(Shutdown::Write).unwrap();
        pair.to_a.read_to_end(&pair.a);
    }
}

fn connect_silently(world: &World, target: std::net::SocketAddr) -> TcpStream {
    world.a.namespace.enter(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let result = connect(fd.as_raw_fd(), &SockaddrStorage::from(target));
        assert_eq!(result, Err(nix::Error::EINPROGRESS));
        TcpStream::from(fd)
    })
}

fn syn_timestamp(packet: &[u8]) -> Option<u32> {
    let packet = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
    assert!(tcp.syn());
    tcp.options_iterator().find_map(|option| match option {
        Ok(etherparse::TcpOptionElement::Timestamp(value, _)) => Some(value),
        _ => None,
    })
}

/// SYN_SENT: the SYN-ACK that was on its way to the dead host completes the handshake of the new one.
#[test]
fn syn_sent() {
    for timestamps in ["1", "0"] {
        let mut world = World::new();
        world.b.namespace.sysctl("net.ipv4.tcp_timestamps", timestamps);
        let listener = world.b.namespace.enter(|| TcpListener::bind(address(false, Side::B, 0)).unwrap());
        world.set(Side::A, Mode::Hold);
        world.set(Side::B, Mode::Hold);
        let a = connect_silently(&world, listener.local_addr().unwrap());
        let mut checkpoint = capture(&world.a, &a);
        let syn = world.take(Side::A).remove(0);
        world.inject(Side::A, &syn);
        let State::Connecting(connecting) = &checkpoint.state else { panic!("{:?}", checkpoint.state) };
        assert_eq!(connecting.remote, listener.local_addr().unwrap());
        // Estimated not later than it was, by not much more than the margin.
        let exact = syn_timestamp(&syn).unwrap();
        let early = exact.wrapping_sub(connecting.syn_timestamp.unwrap());
        assert!(early <= 40, "the SYN's timestamp is estimated {early} ms too early");
        checkpoint.state = State::Connecting(Connecting { syn_timestamp: Some(exact), ..connecting.clone() });
        let before = local(&a);
        let mut answers = Vec::new();
        until("the SYN-ACK", || {
            answers.extend(world.take(Side::B));
            !answers.is_empty()
        });

        world.replace_a();
        let a = revive(&world, &checkpoint, PeerAck::Unknown);
        assert_eq!(local(&a), before);
        assert_eq!(state(&a), 2);
        let again = world.take(Side::A);
        let seq = |packet: &[u8]| packet[24..28].to_vec();
        assert_eq!(seq(&again[0]), seq(&syn));
        world.inject(Side::B, &answers[0]);
        until("the end of the handshake", || state(&a) == ESTABLISHED);
        world.release(Side::A);
        world.release(Side::B);
        let (b, _) = listener.accept().unwrap();
        Pair { a, b, to_b: Flow::new(1), to_a: Flow::new(2) }.finish();
    }
}

/// A reply that fits one segment does not wait for a timer when the peer cannot be asked, whether it has it or not.
#[test]
fn one_segment_that_a_silent_peer_may_lack_goes_out_at_once() {
    for frames in [Frames::Lost, Frames::Received] {
        let mut world = World::new();
        let mut pair = connected(&world, false);
        pair.exchange();
        world.set(Side::A, Mode::Hold);
        world.set(Side::B, Mode::Hold);
        pair.to_b.write(&pair.a, 700);
        until("the segment", || world.count(Side::A) > 0);
        let checkpoint = capture(&world.a, &pair.a);
        let released = world.take(Side::A);
        if frames == Frames::Received {
            released.iter().for_each(|packet| world.inject(Side::A, packet));
            until("what was released", || sys::unread(&pair.b).unwrap() == 700);
        }
        world.replace_a();
        pair.a = revive(&world, &checkpoint, PeerAck::Unknown);
        let packets = world.take(Side::A);
        // Unless this test was not run for a second.
        if retransmissions(&pair.a) == 0 {
            assert_eq!(bytes_of(&packets), 700, "{frames:?}");
        }
        packets.iter().for_each(|packet| world.inject(Side::A, packet));
        world.release(Side::A);
        world.release(Side::B);
        pair.finish();
    }
}

/// An acknowledgement of what was never written: the peer has seen a later state than the checkpoint.
#[test]
fn peer_ahead_of_the_checkpoint_is_an_error() {
    let world = World::new();
    let mut pair = connected(&world, false);
    let checkpoint = capture(&world.a, &pair.a);
    pair.exchange();
    let ahead = ack_of(&world.b, &pair.b);
    let result = world.a.namespace.enter(|| Builder::new().restore(&checkpoint, ahead).map(drop));
    assert!(matches!(result, Err(outlive_process::object::tcp::Error::PeerAhead { .. })), "{result:?}");
}

/// Going live without the peer's FIN having been injected must not make another state of it.
#[test]
fn going_live_too_early_is_an_error() {
    let mut world = World::new();
    let mut pair = connected(&world, false);
    reach(&world, &mut pair, Stage::CloseWait);
    let checkpoint = capture(&world.a, &pair.a);
    world.replace_a();
    let peer = ask(&world, &checkpoint);
    world.a.namespace.enter(|| {
        let restored = Builder::new().restore(&checkpoint, peer).unwrap();
        let result = restored.go_live(&checkpoint);
        assert!(matches!(result, Err(outlive_process::object::tcp::Error::NotInjected { .. })), "{result:?}");
        world.inject(Side::B, &restored.inject[0].packet);
        restored.go_live(&checkpoint).unwrap();
        assert_eq!(state(&restored.fd), 8);
    });
}

/// What the kernel marks as sent while it is captured is handed out instead.
#[test]
fn unsent_data_stays_unsent() {
    let world = World::new();
    let mut pair = connected(&world, false);
    until("a full window", || {
        pair.to_b.write(&pair.a, 1 << 16);
        let info = sys::info(&pair.a).unwrap();
        info.notsent_bytes > 0 && info.unacked == 0 && info.snd_wnd < 1448
    });
    let before = sys::unsent(&pair.a).unwrap();
    let captured = world.a.namespace.enter(|| Capturer::new().capture(pair.a.as_fd(), None).unwrap());
    assert!(captured.unframed.is_empty());
    assert_eq!(sys::unsent(&pair.a).unwrap(), before);
}
