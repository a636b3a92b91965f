//! GUID partition tables, read and written.
//!
//! Format: UEFI specification, chapter 5.3 "GUID Partition Table (GPT) Disk Layout". Sectors are 512 bytes, as
//! virtio disks have them unless told otherwise. Numbers are little endian, GUIDs mixed endian. The header is at
//! sector 1 with its copy in the last sector; each names the sectors of its own copy of the entries.

use uuid::Uuid;

use crate::source::{BlockSource, ReadError};

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// The most partitions that are read or written: what every tool makes by default.
pub const MAX_PARTITIONS: u32 = 128;
/// The longest name in UTF-16 units.
pub const NAME_UNITS: usize = 36;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: usize = 128;
const MAX_ENTRY_BYTES: u32 = 1024;
/// Sectors of the array of entries as it is written.
const ENTRY_SECTORS: u64 = 32;
/// Where the checksum of the header lies in it.
const HEADER_CRC: std::ops::Range<usize> = 16..20;

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// The GUID of the disk.
    pub disk_guid: Uuid,
    /// The partitions in use, by number.
    pub partitions: Vec<Partition>,
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, counted from 1.
    pub number: u32,
    /// Its first sector.
    pub first_lba: u64,
    /// Its last sector.
    pub last_lba: u64,
    /// What it is for.
    pub type_guid: Uuid,
    /// Its own GUID, what `PARTUUID=` finds.
    pub guid: Uuid,
    /// Attribute bits.
    pub attributes: u64,
    /// What `PARTLABEL=` finds; at most [`NAME_UNITS`] UTF-16 units.
    pub name: String,
}

/// A table that cannot be written to a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// The disk has no room for the table itself.
    #[error("{size} bytes are too few for a partition table")]
    DiskTooSmall {
        /// The size of the disk in bytes.
        size: u64,
    },
    /// A partition lies outside of the usable sectors or is empty.
    #[error("partition {number} in sectors {first} to {last} does not fit between sectors {low} and {high}")]
    OutOfBounds {
        /// The partition.
        number: u32,
        /// Its first sector.
        first: u64,
        /// Its last sector.
        last: u64,
        /// The first usable sector.
        low: u64,
        /// The last usable sector.
        high: u64,
    },
    /// Two partitions have the same number, or one has none between 1 and [`MAX_PARTITIONS`].
    #[error("partition number {0} is out of range or used twice")]
    Number(u32),
    /// Two partitions share sectors.
    #[error("partitions {0} and {1} overlap")]
    Overlap(u32, u32),
    /// The name does not fit.
    #[error("partition name {0:?} is longer than {NAME_UNITS} UTF-16 units")]
    Name(String),
    /// Part of what was read is not a table that can be trusted, though the signature is there.
    #[error("neither copy of the partition table is intact")]
    Damaged,
}

impl Partition {
    /// The bytes it fills: offset and length. `None` if they pass 2^64.
    pub fn bytes(&self) -> Option<(u64, u64)> {
        let sectors = self.last_lba.checked_sub(self.first_lba)?.checked_add(1)?;
        Some((self.first_lba.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?))
    }

    fn parse(number: u32, entry: &[u8]) -> Option<Self> {
        let type_guid = guid(entry, 0)?;
        if type_guid.is_nil() {
            return None;
        }
        let units: Vec<u16> = entry
            .get(56..ENTRY_BYTES)?
            .chunks_exact(2)
            .map_while(name_unit)
            .collect();
        Some(Self {
            number,
            type_guid,
            guid: guid(entry, 16)?,
            first_lba: u64_at(entry, 32)?,
            last_lba: u64_at(entry, 40)?,
            attributes: u64_at(entry, 48)?,
            name: String::from_utf16_lossy(&units),
        })
    }

    fn to_entry(&self) -> Result<[u8; ENTRY_BYTES], GptError> {
        if self.name.encode_utf16().count() > NAME_UNITS || self.name.contains('\0') {
            return Err(GptError::Name(self.name.clone()));
        }
        let mut entry = Vec::with_capacity(ENTRY_BYTES);
        entry.extend(self.type_guid.to_bytes_le());
        entry.extend(self.guid.to_bytes_le());
        entry.extend(self.first_lba.to_le_bytes());
        entry.extend(self.last_lba.to_le_bytes());
        entry.extend(self.attributes.to_le_bytes());
        entry.extend(self.name.encode_utf16().flat_map(u16::to_le_bytes));
        let mut padded = [0; ENTRY_BYTES];
        padded.iter_mut().zip(entry).for_each(|(to, from)| *to = from);
        Ok(padded)
    }
}

