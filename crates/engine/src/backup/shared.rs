//! Who else writes to what a backup reads.
//!
//! Nothing of a backup holds another domain's writes still, and no dirty bitmap of this VM knows of them.

use strongroom_hypervisor::Role;
use strongroom_points::manifest::Method;
use uuid::Uuid;

use super::plan::PlanError;
use crate::files::{Doubt, Held, Inventory};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::plan::Plan;

/// Refuses a shut-off VM whose images another domain writes to: what is read would be of many instants. Of a running VM it is a
/// warning, as the disk may be a shared one. A domain that hangs, so that it is not known what it writes to, is no reason to go
/// without a backup.
pub fn check(context: &Context<'_>, plan: &Plan) -> Result<(), PlanError> {
    let inventory = match Inventory::take(context.hypervisor) {
        Ok(inventory) => inventory,
        Err(error) => {
            context.note(format!(
                "it is not known whether other domains use its disks: failed to {error}"
            ));
            return Ok(());
        }
    };
    let targets: Vec<&str> = plan.disks.iter().map(|disk| disk.target.as_str()).collect();
    for (target, other) in writers(&inventory, plan.uuid, &targets) {
        if plan.method == Method::Offline {
            return Err(PlanError::Shared {
                vm: plan.vm.clone(),
                target: target.to_owned(),
                store: other.store.to_string(),
                domain: other.domain.clone(),
            });
        }
        context.warn(Code::DiskShared, format!(
            "disk {target}: {:?} runs and writes to it, too ({}): the two are not held still together; leave it out of one of \
             the VMs' backups with `exclude`, or shut {} down for the backup",
            other.domain, other.store, other.domain
        ));
    }
    for (unread, doubt) in inventory.doubts(plan.uuid, &targets, plan.method == Method::Offline) {
        let (domain, reason) = (&unread.domain, &unread.reason);
        match doubt {
            Doubt::Slight => context.note(format!(
                "{domain:?} may use its disks, too: libvirt does not give that domain's \
                 definition ({reason})"
            )),
            Doubt::Grave => context.warn(Code::DiskUseUnknown, format!(
                "it is shut off, and it could not be determined whether {domain:?} writes to its disks meanwhile, as libvirt \
                 does not give that domain's definition ({reason}); if it does, this backup is of many instants: repeat it \
                 once that VM answers again, or has ended (`virsh destroy`)"
            )),
        }
    }
    Ok(())
}

/// Uses by other domains that run and can write to what these disks consist of, one for each disk and domain.
fn writers<'a>(inventory: &'a Inventory, vm: Uuid, targets: &[&str]) -> Vec<(&'a str, &'a Held)> {
    let mut found: Vec<(&str, &Held)> = Vec::new();
    for own in inventory.held().iter().filter(|held| held.uuid == vm) {
        let (Role::Disk(target) | Role::Below(target)) = &own.role else {
            continue;
        };
        if !targets.contains(&target.as_str()) {
            continue;
        }
        let others = inventory.held().iter().filter(|other| {
            other.uuid != vm && other.identity == own.identity && other.active && other.now && other.writable
        });
        for other in others {
            if found
                .iter()
                .all(|(known, by)| (*known, by.uuid) != (target.as_str(), other.uuid))
            {
                found.push((target, other));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_hypervisor::{Store, Use, User};

    #[test]
    fn only_others_that_run_and_write_are_in_the_way() {
        let vm = Uuid::from_u128(1);
        let image = |role: Role| Use {
            store: Store::Path("/nowhere/image".into()),
            role,
            format: Some("raw".into()),
            writable: true,
            shareable: false,
            now: true,
        };
        let user = |uuid, active, uses| User {
            name: format!("vm{uuid}"),
            uuid: Uuid::from_u128(uuid),
            active,
            uses: vec![uses],
            unread: None,
        };
        let disk = || image(Role::Disk("vda".into()));
        let found = |own: Use, other: Use, active: bool| {
            let users = [user(1, false, own), user(2, active, other)];
            writers(&Inventory::of(&users, true), vm, &["vda"]).len()
        };
        assert_eq!(found(disk(), disk(), true), 1);
        assert_eq!(found(disk(), disk(), false), 0);
        let below = image(Role::Below("vda".into()));
        assert_eq!(found(below, disk(), true), 1, "the template of a clone runs");
        let read = Use {
            writable: false,
            ..disk()
        };
        assert_eq!(found(disk(), read, true), 0);
        let later = Use { now: false, ..disk() };
        assert_eq!(found(disk(), later, true), 0);
        let another = image(Role::Disk("vdb".into()));
        assert_eq!(found(another, disk(), true), 0, "a disk that is left out");
    }
}
