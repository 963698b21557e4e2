//! Real programs to protect, each with clients that find out what was lost: what the demo runs by name.
//!
//! Most count ([`client::counter`](crate::client::counter)): each connection has a number in the service's own state.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::Duration;

use crate::Lab;
use crate::client::counter::{
    self, Dns, Http, Mariadb, Memcached, Mqtt, Redis, Remote, Shell, Sql, WebSocket, Wire,
};
use crate::client::fetch;
use crate::client::stats::{Report, Stats};
use crate::client::workers::Workers;
use crate::cluster::Cluster;
use crate::pattern;
use crate::scenario::{Command, Place, ScenarioError, Service, Traffic, wait_for};

mod servers;

const PORT: u16 = 7000;
const TLS_PORT: u16 = 7443;
/// What nginx serves, and how often a client asks for it again before it is called good.
const DOWNLOAD: u64 = 1 << 30;
/// From an answer to the next request on the same connection: also the resolution of a stall.
const PACE: Duration = Duration::from_millis(10);

type Result<T, E = ScenarioError> = std::result::Result<T, E>;

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memcached,
    /// Master and four workers, TLS: downloads of 1 GiB, configuration read anew after every kill.
    Nginx,
    /// nginx before php-fpm, in one tree.
    Php,
    Node,
    Asyncio,
    Threads,
    Go,
    Java,
    /// haproxy before a server in Python, in one tree.
    Haproxy,
    /// bash on a pseudo-terminal, with a job in the background.
    Shell,
    Sshd,
    Postgres,
    /// node with the package `ws`.
    Websocket,
    /// MQTT, through two programs that stay connected; what is kept is written to a file every second.
    Mosquitto,
    /// Master, workers with threads, and a daemon that starts a CGI program for every request.
    Apache,
    /// Two processes, each starting CGI programs.
    Lighttpd,
    Mariadb,
    /// Python, three processes with threads.
    Gunicorn,
    /// Ruby, two processes with threads.
    Puma,
    /// The Erlang virtual machine.
    Erlang,
    /// A name server over UDP.
    Dnsmasq,
    /// A name server over UDP, with threads.
    Unbound,
    /// Two in one tree, one the replica of the other, with threads, a log and copies in files.
    Replica,
}

impl Kind {
    pub const ALL: [Kind; 23] = [
        Kind::Memcached,
        Kind::Nginx,
        Kind::Php,
        Kind::Node,
        Kind::Asyncio,
        Kind::Threads,
        Kind::Go,
        Kind::Java,
        Kind::Haproxy,
        Kind::Shell,
        Kind::Sshd,
        Kind::Postgres,
        Kind::Websocket,
        Kind::Mosquitto,
        Kind::Apache,
        Kind::Lighttpd,
        Kind::Mariadb,
        Kind::Gunicorn,
        Kind::Puma,
        Kind::Erlang,
        Kind::Dnsmasq,
        Kind::Unbound,
        Kind::Replica,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Memcached => "memcached",
            Kind::Nginx => "nginx",
            Kind::Php => "php",
            Kind::Node => "node",
            Kind::Asyncio => "asyncio",
            Kind::Threads => "threads",
            Kind::Go => "go",
            Kind::Java => "java",
            Kind::Haproxy => "haproxy",
            Kind::Shell => "shell",
            Kind::Sshd => "sshd",
            Kind::Postgres => "postgres",
            Kind::Websocket => "websocket",
            Kind::Mosquitto => "mosquitto",
            Kind::Apache => "apache",
            Kind::Lighttpd => "lighttpd",
            Kind::Mariadb => "mariadb",
            Kind::Gunicorn => "gunicorn",
            Kind::Puma => "puma",
            Kind::Erlang => "erlang",
            Kind::Dnsmasq => "dnsmasq",
            Kind::Unbound => "unbound",
            Kind::Replica => "replica",
        }
    }

    /// Programs that it needs, and the Debian packages that have them.
    pub fn needs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Memcached => &[("memcached", "memcached")],
            Kind::Nginx => &[("nginx", "nginx-light"), ("openssl", "openssl"), ("curl", "curl")],
            Kind::Php => &[("nginx", "nginx-light"), ("openssl", "openssl"), ("php-fpm8.2", "php-fpm")],
            Kind::Node => &[("node", "nodejs")],
            Kind::Asyncio | Kind::Threads => &[("python3", "python3")],
            Kind::Go => &[("go", "golang-go")],
            Kind::Java => &[("java", "default-jdk-headless")],
            Kind::Haproxy => &[("haproxy", "haproxy"), ("python3", "python3")],
            Kind::Shell => &[("bash", "bash"), ("socat", "socat")],
            Kind::Sshd => &[("sshd", "openssh-server"), ("ssh", "openssh-client")],
            Kind::Postgres => &[("psql", "postgresql-client"), ("pg_ctlcluster", "postgresql")],
            Kind::Websocket => &[("node", "nodejs"), ("wscat", "node-ws")],
            Kind::Mosquitto => &[("mosquitto", "mosquitto"), ("mosquitto_sub", "mosquitto-clients")],
            Kind::Apache => &[("apache2", "apache2"), ("perl", "perl")],
            Kind::Lighttpd => &[("lighttpd", "lighttpd"), ("perl", "perl")],
            Kind::Mariadb => &[("mariadbd", "mariadb-server"), ("mariadb", "mariadb-client")],
            Kind::Gunicorn => &[("gunicorn", "gunicorn")],
            Kind::Puma => &[("puma", "puma")],
            Kind::Erlang => &[("erlc", "erlang-base")],
            Kind::Dnsmasq => &[("dnsmasq", "dnsmasq-base")],
            Kind::Unbound => &[("unbound", "unbound")],
            Kind::Replica => &[("redis-server", "redis-server")],
        }
    }

    pub fn service(self, clients: usize) -> Program {
        Program { kind: self, clients, folder: PathBuf::new() }
    }
}

