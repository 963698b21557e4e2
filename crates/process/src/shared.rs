//! Objects that processes share, on the primary: which there are, what was written to them, and their content.
//!
//! What a process writes through a mapping is in its page tables, which [`crate::space`] reads. Writes through a descriptor
//! show in the times of the file. What leaves no trace that could be relied on (a mapping made and removed between two
//! looks, a process that was killed) makes an object *suspect*: all of it is compared. Every page that was sent is
//! remembered by its hash, so that of what may have been written only what differs travels.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::stat::{FileStat, fstat};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkpoint::{Checkpoint, Pid, Run, Whose};
use crate::descriptors::Descriptors;
use crate::error::{Attempt, Error, Result};
use crate::object::file::FileKey;
use crate::object::memory::normalise;
use crate::object::scratch::Touched;
use crate::object::shared::{FileAttributes, Kind, SharedChange, Source};
use crate::refusals::Refusals;
use crate::space::{PageData, Space};
use crate::sys::pagemap::{PAGE_SIZE, Range};
use crate::sys::ptrace::Tid;
use crate::sys::shared::{self as sys, Segment};
use crate::sys::task;
use crate::tree::Process;

const PAGE: usize = PAGE_SIZE as usize;
/// Read at once.
const CHUNK: u64 = 1 << 20;
/// Pieces shorter than this are read without asking where the file has holes.
const SHORT: u64 = 64 * PAGE_SIZE;
/// Pages of one block of hashes.
const BLOCK: u64 = 512;
/// The hash of a page that is all zero, or of which nothing has been sent.
const ZERO: u64 = 0;
/// As in [`crate::object::scratch`]: what changed so many nanoseconds before it was looked at may change again without a
/// trace in the times.
const TICK: i64 = 20_000_000;

/// Hashes of the pages that a backup has, by number.
#[derive(Debug, Default)]
struct Hashes {
    blocks: BTreeMap<u64, Box<[u64; BLOCK as usize]>>,
}

impl Hashes {
    fn get(&self, page: u64) -> u64 {
        self.blocks.get(&(page / BLOCK)).map_or(ZERO, |block| block[(page % BLOCK) as usize])
    }

    fn set(&mut self, page: u64, hash: u64) {
        if hash == ZERO && !self.blocks.contains_key(&(page / BLOCK)) {
            return;
        }
        self.blocks.entry(page / BLOCK).or_insert_with(|| Box::new([ZERO; BLOCK as usize]))
            [(page % BLOCK) as usize] = hash;
    }

    /// The pages of a stretch that are not zero.
    fn set_in(&self, pages: std::ops::Range<u64>) -> Vec<u64> {
        if pages.is_empty() {
            return Vec::new();
        }
        let blocks = self.blocks.range(pages.start / BLOCK..=(pages.end - 1) / BLOCK);
        let numbers = blocks.flat_map(|(number, block)| {
            let numbered =
                block.iter().enumerate().map(move |(at, hash)| (number * BLOCK + at as u64, *hash));
            numbered.filter(|(_, hash)| *hash != ZERO).map(|(page, _)| page)
        });
        numbers.filter(|page| pages.contains(page)).collect()
    }
}

type Stamp = (i64, (i64, i64), (i64, i64));

#[derive(Debug)]
struct Tracked {
    /// None of a scratch file with a name, whose content is not looked at here.
    file: Option<File>,
    kind: Kind,
    size: u64,
    hashes: Hashes,
    /// Size and times when its content was last compared.
    stamp: Option<Stamp>,
    /// A backup knows of it.
    announced: bool,
    backlog: Vec<Range>,
}

/// All shared objects of a workload.
#[derive(Debug, Default)]
pub struct SharedObjects {
    objects: BTreeMap<FileKey, Tracked>,
    /// Written by processes that are gone.
    touched: HashMap<FileKey, Vec<Range>>,
    suspects: HashSet<FileKey>,
    capturing: bool,
    /// System V shared memory has been used.
    pub segments: bool,
}

/// How an object can be reached.
#[derive(Debug)]
struct Found {
    source: Source,
    place: Place,
    process: Pid,
    /// A process runs its code.
    code: bool,
}

#[derive(Debug)]
enum Place {
    /// A mapping of a process, by its number on this host.
    Mapped(Tid, Range),
    Path(PathBuf),
    /// In the list of segments only.
    Nowhere,
}

/// What a stop has found out, until it is captured.
#[derive(Debug, Default)]
pub struct Seen {
    found: BTreeMap<FileKey, Found>,
    touched: HashMap<FileKey, Vec<Range>>,
    suspects: HashSet<FileKey>,
}

impl SharedObjects {
    /// Everything is new to the next backup.
    pub fn begin_whole(&mut self) {
        let segments = self.segments;
        *self = Self { capturing: true, segments, ..Self::default() };
    }

