//! Checkpoints and dirty bitmaps of ours beside what else is done with images.
//!
//! QEMU does not revert to a snapshot inside an image while the image has a dirty bitmap, and libvirt finds that out only after
//! it has stopped the VM. And a bitmap outlives the checkpoint that libvirt knows: a domain that is undefined, or transient and
//! off, takes its checkpoints with it.

use crate::run::event::Code;
use crate::run::settings::VmJob;
use strongroom_hypervisor::names::is_ours;
use strongroom_hypervisor::{Domain, HypervisorError, StoredBitmap};

use crate::run::context::Context;
use crate::run::state::VmState;

/// Why no checkpoint is made of this VM, if that is so: a snapshot can only be reverted to without one.
pub fn forbidden(domain: &Domain, job: &VmJob) -> Option<String> {
    if domain.internal_snapshots.is_empty() || job.track_beside_snapshots {
        return None;
    }
    Some(format!(
        "it has internal snapshots ({}), which could not be reverted to beside a map of changes",
        domain.internal_snapshots.join(", ")
    ))
}

/// What will go wrong between these checkpoints and the snapshots inside the VM's images, if anything.
pub fn conflict(domain: &Domain, checkpoints: &[String]) -> Option<String> {
    let ours = checkpoints.iter().any(|name| is_ours(name));
    if domain.internal_snapshots.is_empty() || !ours {
        return None;
    }
    Some(format!(
        "it has internal snapshots ({}) and a checkpoint of strongroom's: `virsh snapshot-revert` would fail, and leave a \
         running VM off; run `strongroom release {}` before it",
        domain.internal_snapshots.join(", "),
        domain.name
    ))
}

/// The bitmaps of ours that no checkpoint of the hypervisor's stands for.
pub fn orphans(bitmaps: Vec<StoredBitmap>, checkpoints: &[String]) -> Vec<StoredBitmap> {
    let orphan = |bitmap: &StoredBitmap| is_ours(&bitmap.name) && !checkpoints.contains(&bitmap.name);
    bitmaps.into_iter().filter(orphan).collect()
}

/// Makes the checkpoint on record known again to a hypervisor that has forgotten it, where its bitmaps are sound, and removes
/// what else is left of forgotten checkpoints of ours. Nothing of this is needed for a backup: what fails is only said.
pub fn readopt(context: &Context<'_>, domain: &Domain, state: &VmState) {
    let committed = state
        .records()
        .committed
        .as_ref()
        .map(|committed| committed.checkpoint.as_str());
    if !domain.state.is_active() || !context.hypervisor.is_local() {
        return;
    }
    let hypervisor = context.hypervisor;
    let orphans = || -> Result<Vec<StoredBitmap>, HypervisorError> {
        let known = hypervisor.checkpoints(domain.uuid)?;
        // As long as the last one is known, nothing was forgotten since.
        if committed.is_some_and(|name| known.iter().any(|known| known == name)) {
            return Ok(Vec::new());
        }
        Ok(orphans(hypervisor.bitmaps(domain.uuid)?, &known))
    };
    let mut left = match orphans() {
        Ok(orphans) => orphans,
        Err(error) => return context.note(format!("failed to {error}")),
    };
    let sound = |bitmap: &StoredBitmap| bitmap.sound && Some(bitmap.name.as_str()) == committed;
    let targets: Vec<String> = left
        .iter()
        .filter(|bitmap| sound(bitmap))
        .map(|bitmap| bitmap.target.clone())
        .collect();
    if let (Some(name), false) = (committed, targets.is_empty()) {
        match hypervisor.redefine_checkpoint(domain.uuid, name, &targets) {
            Ok(()) => {
                context.note(format!(
                    "checkpoint {name} had been forgotten, its map of changes is there: it is known again"
                ));
                left.retain(|bitmap| !sound(bitmap));
            }
            Err(error) => context.note(format!("failed to {error}")),
        }
    }
    for why in remove(context, domain, &left) {
        context.warn(Code::BitmapLeft, why);
    }
}

/// Removes bitmaps; gives why some stay.
pub fn remove(context: &Context<'_>, domain: &Domain, bitmaps: &[StoredBitmap]) -> Vec<String> {
    let mut left = Vec::new();
    for bitmap in bitmaps {
        match context
            .hypervisor
            .remove_bitmap(domain.uuid, &bitmap.target, &bitmap.name)
        {
            Ok(()) => context.note(format!("disk {}: removed bitmap {}", bitmap.target, bitmap.name)),
            Err(error) => left.push(format!(
                "disk {}: bitmap {} stays: failed to {error}",
                bitmap.target, bitmap.name
            )),
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A15: what libvirt knows, what is another program's, and what was forgotten.
    #[test]
    fn an_orphan_is_ours_and_unknown() {
        let bitmap = |name: &str| StoredBitmap {
            target: "vda".into(),
            name: name.into(),
            sound: true,
        };
        let bitmaps = ["strongroom-1", "strongroom-2", "virtnbdbackup.0"].map(bitmap);
        let found = orphans(bitmaps.into(), &["strongroom-2".to_owned()]);
        assert_eq!(found, [bitmap("strongroom-1")]);
    }
}