/// One of them as a service.
#[derive(Debug)]
pub struct Program {
    kind: Kind,
    clients: usize,
    /// Where its files are.
    folder: PathBuf,
}

impl Service for Program {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn install(&mut self, lab: &Lab) -> Result<Command> {
        self.folder = lab.installed()?;
        let port = PORT.to_string();
        let simple = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let words = match self.kind {
            Kind::Memcached => simple(&["memcached", "-t", "4", "-u", "root", "-l", "0.0.0.0", "-p", &port]),
            Kind::Nginx => {
                self.certify()?;
                self.pattern()?;
                let conf = self.file("nginx.conf", include_str!("../services/nginx.conf"))?;
                simple(&["nginx", "-c", &conf, "-g", "daemon off;"])
            }
            Kind::Php => {
                self.certify()?;
                self.file("count.php", include_str!("../services/count.php"))?;
                let nginx = self.file("nginx.conf", include_str!("../services/nginx.conf"))?;
                let fpm = self.file("php-fpm.conf", include_str!("../services/php-fpm.conf"))?;
                let script = "\"$(ls /usr/sbin/php-fpm* | head -n 1)\" --nodaemonize --fpm-config \"$1\" & \
                              exec nginx -c \"$2\" -g 'daemon off;'";
                simple(&["sh", "-c", script, "php", &fpm, &nginx])
            }
            Kind::Node => {
                simple(&["node", &self.file("count.js", include_str!("../services/count.js"))?, &port])
            }
            Kind::Asyncio => {
                let script = self.file("count.py", include_str!("../services/count_asyncio.py"))?;
                vec![python()?, script, port]
            }
            Kind::Threads => {
                let script = self.file("count.py", include_str!("../services/count_threads.py"))?;
                vec![python()?, script, port]
            }
            Kind::Go => {
                let source = self.file("count.go", include_str!("../services/count.go"))?;
                let binary = self.folder.join("count").to_string_lossy().into_owned();
                let build = ["build", "-o", &binary, &source];
                let cache = self.folder.join("cache");
                done(
                    process::Command::new("go").args(build).env("GOCACHE", &cache).env("GO111MODULE", "off"),
                )?;
                vec![binary, port]
            }
            Kind::Java => {
                let source = self.file("Count.java", include_str!("../services/Count.java"))?;
                let folder = self.folder.to_string_lossy().into_owned();
                done(process::Command::new("javac").args(["-d", &folder, &source]))?;
                simple(&["java", "-Xmx128m", "-cp", &folder, "Count", &port])
            }
            Kind::Haproxy => {
                let script = self.file("count.py", include_str!("../services/count_asyncio.py"))?;
                let conf = self.file("haproxy.cfg", include_str!("../services/haproxy.cfg"))?;
                let both = "\"$1\" \"$2\" 7001 & exec haproxy -W -f \"$3\"";
                simple(&["sh", "-c", both, "haproxy", &python()?, &script, &conf])
            }
            Kind::Shell => {
                let listen = format!("TCP-LISTEN:{port},fork,reuseaddr,nodelay");
                let exec = "EXEC:bash --norc --noprofile,pty,setsid,ctty,stderr,echo=0";
                simple(&["socat", &listen, exec])
            }
            Kind::Sshd => {
                for key in ["host_key", "client_key"] {
                    let key = self.folder.join(key);
                    done(
                        process::Command::new("ssh-keygen")
                            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                            .arg(key),
                    )?;
                }
                let conf = self.file("sshd_config", include_str!("../services/sshd_config"))?;
                // sshd wants its own name as a path, and an empty directory.
                let script =
                    "mkdir -p /run/sshd; exec \"$(command -v sshd || echo /usr/sbin/sshd)\" -D -e -f \"$1\"";
                simple(&["sh", "-c", script, "sshd", &conf])
            }
            Kind::Postgres => {
                let script = "PATH=\"$(ls -d /usr/lib/postgresql/*/bin | tail -n 1):$PATH\"; initdb -A trust -D /tmp/data && \
                              echo 'host all all all trust' >> /tmp/data/pg_hba.conf && \
                              exec postgres -D /tmp/data -p \"$1\" -c listen_addresses=0.0.0.0 \
                              -c unix_socket_directories=/tmp -c max_connections=200 -c max_wal_size=64MB -c min_wal_size=32MB";
                simple(&["sh", "-c", script, "postgres", &port])
            }
            _ => self.server(&port)?,
        };
        let options = match self.kind {
            Kind::Postgres => simple(&["--user", "postgres", "--env", "LC_ALL=C"]),
            Kind::Websocket => simple(&["--env", "NODE_PATH=/usr/share/nodejs"]),
            Kind::Shell | Kind::Sshd => simple(&["--env", "TERM=dumb", "--env", "PS1="]),
            _ => Vec::new(),
        };
        Ok(Command { options, words })
    }

