//! What a patch leaves in the process: a header that says what it is, what it switched and how far it got, then the code. It is
//! all there is: whoever comes next (another patcher, after the first was killed; one that looks at a forked child) finds it in the
//! memory of the process and needs nothing else.
//!
//! Layout of the header (little-endian; version 3):
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 16 | magic |
//! | 16 | 4 | version |
//! | 20 | 1 | state ([`State`]), changed by one store |
//! | 24 | 8 | its own address |
//! | 32 | 8 | length of the readable and executable part, header included |
//! | 40 | 8 | length of the notes |
//! | 48 | 8 | place among the patches of the process: grows |
//! | 56 | 8 | first eight bytes of the notes' SHA-256 |
//! | 64 | … | the notes (postcard) |

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::inject::Desk;
use super::memory::{Mapping, Memory, PAGE};
use crate::error::{Error, Result};
use crate::patch::When;
use crate::unit::{PAD_OPEN, PAD_TAKEN};

const MAGIC: &[u8; 16] = b"OUTLIVE-HOTPATCH";
const VERSION: u32 = 3;
pub const HEAD: u64 = 64;
const STATE_AT: u64 = 20;
const NOTES_HASH_AT: u64 = 56;
/// Largest notes that are read.
const MOST_NOTES: u64 = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Everything is in place, no entry is switched.
    Prepared = 1,
    /// Entries are being switched: some are.
    Applying = 2,
    Applied = 3,
    /// Entries are being switched back: some are.
    Reverting = 4,
    /// No entry is switched. Threads may still be in the code, so it stays.
    Reverted = 5,
}

impl State {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Prepared, Self::Applying, Self::Applied, Self::Reverting, Self::Reverted]
            .into_iter()
            .find(|state| *state as u8 == byte)
    }

    /// Whether some entries may be switched and others not.
    pub fn is_underway(self) -> bool {
        matches!(self, Self::Applying | Self::Reverting)
    }

    /// Of a state that is underway the one that is so in the other direction; others as they are.
    pub fn other_way(self) -> Self {
        match self {
            Self::Applying => Self::Reverting,
            Self::Reverting => Self::Applying,
            other => other,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Applying => "interrupted while it was applied",
            Self::Applied => "applied",
            Self::Reverting => "interrupted while it was reverted",
            Self::Reverted => "reverted",
        }
    }
}

/// An entry that the patch leads to its own code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched {
    pub name: String,
    /// The pad in the program; the same for every patch of this function.
    pub origin: u64,
    /// The pad that this patch switched: the program's, or that of the patch below.
    pub pad: u64,
    /// The new function.
    pub target: u64,
    /// The pad of the new function.
    pub next: Option<u64>,
}

/// A pad of an older patch that a cumulative one switched off, and where it led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Off {
    pub pad: u64,
    pub target: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// SHA-256 of the patch file.
    pub patch: [u8; 32],
    pub name: String,
    pub program: String,
    pub build_id: Vec<u8>,
    pub built: u64,
    /// Unix time, seconds.
    pub applied: u64,
    pub is_cumulative: bool,
    pub switched: Vec<Switched>,
    pub off: Vec<Off>,
    /// Functions with the reason why each is in the patch.
    pub reasons: Vec<(String, String)>,
    /// Its unwind table is known to the process's unwinder.
    pub is_unwindable: bool,
    /// Where data of the patch lies, and how long it is.
    pub data: (u64, u64),
    /// Where the code begins, behind the room for these notes.
    pub code: u64,
    /// Its hooks, by when they are called.
    pub hooks: Vec<(When, u64)>,
    /// Where a thread finds what to do that is asked to synchronise.
    pub desk: Desk,
    /// The table of fields beside objects that it uses: its own, or that of a patch before it.
    pub shadows: Option<u64>,
    /// What its entries lead to, if they switch at one instant.
    pub gates: Option<Gates>,
}

/// Gates of a part, one for each entry that it switches, in their order (`together.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// Where the first is.
    pub code: u64,
    /// The byte by which all gates of the patch lead to the old functions (0) or to the new (1).
    pub flag: u64,
}

/// A patch in a process.
#[derive(Debug, Clone)]
pub struct Region {
    pub address: u64,
    pub length: u64,
    pub state: State,
    pub order: u64,
    pub notes: Notes,
}

