//! The filter every workload runs under: what is noticed, hidden and refused at the door (R3).
//!
//! A classic BPF program (`seccomp(2)`), built by hand because it must also compare arguments and is a few hundred
//! instructions. Calls that are not named here run free, at the cost of walking the list (measured 56 ns).

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MISC, BPF_RET, BPF_TAX, BPF_W, BPF_X,
    sock_filter,
};

/// What the supervisor is told about a call that the filter stopped at: the data of `SECCOMP_RET_TRACE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Notice {
    /// Signal handlers or alternate stacks change.
    SignalAction = 1,
    SignalStack = 2,
    /// `setitimer`, `alarm`, POSIX timers.
    Timer = 3,
    /// `madvise(MADV_DONTNEED)` and the like: pages emptied without a write.
    PagesDropped = 4,
    SocketOption = 5,
    /// `prctl`, credentials, limits: attributes of the task.
    Attribute = 6,
    /// A descriptor is about to be closed: it may be the last one of a connection with data still queued.
    Close = 7,
    /// A call after which, if it succeeds, nothing may be protected any more.
    Refused = 8,
    /// A file or a segment is about to be mapped shared.
    SharedMapping = 9,
    /// System V shared memory.
    Segment = 10,
    /// Another program.
    Exec = 11,
    /// Mappings are about to have other properties: locked in memory, not inherited by a child, not dumped.
    Advice = 12,
    /// System V objects are used from here on.
    SystemV = 20,
    /// Likewise POSIX message queues.
    Queue = 21,
    /// Whom a description signals.
    SignalOwner = 13,
    /// A filter of the program's own.
    Filter = 14,
    /// Of a program that is only looked at: a call that wants to write to a file system.
    Writes = 15,
}

impl Notice {
    pub fn from_data(data: u16) -> Option<Self> {
        [
            Self::SignalAction,
            Self::SignalStack,
            Self::Timer,
            Self::PagesDropped,
            Self::SocketOption,
            Self::Attribute,
            Self::Close,
            Self::Refused,
            Self::SharedMapping,
            Self::Segment,
            Self::Exec,
            Self::Advice,
            Self::SystemV,
            Self::Queue,
            Self::SignalOwner,
            Self::Filter,
            Self::Writes,
        ]
        .into_iter()
        .find(|notice| *notice as u16 == data)
    }
}

/// Calls of which the supervisor keeps a shadow.
const NOTICED: &[(i64, Notice)] = &[
    (libc::SYS_rt_sigaction, Notice::SignalAction),
    (libc::SYS_sigaltstack, Notice::SignalStack),
    (libc::SYS_setitimer, Notice::Timer),
    (libc::SYS_alarm, Notice::Timer),
    (libc::SYS_timer_create, Notice::Timer),
    (libc::SYS_timer_settime, Notice::Timer),
    (libc::SYS_setsockopt, Notice::SocketOption),
    (libc::SYS_prctl, Notice::Attribute),
    (libc::SYS_set_tid_address, Notice::Attribute),
    (libc::SYS_setuid, Notice::Attribute),
    (libc::SYS_setgid, Notice::Attribute),
    (libc::SYS_setreuid, Notice::Attribute),
    (libc::SYS_setregid, Notice::Attribute),
    (libc::SYS_setresuid, Notice::Attribute),
    (libc::SYS_setresgid, Notice::Attribute),
    (libc::SYS_setgroups, Notice::Attribute),
    (libc::SYS_capset, Notice::Attribute),
    (libc::SYS_setfsuid, Notice::Attribute),
    (libc::SYS_setfsgid, Notice::Attribute),
    (libc::SYS_personality, Notice::Attribute),
    (libc::SYS_setpriority, Notice::Attribute),
    (libc::SYS_sched_setscheduler, Notice::Attribute),
    (libc::SYS_sched_setparam, Notice::Attribute),
    (libc::SYS_sched_setattr, Notice::Attribute),
    (libc::SYS_sched_setaffinity, Notice::Attribute),
    (libc::SYS_ioprio_set, Notice::Attribute),
    (libc::SYS_setsid, Notice::Attribute),
    (libc::SYS_setpgid, Notice::Attribute),
    (libc::SYS_umask, Notice::Attribute),
    (libc::SYS_chdir, Notice::Attribute),
    (libc::SYS_fchdir, Notice::Attribute),
    (libc::SYS_chroot, Notice::Attribute),
    (libc::SYS_prlimit64, Notice::Attribute),
    (libc::SYS_setrlimit, Notice::Attribute),
    (libc::SYS_close, Notice::Close),
    (libc::SYS_shmat, Notice::SharedMapping),
    (libc::SYS_mlock, Notice::Advice),
    (libc::SYS_mlock2, Notice::Advice),
    (libc::SYS_munlock, Notice::Advice),
    (libc::SYS_mlockall, Notice::Advice),
    (libc::SYS_munlockall, Notice::Advice),
    (libc::SYS_execve, Notice::Exec),
    (libc::SYS_execveat, Notice::Exec),
    // Refused: kernel state that no other host can be given.
    (libc::SYS_setns, Notice::Refused),
    (libc::SYS_unshare, Notice::Refused),
    (libc::SYS_mount, Notice::Refused),
    (libc::SYS_umount2, Notice::Refused),
    (libc::SYS_pivot_root, Notice::Refused),
    (libc::SYS_semget, Notice::SystemV),
    (libc::SYS_msgget, Notice::SystemV),
    (libc::SYS_mq_open, Notice::Queue),
];

