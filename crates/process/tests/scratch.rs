//! Scratch directories: what a scan reports, carried out elsewhere, makes the same tree.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use outlive_process::checkpoint::FileChange;
use outlive_process::error::{Error, Result};
use outlive_process::object::file::FileKey;
use outlive_process::object::scratch::{BLOCK, Scratch, Touched, apply};
use outlive_process::sys::pagemap::Range;
use proptest::prelude::*;

/// Two hosts whose roots have the same scratch directories, on tmpfs as in the product.
struct Hosts {
    here: tempfile::TempDir,
    there: tempfile::TempDir,
    scratch: Scratch,
}

const DIRECTORIES: [&str; 2] = ["/tmp", "/data/scratch"];

fn directories() -> Vec<String> {
    DIRECTORIES.map(str::to_owned).to_vec()
}

impl Hosts {
    fn new() -> Self {
        let (here, there) =
            (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        for (root, directory) in
            [&here, &there].into_iter().flat_map(|root| DIRECTORIES.map(|path| (root, path)))
        {
            fs::create_dir_all(root.path().join(&directory[1..])).unwrap();
        }
        let scratch = Scratch::new(here.path().to_owned(), directories());
        Self { here, there, scratch }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.here.path().join("tmp").join(path)
    }

    fn there(&self, path: &str) -> PathBuf {
        self.there.path().join("tmp").join(path)
    }

    /// Scans, sends the changes as bytes, applies them, compares everything.
    fn sync(&mut self) -> Vec<FileChange> {
        let changes = self.scratch.scan().unwrap();
        let bytes = postcard::to_stdvec(&changes).unwrap();
        self.apply(&postcard::from_bytes::<Vec<FileChange>>(&bytes).unwrap()).unwrap();
        assert_eq!(tree(self.there.path()), tree(self.here.path()));
        changes
    }

    fn apply(&self, changes: &[FileChange]) -> Result<()> {
        apply(self.there.path(), &directories(), changes)
    }
}

/// Everything that can be seen of a tree; which names are one file is told by the first of them.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    for directory in DIRECTORIES {
        walk(root, &root.join(&directory[1..]), &mut found, &mut inodes);
    }
    found
}

fn walk(
    root: &Path,
    path: &Path,
    found: &mut BTreeMap<PathBuf, String>,
    inodes: &mut BTreeMap<u64, PathBuf>,
) {
    let stat = fs::symlink_metadata(path).unwrap();
    let name = path.strip_prefix(root).unwrap().to_owned();
    let same =
        if stat.is_file() { inodes.entry(stat.ino()).or_insert(name.clone()).clone() } else { name.clone() };
    let mut seen = format!("{:o} {}:{} {}", stat.mode(), stat.uid(), stat.gid(), same.display());
    let file_type = stat.file_type();
    if file_type.is_dir() || file_type.is_file() {
        seen += &format!(" {}.{:09}", stat.mtime(), stat.mtime_nsec());
    }
    if file_type.is_file() {
        let content = fs::read(path).unwrap();
        seen += &format!(" {} {:x}", content.len(), xxhash_rust::xxh3::xxh3_64(&content));
    } else if file_type.is_symlink() {
        seen += &format!(" {}", fs::read_link(path).unwrap().display());
    } else if file_type.is_dir() {
        let mut children: Vec<PathBuf> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        children.sort();
        children.iter().for_each(|child| walk(root, child, found, inodes));
    }
    found.insert(name, seen);
}

/// A scan after a while, so that what is left to report is not what the coarse clock may have hidden.
fn settle(hosts: &mut Hosts) {
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        if hosts.sync().is_empty() {
            return;
        }
    }
    panic!("a tree that nobody changes never comes to rest");
}

fn content(changes: &[FileChange]) -> usize {
    changes
        .iter()
        .map(|change| match change {
            FileChange::File { content, .. } => content.len(),
            FileChange::Blocks { blocks, .. } => blocks.iter().map(|(_, block)| block.len()).sum(),
            _ => 0,
        })
        .sum()
}

