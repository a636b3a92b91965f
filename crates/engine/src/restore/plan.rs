//! Where everything will go, decided before anything is written.
//!
//! No path comes from the archive: files are named after the VM as it was asked for and the disk's checked target
//! name, in a directory of the operator's.

use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_disk::SwapLayout;
use uuid::Uuid;

use super::{ImageFormat, Request};
use crate::backup::plan::archive_prefix;
use crate::context::Context;
use crate::firmware;
use crate::history::Point;
use crate::manifest::{Exclusion, NVRAM_PATH};
use crate::vm::{Domain, HypervisorError, Retarget};

/// Images below a disk that are looked at.
const DEEPEST: usize = 16;

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// The name that the VM will have.
    pub vm: String,
    /// The archive it comes from.
    pub archive: String,
    /// The disks to write.
    pub disks: Vec<DiskTarget>,
    /// Where files beside the disks go: UEFI variables, state of the TPM.
    pub files: Vec<FileTarget>,
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
    /// A domain uses the file, or will when its saved memory is resumed.
    #[error(
        "replace {path}: domain {domain:?} runs on it, or will when its saved memory is resumed; shut it down first"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who uses it.
        domain: String,
    },
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
    /// The image is below another one.
    #[error("change {path}: it is below {above}, a disk of domain {domain:?}")]
    Below {
        /// The image.
        path: PathBuf,
        /// The overlay.
        above: PathBuf,
        /// Whose it is.
        domain: String,
    },
    /// An interrupted backup may have left the VM's disks on overlays.
    #[error("change the disks of {0}: an interrupted backup is on record; `strongroom recover {0}` first")]
    Interrupted(String),
    /// Our records of the VM.
    #[error(transparent)]
    State(crate::state::StateError),
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
pub fn make(context: &Context<'_>, request: &Request, point: &Point) -> Result<RestorePlan, PlanError> {
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
        define: None,
        vm,
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
    let define = definition_change(request, point, &plan, uuid);
    Ok(RestorePlan {
        define: Some(define),
        ..plan
    })
}

/// Refuses what is in the way. Asked twice: before anything is written, and before anything takes its place.
pub fn check(
    context: &Context<'_>,
    request: &Request,
    plan: &RestorePlan,
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
    if request.overwrite && context.hypervisor.is_local() {
        let paths: Vec<PathBuf> = paths.into_iter().cloned().collect();
        check_unused(context, &paths)?;
    }
    Ok(())
}

/// Refuses files that a domain runs on, or will when its saved memory is resumed.
pub fn check_unused(context: &Context<'_>, paths: &[PathBuf]) -> Result<(), PlanError> {
    for name in context.hypervisor.domain_names()? {
        let domain = match context.hypervisor.domain(&name) {
            Err(HypervisorError::NoSuchDomain(..)) => continue,
            domain => domain?,
        };
        let in_use = domain.disks.iter().filter_map(|disk| disk.source.path());
        if !domain.state.is_active() && !domain.saved {
            continue;
        }
        if let Some(path) = paths
            .iter()
            .find(|path| in_use.clone().any(|used| same_file(used, path)))
        {
            return Err(PlanError::InUse {
                path: path.clone(),
                domain: name,
            });
        }
    }
    Ok(())
}

/// The domain whose disk an image is, and the image's format as defined. An image that is below another one is refused.
pub fn owner(context: &Context<'_>, image: &Path) -> Result<Option<(Domain, String)>, PlanError> {
    let mut owner = None;
    for name in context.hypervisor.domain_names()? {
        let domain = match context.hypervisor.domain(&name) {
            Err(HypervisorError::NoSuchDomain(..)) => continue,
            domain => domain?,
        };
        for disk in &domain.disks {
            let Some(path) = disk.source.path() else { continue };
            if same_file(path, image) {
                owner = Some((domain.clone(), disk.format.clone()));
            } else if context.hypervisor.is_local() && disk.format == "qcow2" && is_below(image, path) {
                return Err(PlanError::Below {
                    path: image.to_owned(),
                    above: path.to_owned(),
                    domain: name,
                });
            }
        }
    }
    Ok(owner)
}

/// Whether an image is in the chain that the headers of an overlay and of what is below it name.
fn is_below(image: &Path, overlay: &Path) -> bool {
    let mut at = overlay.to_owned();
    for _ in 0..DEEPEST {
        let Ok(info) = strongroom_nbd::image_info(&at, strongroom_nbd::Format::Qcow2, true) else {
            return false;
        };
        let Some(below) = info.backing_file else {
            return false;
        };
        at = at.parent().unwrap_or(Path::new("/")).join(below);
        if same_file(&at, image) {
            return true;
        }
    }
    false
}

/// Whether two names are of one file.
pub fn same_inode(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (one.symlink_metadata(), other.symlink_metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Where UEFI variables and the TPM's state go. Other files are none of ours.
fn files(context: &Context<'_>, request: &Request, point: &Point, vm: &str, uuid: Uuid) -> Vec<FileTarget> {
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
        .unwrap_or_else(|| context.config.images.clone())
}

fn disks(
    context: &Context<'_>,
    request: &Request,
    point: &Point,
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

fn definition_change(request: &Request, point: &Point, plan: &RestorePlan, uuid: Uuid) -> Retarget {
    let renamed = request.rename.is_some();
    // A disk that was left out on purpose belongs to the original VM. A copy must not share it.
    let left_out = point
        .manifest
        .excluded
        .iter()
        .filter(|disk| disk.why == Exclusion::Configured);
    Retarget {
        name: Some(plan.vm.clone()),
        uuid: Some(uuid),
        new_macs: renamed,
        disks: plan
            .disks
            .iter()
            .map(|disk| (disk.target.clone(), disk.path.clone()))
            .collect(),
        drop_disks: if renamed {
            left_out.map(|disk| disk.target.clone()).collect()
        } else {
            Vec::new()
        },
        nvram: plan
            .files
            .iter()
            .find(|file| file.path == NVRAM_PATH)
            .map(|file| file.to.clone()),
    }
}
