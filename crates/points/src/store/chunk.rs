//! Chunks: what content is stored in, once each.

use std::fmt;
use std::str::FromStr;

use super::error::{Kind, Result, StoreError};

/// The id of a chunk: a keyed hash over its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ChunkId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || StoreError::new(Kind::Damaged, format!("{text} is no object's id"));
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
            .collect();
        let digits = digits.ok_or_else(bad)?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        match bytes.try_into() {
            Ok(id) if rest.is_empty() => Ok(Self(id)),
            _ => Err(bad()),
        }
    }
}

/// A chunk in a list of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Its id.
    pub id: ChunkId,
    /// Bytes of content.
    pub size: u32,
    /// Bytes as stored, where that is known: for statistics only.
    pub stored: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = ChunkId(std::array::from_fn(|at| at as u8 * 7));
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        let text = id.to_string();
        for bad in [&text[1..], &format!("{text}0"), &format!("{}g", &text[1..]), ""] {
            assert!(bad.parse::<ChunkId>().is_err(), "{bad}");
        }
    }
}
