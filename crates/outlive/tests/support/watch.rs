//! Watching from the switch what a workload says, and by which host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use outlive_lab::Lab;

/// For what comes while the watcher does not run: some seconds of a test's load.
const BUFFER: usize = 64 << 20;
/// Longer than any frame, also one that is to be segmented.
const FRAME: usize = 128 << 10;

/// A segment that the workload sent, and the host by whose cable it came to the switch.
#[derive(Clone, Debug)]
pub struct Said {
    pub at: Instant,
    /// `port0` is the lab's first host's.
    pub port: String,
    pub client_port: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub payload: Vec<u8>,
}

/// Records until it is finished.
pub struct Watch {
    stop: Arc<AtomicBool>,
    recording: JoinHandle<Vec<Said>>,
}

impl Watch {
    pub fn start(lab: &Lab, workload: IpAddr) -> Watch {
        let socket = lab.switch_netns().run(open).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, switch) = (Arc::clone(&stop), lab.switch_netns().clone());
        let recording = std::thread::spawn(move || {
            // Names of devices are those of the thread's namespace.
            switch.enter().unwrap();
            record(&socket, workload, &stopped)
        });
        Watch { stop, recording }
    }

    pub fn finish(self) -> Vec<Said> {
        self.stop.store(true, Ordering::Relaxed);
        self.recording.join().unwrap()
    }
}

fn open() -> std::io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    Ok(socket)
}

fn record(socket: &OwnedFd, workload: IpAddr, stop: &AtomicBool) -> Vec<Said> {
    let mut buffer = vec![0; FRAME];
    let mut said = Vec::new();
    let mut last = false;
    loop {
        if !last && stop.load(Ordering::Relaxed) {
            // What waits now is taken, and no more is waited for.
            fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            last = true;
        }
        let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => (length, from),
            Err(Errno::EAGAIN) if last => return said,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => continue,
            // A device went down, with its host.
            Err(Errno::ENETDOWN) => continue,
            Err(error) => panic!("the switch cannot be watched: {error}"),
        };
        if from.pkttype() == nix::libc::PACKET_OUTGOING {
            continue;
        }
        let Some(mut frame) = segment(&buffer[..length], workload) else { continue };
        let Ok(port) = if_indextoname(from.ifindex() as u32) else { continue };
        frame.port = port.to_string_lossy().into_owned();
        if frame.port.starts_with("port") {
            said.push(frame);
        }
    }
}

fn segment(frame: &[u8], workload: IpAddr) -> Option<Said> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return None };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
    // A new primary asks each client by one old byte, whatever that was, what it has received (`outlive_net::probe`).
    let is_probe = tcp.payload() == [0];
    (IpAddr::from(ip.header().source_addr()) == workload && !is_probe).then(|| Said {
        at: Instant::now(),
        port: String::new(),
        client_port: tcp.destination_port(),
        sequence: tcp.sequence_number(),
        acknowledgement: tcp.acknowledgment_number(),
        payload: tcp.payload().to_vec(),
    })
}

/// What the host at `port` said after another had begun to speak for the workload, on which every segment is checked: it
/// says the same bytes at the same place as the others do, and acknowledges no more (R2). Returns how many there are.
///
/// A byte that nobody else says was lost with the old primary: the successor lacks it, and so does the client.
#[track_caller]
pub fn late_segments(said: &[Said], port: &str, since: Instant) -> usize {
    let is_late = |one: &&Said| one.port == port && one.at >= since;
    let mut bytes: HashMap<(u16, u32), u8> = HashMap::new();
    let mut acknowledged: HashMap<u16, u32> = HashMap::new();
    for one in said.iter().filter(|one| !is_late(one)) {
        for (offset, byte) in one.payload.iter().enumerate() {
            let place = (one.client_port, one.sequence.wrapping_add(offset as u32));
            let known = bytes.insert(place, *byte);
            assert!(known.is_none_or(|known| known == *byte), "two voices at {place:?}: {one:?}");
        }
        let most = acknowledged.entry(one.client_port).or_insert(one.acknowledgement);
        if one.acknowledgement.wrapping_sub(*most) as i32 > 0 {
            *most = one.acknowledgement;
        }
    }
    let late: Vec<&Said> = said.iter().filter(is_late).collect();
    for one in &late {
        for (offset, byte) in one.payload.iter().enumerate() {
            let place = (one.client_port, one.sequence.wrapping_add(offset as u32));
            assert_eq!(bytes.get(&place), Some(byte), "what the successor lacks, at {place:?}: {one:?}");
        }
        let most = acknowledged.get(&one.client_port);
        assert!(
            most.is_some_and(|most| one.acknowledgement.wrapping_sub(*most) as i32 <= 0),
            "what the successor has not received is acknowledged: {one:?}, {most:?}"
        );
    }
    late.len()
}
