//! `index.T`: where each object is, as Borg's hash table.
//!
//! A header of 18 bytes (`BORG_IDX`, entries and buckets as i32, key size 32, value size 8), then buckets of 40 bytes:
//! id, segment, offset, all numbers little-endian. A segment number of 0xffffffff marks an empty bucket, 0xfffffffe a
//! deleted one. An id's place is its first four bytes as a number, modulo the number of buckets; from there upwards,
//! with a wrap at the end (Borg's `_hashindex.c`). The table in memory is the file as it is.

mod sizes;

use crate::{Error, Id, Result};

const MAGIC: &[u8; 8] = b"BORG_IDX";
/// Length of the header, which has a checksum of its own.
pub(crate) const HEADER: usize = 18;
const BUCKET: usize = 40;
const EMPTY: u32 = 0xffff_ffff;
const DELETED: u32 = 0xffff_fffe;
/// Numbers from here on mean something else than a segment to Borg.
pub(crate) const MAX_SEGMENT: u32 = 0xffff_fbff;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: u32,
    /// The entry's first byte in it.
    pub offset: u32,
}

/// The table of all objects.
#[derive(Clone)]
pub struct Index {
    bytes: Vec<u8>,
    buckets: u32,
    entries: u32,
    empty: u32,
}

/// What a search for an id ends with.
enum Search {
    Found(u32),
    /// The bucket where it would be put.
    Free(u32),
}

impl Index {
    /// An empty table.
    pub fn new() -> Self {
        Self::with_buckets(sizes::SMALLEST)
    }

