//! How pages travel: whole the first time, and afterwards only those parts that differ from what was sent before.
//!
//! A busy server writes a few words in each of many pages: a counter, a list's link, a reply's first bytes. Of 4096 bytes
//! some hundred have changed, and every byte that travels is hashed, encrypted, copied, decrypted and hashed again. So the
//! sender remembers pages that it has sent lately, within a bound.
//!
//! The encoding of each page, in the order of the runs: 8 bytes, little-endian, of which bit *i* says that the *i*-th 64
//! bytes follow (all bits: the whole page), then those.
//!
//! Invariant: a page in the cache is, byte for byte, what the receiver has at that place. So it is forgotten with whatever
//! else changes what is there: a mapping made anew, pages emptied, a fork, exec or exit.

use std::collections::HashMap;

use crate::checkpoint::{Checkpoint, Run, TreeEvent, Whose};
use crate::object::file::FileKey;
use crate::space::PageData;
use crate::sys::pagemap::{PAGE_SIZE, Range};

const PAGE: usize = PAGE_SIZE as usize;
/// A line of most caches: programs and allocators keep together what changes together in such.
const BLOCK: usize = 64;
/// A page of which so many blocks changed is sent whole: the rest is not worth telling them apart.
const NEARLY_ALL: u32 = 48;
const WHOLE: u64 = u64::MAX;
/// Pages to encode in one go: 4 MiB, a few milliseconds.
const BETWEEN: usize = 1024;
/// Bytes before each page.
const MASK: usize = 8;

const _: () = assert!(PAGE / BLOCK == u64::BITS as usize);

type Pages = HashMap<Whose, HashMap<u64, Box<[u8; PAGE]>>>;

/// The sender's memory of what it sent over one link.
#[derive(Debug)]
pub struct Cache {
    /// Two generations: what is used moves to the first; when that is full the second is forgotten and it becomes the
    /// second.
    recent: Pages,
    older: Pages,
    count: usize,
    limit: usize,
    /// Of the objects that are shared, when last heard of.
    sizes: HashMap<FileKey, u64>,
}

/// Encoded pages: pieces that lie one after the other on the wire.
#[derive(Debug, Default)]
pub struct Encoded<'a> {
    parts: Vec<Part<'a>>,
    /// Masks and blocks.
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Part<'a> {
    /// The next so many of `bytes`.
    Bytes(usize),
    Page(&'a [u8]),
}

impl Encoded<'_> {
    pub fn slices(&self) -> Vec<&[u8]> {
        let mut at = 0;
        let slice = |part: &_| match part {
            Part::Bytes(length) => {
                at += length;
                &self.bytes[at - length..at]
            }
            Part::Page(page) => page,
        };
        self.parts.iter().map(slice).collect()
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        match self.parts.last_mut() {
            Some(Part::Bytes(length)) => *length += bytes.len(),
            _ => self.parts.push(Part::Bytes(bytes.len())),
        }
    }
}

impl Cache {
    /// Of at most so many bytes of pages.
    pub fn new(limit: usize) -> Self {
        let limit = (limit / PAGE / 2).max(1);
        Self { recent: Pages::new(), older: Pages::new(), count: 0, limit, sizes: HashMap::new() }
    }

