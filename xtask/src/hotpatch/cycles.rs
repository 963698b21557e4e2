//! A thousand cycles of apply and revert under load.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use super::corpus::{self, Fix, Outcome};
use super::load::Seen;
use super::packages::PACKAGES;

const CYCLES: usize = 1000;
const CONNECTIONS: usize = 20;
/// Rounds with and without cycles, in turn: a machine that is busy for a while is so for both.
const ROUNDS: usize = 4;
/// Between a patch and its revert, and the other way: the load runs on either for as long.
const REST: Duration = Duration::from_millis(5);

#[derive(Debug, Serialize)]
pub struct Figures {
    fix: String,
    functions: u64,
    cycles: usize,
    requests: u64,
    errors: usize,
    throughput_ratio: f64,
    p999_us: u32,
    p999_plain_us: u32,
    max_us: u32,
    max_plain_us: u32,
    longest_hold_us: u64,
    apply_us_median: u64,
    apply_us_max: u64,
}

impl Figures {
    /// Answers that were wrong or did not come, with the cycles and without.
    pub fn errors(&self) -> usize {
        self.errors
    }
}

/// Redis, as the corpus left it: the program before its last fix, and that fix's patch.
pub fn run(corpus: &Path, outlive: &Path, keys: &Path, fixes: &[&Fix]) -> Result<Figures> {
    let package = PACKAGES.iter().find(|package| package.name == "redis").context("no redis")?;
    let last =
        fixes.iter().rfind(|fix| fix.package == "redis" && !matches!(fix.outcome, Outcome::NotCompiled(_)));
    let last = last.context("the corpus has no fix of redis: run it first")?;
    ensure!(last.outcome == Outcome::Patched, "the last fix of redis was not patched");
    let folder = corpus.join("redis");
    let file = folder.join("fixes").join(format!("{}.opatch", last.patch.replace('/', "-")));
    let mut applies = Vec::new();
    let mut longest = 0;
    let (mut with, mut without) = (Totals::default(), Totals::default());
    let (running, load) = corpus::start(package, None, &folder.join("run"), CONNECTIONS)?;
    // The first seconds are the program's to grow.
    load.wait_for(20_000, Duration::from_secs(60));
    ensure!(load.stop().errors.is_empty(), "the load saw errors before anything was patched");
    let pid = running.pids()?[0].to_string();
    let call = |words: &[&str], is_apply: bool| -> Result<Value> {
        let mut command = Command::new(outlive);
        command.arg("patch").args(words).args(["--json", "--pid", &pid]);
        if is_apply {
            command.arg("--trust").arg(keys.join("patch.pub")).arg(&file);
        }
        let output = command.output()?;
        if !output.status.success() {
            bail!("outlive patch {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    for _ in 0..ROUNDS {
        let begun = std::time::Instant::now();
        let load = super::load::Load::start(package.load, running.place.port, CONNECTIONS)?;
        for _ in 0..CYCLES / ROUNDS {
            let report = call(&["apply"], true)?;
            applies.push(report["took_us"].as_u64().unwrap_or(0));
            longest = longest.max(report["longest_hold_us"].as_u64().unwrap_or(0));
            thread::sleep(REST);
            let report = call(&["revert"], false)?;
            longest = longest.max(report["longest_hold_us"].as_u64().unwrap_or(0));
            thread::sleep(REST);
        }
        let lasted = begun.elapsed();
        with.add(load.stop(), lasted);
        let begun = std::time::Instant::now();
        let load = super::load::Load::start(package.load, running.place.port, CONNECTIONS)?;
        // The same commands run beside it, and change nothing: what they take of the processors is not what is measured.
        while begun.elapsed() < lasted {
            call(&["ls"], false)?;
            thread::sleep(REST);
        }
        without.add(load.stop(), begun.elapsed());
    }
    applies.sort_unstable();
    with.seen.latencies.sort_unstable();
    without.seen.latencies.sort_unstable();
    Ok(Figures {
        fix: last.patch.clone(),
        functions: last.functions,
        cycles: applies.len(),
        requests: with.seen.requests,
        errors: with.seen.errors.len() + without.seen.errors.len(),
        throughput_ratio: with.rate() / without.rate(),
        p999_us: with.seen.per_mille(999),
        p999_plain_us: without.seen.per_mille(999),
        max_us: with.seen.per_mille(1000),
        max_plain_us: without.seen.per_mille(1000),
        longest_hold_us: longest,
        apply_us_median: applies[applies.len() / 2],
        apply_us_max: applies[applies.len() - 1],
    })
}

#[derive(Default)]
struct Totals {
    seen: Seen,
    lasted: Duration,
}

impl Totals {
    fn add(&mut self, seen: Seen, lasted: Duration) {
        self.seen.requests += seen.requests;
        self.seen.errors.extend(seen.errors);
        self.seen.latencies.extend(seen.latencies);
        self.lasted += lasted;
    }

    fn rate(&self) -> f64 {
        self.seen.requests as f64 / self.lasted.as_secs_f64()
    }
}

pub fn section(figures: &Figures) -> Result<String> {
    let mut text = String::from("## Hot patching\n\n");
    writeln!(
        text,
        "`cargo xtask bench hotpatch`: Redis from Debian's source, recorded without its last fix ({}); a patch with the fix is applied and \
         reverted by `outlive patch` under {CONNECTIONS} connections whose every answer is checked, in turn with the same load \
         without (`outlive patch ls` as often in its place). The fixes of real packages: [docs/hotpatch-corpus.md](docs/hotpatch-corpus.md).\n\n\
         | figure | value |\n|---|---|",
        figures.fix
    )?;
    writeln!(text, "| cycles of apply and revert during the load | {} |", figures.cycles)?;
    writeln!(
        text,
        "| requests during the cycles, and errors of all | {}, {} |",
        figures.requests, figures.errors
    )?;
    writeln!(text, "| functions in the patch | {} |", figures.functions)?;
    writeln!(text, "| throughput, with cycles over without | {:.2} |", figures.throughput_ratio)?;
    writeln!(
        text,
        "| p99.9 latency, with and without | {} / {} µs |",
        figures.p999_us, figures.p999_plain_us
    )?;
    writeln!(
        text,
        "| longest latency, with and without | {} / {} µs |",
        figures.max_us, figures.max_plain_us
    )?;
    writeln!(text, "| longest time a thread was held | {} µs |", figures.longest_hold_us)?;
    writeln!(text, "| an apply, median / max | {} / {} µs |", figures.apply_us_median, figures.apply_us_max)?;
    Ok(text)
}
