//! What a program does wrong with its transactions, found while it runs: changes that nobody commits, and words that leave
//! before what they tell of is safe.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use crate::store::Store;
use crate::transaction::{Open, open};

/// How many objects of one transaction are named.
const NAMED: usize = 8;

/// Which transactions live, if somebody wants to know.
#[derive(Default)]
pub(crate) struct Watch {
    on: AtomicBool,
    live: Mutex<BTreeMap<u64, Live>>,
}

struct Live {
    since: Instant,
    thread: String,
    objects: Vec<u64>,
    told: bool,
}

impl Watch {
    pub fn begin(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub fn begins(&self, transaction: u64) {
        if self.on.load(Ordering::Relaxed) {
            let current = std::thread::current();
            let thread = current.name().map_or_else(|| format!("{:?}", current.id()), str::to_owned);
            let live = Live { since: Instant::now(), thread, objects: Vec::new(), told: false };
            self.live.lock().insert(transaction, live);
        }
    }

    #[inline]
    pub fn owns(&self, transaction: u64, object: u64) {
        if self.on.load(Ordering::Relaxed)
            && let Some(live) = self.live.lock().get_mut(&transaction)
            && live.objects.len() < NAMED
        {
            live.objects.push(object);
        }
    }

    #[inline]
    pub fn ends(&self, transaction: u64) {
        if self.on.load(Ordering::Relaxed) {
            self.live.lock().remove(&transaction);
        }
    }
}

/// A transaction that has been open for long: others wait for its objects, a backup cannot join, and all of it would be
/// lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thread that began it.
    pub thread: String,
    /// For how long.
    pub open_for: Duration,
    /// What it has changed, or is about to: names of statics, numbers of other objects; at most eight.
    pub objects: Vec<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { thread, open_for, objects } = self;
        let (for_ms, objects) = (open_for.as_millis(), objects.join(", "));
        write!(f, "thread {thread} has changed {objects} and not committed for {for_ms} ms")
    }
}

/// Which transactions have been open for longer than this. Watching begins with the first call, or with
/// [`Config::doctor`](crate::Config::doctor), and costs each transaction a lock.
///
/// ```
/// use std::time::Duration;
/// use outlive_replicated::{commit, doctor, replicated};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// doctor(Duration::ZERO);
/// *COUNT.write() += 1;
/// std::thread::sleep(Duration::from_millis(2));
/// let found = doctor(Duration::from_millis(1));
/// assert!(found[0].objects[0].ends_with("COUNT"));
/// commit()?;
/// assert!(doctor(Duration::ZERO).is_empty());
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn doctor(longer_than: Duration) -> Vec<Finding> {
    let store = Store::global();
    store.watch.begin();
    findings(store, longer_than, |_| true)
}

fn findings(store: &Store, longer_than: Duration, mut wanted: impl FnMut(&mut Live) -> bool) -> Vec<Finding> {
    let mut live = store.watch.live.lock();
    let mut long = Vec::new();
    for live in live.values_mut() {
        let open_for = live.since.elapsed();
        if open_for > longer_than && wanted(live) {
            long.push((live.thread.clone(), open_for, live.objects.clone()));
        }
    }
    drop(live);
    let named = long.into_iter().map(|(thread, open_for, objects)| Finding {
        thread,
        open_for,
        objects: objects.into_iter().map(|id| store.name_of(id)).collect(),
    });
    named.collect()
}

/// For ever: says each once.
pub(crate) fn attend(store: &Store, longer_than: Duration) {
    loop {
        std::thread::sleep((longer_than / 2).max(Duration::from_millis(10)));
        for finding in findings(store, longer_than, |live| !std::mem::replace(&mut live.told, true)) {
            warn!("{finding}");
        }
    }
}

