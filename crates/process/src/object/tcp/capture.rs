//! From a socket to its checkpoint, leaving the socket as it was.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrStorage, getsockname};

use super::diag::{Diag, Seen};
use super::error::{Attempt, Error, Refused, Result};
use super::framed::Framed;
use super::segment::Segment;
use super::{
    Buffers, Connecting, Connection, Family, Options, RawSegment, Stage, State, TcpSocket, state_number,
};
use crate::sys::bpf::files::TcpNumbers;
use crate::sys::tcp_repair::{self as sys, Queue, Repair, TcpInfo, info_option};

/// What `TCP_MAXSEG` says of an unconnected socket on which it was not set (`TCP_MSS_DEFAULT`).
const MAX_SEGMENT_DEFAULT: u32 = 536;

/// `include/uapi/asm-generic/socket.h`.
const SO_BINDTOIFINDEX: i32 = 62;

/// How much older than estimated our SYN is said to be: the kernel keeps its timer in ticks, the longest of which is
/// 10 ms (CONFIG_HZ=100), and a timestamp too late is worse than one too early ([`Connecting::syn_timestamp`]).
const SYN_AGE_MARGIN_MS: u32 = 10;

#[derive(Debug)]
pub struct Captured {
    pub socket: TcpSocket,
    /// Segments that the kernel holds to be sent, and has not sent: a timer of the connection ran out while its send queue
    /// was selected, when the kernel marks data as sent without sending it (`tcp_write_xmit`). Send these in its stead, or
    /// the peer waits for a retransmission. Rare, unless the congestion control paces by timer (BBR).
    pub unframed: Vec<RawSegment>,
}

/// What all sockets of a namespace have in common at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// `CLOCK_MONOTONIC` in nanoseconds, of which TCP's clock is the milliseconds (`tcp_clock_ms`, include/net/tcp.h).
    pub monotonic: i64,
    /// `net.ipv4.tcp_pingpong_thresh`: from so many exchanges on acknowledgements are delayed.
    pub pingpong_threshold: u8,
}

impl Clock {
    fn timestamp(self, offset: u32) -> u32 {
        ((self.monotonic / 1_000_000) as u32).wrapping_add(offset)
    }
}

/// Captures sockets of the network namespace that its thread is in.
#[derive(Default)]
pub struct Capturer {
    diag: Option<Diag>,
}

