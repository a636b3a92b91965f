//! One disk of a backup: which of its bytes are read, and that what is not read can be trusted.

use strongroom_disk::gpt::Gpt;
use strongroom_disk::{ExtentMap, RangeSet};
use strongroom_nbd::{Client, Options};
use strongroom_points::headers::AreaRecord;
use strongroom_points::manifest::{DiskRecord, LuksRecord, Mode};
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{ArchiveWriter, ChunkRef};
use uuid::Uuid;

use super::BackupError;
use super::chunking;
use super::luks_headers::{self, HeaderAreas};
use super::spot_check::{self, SpotCheckError};
use super::throttle::Throttler;
use super::{ciphertext_only, stream};
use crate::capture::Capture;
use crate::config::LuksHeaders;
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::DiskPlan;
use crate::run::settings::VmJob;

/// A disk that is in the repository, and how it got there.
#[derive(Debug)]
pub struct DiskResult {
    /// Its chunks, in order.
    pub chunks: Vec<ChunkRef>,
    /// Bytes read from the hypervisor.
    pub read: u64,
    /// Requests that this took.
    pub requests: u64,
    /// Bytes that the repository had to store.
    pub stored: u64,
    /// How it was read: as planned, unless the spot check found the map of changes to be wrong.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// The archive that unchanged chunks were taken over from.
    pub parent: Option<String>,
    /// Unchanged chunks that were read all the same, and found unchanged.
    pub audited: u64,
    /// Where the spot check found that the map of changes is wrong.
    pub map_wrong_at: Option<u64>,
    /// The LUKS volumes on it.
    pub luks: Vec<LuksRecord>,
    /// The GUID of its partition table.
    pub table: Option<Uuid>,
    /// Their header areas that are stored apart, with their chunks.
    pub areas: Vec<(AreaRecord, Vec<ChunkRef>)>,
}

