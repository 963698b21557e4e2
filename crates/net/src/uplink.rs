//! What of a node workloads reach the network through.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An interface of a node, and how workloads get to the network through it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uplink {
    /// A bridge, of which each gets a port.
    Bridge(String),
    /// An interface that is in no bridge: each gets a macvtap device on it. The node itself does not reach its workloads then,
    /// nor they it: the interface hands frames to the wire or to its macvtap devices, not to the node.
    Macvtap(String),
}

impl Uplink {
    pub fn bridge(name: impl Into<String>) -> Uplink {
        Uplink::Bridge(name.into())
    }

    pub fn macvtap(name: impl Into<String>) -> Uplink {
        Uplink::Macvtap(name.into())
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        match self {
            Uplink::Bridge(name) | Uplink::Macvtap(name) => name,
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uplink::Bridge(name) => write!(f, "bridge `{name}`"),
            Uplink::Macvtap(name) => write!(f, "interface `{name}`"),
        }
    }
}
