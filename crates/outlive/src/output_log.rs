//! The log of a workload's output, as its supervisor writes it: `output.log`, and `output.log.1` with what is older.
//!
//! A record is a byte for the stream (1 standard output, 2 standard error), the length as a 32-bit and the time in
//! milliseconds since 1970 as a 64-bit little-endian number, and the bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const HEADER: usize = 13;
/// The longest record a reader takes: the supervisor reads a pipe, whose capacity is at most 1 MiB
/// (/proc/sys/fs/pipe-max-size, pipe(7)).
const RECORD_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Output,
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub stream: Stream,
    pub unix_ms: u64,
    pub bytes: Vec<u8>,
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        let stream = match self.stream {
            Stream::Output => 1,
            Stream::Error => 2,
        };
        let mut record = vec![stream];
        // A record holds at most RECORD_MAX bytes.
        record.extend((self.bytes.len() as u32).to_le_bytes());
        record.extend(self.unix_ms.to_le_bytes());
        record.extend(&self.bytes);
        record
    }
}

/// Takes bytes as they come and gives whole records.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// None until more bytes are there.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        let Some((header, rest)) = self.pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [stream, l0, l1, l2, l3, time @ ..] = *header;
        let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let stream = match stream {
            1 => Stream::Output,
            2 => Stream::Error,
            other => {
                return Err(damaged(format!("the log of output is damaged: a record of stream {other}")));
            }
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > RECORD_MAX {
            return Err(damaged(format!("the log of output is damaged: a record of {length} bytes")));
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        let record = Record { stream, unix_ms: u64::from_le_bytes(time), bytes: bytes.to_vec() };
        self.pending.drain(..HEADER + length);
        Ok(Some(record))
    }
}

/// Reads both files of a log in order, and goes over to the next file when the supervisor begins one.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    decoder: Decoder,
}

impl Tail {
    /// From the oldest record on; a log that does not exist yet is empty.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("output.log");
        let older = open(&path.with_extension("log.1"))?;
        let file = match older {
            Some(older) => Some(older),
            None => open(&path)?,
        };
        Ok(Self { path, file, decoder: Decoder::default() })
    }

    /// The next record; none if the end of what was written so far is reached. May be asked again then.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.decoder.next()? {
                return Ok(Some(record));
            }
            if self.fill()? == 0 && !self.go_on()? {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let got = match &mut self.file {
            Some(file) => file.read(&mut buffer)?,
            None => 0,
        };
        self.decoder.push(&buffer[..got]);
        Ok(got)
    }

    /// If `output.log` is another file than the one read to its end: opens that.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some(newest) = open(&self.path)? else { return Ok(false) };
        if let Some(file) = &mut self.file {
            let (read, newest) = (file.metadata()?, newest.metadata()?);
            if (read.dev(), read.ino()) == (newest.dev(), newest.ino()) {
                return Ok(false);
            }
        }
        // What was written between reading the end and the supervisor's rename is still in the old file.
        if self.file.is_some() && self.fill()? > 0 {
            return Ok(true);
        }
        // A record cut short by the death of its writer ends with its file.
        self.decoder = Decoder::default();
        self.file = Some(newest);
        Ok(true)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn record(text: &str) -> Record {
        Record { stream: Stream::Output, unix_ms: 1_700_000_000_000, bytes: text.as_bytes().to_vec() }
    }

    fn append(path: &Path, bytes: &[u8]) {
        fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(bytes).unwrap();
    }

    fn texts(tail: &mut Tail) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(record) = tail.next().unwrap() {
            texts.push(String::from_utf8(record.bytes).unwrap());
        }
        texts
    }

    #[test]
    fn records_come_back_whole_however_they_are_cut() {
        let records = [record("one"), Record { stream: Stream::Error, ..record("") }, record("three")];
        let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            got.extend(decoder.next().unwrap());
        }
        assert_eq!(got, records);
    }

    #[test]
    fn damage_is_not_printed() {
        let mut decoder = Decoder::default();
        decoder.push(&[9; HEADER]);
        assert!(decoder.next().is_err());
        let mut long = record("x").encode();
        long[4] = 0xff;
        let mut decoder = Decoder::default();
        decoder.push(&long);
        assert!(decoder.next().is_err());
    }

    #[test]
    fn a_log_is_read_from_its_older_file_on_and_across_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let (newer, older) = (directory.path().join("output.log"), directory.path().join("output.log.1"));
        append(&older, &record("1").encode());
        append(&newer, &record("2").encode());
        let mut tail = Tail::open(directory.path()).unwrap();
        assert_eq!(texts(&mut tail), ["1", "2"]);

        let late = record("3").encode();
        append(&newer, &late[..5]);
        assert_eq!(texts(&mut tail), [""; 0]);
        append(&newer, &late[5..]);
        fs::rename(&newer, &older).unwrap();
        append(&newer, &record("4").encode());
        assert_eq!(texts(&mut tail), ["3", "4"]);
    }

    #[test]
    fn a_log_that_does_not_exist_yet_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut tail = Tail::open(directory.path()).unwrap();
        assert_eq!(tail.next().unwrap(), None);
        append(&directory.path().join("output.log"), &record("first").encode());
        assert_eq!(texts(&mut tail), ["first"]);
    }

    /// A new run of a workload begins a new file while its last one ended in half a record.
    #[test]
    fn half_a_record_ends_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output.log");
        append(&path, &record("cut").encode()[..6]);
        let mut tail = Tail::open(directory.path()).unwrap();
        assert_eq!(tail.next().unwrap(), None);
        fs::remove_file(&path).unwrap();
        append(&path, &record("new").encode());
        assert_eq!(texts(&mut tail), ["new"]);
    }
}
