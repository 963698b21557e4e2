//! `/proc` of one task: mappings, status, descriptors (`proc(5)`, `Documentation/filesystems/proc.rst`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ptrace::Tid;
use crate::object::file::FileKey;

/// Names of limits are padded to this width (`proc_pid_limits`, fs/proc/base.c).
const LIMITS_AT: usize = 26;

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapsLine {
    pub start: u64,
    pub end: u64,
    pub read: bool,
    pub write: bool,
    pub execute: bool,
    pub shared: bool,
    pub offset: u64,
    pub device: u64,
    pub inode: u64,
    pub path: String,
}

pub fn parse_maps(text: &str) -> Option<Vec<MapsLine>> {
    text.lines().map(parse_maps_line).collect()
}

fn parse_maps_line(line: &str) -> Option<MapsLine> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let perms = fields.next()?.as_bytes();
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?;
    let path = fields.next().unwrap_or("").trim_start();
    if perms.len() != 4 {
        return None;
    }
    Some(MapsLine {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        read: perms[0] == b'r',
        write: perms[1] == b'w',
        execute: perms[2] == b'x',
        shared: perms[3] == b's',
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: u64::from_str_radix(major, 16).ok()? << 32 | u64::from_str_radix(minor, 16).ok()?,
        inode: inode.parse().ok()?,
        path: unescape(path),
    })
}

/// The flags of each mapping, by its first address, as `/proc/PID/smaps` says them in two letters each (proc(5), VmFlags).
pub fn mapping_flags(text: &str) -> Vec<(u64, Vec<&str>)> {
    let mut found = Vec::new();
    let mut start = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.extend(start.take().map(|start| (start, flags.split_whitespace().collect())));
        } else if let Some((first, _)) = line.split_once('-') {
            // Other lines have a name and a colon before anything else.
            start = u64::from_str_radix(first, 16).ok().or(start);
        }
    }
    found
}

/// The kernel writes newlines and backslashes in paths as octal escapes.
fn unescape(path: &str) -> String {
    path.replace("\\012", "\n").replace("\\134", "\\")
}

/// Reads a whole small file of `/proc` into `buffer`, which is reused.
pub fn read_into(file: &mut File, buffer: &mut Vec<u8>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    buffer.clear();
    let mut chunk = [0u8; 32 * 1024];
    let mut at = 0u64;
    loop {
        let got = file.read_at(&mut chunk, at)?;
        if got == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&chunk[..got]);
        at += got as u64;
    }
}

pub fn path(tid: Tid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{tid}/{name}"))
}

pub fn open(tid: Tid, name: &str) -> io::Result<File> {
    File::open(path(tid, name))
}

/// `/proc/PID/mem`, through which read-only pages can be written as well.
pub fn open_memory(tid: Tid) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path(tid, "mem"))
}

/// The fields of `/proc/PID/status` that a checkpoint needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    pub state: char,
    pub umask: u32,
    pub thread_group: Tid,
    pub parent: Tid,
    /// Thread id in each pid namespace, outermost first.
    pub namespaced: Vec<Tid>,
    pub namespaced_group: Vec<Tid>,
    pub namespaced_session: Vec<Tid>,
    pub namespaced_process_group: Vec<Tid>,
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub shared_pending: u64,
    pub pending: u64,
    pub ignored: u64,
    pub caught: u64,
    pub cap_inheritable: u64,
    pub cap_permitted: u64,
    pub cap_effective: u64,
    pub cap_bounding: u64,
    pub cap_ambient: u64,
    pub no_new_privs: bool,
}

pub fn status(tid: Tid) -> io::Result<Status> {
    let mut text = String::new();
    open(tid, "status")?.read_to_string(&mut text)?;
    Ok(parse_status(&text))
}

