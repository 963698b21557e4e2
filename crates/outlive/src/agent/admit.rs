//! Whether a workload can run on this node: what a user asks for is resolved and checked here, and what another node
//! asks to be hosted is checked by the same rules.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Uid, User};
use outlive_cluster::WorkloadName;
use outlive_epoch::setup::Workload;
use outlive_net::{Mac, NetworkConfig, Port, PortError};
use outlive_process::launch::{PRIVATE_DIRECTORIES, Program};

use crate::capabilities::{self, Held, NEEDED};
use crate::config::Config;
use crate::control::Wanted;
use crate::error::{Context, Failure, Kind, Result, chain};

/// Where programs are looked for, and the workload's own `PATH` unless it is given one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directories that belong to the kernel.
const NOT_SCRATCH: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Bounds on what another node may send: far beyond any command line in use, and far below what hurts.
const STRINGS_MAX: usize = 4096;
const BYTES_MAX: usize = 1 << 20;
const ADDRESSES_MAX: usize = 64;
/// Below this, logs and votes fail soon.
const STATE_SPACE: u64 = 16 << 20;
/// How long to wait for whoever has an address: three questions, 100 ms apart. Neighbours answer in microseconds;
/// RFC 5227 waits longer for hosts that are just starting, which `run` does not.
const IN_USE_PATIENCE: Duration = Duration::from_millis(300);

/// A workload's name: it is also a directory's and a host's.
pub fn name(text: &str) -> Result<WorkloadName> {
    let name: WorkloadName = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    if text.starts_with(['.', '-']) {
        return Err(Failure::usage(format!(
            "{text:?} cannot be a workload's name: begin it with a letter or digit"
        )));
    }
    Ok(name)
}

/// What the user asked for, made definite: nothing in the result depends on this node any more.
pub fn resolve(config: &Config, wanted: Wanted) -> Result<Workload> {
    let name = name(&wanted.name)?.to_string();
    let mut network = NetworkConfig::new(&name, wanted.addresses);
    // Clusters may share a network; their workloads' names may be the same.
    network.mac = wanted.mac.unwrap_or_else(|| Mac::derive(&format!("{}/{name}", config.cluster)));
    (network.mtu, network.routes) = (wanted.mtu, wanted.routes);
    if let Some(backup) = &wanted.backup {
        check_backup_node(config, backup)?;
    }
    let asked = Asked {
        command: wanted.command,
        environment: wanted.environment,
        directory: wanted.directory,
        scratch: wanted.scratch,
        user: wanted.user,
    };
    let program = program(&name, asked)?;
    Ok(Workload { name, program, network, when_exposed: wanted.when_exposed, backup: wanted.backup })
}

/// A program as a user names it.
pub struct Asked {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub directory: PathBuf,
    pub scratch: Vec<PathBuf>,
    pub user: String,
}

/// With its full path, its user's number, and the variables that every workload has.
pub fn program(name: &str, wanted: Asked) -> Result<Program> {
    let user = find_user(&wanted.user)?;
    let mut environment = wanted.environment;
    for (key, default) in [("PATH", PATH), ("HOME", user.home.as_str())] {
        if !environment.iter().any(|(known, _)| known == key) {
            environment.push((key.to_owned(), default.to_owned()));
        }
    }
    let path = environment.iter().find(|(key, _)| key == "PATH").map_or(PATH, |(_, path)| path);
    let mut arguments = wanted.command;
    let Some(program) = arguments.first_mut() else {
        return Err(Failure::usage("no program was named: write it after `--`"));
    };
    *program = find_program(program, path, &wanted.directory)?;
    let scratch = wanted.scratch.iter().map(|path| text_of(path)).collect::<Result<_>>()?;
    Ok(Program {
        name: name.to_owned(),
        arguments,
        environment,
        directory: text_of(&wanted.directory)?,
        scratch,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    })
}

/// Whether this node can run the workload, now or after a failover.
pub fn check(config: &Config, workload: &Workload) -> Result<()> {
    let name = name(&workload.name)?;
    check_capabilities(&config.node)?;
    check_bounds(workload)?;
    if workload.network.name != workload.name || workload.program.name != workload.name {
        return Err(Failure::usage(format!("the parts of {name} have different names")));
    }
    workload.network.validate().map_err(|error| Failure::usage(error.to_string()))?;
    check_places(&config.node, &workload.program)?;
    Port::create(&config.uplink, workload.network.mtu)
        .map(drop)
        .map_err(|error| of_port(&config.node, &error))?;
    check_space(&config.state_dir)
}

