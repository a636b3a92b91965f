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
