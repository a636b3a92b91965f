//! The one way in which the bytes of a disk are read.

use std::error::Error;

use crate::extent::Extent;

/// Something that holds the bytes of a disk: an NBD export, or a buffer in a test.
pub trait BlockSource: Send {
    /// The size of the disk in bytes; it does not change while the source lives.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes at `offset`. After an error the content of `buffer` is undefined.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// A read that failed, and where.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The range is not on the disk.
    #[error("read {length} bytes at {offset}: the disk ends at {size}")]
    OutOfBounds {
        /// The first byte asked for.
        offset: u64,
        /// The number of bytes asked for.
        length: u64,
        /// The size of the disk.
        size: u64,
    },
    /// The source could not deliver.
    #[error("read {length} bytes at {offset}")]
    Failed {
        /// The first byte asked for.
        offset: u64,
        /// The number of bytes asked for.
        length: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ReadError {
    /// Checks that `length` bytes at `offset` are on a disk of `size` bytes.
    pub fn check_bounds(offset: u64, length: u64, size: u64) -> Result<Extent, Self> {
        match Extent::new(offset, length) {
            Ok(extent) if extent.end() <= size => Ok(extent),
            _ => Err(Self::OutOfBounds { offset, length, size }),
        }
    }
}

/// A disk in memory.
impl BlockSource for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let (length, size) = (buffer.len() as u64, self.size());
        let extent = ReadError::check_bounds(offset, length, size)?;
        let range = usize::try_from(extent.offset())
            .ok()
            .zip(usize::try_from(extent.end()).ok());
        let bytes = range.and_then(|(start, end)| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(ReadError::OutOfBounds { offset, length, size })?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_what_is_there() {
        let mut disk: Vec<u8> = (0..10).collect();
        let mut buffer = [0; 4];
        disk.read_at(6, &mut buffer).unwrap();
        assert_eq!(buffer, [6, 7, 8, 9]);
        assert!(matches!(
            disk.read_at(7, &mut buffer),
            Err(ReadError::OutOfBounds {
                offset: 7,
                length: 4,
                size: 10
            })
        ));
        assert!(disk.read_at(u64::MAX, &mut buffer).is_err());
    }
}
