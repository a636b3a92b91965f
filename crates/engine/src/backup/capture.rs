//! The frozen view: begun before anything is read, ended whatever happens.
//!
//! A running VM's view is a pull-mode backup job; a shut-off VM's is one read-only NBD server a disk. The first
//! survives this process, so everything about it is in the journal before it is begun, and a [`Capture`] that is
//! dropped (an error, a panic, ctrl-C) ends it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use strongroom_nbd::{Backing, Format, QemuNbd, Serve, Target};
use uuid::Uuid;

use super::BackupError;
use super::plan::{DiskPlan, Plan};
use crate::context::Context;
use crate::event::{Event, OpenExport};
use crate::manifest::{Method, Mode};
use crate::quiesce::Rest;
use crate::state::Run;
use crate::vm::{BackupJob, BadBitmap, Domain, HypervisorError, JobDisk, RunState};

/// How long a hypervisor that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two such attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Frozen views of all disks of a [`Plan`] at one instant.
pub struct Capture<'a> {
    context: &'a Context<'a>,
    plan: &'a Plan,
    /// When the views were frozen.
    pub at: Timestamp,
    /// How long the hypervisor took to freeze them: an upper bound of the guest-visible pause.
    pub call: Duration,
    /// The views, in the order of the plan's disks.
    pub exports: Vec<OpenExport>,
    servers: Vec<Server>,
    /// What the journal says of this run: how its job is told from others'.
    run: &'a Run,
    ended: bool,
}

/// A read-only server of a shut-off VM's disk, and how the image looked before it was read.
struct Server {
    _process: QemuNbd,
    image: PathBuf,
    stamp: Option<(SystemTime, u64)>,
}

/// The journal entry of a run that is about to act.
pub fn intent(
    context: &Context<'_>,
    plan: &Plan,
    domain: &Domain,
    started: Timestamp,
) -> Result<Run, BackupError> {
    let socket = match plan.method {
        Method::Checkpoint => context
            .hypervisor
            .socket_directory(plan.uuid)?
            .join(socket_name(plan)),
        Method::Offline => PathBuf::new(),
    };
    let scratch = match plan.method {
        Method::Checkpoint => plan.disks.iter().map(|disk| disk.scratch.clone()).collect(),
        Method::Offline => Vec::new(),
    };
    Ok(Run {
        id: plan.run.clone(),
        started,
        archive: plan.archive.clone(),
        checkpoint: plan.checkpoint.clone(),
        socket,
        scratch,
        running: domain.state == RunState::Running,
        overlays: Vec::new(),
    })
}

/// Short: a unix socket's path has 107 bytes at most, and libvirt's directories are long already.
fn socket_name(plan: &Plan) -> String {
    let unique = plan.run.rsplit('-').next().unwrap_or(&plan.run);
    format!("sr-{unique}.sock")
}

impl<'a> Capture<'a> {
    /// Freezes the views, by a call that is made with the guest at rest. Where the hypervisor cannot do as planned, what
    /// is read in full instead, and why, is written into the plan.
    pub fn begin(
        context: &'a Context<'a>,
        plan: &'a mut Plan,
        run: &'a Run,
        rest: &mut Rest<'_>,
    ) -> Result<Self, BackupError> {
        let (call, exports, servers) = match plan.method {
            Method::Checkpoint => begin_job(context, plan, run, rest)?,
            Method::Offline => begin_servers(context, plan)?,
        };
        Ok(Self {
            context,
            plan,
            at: rest.at.unwrap_or_else(Timestamp::now),
            call,
            exports,
            servers,
            run,
            ended: false,
        })
    }

    /// Reports the views.
    pub fn report(&self) {
        self.context.report(&Event::Captured {
            exports: &self.exports,
            call: self.call,
        });
    }

    /// The plan as it was carried out.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// Where to read a disk, and the dirty bitmap to ask for, if it is read incrementally.
    pub fn target(&self, disk: &DiskPlan) -> Option<(Target, Option<String>)> {
        let export = self.exports.iter().find(|export| export.target == disk.target)?;
        let dirty = (disk.mode == Mode::Incremental).then(|| BackupJob::dirty_bitmap(&disk.target));
        Some((export.at.clone(), dirty))
    }

    /// Whether what was read is one state of the disks. Nothing else can touch a backup job's views; a shut-off VM
    /// may have been started meanwhile, which we do not hinder, and then the copy is worthless.
    pub fn check(&self) -> Result<(), BackupError> {
        if self.plan.method == Method::Offline {
            let started = self
                .context
                .hypervisor
                .domain(&self.plan.uuid.to_string())?
                .state
                .is_active();
            let written = self
                .servers
                .iter()
                .any(|server| stamp(&server.image) != server.stamp);
            if started || written {
                return Err(BackupError::Disturbed(self.plan.vm.clone()));
            }
        }
        Ok(())
    }

