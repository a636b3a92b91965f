//! What a backup will do, decided before anything is touched. Pure: facts in, [`Plan`] out.

use std::path::Path;

use strongroom_hypervisor::names::PREFIX;
use strongroom_hypervisor::{BadBitmap, Bitmaps, Disk, Domain, Identity, Snapshot};
use strongroom_points::digest;
use strongroom_points::manifest::{DiskRecord, Exclusion, Manifest, Method, Mode};
use strongroom_points::names::archive_prefix;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::ChunkRef;
use uuid::Uuid;

use super::roles::{self, Moved};
use crate::config::CaptureMethod;
use crate::run::plan::{DiskPlan, ExcludedPlan, Plan, RunId, beside};
use crate::run::settings::VmJob;
use crate::run::state::Committed;

/// Why nothing sensible can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration names a disk that the VM does not have.
    #[error("plan the backup of {vm}: the configuration names disk {target}, the VM has {}", .has.join(", "))]
    NoSuchDisk {
        /// The VM.
        vm: String,
        /// The disk named.
        target: String,
        /// The disks that there are.
        has: Vec<String>,
    },
    /// Something else is going on with the VM.
    #[error("back up {vm}: {what}; nothing was touched")]
    Busy {
        /// The VM.
        vm: String,
        /// What is going on.
        what: String,
    },
    /// It runs on another host.
    #[error(
        "back up {0}: it has been migrated to another host, which uses its disks; nothing was touched; back it up there"
    )]
    Away(String),
    /// Another program has taken a snapshot, and is going to merge or delete it some time.
    #[error(
        "back up {vm}: disk {} runs on {}, the overlay of another program's snapshot {:?}; nothing was touched",
        .snapshot.target, .snapshot.overlay.display(), .snapshot.name
    )]
    Snapshot {
        /// The VM.
        vm: String,
        /// The snapshot.
        snapshot: Snapshot,
    },
    /// It has no disks.
    #[error(
        "plan the backup of {0}: it has no disk, so that there is nothing to back up; \
         `virsh dumpxml --inactive --security-info {0}` saves its definition"
    )]
    Diskless(String),
    /// All disks are left out.
    #[error(
        "plan the backup of {vm}: no disk is left to back up ({}); take one out of `exclude` or `swap`, or the VM \
         out of the configuration", .disks.join(", ")
    )]
    NoDisks {
        /// The VM.
        vm: String,
        /// Its disks and drives, and why each is left out.
        disks: Vec<String>,
    },
    /// Another domain writes to what is to be read.
    #[error(
        "back up {vm}: it is shut off, but {domain:?} runs and writes to {} of its disk {target}; shut {domain} down, or leave \
         the disk out with `exclude`", .store
    )]
    Shared {
        /// The VM.
        vm: String,
        /// Its disk.
        target: String,
        /// The image.
        store: String,
        /// Who writes to it.
        domain: String,
    },
    /// `swap` or `exclude` named a disk that is another one by now.
    #[error(transparent)]
    Roles(#[from] Moved),
    /// A frozen view of a disk whose guest goes around QEMU is impossible.
    #[error(
        "plan the backup of {vm}: disk {target} is passed through (device='lun'): while the VM runs, the guest's requests go \
         around QEMU, and a backup job would make them fail; shut the VM off, or name the disk in `exclude`"
    )]
    PassedThrough {
        /// The VM.
        vm: String,
        /// The disk.
        target: String,
    },
    /// A disk's size is not known.
    #[error("plan the backup of {vm}: the hypervisor does not tell the size of disk {target}")]
    NoSize {
        /// The VM.
        vm: String,
        /// The disk.
        target: String,
    },
    /// A disk of a shut-off VM that cannot be opened as a file or device.
    #[error(
        "plan the backup of {vm}: it is shut off, and disk {target} cannot be read: {why}; or start the VM"
    )]
    NotReadable {
        /// The VM.
        vm: String,
        /// The disk.
        target: String,
        /// Why not.
        why: String,
    },
}

/// The restore point that an incremental backup may start from, or why there is none.
#[derive(Debug)]
pub enum Parent<'a> {
    /// A checkpoint that the hypervisor vouches for, but for these disks, and the archive that was made at that
    /// instant.
    Usable(&'a Committed, &'a RestorePoint, Vec<BadBitmap>),
    /// None, and why.
    None(String),
    /// None, and none is to be made for the next run, and why.
    Untracked(String),
    /// None, because the hypervisor has neither checkpoints nor backup jobs, and why.
    NoJobs(String),
}

