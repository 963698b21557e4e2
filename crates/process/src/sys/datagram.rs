//! Calls on datagram sockets of IP, and on what all sockets have in common, that have no safe function elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `include/uapi/linux/{in,in6,udp}.h`.
const IPV6_HOPLIMIT: i32 = 52;
const UDP_GRO: i32 = 104;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: all arguments are numbers.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the call has just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A datagram in a queue, with what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked {
    pub bytes: Vec<u8>,
    pub source: Option<SocketAddr>,
    /// Where it was sent to.
    pub destination: Option<IpAddr>,
    /// The address of the interface that it came by, where that was kept (IPv4).
    pub local: Option<Ipv4Addr>,
    /// TTL or hop limit, and TOS or traffic class.
    pub hops: u8,
    pub class: u8,
    /// Of several that were received as one (`UDP_GRO`): the length of each but the last.
    pub segment: Option<usize>,
    pub truncated: bool,
}

/// Looks at the next datagram, from the offset set by `SO_PEEK_OFF`; `None` if there is no more.
pub fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Peeked>> {
    // Aligned as `struct cmsghdr` has to be; more than all ancillary data of a datagram.
    let mut control = [0u64; 128];
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
    let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: name, buffer and control buffer are live, exclusively borrowed and as long as is said.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EAGAIN) { Ok(None) } else { Err(error) };
    }
    let mut peeked = Peeked {
        bytes: buffer[..got.unsigned_abs().min(buffer.len())].to_vec(),
        source: None,
        destination: None,
        local: None,
        hops: 0,
        class: 0,
        segment: None,
        truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    };
    if message.msg_namelen > 0 {
        let bytes = size_of::<libc::sockaddr_in6>();
        // SAFETY: `name` is longer than a `sockaddr_in6`, initialised, and read as bytes.
        let name = unsafe { std::slice::from_raw_parts((&raw const name).cast::<u8>(), bytes) };
        peeked.source = address_of(name);
    }
    // SAFETY: `message` was filled in by the kernel; the macros walk the control buffer within `msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a complete header inside the control buffer or null.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        // SAFETY: a pure computation.
        let head = unsafe { libc::CMSG_LEN(0) } as usize;
        // SAFETY: the kernel wrote `len - head` bytes of data behind the header.
        let data = unsafe {
            std::slice::from_raw_parts(libc::CMSG_DATA(header).cast_const(), len.saturating_sub(head))
        };
        note(&mut peeked, level, kind, data);
        // SAFETY: `header` is one of this message's headers.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Some(peeked))
}

/// What one piece of ancillary data says (`ip(7)`, `ipv6(7)`, `udp(7)`).
fn note(peeked: &mut Peeked, level: i32, kind: i32, data: &[u8]) {
    let int = || at::<4>(data, 0).map(i32::from_ne_bytes);
    match (level, kind) {
        // struct in_pktinfo: interface, local address, destination.
        (libc::SOL_IP, libc::IP_PKTINFO) => {
            peeked.local = at::<4>(data, 4).map(Ipv4Addr::from).filter(|local| !local.is_unspecified());
            peeked.destination = at::<4>(data, 8).map(|bytes| Ipv4Addr::from(bytes).into());
        }
        // struct in6_pktinfo: destination, interface.
        (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
            if let Some(bytes) = at::<16>(data, 0) {
                // A socket for both families is told the one of IPv4 as well, by the other level.
                peeked.destination.get_or_insert(Ipv6Addr::from(bytes).to_canonical());
            }
        }
        (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, IPV6_HOPLIMIT) => {
            peeked.hops = int().map_or(0, |value| value as u8);
        }
        (libc::SOL_IP, libc::IP_TOS) => peeked.class = data.first().copied().unwrap_or(0),
        (libc::SOL_IPV6, libc::IPV6_TCLASS) => peeked.class = int().map_or(0, |value| value as u8),
        (libc::SOL_UDP, UDP_GRO) => {
            peeked.segment = int().and_then(|value| usize::try_from(value).ok()).filter(|size| *size > 0);
        }
        _ => {}
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// `struct sockaddr_in`, `struct sockaddr_in6`; none of another family.
pub fn address_of(bytes: &[u8]) -> Option<SocketAddr> {
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

/// IPv4 addresses seen through an IPv6 socket are the same connection's.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}

/// A name of the socket or of its peer as the kernel writes it; none if it is not connected.
pub fn name(fd: BorrowedFd<'_>, of_peer: bool) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0u8; 128];
    let mut length = buffer.len() as libc::socklen_t;
    let call = if of_peer { libc::getpeername } else { libc::getsockname };
    // SAFETY: the buffer is live, exclusively borrowed and as long as `length` says; it is as long as `sockaddr_storage`.
    match check(unsafe { call(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), &raw mut length) }) {
        Ok(_) => Ok(Some(buffer[..(length as usize).min(buffer.len())].to_vec())),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `bind` or `connect` with an address as the kernel writes it.
fn with_address(
    fd: BorrowedFd<'_>,
    address: &[u8],
    call: unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) -> io::Result<()> {
    // SAFETY: the address is live and as long as is said; the kernel copies it whatever its alignment.
    check(unsafe { call(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) })
        .map(drop)
}

pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    with_address(fd, address, libc::bind)
}

/// As [`bind`], also to an address that has been taken from the host since the socket had it, which harms no socket that has.
pub fn bind_again(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    /// `IPV6_FREEBIND` of `linux/in6.h`.
    const IPV6_FREEBIND: i32 = 78;
    match bind(fd, address) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            let family = address.first_chunk().map_or(0, |family| u16::from_ne_bytes(*family));
            let (level, option) = if i32::from(family) == libc::AF_INET6 {
                (libc::SOL_IPV6, IPV6_FREEBIND)
            } else {
                (libc::SOL_IP, libc::IP_FREEBIND)
            };
            let kept: i32 = crate::sys::tcp_repair::get(fd, level, option)?;
            crate::sys::tcp_repair::set(fd, level, option, 1)?;
            let bound = bind(fd, address);
            crate::sys::tcp_repair::set(fd, level, option, kept)?;
            bound
        }
        bound => bound,
    }
}

pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    with_address(fd, address, libc::connect)
}

