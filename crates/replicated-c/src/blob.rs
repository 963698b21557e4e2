//! Bytes as a value of the library of Rust: keys, and arguments of functions.

use outlive_replicated::__private::{Reader, Shape, Writer};
use outlive_replicated::{Value, WireError};

/// Bytes that are shipped as they are, with their length.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Box<[u8]>);

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl std::borrow::Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Value for Blob {
    type Shadow = Self;

    fn shape() -> Shape {
        Shape::Sized
    }

    fn name() -> String {
        "bytes".into()
    }

    fn encode(&self, to: &mut Writer) {
        to.sized(&self.0);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self(from.sized()?.into()))
    }

    fn shadow(&self) -> Self {
        self.clone()
    }

    fn encode_shadow(shadow: &Self, to: &mut Writer) {
        shadow.encode(to);
    }

    fn differs(&self, shadow: &Self) -> bool {
        self != shadow
    }
}
