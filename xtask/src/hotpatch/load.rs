//! Load whose every answer is checked, while a program is patched: over connections that stay, one request at a time each.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Latencies that one thread keeps at most.
const MOST: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Memcached,
    Http,
    Mqtt,
    Dns,
    /// SQL by standard input and output.
    Sql,
}

/// One client: it asks, and says whether the answer is right.
trait Client: Send {
    fn exchange(&mut self, number: u64) -> io::Result<()>;
}

/// What the clients saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub requests: u64,
    pub errors: Vec<String>,
    /// Microseconds, ascending.
    pub latencies: Vec<u32>,
}

impl Seen {
    /// The latency that so many of a thousand requests did not exceed, in microseconds.
    pub fn per_mille(&self, share: usize) -> u32 {
        let at = (self.latencies.len() * share / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).copied().unwrap_or(0)
    }
}

/// Clients that run until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    threads: Vec<JoinHandle<(Vec<u32>, Vec<String>)>>,
}

impl Load {
    /// Connections to a port of this machine.
    pub fn start(kind: Kind, port: u16, connections: usize) -> io::Result<Self> {
        let mut clients: Vec<Box<dyn Client>> = Vec::new();
        for number in 0..connections {
            clients.push(match kind {
                Kind::Redis => Box::new(Redis(Wire::connect(port)?, number)),
                Kind::Memcached => Box::new(Memcached(Wire::connect(port)?, number)),
                Kind::Http => Box::new(Http(Wire::connect(port)?)),
                Kind::Mqtt => Box::new(Mqtt::connect(port, number)?),
                Kind::Dns => Box::new(Dns::connect(port)?),
                Kind::Sql => return Err(io::Error::other("SQL goes by standard input and output")),
            });
        }
        Ok(Self::run(clients))
    }

    /// One client of a pipe that others may use too, between two requests.
    pub fn start_sql(pipe: &Arc<Mutex<Sql>>) -> io::Result<Self> {
        let mut client = SharedSql(Arc::clone(pipe));
        client.begin()?;
        Ok(Self::run(vec![Box::new(client)]))
    }

    fn run(clients: Vec<Box<dyn Client>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(AtomicU64::new(0));
        let threads = clients.into_iter().map(|mut client| {
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            thread::spawn(move || {
                let (mut latencies, mut errors) = (Vec::new(), Vec::new());
                for number in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let asked = Instant::now();
                    if let Err(error) = client.exchange(number) {
                        errors.push(format!("request {number}: {error}"));
                        break;
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                    if latencies.len() < MOST {
                        latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
                    }
                }
                (latencies, errors)
            })
        });
        Self { threads: threads.collect(), stop, requests }
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests were answered, or a client has given up, or the time is over.
    pub fn wait_for(&self, more: u64, limit: Duration) -> bool {
        let (from, begun) = (self.requests(), Instant::now());
        while self.requests() < from + more {
            if begun.elapsed() > limit || self.threads.iter().any(JoinHandle::is_finished) {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen { requests: self.requests(), ..Seen::default() };
        for thread in self.threads {
            match thread.join() {
                Ok((latencies, errors)) => {
                    seen.latencies.extend(latencies);
                    seen.errors.extend(errors);
                }
                Err(_) => seen.errors.push("a client came to an unexpected end".to_owned()),
            }
        }
        seen.latencies.sort_unstable();
        seen
    }
}

fn wrong(expected: &str, got: &[u8]) -> io::Error {
    io::Error::other(format!("expected {expected:?}, got {:?}", String::from_utf8_lossy(got)))
}

/// A connection.
struct Wire {
    input: BufReader<TcpStream>,
}

impl Wire {
    fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { input: BufReader::new(stream) })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.get_mut().write_all(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }

    fn must_say(&mut self, expected: &str) -> io::Result<()> {
        let mut got = vec![0; expected.len()];
        self.input.read_exact(&mut got)?;
        if got == expected.as_bytes() { Ok(()) } else { Err(wrong(expected, &got)) }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut got = [0; N];
        self.input.read_exact(&mut got)?;
        Ok(got)
    }
}

struct Redis(Wire, usize);

impl Client for Redis {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        let Self(wire, client) = self;
        let value = format!("value-{client}-{number}");
        wire.send(format!("SET key:{client} {value}\r\nGET key:{client}\r\n").as_bytes())?;
        wire.must_say(&format!("+OK\r\n${}\r\n{value}\r\n", value.len()))?;
        if number.is_multiple_of(16) {
            // In braces: both keys are of one slot of a cluster.
            let key = format!("list:{{{client}}}");
            let script = "\"return redis.call('incrby', KEYS[1], 2)\"";
            wire.send(
                format!("DEL {key} n:{{{client}}}\r\nRPUSH {key} a b c\r\nLRANGE {key} 1 1\r\nEVAL {script} 1 n:{{{client}}}\r\n")
                    .as_bytes(),
            )?;
            let deleted = wire.line()?;
            if !deleted.starts_with(':') {
                return Err(wrong(":", deleted.as_bytes()));
            }
            wire.must_say(":3\r\n*1\r\n$1\r\nb\r\n:2\r\n")?;
        }
        Ok(())
    }
}

struct Memcached(Wire, usize);

impl Client for Memcached {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        let Self(wire, client) = self;
        let value = format!("value-{client}-{number}");
        let length = value.len();
        wire.send(format!("set key:{client} 7 0 {length}\r\n{value}\r\nget key:{client}\r\n").as_bytes())?;
        wire.must_say(&format!("STORED\r\nVALUE key:{client} 7 {length}\r\n{value}\r\nEND\r\n"))
    }
}

