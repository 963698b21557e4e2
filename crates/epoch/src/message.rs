//! What travels in an epoch's sections and in the frames around it.

use outlive_cluster::Holder;
use outlive_process::checkpoint::{Checkpoint, Run, Whose};
use outlive_process::object::tcp_request::PendingConnection;
use outlive_stream::frame::{Kind, KindSet};
use serde::{Deserialize, Serialize};

use crate::output::Pieces;

/// Sections of an epoch: what it is, and the bytes of its pages.
pub const CONTENT: u8 = 0;
pub const PAGES: u8 = 1;

/// First frame each way: who is at the other end.
pub const PAIRING: Kind = Kind(Kind::FIRST_APPLICATION);

/// From the primary: the register names this backup now.
pub const PROTECTED: Kind = Kind(Kind::FIRST_APPLICATION + 1);

/// From the primary: the register that names this backup the primary. It has everything; nothing but copies of incoming
/// frames follows.
pub const MOVED: Kind = Kind(Kind::FIRST_APPLICATION + 2);

/// From who was the backup: it speaks, and the old primary is not needed any more.
pub const RUNNING: Kind = Kind(Kind::FIRST_APPLICATION + 3);

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
    MOVED,
]);
pub const FROM_BACKUP: KindSet = KindSet::of(&[Kind::ACK, Kind::HEARTBEAT, PAIRING, RUNNING]);

/// Version of everything in this module.
pub const VERSION: u16 = 7;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairing {
    pub version: u16,
    pub holder: Holder,
    pub fitness: Fitness,
}

impl Pairing {
    /// The version first: what follows is only known in this one.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        let not_understood = |error: postcard::Error| format!("not understood: {error}");
        let (version, _) = postcard::take_from_bytes::<u16>(payload).map_err(not_understood)?;
        if version != VERSION {
            return Err(format!("it speaks version {version} of the epoch stream, this node {VERSION}"));
        }
        postcard::from_bytes(payload).map_err(not_understood)
    }
}

/// What two hosts must have in common for a process to move between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitness {
    pub kernel: String,
    pub processor_features: u64,
    /// Of the supervisor (capabilities(7)): what a process was allowed is not to be refused to the copy of it.
    pub capabilities: u64,
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
        let status = outlive_process::sys::proc::status(std::process::id().cast_signed());
        let capabilities = status.map_or(0, |status| status.cap_effective);
        Self { kernel, processor_features: hash(features.as_bytes()), capabilities }
    }

    /// Why a process of one cannot run on the other.
    pub fn differs_from(&self, other: &Fitness) -> Option<String> {
        if self.kernel != other.kernel {
            return Some(format!(
                "kernels {} and {} differ; run the same on both",
                self.kernel, other.kernel
            ));
        }
        if self.processor_features != other.processor_features {
            return Some("the processors have different features; pair hosts of one kind".to_owned());
        }
        (self.capabilities != other.capabilities).then(|| {
            format!(
                "the agents have different capabilities ({:x} and {:x}); run them alike on both",
                self.capabilities, other.capabilities
            )
        })
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
    /// The workload has ended by itself, with this `wait` status, after it had said this. There is nothing to take over.
    Ended { status: i32, output: Pieces },
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
    fn another_version_is_refused_by_name_whatever_follows_it() {
        let older = postcard::to_stdvec(&(VERSION - 1, "fewer words")).unwrap();
        assert!(Pairing::read(&older).is_err_and(|why| why.contains(&format!("version {}", VERSION - 1))));
        for damaged in [&[][..], &older[..1], &[0xff; 9][..]] {
            assert!(Pairing::read(damaged).is_err());
        }
    }

    #[test]
    fn hosts_that_differ_in_what_a_process_takes_with_it_are_no_pair() {
        let mine = Fitness::of_this_host();
        assert_eq!(mine.differs_from(&Fitness::of_this_host()), None);
        let older = Fitness { kernel: "6.9.0".into(), ..mine.clone() };
        let other = Fitness { processor_features: !mine.processor_features, ..mine.clone() };
        let fewer = Fitness { capabilities: mine.capabilities >> 1, ..mine.clone() };
        for (theirs, word) in [(older, "kernels"), (other, "processors"), (fewer, "capabilities")] {
            assert!(mine.differs_from(&theirs).is_some_and(|why| why.contains(word)), "{word}");
        }
    }

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
