//! System V semaphores and message queues of the ipc namespace that the calling thread is in.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

/// `include/uapi/linux/{sem,msg}.h`.
const SEM_INFO: libc::c_int = 19;
const SEM_STAT_ANY: libc::c_int = 20;
const SETALL: libc::c_int = 17;
const GETALL: libc::c_int = 13;
const MSG_INFO: libc::c_int = 12;
const MSG_STAT_ANY: libc::c_int = 13;
const MSG_COPY: libc::c_int = 0o40000;
/// Mode bits that a program can set (`S_IRWXUGO`).
const MODE: libc::c_ushort = 0o777;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which kind of object, as `/proc/sys/kernel` calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Semaphores,
    Messages,
}

/// Key, owner and rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub key: i32,
    pub owner: (u32, u32),
    pub creator: (u32, u32),
    pub mode: u16,
}

impl Access {
    fn of(perm: &libc::ipc_perm) -> Self {
        let mode = perm.mode & MODE;
        Self { key: perm.__key, owner: (perm.uid, perm.gid), creator: (perm.cuid, perm.cgid), mode }
    }

    fn put(&self, perm: &mut libc::ipc_perm) {
        (perm.uid, perm.gid) = self.owner;
        perm.mode = self.mode & MODE;
    }
}

/// The thread is in that ipc namespace from here on.
pub fn enter(namespace: &File) -> io::Result<()> {
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWIPC).map_err(io::Error::from)
}

/// The next object of a kind has this id (`ipc(5)`, CONFIG_CHECKPOINT_RESTORE).
fn choose_id(kind: Kind, id: i32) -> io::Result<()> {
    let name = match kind {
        Kind::Semaphores => "sem",
        Kind::Messages => "msg",
    };
    std::fs::write(format!("/proc/sys/kernel/{name}_next_id"), id.to_string())
}