#[test]
fn all_kinds_of_entries_arrive() {
    let mut hosts = Hosts::new();
    fs::create_dir(hosts.at("sub")).unwrap();
    fs::write(hosts.at("sub/file"), "content").unwrap();
    chown(hosts.at("sub/file"), Some(12), Some(34)).unwrap();
    fs::set_permissions(hosts.at("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("/anywhere/../at all", hosts.at("link")).unwrap();
    fs::hard_link(hosts.at("sub/file"), hosts.at("again")).unwrap();
    nix::unistd::mkfifo(&hosts.at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(hosts.at("socket")).unwrap());
    fs::write(hosts.at("empty"), "").unwrap();
    fs::write(hosts.at("zero"), [0; 100]).unwrap();
    fs::write(hosts.here.path().join("data/scratch/other"), vec![7; 3 * BLOCK + 17]).unwrap();
    hosts.sync();
    settle(&mut hosts);
    assert_eq!(hosts.sync(), []);
}

#[test]
fn of_a_large_file_only_what_changed_is_sent() {
    let mut hosts = Hosts::new();
    let path = hosts.at("log");
    let data: Vec<u8> = (0..200 * BLOCK).map(|n| (n / 7 + n / BLOCK) as u8).collect();
    fs::write(&path, &data).unwrap();
    assert_eq!(content(&hosts.sync()), data.len());
    let log = OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &log, b"one more line").unwrap();
    assert_eq!(content(&hosts.sync()), 13);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"!", 100 * BLOCK as u64).unwrap();
    assert_eq!(content(&hosts.sync()), BLOCK);
    file.set_len(10).unwrap();
    assert_eq!(content(&hosts.sync()), 10);
    file.set_len(5 * BLOCK as u64).unwrap();
    hosts.sync();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(content(&hosts.sync()), 0);
}

#[test]
fn holes_are_neither_read_nor_sent_nor_filled() {
    let mut hosts = Hosts::new();
    let path = hosts.at("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 30).unwrap();
    file.write_all_at(b"x", 4 << 30).unwrap();
    let changes = hosts.scratch.scan().unwrap();
    assert!(content(&changes) <= BLOCK);
    hosts.apply(&changes).unwrap();
    let copy = fs::metadata(hosts.there("sparse")).unwrap();
    assert_eq!(copy.len(), 8 << 30);
    assert!(copy.blocks() * 512 <= BLOCK as u64);
    // A block that was data and is a hole now.
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, flags, 4 << 30, BLOCK as i64).unwrap();
    let changes = hosts.scratch.scan().unwrap();
    assert_eq!(content(&changes), 0);
    hosts.apply(&changes).unwrap();
    assert_eq!(fs::metadata(hosts.there("sparse")).unwrap().blocks(), 0);
}

#[test]
fn a_file_written_through_a_mapping_is_compared_when_it_is_said_to_be_mapped() {
    let mut hosts = Hosts::new();
    let path = hosts.at("mapped");
    fs::write(&path, vec![1; 4096]).unwrap();
    settle(&mut hosts);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let stat = file.metadata().unwrap();
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at an address that the kernel chooses.
    let at = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    let key = FileKey { device: stat.dev(), inode: stat.ino() };
    hosts.scratch.touch(HashMap::from([(key, Touched::All)]));
    hosts.sync();
    // SAFETY: within the mapping made above.
    unsafe { at.cast::<u8>().write_volatile(2) };
    let page = Range::new(0, 4096);
    hosts.scratch.touch(HashMap::from([(key, Touched::Parts(vec![page]))]));
    assert!(content(&hosts.sync()) > 0);
    assert!(hosts.scratch.name_of(key).is_some_and(|name| name.ends_with("mapped")));
    // SAFETY: within the mapping made above, which is unmapped whole and not used afterwards.
    unsafe {
        at.cast::<u8>().write_volatile(3);
        munmap(at, 4096).unwrap();
    }
    hosts.scratch.touch(HashMap::from([(key, Touched::All)]));
    assert!(content(&hosts.sync()) > 0);
    assert_eq!(hosts.sync(), []);
}

#[test]
fn a_new_backup_is_told_everything_and_loses_what_it_had() {
    let mut hosts = Hosts::new();
    fs::create_dir(hosts.at("sub")).unwrap();
    fs::write(hosts.at("sub/file"), "content").unwrap();
    hosts.sync();
    fs::create_dir_all(hosts.there("old/tree")).unwrap();
    fs::write(hosts.there("old/tree/file"), "of an earlier life").unwrap();
    hosts.scratch.forget();
    hosts.sync();
}

#[test]
fn a_directory_replaced_by_another_of_the_same_name_is_new() {
    let mut hosts = Hosts::new();
    fs::create_dir(hosts.at("d")).unwrap();
    fs::write(hosts.at("d/old"), "old").unwrap();
    fs::create_dir(hosts.at("e")).unwrap();
    fs::write(hosts.at("e/new"), "new").unwrap();
    hosts.sync();
    fs::rename(hosts.at("d"), hosts.at("f")).unwrap();
    fs::rename(hosts.at("e"), hosts.at("d")).unwrap();
    hosts.sync();
    fs::remove_dir_all(hosts.at("d")).unwrap();
    fs::write(hosts.at("d"), "a file now").unwrap();
    hosts.sync();
}

