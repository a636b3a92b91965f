//! Entries of a segment, the files of which the log of a repository consists.
//!
//! A segment begins with `BORG_SEG`. Entries follow: CRC-32 of all behind it, length of the whole entry, tag (0 PUT,
//! 1 DELETE, 2 COMMIT), all little-endian; for PUT and DELETE the id; for PUT the object. No entry is longer than
//! 20 MiB (Borg's `LoggedIO`). A transaction ends with a COMMIT that is the last entry of its segment.

use std::sync::Arc;

use crate::error::Doing as _;
use crate::files::{File, read_exact_at};
use crate::index::word;
use crate::{Error, Id, Result};

/// What a segment begins with.
pub(crate) const MAGIC: &[u8; 8] = b"BORG_SEG";
/// Checksum, length and tag.
const HEAD: usize = 9;
/// The same and an id.
pub(crate) const ID_HEAD: usize = 41;
/// Length of the longest entry.
pub(crate) const MAX_ENTRY: usize = 20 << 20;
/// Length of the longest object.
pub const MAX_OBJECT: usize = MAX_ENTRY - ID_HEAD;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// An object follows.
    Put,
    /// The object is no more.
    Delete,
    /// All that was written before counts.
    Commit,
}

/// The head of an entry, which is all of it but an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub tag: Tag,
    /// Of what; nothing for a COMMIT.
    pub id: Id,
    /// Where it begins.
    pub offset: u32,
    /// How long it is, head and object.
    pub len: u32,
}

/// The bytes of an entry in front of the object.
pub(crate) fn head(tag: Tag, id: &Id, object: &[u8]) -> ([u8; ID_HEAD], usize) {
    let mut head = [0; ID_HEAD];
    let len = if tag == Tag::Commit { HEAD } else { ID_HEAD };
    head[4..8].copy_from_slice(&((len + object.len()) as u32).to_le_bytes());
    head[8] = tag as u8;
    head[HEAD..].copy_from_slice(&id.0);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[4..len]);
    crc.update(object);
    head[..4].copy_from_slice(&crc.finalize().to_le_bytes());
    (head, len)
}

/// Tag and length, if they can be those of an entry.
fn parse(head: &[u8]) -> Result<(Tag, usize), &'static str> {
    let tag = match head[8] {
        0 => Tag::Put,
        1 => Tag::Delete,
        2 => Tag::Commit,
        _ => return Err("an entry has an unknown tag"),
    };
    let len = word(head, 4) as usize;
    let fits = match tag {
        Tag::Put => (ID_HEAD..=MAX_ENTRY).contains(&len),
        Tag::Delete => len == ID_HEAD,
        Tag::Commit => len == HEAD,
    };
    if fits {
        Ok((tag, len))
    } else {
        Err("an entry has a length that cannot be")
    }
}

/// Length of the PUT of `id` at an offset, its object not read.
pub(crate) fn put_len(file: &dyn File, name: &str, offset: u32, id: &Id) -> Result<u32> {
    put_head(file, name, offset, id).map(|(_, len)| len as u32)
}

fn put_head(file: &dyn File, name: &str, offset: u32, id: &Id) -> Result<([u8; ID_HEAD], usize)> {
    let mut head = [0; ID_HEAD];
    read(file, name, &mut head, offset.into())?;
    match parse(&head) {
        Ok((Tag::Put, len)) if head[HEAD..] == id.0 => Ok((head, len)),
        Ok(_) => Err(damaged(
            name,
            offset.into(),
            "the entry is not the one that the index names",
        )),
        Err(reason) => Err(damaged(name, offset.into(), reason)),
    }
}

/// Reads the object of `id` at an offset into a buffer, whose former content is lost, and checks it. After an error
/// anything may be in the buffer.
pub(crate) fn get(file: &dyn File, name: &str, offset: u32, id: &Id, object: &mut Vec<u8>) -> Result<()> {
    let (head, len) = put_head(file, name, offset, id)?;
    object.resize(len - ID_HEAD, 0);
    read(file, name, object, u64::from(offset) + ID_HEAD as u64)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[4..]);
    crc.update(object);
    if crc.finalize() == word(&head, 0) {
        Ok(())
    } else {
        Err(damaged(name, offset.into(), "an entry's checksum is wrong"))
    }
}

