//! The operating system behind narrow, typed functions. Nothing above this module has `unsafe`.

pub mod bpf;
pub mod datagram;
pub mod descriptor;
pub mod inotify;
pub mod mqueue;
pub mod pagemap;
pub mod proc;
pub mod ptrace;
pub mod remote;
pub mod rtnetlink;
pub mod seccomp;
pub mod shared;
pub mod syscalls;
pub mod sysv;
pub mod task;
pub mod tcp_repair;
pub mod terminal;
pub mod uffd;
pub mod unix_diag;
