//! What a backup has to do with each part of a disk, and its exchange form.
//!
//! The form is text, one run a line, `START LENGTH data|zero|same` in decimal bytes: the lines follow each other
//! without a gap from 0 to the end of the disk.

use std::{fmt, str::FromStr};

use crate::{
    cover::{Cover, ExtentMap, Kind},
    extent::RangeError,
    ranges::RangeSet,
};

/// What is to be done with a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// May have changed, and may hold anything: read it.
    Data,
    /// Reads as zeroes now: no need to read it.
    Zero,
    /// As it was in the parent: refer to that.
    Same,
}

/// What is to be done with each byte of a disk.
pub type ChangeMap = Cover<Change>;

/// The most runs a parsed map may have: more than any bitmap of a 1 PiB disk in clusters of 64 MiB, and well
/// below what would hurt.
pub const MAX_RUNS: usize = 1 << 24;

impl ChangeMap {
    /// The map of a full backup: all is new.
    pub fn full(allocation: &ExtentMap) -> Self {
        Self::incremental(allocation, &RangeSet::all(allocation.size()))
    }

    /// The map of an incremental backup: `changed` bytes are data or zero as `allocation` has them now, the
    /// others are the same.
    pub fn incremental(allocation: &ExtentMap, changed: &RangeSet) -> Self {
        let size = allocation.size();
        let mut map = Self::new();
        for (part, changed) in Cover::of_ranges(size, changed, true, false).iter() {
            for (run, kind) in allocation.within(part) {
                let change = match (changed, kind) {
                    (false, _) => Change::Same,
                    (true, Kind::Data) => Change::Data,
                    (true, Kind::Zero) => Change::Zero,
                };
                // Both covers end at `size`, so that this cannot overflow.
                let _ = map.push(run.length(), change);
            }
        }
        map
    }
}

/// A change map whose text makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapParseError {
    /// Not three fields, or not numbers, or not a known kind.
    #[error("line {line} of the change map is not 'START LENGTH data|zero|same'")]
    Syntax {
        /// Counted from 1.
        line: usize,
    },
    /// A run does not start where the one before ends.
    #[error("line {line} of the change map starts at {found} instead of {expected}")]
    Gap {
        /// Counted from 1.
        line: usize,
        /// Where the run before ends.
        expected: u64,
        /// Where this one starts.
        found: u64,
    },
    /// A run is empty or ends beyond 2^64.
    #[error("line {line} of the change map has an impossible length")]
    Length {
        /// Counted from 1.
        line: usize,
    },
    /// More than [`MAX_RUNS`] lines.
    #[error("the change map has more than {MAX_RUNS} lines")]
    TooLong,
}

impl FromStr for ChangeMap {
    type Err = MapParseError;

    fn from_str(text: &str) -> Result<Self, MapParseError> {
        let mut map = Self::new();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            if line > MAX_RUNS {
                return Err(MapParseError::TooLong);
            }
            let (start, length, change) = parse_line(text).ok_or(MapParseError::Syntax { line })?;
            if start != map.size() {
                return Err(MapParseError::Gap {
                    line,
                    expected: map.size(),
                    found: start,
                });
            }
            if length == 0 {
                return Err(MapParseError::Length { line });
            }
            map.push(length, change)
                .map_err(|_: RangeError| MapParseError::Length { line })?;
        }
        Ok(map)
    }
}

fn parse_line(text: &str) -> Option<(u64, u64, Change)> {
    let mut fields = text.split(' ');
    let number = |field: &str| {
        field
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| field.parse().ok())?
    };
    let start = number(fields.next()?)?;
    let length = number(fields.next()?)?;
    let change = match fields.next()? {
        "data" => Change::Data,
        "zero" => Change::Zero,
        "same" => Change::Same,
        _ => return None,
    };
    fields.next().is_none().then_some((start, length, change))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Zero => "zero",
            Self::Same => "same",
        })
    }
}

impl fmt::Display for ChangeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter()
            .try_for_each(|(run, change)| writeln!(f, "{} {} {change}", run.offset(), run.length()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::extent::Extent;

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![Just(Change::Data), Just(Change::Zero), Just(Change::Same)]
    }

    proptest! {
        #[test]
        fn text_round_trips(runs in proptest::collection::vec((0u64..1 << 50, change()), 0..30)) {
            let mut map = ChangeMap::new();
            for (length, change) in runs {
                map.push(length, change).unwrap();
            }
            prop_assert_eq!(map.to_string().parse::<ChangeMap>().unwrap(), map);
        }

        #[test]
        fn hostile_text_never_panics(text in "[0-9 a-z\n-]{0,80}") {
            if let Ok(map) = text.parse::<ChangeMap>() {
                prop_assert_eq!(map.to_string().parse::<ChangeMap>().unwrap(), map);
            }
        }

        #[test]
        fn only_changed_bytes_are_touched(data in proptest::collection::vec(any::<(bool, bool)>(), 1..80)) {
            let size = data.len() as u64;
            let pick = |f: fn(&(bool, bool)) -> bool| -> RangeSet {
                let bytes = data.iter().enumerate().filter(|(_, x)| f(x));
                bytes.map(|(at, _)| Extent::new(at as u64, 1).unwrap()).collect()
            };
            let allocation = ExtentMap::of_ranges(size, &pick(|x| x.0), Kind::Data, Kind::Zero);
            let map = ChangeMap::incremental(&allocation, &pick(|x| x.1));
            prop_assert_eq!(map.size(), size);
            for (at, (data, changed)) in data.iter().enumerate() {
                let expected = match (changed, data) {
                    (false, _) => Change::Same,
                    (true, true) => Change::Data,
                    (true, false) => Change::Zero,
                };
                prop_assert_eq!(map.at(at as u64), Some(expected));
            }
            prop_assert_eq!(ChangeMap::full(&allocation).total_of(Change::Same), 0);
        }
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let parse = |text: &str| text.parse::<ChangeMap>().unwrap_err();
        assert_eq!(
            parse("0 10 data\n11 5 zero"),
            MapParseError::Gap {
                line: 2,
                expected: 10,
                found: 11
            }
        );
        assert_eq!(parse("0 0 data"), MapParseError::Length { line: 1 });
        assert_eq!(
            parse("0 18446744073709551615 data\n18446744073709551615 1 zero").to_string(),
            "line 2 of the change map has an impossible length"
        );
        for wrong in [
            "0 1",
            "0 1 data x",
            "0 +1 data",
            "0 1 DATA",
            "",
            " 0 1 data",
            "0  1 data",
            "0 99999999999999999999 data",
        ] {
            assert_eq!(
                parse(&format!("{wrong}\n")),
                MapParseError::Syntax { line: 1 },
                "{wrong}"
            );
        }
    }
}
