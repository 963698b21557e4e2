//! Hosts made of network namespaces on one machine, with faults; the demo, the tests and the benchmarks all use it.
//!
//! ```text
//!   host a                    host b                    client
//!   br0 10.77.0.1             br0 10.77.0.2             uplink 10.77.0.3
//!    | \_ workloads' ports     | \_ workloads' ports     |
//!   uplink                    uplink                     |
//!      \________ port0 ______ sw0 ______ port1 ________/
//! ```
//!
//! Nothing of a lab is connected to the machine's own network, so every lab has the same addresses and any number of
//! them run side by side.
//!
//! Invariant: nothing outlives the process that made a lab but its folders and empty control groups, however that
//! process ends; [`Lab::sweep`], which [`Lab::new`] calls, removes those.
//! Invariant: this crate knows nothing of the engines; what it runs on hosts are programs.

mod bpf;
mod cgroup;
pub mod client;
pub mod cluster;
mod error;
mod faults;
mod host;
mod netns;
pub mod objects;
pub mod pattern;
mod process;
pub mod scenario;
pub mod services;
pub mod streams;
mod sweep;
mod switch;
mod sys;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use error::{LabError, Result};
pub use faults::Direction;
pub use host::Host;
pub use netns::NetNs;
pub use process::HostProcess;
pub use switch::UPLINK;

use error::Attempt;
use host::Wiring;
use switch::Switch;

/// Every lab's network, of which hosts get the addresses from .1 on, and workloads those from .129 on.
const NETWORK: [u8; 3] = [10, 77, 0];
const SUBNET: &str = "10.77.0.0/24";
/// The length of its prefix.
pub const PREFIX: u8 = 24;
const FIRST_WORKLOAD: u32 = 129;
const LAST_ADDRESS: u32 = 254;

/// Keep a lab's folder, with the output of all its programs, when the lab goes: for reading it afterwards.
const KEEP: &str = "OUTLIVE_LAB_KEEP";

/// Several hosts, a switch between them, and the faults of both.
pub struct Lab {
    name: String,
    switch: Arc<Switch>,
    hosts: Mutex<Vec<Host>>,
    workloads: AtomicU32,
}

impl Lab {
    /// A lab without hosts. The hint becomes part of its name.
    pub fn new(hint: &str) -> Result<Lab> {
        static LABS_MADE: AtomicU32 = AtomicU32::new(0);
        let uid = nix::unistd::geteuid();
        if !uid.is_root() {
            return Err(LabError::NotRoot(uid.as_raw()));
        }
        Lab::sweep()?;
        let hint: String = hint.chars().filter(char::is_ascii_alphanumeric).collect();
        let number = LABS_MADE.fetch_add(1, Ordering::Relaxed);
        // The sweep reads the pid from here.
        let name = format!("{hint}-{}-{number}", std::process::id());
        sweep::claim(&name)?;
        let hosts = Mutex::new(Vec::new());
        let workloads = AtomicU32::new(FIRST_WORKLOAD);
        match Switch::new() {
            Ok(switch) => Ok(Lab { name, switch: Arc::new(switch), hosts, workloads }),
            Err(error) => {
                let _ = sweep::remove(&name);
                Err(error)
            }
        }
    }

    /// Removes what labs whose owner is dead have left behind; returns their names.
    pub fn sweep() -> Result<Vec<String>> {
        sweep::sweep()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the lab's hosts have their disks.
    pub fn folder(&self) -> PathBuf {
        sweep::lab_folder(&self.name)
    }

    /// A new machine, powered on, whose address is on a bridge `br0` for workloads to be attached to.
    pub fn host(&self, name: &str) -> Result<Host> {
        self.add(name, Wiring::Bridge)
    }

    /// A new machine for clients, powered on, with its address on its uplink. Clients run in it as threads of this
    /// process, see [`NetNs::enter`], or as programs, see [`Host::spawn`].
    pub fn client(&self, name: &str) -> Result<Host> {
        self.add(name, Wiring::Plain)
    }

    /// An address of the lab's network that nobody has, for a workload.
    pub fn free_address(&self) -> Result<Ipv4Addr> {
        let last = self.workloads.fetch_add(1, Ordering::Relaxed);
        address(last).filter(|_| last <= LAST_ADDRESS).ok_or(LabError::NoAddress { subnet: SUBNET })
    }

    /// A folder that every host has, and workloads see too. It goes with the lab.
    pub fn installed(&self) -> Result<PathBuf> {
        let folder = sweep::installed_folder(&self.name);
        fs::create_dir_all(&folder).attempt(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }

    /// Copies a program to where every host has it, and workloads see it too: neither under /tmp nor /run, of which
    /// they have their own. Returns its path there, which goes with the lab.
    pub fn install(&self, program: &Path) -> Result<PathBuf> {
        let folder = self.installed()?;
        let installed = folder.join(program.file_name().unwrap_or_default());
        fs::copy(program, &installed)
            .attempt(|| format!("copy {} to {}", program.display(), installed.display()))?;
        Ok(installed)
    }

    pub fn hosts(&self) -> Vec<Host> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The switch's network namespace: a place from which all frames can be watched.
    pub fn switch_netns(&self) -> &NetNs {
        self.switch.namespace()
    }

    pub(crate) fn switch(&self) -> &Switch {
        &self.switch
    }

    fn add(&self, name: &str, wiring: Wiring) -> Result<Host> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 12 || !name.chars().all(fits) {
            return Err(LabError::BadName(name.to_owned()));
        }
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.iter().any(|host| host.name() == name) {
            return Err(LabError::Duplicate(name.to_owned()));
        }
        let last = hosts.len() as u32 + 1;
        let address =
            address(last).filter(|_| last < FIRST_WORKLOAD).ok_or(LabError::NoAddress { subnet: SUBNET })?;
        let host = Host::new(&self.name, name, address, wiring, Arc::clone(&self.switch))?;
        hosts.push(host.clone());
        Ok(host)
    }
}

fn address(last: u32) -> Option<Ipv4Addr> {
    let [a, b, c] = NETWORK;
    Some(Ipv4Addr::new(a, b, c, u8::try_from(last).ok()?))
}

impl Drop for Lab {
    fn drop(&mut self) {
        let hosts = std::mem::take(&mut *self.hosts.lock().unwrap_or_else(PoisonError::into_inner));
        if std::thread::panicking() {
            for host in &hosts {
                eprint!("{}", host.tails());
            }
        }
        for host in hosts.iter().filter(|host| host.is_on()) {
            if let Err(error) = host.power_off() {
                eprintln!("lab {}: {error}", self.name);
            }
        }
        drop(hosts);
        if std::env::var_os(KEEP).is_some() {
            let _ = sweep::remove_installed(&self.name);
            eprintln!("lab {} keeps {}", self.name, self.folder().display());
        } else if let Err(error) = sweep::remove(&self.name) {
            eprintln!("lab {}: {error}", self.name);
        }
    }
}