fn read(file: &dyn File, name: &str, buffer: &mut [u8], offset: u64) -> Result<()> {
    read_exact_at(file, buffer, offset).or_else(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Err(damaged(name, offset, "the segment ends within an entry"))
        } else {
            Err(error).doing("read", name)
        }
    })
}

fn damaged(name: &str, offset: u64, reason: &str) -> Error {
    Error::damaged(name, format!("{reason} (at {offset})"))
}

/// All entries of a segment, one after the other, each with its checksum proved.
pub(crate) struct Entries {
    file: Arc<dyn File>,
    name: String,
    len: u64,
    at: u64,
    buffer: Vec<u8>,
}

/// Bytes that are read at a time.
const PIECE: usize = 1 << 18;

impl Entries {
    /// Begins to read a segment.
    pub(crate) fn of(file: Arc<dyn File>, name: String) -> Result<Self> {
        let len = file.len().doing("examine", &name)?;
        let mut magic = [0; MAGIC.len()];
        read(&*file, &name, &mut magic, 0)?;
        if magic != *MAGIC {
            return Err(damaged(&name, 0, "it is no segment"));
        }
        Ok(Self {
            file,
            name,
            len,
            at: MAGIC.len() as u64,
            buffer: Vec::new(),
        })
    }

    /// Length of the segment.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The next entry; `None` behind the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.at >= self.len {
            return Ok(None);
        }
        let fail = |reason| damaged(&self.name, self.at, reason);
        let mut head = [0; ID_HEAD];
        let here = (self.len - self.at).min(ID_HEAD as u64) as usize;
        if here < HEAD {
            return Err(fail("the segment ends within an entry"));
        }
        read(&*self.file, &self.name, &mut head[..here], self.at)?;
        let (tag, len) = parse(&head).map_err(fail)?;
        if len as u64 > self.len - self.at {
            return Err(fail("the segment ends within an entry"));
        }
        let head_len = len.min(ID_HEAD);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[4..head_len]);
        let (mut at, end) = (self.at + head_len as u64, self.at + len as u64);
        while at < end {
            self.buffer.resize((end - at).min(PIECE as u64) as usize, 0);
            read(&*self.file, &self.name, &mut self.buffer, at)?;
            crc.update(&self.buffer);
            at += self.buffer.len() as u64;
        }
        if crc.finalize() != word(&head, 0) {
            return Err(fail("an entry's checksum is wrong"));
        }
        let offset = u32::try_from(self.at).map_err(|_| fail("the segment is too long"))?;
        self.at = end;
        let id = if tag == Tag::Commit {
            Id::MANIFEST
        } else {
            id(&head)
        };
        Ok(Some(Entry {
            tag,
            id,
            offset,
            len: len as u32,
        }))
    }
}

fn id(head: &[u8; ID_HEAD]) -> Id {
    let mut id = [0; 32];
    id.copy_from_slice(&head[HEAD..]);
    Id(id)
}

/// True if a segment is whole and ends with its only kind of COMMIT: one behind which nothing else comes.
pub(crate) fn ends_with_commit(file: Arc<dyn File>, name: String) -> Result<bool> {
    let commit = head(Tag::Commit, &Id::MANIFEST, &[]).0;
    let len = file.len().doing("examine", &name)?;
    let Some(last) = len.checked_sub(HEAD as u64) else {
        return Ok(false);
    };
    let mut tail = [0; HEAD];
    read(&*file, &name, &mut tail, last)?;
    if tail != commit[..HEAD] {
        return Ok(false);
    }
    let whole = || {
        let mut entries = Entries::of(file, name)?;
        let mut committed = false;
        while let Some(entry) = entries.next()? {
            if entry.tag != Tag::Commit && committed {
                return Ok(false);
            }
            committed = entry.tag == Tag::Commit;
        }
        Ok(committed)
    };
    match whole() {
        Err(Error::Damaged { .. }) => Ok(false),
        other => other,
    }
}

#[cfg(test)]
mod tests;