/// Calls that answer as on a kernel built without the feature, so that programs fall back.
const HIDDEN: &[(i64, i32)] = &[
    (libc::SYS_io_uring_setup, libc::ENOSYS),
    (libc::SYS_io_uring_enter, libc::ENOSYS),
    (libc::SYS_io_uring_register, libc::ENOSYS),
    (libc::SYS_userfaultfd, libc::EPERM),
    (libc::SYS_bpf, libc::EPERM),
    (libc::SYS_perf_event_open, libc::ENOENT),
    // A process has one tracer: it is as if somebody else were debugging the program.
    (libc::SYS_ptrace, libc::EPERM),
    // Mounts by descriptor, without which programs fall back to mount(2), which is noticed.
    (libc::SYS_fsopen, libc::ENOSYS),
    (libc::SYS_fsconfig, libc::ENOSYS),
    (libc::SYS_fsmount, libc::ENOSYS),
    (libc::SYS_fspick, libc::ENOSYS),
    (libc::SYS_open_tree, libc::ENOSYS),
    (libc::SYS_move_mount, libc::ENOSYS),
    (libc::SYS_mount_setattr, libc::ENOSYS),
    // What is the host's, and no workload's: as without CAP_SYS_ADMIN, CAP_SYS_TIME, CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_SYS_RAWIO.
    (libc::SYS_sethostname, libc::EPERM),
    (libc::SYS_setdomainname, libc::EPERM),
    (libc::SYS_settimeofday, libc::EPERM),
    (libc::SYS_clock_settime, libc::EPERM),
    (libc::SYS_adjtimex, libc::EPERM),
    (libc::SYS_clock_adjtime, libc::EPERM),
    (libc::SYS_init_module, libc::EPERM),
    (libc::SYS_finit_module, libc::EPERM),
    (libc::SYS_delete_module, libc::EPERM),
    (libc::SYS_kexec_load, libc::EPERM),
    (libc::SYS_kexec_file_load, libc::EPERM),
    (libc::SYS_reboot, libc::EPERM),
    (libc::SYS_swapon, libc::EPERM),
    (libc::SYS_swapoff, libc::EPERM),
    (libc::SYS_acct, libc::EPERM),
    (libc::SYS_quotactl, libc::EPERM),
    (libc::SYS_quotactl_fd, libc::EPERM),
    (libc::SYS_iopl, libc::EPERM),
    (libc::SYS_ioperm, libc::EPERM),
    // Segments of a thread's own, for programs of other times (Wine, DOSEMU): a kernel may be built without.
    (libc::SYS_modify_ldt, libc::ENOSYS),
    (libc::SYS_fanotify_init, libc::ENOSYS),
    (libc::SYS_memfd_secret, libc::ENOSYS),
    (libc::SYS_process_madvise, libc::ENOSYS),
    // As on a kernel without NUMA: the nodes of another host are others.
    (libc::SYS_mbind, libc::ENOSYS),
    (libc::SYS_set_mempolicy, libc::ENOSYS),
    (libc::SYS_get_mempolicy, libc::ENOSYS),
    (libc::SYS_migrate_pages, libc::ENOSYS),
    (libc::SYS_move_pages, libc::ENOSYS),
    (libc::SYS_set_mempolicy_home_node, libc::ENOSYS),
    // Changes what is mapped without a new mapping; deprecated, and absent without its configuration.
    (libc::SYS_remap_file_pages, libc::ENOSYS),
    (libc::SYS_pkey_alloc, libc::ENOSPC),
    (libc::SYS_landlock_create_ruleset, libc::ENOSYS),
    // Kernel AIO: programs make a context first, and do without if they cannot.
    (libc::SYS_io_setup, libc::ENOSYS),
    (libc::SYS_keyctl, libc::ENOSYS),
    (libc::SYS_add_key, libc::ENOSYS),
    (libc::SYS_request_key, libc::ENOSYS),
];