#[test]
fn r3_what_cannot_be_kept_is_refused_by_name() {
    let refused = |prepare: &dyn Fn(&Hosts), word: &str| {
        let mut hosts = Hosts::new();
        prepare(&hosts);
        match hosts.scratch.scan() {
            Err(Error::Unsupported { what, .. }) => assert!(what.contains(word), "{what}"),
            other => panic!("{word} was not refused: {other:?}"),
        }
    };
    refused(
        &|hosts| {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(&hosts.at("null"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).unwrap();
        },
        "device node /tmp/null",
    );
    refused(
        &|hosts| {
            use std::os::unix::ffi::OsStrExt;
            fs::write(hosts.at("").join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        },
        "/tmp/",
    );
    refused(&|hosts| File::create(hosts.at("huge")).unwrap().set_len(1 << 40).unwrap(), "/tmp/huge");
    refused(
        &|hosts| {
            let mut path = hosts.at("d");
            for _ in 0..200 {
                fs::create_dir(&path).unwrap();
                path.push("d");
            }
        },
        "nested",
    );
    refused(
        &|hosts| {
            let path = hosts.at("attributed");
            fs::write(&path, "").unwrap();
            let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: all pointers are to live data of the lengths that are said.
            let set =
                unsafe { libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), c"y".as_ptr().cast(), 1, 0) };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        },
        "user.x of /tmp/attributed",
    );
}

#[test]
fn after_an_error_everything_is_reported_again() {
    let mut hosts = Hosts::new();
    fs::write(hosts.at("a"), "first").unwrap();
    hosts.sync();
    fs::write(hosts.at("b"), "second").unwrap();
    File::create(hosts.at("huge")).unwrap().set_len(1 << 40).unwrap();
    hosts.scratch.scan().unwrap_err();
    fs::remove_file(hosts.at("huge")).unwrap();
    hosts.sync();
}

fn file(path: &str) -> FileChange {
    let (mode, owner, modified) = (0o600, (0, 0), (0, 0));
    FileChange::File { path: path.to_owned(), mode, owner, modified, content: b"forged".to_vec() }
}

fn blocks(path: &str, size: u64, blocks: Vec<(u64, Vec<u8>)>) -> FileChange {
    FileChange::Blocks { path: path.to_owned(), mode: 0o600, owner: (0, 0), modified: (0, 0), size, blocks }
}

#[test]
fn forged_changes_reach_nothing_outside() {
    let hosts = Hosts::new();
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::create_dir(hosts.there.path().join("etc")).unwrap();
    fs::write(hosts.there.path().join("etc/passwd"), "untouched").unwrap();
    let link = |path: &str, target: &Path| FileChange::Symlink {
        path: path.to_owned(),
        target: target.to_str().unwrap().to_owned(),
        owner: (0, 0),
    };
    hosts.apply(&[link("/tmp/out", outside.path()), link("/tmp/victim", &victim)]).unwrap();
    let through = outside.path().strip_prefix("/").unwrap().display().to_string();
    let up = "../".repeat(20);
    let forged = [
        file("/etc/passwd"),
        file("/tmp/../etc/passwd"),
        file(&format!("/tmp/{up}{through}/victim")),
        file("/tmp/out/victim"),
        file("/tmp/out/new"),
        blocks("/tmp/victim", 1, Vec::new()),
        blocks("/tmp/out/victim", 1, Vec::new()),
        FileChange::Removed { path: "/tmp/out/victim".to_owned() },
        FileChange::Removed { path: "/tmp".to_owned() },
        FileChange::Removed { path: "/".to_owned() },
        FileChange::Removed { path: "/tmp/".to_owned() },
        FileChange::Emptied { path: "/tmp/out".to_owned() },
        FileChange::Emptied { path: "/etc".to_owned() },
        FileChange::Directory { path: "/tmp/out".to_owned(), mode: 0o777, owner: (1, 1), modified: (0, 0) },
        FileChange::Link { path: "/tmp/x".to_owned(), to: "/etc/passwd".to_owned() },
        FileChange::Link { path: "/tmp/x".to_owned(), to: "/tmp/out/victim".to_owned() },
        FileChange::Link { path: "/tmp/x".to_owned(), to: "/tmp/victim".to_owned() },
        FileChange::Node { path: "/tmp/out/node".to_owned(), socket: true, mode: 0, owner: (0, 0) },
        file("/tmp"),
        file("tmp/x"),
        file("/tmp/x\0y"),
        file("/tmp//x"),
    ];
    for change in &forged {
        hosts.apply(std::slice::from_ref(change)).expect_err(&format!("{change:?}"));
    }
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(outside.path()).unwrap().uid(), 0);
    assert_eq!(fs::read(hosts.there.path().join("etc/passwd")).unwrap(), b"untouched");
    // Removing a link removes the link.
    hosts.apply(&[FileChange::Removed { path: "/tmp/out".to_owned() }]).unwrap();
    assert!(victim.exists());
}

