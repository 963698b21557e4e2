//! The memory of one process: which pages changed since the last checkpoint, and their content.

mod pieces;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::checkpoint::{MemoryDelta, Pid, Run};
use crate::error::{Attempt, Result};
use crate::object::file::FileKey;
use crate::object::memory::{self, Advice, Backing, Mapped, Mapping, intersect, normalise, subtract};
use crate::pool::Pool;
use crate::sys::pagemap::{self, PAGE_SIZE, Range, USER_END};
use crate::sys::proc;
use crate::sys::ptrace::Tid;
use crate::sys::remote::WORKSPACE;
use crate::sys::task;
use crate::sys::uffd::Tracker;
use pieces::{COPIED_PIECE, MOST_PIECES, PIECE, cut, parts, weight};

/// All of a process's addresses but the first page, which cannot be mapped.
const EVERYTHING: Range = Range { start: PAGE_SIZE, end: USER_END };
/// A written range longer than this is asked which of its pages exist before they are read: reading a page that does
/// not exist would make it.
const SPARSE: u64 = 64;

/// Of a mapping of so many pages it is asked whether there is little in it.
const LARGE: u64 = 1024;
/// Little is less than one page of so many.
const FEW: u64 = 4;

/// A mapping with little in it, so that only pages that exist are asked about.
#[derive(Debug, Clone, Copy)]
struct Sparse {
    range: Range,
    /// Pages written since it was last counted what is in it.
    written: u64,
}

/// Bytes of pages, in buffers as they were copied: kept apart so that nothing is copied twice while the workload is
/// stopped.
#[derive(Debug, Default)]
pub struct PageData {
    buffers: Vec<Vec<u8>>,
    /// Buffer, offset, length; in the order of the runs.
    slices: Vec<(usize, usize, usize)>,
}

impl PageData {
    /// Pages that lie one after the other.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { slices: vec![(0, 0, bytes.len())], buffers: vec![bytes] }
    }

    pub fn len(&self) -> usize {
        self.slices.iter().map(|(_, _, len)| len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.slices.iter().map(|(buffer, offset, len)| &self.buffers[*buffer][*offset..offset + len])
    }

    /// Pages that follow.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        self.append(Self::of(bytes));
    }

    pub fn append(&mut self, other: PageData) {
        let base = self.buffers.len();
        self.buffers.extend(other.buffers);
        self.slices
            .extend(other.slices.into_iter().map(|(buffer, offset, len)| (buffer + base, offset, len)));
    }
}

/// Pages copied while the workload ran; valid where nothing was written afterwards.
#[derive(Debug, Default)]
struct Copied {
    /// Each with its offset in `data`, sorted.
    ranges: Vec<(Range, usize)>,
    data: Vec<u8>,
}

#[derive(Debug)]
pub struct Space {
    pub(crate) tracker: Tracker,
    host: Tid,
    pub(crate) memory: Arc<File>,
    pagemap: Arc<File>,
    maps: File,
    /// `/proc/PID/maps` as of the last checkpoint, and what it means.
    text: Vec<u8>,
    pub(crate) layout: Vec<Mapping>,
    /// Pages that may exist in it.
    weight: u64,
    /// The objects that are mapped.
    pub(crate) objects: Vec<Mapped>,
    /// What was written to objects through shared mappings since this was last taken, by offset.
    pub(crate) touched: Vec<(FileKey, Range)>,
    /// Objects to which anything may have been written through mappings that are gone.
    pub(crate) suspects: HashSet<FileKey>,
    /// The workload's scratch directories.
    scratch: Arc<[String]>,
    /// Since the last checkpoint: mapped anew; emptied.
    fresh: Vec<Range>,
    dropped: Vec<Range>,
    /// Since the live round: fresh or emptied, so that what the round copied there is void.
    void: Vec<Range>,
    live: Copied,
    /// Changed since the last checkpoint though the tracker says that it is clean.
    extra: Vec<Range>,
    /// Still to be copied for a backup that has nothing yet.
    backlog: Vec<Range>,
    /// The next checkpoint must hold all of it.
    whole: bool,
    /// Mappings have been registered: a fork is announced by the tracker.
    registered: bool,
    /// The kernel's count of changes of the mappings at which `text` was read and all was registered.
    mappings_at: Option<u32>,
    /// In the order of addresses.
    sparse: Vec<Sparse>,
    /// Mappings have been advised, so that more is asked about them when they have changed; and now.
    pub(crate) advised: bool,
    advice_changed: bool,
    /// Told to be empty in a child.
    wiped: Vec<Range>,
    /// Mappings that cannot be tracked and need not be, because they can never be written: as long as `text` says the same.
    unwritable: Vec<Range>,
}

