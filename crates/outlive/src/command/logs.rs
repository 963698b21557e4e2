//! `outlive logs`: a workload's standard output to standard output, its standard error to standard error.

use std::io::{self, Read, Write};

use super::progress;
use crate::cli::Logs;
use crate::control::{Reply, Request, unexpected};
use crate::error::{Failure, Result};
use crate::output_log::{Decoder, Record, Stream};

pub fn run(args: &Logs) -> Result<()> {
    let mut client = args.reach.connect()?;
    let request = Request::Logs { name: args.name.clone(), follow: args.follow };
    match client.call(&request, &mut progress)? {
        Reply::Output => {}
        other => return Err(unexpected(&other)),
    }
    let broken =
        |error: io::Error| Failure::failed(format!("the output of {} cannot be read on: {error}", args.name));
    let mut from = client.into_output().map_err(broken)?;
    let mut printer = Printer { timestamps: args.timestamps, at_line_start: [true; 2] };
    let mut decoder = Decoder::default();
    let mut buffer = [0; 16 * 1024];
    loop {
        let got = from.read(&mut buffer).map_err(broken)?;
        if got == 0 {
            return Ok(());
        }
        decoder.push(&buffer[..got]);
        while let Some(record) = decoder.next().map_err(broken)? {
            if printer.print(&record).is_err() {
                // Whoever read us, `head` for one, has enough.
                return Ok(());
            }
        }
    }
}

struct Printer {
    timestamps: bool,
    /// Of standard output and of standard error.
    at_line_start: [bool; 2],
}

impl Printer {
    fn print(&mut self, record: &Record) -> io::Result<()> {
        let (mut output, mut error);
        let (to, at_line_start): (&mut dyn Write, _) = match record.stream {
            Stream::Output => {
                output = io::stdout().lock();
                (&mut output, &mut self.at_line_start[0])
            }
            Stream::Error => {
                error = io::stderr().lock();
                (&mut error, &mut self.at_line_start[1])
            }
        };
        if self.timestamps {
            to.write_all(&stamp_lines(record, at_line_start))?;
        } else {
            to.write_all(&record.bytes)?;
        }
        to.flush()
    }
}

/// The time before each line that begins in this record; a line may come in several.
fn stamp_lines(record: &Record, at_line_start: &mut bool) -> Vec<u8> {
    let stamp = utc(record.unix_ms);
    let mut stamped = Vec::with_capacity(record.bytes.len() + stamp.len() + 1);
    for line in record.bytes.split_inclusive(|byte| *byte == b'\n') {
        if *at_line_start {
            stamped.extend(stamp.bytes());
            stamped.push(b' ');
        }
        stamped.extend(line);
        *at_line_start = line.last() == Some(&b'\n');
    }
    stamped
}

/// RFC 3339, to the millisecond. The date from days since 1970, by eras of 400 years that begin on the first of March
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(1_709_164_799_999), "2024-02-28T23:59:59.999Z");
        assert_eq!(utc(1_709_164_800_000), "2024-02-29T00:00:00.000Z");
        assert_eq!(utc(1_735_689_600_001), "2025-01-01T00:00:00.001Z");
    }

    #[test]
    fn a_line_in_two_records_has_one_time() {
        let record =
            |text: &str| Record { stream: Stream::Output, unix_ms: 0, bytes: text.as_bytes().to_vec() };
        let mut at_line_start = true;
        let mut text = stamp_lines(&record("one\ntw"), &mut at_line_start);
        text.extend(stamp_lines(&record("o\n"), &mut at_line_start));
        let zero = utc(0);
        assert_eq!(String::from_utf8(text).unwrap(), format!("{zero} one\n{zero} two\n"));
    }
}
