//! One module per kind of kernel object: its checkpoint type, its `capture` and its `restore` side by side.

pub mod attributes;
pub mod datagram;
pub mod descriptor;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod inotify;
pub mod memory;
pub mod mqueue;
pub mod namespace;
pub mod netlink;
pub mod network;
mod network_restore;
pub mod packet;
pub mod pidfd;
pub mod pipe;
pub mod posix_timer;
pub mod scratch;
mod scratch_apply;
pub mod seccomp_filter;
pub mod shared;
pub mod signal;
pub mod signal_owner;
pub mod signalfd;
mod sockopt;
pub mod sysv;
pub mod tcp;
pub mod tcp_request;
pub mod terminal;
pub mod terminal_build;
pub mod timerfd;
pub mod unix;
pub mod unix_actor;
mod unix_build;

pub use descriptor::Object;