/// What a child takes over from its parent's space at the fork.
#[derive(Debug)]
pub struct Unborn {
    tracker: Tracker,
    fresh: Vec<Range>,
    dropped: Vec<Range>,
    extra: Vec<Range>,
    whole: bool,
    layout: Vec<Mapping>,
    sparse: Vec<Sparse>,
    advised: bool,
    wiped: Vec<Range>,
    scratch: Arc<[String]>,
}

impl Unborn {
    /// The fork failed after it had copied the memory, or the child was killed before it ran.
    pub fn is_gone(&self) -> bool {
        self.tracker.is_gone(WORKSPACE)
    }

    pub fn open(self, host: Tid) -> io::Result<Space> {
        let mut space = Space::new(host, self.tracker, proc::open_memory(host)?, self.scratch)?;
        space.weight = weight(&self.layout);
        // Inherited: what of it is gone by the next checkpoint may have been written before.
        space.layout = self.layout;
        space.sparse = self.sparse;
        space.advised = self.advised;
        space.wiped = self.wiped;
        space.fresh = self.fresh;
        space.dropped = self.dropped;
        space.extra = self.extra;
        space.whole = self.whole;
        space.registered = true;
        Ok(space)
    }
}

impl Space {
    pub fn new(host: Tid, tracker: Tracker, memory: File, scratch: Arc<[String]>) -> io::Result<Self> {
        Ok(Self {
            tracker,
            host,
            memory: Arc::new(memory),
            pagemap: Arc::new(proc::open(host, "pagemap")?),
            maps: proc::open(host, "maps")?,
            text: Vec::new(),
            layout: Vec::new(),
            weight: 0,
            objects: Vec::new(),
            touched: Vec::new(),
            suspects: HashSet::new(),
            scratch,
            fresh: Vec::new(),
            dropped: Vec::new(),
            void: Vec::new(),
            live: Copied::default(),
            extra: Vec::new(),
            backlog: Vec::new(),
            whole: false,
            registered: false,
            mappings_at: None,
            sparse: Vec::new(),
            advised: false,
            advice_changed: false,
            wiped: Vec::new(),
            unwritable: Vec::new(),
        })
    }

    /// A fork: what this epoch has changed here so far has changed in the child as well, but the tracker of the child
    /// knows only of what is still marked as written.
    pub fn fork(&self, tracker: Tracker) -> Unborn {
        let mut extra = self.extra.clone();
        extra.extend(self.live.ranges.iter().map(|(range, _)| *range));
        // Announced by another thread, and perhaps not emptied before the fork: what is there in the child is copied.
        extra.extend(self.dropped.iter().copied());
        let mut fresh = self.fresh.clone();
        // Empty in the child, unless the advice has been taken back: what is there is copied.
        let wiped = self.layout.iter().filter(|mapping| mapping.advice.has(Advice::WIPED_ON_FORK));
        for range in wiped.map(|mapping| mapping.range).chain(self.wiped.iter().copied()) {
            extra.push(range);
            fresh.push(range);
        }
        Unborn {
            tracker,
            fresh,
            dropped: self.dropped.clone(),
            extra: normalise(extra),
            whole: self.whole || !self.backlog.is_empty(),
            layout: self.layout.clone(),
            sparse: self.sparse.clone(),
            advised: self.advised,
            wiped: self.wiped.clone(),
            scratch: self.scratch.clone(),
        }
    }

    /// Pages were emptied by the process itself, which leaves no trace where whole page tables went with them.
    pub fn dropped(&mut self, range: Range) {
        self.dropped.push(range);
        self.void.push(range);
        self.suspect_in(range);
    }

    fn suspect_in(&mut self, range: Range) {
        let shared = self.layout.iter().filter(|mapping| mapping.range.intersect(&range).is_some());
        self.suspects.extend(shared.filter_map(|mapping| Some(mapping.shared_object()?.0)));
    }

