//! LUKS headers: the facts that show to all who see the disk, and never a key.
//!
//! The header of version 2 is a binary part and an area with JSON, twice, and the area of the key slots (LUKS2 On-Disk
//! Format Specification 1.1, sections 2 and 3); that of version 1 is binary throughout (LUKS1 On-Disk Format Specification
//! 1.2.3, section 2.1). Of version 2 the first copy with a good checksum is read. A guest can write all of it, so every
//! length is bounded, and what cannot be understood gives empty facts, not an error.

use std::collections::BTreeMap;

mod area;
mod clevis;
mod copy;
mod json;
mod slot;

pub use self::area::{HeaderArea, LARGEST_AREA, NoArea};
pub use self::clevis::Pin;
pub use self::slot::{Kdf, KeySlot, Segment, Token};

use crate::partitions::regions;
use crate::source::{BlockSource, ReadError};

/// What both versions begin with.
const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// Size of the binary part, in bytes; of a version 1 header, more than all of it.
const BINARY: usize = 4096;
/// The largest copy of a header that version 2 allows, binary part and JSON area, in bytes.
const LARGEST: u64 = 4 << 20;
/// Texts longer than this are cut.
const LONGEST: usize = 128;
/// More volumes on one disk are not looked at.
const MOST_VOLUMES: usize = 16;
/// More digests, slots, segments or tokens than version 2 allows.
const MOST: usize = 32;
/// Bytes in a sector of version 1's numbers.
const SECTOR: u64 = 512;

/// Public facts of a LUKS volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks {
    /// Where the header starts on the disk, in bytes.
    pub offset: u64,
    /// 1 or 2.
    pub version: u16,
    /// The volume's UUID as it stands there.
    pub uuid: String,
    /// Digests of the volume key: salted, so that equal keys do not show. Base64 in version 2, hexadecimal in 1.
    pub digests: Vec<String>,
    /// Tokens in the order of their numbers.
    pub tokens: Vec<Token>,
    /// Key slots in use, in the order of their numbers.
    pub slots: Vec<KeySlot>,
    /// Where the data lies, and how it is encrypted.
    pub segments: Vec<Segment>,
    /// Flags that are kept in the header (`allow-discards`, `no-read-workqueue` …).
    pub flags: Vec<String>,
    /// What has to be understood before the volume is used (`online-reencrypt` while it is being re-encrypted).
    pub requirements: Vec<String>,
    /// The header area, if it can be told apart from the data.
    pub area: Result<HeaderArea, NoArea>,
}

impl Luks {
    /// All volumes whose header starts where the disk or one of its partitions starts. Their areas do not overlap.
    pub fn find(disk: &mut impl BlockSource) -> Result<Vec<Self>, ReadError> {
        let mut starts = BTreeMap::from([(0, disk.size())]);
        starts.extend(
            regions(disk)?
                .1
                .iter()
                .map(|region| (region.offset, region.length)),
        );
        let mut volumes: Vec<Self> = Vec::new();
        for (offset, room) in starts {
            let Some(mut volume) = Self::read(disk, offset, room)? else {
                continue;
            };
            let others = volumes.iter().filter_map(|other| other.area.as_ref().ok());
            let overlaps = |area: &HeaderArea| {
                others
                    .clone()
                    .any(|other| other.extent.intersection(area.extent).is_some())
            };
            if volume.area.as_ref().is_ok_and(overlaps) {
                volume.area = Err(NoArea::Layout);
            }
            volumes.push(volume);
            if volumes.len() == MOST_VOLUMES {
                break;
            }
        }
        Ok(volumes)
    }

    /// The volume whose header starts at `offset`, if one does. It has `room` bytes at most.
    pub fn read(disk: &mut impl BlockSource, offset: u64, room: u64) -> Result<Option<Self>, ReadError> {
        let room = room.min(disk.size().saturating_sub(offset));
        let Some(header) = copy::block(disk, offset, room, 0)? else {
            return Ok(None);
        };
        if header.starts_with(MAGIC) && number(&header, 6) == Some(1) {
            return Ok(Some(Self::version_1(offset, room, &header)));
        }
        copy::read(disk, offset, room, header)
    }