/// Calls that answer so for one value of their first argument: what the kernel keeps of it cannot be read back, or is the
/// processor's. Numbers: `linux/prctl.h`, `asm/prctl.h`.
const HIDDEN_OPTIONS: &[(i64, u32, i32)] = &[
    (libc::SYS_prctl, PR_SET_TSC, libc::EINVAL),
    (libc::SYS_prctl, PR_SET_SPECULATION_CTRL, libc::EINVAL),
    (libc::SYS_prctl, PR_SET_IO_FLUSHER, libc::EINVAL),
    (libc::SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, libc::EINVAL),
    (libc::SYS_prctl, PR_SCHED_CORE, libc::EINVAL),
    (libc::SYS_prctl, PR_SET_MDWE, libc::EINVAL),
    (libc::SYS_prctl, PR_SET_MEMORY_MERGE, libc::EINVAL),
    (libc::SYS_arch_prctl, ARCH_SET_CPUID, libc::ENODEV),
    (libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, libc::EINVAL),
    (libc::SYS_arch_prctl, ARCH_ENABLE_TAGGED_ADDR, libc::EINVAL),
    (libc::SYS_arch_prctl, ARCH_SHSTK_ENABLE, libc::EINVAL),
];
const PR_SET_TSC: u32 = 26;
const PR_SET_SPECULATION_CTRL: u32 = 53;
const PR_SET_IO_FLUSHER: u32 = 57;
const PR_SET_SYSCALL_USER_DISPATCH: u32 = 59;
const PR_SCHED_CORE: u32 = 62;
const PR_SET_MDWE: u32 = 65;
const PR_SET_MEMORY_MERGE: u32 = 67;
const ARCH_SET_CPUID: u32 = 0x1012;
const ARCH_REQ_XCOMP_PERM: u32 = 0x1023;
const ARCH_ENABLE_TAGGED_ADDR: u32 = 0x4002;
const ARCH_SHSTK_ENABLE: u32 = 0x5001;

/// Calls that write to a file system, without `open` and its like, which do so by their flags.
const WRITES: &[i64] = &[
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_truncate,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
];

/// Whether a call is refused if it succeeds.
pub fn is_refused(number: u64) -> bool {
    NOTICED.iter().any(|(known, notice)| *known as u64 == number && *notice == Notice::Refused)
}

/// In the data of a stop: the call is hidden, with the error in the other bits ([`observing`]).
const HIDES: u16 = 1 << 15;

/// The error with which a stop of a program under [`observing`] is to be answered in place of the call.
pub fn hidden_with(data: u16) -> Option<i32> {
    (data & HIDES != 0).then_some(i32::from(data & !HIDES))
}

/// `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}
/// `asm-generic/mman-common.h`.
const MADV_KEEPONFORK: u32 = 19;
const MADV_DONTNEED_LOCKED: u32 = 24;
const MADV_GUARD_INSTALL: u32 = 102;
/// `linux/audit.h`.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Calls of the x32 interface carry this bit (`asm/unistd.h`).
const X32_BIT: u32 = 0x4000_0000;
/// `include/net/tcp.h` / `uapi/linux/tcp.h`: attaching an upper layer protocol (kernel TLS).
const TCP_ULP: u32 = 31;
/// The key management of IPsec, by netlink and by a family of its own (`linux/netlink.h`, `linux/socket.h`).
const NETLINK_XFRM: u32 = 6;
const NETLINK_GENERIC: u32 = libc::NETLINK_GENERIC as u32;
const PF_KEY: u32 = 15;
/// A socket's own policy of it (`linux/in.h`, `linux/in6.h`).
const IP_IPSEC_POLICY: u32 = 16;
const IP_XFRM_POLICY: u32 = 17;
const IPV6_IPSEC_POLICY: u32 = 34;
const IPV6_XFRM_POLICY: u32 = 35;