    /// The object at an address may be written by ways that nobody sees.
    pub fn suspect_at(&mut self, address: u64) {
        self.suspect_in(Range::new(address, address.saturating_add(1)));
    }

    /// Mappings are about to have other properties; those of `wiped` are to be empty in a child.
    pub fn advise(&mut self, wiped: Option<Range>) {
        self.advised = true;
        self.advice_changed = true;
        self.wiped.extend(wiped);
    }

    /// An object is about to be mapped. It may be gone again before anybody has looked.
    pub fn suspect(&mut self, key: FileKey) {
        self.suspects.insert(key);
    }

    /// The objects that are mapped shared, each once or several times.
    pub fn shared_objects(&self) -> impl Iterator<Item = FileKey> {
        self.layout.iter().filter_map(|mapping| Some(mapping.shared_object()?.0))
    }

    /// Notes what this space has written to objects, because it is about to end. Its threads may run.
    pub fn harvest(&mut self, pid: Pid) {
        if self.shared_objects().next().is_some() && self.try_harvest(pid).is_err() {
            let all: Vec<FileKey> = self.shared_objects().collect();
            self.suspects.extend(all);
        }
    }

    fn try_harvest(&mut self, pid: Pid) -> Result<()> {
        let what = || format!("look at the end of process {pid}");
        let mut text = Vec::new();
        proc::read_into(&mut self.maps, &mut text).attempt(what)?;
        let lines = parse(&text).attempt(what)?;
        let now = memory::interpret(pid, &lines, &self.scratch)?.mappings;
        self.suspect_what_is_gone(&now);
        // Mapped since the last checkpoint: not all of it may be tracked.
        let new = now.iter().filter(|mapping| !is_part_of(mapping, &self.layout));
        self.suspects.extend(new.filter_map(|mapping| Some(mapping.shared_object()?.0)));
        let shared: Vec<Range> =
            now.iter().filter(|mapping| mapping.shared_object().is_some()).map(|m| m.range).collect();
        let mut written = intersect(&self.extra, &shared);
        written.extend(intersect(&normalise(self.fresh.clone()), &shared));
        for range in &shared {
            written.extend(pagemap::take_written_sparse(&self.pagemap, *range).attempt(what)?);
        }
        // Kept for a capture as well: the process may live on.
        self.extra.extend(written.iter().copied());
        self.extra = normalise(std::mem::take(&mut self.extra));
        self.touch(&normalise(written), &now);
        Ok(())
    }

    /// What was mapped of objects and is not any more may have been written before.
    fn suspect_what_is_gone(&mut self, now: &[Mapping]) {
        let gone = self.layout.iter().filter(|mapping| !is_part_of(mapping, now));
        let gone: Vec<FileKey> = gone.filter_map(|mapping| Some(mapping.shared_object()?.0)).collect();
        self.suspects.extend(gone);
    }

    /// Notes what was written to objects, of all that was written.
    fn touch(&mut self, written: &[Range], layout: &[Mapping]) {
        for mapping in layout {
            let Some((key, part)) = mapping.shared_object() else { continue };
            let from = written.partition_point(|range| range.end <= mapping.range.start);
            let here = written[from..].iter().take_while(|range| range.start < mapping.range.end);
            let parts = here.filter_map(|range| range.intersect(&mapping.range)).map(|range| {
                let at = |address| part.start + (address - mapping.range.start);
                (key, Range::new(at(range.start), at(range.end)))
            });
            self.touched.extend(parts);
        }
    }

    /// Registers what was mapped since the last call, by what `/proc/PID/maps` says. It is fresh: all in it counts as
    /// written. Gives what can never be written.
    ///
    /// Reserved addresses are left out while nothing is in them: registered, they would have page tables, gigabytes for the
    /// terabytes that some runtimes reserve, and every scan would walk these. They may have been written and closed again
    /// meanwhile, so each time it is asked what is in them, if the process stands still and not `live`.
    fn track_new(&mut self, lines: &[proc::MapsLine], live: bool) -> io::Result<Vec<Range>> {
        self.registered = true;
        let mut unwritable = Vec::new();
        for range in pagemap::unregistered(&self.pagemap, EVERYTHING)? {
            for part in subtract(&subtract(&[range], &[WORKSPACE]), &self.unwritable) {
                self.track_part(part, lines, live, &mut unwritable)?;
            }
        }
        Ok(unwritable)
    }

