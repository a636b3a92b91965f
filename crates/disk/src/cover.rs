//! A statement about every byte of a disk, kept as runs of equal value.

use crate::{
    extent::{Extent, RangeError},
    ranges::RangeSet,
};

/// What a disk's owner says about a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// May hold anything: has to be read.
    Data,
    /// Reads as zeroes: a hole, or clusters marked as zero.
    Zero,
}

/// Where a disk holds data and where it reads as zeroes.
pub type ExtentMap = Cover<Kind>;

/// An ordered cover of `0..size()`: each byte has exactly one value, and neighbouring runs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover<K> {
    /// Where each run ends, and its value; the ends increase strictly.
    runs: Vec<(u64, K)>,
}

impl<K> Default for Cover<K> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<K: Copy + Eq> Cover<K> {
    /// The cover of an empty disk, to [`push`](Self::push) to.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same value for all of a disk of `size` bytes.
    pub fn uniform(size: u64, kind: K) -> Self {
        Self {
            runs: if size == 0 { Vec::new() } else { vec![(size, kind)] },
        }
    }

    /// `inside` for the bytes of `ranges`, `outside` for the others, over `0..size`. What `ranges` holds beyond
    /// `size` is left out.
    pub fn of_ranges(size: u64, ranges: &RangeSet, inside: K, outside: K) -> Self {
        let mut cover = Self::new();
        for range in ranges.within(Extent::clamped(0, size)) {
            cover.push_to(range.offset(), outside);
            cover.push_to(range.end(), inside);
        }
        cover.push_to(size, outside);
        cover
    }

    /// Appends a run of `length` bytes; nothing if `length` is zero, an error if the disk would pass 2^64 bytes.
    pub fn push(&mut self, length: u64, kind: K) -> Result<(), RangeError> {
        let end = Extent::new(self.size(), length)?.end();
        self.push_to(end, kind);
        Ok(())
    }

    /// Appends a run up to `end`; nothing if the cover reaches that far already.
    fn push_to(&mut self, end: u64, kind: K) {
        if end <= self.size() {
            return;
        }
        match self.runs.last_mut() {
            Some((last_end, last)) if *last == kind => *last_end = end,
            _ => self.runs.push((end, kind)),
        }
    }

    /// The size of the disk that is covered, in bytes.
    pub fn size(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _)| *end)
    }

    /// The number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// True for a disk of no bytes.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All runs in order.
    pub fn iter(&self) -> impl Iterator<Item = (Extent, K)> + '_ {
        self.within(Extent::clamped(0, self.size()))
    }

    /// The runs of `extent` in order, cut at its ends. What lies beyond the disk is left out.
    pub fn within(&self, extent: Extent) -> impl Iterator<Item = (Extent, K)> + '_ {
        let first = self.runs.partition_point(|(end, _)| *end <= extent.offset());
        let mut start = extent.offset();
        self.runs.iter().skip(first).map_while(move |&(end, kind)| {
            let run = Extent::clamped(start, end).intersection(extent)?;
            start = end;
            Some((run, kind))
        })
    }

    /// The value of the byte at `offset`, `None` beyond the disk.
    pub fn at(&self, offset: u64) -> Option<K> {
        let run = self.runs.partition_point(|(end, _)| *end <= offset);
        self.runs.get(run).map(|(_, kind)| *kind)
    }

    /// True if all of `extent` lies on the disk and has this value (an empty extent always does).
    pub fn is_all(&self, extent: Extent, kind: K) -> bool {
        extent.is_empty() || self.within(extent).next() == Some((extent, kind))
    }

    /// The bytes which have this value.
    pub fn ranges_of(&self, kind: K) -> RangeSet {
        self.iter()
            .filter(|(_, k)| *k == kind)
            .map(|(extent, _)| extent)
            .collect()
    }

    /// The number of bytes which have this value.
    pub fn total_of(&self, kind: K) -> u64 {
        self.iter()
            .filter(|(_, k)| *k == kind)
            .map(|(extent, _)| extent.length())
            .sum()
    }
}