/// `MFD_ALL_FLAGS` (mm/memfd.c) with the sizes of huge pages.
const MFD_FLAGS: u32 = 0x1f | 0x3f << 26;

/// The commands of `membarrier(2)` that register something (`linux/membarrier.h`).
const MEMBARRIER_REGISTER: u32 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;

// `include/uapi/asm-generic/{fcntl,ioctls,sockios}.h`.
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const FIOASYNC: u32 = 0x5452;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const SIOCETHTOOL: u32 = 0x8946;

fn stmt(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, when_true: u8, when_false: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt: when_true, jf: when_false, k }
}

fn load(offset: u32) -> sock_filter {
    stmt(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn ret(action: u32) -> sock_filter {
    stmt(BPF_RET | BPF_K, action)
}

fn trace(notice: Notice) -> sock_filter {
    ret(libc::SECCOMP_RET_TRACE | u32::from(notice as u16))
}

fn errno(errno: i32) -> sock_filter {
    ret(libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// How many instructions there are for foreign interfaces.
const FOREIGN: usize = 6;

/// The whole program, in order: foreign interfaces, calls told apart by arguments, noticed, hidden, all else.
pub fn program() -> Vec<sock_filter> {
    let allow = ret(libc::SECCOMP_RET_ALLOW);
    let mut prog = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        errno(libc::ENOSYS),
        load(NUMBER),
        jump(BPF_JSET, X32_BIT, 0, 1),
        errno(libc::ENOSYS),
        // madvise: advice that empties pages, and advice that stays with a mapping (from MADV_DONTFORK to MADV_KEEPONFORK).
        // Guard pages (from MADV_GUARD_INSTALL on) cannot be read back: unknown, as before Linux 6.13.
        jump(BPF_JEQ, libc::SYS_madvise as u32, 0, 12),
        load(argument(2)),
        jump(BPF_JEQ, libc::MADV_DONTNEED as u32, 6, 0),
        jump(BPF_JEQ, libc::MADV_FREE as u32, 5, 0),
        jump(BPF_JEQ, libc::MADV_REMOVE as u32, 4, 0),
        jump(BPF_JEQ, MADV_DONTNEED_LOCKED, 3, 0),
        jump(BPF_JGT, MADV_GUARD_INSTALL - 1, 3, 0),
        jump(BPF_JGT, MADV_KEEPONFORK, 3, 0),
        jump(BPF_JGT, libc::MADV_REMOVE as u32, 3, 2),
        trace(Notice::PagesDropped),
        errno(libc::EINVAL),
        allow,
        trace(Notice::Advice),
        // mmap: huge pages are hidden (there are none, as on most machines); files that are mapped shared are noticed.
        // What grows down, or is locked, is not seen in the list of mappings.
        jump(BPF_JEQ, libc::SYS_mmap as u32, 0, 10),
        load(argument(3)),
        jump(BPF_JSET, libc::MAP_HUGETLB as u32, 0, 1),
        errno(libc::ENOMEM),
        jump(BPF_JSET, (libc::MAP_GROWSDOWN | libc::MAP_LOCKED) as u32, 0, 1),
        trace(Notice::Advice),
        jump(BPF_JSET, libc::MAP_ANONYMOUS as u32, 0, 1),
        allow,
        jump(BPF_JSET, libc::MAP_SHARED as u32, 1, 0),
        allow,
        trace(Notice::SharedMapping),
        // mremap: noticed where pages go without a trace: it shrinks (the lower halves of the lengths tell enough: one too
        // many is noticed where they differ above), it copies a shared mapping (from length 0), or leaves an empty one.
        jump(BPF_JEQ, libc::SYS_mremap as u32, 0, 11),
        load(argument(3)),
        jump(BPF_JSET, libc::MREMAP_DONTUNMAP as u32, 7, 0),
        load(argument(2)),
        stmt(BPF_MISC | BPF_TAX, 0),
        load(argument(1)),
        sock_filter { code: (BPF_JMP | BPF_JGT | BPF_X) as u16, jt: 3, jf: 0, k: 0 },
        jump(BPF_JEQ, 0, 2, 0),
        load(argument(1) + 4),
        jump(BPF_JEQ, 0, 1, 0),
        trace(Notice::PagesDropped),
        allow,
        // memfd_create and shmget with huge pages. With flags that there are not, the kernel answers: programs ask so for the call.
        jump(BPF_JEQ, libc::SYS_memfd_create as u32, 0, 4),
        load(argument(1)),
        jump(BPF_JSET, !MFD_FLAGS, 1, 0),
        jump(BPF_JSET, libc::MFD_HUGETLB, 5, 0),
        allow,
        jump(BPF_JEQ, libc::SYS_shmget as u32, 0, 4),
        load(argument(2)),
        jump(BPF_JSET, libc::SHM_HUGETLB as u32, 1, 0),
        trace(Notice::Segment),
        errno(libc::ENOMEM),
        // fcntl and ioctl: what has to do with signals. Offloads and rings of a device are what its driver knows nothing of.
        jump(BPF_JEQ, libc::SYS_fcntl as u32, 0, 9),
        load(argument(1)),
        jump(BPF_JEQ, libc::F_SETFL as u32, 0, 2),
        load(argument(2)),
        jump(BPF_JSET, libc::O_ASYNC as u32, 4, 3),
        jump(BPF_JEQ, libc::F_SETOWN as u32, 3, 0),
        jump(BPF_JEQ, F_SETSIG, 2, 0),
        jump(BPF_JEQ, F_SETOWN_EX, 1, 0),
        allow,
        trace(Notice::SignalOwner),
        jump(BPF_JEQ, libc::SYS_ioctl as u32, 0, 8),
        load(argument(1)),
        jump(BPF_JEQ, FIOASYNC, 4, 0),
        jump(BPF_JEQ, FIOSETOWN, 3, 0),
        jump(BPF_JEQ, SIOCSPGRP, 2, 0),
        jump(BPF_JEQ, SIOCETHTOOL, 2, 0),
        allow,
        trace(Notice::SignalOwner),
        errno(libc::EOPNOTSUPP),
        // setsockopt(…, SOL_TCP, TCP_ULP): this kernel has no such protocol, the program is told; nor IPsec (below).
        jump(BPF_JEQ, libc::SYS_setsockopt as u32, 0, 15),
        load(argument(1)),
        jump(BPF_JEQ, libc::SOL_TCP as u32, 0, 2),
        load(argument(2)),
        jump(BPF_JEQ, TCP_ULP, 8, 9),
        jump(BPF_JEQ, libc::SOL_IP as u32, 0, 3),
        load(argument(2)),
        jump(BPF_JEQ, IP_IPSEC_POLICY, 7, 0),
        jump(BPF_JEQ, IP_XFRM_POLICY, 6, 5),
        jump(BPF_JEQ, libc::SOL_IPV6 as u32, 0, 4),
        load(argument(2)),
        jump(BPF_JEQ, IPV6_IPSEC_POLICY, 3, 0),
        jump(BPF_JEQ, IPV6_XFRM_POLICY, 2, 1),
        errno(libc::ENOENT),
        trace(Notice::SocketOption),
        errno(libc::ENOPROTOOPT),
        // socket: IPsec, whose policies and keys are the kernel's, is one that it was built without. So is generic netlink, by which
        // all kinds of the kernel's own state are set (IPVS, tunnels, what a device can do) that nothing lists for all of them.
        jump(BPF_JEQ, libc::SYS_socket as u32, 0, 9),
        load(argument(0)),
        jump(BPF_JEQ, PF_KEY, 4, 0),
        jump(BPF_JEQ, libc::AF_NETLINK as u32, 0, 4),
        load(argument(2)),
        jump(BPF_JEQ, NETLINK_XFRM, 3, 0),
        jump(BPF_JEQ, NETLINK_GENERIC, 2, 1),
        errno(libc::EAFNOSUPPORT),
        allow,
        errno(libc::EPROTONOSUPPORT),
        // seccomp(SECCOMP_SET_MODE_…): a filter of the program's own. Questions are allowed.
        jump(BPF_JEQ, libc::SYS_seccomp as u32, 0, 4),
        load(argument(0)),
        jump(BPF_JGT, libc::SECCOMP_SET_MODE_FILTER, 1, 0),
        trace(Notice::Filter),
        allow,
        // membarrier: what is registered with the kernel is the process's, and is asked for again.
        jump(BPF_JEQ, libc::SYS_membarrier as u32, 0, 4),
        load(argument(0)),
        jump(BPF_JSET, MEMBARRIER_REGISTER, 0, 1),
        trace(Notice::Attribute),
        allow,
    ];
    for (call, option, code) in HIDDEN_OPTIONS {
        prog.extend([
            jump(BPF_JEQ, *call as u32, 0, 4),
            load(argument(0)),
            jump(BPF_JEQ, *option, 0, 1),
            errno(*code),
            load(NUMBER),
        ]);
    }
    for (number, notice) in NOTICED {
        prog.push(jump(BPF_JEQ, *number as u32, 0, 1));
        prog.push(trace(*notice));
    }
    for (number, code) in HIDDEN {
        prog.push(jump(BPF_JEQ, *number as u32, 0, 1));
        prog.push(errno(*code));
    }
    prog.push(allow);
    prog
}

/// As [`program`], for a program that is only looked at: what is hidden, and what wants to write, is announced.
pub fn observing() -> Vec<sock_filter> {
    let wants = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;
    let mut writes = Vec::new();
    for (number, flags) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
        writes.extend([
            jump(BPF_JEQ, number as u32, 0, 4),
            load(argument(flags)),
            jump(BPF_JSET, wants, 0, 1),
            trace(Notice::Writes),
            ret(libc::SECCOMP_RET_ALLOW),
        ]);
    }
    for number in WRITES {
        writes.extend([jump(BPF_JEQ, *number as u32, 0, 1), trace(Notice::Writes)]);
    }
    let mut prog = program();
    prog.splice(FOREIGN..FOREIGN, writes);
    for instruction in &mut prog {
        let returns = u32::from(instruction.code) == BPF_RET | BPF_K;
        if returns && instruction.k & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO {
            let error = instruction.k & libc::SECCOMP_RET_DATA;
            instruction.k = libc::SECCOMP_RET_TRACE | error | u32::from(HIDES);
        }
    }
    prog
}

/// Puts the calling thread, and all that it will start, under a filter. Needs CAP_SYS_ADMIN.
pub fn install(mut prog: Vec<sock_filter>) -> io::Result<()> {
    let fprog = libc::sock_fprog { len: prog.len() as u16, filter: prog.as_mut_ptr() };
    // SAFETY: `fprog` and the program it points to live until the call returns; the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the classic program over one call, as the kernel would.
    fn verdict(number: i64, args: [u64; 6]) -> u32 {
        let prog = program();
        let word = |offset: u32| match offset {
            NUMBER => number as u32,
            ARCHITECTURE => AUDIT_ARCH_X86_64,
            _ => (args[((offset - 16) / 8) as usize] >> (offset % 8 * 8)) as u32,
        };
        let (mut at, mut accumulator, mut index) = (0usize, 0u32, 0u32);
        loop {
            let instruction = prog[at];
            at += 1;
            let code = u32::from(instruction.code);
            if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = word(instruction.k);
            } else if code == BPF_MISC | BPF_TAX {
                index = accumulator;
            } else if code == BPF_RET | BPF_K {
                return instruction.k;
            } else {
                let hit = match code ^ (BPF_JMP | BPF_K) {
                    test if test == BPF_JGT | BPF_X => accumulator > index,
                    BPF_JEQ => accumulator == instruction.k,
                    BPF_JGT => accumulator > instruction.k,
                    _ => accumulator & instruction.k != 0,
                };
                at += usize::from(if hit { instruction.jt } else { instruction.jf });
            }
        }
    }

    #[test]
    fn r3_hidden_calls_answer_as_if_absent() {
        for (number, code) in HIDDEN {
            assert_eq!(verdict(*number, [0; 6]), libc::SECCOMP_RET_ERRNO | *code as u32);
        }
        let ulp = verdict(libc::SYS_setsockopt, [3, libc::SOL_TCP as u64, u64::from(TCP_ULP), 0, 0, 0]);
        assert_eq!(ulp, libc::SECCOMP_RET_ERRNO | libc::ENOENT as u32);
    }

    #[test]
    fn r3_there_is_no_generic_netlink_and_no_ethtool() {
        let generic =
            verdict(libc::SYS_socket, [libc::AF_NETLINK as u64, 3, NETLINK_GENERIC.into(), 0, 0, 0]);
        assert_eq!(generic, libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32);
        let ioctl = |number: u32| verdict(libc::SYS_ioctl, [3, number.into(), 0, 0, 0, 0]);
        assert_eq!(ioctl(SIOCETHTOOL), libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32);
        assert_eq!(ioctl(SIOCSPGRP), libc::SECCOMP_RET_TRACE | Notice::SignalOwner as u32);
        assert_eq!(ioctl(SIOCETHTOOL + 1), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn r3_there_is_no_ipsec() {
        let socket = |family: i32, protocol: u32| {
            verdict(libc::SYS_socket, [family as u64, 3, protocol.into(), 0, 0, 0])
        };
        let absent = |code: i32| libc::SECCOMP_RET_ERRNO | code as u32;
        assert_eq!(socket(libc::AF_NETLINK, NETLINK_XFRM), absent(libc::EPROTONOSUPPORT));
        assert_eq!(socket(PF_KEY as i32, 2), absent(libc::EAFNOSUPPORT));
        for (family, protocol) in [(libc::AF_NETLINK, 0), (libc::AF_INET, NETLINK_XFRM), (libc::AF_UNIX, 0)] {
            assert_eq!(socket(family, protocol), libc::SECCOMP_RET_ALLOW);
        }
        let option =
            |level: i32, name: u32| verdict(libc::SYS_setsockopt, [3, level as u64, name.into(), 0, 0, 0]);
        for (level, name) in [
            (libc::SOL_IP, IP_IPSEC_POLICY),
            (libc::SOL_IP, IP_XFRM_POLICY),
            (libc::SOL_IPV6, IPV6_IPSEC_POLICY),
            (libc::SOL_IPV6, IPV6_XFRM_POLICY),
        ] {
            assert_eq!(option(level, name), absent(libc::ENOPROTOOPT));
            for other in [(libc::SOL_SOCKET, name), (libc::SOL_TCP, name), (level, name - 3)] {
                assert_eq!(option(other.0, other.1), libc::SECCOMP_RET_TRACE | Notice::SocketOption as u32);
            }
        }
    }

    #[test]
    fn noticed_calls_are_traced_and_common_ones_run_free() {
        for (number, notice) in NOTICED {
            assert_eq!(verdict(*number, [0; 6]), libc::SECCOMP_RET_TRACE | u32::from(*notice as u16));
        }
        for number in [libc::SYS_read, libc::SYS_write, libc::SYS_futex, libc::SYS_epoll_wait, libc::SYS_mmap]
        {
            assert_eq!(verdict(number, [0; 6]), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn advice_that_changes_something_is_noticed() {
        let dontneed = verdict(libc::SYS_madvise, [0, 0, libc::MADV_DONTNEED as u64, 0, 0, 0]);
        assert_eq!(dontneed, libc::SECCOMP_RET_TRACE | Notice::PagesDropped as u32);
        let advice = |number: u32| verdict(libc::SYS_madvise, [0, 0, u64::from(number), 0, 0, 0]);
        for number in [libc::MADV_FREE as u32, libc::MADV_REMOVE as u32, MADV_DONTNEED_LOCKED] {
            assert_eq!(advice(number), dontneed);
        }
        for number in libc::MADV_DONTFORK as u32..=MADV_KEEPONFORK {
            assert_eq!(advice(number), libc::SECCOMP_RET_TRACE | Notice::Advice as u32);
        }
        for number in [0, 1, 2, 3, 20, 21, 22, 23, 25] {
            assert_eq!(advice(number), libc::SECCOMP_RET_ALLOW);
        }
        for number in [MADV_GUARD_INSTALL, MADV_GUARD_INSTALL + 1] {
            assert_eq!(advice(number), libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32);
        }
        let locked = [0, 4096, 3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED) as u64, 0, 0];
        assert_eq!(verdict(libc::SYS_mmap, locked), libc::SECCOMP_RET_TRACE | Notice::Advice as u32);
        let nodelay =
            verdict(libc::SYS_setsockopt, [3, libc::SOL_TCP as u64, libc::TCP_NODELAY as u64, 0, 0, 0]);
        assert_eq!(nodelay, libc::SECCOMP_RET_TRACE | Notice::SocketOption as u32);
        let level = verdict(libc::SYS_setsockopt, [3, libc::SOL_SOCKET as u64, u64::from(TCP_ULP), 0, 0, 0]);
        assert_eq!(level, libc::SECCOMP_RET_TRACE | Notice::SocketOption as u32);
    }

    #[test]
    fn what_is_mapped_shared_is_noticed_and_huge_pages_are_hidden() {
        let map = |flags: i32| verdict(libc::SYS_mmap, [0, 4096, 3, flags as u64, 5, 0]);
        let noticed = libc::SECCOMP_RET_TRACE | Notice::SharedMapping as u32;
        assert_eq!(map(libc::MAP_SHARED), noticed);
        assert_eq!(map(libc::MAP_SHARED_VALIDATE | libc::MAP_FIXED), noticed);
        assert_eq!(map(libc::MAP_PRIVATE), libc::SECCOMP_RET_ALLOW);
        assert_eq!(map(libc::MAP_SHARED | libc::MAP_ANONYMOUS), libc::SECCOMP_RET_ALLOW);
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32;
        assert_eq!(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB), absent);
        let memfd = |flags: u32| verdict(libc::SYS_memfd_create, [0, u64::from(flags), 0, 0, 0, 0]);
        assert_eq!(memfd(libc::MFD_CLOEXEC), libc::SECCOMP_RET_ALLOW);
        assert_eq!(memfd(libc::MFD_CLOEXEC | libc::MFD_HUGETLB), absent);
        assert_eq!(memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB), absent);
        assert_eq!(memfd(u32::MAX), libc::SECCOMP_RET_ALLOW);
        let segment = |flags: i32| verdict(libc::SYS_shmget, [0, 4096, flags as u64, 0, 0, 0]);
        assert_eq!(segment(libc::IPC_CREAT), libc::SECCOMP_RET_TRACE | Notice::Segment as u32);
        assert_eq!(segment(libc::IPC_CREAT | libc::SHM_HUGETLB), absent);
    }

    #[test]
    fn a_move_of_memory_that_empties_pages_is_noticed() {
        let remap = |old: u64, new: u64, flags: i32| {
            verdict(libc::SYS_mremap, [0, old, new, flags as u64, 0, 0]) != libc::SECCOMP_RET_ALLOW
        };
        assert!(!remap(4096, 8192, libc::MREMAP_MAYMOVE) && !remap(4096, 4096, libc::MREMAP_MAYMOVE));
        assert!(remap(8192, 4096, 0) && remap(0, 4096, libc::MREMAP_MAYMOVE));
        assert!(remap(4096, 4096, libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP));
        assert!(remap(5 << 32, 4 << 32, 0));
    }

    #[test]
    fn whom_a_descriptor_signals_is_noticed_and_other_flags_are_not() {
        let noticed = libc::SECCOMP_RET_TRACE | Notice::SignalOwner as u32;
        let fcntl = |command: u64, argument: u64| verdict(libc::SYS_fcntl, [3, command, argument, 0, 0, 0]);
        for command in [libc::F_SETOWN as u64, F_SETSIG.into(), F_SETOWN_EX.into()] {
            assert_eq!(fcntl(command, 7), noticed);
        }
        assert_eq!(fcntl(libc::F_SETFL as u64, (libc::O_ASYNC | libc::O_NONBLOCK) as u64), noticed);
        assert_eq!(fcntl(libc::F_SETFL as u64, libc::O_NONBLOCK as u64), libc::SECCOMP_RET_ALLOW);
        assert_eq!(fcntl(libc::F_GETFL as u64, 0), libc::SECCOMP_RET_ALLOW);
        for request in [FIOASYNC, FIOSETOWN, SIOCSPGRP] {
            assert_eq!(verdict(libc::SYS_ioctl, [3, request.into(), 0, 0, 0, 0]), noticed);
        }
        assert_eq!(verdict(libc::SYS_ioctl, [3, libc::FIONREAD, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn a_filter_of_the_programs_own_is_noticed_and_a_question_is_not() {
        let noticed = libc::SECCOMP_RET_TRACE | Notice::Filter as u32;
        for operation in [libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_SET_MODE_STRICT] {
            assert_eq!(verdict(libc::SYS_seccomp, [operation.into(), 0, 0, 0, 0, 0]), noticed);
        }
        let question = libc::SECCOMP_GET_ACTION_AVAIL.into();
        assert_eq!(verdict(libc::SYS_seccomp, [question, 0, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
    }
}
