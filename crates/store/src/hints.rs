//! `hints.T`: what compaction and the quota need to know.
//!
//! A msgpack map with `version` (2), `segments` (live PUTs of each segment), `compact` (bytes of each segment that
//! compaction would free), `storage_quota_use` (bytes of all PUT entries, superseded ones too) and, since Borg 1.2,
//! `shadow_index` (segments in which superseded PUTs of an id still are). Wrong numbers show only at a later
//! compaction, which would trust them.

use std::collections::{BTreeMap, HashMap};

use crate::Id;
use crate::msgpack::{Reader, Reason, Writer};

/// The bookkeeping of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Live PUTs of each segment.
    pub segments: BTreeMap<u32, i64>,
    /// Bytes of each segment that compaction would free.
    pub compact: BTreeMap<u32, i64>,
    /// Bytes of all PUT entries that are still in segments.
    pub quota_use: i64,
    /// In which segments superseded PUTs of an id are.
    pub shadow: HashMap<Id, Vec<u32>>,
}

impl Hints {
    /// Reads the content of a file as of a transaction.
    pub fn from_bytes(bytes: &[u8], transaction: u32) -> Result<Self, Reason> {
        let mut reader = Reader::new(bytes);
        let mut hints = Self::default();
        let mut version = None;
        for _ in 0..reader.map_len()? {
            match reader.raw()? {
                b"version" => version = Some(reader.int()?),
                b"segments" => hints.segments = numbers(&mut reader)?,
                b"compact" => hints.compact = numbers(&mut reader)?,
                b"storage_quota_use" => hints.quota_use = reader.int()?,
                b"shadow_index" => hints.shadow = shadow(&mut reader, transaction)?,
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        if version == Some(2) {
            Ok(hints)
        } else {
            Err("its version is not 2")
        }
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.map(5);
        writer.raw(b"version");
        writer.int(2);
        for (name, numbers) in [(&b"segments"[..], &self.segments), (b"compact", &self.compact)] {
            writer.raw(name);
            writer.map(numbers.len());
            for (segment, number) in numbers {
                writer.int((*segment).into());
                writer.int(*number);
            }
        }
        writer.raw(b"storage_quota_use");
        writer.int(self.quota_use);
        writer.raw(b"shadow_index");
        writer.map(self.shadow.len());
        for (id, segments) in &self.shadow {
            writer.raw(&id.0);
            writer.array(segments.len());
            for segment in segments {
                writer.int((*segment).into());
            }
        }
        writer.into_bytes()
    }

    /// A PUT of `size` bytes was written to a segment.
    pub fn put(&mut self, segment: u32, size: u32) {
        *self.segments.entry(segment).or_default() += 1;
        self.quota_use += i64::from(size);
    }

    /// The PUT of an id, of `size` bytes in `segment`, is superseded by what was written to the log after it.
    pub fn supersede(&mut self, id: &Id, segment: u32, size: u32) {
        *self.segments.entry(segment).or_default() -= 1;
        self.free(segment, size.into());
        self.shadow.entry(*id).or_default().push(segment);
    }

    /// Bytes of a segment are of no use once it is compacted.
    pub fn free(&mut self, segment: u32, bytes: i64) {
        *self.compact.entry(segment).or_default() += bytes;
    }
}

fn numbers(reader: &mut Reader<'_>) -> Result<BTreeMap<u32, i64>, Reason> {
    let mut numbers = BTreeMap::new();
    for _ in 0..reader.map_len()? {
        numbers.insert(segment(reader)?, reader.int()?);
    }
    Ok(numbers)
}

fn shadow(reader: &mut Reader<'_>, transaction: u32) -> Result<HashMap<Id, Vec<u32>>, Reason> {
    let mut shadow = HashMap::new();
    for _ in 0..reader.map_len()? {
        let id = reader.raw()?.try_into().map_err(|_| "an id has another length")?;
        let mut segments = Vec::new();
        for _ in 0..reader.array_len()? {
            // Borg drops what a transaction left behind that was never committed.
            segments.extend(Some(segment(reader)?).filter(|segment| *segment <= transaction));
        }
        shadow.insert(Id(id), segments);
    }
    Ok(shadow)
}

fn segment(reader: &mut Reader<'_>) -> Result<u32, Reason> {
    reader
        .int()?
        .try_into()
        .map_err(|_| "a segment number is out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints() -> Hints {
        let mut hints = Hints::default();
        for segment in 0..300 {
            hints.put(segment, 41 + segment * 70_000);
            hints.free(segment, 9);
        }
        hints.supersede(&Id([7; 32]), 3, 500);
        hints.supersede(&Id([7; 32]), 299, 4_000_000);
        hints
    }

    #[test]
    fn hints_come_back_as_they_were_written() {
        let hints = hints();
        assert_eq!((hints.segments[&3], hints.compact[&3]), (0, 509));
        assert_eq!(Hints::from_bytes(&hints.to_bytes(), 299).as_ref(), Ok(&hints));
        let empty = Hints::default();
        assert_eq!(Hints::from_bytes(&empty.to_bytes(), 0).as_ref(), Ok(&empty));
    }

    #[test]
    fn shadows_of_what_was_not_committed_are_dropped() {
        let read = Hints::from_bytes(&hints().to_bytes(), 298).unwrap();
        assert_eq!(read.shadow[&Id([7; 32])], [3]);
    }

    #[test]
    fn hints_of_borg_1_1_have_no_shadows() {
        let bytes = b"\x84\xa7version\x02\xa8segments\x81\x05\x01\xa7compact\x80\xb1storage_quota_use\x2a";
        let hints = Hints::from_bytes(bytes, 5).unwrap();
        assert_eq!(
            (hints.segments[&5], hints.quota_use, hints.shadow.len()),
            (1, 42, 0)
        );
    }

    #[test]
    fn hints_that_are_not_understood_are_refused() {
        let version_1 = b"\x83\xa7version\x01\xa8segments\x80\xa7compact\x90";
        assert!(Hints::from_bytes(version_1, 5).is_err());
        let bytes = hints().to_bytes();
        for len in 0..bytes.len() {
            assert!(Hints::from_bytes(&bytes[..len], 299).is_err(), "{len}");
        }
        assert!(Hints::from_bytes(&[&bytes[..], &[0]].concat(), 299).is_err());
    }
}
