//! Where a header ends and its data begins, and which headers fit which data.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{BINARY, LARGEST, SECTOR, hex, number_32};
use crate::extent::Extent;

/// The largest header area that is believed, key slots included, in bytes: two copies and 128 MiB of key slots.
pub const LARGEST_AREA: u64 = (128 << 20) + 2 * LARGEST;

/// All that is not data: every copy of the header and the key slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderArea {
    /// From the start of the header to the first byte of data.
    pub extent: Extent,
    /// SHA-256, in hexadecimal, over what makes a header fit the data: version, UUID, digest of the volume key, and where
    /// and how the data is encrypted. It stays the same when passphrases come and go, so any header with it opens the
    /// data, and none without it does.
    pub binding: String,
}

/// Why a header area cannot be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoArea {
    /// The data is being encrypted anew: header and data belong to the same instant.
    #[error("it is being encrypted anew")]
    Reencryption,
    /// The data does not follow the header, or is not in one piece.
    #[error("its data does not simply follow its header")]
    Layout,
    /// No copy of the header is whole, or it makes no sense.
    #[error("its header is damaged")]
    Damaged,
}

/// The area of a version 1 header at `offset`, with the facts that it fits its data by.
pub(super) fn of_version_1(uuid: &str, header: &[u8], offset: u64, room: u64) -> Result<HeaderArea, NoArea> {
    let part = |range: std::ops::Range<usize>| header.get(range).unwrap_or_default();
    let sectors = number_32(header, 104).unwrap_or(0);
    let facts = [
        "luks1",
        uuid,
        &hex(part(8..72)),
        &hex(part(104..112)),
        &hex(part(112..132)),
    ];
    area(offset, u64::from(sectors) * SECTOR, room, &facts)
}

/// The area of a version 2 header at `offset` that says `json`; there are `room` bytes for all of it.
pub(super) fn of_version_2(uuid: &str, json: &Value, offset: u64, room: u64) -> Result<HeaderArea, NoArea> {
    let requirements = json
        .pointer("/config/requirements/mandatory")
        .and_then(Value::as_array);
    let mut requirements = requirements.into_iter().flatten().filter_map(Value::as_str);
    if requirements.any(|name| name.contains("reencrypt")) {
        return Err(NoArea::Reencryption);
    }
    let entries = |name: &str| json.get(name).and_then(Value::as_object);
    let (Some(segments), Some(digests)) = (entries("segments"), entries("digests")) else {
        return Err(NoArea::Damaged);
    };
    let mut segments = segments.iter();
    let (Some((number, segment)), None) = (segments.next(), segments.next()) else {
        return Err(NoArea::Layout);
    };
    let field = |name: &str| segment.get(name).cloned().unwrap_or_default();
    if field("type") != "crypt" {
        return Err(NoArea::Layout);
    }
    // The digest that stands for this segment's key, and no other.
    let mut of_segment = digests.values().filter(|digest| {
        let of = digest.get("segments").and_then(Value::as_array);
        of.is_some_and(|of| of.iter().any(|of| of.as_str() == Some(number)))
    });
    let (Some(digest), None) = (of_segment.next(), of_segment.next()) else {
        return Err(NoArea::Layout);
    };
    let digest = digest.get("digest").and_then(Value::as_str).unwrap_or_default();
    let length = segment.get("offset").and_then(Value::as_str);
    let length = length.and_then(|text| text.parse().ok()).ok_or(NoArea::Damaged)?;
    let parts = ["offset", "iv_tweak", "encryption", "sector_size", "integrity"];
    let parts = parts.map(|name| field(name).to_string());
    let mut facts = vec!["luks2", uuid, digest];
    facts.extend(parts.iter().map(String::as_str));
    area(offset, length, room, &facts)
}

/// The area of a header at `offset` whose data begins `length` bytes later.
fn area(offset: u64, length: u64, room: u64, facts: &[&str]) -> Result<HeaderArea, NoArea> {
    // Data that begins where the header does is elsewhere: the header is detached.
    if length < BINARY as u64 || length > room.min(LARGEST_AREA) {
        return Err(NoArea::Layout);
    }
    let extent = Extent::new(offset, length).map_err(|_| NoArea::Layout)?;
    let mut hash = Sha256::new();
    for fact in facts {
        hash.update((fact.len() as u64).to_le_bytes());
        hash.update(fact);
    }
    let binding = hex(&hash.finalize());
    Ok(HeaderArea { extent, binding })
}
