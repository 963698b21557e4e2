//! The operating system behind narrow, typed functions. Nothing above this module has `unsafe`.

pub mod bpf;
pub mod tcp_repair;
