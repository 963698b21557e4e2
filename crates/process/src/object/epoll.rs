//! Epoll instances (`epoll(7)`).
//!
//! The kernel knows an entry by its file *and* by the number under which that was added (`struct epoll_filefd` in
//! fs/eventpoll.c), so entries can only be restored by a process that has the descriptors under the same numbers.
//!
//! An edge-triggered entry whose descriptor is ready reports once more after it was restored. That is within what
//! epoll promises, and no event is lost.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::descriptor::{At, Holder, Inode, StatusFlags};
use crate::checkpoint::{ObjectId, Pid};
use crate::error::{Attempt, Error, Result};
use crate::sys::descriptor as sys;
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::remote::Batch;

/// The kernel adds these to every entry that is added or modified (`do_epoll_ctl`).
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// Not events but how they are reported (`EP_PRIVATE_BITS`). A one-shot entry that has fired has nothing else left.
const PRIVATE: u32 = (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
/// `struct epoll_event` is packed on x86-64.
const EVENT_SIZE: u64 = 12;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    /// The process in whose descriptor table the entries' numbers are right.
    pub process: Pid,
    pub interests: Vec<Interest>,
    /// Entries whose file is not under their number any more, and open elsewhere: this.
    pub elsewhere: Vec<(Interest, ObjectId)>,
    pub flags: StatusFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    pub fd: i32,
    pub events: u32,
    pub data: u64,
}

impl Interest {
    /// One-shot, has fired, and was not armed again: reports nothing, not even a hang-up.
    pub fn is_disarmed(&self) -> bool {
        self.events & !PRIVATE == 0
    }
}

/// `orphans` are the inodes of connections that the workload has closed and we hold: without us they would not be watched
/// any more.
pub(super) fn capture(
    at: &At<'_>,
    orphans: &HashSet<u64>,
    objects: &dyn Fn(Inode) -> Option<ObjectId>,
) -> Result<Epoll> {
    let info = at.info()?;
    let flags = at.status_flags(&info)?;
    let watched = info
        .lines()
        .filter(|line| line.starts_with("tfd:"))
        .map(|line| parse_line(line).ok_or_else(|| at.unreadable("tfd")))
        .collect::<Result<Vec<_>>>()?;
    // Usually whoever added the entries; after a fork it may be the other one who still has all the descriptors.
    let mut numbers: Vec<i32> = watched.iter().map(|(interest, _)| interest.fd).collect();
    numbers.sort_unstable();
    let unique = numbers.windows(2).all(|pair| pair[0] != pair[1]);
    for holder in [&at.holder].into_iter().chain(at.others).filter(|_| unique) {
        let mut live = watched.iter().filter(|(_, inode)| !orphans.contains(inode));
        if live.clone().all(|(interest, inode)| is_under_its_number(*holder, interest.fd, *inode)) {
            let interests = live.by_ref().map(|(interest, _)| *interest).collect();
            return Ok(Epoll { process: holder.process, interests, elsewhere: Vec::new(), flags });
        }
    }
    // The program has closed one of several duplicates, and the number may be another file's now.
    let holder = at.holder;
    let (mut interests, mut elsewhere) = (Vec::new(), Vec::new());
    for (index, (interest, inode)) in watched.iter().enumerate() {
        if orphans.contains(inode) {
            continue;
        }
        let before = watched[..index].iter().filter(|(other, _)| other.fd == interest.fd).count();
        let epoll = (holder.tid, holder.fd);
        let target = EpollTarget { epoll, number: interest.fd, nth: before as u32 };
        // Of several with one number only the exact question tells which is there.
        let several = watched.iter().filter(|(other, _)| other.fd == interest.fd).count() > 1;
        let here = match several {
            true => target.is((holder.tid, interest.fd)),
            false => is_under_its_number(holder, interest.fd, *inode),
        };
        if here {
            interests.push(*interest);
            continue;
        }
        let object = objects(Inode::Watched(target)).ok_or_else(|| {
            at.refuse(
                format!("epoll watching a file that nobody has open, by the number {}", interest.fd),
                "let the program remove descriptors from epoll before it closes them",
            )
        })?;
        elsewhere.push((*interest, object));
    }
    Ok(Epoll { process: holder.process, interests, elsewhere, flags })
}

/// A file that an epoll instance watches: by the number it was added under, and how many of that number come before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EpollTarget {
    pub epoll: (Tid, i32),
    pub number: i32,
    pub nth: u32,
}

impl EpollTarget {
    /// Whether a descriptor of some process is this file.
    pub fn is(&self, of: (Tid, i32)) -> bool {
        sys::is_epoll_target(of, self.epoll, self.number, self.nth).unwrap_or(false)
    }
}

/// `tfd: N events: HEX data: HEX pos:N ino:HEX sdev:HEX`, with the inode.
fn parse_line(line: &str) -> Option<(Interest, u64)> {
    let after = |key: &str| line.split_once(key)?.1.split_whitespace().next();
    let interest = Interest {
        fd: after("tfd:")?.parse().ok()?,
        events: u32::from_str_radix(after("events:")?, 16).ok()?,
        data: u64::from_str_radix(after("data:")?, 16).ok()?,
    };
    Some((interest, u64::from_str_radix(after("ino:")?, 16).ok()?))
}

/// Whether the holder has the watched file under the watched number.
fn is_under_its_number(holder: Holder, fd: i32, inode: u64) -> bool {
    let Ok(link) = std::fs::read_link(proc::path(holder.tid, &format!("fd/{fd}"))) else { return false };
    // A socket has one file and an inode of its own. Everything else is asked about exactly, which costs a walk through
    // all entries: a few eventfds and timers among ten thousand sockets are nothing.
    match link.to_str().and_then(|link| link.strip_prefix("socket:[")) {
        Some(rest) => rest.trim_end_matches(']').parse() == Ok(inode),
        None => EpollTarget { epoll: (holder.tid, holder.fd), number: fd, nth: 0 }.is((holder.tid, fd)),
    }
}

