//! Bytes that can be told from any others: made from a seed, incompressible, and the same on every machine, so that
//! a sender and a checker need not share more than the seed.

use std::hash::Hasher;
use std::io::{self, Read};

use xxhash_rust::xxh3::Xxh3Default;

/// The SplitMix64 step of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills a buffer with the bytes of a seed from an offset on.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let bytes = word(seed, at / 8).to_le_bytes();
        let skip = (at % 8) as usize;
        let take = (8 - skip).min(rest.len());
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&bytes[skip..skip + take]);
        at += take as u64;
        rest = later;
    }
}

/// The hash of the first `length` bytes of a seed.
pub fn hash(seed: u64, length: u64) -> u64 {
    match hash_stream(&mut Reader { seed, at: 0, end: length }) {
        Ok((hash, _)) => hash,
        Err(_) => unreachable!("a pattern's reader does not fail"),
    }
}

/// Reads to the end; the hash of what was read and its length.
pub fn hash_stream(stream: &mut impl Read) -> io::Result<(u64, u64)> {
    let mut hasher = Xxh3Default::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), length)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The bytes of a seed as a stream.
#[derive(Clone, Debug)]
pub struct Reader {
    seed: u64,
    at: u64,
    end: u64,
}

impl Reader {
    pub fn new(seed: u64, length: u64) -> Reader {
        Reader { seed, at: 0, end: length }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let take = (self.end - self.at).min(buffer.len() as u64) as usize;
        fill(self.seed, self.at, &mut buffer[..take]);
        self.at += take as u64;
        Ok(take)
    }
}

/// A small generator for choices that need not be secret, only varied and repeatable.
#[derive(Clone, Debug)]
pub struct Choices {
    seed: u64,
    drawn: u64,
}

impl Choices {
    pub fn new(seed: u64) -> Choices {
        Choices { seed, drawn: 0 }
    }

    /// A number below `bound`, which is not 0. (Its bias is that of a modulo, and of no account here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        word(self.seed, self.drawn) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_is_the_same_as_that_piece_of_the_whole() {
        let mut whole = vec![0; 100];
        fill(7, 0, &mut whole);
        for (from, to) in [(0, 100), (3, 4), (8, 16), (5, 77)] {
            let mut piece = vec![0; to - from];
            fill(7, from as u64, &mut piece);
            assert_eq!(piece, whole[from..to]);
        }
    }

    #[test]
    fn seeds_and_lengths_differ_in_their_hashes() {
        assert_eq!(hash(1, 1000), hash(1, 1000));
        assert_ne!(hash(1, 1000), hash(2, 1000));
        assert_ne!(hash(1, 1000), hash(1, 999));
    }
}
