//! The story of one backup, from top to bottom.
//!
//! [`run`] is the whole of it (`back_up` does it). What it decides is in [`plan`], how the disks are held still in [`crate::capture`], how
//! the guest is brought to rest for that in [`crate::capture::quiesce`], how
//! one of them is read in [`disk`], its LUKS headers kept apart in [`luks_headers`], cut into chunks in [`chunking`], checked in [`spot_check`], how the bytes travel in
//! [`stream`], and what surrounds them in [`commit`].
//!
//! Whatever fails on the way: the guest runs on, no job and no scratch file stays, nothing is committed, and the
//! checkpoint that the last good archive belongs to is still there.

pub mod adopted;
pub mod chunking;
pub mod ciphertext_only;
pub mod commit;
pub mod disk;
mod firmware;
pub mod luks_headers;
pub mod plan;
pub mod ready;
pub mod roles;
mod shared;
pub mod spot_check;
pub mod stream;
pub mod throttle;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde::Serialize;
use strongroom_base::cancel::Cancelled;
use strongroom_hypervisor::{Domain, HypervisorError};
use strongroom_points::archive::PointError;
use strongroom_points::headers::{self, Headers};
use strongroom_points::manifest::{Exclusion, Manifest, ManifestError, Method};
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::{Access, ArchiveOptions, ArchiveWriter, ChunkId, Repository};
use strongroom_points::trust::chain::ChainProblem;
use strongroom_points::trust::ledger::Ledger;
use strongroom_points::trust::order::Order;
use strongroom_points::trust::signature::{self, NAMESPACE};
use strongroom_points::trust::{self, SigningError, Successor};
use uuid::Uuid;

use self::commit::Instant;
use self::plan::Parent;
use self::throttle::Throttler;
use crate::capture::overlay::{ConsolidateError, Consolidation, consolidate};
use crate::capture::quiesce::{QuiesceError, Quiescer};
use crate::capture::reconcile::{ReconcileError, drop_stale, reconcile};
use crate::capture::tracking;
use crate::capture::{self, Capture, CaptureError, end_job, scratch};
use crate::config::{CaptureMethod, ConfigError};
use crate::run::context::Context;
use crate::run::event::{Code, Kind, Step};
use crate::run::plan::{Plan, RunId};
use crate::run::settings::VmJob;
use crate::run::state::{Committed, Run, StateError, VmState};

