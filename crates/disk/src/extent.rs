//! One range of bytes that is known not to overflow.

use std::fmt;

/// A half-open range of bytes, `offset..end()`. The end always fits into a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    offset: u64,
    length: u64,
}

/// A range that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Offset plus length does not fit into 64 bits.
    #[error("range at {offset} of {length} bytes overflows")]
    Overflow {
        /// Where the range starts.
        offset: u64,
        /// How long it claims to be.
        length: u64,
    },
    /// The end lies before the start.
    #[error("range ends at {end}, before its start at {start}")]
    Reversed {
        /// Where the range starts.
        start: u64,
        /// Where it claims to end.
        end: u64,
    },
}

impl Extent {
    /// The range of `length` bytes at `offset`; an error if its end does not fit into 64 bits.
    pub const fn new(offset: u64, length: u64) -> Result<Self, RangeError> {
        match offset.checked_add(length) {
            Some(_) => Ok(Self { offset, length }),
            None => Err(RangeError::Overflow { offset, length }),
        }
    }

    /// The range `start..end`; an error if `end` is before `start`.
    pub const fn between(start: u64, end: u64) -> Result<Self, RangeError> {
        match end.checked_sub(start) {
            Some(length) => Ok(Self {
                offset: start,
                length,
            }),
            None => Err(RangeError::Reversed { start, end }),
        }
    }

    /// For callers which have just compared the two: `end` before `start` gives an empty range.
    pub(crate) const fn clamped(start: u64, end: u64) -> Self {
        Self {
            offset: start,
            length: end.saturating_sub(start),
        }
    }

    /// The first byte.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// The number of bytes.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// The first byte after the range.
    pub const fn end(self) -> u64 {
        // Both constructors made sure that this does not overflow.
        self.offset.saturating_add(self.length)
    }

    /// True if there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }

    /// The bytes which are in both ranges, if there are any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let both = Self::clamped(self.offset.max(other.offset), self.end().min(other.end()));
        (!both.is_empty()).then_some(both)
    }

    /// The range cut into pieces of at most `piece` bytes, in order. A `piece` of zero is taken as one byte.
    pub fn pieces(self, piece: u64) -> impl Iterator<Item = Self> {
        let piece = piece.max(1);
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let length = rest.length.min(piece);
            let head = Self {
                offset: rest.offset,
                length,
            };
            rest = Self {
                offset: head.end(),
                length: rest.length - length,
            };
            Some(head)
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_overflows() {
        assert_eq!(
            Extent::new(u64::MAX, 1),
            Err(RangeError::Overflow {
                offset: u64::MAX,
                length: 1
            })
        );
        assert_eq!(Extent::new(u64::MAX, 0).unwrap().end(), u64::MAX);
        assert_eq!(Extent::new(1, u64::MAX - 1).unwrap().end(), u64::MAX);
        assert_eq!(
            Extent::between(2, 1),
            Err(RangeError::Reversed { start: 2, end: 1 })
        );
    }

    #[test]
    fn cuts_into_pieces_up_to_the_very_end() {
        let pieces: Vec<_> = Extent::new(u64::MAX - 5, 5).unwrap().pieces(2).collect();
        let lengths: Vec<_> = pieces.iter().map(|p| p.length()).collect();
        assert_eq!(lengths, [2, 2, 1]);
        assert_eq!(pieces[2].end(), u64::MAX);
        assert_eq!(Extent::new(7, 0).unwrap().pieces(4).count(), 0);
    }
}
