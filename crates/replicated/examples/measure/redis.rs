//! Redis with a replica, for comparison: each update is `SET` and `WAIT 1 0`, sent together, both replies awaited.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Failure, Hosts};

const SERVER: &str = "redis-server";

pub struct Pair {
    address: SocketAddr,
    servers: Vec<Child>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Pair {
    pub fn start(hosts: &Hosts) -> Result<Self, Failure> {
        let (address, other) = (hosts.free_here(), hosts.free_there());
        let mut pair = Self { address, servers: Vec::new() };
        pair.serve(Command::new(SERVER), address, &[])?;
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        pair.serve(hosts.command_there(Path::new(SERVER)), other, &["--replicaof", &host, &port])?;
        let since = Instant::now();
        while pair.update(&mut pair.connect()?, 0, 100)? < 1 {
            if since.elapsed() > Duration::from_secs(60) {
                return Err("Redis has no replica".into());
            }
        }
        Ok(pair)
    }

    fn serve(&mut self, mut command: Command, address: SocketAddr, more: &[&str]) -> Result<(), Failure> {
        command.args([
            "--port",
            &address.port().to_string(),
            "--bind",
            &address.ip().to_string(),
            "--protected-mode",
            "no",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--dir", "/tmp"]);
        let server = command.args(more).stdout(Stdio::null()).spawn()?;
        self.servers.push(server);
        let since = Instant::now();
        while TcpStream::connect(address).is_err() {
            if since.elapsed() > Duration::from_secs(30) {
                return Err("redis-server does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn connect(&self) -> Result<BufReader<TcpStream>, Failure> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// How many replicas hold it. `limit`: milliseconds, 0 for ever.
    fn update(&self, stream: &mut BufReader<TcpStream>, key: usize, limit: u64) -> Result<u64, Failure> {
        let limit = limit.to_string();
        let key = format!("cell:{key:08}");
        let request = format!(
            "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$8\r\n12345678\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n${}\r\n{limit}\r\n",
            key.len(),
            limit.len()
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line != "+OK\r\n" {
            return Err(format!("Redis says {line:?}").into());
        }
        line.clear();
        stream.read_line(&mut line)?;
        Ok(line.trim_start_matches(':').trim_end().parse()?)
    }

    /// Updates a second, each held by the replica before the client's next.
    pub fn updates_by(&self, clients: usize, time: Duration) -> Result<f64, Failure> {
        let streams: Vec<_> = (0..clients).map(|_| self.connect()).collect::<Result<_, _>>()?;
        let since = Instant::now();
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = streams
                .into_iter()
                .enumerate()
                .map(|(key, mut stream)| {
                    scope.spawn(move || -> Result<u64, String> {
                        let mut count = 0;
                        while since.elapsed() < time {
                            self.update(&mut stream, key, 0).map_err(|error| error.to_string())?;
                            count += 1;
                        }
                        Ok(count)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(Err("a thread panicked".into())))
                .collect::<Vec<_>>()
        });
        let took = since.elapsed();
        let total: u64 = counts.into_iter().sum::<Result<u64, String>>()?;
        Ok(total as f64 / took.as_secs_f64())
    }
}
