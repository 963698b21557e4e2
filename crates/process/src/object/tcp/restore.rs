//! From a checkpoint to a socket: silently first, then live.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, connect, shutdown, socket,
};

use super::error::{Attempt, Error, Result};
use super::options::NOTSENT_LOWAT;
use super::segment::Segment;
use super::{
    Buffers, Connecting, Connection, Family, Options, RawSegment, Stage, State, TcpSocket, before,
    state_number,
};
use crate::sys::datagram;
use crate::sys::tcp_repair::{self as sys, Agreed, Linger, Queue, Repair, RepairWindow};

/// What is known of what the peer has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAck {
    /// It has said so, after the primary fell silent ([`super::probe`]). `window` is as in the header, not scaled.
    ///
    /// What it has is dropped, all else is sent anew. This is exact: nothing is lost, nothing waits for a timer.
    Known { ack: u32, window: u16 },
    /// Somewhere between `snd_una` and `snd_nxt` of the checkpoint.
    ///
    /// All that the checkpoint holds to be sent is treated as sent: the peer may acknowledge any of it. (Were it treated as
    /// unsent, an acknowledgement beyond what this kernel has sent would be dropped as invalid, RFC 9293
    /// section 3.10.7.4, and the connection would hang.) What the peer has not received goes out once it
    /// acknowledges something later selectively, or, of a lost tail, when the retransmission timer runs out, a second
    /// after going live.
    ///
    /// What fits one segment is sent anew all the same: it is out before the peer's next acknowledgement is looked at, and costs
    /// at worst a segment that the peer has already.
    Unknown,
}

impl PeerAck {
    /// For a connection whose other end is in the same checkpoint (loopback): what that end has received.
    pub fn of_other_end(other: &Connection) -> Self {
        Self::Known { ack: other.rcv_nxt, window: other.advertised_window() }
    }
}

/// Rebuilds sockets in the network namespace that its thread is in.
#[derive(Default)]
pub struct Builder {
    fresh_v4: Option<Fresh>,
    fresh_v6: Option<Fresh>,
}

/// What a new socket has here, so that only what differs is set.
struct Fresh {
    options: Options,
    send: u32,
    receive: u32,
}

/// A socket that exists, silent until [`Restored::go_live`].
#[derive(Debug)]
pub struct Restored {
    pub fd: OwnedFd,
    /// Deliver these from the network's side ([`super::Injector`]), in order, when all sockets exist, and before going live. The kernel's answers
    /// (acknowledgements) repeat what was said before.
    pub inject: Vec<RawSegment>,
    live: Live,
}

#[derive(Debug)]
enum Live {
    AsItIs,
    Connect,
    Resume(Resume),
}

#[derive(Debug)]
struct Resume {
    /// The state to which `inject` leads, if there is any.
    expected: Option<u8>,
    /// From where on the bytes of the send queue are still to be sent.
    unsent_from: usize,
    own_fin: OwnFin,
    /// To be injected after going live.
    after: Vec<RawSegment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnFin {
    /// There is none, or it is in the queue already.
    Nothing,
    /// Queued as if sent when going live.
    Silent,
    Sent,
}

/// How the peer's knowledge cuts the send queue.
struct Cut {
    /// First sequence number that the restored socket has to account for.
    una: u32,
    /// Bytes of the queue before it.
    acknowledged: usize,
    /// Bytes of the queue before what is still to be sent.
    sent: usize,
    fin_acknowledged: bool,
    fin_sent: bool,
    snd_wnd: u32,
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Builds the socket without a frame leaving. `peer` matters to connections only.
    pub fn restore(&mut self, checkpoint: &TcpSocket, peer: PeerAck) -> Result<Restored> {
        let fresh = self.fresh(checkpoint.options.family())?;
        let fd = new_socket(checkpoint.options.family())?;
        checkpoint.options.apply(fd.as_fd(), &fresh.options)?;
        let mut inject = Vec::new();
        let live = match &checkpoint.state {
            State::Idle { max_segment } => {
                unconnected(fd.as_fd(), checkpoint, fresh, *max_segment)?;
                Live::AsItIs
            }
            State::Listening { max_segment, backlog, .. } => {
                unconnected(fd.as_fd(), checkpoint, fresh, *max_segment)?;
                let backlog = i32::try_from(*backlog).unwrap_or(i32::MAX);
                sys::listen(&fd, backlog).attempt("listen on the address")?;
                Live::AsItIs
            }
            State::Connecting(connecting) => {
                set_buffers(fd.as_fd(), checkpoint, fresh, 0, 0)?;
                set_initial_seq(fd.as_fd(), checkpoint, connecting.initial_seq)?;
                Live::Connect
            }
            State::Connected(connection) => {
                Live::Resume(connected(fd.as_fd(), checkpoint, connection, peer, fresh, &mut inject)?)
            }
            State::Dead { receive, error_pending } => {
                dead(fd.as_fd(), checkpoint, receive, *error_pending, fresh)?;
                Live::AsItIs
            }
        };
        Ok(Restored { fd, inject, live })
    }

