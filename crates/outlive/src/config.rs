//! The agent's configuration: what the file says ([`Parsed`]), and what it means ([`Config`]).
//!
//! Every value has a default, which is a constant or a function here; `docs/agent.toml` shows all of them. A key that
//! is not known and a value that cannot be are errors that name the key and its line.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlive_epoch::setup;
use outlive_net::Uplink;
use serde::Deserialize;
use toml::Spanned;

use crate::error::{Failure, Result, chain};

/// Where the agent's configuration is if no other file is named.
pub const DEFAULT_FILE: &str = "/etc/outlive/agent.toml";
/// Where the command line finds the agent if nothing else says so.
pub const DEFAULT_SOCKET: &str = "/run/outlive/agent.sock";
const DEFAULT_STATE: &str = "/var/lib/outlive";
const DEFAULT_BRIDGE: &str = "br0";
const DEFAULT_CLUSTER: &str = "outlive";
const DEFAULT_AUTHORITY: &str = "/etc/outlive/ca.pem";
const DEFAULT_CERTIFICATE: &str = "/etc/outlive/node.pem";
const DEFAULT_KEY: &str = "/etc/outlive/node.key";
/// The agents' port unless another is given. Not registered with IANA for anything in use beside it.
const DEFAULT_PORT: u16 = 7400;

/// Below this a busy host's scheduling alone looks like a death; above it nobody would call it high availability.
const DETECTION_MS: Range<u64> = 20..60_001;
/// A checkpoint takes part of a millisecond at least, so shorter epochs would be nothing but checkpoints.
const LONGEST_EPOCH_MS: Range<u64> = 5..60_001;
const EPOCH_LIMIT_MB: Range<u64> = 16..1_048_577;
const LOG_LIMIT_MB: Range<u64> = 1..1_048_577;
/// A workload that is stopped for longer than it runs makes no progress worth the name.
const LARGEST_PAUSE_SHARE: f64 = 0.9;
const MEBIBYTE: u64 = 1 << 20;
/// A configuration is a page of text; what is larger is another file.
const LARGEST_FILE: u64 = MEBIBYTE;

