//! Every kind of description goes from one process, which only holds it, through a checkpoint's bytes into another, and
//! must be there what it was here.

mod epoll;
mod files;
mod forged;
mod pipes;
mod plain;
mod refused;
mod support;
mod unix;
