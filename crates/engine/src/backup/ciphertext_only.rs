//! No clear text is copied by accident: a disk that is not ciphertext is read only if the configuration
//! says so for its VM, by name.
//!
//! On by itself for VMs of other machines, where the backup machine is not meant to see what is on the disks;
//! everywhere with `ciphertext_only`. It looks at a disk as the audit does: headers, and samples of the data.

use strongroom_disk::Survey;
use strongroom_nbd::Client;

use super::BackupError;
use crate::inspect::audit::clear_text;
use crate::run::context::Context;
use crate::run::plan::Plan;
use crate::run::settings::VmJob;

/// Refuses a disk with parts that are not ciphertext. Its map may come from another place than its bytes.
pub fn check(
    context: &Context<'_>,
    job: &VmJob,
    plan: &Plan,
    disk: &str,
    client: &mut Client,
    maps: Option<&mut Client>,
) -> Result<(), BackupError> {
    if job.plaintext || (context.hypervisor.is_local() && !job.ciphertext_only) {
        return Ok(());
    }
    let allocated = maps
        .unwrap_or(&mut *client)
        .allocation()
        .map_err(|source| BackupError::Read {
            disk: disk.to_owned(),
            source,
        })?;
    let survey = Survey::take(client, &allocated).map_err(|source| BackupError::Unchecked {
        disk: disk.to_owned(),
        source,
    })?;
    let parts = clear_text(&survey);
    if parts.is_empty() {
        return Ok(());
    }
    Err(BackupError::Plaintext {
        vm: plan.vm.clone(),
        disk: disk.to_owned(),
        parts: parts.join("; "),
    })
}
