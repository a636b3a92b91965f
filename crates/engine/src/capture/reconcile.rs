//! Undoes what an interrupted run left behind.
//!
//! | the run died … | it left | what happens here |
//! |---|---|---|
//! | with the guest at rest | a thaw and the `post` script owing | both are made up for ([`quiesce::settle`]); the watchdog has thawed long before |
//! | before its job began | a journal entry | the entry is closed |
//! | with its job running | job, scratch files, new checkpoint | the job is ended (the hypervisor removes the scratch files), the checkpoint becomes stale |
//! | with views as disks of this machine | those disks, read-only | they are detached |
//! | after the VM went down | socket, perhaps scratch files | both are removed |
//! | with overlays | overlays in use, perhaps half merged | they are merged, the guest is switched back, the files are removed: see [`crate::capture::overlay`] |
//! | after Borg's commit, before the records | two checkpoints | the new one becomes stale: the older one and its archive still belong together |
//!
//! A Borg transaction that was not committed vanishes by itself. Only objects that the journal names are touched,
//! and a job only if it listens on the journal's socket.

use std::path::{Path, PathBuf};

use crate::capture::overlay::{ConsolidateError, Consolidation, consolidate};
use crate::capture::quiesce;
use crate::capture::{detach_exports, end_job};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::settings::Quiesce;
use crate::run::state::{StateError, VmState};
use strongroom_hypervisor::{Domain, HypervisorError, Listener};

/// Why the traces of a run could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The hypervisor's reason.
    #[error("undo what an interrupted run left: {0}")]
    Hypervisor(#[from] HypervisorError),
    /// Our records' reason.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another program is at work on it. The journal stays open.
    #[error("undo what an interrupted backup of {vm} left: {what}; run it again when that is over")]
    Busy {
        /// The VM.
        vm: String,
        /// What it is busy with.
        what: String,
    },
    /// Disks are not on their own images, and it takes a person to say how to go on. The journal stays open.
    #[error("undo what an interrupted backup of {vm} left: {}", .disks.join("; "))]
    NotHome {
        /// The VM.
        vm: String,
        /// What is the matter with which disk, and what to do.
        disks: Vec<String>,
    },
}

impl From<ConsolidateError> for ReconcileError {
    fn from(error: ConsolidateError) -> Self {
        match error {
            ConsolidateError::Hypervisor(error) => Self::Hypervisor(error),
            ConsolidateError::State(error) => Self::State(error),
        }
    }
}

/// Undoes what the run in the journal left, if there is one.
pub fn reconcile(
    context: &Context<'_>,
    domain: &Domain,
    settings: Option<&Quiesce>,
    state: &mut VmState,
) -> Result<(), ReconcileError> {
    quiesce::settle(context, domain, settings, state)?;
    let Some(run) = state.records().run.clone() else {
        return Ok(());
    };
    context.warn(
        Code::InterruptedBackup,
        format!(
            "the backup that began at {} was interrupted; undoing what it left",
            run.started.strftime("%Y-%m-%d %H:%M:%S UTC")
        ),
    );
    detach_exports(context, &run);
    // The guest's own images come first.
    if let Consolidation::Stuck(disks) = consolidate(context, domain.uuid, state)? {
        let vm = domain.name.clone();
        return Err(ReconcileError::NotHome { vm, disks });
    }
    // As it is now: the way home may have taken long.
    let domain = &context.hypervisor.domain(&domain.uuid.to_string())?;
    if domain.state.is_active() {
        end_job(context, domain.uuid, &run)?;
        // While others are at work on it, a call that the dead run has made may still be waiting for its turn: what that
        // call begins has to find the journal open.
        let domain = context.hypervisor.domain(&domain.uuid.to_string())?;
        if let Some(what) = domain.busy {
            return Err(ReconcileError::Busy {
                vm: domain.name,
                what,
            });
        }
    }
    // Scratch files of another program's job that still runs have other names.
    if context.hypervisor.is_local() {
        let socket = run.listener.as_ref().and_then(Listener::socket);
        for path in run.scratch.iter().map(PathBuf::as_path).chain(socket) {
            remove_leftover(context, path);
        }
    }
    state.abandon()?;
    Ok(())
}

/// Deletes the checkpoints of ours that are of no use any more. Those of a shut-off VM cannot be deleted; they do no
/// harm, since none of them is ever built upon, and wait for the next backup of the running VM.
pub fn drop_stale(context: &Context<'_>, domain: &Domain, state: &mut VmState) {
    for checkpoint in state.records().stale.clone() {
        if !domain.state.is_active() {
            context.note(format!(
                "checkpoint {checkpoint} stays until {} runs again",
                domain.name
            ));
            continue;
        }
        match context.hypervisor.delete_checkpoint(domain.uuid, &checkpoint) {
            Ok(()) => {
                context.note(format!("deleted checkpoint {checkpoint}"));
                if let Err(error) = state.deleted(&checkpoint) {
                    context.warn(Code::Records, format!("failed to {error}"));
                }
            }
            Err(error) => context.warn(
                Code::CheckpointLeft,
                format!("checkpoint {checkpoint} stays for now: failed to {error}"),
            ),
        }
    }
}

fn remove_leftover(context: &Context<'_>, path: &Path) {
    if path.as_os_str().is_empty() {
        return;
    }
    match std::fs::remove_file(path) {
        Ok(()) => context.note(format!("removed {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => context.warn(
            Code::FileLeft,
            format!("failed to remove {}: {error}", path.display()),
        ),
    }
}