    fn track_part(
        &mut self,
        within: Range,
        lines: &[proc::MapsLine],
        live: bool,
        unwritable: &mut Vec<Range>,
    ) -> io::Result<()> {
        // Neighbours in one call.
        let mut wanted: Vec<Range> = Vec::new();
        for line in lines.iter().filter(|line| line.end > within.start && line.start < within.end) {
            let Some(part) = Range::new(line.start, line.end).intersect(&within) else { continue };
            // While the process runs, what was reserved a moment ago may be something else by now.
            if is_reserved(line) && (live || pagemap::populated(&self.pagemap, part)?.is_empty()) {
                continue;
            }
            match wanted.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => wanted.push(part),
            }
        }
        for line in lines.iter().filter(|line| line.end > within.start && line.start < within.end) {
            if let Some(part) = Range::new(line.start, line.end).intersect(&within)
                && wanted.iter().any(|range| range.intersect(&part).is_some())
            {
                self.judge(part)?;
            }
        }
        for part in wanted {
            if self.tracker.register(part).is_ok() {
                self.fresh.push(part);
                self.void.push(part);
                continue;
            }
            // Mappings that can never be written (the kernel's own, shared read-only files): the range may join one of
            // those to others, so each mapping is tried by itself.
            for line in lines {
                let Some(part) = Range::new(line.start, line.end).intersect(&part) else { continue };
                if self.tracker.register(part).is_ok() {
                    self.fresh.push(part);
                    self.void.push(part);
                } else {
                    unwritable.push(part);
                }
            }
        }
        Ok(())
    }

    /// Whether there is little in a new mapping.
    fn judge(&mut self, part: Range) -> io::Result<()> {
        self.sparse.retain(|sparse| sparse.range.intersect(&part).is_none());
        if part.pages() >= LARGE && self.pages_in(part)? < part.pages() / FEW {
            let at = self.sparse.partition_point(|sparse| sparse.range.start < part.start);
            self.sparse.insert(at, Sparse { range: part, written: 0 });
        }
        Ok(())
    }

    fn pages_in(&self, range: Range) -> io::Result<u64> {
        Ok(pagemap::populated(&self.pagemap, range)?.iter().map(Range::pages).sum())
    }

    /// Whether looking at all of it is worth more than one processor.
    pub fn is_large(&self) -> bool {
        self.weight.saturating_sub(self.sparse.iter().map(|sparse| sparse.range.pages()).sum()) >= 2 * PIECE
    }

    /// What was written since the last call, protected again.
    fn take_written(&mut self) -> io::Result<Vec<Range>> {
        let mut written = Vec::new();
        let sparse: Vec<Range> = self.sparse.iter().map(|sparse| sparse.range).collect();
        let is_large = self.is_large();
        // What has been mapped since the last checkpoint has no weight, and is in a piece all the same.
        let pieces = cut(if is_large { &self.layout } else { &[] }, &sparse);
        let found: Vec<io::Result<Vec<Range>>> = if is_large {
            let pagemap = Arc::clone(&self.pagemap);
            Pool::shared().run(pieces.clone(), move |piece| piece.take_written(&pagemap))
        } else {
            pieces.iter().map(|piece| piece.take_written(&self.pagemap)).collect()
        };
        let mut sparse = self.sparse.iter_mut();
        for (piece, found) in pieces.iter().zip(found) {
            let here = found?;
            if piece.sparse
                && let Some(sparse) = sparse.next()
            {
                sparse.written += here.iter().map(Range::pages).sum::<u64>();
            }
            written.extend(here);
        }
        // Counted again when enough has been written for it to have filled.
        let mut at = 0;
        while let Some(sparse) = self.sparse.get(at).copied() {
            if sparse.written < sparse.range.pages() / FEW {
                at += 1;
            } else if self.pages_in(sparse.range)? < sparse.range.pages() / FEW {
                self.sparse[at].written = 0;
            } else {
                self.sparse.remove(at);
            }
        }
        Ok(written)
    }

    /// One round while the process runs: what it has written so far is protected again and copied.
    pub fn live_round(&mut self, pid: Pid) -> Result<()> {
        let what = || format!("copy the memory of process {pid} as it runs");
        self.merge_live_into_extra();
        let mut text = Vec::new();
        proc::read_into(&mut self.maps, &mut text).attempt(what)?;
        let lines = parse(&text).attempt(what)?;
        let layout = memory::interpret(pid, &lines, &self.scratch)?.mappings;
        // What is left out now may be another mapping the next moment: all is looked at again when the process stands still.
        self.track_new(&lines, true).attempt(what)?;
        let written = self.take_written().attempt(what)?;
        let content = self.content_of(&written, &layout, false).attempt(what)?;
        // What has been announced to be emptied need not be yet: the call is made after its notice, on a busy machine well after. A
        // page copied before that is as void as one that was copied earlier.
        self.void.clone_from(&self.dropped);
        let mut data = Vec::new();
        let mut ranges = Vec::new();
        for range in &content {
            let at = data.len();
            let got = copy_whole_pages(self.host, *range, &mut data);
            if got > 0 {
                ranges.push((Range::new(range.start, range.start + got), at));
            }
        }
        // What could not be read was unmapped meanwhile, and what is mapped there later is fresh. What exists but has
        // no content (emptied, or a hole) is looked at again when the process stands still.
        let held: Vec<Range> = ranges.iter().map(|(range, _)| *range).collect();
        self.extra.extend(subtract_sorted(&written, &held));
        self.extra = normalise(std::mem::take(&mut self.extra));
        self.live = Copied { ranges, data };
        Ok(())
    }

    /// A second live round in one epoch makes the first's copies a mere list of places to look at again.
    fn merge_live_into_extra(&mut self) {
        let live = std::mem::take(&mut self.live);
        self.extra.extend(live.ranges.into_iter().map(|(range, _)| range));
        self.extra = normalise(std::mem::take(&mut self.extra));
    }

    /// The parts of sorted `ranges` with content of the process's own: existing pages that are not clean pages of a file.
    /// Whether pages exist is asked where many were written, or `always`.
    fn content_of(&self, ranges: &[Range], layout: &[Mapping], always: bool) -> io::Result<Vec<Range>> {
        let mut content = Vec::new();
        let mut at = 0;
        for mapping in layout.iter().filter(|mapping| mapping.has_content()) {
            while ranges.get(at).is_some_and(|range| range.end <= mapping.range.start) {
                at += 1;
            }
            let of_file = matches!(mapping.backing, Backing::File { .. } | Backing::Object { .. });
            let readable = mapping.protection & libc::PROT_READ as u32 != 0;
            for range in ranges[at..].iter().take_while(|range| range.start < mapping.range.end) {
                let Some(part) = range.intersect(&mapping.range) else { continue };
                if of_file || !readable || part.pages() > SPARSE || always {
                    content.extend(pagemap::populated(&self.pagemap, part)?);
                } else {
                    content.push(part);
                }
            }
        }
        Ok(content)
    }

    /// What has become of the mappings since the last checkpoint, if anything has. Those that are new are tracked from here
    /// on. `mappings` is the kernel's count of their changes, if known ([`crate::sys::bpf::threads::ThreadSeen`]).
    fn follow_mappings(&mut self, pid: Pid, mappings: Option<u32>) -> Result<Option<Vec<Mapping>>> {
        let what = || format!("read the mappings of process {pid}");
        let advised = std::mem::take(&mut self.advice_changed);
        if mappings.is_some() && mappings == self.mappings_at && !advised {
            return Ok(None);
        }
        let mut text = Vec::new();
        proc::read_into(&mut self.maps, &mut text).attempt(what)?;
        let lines = parse(&text).attempt(what)?;
        let changed = text != self.text;
        if changed {
            // Something else may be there now.
            self.unwritable.clear();
        }
        let fresh = self.fresh.len();
        let unwritable = self.track_new(&lines, false).attempt(what)?;
        // Registering is a change itself, even where it fails, and an odd count is one that goes on.
        let settled = fresh == self.fresh.len() && unwritable.is_empty();
        self.mappings_at = mappings.filter(|count| settled && count.is_multiple_of(2));
        self.unwritable.extend(unwritable);
        if !changed && !advised {
            return Ok(None);
        }
        let mut layout = memory::interpret(pid, &lines, &self.scratch)?;
        for mapping in &mut layout.mappings {
            if let Backing::Object { writable, .. } = &mut mapping.backing
                && mapping.shared
            {
                *writable |= !self.unwritable.iter().any(|range| range.intersect(&mapping.range).is_some());
            }
        }
        if self.advised {
            let smaps = proc::path(self.host, "smaps");
            layout.read_flags(&std::fs::read_to_string(smaps).attempt(what)?);
            self.wiped.clear();
        }
        self.suspect_what_is_gone(&layout.mappings);
        self.sparse.retain(|sparse| {
            layout.mappings.iter().any(|mapping| mapping.range.intersect(&sparse.range).is_some())
        });
        self.weight = weight(&layout.mappings);
        self.layout = layout.mappings;
        self.objects = layout.objects;
        self.text = text;
        Ok(Some(self.layout.clone()))
    }

    /// How the memory changed since the last checkpoint. The process must stand still.
    pub fn capture(&mut self, pid: Pid, mappings: Option<u32>, data: &mut PageData) -> Result<MemoryDelta> {
        let what = || format!("copy the memory of process {pid}");
        let layout = self.follow_mappings(pid, mappings)?;
        let mut written = self.take_written().attempt(what)?;
        let void = normalise(std::mem::take(&mut self.void));
        let mut fresh = normalise(std::mem::take(&mut self.fresh));
        written.append(&mut self.extra);
        // A page that was copied live and then voided is to be looked at again.
        written.extend(self.live.ranges.iter().flat_map(|(range, _)| intersect(&[*range], &void)));
        self.note_touched(&written);
        if std::mem::take(&mut self.whole) {
            fresh = self.layout.iter().filter(|m| m.has_content()).map(|m| m.range).collect();
            written = fresh.clone();
        }
        let written = normalise(written);
        let content = self.content_of(&written, &self.layout, false).attempt(what)?;

        let mut runs = Vec::new();
        self.take_live(&written, &mut runs, data);
        for (ranges, bytes) in self.copy_stopped(content.clone()).attempt(what)? {
            push_runs(&ranges, bytes, &mut runs, data);
        }

        // Emptied pages of anonymous memory are zero. (Of a file's they are the file's again: those are in `dropped`.)
        let anonymous: Vec<Range> = self
            .layout
            .iter()
            .filter(|mapping| matches!(mapping.backing, Backing::Anonymous))
            .map(|mapping| mapping.range)
            .collect();
        let emptied = subtract_sorted(&subtract_sorted(&intersect(&written, &anonymous), &content), &fresh);
        runs.extend(emptied.iter().flat_map(|range| split_run(*range, true)));
        Ok(MemoryDelta { layout, fresh, dropped: std::mem::take(&mut self.dropped), runs })
    }

    /// Notes what was written to objects, before a checkpoint.
    fn note_touched(&mut self, written: &[Range]) {
        if self.objects.is_empty() {
            return;
        }
        let layout = std::mem::take(&mut self.layout);
        self.touch(&normalise(written.to_vec()), &layout);
        self.layout = layout;
    }

    /// Copies ranges that must all exist.
    fn copy_stopped(&self, ranges: Vec<Range>) -> io::Result<Vec<(Vec<Range>, Vec<u8>)>> {
        let pages: u64 = ranges.iter().map(Range::pages).sum();
        if !self.is_large() || pages < 2 * COPIED_PIECE {
            let bytes = copy_all(self.host, &self.memory, &ranges)?;
            return Ok(vec![(ranges, bytes)]);
        }
        let parts = parts(&ranges, COPIED_PIECE.max(pages / MOST_PIECES));
        let (host, memory) = (self.host, Arc::clone(&self.memory));
        let copied = Pool::shared().run(parts.clone(), move |part| copy_all(host, &memory, part));
        parts.into_iter().zip(copied).map(|(part, bytes)| Ok((part, bytes?))).collect()
    }

    /// Uses what the live round copied and nothing has touched since.
    fn take_live(&mut self, touched: &[Range], runs: &mut Vec<Run>, data: &mut PageData) {
        let live = std::mem::take(&mut self.live);
        if live.ranges.is_empty() {
            return;
        }
        let places: Vec<Range> =
            self.layout.iter().filter(|mapping| mapping.has_content()).map(|mapping| mapping.range).collect();
        let ranges: Vec<Range> = live.ranges.iter().map(|(range, _)| *range).collect();
        let valid = subtract_sorted(&intersect(&ranges, &places), touched);
        let buffer = data.buffers.len();
        let mut at = 0;
        for range in valid {
            while live.ranges[at].0.end <= range.start {
                at += 1;
            }
            let (whole, offset) = live.ranges[at];
            let offset = offset + (range.start - whole.start) as usize;
            runs.extend(split_run(range, false));
            data.slices.push((buffer, offset, range.len() as usize));
        }
        data.buffers.push(live.data);
    }

    /// Forgets what any backup had: the next checkpoint describes all mappings, and the content of what exists now is
    /// handed out by [`Space::copy_backlog`]. The process must stand still.
    pub fn begin_whole(&mut self, pid: Pid) -> Result<MemoryDelta> {
        let what = || format!("begin to copy the memory of process {pid}");
        self.text.clear();
        self.mappings_at = None;
        self.live = Copied::default();
        self.extra.clear();
        self.whole = false;
        self.follow_mappings(pid, None)?;
        self.text.clear();
        self.take_written().attempt(what)?;
        // What is written, if anything, is in the backlog below: a page that the kernel was migrating while it was protected stays
        // writable (mm/migrate.c, remove_migration_pte) and is reported again, although nobody wrote.
        let mut delta = self.capture(pid, None, &mut PageData::default())?;
        delta.runs.clear();
        delta.dropped.clear();
        delta.fresh.clear();
        self.touched.clear();
        self.suspects.clear();
        let all: Vec<Range> = self.layout.iter().filter(|m| m.has_content()).map(|m| m.range).collect();
        self.backlog = self.content_of(&all, &self.layout, true).attempt(what)?;
        Ok(delta)
    }

    /// Whether a fork of this space is announced before the child runs.
    pub fn announces_forks(&self) -> bool {
        self.registered
    }

    pub fn backlog_pages(&self) -> u64 {
        self.backlog.iter().map(Range::pages).sum()
    }

    /// Up to `pages` pages of what a new backup still needs, copied while the process runs: what is written after it
    /// was copied is in the next checkpoint anyway.
    pub fn copy_backlog(&mut self, pages: u64) -> Option<(Vec<Run>, PageData)> {
        let mut runs = Vec::new();
        let mut data = PageData::default();
        let mut left = pages;
        while left > 0 {
            let Some(range) = self.backlog.last_mut() else { break };
            let take = range.pages().min(left);
            let part = Range::new(range.end - take * PAGE_SIZE, range.end);
            range.end = part.start;
            if range.is_empty() {
                self.backlog.pop();
            }
            left -= take;
            let mut bytes = Vec::new();
            let mut at = part.start + copy_whole_pages(self.host, part, &mut bytes);
            let mut copied = vec![Range::new(part.start, at)];
            // What the process may not read itself is there all the same; or it is gone.
            while at < part.end {
                let len = bytes.len();
                bytes.resize(len + PAGE_SIZE as usize, 0);
                match self.memory.read_exact_at(&mut bytes[len..], at) {
                    Ok(()) => copied.push(Range::new(at, at + PAGE_SIZE)),
                    Err(_) => bytes.truncate(len),
                }
                at += PAGE_SIZE;
            }
            copied.retain(|range| !range.is_empty());
            if !copied.is_empty() {
                push_runs(&normalise(copied), bytes, &mut runs, &mut data);
            }
        }
        (left < pages).then_some((runs, data))
    }
}

