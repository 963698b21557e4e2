//! The encoding: what a changed value looks like between primary and backup.
//!
//! Unsigned integers are LEB128, signed ones zigzag before it, texts and sequences carry their length in front. A
//! small number is one byte. Nothing names its own type: both ends know it, by the schema that was compared when the
//! backup joined.

use std::sync::Arc;

use crate::object::AnyObject;
use crate::schema::{Plans, Shape};
use crate::store::Store;
use crate::value::Value;

/// Bytes of the longest LEB128 form of a `u128`: ceil(128 / 7).
const LONGEST: usize = 19;
/// The deepest nesting of what is skipped unread: a hostile schema must not exhaust the stack.
const DEPTH: usize = 64;

/// Bytes that are not what was agreed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A value goes on after the end of its record.
    #[error("a change ends early")]
    Truncated,
    /// A record has bytes that nothing asked for.
    #[error("{0} bytes follow a change that should have ended")]
    Trailing(usize),
    /// A number that the type cannot hold, a text that is not UTF-8, a variant that does not exist.
    #[error("a change holds no {0}")]
    NotA(&'static str),
    /// A change of an object that was never sent.
    #[error("a change names object {0}, which does not exist here")]
    UnknownObject(u64),
    /// An object of another type than its name promises.
    #[error("object {0} is of another type here: both ends run different programs")]
    OtherType(u64),
    /// An operation that the collection does not have, or that does not fit what is in it.
    #[error("an operation on {0} does not fit what is there")]
    Impossible(&'static str),
    /// A type, root or function that the joining did not announce.
    #[error("{what} {number} was not announced when this backup joined")]
    NotAnnounced {
        /// What kind of thing.
        what: &'static str,
        /// Its number in the primary's schema.
        number: u64,
    },
}

/// How owned collections within a value are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With their content, as a backup needs them.
    Content,
    /// With their content, and all get new ids.
    Renew,
    /// By their id alone, as they are found again where they already are: for undoing.
    Ids,
}

/// A LEB128 number, where nothing is allocated for it.
pub(crate) struct Short {
    bytes: [u8; 10],
    length: usize,
}

impl Short {
    #[inline]
    pub fn of(mut number: u64) -> Self {
        let (mut bytes, mut length) = ([0; 10], 0);
        while number >= 0x80 {
            bytes[length] = number as u8 | 0x80;
            number >>= 7;
            length += 1;
        }
        bytes[length] = number as u8;
        Self { bytes, length: length + 1 }
    }

    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Where values are written to.
pub struct Writer {
    pub(crate) bytes: Vec<u8>,
    mode: Mode,
    /// Where new collections get their ids; none while they must have one already.
    store: Option<Arc<Store>>,
    pub(crate) created: Vec<Arc<dyn AnyObject>>,
}

impl Writer {
    pub(crate) fn new(mode: Mode, store: Option<Arc<Store>>) -> Self {
        Self { bytes: Vec::new(), mode, store, created: Vec::new() }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// What a write guard remembers of a value: owned collections by their ids.
    pub fn remembered<V: Value>(value: &V) -> Vec<u8> {
        let mut writer = Self::new(Mode::Ids, None);
        value.encode(&mut writer);
        writer.bytes
    }

    /// One byte.
    #[inline]
    pub fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// An unsigned number: 1 byte below 128, 2 below 16,384, at most 10.
    #[inline]
    pub fn number(&mut self, number: u64) {
        if number < 0x80 {
            self.bytes.push(number as u8);
        } else {
            self.bytes.extend_from_slice(Short::of(number).bytes());
        }
    }

    /// An unsigned number of up to 128 bits: at most 19 bytes.
    #[inline]
    pub fn wide(&mut self, mut number: u128) {
        if let Ok(number) = u64::try_from(number) {
            return self.number(number);
        }
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// Bytes of a known length.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes with their length in front.
    #[inline]
    pub fn sized(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }
}

/// Where values are read from. Everything read is checked: it may have come from anywhere.
pub struct Reader<'a> {
    bytes: &'a [u8],
    store: &'a Arc<Store>,
    plans: Option<&'a Plans>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], store: &'a Arc<Store>, plans: Option<&'a Plans>) -> Self {
        Self { bytes, store, plans }
    }

    pub(crate) fn store(&self) -> &'a Arc<Store> {
        self.store
    }

