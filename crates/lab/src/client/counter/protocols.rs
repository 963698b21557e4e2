//! Ways to ask that speak a protocol by a crate, or by a program that Debian has for it.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE};
use tungstenite::Message;

use super::{Patient, REPLY_LIMIT, Wire, dial, line, nonsense};
use crate::client::redis::resp::{self, Reply};
use crate::netns::NetNs;

/// A websocket: to `+` the service answers with the connection's number.
pub struct WebSocket(tungstenite::WebSocket<Patient>);

impl WebSocket {
    pub fn open(from: &NetNs, to: SocketAddr) -> io::Result<WebSocket> {
        let stream = Patient(dial(from, to)?);
        let (socket, _) = tungstenite::client(format!("ws://{to}/"), stream).map_err(io::Error::other)?;
        Ok(WebSocket(socket))
    }
}

impl Wire for WebSocket {
    fn increment(&mut self) -> io::Result<u64> {
        self.0.send(Message::text("+")).map_err(io::Error::other)?;
        loop {
            match self.0.read().map_err(io::Error::other)? {
                Message::Text(answer) => {
                    return answer.parse().map_err(|_| nonsense("not a number", &answer));
                }
                // The service pings; `read` answers.
                Message::Ping(_) | Message::Pong(_) => {}
                other => return Err(nonsense("not a number", &format!("{other:?}"))),
            }
        }
    }
}

/// Redis, and that its replica follows: `WAIT` answers only once that has the change.
pub struct Redis {
    stream: Patient,
    name: String,
    received: Vec<u8>,
}

impl Redis {
    pub fn open(from: &NetNs, to: SocketAddr, name: &str) -> io::Result<Redis> {
        Ok(Redis { stream: Patient(dial(from, to)?), name: name.to_owned(), received: Vec::new() })
    }

    fn number(&mut self) -> io::Result<u64> {
        loop {
            if let Some((reply, length)) = resp::parse(&self.received).map_err(io::Error::other)? {
                self.received.drain(..length);
                return match reply {
                    Reply::Integer(number) if number >= 0 => Ok(number as u64),
                    other => Err(nonsense("not a number", &format!("{other:?}"))),
                };
            }
            let mut piece = [0; 512];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.received.extend_from_slice(&piece[..length]),
            }
        }
    }
}

impl Wire for Redis {
    fn increment(&mut self) -> io::Result<u64> {
        let mut request = Vec::new();
        resp::command(&mut request, &[b"INCR", self.name.as_bytes()]);
        let limit = REPLY_LIMIT.as_millis().to_string();
        resp::command(&mut request, &[b"WAIT", b"1", limit.as_bytes()]);
        self.stream.write_all(&request)?;
        let number = self.number()?;
        match self.number()? {
            1 => Ok(number),
            replicas => Err(nonsense("not one replica has the change", &replicas.to_string())),
        }
    }
}

/// A name server by UDP: every question is for another name, of which all have one address. One that is not answered
/// is asked again, as resolvers do.
pub struct Dns {
    socket: UdpSocket,
    name: String,
    address: [u8; 4],
    asked: u64,
}

impl Dns {
    /// A resolver asks again after so long (resolv.conf(5) says 5 s; most wait less).
    const AGAIN: Duration = Duration::from_secs(1);
    /// Larger answers need an extension that is not asked for (RFC 1035, 4.2.1).
    const LARGEST: usize = 512;

    pub fn open(from: &NetNs, to: SocketAddr, name: &str, address: [u8; 4]) -> io::Result<Dns> {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Dns::AGAIN))?;
        Ok(Dns { socket, name: name.to_owned(), address, asked: 0 })
    }

    fn check(&self, answer: &[u8], id: u16) -> io::Result<bool> {
        let answer = Packet::parse(answer).map_err(io::Error::other)?;
        if answer.id() != id {
            // To a question that was asked twice.
            return Ok(false);
        }
        let right = answer.answers.iter().any(|record| match &record.rdata {
            RData::A(address) => address.address == u32::from_be_bytes(self.address),
            _ => false,
        });
        if right { Ok(true) } else { Err(nonsense("not the address", &format!("{answer:?}"))) }
    }
}

impl Wire for Dns {
    fn increment(&mut self) -> io::Result<u64> {
        self.asked += 1;
        let id = self.asked as u16;
        let mut question = Packet::new_query(id);
        question.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = format!("q{}.{}.test", self.asked, self.name);
        let name = Name::new(&name).map_err(io::Error::other)?;
        question.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
        let question = question.build_bytes_vec().map_err(io::Error::other)?;
        let begun = Instant::now();
        self.socket.send(&question)?;
        let mut answer = [0; Dns::LARGEST];
        loop {
            match Patient::again(|| self.socket.recv(&mut answer)) {
                Ok(length) if self.check(&answer[..length], id)? => return Ok(self.asked),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < REPLY_LIMIT => {
                    self.socket.send(&question)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// `mosquitto_sub`, which tells what `mosquitto_pub` published through the broker. Both stay connected.
pub struct Mqtt {
    output: BufReader<ChildStdout>,
    input: ChildStdin,
    programs: [Child; 2],
    published: u64,
}

impl Mqtt {
    /// Takes a `mosquitto_sub` that prints what it does (`-d`), and a `mosquitto_pub -l`.
    pub fn new(mut subscriber: Child, mut publisher: Child) -> io::Result<Mqtt> {
        let (output, input) = (subscriber.stdout.take(), publisher.stdin.take());
        let (Some(output), Some(input)) = (output, input) else {
            return Err(io::Error::other("the programs have no pipes"));
        };
        let mut output = BufReader::new(output);
        // Nothing is told that was published before.
        while !line(&mut output)?.contains("received SUBACK") {}
        Ok(Mqtt { output, input, programs: [subscriber, publisher], published: 0 })
    }
}

impl Wire for Mqtt {
    fn increment(&mut self) -> io::Result<u64> {
        self.published += 1;
        self.input.write_all(format!("{}\n", self.published).as_bytes())?;
        loop {
            let said = line(&mut self.output)?;
            if said.contains("sending CONNECT") {
                return Err(nonsense("it had to connect again", &said));
            }
            if let Ok(number) = said.trim().parse() {
                return Ok(number);
            }
        }
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        for program in &mut self.programs {
            // It may have ended by itself.
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// `mariadb`, which is given one statement after the other over one connection.
pub struct Mariadb {
    output: BufReader<ChildStdout>,
    input: ChildStdin,
    program: Child,
    name: String,
}

impl Mariadb {
    /// Takes a `mariadb --batch --unbuffered --skip-column-names --skip-reconnect`.
    pub fn new(mut program: Child, name: &str) -> io::Result<Mariadb> {
        let (output, input) = (program.stdout.take(), program.stdin.take());
        let (Some(output), Some(input)) = (output, input) else {
            return Err(io::Error::other("mariadb has no pipes"));
        };
        Ok(Mariadb { output: BufReader::new(output), input, program, name: name.to_owned() })
    }
}

impl Wire for Mariadb {
    fn increment(&mut self) -> io::Result<u64> {
        let statement = format!(
            "INSERT INTO counts VALUES ('{}', 1) ON DUPLICATE KEY UPDATE n = n + 1 RETURNING n;\n",
            self.name
        );
        self.input.write_all(statement.as_bytes())?;
        let answer = line(&mut self.output)?;
        answer.trim().parse().map_err(|_| nonsense("not a number", &answer))
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