    /// There will be no captures until there is a new backup.
    pub fn stop(&mut self) {
        let segments = self.segments;
        *self = Self { segments, ..Self::default() };
    }

    /// Whether there is a backup that has to be told.
    pub fn is_capturing(&self) -> bool {
        self.capturing
    }

    /// A process, or its program, is about to end.
    pub fn harvest(&mut self, pid: Pid, space: &mut Space) {
        if self.capturing {
            space.harvest(pid);
            self.take_from(space);
        }
    }

    /// A process has ended otherwise than was seen.
    pub fn lost(&mut self, space: &mut Space) {
        if self.capturing {
            self.suspects.extend(space.shared_objects());
            self.take_from(space);
        }
    }

    fn take_from(&mut self, space: &mut Space) {
        for (key, part) in space.touched.drain(..) {
            self.touched.entry(key).or_default().push(part);
        }
        self.suspects.extend(space.suspects.drain());
    }

    /// What the processes have mapped, and have written through that. All are stopped, and their memory was captured.
    pub(crate) fn look(&mut self, processes: &mut BTreeMap<Pid, Process>) -> Seen {
        let mut seen = Seen::default();
        for (pid, process) in processes {
            let Some(space) = &mut process.space else { continue };
            self.take_from(space);
            for mapped in &space.objects {
                let found = seen.found.entry(mapped.key).or_insert_with(|| Found {
                    source: mapped.source.clone(),
                    place: Place::Mapped(process.host, mapped.range),
                    process: *pid,
                    code: false,
                });
                found.code |= mapped.code;
            }
        }
        seen.touched = std::mem::take(&mut self.touched);
        seen.suspects = std::mem::take(&mut self.suspects);
        seen
    }

    /// Fills in the objects of a checkpoint, after its descriptors and files.
    pub(crate) fn capture(
        &mut self,
        mut seen: Seen,
        whole: bool,
        descriptors: &Descriptors,
        checkpoint: &mut Checkpoint,
        data: &mut PageData,
        refusals: &mut Refusals,
    ) -> Result<()> {
        let init = descriptors.root;
        for (key, path, name, process) in descriptors.shared_files() {
            let source = Source::Memfd(name);
            seen.found.entry(key).or_insert(Found { source, place: Place::Path(path), process, code: false });
        }
        let segments = self.list_segments(init, &mut seen)?;
        let gone: Vec<FileKey> =
            self.objects.keys().filter(|key| !seen.found.contains_key(key)).copied().collect();
        for key in &gone {
            self.objects.remove(key);
        }
        checkpoint.shared_gone = gone;
        for (key, found) in &seen.found {
            let name = descriptors.name_of(*key);
            if let (Source::Scratch(path), None, true) = (&found.source, name, found.code) {
                refusals.pass::<()>(Err(Error::Unsupported {
                    pid: found.process,
                    what: format!("code of {path}, a file without a name"),
                    advice: "let it stay where it is while it is running",
                }))?;
            }
            let tracked = match self.objects.remove(key) {
                // It has lost its name, or got one back.
                Some(tracked) if matches!(tracked.kind, Kind::Named { .. }) != name.is_some() => None,
                known => known,
            };
            let parts = seen.touched.remove(key).unwrap_or_default();
            let suspect = seen.suspects.contains(key);
            let mut tracked = match tracked {
                Some(tracked) => tracked,
                None => Tracked::open(found, name, &segments, init)?,
            };
            let hints = Hints { whole, suspect, parts };
            let change = tracked.capture(*key, found, name, &segments, hints, data);
            checkpoint.shared.extend(refusals.pass(change)?.flatten());
            self.objects.insert(*key, tracked);
        }
        Ok(())
    }

    /// All segments, also those that nobody has attached.
    fn list_segments(&self, init: Tid, seen: &mut Seen) -> Result<HashMap<i32, Segment>> {
        if !self.segments {
            return Ok(HashMap::new());
        }
        let listed = sys::in_ipc_of(init, sys::segments);
        let listed = listed.attempt(|| "list the workload's System V shared memory".to_owned())?;
        for segment in &listed {
            seen.found.entry(FileKey::of_segment(segment.id)).or_insert_with(|| Found {
                source: Source::Segment(segment.id),
                place: Place::Nowhere,
                process: 1,
                code: false,
            });
        }
        Ok(listed.into_iter().map(|segment| (segment.id, segment)).collect())
    }