/// Copies ranges of a process that stands still. What the process itself may not read (PROT_NONE with content) is read through
/// `/proc/PID/mem`, which does not ask.
fn copy_all(host: Tid, memory: &File, ranges: &[Range]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut done = task::copy_memory(host, ranges, &mut bytes).unwrap_or_default();
    debug_assert_eq!(bytes.len(), done);
    for range in ranges {
        let len = range.len() as usize;
        if done >= len {
            done -= len;
            continue;
        }
        let at = bytes.len();
        bytes.resize(at + len - done, 0);
        memory.read_exact_at(&mut bytes[at..], range.start + done as u64)?;
        done = 0;
    }
    Ok(bytes)
}

/// Copies as many whole pages from the start of a range as can be read.
fn copy_whole_pages(host: Tid, range: Range, into: &mut Vec<u8>) -> u64 {
    let start = into.len();
    // An unreadable first page is an error, an unreadable later one a short copy; both mean that it is gone.
    let got = task::copy_memory(host, &[range], into).unwrap_or(0) as u64;
    let whole = got / PAGE_SIZE * PAGE_SIZE;
    into.truncate(start + whole as usize);
    whole
}

/// Describes copied pages, leaving out those that are all zero.
fn push_runs(ranges: &[Range], bytes: Vec<u8>, runs: &mut Vec<Run>, data: &mut PageData) {
    let buffer = data.buffers.len();
    let page = PAGE_SIZE as usize;
    let mut offset = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let zero = is_zero(&bytes[offset..offset + page]);
            let first = (at, offset);
            while at < range.end && is_zero(&bytes[offset..offset + page]) == zero {
                at += PAGE_SIZE;
                offset += page;
            }
            runs.extend(split_run(Range::new(first.0, at), zero));
            if !zero {
                data.slices.push((buffer, first.1, offset - first.1));
            }
        }
    }
    data.buffers.push(bytes);
}