/// Why there is no new restore point. Each of these leaves the VM as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Ctrl-C, or a time limit.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Our records.
    #[error(transparent)]
    State(#[from] StateError),
    /// The leftovers of an earlier run.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The disks and the settings do not fit.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The repository.
    #[error("use the repository: {0}")]
    Repository(#[from] strongroom_points::store::StoreError),
    /// An earlier archive.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The new manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest's signature.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// An old copy of the repository was put back.
    #[error("back up {vm}: {problem}; nothing is encrypted into such a repository until you acknowledge it")]
    RolledBack {
        /// The VM.
        vm: String,
        /// What does not fit the record.
        problem: ChainProblem,
    },
    /// The repository's chain is another VM's.
    #[error(
        "back up {vm} ({uuid}): the newest restore point in its repository, {archive}, is of another VM, {other} ({other_uuid})"
    )]
    OtherVm {
        /// The VM.
        vm: String,
        /// Its UUID.
        uuid: Uuid,
        /// The newest archive.
        archive: String,
        /// Whose it is.
        other: String,
        /// Its UUID.
        other_uuid: Uuid,
    },
    /// A disk cannot be read.
    #[error("read disk {disk}: {source}")]
    Read {
        /// Target device name.
        disk: String,
        /// The reason, with the offset.
        source: strongroom_nbd::Error,
    },
    /// A LUKS header cannot be read.
    #[error("read the LUKS header on disk {disk}: {source}")]
    Header {
        /// Target device name.
        disk: String,
        /// The reason, with the offset.
        source: strongroom_disk::ReadError,
    },
    /// A disk is not ciphertext, and the configuration does not allow reading it all the same.
    #[error("back up {vm}: disk {disk} is not ciphertext: {parts}; nothing of it was stored")]
    Plaintext {
        /// The VM.
        vm: String,
        /// Target device name.
        disk: String,
        /// What is not.
        parts: String,
    },
    /// Whether a disk is ciphertext cannot be told.
    #[error("find out whether disk {disk} is encrypted: {source}")]
    Unchecked {
        /// Target device name.
        disk: String,
        /// Why not.
        source: strongroom_disk::ReadError,
    },
    /// The guest was not brought to rest as it has to be.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
    /// The frozen view.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The VM went off, and QEMU with its frozen view.
    #[error(
        "back up {vm}: it went off while it was read, and its frozen view with it ({error}); run the backup again"
    )]
    WentOff {
        /// The VM.
        vm: String,
        /// What failed then.
        error: Box<Self>,
    },
    /// The frozen view is not as large as the disk.
    #[error("read disk {disk}: its export has {export} bytes, the disk {expected}")]
    Size {
        /// Target device name.
        disk: String,
        /// Size of the export.
        export: u64,
        /// Size in the plan.
        expected: u64,
    },
    /// Parts of a disk did not arrive, though nothing failed.
    #[error("read disk {disk}: parts of it did not arrive")]
    Incomplete {
        /// Target device name.
        disk: String,
    },
    /// Disks are not on their own images after all.
    #[error("bring the disks of {vm} back to their images: {}", .disks.join("; "))]
    NotHome {
        /// The VM.
        vm: String,
        /// What is the matter with which disk, and what to do.
        disks: Vec<String>,
    },
    /// The way back to the images could not be gone.
    #[error("bring the disks back to their images: {0}")]
    Consolidate(#[from] ConsolidateError),
    /// A target was given another image between the plan and the job.
    #[error(
        "back up {vm}: disk {disk} was exchanged while the backup began, it was {before}; run the backup again"
    )]
    Exchanged {
        /// The VM.
        vm: String,
        /// Target device name.
        disk: String,
        /// What it was.
        before: String,
    },
}

/// A new restore point.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The VM's name.
    pub vm: String,
    /// The archive's name.
    pub archive: String,
    /// The repository's location.
    pub repository: String,
    /// Seconds from start to commit.
    pub seconds: f64,
    /// Everything about the restore point.
    pub manifest: Manifest,
    /// Bytes that the repository received, metadata included.
    pub bytes_stored: u64,
    /// What was asked of the servers.
    pub requests: Requests,
}

/// How often servers were asked for something: what a backup costs, as repeatable as seconds are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Requests to NBD servers, for data and for extents.
    pub nbd: u64,
    /// Calls of the repository's server.
    pub repository: u64,
}

/// What came of a call of [`run`].
#[derive(Debug)]
pub enum Outcome {
    /// Only planned, as asked.
    Planned(Plan),
    /// Done.
    Done(Box<Report>),
}

/// How a VM is to be backed up, beyond what the configuration says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request {
    /// Only say how.
    pub dry_run: bool,
    /// The VM was made anew, with another UUID: its restore points follow those of the one before.
    pub made_anew: bool,
}

/// Backs up one VM, within the time limit for a run.
pub fn run(context: &Context<'_>, name: &str, request: Request) -> Result<Outcome, BackupError> {
    context.within(context.settings.job(name).limits.run, |context| {
        back_up(&context.about(name), name, request).map_err(|error| match context.cancel.check() {
            // Whatever failed first when the run was stopped: it was stopped.
            Err(cancelled) => cancelled.into(),
            Ok(()) => error,
        })
    })
}

