//! What the files of an overlay and its base say, and what is done to them. Only on this machine, only while no QEMU
//! uses them.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use strongroom_hypervisor::Overlay;
use strongroom_hypervisor::names::PREFIX;
use strongroom_nbd::{Format, commit_overlay, holds_data, reads_the_same};

use super::{Content, Facts};

/// The end of an overlay's name.
pub const SUFFIX: &str = ".overlay";

impl Facts {
    /// What is known of files that a QEMU uses, or that lie elsewhere.
    pub fn unknown(why: &str) -> Self {
        Self {
            overlay: Content::Unknown(why.to_owned()),
            base_is_newer: true,
            same: None,
        }
    }

    /// Looks at the files. What is not known counts as what does no harm: data, and a newer base.
    pub fn of(entry: &Overlay) -> Self {
        let overlay = match entry.overlay.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Absent,
            Err(error) => Content::Unknown(error.to_string()),
            Ok(metadata) if !metadata.is_file() => Content::Unknown("it is not a regular file".into()),
            Ok(_) => match holds_data(&entry.overlay) {
                Ok(true) => Content::Data,
                Ok(false) => Content::Empty,
                Err(error) => Content::Unknown(error.to_string()),
            },
        };
        let base_is_newer = match (modified(&entry.base), modified(&entry.overlay)) {
            (Some(base), Some(overlay)) => base > overlay,
            _ => true,
        };
        Self {
            overlay,
            base_is_newer,
            same: None,
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// The format as defined. Others have no overlays of ours.
pub fn format(entry: &Overlay) -> Result<Format, String> {
    match entry.format.as_str() {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(format!("{other:?} is not a format that can be committed into")),
    }
}

/// Merges the overlay into its base, and empties it.
pub fn commit(entry: &Overlay) -> Result<(), String> {
    commit_overlay(&entry.overlay, &entry.base, format(entry)?).map_err(|error| error.to_string())
}

/// Whether the disk reads the same without the overlay.
pub fn same(entry: &Overlay) -> Result<bool, String> {
    reads_the_same(&entry.overlay, &entry.base, format(entry)?).map_err(|error| error.to_string())
}

/// Removes an overlay. Whatever the journal says: only files with a name of ours.
pub fn remove(entry: &Overlay) -> Result<(), String> {
    let name = entry.overlay.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
        return Err(format!(
            "{} has not the name of an overlay",
            entry.overlay.display()
        ));
    }
    match std::fs::remove_file(&entry.overlay) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", entry.overlay.display()))
        }
        _ => Ok(()),
    }
}
