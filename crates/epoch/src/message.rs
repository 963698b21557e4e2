//! What travels in an epoch's sections and in the frames around it.

use outlive_cluster::Holder;
use outlive_process::checkpoint::{Checkpoint, Run, Whose};
use outlive_process::object::tcp_request::PendingConnection;
use outlive_stream::frame::{Kind, KindSet};
use serde::{Deserialize, Serialize};

/// Sections of an epoch: what it is, and the bytes of its pages.
pub const CONTENT: u8 = 0;
pub const PAGES: u8 = 1;

/// First frame each way: who is at the other end.
pub const PAIRING: Kind = Kind(Kind::FIRST_APPLICATION);

/// From the primary: the register names this backup now.
pub const PROTECTED: Kind = Kind(Kind::FIRST_APPLICATION + 1);

/// What a primary sends, and what a backup sends.
pub const FROM_PRIMARY: KindSet = KindSet::of(&[
    Kind::EPOCH_BEGIN,
    Kind::EPOCH_CHUNK,
    Kind::EPOCH_COMMIT,
    Kind::EPOCH_ABORT,
    Kind::HEARTBEAT,
    Kind::INPUT,
    PAIRING,
    PROTECTED,
]);
pub const FROM_BACKUP: KindSet = KindSet::of(&[Kind::ACK, Kind::HEARTBEAT, PAIRING]);

/// Version of everything in this module.
pub const VERSION: u16 = 5;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairing {
    pub version: u16,
    pub holder: Holder,
    pub fitness: Fitness,
}

/// What two hosts must have in common for a process to move between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitness {
    pub kernel: String,
    pub processor_features: u64,
}

impl Fitness {
    pub fn of_this_host() -> Self {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let features = std::fs::read_to_string("/proc/cpuinfo")
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("flags").map(str::to_owned))
            .unwrap_or_default();
        Self { kernel, processor_features: hash(features.as_bytes()) }
    }

    /// Why a process of one cannot run on the other.
    pub fn differs_from(&self, other: &Fitness) -> Option<String> {
        if self.kernel != other.kernel {
            return Some(format!(
                "kernels {} and {} differ; run the same on both",
                self.kernel, other.kernel
            ));
        }
        (self.processor_features != other.processor_features)
            .then(|| "the processors have different features; pair hosts of one kind".to_owned())
    }
}

/// FNV-1a: only compared between two nodes that run this code.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Content {
    /// A checkpoint; its pages are in the other section.
    Checkpoint {
        checkpoint: Box<Checkpoint>,
        /// Connections without a descriptor, in the order in which they must be rebuilt.
        requests: Vec<PendingConnection>,
    },
    /// Content of memory, for a backup that is being given everything.
    Backlog { whose: Whose, runs: Vec<Run> },
}

/// Before each frame of an input message: the epoch in which the workload received it, and its length.
const INPUT_HEADER: usize = 8 + 4;

/// Adds a frame for the workload to an input message.
pub fn pack_input(message: &mut Vec<u8>, epoch: u64, frame: &[u8]) {
    // Frames are at most 64 KiB and a header.
    message.extend_from_slice(&epoch.to_le_bytes());
    message.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    message.extend_from_slice(frame);
}

/// The frames of an input message, each with its epoch. Ends early, with an error, where the message is not one.
pub fn unpack_input(message: &[u8]) -> impl Iterator<Item = Result<(u64, &[u8]), String>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = (|| {
            let (epoch, tail) = rest.split_first_chunk::<8>()?;
            let (length, tail) = tail.split_first_chunk::<4>()?;
            let (frame, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            Some((u64::from_le_bytes(*epoch), frame, tail))
        })();
        match split {
            Some((epoch, frame, tail)) => {
                rest = tail;
                Some(Ok((epoch, frame)))
            }
            None => {
                rest = &[];
                Some(Err("a message of input frames is cut off".to_owned()))
            }
        }
    })
}

/// Room that a frame takes in an input message.
pub fn packed_size(frame: &[u8]) -> usize {
    INPUT_HEADER + frame.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_frames_come_out_in_order_and_a_cut_is_found_anywhere() {
        let frames: [(u64, &[u8]); 3] = [(1, b"one"), (1, b""), (u64::MAX, b"three")];
        let mut message = Vec::new();
        for (epoch, frame) in frames {
            let before = message.len();
            pack_input(&mut message, epoch, frame);
            assert_eq!(message.len() - before, packed_size(frame));
        }
        let out: Result<Vec<_>, _> = unpack_input(&message).collect();
        assert_eq!(out.unwrap(), frames);
        let ends = [0, packed_size(b"one"), packed_size(b"one") + packed_size(b"")];
        for cut in (0..message.len()).filter(|cut| !ends.contains(cut)) {
            let results: Vec<_> = unpack_input(&message[..cut]).collect();
            assert!(results.last().is_some_and(Result::is_err), "cut at {cut}");
        }
    }
}