fn back_up(context: &Context<'_>, name: &str, request: Request) -> Result<Outcome, BackupError> {
    let dry_run = request.dry_run;
    let clock = std::time::Instant::now();
    let run = RunId::new();
    let domain = match context.hypervisor.domain(&context.settings.job(name).domain()) {
        Err(HypervisorError::NoSuchDomain(..)) if !context.settings.is_configured(name) => {
            return Err(ConfigError::UnknownVm(name.to_owned()).into());
        }
        found => found?,
    };
    // From here on this is what holds for it: nothing below asks the configuration again.
    let job = context.settings.job_of(name, &domain.name, domain.uuid)?;

    // One run a VM at a time; and whatever an interrupted one left is undone first.
    let mut state = context.state.lock(&domain.name, domain.uuid)?;
    context.report(Kind::step(Step::Reconcile));
    let interrupted = state.records().run.is_some();
    if !dry_run {
        reconcile(context, &domain, Some(&job.quiesce), &mut state)?;
    }
    if !interrupted {
        plan::check_free(&domain)?;
    }

    // From here on to the capture the guest is left in peace: how long its requests take then is what it is used to.
    let throttler = Throttler::new(context, &domain, job.throttle);

    // The repository comes before the VM: a wrong passphrase or a full disk must not cost the guest anything.
    context.report(Kind::step(Step::Plan));
    let access = if dry_run { Access::Read } else { Access::Write };
    let mut repository = context.repositories.open(&job.repository, access)?;
    context.note(repository.encryption().instructions().join(", "));
    // Opening it may have taken its time: a passphrase, a lock. The VM is what it is now.
    let mut domain = context.hypervisor.domain(&domain.uuid.to_string())?;
    if dry_run && interrupted {
        // What it is busy with may be what an interrupted run of ours left, which the next run undoes.
        domain.busy = None;
        domain.snapshots.clear();
    }
    let (newest, recorded, order) =
        adopted::newest(context, &mut repository, &domain, &run, request.made_anew)?;
    let older = parent_point(&mut repository, &state, newest.as_ref())?;
    let damaged = match Ledger::open(context.state.path(), &domain.name) {
        Ok(ledger) => ledger.damaged(),
        Err(error) => {
            context.warn(
                Code::DamageUnknown,
                format!("damaged chunks are not stored anew: failed to {error}"),
            );
            BTreeSet::new()
        }
    };
    let headers = newest_headers(context, &mut repository, &domain.name, newest.as_ref(), &order)?;
    // Repaired, pruned or written to by others: what is not there any more is read anew, as what is damaged.
    let there = [newest.as_ref(), older.as_ref()];
    let gone = adopted::gone(context, &mut repository, &domain.name, there, headers.as_ref())?;
    let damaged: BTreeSet<ChunkId> = damaged.into_iter().chain(gone.data).collect();
    let [newest, older] = [newest, older].map(|point| {
        point.map(|point| RestorePoint {
            damaged: damaged.clone(),
            ..point
        })
    });
    let untracked = tracking::forbidden(&domain, &job);
    if !dry_run && untracked.is_none() {
        tracking::readopt(context, &domain, &state);
    }
    let parent = match (jobless(context, &domain, &job), &untracked) {
        (Some(why), _) => Parent::NoJobs(why),
        (None, Some(why)) => Parent::Untracked(why.clone()),
        (None, None) => parent(
            context,
            &domain,
            &state,
            &repository,
            newest.as_ref(),
            older.as_ref(),
            &order,
        ),
    };
    let mut plan = plan::make(
        &domain,
        &job,
        newest.as_ref().map(|point| &point.manifest),
        &parent,
        &run,
    )?;
    context.report(Kind::Planned { plan: &plan });
    say_what_is_special(context, &domain, &plan);
    for disk in plan.disks.iter().filter(|disk| disk.host_encrypted) {
        context.note(format!(
            "disk {}: the hypervisor encrypts its image; the repository's own encryption is what protects its backup",
            disk.target
        ));
    }
    for difference in &domain.differences {
        let text = format!("disk {}: {}", difference.target, difference.what);
        if difference.medium {
            context.note(text);
        } else {
            context.warn(Code::DiskDiffers, text);
        }
    }
    shared::check(context, &plan)?;
    if dry_run {
        repository.close()?;
        return Ok(Outcome::Planned(plan));
    }
    let mut options = ArchiveOptions::new(&plan.archive);
    options.started = run.started;
    options.compression = job.compression;
    let repository_id = repository.id().to_string();
    let next = trust::successor(
        &context.here().grounds(),
        &domain.name,
        &repository,
        newest.as_ref(),
        &recorded,
    );
    let number = newest.as_ref().map_or(0, |newest| newest.manifest.sequence);
    repository.start_above(recorded.counter_floor(number));
    let mut writer = repository.begin(options)?;
    let points: Vec<&RestorePoint> = newest.iter().chain(&older).collect();
    for point in &points {
        writer.adopt(
            plan.disks
                .iter()
                .flat_map(|disk| point.sound_chunks(&disk.target)),
        );
        writer.adopt_metadata(&point.archive);
    }
    if let Some(headers) = &headers {
        writer.adopt(headers.sound_chunks(&damaged));
        writer.adopt_metadata(&headers.archive);
    }
    writer.lacks(&gone.metadata);
    context.cancel.check()?;

    // Intent first, act second.
    context.report(Kind::step(Step::Capture));
    let intent = capture::intent(context, &plan, &domain, run.started)?;
    state.begin(intent.clone())?;
    let reading = (&points[..], &throttler, &*job, next);
    let mut writer = Some(writer);
    let work = || {
        capture_and_commit(
            context,
            &domain,
            &mut state,
            &mut plan,
            &intent,
            reading,
            &mut writer,
        )
    };
    let done = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => {
            // A defect of ours is no reason to leave the guest on an overlay.
            undo(context, &domain, &mut state);
            resume_unwind(panic);
        }
    };
    let Sealed {
        mut repository,
        manifest,
        bytes_stored,
        healed,
        nbd,
    } = match done {
        Ok(done) => done,
        Err(error) => {
            // The job has been ended on the way out; the checkpoint of this run stands for no archive.
            undo(context, &domain, &mut state);
            // The guest does not wait for a repository that hangs: it is let go of now.
            drop(writer);
            return Err(explain(context, &domain, &plan, error));
        }
    };

    // The archive is committed: from here on nothing can make it undone. The old checkpoint goes last.
    context.report(Kind::step(Step::Release));
    let requests = Requests {
        nbd,
        repository: repository.requests(),
    };
    trust::remember(
        &context.here().grounds(),
        &repository,
        &manifest,
        &damaged,
        &healed,
    );
    adopted::leave(context, &mut repository, &domain.name);
    let committed = manifest.checkpoint.clone().map(|checkpoint| Committed {
        run: plan.run.clone(),
        archive: plan.archive.clone(),
        checkpoint,
        repository: repository_id,
    });
    let closed = state.commit(committed).and_then(|()| {
        // The snapshots were there first: with the checkpoint they could not be reverted to.
        if untracked.is_some() {
            state.retire()
        } else {
            Ok(())
        }
    });
    match closed {
        Ok(()) => drop_stale(context, &domain, &mut state),
        // The journal still names the run: the next one drops its checkpoint and starts from the one before.
        Err(error) => context.warn(
            Code::Records,
            format!("the archive is committed, but failed to {error}"),
        ),
    }
    warn_of_snapshots(context, &domain, &job);
    if let Err(error) = repository.close() {
        context.warn(
            Code::RepositoryClose,
            format!("the repository did not close cleanly after the commit: {error}"),
        );
    }
    Ok(Outcome::Done(Box::new(Report {
        vm: domain.name,
        archive: plan.archive,
        repository: job.repository.clone(),
        seconds: clock.elapsed().as_secs_f64(),
        manifest,
        bytes_stored,
        requests,
    })))
}

