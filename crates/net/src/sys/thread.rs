//! How a thread is scheduled.

use std::io;

use nix::errno::Errno;

/// Runs the calling thread before all normal ones from now on: `SCHED_FIFO`, sched(7). `priority` is 1 to 99.
pub fn run_first(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: the call reads one `struct sched_param` through the pointer, which is valid for it; 0 is the calling
    // thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })?;
    Ok(())
}
