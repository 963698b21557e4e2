//! `outlive-replicated` for C and C++: what `include/outlive_replicated.h` declares.
//!
//! The header is made of this crate by `cbindgen`, with the macros of `src/macros.h` at its end; a test fails when it is
//! not what the sources say (`OUTLIVE_BLESS=1` writes it anew). C programs use the macros, which call what is here.
//!
//! | module | concern |
//! |---|---|
//! | `code` | what functions return, the words for it, and that no panic leaves this library |
//! | `blob` | bytes as a value of the library of Rust |
//! | `describe` | replicated structs and statics as the macros describe them |
//! | `guard` | pointers that a thread of the program holds to replicated memory, until it ends them |
//! | `state` | reading and changing |
//! | `transaction` | commits and transactions |
//! | `function` | replicated functions and what they opened |
//! | `start` | taking part |
//!
//! Invariant: every function that C calls goes through `code::run`, which catches panics and keeps the words of errors.
//! A failed write, or read, makes the thread's transaction fail: its commit undoes it and says why, so that a program that
//! looked at no code cannot commit half of what it meant.

#![allow(non_camel_case_types, reason = "these are the names that C programs use")]
#![warn(missing_docs)]

mod blob;
mod code;
mod describe;
mod function;
mod guard;
mod start;
mod state;
mod transaction;

#[cfg(test)]
mod tests;
