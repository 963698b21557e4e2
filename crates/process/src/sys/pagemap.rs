//! `PAGEMAP_SCAN` (Linux 6.7, `Documentation/admin-guide/mm/pagemap.rst`): which pages were written, and
//! write-protecting them again, in one pass from outside the process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

pub const PAGE_SIZE: u64 = 4096;

/// Categories of `include/uapi/linux/fs.h`.
pub const IS_WPALLOWED: u64 = 1 << 0;
pub const IS_WRITTEN: u64 = 1 << 1;
pub const IS_FILE: u64 = 1 << 2;
pub const IS_PRESENT: u64 = 1 << 3;
pub const IS_SWAPPED: u64 = 1 << 4;
pub const IS_PFNZERO: u64 = 1 << 5;

const SCAN_WP_MATCHING: u64 = 1 << 0;
/// `_IOWR('f', 16, struct pm_scan_arg)`, a structure of 96 bytes.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// End of user addresses with four-level page tables, one guard page short (`TASK_SIZE_MAX`).
pub const USER_END: u64 = 0x7fff_ffff_f000;
/// Ranges asked for in one call; a call that fills them is continued where it stopped.
const BATCH: usize = 2048;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A half-open range of addresses, page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { start, end }
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn pages(&self) -> u64 {
        self.len() / PAGE_SIZE
    }

    pub fn intersect(&self, other: &Range) -> Option<Range> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Range { start, end })
    }
}

/// What a scan asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Write-protect what matches, so that the next scan reports only later writes. Address ranges that are not
    /// registered with a userfaultfd in asynchronous mode are then skipped without a word: see [`unregistered`].
    pub protect: bool,
    pub inverted: u64,
    pub all_of: u64,
    pub any_of: u64,
    pub returned: u64,
}

/// Ranges of pages that match, in address order, with the categories asked for.
pub fn scan(pagemap: &File, within: Range, query: Query) -> io::Result<Vec<(Range, u64)>> {
    let mut found: Vec<(Range, u64)> = Vec::new();
    let mut regions = [PageRegion::default(); BATCH];
    let mut start = within.start;
    while start < within.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: if query.protect { SCAN_WP_MATCHING } else { 0 },
            start,
            end: within.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: BATCH as u64,
            category_inverted: query.inverted,
            category_mask: query.all_of,
            category_anyof_mask: query.any_of,
            return_mask: query.returned,
            ..ScanArg::default()
        };
        // SAFETY: `arg` and the `regions` it points to are live and exclusively borrowed, of the sizes stated in it.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for region in &regions[..count as usize] {
            let range = Range::new(region.start, region.end);
            match found.last_mut() {
                Some((last, categories)) if last.end == range.start && *categories == region.categories => {
                    last.end = range.end;
                }
                _ => found.push((range, region.categories)),
            }
        }
        // A scan that comes to its end may say that it stopped where the kernel's own buffer was full last, of 512 ranges (`walk_end` in
        // `do_pagemap_scan`, fs/proc/task_mmu.c). Going on from there would find what was written again meanwhile a second time, and
        // out of order.
        let last = regions[..count as usize].last().map_or(0, |region| region.end);
        let next = arg.walk_end.max(last);
        if next <= start {
            break;
        }
        start = next;
    }
    Ok(found)
}

/// Pages written since the last such scan, write-protected again. With exactly these masks the kernel also reports
/// entries that were emptied (`MADV_DONTNEED` of less than a whole page table), which is why file pages are told
/// apart by a second question and not here (`fs/proc/task_mmu.c`, the fast path of `pagemap_scan_pmd_entry`).
pub fn take_written(pagemap: &File, within: Range) -> io::Result<Vec<Range>> {
    let query = Query { protect: true, all_of: IS_WRITTEN, returned: IS_WRITTEN, ..Query::default() };
    Ok(scan(pagemap, within, query)?.into_iter().map(|(range, _)| range).collect())
}

/// As [`take_written`], but only pages that exist. The other marks every page that does not, for which the kernel makes page
/// tables: too many where little is in much. Slower for each page that exists.
pub fn take_written_sparse(pagemap: &File, within: Range) -> io::Result<Vec<Range>> {
    let query =
        Query { protect: true, all_of: IS_WRITTEN, any_of: IS_PRESENT | IS_SWAPPED, ..Query::default() };
    Ok(merge(scan(pagemap, within, query)?.into_iter().map(|(range, _)| range)))
}

/// Ranges whose mapping is not registered for tracking: whole mappings are skipped by their flag, so the cost is
/// that of a walk over the mappings and not over the pages.
pub fn unregistered(pagemap: &File, within: Range) -> io::Result<Vec<Range>> {
    let query = Query { inverted: IS_WPALLOWED, all_of: IS_WPALLOWED, returned: 0, ..Query::default() };
    Ok(merge(scan(pagemap, within, query)?.into_iter().map(|(range, _)| range)))
}