/// A header whose checksum is right.
struct Header {
    disk_guid: Uuid,
    first_usable: u64,
    last_usable: u64,
    entries_lba: u64,
    entries: u32,
    entry_bytes: u32,
    entries_crc: u32,
}

/// What was found at the place of a header.
enum Found {
    Nothing,
    Damaged,
    Table(Gpt),
}

impl Gpt {
    /// Reads the table of a disk: the primary one, else its copy at the end; `None` if the disk has neither.
    /// Reads no other sectors than those of headers and entries.
    pub fn read(disk: &mut impl BlockSource) -> Result<Option<Self>, GptReadError> {
        let sectors = disk.size() / SECTOR;
        let mut damaged = false;
        for lba in [1, sectors.saturating_sub(1)] {
            if lba == 0 || lba >= sectors {
                continue;
            }
            match read_copy(disk, lba, sectors)? {
                Found::Table(gpt) => return Ok(Some(gpt)),
                Found::Damaged => damaged = true,
                Found::Nothing => {}
            }
        }
        if damaged {
            Err(GptError::Damaged.into())
        } else {
            Ok(None)
        }
    }

    /// The sectors which hold this table on a disk of `size` bytes, as (offset, bytes): protective MBR, header and
    /// entries at the start, their copy at the end.
    pub fn to_sectors(&self, size: u64) -> Result<Vec<(u64, Vec<u8>)>, GptError> {
        let last = (size / SECTOR).saturating_sub(1);
        let first_usable = 2 + ENTRY_SECTORS;
        let last_usable = last.saturating_sub(ENTRY_SECTORS + 1);
        if last_usable < first_usable {
            return Err(GptError::DiskTooSmall { size });
        }
        self.check(first_usable, last_usable)?;
        let mut entries = vec![0; ENTRY_BYTES * MAX_PARTITIONS as usize];
        for partition in &self.partitions {
            let slot = entries
                .chunks_exact_mut(ENTRY_BYTES)
                .nth(partition.number as usize - 1);
            slot.ok_or(GptError::Number(partition.number))?
                .copy_from_slice(&partition.to_entry()?);
        }
        let header = Header {
            disk_guid: self.disk_guid,
            first_usable,
            last_usable,
            entries_lba: 2,
            entries: MAX_PARTITIONS,
            entry_bytes: ENTRY_BYTES as u32,
            entries_crc: crc32fast::hash(&entries),
        };
        let mut start = protective_mbr(last);
        start.extend(header.to_sector(1, last));
        start.extend(&entries);
        let copy = Header {
            entries_lba: last_usable + 1,
            ..header
        };
        let mut end = entries;
        end.extend(copy.to_sector(last, 1));
        Ok(vec![(0, start), (copy.entries_lba * SECTOR, end)])
    }

    fn check(&self, low: u64, high: u64) -> Result<(), GptError> {
        let mut by_place: Vec<&Partition> = self.partitions.iter().collect();
        by_place.sort_by_key(|p| p.first_lba);
        for p in &by_place {
            let (number, first, last) = (p.number, p.first_lba, p.last_lba);
            if first < low || last > high || first > last {
                return Err(GptError::OutOfBounds {
                    number,
                    first,
                    last,
                    low,
                    high,
                });
            }
            let twins = self
                .partitions
                .iter()
                .filter(|other| other.number == number)
                .count();
            if number == 0 || number > MAX_PARTITIONS || twins > 1 {
                return Err(GptError::Number(number));
            }
        }
        match by_place
            .windows(2)
            .find(|pair| pair[0].last_lba >= pair[1].first_lba)
        {
            Some(pair) => Err(GptError::Overlap(pair[0].number, pair[1].number)),
            None => Ok(()),
        }
    }
}

