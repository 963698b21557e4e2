//! When an epoch ends: a decision without I/O.
//!
//! Not on a timer. A checkpoint is wanted when payload waits to leave; it is taken as soon as the last one has
//! committed, but not so often that the workload stands still for more than its share. A workload that has done
//! all it was asked (no further output for a moment) loses nothing by standing still, so that a lone request
//! waits for one small checkpoint only.
//!
//! Whether it has done all is guessed from what it said in epochs before, and from what has just been let go: whoever is answered
//! asks again. Where less has come so far, more is waited for, at most as long as a checkpoint takes: so the wait never costs
//! more than the checkpoint that it may spare. Where as much has come, hardly anything is waited for.

use std::time::{Duration, Instant};

/// Without new output for this long the workload is taken to have finished what it was asked: several times what a
/// server takes between two replies of a busy loop (tens of microseconds), well below a checkpoint's cost.
const QUIET: Duration = Duration::from_micros(120);
/// The same where as much has been said as is usual: what comes beyond that comes with little between.
const QUIET_AFTER_ALL: Duration = Duration::from_micros(30);
/// Of what an epoch usually says, this part is forgotten with each that says less: a few epochs until a client that has
/// left is no longer waited for.
const FADING: u64 = 4;
/// How long pure acknowledgements may wait: a quarter of the delayed ACK that peers reckon with (40 ms, `TCP_DELACK_MIN`).
const ACK_DELAY: Duration = Duration::from_millis(10);
/// How long what was written on standard output or error may wait: nobody who follows the log notices, and a workload that writes
/// its pipe full (1 MiB, `PIPE_SIZE`) is not slower than some 20 MB/s by that.
const OUTPUT_DELAY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Pace {
    max_pause_permille: u32,
    longest: Duration,
    payload: bool,
    ack_since: Option<Instant>,
    output_since: Option<Instant>,
    soon: bool,
    /// The last checkpoint's end and length.
    ended: Instant,
    paused: Duration,
    /// What the workload has said, and when that last grew.
    said: (u64, Instant),
    /// What it had said at the last checkpoint, and how much came in the epoch before it, fading.
    said_then: u64,
    usual: u64,
    /// Of the epoch that runs: what it had said at the commit before it, and how many frames that let go.
    said_at_commit: u64,
    answered: u64,
    /// How much usually comes after a commit, fading as above.
    returns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Now,
    At(Instant),
}

impl Pace {
    pub fn new(max_pause_permille: u32, longest: Duration, now: Instant) -> Self {
        Self {
            max_pause_permille: max_pause_permille.clamp(1, 1000),
            longest,
            payload: false,
            ack_since: None,
            output_since: None,
            soon: false,
            ended: now,
            paused: Duration::ZERO,
            said: (0, now),
            said_then: 0,
            usual: 0,
            said_at_commit: 0,
            answered: 0,
            returns: 0,
        }
    }

    pub fn payload_waiting(&mut self) {
        self.payload = true;
    }

    pub fn ack_waiting(&mut self, now: Instant) {
        self.ack_since.get_or_insert(now);
    }

    /// Standard output or error waits to be read, which a checkpoint does.
    pub fn output_waiting(&mut self, now: Instant) {
        self.output_since.get_or_insert(now);
    }

    /// Whether that is known.
    pub fn knows_of_output(&self) -> bool {
        self.output_since.is_some()
    }

    /// Something without a frame wants to be committed.
    pub fn wanted(&mut self) {
        self.soon = true;
    }

    /// A checkpoint has been taken.
    pub fn taken(&mut self, now: Instant, paused: Duration) {
        self.payload = false;
        self.soon = false;
        self.ack_since = None;
        self.output_since = None;
        self.ended = now;
        self.paused = paused;
        let has_said = self.said.0.saturating_sub(self.said_then);
        self.usual = faded(self.usual, has_said);
        self.returns = faded(self.returns, has_said.saturating_sub(self.said_at_commit));
        self.said_then = self.said.0;
        (self.said_at_commit, self.answered) = (0, 0);
    }

    /// What had been held is committed, and so many frames of it have left; `said` counts what the workload has sent.
    pub fn committed(&mut self, said: u64, answered: u64) {
        self.said_at_commit = said.saturating_sub(self.said_then);
        self.answered = answered;
    }

    /// How much is to be expected of the epoch that runs.
    fn expected(&self) -> u64 {
        self.usual.max(self.said_at_commit + self.answered.min(self.returns))
    }

    /// How much has to have been said, of what `said` counts, for the next checkpoint to come sooner than [`Pace::next`] says.
    pub fn awaited(&self, said: u64) -> Option<u64> {
        let all = self.said_then + self.expected();
        ((self.payload || self.soon) && said < all).then_some(all)
    }

