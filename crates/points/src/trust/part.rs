//! Shares of all that a repository holds, so that reading everything can be spread over many nights.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::store::ChunkId;

/// Which share of all chunks is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// This one.
    Part(Part),
    /// Of so many the one after that which was read last, VM by VM: a cycle that goes on where it was left.
    Next(NonZeroU32),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("next/").map(str::parse) {
            Some(of) => of
                .map(Self::Next)
                .map_err(|_| "expected next/N, such as next/30".to_owned()),
            None => text.parse().map(Self::Part),
        }
    }
}

/// A share of all chunks, the same each time: `1/30` to `30/30` together are everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    number: u32,
    of: NonZeroU32,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(number, of)| {
            let (number, of): (u32, NonZeroU32) = (number.parse().ok()?, of.parse().ok()?);
            (1..=of.get()).contains(&number).then_some(Self { number, of })
        });
        parts.ok_or_else(|| "expected K/N with K from 1 to N, such as 1/30".to_owned())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.of)
    }
}

impl Part {
    /// The first of so many.
    pub const fn first(of: NonZeroU32) -> Self {
        Self { number: 1, of }
    }

    /// The one to read after this one. With another number of parts a cycle begins anew.
    #[must_use]
    pub fn next(self, of: NonZeroU32) -> Self {
        if self.of == of && self.number < of.get() {
            let number = self.number + 1;
            Self { number, of }
        } else {
            Self::first(of)
        }
    }

    /// Whether a chunk belongs to it. Ids are keyed hashes, so all parts are of about one size.
    pub fn has(self, id: &ChunkId) -> bool {
        let [a, b, c, d, ..] = id.0;
        let place = (u64::from(u32::from_be_bytes([a, b, c, d])) * u64::from(self.of.get())) >> 32;
        place + 1 == u64::from(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_cover_everything_once() {
        for of in [1u32, 2, 7, 30, 365] {
            for first in (0..=u8::MAX).step_by(3) {
                for second in [0, 1, 127, 255] {
                    let mut id = [0x5a; 32];
                    (id[0], id[1], id[3]) = (first, second, second);
                    let having = (1..=of)
                        .map(|number| format!("{number}/{of}").parse::<Part>().unwrap())
                        .filter(|part| part.has(&ChunkId(id)))
                        .count();
                    assert_eq!(having, 1, "{of}");
                }
            }
        }
        // In the order of the ids, so that all parts are of about one size.
        for (first, part) in [
            (0, "1/4"),
            (0x3f, "1/4"),
            (0x40, "2/4"),
            (0x80, "3/4"),
            (0xff, "4/4"),
        ] {
            let part: Part = part.parse().unwrap();
            assert!(part.has(&ChunkId([first; 32])), "{first} {part}");
        }
        for bad in [
            "", "1", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3", "next", "next/0", "next/x", "Next/3",
        ] {
            bad.parse::<Part>().unwrap_err();
            bad.parse::<Share>().unwrap_err();
        }
        let of = NonZeroU32::new(3).unwrap();
        assert_eq!("next/3".parse(), Ok(Share::Next(of)));
        let mut part = Part::first(of);
        for expected in ["1/3", "2/3", "3/3", "1/3"] {
            assert_eq!(Ok(part), expected.parse());
            assert_eq!(part.to_string(), expected);
            part = part.next(of);
        }
        assert_eq!(
            part.next(NonZeroU32::MIN),
            Part::first(NonZeroU32::MIN),
            "another number of parts"
        );
    }
}