    fn prepare(&mut self, place: &Place<'_>, _: &dyn Fn(&str)) -> Result<()> {
        let port = if self.kind == Kind::Nginx { TLS_PORT } else { PORT };
        let target = SocketAddr::from((place.address, port));
        let attempt =
            || crate::client::connect(Some(&place.from), target).map(drop).map_err(|error| error.to_string());
        if self.speaks_http() {
            // What is behind it may come later than what listens.
            let attempt = || {
                let mut wire = Http::open(&place.from, target, "begin")?;
                wire.increment()
            };
            wait_for(self.name(), || attempt().map_err(|error| error.to_string()))?;
        } else if !self.is_datagrams() {
            wait_for(self.name(), attempt)?;
        }
        if self.kind == Kind::Postgres {
            let table = "CREATE TABLE counts (name text PRIMARY KEY, n bigint NOT NULL)";
            wait_for("postgres", || {
                let mut psql = self.psql(place);
                psql.args(["-c", table]);
                let ran = place.from.run(|| psql.output()).map_err(|error| error.to_string())?;
                if ran.status.success() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&ran.stderr).into_owned())
                }
            })?;
        }
        Ok(())
    }

    fn connect(&mut self, place: &Place<'_>) -> Result<Box<dyn Traffic>> {
        let target = SocketAddr::from((place.address, PORT));
        let from = place.from.clone();
        let failed = |source| ScenarioError::Io { attempt: "start the clients".to_owned(), source };
        let open: Box<dyn Fn(usize) -> io::Result<Box<dyn Wire>>> = match self.kind {
            Kind::Nginx => {
                let url = format!("https://{}:{TLS_PORT}/pattern", place.address);
                // Each takes a processor.
                let fetches = fetch::start(&from, &url, DOWNLOAD, self.clients.min(4)).map_err(failed)?;
                return Ok(Box::new(Downloads { fetches }));
            }
            Kind::Memcached => {
                Box::new(move |id| Ok(Box::new(Memcached::open(&from, target, &format!("c{id}"))?)))
            }
            Kind::Websocket => Box::new(move |_| Ok(Box::new(WebSocket::open(&from, target)?))),
            Kind::Replica => Box::new(move |id| Ok(Box::new(Redis::open(&from, target, &format!("c{id}"))?))),
            Kind::Dnsmasq | Kind::Unbound => {
                Box::new(move |id| Ok(Box::new(Dns::open(&from, target, &format!("c{id}"), servers::NAMED)?)))
            }
            Kind::Mosquitto => Box::new(move |id| {
                let [subscriber, publisher] = servers::mqtt(target, &format!("c{id}"));
                let publisher = from.run(move || { publisher }.spawn())?;
                Ok(Box::new(Mqtt::new(from.run(move || { subscriber }.spawn())?, publisher)?))
            }),
            Kind::Mariadb => Box::new(move |id| {
                let child = from.run(|| servers::mariadb(target).spawn())?;
                Ok(Box::new(Mariadb::new(child, &format!("c{id}"))?))
            }),
            Kind::Shell => Box::new(move |_| Ok(Box::new(Shell::open(&from, target)?))),
            Kind::Sshd => {
                let key = self.folder.join("client_key");
                Box::new(move |_| Ok(Box::new(Remote::new(from.run(|| ssh(&key, target))?)?)))
            }
            Kind::Postgres => {
                let words = self.psql_words(place);
                Box::new(move |id| {
                    let child = from.run(|| {
                        let mut psql = process::Command::new("psql");
                        psql.args(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
                    })?;
                    Ok(Box::new(Sql::new(child, &format!("c{id}"))?))
                })
            }
            _ => Box::new(move |id| Ok(Box::new(Http::open(&from, target, &format!("c{id}"))?))),
        };
        Ok(Box::new(counter::start(self.clients, PACE, open).map_err(failed)?))
    }
}

