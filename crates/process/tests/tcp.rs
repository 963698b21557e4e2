//! TCP sockets through a host's death: real kernel, two network namespaces, a wire that can be cut.
//!
//! Needs root, like all that makes namespaces.

#[path = "tcp/bulk.rs"]
mod bulk;
#[path = "tcp/dead.rs"]
mod dead;
#[path = "tcp/fingerprint.rs"]
mod fingerprint;
#[path = "tcp/options.rs"]
mod options;
#[path = "tcp/refused.rs"]
mod refused;
#[path = "tcp/states.rs"]
mod states;
#[path = "tcp/talk.rs"]
mod talk;
#[path = "tcp/world.rs"]
mod world;
