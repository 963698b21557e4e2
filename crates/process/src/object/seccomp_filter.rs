//! Seccomp filters that the program has put on itself (`seccomp(2)`): read back from each thread in the order in which they were
//! installed, and installed again after everything else that a thread is made of.
//!
//! Below them is the filter that every workload runs under ([`crate::sys::seccomp`]), which is no part of this. Of actions the
//! kernel takes the most severe, so that what the program forbids it forbids, and what it allows is noticed as ever. A filter of
//! the program's that asks for a tracer (`SECCOMP_RET_TRACE`) or for a listener would be heard by us, and is refused.

use std::io;

use serde::{Deserialize, Serialize};

use crate::sys::ptrace::{self, Tid};
use crate::sys::remote::Batch;

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `struct sock_filter` of `linux/filter.h`, 8 bytes each.
    #[serde(with = "serde_bytes")]
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_LOG`.
    pub log: bool,
}

/// The filters of a process's threads. Those that have none are not named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    pub programs: Vec<Filter>,
    /// By thread: indices of its filters, the one installed first at the head.
    pub threads: Vec<(i32, Vec<u32>)>,
}

/// Bound on what one thread has: the kernel allows 32,768 instructions, and four for each filter
/// (`MAX_INSNS_PER_PATH`, kernel/seccomp.c).
const MAX_FILTERS: u64 = 8192;
/// `linux/bpf_common.h`: the class of an instruction, and for a return whether it gives a constant.
const CLASS: u16 = 0x07;
const RETURN: u16 = 0x06;
const RETURNS: u16 = 0x18;

/// The program's own filters of a stopped thread; an error says why one cannot be kept.
pub fn capture(tid: Tid) -> io::Result<Result<Vec<Filter>, &'static str>> {
    let mut filters = Vec::new();
    // The first is ours.
    for index in 1..MAX_FILTERS {
        let Some(found) = ptrace::seccomp_filter(tid, index)? else { break };
        let Some(program) = found.program else { return Ok(Err("a filter that is not classic BPF")) };
        if asks_a_tracer(&program) {
            return Ok(Err("a filter that asks a tracer (SECCOMP_RET_TRACE)"));
        }
        filters.push(Filter { program, log: found.log });
    }
    Ok(Ok(filters))
}

/// Whether a filter may hand a call to a tracer: of one that computes what it returns nobody can tell.
fn asks_a_tracer(program: &[u8]) -> bool {
    program.chunks_exact(8).any(|op| {
        let code = u16::from_ne_bytes([op[0], op[1]]);
        let value = u32::from_ne_bytes([op[4], op[5], op[6], op[7]]);
        let traces = value & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_TRACE;
        code & CLASS == RETURN && (code & RETURNS != 0 || traces)
    })
}

impl Filters {
    /// Puts together what the threads have.
    pub fn collect<'a>(threads: impl Iterator<Item = (i32, &'a [Filter])>) -> Self {
        let mut all = Self::default();
        for (tid, filters) in threads.filter(|(_, filters)| !filters.is_empty()) {
            let of = filters.iter().map(|filter| {
                let known = all.programs.iter().position(|known| known == filter);
                let index = known.unwrap_or_else(|| {
                    all.programs.push(filter.clone());
                    all.programs.len() - 1
                });
                index as u32
            });
            let of = of.collect();
            all.threads.push((tid, of));
        }
        all.threads.sort_unstable();
        all
    }

    fn of(&self, tid: i32) -> &[u32] {
        self.threads.iter().find(|(thread, _)| *thread == tid).map_or(&[], |(_, filters)| filters)
    }

    pub fn count(&self, tid: i32) -> usize {
        self.of(tid).len()
    }

    /// How many filters all of these threads begin with: they share them, so that the program can go on to synchronise them.
    pub fn in_common(&self, threads: impl Iterator<Item = i32> + Clone) -> usize {
        let Some(first) = threads.clone().next() else { return 0 };
        let first = self.of(first);
        let alike = |index: usize| threads.clone().all(|tid| self.of(tid).get(index) == first.get(index));
        (0..first.len()).take_while(|index| alike(*index)).count()
    }

    /// Calls that install filters of a thread; `for_all`: on all threads of its process. A forged index installs nothing, and is
    /// told.
    pub fn restore(
        &self,
        tid: i32,
        range: std::ops::Range<usize>,
        for_all: bool,
    ) -> Result<Vec<Batch>, &'static str> {
        let indices = self.of(tid).get(range).ok_or("a thread has fewer filters than it should")?;
        let mut batches = Vec::new();
        for index in indices {
            let filter =
                self.programs.get(*index as usize).ok_or("a filter that is referred to is absent")?;
            let mut batch = Batch::new();
            install(&mut batch, filter, for_all);
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// One call that installs a filter on the thread that makes it.
pub fn install(batch: &mut Batch, filter: &Filter, for_all: bool) {
    let code = batch.bytes(&filter.program);
    let length = filter.program.len() as u64 / 8;
    let header: Vec<u8> = [length, code].into_iter().flat_map(u64::to_ne_bytes).collect();
    let header = batch.bytes(&header);
    let mut flags = if filter.log { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 };
    if for_all {
        flags |= libc::SECCOMP_FILTER_FLAG_TSYNC;
    }
    batch.call(libc::SYS_seccomp, &[u64::from(libc::SECCOMP_SET_MODE_FILTER), flags, header]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(byte: u8) -> Filter {
        Filter { program: vec![byte; 8], log: false }
    }

    #[test]
    fn what_threads_begin_with_is_shared_and_the_rest_is_their_own() {
        let (first, second) = ([filter(1), filter(2)], [filter(1), filter(3), filter(2)]);
        let all = Filters::collect([(5, &first[..]), (4, &second[..]), (6, &[])].into_iter());
        assert_eq!(all.programs.len(), 3);
        assert_eq!(all.in_common([4, 5].into_iter()), 1);
        assert_eq!(all.in_common([4, 5, 6].into_iter()), 0);
        assert_eq!(all.in_common([4].into_iter()), 3);
        assert_eq!(all.restore(4, 1..3, false).map(|calls| calls.len()), Ok(2));
    }

    #[test]
    fn forged_indices_are_told() {
        let forged = Filters { programs: vec![filter(1)], threads: vec![(4, vec![0, 7])] };
        assert!(forged.restore(4, 0..2, false).is_err());
        assert!(forged.restore(4, 1..3, false).is_err());
    }

    #[test]
    fn r3_a_filter_that_asks_a_tracer_is_found() {
        let op = |code: u16, value: u32| {
            let mut bytes = code.to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        let returns = |value| op((libc::BPF_RET | libc::BPF_K) as u16, value);
        assert!(asks_a_tracer(
            &[returns(libc::SECCOMP_RET_ALLOW), returns(libc::SECCOMP_RET_TRACE | 7)].concat()
        ));
        assert!(asks_a_tracer(&op((libc::BPF_RET | libc::BPF_A) as u16, 0)));
        assert!(!asks_a_tracer(
            &[returns(libc::SECCOMP_RET_ALLOW), returns(libc::SECCOMP_RET_KILL_THREAD)].concat()
        ));
    }
}
