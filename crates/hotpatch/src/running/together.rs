//! Functions that switch at one instant: all of a patch's entries lead to *gates*, and a gate leads to the old function or to the new by one
//! byte that they have in common. So a store of one byte switches them all, and a patcher may die before it or after it.
//!
//! It is stored in a moment in which no thread is in any of the functions, in the old ones or in the new: all threads are stopped for
//! that, for as long as it takes to look into their stacks. If one of them is in the way, all go on, and it is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::inject::{ENDED, No, after, await_stop, is_rewound, seize};
use super::memory::{Mapping, Memory};
use super::modules::Module;
use super::region::{Gates, Notes, Region};
use super::unwind::{Place, Tables};
use super::{Meeting, Steps};
use crate::error::{Error, Result, TargetContext};
use crate::sys;
use crate::sys::ptrace::{self, Registers, Tid};

/// How long a moment is waited for.
const LIMIT: Duration = Duration::from_secs(10);
/// After so long those that are in the way run on while the others are held: on a busy machine they come to a processor too seldom.
const EASY: Duration = Duration::from_secs(1);
/// How long the others are held for that at most: what one in the way waits for may be theirs to do.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long those in the way run before they are looked at again.
const TURN: Duration = Duration::from_millis(1);
/// Between two tries: the program runs most of the time.
const REST: Duration = Duration::from_millis(5);
/// How long one thread may take to stop while others are held: it may have to wait for a processor.
const STOP_LIMIT: Duration = Duration::from_millis(50);
/// Threads that are named when there is no such moment.
const MOST_NAMED: usize = 8;

/// Code of one gate.
pub(super) const GATE: u64 = 32;
/// The byte that all gates of a patch look at, with what follows it.
pub(super) const FLAG: u64 = 8;

/// What a gate executes: to the old function while the byte at `flag` is 0, else to the new. `r11` and the flags are nobody's at a
/// function's entry (System V ABI, x86-64, 3.2.1 and figure 3.4). `None` if one of them is out of reach.
pub(super) fn gate_code(at: u64, flag: u64, old: u64, new: u64) -> Option<Vec<u8>> {
    let mut code = vec![0x49, 0xbb]; // movabs r11, flag
    code.extend(flag.to_le_bytes());
    code.extend([0x41, 0x80, 0x3b, 0]); // cmp byte ptr [r11], 0
    for (jump, to) in [(&[0x0f, 0x84][..], old), (&[0xe9][..], new)] {
        code.extend(jump); // je old; jmp new
        let from = at.wrapping_add(code.len() as u64 + 4);
        code.extend(i32::try_from(to.wrapping_sub(from) as i64).ok()?.to_le_bytes());
    }
    code.resize(GATE as usize, 0xcc);
    Some(code)
}

/// Code in which no thread may be, with the name of the function or patch that it belongs to.
#[derive(Debug, Clone)]
pub(super) struct Avoided {
    pub name: String,
    pub range: Range<u64>,
}

/// A process whose threads are all to be stopped for a moment.
pub(super) struct Moment<'a> {
    memory: &'a Memory,
    tables: Tables,
    avoided: &'a [Avoided],
    steps: Steps<'a>,
}

/// How one try ended.
enum Try {
    Done,
    /// Threads that were in the way, each with the function that it was in.
    InTheWay(Vec<(Tid, String)>),
    /// One that did not stop in time: on a busy machine it may not have come to a processor.
    StillRuns(Tid, String),
}

impl<'a> Moment<'a> {
    /// Reads the tables of all modules.
    pub fn new(
        memory: &'a Memory,
        modules: &[Module],
        avoided: &'a [Avoided],
        steps: Steps<'a>,
    ) -> Result<Self> {
        let mappings = memory.mappings()?;
        let mut modules = modules.to_vec();
        modules.extend(Module::of_kernel(memory, &mappings));
        let tables = Tables::read(memory, &modules, &mappings);
        Ok(Self { memory, tables, avoided, steps })
    }

    /// Does something in a moment in which no thread is in the code to be avoided. Returns the longest time that the threads were
    /// stopped for it.
    pub fn take(&self, act: &(dyn Fn() -> Result<()> + Sync)) -> Result<Duration> {
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        let mut known = Vec::new();
        loop {
            let patience = if begun.elapsed() < EASY { Duration::ZERO } else { PATIENCE };
            // A thread of its own for each try: when it ends, whatever it traced is let go, also what would not stop.
            let (outcome, held) = thread::scope(|scope| scope.spawn(|| self.attempt(patience, act)).join())
                .unwrap_or_else(|_| {
                    (Err(Error::unfit("the thread that traces came to an end")), Duration::ZERO)
                });
            longest = longest.max(held);
            (self.steps)("all let go");
            match outcome? {
                Try::Done => return Ok(longest),
                Try::InTheWay(threads) => known = threads,
                Try::StillRuns(tid, why) if known.is_empty() => known = vec![(tid, why)],
                Try::StillRuns(..) => {}
            }
            if begun.elapsed() > LIMIT {
                return Err(self.refusal(&known));
            }
            thread::sleep(REST);
        }
    }