impl Program {
    fn speaks_http(&self) -> bool {
        matches!(
            self.kind,
            Kind::Php
                | Kind::Node
                | Kind::Asyncio
                | Kind::Threads
                | Kind::Go
                | Kind::Java
                | Kind::Haproxy
                | Kind::Apache
                | Kind::Lighttpd
                | Kind::Gunicorn
                | Kind::Puma
                | Kind::Erlang
        )
    }

    fn is_datagrams(&self) -> bool {
        matches!(self.kind, Kind::Dnsmasq | Kind::Unbound)
    }

    /// A file of the service's, in which `@FOLDER@` stands for where all of them are. Its path.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        let text = text.replace("@FOLDER@", &self.folder.to_string_lossy());
        fs::write(&path, text).map_err(|source| wrote(&path, source))?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn certify(&self) -> Result<()> {
        let (key, certificate) = (self.folder.join("tls.key"), self.folder.join("tls.pem"));
        let mut openssl = process::Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=service", "-keyout"]);
        done(openssl.arg(key).arg("-out").arg(certificate))
    }

    /// What is downloaded.
    fn pattern(&self) -> Result<()> {
        let path = self.folder.join("pattern");
        let write = || -> io::Result<()> {
            let mut bytes = pattern::Reader::new(DOWNLOAD, DOWNLOAD);
            io::copy(&mut bytes, &mut fs::File::create(&path)?).map(drop)
        };
        write().map_err(|source| wrote(&path, source))
    }

    fn psql_words(&self, place: &Place<'_>) -> Vec<String> {
        let (host, port) = (place.address.to_string(), PORT.to_string());
        [
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            &host,
            "-p",
            &port,
            "-U",
            "postgres",
            "postgres",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn psql(&self, place: &Place<'_>) -> process::Command {
        let mut psql = process::Command::new("psql");
        psql.args(self.psql_words(place));
        psql
    }
}

fn wrote(path: &Path, source: io::Error) -> ScenarioError {
    ScenarioError::Io { attempt: format!("write {}", path.display()), source }
}

/// Runs a program to its end.
fn done(command: &mut process::Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ScenarioError::Io { attempt: format!("run {name}"), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ScenarioError::Service(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// The interpreter itself: a script that looks for it would be another program to protect.
fn python() -> Result<String> {
    let said = process::Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let said = said.map_err(|source| ScenarioError::Io { attempt: "run python3".to_owned(), source })?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// A login with a terminal, in which bash reads commands.
fn ssh(key: &Path, to: SocketAddr) -> io::Result<process::Child> {
    process::Command::new("ssh")
        .args(["-tt", "-p", &to.port().to_string(), "-i"])
        .arg(key)
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ])
        .args(["-o", "ServerAliveInterval=0", "-o", "TCPKeepAlive=no", &format!("root@{}", to.ip())])
        .arg("exec bash --norc --noprofile")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

impl Traffic for Workers {
    fn stats(&self) -> &Stats {
        Workers::stats(self)
    }

    fn finish(self: Box<Self>) -> io::Result<Report> {
        Ok(Workers::finish(*self))
    }
}

struct Downloads {
    fetches: Workers,
}

impl Traffic for Downloads {
    fn stats(&self) -> &Stats {
        self.fetches.stats()
    }

    /// nginx reads its configuration anew: new workers serve new connections, the old ones end theirs.
    fn between_kills(&mut self, place: &Place<'_>) -> Result<()> {
        reload(place.cluster, Kind::Nginx.name())
    }

    fn finish(self: Box<Self>) -> io::Result<Report> {
        Ok(self.fetches.finish())
    }
}

fn reload(cluster: &Cluster, name: &str) -> Result<()> {
    for node in crate::cluster::WORKERS {
        if cluster.inspect(node, name).is_ok_and(|seen| seen.is_primary()) {
            cluster.command(node, &["kill", name, "-s", "HUP"])?;
        }
    }
    Ok(())
}