/// Whether a program, and the directories it is given, can be used on this node.
pub fn check_places(node: &str, program: &Program) -> Result<()> {
    let scratch: Vec<&Path> = program.scratch.iter().map(Path::new).collect();
    scratch.iter().try_for_each(|directory| check_scratch(node, directory))?;
    check_directory(node, Path::new(&program.directory), &scratch)?;
    let path = program.arguments.first().map_or("", String::as_str);
    check_program(node, Path::new(path), &scratch)
}

/// Whether anyone on the network has one of the workload's addresses.
pub fn check_addresses(config: &Config, network: &NetworkConfig) -> Result<()> {
    let port = Port::create(&config.uplink, network.mtu).map_err(|error| of_port(&config.node, &error))?;
    port.attach_to_ask().map_err(|error| of_port(&config.node, &error))?;
    for net in &network.addresses {
        let address = net.addr();
        let in_use = outlive_net::probe_in_use(&port, address, IN_USE_PATIENCE)
            .map_err(|error| of_port(&config.node, &error))?;
        if let Some(mac) = in_use {
            return Err(Failure::refused(format!(
                "{address} is in use on this network, by {mac}: choose an address that is free"
            )));
        }
    }
    Ok(())
}

/// Some are needed at a failover only, when it is too late to say so.
fn check_capabilities(node: &str) -> Result<()> {
    let held = Held::read();
    match NEEDED.iter().find(|needed| !held.has(needed)) {
        None => Ok(()),
        Some(missing) => Err(Failure::failed(format!(
            "node {node}: its agent lacks {} ({}): {}; `outlive check` there shows what else is missing",
            missing.name,
            missing.purpose,
            capabilities::ADVICE
        ))),
    }
}

fn of_port(node: &str, error: &PortError) -> Failure {
    Failure::failed(format!("node {node}: {}", chain(error)))
}

fn check_backup_node(config: &Config, backup: &str) -> Result<()> {
    if config.peer(backup).is_some() {
        return Ok(());
    }
    let peers: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    let choice = if peers.is_empty() { "it has none: add [[peers]]".to_owned() } else { peers.join(", ") };
    Err(Failure::usage(format!("--backup {backup} is no peer of this node ({choice})")))
}

fn check_bounds(workload: &Workload) -> Result<()> {
    let program = &workload.program;
    let pairs = program.environment.iter().flat_map(|(key, value)| [key, value]);
    let strings: Vec<&String> =
        program.arguments.iter().chain(&program.scratch).chain([&program.directory]).chain(pairs).collect();
    if strings.iter().any(|text| text.contains('\0')) {
        return Err(Failure::usage(format!("{}: no text of a program may hold a zero byte", workload.name)));
    }
    let too_much = strings.len() > STRINGS_MAX
        || strings.iter().map(|text| text.len()).sum::<usize>() > BYTES_MAX
        || program.groups.len() > STRINGS_MAX
        || workload.network.addresses.len() > ADDRESSES_MAX
        || workload.network.routes.len() > ADDRESSES_MAX;
    if too_much {
        let message =
            format!("{}: its arguments, variables or addresses are beyond all bounds", workload.name);
        return Err(Failure::usage(message));
    }
    Ok(())
}

fn text_of(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{path:?} is no UTF-8 text: rename it")))
}

/// Absolute, and without a way back up.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn is_private(path: &Path) -> bool {
    PRIVATE_DIRECTORIES.iter().any(|private| path.starts_with(private))
}

fn check_scratch(node: &str, directory: &Path) -> Result<()> {
    let shown = directory.display();
    if !is_plain(directory) || directory == Path::new("/") {
        return Err(Failure::usage(format!(
            "--scratch {shown}: give an absolute path of a directory, without `..`"
        )));
    }
    if is_private(directory) {
        return Ok(());
    }
    if NOT_SCRATCH.iter().any(|kernel| directory.starts_with(kernel)) {
        return Err(Failure::usage(format!(
            "--scratch {shown}: this directory is the kernel's: use another one"
        )));
    }
    match fs::symlink_metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::usage(format!("--scratch {shown} is no directory on node {node}"))),
        Err(error) => Err(Failure::usage(format!(
            "--scratch {shown} cannot be used on node {node} ({error}): make it on every node"
        ))),
    }
}

