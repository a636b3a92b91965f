//! A shut-off VM as a set of files: its disks with the images below them, its UEFI variables, and the kernel and initial
//! RAM disk that it boots from directly.
//!
//! Where they lie is told by the definition that the next start uses, so that a start can be checked with nothing but
//! what libvirt hands to its hook. What the definition says besides is not sealed.

use std::path::{Path, PathBuf};

use strongroom_hypervisor::{Disk, DiskSource, MachineFiles};
use strongroom_nbd::{Format, image_info};

use super::{NamedFile, SealError, Subject};

/// Deeper chains of images are refused.
const MAX_DEPTH: usize = 64;

/// What the seal of a VM is about.
pub fn subject(machine: &MachineFiles) -> Subject {
    Subject {
        name: machine.name.clone(),
        uuid: machine.uuid,
    }
}

/// All files of a VM. `wanted` chooses among the disks.
pub fn files(machine: &MachineFiles, wanted: impl Fn(&Disk) -> bool) -> Result<Vec<NamedFile>, SealError> {
    let refused = |disk: &Disk, reason: String| SealError::Refused {
        name: machine.name.clone(),
        reason: format!("disk {}: {reason}", disk.target),
    };
    let mut files = Vec::new();
    for disk in machine.disks.iter().filter(|disk| wanted(disk)) {
        // An empty drive.
        if disk.source == DiskSource::None {
            continue;
        }
        let Some(path) = disk.source.path() else {
            return Err(refused(disk, disk.source.why_no_path().unwrap_or_default()));
        };
        chain(&disk.target, path, &disk.format, &mut files).map_err(|reason| refused(disk, reason))?;
    }
    // A variable store that was never used does not exist; if there is one later, it was not sealed.
    let others = machine.files.iter().filter(|(_, path)| path.exists());
    files.extend(others.map(|(name, path)| NamedFile {
        name: (*name).to_owned(),
        path: path.clone(),
    }));
    Ok(files)
}

/// The name of a disk's image in a seal.
pub fn disk_name(target: &str) -> String {
    format!("disks/{target}")
}

/// A disk's image and those below it.
fn chain(target: &str, image: &Path, format: &str, files: &mut Vec<NamedFile>) -> Result<(), String> {
    let mut path = image.to_owned();
    let mut format = format.to_owned();
    for depth in 0..MAX_DEPTH {
        let name = match depth {
            0 => disk_name(target),
            below => format!("{}.below{below}", disk_name(target)),
        };
        files.push(NamedFile {
            name: name.clone(),
            path: path.clone(),
        });
        let below = match format.as_str() {
            "raw" => return Ok(()),
            "qcow2" => image_info(&path, Format::Qcow2, depth > 0).map_err(|error| error.to_string())?,
            other => return Err(format!("images of format {other:?} cannot be sealed")),
        };
        if let Some(data) = below.data_file {
            files.push(NamedFile {
                name: format!("{name}.data"),
                path: beside(&path, &data)?,
            });
        }
        let Some(backing) = below.backing_file else {
            return Ok(());
        };
        path = beside(&path, &backing)?;
        // Never guessed: a guest may have written the first bytes of a raw image.
        format = below.backing_format.ok_or_else(|| {
            format!(
                "{} does not say of which format its backing file is",
                path.display()
            )
        })?;
    }
    Err(format!("more than {MAX_DEPTH} images lie upon each other"))
}

/// A file that an image's header names: from the root on, or from the image's directory.
fn beside(image: &Path, named: &str) -> Result<PathBuf, String> {
    // `nbd://…`, `json:{…}`: QEMU looks for a colon before the first slash.
    let is_protocol = named
        .find(':')
        .is_some_and(|colon| named.find('/').is_none_or(|slash| colon < slash));
    if is_protocol {
        return Err(format!(
            "{} rests on {named:?}, which is no file",
            image.display()
        ));
    }
    Ok(image.parent().unwrap_or(Path::new("/")).join(named))
}
