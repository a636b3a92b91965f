//! MBR partition tables, as far as finding partitions goes: the four primary ones and the logical ones in a chain of extended
//! boot records. A guest can write all of it, so the chain is bounded, and what makes no sense names no partition.

use crate::gpt::SECTOR;
use crate::source::{BlockSource, ReadError};

/// More logical partitions are not looked at.
const MOST_LOGICAL: u32 = 64;
/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;
/// Types of partitions that hold logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition, which is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// 1 to 4 are primary ones, 5 and more logical ones.
    pub number: u32,
    /// What it is for, by the usual codes.
    pub kind: u8,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// One entry of a table. All numbers are 32 bits, so sums of a few fit.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// The partition that begins `first` sectors after `base`, if it is on a disk of `size` bytes.
    fn partition(self, number: u32, base: u64, size: u64) -> Option<Partition> {
        let (offset, length) = ((base + self.first) * SECTOR, self.sectors * SECTOR);
        let sane = matches!(self.status, 0 | 0x80) && self.kind != 0 && offset > 0 && length > 0;
        (sane && offset + length <= size).then_some(Partition {
            number,
            kind: self.kind,
            offset,
            length,
        })
    }
}

/// The partitions of a disk, without the extended one; `None` if the first sector is no table, or an empty one. Boot sectors of file systems
/// have its signature, too.
pub fn partitions(disk: &mut impl BlockSource) -> Result<Option<Vec<Partition>>, ReadError> {
    let size = disk.size();
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(table(disk, 0)?) {
        let Some(entry) = entry else { continue };
        let Some(partition) = entry.partition(number, 0, size) else {
            return Ok(None);
        };
        if entry.is_extended() {
            extended = extended.or(Some(entry.first));
        } else {
            found.push(partition);
        }
    }
    if let Some(start) = extended {
        logical(disk, start, &mut found)?;
    }
    Ok((!found.is_empty()).then_some(found))
}

/// Adds the logical partitions of an extended one that starts at sector `start`.
fn logical(disk: &mut impl BlockSource, start: u64, found: &mut Vec<Partition>) -> Result<(), ReadError> {
    let mut record = start;
    for number in (FIRST_LOGICAL..).take(MOST_LOGICAL as usize) {
        // A logical partition is told from its record on, the next record from the extended partition on.
        let [here, next, ..] = table(disk, record)?;
        let Some(here) = here else { break };
        if !here.is_extended() {
            found.extend(here.partition(number, record, disk.size()));
        }
        match next {
            Some(next) if next.is_extended() && next.first > 0 => record = start + next.first,
            _ => break,
        }
    }
    Ok(())
}

/// The four entries in a sector, those that are not empty; none if it holds no table.
fn table(disk: &mut impl BlockSource, sector: u64) -> Result<[Option<Entry>; 4], ReadError> {
    let mut bytes = [0; SECTOR as usize];
    let mut entries = [None; 4];
    if sector * SECTOR + SECTOR > disk.size() {
        return Ok(entries);
    }
    disk.read_at(sector * SECTOR, &mut bytes)?;
    if !bytes.ends_with(&[0x55, 0xaa]) {
        return Ok(entries);
    }
    let number = |at: &[u8]| {
        at.first_chunk()
            .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
    };
    let (parts, _) = bytes.get(446..510).unwrap_or_default().as_chunks::<16>();
    for (entry, part) in entries.iter_mut().zip(parts) {
        *entry = part.iter().any(|byte| *byte != 0).then(|| Entry {
            status: part[0],
            kind: part[4],
            first: number(&part[8..]),
            sectors: number(&part[12..]),
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const MIB: u64 = 1 << 20;

    fn places(disk: &mut impl BlockSource) -> Vec<(u32, u64, u64)> {
        let found = partitions(disk).unwrap().unwrap_or_default();
        found
            .iter()
            .map(|found| (found.number, found.offset, found.length))
            .collect()
    }

    fn with_table(script: &str) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 * MIB).unwrap();
        let line = format!("printf '{script}' | sfdisk -q {}", file.path().display());
        assert!(Command::new("sh").arg("-c").arg(line).status().unwrap().success());
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn primary_and_logical_partitions_are_found() {
        let script = "label: dos\\nsize=4M\\nsize=8M,type=83\\nstart=14M,type=5\\nstart=15M,size=6M\\nstart=24M,size=7M\\n\
                      start=40M,size=2M\\n";
        // sfdisk takes the fourth line for the fourth primary partition unless its number is given.
        let script = script
            .replace("\\nstart=15M", "\\n5:start=15M")
            .replace("\\nstart=24M", "\\n6:start=24M");
        let script = script.replace("\\nstart=40M", "\\n7:start=40M");
        let mut disk = with_table(&script);
        let expected = [(1, 1, 4), (2, 5, 8), (5, 15, 6), (6, 24, 7), (7, 40, 2)]
            .map(|(number, start, size)| (number, start * MIB, size * MIB));
        assert_eq!(places(&mut disk), expected);
    }

    #[test]
    fn a_disk_without_a_table_has_none() {
        assert_eq!(partitions(&mut vec![0; 1 << 20]).unwrap(), None);
        assert_eq!(partitions(&mut vec![0; 100]).unwrap(), None);
        let mut boot_sector = vec![0xf4; 1 << 20];
        boot_sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(partitions(&mut boot_sector).unwrap(), None);
    }

    #[test]
    fn a_chain_that_leads_back_ends() {
        let mut disk = vec![0; 1 << 20];
        for sector in [0, 64] {
            let at = sector * 512;
            disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
            for entry in [446, 462] {
                disk[at + entry + 4] = 5;
                disk[at + entry + 8..][..4].copy_from_slice(&64u32.to_le_bytes());
                disk[at + entry + 12..][..4].copy_from_slice(&64u32.to_le_bytes());
            }
        }
        assert_eq!(places(&mut disk), []);
        // Numbers as large as they can be.
        disk[446..510].fill(0xff);
        disk[450] = 5;
        assert_eq!(places(&mut disk), []);
    }
}
