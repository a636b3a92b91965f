//! Verifying and decrypting objects.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crate::crypto::Keys;
use crate::{ChunkId, ChunkRef, Error, Object, Result};

/// Verified content, in the memory in which its object came.
#[derive(Debug, Default)]
pub struct Content {
    bytes: Vec<u8>,
    range: Range<usize>,
}

impl Content {
    /// An object less its first bytes.
    pub(crate) fn behind(object: Object, head: usize) -> Self {
        let (bytes, range) = object.into();
        let end = range.end.min(bytes.len());
        let start = range.start.saturating_add(head).min(end);
        Self {
            bytes,
            range: start..end,
        }
    }

    /// The bytes just before the content.
    pub(crate) fn before<const N: usize>(&self) -> Option<[u8; N]> {
        let before = self.bytes.get(..self.range.start)?;
        before.last_chunk().copied()
    }

    /// Drops the first bytes.
    pub(crate) fn skip(&mut self, head: usize) {
        self.range.start = (self.range.start + head).min(self.range.end);
    }

    /// The memory, and where in it the content is.
    pub fn into_parts(self) -> (Vec<u8>, Range<usize>) {
        (self.bytes, self.range)
    }

    /// The content alone.
    pub fn into_vec(self) -> Vec<u8> {
        let Self { mut bytes, range } = self;
        bytes.truncate(range.end);
        bytes.drain(..range.start);
        bytes
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { bytes, range }
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.range.clone()).unwrap_or_default()
    }
}

impl DerefMut for Content {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.range.clone()).unwrap_or_default()
    }
}

/// Turns stored objects into verified content. Cheap to clone, for worker threads.
#[derive(Clone, Debug)]
pub struct Opener {
    keys: Arc<Keys>,
}

impl Opener {
    pub(crate) fn new(keys: Arc<Keys>) -> Self {
        Self { keys }
    }

    /// Verifies an object's authentication code, its content's id and its content's size, and returns the content.
    pub fn open(&self, chunk: &ChunkRef, object: Object) -> Result<Content> {
        let opened = self.open_all(vec![(*chunk, object)]).pop();
        opened.unwrap_or_else(|| Err(Error::damaged(chunk.id, "it was lost")))
    }

    /// The same for several objects. With BLAKE2b, batches of four take hardly longer than two single ones.
    pub fn open_all(&self, objects: Vec<(ChunkRef, Object)>) -> Vec<Result<Content>> {
        let chunks: Vec<ChunkRef> = objects.iter().map(|(chunk, _)| *chunk).collect();
        let objects = objects.into_iter();
        let opened = self.keys.open_all(
            objects
                .map(|(chunk, object)| (chunk.id, object, chunk.size as usize))
                .collect(),
        );
        let checked = opened.into_iter().zip(chunks).map(|(content, chunk)| {
            let content = content?;
            if content.len() == chunk.size as usize {
                Ok(content)
            } else {
                Err(Error::damaged(
                    chunk.id,
                    format!(
                        "it has {} bytes of content instead of {}",
                        content.len(),
                        chunk.size
                    ),
                ))
            }
        });
        checked.collect()
    }

    /// The id of content.
    pub fn id(&self, data: &[u8]) -> ChunkId {
        self.keys.id(data)
    }

    /// The ids of several contents; with BLAKE2b faster than one by one.
    pub fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        self.keys.ids(data)
    }

    /// The id of `len` zero bytes, for recognising holes.
    pub fn zero_id(&self, len: usize) -> ChunkId {
        self.keys.id(&vec![0; len])
    }
}
