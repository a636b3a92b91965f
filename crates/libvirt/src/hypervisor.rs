//! The port, put together.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{
    BackupJob, BadBitmap, Disk, DiskSource, Domain, Hypervisor, HypervisorError, Listener, Requests,
    Retarget, Retargeted, RunState, RunningJob,
};
use strongroom_nbd::Target;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{
    Domain as Handle, DomainPausedReason, DomainShutoffReason, DomainState, DomainStateReason,
};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys::{VIR_DOMAIN_XML_INACTIVE, VIR_DOMAIN_XML_SECURE};

use crate::connection::{self, Libvirt};
use crate::job::Described;
use crate::rights::words;
use crate::sys::Checkpoint;
use crate::{capabilities, definition, image, job, retarget, running, sys};

/// How long an aborted job may take to go away: QEMU closes its scratch files first, and libvirt hears of its end only after it
/// has waited half a minute for each time that the guest was reset meanwhile.
pub(crate) const END_DEADLINE: Duration = Duration::from_mins(4);

/// How long it is watched when the call itself failed: an error may hide a success.
const DOUBT_DEADLINE: Duration = Duration::from_secs(5);

/// What QEMU counts the sizes of disks in, whatever sectors the guest sees (`BDRV_SECTOR_SIZE`), in bytes.
const SECTOR: u64 = 512;

/// Between two looks at a job that ends.
const POLL: Duration = Duration::from_millis(20);