impl Capturer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a connection waits to be accepted, by the addresses of the end that would be.
    pub fn waits(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        match self.diag()?.look_up(local, remote, 0) {
            Ok(seen) => Ok(seen.waits),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn diag(&mut self) -> io::Result<&Diag> {
        match &mut self.diag {
            Some(diag) => Ok(diag),
            empty => Ok(empty.insert(Diag::open()?)),
        }
    }

    /// Captures one socket. Its process must be stopped, and no frame may arrive (nor cross the loopback) meanwhile:
    /// otherwise the checkpoint may not fit together, which is mostly found ([`Error::Changed`]), and the program can fail
    /// a `recv` with EPERM.
    ///
    /// `known` are the options captured before, if no `setsockopt` was noticed since; reading them is most of the cost.
    pub fn capture(&mut self, fd: BorrowedFd<'_>, known: Option<&Options>) -> Result<Captured> {
        let mut options = match known {
            Some(options) => options.clone(),
            None => Options::read(fd)?,
        };
        options.follow_peek_offset(fd)?;
        let info = sys::info(fd).attempt("read TCP_INFO")?;
        let local = local_address(fd)?;
        let buffers = Buffers {
            send: sys::get(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).attempt("read SO_SNDBUF")?,
            receive: sys::get(fd, libc::SOL_SOCKET, libc::SO_RCVBUF).attempt("read SO_RCVBUF")?,
            window_clamp: sys::get(fd, libc::SOL_TCP, libc::TCP_WINDOW_CLAMP)
                .attempt("read TCP_WINDOW_CLAMP")?,
        };
        let mut unframed = Vec::new();
        let state = match info.state {
            state_number::LISTEN => State::Listening {
                max_segment: max_segment(fd)?,
                backlog: info.sacked,
                waiting: info.unacked,
            },
            state_number::CLOSE => closed(fd, &options)?,
            state_number::SYN_SENT => {
                let remote = remote_address(fd, &options)?;
                State::Connecting(self.connecting(fd, &options, &info, local, remote)?)
            }
            number => {
                let stage = Stage::from_number(number).ok_or(Error::Refused(Refused::HalfOpen))?;
                let remote = remote_address(fd, &options)?;
                if known.is_none() && self.look_up(fd, local, remote)?.md5 {
                    return Err(Error::Refused(Refused::Md5));
                }
                let (connection, skipped) = connected(fd, &options, &info, stage, remote)?;
                unframed = segments_of(&connection, local, skipped, info.snd_mss)?;
                State::Connected(Box::new(connection))
            }
        };
        Ok(Captured { socket: TcpSocket { options, buffers, local, state }, unframed })
    }

    /// As [`Capturer::capture`], from an earlier capture of the same socket, from its numbers now, and from what it has said
    /// since in frames, in five system calls or none. `None` where that does not tell all: then everything is to be asked.
    ///
    /// What a connection is beyond these numbers was agreed on in its handshake, or is set by `setsockopt`, which is noticed.
    pub fn follow(
        &self,
        fd: BorrowedFd<'_>,
        earlier: &TcpSocket,
        now: &TcpNumbers,
        clock: Clock,
        framed: &Framed,
    ) -> Result<Option<(Buffers, Connection)>> {
        let State::Connected(was) = &earlier.state else { return Ok(None) };
        let plain = was.stage == Stage::Established
            && now.state == state_number::ESTABLISHED
            && (now.shutdown, now.error, now.errors_queued, now.urgent) == (0, 0, 0, 0)
            && !was.read_shut
            // Nothing that a timer could send while the queue is looked at, nothing that a peek could acknowledge.
            && now.snd_nxt == now.write_seq
            && now.copied_seq == now.rcv_nxt;
        let timestamp = match was.timestamp {
            // It counts microseconds (see `sys::timestamp`).
            Some(value) if value & 1 != 0 => return Ok(None),
            Some(_) => Some(clock.timestamp(now.timestamp_offset) & !1),
            None => None,
        };
        if !plain || earlier.options.peeks_at_offset() {
            return Ok(None);
        }
        let length = now.write_seq.wrapping_sub(now.snd_una) as usize;
        // What was queued at the last capture and is not acknowledged yet, then what has been sent since.
        let acknowledged = now.snd_una.wrapping_sub(was.snd_una) as usize;
        let mut send = was.send.get(acknowledged..).unwrap_or_default().to_vec();
        let sent_since = now.write_seq.wrapping_sub(send.len() as u32).wrapping_sub(now.snd_una) as usize;
        let from = now.snd_una.wrapping_add(send.len() as u32);
        let in_frames =
            send.len() <= length && framed.append(earlier.local, was.remote, from, sent_since, &mut send);
        if !in_frames {
            let repair = InRepair::enter(fd, &earlier.options)?;
            sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
            let peeked = sys::peek(fd, length);
            repair.leave()?;
            send = match peeked {
                Ok(bytes) => bytes,
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Err(Error::Changed),
                Err(source) => return Err(Error::System { attempt: "peek at the send queue", source }),
            };
        }
        if send.len() != length {
            return Err(Error::Changed);
        }
        let connection = Connection {
            snd_una: now.snd_una,
            snd_nxt: now.snd_nxt,
            send,
            rcv_nxt: now.rcv_nxt,
            receive: Vec::new(),
            window: sys::RepairWindow {
                snd_wl1: now.snd_wl1,
                snd_wnd: now.snd_wnd,
                max_window: now.max_window,
                rcv_wnd: now.rcv_wnd,
                rcv_wup: now.rcv_wup,
            },
            rcv_ssthresh: now.rcv_ssthresh,
            timestamp,
            quick_ack: now.pingpong < clock.pingpong_threshold,
            stage: was.stage,
            remote: was.remote,
            max_segment: was.max_segment,
            window_scales: was.window_scales,
            sack: was.sack,
            read_shut: false,
        };
        let buffers =
            Buffers { send: now.send_buffer, receive: now.receive_buffer, window_clamp: now.window_clamp };
        Ok(Some((buffers, connection)))
    }

    fn look_up(&mut self, fd: BorrowedFd<'_>, local: SocketAddr, remote: SocketAddr) -> Result<Seen> {
        let device = sys::get(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX).attempt("read SO_BINDTOIFINDEX")?;
        match self.diag().attempt("open sock_diag")?.look_up(local, remote, device) {
            Ok(seen) => Ok(seen),
            // Not to be passed over: what it would have said decides on a refusal.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(Error::Elsewhere { local, remote })
            }
            Err(source) => Err(Error::System { attempt: "look up sock_diag", source }),
        }
    }

    fn connecting(
        &mut self,
        fd: BorrowedFd<'_>,
        options: &Options,
        info: &TcpInfo,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Connecting> {
        // The SYN itself is 1; more is data of Fast Open.
        if info.unacked > 1 {
            return Err(Error::Refused(Refused::FastOpen));
        }
        let timestamp = sys::timestamp(fd).attempt("read TCP_TIMESTAMP")?;
        let seen = self.look_up(fd, local, remote)?;
        if seen.md5 {
            return Err(Error::Refused(Refused::Md5));
        }
        let age = (info.rto / 1000).saturating_sub(seen.expires_ms) + SYN_AGE_MARGIN_MS;
        let repair = InRepair::enter(fd, options)?;
        sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
        // The SYN is the only number written.
        let initial_seq = sys::queue_seq(fd).attempt("read write_seq")?.wrapping_sub(1);
        repair.leave()?;
        Ok(Connecting { remote, initial_seq, syn_timestamp: Some(timestamp.wrapping_sub(age)) })
    }
}

/// A socket in repair, which leaves it however the capture ends: without a frame, and with `SO_REUSEADDR` as it was.
struct InRepair<'a> {
    fd: BorrowedFd<'a>,
    options: &'a Options,
    left: bool,
}

