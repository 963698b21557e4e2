//! A workload that cannot be protected for what it uses: a backup is asked again only when that has gone (R3).

use std::time::{Duration, Instant};

use outlive_process::refusals::Refusal;
use tracing::{debug, warn};

use super::{Phase, Primary};
use crate::error::Result;

/// How long until it is looked at again at first, and at most: a look stops it for as long as beginning a first copy does,
/// which is tens of milliseconds for a large one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Whether something was refused, and how long to wait for its end.
#[derive(Default)]
pub(super) struct Refused {
    wait: Option<Duration>,
}

impl Refused {
    /// Once more: how long until it is looked at.
    pub(super) fn again(&mut self) -> Duration {
        let wait = self.wait.map_or(FIRST, |wait| (wait * 2).min(LONGEST));
        self.wait = Some(wait);
        wait
    }

    /// It is protected.
    pub(super) fn is_over(&mut self) {
        self.wait = None;
    }
}

impl Primary<'_> {
    /// Whether what ended protection is there still. Asked when a backup would be sought again; nobody else is bothered.
    pub(super) fn is_refused(&mut self, now: Instant) -> Result<bool> {
        let Phase::Exposed { retry, asked: false } = self.phase else { return Ok(false) };
        if self.refused.wait.is_none() || self.order.is_some() || now < retry {
            return Ok(false);
        }
        let refused = match self.stopped(|workload| workload.survey()) {
            Ok(Some(survey)) => survey.refused,
            // Somebody may see to it when a backup is there.
            Ok(None) => Vec::new(),
            Err(error) => {
                debug!(%error, "it could not be looked at what the workload uses");
                Vec::new()
            }
        };
        if refused.is_empty() {
            return Ok(false);
        }
        let retry = now + self.refused.again();
        self.phase = Phase::Exposed { retry, asked: false };
        let reasons: Vec<String> = refused.iter().map(sentence).collect();
        warn!(reasons = reasons.join("; "), "still not to be protected");
        self.note_exposed(reasons.join("; "));
        Ok(true)
    }
}

/// As `outlive_process::Error` says it.
fn sentence(refusal: &Refusal) -> String {
    let Refusal { pid, what, advice, .. } = refusal;
    format!("process {pid} uses {what}, which cannot be protected: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_until_it_is_protected() {
        let mut refused = Refused::default();
        let waits: Vec<u64> = (0..7).map(|_| refused.again().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        refused.is_over();
        assert_eq!(refused.again(), FIRST);
    }
}
