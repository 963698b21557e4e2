//! What a primary and its backup say to each other.
//!
//! The backup connects and says who it is ([`Hello`]). The primary answers with all that it replicates ([`Welcome`]), or
//! why not. A backup whose program cannot hold that leaves; else it says [`READY`], is told with [`START`] after which
//! commit it begins, and from then on gets [`DATA`]: a stream of items, cut into frames without regard to where items end. It confirms what it has *applied*
//! ([`ACK`]). Both say [`BEAT`] when they have nothing else to say.
//!
//! An item is a number, whose lowest two bits say which kind, and the rest the length of what follows: the records of one
//! commit, or of an image; a call to be carried out before its commit comes (its handle with function and arguments), or the
//! id of one whose commit will not come. How a call went is said by [`CALLED`]. An image without a record is the last one. The last frame of a batch says in front how many
//! commits the batch has, plus one; other frames 0. Both ends count, and a difference ends the link. Each batch is
//! confirmed, by the number of its last commit.
//!
//! The first words are in frames as everywhere; from [`READY`] and [`START`] on both ends use the form for small messages
//! (`outlive_stream::compact`): a commit of one small number is 36 bytes on the wire, of which TLS takes 22.

use outlive_cluster::Holder;
use outlive_stream::frame::{Kind, KindSet};
use serde::{Deserialize, Serialize};

use crate::schema::Schema;
use crate::transaction::TRANSACTION_LIMIT;
use crate::wire::{Short, WireError};

/// Raised with every change of what is on this wire.
pub(crate) const VERSION: u16 = 3;

const FIRST: u8 = Kind::FIRST_APPLICATION;
/// First, from the backup.
pub(crate) const HELLO: Kind = Kind(FIRST);
/// The primary's answer.
pub(crate) const WELCOME: Kind = Kind(FIRST + 1);
/// The backup can hold what the primary has.
pub(crate) const READY: Kind = Kind(FIRST + 2);
/// Items.
pub(crate) const DATA: Kind = Kind(FIRST + 3);
/// The number of the last commit of a batch that the backup has applied.
pub(crate) const ACK: Kind = Kind(FIRST + 4);
/// A sign of life.
pub(crate) const BEAT: Kind = Kind(FIRST + 5);

/// How a call went on the backup.
pub(crate) const CALLED: Kind = Kind(FIRST + 7);

/// How a process is, to whoever asks for that and nothing else.
pub(crate) const INSPECTED: Kind = Kind(FIRST + 8);

/// The primary begins to send; the number of the last commit before.
pub(crate) const START: Kind = Kind(FIRST + 6);

/// What a primary may send.
pub(crate) const FROM_PRIMARY: KindSet = KindSet::of(&[WELCOME, START, DATA, BEAT]);
/// What a backup may send.
pub(crate) const FROM_BACKUP: KindSet = KindSet::of(&[HELLO, READY, ACK, BEAT, CALLED]);

/// The payload of one frame of items: large enough that its header of 24 bytes is nothing, small enough that the other
/// end applies one while the next is on the way.
pub(crate) const PORTION: usize = 256 * 1024;

/// The longest item: a transaction, or the image of one object, which is not cut and must fit the memory of both
/// machines as a whole anyway. Bytes are only taken as they come.
const ITEM_LIMIT: u64 = 64 << 30;

/// Who a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub version: u16,
    pub backup: Holder,
}

/// What a primary answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Welcome {
    Joins {
        version: u16,
        primary: Holder,
        schema: Box<Schema>,
    },
    /// Not now: it is no primary, or has a backup.
    NotNow(String),
    /// Not this program.
    OtherVersion(u16),
}

/// One item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Commit = 0,
    Image = 1,
    Call = 2,
    Discard = 3,
}

/// Puts an item behind others.
pub(crate) fn append(to: &mut Vec<u8>, item: Item, records: &[u8]) {
    let head = Short::of((records.len() as u64) << 2 | item as u64);
    to.extend_from_slice(head.bytes());
    to.extend_from_slice(records);
}