/// What is to be known of single disks before they are read.
fn say_what_is_special(context: &Context<'_>, domain: &Domain, plan: &Plan) {
    for disk in plan
        .excluded
        .iter()
        .filter(|disk| disk.why == Exclusion::Transient)
    {
        context.note(format!(
            "disk {} is left out: it is transient, what is written to it is thrown away when the VM goes off",
            disk.target
        ));
    }
    let read = |target: &str| plan.disks.iter().any(|disk| disk.target == target);
    for disk in domain
        .disks
        .iter()
        .filter(|disk| disk.shared && read(&disk.target))
    {
        context.warn(Code::ShareableDisk, format!(
            "disk {} can be written to by other VMs (<shareable/>) while it is read, so that its copy may mix several instants; \
             name it in `exclude`, unless this VM alone writes to it",
            disk.target
        ));
    }
}

/// Says beforehand what snapshots and checkpoints will do to each other. A person who has asked for both knows.
fn warn_of_snapshots(context: &Context<'_>, domain: &Domain, job: &VmJob) {
    if domain.internal_snapshots.is_empty() {
        return;
    }
    let checkpoints = context.hypervisor.checkpoints(domain.uuid).unwrap_or_default();
    match tracking::conflict(domain, &checkpoints) {
        Some(why) if job.track_beside_snapshots => context.note(why),
        Some(why) => context.warn(Code::SnapshotConflict, why),
        None => {}
    }
}

