//! What a domain is busy with, and whose snapshots it runs on: the reasons to leave it alone for now.
//!
//! The names of jobs are libvirt's (`virDomainJobOperation`, `virDomainBlockJobType`).

use std::path::{Path, PathBuf};

use strongroom_hypervisor::{Disk, HypervisorError, Snapshot};
use virt::domain::{
    Domain as Handle, DomainPausedReason, DomainRunningReason, DomainState, DomainStateReason,
};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys::{
    VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP,
    VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT, VIR_DOMAIN_BLOCK_JOB_TYPE_COPY, VIR_DOMAIN_BLOCK_JOB_TYPE_PULL,
    VIR_DOMAIN_JOB_OPERATION_BACKUP, VIR_DOMAIN_JOB_OPERATION_DUMP, VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
    VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, VIR_DOMAIN_JOB_OPERATION_RESTORE, VIR_DOMAIN_JOB_OPERATION_SAVE,
    VIR_DOMAIN_JOB_OPERATION_SNAPSHOT, VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE,
    VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT, VIR_DOMAIN_JOB_OPERATION_START,
    VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL, VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL,
};

use crate::connection::Libvirt;
use crate::hypervisor::is;
use crate::xml::{child, children, parse};
use crate::{image, sys};

/// Most images that are followed in one chain.
const MAX_CHAIN: usize = 256;

/// How often a job that cannot be described is looked at again, and the time between two looks.
const LOOKS: u32 = 20;
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

impl Libvirt {
    /// What an active domain is busy with, by its state, its jobs, and the block jobs on these disks.
    pub(crate) fn busy(&self, handle: &Handle, targets: &[&str]) -> Result<Option<String>, HypervisorError> {
        let failed = |error: Error| self.failed("read the jobs of a domain".into(), &error);
        let (state, reason) = handle.state().map_err(failed)?;
        if let Some(unfit) = unfit(state, &reason) {
            return Ok(Some(unfit.into()));
        }
        let operation = match if_supported(job_operation(handle)) {
            Err(error) if is(&error, ErrorNumber::InternalError) => {
                return Ok(Some(lost_job(error.message())));
            }
            told => told.map_err(failed)?,
        };
        if let Some(operation) = operation {
            let socket = if operation == VIR_DOMAIN_JOB_OPERATION_BACKUP {
                self.described(handle)?.and_then(|job| job.running.socket)
            } else {
                None
            };
            return Ok(Some(job_words(operation, socket.as_deref())));
        }
        for target in targets {
            if let Some(kind) = if_supported(sys::block_job(handle, target)).map_err(failed)? {
                return Ok(Some(format!(
                    "{} runs on its disk {target}",
                    block_job_words(kind)
                )));
            }
        }
        Ok(None)
    }

    /// Snapshots inside of images: those that libvirt has on record, by name, and the disks whose images hold others.
    pub(crate) fn internal_snapshots(
        &self,
        handle: &Handle,
        disks: &[Disk],
    ) -> Result<Vec<String>, HypervisorError> {
        let failed = |error: Error| self.failed("read the snapshots of a domain".into(), &error);
        let list = handle
            .list_all_snapshots(VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL)
            .map(Some);
        let list = if_supported(list).map_err(failed)?.unwrap_or_default();
        let names = list.iter().map(virt::domain_snapshot::DomainSnapshot::name);
        let mut found = names.collect::<Result<Vec<String>, Error>>().map_err(failed)?;
        if found.is_empty() && self.local() {
            // Made by `qemu-img snapshot`, or forgotten by libvirt.
            let holders = disks
                .iter()
                .filter(|disk| !disk.read_only && disk.format == "qcow2");
            found.extend(
                holders
                    .filter(|disk| disk.source.path().is_some_and(image::holds_snapshots))
                    .map(|disk| format!("in the image of {}", disk.target)),
            );
        }
        Ok(found)
    }

