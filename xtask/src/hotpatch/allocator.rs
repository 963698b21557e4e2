//! The allocator that Redis brings along, patched under load: functions that all of its threads are always in.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use super::corpus::{self, Tree};
use super::packages::{Package, Place, redis};

/// As Redis is built where nobody says otherwise, with threads of its own for its clients.
const PACKAGE: Package = Package {
    build: "make -C deps -j2 BUILD_TLS=yes hiredis linenoise lua hdr_histogram
            test -e deps/jemalloc/Makefile || make -C deps jemalloc
            make -C deps/jemalloc -j2 lib/libjemalloc.a; rm -f src/redis-server
            make -C src -j2 BUILD_TLS=yes MALLOC=jemalloc redis-server",
    start,
    variants: &[],
    ..redis::PACKAGE
};

/// What is changed: each allocation gets room that nobody asked for, which Redis says of a value (`MEMORY USAGE`), and what is
/// given back is counted.
const SOURCE: &str = "deps/jemalloc/src/jemalloc.c";
const CHANGES: [(&str, &str); 2] = [
    ("je_malloc(size_t size) {\n", "je_malloc(size_t size) {\n\tsize += 64;\n"),
    (
        "je_free(void *ptr) {\n",
        "je_free(void *ptr) {\n\tstatic size_t freed;\n\t__atomic_fetch_add(&freed, 1, __ATOMIC_RELAXED);\n",
    ),
];
const MORE: u64 = 64;
/// The threads that a change of the allocator has in it.
const IO_THREADS: &str = "4";
const CONNECTIONS: usize = 20;
/// Cycles of apply and revert for each way to switch.
const CYCLES: usize = 50;
/// Requests between a change and the next.
const REQUESTS: u64 = 200;
const PHASE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
pub struct Figures {
    functions: u64,
    cycles: usize,
    cycles_together: usize,
    requests: u64,
    errors: usize,
    longest_hold_us: u64,
    longest_hold_together_us: u64,
}

impl Figures {
    /// Answers that were wrong or did not come.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// A line for people.
    pub fn said(&self) -> String {
        format!(
            "The allocator that Redis brings along (jemalloc), {} functions of it in use by {IO_THREADS} threads, {} cycles and {} with all \
             functions at one instant: {} requests, {} errors, longest hold of a thread {} µs, and {} µs of all.",
            self.functions,
            self.cycles,
            self.cycles_together,
            self.requests,
            self.errors,
            self.longest_hold_us,
            self.longest_hold_together_us
        )
    }
}

fn start(place: &Place) -> Result<Command> {
    let mut command = (redis::PACKAGE.start)(place)?;
    command.args(["--io-threads", IO_THREADS, "--io-threads-do-reads", "yes"]);
    Ok(command)
}

pub fn run(corpus: &Path, apt: &Path, outlive: &Path, keys: &Path) -> Result<Figures> {
    let tree = Tree::unpack(&PACKAGE, "redis-jemalloc", corpus, apt, outlive, keys)?;
    tree.configure()?;
    let (base, place) = tree.record_programs()?;
    let path = tree.file(SOURCE);
    let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for (from, to) in CHANGES {
        ensure!(text.contains(from), "{SOURCE} has no `{from}`");
        text = text.replacen(from, to, 1);
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let file = tree.file("../allocator.opatch");
    let output = tree.build_patch(&base, &file, "allocator")?;
    ensure!(output.status.success(), "outlive patch build: {}", String::from_utf8_lossy(&output.stderr));
    let made = corpus::said(&output)?;
    let names: Vec<&str> = made["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|part| part["switched"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    for wanted in ["je_malloc", "je_free"] {
        ensure!(names.contains(&wanted), "the patch switches {names:?}, without {wanted}");
    }

    let (running, load) = corpus::start(&PACKAGE, None, &place, CONNECTIONS)?;
    ensure!(load.wait_for(20_000, PHASE_LIMIT), "the load does not begin");
    let pid = running.pids()?[0].to_string();
    let patch = |words: &[&str]| -> Result<u64> {
        let mut command = Command::new(outlive);
        command.arg("patch").args(words).args(["--json", "--pid", &pid]);
        let output = command.output().context("cannot run outlive patch")?;
        if !output.status.success() {
            bail!("outlive patch {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        let report: Value = serde_json::from_slice(&output.stdout).context("the patcher's JSON")?;
        Ok(report["longest_hold_us"].as_u64().unwrap_or(0))
    };
    let (file, trust) = (file.to_string_lossy().into_owned(), keys.join("patch.pub"));
    let trust = trust.to_string_lossy().into_owned();
    let mut usage = Usage::connect(running.place.port)?;
    let plain = usage.ask()?;
    let mut longest = [0, 0];
    for (way, together) in [&[][..], &["--together"]].into_iter().enumerate() {
        for _ in 0..CYCLES {
            let apply = [&["apply", &file, "--trust", &trust], together].concat();
            longest[way] = longest[way].max(patch(&apply)?);
            ensure!(usage.ask()? >= plain + MORE, "the patch has no effect");
            ensure!(load.wait_for(REQUESTS, PHASE_LIMIT), "the load does not go on with the patch");
            longest[way] = longest[way].max(patch(&["revert"])?);
            ensure!(usage.ask()? == plain, "the patch has an effect after its revert");
            ensure!(load.wait_for(REQUESTS, PHASE_LIMIT), "the load does not go on after the revert");
        }
    }
    let seen = load.stop();
    Ok(Figures {
        functions: names.len() as u64,
        cycles: CYCLES,
        cycles_together: CYCLES,
        requests: seen.requests,
        errors: seen.errors.len(),
        longest_hold_us: longest[0],
        longest_hold_together_us: longest[1],
    })
}

/// How much memory a value takes that is written anew.
struct Usage(BufReader<TcpStream>);

impl Usage {
    fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to redis")?;
        stream.set_read_timeout(Some(PHASE_LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self) -> Result<u64> {
        self.0
            .get_mut()
            .write_all(b"DEL measured\r\nSET measured 0123456789abcdefghij\r\nMEMORY USAGE measured\r\n")?;
        let mut line = String::new();
        for _ in 0..3 {
            line.clear();
            self.0.read_line(&mut line)?;
        }
        let number = line.trim_end().strip_prefix(':').and_then(|number| number.parse().ok());
        number.with_context(|| format!("redis says {line:?} of the memory of a value"))
    }
}
