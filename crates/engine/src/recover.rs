//! Undoes what an interrupted run left, without making a backup: what [`crate::backup`] begins with, on its own.

use crate::context::Context;
use crate::overlay::outlook;
use crate::reconcile::{ReconcileError, drop_stale, reconcile};
use crate::state::{Debt, StateError};
use crate::vm::HypervisorError;

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
}

/// Undoes what an interrupted run left of one VM; with `dry_run`, only says what there is. Gives what was found, a line
/// each; nothing if all is well.
pub fn recover(context: &Context<'_>, name: &str, dry_run: bool) -> Result<Vec<String>, RecoverError> {
    let domain = context.hypervisor.domain(name)?;
    let mut state = context.state.lock(&domain.name, domain.uuid)?;
    let records = state.records().clone();
    let mut found = Vec::new();
    if records.debt != Debt::default() {
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
    if !dry_run {
        reconcile(context, &domain, &mut state)?;
        // A VM may have been started meanwhile.
        let domain = context.hypervisor.domain(&domain.uuid.to_string())?;
        drop_stale(context, &domain, &mut state);
    }
    Ok(found)
}