    fn fresh(&mut self, family: Family) -> Result<&Fresh> {
        let place = match family {
            Family::V4 => &mut self.fresh_v4,
            Family::V6 => &mut self.fresh_v6,
        };
        match place {
            Some(fresh) => Ok(fresh),
            None => {
                let fd = new_socket(family)?;
                let size = |name| sys::get(&fd, libc::SOL_SOCKET, name).attempt("read a buffer size");
                Ok(place.insert(Fresh {
                    options: Options::read(fd.as_fd())?,
                    send: size(libc::SO_SNDBUF)?,
                    receive: size(libc::SO_RCVBUF)?,
                }))
            }
        }
    }
}

impl Restored {
    /// What must not stand in the way of going live: the last to be called.
    pub fn finish(&self, checkpoint: &TcpSocket) -> Result<()> {
        checkpoint.options.attach_filter(self.fd.as_fd())
    }

    /// Lets the socket speak. `checkpoint` is the one it was built from. Returns segments to inject now.
    ///
    /// Fails with [`Error::NotInjected`], having changed nothing, if `inject` has not arrived.
    pub fn go_live(&self, checkpoint: &TcpSocket) -> Result<Vec<RawSegment>> {
        let fd = self.fd.as_fd();
        match (&self.live, &checkpoint.state) {
            (Live::AsItIs, _) => Ok(Vec::new()),
            (Live::Connect, State::Connecting(connecting)) => {
                connect_again(fd, checkpoint, connecting)?;
                Ok(Vec::new())
            }
            (Live::Resume(resume), State::Connected(connection)) => {
                resume.go(fd, checkpoint, connection)?;
                Ok(resume.after.clone())
            }
            _ => Err(Error::Malformed("it is not the one that the socket was built from")),
        }
    }
}

fn new_socket(family: Family) -> Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).attempt("make a socket")
}

fn bind_to(fd: BorrowedFd<'_>, address: SocketAddr) -> Result<()> {
    datagram::bind_again(fd, &datagram::bytes_of(address)).attempt("bind the address")
}

/// `SO_SNDBUF` and `SO_RCVBUF` with room for these bytes; [`settle_buffers`] sets them to what they were.
fn set_buffers(
    fd: BorrowedFd<'_>,
    checkpoint: &TcpSocket,
    fresh: &Fresh,
    send: usize,
    receive: usize,
) -> Result<()> {
    let buffers = &checkpoint.buffers;
    // The kernel doubles what is set, and counts up to about twice the bytes (`truesize`); a small queue's overhead is
    // within 64 KiB.
    let room = |bytes: usize| if bytes == 0 { 0 } else { bytes.saturating_mul(2).saturating_add(1 << 16) };
    let set = |name, captured: u32, room: usize| {
        let value = (captured as usize / 2).max(room).min(i32::MAX as usize / 2);
        sys::set(fd, libc::SOL_SOCKET, name, value as i32).attempt("set a buffer size")
    };
    if send != 0 || buffers.send != fresh.send {
        set(libc::SO_SNDBUFFORCE, buffers.send, room(send))?;
    }
    if receive != 0 || buffers.receive != fresh.receive {
        set(libc::SO_RCVBUFFORCE, buffers.receive, room(receive))?;
    }
    if send == 0 && receive == 0 { settle_locks(fd, checkpoint, fresh) } else { Ok(()) }
}

