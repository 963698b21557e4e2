//! Mappings of an address space: what they are, and the steps from one layout to the next.

use serde::{Deserialize, Serialize};

use super::descriptor::is_below;
use super::file::FileKey;
use super::shared::Source;
use crate::checkpoint::Pid;
use crate::error::{Error, Result};
use crate::refusals::Refusal;
use crate::sys::pagemap::Range;
use crate::sys::proc::{self, MapsLine};
use crate::sys::remote::{Batch, WORKSPACE};
use crate::sys::shared;

/// What is behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private memory without a file.
    Anonymous,
    /// A file that nobody writes through this mapping; private writes to it are the process's own pages.
    File {
        path: String,
        offset: u64,
    },
    /// An object of the workload's own: what several processes may share, or a file of a scratch directory. Its content
    /// is captured once, whoever maps it; private writes to it are the process's own pages.
    Object {
        key: FileKey,
        offset: u64,
        /// Of a shared mapping: it may be written, or be made so by `mprotect`.
        writable: bool,
    },
    /// The kernel's own page of code, and the data it reads.
    Vdso,
    Vvar,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub range: Range,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    pub protection: u32,
    pub shared: bool,
    pub grows_down: bool,
    /// Named `[heap]` by the kernel.
    pub heap: bool,
    pub advice: Advice,
    pub backing: Backing,
}

/// What a mapping has been told by `madvise` and `mlock`: a set of the flags below. It is given to the mappings of a copy when
/// that comes to life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice(u16);

impl Advice {
    pub const LOCKED: Self = Self(1);
    pub const LOCKED_ON_FAULT: Self = Self(1 << 1);
    pub const WIPED_ON_FORK: Self = Self(1 << 2);

    /// How `/proc/PID/smaps` says each, and the advice that sets it.
    const NAMES: [(&str, Self, Option<i32>); 8] = [
        ("lo", Self::LOCKED, None),
        ("lf", Self::LOCKED_ON_FAULT, None),
        ("wf", Self::WIPED_ON_FORK, Some(libc::MADV_WIPEONFORK)),
        ("dc", Self(1 << 3), Some(libc::MADV_DONTFORK)),
        ("dd", Self(1 << 4), Some(libc::MADV_DONTDUMP)),
        ("hg", Self(1 << 5), Some(libc::MADV_HUGEPAGE)),
        ("nh", Self(1 << 6), Some(libc::MADV_NOHUGEPAGE)),
        ("mg", Self(1 << 7), Some(libc::MADV_MERGEABLE)),
    ];

    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn read(flags: &[&str]) -> Self {
        let set = Self::NAMES.iter().filter(|(name, ..)| flags.contains(name));
        Self(set.fold(0, |set, (_, advice, _)| set | advice.0))
    }

    /// Gives it to a mapping.
    pub fn restore(self, batch: &mut Batch, range: Range) {
        for advice in Self::NAMES.iter().filter(|(_, advice, _)| self.has(*advice)).filter_map(|(.., n)| *n) {
            batch.call(libc::SYS_madvise, &[range.start, range.len(), advice as u64]);
        }
        if self.has(Self::LOCKED) {
            let flags = if self.has(Self::LOCKED_ON_FAULT) { libc::MLOCK_ONFAULT } else { 0 };
            batch.call(libc::SYS_mlock2, &[range.start, range.len(), u64::from(flags)]);
        }
    }
}

/// Most calls of [`Advice::restore`].
pub const ADVICE_CALLS: usize = 8;

impl Layout {
    /// Fills in what `/proc/PID/smaps` says of the mappings.
    pub fn read_flags(&mut self, smaps: &str) {
        let flags = proc::mapping_flags(smaps);
        for mapping in &mut self.mappings {
            let found = flags.binary_search_by_key(&mapping.range.start, |(start, _)| *start);
            if let Some((_, flags)) = found.ok().and_then(|at| flags.get(at))
                && !mapping.is_kernel()
            {
                mapping.advice = Advice::read(flags);
                mapping.grows_down |= flags.contains(&"gd");
            }
        }
    }
}

impl Mapping {
    /// Whether the process can have pages of its own here that must travel.
    pub fn has_content(&self) -> bool {
        match self.backing {
            Backing::Anonymous => true,
            Backing::File { .. } | Backing::Object { .. } => !self.shared,
            Backing::Vdso | Backing::Vvar => false,
        }
    }

    pub fn is_kernel(&self) -> bool {
        matches!(self.backing, Backing::Vdso | Backing::Vvar)
    }

