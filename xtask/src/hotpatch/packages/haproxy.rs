//! haproxy

use std::process::Command;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "haproxy",
    needs: &["libssl-dev", "libpcre2-dev"],
    configure: "",
    build: "make -j2 TARGET=linux-glibc USE_OPENSSL=1 USE_PCRE2=1 USE_SLZ=1 IGNOREGIT=true haproxy",
    links: &["haproxy"],
    load: Kind::Http,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let text = format!(
        "global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         listen it\n  bind 127.0.0.1:{}\n  \
         http-request set-var(txn.a) req.hdr(x-long),regsub(a,{},g) if {{ path /regsub }}\n  \
         http-request set-var(txn.b) req.hdr(x-json),json_query('$.a') if {{ path /json }}\n  \
         server one 127.0.0.1:{}\n",
        place.port,
        "b".repeat(500),
        place.backend
    );
    let config = place.write("haproxy.cfg", &text)?;
    let mut command = quiet(&place.linked("haproxy"));
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

const PROBES: &[Probe] = &[
    Probe {
        patch: "BUG-MAJOR-http-reject-any-empty-content-length-heade.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
            Step::Differs { without: Answer::Begins(b"HTTP/1.1 200"), with: Answer::Begins(b"HTTP/1.1 400") },
        ],
    },
    Probe {
        patch: "BUG-MINOR-h1-do-not-accept-as-part-of-the-URI-compon.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Differs { without: Answer::Begins(b"HTTP/1.1 200"), with: Answer::Begins(b"HTTP/1.1 400") },
        ],
    },
    // RFC 9113, 3.4, 6.5 and 6.2, RFC 7541, 6: the preface, SETTINGS, and HEADERS with the path /a#b. The answer is DATA, or RST_STREAM.
    Probe {
        patch: "BUG-MINOR-h2-reject-more-chars-from-the-path-pseudo-.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
            Step::Send(b"\x00\x00\x0b\x01\x05\x00\x00\x00\x01\x82\x86\x04\x04/a#b\x01\x01a"),
            Step::Differs {
                without: Answer::Contains(b"\x00\x00\x00\x01ok"),
                with: Answer::Contains(b"\x00\x00\x04\x03\x00\x00\x00\x00\x01"),
            },
        ],
    },
    Probe {
        patch: "0001-BUG-MEDIUM-sample-fix-risk-of-overflow-when-replacin.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Own),
            Step::Make(|_| {
                format!("GET /regsub HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "a".repeat(8000))
                    .into_bytes()
            }),
            Step::Answer(Answer::Begins(b"HTTP/1.1 200")),
        ],
    },
    // As many divisions as the exponent says: the watchdog ends a program that does not come to an end with them.
    Probe {
        patch: "0001-BUG-CRITICAL-mjson-fix-possible-DoS-when-parsing-num.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"GET /json HTTP/1.1\r\nHost: a\r\nX-Json: {\"a\":1e-2147483646}\r\n\r\n"),
            Step::Answer(Answer::Begins(b"HTTP/1.1 200")),
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[(
    "MINOR-h2-pass-accept-invalid-http-request-down-the-r.patch",
    "prepares a later fix, and does nothing by itself",
)];