fn settle_buffers(fd: BorrowedFd<'_>, checkpoint: &TcpSocket) -> Result<()> {
    let buffers = checkpoint.buffers;
    for (name, size) in [(libc::SO_SNDBUFFORCE, buffers.send), (libc::SO_RCVBUFFORCE, buffers.receive)] {
        sys::set(fd, libc::SOL_SOCKET, name, (size / 2) as i32).attempt("set a buffer size")?;
    }
    sys::set(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, checkpoint.options.buffer_locks)
        .attempt("set SO_BUF_LOCK")
}

/// Setting a size marks it as the program's choice.
fn settle_locks(fd: BorrowedFd<'_>, checkpoint: &TcpSocket, fresh: &Fresh) -> Result<()> {
    let (buffers, locks) = (checkpoint.buffers, checkpoint.options.buffer_locks);
    if locks != 0 || buffers.send != fresh.send || buffers.receive != fresh.receive {
        sys::set(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, locks).attempt("set SO_BUF_LOCK")?;
    }
    Ok(())
}

/// Fresh, bound and listening sockets up to `listen`.
fn unconnected(
    fd: BorrowedFd<'_>,
    checkpoint: &TcpSocket,
    fresh: &Fresh,
    max_segment: Option<u32>,
) -> Result<()> {
    set_buffers(fd, checkpoint, fresh, 0, 0)?;
    if let Some(size) = max_segment {
        sys::set(fd, libc::SOL_TCP, libc::TCP_MAXSEG, size).attempt("set TCP_MAXSEG")?;
    }
    if checkpoint.buffers.window_clamp != 0 {
        sys::set(fd, libc::SOL_TCP, libc::TCP_WINDOW_CLAMP, checkpoint.buffers.window_clamp)
            .attempt("set TCP_WINDOW_CLAMP")?;
    }
    let local = checkpoint.local;
    if local.port() != 0 || !local.ip().is_unspecified() {
        bind_to(fd, local)?;
    }
    Ok(())
}

/// An established connection out of nothing, in repair, without a frame.
fn establish(fd: BorrowedFd<'_>, local: SocketAddr, remote: SocketAddr, snd: u32, rcv: u32) -> Result<()> {
    sys::set_repair(fd, Repair::On).attempt("enter repair")?;
    bind_to(fd, local)?;
    sys::select_queue(fd, Queue::Receive).attempt("select the receive queue")?;
    sys::set_queue_seq(fd, rcv).attempt("set rcv_nxt")?;
    sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
    sys::set_queue_seq(fd, snd).attempt("set write_seq")?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(remote)).attempt("connect in repair")
}

/// Puts bytes into the selected queue.
fn fill(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    /// Well within what the kernel takes at once into a receive queue (MAX_SKB_FRAGS pages, `tcp_send_rcvq`).
    const AT_ONCE: usize = 32 << 10;
    let mut taken = 0;
    while taken < bytes.len() {
        let chunk = &bytes[taken..bytes.len().min(taken + AT_ONCE)];
        taken += match sys::send(fd, chunk) {
            Ok(0) => return Err(Error::QueueFull { taken, length: bytes.len() }),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS)) =>
            {
                return Err(Error::QueueFull { taken, length: bytes.len() });
            }
            Err(source) => return Err(Error::System { attempt: "fill a queue", source }),
        };
    }
    Ok(())
}