/// What the file says. Everything is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parsed {
    node: Option<Spanned<String>>,
    listen: Option<Spanned<String>>,
    bridge: Option<Spanned<String>>,
    macvtap: Option<Spanned<String>>,
    state_dir: Option<Spanned<PathBuf>>,
    control_socket: Option<Spanned<PathBuf>>,
    control_group: Option<Spanned<String>>,
    detection_ms: Option<Spanned<u64>>,
    max_pause_share: Option<Spanned<f64>>,
    longest_epoch_ms: Option<Spanned<u64>>,
    epoch_limit_mb: Option<Spanned<u64>>,
    log_limit_mb: Option<Spanned<u64>>,
    cluster: Option<Spanned<String>>,
    seeds: Option<Spanned<Vec<Spanned<String>>>>,
    tls: ParsedTls,
    peers: Vec<ParsedPeer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ParsedTls {
    ca: Option<Spanned<PathBuf>>,
    cert: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParsedPeer {
    name: Spanned<String>,
    address: Spanned<String>,
}

/// What it means: nothing here is optional or can be invalid any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node: String,
    pub listen: SocketAddr,
    pub uplink: Uplink,
    pub state_dir: PathBuf,
    pub control_socket: PathBuf,
    /// Members of this group may use the control socket, beside root.
    pub control_group: Option<nix::unistd::Gid>,
    pub cluster: String,
    /// Sorted, each once.
    pub seeds: Vec<String>,
    pub tls: Tls,
    pub peers: Vec<setup::Peer>,
    pub tuning: setup::Tuning,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Config {
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let advice = "name another file with --config, or write one: every key has a default";
        let metadata = std::fs::metadata(path).map_err(|error| {
            Failure::usage(format!("cannot read the configuration {shown}: {error}; {advice}"))
        })?;
        if metadata.len() > LARGEST_FILE {
            let size = metadata.len();
            return Err(Failure::usage(format!("{shown} is {size} bytes and no configuration; {advice}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("cannot read the configuration {shown}: {error}; {advice}"))
        })?;
        Self::from_text(&text, path)
    }

    /// `path` is for messages.
    pub fn from_text(text: &str, path: &Path) -> Result<Self> {
        let file = File { text, path };
        let parsed: Parsed = toml::from_str(text).map_err(|error| file.syntax(&error))?;
        file.resolve(parsed)
    }

    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<&setup::Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// Whether this node has a vote in arbitration.
    pub fn is_seed(&self) -> bool {
        self.seeds.contains(&self.node)
    }

    /// Where a node's agent listens: this node's or a peer's.
    pub fn address_of(&self, node: &str) -> Option<SocketAddr> {
        if node == self.node { Some(self.listen) } else { self.peer(node).map(|peer| peer.address) }
    }
}

/// The file being resolved, for messages that say where in it something is.
struct File<'a> {
    text: &'a str,
    path: &'a Path,
}

impl File<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
    }

    fn at(&self, span: Range<usize>, message: &str) -> Failure {
        Failure::usage(format!("{}:{}: {message}", self.path.display(), self.line(span.start)))
    }

    fn bad(&self, key: &str, span: Range<usize>, message: impl AsRef<str>) -> Failure {
        self.at(span, &format!("`{key}`: {}", message.as_ref()))
    }

    /// The library's message and place, and the key of that line, which it does not say for a value of a wrong type.
    fn syntax(&self, error: &toml::de::Error) -> Failure {
        let message = error.message().trim().replace('\n', ", ");
        let Some(span) = error.span() else {
            return Failure::usage(format!("{}: {message}", self.path.display()));
        };
        let line = self.text.lines().nth(self.line(span.start) - 1).unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| key.trim()).filter(|key| !key.is_empty());
        match key {
            Some(key) if !message.contains(&format!("`{key}`")) => self.bad(key, span, &message),
            _ => self.at(span, &message),
        }
    }

    fn resolve(&self, parsed: Parsed) -> Result<Config> {
        let node = self.node(parsed.node)?;
        let uplink = self.uplink(parsed.bridge, parsed.macvtap)?;
        let listen = match parsed.listen {
            Some(listen) => self.address("listen", &listen)?,
            None => SocketAddr::new(
                address_of_interface(uplink.interface()).ok_or_else(|| no_listen(self.path, &uplink))?,
                DEFAULT_PORT,
            ),
        };
        let peers = self.peers(&node, parsed.peers)?;
        let seeds = self.seeds(&node, &peers, parsed.seeds)?;
        let cluster = match parsed.cluster {
            Some(cluster) => self.label("cluster", &cluster)?,
            None => DEFAULT_CLUSTER.to_owned(),
        };
        let path =
            |key: &str, value: Option<Spanned<PathBuf>>, default: &str| self.path_of(key, value, default);
        let tuning = setup::Tuning {
            detection: Duration::from_millis(self.number(
                "detection_ms",
                parsed.detection_ms,
                DETECTION_MS,
                100,
            )?),
            max_pause_permille: self.share(parsed.max_pause_share)?,
            longest_epoch: Duration::from_millis(self.number(
                "longest_epoch_ms",
                parsed.longest_epoch_ms,
                LONGEST_EPOCH_MS,
                500,
            )?),
            epoch_limit: self.bytes("epoch_limit_mb", parsed.epoch_limit_mb, EPOCH_LIMIT_MB, 1024)?,
            log_limit: self.number("log_limit_mb", parsed.log_limit_mb, LOG_LIMIT_MB, 64)? * MEBIBYTE,
        };
        Ok(Config {
            listen,
            state_dir: path("state_dir", parsed.state_dir, DEFAULT_STATE)?,
            control_socket: path("control_socket", parsed.control_socket, DEFAULT_SOCKET)?,
            control_group: parsed.control_group.map(|group| self.group(&group)).transpose()?,
            cluster,
            seeds,
            tls: Tls {
                ca: path("tls.ca", parsed.tls.ca, DEFAULT_AUTHORITY)?,
                cert: path("tls.cert", parsed.tls.cert, DEFAULT_CERTIFICATE)?,
                key: path("tls.key", parsed.tls.key, DEFAULT_KEY)?,
            },
            peers,
            tuning,
            node,
            uplink,
        })
    }

    fn node(&self, node: Option<Spanned<String>>) -> Result<String> {
        if let Some(node) = node {
            return self.label("node", &node);
        }
        let host =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let short = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
        if is_label(&short) {
            return Ok(short);
        }
        let path = self.path.display();
        Err(Failure::usage(format!("{path}: this host's name {host:?} cannot be a node's: set `node`")))
    }

    /// A name that goes into a certificate: one DNS label.
    fn label(&self, key: &str, value: &Spanned<String>) -> Result<String> {
        if is_label(value.get_ref()) {
            return Ok(value.get_ref().clone());
        }
        let wanted = "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end";
        Err(self.bad(key, value.span(), format!("{:?} cannot be a name: {wanted}", value.get_ref())))
    }

    fn uplink(&self, bridge: Option<Spanned<String>>, macvtap: Option<Spanned<String>>) -> Result<Uplink> {
        match (bridge, macvtap) {
            (None, None) => Ok(Uplink::bridge(DEFAULT_BRIDGE)),
            (Some(bridge), None) => Ok(Uplink::Bridge(self.interface("bridge", &bridge)?)),
            (None, Some(interface)) => Ok(Uplink::Macvtap(self.interface("macvtap", &interface)?)),
            (Some(_), Some(interface)) => {
                let message = "use either `bridge` or `macvtap`: workloads are on the network in one way";
                Err(self.bad("macvtap", interface.span(), message))
            }
        }
    }

    fn interface(&self, key: &str, value: &Spanned<String>) -> Result<String> {
        // dev_valid_name, net/core/dev.c: at most 15 bytes, no slash, colon or white space, not "." or "..".
        let name = value.get_ref();
        let odd = |character: char| character == '/' || character == ':' || character.is_whitespace();
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(odd) {
            let message = format!("{name:?} cannot be an interface's name: it has 1 to 15 characters");
            return Err(self.bad(key, value.span(), message));
        }
        Ok(name.clone())
    }

    fn address(&self, key: &str, value: &Spanned<String>) -> Result<SocketAddr> {
        let text = value.get_ref();
        let address = text
            .parse::<SocketAddr>()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
            .map_err(|_| {
                let message =
                    format!("{text:?} is not an address: write it as in \"10.77.0.1:{DEFAULT_PORT}\"");
                self.bad(key, value.span(), message)
            })?;
        if address.ip().is_unspecified() || address.port() == 0 {
            let message = format!("other nodes connect to {text}, so it must be one address and one port");
            return Err(self.bad(key, value.span(), message));
        }
        Ok(address)
    }

    fn peers(&self, node: &str, parsed: Vec<ParsedPeer>) -> Result<Vec<setup::Peer>> {
        let mut peers: Vec<setup::Peer> = Vec::new();
        for peer in parsed {
            let name = self.label("peers.name", &peer.name)?;
            if name == node {
                let message = "this node is not its own peer: list the others only";
                return Err(self.bad("peers.name", peer.name.span(), message));
            }
            if peers.iter().any(|known| known.name == name) {
                let message = format!("{name} is listed twice: list every peer once");
                return Err(self.bad("peers.name", peer.name.span(), message));
            }
            peers.push(setup::Peer { name, address: self.address("peers.address", &peer.address)? });
        }
        Ok(peers)
    }

    /// All nodes, if the file does not say.
    fn seeds(
        &self,
        node: &str,
        peers: &[setup::Peer],
        parsed: Option<Spanned<Vec<Spanned<String>>>>,
    ) -> Result<Vec<String>> {
        let is_known = |name: &str| name == node || peers.iter().any(|peer| peer.name == name);
        let (mut seeds, span) = match parsed {
            None => {
                let all = std::iter::once(node).chain(peers.iter().map(|peer| peer.name.as_str()));
                (all.map(str::to_owned).collect::<Vec<_>>(), 0..0)
            }
            Some(parsed) => {
                let span = parsed.span();
                let mut seeds: Vec<String> = Vec::new();
                for seed in parsed.get_ref() {
                    let name = self.label("seeds", seed)?;
                    if !is_known(&name) {
                        let message =
                            format!("{name} is neither this node nor one of its [[peers]]: add it there");
                        return Err(self.bad("seeds", seed.span(), message));
                    }
                    if seeds.contains(&name) {
                        let message = format!("{name} is listed twice: list every seed node once");
                        return Err(self.bad("seeds", seed.span(), message));
                    }
                    seeds.push(name);
                }
                (seeds, span)
            }
        };
        if seeds.is_empty() || seeds.len() > outlive_cluster::MAX_SEEDS {
            let most = outlive_cluster::MAX_SEEDS;
            let message = format!("{} seed nodes: name 1 to {most} nodes, best three or five", seeds.len());
            return Err(self.bad("seeds", span, message));
        }
        seeds.sort();
        Ok(seeds)
    }

    fn path_of(&self, key: &str, value: Option<Spanned<PathBuf>>, default: &str) -> Result<PathBuf> {
        let Some(value) = value else { return Ok(PathBuf::from(default)) };
        if value.get_ref().is_absolute() {
            return Ok(value.into_inner());
        }
        // An agent started from another directory would silently use another file.
        let message = format!("{:?} is a relative path: write it from the root", value.get_ref());
        Err(self.bad(key, value.span(), message))
    }

    fn group(&self, value: &Spanned<String>) -> Result<nix::unistd::Gid> {
        let name = value.get_ref();
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid),
            Ok(None) => {
                let message = format!("there is no group {name:?}: make it with `groupadd {name}`");
                Err(self.bad("control_group", value.span(), message))
            }
            Err(error) => Err(self.bad("control_group", value.span(), chain(&error))),
        }
    }

    fn number(
        &self,
        key: &str,
        value: Option<Spanned<u64>>,
        within: Range<u64>,
        default: u64,
    ) -> Result<u64> {
        let Some(value) = value else { return Ok(default) };
        if within.contains(value.get_ref()) {
            return Ok(value.into_inner());
        }
        let message =
            format!("{} is out of range: use {} to {}", value.get_ref(), within.start, within.end - 1);
        Err(self.bad(key, value.span(), message))
    }

    fn bytes(
        &self,
        key: &str,
        value: Option<Spanned<u64>>,
        within: Range<u64>,
        default: u64,
    ) -> Result<usize> {
        let span = value.as_ref().map_or(0..0, Spanned::span);
        let bytes = self.number(key, value, within, default)? * MEBIBYTE;
        usize::try_from(bytes).map_err(|_| self.bad(key, span, "more than this machine can address"))
    }

    fn share(&self, value: Option<Spanned<f64>>) -> Result<u32> {
        let Some(value) = value else { return Ok(setup::Tuning::default().max_pause_permille) };
        let permille = (value.get_ref() * 1000.0).round();
        if (1.0..=LARGEST_PAUSE_SHARE * 1000.0).contains(&permille) {
            // In range, see above.
            return Ok(permille as u32);
        }
        let message =
            format!("{} is out of range: use a share from 0.001 to {LARGEST_PAUSE_SHARE}", value.get_ref());
        Err(self.bad("max_pause_share", value.span(), message))
    }
}

/// A DNS label, as certificates take it.
pub fn is_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn no_listen(path: &Path, uplink: &Uplink) -> Failure {
    Failure::usage(format!(
        "{}: `listen` is not set and {uplink} has no address to take for it: set `listen`, as in \
         \"10.77.0.1:{DEFAULT_PORT}\"",
        path.display()
    ))
}

/// The first IPv4 address of an interface, or else the first global IPv6 one.
fn address_of_interface(interface: &str) -> Option<IpAddr> {
    let addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .ok()?
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect();
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let v4 = addresses.iter().find(|ip| ip.is_ipv4());
    v4.or_else(|| addresses.iter().find(|ip| !link_local(ip))).copied()
}

#[cfg(test)]
mod tests;
