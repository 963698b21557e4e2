//! A network namespace by its descriptor, and work done inside it.

use std::fs::File;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::CloneFlags;

use crate::error::{Attempt, LabError, Result};
use crate::sys;

/// Keeps a network namespace alive for as long as it, or a clone of it, does.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// A fresh one, without any process in it.
    pub(crate) fn new() -> Result<NetNs> {
        on_own_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .attempt(|| "make a network namespace".to_owned())?;
            NetNs::open("/proc/thread-self/ns/net")
        })
    }

    pub(crate) fn of_process(pid: libc::pid_t) -> Result<NetNs> {
        NetNs::open(&format!("/proc/{pid}/ns/net"))
    }

    fn open(path: &str) -> Result<NetNs> {
        let file = File::open(path).attempt(|| format!("open {path}"))?;
        Ok(NetNs { fd: Arc::new(file.into()) })
    }

    /// A path by which other programs can name the namespace while this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Moves the calling thread here. Sockets that it makes from now on, and processes that it starts, are here.
    pub fn enter(&self) -> io::Result<()> {
        nix::sched::setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it returns stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_own_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Runs `ip -batch` inside the namespace: one command a line, without the leading `ip`.
    pub(crate) fn ip(&self, commands: &[String]) -> Result<()> {
        let attempt = commands.join("; ");
        let output = self
            .run(|| {
                let mut child = Command::new("ip")
                    .args(["-batch", "-"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A refusal ends `ip` early; what it says about it is read below.
                    let _ = stdin.write_all(format!("{}\n", commands.join("\n")).as_bytes());
                }
                child.wait_with_output()
            })
            .map_err(|source| LabError::NoIp { source })?;
        if output.status.success() {
            Ok(())
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(LabError::Ip { attempt, stderr })
        }
    }

    /// Writes sysctls of this namespace: /proc/sys/net shows that of the thread that opens it.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings
                .iter()
                .try_for_each(|(name, value)| std::fs::write(format!("/proc/sys/net/{name}"), value))
        })
        .attempt(|| format!("set {settings:?} in a network namespace"))
    }
}

/// A socket that stays in its namespace, for setting devices up and down without starting a program.
#[derive(Debug)]
pub(crate) struct DeviceControl {
    socket: UdpSocket,
}

impl DeviceControl {
    pub(crate) fn new(namespace: &NetNs) -> Result<DeviceControl> {
        let socket = namespace.run(|| UdpSocket::bind("0.0.0.0:0"));
        Ok(DeviceControl { socket: socket.attempt(|| "open a socket in a network namespace".to_owned())? })
    }

    pub(crate) fn set_up(&self, device: &str, up: bool) -> Result<()> {
        let to = if up { "up" } else { "down" };
        sys::set_device_up(self.socket.as_fd(), device, up).attempt(|| format!("set {device} {to}"))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A namespace is a thread's own, so what changes it happens on a thread that ends with the change.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