/// Items out of frames.
#[derive(Default)]
pub(crate) struct Items {
    bytes: Vec<u8>,
    start: usize,
}

/// A stream that no primary sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ItemError {
    #[error("an item of {0} bytes was announced, more than an item may have")]
    TooLong(u64),
    #[error("a commit of {0} bytes was announced, more than a transaction may have")]
    CommitTooLong(u64),
    #[error("the number in front of an item is none")]
    Head,
    #[error("a batch says that it has {said} commits, and {counted} came")]
    Count { said: u64, counted: u64 },
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Items {
    /// Takes a part of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next item that is whole.
    pub fn next(&mut self) -> Result<Option<(Item, &[u8])>, ItemError> {
        let Some((head, taken)) = number(&self.bytes[self.start..])? else { return Ok(None) };
        let length = head >> 2;
        let item = match head & 3 {
            0 => Item::Commit,
            1 => Item::Image,
            2 => Item::Call,
            _ => Item::Discard,
        };
        if length > ITEM_LIMIT {
            return Err(ItemError::TooLong(length));
        }
        if item != Item::Image && length > TRANSACTION_LIMIT as u64 {
            return Err(ItemError::CommitTooLong(length));
        }
        let begin = self.start + taken;
        let end = begin.saturating_add(usize::try_from(length).map_err(|_| ItemError::TooLong(length))?);
        if end > self.bytes.len() {
            return Ok(None);
        }
        self.start = end;
        Ok(Some((item, &self.bytes[begin..end])))
    }
}

/// A LEB128 number and its length, if all of it is there.
pub(crate) fn number(bytes: &[u8]) -> Result<Option<(u64, usize)>, ItemError> {
    let mut number = 0u64;
    for (place, byte) in bytes.iter().enumerate() {
        let part = u64::from(byte & 0x7f);
        let shift = 7 * place as u32;
        // The tenth byte holds the 64th bit alone.
        if shift > 63 || (shift == 63 && part > 1) {
            return Err(ItemError::Head);
        }
        number |= part << shift;
        if *byte < 0x80 {
            return Ok(Some((number, place + 1)));
        }
    }
    Ok(None)
}

/// A number as a payload.
pub(crate) fn encoded(number: u64) -> Vec<u8> {
    Short::of(number).bytes().to_vec()
}

/// A payload that is one number and nothing else.
pub(crate) fn only_number(payload: &[u8]) -> Option<u64> {
    match number(payload) {
        Ok(Some((number, length))) if length == payload.len() => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_whole_or_refused() {
        for value in [0, 1, 127, 128, u64::MAX] {
            assert_eq!(only_number(&encoded(value)), Some(value));
        }
        assert!(matches!(number(&[0xff; 9]), Ok(None)));
        assert!(number(&[0xff; 11]).is_err());
        assert_eq!(only_number(&[1, 2]), None);
    }

    #[test]
    fn what_is_longer_than_allowed_is_refused_before_it_comes() {
        let mut items = Items::default();
        items.push(&encoded((TRANSACTION_LIMIT as u64 + 1) << 2));
        assert!(matches!(items.next(), Err(ItemError::CommitTooLong(_))));
        let mut items = Items::default();
        items.push(&encoded(u64::MAX - 2));
        assert!(matches!(items.next(), Err(ItemError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn items_come_out_whole_however_they_are_cut(
            sent in proptest::collection::vec((0usize..4, proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in proptest::collection::vec(1usize..97, 1..30),
        ) {
            let sent: Vec<(Item, Vec<u8>)> = sent
                .into_iter()
                .map(|(kind, bytes)| ([Item::Commit, Item::Image, Item::Call, Item::Discard][kind], bytes))
                .collect();
            let mut stream = Vec::new();
            for (item, bytes) in &sent {
                append(&mut stream, *item, bytes);
            }
            let (mut items, mut got, mut rest) = (Items::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                items.push(now);
                while let Some((item, bytes)) = items.next().unwrap() {
                    got.push((item, bytes.to_vec()));
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_are_items_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut items = Items::default();
            items.push(&bytes);
            while let Ok(Some(_)) = items.next() {}
        }
    }
}
