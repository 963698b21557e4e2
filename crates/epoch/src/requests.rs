//! Connections that have no descriptor yet: followed where the workload runs, rebuilt where it takes over.
//!
//! The pump shows every frame to [`Requests`], which a checkpoint asks for what is pending at its cut. After a takeover
//! it also drives what is still being rebuilt: a client that had not answered its SYN-ACK does so later, if at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use outlive_net::{Admission, Aside, INTERFACE, Observer, Pump, VNET_HEADER};
use outlive_process::object::tcp_request::{
    Bounds, FourTuple, Frames, PendingConnection, RequestTracker, Restorer, Restoring, Snapshot, Verdict,
};
use tracing::{debug, info, warn};

use crate::waiting::waiting_connections;

/// How often connections are forgotten that the kernel has given up, or that were accepted while no checkpoint was
/// taken. Reading the kernel's table takes 7 to 10 ms for 10,000 sockets.
const RECONCILE_EVERY: Duration = Duration::from_secs(10);

/// The connections of one workload that no descriptor can be asked about.
pub struct Requests {
    bounds: Bounds,
    state: Mutex<State>,
    /// Output is held for a backup: a frame that could not be recorded must not reach the workload.
    held: AtomicBool,
    /// Whether there is something to rebuild, to be known without the lock.
    rebuilding: AtomicBool,
}

struct State {
    tracker: RequestTracker,
    restoring: Option<Restoring>,
    reconcile: Instant,
}

impl Default for Requests {
    fn default() -> Self {
        Self::with(Bounds::default(), RequestTracker::new, None)
    }
}

impl Requests {
    fn with(
        bounds: Bounds,
        tracker: impl FnOnce(Bounds) -> RequestTracker,
        restoring: Option<Restoring>,
    ) -> Self {
        let rebuilding = AtomicBool::new(restoring.is_some());
        let state = State { tracker: tracker(bounds), restoring, reconcile: Instant::now() };
        Self { bounds, state: Mutex::new(state), held: AtomicBool::new(false), rebuilding }
    }

    /// Of a workload that was restored with these pending, and the frames with which [`Self::rebuild`] makes them exist.
    /// To be called when the listeners are there.
    pub fn resume(restorer: Option<Restorer>, pending: Vec<PendingConnection>) -> (Self, Frames) {
        let count = pending.len();
        let Some(restorer) = restorer else {
            if count > 0 {
                warn!(
                    count,
                    "connections that were not accepted yet are lost: their clients are reset or wait in vain"
                );
            }
            return (Self::default(), Frames::default());
        };
        if pending.is_empty() {
            detach(restorer);
            return (Self::default(), Frames::default());
        }
        let now = Instant::now();
        match restorer.restore(now, pending.clone()) {
            Ok((restoring, frames)) => {
                let resume = |bounds| RequestTracker::resume(bounds, now, &pending);
                (Self::with(Bounds::default(), resume, Some(restoring)), frames)
            }
            Err(error) => {
                warn!(%error, count, "connections that were not accepted yet are lost: their clients are reset or wait in vain");
                (Self::default(), Frames::default())
            }
        }
    }

    /// Makes the connections exist, while the input is closed and before anything else is injected.
    pub fn rebuild(&self, pump: &Pump, frames: Frames) {
        if !self.rebuilding.load(Ordering::Relaxed) {
            return;
        }
        frames.inject.iter().for_each(|frame| pump.inject_own(&frame.to_bytes()));
        let settled = match &mut self.lock().restoring {
            Some(restoring) => restoring.settle(),
            None => return,
        };
        match settled {
            Ok(missing) if missing.is_empty() => debug!("connections that were not accepted yet are back"),
            Ok(missing) => info!(count = missing.len(), "the workload has no room yet for connections"),
            Err(error) => warn!(%error, "cannot see which connections are back"),
        }
        send(pump, frames.send);
        self.finish();
    }

    /// Drives what is still being rebuilt.
    pub fn tick(&self, pump: &Pump) {
        if !self.rebuilding.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        let ticked = match &mut self.lock().restoring {
            Some(restoring) if restoring.next_tick().is_some_and(|at| now >= at) => restoring.tick(now),
            _ => Ok(Frames::default()),
        };
        match ticked {
            Ok(frames) => {
                frames.inject.iter().for_each(|frame| pump.inject_own(&frame.to_bytes()));
                send(pump, frames.send);
            }
            Err(error) => warn!(%error, "cannot see which connections are back"),
        }
        self.finish();
    }

