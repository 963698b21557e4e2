//! A moment in which all threads of a process are stopped, to look where they are and to store one byte if nobody is in the way.
//!
//! The first thread that stops is held until the last one has, so all that can be done before is: the tables to walk their stacks by
//! are read, and the threads are seized, which stops none. Then all are asked to stop. A thread has to come to a processor for
//! that, and on a busy machine it would wait for its turn with all others held: so it is preferred to whatever else runs
//! until it stands ([`Preferred`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::inject::{
    ENDED, No, Steps, after, await_stop, by_own_thread, interrupt, is_rewound, seize, was_asleep,
};
use super::memory::{Mapping, Memory};
use super::modules;
use super::together::{Store, Try};
use super::unwind::{Place, Tables};
use crate::error::{Error, Result, TargetContext};
use crate::sys;
use crate::sys::preferred::Preferred;
use crate::sys::ptrace::{self, Registers, Tid};

/// How long the others are held at most while those in the way go on, and how long these run before they are looked at again. At
/// first it is what nobody notices, and pays only if they come to a processor at once;
const SHORT: (Duration, Duration) = (Duration::from_micros(500), Duration::from_micros(100));
/// later more. It has an end because what one in the way waits for may be for the others to do.
const LONG: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1));
/// How long one thread may take to stop while others are held: it may have to wait for a processor. After the first that takes longer all
/// others together have as long once more.
const STOP_LIMIT: Duration = Duration::from_millis(50);
/// How long all are waited for that were asked to stop and have not, when nobody is held any more.
const LATE_LIMIT: Duration = Duration::from_secs(1);

/// Says where threads of a process are that somebody has stopped.
pub(super) struct Sight {
    tables: Tables,
    /// What the modules are mapped from.
    of: Vec<Mapping>,
}

impl Sight {
    /// Reads the tables of all modules; the process runs meanwhile.
    pub fn read(memory: &Memory) -> Result<Self> {
        let mappings = memory.mappings()?;
        let mut modules = modules::find(memory, &mappings);
        modules.extend(modules::Module::of_kernel(memory, &mappings));
        Ok(Self {
            tables: Tables::read(memory, &modules, &mappings),
            of: files(&mappings).cloned().collect(),
        })
    }

    /// Whether modules have neither come nor gone since.
    pub fn is_current(&self, memory: &Memory) -> Result<bool> {
        Ok(files(&memory.mappings()?).eq(&self.of))
    }

    /// Which of these pieces of code a thread is in or goes back to: the first that is found. An error is what keeps it from being told.
    fn found_in<'r>(
        &self,
        memory: &Memory,
        mappings: &[Mapping],
        regs: &Registers,
        avoided: impl Iterator<Item = &'r Range<u64>> + Clone,
    ) -> Result<Option<usize>> {
        let mut found = None;
        let mut take = |place: Place| {
            let address = match place {
                Place::At(at) => at,
                // The call is before it; a function's last instruction may be one.
                Place::Behind(at) => at.wrapping_sub(1),
            };
            found = avoided.clone().position(|range| range.contains(&address));
            found.is_some()
        };
        self.tables.walk(memory, mappings, regs, &mut take).map(|()| found)
    }
}

/// Mappings of files, which modules are. What a program maps beside them says nothing of its code.
fn files(mappings: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    mappings.iter().filter(|mapping| mapping.inode != 0)
}

/// Where a thread is, by its place among the pieces of code that were asked about, or why that cannot be told.
pub type Whereabouts = std::result::Result<usize, String>;

/// For whoever has stopped the threads of a process: says which of them are in some code.
pub struct Stacks {
    memory: Memory,
    sight: Sight,
}

impl Stacks {
    /// While the process runs.
    pub fn read(pid: Tid) -> Result<Self> {
        let memory = Memory::open(pid)?;
        let sight = Sight::read(&memory)?;
        Ok(Self { memory, sight })
    }

