//! Lets go of a VM: [`release`] ends what runs of ours left, and removes all checkpoints and dirty bitmaps of ours.
//!
//! Afterwards nothing of ours is in the way of `virsh snapshot-revert` and `virsh undefine`. Restore points stay; the next backup
//! reads everything once. What a hypervisor has forgotten is found in the images, by name.

use strongroom_hypervisor::names::is_ours;
use strongroom_hypervisor::{Domain, HypervisorError, StoredBitmap};

use crate::capture::reconcile::{ReconcileError, reconcile};
use crate::capture::tracking;
use crate::run::context::Context;
use crate::run::state::{Pending, StateError, VmState};

/// Why something of ours remains.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Our records; also when a backup of the VM is running.
    #[error(transparent)]
    State(#[from] StateError),
    /// What an interrupted run left.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// Checkpoints or bitmaps that could not be removed.
    #[error("let go of {vm}: {}", .left.join("; "))]
    Left {
        /// The VM.
        vm: String,
        /// What stays, and why.
        left: Vec<String>,
    },
}

/// Lets go of one VM. Returns what was found, a line each; nothing if there was nothing of ours. With `dry_run` it is only said.
pub fn release(context: &Context<'_>, name: &str, dry_run: bool) -> Result<Vec<String>, ReleaseError> {
    let context = &context.about(name);
    let domain = context.hypervisor.domain(&context.settings.job(name).domain())?;
    let mut state = context.state.lock(&domain.name, domain.uuid)?;
    let mut found = unfinished(&state);
    if !dry_run {
        // A VM that is not configured any more has no script, but may have an overlay.
        let job = context.settings.job_of(name, &domain.name, domain.uuid).ok();
        let quiesce = job.as_ref().map(|job| &job.quiesce);
        reconcile(context, &domain, quiesce, &mut state)?;
    }
    // The way home may have taken long.
    let domain = context.hypervisor.domain(&domain.uuid.to_string())?;
    let checkpoints = context.hypervisor.checkpoints(domain.uuid)?;
    let ours: Vec<String> = checkpoints.iter().filter(|name| is_ours(name)).cloned().collect();
    found.extend(ours.iter().map(|name| format!("checkpoint {name}")));
    let orphans = tracking::orphans(bitmaps(context, &domain, !ours.is_empty())?, &ours);
    found.extend(
        orphans
            .iter()
            .map(|bitmap| format!("disk {}: bitmap {} of no checkpoint", bitmap.target, bitmap.name)),
    );
    if dry_run {
        return Ok(found);
    }
    // Whatever happens from here on: no backup builds upon them.
    state.retire()?;
    let left = take_off(context, &domain, &ours)?;
    settle(context, &domain, &mut state)?;
    let others = checkpoints.len() - ours.len();
    if others > 0 {
        context.note(format!("{others} checkpoints that strongroom did not make stay"));
    }
    if left.is_empty() {
        return Ok(found);
    }
    let vm = domain.name;
    Err(ReleaseError::Left { vm, left })
}

fn unfinished(state: &VmState) -> Vec<String> {
    let records = state.records();
    let mut found = Vec::new();
    if records.pending != Pending::default() {
        found.push("the guest is owed a thaw or its post script".to_owned());
    }
    if let Some(run) = &records.run {
        found.push(format!(
            "the backup that began at {} was interrupted",
            run.started.strftime("%Y-%m-%d %H:%M:%S UTC")
        ));
    }
    found
}

/// All bitmaps. Those of a VM on another machine are known by its checkpoints alone, unless its monitor may be asked.
fn bitmaps(
    context: &Context<'_>,
    domain: &Domain,
    needed: bool,
) -> Result<Vec<StoredBitmap>, HypervisorError> {
    match context.hypervisor.bitmaps(domain.uuid) {
        Err(error) if !context.hypervisor.is_local() && (domain.state.is_active() || !needed) => {
            context.note(format!("failed to {error}"));
            Ok(Vec::new())
        }
        found => found,
    }
}

/// Removes checkpoints and bitmaps, and looks whether they are gone.
fn take_off(context: &Context<'_>, domain: &Domain, ours: &[String]) -> Result<Vec<String>, HypervisorError> {
    let hypervisor = context.hypervisor;
    let mut left = Vec::new();
    if domain.state.is_active() {
        for name in ours {
            if let Err(error) = hypervisor.delete_checkpoint(domain.uuid, name) {
                left.push(format!("checkpoint {name} stays: failed to {error}"));
            }
        }
    }
    // The bitmaps first: as long as they are there, a checkpoint says so.
    let mut remaining = bitmaps(context, domain, !ours.is_empty())?;
    let failed = |name: &str| left.iter().any(|why| why.contains(name));
    remaining.retain(|bitmap| is_ours(&bitmap.name) && !failed(&bitmap.name));
    let stay = tracking::remove(context, domain, &remaining);
    if !domain.state.is_active() && stay.is_empty() {
        for name in ours {
            hypervisor.forget_checkpoint(domain.uuid, name)?;
        }
    }
    left.extend(stay);
    Ok(left)
}

/// Strikes from the records what is gone.
fn settle(context: &Context<'_>, domain: &Domain, state: &mut VmState) -> Result<(), ReleaseError> {
    let there = context.hypervisor.checkpoints(domain.uuid)?;
    for name in state.records().stale.clone() {
        if !there.contains(&name) {
            state.deleted(&name)?;
        }
    }
    Ok(())
}
