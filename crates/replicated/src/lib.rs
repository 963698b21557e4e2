//! High availability as a property of variables, types and functions.
//!
//! Mark state with `#[replicated]`, change it through its write guards, and [`commit()`]: when that returns, a backup in
//! another process (or as many of several as [`WaitFor`] says) holds every change, and will go on from there if this one dies.
//!
//! ```
//! use outlive_replicated::{commit, replicated, Map};
//!
//! #[replicated]
//! struct Account {
//!     owner: String,
//!     balance: u64,
//! }
//!
//! #[replicated]
//! static ACCOUNTS: Map<u64, Account> = Map::new();
//!
//! ACCOUNTS.write().insert(1, Account { owner: "Ada".into(), balance: 10 });
//! if let Some(mut account) = ACCOUNTS.write().get_mut(&1) {
//!     account.balance -= 3;
//! }
//! commit()?;
//! assert_eq!(ACCOUNTS.read().get(&1).map(|account| account.balance), Some(7));
//! # Ok::<(), outlive_replicated::CommitError>(())
//! ```
//!
//! Read from the bottom up:
//!
//! | module | concern |
//! |---|---|
//! | `wire` | the encoding |
//! | `value`, `schema` | plain values, compared and shipped field by field; whether another version can hold them |
//! | `lock`, `object`, `store` | who changes an object; objects; all of them by their ids, and how they follow a primary |
//! | `transaction` | what a thread or task changed since its last commit: shipped whole, or undone |
//! | `root`, `collection`, `reference` | marked statics, collections, `Ref` and the collection of garbage |
//! | [`dynamic`] | state whose types are only known while the program runs: for other languages |
//! | `call` | marked functions, `Handle`: what is opened on all sides by the same call |
//! | [`protection`] | when a commit may be acknowledged, without any I/O |
//! | `message`, `feed`, `ship`, `follow` | the link: what is said on it, the primary's side, to each backup and to all, the backup's |
//! | `arbitration`, `rights`, `seed` | who may speak: asking for it, keeping it, the seed nodes |
//! | `config`, `node` | [`start`] |
//! | `inspect` | how a live program is, asked from outside |
//! | `request` | repeated requests |
//! | `doctor` | what a program does wrong with its transactions, found while it runs |
//! | `testing` | scenarios with real processes that are killed (feature `testing`) |
//!
//! Invariant: nothing here knows the agent; arbitration is crate `cluster`'s.

#![warn(missing_docs)]

// The macros name this crate from outside, also where they are used in it.
extern crate self as outlive_replicated;

mod arbitration;
mod call;
mod collection;
mod config;
mod doctor;
pub mod dynamic;
mod feed;
mod follow;
mod forget;
mod inspect;
mod lock;
mod message;
mod node;
mod object;
pub mod protection;
mod reading;
mod reference;
mod request;
mod rights;
mod root;
mod schema;
mod seed;
mod ship;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod testing_point;
mod transaction;
mod value;
mod wire;
mod write;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod several_tests;
#[cfg(test)]
mod tests;

/// The programs in the guide compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/replicated.md")]
struct Guide;

pub use call::{CallError, Handle, Local};
pub use collection::{
    Bytes, BytesBody, Content, Counter, CounterBody, Deque, DequeBody, List, ListBody, Map, MapBody,
    OrderedMap, OrderedMapBody, Owned, ReadContent, Set, SetBody, Slot, Text, TextBody,
};
pub use config::{Config, ConfigError, Node, WhenExposed};
pub use doctor::{Finding, OutputGuard, Premature, doctor, output_guard};
pub use forget::{ForgetError, Forgot, Forgotten, forget};
pub use inspect::{InspectedBackup, Inspection, NotInspected, inspect};
pub use lock::Deadlock;
pub use node::{
    BackupStatus, How, NotHandedOver, StartError, Started, Status, hand_over, start, status, stop,
};
pub use outlive_cluster::ClusterId;
#[cfg(feature = "testing")]
pub use outlive_replicated_macros::failover_test;
pub use outlive_replicated_macros::replicated;
pub use outlive_stream::tls::Identity;
pub use protection::WaitFor;
pub use reference::{Ref, collect_garbage};
pub use request::{RequestError, RequestId, forget_client, once};
pub use root::{Read, ReadGuard, RefReadGuard, RefWriteGuard, Root, WriteGuard};
pub use schema::{Incompatible, Plans, Schema};
pub use seed::{Seed, SeedError};
pub use store::{Role, Sink, Store};
pub use transaction::{
    Commit, CommitError, TRANSACTION_LIMIT, Task, TransactionError, WriteError, commit, commit_async,
    rollback, task, transaction,
};
pub use value::Value;
pub use wire::WireError;
pub use write::Write;

/// For what the macros write.
#[doc(hidden)]
#[allow(missing_docs, reason = "it is for the macros alone, and documented where it comes from")]
pub mod __private {
    pub use inventory;

    pub use crate::call::{Arguments, Function, FunctionEntry, OnError, When};
    pub use crate::root::RootEntry;
    pub use crate::schema::{Definition, Field, Shape, Types, Variant};
    pub use crate::value::Diff;
    pub use crate::wire::{Reader, WireError, Writer};

    /// Says at compile time that a type can be replicated.
    pub const fn check<T: crate::Value>() {}
}