    /// The pages of a checkpoint. `between` is called now and then: what is to be encoded may be much.
    pub fn encode<'a>(
        &mut self,
        checkpoint: &Checkpoint,
        data: &'a PageData,
        mut between: impl FnMut(),
    ) -> Encoded<'a> {
        for event in &checkpoint.tree {
            if let TreeEvent::Fork { child: pid, .. }
            | TreeEvent::Exec { pid }
            | TreeEvent::Exit { pid, .. } = event
            {
                self.forget_all(Whose::Process(*pid));
            }
        }
        for key in &checkpoint.shared_gone {
            self.forget_all(Whose::Shared(*key));
            self.sizes.remove(key);
        }
        let mut encoded = Encoded::default();
        let mut pages = data.slices().flat_map(|slice| slice.chunks_exact(PAGE)).enumerate();
        let mut next = || {
            let (number, page) = pages.next()?;
            if number % BETWEEN == 0 {
                between();
            }
            Some(page)
        };
        for state in &checkpoint.processes {
            let zero = state.memory.runs.iter().filter(|run| run.zero).map(Run::range);
            let changed = state.memory.fresh.iter().chain(&state.memory.dropped).copied();
            let whose = Whose::Process(state.pid);
            changed.chain(zero).for_each(|range| self.forget(whose, range));
            for address in addresses(&state.memory.runs) {
                let Some(page) = next() else { return encoded };
                self.encode_page(whose, address, page, &mut encoded);
            }
        }
        for object in &checkpoint.shared {
            let whose = Whose::Shared(object.key);
            if object.anew {
                self.forget_all(whose);
            }
            // What is cut off is gone there as well.
            if self.sizes.insert(object.key, object.size).is_some_and(|before| before > object.size) {
                self.forget(whose, Range::new(object.size.next_multiple_of(PAGE_SIZE), u64::MAX));
            }
            object.runs.iter().filter(|run| run.zero).for_each(|run| self.forget(whose, run.range()));
            for address in addresses(&object.runs) {
                let Some(page) = next() else { return encoded };
                self.encode_page(whose, address, page, &mut encoded);
            }
        }
        encoded
    }

    /// Pages of a first copy, each of which is sent once.
    pub fn encode_backlog<'a>(&mut self, whose: Whose, runs: &[Run], data: &'a PageData) -> Encoded<'a> {
        runs.iter().for_each(|run| self.forget(whose, run.range()));
        let mut encoded = Encoded::default();
        for page in data.slices().flat_map(|slice| slice.chunks_exact(PAGE)) {
            encoded.push_bytes(&WHOLE.to_le_bytes());
            encoded.parts.push(Part::Page(page));
        }
        encoded
    }

    fn encode_page<'a>(&mut self, whose: Whose, address: u64, page: &'a [u8], encoded: &mut Encoded<'a>) {
        let mask = self.update(whose, address, page);
        if mask.count_ones() >= NEARLY_ALL {
            encoded.push_bytes(&WHOLE.to_le_bytes());
            encoded.parts.push(Part::Page(page));
        } else {
            encoded.push_bytes(&mask.to_le_bytes());
            for (index, block) in page.chunks_exact(BLOCK).enumerate() {
                if mask >> index & 1 == 1 {
                    encoded.push_bytes(block);
                }
            }
        }
    }

    /// Remembers a page, and gives what of it differs from what was remembered.
    fn update(&mut self, whose: Whose, address: u64, page: &[u8]) -> u64 {
        if let Some(known) = self.recent.get_mut(&whose).and_then(|pages| pages.get_mut(&address)) {
            return renew(known, page);
        }
        let older = self.older.get_mut(&whose).and_then(|pages| pages.remove(&address));
        let (known, mask) = match older {
            Some(mut known) => {
                let mask = renew(&mut known, page);
                (known, mask)
            }
            None => {
                let mut known = Box::new([0; PAGE]);
                known.copy_from_slice(page);
                (known, WHOLE)
            }
        };
        self.put(whose, address, known);
        mask
    }

    fn put(&mut self, whose: Whose, address: u64, page: Box<[u8; PAGE]>) {
        if self.count >= self.limit {
            self.older = std::mem::take(&mut self.recent);
            self.count = 0;
        }
        self.recent.entry(whose).or_default().insert(address, page);
        self.count += 1;
    }

    fn forget_all(&mut self, whose: Whose) {
        self.recent.remove(&whose);
        self.older.remove(&whose);
        self.count = self.recent.values().map(HashMap::len).sum();
    }

    fn forget(&mut self, whose: Whose, range: Range) {
        for pages in [&mut self.recent, &mut self.older] {
            let Some(pages) = pages.get_mut(&whose) else { continue };
            if range.pages() > pages.len() as u64 {
                pages.retain(|address, _| !(range.start..range.end).contains(address));
            } else {
                (range.start..range.end).step_by(PAGE).for_each(|address| drop(pages.remove(&address)));
            }
        }
        self.count = self.recent.values().map(HashMap::len).sum();
    }
}

/// Where each page of the data belongs.
fn addresses(runs: &[Run]) -> impl Iterator<Item = u64> {
    let ranges = runs.iter().filter(|run| !run.zero).map(Run::range);
    ranges.flat_map(|range| (range.start..range.end).step_by(PAGE))
}

