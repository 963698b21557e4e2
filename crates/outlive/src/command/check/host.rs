//! What is read rather than tried: version, privileges, limits, memory, clock, bridge, certificate, room on disk.

use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};
use outlive_net::{DEFAULT_MTU, Port, Uplink};
use outlive_stream::tls::Identity;

use super::{Line, Verdict, sys};
use crate::capabilities::{self, Capability, Held, NEEDED};
use crate::config::Config;
use crate::error::chain;

/// `PAGEMAP_SCAN` and asynchronous write-protection (6.7), `bpf_sk_assign_tcp_reqsk` (6.9).
const OLDEST_KERNEL: (u32, u32) = (6, 9);
/// A supervisor holds a duplicate of each of its workload's sockets.
const DESCRIPTORS_NEEDED: u64 = 4096;
const DESCRIPTORS_GOOD: u64 = 65_536;
const MEMORY_GOOD_KIB: u64 = 1 << 20;
/// No host has been installed before; a clock that says less has lost its battery. 2025-01-01.
const PLAUSIBLE_TIME: u64 = 1_735_689_600;
const STATE_ROOM: u64 = 256 << 20;

pub fn kernel_version() -> Line {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    let (major, minor) = OLDEST_KERNEL;
    let found = match version {
        Some(version) if version >= OLDEST_KERNEL => Ok(format!("Linux {release}")),
        _ => Err(format!("Linux {release}")),
    };
    let advice = format!("install Linux {major}.{minor} or newer");
    Line::needed("kernel", "everything below; each is tried as well", found, &advice)
}

pub fn processor() -> Line {
    let found =
        if cfg!(target_arch = "x86_64") { Ok("x86-64".to_owned()) } else { Err("another one".to_owned()) };
    Line::needed("processor", "registers are captured as x86-64 has them", found, "use an x86-64 host")
}

pub fn capabilities() -> Vec<Line> {
    let held = Held::read();
    let line = |needed: &Capability| {
        let found = if held.has(needed) { Ok("held".to_owned()) } else { Err("not held".to_owned()) };
        Line::needed(needed.name, needed.purpose, found, capabilities::ADVICE)
    };
    let mut lines: Vec<Line> = NEEDED.iter().map(line).collect();
    let (verdict, found) = match held.has_sys_resource() {
        true => (Verdict::Ok, "held"),
        false => (Verdict::Note, "not held"),
    };
    lines.push(Line::new(
        "CAP_SYS_RESOURCE",
        "restoring resource limits and oom_score_adj",
        verdict,
        found,
        "without it, workloads whose hard limits are above this host's, and lowered oom_score_adj, are not restored \
         alike: allow it in CapabilityBoundingSet=",
    ));
    lines
}

pub fn syn_cookies() -> Line {
    let path = "/proc/sys/net/ipv4/tcp_syncookies";
    let found = match fs::read_to_string(path).map(|value| value.trim().to_owned()) {
        Ok(value) if value != "0" => Ok(value),
        Ok(value) => Err(value),
        Err(error) => Err(format!("{path}: {error}")),
    };
    Line::needed(
        "tcp_syncookies",
        "restoring connections that are not accepted yet",
        found,
        "run `sysctl -w net.ipv4.tcp_syncookies=1`; needs a kernel with CONFIG_SYN_COOKIES",
    )
}

pub fn realtime_share() -> Line {
    let read = |name: &str| -> Option<i64> {
        fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
    };
    let purpose = "the tracing thread is not cut short";
    let advice = "run `sysctl -w kernel.sched_rt_runtime_us=950000`";
    let name = "real-time share";
    match (read("sched_rt_runtime_us"), read("sched_rt_period_us")) {
        (Some(-1), _) => Line::new(name, purpose, Verdict::Ok, "unlimited", ""),
        (Some(runtime), Some(period)) if runtime * 2 >= period => {
            Line::new(name, purpose, Verdict::Ok, format!("{runtime} of {period} us"), "")
        }
        (Some(runtime), Some(period)) => Line::new(
            name,
            purpose,
            Verdict::Note,
            format!("{runtime} of {period} us: pauses may grow"),
            advice,
        ),
        _ => Line::new(name, purpose, Verdict::Note, "not to be read", advice),
    }
}

