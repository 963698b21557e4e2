//! What the demo, the tests and the benchmarks need, installed if it is missing, and the release binary.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::root;

/// Programs, and the Debian packages that have them.
const NEEDED: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("cc", "gcc"),
    ("g++", "g++"),
    ("make", "make"),
];

pub fn run() -> Result<()> {
    prepare()?;
    let binary = build_release()?;
    eprintln!("setup: ready, {}", binary.display());
    Ok(())
}

/// Everything but the build.
pub fn prepare() -> Result<()> {
    require_root()?;
    install(&NEEDED)
}

/// Installs the packages of those programs that are missing.
pub fn install(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!("install {} with your system's package manager; there is no apt-get here", missing.join(", "));
    }
    eprintln!("setup: installing {}", missing.join(", "));
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        succeed(&mut command)
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

/// Builds the release binary of `outlive` and returns where it is.
pub fn build_release() -> Result<PathBuf> {
    require_root()?;
    build("outlive", "outlive")
}

/// Builds the release binary of the lab's own server and returns where it is.
pub fn build_lab_server() -> Result<PathBuf> {
    build("outlive-lab", "lab_server")
}

fn build(package: &str, binary: &str) -> Result<PathBuf> {
    let output = cargo()
        .args(["build", "--release", "--package", package, "--bin", binary])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the release build of {binary} failed");
    }
    // One JSON object a line; that of the binary names its executable.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built no executable named {binary}"))
}

/// Cargo, without what it has told this program about this program: build scripts that look at that (ring's) would run again,
/// and all that depends on them would be built anew, each time that an operator and this program take turns.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = |name: &str| {
        const NAMES: [&str; 4] =
            ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_CRATE_NAME", "CARGO_BIN_NAME"];
        name.starts_with("CARGO_PKG_") || NAMES.contains(&name)
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(told) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command whose output goes to ours; its failure is ours.
pub fn succeed(command: &mut Command) -> Result<()> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = words.join(" ");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

fn require_root() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    // The owner of this process' entry in /proc is its effective user (proc(5)).
    let uid = std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid();
    if uid != 0 {
        bail!("hosts made of namespaces need root, and this is uid {uid}: run it with sudo");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(sbin).any(|folder| Path::new(&folder).join(program).is_file())
}