    fn attempt(&self, patience: Duration, act: &dyn Fn() -> Result<()>) -> (Result<Try>, Duration) {
        sys::prefer_this_thread();
        let mut stopped = BTreeMap::new();
        let mappings = match self.memory.mappings() {
            Ok(mappings) => mappings,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let begun = Instant::now();
        let outcome = self.with_all_stopped(&mappings, &mut stopped, patience, act);
        for tid in stopped.keys() {
            // One that was killed meanwhile is gone.
            let _ = ptrace::detach(*tid, 0);
        }
        (outcome, begun.elapsed())
    }

    fn with_all_stopped(
        &self,
        mappings: &[Mapping],
        stopped: &mut BTreeMap<Tid, Registers>,
        patience: Duration,
        act: &dyn Fn() -> Result<()>,
    ) -> Result<Try> {
        let begun = Instant::now();
        loop {
            if let Some((tid, why)) = self.stop_all(stopped)? {
                return Ok(Try::StillRuns(tid, why));
            }
            (self.steps)("all stopped");
            let mut in_the_way = Vec::new();
            for (tid, regs) in stopped.iter() {
                in_the_way.extend(self.where_it_is_not_to_be(mappings, regs)?.map(|name| (*tid, name)));
            }
            if in_the_way.is_empty() {
                break;
            }
            if begun.elapsed() >= patience {
                return Ok(Try::InTheWay(in_the_way));
            }
            for (tid, _) in &in_the_way {
                ptrace::resume(*tid, 0).or_target(|| format!("resume thread {tid}"))?;
            }
            thread::sleep(TURN);
            for (tid, _) in &in_the_way {
                stopped.remove(tid);
                // One that has ended meanwhile is found to have by who waits for it.
                let _ = ptrace::interrupt(*tid);
            }
            let again = in_the_way.into_iter().map(|(tid, _)| tid).collect();
            if let Some((tid, why)) = self.await_all(again, stopped, &mut BTreeSet::new())? {
                return Ok(Try::StillRuns(tid, why));
            }
        }
        (self.steps)("nobody in the way");
        act()?;
        (self.steps)("switched together");
        Ok(Try::Done)
    }

    /// Stops all threads, those as well that a thread makes meanwhile. If one would not stop, says which, and what it is in.
    fn stop_all(&self, stopped: &mut BTreeMap<Tid, Registers>) -> Result<Option<(Tid, String)>> {
        let mut ended = BTreeSet::new();
        loop {
            let mut fresh = Vec::new();
            for tid in self.memory.threads()? {
                if stopped.contains_key(&tid) || ended.contains(&tid) {
                    continue;
                }
                // The first thread of a process stays in the list when it has ended.
                let state = self.memory.status(tid, "State").and_then(|state| state.chars().next());
                match state {
                    None | Some('Z' | 'X') => {
                        ended.insert(tid);
                        continue;
                    }
                    Some(_) => {}
                }
                match seize(self.memory, tid) {
                    Ok(()) => fresh.push(tid),
                    Err(No::All(error)) => return Err(error),
                    Err(No::This(_) | No::Ever(_)) => {
                        ended.insert(tid);
                    }
                }
            }
            if fresh.is_empty() {
                return Ok(None);
            }
            if let Some(one) = self.await_all(fresh, stopped, &mut ended)? {
                return Ok(Some(one));
            }
        }
    }

    /// Waits until threads that were asked to have stopped.
    fn await_all(
        &self,
        asked: Vec<Tid>,
        stopped: &mut BTreeMap<Tid, Registers>,
        ended: &mut BTreeSet<Tid>,
    ) -> Result<Option<(Tid, String)>> {
        for tid in asked {
            match await_stop(self.memory, tid, STOP_LIMIT) {
                Ok(_) => {}
                Err(No::All(error)) => return Err(error),
                Err(No::This(why) | No::Ever(why)) => {
                    if self.memory.threads()?.contains(&tid) && why != ENDED {
                        return Ok(Some((tid, format!("a system call, in which it {why}"))));
                    }
                    ended.insert(tid);
                    continue;
                }
            }
            let regs = ptrace::registers(tid).or_target(|| format!("read the registers of thread {tid}"))?;
            // A call that was interrupted without a signal is made again, as if nothing had been.
            let again = after(self.memory, tid, &regs);
            if is_rewound(&regs, &again) {
                ptrace::set_registers(tid, &again)
                    .or_target(|| format!("set the registers of thread {tid}"))?;
            }
            stopped.insert(tid, regs);
        }
        Ok(None)
    }

    /// The name of the code that a stopped thread is in or goes back to, if it is to be avoided.
    fn where_it_is_not_to_be(&self, mappings: &[Mapping], regs: &Registers) -> Result<Option<String>> {
        let mut found = None;
        let mut take = |place: Place| {
            let address = match place {
                Place::At(at) => at,
                // The call is before it; a function's last instruction may be one.
                Place::Behind(at) => at.wrapping_sub(1),
            };
            found =
                self.avoided.iter().find(|avoided| avoided.range.contains(&address)).map(|a| a.name.clone());
            found.is_some()
        };
        match self.tables.walk(self.memory, mappings, regs, &mut take) {
            Ok(()) => Ok(found),
            Err(Error::Unfit(why)) => Ok(Some(format!("what cannot be told: {why}"))),
            Err(error) => Err(error),
        }
    }

    fn refusal(&self, threads: &[(Tid, String)]) -> Error {
        let mut named: Vec<String> = threads
            .iter()
            .take(MOST_NAMED)
            .map(|(tid, place)| {
                let name = self.memory.status(*tid, "Name").unwrap_or_default();
                format!("thread {tid} ({name}) was in {place}")
            })
            .collect();
        if threads.len() > MOST_NAMED {
            named.push(format!("{} more", threads.len() - MOST_NAMED));
        }
        Error::unfit(format!(
            "process {} had no moment within {} s in which no thread was in the functions that switch together: {}",
            self.memory.pid,
            LIMIT.as_secs(),
            named.join(", ")
        ))
    }
}

/// Where the gates are, in the order of the entries.
pub(super) fn gate_places(gates: Gates) -> impl Iterator<Item = u64> {
    (0..).map(move |index| gates.code.wrapping_add(GATE * index))
}

/// Entries of a patch that switches at one instant lead to its gates.
pub(super) fn lead_to_gates(notes: &mut Notes) {
    let Some(gates) = notes.gates else { return };
    for (switched, at) in notes.switched.iter_mut().zip(gate_places(gates)) {
        switched.target = at;
    }
}

fn code_of(region: &Region) -> Avoided {
    let end = region.address.saturating_add(region.length);
    Avoided { name: format!("the code of {}", region.notes.name), range: region.notes.code..end }
}

fn has_entry_of(region: &Region, others: &[Region]) -> bool {
    let origins: BTreeSet<u64> =
        others.iter().flat_map(|other| &other.notes.switched).map(|switched| switched.origin).collect();
    region.notes.switched.iter().any(|switched| origins.contains(&switched.origin))
}

/// Where no thread may be when a patch is switched on: in the program's functions that it has new ones of, in those that other patches
/// have or had in their place, and between the two of a gate.
pub(super) fn avoided_by(meetings: &[Meeting<'_>], prepared: &[Region], regions: &[Region]) -> Vec<Avoided> {
    let mut avoided = Vec::new();
    for meeting in meetings {
        let bias = meeting.module.bias;
        avoided.extend(meeting.part.replaced.iter().map(|replaced| Avoided {
            name: replaced.name.clone(),
            range: bias.wrapping_add(replaced.start)..bias.wrapping_add(replaced.end),
        }));
    }
    for region in prepared {
        if let Some(gates) = region.notes.gates {
            let length = GATE * region.notes.switched.len() as u64;
            let range = gates.code..gates.code.saturating_add(length);
            avoided.push(Avoided { name: format!("a gate of {}", region.notes.name), range });
        }
    }
    let is_prepared = |region: &Region| prepared.iter().any(|other| other.address == region.address);
    avoided.extend(
        regions.iter().filter(|region| !is_prepared(region) && has_entry_of(region, prepared)).map(code_of),
    );
    avoided
}

/// Where no thread may be when a patch is switched off: in its functions, or in those that came over them.
pub(super) fn above(unit: &[Region], regions: &[Region]) -> Vec<Avoided> {
    let lowest = unit.iter().map(|region| region.order).min().unwrap_or(0);
    regions
        .iter()
        .filter(|region| region.order >= lowest && has_entry_of(region, unit))
        .map(code_of)
        .collect()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, FlowControl};

    use super::*;

    #[test]
    fn a_gate_leads_to_the_old_and_to_the_new() {
        let (at, old, new) = (0x5555_0000_1000, 0x5555_0100_0000, 0x5554_ff00_0000);
        let code = gate_code(at, 0x7fff_1234_5678, old, new).unwrap();
        assert_eq!(code.len() as u64, GATE);
        let mut decoder = Decoder::with_ip(64, &code, at, DecoderOptions::NONE);
        let all: Vec<_> = decoder.iter().take(4).collect();
        assert_eq!(all[0].immediate64(), 0x7fff_1234_5678);
        assert_eq!(
            (all[2].flow_control(), all[2].near_branch_target()),
            (FlowControl::ConditionalBranch, old)
        );
        assert_eq!(
            (all[3].flow_control(), all[3].near_branch_target()),
            (FlowControl::UnconditionalBranch, new)
        );
        assert!(gate_code(at, 0, old, at + (3 << 30)).is_none());
    }
}
