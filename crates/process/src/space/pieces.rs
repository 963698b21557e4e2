//! What is looked at or copied, in pieces for several processors: how it is cut.

use std::fs::File;
use std::io;

use super::EVERYTHING;
use crate::object::memory::Mapping;
use crate::sys::pagemap::{self, PAGE_SIZE, Range};

/// Page tables of so many pages are one piece of a scan: 128 MiB, 50 µs.
pub const PIECE: u64 = 1 << 15;
pub const MOST_PIECES: u64 = 256;
/// Pages of one piece of what is copied: some 30 µs.
pub const COPIED_PIECE: u64 = 32;

/// A part of a scan, in which little is or not.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub range: Range,
    pub sparse: bool,
}

impl Piece {
    pub fn take_written(self, pagemap: &File) -> io::Result<Vec<Range>> {
        if self.sparse {
            pagemap::take_written_sparse(pagemap, self.range)
        } else {
            pagemap::take_written(pagemap, self.range)
        }
    }
}

/// Pages that may exist.
pub fn weight(layout: &[Mapping]) -> u64 {
    layout.iter().filter(|mapping| mapping.protection != 0).map(|mapping| mapping.range.pages()).sum()
}

/// All addresses, in order, cut where there is much.
pub fn cut(layout: &[Mapping], sparse: &[Range]) -> Vec<Piece> {
    let size = PIECE.max(weight(layout) / MOST_PIECES);
    let mut pieces = Vec::new();
    let mut from = EVERYTHING.start;
    let mut mappings = layout.iter().filter(|mapping| mapping.protection != 0).peekable();
    for next in sparse.iter().copied().chain([Range::new(EVERYTHING.end, EVERYTHING.end)]) {
        let mut weight = 0;
        while let Some(mapping) = mappings.next_if(|mapping| mapping.range.start < next.start) {
            let end = mapping.range.end.min(next.start).max(from);
            let mut left = Range::new(mapping.range.start.max(from), end);
            while weight + left.pages() >= size {
                left.start += (size - weight) * PAGE_SIZE;
                pieces.push(Piece { range: Range::new(from, left.start), sparse: false });
                (from, weight) = (left.start, 0);
            }
            weight += left.pages();
        }
        pieces.push(Piece { range: Range::new(from, next.start), sparse: false });
        pieces.push(Piece { range: next, sparse: true });
        from = next.end;
    }
    pieces.retain(|piece| !piece.range.is_empty());
    pieces
}

/// Sorted ranges in parts of about so many pages each.
pub fn parts(ranges: &[Range], pages: u64) -> Vec<Vec<Range>> {
    let mut parts: Vec<Vec<Range>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let mut left = *range;
        while !left.is_empty() {
            if room == 0 {
                parts.push(Vec::new());
                room = pages;
            }
            let taken = Range::new(left.start, left.end.min(left.start + room * PAGE_SIZE));
            room -= taken.pages();
            left.start = taken.end;
            parts.last_mut().into_iter().for_each(|part| part.push(taken));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::memory::tests::anonymous;

    #[test]
    fn the_pieces_of_a_scan_are_all_addresses_and_of_like_weight() {
        let gib = |from: u64, to: u64| Range::new(from << 30, to << 30);
        let mapping = |from: u64, to: u64, protection| anonymous(from << 30, to << 30, protection);
        // The third is reserved, and the last may have little in it.
        let layout = [(1, 2, 3), (4, 5, 3), (1000, 60_000, 0), (70_000, 80_000, 3)]
            .map(|(from, to, protection)| mapping(from, to, protection));
        let sparse = [gib(70_000, 79_000)];
        for (layout, sparse) in
            [(&layout[..], &sparse[..]), (&layout[..], &[]), (&layout[..2], &[]), (&[], &[])]
        {
            let pieces = cut(layout, sparse);
            assert_eq!(pieces[0].range.start, EVERYTHING.start);
            assert!(pieces.windows(2).all(|two| two[0].range.end == two[1].range.start), "{pieces:?}");
            assert_eq!(pieces.last().unwrap().range.end, EVERYTHING.end);
            let found: Vec<Range> =
                pieces.iter().filter(|piece| piece.sparse).map(|piece| piece.range).collect();
            assert_eq!(found, sparse);
            assert!(pieces.len() as u64 <= MOST_PIECES + 2 + 2 * sparse.len() as u64, "{}", pieces.len());
        }
        assert_eq!(cut(&layout[..2], &[]).len(), 17, "2 GiB in 128 MiB each, and what is above");
    }

    #[test]
    fn what_is_copied_is_cut_into_parts() {
        let pages = |from: u64, to: u64| Range::new(from * PAGE_SIZE, to * PAGE_SIZE);
        let cut = parts(&[pages(1, 2), pages(5, 12), pages(20, 21)], 4);
        assert_eq!(cut, [vec![pages(1, 2), pages(5, 8)], vec![pages(8, 12)], vec![pages(20, 21)]]);
        assert!(parts(&[], 4).is_empty());
    }
}
