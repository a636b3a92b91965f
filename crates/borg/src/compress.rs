//! Borg's compressors: two header bytes, then the compressed data.
//!
//! `none` 00 00, raw lz4 block 01 00, xz 02 00, zstd frame 03 00; zlib has no header of its own and is known by
//! the zlib stream's first bytes; `obfuscate` 04 00 wraps one of the others: a 32-bit big-endian length, the inner
//! data with its header, random padding.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use crate::chunk::MAX_PLAIN_SIZE;
use crate::{Error, Result};

/// How new data is compressed. Whatever does not get smaller is stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// lz4: very fast.
    #[default]
    Lz4,
    /// zstd at a level of 1 to 22.
    Zstd(i32),
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let error = || Error::Setting {
            name: "compression",
            reason: format!("{text:?} is not none, lz4 or zstd[,1-22]"),
        };
        match text
            .split_once(',')
            .map_or((text, None), |(name, level)| (name, Some(level)))
        {
            ("none", None) => Ok(Self::None),
            ("lz4", None) => Ok(Self::Lz4),
            ("zstd", None) => Ok(Self::Zstd(3)),
            ("zstd", Some(level)) => level
                .parse()
                .ok()
                .filter(|level| (1..=22).contains(level))
                .map(Self::Zstd)
                .ok_or_else(error),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd,{level}"),
        }
    }
}

/// Content below this size is compressed without a look at it first.
const WORTH_A_LOOK: usize = 64 * 1024;

/// Appends header and compressed `data` to `out` if that is shorter; otherwise appends nothing, and says false.
pub(crate) fn compress_into(compression: Compression, data: &[u8], out: &mut Vec<u8>) -> bool {
    let compressed = match compression {
        Compression::None => None,
        _ if data.len() >= WORTH_A_LOOK && looks_random(data) => None,
        Compression::Lz4 => Some(([1, 0], lz4_flex::block::compress(data))),
        // Borg needs the content size in the frame; one-shot compression writes it.
        Compression::Zstd(level) => zstd::bulk::compress(data, level)
            .ok()
            .map(|bytes| ([3, 0], bytes)),
    };
    match compressed {
        Some((header, bytes)) if bytes.len() < data.len() => {
            out.extend_from_slice(&header);
            out.extend_from_slice(&bytes);
            true
        }
        _ => false,
    }
}

/// Whether content is ciphertext by the look of it, or compressed already: no compressor would make it smaller.
///
/// Counts the bytes of sixteen samples of 4 KiB. The chi-square statistic of random bytes, with 255 degrees of freedom, has
/// mean 255 and deviation 22.6; text, code and tables are in the thousands. The limit is six deviations up, so that one
/// ciphertext in 10^8 is compressed in vain.
pub(crate) fn looks_random(data: &[u8]) -> bool {
    const SAMPLES: usize = 16;
    const SAMPLE: usize = 4096;
    const LIMIT: u64 = 255 + 6 * 23;
    let mut counts = [[0u32; 256]; 4];
    for sample in 0..SAMPLES {
        let start = data.len().saturating_sub(SAMPLE) * sample / (SAMPLES - 1);
        let sample = data
            .get(start..data.len().min(start + SAMPLE))
            .unwrap_or_default();
        // Four tables: a byte need not wait for the count of the one before.
        for four in sample.as_chunks::<4>().0 {
            for (table, byte) in counts.iter_mut().zip(four) {
                if let Some(count) = table.get_mut(usize::from(*byte)) {
                    *count += 1;
                }
            }
        }
    }
    let total = |byte: usize| -> u64 {
        counts
            .iter()
            .filter_map(|table| table.get(byte))
            .map(|count| u64::from(*count))
            .sum()
    };
    let (n, squares) = (0..256).fold((0, 0), |(n, squares), byte| {
        let count = total(byte);
        (n + count, squares + count * count)
    });
    // sum((count - n/256)^2 / (n/256)) = sum(count^2) * 256 / n - n
    n > 0 && squares * 256 < (LIMIT + n) * n
}

/// Decompresses an object's payload of any Borg 1.x compressor into at most 20 MiB.
///
/// `expected` is the size to make room for; it is no limit. The error is a description.
pub fn decompress(payload: &[u8], expected: usize) -> std::result::Result<Vec<u8>, &'static str> {
    decompress_nested(payload, expected, true)
}

