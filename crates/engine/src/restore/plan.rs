//! Where everything will go, decided before anything is written.
//!
//! No path comes from the archive: files are named after the VM as it was asked for and the disk's checked target
//! name, in a directory of the operator's.

use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_disk::SwapLayout;
use strongroom_hypervisor::{Disk, DiskSource, HypervisorError, Retarget};
use strongroom_points::firmware;
use strongroom_points::manifest::{ExcludedDisk, Exclusion, NVRAM_PATH};
use strongroom_points::names::archive_prefix;
use strongroom_points::restore_point::RestorePoint;
use uuid::Uuid;

use super::{ImageFormat, Request};
use crate::files::{InUse, Inventory, Own};
use crate::run::context::Context;

/// What a restore will do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RestorePlan {
    /// The name that the VM will have.
    pub vm: String,
    /// The archive it comes from.
    pub archive: String,
    /// The disks to write.
    pub disks: Vec<DiskTarget>,
    /// Where files beside the disks go: UEFI variables, state of the TPM.
    pub files: Vec<FileTarget>,
    /// Disks and drives of its definition that the VM comes without.
    pub left_out: Vec<LeftOut>,
    /// What of the domain will not be as it was, or is not there on this host, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// What of the definition acts on the host, where no trusted key vouches for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub powers: Vec<String>,
    /// How the definition changes; `None` if no domain will be defined.
    #[serde(skip)]
    pub define: Option<Retarget>,
}

/// One disk to write.
#[derive(Debug, Clone, Serialize)]
pub struct DiskTarget {
    /// Target device name.
    pub target: String,
    /// The image to make.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Guest-visible size in bytes.
    pub size: u64,
    /// What it will hold.
    pub content: DiskContent,
}

/// One file beside the disks.
#[derive(Debug, Clone, Serialize)]
pub struct FileTarget {
    /// Path in the archive.
    pub path: String,
    /// Where it goes.
    pub to: PathBuf,
}

/// A disk or drive that the restored VM comes without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Target device name.
    pub target: String,
    /// What is missing, and why.
    pub what: String,
}

/// What a restored disk holds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskContent {
    /// What the archive holds.
    Archived,
    /// Empty swap space, laid out as the guest knows it.
    Swap(SwapLayout),
}

/// Why a restore cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A disk that is not in the archive.
    #[error("restore disk {target}: archive {archive} has {}", .has.join(", "))]
    NoSuchDisk {
        /// The disk asked for.
        target: String,
        /// The archive.
        archive: String,
        /// What it has.
        has: Vec<String>,
    },
    /// Something is in the way.
    #[error("write {0}: it exists already; name another place with --to, or replace it with --overwrite")]
    FileExists(PathBuf),
    /// Only regular files are made and replaced.
    #[error("write {0}: it is not a regular file")]
    NotAFile(PathBuf),
    /// A domain uses the file.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// A domain's disks are made as qcow2.
    #[error(
        "restore a whole VM onto raw images: its disks are made as qcow2; single disks come as raw with --disk"
    )]
    RawDomain,
    /// A path that cannot be made absolute.
    #[error("find {path}: {source}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A restore onto an image is of one disk.
    #[error("restore onto an image: name the one disk that it is for with --disk")]
    OneDisk,
    /// An interrupted backup may have left the VM's disks on overlays.
    #[error("change the disks of {0}: an interrupted backup is on record; `strongroom recover {0}` first")]
    Interrupted(String),
    /// Our records of the VM.
    #[error(transparent)]
    State(crate::run::state::StateError),
    /// The hypervisor could not be asked.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Images can be changed only where we run.
    #[error("change an image on {0}: it is another machine; run `strongroom restore` there")]
    Remote(String),
    /// What another machine has is not replaced.
    #[error(
        "replace a VM on another machine: remove it there first (`virsh undefine --remove-all-storage`), or give the restored          one another name with --as"
    )]
    RemoteOverwrite,
    /// A TPM's state can be put only where we run.
    #[error(
        "restore onto {0}: the state of its TPM cannot be taken to another machine; run `strongroom restore` there, or take          single disks with --disk and --to"
    )]
    RemoteTpm(String),
    /// A name that cannot be a file's.
    #[error("restore as {0:?}: a VM's name has no slash and no leading dot")]
    Name(String),
}

