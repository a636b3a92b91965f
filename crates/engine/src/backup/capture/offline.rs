//! The view of a shut-off VM: one read-only NBD server a disk.

use std::path::Path;
use std::time::{Duration, SystemTime};

use strongroom_nbd::{Backing, Format, QemuNbd, Serve};

use super::super::BackupError;
use super::super::plan::{DiskPlan, Plan};
use super::{Begun, Server};
use crate::context::Context;
use crate::event::OpenExport;

/// Serves a shut-off VM's disks. The images are opened without a lock: a lock would keep the owner from starting
/// the VM. [`Capture::check`] finds out whether that happened.
pub fn begin(context: &Context<'_>, plan: &Plan) -> Result<Begun, BackupError> {
    if !context.hypervisor.is_local() {
        return Err(BackupError::OfflineRemote(plan.vm.clone()));
    }
    let mut exports = Vec::new();
    let mut servers = Vec::new();
    for disk in &plan.disks {
        let image = disk.source.clone().unwrap_or_default();
        let stamp = stamp(&image);
        let serve = Serve {
            export: disk.target.clone(),
            backing: Backing::Follow,
            ..Serve::peek(format_of(disk)?)
        };
        let process = QemuNbd::start(&image, &serve).map_err(|source| BackupError::Export {
            disk: disk.target.clone(),
            source,
        })?;
        exports.push(OpenExport {
            target: disk.target.clone(),
            at: process.target(),
        });
        servers.push(Server {
            _process: process,
            image,
            stamp,
        });
    }
    Ok((Duration::ZERO, exports, servers))
}

/// What changes when an image is written to.
pub fn stamp(image: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(image).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The format as defined; others than these two cannot be opened as what the guest sees.
pub fn format_of(disk: &DiskPlan) -> Result<Format, BackupError> {
    match disk.format.as_str() {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        other => Err(BackupError::Format {
            disk: disk.target.clone(),
            format: other.to_owned(),
        }),
    }
}
