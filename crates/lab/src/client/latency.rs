//! One request at a time over one connection: what protection adds to a lone request.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::stats::Summary;
use super::{ClientError, connect};
use crate::netns::NetNs;

const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `lab_server`: it counts the requests of the connection, and the count must be right.
    Count,
    /// Redis: each request sets one key, and must be acknowledged.
    RedisSet,
}

/// Asks so many times, one after the other; the round trips in microseconds.
pub fn measure(
    from: Option<&NetNs>,
    to: SocketAddr,
    service: Service,
    requests: u64,
    pace: Duration,
) -> Result<Summary, ClientError> {
    let stream = connect(from, to)?;
    let set_up = stream.set_read_timeout(Some(REPLY_LIMIT));
    set_up.map_err(|source| ClientError::Connect { to, source })?;
    let mut input = BufReader::new(&stream);
    let mut output = &stream;
    let mut round_trips = Vec::with_capacity(requests.min(1 << 20) as usize);
    let mut received = 0;
    for number in 1..=requests {
        let (request, expected) = match service {
            Service::Count => ("count\n".to_owned(), format!("{number}\n")),
            Service::RedisSet => (format!("SET lab:latency {number}\r\n"), "+OK\r\n".to_owned()),
        };
        let mut reply = String::new();
        let asked = Instant::now();
        let exchanged = output.write_all(request.as_bytes()).and_then(|()| input.read_line(&mut reply));
        round_trips.push(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
        let dropped = |source| ClientError::Dropped { to, after: received, source };
        exchanged.map_err(dropped)?;
        if reply.is_empty() {
            return Err(dropped(io::ErrorKind::UnexpectedEof.into()));
        }
        if reply != expected {
            let what = format!("`{}` in answer to request {number}", reply.trim_end());
            return Err(ClientError::Wrong { to, what });
        }
        received += reply.len() as u64;
        if !pace.is_zero() {
            std::thread::sleep(pace);
        }
    }
    Ok(Summary::of(round_trips))
}