impl<'a> InRepair<'a> {
    fn enter(fd: BorrowedFd<'a>, options: &'a Options) -> Result<Self> {
        sys::set_repair(fd, Repair::On).attempt("enter repair")?;
        Ok(Self { fd, options, left: false })
    }

    fn leave(mut self) -> Result<()> {
        self.left = true;
        self.options.leave_repair(self.fd)
    }
}

impl Drop for InRepair<'_> {
    fn drop(&mut self) {
        if !self.left {
            // On the way out of another error, which is the one to report.
            let _ = self.options.leave_repair(self.fd);
        }
    }
}

/// The connection, and the sequence number up to which the kernel marked data as sent meanwhile.
fn connected(
    fd: BorrowedFd<'_>,
    options: &Options,
    info: &TcpInfo,
    stage: Stage,
    remote: SocketAddr,
) -> Result<(Connection, u32)> {
    if info.options & info_option::ECN != 0 {
        return Err(Error::Refused(Refused::Ecn));
    }
    let conditions = sys::conditions(fd, 0).attempt("poll")?;
    if conditions & libc::POLLERR != 0 {
        return Err(Error::Refused(Refused::ErrorQueue));
    }
    // Peeking may send an acknowledgement that was due (`tcp_cleanup_rbuf`), so the window is read after it.
    let receive = receive_queue(fd, options, conditions)?;
    let quick_ack = sys::get::<i32>(fd, libc::SOL_TCP, libc::TCP_QUICKACK).attempt("read TCP_QUICKACK")? != 0;
    let timestamp = if info.options & info_option::TIMESTAMPS != 0 {
        Some(sys::timestamp(fd).attempt("read TCP_TIMESTAMP")?)
    } else {
        None
    };

    let repair = InRepair::enter(fd, options)?;
    let max_segment = sys::get(fd, libc::SOL_TCP, libc::TCP_MAXSEG).attempt("read the segment size")?;
    let window = sys::window(fd).attempt("read TCP_REPAIR_WINDOW")?;
    sys::select_queue(fd, Queue::Receive).attempt("select the receive queue")?;
    let rcv_nxt = sys::queue_seq(fd).attempt("read rcv_nxt")?;
    let unacknowledged = sys::unacknowledged(fd).attempt("read SIOCOUTQ")?;
    let unsent = sys::unsent(fd).attempt("read SIOCOUTQNSD")?;
    // As briefly as can be: see `Captured::unframed`.
    sys::select_queue(fd, Queue::Send).attempt("select the send queue")?;
    let write_seq = sys::queue_seq(fd).attempt("read write_seq")?;
    let send = if unacknowledged == 0 {
        Vec::new()
    } else {
        match sys::peek(fd, unacknowledged as usize) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Err(Error::Changed),
            peeked => peeked.attempt("peek at the send queue")?,
        }
    };
    repair.leave()?;
    let unsent_after = if unsent == 0 { 0 } else { sys::unsent(fd).attempt("read SIOCOUTQNSD")? };

    let snd_una = write_seq.wrapping_sub(unacknowledged);
    let snd_nxt = write_seq.wrapping_sub(unsent);
    let connection = Connection {
        stage,
        remote,
        snd_una,
        snd_nxt,
        send,
        rcv_nxt,
        receive,
        window,
        rcv_ssthresh: info.rcv_ssthresh,
        max_segment,
        window_scales: info.window_scales(),
        sack: info.options & info_option::SACK != 0,
        timestamp,
        read_shut: conditions & libc::POLLRDHUP != 0 && !stage.peer_fin(),
        quick_ack,
    };
    // The lengths were read apart from the bytes; and an unacknowledged FIN is a number without a byte.
    let fits = connection.write_seq() == write_seq
        && unsent <= unacknowledged
        && sys::info(fd).attempt("read TCP_INFO")?.state == info.state;
    if fits { Ok((connection, write_seq.wrapping_sub(unsent_after))) } else { Err(Error::Changed) }
}