    /// Whether this is still so of the process with that number, and need not be read again.
    pub fn is_current(&self, pid: Tid) -> Result<bool> {
        Ok(self.memory.pid == pid && self.sight.is_current(&self.memory)?)
    }

    /// While it stands: those of its threads, with their registers, that are in one of these pieces of code or go back to it.
    pub fn in_the_way(
        &self,
        threads: &[(Tid, Registers)],
        avoided: &[Range<u64>],
    ) -> Result<Vec<(Tid, Whereabouts)>> {
        let mappings = self.memory.mappings()?;
        let mut found = Vec::new();
        for (tid, regs) in threads {
            match self.sight.found_in(&self.memory, &mappings, regs, avoided.iter()) {
                Ok(None) => {}
                Ok(Some(index)) => found.push((*tid, Ok(index))),
                Err(Error::Unfit(why)) => found.push((*tid, Err(why))),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// What came of an attempt whose end may have failed as well: of two errors the first is what the other may have come of.
fn with_end<T>(outcome: Result<T>, end: [Result<()>; 2]) -> Result<T> {
    end.into_iter().fold(outcome, |outcome, end| match (outcome, end) {
        (Err(error), Err(later)) => Err(error.with(&later.to_string())),
        (outcome, Ok(())) => outcome,
        (Ok(_), Err(error)) => Err(error),
    })
}

/// A process whose threads are all to be stopped for a moment.
pub(super) struct Moment<'a> {
    pub memory: &'a Memory,
    pub sight: &'a Sight,
    pub steps: Steps<'a>,
}

/// Threads that stand, and since when the first of them may have.
#[derive(Default)]
struct Stopped {
    threads: BTreeMap<Tid, Registers>,
    ended: BTreeSet<Tid>,
    /// Asked to stop, and not seen to.
    late: Vec<Tid>,
    since: Option<Instant>,
}

impl Moment<'_> {
    /// Tries once. Says as well how long the threads were stopped for it.
    pub fn attempt(&self, store: &Store<'_>, preferred: &mut Option<Preferred>) -> Result<(Try, Duration)> {
        let tried = by_own_thread(|| self.traced(store, preferred));
        (self.steps)("all let go");
        tried
    }

    fn traced(&self, store: &Store<'_>, preferred: &mut Option<Preferred>) -> Result<(Try, Duration)> {
        let is_preferred = sys::prefer_this_thread();
        if is_preferred && preferred.is_none() {
            *preferred = Preferred::new();
        }
        let mappings = self.memory.mappings()?;
        let mut stopped = Stopped::default();
        let outcome = self.with_all_stopped(&mappings, &mut stopped, store, preferred.as_mut());
        // Before anybody goes on, whatever happened: preferred is who comes to a stop, and not who runs.
        let all_back = preferred.as_mut().map_or(Ok(()), Preferred::put_all_back);
        for tid in stopped.threads.keys() {
            // One that was killed meanwhile is gone.
            let _ = ptrace::detach(*tid, 0);
        }
        let held = stopped.since.map_or(Duration::ZERO, |since| since.elapsed());
        let late = self.let_go_of_late(&stopped.late);
        let all_back =
            all_back.or_target(|| format!("put back how threads of process {} run", self.memory.pid));
        Ok((with_end(outcome, [all_back, late])?, held))
    }

    /// Waits for threads that were asked to stop and have not, and lets them go. Only of a thread that stands can it be seen that a call of it
    /// was interrupted for nothing.
    fn let_go_of_late(&self, late: &[Tid]) -> Result<()> {
        let deadline = Instant::now() + LATE_LIMIT;
        let mut outcome = Ok(());
        for tid in late {
            // What nothing interrupts is not interrupted by this either; it is let go when this thread ends.
            if self.memory.state(*tid).is_ok_and(|state| state == Some('D')) {
                continue;
            }
            let went = match await_stop(self.memory, *tid, deadline.saturating_duration_since(Instant::now()))
            {
                Ok(_) => self
                    .rewound(*tid)
                    .and_then(|_| ptrace::detach(*tid, 0).or_target(|| format!("let go of thread {tid}"))),
                Err(No::This(_) | No::Ever(_)) => Ok(()),
                Err(No::All(error)) => Err(error),
            };
            outcome = outcome.and(went);
        }
        outcome
    }

    fn with_all_stopped(
        &self,
        mappings: &[Mapping],
        stopped: &mut Stopped,
        store: &Store<'_>,
        mut preferred: Option<&mut Preferred>,
    ) -> Result<Try> {
        let (patience, turn) = match (store.is_patient, &preferred) {
            (true, _) => LONG,
            (false, Some(_)) => SHORT,
            (false, None) => (Duration::ZERO, Duration::ZERO),
        };
        loop {
            if let Some((tid, why)) = self.stop_all(stopped, preferred.as_deref_mut())? {
                return Ok(Try::StillRuns(tid, why));
            }
            (self.steps)("all stopped");
            let mut in_the_way = Vec::new();
            for (tid, regs) in &stopped.threads {
                in_the_way
                    .extend(self.where_it_is_not_to_be(mappings, regs, store)?.map(|name| (*tid, name)));
            }
            if in_the_way.is_empty() {
                break;
            }
            // Those that sleep there do not come out because they may: what they wait for is not done in so short a time, or is for
            // others to do.
            let sleeps = |(tid, _): &(Tid, String)| stopped.threads.get(tid).is_some_and(was_asleep);
            if in_the_way.iter().all(sleeps) || stopped.since.is_none_or(|since| since.elapsed() >= patience)
            {
                return Ok(Try::InTheWay(in_the_way));
            }
            for (tid, _) in &in_the_way {
                // Else it would find its turn over when it came to a processor, each time.
                if let Some(preferred) = preferred.as_deref_mut() {
                    preferred.add(*tid);
                }
                match ptrace::resume(*tid, 0) {
                    // One that was killed is found to have ended by who waits for it.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    outcome => outcome.or_target(|| format!("resume thread {tid}"))?,
                }
            }
            (self.steps)("those in the way go on");
            thread::sleep(turn);
            let again: Vec<Tid> = in_the_way.into_iter().map(|(tid, _)| tid).collect();
            for tid in &again {
                stopped.threads.remove(tid);
            }
            if let Some((tid, why)) = self.stop(again, stopped, preferred.as_deref_mut())? {
                return Ok(Try::StillRuns(tid, why));
            }
        }
        (self.steps)("nobody in the way");
        if let Some(change) = store.change {
            self.memory.write(change.at, &[change.byte])?;
            (self.steps)("switched together");
        }
        Ok(Try::Done)
    }

    /// Stops all threads, those as well that a thread makes meanwhile. If one would not stop, says which, and what it is in.
    fn stop_all(
        &self,
        stopped: &mut Stopped,
        mut preferred: Option<&mut Preferred>,
    ) -> Result<Option<(Tid, String)>> {
        loop {
            let mut fresh = Vec::new();
            for tid in self.memory.threads()? {
                if stopped.threads.contains_key(&tid) || stopped.ended.contains(&tid) {
                    continue;
                }
                // The first thread of a process stays in the list when it has ended.
                if self.memory.state(tid)?.is_none() {
                    stopped.ended.insert(tid);
                    continue;
                }
                match seize(self.memory, tid) {
                    Ok(()) => fresh.push(tid),
                    Err(No::All(error)) => return Err(error),
                    Err(No::This(_) | No::Ever(_)) => {
                        stopped.ended.insert(tid);
                    }
                }
            }
            if fresh.is_empty() {
                return Ok(None);
            }
            if let Some(one) = self.stop(fresh, stopped, preferred.as_deref_mut())? {
                return Ok(Some(one));
            }
        }
    }

    /// Has threads that are seized stop, and waits until they have: for all that were asked, also when one would not or something fails.
    fn stop(
        &self,
        asked: Vec<Tid>,
        stopped: &mut Stopped,
        mut preferred: Option<&mut Preferred>,
    ) -> Result<Option<(Tid, String)>> {
        stopped.since.get_or_insert_with(Instant::now);
        let (mut error, mut outcome) = (None, None);
        for tid in &asked {
            match interrupt(*tid) {
                // One that has ended is found to have by who waits for it.
                Ok(()) | Err(No::This(_) | No::Ever(_)) => {}
                Err(No::All(all)) => error = error.or(Some(all)),
            }
            // Only now, when it comes to a stop and not to the program's code: a loop there would keep everybody else waiting.
            if let Some(preferred) = preferred.as_deref_mut() {
                preferred.add(*tid);
            }
        }
        (self.steps)("all asked to stop");
        let mut deadline = None;
        for tid in asked {
            let limit = deadline
                .map_or(STOP_LIMIT, |deadline: Instant| deadline.saturating_duration_since(Instant::now()));
            let stop = self.await_one(tid, limit, stopped);
            // Before it goes on by whatever way, it is as it was.
            if let Some(preferred) = preferred.as_deref_mut()
                && let Err(failed) =
                    preferred.put_back(tid).or_target(|| format!("put back how thread {tid} runs"))
            {
                error = error.or(Some(failed));
            }
            match stop {
                Ok(None) => continue,
                Ok(Some(why)) => outcome = outcome.or(Some((tid, why))),
                Err(all) => error = error.or(Some(all)),
            }
            deadline.get_or_insert_with(|| Instant::now() + STOP_LIMIT);
        }
        error.map_or(Ok(outcome), Err)
    }

    /// Waits until a thread stands that was asked to, or has ended. Says why it does neither.
    fn await_one(&self, tid: Tid, limit: Duration, stopped: &mut Stopped) -> Result<Option<String>> {
        match await_stop(self.memory, tid, limit) {
            Ok(_) => {
                stopped.threads.insert(tid, self.rewound(tid)?);
                Ok(None)
            }
            Err(No::All(error)) => Err(error),
            Err(No::This(why) | No::Ever(why)) => {
                if why == ENDED || !self.memory.threads()?.contains(&tid) {
                    stopped.ended.insert(tid);
                    return Ok(None);
                }
                stopped.late.push(tid);
                Ok(Some(format!("a system call, in which it {why}")))
            }
        }
    }

    /// Registers of a thread that stands, as they were. A call that was interrupted without a signal is made again, as if nothing had been.
    fn rewound(&self, tid: Tid) -> Result<Registers> {
        let regs = ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?;
        let again = after(self.memory, tid, &regs);
        if is_rewound(&regs, &again) {
            ptrace::set_registers(tid, &again).or_target(|| format!("set the registers of thread {tid}"))?;
        }
        Ok(regs)
    }

    /// The name of the code that a stopped thread is in or goes back to, if it is to be avoided.
    fn where_it_is_not_to_be(
        &self,
        mappings: &[Mapping],
        regs: &Registers,
        store: &Store<'_>,
    ) -> Result<Option<String>> {
        let ranges = store.avoided.iter().map(|avoided| &avoided.range);
        match self.sight.found_in(self.memory, mappings, regs, ranges) {
            Ok(found) => {
                Ok(found.and_then(|index| store.avoided.get(index)).map(|avoided| avoided.name.clone()))
            }
            Err(Error::Unfit(why)) => Ok(Some(format!("what cannot be told: {why}"))),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_failed_says_so_whatever_its_end_says() {
        let error = |text: &str| Error::unfit(text);
        let said = |outcome: Result<u8>, end| with_end(outcome, end).map_err(|error| error.to_string());
        assert_eq!(said(Ok(1), [Ok(()), Ok(())]), Ok(1));
        assert_eq!(said(Err(error("a")), [Ok(()), Ok(())]), Err("a".to_owned()));
        assert_eq!(said(Err(error("a")), [Err(error("b")), Err(error("c"))]), Err("a; b; c".to_owned()));
        assert_eq!(said(Ok(1), [Ok(()), Err(error("c"))]), Err("c".to_owned()));
    }
}