impl Region {
    /// The header's bytes for these notes, in this state.
    pub fn header(address: u64, length: u64, order: u64, state: State, notes: &Notes) -> Result<Vec<u8>> {
        let body = postcard::to_stdvec(notes).map_err(|e| Error::malformed("the notes of a patch", e))?;
        let mut bytes = Vec::with_capacity(HEAD as usize + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([state as u8, 0, 0, 0]);
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(order.to_le_bytes());
        bytes.extend(&Sha256::digest(&body)[..8]);
        bytes.extend(body);
        Ok(bytes)
    }

    /// Writes a header so that it is found only when it is whole: the magic last.
    pub fn write_header(memory: &Memory, address: u64, header: &[u8]) -> Result<()> {
        memory.write(address, &[0; MAGIC.len()])?;
        memory.write(address + MAGIC.len() as u64, &header[MAGIC.len()..])?;
        memory.write(address, &header[..MAGIC.len()])
    }

    pub fn set_state(&mut self, memory: &Memory, state: State) -> Result<()> {
        memory.write(self.address + STATE_AT, &[state as u8])?;
        self.state = state;
        Ok(())
    }

    /// Where its state and its place are in the process, and what is there: nobody else's change of the patch leaves both as they are.
    pub fn mark(&self, memory: &Memory) -> Result<(u64, Vec<u8>)> {
        let at = self.address + STATE_AT;
        Ok((at, memory.read(at, (NOTES_HASH_AT - STATE_AT) as usize)?))
    }

    fn read(memory: &Memory, address: u64, end: u64) -> Option<Self> {
        let head: [u8; HEAD as usize] = memory.array(address).ok()?;
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
        let version = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
        let (own, length, notes_length, order) = (quad(24), quad(32), quad(40), quad(48));
        if &head[..16] != MAGIC || version != VERSION || own != address {
            return None;
        }
        // Both are below what their neighbours in this line allow: the sums cannot overflow.
        if length > end.checked_sub(address)? || notes_length > MOST_NOTES || HEAD + notes_length > length {
            return None;
        }
        let body = memory.read(address + HEAD, notes_length as usize).ok()?;
        if Sha256::digest(&body)[..8] != head[56..64] {
            return None;
        }
        let notes = postcard::from_bytes(&body).ok()?;
        Some(Self { address, length, state: State::from_byte(head[STATE_AT as usize])?, order, notes })
    }

    /// All patches of a process, the first applied first.
    pub fn find(memory: &Memory, mappings: &[Mapping]) -> Vec<Self> {
        let mut found = Vec::new();
        for mapping in
            mappings.iter().filter(|m| m.is_executable && m.inode == 0 && m.is_private && !m.is_writable)
        {
            // Neighbours of equal rights are one mapping to the kernel.
            let mut address = mapping.start;
            while address < mapping.end {
                let is_ours = memory.array::<16>(address).is_ok_and(|bytes| &bytes == MAGIC);
                match is_ours.then(|| Self::read(memory, address, mapping.end)).flatten() {
                    Some(region) => {
                        address += region.length.next_multiple_of(PAGE).max(PAGE);
                        found.push(region);
                    }
                    None => address += PAGE,
                }
            }
        }
        found.sort_by_key(|region| region.order);
        found
    }

    /// Whether code and data of these lengths can be where the notes say: the code in the region, the data anywhere.
    pub fn has_room_for(&self, code: u64, data: u64) -> bool {
        let (at, end) = (self.notes.code, self.address.saturating_add(self.length));
        let has_code =
            at >= self.address.saturating_add(HEAD) && at.checked_add(code).is_some_and(|to| to <= end);
        has_code && self.notes.data.1 >= data && self.notes.data.0.checked_add(self.notes.data.1).is_some()
    }

    /// Whether the patch takes part in what the process does.
    pub fn is_active(&self) -> bool {
        matches!(self.state, State::Applying | State::Applied | State::Reverting)
    }
}

/// Where a pad leads, if it is taken; an error if it is no pad.
pub fn pad(memory: &Memory, at: u64) -> Result<Option<u64>> {
    let bytes: [u8; 5] = memory.array(at)?;
    let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
    match bytes[0] {
        PAD_TAKEN => Ok(Some(at.wrapping_add(5).wrapping_add_signed(i64::from(distance)))),
        PAD_OPEN => Ok(None),
        other => Err(Error::unfit(format!(
            "the entry at {at:#x} of process {} begins with {other:#04x}: something else has changed it (a debugger, a tracer)",
            memory.pid
        ))),
    }
}