impl Cut {
    fn new(connection: &Connection, peer: PeerAck, is_corked: bool) -> Result<Self> {
        let fin_in_queue = connection.own_fin_unacknowledged();
        let end = connection.write_seq();
        let (una, sent_to, snd_wnd) = match peer {
            PeerAck::Known { ack, window } => {
                if before(end, ack) {
                    return Err(Error::PeerAhead { ack, end });
                }
                // Older than what the checkpoint knows: an answer that crossed another.
                let una = if before(ack, connection.snd_una) { connection.snd_una } else { ack };
                let scale = connection.window_scales.map_or(0, |(peer, _)| peer.min(14));
                (una, una, u32::from(window) << scale)
            }
            PeerAck::Unknown if !is_corked && goes_out_at_once(connection) => {
                (connection.snd_una, connection.snd_una, connection.window.snd_wnd)
            }
            PeerAck::Unknown => (connection.snd_una, connection.snd_nxt, connection.window.snd_wnd),
        };
        let bytes_before =
            |seq: u32| (seq.wrapping_sub(connection.snd_una) as usize).min(connection.send.len());
        Ok(Self {
            una,
            acknowledged: bytes_before(una),
            sent: bytes_before(sent_to),
            fin_acknowledged: connection.stage == Stage::FinWait2 || (fin_in_queue && una == end),
            fin_sent: fin_in_queue && sent_to == end,
            snd_wnd,
        })
    }
}

/// Whether all that was sent and not acknowledged is one segment, which nothing holds back on a connection that has nothing else on its
/// way: neither Nagle's algorithm nor the peer's window.
fn goes_out_at_once(connection: &Connection) -> bool {
    /// Most that a TCP header has beyond its fixed part (RFC 9293 section 3.1).
    const MOST_OPTIONS: u32 = 40;
    let sent = connection.snd_nxt.wrapping_sub(connection.snd_una);
    let segment = connection.max_segment.saturating_sub(MOST_OPTIONS);
    sent <= segment.min(connection.window.snd_wnd) && !connection.stage.own_fin()
}

