//! One entry for each parser of a repository's files, for fuzzers: whatever comes in, these hold.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::files::File;
use crate::index::word;
use crate::segment::{Entries, MAX_ENTRY, Tag, ends_with_commit, get};
use crate::{Config, Hints, Id, Index, Integrity, Place, lock};

/// `config`.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(config) = Config::parse(text) {
        assert!(config.segments_per_dir > 0);
        assert!(config.max_segment_size + MAX_ENTRY as u64 <= 1 << 32);
    }
}

/// `index.T`: every search ends, and the table works on.
pub fn index(bytes: &[u8]) {
    let Ok(mut index) = Index::from_bytes(bytes.to_vec()) else {
        return;
    };
    assert_eq!(index.iter().count(), index.len());
    let first = index.iter().next();
    for id in first
        .iter()
        .map(|(id, _)| *id)
        .chain([Id::MANIFEST, Id([0xa5; 32])])
    {
        let place = Place {
            segment: 7,
            offset: 9,
        };
        if index.insert(&id, place).is_ok() {
            assert_eq!(index.get(&id), Some(place));
            assert_eq!(index.remove(&id), Some(place));
        }
    }
    let again = Index::from_bytes(index.as_bytes().to_vec());
    assert!(again.is_ok_and(|again| again.len() == index.len()));
}

/// `hints.T`: what is readable survives a round trip.
pub fn hints(bytes: &[u8]) {
    if let Ok(hints) = Hints::from_bytes(bytes, 1000) {
        assert_eq!(Hints::from_bytes(&hints.to_bytes(), 1000), Ok(hints));
    }
}

/// `integrity.T`.
pub fn integrity(bytes: &[u8]) {
    if let Ok(Some(integrity)) = Integrity::from_bytes(bytes) {
        let _ = integrity.check_index(3, bytes);
        let _ = integrity.check_hints(3, bytes);
        assert_eq!(Integrity::from_bytes(&integrity.to_bytes()), Ok(Some(integrity)));
    }
}

/// `lock.roster`, or the name of a holder.
pub fn lock(bytes: &[u8]) {
    lock::fuzz(bytes);
}

/// A segment, as it stands and with its checksums made right: entries lie one behind the other, and each object that
/// is listed can be read.
pub fn segment(bytes: &[u8]) {
    check_segment(bytes);
    let mut repaired = bytes.to_vec();
    let mut at = 8;
    while let Some(rest) = repaired.get_mut(at..).filter(|rest| rest.len() >= 9) {
        let len = word(rest, 4) as usize;
        if len < 9 || len > rest.len() {
            break;
        }
        let crc = crc32fast::hash(&rest[4..len]);
        rest[..4].copy_from_slice(&crc.to_le_bytes());
        at += len;
    }
    check_segment(&repaired);
}

fn check_segment(bytes: &[u8]) {
    let file: Arc<dyn File> = Arc::new(Bytes(bytes.to_vec()));
    let name = || "segment".to_owned();
    assert!(ends_with_commit(Arc::clone(&file), name()).is_ok());
    let Ok(mut entries) = Entries::of(Arc::clone(&file), name()) else {
        return;
    };
    let mut end = 8;
    while let Ok(Some(entry)) = entries.next() {
        assert_eq!(entry.offset, end);
        end += entry.len;
        assert!(end as usize <= bytes.len());
        if entry.tag == Tag::Put {
            let mut object = Vec::new();
            assert!(get(&*file, "segment", entry.offset, &entry.id, &mut object).is_ok());
        }
    }
}

struct Bytes(Vec<u8>);

impl File for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.0.get(at..))
            .unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn begin_writeback(&self, _: u64, _: u64) {}

    fn forget(&self) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::segment::head;

    type Target = fn(&[u8]);

    /// Something of each format that is right.
    fn samples() -> Vec<(Target, Vec<u8>)> {
        let mut table = b"BORG_IDX\x01\0\0\0\x03\0\0\0\x20\x08".to_vec();
        for (key, segment) in [(1, u32::MAX), (2, 5), (3, u32::MAX - 1)] {
            table.extend([key; 32]);
            table.extend(segment.to_le_bytes());
            table.extend(8_u32.to_le_bytes());
        }
        let mut hints_of = Hints::default();
        hints_of.put(3, 300);
        hints_of.supersede(&Id([1; 32]), 3, 70_000);
        let mut log = b"BORG_SEG".to_vec();
        for (tag, object) in [
            (Tag::Put, &b"an object"[..]),
            (Tag::Delete, b""),
            (Tag::Commit, b""),
        ] {
            let (head, len) = head(tag, &Id([7; 32]), object);
            log.extend([&head[..len], object].concat());
        }
        let text = format!(
            "[repository]\nversion = 1\nsegments_per_dir = 7\nmax_segment_size = 1.5G\nid = {}\nkey = a\n\tb\n",
            Id([0xab; 32])
        );
        vec![
            (config, text.into_bytes()),
            (index, table),
            (hints, hints_of.to_bytes()),
            (integrity, Integrity::of(3, &[1], &[2]).to_bytes()),
            (
                lock,
                b"{\"exclusive\": [[\"vm@1\", 4711, 0]], \"shared\": []}".to_vec(),
            ),
            (lock, b"vm.example.org@3281355014145.4711-0".to_vec()),
            (segment, log),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn what_has_to_hold_holds_for_changed_files(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
            whole in any::<bool>(),
        ) {
            for (target, mut bytes) in samples() {
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                if !whole {
                    bytes.truncate(cut.index(bytes.len()));
                }
                target(&bytes);
            }
        }
    }
}
