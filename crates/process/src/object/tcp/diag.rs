//! What only `sock_diag(7)` tells of one connection: MD5 keys, when its timer expires, and whether anybody has a descriptor of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `linux/netlink.h`, `linux/sock_diag.h`, `linux/inet_diag.h`.
mod number {
    pub const NLMSG_ERROR: u16 = 2;
    pub const NLM_F_REQUEST: u16 = 1;
    pub const SOCK_DIAG_BY_FAMILY: u16 = 20;
    pub const INET_DIAG_MD5SIG: u16 = 18;
    /// Asks for INET_DIAG_INFO, which is 2: only with it come the MD5 keys (`inet_sk_diag_fill`).
    pub const EXT_INFO: u8 = 1 << (2 - 1);
    /// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`.
    pub const HEADER: usize = 16;
    pub const REQUEST: usize = 56;
    pub const REPLY: usize = 72;
    pub const NO_COOKIE: [u8; 8] = [0xff; 8];
    /// `include/net/tcp_states.h`. A connection that its program has closed is in neither.
    pub const ESTABLISHED: u8 = 1;
    pub const CLOSE_WAIT: u8 = 8;
}

pub struct Diag {
    socket: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub md5: bool,
    /// Milliseconds until the retransmission timer runs out.
    pub expires_ms: u32,
    /// It is established, maybe ended by its client since, and was not accepted.
    pub waits: bool,
}

impl Diag {
    /// For the network namespace that the thread is in.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self { socket })
    }

    /// Looks one connection up by its addresses and the index of the device that its socket is bound to, or 0.
    pub fn look_up(&self, local: SocketAddr, remote: SocketAddr, device: u32) -> io::Result<Seen> {
        let request = request(local, remote, device);
        sendto(self.socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        // Larger than any answer about one socket: attributes of tens of bytes, and at most 64 KiB of MD5 keys,
        // truncated without harm (one is enough to refuse).
        let mut answer = [0; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        parse(&answer[..length])
    }
}

fn request(local: SocketAddr, remote: SocketAddr, device: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(number::HEADER + number::REQUEST);
    bytes.extend(((number::HEADER + number::REQUEST) as u32).to_ne_bytes());
    bytes.extend(number::SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(number::NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    let (mapped_local, mapped_remote) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = if mapped_local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, number::EXT_INFO, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    for address in [mapped_local, mapped_remote] {
        let mut padded = [0; 16];
        match address {
            IpAddr::V4(address) => padded[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => padded.copy_from_slice(&address.octets()),
        }
        bytes.extend(padded);
    }
    bytes.extend(device.to_ne_bytes());
    bytes.extend(number::NO_COOKIE);
    bytes
}

fn parse(answer: &[u8]) -> io::Result<Seen> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed sock_diag answer");
    let kind = u16::from_ne_bytes(bytes_at(answer, 4).ok_or_else(malformed)?);
    if kind == number::NLMSG_ERROR {
        let error = i32::from_ne_bytes(bytes_at(answer, number::HEADER).ok_or_else(malformed)?);
        return Err(io::Error::from_raw_os_error(-error));
    }
    let message = answer.get(number::HEADER..).ok_or_else(malformed)?;
    let number = |offset| bytes_at(message, offset).map(u32::from_ne_bytes).ok_or_else(malformed);
    let is_open = matches!(message.get(1), Some(&(number::ESTABLISHED | number::CLOSE_WAIT)));
    let mut seen = Seen { md5: false, expires_ms: number(52)?, waits: is_open && number(68)? == 0 };
    let mut attributes = message.get(number::REPLY..).ok_or_else(malformed)?;
    while let (Some(length), Some(kind)) = (bytes_at(attributes, 0), bytes_at(attributes, 2)) {
        seen.md5 |= u16::from_ne_bytes(kind) == number::INET_DIAG_MD5SIG;
        let length = usize::from(u16::from_ne_bytes(length)).max(4).next_multiple_of(4);
        attributes = attributes.get(length..).unwrap_or_default();
    }
    Ok(seen)
}

fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn finds_a_connection_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let diag = Diag::open().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let seen = diag.look_up(local, remote, 0).unwrap();
        assert!(!seen.md5 && !seen.waits, "the client has a descriptor");
        assert!(diag.look_up(remote, local, 0).unwrap().waits, "it is not accepted yet");
        let nobody = SocketAddr::new(remote.ip(), 1);
        assert_eq!(diag.look_up(local, nobody, 0).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        drop(client);
        assert!(diag.look_up(remote, local, 0).unwrap().waits, "it ended before it was accepted");
        let accepted = listener.accept().unwrap();
        assert!(!diag.look_up(remote, local, 0).unwrap().waits, "it is accepted");
        drop(accepted);
    }

    #[test]
    fn survives_any_answer() {
        proptest::proptest!(|(answer: Vec<u8>)| { let _ = parse(&answer); });
    }
}
