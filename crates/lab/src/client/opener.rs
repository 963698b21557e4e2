//! Opens connections one after another against `lab_server`: connect, one request, one reply, close. It is such
//! short connections that a failover is most likely to catch half open or not yet accepted.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::connect;
use super::stats::Stats;
use super::workers::Workers;
use crate::netns::NetNs;

/// A reply that takes longer counts as a dropped connection.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Starts threads that each have one connection at a time; `pace` is from the end of one to the next.
pub fn start(
    from: Option<&NetNs>,
    to: SocketAddr,
    threads: usize,
    pace: Duration,
) -> std::io::Result<Workers> {
    Workers::start("opener", threads, |id| {
        let from = from.cloned();
        Ok(move |stats: &Stats, stop: &AtomicBool| {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                once(from.as_ref(), to, id, number, stats);
                thread::sleep(pace);
            }
        })
    })
}

fn once(from: Option<&NetNs>, to: SocketAddr, id: usize, number: u64, stats: &Stats) {
    let asked = Instant::now();
    let word = format!("{id}-{number}");
    let exchange = || -> Result<String, String> {
        let mut stream = connect(from, to).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        let mut reply = String::new();
        stream
            .set_read_timeout(Some(REPLY_LIMIT))
            .and_then(|()| stream.write_all(format!("once {word}\n").as_bytes()))
            .and_then(|()| BufReader::new(&stream).read_line(&mut reply))
            .map_err(|error| error.to_string())?;
        if reply.is_empty() { Err("closed without a reply".to_owned()) } else { Ok(reply) }
    };
    match exchange() {
        Err(how) => stats.dropped(format!("opener {word}: {how}")),
        Ok(reply) if reply.split_whitespace().next() == Some(word.as_str()) => stats.answered(id, asked, 0),
        Ok(reply) => stats.wrong(format!("opener {word}: `{}` in answer", reply.trim_end())),
    }
}
