//! Packet sockets: packet(7), linux/if_packet.h, net/packet/af_packet.c.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Mac;

/// Bytes that may wait in the kernel: some thousand full frames.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// A socket that hears frames to one address on every interface of a network namespace, each with a virtio header as a TAP
/// device gives it. It says nothing.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens one in the calling thread's network namespace. What comes before any bridge sees it is heard too.
    ///
    /// An interface that is in no bridge takes no frames to `mac` from the wire unless it is told to: `told` is its name.
    pub fn open(mac: Mac, told: Option<&str>) -> io::Result<PacketSocket> {
        let told = told.map(nix::net::if_::if_nametoindex).transpose()?;
        // Of no protocol at first: nothing comes before there is a filter.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let socket = PacketSocket { fd };
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
        // Frames that this node sends are none that came.
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)?;
        let filter = filter(mac);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // The kernel copies the instructions and writes to none.
        socket.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let everywhere = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let address = (&raw const everywhere).cast();
        // SAFETY: `everywhere` is live and as long as is said; the kernel only reads it.
        Errno::result(unsafe { libc::bind(socket.fd.as_raw_fd(), address, length) })?;
        if let Some(index) = told {
            let [a, b, c, d, e, f] = mac.0;
            let request = libc::packet_mreq {
                mr_ifindex: index.cast_signed(),
                mr_type: libc::PACKET_MR_UNICAST as u16,
                mr_alen: 6,
                mr_address: [a, b, c, d, e, f, 0, 0],
            };
            socket.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
        }
        Ok(socket)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let value: *const T = value;
        // SAFETY: `value` is a live reference to as many bytes as is said; the kernel only reads them, and a filter's
        // instructions, which live in the caller.
        Errno::result(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                value.cast(),
                size_of::<T>() as libc::socklen_t,
            )
        })?;
        Ok(())
    }

    /// Reads one frame, if there is one, into a buffer of [`crate::MAX_FRAME`] bytes.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match nix::unistd::read(&self.fd, buffer) {
                Ok(length) => Ok(Some(length)),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

/// Lets frames pass whose destination, the first six bytes, is `mac`.
fn filter(mac: Mac) -> [libc::sock_filter; 6] {
    let [a, b, c, d, e, f] = mac.0;
    let code = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        code(equal, 0, 3, u32::from_be_bytes([a, b, c, d])),
        code(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        code(equal, 0, 1, u32::from(u16::from_be_bytes([e, f]))),
        // The whole frame, and nothing of it.
        code(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}