    /// External snapshots that libvirt knows of and whose overlays are in the chains of this definition.
    pub(crate) fn snapshots(&self, handle: &Handle, xml: &str) -> Result<Vec<Snapshot>, HypervisorError> {
        let failed = |error: Error| self.failed("read the snapshots of a domain".into(), &error);
        let list = handle
            .list_all_snapshots(VIR_DOMAIN_SNAPSHOT_LIST_EXTERNAL)
            .map(Some);
        let list = if_supported(list).map_err(failed)?.unwrap_or_default();
        let bad = |message| HypervisorError::Failed {
            what: "read the snapshots of a domain".into(),
            message,
        };
        let mut found = Vec::new();
        if list.is_empty() {
            return Ok(found);
        }
        let chains = chains(xml).map_err(bad)?;
        for snapshot in list {
            let name = snapshot.name().map_err(failed)?;
            let overlays = overlays(&snapshot.xml_desc(0).map_err(failed)?).map_err(bad)?;
            for (target, overlay) in overlays {
                let used = chains
                    .iter()
                    .any(|(disk, images)| *disk == target && images.contains(&overlay));
                if used {
                    found.push(Snapshot {
                        name: name.clone(),
                        target,
                        overlay,
                    });
                }
            }
        }
        Ok(found)
    }
}

/// While a backup job begins or ends there is a moment at which libvirt has the job, but cannot say anything about it.
/// If libvirtd dies in it, its successor takes the job over and never learns more: see [`lost_job`].
fn job_operation(handle: &Handle) -> Result<Option<u32>, Error> {
    let mut looks = 0..LOOKS;
    loop {
        match sys::job_operation(handle) {
            Err(error) if looks.next().is_some() && is(&error, ErrorNumber::InternalError) => {
                std::thread::sleep(LOOK);
            }
            told => return told,
        }
    }
}

/// A job that libvirt has on record without its data can be neither described nor ended. QEMU has no part in it.
fn lost_job(message: &str) -> String {
    format!(
        "libvirt holds a job of which it has lost all track ({message}), as it does when libvirtd dies while a job begins; \
         the guest runs on unharmed, but nothing can be begun until the VM has been shut off, libvirtd restarted, and the VM \
         started again"
    )
}

/// A driver that knows no such thing has none.
fn if_supported<T>(found: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(error) if error.code().is(ErrorNumber::NoSupport) => Ok(None),
        found => found,
    }
}

/// Why a domain in this state is left alone.
fn unfit(state: Enum<DomainState, u32>, reason: &Enum<DomainStateReason, i32>) -> Option<&'static str> {
    let Enum::Known(state) = state else { return None };
    let reason = match reason {
        Enum::Known(reason) => Some(reason),
        Enum::Unknown(_) => None,
    };
    match (state, reason) {
        (DomainState::Shutdown, _)
        | (_, Some(DomainStateReason::Paused(Enum::Known(DomainPausedReason::ShuttingDown)))) => {
            Some("it is shutting down")
        }
        (DomainState::Crashed, _)
        | (_, Some(DomainStateReason::Paused(Enum::Known(DomainPausedReason::Crashed)))) => {
            Some("its guest has crashed")
        }
        (DomainState::PMSuspended, _) => Some("its guest sleeps (suspended to memory)"),
        (_, Some(DomainStateReason::Paused(Enum::Known(DomainPausedReason::StartingUp)))) => {
            Some("it is starting up")
        }
        (
            _,
            Some(
                DomainStateReason::Paused(Enum::Known(
                    DomainPausedReason::Migration
                    | DomainPausedReason::PostCopy
                    | DomainPausedReason::PostCopyFailed,
                ))
                | DomainStateReason::Running(Enum::Known(DomainRunningReason::PostCopy)),
            ),
        ) => Some("a migration is under way"),
        _ => None,
    }
}

fn job_words(operation: u32, socket: Option<&Path>) -> String {
    let what = match operation {
        VIR_DOMAIN_JOB_OPERATION_START => "it is starting up",
        VIR_DOMAIN_JOB_OPERATION_SAVE => "its memory is being saved",
        VIR_DOMAIN_JOB_OPERATION_RESTORE => "it is being restored from saved memory",
        VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN | VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT => {
            "a migration is under way"
        }
        VIR_DOMAIN_JOB_OPERATION_SNAPSHOT
        | VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT
        | VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE => "a snapshot is being taken, reverted to or deleted",
        VIR_DOMAIN_JOB_OPERATION_DUMP => "its memory is being dumped",
        VIR_DOMAIN_JOB_OPERATION_BACKUP => match socket {
            Some(socket) => {
                return format!(
                    "a backup job of another program runs, with the socket {}",
                    socket.display()
                );
            }
            None => "a backup job of another program runs",
        },
        other => return format!("a job runs (libvirt's operation {other})"),
    };
    what.into()
}

