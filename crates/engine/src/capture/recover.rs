//! Undoes what an interrupted run left, without making a backup: what [`crate::backup`] begins with, on its own.

use strongroom_hypervisor::{Domain, HypervisorError, StoredBitmap};

use crate::capture::overlay::{outlook, wedged};
use crate::capture::reconcile::{ReconcileError, drop_stale, reconcile};
use crate::capture::tracking;
use crate::files::unfinished::{self, RestoreLeft};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::state::{Pending, Records, StateError};

/// Why a VM is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Our records; also when a backup of the VM is running.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something remains.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// Something remains of a restore.
    #[error(transparent)]
    Restore(#[from] RestoreLeft),
}

/// What to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request {
    /// Only say what there is.
    pub dry_run: bool,
    /// Also mend libvirt's memory where it shows a block job that has ended; see
    /// [`Repair::repair_status`](strongroom_hypervisor::Repair::repair_status).
    pub repair_status: bool,
}

/// Undoes what an interrupted run left of one VM. Returns what was found, a line each; nothing if all is well.
pub fn recover(context: &Context<'_>, name: &str, request: Request) -> Result<Vec<String>, RecoverError> {
    let context = &context.about(name);
    // Restores first: they may be what the domain's disks come from, or the domain itself.
    let restores = unfinished::recover(context, Some(name), request.dry_run)?;
    let mut found: Vec<String> = restores.into_iter().map(|(_, what)| what).collect();
    let domain = match context.hypervisor.domain(&context.settings.job(name).domain()) {
        Err(HypervisorError::NoSuchDomain(..)) if !found.is_empty() => return Ok(found),
        domain => domain?,
    };
    let mut state = context.state.lock(&domain.name, domain.uuid)?;
    let records = state.records().clone();
    if records.pending != Pending::default() {
        found.push("the guest is owed a thaw or its post script".to_owned());
    }
    if let Some(run) = &records.run {
        found.push(format!(
            "the backup that began at {} was interrupted",
            run.started.strftime("%Y-%m-%d %H:%M:%S UTC")
        ));
        found.extend(outlook(context, domain.uuid, run)?);
    }
    let stale = |checkpoint: &String| format!("checkpoint {checkpoint} is of no use any more");
    found.extend(records.stale.iter().map(stale));
    if let (Some(run), true) = (&records.run, request.repair_status) {
        let wedged = wedged(context, domain.uuid, run)?;
        for disk in &wedged {
            found.push(format!(
                "disk {}: libvirt shows a block job that has ended; its record must be repaired",
                disk.target
            ));
        }
        if !wedged.is_empty() && !request.dry_run {
            context.hypervisor.repair_status(domain.uuid, &wedged)?;
            context.note("libvirt has been stopped and started; it shows the guest on its own images again");
        }
    }
    let orphans = orphans(context, &domain, &records)?;
    found.extend(orphans.iter().map(|bitmap| {
        format!(
            "disk {}: bitmap {} of a checkpoint that was forgotten",
            bitmap.target, bitmap.name
        )
    }));
    if !request.dry_run {
        // A VM that is not configured any more has no script, but may have an overlay.
        let job = context.settings.job_of(name, &domain.name, domain.uuid).ok();
        let quiesce = job.as_ref().map(|job| &job.quiesce);
        reconcile(context, &domain, quiesce, &mut state)?;
        // A VM may have been started meanwhile.
        let domain = context.hypervisor.domain(&domain.uuid.to_string())?;
        drop_stale(context, &domain, &mut state);
        for why in tracking::remove(context, &domain, &orphans) {
            context.warn(Code::BitmapLeft, why);
        }
    }
    Ok(found)
}

/// The bitmaps of ours that belong to nothing any more. That of the checkpoint on record does: the next backup makes that
/// known again. Those of a VM on another machine are out of reach.
fn orphans(
    context: &Context<'_>,
    domain: &Domain,
    records: &Records,
) -> Result<Vec<StoredBitmap>, HypervisorError> {
    if !context.hypervisor.is_local() {
        return Ok(Vec::new());
    }
    let mut known = context.hypervisor.checkpoints(domain.uuid)?;
    known.extend(records.committed.iter().map(|of| of.checkpoint.clone()));
    known.extend(records.run.iter().filter_map(|run| run.checkpoint.clone()));
    let bitmaps = match context.hypervisor.bitmaps(domain.uuid) {
        Ok(bitmaps) => bitmaps,
        Err(error) => {
            // Not what this is called for: a disk that is gone must not keep the rest from being put right.
            context.note(format!("failed to {error}"));
            Vec::new()
        }
    };
    Ok(tracking::orphans(bitmaps, &known))
}