    /// What is mapped shared here, and which part of it.
    pub fn shared_object(&self) -> Option<(FileKey, Range)> {
        match self.backing {
            Backing::Object { key, offset, .. } if self.shared => {
                Some((key, Range::new(offset, offset + self.range.len())))
            }
            _ => None,
        }
    }

    pub(crate) fn part(&self, range: Range) -> Self {
        let skipped = range.start - self.range.start;
        let backing = match &self.backing {
            Backing::File { path, offset } => Backing::File { path: path.clone(), offset: offset + skipped },
            Backing::Object { key, offset, writable } => {
                Backing::Object { key: *key, offset: offset + skipped, writable: *writable }
            }
            other => other.clone(),
        };
        Self { range, backing, ..self.clone() }
    }

    /// Same thing behind the same addresses; protection may differ.
    fn same_backing(&self, other: &Self) -> bool {
        self.shared == other.shared && self.backing == other.backing
    }
}

/// An object that is mapped: which, what the kernel calls it, and one whole mapping of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    pub key: FileKey,
    pub source: Source,
    pub range: Range,
    /// Code of the process's own, as the loader maps it.
    pub code: bool,
}

/// What an address space has mapped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pub mappings: Vec<Mapping>,
    /// The objects among them; one may be there several times.
    pub objects: Vec<Mapped>,
}

/// What the mappings of `/proc/PID/maps` are. What cannot be protected is refused by name (R3). Files below `scratch` are
/// objects of the workload's own.
pub fn interpret(pid: Pid, lines: &[MapsLine], scratch: &[String]) -> Result<Layout> {
    let mut layout = Layout { mappings: Vec::with_capacity(lines.len()), objects: Vec::new() };
    for line in lines {
        let range = Range::new(line.start, line.end);
        if range.intersect(&WORKSPACE).is_some() || line.path == "[vsyscall]" {
            continue;
        }
        let backing = match object_of(line, scratch) {
            Some((key, source)) => {
                let code = line.execute && !line.shared;
                layout.objects.push(Mapped { key, source, range, code });
                Backing::Object { key, offset: line.offset, writable: line.shared && line.write }
            }
            None => plain_backing(pid, line)?,
        };
        let bit = |set: bool, value: i32| if set { value as u32 } else { 0 };
        layout.mappings.push(Mapping {
            range,
            protection: bit(line.read, libc::PROT_READ)
                | bit(line.write, libc::PROT_WRITE)
                | bit(line.execute, libc::PROT_EXEC),
            shared: line.shared,
            grows_down: line.path == "[stack]",
            heap: line.path == "[heap]",
            advice: Advice::default(),
            backing,
        });
    }
    Ok(layout)
}

/// Every mapping that cannot be protected, of the text of `/proc/PID/maps`.
pub fn refused(pid: Pid, maps: &str, scratch: &[String]) -> Vec<Refusal> {
    let lines = proc::parse_maps(maps).unwrap_or_default();
    let each = lines.into_iter().filter_map(|line| interpret(pid, &[line], scratch).err());
    each.filter_map(|error| Refusal::of(&error)).collect()
}

/// Which object of the workload's own is mapped, if one is.
fn object_of(line: &MapsLine, scratch: &[String]) -> Option<(FileKey, Source)> {
    const DELETED: &str = " (deleted)";
    let device = libc::makedev((line.device >> 32) as u32, line.device as u32);
    let key = FileKey { device, inode: line.inode };
    let plain = line.path.strip_suffix(DELETED);
    // Named by `prctl(PR_SET_VMA)`, which takes no other shared mappings.
    if line.path.starts_with("[anon_shmem:") {
        return Some((key, Source::Anonymous));
    }
    if shared::device().is_ok_and(|own| own == device)
        && let Some(name) = plain
    {
        if name == "/dev/zero" {
            return Some((key, Source::Anonymous));
        }
        if let Some(name) = name.strip_prefix("/memfd:") {
            return Some((key, Source::Memfd(name.to_owned())));
        }
        if name.starts_with("/SYSV") {
            // The kernel gives its id for the number of its inode (`newseg`, ipc/shm.c).
            let id = i32::try_from(line.inode).ok()?;
            return Some((FileKey::of_segment(id), Source::Segment(id)));
        }
    }
    let path = plain.unwrap_or(&line.path);
    let own = line.inode != 0 && !path.starts_with('[') && is_below(scratch, path);
    own.then(|| (key, Source::Scratch(path.to_owned())))
}

