//! The corpus: which packages, how each is built, started and put under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::load::Kind;

/// A source package of the distribution, and the program in it that runs.
pub struct Package {
    pub name: &'static str,
    /// Packages that its build needs.
    pub needs: &'static [&'static str],
    /// Run once in its tree, by the shell; the recorder's compilers are in `PATH`.
    pub configure: &'static str,
    /// Run for every build, by the shell.
    pub build: &'static str,
    /// What the build links: removed before a record, so that it is linked under it.
    pub links: &'static [&'static str],
    pub load: Kind,
    pub start: fn(&Place) -> Result<Command>,
    pub probes: &'static [Probe],
}

/// Where one run of a program is: its folder, with the linked files in it, and its port.
pub struct Place {
    pub folder: PathBuf,
    pub port: u16,
    /// A server for a proxy to lead to.
    pub backend: u16,
}

/// A fix whose effect can be seen: what is sent, and how the answer begins without the fix and with it.
pub struct Probe {
    pub patch: &'static str,
    pub send: &'static str,
    pub before: &'static str,
    pub after: &'static str,
}

impl Place {
    /// The file that a build linked under this name.
    fn linked(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn redis(place: &Place) -> Result<Command> {
    let mut command = quiet(&place.linked("redis-server"));
    command.args(["--port", &place.port.to_string(), "--save", "", "--daemonize", "no"]);
    Ok(command)
}

fn memcached(place: &Place) -> Result<Command> {
    let mut command = quiet(&place.linked("memcached"));
    command.args(["-u", "root", "-l", "127.0.0.1", "-p", &place.port.to_string(), "-t", "4"]);
    Ok(command)
}

fn mosquitto(place: &Place) -> Result<Command> {
    let text = format!("listener {} 127.0.0.1\nallow_anonymous true\nuser root\n", place.port);
    let config = place.write("mosquitto.conf", &text)?;
    let mut command = quiet(&place.linked("mosquitto"));
    command.arg("-c").arg(config);
    Ok(command)
}

fn haproxy(place: &Place) -> Result<Command> {
    let text = format!(
        "global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         listen it\n  bind 127.0.0.1:{}\n  server one 127.0.0.1:{}\n",
        place.port, place.backend
    );
    let config = place.write("haproxy.cfg", &text)?;
    let mut command = quiet(&place.linked("haproxy"));
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

fn nginx(place: &Place) -> Result<Command> {
    let text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr crit;\nevents {{ worker_connections 64; }}\n\
         http {{ access_log off; keepalive_requests 1000000; server {{ listen 127.0.0.1:{}; location / {{ return 200 ok; }} }} }}\n",
        place.port
    );
    let config = place.write("nginx.conf", &text)?;
    let mut command = quiet(&place.linked("nginx"));
    command.arg("-p").arg(&place.folder).arg("-c").arg(config);
    Ok(command)
}

fn dnsmasq(place: &Place) -> Result<Command> {
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
    Ok(command)
}

fn unbound(place: &Place) -> Result<Command> {
    let text = format!(
        "server:\n  interface: 127.0.0.1@{}\n  chroot: \"\"\n  username: \"\"\n  directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         do-daemonize: no\n  num-threads: 2\n  local-zone: \"example.\" static\n  local-data: \"host.example. A 192.0.2.1\"\n",
        place.port,
        place.folder.display()
    );
    let config = place.write("unbound.conf", &text)?;
    let mut command = quiet(&place.linked("unbound"));
    command.arg("-d").arg("-c").arg(config);
    Ok(command)
}

fn sqlite(place: &Place) -> Result<Command> {
    let mut command = Command::new(place.linked("sqlite3"));
    command.args(["-batch", ":memory:"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(command)
}

/// Debian's own memcached, with the library that was built here.
fn libevent(place: &Place) -> Result<Command> {
    let mut command = quiet(Path::new("memcached"));
    command.env("LD_LIBRARY_PATH", &place.folder);
    command.args(["-u", "root", "-l", "127.0.0.1", "-p", &place.port.to_string(), "-t", "4"]);
    Ok(command)
}

pub const PACKAGES: [Package; 9] = [
    Package {
        name: "redis",
        needs: &["libssl-dev"],
        configure: "",
        // Its makefile does not look whether its own copies of libraries have changed.
        build: "make -C deps -j2 BUILD_TLS=yes hiredis linenoise lua hdr_histogram; rm -f src/redis-server
                make -C src -j2 BUILD_TLS=yes MALLOC=libc redis-server",
        links: &["src/redis-server"],
        load: Kind::Redis,
        start: redis,
        probes: &[Probe {
            patch: "CVE-2025-67733.patch",
            send: "*3\r\n$8\r\nFUNCTION\r\n$4\r\nLIST\r\n$5\r\nX\r\n+I\r\n",
            before: "-ERR Unknown argument X\r\n+I",
            after: "-ERR Unknown argument X  +I",
        }],
    },
    Package {
        name: "memcached",
        needs: &["libevent-dev", "libsasl2-dev", "libssl-dev"],
        configure: "./configure --disable-docs --disable-coverage --enable-sasl --enable-tls --enable-proxy",
        build: "make -C vendor; make -j2 memcached",
        links: &["memcached"],
        load: Kind::Memcached,
        start: memcached,
        probes: &[],
    },
    Package {
        name: "haproxy",
        needs: &["libssl-dev", "libpcre2-dev"],
        configure: "",
        build: "make -j2 TARGET=linux-glibc USE_OPENSSL=1 USE_PCRE2=1 USE_SLZ=1 IGNOREGIT=true haproxy",
        links: &["haproxy"],
        load: Kind::Http,
        start: haproxy,
        probes: &[
            Probe {
                patch: "BUG-MAJOR-http-reject-any-empty-content-length-heade.patch",
                send: "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
                before: "HTTP/1.1 200",
                after: "HTTP/1.1 400",
            },
            Probe {
                patch: "BUG-MINOR-h1-do-not-accept-as-part-of-the-URI-compon.patch",
                send: "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
                before: "HTTP/1.1 200",
                after: "HTTP/1.1 400",
            },
        ],
    },
    Package {
        name: "mosquitto",
        needs: &["cmake", "libssl-dev", "libcjson-dev"],
        configure: "cmake -S . -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDOCUMENTATION=OFF -DWITH_CLIENTS=OFF -DWITH_APPS=OFF \
                    -DWITH_PLUGINS=OFF",
        build: "cmake --build build -j2 --target mosquitto",
        links: &["build/src/mosquitto"],
        load: Kind::Mqtt,
        start: mosquitto,
        probes: &[],
    },
    Package {
        name: "nginx",
        needs: &["libpcre2-dev", "libssl-dev", "zlib1g-dev"],
        configure: "./configure --with-threads --with-http_ssl_module --with-http_v2_module --with-http_mp4_module \
                    --with-http_dav_module --with-http_gunzip_module --with-mail --with-mail_ssl_module --with-stream \
                    --with-stream_ssl_module --with-http_realip_module --with-http_sub_module --with-compat",
        build: "make -j2 -f objs/Makefile objs/nginx",
        links: &["objs/nginx"],
        load: Kind::Http,
        start: nginx,
        probes: &[],
    },
    Package {
        name: "dnsmasq",
        needs: &["nettle-dev", "libgmp-dev"],
        configure: "",
        build: "make -j2 all COPTS=-DHAVE_DNSSEC",
        links: &["src/dnsmasq"],
        load: Kind::Dns,
        start: dnsmasq,
        probes: &[],
    },
    Package {
        name: "unbound",
        needs: &["libssl-dev", "libexpat1-dev", "bison", "flex"],
        configure: "./configure --disable-shared --disable-flto --with-pthreads",
        build: "make -j2 unbound",
        links: &["unbound"],
        load: Kind::Dns,
        start: unbound,
        probes: &[],
    },
    Package {
        name: "libevent",
        needs: &["cmake", "memcached"],
        configure: "cmake -S . -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DEVENT__LIBRARY_TYPE=SHARED -DEVENT__DISABLE_TESTS=ON \
                    -DEVENT__DISABLE_BENCHMARK=ON -DEVENT__DISABLE_SAMPLES=ON -DEVENT__DISABLE_OPENSSL=ON",
        build: "cmake --build build -j2 --target event_shared",
        links: &["build/lib/libevent-2.1.so.7.0.1"],
        load: Kind::Memcached,
        start: libevent,
        probes: &[],
    },
    Package {
        name: "sqlite3",
        needs: &["tcl"],
        // As debian/rules has it, as far as fixes are of these parts.
        configure: "CFLAGS='-g -O2 -DSQLITE_ENABLE_SESSION -DSQLITE_ENABLE_PREUPDATE_HOOK -DSQLITE_ENABLE_FTS3 -DSQLITE_ENABLE_RTREE \
                    -DSQLITE_SECURE_DELETE -DSQLITE_ENABLE_COLUMN_METADATA' ./configure --disable-shared --disable-readline --enable-fts5",
        build: "make -j2 sqlite3",
        links: &["sqlite3", ".libs/sqlite3"],
        load: Kind::Sql,
        start: sqlite,
        probes: &[],
    },
];
