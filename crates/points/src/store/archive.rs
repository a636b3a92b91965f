//! Archives and the files in them.

use std::fmt;

use jiff::Timestamp;

use super::borg::Compression;
use super::chunk::{ChunkId, ChunkRef};
use super::name::Name;

/// A repository's id, which never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(pub [u8; 32]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ChunkId(self.0).fmt(f)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An archive as a repository lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// Its name.
    pub name: Name,
    /// The id of its own object, which is a digest with the repository's key over all that is in it.
    pub id: ChunkId,
    /// Its time.
    pub time: Timestamp,
}

/// What an archive says of itself.
#[derive(Clone, Debug)]
pub struct Archive {
    /// How the repository lists it.
    pub info: ArchiveInfo,
    /// Its time, in its own object.
    pub time: Timestamp,
    /// Its own object is authenticated.
    pub authenticated: bool,
    /// The pieces in which its items are stored.
    pub item_ids: Vec<ChunkId>,
}

/// What a new archive says of itself.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// Its name, new in the repository.
    pub name: String,
    /// When it was begun.
    pub started: Timestamp,
    /// How new chunks are compressed.
    pub compression: Compression,
}

impl ArchiveOptions {
    /// An archive of this name, begun now.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            started: Timestamp::now(),
            compression: Compression::default(),
        }
    }
}

/// A file in an archive.
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its path.
    pub path: Name,
    /// Its chunks in order, if it is a file.
    pub chunks: Option<Vec<ChunkRef>>,
    /// It is a regular file.
    pub file: bool,
    /// It is a piece of a file that was left at a checkpoint.
    pub part: bool,
    /// A repair has put zeroes in place of lost chunks.
    pub repaired: bool,
    /// It is a whole file, as it was written.
    pub intact: bool,
}

impl Item {
    /// A regular file.
    pub fn regular(path: &str, chunks: Vec<ChunkRef>) -> Self {
        Self {
            path: path.into(),
            chunks: Some(chunks),
            file: true,
            part: false,
            repaired: false,
            intact: true,
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file
    }

    /// Whether it is only a piece of a file.
    pub fn is_part(&self) -> bool {
        self.part
    }

    /// Whether it is a whole file, as it was written.
    pub fn is_intact(&self) -> bool {
        self.intact
    }
}

/// What a commit wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of content that the repository had to store.
    pub data_stored: u64,
    /// The same of metadata.
    pub metadata_stored: u64,
}
