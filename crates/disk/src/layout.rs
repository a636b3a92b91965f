//! The layout of a swap disk: what is kept of it in a backup instead of its content.
//!
//! Swap holds whatever the guest had in memory, so none of it is read but partition tables and the first page of
//! the areas. From these an empty disk with the same UUIDs and labels is made at restore, and the guest's
//! `/etc/fstab` and `/etc/crypttab` find what they name.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    gpt::{Gpt, GptError, GptReadError, Partition},
    source::{BlockSource, ReadError},
    swap::{PAGE, SwapArea, SwapError},
};

/// Bytes to be written to a new, empty disk, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWrite {
    /// The position on the disk.
    pub offset: u64,
    /// What belongs there.
    pub bytes: Vec<u8>,
}

/// What a swap disk looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "lowercase")]
pub enum SwapLayout {
    /// Nothing that is known: a disk that gets a new key and a new header at each boot, for example.
    Blank,
    /// The whole disk is one swap area.
    Bare(SwapArea),
    /// A partitioned disk.
    Gpt {
        /// The GUID of the disk.
        disk_guid: Uuid,
        /// Its partitions by number.
        partitions: Vec<SwapPartition>,
    },
}

/// A partition of a swap disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwapPartition {
    /// Its number, counted from 1.
    pub number: u32,
    /// Its first sector of 512 bytes.
    pub first_lba: u64,
    /// Its last sector.
    pub last_lba: u64,
    /// What it is for.
    pub type_guid: Uuid,
    /// Its own GUID.
    pub guid: Uuid,
    /// Attribute bits.
    #[serde(default)]
    pub attributes: u64,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The swap area in it, if it holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapArea>,
}

/// Why a layout could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The disk could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The partition table is damaged or cannot be on such a disk.
    #[error(transparent)]
    Gpt(#[from] GptError),
    /// The swap area cannot be on such a disk.
    #[error("swap area at {offset}: {source}")]
    Swap {
        /// Where the area starts.
        offset: u64,
        /// Why.
        source: SwapError,
    },
}

impl From<GptReadError> for LayoutError {
    fn from(error: GptReadError) -> Self {
        match error {
            GptReadError::Read(error) => Self::Read(error),
            GptReadError::Gpt(error) => Self::Gpt(error),
        }
    }
}

impl SwapLayout {
    /// Looks at a disk. Reads sectors of partition tables and first pages of areas, nothing else.
    pub fn read(disk: &mut impl BlockSource) -> Result<Self, LayoutError> {
        let size = disk.size();
        if let Some(area) = read_area(disk, 0, size)? {
            return Ok(Self::Bare(area));
        }
        let Some(gpt) = Gpt::read(disk)? else {
            return Ok(Self::Blank);
        };
        let mut partitions = Vec::with_capacity(gpt.partitions.len());
        for partition in gpt.partitions {
            let swap = match partition.bytes() {
                Some((offset, length)) => read_area(disk, offset, length)?,
                None => None,
            };
            partitions.push(SwapPartition::new(partition, swap));
        }
        Ok(Self::Gpt {
            disk_guid: gpt.disk_guid,
            partitions,
        })
    }

    /// What has to be written to a blank disk of `size` bytes to give it this layout, with empty swap areas.
    pub fn write(&self, size: u64) -> Result<Vec<DiskWrite>, LayoutError> {
        match self {
            Self::Blank => Ok(Vec::new()),
            Self::Bare(area) => Ok(vec![write_area(area, 0, size)?]),
            Self::Gpt {
                disk_guid,
                partitions,
            } => {
                let gpt = Gpt {
                    disk_guid: *disk_guid,
                    partitions: partitions.iter().map(SwapPartition::entry).collect(),
                };
                let table = gpt.to_sectors(size)?;
                let mut writes: Vec<_> = table
                    .into_iter()
                    .map(|(offset, bytes)| DiskWrite { offset, bytes })
                    .collect();
                for (partition, entry) in partitions.iter().zip(&gpt.partitions) {
                    if let (Some(area), Some((offset, length))) = (&partition.swap, entry.bytes()) {
                        writes.push(write_area(area, offset, length)?);
                    }
                }
                Ok(writes)
            }
        }
    }
}

impl SwapPartition {
    fn new(partition: Partition, swap: Option<SwapArea>) -> Self {
        let Partition {
            number,
            first_lba,
            last_lba,
            type_guid,
            guid,
            attributes,
            name,
        } = partition;
        Self {
            number,
            first_lba,
            last_lba,
            type_guid,
            guid,
            attributes,
            name,
            swap,
        }
    }

    fn entry(&self) -> Partition {
        Partition {
            number: self.number,
            first_lba: self.first_lba,
            last_lba: self.last_lba,
            type_guid: self.type_guid,
            guid: self.guid,
            attributes: self.attributes,
            name: self.name.clone(),
        }
    }
}

fn read_area(disk: &mut impl BlockSource, offset: u64, length: u64) -> Result<Option<SwapArea>, ReadError> {
    let mut page = [0; PAGE];
    if length < PAGE as u64 {
        return Ok(None);
    }
    disk.read_at(offset, &mut page)?;
    Ok(SwapArea::parse(&page))
}

fn write_area(area: &SwapArea, offset: u64, length: u64) -> Result<DiskWrite, LayoutError> {
    let page = area
        .to_page(length)
        .map_err(|source| LayoutError::Swap { offset, source })?;
    Ok(DiskWrite {
        offset,
        bytes: page.to_vec(),
    })
}
