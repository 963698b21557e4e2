//! Downloads by curl, of a known pattern, one after the other on each of several connections.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::stats::Stats;
use super::workers::Workers;
use crate::netns::NetNs;
use crate::pattern;

/// What counts as one answer.
const PIECE: usize = 1 << 20;
/// Between two pieces, so that one download lasts over several kills: 1 GiB takes some 20 seconds.
const REST: Duration = Duration::from_millis(20);

/// Starts downloads on that many connections. What is at `url` is the pattern of this length whose seed is the length.
pub fn start(from: &NetNs, url: &str, length: u64, connections: usize) -> io::Result<Workers> {
    Workers::start("fetch", connections, |id| {
        let (from, url) = (from.clone(), url.to_owned());
        Ok(
            move |stats: &Stats, stop: &AtomicBool| {
                while !stop.load(Ordering::Relaxed) && fetch(id, &from, &url, length, stats) {}
            },
        )
    })
}

/// One download, each piece compared with what it has to be. True if all of it was right.
fn fetch(id: usize, from: &NetNs, url: &str, length: u64, stats: &Stats) -> bool {
    let curl = || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--fail", "--no-buffer", url]);
        curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let mut curl = match from.run(curl) {
        Ok(curl) => curl,
        Err(error) => {
            stats.dropped(format!("download {id}: cannot run curl: {error}"));
            return false;
        }
    };
    let compared = compare(id, &mut curl, length, stats);
    // It may have ended by itself.
    let _ = curl.kill();
    let _ = curl.wait();
    match compared {
        Ok(right) => right,
        Err(error) => {
            let mut said = String::new();
            if let Some(mut stderr) = curl.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            stats.dropped(format!("download {id} was dropped: {error}; curl said: {}", said.trim()));
            false
        }
    }
}

fn compare(id: usize, curl: &mut Child, length: u64, stats: &Stats) -> io::Result<bool> {
    let mut output = curl.stdout.take().ok_or_else(|| io::Error::other("curl has no output"))?;
    let mut expected = pattern::Reader::new(length, length);
    let (mut got, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    for piece in 0..length / PIECE as u64 {
        let asked = Instant::now();
        output.read_exact(&mut got)?;
        expected.read_exact(&mut right)?;
        if got != right {
            stats.wrong(format!("download {id}: what came in MiB {piece} is not what was sent"));
            return Ok(false);
        }
        stats.answered(id, asked, 1);
        thread::sleep(REST);
    }
    if output.read(&mut got)? > 0 {
        stats.wrong(format!("download {id}: more came than there is"));
        return Ok(false);
    }
    Ok(true)
}
