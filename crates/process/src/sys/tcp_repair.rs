//! `TCP_REPAIR` and what surrounds it: typed socket options, queue lengths, peeking (`tcp(7)`;
//! `include/uapi/linux/tcp.h`; `net/ipv4/tcp.c`).
//!
//! Every function is one system call on a descriptor and says nothing about when it may be used;
//! [`crate::object::tcp`] does.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// Option numbers of `include/uapi/linux/tcp.h`.
mod number {
    pub const TCP_REPAIR: i32 = 19;
    pub const TCP_REPAIR_QUEUE: i32 = 20;
    pub const TCP_QUEUE_SEQ: i32 = 21;
    pub const TCP_REPAIR_OPTIONS: i32 = 22;
    pub const TCP_TIMESTAMP: i32 = 24;
    pub const TCP_REPAIR_WINDOW: i32 = 29;
}

/// Codes of `struct tcp_repair_opt`: the kinds of the TCP options themselves (`include/net/tcp.h`, `TCPOPT_*`).
mod option_kind {
    pub const MSS: u32 = 2;
    pub const WINDOW: u32 = 3;
    pub const SACK_PERMITTED: u32 = 4;
    pub const TIMESTAMP: u32 = 8;
}

/// `TCP_INFO`, up to the fields of Linux 6.7 (`struct tcp_info`). An older kernel fills less; the rest stays zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpInfo {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    wscales: u8,
    flags: u8,
    pub rto: u32,
    pub ato: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    /// Segments in flight; of a listener: connections waiting for `accept`.
    pub unacked: u32,
    /// Segments selectively acknowledged; of a listener: its backlog.
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub last_data_sent: u32,
    pub last_ack_sent: u32,
    pub last_data_recv: u32,
    pub last_ack_recv: u32,
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt: u32,
    pub rttvar: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_time: u64,
    pub rwnd_limited: u64,
    pub sndbuf_limited: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rehash: u32,
    pub total_rto: u16,
    pub total_rto_recoveries: u16,
    pub total_rto_time: u32,
}

/// Bits of [`TcpInfo::options`] (`TCPI_OPT_*`).
pub mod info_option {
    pub const TIMESTAMPS: u8 = 1;
    pub const SACK: u8 = 2;
    pub const WSCALE: u8 = 4;
    pub const ECN: u8 = 8;
}

impl TcpInfo {
    /// Window scale of the peer and of ourselves, if negotiated.
    pub fn window_scales(&self) -> Option<(u8, u8)> {
        (self.options & info_option::WSCALE != 0).then_some((self.wscales & 0xf, self.wscales >> 4))
    }
}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RepairWindow {
    /// Sequence number of the segment that last updated the send window.
    pub snd_wl1: u32,
    /// What the peer lets us send, in bytes.
    pub snd_wnd: u32,
    /// The largest it ever let us.
    pub max_window: u32,
    /// What we let the peer send, from `rcv_wup` on.
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
}

/// `struct linger`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Linger {
    pub on: i32,
    pub seconds: i32,
}

/// `struct __kernel_sock_timeval`: seconds and microseconds of `SO_RCVTIMEO_NEW`, `SO_SNDTIMEO_NEW`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Timeout {
    pub seconds: i64,
    pub microseconds: i64,
}

/// Types that the kernel reads and writes as plain bytes.
///
/// # Safety
/// Every pattern of bytes is a valid value, and there is no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: integers have neither padding nor invalid values.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: `repr(C)`, integers only; every field starts where the one before it ends (the u64 fields at multiples
// of 8: offsets 104, 160, 200), and the size, 248, is a multiple of 8.
unsafe impl Plain for TcpInfo {}
// SAFETY: five u32.
unsafe impl Plain for RepairWindow {}
// SAFETY: two i32.
unsafe impl Plain for Linger {}
// SAFETY: two i64.
unsafe impl Plain for Timeout {}

const _: () = assert!(size_of::<TcpInfo>() == 248);

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `getsockopt` of a plain value. What the kernel does not fill is zero.
pub fn get<T: Plain>(fd: impl AsFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long.
    check(unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut length)
    })?;
    // SAFETY: zeroed before, and any bytes are a valid `T` by the contract of `Plain`.
    Ok(unsafe { value.assume_init() })
}

/// `getsockopt` of bytes, up to the length of `buffer`; returns those that the kernel says it has.
pub fn get_bytes(fd: impl AsFd, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<&[u8]> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `buffer`, which is that long.
    check(unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &mut length)
    })?;
    let length = (length as usize).min(buffer.len());
    Ok(&buffer[..length])
}

