//! What can lie in replicated state: plain values, compared and shipped field by field.

use std::time::Duration;

use crate::schema::{Shape, Types};
use crate::wire::{Reader, WireError, Writer, unzigzag, zigzag};

/// A value that can be replicated. Marked structs and enums implement it by `#[replicated]`; nobody else needs to.
///
/// A write guard takes a [`shadow`](Self::shadow) when it begins and a [`diff`](Self::diff) when it ends, so that
/// every change made through the guard is found, however it was made.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be replicated",
    label = "not replicated state",
    note = "mark your own types with `#[replicated]`; use `Map`, `OrderedMap`, `List`, `Deque`, `Set`, `Counter`, `Text` and `Bytes` for collections",
    note = "a reference or `Rc` becomes a `Ref<T>`, what a function opened a `Handle<T>`, and what each side has on its own a `#[local]` field"
)]
pub trait Value: Sized + Send + Sync + 'static {
    /// What a write guard remembers of the value, to find what changed.
    type Shadow: Send + 'static;

    /// How it lies on the wire.
    fn shape() -> Shape;

    /// The name of the type, the same in every build.
    fn name() -> String;

    /// Makes the types known that it is made of.
    fn describe(_types: &mut Types) {}

    /// Writes all of it.
    fn encode(&self, to: &mut Writer);

    /// Reads what [`encode`](Self::encode) wrote.
    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError>;

    /// What is needed to find and to undo a change.
    fn shadow(&self) -> Self::Shadow;

    /// Writes a shadow as [`encode`](Self::encode) would have written the value.
    fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer);

    /// Whether it is no longer what it was.
    fn differs(&self, shadow: &Self::Shadow) -> bool;

    /// Writes what changed, and what undoes it. Only asked of values that [differ](Self::differs).
    fn diff(&self, shadow: &Self::Shadow, diff: &mut Diff<'_>) {
        self.encode(diff.redo);
        Self::encode_shadow(shadow, diff.undo);
    }

    /// Takes over what [`diff`](Self::diff) wrote.
    fn patch(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        *self = Self::decode(from)?;
        Ok(())
    }

    /// Shows the ids of all objects that a `Ref` in it leads to.
    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

/// Where a change and its undoing are written to.
pub struct Diff<'a> {
    /// What the backup is to do.
    pub redo: &'a mut Writer,
    /// What takes it back.
    pub undo: &'a mut Writer,
}

impl Diff<'_> {
    /// One changed field, by its number.
    #[inline]
    pub fn field<V: Value>(&mut self, number: u64, value: &V, shadow: &V::Shadow) {
        if value.differs(shadow) {
            self.redo.number(number + 1);
            self.undo.number(number + 1);
            value.diff(shadow, &mut Diff { redo: self.redo, undo: self.undo });
        }
    }

    /// No further field changed.
    #[inline]
    pub fn end(&mut self) {
        self.redo.byte(0);
        self.undo.byte(0);
    }
}

/// A type whose shadow is a copy of it.
macro_rules! leaf {
    ($type:ty, $shape:expr, |$value:ident, $to:ident| $encode:expr, |$from:ident| $decode:expr, $same:expr) => {
        impl Value for $type {
            type Shadow = $type;
            fn shape() -> Shape {
                $shape
            }
            fn name() -> String {
                stringify!($type).to_owned()
            }
            #[inline]
            fn encode(&self, $to: &mut Writer) {
                let $value = self;
                $encode
            }
            #[inline]
            fn decode($from: &mut Reader<'_>) -> Result<Self, WireError> {
                $decode
            }
            #[inline]
            fn shadow(&self) -> Self {
                self.clone()
            }
            #[inline]
            fn encode_shadow(shadow: &Self, to: &mut Writer) {
                shadow.encode(to);
            }
            #[inline]
            fn differs(&self, shadow: &Self) -> bool {
                !$same(self, shadow)
            }
        }
    };
}

macro_rules! unsigned {
    ($($type:ty),*) => {$(
        leaf!($type, Shape::Number, |value, to| to.wide(u128::from(*value)),
            |from| <$type>::try_from(from.wide()?).map_err(|_| WireError::NotA(stringify!($type))),
            |a: &$type, b: &$type| a == b);
    )*};
}

