//! The network of a protected workload: its namespace, the plug that holds what it says, the log of what it is
//! told, and the takeover of its address.
//!
//! ```text
//!   workload's namespace            supervisor (this crate)                 host's namespace
//!  ┌─────────────────────┐     ┌──────────────────────────────┐     ┌─────────────────────────┐
//!  │ sockets ── eth0 ────┼─────┼─▶ [Plug] holds until commit ─┼─────┼─▶ port ── bridge ── NIC │
//!  │      (TAP, inner)   │◀────┼── [gate] ◀─┬─────────────────┼─────┼── (TAP, outer)          │
//!  └─────────────────────┘     │            └▶ sink: the backup's [InputLog]                  │
//!                              └──────────────────────────────┘     └─────────────────────────┘
//! ```
//!
//! [`Namespace`] makes the left side, [`Port`] the right one, [`Pump`] moves frames between them. The rules are
//! in [`Plug`], which does no I/O and takes the time as an argument. At a takeover [`probe`] asks each peer what
//! it has, [`Port::attach`] and [`Announcer`] move the address, and the backup's [`InputLog`] is injected, with what was
//! [`Overheard`] while nobody answered.
//!
//! Invariants:
//! - No frame leaves [`Plug`] before its epoch is committed, unless the workload is exposed (R1).
//! - No frame leaves a protected primary without a fresh acknowledgement of its backup (R2).
//! - Neither device is persistent: a supervisor that dies takes the workload's voice with it (R4).
//! - This crate knows nothing of processes, memory or the network between nodes.

mod announce;
mod config;
mod frame;
mod gate;
mod in_use;
mod input_log;
mod mac;
mod moment;
mod namespace;
mod neighbours;
mod overheard;
mod plug;
mod port;
pub mod probe;
mod pump;
mod sys;
mod uplink;

pub use announce::Announcer;
pub use config::{ConfigError, DEFAULT_MTU, NetworkConfig, Route};
pub use frame::{Class, MAX_FRAME, VNET_HEADER, classify, destination_mac, source_mac};
pub use in_use::probe_in_use;
pub use input_log::{InputLog, InputLogLimits};
pub use mac::{Mac, ParseMacError};
pub use moment::Moment;
pub use namespace::{INTERFACE, InnerTap, Namespace, NamespaceError, TcpTable};
pub use neighbours::Neighbours;
pub use overheard::Overheard;
pub use plug::{Batch, Frame, Plug, PlugConfig, PlugError, Pressure, Signals};
pub use port::{Port, PortError};
pub use pump::{
    Admission, Aside, Device, Event, InputClosed, InputSink, Observer, Pump, PumpConfig, PumpError, Stats,
    Voice,
};
pub use uplink::Uplink;
