//! The story of one restore, from top to bottom.
//!
//! [`run`] decides where everything goes ([`plan`]), finds the LUKS headers that open the disks ([`header`]), writes the disks
//! ([`write`]) beside their final places, or here for another machine (`staging`), moves them there when all are whole
//! ([`crate::files::staged`]), and defines the domain last. What fails leaves everything as it was.

mod belief;
mod error;
pub mod header;
pub mod in_place;
pub mod plan;
mod prospect;
mod room;
mod sink;
mod staging;
pub mod write;

use std::path::PathBuf;

use serde::Serialize;
use strongroom_base::cancel::Cancelled;
use strongroom_hypervisor::HypervisorError;
use strongroom_points::archive::PointError;
use strongroom_points::catalog::Catalog;
use strongroom_points::digest;
use strongroom_points::firmware;
use strongroom_points::manifest::DOMAIN_PATH;
use strongroom_points::restore_point::RestorePoint;
use strongroom_points::selector::PointName;
use strongroom_points::store::{Access, Repository};
use strongroom_points::trust::Untrusted;
use strongroom_points::trust::chain::ChainProblem;
use uuid::Uuid;

pub use self::plan::{DiskContent, DiskTarget, LeftOut, RestorePlan};
use self::staging::Staging;
use self::write::WriteError;
use crate::files::define::define;
use crate::files::room::{Need, Shortage, check, watched};
pub use crate::files::staged::RestoredDisk;
use crate::files::staged::{InstalledFile, StagedFile};
use crate::files::unfinished;
use crate::run::context::Context;
use crate::run::event::{Code, Kind, Step};
use crate::run::state::StateError;

/// The largest domain definition that is read, in bytes.
const MAX_DOMAIN_XML: u64 = 16 << 20;

/// What is to be restored, and where to.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "they are switches of a command")]
pub struct Request {
    /// Which restore point.
    pub point: PointName,
    /// Give the VM this name, and with it a new UUID and new MAC addresses.
    pub rename: Option<String>,
    /// Only these disks, and no domain is defined; all disks and the domain if empty.
    pub disks: Vec<String>,
    /// Directory for the disks, or, with exactly one disk asked for, its file.
    pub to: Option<PathBuf>,
    /// Bring this image to the state of the one disk asked for, and write only what differs.
    pub onto: Option<PathBuf>,
    /// Image format of the restored disks.
    pub format: ImageFormat,
    /// Replace files, and the definition of a shut-off domain, that exist.
    pub overwrite: bool,
    /// A damaged disk does not keep the others from being restored. The domain is not defined then.
    pub keep_going: bool,
    /// Restore it even though no trusted key has signed it.
    pub unsigned: bool,
    /// Restore the newest one that is there, though newer ones are on record.
    pub allow_rollback: bool,
    /// Take the LUKS headers of this archive, whatever their age.
    pub headers: Option<String>,
    /// Take the LUKS headers of the restore point's own instant, with the passphrases of that time; else the newest ones
    /// that fit.
    pub own_headers: bool,
    /// Begin although all of it may not fit; it still gives way before the storage is full.
    pub tight: bool,
    /// Take the definition as it is, though it acts on the host and no trusted key has signed it.
    pub trust_definition: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Format of a restored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// qcow2, holes are not allocated.
    Qcow2,
    /// Raw, holes are sparse.
    Raw,
}

