//! Descriptors of the namespaces that the workload is in (`/proc/PID/ns/…`, namespaces(7)), which it has from its beginning. It
//! has no others: those that a program makes are refused. So are those of time: a takeover makes a new one, after all descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::descriptor::At;
use crate::error::{Attempt, Result};
use crate::sys::proc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Namespace {
    Cgroup,
    Ipc,
    Mount,
    Network,
    Pid,
    User,
    Uts,
}

impl Namespace {
    const ALL: [Self; 7] =
        [Self::Cgroup, Self::Ipc, Self::Mount, Self::Network, Self::Pid, Self::User, Self::Uts];

    /// As the kernel names it, below `ns` and in links.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }

    /// Of a link `net:[4026531840]`.
    pub(super) fn of_link(link: &str) -> Option<Self> {
        let (name, _) = link.split_once(":[")?;
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Whether a descriptor with this link is of the one that the workload is in.
    pub(super) fn is_own(self, link: &str, at: &At<'_>) -> bool {
        let own = std::fs::read_link(proc::path(at.holder.root, &format!("ns/{}", self.name())));
        own.is_ok_and(|own| own.as_os_str() == link)
    }

    /// By what the workload's own `/proc` says of its first process.
    pub(super) fn build(self, root: &Path) -> Result<OwnedFd> {
        let path = root.join("proc/1/ns").join(self.name());
        let file = File::open(path).attempt(|| format!("open the workload's {} namespace", self.name()))?;
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_name_namespaces() {
        assert_eq!(Namespace::of_link("net:[4026531840]"), Some(Namespace::Network));
        assert_eq!(Namespace::of_link("mnt:[1]"), Some(Namespace::Mount));
        for other in ["socket:[7]", "pipe:[7]", "/net:[7]", "net", ""] {
            assert_eq!(Namespace::of_link(other), None, "{other}");
        }
    }
}