impl Hypervisor for Libvirt {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        self.local()
    }

    fn wanted(&self) -> Option<String> {
        self.wanted()
    }

    fn domain_names(&self) -> Result<Vec<String>, HypervisorError> {
        let failed = |error: Error| self.failed("list domains".into(), &error);
        let domains = self.connection()?.list_all_domains(0).map_err(failed)?;
        let mut names = domains
            .iter()
            .map(Handle::name)
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        names.sort_unstable();
        Ok(names)
    }

    fn domain(&self, name_or_uuid: &str) -> Result<Domain, HypervisorError> {
        let connection = self.connection()?;
        let mut found = self.by_name(&connection, name_or_uuid)?;
        if let (None, Ok(uuid)) = (&found, name_or_uuid.parse()) {
            found = self.by_uuid(&connection, uuid)?;
        }
        let handle = found.ok_or_else(|| self.no_such_domain(name_or_uuid))?;
        self.describe(&handle)
    }

    fn checkpoints(&self, domain: Uuid) -> Result<Vec<String>, HypervisorError> {
        let handle = self.handle(domain)?;
        sys::checkpoint_names(&handle)
            .map_err(|error| self.failed(format!("list the checkpoints of domain {domain}"), &error))
    }

    fn check_checkpoint(&self, domain: Uuid, name: &str) -> Result<Vec<BadBitmap>, HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("check checkpoint {name:?} of domain {domain}");
        let checkpoint = Checkpoint::lookup(&handle, name).map_err(|error| self.failed(what(), &error))?;
        if !self.is_active(&handle)? {
            // Only a running QEMU has the bitmaps open; that the checkpoint exists is all that can be said.
            return Ok(Vec::new());
        }
        let xml = checkpoint
            .xml_with_sizes()
            .map_err(|error| self.failed(what(), &error))?;
        let broken = job::without_size(&xml, &self.live_disks(&handle)?).map_err(|message| {
            HypervisorError::Failed {
                what: what(),
                message,
            }
        })?;
        let bad = |target| BadBitmap {
            target,
            why: "its bitmap is missing or inconsistent".into(),
        };
        Ok(broken.into_iter().map(bad).collect())
    }

    fn create_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        let what = format!("make checkpoint {name:?} of domain {domain}");
        let xml = job::checkpoint(name, targets, &self.live_disks(&handle)?).map_err(|message| {
            HypervisorError::Failed {
                what: what.clone(),
                message,
            }
        })?;
        sys::create_checkpoint(&handle, &xml).map_err(|error| self.failed(what, &error))
    }

    fn delete_checkpoint(&self, domain: Uuid, name: &str) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("delete checkpoint {name:?} of domain {domain}");
        let checkpoint = match Checkpoint::lookup(&handle, name) {
            Err(error) if is(&error, ErrorNumber::NoDomainCheckpoint) => return Ok(()),
            found => found.map_err(|error| self.failed(what(), &error))?,
        };
        if !self.is_active(&handle)? {
            // libvirt could forget it, but its bitmap would stay in the image for ever.
            let message = "its bitmap can be removed only while the domain runs".into();
            return Err(HypervisorError::Failed {
                what: what(),
                message,
            });
        }
        let deleted = match checkpoint.delete() {
            Err(error) if is(&error, ErrorNumber::AccessDenied) => {
                self.there(&handle, what(), &error, |vm| words::forget(vm, name, false))
            }
            deleted => deleted.map_err(|error| self.failed(what(), &error)),
        };
        let Err(failure) = deleted else {
            return Ok(());
        };
        let disks = self.live_disks(&handle)?;
        let broken = checkpoint
            .xml_with_sizes()
            .is_ok_and(|xml| !job::without_size(&xml, &disks).is_ok_and(|broken| broken.is_empty()));
        if !broken {
            return Err(failure);
        }
        match checkpoint.delete_metadata() {
            Err(error) if is(&error, ErrorNumber::AccessDenied) => {
                self.there(&handle, what(), &error, |vm| words::forget(vm, name, true))
            }
            deleted => deleted.map_err(|error| self.failed(what(), &error)),
        }
    }

    fn lacks_backup_jobs(&self, domain: Uuid) -> Result<Option<String>, HypervisorError> {
        let failed = |error: Error| self.failed(format!("read what domain {domain} is able to do"), &error);
        let xml = self.handle(domain)?.xml_desc(0).map_err(failed)?;
        let bad = |reason| HypervisorError::Definition {
            domain: domain.to_string(),
            reason,
        };
        let machine = capabilities::machine(&xml).map_err(bad)?;
        let machine = |at: usize| machine.get(at).and_then(Option::as_deref);
        let told = self
            .connection()?
            .domain_capabilities(machine(0), machine(1), machine(2), machine(3), 0)
            .map_err(failed)?;
        capabilities::lacks_backup_jobs(&told).map_err(bad)
    }

    fn begin_backup(&self, domain: Uuid, job: &BackupJob) -> Result<Duration, HypervisorError> {
        let handle = self.handle(domain)?;
        let what = || format!("start a backup job on domain {domain}");
        let busy = |message: String| HypervisorError::Busy {
            domain: domain.to_string(),
            message,
        };
        // Asked of a busy domain, libvirt would wait half a minute for its lock.
        if let Some(running) = self.described(&handle)? {
            let at = running
                .running
                .socket
                .map(|socket| format!(" with the socket {}", socket.display()));
            return Err(busy(format!(
                "a backup job{} runs already",
                at.unwrap_or_default()
            )));
        }
        let failed = |error: Error| {
            if is_busy(&error) {
                busy(connection::words(&error))
            } else {
                self.failed(what(), &error)
            }
        };
        let disks = disks(&handle, &handle.xml_desc(0).map_err(failed)?)?;
        let request = job::request(job, &disks).map_err(|message| HypervisorError::Failed {
            what: what(),
            message,
        })?;
        let start = Instant::now();
        let begun = sys::backup_begin(&handle, &request.backup, request.checkpoint.as_deref());
        match begun {
            Err(error) if is(&error, ErrorNumber::AccessDenied) => self.begin_there(&handle, job, &error)?,
            begun => begun.map_err(failed)?,
        }
        let took = start.elapsed();
        self.verify(domain, &handle, job)?;
        Ok(took)
    }

    fn backup_job(&self, domain: Uuid) -> Result<Option<RunningJob>, HypervisorError> {
        let handle = self.handle(domain)?;
        Ok(self.described(&handle)?.map(|job| job.running))
    }

    fn end_backup(&self, domain: Uuid) -> Result<(), HypervisorError> {
        let handle = self.handle(domain)?;
        // Aborting ends whatever job there is, a migration too: only a backup job is meant.
        let Some(job) = self.described(&handle)? else {
            return Ok(());
        };
        let aborted = match sys::abort_job(&handle) {
            Err(error) if is(&error, ErrorNumber::AccessDenied) => self.end_there(&handle, &error),
            Err(error) => Err(self.failed(format!("end the backup job of domain {domain}"), &error)),
            Ok(()) => Ok(()),
        };
        let deadline = Instant::now()
            + if aborted.is_ok() {
                END_DEADLINE
            } else {
                DOUBT_DEADLINE
            };
        while self.described(&handle)?.is_some_and(|running| running == job) {
            if Instant::now() < deadline {
                std::thread::sleep(POLL);
                continue;
            }
            aborted?;
            return Err(HypervisorError::Failed {
                what: format!("end the backup job of domain {domain}"),
                message: format!("it is still there after {} seconds", END_DEADLINE.as_secs()),
            });
        }
        Ok(())
    }

    fn requests(&self, domain: Uuid, targets: &[&str]) -> Result<Vec<Requests>, HypervisorError> {
        let handle = self.handle(domain)?;
        let mut all = Vec::new();
        for target in targets {
            let found = sys::requests(&handle, target).map_err(|error| {
                self.failed(
                    format!("count the requests for disk {target} of domain {domain}"),
                    &error,
                )
            })?;
            all.extend(found.map(|(count, nanoseconds)| Requests { count, nanoseconds }));
        }
        Ok(all)
    }

    fn resume_after_io_error(&self, domain: Uuid) -> Result<bool, HypervisorError> {
        if !self.stopped_by_io_error(domain)? {
            return Ok(false);
        }
        let handle = self.handle(domain)?;
        let what = || format!("resume domain {domain}");
        match handle.resume() {
            Err(error) if is(&error, ErrorNumber::AccessDenied) => {
                self.there(&handle, what(), &error, words::resume)?;
            }
            resumed => resumed.map_err(|error| self.failed(what(), &error))?,
        }
        Ok(true)
    }

    fn listener(&self, domain: Uuid, name: &str) -> Result<Listener, HypervisorError> {
        self.listener_of(domain, name)
    }

    fn export(&self, listener: &Listener, export: &str) -> Result<Target, HypervisorError> {
        self.export_at(listener, export)
    }

    fn stopped_by_io_error(&self, domain: Uuid) -> Result<bool, HypervisorError> {
        let state = self.handle(domain)?.state();
        let reason = state
            .map_err(|error| self.failed(format!("read the state of domain {domain}"), &error))?
            .1;
        let stopped = DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError));
        Ok(reason == Enum::Known(stopped))
    }

    fn tpm_directory(&self, domain: Uuid) -> PathBuf {
        // What libvirt's driver for system domains uses unless the definition names another place.
        PathBuf::from(format!("/var/lib/libvirt/swtpm/{domain}"))
    }

    fn retarget(&self, xml: &str, change: &Retarget) -> Result<Retargeted, HypervisorError> {
        retarget::rewrite(xml, change).map_err(|reason| {
            let domain = definition::read(xml).map_or_else(|_| "(unreadable)".to_owned(), |read| read.name);
            HypervisorError::Definition { domain, reason }
        })
    }

    fn snapshot_names(&self, domain: Uuid) -> Result<Vec<String>, HypervisorError> {
        let names = self.handle(domain)?.list_all_snapshots(0).and_then(|snapshots| {
            let names = snapshots.iter().map(virt::domain_snapshot::DomainSnapshot::name);
            names.collect()
        });
        names.map_err(|error| self.failed(format!("list the snapshots of domain {domain}"), &error))
    }

    fn check_definable(&self, xml: &str, replace: bool) -> Result<(), HypervisorError> {
        let wanted = definition::read(xml).map_err(|reason| HypervisorError::Definition {
            domain: "(new)".into(),
            reason,
        })?;
        let connection = self.connection()?;
        let what = || format!("define domain {:?}", wanted.name);
        let failed = |error: Error| self.failed(what(), &error);
        let by_name = self.by_name(&connection, &wanted.name)?;
        let by_uuid = wanted
            .uuid
            .map(|uuid| self.by_uuid(&connection, uuid))
            .transpose()?
            .flatten();
        for (found, kind) in [(&by_name, "name"), (&by_uuid, "UUID")] {
            let Some(found) = found else { continue };
            let name = found.name().map_err(failed)?;
            let uuid = found.uuid().map_err(failed)?;
            if !replace || name != wanted.name || Some(uuid) != wanted.uuid {
                return Err(HypervisorError::Exists(wanted.name.clone(), kind));
            }
            let refuse = |message: &str| HypervisorError::Failed {
                what: what(),
                message: message.into(),
            };
            if self.is_active(found)? {
                return Err(refuse("the domain of that name runs"));
            }
            if found.has_managed_save(0).map_err(failed)? {
                return Err(refuse(
                    "its memory is saved, to be resumed with the disks that it has now",
                ));
            }
        }
        Ok(())
    }

    fn define(&self, xml: &str, replace: bool) -> Result<Uuid, HypervisorError> {
        self.check_definable(xml, replace)?;
        let defined = self
            .connection()?
            .define_domain_xml(xml)
            .and_then(|domain| domain.uuid());
        defined.map_err(|error| self.failed("define a domain".into(), &error))
    }
}

