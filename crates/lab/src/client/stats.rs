//! What clients have seen: counts, latencies, and when each connection was answered.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Of so many of the latest replies the time is kept (16 bytes each): minutes at thousands a second. Longer
/// outages than that are not measured, they are the end of the run.
const REPLIES_KEPT: usize = 1 << 21;
/// The first findings are kept in words; all are counted.
const FINDINGS_KEPT: usize = 100;

/// The statistics of one client with any number of connections, to be read while it runs.
#[derive(Debug)]
pub struct Stats {
    started: Instant,
    connections: usize,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    counts: Counts,
    latency: Histogram,
    replies: VecDeque<Answer>,
    findings: Vec<String>,
}

/// One request that was answered.
#[derive(Clone, Copy, Debug)]
struct Answer {
    at_us: u64,
    connection: u32,
    latency_us: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    acked_writes: u64,
    lost: u64,
    wrong: u64,
    dropped: u64,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub connections: usize,
    pub connections_dropped: u64,
    pub requests: u64,
    pub acked_writes: u64,
    pub acked_writes_lost: u64,
    pub wrong_replies: u64,
    pub latency_us: Summary,
    /// The first of what went wrong, in words.
    pub findings: Vec<String>,
}

impl Report {
    /// Nothing was dropped, lost or wrong, and something was asked at all.
    pub fn is_clean(&self) -> bool {
        self.requests > 0
            && self.connections_dropped == 0
            && self.acked_writes_lost == 0
            && self.wrong_replies == 0
    }
}