    /// Up to `pages` pages of what a new backup still needs.
    pub fn copy_backlog(&mut self, pages: u64) -> Option<(Whose, Vec<Run>, PageData)> {
        let (key, tracked) = self.objects.iter_mut().find(|(_, tracked)| !tracked.backlog.is_empty())?;
        let mut left = pages.max(1) * PAGE_SIZE;
        let (mut runs, mut bytes) = (Vec::new(), Vec::new());
        while left > 0 {
            let Some(range) = tracked.backlog.last_mut() else { break };
            let part = Range::new(range.end - range.len().min(left), range.end);
            range.end = part.start;
            if range.is_empty() {
                tracked.backlog.pop();
            }
            left -= part.len();
            // What cannot be read has been given up meanwhile, and the next checkpoint says so.
            let _ = tracked.compare(part, &mut runs, &mut bytes);
        }
        let mut data = PageData::default();
        if !bytes.is_empty() {
            data.push(bytes);
        }
        Some((Whose::Shared(*key), runs, data))
    }

    pub fn backlog_pages(&self) -> u64 {
        self.objects.values().flat_map(|tracked| &tracked.backlog).map(Range::pages).sum()
    }
}

impl Place {
    fn open(&self) -> io::Result<File> {
        match self {
            Place::Mapped(host, range) => sys::open_mapped(*host, *range),
            Place::Path(path) => File::open(path),
            Place::Nowhere => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }
}

impl Seen {
    /// The files of scratch directories that are mapped, and what was written to them.
    pub fn scratch(&self) -> HashMap<FileKey, Touched> {
        let suspects = self.suspects.iter().map(|key| (*key, Touched::All));
        let mapped = self.found.iter().filter(|(_, found)| matches!(found.source, Source::Scratch(_)));
        let mapped = mapped.filter(|(key, _)| !self.suspects.contains(key));
        let parts = |key| Touched::Parts(self.touched.get(key).cloned().unwrap_or_default());
        let touched = self.touched.keys().map(|key| (*key, parts(key)));
        touched.chain(mapped.map(|(key, _)| (*key, parts(key)))).chain(suspects).collect()
    }

    /// What is mapped.
    pub fn keys(&self) -> HashSet<FileKey> {
        self.found.keys().copied().collect()
    }
}

/// Where an object may have changed.
struct Hints {
    /// All of it is wanted, whatever has changed.
    whole: bool,
    /// It may have changed anywhere, without a trace.
    suspect: bool,
    /// What was written through mappings.
    parts: Vec<Range>,
}

impl Tracked {
    fn open(found: &Found, name: Option<&str>, segments: &HashMap<i32, Segment>, init: Tid) -> Result<Self> {
        let attempt = || format!("open the shared memory {:?}", found.source);
        let file = match (&found.source, name) {
            (Source::Scratch(_), Some(_)) => None,
            // Attached by nobody: by us, for a moment.
            (Source::Segment(id), _) if matches!(found.place, Place::Nowhere) => {
                let size = segments.get(id).map_or(0, |segment| segment.size);
                Some(sys::in_ipc_of(init, || sys::open_segment(*id, size)).attempt(attempt)?)
            }
            _ => Some(found.place.open().attempt(attempt)?),
        };
        // What it is is found out at once by whoever asked.
        Ok(Self {
            file,
            kind: Kind::Anonymous,
            size: 0,
            hashes: Hashes::default(),
            stamp: None,
            announced: false,
            backlog: Vec::new(),
        })
    }

    /// How it has changed, if it has.
    fn capture(
        &mut self,
        key: FileKey,
        found: &Found,
        name: Option<&str>,
        segments: &HashMap<i32, Segment>,
        Hints { whole, suspect, parts }: Hints,
        data: &mut PageData,
    ) -> Result<Option<SharedChange>> {
        let anew = !std::mem::replace(&mut self.announced, true);
        let Some(file) = &self.file else {
            let kind = Kind::Named { path: name.unwrap_or_default().to_owned() };
            let changed = anew || kind != self.kind;
            self.kind = kind.clone();
            return Ok(changed.then_some(SharedChange { key, kind, size: 0, anew, runs: Vec::new() }));
        };
        let attempt = || format!("read the shared memory {:?}", found.source);
        // Memory without a file changes by mappings only, and never its size.
        let quiet = !anew && matches!(self.kind, Kind::Anonymous);
        let mut size = self.size;
        let mut by_times = false;
        let mut kind = self.kind.clone();
        if !quiet {
            let stat = fstat(file).attempt(attempt)?;
            size = stat.st_size.unsigned_abs();
            kind = kind_of(found, file, &stat, segments)?;
            let stamp =
                (stat.st_size, (stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
            by_times = self.stamp != Some(stamp) && !matches!(kind, Kind::Anonymous | Kind::Segment { .. });
            let age = task::clock(libc::CLOCK_REALTIME) - stamp.2.0 * 1_000_000_000 - stamp.2.1;
            self.stamp = (age > TICK).then_some(stamp);
        }
        if size > sys::MAX_SIZE {
            let what = format!("shared memory of {} TiB", size >> 40);
            return Err(Error::Unsupported { pid: found.process, what, advice: "let it use less" });
        }
        let old = self.size.next_multiple_of(PAGE_SIZE);
        let resized = size != self.size;
        let end = size.next_multiple_of(PAGE_SIZE);
        self.size = size;
        // What is cut off is zero if the file grows again.
        for page in self.hashes.set_in(end / PAGE_SIZE..old.max(end) / PAGE_SIZE) {
            self.hashes.set(page, ZERO);
        }
        let (mut runs, mut bytes) = (Vec::new(), Vec::new());
        let all = Range::new(0, end);
        if whole {
            self.backlog = self.data_in(all).attempt(attempt)?;
        } else if anew || suspect || by_times {
            self.compare(all, &mut runs, &mut bytes).attempt(attempt)?;
        } else {
            for part in normalise(parts).iter().filter_map(|part| part.intersect(&all)) {
                self.compare(part, &mut runs, &mut bytes).attempt(attempt)?;
            }
        }
        let changed = anew || resized || kind != self.kind || !runs.is_empty();
        self.kind = kind.clone();
        if !bytes.is_empty() {
            data.push(bytes);
        }
        Ok(changed.then_some(SharedChange { key, kind, size, anew, runs }))
    }

    /// The parts of a range that are no holes, in whole pages.
    fn data_in(&self, range: Range) -> io::Result<Vec<Range>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(data) = sys::next_data(file, at)? else { break };
            let end = data.end.next_multiple_of(PAGE_SIZE).min(range.end);
            let start = (data.start / PAGE_SIZE * PAGE_SIZE).max(at);
            if start >= end {
                break;
            }
            parts.push(Range::new(start, end));
            at = end;
        }
        Ok(parts)
    }

