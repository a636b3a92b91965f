//! Dirty bitmaps beside what libvirt knows of checkpoints ([`Tracking`]): QEMU's own monitor knows those of a running domain,
//! `qemu-img` those in the images of one that is off.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use strongroom_hypervisor::{DiskSource, HypervisorError, StoredBitmap, Tracking};
use strongroom_nbd::{Format, image_info, remove_bitmap};
use uuid::Uuid;
use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt::sys::VIR_DOMAIN_XML_INACTIVE;

use crate::chains::definition as chains;
use crate::connection::Libvirt;
use crate::hypervisor::is;
use crate::qemu::nodes::Drive;
use crate::qemu::{Monitor, MonitorError};
use crate::sys::{self, Checkpoint};
use crate::{definition, job};

impl Tracking for Libvirt {
    fn bitmaps(&self, domain: Uuid) -> Result<Vec<StoredBitmap>, HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("look for the dirty bitmaps of domain {domain}");
        let mut found = Vec::new();
        if self.is_active(&handle)? {
            for (target, drive) in self.drives(&handle, &what)? {
                found.extend(drive.bitmaps.into_iter().map(|bitmap| StoredBitmap {
                    target: target.clone(),
                    name: bitmap.name,
                    sound: bitmap.sound,
                }));
            }
            return Ok(found);
        }
        for (target, image) in self.images(&handle, &what)? {
            let info = image_info(&image, Format::Qcow2, false)
                .map_err(|error| refused(&what, format!("disk {target}: failed to {error}")))?;
            found.extend(info.bitmaps.into_iter().map(|bitmap| StoredBitmap {
                target: target.clone(),
                sound: bitmap.is_consistent() && bitmap.flags.iter().any(|flag| flag == "auto"),
                name: bitmap.name,
            }));
        }
        Ok(found)
    }

    fn remove_bitmap(&self, domain: Uuid, target: &str, name: &str) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("remove bitmap {name:?} from disk {target} of domain {domain}");
        if self.is_active(&handle)? {
            let drives = self.drives(&handle, &what)?;
            let drive = drives.into_iter().find(|(of, _)| of == target);
            let Some((_, drive)) = drive.filter(|(_, drive)| has(drive, name)) else {
                return Ok(());
            };
            let arguments = json!({ "node": drive.node, "name": name });
            let removed = Monitor(&handle).ask("block-dirty-bitmap-remove", &arguments);
            return removed
                .map(drop)
                .map_err(|error| self.monitor_refused(&what, error));
        }
        let image = self
            .images(&handle, &what)?
            .into_iter()
            .find(|(of, _)| of == target);
        let Some((_, image)) = image else { return Ok(()) };
        remove_bitmap(&image, name).map_err(|error| refused(&what, error.to_string()))
    }

    fn forget_checkpoint(&self, domain: Uuid, name: &str) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("forget checkpoint {name:?} of domain {domain}");
        match Checkpoint::lookup(&handle, name).and_then(|checkpoint| checkpoint.delete_metadata()) {
            Err(error) if is(&error, ErrorNumber::NoDomainCheckpoint) => Ok(()),
            done => done.map_err(|error| self.failed(what(), &error)),
        }
    }

    fn redefine_checkpoint(
        &self,
        domain: Uuid,
        name: &str,
        targets: &[String],
    ) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("define checkpoint {name:?} of domain {domain} again");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let xml = job::redefined(
            name,
            targets,
            &self.live_disks(&handle)?,
            now.as_secs().cast_signed(),
        )
        .map_err(|message| refused(&what, message))?;
        sys::redefine_checkpoint(&handle, &xml).map_err(|error| self.failed(what(), &error))
    }
}

impl Libvirt {
    /// The drives of a running domain, by target.
    fn drives(
        &self,
        handle: &Handle,
        what: &dyn Fn() -> String,
    ) -> Result<Vec<(String, Drive)>, HypervisorError> {
        let xml = handle.xml_desc(0).map_err(|error| self.failed(what(), &error))?;
        let disks = chains::read(&xml).map_err(|message| refused(what, message))?;
        let drives = Monitor(handle)
            .drives()
            .map_err(|error| self.monitor_refused(what, error))?;
        let target = |drive: &Drive| {
            let disk = disks
                .iter()
                .find(|disk| disk.alias.as_deref().is_some_and(|alias| drive.is(alias)));
            disk.map(|disk| disk.target.clone())
        };
        Ok(drives
            .into_iter()
            .filter_map(|drive| Some((target(&drive)?, drive)))
            .collect())
    }

    /// The qcow2 images of a domain that is off, by target. Other images hold no bitmaps.
    fn images(
        &self,
        handle: &Handle,
        what: &dyn Fn() -> String,
    ) -> Result<Vec<(String, PathBuf)>, HypervisorError> {
        if !self.local() {
            let message = "it is shut off, and its images lie on another machine: start it first (`virsh start --paused` does)";
            return Err(refused(what, message.into()));
        }
        let xml = handle
            .xml_desc(VIR_DOMAIN_XML_INACTIVE)
            .map_err(|error| self.failed(what(), &error))?;
        let definition = definition::read(&xml).map_err(|message| refused(what, message))?;
        let mut disks = definition.disks;
        self.resolve(&mut disks)?;
        let qcow2 = disks
            .into_iter()
            .filter(|disk| disk.format == "qcow2" && !disk.read_only);
        Ok(qcow2
            .filter_map(|disk| match disk.source {
                DiskSource::File(path) | DiskSource::Block(path) if path.exists() => {
                    Some((disk.target, path))
                }
                _ => None,
            })
            .collect())
    }

    fn monitor_refused(&self, what: &dyn Fn() -> String, error: MonitorError) -> HypervisorError {
        match error {
            MonitorError::Libvirt(error) => self.failed(what(), &error),
            MonitorError::Qemu(message) => refused(what, message),
        }
    }
}

fn has(drive: &Drive, name: &str) -> bool {
    drive.bitmaps.iter().any(|bitmap| bitmap.name == name)
}

fn refused(what: &dyn Fn() -> String, message: String) -> HypervisorError {
    HypervisorError::Failed {
        what: what(),
        message,
    }
}
