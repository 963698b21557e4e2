//! A small server to protect in tests: a thread a connection, all state in memory, and several things to ask for, so
//! that the clients of `outlive_lab::client` find every kind of traffic at one port.
//!
//! A connection's first line says what it is for; numbers are decimal:
//!
//! | line | the server |
//! |---|---|
//! | `download LENGTH SEED` | sends that pattern and closes at once, with whatever is unsent still queued |
//! | `leave LENGTH SEED` | the same, with room made for all of it in the kernel: it closes before anything was received |
//! | `upload LENGTH` | reads that much and answers `HASH LENGTH` |
//! | `count` | answers this and every later line `count` with a number that grows by one per connection |
//! | `once WORD` | answers `WORD N`, N counting these requests of all connections, and closes |
//! | `store KEY VALUE`, `load KEY` | keeps or gives a word, for as long as the server lives; any number of lines |

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use outlive_lab::pattern;

/// A request line longer than this ends the connection.
const LINE_LIMIT: u64 = 4096;
/// More words than this are not kept.
const STORE_LIMIT: usize = 100_000;

#[derive(Default)]
struct State {
    once: AtomicU64,
    words: Mutex<HashMap<String, String>>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address] = arguments.as_slice() else {
        eprintln!("usage: lab_server ADDRESS:PORT");
        return ExitCode::from(2);
    };
    match serve(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab_server: cannot serve at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("ready {}", listener.local_addr()?);
    io::stdout().flush()?;
    let state = Arc::new(State::default());
    for stream in listener.incoming() {
        let (stream, state) = (stream?, Arc::clone(&state));
        // The end of one connection, however it comes, is no matter of the others.
        thread::Builder::new().spawn(move || drop(converse(&stream, &state)))?;
    }
    Ok(())
}

fn converse(stream: &TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut count = 0_u64;
    loop {
        let mut line = String::new();
        if input.by_ref().take(LINE_LIMIT).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["download", length, seed] => {
                let mut bytes = pattern::Reader::new(number(seed)?, number(length)?);
                return io::copy(&mut bytes, &mut output).map(drop);
            }
            ["leave", length, seed] => {
                let length = number(length)?;
                // The kernel doubles this, for what it needs beside the data (socket(7), SO_SNDBUF).
                let room = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
                setsockopt(stream, sockopt::SndBufForce, &room)?;
                let mut bytes = pattern::Reader::new(number(seed)?, length);
                return io::copy(&mut bytes, &mut output).map(drop);
            }
            ["upload", length] => {
                let (hash, got) = pattern::hash_stream(&mut input.by_ref().take(number(length)?))?;
                writeln!(output, "{hash:016x} {got}")?;
            }
            ["count"] => {
                count += 1;
                output.write_all(format!("{count}\n").as_bytes())?;
            }
            ["once", word] => {
                let served = state.once.fetch_add(1, Ordering::Relaxed) + 1;
                return output.write_all(format!("{word} {served}\n").as_bytes());
            }
            ["store", key, value] => {
                let mut words = state.words.lock().unwrap_or_else(PoisonError::into_inner);
                let fits = words.len() < STORE_LIMIT || words.contains_key(*key);
                if fits {
                    words.insert((*key).to_owned(), (*value).to_owned());
                }
                drop(words);
                output.write_all(if fits { b"stored\n" } else { b"full\n" })?;
            }
            ["load", key] => {
                let words = state.words.lock().unwrap_or_else(PoisonError::into_inner);
                let value = words.get(*key).cloned().unwrap_or_else(|| "none".to_owned());
                drop(words);
                output.write_all(format!("{value}\n").as_bytes())?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
