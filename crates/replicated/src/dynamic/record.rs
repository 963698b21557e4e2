//! Structs that lie in memory as their program says.

use std::sync::Arc;

use super::Gathered;
use crate::object::Body;
use crate::schema::{Definition, Field, Shape, Variant};
use crate::value::Diff;
use crate::wire::{Reader, WireError, Writer, unzigzag, zigzag};

/// The strictest alignment that a struct may ask for: that of C's `max_align_t` on x86-64 and AArch64.
const ALIGNMENT: usize = 16;
/// The largest struct: what has more is a collection.
const LARGEST: usize = 1 << 24;
/// The longest description of a struct's fields, in bytes as they travel: a sixteenth of what one frame holds, which has to
/// hold the descriptions of all. In an array each element is described.
const DESCRIBED: usize = outlive_stream::frame::PAYLOAD_MAX / 16;

/// What a field holds.
#[derive(Clone, Debug)]
pub enum Kind {
    /// An unsigned number of 1, 2, 4 or 8 bytes.
    Unsigned(usize),
    /// A signed number of 1, 2, 4 or 8 bytes.
    Signed(usize),
    /// A number of 4 or 8 bytes, by IEEE 754; compared by its bits.
    Float(usize),
    /// One byte, 0 or 1.
    Bool,
    /// A text in an array of this many bytes: up to its first zero. What follows that is nobody's.
    Chars(usize),
    /// So many bytes, all of them.
    Bytes(usize),
    /// A struct within it.
    Record(Arc<RecordType>),
}

impl Kind {
    fn size(&self) -> usize {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => *size,
            Self::Chars(size) | Self::Bytes(size) => *size,
            Self::Bool => 1,
            Self::Record(of) => of.size,
        }
    }

    /// Whether its size is one that it can have.
    fn exists(&self) -> bool {
        match self {
            Self::Unsigned(size) | Self::Signed(size) => matches!(size, 1 | 2 | 4 | 8),
            Self::Float(size) => matches!(size, 4 | 8),
            Self::Chars(size) | Self::Bytes(size) => *size > 0,
            Self::Bool | Self::Record(_) => true,
        }
    }

    /// Its name, the same on every machine.
    fn name(&self) -> String {
        match self {
            Self::Unsigned(size) => format!("uint{}_t", size * 8),
            Self::Signed(size) => format!("int{}_t", size * 8),
            Self::Float(4) => "float".into(),
            Self::Float(_) => "double".into(),
            Self::Bool => "bool".into(),
            Self::Chars(size) => format!("char[{size}]"),
            Self::Bytes(size) => format!("uint8_t[{size}]"),
            Self::Record(of) => format!("struct {}", of.name),
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Unsigned(_) | Self::Signed(_) | Self::Bool => Shape::Number,
            Self::Float(size) | Self::Bytes(size) => Shape::Fixed(*size),
            Self::Chars(_) => Shape::Sized,
            Self::Record(of) => Shape::Named(of.name.clone()),
        }
    }

    fn encode(&self, bytes: &[u8], to: &mut Writer) {
        match self {
            Self::Unsigned(_) => to.number(unsigned(bytes)),
            Self::Signed(_) => to.wide(zigzag(i128::from(signed(bytes)))),
            Self::Float(_) => {
                // Little-endian on the wire, whatever it is here.
                let mut bits = [0; 8];
                bits[..bytes.len()].copy_from_slice(bytes);
                if cfg!(target_endian = "big") {
                    bits[..bytes.len()].reverse();
                }
                to.raw(&bits[..bytes.len()]);
            }
            Self::Bool => to.byte(u8::from(bytes.first() != Some(&0))),
            Self::Chars(_) => to.sized(text(bytes)),
            Self::Bytes(_) => to.raw(bytes),
            Self::Record(of) => of.encode(bytes, to),
        }
    }

    fn decode(&self, bytes: &mut [u8], from: &mut Reader<'_>) -> Result<(), WireError> {
        match self {
            Self::Unsigned(size) => {
                let number = from.number()?;
                if size * 8 < 64 && number >> (size * 8) != 0 {
                    return Err(WireError::NotA("number of this size"));
                }
                store(bytes, number);
            }
            Self::Signed(size) => {
                let number = unzigzag(from.wide()?);
                let end = 1i128 << (size * 8 - 1);
                if !(-end..end).contains(&number) {
                    return Err(WireError::NotA("number of this size"));
                }
                store(bytes, number as i64 as u64);
            }
            Self::Float(size) => {
                bytes.copy_from_slice(from.raw(*size)?);
                if cfg!(target_endian = "big") {
                    bytes.reverse();
                }
            }
            Self::Bool => match from.byte()? {
                flag @ (0 | 1) => bytes.fill(flag),
                _ => return Err(WireError::NotA("bool")),
            },
            Self::Chars(_) => {
                let text = from.sized()?;
                if text.len() > bytes.len() || text.contains(&0) {
                    return Err(WireError::NotA("text of this length"));
                }
                let (front, rest) = bytes.split_at_mut(text.len());
                front.copy_from_slice(text);
                rest.fill(0);
            }
            Self::Bytes(size) => bytes.copy_from_slice(from.raw(*size)?),
            Self::Record(of) => of.decode(bytes, from)?,
        }
        Ok(())
    }

    fn differs(&self, bytes: &[u8], other: &[u8]) -> bool {
        match self {
            Self::Chars(_) => text(bytes) != text(other),
            Self::Bool => (bytes.first() == Some(&0)) != (other.first() == Some(&0)),
            Self::Record(of) => of.differs(bytes, other),
            _ => bytes != other,
        }
    }
}

