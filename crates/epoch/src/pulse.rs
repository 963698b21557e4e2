//! Whether the tracer still comes round.
//!
//! Signs of life are sent by threads of their own, which a hanging tracer does not stop: without this a supervisor whose tracer waits
//! for what never comes (a file system that is gone, a fault of ours) would look alive to everybody while its workload stands
//! still. A primary that hangs stops giving signs of life, and its backup takes over; a backup that hangs ends, and another is sought.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::error;

/// The name of the tracer's thread.
pub const TRACER: &str = "tracer";
/// Many times the longest piece of the tracer's work: stopping is given up after 50 ms, and what takes longest, reading or writing
/// what one epoch may hold (`epoch_limit_mb`), takes a second or two on a slow disk.
pub const HANGS: Duration = Duration::from_secs(10);
/// A look counts for no more than this: after a machine stood still as a whole, whoever looks first would take the others for
/// hanging. Looks are this often or more often.
const MOST_AT_ONCE: Duration = Duration::from_millis(100);

/// Told by the tracer, read by others. Odd while it works, even while it waits for work.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

impl Pulse {
    /// A piece of work begins. Called again for the next.
    pub fn works(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) + 1) | 1, Ordering::Relaxed);
    }

    /// It waits for something to do, for as long as there is nothing.
    pub fn rests(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) | 1) + 1, Ordering::Relaxed);
    }
}

/// Looks at a pulse, at least every [`PulseWatch::OFTEN`].
#[derive(Debug)]
pub struct PulseWatch {
    pulse: Arc<Pulse>,
    seen: u64,
    looked: Option<Instant>,
    still: Duration,
}

impl PulseWatch {
    pub fn new(pulse: Arc<Pulse>) -> Self {
        Self { pulse, seen: 0, looked: None, still: Duration::ZERO }
    }

    /// The longest time between two looks.
    pub const OFTEN: Duration = MOST_AT_ONCE;

    /// Whether the tracer has been at one piece of work for [`HANGS`] of the time that was looked at it.
    pub fn hangs(&mut self, now: Instant) -> bool {
        let mark = self.pulse.0.load(Ordering::Relaxed);
        let since =
            self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        if mark != self.seen || mark.is_multiple_of(2) {
            (self.seen, self.still) = (mark, Duration::ZERO);
            return false;
        }
        self.still += since.min(MOST_AT_ONCE);
        self.still >= HANGS
    }
}

/// Ends the process, whose tracer cannot do so. Everything it traces ends with it (`PTRACE_O_EXITKILL`), and the agent sees it go.
pub fn end(reason: &str) -> ! {
    error!(waits = waits().as_deref(), reason, "the supervisor ends");
    std::process::exit(1)
}

/// What the thread called `tracer` waits in, for whoever has to find out why.
pub fn waits() -> Option<String> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let read = |task: &Path, file| fs::read_to_string(task.join(file)).unwrap_or_default().trim().to_owned();
    let tracer = tasks.flatten().map(|task| task.path()).find(|task| read(task, "comm") == TRACER)?;
    Some(format!("{}, system call {}", read(&tracer, "wchan"), read(&tracer, "syscall")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for so long, this often; whether it hangs at the end.
    fn look(watch: &mut PulseWatch, now: &mut Instant, times: u32, every: Duration) -> bool {
        (0..times)
            .map(|_| {
                *now += every;
                watch.hangs(*now)
            })
            .last()
            .unwrap_or(false)
    }

    #[test]
    fn a_tracer_hangs_when_it_is_at_one_piece_of_work_for_long() {
        let pulse = Arc::new(Pulse::default());
        let (mut watch, mut now) = (PulseWatch::new(Arc::clone(&pulse)), Instant::now());
        let often = Duration::from_millis(50);
        assert!(!look(&mut watch, &mut now, 1000, often), "nothing was ever to be done");
        pulse.works();
        assert!(!look(&mut watch, &mut now, 200, often));
        pulse.works();
        assert!(!look(&mut watch, &mut now, 200, often), "another piece of work");
        assert!(look(&mut watch, &mut now, 2, often));
        pulse.rests();
        assert!(!look(&mut watch, &mut now, 1000, often), "it waits for work");
        pulse.rests();
        pulse.works();
        assert!(!look(&mut watch, &mut now, 200, often));
    }

    #[test]
    fn after_the_whole_machine_stood_still_nobody_hangs() {
        let pulse = Arc::new(Pulse::default());
        let (mut watch, mut now) = (PulseWatch::new(Arc::clone(&pulse)), Instant::now());
        pulse.works();
        assert!(!look(&mut watch, &mut now, 10, HANGS * 10));
    }
}
