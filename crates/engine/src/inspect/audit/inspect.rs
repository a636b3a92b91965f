//! Inspects disks: image headers by `qemu-img`, the guest's side of them through a read-only `qemu-nbd` without a lock.

use std::path::{Path, PathBuf};

use strongroom_disk::Survey;
use strongroom_hypervisor::{Disk, Domain, Store};
use strongroom_nbd::{Backing, Client, Format, ImageInfo, Options, QemuNbd, Serve, image_info};

use crate::files::identity::Identity;

/// How often an inspection is tried that fails: what a running guest's image says may be half-written.
const TRIES: usize = 3;

/// A disk as it was inspected.
#[derive(Debug)]
pub struct InspectedDisk {
    /// Target device name.
    pub target: String,
    /// Its image.
    pub image: Option<PathBuf>,
    /// What tells that from all others.
    pub identity: Option<Identity>,
    /// It is said to hold nothing but swap.
    pub swap: bool,
    /// Discards reach the image.
    pub discard: bool,
    /// What the image says about itself.
    pub info: Option<ImageInfo>,
    /// What is on it; or why that cannot be told.
    pub survey: Result<Survey, String>,
}

/// Inspects the disks of a domain; CD-ROMs, floppies, and what the guest cannot write to, left out.
pub fn disks(domain: &Domain, swap: &[String]) -> Vec<InspectedDisk> {
    let mut disks: Vec<InspectedDisk> = out_of_reach(domain, swap);
    for inspected in &mut disks {
        let disk = domain.disks.iter().find(|disk| disk.target == inspected.target);
        let Some(disk) = disk else { continue };
        match (&inspected.image, format(disk)) {
            (Some(image), Ok(format)) => {
                inspected.identity = Some(Identity::of(&Store::Path(image.clone()), true));
                inspected.info = image_info(image, format, true).ok();
                inspected.survey = disk.why_unreadable().map_or_else(|| survey(image, format), Err);
            }
            (None, _) => inspected.survey = Err(disk.why_unreadable().unwrap_or_default()),
            (_, Err(reason)) => inspected.survey = Err(reason),
        }
    }
    disks
}

/// The disks of a domain on another machine, whose images are not to be read from here.
pub fn out_of_reach(domain: &Domain, swap: &[String]) -> Vec<InspectedDisk> {
    let disks = domain.disks.iter().filter(|disk| disk.is_writable_disk());
    let inspected = |disk: &Disk| InspectedDisk {
        target: disk.target.clone(),
        image: disk.source.path().map(Path::to_owned),
        identity: None,
        swap: disk.is_swap(swap),
        discard: disk.discard,
        info: None,
        survey: Err("its image is on another machine: run the audit there".into()),
    };
    disks.map(inspected).collect()
}

fn format(disk: &Disk) -> Result<Format, String> {
    match disk.format.as_str() {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        other => Err(format!("images in format {other} cannot be looked at")),
    }
}

fn survey(image: &Path, format: Format) -> Result<Survey, String> {
    let once = || -> Result<Survey, String> {
        let serve = Serve {
            backing: Backing::Follow,
            ..Serve::peek(format)
        };
        let server = QemuNbd::start(image, &serve).map_err(|error| format!("failed to {error}"))?;
        let failed = |error: strongroom_nbd::Error| format!("failed to {error}");
        let mut client = Client::connect(&server.target(), &Options::default()).map_err(failed)?;
        let allocated = client.allocation().map_err(failed)?;
        Survey::take(&mut client, &allocated).map_err(|error| format!("failed to {error}"))
    };
    let mut result = once();
    for _ in 1..TRIES {
        if result.is_ok() || !image.exists() {
            break;
        }
        result = once();
    }
    result
}
