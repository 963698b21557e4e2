//! How long an epoch takes from its begin to the verified acknowledgement, between two threads over loopback
//! TLS.
//!
//!     cargo run --release -p outlive-stream --example round_trip [epoch bytes] [rounds]
//!
//! The figures hold for two ends on one machine: the kernel's loopback, both ends' encryption and hashing,
//! and two wake-ups of a thread on another core are in them.

use std::error::Error;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use outlive_stream::Compression;
use outlive_stream::certificate::{Validity, create_authority, issue};
use outlive_stream::connection::Connection;
use outlive_stream::epoch::{BACKUP_KINDS, EpochId, Heartbeat, PRIMARY_KINDS};
use outlive_stream::epoch_reader::{EpochReader, Received};
use outlive_stream::epoch_writer::EpochWriter;
use outlive_stream::frame::Kind;
use outlive_stream::hello::{Stream, VERSIONS};
use outlive_stream::rpc::{Client, serve};
use outlive_stream::tls::Identity;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().map_or(Ok(200 * 1024), |argument| argument.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(3000), |argument| argument.parse())?;
    for (name, spin) in [("sleeping", Duration::ZERO), ("spinning", Duration::from_millis(2))] {
        for compression in [Compression::None, Compression::Lz4] {
            let times = epochs(bytes, rounds, compression, spin)?;
            print(&format!("epoch of {bytes} bytes and ack, {compression:?}, {name}"), times);
        }
        print(
            &format!("epoch of 4096 bytes and ack, {name}"),
            epochs(4096, rounds, Compression::None, spin)?,
        );
        print(&format!("heartbeat there and back, {name}"), heartbeats(rounds, spin)?);
    }
    print("call of 100 bytes", calls(rounds)?);
    throughput(bytes, rounds)
}

/// One epoch at a time, as a primary does that may not release output before the commit.
fn epochs(bytes: usize, rounds: usize, compression: Compression, spin: Duration) -> Outcome<Vec<Duration>> {
    let (mut primary, mut backup) = replication_pair(spin)?;
    // Pages that are half used: what lies in them does not compress, the rest is zero.
    let mut state = 1u64;
    let mut pages = vec![0u8; bytes];
    for (i, byte) in pages.iter_mut().enumerate() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = if i % 4096 < 2048 { (state >> 56) as u8 } else { 0 };
    }
    thread::scope(|scope| {
        let backup = scope.spawn(move || -> Outcome<()> {
            let mut epochs = EpochReader::new(1 << 30);
            for _ in 0..rounds {
                let Received::Epoch(epoch) = epochs.next(&mut backup.reader)? else {
                    return Err("no epoch".into());
                };
                epoch.ack().send(&mut backup.writer)?;
            }
            Ok(())
        });
        let mut epochs = EpochWriter::new(compression);
        let mut acks = EpochReader::new(0);
        let mut times = Vec::with_capacity(rounds);
        let parts: Vec<&[u8]> = pages.chunks(4096).collect();
        for round in 0..rounds {
            let start = Instant::now();
            epochs.begin(&mut primary.writer, EpochId { generation: 1, epoch: round as u64 })?;
            epochs.chunk(&mut primary.writer, 1, &parts)?;
            let seal = epochs.commit(&mut primary.writer)?;
            let Received::Ack(ack) = acks.next(&mut primary.reader)? else { return Err("no ack".into()) };
            seal.check(&ack)?;
            times.push(start.elapsed());
        }
        backup.join().map_err(|_| "the backup's thread panicked")??;
        Ok(times)
    })
}

fn heartbeats(rounds: usize, spin: Duration) -> Outcome<Vec<Duration>> {
    let (mut primary, mut backup) = replication_pair(spin)?;
    thread::scope(|scope| {
        scope.spawn(move || -> Outcome<()> {
            while let Ok(frame) = backup.reader.next() {
                backup.writer.send(Kind::HEARTBEAT, &[&frame.payload])?;
            }
            Ok(())
        });
        let mut times = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let start = Instant::now();
            Heartbeat { time: round as u64 }.send(&mut primary.writer)?;
            primary.reader.next()?;
            times.push(start.elapsed());
        }
        drop(primary);
        Ok(times)
    })
}

fn calls(rounds: usize) -> Outcome<Vec<Duration>> {
    let (a, b) = pair()?;
    thread::scope(|scope| {
        scope.spawn(move || serve(b, |_, request| request));
        let mut client = Client::open(a, TIMEOUT)?;
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            client.call(&[7; 100], start + TIMEOUT)?;
            times.push(start.elapsed());
        }
        Ok(times)
    })
}

/// Epochs one after the other without waiting for acknowledgements: what the stream carries at most.
fn throughput(bytes: usize, rounds: usize) -> Outcome<()> {
    let (mut primary, mut backup) = replication_pair(Duration::ZERO)?;
    let pages = vec![7; bytes];
    let start = Instant::now();
    thread::scope(|scope| {
        let backup = scope.spawn(move || -> Outcome<()> {
            let mut epochs = EpochReader::new(1 << 30);
            for _ in 0..rounds {
                epochs.next(&mut backup.reader)?;
            }
            Ok(())
        });
        let mut epochs = EpochWriter::new(Compression::None);
        for round in 0..rounds {
            epochs.begin(&mut primary.writer, EpochId { generation: 1, epoch: round as u64 })?;
            epochs.chunk(&mut primary.writer, 1, &[&pages])?;
            epochs.commit(&mut primary.writer)?;
        }
        backup.join().map_err(|_| "the backup's thread panicked")?
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!("one direction, saturated: {:.0} MB/s", (bytes * rounds) as f64 / seconds / 1e6);
    Ok(())
}

fn replication_pair(spin: Duration) -> Outcome<(Stream, Stream)> {
    let (a, b) = pair()?;
    let answered = thread::spawn(move || Stream::answer(b, VERSIONS, TIMEOUT, |_, _| Ok(PRIMARY_KINDS)));
    let mut opened = Stream::open(a, VERSIONS, "replicate:example", BACKUP_KINDS, TIMEOUT)?;
    let mut answered = answered.join().map_err(|_| "the answering thread panicked")??;
    opened.reader.get_mut().set_spin(spin);
    answered.reader.get_mut().set_spin(spin);
    Ok((opened, answered))
}

fn pair() -> Outcome<(Connection, Connection)> {
    let authority = create_authority("example")?;
    let identity = |node| -> Outcome<Identity> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("ca.pem"), &authority.cert_pem)?;
        issue(&authority, node, Validity::days(1))?.write_files(&path("cert.pem"), &path("key.pem"))?;
        Ok(Identity::load(&path("ca.pem"), &path("cert.pem"), &path("key.pem"))?)
    };
    let (a, b) = (identity("a")?, identity("b")?);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let accepted =
        thread::spawn(move || -> Outcome<Connection> { Ok(b.accept(listener.accept()?.0, TIMEOUT)?) });
    let connected = a.connect(address, "b", TIMEOUT)?;
    Ok((connected, accepted.join().map_err(|_| "the accepting thread panicked")??))
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: least {:?}, median {:?}, 90 % {:?}, 99 % {:?}", at(0.0), at(0.5), at(0.9), at(0.99));
}