fn parse_status(text: &str) -> Status {
    fn list<T: std::str::FromStr>(value: &str) -> Vec<T> {
        value.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }
    fn four(value: &str) -> [u32; 4] {
        list(value).try_into().unwrap_or_default()
    }
    fn hex(value: &str) -> u64 {
        u64::from_str_radix(value, 16).unwrap_or(0)
    }
    let mut status = Status::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match key {
            "Name" => status.name = value.to_owned(),
            "Umask" => status.umask = u32::from_str_radix(value, 8).unwrap_or(0o022),
            "State" => status.state = value.chars().next().unwrap_or('?'),
            "Tgid" => status.thread_group = value.parse().unwrap_or(0),
            "PPid" => status.parent = value.parse().unwrap_or(0),
            "NSpid" => status.namespaced = list(value),
            "NStgid" => status.namespaced_group = list(value),
            "NSsid" => status.namespaced_session = list(value),
            "NSpgid" => status.namespaced_process_group = list(value),
            "Uid" => status.uids = four(value),
            "Gid" => status.gids = four(value),
            "Groups" => status.groups = list(value),
            "SigPnd" => status.pending = hex(value),
            "SigIgn" => status.ignored = hex(value),
            "SigCgt" => status.caught = hex(value),
            "ShdPnd" => status.shared_pending = hex(value),
            "CapInh" => status.cap_inheritable = hex(value),
            "CapPrm" => status.cap_permitted = hex(value),
            "CapEff" => status.cap_effective = hex(value),
            "CapBnd" => status.cap_bounding = hex(value),
            "CapAmb" => status.cap_ambient = hex(value),
            "NoNewPrivs" => status.no_new_privs = value == "1",
            _ => {}
        }
    }
    status
}

/// Field `index` (as numbered in `proc(5)`, from 1) and following of `/proc/PID/stat`, as numbers.
pub fn stat_fields(tid: Tid) -> io::Result<Vec<u64>> {
    stat_fields_of(&path(tid, ""))
}

/// As [`stat_fields`], of a process by its directory in any `/proc`, whose numbers they are.
pub fn stat_fields_of(directory: &Path) -> io::Result<Vec<u64>> {
    let text = fs::read_to_string(directory.join("stat"))?;
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Fields 1 and 2 (pid, comm) come before; the first here is field 3.
    Ok([0, 0]
        .into_iter()
        .chain(after_name.split_whitespace().map(|word| word.parse::<i64>().map_or(0, |n| n as u64)))
        .collect())
}

/// The number of a process's controlling terminal, which is a pseudo-terminal.
pub fn terminal(tid: Tid) -> io::Result<Option<u32>> {
    Ok(terminal_of(stat_fields(tid)?.get(6).copied().unwrap_or(0)))
}

/// The same, by the field `tty_nr`.
pub fn terminal_of(device: u64) -> Option<u32> {
    /// `UNIX98_PTY_SLAVE_MAJOR` (include/uapi/linux/major.h).
    const SLAVE: u64 = 136;
    // As `new_encode_dev` (include/linux/kdev_t.h) has it: the major number is in the middle.
    let index = device & 0xff | device >> 12 & 0xfff00;
    (device >> 8 & 0xfff == SLAVE).then_some(index as u32)
}

/// Soft and hard limits of a process, in the order of their numbers (`RLIMIT_CPU` to `RLIMIT_RTTIME`): that of
/// proc_pid_limits(5). `prlimit(2)` would need CAP_SYS_RESOURCE for a process of another user.
pub fn limits(tid: Tid) -> io::Result<Vec<(u64, u64)>> {
    let text = fs::read_to_string(path(tid, "limits"))?;
    let limit = |word: Option<&str>| match word {
        Some("unlimited") => Ok(libc::RLIM_INFINITY),
        word => word.and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData),
    };
    let limits = text.lines().skip(1).map(|line| {
        let mut words = line.get(LIMITS_AT..).unwrap_or_default().split_whitespace();
        Ok((limit(words.next())?, limit(words.next())?))
    });
    limits.collect::<Result<_, io::ErrorKind>>().map_err(Into::into)
}