/// Pages of a range that hold something of their own: present or swapped, and not a clean page of a file. The tracker leaves
/// marks for pages that do not exist, which look like swapped ones; they are none.
pub fn populated(pagemap: &File, within: Range) -> io::Result<Vec<Range>> {
    let query = Query {
        inverted: IS_FILE | IS_PFNZERO,
        all_of: IS_FILE | IS_PFNZERO,
        any_of: IS_PRESENT | IS_SWAPPED,
        returned: IS_SWAPPED,
        ..Query::default()
    };
    let mut found = Vec::new();
    let mut entries = Vec::new();
    for (range, categories) in scan(pagemap, within, query)? {
        if categories & IS_SWAPPED == 0 {
            found.push(range);
            continue;
        }
        // A terabyte of marks would be an allocation to match.
        for start in (range.start..range.end).step_by(512 * PAGE_SIZE as usize) {
            let part = Range::new(start, range.end.min(start + 512 * PAGE_SIZE));
            entries.resize(part.pages() as usize * 8, 0);
            pagemap.read_exact_at(&mut entries, part.start / PAGE_SIZE * 8)?;
            for (index, entry) in entries.chunks_exact(8).enumerate() {
                let entry = u64::from_le_bytes(std::array::from_fn(|at| entry[at]));
                let start = part.start + index as u64 * PAGE_SIZE;
                if !is_mark(entry) {
                    found.push(Range::new(start, start + PAGE_SIZE));
                }
            }
        }
    }
    Ok(merge(found.into_iter()))
}

/// Whether an entry of `/proc/PID/pagemap` is of a page that does not exist and has a mark. A page that the kernel was migrating when
/// it was scanned looked swapped, and may be there again: then these bits are of its number, and say nothing.
fn is_mark(entry: u64) -> bool {
    /// Of an entry: the page is present; it is swapped (`Documentation/admin-guide/mm/pagemap.rst`).
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    /// `SWP_PTE_MARKER` of include/linux/swap.h: the last of the types that fit into the five bits in which they are said.
    const MARK: u64 = 31;
    entry & (PRESENT | SWAPPED) == SWAPPED && entry & 0x1f == MARK
}

fn merge(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::super::uffd::{OPEN_FLAGS, Tracker};
    use super::*;

    /// What was written again while a scan of more than 512 ranges came to its end was there twice, and out of order.
    #[test]
    fn pages_that_are_written_during_a_scan_are_found_in_order() {
        const WRITTEN: u64 = 700;
        let length = NonZeroUsize::new((2 * WRITTEN * PAGE_SIZE) as usize).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: new memory at a place of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }.unwrap();
        // No fork of another test is to wait until somebody reads that the memory was copied.
        for advice in [MmapAdvise::MADV_NOHUGEPAGE, MmapAdvise::MADV_DONTFORK] {
            // SAFETY: the memory just mapped.
            unsafe { madvise(memory, length.get(), advice) }.unwrap();
        }
        let start = memory.addr().get() as u64;
        let all = Range::new(start, start + length.get() as u64);
        // SAFETY: the call makes a descriptor, which nobody else has.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, OPEN_FLAGS) } as i32;
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let tracker = Tracker::new(unsafe { OwnedFd::from_raw_fd(fd) }).unwrap();
        tracker.register(all).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let write = |page: u64| {
            // SAFETY: a word of the memory above, which is there until all threads have ended; only atomics refer to it.
            let word = unsafe { AtomicU64::from_ptr((start + 2 * page * PAGE_SIZE) as *mut u64) };
            word.fetch_add(1, Ordering::Relaxed);
        };
        let stop = AtomicBool::new(false);
        let sorted = thread::scope(|scope| {
            scope.spawn(|| {
                // Behind the 512th range.
                while !stop.load(Ordering::Relaxed) {
                    (520..WRITTEN).step_by(9).for_each(write);
                }
            });
            let sorted = (0..300).all(|_| {
                (0..WRITTEN).for_each(write);
                let found = take_written(&pagemap, all).unwrap();
                found.windows(2).all(|two| two[0].end <= two[1].start)
            });
            stop.store(true, Ordering::Relaxed);
            sorted
        });
        drop(tracker);
        // SAFETY: mapped above, and used no more.
        unsafe { munmap(memory, length.get()) }.unwrap();
        assert!(sorted);
    }

    /// One in 32 pages was left out of a first copy if it was migrated at that moment.
    #[test]
    fn a_page_that_is_there_again_is_no_mark_whatever_its_number() {
        let (present, swapped) = (1 << 63, 1 << 62);
        for number in 0..64 {
            assert!(!is_mark(present | number), "page {number}");
            assert_eq!(is_mark(swapped | number), number & 31 == 31, "type {number}");
        }
        assert!(!is_mark(0));
        assert!(!is_mark(31));
    }
}