fn decompress_nested(
    payload: &[u8],
    expected: usize,
    nesting: bool,
) -> std::result::Result<Vec<u8>, &'static str> {
    let (header, data) = payload
        .split_first_chunk::<2>()
        .ok_or("it is too short for a compression header")?;
    match header {
        [0, 0] if data.len() <= MAX_PLAIN_SIZE => Ok(data.to_vec()),
        [0, 0] => Err(TOO_LARGE),
        [1, 0] => lz4(data, expected),
        [2, 0] => {
            // The decoder of the highest level needs 65 MiB.
            let stream =
                liblzma::stream::Stream::new_stream_decoder(128 << 20, 0).map_err(|_| "no lzma decoder")?;
            bounded(liblzma::read::XzDecoder::new_stream(data, stream), expected)
        }
        [3, 0] => bounded(
            zstd::stream::read::Decoder::with_buffer(data).map_err(|_| "invalid zstd data")?,
            expected,
        ),
        [4, 0] if nesting => {
            let (len, rest) = data
                .split_first_chunk::<4>()
                .ok_or("obfuscated data is too short")?;
            let inner = rest
                .get(..u32::from_be_bytes(*len) as usize)
                .ok_or("obfuscated data ends early")?;
            decompress_nested(inner, expected, false)
        }
        [first, second] if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31) => {
            bounded(flate2::read::ZlibDecoder::new(payload), expected)
        }
        _ => Err("unknown compression"),
    }
}

const TOO_LARGE: &str = "it decompresses to more than 20 MiB";

fn bounded(reader: impl Read, expected: usize) -> std::result::Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(expected.min(MAX_PLAIN_SIZE));
    reader
        .take(MAX_PLAIN_SIZE as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|_| "the compressed data is damaged")?;
    if out.len() > MAX_PLAIN_SIZE {
        Err(TOO_LARGE)
    } else {
        Ok(out)
    }
}

/// A raw block does not know its size, so the output grows until it fits.
fn lz4(data: &[u8], expected: usize) -> std::result::Result<Vec<u8>, &'static str> {
    // No lz4 block expands by more than a factor of 255.
    let most = data.len().saturating_mul(255).clamp(1, MAX_PLAIN_SIZE);
    let mut room = if expected > 0 {
        expected
    } else {
        data.len().saturating_mul(4).max(4096)
    }
    .min(most);
    loop {
        let mut out = vec![0; room];
        match lz4_flex::block::decompress_into(data, &mut out) {
            Ok(len) => {
                out.truncate(len);
                return Ok(out);
            }
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room < most => {
                room = room.saturating_mul(4).min(most);
            }
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if most == MAX_PLAIN_SIZE => {
                return Err(TOO_LARGE);
            }
            Err(_) => return Err("the compressed data is damaged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(compression: Compression, data: &[u8]) {
        let mut out = Vec::new();
        if !compress_into(compression, data, &mut out) {
            assert!(out.is_empty());
            out = [&[0, 0], data].concat();
        }
        assert!(out.len() <= data.len() + 2);
        assert_eq!(decompress(&out, 0).unwrap(), data);
        assert_eq!(decompress(&out, data.len()).unwrap(), data);
    }

    #[test]
    fn names() {
        for text in ["none", "lz4", "zstd,3", "zstd,22"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        for text in ["", "zstd,0", "zstd,23", "lz4,1", "auto,zstd"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; MAX_PLAIN_SIZE + 1];
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            let mut out = Vec::new();
            compress_into(compression, &zeros, &mut out);
            assert_eq!(decompress(&out, 0), Err(TOO_LARGE));
        }
    }

    #[test]
    fn ciphertext_is_known_by_its_looks() {
        use sha2::{Digest as _, Sha256};
        // A stream that is as good as random, and the same each time.
        let random: Vec<u8> = (0u32..32 * 1024)
            .flat_map(|n| Sha256::digest(n.to_le_bytes()))
            .collect();
        for start in (0..random.len() - (64 << 10)).step_by(9973) {
            assert!(looks_random(&random[start..start + (64 << 10)]), "{start}");
        }
        assert!(looks_random(&random));
        let hex: Vec<u8> = random
            .iter()
            .map(|byte| b"0123456789abcdef"[usize::from(byte & 15)])
            .collect();
        let mut mixed = random.clone();
        mixed[400_000..600_000].fill(b' ');
        for other in [hex, mixed, vec![0; 1 << 20], Vec::new()] {
            assert!(!looks_random(&other));
        }
    }

    #[test]
    fn obfuscation_nests_once() {
        let inner = [0, 0, b'x'];
        let wrap = |inner: &[u8]| [&[4, 0][..], &(inner.len() as u32).to_be_bytes(), inner, &[0; 7]].concat();
        assert_eq!(decompress(&wrap(&inner), 0).unwrap(), b"x");
        assert!(decompress(&wrap(&wrap(&inner)), 0).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(data in prop::collection::vec(0u8..4, 0..5000), noise in prop::collection::vec(any::<u8>(), 0..500)) {
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
                round_trip(compression, &data);
                round_trip(compression, &noise);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u8..6, bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decompress(&bytes, 0);
            let _ = decompress(&[&[kind, 0][..], &bytes].concat(), 100);
            let _ = decompress(&[&[0x78, 0x9c][..], &bytes].concat(), 100);
        }
    }
}
