//! Chunk ids and references to stored chunks.

use std::fmt;

/// Largest object a repository takes: 20 MiB less the segment entry's 41 bytes.
pub(crate) const MAX_OBJECT_SIZE: usize = 20 * 1024 * 1024 - 41;

/// Largest piece of data that surely fits into an object: its envelope takes up to 41 bytes, the compression header two.
pub const MAX_DATA_SIZE: usize = MAX_OBJECT_SIZE - 43;

/// Largest size a decompressed object may have.
pub(crate) const MAX_PLAIN_SIZE: usize = 20 * 1024 * 1024;

/// The id of an object: a keyed hash over its plain content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The manifest's id.
    pub const MANIFEST: Self = Self([0; 32]);

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One entry of an item's chunk list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Id of the chunk.
    pub id: ChunkId,
    /// Bytes of content.
    pub size: u32,
    /// Bytes of the stored object; Borg uses it for statistics only.
    pub csize: u32,
}
