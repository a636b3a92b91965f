//! The frozen view of a running VM as a pull-mode backup job.

use std::thread;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{BackupJob, BadBitmap, HypervisorError, JobDisk, Listener};
use strongroom_points::manifest::Mode;
use uuid::Uuid;

use super::Begun;
use super::CaptureError;
use crate::capture::quiesce::Quiescer;
use crate::run::context::Context;
use crate::run::event::OpenExport;
use crate::run::plan::{DiskPlan, Plan};
use crate::run::state::Run;

/// How long a hypervisor that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two such attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the backup job: as planned, else everything in full, else in full without a checkpoint.
pub fn begin(
    context: &Context<'_>,
    plan: &mut Plan,
    run: &Run,
    quiescer: &mut Quiescer<'_>,
) -> Result<Begun, CaptureError> {
    // A plan for a job has been given one.
    let listener = run.listener.as_ref().ok_or_else(|| HypervisorError::Failed {
        what: format!("start the backup of {}", plan.vm),
        message: "the journal does not say where it is served".into(),
    })?;
    let mut failure = loop {
        let job = job(plan, listener);
        let error = match quiescer.during(|| context.hypervisor.begin_backup(plan.uuid, &job))? {
            Ok(call) => {
                let exports = exports(context, plan, listener);
                if exports.is_err() {
                    take_down(context, plan, run)?;
                }
                return Ok((call, exports?, Vec::new()));
            }
            Err(error) => error,
        };
        // An error says "unknown": whatever was begun after all is taken down before the next attempt.
        take_down(context, plan, run)?;
        if matches!(
            error,
            HypervisorError::Busy { .. } | HypervisorError::Connect { .. }
        ) {
            break error;
        }
        if !demand_less(context, plan, &error) {
            break error;
        }
        context.note(format!("trying again with less: failed to {error}"));
    };
    if let HypervisorError::Failed { what, .. } = &mut failure {
        what.insert_str(0, "start the backup: ");
    }
    Err(failure.into())
}

/// Where the disks of the job are read.
fn exports(
    context: &Context<'_>,
    plan: &Plan,
    listener: &Listener,
) -> Result<Vec<OpenExport>, HypervisorError> {
    let export = |disk: &DiskPlan| {
        Ok(OpenExport {
            target: disk.target.clone(),
            at: context.hypervisor.export(listener, &disk.target)?,
        })
    };
    plan.disks.iter().map(export).collect()
}

/// Makes the plan ask for less than what just failed; false if there is nothing less. Only the disks that are to blame
/// are read in full, where that can be told.
fn demand_less(context: &Context<'_>, plan: &mut Plan, error: &HypervisorError) -> bool {
    let incremental = || plan.disks.iter().filter(|disk| disk.mode == Mode::Incremental);
    if let Some(checkpoint) = incremental().find_map(|disk| disk.since.clone()) {
        let targets: Vec<&str> = incremental().map(|disk| disk.target.as_str()).collect();
        let bad = context.hypervisor.check_checkpoint(plan.uuid, &checkpoint);
        let blamed = blame(&targets, &bad.unwrap_or_default(), &error.to_string());
        for disk in &mut plan.disks {
            if let Some((_, why)) = blamed.iter().find(|(target, _)| *target == disk.target) {
                disk.mode = Mode::Full;
                disk.parent = None;
                disk.since = None;
                disk.reason = format!("the hypervisor refused an incremental backup: {why}");
            }
        }
        return true;
    }
    if plan.checkpoint.take().is_some() {
        for disk in &mut plan.disks {
            disk.tracked = false;
        }
        return true;
    }
    false
}

/// Which of the disks are to blame for a refusal, and why: those whose bitmaps turn out bad, else those that the
/// refusal names in quotes, else all. Never none.
fn blame(incremental: &[&str], bad: &[BadBitmap], refusal: &str) -> Vec<(String, String)> {
    let found: Vec<_> = bad
        .iter()
        .filter(|bad| incremental.contains(&bad.target.as_str()))
        .map(|bad| (bad.target.clone(), bad.why.clone()))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let named = |target: &&&str| {
        let quoted = |(open, close)| refusal.contains(&format!("{open}{target}{close}"));
        [('\'', '\''), ('"', '"'), ('«', '»'), ('„', '“'), ('“', '”')]
            .into_iter()
            .any(quoted)
    };
    let mut found: Vec<_> = incremental.iter().filter(named).collect();
    if found.is_empty() {
        found = incremental.iter().collect();
    }
    let because = |target: &&str| ((*target).to_owned(), refusal.to_owned());
    found.into_iter().map(because).collect()
}

/// Ends the run's backup job, known by its scratch files, if it is there. If its scratch file had filled the storage, so that
/// QEMU stopped the guest, the guest runs on, also if the job has ended before, in a call that failed all the same. A
/// hypervisor that does not answer is asked for half a minute: libvirtd may be restarting, and a job that stays grows.
pub fn end_job(context: &Context<'_>, domain: Uuid, run: &Run) -> Result<(), HypervisorError> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match try_end_job(context, domain, run) {
            Err(_) if Instant::now() < patience => thread::sleep(RETRY),
            ended => return ended,
        }
    }
}

fn try_end_job(context: &Context<'_>, domain: Uuid, run: &Run) -> Result<(), HypervisorError> {
    let hypervisor = context.hypervisor;
    let running = hypervisor.backup_job(domain)?;
    if running.is_some_and(|job| job.scratch.iter().any(|file| run.scratch.contains(file))) {
        hypervisor.end_backup(domain)?;
    }
    if run.running {
        context.resume_stopped(domain);
    }
    Ok(())
}

/// Ends our job if there is one after all, and deletes the checkpoint of this run.
fn take_down(context: &Context<'_>, plan: &Plan, run: &Run) -> Result<(), CaptureError> {
    end_job(context, plan.uuid, run)?;
    if let Some(checkpoint) = &plan.checkpoint {
        context.hypervisor.delete_checkpoint(plan.uuid, checkpoint)?;
    }
    Ok(())
}

fn job(plan: &Plan, listener: &Listener) -> BackupJob {
    let disk = |disk: &DiskPlan| JobDisk {
        target: disk.target.clone(),
        scratch: disk.scratch.clone(),
        since: disk.since.clone(),
        checkpoint: disk.tracked && plan.checkpoint.is_some(),
    };
    BackupJob {
        disks: plan.disks.iter().map(disk).collect(),
        checkpoint: plan.checkpoint.clone(),
        listener: listener.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_concerns_as_few_disks_as_can_be_told() {
        let disks = ["vda", "vdb", "vdc"];
        let bad = |target: &str| BadBitmap {
            target: target.into(),
            why: "lost".into(),
        };
        let blamed = |bad: &[BadBitmap], refusal: &str| {
            blame(&disks, bad, refusal)
                .into_iter()
                .map(|(target, _)| target)
                .collect::<Vec<_>>()
        };
        assert_eq!(blamed(&[bad("vdb"), bad("vdz")], "for disk 'vda'"), ["vdb"]);
        assert_eq!(
            blamed(&[bad("vdz")], "missing or broken bitmap 'x' for disk 'vda'"),
            ["vda"]
        );
        assert_eq!(blamed(&[], "fehlt für Datenträger »x« „vdc“"), ["vdc"]);
        assert_eq!(blamed(&[], "internal error: vda"), disks);
    }
}
