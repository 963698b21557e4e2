//! What a seed node keeps on disk.

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
}

/// Keyed by the one name "identity".
const IDENTITY: TableDefinition<&str, &[u8]> = TableDefinition::new("identity");
const IDENTITY_KEY: &str = "identity";
/// Keyed by workload.
const SLOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("slots");

/// The version of what is on disk; the first byte of every value.
const DISK_VERSION: u8 = 1;

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
        let identity = unseal(IDENTITY_KEY, &raw.identity)?;
        let mut slots = BTreeMap::new();
        for (name, value) in &raw.slots {
            let key = slot_key(name);
            let damaged = || StoreError::Damaged { what: describe(&key) };
            let workload = name.parse().map_err(|_| damaged())?;
            let slot: Slot = unseal(&key, value)?;
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

fn unseal<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    let parts = || {
        let (version, rest) = value.split_first()?;
        let (sum, content) = rest.split_first_chunk()?;
        (*version == DISK_VERSION && u64::from_le_bytes(*sum) == checksum(key, content)).then_some(content)
    };
    let damaged = || StoreError::Damaged { what: describe(key) };
    let content = parts().ok_or_else(damaged)?;
    postcard::from_bytes(content).map_err(|_| damaged())
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
        let holding = Holding::Held { primary, synced_backup: None };
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
        let damaged = |value: Vec<u8>| {
            storage.write(&[(Some(workload.as_str()), value)]).unwrap();
            matches!(storage.load(), Err(StoreError::Damaged { .. }))
        };
        for bit in 0..sealed.len() * 8 {
            let mut value = sealed.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            assert!(damaged(value), "bit {bit}");
        }
        assert!(damaged(sealed[..sealed.len() - 1].to_vec()));
        assert!(damaged(vec![]));
        assert!(damaged(seal(&slot_key("mail"), &slot).unwrap()));
        assert!(!damaged(sealed));
    }

    #[test]
    fn another_kind_of_file_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbitration");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        assert!(matches!(RedbStorage::open(&path), Err(StoreError::Open { .. })));
    }
}
