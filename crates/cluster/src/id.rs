//! Random identities: what must never be mistaken for another of its kind, even after a restart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an identity: write its 32 hexadecimal digits as they were shown")]
pub struct IdError {
    text: String,
}

/// Defines a 128-bit random identity, shown as 32 hexadecimal digits: to people and to text formats as text, on
/// the wire as a number.
macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// A new one, from the operating system's random numbers: two never meet (2^-64 after 2^32 of them).
            pub fn random() -> Self {
                Self(rand::random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let number = if is_hex { u128::from_str_radix(text, 16).ok() } else { None };
                number.map(Self).ok_or_else(|| IdError { text: text.chars().take(40).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u128(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

identity! {
    /// One life of a supervisor for a workload, held only in memory: a restarted agent is a new one, so that it is
    /// never mistaken for the one that held the state.
    Incarnation
}

identity! {
    /// One cluster, made up when it is bootstrapped: messages of another are refused.
    ClusterId
}

identity! {
    /// One attempt to change, read or learn something: never used twice, which is what makes its ballots unique,
    /// and how an answer finds its way back to who asked.
    Attempt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_comes_back() {
        let incarnation = Incarnation(0xbeef);
        assert_eq!(incarnation.to_string(), "0000000000000000000000000000beef");
        assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "beef", "+000000000000000000000000000beef", "0000000000000000000000000000beeg"] {
            assert!(text.parse::<Incarnation>().is_err(), "{text:?} was taken");
        }
    }
}