/// Decides where everything goes.
pub fn make(
    context: &Context<'_>,
    request: &Request,
    point: &RestorePoint,
) -> Result<RestorePlan, PlanError> {
    let vm = request.rename.clone().unwrap_or_else(|| request.point.vm.clone());
    if vm.is_empty() || vm.starts_with('.') || vm.contains(['/', '\0']) {
        return Err(PlanError::Name(vm));
    }
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| PlanError::Path {
            path: path.clone(),
            source,
        })
    };
    let request = &Request {
        to: request.to.as_ref().map(absolute).transpose()?,
        ..request.clone()
    };
    let whole = request.disks.is_empty();
    let uuid = if request.rename.is_some() {
        Uuid::new_v4()
    } else {
        point.manifest.vm.uuid
    };
    let plan = RestorePlan {
        archive: point.name(),
        disks: disks(context, request, point, &vm)?,
        files: if whole {
            files(context, request, point, &vm, uuid)
        } else {
            Vec::new()
        },
        vm,
        ..RestorePlan::default()
    };
    if !whole {
        return Ok(plan);
    }
    if request.format == ImageFormat::Raw {
        // A raw disk's first bytes are the guest's: a definition must never leave open what format they are.
        return Err(PlanError::RawDomain);
    }
    if !context.hypervisor.is_local() {
        if request.overwrite {
            return Err(PlanError::RemoteOverwrite);
        }
        if plan.files.iter().any(|file| file.path != NVRAM_PATH) {
            return Err(PlanError::RemoteTpm(context.hypervisor.uri().to_owned()));
        }
    }
    let define = definition_change(request, &plan, uuid);
    Ok(RestorePlan {
        define: Some(define),
        ..plan
    })
}

/// Refuses what is in the way, `vm` being the VM of the restore point. Asked twice: before anything is written, and before
/// anything takes its place.
pub fn check(
    context: &Context<'_>,
    request: &Request,
    plan: &RestorePlan,
    vm: Uuid,
    definition: Option<&str>,
) -> Result<(), PlanError> {
    let paths: Vec<&PathBuf> = plan
        .disks
        .iter()
        .map(|disk| &disk.path)
        .chain(plan.files.iter().map(|file| &file.to))
        .collect();
    let away = plan.define.is_some() && !context.hypervisor.is_local();
    for path in &paths {
        if away {
            if context.hypervisor.is_there(path)? {
                return Err(PlanError::FileExists((*path).clone()));
            }
            continue;
        }
        match path.symlink_metadata() {
            Ok(found) if !found.is_file() => return Err(PlanError::NotAFile((*path).clone())),
            Ok(_) if !request.overwrite => return Err(PlanError::FileExists((*path).clone())),
            _ => {}
        }
    }
    if let Some(definition) = definition {
        context
            .hypervisor
            .check_definable(definition, request.overwrite)?;
    }
    // Single disks come to this machine, of which the hypervisor of another one knows nothing.
    if away || context.hypervisor.is_local() {
        let inventory = Inventory::take(context.hypervisor)?;
        let own = own(request, plan, vm);
        for path in paths {
            inventory.check(path, &own)?;
        }
    }
    Ok(())
}

/// Whose files may be replaced: those of the VM itself, unless it is to be a copy.
fn own(request: &Request, plan: &RestorePlan, vm: Uuid) -> Own {
    if request.rename.is_some() {
        return Own::none();
    }
    Own {
        replaced: plan
            .define
            .as_ref()
            .map(|define| define.disks.iter().map(|(target, _)| target.clone()).collect()),
        ..Own::of(&request.point.vm, vm)
    }
}

/// Where UEFI variables and the TPM's state go. Other files are none of ours.
fn files(
    context: &Context<'_>,
    request: &Request,
    point: &RestorePoint,
    vm: &str,
    uuid: Uuid,
) -> Vec<FileTarget> {
    let place = |path: &str| {
        if path == NVRAM_PATH {
            return Some(directory(context, request).join(format!("{}-nvram.fd", archive_prefix(vm))));
        }
        Some(
            context
                .hypervisor
                .tpm_directory(uuid)
                .join(firmware::tpm_place(path)?),
        )
    };
    let paths = point.manifest.files.iter().map(|file| file.path.clone());
    paths
        .filter_map(|path| {
            Some(FileTarget {
                to: place(&path)?,
                path,
            })
        })
        .collect()
}

