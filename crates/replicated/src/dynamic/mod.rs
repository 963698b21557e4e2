//! State whose types are only known while the program runs: for programs in other languages, through a library of
//! theirs (crate `replicated-c` for C). A Rust program marks its types instead.
//!
//! A [`RecordType`] says where the fields of a struct lie in its memory. What is replicated of the struct is these fields,
//! in the encoding and with the schema of a marked struct: compared field by field, and read by name from a primary of
//! another version. [`Variable`], [`Table`] and [`Sequence`] are the statics that such a program has.
//!
//! Nothing here trusts a description: what does not fit in the memory is refused when it is declared.

mod record;
mod sequence;
mod table;
mod variable;

use std::sync::Arc;

pub use record::{BadType, FieldType, Kind, Record, RecordType};
pub use sequence::{Sequence, SequenceRead, SequenceWrite};
pub use table::{Table, TableRead, TableWrite};
pub use variable::{Variable, VariableRead, VariableWrite};

use crate::object::{Body, Shared};
use crate::schema::{Shape, Types};
use crate::store::{Role, Store};
use crate::transaction::{WriteError, own, panic_passed};
use crate::wire::{Reader, WireError, Writer};

/// Why something cannot be declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDeclared {
    /// A backup would not know it.
    #[error(
        "`{0}` is declared too late: all replicated state must be declared before the program starts to take part"
    )]
    TooLate(String),
    /// Two things have one name.
    #[error("two replicated statics or functions are called `{0}`: give one of them another name")]
    Taken(String),
    /// Two types have one name.
    #[error("two different replicated structs are called `{0}`: give one of them another name")]
    OtherType(String),
}

/// What the elements of a collection are.
#[derive(Clone, Debug)]
pub enum Of {
    /// Bytes of any length.
    Bytes,
    /// Structs of one type.
    Record(Arc<RecordType>),
}

impl Of {
    fn name(&self) -> String {
        match self {
            Self::Bytes => "bytes".into(),
            Self::Record(of) => of.name().to_owned(),
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Bytes => Shape::Sized,
            Self::Record(of) => Shape::Named(of.name().to_owned()),
        }
    }

    /// An element out of the memory of a struct, or out of bytes; `None` if the length is not the struct's.
    pub fn element(&self, bytes: &[u8]) -> Option<Element> {
        match self {
            Self::Bytes => Some(Element::Bytes(bytes.into())),
            Self::Record(of) => Record::of_memory(of, bytes).map(Element::Record),
        }
    }

    fn decode(&self, from: &mut Reader<'_>) -> Result<Element, WireError> {
        match self {
            Self::Bytes => Ok(Element::Bytes(from.sized()?.into())),
            Self::Record(of) => {
                let mut record = Record::new(of);
                record.decode(from)?;
                Ok(Element::Record(record))
            }
        }
    }
}

/// An element of a collection.
#[derive(Debug)]
pub enum Element {
    /// Bytes of any length.
    Bytes(Box<[u8]>),
    /// A struct.
    Record(Record),
}

impl Element {
    /// Its bytes, or the memory of the struct.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Record(record) => record.bytes(),
        }
    }

    fn encode(&self, to: &mut Writer) {
        match self {
            Self::Bytes(bytes) => to.sized(bytes),
            Self::Record(record) => record.encode(to),
        }
    }

    /// Only structs are changed in part.
    fn patch(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        match self {
            Self::Bytes(_) => Err(WireError::Impossible("bytes")),
            Self::Record(record) => record.patch(from),
        }
    }
}

/// The number in front of an operation.
mod op {
    pub const PUT: u8 = 0;
    pub const REMOVE: u8 = 1;
    pub const PATCH: u8 = 2;
    pub const REPLACE: u8 = 3;
    pub const CLEAR: u8 = 4;
    pub const PUSH: u8 = 5;
    pub const POP: u8 = 6;
    pub const PUSH_FRONT: u8 = 7;
    pub const POP_FRONT: u8 = 8;
}

/// Whether a static or a function of this name may still be declared: not once the program takes part.
pub fn may_declare(name: &str) -> Result<(), NotDeclared> {
    may_declare_in(Store::global(), name)
}

fn may_declare_in(store: &Store, name: &str) -> Result<(), NotDeclared> {
    match store.role() == Role::Alone && store.sink().is_none() {
        true => Ok(()),
        false => Err(NotDeclared::TooLate(name.to_owned())),
    }
}

/// Has the transaction of this thread end after what the thread keeps in variables of its own that it uses for the first time
/// after this. Who keeps guards in one calls it before: they are part of the transaction.
pub fn ready_thread() {
    crate::transaction::ready_thread();
}

/// Makes an object a static of the program, with all types that it is made of.
fn declare<B: Body>(
    store: &Arc<Store>,
    name: &str,
    object: &Arc<Shared<B>>,
    of: String,
    shape: Shape,
    types: &[&Arc<RecordType>],
) -> Result<(), NotDeclared> {
    may_declare_in(store, name)?;
    let mut gathered = Vec::new();
    for of in types {
        of.gather(&mut gathered);
    }
    store.add_described(name, object, of, shape, gathered)
}

/// Says that the program has a function that a primary may ask its backup to call, though no marked function of it says so:
/// its name is compared when a backup joins.
pub fn announce_function(name: &str) -> Result<(), NotDeclared> {
    let store = Store::global();
    may_declare_in(store, name)?;
    match store.announce(name) {
        true => Ok(()),
        false => Err(NotDeclared::Taken(name.to_owned())),
    }
}

/// Makes an object this transaction's own, to change it. Whether it is in a store. Refused while this thread holds a guard
/// that writes to it: it would wait for itself.
fn begin<B: Body>(object: &Arc<Shared<B>>) -> Result<bool, WriteError> {
    let tracked = own(object)?;
    if tracked && object.hold.is_written() {
        return Err(WriteError::GuardAlive);
    }
    Ok(tracked)
}

/// Of an object that is being written: no commit meanwhile.
struct Writing<B: Body> {
    object: Arc<Shared<B>>,
    tracked: bool,
}

impl<B: Body> Writing<B> {
    fn new(object: &Arc<Shared<B>>, tracked: bool) -> Self {
        if tracked {
            object.hold.set_written(true);
        }
        Self { object: Arc::clone(object), tracked }
    }
}

impl<B: Body> Drop for Writing<B> {
    fn drop(&mut self) {
        if self.tracked {
            self.object.hold.set_written(false);
            if std::thread::panicking() {
                panic_passed();
            }
        }
    }
}

/// The definitions of types by name, as they are gathered.
type Gathered = Vec<(String, crate::schema::Definition)>;

impl Types {
    /// Takes over definitions that were made at run time; the name of one that is another type's.
    pub(crate) fn describe(&mut self, gathered: Gathered) -> Result<(), String> {
        for (name, definition) in gathered {
            match self.definitions.get(&name) {
                Some(known) if *known != definition => return Err(name),
                Some(_) => {}
                None => self.define(&name, definition),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