fn read_copy(disk: &mut impl BlockSource, lba: u64, sectors: u64) -> Result<Found, ReadError> {
    let mut sector = [0; SECTOR as usize];
    disk.read_at(lba * SECTOR, &mut sector)?;
    if !sector.starts_with(SIGNATURE) {
        return Ok(Found::Nothing);
    }
    let Some(header) = Header::parse(&sector, lba) else {
        return Ok(Found::Damaged);
    };
    // Both factors are bounded by `Header::parse`: at most 128 KiB.
    let mut entries = vec![0; header.entries as usize * header.entry_bytes as usize];
    let entries_end = header
        .entries_lba
        .checked_add((entries.len() as u64).div_ceil(SECTOR));
    if header.entries_lba == 0 || entries_end.is_none_or(|end| end > sectors) {
        return Ok(Found::Damaged);
    }
    disk.read_at(header.entries_lba * SECTOR, &mut entries)?;
    if crc32fast::hash(&entries) != header.entries_crc {
        return Ok(Found::Damaged);
    }
    let slots = entries.chunks_exact(header.entry_bytes as usize);
    let partitions = (1..)
        .zip(slots)
        .filter_map(|(number, entry)| Partition::parse(number, entry))
        .collect();
    let gpt = Gpt {
        disk_guid: header.disk_guid,
        partitions,
    };
    // A table that no tool would write is not one to copy.
    let sane = header.last_usable < sectors && gpt.check(header.first_usable, header.last_usable).is_ok();
    Ok(if sane { Found::Table(gpt) } else { Found::Damaged })
}

impl Header {
    /// `None` unless all of it is consistent and within the bounds of this module.
    fn parse(sector: &[u8; SECTOR as usize], own_lba: u64) -> Option<Self> {
        let length = u32_at(sector, 12)? as usize;
        let mut hashed = sector.get(..length).filter(|h| h.len() >= HEADER_BYTES)?.to_vec();
        hashed.get_mut(HEADER_CRC)?.fill(0);
        let intact = u32_at(sector, HEADER_CRC.start)? == crc32fast::hash(&hashed);
        let header = Self {
            first_usable: u64_at(sector, 40)?,
            last_usable: u64_at(sector, 48)?,
            disk_guid: guid(sector, 56)?,
            entries_lba: u64_at(sector, 72)?,
            entries: u32_at(sector, 80)?,
            entry_bytes: u32_at(sector, 84)?,
            entries_crc: u32_at(sector, 88)?,
        };
        let entry_sane = header.entry_bytes.is_power_of_two()
            && (ENTRY_BYTES as u32..=MAX_ENTRY_BYTES).contains(&header.entry_bytes);
        let sane = entry_sane && header.entries <= MAX_PARTITIONS && u64_at(sector, 24)? == own_lba;
        (intact && sane).then_some(header)
    }

    fn to_sector(&self, own_lba: u64, other_lba: u64) -> Vec<u8> {
        let mut header = Vec::with_capacity(SECTOR as usize);
        header.extend(SIGNATURE);
        header.extend(REVISION.to_le_bytes());
        header.extend((HEADER_BYTES as u32).to_le_bytes());
        header.extend([0; 8]); // The checksum, computed with zeroes in its place, and four reserved bytes.
        for lba in [own_lba, other_lba, self.first_usable, self.last_usable] {
            header.extend(lba.to_le_bytes());
        }
        header.extend(self.disk_guid.to_bytes_le());
        header.extend(self.entries_lba.to_le_bytes());
        for number in [self.entries, self.entry_bytes, self.entries_crc] {
            header.extend(number.to_le_bytes());
        }
        let crc = crc32fast::hash(&header);
        header.splice(HEADER_CRC, crc.to_le_bytes());
        header.resize(SECTOR as usize, 0);
        header
    }
}

