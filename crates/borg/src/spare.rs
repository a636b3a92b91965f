//! Memory that is used again.
//!
//! Buffers of some MiB come from the kernel page by page and go back to it; at a GiB a second that costs as much as the
//! copies themselves. So a user that is done with one gives it back here.

use std::sync::{Arc, Mutex, PoisonError};

/// Smaller buffers are cheap to get anew.
const SMALL: usize = 1 << 20;
/// Buffers kept at most.
const MOST: usize = 32;

/// Buffers that wait to be used again. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    /// A buffer of so many bytes, with anything in them.
    pub fn take(&self, length: usize) -> Vec<u8> {
        let kept = (length >= SMALL)
            .then(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).pop())
            .flatten();
        let mut buffer = kept.unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() < SMALL {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_in_any_length() {
        let spare = Spare::default();
        let mut buffer = spare.take(2 * SMALL);
        assert_eq!(buffer, vec![0; 2 * SMALL]);
        buffer.fill(7);
        let address = buffer.as_ptr();
        spare.clone().give(buffer);
        let again = spare.take(SMALL);
        assert_eq!((again.as_ptr(), again.len()), (address, SMALL));
        spare.give(vec![0; 10]);
        assert!(spare.0.lock().unwrap().is_empty());
    }
}
