//! memcached

use std::process::Command;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::Probe;

pub const PACKAGE: Package = Package {
    name: "memcached",
    needs: &["libevent-dev", "libsasl2-dev", "libssl-dev"],
    configure: "./configure --disable-docs --disable-coverage --enable-sasl --enable-tls --enable-proxy",
    build: "make -C vendor; make -j2 memcached",
    links: &["memcached"],
    load: Kind::Memcached,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let mut command = quiet(&place.linked("memcached"));
    command.args(["-u", "root", "-l", "127.0.0.1", "-p", &place.port.to_string(), "-t", "4"]);
    Ok(command)
}

const PROBES: &[Probe] = &[];

const UNSEEN: &[(&str, &str)] =
    &[("0007-uninitialized-variables.patch", "sets a variable that is set anyway before it is used")];
