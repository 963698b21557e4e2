//! One module per command. What the user typed is resolved here; what is done is done by the agent, or by `check`
//! and `cert` on the spot.

pub mod cert;
pub mod check;
pub mod inspect;
pub mod logs;
pub mod manual;
pub mod moves;
pub mod patch;
pub mod ps;
pub mod replicated;
pub mod run;
pub mod seed;
pub mod stop;
mod table;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Reach;
use crate::config::{Config, DEFAULT_SOCKET};
use crate::control::Client;
use crate::error::{Context, Result};

const SOCKET_VARIABLE: &str = "OUTLIVE_SOCKET";

impl Reach {
    /// What is said on the command line goes before what is in the environment.
    fn resolve(&self) -> Result<PathBuf> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(config) = &self.config {
            return Ok(Config::load(config)?.control_socket);
        }
        Ok(std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from))
    }

    fn connect(&self) -> Result<Client> {
        Client::connect(&self.resolve()?)
    }
}

/// To standard output, as one line. A reader that has left is no error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).or_failed(|| "write JSON".to_owned())?);
    Ok(())
}

/// Says what is being done, on standard error.
fn progress(what: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{what} ...");
}