impl Libvirt {
    fn no_such_domain(&self, name: &str) -> HypervisorError {
        HypervisorError::NoSuchDomain(name.to_owned(), self.uri.clone())
    }

    fn by_name(&self, connection: &Connect, name: &str) -> Result<Option<Handle>, HypervisorError> {
        if name.contains('\0') {
            return Ok(None);
        }
        self.found(name, connection.lookup_domain_by_name(name))
    }

    fn by_uuid(&self, connection: &Connect, uuid: Uuid) -> Result<Option<Handle>, HypervisorError> {
        self.found(&uuid.to_string(), connection.lookup_domain_by_uuid(uuid))
    }

    fn found(&self, wanted: &str, result: Result<Handle, Error>) -> Result<Option<Handle>, HypervisorError> {
        match result {
            Ok(handle) => Ok(Some(handle)),
            Err(error) if is(&error, ErrorNumber::NoDomain) => Ok(None),
            Err(error) => Err(self.failed(format!("find domain {wanted:?}"), &error)),
        }
    }

    pub(crate) fn handle(&self, domain: Uuid) -> Result<Handle, HypervisorError> {
        let found = self.by_uuid(&self.connection()?, domain)?;
        found.ok_or_else(|| self.no_such_domain(&domain.to_string()))
    }