/// A sector that tells tools which know no GPT that the whole disk is in use (UEFI 5.2.3).
fn protective_mbr(last_lba: u64) -> Vec<u8> {
    let sectors = u32::try_from(last_lba).unwrap_or(u32::MAX);
    let mut sector = vec![0; 446];
    // Not bootable, from CHS 0/0/2, type 0xee, to the last CHS there is, from sector 1.
    sector.extend([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    sector.extend(sectors.to_le_bytes());
    sector.resize(SECTOR as usize - 2, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Why no table could be read.
#[derive(Debug, thiserror::Error)]
pub enum GptReadError {
    /// The disk could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was read is not a table.
    #[error(transparent)]
    Gpt(#[from] GptError),
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn guid(bytes: &[u8], at: usize) -> Option<Uuid> {
    array(bytes, at).map(Uuid::from_bytes_le)
}

fn name_unit(pair: &[u8]) -> Option<u16> {
    array(pair, 0).map(u16::from_le_bytes).filter(|unit| *unit != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 1 << 20;

    fn sample() -> Gpt {
        let partition = |number, first_lba, last_lba, name: &str| Partition {
            number,
            first_lba,
            last_lba,
            type_guid: Uuid::from_u128(0x0657_fd6d_a4ab_43c4_84e5_0933_c84b_4f4f),
            guid: Uuid::from_u128(u128::from(number) << 64 | 7),
            attributes: 1 << 63,
            name: name.to_owned(),
        };
        Gpt {
            disk_guid: Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0),
            partitions: vec![partition(1, 40, 99, "swäp"), partition(128, 100, 2014, "")],
        }
    }

    fn disk(gpt: &Gpt) -> Vec<u8> {
        let mut disk = vec![0; SIZE];
        for (at, bytes) in gpt.to_sectors(SIZE as u64).unwrap() {
            disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        disk
    }

    #[test]
    fn what_is_written_is_read_from_either_copy() {
        let mut both = disk(&sample());
        assert_eq!(Gpt::read(&mut both).unwrap(), Some(sample()));
        let mut start_lost = both.clone();
        start_lost[..34 * 512].fill(0);
        assert_eq!(Gpt::read(&mut start_lost).unwrap(), Some(sample()));
        let mut entry_broken = both.clone();
        entry_broken[1024] ^= 1;
        assert_eq!(Gpt::read(&mut entry_broken).unwrap(), Some(sample()));
        entry_broken[SIZE - 512 + 60] ^= 1;
        assert!(matches!(
            Gpt::read(&mut entry_broken),
            Err(GptReadError::Gpt(GptError::Damaged))
        ));
        assert_eq!(Gpt::read(&mut vec![0; SIZE]).unwrap(), None);
        for tiny in [0, 511, 512, 1024, 1025] {
            assert_eq!(Gpt::read(&mut vec![0; tiny]).unwrap(), None);
        }
    }

    #[test]
    fn refuses_to_write_what_is_wrong() {
        let wrong = |change: fn(&mut Gpt)| {
            let mut gpt = sample();
            change(&mut gpt);
            gpt.to_sectors(SIZE as u64).unwrap_err()
        };
        assert_eq!(
            wrong(|g| g.partitions[0].last_lba = 100),
            GptError::Overlap(1, 128)
        );
        assert_eq!(wrong(|g| g.partitions[0].number = 128), GptError::Number(128));
        assert_eq!(wrong(|g| g.partitions[0].number = 0), GptError::Number(0));
        assert_eq!(wrong(|g| g.partitions[0].number = 129), GptError::Number(129));
        assert!(matches!(
            wrong(|g| g.partitions[0].first_lba = 33),
            GptError::OutOfBounds { .. }
        ));
        assert!(matches!(
            wrong(|g| g.partitions[1].last_lba = 2015),
            GptError::OutOfBounds { high: 2014, .. }
        ));
        assert!(matches!(
            wrong(|g| g.partitions[0].name = "x".repeat(37)),
            GptError::Name(_)
        ));
        assert_eq!(
            sample().to_sectors(30_000).unwrap_err(),
            GptError::DiskTooSmall { size: 30_000 }
        );
    }

    /// Sets header fields and makes the checksum right again, so that only the bounds protect.
    fn forge(disk: &mut [u8], field: usize, value: u64, bytes: usize) {
        let header = &mut disk[512..512 + HEADER_BYTES];
        header[field..field + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        header[HEADER_CRC].fill(0);
        let crc = crc32fast::hash(header);
        header[HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
    }

    proptest! {
        #[test]
        fn hostile_headers_do_no_harm(
            (field, bytes) in prop_oneof![
                Just((12, 4)), Just((24, 8)), Just((40, 8)), Just((48, 8)), Just((72, 8)), Just((80, 4)), Just((84, 4)),
            ],
            value in prop_oneof![any::<u64>(), 0u64..200, Just(u64::MAX)],
        ) {
            let mut disk = disk(&sample());
            disk[SIZE - 512..].fill(0);
            forge(&mut disk, field, value, bytes);
            if let Ok(Some(gpt)) = Gpt::read(&mut disk) {
                prop_assert!(gpt.partitions.len() <= 2);
                prop_assert!(gpt.partitions.iter().all(|p| p.bytes().is_some_and(|(at, n)| at + n <= SIZE as u64)));
            }
        }
    }
}