fn connected(
    fd: BorrowedFd<'_>,
    checkpoint: &TcpSocket,
    connection: &Connection,
    peer: PeerAck,
    fresh: &Fresh,
    inject: &mut Vec<RawSegment>,
) -> Result<Resume> {
    let stage = connection.stage;
    let peer_fin = u32::from(stage.peer_fin());
    let is_corked = checkpoint.options.int(libc::SOL_TCP, libc::TCP_CORK).is_some_and(|cork| cork != 0);
    let cut = Cut::new(connection, peer, is_corked)?;
    // Our FIN, if acknowledged, is queued again and acknowledged again: there is no other way past it.
    let snd = cut.una.wrapping_sub(u32::from(cut.fin_acknowledged));
    // The peer's FIN is left out here, and injected.
    let rcv_nxt = connection.rcv_nxt.wrapping_sub(peer_fin);

    // Before connecting, so that window and segment sizes come out of the right ones.
    let (to_send, received) = (connection.send.len() - cut.acknowledged, connection.receive.len());
    set_buffers(fd, checkpoint, fresh, to_send, received)?;
    establish(fd, checkpoint.local, connection.remote, snd, rcv_nxt.wrapping_sub(received as u32))?;
    let agreed = Agreed {
        mss: connection.max_segment,
        window_scales: connection.window_scales,
        sack: connection.sack,
        timestamps: connection.timestamp.is_some(),
    };
    sys::set_agreed(fd, agreed).attempt("set TCP_REPAIR_OPTIONS")?;
    if let Some(value) = connection.timestamp {
        // The lowest bit is no time (see `timestamp`), so the next value is 2 away; it must never go back (RFC 7323).
        sys::set_timestamp(fd, value.wrapping_add(2)).attempt("set TCP_TIMESTAMP")?;
    }
    if received != 0 {
        sys::select_queue(fd, Queue::Receive).attempt("select the receive queue")?;
        fill(fd, &connection.receive)?;
    }
    set_windows(fd, connection, &checkpoint.buffers, rcv_nxt, cut.snd_wnd)?;

    // With the send queue selected, what is written counts as sent and no frame leaves.
    let fin_is_silent = cut.fin_acknowledged || cut.fin_sent;
    let fin_first = stage != Stage::LastAck;
    if cut.sent > cut.acknowledged || (fin_is_silent && fin_first) {
        sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
        fill(fd, &connection.send[cut.acknowledged..cut.sent])?;
        if fin_is_silent && fin_first {
            shutdown(fd.as_raw_fd(), Shutdown::Write).attempt("shut down writing")?;
        }
    }
    // From here on, an acknowledgement or a timer may send.
    sys::select_queue(fd, Queue::None).attempt("select no queue")?;

    let from_peer = |seq: u32, ack: u32, fin: bool| {
        let scale = connection.window_scales.map_or(0, |(peer, _)| peer.min(14));
        // Without timestamps: the peer's clock is not known, and one ahead of it would shut it out (PAWS, RFC 7323
        // section 5.3); a segment without any is taken (`tcp_validate_incoming`).
        let segment = Segment {
            source: connection.remote,
            destination: checkpoint.local,
            seq,
            ack,
            window: u16::try_from(cut.snd_wnd >> scale).unwrap_or(u16::MAX),
            fin,
            timestamps: None,
            payload: &[],
        };
        segment.build().ok_or(Error::Malformed("its addresses are of two families"))
    };
    let mut resume =
        Resume { expected: None, unsent_from: cut.sent, own_fin: OwnFin::Nothing, after: Vec::new() };
    if stage.own_fin() && !(fin_is_silent && fin_first) {
        resume.own_fin = if fin_is_silent { OwnFin::Silent } else { OwnFin::Sent };
    }
    let end = snd.wrapping_add((to_send + usize::from(stage.own_fin())) as u32);
    match stage {
        Stage::Established => {}
        Stage::FinWait1 | Stage::FinWait2 => {
            if cut.fin_acknowledged {
                inject.push(from_peer(connection.rcv_nxt, end, false)?);
                resume.expected = Some(state_number::FIN_WAIT2);
            }
        }
        Stage::CloseWait => {
            inject.push(from_peer(rcv_nxt, snd, true)?);
            resume.expected = Some(state_number::CLOSE_WAIT);
        }
        // The two FINs crossed: ours was out when the peer's came.
        Stage::Closing if fin_is_silent => {
            inject.push(from_peer(rcv_nxt, cut.una, true)?);
            resume.expected =
                Some(if cut.fin_acknowledged { state_number::CLOSE } else { state_number::CLOSING });
        }
        Stage::Closing => resume.after.push(from_peer(rcv_nxt, cut.una, true)?),
        Stage::LastAck => {
            inject.push(from_peer(rcv_nxt, snd, true)?);
            resume.expected = Some(state_number::CLOSE_WAIT);
            if cut.fin_acknowledged {
                resume.after.push(from_peer(connection.rcv_nxt, end, false)?);
            }
        }
    }
    Ok(resume)
}

fn set_windows(
    fd: BorrowedFd<'_>,
    connection: &Connection,
    buffers: &Buffers,
    rcv_nxt: u32,
    snd_wnd: u32,
) -> Result<()> {
    let captured = connection.window;
    // Where the window ends does not move when its start does; and there is room for the peer's FIN.
    let edge = captured.rcv_wup.wrapping_add(captured.rcv_wnd);
    let rcv_wup = if before(rcv_nxt, captured.rcv_wup) { rcv_nxt } else { captured.rcv_wup };
    let least = connection.rcv_nxt.wrapping_sub(rcv_wup);
    let rcv_wnd = edge.wrapping_sub(rcv_wup).max(least);
    let window = RepairWindow {
        snd_wl1: captured.snd_wl1,
        snd_wnd,
        max_window: captured.max_window.max(snd_wnd),
        rcv_wnd,
        rcv_wup,
    };
    if buffers.window_clamp > 1 {
        // Raising the clamp raises `rcv_ssthresh` to the present window (`tcp_set_window_clamp`): the only way to set it.
        // Without it, a large window would be taken back to the few segments of a new connection.
        let wide = RepairWindow { snd_wl1: rcv_nxt, rcv_wnd: connection.rcv_ssthresh, ..window };
        sys::set_window(fd, wide).attempt("set TCP_REPAIR_WINDOW")?;
        for clamp in [1, buffers.window_clamp] {
            sys::set(fd, libc::SOL_TCP, libc::TCP_WINDOW_CLAMP, clamp).attempt("set TCP_WINDOW_CLAMP")?;
        }
    }
    sys::set_window(fd, window).attempt("set TCP_REPAIR_WINDOW")
}

