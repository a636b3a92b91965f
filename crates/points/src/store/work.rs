//! What other threads do for a repository, and to it. All of these are cheap to clone.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use super::chunk::{ChunkId, ChunkRef};
use super::error::{Kind, Result, StoreError};

/// What a driver's sealer does. The methods are those of [`Sealer`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Seal: Send + Sync {
    fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId>;
    fn zero_id(&self, length: usize) -> ChunkId;
    fn known(&self, id: &ChunkId) -> Option<ChunkRef>;
    fn seal(&self, buffers: Vec<(ChunkId, Vec<u8>)>) -> Result<Vec<Sealed>>;
}

/// Makes of content what can be put.
#[derive(Clone)]
pub struct Sealer(Arc<dyn Seal>);

impl Sealer {
    /// Bytes that [`Self::seal_buffers`] wants before the content.
    pub const HEADROOM: usize = super::borg::HEADROOM;

    /// A driver's sealer.
    pub fn new(sealer: impl Seal + 'static) -> Self {
        Self(Arc::new(sealer))
    }

    /// The id of content.
    pub fn id(&self, data: &[u8]) -> ChunkId {
        self.ids(&[data]).pop().unwrap_or_else(|| self.zero_id(0))
    }

    /// The ids of several contents, which may be faster than one by one.
    pub fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        self.0.ids(data)
    }

    /// The id of so many zero bytes.
    pub fn zero_id(&self, length: usize) -> ChunkId {
        self.0.zero_id(length)
    }

    /// The chunk with this id, if it is in the repository as far as the transaction knows.
    pub fn known(&self, id: &ChunkId) -> Option<ChunkRef> {
        self.0.known(id)
    }

    /// Compresses and encrypts contents where they are: each buffer holds one behind [`Self::HEADROOM`] bytes of any value.
    pub fn seal_buffers(&self, buffers: Vec<(ChunkId, Vec<u8>)>) -> Result<Vec<Sealed>> {
        self.0.seal(buffers)
    }
}

/// A chunk that can be put into the transaction whose sealer has made it.
pub struct Sealed(Box<dyn Any + Send>);

impl Sealed {
    /// What a driver has made.
    pub fn new(made: impl Any + Send) -> Self {
        Self(Box::new(made))
    }

    /// What the driver has made; an error if it was another one.
    pub fn into_inner<T: Any>(self) -> Result<T> {
        inner(self.0)
    }
}

/// A stored chunk as it came: what the same repository's opener can open.
pub struct Object(Box<dyn Any + Send>);

impl Object {
    /// What a driver has fetched.
    pub fn new(fetched: impl Any + Send) -> Self {
        Self(Box::new(fetched))
    }

    /// What the driver has fetched; an error if it was another one.
    pub fn into_inner<T: Any>(self) -> Result<T> {
        inner(self.0)
    }
}

fn inner<T: Any>(made: Box<dyn Any + Send>) -> Result<T> {
    made.downcast()
        .map(|made| *made)
        .map_err(|_| StoreError::new(Kind::Other, "a chunk belongs to another repository"))
}

/// What a driver's opener does. The methods are those of [`Opener`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Open: Send + Sync {
    fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId>;
    fn zero_id(&self, length: usize) -> ChunkId;
    fn open(&self, objects: Vec<(ChunkRef, Object)>) -> Vec<Result<Content>>;
}

/// Turns stored chunks into verified content.
#[derive(Clone)]
pub struct Opener(Arc<dyn Open>);

impl Opener {
    /// A driver's opener.
    pub fn new(opener: impl Open + 'static) -> Self {
        Self(Arc::new(opener))
    }

    /// Verifies a chunk, and returns its content.
    pub fn open(&self, chunk: &ChunkRef, object: Object) -> Result<Content> {
        let opened = self.open_all(vec![(*chunk, object)]).pop();
        opened.unwrap_or_else(|| {
            Err(StoreError::new(
                Kind::Damaged,
                format!("object {} was lost", chunk.id),
            ))
        })
    }

    /// The same for several chunks, which may be faster than one by one.
    pub fn open_all(&self, objects: Vec<(ChunkRef, Object)>) -> Vec<Result<Content>> {
        self.0.open(objects)
    }

    /// The ids of several contents, which may be faster than one by one.
    pub fn ids(&self, data: &[&[u8]]) -> Vec<ChunkId> {
        self.0.ids(data)
    }

    /// The id of so many zero bytes, for recognising holes.
    pub fn zero_id(&self, length: usize) -> ChunkId {
        self.0.zero_id(length)
    }
}

/// Verified content, in the memory in which it came.
#[derive(Debug, Default)]
pub struct Content {
    bytes: Vec<u8>,
    range: Range<usize>,
}

impl Content {
    /// The part of some memory that is content.
    pub fn new(bytes: Vec<u8>, range: Range<usize>) -> Self {
        Self { bytes, range }
    }

    /// The memory, and where in it the content is.
    pub fn into_parts(self) -> (Vec<u8>, Range<usize>) {
        (self.bytes, self.range)
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

/// Smaller buffers are cheap to get anew.
const SMALL: usize = 1 << 20;
/// Buffers kept at most.
const MOST: usize = 32;

/// Buffers that wait to be used again. Clones share them.
#[derive(Clone)]
pub struct Spare(Arc<dyn Buffers>);

/// A pool of buffers. The methods are those of [`Spare`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Buffers: Send + Sync {
    fn take(&self, length: usize) -> Vec<u8>;
    fn give(&self, buffer: Vec<u8>);
}

impl Spare {
    /// A driver's own pool.
    pub fn new(buffers: impl Buffers + 'static) -> Self {
        Self(Arc::new(buffers))
    }

    /// A buffer of so many bytes, with anything in them.
    pub fn take(&self, length: usize) -> Vec<u8> {
        self.0.take(length)
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        self.0.give(buffer);
    }
}

impl Default for Spare {
    fn default() -> Self {
        Self::new(Pool::default())
    }
}

#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Buffers for Pool {
    fn take(&self, length: usize) -> Vec<u8> {
        let kept = (length >= SMALL)
            .then(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).pop())
            .flatten();
        let mut buffer = kept.unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() >= SMALL && kept.len() < MOST {
            kept.push(buffer);
        }
    }
}

/// What a driver's canceller does. The methods are those of [`Canceller`].
#[allow(missing_docs, reason = "they are documented where they are called")]
pub trait Cancels: Send + Sync {
    fn cancel(&self);
    fn is_over(&self) -> bool;
}

/// Ends calls of a repository from any thread.
#[derive(Clone)]
pub struct Canceller(Arc<dyn Cancels>);

impl Canceller {
    /// A driver's canceller.
    pub fn new(canceller: impl Cancels + 'static) -> Self {
        Self(Arc::new(canceller))
    }

    /// Ends the connection, if it is still there.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether there is nothing left to cancel.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Object")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_driver_made_is_refused() {
        assert_eq!(Sealed::new(7_u32).into_inner::<u32>().unwrap(), 7);
        assert!(Sealed::new(7_u32).into_inner::<u64>().is_err());
        assert!(Object::new("text").into_inner::<u64>().is_err());
    }

    #[test]
    fn large_buffers_are_used_again() {
        let spare = Spare::default();
        let buffer = vec![7; 2 * SMALL];
        let address = buffer.as_ptr();
        spare.clone().give(buffer);
        let again = spare.take(SMALL);
        assert_eq!((again.as_ptr(), again.len()), (address, SMALL));
        spare.give(vec![7; 10]);
        assert_eq!(spare.take(10), [0; 10]);
    }
}
