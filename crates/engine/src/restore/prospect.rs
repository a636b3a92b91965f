//! What will come of a definition on this host, before anything is written: what of it has to be trusted, what the host does not
//! have, what others have already, what a copy cannot have.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use strongroom_hypervisor::Retarget;

use super::{Request, RestoreError, RestorePlan};
use crate::run::context::Context;
use crate::run::event::Code;

/// Returns the definition as it will be, and puts into the plan what a person should know of it.
pub fn of(
    context: &Context<'_>,
    request: &Request,
    stored: &str,
    change: &Retarget,
    vouched: bool,
    plan: &mut RestorePlan,
) -> Result<String, RestoreError> {
    let hypervisor = context.hypervisor;
    let placed: Vec<&str> = change.disks.iter().map(|(target, _)| target.as_str()).collect();
    let mut defined = hypervisor.retarget(stored, change)?;
    // What a copy leaves out needs no signature, and no host.
    let lacks = hypervisor.lacks(&defined.xml, &placed)?;
    let fatal: Vec<String> = lacks
        .iter()
        .filter(|lack| lack.fatal)
        .map(|lack| lack.what.clone())
        .collect();
    if !fatal.is_empty() {
        return Err(RestoreError::Lacks {
            vm: plan.vm.clone(),
            lacks: fatal,
        });
    }
    let eject: Vec<String> = lacks.iter().filter_map(|lack| lack.medium.clone()).collect();
    if !eject.is_empty() {
        let mut change = change.clone();
        change.empty_drives.extend(eject);
        defined = hypervisor.retarget(stored, &change)?;
    }
    plan.changes = defined.notes;
    for lack in lacks {
        if lack.medium.is_some() {
            plan.changes.push(format!("{}: the drive is empty", lack.what));
        } else {
            context.warn(Code::DefinitionFit, lack.what.clone());
            plan.changes.push(lack.what);
        }
    }
    if hypervisor.is_local() {
        let closed = plan.disks.iter().find_map(|disk| closed_to_others(&disk.path));
        plan.changes.extend(closed.map(|directory| {
            format!(
                "QEMU, unless it runs as root, cannot get through {}: let it (`chmod o+x`), or choose another place with --to",
                directory.display()
            )
        }));
    }
    for conflict in hypervisor.conflicts(&defined.xml)? {
        context.warn(
            Code::DefinitionConflict,
            format!("{conflict}; both cannot run at the same time before one is changed (`virsh edit`)"),
        );
        plan.changes.push(conflict);
    }
    if !vouched {
        plan.powers = hypervisor.powers(&defined.xml, &placed)?;
    }
    if !plan.powers.is_empty() && !request.trust_definition && !request.dry_run {
        return Err(RestoreError::Powers {
            vm: plan.vm.clone(),
            powers: plan.powers.clone(),
        });
    }
    Ok(defined.xml)
}

/// The directory on the way to a file that lets only its owner and group through, if there is one. What an access list
/// allows cannot be told from the mode.
fn closed_to_others(path: &Path) -> Option<PathBuf> {
    let closed = |directory: &&Path| {
        let listed = rustix::fs::getxattr(*directory, "system.posix_acl_access", &mut [0_u8; 0]).is_ok();
        !listed && directory.metadata().is_ok_and(|found| found.mode() & 0o001 == 0)
    };
    path.ancestors().skip(1).find(closed).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::closed_to_others;

    /// Row A8: a directory that was there before stays as it is, and that is said.
    #[test]
    fn a_directory_that_keeps_qemu_out_is_named() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("a");
        create_dir(&directory).unwrap();
        set_permissions(place.path(), Permissions::from_mode(0o711)).unwrap();
        let file = directory.join("not/yet/vda.qcow2");
        set_permissions(&directory, Permissions::from_mode(0o711)).unwrap();
        assert_eq!(closed_to_others(&file), None);
        set_permissions(&directory, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(closed_to_others(&file), Some(directory));
    }
}
