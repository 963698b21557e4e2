//! The plug between real TCP stacks: what is held, what is let go, and what never leaves.

mod support;

use std::io::Read;
use std::io::Write;
use std::net::UdpSocket;
use std::time::Duration;

use outlive_net::{Event, Moment, PlugConfig, PlugError, PumpConfig};
use support::*;

#[test]
fn r1_output_rule_a_client_hears_nothing_before_the_commit_and_everything_after() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start_quiet(&host, plugged());
    let (listener, address) = listen(&workload.namespace, workload_ip(false));
    let mut ear = Ear::open(&client);
    let connecting = connect(&client, address);

    // The client's ARP question is answered by the kernel alone, and an acknowledgement lets the answer go.
    workload.wait_for(Event::KernelWaiting);
    assert_eq!(ear.heard(), 0);
    workload.pump.heartbeat_ack(Moment::now()).unwrap();

    // Its SYN is answered by a SYN-ACK, which says that the workload listens: that waits for a commit.
    workload.wait_for(Event::PayloadWaiting);
    assert_eq!(ear.heard(), 1);
    workload.pump.heartbeat_ack(Moment::now()).unwrap();
    workload.cut(1);
    assert_eq!(ear.heard(), 1);
    assert!(connecting.try_recv().is_err());
    workload.pump.acknowledged(1, Moment::now()).unwrap();
    let mut client_end = connecting.recv_timeout(PATIENCE).unwrap();
    let (mut server_end, _) = listener.accept().unwrap();

    // An answer to a request is held likewise, in its own epoch.
    client_end.write_all(b"question").unwrap();
    let mut question = [0; 8];
    server_end.read_exact(&mut question).unwrap();
    server_end.write_all(b"answer").unwrap();
    workload.wait_for(Event::PayloadWaiting);
    workload.pump.acknowledged(1, Moment::now()).unwrap();
    client_end.set_nonblocking(true).unwrap();
    assert!(client_end.read(&mut [0; 8]).is_err(), "epoch 1 ended before the answer");
    client_end.set_nonblocking(false).unwrap();
    workload.cut(2);
    workload.pump.acknowledged(2, Moment::now()).unwrap();
    let mut answer = [0; 6];
    client_end.read_exact(&mut answer).unwrap();
    assert_eq!((&question, &answer), (b"question", b"answer"));
}

#[test]
fn r1_output_rule_streams_are_whole_in_both_directions_and_families() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start(&host, plugged());
    let engine = Engine::start(workload.pump.clone(), workload.events, 1);
    let data = pattern(8 << 20);
    for v6 in [false, true] {
        let (listener, address) = listen(&workload.namespace, workload_ip(v6));
        let connecting = connect(&client, address);
        let (server_end, _) = listener.accept().unwrap();
        let client_end = connecting.recv_timeout(PATIENCE).unwrap();
        server_end.set_read_timeout(Some(PATIENCE)).unwrap();
        transfer(&client_end, &server_end, &data);
        transfer(&server_end, &client_end, &data);
    }
    assert!(engine.stop() > 3, "both took epochs");
    assert_eq!(workload.pump.stats().refused_frames, 0);
}

#[test]
fn r2_one_voice_a_commit_read_too_late_lets_nothing_go() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start_with(&host, PumpConfig::new(quiet_network(), plugged()));
    let (_listener, address) = listen(&workload.namespace, workload_ip(false));
    let connecting = connect(&client, address);
    let asked = loop {
        let asked = Moment::now();
        workload.pump.heartbeat_ack(asked).unwrap();
        if workload.events.recv_timeout(Duration::from_millis(1)) == Ok(Event::PayloadWaiting) {
            break asked;
        }
    };
    workload.cut(1);

    // The host stalls, and wakes to an acknowledgement of something that it asked long ago.
    std::thread::sleep(PlugConfig::default().freshness + Duration::from_millis(1));
    let sent = workload.pump.stats().sent_frames;
    workload.pump.acknowledged(1, asked).unwrap();
    assert_eq!(workload.pump.stats().sent_frames, sent);
    assert!(workload.pump.stats().stale > 0);
    assert!(connecting.try_recv().is_err());
    // The next heartbeat that is answered in time lets it go.
    let deadline = Moment::now() + PATIENCE;
    while connecting.recv_timeout(Duration::from_millis(1)).is_err() {
        assert!(Moment::now() < deadline);
        workload.pump.heartbeat_ack(Moment::now()).unwrap();
    }
}

#[test]
fn r2_one_voice_silence_is_for_good() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start_quiet(&host, exposed());
    let (listener, address) = listen(&workload.namespace, workload_ip(false));
    let mut client_end = connect(&client, address).recv_timeout(PATIENCE).unwrap();
    let (mut server_end, _) = listener.accept().unwrap();
    workload.pump.silence();
    let mut ear = Ear::open(&client);
    let sent = workload.pump.stats().sent_frames;
    server_end.write_all(b"after").unwrap();
    workload.pump.announce();
    workload.pump.send_outer(&[0; 64]);
    assert_eq!(workload.pump.expose(99), Err(PlugError::Silenced));
    assert_eq!(workload.pump.cut(1), Err(PlugError::Silenced));
    client_end.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client_end.read(&mut [0; 8]).is_err());
    assert_eq!(workload.pump.stats().sent_frames, sent);
    assert_eq!(ear.heard(), 0);
}