fn directory(context: &Context<'_>, request: &Request) -> PathBuf {
    request
        .to
        .clone()
        .unwrap_or_else(|| context.settings.images.clone())
}

fn disks(
    context: &Context<'_>,
    request: &Request,
    point: &RestorePoint,
    vm: &str,
) -> Result<Vec<DiskTarget>, PlanError> {
    let manifest = &point.manifest;
    let archived = manifest
        .disks
        .iter()
        .map(|disk| (disk.target.clone(), disk.size, DiskContent::Archived));
    let swap = manifest
        .excluded
        .iter()
        .filter(|disk| disk.why == Exclusion::Swap)
        .filter_map(|disk| {
            let layout = disk.layout.clone().unwrap_or(SwapLayout::Blank);
            Some((disk.target.clone(), disk.size?, DiskContent::Swap(layout)))
        });
    let all: Vec<_> = archived.chain(swap).collect();
    for target in &request.disks {
        if !all.iter().any(|(name, ..)| name == target) {
            let has = all.iter().map(|(name, ..)| name.clone()).collect();
            return Err(PlanError::NoSuchDisk {
                target: target.clone(),
                archive: point.name(),
                has,
            });
        }
    }
    let directory = directory(context, request);
    // `--disk vda --to FILE`: a file, unless it is a directory already.
    let single = (request.disks.len() == 1)
        .then_some(request.to.as_deref())
        .flatten()
        .filter(|to| !to.is_dir());
    let extension = match request.format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    };
    let wanted = all
        .into_iter()
        .filter(|(name, ..)| request.disks.is_empty() || request.disks.contains(name));
    Ok(wanted
        .map(|(target, size, content)| DiskTarget {
            path: single.map_or_else(
                || directory.join(format!("{}-{target}.{extension}", archive_prefix(vm))),
                Path::to_owned,
            ),
            format: request.format,
            target,
            size,
            content,
        })
        .collect())
}

fn definition_change(request: &Request, plan: &RestorePlan, uuid: Uuid) -> Retarget {
    Retarget {
        name: Some(plan.vm.clone()),
        uuid: Some(uuid),
        copy: request.rename.is_some(),
        // The guest has to learn that its past is another one (libvirt, "formatdomain", genid).
        genid: Some(Uuid::new_v4()),
        disks: plan
            .disks
            .iter()
            .map(|disk| (disk.target.clone(), disk.path.clone()))
            .collect(),
        // What else is in the definition is known when that has been read.
        drop_disks: Vec::new(),
        empty_drives: Vec::new(),
        nvram: plan
            .files
            .iter()
            .find(|file| file.path == NVRAM_PATH)
            .map(|file| file.to.clone()),
    }
}

/// Decides about the disks of a stored definition that the restore does not write, and says what becomes of those that are
/// not as they were.
///
/// A copy shares nothing with another VM that its guest could write to. The VM itself keeps what was left out of its backups on
/// purpose. What was stored for a next start, and never ran, is in no restore point.
pub fn fit(
    mut change: Retarget,
    stored: &[Disk],
    excluded: &[ExcludedDisk],
    copy: bool,
) -> (Retarget, Vec<LeftOut>) {
    let mut left_out = Vec::new();
    for disk in stored {
        let restored = change.disks.iter().any(|(target, _)| *target == disk.target);
        let removable = matches!(disk.device.as_str(), "cdrom" | "floppy");
        if restored || disk.read_only || disk.device == "cdrom" || disk.source == DiskSource::None {
            continue;
        }
        let known = excluded.iter().any(|left| left.target == disk.target);
        if known && !copy {
            continue;
        }
        let (list, what) = match (removable, known) {
            (true, _) => (&mut change.empty_drives, "its medium"),
            (false, true) => (&mut change.drop_disks, "the disk"),
            (false, false) => (
                &mut change.drop_disks,
                "the disk, which was defined for a start that had not come yet,",
            ),
        };
        list.push(disk.target.clone());
        left_out.push(LeftOut {
            target: disk.target.clone(),
            what: format!("{what} is not in the restore point ({})", disk.source.words()),
        });
    }
    (change, left_out)
}

#[cfg(test)]
mod tests;