    fn with_buckets(buckets: u32) -> Self {
        let mut bytes = vec![0; HEADER + buckets as usize * BUCKET];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&buckets.to_le_bytes());
        bytes[16..18].copy_from_slice(&[32, 8]);
        for bucket in bytes[HEADER..].chunks_exact_mut(BUCKET) {
            bucket[32..36].copy_from_slice(&EMPTY.to_le_bytes());
        }
        Self {
            bytes,
            buckets,
            entries: 0,
            empty: buckets,
        }
    }

    /// Takes the content of a file, if it is a table in which every search ends.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, &'static str> {
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err("it is no index");
        }
        if bytes[16..18] != [32, 8] {
            return Err("its keys or values have another size");
        }
        let (entries, buckets) = (word(&bytes, 8), word(&bytes, 12));
        if buckets == 0 || buckets > sizes::LARGEST || bytes.len() != HEADER + buckets as usize * BUCKET {
            return Err("its length does not fit its header");
        }
        let (mut live, mut empty) = (0_u32, 0_u32);
        for bucket in bytes[HEADER..].chunks_exact(BUCKET) {
            match word(bucket, 32) {
                EMPTY => empty += 1,
                DELETED => {}
                segment if segment > MAX_SEGMENT => return Err("it names a segment that cannot be"),
                _ => live += 1,
            }
        }
        if live != entries {
            return Err("its header has another number of entries");
        }
        Ok(Self {
            bytes,
            buckets,
            entries,
            empty,
        })
    }

    /// The content of the file.
    pub fn as_bytes(&mut self) -> &[u8] {
        self.bytes[8..12].copy_from_slice(&self.entries.to_le_bytes());
        &self.bytes
    }

    /// Length of the file.
    pub fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.entries as usize
    }

    /// True if there is no object.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Where an object is.
    pub fn get(&self, id: &Id) -> Option<Place> {
        match self.search(id) {
            Search::Found(bucket) => Some(self.place(bucket)),
            Search::Free(_) => None,
        }
    }

    /// Puts an object at a place, whether or not it is there already.
    pub fn insert(&mut self, id: &Id, place: Place) -> Result<()> {
        if place.segment > MAX_SEGMENT {
            return Err(Error::Unsupported("a segment number that large".to_owned()));
        }
        let bucket = match self.search(id) {
            Search::Found(bucket) => bucket,
            Search::Free(bucket) => self.take_bucket(id, bucket)?,
        };
        let bucket = &mut self.bytes[HEADER + bucket as usize * BUCKET..][..BUCKET];
        bucket[..32].copy_from_slice(&id.0);
        bucket[32..36].copy_from_slice(&place.segment.to_le_bytes());
        bucket[36..].copy_from_slice(&place.offset.to_le_bytes());
        Ok(())
    }

    /// Accounts for one entry more, and makes room for it if the table is too full.
    fn take_bucket(&mut self, id: &Id, free: u32) -> Result<u32> {
        let mut bucket = free;
        if self.entries > sizes::most(self.buckets) {
            bucket = self.rebuild(sizes::above(self.buckets), id)?;
        }
        if self.segment(bucket) == EMPTY {
            // A table without empty buckets would never end a search of Borg's.
            if self.empty - 1 <= sizes::least_empty(self.buckets) {
                bucket = self.rebuild(self.buckets, id)?;
            }
            self.empty -= 1;
        }
        self.entries += 1;
        Ok(bucket)
    }

    /// Removes an object; `None` if there was none.
    pub fn remove(&mut self, id: &Id) -> Option<Place> {
        let Search::Found(bucket) = self.search(id) else {
            return None;
        };
        let place = self.place(bucket);
        self.set_segment(bucket, DELETED);
        self.entries -= 1;
        if self.entries < sizes::fewest(self.buckets) {
            self.resize(sizes::below(self.buckets));
        }
        Some(place)
    }

    /// All objects, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (Id, Place)> + '_ {
        self.iter_from(0)
    }

    /// The objects behind one in the order of the table; `None` if that one is not there.
    pub fn iter_after(&self, id: &Id) -> Option<impl Iterator<Item = (Id, Place)> + '_> {
        match self.search(id) {
            Search::Found(bucket) => Some(self.iter_from(bucket + 1)),
            Search::Free(_) => None,
        }
    }

    fn iter_from(&self, first: u32) -> impl Iterator<Item = (Id, Place)> + '_ {
        (first..self.buckets)
            .filter(|bucket| self.segment(*bucket) <= MAX_SEGMENT)
            .map(|bucket| (self.id(bucket), self.place(bucket)))
    }

    fn search(&self, id: &Id) -> Search {
        let start = word(&id.0, 0) % self.buckets;
        let mut free = None;
        // Once around at most: a table from elsewhere may have no empty bucket.
        for bucket in (start..self.buckets).chain(0..start) {
            match self.segment(bucket) {
                EMPTY => return Search::Free(free.unwrap_or(bucket)),
                DELETED => {
                    free.get_or_insert(bucket);
                }
                _ if self.bucket(bucket)[..32] == id.0 => return Search::Found(bucket),
                _ => {}
            }
        }
        Search::Free(free.unwrap_or(start))
    }

    /// Makes a table of another size, and tells where `id`, which is not in it, would be put.
    fn rebuild(&mut self, buckets: u32, id: &Id) -> Result<u32> {
        self.resize(buckets);
        match self.search(id) {
            Search::Free(bucket) if self.empty > 1 => Ok(bucket),
            _ => Err(Error::Unsupported(
                "more objects than an index can hold".to_owned(),
            )),
        }
    }

    fn resize(&mut self, buckets: u32) {
        let mut table = Self::with_buckets(buckets);
        for (id, place) in self.iter() {
            // Without deleted buckets, and larger than its content: each has a bucket of its own.
            let Search::Free(bucket) = table.search(&id) else {
                continue;
            };
            let at = HEADER + bucket as usize * BUCKET;
            table.bytes[at..at + 32].copy_from_slice(&id.0);
            table.bytes[at + 32..at + 36].copy_from_slice(&place.segment.to_le_bytes());
            table.bytes[at + 36..at + 40].copy_from_slice(&place.offset.to_le_bytes());
            table.entries += 1;
            table.empty -= 1;
        }
        *self = table;
    }

    fn bucket(&self, bucket: u32) -> &[u8] {
        &self.bytes[HEADER + bucket as usize * BUCKET..][..BUCKET]
    }

    fn segment(&self, bucket: u32) -> u32 {
        word(self.bucket(bucket), 32)
    }

    fn set_segment(&mut self, bucket: u32, segment: u32) {
        self.bytes[HEADER + bucket as usize * BUCKET + 32..][..4].copy_from_slice(&segment.to_le_bytes());
    }

    fn place(&self, bucket: u32) -> Place {
        let bytes = self.bucket(bucket);
        Place {
            segment: word(bytes, 32),
            offset: word(bytes, 36),
        }
    }

    fn id(&self, bucket: u32) -> Id {
        let mut id = [0; 32];
        id.copy_from_slice(&self.bucket(bucket)[..32]);
        Id(id)
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

/// Four bytes as a number.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
