//! nginx

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Package, Place, quiet};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "nginx",
    needs: &["libpcre2-dev", "libssl-dev", "zlib1g-dev", "openssl"],
    configure: "echo './configure --with-threads --with-http_ssl_module --with-http_v2_module --with-http_mp4_module \
                --with-http_dav_module --with-http_gunzip_module --with-mail --with-mail_ssl_module --with-stream \
                --with-stream_ssl_module --with-http_realip_module --with-http_sub_module --with-compat' > configured
                sh configured",
    // A fix that brings a module is one of what is configured.
    build: "[ objs/Makefile -nt auto/modules ] || sh configured
            make -j2 -f objs/Makefile objs/nginx",
    links: &["objs/nginx"],
    load: Kind::Http,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

/// The server of the load, and those of the probes.
const CONFIGURATION: &str = r"
daemon off; user root; worker_processes 1; pid nginx.pid; error_log stderr crit;
events { worker_connections 64; }
http {
    access_log off; keepalive_requests 1000000;
    charset_map koi8-r utf-8 { 80 E282AC; }
    server { listen 127.0.0.1:OWN; location / { return 200 ok; } }
    server {
        listen 127.0.0.1:OTHER;
        large_client_header_buffers 4 4m;
        location ~ \.mp4$ { mp4; root FOLDER; }
        location /copied/ { alias FOLDER/copied/; dav_methods COPY; }
        location /set { rewrite ^(.*) /new?c=1; set $probe $1; return 200 $probe; }
        location /twice/ { rewrite ^/twice/((.*))$ http://127.0.0.1/?$1$2; return 200 foo; }
        location /scgi { scgi_pass 127.0.0.1:PEER; }
        location /grpc { grpc_pass grpc://127.0.0.1:BACKEND; }
        location /charset { charset koi8-r; override_charset on; proxy_buffering off; proxy_pass http://127.0.0.1:PEER; }
    }
    ssl_protocols TLSv1.3; ssl_certificate FOLDER/own.pem; ssl_certificate_key FOLDER/key.pem;
    ssl_client_certificate FOLDER/own.pem; ssl_verify_client optional;
    server { listen 127.0.0.1:FIFTH ssl; server_name a.test; return 200 a; }
    server { listen 127.0.0.1:FIFTH ssl; server_name b.test; return 200 b; }
}
mail {
    server_name it; auth_http 127.0.0.1:PEER/auth; smtp_auth login plain cram-md5 none;
    server { listen 127.0.0.1:THIRD; protocol smtp; }
    server { listen 127.0.0.1:FOURTH; protocol smtp; resolver 127.0.0.1:PEER ipv6=off; }
}
";

fn start(place: &Place) -> Result<Command> {
    let [other, third, fourth, fifth] = place.others;
    let ports = [
        ("OWN", place.port),
        ("OTHER", other),
        ("THIRD", third),
        ("FOURTH", fourth),
        ("FIFTH", fifth),
        ("PEER", place.peer),
        ("BACKEND", place.backend),
    ];
    let mut text = CONFIGURATION.replace("FOLDER", &place.folder.display().to_string());
    for (name, port) in ports {
        text = text.replace(&format!(":{name}"), &format!(":{port}"));
    }
    let config = place.write("nginx.conf", &text)?;
    fs::create_dir_all(place.folder.join("copied"))?;
    let mut certificate = quiet(Path::new("openssl"));
    certificate.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=it", "-keyout", "key.pem", "-out",
        "own.pem",
    ]);
    let status = certificate.current_dir(&place.folder).status().context("cannot run openssl")?;
    ensure!(status.success(), "openssl req: {status}");
    let films = [
        // 65536 chunks of as many samples: 2^32 of them.
        ("many.mp4", film(&[[1, 0x1_0000, 1], [0x1_0001, 1, 1]], 1, 4)),
        ("unordered.mp4", film(&[[5, 1, 1], [3, 1, 1]], 10, 4)),
        ("empty.mp4", film(&[[1, 1, 1]], 10, 0)),
    ];
    for (name, bytes) in films {
        fs::write(place.folder.join(name), bytes)?;
    }
    let mut command = quiet(&place.linked("nginx"));
    command.arg("-p").arg(&place.folder).arg("-c").arg(config);
    Ok(command)
}

/// ISO/IEC 14496-12, 4.2: a length, a name, and what is in it.
fn atom(name: &str, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32 + 8).to_be_bytes()[..], name.as_bytes(), &body].concat()
}