impl Resume {
    fn go(&self, fd: BorrowedFd<'_>, checkpoint: &TcpSocket, connection: &Connection) -> Result<()> {
        if let Some(expected) = self.expected {
            await_state(fd, expected, connection.stage)?;
        }
        let unsent = connection
            .send
            .get(self.unsent_from..)
            .ok_or(Error::Malformed("it is not the one that the socket was built from"))?;
        if self.own_fin == OwnFin::Silent {
            sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
            ignore_dead(shutdown(fd.as_raw_fd(), Shutdown::Write)).attempt("shut down writing")?;
        }
        checkpoint.options.leave_repair(fd)?;
        if !unsent.is_empty() {
            // A limit on unsent bytes would keep them out of the queue they were in.
            sys::set(fd, libc::SOL_TCP, NOTSENT_LOWAT, i32::MAX).attempt("set TCP_NOTSENT_LOWAT")?;
            match fill(fd, unsent) {
                Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
                Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::ConnectionReset => {}
                filled => filled?,
            }
            let limit = checkpoint.options.int(libc::SOL_TCP, NOTSENT_LOWAT).unwrap_or(0);
            sys::set(fd, libc::SOL_TCP, NOTSENT_LOWAT, limit).attempt("set TCP_NOTSENT_LOWAT")?;
        }
        if self.own_fin == OwnFin::Sent {
            ignore_dead(shutdown(fd.as_raw_fd(), Shutdown::Write)).attempt("shut down writing")?;
        }
        if connection.read_shut {
            ignore_dead(shutdown(fd.as_raw_fd(), Shutdown::Read)).attempt("shut down reading")?;
        }
        if !connection.send.is_empty() || !connection.receive.is_empty() {
            settle_buffers(fd, checkpoint)?;
        }
        if !connection.quick_ack {
            sys::set(fd, libc::SOL_TCP, libc::TCP_QUICKACK, 0).attempt("set TCP_QUICKACK")?;
        }
        Ok(())
    }
}