/// Whom the kernel ends first when memory is short (proc_pid_oom_score_adj(5)).
pub fn oom_score_adj(tid: Tid) -> io::Result<i32> {
    let text = fs::read_to_string(path(tid, "oom_score_adj"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

pub fn set_oom_score_adj(tid: Tid, value: i32) -> io::Result<()> {
    fs::write(path(tid, "oom_score_adj"), value.to_string())
}

/// What goes into a core dump (proc_pid_coredump_filter(5)); `None` where the kernel was built without (`CONFIG_ELF_CORE`).
pub fn coredump_filter(tid: Tid) -> io::Result<Option<u32>> {
    match fs::read_to_string(path(tid, "coredump_filter")) {
        Ok(text) => {
            u32::from_str_radix(text.trim(), 16).map(Some).map_err(|_| io::ErrorKind::InvalidData.into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn set_coredump_filter(tid: Tid, filter: u32) -> io::Result<()> {
    fs::write(path(tid, "coredump_filter"), format!("{filter:#x}"))
}

/// Open descriptors of a process: number and what the link says (`socket:[42]`, `/path`, `anon_inode:[eventpoll]`).
pub fn descriptors(tid: Tid) -> io::Result<Vec<(i32, String)>> {
    let dir = path(tid, "fd");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        match fs::read_link(dir.join(&name)) {
            Ok(target) => found.push((number, target.to_string_lossy().into_owned())),
            // Closed between the listing and the question; cannot happen while the process is stopped.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable_by_key(|(number, _)| *number);
    Ok(found)
}

/// What the link of one descriptor says.
pub fn descriptor_link(tid: Tid, fd: i32) -> io::Result<String> {
    fs::read_link(path(tid, &format!("fd/{fd}"))).map(|link| link.to_string_lossy().into_owned())
}

/// Device and inode of what a descriptor is open on.
pub fn file_key(tid: Tid, fd: i32) -> Option<FileKey> {
    let stat = nix::sys::stat::stat(&path(tid, &format!("fd/{fd}"))).ok()?;
    Some(FileKey { device: stat.st_dev, inode: stat.st_ino })
}

/// `/proc/PID/fdinfo/FD` as text.
pub fn descriptor_info(tid: Tid, fd: i32) -> io::Result<String> {
    fs::read_to_string(path(tid, &format!("fdinfo/{fd}")))
}

/// The value of `key:` in an fdinfo text.
pub fn info_field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.split_once(':').filter(|(k, _)| k.trim() == key)).map(|(_, v)| v.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_are_parsed_with_spaces_in_paths() {
        let text = "7f00-7f01 rw-s 00001000 00:01 2050                       /dev/zero (deleted)\n\
                    ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n\
                    1000-2000 r--p 00000000 00:00 0 \n";
        let lines = parse_maps(text).unwrap();
        assert_eq!(lines[0].path, "/dev/zero (deleted)");
        assert!(lines[0].shared && lines[0].write && !lines[0].execute);
        assert_eq!(lines[0].offset, 0x1000);
        assert_eq!(lines[1].path, "[vsyscall]");
        assert_eq!(lines[2].path, "");
    }

    #[test]
    fn flags_of_mappings_are_found() {
        let text = "1000-3000 rw-p 00000000 00:00 0 [anon: a-b]\nSize: 8 kB\nVmFlags: rd wr dc \n\
                    3000-4000 rw-p 00000000 00:00 0 \nVmFlags: rd\n";
        assert_eq!(mapping_flags(text), [(0x1000, vec!["rd", "wr", "dc"]), (0x3000, vec!["rd"])]);
    }

    #[test]
    fn malformed_maps_are_refused() {
        assert_eq!(parse_maps("nonsense"), None);
        assert_eq!(parse_maps("1000-2000 rw 0 0:0 0"), None);
    }

    #[test]
    fn limits_are_those_that_the_kernel_tells_the_process_itself() {
        let limits = limits(std::process::id() as Tid).unwrap();
        assert_eq!(limits.len(), libc::RLIMIT_RTTIME as usize + 1);
        for resource in
            [nix::sys::resource::Resource::RLIMIT_NOFILE, nix::sys::resource::Resource::RLIMIT_STACK]
        {
            let told = nix::sys::resource::getrlimit(resource).unwrap();
            assert_eq!(limits[resource as usize], told);
        }
    }

    #[test]
    fn own_status_is_read() {
        let status = status(std::process::id() as Tid).unwrap();
        assert_eq!(status.thread_group, std::process::id() as Tid);
        assert!(!status.namespaced.is_empty());
    }
}