#[test]
fn exposed_and_plugged_again_a_stream_goes_on() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start(&host, exposed());
    let (listener, address) = listen(&workload.namespace, workload_ip(true));
    let client_end = connect(&client, address).recv_timeout(PATIENCE).unwrap();
    let (server_end, _) = listener.accept().unwrap();
    let data = pattern(1 << 20);
    transfer(&server_end, &client_end, &data);
    assert_eq!(workload.pump.stats().held_frames, 0);

    workload.pump.plug().unwrap();
    let engine = Engine::start(workload.pump.clone(), workload.events, 1);
    transfer(&server_end, &client_end, &data);
    transfer(&client_end, &server_end, &data);
    engine.stop();

    // The backup dies with output held; the next generation lets it go.
    (&server_end).write_all(&data).unwrap();
    assert!(workload.pump.expose(0).is_err());
    workload.pump.expose(2).unwrap();
    let mut received = vec![0; data.len()];
    (&client_end).read_exact(&mut received).unwrap();
    assert!(received == data);
}

#[test]
fn input_is_closed_and_opened_again_without_loss() {
    let host = host();
    let client = client(&host);
    let workload = Workload::start(&host, exposed());
    let (listener, address) = listen(&workload.namespace, workload_ip(false));
    let mut client_end = connect(&client, address).recv_timeout(PATIENCE).unwrap();
    let (mut server_end, _) = listener.accept().unwrap();

    workload.pump.plug().unwrap();
    let closed = workload.pump.close_input();
    let second = workload.pump.close_input();
    client_end.write_all(b"while closed").unwrap();
    // The backup hears of it meanwhile, as of something that the next epoch will receive.
    let deadline = Moment::now() + PATIENCE;
    let told = |workload: &Workload| {
        let frames = workload.sink.frames.lock().unwrap();
        frames.iter().find(|(_, frame)| frame.ends_with(b"while closed")).map(|(epoch, _)| *epoch)
    };
    while told(&workload).is_none() {
        assert!(Moment::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(told(&workload), Some(2));
    server_end.set_nonblocking(true).unwrap();
    assert!(server_end.read(&mut [0; 64]).is_err());
    workload.pump.cut(1).unwrap();
    drop(closed);
    assert!(server_end.read(&mut [0; 64]).is_err(), "one still holds it closed");
    drop(second);
    let mut received = [0; 64];
    let length = server_end.read(&mut received).unwrap();
    assert_eq!(&received[..length], b"while closed", "delivered when the guard is gone");
}

#[test]
fn a_flood_of_datagrams_raises_pressure_and_loses_none() {
    let host = host();
    let mut config = config(quiet_network(), plugged());
    config.plug.max_frames = 4000;
    let workload = Workload::start_with(&host, config);
    let socket = workload.namespace.enter(|| UdpSocket::bind((workload_ip(false), 0)).unwrap()).unwrap();
    // A multicast group needs no neighbour to be resolved, so that every datagram is a frame at once.
    for number in 0..5000u32 {
        socket.send_to(&number.to_be_bytes(), "224.0.0.251:9").unwrap();
    }
    workload.wait_for(Event::PressureHigh);
    let deadline = Moment::now() + PATIENCE;
    while workload.pump.stats().held_frames < 4000 {
        assert!(Moment::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(workload.pump.stats().held_frames, 4000, "the rest waits in the device");
    workload.cut(1);
    workload.pump.acknowledged(1, Moment::now()).unwrap();
    workload.wait_for(Event::PressureLow);
    while workload.pump.stats().held_frames < 1000 {
        assert!(Moment::now() < deadline);
        std::thread::yield_now();
    }
    workload.cut(2);
    workload.pump.acknowledged(2, Moment::now()).unwrap();
    assert_eq!(workload.pump.stats().sent_frames, 5000);
}

#[test]
fn as_much_as_was_asked_for_is_told_once() {
    let host = host();
    let workload = Workload::start_with(&host, config(quiet_network(), plugged()));
    let socket = workload.namespace.enter(|| UdpSocket::bind((workload_ip(false), 0)).unwrap()).unwrap();
    let said = || workload.pump.stats().said_frames;
    let (before, deadline) = (said(), Moment::now() + PATIENCE);
    let say = |datagrams: u64| {
        let wanted = said() + datagrams;
        for number in 0..datagrams {
            socket.send_to(&number.to_be_bytes(), "224.0.0.251:9").unwrap();
            // Some one by one, some in one go.
            while number % 7 == 0 && said() < wanted - datagrams + number {
                assert!(Moment::now() < deadline);
            }
        }
        while said() < wanted {
            assert!(Moment::now() < deadline);
        }
    };
    let told = || {
        // The pump tells after it has counted.
        std::thread::sleep(Duration::from_millis(20));
        workload.events.try_iter().filter(|event| *event == Event::SaidEnough).count()
    };
    workload.pump.tell_when_said(before + 30);
    say(29);
    assert_eq!((told(), said()), (0, before + 29));
    say(1);
    assert_eq!(told(), 1);
    say(20);
    assert_eq!(told(), 0, "once");
    workload.cut(1);
    workload.pump.tell_when_said(before + 10);
    say(1);
    assert_eq!(told(), 1, "also what had been said before it was asked for");
}