/// ISO/IEC 14496-12, 8: a film of one track with ten samples of a second, of this size; its table of samples in chunks is what is
/// asked for.
fn film(stsc: &[[u32; 3]], chunks: u32, size: u32) -> Vec<u8> {
    const SAMPLES: u32 = 10;
    /// Somewhere in the file.
    const OFFSET: u32 = 100;
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let mdhd = atom("mdhd", &[&words(&[0, 0, 0, 1000, SAMPLES * 1000, 0])]);
    let stts = atom("stts", &[&words(&[0, 1, SAMPLES, 1000])]);
    let stsc = atom("stsc", &[&words(&[0, stsc.len() as u32]), &words(stsc.as_flattened())]);
    let stsz = atom("stsz", &[&words(&[0, 0, SAMPLES]), &words(&[size; SAMPLES as usize])]);
    let stco = atom("stco", &[&words(&[0, chunks]), &words(&vec![OFFSET; chunks as usize])]);
    let minf = atom("minf", &[&atom("stbl", &[&stts, &stsc, &stsz, &stco])]);
    let moov = atom("moov", &[&atom("trak", &[&atom("mdia", &[&mdhd, &minf])])]);
    [atom("ftyp", &[b"isom\0\0\0\0"]), moov, atom("mdat", &[&[b'm'; 200]])].concat()
}

/// A handshake for a name, with the session of another: it stays for as long as a session takes to be given.
fn resume(place: &Place, name: &str, session: &str) -> Command {
    let mut command = Command::new("sh");
    let port = place.others[3];
    let shake = format!(
        "sleep 0.5 | openssl s_client -connect 127.0.0.1:{port} -servername {name} {session} session.pem"
    );
    command.args(["-c", &shake]).current_dir(&place.folder);
    command
}

const SOON: Duration = Duration::from_millis(60);