/// Most pages that are not zero differ in their first words, so that the whole is rarely looked at.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(64).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}

/// A run counts its pages in 32 bits.
fn split_run(range: Range, zero: bool) -> impl Iterator<Item = Run> {
    const MOST: u64 = 1 << 30;
    let pages = range.pages();
    (0..pages.div_ceil(MOST)).map(move |part| Run {
        address: range.start + part * MOST * PAGE_SIZE,
        pages: (pages - part * MOST).min(MOST) as u32,
        zero,
    })
}

/// As [`subtract`], for many sorted holes.
fn subtract_sorted(ranges: &[Range], holes: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    let mut at = 0;
    for range in ranges {
        while at < holes.len() && holes[at].end <= range.start {
            at += 1;
        }
        let mut start = range.start;
        for hole in holes[at..].iter().take_while(|hole| hole.start < range.end) {
            if hole.start > start {
                left.push(Range::new(start, hole.start));
            }
            start = start.max(hole.end);
        }
        if start < range.end {
            left.push(Range::new(start, range.end));
        }
    }
    left
}

/// Private addresses without any access. If nothing is in them either, nothing can be until the mapping changes.
fn is_reserved(line: &proc::MapsLine) -> bool {
    !(line.read || line.write || line.execute || line.shared) && line.inode == 0
}

