//! The seed nodes of a cluster: who has a vote.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, NodeName};

/// The most seed nodes a cluster may have. Every vote is a synchronous write on a majority of them, and five
/// already survive two failures at once; nine leaves room for changing them one at a time.
pub const MAX_SEEDS: usize = 9;

/// A set of nodes that cannot be a cluster's seed nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedsError {
    #[error("a cluster needs 1 to {MAX_SEEDS} seed nodes, but {0} were named")]
    Count(usize),
    #[error("seed node {0} is named twice: name every seed node once")]
    Twice(NodeName),
}

/// The nodes with a vote in arbitration, and of which cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Seeds {
    cluster: ClusterId,
    version: u64,
    members: Vec<NodeName>,
}

#[derive(Deserialize)]
struct Unchecked {
    cluster: ClusterId,
    version: u64,
    members: Vec<NodeName>,
}

impl TryFrom<Unchecked> for Seeds {
    type Error = SeedsError;

    fn try_from(seeds: Unchecked) -> Result<Self, SeedsError> {
        Self::new(seeds.cluster, seeds.version, seeds.members)
    }
}

impl Seeds {
    /// The seed nodes of `cluster`; `version` grows with every change of them.
    pub fn new(cluster: ClusterId, version: u64, mut members: Vec<NodeName>) -> Result<Self, SeedsError> {
        if members.is_empty() || members.len() > MAX_SEEDS {
            return Err(SeedsError::Count(members.len()));
        }
        // One order everywhere: a vote names its seeds by their place in it.
        members.sort();
        if let Some(pair) = members.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(SeedsError::Twice(pair[0].clone()));
        }
        Ok(Self { cluster, version, members })
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// In the one order that all nodes agree on.
    pub fn members(&self) -> &[NodeName] {
        &self.members
    }

    /// How many votes decide.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    pub(crate) fn place(&self, node: &NodeName) -> Option<usize> {
        self.members.binary_search(node).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<NodeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn order_does_not_matter() {
        let one = Seeds::new(ClusterId(1), 1, names(&["b", "a", "c"])).unwrap();
        assert_eq!(one, Seeds::new(ClusterId(1), 1, names(&["c", "b", "a"])).unwrap());
        assert_eq!(one.majority(), 2);
    }

    #[test]
    fn a_seed_named_twice_would_vote_twice() {
        assert!(matches!(Seeds::new(ClusterId(1), 1, names(&["a", "b", "a"])), Err(SeedsError::Twice(_))));
        assert_eq!(Seeds::new(ClusterId(1), 1, vec![]), Err(SeedsError::Count(0)));
    }
}