/// What the kernel should have sent of `connection`, from `snd_nxt` up to `skipped`.
fn segments_of(
    connection: &Connection,
    local: SocketAddr,
    skipped: u32,
    segment_size: u32,
) -> Result<Vec<RawSegment>> {
    let mut segments = Vec::new();
    let mut seq = connection.snd_nxt;
    let data_end = connection.snd_una.wrapping_add(connection.send.len() as u32);
    while super::before(seq, skipped) {
        let start = seq.wrapping_sub(connection.snd_una) as usize;
        let end_seq = if super::before(data_end, skipped) { data_end } else { skipped };
        let length = (end_seq.wrapping_sub(seq)).min(segment_size.max(1));
        let next = seq.wrapping_add(length);
        let fin = next == data_end && skipped != data_end;
        let payload = connection.send.get(start..start + length as usize).ok_or(Error::Changed)?;
        let segment = Segment {
            source: local,
            destination: connection.remote,
            seq,
            ack: connection.rcv_nxt,
            window: connection.advertised_window(),
            fin,
            timestamps: connection.timestamp.map(|value| (value, 0)),
            payload,
        };
        segments.push(segment.build().ok_or(Error::Malformed("its addresses are of two families"))?);
        seq = next.wrapping_add(u32::from(fin));
    }
    Ok(segments)
}