const PROBES: &[Probe] = &[
    // A session of one server, for another that asks for certificates of its own.
    Probe {
        patch: "CVE-2025-23419.patch",
        without: Without::Differs,
        steps: &[
            Step::Run(|place| resume(place, "a.test", "-sess_out")),
            Step::Answer(Answer::Contains(b"New, TLSv1.3")),
            Step::Run(|place| resume(place, "b.test", "-sess_in")),
            Step::Differs {
                without: Answer::Contains(b"Reused, TLSv1.3"),
                with: Answer::Contains(b"alert access denied"),
            },
        ],
    },
    Probe {
        patch: "CVE-2024-7347-1.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /many.mp4?start=5 HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Differs { without: Answer::Begins(b"HTTP/1.1 500"), with: Answer::Begins(b"HTTP/1.1 200") },
        ],
    },
    Probe {
        patch: "CVE-2024-7347-2.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /unordered.mp4?start=2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Differs { without: Answer::Begins(b"HTTP/1.1 200"), with: Answer::Begins(b"HTTP/1.1 500") },
        ],
    },
    // A second name that cannot be decoded: the first is left as it was, and is the one that is asked for.
    Probe {
        patch: "CVE-2025-53859.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Third),
            Step::Answer(Answer::Contains(b"ready\r\n")),
            Step::Send(b"EHLO a\r\n"),
            Step::Answer(Answer::Contains(b"250 AUTH")),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"AUTH LOGIN\r\n"),
            Step::Answer(Answer::Contains(b"334 VXNlcm5hbWU6\r\n")),
            Step::Send(b"YS12ZXJ5LWxvbmctbmFtZS1pbmRlZWQ=\r\n"),
            Step::Answer(Answer::Contains(b"334 UGFzc3dvcmQ6\r\n")),
            Step::Send(b"!!!!\r\n"),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"AUTH LOGIN\r\n"),
            Step::Answer(Answer::Contains(b"334 VXNlcm5hbWU6\r\n")),
            Step::Send(b"!!!!\r\n"),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"MAIL FROM:<a@b>\r\n"),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"RCPT TO:<c@d>\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"Auth-User: ")),
            Step::Differs {
                without: Answer::Lacks(b"a-very-long-name-indeed"),
                with: Answer::Begins(b"a-very-long-name-indeed\r\n"),
            },
        ],
    },
    // A name and a password that were turned down, and then a letter without either.
    Probe {
        patch: "CVE-2026-27651.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Third),
            Step::Answer(Answer::Contains(b"ready\r\n")),
            Step::Send(b"EHLO a\r\n"),
            Step::Answer(Answer::Contains(b"250 AUTH")),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"AUTH CRAM-MD5\r\n"),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"dXNlciAwMDExMjIzMzQ0NTU2Njc3ODg5OWFhYmJjY2RkZWVmZg==\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"Auth-Method: cram-md5")),
            Step::Send(b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\nAuth-Wait: 1\r\n\r\n"),
            Step::Close,
            Step::Over(0),
            Step::Answer(Answer::Contains(b"535")),
            Step::Answer(Answer::Contains(b"\r\n")),
            Step::Send(b"MAIL FROM:<a@b>\r\n"),
            Step::Answer(Answer::Contains(b"250 ")),
            Step::Send(b"RCPT TO:<c@d>\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"Auth-Method: none")),
        ],
    },
    // A destination that is shorter than the alias.
    Probe {
        patch: "CVE-2026-27654.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"COPY /copied/a HTTP/1.1\r\nHost: a\r\nDestination: /x\r\n\r\n"),
            Step::Answer(Answer::Begins(b"HTTP/1.1 400")),
        ],
    },
    // The name of the client's address has a character that none may have: without the fix it is looked up before the client is greeted.
    Probe {
        patch: "CVE-2026-28753.patch",
        without: Without::Differs,
        steps: &[
            // Until what was answered before is forgotten.
            Step::Wait(Duration::from_secs(2)),
            Step::Connect(Port::Fourth),
            Step::Asked(b"\x07in-addr\x04arpa"),
            Step::Reply(
                b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x011\x010\x010\x03127\x07in-addr\x04arpa\x00\x00\x0c\x00\x01\
                  \xc0\x0c\x00\x0c\x00\x01\x00\x00\x00\x00\x00\x0d\x03a_b\x07example\x00",
            ),
            Step::Differs { without: Answer::Nothing, with: Answer::Contains(b"ready\r\n") },
        ],
    },
    Probe {
        patch: "CVE-2026-32647.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /empty.mp4?start=1&end=2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Differs { without: Answer::Nothing, with: Answer::Begins(b"HTTP/1.1 500") },
        ],
    },
    // The configuration of the fix's description, and of the next but some.
    Probe {
        patch: "CVE-2026-42945.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /set+ HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Differs { without: Answer::Contains(b"\r\n\r\n/set%"), with: Answer::Contains(b"\r\n\r\n/set+") },
        ],
    },
    Probe {
        patch: "CVE-2026-9256.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Other),
            Step::Make(|_| format!("GET /twice/{} HTTP/1.1\r\nHost: a\r\n\r\n", "+".repeat(3000)).into_bytes()),
            Step::Answer(Answer::Begins(b"HTTP/1.1 302")),
        ],
    },
    // An answer whose first letter comes alone, and looks as if it were the first of a status line.
    Probe {
        patch: "CVE-2026-42946.1.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /scgi HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"HTTP_HOST")),
            Step::Send(b"H"),
            Step::Wait(SOON),
            Step::Send(b"eader: x\r\n\r\nbody"),
            Step::Close,
            Step::Over(0),
            Step::Differs { without: Answer::Lacks(b"\r\neader: x\r\n"), with: Answer::Contains(b"\r\neader: x\r\n") },
        ],
    },
    Probe {
        patch: "CVE-2026-42946.2.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /scgi HTTP/1.1\r\nHost: a\r\n\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"HTTP_HOST")),
            Step::Send(b"H"),
            Step::Wait(SOON),
            Step::Send(b"eader: x\r\n\r\nbody"),
            Step::Close,
            Step::Over(0),
            Step::Differs { without: Answer::Contains(b"\r\neader: x\r\n"), with: Answer::Contains(b"\r\nHeader: x\r\n") },
        ],
    },
    // A character whose three bytes come one by one.
    Probe {
        patch: "CVE-2026-42934.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /charset HTTP/1.0\r\nHost: a\r\n\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"\r\n\r\n")),
            Step::Send(b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"),
            Step::Wait(SOON),
            Step::Send(b"\xe2"),
            Step::Wait(SOON),
            Step::Send(b"\x82"),
            Step::Wait(SOON),
            Step::Send(b"\xac"),
            Step::Wait(SOON),
            Step::Send(b"x"),
            Step::Wait(SOON),
            Step::Close,
            Step::Over(0),
            Step::Differs { without: Answer::Lacks(b"\r\n\r\n\x80x"), with: Answer::Contains(b"\r\n\r\n\x80x") },
        ],
    },
    // Three bytes that begin a character, and others that do not go on with it: a byte from before the buffer comes between.
    Probe {
        patch: "CVE-2026-48142.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Other),
            Step::Send(b"GET /charset HTTP/1.0\r\nHost: a\r\n\r\n"),
            Step::Accept,
            Step::Answer(Answer::Contains(b"\r\n\r\n")),
            Step::Send(b"HTTP/1.0 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"),
            Step::Wait(SOON),
            Step::Send(b"a\xf0\x28\x28"),
            Step::Wait(SOON),
            Step::Send(b"xyz"),
            Step::Wait(SOON),
            Step::Close,
            Step::Over(0),
            Step::Differs { without: Answer::Lacks(b"\r\n\r\na?xyz"), with: Answer::Contains(b"\r\n\r\na?xyz") },
        ],
    },
    // The backend does not speak HTTP/2: it is asked without the fix only.
    Probe {
        patch: "CVE-2026-42055.patch",
        without: Without::Damaged,
        steps: &[
            Step::Connect(Port::Other),
            Step::Make(|_| format!("GET /grpc/{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(2_200_000)).into_bytes()),
            Step::Differs { without: Answer::Begins(b"HTTP/1.1 502"), with: Answer::Begins(b"HTTP/1.1 500") },
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[
    ("nginx-fix-pidfile.patch", "only when the program starts"),
    ("nginx-ssl_cert_cb_yield.patch", "for modules that are not of this package"),
    ("CVE-2026-1642.patch", "needs a race"),
    ("CVE-2026-28755.patch", "of OCSP, which streams of this version do not ask for"),
];
