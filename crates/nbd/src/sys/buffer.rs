//! Memory that C code reads or writes while commands are in flight.

use std::{mem::ManuallyDrop, ops::Range, ptr::NonNull, sync::Arc};

/// The bytes of a vector, out of reach of safe code until they are given back.
///
/// While a [`Buffer`] is shared no reference to its bytes exists: there is no way to get at them but
/// [`into_vec`](Self::into_vec), which takes the last owner. A command in flight is an owner
/// (see [`Handle`](super::Handle)), so that no other code sees or frees bytes which libnbd may still touch.
pub(crate) struct Buffer {
    bytes: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory like the vector it was made of.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer gives access to nothing but its length and its address.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        let mut bytes = ManuallyDrop::new(bytes);
        let (length, capacity) = (bytes.len(), bytes.capacity());
        // A vector's pointer is never null.
        let pointer = NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Arc::new(Self {
            bytes: pointer,
            length,
            capacity,
        })
    }

    /// The bytes, if no command uses them any more.
    pub(crate) fn into_vec(self: Arc<Self>) -> Option<Vec<u8>> {
        Arc::into_inner(self).map(|buffer| ManuallyDrop::new(buffer).rebuild())
    }

    /// Where `range` starts; `None` if it is not inside of the buffer.
    pub(super) fn address(&self, range: &Range<usize>) -> Option<NonNull<u8>> {
        let inside = range.start <= range.end && range.end <= self.length;
        // SAFETY: `start` is inside of the allocation or one past its end.
        inside.then(|| unsafe { self.bytes.add(range.start) })
    }

    /// To be called once, where the life of the buffer ends.
    fn rebuild(&self) -> Vec<u8> {
        // SAFETY: pointer, length and capacity come from a vector that was not dropped, and no other owner is left.
        unsafe { Vec::from_raw_parts(self.bytes.as_ptr(), self.length, self.capacity) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        drop(self.rebuild());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_owner_gets_the_bytes() {
        let buffer = Buffer::new(vec![1, 2, 3]);
        let other = Arc::clone(&buffer);
        assert!(buffer.into_vec().is_none());
        assert_eq!(other.into_vec(), Some(vec![1, 2, 3]));
        assert_eq!(Buffer::new(Vec::new()).into_vec(), Some(Vec::new()));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn addresses_stay_inside() {
        let buffer = Buffer::new(vec![0; 8]);
        assert!(buffer.address(&(0..8)).is_some() && buffer.address(&(8..8)).is_some());
        assert!(buffer.address(&(0..9)).is_none() && buffer.address(&(5..4)).is_none());
    }
}