macro_rules! signed {
    ($($type:ty),*) => {$(
        leaf!($type, Shape::Number, |value, to| to.wide(zigzag(i128::from(*value))),
            |from| <$type>::try_from(unzigzag(from.wide()?)).map_err(|_| WireError::NotA(stringify!($type))),
            |a: &$type, b: &$type| a == b);
    )*};
}

unsigned!(u8, u16, u32, u128);
signed!(i8, i16, i32, i64, i128);

leaf!(u64, Shape::Number, |value, to| to.number(*value), |from| from.number(), |a: &u64, b: &u64| a == b);
leaf!(
    usize,
    Shape::Number,
    |value, to| to.number(*value as u64),
    |from| usize::try_from(from.number()?).map_err(|_| WireError::NotA("usize")),
    |a: &usize, b: &usize| a == b
);
leaf!(
    isize,
    Shape::Number,
    |value, to| to.wide(zigzag(*value as i128)),
    |from| isize::try_from(unzigzag(from.wide()?)).map_err(|_| WireError::NotA("isize")),
    |a: &isize, b: &isize| a == b
);
leaf!(
    bool,
    Shape::Number,
    |value, to| to.byte(u8::from(*value)),
    |from| match from.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::NotA("bool")),
    },
    |a: &bool, b: &bool| a == b
);
leaf!(
    char,
    Shape::Number,
    |value, to| to.number(u64::from(u32::from(*value))),
    |from| u32::try_from(from.number()?).ok().and_then(char::from_u32).ok_or(WireError::NotA("char")),
    |a: &char, b: &char| a == b
);
// By their bits: a NaN that stays is no change, and 0.0 that becomes -0.0 is one.
leaf!(
    f32,
    Shape::Fixed(4),
    |value, to| to.raw(&value.to_bits().to_le_bytes()),
    |from| from.raw(4)?.try_into().map(f32::from_le_bytes).map_err(|_| WireError::Truncated),
    |a: &f32, b: &f32| a.to_bits() == b.to_bits()
);
leaf!(
    f64,
    Shape::Fixed(8),
    |value, to| to.raw(&value.to_bits().to_le_bytes()),
    |from| from.raw(8)?.try_into().map(f64::from_le_bytes).map_err(|_| WireError::Truncated),
    |a: &f64, b: &f64| a.to_bits() == b.to_bits()
);
leaf!(
    String,
    Shape::Sized,
    |value, to| to.sized(value.as_bytes()),
    |from| Ok(std::str::from_utf8(from.sized()?).map_err(|_| WireError::NotA("UTF-8 text"))?.to_owned()),
    |a: &String, b: &String| a == b
);
leaf!(
    Duration,
    Shape::Tuple(vec![Shape::Number, Shape::Number]),
    |value, to| {
        to.number(value.as_secs());
        to.number(u64::from(value.subsec_nanos()));
    },
    |from| {
        let (seconds, nanos) = (from.number()?, from.number()?);
        let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        Ok(Duration::new(seconds, nanos.ok_or(WireError::NotA("duration"))?))
    },
    |a: &Duration, b: &Duration| a == b
);

impl<T: Value> Value for Option<T> {
    type Shadow = Option<T::Shadow>;

    fn shape() -> Shape {
        Shape::Choice(Box::new(T::shape()))
    }

