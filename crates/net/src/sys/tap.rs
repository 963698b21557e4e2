//! TAP devices: Documentation/networking/tuntap.rst, drivers/net/tun.c, linux/if_tun.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_uint, c_ulong};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::frame::VNET_HEADER;

const DEVICE: &str = "/dev/net/tun";

/// What the kernel may leave undone in frames it hands to us (`TUN_F_*`): checksums and the segmentation of
/// TCP, for both address families and with ECN.
const TCP_OFFLOADS: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// And of UDP; kernels before 6.2 refuse these two with EINVAL.
const UDP_OFFLOADS: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A TAP device that lives as long as this value: it is never made persistent (R4: who dies loses its voice).
///
/// More exactly, as long as its last descriptor. It is closed on exec; a child forked without exec must close it, or
/// the device outlives the supervisor.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Creates a device in the calling thread's network namespace. A `%d` in `pattern` becomes the first unused
    /// number (`__dev_alloc_name`, net/core/dev.c), so that two creators never meet.
    pub fn create(pattern: &str) -> io::Result<Tap> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Tap::set_up(open(DEVICE, flags, Mode::empty())?, pattern)
    }

    /// Makes the character device of a macvtap device of this name work as that of a TAP device does.
    pub fn of_macvtap(fd: OwnedFd, name: &str) -> io::Result<Tap> {
        Tap::set_up(fd, name)
    }

    fn set_up(fd: OwnedFd, pattern: &str) -> io::Result<Tap> {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16,
            },
        };
        // One byte is left for the terminating zero.
        if pattern.len() >= libc::IFNAMSIZ || pattern.as_bytes().contains(&0) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(pattern.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is, and which outlives the call.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as c_ulong, &raw mut request) })?;
        // SAFETY: the array is zero-terminated: it was zeroed, at most 15 bytes of it were written above, and the
        // kernel writes back a name of at most IFNAMSIZ - 1 bytes and a zero. It lives until the copy is made.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) }.to_string_lossy().into_owned();

        let tap = Tap { fd, name };
        tap.set_vnet_header()?;
        tap.set_offloads()?;
        Ok(tap)
    }

    /// Fixes size and byte order of the virtio header, so that a frame means the same on every node.
    fn set_vnet_header(&self) -> io::Result<()> {
        let (size, little_endian) = (VNET_HEADER as c_int, 1 as c_int);
        // SAFETY: both requests read one int through the pointer, which is valid for the call.
        Errno::result(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as c_ulong, &raw const size)
        })?;
        // SAFETY: as above.
        Errno::result(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETLE as c_ulong, &raw const little_endian)
        })?;
        Ok(())
    }

    fn set_offloads(&self) -> io::Result<()> {
        let set = |offloads: c_uint| {
            // SAFETY: TUNSETOFFLOAD takes its argument by value; it reads no memory.
            Errno::result(unsafe {
                libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD as c_ulong, c_ulong::from(offloads))
            })
        };
        match set(TCP_OFFLOADS | UDP_OFFLOADS) {
            Err(Errno::EINVAL) => set(TCP_OFFLOADS)?,
            done => done?,
        };
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one frame, if there is one. `buffer` must hold [`crate::frame::MAX_FRAME`] bytes: what does not fit
    /// is cut off.
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

    /// Writes one frame into the kernel, which handles it before this returns (`tun_get_user` calls
    /// `netif_receive_skb`, drivers/net/tun.c).
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            return match nix::unistd::write(&self.fd, frame) {
                Ok(_) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