/// Why nothing, or not everything, was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Ctrl-C.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The repository.
    #[error("use the repository: {0}")]
    Repository(#[from] strongroom_points::store::StoreError),
    /// The archive.
    #[error(transparent)]
    Point(#[from] PointError),
    /// What was asked for does not fit the archive or the host.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// No trusted key has signed the archive.
    #[error("trust archive {archive}: {source}")]
    Untrusted {
        /// The archive's name.
        archive: String,
        /// Why not.
        source: Untrusted,
    },
    /// What is there may not be the newest.
    #[error("restore the newest restore point of {vm}: {problem}")]
    NotTheNewest {
        /// The VM.
        vm: String,
        /// What does not fit the record.
        problem: ChainProblem,
    },
    /// A disk's data would be there, and no key would open it.
    #[error(
        "restore disk {disk}: no header opens LUKS volume {uuid} any more: {reason}; --keep-going restores what else there is"
    )]
    NoHeader {
        /// Target device name.
        disk: String,
        /// The volume.
        uuid: String,
        /// What was looked for in vain.
        reason: String,
    },
    /// A definition acts on the host, and no trusted key has signed it.
    #[error(
        "define {vm}: no trusted key has signed the restore point, and its definition has {}; --trust-definition takes it as it is, and --disk restores disks alone", .powers.join(", ")
    )]
    Powers {
        /// The VM.
        vm: String,
        /// What acts on the host.
        powers: Vec<String>,
    },
    /// The host cannot have such a domain.
    #[error("define {vm} on this host: {}; --disk restores disks alone", .lacks.join("; "))]
    Lacks {
        /// The VM.
        vm: String,
        /// What is missing.
        lacks: Vec<String>,
    },
    /// Our own records.
    #[error(transparent)]
    State(#[from] StateError),
    /// An interrupted restore of the same VM.
    #[error(transparent)]
    Left(#[from] unfinished::RestoreLeft),
    /// All of it may not fit.
    #[error("{0}; name another place with --to, or begin all the same with --tight")]
    Room(#[from] Shortage),
    /// The storage was filled meanwhile, by this or by others.
    #[error("{0}; the restore has given way, and what it had written is removed")]
    GaveWay(Shortage),
    /// What is signed is another archive.
    #[error("trust archive {archive}: {why}")]
    Misplaced {
        /// The archive's name.
        archive: String,
        /// What does not fit.
        why: String,
    },
    /// A disk could not be written.
    #[error("restore disk {disk}: {source}")]
    Disk {
        /// Target device name.
        disk: String,
        /// Why; damage is named by its offset on the disk.
        source: WriteError,
    },
    /// A file could not be written, or not take its place.
    #[error("restore {path}: {source}")]
    File {
        /// Path in the archive, or the file's place.
        path: String,
        /// Why.
        source: WriteError,
    },
    /// With `keep_going`: some disks are there, these are not.
    #[error("restore {}; the other disks are restored, the domain is not defined", .0.join("; "))]
    Partial(Vec<String>),
    /// A file in the archive is not the one that its manifest describes.
    #[error("restore {path}: its content is not what the manifest of {archive} describes")]
    Altered {
        /// The archive's name.
        archive: String,
        /// Path in the archive.
        path: String,
    },
    /// The archive lacks a file.
    #[error("restore {path}: archive {archive} does not hold it")]
    Missing {
        /// The archive's name.
        archive: String,
        /// Path in the archive.
        path: String,
    },
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The restored VM's name.
    pub vm: String,
    /// Its UUID, if it was defined.
    pub uuid: Option<Uuid>,
    /// The archive.
    pub archive: String,
    /// The disks written.
    pub disks: Vec<RestoredDisk>,
    /// Disks and drives of its definition that it comes without.
    pub left_out: Vec<LeftOut>,
    /// What of the domain is not as it was, or not there on this host, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// Seconds it took.
    pub seconds: f64,
}

/// What came of a call of [`run`].
#[derive(Debug)]
pub enum Outcome {
    /// Only planned, as asked.
    Planned(RestorePlan),
    /// Done.
    Done(Report),
}

/// Restores a VM, or some of its disks.
pub fn run(context: &Context<'_>, request: &Request) -> Result<Outcome, RestoreError> {
    let name = request.rename.as_deref().unwrap_or(&request.point.vm);
    restore(&context.about(name), request).map_err(|error| match context.cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => error,
    })
}

fn restore(context: &Context<'_>, request: &Request) -> Result<Outcome, RestoreError> {
    let clock = std::time::Instant::now();
    context.report(Kind::step(Step::Plan));
    let job = context.settings.job(&request.point.vm);
    let mut repository = context
        .repositories
        .open_as_it_is(&job.repository, Access::Read)?;
    let catalog = Catalog::look(&mut repository, context.state.path())?;
    let entry = catalog.find(&request.point)?;
    let (newest, order) = belief::compare(context, request, &repository, &catalog.of(&request.point.vm))?;
    let point = RestorePoint::read(&mut repository, &entry.info)?;
    let vouched = belief::trust(context, request, &repository, &catalog, &point, &order)?;
    let chain = header::Chain {
        newest,
        order: &order,
    };
    if let Some(image) = &request.onto {
        return bring_to_state(context, request, repository, &point, &chain, image, clock);
    }
    let mut plan = plan::make(context, request, &point)?;
    for disk in &plan.disks {
        if point
            .manifest
            .disk(&disk.target)
            .is_some_and(|record| record.host_encrypted)
        {
            context.warn(Code::HostEncryptionLost, format!(
                "disk {}: its hypervisor kept it encrypted; what is restored is not, unless the guest has encrypted it itself",
                disk.target
            ));
        }
    }
    if !request.dry_run {
        for (_, what) in unfinished::recover(context, Some(&plan.vm), false)? {
            context.warn(Code::InterruptedRestore, what);
        }
    }
    let definition = if let Some(change) = plan.define.clone() {
        let stored = definition(&mut repository, &point)?;
        let disks = context.hypervisor.disks_in(&stored)?;
        let copy = request.rename.is_some();
        let (change, left_out) = plan::fit(change, &disks, &point.manifest.excluded, copy);
        plan.left_out = left_out;
        Some(prospect::of(
            context, request, &stored, &change, vouched, &mut plan,
        )?)
    } else {
        None
    };
    let vm = point.manifest.vm.uuid;
    plan::check(context, request, &plan, vm, definition.as_deref())?;
    let mut headers = header::Search::new(context, &mut repository, request, &point, &chain)?;
    for disk in &plan.disks {
        headers.find(&mut repository, &disk.target)?;
    }
    if request.dry_run {
        repository.close()?;
        return Ok(Outcome::Planned(plan));
    }

    // Everything is written under other names first.
    context.report(Kind::step(Step::Restore));
    let staging = Staging::new(context, &plan.vm, request.disks.is_empty())?;
    let opener = repository.opener();
    let needs: Vec<Need> = plan
        .disks
        .iter()
        .map(|disk| Need {
            path: staging.path(&disk.path),
            bytes: room::of_disk(&point, disk, headers.of(&disk.target), &opener),
        })
        .collect();
    if !request.tight {
        check(&needs, job.limits.free)?;
    }
    let connection = repository.canceller();
    let (written, shortage) = watched(
        context,
        &needs,
        job.limits.free,
        || connection.cancel(),
        |context| {
            write_all(
                context,
                request,
                &mut repository,
                &point,
                &plan,
                &headers,
                &staging,
            )
        },
    );
    if let Some(shortage) = shortage {
        return Err(RestoreError::GaveWay(shortage));
    }
    let (staged_files, failures) = written?;
    repository.close()?;
    context.cancel.check()?;

    // All is there. What held hours ago may not hold any more; only then take the places, and tell the hypervisor.
    plan::check(context, request, &plan, vm, definition.as_deref())?;
    let journal = staging.journal();
    journal.taking(&staged_files, request.overwrite)?;
    let mut installed: Vec<InstalledFile<'_>> = staged_files
        .into_iter()
        .map(|staged| staging.install(context, staged, request.overwrite))
        .collect::<Result<_, _>>()?;
    let definition = definition.filter(|_| failures.is_empty());
    journal.taken(definition.as_deref())?;
    let mut uuid = None;
    if let Some(definition) = definition {
        let defined;
        if request.overwrite {
            defined = match context.hypervisor.define(&definition, true) {
                Ok(defined) => defined,
                Err(error) => {
                    journal.giving_back()?;
                    return Err(error.into());
                }
            };
        } else {
            (defined, installed) = define(context, &definition, installed)?;
        }
        uuid = Some(defined);
        if point.manifest.autostart
            && request.rename.is_none()
            && let Err(error) = context.hypervisor.set_autostart(defined, true)
        {
            context.warn(
                Code::AutostartLost,
                format!("{} does not start with its host: failed to {error}", plan.vm),
            );
        }
        // Checkpoints that the old disks had mean nothing for the new ones.
        let retired = context
            .state
            .lock(&request.point.vm, defined)
            .and_then(|mut state| state.retire());
        if let Err(error) = retired {
            context.warn(
                Code::Records,
                format!("the records of the old disks stay: failed to {error}"),
            );
        }
    }
    let mut disks = Vec::new();
    for file in installed {
        journal.step();
        let kept = file.keep().map_err(|source| WriteError::File {
            path: PathBuf::from("the old file"),
            source,
        });
        disks.extend(kept.map_err(|source| RestoreError::File {
            path: plan.vm.clone(),
            source,
        })?);
    }
    if !failures.is_empty() {
        return Err(RestoreError::Partial(failures));
    }
    let (archive, seconds) = (point.name(), clock.elapsed().as_secs_f64());
    Ok(Outcome::Done(Report {
        vm: plan.vm,
        uuid,
        archive,
        disks,
        left_out: plan.left_out,
        changes: plan.changes,
        seconds,
    }))
}

/// A restore onto an image that exists: see [`in_place`].
fn bring_to_state(
    context: &Context<'_>,
    request: &Request,
    mut repository: Repository,
    point: &RestorePoint,
    chain: &header::Chain<'_>,
    image: &std::path::Path,
    clock: std::time::Instant,
) -> Result<Outcome, RestoreError> {
    let (disk, owner) = in_place::target(context, request, point, image)?;
    let mut headers = header::Search::new(context, &mut repository, request, point, chain)?;
    headers.find(&mut repository, &disk.target)?;
    if !headers.missing().is_empty() {
        // The image may have the last header there is.
        return Err(RestoreError::Partial(headers.missing().to_vec()));
    }
    if request.dry_run {
        repository.close()?;
        return Ok(Outcome::Planned(RestorePlan {
            vm: request.point.vm.clone(),
            archive: point.name(),
            disks: vec![disk],
            ..RestorePlan::default()
        }));
    }
    context.report(Kind::step(Step::Restore));
    let restored = in_place::disk(
        context,
        &mut repository,
        point,
        &disk,
        headers.of(&disk.target),
        owner.as_ref(),
        context.settings.job(&request.point.vm).limits.free,
    )?;
    repository.close()?;
    Ok(Outcome::Done(Report {
        vm: request.point.vm.clone(),
        uuid: None,
        archive: point.name(),
        disks: vec![restored],
        left_out: Vec::new(),
        changes: Vec::new(),
        seconds: clock.elapsed().as_secs_f64(),
    }))
}

/// Writes disks and files under temporary names. With `keep_going`, says what failed.
fn write_all(
    context: &Context<'_>,
    request: &Request,
    repository: &mut Repository,
    point: &RestorePoint,
    plan: &RestorePlan,
    headers: &header::Search<'_>,
    staging: &Staging<'_>,
) -> Result<(Vec<StagedFile>, Vec<String>), RestoreError> {
    let mut staged_files = Vec::new();
    let mut failures = headers.missing().to_vec();
    for disk in &plan.disks {
        context.cancel.check()?;
        match write::disk(
            context,
            repository,
            point,
            disk,
            headers.of(&disk.target),
            staging,
        ) {
            Ok(staged) => staged_files.push(staged),
            Err(source) if request.keep_going && !context.cancel.is_cancelled() => {
                failures.push(format!("disk {}: {source}", disk.target));
            }
            Err(source) => {
                return Err(RestoreError::Disk {
                    disk: disk.target.clone(),
                    source,
                });
            }
        }
    }
    for file in &plan.files {
        let limit = firmware::limit(&file.path).unwrap_or_default();
        let written = checked_file(repository, point, &file.path, limit).and_then(|bytes| {
            let staged = staging.stage(&file.to).and_then(|staged| staged.with(&bytes));
            staged.map_err(|source| RestoreError::File {
                path: file.path.clone(),
                source: WriteError::File {
                    path: file.to.clone(),
                    source,
                },
            })
        });
        match written {
            Ok(staged) => staged_files.push(staged),
            Err(error) if request.keep_going && !context.cancel.is_cancelled() => {
                failures.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok((staged_files, failures))
}

/// The definition as it was.
fn definition(repository: &mut Repository, point: &RestorePoint) -> Result<String, RestoreError> {
    let bytes = checked_file(repository, point, DOMAIN_PATH, MAX_DOMAIN_XML)?;
    String::from_utf8(bytes).map_err(|_| RestoreError::Altered {
        archive: point.name(),
        path: DOMAIN_PATH.to_owned(),
    })
}

/// A file of the archive, compared with the manifest.
fn checked_file(
    repository: &mut Repository,
    point: &RestorePoint,
    path: &str,
    limit: u64,
) -> Result<Vec<u8>, RestoreError> {
    let described = point.manifest.files.iter().find(|file| file.path == path);
    let bytes = point.file(repository, path, limit)?;
    let (Some(described), Some(bytes)) = (described, bytes) else {
        return Err(RestoreError::Missing {
            archive: point.name(),
            path: path.to_owned(),
        });
    };
    if digest::sha256(&bytes) != described.sha256 {
        return Err(RestoreError::Altered {
            archive: point.name(),
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}
