//! A writer of the old msgpack specification.

use super::Value;

/// Packs values one after the other.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// What was packed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What was packed so far, leaving the writer empty.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Bytes packed so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing is packed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn tagged(&mut self, tag: u8, rest: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(rest);
    }

    fn head(&mut self, len: usize, short: u8, short_max: usize, tag16: u8) {
        if len <= short_max {
            self.bytes.push(short | len as u8);
        } else if let Ok(len) = u16::try_from(len) {
            self.tagged(tag16, &len.to_be_bytes());
        } else {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            self.tagged(tag16 + 1, &len.to_be_bytes());
        }
    }

    /// Head of a map of `len` pairs.
    pub fn map_len(&mut self, len: usize) {
        self.head(len, 0x80, 15, 0xde);
    }

    /// Head of an array of `len` elements.
    pub fn array_len(&mut self, len: usize) {
        self.head(len, 0x90, 15, 0xdc);
    }

    /// Head of a byte string of `len` bytes, which the caller writes.
    pub fn raw_len(&mut self, len: usize) {
        self.head(len, 0xa0, 31, 0xda);
    }

    /// Text or bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.raw_len(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// An integer, in its shortest form.
    pub fn int(&mut self, number: i128) {
        if let Ok(number) = u64::try_from(number) {
            match number {
                0..=0x7f => self.bytes.push(number as u8),
                0x80..=0xff => self.tagged(0xcc, &(number as u8).to_be_bytes()),
                0x100..=0xffff => self.tagged(0xcd, &(number as u16).to_be_bytes()),
                0x1_0000..=0xffff_ffff => self.tagged(0xce, &(number as u32).to_be_bytes()),
                _ => self.tagged(0xcf, &number.to_be_bytes()),
            }
        } else {
            match i64::try_from(number).unwrap_or(i64::MIN) {
                number @ -32..=-1 => self.bytes.push(number as i8 as u8),
                number @ -0x80..=-33 => self.tagged(0xd0, &(number as i8).to_be_bytes()),
                number @ -0x8000..=-0x81 => self.tagged(0xd1, &(number as i16).to_be_bytes()),
                number @ -0x8000_0000..=-0x8001 => self.tagged(0xd2, &(number as i32).to_be_bytes()),
                number => self.tagged(0xd3, &number.to_be_bytes()),
            }
        }
    }

    /// Nil.
    pub fn nil(&mut self) {
        self.bytes.push(0xc0);
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0xc3 } else { 0xc2 });
    }

    /// Any value.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Nil => self.nil(),
            Value::Bool(value) => self.bool(*value),
            Value::Int(number) => self.int(*number),
            Value::Float(number) => self.tagged(0xcb, &number.to_be_bytes()),
            Value::Raw(bytes) => self.raw(bytes),
            Value::Array(values) => {
                self.array_len(values.len());
                for value in values {
                    self.value(value);
                }
            }
            Value::Map(pairs) => {
                self.map_len(pairs.len());
                for (key, value) in pairs {
                    self.value(key);
                    self.value(value);
                }
            }
        }
    }
}