/// The length that `getsockopt` reports for an empty buffer.
pub fn get_length(fd: impl AsFd, level: i32, name: i32) -> io::Result<usize> {
    let mut length: libc::socklen_t = 0;
    let mut nothing = [0u8; 1];
    // SAFETY: a length of 0 lets the kernel write nothing to `nothing`.
    check(unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, nothing.as_mut_ptr().cast(), &mut length)
    })?;
    Ok(length as usize)
}

/// `setsockopt` of a plain value.
pub fn set<T: Plain>(fd: impl AsFd, level: i32, name: i32, value: T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is initialised and `length` bytes long.
    check(unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) })
        .map(drop)
}

/// `setsockopt` of bytes.
pub fn set_bytes(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: `value` is `length` bytes long.
    check(unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) })
        .map(drop)
}

/// The values of `TCP_REPAIR` (`include/uapi/linux/tcp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Sets `SO_REUSEADDR` to a value above all others, and selects no queue.
    On,
    /// Leaves repair, and asks the peer for an acknowledgement by a window probe. Clears `SO_REUSEADDR`.
    Off,
    /// Leaves repair without a frame. Clears `SO_REUSEADDR`.
    OffSilently,
}

pub fn set_repair(fd: impl AsFd, repair: Repair) -> io::Result<()> {
    let value = match repair {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    set(fd, libc::SOL_TCP, number::TCP_REPAIR, value)
}

/// The values of `TCP_REPAIR_QUEUE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    None,
    Receive,
    /// While it is selected the kernel marks data as sent *without sending it*, whoever asks: a `send`, an arriving
    /// acknowledgement, a timer (`tcp_write_xmit`).
    Send,
}

pub fn select_queue(fd: impl AsFd, queue: Queue) -> io::Result<()> {
    set(fd, libc::SOL_TCP, number::TCP_REPAIR_QUEUE, queue as i32)
}

/// `write_seq` of the send queue, `rcv_nxt` of the receive queue.
pub fn queue_seq(fd: impl AsFd) -> io::Result<u32> {
    get(fd, libc::SOL_TCP, number::TCP_QUEUE_SEQ)
}

/// Allowed before `connect` only.
pub fn set_queue_seq(fd: impl AsFd, seq: u32) -> io::Result<()> {
    set(fd, libc::SOL_TCP, number::TCP_QUEUE_SEQ, seq)
}

pub fn window(fd: impl AsFd) -> io::Result<RepairWindow> {
    get(fd, libc::SOL_TCP, number::TCP_REPAIR_WINDOW)
}

pub fn set_window(fd: impl AsFd, window: RepairWindow) -> io::Result<()> {
    set(fd, libc::SOL_TCP, number::TCP_REPAIR_WINDOW, window)
}

/// The clock of the TCP timestamp option, with this socket's offset. From 6.7 on the lowest bit says whether it counts
/// microseconds.
pub fn timestamp(fd: impl AsFd) -> io::Result<u32> {
    get(fd, libc::SOL_TCP, number::TCP_TIMESTAMP)
}

pub fn set_timestamp(fd: impl AsFd, value: u32) -> io::Result<()> {
    set(fd, libc::SOL_TCP, number::TCP_TIMESTAMP, value)
}

/// What the handshake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    pub mss: u32,
    /// Of the peer and of ourselves.
    pub window_scales: Option<(u8, u8)>,
    pub sack: bool,
    pub timestamps: bool,
}

/// `TCP_REPAIR_OPTIONS`: allowed on a connection in repair that has sent nothing yet.
pub fn set_agreed(fd: impl AsFd, agreed: Agreed) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * 8);
    let mut push = |kind: u32, value: u32| {
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&value.to_ne_bytes());
    };
    push(option_kind::MSS, agreed.mss);
    if let Some((peer, own)) = agreed.window_scales {
        push(option_kind::WINDOW, u32::from(peer) | u32::from(own) << 16);
    }
    if agreed.sack {
        push(option_kind::SACK_PERMITTED, 0);
    }
    if agreed.timestamps {
        push(option_kind::TIMESTAMP, 0);
    }
    set_bytes(fd, libc::SOL_TCP, number::TCP_REPAIR_OPTIONS, &bytes)
}

pub fn info(fd: impl AsFd) -> io::Result<TcpInfo> {
    get(fd, libc::SOL_TCP, libc::TCP_INFO)
}

