//! The kernel's interfaces, each behind safe and typed functions. Nothing above this module has `unsafe`.

pub mod macvtap;
pub mod netlink;
pub mod packet;
pub mod tap;
pub mod thread;
