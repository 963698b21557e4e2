//! The resource limits of a process that comes to life (`setrlimit(2)`), and what is set of it in `/proc`.
//!
//! They hold for what it is given as well: one that may have no descriptors has some, from before. So it is allowed as much as it
//! ever may have first, while it has its privileges, and limited to what it had when all is in place.

use crate::checkpoint::Attributes;
use crate::error::{Attempt, Result};
use crate::shell::{ShellProcess, run_in, run_unchecked};
use crate::sys::proc;
use crate::sys::remote::Batch;

type Limit = (u64, u64);

fn call(batch: &mut Batch, resource: usize, (soft, hard): Limit) {
    let bytes: Vec<u8> = [soft, hard].into_iter().flat_map(u64::to_ne_bytes).collect();
    let at = batch.bytes(&bytes);
    batch.call(libc::SYS_setrlimit, &[resource as u64, at]);
}

/// The highest of both, where this host allows it.
fn raised(now: Limit, wanted: Limit) -> Limit {
    let hard = now.1.max(wanted.1);
    (hard, hard)
}

/// At most what this host allows: both may be lower there than on the host that the process comes from.
fn lowered(now: Limit, wanted: Limit) -> Limit {
    (wanted.0.min(now.1), wanted.1.min(now.1))
}

/// How many descriptors a process with these may have: their numbers are below that.
pub(super) fn descriptors(attributes: &Attributes) -> u64 {
    attributes.limits.get(libc::RLIMIT_NOFILE as usize).map_or(u64::MAX, |(soft, _)| *soft)
}

pub(super) fn raise(process: &ShellProcess, attributes: &Attributes) -> Result<()> {
    let what = || format!("read the limits of process {}", process.host);
    let now = proc::limits(process.host).attempt(what)?;
    // Beyond the hard limit only with CAP_SYS_RESOURCE; without, at least up to it.
    for permitted in [false, true] {
        let mut batch = Batch::new();
        for (resource, (now, wanted)) in now.iter().zip(&attributes.limits).enumerate() {
            let limit = raised(*now, if permitted { *wanted } else { *now });
            call(&mut batch, resource, limit);
        }
        run_unchecked(process, &batch)?;
    }
    Ok(())
}

pub(super) fn lower(process: &ShellProcess, attributes: &Attributes) -> Result<()> {
    let what = || format!("read the limits of process {}", process.host);
    let now = proc::limits(process.host).attempt(what)?;
    let mut batch = Batch::new();
    for (resource, (now, wanted)) in now.iter().zip(&attributes.limits).enumerate() {
        let limit = lowered(*now, *wanted);
        if limit != *wanted {
            tracing::warn!(process = process.host, resource, ?wanted, given = ?limit, "a resource limit is lower here: give the agent as much");
        }
        call(&mut batch, resource, limit);
    }
    run_in(process, &mut batch).map(drop)
}

/// What is set by writing to a process's files in `/proc`, where this host allows it.
pub(super) fn adjust(process: &ShellProcess, attributes: &Attributes) -> Result<()> {
    let host = process.host;
    let what = || format!("read what is set of process {host} in /proc");
    if proc::oom_score_adj(host).attempt(what)? != attributes.oom_score_adj
        && let Err(error) = proc::set_oom_score_adj(host, attributes.oom_score_adj)
    {
        // Below what it was before only with CAP_SYS_RESOURCE.
        let wanted = attributes.oom_score_adj;
        tracing::warn!(process = host, wanted, %error, "oom_score_adj is higher here: give the agent CAP_SYS_RESOURCE");
    }
    if let (Some(now), Some(wanted)) =
        (proc::coredump_filter(host).attempt(what)?, attributes.coredump_filter)
        && now != wanted
    {
        let what = || format!("set what a core dump of process {host} holds");
        proc::set_coredump_filter(host, wanted).attempt(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_beyond_what_the_host_allows_nor_beyond_what_it_was() {
        let here = (1024, 4096);
        assert_eq!(raised(here, (0, 0)), (4096, 4096));
        assert_eq!(raised(here, (100, 1 << 20)), (1 << 20, 1 << 20));
        assert_eq!(lowered((4096, 4096), (0, 0)), (0, 0));
        assert_eq!(lowered((4096, 4096), (5000, u64::MAX)), (4096, 4096));
        assert_eq!(lowered((u64::MAX, u64::MAX), (5000, u64::MAX)), (5000, u64::MAX));
    }
}