    /// A volume at `offset` of which nothing is known yet.
    fn nothing_known(offset: u64) -> Self {
        Self {
            offset,
            version: 0,
            uuid: String::new(),
            digests: Vec::new(),
            tokens: Vec::new(),
            slots: Vec::new(),
            segments: Vec::new(),
            flags: Vec::new(),
            requirements: Vec::new(),
            area: Err(NoArea::Damaged),
        }
    }

    /// LUKS1 On-Disk Format Specification 1.2.3, figures 2 and 3.
    fn version_1(offset: u64, room: u64, header: &[u8]) -> Self {
        let uuid = text(header.get(168..208));
        let payload = number_32(header, 104).map_or(0, |sectors| u64::from(sectors) * SECTOR);
        let hash = text(header.get(72..104));
        let bits = number_32(header, 108).unwrap_or(0).saturating_mul(8);
        let slots = (0..8_u32).filter_map(|number| {
            let at = 208 + number as usize * 48;
            (number_32(header, at)? == ACTIVE).then_some(KeySlot {
                number,
                key_bits: bits,
                kdf: Kdf::Pbkdf2 {
                    hash: hash.clone(),
                    iterations: u64::from(number_32(header, at + 4)?),
                },
            })
        });
        let cipher = format!("{}-{}", text(header.get(8..40)), text(header.get(40..72)));
        Self {
            version: 1,
            digests: vec![hex(header.get(112..132).unwrap_or_default())],
            slots: slots.collect(),
            segments: vec![Segment {
                offset: payload,
                length: None,
                cipher: Some(cipher),
            }],
            area: area::of_version_1(&uuid, header, offset, room),
            uuid,
            ..Self::nothing_known(offset)
        }
    }

    /// Where the encrypted data of the volume lies on the disk, as the header says: offset and length, no further than
    /// `end`.
    pub fn data(&self, end: u64) -> Vec<(u64, u64)> {
        let encrypted = self.segments.iter().filter(|segment| segment.cipher.is_some());
        let place = |segment: &Segment| {
            let start = self.offset.checked_add(segment.offset)?;
            let room = end.checked_sub(start)?;
            Some((start, segment.length.unwrap_or(room).min(room)))
        };
        encrypted
            .filter_map(place)
            .filter(|(_, length)| *length > 0)
            .collect()
    }
}

/// What a key slot of version 1 in use begins with.
const ACTIVE: u32 = 0x00ac_71f3;