/// Waits for what was injected to be processed, which it nearly always is already: only a busy host leaves it to a kernel
/// thread (ksoftirqd).
fn await_state(fd: BorrowedFd<'_>, expected: u8, stage: Stage) -> Result<()> {
    /// Together 50 ms: many times what that thread takes, and short enough to be reported in time.
    const TRIES: u32 = 250;
    const PAUSE: Duration = Duration::from_micros(200);
    let mut found = 0;
    for _ in 0..TRIES {
        found = sys::info(fd).attempt("read TCP_INFO")?.state;
        // A peer may have reset it already.
        if found == expected || found == state_number::CLOSE {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    Err(Error::NotInjected { expected: stage, found })
}

/// The peer may reset a connection as soon as it speaks; the program is then told, as by the primary.
fn ignore_dead(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(nix::Error::ENOTCONN) => Ok(()),
        result => result,
    }
}

/// Leaves the address bound and the number of the SYN chosen: outside of repair, `connect` takes a sequence number that
/// is not 0 (`tcp_v4_connect`).
fn set_initial_seq(fd: BorrowedFd<'_>, checkpoint: &TcpSocket, seq: u32) -> Result<()> {
    sys::set_repair(fd, Repair::On).attempt("enter repair")?;
    bind_to(fd, checkpoint.local)?;
    sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
    sys::set_queue_seq(fd, seq).attempt("set write_seq")?;
    checkpoint.options.leave_repair(fd)
}

fn connect_again(fd: BorrowedFd<'_>, checkpoint: &TcpSocket, connecting: &Connecting) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).attempt("read its flags")?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).attempt("set its flags")?;
    let result = connect(fd.as_raw_fd(), &SockaddrStorage::from(connecting.remote));
    fcntl(fd, FcntlArg::F_SETFL(flags)).attempt("set its flags")?;
    match result {
        Ok(()) | Err(nix::Error::EINPROGRESS) => {}
        Err(errno) => return Err(Error::System { attempt: "connect", source: errno.into() }),
    }
    if let Some(value) = connecting.syn_timestamp {
        // `connect` draws a new offset. With this one, our clock goes on from the SYN that was sent before, and a SYN-ACK that
        // echoes it is not from the past.
        sys::set_repair(fd, Repair::On).attempt("enter repair")?;
        let set = sys::set_timestamp(fd, value);
        checkpoint.options.leave_repair(fd)?;
        set.attempt("set TCP_TIMESTAMP")?;
    }
    Ok(())
}

/// A connection at its end, with what can still be read: built with another socket of ours as its peer, over the
/// loopback, which then resets it.
fn dead(
    fd: BorrowedFd<'_>,
    checkpoint: &TcpSocket,
    receive: &[u8],
    error_pending: bool,
    fresh: &Fresh,
) -> Result<()> {
    /// Any: no one else sees them.
    const SEQ: u32 = 1 << 20;
    /// How long a reset may take over the loopback; it is there at once unless the loopback is down.
    const RESET_TIMEOUT_MS: i32 = 1000;

    let local = checkpoint.local;
    if local.port() == 0 || local.ip().is_unspecified() {
        // Never was connected: only shut down.
        ignore_dead(shutdown(fd.as_raw_fd(), Shutdown::Both)).attempt("shut down")?;
        return Ok(());
    }
    set_buffers(fd, checkpoint, fresh, 0, receive.len())?;
    let peer = new_socket(checkpoint.options.family())?;
    sys::set_repair(&peer, Repair::On).attempt("enter repair")?;
    let mut any_port = local;
    any_port.set_port(0);
    bind_to(peer.as_fd(), any_port)?;
    let remote = super::capture::local_address(peer.as_fd())?;
    establish(fd, local, remote, SEQ, SEQ)?;
    sys::select_queue(fd, Queue::Receive).attempt("select the receive queue")?;
    fill(fd, receive)?;

    sys::select_queue(&peer, Queue::Receive).attempt("select the receive queue")?;
    sys::set_queue_seq(&peer, SEQ).attempt("set rcv_nxt")?;
    sys::select_queue(&peer, Queue::Send).attempt("select the send queue")?;
    sys::set_queue_seq(&peer, SEQ.wrapping_add(receive.len() as u32)).attempt("set write_seq")?;
    connect(peer.as_raw_fd(), &SockaddrStorage::from(local)).attempt("connect in repair")?;
    sys::set_repair(&peer, Repair::OffSilently).attempt("leave repair")?;
    // Closing then resets (`__tcp_close`).
    sys::set(&peer, libc::SOL_SOCKET, libc::SO_LINGER, Linger { on: 1, seconds: 0 })
        .attempt("set SO_LINGER")?;
    drop(peer);
    checkpoint.options.leave_repair(fd)?;
    if sys::conditions(fd, RESET_TIMEOUT_MS).attempt("poll")? & libc::POLLRDHUP == 0 {
        let source = io::Error::from(io::ErrorKind::TimedOut);
        return Err(Error::System { attempt: "reset over the loopback (is it up?)", source });
    }
    if !error_pending {
        let _: i32 = sys::get(fd, libc::SOL_SOCKET, libc::SO_ERROR).attempt("take the error")?;
    }
    if !receive.is_empty() { settle_buffers(fd, checkpoint) } else { Ok(()) }
}
