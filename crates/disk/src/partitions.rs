//! The parts of a disk as its partition table names them: where to look for what.
//!
//! GPT as in [`crate::gpt`], MBR as in [`crate::mbr`]. A disk without a table is one part.

use uuid::Uuid;

use crate::gpt::{Gpt, GptReadError, Partition, SECTOR};
use crate::mbr;
use crate::source::{BlockSource, ReadError};

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// It is not.
    None,
    /// By a GPT.
    Gpt,
    /// By an MBR.
    Mbr,
    /// By a GPT of which neither copy is intact.
    Damaged,
}

/// What a part is for, as its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It starts the machine, and is in clear text by nature.
    Boot,
    /// Swap.
    Swap,
    /// Anything else.
    Other,
}

/// A part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Number of the partition; `None` is the whole disk.
    pub partition: Option<u32>,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What it is for.
    pub purpose: Purpose,
}

/// Types of GPT partitions (UEFI 5.3.3; Discoverable Partitions Specification).
const ESP: Uuid = Uuid::from_u128(0xC12A_7328_F81F_11D2_BA4B_00A0_C93E_C93B);
const BIOS_BOOT: Uuid = Uuid::from_u128(0x2168_6148_6449_6E6F_744E_6565_6445_4649);
const XBOOTLDR: Uuid = Uuid::from_u128(0xBC13_C2FF_59E6_4262_A352_B275_FD6F_7172);
const LINUX_SWAP: Uuid = Uuid::from_u128(0x0657_FD6D_A4AB_43C4_84E5_0933_C84B_4F4F);

/// What begins with this is not divided.
const LUKS: &[u8] = b"LUKS\xba\xbe";

/// The parts of a disk, in the order of their numbers, none beyond its end.
pub fn regions(disk: &mut impl BlockSource) -> Result<(Table, Vec<Region>), ReadError> {
    let whole = Region {
        partition: None,
        offset: 0,
        length: disk.size(),
        purpose: Purpose::Other,
    };
    let mut first = [0; SECTOR as usize];
    if disk.size() < SECTOR {
        return Ok((Table::None, vec![whole]));
    }
    disk.read_at(0, &mut first)?;
    if first.starts_with(LUKS) {
        return Ok((Table::None, vec![whole]));
    }
    match Gpt::read(disk) {
        Ok(Some(table)) => {
            let regions = table.partitions.iter().filter_map(gpt_region);
            return Ok((Table::Gpt, regions.collect()));
        }
        Ok(None) => {}
        Err(GptReadError::Read(error)) => return Err(error),
        // A damaged table names no partition.
        Err(GptReadError::Gpt(_)) => return Ok((Table::Damaged, vec![whole])),
    }
    Ok(match mbr::partitions(disk)? {
        Some(partitions) => (Table::Mbr, partitions.into_iter().map(mbr_region).collect()),
        None => (Table::None, vec![whole]),
    })
}

fn gpt_region(partition: &Partition) -> Option<Region> {
    let (offset, length) = partition.bytes()?;
    let purpose = match partition.type_guid {
        ESP | BIOS_BOOT | XBOOTLDR => Purpose::Boot,
        LINUX_SWAP => Purpose::Swap,
        _ => Purpose::Other,
    };
    Some(Region {
        partition: Some(partition.number),
        offset,
        length,
        purpose,
    })
}

fn mbr_region(partition: mbr::Partition) -> Region {
    let purpose = match partition.kind {
        0xef => Purpose::Boot,
        0x82 => Purpose::Swap,
        _ => Purpose::Other,
    };
    Region {
        partition: Some(partition.number),
        offset: partition.offset,
        length: partition.length,
        purpose,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// A disk of 16 MiB with a table made by the real sfdisk.
    fn divided(script: &str) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let mut tool = Command::new("/sbin/sfdisk")
            .args(["-q", "--no-reread", "--no-tell-kernel"])
            .arg(file.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        tool.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(tool.wait().unwrap().success());
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn parts_as_sfdisk_makes_them() {
        for (script, table) in [
            (
                "label: gpt\nsize=1MiB, type=uefi\nsize=2MiB, type=swap\ntype=linux\n",
                Table::Gpt,
            ),
            (
                "label: dos\nsize=1MiB, type=ef\nsize=2MiB, type=82\ntype=83\n",
                Table::Mbr,
            ),
        ] {
            let (found, parts) = regions(&mut divided(script)).unwrap();
            assert_eq!(found, table);
            let shape: Vec<_> = parts.iter().map(|part| (part.partition, part.purpose)).collect();
            let wanted = [
                (Some(1), Purpose::Boot),
                (Some(2), Purpose::Swap),
                (Some(3), Purpose::Other),
            ];
            assert_eq!(shape, wanted);
            assert_eq!((parts[1].offset, parts[1].length), (2 << 20, 2 << 20));
        }
        let bios = divided("label: gpt\ntype=21686148-6449-6E6F-744E-656564454649\n");
        assert_eq!(regions(&mut bios.clone()).unwrap().1[0].purpose, Purpose::Boot);
        let mut damaged = bios;
        damaged[600] ^= 1;
        let last = damaged.len() - 100;
        damaged[last - 412 + 88] ^= 1;
        assert_eq!(regions(&mut damaged).unwrap().0, Table::Damaged);
    }

    #[test]
    fn a_disk_without_a_table_is_one_part() {
        for mut disk in [vec![0; 1 << 20], vec![0; 100], vec![]] {
            let size = disk.len() as u64;
            let (table, parts) = regions(&mut disk).unwrap();
            assert_eq!((table, parts.len(), parts[0].length), (Table::None, 1, size));
        }
    }

    proptest! {
        #[test]
        fn hostile_tables_stay_on_the_disk(entries in prop::collection::vec(any::<u8>(), 64), size in 512_usize..8192) {
            let mut disk = vec![0; size];
            disk[446..510].copy_from_slice(&entries);
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            for region in regions(&mut disk).unwrap().1 {
                prop_assert!(region.offset + region.length <= size as u64);
            }
        }
    }
}