fn number_32(header: &[u8], at: usize) -> Option<u32> {
    header.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn number(header: &[u8], at: usize) -> Option<u16> {
    header.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// A text up to its NUL; only what is printable and plain, since a guest wrote it.
fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    bytes
        .iter()
        .filter(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A text that a guest wrote, fit for a terminal.
fn cut(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .take(LONGEST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use proptest::prelude::*;
    use std::process::Command;

    /// A volume made by the real cryptsetup, and what cryptsetup says of it.
    fn formatted(kind: &str, at: u64) -> (Vec<u8>, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(20 << 20).unwrap();
        let tool = |arguments: &[&str]| {
            let key = "printf secret |";
            let line = format!(
                "{key} cryptsetup {} {}",
                arguments.join(" "),
                file.path().display()
            );
            let out = Command::new("sh").arg("-c").arg(line).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        };
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        tool(
            &[
                &["luksFormat", "-q", "--type", kind, "--key-file", "-"][..],
                &cheap,
            ]
            .concat(),
        );
        let uuid = tool(&["luksUUID"]);
        if kind == "luks2" {
            let token = r#"'{"type":"clevis","keyslots":["0"]}'"#;
            let line = format!("echo {token} | cryptsetup token import {}", file.path().display());
            assert!(Command::new("sh").arg("-c").arg(line).status().unwrap().success());
        }
        let mut disk = vec![0; at as usize];
        disk.extend(std::fs::read(file.path()).unwrap());
        (disk, uuid)
    }

    #[test]
    fn facts_agree_with_cryptsetup() {
        let (mut disk, uuid) = formatted("luks2", 0);
        let found = Luks::find(&mut disk).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].version, &found[0].uuid, found[0].offset), (2, &uuid, 0));
        assert_eq!(found[0].digests.len(), 1);
        assert_eq!(found[0].tokens.len(), 1);
        assert_eq!(
            (found[0].tokens[0].kind.as_str(), &found[0].tokens[0].slots[..]),
            ("clevis", &[0][..])
        );
        let slot = &found[0].slots[0];
        assert_eq!((slot.number, slot.key_bits), (0, 512));
        assert_eq!(
            slot.kdf,
            Kdf::Pbkdf2 {
                hash: "sha256".into(),
                iterations: 1000
            }
        );
        assert_eq!(found[0].segments[0].cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!(found[0].data(20 << 20), [(16 << 20, 4 << 20)]);
        let area = found[0].area.as_ref().unwrap();
        assert_eq!(area.extent, Extent::new(0, 16 << 20).unwrap());

        let (mut disk, uuid) = formatted("luks1", 1 << 20);
        let found = Luks::read(&mut disk, 1 << 20, u64::MAX).unwrap().unwrap();
        assert_eq!((found.version, &found.uuid), (1, &uuid));
        assert_eq!(found.digests[0].len(), 40);
        assert_eq!(found.slots.len(), 1);
        assert_eq!((found.slots[0].number, found.slots[0].key_bits), (0, 512));
        assert!(matches!(&found.slots[0].kdf, Kdf::Pbkdf2 { hash, iterations: 1000 } if hash == "sha256"));
        assert_eq!(found.segments[0].cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!(found.data(1 << 20), []);
        assert_eq!(
            found.data(21 << 20),
            [(
                (1 << 20) + found.segments[0].offset,
                (20 << 20) - found.segments[0].offset
            )]
        );
        let area = found.area.unwrap();
        assert_eq!(area.extent.offset(), 1 << 20);
        assert_eq!(
            area.extent.length(),
            2 << 20,
            "cryptsetup's payload offset is 4096 sectors"
        );
    }

    /// The second copy stands in for the first; without either there is no area to be told.
    #[test]
    fn a_damaged_copy_is_passed_over() {
        let (mut disk, uuid) = formatted("luks2", 0);
        let whole = Luks::find(&mut disk).unwrap();
        for damage in [0usize, 8, 200, 4100] {
            let mut damaged = disk.clone();
            damaged[damage] ^= 0xff;
            assert_eq!(Luks::find(&mut damaged).unwrap(), whole, "{damage}");
        }
        for at in [4100, 0x4000 + 4100] {
            disk[at] ^= 0xff;
        }
        let found = Luks::find(&mut disk).unwrap();
        assert_eq!(
            (found[0].uuid.as_str(), &found[0].area),
            (uuid.as_str(), &Err(NoArea::Damaged))
        );
    }

    #[test]
    fn a_disk_without_luks_has_none() {
        assert_eq!(Luks::find(&mut vec![0; 1 << 20]).unwrap(), []);
        assert_eq!(Luks::find(&mut vec![0; 100]).unwrap(), []);
    }

    proptest! {
        #[test]
        fn hostile_headers_give_facts_or_nothing(
            version in 0u16..4, size in any::<u64>(), junk in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let mut disk = MAGIC.to_vec();
            disk.extend(version.to_be_bytes());
            disk.extend(size.to_be_bytes());
            disk.extend(&junk);
            if let Some(found) = Luks::read(&mut disk, 0, u64::MAX).unwrap() {
                prop_assert!(found.digests.len() <= MOST && found.uuid.len() <= 40);
            }
        }

        #[test]
        fn hostile_json_gives_facts(json in "\\PC{0,200}") {
            let mut disk = vec![0; 4096];
            disk[..6].copy_from_slice(MAGIC);
            disk[6..8].copy_from_slice(&2_u16.to_be_bytes());
            disk[8..16].copy_from_slice(&8192_u64.to_be_bytes());
            disk.extend(json.as_bytes());
            disk.resize(8192, 0);
            prop_assert!(Luks::read(&mut disk, 0, u64::MAX).unwrap().unwrap().tokens.len() <= MOST);
        }
    }
}