    /// Ends the views.
    pub fn end(mut self) -> Result<(), BackupError> {
        if self.plan.method == Method::Checkpoint {
            end_job(self.context, self.plan.uuid, self.run)?;
        }
        self.ended = true;
        Ok(())
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended
            && self.plan.method == Method::Checkpoint
            && let Err(error) = end_job(self.context, self.plan.uuid, self.run)
        {
            self.context.warn(format!(
                "the backup job may still run on {}: failed to {error}",
                self.plan.vm
            ));
        }
    }
}

/// What is begun.
type Begun = (Duration, Vec<OpenExport>, Vec<Server>);

/// Starts the backup job: as planned, else everything in full, else in full without a checkpoint.
fn begin_job(
    context: &Context<'_>,
    plan: &mut Plan,
    run: &Run,
    rest: &mut Rest<'_>,
) -> Result<Begun, BackupError> {
    let mut failure = loop {
        let job = job(plan, &run.socket);
        let error = match rest.around(|| context.hypervisor.begin_backup(plan.uuid, &job))? {
            Ok(call) => {
                let export = |disk: &DiskPlan| OpenExport {
                    target: disk.target.clone(),
                    at: Target::Unix {
                        path: run.socket.clone(),
                        export: disk.target.clone(),
                    },
                };
                return Ok((call, plan.disks.iter().map(export).collect(), Vec::new()));
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
        context.note(format!("{}: trying again with less: failed to {error}", plan.vm));
    };
    if let HypervisorError::Failed { what, .. } = &mut failure {
        what.insert_str(0, "start the backup: ");
    }
    Err(failure.into())
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

/// Ends the run's backup job, known by its socket, if it is there. If its scratch file had filled the storage, so that
/// QEMU stopped the guest, the guest runs on. A hypervisor that does not answer is asked for half a minute: libvirtd
/// may be restarting, and a job that stays grows.
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
    if running.is_none_or(|job| job.socket.as_deref() != Some(&run.socket)) {
        return Ok(());
    }
    hypervisor.end_backup(domain)?;
    if run.running {
        match hypervisor.resume_after_io_error(domain) {
            Ok(false) => {}
            Ok(true) => {
                context.warn("the guest was stopped because its storage was full; the backup job has ended, it runs on");
            }
            Err(error) => context.warn(format!(
                "the guest may be stopped because its storage was full: failed to {error}"
            )),
        }
    }
    Ok(())
}

/// Ends our job if there is one after all, and deletes the checkpoint of this run.
fn take_down(context: &Context<'_>, plan: &Plan, run: &Run) -> Result<(), BackupError> {
    end_job(context, plan.uuid, run)?;
    if let Some(checkpoint) = &plan.checkpoint {
        context.hypervisor.delete_checkpoint(plan.uuid, checkpoint)?;
    }
    Ok(())
}

fn job(plan: &Plan, socket: &Path) -> BackupJob {
    let disk = |disk: &DiskPlan| JobDisk {
        target: disk.target.clone(),
        scratch: disk.scratch.clone(),
        since: disk.since.clone(),
        checkpoint: disk.tracked && plan.checkpoint.is_some(),
    };
    BackupJob {
        disks: plan.disks.iter().map(disk).collect(),
        checkpoint: plan.checkpoint.clone(),
        socket: socket.to_owned(),
    }
}

/// Serves a shut-off VM's disks. The images are opened without a lock: a lock would keep the owner from starting
/// the VM. [`Capture::check`] finds out whether that happened.
fn begin_servers(context: &Context<'_>, plan: &Plan) -> Result<Begun, BackupError> {
    if !context.hypervisor.is_local() {
        return Err(BackupError::OfflineRemote(plan.vm.clone()));
    }
    let mut exports = Vec::new();
    let mut servers = Vec::new();
    for disk in &plan.disks {
        let image = disk.source.clone().unwrap_or_default();
        let stamp = stamp(&image);
        let serve = Serve {
            export: disk.target.clone(),
            backing: Backing::Follow,
            ..Serve::peek(format_of(disk)?)
        };
        let process = QemuNbd::start(&image, &serve).map_err(|source| BackupError::Export {
            disk: disk.target.clone(),
            source,
        })?;
        exports.push(OpenExport {
            target: disk.target.clone(),
            at: process.target(),
        });
        servers.push(Server {
            _process: process,
            image,
            stamp,
        });
    }
    Ok((Duration::ZERO, exports, servers))
}

/// What changes when an image is written to.
fn stamp(image: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(image).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The format as defined; others than these two cannot be opened as what the guest sees.
fn format_of(disk: &DiskPlan) -> Result<Format, BackupError> {
    match disk.format.as_str() {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        other => Err(BackupError::Format {
            disk: disk.target.clone(),
            format: other.to_owned(),
        }),
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
