//! What a backup will do: the plan as data. [`crate::backup::plan`] makes it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use strongroom_hypervisor::{DiskSource, Identity};
use strongroom_points::manifest::{Exclusion, Method, Mode};
use uuid::Uuid;

/// What a backup will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The VM's name.
    pub vm: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The run's id.
    pub run: String,
    /// The archive that will be written.
    pub archive: String,
    /// How the disks are held still.
    pub method: Method,
    /// Why, where that was not the first choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method_reason: Option<String>,
    /// The checkpoint that will be made, if any disk can keep track of changes.
    pub checkpoint: Option<String>,
    /// The disks that will be read.
    pub disks: Vec<DiskPlan>,
    /// The disks that will not.
    pub excluded: Vec<ExcludedPlan>,
}

/// How one disk will be read.
#[derive(Debug, Clone, Serialize)]
pub struct DiskPlan {
    /// Target device name.
    pub target: String,
    /// Guest-visible size in bytes.
    pub size: u64,
    /// Image format as defined.
    pub format: String,
    /// The image on the hypervisor, where it is a file or a block device.
    pub source: Option<PathBuf>,
    /// Everything, or changes only.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// The archive whose chunks stand for what has not changed.
    pub parent: Option<String>,
    /// The checkpoint whose changes are read.
    pub since: Option<String>,
    /// Whether changes after this run will be known.
    pub tracked: bool,
    /// Which disk it is.
    #[serde(skip)]
    pub identity: Identity,
    /// The hypervisor encrypts the image, and decrypts what is read.
    pub host_encrypted: bool,
    /// Where old contents of overwritten blocks go meanwhile.
    pub scratch: PathBuf,
}

/// A disk that will not be read.
#[derive(Debug, Clone, Serialize)]
pub struct ExcludedPlan {
    /// Target device name.
    pub target: String,
    /// Why.
    pub why: Exclusion,
}

/// One run: its id and its instant.
#[derive(Debug, Clone)]
pub struct RunId {
    /// Unique among the runs of a VM.
    pub id: String,
    /// The run's start.
    pub started: Timestamp,
}

impl RunId {
    /// A new run, now.
    pub fn new() -> Self {
        let started = Timestamp::now();
        let random = Uuid::new_v4().simple().to_string();
        Self {
            id: format!("{}-{}", started.strftime("%Y%m%dT%H%M%SZ"), &random[..8]),
            started,
        }
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

/// Where scratch files and overlays of a disk belong, if it is a file: they grow with what the guest overwrites, on the
/// storage that holds the disk.
pub fn beside(source: &DiskSource) -> Option<&Path> {
    match source {
        DiskSource::File(path) => path.parent(),
        _ => None,
    }
}
