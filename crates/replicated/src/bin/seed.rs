//! A seed node for programs that run without agents.
//!
//! `outlive-replicated-seed CONFIG [--bootstrap]`: the configuration says where it listens, its certificate, the cluster
//! and all seed nodes; `--bootstrap` once, when the cluster begins.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use outlive_replicated::{ClusterId, Config, Identity, Node, Seed};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    /// Where its votes are kept.
    directory: PathBuf,
    cluster: String,
    tls: Tls,
    seeds: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let (path, bootstrap) = match (arguments.next(), arguments.next().as_deref(), arguments.next()) {
        (Some(path), None, None) => (path, false),
        (Some(path), Some("--bootstrap"), None) => (path, true),
        _ => {
            eprintln!("usage: outlive-replicated-seed CONFIG [--bootstrap]");
            return ExitCode::FAILURE;
        }
    };
    match run(Path::new(&path), bootstrap) {
        Ok(address) => {
            println!("listening on {address}");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path, bootstrap: bool) -> Result<SocketAddr, Box<dyn std::error::Error>> {
    let file: File = toml::from_str(&std::fs::read_to_string(path)?)?;
    let identity = Identity::load(&file.tls.ca, &file.tls.cert, &file.tls.key)?;
    let cluster: ClusterId = file.cluster.parse()?;
    std::fs::create_dir_all(&file.directory)?;
    // The same seed nodes, by the same rules, as the programs' configurations say.
    let config = Config::new("seed", file.listen, identity.clone(), cluster, file.seeds, Vec::new())?;
    let seed = Seed::open(&file.directory, identity, config.seeds, bootstrap)?;
    Ok(seed.listen(file.listen)?)
}
