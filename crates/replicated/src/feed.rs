//! One backup as its primary sees it: the connection, and what is on its way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlive_cluster::Holder;
use outlive_stream::compact::{CompactReader, CompactWriter};
use outlive_stream::connection::{Closer, Reader, Writer};
use parking_lot::{Condvar, Mutex};

use crate::message::{Item, append};

/// Batches on their way at once: while the backup applies one the next travels. More would only make them smaller.
const BATCHES: usize = 2;

/// A connection to one backup.
pub(crate) struct Link {
    pub number: u64,
    pub closer: Closer,
    pub writer: Mutex<CompactWriter<Writer>>,
    pub reader: Mutex<CompactReader<Reader>>,
    /// There is something that no committing thread does, besides writing what is long.
    pub tend: Condvar,
    /// There is something long to write.
    pub write: Condvar,
}

/// What left together.
pub(crate) struct Batch {
    pub last: u64,
    pub bytes: usize,
    pub at: Instant,
}

/// What is sent to one backup.
pub(crate) struct Feed {
    pub link: Arc<Link>,
    pub backup: Holder,
    /// Items that have not left yet, and how many bytes they and those on their way are.
    pub outgoing: Vec<u8>,
    pub unacknowledged: usize,
    /// The last commit of the batch before.
    pub batched: u64,
    pub on_the_way: VecDeque<Batch>,
    pub reading: bool,
    pub writing: bool,
    pub heard: Instant,
    pub read: Instant,
    pub sent: Instant,
}

impl Feed {
    /// One that begins after a commit.
    pub fn new(link: Arc<Link>, backup: Holder, after: u64) -> Self {
        let now = Instant::now();
        Self {
            link,
            backup,
            outgoing: Vec::new(),
            unacknowledged: 0,
            batched: after,
            on_the_way: VecDeque::new(),
            reading: false,
            writing: false,
            heard: now,
            read: now,
            sent: now,
        }
    }

    pub fn may_send(&self) -> bool {
        !self.writing && !self.outgoing.is_empty() && self.on_the_way.len() < BATCHES
    }

    pub fn put(&mut self, item: Item, records: &[u8]) {
        let before = self.outgoing.len();
        append(&mut self.outgoing, item, records);
        self.unacknowledged += self.outgoing.len() - before;
    }

    /// Whether so many bytes more would be too many. Something is always taken.
    pub fn is_full(&self, more: usize, limit: usize) -> bool {
        self.unacknowledged > 0 && self.unacknowledged.saturating_add(more) > limit
    }

    /// For how long the oldest batch has been on its way.
    pub fn lag(&self, now: Instant) -> Duration {
        let oldest = self.on_the_way.front().map(|batch| now.saturating_duration_since(batch.at));
        oldest.unwrap_or_default()
    }
}