/// Makes sure that the disks of a job are those that were planned: a target may have been given another image meanwhile.
fn check_identities(context: &Context<'_>, plan: &Plan) -> Result<(), BackupError> {
    if plan.method != Method::Checkpoint {
        return Ok(());
    }
    let domain = context.hypervisor.domain(&plan.uuid.to_string())?;
    for planned in &plan.disks {
        let now = domain.disks.iter().find(|disk| disk.target == planned.target);
        if !now.is_some_and(|now| now.identity.is(&planned.identity)) {
            return Err(BackupError::Exchanged {
                vm: plan.vm.clone(),
                disk: planned.target.clone(),
                before: planned.identity.to_string(),
            });
        }
    }
    Ok(())
}

/// What the middle of the story ends with.
struct Sealed {
    repository: Repository,
    manifest: Manifest,
    bytes_stored: u64,
    /// Damaged chunks that have been stored anew.
    healed: BTreeSet<ChunkId>,
    /// Requests to NBD servers.
    nbd: u64,
}

/// The middle of the story: bring the guest to rest for an instant, read, end the job, commit.
fn capture_and_commit(
    context: &Context<'_>,
    domain: &Domain,
    state: &mut VmState,
    plan: &mut Plan,
    run: &Run,
    (points, throttler, job, next): (&[&RestorePoint], &Throttler, &VmJob, Successor),
    whole: &mut Option<ArchiveWriter>,
) -> Result<Sealed, BackupError> {
    let gone = || BackupError::Repository(strongroom_points::store::StoreError::doomed());
    let writer = whole.as_mut().ok_or_else(gone)?;
    scratch::check(context, plan, run, &job.limits)?;
    let mut quiescer = Quiescer::prepare(context, domain, &job.quiesce, &run.id, state)?;
    let capture = Capture::begin(context, plan, run, &mut quiescer)?;
    let quiesce = quiescer.outcome()?;
    capture.report();
    let plan = capture.plan();
    check_identities(context, plan)?;
    context.report(Kind::step(Step::Stream));
    let repository = writer.canceller();
    let disks = scratch::watched(context, plan, run, &job.limits, &repository, |context| {
        let read = |disk| {
            context.cancel.check()?;
            disk::read(context, job, &capture, disk, points, throttler, writer)
        };
        throttler.follow(context, || {
            plan.disks
                .iter()
                .map(read)
                .collect::<Result<Vec<_>, BackupError>>()
        })
    })?;
    capture.check()?;
    let instant = Instant {
        at: capture.at,
        call: capture.call,
        quiesce,
        started: run.started,
    };
    // The guest need not wait for the repository: its scratch files and overlays can go now.
    capture.end()?;
    if let Consolidation::Stuck(disks) = consolidate(context, plan.uuid, state)? {
        let vm = plan.vm.clone();
        return Err(BackupError::NotHome { vm, disks });
    }
    context.cancel.check()?;

    context.report(Kind::step(Step::Seal));
    let damaged = points.iter().flat_map(|point| &point.damaged);
    let damaged: BTreeSet<ChunkId> = damaged.copied().collect();
    let areas = disks
        .iter()
        .flat_map(|disk| disk.areas.iter().flat_map(|(_, chunks)| chunks));
    let stored = disks.iter().flat_map(|disk| &disk.chunks).chain(areas);
    let healed = stored
        .filter(|chunk| damaged.contains(&chunk.id))
        .map(|chunk| chunk.id)
        .collect();
    let nbd = disks.iter().map(|disk| disk.requests).sum();
    let writer = whole.take().ok_or_else(gone)?;
    let (repository, summary, manifest) =
        commit::commit(context, domain, plan, instant, disks, next, writer)?;
    Ok(Sealed {
        repository,
        manifest,
        bytes_stored: summary.data_stored + summary.metadata_stored,
        healed,
        nbd,
    })
}