/// The bytes received and not read. Refuses an urgent one among them: it leaves the stream (`SO_OOBINLINE` off) or is a
/// mark in it, and neither can be rebuilt.
fn receive_queue(fd: BorrowedFd<'_>, options: &Options, conditions: i16) -> Result<Vec<u8>> {
    let length = sys::unread(fd).attempt("read SIOCINQ")?;
    let mut urgent = conditions & libc::POLLPRI != 0;
    if !urgent && options.int(libc::SOL_SOCKET, libc::SO_OOBINLINE) == Some(0) {
        // One that was read leaves a hole that no condition shows; but SIOCINQ ends before it, unless urgent data
        // count as ordinary (`tcp_inq`).
        let set = |value: i32| {
            sys::set(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, value).attempt("set SO_OOBINLINE")
        };
        set(1)?;
        let inline = sys::unread(fd);
        set(0)?;
        urgent = inline.attempt("read SIOCINQ")? != length;
    }
    if urgent {
        return Err(Error::Refused(Refused::Urgent));
    }
    // Not even a peek when there is nothing: it would take a pending error.
    if length == 0 {
        return Ok(Vec::new());
    }
    let bytes = options.without_peek_offset(fd, || sys::peek(fd, length as usize))?;
    match bytes {
        Ok(bytes) if bytes.len() == length as usize => Ok(bytes),
        Ok(_) => Err(Error::Changed),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Error::Changed),
        Err(source) => Err(Error::System { attempt: "peek at the receive queue", source }),
    }
}

/// CLOSE: fresh, or after the end. After the end both directions are shut (`tcp_done`).
fn closed(fd: BorrowedFd<'_>, options: &Options) -> Result<State> {
    let conditions = sys::conditions(fd, 0).attempt("poll")?;
    if conditions & libc::POLLRDHUP == 0 {
        return Ok(State::Idle { max_segment: max_segment(fd)? });
    }
    Ok(State::Dead {
        receive: receive_queue(fd, options, conditions)?,
        error_pending: conditions & libc::POLLERR != 0,
    })
}

/// `TCP_MAXSEG` of an unconnected socket, if the program has set it.
fn max_segment(fd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let value = sys::get(fd, libc::SOL_TCP, libc::TCP_MAXSEG).attempt("read TCP_MAXSEG")?;
    Ok((value != MAX_SEGMENT_DEFAULT).then_some(value))
}

fn remote_address(fd: BorrowedFd<'_>, options: &Options) -> Result<SocketAddr> {
    sys::peer_name(fd, options.family() == Family::V6).attempt("read the remote address")
}