/// `SO_PEERNAME`: the remote address, also while connecting, when `getpeername` says ENOTCONN (`inet_getname` with
/// `peer` 2). Of an AF_INET6 socket, `v6` is true: asked for more bytes than the address has, the kernel says EINVAL.
pub fn peer_name(fd: impl AsFd, v6: bool) -> io::Result<SocketAddr> {
    let mut buffer = [0; size_of::<libc::sockaddr_in6>()];
    let length = if v6 { buffer.len() } else { size_of::<libc::sockaddr_in>() };
    let bytes = get_bytes(fd, libc::SOL_SOCKET, libc::SO_PEERNAME, &mut buffer[..length])?;
    parse_address(bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// `struct sockaddr_in`, `struct sockaddr_in6`.
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
        bytes.get(offset..offset + N)?.try_into().ok()
    }
    let port = u16::from_be_bytes(at(bytes, 2)?);
    match i32::from(u16::from_ne_bytes(at(bytes, 0)?)) {
        libc::AF_INET => Some(SocketAddr::from((Ipv4Addr::from(at::<4>(bytes, 4)?), port))),
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(at(bytes, 4)?);
            let scope = u32::from_ne_bytes(at(bytes, 24)?);
            Some(SocketAddrV6::new(Ipv6Addr::from(at::<16>(bytes, 8)?), port, flow, scope).into())
        }
        _ => None,
    }
}

fn ioctl_int(fd: impl AsFd, request: libc::Ioctl) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    // SAFETY: these requests write one int (`tcp_ioctl`).
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) })?;
    u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// `SIOCINQ`: bytes received and not read, up to an urgent mark.
pub fn unread(fd: impl AsFd) -> io::Result<u32> {
    ioctl_int(fd, libc::FIONREAD)
}

/// `SIOCOUTQ`: sequence numbers written and not acknowledged, our FIN included.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<u32> {
    ioctl_int(fd, libc::TIOCOUTQ)
}

/// `SIOCOUTQNSD` (`include/uapi/linux/sockios.h`): sequence numbers written and not sent.
pub fn unsent(fd: impl AsFd) -> io::Result<u32> {
    const SIOCOUTQNSD: libc::Ioctl = 0x894B;
    ioctl_int(fd, SIOCOUTQNSD)
}

/// Reads up to `length` bytes of a queue without taking them, into a new vector.
///
/// In repair with [`Queue::Send`] selected that is the send queue, which fails with `EFAULT` if it holds more.
pub fn peek(fd: impl AsFd, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::<u8>::with_capacity(length);
    // SAFETY: the kernel writes at most `length` bytes, for which there is room.
    let read = check_size(unsafe {
        libc::recv(
            fd.as_fd().as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            length,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    })?;
    // SAFETY: the kernel wrote `read` bytes, and says no more than it was given room for.
    unsafe { bytes.set_len(read.min(length)) };
    Ok(bytes)
}

/// Writes without waiting and without SIGPIPE.
pub fn send(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for its length.
    check_size(unsafe { libc::send(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// The conditions of `poll(2)` among POLLPRI, POLLRDHUP, POLLERR and POLLHUP that hold within `timeout` milliseconds.
pub fn conditions(fd: impl AsFd, timeout: i32) -> io::Result<i16> {
    let events = libc::POLLPRI | libc::POLLRDHUP;
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, valid for the call.
    check(unsafe { libc::poll(&raw mut poll, 1, timeout) })?;
    Ok(poll.revents)
}

/// `listen(2)` with the backlog as it is: `nix` refuses those above the host's SOMAXCONN.
pub fn listen(fd: impl AsFd, backlog: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn lengths_and_info_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(unread(&server).unwrap(), 5);
        assert_eq!(peek(&server, 3).unwrap(), b"hel");
        assert_eq!(peek(&server, 100).unwrap(), b"hello");
        assert_eq!(unread(&server).unwrap(), 5);
        assert_eq!(info(&server).unwrap().bytes_received, 5);
        assert_eq!(info(&server).unwrap().state, 1);
        assert_eq!(conditions(&server, 0).unwrap(), 0);
        drop(client);
        assert_ne!(conditions(&server, 10_000).unwrap() & libc::POLLRDHUP, 0);
    }

    #[test]
    fn backlog_is_seen_in_info() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listen(&listener, 77).unwrap();
        assert_eq!(info(&listener).unwrap().sacked, 77);
    }
}