/// Whether a mapping is, at its addresses, in a layout with the same behind it.
fn is_part_of(mapping: &Mapping, layout: &[Mapping]) -> bool {
    let Some((key, part)) = mapping.shared_object() else { return true };
    let mut at = mapping.range.start;
    let from = layout.partition_point(|other| other.range.end <= at);
    for other in &layout[from..] {
        if other.range.start > at || at >= mapping.range.end {
            break;
        }
        let behind = other.shared_object().map(|(key, part)| (key, part.start + (at - other.range.start)));
        if behind != Some((key, part.start + (at - mapping.range.start))) {
            return false;
        }
        at = other.range.end;
    }
    at >= mapping.range.end
}

fn parse(text: &[u8]) -> io::Result<Vec<proc::MapsLine>> {
    std::str::from_utf8(text)
        .ok()
        .and_then(proc::parse_maps)
        .ok_or_else(|| io::Error::other("mappings in a form that is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_told_from_others() {
        let mut page = vec![0u8; PAGE_SIZE as usize];
        assert!(is_zero(&page));
        for at in [0, 63, 64, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn runs_leave_zero_pages_out_of_the_data() {
        let page = PAGE_SIZE as usize;
        let mut bytes = vec![0u8; 4 * page];
        bytes[page..3 * page].fill(7);
        let (mut runs, mut data) = (Vec::new(), PageData::default());
        push_runs(&[Range::new(0x10000, 0x14000)], bytes, &mut runs, &mut data);
        let shape: Vec<(u64, u32, bool)> =
            runs.iter().map(|run| (run.address, run.pages, run.zero)).collect();
        assert_eq!(shape, [(0x10000, 1, true), (0x11000, 2, false), (0x13000, 1, true)]);
        assert_eq!(data.len(), 2 * page);
    }

    #[test]
    fn many_holes_are_cut_out() {
        let r = |a, b| Range::new(a, b);
        assert_eq!(
            subtract_sorted(&[r(0, 10), r(20, 30)], &[r(2, 3), r(8, 22), r(29, 40)]),
            [r(0, 2), r(3, 8), r(22, 29)]
        );
    }
}