struct Http(Wire);

impl Client for Http {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        let wire = &mut self.0;
        wire.send(format!("GET /{number} HTTP/1.1\r\nHost: it\r\n\r\n").as_bytes())?;
        let status = wire.line()?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(wrong("HTTP/1.1 200", status.as_bytes()));
        }
        while wire.line()? != "\r\n" {}
        wire.must_say("ok")
    }
}

struct Mqtt {
    wire: Wire,
    topic: String,
}

impl Mqtt {
    /// MQTT 3.1.1: CONNECT (3.1) and SUBSCRIBE (3.8) to a topic of its own.
    fn connect(port: u16, number: usize) -> io::Result<Self> {
        let mut wire = Wire::connect(port)?;
        let topic = format!("topic/{number:02}");
        let name = format!("client{number:02}");
        let mut connect = vec![0x10, 12 + name.len() as u8, 0, 4];
        connect.extend(b"MQTT\x04\x02\x00\x3c\x00");
        connect.push(name.len() as u8);
        connect.extend(name.as_bytes());
        wire.send(&connect)?;
        let answer: [u8; 4] = wire.bytes()?;
        if answer != [0x20, 2, 0, 0] {
            return Err(wrong("CONNACK", &answer));
        }
        let mut subscribe = vec![0x82, 5 + topic.len() as u8, 0, 1, 0, topic.len() as u8];
        subscribe.extend(topic.as_bytes());
        subscribe.push(0);
        wire.send(&subscribe)?;
        let answer: [u8; 5] = wire.bytes()?;
        if answer != [0x90, 3, 0, 1, 0] {
            return Err(wrong("SUBACK", &answer));
        }
        Ok(Self { wire, topic })
    }
}

impl Client for Mqtt {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        let (id, text) = ((number % 60_000 + 1) as u16, format!("{number:020}"));
        let header = [0, self.topic.len() as u8];
        // PUBLISH (3.3) with QoS 1; it comes back with QoS 0, as was subscribed, and is acknowledged (3.4).
        let mut publish = vec![0x32, (2 + self.topic.len() + 2 + text.len()) as u8];
        publish.extend(header);
        publish.extend(self.topic.as_bytes());
        publish.extend(id.to_be_bytes());
        publish.extend(text.as_bytes());
        self.wire.send(&publish)?;
        let mut missing = 2;
        while missing > 0 {
            let [kind, length] = self.wire.bytes()?;
            let mut body = vec![0; usize::from(length)];
            self.wire.input.read_exact(&mut body)?;
            let is_right = match kind {
                0x40 => body == id.to_be_bytes(),
                0x30 => body.ends_with(text.as_bytes()),
                _ => false,
            };
            if !is_right {
                return Err(wrong(&text, &body));
            }
            missing -= 1;
        }
        Ok(())
    }
}

