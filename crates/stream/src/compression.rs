//! Making a chunk smaller where that takes less time than sending it.

use std::ops::Range;

use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, get_maximum_output_size,
};

use crate::portions::total;

/// Whether chunks of an epoch are compressed. The receiver need not be told: each chunk says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    /// Where a sample says that it pays. For links slower than LZ4, which does some hundred MB/s on a core.
    Lz4,
}

/// Chunks below this are sent as they are: 16 KiB are one TLS record, and take 13 µs at 10 Gb/s.
const LENGTH_MIN: usize = 16 * 1024;

/// Compressing must save an eighth, or the receiver's work is for nothing.
const fn worthwhile(length: usize) -> usize {
    length - length / 8
}

/// Two samples of half a page each: small beside [`LENGTH_MIN`], and enough to tell text, zeroes and pointers
/// from what is compressed, encrypted or random already.
const SAMPLE_LENGTH: usize = 2 * 1024;

/// Compresses chunks; keeps its memory (about two chunks) between them.
pub(crate) struct Compressor {
    table: CompressTable,
    gathered: Vec<u8>,
    output: Vec<u8>,
}

impl Compressor {
    pub fn new() -> Self {
        Self { table: CompressTable::default(), gathered: Vec::new(), output: Vec::new() }
    }

    /// The chunk compressed, or `None` if it shall be sent as it is.
    pub fn compress(&mut self, chunk: &[&[u8]]) -> Option<&[u8]> {
        let length = total(chunk);
        if length < LENGTH_MIN {
            return None;
        }
        let chunk = match chunk {
            [whole] => whole,
            parts => {
                self.gathered.clear();
                parts.iter().for_each(|part| self.gathered.extend_from_slice(part));
                &self.gathered[..]
            }
        };
        let needed = get_maximum_output_size(length);
        if self.output.len() < needed {
            self.output.resize(needed, 0);
        }
        let [first, second] = samples(length);
        for sample in [&chunk[first], &chunk[second]] {
            let compressed = compress_into_with_table(sample, &mut self.output, &mut self.table).ok()?;
            if compressed <= worthwhile(SAMPLE_LENGTH) {
                let compressed = compress_into_with_table(chunk, &mut self.output, &mut self.table).ok()?;
                return (compressed <= worthwhile(length)).then(|| &self.output[..compressed]);
            }
        }
        None
    }
}

/// Where to look: a quarter and three quarters in, since ends are often unlike the rest.
fn samples(length: usize) -> [Range<usize>; 2] {
    [length / 4, length / 4 * 3].map(|start| start..start + SAMPLE_LENGTH)
}

/// Decompress to exactly `into.len()` bytes; `false` if that is not what `compressed` holds.
pub(crate) fn decompress(compressed: &[u8], into: &mut [u8]) -> bool {
    let outcome: Result<usize, DecompressError> = decompress_into(compressed, into);
    outcome.is_ok_and(|length| length == into.len())
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What does not compress: a xorshift generator's output (Marsaglia 2003).
    pub fn noise(length: usize) -> Vec<u8> {
        let mut state = 88172645463325252u64;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    }

    fn round_trip(chunk: &[&[u8]]) -> Option<usize> {
        let mut compressor = Compressor::new();
        let compressed = compressor.compress(chunk)?;
        let mut back = vec![0; total(chunk)];
        assert!(decompress(compressed, &mut back));
        assert_eq!(back, chunk.concat());
        Some(compressed.len())
    }

    #[test]
    fn what_repeats_is_compressed_and_comes_back() {
        let text = b"a page of a heap is mostly pointers and zeroes. ".repeat(2000);
        assert!(round_trip(&[&text]).unwrap() < text.len() / 10);
        let (head, tail) = text.split_at(12345);
        assert_eq!(round_trip(&[head, b"", tail]), round_trip(&[&text]));
    }

    #[test]
    fn noise_and_short_chunks_are_left_alone() {
        assert_eq!(round_trip(&[&noise(256 * 1024)]), None);
        assert_eq!(round_trip(&[&[0; LENGTH_MIN - 1]]), None);
        assert!(round_trip(&[&[0; LENGTH_MIN]]).is_some());
    }

    #[test]
    fn a_sample_that_misleads_does_not_make_a_chunk_longer() {
        let mut chunk = noise(256 * 1024);
        let [first, _] = samples(chunk.len());
        chunk[first].fill(0);
        assert_eq!(round_trip(&[&chunk]), None);
    }

    #[test]
    fn one_compressible_sample_suffices_for_a_try() {
        let mut chunk = noise(256 * 1024);
        chunk[100 * 1024..].fill(0);
        assert!(round_trip(&[&chunk]).is_some());
    }

    #[test]
    fn another_length_than_the_announced_is_refused() {
        let mut compressor = Compressor::new();
        let compressed = compressor.compress(&[&[7; 20_000]]).unwrap().to_vec();
        for length in [0, 1, 19_999, 20_001, 100_000] {
            assert!(!decompress(&compressed, &mut vec![0; length]), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decompress_or_not_without_a_panic(
            bytes in vec(any::<u8>(), 0..2000), length in 0usize..10_000,
        ) {
            decompress(&bytes, &mut vec![0; length]);
        }

        #[test]
        fn any_chunk_comes_back(word in vec(any::<u8>(), 1..9000), times in 1usize..40) {
            let chunk = word.repeat(times);
            if let Some(length) = round_trip(&[&chunk]) {
                prop_assert!(length < chunk.len());
            }
        }
    }
}
