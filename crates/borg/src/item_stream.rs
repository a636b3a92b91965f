//! Reading items from a stream of bytes that arrives in pieces cut anywhere.

use std::collections::VecDeque;

use crate::msgpack::{DecodeError, Reader};
use crate::{ChunkId, ChunkRef, Item, Name};

/// Items have some twenty keys.
const MAX_KEYS: usize = 200;

/// Largest value of one key, chunk lists excepted.
const MAX_VALUE: usize = 16 << 20;

/// Longest chunk list: 256 TiB in chunks of 4 MiB.
const MAX_CHUNKS: usize = 1 << 26;

/// Why items could not be read; a description.
pub type StreamError = &'static str;

/// Parses items as their bytes arrive. Chunk lists are taken in entry by entry, so that the memory needed is that of the
/// items and of one piece.
#[derive(Debug, Default)]
pub struct ItemParser {
    /// Bytes that are not parsed yet.
    buffer: Vec<u8>,
    /// Parsing again makes sense from this many bytes on.
    enough: usize,
    item: Option<Partial>,
    done: VecDeque<Item>,
}

/// An item in the making.
#[derive(Debug)]
struct Partial {
    item: Item,
    keys_left: usize,
    list: Option<List>,
    has_path: bool,
    has_mtime: bool,
}

/// A chunk list in the making.
#[derive(Debug)]
struct List {
    healthy: bool,
    left: usize,
    chunks: Vec<ChunkRef>,
}

/// What stopped the parser.
enum Stop {
    Incomplete(usize),
    Invalid(StreamError),
}

impl From<DecodeError> for Stop {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Incomplete(missing) => Self::Incomplete(missing),
            DecodeError::Invalid(reason) => Self::Invalid(reason),
        }
    }
}

impl ItemParser {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < self.enough {
            return Ok(());
        }
        let mut used = 0;
        let missing = loop {
            let rest = self.buffer.get(used..).unwrap_or_default();
            if rest.is_empty() {
                break 0;
            }
            let mut reader = Reader::new(rest);
            match step(&mut self.item, &mut reader, &mut self.done) {
                Ok(()) => used += rest.len() - reader.remaining().len(),
                Err(Stop::Incomplete(missing)) => break missing,
                Err(Stop::Invalid(reason)) => return Err(reason),
            }
        };
        self.buffer.drain(..used);
        if self.buffer.len().saturating_add(missing) > MAX_VALUE {
            return Err("a value is too large");
        }
        // A value that comes in many small pieces is not tried again for each of them.
        self.enough = self.buffer.len() + missing.max(self.buffer.len() / 4);
        Ok(())
    }

    /// The next complete item.
    pub fn next_item(&mut self) -> Option<Item> {
        self.done.pop_front()
    }

    /// To be called at the end of the stream, which must not be inside an item.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.enough > self.buffer.len() {
            self.enough = 0;
            self.feed(&[])?;
        }
        if self.buffer.is_empty() && self.item.is_none() {
            Ok(())
        } else {
            Err("the items end early")
        }
    }
}

/// Parses the next head, key with value, or entry of a chunk list.
fn step(
    current: &mut Option<Partial>,
    reader: &mut Reader<'_>,
    done: &mut VecDeque<Item>,
) -> Result<(), Stop> {
    let Some(partial) = current else {
        let keys_left = reader.map_len()?;
        if !(1..=MAX_KEYS).contains(&keys_left) {
            return Err(Stop::Invalid("an item has an unlikely number of keys"));
        }
        *current = Some(Partial {
            item: Item::default(),
            keys_left,
            list: None,
            has_path: false,
            has_mtime: false,
        });
        return Ok(());
    };
    match &mut partial.list {
        Some(list) => {
            list.chunks.push(chunk_ref(reader)?);
            list.left -= 1;
        }
        None => partial.field(reader)?,
    }
    if let Some(list) = partial.list.take_if(|list| list.left == 0) {
        let chunks = Some(list.chunks);
        if list.healthy {
            partial.item.chunks_healthy = chunks;
        } else {
            partial.item.chunks = chunks;
        }
    }
    if partial.list.is_none() && partial.keys_left == 0 {
        if !partial.has_path || !partial.has_mtime {
            return Err(Stop::Invalid("an item lacks its path or time"));
        }
        done.extend(current.take().map(|partial| partial.item));
    }
    Ok(())
}

fn chunk_ref(reader: &mut Reader<'_>) -> Result<ChunkRef, Stop> {
    let invalid = || Stop::Invalid("an entry of a chunk list is malformed");
    if reader.array_len()? != 3 {
        return Err(invalid());
    }
    let id = ChunkId::from_slice(reader.raw()?).ok_or_else(invalid)?;
    let size = u32::try_from(reader.unsigned()?).map_err(|_| invalid())?;
    // Statistics only; whatever does not fit says nothing.
    let csize = u32::try_from(reader.unsigned()?).unwrap_or(0);
    Ok(ChunkRef { id, size, csize })
}

impl Partial {
    /// Parses one key with its value, or with the head of its chunk list. Changes nothing unless all of it is there.
    fn field(&mut self, reader: &mut Reader<'_>) -> Result<(), Stop> {
        let key = reader.raw()?;
        if matches!(key, b"chunks" | b"chunks_healthy") && reader.clone().array_len().is_ok() {
            let left = reader.array_len()?;
            if left > MAX_CHUNKS {
                return Err(Stop::Invalid("a chunk list is too long"));
            }
            self.list = Some(List {
                healthy: key != b"chunks",
                left,
                chunks: Vec::new(),
            });
            self.keys_left -= 1;
            return Ok(());
        }
        let value = reader.value()?;
        self.keys_left -= 1;
        let item = &mut self.item;
        let name = || value.as_raw().map(Name::from);
        match key {
            b"path" => {
                item.path = name().ok_or(Stop::Invalid("a path is no text"))?;
                self.has_path = true;
            }
            b"mtime" => {
                item.mtime = value.as_i64().ok_or(Stop::Invalid("a time is no number"))?;
                self.has_mtime = true;
            }
            b"mode" => {
                let mode = value.as_u64().and_then(|mode| u32::try_from(mode).ok());
                item.mode = mode.ok_or(Stop::Invalid("a mode is no number"))?;
            }
            b"uid" => item.uid = value.as_i64(),
            b"gid" => item.gid = value.as_i64(),
            b"user" => item.user = name(),
            b"group" => item.group = name(),
            b"atime" => item.atime = value.as_i64(),
            b"ctime" => item.ctime = value.as_i64(),
            b"size" => item.size = value.as_u64(),
            b"part" => item.part = value.as_i64(),
            b"source" => item.source = name(),
            b"hardlink_master" => item.hardlink_master = value.as_bool(),
            // Old archives have nil for "no content".
            b"chunks" | b"chunks_healthy" => {}
            _ => item.extra.push((Name::from(key), value)),
        }
        Ok(())
    }
}