/// Without its entries, which are the owner's to add.
pub(super) fn build(object: &Epoll) -> Result<OwnedFd> {
    let fd = sys::epoll_create().attempt(|| "make an epoll instance".to_owned())?;
    object.flags.restore(fd.as_fd())?;
    Ok(fd)
}

/// Adds entries, by the process [`Epoll::process`] and after all descriptors have their numbers; an instance that
/// watches another after that one. Returns how many were put into the batch: when less than all, run it and go on with
/// the rest.
///
/// Entries that are disarmed must have been through [`restore_disarmed`] and [`disarm`] before.
pub fn restore_interests(batch: &mut Batch, epfd: i32, interests: &[Interest]) -> usize {
    add(batch, epfd, interests, |_, interest| {
        (!interest.is_disarmed()).then_some((interest.events, interest.data))
    })
}

/// Adds the disarmed entries, armed for now: that an entry is disarmed can only be had by letting it fire. Returns how
/// many entries were gone through, as [`restore_interests`]. `data` is the entry's index from `base` on.
pub fn restore_disarmed(batch: &mut Batch, epfd: i32, interests: &[Interest], base: usize) -> usize {
    let any = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;
    add(batch, epfd, interests, |index, interest| {
        interest.is_disarmed().then_some((interest.events | any, (base + index) as u64))
    })
}

fn add(
    batch: &mut Batch,
    epfd: i32,
    interests: &[Interest],
    event: impl Fn(usize, &Interest) -> Option<(u32, u64)>,
) -> usize {
    for (index, interest) in interests.iter().enumerate() {
        let Some((events, data)) = event(index, interest) else { continue };
        if batch.is_full(1) {
            return index;
        }
        control(batch, epfd, libc::EPOLL_CTL_ADD, interest.fd, events, data);
    }
    interests.len()
}

fn control(batch: &mut Batch, epfd: i32, operation: i32, fd: i32, events: u32, data: u64) {
    let mut event = Vec::with_capacity(EVENT_SIZE as usize);
    event.extend_from_slice(&events.to_ne_bytes());
    event.extend_from_slice(&data.to_ne_bytes());
    let at = batch.bytes(&event);
    batch.call(libc::SYS_epoll_ctl, &[epfd as u64, operation as u64, fd as u64, at]);
}

/// Adds the entries whose files are not under their numbers, by a thread of our own that has a descriptor table to itself:
/// `built` gives ours for an object.
pub fn restore_elsewhere<'a>(
    own: BorrowedFd<'_>,
    set: &Epoll,
    built: impl Fn(ObjectId) -> Option<BorrowedFd<'a>>,
) -> Result<()> {
    let mut entries = Vec::with_capacity(set.elsewhere.len());
    for (interest, object) in &set.elsewhere {
        let file = built(*object).ok_or_else(|| {
            Error::Mismatch(format!("object {} is watched by epoll and was not built", object.0))
        })?;
        entries.push((interest.fd, file, interest.events, interest.data));
    }
    if entries.is_empty() {
        return Ok(());
    }
    sys::epoll_add_as(own, &entries).attempt(|| "watch files by numbers that they no longer have".to_owned())
}

/// Lets the entries that [`restore_disarmed`] added fire, through the supervisor's own descriptor of the instance and
/// while it has no others. Gives those that did not, because their descriptors are not ready for anything: for
/// [`quieten`].
pub fn disarm(own: BorrowedFd<'_>, interests: &[Interest]) -> Result<Vec<Interest>> {
    let mut armed: Vec<bool> = interests.iter().map(Interest::is_disarmed).collect();
    loop {
        let fired = sys::epoll_take(own, interests.len())
            .attempt(|| "let one-shot entries of epoll fire".to_owned())?;
        if fired.is_empty() {
            break;
        }
        for index in fired {
            if let Some(armed) = usize::try_from(index).ok().and_then(|index| armed.get_mut(index)) {
                *armed = false;
            }
        }
    }
    Ok(interests.iter().zip(armed).filter(|(_, armed)| *armed).map(|(interest, _)| *interest).collect())
}

/// Makes entries wait for nothing but an error or a hang-up, which the kernel lets nobody exclude: one that comes before
/// the program arms the entry again is reported early. Returns how many were put into the batch.
pub fn quieten(batch: &mut Batch, epfd: i32, interests: &[Interest]) -> usize {
    for (index, interest) in interests.iter().enumerate() {
        if batch.is_full(1) {
            return index;
        }
        control(batch, epfd, libc::EPOLL_CTL_MOD, interest.fd, interest.events | ALWAYS, interest.data);
    }
    interests.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed() {
        let line = "tfd:        7 events: 8000201d data:     7f00000007  pos:0 ino:2a sdev:8";
        let (interest, inode) = parse_line(line).unwrap();
        assert_eq!((interest.fd, interest.events, interest.data), (7, 0x8000_201d, 0x7f_0000_0007));
        assert_eq!(inode, 0x2a);
        assert!(!interest.is_disarmed());
        assert_eq!(parse_line("tfd: x events: 1"), None);
    }

    #[test]
    fn a_fired_one_shot_entry_is_disarmed() {
        let fired = Interest { fd: 3, events: libc::EPOLLONESHOT as u32, data: 0 };
        assert!(fired.is_disarmed());
        assert!(!Interest { events: fired.events | ALWAYS, ..fired }.is_disarmed());
    }
}
