//! How the servers among them are started, and the programs that clients of some are.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{self, Stdio};

use super::{Kind, Program, Result, done, wrote};

/// What every name below `test.` has for an address; `unbound.conf` says the same.
pub(super) const NAMED: [u8; 4] = [10, 1, 2, 3];

impl Program {
    pub(super) fn server(&self, port: &str) -> Result<Vec<String>> {
        let simple = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Ok(match self.kind {
            Kind::Websocket => {
                simple(&["node", &self.file("count.js", include_str!("../../services/count_ws.js"))?, port])
            }
            Kind::Mosquitto => {
                let conf = self.file("mosquitto.conf", include_str!("../../services/mosquitto.conf"))?;
                simple(&["mosquitto", "-c", &conf])
            }
            Kind::Apache => {
                self.cgi()?;
                let conf = self.file("apache.conf", include_str!("../../services/apache.conf"))?;
                simple(&["apache2", "-f", &conf, "-D", "FOREGROUND"])
            }
            Kind::Lighttpd => {
                self.cgi()?;
                let conf = self.file("lighttpd.conf", include_str!("../../services/lighttpd.conf"))?;
                simple(&["lighttpd", "-D", "-f", &conf])
            }
            Kind::Mariadb => {
                let begin = self.file(
                    "begin.sql",
                    "CREATE DATABASE IF NOT EXISTS demo;\n\
                     CREATE TABLE IF NOT EXISTS demo.counts (name VARCHAR(20) PRIMARY KEY, n BIGINT NOT NULL);\n\
                     CREATE USER IF NOT EXISTS 'demo'@'%';\n\
                     GRANT ALL ON demo.* TO 'demo'@'%';\n",
                )?;
                let script = "mariadb-install-db --no-defaults --datadir=/tmp/data --skip-test-db \
                              --innodb-log-file-size=16M > /dev/null && \
                              exec mariadbd --no-defaults --datadir=/tmp/data --port=\"$1\" --bind-address=0.0.0.0 \
                              --socket=/run/mariadb/mariadb.sock --skip-name-resolve --innodb-log-file-size=16M \
                              --init-file=\"$2\"";
                let script = format!("mkdir -p /run/mariadb; {script} --user=root");
                simple(&["sh", "-c", &script, "mariadb", port, &begin])
            }
            Kind::Gunicorn => {
                self.file("count.py", include_str!("../../services/count_wsgi.py"))?;
                let (folder, bind) = (self.folder.to_string_lossy(), format!("0.0.0.0:{port}"));
                let mut words = simple(&["gunicorn", "--bind", &bind, "--workers", "3", "--threads", "8"]);
                words.extend(simple(&["--keep-alive", "3600", "--chdir", &folder, "count:app"]));
                words
            }
            Kind::Puma => {
                self.file("count.ru", include_str!("../../services/count.ru"))?;
                let conf = self.file("puma.rb", include_str!("../../services/puma.rb"))?;
                simple(&["puma", "-C", &conf])
            }
            Kind::Erlang => {
                let source = self.file("count.erl", include_str!("../../services/count.erl"))?;
                let folder = self.folder.to_string_lossy().into_owned();
                done(process::Command::new("erlc").args(["-o", &folder, &source]))?;
                simple(&["erl", "-noinput", "-pa", &folder, "-run", "count", "main", port])
            }
            Kind::Dnsmasq => {
                let address = format!("--address=/test/{}.{}.{}.{}", NAMED[0], NAMED[1], NAMED[2], NAMED[3]);
                let port = format!("--port={port}");
                simple(&[
                    "dnsmasq",
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--user=root",
                    &port,
                    &address,
                ])
            }
            Kind::Unbound => {
                let conf = self.file("unbound.conf", include_str!("../../services/unbound.conf"))?;
                simple(&["unbound", "-d", "-c", &conf])
            }
            Kind::Replica => {
                // Copies while it runs come from a fork: at every change of a hundred keys within a second.
                let script = "mkdir -p /tmp/replica; \
                              redis-server --port 7001 --dir /tmp/replica --replicaof 127.0.0.1 \"$1\" & \
                              exec redis-server --port \"$1\" --bind 0.0.0.0 --protected-mode no --dir /tmp \
                              --io-threads 4 --io-threads-do-reads yes --appendonly yes --save '1 100'";
                simple(&["sh", "-c", script, "replica", port])
            }
            // The others are started by `install`.
            _ => Vec::new(),
        })
    }

    /// A program that is run for every request.
    fn cgi(&self) -> Result<()> {
        let path = self.file("count.cgi", include_str!("../../services/count.cgi"))?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&path, executable).map_err(|source| wrote(path.as_ref(), source))
    }
}

/// A subscriber and a publisher that stay connected.
pub(super) fn mqtt(to: SocketAddr, name: &str) -> [process::Command; 2] {
    let (host, port, topic) = (to.ip().to_string(), to.port().to_string(), format!("count/{name}"));
    let common = ["-h", &host, "-p", &port, "-q", "1", "-t", &topic];
    // Without `stdbuf` what it says of itself waits in a buffer.
    let mut subscriber = process::Command::new("stdbuf");
    subscriber.args(["-oL", "mosquitto_sub", "-d"]).args(common);
    subscriber.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut publisher = process::Command::new("mosquitto_pub");
    publisher.arg("-l").args(common).stdin(Stdio::piped()).stdout(Stdio::null());
    [subscriber, publisher]
}

pub(super) fn mariadb(to: SocketAddr) -> process::Command {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let mut mariadb = process::Command::new("mariadb");
    mariadb.args(["--no-defaults", "--batch", "--unbuffered", "--skip-column-names", "--skip-reconnect"]);
    mariadb.args(["--host", &host, "--port", &port, "--user", "demo", "demo"]);
    mariadb.stdin(Stdio::piped()).stdout(Stdio::piped());
    mariadb
}