    /// How long until [`Self::tick`] has something to do, if it ever has.
    pub fn next_tick(&self) -> Option<Duration> {
        if !self.rebuilding.load(Ordering::Relaxed) {
            return None;
        }
        let next = self.lock().restoring.as_ref().and_then(Restoring::next_tick)?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Once everything is back the program is not needed any more.
    fn finish(&self) {
        let done = self.lock().restoring.take_if(|restoring| restoring.is_done());
        if let Some(restoring) = done {
            self.rebuilding.store(false, Ordering::Relaxed);
            detach(restoring);
        }
    }

    /// Output is held for a backup from now on, or not any more. What passed unrecorded before is refused by name in a
    /// snapshot, unless it has been accepted by then.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// These have come to have a descriptor: local and remote address of each.
    pub fn accepted(&self, arrived: &[(SocketAddr, SocketAddr)]) {
        if arrived.is_empty() {
            return;
        }
        let mut state = self.lock();
        for (local, remote) in arrived {
            state.tracker.forget(&tuple(*local, *remote));
        }
    }

    /// What is pending at the cut: while the workload is stopped and its input closed, after [`Pump::cut`].
    pub fn snapshot(&self) -> Snapshot {
        self.lock().tracker.snapshot()
    }

    /// Forgets, now and then, what the kernel does not have any more. The calling thread is in the workload's network
    /// namespace.
    pub fn reconcile(&self, pump: &Pump) {
        {
            let mut state = self.lock();
            let now = Instant::now();
            if now.saturating_duration_since(state.reconcile) < RECONCILE_EVERY {
                return;
            }
            state.reconcile = now;
            if state.tracker.is_empty() || state.restoring.is_some() {
                return;
            }
        }
        // Nothing begins between reading the table and comparing.
        let _closed = pump.close_input();
        match waiting_connections() {
            Ok(waiting) => self.lock().tracker.retain(|tuple| waiting.contains(tuple)),
            Err(error) => debug!(%error, "the table of connections cannot be read"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the tracker is a bug of its own; what it knows of other connections is as good as before.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Observer for Requests {
    fn incoming(&self, frame: &[u8], aside: &mut Aside) -> Admission {
        let Some(ethernet) = frame.get(VNET_HEADER..) else { return Admission::Pass };
        let mut state = self.lock();
        if let Some(restoring) = &mut state.restoring {
            match restoring.observe_in(ethernet) {
                Ok(frames) => {
                    aside.inward.extend(frames.inject.iter().map(|frame| frame.to_bytes()));
                    aside.outward.extend(frames.send.into_iter().map(with_header));
                }
                Err(error) => warn!(%error, "a connection that is being rebuilt may be lost"),
            }
        }
        match state.tracker.observe_in(Instant::now(), ethernet) {
            Verdict::Pass => Admission::Pass,
            // Without a backup a connection may be accepted long before a checkpoint says so, and go on receiving: no
            // reason to stop it. Only what nothing at all would be known of is lost even then.
            Verdict::Drop
                if !self.held.load(Ordering::Relaxed) && state.tracker.len() < self.bounds.connections =>
            {
                Admission::Pass
            }
            Verdict::Drop => Admission::Drop,
        }
    }

    fn outgoing(&self, frame: &[u8]) {
        if let Some(ethernet) = frame.get(VNET_HEADER..) {
            self.lock().tracker.observe_out(Instant::now(), ethernet);
        }
    }
}

/// Prepares a backup to rebuild connections, ahead of time. The calling thread is in the workload's network namespace.
/// Without BPF a takeover does without.
pub fn prepare() -> Option<Restorer> {
    let attached = nix::net::if_::if_nametoindex(INTERFACE)
        .map_err(|errno| errno.to_string())
        .and_then(|index| Restorer::attach(index, MOST_REBUILT).map_err(|error| error.to_string()));
    match attached {
        Ok(restorer) => Some(restorer),
        Err(error) => {
            warn!(
                error,
                "clients that are connecting at the moment of a failover will lose their connections"
            );
            None
        }
    }
}

/// As many as a tracker follows.
const MOST_REBUILT: u32 = 65_536;

/// Detaching waits for a grace period of RCU, milliseconds, for which nobody has time here.
fn detach(program: impl Send + 'static) {
    let detaching = thread::Builder::new().name("detach".into()).spawn(move || drop(program));
    if let Err(error) = detaching {
        debug!(%error, "detached without a thread");
    }
}

fn send(pump: &Pump, frames: Vec<Vec<u8>>) {
    frames.into_iter().for_each(|frame| pump.send_outer(&with_header(frame)));
}

/// Nothing is left to a device to do: a virtio header of zeros.
fn with_header(frame: Vec<u8>) -> Vec<u8> {
    [&[0; VNET_HEADER][..], &frame].concat()
}

/// IPv4 connections of an IPv6 socket have mapped addresses; on the wire they are IPv4.
fn tuple(local: SocketAddr, remote: SocketAddr) -> FourTuple {
    let plain = |ip: IpAddr| ip.to_canonical();
    FourTuple {
        client: plain(remote.ip()),
        client_port: remote.port(),
        server: plain(local.ip()),
        server_port: local.port(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpHeader};
    use outlive_process::object::tcp_request::Why;

    use super::*;

    const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
    const SERVER: ([u8; 4], u16) = ([10, 0, 0, 2], 80);
    const SMALL: Bounds = Bounds { connections: 2, bytes_per_connection: 100, bytes: 150 };

    /// As it passes the pump, from client `number` or to it.
    fn frame(inward: bool, number: u16, change: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Vec<u8> {
        let client = (CLIENT.0, CLIENT.1 + number);
        let (from, to) = if inward { (client, SERVER) } else { (SERVER, client) };
        let mut tcp = TcpHeader::new(from.1, to.1, if inward { 1000 } else { 5000 }, 64_000);
        change(&mut tcp);
        let mut frame = vec![0; VNET_HEADER];
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(from.0, to.0, 64)
            .tcp_header(tcp)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn give(requests: &Requests, frame: &[u8]) -> Admission {
        let mut aside = Aside::default();
        let admission = requests.incoming(frame, &mut aside);
        assert!(aside.inward.is_empty() && aside.outward.is_empty());
        admission
    }

    fn syn(requests: &Requests, number: u16) -> Admission {
        give(requests, &frame(true, number, |tcp| tcp.syn = true, &[]))
    }

    /// Up to the client's last segment of the handshake.
    fn open(requests: &Requests, number: u16) {
        assert_eq!(syn(requests, number), Admission::Pass);
        let answer = |tcp: &mut TcpHeader| {
            (tcp.syn, tcp.ack, tcp.acknowledgment_number) = (true, true, 1001);
        };
        requests.outgoing(&frame(false, number, answer, &[]));
        assert_eq!(data(requests, number, 0, &[]), Admission::Pass);
    }

    fn data(requests: &Requests, number: u16, offset: u32, payload: &[u8]) -> Admission {
        let header = |tcp: &mut TcpHeader| {
            (tcp.ack, tcp.acknowledgment_number, tcp.sequence_number) = (true, 5001, 1001 + offset);
        };
        give(requests, &frame(true, number, header, payload))
    }

    fn acknowledge(requests: &Requests, number: u16, bytes: u32) {
        let header = |tcp: &mut TcpHeader| {
            (tcp.ack, tcp.acknowledgment_number, tcp.sequence_number) = (true, 1001 + bytes, 5001);
        };
        requests.outgoing(&frame(false, number, header, &[]));
    }

    fn small() -> Requests {
        Requests::with(SMALL, RequestTracker::new, None)
    }

    #[test]
    fn a_connection_is_pending_until_it_has_a_descriptor() {
        for mapped in [false, true] {
            let requests = Requests::default();
            open(&requests, 0);
            let _ = data(&requests, 0, 0, b"early");
            acknowledge(&requests, 0, 5);
            let snapshot = requests.snapshot();
            assert_eq!(snapshot.connections.len(), 1);
            assert_eq!(
                (&snapshot.connections[0].data[..], snapshot.connections[0].acknowledged),
                (&b"early"[..], 5)
            );
            let address = |(ip, port): ([u8; 4], u16)| {
                let ip = std::net::Ipv4Addr::from(ip);
                SocketAddr::new(if mapped { ip.to_ipv6_mapped().into() } else { ip.into() }, port)
            };
            requests.accepted(&[(address(CLIENT), address(SERVER))]);
            assert_eq!(requests.snapshot().connections.len(), 1, "another connection was accepted");
            requests.accepted(&[(address(SERVER), address(CLIENT))]);
            assert_eq!(requests.snapshot(), Snapshot::default());
        }
    }

    #[test]
    fn r3_nothing_dropped_what_cannot_be_recorded_does_not_reach_a_workload_that_has_a_backup() {
        let requests = small();
        requests.hold(true);
        open(&requests, 0);
        assert_eq!(data(&requests, 0, 0, &[1; 90]), Admission::Pass);
        assert_eq!(data(&requests, 0, 90, &[2; 20]), Admission::Drop);
        open(&requests, 1);
        assert_eq!(syn(&requests, 2), Admission::Drop);
    }

    #[test]
    fn r3_nothing_dropped_what_passed_without_a_backup_is_refused_by_name() {
        let requests = small();
        open(&requests, 0);
        assert_eq!(data(&requests, 0, 0, &[1; 90]), Admission::Pass);
        assert_eq!(data(&requests, 0, 90, &[2; 20]), Admission::Pass);
        acknowledge(&requests, 0, 110);
        let snapshot = requests.snapshot();
        assert_eq!(snapshot.connections, []);
        assert_eq!(snapshot.refused.len(), 1);
        assert_eq!(snapshot.refused[0].why, Why::UnseenData);
        // A connection that nothing would be known of could not even be refused.
        open(&requests, 1);
        assert_eq!(syn(&requests, 2), Admission::Drop);
    }

    #[test]
    fn without_a_way_to_rebuild_them_nothing_is_followed_that_does_not_exist() {
        let before = Requests::default();
        open(&before, 0);
        let (after, frames) = Requests::resume(None, before.snapshot().connections);
        assert_eq!((after.snapshot(), frames), (Snapshot::default(), Frames::default()));
        assert_eq!(after.next_tick(), None);
    }

    #[test]
    fn what_is_no_frame_passes() {
        for length in [0, VNET_HEADER - 1, VNET_HEADER, VNET_HEADER + 5] {
            assert_eq!(give(&Requests::default(), &vec![0; length]), Admission::Pass);
            Requests::default().outgoing(&vec![0; length]);
        }
    }
}