fn block_job_words(kind: i32) -> String {
    let what = match u32::try_from(kind).unwrap_or_default() {
        VIR_DOMAIN_BLOCK_JOB_TYPE_PULL => "pull",
        VIR_DOMAIN_BLOCK_JOB_TYPE_COPY => "copy",
        VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT => "commit",
        VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT => "active commit",
        VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP => "backup",
        _ => return format!("a block job (libvirt's type {kind})"),
    };
    format!("a block job ({what})")
}

/// The images of each disk in a definition, from the top down.
fn chains(xml: &str) -> Result<Vec<(String, Vec<PathBuf>)>, String> {
    let document = parse(xml, "domain")?;
    let disks = children(document.root_element(), "devices").flat_map(|devices| children(devices, "disk"));
    let mut found = Vec::new();
    for disk in disks {
        let Some(target) = child(disk, "target").and_then(|target| target.attribute("dev")) else {
            continue;
        };
        let mut images = Vec::new();
        let mut layer = Some(disk);
        while let Some(node) = layer.filter(|_| images.len() < MAX_CHAIN) {
            images.push(source(node).unwrap_or_default());
            layer = child(node, "backingStore");
        }
        found.push((target.to_owned(), images));
    }
    Ok(found)
}

/// The disks that a snapshot put an overlay on, with the overlay.
fn overlays(xml: &str) -> Result<Vec<(String, PathBuf)>, String> {
    let document = parse(xml, "domainsnapshot")?;
    let disks = children(document.root_element(), "disks").flat_map(|disks| children(disks, "disk"));
    Ok(disks
        .filter(|disk| disk.attribute("snapshot") == Some("external"))
        .filter_map(|disk| Some((disk.attribute("name")?.to_owned(), source(disk)?)))
        .collect())
}

fn source(node: roxmltree::Node<'_, '_>) -> Option<PathBuf> {
    let source = child(node, "source")?;
    let path = source.attribute("file").or(source.attribute("dev"))?;
    Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_words() {
        for (operation, word) in [
            (VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, "migration"),
            (VIR_DOMAIN_JOB_OPERATION_DUMP, "dumped"),
            (VIR_DOMAIN_JOB_OPERATION_BACKUP, "another program"),
            (99, "operation 99"),
        ] {
            assert!(job_words(operation, None).contains(word), "{operation}");
        }
        let named = job_words(VIR_DOMAIN_JOB_OPERATION_BACKUP, Some(Path::new("/run/x.sock")));
        assert!(named.ends_with("the socket /run/x.sock"), "{named}");
        assert_eq!(block_job_words(2), "a block job (copy)");
        assert_eq!(block_job_words(-1), "a block job (libvirt's type -1)");
    }

    #[test]
    fn states_that_forbid_a_backup() {
        let known = |state: DomainState| Enum::Known(state);
        let paused = |reason| Enum::Known(DomainStateReason::Paused(Enum::Known(reason)));
        let none = Enum::Unknown(0);
        assert_eq!(
            unfit(known(DomainState::PMSuspended), &none),
            Some("its guest sleeps (suspended to memory)")
        );
        let migrating = paused(DomainPausedReason::Migration);
        assert_eq!(
            unfit(known(DomainState::Paused), &migrating),
            Some("a migration is under way")
        );
        assert_eq!(
            unfit(known(DomainState::Paused), &paused(DomainPausedReason::User)),
            None
        );
        assert_eq!(unfit(known(DomainState::Running), &none), None);
    }

    #[test]
    fn an_overlay_counts_while_it_is_in_the_chain() {
        let xml = "<domain><devices><disk><source file='/ov2'/><backingStore type='file'><source file='/ov1'/>\
                   <backingStore type='block'><source dev='/dev/base'/><backingStore/></backingStore></backingStore>\
                   <target dev='vda'/></disk><disk><target dev='sda'/></disk></devices></domain>";
        let chains = chains(xml).unwrap();
        let images = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            chains,
            [
                ("vda".to_owned(), images(&["/ov2", "/ov1", "/dev/base", ""])),
                ("sda".to_owned(), images(&[""])),
            ]
        );
        let snapshot = "<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='/ov1'/></disk>\
                        <disk name='vdb' snapshot='no'/><disk name='vdc' snapshot='internal'/></disks></domainsnapshot>";
        assert_eq!(
            overlays(snapshot).unwrap(),
            [("vda".to_owned(), PathBuf::from("/ov1"))]
        );
        overlays("<domain/>").unwrap_err();
    }
}