/// `None` where nothing has an index, or has it no more.
fn at_index<T>(result: libc::c_int, found: impl FnOnce(i32) -> T) -> io::Result<Option<T>> {
    match check(result) {
        Ok(id) => Ok(Some(found(id))),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The highest index in use, and one more.
pub fn semaphore_indices() -> io::Result<i32> {
    // SAFETY: all-zero bytes are a valid `seminfo`.
    let mut info: libc::seminfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `seminfo`, live and exclusively borrowed.
    check(unsafe { libc::semctl(0, 0, SEM_INFO, &raw mut info) }).map(|highest| highest + 1)
}

/// A set by its index: its id, rights, and how many semaphores it has.
pub fn semaphores_at(index: i32) -> io::Result<Option<(i32, Access, usize)>> {
    // SAFETY: all-zero bytes are a valid `semid_ds`.
    let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `semid_ds`, live and exclusively borrowed.
    let result = unsafe { libc::semctl(index, 0, SEM_STAT_ANY, &raw mut set) };
    at_index(result, |id| (id, Access::of(&set.sem_perm), set.sem_nsems as usize))
}

pub fn semaphore_values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: a set's number of semaphores never changes, so that the kernel writes `count` values, for which there is room.
    check(unsafe { libc::semctl(id, 0, GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

pub fn make_semaphores(id: i32, access: &Access, values: &[u16]) -> io::Result<()> {
    choose_id(Kind::Semaphores, id)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | i32::from(access.mode & MODE);
    let count = libc::c_int::try_from(values.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all arguments are numbers.
    let made = check(unsafe { libc::semget(access.key, count, flags) })?;
    same_id(made, id)?;
    // SAFETY: the set has as many semaphores as there are values, which are live for the call.
    check(unsafe { libc::semctl(id, 0, SETALL, values.as_ptr()) })?;
    // SAFETY: all-zero bytes are a valid `semid_ds`.
    let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
    access.put(&mut set.sem_perm);
    // SAFETY: the kernel reads one `semid_ds`, live for the call.
    check(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut set) }).map(drop)
}

/// Adds to semaphores of a set, or takes from them, without waiting and without a trace at the end of whoever does it.
pub fn adjust(id: i32, changes: &[(u16, i16)]) -> io::Result<()> {
    let operation = |(number, change): &(u16, i16)| libc::sembuf {
        sem_num: *number,
        sem_op: *change,
        sem_flg: libc::IPC_NOWAIT as i16,
    };
    let mut operations: Vec<libc::sembuf> = changes.iter().map(operation).collect();
    if operations.is_empty() {
        return Ok(());
    }
    // SAFETY: as many operations as is said, live for the call.
    check(unsafe { libc::semop(id, operations.as_mut_ptr(), operations.len()) }).map(drop)
}

/// The same as bytes, for another to do it in a way that is taken back at his end: an array of `struct sembuf`.
pub fn undone_operations(changes: &[(u16, i16)]) -> Vec<u8> {
    let flags = (libc::SEM_UNDO | libc::IPC_NOWAIT) as i16;
    let operation = |(number, change): &(u16, i16)| {
        [number.to_ne_bytes(), change.to_ne_bytes(), flags.to_ne_bytes()].concat()
    };
    changes.iter().flat_map(operation).collect()
}

fn same_id(made: i32, wanted: i32) -> io::Result<()> {
    if made == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!("it was given the id {made} and not {wanted}")))
}

pub fn queue_indices() -> io::Result<i32> {
    // `struct msginfo`, 8 ints at most.
    let mut info = [0 as libc::c_int; 16];
    // SAFETY: the kernel writes one `msginfo`, for which there is room.
    check(unsafe { libc::msgctl(0, MSG_INFO, info.as_mut_ptr().cast()) }).map(|highest| highest + 1)
}

/// A queue by its index: its id, rights, how many messages it has and how many bytes it may have.
pub fn queue_at(index: i32) -> io::Result<Option<(i32, Access, usize, u64)>> {
    // SAFETY: all-zero bytes are a valid `msqid_ds`.
    let mut queue: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `msqid_ds`, live and exclusively borrowed.
    let result = unsafe { libc::msgctl(index, MSG_STAT_ANY, &raw mut queue) };
    at_index(result, |id| (id, Access::of(&queue.msg_perm), queue.msg_qnum as usize, queue.msg_qbytes))
}

/// The type and the bytes of a message by its place, which stays where it is (`MSG_COPY`). `room` is for its bytes.
pub fn message(id: i32, place: usize, room: usize) -> io::Result<Option<(i64, Vec<u8>)>> {
    let mut buffer = vec![0u64; 1 + room.div_ceil(8)];
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for a type, a `long`, and `room` bytes behind it.
    let got = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), room, place as libc::c_long, flags) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOMSG) { Ok(None) } else { Err(error) };
    }
    let bytes = buffer[1..].iter().flat_map(|word| word.to_ne_bytes()).take(got.unsigned_abs()).collect();
    Ok(Some((buffer[0] as i64, bytes)))
}

pub fn make_queue(id: i32, access: &Access, limit: u64, messages: &[(i64, Vec<u8>)]) -> io::Result<()> {
    choose_id(Kind::Messages, id)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | i32::from(access.mode & MODE);
    // SAFETY: all arguments are numbers.
    let made = check(unsafe { libc::msgget(access.key, flags) })?;
    same_id(made, id)?;
    // SAFETY: all-zero bytes are a valid `msqid_ds`.
    let mut queue: libc::msqid_ds = unsafe { std::mem::zeroed() };
    access.put(&mut queue.msg_perm);
    queue.msg_qbytes = limit;
    // SAFETY: the kernel reads one `msqid_ds`, live for the call.
    check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut queue) })?;
    for (kind, bytes) in messages {
        let mut message = kind.to_ne_bytes().to_vec();
        message.extend_from_slice(bytes);
        // SAFETY: the message is a type, a `long`, and as many bytes behind it as is said.
        check(unsafe { libc::msgsnd(id, message.as_ptr().cast(), bytes.len(), libc::IPC_NOWAIT) })?;
    }
    Ok(())
}