    /// When to take the next checkpoint, given that none is on its way. `said` counts what the workload has sent.
    pub fn next(&mut self, now: Instant, said: u64) -> Next {
        if said != self.said.0 {
            self.said = (said, now);
        }
        let at = if self.payload || self.soon {
            let has_said = said.saturating_sub(self.said_then);
            let patience = match self.expected() {
                0 => QUIET,
                expected if has_said < expected => QUIET.max(self.paused),
                _ => QUIET_AFTER_ALL,
            };
            let quiet = self.said.1 + patience;
            let share = self.paused * (1000 - self.max_pause_permille) / self.max_pause_permille;
            quiet.min(self.ended + share)
        } else {
            let waits = [
                self.ack_since.map(|since| since + ACK_DELAY),
                self.output_since.map(|since| since + OUTPUT_DELAY),
                Some(self.ended + self.longest),
            ];
            waits.into_iter().flatten().min().unwrap_or(now)
        };
        if at <= now { Next::Now } else { Next::At(at) }
    }
}

/// The most of late: what there was before counts less with each epoch that has less.
fn faded(before: u64, now: u64) -> u64 {
    now.max(before - before.div_ceil(FADING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(now: Instant) -> Pace {
        Pace::new(250, Duration::from_millis(500), now)
    }

    #[test]
    fn an_idle_workload_waits_for_the_longest_epoch() {
        let now = Instant::now();
        assert_eq!(pace(now).next(now, 0), Next::At(now + Duration::from_millis(500)));
    }

    #[test]
    fn a_lone_reply_goes_out_as_soon_as_the_workload_is_quiet() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.taken(now, Duration::from_millis(100));
        pace.payload_waiting();
        let Next::At(at) = pace.next(now, 1) else { panic!("not yet") };
        assert_eq!(at, now + QUIET);
        assert_eq!(pace.next(at, 1), Next::Now);
    }

    #[test]
    fn who_was_answered_before_is_waited_for_as_long_as_a_checkpoint_takes() {
        let begun = Instant::now();
        let mut pace = pace(begun);
        let pause = Duration::from_millis(1);
        // Fifty replies in one epoch.
        pace.payload_waiting();
        pace.next(begun, 50);
        pace.taken(begun, pause);
        pace.payload_waiting();
        assert_eq!(pace.next(begun, 70), Next::At(begun + pause));
        assert_eq!(pace.awaited(70), Some(100));
        assert_eq!(pace.next(begun, 100), Next::At(begun + QUIET_AFTER_ALL));
        assert_eq!(pace.awaited(100), None);
        // They have left: one reply an epoch is soon what is usual.
        let mut output = 70;
        for _ in 0..20 {
            pace.next(begun, output);
            pace.taken(begun, pause);
            output += 1;
            pace.payload_waiting();
        }
        assert_eq!(pace.next(begun, output), Next::At(begun + QUIET_AFTER_ALL));
    }

    /// Twenty and thirty clients, each of whom is answered in every other epoch, would each wait for two checkpoints.
    #[test]
    fn clients_who_are_answered_in_turn_become_one_group() {
        let begun = Instant::now();
        let mut pace = pace(begun);
        let pause = Duration::from_millis(1);
        pace.payload_waiting();
        pace.next(begun, 20);
        pace.taken(begun, pause);
        // The thirty others have been answered while the twenty were committed, and those are about to ask again.
        pace.committed(50, 20);
        pace.payload_waiting();
        assert_eq!(pace.next(begun, 50), Next::At(begun + pause));
        assert_eq!(pace.awaited(50), Some(70));
        assert_eq!(pace.next(begun, 70), Next::At(begun + QUIET_AFTER_ALL));
        pace.taken(begun, pause);
        // All fifty are answered at once, and fewer come back each time: they are waited for less and less.
        let mut said = 70;
        for _ in 0..20 {
            pace.committed(said, 50);
            pace.payload_waiting();
            said += 5;
            pace.next(begun, said);
            pace.taken(begun, pause);
        }
        pace.committed(said, 50);
        pace.payload_waiting();
        assert_eq!(pace.next(begun, said + 5), Next::At(begun + QUIET_AFTER_ALL));
    }

    #[test]
    fn a_busy_workload_runs_its_share() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.taken(now, Duration::from_millis(1));
        pace.payload_waiting();
        let mut output = 0;
        let mut at = now;
        while pace.next(at, output) != Next::Now {
            at += Duration::from_micros(20);
            output += 1;
        }
        let ran = at - now;
        assert!((Duration::from_millis(3)..Duration::from_micros(3100)).contains(&ran), "{ran:?}");
    }

    #[test]
    fn acknowledgements_wait_a_stated_delay() {
        let now = Instant::now();
        let mut pace = pace(now);
        pace.ack_waiting(now);
        pace.ack_waiting(now + Duration::from_millis(5));
        assert_eq!(pace.next(now, 0), Next::At(now + ACK_DELAY));
    }

    #[test]
    fn what_is_written_waits_a_stated_delay_and_is_known_until_it_is_taken() {
        let now = Instant::now();
        let mut pace = pace(now);
        assert!(!pace.knows_of_output());
        pace.output_waiting(now);
        pace.output_waiting(now + Duration::from_millis(5));
        assert!(pace.knows_of_output());
        assert_eq!(pace.next(now, 0), Next::At(now + OUTPUT_DELAY));
        pace.ack_waiting(now);
        assert_eq!(pace.next(now, 0), Next::At(now + ACK_DELAY), "the first of both");
        pace.taken(now, Duration::ZERO);
        assert!(!pace.knows_of_output());
        assert_eq!(pace.next(now, 0), Next::At(now + Duration::from_millis(500)));
    }
}