pub fn descriptors() -> Line {
    let purpose = "one for each of a workload's sockets";
    let advice = "raise it with LimitNOFILE= in systemd, or `ulimit -Hn` before the agent is started";
    let (verdict, found) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS_NEEDED => (Verdict::Missing, format!("hard limit {hard}")),
        Ok((_, hard)) if hard < DESCRIPTORS_GOOD => {
            (Verdict::Note, format!("hard limit {hard}: workloads with more connections are not protected"))
        }
        Ok((_, hard)) => (Verdict::Ok, format!("hard limit {hard}")),
        Err(error) => (Verdict::Missing, error.to_string()),
    };
    Line::new("RLIMIT_NOFILE", purpose, verdict, found, advice)
}

pub fn memory() -> Line {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let verdict = if available >= MEMORY_GOOD_KIB { Verdict::Ok } else { Verdict::Note };
    Line::new(
        "memory",
        "a backup takes as much as its workload",
        verdict,
        format!("{} MiB available", available >> 10),
        "add memory, or run small workloads only",
    )
}

pub fn clock() -> Line {
    let purpose = "certificates are good for a time; logs of nodes are compared";
    let advice = "set it, and keep it in step with chrony or systemd-timesyncd";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let (verdict, found) = match sys::is_clock_synchronised() {
        _ if now < PLAUSIBLE_TIME => (Verdict::Missing, "the clock is years behind".to_owned()),
        Ok(true) => (Verdict::Ok, "kept in step".to_owned()),
        Ok(false) => (Verdict::Note, "not kept in step".to_owned()),
        Err(error) => (Verdict::Note, format!("not to be asked: {error}")),
    };
    Line::new("clock", purpose, verdict, found, advice)
}

pub fn uplink(uplink: Option<&Uplink>) -> Line {
    let purpose = "workloads are on the network through it";
    let Some(uplink) = uplink else {
        let advice = "name it with --bridge or --macvtap, or the configuration with --config";
        return Line::new("bridge", purpose, Verdict::Note, "not checked", advice);
    };
    let name = match uplink {
        Uplink::Bridge(bridge) => format!("bridge {bridge}"),
        Uplink::Macvtap(interface) => format!("macvtap on {interface}"),
    };
    if let Err(error) = Port::create(uplink, DEFAULT_MTU) {
        // What is wrong is said together with the way out of it.
        return Line::new(&name, purpose, Verdict::Missing, chain(&error), "");
    }
    let bridge = match uplink {
        Uplink::Bridge(bridge) => bridge,
        Uplink::Macvtap(_) => {
            let found =
                "a device can be made; this host and its own workloads do not reach each other through it";
            return Line::new(&name, purpose, Verdict::Ok, found, "");
        }
    };
    let ports: Vec<String> = fs::read_dir(format!("/sys/class/net/{bridge}/brif"))
        .map(|ports| ports.flatten().filter_map(|port| port.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    if ports.is_empty() {
        let advice = format!("give it the network's interface: `ip link set INTERFACE master {bridge}`");
        return Line::new(
            &name,
            purpose,
            Verdict::Note,
            "it has no port: workloads reach this host only",
            &advice,
        );
    }
    Line::new(&name, purpose, Verdict::Ok, format!("ports {}", ports.join(", ")), "")
}

pub fn certificate(config: &Config) -> Line {
    let tls = &config.tls;
    let found = match Identity::load(&tls.ca, &tls.cert, &tls.key) {
        Ok(identity) if identity.node_name() == config.node => Ok(format!("for node {}", config.node)),
        Ok(identity) => Err(format!("for node {}, and this node is {}", identity.node_name(), config.node)),
        Err(error) => Err(chain(&error)),
    };
    let advice = format!("make one with `outlive cert node --name {}`", config.node);
    Line::needed("certificate", "other nodes let this one in", found, &advice)
}

pub fn state_directory(config: &Config) -> Line {
    let shown = config.state_dir.display();
    let purpose = "votes, and workloads' output";
    let advice = "make room, or set state_dir to another place";
    // It may not be made yet; then what it will be in counts.
    let existing = config.state_dir.ancestors().find(|path| path.exists()).unwrap_or(&config.state_dir);
    let (verdict, found) = match nix::sys::statvfs::statvfs(existing) {
        Ok(space) => {
            let free = space.blocks_available() * space.fragment_size();
            let verdict = if free < STATE_ROOM { Verdict::Note } else { Verdict::Ok };
            (verdict, format!("{shown}: {} MiB free", free >> 20))
        }
        Err(error) => (Verdict::Missing, format!("{shown}: {error}")),
    };
    Line::new("state directory", purpose, verdict, found, advice)
}
