//! mosquitto

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "mosquitto",
    needs: &["cmake", "libssl-dev", "libcjson-dev"],
    configure: "cmake -S . -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDOCUMENTATION=OFF -DWITH_CLIENTS=OFF -DWITH_APPS=OFF \
                -DWITH_PLUGINS=OFF",
    build: "cmake --build build -j2 --target mosquitto",
    links: &["build/src/mosquitto"],
    load: Kind::Mqtt,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    // The bridge has no topic of the load.
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\nuser root\nset_tcp_nodelay true\nconnection bridge\naddress 127.0.0.1:{}\n\
         topic room1/# both 2 sensor/ myhouse/\nremote_clientid it\nnotifications false\nrestart_timeout 1\n",
        place.port, place.peer
    );
    let config = place.write("mosquitto.conf", &text)?;
    let mut command = quiet(&place.linked("mosquitto"));
    command.arg("-c").arg(config);
    Ok(command)
}

/// MQTT, 3.1: without properties, and with none.
const CONNECT_4: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05probe";
const CONNECT_5: &[u8] = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05probe";
const CONNACK_4: &[u8] = b"\x20\x02\x00\x00";
/// The last property: how many messages may be on their way.
const CONNACK_5_ENDS: &[u8] = b"\x21\x00\x14";
const PING: &[u8] = b"\xc0\x00";
/// The flag of a CONNECT that has a will.
const WILL: u8 = 4;

/// MQTT 5, 1.5.5.
fn length(mut of: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while of > 0x7f {
        bytes.push(of as u8 | 0x80);
        of >>= 7;
    }
    bytes.push(of as u8);
    bytes
}

/// MQTT 5, 3.1: a CONNECT with properties, and perhaps with a will that has some.
fn connect_with(flags: u8, will: &[u8], properties: &[u8]) -> Vec<u8> {
    let mut body = [b"\x00\x04MQTT\x05", &[flags | 2][..], b"\x00\x3c"].concat();
    body.extend(length(properties.len()));
    body.extend(properties);
    body.extend(b"\x00\x05probe");
    if flags & WILL != 0 {
        body.extend(length(will.len()));
        body.extend(will);
        body.extend(b"\x00\x04will\x00\x01x");
    }
    [&[0x10][..], &length(body.len()), &body].concat()
}

