//! Ids and modes from their text.

use std::str::FromStr;

use crate::{ChunkId, Encryption, Error, Result};

impl FromStr for ChunkId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
        let mut id = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != id.len() || !rest.is_empty() {
            return Err(Error::damaged(text, "an object id has 64 hexadecimal digits"));
        }
        for (byte, [high, low]) in id.iter_mut().zip(pairs) {
            *byte = match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(Error::damaged(text, "an object id has 64 hexadecimal digits")),
            };
        }
        Ok(Self(id))
    }
}

impl FromStr for Encryption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| Error::Setting {
                name: "encryption",
                reason: format!("{text:?} is no mode of Borg 1.x"),
            })
    }
}