    /// How to read a type of another version of the program; `None`: as it is here.
    #[inline]
    pub fn plan(&self, type_name: &str) -> Option<&'a [Option<usize>]> {
        self.plans.and_then(|plans| plans.fields(type_name))
    }

    /// The name of the other version's function; `None`: by its number here.
    pub(crate) fn function(&self, number: u64) -> Result<Option<&'a str>, WireError> {
        let Some(plans) = self.plans else { return Ok(None) };
        let unknown = WireError::NotAnnounced { what: "function", number };
        plans.function(number).map(Some).ok_or(unknown)
    }

    /// Of the same version, other bytes.
    pub(crate) fn of(&self, bytes: &'a [u8]) -> Self {
        Self { bytes, store: self.store, plans: self.plans }
    }

    /// The number here of the other version's variant.
    pub fn variant(&self, type_name: &str, number: u64) -> Result<u64, WireError> {
        match self.plans {
            None => Ok(number),
            Some(plans) => plans.variant(type_name, number).ok_or(WireError::NotA("variant")),
        }
    }

    /// Whether all was read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes are left: no sequence has more elements than this.
    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(&self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.bytes.len())) }
    }

    /// One byte.
    #[inline]
    pub fn byte(&mut self) -> Result<u8, WireError> {
        let (byte, rest) = self.bytes.split_first().ok_or(WireError::Truncated)?;
        self.bytes = rest;
        Ok(*byte)
    }

    /// A number of at most 64 bits.
    #[inline]
    pub fn number(&mut self) -> Result<u64, WireError> {
        if let Some((byte, rest)) = self.bytes.split_first()
            && *byte < 0x80
        {
            self.bytes = rest;
            return Ok(u64::from(*byte));
        }
        u64::try_from(self.wide()?).map_err(|_| WireError::NotA("number of 64 bits"))
    }

    /// A number of at most 128 bits.
    pub fn wide(&mut self) -> Result<u128, WireError> {
        let mut number = 0u128;
        for place in 0..LONGEST {
            let byte = self.byte()?;
            let part = u128::from(byte & 0x7f);
            let shifted = part << (7 * place);
            if shifted >> (7 * place) != part {
                return Err(WireError::NotA("number of 128 bits"));
            }
            number |= shifted;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(WireError::NotA("number of 128 bits"))
    }

    /// Bytes of a known length.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// Bytes with their length in front.
    pub fn sized(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.length()?;
        self.raw(length)
    }

    /// The length of a sequence; never more than the bytes that are left, so that memory may be taken for it.
    pub fn length(&mut self) -> Result<usize, WireError> {
        let length = self.number()?;
        usize::try_from(length).ok().filter(|length| *length <= self.left()).ok_or(WireError::Truncated)
    }

    /// Passes over field `number` of a type of the other version, which does not exist here.
    pub fn skip_field(&mut self, type_name: &str, number: usize) -> Result<(), WireError> {
        let shape = self.plans.and_then(|plans| plans.shape_of(type_name, number));
        let shape = shape.ok_or(WireError::NotAnnounced { what: "field", number: number as u64 })?;
        self.skip(&shape, 0)
    }

    /// The number of the next field of a struct that changed, as the primary counts them.
    pub fn changed_field(&mut self) -> Result<Option<usize>, WireError> {
        match self.number()? {
            0 => Ok(None),
            number => usize::try_from(number - 1).map(Some).map_err(|_| WireError::NotA("field")),
        }
    }

    /// Passes over the change of a field that does not exist here.
    pub fn skip_patch(&mut self, type_name: &str, number: usize) -> Result<(), WireError> {
        let shape = self.plans.and_then(|plans| plans.shape_of(type_name, number));
        let shape = shape.ok_or(WireError::NotAnnounced { what: "field", number: number as u64 })?;
        match shape {
            // The change of a struct is that of its fields.
            Shape::Named(name) if self.plans.is_some_and(|plans| !plans.is_enum(&name)) => {
                while let Some(number) = self.changed_field()? {
                    self.skip_patch(&name, number)?;
                }
                Ok(())
            }
            shape => self.skip(&shape, 0),
        }
    }

    fn skip(&mut self, shape: &Shape, depth: usize) -> Result<(), WireError> {
        if depth > DEPTH {
            return Err(WireError::NotA("value of this depth"));
        }
        match shape {
            Shape::Number => {
                self.wide()?;
            }
            Shape::Fixed(length) => {
                self.raw(*length)?;
            }
            Shape::Sized => {
                self.sized()?;
            }
            Shape::Choice(inner) => {
                if self.byte()? != 0 {
                    self.skip(inner, depth + 1)?;
                }
            }
            Shape::Sequence(inner) => {
                for _ in 0..self.length()? {
                    self.skip(inner, depth + 1)?;
                }
            }
            Shape::Tuple(parts) => {
                for part in parts {
                    self.skip(part, depth + 1)?;
                }
            }
            Shape::Owned(content) => {
                let head = self.number()?;
                self.store.ignore(head >> 1);
                if head & 1 == 1 {
                    self.skip(content, depth + 1)?;
                }
            }
            Shape::Named(name) => {
                let number_of =
                    if self.plans.is_some_and(|plans| plans.is_enum(name)) { self.number()? } else { 0 };
                let parts = self.plans.and_then(|plans| plans.parts(name, number_of));
                for part in parts.ok_or(WireError::NotA("type that was announced"))? {
                    self.skip(&part, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// A signed number as an unsigned one, small if it is near zero.
#[inline]
pub(crate) fn zigzag(number: i128) -> u128 {
    ((number << 1) ^ (number >> 127)) as u128
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) fn unzigzag(number: u128) -> i128 {
    (number >> 1) as i128 ^ -((number & 1) as i128)
}