/// Whether the checkpoint on record and an archive's manifest are a pair, made by one run of this VM and kept in this
/// repository; if not, why not.
pub fn pair(
    committed: &Committed,
    repository: &str,
    vm: Uuid,
    written: Option<&Manifest>,
) -> Result<(), String> {
    let archive = &committed.archive;
    if committed.repository != repository {
        return Err("the last backup went to another repository".into());
    }
    let Some(written) = written else {
        return Err(format!(
            "archive {archive}, which the checkpoint belongs to, is not in the repository"
        ));
    };
    if written.vm.uuid != vm {
        return Err(format!("archive {archive} is of another VM"));
    }
    if written.run != committed.run || written.checkpoint.as_ref() != Some(&committed.checkpoint) {
        return Err(format!(
            "archive {archive} is not the one that the checkpoint belongs to"
        ));
    }
    Ok(())
}

/// Whether nothing else is going on with the VM.
pub fn check_free(domain: &Domain) -> Result<(), PlanError> {
    if domain.away {
        return Err(PlanError::Away(domain.name.clone()));
    }
    match &domain.busy {
        None => Ok(()),
        Some(what) => Err(PlanError::Busy {
            vm: domain.name.clone(),
            what: what.clone(),
        }),
    }
}

/// Decides what to read and how. What targets meant at the last backup is in the manifest of the `newest` restore point.
pub fn make(
    domain: &Domain,
    job: &VmJob,
    newest: Option<&Manifest>,
    parent: &Parent<'_>,
    run: &RunId,
) -> Result<Plan, PlanError> {
    // The hypervisor without backup jobs has no checkpoints either.
    let jobless = match parent {
        Parent::NoJobs(why) => Some(why.clone()),
        _ => None,
    };
    let vm = domain.name.clone();
    check_free(domain)?;
    for target in job.swap.iter().chain(&job.exclude) {
        if !domain.disks.iter().any(|disk| disk.target == *target) {
            let has = domain.disks.iter().map(|disk| disk.target.clone()).collect();
            return Err(PlanError::NoSuchDisk {
                vm,
                target: target.clone(),
                has,
            });
        }
    }
    if !job.disks_confirmed {
        roles::check(domain, job, newest)?;
    }
    let mut disks = Vec::new();
    let mut excluded = Vec::new();
    for disk in &domain.disks {
        if let Some(why) = exclusion(disk, job) {
            excluded.push(ExcludedPlan {
                target: disk.target.clone(),
                why,
            });
        } else {
            disks.push(plan_disk(domain, disk, &job.images, parent, run)?);
        }
    }
    if domain.disks.is_empty() {
        return Err(PlanError::Diskless(vm));
    }
    if disks.is_empty() {
        let why = |disk: &ExcludedPlan| format!("{}: {}", disk.target, disk.why.words());
        let disks = excluded.iter().map(why).collect();
        return Err(PlanError::NoDisks { vm, disks });
    }
    let of_a_disk = |snapshot: &&Snapshot| disks.iter().any(|disk| disk.target == snapshot.target);
    if let Some(snapshot) = domain.snapshots.iter().find(of_a_disk) {
        let snapshot = snapshot.clone();
        return Err(PlanError::Snapshot { vm, snapshot });
    }
    let online = domain.state.is_active();
    let tracked = online && disks.iter().any(|disk| disk.tracked);
    let (method, method_reason) = match (job.method, jobless) {
        _ if !online => (Method::Offline, None),
        (CaptureMethod::Snapshot, _) => (Method::Snapshot, None),
        (CaptureMethod::Auto, Some(why)) => (Method::Snapshot, Some(format!("no backup job: {why}"))),
        (CaptureMethod::Auto | CaptureMethod::Checkpoint, _) => (Method::Checkpoint, None),
    };
    Ok(Plan {
        archive: format!(
            "{}-{}",
            archive_prefix(&vm),
            run.started.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        ),
        uuid: domain.uuid,
        run: run.id.clone(),
        method,
        method_reason,
        checkpoint: tracked.then(|| format!("{PREFIX}{}", run.id)),
        disks,
        excluded,
        vm,
    })
}

