//! Functions that switch at one instant: all of a patch's entries lead to *gates*, and a gate leads to the old function or to the new by one
//! byte that they have in common. So a store of one byte switches them all, and a patcher may die before it or after it.
//!
//! It is stored in a moment in which no thread is in any of the functions, in the old ones or in the new: all threads are stopped for
//! that, for as long as it takes to look into their stacks. If one of them is in the way, all go on, and it is tried again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::Meeting;
use super::inject::Caller;
use super::memory::Memory;
use super::region::{Gates, Notes, Region};
use crate::error::{Error, Result};
use crate::sys::ptrace::Tid;

/// How long a moment is waited for.
const LIMIT: Duration = Duration::from_secs(10);
/// After so long those that are in the way run on while the others are held: on a busy machine they come to a processor too seldom.
const EASY: Duration = Duration::from_secs(1);
/// Between two tries, at least.
const REST: Duration = Duration::from_millis(5);
/// And so many times as long as the threads were held for the last: the program runs most of the time.
const REST_PER_HOLD: u32 = 4;
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
pub struct Avoided {
    pub name: String,
    pub range: Range<u64>,
}

/// A byte that is to be stored.
#[derive(Debug, Clone)]
pub struct Change {
    pub at: u64,
    pub byte: u8,
    /// Bytes of the process that say that it is still wanted, and where they are: for who stores it later than it was asked, when whoever
    /// asked may have given up.
    pub mark: (u64, Vec<u8>),
}

/// What is to be done in a moment in which no thread is in some code.
#[derive(Debug, Clone, Copy)]
pub struct Store<'a> {
    pub avoided: &'a [Avoided],
    /// `None` if it is only to be known whether there is such a moment.
    pub change: Option<&'a Change>,
    /// Those in the way may go on for a little while, with the others held.
    pub is_patient: bool,
}

/// How one try to store it ended.
#[derive(Debug)]
pub enum Try {
    Done,
    /// Threads that were in the way, each with the function that it was in.
    InTheWay(Vec<(Tid, String)>),
    /// The process, or this thread of it, did not stop in time: on a busy machine it may not have come to a processor.
    StillRuns(Tid, String),
}

/// Tries until no thread is in the way. Returns the longest time that the threads were stopped for it.
pub(super) fn in_a_moment(
    memory: &Memory,
    caller: &mut dyn Caller,
    avoided: &[Avoided],
    change: Option<&Change>,
) -> Result<Duration> {
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let mut known = Vec::new();
    loop {
        let is_patient = begun.elapsed() > EASY;
        let (outcome, held) = caller.store(&Store { avoided, change, is_patient })?;
        longest = longest.max(held);
        match outcome {
            Try::Done => return Ok(longest),
            Try::InTheWay(threads) => known = threads,
            Try::StillRuns(tid, why) if known.is_empty() => known = vec![(tid, why)],
            Try::StillRuns(..) => {}
        }
        if begun.elapsed() > LIMIT {
            return Err(refusal(memory, &known));
        }
        thread::sleep(REST.max((held * REST_PER_HOLD).min(LIMIT / 10)));
    }
}

fn refusal(memory: &Memory, threads: &[(Tid, String)]) -> Error {
    let mut named: Vec<String> = threads
        .iter()
        .take(MOST_NAMED)
        .map(|(tid, place)| {
            let name = memory.status(*tid, "Name").unwrap_or_default();
            format!("thread {tid} ({name}) was in {place}")
        })
        .collect();
    if threads.len() > MOST_NAMED {
        named.push(format!("{} more", threads.len() - MOST_NAMED));
    }
    Error::unfit(format!(
        "process {} had no moment within {} s in which no thread was in the functions that switch together: {}",
        memory.pid,
        LIMIT.as_secs(),
        named.join(", ")
    ))
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
