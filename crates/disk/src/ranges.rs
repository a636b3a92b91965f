//! A set of bytes, kept as sorted ranges: what a dirty bitmap says, or what is still to be read.

use std::num::NonZeroU64;

use crate::extent::Extent;

/// A set of byte positions. Its ranges are sorted, not empty, and neither overlap nor touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Extent>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// All bytes of a disk of `size` bytes.
    pub fn all(size: u64) -> Self {
        Self::from_iter([Extent::clamped(0, size)])
    }

    /// Adds a range. Cheap when ranges come in order; an empty one changes nothing.
    pub fn insert(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        // All ranges which overlap or touch the new one melt into it.
        let first = self.ranges.partition_point(|r| r.end() < extent.offset());
        let after = self.ranges.partition_point(|r| r.offset() <= extent.end());
        let melted = self.ranges.get(first..after).unwrap_or_default();
        let start = melted
            .first()
            .map_or(extent.offset(), |r| r.offset().min(extent.offset()));
        let end = melted.last().map_or(extent.end(), |r| r.end().max(extent.end()));
        self.ranges.splice(first..after, [Extent::clamped(start, end)]);
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + DoubleEndedIterator + '_ {
        self.ranges.iter().copied()
    }

    /// The number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// True if no byte is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The number of bytes in the set.
    pub fn total_len(&self) -> u64 {
        // Disjoint ranges below `u64::MAX` cannot add up to more than that.
        self.ranges.iter().map(|r| r.length()).sum()
    }

    /// The first byte after the last range, 0 for the empty set.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.end())
    }

    /// True if every byte of `extent` is in the set (an empty extent always is).
    pub fn contains(&self, extent: Extent) -> bool {
        extent.is_empty()
            || self
                .reaching(extent.offset())
                .next()
                .is_some_and(|r| r.intersection(extent) == Some(extent))
    }

    /// True if at least one byte of `extent` is in the set.
    pub fn overlaps(&self, extent: Extent) -> bool {
        self.reaching(extent.offset())
            .next()
            .is_some_and(|r| r.intersection(extent).is_some())
    }

    /// The parts of the set which lie in `extent`, in order.
    pub fn within(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        self.reaching(extent.offset())
            .map_while(move |r| r.intersection(extent))
    }

    /// The ranges from the one on which ends after `offset`.
    fn reaching(&self, offset: u64) -> impl Iterator<Item = Extent> + '_ {
        let first = self.ranges.partition_point(|r| r.end() <= offset);
        self.ranges.iter().skip(first).copied()
    }

    /// The bytes which are in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut merged: Vec<Extent> = self.iter().chain(other.iter()).collect();
        merged.sort_unstable();
        merged.into_iter().collect()
    }

    /// The bytes which are in both sets.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut both = Self::new();
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(&a), Some(&b)) = (left.peek(), right.peek()) {
            if let Some(common) = a.intersection(b) {
                both.insert(common);
            }
            if a.end() <= b.end() {
                left.next();
            } else {
                right.next();
            }
        }
        both
    }

    /// The bytes which are in this set but not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut left = Self::new();
        let mut holes = other.iter().peekable();
        for range in self.iter() {
            let mut at = range.offset();
            while let Some(&hole) = holes.peek().filter(|h| h.offset() < range.end()) {
                left.insert(Extent::clamped(at, hole.offset()));
                at = at.max(hole.end());
                if hole.end() > range.end() {
                    break; // It may cut into the next range as well.
                }
                holes.next();
            }
            left.insert(Extent::clamped(at, range.end()));
        }
        left
    }

    /// The bytes of a disk of `size` bytes which are not in this set.
    #[must_use]
    pub fn complement(&self, size: u64) -> Self {
        Self::all(size).subtract(self)
    }

    /// Each range widened to whole blocks of `granularity` bytes, but not beyond `size`.
    #[must_use]
    pub fn aligned_out(&self, granularity: NonZeroU64, size: u64) -> Self {
        let block = granularity.get();
        self.iter()
            .map(|r| {
                let start = r.offset() - r.offset() % block;
                let end = r.end().checked_next_multiple_of(block).unwrap_or(u64::MAX);
                Extent::clamped(start, end.min(size))
            })
            .collect()
    }
}

