//! The backup's log of what its workload was told since the last committed epoch.
//!
//! Injected at activation, it spares clients the wait for their retransmission timers (200 ms and more). It is
//! only that, an optimisation: whatever the log lacks, clients send again, as they would after any loss on
//! the network. So at its bound it drops the oldest frames, and says so in [`InputLog::dropped`].

use std::collections::VecDeque;

use crate::frame::{MAX_FRAME, VNET_HEADER};
use crate::plug::Frame;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputLogLimits {
    pub max_bytes: usize,
    pub max_frames: usize,
}

impl Default for InputLogLimits {
    /// 64 MiB: 10 Gb/s for 50 ms, longer than an epoch and its commit.
    fn default() -> InputLogLimits {
        InputLogLimits { max_bytes: 64 << 20, max_frames: 65_536 }
    }
}

#[derive(Debug, Default)]
pub struct InputLog {
    limits: InputLogLimits,
    frames: VecDeque<(u64, Frame)>,
    bytes: usize,
    dropped: u64,
}

impl InputLog {
    pub fn new(limits: InputLogLimits) -> InputLog {
        InputLog { limits, ..InputLog::default() }
    }

    /// Keeps a frame that the workload receives in `epoch`, as [`crate::InputSink::input`] said. What cannot be a
    /// frame (it came over a wire) is counted as dropped.
    pub fn push(&mut self, epoch: u64, frame: &[u8]) {
        if frame.len() <= VNET_HEADER || frame.len() > MAX_FRAME.min(self.limits.max_bytes) {
            self.dropped += 1;
            return;
        }
        self.bytes += frame.len();
        self.frames.push_back((epoch, frame.into()));
        while self.bytes > self.limits.max_bytes || self.frames.len() > self.limits.max_frames {
            self.pop();
            self.dropped += 1;
        }
    }

    /// The checkpoint at the end of `epoch` is complete here: what the workload received until then is in it.
    pub fn committed(&mut self, epoch: u64) {
        while self.frames.front().is_some_and(|&(received, _)| received <= epoch) {
            self.pop();
        }
    }

    /// Takes all frames, in the order in which the workload was sent them, to be injected.
    pub fn drain(&mut self) -> impl Iterator<Item = Frame> + use<> {
        self.bytes = 0;
        std::mem::take(&mut self.frames).into_iter().map(|(_, frame)| frame)
    }

    /// The frames kept, without taking them: to learn neighbours from.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|(_, frame)| &frame[..])
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames not kept, because of the bound or because they were none.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn pop(&mut self) {
        if let Some((_, frame)) = self.frames.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8) -> Vec<u8> {
        vec![tag; 60]
    }

    fn tags(log: &mut InputLog) -> Vec<u8> {
        log.drain().map(|frame| frame[0]).collect()
    }

    #[test]
    fn a_commit_drops_what_its_checkpoint_includes_and_no_more() {
        let mut log = InputLog::default();
        for (epoch, tag) in [(1, 1), (1, 2), (2, 3), (3, 4)] {
            log.push(epoch, &frame(tag));
        }
        log.committed(2);
        assert_eq!((log.len(), log.bytes()), (1, 60));
        assert_eq!(tags(&mut log), [4]);
        assert!(log.is_empty() && log.bytes() == 0);
    }

    #[test]
    fn at_the_bound_the_oldest_goes_and_is_counted() {
        let mut log = InputLog::new(InputLogLimits { max_bytes: 150, max_frames: 10 });
        for tag in 1..=4 {
            log.push(1, &frame(tag));
        }
        assert_eq!(log.dropped(), 2);
        assert_eq!(tags(&mut log), [3, 4]);
    }

    #[test]
    fn what_cannot_be_a_frame_is_not_kept() {
        let mut log = InputLog::default();
        log.push(1, &[0; VNET_HEADER]);
        log.push(1, &vec![0; MAX_FRAME + 1]);
        assert!(log.is_empty() && log.dropped() == 2);
    }

    proptest! {
        #[test]
        fn the_bounds_always_hold(pushes in prop::collection::vec((0u64..9, 0usize..300, any::<bool>()), 0..200)) {
            let limits = InputLogLimits { max_bytes: 1000, max_frames: 7 };
            let mut log = InputLog::new(limits);
            for (epoch, length, commit) in pushes {
                log.push(epoch, &vec![0; length]);
                if commit {
                    log.committed(epoch);
                }
                prop_assert!(log.bytes() <= limits.max_bytes && log.len() <= limits.max_frames);
                prop_assert_eq!(log.bytes(), log.frames().map(<[u8]>::len).sum::<usize>());
            }
        }
    }
}
