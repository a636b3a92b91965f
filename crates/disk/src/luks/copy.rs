//! The two copies of a version 2 header (LUKS2 On-Disk Format Specification 1.1, section 2): the first that is whole counts.

use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha512};

use super::{BINARY, LARGEST, Luks, MAGIC, NoArea, area, number, text};
use crate::source::{BlockSource, ReadError};

/// What the second copy begins with.
const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";
/// Where the second copy can be, in bytes after the first: after a JSON area of any size that is allowed.
const SECOND_AT: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];

/// The version 2 header at `offset` whose first binary part is `header`, if there is one; it has `room` bytes at most.
pub(super) fn read(
    disk: &mut impl BlockSource,
    offset: u64,
    room: u64,
    header: Vec<u8>,
) -> Result<Option<Luks>, ReadError> {
    let first = if header.starts_with(MAGIC) && number(&header, 6) == Some(2) {
        Some(Copy::read(disk, offset, room, 0, header)?)
    } else {
        None
    };
    if let Some(copy) = first.as_ref().filter(|copy| copy.is_whole) {
        return Ok(Some(copy.facts(offset, room)));
    }
    // As cryptsetup does: the first copy may have been overwritten, or half written.
    for at in SECOND_AT {
        let Some(header) = block(disk, offset, room, at)? else {
            break;
        };
        if header.starts_with(SECOND_MAGIC) && number(&header, 6) == Some(2) {
            let copy = Copy::read(disk, offset, room, at, header)?;
            if copy.is_whole {
                return Ok(Some(copy.facts(offset, room)));
            }
        }
    }
    Ok(first.map(|copy| copy.facts(offset, room)))
}

/// One copy of a version 2 header.
struct Copy {
    uuid: String,
    json: Option<Value>,
    /// Its checksum is good, and its JSON can be read.
    is_whole: bool,
}

impl Copy {
    /// The rest of a copy whose binary part is `header`, `at` bytes after the start of the volume.
    fn read(
        disk: &mut impl BlockSource,
        offset: u64,
        room: u64,
        at: u64,
        mut header: Vec<u8>,
    ) -> Result<Self, ReadError> {
        let uuid = text(header.get(168..208));
        let size = header
            .get(8..16)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_be_bytes);
        if size <= BINARY as u64 || size > LARGEST.min(room.saturating_sub(at)) {
            let (json, is_whole) = (None, false);
            return Ok(Self { uuid, json, is_whole });
        }
        let mut area = vec![0; size as usize - BINARY];
        disk.read_at(offset + at + BINARY as u64, &mut area)?;
        let end = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
        let json = serde_json::from_slice(area.get(..end).unwrap_or_default()).ok();
        let stated = header.get(448..512).unwrap_or_default().to_vec();
        let algorithm = text(header.get(72..104));
        header.get_mut(448..512).unwrap_or_default().fill(0);
        let found = match algorithm.as_str() {
            "sha256" => Sha256::new()
                .chain_update(&header)
                .chain_update(&area)
                .finalize()
                .to_vec(),
            "sha512" => Sha512::new()
                .chain_update(&header)
                .chain_update(&area)
                .finalize()
                .to_vec(),
            _ => Vec::new(),
        };
        let is_whole = !found.is_empty() && stated.starts_with(&found) && json.is_some();
        Ok(Self { uuid, json, is_whole })
    }

    fn facts(&self, offset: u64, room: u64) -> Luks {
        let json = self.json.as_ref().unwrap_or(&Value::Null);
        Luks {
            version: 2,
            uuid: self.uuid.clone(),
            area: if self.is_whole {
                area::of_version_2(&self.uuid, json, offset, room)
            } else {
                Err(NoArea::Damaged)
            },
            ..Luks::nothing_known(offset)
        }
        .with_json(json)
    }
}

/// A binary part, `at` bytes after `offset`, if there is room for one.
pub(super) fn block(
    disk: &mut impl BlockSource,
    offset: u64,
    room: u64,
    at: u64,
) -> Result<Option<Vec<u8>>, ReadError> {
    if room < at + BINARY as u64 {
        return Ok(None);
    }
    let mut header = vec![0; BINARY];
    disk.read_at(offset + at, &mut header)?;
    Ok(Some(header))
}
