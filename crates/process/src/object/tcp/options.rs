//! Socket options: read all that a program can have set, set all that differ from a fresh socket's.
//!
//! Three properties cannot be read from outside and are refused when they are set (`tree/notices.rs`): BPF programs attached
//! to a `SO_REUSEPORT` group, keys of signatures, and `TCP_FASTOPEN_KEY`. `SO_INCOMING_CPU` is left out: the
//! kernel overwrites it with every segment.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::error::{Attempt, Error, Refused, Result};
use crate::sys::datagram;
use crate::sys::tcp_repair::{self as sys, Linger, Repair, Timeout};

/// Whether a socket was made as AF_INET or AF_INET6; the latter can hold IPv4 connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

struct Int {
    name: &'static str,
    level: i32,
    number: i32,
    v6_only: bool,
}

const fn int(name: &'static str, level: i32, number: i32) -> Int {
    Int { name, level, number, v6_only: false }
}

const fn int6(name: &'static str, number: i32) -> Int {
    Int { name, level: libc::SOL_IPV6, number, v6_only: true }
}

/// Everything that is one int and keeps its value until the program sets it again, in the order of setting:
/// `IP_TOS` sets the priority as well (`do_ip_setsockopt`), so `SO_PRIORITY` follows it. Numbers without a name in
/// `libc` are from `include/uapi/asm-generic/socket.h` and `include/uapi/linux/{in,in6,tcp}.h`.
const INTS: &[Int] = &[
    int("IP_TOS", libc::SOL_IP, libc::IP_TOS),
    int("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY),
    int("SO_DEBUG", libc::SOL_SOCKET, libc::SO_DEBUG),
    int("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE),
    int("SO_BROADCAST", libc::SOL_SOCKET, libc::SO_BROADCAST),
    int("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    int("SO_OOBINLINE", libc::SOL_SOCKET, libc::SO_OOBINLINE),
    int("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT),
    int("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    int("SO_TIMESTAMP", libc::SOL_SOCKET, 29),
    int("SO_TIMESTAMPNS", libc::SOL_SOCKET, 35),
    int("SO_TIMESTAMP_NEW", libc::SOL_SOCKET, 63),
    int("SO_TIMESTAMPNS_NEW", libc::SOL_SOCKET, 64),
    int("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK),
    int("SO_RXQ_OVFL", libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    int("SO_SELECT_ERR_QUEUE", libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE),
    int("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    int("SO_PREFER_BUSY_POLL", libc::SOL_SOCKET, 69),
    int("SO_RESERVE_MEM", libc::SOL_SOCKET, 73),
    int("SO_TXREHASH", libc::SOL_SOCKET, 74),
    int("SO_RCVMARK", libc::SOL_SOCKET, 75),
    int("SO_RCVPRIORITY", libc::SOL_SOCKET, 82),
    int("IP_TTL", libc::SOL_IP, libc::IP_TTL),
    int("IP_PKTINFO", libc::SOL_IP, libc::IP_PKTINFO),
    int("IP_MTU_DISCOVER", libc::SOL_IP, libc::IP_MTU_DISCOVER),
    int("IP_RECVERR", libc::SOL_IP, libc::IP_RECVERR),
    int("IP_RECVTTL", libc::SOL_IP, libc::IP_RECVTTL),
    int("IP_RECVTOS", libc::SOL_IP, libc::IP_RECVTOS),
    int("IP_FREEBIND", libc::SOL_IP, libc::IP_FREEBIND),
    int("IP_TRANSPARENT", libc::SOL_IP, libc::IP_TRANSPARENT),
    int("IP_MINTTL", libc::SOL_IP, 21),
    int("IP_BIND_ADDRESS_NO_PORT", libc::SOL_IP, 24),
    int("IP_LOCAL_PORT_RANGE", libc::SOL_IP, 51),
    int6("IPV6_V6ONLY", libc::IPV6_V6ONLY),
    int6("IPV6_UNICAST_HOPS", libc::IPV6_UNICAST_HOPS),
    int6("IPV6_MTU_DISCOVER", libc::IPV6_MTU_DISCOVER),
    int6("IPV6_RECVERR", libc::IPV6_RECVERR),
    int6("IPV6_FLOWINFO_SEND", 33),
    int6("IPV6_DONTFRAG", 62),
    int6("IPV6_TCLASS", libc::IPV6_TCLASS),
    int6("IPV6_AUTOFLOWLABEL", 70),
    int6("IPV6_ADDR_PREFERENCES", 72),
    int6("IPV6_MINHOPCOUNT", 73),
    int6("IPV6_FREEBIND", 78),
    int("TCP_NODELAY", libc::SOL_TCP, libc::TCP_NODELAY),
    int("TCP_CORK", libc::SOL_TCP, libc::TCP_CORK),
    int("TCP_KEEPIDLE", libc::SOL_TCP, libc::TCP_KEEPIDLE),
    int("TCP_KEEPINTVL", libc::SOL_TCP, libc::TCP_KEEPINTVL),
    int("TCP_KEEPCNT", libc::SOL_TCP, libc::TCP_KEEPCNT),
    int("TCP_SYNCNT", libc::SOL_TCP, libc::TCP_SYNCNT),
    int("TCP_LINGER2", libc::SOL_TCP, libc::TCP_LINGER2),
    int("TCP_DEFER_ACCEPT", libc::SOL_TCP, libc::TCP_DEFER_ACCEPT),
    int("TCP_THIN_LINEAR_TIMEOUTS", libc::SOL_TCP, 16),
    int("TCP_USER_TIMEOUT", libc::SOL_TCP, libc::TCP_USER_TIMEOUT),
    int("TCP_FASTOPEN", libc::SOL_TCP, TCP_FASTOPEN),
    int("TCP_NOTSENT_LOWAT", libc::SOL_TCP, NOTSENT_LOWAT),
    int("TCP_FASTOPEN_NO_COOKIE", libc::SOL_TCP, 34),
    int("TCP_INQ", libc::SOL_TCP, 36),
    int("TCP_TX_DELAY", libc::SOL_TCP, 37),
    int("TCP_RTO_MAX_MS", libc::SOL_TCP, 44),
    int("TCP_RTO_MIN_US", libc::SOL_TCP, 45),
    int("TCP_DELACK_MAX_US", libc::SOL_TCP, 46),
];

pub(super) const NOTSENT_LOWAT: i32 = 25;
const TCP_FASTOPEN: i32 = 23;
const SO_LOCK_FILTER: i32 = 44;
const SO_RCVTIMEO_NEW: i32 = 66;
const SO_SNDTIMEO_NEW: i32 = 67;
/// `IPPROTO_MPTCP` (`include/uapi/linux/in.h`).
const IPPROTO_MPTCP: i32 = 262;
const TCP_ULP: i32 = 31;
/// `TCP_IS_MPTCP`: also true of a socket that has fallen back is 0.
const TCP_IS_MPTCP: i32 = 43;
/// The longest names of a device (IFNAMSIZ), a congestion control (TCP_CA_NAME_MAX), an upper layer (TCP_ULP_NAME_MAX).
const NAME_MAX: usize = 16;

/// Ints that are refused when they are not 0.
const REFUSED_INTS: &[(i32, i32, Refused)] = &[
    (libc::SOL_SOCKET, 60, Refused::ZeroCopy),
    (libc::SOL_SOCKET, 37, Refused::Timestamping),
    (libc::SOL_SOCKET, 65, Refused::Timestamping),
    (libc::SOL_SOCKET, 61, Refused::TransmitTime),
    (libc::SOL_TCP, 30, Refused::FastOpen),
    (libc::SOL_TCP, 27, Refused::SaveSyn),
    (libc::SOL_TCP, TCP_IS_MPTCP, Refused::Multipath),
];

/// IPv6 headers that a socket can add to all it sends: IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS.
const V6_HEADERS: &[i32] = &[54, 55, 57, 59];

/// What a program sets by `setsockopt`, except what the kernel changes by itself (buffer sizes, quick acknowledgements).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    family: Family,
    /// In the order of [`INTS`]; `None` where this kernel or this family lacks the option.
    ints: Vec<Option<i32>>,
    reuse_address: bool,
    /// `SO_BUF_LOCK`: which of the buffer sizes the program has set.
    pub(super) buffer_locks: i32,
    linger: Linger,
    receive_timeout: Timeout,
    send_timeout: Timeout,
    max_pacing_rate: u64,
    /// The place of the next peek; -1 unless the program uses it.
    peek_offset: i32,
    device: Vec<u8>,
    congestion: Vec<u8>,
    /// A classic BPF program (`SO_GET_FILTER`), and whether it may be changed.
    #[serde(with = "serde_bytes")]
    filter: Vec<u8>,
    filter_locked: bool,
}

impl Options {
    /// Reads all of them, and refuses what cannot be set again.
    pub fn read(fd: BorrowedFd<'_>) -> Result<Self> {
        let family =
            match sys::get::<i32>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).attempt("read the family")? {
                libc::AF_INET => Family::V4,
                libc::AF_INET6 => Family::V6,
                _ => return Err(Error::Refused(Refused::NotTcp)),
            };
        match sys::get::<i32>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).attempt("read the protocol")? {
            libc::IPPROTO_TCP => {}
            IPPROTO_MPTCP => return Err(Error::Refused(Refused::Multipath)),
            _ => return Err(Error::Refused(Refused::NotTcp)),
        }
        refuse(fd, family)?;
        let mut ints = Vec::with_capacity(INTS.len());
        for option in INTS {
            ints.push(if option.v6_only && family == Family::V4 {
                None
            } else {
                present(sys::get(fd, option.level, option.number)).attempt(option.name)?
            });
        }
        let mut name = [0; NAME_MAX];
        let socket = libc::SOL_SOCKET;
        Ok(Self {
            family,
            ints,
            reuse_address: sys::get::<i32>(fd, socket, libc::SO_REUSEADDR).attempt("read SO_REUSEADDR")? != 0,
            buffer_locks: sys::get(fd, socket, libc::SO_BUF_LOCK).attempt("read SO_BUF_LOCK")?,
            linger: sys::get(fd, socket, libc::SO_LINGER).attempt("read SO_LINGER")?,
            receive_timeout: sys::get(fd, socket, SO_RCVTIMEO_NEW).attempt("read SO_RCVTIMEO")?,
            send_timeout: sys::get(fd, socket, SO_SNDTIMEO_NEW).attempt("read SO_SNDTIMEO")?,
            max_pacing_rate: sys::get(fd, socket, libc::SO_MAX_PACING_RATE)
                .attempt("read SO_MAX_PACING_RATE")?,
            peek_offset: sys::get(fd, socket, libc::SO_PEEK_OFF).attempt("read SO_PEEK_OFF")?,
            device: sys::get_bytes(fd, socket, libc::SO_BINDTODEVICE, &mut name)
                .attempt("read SO_BINDTODEVICE")?
                .to_vec(),
            congestion: sys::get_bytes(fd, libc::SOL_TCP, libc::TCP_CONGESTION, &mut name)
                .attempt("read TCP_CONGESTION")?
                .to_vec(),
            filter: match datagram::filter(fd) {
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                    return Err(Error::Refused(Refused::Filter));
                }
                filter => filter.attempt("read SO_GET_FILTER")?,
            },
            filter_locked: sys::get::<i32>(fd, socket, SO_LOCK_FILTER).attempt("read SO_LOCK_FILTER")? != 0,
        })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Sets on a fresh, unbound socket all that differ from `fresh`, those of a socket just made like it.
    pub(super) fn apply(&self, fd: BorrowedFd<'_>, fresh: &Options) -> Result<()> {
        if self.ints.len() != INTS.len() || self.family != fresh.family {
            return Err(Error::Malformed("its socket options are those of another version"));
        }
        let mut tos_set = false;
        for ((option, value), default) in INTS.iter().zip(&self.ints).zip(&fresh.ints) {
            let Some(value) = *value else { continue };
            let follows_tos =
                tos_set && option.number == libc::SO_PRIORITY && option.level == libc::SOL_SOCKET;
            if Some(value) != *default || follows_tos {
                sys::set(fd, option.level, option.number, value).attempt(option.name)?;
            }
            tos_set |= option.name == "IP_TOS" && Some(value) != *default;
        }
        let socket = libc::SOL_SOCKET;
        if self.reuse_address != fresh.reuse_address {
            self.apply_reuse_address(fd)?;
        }
        if self.linger != fresh.linger {
            sys::set(fd, socket, libc::SO_LINGER, self.linger).attempt("set SO_LINGER")?;
        }
        if self.receive_timeout != fresh.receive_timeout {
            sys::set(fd, socket, SO_RCVTIMEO_NEW, self.receive_timeout).attempt("set SO_RCVTIMEO")?;
        }
        if self.send_timeout != fresh.send_timeout {
            sys::set(fd, socket, SO_SNDTIMEO_NEW, self.send_timeout).attempt("set SO_SNDTIMEO")?;
        }
        if self.max_pacing_rate != fresh.max_pacing_rate {
            sys::set(fd, socket, libc::SO_MAX_PACING_RATE, self.max_pacing_rate)
                .attempt("set SO_MAX_PACING_RATE")?;
        }
        if self.device != fresh.device {
            sys::set_bytes(fd, socket, libc::SO_BINDTODEVICE, &self.device).attempt("set SO_BINDTODEVICE")?;
        }
        if self.congestion != fresh.congestion {
            sys::set_bytes(fd, libc::SOL_TCP, libc::TCP_CONGESTION, &self.congestion)
                .attempt("set TCP_CONGESTION")?;
        }
        if self.peek_offset != fresh.peek_offset {
            sys::set(fd, socket, libc::SO_PEEK_OFF, self.peek_offset).attempt("set SO_PEEK_OFF")?;
        }
        Ok(())
    }

    /// Attaches the filter: when the socket is live, since it may keep out what brings it there.
    pub(super) fn attach_filter(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.filter.is_empty() {
            if !self.filter.len().is_multiple_of(datagram::FILTER_INSTRUCTION) {
                return Err(Error::Malformed("its filter is cut off"));
            }
            datagram::attach_filter(fd, libc::SO_ATTACH_FILTER, &self.filter)
                .attempt("set SO_ATTACH_FILTER")?;
        }
        if self.filter_locked {
            sys::set(fd, libc::SOL_SOCKET, SO_LOCK_FILTER, 1).attempt("set SO_LOCK_FILTER")?;
        }
        Ok(())
    }

    /// Whether the program uses `SO_PEEK_OFF`, whose value only the socket knows.
    pub(super) fn peeks_at_offset(&self) -> bool {
        self.peek_offset >= 0
    }

    /// `SO_PEEK_OFF`, if the program uses it, moves with every peek and read.
    pub(super) fn follow_peek_offset(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.peek_offset >= 0 {
            self.peek_offset =
                sys::get(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).attempt("read SO_PEEK_OFF")?;
        }
        Ok(())
    }

    /// Runs `peek`, which is to begin at the beginning, and move nothing.
    pub(super) fn without_peek_offset<T>(&self, fd: BorrowedFd<'_>, peek: impl FnOnce() -> T) -> Result<T> {
        let set = |offset: i32| {
            sys::set(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset).attempt("set SO_PEEK_OFF")
        };
        if self.peek_offset < 0 {
            return Ok(peek());
        }
        set(-1)?;
        let peeked = peek();
        set(self.peek_offset)?;
        Ok(peeked)
    }

    /// What a connection accepted from a listener with these options begins with, so that its first capture need not read
    /// them: all but what is the listener's alone (`inet_csk_clone_lock` clears the accept queue and its settings), and
    /// the priority (`sk_clone_lock`).
    pub fn of_accepted(&self) -> Self {
        let mut accepted = self.clone();
        for (option, value) in INTS.iter().zip(&mut accepted.ints) {
            let reset = [
                (libc::SOL_SOCKET, libc::SO_PRIORITY),
                (libc::SOL_TCP, libc::TCP_DEFER_ACCEPT),
                (libc::SOL_TCP, TCP_FASTOPEN),
            ];
            if reset.contains(&(option.level, option.number)) {
                *value = value.map(|_| 0);
            }
        }
        accepted
    }

    /// Leaves repair without a frame, and without losing `SO_REUSEADDR`, which leaving clears
    /// (`do_tcp_setsockopt`, TCP_REPAIR: `sk->sk_reuse = SK_NO_REUSE`).
    pub(super) fn leave_repair(&self, fd: BorrowedFd<'_>) -> Result<()> {
        sys::set_repair(fd, Repair::OffSilently).attempt("leave repair")?;
        if self.reuse_address { self.apply_reuse_address(fd) } else { Ok(()) }
    }

    fn apply_reuse_address(&self, fd: BorrowedFd<'_>) -> Result<()> {
        sys::set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(self.reuse_address))
            .attempt("set SO_REUSEADDR")
    }

    pub(super) fn int(&self, level: i32, number: i32) -> Option<i32> {
        let index = INTS.iter().position(|option| option.number == number && option.level == level)?;
        *self.ints.get(index)?
    }
}

/// An option that this kernel does not have is no error.
fn present(value: std::io::Result<i32>) -> std::io::Result<Option<i32>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn refuse(fd: BorrowedFd<'_>, family: Family) -> Result<()> {
    for &(level, number, refused) in REFUSED_INTS {
        if present(sys::get(fd, level, number)).attempt("read an option")?.unwrap_or(0) != 0 {
            return Err(Error::Refused(refused));
        }
    }
    let mut buffer = [0; 64];
    if !sys::get_bytes(fd, libc::SOL_TCP, TCP_ULP, &mut buffer[..NAME_MAX])
        .attempt("read TCP_ULP")?
        .is_empty()
    {
        return Err(Error::Refused(Refused::UpperLayer));
    }
    if !sys::get_bytes(fd, libc::SOL_IP, libc::IP_OPTIONS, &mut buffer).attempt("read IP_OPTIONS")?.is_empty()
    {
        return Err(Error::Refused(Refused::IpOptions));
    }
    if family == Family::V6 {
        for &header in V6_HEADERS {
            if !sys::get_bytes(fd, libc::SOL_IPV6, header, &mut buffer)
                .attempt("read IPv6 extension headers")?
                .is_empty()
            {
                return Err(Error::Refused(Refused::IpOptions));
            }
        }
    }
    Ok(())
}
