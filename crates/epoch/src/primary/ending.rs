//! The end of a workload that ends by itself: what it said last is committed like all else (R1).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outlive_process::space::PageData;
use tracing::warn;

use super::{End, Phase, Primary};
use crate::error::{Attempt, Result};
use crate::message::Content;

/// How long the backup, or the seed nodes if there is none any more, may take. They take milliseconds; without a majority of
/// them nothing is said, and the workload is over all the same.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Events wake the wait; this is for none.
const IDLE_MS: u8 = 50;

impl Primary<'_> {
    /// Lets its last output, and what its sockets say at the end, go when a backup knows that it has ended: one that took over
    /// from before that would say them again.
    pub(super) fn say_last(&mut self, status: i32) -> Result<End> {
        if let Phase::Moving { .. } = self.phase {
            return Ok(self.ended_while_moving(status));
        }
        self.give_up_move("the workload has ended");
        // Whatever else was in its namespaces ends with it.
        self.workload.kill();
        self.engine.pulse.works();
        let mut rest = std::mem::take(&mut self.drained);
        self.pipes.drain(&mut rest).attempt(|| "read the workload's last output".into())?;
        if let Phase::Joining { .. } = self.phase {
            self.lose_backup("the workload has ended");
        }
        let mut rest = Some(rest);
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            self.engine.pulse.works();
            match &self.phase {
                // Nobody needs to hold it first.
                Phase::Exposed { .. } | Phase::Syncing { .. } => {
                    let mut output = std::mem::take(&mut self.unwritten);
                    output.extend(rest.take().unwrap_or_default());
                    self.log.append(&output).attempt(|| "write the workload's last output".into())?;
                    return Ok(End::Exited(status));
                }
                Phase::Moving { .. } => return Ok(self.ended_while_moving(status)),
                Phase::Protected { .. } if self.outstanding.is_none() => match rest.take() {
                    Some(output) => {
                        self.pump.cut(self.epoch + 1)?;
                        let content = Content::Ended { status, output: output.clone() };
                        self.send(content, PageData::default(), output, true);
                    }
                    None => return Ok(End::Exited(status)),
                },
                Phase::Losing => self.unwritten.extend(rest.take().unwrap_or_default()),
                Phase::Protected { .. } | Phase::Joining { .. } => {}
            }
            if Instant::now() >= deadline {
                warn!("what the workload said last is not written: nobody could commit it");
                return Ok(End::Exited(status));
            }
            let queue = self.engine.events.as_fd();
            // Interrupted or over: looked at again.
            let _ = poll(&mut [PollFd::new(queue, PollFlags::POLLIN)], PollTimeout::from(IDLE_MS));
            while let Some(event) = self.engine.events.next() {
                if let Some(end) = self.handle(event)? {
                    return Ok(end);
                }
            }
        }
    }
}