/// Something was about to be told that a takeover could make untrue.
///
/// ```
/// use std::io::Write;
/// use outlive_replicated::{output_guard, replicated, Premature};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// *COUNT.write() += 1;
/// let error = output_guard(Vec::new()).write_all(b"one").unwrap_err();
/// let why = error.get_ref().and_then(|error| error.downcast_ref());
/// assert_eq!(why, Some(&Premature::Uncommitted));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Premature {
    /// This thread has changed marked state since its last commit.
    #[error("this thread has changed replicated state and not committed: commit before you answer")]
    Uncommitted,
    /// What this thread committed last is not held by the backup yet.
    #[error("commit {0} of this thread is not acknowledged: wait for it before you answer")]
    Unacknowledged(u64),
}

/// A writer for what leaves the process: it refuses what comes before its commit. Made by [`output_guard`].
#[derive(Debug)]
pub struct OutputGuard<W> {
    inner: W,
}

/// Wraps what a program answers through, so that an answer that is given too early is an error and not a lie. It knows
/// what the calling thread (or [`task`](crate::task()), while it runs) has changed and what the thread has committed.
///
/// ```
/// use std::io::Write;
/// use outlive_replicated::{commit, output_guard, replicated};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// let mut out = output_guard(Vec::new());
/// *COUNT.write() += 1;
/// assert!(out.write_all(b"one").is_err());
/// commit().unwrap();
/// out.write_all(b"one").unwrap();
/// assert_eq!(out.into_inner(), b"one");
/// ```
pub fn output_guard<W: Write>(inner: W) -> OutputGuard<W> {
    OutputGuard { inner }
}

impl<W> OutputGuard<W> {
    /// The writer.
    pub fn into_inner(self) -> W {
        self.inner
    }

    /// The writer, for all but writing.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    fn check() -> io::Result<()> {
        match open() {
            Open::Nothing => Ok(()),
            Open::Uncommitted => Err(io::Error::other(Premature::Uncommitted)),
            Open::Unacknowledged(number) => Err(io::Error::other(Premature::Unacknowledged(number))),
        }
    }
}

impl<W: Write> Write for OutputGuard<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::check()?;
        self.inner.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::check()?;
        self.inner.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{commit, replicated, rollback};

    #[replicated(name = "doctor_tests::VALUE")]
    static VALUE: u64 = 0;
    #[replicated(name = "doctor_tests::OTHER")]
    static OTHER: u64 = 0;

    #[test]
    fn what_is_not_committed_for_long_is_found_with_its_thread_and_names() {
        let longer_than = Duration::from_millis(30);
        doctor(longer_than);
        let worker = std::thread::Builder::new().name("forgetful".into()).spawn(move || {
            *VALUE.write() += 1;
            let at_once = doctor(longer_than).into_iter().any(|finding| finding.thread == "forgetful");
            std::thread::sleep(longer_than * 2);
            let found: Vec<_> =
                doctor(longer_than).into_iter().filter(|finding| finding.thread == "forgetful").collect();
            commit().unwrap();
            let after = doctor(Duration::ZERO).into_iter().any(|finding| finding.thread == "forgetful");
            (at_once, found, after)
        });
        let (at_once, found, after) = worker.unwrap().join().unwrap();
        assert!(!at_once && !after);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].objects, ["doctor_tests::VALUE"]);
        assert!(found[0].open_for >= longer_than * 2, "{}", found[0]);
    }

    #[test]
    fn nothing_leaves_before_its_commit() {
        let mut out = output_guard(Vec::new());
        out.write_all(b"a").unwrap();
        {
            // Also while only the guard is there.
            let mut other = OTHER.write();
            assert!(out.write_all(b"b").is_err());
            *other += 1;
        }
        let refused = out.write_all(b"b").unwrap_err();
        assert_eq!(refused.get_ref().unwrap().downcast_ref(), Some(&Premature::Uncommitted));
        rollback().unwrap();
        out.write_all(b"c").unwrap();
        assert_eq!(out.into_inner(), b"ac");
    }
}
