//! libevent

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::Probe;

pub const PACKAGE: Package = Package {
    name: "libevent",
    needs: &["cmake", "memcached"],
    configure: "cmake -S . -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DEVENT__LIBRARY_TYPE=SHARED -DEVENT__DISABLE_TESTS=ON \
                -DEVENT__DISABLE_BENCHMARK=ON -DEVENT__DISABLE_SAMPLES=ON -DEVENT__DISABLE_OPENSSL=ON",
    build: "cmake --build build -j2 --target event_shared",
    links: &["build/lib/libevent-2.1.so.7.0.1"],
    load: Kind::Memcached,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

/// Debian's own memcached, with the library that was built here.
fn start(place: &Place) -> Result<Command> {
    let mut command = quiet(Path::new("memcached"));
    command.env("LD_LIBRARY_PATH", &place.folder);
    command.args(["-u", "root", "-l", "127.0.0.1", "-p", &place.port.to_string(), "-t", "4"]);
    Ok(command)
}

const PROBES: &[Probe] = &[];

const UNSEEN: &[(&str, &str)] = &[];
