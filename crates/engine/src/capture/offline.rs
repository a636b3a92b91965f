//! The view of a shut-off VM: one read-only NBD server a disk.

use std::time::Duration;

use strongroom_nbd::{Backing, Format, QemuNbd, Serve};

use super::CaptureError;
use super::{Begun, Server};
use crate::files::stamp::Stamps;
use crate::run::context::Context;
use crate::run::event::OpenExport;
use crate::run::plan::{DiskPlan, Plan};

/// Serves a shut-off VM's disks. The images are opened without a lock: a lock would keep the owner from starting
/// the VM. [`Capture::check`] finds out whether that happened.
pub fn begin(context: &Context<'_>, plan: &Plan) -> Result<Begun, CaptureError> {
    if !context.hypervisor.is_local() {
        return Err(CaptureError::OfflineRemote(plan.vm.clone()));
    }
    let mut exports = Vec::new();
    let mut servers = Vec::new();
    for disk in &plan.disks {
        let image = disk.source.clone().unwrap_or_default();
        let format = format_of(disk)?;
        let stamps = Stamps::take(&image, format);
        let serve = Serve {
            export: disk.target.clone(),
            backing: Backing::Follow,
            ..Serve::peek(format)
        };
        let process = QemuNbd::start(&image, &serve).map_err(|source| CaptureError::Export {
            disk: disk.target.clone(),
            source,
        })?;
        exports.push(OpenExport {
            target: disk.target.clone(),
            at: process.target(),
        });
        servers.push(Server {
            _process: process,
            stamps,
        });
    }
    Ok((Duration::ZERO, exports, servers))
}

/// The format as defined; others than these two cannot be opened as what the guest sees.
pub fn format_of(disk: &DiskPlan) -> Result<Format, CaptureError> {
    match disk.format.as_str() {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        other => Err(CaptureError::Format {
            disk: disk.target.clone(),
            format: other.to_owned(),
        }),
    }
}
