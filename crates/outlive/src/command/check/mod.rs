//! `outlive check`: is this host fit? Every line says what it is for, and if it is missing how to get it. What can be
//! tried is tried, by the very functions that workloads run on, each in a process of its own ([`probe`]).

mod host;
mod network;
pub mod probe;
mod program;
mod sys;
mod uses;

use std::path::Path;
use std::process::ExitCode;

use outlive_net::Uplink;
use serde::Serialize;

use super::{print, print_json, table};
use crate::cli::Check;
use crate::config::{Config, DEFAULT_FILE};
use crate::error::Result;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works without, and the line says what is worse for it.
    Note,
    /// Workloads cannot be protected without.
    Missing,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    pub name: String,
    pub verdict: Verdict,
    /// What it is for.
    pub purpose: String,
    pub found: String,
    /// How to get it; empty if it is there.
    pub advice: String,
}

impl Line {
    fn new(name: &str, purpose: &str, verdict: Verdict, found: impl Into<String>, advice: &str) -> Self {
        // A table has one line for each.
        let found = found.into().split_whitespace().collect::<Vec<_>>().join(" ");
        let advice = if verdict == Verdict::Ok { String::new() } else { advice.to_owned() };
        Self { name: name.to_owned(), verdict, purpose: purpose.to_owned(), found, advice }
    }

    /// `Missing` unless it is there.
    fn needed(name: &str, purpose: &str, tried: Result<String, String>, advice: &str) -> Self {
        match tried {
            Ok(found) => Self::new(name, purpose, Verdict::Ok, found, ""),
            Err(why) => Self::new(name, purpose, Verdict::Missing, why, advice),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    fit: bool,
    lines: Vec<Line>,
}

pub fn run(args: Check) -> Result<ExitCode> {
    if let Some(pid) = args.pid {
        return program::inspect(pid, &args);
    }
    if args.program {
        return program::run(args);
    }
    // A configuration that is named must be right; the usual one need not be there yet.
    let config = match &args.config {
        Some(path) => Some(Config::load(path)?),
        None if Path::new(DEFAULT_FILE).exists() => Some(Config::load(Path::new(DEFAULT_FILE))?),
        None => None,
    };
    let named = args.bridge.clone().map(Uplink::Bridge).or_else(|| args.macvtap.clone().map(Uplink::Macvtap));
    let uplink = named.or_else(|| config.as_ref().map(|config| config.uplink.clone()));
    let mut lines = vec![host::kernel_version(), host::processor()];
    lines.extend(probe::trials());
    lines.extend(host::capabilities());
    lines.extend([
        host::syn_cookies(),
        host::realtime_share(),
        host::descriptors(),
        host::memory(),
        host::clock(),
    ]);
    lines.push(host::uplink(uplink.as_ref()));
    let peers = config.as_ref().map_or(&[][..], |config| &config.peers);
    lines.extend(uplink.iter().flat_map(|uplink| network::lines(uplink, peers)));
    if let Some(config) = &config {
        lines.push(host::certificate(config));
        lines.push(host::state_directory(config));
    }
    let fit = lines.iter().all(|line| line.verdict != Verdict::Missing);
    if args.json {
        print_json(&Report { fit, lines })?;
    } else {
        print(&render(&lines, fit));
    }
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(lines: &[Line], fit: bool) -> String {
    let cells = |line: &Line| {
        let verdict = match line.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Missing => "MISSING",
        };
        let found = match line.advice.as_str() {
            "" => line.found.clone(),
            advice => format!("{}; {advice}", line.found),
        };
        vec![line.name.clone(), verdict.to_owned(), line.purpose.clone(), found]
    };
    let rows: Vec<_> = lines.iter().map(cells).collect();
    let table = table::render(&["CHECK", "RESULT", "WHAT FOR", "FOUND"], &rows);
    let missing = lines.iter().filter(|line| line.verdict == Verdict::Missing).count();
    let verdict = match fit {
        true => "this host is fit".to_owned(),
        false => format!("this host is not fit: {missing} missing, see the lines above"),
    };
    format!("{table}\n\n{verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_for_what_is_not_there() {
        let there = Line::needed("a", "b", Ok("found\nit".to_owned()), "get it");
        assert_eq!((there.found.as_str(), there.advice.as_str()), ("found it", ""));
        let missing = Line::needed("a", "b", Err("not here".to_owned()), "get it");
        assert!(render(&[missing], false).contains("not here; get it"));
    }
}
