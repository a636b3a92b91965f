//! Verifying and decrypting objects.

use std::sync::Arc;

use crate::crypto::Keys;
use crate::{ChunkId, ChunkRef, Error, Result};

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
    pub fn open(&self, chunk: &ChunkRef, object: &[u8]) -> Result<Vec<u8>> {
        let data = self.keys.open(&chunk.id, object, chunk.size as usize)?;
        if data.len() == chunk.size as usize {
            Ok(data)
        } else {
            Err(Error::damaged(
                chunk.id,
                format!("it has {} bytes of content instead of {}", data.len(), chunk.size),
            ))
        }
    }

    /// The id of content.
    pub fn id(&self, data: &[u8]) -> ChunkId {
        self.keys.id(data)
    }

    /// The id of `len` zero bytes, for recognising holes.
    pub fn zero_id(&self, len: usize) -> ChunkId {
        self.keys.id(&vec![0; len])
    }
}
