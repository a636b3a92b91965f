//! One disk of a backup: which of its bytes are read, and that what is not read can be trusted.

use strongroom_borg::{ArchiveWriter, ChunkRef};
use strongroom_disk::{ExtentMap, Luks, RangeSet};
use strongroom_nbd::{Client, Options};

use super::BackupError;
use super::capture::Capture;
use super::cells;
use super::pace::Pace;
use super::plan::DiskPlan;
use super::{audit, stream};
use crate::context::Context;
use crate::history::Point;
use crate::manifest::{LuksRecord, Mode};

/// A disk that is in the repository, and how it got there.
#[derive(Debug)]
pub struct DiskResult {
    /// Its chunks, in order.
    pub chunks: Vec<ChunkRef>,
    /// Bytes read from the hypervisor.
    pub read: u64,
    /// Bytes that the repository had to store.
    pub stored: u64,
    /// How it was read: as planned, unless the audit found the map of changes to be wrong.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// The archive that unchanged chunks were taken over from.
    pub parent: Option<String>,
    /// Unchanged chunks that were read all the same, and found unchanged.
    pub audited: u64,
    /// Where the audit found that the map of changes is wrong.
    pub map_wrong_at: Option<u64>,
    /// The LUKS volumes on it.
    pub luks: Vec<LuksRecord>,
}

/// Reads one disk into the repository.
pub fn read(
    context: &Context<'_>,
    capture: &Capture<'_>,
    disk: &DiskPlan,
    points: &[&Point],
    pace: &Pace,
    writer: &mut ArchiveWriter,
) -> Result<DiskResult, BackupError> {
    let read_error = |source| BackupError::Read {
        disk: disk.target.clone(),
        source,
    };
    let incomplete = || BackupError::Incomplete {
        disk: disk.target.clone(),
    };
    let (target, dirty) = capture.target(disk).ok_or_else(incomplete)?;
    let options = Options {
        dirty_bitmaps: dirty.iter().cloned().collect(),
        ..Options::default()
    };
    let mut client = Client::connect(&target, &options).map_err(read_error)?;
    if client.size() != disk.size {
        let (disk, expected) = (disk.target.clone(), disk.size);
        return Err(BackupError::Size {
            disk,
            export: client.size(),
            expected,
        });
    }
    let luks = luks_facts(context, disk, &mut client);
    let mut result = DiskResult {
        chunks: Vec::new(),
        read: 0,
        stored: 0,
        mode: disk.mode,
        reason: disk.reason.clone(),
        parent: disk.parent.clone(),
        audited: 0,
        map_wrong_at: None,
        luks,
    };
    let full = |allocation: &ExtentMap| cells::cut(&[], &RangeSet::all(disk.size), allocation);
    let cells = if let (Some(bitmap), Some(parent)) = (&dirty, &disk.parent) {
        let (allocation, mut changed) = client.block_status_all(bitmap).map_err(read_error)?;
        let point = points
            .iter()
            .find(|point| point.name() == *parent)
            .ok_or_else(incomplete)?;
        // What the repository has lost is read again: unchanged, it heals all restore points that it is part of.
        for extent in point.damaged_extents(&disk.target) {
            changed.insert(extent);
        }
        let cells = cells::cut(
            point.chunks(&disk.target).ok_or_else(incomplete)?,
            &changed,
            &allocation,
        );
        let (count, options) = (context.config.audit.count(), pace.options(context));
        match audit::sample(
            &cells,
            &allocation,
            count,
            &mut client,
            &options,
            &writer.sealer(),
        ) {
            Ok(audited) => {
                result.audited = audited;
                cells
            }
            Err(audit::AuditError::Read(strongroom_nbd::Error::Cancelled)) => {
                return Err(context.cancel.why().into());
            }
            Err(audit::AuditError::Read(source)) => return Err(read_error(source)),
            Err(audit::AuditError::Changed { offset }) => {
                context.warn(format!(
                    "disk {}: the map of changes is wrong: the chunk at offset {offset} has changed and is not in it. \
                     The disk is read in full; earlier incremental restore points of it may lack changes",
                    disk.target
                ));
                result.mode = Mode::Full;
                result.map_wrong_at = Some(offset);
                result.reason = format!("the map of changes missed a change at offset {offset}");
                result.parent = None;
                full(&allocation)
            }
        }
    } else {
        full(&client.allocation().map_err(read_error)?)
    };
    let streamed = stream::stream(context, &disk.target, &mut client, &cells, writer, pace)?;
    Ok(DiskResult {
        chunks: streamed.chunks,
        read: streamed.read,
        stored: streamed.stored,
        ..result
    })
}

/// The LUKS volumes on a disk. A header that cannot be read is no reason to stop.
fn luks_facts(context: &Context<'_>, disk: &DiskPlan, client: &mut Client) -> Vec<LuksRecord> {
    let volumes = Luks::find(client).unwrap_or_else(|error| {
        context.warn(format!(
            "disk {}: its LUKS headers cannot be told: {error}",
            disk.target
        ));
        Vec::new()
    });
    let record = |luks: Luks| LuksRecord {
        offset: luks.offset,
        version: luks.version,
        uuid: luks.uuid,
        digests: luks.digests,
        tokens: luks.tokens.into_iter().map(|token| token.kind).collect(),
    };
    volumes.into_iter().map(record).collect()
}
