//! unbound

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "unbound",
    needs: &["libssl-dev", "libexpat1-dev", "bison", "flex"],
    configure: "./configure --disable-shared --disable-flto --with-pthreads",
    build: "make -j2 unbound",
    links: &["unbound"],
    load: Kind::Dns,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let many: String = (0..150)
        .map(|number| format!("  local-data: \"many.example. NS n{number:03}.many.example.\"\n"))
        .collect();
    let text = format!(
        "server:\n  interface: 127.0.0.1@{}\n  chroot: \"\"\n  username: \"\"\n  directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         do-daemonize: no\n  num-threads: 2\n  local-zone: \"example.\" static\n  local-data: \"host.example. A 192.0.2.1\"\n{many}  \
         do-not-query-localhost: no\n  qname-minimisation: no\n  minimal-responses: no\n  local-zone: \"test.\" nodefault\n  \
         access-control: 127.0.0.0/8 allow_snoop\n\
         remote-control:\n  control-enable: yes\n  control-interface: 127.0.0.1\n  control-port: {}\n  control-use-cert: no\n\
         include: \"{}/more.conf\"\n",
        place.port,
        place.folder.display(),
        place.others[0],
        place.folder.display()
    );
    // What a probe adds before the configuration is read again.
    place.write("more.conf", "")?;
    let config = place.write("unbound.conf", &text)?;
    let mut command = quiet(&place.linked("unbound"));
    command.arg("-d").arg("-c").arg(config);
    Ok(command)
}

/// One thread tells the others of a zone that was added.
const ALL_KNOW: Duration = Duration::from_millis(500);

const PROBES: &[Probe] = &[
    // A question that does not want recursion is not led on.
    Probe {
        patch: "fix-not-following-cleared-RD-flags-amplification.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Make(|place| format!("UBCT1 forward_add forward.test 127.0.0.1@{}\n", place.peer).into_bytes()),
            Step::Answer(Answer::Begins(b"ok\n")),
            Step::Wait(ALL_KNOW),
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x07forward\x04test\x00\x00\x01\x00\x01"),
            Step::Differs { without: Answer::Nothing, with: Answer::Begins(b"\x00\x07\x80\x82") },
        ],
    },
    // Numbers that are none of a port: that the first says is taken for a negative one.
    Probe {
        patch: "CVE-2024-43168/01-193401e75.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 set_option outgoing-port-avoid: 3294967295\n"),
            Step::Answer(Answer::Begins(b"error")),
        ],
    },
    Probe {
        patch: "CVE-2024-43168/02-dfff8d23c.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 set_option outgoing-port-avoid: 1-4294967295\n"),
            Step::Differs { without: Answer::Begins(b"ok\n"), with: Answer::Begins(b"error") },
        ],
    },
    Probe {
        patch: "CVE-2024-43168/03-4497e8a15.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 set_option outgoing-port-avoid: 99999\n"),
            Step::Differs { without: Answer::Begins(b"ok\n"), with: Answer::Begins(b"error") },
        ],
    },
    // What is read of the configuration is, once more, when the program is told to load it again.
    Probe {
        patch: "CVE-2024-43167/03-d149e755f.patch",
        without: Without::Dies,
        steps: &[
            Step::Write("more.conf", |_| b"forward-zone:\n  name: \"forward.test\"\n  forward-addr: 192.0.2.1\n".to_vec()),
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 reload\n"),
            Step::Answer(Answer::Begins(b"ok\n")),
            Step::Wait(Duration::from_secs(1)),
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 list_forwards\n"),
            Step::Answer(Answer::Contains(b"forward.test. IN forward 192.0.2.1")),
        ],
    },
    Probe {
        patch: "CVE-2024-43167/04-db1167c8b.patch",
        without: Without::Dies,
        steps: &[
            Step::Write("more.conf", |_| {
                let lines = (0..11_000).map(|number| format!("  local-zone: \"z{number}.test\" static\n"));
                format!("view:\n  name: \"v\"\n{}", lines.collect::<String>()).into_bytes()
            }),
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 reload\n"),
            Step::Answer(Answer::Begins(b"ok\n")),
            Step::Wait(Duration::from_secs(1)),
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 view_list_local_zones v\n"),
            Step::Answer(Answer::Contains(b"z10999.test. static")),
        ],
    },
    // 150 names in one answer: no more than 120 of them are compressed. By TCP, the length comes first.
    Probe {
        patch: "CVE-2024-8508.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"\x00\x1e\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04many\x07example\x00\x00\x02\x00\x01"),
            Step::Differs { without: Answer::Begins(b"\x0b\x40\x00\x07"), with: Answer::Begins(b"\x0c\xb4\x00\x07") },
        ],
    },
    Probe {
        patch: "0017-Updated-IPv4-and-IPv6-address-for-b.root-servers.net.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 reload\n"),
            Step::Answer(Answer::Begins(b"ok\n")),
            Step::Wait(Duration::from_secs(1)),
            Step::Connect(Port::Other),
            Step::Send(b"UBCT1 list_stubs\n"),
            Step::Differs { without: Answer::Contains(b"199.9.14.201"), with: Answer::Contains(b"170.247.170.2") },
        ],
    },
    // The answer of the test of the fix: a name server that is added to an answer with YXDOMAIN is taken from it.
    Probe {
        patch: "CVE-2025-11411/3-additional-fix-for-possible-domain-hijacking.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Make(|place| format!("UBCT1 stub_add stub.test 127.0.0.1@{}\n", place.peer).into_bytes()),
            Step::Answer(Answer::Begins(b"ok\n")),
            Step::Wait(ALL_KNOW),
            Step::Connect(Port::Datagrams),
            Step::Send(b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x04stub\x04test\x00\x00\x01\x00\x01"),
            Step::Asked(b"\x01x\x04stub\x04test"),
            Step::Reply(
                b"\x84\x06\x00\x01\x00\x01\x00\x01\x00\x00\x01x\x04stub\x04test\x00\x00\x01\x00\x01\
                  \xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\xc0\x00\x02\x01\
                  \xc0\x0e\x00\x02\x00\x01\x00\x00\x00\x00\x00\x05\x02ns\xc0\x0e",
            ),
            Step::Differs {
                without: Answer::Begins(b"\x00\x07\x81\x86\x00\x01\x00\x01\x00\x01"),
                with: Answer::Begins(b"\x00\x07\x81\x86\x00\x01\x00\x01\x00\x00"),
            },
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[
    ("do-not-chown-control-socket.patch", "only when the program starts"),
    ("do-not-look-at-pidfile.patch", "only when the program starts"),
    ("fix-812-fix-846-by-using-the-SSL_OP_IGNORE_UNEXPECTE.patch", "only when the program starts"),
    ("fix-823-Response-change-to-NODATA-for-some-ANY-queries.patch", "needs a signed zone"),
    ("CVE-2024-43168/04-c085a5326.patch", "changes how it is written, not what it does"),
    (
        "CVE-2024-43167/02-86ee8ccd1.patch",
        "a program whose configuration has the error ends with and without it",
    ),
    (
        "CVE-2025-11411/1-iterator-iter_scrub.c-pass-module_env-parameter-to-s.patch",
        "prepares the next, and does nothing by itself",
    ),
];
