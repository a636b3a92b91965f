//! A pull reader over a byte slice.

use super::{MAX_DEPTH, Value};

/// Why bytes could not be read as msgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early; at least this many more are needed.
    #[error("msgpack data ends {0} bytes early")]
    Incomplete(usize),
    /// The bytes are not what is expected here.
    #[error("invalid msgpack: {0}")]
    Invalid(&'static str),
}

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads values one after the other. After an error the position is unspecified.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What is not read yet.
    pub fn remaining(&self) -> &'a [u8] {
        self.bytes
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.bytes.split_at_checked(len) {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(head)
            }
            None => Err(DecodeError::Incomplete(len - self.bytes.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.bytes = tail;
                Ok(*head)
            }
            None => Err(DecodeError::Incomplete(N - self.bytes.len())),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn len8(&mut self) -> Result<usize> {
        self.byte().map(usize::from)
    }

    fn len16(&mut self) -> Result<usize> {
        self.array().map(u16::from_be_bytes).map(usize::from)
    }

    fn len32(&mut self) -> Result<usize> {
        self.array().map(u32::from_be_bytes).map(|len| len as usize)
    }

    /// Reads the head of an array and returns how many elements it announces.
    pub fn array_len(&mut self) -> Result<usize> {
        match self.byte()? {
            tag @ 0x90..=0x9f => Ok(usize::from(tag & 0x0f)),
            0xdc => self.len16(),
            0xdd => self.len32(),
            _ => Err(DecodeError::Invalid("not an array")),
        }
    }

    /// Reads the head of a map and returns how many pairs it announces.
    pub fn map_len(&mut self) -> Result<usize> {
        match self.byte()? {
            tag @ 0x80..=0x8f => Ok(usize::from(tag & 0x0f)),
            0xde => self.len16(),
            0xdf => self.len32(),
            _ => Err(DecodeError::Invalid("not a map")),
        }
    }

    /// Reads text or bytes.
    pub fn raw(&mut self) -> Result<&'a [u8]> {
        let len = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xc4 | 0xd9 => self.len8()?,
            0xc5 | 0xda => self.len16()?,
            0xc6 | 0xdb => self.len32()?,
            _ => return Err(DecodeError::Invalid("not a byte string")),
        };
        self.take(len)
    }

    /// Reads an integer that is not negative.
    pub fn unsigned(&mut self) -> Result<u64> {
        match self.scalar()? {
            Some(Value::Int(number)) => {
                u64::try_from(number).map_err(|_| DecodeError::Invalid("negative number"))
            }
            _ => Err(DecodeError::Invalid("not a number")),
        }
    }

    /// Reads nil, a truth value or a number; `None` if something else starts here, which is then not consumed.
    fn scalar(&mut self) -> Result<Option<Value>> {
        let before = self.bytes;
        let tag = self.byte()?;
        Ok(Some(match tag {
            0x00..=0x7f => Value::Int(tag.into()),
            0xe0..=0xff => Value::Int((tag as i8).into()),
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xca => Value::Float(f32::from_be_bytes(self.array()?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Int(self.byte()?.into()),
            0xcd => Value::Int(u16::from_be_bytes(self.array()?).into()),
            0xce => Value::Int(u32::from_be_bytes(self.array()?).into()),
            0xcf => Value::Int(u64::from_be_bytes(self.array()?).into()),
            0xd0 => Value::Int(i8::from_be_bytes(self.array()?).into()),
            0xd1 => Value::Int(i16::from_be_bytes(self.array()?).into()),
            0xd2 => Value::Int(i32::from_be_bytes(self.array()?).into()),
            0xd3 => Value::Int(i64::from_be_bytes(self.array()?).into()),
            _ => {
                self.bytes = before;
                return Ok(None);
            }
        }))
    }

    /// Reads one value of any type.
    pub fn value(&mut self) -> Result<Value> {
        self.value_within(MAX_DEPTH)
    }

    fn value_within(&mut self, depth: usize) -> Result<Value> {
        if let Some(value) = self.scalar()? {
            return Ok(value);
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(DecodeError::Invalid("nested too deeply"));
        };
        match self.bytes.first().copied() {
            Some(0x90..=0x9f | 0xdc | 0xdd) => {
                let len = self.array_len()?;
                // An element takes at least one byte, which bounds what a hostile length can make us reserve.
                let mut values = Vec::with_capacity(len.min(self.bytes.len()).min(4096));
                for _ in 0..len {
                    values.push(self.value_within(depth)?);
                }
                Ok(Value::Array(values))
            }
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                let len = self.map_len()?;
                let mut pairs = Vec::with_capacity(len.min(self.bytes.len()).min(4096));
                for _ in 0..len {
                    pairs.push((self.value_within(depth)?, self.value_within(depth)?));
                }
                Ok(Value::Map(pairs))
            }
            Some(0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8) => {
                Err(DecodeError::Invalid("extension types are not used"))
            }
            _ => self.raw().map(Value::from),
        }
    }

    /// Passes over one value of any type.
    pub fn skip(&mut self) -> Result<()> {
        self.skip_within(MAX_DEPTH)
    }

    fn skip_within(&mut self, depth: usize) -> Result<()> {
        if self.scalar()?.is_some() {
            return Ok(());
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(DecodeError::Invalid("nested too deeply"));
        };
        let parts = match self.bytes.first().copied() {
            Some(0x90..=0x9f | 0xdc | 0xdd) => self.array_len()?,
            Some(0x80..=0x8f | 0xde | 0xdf) => self.map_len()?.saturating_mul(2),
            Some(0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8) => {
                return Err(DecodeError::Invalid("extension types are not used"));
            }
            _ => return self.raw().map(drop),
        };
        for _ in 0..parts {
            self.skip_within(depth)?;
        }
        Ok(())
    }
}