    fn name() -> String {
        format!("Option<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }

    fn encode(&self, to: &mut Writer) {
        to.byte(u8::from(self.is_some()));
        if let Some(value) = self {
            value.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        match from.byte()? {
            0 => Ok(None),
            1 => Ok(Some(T::decode(from)?)),
            _ => Err(WireError::NotA("option")),
        }
    }

    fn shadow(&self) -> Self::Shadow {
        self.as_ref().map(T::shadow)
    }

    fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer) {
        to.byte(u8::from(shadow.is_some()));
        if let Some(shadow) = shadow {
            T::encode_shadow(shadow, to);
        }
    }

    fn differs(&self, shadow: &Self::Shadow) -> bool {
        match (self, shadow) {
            (Some(value), Some(shadow)) => value.differs(shadow),
            (None, None) => false,
            _ => true,
        }
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        if let Some(value) = self {
            value.trace(visit);
        }
    }
}

impl<T: Value> Value for Box<T> {
    type Shadow = T::Shadow;

    fn shape() -> Shape {
        T::shape()
    }

    fn name() -> String {
        T::name()
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }

    fn encode(&self, to: &mut Writer) {
        T::encode(self, to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self::new(T::decode(from)?))
    }

    fn shadow(&self) -> Self::Shadow {
        T::shadow(self)
    }

    fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer) {
        T::encode_shadow(shadow, to);
    }

    fn differs(&self, shadow: &Self::Shadow) -> bool {
        T::differs(self, shadow)
    }

    fn diff(&self, shadow: &Self::Shadow, diff: &mut Diff<'_>) {
        T::diff(self, shadow, diff);
    }

    fn patch(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        T::patch(self, from)
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        T::trace(self, visit);
    }
}

/// A short list that is shipped whole when it changes; use [`List`](crate::List) for one that grows.
impl<T: Value> Value for Vec<T> {
    type Shadow = Vec<T::Shadow>;

    fn shape() -> Shape {
        Shape::Sequence(Box::new(T::shape()))
    }

    fn name() -> String {
        format!("Vec<{}>", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }

    fn encode(&self, to: &mut Writer) {
        to.number(self.len() as u64);
        for value in self {
            value.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let length = from.length()?;
        // Elements may be larger here than on the wire: memory is taken as they come.
        let mut values = Vec::with_capacity(length.min(1024));
        for _ in 0..length {
            values.push(T::decode(from)?);
        }
        Ok(values)
    }

    fn shadow(&self) -> Self::Shadow {
        self.iter().map(T::shadow).collect()
    }

    fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer) {
        to.number(shadow.len() as u64);
        for value in shadow {
            T::encode_shadow(value, to);
        }
    }

    fn differs(&self, shadow: &Self::Shadow) -> bool {
        self.len() != shadow.len() || self.iter().zip(shadow).any(|(value, shadow)| value.differs(shadow))
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        for value in self {
            value.trace(visit);
        }
    }
}

impl<T: Value, const N: usize> Value for [T; N] {
    type Shadow = Vec<T::Shadow>;

    fn shape() -> Shape {
        Shape::Tuple(vec![T::shape(); N])
    }

    fn name() -> String {
        format!("[{}; {N}]", T::name())
    }

    fn describe(types: &mut Types) {
        T::describe(types);
    }

    fn encode(&self, to: &mut Writer) {
        for value in self {
            value.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut values = Vec::with_capacity(N);
        for _ in 0..N {
            values.push(T::decode(from)?);
        }
        values.try_into().map_err(|_| WireError::Truncated)
    }

    fn shadow(&self) -> Self::Shadow {
        self.iter().map(T::shadow).collect()
    }

    fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer) {
        for value in shadow {
            T::encode_shadow(value, to);
        }
    }

    fn differs(&self, shadow: &Self::Shadow) -> bool {
        self.iter().zip(shadow).any(|(value, shadow)| value.differs(shadow))
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        for value in self {
            value.trace(visit);
        }
    }
}

macro_rules! tuple {
    ($($name:ident $place:tt),*) => {
        impl<$($name: Value),*> Value for ($($name,)*) {
            type Shadow = ($($name::Shadow,)*);
            fn shape() -> Shape {
                Shape::Tuple(vec![$($name::shape()),*])
            }
            fn name() -> String {
                format!("({})", [$($name::name()),*].join(", "))
            }
            fn describe(types: &mut Types) {
                $($name::describe(types);)*
            }
            fn encode(&self, to: &mut Writer) {
                $(self.$place.encode(to);)*
            }
            fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(($($name::decode(from)?,)*))
            }
            fn shadow(&self) -> Self::Shadow {
                ($(self.$place.shadow(),)*)
            }
            fn encode_shadow(shadow: &Self::Shadow, to: &mut Writer) {
                $($name::encode_shadow(&shadow.$place, to);)*
            }
            fn differs(&self, shadow: &Self::Shadow) -> bool {
                $(self.$place.differs(&shadow.$place))||*
            }
            fn trace(&self, visit: &mut dyn FnMut(u64)) {
                $(self.$place.trace(visit);)*
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