const PROBES: &[Probe] = &[
    // The test of the fix, with more properties: each was compared with all after it.
    Probe {
        patch: "Fix-CONNECT-performance-with-many-user-properties.patch",
        without: Without::Stalls,
        steps: &[
            Step::Connect(Port::Own),
            Step::Make(|_| connect_with(0, &[], &b"\x26\x00\x03key\x00\x05value".repeat(100_000))),
            Step::Answer(Answer::Begins(b"\x20")),
        ],
    },
    // A will whose properties are read and then found to be wrong.
    Probe {
        patch: "CVE-2023-3592.patch",
        without: Without::Keeps(8 << 20),
        steps: &[
            Step::Connect(Port::Own),
            Step::Make(|_| {
                let property =
                    [&b"\x26\xf0\x00"[..], &b"k".repeat(0xf000), b"\xf0\x00", &b"v".repeat(0xf000)];
                connect_with(WILL, &[property.concat().repeat(100), b"\x1f\x00\x01r".to_vec()].concat(), b"")
            }),
            Step::Answer(Answer::Closed),
        ],
    },
    // The begin of a long PUBLISH as the first packet.
    Probe {
        patch: "CVE-2023-0809.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(b"\x30\x80\x80\x80t"),
            Step::Differs { without: Answer::Nothing, with: Answer::Closed },
        ],
    },
    // The test of the fix: the same message for the third time.
    Probe {
        patch: "CVE-2023-28366.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(CONNECT_4),
            Step::Answer(Answer::Begins(CONNACK_4)),
            Step::Send(b"\x3c\x10\x00\x05topic\x00\x01message"),
            Step::Answer(Answer::Begins(b"\x50\x02\x00\x01")),
            Step::Send(b"\x3c\x10\x00\x05topic\x00\x01message"),
            Step::Answer(Answer::Begins(b"\x50\x02\x00\x01")),
            Step::Send(b"\x3c\x10\x00\x05topic\x00\x01message"),
            Step::Differs { without: Answer::Begins(b"\x50\x02\x00\x01"), with: Answer::Closed },
        ],
    },
    // Two messages at a time: the fix before allowed one.
    Probe {
        patch: "CVE-2023-28366-regression.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(CONNECT_5),
            Step::Answer(Answer::Contains(CONNACK_5_ENDS)),
            Step::Send(b"\x34\x0b\x00\x05topic\x00\x01\x00x"),
            Step::Answer(Answer::Begins(b"\x50\x02\x00\x01")),
            Step::Send(b"\x34\x0b\x00\x05topic\x00\x02\x00y"),
            Step::Differs {
                without: Answer::Begins(b"\x50\x03\x00\x02\x97"),
                with: Answer::Begins(b"\x50\x02\x00\x02"),
            },
        ],
    },
    // A message for a subscriber, whose topic begins as a shared one does.
    Probe {
        patch: "0015-Fix-QoS-1-QoS-2-publish-incorrectly-returning-no-sub.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(CONNECT_5),
            Step::Answer(Answer::Contains(CONNACK_5_ENDS)),
            Step::Send(b"\x82\x09\x00\x01\x00\x00\x03p/a\x00"),
            Step::Answer(Answer::Begins(b"\x90\x04\x00\x01\x00\x00")),
            Step::Send(b"\x82\x12\x00\x02\x00\x00\x0c$share/g/p/b\x00"),
            Step::Answer(Answer::Begins(b"\x90\x04\x00\x02\x00\x00")),
            Step::Connect(Port::Own),
            Step::Send(b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05other"),
            Step::Answer(Answer::Contains(CONNACK_5_ENDS)),
            Step::Send(b"\x32\x09\x00\x03p/a\x00\x07\x00x"),
            Step::Differs {
                without: Answer::Begins(b"\x40\x03\x00\x07\x10"),
                with: Answer::Begins(b"\x40\x02\x00\x07"),
            },
        ],
    },
    // The test of the fix: the broker that the bridge leads to sends a topic with wildcards.
    Probe {
        patch: "0016-Fix-crash-on-bridge-using-remapped-topic-being-sent-.patch",
        without: Without::Dies,
        steps: &[
            Step::Accept,
            Step::Answer(Answer::Contains(b"MQTT")),
            Step::Send(CONNACK_4),
            Step::Answer(Answer::Contains(b"myhouse/room1/#")),
            Step::Send(b"\x90\x03\x00\x01\x02"),
            Step::Send(b"\x32\x0b\x00\x06++++++\x00\x043"),
            Step::Answer(Answer::Closed),
        ],
    },
    // A SUBACK without a reason.
    Probe {
        patch: "0017-Don-t-allow-SUBACK-with-missing-reason-codes.patch",
        without: Without::Differs,
        steps: &[
            Step::Accept,
            Step::Answer(Answer::Contains(b"MQTT")),
            Step::Send(CONNACK_4),
            Step::Answer(Answer::Contains(b"myhouse/room1/#\x02")),
            Step::Send(b"\x90\x02\x00\x01"),
            Step::Differs { without: Answer::Nothing, with: Answer::Closed },
        ],
    },
    // Answers that the queue has no room for, as it is full of messages that nobody reads.
    Probe {
        patch: "0018-Further-fix-for-CVE-2023-28366.patch",
        without: Without::Keeps(4 << 20),
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(CONNECT_4),
            Step::Answer(Answer::Begins(CONNACK_4)),
            Step::Send(b"\x82\x09\x00\x01\x00\x04many\x00"),
            Step::Answer(Answer::Begins(b"\x90\x03\x00\x01\x00")),
            Step::Connect(Port::Own),
            Step::Send(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05other"),
            Step::Answer(Answer::Begins(CONNACK_4)),
            Step::Make(|_| {
                let message = [&b"\x00\x04many"[..], &b"m".repeat(20_000)].concat();
                let publish = [&[0x30][..], &length(message.len()), &message].concat();
                [publish.repeat(1500), PING.to_vec()].concat()
            }),
            Step::Answer(Answer::Begins(b"\xd0\x00")),
            Step::Over(0),
            Step::Make(|_| PING.repeat(300_000)),
            Step::Wait(Duration::from_secs(4)),
        ],
    },
];

const UNSEEN: &[(&str, &str)] =
    &[("CVE-2024-8376-1of3.patch", "takes away an argument, and does nothing by itself")];
