//! Two volumes that are one: a clone that was never given a key of its own. What opens one, opens the other.
//!
//! Digests of equal keys differ, since they are salted; equal ones come from a copied header. Ciphertext does not lie: the
//! same at the same place is the same plaintext under the same key.

use strongroom_disk::survey::Samples;
use strongroom_disk::{Luks, Survey};

use super::{Finding, InspectedDisk, Level};
use crate::files::identity::Identity;

/// A volume, and where it is.
#[derive(Debug, Clone, Copy)]
pub struct LocatedVolume<'a> {
    vm: &'a str,
    disk: &'a str,
    image: Option<&'a Identity>,
    luks: &'a Luks,
    samples: &'a Samples,
}

/// The volumes on a disk.
pub fn volumes<'a>(vm: &'a str, disk: &'a InspectedDisk) -> Vec<LocatedVolume<'a>> {
    let surveys = disk.survey.iter();
    let volumes = surveys.flat_map(Survey::volumes);
    let located = |(luks, samples)| LocatedVolume {
        vm,
        disk: &disk.target,
        image: disk.identity.as_ref(),
        luks,
        samples,
    };
    volumes.map(located).collect()
}

/// What the volumes of one VM have in common with others.
pub fn findings(vm: &str, all: &[LocatedVolume<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for own in all.iter().filter(|volume| volume.vm == vm) {
        for other in all {
            // One image in two VMs is one volume, and so is one under two names.
            if own.image == other.image || (own.vm, own.disk) == (other.vm, other.disk) {
                continue;
            }
            findings.extend(compare(own, other));
        }
    }
    findings
}

fn compare(own: &LocatedVolume<'_>, other: &LocatedVolume<'_>) -> Option<Finding> {
    let there = format!("{} {}", other.vm, other.disk);
    let shared = own.samples.shared(other.samples);
    let real = |digest: &&String| !digest.is_empty();
    let same_digest = own
        .luks
        .digests
        .iter()
        .filter(real)
        .any(|digest| other.luks.digests.contains(digest));
    let same_uuid = !own.luks.uuid.is_empty() && own.luks.uuid == other.luks.uuid;
    let finding = |code, level, text| {
        Some(Finding {
            code,
            level,
            disk: Some(own.disk.to_owned()),
            text,
        })
    };
    if shared > 0 {
        finding(
            "shared-key",
            Level::Unsafe,
            format!(
                "it has the master key of {there}: {shared} sampled blocks are the same ciphertext at the same place"
            ),
        )
    } else if same_digest {
        finding(
            "shared-key",
            Level::Unsafe,
            format!("it has the master key of {there}: the digest of the key is the same"),
        )
    } else if same_uuid {
        finding(
            "shared-uuid",
            Level::Warning,
            format!("it has the LUKS UUID of {there}: a clone, with a key of its own as far as samples show"),
        )
    } else {
        None
    }
}
