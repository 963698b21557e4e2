//! Names that people give: of nodes and of workloads.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: a host name's limit on Linux (`HOST_NAME_MAX`, gethostname(2)).
pub const MAX_NAME_BYTES: usize = 64;

/// A text that cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be a name: use 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.'")]
pub struct NameError {
    text: String,
}

fn check(text: &str) -> Result<(), NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > MAX_NAME_BYTES || !text.bytes().all(allowed) {
        return Err(NameError { text: text.chars().take(MAX_NAME_BYTES).collect() });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A host that runs an agent, as its certificate names it.
    NodeName
}

name! {
    /// One protected process tree, as its user names it.
    WorkloadName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold() {
        assert!("a".repeat(MAX_NAME_BYTES).parse::<NodeName>().is_ok());
        for text in ["", "a b", "a/b", "ä", &"a".repeat(MAX_NAME_BYTES + 1)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?} was taken");
        }
    }
}