/// What is behind a mapping that is no object of the workload's own.
fn plain_backing(pid: Pid, line: &MapsLine) -> Result<Backing> {
    let refuse = |what: String, advice| Err(Error::Unsupported { pid, what, advice });
    if line.path == "[vdso]" {
        return Ok(Backing::Vdso);
    }
    if line.path.starts_with("[vvar") {
        return Ok(Backing::Vvar);
    }
    if (line.inode == 0 && !line.path.ends_with(" (deleted)")) || line.path.starts_with('[') {
        if line.path.starts_with('[') && !known_anonymous(&line.path) {
            return refuse(
                format!("a mapping of {}", line.path),
                "no advice: the kernel does not say what it is",
            );
        }
        return Ok(Backing::Anonymous);
    }
    if line.path.ends_with(" (deleted)") || line.path.starts_with("/memfd:") {
        return refuse(
            format!("a mapping of {}, a file without a name", line.path),
            "restart the workload if its program was upgraded under it",
        );
    }
    if line.shared && line.write {
        return refuse(
            format!("a writable shared mapping of {}", line.path),
            "declare the directory with --scratch, or let the program use plain reads and writes",
        );
    }
    Ok(Backing::File { path: line.path.clone(), offset: line.offset })
}

fn known_anonymous(path: &str) -> bool {
    path == "[heap]" || path == "[stack]" || path.starts_with("[anon:") || path.starts_with("[stack:")
}

/// A step from one layout to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Unmap(Range),
    Map(Mapping),
    Protect(Range, u32),
}