#[test]
fn forged_blocks_are_refused() {
    let hosts = Hosts::new();
    hosts.apply(&[file("/tmp/f")]).unwrap();
    for blocks_of in [
        vec![(1, vec![1])],
        vec![(BLOCK as u64, vec![1])],
        vec![(0, vec![1; BLOCK + 1])],
        vec![(u64::MAX - (BLOCK as u64 - 1), vec![1])],
    ] {
        hosts.apply(&[blocks("/tmp/f", 100, blocks_of)]).unwrap_err();
    }
    hosts.apply(&[blocks("/tmp/f", u64::MAX, Vec::new())]).unwrap_err();
    nix::unistd::mkfifo(&hosts.there("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    hosts.apply(&[blocks("/tmp/pipe", 1, Vec::new())]).unwrap_err();
}

#[derive(Debug, Clone)]
enum Step {
    Write { name: usize, at: usize, len: usize, byte: u8 },
    Append { name: usize, len: usize },
    Truncate { name: usize, len: usize },
    MakeDirectory { name: usize },
    Remove { name: usize },
    Rename { from: usize, to: usize },
    Link { from: usize, to: usize },
    Symlink { name: usize },
    Mode { name: usize, mode: u32 },
    Scan,
}

/// Few names, so that steps meet.
const NAMES: [&str; 9] = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d", "d/e", "f"];

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let length = 0..3 * BLOCK;
    prop_oneof![
        3 => (name.clone(), length.clone(), length.clone(), any::<u8>())
            .prop_map(|(name, at, len, byte)| Step::Write { name, at, len, byte }),
        2 => (name.clone(), 0usize..100).prop_map(|(name, len)| Step::Append { name, len }),
        1 => (name.clone(), length).prop_map(|(name, len)| Step::Truncate { name, len }),
        2 => name.clone().prop_map(|name| Step::MakeDirectory { name }),
        2 => name.clone().prop_map(|name| Step::Remove { name }),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Step::Link { from, to }),
        1 => name.clone().prop_map(|name| Step::Symlink { name }),
        1 => (name, 0u32..0o1000).prop_map(|(name, mode)| Step::Mode { name, mode: mode | 0o600 }),
        3 => Just(Step::Scan),
    ]
}

/// What a program might do; that much of it fails is part of it.
fn take(hosts: &mut Hosts, step: &Step) {
    let at = |name: &usize| hosts.at(NAMES[*name]);
    let open = |name: &usize| {
        let plain = fs::symlink_metadata(at(name)).map_or(true, |found| found.is_file());
        plain
            .then(|| OpenOptions::new().create(true).truncate(false).write(true).open(at(name)).ok())
            .flatten()
    };
    match step {
        Step::Write { name, at, len, byte } => {
            if let Some(file) = open(name) {
                file.write_all_at(&vec![*byte; *len], *at as u64).unwrap();
            }
        }
        Step::Append { name, len } => {
            if let Some(file) = open(name) {
                let end = file.metadata().unwrap().len();
                file.write_all_at(&vec![b'+'; *len], end).unwrap();
            }
        }
        Step::Truncate { name, len } => {
            if let Some(file) = open(name) {
                file.set_len(*len as u64).unwrap();
            }
        }
        Step::MakeDirectory { name } => drop(fs::create_dir(at(name))),
        Step::Remove { name } => drop(fs::remove_file(at(name)).or_else(|_| fs::remove_dir_all(at(name)))),
        Step::Rename { from, to } => drop(fs::rename(at(from), at(to))),
        Step::Link { from, to } => drop(fs::hard_link(at(from), at(to))),
        Step::Symlink { name } => drop(symlink("a", at(name))),
        Step::Mode { name, mode } => {
            if fs::symlink_metadata(at(name)).is_ok_and(|found| !found.is_symlink()) {
                fs::set_permissions(at(name), fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
        Step::Scan => drop(hosts.sync()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_program_does_the_copy_is_the_same(steps in prop::collection::vec(step(), 1..60)) {
        let mut hosts = Hosts::new();
        for step in &steps {
            take(&mut hosts, step);
        }
        hosts.sync();
    }
}