/// Makes a page what it is now, and gives what of it differs.
fn renew(known: &mut [u8; PAGE], page: &[u8]) -> u64 {
    let mask = difference(known, page);
    if mask.count_ones() >= NEARLY_ALL {
        known.copy_from_slice(page);
        return mask;
    }
    let mut left = mask;
    while left != 0 {
        let at = left.trailing_zeros() as usize * BLOCK;
        known[at..at + BLOCK].copy_from_slice(&page[at..at + BLOCK]);
        left &= left - 1;
    }
    mask
}

/// Which blocks differ. Of arrays the comparison is a few instructions; of slices it is a call for each.
fn difference(known: &[u8], page: &[u8]) -> u64 {
    let (known, page) = (known.as_chunks::<BLOCK>().0, page.as_chunks::<BLOCK>().0);
    let blocks = known.iter().zip(page).enumerate();
    blocks.fold(0, |mask, (index, (known, block))| mask | u64::from(known != block) << index)
}

/// Reads the next page of an encoding: gives each of its parts with its offset in the page. `None` if it is cut off.
pub fn decode_page<'a>(rest: &mut &'a [u8], mut each: impl FnMut(usize, &'a [u8])) -> Option<()> {
    let (mask, tail) = rest.split_first_chunk::<MASK>()?;
    let mask = u64::from_le_bytes(*mask);
    let (content, tail) = tail.split_at_checked(mask.count_ones() as usize * BLOCK)?;
    *rest = tail;
    // Blocks next to each other are one part.
    let (mut left, mut at, mut offset) = (mask, 0, 0);
    while left != 0 {
        let skipped = left.trailing_zeros();
        let length = (left >> skipped).trailing_ones();
        offset += skipped as usize * BLOCK;
        let bytes = length as usize * BLOCK;
        each(offset, &content[at..at + bytes]);
        at += bytes;
        offset += bytes;
        left = left.checked_shr(skipped + length).unwrap_or(0);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::{MemoryDelta, Pid, ProcessState};

    const BASE: u64 = 0x10000;

    fn checkpoint(pid: Pid, memory: MemoryDelta) -> Checkpoint {
        let state = ProcessState {
            pid,
            memory,
            threads: Vec::new(),
            same_threads: Vec::new(),
            pending: Vec::new(),
            actions: None,
            attributes: None,
            descriptors: None,
            interval_timers: None,
            posix_timers: Vec::new(),
            filters: None,
            job: Default::default(),
        };
        Checkpoint { processes: vec![state], ..Checkpoint::default() }
    }

    /// What a receiver holds, by page.
    type Held = HashMap<(Pid, u64), Vec<u8>>;

    fn receive(held: &mut Held, checkpoint: &Checkpoint, bytes: &[u8]) {
        let mut rest = bytes;
        for state in &checkpoint.processes {
            for range in &state.memory.fresh {
                held.retain(|(pid, address), _| {
                    *pid != state.pid || !(range.start..range.end).contains(address)
                });
            }
            for run in &state.memory.runs {
                for address in (run.range().start..run.range().end).step_by(PAGE) {
                    let page = held.entry((state.pid, address)).or_insert_with(|| vec![0; PAGE]);
                    if run.zero {
                        page.fill(0);
                        continue;
                    }
                    let mut put = |at: usize, part: &[u8]| page[at..at + part.len()].copy_from_slice(part);
                    decode_page(&mut rest, &mut put).expect("not cut off");
                }
            }
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn something_else_can_be_done_between_many_pages() {
        let run = Run { address: BASE, pages: 3 * BETWEEN as u32, zero: false };
        let memory = MemoryDelta { runs: vec![run], ..MemoryDelta::default() };
        let data = PageData::of(vec![1; 3 * BETWEEN * PAGE]);
        let mut times = 0;
        let length: usize = Cache::new(1 << 30)
            .encode(&checkpoint(1, memory), &data, || times += 1)
            .slices()
            .iter()
            .map(|slice| slice.len())
            .sum();
        assert_eq!((times, length), (3, 3 * BETWEEN * (PAGE + MASK)));
    }

    #[derive(Debug, Clone)]
    enum Change {
        /// Bytes of a page get another value.
        Write {
            page: u64,
            at: usize,
            length: usize,
            value: u8,
        },
        Zero {
            page: u64,
        },
        Anew {
            page: u64,
        },
        Exec,
    }

    fn change() -> impl Strategy<Value = Change> {
        let page = 0..6u64;
        prop_oneof![
            8 => (page.clone(), 0..PAGE, 1..2 * BLOCK, any::<u8>())
                .prop_map(|(page, at, length, value)| Change::Write { page, at, length, value }),
            1 => (page.clone(), Just(0), Just(PAGE), any::<u8>())
                .prop_map(|(page, at, length, value)| Change::Write { page, at, length, value }),
            1 => page.clone().prop_map(|page| Change::Zero { page }),
            1 => page.prop_map(|page| Change::Anew { page }),
            1 => Just(Change::Exec),
        ]
    }

    proptest! {
        /// Whatever happens to the pages, and however few the cache holds, the receiver ends up with them.
        #[test]
        fn the_receiver_has_what_the_sender_has(
            epochs in proptest::collection::vec(proptest::collection::vec((1..3i32, change()), 1..6), 1..12),
            room in 1..16usize,
        ) {
            let mut cache = Cache::new(room * PAGE);
            let (mut truth, mut held) = (Held::new(), Held::new());
            for changes in epochs {
                for pid in 1..3 {
                    let mut memory = MemoryDelta::default();
                    let mut written = std::collections::BTreeSet::new();
                    let mut tree = Vec::new();
                    for (_, change) in changes.iter().filter(|(of, _)| *of == pid) {
                        let place = |page: u64| BASE + page * PAGE_SIZE;
                        let range = |page: u64| Range::new(place(page), place(page) + PAGE_SIZE);
                        let zero = || vec![0; PAGE];
                        match *change {
                            Change::Write { page, at, length, value } => {
                                let end = (at + length).min(PAGE);
                                let content = truth.entry((pid, place(page))).or_insert_with(zero);
                                content[at..end].fill(value);
                                written.insert(page);
                            }
                            Change::Zero { page } => {
                                truth.insert((pid, place(page)), zero());
                                written.insert(page);
                            }
                            Change::Anew { page } => {
                                truth.insert((pid, place(page)), zero());
                                memory.fresh.push(range(page));
                                written.insert(page);
                            }
                            Change::Exec => {
                                for page in 0..6 {
                                    truth.insert((pid, place(page)), zero());
                                    memory.fresh.push(range(page));
                                    written.insert(page);
                                }
                                tree.push(TreeEvent::Exec { pid });
                            }
                        }
                    }
                    let mut bytes = Vec::new();
                    for page in written {
                        let content = &truth[&(pid, BASE + page * PAGE_SIZE)];
                        let zero = content.iter().all(|byte| *byte == 0);
                        memory.runs.push(Run { address: BASE + page * PAGE_SIZE, pages: 1, zero });
                        if !zero {
                            bytes.extend_from_slice(content);
                        }
                    }
                    let data = PageData::of(bytes);
                    let checkpoint = Checkpoint { tree, ..checkpoint(pid, memory) };
                    let encoded = cache.encode(&checkpoint, &data, || {});
                    receive(&mut held, &checkpoint, &encoded.slices().concat());
                }
                for (place, content) in &truth {
                    prop_assert!(held.get(place).is_some_and(|has| has == content), "{place:?}");
                }
                let pages = |pages: &Pages| pages.values().map(HashMap::len).sum::<usize>();
                prop_assert!(pages(&cache.recent) + pages(&cache.older) <= room.max(2) + 1);
            }
        }

        #[test]
        fn what_is_cut_off_is_noticed_and_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut rest = &bytes[..];
            while decode_page(&mut rest, |at, part| assert!(at + part.len() <= PAGE)).is_some() {}
        }
    }

    #[test]
    fn a_page_sent_again_is_small() {
        let mut cache = Cache::new(1 << 20);
        let run = Run { address: BASE, pages: 1, zero: false };
        let checkpoint = checkpoint(2, MemoryDelta { runs: vec![run], ..MemoryDelta::default() });
        let mut page = vec![7; PAGE];
        let size = |cache: &mut Cache, page: &[u8]| {
            cache.encode(&checkpoint, &PageData::of(page.to_vec()), || {}).slices().concat().len()
        };
        assert_eq!(size(&mut cache, &page), MASK + PAGE);
        page[100] = 1;
        page[4095] = 1;
        assert_eq!(size(&mut cache, &page), MASK + 2 * BLOCK);
        assert_eq!(size(&mut cache, &page), MASK);
    }
}
