//! Whether `swap` and `exclude` still mean the disks that they meant at the last backup. Pure.
//!
//! The configuration names disks by target, and targets change places: then a data disk would silently be left out, and swap
//! read into a backup. Who a disk was is in the newest manifest. Where a name means another disk now, the run stops and asks.

use crate::run::settings::VmJob;
use strongroom_hypervisor::{Disk, Domain, Identity};
use strongroom_points::manifest::{DiskRecord, ExcludedDisk, Exclusion, Manifest};

/// A disk that is left out by name is another one than at the last backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "back up {vm}: disk {target} counts as {role}, and is another disk than in {archive}: {what}; nothing was read. \
     Correct `swap` and `exclude` of [vm.{vm}] (or the serial number), or say that it is meant by \
     `strongroom backup --confirm-disks {vm}`"
)]
pub struct Moved {
    /// The VM.
    pub vm: String,
    /// The target that is named.
    pub target: String,
    /// What it is named as.
    pub role: &'static str,
    /// The archive that knows it otherwise.
    pub archive: String,
    /// What has become of it.
    pub what: String,
}

/// Why a disk is left out by name: in the configuration, or by its serial number.
pub fn role(disk: &Disk, job: &VmJob) -> Option<Exclusion> {
    if disk.is_swap(&job.swap) {
        Some(Exclusion::Swap)
    } else if job.exclude.contains(&disk.target) {
        Some(Exclusion::Configured)
    } else {
        None
    }
}

/// Compares the disks that are left out by name with those that were at the last backup.
pub fn check(domain: &Domain, job: &VmJob, newest: Option<&Manifest>) -> Result<(), Moved> {
    let Some(newest) = newest else { return Ok(()) };
    for disk in &domain.disks {
        let Some(role) = role(disk, job) else {
            continue;
        };
        if let Some(what) = moved(disk, role, domain, job, newest) {
            return Err(Moved {
                vm: domain.name.clone(),
                target: disk.target.clone(),
                role: match role {
                    Exclusion::Swap => "swap",
                    _ => "excluded",
                },
                archive: newest.archive.clone().unwrap_or_else(|| "the last backup".into()),
                what,
            });
        }
    }
    Ok(())
}

fn moved(disk: &Disk, now: Exclusion, domain: &Domain, job: &VmJob, newest: &Manifest) -> Option<String> {
    let is = |identity: &Option<Identity>| {
        let identity = identity.as_ref();
        identity.is_some_and(|identity| identity.is(&disk.identity))
    };
    // What it is now was something else, somewhere else.
    let backed_up = newest.disks.iter().find(|record| is(&record.identity));
    if let Some(record) = backed_up.filter(|record| record.target != disk.target) {
        return Some(format!(
            "{} was {} and was backed up",
            disk.identity, record.target
        ));
    }
    let by_name = |record: &&ExcludedDisk| matches!(record.why, Exclusion::Swap | Exclusion::Configured);
    let left_out = newest.excluded.iter().find(|record| is(&record.identity));
    if let Some(record) = left_out {
        let strange = record.target != disk.target && record.why != now;
        return (strange && by_name(&record)).then(|| format!("{} was {}", disk.identity, record.target));
    }
    // What it was is something else now, or is gone.
    let record = newest
        .excluded
        .iter()
        .filter(by_name)
        .find(|record| record.target == disk.target)?;
    let before = record.identity.as_ref()?;
    let elsewhere = domain.disks.iter().find(|other| before.is(&other.identity));
    match elsewhere {
        Some(other) if role(other, job) != Some(record.why) => {
            Some(format!("{before} is {} now", other.target))
        }
        Some(_) => None,
        // Made anew in its place: a swap disk comes back blank from a restore.
        None if before.is_named_like(&disk.identity) => None,
        // It stands on the overlay of an external snapshot, below which it still is.
        None if domain.snapshots.iter().any(|taken| taken.target == disk.target) => None,
        // So was the whole machine, or it is on other storage now: nothing of it is where it was.
        None if record.size == disk.size && !newest.disks.iter().any(|record| stays(record, domain)) => None,
        None => Some(format!("it was {before}, it is {}", disk.identity)),
    }
}

/// Whether a disk that was backed up is there still, under any name.
fn stays(record: &DiskRecord, domain: &Domain) -> bool {
    let is = |identity: &Identity| domain.disks.iter().any(|disk| identity.is(&disk.identity));
    record.identity.as_ref().is_some_and(is)
}

#[cfg(test)]
mod tests;
