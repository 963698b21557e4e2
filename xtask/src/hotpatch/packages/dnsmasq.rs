//! dnsmasq

use std::path::Path;
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
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    // Without a fix it takes all memory that it can get: it is not to be the machine's.
    let mut command = quiet(Path::new("prlimit"));
    command.arg("--as=536870912").arg(place.linked("dnsmasq"));
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
    command.args(["--add-subnet=32", "--cache-rr=MX", "--dnssec", "--dnssec-no-timecheck", SIGNED_ANCHOR]);
    // A zone with a server of its own is looked at if it has an anchor of its own.
    for zone in [".", "loop"] {
        command.arg(format!("--trust-anchor={zone},{UNKNOWN_KEY}"));
    }
    for zone in ["test", "loop", "signed"] {
        command.arg(format!("--server=/{zone}/127.0.0.1#{}", place.peer));
    }
    Ok(command)
}

/// A key of no known algorithm: what is below it counts as unsigned.
const UNKNOWN_KEY: &str = "1,250,2,0000000000000000000000000000000000000000000000000000000000000000";
/// The digest of the key that a probe's peer has (RFC 4034, 5.1.4).
const SIGNED_ANCHOR: &str =
    "--trust-anchor=signed,54488,8,2,a66c17367154eb2e3c7aa7e0864f15768e0a92db715d9b46205f078306b7fd8b";

const PROBES: &[Probe] = &[
    // RFC 4034, 4.1.2: an NSEC record whose map of types has a window of no bytes.
    Probe {
        patch: "CVE-2026-4890.patch",
        without: Without::Stalls,
        steps: &[
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01z\x04loop\x00\x00\x01\x00\x01"),
            Step::Asked(b"\x01z\x04loop"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x00\x00\x02\x00\x00\x01z\x04loop\x00\x00\x01\x00\x01\
                  \xc0\x0c\x00\x2f\x00\x01\x00\x00\x00\x3c\x00\x0a\x01y\x04loop\x00\x01\x00\
                  \xc0\x0c\x00\x2e\x00\x01\x00\x00\x00\x3c\x00\x20\x00\x2f\x08\x02\x00\x00\x00\x3c\
                  \x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x04loop\x00ssssssss",
            ),
            Step::Answer(Answer::Begins(b"\x00\x07\x81")),
        ],
    },
    // RFC 4034, 3.1: the signature of a key whose record ends before the name of the signer does.
    Probe {
        patch: "CVE-2026-4891.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01z\x06signed\x00\x00\x01\x00\x01"),
            Step::Asked(b"\x01z\x06signed"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x02\x00\x00\x00\x00\x01z\x06signed\x00\x00\x01\x00\x01\
                  \xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x02\
                  \xc0\x0c\x00\x2e\x00\x01\x00\x00\x00\x3c\x00\x22\x00\x01\x08\x02\x00\x00\x00\x3c\
                  \x00\x00\x00\x00\x00\x00\x00\x00\xd4\xd8\x06signed\x00ssssssss",
            ),
            Step::Asked(b"\x06signed\x00\x00\x30"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x02\x00\x00\x00\x00\x06signed\x00\x00\x30\x00\x01\
                  \xc0\x0c\x00\x30\x00\x01\x00\x00\x00\x3c\x00\x48\x01\x01\x03\x08\x03\x01\x00\x01\
                  nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
                  \xc0\x0c\x00\x2e\x00\x01\x00\x00\x00\x3c\x00\x12\x00\x30\x08\x01\x00\x00\x00\x3c\
                  \x00\x00\x00\x00\x00\x00\x00\x00\xd4\xd8\x06signed\x00",
            ),
            Step::Answer(Answer::Begins(b"\x00\x07\x81")),
        ],
    },
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
    // A record whose name goes on behind its end: what is left of it is a negative number of bytes, which are copied until there is no
    // more memory.
    Probe {
        patch: "CVE-2026-5172.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01y\x04test\x00\x00\x0f\x00\x01"),
            Step::Asked(b"\x01y\x04test"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01y\x04test\x00\x00\x0f\x00\x01\
                  \xc0\x0c\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x04\x00\x0a\x02mx\x04test\x00",
            ),
            Step::Differs { without: Answer::Begins(b"\x00\x07\x81\x80"), with: Answer::Begins(b"\x00\x07\x81\x82") },
        ],
    },
];

const UNSEEN: &[(&str, &str)] =
    &[("CVE-2026-4892.patch", "needs a client of DHCPv6, and a script for its leases")];
