//! One module per kind of kernel object: its checkpoint type, its `capture` and its `restore` side by side.

pub mod tcp;
pub mod tcp_request;