fn exclusion(disk: &Disk, job: &VmJob) -> Option<Exclusion> {
    if let Some(role) = roles::role(disk, job) {
        Some(role)
    } else if disk.transient {
        Some(Exclusion::Transient)
    } else {
        (!disk.is_writable_disk()).then_some(Exclusion::Removable)
    }
}

fn plan_disk(
    domain: &Domain,
    disk: &Disk,
    images: &Path,
    parent: &Parent<'_>,
    run: &RunId,
) -> Result<DiskPlan, PlanError> {
    let target = disk.target.clone();
    let online = domain.state.is_active();
    let source = disk.source.path().map(Path::to_owned);
    if !online && let Some(why) = disk.why_unreadable() {
        let vm = domain.name.clone();
        return Err(PlanError::NotReadable { vm, target, why });
    }
    if online && disk.device == "lun" {
        return Err(PlanError::PassedThrough {
            vm: domain.name.clone(),
            target,
        });
    }
    let Some(size) = disk.size else {
        return Err(PlanError::NoSize {
            vm: domain.name.clone(),
            target,
        });
    };
    let basis = if online {
        basis(disk, size, parent)
    } else {
        Err("the VM is shut off: its changes are found by reading".into())
    };
    let (mode, reason, committed) = match basis {
        Ok(committed) => (
            Mode::Incremental,
            format!("changes since {}", committed.archive),
            Some(committed),
        ),
        Err(reason) => (Mode::Full, reason, None),
    };
    let directory = beside(&disk.source).unwrap_or(images);
    Ok(DiskPlan {
        identity: disk.identity.clone(),
        host_encrypted: disk.encrypted,
        size,
        format: disk.format.clone(),
        source,
        mode,
        reason,
        parent: committed.map(|committed| committed.archive.clone()),
        since: committed.map(|committed| committed.checkpoint.clone()),
        tracked: online
            && !matches!(disk.bitmaps, Bitmaps::Unsupported(_))
            && !matches!(parent, Parent::NoJobs(_) | Parent::Untracked(_)),
        scratch: directory.join(format!("{PREFIX}{}-{target}.scratch", run.id)),
        target,
    })
}

/// Whether a disk can be read incrementally; if not, why not.
fn basis<'a>(disk: &Disk, size: u64, parent: &Parent<'a>) -> Result<&'a Committed, String> {
    if let Bitmaps::Unsupported(why) = &disk.bitmaps {
        return Err(why.clone());
    }
    let (committed, point, bad) = match parent {
        Parent::Usable(committed, point, bad) => (*committed, *point, bad),
        Parent::None(why) => return Err(why.clone()),
        Parent::Untracked(why) | Parent::NoJobs(why) => {
            return Err(format!("changes are not tracked: {why}"));
        }
    };
    let record = point.manifest.disk(&disk.target);
    let bad = bad.iter().find(|bad| bad.target == disk.target);
    copied(
        committed,
        record,
        &disk.identity,
        bad,
        size,
        point.chunks(&disk.target),
    )?;
    Ok(committed)
}

/// Whether a disk's copy in the parent archive, and what is known of its changes since, can be built upon; if not, why not.
fn copied(
    committed: &Committed,
    record: Option<&DiskRecord>,
    identity: &Identity,
    bad: Option<&BadBitmap>,
    size: u64,
    chunks: Option<&[ChunkRef]>,
) -> Result<(), String> {
    let Committed {
        archive, checkpoint, ..
    } = committed;
    let Some(record) = record else {
        return Err(format!("the disk is not in {archive}"));
    };
    if !record.tracked {
        return Err(format!("its changes were not tracked since {archive}"));
    }
    if let Some(bad) = bad {
        return Err(format!("checkpoint {checkpoint} cannot be used: {}", bad.why));
    }
    match &record.identity {
        None => {
            return Err(format!(
                "{archive} does not say which disk it was: it was made by an older version"
            ));
        }
        Some(before) if !before.is(identity) => {
            return Err(format!(
                "it is another disk than in {archive}: it was {before}, it is {identity}"
            ));
        }
        Some(_) => {}
    }
    if record.size != size {
        return Err(format!("its size changed from {} to {size} bytes", record.size));
    }
    let Some(chunks) = chunks else {
        return Err(format!("its copy in {archive} was damaged and patched"));
    };
    let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    if total != size || digest::of_chunks(chunks) != record.digest {
        return Err(format!("its copy in {archive} is not the one that was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