impl FromIterator<Extent> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        set.extend(extents);
        set
    }
}

impl Extend<Extent> for RangeSet {
    fn extend<I: IntoIterator<Item = Extent>>(&mut self, extents: I) {
        extents.into_iter().for_each(|extent| self.insert(extent));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 96;

    fn set(model: &[bool]) -> RangeSet {
        let bytes = model.iter().enumerate().filter(|(_, in_set)| **in_set);
        bytes.map(|(at, _)| Extent::new(at as u64, 1).unwrap()).collect()
    }

    fn model(set: &RangeSet) -> Vec<bool> {
        let mut model = vec![false; SIZE];
        for range in set.iter() {
            model[range.offset() as usize..range.end() as usize].fill(true);
        }
        model
    }

    fn normal(set: &RangeSet) -> bool {
        let ranges: Vec<_> = set.iter().collect();
        ranges.iter().all(|r| !r.is_empty()) && ranges.windows(2).all(|w| w[0].end() < w[1].offset())
    }

    fn bools() -> impl Strategy<Value = Vec<bool>> {
        proptest::collection::vec(any::<bool>(), SIZE)
    }

    proptest! {
        #[test]
        fn insert_is_or(parts in proptest::collection::vec((0..SIZE, 0..SIZE), 0..24)) {
            let mut expected = vec![false; SIZE];
            let mut built = RangeSet::new();
            for (a, b) in parts {
                let (a, b) = (a.min(b), a.max(b));
                expected[a..b].fill(true);
                built.insert(Extent::between(a as u64, b as u64).unwrap());
                prop_assert!(normal(&built));
            }
            prop_assert_eq!(built.total_len(), expected.iter().filter(|x| **x).count() as u64);
            prop_assert_eq!(model(&built), expected);
        }

        #[test]
        fn set_operations_are_boolean_ones(a in bools(), b in bools()) {
            let (left, right) = (set(&a), set(&b));
            let each = |f: fn(bool, bool) -> bool| a.iter().zip(&b).map(|(x, y)| f(*x, *y)).collect::<Vec<_>>();
            for (result, expected) in [
                (left.union(&right), each(|x, y| x || y)),
                (left.intersect(&right), each(|x, y| x && y)),
                (left.subtract(&right), each(|x, y| x && !y)),
                (left.complement(SIZE as u64), each(|x, _| !x)),
            ] {
                prop_assert!(normal(&result));
                prop_assert_eq!(model(&result), expected);
            }
        }

        #[test]
        fn queries_agree_with_the_model(a in bools(), from in 0..SIZE, to in 0..SIZE) {
            let (from, to) = (from.min(to), from.max(to));
            let (ranges, extent) = (set(&a), Extent::between(from as u64, to as u64).unwrap());
            prop_assert_eq!(ranges.contains(extent), a[from..to].iter().all(|x| *x));
            prop_assert_eq!(ranges.overlaps(extent), a[from..to].iter().any(|x| *x));
            let inside: u64 = ranges.within(extent).map(Extent::length).sum();
            prop_assert_eq!(inside, a[from..to].iter().filter(|x| **x).count() as u64);
        }

        #[test]
        fn aligning_covers_whole_blocks(a in bools(), block in 1usize..20) {
            let aligned = set(&a).aligned_out(NonZeroU64::new(block as u64).unwrap(), SIZE as u64);
            prop_assert!(normal(&aligned));
            let expected: Vec<bool> = (0..SIZE).map(|at| {
                let start = at / block * block;
                a[start..(start + block).min(SIZE)].iter().any(|x| *x)
            }).collect();
            prop_assert_eq!(model(&aligned), expected);
        }
    }

    #[test]
    fn survives_the_end_of_the_number_line() {
        let last = Extent::new(u64::MAX - 1, 1).unwrap();
        let mut set = RangeSet::from_iter([last]);
        set.insert(Extent::new(0, u64::MAX).unwrap());
        assert_eq!(set, RangeSet::all(u64::MAX));
        let block = NonZeroU64::new(1 << 40).unwrap();
        assert_eq!(
            RangeSet::from_iter([last]).aligned_out(block, u64::MAX).end(),
            u64::MAX
        );
    }
}
