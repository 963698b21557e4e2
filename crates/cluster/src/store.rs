//! What a seed node keeps on disk.

mod first;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Attempt, Life, NodeName, Seeds, Slot, WorkloadName};

/// Who a seed node is, and whether it may vote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub seeds: Seeds,
    pub me: NodeName,
    /// The seed nodes' lives known here, and which attempt began each, in the order of [`Seeds::members`]. None:
    /// this node lost its history and may not vote yet.
    pub lives: Option<Vec<(Life, Attempt)>>,
}

/// All that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub identity: Identity,
    pub slots: BTreeMap<WorkloadName, Slot>,
}

/// One thing to persist.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    Identity(&'a Identity),
    Slot(&'a WorkloadName, &'a Slot),
}

/// A disk, as a seed node needs it.
pub trait Storage {
    /// Everything, or `None` if nothing was ever persisted here (or the disk was wiped).
    fn load(&self) -> Result<Option<Disk>, StoreError>;

    /// Makes all of `records` durable, or none. When this returns, they survive a loss of power.
    fn persist(&mut self, records: &[Record<'_>]) -> Result<(), StoreError>;
}

/// A failure of the disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the arbitration state {path:?}")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("cannot make the directory entry of {path:?} durable")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot read the arbitration state: restore the disk, or remove the state and have this seed node rejoin"
    )]
    Read(#[source] Box<redb::Error>),
    #[error("cannot write the arbitration state: make room or replace the disk, then restart this seed node")]
    Write(#[source] Box<redb::Error>),
    #[error("cannot put {what} into its form on disk")]
    Encode { what: String, source: postcard::Error },
    #[error("{what} on disk is damaged: remove the arbitration state and have this seed node rejoin")]
    Damaged { what: String },
    #[error(
        "{what} on disk is of version {version}, and this program reads up to version {DISK_VERSION}: run the program that wrote it, or a \
         newer one"
    )]
    OtherVersion { what: String, version: u8 },
}

/// Keyed by the one name "identity".
const IDENTITY: TableDefinition<&str, &[u8]> = TableDefinition::new("identity");
const IDENTITY_KEY: &str = "identity";
/// Keyed by workload.
const SLOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("slots");

/// The version of what is on disk; the first byte of every value. What is of an [earlier one](first) is read, and written as
/// this one when it changes.
const DISK_VERSION: u8 = 2;

/// A [`Storage`] in one file. Every value carries its own checksum over key and content, beside the ones that redb
/// keeps of its pages: a page that is intact but of another time or place is noticed too.
pub struct RedbStorage {
    database: Database,
}

