//! A process's memory and mappings, by `/proc`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result, TargetContext};
use crate::sys;
use crate::sys::ptrace::Tid;

pub const PAGE: u64 = 4096;

/// A line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub is_readable: bool,
    pub is_writable: bool,
    pub is_executable: bool,
    pub is_private: bool,
    pub offset: u64,
    pub inode: u64,
    pub path: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next()?.as_bytes();
        let offset = words.next()?;
        let _device = words.next()?;
        let inode = words.next()?;
        let path = words.next().unwrap_or_default().trim_start();
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: number(start)?,
            end: number(end)?,
            is_readable: rights.first() == Some(&b'r'),
            is_writable: rights.get(1) == Some(&b'w'),
            is_executable: rights.get(2) == Some(&b'x'),
            is_private: rights.get(3) == Some(&b'p'),
            offset: number(offset)?,
            inode: inode.parse().ok()?,
            path: path.to_owned(),
        })
    }
}

/// An open process. Opening its memory for writing is what the kernel asks `ptrace` permission for, so whoever may not trace it
/// gets no further.
#[derive(Debug)]
pub struct Memory {
    pub pid: Tid,
    file: File,
}

impl Drop for Memory {
    fn drop(&mut self) {
        sys::unlock(self.file.as_fd());
    }
}

impl Memory {
    pub fn open(pid: Tid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::unfit(format!("there is no process {pid}")));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::unfit(format!(
                    "process {pid} may not be traced by this user, and so not be patched: run as its user or as root, and \
                     see kernel.yama.ptrace_scope"
                )));
            }
            Err(error) => return Err(error).or_target(|| format!("open {path}")),
        };
        Ok(Self { pid, file })
    }

    /// Only one patcher at a time.
    pub fn lock(&self) -> Result<()> {
        match sys::lock(self.file.as_fd(), false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::unfit(format!("process {} is being patched by another", self.pid)))
            }
            outcome => outcome.or_target(|| format!("lock process {}", self.pid)),
        }
    }

    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, address)
            .or_target(|| format!("read {length} bytes at {address:#x} of process {}", self.pid))?;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&self, address: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file
            .read_exact_at(&mut bytes, address)
            .or_target(|| format!("read {N} bytes at {address:#x} of process {}", self.pid))?;
        Ok(bytes)
    }

    pub fn word(&self, address: u64) -> Result<u64> {
        self.array(address).map(u64::from_le_bytes)
    }

    /// Also where the process itself may not write: the kernel lets a tracer (`FOLL_FORCE`), into a copy of its own.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, address)
            .or_target(|| format!("write {} bytes at {address:#x} of process {}", bytes.len(), self.pid))
    }

    pub fn mappings(&self) -> Result<Vec<Mapping>> {
        let path = format!("/proc/{}/maps", self.pid);
        let text = fs::read(&path).or_target(|| format!("read {path}"))?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(Mapping::parse).collect())
    }

    /// A field of `/proc/PID/task/TID/status`.
    pub fn status(&self, tid: Tid, field: &str) -> Option<String> {
        Self::field(&self.status_text(tid)?, field).map(str::to_owned)
    }

    /// `/proc/PID/task/TID/status`, for who needs several fields.
    pub fn status_text(&self, tid: Tid) -> Option<String> {
        self.read_status(tid).ok()
    }

    /// A thread may have any bytes for its name, which is in it: also half a letter.
    fn read_status(&self, tid: Tid) -> io::Result<String> {
        let text = fs::read(format!("/proc/{}/task/{tid}/status", self.pid))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// What a thread does, in one letter (`State` in proc_pid_status(5)); `None` if it has ended.
    pub fn state(&self, tid: Tid) -> Result<Option<char>> {
        match self.read_status(tid) {
            Ok(text) => match Self::field(&text, "State").and_then(|state| state.chars().next()) {
                None => Err(Error::unfit(format!("the status of thread {tid} has no state"))),
                Some('Z' | 'X') => Ok(None),
                Some(state) => Ok(Some(state)),
            },
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).or_target(|| format!("read the status of thread {tid}")),
        }
    }

    pub fn field<'a>(text: &'a str, field: &str) -> Option<&'a str> {
        let line =
            text.lines().find(|line| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':')))?;
        Some(line[field.len() + 1..].trim())
    }

    pub fn threads(&self) -> Result<Vec<Tid>> {
        let path = format!("/proc/{}/task", self.pid);
        let entries = fs::read_dir(&path).or_target(|| format!("list {path}"))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// The system call that a thread sleeps in, by `/proc/PID/task/TID/syscall`; `None` if it runs.
    pub fn sleeping_call(&self, tid: Tid) -> Option<i64> {
        let text = fs::read_to_string(format!("/proc/{}/task/{tid}/syscall", self.pid)).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mappings_is_understood() {
        let line = "7f0000001000-7f0000003000 r-xp 00002000 fe:01 1234                 /lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(
            (mapping.start, mapping.end, mapping.offset),
            (0x7f00_0000_1000, 0x7f00_0000_3000, 0x2000)
        );
        assert!(mapping.is_readable && mapping.is_executable && !mapping.is_writable && mapping.is_private);
        assert_eq!((mapping.inode, mapping.path.as_str()), (1234, "/lib/a b.so (deleted)"));
        assert!(Mapping::parse("nonsense").is_none());
        assert_eq!(Mapping::parse("1000-2000 rw-p 00000000 00:00 0 ").unwrap().path, "");
    }

    #[test]
    fn own_memory_is_read() {
        let memory = Memory::open(std::process::id().cast_signed()).unwrap();
        let value = 0x1234_5678_9abc_def0u64;
        assert_eq!(memory.word(&raw const value as u64).unwrap(), value);
        assert!(memory.mappings().unwrap().iter().any(|mapping| mapping.path == "[stack]"));
        assert!(memory.word(8).is_err());
    }
}
