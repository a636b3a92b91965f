//! The header areas of a disk's LUKS volumes: read and stored by themselves, and excised from the disk, so that no chunk of
//! it holds a byte of them.

use sha2::{Digest as _, Sha256};
use strongroom_disk::{BlockSource as _, HeaderArea, Luks, NoArea, RangeSet};
use strongroom_nbd::Client;
use strongroom_points::digest;
use strongroom_points::headers::{AreaRecord, PIECE};
use strongroom_points::manifest::{DiskRecord, HeaderRecord, LuksRecord};
use strongroom_points::store::{ArchiveWriter, ChunkRef};

use super::BackupError;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::DiskPlan;

/// The LUKS volumes of a disk, with what became of their headers.
#[derive(Debug, Default)]
pub struct HeaderAreas {
    /// All volumes.
    pub luks: Vec<LuksRecord>,
    /// The areas that are stored apart, with their chunks.
    pub stored: Vec<(AreaRecord, Vec<ChunkRef>)>,
    /// Bytes read.
    pub read: u64,
    /// Bytes that the repository had to store.
    pub stored_bytes: u64,
}

impl HeaderAreas {
    /// Finds the volumes and, if headers are kept `apart`, stores their areas. A header that cannot be read or told apart
    /// is no reason to stop: it stays where it is, as a part of the disk.
    pub fn take(
        context: &Context<'_>,
        disk: &DiskPlan,
        apart: bool,
        client: &mut Client,
        writer: &mut ArchiveWriter,
    ) -> Result<Self, BackupError> {
        let mut headers = Self::default();
        let volumes = Luks::find(client).unwrap_or_else(|error| {
            context.warn(
                Code::HeadersUnreadable,
                format!(
                    "disk {}: its LUKS headers cannot be located: {error}",
                    disk.target
                ),
            );
            Vec::new()
        });
        for luks in volumes {
            let header = match &luks.area {
                Ok(area) if apart => Some(headers.store(disk, &luks, area, client, writer)?),
                Ok(_) => None,
                Err(why) => {
                    if apart {
                        warn_inside(context, disk, &luks, *why);
                    }
                    None
                }
            };
            headers.luks.push(LuksRecord {
                offset: luks.offset,
                version: luks.version,
                uuid: luks.uuid,
                digests: luks.digests,
                tokens: luks.tokens.into_iter().map(|token| token.kind).collect(),
                header,
            });
        }
        Ok(headers)
    }

    fn store(
        &mut self,
        disk: &DiskPlan,
        luks: &Luks,
        area: &HeaderArea,
        client: &mut Client,
        writer: &mut ArchiveWriter,
    ) -> Result<HeaderRecord, BackupError> {
        let mut hash = Sha256::new();
        let mut chunks = Vec::new();
        for piece in area.extent.pieces(PIECE as u64) {
            let mut bytes = vec![0; piece.length() as usize];
            client
                .read_at(piece.offset(), &mut bytes)
                .map_err(|source| BackupError::Header {
                    disk: disk.target.clone(),
                    source,
                })?;
            hash.update(&bytes);
            let chunk = if digest::is_zero(&bytes) {
                writer.zero_chunk(bytes.len() as u32)?
            } else {
                let before = writer.data_stored();
                let chunk = writer.put_data(&bytes)?;
                self.stored_bytes += writer.data_stored() - before;
                chunk
            };
            chunks.push(chunk);
        }
        let length = area.extent.length();
        self.read += length;
        let header = HeaderRecord {
            length,
            binding: area.binding.clone(),
            sha256: digest::hex(&hash.finalize()),
        };
        let stored = AreaRecord {
            disk: disk.target.clone(),
            offset: luks.offset,
            length,
            uuid: luks.uuid.clone(),
            binding: header.binding.clone(),
            sha256: header.sha256.clone(),
            digest: digest::of_chunks(&chunks),
        };
        self.stored.push((stored, chunks));
        Ok(header)
    }

    /// The parts of the disk that are stored apart.
    pub fn excised(&self) -> RangeSet {
        excised(&self.luks)
    }
}

/// What the parent's chunks of a disk lack.
pub fn excised_from(parent: Option<&DiskRecord>) -> RangeSet {
    parent.into_iter().flat_map(DiskRecord::areas).collect()
}

fn excised(luks: &[LuksRecord]) -> RangeSet {
    luks.iter().filter_map(LuksRecord::area).collect()
}

/// The changes of what is left of a disk: none in the excised parts, and all that the parent lacked or had more.
pub fn changes(changed: &RangeSet, before: &RangeSet, excised: &RangeSet) -> RangeSet {
    let moved = before.subtract(excised).union(&excised.subtract(before));
    changed.subtract(excised).union(&moved)
}

/// Says of volumes that the parent had that their headers are gone: without a header no key opens older backups either,
/// once the last one is pruned.
pub fn warn_gone(context: &Context<'_>, disk: &str, before: Option<&DiskRecord>, now: &[LuksRecord]) {
    for old in before.iter().flat_map(|disk| &disk.luks) {
        let Some(header) = &old.header else { continue };
        let is_here = |luks: &&LuksRecord| {
            luks.uuid == old.uuid
                && luks
                    .header
                    .as_ref()
                    .is_none_or(|now| now.binding == header.binding)
        };
        if now.iter().find(is_here).is_none() {
            context.warn(Code::HeaderLost, format!(
                "disk {disk}: LUKS volume {} at {}, which the restore point before has, has lost its header or has another \
                 volume key: keep the archives of headers as long as the restore points that need them",
                old.uuid, old.offset
            ));
        }
    }
}

fn warn_inside(context: &Context<'_>, disk: &DiskPlan, luks: &Luks, why: NoArea) {
    context.warn(
        Code::HeaderInside,
        format!(
            "disk {}: the header of LUKS volume {} at {} stays in the restore point: {why}",
            disk.target, luks.uuid, luks.offset
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ranges;

    #[test]
    fn a_change_of_the_header_alone_changes_nothing_of_the_disk() {
        let header = ranges(&[(100, 50)]);
        let changed = ranges(&[(110, 10), (140, 20)]);
        assert_eq!(changes(&changed, &header, &header), ranges(&[(150, 10)]));
        // Newly excised, no more excised, moved: read again.
        let none = RangeSet::new();
        assert_eq!(changes(&none, &none, &header), header);
        assert_eq!(changes(&none, &header, &none), header);
        let moved = ranges(&[(120, 50)]);
        assert_eq!(changes(&none, &header, &moved), ranges(&[(100, 20), (150, 20)]));
    }
}
