//! Digests that end up in the manifest: over files' bytes, and over a disk's ordered list of chunks. And the test
//! for bytes that need none.

use sha2::{Digest as _, Sha256};

use crate::store::ChunkRef;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The digest of a disk: SHA-256 over its chunks in order, each as its 32-byte id and its length as a
/// little-endian 64-bit number.
///
/// A chunk's id is a keyed hash over its plaintext, so this covers every byte of the disk without reading any.
pub fn of_chunks<'a>(chunks: impl IntoIterator<Item = &'a ChunkRef>) -> String {
    let mut hash = Sha256::new();
    for chunk in chunks {
        hash.update(chunk.id.0);
        hash.update(u64::from(chunk.size).to_le_bytes());
    }
    hex(&hash.finalize())
}

/// Whether all bytes are zero. A word at a time, which the compiler turns into vector instructions.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ChunkId;

    /// FIPS 180-2's examples.
    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(of_chunks([]), sha256(b""));
    }

    /// Each chunk's id and length count, and their order.
    #[test]
    fn a_disk_has_another_digest_when_a_chunk_differs() {
        let chunk = |byte, size| ChunkRef {
            id: ChunkId([byte; 32]),
            size,
            stored: 0,
        };
        let of = |chunks: &[ChunkRef]| of_chunks(chunks);
        let (one, two) = (chunk(1, 4096), chunk(2, 4096));
        let mut bytes = [[1; 32], [2; 32]].map(|id| id.to_vec());
        for part in &mut bytes {
            part.extend(4096u64.to_le_bytes());
        }
        let good = of(&[one, two]);
        assert_eq!(good, sha256(&bytes.concat()));
        for other in [&[two, one][..], &[one], &[one, two, two], &[chunk(1, 4097), two]] {
            assert_ne!(of(other), good);
        }
        let stored = ChunkRef { stored: 9, ..one };
        assert_eq!(of(&[stored, two]), good, "how it is stored does not count");
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for length in [0, 1, 63, 64, 65, 200] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes), "{length}");
            for at in 0..length {
                bytes[at] = 0x10;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
        // Bits that would cancel each other out.
        let mut twice = [0; 64];
        (twice[0], twice[1]) = (1, 1);
        assert!(!is_zero(&twice));
    }
}