/// Steps that turn `old` into `new`. What lies in `fresh` is mapped anew even where it looks the same. The kernel's own
/// mappings are left out: they are moved, not mapped.
pub fn plan(old: &[Mapping], new: &[Mapping], fresh: &[Range]) -> Vec<Step> {
    let mut cuts: Vec<u64> = old
        .iter()
        .chain(new)
        .map(|mapping| mapping.range)
        .chain(fresh.iter().copied())
        .flat_map(|range| [range.start, range.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut unmap, mut map, mut protect) = (Vec::new(), Vec::new(), Vec::new());
    for pair in cuts.windows(2) {
        let piece = Range::new(pair[0], pair[1]);
        let before = covering(old, piece);
        let after = covering(new, piece);
        match (before, after) {
            (None, None) => {}
            (Some(_), None) => push_range(&mut unmap, piece),
            (None, Some(after)) => push_mapping(&mut map, after.part(piece)),
            (Some(before), Some(after)) => {
                let renewed = fresh.iter().any(|range| range.intersect(&piece).is_some());
                if renewed || !before.part(piece).same_backing(&after.part(piece)) {
                    push_range(&mut unmap, piece);
                    push_mapping(&mut map, after.part(piece));
                } else if before.protection != after.protection {
                    protect.push(Step::Protect(piece, after.protection));
                }
            }
        }
    }
    unmap.into_iter().map(Step::Unmap).chain(map.into_iter().map(Step::Map)).chain(protect).collect()
}

fn covering(layout: &[Mapping], piece: Range) -> Option<&Mapping> {
    let index = layout.partition_point(|mapping| mapping.range.end <= piece.start);
    layout.get(index).filter(|mapping| mapping.range.start <= piece.start && !mapping.is_kernel())
}

fn push_range(ranges: &mut Vec<Range>, piece: Range) {
    match ranges.last_mut() {
        Some(last) if last.end == piece.start => last.end = piece.end,
        _ => ranges.push(piece),
    }
}

/// Pieces that belong together are mapped in one call: cutting at every boundary must not leave more mappings than
/// the workload has.
fn push_mapping(mappings: &mut Vec<Mapping>, piece: Mapping) {
    if let Some(last) = mappings.last_mut() {
        let joined = Mapping { range: Range::new(last.range.start, piece.range.end), ..last.clone() };
        if last.range.end == piece.range.start && joined.part(piece.range) == piece {
            *last = joined;
            return;
        }
    }
    mappings.push(piece);
}

/// Takes out of sorted, disjoint `ranges` what lies in `holes`.
pub fn subtract(ranges: &[Range], holes: &[Range]) -> Vec<Range> {
    let mut left = ranges.to_vec();
    for hole in holes {
        left = left
            .into_iter()
            .flat_map(|range| {
                let before = Range { start: range.start, end: range.end.min(hole.start).max(range.start) };
                let after = Range { start: range.start.max(hole.end).min(range.end), end: range.end };
                [before, after]
            })
            .filter(|range| !range.is_empty())
            .collect();
    }
    left
}

/// The parts of sorted `ranges` that lie in sorted, disjoint `within`.
pub fn intersect(ranges: &[Range], within: &[Range]) -> Vec<Range> {
    let mut found = Vec::new();
    let mut at = 0;
    for range in ranges {
        while at < within.len() && within[at].end <= range.start {
            at += 1;
        }
        found.extend(
            within[at..].iter().take_while(|w| w.start < range.end).filter_map(|w| w.intersect(range)),
        );
    }
    found
}

/// Sorts and joins ranges.
pub fn normalise(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn anonymous(start: u64, end: u64, protection: u32) -> Mapping {
        Mapping {
            range: Range::new(start, end),
            protection,
            shared: false,
            grows_down: false,
            heap: false,
            advice: Advice::default(),
            backing: Backing::Anonymous,
        }
    }

    fn file(start: u64, end: u64, offset: u64) -> Mapping {
        Mapping { backing: Backing::File { path: "/bin/x".into(), offset }, ..anonymous(start, end, 1) }
    }

    #[test]
    fn unchanged_layout_needs_no_steps() {
        let layout = [anonymous(0x1000, 0x3000, 3), file(0x5000, 0x7000, 0)];
        assert_eq!(plan(&layout, &layout, &[]), []);
    }

    #[test]
    fn fresh_ranges_are_mapped_anew_though_they_look_the_same() {
        let layout = [anonymous(0x1000, 0x5000, 3)];
        let steps = plan(&layout, &layout, &[Range::new(0x2000, 0x3000)]);
        assert_eq!(steps, [Step::Unmap(Range::new(0x2000, 0x3000)), Step::Map(anonymous(0x2000, 0x3000, 3))]);
    }

    #[test]
    fn growth_shrinking_protection_and_file_offsets() {
        let old = [anonymous(0x1000, 0x3000, 3), file(0x5000, 0x9000, 0x1000)];
        let new = [
            anonymous(0x1000, 0x4000, 3),
            file(0x5000, 0x6000, 0x1000),
            Mapping { protection: 3, ..file(0x6000, 0x7000, 0x2000) },
            file(0x8000, 0x9000, 0x9000),
        ];
        let steps = plan(&old, &new, &[]);
        assert_eq!(
            steps,
            [
                Step::Unmap(Range::new(0x7000, 0x9000)),
                Step::Map(anonymous(0x3000, 0x4000, 3)),
                Step::Map(file(0x8000, 0x9000, 0x9000)),
                Step::Protect(Range::new(0x6000, 0x7000), 3),
            ]
        );
    }

    #[test]
    fn a_mapping_cut_by_a_neighbours_boundary_is_mapped_in_one_piece() {
        let old = [anonymous(0x1000, 0x2000, 3)];
        let new = [file(0x1000, 0x5000, 0)];
        assert_eq!(
            plan(&old, &new, &[]),
            [Step::Unmap(Range::new(0x1000, 0x2000)), Step::Map(file(0x1000, 0x5000, 0))]
        );
    }

    #[test]
    fn range_arithmetic() {
        let r = |a, b| Range::new(a, b);
        assert_eq!(subtract(&[r(0, 10), r(20, 30)], &[r(5, 25)]), [r(0, 5), r(25, 30)]);
        assert_eq!(subtract(&[r(0, 10)], &[r(2, 3), r(5, 6)]), [r(0, 2), r(3, 5), r(6, 10)]);
        assert_eq!(intersect(&[r(0, 10), r(20, 30)], &[r(5, 25)]), [r(5, 10), r(20, 25)]);
        assert_eq!(intersect(&[r(0, 100)], &[r(1, 2), r(5, 6), r(99, 200)]), [r(1, 2), r(5, 6), r(99, 100)]);
        assert_eq!(normalise(vec![r(5, 7), r(0, 2), r(2, 3), r(6, 9)]), [r(0, 3), r(5, 9)]);
    }

    #[test]
    fn r3_a_writable_shared_file_mapping_is_refused_by_name() {
        let line = MapsLine {
            start: 0x1000,
            end: 0x2000,
            read: true,
            write: true,
            execute: false,
            shared: true,
            offset: 0,
            device: 1,
            inode: 7,
            path: "/data/file".into(),
        };
        let error = interpret(5, &[line], &["/tmp".into()]).unwrap_err().to_string();
        assert!(error.contains("/data/file") && error.contains("process 5"), "{error}");
    }
}