/// The text in an array: up to its first zero.
fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// The number in memory of 1, 2, 4 or 8 bytes.
fn unsigned(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    let at = if cfg!(target_endian = "big") { 8 - bytes.len() } else { 0 };
    wide[at..at + bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(wide)
}

fn signed(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len() as u32;
    // Shifted up and down again, its sign fills what it leaves.
    ((unsigned(bytes) << unused) as i64) >> unused
}

fn store(bytes: &mut [u8], number: u64) {
    let wide = number.to_ne_bytes();
    let at = if cfg!(target_endian = "big") { 8 - bytes.len() } else { 0 };
    let length = bytes.len();
    bytes.copy_from_slice(&wide[at..at + length]);
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub struct FieldType {
    /// Its name in the source.
    pub name: String,
    /// How many bytes after the beginning of the struct it lies.
    pub offset: usize,
    /// What it holds.
    pub kind: Kind,
    /// So many of them, one after the other, if it is an array.
    pub count: Option<usize>,
    /// Whether it is zero where the primary has none.
    pub has_default: bool,
    /// An earlier name of it.
    pub was: Option<String>,
}

impl FieldType {
    fn size(&self) -> Option<usize> {
        self.kind.size().checked_mul(self.count.unwrap_or(1))
    }

    fn name_of_type(&self) -> String {
        match self.count {
            None => self.kind.name(),
            Some(count) => format!("{}[{count}]", self.kind.name()),
        }
    }

    fn shape(&self) -> Shape {
        match self.count {
            None => self.kind.shape(),
            Some(count) => Shape::Tuple(vec![self.kind.shape(); count]),
        }
    }

    /// About how many bytes its description has: for each element a byte or two, with the name of a struct.
    fn described(&self) -> usize {
        let each = match &self.kind {
            Kind::Record(of) => of.name.len() + 2,
            Kind::Float(_) | Kind::Bytes(_) => 2,
            _ => 1,
        };
        self.count.unwrap_or(1).saturating_mul(each).saturating_add(self.name.len())
    }

    /// Its part of the struct's memory, which was found to hold it when the type was made.
    fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.size().unwrap_or(0)
    }

    fn encode(&self, bytes: &[u8], to: &mut Writer) {
        for part in bytes[self.range()].chunks_exact(self.kind.size()) {
            self.kind.encode(part, to);
        }
    }

    fn decode(&self, bytes: &mut [u8], from: &mut Reader<'_>) -> Result<(), WireError> {
        for part in bytes[self.range()].chunks_exact_mut(self.kind.size()) {
            self.kind.decode(part, from)?;
        }
        Ok(())
    }

    fn differs(&self, bytes: &[u8], other: &[u8]) -> bool {
        let (bytes, other) = (&bytes[self.range()], &other[self.range()]);
        let size = self.kind.size();
        bytes.chunks_exact(size).zip(other.chunks_exact(size)).any(|(a, b)| self.kind.differs(a, b))
    }
}

/// Why a description of a struct is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadType {
    /// It is empty, or larger than 16 MiB.
    #[error("struct `{0}` of {1} bytes cannot be replicated: it may have 1 to 16,777,216")]
    Size(String, usize),
    /// It must lie at addresses of more than 16 bytes.
    #[error("struct `{0}` is aligned to {1} bytes: no more than 16 can be had")]
    Alignment(String, usize),
    /// A field is not within the struct, or holds what there is not.
    #[error("field `{1}` of struct `{0}` does not lie within it")]
    Field(String, String),
    /// Two fields have one name, or one has none.
    #[error("struct `{0}` has no single field `{1}`")]
    Name(String, String),
    /// An array has so many elements that a backup cannot be told of them.
    #[error(
        "the arrays of struct `{0}` have too many elements with field `{1}`: bytes, or a collection, may have more"
    )]
    TooMany(String, String),
    /// Two fields share memory.
    #[error("field `{1}` of struct `{0}` lies upon another")]
    Overlap(String, String),
}

