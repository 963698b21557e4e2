//! The gate of the input side: open, frames go to the workload at once; closed, they queue. No I/O.

use std::collections::VecDeque;

use crate::plug::Frame;

/// What may queue while the gate is closed: 10 Gb/s for 25 ms, several times the longest pause. Beyond it nothing
/// more is read from the port, whose own queue then fills and drops, as a network card's does.
const MAX_BYTES: usize = 32 << 20;
const MAX_FRAMES: usize = 32_768;

/// Where an arriving frame goes, and the epoch in which the workload receives it: the epoch at whose end a
/// checkpoint first includes the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Deliver { epoch: u64 },
    Queue { epoch: u64 },
}

pub(crate) struct Gate {
    /// How many hold it closed.
    closed: usize,
    queue: VecDeque<Frame>,
    bytes: usize,
    /// The epoch that is running.
    epoch: u64,
    /// The epoch in which frames that queue now will be received.
    epoch_when_opened: u64,
}

impl Gate {
    pub(crate) fn new(epoch: u64) -> Gate {
        Gate { closed: 0, queue: VecDeque::new(), bytes: 0, epoch, epoch_when_opened: epoch }
    }

    pub(crate) fn close(&mut self) {
        if self.closed == 0 {
            // Whoever closes the input is about to end the epoch. If it is opened again without, the frames are
            // only kept an epoch longer than needed.
            self.epoch_when_opened = self.epoch + 1;
        }
        self.closed += 1;
    }

    /// One less holds it closed. `true` if the queue has to be delivered now.
    pub(crate) fn open(&mut self) -> bool {
        self.closed = self.closed.saturating_sub(1);
        self.closed == 0
    }

    /// The epoch ended: what arrives from now on is received in the next.
    pub(crate) fn cut(&mut self, epoch: u64) {
        self.epoch = epoch + 1;
        self.epoch_when_opened = self.epoch;
    }

    pub(crate) fn arrive(&self) -> Arrival {
        match self.closed {
            0 => Arrival::Deliver { epoch: self.epoch },
            _ => Arrival::Queue { epoch: self.epoch_when_opened },
        }
    }

    pub(crate) fn queue(&mut self, frame: &[u8]) {
        self.bytes += frame.len();
        self.queue.push_back(frame.into());
    }

    pub(crate) fn unqueue(&mut self) -> Option<Frame> {
        let frame = self.queue.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < MAX_FRAMES && self.bytes < MAX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_belongs_to_the_epoch_in_which_it_is_received() {
        let mut gate = Gate::new(5);
        assert_eq!(gate.arrive(), Arrival::Deliver { epoch: 5 });
        gate.close();
        assert_eq!(gate.arrive(), Arrival::Queue { epoch: 6 }, "the checkpoint of 5 will not include it");
        gate.cut(5);
        assert_eq!(gate.arrive(), Arrival::Queue { epoch: 6 });
        assert!(gate.open());
        assert_eq!(gate.arrive(), Arrival::Deliver { epoch: 6 });
        gate.close();
        assert!(gate.open());
        assert_eq!(gate.arrive(), Arrival::Deliver { epoch: 6 }, "no epoch ended");
    }

    #[test]
    fn the_gate_opens_when_the_last_lets_go() {
        let mut gate = Gate::new(1);
        gate.close();
        gate.close();
        assert!(!gate.open());
        assert!(matches!(gate.arrive(), Arrival::Queue { .. }));
        assert!(gate.open());
    }

    #[test]
    fn the_queue_has_a_bound() {
        let mut gate = Gate::new(1);
        let frame = vec![0; MAX_BYTES / 4];
        for _ in 0..4 {
            assert!(gate.has_room());
            gate.queue(&frame);
        }
        assert!(!gate.has_room());
        gate.unqueue();
        assert!(gate.has_room());
    }
}
