//! Chains of images, external snapshots and block commits ([`Chains`]).
//!
//! libvirt's word alone does not do: killed inside a call, it may forget a snapshot that QEMU has taken, or keep
//! showing a block job that QEMU has ended. So QEMU is asked too, and the three views are given side by side.

mod behind;
pub mod definition;
pub mod inactive;
mod snapshot;

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Chain, Chains, HypervisorError, Overlay, Repair, SnapshotDisk};
use uuid::Uuid;
use virt::domain::Domain as Handle;
use virt::error::Error;
use virt::sys::{
    VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC, VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA, VIR_DOMAIN_XML_INACTIVE, VIR_DOMAIN_XML_SECURE,
};

use self::definition::DiskChain;
use crate::connection::{Libvirt, words};
use crate::hypervisor::is_busy;
use crate::qemu::nodes::{Drive, Job};
use crate::qemu::{Monitor, MonitorError};
use crate::repair::{self, status::Wedged};
use crate::sys;

/// How often the views are read at most until the live definition is the same before and after.
const READS: usize = 3;

impl Chains for Libvirt {
    fn chains(&self, domain: Uuid) -> Result<Vec<Chain>, HypervisorError> {
        let call = Call::new(self, domain, "read the chains of images of")?;
        let mut live = call.live()?;
        let mut reads = 1;
        loop {
            let inactive = call.inactive()?;
            let qemu = match live {
                Some(_) => call.qemu(),
                None => Ok((Vec::new(), Vec::new())),
            };
            let after = call.live()?;
            if after == live || reads == READS {
                // QEMU's failure may be its end, which the next look shows; once nothing changes it is one.
                let (drives, jobs) = qemu?;
                return Ok(combine(live.unwrap_or_default(), inactive, &drives, &jobs));
            }
            live = after;
            reads += 1;
        }
    }

    fn take_snapshot(&self, domain: Uuid, disks: &[SnapshotDisk]) -> Result<Duration, HypervisorError> {
        let call = Call::new(self, domain, "take a snapshot of")?;
        if !self.is_active(&call.handle)? {
            // libvirt would make the overlay with qemu-img and change the definition.
            return Err(call.refuse("the domain does not run".into()));
        }
        if self.local() {
            for SnapshotDisk { overlay, .. } in disks {
                // An empty file libvirt would take, and a link it would follow.
                if overlay.symlink_metadata().is_ok() {
                    return Err(call.refuse(format!("{} exists already", overlay.display())));
                }
            }
        }
        let request =
            snapshot::request(disks, &self.live_disks(&call.handle)?).map_err(|e| call.refuse(e))?;
        let flags = VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
        let start = Instant::now();
        let taken = call.handle.create_snapshot_xml(&request, flags);
        let took = start.elapsed();
        taken.map_err(|error| call.failed(&error))?;
        Ok(took)
    }

    fn start_commit(
        &self,
        domain: Uuid,
        target: &str,
        overlay: &Path,
        base: &Path,
        bytes_per_second: u64,
    ) -> Result<(), HypervisorError> {
        let call = Call::new(self, domain, &format!("commit the overlay of {target} of"))?;
        let (base, top) = (call.path(base)?, call.path(overlay)?);
        sys::commit_active(&call.handle, target, base, top, bytes_per_second)
            .map_err(|error| call.failed(&error))
    }

    fn pivot(&self, domain: Uuid, target: &str) -> Result<(), HypervisorError> {
        let call = Call::new(self, domain, &format!("end the block job on {target} of"))?;
        sys::pivot(&call.handle, target).map_err(|error| call.failed(&error))
    }

    fn set_inactive_image(
        &self,
        domain: Uuid,
        target: &str,
        image: &Path,
        format: &str,
    ) -> Result<(), HypervisorError> {
        let call = Call::new(
            self,
            domain,
            &format!("set the image of {target} in the definition of"),
        )?;
        if !call.handle.is_persistent().map_err(|error| call.failed(&error))? {
            // To define it would make it stay after its end.
            return Err(call.refuse("it is transient and has no inactive definition".into()));
        }
        let xml = || {
            let xml = call
                .handle
                .xml_desc(VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
            xml.map_err(|error| call.failed(&error))
        };
        let before = xml()?;
        let block = call.is_block(target, image)?;
        let rewrite = |xml: &str| {
            inactive::rewrite(xml, target, image, block, format).map_err(|message| call.refuse(message))
        };
        let Some(changed) = rewrite(&before)? else {
            return Ok(());
        };
        let defined = self.connection()?.define_domain_xml(&changed);
        // Whatever the call said: what is defined now counts.
        match (rewrite(&xml()?)?, defined) {
            (None, _) => Ok(()),
            (Some(_), Err(error)) => Err(call.failed(&error)),
            (Some(_), Ok(_)) => Err(call.refuse("the definition still says something else".into())),
        }
    }

    fn events(&self, domain: Uuid) -> u64 {
        self.events.of(domain);
        // That there is no connection now is no error here: opened again, it is registered and an event counted.
        let _ = self.connection();
        self.events.of(domain)
    }

    fn await_event(&self, domain: Uuid, seen: u64, at_most: Duration) -> u64 {
        let _ = self.events(domain);
        self.events.wait(domain, seen, at_most)
    }
}

impl Repair for Libvirt {
    fn commit_behind_libvirt(
        &self,
        domain: Uuid,
        target: &str,
        overlay: &Path,
        base: &Path,
    ) -> Result<(), HypervisorError> {
        let call = Call::new(
            self,
            domain,
            &format!("commit the overlay of {target}, which libvirt does not know of, of"),
        )?;
        let alias = call.alias(target)?;
        behind::commit(Monitor(&call.handle), target, &alias, overlay, base)
            .map_err(|error| call.monitor_failed(error))
    }

