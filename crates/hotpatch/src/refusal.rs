//! Why a change cannot be patched safely, by kind, so that a user can take responsibility for one (`--allow KIND`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kinds of what is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A type's fields moved: objects that exist have the old layout.
    Layout,
    /// Initialised data changed: the running program has written to it, or holds pointers into it.
    Data,
    /// A new thread-local variable: existing threads have no room for it.
    ThreadLocal,
    /// A thread-local variable reached in a way that only the dynamic linker can set up.
    ThreadLocalModel,
    /// A function without the five bytes at its entry that can be switched.
    Entry,
    /// Labels of inline assembly within a function: something else may jump to them.
    AssemblyLabel,
    /// A function that is chosen when the program starts.
    Ifunc,
    /// A function is called in another way than before, and its address is held by data.
    Signature,
    /// What runs before `main` or at exit changed: it has run already, or its table has been read.
    Constructor,
    /// A static variable of a function cannot be told from another of its name.
    StaticLocal,
    /// Something that the object or its relocations say, and this builder does not know.
    Unsupported,
}

/// All of them, for whoever parses or lists their names.
pub const KINDS: [Kind; 11] = [
    Kind::Layout,
    Kind::Data,
    Kind::ThreadLocal,
    Kind::ThreadLocalModel,
    Kind::Entry,
    Kind::AssemblyLabel,
    Kind::Ifunc,
    Kind::Signature,
    Kind::Constructor,
    Kind::StaticLocal,
    Kind::Unsupported,
];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Layout => "layout",
            Self::Data => "data",
            Self::ThreadLocal => "thread-local",
            Self::ThreadLocalModel => "thread-local-model",
            Self::Entry => "entry",
            Self::AssemblyLabel => "assembly-label",
            Self::Ifunc => "ifunc",
            Self::Signature => "signature",
            Self::Constructor => "constructor",
            Self::StaticLocal => "static-local",
            Self::Unsupported => "unsupported",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a patch can be made at all when the user takes responsibility: without an entry to switch, or an
    /// address to refer to, there is nothing to make.
    pub fn can_be_allowed(self) -> bool {
        matches!(self, Self::Layout | Self::Data | Self::AssemblyLabel | Self::Signature | Self::Constructor)
    }
}

/// One reason: of what kind, about which function, variable or type, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refusal {
    pub kind: Kind,
    pub about: String,
    pub why: String,
}

impl Refusal {
    pub fn new(kind: Kind, about: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind, about: about.into(), why: why.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}: {}", self.kind.name(), self.about, self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        for kind in KINDS {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
        }
        assert_eq!(Kind::parse("everything"), None);
    }
}
