//! Builds a patch from two builds of a program, checks it, applies it to a running process and undoes it: without a restart
//! and without a pause. How, and why that is safe: docs/hotpatch.md. It knows nothing of the engines.
//!
//! The stages, in their order: [`record`] a build, [`build`] a patch against it (objects are read by [`unit`], programs by
//! [`program`], compared by [`compare`], types by [`layout`], places in the source by [`lines`]), write and read it by [`patch`], change a process by [`running`].

pub mod build;
pub mod compare;
pub mod error;
pub mod keys;
pub mod layout;
pub mod lines;
pub mod patch;
pub mod program;
pub mod record;
pub mod refusal;
pub mod running;
mod sys;
pub mod unit;

pub use error::{Error, Result};