    pub(crate) fn is_active(&self, handle: &Handle) -> Result<bool, HypervisorError> {
        handle
            .is_active()
            .map_err(|error| self.failed("read the state of a domain".into(), &error))
    }

    fn describe(&self, handle: &Handle) -> Result<Domain, HypervisorError> {
        let name = handle
            .name()
            .map_err(|error| self.failed("read a domain's name".into(), &error))?;
        let failed = |error: Error| self.failed(format!("read domain {name:?}"), &error);
        let bad = |reason| HypervisorError::Definition {
            domain: name.clone(),
            reason,
        };
        // A crashed guest may still have its process: only libvirt's word that there is none counts.
        let state = match handle.info().map_err(failed)?.state {
            _ if !self.is_active(handle)? => RunState::ShutOff,
            Enum::Known(DomainState::Running | DomainState::Blocked) => RunState::Running,
            _ => RunState::Paused,
        };
        let secure = |flags| match handle.xml_desc(flags | VIR_DOMAIN_XML_SECURE) {
            // Who may not see the passwords in a definition restores it without them.
            Err(error) if is(&error, ErrorNumber::AccessDenied) => handle.xml_desc(flags),
            xml => xml,
        };
        let mut xml = secure(VIR_DOMAIN_XML_INACTIVE).map_err(failed)?;
        let definition = definition::read(&xml).map_err(bad)?;
        let mut disks = definition.disks;
        let mut differences = Vec::new();
        if state.is_active() {
            let live = secure(0).map_err(failed)?;
            disks = definition::read(&live).map_err(bad)?.disks;
            let running = running::definition(&xml, &live).map_err(bad)?;
            xml = running.xml.unwrap_or(xml);
            differences = running.differences;
        }
        self.resolve(&mut disks)?;
        for disk in &mut disks {
            disk.bitmaps = image::bitmaps(&disk.format, &disk.source, self.local());
            if let Some(path) = disk.source.path().filter(|_| self.local()) {
                disk.identity.look(path);
            }
            disk.size = match size(handle, disk) {
                // A running domain has its media open; that it cannot say how large they are is no missing medium.
                Err(error) if state.is_active() => return Err(failed(error)),
                // Of a volume of a shut-off domain libvirt says nothing; its pool, or the image, has said it.
                size => size.ok().flatten().or(disk.size),
            };
        }
        let reason = handle.state().map_err(failed)?.1;
        let shut_down = DomainStateReason::Shutoff(Enum::Known(DomainShutoffReason::Shutdown));
        let migrated = DomainStateReason::Shutoff(Enum::Known(DomainShutoffReason::Migrated));
        let saved = handle.has_managed_save(0).map_err(failed)?;
        let (busy, snapshots) = if state.is_active() {
            let media = disks.iter().filter(|disk| disk.source != DiskSource::None);
            let targets: Vec<&str> = media.map(|disk| disk.target.as_str()).collect();
            let live = handle.xml_desc(0).map_err(failed)?;
            (self.busy(handle, &targets)?, self.snapshots(handle, &live)?)
        } else {
            (None, Vec::new())
        };
        Ok(Domain {
            busy,
            snapshots,
            internal_snapshots: self.internal_snapshots(handle, &disks)?,
            saved,
            autostart: handle.autostart().map_err(failed)?,
            shut_down: state == RunState::ShutOff && !saved && reason == Enum::Known(shut_down),
            away: state == RunState::ShutOff && reason == Enum::Known(migrated),
            uuid: handle.uuid().map_err(failed)?,
            state,
            disks,
            xml,
            differences,
            nvram: definition.nvram,
            has_tpm: definition.has_tpm,
            memory_encryption: definition.launch_security,
            extras: definition.extras,
            name,
        })
    }