    /// The pages of a range that are not what a backup has.
    fn compare(&mut self, range: Range, runs: &mut Vec<Run>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let data = if range.len() <= SHORT { vec![range] } else { self.data_in(range)? };
        let mut at = range.start;
        for part in &data {
            self.empty(Range::new(at, part.start), runs);
            let mut start = part.start;
            while start < part.end {
                let chunk = Range::new(start, part.end.min(start + CHUNK));
                self.compare_chunk(chunk, runs, bytes)?;
                start = chunk.end;
            }
            at = part.end;
        }
        self.empty(Range::new(at, range.end), runs);
        Ok(())
    }

    /// A hole: what a backup has there is given up.
    fn empty(&mut self, range: Range, runs: &mut Vec<Run>) {
        for page in self.hashes.set_in(range.start / PAGE_SIZE..range.end / PAGE_SIZE) {
            self.hashes.set(page, ZERO);
            push_run(runs, page * PAGE_SIZE, true);
        }
    }

    fn compare_chunk(&mut self, range: Range, runs: &mut Vec<Run>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let start = bytes.len();
        bytes.resize(start + range.len() as usize, 0);
        let mut got = 0;
        while got < range.len() as usize {
            match file.read_at(&mut bytes[start + got..], range.start + got as u64)? {
                0 => break,
                more => got += more,
            }
        }
        // Those that are kept move up to the ones before.
        let mut kept = start;
        for (index, address) in (range.start..range.end).step_by(PAGE).enumerate() {
            let from = start + index * PAGE;
            let page = &bytes[from..from + PAGE];
            let hash = if page.iter().all(|byte| *byte == 0) { ZERO } else { xxh3_64(page).max(1) };
            let number = address / PAGE_SIZE;
            if self.hashes.get(number) == hash {
                continue;
            }
            self.hashes.set(number, hash);
            push_run(runs, address, hash == ZERO);
            if hash != ZERO {
                bytes.copy_within(from..from + PAGE, kept);
                kept += PAGE;
            }
        }
        bytes.truncate(kept);
        Ok(())
    }
}

fn push_run(runs: &mut Vec<Run>, address: u64, zero: bool) {
    match runs.last_mut() {
        Some(last) if last.zero == zero && last.range().end == address && last.pages < 1 << 30 => {
            last.pages += 1
        }
        _ => runs.push(Run { address, pages: 1, zero }),
    }
}

fn kind_of(found: &Found, file: &File, stat: &FileStat, segments: &HashMap<i32, Segment>) -> Result<Kind> {
    let attributes = FileAttributes {
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        modified: (stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(match &found.source {
        Source::Anonymous => Kind::Anonymous,
        Source::Memfd(name) => {
            let seals = sys::seals(file).attempt(|| format!("read the seals of memfd {name}"))?;
            Kind::Memfd { name: name.clone(), seals, attributes }
        }
        Source::Scratch(path) => Kind::Removed { path: path.clone(), attributes },
        Source::Segment(id) => {
            let Some(segment) = segments.get(id) else {
                return Err(Error::Mismatch(format!("System V segment {id} is attached and not listed")));
            };
            Kind::Segment { id: *id, key: segment.key, mode: segment.mode, owner: segment.owner }
        }
    })
}
