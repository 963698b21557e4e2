//! redis

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Package, Place, Variant, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "redis",
    needs: &["libssl-dev"],
    configure: "",
    // Its makefile does not look whether its own copies of libraries have changed.
    build: "make -C deps -j2 BUILD_TLS=yes hiredis linenoise lua hdr_histogram; rm -f src/redis-server
            make -C src -j2 BUILD_TLS=yes MALLOC=libc redis-server",
    links: &["src/redis-server"],
    load: Kind::Redis,
    start,
    variants: VARIANTS,
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let mut command = quiet(&place.linked("redis-server"));
    command.args(["--port", &place.port.to_string(), "--save", "", "--daemonize", "no"]);
    // For the variant that is of a cluster.
    command.args(["--cluster-port", &place.others[0].to_string()]);
    command.args(["--cluster-config-file", &format!("nodes-{}.conf", place.port)]);
    Ok(command)
}

/// Alone in its cluster: it serves once it has all slots and has had time to hear of others.
const VARIANTS: &[Variant] = &[Variant {
    patch: "CVE-2026-21863.patch",
    arguments: &["--cluster-enabled", "yes"],
    prepare: &[
        Step::Connect(Port::Own),
        Step::Send(b"CLUSTER ADDSLOTSRANGE 0 16383\r\n"),
        Step::Answer(Answer::Begins(b"+OK\r\n")),
        Step::Wait(Duration::from_secs(4)),
        Step::Send(b"CLUSTER INFO\r\n"),
        Step::Answer(Answer::Contains(b"cluster_state:ok")),
    ],
}];

/// The message of the fix's test: it says that more news follow than do, here as many as can be said, and extensions behind them.
fn meeting() -> Vec<u8> {
    const LENGTH: u32 = 2256;
    const MEET: u8 = 2;
    let mut bytes = b"RCmb".to_vec();
    bytes.extend(LENGTH.to_be_bytes());
    bytes.extend([0, 1, 0, 1, 0, MEET, 0xff, 0xff]);
    // Epochs and offset, the sender, its slots, whose replica it is, its address.
    bytes.extend([[0; 8]; 3].as_flattened());
    bytes.extend([b'a'; 40]);
    bytes.extend([0; 2048 + 40 + 46]);
    bytes.extend(2u16.to_be_bytes());
    bytes.extend([0; 30]);
    // Ports, the flag of a master, the state, and the flag of extensions.
    bytes.extend([0, 0, 0, 1, 0, 1, 0, 4, 0, 0]);
    debug_assert_eq!(bytes.len(), LENGTH as usize);
    bytes
}

const PROBES: &[Probe] = &[
    Probe {
        patch: "0001-Apply-security-fixes-for-CVEs-1113.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"ACL SETUSER probe %~\r\n"),
            Step::Differs {
                without: Answer::Begins(b"+OK\r\n"),
                with: Answer::Begins(b"-ERR Error in ACL SETUSER modifier '%~': Syntax error"),
            },
            Step::Send(b"ACL DELUSER probe\r\n"),
            Step::Answer(Answer::Contains(b":")),
        ],
    },
    Probe {
        patch: "0001-Apply-security-fixes-for-CVEs-1113.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"EVAL 'return bit.tohex(65535, -2147483648)' 0\r\n"),
            Step::Answer(Answer::Begins(b"$8\r\n0000FFFF\r\n")),
        ],
    },
    Probe {
        patch: "0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"ACL SETUSER probe %\r\n"),
            Step::Differs {
                without: Answer::Begins(b"+OK\r\n"),
                with: Answer::Begins(b"-ERR Error in ACL SETUSER modifier '%': Syntax error"),
            },
            Step::Send(b"ACL DELUSER probe\r\n"),
            Step::Answer(Answer::Contains(b":")),
        ],
    },
    // A client that has not said its password, and reads no answer.
    Probe {
        patch: "0001-Limiting-output-buffer-for-unauthenticated-client-CV.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"CONFIG SET requirepass secret\r\n"),
            Step::Answer(Answer::Begins(b"+OK\r\n")),
            Step::Connect(Port::Own),
            Step::Make(|_| ["GET x\r\n".repeat(3000).as_str(), "AUTH secret\r\n"].concat().into_bytes()),
            Step::Differs { without: Answer::Contains(b"+OK\r\n"), with: Answer::Closed },
            Step::Over(0),
            Step::Send(b"CONFIG SET requirepass \"\"\r\n"),
            Step::Answer(Answer::Begins(b"+OK\r\n")),
        ],
    },
    // Runs of zeroes that are 2^32 longer together than they may be: a counter of 32 bits takes them for right.
    Probe {
        patch: "0006-CVE-2025-32023.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(
                b"EVAL 'redis.call(\"set\", \"hll\", \"HYLL\" .. string.char(1,0,0,0,0,0,0,0,0,0,0,128) .. \
                  string.rep(string.char(127,255), 262145)) return redis.pcall(\"pfcount\", \"hll\")' 0\r\n",
            ),
            Step::Differs {
                without: Answer::Begins(b":0\r\n"),
                with: Answer::Begins(b"-INVALIDOBJ Corrupted HLL object detected"),
            },
        ],
    },
    Probe {
        patch: "CVE-2025-46817.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"EVAL 'return {unpack({1,2,3}, -2, 2147483647)}' 0\r\n"),
            Step::Answer(Answer::Contains(b"too many results to unpack")),
        ],
    },
    Probe {
        patch: "CVE-2025-67733.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"*3\r\n$8\r\nFUNCTION\r\n$4\r\nLIST\r\n$5\r\nX\r\n+I\r\n"),
            Step::Differs {
                without: Answer::Begins(b"-ERR Unknown argument X\r\n+I"),
                with: Answer::Begins(b"-ERR Unknown argument X  +I"),
            },
        ],
    },
    Probe {
        patch: "CVE-2026-21863.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Other),
            Step::Make(|_| meeting()),
            Step::Answer(Answer::Nothing),
            Step::Connect(Port::Own),
            Step::Send(b"CLUSTER INFO\r\n"),
            Step::Answer(Answer::Contains(b"cluster_stats_messages_meet_received:1")),
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[
    ("0003-Use-get_current_dir_name-over-PATHMAX.patch", "only in what is logged of a failed save"),
    (
        "0001-Fix-LUA-garbage-collector-CVE-2024-46981-1513.patch",
        "a use of freed memory, which no script here shows",
    ),
    ("0005-CVE-2025-27151.patch", "only in the program that is started as redis-check-aof"),
    ("0007-CVE-2025-48367.patch", "needs an accept that fails with an error of the network"),
    ("CVE-2025-49844.patch", "a use of freed memory, which no script here shows"),
    ("CVE-2025-46819.patch", "needs scripts of gigabytes"),
];
