//! Hashing, compressing and encrypting new chunks in worker threads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::chunk::MAX_DATA_SIZE;
use crate::compress::Compression;
use crate::crypto::{Blob, HEADROOM, Keys};
use crate::nonce::Ledger;
use crate::{ChunkId, ChunkRef, Error, Result};

/// Chunks that need not be written again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(Arc<RwLock<HashMap<ChunkId, (u32, u32)>>>);

impl Known {
    pub fn get(&self, id: &ChunkId) -> Option<ChunkRef> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.get(id).map(|(size, csize)| ChunkRef {
            id: *id,
            size: *size,
            csize: *csize,
        })
    }

    pub fn extend(&self, chunks: impl IntoIterator<Item = ChunkRef>) {
        let chunks = chunks
            .into_iter()
            .map(|chunk| (chunk.id, (chunk.size, chunk.csize)));
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(chunks);
    }

    pub fn forget(&self, ids: &HashSet<ChunkId>) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|id, _| !ids.contains(id));
    }
}

/// A chunk ready to be written with [`crate::ArchiveWriter::put`].
#[derive(Debug)]
pub struct Sealed {
    pub(crate) chunk: ChunkRef,
    pub(crate) object: Blob,
    /// The memory of the content, if the object has memory of its own.
    spare: Option<Vec<u8>>,
}

impl Sealed {
    /// The chunk.
    pub fn chunk(&self) -> ChunkRef {
        self.chunk
    }

    /// Bytes as they will be stored.
    pub fn stored_size(&self) -> usize {
        self.object.len()
    }

    /// The memory, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.spare.unwrap_or_else(|| self.object.into_vec())
    }
}

/// Makes objects of content. Cheap to clone, for worker threads.
#[derive(Clone, Debug)]
pub struct Sealer {
    pub(crate) keys: Arc<Keys>,
    pub(crate) ledger: Ledger,
    pub(crate) known: Known,
    pub(crate) compression: Compression,
}

impl Sealer {
    /// Bytes that [`Self::seal_buffers`] wants before the content.
    pub const HEADROOM: usize = HEADROOM;

    /// The id of content.
    pub fn id(&self, data: &[u8]) -> ChunkId {
        self.keys.id(data)
    }

    /// The ids of several contents. With BLAKE2b, batches of four take hardly longer than two single ones.
    pub fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        self.keys.ids(data)
    }

    /// The id of `len` zero bytes.
    pub fn zero_id(&self, len: usize) -> ChunkId {
        self.keys.id(&vec![0; len])
    }

    /// The chunk with this id, if it is in the repository as far as this writer knows.
    pub fn known(&self, id: &ChunkId) -> Option<ChunkRef> {
        self.known.get(id)
    }

    /// True if the chunk with this id need not be written.
    pub fn is_known(&self, id: &ChunkId) -> bool {
        self.known(id).is_some()
    }

    /// Compresses, encrypts and authenticates content whose id is `id`.
    ///
    /// Takes encryption counters out of what [`crate::ArchiveWriter::reserve`] reserved; without enough of them it is an
    /// error.
    pub fn seal(&self, id: ChunkId, data: &[u8]) -> Result<Sealed> {
        let mut sealed = self.seal_all(&[(id, data)])?;
        sealed.pop().ok_or(Error::NonceReservation)
    }

    /// Seals several contents; with BLAKE2b faster than one by one.
    pub fn seal_all(&self, data: &[(ChunkId, &[u8])]) -> Result<Vec<Sealed>> {
        self.seal_with(self.compression, data)
    }

    /// Seals contents where they are: each buffer holds one behind [`Self::HEADROOM`] bytes of any value. What compression
    /// does not make smaller is encrypted in place and never copied.
    pub fn seal_buffers(&self, buffers: Vec<(ChunkId, Vec<u8>)>) -> Result<Vec<Sealed>> {
        self.seal_in(self.compression, buffers)
    }

    pub(crate) fn seal_with(
        &self,
        compression: Compression,
        data: &[(ChunkId, &[u8])],
    ) -> Result<Vec<Sealed>> {
        let buffers = data.iter().map(|(id, data)| {
            let mut buffer = Vec::with_capacity(HEADROOM + data.len());
            buffer.resize(HEADROOM, 0);
            buffer.extend_from_slice(data);
            (*id, buffer)
        });
        self.seal_in(compression, buffers.collect())
    }

    fn seal_in(&self, compression: Compression, buffers: Vec<(ChunkId, Vec<u8>)>) -> Result<Vec<Sealed>> {
        let encrypted = self.keys.encryption().is_encrypted();
        let (mut plain, mut about) = (Vec::new(), Vec::new());
        for (id, buffer) in buffers {
            let size = buffer.len().saturating_sub(HEADROOM);
            if size > MAX_DATA_SIZE {
                let (size, limit) = (size as u64, MAX_DATA_SIZE as u64);
                return Err(Error::TooLarge {
                    what: "a chunk",
                    size,
                    limit,
                });
            }
            let (object, spare) = self.keys.compress(compression, buffer);
            about.push((id, size as u32, spare));
            let nonce = if encrypted {
                self.ledger.take(object.blocks())?
            } else {
                0
            };
            plain.push((object, nonce));
        }
        let objects = about.into_iter().zip(self.keys.seal(plain));
        let sealed = objects.map(|((id, size, spare), object)| Sealed {
            chunk: ChunkRef {
                id,
                size,
                csize: object.len() as u32,
            },
            object,
            spare,
        });
        Ok(sealed.collect())
    }
}
