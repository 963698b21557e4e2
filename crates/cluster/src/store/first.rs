//! Votes as they were on disk when a register named one backup or none: version 1. They mean what they meant, so that a seed
//! node keeps its history through an update.

use serde::Deserialize;

use crate::{Accepted, Ballot, Holder, Holding, Register};

/// The first byte of every value.
pub(super) const VERSION: u8 = 1;

#[derive(Deserialize)]
pub(super) struct Slot {
    promised: Option<Ballot>,
    accepted: Option<FirstAccepted>,
}

#[derive(Deserialize)]
struct FirstAccepted {
    ballot: Ballot,
    value: Option<FirstRegister>,
}

#[derive(Deserialize)]
struct FirstRegister {
    version: u64,
    generation: u64,
    holding: FirstHolding,
    seeds_version: u64,
}

#[derive(Deserialize)]
enum FirstHolding {
    Held { primary: Holder, synced_backup: Option<Holder> },
    Tombstone,
}

impl From<Slot> for crate::Slot {
    fn from(slot: Slot) -> Self {
        let Slot { promised, accepted } = slot;
        let accepted = accepted
            .map(|FirstAccepted { ballot, value }| Accepted { ballot, value: value.map(Register::from) });
        Self { promised, accepted }
    }
}

impl From<FirstRegister> for Register {
    fn from(register: FirstRegister) -> Self {
        let FirstRegister { version, generation, holding, seeds_version } = register;
        let holding = match holding {
            FirstHolding::Held { primary, synced_backup } => Holding::of(primary, synced_backup),
            FirstHolding::Tombstone => Holding::Tombstone,
        };
        Self { version, generation, holding, seeds_version }
    }
}
