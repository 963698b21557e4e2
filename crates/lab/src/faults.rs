//! Faults of the network between hosts.
//!
//! They act at the switch, by the ports between which a frame passes, so that they hit a workload's frames and its
//! host's alike, whatever addresses these have. Delay is left out: this needs a packet scheduler that honours
//! departure times (`fq` or `netem`), which the kernels that this runs on do not have.

use crate::bpf::{DROP_ALL, PASS_ALL};
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::{Lab, bpf};

/// Which way a fault between two hosts acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Both,
    AToB,
    BToA,
}

impl Lab {
    /// No frame passes between two hosts any more, in one direction or both. Neither sees its carrier go.
    pub fn cut(&self, a: &Host, b: &Host, direction: Direction) -> Result<()> {
        self.set_drop(a, b, direction, DROP_ALL)
    }

    /// Drops each frame between two hosts with a probability, 0.0 to 1.0.
    pub fn lose(&self, a: &Host, b: &Host, direction: Direction, share: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&share) {
            return Err(LabError::BadShare { share });
        }
        self.set_drop(a, b, direction, (share * f64::from(u32::MAX)) as u32)
    }

    /// Ends all cuts and losses; hosts that are off or unplugged stay so.
    pub fn heal(&self) -> Result<()> {
        let hosts = self.hosts();
        for a in &hosts {
            for b in &hosts {
                self.set_drop(a, b, Direction::AToB, PASS_ALL)?;
            }
        }
        Ok(())
    }

    fn set_drop(&self, a: &Host, b: &Host, direction: Direction, threshold: u32) -> Result<()> {
        let switch = self.switch();
        if direction != Direction::BToA {
            switch.set_drop(a.port(), b.port(), threshold)?;
        }
        if direction != Direction::AToB {
            switch.set_drop(b.port(), a.port(), threshold)?;
        }
        Ok(())
    }
}

const _: () = assert!(bpf::PASS_ALL == 0, "a fresh array map is all zero and must mean: pass");