/// Reads one disk into the repository.
pub fn read(
    context: &Context<'_>,
    job: &VmJob,
    capture: &Capture<'_>,
    disk: &DiskPlan,
    points: &[&RestorePoint],
    throttler: &Throttler,
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
    let size = |client: &Client| {
        if client.size() == disk.size {
            return Ok(());
        }
        Err(BackupError::Size {
            disk: disk.target.clone(),
            export: client.size(),
            expected: disk.size,
        })
    };
    size(&client)?;
    let mut maps = None;
    if let Some(target) = capture.data(disk) {
        let data = Client::connect(&target, &Options::plain()).map_err(read_error)?;
        size(&data)?;
        maps = Some(std::mem::replace(&mut client, data));
    }
    ciphertext_only::check(
        context,
        job,
        capture.plan(),
        &disk.target,
        &mut client,
        maps.as_mut(),
    )?;
    let apart = job.luks_headers == LuksHeaders::Apart;
    let table = Gpt::read(&mut client).ok().flatten().map(|table| table.disk_guid);
    let headers = HeaderAreas::take(context, disk, apart, &mut client, writer)?;
    let excised = headers.excised();
    let newest = points.first().and_then(|point| point.manifest.disk(&disk.target));
    luks_headers::warn_gone(context, &disk.target, newest, &headers.luks);
    let mut result = DiskResult {
        chunks: Vec::new(),
        read: 0,
        requests: 0,
        stored: 0,
        mode: disk.mode,
        reason: disk.reason.clone(),
        parent: disk.parent.clone(),
        audited: 0,
        map_wrong_at: None,
        luks: headers.luks,
        table,
        areas: headers.stored,
    };
    let full = |allocation: &ExtentMap| chunking::plan_chunks(&[], &RangeSet::all(disk.size), allocation);
    let mut basis = None;
    if let (Some(bitmap), Some(parent)) = (&dirty, &disk.parent) {
        let point = points
            .iter()
            .find(|point| point.name() == *parent)
            .ok_or_else(incomplete)?;
        let record = point.manifest.disk(&disk.target).ok_or_else(incomplete)?;
        if let Some(why) = another(record, table, &result.luks) {
            context.note(format!("disk {}: {why}; it is read in full", disk.target));
            result.mode = Mode::Full;
            result.reason = why;
            result.parent = None;
        } else {
            basis = Some((bitmap, *point, record));
        }
    }
    let pieces = if let Some((bitmap, point, record)) = basis {
        let (allocation, changed) = maps
            .as_mut()
            .unwrap_or(&mut client)
            .block_status_all(bitmap)
            .map_err(read_error)?;
        let allocation = allocation.with_holes(&excised);
        let before = luks_headers::excised_from(Some(record));
        let mut changed = luks_headers::changes(&changed, &before, &excised);
        // What the repository has lost is read again: unchanged, it heals all restore points that it is part of.
        for extent in point.damaged_extents(&disk.target) {
            changed.insert(extent);
        }
        let pieces = chunking::plan_chunks(
            point.chunks(&disk.target).ok_or_else(incomplete)?,
            &changed,
            &allocation,
        );
        let (count, options) = (job.spot_check, throttler.options(context));
        match spot_check::sample(
            &pieces,
            &allocation,
            &excised,
            count,
            &mut client,
            &options,
            &writer.sealer(),
        ) {
            Ok(audited) => {
                result.audited = audited;
                pieces
            }
            Err(SpotCheckError::Read(strongroom_nbd::Error::Cancelled)) => {
                return Err(context.cancel.why().into());
            }
            Err(SpotCheckError::Read(source)) => return Err(read_error(source)),
            Err(SpotCheckError::Changed { offset }) => {
                context.warn(Code::ChangeMapWrong, format!(
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
        let allocation = maps
            .as_mut()
            .unwrap_or(&mut client)
            .allocation()
            .map_err(read_error)?;
        full(&allocation.with_holes(&excised))
    };
    let streamed = stream::stream(context, &disk.target, &mut client, &pieces, writer, throttler)?;
    Ok(DiskResult {
        chunks: streamed.chunks,
        read: streamed.read + headers.read,
        requests: client.requests(),
        stored: streamed.stored + headers.stored_bytes,
        ..result
    })
}

/// Why what a disk holds shows that it is another one than the disk of this record, if it does: a partition table of its own,
/// or volumes none of which was there.
fn another(record: &DiskRecord, table: Option<Uuid>, luks: &[LuksRecord]) -> Option<String> {
    if let (Some(before), Some(now)) = (record.table, table)
        && before != now
    {
        return Some(format!(
            "it holds another disk's partition table ({now}, it was {before})"
        ));
    }
    let known = |volume: &LuksRecord| record.luks.iter().any(|before| before.uuid == volume.uuid);
    let strange = luks.first().filter(|_| !luks.iter().any(known))?;
    let before = record.luks.first()?;
    Some(format!(
        "it holds other LUKS volumes ({}, it was {})",
        strange.uuid, before.uuid
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(uuid: &str) -> LuksRecord {
        LuksRecord {
            offset: 0,
            version: 2,
            uuid: uuid.into(),
            digests: Vec::new(),
            tokens: Vec::new(),
            header: None,
        }
    }

    /// A7 from another machine, where files cannot be told apart: what a disk holds tells it from its neighbour.
    #[test]
    fn a_disk_is_known_by_what_it_holds() {
        let [one, two] = [1, 2].map(Uuid::from_u128);
        let record = |table, luks: &[&str]| {
            let json = serde_json::json!({
                "target": "vda", "size": 1, "source_format": "qcow2", "mode": "full", "reason": "", "parent": null,
                "tracked": true, "digest": "", "chunks": 0, "bytes_read": 0, "bytes_stored": 0, "luks": [],
            });
            let mut record: DiskRecord = serde_json::from_value(json).unwrap();
            record.table = table;
            record.luks = luks.iter().map(|uuid| volume(uuid)).collect();
            record
        };
        let volumes = |uuids: &[&str]| uuids.iter().map(|uuid| volume(uuid)).collect::<Vec<_>>();
        assert_eq!(another(&record(None, &[]), None, &[]), None);
        assert_eq!(another(&record(Some(one), &[]), Some(one), &[]), None);
        assert!(another(&record(Some(one), &[]), Some(two), &[]).is_some());
        // A table or a volume that came or went is what a guest does: the map of changes knows of it.
        assert_eq!(another(&record(None, &[]), Some(two), &volumes(&["a"])), None);
        assert_eq!(another(&record(Some(one), &["a"]), None, &[]), None);
        assert_eq!(
            another(&record(None, &["a", "b"]), None, &volumes(&["c", "b"])),
            None
        );
        assert!(another(&record(None, &["a"]), None, &volumes(&["b"])).is_some());
    }
}