/// A struct: its name, and what of its memory is state.
#[derive(Debug)]
pub struct RecordType {
    name: String,
    size: usize,
    fields: Vec<FieldType>,
}

impl RecordType {
    /// Checks it. What no field covers is nobody's: padding, and what each side has on its own.
    pub fn new(
        name: &str,
        size: usize,
        alignment: usize,
        fields: Vec<FieldType>,
    ) -> Result<Arc<Self>, BadType> {
        if size == 0 || size > LARGEST {
            return Err(BadType::Size(name.to_owned(), size));
        }
        if alignment > ALIGNMENT {
            return Err(BadType::Alignment(name.to_owned(), alignment));
        }
        let mut described = 0usize;
        for (place, field) in fields.iter().enumerate() {
            let own = || (name.to_owned(), field.name.clone());
            let end = field.size().and_then(|size| size.checked_add(field.offset));
            if !field.kind.exists() || field.count == Some(0) || end.is_none_or(|end| end > size) {
                let (name, field) = own();
                return Err(BadType::Field(name, field));
            }
            described = described.saturating_add(field.described());
            if described > DESCRIBED {
                let (name, field) = own();
                return Err(BadType::TooMany(name, field));
            }
            let before = &fields[..place];
            if field.name.is_empty() || before.iter().any(|other| other.name == field.name) {
                let (name, field) = own();
                return Err(BadType::Name(name, field));
            }
            let (start, end) = (field.range().start, field.range().end);
            if before.iter().any(|other| other.range().start < end && start < other.range().end) {
                let (name, field) = own();
                return Err(BadType::Overlap(name, field));
            }
        }
        Ok(Arc::new(Self { name: name.to_owned(), size, fields }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its definition, and those of the structs within it.
    pub(super) fn gather(&self, to: &mut Gathered) {
        let fields = self.fields.iter().map(|field| Field {
            name: field.name.clone(),
            shape: field.shape(),
            of: field.name_of_type(),
            has_default: field.has_default,
            was: field.was.iter().cloned().collect(),
        });
        let variants = vec![Variant { name: String::new(), fields: fields.collect() }];
        to.push((self.name.clone(), Definition { is_enum: false, variants }));
        for field in &self.fields {
            if let Kind::Record(of) = &field.kind {
                of.gather(to);
            }
        }
    }

    fn encode(&self, bytes: &[u8], to: &mut Writer) {
        for field in &self.fields {
            field.encode(bytes, to);
        }
    }

    fn decode(&self, bytes: &mut [u8], from: &mut Reader<'_>) -> Result<(), WireError> {
        let Some(plan) = from.plan(&self.name) else {
            return self.fields.iter().try_for_each(|field| field.decode(bytes, from));
        };
        for (number, place) in plan.iter().enumerate() {
            match place.and_then(|place| self.fields.get(place)) {
                Some(field) => field.decode(bytes, from)?,
                None => from.skip_field(&self.name, number)?,
            }
        }
        Ok(())
    }

    fn differs(&self, bytes: &[u8], other: &[u8]) -> bool {
        self.fields.iter().any(|field| field.differs(bytes, other))
    }

    /// As a marked struct does it: the fields that changed by their numbers, and a zero.
    fn diff(&self, bytes: &[u8], before: &[u8], diff: &mut Diff<'_>) {
        for (number, field) in self.fields.iter().enumerate() {
            if !field.differs(bytes, before) {
                continue;
            }
            diff.redo.number(number as u64 + 1);
            diff.undo.number(number as u64 + 1);
            match &field.kind {
                Kind::Record(of) if field.count.is_none() => {
                    of.diff(&bytes[field.range()], &before[field.range()], diff);
                }
                _ => {
                    field.encode(bytes, diff.redo);
                    field.encode(before, diff.undo);
                }
            }
        }
        diff.end();
    }

    fn patch(&self, bytes: &mut [u8], from: &mut Reader<'_>) -> Result<(), WireError> {
        while let Some(number) = from.changed_field()? {
            let place = match from.plan(&self.name) {
                None => Some(number),
                Some(plan) => plan.get(number).copied().flatten(),
            };
            let Some(field) = place.and_then(|place| self.fields.get(place)) else {
                from.skip_patch(&self.name, number)?;
                continue;
            };
            match &field.kind {
                Kind::Record(of) if field.count.is_none() => of.patch(&mut bytes[field.range()], from)?,
                _ => field.decode(bytes, from)?,
            }
        }
        Ok(())
    }
}

/// A struct in memory that is aligned for whatever it may hold, and does not move.
#[derive(Debug)]
pub struct Record {
    of: Arc<RecordType>,
    /// With room to begin at an aligned address.
    memory: Box<[u8]>,
    start: usize,
}

impl Record {
    /// All zero.
    pub fn new(of: &Arc<RecordType>) -> Self {
        let memory = vec![0; of.size + ALIGNMENT].into_boxed_slice();
        // Never further than the room that was left for it.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { of: Arc::clone(of), memory, start }
    }

    /// A copy of the memory of a struct; `None` if it is not as long as the type says.
    pub fn of_memory(of: &Arc<RecordType>, bytes: &[u8]) -> Option<Self> {
        let mut record = Self::new(of);
        record.set(bytes).then_some(record)
    }

    /// Takes the memory of a struct over; `false` if it is not as long as the type says.
    pub fn set(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() == self.of.size;
        if fits {
            self.bytes_mut().copy_from_slice(bytes);
        }
        fits
    }

    /// Its memory, aligned to 16 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.of.size]
    }

    /// The same, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.of.size]
    }

    pub(super) fn shadow(&self) -> Box<[u8]> {
        self.bytes().into()
    }

    pub(super) fn differs(&self, shadow: &[u8]) -> bool {
        self.of.differs(self.bytes(), shadow)
    }

    pub(super) fn diff(&self, shadow: &[u8], diff: &mut Diff<'_>) {
        self.of.diff(self.bytes(), shadow, diff);
    }

    pub(super) fn encode(&self, to: &mut Writer) {
        self.of.encode(self.bytes(), to);
    }

    pub(super) fn decode(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let of = Arc::clone(&self.of);
        of.decode(self.bytes_mut(), from)
    }

    pub(super) fn patch(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let of = Arc::clone(&self.of);
        of.patch(self.bytes_mut(), from)
    }
}

impl Body for Record {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.patch(from)
    }

    fn encode_content(&self, to: &mut Writer) {
        self.encode(to);
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.decode(from)
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}
