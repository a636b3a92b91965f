//! The dialect of msgpack that Borg 1.x speaks: the old specification, in which text and bytes are both "raw".
//!
//! Writing never produces the newer `str8` and `bin` types, because stock Borg's fast parsers do not know them.
//! Reading accepts them. Everything read is bounded in depth and never trusted to announce its own size.

mod read;
mod write;

pub use read::{DecodeError, Reader};
pub use write::Writer;

/// Deepest nesting that is read. Borg itself nests four levels.
pub const MAX_DEPTH: usize = 16;

/// Any msgpack value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nil.
    Nil,
    /// A truth value.
    Bool(bool),
    /// An integer in the range of both `i64` and `u64`.
    Int(i128),
    /// A floating point number.
    Float(f64),
    /// Text or bytes.
    Raw(Vec<u8>),
    /// An array.
    Array(Vec<Value>),
    /// A map in the order it was read.
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// Value of a text key in a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Map(pairs) => pairs
                .iter()
                .find(|(k, _)| k.as_raw() == Some(key.as_bytes()))
                .map(|(_, v)| v),
            _ => None,
        }
    }

    /// Bytes of a raw value.
    pub fn as_raw(&self) -> Option<&[u8]> {
        match self {
            Self::Raw(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Text of a raw value, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        self.as_raw().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A signed integer. Numbers beyond `i64` saturate; Borg packs those as little-endian bytes.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => {
                Some(i64::try_from(*number).unwrap_or(if *number < 0 { i64::MIN } else { i64::MAX }))
            }
            Self::Raw(bytes) => bytes
                .last()
                .map(|last| if last & 0x80 == 0 { i64::MAX } else { i64::MIN }),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Elements of an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    /// Pairs of a map.
    pub fn as_map(&self) -> Option<&[(Value, Value)]> {
        match self {
            Self::Map(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// A map from text keys, sorted as Borg sorts them.
    pub fn map<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let mut value = Self::Map(pairs.into_iter().map(|(k, v)| (Self::from(k), v)).collect());
        value.sort();
        value
    }

    /// Puts a value under a text key of a map, replacing what was there. Anything but a map stays as it is.
    pub fn set(&mut self, key: &str, value: Value) {
        if let Self::Map(pairs) = self {
            match pairs.iter_mut().find(|(k, _)| k.as_raw() == Some(key.as_bytes())) {
                Some(pair) => pair.1 = value,
                None => pairs.push((Self::from(key), value)),
            }
        }
    }

    /// Sorts all maps by their keys, as stock Borg packs them.
    pub fn sort(&mut self) {
        match self {
            Self::Array(values) => values.iter_mut().for_each(Self::sort),
            Self::Map(pairs) => {
                for (_, value) in pairs.iter_mut() {
                    value.sort();
                }
                pairs.sort_by(|(a, _), (b, _)| a.as_raw().cmp(&b.as_raw()));
            }
            _ => {}
        }
    }

    /// Packs the value.
    pub fn pack(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.value(self);
        writer.into_bytes()
    }

    /// Unpacks exactly one value from `bytes`.
    pub fn unpack(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = reader.value()?;
        if reader.remaining().is_empty() {
            Ok(value)
        } else {
            Err(DecodeError::Invalid("trailing bytes"))
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Raw(text.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Raw(bytes.to_vec())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(number.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
