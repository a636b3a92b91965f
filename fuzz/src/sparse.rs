//! A disk in few bytes: its two ends are given, and between them it is empty.

use strongroom_disk::{BlockSource, ReadError};

/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Larger disks show nothing new.
const MOST_SECTORS: u64 = 1 << 40;

/// A disk most of which reads as zeroes.
///
/// It fails the test when it is asked for bytes beyond its end: a parser knows the size.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    size: u64,
    parts: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// Reads a disk's description, all numbers little endian: sectors on the disk (8 bytes), bytes beyond the last
    /// whole sector (2), bytes of the tail (2), the tail, the head.
    ///
    /// The tail ends where the last whole sector ends.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (sectors, rest) = data.split_first_chunk()?;
        let (odd, rest) = rest.split_first_chunk()?;
        let (tail_len, rest) = rest.split_first_chunk()?;
        let (tail, head) = rest.split_at_checked(u16::from_le_bytes(*tail_len).into())?;
        let sectors = u64::from_le_bytes(*sectors) % MOST_SECTORS;
        let odd = u64::from(u16::from_le_bytes(*odd)) % SECTOR;
        let mut disk = Self::empty(sectors * SECTOR + odd);
        let tail_at = (sectors * SECTOR).saturating_sub(tail.len() as u64);
        disk.write(tail_at, tail);
        disk.write(0, head);
        Some(disk)
    }

    /// A disk of `size` bytes that are all zero.
    pub fn empty(size: u64) -> Self {
        Self {
            size,
            parts: Vec::new(),
        }
    }

    /// Puts bytes on the disk; what does not fit is cut off.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if !bytes.is_empty() {
            self.parts.push((offset, bytes.to_vec()));
        }
    }

    /// Some bytes of the disk, zeroes beyond its end.
    pub fn bytes<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(offset, &mut bytes);
        bytes
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        for (at, bytes) in &self.parts {
            // Where this part and the buffer meet, seen from either.
            let skip = usize::try_from(offset.saturating_sub(*at)).unwrap_or(usize::MAX);
            let start = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            let part = bytes.get(skip..).unwrap_or_default();
            let target = buffer.get_mut(start..).unwrap_or_default();
            target.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        }
    }
}

impl BlockSource for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let end = offset.checked_add(buffer.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.size),
            "read {} bytes at {offset} of a disk of {}",
            buffer.len(),
            self.size
        );
        self.fill(offset, buffer);
        Ok(())
    }
}