/// Why the hypervisor cannot do what it is asked first, where the configuration leaves the choice. If it does not say,
/// trying will tell.
fn jobless(context: &Context<'_>, domain: &Domain, job: &VmJob) -> Option<String> {
    if job.method != CaptureMethod::Auto || !domain.state.is_active() {
        return None;
    }
    let told = context.hypervisor.lacks_backup_jobs(domain.uuid);
    told.unwrap_or_else(|error| {
        context.note(format!("failed to {error}"));
        None
    })
}

/// The archive that belongs to the checkpoint on record, where that is not the newest archive.
fn parent_point(
    repository: &mut Repository,
    state: &VmState,
    newest: Option<&RestorePoint>,
) -> Result<Option<RestorePoint>, BackupError> {
    let Some(committed) = &state.records().committed else {
        return Ok(None);
    };
    if newest.is_some_and(|point| point.name() == committed.archive) {
        return Ok(None);
    }
    let info = repository
        .archives()
        .find(|info| info.name.as_str() == Some(&committed.archive));
    let Some(info) = info.cloned() else {
        return Ok(None);
    };
    match RestorePoint::read(repository, &info) {
        Ok(point) => Ok(Some(point)),
        // Another archive under that name, or a damaged one: not a parent, but no reason to stop.
        Err(error) if error.concerns_one_archive() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The archive of headers that belongs to the newest restore point: what has not changed in them since is not stored again.
fn newest_headers(
    context: &Context<'_>,
    repository: &mut Repository,
    vm: &str,
    newest: Option<&RestorePoint>,
    order: &Order,
) -> Result<Option<Headers>, BackupError> {
    let Some(record) = newest.and_then(|point| point.manifest.headers.as_ref()) else {
        return Ok(None);
    };
    let info = headers::archives(repository)
        .into_iter()
        .find(|info| info.name.as_str() == Some(&record.archive));
    let Some(info) = info else {
        context.warn(Code::HeadersMissing, format!(
            "{} is gone, the headers that open the newest restore point; this backup stores them anew. Keep headers as long \
             as restore points: prune both by the same rule",
            record.archive
        ));
        return Ok(None);
    };
    match Headers::read(repository, &info) {
        Ok(headers) if headers.link() == record.sha256 => {
            let (signing, repository) = (context.settings.signing.as_ref(), repository.id().to_string());
            let trusted = headers.trusted(signing, order, &repository, vm, context.cancel);
            Ok(trusted.is_ok().then_some(headers))
        }
        Ok(_) => Ok(None),
        Err(error) if error.concerns_one_archive() => {
            context.warn(Code::ArchivePassedOver, format!("passed over: failed to {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether there is a pair of checkpoint and archive to start from. Our records, the repository and the hypervisor
/// all have to agree on it.
fn parent<'a>(
    context: &Context<'_>,
    domain: &Domain,
    state: &'a VmState,
    repository: &Repository,
    newest: Option<&'a RestorePoint>,
    older: Option<&'a RestorePoint>,
    order: &Order,
) -> Parent<'a> {
    let Some(committed) = &state.records().committed else {
        let why = if newest.is_none() {
            "first backup"
        } else {
            "no checkpoint is on record"
        };
        return Parent::None(why.into());
    };
    let archive = &committed.archive;
    let point = [newest, older]
        .into_iter()
        .flatten()
        .find(|point| point.name() == *archive);
    let written = point.map(|point| &point.manifest);
    let repository = repository.id().to_string();
    if let Err(why) = plan::pair(committed, &repository, domain.uuid, written) {
        return Parent::None(why);
    }
    let Some(point) = point else {
        return Parent::None(format!("archive {archive} is not in the repository"));
    };
    // Nothing that another key's owner made becomes part of what we sign.
    if let Some(signing) = &context.settings.signing
        && signing.allowed_signers.is_some()
    {
        let Manifest {
            sequence, captured, ..
        } = point.manifest;
        let at = order.of(sequence, &point.link, captured, jiff::Timestamp::now());
        let signature = point.signature.as_deref();
        let signer = signature::check(signing, NAMESPACE, signature, &point.bytes, at, context.cancel);
        if let Err(error) = signer {
            return Parent::None(format!("archive {archive} is not trusted: {error}"));
        }
    }
    let checkpoint = &committed.checkpoint;
    match context.hypervisor.checkpoints(domain.uuid) {
        Ok(names) if names.contains(checkpoint) => {}
        Ok(_) => return Parent::None(format!("checkpoint {checkpoint} is gone")),
        Err(error) => return Parent::None(format!("the checkpoints cannot be listed: {error}")),
    }
    match context.hypervisor.check_checkpoint(domain.uuid, checkpoint) {
        Ok(bad) => Parent::Usable(committed, point, bad),
        Err(error) => Parent::None(format!("checkpoint {checkpoint} cannot be used: {error}")),
    }
}

/// Says what a failure comes from, where the VM tells it.
fn explain(context: &Context<'_>, domain: &Domain, plan: &Plan, error: BackupError) -> BackupError {
    if plan.method != Method::Checkpoint || !matches!(error, BackupError::Read { .. }) {
        return error;
    }
    match context.hypervisor.domain(&domain.uuid.to_string()) {
        Ok(now) if !now.state.is_active() => BackupError::WentOff {
            vm: domain.name.clone(),
            error: Box::new(error),
        },
        _ => error,
    }
}

/// After a failure: this run's checkpoint stands for no archive. What cannot be undone now stays on record, and the
/// next run tries again.
fn undo(context: &Context<'_>, domain: &Domain, state: &mut VmState) {
    let Some(run) = state.records().run.clone() else {
        return;
    };
    if let Err(error) = end_job(context, domain.uuid, &run) {
        context.warn(
            Code::JobLeft,
            format!(
                "the backup job may still run on {}; the next run ends it: failed to {error}",
                domain.name
            ),
        );
        return;
    }
    match consolidate(context, domain.uuid, state) {
        Ok(Consolidation::Consolidated { .. }) => {}
        Ok(Consolidation::Stuck(disks)) => {
            for disk in disks {
                context.warn(Code::OverlayLeft, disk);
            }
            return;
        }
        Err(error) => {
            context.warn(Code::OverlayLeft, format!(
                "disks of {} may not be on their images; the next run brings them back, or `strongroom recover {}`: \
                 failed to {error}",
                domain.name, domain.name
            ));
            return;
        }
    }
    match state.abandon() {
        Ok(()) => drop_stale(context, domain, state),
        Err(error) => context.warn(
            Code::TidyUpLeft,
            format!("the next run has to tidy up after this one: failed to {error}"),
        ),
    }
}