struct Dns(UdpSocket);

impl Dns {
    fn connect(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(Self(socket))
    }
}

impl Client for Dns {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        // RFC 1035, 4.1: a question for the address of host.example.
        let id = (number as u16).to_be_bytes();
        let mut query = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(b"\x04host\x07example\x00\x00\x01\x00\x01");
        self.0.send(&query)?;
        let mut answer = [0; 512];
        let length = self.0.recv(&mut answer)?;
        let answer = &answer[..length];
        if is_address(answer, id, [192, 0, 2, 1]) { Ok(()) } else { Err(wrong("192.0.2.1", answer)) }
    }
}

/// Whether an answer is to the question of this id, without an error, and its one record holds this address (RFC 1035, 4.1: QR and
/// RCODE in the header, ANCOUNT; the question; then a name, type A, class IN, time to live, length, address). What servers add
/// behind it (an OPT record) is theirs.
fn is_address(answer: &[u8], id: [u8; 2], address: [u8; 4]) -> bool {
    const HEADER: usize = 12;
    let half = |at: usize| answer.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    // A name ends with an empty label, or with a reference to another.
    let after_name = |mut at: usize| loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            label if label & 0xc0 == 0xc0 => return Some(at + 2),
            label => at += 1 + usize::from(label),
        }
    };
    if answer.len() < HEADER || answer[..2] != id || answer[2] & 0x80 == 0 || answer[3] & 0xf != 0 {
        return false;
    }
    if half(4) != Some(1) || half(6) != Some(1) {
        return false;
    }
    let Some(at) = after_name(HEADER).and_then(|end| after_name(end + 4)) else { return false };
    half(at) == Some(1)
        && half(at + 2) == Some(1)
        && half(at + 8) == Some(4)
        && answer.get(at + 10..at + 14) == Some(&address)
}

/// The shell of sqlite3, by standard input and output.
pub struct Sql {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sql {
    pub fn new(input: ChildStdin, output: ChildStdout) -> Self {
        Self { input, output: BufReader::new(output) }
    }

    pub fn write(&mut self, sql: &[u8]) -> io::Result<()> {
        self.input.write_all(sql)?;
        self.input.flush()
    }

    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line)?;
        Ok(line)
    }
}

struct SharedSql(Arc<Mutex<Sql>>);

impl SharedSql {
    fn ask(&mut self, sql: &str, expected: &str) -> io::Result<()> {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write(sql.as_bytes())?;
        let line = pipe.line()?;
        if line.trim_ascii_end() == expected.as_bytes() { Ok(()) } else { Err(wrong(expected, &line)) }
    }

    fn begin(&mut self) -> io::Result<()> {
        self.ask("create table t(a integer primary key, b text); create index i on t(b); select 1;\n", "1")
    }
}

impl Client for SharedSql {
    fn exchange(&mut self, number: u64) -> io::Result<()> {
        let sql = format!(
            "insert into t values({number}, 'b{number}'); delete from t where a < {number} - 100;\n\
             select count(*) || ' ' || max(b) from t x where x.a >= {number} and exists(select 1 from t y where y.b = x.b and y.a = x.a);\n"
        );
        self.ask(&sql, &format!("1 b{number}"))
    }
}

/// A server for a proxy to lead to: it answers every request with `ok`, for as long as this process lives.
pub fn backend() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that ends is the proxy's to end.
            thread::spawn(move || answer(stream));
        }
    });
    Ok(port)
}

fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            input.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_only_with_its_id_and_the_one_address() {
        let mut answer = vec![7, 9, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        answer.extend(b"\x04host\x07example\x00\x00\x01\x00\x01");
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
        let is_right = |answer: &[u8]| is_address(answer, [7, 9], [192, 0, 2, 1]);
        assert!(is_right(&answer));
        // The id, QR, RCODE, ANCOUNT, the type, the length, the address.
        for at in [0, 2, 3, 7, 33, 41, 45] {
            let mut other = answer.clone();
            other[at] ^= if at == 2 { 0x80 } else { 1 };
            assert!(!is_right(&other), "byte {at}");
        }
        for length in 0..answer.len() {
            assert!(!is_right(&answer[..length]), "{length} bytes");
        }
    }
}
