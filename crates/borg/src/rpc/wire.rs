//! Messages between client and `borg serve`: msgpack maps, one after the other, without any framing.
//!
//! Request: `{i: number, m: method, a: {argument: value}}`. Reply: `{i, r: result}`, or
//! `{i, exception_class, exception_args, exception_short, …}`.

use std::ops::{Deref, Range};

use crate::msgpack::{DecodeError, Reader, Value, Writer};

/// Longest message accepted; Borg's own limit for its buffers.
pub(crate) const MAX_MESSAGE: usize = 60 << 20;

/// An exception as the server reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exception {
    /// Name of the class.
    pub class: String,
    /// First argument that is a number, for operating system errors.
    pub errno: Option<i64>,
    /// Text for people, with control characters escaped.
    pub message: String,
}

/// A parsed reply.
#[derive(Debug)]
pub struct Reply {
    /// Number of the request it answers.
    pub id: u64,
    /// Where the result is in the message, or the exception.
    pub result: Result<Range<usize>, Exception>,
}

/// Bytes of an object inside the message that brought it.
#[derive(Debug)]
pub struct Object {
    message: Vec<u8>,
    range: Range<usize>,
}

impl Object {
    pub(crate) fn new(message: Vec<u8>, range: Range<usize>) -> Self {
        Self { message, range }
    }

    /// From a result that is a byte string to the bytes themselves.
    pub(crate) fn into_raw(self) -> Result<Self, DecodeError> {
        let len = Reader::new(&self).raw()?.len();
        // The byte string is the whole result, so it is its end.
        Ok(Self {
            range: self.range.end - len..self.range.end,
            message: self.message,
        })
    }
}

impl From<Vec<u8>> for Object {
    fn from(message: Vec<u8>) -> Self {
        let range = 0..message.len();
        Self { message, range }
    }
}

impl From<Object> for (Vec<u8>, Range<usize>) {
    fn from(object: Object) -> Self {
        (object.message, object.range)
    }
}

impl Deref for Object {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.message.get(self.range.clone()).unwrap_or_default()
    }
}

/// Length of the first message in `bytes`, or how many more bytes it surely needs.
pub fn message_len(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut reader = Reader::new(bytes);
    if !matches!(bytes.first(), None | Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(DecodeError::Invalid("a message is a map"));
    }
    reader.skip()?;
    Ok(bytes.len() - reader.remaining().len())
}

/// Parses one complete message.
pub fn parse_reply(message: &[u8]) -> Result<Reply, DecodeError> {
    let mut reader = Reader::new(message);
    let (mut id, mut result, mut class, mut args, mut short) = (None, None, None, None, None);
    for _ in 0..reader.map_len()? {
        match reader.raw()? {
            b"i" => id = Some(reader.unsigned()?),
            b"r" => {
                let start = message.len() - reader.remaining().len();
                reader.skip()?;
                result = Some(start..message.len() - reader.remaining().len());
            }
            b"exception_class" => class = Some(printable(reader.raw()?)),
            b"exception_args" => args = Some(reader.value()?),
            b"exception_short" => short = Some(reader.value()?),
            _ => reader.skip()?,
        }
    }
    let id = id.ok_or(DecodeError::Invalid("a reply without a number"))?;
    let result = match (class, result) {
        (Some(class), _) => {
            let args = args.as_ref().and_then(Value::as_array).unwrap_or_default();
            Err(Exception {
                class,
                errno: args.first().and_then(Value::as_i64),
                message: describe(short.as_ref(), args),
            })
        }
        (None, Some(range)) => Ok(range),
        (None, None) => return Err(DecodeError::Invalid("a reply without a result")),
    };
    Ok(Reply { id, result })
}

fn describe(short: Option<&Value>, args: &[Value]) -> String {
    let join = |values: &[Value]| {
        let texts: Vec<String> = values
            .iter()
            .filter_map(Value::as_raw)
            .take(8)
            .map(printable)
            .collect();
        texts.join("; ")
    };
    let text = short
        .and_then(Value::as_array)
        .map(join)
        .filter(|text| !text.is_empty());
    text.unwrap_or_else(|| join(args))
}

/// Text from the server, safe to show, of bounded length.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = crate::Name::from(bytes.trim_ascii()).to_string();
    text.chars().take(2000).collect()
}

/// Head of a request; the arguments follow.
pub(crate) fn request(id: u64, method: &str, arguments: &[(&str, Value)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map_len(3);
    writer.raw(b"i");
    writer.int(id.into());
    writer.raw(b"m");
    writer.raw(method.as_bytes());
    writer.raw(b"a");
    writer.map_len(arguments.len());
    for (name, value) in arguments {
        writer.raw(name.as_bytes());
        writer.value(value);
    }
    writer.into_bytes()
}

/// A `put` request up to the object's bytes, which have to follow.
pub(crate) fn put_request(id: u64, object: &[u8; 32], len: usize) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map_len(3);
    writer.raw(b"i");
    writer.int(id.into());
    writer.raw(b"m");
    writer.raw(b"put");
    writer.raw(b"a");
    writer.map_len(2);
    writer.raw(b"id");
    writer.raw(object);
    writer.raw(b"data");
    writer.raw_len(len);
    writer.into_bytes()
}