/// Inside the workload, /tmp and the like begin empty, but for what is declared.
fn check_directory(node: &str, directory: &Path, scratch: &[&Path]) -> Result<()> {
    let shown = directory.display();
    if !is_plain(directory) {
        return Err(Failure::usage(format!("--cwd {shown}: give an absolute path, without `..`")));
    }
    let is_made = PRIVATE_DIRECTORIES.iter().any(|private| directory == Path::new(private))
        || scratch.iter().any(|scratch| scratch.starts_with(directory) && is_private(directory));
    if is_made || scratch.contains(&directory) {
        return Ok(());
    }
    if let Some(over) = hidden_by(directory, scratch) {
        return Err(Failure::usage(format!(
            "--cwd {shown}: the workload has its own, empty {over}: name it as --scratch"
        )));
    }
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::usage(format!("--cwd {shown} is no directory on node {node}"))),
        Err(error) => Err(Failure::usage(format!("--cwd {shown} cannot be used on node {node}: {error}"))),
    }
}

/// Which directory of the workload's own covers this path of the host.
fn hidden_by(path: &Path, scratch: &[&Path]) -> Option<String> {
    let private = PRIVATE_DIRECTORIES.iter().map(Path::new);
    private
        .chain(scratch.iter().copied())
        .find(|over| path.starts_with(over))
        .map(|over| over.display().to_string())
}

fn find_program(program: &str, path: &str, directory: &Path) -> Result<String> {
    if program.contains('/') {
        return text_of(&directory.join(program));
    }
    let is_program = |candidate: &PathBuf| {
        fs::metadata(candidate).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    match path.split(':').map(|directory| Path::new(directory).join(program)).find(is_program) {
        Some(found) => text_of(&found),
        None => Err(Failure::usage(format!(
            "{program}: no such program in {path}: install it on every node, or give its full path"
        ))),
    }
}

fn check_program(node: &str, program: &Path, scratch: &[&Path]) -> Result<()> {
    let shown = program.display();
    if !program.is_absolute() {
        return Err(Failure::usage(format!("{shown} is not the full path of a program")));
    }
    let metadata = fs::metadata(program).map_err(|error| {
        Failure::usage(format!("{shown} cannot be run on node {node} ({error}): install it on every node"))
    })?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(Failure::usage(format!(
            "{shown} is no program on node {node}: run `chmod +x` on it if it should be"
        )));
    }
    let real = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    match hidden_by(program, scratch).or_else(|| hidden_by(&real, scratch)) {
        Some(over) => Err(Failure::usage(format!(
            "{shown} cannot be run: the workload has its own, empty {over}; install it elsewhere, on every node"
        ))),
        None => Ok(()),
    }
}

fn check_space(state: &Path) -> Result<()> {
    let shown = state.display();
    let space =
        nix::sys::statvfs::statvfs(state).or_failed(|| format!("look at the state directory {shown}"))?;
    let free = space.blocks_available() * space.fragment_size();
    if free >= STATE_SPACE {
        return Ok(());
    }
    let (free, needed) = (free >> 20, STATE_SPACE >> 20);
    Err(Failure::new(
        Kind::Failed,
        format!("the state directory {shown} is full ({free} MiB left): make {needed} MiB of room"),
    ))
}

/// Who the program runs as.
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

fn find_user(user: &str) -> Result<Account> {
    let found = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    match (found.or_failed(|| format!("look up the user {user}"))?, user.parse::<u32>()) {
        (Some(known), _) => {
            let name =
                CString::new(known.name.clone()).or_failed(|| format!("look up the groups of {user}"))?;
            let groups = nix::unistd::getgrouplist(&name, known.gid)
                .or_failed(|| format!("look up the groups of {user}"))?;
            let home = known.dir.to_str().unwrap_or("/").to_owned();
            let groups = groups.into_iter().map(Gid::as_raw).collect();
            Ok(Account { uid: known.uid.as_raw(), gid: known.gid.as_raw(), groups, home })
        }
        // A number needs no entry: files and sockets know numbers only.
        (None, Ok(uid)) => Ok(Account { uid, gid: uid, groups: vec![uid], home: "/".to_owned() }),
        (None, Err(_)) => Err(Failure::usage(format!(
            "--user {user}: there is no such user on this node: make it, or give a number"
        ))),
    }
}

#[cfg(test)]
mod tests;
