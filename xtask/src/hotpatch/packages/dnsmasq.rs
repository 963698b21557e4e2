//! dnsmasq

use std::process::Command;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "dnsmasq",
    needs: &["nettle-dev", "libgmp-dev"],
    configure: "",
    build: "make -j2 all COPTS=-DHAVE_DNSSEC",
    links: &["src/dnsmasq"],
    load: Kind::Dns,
    start,
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let mut command = quiet(&place.linked("dnsmasq"));
    let port = place.port.to_string();
    command.args([
        "-k",
        "-C",
        "/dev/null",
        "-u",
        "root",
        "-p",
        &port,
        "-a",
        "127.0.0.1",
        "-z",
        "-R",
        "-h",
        "-x",
    ]);
    command.arg(place.folder.join("dnsmasq.pid")).arg("--address=/host.example/192.0.2.1");
    command.arg(format!("--server=127.0.0.1#{}", place.peer)).args(["--add-subnet=32", "--cache-rr=MX"]);
    Ok(command)
}

const PROBES: &[Probe] = &[
    // The question says for which address it is asked, the answer says another (RFC 7871, 9.2).
    Probe {
        patch: "CVE-2026-4893.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x04test\x00\x00\x01\x00\x01"),
            Step::Asked(b"\x01x\x04test"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x01\x01x\x04test\x00\x00\x01\x00\x01\
                  \xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\xc0\x00\x02\x02\
                  \x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x0c\x00\x08\x00\x08\x00\x01\x20\x20\x0a\x00\x00\x01",
            ),
            Step::Differs { without: Answer::Begins(b"\x00\x07\x81\x80"), with: Answer::Nothing },
        ],
    },
    // A record whose name goes on behind its end.
    Probe {
        patch: "CVE-2026-5172.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01y\x04test\x00\x00\x0f\x00\x01"),
            Step::Asked(b"\x01y\x04test"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01y\x04test\x00\x00\x0f\x00\x01\
                  \xc0\x0c\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x04\x00\x0a\x02mx\x04test\x00",
            ),
            Step::Answer(Answer::Begins(b"\x00\x07\x81")),
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[
    ("CVE-2026-4890.patch", "needs a signed zone"),
    ("CVE-2026-4891.patch", "needs a signed zone"),
    ("CVE-2026-4892.patch", "needs a client of DHCPv6, and a script for its leases"),
];
