//! The corpus: which packages, how each is built, started and put under load, and how its fixes are seen.

mod dnsmasq;
mod haproxy;
mod libevent;
mod memcached;
mod mosquitto;
mod nginx;
pub mod redis;
mod sqlite;
mod unbound;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::load::Kind;
use super::probe::{Probe, Step};

/// A source package of the distribution, and the program in it that runs.
pub struct Package {
    pub name: &'static str,
    /// Packages that its build needs.
    pub needs: &'static [&'static str],
    /// Run once in its tree, by the shell; the recorder's compilers are in `PATH`.
    pub configure: &'static str,
    /// Run for every build, by the shell.
    pub build: &'static str,
    /// What the build links: removed before a record, so that it is linked under it.
    pub links: &'static [&'static str],
    pub load: Kind,
    pub start: fn(&Place) -> Result<Command>,
    pub variants: &'static [Variant],
    pub probes: &'static [Probe],
    /// Why no probe shows a fix.
    pub unseen: &'static [(&'static str, &'static str)],
}

/// How a program is started for one fix, where that fix is of what it does not do otherwise.
pub struct Variant {
    pub patch: &'static str,
    pub arguments: &'static [&'static str],
    /// What it is told before there is any load.
    pub prepare: &'static [Step],
}

/// Where one run of a program is: its folder, with the linked files in it, and its port.
pub struct Place {
    pub folder: PathBuf,
    pub port: u16,
    /// Others that it may listen on.
    pub others: [u16; 4],
    /// A server for a proxy to lead to.
    pub backend: u16,
    /// What a probe listens on, by connections and datagrams.
    pub peer: u16,
}

impl Place {
    /// The file that a build linked under this name.
    fn linked(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub const PACKAGES: [Package; 9] = [
    redis::PACKAGE,
    memcached::PACKAGE,
    haproxy::PACKAGE,
    mosquitto::PACKAGE,
    nginx::PACKAGE,
    dnsmasq::PACKAGE,
    unbound::PACKAGE,
    libevent::PACKAGE,
    sqlite::PACKAGE,
];