impl ExtentMap {
    /// The map of a disk on which these parts read as zeroes.
    #[must_use]
    pub fn with_holes(&self, holes: &RangeSet) -> Self {
        if holes.is_empty() {
            return self.clone();
        }
        let data = self.ranges_of(Kind::Data).subtract(holes);
        Self::of_ranges(self.size(), &data, Kind::Data, Kind::Zero)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(data: bool) -> Kind {
        if data { Kind::Data } else { Kind::Zero }
    }

    proptest! {
        #[test]
        fn agrees_with_a_vector_of_bools(
            runs in proptest::collection::vec((0u64..9, any::<bool>()), 0..20), a in 0u64..200, b in 0u64..200,
        ) {
            let mut model = Vec::new();
            let mut map = ExtentMap::new();
            for (length, data) in runs {
                model.extend(std::iter::repeat_n(data, length as usize));
                map.push(length, kind(data)).unwrap();
            }
            let size = model.len() as u64;
            prop_assert_eq!(map.size(), size);
            let flat: Vec<bool> = map.iter()
                .flat_map(|(e, k)| std::iter::repeat_n(k == Kind::Data, e.length() as usize)).collect();
            prop_assert_eq!(&flat, &model);
            let kinds: Vec<_> = map.iter().collect();
            prop_assert!(kinds.windows(2).all(|w| w[0].1 != w[1].1 && w[0].0.end() == w[1].0.offset()));

            let extent = Extent::between(a.min(b), a.max(b)).unwrap();
            let bytes = |e: Extent| model.get(e.offset().min(size) as usize..e.end().min(size) as usize).unwrap();
            let inside: Vec<bool> = map.within(extent)
                .flat_map(|(e, k)| std::iter::repeat_n(k == Kind::Data, e.length() as usize)).collect();
            prop_assert_eq!(&inside[..], bytes(extent));
            prop_assert_eq!(map.at(a), model.get(a as usize).map(|d| kind(*d)));
            let all_data = extent.is_empty() || extent.end() <= size && bytes(extent).iter().all(|d| *d);
            prop_assert_eq!(map.is_all(extent, Kind::Data), all_data);

            let data = map.ranges_of(Kind::Data);
            prop_assert_eq!(data.total_len(), map.total_of(Kind::Data));
            prop_assert_eq!(ExtentMap::of_ranges(size, &data, Kind::Data, Kind::Zero), map);
        }
    }

    proptest! {
        /// What is excised reads as zeroes, everything else is as it was.
        #[test]
        fn only_the_excised_parts_become_holes(
            data in prop::collection::vec((0u64..900, 1u64..100), 0..6),
            excised in prop::collection::vec((0u64..900, 1u64..100), 0..4),
        ) {
            let ranges = |list: &[(u64, u64)]| -> RangeSet {
                list.iter().map(|&(offset, length)| Extent::new(offset, length).unwrap()).collect()
            };
            let (data, excised) = (ranges(&data), ranges(&excised));
            let map = ExtentMap::of_ranges(1000, &data, Kind::Data, Kind::Zero);
            let after = map.with_holes(&excised);
            prop_assert_eq!(after.size(), 1000);
            for at in 0..1000 {
                let byte = Extent::new(at, 1).unwrap();
                let expected = data.contains(byte) && !excised.contains(byte);
                prop_assert_eq!(after.at(at) == Some(Kind::Data), expected, "{}", at);
            }
        }
    }

    #[test]
    fn refuses_a_disk_without_end() {
        let mut map = ExtentMap::uniform(u64::MAX, Kind::Data);
        assert!(map.push(1, Kind::Zero).is_err());
        assert_eq!(map.size(), u64::MAX);
    }

    #[test]
    fn leaves_out_ranges_beyond_the_disk() {
        let map = ExtentMap::of_ranges(10, &RangeSet::all(50), Kind::Data, Kind::Zero);
        assert_eq!(map, ExtentMap::uniform(10, Kind::Data));
    }
}
