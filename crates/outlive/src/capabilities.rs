//! The capabilities that an agent needs: what `check` shows is what a workload is refused for.

use std::fs;

/// One that is needed: number and name (linux/capability.h), what for.
pub struct Capability {
    number: u32,
    pub name: &'static str,
    pub purpose: &'static str,
    /// The kernel is content with CAP_SYS_ADMIN in its place (linux/capability.h, `bpf_capable` and
    /// `checkpoint_restore_ns_capable`).
    in_sys_admin: bool,
}

const fn capability(number: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability { number, name, purpose, in_sys_admin: false }
}

const fn in_sys_admin(number: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability { number, name, purpose, in_sys_admin: true }
}

pub const NEEDED: [Capability; 9] = [
    capability(SYS_ADMIN, "CAP_SYS_ADMIN", "namespaces and mounts"),
    capability(19, "CAP_SYS_PTRACE", "stopping and reading programs"),
    capability(12, "CAP_NET_ADMIN", "interfaces, TCP repair"),
    capability(13, "CAP_NET_RAW", "taking over an address"),
    capability(23, "CAP_SYS_NICE", "real-time tracing thread"),
    in_sys_admin(40, "CAP_CHECKPOINT_RESTORE", "processes under their own ids"),
    in_sys_admin(39, "CAP_BPF", "connections that are not accepted yet"),
    capability(7, "CAP_SETUID", "workloads that run as a user"),
    capability(6, "CAP_SETGID", "workloads that run as a user"),
];
pub const ADVICE: &str = "run the agent as root; in systemd, allow it in CapabilityBoundingSet=";
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;

/// Those that this process has.
#[derive(Clone, Copy)]
pub struct Held(u64);

impl Held {
    /// None if the kernel does not say so.
    pub fn read() -> Held {
        let set = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim().to_owned();
            u64::from_str_radix(&set, 16).ok()
        });
        Held(set.unwrap_or(0))
    }

    pub fn has(self, capability: &Capability) -> bool {
        self.is_set(capability.number) || capability.in_sys_admin && self.is_set(SYS_ADMIN)
    }

    pub fn has_sys_resource(self) -> bool {
        self.is_set(SYS_RESOURCE)
    }

    fn is_set(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_takes_in_its_place_counts() {
        let names = |held: Held| NEEDED.iter().filter(|c| !held.has(c)).map(|c| c.name).collect::<Vec<_>>();
        assert_eq!(names(Held(u64::MAX)), [""; 0]);
        assert_eq!(names(Held(0)).len(), NEEDED.len());
        let all_but =
            |numbers: &[u32]| Held(numbers.iter().fold(u64::MAX, |set, number| set & !(1 << number)));
        assert_eq!(names(all_but(&[39, 40])), [""; 0]);
        assert_eq!(names(all_but(&[SYS_ADMIN, 39])), ["CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(names(all_but(&[13])), ["CAP_NET_RAW"]);
    }
}