pub(super) fn local_address(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).attempt("read the local address")?;
    if let Some(v4) = name.as_sockaddr_in() {
        return Ok(SocketAddrV4::new(v4.ip(), v4.port()).into());
    }
    let v6 = name.as_sockaddr_in6().ok_or(Error::Refused(Refused::NotTcp))?;
    Ok(SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into())
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;
    use crate::sys::tcp_repair::RepairWindow;

    fn queue_of(stage: Stage, send: Vec<u8>, sent: u32) -> Connection {
        let snd_una = u32::MAX - 1000;
        Connection {
            stage,
            remote: "10.0.0.2:2".parse().unwrap(),
            snd_una,
            snd_nxt: snd_una.wrapping_add(sent),
            send,
            rcv_nxt: 77,
            receive: Vec::new(),
            window: RepairWindow { rcv_wup: 77, rcv_wnd: 1 << 16, ..RepairWindow::default() },
            rcv_ssthresh: 0,
            max_segment: 1460,
            window_scales: Some((7, 7)),
            sack: true,
            timestamp: Some(5),
            read_shut: false,
            quick_ack: true,
        }
    }

    /// What the kernel skipped comes out as segments: all of it, none longer than a segment, the FIN last.
    #[test]
    fn skipped_data_becomes_segments() {
        let bytes: Vec<u8> = (0..5000).map(|place| (place % 251) as u8).collect();
        for (stage, skipped, fin) in [
            (Stage::Established, 4500, false),
            (Stage::Established, 5000, false),
            (Stage::FinWait1, 5001, true),
        ] {
            let connection = queue_of(stage, bytes.clone(), 500);
            let end = connection.snd_una.wrapping_add(skipped);
            let segments = segments_of(&connection, "10.0.0.1:1".parse().unwrap(), end, 1448).unwrap();
            let mut payload = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let packet = SlicedPacket::from_ip(&segment.packet).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
                let place = connection.snd_nxt.wrapping_add(payload.len() as u32);
                assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (place, 77));
                assert_eq!(tcp.window_size(), 1 << 9);
                assert!(tcp.payload().len() <= 1448);
                assert_eq!(tcp.fin(), fin && index + 1 == segments.len());
                payload.extend_from_slice(tcp.payload());
            }
            assert_eq!(payload, bytes[500..skipped.min(5000) as usize]);
        }
    }

    #[test]
    fn a_skipped_fin_alone_is_one_segment() {
        let connection = queue_of(Stage::LastAck, vec![1; 10], 10);
        let end = connection.snd_una.wrapping_add(11);
        let segments = segments_of(&connection, "10.0.0.1:1".parse().unwrap(), end, 1448).unwrap();
        assert_eq!(segments.len(), 1);
    }

    /// Following a connection by its numbers gives what asking for everything gives.
    #[test]
    fn a_connection_that_is_followed_is_the_one_that_is_captured() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsFd;

        use crate::sys::bpf::files::Lister;

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut capturer = Capturer::new();
        let table = Lister::shared().unwrap().table(std::process::id() as i32).unwrap();
        let numbers = |socket: &TcpStream| {
            let files = table.read().unwrap();
            files.iter().find(|file| file.fd == socket.as_raw_fd()).unwrap().tcp.unwrap()
        };
        let mut earlier = capturer.capture(server.as_fd(), None).unwrap().socket;
        for round in 1..5usize {
            client.write_all(&vec![1; 1000 * round]).unwrap();
            server.read_exact(&mut vec![0; 1000 * round]).unwrap();
            server.write_all(&vec![2; 700 * round]).unwrap();
            let now = numbers(&server);
            let clock =
                Clock { monotonic: crate::sys::task::clock(libc::CLOCK_MONOTONIC), pingpong_threshold: 1 };
            // In every other round as if its frames had been seen.
            let mut framed = Framed::default();
            let State::Connected(was) = &earlier.state else { panic!("{:?}", earlier.state) };
            if round % 2 == 0 {
                framed.note(&frame(earlier.local, was.remote, was.write_seq(), &vec![2; 700 * round]));
            }
            let followed = capturer.follow(server.as_fd(), &earlier, &now, clock, &framed).unwrap();
            let (buffers, mut connection) = followed.expect("it is established and all is sent");
            let whole = capturer.capture(server.as_fd(), Some(&earlier.options)).unwrap().socket;
            let State::Connected(asked) = &whole.state else { panic!("{:?}", whole.state) };
            let (then, later) = (connection.timestamp.unwrap(), asked.timestamp.unwrap());
            assert!(later.wrapping_sub(then) < 60_000, "{then} then {later}");
            connection.timestamp = asked.timestamp;
            assert_eq!((buffers, &connection), (whole.buffers, &**asked), "round {round}");
            earlier = whole;
        }
        // What is unread, or at its end, is not told by numbers.
        client.write_all(b"more").unwrap();
        let clock = Clock { monotonic: 0, pingpong_threshold: 1 };
        let nothing = Framed::default();
        let unread = capturer.follow(server.as_fd(), &earlier, &numbers(&server), clock, &nothing).unwrap();
        assert_eq!(unread, None);
        server.read_exact(&mut [0; 4]).unwrap();
        drop(client);
        let end = capturer.follow(server.as_fd(), &earlier, &numbers(&server), clock, &nothing).unwrap();
        assert_eq!(end, None);
    }

    fn frame(from: SocketAddr, to: SocketAddr, seq: u32, payload: &[u8]) -> Vec<u8> {
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (from, to) else { panic!("IPv4 here") };
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(source.ip().octets(), destination.ip().octets(), 64)
            .tcp(from.port(), to.port(), seq, 1000)
            .ack(1)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }
}