    /// The same, of a domain of this name.
    pub(crate) fn live_disks_of(&self, name: &str) -> Result<Vec<Disk>, HypervisorError> {
        let handle = self.by_name(&self.connection()?, name)?;
        self.live_disks(&handle.ok_or_else(|| self.no_such_domain(name))?)
    }

    /// The disks as QEMU has them, which may differ from the definition for the next start.
    pub(crate) fn live_disks(&self, handle: &Handle) -> Result<Vec<Disk>, HypervisorError> {
        let failed = |error: Error| self.failed("read the running definition of a domain".into(), &error);
        let xml = handle.xml_desc(0).map_err(failed)?;
        disks(handle, &xml)
    }

    pub(crate) fn described(&self, handle: &Handle) -> Result<Option<Described>, HypervisorError> {
        let what = || "read the backup job of a domain".to_owned();
        let xml = match sys::backup_xml(handle) {
            Err(error) if is(&error, ErrorNumber::NoDomainBackup) || is(&error, ErrorNumber::NoDomain) => {
                return Ok(None);
            }
            xml => xml.map_err(|error| self.failed(what(), &error))?,
        };
        let job = job::described(&xml).map_err(|message| HypervisorError::Failed {
            what: what(),
            message,
        })?;
        Ok(Some(job))
    }

    /// Makes sure that exactly the asked disks are exported; if not, the job is ended at once.
    fn verify(&self, domain: Uuid, handle: &Handle, job: &BackupJob) -> Result<(), HypervisorError> {
        let mut asked: Vec<&str> = job.disks.iter().map(|disk| disk.target.as_str()).collect();
        asked.sort_unstable();
        match self.described(handle)? {
            Some(running) if running.targets == asked && has_scratch(&running, job) => Ok(()),
            running => {
                self.end_backup(domain)?;
                let found = running.map_or_else(Vec::new, |job| job.targets);
                let message = if found == asked {
                    "its scratch files are not where they were meant to be: `images` in the configuration and `--images` of \
                     `strongroom hypervisor-rights` have to name the same directory"
                        .into()
                } else {
                    format!("it exports {found:?} instead of {asked:?}")
                };
                Err(HypervisorError::Failed {
                    what: format!("start a backup job on domain {domain}"),
                    message,
                })
            }
        }
    }
}

/// The disks in a definition of the domain.
fn disks(handle: &Handle, xml: &str) -> Result<Vec<Disk>, HypervisorError> {
    let definition = definition::read(xml).map_err(|reason| {
        let domain = handle.name().unwrap_or_default();
        HypervisorError::Definition { domain, reason }
    })?;
    Ok(definition.disks)
}

/// Whether a job has the scratch files that the journal knows it by.
fn has_scratch(running: &Described, job: &BackupJob) -> bool {
    let mut scratch = job.disks.iter().map(|disk| &disk.scratch);
    scratch.all(|file| running.running.scratch.contains(file))
}

/// Guest-visible size; `None` without a medium. For a file that is not there libvirt says zero. Of a raw file that does not
/// end with a sector libvirt tells the length while the domain is off; QEMU shows whole sectors.
fn size(handle: &Handle, disk: &Disk) -> Result<Option<u64>, Error> {
    if disk.source == DiskSource::None {
        return Ok(None);
    }
    let capacity = sys::capacity(handle, &disk.target)?;
    Ok(Some(capacity.next_multiple_of(SECTOR)).filter(|size| *size > 0))
}

pub(crate) fn is(error: &Error, number: ErrorNumber) -> bool {
    error.code().is(number)
}

/// Another job holds the domain, or its port. The daemon may speak any language, hence the code first.
pub(crate) fn is_busy(error: &Error) -> bool {
    is(error, ErrorNumber::OperationTimeout) || is_busy_message(error.message())
}

/// The same, where there are only words.
pub(crate) fn is_busy_message(message: &str) -> bool {
    let words = ["state change lock", "already in active", "Address already in use"];
    words.iter().any(|word| message.contains(word))
}