    fn repair_status(&self, domain: Uuid, disks: &[Overlay]) -> Result<(), HypervisorError> {
        let wedged = |entry: &Overlay| Wedged {
            target: entry.target.clone(),
            overlay: entry.overlay.clone(),
            base: entry.base.clone(),
        };
        let wedged: Vec<Wedged> = disks.iter().map(wedged).collect();
        repair::repair(self, domain, &wedged)?;
        let call = Call::new(self, domain, "close the overlays of")?;
        for disk in disks {
            // A file that stays open does no harm.
            let _ = behind::close(Monitor(&call.handle), &disk.overlay);
        }
        Ok(())
    }
}

/// One request to a domain, and the words for its failure.
struct Call<'a> {
    libvirt: &'a Libvirt,
    domain: Uuid,
    handle: Handle,
    what: String,
}

impl<'a> Call<'a> {
    fn new(libvirt: &'a Libvirt, domain: Uuid, what: &str) -> Result<Self, HypervisorError> {
        Ok(Self {
            libvirt,
            domain,
            handle: libvirt.handle(domain)?,
            what: format!("{what} domain {domain}"),
        })
    }

    fn refuse(&self, message: String) -> HypervisorError {
        HypervisorError::Failed {
            what: self.what.clone(),
            message,
        }
    }

    fn failed(&self, error: &Error) -> HypervisorError {
        if is_busy(error) {
            HypervisorError::Busy {
                domain: self.domain.to_string(),
                message: words(error),
            }
        } else {
            self.libvirt.failed(self.what.clone(), error)
        }
    }

    fn monitor_failed(&self, error: MonitorError) -> HypervisorError {
        match error {
            MonitorError::Libvirt(error) => self.failed(&error),
            MonitorError::Qemu(message) => self.refuse(message),
        }
    }

    fn path<'p>(&self, path: &'p Path) -> Result<&'p str, HypervisorError> {
        path.to_str()
            .ok_or_else(|| self.refuse(format!("{} is not UTF-8", path.display())))
    }

    fn disks(&self, flags: u32) -> Result<Vec<DiskChain>, HypervisorError> {
        let xml = self.handle.xml_desc(flags).map_err(|error| self.failed(&error))?;
        definition::read(&xml).map_err(|reason| HypervisorError::Definition {
            domain: self.handle.name().unwrap_or_else(|_| self.domain.to_string()),
            reason,
        })
    }

    /// The live definition; `None` while the domain is off.
    fn live(&self) -> Result<Option<Vec<DiskChain>>, HypervisorError> {
        if !self.libvirt.is_active(&self.handle)? {
            return Ok(None);
        }
        self.disks(0).map(Some)
    }

    fn inactive(&self) -> Result<Vec<DiskChain>, HypervisorError> {
        self.disks(VIR_DOMAIN_XML_INACTIVE)
    }

    fn qemu(&self) -> Result<(Vec<Drive>, Vec<Job>), HypervisorError> {
        let monitor = Monitor(&self.handle);
        let both = monitor.drives().and_then(|drives| Ok((drives, monitor.jobs()?)));
        both.map_err(|error| self.monitor_failed(error))
    }

    /// Whether an image of a disk is a block device: as one of the definitions says, or else the file itself.
    fn is_block(&self, target: &str, image: &Path) -> Result<bool, HypervisorError> {
        let mut disks = self.live()?.unwrap_or_default();
        disks.extend(self.inactive()?);
        let mut images = disks
            .iter()
            .filter(|disk| disk.target == target)
            .flat_map(|disk| &disk.images);
        Ok(match images.find(|known| known.path == image) {
            Some(known) => known.block,
            None => {
                self.libvirt.local()
                    && std::fs::metadata(image).is_ok_and(|found| found.file_type().is_block_device())
            }
        })
    }

    /// The live alias of a disk, by which QEMU knows it.
    fn alias(&self, target: &str) -> Result<String, HypervisorError> {
        let live = self.live()?.unwrap_or_default();
        live.into_iter()
            .find(|disk| disk.target == target)
            .and_then(|disk| disk.alias)
            .ok_or_else(|| self.refuse("it does not run, or has no such disk".into()))
    }
}

/// Puts the views side by side, in the order of the live definition. Disks that only the inactive one has come last.
fn combine(live: Vec<DiskChain>, inactive: Vec<DiskChain>, drives: &[Drive], jobs: &[Job]) -> Vec<Chain> {
    let mut inactive: Vec<Option<DiskChain>> = inactive.into_iter().map(Some).collect();
    let mut chains = Vec::new();
    for disk in live {
        let same = inactive
            .iter_mut()
            .find(|other| other.as_ref().is_some_and(|other| other.target == disk.target));
        let drive = disk
            .alias
            .as_deref()
            .and_then(|alias| drives.iter().find(|drive| drive.is(alias)));
        chains.push(Chain {
            qemu: drive.map_or_else(Vec::new, |drive| drive.images.clone()),
            live: disk.paths(),
            inactive: same
                .and_then(Option::take)
                .map_or_else(Vec::new, |disk| disk.paths()),
            job: disk.job,
            job_in_qemu: jobs.iter().any(|job| job.is_on(&disk.target)),
            target: disk.target,
        });
    }
    for disk in inactive.into_iter().flatten() {
        chains.push(Chain {
            inactive: disk.paths(),
            target: disk.target,
            qemu: Vec::new(),
            live: Vec::new(),
            job: None,
            job_in_qemu: false,
        });
    }
    chains
}