/// Percentiles, in the unit of what they summarise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Summary {
    /// Of exact values, by the nearest-rank method; all zero of none.
    pub fn of(mut values: Vec<u64>) -> Summary {
        values.sort_unstable();
        let rank = |percent: usize| match values.len() {
            0 => 0,
            count => values[(count * percent).div_ceil(100).max(1) - 1],
        };
        Summary { p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

impl Stats {
    pub fn new(connections: usize) -> Stats {
        Stats { started: Instant::now(), connections, seen: Mutex::default() }
    }

    pub fn connections(&self) -> usize {
        self.connections
    }

    /// The longest time that each connection went without a reply, of the gaps that end after `from` and, as far as
    /// they have not ended, up to now. A connection is paced, so that a gap includes the wait before a request.
    pub fn stalls_since(&self, from: Instant) -> Vec<Duration> {
        let now = self.micros(Instant::now());
        let from = self.micros(from);
        let seen = self.seen();
        let mut last: Vec<Option<u64>> = vec![None; self.connections];
        let mut longest = vec![0_u64; self.connections];
        for answer in &seen.replies {
            let connection = answer.connection as usize;
            if answer.at_us > from {
                let before = last[connection].unwrap_or(from);
                longest[connection] = longest[connection].max(answer.at_us - before);
            }
            last[connection] = Some(answer.at_us);
        }
        for (longest, last) in longest.iter_mut().zip(last) {
            *longest = (*longest).max(now - last.unwrap_or(from));
        }
        longest.into_iter().map(Duration::from_micros).collect()
    }

    /// How many connections have had a reply since an instant.
    pub fn answered_since(&self, from: Instant) -> usize {
        let from = self.micros(from);
        let mut answered = vec![false; self.connections];
        for answer in self.seen().replies.iter().rev().take_while(|answer| answer.at_us > from) {
            answered[answer.connection as usize] = true;
        }
        answered.into_iter().filter(|answered| *answered).count()
    }

    /// The latencies of the replies since an instant, in microseconds.
    pub fn latency_since(&self, from: Instant) -> Summary {
        let from = self.micros(from);
        let seen = self.seen();
        let recent = seen.replies.iter().rev().take_while(|answer| answer.at_us > from);
        Summary::of(recent.map(|answer| u64::from(answer.latency_us)).collect())
    }

    pub fn report(&self) -> Report {
        let seen = self.seen();
        Report {
            connections: self.connections,
            connections_dropped: seen.counts.dropped,
            requests: seen.counts.requests,
            acked_writes: seen.counts.acked_writes,
            acked_writes_lost: seen.counts.lost,
            wrong_replies: seen.counts.wrong,
            latency_us: seen.latency.summary(),
            findings: seen.findings.clone(),
        }
    }

    pub(crate) fn answered(&self, connection: usize, asked: Instant, acked_writes: u64) {
        let now = Instant::now();
        let latency = u64::try_from((now - asked).as_micros()).unwrap_or(u64::MAX);
        let answer = Answer {
            at_us: self.micros(now),
            connection: connection as u32,
            latency_us: u32::try_from(latency).unwrap_or(u32::MAX),
        };
        let mut seen = self.seen();
        seen.counts.requests += 1;
        seen.counts.acked_writes += acked_writes;
        seen.latency.record(latency);
        if seen.replies.len() == REPLIES_KEPT {
            seen.replies.pop_front();
        }
        seen.replies.push_back(answer);
    }

    pub(crate) fn acked(&self, writes: u64) {
        self.seen().counts.acked_writes += writes;
    }

    pub(crate) fn lost(&self, writes: u64, finding: String) {
        let mut seen = self.seen();
        seen.counts.lost += writes;
        seen.find(finding);
    }

    pub(crate) fn wrong(&self, finding: String) {
        let mut seen = self.seen();
        seen.counts.wrong += 1;
        seen.find(finding);
    }

    pub(crate) fn dropped(&self, finding: String) {
        let mut seen = self.seen();
        seen.counts.dropped += 1;
        seen.find(finding);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Seen {
    fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_KEPT {
            self.findings.push(finding);
        }
    }
}

/// Counts in buckets whose width is at most a 32nd of their value, so that a percentile is at most 3 % too high,
/// whatever the number of values.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

const SUB_BITS: u32 = 5;

fn bucket_of(value: u64) -> usize {
    let magnitude = value.max(1).ilog2();
    if magnitude <= SUB_BITS {
        return value as usize;
    }
    let shift = magnitude - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (value >> shift) as usize
}

/// The highest value of a bucket.
fn bucket_top(bucket: usize) -> u64 {
    let group = (bucket >> SUB_BITS) as u32;
    if group <= 1 {
        return bucket as u64;
    }
    let shift = group - 1;
    let low = (bucket - ((shift as usize) << SUB_BITS)) as u64;
    (low << shift) + ((1 << shift) - 1)
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        let bucket = bucket_of(value);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = ((self.count as f64) * percent / 100.0).ceil().max(1.0) as u64;
        let mut counted = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            counted += count;
            if counted >= rank {
                return bucket_top(bucket).min(self.max);
            }
        }
        self.max
    }

    pub fn summary(&self) -> Summary {
        Summary { p50: self.percentile(50.0), p99: self.percentile(99.0), max: self.max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_within_three_percent() {
        for value in (0..100_000).chain([1 << 40, (1 << 40) + 12345, u64::MAX / 2]) {
            let top = bucket_top(bucket_of(value));
            assert!(
                top >= value && (top - value) as f64 <= value as f64 / 32.0,
                "{value} in a bucket to {top}"
            );
        }
    }

    #[test]
    fn percentiles_of_both_kinds_agree() {
        let values: Vec<u64> = (1..=1000).collect();
        let exact = Summary::of(values.clone());
        assert_eq!(exact, Summary { p50: 500, p99: 990, max: 1000 });
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.record(value));
        let near = histogram.summary();
        assert!((500..=516).contains(&near.p50) && (990..=1000).contains(&near.p99) && near.max == 1000);
        assert_eq!(Summary::of(Vec::new()), Summary::default());
        assert_eq!(Histogram::default().summary(), Summary::default());
    }

    #[test]
    fn a_stall_is_the_longest_gap_of_a_connection_since_an_instant() {
        let stats = Stats::new(3);
        let pause = Duration::from_millis(30);
        for connection in [0, 1] {
            stats.answered(connection, Instant::now(), 0);
        }
        let from = Instant::now();
        std::thread::sleep(pause);
        stats.answered(0, Instant::now(), 0);
        let middle = Instant::now();
        let stalls = stats.stalls_since(from);
        assert!(stalls.iter().all(|stall| *stall >= pause), "{stalls:?}");
        assert_eq!(stats.answered_since(from), 1);
        // The gap of connection 0 ended before, that of 1 has not ended, and 2 has never been answered.
        let stalls = stats.stalls_since(middle);
        assert!(stalls[1] >= pause && stalls[0] < stalls[1], "{stalls:?}");
    }
}