/// Takes back a connection of a datagram socket, and the port if the kernel chose it (`udp(7)`, `__udp_disconnect`).
pub fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    // `struct sockaddr` of the family AF_UNSPEC, which is 0.
    connect(fd, &[0; 16])
}

/// An address as the kernel reads it.
pub fn bytes_of(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<libc::sockaddr_in6>());
    match address {
        SocketAddr::V4(address) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// One instruction of a classic BPF program: `struct sock_filter` of `linux/filter.h`, as bytes.
pub const FILTER_INSTRUCTION: usize = 8;
/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
const FILTER_MAX: usize = 4096;

/// The classic filter of a socket (`SO_GET_FILTER`), empty if it has none. One that is not classic is an error (EACCES).
pub fn filter(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let get = |buffer: &mut [u8], mut count: libc::socklen_t| {
        // SAFETY: the kernel writes `count` instructions at most, for which `buffer` has room; `sk_get_filter` counts in
        // instructions. A count of 0 asks for their number.
        check(unsafe {
            let at = buffer.as_mut_ptr().cast();
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_GET_FILTER, at, &raw mut count)
        })
        .map(|_| count as usize)
    };
    let count = get(&mut [0; FILTER_INSTRUCTION], 0)?.min(FILTER_MAX);
    let mut program = vec![0u8; count * FILTER_INSTRUCTION];
    if count > 0 {
        get(&mut program, count as libc::socklen_t)?;
    }
    Ok(program)
}

/// Attaches a classic program: `SO_ATTACH_FILTER` or `SO_ATTACH_REUSEPORT_CBPF`. The kernel checks it.
pub fn attach_filter(fd: BorrowedFd<'_>, option: i32, program: &[u8]) -> io::Result<()> {
    // struct sock_fprog: count, and where they are.
    #[repr(C)]
    struct Program {
        count: libc::c_ushort,
        at: *const u8,
    }
    let count = u16::try_from(program.len() / FILTER_INSTRUCTION).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = Program { count, at: program.as_ptr() };
    let length = size_of::<Program>() as libc::socklen_t;
    // SAFETY: header and program are live and as long as is said; the kernel copies both.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const header).cast(), length)
    })
    .map(drop)
}

/// `getsockopt` of a value whose input and output are the same bytes (`MCAST_MSFILTER`).
pub fn ask(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the value is live, exclusively borrowed and as long as `length` says.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    })?;
    Ok((length as usize).min(value.len()))
}

/// Sends without waiting.
pub fn send_to(fd: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    let address = bytes_of(to);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: buffer and address are live and as long as is said.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
