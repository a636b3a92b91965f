//! Volumes of storage pools: where they lie, and how large they are.
//!
//! A disk of `type='volume'` names a pool and a volume in live definitions, too. Of pools of files and block devices libvirt tells
//! the path; of others (rbd, gluster) there is none on the hypervisor.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use strongroom_hypervisor::{Disk, DiskSource, HypervisorError, Store};
use strongroom_nbd::Header;
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

use crate::connection::Libvirt;
use crate::hypervisor::is;

/// `virStorageVolType`: the volume is a file, or a block device.
const FILE: u32 = 0;
const BLOCK: u32 = 1;

/// A volume that was found.
pub struct Found {
    /// Where it lies.
    pub store: Store,
    /// The same, of a disk; nothing for network storage.
    pub source: Option<DiskSource>,
    /// Guest-visible size in bytes, as the pool has seen it when it was last looked through.
    pub capacity: u64,
}

/// Finds a volume. A pool that does not know it is looked through once more: the file may be newer than its last look.
pub fn find(connection: &Connect, pool: &str, volume: &str) -> Result<Option<Found>, Error> {
    let gone = |error: &Error| {
        [
            ErrorNumber::NoStoragePool,
            ErrorNumber::NoStorageVolume,
            ErrorNumber::OperationInvalid,
            ErrorNumber::AccessDenied,
        ]
        .into_iter()
        .any(|number| is(error, number))
    };
    let look = || {
        let place = connection.lookup_storage_pool_by_name(pool)?;
        let found = match place.lookup_storage_vol_by_name(volume) {
            Err(error) if is(&error, ErrorNumber::NoStorageVolume) => {
                let _ = place.refresh(0);
                place.lookup_storage_vol_by_name(volume)?
            }
            found => found?,
        };
        let (path, info) = (found.path()?, found.info()?);
        let source = match info.kind {
            FILE => Some(DiskSource::File(PathBuf::from(&path))),
            BLOCK => Some(DiskSource::Block(PathBuf::from(&path))),
            _ => None,
        };
        Ok(Found {
            store: match source {
                Some(_) => Store::Path(path.into()),
                None => Store::Elsewhere(format!("{pool}:{path}")),
            },
            source,
            capacity: info.capacity,
        })
    };
    match look() {
        Err(error) if gone(&error) => Ok(None),
        found => found.map(Some),
    }
}

impl Libvirt {
    /// Puts the place of each volume in the place of its name, where there is one.
    pub(crate) fn resolve(&self, disks: &mut [Disk]) -> Result<(), HypervisorError> {
        for disk in disks {
            let DiskSource::Volume { pool, volume } = &disk.source else {
                continue;
            };
            let found = find(&self.connection()?, pool, volume).map_err(|error| {
                self.failed(format!("find volume {volume:?} of storage pool {pool:?}"), &error)
            })?;
            let Some(found) = found else { continue };
            let Some(source) = found.source else { continue };
            disk.size = self
                .local()
                .then(|| size(source.path()?, &disk.format))
                .flatten()
                // A pool probes what is in its files, which a guest can have written: of a raw one it may tell anything.
                .or((disk.format != "raw" || !self.local()).then_some(found.capacity));
            disk.source = source;
        }
        Ok(())
    }
}

/// Guest-visible size of an image of this machine, by its format as defined.
fn size(path: &Path, format: &str) -> Option<u64> {
    match format {
        "qcow2" => Header::read(path).ok()?.map(|header| header.virtual_size),
        "raw" => {
            let metadata = std::fs::metadata(path).ok()?;
            if metadata.is_file() {
                return Some(metadata.len());
            }
            // A block device ends where its size is. Opening anything else might block.
            let device = metadata.file_type().is_block_device().then_some(path)?;
            File::open(device).ok()?.seek(SeekFrom::End(0)).ok()
        }
        _ => None,
    }
}