impl RedbStorage {
    /// Opens the file, or creates it empty: then [`Storage::load`] says that there is nothing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source: Box::new(source.into()) })?;
        // A new file is durable only with its directory's entry (fsync(2)); losing it would wipe this seed node.
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| StoreError::Directory { path: path.to_owned(), source })?;
        Ok(Self { database })
    }

    fn read(&self) -> Result<Option<RawDisk>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let identity = match transaction.open_table(IDENTITY) {
            Ok(table) => table.get(IDENTITY_KEY)?.map(|value| value.value().to_vec()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(identity) = identity else { return Ok(None) };
        let mut slots = Vec::new();
        match transaction.open_table(SLOTS) {
            Ok(table) => {
                for entry in table.iter()? {
                    let (name, value) = entry?;
                    slots.push((name.value().to_owned(), value.value().to_vec()));
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Some(RawDisk { identity, slots }))
    }

    /// redb's default durability makes `commit` return only after fsync (`redb::Durability::Immediate`).
    fn write(&self, values: &[(Option<&str>, Vec<u8>)]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut identity = transaction.open_table(IDENTITY)?;
            let mut slots = transaction.open_table(SLOTS)?;
            for (workload, value) in values {
                match workload {
                    None => identity.insert(IDENTITY_KEY, value.as_slice())?,
                    Some(workload) => slots.insert(*workload, value.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

struct RawDisk {
    identity: Vec<u8>,
    slots: Vec<(String, Vec<u8>)>,
}

impl Storage for RedbStorage {
    fn load(&self) -> Result<Option<Disk>, StoreError> {
        let raw = self.read().map_err(|error| StoreError::Read(Box::new(error)))?;
        let Some(raw) = raw else { return Ok(None) };
        // The same in both versions.
        let (_, identity) = unseal(IDENTITY_KEY, &raw.identity)?;
        let identity = decode(IDENTITY_KEY, identity)?;
        let mut slots = BTreeMap::new();
        for (name, value) in &raw.slots {
            let key = slot_key(name);
            let damaged = || StoreError::Damaged { what: describe(&key) };
            let workload = name.parse().map_err(|_| damaged())?;
            let slot: Slot = match unseal(&key, value)? {
                (first::VERSION, content) => decode::<first::Slot>(&key, content)?.into(),
                (_, content) => decode(&key, content)?,
            };
            let accepted = slot.accepted.as_ref();
            let register = accepted.and_then(|accepted| accepted.value.as_ref());
            if slot.promised < accepted.map(|a| a.ballot) || register.is_some_and(|r| !r.is_well_formed()) {
                return Err(damaged());
            }
            slots.insert(workload, slot);
        }
        Ok(Some(Disk { identity, slots }))
    }

    fn persist(&mut self, records: &[Record<'_>]) -> Result<(), StoreError> {
        let mut values = Vec::with_capacity(records.len());
        for record in records {
            values.push(match record {
                Record::Identity(identity) => (None, seal(IDENTITY_KEY, identity)?),
                Record::Slot(workload, slot) => {
                    (Some(workload.as_str()), seal(&slot_key(workload.as_str()), slot)?)
                }
            });
        }
        self.write(&values).map_err(|error| StoreError::Write(Box::new(error)))
    }
}

/// What a slot's checksum covers beside its content. No name has a slash, so none is taken for the identity.
fn slot_key(workload: &str) -> String {
    format!("slot/{workload}")
}

fn describe(key: &str) -> String {
    match key.strip_prefix("slot/") {
        Some(workload) => format!("the register of {workload:?}"),
        None => "this seed node's identity".to_owned(),
    }
}

/// Version, checksum of key and content, content.
fn seal(key: &str, content: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let content = postcard::to_allocvec(content)
        .map_err(|source| StoreError::Encode { what: describe(key), source })?;
    let mut value = vec![DISK_VERSION];
    value.extend(checksum(key, &content).to_le_bytes());
    value.extend(content);
    Ok(value)
}

/// Version and content of what was sealed.
fn unseal<'a>(key: &str, value: &'a [u8]) -> Result<(u8, &'a [u8]), StoreError> {
    let damaged = || StoreError::Damaged { what: describe(key) };
    let (version, rest) = value.split_first().ok_or_else(damaged)?;
    let (sum, content) = rest.split_first_chunk().ok_or_else(damaged)?;
    if u64::from_le_bytes(*sum) != checksum(key, content) {
        return Err(damaged());
    }
    match *version {
        first::VERSION | DISK_VERSION => Ok((*version, content)),
        version => Err(StoreError::OtherVersion { what: describe(key), version }),
    }
}

fn decode<T: for<'de> Deserialize<'de>>(key: &str, content: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(content).map_err(|_| StoreError::Damaged { what: describe(key) })
}

fn checksum(key: &str, content: &[u8]) -> u64 {
    xxh3_64(&[key.as_bytes(), &[0], content].concat())
}

/// A [`Storage`] in memory, for simulators and tests: what it holds is what a disk would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStorage {
    disk: Option<Disk>,
}

impl MemoryStorage {
    /// What is on the disk, to look at or to damage.
    pub fn disk_mut(&mut self) -> &mut Option<Disk> {
        &mut self.disk
    }
}

impl Storage for MemoryStorage {
    fn load(&self) -> Result<Option<Disk>, StoreError> {
        Ok(self.disk.clone())
    }

    fn persist(&mut self, records: &[Record<'_>]) -> Result<(), StoreError> {
        for record in records {
            match (record, &mut self.disk) {
                (Record::Identity(identity), None) => {
                    self.disk = Some(Disk { identity: (*identity).clone(), slots: BTreeMap::new() });
                }
                (Record::Identity(identity), Some(disk)) => disk.identity = (*identity).clone(),
                (Record::Slot(workload, slot), Some(disk)) => {
                    disk.slots.insert((*workload).clone(), (*slot).clone());
                }
                (Record::Slot(..), None) => {
                    return Err(StoreError::Damaged { what: describe(IDENTITY_KEY) });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Accepted, Ballot, ClusterId, Holder, Holding, Incarnation, Register};

    fn disk() -> Disk {
        let me: NodeName = "s0".parse().unwrap();
        let seeds = Seeds::new(ClusterId(1), 1, vec![me.clone()]).unwrap();
        let lives = Some(vec![(Life(0), Attempt(0))]);
        let primary = Holder { incarnation: Incarnation(5), node: me.clone() };
        let holding = Holding::of(primary, None);
        let register = Register { version: 1, generation: 1, holding, seeds_version: 1 };
        let ballot = Ballot { counter: 3, attempt: Attempt(4) };
        let slot =
            Slot { promised: Some(ballot), accepted: Some(Accepted { ballot, value: Some(register) }) };
        let slots = ["identity", "web"].map(|name| (name.parse().unwrap(), slot.clone()));
        Disk { identity: Identity { seeds, me, lives }, slots: slots.into() }
    }

    fn persist_all(storage: &mut impl Storage, disk: &Disk) {
        let slots = disk.slots.iter().map(|(workload, slot)| Record::Slot(workload, slot));
        let records: Vec<_> = std::iter::once(Record::Identity(&disk.identity)).chain(slots).collect();
        storage.persist(&records).unwrap();
    }

    #[test]
    fn survives_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbitration");
        let mut storage = RedbStorage::open(&path).unwrap();
        assert_eq!(storage.load().unwrap(), None);
        persist_all(&mut storage, &disk());
        drop(storage);
        assert_eq!(RedbStorage::open(&path).unwrap().load().unwrap(), Some(disk()));
    }

    #[test]
    fn memory_holds_the_same() {
        let mut storage = MemoryStorage::default();
        assert_eq!(storage.load().unwrap(), None);
        persist_all(&mut storage, &disk());
        assert_eq!(storage.load().unwrap(), Some(disk()));
    }

    /// Every bit of every value is flipped once, and every value is put in the place of another.
    #[test]
    fn damage_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let mut storage = RedbStorage::open(&directory.path().join("arbitration")).unwrap();
        persist_all(&mut storage, &disk());
        let (workload, slot) = disk().slots.pop_last().unwrap();
        let sealed = seal(&slot_key(workload.as_str()), &slot).unwrap();
        let load = |value: Vec<u8>| {
            storage.write(&[(Some(workload.as_str()), value)]).unwrap();
            storage.load()
        };
        let flipped = |bit: usize| {
            let mut value = sealed.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            value
        };
        // The first byte is the version.
        for bit in 0..8 {
            let error = load(flipped(bit)).unwrap_err();
            assert!(matches!(error, StoreError::OtherVersion { version, .. } if version != DISK_VERSION));
        }
        let damaged = |value| matches!(load(value), Err(StoreError::Damaged { .. }));
        for bit in 8..sealed.len() * 8 {
            assert!(damaged(flipped(bit)), "bit {bit}");
        }
        assert!(damaged(sealed[..sealed.len() - 1].to_vec()));
        assert!(damaged(vec![]));
        assert!(damaged(seal(&slot_key("mail"), &slot).unwrap()));
        assert!(!damaged(sealed));
    }

    /// What a program has written whose registers named one backup or none, byte by byte (its `RedbStorage::persist`).
    #[test]
    fn votes_of_the_first_version_are_read() {
        let identity =
            [1, 35, 238, 192, 35, 209, 206, 116, 31, 1, 1, 1, 2, 115, 48, 2, 115, 48, 1, 1, 2, 3].to_vec();
        let slots: [(&str, &[u8]); 5] = [
            (
                "alone",
                &[
                    1, 241, 207, 233, 76, 94, 153, 116, 2, 1, 172, 2, 4, 1, 172, 2, 4, 1, 9, 7, 0, 5, 2, 115,
                    48, 0, 1,
                ],
            ),
            ("never", &[1, 5, 105, 92, 42, 155, 5, 16, 163, 1, 172, 2, 4, 1, 172, 2, 4, 0]),
            ("promised", &[1, 18, 9, 252, 34, 236, 250, 109, 16, 1, 172, 2, 4, 0]),
            (
                "protected",
                &[
                    1, 238, 59, 30, 241, 141, 102, 118, 4, 1, 172, 2, 4, 1, 172, 2, 4, 1, 9, 7, 0, 5, 2, 115,
                    48, 1, 6, 2, 115, 49, 1,
                ],
            ),
            ("stopped", &[1, 222, 35, 129, 91, 59, 234, 61, 114, 1, 172, 2, 4, 1, 172, 2, 4, 1, 9, 7, 1, 1]),
        ];
        let directory = tempfile::tempdir().unwrap();
        let mut storage = RedbStorage::open(&directory.path().join("arbitration")).unwrap();
        let mut values: Vec<_> = slots.iter().map(|(name, value)| (Some(*name), value.to_vec())).collect();
        values.push((None, identity));
        storage.write(&values).unwrap();

        let ballot = Ballot { counter: 300, attempt: Attempt(4) };
        let slot = |accepted: Option<Option<Holding>>| {
            let register = |holding| Register { version: 9, generation: 7, holding, seeds_version: 1 };
            let accepted = accepted.map(|holding| Accepted { ballot, value: holding.map(register) });
            Slot { promised: Some(ballot), accepted }
        };
        let holder =
            |number, node: &str| Holder { incarnation: Incarnation(number), node: node.parse().unwrap() };
        let held = |backup| Holding::of(holder(5, "s0"), backup);
        let expected = [
            ("alone", slot(Some(Some(held(None))))),
            ("never", slot(Some(None))),
            ("promised", slot(None)),
            ("protected", slot(Some(Some(held(Some(holder(6, "s1"))))))),
            ("stopped", slot(Some(Some(Holding::Tombstone)))),
        ];
        let me: NodeName = "s0".parse().unwrap();
        let seeds = Seeds::new(ClusterId(1), 1, vec![me.clone()]).unwrap();
        let identity = Identity { seeds, me, lives: Some(vec![(Life(2), Attempt(3))]) };
        let slots = expected.map(|(name, slot)| (name.parse().unwrap(), slot)).into();
        let read = storage.load().unwrap().unwrap();
        assert_eq!(read, Disk { identity, slots });
        // What changes is written as it is now, beside the rest.
        let (workload, slot) = read.slots.first_key_value().unwrap();
        storage.persist(&[Record::Slot(workload, slot)]).unwrap();
        assert_eq!(storage.load().unwrap(), Some(read));
    }

    #[test]
    fn another_kind_of_file_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbitration");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        assert!(matches!(RedbStorage::open(&path), Err(StoreError::Open { .. })));
    }
}
