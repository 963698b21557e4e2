//! Frames for a workload that reach its backup's node while nobody answers them.
//!
//! A switch floods what it has no port for: once the primary's link is gone, and until the address has moved, clients' frames
//! come to every node. Those are what a client would have to send again after its retransmission timeout (200 ms
//! and more). A port on the backup's bridge would not hear them: the bridge remembers the workload's MAC to be where such a frame
//! comes from, and drops it. A packet socket hears what comes before the bridge does, and says nothing.
//!
//! What the primary may have received itself is of no use: with every sign of life from it, older frames are let go.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::frame::MAX_FRAME;
use crate::plug::Frame;
use crate::sys::packet::PacketSocket;
use crate::{Mac, Moment, Uplink};

/// At the bound the oldest are dropped: clients send again. The dark lasts some 100 ms, in which clients that are not
/// answered send at most their windows.
const MAX_FRAMES: usize = 16_384;
const MAX_BYTES: usize = 32 << 20;

/// What a backup overhears, until this is dropped.
pub struct Overheard(Mutex<Heard>);

struct Heard {
    ear: PacketSocket,
    kept: Kept,
    buffer: Box<[u8]>,
}

impl Overheard {
    /// Begins to listen for frames to `mac`, in the calling thread's network namespace. `keep` is how long before the primary's
    /// last sign of life it may have stopped to pass on what it received.
    pub fn start(mac: Mac, uplink: &Uplink, keep: Duration) -> io::Result<Overheard> {
        let told = match uplink {
            // Its ports take everything.
            Uplink::Bridge(_) => None,
            Uplink::Macvtap(interface) => Some(interface.as_str()),
        };
        let ear = PacketSocket::open(mac, told)?;
        let kept = Kept { keep, frames: VecDeque::new(), bytes: 0 };
        Ok(Overheard(Mutex::new(Heard { ear, kept, buffer: vec![0; MAX_FRAME].into() })))
    }

    /// The primary lives at this moment.
    pub fn alive(&self, now: Moment) {
        let mut heard = self.lock();
        heard.listen(now);
        heard.kept.forget(now);
    }

    /// Everything that came since shortly before the last sign of life, in order, each frame once: interfaces that lie one
    /// upon the other hear it several times. The socket is left open, for closing it waits until no processor looks at it any more
    /// (`packet_release` in net/packet/af_packet.c), 10 ms and more, and those who take this are in haste: drop it when they are not.
    pub fn take(&self) -> Vec<Frame> {
        let mut heard = self.lock();
        heard.listen(Moment::now());
        heard.kept.bytes = 0;
        let mut seen = HashSet::new();
        let frames = std::mem::take(&mut heard.kept.frames).into_iter();
        frames.map(|(_, frame)| frame).filter(|frame| seen.insert(frame.clone())).collect()
    }

    /// How many frames are kept.
    pub fn len(&self) -> usize {
        let mut heard = self.lock();
        heard.listen(Moment::now());
        heard.kept.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // Whatever was kept is as good as before.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Heard {
    fn listen(&mut self, now: Moment) {
        // What is not heard is sent again.
        for _ in 0..MAX_FRAMES {
            let Ok(Some(length)) = self.ear.read(&mut self.buffer) else { break };
            self.kept.push(now, &self.buffer[..length]);
        }
    }
}

struct Kept {
    keep: Duration,
    frames: VecDeque<(Moment, Frame)>,
    bytes: usize,
}

impl Kept {
    fn push(&mut self, now: Moment, frame: &[u8]) {
        self.bytes += frame.len();
        self.frames.push_back((now, frame.into()));
        while self.bytes > MAX_BYTES || self.frames.len() > MAX_FRAMES {
            self.pop();
        }
    }

    fn forget(&mut self, now: Moment) {
        while self.frames.front().is_some_and(|(at, _)| now.since(*at) > self.keep) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, frame)) = self.frames.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept { keep: Duration::from_millis(50), frames: VecDeque::new(), bytes: 0 }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn what_came_well_before_a_sign_of_life_is_let_go() {
        let mut kept = kept();
        kept.push(at(100), &[1; 60]);
        kept.push(at(140), &[2; 60]);
        kept.forget(at(150));
        assert_eq!((kept.frames.len(), kept.bytes), (2, 120));
        kept.forget(at(160));
        assert_eq!((kept.frames.len(), kept.bytes), (1, 60));
        kept.forget(at(1000));
        assert_eq!((kept.frames.len(), kept.bytes), (0, 0));
    }

    #[test]
    fn at_the_bound_the_oldest_goes() {
        let mut kept = kept();
        (0..MAX_FRAMES + 3).for_each(|number| kept.push(at(1), &(number as u32).to_ne_bytes()));
        assert_eq!(kept.frames.len(), MAX_FRAMES);
        assert_eq!(*kept.frames[0].1, 3u32.to_ne_bytes());
        (0..=MAX_BYTES / MAX_FRAME).for_each(|_| kept.push(at(1), &[0; MAX_FRAME]));
        assert!(kept.bytes <= MAX_BYTES);
    }
}
